"""The loop's start: it writes nothing before its tables hold what one LIST has, and asks for that LIST once."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, cast

import pytest

from nodemem.controller import reconcile
from nodemem.controller.client import Api
from nodemem.controller.reconcile import Reconciler
from nodemem.controller.state import PATHS, Options

Object = dict[str, Any]


def item(name: str, version: int = 1, uid: str | None = None) -> Object:
    return {"metadata": {"name": name, "uid": uid or f"uid-{name}", "resourceVersion": str(version)}}


class Lists:
    """An API server of which only LISTs are asked."""

    def __init__(self) -> None:
        self.reports: dict[str, Object] = {}
        self.asked: list[str] = []
        self.last_answer = 0.0

    async def pages(self, path: str, *, metadata_only: bool) -> AsyncIterator[Mapping[str, Any]]:
        self.asked.append(path)
        for each in list(self.reports.values()) if path == PATHS["reports"] else ():
            yield each


@pytest.fixture
def lists() -> Lists:
    return Lists()


@pytest.fixture
def loop(lists: Lists) -> Reconciler:
    return Reconciler(cast(Api, lists), Options(), "test")


def caught_up(loop: Reconciler) -> bool:
    return asyncio.run(loop._caught_up())


def test_events_of_thousands_of_objects_are_waited_for_with_one_list(lists: Lists, loop: Reconciler) -> None:
    lists.reports = {name: item(name) for name in map(str, range(1000))}
    assert not caught_up(loop)
    for name in lists.reports:
        loop.saw("reports", None, lists.reports[name])
        if name == "500":
            assert not caught_up(loop)
    assert caught_up(loop)
    assert lists.asked.count(PATHS["reports"]) == 1


def test_what_was_deleted_after_the_list_is_found_out_by_another_one(
    lists: Lists, loop: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists.reports = {"a": item("a"), "b": item("b")}
    loop.saw("reports", None, item("a"))
    assert not caught_up(loop)
    del lists.reports["b"]
    assert not caught_up(loop)
    monkeypatch.setattr(reconcile, "STALLED_SECONDS", 0.0)
    assert caught_up(loop)


def test_a_report_that_the_former_holder_wrote_last_has_to_be_heard_of(lists: Lists, loop: Reconciler) -> None:
    lists.reports = {"a": item("a", 7)}
    loop.saw("reports", None, item("a", 6))
    assert not caught_up(loop)
    loop.saw("reports", "MODIFIED", item("a", 8))
    assert caught_up(loop)


def test_who_gets_the_lease_again_lists_again(lists: Lists, loop: Reconciler) -> None:
    assert caught_up(loop)
    loop.lease(False)
    loop.lease(True)
    lists.reports = {"a": item("a", 7)}
    assert not caught_up(loop)
