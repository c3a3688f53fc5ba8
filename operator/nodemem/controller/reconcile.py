"""The one loop that writes: compares what should be with what is, and queues the difference.

Level-triggered: an event only says that it is worth a look. It writes nothing before its tables hold everything that a
LIST has, and nothing without the Lease.
"""

import asyncio
import gc
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from nodemem.api import resources
from nodemem.controller import exposures, mitigations
from nodemem.controller.client import Api, ApiError
from nodemem.controller.exposures import Actual, PodKey, Wanted
from nodemem.controller.limits import Planned, Planner
from nodemem.controller.limitwrites import LimitWriter
from nodemem.controller.lookup import Lookup
from nodemem.controller.metrics import Counts
from nodemem.controller.queue import Write, WriteQueue
from nodemem.controller.records import Kind, older
from nodemem.controller.state import PATHS, Options, State, actual
from nodemem.controller.writes import Writer

_log = logging.getLogger(__name__)

DEBOUNCE_SECONDS = 0.3
REST, LONGEST_REST_SECONDS = 5.0, 3.0
"""After a look at everything, so many times the CPU time it took: where events never end, the rest is for them."""

OUTAGE_SECONDS = 60.0
STALLED_SECONDS = 10.0
"""What a LIST has and no event told of for so long may have been deleted since: it takes another LIST."""

LIMIT_PODS_SECONDS, LIMIT_PODS_AT_ONCE = 1800.0, 200
"""Pods that a TmpfsPolicy asks for may be many, and their labels seldom change."""


@dataclass(slots=True)
class _Due:
    """What the tables have to hold before anything is written: names and UIDs by kind, and the versions of reports.
    ``progress``: ``time.monotonic`` at which the number of ``missing`` ones last changed. ``tell``: when to log it."""

    names: Mapping[Kind, Mapping[str, str]]
    versions: Mapping[str, str]
    progress: float
    missing: int = -1
    tell: float = 0.0


