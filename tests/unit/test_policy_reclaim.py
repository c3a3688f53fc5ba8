"""Policies' reclaim becomes entries of reports' specs: who wins, what is a conflict, and how it takes its turns."""

import dataclasses
from typing import Any

import pytest

from nodemem.api.types import (
    JournalLimit,
    JournalReclaim,
    LimitMode,
    MemoryReportSpec,
    NodeReclaim,
    Reclaim,
    TmpfilesAge,
    TmpfilesReclaim,
)
from nodemem.node.status import ReclaimState, ReclaimStatus
from nodemem.node.units import parse_age
from nodemem.policy import audit, entries, reclaim
from nodemem.policy.limits import Limiter, Mount, NodeLimits, Policy, check
from nodemem.policy.rollout import NodeState, Pace, Plan, may_go, plan
from nodemem.policy.status import status
from nodemem.policy.tally import Tally, tally
from unit.policy_cases import GiB, MiB, answer, limit, node, policy, rollout

NOW = "2030-01-02T00:00:00Z"
RUN = Mount("/run", "Host", 16 * GiB, GiB)
LIMIT = limit()
JOURNAL = JournalLimit(512 * MiB, "Enforce", "a")


def wants(name: str = "a", journal: int | str | None = None, ages: dict[str, str] | None = None, **more: Any) -> Policy:
    made = policy(name, **more)
    wish = Reclaim(
        None if journal is None else JournalReclaim(journal),
        tuple(TmpfilesReclaim(path, age) for path, age in (ages or {}).items()),
    )
    return dataclasses.replace(made, spec=dataclasses.replace(made.spec, reclaim=wish))


def on_a_node(*policies: Policy, **freeable: int) -> NodeLimits:
    return Limiter(policies).limits(dataclasses.replace(node("n1", RUN), freeable=freeable))


def given(*policies: Policy) -> tuple[entries.Reclaiming, ...]:
    return on_a_node(*policies).reclaimed.entries


def journal_of(*policies: Policy) -> JournalLimit | None:
    return next((each for each in given(*policies) if isinstance(each, JournalLimit)), None)


# Ages


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7d", 604800), ("1d12h", 129600), ("30min", 1800), ("5m", 300), ("2w", 1209600), ("1h1h", 7200)],
)
def test_an_age_is_in_seconds(text: str, seconds: int) -> None:
    assert parse_age(text) == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "0d", "07d", "5s", "7d ", "7d\n", "1.5h", "7 d", "٧d"])
def test_what_is_no_age_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(ValueError, match="write a time span such as"):
        parse_age(text)


# Who wins


def test_a_policy_becomes_an_entry_for_the_journal_and_one_for_each_path() -> None:
    assert given(wants("a", "512Mi", {"/run/foo": "7d", "/run/bar": "1d"})) == (
        JOURNAL,
        TmpfilesAge("/run/bar", "1d", "Enforce", "a"),
        TmpfilesAge("/run/foo", "7d", "Enforce", "a"),
    )


def test_a_node_that_is_not_selected_or_whose_policy_goes_gets_none() -> None:
    assert given(wants("a", "512Mi", labels={"pool": "web"})) == ()
    assert given(dataclasses.replace(wants("a", "512Mi"), deleting=True)) == ()


def test_the_higher_priority_wins_and_that_is_no_conflict() -> None:
    policies = [wants("a", "1Gi", priority=1), wants("b", "512Mi")]
    assert journal_of(*policies) == JournalLimit(GiB, "Enforce", "a")
    assert [each.conflicts for each in on_a_node(*policies).reclaimed.contests] == [()]


def test_on_a_tie_the_smaller_journal_and_the_longer_age_win_and_both_are_told() -> None:
    policies = [wants("a", "1Gi", {"/run/foo": "1d"}), wants("b", "512Mi", {"/run/foo": "7d"})]
    assert given(*policies) == (
        JournalLimit(512 * MiB, "Enforce", "b"),
        TmpfilesAge("/run/foo", "7d", "Enforce", "b"),
    )
    counted = tally(policies, [on_a_node(*policies)])
    for name, other in (("a", "b"), ("b", "a")):
        message = said(policies["ab".index(name)], counted[name], "Conflict")
        assert (
            f"{other} wants something else with the same priority 0 for systemd-journald's limit on 1 node;" in message
        )
        assert "the age of files in /run/foo on 1 node" in message
    assert "b holds there" in said(policies[0], counted["a"], "Conflict")
    assert "this one holds there" in said(policies[1], counted["b"], "Conflict")


