"""The agent: scans at two cadences, and hands what it finds to the publisher and to the metrics."""

import gc
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from nodemem import __version__
from nodemem.agent import exposures, kills, metrics
from nodemem.agent.changes import Cadence
from nodemem.agent.client import Client
from nodemem.agent.config import Server
from nodemem.agent.enforcer import Enforcer
from nodemem.agent.kills import Kills, Seen
from nodemem.agent.log import Log
from nodemem.agent.mitigator import Mitigator
from nodemem.agent.pods import PodTable
from nodemem.agent.publisher import Publisher
from nodemem.agent.reclaim import Reclaimer
from nodemem.agent.reports import GROUP_PATH, OwnReportTable
from nodemem.agent.server import HealthServer
from nodemem.agent.watch import Watch
from nodemem.kernel.host import Host
from nodemem.node import report
from nodemem.node.snapshot import Collector, Snapshot, Thrift
from nodemem.node.status import ReportStatus
from nodemem.node.trends import History

POD_LIST_SECONDS = 10.0
"""So long the first report waits for the names of the pods."""

TIDY_SCANS = 10
"""After so many a full collection. It also gives back what Python keeps for later of what scans made and dropped, up to
two thousand tuples of each length."""

END_SECONDS = 3
"""A scan that takes longer when the agent is told to end is given up."""


@dataclass(frozen=True, slots=True)
class Intervals:
    """``refresh_seconds``: the cheap figures; ``scan_seconds``: everything."""

    refresh_seconds: float = 15.0
    scan_seconds: float = 60.0
    cadence: Cadence = field(default_factory=Cadence)


