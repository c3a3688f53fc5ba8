"""Every experiment on every kernel: predicted victim = killed victim. ``make test-vm``.

All of these kernels are Accurate; clamped ones are covered by their logs (tests/unit/test_oomlog.py).
"""

import pytest

from vm import claims
from vm.boots import MACHINES, boot, cases_for
from vm.cases import Case
from vm.machine import GuestError, Machine, Scenario, run

pytestmark = pytest.mark.vm


@pytest.mark.parametrize(
    ("machine", "case"),
    [pytest.param(machine, case, id=f"{machine}-{case.id}") for machine in MACHINES for case in cases_for(machine)],
)
def test_the_kernel_kills_whom_nodemem_predicts(machine: Machine, case: Case) -> None:
    claims.predicted_is_killed(boot(machine), case)


@pytest.mark.parametrize("machine", MACHINES, ids=str)
def test_the_oom_score_of_every_process_is_what_nodemem_computes(machine: Machine) -> None:
    claims.every_score_is_computed(boot(machine))


def test_panic_on_oom_stops_the_machine_where_nodemem_says_so() -> None:
    case = {
        "programs": [[8 << 10, 0]],
        "limit_mib": 16,
        "late_settings": [["vm/panic_on_oom", "2"]],
    }
    with pytest.raises(GuestError, match="out of memory: compulsory panic_on_oom is enabled"):
        run(Machine("bookworm", "v2", append="loglevel=7"), [Scenario("panics", "experiment", case)])
