"""Who a process or a tmpfs belongs to, told from cgroup paths and mount points: pods by uid, containers by id, systemd
units by name. Pod and container names need the API server and are added above.

The rule for nested trees: the outermost pod in a path owns what is below it, and in it the outermost container; without
a pod the outermost container. So a kind node's pods are pods although the node is itself a container, and what a Docker
inside of a pod runs is that pod's.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

from nodemem.kernel.mounts import MountPoint, Superblock

QosClass = Literal["Guaranteed", "Burstable", "BestEffort"]
TmpfsKind = Literal["Host", "EmptyDir", "SharedMemory", "Projected", "Secret", "DownwardAPI", "Other"]


@dataclass(slots=True)
class ContainerRef:
    """``pod_uid`` and ``qos`` are None for a container that no kubelet made; ``runtime`` where the path doesn't say.
    Treat it as frozen."""

    container_id: str
    runtime: str | None = None
    pod_uid: str | None = None
    qos: QosClass | None = None


@dataclass(frozen=True, slots=True)
class PodRef:
    """A pod's own cgroup, or something in it that is no container (conmon, a virtual machine's overhead)."""

    pod_uid: str
    qos: QosClass


@dataclass(frozen=True, slots=True)
class ServiceRef:
    """A systemd unit, or the cgroup's path (starting with ``/``) where nothing in it is a unit.

    ``user_uid`` is set for units of a user's own service manager and for login sessions.
    """

    unit: str
    user_uid: int | None = None


@dataclass(frozen=True, slots=True)
class KernelRef:
    """The kernel's own threads."""


Owner = ContainerRef | PodRef | ServiceRef | KernelRef


@dataclass(slots=True)
class TmpfsOwner:
    """What a tmpfs is for, and whose it is as far as paths and namespaces tell. Treat it as frozen.

    ``container_id`` is the one container that has it; for SharedMemory of a pod, the sandbox (it need not be running).
    ``containers`` are those whose mount namespace has it mounted, sorted; where a pod owns it, the pod's alone, since
    node agents have every pod's mounts somewhere. ``unit`` goes with Host.
    """

    kind: TmpfsKind
    path: str | None = None
    """The mount point that decided."""
    pod_uid: str | None = None
    volume: str | None = None
    plugin: str | None = None
    """The kubelet's volume plugin, as in ``kubernetes.io~csi``: what follows the tilde."""
    container_id: str | None = None
    unit: str | None = None
    containers: tuple[str, ...] = ()


class HasComm(Protocol):
    @property
    def comm(self) -> str: ...


# The prefix of a systemd scope (or of the cgroupfs name, for CRI-O and podman) -> the runtime.
_RUNTIMES = {
    "cri-containerd": "containerd",
    "nerdctl": "containerd",
    "crio": "cri-o",
    "docker": "docker",
    "libpod": "podman",
    "libpod-payload": "podman",
}
# Parents of a bare id: Docker's own, and the namespaces of containerd.
_PARENTS = {"docker": "docker", "moby": "docker", "default": "containerd", "k8s.io": "containerd"}

# Ids are hexadecimal: "kubepods-burstable-pod<uid>.slice" is 64 characters long too.
_ID = re.compile(r"([0-9a-f]{64})(?:\.scope)?")
_PREFIXED_ID = re.compile(r"([a-z][a-z0-9.-]*)[-_]([0-9a-f]{64})(?:\.scope)?")
_POD_SLICE = re.compile(r"(?:.+-)?kubepods(?:-(?P<qos>burstable|besteffort))?-pod(?P<uid>[^/:]+)\.slice")
_QOS: dict[str | None, QosClass] = {None: "Guaranteed", "burstable": "Burstable", "besteffort": "BestEffort"}
_UNIT = re.compile(r".+\.(?:service|scope|socket|mount|swap)")
_USER = re.compile(r"user-([0-9]{1,10})\.slice")

_POD_VOLUME = re.compile(
    r"/pods/(?P<uid>[^/]+)/volumes/kubernetes\.io~(?P<plugin>[^/]+)/(?P<volume>[^/]+)(?:/mount)?", re.DOTALL
)
_VOLUME_KINDS: dict[str, TmpfsKind] = {
    "empty-dir": "EmptyDir",
    "projected": "Projected",
    "secret": "Secret",
    "downward-api": "DownwardAPI",
}
_SANDBOX_SHM = re.compile(
    r"/io\.containerd\.[^/]*cri[^/]*/sandboxes/(?P<containerd>[^/]+)/shm"
    r"|/[a-z0-9]+-containers/(?P<storage>[^/]+)/userdata/shm"
    r"|/containers/(?P<docker>[0-9a-f]{64})/(?:mounts/)?shm"
)
_SHALLOW = 16
_CREDENTIALS = re.compile(r"/run/credentials/(?P<unit>[^/]+)")
_RUNTIME_DIR = re.compile(r"/run/user/(?P<uid>[0-9]+)")