class Agent:
    """``run`` until ``stop`` is set, by SIGTERM or SIGINT once ``handle_signals`` was called."""

    def __init__(
        self,
        node_name: str,
        server: Server,
        *,
        host: Host | None = None,
        listen: tuple[str, int] = ("", 0),
        intervals: Intervals | None = None,
        log: Log | None = None,
        enforce: bool = False,
        mitigate: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``enforce``: tmpfs may be resized, and the node told to clean itself. ``mitigate``: oom_score_adj may be set.
        Raises OSError when ``listen`` is taken."""
        self.stop = threading.Event()
        self._host = host or Host()
        self._node_name = node_name
        self._intervals = intervals or Intervals()
        self._log = log or Log()
        self._clock = clock
        self._counters = metrics.Counters(started_at=time.time())
        self._collector = Collector(self._host, Thrift())
        self._history = History()
        self._kills: Kills | None = None
        self._untold: list[Seen] = []
        self._found = exposures.Found()
        self._status: ReportStatus | None = None
        self._scanned_at = clock()
        self._broken = False
        self._pods = PodTable()
        self._publisher = Publisher(
            self._client(server), node_name, self._log, self._counters, cadence=self._intervals.cadence
        )
        self._own = OwnReportTable(self._publisher.report_changed)
        self._pod_watch = Watch(
            self._client(server), "/api/v1/pods", f"spec.nodeName={node_name}", self._pods, self._log
        )
        self._own_watch = Watch(
            self._client(server),
            GROUP_PATH,
            f"metadata.name={node_name}",
            self._own,
            self._log,
            from_cache=False,  # the sizes found by the agent before this one are in it
        )
        self._enforcer = Enforcer(self._host, self._log, enforce=enforce, clock=clock)
        self._mitigator = Mitigator(self._host, self._log, mitigate=mitigate, clock=clock)
        self._reclaimer = Reclaimer(self._host, self._log, enforce=enforce, clock=clock)
        self.health = HealthServer(
            listen,
            metrics=lambda open_metrics: metrics.render(self._status, self._counters, open_metrics),
            healthy=self._why_unhealthy,
            ready=self._why_not_ready,
        )

    def handle_signals(self) -> None:
        signal.signal(signal.SIGALRM, lambda *_: os._exit(0))

        def end(*_: object) -> None:
            self.stop.set()
            signal.alarm(END_SECONDS)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)

    def run(self) -> bool:
        """False if it ended because something in it broke."""
        self._log.info("agent started", version=__version__, node=self._node_name, port=self.health.port)
        self._open_log()
        threads = (
            ("health", self.health.serve_forever),
            ("publisher", lambda: self._publisher.run(self.stop)),
            ("pods", lambda: self._pod_watch.run(self.stop)),
            ("report", lambda: self._own_watch.run(self.stop)),
        )
        for name, work in threads:
            threading.Thread(target=self._guarded, args=(name, work), name=name, daemon=True).start()
        try:
            self._scan_until_stopped()
        finally:
            # The other threads wait for answers of a server that may be gone: they end with the process.
            self.stop.set()
            self.health.shutdown()
            self.health.server_close()
            if self._kills is not None:
                self._kills.close()
            self._log.info("agent stopped")
        return not self._broken

    def _client(self, server: Server) -> Client:
        return Client(server, counted=self._counters.request)

    def _guarded(self, name: str, work: Callable[[], None]) -> None:
        """A thread that ends by an error ends the agent: half of one would look alive."""
        try:
            work()
        except Exception:
            self._broken = True
            self.stop.set()
            raise

    def _open_log(self) -> None:
        try:
            facts = self._collector.facts()
            self._kills = Kills(self._host, self._collector.cgroup_root, facts.release)
        except OSError as error:
            self._log.problem("OOM kills", f"/dev/kmsg can't be read, so kills are not seen: {error.strerror}")

    def _scan_until_stopped(self) -> None:
        snapshot: Snapshot | None = None
        next_full = next_any = self._clock()
        while not self.stop.is_set():
            now = self._clock()
            if now < next_any:
                self.stop.wait(min(next_any - now, 1.0))
                continue
            full = snapshot is None or now >= next_full
            begun = time.perf_counter()
            try:
                if full:
                    snapshot = None  # two whole ones at once would be the peak of this process
                    snapshot = self._collector.collect(full=False)
                else:
                    assert snapshot is not None
                    snapshot = self._collector.refresh(snapshot)
                self._tell(snapshot, full=full)
            except OSError as error:
                self._counters.scan_failures += 1
                self._log.problem("scan", str(error))
            else:
                self._log.well("scan")
                self._count("full" if full else "refresh", time.perf_counter() - begun)
            # From now, not from when it was due: after a standstill there is nothing to catch up with. And with a rest
            # as long as the work: on a node in distress the agent must not take a whole core.
            ended = self._clock()
            rested = ended + (ended - now)
            if full:
                next_full = max(now + self._intervals.scan_seconds, rested)
            next_any = max(min(now + self._intervals.refresh_seconds, next_full), rested)

    def _tell(self, snapshot: Snapshot, *, full: bool) -> None:
        if self._status is None:
            self._wait_for_names()
        self._pods.set_capacity(snapshot.memory.partition.total_bytes)
        report.observe(self._history, snapshot, self._clock())
        names = self._pods.names
        self._counters.pods = len(self._pods) if self._pod_watch.synced.is_set() else None
        self._poll_kills()
        known = self._own_watch.synced.is_set()
        if known:
            own, enforcer = self._own.current, self._enforcer
            enforcer.run(snapshot, own, self._publisher.written_limits())
            self._reclaimer.run(snapshot, own, enforcer.spec, enforcer.generation, enforcer.statuses)
        self._mitigate(snapshot, known=known, full=full)
        self._status = report.build(
            snapshot,
            self._history,
            names=names,
            exposures=exposures.named(self._found.exposures, names, self._found.mitigated),
            oom_mitigations=self._mitigator.statuses if known else None,
            oom_kills=() if self._kills is None else self._kills.last(names),
            limits=self._enforcer.statuses if known else None,
            reclaim=self._reclaimer.statuses if known else None,
            observed_generation=_earlier(self._enforcer.observed_generation, self._reclaimer.observed_generation),
        )
        self._send_events()
        # Until it is known what is on record about limits, that would be overwritten with nothing.
        self._publisher.offer(self._status, complete=known)

    def _mitigate(self, snapshot: Snapshot, *, known: bool, full: bool) -> None:
        """Exposures, and what is done about them; whenever something was set, they are looked for again."""
        news = known and self._mitigator.learn(self._own.current)
        if full or news:
            self._expose(snapshot)
        written = self._publisher.written_mitigations()
        if known and self._mitigator.run(snapshot, self._found.targets, self._pods.names, written):
            self._expose(snapshot)

    def _expose(self, snapshot: Snapshot) -> None:
        self._found = exposures.find(snapshot, self._mitigator.values(snapshot), self._mitigator.pods)

    def _wait_for_names(self) -> None:
        deadline = self._clock() + POD_LIST_SECONDS
        watches = (self._pod_watch, self._own_watch)
        while not all(each.synced.is_set() for each in watches) and self._clock() < deadline:
            if self.stop.wait(0.05):
                return

    def _poll_kills(self) -> None:
        if self._kills is None:
            return
        try:
            self._untold += self._kills.poll()
        except OSError as error:
            self._log.problem("OOM kills", str(error))
            return
        self._log.well("OOM kills")
        self._counters.kills = self._kills.counts
        self._counters.lost_log_records = self._kills.lost_records

    def _send_events(self) -> None:
        """To the pods of kills seen lately, once it is known which pods there are."""
        if not self._pod_watch.synced.is_set():
            return
        for kill in self._untold:
            pod = self._pods.of_cgroup(kill.status.pod_uid)
            if pod is not None and kill.recent:
                container = self._pods.names.container(kill.status.container_id)
                event = kills.event(kill.status, pod, container, self._node_name)
                self._publisher.send_event(f"/api/v1/namespaces/{pod.namespace}/events", event)
        self._untold.clear()

    def _count(self, kind: str, seconds: float) -> None:
        counters = self._counters
        with counters.lock:
            counters.scans[kind] += 1
            counters.scan_seconds[kind] = counters.scan_seconds.get(kind, 0.0) + seconds
            tidy = kind == "full" and counters.scans[kind] % TIDY_SCANS == 1
        if tidy:
            gc.collect()
        counters.last_scan_at = time.time()
        self._scanned_at = self._clock()

    def _why_unhealthy(self) -> str | None:
        """The scan loop stands still. Not the API server: to restart the agent would not bring that back."""
        limit = max(4 * self._intervals.refresh_seconds, 3 * self._intervals.scan_seconds)
        since = self._clock() - self._scanned_at
        return None if since < limit else f"no scan for {since:.0f} s"

    def _why_not_ready(self) -> str | None:
        return "no scan yet" if self._status is None else self._why_unhealthy()


def _earlier(one: int | None, other: int | None) -> int | None:
    """A spec is answered when all of it is."""
    return None if one is None or other is None else min(one, other)
