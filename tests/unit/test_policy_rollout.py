"""Nodes are changed a few at a time, failures stop it, and nothing is remembered but what the reports say."""

import dataclasses
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodemem.api.types import TmpfsLimit
from nodemem.node.status import LimitState, LimitStatus
from nodemem.policy.limits import MOST_LIMITS
from nodemem.policy.rollout import NodeState, Pace, Plan, Write, may_go, most_concurrent, plan
from unit.policy_cases import GiB, answer, limit, rollout

OLD, NEW = limit(size_bytes=4 * GiB), limit(size_bytes=2 * GiB)


def waits(name: str, *current: TmpfsLimit, stale: bool = False) -> NodeState:
    return NodeState(name, current, (NEW,), tuple(answer(each) for each in current), stale=stale, selected=("a",))


def has(name: str, state: LimitState = "InSync", limit: TmpfsLimit = NEW) -> NodeState:
    return NodeState(name, (limit,), (NEW,), (answer(limit, state, "why"),), selected=("a",))


def in_flight(name: str, wanted: TmpfsLimit = NEW, stale: bool = False) -> NodeState:
    return NodeState(name, (NEW,), (wanted,), (), False, stale, touched=frozenset("a"), selected=("a",))


def go(*nodes: NodeState, most: int | str = 1, max_failures: int = 1, deleting: bool = False) -> Plan:
    return plan({"a": Pace(rollout(most, max_failures), len(nodes), deleting=deleting)}, nodes)


def written(made: Plan) -> list[str]:
    return [each.node for each in made.writes]


@pytest.mark.parametrize(
    ("maximum", "matched", "most"),
    [(1, 100, 1), (7, 3, 7), ("5", 9, 5), ("10%", 0, 1), ("10%", 5, 1), ("10%", 11, 2), ("100%", 7, 7), ("33%", 10, 4)],
)
def test_a_percentage_of_nodes_is_rounded_up_and_at_least_one(maximum: int | str, matched: int, most: int) -> None:
    assert most_concurrent(maximum, matched) == most


def test_the_first_nodes_by_name_begin() -> None:
    made = go(*(waits(name) for name in ("n3", "n1", "n2")), most=2)
    assert made.writes == (
        Write("n1", (NEW,), frozenset("a")),
        Write("n2", (NEW,), frozenset("a")),
    )
    assert made.policies["a"].starting == ["n1", "n2"]


def test_the_next_follow_when_the_first_are_in_sync() -> None:
    assert written(go(in_flight("n1"), waits("n2"))) == []
    assert written(go(has("n1"), waits("n2"))) == ["n2"]


def test_deferred_lets_the_next_begin_and_is_shown() -> None:
    made = go(has("n1", "Deferred"), waits("n2"))
    assert written(made) == ["n2"]
    assert made.policies["a"].deferred == ["n1"]
    assert [(each.node, each.state) for each in made.policies["a"].problems] == [("n1", "Deferred")]


@pytest.mark.parametrize("state", ["Failed", "Contested"])
def test_a_failure_stops_it(state: LimitState) -> None:
    made = go(has("n1", state), waits("n2"), most=9)
    assert written(made) == []
    assert made.policies["a"].stopped == "stopped by maxFailures 1, failed on n1: why"


def test_fewer_failures_than_maxfailures_do_not_stop_it() -> None:
    assert written(go(has("n1", "Failed"), waits("n2"), max_failures=2)) == ["n2"]
    assert written(go(has("n1", "Failed"), has("n2", "Failed"), waits("n3"), max_failures=2)) == []


def test_an_edit_of_the_limit_that_failed_resumes() -> None:
    assert written(go(has("n1", "Failed", OLD), waits("n2", OLD), most=2)) == ["n1", "n2"]


def test_only_nodes_whose_limits_change_are_written_after_an_edit() -> None:
    assert written(go(has("n1"), has("n2", limit=OLD), has("n3"), most=9)) == ["n2"]


