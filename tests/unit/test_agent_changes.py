"""When the agent writes: on the injected clock, without a server."""

import random
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodemem.agent.changes import OUT_OF_TURN, Cadence, Written, changes, why_write, with_transitions, written
from nodemem.node.status import Condition, LimitStatus, Omitted, OomMitigationStatus, ReclaimStatus, ReportStatus
from unit.agent_statuses import GIB, MIB, container, exposure, kill, memory, status, tmpfs

CADENCE = Cadence()


def writes(statuses: Iterable[tuple[float, ReportStatus]], *, chance: float = 0.5) -> list[tuple[float, str]]:
    """The decisions for statuses offered at these times, each acted on."""
    last: Written | None = None
    made = []
    for now, offered in statuses:
        why = why_write(last, offered, now, CADENCE)
        if why is not None:
            last = written(last, offered, now, why, chance, CADENCE)
            made.append((now, why))
    return made


def moved(before: ReportStatus, now: ReportStatus) -> bool:
    return bool(changes(before, now))


def every_15_s(hours: float, figure: ReportStatus) -> Iterable[tuple[float, ReportStatus]]:
    return ((15.0 * step, figure) for step in range(int(hours * 240)))


def test_an_idle_node_writes_a_heartbeat_about_each_five_minutes() -> None:
    made = writes(every_15_s(24, status()))
    assert [why for _, why in made[:3]] == ["new", "heartbeat", "heartbeat"]
    assert 12 <= (len(made) - 1) / 24 <= 12.5


def test_heartbeats_of_nodes_that_begin_together_spread_at_once() -> None:
    offered = [(5.0 * step, status()) for step in range(62)]
    seconds = [writes(offered, chance=random.Random(node).random())[1][0] for node in range(500)]
    assert min(seconds) <= 105
    assert max(seconds) <= 300
    assert max(seconds.count(each) for each in set(seconds)) < 30


def test_after_an_outage_that_all_had_heartbeats_spread_again() -> None:
    last = Written(status(), 0.0)
    after = written(last, status(), 1000.0, "heartbeat", 0.9, CADENCE, together=True)
    assert why_write(after, status(), 1120.0, CADENCE) == "heartbeat"
    calm = written(last, status(), 1000.0, "heartbeat", 0.9, CADENCE)
    assert why_write(calm, status(), 1270.0, CADENCE) is None


def test_a_report_is_never_older_than_a_heartbeat() -> None:
    for chance in (0.0, 0.5, 0.999):
        times = [now for now, _ in writes(every_15_s(2, status()), chance=chance)]
        assert max(late - early for early, late in pairwise(times)) <= 300


def test_no_two_writes_within_thirty_seconds_whatever_happens() -> None:
    chaos = ((float(now), status(exposures=tuple(exposure(each) for each in range(now % 5)))) for now in range(2000))
    times = [now for now, _ in writes(chaos)]
    assert min(late - early for early, late in pairwise(times)) >= 30


@pytest.mark.parametrize(
    ("before", "now", "of_memory", "of_shmem"),
    [
        (16 * GIB, 16 * GIB + 900 * MIB, True, True),
        (16 * GIB, 16 * GIB + 800 * MIB, False, True),
        (16 * GIB, 15 * GIB, True, True),
        (100 * MIB, 150 * MIB, False, False),
        (100 * MIB, 165 * MIB, True, True),
        (0, 64 * MIB, False, False),
        (0, 64 * MIB + 1, True, True),
    ],
)
def test_memory_moves_by_5_percent_and_64_mib_and_shmem_by_64_mib(
    before: int, now: int, of_memory: bool, of_shmem: bool
) -> None:
    """Five percent of a large tmpfs would be minutes of a leak."""
    anonymous = (status(memory=memory(anonymous_bytes=each)) for each in (before, now))
    shmem = (status(memory=memory(shmem_bytes=each)) for each in (before, now))
    assert moved(*anonymous) is of_memory
    assert moved(*shmem) is of_shmem
    assert moved(status(tmpfs=(tmpfs(1, before),)), status(tmpfs=(tmpfs(1, now),))) is of_shmem
    assert moved(status(containers=(container(1, before),)), status(containers=(container(1, now),))) is of_shmem


