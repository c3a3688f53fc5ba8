"""``python -m bench.cluster_agents KUBECONFIG``: the agents of thousands of nodes in one process.

Each has the agent's own publisher, with its cadence, jitter and backoff, and a status made by the agent's own code.
Some of them share a connection. What they watch is shared, too: one watch tells all of them of their limits, which they
answer in two writes, as the enforcer does. Their clock runs at a speed that is told, 0 at first.

A command a line on standard input, as JSON, and an answer a line on standard output.
"""

import heapq
import json
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from bench.cluster_node import GIB, MIB, ModelNode
from nodemem.agent import reports
from nodemem.agent.client import ApiError, Backoff, Client
from nodemem.agent.config import Server, from_kubeconfig
from nodemem.agent.log import Log
from nodemem.agent.metrics import Counters
from nodemem.agent.publisher import Publisher
from nodemem.agent.reports import GROUP_PATH, OwnReport
from nodemem.api.convert import read
from nodemem.api.types import TmpfsLimit
from nodemem.node.status import LimitStatus, ReportStatus
from nodemem.node.units import timestamp

WORKERS = 4
SCAN_SECONDS, SOON_SECONDS = 60.0, 15.0
_KINDS, _MOMENTS = 6, 4


class Clock:
    """Monotonic time at a speed that can be changed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._speed = 0.0
        self._real = time.monotonic()
        self._time = 1000.0

    def __call__(self) -> float:
        with self._lock:
            return self._time + (time.monotonic() - self._real) * self._speed

    def run(self, speed: float) -> None:
        now = self()
        with self._lock:
            self._time, self._real, self._speed = now, time.monotonic(), speed


def moments() -> list[list[ReportStatus]]:
    """Some nodes, each at some moments: figures and their order differ, nothing moved that is worth a write."""
    found = []
    for kind in range(_KINDS):
        node = ModelNode(kind)
        used = {path: each.used_bytes for path, each in node.tmpfs.items()}
        dice = random.Random(kind)
        statuses = []
        for moment in range(_MOMENTS):
            for path, each in node.tmpfs.items():
                each.used_bytes = max(0, used[path] + dice.randrange(-15, 15) * MIB)
            node.anonymous_bytes = 20 * GIB + dice.randrange(-100, 100) * MIB
            statuses.append(node.status(60.0 * moment))
        found.append(statuses)
    return found


class Agent:
    """One node's: what it offers, and what it says of its limits."""

    def __init__(self, name: str, number: int, client: Client, clock: Clock, counters: Counters, log: Log) -> None:
        self.name = name
        self.number = number
        self.due = 0.0
        self._clock = clock
        self.publisher = Publisher(client, name, log, counters, clock=clock)
        self._generation, self._answered = 1, 1
        self._wanted: tuple[TmpfsLimit, ...] = ()
        self._limits: tuple[LimitStatus, ...] = ()

    def told(self, report: OwnReport) -> bool:
        """Whether its spec is news."""
        if report.generation == self._generation:
            return False
        self._generation = report.generation
        self._wanted = tuple(read(TmpfsLimit, each) for each in report.spec.get("tmpfsLimits") or ())
        return True

    def tick(self, kinds: list[list[ReportStatus]]) -> float:
        """Look, and publish what is due; seconds until the next look."""
        now = self._clock()
        self._enforce()
        status = kinds[self.number % _KINDS][int(now / SCAN_SECONDS) % _MOMENTS]
        self.publisher.offer(
            replace(
                status,
                observed_at=timestamp(1_900_000_000 + now),
                limits=self._limits,
                observed_generation=self._answered,
            )
        )
        if self.publisher.rest_seconds() == 0:
            self.publisher.step()
        return SCAN_SECONDS if self._answered == self._generation else SOON_SECONDS

    def _enforce(self) -> None:
        """What is found goes on record first; once that is in the cluster, the limit holds."""
        if self._answered == self._generation:
            return
        recorded = self.publisher.written_limits() or ()
        before = {each.mount_point: each for each in self._limits}
        found = []
        for limit in self._wanted:
            old = before.get(limit.mount_point)
            original = old.original_bytes if old is not None and old.original_bytes else 13 * GIB
            said = LimitStatus(
                mount_point=limit.mount_point,
                requested_bytes=limit.size_bytes,
                applied_bytes=original if old is None else old.applied_bytes,
                original_bytes=original,
                state="Deferred",
                reason="Recorded",
                policy=limit.policy,
                on_delete=limit.on_delete,
                target_bytes=limit.size_bytes,
                device="0:6",
                instance="0d9f/0:6/1",
            )
            if any((each.mount_point, each.target_bytes) == (said.mount_point, said.target_bytes) for each in recorded):
                said = replace(said, state="InSync", reason=None, applied_bytes=limit.size_bytes)
            found.append(said)
        self._limits = tuple(found)
        if all(each.state == "InSync" for each in found):
            self._answered = self._generation