def test_a_node_in_flight_may_be_given_the_edited_limit_and_takes_no_second_turn() -> None:
    edited = limit(size_bytes=3 * GiB)
    made = go(in_flight("n1", edited), dataclasses.replace(waits("n2"), wanted=(edited,)))
    assert written(made) == ["n1"]


def test_a_status_of_a_former_limit_is_no_answer() -> None:
    late = NodeState("n1", (NEW,), (NEW,), (answer(OLD),))
    assert go(late, waits("n2")).policies["a"].in_flight == ["n1"]


def test_an_audit_entry_in_the_status_is_no_answer_to_enforce() -> None:
    late = NodeState("n1", (NEW,), (NEW,), (answer(NEW, "Audit"),), answered=False)
    found = go(late, waits("n2"))
    assert found.writes == ()
    assert found.policies["a"].in_flight == ["n1"]


def test_an_agent_that_may_not_enforce_stops_it_with_its_words() -> None:
    off = NodeState("n1", (NEW,), (NEW,), (answer(NEW, "Audit", "Enforcement is off on this node."),))
    found = go(off, waits("n2"))
    assert found.writes == ()
    assert found.policies["a"].failed == ["n1"]
    assert "Enforcement is off" in (found.policies["a"].stopped or "")


def test_a_changed_headroom_takes_a_turn_until_it_is_answered() -> None:
    wanted = dataclasses.replace(NEW, headroom_percent=50)
    before = [NodeState(name, (NEW,), (wanted,), (answer(NEW),)) for name in ("n1", "n2")]
    assert written(go(*before)) == ["n1"]
    told = NodeState("n1", (wanted,), (wanted,), (answer(NEW),), answered=False, touched=frozenset("a"))
    assert written(go(told, before[1])) == []


def test_after_a_restart_an_unanswered_node_counts_for_all_its_policies() -> None:
    unknown = dataclasses.replace(has("n1"), answered=False, touched=None)
    assert written(go(unknown, waits("n2"))) == []
    assert written(go(dataclasses.replace(unknown, touched=frozenset("b")), waits("n2"))) == ["n2"]


def test_after_a_restart_no_node_is_taken_for_one_that_has_its_turn_already() -> None:
    """Both may be in flight for another policy: only one may be given the edited limit, when the other has answered."""
    edited = limit(size_bytes=3 * GiB)
    unknown = [dataclasses.replace(in_flight(name, edited), touched=None) for name in ("n1", "n2")]
    assert written(go(*unknown)) == []
    assert written(go(*unknown, most=2)) == ["n1", "n2"]


def test_an_audit_is_written_everywhere_at_once() -> None:
    audit = dataclasses.replace(NEW, mode="Audit")
    nodes = [NodeState(f"n{number}", (), (audit,)) for number in range(9)]
    made = go(*nodes)
    assert len(made.writes) == 9
    assert {each.touched for each in made.writes} == {frozenset()}


def test_an_enforced_limit_takes_turns_back_to_audit() -> None:
    audit = dataclasses.replace(NEW, mode="Audit")
    nodes = [NodeState(f"n{number}", (NEW,), (audit,), (answer(NEW),)) for number in range(3)]
    assert written(go(*nodes)) == ["n0"]
    restoring = dataclasses.replace(nodes[0], current=(audit,))
    assert written(go(restoring, *nodes[1:])) == []
    restored = dataclasses.replace(restoring, statuses=(answer(NEW, "Audit"),))
    assert written(go(restored, *nodes[1:])) == ["n1"]


def test_a_limit_whose_mount_is_gone_is_dropped_at_once() -> None:
    nodes = [
        NodeState(f"n{number}", (NEW,), (), (answer(NEW, "Failed"),), gone=frozenset({"/run"})) for number in range(5)
    ]
    made = go(*nodes)
    assert len(made.writes) == 5
    assert made.policies["a"].stopped is None


