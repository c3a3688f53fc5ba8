"""The mitigation on kernels from 5.10 on, with the values that it is for, and with the chart's capabilities alone.

These kernels are accurate, so the agent is told that they clamp; that it sets values, which ones, and that it puts them
back is what is seen here. On a kernel that does clamp, what such values change was seen once, on 5.4.119
(docs/oom-exposure.md): none of the suites that are booted here has one.
"""

from functools import cache

import pytest

from chartlab import find, render
from vm.machine import Boot, Machine, Scenario, run

_NUMBERS = {
    "DAC_OVERRIDE": 1,
    "DAC_READ_SEARCH": 2,
    "SYS_PTRACE": 19,
    "SYSLOG": 34,
    "CHECKPOINT_RESTORE": 40,
}
KUBELETS, LIMIT_MIB = -998, 96
MACHINES = (Machine("bullseye", "v1"), pytest.param(Machine("trixie", "v2"), marks=pytest.mark.vm))


@cache
def boot(machine: Machine) -> Boot:
    daemonset = find(render({"mitigation": {"enabled": True}}), "DaemonSet", "nodemem-agent")
    context = daemonset["spec"]["template"]["spec"]["containers"][0]["securityContext"]
    arguments = {
        "capabilities": sorted(_NUMBERS[each] for each in context["capabilities"]["add"]),
        "kubelets": KUBELETS,
        "limit_mib": LIMIT_MIB,
    }
    functions = ("mitigated_and_back", "killed_first")
    return run(machine, [Scenario(each, each, arguments, "mitigation_scenarios") for each in functions])


@pytest.mark.parametrize("machine", MACHINES, ids=str)
def test_a_guaranteed_container_gets_the_value_and_gets_the_kubelets_back(machine: Machine) -> None:
    found = boot(machine).value("mitigated_and_back")
    steps = {each["step"]: each for each in found["steps"]}

    def adj(step: str) -> dict[str, int]:
        values: dict[str, int] = steps[step]["adj"]
        return values

    before = {"first": -998, "users": -998, "own": -500, "unkillable": -1000, "sandboxed": -998}
    assert adj("record") == before
    (recorded,) = steps["record"]["statuses"]
    value = recorded["oomScoreAdj"]
    assert -998 < value < 0
    assert recorded["kubeletOomScoreAdj"] == -998, "not the -997 of newer kubelets"
    # Those of other users can't be written to without DAC_OVERRIDE; root's own can.
    assert adj("without DAC_OVERRIDE") == {**before, "first": value}
    (refused,) = steps["without DAC_OVERRIDE"]["statuses"]
    assert (refused["state"], refused["reason"]) == ("Failed", "KernelRefused")
    ours = {"first": value, "users": value, "own": -500, "unkillable": -1000, "sandboxed": value}
    assert adj("apply") == ours
    (applied,) = steps["apply"]["statuses"]
    assert (applied["state"], applied["processes"], applied["others"]) == ("Applied", 3, 2)
    assert adj("apply again") == {**ours, "new": value, "child": value}
    assert adj("restore") == {**before, "new": -998, "child": -998}
    assert steps["restore"]["statuses"] == []
    assert adj("nothing left") == adj("restore")
    assert adj("apply for good") == {**ours, "new": value, "child": value}, "and once more, after it was put back"


@pytest.mark.parametrize("machine", MACHINES, ids=str)
def test_the_value_is_put_back_without_cap_sys_resource_unless_it_was_set_with_it(machine: Machine) -> None:
    """Why the chart doesn't give it."""
    bound = boot(machine).value("mitigated_and_back")["bound"]
    assert bound["without"] == [-50, KUBELETS, None]
    assert bound["with"] == [-50, -50, "Permission denied"]


@pytest.mark.parametrize("machine", MACHINES, ids=str)
def test_when_the_mitigated_container_runs_out_the_largest_dies_alone(machine: Machine) -> None:
    found = boot(machine).value("killed_first")
    (status,) = found["status"]
    assert found["adj"] == [status["oomScoreAdj"]] * 4
    assert (found["hog"], found["living"]) == (-9, 3)
