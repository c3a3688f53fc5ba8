"""TmpfsPolicies in the controller: what its tables say becomes the policies' input, and what may be written when."""

import asyncio
import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from nodemem.api.convert import wire
from nodemem.api.types import NodeCounts, TmpfsPolicyStatus
from nodemem.controller import records
from nodemem.controller.client import ApiError, NotHeld
from nodemem.controller.exposures import Pod
from nodemem.controller.limits import Planned, Planner, enforces, unguarded
from nodemem.controller.limitwrites import COUNTS_SECONDS, WORDS_SECONDS, LimitWriter
from nodemem.controller.lookup import pod
from nodemem.controller.queue import Write
from nodemem.controller.records import FINALIZER
from nodemem.controller.state import Options, State
from nodemem.node.status import Condition
from nodemem.policy import entries, rollout
from unit.policy_cases import GiB, MiB, limit

Object = dict[str, Any]
RUN = {"mountPoint": "/run", "scope": "Host", "owner": {"kind": "Host"}, "sizeBytes": 16 * GiB, "usedBytes": GiB}
KEY = ("web", "db-0")
SHM = {
    "mountPoint": "/sandboxes/1/shm",
    "scope": "SharedMemory",
    "owner": {"kind": "SharedMemory", "podUID": "u1", "podNamespace": "web", "podName": "db-0"},
    "sizeBytes": 64 * MiB,
}
FOUND = Pod("u1", None, "n1", None, None, {"app": "db"})


def metadata(name: str, version: int, **more: Any) -> Object:
    return {"name": name, "uid": f"uid-{name}", "resourceVersion": str(version), **more}


def report(name: str = "n1", *, version: int = 1, generation: int = 1, spec: Any = None, **status: Any) -> Object:
    found = {"metadata": metadata(name, version, generation=generation), "status": {"tmpfs": [RUN], **status}}
    return found if spec is None else found | {"spec": {"tmpfsLimits": spec}}


def policy(name: str = "a", *, version: int = 1, generation: int = 1, rules: Any = None, **spec: Any) -> Object:
    more = {each: spec.pop(each) for each in ("finalizers", "deletionTimestamp") if each in spec}
    rules = rules or [{"scope": "Host", "path": "/run", "size": "2Gi"}]
    return {
        "metadata": metadata(name, version, generation=generation, **more),
        "spec": {"rules": rules, "mode": "Enforce", **spec},
    }


def told(size_bytes: int = 2 * GiB, name: str = "a") -> Object:
    return wire(limit("/run", size_bytes, name))


def holds(size_bytes: int = 2 * GiB, name: str = "a", state: str = "InSync", **more: Any) -> Object:
    return {"mountPoint": "/run", "requestedBytes": size_bytes, "state": state, "policy": name, **more}


def state_of(*policies: Object, reports: tuple[Object, ...] = (report(),)) -> State:
    made = State(Options())
    for each in policies:
        made.take("tmpfs_policies", each)
    for each in reports:
        made.take("reports", each)
        made.take("nodes", {"metadata": metadata(each["metadata"]["name"], 1)})
    return made


def plan(
    state: State, pods: Mapping[tuple[str, str], Pod | None] | None = None, planner: Planner | None = None
) -> Planned:
    planner = planner or Planner(state)
    planner.pods_needed()
    return planner.plan(dict.fromkeys(state.reports, False), pods or {}, None)


def sizes(planned: Planned) -> dict[str, dict[str, int]]:
    return {each.node: {one.mount_point: one.size_bytes for one in each.limits} for each in planned.writes}


# Records


def test_report_record_has_limits_answers_and_mounts() -> None:
    found = records.report(report(generation=3, spec=[told()], limits=[holds()], observedGeneration=2)).tmpfs
    assert (found.generation, found.answered, found.complete) == (3, 2, True)
    assert found.limits == (limit(),)
    assert found.statuses[0].state == "InSync"
    assert found.mounts is not None
    assert (found.mounts[0].mount_point, found.mounts[0].size_bytes, found.mounts[0].used_bytes) == (
        "/run",
        16 * GiB,
        GiB,
    )


