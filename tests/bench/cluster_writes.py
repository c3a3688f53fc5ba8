"""``python -m bench.cluster_writes``: how often an agent writes, how much, and how soon it tells of a leak.

A node made of values (``bench.cluster_node``) lives through a day in each of four regimes, in the time that it takes to
compute it: the agent's own report, cadence and publishing code decide on a clock that jumps from scan to scan. Status 1
if a budget is broken.
"""

import argparse
import random
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any, cast

from bench.cluster_node import GIB, MIB, ModelNode, Tmpfs
from nodemem.agent.bounded import encoded_bytes
from nodemem.agent.client import Client
from nodemem.agent.log import Log
from nodemem.agent.metrics import Counters
from nodemem.agent.publisher import Publisher
from nodemem.node.status import ExposureStatus, ProcessRef

SCAN_SECONDS, LOOK_SECONDS = 15, 5
"""A look at the figures, and how often the publisher wakes between two of them."""

LEAK_BYTES_PER_SECOND = 3 * MIB
LEAK_SHOWS_BYTES = 32 * MIB
"""More in a tmpfs than before it began to leak, so that a person sees it."""

MOST_AN_HOUR = {"idle": (15.0, 12.5), "growing": (20.0, 15.0), "churning": (30.0, 20.0), "flapping": (20.0, 15.0)}
"""Writes an hour in each regime: must, and aim. The project's budget is that of the idle one."""

MOST_BYTES = (16 * 1024, 8 * 1024)
MOST_LEAK_SECONDS = 60.0

Change = Callable[[float], None]


@dataclass(slots=True)
class Written:
    at: float
    status: dict[str, Any]

    @property
    def size(self) -> int:
        return encoded_bytes(self.status)

    def used_bytes(self, device: str) -> int:
        return max((each["usedBytes"] for each in self.status["tmpfs"] if each["device"] == device), default=0)


@dataclass(slots=True)
class Recorder:
    """Takes what the publisher would send, and answers as a server does that has everything."""

    clock: Callable[[], float]
    written: list[Written] = field(default_factory=list)

    def get(self, path: str) -> Any:
        return {"metadata": {"uid": path}}

    def apply(self, path: str, body: Any, *, manager: str) -> Any:
        if path.endswith("/status"):
            self.written.append(Written(self.clock(), body["status"]))


class Day:
    """One agent's time; ``pass_time`` scans, lets the regime change the node before, and publishes what is due."""

    def __init__(self, node: ModelNode, change: Change, seed: int = 0) -> None:
        self.node = node
        self.now = 0.0
        self._change = change
        self._recorder = Recorder(lambda: self.now)
        self._publisher = Publisher(
            cast(Client, self._recorder),
            "node",
            Log(lambda _: None),
            Counters(),
            clock=lambda: self.now,
            chance=random.Random(seed).random,
        )

    @property
    def written(self) -> list[Written]:
        return self._recorder.written

    def pass_time(self, seconds: float, also: Change = lambda _: None) -> None:
        end = self.now + seconds
        while self.now < end:
            if self.now % SCAN_SECONDS == 0:
                self._change(self.now)
                also(self.now)
                self._publisher.offer(self.node.status(self.now))
            if self._publisher.rest_seconds() == 0:
                self._publisher.step()
            self.now += LOOK_SECONDS

    def seconds_to_a_leak(self, tmpfs: Tmpfs) -> float:
        """From its begin to the write that shows it, half an hour at most; then it is gone again."""
        begun, before, written = self.now, tmpfs.used_bytes, len(self.written)

        def leak(now: float) -> None:
            tmpfs.used_bytes = before + int((now - begun) * LEAK_BYTES_PER_SECOND)

        seen = None
        while seen is None and self.now - begun < 1800:
            self.pass_time(SCAN_SECONDS, leak)
            shows = (
                each.at for each in self.written[written:] if each.used_bytes(tmpfs.device) >= before + LEAK_SHOWS_BYTES
            )
            seen = next(shows, None)
        tmpfs.used_bytes = before
        return (self.now if seen is None else seen) - begun


def idle(node: ModelNode) -> Change:
    """Page cache and anonymous memory never stand quite still, a log gets longer."""
    dice = random.Random(1)
    anonymous, cache = node.anonymous_bytes, node.page_cache_bytes

    def change(now: float) -> None:
        node.anonymous_bytes = anonymous + dice.randrange(-100, 100) * MIB
        node.page_cache_bytes = cache + dice.randrange(-200, 200) * MIB
        node.tmpfs["/run"].used_bytes += 4096

    return change


def growing(node: ModelNode) -> Change:
    """/run takes 3 MiB a second until it is full, and is emptied then."""
    run, rest = node.tmpfs["/run"], idle(node)

    def change(now: float) -> None:
        rest(now)
        run.used_bytes += SCAN_SECONDS * LEAK_BYTES_PER_SECOND
        if run.used_bytes > run.size_bytes:
            run.used_bytes = GIB

    return change