def test_a_node_of_which_nothing_is_known_is_left_alone() -> None:
    assert written(go(NodeState("n1", (NEW,), None, selected=("a",)))) == []


# --- silence


def test_a_stale_node_gets_no_new_limit_and_blocks_nobody() -> None:
    made = go(waits("n1", stale=True), waits("n2"))
    assert written(made) == ["n2"]
    assert made.policies["a"].stale == ["n1"]


def test_a_node_that_falls_silent_in_flight_gives_its_turn_away() -> None:
    made = go(in_flight("n1", stale=True), waits("n2"))
    assert written(made) == ["n2"]
    assert made.policies["a"].silent == ["n1"]


def test_nodes_that_fall_silent_one_after_the_other_stop_it() -> None:
    made = go(in_flight("n1", stale=True), in_flight("n2", stale=True), waits("n3"))
    assert written(made) == []
    assert made.policies["a"].stopped == "stopped, since n1 and n2 fell silent while they were being changed"
    assert written(go(in_flight("n2", stale=True), waits("n3"))) == ["n3"]


# --- deletion


def leaving(name: str, state: LimitState = "InSync", *, stale: bool = False) -> NodeState:
    return NodeState(name, (NEW,), (), (answer(NEW, state),), stale=stale)


def test_deletion_restores_in_turns_and_is_not_stopped_by_failures() -> None:
    made = go(leaving("n1", "Failed"), leaving("n2"), leaving("n3"), most=2, deleting=True)
    assert made.writes == (Write("n1", (), frozenset("a")), Write("n2", (), frozenset("a")))
    assert not may_go(made.policies["a"])


def test_the_finalizer_stays_until_the_agents_have_restored() -> None:
    restoring = NodeState("n1", (), (), (answer(NEW),))
    assert not may_go(go(restoring, deleting=True).policies["a"])
    restored = NodeState("n1", (), (), ())
    assert may_go(go(restored, deleting=True).policies["a"])
    assert may_go(None)


def test_the_finalizer_stays_for_a_restore_that_failed_and_says_so() -> None:
    made = go(NodeState("n1", (), (), (answer(NEW, "Failed", "busy"),)), deleting=True)
    assert not may_go(made.policies["a"])
    assert [(each.state, each.message) for each in made.policies["a"].problems] == [("Failed", "busy")]


def test_the_finalizer_does_not_wait_for_what_another_limit_of_the_same_tmpfs_holds() -> None:
    left = dataclasses.replace(answer(NEW), reason="HeldElsewhere")
    here = NodeState("n1", (), (), (left,))
    pace = {"a": Pace(rollout(), 1, deleting=True)}
    assert may_go(plan(pace, [here]).policies["a"])
    assert not may_go(plan(pace, [dataclasses.replace(here, answered=False)]).policies["a"])


def test_the_finalizer_stays_for_a_withdrawal_that_is_not_answered_yet() -> None:
    """The agent may be at it: its status just doesn't name the limit yet."""
    sent = NodeState("n1", (), (), (), answered=False, touched=frozenset("a"))
    assert not may_go(go(sent, deleting=True).policies["a"])


def test_after_a_restart_the_finalizer_stays_until_every_node_has_answered() -> None:
    sent = NodeState("n1", (), (), (), answered=False, touched=None, selected=("a",))
    assert not may_go(go(sent, deleting=True).policies["a"])
    assert may_go(go(dataclasses.replace(sent, answered=True), deleting=True).policies["a"])


def test_the_finalizer_goes_once_a_silent_node_has_it_in_writing() -> None:
    silent = leaving("n1", stale=True)
    made = go(silent, deleting=True)
    assert made.writes == (Write("n1", (), frozenset("a")),)
    assert not may_go(made.policies["a"])
    assert may_go(go(dataclasses.replace(silent, current=()), deleting=True).policies["a"])


def test_the_finalizer_goes_when_the_last_node_is_gone() -> None:
    assert may_go(go(deleting=True).policies["a"])


