"""What the agent does about oom_score_adj, pass by pass, on containers that are lists of numbers."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodemem.agent.enforcer import RECREATED_SECONDS
from nodemem.agent.log import Log
from nodemem.agent.mitigate import Container, Step, counted, decide, kubelets_value
from nodemem.agent.mitigator import Mitigator
from nodemem.agent.reports import OwnReport
from nodemem.kernel.host import Host
from nodemem.kernel.oom import Generation
from nodemem.node.mitigation import Target
from nodemem.node.status import OomMitigationStatus

GIB = 1 << 30
POD, APP = "uid-1", "a" * 64
VALUE = Target(-63, 16 * GIB)


@dataclass
class Node:
    """One container, what the agent has in memory, and what is in the cluster. Passes as the mitigator makes them."""

    adj: list[int] = field(default_factory=lambda: [-997, -997])
    pods: set[str] = field(default_factory=lambda: {POD})
    expected: int | None = -997
    target: Target | None = VALUE
    generation: Generation = Generation.CLAMPED_LAST
    mitigate: bool = True
    memory: dict[str, OomMitigationStatus] = field(default_factory=dict)
    cluster: dict[str, OomMitigationStatus] = field(default_factory=dict)

    def look(self) -> tuple[Step, ...]:
        container = Container(APP, POD, "app", tuple(self.adj), self.expected, self.target)
        return decide(
            self.pods,
            [container],
            self.memory,
            self.cluster,
            generation=self.generation,
            mitigate=self.mitigate,
        )

    def once(self) -> None:
        statuses = {}
        for step in self.look():
            status = step.status
            if step.set_from is not None and step.set_to is not None:
                assert status is not None
                recorded = self.cluster[APP]
                assert {step.set_from, step.set_to} == {recorded.oom_score_adj, recorded.kubelet_oom_score_adj}, (
                    "nothing is set before it is on record"
                )
                self.adj = [step.set_to if each == step.set_from else each for each in self.adj]
                status = None if step.restores else counted(status, self.adj)
            if status is not None:
                statuses[step.container_id] = status
        self.memory = statuses

    def publish(self) -> None:
        self.cluster = dict(self.memory)

    def settle(self) -> None:
        for _ in range(6):
            self.once()
            self.publish()

    def die(self) -> None:
        """The next agent knows what is in the cluster."""
        self.memory = dict(self.cluster)

    @property
    def status(self) -> OomMitigationStatus:
        return self.memory[APP]


def test_the_first_pass_says_what_is_to_come_and_the_next_one_sets_it_once_that_is_on_record() -> None:
    node = Node()
    node.once()
    node.once()
    assert node.adj == [-997, -997]
    assert (node.status.state, node.status.reason) == ("Pending", "Recorded")
    assert (node.status.oom_score_adj, node.status.kubelet_oom_score_adj) == (-63, -997)
    node.publish()
    node.once()
    assert node.adj == [-63, -63]
    assert (node.status.state, node.status.processes, node.status.others) == ("Applied", 2, None)


def test_what_a_process_set_itself_is_left_and_so_is_what_can_not_be_killed() -> None:
    node = Node([-997, -500, -1000, 0])
    node.settle()
    assert node.adj == [-63, -500, -1000, 0]
    assert node.status.others == 3
    node.pods = set()
    node.settle()
    assert node.adj == [-997, -500, -1000, 0]
    assert node.memory == {}


def test_a_new_process_with_the_kubelets_value_gets_it_and_one_that_inherited_it_has_it() -> None:
    node = Node()
    node.settle()
    node.adj += [-997, -63]
    node.once()
    assert node.adj == [-63] * 4


def test_the_value_goes_only_from_processes_that_still_have_it() -> None:
    node = Node()
    node.settle()
    node.adj = [-63, -200]
    node.pods = set()
    node.settle()
    assert node.adj == [-997, -200]


@pytest.mark.parametrize(
    ("changes", "state", "reason"),
    [
        ({"generation": Generation.ACCURATE}, "NotNeeded", "AccurateKernel"),
        ({"generation": Generation.UNKNOWN}, "NotNeeded", "UnknownKernel"),
        ({"mitigate": False}, "Failed", "MitigationOff"),
        ({"expected": None}, "Pending", "PodUnknown"),
        ({"target": None}, "Pending", "NotScanned"),
        ({"target": Target(None, 60 * GIB, "its limit is too large")}, "Failed", "NoValue"),
        ({"expected": 900, "adj": [900]}, "NotNeeded", "HighEnough"),
        ({"adj": [-500, 0]}, "Failed", "OwnValues"),
        ({"adj": []}, "Failed", "OwnValues"),
    ],
)
def test_why_nothing_is_set(changes: dict[str, Any], state: str, reason: str) -> None:
    node = Node(**changes)
    before = list(node.adj)
    node.settle()
    assert (node.status.state, node.status.reason) == (state, reason)
    assert node.status.message
    assert node.status.oom_score_adj is None, "nothing to put back"
    assert node.adj == before


@pytest.mark.parametrize(
    ("expected", "observed", "value"),
    [
        (-997, (-997, -997), -997),
        (-997, (-998, -998, -997), -998),
        (-997, (-998, -997), -997),
        (-997, (), -997),
        (-998, (-997,), -997),
        (500, (499, 499), 500),
        (None, (-997,), None),
    ],
)
def test_which_value_is_the_kubelets(expected: int | None, observed: tuple[int, ...], value: int | None) -> None:
    assert kubelets_value(expected, observed) == value


def test_a_figure_that_wavers_moves_the_value_down_and_never_up_again() -> None:
    node = Node()
    node.settle()
    node.target = Target(-64, 16 * GIB)
    node.settle()
    assert node.adj == [-64, -64]
    for wavering in (-63, -64, -60):
        node.target = Target(wavering, 16 * GIB)
        node.settle()
        assert node.adj == [-64, -64]


def test_another_limit_is_another_value_and_the_kubelets_comes_between() -> None:
    node = Node()
    node.settle()
    node.target = Target(-32, 8 * GIB)
    node.once()
    assert node.adj == [-997, -997]
    node.settle()
    assert node.adj == [-32, -32]
    assert node.status.kubelet_oom_score_adj == -997


def test_mitigation_turned_off_on_the_node_says_what_is_still_to_be_put_back_and_touches_nothing() -> None:
    node = Node()
    node.settle()
    node.mitigate, node.pods = False, set()
    node.settle()
    assert node.adj == [-63, -63]
    assert (node.status.state, node.status.reason) == ("Failed", "MitigationOff")
    assert "-997" in (node.status.message or "")
    node.mitigate = True
    node.settle()
    assert node.adj == [-997, -997]
    assert node.memory == {}


@pytest.mark.parametrize("value", [{"kubelet_oom_score_adj": -1000}, {"oom_score_adj": -1000}, {"oom_score_adj": -998}])
def test_a_record_that_makes_no_sense_is_not_acted_on(value: dict[str, int]) -> None:
    node = Node()
    node.settle()
    node.pods = set()
    node.memory = {APP: replace(node.status, **value)}
    node.publish()
    node.settle()
    assert node.adj == [-63, -63]


def test_an_agent_that_dies_at_any_step_leaves_a_known_way_back() -> None:
    """Death after each of the passes and writes that lead to a value and back, one at a time."""
    steps = ["once", "publish"] * 4
    for death in range(len(steps) + 1):
        for undone in (False, True):
            node = Node([-997, -500, -1000])
            for number, step in enumerate(steps):
                if number == death:
                    node.die()
                getattr(node, step)()
            if undone:
                node.pods = set()
                for number, step in enumerate(steps):
                    if number == death:
                        node.die()
                    getattr(node, step)()
            node.settle()
            assert node.adj == [-997 if undone else -63, -500, -1000], (death, undone)
            assert (node.memory == {}) is undone


EVENTS = st.lists(
    st.sampled_from(
        ["once", "publish", "die", "on", "off", "fork", "exec", "own", "end", "lower limit", "raise limit"]
    ),
    max_size=40,
)


@given(EVENTS)
def test_whatever_happens_in_whatever_order_own_values_stay_and_the_kubelets_come_back(events: list[str]) -> None:
    node = Node([-997, -997, -1000, -300])
    for event in events:
        match event:
            case "on":
                node.pods = {POD}
            case "off":
                node.pods = set()
            case "fork":
                node.adj.append(node.adj[0])
            case "exec":
                node.adj.append(-997)
            case "own":
                node.adj.append(-400)
            case "end":
                if len(node.adj) > 4:
                    node.adj.pop()
            case "lower limit":
                node.target = Target(-32, 8 * GIB)
            case "raise limit":
                node.target = VALUE
            case _:
                getattr(node, event)()
        assert node.adj[2:4] == [-1000, -300]
        assert set(node.adj) <= {-997, -63, -32, -400, -1000, -300}
    own = node.adj.count(-400)
    node.pods = set()
    node.settle()
    assert set(node.adj) <= {-997, -400, -1000, -300}
    assert node.adj.count(-400) == own
    assert node.memory == {}


# What the agent learns of its report


def own(*pods: str, uid: str = "report") -> OwnReport:
    asked = [{"podUID": pod, "podNamespace": "a", "podName": "b", "policy": "c"} for pod in pods]
    return OwnReport(uid, "1", 2, (), {"oomMitigations": asked}, {})


def test_a_report_that_is_deleted_and_comes_back_empty_takes_no_mitigation_with_it_at_once() -> None:
    now = [1000.0]
    mitigator = Mitigator(Host(), Log(), mitigate=True, clock=lambda: now[0])
    empty, limits_came_first = ({}, {"tmpfsLimits": []})
    assert mitigator.learn(own(POD)) is True
    assert mitigator.learn(own(POD)) is False
    assert mitigator.learn(None) is False
    for spec in (empty, limits_came_first):
        assert mitigator.learn(replace(own(uid="made again"), spec=spec)) is False
    assert mitigator.pods == {POD}
    now[0] += RECREATED_SECONDS
    assert mitigator.learn(replace(own(uid="made again"), spec=empty)) is True
    assert mitigator.pods == frozenset()


def test_a_report_that_comes_back_and_says_that_there_is_no_mitigation_any_more_is_believed() -> None:
    mitigator = Mitigator(Host(), Log(), mitigate=True)
    mitigator.learn(own(POD))
    assert mitigator.learn(own(uid="made again")) is True
    assert mitigator.pods == frozenset()


def test_a_spec_that_can_t_be_read_changes_nothing() -> None:
    mitigator = Mitigator(Host(), Log(), mitigate=True)
    mitigator.learn(own(POD))
    assert mitigator.learn(replace(own(), spec={"oomMitigations": [{"podUID": POD}]})) is False
    assert mitigator.pods == {POD}
