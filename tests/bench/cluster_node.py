"""A node made of values: 110 pods, 330 containers, 294 tmpfs, with names as long as kubelet and containerd make them.

What the agent's own code makes of it (``status``) has the size of a real report, without a kernel to ask. Figures are
moved by whoever holds the node; time is whatever the caller says it is.
"""

import hashlib
import random
from dataclasses import dataclass, field

from nodemem.kernel import meminfo, oom
from nodemem.kernel.cgroups import Hierarchy, MemoryCgroup
from nodemem.kernel.host import Host
from nodemem.kernel.mounts import MountPoint, MountScan, Superblock
from nodemem.kernel.procfs import ProcessScan
from nodemem.kernel.shmem import Breakdown
from nodemem.kernel.tmpfs import FileUse, Inspection
from nodemem.node import report
from nodemem.node.owners import ContainerRef, QosClass, TmpfsKind, TmpfsOwner
from nodemem.node.report import Names, PodName
from nodemem.node.snapshot import Container, KernelFacts, Snapshot
from nodemem.node.status import ExposureStatus, LimitStatus, ReportStatus
from nodemem.node.trends import History

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PODS, CONTAINERS_PER_POD = 110, 3
TOTAL_BYTES = 64 * GIB
EPOCH = 1_900_000_000.0
"""Unix time at which the time of a node is 0."""

_QOS: tuple[QosClass, ...] = ("Guaranteed", "Burstable", "BestEffort")
_HOST = {"/run": (6, 13 * GIB), "/dev/shm": (7, 32 * GIB), "/run/lock": (8, 5 * MIB), "/run/user/1000": (9, 6 * GIB)}


@dataclass(slots=True)
class Tmpfs:
    """``files``: how many are in it, of equal size."""

    device: str
    path: str
    kind: TmpfsKind
    size_bytes: int
    used_bytes: int
    pod_uid: str | None = None
    volume: str | None = None
    files: int = 0


@dataclass(slots=True)
class Pod:
    uid: str
    name: str
    namespace: str
    qos: QosClass
    containers: list[str]
    shmem_bytes: int = 0