def test_a_limit_is_a_finding_and_the_figures_in_its_sentence_are_not() -> None:
    before = LimitStatus("/run", GIB, 2 * GIB, None, "Deferred", "InUse", "1.5Gi is in use.")
    last = Written(status(limits=(before,)), 0.0)
    for changed, why in (({"message": "1.6Gi is in use."}, None), ({"original_bytes": 2 * GIB}, "finding")):
        assert why_write(last, status(limits=(replace(before, **changed),)), 31.0, CADENCE) == why


def test_a_mitigation_is_a_finding_and_how_many_processes_have_it_is_not() -> None:
    one = OomMitigationStatus("a" * 64, "uid", "Applied", "app", -63, -997, processes=3)
    last = Written(status(oom_mitigations=(one,)), 0.0)
    unlike: tuple[tuple[dict[str, Any], str | None], ...] = (
        ({"processes": 9, "others": 1, "message": "x"}, None),
        ({"state": "Failed"}, "finding"),
        ({"oom_score_adj": -64}, "finding"),
    )
    for changed, why in unlike:
        assert why_write(last, status(oom_mitigations=(replace(one, **changed),)), 31.0, CADENCE) == why


def test_names_of_pods_that_came_after_the_first_report_are_told_soon() -> None:
    named = tuple(container(number) for number in (1, 2))
    nameless = tuple(replace(each, pod_name=None, pod_namespace=None) for each in named)
    last = Written(status(containers=nameless), 1000.0)
    assert why_write(last, status(containers=nameless), 1031.0, CADENCE) is None
    assert why_write(last, status(containers=named), 1031.0, CADENCE) == "finding"
    one = Written(status(containers=(named[0], nameless[1])), 1000.0)
    assert why_write(one, status(containers=named), 1031.0, CADENCE) is None


def test_usage_of_containers_moves_nothing() -> None:
    before = status(containers=(container(1, usage=GIB),))
    assert not moved(before, status(containers=(container(1, usage=8 * GIB),)))


def test_what_comes_into_a_cut_list_held_no_more_than_its_last_entry() -> None:
    cut = Omitted(tmpfs=100)
    before = status(tmpfs=(tmpfs(1, GIB), tmpfs(2, 500 * MIB)), omitted=cut)
    assert not moved(before, status(tmpfs=(tmpfs(1, GIB), tmpfs(3, 520 * MIB)), omitted=cut))
    assert moved(before, status(tmpfs=(tmpfs(1, GIB), tmpfs(3, 600 * MIB)), omitted=cut))


def test_what_came_and_what_went_counts_whole_in_a_whole_list() -> None:
    large, small = status(tmpfs=(tmpfs(1, 65 * MIB),)), status(tmpfs=(tmpfs(1, 64 * MIB),))
    assert moved(status(), large)
    assert moved(large, status())
    assert not moved(status(), small)
    assert not moved(small, status())


def test_an_unknown_figure_is_no_zero_in_the_comparison_of_itself() -> None:
    unknown = status(memory=memory(available_bytes=None))
    assert not moved(unknown, unknown)


@pytest.mark.parametrize(
    "change",
    [
        {"exposures": (exposure(1),)},
        {"oom_kills": (kill(1),)},
        {"limits": (LimitStatus("/run", GIB, 2 * GIB, None, "Deferred", "Recorded"),)},
        {"observed_generation": 2},
        {"conditions": (Condition("Complete", "False", "Unreadable", "x", "2026-01-01T00:00:00Z"),)},
    ],
)
def test_a_finding_is_told_after_thirty_seconds(change: dict[str, object]) -> None:
    last = Written(status(), 1000.0)
    assert why_write(last, status(**change), 1029.0, CADENCE) is None
    assert why_write(last, status(**change), 1030.0, CADENCE) == "finding"


def test_an_exposure_that_becomes_imminent_is_a_finding_and_its_usage_is_not() -> None:
    last = Written(status(exposures=(exposure(1),)), 0.0)
    assert why_write(last, status(exposures=(exposure(1, "Imminent"),)), 60, CADENCE) == "finding"
    fuller = replace(exposure(1), usage_bytes=1, message="other numbers")
    assert why_write(last, status(exposures=(fuller,)), 60, CADENCE) is None


def test_a_node_whose_memory_never_rests_writes_a_few_times_an_idle_one_s() -> None:
    restless = ((15.0 * step, status(memory=memory(anonymous_bytes=(1 + step % 2) * GIB))) for step in range(24 * 240))
    made = writes(restless)
    assert len(made) / 24 <= 15
    assert made[1] == (45.0, "moved")