def test_report_record_has_reclaim_its_answers_and_what_they_would_free() -> None:
    body = report(generation=2, spec=[told()], limits=[holds()], observedGeneration=2)
    body["spec"]["reclaim"] = {
        "journal": {"runtimeMaxUseBytes": GiB, "mode": "Audit", "policy": "a"},
        "tmpfiles": [{"path": "/run/foo", "age": "7d", "mode": "Audit", "policy": "a"}],
    }
    body["status"]["reclaim"] = [
        {"kind": "Journal", "runtimeMaxUseBytes": GiB, "state": "Audit", "policy": "a", "freeableBytes": 3},
        {"kind": "Tmpfiles", "path": "/run/foo", "age": "7d", "state": "Audit", "policy": "a", "freeableBytes": 4},
        {"kind": "Tmpfiles", "path": "/run/bar", "age": "7d", "state": "InSync", "policy": "b", "freeableBytes": 5},
    ]
    found = records.report(body).tmpfs
    assert [entries.name_of(each) for each in found.limits] == ["/run", "journal", "tmpfiles /run/foo"]
    assert len(found.statuses) == 4
    assert found.freeable == {"a": 7}
    later = {**body, "status": {**body["status"], "reclaim": [{**body["status"]["reclaim"][0], "freeableBytes": 9}]}}
    body["status"]["reclaim"] = body["status"]["reclaim"][:1]
    one, other = (records.report(each).tmpfs.meaning({"Host"}) for each in (later, body))
    assert one == other, "figures move all the time"


@pytest.mark.parametrize("reclaim", ["much", {"journal": {}}, {"tmpfiles": [{"path": "/run/foo"}]}])
def test_reclaim_that_makes_no_sense_in_a_spec_is_passed_over(reclaim: Any) -> None:
    body = report(spec=[told()])
    body["spec"]["reclaim"] = reclaim
    assert records.report(body).tmpfs.limits == (limit(),)


def test_a_report_without_a_list_of_tmpfs_is_not_one_that_has_none() -> None:
    body = report()
    del body["status"]["tmpfs"]
    assert records.report(body).tmpfs.mounts is None
    assert records.report(report(tmpfs=[])).tmpfs.mounts == ()


@pytest.mark.parametrize(
    "status", [{"omitted": {"tmpfs": 1}}, {"conditions": [{"type": "Complete", "status": "False", "reason": "r"}]}]
)
def test_a_list_that_was_cut_or_not_all_read_is_not_complete(status: Object) -> None:
    assert not records.report(report(**status)).tmpfs.complete


def test_the_size_of_a_mount_is_the_one_found_before_it_was_limited() -> None:
    body = report(tmpfs=[RUN | {"sizeBytes": 2 * GiB}], limits=[holds(originalBytes=16 * GiB)])
    mounts = records.report(body).tmpfs.mounts
    assert mounts is not None
    assert mounts[0].size_bytes == 16 * GiB


def test_nodes_share_equal_limits() -> None:
    one, other = (records.report(report(name, spec=[told()])).tmpfs.limits[0] for name in ("n1", "n2"))
    assert one is other


def test_one_limit_that_makes_no_sense_does_not_cost_the_others() -> None:
    assert records.report(report(spec=[{"scope": "Host"}, told(), 7])).tmpfs.limits == (limit(),)


def test_a_heartbeat_changes_nothing_that_limits_depend_on() -> None:
    state = state_of(policy())
    assert not state.take(
        "reports", report(version=2, observedAt="2030-01-01T00:00:00Z", tmpfs=[RUN | {"usedBytes": 7}])
    )
    assert state.take("reports", report(version=3, tmpfs=[RUN | {"sizeBytes": 7}]))
    assert state.take("reports", report(version=4, tmpfs=[RUN | {"sizeBytes": 7}], observedGeneration=1))


def test_which_pods_mounts_are_listed_makes_no_difference_to_a_policy_for_the_node_s_own() -> None:
    """A report lists the largest tmpfs: on a busy node others at each heartbeat."""
    state = state_of(policy(), reports=(report(omitted={"tmpfs": 280}),))
    assert not state.take("reports", report(version=2, tmpfs=[RUN, SHM], omitted={"tmpfs": 279}))
    assert state.take("reports", report(version=3, tmpfs=[RUN | {"mountPoint": "/srv"}, RUN], omitted={"tmpfs": 279}))
    for_pods = [{"scope": "SharedMemory", "size": "1Gi"}]
    state.take("tmpfs_policies", policy("pods", version=4, rules=for_pods))
    assert state.take("reports", report(version=5, tmpfs=[RUN, SHM], omitted={"tmpfs": 279}))
    state.lost("tmpfs_policies", "pods", "uid-pods")
    assert not state.take("reports", report(version=6, tmpfs=[RUN], omitted={"tmpfs": 280}))


def test_without_policies_and_limits_mounts_make_no_difference() -> None:
    state = state_of()
    assert not state.take("reports", report(version=2, tmpfs=[]))
    assert plan(state) == Planned()