def parse_cgroup(path: str, root: str = "/") -> ContainerRef | PodRef | None:
    """The container or pod that a memory cgroup belongs to; None for the host's own.

    ``root`` is the top of what this node sees (``Hierarchy.root``): on a node that is itself a container, what comes
    before is not its own.
    """
    owner = _parse(path, root)
    return None if isinstance(owner, ServiceRef) else owner


def forget() -> None:
    """Drop what was parsed of cgroups: to be called now and then where they come and go."""
    _parse.cache_clear()


def process_owner(cgroup: str | None, *, kernel_thread: bool = False, root: str = "/") -> Owner | None:
    """Whose process it is; None when its cgroup is unknown or the root (nothing manages it)."""
    if kernel_thread:
        return KernelRef()
    return None if cgroup is None else _parse(cgroup, root)


def is_sandbox(processes: Iterable[HasComm]) -> bool:
    """Whether these, all processes of one container, are those of a pod's sandbox: one, called ``pause``.

    Every pause image in use names it so. CRI-O may run without one, and then the pod has no sandbox container.
    """
    comms = [process.comm for process in processes]
    return comms == ["pause"]


def classify(superblock: Superblock, owners: Mapping[int, Iterable[Owner]], host_namespace: int | None) -> TmpfsOwner:
    """Whose a tmpfs is. ``owners`` has for each mount namespace (inode) the owners of the processes in it.

    Mount points in the host's namespace decide first: only root on the node makes those. A path inside of a container
    is not believed, since the container can mount what it likes at a path that looks like the kubelet's.
    """
    containers = _containers(superblock.mounts, owners)
    ids = tuple(sorted(containers))
    on_host = [_live_path(mount) for mount in superblock.mounts if mount.namespace == host_namespace]
    for path in on_host:
        if (found := _ends_with(_POD_VOLUME, path)) is not None:
            kind = _VOLUME_KINDS.get(found["plugin"], "Other")
            its_own = tuple(each for each in ids if containers[each].pod_uid == found["uid"])
            return TmpfsOwner(kind, path, found["uid"], found["volume"], found["plugin"], containers=its_own)
    for path in on_host:
        if (found := _ends_with(_SANDBOX_SHM, path)) is not None:
            sandbox = found["containerd"] or found["storage"] or found["docker"]
            pod = _pod_of_sandbox(sandbox, superblock.mounts, owners)
            its_own = tuple(each for each in ids if pod is None or containers[each].pod_uid == pod)
            return TmpfsOwner("SharedMemory", path, pod, container_id=sandbox, containers=its_own)
    if on_host:
        path = min(on_host, key=_depth)
        return TmpfsOwner("Host", path, unit=_unit_of_mount(path), containers=ids)
    paths = {_live_path(mount) for mount in superblock.mounts}
    path_inside = "/dev/shm" if "/dev/shm" in paths else min(paths, key=_depth, default=None)
    if containers:
        pods = {container.pod_uid for container in containers.values()}
        return TmpfsOwner(
            "SharedMemory" if path_inside == "/dev/shm" else "Other",
            path_inside,
            pods.pop() if len(pods) == 1 else None,
            container_id=ids[0] if len(ids) == 1 else None,
            containers=ids,
        )
    services = {
        owner.unit
        for mount in superblock.mounts
        for owner in owners.get(mount.namespace, ())
        if isinstance(owner, ServiceRef)
    }
    if services:  # a unit's private mounts: PrivateDevices=, TemporaryFileSystem=, ...
        return TmpfsOwner("Host", path_inside, unit=services.pop() if len(services) == 1 else None)
    return TmpfsOwner("Other", path_inside)