def test_a_node_that_has_not_reported_is_rid_of_a_deleted_policys_limits() -> None:
    made = go(NodeState("n1", (NEW,), None, (answer(NEW),)), deleting=True)
    assert made.writes == (Write("n1", (), frozenset("a")),)


def test_limits_of_a_policy_that_vanished_are_withdrawn_in_turns() -> None:
    made = plan({}, [leaving(f"n{number:02}") for number in range(30)])
    assert written(made) == ["n00", "n01", "n02"]


# --- several policies


def test_each_policy_has_its_own_turns() -> None:
    b = dataclasses.replace(NEW, mount_point="/tmp", policy="b")
    nodes = [NodeState(f"n{number}", (), (NEW, b)) for number in range(3)]
    made = plan({"a": Pace(rollout(1), 3), "b": Pace(rollout(2), 3)}, nodes)
    assert made.writes == (
        Write("n0", (NEW, b), frozenset("ab")),
        Write("n1", (b,), frozenset("b")),
    )


def test_a_mount_goes_over_to_another_policy_without_being_restored_in_between() -> None:
    b = dataclasses.replace(OLD, policy="b")
    state = NodeState("n1", (NEW,), (b,), (answer(NEW),))
    made = plan({"a": Pace(rollout(), 1, deleting=True), "b": Pace(rollout(), 1)}, [state])
    assert made.writes == (Write("n1", (b,), frozenset("b")),)


def test_a_deleted_policy_does_not_wait_for_a_successor_that_is_stopped() -> None:
    b = dataclasses.replace(OLD, policy="b")
    broken = NodeState("n0", (b,), (b,), (answer(b, "Failed"),))
    state = NodeState("n1", (NEW,), (b,), (answer(NEW),))
    paces = {"a": Pace(rollout(), 2, deleting=True), "b": Pace(rollout(), 2)}
    assert plan(paces, [broken, state]).writes == (Write("n1", (), frozenset("a")),)
    assert plan(paces, [dataclasses.replace(broken, statuses=(answer(b),)), state]).writes == (
        Write("n1", (b,), frozenset("b")),
    )


def test_a_spec_never_has_more_limits_than_it_takes() -> None:
    def named(start: int, policy: str) -> tuple[TmpfsLimit, ...]:
        return tuple(limit(f"/m/{number:03}", policy=policy) for number in range(start, start + MOST_LIMITS))

    state = NodeState("n1", named(0, "a"), named(500, "b"), tuple(map(answer, named(0, "a"))))
    busy = NodeState("n0", (NEW,), (NEW,), (), answered=False, touched=frozenset("a"))
    made = plan({"a": Pace(rollout(), 2), "b": Pace(rollout(), 2)}, [state, busy])
    assert all(len(each.limits) <= MOST_LIMITS for each in made.writes)


# --- a cluster


@dataclass
class Machine:
    """A node: its report's spec, what its agent made of it, and whether it is there."""

    spec: tuple[TmpfsLimit, ...] = ()
    generation: int = 1
    observed: int = 1
    acted: tuple[TmpfsLimit, ...] = ()
    statuses: tuple[LimitStatus, ...] = ()
    alive: bool = True
    stale: bool = False
    touched: frozenset[str] | None = frozenset()
    told: set[str] = field(default_factory=set)
    """The policies of which there is something to do: what ``touched`` should be, worked out from the specs."""

    def write(self, write: Write) -> None:
        assert self.spec != write.limits, "a write that changes nothing"
        old, new = ({each.mount_point: each for each in enforced(spec)} for spec in (self.spec, write.limits))
        for place in old.keys() | new.keys():
            if old.get(place) != new.get(place):
                self.told.add((new.get(place) or old[place]).policy or "")
        self.spec, self.touched = write.limits, write.touched
        assert write.touched is None or self.told <= write.touched
        self.generation += 1

    def act(self, state: LimitState) -> None:
        if self.alive:
            self.acted, self.observed, self.touched = self.spec, self.generation, frozenset()
            self.told.clear()
            self.statuses = tuple(
                answer(each, "Audit" if each.mode == "Audit" else state, "because") for each in self.spec
            )

    @property
    def busy(self) -> bool:
        """Its agent has yet to change a mount."""
        return enforced(self.spec) != enforced(self.acted)


