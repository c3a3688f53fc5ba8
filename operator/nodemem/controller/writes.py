"""What the controller writes, and how: each kind of write in one place, as ``Write``s for the queue.

Nothing here decides what should be; it finds where that differs from what is, and writes the difference.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from nodemem.api import resources
from nodemem.api.convert import wire
from nodemem.api.types import MOST_MITIGATIONS, OomMitigation, OomPolicyStatus
from nodemem.controller import events, exposures, policystatus, pressure, records
from nodemem.controller.client import Api, ApiError
from nodemem.controller.exposures import Actual, Change, Wanted
from nodemem.controller.lookup import Lookup
from nodemem.controller.queue import Write
from nodemem.controller.state import PATHS, Options, State, actual
from nodemem.node.status import API_VERSION
from nodemem.node.units import timestamp

_log = logging.getLogger(__name__)

POLICY_SECONDS = 15.0
"""The counts in an OomPolicy's status are written no more often."""

POLICY_WORDS_SECONDS = 300.0
"""The same for what only says it in other words."""

MITIGATIONS_MANAGER = "nodemem-controller-mitigations"
"""Who applies spec.oomMitigations: a manager of its own, so that this and tmpfsLimits don't drop each other."""


class Writer:
    """``instance``: who it is, for Events. ``mark``: there is more to do; ``look_again``: what is known of the
    OomExposures is not so."""

    def __init__(
        self,
        api: Api,
        state: State,
        lookup: Lookup,
        options: Options,
        instance: str,
        mark: Callable[[], None],
        look_again: Callable[[], None],
    ) -> None:
        self._api = api
        self._state = state
        self._lookup = lookup
        self._options = options
        self._instance = instance
        self._mark = mark
        self._look_again = look_again
        self._told = events.Told()
        self._outbox: dict[str, dict[str, Any]] = {}
        self._without_node: dict[str, float] = {}
        self._policy_written: dict[str, float] = {}
        self.events = 0

    def exposures(self, changes: Iterable[Change]) -> Iterator[Write]:
        for change in changes:
            yield Write(("oomexposure", *change.key), partial(self._write_exposure, change))

    def news(self) -> Iterator[Write]:
        """Events that wait to be sent."""
        for name, document in self._outbox.items():
            yield Write(("event", name), partial(self._write_event, document))

    async def _write_exposure(self, change: Change) -> None:
        want, have = change.wanted, change.actual
        path = resources.OOM_EXPOSURE.path(change.key[1], namespace=change.key[0])
        try:
            if want is None:
                await self._delete(path, have.uid if have else "")
                self._state.exposures.pop(change.key, None)
            else:
                self._state.exposures[change.key] = await self._apply_exposure(path, want, have)
        except ApiError as error:
            if error.code in (404, 409):
                # Not what it was when it was read: look again, at the pod and at the exposure.
                self._lookup.forget(change.key)
                self._look_again()
            raise
        self._tell(change)
        if want is None:
            # Perhaps the pod is gone, and with it what its node is to mitigate.
            self._lookup.forget(change.key)

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
            self._mark()

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
            self.events += 1
        except ApiError as error:
            # 409: it was sent before. Other refusals (the namespace is ending, say) don't get better.
            if error.code == 0 or error.code == 429 or error.code >= 500:
                raise
            if error.code != 409:
                _log.warning("event %s was refused: %s", name, error)
        self._outbox.pop(name, None)

    def stale(self, stale: Mapping[str, bool]) -> Iterator[Write]:
        """The condition Stale of reports, where it is not so any more."""
        for name, is_stale in stale.items():
            mark = self._state.reports[name].stale
            if name in self._state.nodes and is_stale != (mark is not None and mark.status == "True"):
                yield Write(
                    ("memoryreport-stale", name),
                    partial(self._write_stale, name, is_stale),
                )

    async def _write_stale(self, name: str, stale: bool) -> None:
        record = self._state.reports.get(name)
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
        self._state.take("reports", answer)

    def gone_reports(self, now: float) -> Iterator[Write]:
        """Removal of reports that have had no Node for long enough."""
        without = self._state.reports.keys() - self._state.nodes.keys()
        for name in self._without_node.keys() - without:
            del self._without_node[name]
        for name in without:
            if now - self._without_node.setdefault(name, now) >= self._options.gone_seconds:
                yield Write(("memoryreport-gone", name), partial(self._delete_report, name))

    async def _delete_report(self, name: str) -> None:
        record = self._state.reports.get(name)
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

    def node_conditions(self, wanted: Iterable[Wanted], stale: Mapping[str, bool]) -> Iterator[Write]:
        """The conditions of Nodes, on a transition; without the setting, their removal."""
        exposed: dict[str, int] = {}
        if self._options.node_conditions:
            for each in wanted:
                where = each.status.node_name or ""
                if not each.mitigated:
                    exposed[where] = exposed.get(where, 0) + 1
        for name, node in self._state.nodes.items():
            if not self._options.node_conditions:
                if node.marks:
                    removal = [{"$patch": "delete", "type": each} for each in node.marks]
                    yield self._node_write(name, removal)
                continue
            report = self._state.reports.get(name)
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
            self._state.take("nodes", answer)

        return Write(("node-conditions", name), run)

    def mitigations(self, wanted: Mapping[str, tuple[OomMitigation, ...]]) -> Iterator[Write]:
        """spec.oomMitigations of reports, by node."""
        for name, each in wanted.items():
            record = self._state.reports.get(name)
            if record is not None and name in self._state.nodes and each != record.mitigations:
                yield Write(("memoryreport-mitigations", name), partial(self._write_mitigations, name, each))

    async def _write_mitigations(self, name: str, wanted: tuple[OomMitigation, ...]) -> None:
        record = self._state.reports.get(name)
        if record is None:
            return
        if len(wanted) == MOST_MITIGATIONS:
            _log.warning("node %s has %d pods to mitigate, as many as there can be", name, len(wanted))
        body = {
            "apiVersion": API_VERSION,
            "kind": resources.MEMORY_REPORT.kind,
            "metadata": {"name": name, "uid": record.uid},
            "spec": {"oomMitigations": [wire(each) for each in wanted]},
        }
        answer = await self._api.apply(f"{PATHS['reports']}/{name}", body, manager=MITIGATIONS_MANAGER)
        self._state.take("reports", answer)
        self._mark()

    def policies(self, wanted: Iterable[Wanted], now: float) -> Iterator[Write]:
        """Statuses of OomPolicies: what they mean at once, counts soon, other words for the same seldom."""
        table, every = self._state.oom_policies, list(wanted)
        for name in self._policy_written.keys() - table.keys():
            del self._policy_written[name]
        for name, record in table.items():
            had, said = record.status, policystatus.status(name, record, every, timestamp(time.time()))
            if had is not None and policystatus.meaning(had) == policystatus.meaning(said):
                if had == said:
                    continue
                counted = policystatus.counts(had) != policystatus.counts(said)
                wait = POLICY_SECONDS if counted else POLICY_WORDS_SECONDS
                if now - self._policy_written.get(name, float("-inf")) < wait:
                    continue
            yield Write(("oompolicy", name), partial(self._write_policy, name, record, said))

    async def _write_policy(self, name: str, record: records.OomPolicyRecord, said: OomPolicyStatus) -> None:
        body = {
            "apiVersion": API_VERSION,
            "kind": resources.OOM_POLICY.kind,
            "metadata": {"name": name, "uid": record.uid},
            "status": wire(said),
        }
        answer = await self._api.apply(f"{PATHS['oom_policies']}/{name}/status", body)
        self._policy_written[name] = time.monotonic()
        self._state.take("oom_policies", answer)
