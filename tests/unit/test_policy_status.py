"""A policy's status says in sentences where it is, what is wrong, and what enforcing it would do."""

import dataclasses

from nodemem.api.types import TmpfsPolicyStatus
from nodemem.node.status import Condition, LimitState
from nodemem.policy import audit
from nodemem.policy.limits import Limiter, Mount, Node, Pod, Policy
from nodemem.policy.rollout import NodeState, Pace, plan
from nodemem.policy.status import MOST_PROBLEMS, refused, status
from nodemem.policy.tally import Tally, tally
from unit.policy_cases import GiB, MiB, answer, limit, node, policy, rollout, rule

NOW, THEN = "2030-01-02T00:00:00Z", "2030-01-01T00:00:00Z"
NEW = limit()


def count(policies: list[Policy], *nodes: Node) -> dict[str, Tally]:
    limiter = Limiter(policies)
    return tally(policies, map(limiter.limits, nodes))


def nodes(number: int, used_bytes: int = GiB, size_bytes: int = 16 * GiB) -> list[Node]:
    return [node(f"n{each}", Mount("/run", "Host", size_bytes, used_bytes)) for each in range(number)]


def said(found: TmpfsPolicyStatus, kind: str) -> tuple[str, str, str]:
    (condition,) = (each for each in found.conditions if each.type == kind)
    return condition.status, condition.reason, condition.message


def of(
    chosen: Policy, states: list[NodeState], others: tuple[Policy, ...] = (), before: tuple[Condition, ...] = ()
) -> TmpfsPolicyStatus:
    counted = count([chosen, *others], *(node(each.name) for each in states))[chosen.name]
    pace = Pace(chosen.spec.rollout, counted.matched, chosen.spec.mode, chosen.deleting)
    made = plan({chosen.name: pace}, states)
    return status(chosen, 7, counted, made.policies[chosen.name], before, NOW)


def state(name: str, becomes: LimitState | None = "InSync", **more: object) -> NodeState:
    """``becomes`` None: its turn has not come."""
    current = () if becomes is None else (NEW,)
    statuses = tuple(answer(each, becomes or "InSync", "the kernel said no") for each in current)
    made = NodeState(name, current, (NEW,), statuses, selected=("a",))
    return dataclasses.replace(made, **more)  # type: ignore[arg-type]


# --- audit


