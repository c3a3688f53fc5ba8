"""Pods and namespaces by name: only those that a report names, remembered for some minutes.

Watching all pods of a cluster would cost more than everything else here together.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Any

from nodemem.controller.client import Api, ApiError
from nodemem.controller.exposures import Pod, PodKey
from nodemem.controller.records import quantity_bytes
from nodemem.policy.limits import SHM_SIZE

MAX_AGE_SECONDS = 300.0
"""Labels and policies that change take effect within this."""

MISMATCH_SECONDS = 10.0
"""A pod that is not there, or is not the one a report means, is looked up again after this: one of both is behind."""

_AT_A_TIME = 8


class Lookup:
    """Answers of the API server, with the ``time.monotonic`` they came at. ``at_once``: the most pods that one question
    looks up; then ``behind`` is true, and the rest comes with the next ones."""

    def __init__(self, api: Api, *, max_age_seconds: float = MAX_AGE_SECONDS, at_once: int | None = None) -> None:
        self._api = api
        self._max_age_seconds = max_age_seconds
        self._at_once = at_once
        self.behind = False
        self._pods: dict[PodKey, tuple[float, Pod | None]] = {}
        self._namespaces: dict[str, tuple[float, Mapping[str, str]]] = {}
        self._gate = asyncio.Semaphore(_AT_A_TIME)

    async def pods(self, uids: Mapping[PodKey, Iterable[str]]) -> dict[PodKey, Pod | None]:
        """Those of ``uids`` (the UIDs that reports give a pod) that could be looked up; None: there is none."""
        for key in self._pods.keys() - uids.keys():
            del self._pods[key]
        now = time.monotonic()
        old = [key for key, meant in uids.items() if not self._fresh(key, meant, now)]
        self.behind = self._at_once is not None and len(old) > self._at_once
        await asyncio.gather(*(self._pod(key) for key in old[: self._at_once]))
        return {key: self._pods[key][1] for key in uids if key in self._pods}

    async def namespaces(self, names: Iterable[str]) -> dict[str, Mapping[str, str]]:
        """Their labels; a namespace that is gone has none."""
        wanted = set(names)
        for name in self._namespaces.keys() - wanted:
            del self._namespaces[name]
        now = time.monotonic()
        old = [name for name in wanted if now - self._namespaces.get(name, (float("-inf"),))[0] > MAX_AGE_SECONDS]
        await asyncio.gather(*(self._namespace(name) for name in old))
        return {name: labels for name, (_, labels) in self._namespaces.items()}

    def forget(self, key: PodKey) -> None:
        """Something happened to this pod: look again before it is written about."""
        self._pods.pop(key, None)

    def known(self, key: PodKey) -> Pod | None:
        return self._pods[key][1] if key in self._pods else None

    def _fresh(self, key: PodKey, meant: Iterable[str], now: float) -> bool:
        if key not in self._pods:
            return False
        at, pod = self._pods[key]
        fits = pod is not None and any(pod.known_as(uid) for uid in meant)
        return now - at <= (self._max_age_seconds if fits else MISMATCH_SECONDS)

    async def _pod(self, key: PodKey) -> None:
        namespace, name = key
        async with self._gate:
            try:
                body = await self._api.find(f"/api/v1/namespaces/{namespace}/pods/{name}")
            except ApiError:
                # Unknown, not absent; what was known before is not held against it.
                self._pods.pop(key, None)
                return
        self._pods[key] = (time.monotonic(), None if body is None else pod(body))

    async def _namespace(self, name: str) -> None:
        async with self._gate:
            try:
                body = await self._api.find(f"/api/v1/namespaces/{name}")
            except ApiError:
                self._namespaces.pop(name, None)
                return
        labels = ((body or {}).get("metadata") or {}).get("labels") or {}
        self._namespaces[name] = (time.monotonic(), labels)


def pod(body: Mapping[str, Any]) -> Pod:
    metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    return Pod(
        uid=metadata["uid"],
        config_hash=(metadata.get("annotations") or {}).get("kubernetes.io/config.hash"),
        node_name=spec.get("nodeName"),
        qos=status.get("qosClass"),
        priority_class=spec.get("priorityClassName"),
        labels=metadata.get("labels") or {},
        memory_limit_bytes=_memory_limit_bytes(spec),
        shm_size=(metadata.get("annotations") or {}).get(SHM_SIZE),
    )


def _memory_limit_bytes(spec: Mapping[str, Any]) -> int | None:
    """As the kubelet counts it: the pod's own, else that of its containers and sidecars, if each has one."""
    whole = _limit_bytes(spec)
    if whole is not None:
        return whole
    inits = spec.get("initContainers") or ()
    sidecars = [each for each in inits if each.get("restartPolicy") == "Always"]
    found = [_limit_bytes(each) for each in (*(spec.get("containers") or ()), *sidecars)]
    return sum(each or 0 for each in found) if found and None not in found else None


def _limit_bytes(owner: Mapping[str, Any]) -> int | None:
    return quantity_bytes(((owner.get("resources") or {}).get("limits") or {}).get("memory"))
