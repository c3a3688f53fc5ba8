"""The set that a plain test run boots; the whole matrix is in test_matrix.py.

Needs root on a Debian machine without QEMU (it is installed then); all else is fetched and kept by ``vm.packages``.
"""

import pytest

from vm import boots, claims
from vm.boots import NEW, OLD, SHORT, boot, cases_for
from vm.cases import Case
from vm.machine import Machine, ScenarioError


@pytest.mark.parametrize(
    ("machine", "case"),
    [
        pytest.param(machine, case, id=f"{machine}-{case.id}")
        for machine in SHORT
        for case in cases_for(machine, short=True)
    ],
)
def test_the_kernel_kills_whom_nodemem_predicts(machine: Machine, case: Case) -> None:
    claims.predicted_is_killed(boot(machine, short=True), case)


@pytest.mark.parametrize("machine", SHORT, ids=str)
def test_the_oom_score_of_every_process_is_what_nodemem_computes(machine: Machine) -> None:
    claims.every_score_is_computed(boot(machine, short=True))


@pytest.mark.parametrize(("machine", "major"), [(OLD, "5.10."), (NEW, "6.12.")], ids=str)
def test_the_guest_runs_the_kernel_that_was_asked_for(machine: Machine, major: str) -> None:
    assert boot(machine, short=True).release.startswith(major)


def test_what_a_scenario_raises_in_the_guest_is_raised_here_with_its_traceback() -> None:
    with pytest.raises(ScenarioError, match="RuntimeError: as it was asked to"):
        boot(OLD, short=True).value(boots.RAISES.id)