def enforced(limits: tuple[TmpfsLimit, ...]) -> set[TmpfsLimit]:
    return {each for each in limits if each.mode == "Enforce"}


@dataclass
class Cluster:
    """The planner with everything that may happen around it. The policies are for all nodes, each for its own mount,
    and for one that all share."""

    machines: dict[str, Machine]
    sizes: dict[str, int] = field(default_factory=dict)
    modes: dict[str, str] = field(default_factory=dict)
    most: dict[str, int | str] = field(default_factory=dict)
    deleting: set[str] = field(default_factory=set)
    max_failures: int = 1
    shared: str | None = None

    def wanted(self) -> tuple[TmpfsLimit, ...]:
        found = {}
        for name in sorted(self.sizes.keys() - self.deleting):
            mode = "Enforce" if self.modes.get(name, "Enforce") == "Enforce" else "Audit"
            for place in (f"/{name}", *(["/shared"] if self.shared == name else [])):
                found[place] = limit(place, self.sizes[name], name, mode)  # type: ignore[arg-type]
        return tuple(found[place] for place in sorted(found))

    def states(self) -> list[NodeState]:
        return [
            NodeState(
                name,
                each.spec,
                self.wanted(),
                each.statuses,
                each.observed == each.generation,
                each.stale,
                touched=each.touched,
                selected=tuple(self.sizes),
            )
            for name, each in self.machines.items()
        ]

    def paces(self) -> dict[str, Pace]:
        return {
            name: Pace(
                rollout(self.most.get(name, 1), self.max_failures), len(self.machines), deleting=name in self.deleting
            )
            for name in self.sizes
        }

    def reconcile(self) -> Plan:
        made = plan(self.paces(), self.states())
        for write in made.writes:
            self.machines[write.node].write(write)
        return made

    def busy(self) -> set[str]:
        return {name for name, each in self.machines.items() if each.busy and not each.stale}


STEPS = st.one_of(
    st.tuples(st.just("reconcile"), st.just(0)),
    st.tuples(st.just("reconcile"), st.just(0)),
    st.tuples(st.sampled_from(["InSync", "Deferred", "Failed", "Contested"]), st.integers(0, 11)),
    st.tuples(st.just("InSync"), st.integers(0, 11)),
    st.tuples(st.sampled_from(["dies", "stale", "returns", "removed"]), st.integers(0, 11)),
    st.tuples(st.sampled_from(["edit", "most", "mode", "restart", "delete", "share"]), st.integers(0, 11)),
)


def happen(cluster: Cluster, step: str, number: int) -> None:
    names = sorted(cluster.machines)
    machine = cluster.machines[names[number % len(names)]] if names else Machine()
    policy = sorted(cluster.sizes)[number % len(cluster.sizes)]
    match step:
        case "InSync" | "Deferred" | "Failed" | "Contested":
            machine.act(step)
        case "dies":
            machine.alive = False
        case "stale":
            machine.stale = machine.stale or not machine.alive
        case "returns":
            machine.alive, machine.stale = True, False
        case "removed":
            if len(names) > 1:
                del cluster.machines[names[number % len(names)]]
        case "edit":
            cluster.sizes[policy] += GiB
        case "most":
            cluster.most[policy] = (1, 3, "10%", "50%")[number % 4]
        case "mode":
            cluster.modes[policy] = "Audit" if cluster.modes.get(policy) != "Audit" else "Enforce"
        case "restart":
            for each in cluster.machines.values():
                each.touched = None if each.observed != each.generation else each.touched
        case "delete":
            cluster.deleting.add(policy)
        case "share":
            cluster.shared = policy


