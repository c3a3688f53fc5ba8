"""The one loop that writes: compares what should be with what is, and queues the difference.

Level-triggered: an event only says that it is worth a look. It writes nothing before its tables hold everything that a
LIST has, and nothing without the Lease.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from nodemem.api import resources
from nodemem.api.convert import read, wire
from nodemem.api.types import OomExposureStatus
from nodemem.controller import events, exposures, pressure, records
from nodemem.controller.client import Api, ApiError
from nodemem.controller.exposures import Actual, Change, Policy, Report, Wanted
from nodemem.controller.lookup import Lookup
from nodemem.controller.queue import Write, WriteQueue
from nodemem.controller.records import Kind, Table
from nodemem.controller.staleness import Heartbeats
from nodemem.node.status import API_VERSION
from nodemem.node.units import timestamp

_log = logging.getLogger(__name__)

DEBOUNCE_SECONDS = 0.3
POLICY_SECONDS = 15.0
"""The count in an OomPolicy's status is written no more often."""

OUTAGE_SECONDS = 60.0
PATHS: dict[Kind, str] = {
    "reports": resources.MEMORY_REPORT.path(),
    "nodes": "/api/v1/nodes",
    "oom_policies": resources.OOM_POLICY.path(),
    "tmpfs_policies": resources.TMPFS_POLICY.path(),
}


@dataclass(frozen=True, slots=True)
class Options:
    """``stale_seconds``: three heartbeats. ``gone_seconds``: how long a report outlives its Node, where the garbage
    collector has not taken it. ``exposures_seconds``, ``names_seconds``: how often lists are compared."""

    node_conditions: bool = False
    stale_seconds: float = 900.0
    gone_seconds: float = 300.0
    exposures_seconds: float = 60.0
    names_seconds: float = 300.0

    @property
    def tick_seconds(self) -> float:
        """Time alone makes nodes stale and reports obsolete."""
        return min(15.0, self.stale_seconds / 5, self.gone_seconds / 5, self.exposures_seconds)


@dataclass(slots=True)
class Tables:
    reports: Table[records.ReportRecord] = field(default_factory=Table)
    nodes: Table[records.NodeRecord] = field(default_factory=Table)
    oom_policies: Table[records.OomPolicyRecord] = field(default_factory=Table)
    tmpfs_policies: Table[records.TmpfsPolicyRecord] = field(default_factory=Table)

    def of(self, kind: Kind) -> Table[Any]:
        return getattr(self, kind)  # type: ignore[no-any-return]


@dataclass(slots=True)
class Counts:
    """For /metrics."""

    reconciles: int = 0
    reconcile_seconds: float = 0.0
    events: int = 0
    stale: int = 0
    exposures: dict[str, int] = field(default_factory=dict)


