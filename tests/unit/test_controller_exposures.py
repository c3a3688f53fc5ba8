"""Reports and OomPolicies -> wanted OomExposures -> changes."""

from dataclasses import replace
from typing import Any

import pytest

from nodemem.api.types import LabelSelector, OomPolicySpec
from nodemem.controller import exposures as tested
from nodemem.controller.exposures import Actual, Pod, Policy, Report
from nodemem.node.status import Condition, ContainerExposure, ExposureStatus, ProcessRef

GIB = 1 << 30
KEY = ("web", "app-0")
POD = Pod("uid-1", None, "n1", "Guaranteed", None, {"app": "shop"})


def exposure(**changed: Any) -> ExposureStatus:
    found = ExposureStatus(
        name="app",
        reasons=("ClampedBadness",),
        severity="High",
        limit_bytes=16 * GIB,
        usage_bytes=12 * GIB,
        predicted_victim=ProcessRef(5740, "pause", 4096),
        largest=ProcessRef(58406, "data_sim", 11 * GIB),
        mitigation=None,
        message="The kernel would kill pause.",
        pod_name="app-0",
        pod_namespace="web",
        pod_uid="uid-1",
    )
    return replace(found, **changed)


def report(*found: ExposureStatus, node: str = "n1", stale: bool = False) -> Report:
    return Report(node, "2026-01-01T00:00:00Z", stale, found)


def wanted(
    *reports: Report,
    pod: Pod | None = POD,
    policies: tuple[Policy, ...] = (),
    namespaces: dict[str, dict[str, str]] | None = None,
) -> dict[tuple[str, str], tested.Wanted]:
    spaces = {"web": {"team": "web"}} if namespaces is None else namespaces
    return tested.wanted(tested.claims(reports), {KEY: pod}, spaces, policies)[0]


def policy(name: str, **spec: Any) -> Policy:
    return Policy(name, OomPolicySpec(**spec))


def test_guaranteed_pod_is_wanted_with_the_worst_container_first() -> None:
    found = wanted(report(exposure(name="b", severity="Low"), exposure(name="a", severity="Imminent")))[KEY].status
    assert [each.name for each in found.containers] == ["a", "b"]
    assert found.severity == "Imminent"
    assert found.summary is not None
    assert (found.summary.container, found.summary.usage) == ("a", "12Gi/16Gi")
    assert type(found.containers[0]) is ContainerExposure


@pytest.mark.parametrize(
    ("pod", "flagged"),
    [
        (replace(POD, qos="Burstable"), False),
        (replace(POD, qos=None), False),
        (replace(POD, qos="Burstable", priority_class="system-node-critical"), True),
        (replace(POD, qos="Burstable", priority_class="system-cluster-critical"), False),
        (replace(POD, node_name="n2"), False),
        (replace(POD, uid="uid-2"), False),
        (replace(POD, uid="uid-2", config_hash="uid-1"), True),
        (None, False),
    ],
)
def test_which_pods_are_flagged_without_a_policy(pod: Pod | None, flagged: bool) -> None:
    assert (KEY in wanted(report(exposure()), pod=pod)) is flagged


def test_pod_that_could_not_be_looked_up_is_undecided() -> None:
    found = tested.wanted(tested.claims([report(exposure())]), {}, {}, ())
    assert found == ({}, {KEY})


def test_namespace_that_could_not_be_looked_up_is_undecided_where_a_policy_asks_for_it() -> None:
    asks = policy("p", namespace_selector=LabelSelector(match_labels={"team": "web"}))
    found = tested.wanted(tested.claims([report(exposure())]), {KEY: POD}, {}, (asks,))
    assert found == ({}, {KEY})


def test_exposure_without_a_pod_is_nobodys() -> None:
    assert tested.claims([report(exposure(pod_name=None), exposure(pod_uid=None))]) == {}


def test_of_two_nodes_that_claim_a_pod_the_one_it_is_bound_to_is_believed() -> None:
    old = report(exposure(message="old"), node="n0", stale=True)
    found = wanted(old, report(exposure()))[KEY].status
    assert found.node_name == "n1"
    assert found.containers[0].message == "The kernel would kill pause."


def test_higher_priority_wins_and_of_equals_the_first_name() -> None:
    flag = policy("a", mode="Flag")
    assert KEY in wanted(report(exposure()), policies=(policy("b", mode="Ignore"), flag))
    assert KEY not in wanted(report(exposure()), policies=(policy("b", mode="Ignore", priority=1), flag))


def test_policy_is_for_pods_that_both_its_selectors_select() -> None:
    other = LabelSelector(match_labels={"team": "other"})
    shop = LabelSelector(match_labels={"app": "shop"})
    elsewhere = policy("p", mode="Ignore", pod_selector=shop, namespace_selector=other)
    assert KEY in wanted(report(exposure()), policies=(elsewhere,))
    here = policy("p", mode="Ignore", pod_selector=shop)
    assert KEY not in wanted(report(exposure()), policies=(here,))