def test_two_that_want_the_same_are_no_conflict() -> None:
    contests = on_a_node(wants("a", "1Gi"), wants("b", "1024Mi")).reclaimed.contests
    assert [(each.wanted[0].policy, each.conflicts) for each in contests] == [("a", ())]


def test_an_audit_never_takes_the_journal_from_an_enforced_limit() -> None:
    policies = [wants("a", "512Mi", mode="Audit", priority=9), wants("b", "1Gi")]
    assert journal_of(*policies) == JournalLimit(GiB, "Enforce", "b")
    counted = tally(policies, [on_a_node(*policies)])
    assert counted["a"].cleaning["journal"].nodes == 1
    assert counted["b"].cleaning["journal"].overruled == {}


def test_an_audit_says_what_it_would_come_to() -> None:
    chosen = wants("a", "512Mi", {"/run/foo": "7d"}, mode="Audit")
    counted = tally([chosen], [on_a_node(chosen, a=3 * GiB)])["a"]
    assert audit.cleaning(chosen, counted) == [
        "Would limit systemd-journald's volatile journal to 512Mi on 1 node.",
        "Would let systemd-tmpfiles delete files in /run/foo that were not used for 7d on 1 node.",
        "About 3Gi would be freed by that now.",
    ]
    other = wants("b", "1Gi", priority=1)
    counted = tally([chosen, other], [on_a_node(chosen, other)])["a"]
    assert "For systemd-journald's limit b would come before it on 1 node." in audit.cleaning(chosen, counted)


def test_too_many_paths_are_cut_enforced_ones_last() -> None:
    many = [wants(f"a{each:02}", None, {f"/run/{each:02}-{path}": "7d" for path in range(16)}) for each in range(3)]
    many[0] = dataclasses.replace(many[0], spec=dataclasses.replace(many[0].spec, mode="Audit"))
    found = on_a_node(*many).reclaimed
    assert len(found.entries) == reclaim.MOST_TMPFILES
    assert found.left_out == 48 - reclaim.MOST_TMPFILES
    assert {each.policy for each in found.entries} == {"a01", "a02"}


@pytest.mark.parametrize(("journal", "age"), [("1Mi", "7d"), ("lots", "7d"), ("512Mi", "soon")])
def test_what_the_server_should_have_refused_makes_no_sense(journal: str, age: str) -> None:
    with pytest.raises(ValueError, match="write"):
        check(wants("a", journal, {"/run/foo": age}))


def test_entries_become_a_spec_and_come_back() -> None:
    listed = (TmpfilesAge("/run/foo", "7d", "Enforce", "a"), LIMIT, JOURNAL)
    spec = entries.spec(listed)
    assert spec == MemoryReportSpec((LIMIT,), NodeReclaim(JOURNAL, listed[:1]))
    assert set(entries.reclaiming(spec.reclaim)) == {JOURNAL, listed[0]}
    assert entries.spec([LIMIT]).reclaim is None
    assert len({entries.name_of(each) for each in listed}) == 3


# Turns


def held(state: ReclaimState = "InSync", entry: JournalLimit = JOURNAL) -> ReclaimStatus:
    return ReclaimStatus("Journal", None, entry.runtime_max_use_bytes, None, state, message="why", policy=entry.policy)


def at(
    name: str,
    current: tuple[entries.Entry, ...] = (LIMIT, JOURNAL),
    wanted: tuple[entries.Entry, ...] = (LIMIT, JOURNAL),
    *answers: entries.Answer,
    answered: bool = True,
) -> NodeState:
    return NodeState(name, current, wanted, answers, answered, touched=frozenset("a"), selected=("a",))


def go(*nodes: NodeState, most: int = 1, deleting: bool = False, mode: LimitMode = "Enforce") -> Plan:
    return plan({"a": Pace(rollout(most), len(nodes), mode, deleting)}, nodes)


