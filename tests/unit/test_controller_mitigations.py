"""Which pods a node is to mitigate, what an OomExposure says of it, and how an OomPolicy stands."""

from dataclasses import replace
from typing import Any

import pytest

from nodemem.api.types import MOST_MITIGATIONS, LabelSelector, OomMitigation
from nodemem.controller import mitigated, mitigations, policystatus
from nodemem.controller.exposures import Policy, Report, Wanted, difference
from nodemem.controller.records import OomPolicyRecord
from nodemem.node.status import Condition, ExposureStatus, MitigationStatus, OomMitigationStatus
from unit.test_controller_exposures import KEY, POD, exposure, policy, wanted

VALUE = MitigationStatus(-63, 7)
HELD = OomMitigation("uid-1", "web", "app-0", "mend")
MEND = policy("mend", mode="Mitigate")
SELECTIVE = policy("mend", mode="Mitigate", pod_selector=LabelSelector({"app": "shop"}))
APPLIED = OomMitigationStatus("a" * 64, "uid-1", "Applied", "app", -63, -997, 16 << 30, 4)


def report(
    *found: ExposureStatus,
    held: tuple[OomMitigation, ...] = (),
    said: tuple[OomMitigationStatus, ...] = (),
    stale: bool = False,
) -> Report:
    return Report("n1", "2026-01-01T00:00:00Z", stale, found, 0, held, said)


def told(
    of: Report,
    *policies: Policy,
    pods: dict[Any, Any] | None = None,
    namespaces: dict[str, dict[str, str]] | None = None,
    unread: tuple[str, ...] = (),
) -> tuple[OomMitigation, ...]:
    return mitigations.wanted(
        of, {KEY: POD} if pods is None else pods, {"web": {}} if namespaces is None else namespaces, policies, unread
    )


# Which pods


def test_an_exposed_pod_that_a_value_helps_is_mitigated_where_a_policy_says_so() -> None:
    clamped = report(exposure(mitigation=VALUE))
    assert told(clamped, MEND) == (HELD,)
    assert told(clamped, policy("flag")) == ()
    assert told(clamped) == ()
    assert told(report(exposure()), MEND) == (), "there is no value, so there is nothing to set"


def test_it_stays_mitigated_while_the_policy_asks_for_it_however_exposures_come_and_go() -> None:
    for found in ((), (exposure(mitigation=VALUE, mitigated=True),), (exposure(reasons=("SkewedAdj",)),)):
        for said in ((), (APPLIED,), (replace(APPLIED, state="Failed"),)):
            assert told(report(*found, held=(HELD,), said=said), MEND) == (HELD,)


@pytest.mark.parametrize(
    ("pods", "policies"),
    [
        ({KEY: POD}, ()),
        ({KEY: POD}, (policy("mend"),)),
        ({KEY: POD}, (MEND, policy("other", priority=1))),
        ({KEY: replace(POD, labels={"app": "bank"})}, (SELECTIVE,)),
        ({KEY: None}, (MEND,)),
        ({KEY: replace(POD, uid="uid-2")}, (MEND,)),
        ({KEY: replace(POD, node_name="n2")}, (MEND,)),
    ],
    ids=["policy deleted", "edited", "overruled", "relabelled", "pod gone", "another pod", "another node"],
)
def test_it_is_taken_back_when_no_policy_asks_for_this_pod_any_more(
    pods: dict[Any, Any], policies: tuple[Policy, ...]
) -> None:
    of = report(exposure(mitigation=VALUE), held=(HELD,), said=(APPLIED,))
    assert told(of, SELECTIVE) == (HELD,)
    assert told(of, *policies, pods=pods) == ()


def test_what_can_not_be_decided_now_stays_as_it_is() -> None:
    selective = policy("mend", mode="Mitigate", namespace_selector=LabelSelector({"team": "web"}))
    of = report(exposure(mitigation=VALUE), held=(HELD,))
    assert told(of, MEND, pods={}) == (HELD,)
    assert told(of, selective, namespaces={}) == (HELD,)
    assert told(of, unread=("mend",)) == (HELD,)
    new = report(exposure(mitigation=VALUE))
    assert told(new, MEND, pods={}) == ()
    assert told(new, selective, namespaces={}) == ()
    assert told(new, selective, namespaces={"web": {"team": "web"}}) == (HELD,)


def test_a_node_that_needs_no_value_is_not_asked_for_one() -> None:
    not_needed = replace(APPLIED, state="NotNeeded", oom_score_adj=None, kubelet_oom_score_adj=None)
    assert told(report(held=(HELD,), said=(not_needed,)), MEND) == ()
    assert told(report(held=(HELD,), said=(not_needed, APPLIED)), MEND) == (HELD,)


def test_a_node_gets_as_many_as_its_spec_takes_and_those_it_has_first() -> None:
    found = tuple(
        exposure(mitigation=VALUE, pod_name=f"app-{number:03}", pod_uid=f"uid-{number}") for number in range(100)
    )
    last = OomMitigation("uid-99", "web", "app-099", "mend")
    pods = {("web", f"app-{number:03}"): replace(POD, uid=f"uid-{number}") for number in range(100)}
    chosen = told(report(*found, held=(last,)), MEND, pods=pods)
    assert len(chosen) == MOST_MITIGATIONS
    assert last in chosen
    assert told(report(*found, held=chosen), MEND, pods=pods) == chosen, "and it stays with these"


