"""Records and tables, staleness, selectors, node conditions, the write queue, Events: each by itself."""

import asyncio
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodemem.api.exposition import Exposition
from nodemem.api.types import LabelSelector, LabelSelectorRequirement, OomExposureStatus, OomPolicySpec
from nodemem.controller import events, exposures, pressure, queue, records
from nodemem.controller.client import ApiError, NotHeld
from nodemem.controller.health import HealthServer
from nodemem.controller.queue import Write, WriteQueue
from nodemem.controller.records import Figures, Mark, Table, TmpfsPolicyRecord
from nodemem.controller.staleness import Heartbeats
from nodemem.node.status import ContainerExposure
from nodemem.policy.selectors import selects

GIB = 1 << 30


def body(status: Any = None, **metadata: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"metadata": {"name": "n1", "uid": "u1", "resourceVersion": "7", **metadata}}
    return found if status is None else found | {"status": status}


# Records


def test_report_without_a_status_says_that_nothing_is_known() -> None:
    found = records.report(body())
    assert (found.exposures, found.observed_at, found.figures) == (None, None, Figures(None, None, None))


def test_report_with_no_exposures_is_not_one_that_has_not_said() -> None:
    assert records.report(body({"exposures": []})).exposures == ()


def test_one_exposure_that_makes_no_sense_does_not_cost_the_others() -> None:
    good = {"reasons": [], "severity": "High", "message": "m"}
    found = records.report(body({"exposures": [{"severity": "High"}, good, 7]})).exposures
    assert found is not None
    assert [each.message for each in found] == ["m"]


def test_exposures_counted_but_not_listed_are_omitted_ones() -> None:
    assert records.report(body({"exposures": [], "summary": {"exposed": 3}})).exposures_omitted == 3


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda x: (
            st.lists(x)
            | st.dictionaries(
                st.sampled_from(["status", "spec", "conditions", "exposures", "summary", "memory", "type"]), x
            )
        ),
    )
)
def test_no_content_makes_a_reader_raise(content: Any) -> None:
    for read in (records.report, records.node, records.oom_policy, records.tmpfs_policy):
        read({"metadata": {"name": "n1", "uid": "u1"}, "status": content, "spec": content})


def test_node_record_has_the_controllers_conditions_alone() -> None:
    conditions = [{"type": "Ready", "status": "True"}, {"type": "ShmemPressure", "status": "False", "reason": "r"}]
    assert records.node(body({"conditions": conditions})).marks == {"ShmemPressure": Mark("False", "r")}


# Tables


def table(**versions: str) -> Table[TmpfsPolicyRecord]:
    made: Table[TmpfsPolicyRecord] = Table()
    for name, version in versions.items():
        made.saw(name, TmpfsPolicyRecord(f"uid-{name}", version), 1.0)
    return made


def test_older_event_does_not_replace_what_a_write_answered() -> None:
    made = table(a="20")
    made.saw("a", TmpfsPolicyRecord("uid-a", "19"), 2.0)
    assert made["a"].version == "20"
    made.saw("a", TmpfsPolicyRecord("uid-a", "100"), 3.0)
    assert made["a"].version == "100"


def test_deletion_of_a_former_object_leaves_its_successor() -> None:
    made = table(a="20")
    assert not made.lost("a", "uid-former")
    assert made.lost("a", "uid-a")
    assert made == {}


def test_list_drops_what_it_lacks_but_not_what_came_after_it_began() -> None:
    made = table(old="1", kept="2", replaced="3")
    made.saw("new", TmpfsPolicyRecord("uid-new", "4"), 5.0)
    listed = {"kept": "uid-kept", "replaced": "uid-other", "unseen": "uid-unseen"}
    assert sorted(made.prune(listed, started=4.0)) == ["old", "replaced"]
    assert set(made) == {"kept", "new"}
    assert sorted(made.missing(listed)) == ["replaced", "unseen"]


@pytest.mark.parametrize(
    ("one", "other", "older"),
    [("9", "10", True), ("10", "9", False), ("9", "9", False), ("", "9", False), ("a", "b", False)],
)
def test_versions_compare_as_numbers_or_not_at_all(one: str, other: str, older: bool) -> None:
    assert records.older(one, other) is older


# Staleness: 900 s of silence; the start counts as 540 s of it

NOON = "2026-01-01T12:00:00Z"
WALL = 1767268800.0


def test_node_is_stale_after_three_heartbeats_of_silence() -> None:
    beats = Heartbeats(900, started=0)
    beats.heard("n1", NOON, 100, WALL)
    assert not beats.stale("n1", 1000)
    assert beats.stale("n1", 1001)