class Reconciler:
    """``instance``: who it is, for Events. ``beat``: ``time.monotonic`` at which the loop last turned."""

    def __init__(self, api: Api, options: Options, instance: str) -> None:
        self._api = api
        self._options = options
        now = time.monotonic()
        self.state = State(options)
        self.counts = Counts()
        self.synced = False
        self.beat = now
        self.queue = WriteQueue(self.mark)
        self._lookup = Lookup(api)
        self.writer = Writer(api, self.state, self._lookup, options, instance, self.mark, self._list_again)
        self._limit_lookup = Lookup(api, max_age_seconds=LIMIT_PODS_SECONDS, at_once=LIMIT_PODS_AT_ONCE)
        self._planner = Planner(self.state)
        self._limit_writer = LimitWriter(api, self.state, self._planner, self.mark)
        self._due: _Due | None = None
        self._rest_until = now
        self._dirty = asyncio.Event()
        self._names_due = self._exposures_due = now
        self._without_report: dict[str, float] = {}
        self._held = False
        self._outage = False

    # What is heard

    def saw(self, kind: Kind, event: str | None, body: Mapping[str, Any]) -> None:
        """A watch event: ``event`` is its type, None for an object of a LIST."""
        if event == "DELETED":
            metadata = body["metadata"]
            if self.state.lost(kind, metadata["name"], metadata.get("uid", "")):
                self.mark()
            return
        if self.state.take(kind, body):
            self.mark()
        if event is None and self.synced:
            # kopf has listed again: it will not tell what was deleted meanwhile.
            self._names_due = min(self._names_due, time.monotonic() + 3)

    def mark(self) -> None:
        """Something may have to be done."""
        self._dirty.set()

    def lease(self, held: bool) -> None:
        self._held = held
        if not held:
            self.queue.clear()
            self.synced = False
            self._due = None
        self.mark()

    def _list_again(self) -> None:
        self._exposures_due = 0.0

    # The loop

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.queue.run())
            group.create_task(self._pulse())
            while True:
                await self._wait()
                if not self._held:
                    continue
                try:
                    await self._sync()
                    if self.synced:
                        await self._reconcile()
                except ApiError as error:
                    _log.warning("tried again in a few seconds: %s", error)
                    await asyncio.sleep(2)
                    self.mark()

    async def _wait(self) -> None:
        now = time.monotonic()
        until = now + self._options.tick_seconds
        for due in (self.queue.next_retry(), self._limit_writer.due, self._names_due if self.synced else None):
            if due is not None:
                until = min(until, max(due, now + DEBOUNCE_SECONDS))
        with suppress(TimeoutError):
            await asyncio.wait_for(self._dirty.wait(), until - now)
            # Let what comes together be one look.
            await asyncio.sleep(max(DEBOUNCE_SECONDS, self._rest_until - time.monotonic()))
        self._dirty.clear()

    async def _pulse(self) -> None:
        """For the health check; and notices when nothing could be heard, so that no node is blamed for it."""
        while True:
            await asyncio.sleep(1)
            now = time.monotonic()
            silent = now - self._api.last_answer > OUTAGE_SECONDS
            if now - self.beat > OUTAGE_SECONDS or (self._outage and not silent):
                self.state.heartbeats.excuse(now)
            self._outage = silent
            self.beat = now

    async def _sync(self) -> None:
        """Make the tables agree with LISTs where that is due; ``synced`` says whether they ever did."""
        if not self.synced:
            if not await self._caught_up():
                await asyncio.sleep(1)
                self.mark()
                return
            self._names_due = time.monotonic() + self._options.names_seconds
        elif time.monotonic() >= self._names_due:
            missing = 0
            for kind in PATHS:
                missing += len(self.state.table(kind).missing(await self._list_names(kind)))
            self._names_due = time.monotonic() + (5 if missing else self._options.names_seconds)
        if not self.synced or time.monotonic() >= self._exposures_due:
            await self._list_exposures()
            self._exposures_due = time.monotonic() + self._options.exposures_seconds
        if not self.synced:
            self.synced = True
            # What is in the tables now stays: looked through again and again, it would be a third of the CPU time.
            gc.collect()
            gc.freeze()

    async def _caught_up(self) -> bool:
        """Whether the watches have told of all that one LIST had, and of the reports at least as new.

        All writes of a former holder of the Lease come before that LIST.
        """
        now = time.monotonic()
        if self._due is None or now - self._due.progress > STALLED_SECONDS:
            names: dict[Kind, Mapping[str, str]] = {}
            versions: dict[str, str] = {}
            for kind in PATHS:
                names[kind] = await self._list_names(kind, versions if kind == "reports" else None)
            self._due = _Due(names, versions if self._due is None else self._due.versions, now)
        due, reports = self._due, self.state.reports
        missing = sum(len(self.state.table(kind).missing(names)) for kind, names in due.names.items())
        missing += sum(
            1 for name, version in due.versions.items() if name in reports and older(reports[name].version, version)
        )
        now = time.monotonic()
        if missing != due.missing:
            due.missing, due.progress = missing, now
        if missing and now >= due.tell:
            _log.info("%d objects have not been seen yet", missing)
            due.tell = now + STALLED_SECONDS
        return not missing

    async def _list_names(self, kind: Kind, versions: dict[str, str] | None = None) -> dict[str, str]:
        """Names and UIDs of a LIST, and the ``versions`` in it; what it doesn't have any more is dropped."""
        started = time.monotonic()
        listed: dict[str, str] = {}
        async for item in self._api.pages(PATHS[kind], metadata_only=True):
            metadata = item["metadata"]
            listed[metadata["name"]] = metadata["uid"]
            if versions is not None:
                versions[metadata["name"]] = metadata["resourceVersion"]
        for name in self.state.prune(kind, listed, started):
            _log.info("%s %s was deleted unseen", kind, name)
        return listed

    async def _list_exposures(self) -> None:
        started = time.monotonic()
        found: dict[PodKey, Actual] = {}
        async for item in self._api.pages(resources.OOM_EXPOSURE.path(), metadata_only=False):
            metadata = item["metadata"]
            key = (metadata["namespace"], metadata["name"])
            known = self.state.exposures.get(key)
            written = known.written if known and known.uid == metadata["uid"] else started
            found[key] = actual(item, written)
        for key, known in self.state.exposures.items():
            if known.written > started:
                found[key] = known
            elif key not in found:
                # Deleted by the garbage collector, with its pod, or by a person: see whether there is a pod.
                self._lookup.forget(key)
        self.state.exposures = found

    async def _reconcile(self) -> None:
        started, cpu = time.monotonic(), time.thread_time()
        stale = self.state.stale(started)
        reports = list(self.state.claimed(stale))
        claimed = exposures.claims(reports)
        policies = self.state.policies()
        needed = mitigations.pods_needed(reports, policies)
        for key, each in claimed.items():
            needed.setdefault(key, set()).update(claim.pod_uid for claim in each)
        pods = await self._lookup.pods(needed)
        asked = {key[0] for key in needed} if exposures.asks_for_namespaces(policies) else set()
        namespaces = await self._lookup.namespaces(asked)
        wanted, undecided = exposures.wanted(claimed, pods, namespaces, policies)
        unread = self.state.unread_policies()
        mitigated = {
            each.node_name: mitigations.wanted(each, pods, namespaces, policies, unread)
            for each in reports
            if each.mitigations or each.exposures
        }
        planned = await self._plan_limits(started)
        # From here on nothing waits: what is written follows from what is known now.
        stale = self.state.stale(started)
        self.queue.plan(
            (
                *self._writes(wanted, undecided, stale, started),
                *self.writer.mitigations(mitigated),
                *self._limit_writer.writes(planned, time.monotonic()),
            )
        )
        self.counts.stale = [name for name, silent in stale.items() if silent]
        self.counts.exposed = [each for each in wanted.values() if not each.mitigated]
        self._rest_until = time.monotonic() + min(REST * (time.thread_time() - cpu), LONGEST_REST_SECONDS)
        self.counts.reconciles += 1
        self.counts.reconcile_seconds += time.monotonic() - started

    async def _plan_limits(self, now: float) -> Planned:
        await self._limit_writer.settle()
        needed = self._planner.pods_needed()
        pods = await self._limit_lookup.pods(needed)
        namespaces = None
        if self._planner.asks_for_namespaces():
            namespaces = await self._limit_lookup.namespaces(key[0] for key in needed)
        if self._limit_lookup.behind:
            self.mark()
        planned = self._planner.plan(self.state.stale(now), pods, namespaces)
        self.counts.policies = {
            name: {
                "in_sync": len(each.in_sync),
                "audit": len(each.audit),
                "pending": sum(map(len, (each.in_flight, each.waiting, each.silent, each.stale))),
                "deferred": len(each.deferred),
                "failed": len(each.failed),
                "refused": len(each.refused),
            }
            for name, each in planned.progress.items()
            if name in self.state.tmpfs_policies
        }
        return planned

    def _writes(
        self, wanted: Mapping[PodKey, Wanted], undecided: set[PodKey], stale: Mapping[str, bool], now: float
    ) -> Iterator[Write]:
        changes = exposures.changes(
            wanted,
            self.state.exposures,
            undecided=undecided,
            keep_nodes=self._keep_nodes(now),
            unnamed=self.state.unnamed(),
            now=now,
        )
        yield from self.writer.exposures(changes)
        yield from self.writer.stale(stale)
        yield from self.writer.gone_reports(now)
        yield from self.writer.node_conditions(wanted.values(), stale)
        yield from self.writer.policies(wanted.values(), now)
        yield from self.writer.news()

    def _keep_nodes(self, now: float) -> set[str]:
        """Nodes that have exposures and of which not everything is known: the list was cut, the agent has not said, or
        the report was deleted under it (it comes back; for as long as that may take)."""
        keep = set()
        names = {
            each.status.node_name for each in self.state.exposures.values() if each.status and each.status.node_name
        }
        for name in self._without_report.keys() - names:
            del self._without_report[name]
        for name in names:
            record = self.state.reports.get(name)
            if record is not None:
                self._without_report.pop(name, None)
                if record.exposures is None or record.exposures_omitted:
                    keep.add(name)
            elif name in self.state.nodes:
                since = self._without_report.setdefault(name, now)
                if now - since < self._options.stale_seconds:
                    keep.add(name)
        return keep