class Worker:
    """Gives its agents their turns, over one connection."""

    def __init__(self, server: Server, kinds: list[list[ReportStatus]], clock: Clock) -> None:
        self.client = Client(server)
        self._kinds = kinds
        self._clock = clock
        self._lock = threading.Lock()
        self._told: list[Agent] = []
        self._queue: list[tuple[float, int, Agent]] = []

    def add(self, agent: Agent) -> None:
        agent.tick(self._kinds)
        if agent.publisher.written_limits() is None:
            raise SystemExit(f"bench: the report of {agent.name} could not be written")
        self._plan(agent, self._clock() + random.random() * SCAN_SECONDS)

    def tell(self, agent: Agent) -> None:
        """It has other limits: from another thread."""
        with self._lock:
            self._told.append(agent)

    def run(self) -> None:
        while True:
            with self._lock:
                told, self._told = self._told, []
            for agent in told:
                self._plan(agent, self._clock())
            while not self._told and self._queue and self._queue[0][0] <= self._clock():
                at, _, agent = heapq.heappop(self._queue)
                if at == agent.due:
                    self._plan(agent, max(at, self._clock() - 1) + agent.tick(self._kinds))
            time.sleep(0.01)

    def _plan(self, agent: Agent, at: float) -> None:
        agent.due = at
        heapq.heappush(self._queue, (at, agent.number, agent))


class Fleet:
    """All agents."""

    def __init__(self, kubeconfig: str) -> None:
        self._server = from_kubeconfig(kubeconfig)
        self.clock = Clock()
        self.counters = Counters()
        self._log = Log()
        kinds = moments()
        self._workers = [Worker(self._server, kinds, self.clock) for _ in range(WORKERS)]
        self._agents: dict[str, Agent] = {}

    def join(self, count: int) -> None:
        """More nodes, whose agents have written their first report. The clock has to stand still."""
        first = len(self._agents)
        with ThreadPoolExecutor(WORKERS) as pool:
            for made in pool.map(self._join, range(WORKERS), [first] * WORKERS, [first + count] * WORKERS):
                self._agents.update(made)

    def _join(self, at: int, first: int, end: int) -> dict[str, Agent]:
        worker = self._workers[at]
        made = {}
        for number in range(first + (at - first) % WORKERS, end, WORKERS):
            name = f"node-{number:05d}"
            labels = {"kubernetes.io/hostname": name, "pool": f"pool-{number % 4}", "kubernetes.io/arch": "amd64"}
            body = {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": name, "labels": labels},
                "status": {"capacity": {"cpu": "16", "memory": "65536Mi", "pods": "110"}},
            }
            worker.client.create("/api/v1/nodes", body, manager="kubelet")
            made[name] = Agent(name, number, worker.client, self.clock, self.counters, self._log)
            worker.add(made[name])
        return made

    def start(self) -> None:
        """From here on each connection is used by its worker alone, but for ``join`` while the clock stands still."""
        for worker in self._workers:
            threading.Thread(target=worker.run, daemon=True).start()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        client, backoff, version = Client(self._server), Backoff(), ""
        while True:
            try:
                version = version or self._list(client)
                query = {"resourceVersion": version, "allowWatchBookmarks": "true"}
                for _, (name, report) in client.watch(GROUP_PATH, query, silence_seconds=120, hook=_named):
                    version = report.resource_version
                    self._heard(name, report)
            except ApiError as error:
                version = "" if error.status == 410 else version
                time.sleep(backoff.failed())

    def _list(self, client: Client) -> str:
        query = {"limit": "500"}
        while True:
            answer = client.request("GET", GROUP_PATH, query=query, hook=_named)
            for name, report in answer["items"]:
                self._heard(name, report)
            query["continue"] = answer["metadata"].get("continue", "")
            if not query["continue"]:
                return str(answer["metadata"]["resourceVersion"])

    def _heard(self, name: str, report: OwnReport) -> None:
        agent = self._agents.get(name)
        if agent is not None and agent.told(report):
            self._workers[agent.number % WORKERS].tell(agent)


def _named(found: dict[str, Any]) -> Any:
    """A MemoryReport as its name and what the agent keeps of it."""
    parsed = reports.parse(found)
    return (found["metadata"].get("name"), parsed) if isinstance(parsed, OwnReport) else found


def main() -> int:
    fleet = Fleet(sys.argv[1])
    fleet.start()
    for line in sys.stdin:
        command = json.loads(line)
        if "join" in command:
            fleet.join(command["join"])
        if "speed" in command:
            fleet.clock.run(command["speed"])
        with fleet.counters.lock:
            answer = {"writes": dict(fleet.counters.writes), "failures": fleet.counters.write_failures}
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