def said(chosen: Policy, counted: Tally, kind: str, *states: NodeState) -> str:
    made = go(*states)
    found = status(chosen, 1, counted, made.policies["a"] if states else plan({}, ()).policies.get("a", EMPTY), (), NOW)
    return next(each.message for each in found.conditions if each.type == kind)


EMPTY = plan({"a": Pace(rollout(1), 0)}, ()).policies["a"]


def test_limit_and_reclaim_are_one_turn() -> None:
    made = go(at("n1", ()), at("n2", ()))
    assert [(each.node, each.limits) for each in made.writes] == [("n1", (LIMIT, JOURNAL))]


def test_a_node_whose_journal_is_not_answered_holds_its_turn() -> None:
    told = at("n1", (LIMIT, JOURNAL), (LIMIT, JOURNAL), answer(LIMIT), answered=False)
    assert go(told, at("n2", ())).writes == ()
    other = JournalLimit(GiB, "Enforce", "a")
    late = at("n1", (LIMIT, JOURNAL), (LIMIT, JOURNAL), answer(LIMIT), held(entry=other))
    assert go(late, at("n2", ())).policies["a"].in_flight == ["n1"], "an answer to another limit is none"
    done = at("n1", (LIMIT, JOURNAL), (LIMIT, JOURNAL), answer(LIMIT), held())
    assert [each.node for each in go(done, at("n2", ())).writes] == ["n2"]


def test_refused_stops_nothing_and_is_told() -> None:
    refuses = at("n1", (LIMIT, JOURNAL), (LIMIT, JOURNAL), answer(LIMIT), held("Refused"))
    made = go(refuses, at("n2", ()))
    assert [each.node for each in made.writes] == ["n2"]
    assert (made.policies["a"].refused, made.policies["a"].failed) == (["n1"], [])
    chosen = wants("a", "512Mi")
    counted = tally([chosen], [on_a_node(chosen)])["a"]
    found = status(chosen, 1, counted, go(refuses).policies["a"], (), NOW)
    ready = next(each for each in found.conditions if each.type == "Ready")
    assert (ready.status, ready.reason) == ("True", "InSync")
    assert "Limits systemd-journald's volatile journal to 512Mi on 1 node." in ready.message
    assert ready.message.endswith("Reclaim is refused on n1: why")
    assert found.nodes is not None
    assert (found.nodes.refused, found.nodes.failed, found.nodes.in_sync) == (1, 0, 0)
    assert [(each.node_name, each.state) for each in found.problems] == [("n1", "Refused")]


def test_a_restart_that_failed_stops_it() -> None:
    fails = at("n1", (LIMIT, JOURNAL), (LIMIT, JOURNAL), answer(LIMIT), held("Failed"))
    made = go(fails, at("n2", ()), most=9)
    assert made.writes == ()
    assert made.policies["a"].stopped == "stopped by maxFailures 1, failed on n1: why"


def test_an_agent_that_may_not_enforce_fails_it() -> None:
    off = at("n1", (LIMIT, JOURNAL), (LIMIT, JOURNAL), answer(LIMIT), held("Audit"))
    assert go(off).policies["a"].failed == ["n1"]


def test_an_audit_takes_no_turn() -> None:
    tried = dataclasses.replace(JOURNAL, mode="Audit")
    made = go(*(at(f"n{each}", (), (tried,)) for each in range(5)), mode="Audit")
    assert len(made.writes) == 5


def test_a_deleted_policy_stays_until_the_node_has_undone_it() -> None:
    asked = go(at("n1", (LIMIT, JOURNAL), (), answer(LIMIT), held()), deleting=True)
    assert [each.limits for each in asked.writes] == [()]
    for left in ("Failed", "InSync"):
        still = go(at("n1", (), (), held(left)), deleting=True)  # type: ignore[arg-type]
        assert not may_go(still.policies["a"])
    assert may_go(go(at("n1", (), ()), deleting=True).policies["a"])


def test_from_enforce_to_audit_it_is_in_flight_until_it_is_undone() -> None:
    tried = dataclasses.replace(JOURNAL, mode="Audit")
    assert go(at("n1", (tried,), (tried,), held())).policies["a"].in_flight == ["n1"]
    assert go(at("n1", (tried,), (tried,), held("Audit")), mode="Audit").policies["a"].audit == ["n1"]