def test_pods_are_looked_up_only_where_a_policy_mitigates_or_did() -> None:
    exposed = report(exposure(mitigation=VALUE))
    assert mitigations.pods_needed([exposed], [policy("flag")]) == {}
    assert mitigations.pods_needed([exposed], [MEND]) == {KEY: {"uid-1"}}
    assert mitigations.pods_needed([report(held=(HELD,))], []) == {KEY: {"uid-1"}}


# The condition


def condition(*exposed: ExposureStatus, said: tuple[OomMitigationStatus, ...] = (), by: str | None = "mend") -> Any:
    return mitigated.condition(exposed, said, by, stale=False)


def test_the_condition_says_what_was_set_and_what_it_replaced() -> None:
    found = condition(exposure(mitigation=VALUE, mitigated=True), said=(APPLIED,))
    assert (found.status, found.reason) == ("True", "Applied")
    assert found.message == "By OomPolicy mend: oom_score_adj -63 in place of the kubelet's -997 in app."


FAILED = replace(APPLIED, state="Failed", reason="MitigationOff", message="Nothing was set.", oom_score_adj=None)


@pytest.mark.parametrize(
    ("said", "by", "reason", "word"),
    [
        ((), "mend", "Pending", "has not answered yet"),
        ((replace(APPLIED, state="Pending", reason="Recorded", message="It follows."),), "mend", "Recorded", "app: It"),
        ((FAILED,), "mend", "MitigationOff", "app: Nothing was set."),
        ((replace(APPLIED, others=1),), "mend", "StillExposed", "a value of their own: 1."),
        ((replace(APPLIED, state="Pending", message="It goes back."),), None, "Restoring", "It goes back."),
    ],
)
def test_the_condition_says_why_it_does_not_hold(
    said: tuple[OomMitigationStatus, ...], by: str | None, reason: str, word: str
) -> None:
    found = condition(exposure(mitigation=VALUE), said=said, by=by)
    assert (found.status, found.reason) == ("False", reason)
    assert word in found.message


def test_there_is_no_condition_where_nothing_was_asked_for_or_no_value_can_help() -> None:
    assert condition(exposure(mitigation=VALUE), by=None) is None
    assert condition(exposure(reasons=("TmpfsHeld",))) is None
    assert condition(exposure()).reason == "NoValue"


def test_a_mitigated_pod_is_flagged_as_not_exposed_now_and_low() -> None:
    bad = exposure(severity="Imminent", mitigation=VALUE)
    before = wanted(report(bad), policies=(MEND,))[KEY].status
    after = wanted(report(replace(bad, mitigated=True), said=(APPLIED,)), policies=(MEND,))[KEY].status
    assert [(each.type, each.status) for each in before.conditions] == [("Exposed", "True"), ("Mitigated", "False")]
    assert [(each.type, each.status) for each in after.conditions] == [("Exposed", "False"), ("Mitigated", "True")]
    assert (before.severity, after.severity) == ("Imminent", "Low")
    assert difference(before, after) == "meaning"


def test_a_silent_agents_word_on_it_is_not_taken() -> None:
    held = report(exposure(mitigation=VALUE, mitigated=True), said=(APPLIED,), stale=True)
    assert {each.type: each.status for each in wanted(held, policies=(MEND,))[KEY].status.conditions} == {
        "Exposed": "Unknown",
        "Mitigated": "Unknown",
    }


# The policy's status


def standing(*exposures: Wanted, mode: Any = "Mitigate", before: Any = None) -> Any:
    record = OomPolicyRecord("uid", "7", 3, policy("mend", mode=mode).spec, before)
    return policystatus.status("mend", record, exposures, "2026-01-02T00:00:00Z")


def one(by: str = "mend", said: tuple[OomMitigationStatus, ...] = (), holds: bool | None = None) -> Wanted:
    found = wanted(
        report(exposure(mitigation=VALUE, mitigated=holds), said=said), policies=(policy(by, mode="Mitigate"),)
    )
    return found[KEY]


def conditions(of: Any) -> dict[str, Condition]:
    return {each.type: each for each in of.conditions}


def test_a_policy_counts_its_pods_and_is_ready_when_all_are_mitigated() -> None:
    ready = standing(one(said=(APPLIED,), holds=True), one(by="another"))
    assert (ready.exposed, ready.mitigated, ready.observed_generation) == (1, 1, 3)
    assert conditions(ready)["Ready"].status == "True"
    waiting = standing(one(), before=ready)
    assert (waiting.exposed, waiting.mitigated) == (1, 0)
    said = conditions(waiting)["Ready"]
    assert (said.status, said.reason) == ("False", "Pending")
    assert said.message.startswith("Pod web/app-0: ")
    assert conditions(waiting)["Conflict"].last_transition_time == conditions(ready)["Conflict"].last_transition_time


@pytest.mark.parametrize(("mode", "reason"), [("Ignore", "Ignored"), ("Flag", "Flagged")])
def test_a_policy_that_mitigates_nothing_is_ready(mode: str, reason: str) -> None:
    assert conditions(standing(one(), mode=mode))["Ready"].reason == reason


def test_two_policies_of_one_priority_for_one_pod_are_both_told() -> None:
    both = wanted(report(exposure(mitigation=VALUE)), policies=(policy("late"), MEND))[KEY]
    assert (both.policy, both.tied) == ("late", ("mend",))
    said = conditions(standing(both))["Conflict"]
    assert said.status == "True"
    assert "web/app-0 is selected by late, too" in said.message
    assert "late wins" in said.message
    higher = wanted(report(exposure(mitigation=VALUE)), policies=(policy("late"), policy("mend", priority=1)))[KEY]
    assert (higher.policy, higher.tied) == ("mend", ())