def churning(node: ModelNode) -> Change:
    """Every 20 seconds a pod goes and another one comes, with up to 700 MiB in its tmpfs and its processes."""
    dice, rest = random.Random(2), idle(node)
    number = len(node.pods)

    def change(now: float) -> None:
        nonlocal number
        rest(now)
        while number < 110 + now / 20:
            # The first ten stay.
            uid = dice.choice([*node.pods][10:])
            node.remove_pod(uid)
            node.add_pod(number).shmem_bytes = dice.randrange(300) * MIB
            number += 1

    return change


def flapping(node: ModelNode) -> Change:
    """A cache swings by more than is worth a write, so does anonymous memory; an exposure is imminent now and then."""
    dice, rest = random.Random(3), idle(node)
    pod = next(iter(node.pods.values()))
    cache, usual = (
        node.cache_of(pod),
        ExposureStatus(
            name="application",
            reasons=("TmpfsHeld",),
            severity="High",
            limit_bytes=2 * GIB,
            usage_bytes=GIB,
            predicted_victim=ProcessRef(5740, "sh", MIB),
            largest=ProcessRef(58406, "java", 200 * MIB),
            mitigation=None,
            message="Most of the limit is tmpfs: killing frees nothing.",
            container_id=pod.containers[1],
            pod_name=pod.name,
            pod_namespace=pod.namespace,
            pod_uid=pod.uid,
        ),
    )
    assert cache is not None

    def change(now: float) -> None:
        rest(now)
        cache.used_bytes = dice.choice((100, 180)) * MIB
        node.anonymous_bytes = dice.choice((16, 20)) * GIB
        severity = dice.choice(("High", "Imminent"))
        node.exposures = (ExposureStatus(**{**_fields(usual), "severity": severity}),)

    return change


def _fields(of: ExposureStatus) -> dict[str, Any]:
    return {name: getattr(of, name) for name in ExposureStatus.__dataclass_fields__}


REGIMES = {"idle": idle, "growing": growing, "churning": churning, "flapping": flapping}


@dataclass(frozen=True, slots=True)
class Measured:
    regime: str
    an_hour: float
    worst_hour: int
    largest: int
    usual: float
    leaks: tuple[float, ...]


def measure(regime: str, hours: float, leaks: int) -> Measured:
    """A time of the regime alone, then leaks in the quiet tmpfs of pods that stay, each an hour after the one before.

    The tmpfs holds half a GiB to 8 GiB: what is large must not hide that it grows.
    """
    node = ModelNode()
    day = Day(node, REGIMES[regime](node))
    day.pass_time(hours * 3600)
    times = [each.at for each in day.written]
    counts = [sum(1 for at in times if hour * 3600 <= at < (hour + 1) * 3600) for hour in range(int(hours))]
    sizes = [each.size for each in day.written]
    quiet = [cache for pod in [*node.pods.values()][1:10] if (cache := node.cache_of(pod)) is not None]
    found = []
    for number in range(leaks):
        cache = quiet[number % len(quiet)]
        cache.size_bytes, cache.used_bytes = 16 * GIB, (512 * MIB, 2 * GIB, 8 * GIB)[number % 3]
        day.pass_time(3600 + 25 * number)
        found.append(day.seconds_to_a_leak(cache))
    return Measured(
        regime, len(times) / hours, max(counts, default=len(times)), max(sizes), statistics.median(sizes), tuple(found)
    )


def print_table(measured: list[Measured]) -> bool:
    """True if every budget is kept."""
    print(f"{'regime':<12}{'writes/h':>10}{'worst h':>9}{'must':>6}{'aim':>6}{'bytes':>9}{'most':>8}", end="")
    print(f"{'leak seen after s':>21}")
    kept = True
    for each in measured:
        must, aim = MOST_AN_HOUR[each.regime]
        over = [
            words
            for words, broken in (
                ("writes", each.an_hour > must),
                ("bytes", each.largest > MOST_BYTES[0]),
                ("leak", max(each.leaks, default=0) > MOST_LEAK_SECONDS),
            )
            if broken
        ]
        kept = kept and not over
        leaks = f"{statistics.median(each.leaks):.0f}, at most {max(each.leaks):.0f}" if each.leaks else ""
        mark = f"  OVER: {', '.join(over)}" if over else ""
        if not mark and (each.an_hour > aim or each.usual > MOST_BYTES[1]):
            mark = "  above aim"
        print(
            f"{each.regime:<12}{each.an_hour:>10.1f}{each.worst_hour:>9}{must:>6.0f}{aim:>6.1f}{each.usual:>9.0f}"
            f"{each.largest:>8}{leaks:>21}{mark}"
        )
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.cluster_writes", description=__doc__)
    parser.add_argument("--hours", type=float, default=24.0, help="of each regime (default: 24)")
    parser.add_argument("--leaks", type=int, default=6, help="that are looked for in each (default: 6)")
    options = parser.parse_args()
    with ProcessPoolExecutor(2) as pool:
        found = list(pool.map(measure, REGIMES, [options.hours] * 4, [options.leaks] * 4))
    return 0 if print_table(found) else 1


if __name__ == "__main__":
    sys.exit(main())