def test_same_report_seen_again_is_no_heartbeat() -> None:
    beats = Heartbeats(900, started=0)
    beats.heard("n1", NOON, 100, WALL)
    beats.heard("n1", NOON, 900, WALL + 800)
    assert beats.stale("n1", 1001)
    beats.heard("n1", "2026-01-01T12:16:00Z", 1001, WALL + 960)
    assert not beats.stale("n1", 1002)


def test_report_that_was_old_when_the_controller_came_gets_the_time_of_one_heartbeat() -> None:
    beats = Heartbeats(900, started=10_000)
    beats.heard("n1", NOON, 10_000, WALL + 86_400)
    assert not beats.stale("n1", 10_360)
    assert beats.stale("n1", 10_361)


def test_clock_that_is_wrong_makes_no_node_stale() -> None:
    beats = Heartbeats(900, started=0)
    for number in range(10):
        for name, wall in (("ahead", WALL - 1e6), ("behind", WALL + 1e6)):
            beats.heard(name, f"2026-01-01T12:{number:02}:00Z", number * 300.0, wall)
            assert not beats.stale(name, number * 300.0 + 299)


def test_outage_is_not_held_against_the_nodes() -> None:
    beats = Heartbeats(900, started=0)
    beats.heard("n1", NOON, 0, WALL)
    beats.excuse(5000)
    assert not beats.stale("n1", 5360)
    assert beats.stale("n1", 5361)


def test_node_never_heard_of_is_not_stale() -> None:
    assert not Heartbeats(900, started=0).stale("n1", 1e9)


@pytest.mark.parametrize("text", [None, "", "yesterday"])
def test_report_without_a_readable_time_counts_from_when_it_was_seen(text: str | None) -> None:
    beats = Heartbeats(900, started=0)
    beats.heard("n1", text, 1000, WALL)
    assert not beats.stale("n1", 1900)


# Selectors


@pytest.mark.parametrize(
    ("operator", "values", "with_a", "with_b", "without"),
    [
        ("In", ("a", "c"), True, False, False),
        ("NotIn", ("a", "c"), False, True, True),
        ("Exists", (), True, True, False),
        ("DoesNotExist", (), False, False, True),
    ],
)
def test_expressions_mean_what_kubernetes_means(
    operator: Any, values: tuple[str, ...], with_a: bool, with_b: bool, without: bool
) -> None:
    selector = LabelSelector(match_expressions=(LabelSelectorRequirement("k", operator, values),))
    assert [selects(selector, labels) for labels in ({"k": "a"}, {"k": "b"}, {})] == [with_a, with_b, without]


def test_labels_and_expressions_must_all_hold_and_nothing_selects_all() -> None:
    exists = LabelSelectorRequirement("k", "Exists")
    selector = LabelSelector({"app": "shop"}, (exists,))
    assert selects(selector, {"app": "shop", "k": ""})
    assert not selects(selector, {"app": "shop"})
    assert not selects(selector, {"k": ""})
    assert selects(LabelSelector(), {})


# Node conditions


@pytest.mark.parametrize(
    ("available_gib", "shmem_gib", "former", "status"),
    [
        (5, 30, None, "True"),
        (5, 10, None, "False"),
        (8, 30, None, "False"),
        (8, 30, "True", "True"),
        (10, 30, "True", "False"),
    ],
)
def test_shmem_pressure_is_much_shmem_and_little_left_and_does_not_flap(
    available_gib: int, shmem_gib: int, former: str | None, status: str
) -> None:
    figures = Figures(64 * GIB, available_gib * GIB, shmem_gib * GIB)
    mark = Mark(former, "r") if former else None
    assert pressure.shmem(figures, None, mark, stale=False).status == status


def test_agents_own_word_on_pressure_wins() -> None:
    figures = Figures(64 * GIB, 60 * GIB, GIB)
    assert pressure.shmem(figures, "True", None, stale=False).status == "True"


@pytest.mark.parametrize("figures", [Figures(None, None, None), Figures(64 * GIB, None, GIB)])
def test_pressure_of_unknown_figures_is_unknown(figures: Figures) -> None:
    assert pressure.shmem(figures, None, None, stale=False).status == "Unknown"


def test_conditions_of_a_silent_node_are_unknown() -> None:
    figures = Figures(64 * GIB, GIB, 30 * GIB)
    assert pressure.shmem(figures, None, None, stale=True).status == "Unknown"
    assert pressure.exposed(1, known=True, stale=True).status == "Unknown"
    assert pressure.exposed(0, known=False, stale=False).status == "Unknown"


# The queue


def drain(*plans: list[Write], on_idle: Callable[[], None] = lambda: None) -> WriteQueue:
    async def main() -> WriteQueue:
        made = WriteQueue(on_idle)
        for plan in plans:
            made.plan(plan)
        worker = asyncio.create_task(made.run())
        while made.depth:
            await asyncio.sleep(0)
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
        return made

    return asyncio.run(main())