class Reconciler:
    """``held``: the Lease. ``instance``: who it is, for Events."""

    def __init__(self, api: Api, options: Options, instance: str) -> None:
        self._api = api
        self._options = options
        self._instance = instance
        now = time.monotonic()
        self.tables = Tables()
        self.counts = Counts()
        self.synced = False
        self.beat = now
        self.queue = WriteQueue(self.mark)
        self._heartbeats = Heartbeats(options.stale_seconds, now)
        self._lookup = Lookup(api)
        self._dirty = asyncio.Event()
        self._actual: dict[exposures.PodKey, Actual] = {}
        self._names_due = self._exposures_due = now
        self._told = events.Told()
        self._outbox: dict[str, dict[str, Any]] = {}
        self._without_node: dict[str, float] = {}
        self._without_report: dict[str, float] = {}
        self._policy_written: dict[str, float] = {}
        self._held = False
        self._outage = False

    # What is heard

    def saw(self, kind: Kind, event: str | None, body: Mapping[str, Any]) -> None:
        """A watch event: ``event`` is its type, None for an object of a LIST."""
        name, now = body["metadata"]["name"], time.monotonic()
        if event == "DELETED":
            if self.tables.of(kind).lost(name, body["metadata"].get("uid", "")):
                if kind == "reports":
                    self._heartbeats.forget(name)
                self.mark()
            return
        if self._take(kind, name, body, now):
            self.mark()
        if event is None and self.synced:
            # kopf has listed again: it will not tell what was deleted meanwhile.
            self._names_due = min(self._names_due, now + 3)

    def mark(self) -> None:
        """Something may have to be done."""
        self._dirty.set()

    def lease(self, held: bool) -> None:
        self._held = held
        if not held:
            self.queue.clear()
            self.synced = False
        self.mark()

    def _take(self, kind: Kind, name: str, body: Mapping[str, Any], now: float) -> bool:
        """Remember an object; whether that may change what should be written."""
        match kind:
            case "reports":
                new = records.report(body)
                old = self.tables.reports.saw(name, new, now)
                self._heartbeats.heard(name, new.observed_at, now, time.time())
                return old is None or self._relevant(old) != self._relevant(new) or old.stale != new.stale
            case "nodes":
                node = records.node(body)
                former = self.tables.nodes.saw(name, node, now)
                return former is None or (former.uid, former.marks) != (node.uid, node.marks)
            case "oom_policies":
                policy = records.oom_policy(body)
                before = self.tables.oom_policies.saw(name, policy, now)
                return before is None or before.version != policy.version
            case "tmpfs_policies":
                self.tables.tmpfs_policies.saw(name, records.tmpfs_policy(body), now)
                return False

    def _relevant(self, record: records.ReportRecord) -> tuple[object, ...]:
        marked = record.stale is not None and record.stale.status == "True"
        figures = record.figures if self._options.node_conditions else None
        heartbeat = record.observed_at if marked else None
        return (record.uid, record.exposures, record.exposures_omitted, record.pressure, figures, heartbeat)

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
        for due in (self.queue.next_retry(), self._names_due if self.synced else None):
            if due is not None:
                until = min(until, max(due, now + DEBOUNCE_SECONDS))
        with suppress(TimeoutError):
            await asyncio.wait_for(self._dirty.wait(), until - now)
            # Let what comes together be one look.
            await asyncio.sleep(DEBOUNCE_SECONDS)
        self._dirty.clear()

    async def _pulse(self) -> None:
        """For the health check; and notices when nothing could be heard, so that no node is blamed for it."""
        while True:
            await asyncio.sleep(1)
            now = time.monotonic()
            silent = now - self._api.last_answer > OUTAGE_SECONDS
            if now - self.beat > OUTAGE_SECONDS or (self._outage and not silent):
                self._heartbeats.excuse(now)
            self._outage = silent
            self.beat = now

    async def _sync(self) -> None:
        """Make the tables agree with LISTs where that is due; ``synced`` says whether they ever did."""
        now = time.monotonic()
        if not self.synced or now >= self._names_due:
            missing = 0
            for kind in PATHS:
                missing += await self._compare(kind)
            if missing and not self.synced:
                _log.info("%d objects have not been seen yet", missing)
                await asyncio.sleep(1)
                self.mark()
                return
            self._names_due = now + (5 if missing else self._options.names_seconds)
        if not self.synced or now >= self._exposures_due:
            await self._list_exposures()
            self._exposures_due = now + self._options.exposures_seconds
        self.synced = True

    async def _compare(self, kind: Kind) -> int:
        started = time.monotonic()
        listed = {
            item["metadata"]["name"]: item["metadata"]["uid"]
            async for item in self._api.pages(PATHS[kind], metadata_only=True)
        }
        table = self.tables.of(kind)
        for name in table.prune(listed, started):
            _log.info("%s %s was deleted unseen", kind, name)
            if kind == "reports":
                self._heartbeats.forget(name)
        return len(table.missing(listed))

    async def _list_exposures(self) -> None:
        started = time.monotonic()
        found: dict[exposures.PodKey, Actual] = {}
        async for item in self._api.pages(resources.OOM_EXPOSURE.path(), metadata_only=False):
            metadata = item["metadata"]
            key = (metadata["namespace"], metadata["name"])
            known = self._actual.get(key)
            written = known.written if known and known.uid == metadata["uid"] else started
            found[key] = actual(item, written)
        for key, known in self._actual.items():
            if known.written > started:
                found[key] = known
            elif key not in found:
                # Deleted by the garbage collector, with its pod, or by a person: see whether there is a pod.
                self._lookup.forget(key)
        self._actual = found

    async def _reconcile(self) -> None:
        started = time.monotonic()
        stale = {name: self._heartbeats.stale(name, started) for name in self.tables.reports}
        claimed = exposures.claims(
            Report(name, each.observed_at, stale[name], each.exposures, each.exposures_omitted)
            for name, each in self.tables.reports.items()
        )
        policies = [Policy(name, each.spec) for name, each in self.tables.oom_policies.items() if each.spec]
        pods = await self._lookup.pods({key: [claim.pod_uid for claim in each] for key, each in claimed.items()})
        asked = {key[0] for key in claimed} if exposures.asks_for_namespaces(policies) else set()
        namespaces = await self._lookup.namespaces(asked)
        wanted, undecided = exposures.wanted(claimed, pods, namespaces, policies)
        self.queue.plan(self._writes(wanted, undecided, stale, started))
        self.counts.stale = sum(stale.values())
        self.counts.exposures = dict.fromkeys(("Imminent", "High", "Low"), 0)
        for want in wanted.values():
            self.counts.exposures[want.status.severity] += 1
        self.counts.reconciles += 1
        self.counts.reconcile_seconds += time.monotonic() - started

    # What is written

    def _writes(
        self,
        wanted: Mapping[exposures.PodKey, Wanted],
        undecided: set[exposures.PodKey],
        stale: Mapping[str, bool],
        now: float,
    ) -> Iterator[Write]:
        planned = exposures.changes(
            wanted,
            self._actual,
            undecided=undecided,
            keep_nodes=self._keep_nodes(now),
            unnamed={
                each.pod_uid
                for record in self.tables.reports.values()
                for each in record.exposures or ()
                if each.pod_uid and not each.pod_name
            },
            now=now,
        )
        for change in planned:
            yield Write(("oomexposure", *change.key), partial(self._write_exposure, change))
        yield from self._stale_writes(stale)
        yield from self._gone_reports(now)
        yield from self._node_conditions(wanted.values(), stale)
        yield from self._policy_writes(wanted.values(), now)
        for name, document in self._outbox.items():
            yield Write(("event", name), partial(self._write_event, document))

    def _keep_nodes(self, now: float) -> set[str]:
        """Nodes that have exposures and of which not everything is known: the list was cut, the agent has not said, or
        the report was deleted under it (it comes back; for as long as that may take)."""
        keep = set()
        names = {each.status.node_name for each in self._actual.values() if each.status and each.status.node_name}
        for name in self._without_report.keys() - names:
            del self._without_report[name]
        for name in names:
            record = self.tables.reports.get(name)
            if record is not None:
                self._without_report.pop(name, None)
                if record.exposures is None or record.exposures_omitted:
                    keep.add(name)
            elif name in self.tables.nodes:
                since = self._without_report.setdefault(name, now)
                if now - since < self._options.stale_seconds:
                    keep.add(name)
        return keep

    async def _write_exposure(self, change: Change) -> None:
        want, have = change.wanted, change.actual
        path = resources.OOM_EXPOSURE.path(change.key[1], namespace=change.key[0])
        try:
            if want is None:
                await self._delete(path, have.uid if have else "")
                self._actual.pop(change.key, None)
            else:
                self._actual[change.key] = await self._apply_exposure(path, want, have)
        except ApiError as error:
            if error.code in (404, 409):
                # Not what it was when it was read: look again, at the pod and at the exposure.
                self._lookup.forget(change.key)
                self._exposures_due = 0
            raise
        self._tell(change)

    async def _apply_exposure(self, path: str, want: Wanted, have: Actual | None) -> Actual:
        namespace, name = want.key
        identity = {"apiVersion": API_VERSION, "kind": resources.OOM_EXPOSURE.kind}
        metadata: dict[str, Any] = {"name": name, "namespace": namespace}
        if have is not None and have.owner_uid != want.pod_uid:
            have = None
        uid = have.uid if have is not None else None
        if uid is None:
            owner = {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": want.pod_uid}
            labels = {"app.kubernetes.io/managed-by": "nodemem"}
            body = identity | {"metadata": metadata | {"ownerReferences": [owner], "labels": labels}}
            uid = (await self._api.apply(path, body))["metadata"]["uid"]
        status = exposures.settle(want.status, have.status if have else None, timestamp(time.time()))
        body = identity | {"metadata": metadata | {"uid": uid}, "status": wire(status)}
        answer = await self._api.apply(f"{path}/status", body)
        return actual(answer, time.monotonic())

    def _tell(self, change: Change) -> None:
        news, uid = change.news, events.pod_uid(change)
        if news is None or uid is None:
            return
        if news == "Gone":
            pod = self._lookup.known(change.key)
            if pod is not None and pod.uid != uid:
                return
        if not self._told.again(uid, news, time.monotonic()) and len(self._outbox) < 1000:
            document = events.event(change, news, uid, self._instance, time.time())
            self._outbox[document["metadata"]["name"]] = document
            self.mark()

    async def _write_event(self, document: dict[str, Any]) -> None:
        name = document["metadata"]["name"]
        try:
            if document["reason"] == "OomMisselectionGone":
                # Of a pod that is gone itself there is nothing to tell.
                about = document["regarding"]
                pod = await self._api.find(f"/api/v1/namespaces/{about['namespace']}/pods/{about['name']}")
                if pod is None or pod["metadata"]["uid"] != about["uid"] or "deletionTimestamp" in pod["metadata"]:
                    self._outbox.pop(name, None)
                    return
            await self._api.write("POST", events.path(document), document)
            self.counts.events += 1
        except ApiError as error:
            # 409: it was sent before. Other refusals (the namespace is ending, say) don't get better.
            if error.code == 0 or error.code == 429 or error.code >= 500:
                raise
            if error.code != 409:
                _log.warning("event %s was refused: %s", name, error)
        self._outbox.pop(name, None)

    def _stale_writes(self, stale: Mapping[str, bool]) -> Iterator[Write]:
        for name, is_stale in stale.items():
            mark = self.tables.reports[name].stale
            if name in self.tables.nodes and is_stale != (mark is not None and mark.status == "True"):
                yield Write(
                    ("memoryreport-stale", name),
                    partial(self._write_stale, name, is_stale),
                )

    async def _write_stale(self, name: str, stale: bool) -> None:
        record = self.tables.reports.get(name)
        if record is None:
            return
        since = record.observed_at or "it was created"
        condition = {
            "type": records.STALE,
            "status": "True" if stale else "False",
            "reason": "HeartbeatLate" if stale else "HeartbeatResumed",
            "message": f"Nothing was heard from the agent since {since}." if stale else "The agent reports again.",
            "lastTransitionTime": timestamp(time.time()),
        }
        body = {
            "apiVersion": API_VERSION,
            "kind": resources.MEMORY_REPORT.kind,
            "metadata": {"name": name, "uid": record.uid},
            "status": {"conditions": [condition]},
        }
        answer = await self._api.apply(f"{PATHS['reports']}/{name}/status", body)
        self._take("reports", name, answer, time.monotonic())

    def _gone_reports(self, now: float) -> Iterator[Write]:
        without = self.tables.reports.keys() - self.tables.nodes.keys()
        for name in self._without_node.keys() - without:
            del self._without_node[name]
        for name in without:
            if now - self._without_node.setdefault(name, now) >= self._options.gone_seconds:
                yield Write(("memoryreport-gone", name), partial(self._delete_report, name))

    async def _delete_report(self, name: str) -> None:
        record = self.tables.reports.get(name)
        if record is None or await self._api.find(f"{PATHS['nodes']}/{name}") is not None:
            return
        await self._delete(f"{PATHS['reports']}/{name}", record.uid)
        _log.info("the report of node %s is removed: there is no such node", name)

    async def _delete(self, path: str, uid: str) -> None:
        """What is gone already, or was replaced by another object, is no error."""
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}}
        try:
            await self._api.write("DELETE", path, options)
        except ApiError as error:
            if error.code not in (404, 409):
                raise

    def _node_conditions(self, wanted: Iterable[Wanted], stale: Mapping[str, bool]) -> Iterator[Write]:
        exposed: dict[str, int] = {}
        if self._options.node_conditions:
            for each in wanted:
                where = each.status.node_name or ""
                exposed[where] = exposed.get(where, 0) + 1
        for name, node in self.tables.nodes.items():
            if not self._options.node_conditions:
                if node.marks:
                    removal = [{"$patch": "delete", "type": each} for each in node.marks]
                    yield self._node_write(name, removal)
                continue
            report = self.tables.reports.get(name)
            if report is None:
                continue
            new = [
                each
                for each in (
                    pressure.shmem(
                        report.figures, report.pressure, node.marks.get(records.SHMEM_PRESSURE), stale=stale[name]
                    ),
                    pressure.exposed(exposed.get(name, 0), known=report.exposures is not None, stale=stale[name]),
                )
                if (mark := node.marks.get(each.type)) is None or mark.status != each.status
            ]
            if new:
                now = timestamp(time.time())
                yield self._node_write(
                    name, [each._asdict() | {"lastTransitionTime": now, "lastHeartbeatTime": now} for each in new]
                )

    def _node_write(self, name: str, conditions: list[dict[str, str]]) -> Write:
        async def run() -> None:
            body = {"status": {"conditions": conditions}}
            answer = await self._api.write("PATCH", f"{PATHS['nodes']}/{name}/status", body, content="strategic")
            self._take("nodes", name, answer, time.monotonic())

        return Write(("node-conditions", name), run)

    def _policy_writes(self, wanted: Iterable[Wanted], now: float) -> Iterator[Write]:
        counted: dict[str | None, int] = {}
        for each in wanted:
            counted[each.policy] = counted.get(each.policy, 0) + 1
        for name in self._policy_written.keys() - self.tables.oom_policies.keys():
            del self._policy_written[name]
        for name, policy in self.tables.oom_policies.items():
            exposed = counted.get(name, 0)
            if policy.observed_generation == policy.generation and (
                policy.exposed == exposed or now - self._policy_written.get(name, float("-inf")) < POLICY_SECONDS
            ):
                continue
            yield Write(
                ("oompolicy", name),
                partial(self._write_policy, name, policy, exposed),
            )

    async def _write_policy(self, name: str, policy: records.OomPolicyRecord, exposed: int) -> None:
        body = {
            "apiVersion": API_VERSION,
            "kind": resources.OOM_POLICY.kind,
            "metadata": {"name": name, "uid": policy.uid},
            "status": {"observedGeneration": policy.generation, "exposed": exposed},
        }
        answer = await self._api.apply(f"{PATHS['oom_policies']}/{name}/status", body)
        self._policy_written[name] = time.monotonic()
        self._take("oom_policies", name, answer, time.monotonic())


def actual(body: Mapping[str, Any], written: float) -> Actual:
    """An OomExposure as the API server gives it; a status that can't be read is none, and is written again."""
    metadata = body["metadata"]
    owners = metadata.get("ownerReferences") or ()
    owner = next((each["uid"] for each in owners if each.get("kind") == "Pod"), None)
    status: OomExposureStatus | None = None
    with suppress(ValueError, TypeError):
        if body.get("status"):
            status = read(OomExposureStatus, body["status"])
    return Actual(metadata["uid"], owner, status, written)