def test_labels_of_a_node_make_a_difference_and_its_heartbeat_none() -> None:
    state = state_of(policy())
    assert not state.take("nodes", {"metadata": metadata("n1", 2), "status": {"conditions": []}})
    assert state.take("nodes", {"metadata": metadata("n1", 3, labels={"pool": "web"})})


@pytest.mark.parametrize(
    ("spec", "limit_bytes"),
    [
        (
            {
                "containers": [
                    {"resources": {"limits": {"memory": "1Gi"}}},
                    {"resources": {"limits": {"memory": "2Gi"}}},
                ]
            },
            3,
        ),
        ({"containers": [{"resources": {"limits": {"memory": "1Gi"}}}, {"resources": {}}]}, None),
        ({"containers": [{}], "resources": {"limits": {"memory": "4Gi"}}}, 4),
        (
            {
                "containers": [{"resources": {"limits": {"memory": "1Gi"}}}],
                "initContainers": [
                    {"restartPolicy": "Always", "resources": {"limits": {"memory": "1Gi"}}},
                    {"resources": {}},
                ],
            },
            2,
        ),
    ],
    ids=["sum", "one without", "of the pod", "sidecar"],
)
def test_memory_limit_of_a_pod(spec: Object, limit_bytes: int | None) -> None:
    found = pod({"metadata": metadata("p", 1), "spec": spec}).memory_limit_bytes
    assert found == (None if limit_bytes is None else limit_bytes * GiB)


# The plan


def test_a_node_is_told_its_limits() -> None:
    assert sizes(plan(state_of(policy()))) == {"n1": {"/run": 2 * GiB}}


def test_a_percentage_is_of_the_memory_the_report_says_else_of_the_nodes_capacity() -> None:
    rules = [{"scope": "Host", "path": "/run", "size": "10%"}]
    state = state_of(policy(rules=rules), reports=(report(memory={"totalBytes": 40 * GiB}), report("n2")))
    state.take("nodes", {"metadata": metadata("n2", 2), "status": {"capacity": {"memory": "20Gi"}}})
    state.take("tmpfs_policies", policy(rules=rules, version=2, generation=2, rollout={"maxConcurrent": 2}))
    assert sizes(plan(state)) == {"n1": {"/run": 4 * GiB}, "n2": {"/run": 2 * GiB}}


def test_a_report_whose_node_is_gone_is_left_alone_and_holds_nobody_up() -> None:
    state = state_of(policy(deletionTimestamp="2030-01-01T00:00:00Z"), reports=(report(spec=[told()], generation=2),))
    assert not rollout.may_go(plan(state).progress["a"])
    state.lost("nodes", "n1", "uid-n1")
    found = plan(state)
    assert found.writes == ()
    assert rollout.may_go(found.progress["a"])


def test_a_node_without_a_report_is_matched_and_pending() -> None:
    state = state_of(policy(), reports=())
    state.take("nodes", {"metadata": metadata("n1", 1)})
    tally = plan(state).tallies["a"]
    assert (tally.matched, tally.unread) == (1, 1)


def test_a_write_under_way_has_taken_its_turn() -> None:
    state = state_of(policy(rollout={"maxConcurrent": 1}), reports=(report("n1"), report("n2")))
    planner = Planner(state)
    (write,) = plan(state, planner=planner).writes
    planner.sent["n1"] = write
    assert plan(state, planner=planner).writes == ()
    # Also where what is first by name has changed meanwhile.
    state.take("reports", report("n0"))
    state.take("nodes", {"metadata": metadata("n0", 1)})
    assert plan(state, planner=planner).writes == ()


def test_what_an_unanswered_spec_is_about_is_known_for_the_generation_written() -> None:
    policies = (policy("a"), policy("b", rules=[{"scope": "Host", "path": "/tmp", "size": "1Gi"}]))
    state = state_of(*policies, reports=(report(spec=[told()], generation=2),))
    planner = Planner(state)
    planner.told("n1", 2, frozenset({"a"}))
    assert plan(state, planner=planner).progress["b"].in_flight == []
    # Somebody else wrote it since: it may be about anything.
    state.take("reports", report(version=2, spec=[told()], generation=3))
    assert plan(state, planner=planner).progress["b"].in_flight == ["n1"]


def test_pods_are_asked_for_where_they_make_a_difference() -> None:
    rule = {"scope": "SharedMemory", "size": "1Gi", "adjust": "Grow", "podSelector": {"matchLabels": {"app": "db"}}}
    state = state_of(policy(rules=[rule]), reports=(report(tmpfs=[RUN, SHM]),))
    assert Planner(state).pods_needed() == {KEY: {"u1"}}
    assert sizes(plan(state, {KEY: FOUND})) == {"n1": {"/sandboxes/1/shm": GiB}}


