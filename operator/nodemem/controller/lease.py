"""Leader election on a Lease of coordination.k8s.io/v1: of several replicas one writes.

As client-go does it: the holder renews, others watch the record and take it when it has not changed for its duration
by their own clock. Unlike there, losing it does not end the process: the fence closes, the tables stay warm.

Holding is a matter of time, not of a flag: a loop that was frozen finds the fence closed when it wakes.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from nodemem.controller.client import Api, ApiError

DURATION_SECONDS = 15
RENEW_SECONDS = 10.0
RETRY_SECONDS = 2.0

_log = logging.getLogger(__name__)


class Elector:
    """``on_change`` is called, in the loop, with whether it is held now."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        name: str,
        identity: str,
        on_change: Callable[[bool], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._namespace, self._name = namespace, name
        self.identity = identity
        self._on_change = on_change
        self._clock = clock
        self._renewed = float("-inf")
        self._seen: tuple[str, float] = ("", 0.0)
        self._told = False

    @property
    def held(self) -> bool:
        """The fence: true only while the last renewal, counted from before it was sent, is young enough."""
        return self._clock() - self._renewed < RENEW_SECONDS

    async def run(self) -> None:
        """Try to get and keep it, until cancelled."""
        while True:
            try:
                await asyncio.wait_for(self._try(), RENEW_SECONDS / 2)
            except ApiError as error:
                _log.warning("lease %s/%s: %s", self._namespace, self._name, error)
            except TimeoutError:
                _log.warning("lease %s/%s: no answer", self._namespace, self._name)
            self._tell()
            await asyncio.sleep(RETRY_SECONDS * random.uniform(0.9, 1.1))
            # Between tries, time alone can close the fence.
            self._tell()

    async def release(self) -> None:
        """Give it up, so that a standby need not wait for its end. The fence closes first."""
        held, self._renewed = self.held, float("-inf")
        self._tell()
        if not held:
            return
        try:
            lease = await self._api.send("GET", f"{self._collection}/{self._name}")
            if lease["spec"].get("holderIdentity") == self.identity:
                lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _now()}
                await self._api.send("PUT", f"{self._collection}/{self._name}", body=lease)
        except ApiError as error:
            _log.warning("lease %s/%s could not be released: %s", self._namespace, self._name, error)

    def _tell(self) -> None:
        if self.held != self._told:
            self._told = not self._told
            _log.info("lease %s/%s: %s", self._namespace, self._name, "held" if self._told else "not held")
            self._on_change(self._told)

    async def _try(self) -> None:
        started = self._clock()
        try:
            lease = await self._api.send("GET", f"{self._collection}/{self._name}")
        except ApiError as error:
            if error.code != 404:
                raise
            await self._create(started)
            return
        spec = lease.setdefault("spec", {})
        holder = spec.get("holderIdentity") or ""
        # Any change of the object shows a living holder; which clock wrote its times doesn't matter.
        version = lease["metadata"]["resourceVersion"]
        if version != self._seen[0]:
            self._seen = (version, started)
        mine = holder == self.identity
        duration = spec.get("leaseDurationSeconds") or DURATION_SECONDS
        if holder and not mine and started < self._seen[1] + duration:
            self._renewed = float("-inf")
            return
        spec |= {"holderIdentity": self.identity, "leaseDurationSeconds": DURATION_SECONDS, "renewTime": _now()}
        if not mine:
            spec |= {"acquireTime": _now(), "leaseTransitions": (spec.get("leaseTransitions") or 0) + 1}
        await self._put("PUT", f"{self._collection}/{self._name}", lease, started)

    async def _create(self, started: float) -> None:
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": {
                "holderIdentity": self.identity,
                "leaseDurationSeconds": DURATION_SECONDS,
                "acquireTime": _now(),
                "renewTime": _now(),
                "leaseTransitions": 0,
            },
        }
        await self._put("POST", self._collection, lease, started)

    async def _put(self, verb: str, path: str, lease: dict[str, Any], started: float) -> None:
        """With the resourceVersion that was read: of two that try, one gets 409."""
        try:
            answer = await self._api.send(verb, path, body=lease)
        except ApiError as error:
            if error.code == 409:
                return
            raise
        self._seen = (answer["metadata"]["resourceVersion"], started)
        self._renewed = started


def _now() -> str:
    """A MicroTime, in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
