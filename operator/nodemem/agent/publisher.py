"""The report as it goes into the cluster: made if it isn't there, owned by its Node, written when that is worth it.

Runs in a thread of its own with a connection of its own, so that a server that doesn't answer delays no scan.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from nodemem.agent.bounded import bounded, encoded_bytes
from nodemem.agent.changes import Cadence, Written, why_write, with_transitions, written
from nodemem.agent.client import ApiError, Backoff, Client, Conflict, NotFound, Refused, chance
from nodemem.agent.log import Log
from nodemem.agent.metrics import Counters
from nodemem.agent.reports import GROUP_PATH, OwnReport
from nodemem.node.report import API_VERSION
from nodemem.node.status import Condition, LimitStatus, OomMitigationStatus, ReportStatus

MANAGER = "nodemem-agent"
NODE_CHECK_SECONDS = 3600.0
"""How often it is looked whether the Node is still the one that owns the report."""

_EVENTS_WAITING = 16
_LOOK_SECONDS = 5.0


class Publisher:
    """``offer`` a status after each scan; ``run`` decides and writes. Also sends Events, which wait while it can't.

    Everything about time is monotonic: clocks that are set have no say.
    """

    def __init__(
        self,
        client: Client,
        node_name: str,
        log: Log,
        counters: Counters,
        *,
        cadence: Cadence | None = None,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = chance,
    ) -> None:
        self._client = client
        self._node_name = node_name
        self._path = f"{GROUP_PATH}/{node_name}"
        self._log = log
        self._counters = counters
        self._cadence = cadence or Cadence()
        self._backoff = backoff or Backoff()
        self._clock = clock
        self._chance = chance
        self._wake = threading.Condition()
        self._offered: ReportStatus | None = None
        self._complete = False
        self._events: deque[tuple[str, dict[str, Any]]] = deque(maxlen=_EVENTS_WAITING)
        self._last: Written | None = None
        self._not_before = 0.0
        self._failed = False
        self._ensured_at: float | None = None
        self._must_ensure = True
        self._node_uid: str | None = None
        self._conditions: Mapping[str, Condition] = {}

    # Other threads

    def offer(self, status: ReportStatus, *, complete: bool = True) -> None:
        """The newest figures; what was offered before and not written is forgotten. One that is not ``complete`` is
        not written: it would take away what is in the report."""
        with self._wake:
            self._offered = status
            self._complete = complete
            self._wake.notify()

    def send_event(self, path: str, event: dict[str, Any]) -> None:
        """To be created at ``path`` when the server answers; of too many waiting the oldest go."""
        with self._wake:
            self._events.append((path, event))
            self._wake.notify()

    def written_limits(self) -> tuple[LimitStatus, ...] | None:
        """Those that the report has in the cluster, none if it was deleted; None: this process has not written it."""
        with self._wake:
            if self._last is None:
                return None
            return () if self._last.status is None else self._last.status.limits or ()

    def written_mitigations(self) -> tuple[OomMitigationStatus, ...] | None:
        """The same for mitigations."""
        with self._wake:
            if self._last is None:
                return None
            return () if self._last.status is None else self._last.status.oom_mitigations or ()

    def report_changed(self, report: OwnReport | None) -> None:
        """What the watch says of the report: when it is gone, or not owned by our Node, it is put right."""
        with self._wake:
            if report is not None:
                self._conditions = self._conditions or report.conditions
                if self._node_uid is None or self._node_uid in report.owner_uids:
                    return
            elif self._last is not None:
                self._last = replace(self._last, status=None)
            self._must_ensure = True
            self._wake.notify()

    # Its own thread

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            with self._wake:
                wait = self.rest_seconds()
                if wait > 0:
                    self._wake.wait(wait)
                    continue
            self.step()
        self._client.close()

    def rest_seconds(self) -> float:
        """How long there is nothing to do, as far as is known now; 0: ``step`` is due."""
        wait = self._not_before - self._clock()
        if wait > 0:
            return wait
        return 0.0 if self._ensure_due() or self._due() or self._events else _LOOK_SECONDS

    def step(self) -> None:
        """Do what is due now; after a failure nothing is, for a while."""
        try:
            if self._ensure_due():
                self._ensure()
            self._publish()
            self._send_events()
        except ApiError as error:
            self._counters.write_failures += 1
            self._failed = True
            self._not_before = self._clock() + self._backoff.failed(error.retry_after)
            self._log.problem("publishing the report", _sentence(error, self._node_name), status=error.status)
        else:
            self._backoff.succeeded()

    def _due(self) -> str | None:
        status = self._offered
        if status is None or not self._complete or self._must_ensure:
            return None
        return why_write(self._last, status, self._clock(), self._cadence)

    def _ensure_due(self) -> bool:
        """Not before there is something to say, nor in a row: whoever deletes it again and again gets no storm."""
        if self._offered is None:
            return False
        since = None if self._ensured_at is None else self._clock() - self._ensured_at
        wanted = self._must_ensure or since is None or since > NODE_CHECK_SECONDS
        return wanted and (since is None or since >= self._cadence.apart_seconds)

    def _publish(self) -> None:
        with self._wake:
            why, status = self._due(), self._offered
            if why is None or status is None:
                return
            status = with_transitions(status, self._conditions)
        plain = bounded(status)
        body = {
            "apiVersion": API_VERSION,
            "kind": "MemoryReport",
            "metadata": {"name": self._node_name},
            "status": plain,
        }
        try:
            self._client.apply(f"{self._path}/status", body, manager=MANAGER)
        except NotFound:
            self._must_ensure = True
            raise
        with self._wake:
            now, failed = self._clock(), self._failed
            self._last = written(self._last, status, now, why, self._chance(), self._cadence, together=failed)
            self._failed = False
            self._conditions = {each.type: each for each in status.conditions}
        with self._counters.lock:
            self._counters.writes[why] += 1
        self._counters.written_at = time.time()
        self._counters.report_bytes = encoded_bytes(plain)
        self._log.well("publishing the report")

    def _ensure(self) -> None:
        """The object itself, by an apply that changes nothing where it is as it should be. Its spec isn't ours."""
        node = self._client.get(f"/api/v1/nodes/{self._node_name}")
        uid = str(node["metadata"]["uid"])
        body = {
            "apiVersion": API_VERSION,
            "kind": "MemoryReport",
            "metadata": {
                "name": self._node_name,
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": self._node_name, "uid": uid}],
            },
        }
        self._client.apply(self._path, body, manager=MANAGER)
        with self._wake:
            self._must_ensure = False
            self._node_uid = uid
            self._ensured_at = self._clock()

    def _send_events(self) -> None:
        while True:
            with self._wake:
                if not self._events:
                    return
                path, event = self._events[0]
            try:
                self._client.create(path, event, manager=MANAGER)
            except (Conflict, NotFound):
                pass  # told before, perhaps by the agent that ran before this one; or the namespace is gone
            except Refused as error:
                self._log.problem("Events on pods", error.message, status=error.status)
            else:
                self._log.well("Events on pods")
            with self._wake:
                if self._events and self._events[0][1] is event:
                    self._events.popleft()


def _sentence(error: ApiError, node_name: str) -> str:
    if isinstance(error, NotFound) and "nodes" in error.message:
        return f"there is no Node {node_name!r}; --node-name has to be the name that 'kubectl get nodes' shows"
    if isinstance(error, NotFound):
        return f"{error.message}; are the custom resource definitions installed?"
    return error.message
