"""The pods of this node: of each the few values a report needs, fed by a watch."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from nodemem.node import adj
from nodemem.node.owners import QosClass
from nodemem.node.report import Names, PodName
from nodemem.node.units import parse_size


def quantity_bytes(text: str | int | None) -> int | None:
    """A quantity of a pod's resources in bytes; None without one, and where it is none."""
    try:
        return None if text is None else parse_size(str(text))
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class PodContainer:
    """``id`` is None before it runs. ``request_bytes`` 0: it has none; ``sidecar``: an init container that stays."""

    name: str
    id: str | None
    request_bytes: int
    limit_bytes: int | None
    sidecar: bool = False
    regular: bool = True


@dataclass(frozen=True, slots=True)
class Pod:
    """``cgroup_uid`` is the uid in cgroup paths: of a static pod not that of its mirror in the API."""

    namespace: str
    name: str
    uid: str
    cgroup_uid: str
    resource_version: str
    qos: str | None
    critical: bool
    containers: tuple[PodContainer, ...]


def parse(found: dict[str, Any]) -> Any:
    """A pod's JSON object as ``Pod`` (a bookmark's too, which has no name); any other object as it is.

    Shape alone decides, as inner objects come by, too; annotations may have these keys but only strings below them.
    """
    meta, spec, status = found.get("metadata"), found.get("spec"), found.get("status")
    if not isinstance(meta, dict) or not isinstance(spec, dict) or not isinstance(status, dict):
        return found
    annotations = meta.get("annotations") or {}
    uid = str(meta.get("uid", ""))
    mirror = "kubernetes.io/config.mirror" in annotations
    ids = {
        each["name"]: str(each.get("containerID") or "").rpartition("//")[2] or None
        for kind in ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses")
        for each in status.get(kind) or ()
    }
    containers = [
        _container(each, kind, ids)
        for kind in ("containers", "initContainers", "ephemeralContainers")
        for each in spec.get(kind) or ()
    ]
    return Pod(
        namespace=str(meta.get("namespace", "")),
        name=str(meta.get("name", "")),
        uid=uid,
        cgroup_uid=str(annotations.get("kubernetes.io/config.hash") or uid) if mirror else uid,
        resource_version=str(meta.get("resourceVersion", "")),
        qos=status.get("qosClass"),
        critical=spec.get("priorityClassName") == "system-node-critical",
        containers=tuple(containers),
    )


def _container(spec: Mapping[str, Any], kind: str, ids: Mapping[str, str | None]) -> PodContainer:
    resources = spec.get("resources") or {}
    limit = quantity_bytes((resources.get("limits") or {}).get("memory"))
    request = quantity_bytes((resources.get("requests") or {}).get("memory"))
    return PodContainer(
        name=str(spec["name"]),
        id=ids.get(spec["name"]),
        request_bytes=request or 0,
        limit_bytes=limit or None,
        sidecar=kind == "initContainers" and spec.get("restartPolicy") == "Always",
        regular=kind == "containers",
    )


class PodTable:
    """Fed by a ``Watch``; read by other threads, which always see one whole state (``names`` is replaced, never
    changed)."""

    def __init__(self, capacity_bytes: int = 0) -> None:
        self._pods: dict[str, Pod] = {}
        self._capacity_bytes = capacity_bytes
        self._lock = threading.Lock()
        self.names = Names()
        self._by_cgroup: dict[str, Pod] = {}

    def parse(self, found: dict[str, Any]) -> Any:
        return parse(found)

    def replace(self, objects: Sequence[Pod]) -> None:
        with self._lock:
            self._pods = {pod.uid: pod for pod in objects}
            self._publish()

    def change(self, kind: str, found: Pod) -> None:
        with self._lock:
            if kind == "DELETED":
                self._pods.pop(found.uid, None)
            else:
                self._pods[found.uid] = found
            self._publish()

    def set_capacity(self, capacity_bytes: int) -> None:
        """MemTotal: what the kubelet divides requests by."""
        if capacity_bytes != self._capacity_bytes:
            with self._lock:
                self._capacity_bytes = capacity_bytes
                self._publish()

    def of_cgroup(self, uid: str | None) -> Pod | None:
        """By the uid in cgroup paths."""
        return None if uid is None else self._by_cgroup.get(uid)

    def __len__(self) -> int:
        return len(self._pods)

    def _publish(self) -> None:
        pods = list(self._pods.values())
        self._by_cgroup = {pod.cgroup_uid: pod for pod in pods}
        self.names = Names(
            pods={pod.cgroup_uid: PodName(pod.namespace, pod.name) for pod in pods},
            containers={each.id: each.name for pod in pods for each in pod.containers if each.id},
            expected_oom_score_adj={
                each.id: value
                for pod in pods
                for each in pod.containers
                if each.id and (value := self._expected(pod, each)) is not None
            },
        )

    def _expected(self, pod: Pod, container: PodContainer) -> int | None:
        return adj.expected_oom_score_adj(
            cast(QosClass | None, pod.qos),
            container.request_bytes,
            self._capacity_bytes,
            critical=pod.critical,
            sidecar_of_bytes=[each.request_bytes for each in pod.containers if each.regular]
            if container.sidecar
            else None,
        )