@pytest.mark.parametrize(
    "found",
    [None, dataclasses.replace(FOUND, uid="u2"), dataclasses.replace(FOUND, node_name="n2")],
    ids=["gone", "another", "elsewhere"],
)
def test_a_node_is_believed_about_its_own_pods_only(found: Pod | None) -> None:
    rule = {"scope": "SharedMemory", "size": "1Gi", "adjust": "Grow", "podSelector": {"matchLabels": {"app": "db"}}}
    state = state_of(policy(rules=[rule]), reports=(report(tmpfs=[RUN, SHM]),))
    assert sizes(plan(state, {KEY: found})) == {}


def test_a_pod_whose_namespace_is_unknown_keeps_what_it_has() -> None:
    rule = {
        "scope": "SharedMemory",
        "size": "1Gi",
        "adjust": "Grow",
        "namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]},
    }
    state = state_of(policy(rules=[rule]), reports=(report(tmpfs=[SHM]),))
    planner = Planner(state)
    assert planner.pods_needed()
    assert planner.asks_for_namespaces()
    for unknown in ({}, None):
        assert planner.plan({"n1": False}, {KEY: FOUND}, unknown).writes == ()
    assert sizes(planner.plan({"n1": False}, {KEY: FOUND}, {"web": {}})) == {"n1": {"/sandboxes/1/shm": GiB}}


def test_a_policy_that_makes_no_sense_is_refused_and_keeps_what_it_has() -> None:
    broken = policy(rules=[{"scope": "Host", "path": "/run", "size": "2 elephants"}])
    found = plan(state_of(broken, reports=(report(spec=[told()], generation=2, observedGeneration=2),)))
    assert "elephants" in found.refused["a"]
    assert found.writes == ()


def test_a_limit_that_the_agent_says_is_mounted_no_more_goes_from_a_cut_list() -> None:
    gone = wire(limit("/mnt/old", 2 * GiB, "a"))
    rules = [{"scope": "Host", "path": "/mnt/*", "size": "2Gi"}]
    cut = {"spec": [gone], "generation": 2, "observedGeneration": 2, "omitted": {"tmpfs": 3}}
    said = {"mountPoint": "/mnt/old", "requestedBytes": 2 * GiB, "state": "InSync", "policy": "a"}
    kept = plan(state_of(policy(rules=rules), reports=(report(**cut, limits=[said]),)))
    assert kept.writes == ()
    left = plan(state_of(policy(rules=rules), reports=(report(**cut, limits=[said | {"reason": "NotMounted"}]),)))
    assert sizes(left) == {"n1": {}}


def test_what_did_not_change_is_not_resolved_again() -> None:
    state = state_of(policy(), reports=(report("n1"), report("n2")))
    planner = Planner(state)
    plan(state, planner=planner)
    before = dict(planner._resolved)
    state.take("reports", report("n2", version=2))
    plan(state, planner=planner)
    assert planner._resolved["n1"] is before["n1"]
    assert planner._resolved["n2"] is not before["n2"]


# Writing


