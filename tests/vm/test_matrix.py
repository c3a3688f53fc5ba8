"""Every experiment on every kernel: predicted victim = killed victim. ``make test-vm``.

All of these kernels are Accurate; clamped ones are covered by their logs (tests/unit/test_oomlog.py).
"""

from dataclasses import replace

import pytest

from nodemem.kernel import oom
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


def test_panic_on_oom_2_stops_the_machine_for_a_cgroups_oom_too_as_predicted() -> None:
    rules = oom.rules_for("6.1.0", oom.Generation.ACCURATE)
    predicted = oom.predict([oom.Task(2, "lab", 2048)], 4096, rules, replace(oom.MEMCG, panic_on_oom=2))
    assert predicted.outcome is oom.Outcome.PANICS
    case = {
        "programs": [[8 << 10, 0]],
        "limit_mib": 16,
        "late_settings": [["vm/panic_on_oom", "2"]],
    }
    with pytest.raises(GuestError, match="Out of memory: compulsory panic_on_oom is enabled"):
        run(Machine("bookworm", "v2", append="loglevel=7"), [Scenario("panics", "experiment", case)])