@dataclass(slots=True)
class ModelNode:
    """``seed`` decides names and figures. ``available_bytes`` and ``anonymous_bytes`` may be set at any time."""

    seed: int = 0
    pods: dict[str, Pod] = field(default_factory=dict)
    tmpfs: dict[str, Tmpfs] = field(default_factory=dict)
    anonymous_bytes: int = 20 * GIB
    page_cache_bytes: int = 24 * GIB
    slab_bytes: int = GIB
    exposures: tuple[ExposureStatus, ...] = ()
    limits: tuple[LimitStatus, ...] = ()
    observed_generation: int | None = None
    history: History = field(default_factory=History)
    _next: int = 20
    _random: random.Random = field(init=False)
    _hierarchy: Hierarchy = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._hierarchy = Hierarchy(Host(), "v2", "v2", "/sys/fs/cgroup", "/", [])
        for path, (minor, size) in _HOST.items():
            self.tmpfs[path] = Tmpfs(f"0:{minor}", path, "Host", size, self._random.randrange(MIB), files=5)
        self.tmpfs["/run"].used_bytes = 1200 * MIB
        for number in range(PODS):
            self.add_pod(number)

    def add_pod(self, number: int) -> Pod:
        """With its /dev/shm, its token, and of most pods a memory emptyDir or a secret."""
        digest = hashlib.sha256(f"{self.seed} {number}".encode()).hexdigest()
        uid = f"{digest[:8]}-{digest[8:12]}-{digest[12:16]}-{digest[16:20]}-{digest[20:32]}"
        containers = [
            hashlib.sha256(f"{self.seed} {number} {each}".encode()).hexdigest() for each in range(CONTAINERS_PER_POD)
        ]
        name = f"checkout-frontend-{digest[:10]}-{digest[10:15]}"
        pod = Pod(uid, name, f"team-{number % 12}-production", _QOS[number % 3], containers)
        self.pods[uid] = pod
        volumes = f"/var/lib/kubelet/pods/{uid}/volumes"
        shm = f"/run/containerd/io.containerd.grpc.v1.cri/sandboxes/{containers[0]}/shm"
        self._mount(shm, "SharedMemory", 64 * MIB, 0, uid, None)
        self._mount(f"{volumes}/kubernetes.io~projected/kube-api-access-{digest[:5]}", "Projected", GIB, 12 * KIB, uid)
        if number % 11 < 5:
            used = self._random.randrange(1, 400) * MIB
            self._mount(f"{volumes}/kubernetes.io~empty-dir/cache", "EmptyDir", 2 * GIB, used, uid, "cache", files=5)
        elif number % 11 < 7:
            self._mount(f"{volumes}/kubernetes.io~secret/tls", "Secret", GIB, 8 * KIB, uid, "tls")
        return pod

    def remove_pod(self, uid: str) -> None:
        del self.pods[uid]
        for path in [path for path, each in self.tmpfs.items() if each.pod_uid == uid]:
            del self.tmpfs[path]

    def cache_of(self, pod: Pod) -> Tmpfs | None:
        return self.tmpfs.get(f"/var/lib/kubelet/pods/{pod.uid}/volumes/kubernetes.io~empty-dir/cache")

    @property
    def tmpfs_bytes(self) -> int:
        return sum(each.used_bytes for each in self.tmpfs.values())

    @property
    def shmem_bytes(self) -> int:
        return self.tmpfs_bytes + sum(each.shmem_bytes for each in self.pods.values())

    def status(self, time: float) -> ReportStatus:
        """What the agent offers at ``time`` (of a clock that is never set), by its own code."""
        snapshot = self.snapshot(time)
        report.observe(self.history, snapshot, time)
        return report.build(
            snapshot,
            self.history,
            names=self.names(),
            exposures=self.exposures,
            oom_kills=(),
            limits=self.limits,
            observed_generation=self.observed_generation,
        )

    def names(self) -> Names:
        return Names(
            {each.uid: PodName(each.namespace, each.name) for each in self.pods.values()},
            {
                one: ("istio-proxy", "application", "log-shipper")[at]
                for each in self.pods.values()
                for at, one in enumerate(each.containers)
            },
        )

    def snapshot(self, time: float) -> Snapshot:
        now = EPOCH + time
        shmem = self.shmem_bytes
        return Snapshot(
            observed_at=now,
            page_size=4096,
            facts=KernelFacts("node", "6.8.0-1021-aws", "0d9f", time, 0, False, 60),
            memory=self._memory(shmem),
            scan=ProcessScan({}, 0, 0, []),
            mounts=MountScan({each.device: _superblock(each, now) for each in self.tmpfs.values()}, [], {}),
            shmem=self._breakdown(shmem),
            hierarchy=self._hierarchy,
            containers=self._containers(),
            process_owners={},
            host_namespace=1,
            tmpfs_owners={each.device: _owner(each) for each in self.tmpfs.values()},
            inspections={each.device: _inspection(each, now) for each in self._largest()},
            writers={},
            probe=oom.Probe(oom.Generation.ACCURATE, "6.8.0", "probed"),
            unreadable=(),
        )

    def _mount(
        self,
        path: str,
        kind: TmpfsKind,
        size: int,
        used: int,
        uid: str,
        volume: str | None = None,
        *,
        files: int = 0,
    ) -> None:
        self._next += 1
        self.tmpfs[path] = Tmpfs(f"0:{self._next}", path, kind, size, used, uid, volume, files)

    def _memory(self, shmem: int) -> meminfo.Memory:
        used = self.anonymous_bytes + self.page_cache_bytes + shmem + self.slab_bytes + 600 * MIB
        free = max(0, TOTAL_BYTES - used)
        partition = meminfo.Partition(
            total_bytes=TOTAL_BYTES,
            available_bytes=free + self.page_cache_bytes,
            available_estimated=False,
            free_bytes=free,
            anonymous_bytes=self.anonymous_bytes,
            page_cache_bytes=self.page_cache_bytes,
            buffers_bytes=200 * MIB,
            shmem_bytes=shmem,
            slab_reclaimable_bytes=self.slab_bytes // 2,
            slab_unreclaimable_bytes=self.slab_bytes // 2,
            kernel_stack_bytes=60 * MIB,
            page_tables_bytes=200 * MIB,
            vmalloc_bytes=80 * MIB,
            per_cpu_bytes=60 * MIB,
            huge_pages_bytes=0,
            other={},
            unaccounted_bytes=0,
            swap_total_bytes=0,
            swap_free_bytes=0,
            mapped_shmem_bytes=0,
            mapped_shmem_error_bytes=0,
            unevictable_cache_bytes=0,
        )
        return meminfo.Memory({}, partition, meminfo.Layout(), [])

    def _breakdown(self, shmem: int) -> Breakdown:
        tmpfs = self.tmpfs_bytes
        return Breakdown(shmem, tmpfs, 0, shmem - tmpfs, 0, 0, 0, 0, 0, None, 0, {}, (), (), False, ())

    def _containers(self) -> dict[str, Container]:
        found = {}
        for pod in self.pods.values():
            parent = (
                "/kubepods.slice" if pod.qos == "Guaranteed" else f"/kubepods.slice/kubepods-{pod.qos.lower()}.slice"
            )
            stem = f"{parent}/{parent.rsplit('/', 1)[1].removesuffix('.slice')}-pod{pod.uid.replace('-', '_')}.slice"
            for at, each in enumerate(pod.containers):
                path = f"{stem}/cri-containerd-{each}.scope"
                usage, shmem = (90 * MIB + int(each[:6], 16)), pod.shmem_bytes if at == 1 else 0
                cgroup = MemoryCgroup(path, True, usage + shmem, usage, shmem, shmem, 0, 0, limit_bytes=2 * GIB)
                found[each] = Container(ContainerRef(each, "containerd", pod.uid, pod.qos), path, cgroup, ())
        return found

    def _largest(self) -> list[Tmpfs]:
        """As the collector chooses what to look into."""
        worth = [each for each in self.tmpfs.values() if each.used_bytes >= 64 * MIB]
        return sorted(worth, key=lambda each: -each.used_bytes)[:5]


def _superblock(of: Tmpfs, now: float) -> Superblock:
    mounts = [MountPoint(1, of.path, "/", 30, "rw,relatime", False)]
    return Superblock(
        of.device,
        "tmpfs",
        "tmpfs",
        "rw",
        of.size_bytes,
        of.used_bytes,
        8_000_000,
        40,
        False,
        mounts,
        1,
        of.path,
        None,
        now,
    )


def _owner(of: Tmpfs) -> TmpfsOwner:
    return TmpfsOwner(of.kind, of.path, of.pod_uid, of.volume, unit="systemd-journald" if of.path == "/run" else None)


def _inspection(of: Tmpfs, now: float) -> Inspection:
    size = of.used_bytes // max(1, of.files)
    files = [FileUse(f"/log/journal/segment-{at}.journal", size, size, 1, now - 60 * at) for at in range(of.files)]
    return Inspection(
        of.device, of.path, "/", of.used_bytes, of.used_bytes, 0, files, [], None, now, now, size, 0, 20, 0, 0, None
    )