@pytest.mark.parametrize(
    ("reported", "percent", "usage_gib", "severity"),
    [
        ("High", 90, 15, "High"),
        ("Imminent", 90, 1, "Imminent"),
        ("High", 70, 12, "Imminent"),
        ("High", 80, 12, "High"),
        ("High", 99, 16, "High"),
        ("Imminent", 99, 15, "High"),
        ("Imminent", 99, 16, "Imminent"),
        ("Imminent", 70, 1, "Imminent"),
        ("Low", 50, 16, "Low"),
    ],
)
def test_policy_moves_where_imminent_begins(reported: Any, percent: int, usage_gib: int, severity: str) -> None:
    assert tested.severity(exposure(severity=reported, usage_bytes=usage_gib * GIB), percent) == severity


def actual(want: tested.Wanted, *, written: float = 0.0, **changed: Any) -> Actual:
    return Actual("e1", "uid-1", replace(tested.settle(want.status, None, "then"), **changed), written)


def changes(want: dict[Any, tested.Wanted], have: dict[Any, Actual], **more: Any) -> list[tested.Change]:
    known: dict[str, Any] = {"undecided": set(), "keep_nodes": set(), "unnamed": set(), "now": 10.0}
    return list(tested.changes(want, have, **known | more))


def test_nothing_is_written_where_everything_is_as_it_should_be() -> None:
    want = wanted(report(exposure()))
    assert changes(want, {KEY: actual(want[KEY])}) == []


def test_figures_alone_are_written_when_they_moved_and_the_time_has_come() -> None:
    had = wanted(report(exposure()))[KEY]
    near = wanted(report(exposure(usage_bytes=12 * GIB + GIB // 2, message="other figures")))
    far = wanted(report(exposure(usage_bytes=13 * GIB)))
    assert changes(near, {KEY: actual(had)}, now=1000.0) == []
    assert changes(far, {KEY: actual(had)}, now=100.0) == []
    assert [each.news for each in changes(far, {KEY: actual(had)}, now=1000.0)] == [None]


@pytest.mark.parametrize(
    ("changed", "news"),
    [
        ({"severity": "Imminent"}, "Imminent"),
        ({"severity": "Low"}, None),
        ({"reasons": ("SkewedAdj",)}, None),
        ({"limit_bytes": 32 * GIB}, None),
        ({"predicted_victim": ProcessRef(1, "nginx", 4096)}, None),
        ({"predicted_victim": None}, None),
    ],
)
def test_what_a_person_would_act_on_is_written_at_once(changed: dict[str, Any], news: str | None) -> None:
    had = wanted(report(exposure()))[KEY]
    (change,) = changes(wanted(report(exposure(**changed))), {KEY: actual(had)}, now=1.0)
    assert change.news == news


def test_exposure_of_a_replaced_pod_gets_a_new_owner() -> None:
    want = wanted(report(exposure()))
    (change,) = changes(want, {KEY: replace(actual(want[KEY]), owner_uid="uid-0")})
    assert (change.wanted, change.news) == (want[KEY], "Appeared")


def test_exposure_without_a_cause_is_removed() -> None:
    had = wanted(report(exposure()))[KEY]
    (change,) = changes({}, {KEY: actual(had)})
    assert (change.wanted, change.news) == (None, "Gone")


@pytest.mark.parametrize("known", [{"undecided": {KEY}}, {"keep_nodes": {"n1"}}, {"unnamed": {"uid-1"}}])
def test_exposure_stays_while_not_everything_is_known(known: dict[str, Any]) -> None:
    had = wanted(report(exposure()))[KEY]
    assert changes({}, {KEY: actual(had)}, **known) == []


def test_exposure_of_a_silent_node_stays_and_says_so() -> None:
    had = wanted(report(exposure()))[KEY]
    (change,) = changes(wanted(report(exposure(), stale=True)), {KEY: actual(had)})
    assert change.wanted is not None
    (condition,) = change.wanted.status.conditions
    assert (condition.type, condition.status) == ("Exposed", "Unknown")
    assert "2026-01-01T00:00:00Z" in condition.message


def test_transition_time_moves_only_with_the_status() -> None:
    want = wanted(report(exposure()))[KEY].status
    have = replace(want, conditions=(Condition("Exposed", "True", "Old", "Old.", "then"),))
    assert tested.settle(want, have, "now").conditions[0].last_transition_time == "then"
    have = replace(want, conditions=(Condition("Exposed", "Unknown", "Old", "Old.", "then"),))
    assert tested.settle(want, have, "now").conditions[0].last_transition_time == "now"