def writing(key: str, log: list[str], error: Exception | None = None) -> Write:
    async def run() -> None:
        log.append(key)
        if error is not None:
            raise error

    return Write((key,), run)


def test_newer_plan_replaces_the_older_one() -> None:
    log: list[str] = []
    done = drain([writing("a", log), writing("b", log)], [writing("b", log), writing("c", log)])
    assert (log, done.done) == (["b", "c"], 2)


def test_failed_write_waits_before_it_is_planned_again() -> None:
    log: list[str] = []
    asked: list[int] = []

    async def main() -> WriteQueue:
        made = WriteQueue(lambda: asked.append(1))
        worker = asyncio.create_task(made.run())
        for _ in range(3):
            made.plan([writing("a", log, ApiError(503, "later"))])
            while made.depth:
                await asyncio.sleep(0)
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
        return made

    done = asyncio.run(main())
    assert (log, done.errors, len(asked)) == (["a"], 1, 1)
    assert done.next_retry() is not None


def test_servers_retry_after_is_respected() -> None:
    done = drain([writing("a", [], ApiError(429, "slow down", retry_after=50.0))])
    later = done.next_retry()
    assert later is not None
    assert later - done._clock() > 40


def test_write_without_the_lease_is_no_failure() -> None:
    done = drain([writing("a", [], NotHeld())])
    assert (done.errors, done.done, done.next_retry()) == (0, 0, None)


def test_key_that_is_being_written_is_looked_at_again_afterwards() -> None:
    asked: list[int] = []

    async def main() -> None:
        made = WriteQueue(lambda: asked.append(1))
        gate, begun = asyncio.Event(), asyncio.Event()

        async def run() -> None:
            begun.set()
            await gate.wait()

        worker = asyncio.create_task(made.run())
        made.plan([Write(("a",), run)])
        await begun.wait()
        made.plan([Write(("a",), run)])
        assert made.depth == 1
        gate.set()
        while made.depth:
            await asyncio.sleep(0)
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)

    asyncio.run(main())
    assert asked == [1]


def test_pace_is_held() -> None:
    async def main() -> list[float]:
        loop, times = asyncio.get_running_loop(), []
        made = WriteQueue(lambda: None)

        async def run() -> None:
            times.append(loop.time())

        worker = asyncio.create_task(made.run())
        made.plan([Write((str(number),), run) for number in range(20)])
        while made.depth:
            await asyncio.sleep(0.01)
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
        return times

    times = asyncio.run(main())
    assert times[-1] - times[0] >= 18 / queue.WRITES_PER_SECOND


# Events


def change(name: str = "app-0") -> exposures.Change:
    container = ContainerExposure("app", (), "High", None, None, None, None, None, "Wrong one dies.")
    status = OomExposureStatus("n1", (), "High", (container,))
    return exposures.Change(("web", name), None, exposures.Wanted(("web", name), "uid-1", status, None))


def test_news_is_told_once_an_hour() -> None:
    told = events.Told()
    assert not told.again("uid-1", "Appeared", 0.0)
    assert told.again("uid-1", "Appeared", 3000.0)
    assert not told.again("uid-1", "Gone", 3000.0)
    assert not told.again("uid-2", "Appeared", 3000.0)
    assert not told.again("uid-1", "Appeared", 3601.0)


def test_event_is_about_the_pod_and_the_same_news_has_the_same_name() -> None:
    made = events.event(change(), "Appeared", "uid-1", "me", 1.5)
    assert made["regarding"]["uid"] == "uid-1"
    assert made["note"] == "app: Wrong one dies."
    assert made["metadata"]["name"] == events.event(change(), "Appeared", "uid-1", "you", 1.5)["metadata"]["name"]
    assert made["metadata"]["name"] != events.event(change(), "Gone", "uid-1", "me", 1.5)["metadata"]["name"]


def test_name_of_an_event_is_valid_for_the_longest_pod_name() -> None:
    name = events.event(change("a" * 229 + ".b" + "c" * 20), "Appeared", "uid-1", "me", 1.5)["metadata"]["name"]
    assert len(name) <= 253
    assert ".." not in name


# Health


@pytest.mark.parametrize(("age", "code"), [(0.0, 200), (61.0, 503)])
def test_loop_that_does_not_turn_is_not_healthy(age: float, code: int) -> None:
    import time

    server = HealthServer(("127.0.0.1", 0), lambda: time.monotonic() - age, lambda: True, Exposition)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/healthz", timeout=10) as answer:
            found = answer.status
    except urllib.error.HTTPError as error:
        with error:
            found = error.code
    finally:
        server.close()
    assert found == code


def test_default_spec_of_a_policy_is_imminent_at_90_percent() -> None:
    assert exposures.imminent_percent(OomPolicySpec()) == 90
    assert exposures.imminent_percent(OomPolicySpec(imminent_at="75%")) == 75