@lru_cache(maxsize=2048)
def _parse(path: str, root: str) -> ContainerRef | PodRef | ServiceRef | None:
    above, _, name = path.rpartition("/")
    if above and path != root and path.count("/") < _SHALLOW:  # known already from another container of the pod
        owner = _parse(above, root)
        if isinstance(owner, ContainerRef) and owner.pod_uid is not None:
            return owner
        if isinstance(owner, PodRef) and "conmon" not in path:
            return _in_pod(owner, _split_colons(name))
    if root != "/" and (path == root or path.startswith(f"{root}/")):
        path = path[len(root) :]
    segments = [part for segment in path.split("/") if segment for part in _split_colons(segment)]
    for index, segment in enumerate(segments):
        pod = _pod(segments, index, segment)
        if pod is not None:
            return _in_pod(pod, segments[index + 1 :])
    for index, segment in enumerate(segments):
        before = segments[index - 1] if index else ""
        if (found := _container(segment, before)) is not None:
            return ContainerRef(*found)
    return _service(path, segments)


def _split_colons(segment: str) -> list[str]:
    """``<slice>:<prefix>:<id>`` is meant for runc's systemd driver; the cgroupfs driver makes one directory of it."""
    parts = segment.split(":")
    return [parts[0], f"{parts[1]}-{parts[2]}"] if len(parts) == 3 else [segment]


def _pod(segments: list[str], index: int, segment: str) -> PodRef | None:
    if (match := _POD_SLICE.fullmatch(segment)) is not None:
        # systemd's "-" separates levels, so the kubelet writes "_" for those of the uid.
        return PodRef(match["uid"].replace("_", "-"), _QOS[match["qos"]])
    if segment.startswith("pod") and len(segment) > 3 and index:
        qos = segments[index - 1]
        if qos == "kubepods":
            return PodRef(segment[3:], "Guaranteed")
        if qos in _QOS and index > 1 and segments[index - 2] == "kubepods":
            return PodRef(segment[3:], _QOS[qos])
    return None


def _in_pod(pod: PodRef, below: list[str]) -> ContainerRef | PodRef:
    for segment in below:
        if (found := _container(segment, "")) is not None:
            return ContainerRef(*found, pod.pod_uid, pod.qos)
        if "conmon" in segment:
            break
    return pod


def _container(segment: str, before: str) -> tuple[str, str | None] | None:
    if (match := _ID.fullmatch(segment)) is not None:
        return match[1], _PARENTS.get(before)
    # A podman pod's slice and the monitors carry an id too.
    if (match := _PREFIXED_ID.fullmatch(segment)) is not None and match[1] in _RUNTIMES:
        return match[2], _RUNTIMES[match[1]]
    return None


def _service(path: str, segments: list[str]) -> ServiceRef | None:
    if not segments:
        return None
    user = next((int(match[1]) for segment in segments if (match := _USER.fullmatch(segment))), None)
    units = [segment.removeprefix("_") for segment in segments if _UNIT.fullmatch(segment)]
    # Below user@<uid>.service come the units of that user's own manager; below any other unit, its private cgroups.
    if len(units) > 1 and units[0].startswith("user@"):
        return ServiceRef(units[1], user)
    if units:
        return ServiceRef(units[0], user)
    if segments[-1].endswith(".slice"):
        return ServiceRef(segments[-1], user)
    return ServiceRef(path if path.startswith("/") else f"/{path}", user)


def _depth(path: str) -> tuple[int, str]:
    return path.count("/"), path


def _live_path(mount: MountPoint) -> str:
    return mount.path.removesuffix("//deleted")


def _ends_with(pattern: re.Pattern[str], path: str) -> re.Match[str] | None:
    """The pattern at the very end of the path; cheap for a path that has nothing of it."""
    found = None
    for match in pattern.finditer(path):
        found = match
    return found if found is not None and found.end() == len(path) else None


def _containers(mounts: Iterable[MountPoint], owners: Mapping[int, Iterable[Owner]]) -> dict[str, ContainerRef]:
    """By id."""
    return {
        owner.container_id: owner
        for namespace in {mount.namespace for mount in mounts}
        for owner in owners.get(namespace, ())
        if isinstance(owner, ContainerRef)
    }


def _pod_of_sandbox(sandbox: str, mounts: Iterable[MountPoint], owners: Mapping[int, Iterable[Owner]]) -> str | None:
    # A node agent with the host's directories mounted has every pod's shm somewhere: only /dev/shm tells.
    users = _containers((mount for mount in mounts if _live_path(mount) == "/dev/shm"), owners)
    pods = {user.pod_uid for user in ([users[sandbox]] if sandbox in users else users.values())}
    return pods.pop() if len(pods) == 1 else None


def _unit_of_mount(path: str) -> str | None:
    if (match := _CREDENTIALS.fullmatch(path)) is not None:
        return match["unit"]
    if (match := _RUNTIME_DIR.fullmatch(path)) is not None:
        return f"user-runtime-dir@{match['uid']}.service"
    return None
