"""How often an agent writes, how much, and how soon it tells of a leak: its own code on a clock that jumps.

A short form of ``make bench-writes``.
"""

import random
from typing import Any, cast

import pytest

from bench.cluster_node import GIB, ModelNode
from bench.cluster_writes import REGIMES, Day, Recorder
from nodemem.agent.client import Backoff, Client, Unreachable
from nodemem.agent.log import Log
from nodemem.agent.metrics import Counters
from nodemem.agent.publisher import Publisher
from unit.agent_statuses import status

KIB = 1024


@pytest.mark.parametrize("regime", REGIMES)
def test_a_leak_is_seen_within_a_minute_and_reports_stay_few_and_small(regime: str) -> None:
    node = ModelNode()
    day = Day(node, REGIMES[regime](node))
    day.pass_time(3600)
    first_hour = len(day.written)
    cache = next(found for pod in [*node.pods.values()][1:10] if (found := node.cache_of(pod)) is not None)
    cache.size_bytes, cache.used_bytes = 16 * GIB, 8 * GIB
    day.pass_time(1800)
    assert day.seconds_to_a_leak(cache) <= 60
    # The first hour has the store of writes out of turn in it.
    assert first_hour <= {"idle": 15}.get(regime, 30)
    assert len(day.written) - first_hour <= 20
    assert max(each.size for each in day.written) <= 7.2 * KIB


def test_the_report_of_110_pods_names_what_holds_most_of_it() -> None:
    node = ModelNode()
    day = Day(node, REGIMES["idle"](node))
    day.pass_time(15)
    (written,) = day.written
    assert (len(node.pods), len(node.tmpfs)) == (110, 294)
    assert written.size <= 6.5 * KIB
    listed, omitted = written.status["tmpfs"], written.status["omitted"]
    assert len(listed) + omitted["tmpfs"] == 294
    assert len(written.status["containers"]) + omitted["containers"] == 330
    largest = sorted((each.used_bytes for each in node.tmpfs.values()), reverse=True)
    assert [each["usedBytes"] for each in listed] == largest[: len(listed)]
    assert len(listed[0]["largest"]) == 5


class Down(Recorder):
    """An API server that is away until ``back``."""

    back = 0.0

    def get(self, path: str) -> Any:
        self._answer()
        return super().get(path)

    def apply(self, path: str, body: Any, *, manager: str) -> Any:
        self._answer()
        return super().apply(path, body, manager=manager)

    def _answer(self) -> None:
        if self.clock() < self.back:
            raise Unreachable(0, "refused")


def test_after_an_outage_agents_come_one_by_one_and_their_heartbeats_spread() -> None:
    now = 0.0
    server = Down(lambda: now)
    agents = []
    for number in range(100):
        dice = random.Random(number).random
        publisher = Publisher(
            cast(Client, server),
            f"node-{number}",
            Log(lambda _: None),
            Counters(),
            backoff=Backoff(chance=dice),
            clock=lambda: now,
            chance=dice,
        )
        publisher.offer(status())
        agents.append(publisher)

    def pass_time(seconds: int) -> list[float]:
        nonlocal now
        written = len(server.written)
        for _ in range(0, seconds, 2):
            for each in agents:
                if each.rest_seconds() == 0:
                    each.step()
            now += 2
        return [each.at for each in server.written[written:]]

    assert len(pass_time(2)) == 100
    pass_time(600)
    server.back = now + 600
    assert pass_time(600) == []
    back = pass_time(40)
    assert len(back) == 100
    assert max(back.count(at) for at in set(back)) <= 20
    heartbeats = pass_time(300)
    assert 100 <= len(heartbeats) <= 150
    assert max(heartbeats.count(at) for at in set(heartbeats)) <= 8