def test_a_finding_that_comes_and_goes_is_told_with_the_heartbeats() -> None:
    severities = ("High", "Imminent")
    flapping = ((15.0 * step, status(exposures=(exposure(1, severities[step % 2]),))) for step in range(24 * 240))
    made = writes(flapping)
    assert made[1] == (45.0, "finding")
    assert len(made) / 24 <= 15


@pytest.mark.parametrize("calm", [False, True])
def test_a_leak_is_told_within_a_minute_though_other_figures_never_rest(calm: bool) -> None:
    def at(now: float, leaked: int) -> ReportStatus:
        swing = 0 if calm else int(now / 15) % 2
        severity = ("High", "Imminent")[swing]
        return status(
            memory=memory(anonymous_bytes=(16 + 2 * swing) * GIB, shmem_bytes=9 * GIB + leaked),
            tmpfs=(tmpfs(1, 8 * GIB + leaked), tmpfs(2, (100 + 100 * swing) * MIB)),
            exposures=(exposure(1, severity),),
        )

    for begun in range(3600, 3900, 45):
        times = (15.0 * step for step in range(270))
        made = writes((now, at(now, max(0, int(now - begun)) * 3 * MIB)) for now in times)
        shown = next(now for now, _ in made if now >= begun + 64 / 3)
        assert shown - begun <= 60


def test_the_answer_to_a_spec_waits_for_nothing_else() -> None:
    """Of a limit that is edited every minute for an hour: its writer waits for each answer."""
    edited = ((15.0 * step, status(observed_generation=step // 4)) for step in range(240))
    made = [now for now, why in writes(edited) if why == "finding"]
    assert len(made) >= 55


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32))
def test_whatever_changes_a_node_writes_no_more_than_24_times_an_hour_and_its_store(seed: int) -> None:
    dice = random.Random(seed)

    def chaos(now: float) -> ReportStatus:
        changes: dict[str, Any] = {}
        if dice.random() < 0.7:
            changes["exposures"] = tuple(exposure(dice.randrange(1000)) for _ in range(3))
        if dice.random() < 0.7:
            changes["tmpfs"] = tuple(tmpfs(dice.randrange(500), dice.randrange(GIB)) for _ in range(5))
        if dice.random() < 0.3:
            changes["oom_kills"] = (kill(int(now)),)
        return status(memory=memory(anonymous_bytes=dice.randrange(64) * GIB), **changes)

    made = writes((15.0 * step, chaos(15.0 * step)) for step in range(4 * 240))
    assert len(made) <= 1 + OUT_OF_TURN + 24 * 4


def test_after_a_rest_a_move_is_told_soon_again() -> None:
    figures = [status(memory=memory(anonymous_bytes=size * GIB)) for size in (1, 2)]
    restless = [(15.0 * step, figures[step % 2]) for step in range(200)]
    calm = [(3000 + 15.0 * step, figures[1]) for step in range(120)]
    made = writes([*restless, *calm, *((4800 + 15.0 * step, figures[0]) for step in range(20))])
    assert next(now for now, why in made if why == "moved" and now >= 4800) <= 4845


def test_a_deleted_report_is_written_again_not_in_a_storm() -> None:
    lost = Written(None, 1000.0)
    assert why_write(lost, status(), 1010, CADENCE) is None
    assert why_write(lost, status(), 1030, CADENCE) == "lost"


def test_conditions_keep_the_time_of_their_last_transition() -> None:
    def at(time: str, state: str) -> Condition:
        return Condition("Complete", state, "Any", "x", time)  # type: ignore[arg-type]

    before = {"Complete": at("2026-01-01T00:00:00Z", "True")}
    same = with_transitions(status(conditions=(at("2026-01-02T00:00:00Z", "True"),)), before)
    other = with_transitions(status(conditions=(at("2026-01-02T00:00:00Z", "False"),)), before)
    assert same.conditions[0].last_transition_time == "2026-01-01T00:00:00Z"
    assert other.conditions[0].last_transition_time == "2026-01-02T00:00:00Z"


def test_what_became_of_reclaim_is_told_at_once_and_what_it_would_free_is_not() -> None:
    said = ReclaimStatus("Journal", None, 512 * MIB, None, "Audit", message="1Gi", freeable_bytes=GIB)
    other = replace(said, message="2Gi", freeable_bytes=2 * GIB)
    refused = replace(said, state="Refused", reason="NoSystemd")
    made = writes((60.0 * step, status(reclaim=(each,))) for step, each in enumerate((said, other, refused)))
    assert made == [(0.0, "new"), (120.0, "finding")]