def settle(cluster: Cluster) -> None:
    """Everything recovers but for one that stays dead, and is noticed."""
    dead = [each for each in cluster.machines.values() if not each.alive]
    for machine in cluster.machines.values():
        machine.alive = machine is not (dead[0] if dead else None)
        machine.stale = not machine.alive
    for _ in range(20 * len(cluster.machines) + 20):
        for machine in cluster.machines.values():
            machine.act("InSync")
        if not cluster.reconcile().writes:
            return
    raise AssertionError("it never ends")


@settings(max_examples=300, deadline=None)
@given(st.lists(STEPS, max_size=60), st.integers(1, 12), st.integers(1, 3))
def test_never_more_nodes_change_at_once_than_allowed_whatever_happens(
    steps: list[tuple[str, int]], nodes: int, max_failures: int
) -> None:
    cluster = Cluster({f"n{number:02}": Machine() for number in range(nodes)}, {"a": GiB}, max_failures=max_failures)
    for step, number in steps:
        if step != "reconcile":
            happen(cluster, step, number)
            continue
        before = cluster.busy()
        allowed = most_concurrent(cluster.most.get("a", 1), len(cluster.machines))
        failed = sum(
            enforced(each.spec) <= enforced(cluster.wanted())
            and not each.busy
            and any(status.state in ("Failed", "Contested") for status in each.statuses)
            for each in cluster.machines.values()
        )
        cluster.reconcile()
        started = cluster.busy() - before
        if started:
            assert len(cluster.busy()) <= allowed
        if failed >= max_failures and "a" not in cluster.deleting and cluster.modes.get("a") != "Audit":
            assert not started


@settings(max_examples=300, deadline=None)
@given(st.lists(STEPS, max_size=60), st.integers(1, 8))
def test_several_policies_keep_to_their_turns_and_all_ends_as_wanted(steps: list[tuple[str, int]], nodes: int) -> None:
    cluster = Cluster({f"n{number}": Machine() for number in range(nodes)}, dict.fromkeys("abc", GiB), max_failures=2)
    for step, number in steps:
        if step != "reconcile":
            happen(cluster, step, number)
            continue
        before = {name: turns(cluster, name) for name in cluster.sizes}
        cluster.reconcile()
        for name in cluster.sizes:
            after = turns(cluster, name)
            if after - before[name]:
                assert len(after) <= most_concurrent(cluster.most.get(name, 1), len(cluster.machines))
    settle(cluster)
    for machine in cluster.machines.values():
        if machine.alive:
            assert machine.spec == machine.acted == cluster.wanted()
        assert not {each.policy for each in machine.spec} & cluster.deleting
    made = plan(cluster.paces(), cluster.states())
    assert all(may_go(made.policies[name]) for name in cluster.deleting)


def turns(cluster: Cluster, policy: str) -> set[str]:
    """Nodes whose agents have yet to do what a write of this policy asked for."""
    return {name for name, each in cluster.machines.items() if not each.stale and policy in each.told}


@settings(max_examples=100, deadline=None)
@given(st.lists(STEPS, max_size=40), st.randoms())
def test_the_same_reports_give_the_same_plan_in_any_order(steps: list[tuple[str, int]], random: Random) -> None:
    cluster = Cluster({f"n{number}": Machine() for number in range(6)}, {"a": GiB, "b": 2 * GiB})
    for step, number in steps:
        if step == "reconcile":
            cluster.reconcile()
        else:
            happen(cluster, step, number)
    states = cluster.states()
    mixed = [
        dataclasses.replace(
            each,
            current=tuple(random.sample(each.current, len(each.current))),
            statuses=tuple(random.sample(each.statuses, len(each.statuses))),
        )
        for each in random.sample(states, len(states))
    ]
    paces = cluster.paces()
    assert plan(dict(reversed(paces.items())), mixed) == plan(paces, states)