def test_an_audit_says_what_enforce_would_do() -> None:
    several = [*nodes(9), *(dataclasses.replace(each, name=f"m{each.name}") for each in nodes(3, 3 * GiB))]
    counted = count([policy("a", mode="Audit")], *several)["a"]
    over = 3 * (3 * GiB - 2 * GiB * 100 // 110)
    assert audit.sentences(counted) == [
        "Would shrink /run on 12 nodes, by 168Gi in all; 3 of them are in use over the limit, and would be deferred"
        " until 3.5Gi are freed there."
    ]
    assert audit.freed_bytes(counted) == over


def test_an_audit_names_what_stays_and_what_grows() -> None:
    rules = [rule("/run", "2Gi"), rule("/tmp", "4Gi", adjust="Grow"), rule("/run/user/*", "8Mi")]
    mounts = [Mount(f"/run/user/{each}", "Host", 16 * MiB, 0) for each in range(3)]
    where = node("n1", Mount("/run", "Host", GiB, 0), Mount("/tmp", "Host", GiB, 0), *mounts)
    assert audit.sentences(count([policy("a", *rules, mode="Audit")], where)["a"]) == [
        "Would shrink 3 mounts (/run/user/*) on 1 node, by 24Mi in all.",
        "Would grow /tmp on 1 node, by 3Gi in all.",
        "Would leave /run on 1 node as it is.",
    ]


def test_an_audit_says_what_can_not_be_limited_and_what_is_not_known() -> None:
    where = node("n1", Mount("/run", "Host", None, GiB, unlimited=True))
    other = node("n2", Mount("/run", "Host", None, None))
    assert audit.sentences(count([policy("a", mode="Audit")], where, other)["a"]) == [
        "Could not limit /run in 1 place: mounted without a size, and the kernel gives such a mount none later.",
        "Of 1 mount of /run, size or usage is unknown.",
    ]


def test_an_audit_says_who_would_come_before_it() -> None:
    counted = count([policy("a", rule(size="1Gi"), mode="Audit"), policy("b", priority=1)], *nodes(2))
    assert audit.sentences(counted["a"]) == ["b would come before it on 2 mounts."]


def test_what_is_deferred_is_what_the_agent_would_defer() -> None:
    """In use with its headroom, exactly at the limit: fits; one page more does not."""
    fits = 10 * (2 * GiB) // 11 // 4096 * 4096
    for used, over in ((fits, 0), (fits + 4096, 1)):
        counted = count([policy("a", mode="Audit")], *nodes(1, used))["a"]
        assert counted.effects["/run"].over == over


# --- conditions


def test_all_in_sync_is_ready() -> None:
    found = of(policy("a"), [state("n1"), state("n2")])
    assert said(found, "Ready") == ("True", "InSync", "Every limit holds: 2 mounts on 2 nodes.")
    assert said(found, "Progressing")[:2] == ("False", "Complete")
    assert said(found, "Degraded")[0] == said(found, "Conflict")[0] == "False"
    assert found.nodes is not None
    assert (found.nodes.matched, found.nodes.in_sync, found.observed_generation) == (2, 2, 7)


def test_a_rollout_says_who_changes_and_how_many_wait() -> None:
    found = of(policy("a"), [state("n1"), state("n2", None), state("n3", None)])
    assert said(found, "Ready") == ("False", "Pending", "Of 3 nodes: 2 pending.")
    assert said(found, "Progressing") == (
        "True",
        "RollingOut",
        "Changing n2 (at most 1 at a time); 1 node waits for its turn.",
    )


def test_a_stopped_rollout_says_why_and_what_makes_it_go_on() -> None:
    found = of(policy("a"), [state("n1", "Failed"), state("n2", None)])
    assert said(found, "Ready") == ("False", "Failed", "Of 2 nodes: 1 failed, 1 pending.")
    assert said(found, "Progressing") == (
        "False",
        "Stopped",
        "The rollout is stopped by maxFailures 1, failed on n1: the kernel said no; 1 node waits. It goes on when the"
        " cause is gone, the failed limit is edited or spec.rollout.maxFailures is raised.",
    )
    assert said(found, "Degraded") == ("True", "NodesFailed", "Failed on n1: n1: the kernel said no")
    assert [(each.node_name, each.state, each.message) for each in found.problems] == [
        ("n1", "Failed", "the kernel said no")
    ]


def test_a_deferred_node_is_not_ready_and_not_degraded() -> None:
    found = of(policy("a"), [state("n1", "Deferred")])
    assert said(found, "Ready") == ("False", "Deferred", "Of 1 node: 1 deferred until what is in use fits.")
    assert said(found, "Degraded")[0] == "False"


def test_a_silent_node_is_named() -> None:
    found = of(policy("a"), [state("n1"), state("n2", None, stale=True)])
    assert said(found, "Progressing") == (
        "False",
        "Stale",
        "All that can be reached is done; nothing is heard from n2.",
    )
    assert [(each.node_name, each.state) for each in found.problems] == [("n2", "Stale")]


def test_an_audit_is_ready_with_what_it_found() -> None:
    watched = dataclasses.replace(NEW, mode="Audit")
    states = [NodeState("n1", (watched,), (watched,), (answer(watched, "Audit"),), selected=("a",))]
    found = of(policy("a", mode="Audit"), states)
    assert said(found, "Ready") == (
        "True",
        "Audit",
        "Nothing is changed. Would shrink /run on 1 node, by 14Gi in all.",
    )
    assert found.nodes is not None
    assert found.nodes.audit == 1


def test_a_conflict_is_said_on_both_with_the_one_that_holds() -> None:
    smaller = policy("b", rule(size="1Gi"))
    states = [state("n1")]
    assert said(of(policy("a"), states, (smaller,)), "Conflict") == (
        "True",
        "SamePriority",
        "b wants something else with the same priority 0 for 1 mount, such as /run on n1; b holds there. Give one of"
        " them a higher priority.",
    )
    assert "a wants something else" in said(of(smaller, states, (policy("a"),)), "Conflict")[2]
    assert "this one holds there" in said(of(smaller, states, (policy("a"),)), "Conflict")[2]


def test_a_policy_that_fits_no_node_or_no_mount_says_so() -> None:
    found = of(policy("a", labels={"pool": "none"}), [state("n1", None, wanted=(), selected=())])
    assert said(found, "Ready") == ("True", "NoNodes", "No node has the labels of spec.nodeSelector.")
    found = of(policy("a", rule("/data")), [state("n1", None, wanted=())])
    assert said(found, "Ready")[:2] == ("True", "NoMounts")


def test_a_deleted_policy_says_who_is_still_to_be_restored() -> None:
    found = of(policy("a", deleting=True), [state("n1", wanted=()), state("n2", None, wanted=())])
    assert said(found, "Ready") == (
        "False",
        "Deleting",
        "The policy is being deleted: 1 node still to be restored (n1).",
    )
    assert said(found, "Progressing")[:2] == ("True", "Deleting")


def test_what_the_owner_of_a_pod_writes_does_not_degrade_the_policy() -> None:
    chosen = policy("a", rule(None, "25%", "SharedMemory"))
    where = node("n1", Mount("/shm", "SharedMemory", GiB, 0, "u1"), pods={"u1": Pod("team")})
    counted = count([chosen], where)["a"]
    made = plan({"a": Pace(rollout(), 1)}, [state("n1", None, wanted=())])
    found = status(chosen, 1, counted, made.policies["a"], (), NOW)
    assert said(found, "Degraded")[0] == "False"
    assert said(found, "Ready")[2].endswith(
        "rules[0]: 1 mount, such as '/shm' on n1: 25% of the pod's memory limit, and the pod has none; write a size"
        " such as 1Gi."
    )


def test_a_node_that_has_not_reported_is_pending() -> None:
    chosen = policy("a")
    counted = count([chosen], Node("n1", mounts=None))["a"]
    made = plan({"a": Pace(rollout(), 1)}, [NodeState("n1", (), None, selected=("a",))])
    found = status(chosen, 1, counted, made.policies["a"], (), NOW)
    assert found.nodes is not None
    assert (found.nodes.pending, found.nodes.in_sync) == (1, 0)


def test_a_condition_keeps_its_time_for_as_long_as_its_status_stays() -> None:
    before = (Condition("Ready", "True", "Other", "", THEN), Condition("Degraded", "True", "Other", "", THEN))
    found = of(policy("a"), [state("n1")], before=before)
    times = {each.type: each.last_transition_time for each in found.conditions}
    assert times == {"Ready": THEN, "Degraded": NOW, "Progressing": NOW, "Conflict": NOW}


def test_what_is_listed_is_bounded_and_the_worst_comes_first() -> None:
    states = [state(f"n{number:03}", "Deferred") for number in range(50)]
    states.append(state("z", "Failed", statuses=(answer(NEW, "Failed", "x" * 5000),)))
    found = of(policy("a"), states)
    assert len(found.problems) == MOST_PROBLEMS
    assert found.problems[0].node_name == "z"
    assert len(found.problems[0].message) == 512
    assert max(len(each.message) for each in found.conditions) <= 1024


def test_a_policy_that_makes_no_sense_says_why_and_changes_nothing() -> None:
    found = refused(3, "'much' is not a size", (), NOW)
    assert said(found, "Ready") == ("False", "Invalid", "'much' is not a size")
    assert said(found, "Degraded")[0] == "True"
