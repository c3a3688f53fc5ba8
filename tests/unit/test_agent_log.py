"""What the agent says: once, and when it is over."""

import json
from collections.abc import Callable

import pytest

from nodemem.agent.client import Backoff
from nodemem.agent.kills import event
from nodemem.agent.log import Log
from nodemem.agent.pods import Pod
from nodemem.agent.reports import OwnReport, OwnReportTable, parse
from unit.agent_statuses import kill


def collected() -> tuple[Log, list[dict[str, object]], list[float]]:
    lines: list[dict[str, object]] = []
    now = [0.0]
    write: Callable[[str], object] = lambda text: lines.append(json.loads(text))  # noqa: E731
    return Log(write, clock=lambda: now[0]), lines, now


def test_an_outage_of_a_day_is_two_lines_and_one_for_each_hour() -> None:
    log, lines, now = collected()
    for second in range(0, 86400, 15):
        now[0] = second
        log.problem("API server", "connection refused")
    log.well("API server")
    log.well("API server")
    assert len(lines) == 24 + 1
    assert lines[-1] | {"time": 0} == {
        "time": 0,
        "level": "info",
        "message": "API server: works again",
        "failures": 5760,
        "seconds": 86385,
    }


def test_other_words_are_said_at_once() -> None:
    log, lines, _ = collected()
    log.problem("API server", "connection refused")
    log.problem("API server", "forbidden")
    log.problem("scan", "no meminfo")
    assert [line["message"] for line in lines] == [
        "API server: connection refused",
        "API server: forbidden",
        "scan: no meminfo",
    ]
    assert log.problems() == ["API server: forbidden", "scan: no meminfo"]


def test_backoff_doubles_with_jitter_and_obeys_the_server() -> None:
    backoff = Backoff(1.0, 30.0, chance=lambda: 1.0)
    assert [backoff.failed() for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    assert backoff.failed(retry_after=45.0) == 45.0
    assert backoff.failed(retry_after=86400.0) == 300.0
    backoff.succeeded()
    assert backoff.failed() == 1
    assert Backoff(chance=lambda: 0.0).failed() == 0.5


def test_an_event_has_the_same_name_each_time_and_fits_the_api() -> None:
    pod = Pod("shop", "w" * 253, "uid-1", "uid-1", "7", "Guaranteed", False, ())
    made = event(kill(1, key="AB35023d-5c46:31823.1", message="ü\x1b" * 2000), pod, "app", "n1")
    name = made["metadata"]["name"]
    assert name == event(kill(1, key="AB35023d-5c46:31823.1"), pod, "app", "n1")["metadata"]["name"]
    assert len(name) == 253
    assert name.endswith(".oom-ab35023d-5c46-31823.1")
    assert len(made["message"].encode()) <= 1000
    assert made["involvedObject"]["fieldPath"] == "spec.containers{app}"
    assert made["reason"] == "WrongOomVictim"


def own(uid: str = "u", generation: int = 1, node: str = "node-uid", **spec: object) -> dict[str, object]:
    return {
        "kind": "MemoryReport",
        "metadata": {
            "uid": uid,
            "resourceVersion": "5",
            "generation": generation,
            "ownerReferences": [{"kind": "Node", "uid": node}],
        },
        "spec": spec,
        "status": {
            "conditions": [
                {"type": "Complete", "status": "True", "reason": "AllRead", "message": "m", "lastTransitionTime": "t"}
            ]
        },
    }


def test_own_writes_of_status_change_nothing_and_all_else_is_told() -> None:
    told: list[OwnReport | None] = []
    table = OwnReportTable(told.append)
    table.replace([])
    table.change("ADDED", parse(own()))
    table.change("MODIFIED", parse(own()))
    table.change("MODIFIED", parse(own(generation=2, tmpfsLimits=[])))
    table.change("MODIFIED", parse(own(generation=2, node="another")))
    table.change("DELETED", parse(own(generation=2, node="another")))
    assert [each and (each.generation, each.owner_uids) for each in told] == [
        None,
        (1, ("node-uid",)),
        (2, ("node-uid",)),
        (2, ("another",)),
        None,
    ]
    assert told[1] is not None
    assert told[1].conditions["Complete"].last_transition_time == "t"


@pytest.mark.parametrize("found", [{}, {"kind": "Node", "metadata": {}}, {"metadata": {"uid": "x"}}])
def test_other_objects_are_left_as_they_are(found: dict[str, object]) -> None:
    assert parse(found) is found