class FakeApi:
    """Answers as the API server would, or with the error it is given."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.bodies: list[tuple[str, Any]] = []
        self.found: Object | None = None

    async def apply(self, path: str, body: Any) -> Object:
        self.bodies.append((path, body))
        if self.error is not None:
            raise self.error
        return report(version=9, generation=2, spec=body["spec"]["tmpfsLimits"])

    async def find(self, _path: str) -> Object | None:
        return self.found


def writer(state: State, api: FakeApi) -> tuple[LimitWriter, Planner]:
    planner = Planner(state)
    return LimitWriter(api, state, planner, lambda: None), planner  # type: ignore[arg-type]


def writes(made: LimitWriter, planned: Planned, now: float = 0.0) -> dict[str, Write]:
    return {each.key[0]: each for each in made.writes(planned, now)}


def test_no_enforced_limit_before_the_finalizer() -> None:
    state = state_of(policy())
    made, planner = writer(state, FakeApi())
    found = writes(made, plan(state, planner=planner))
    assert "tmpfspolicy-finalizer" in found
    assert "memoryreport-limits" not in found
    state.take("tmpfs_policies", policy(version=2, finalizers=[FINALIZER]))
    found = writes(made, plan(state, planner=planner))
    assert "tmpfspolicy-finalizer" not in found
    assert "memoryreport-limits" in found


def test_a_policy_that_never_enforces_gets_no_finalizer() -> None:
    state = state_of(policy(mode="Audit"))
    made, planner = writer(state, FakeApi())
    planned = plan(state, planner=planner)
    assert unguarded(planned.policies, state.tmpfs_policies, FINALIZER) == set()
    assert set(writes(made, planned)) == {"memoryreport-limits", "tmpfspolicy-status"}


def test_the_finalizer_of_a_deleted_policy_goes_with_its_last_limit() -> None:
    going = policy(finalizers=["other", FINALIZER], deletionTimestamp="2030-01-01T00:00:00Z")
    state = state_of(going, reports=(report(spec=[told()], generation=2, observedGeneration=2, limits=[holds()]),))
    made, planner = writer(state, FakeApi())
    assert set(writes(made, plan(state, planner=planner))) == {"memoryreport-limits", "tmpfspolicy-status"}
    state.take("reports", report(version=2, spec=[], generation=3, observedGeneration=3))
    assert set(writes(made, plan(state, planner=planner))) == {"tmpfspolicy-finalizer"}


def test_a_deleted_policy_that_can_not_be_read_is_let_go() -> None:
    going = policy(rules=[{"size": 7}], finalizers=[FINALIZER], deletionTimestamp="2030-01-01T00:00:00Z")
    state = state_of(going)
    made, planner = writer(state, FakeApi())
    assert set(writes(made, plan(state, planner=planner))) == {"tmpfspolicy-finalizer"}


def test_limits_written_are_known_at_once() -> None:
    state, api = state_of(policy(finalizers=[FINALIZER])), FakeApi()
    made, planner = writer(state, api)
    asyncio.run(writes(made, plan(state, planner=planner))["memoryreport-limits"].run())  # type: ignore[arg-type]
    ((path, body),) = api.bodies
    assert path.endswith("/memoryreports/n1")
    assert body["metadata"] == {"name": "n1", "uid": "uid-n1"}
    assert set(body) == {"apiVersion", "kind", "metadata", "spec"}
    assert planner.sent == {}
    found = plan(state, planner=planner)
    assert found.writes == ()
    assert found.progress["a"].in_flight == ["n1"]


@pytest.mark.parametrize(
    ("error", "unsure"),
    [(ApiError(0, "timeout"), True), (ApiError(503, "away"), True), (ApiError(409, "uid"), False), (NotHeld(), False)],
)
def test_a_write_without_an_answer_counts_until_the_report_was_read(error: Exception, unsure: bool) -> None:
    state, api = state_of(policy(finalizers=[FINALIZER])), FakeApi(error)
    made, planner = writer(state, api)
    write = writes(made, plan(state, planner=planner))["memoryreport-limits"]
    with pytest.raises(type(error)):
        asyncio.run(write.run())  # type: ignore[arg-type]
    assert (planner.sent != {}) is unsure
    assert (plan(state, planner=planner).writes == ()) is unsure
    api.found = report()
    asyncio.run(made.settle())
    assert planner.sent == {}
    assert sizes(plan(state, planner=planner)) == {"n1": {"/run": 2 * GiB}}


def test_a_limit_that_is_enforced_already_needs_no_finalizer_to_stay() -> None:
    write = rollout.Write("n1", (limit(),), None)
    assert not enforces(write, (limit(),), {"a"})
    assert enforces(write, (), {"a"})
    assert not enforces(write, (), {"b"})
    assert not enforces(rollout.Write("n1", (limit(mode="Audit"),), None), (), {"a"})


def said(message: str = "m", *, in_sync: int = 1, reason: str = "InSync", generation: int = 1) -> TmpfsPolicyStatus:
    ready = Condition("Ready", "True", reason, message, "2030-01-01T00:00:00Z", generation)
    return TmpfsPolicyStatus(generation, NodeCounts(2, in_sync), (), (ready,))


@pytest.mark.parametrize(
    ("new", "wait"),
    [
        (said(reason="NoNodes"), 0.0),
        (said(generation=2), 0.0),
        (said(in_sync=2), COUNTS_SECONDS),
        (said("other figures"), WORDS_SECONDS),
    ],
)
def test_what_a_status_means_is_written_at_once_and_its_figures_seldom(new: TmpfsPolicyStatus, wait: float) -> None:
    made, _ = writer(state_of(), FakeApi())
    made._status_written["a"] = 100.0
    assert made._may_say("a", said(), new, 100.0 + wait)
    if wait:
        assert not made._may_say("a", said(), new, 100.0 + wait - 0.1)
        assert made.due == 100.0 + wait


def test_a_status_that_says_the_same_is_never_written() -> None:
    made, _ = writer(state_of(), FakeApi())
    assert not made._may_say("a", said(), said(), 1e9)
    assert made.due is None
