"""What the controller writes for TmpfsPolicies: limits in the reports' specs, the policies' statuses and finalizers.

A node's limits are written only as the plan of the rollout has them, and a write whose outcome isn't known counts as
done until the report was read: a turn is never given twice.
"""

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from nodemem.api import resources
from nodemem.api.convert import wire
from nodemem.api.types import TmpfsPolicyStatus
from nodemem.controller.client import Api, ApiError, NotHeld
from nodemem.controller.limits import Planned, Planner, enforces, unguarded
from nodemem.controller.queue import Write
from nodemem.controller.records import FINALIZER, TmpfsPolicyRecord
from nodemem.controller.state import PATHS, State
from nodemem.node.status import API_VERSION
from nodemem.node.units import timestamp
from nodemem.policy import entries, rollout, status

_log = logging.getLogger(__name__)

COUNTS_SECONDS = 2.0
"""Counts and problems of a policy's status are written no more often."""

WORDS_SECONDS = 300.0
"""The same for what only says it with other figures, as each heartbeat of an agent would have it."""


class LimitWriter:
    """``due``: when, by ``time.monotonic``, a status that is held back may be written."""

    def __init__(self, api: Api, state: State, planner: Planner, mark: Callable[[], None]) -> None:
        self._api = api
        self._state = state
        self._planner = planner
        self._mark = mark
        self._running: set[str] = set()
        self._status_written: dict[str, float] = {}
        self.due: float | None = None

    async def settle(self) -> None:
        """Find out what became of writes that were not answered."""
        for name in self._planner.sent.keys() - self._running:
            try:
                found = await self._api.find(f"{PATHS['reports']}/{name}")
            except ApiError as error:
                _log.warning("whether the limits of node %s were written: %s", name, error)
                continue
            if found is not None:
                self._state.take("reports", found)
            self._planner.sent.pop(name, None)

    def writes(self, planned: Planned, now: float) -> Iterator[Write]:
        table = self._state.tmpfs_policies
        bare = unguarded(planned.policies, table, FINALIZER)
        for each in planned.writes:
            report = self._state.reports.get(each.node)
            if report is not None and not enforces(each, report.tmpfs.limits, bare):
                yield Write(("memoryreport-limits", each.node), partial(self._write_limits, each))
        self.due = None
        for name in self._status_written.keys() - table.keys():
            del self._status_written[name]
        for name, record in table.items():
            if name in bare:
                finalizers = (*record.finalizers, FINALIZER)
                yield Write(("tmpfspolicy-finalizer", name), partial(self._write_finalizers, name, record, finalizers))
            elif record.deleting and FINALIZER in record.finalizers and rollout.may_go(planned.progress.get(name)):
                finalizers = tuple(each for each in record.finalizers if each != FINALIZER)
                yield Write(("tmpfspolicy-finalizer", name), partial(self._write_finalizers, name, record, finalizers))
                continue
            said = _status(name, record, planned)
            if said is not None and self._may_say(name, record.status, said, now):
                yield Write(("tmpfspolicy-status", name), partial(self._write_status, name, record, said))

    async def _write_limits(self, write: rollout.Write) -> None:
        record = self._state.reports.get(write.node)
        if record is None or write.node not in self._state.nodes:
            return
        body = {
            "apiVersion": API_VERSION,
            "kind": resources.MEMORY_REPORT.kind,
            "metadata": {"name": write.node, "uid": record.uid},
            "spec": wire(entries.spec(write.limits)),
        }
        self._planner.sent[write.node] = write
        self._running.add(write.node)
        try:
            answer = await self._api.apply(f"{PATHS['reports']}/{write.node}", body)
            self._state.take("reports", answer)
            self._planner.told(write.node, answer["metadata"]["generation"], write.touched)
            self._planner.sent.pop(write.node, None)
            self._mark()
        except NotHeld:
            self._planner.sent.pop(write.node, None)
            raise
        except ApiError as error:
            if 400 <= error.code < 500:
                # Refused: nothing was written.
                self._planner.sent.pop(write.node, None)
            raise
        finally:
            self._running.discard(write.node)

    async def _write_finalizers(self, name: str, record: TmpfsPolicyRecord, finalizers: tuple[str, ...]) -> None:
        # The version is a precondition: the list is written as a whole, and may have others' entries.
        body = {"metadata": {"resourceVersion": record.version, "finalizers": list(finalizers)}}
        answer = await self._api.write("PATCH", f"{PATHS['tmpfs_policies']}/{name}", body, content="merge")
        if finalizers or not record.deleting:
            self._state.take("tmpfs_policies", answer)
        else:
            self._state.lost("tmpfs_policies", name, record.uid)
            _log.info("TmpfsPolicy %s is gone: no node has its limits any more", name)
        self._mark()

    def _may_say(self, name: str, had: TmpfsPolicyStatus | None, said: TmpfsPolicyStatus, now: float) -> bool:
        """What it means is written at once, counts soon, other words for the same seldom."""
        if had is None or _meaning(had) != _meaning(said):
            return True
        if wire(had) == wire(said):
            return False
        wait = COUNTS_SECONDS if _counts(had) != _counts(said) else WORDS_SECONDS
        at = self._status_written.get(name, float("-inf")) + wait
        if at > now:
            self.due = at if self.due is None else min(self.due, at)
            return False
        return True

    async def _write_status(self, name: str, record: TmpfsPolicyRecord, said: TmpfsPolicyStatus) -> None:
        body: dict[str, Any] = {
            "apiVersion": API_VERSION,
            "kind": resources.TMPFS_POLICY.kind,
            "metadata": {"name": name, "uid": record.uid},
            "status": wire(said),
        }
        answer = await self._api.apply(f"{PATHS['tmpfs_policies']}/{name}/status", body)
        self._status_written[name] = time.monotonic()
        self._state.take("tmpfs_policies", answer)


def _status(name: str, record: TmpfsPolicyRecord, planned: Planned) -> TmpfsPolicyStatus | None:
    """None while nothing is known."""
    before = record.status.conditions if record.status is not None else ()
    now = timestamp(time.time())
    if name in planned.refused:
        return status.refused(record.generation, planned.refused[name], before, now)
    policy = planned.policies.get(name)
    counted, progress = planned.tallies.get(name), planned.progress.get(name)
    if policy is None or counted is None or progress is None:
        return None
    return status.status(policy, record.generation, counted, progress, before, now)


def _meaning(of: TmpfsPolicyStatus) -> tuple[object, ...]:
    return (of.observed_generation, {(each.type, each.status, each.reason) for each in of.conditions})


def _counts(of: TmpfsPolicyStatus) -> tuple[object, ...]:
    return (of.nodes, {(each.node_name, each.state) for each in of.problems})
