"""One observation of a node: every kernel reader called in the right order, and what their results have in common.

A ``Collector`` keeps what makes the next snapshot cheap. It holds no opinion: findings and the report are made from the
``Snapshot`` it returns.
"""

import errno
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from nodemem.kernel import cgroups, meminfo, mountusage, oom, shmem, tmpfs
from nodemem.kernel.cgroups import Hierarchy, MemoryCgroup
from nodemem.kernel.host import FilesystemUsage, Host, Unreadable
from nodemem.kernel.mounts import MountPoint, MountScan, MountTable, Superblock
from nodemem.kernel.procfs import Process, ProcessScan, ProcessTable
from nodemem.kernel.shmem import Breakdown, Deep, Writer
from nodemem.kernel.tmpfs import Inspection
from nodemem.node import owners
from nodemem.node.owners import ContainerRef, Owner, TmpfsOwner

CGROUP_ROTATION = 5

INSPECT_AT_LEAST_BYTES = 1 << 20
"""A tmpfs that holds less is not searched for its largest files."""


@dataclass(frozen=True, slots=True)
class Thrift:
    """When a process that stays need not look again at what is dear: the files in a tmpfs, who writes them, and the
    shared memory of processes.

    What was found stays in use up to ``max_age_seconds``; files while their tmpfs holds the same within
    ``moved_share`` and ``moved_bytes`` (both have to be passed), shared memory while no more than ``moved_bytes`` of
    Shmem came without being in a tmpfs.
    """

    max_age_seconds: float = 600.0
    moved_share: float = 0.05
    moved_bytes: int = 64 << 20
    inspect_at_least_bytes: int = 64 << 20

    def moved(self, before: int | None, now: int | None) -> bool:
        if before is None or now is None:
            return before is not now
        return abs(now - before) > max(self.moved_bytes, self.moved_share * before)


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """What identifies the node and its kernel. None: not readable."""

    node_name: str | None
    release: str | None
    boot_id: str | None
    uptime_seconds: float | None
    panic_on_oom: int | None
    oom_kill_allocating_task: bool | None
    swappiness: int | None


@dataclass(frozen=True, slots=True)
class Container:
    """A container's cgroup: ``cgroup`` None when it went away while it was read; ``pids`` of its whole subtree."""

    ref: ContainerRef
    path: str
    cgroup: MemoryCgroup | None
    pids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """``tmpfs_owners`` and ``inspections`` are by device; ``containers`` by container id."""

    observed_at: float
    page_size: int
    facts: KernelFacts
    memory: meminfo.Memory
    scan: ProcessScan
    mounts: MountScan
    shmem: Breakdown
    hierarchy: Hierarchy
    containers: Mapping[str, Container]
    process_owners: Mapping[int, Owner | None]
    host_namespace: int | None
    tmpfs_owners: Mapping[str, TmpfsOwner]
    inspections: Mapping[str, Inspection]
    writers: Mapping[str, Sequence[Writer]]
    probe: oom.Probe
    unreadable: tuple[Unreadable, ...]

    @property
    def processes(self) -> dict[int, Process]:
        return self.scan.processes

    def container_of(self, pid: int) -> ContainerRef | None:
        owner = self.process_owners.get(pid)
        return owner if isinstance(owner, ContainerRef) else None


@dataclass(frozen=True, slots=True)
class _Found:
    """Files in a tmpfs, found ``taken_at`` (monotonic) while it held ``used_bytes``."""

    taken_at: float
    used_bytes: int | None
    inspection: Inspection
    writers: Sequence[Writer] | None


@dataclass(frozen=True, slots=True)
class _Attributed:
    """A breakdown of Shmem, and what the tmpfs held when it was made."""

    taken_at: float
    breakdown: Breakdown
    used: Mapping[str, int]


class Collector:
    """``collect`` once for a report, or again and again: later scans re-read what changed. ``refresh`` in between.

    ``thrift`` None: each ``collect`` looks at everything.
    """

    def __init__(
        self, host: Host, thrift: Thrift | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._host = host
        self._thrift = thrift
        self._clock = clock
        self._found: dict[str, _Found] = {}
        self._attributed: _Attributed | None = None
        self._processes = ProcessTable(host)
        self._mounts = MountTable(host)
        self._hierarchy = cgroups.discover(host)
        self._layout: meminfo.Layout | None = None
        self._probe: oom.Probe | None = None
        self._cgroups: dict[str, MemoryCgroup] = {}
        self._owned: tuple[dict[int, set[Owner]], dict[str, tuple[list[MountPoint], TmpfsOwner]]] = ({}, {})
        self._scans = 0

    def collect(
        self,
        *,
        full: bool = True,
        deep: Deep = "auto",
        inspect: int = 5,
        writers_of: int = 2,
        progress: Callable[[str], None] = lambda step: None,
    ) -> Snapshot:
        """``full`` re-reads everything of every process; ``inspect`` is how many of the largest tmpfs are searched for
        their largest files, ``writers_of`` for how many of these the writing processes are looked up (all descriptors).

        ``progress`` is told each step before it begins. Raises OSError if /proc/meminfo can't be used.
        """
        host = self._host
        now = host.now()
        missing: list[Unreadable] = []
        progress("processes")
        scan = self._processes.scan(full=full)
        paths = self._cgroup_paths(scan)
        progress("mounts")
        mounts = self._mounts.scan(scan.mount_namespaces())
        progress("cgroups")
        containers = self._containers(paths)
        self._cgroups = {each.path: each.cgroup for each in containers.values() if each.cgroup is not None}
        self._scans += 1
        found = self._inspect(scan, mounts, inspect, writers_of, progress, missing)
        inspections = {device: each.inspection for device, each in found.items()}
        progress("shared memory")
        memory = self._measure()
        breakdown = self._attribute(scan, mounts, memory, deep, inspections)
        memory = _with_mapped(memory, breakdown)
        writers = {device: each.writers for device, each in found.items() if each.writers is not None}
        process_owners = {
            pid: owners.process_owner(paths[pid], kernel_thread=process.kernel_thread, root=self._hierarchy.root)
            for pid, process in scan.processes.items()
        }
        host_namespace = self._host_namespace(scan)
        tmpfs_owners = self._tmpfs_owners(scan, mounts, process_owners, host_namespace)
        facts = self.facts()
        probe = self._probed(scan, memory.partition)
        return Snapshot(
            observed_at=now,
            page_size=host.page_size,
            facts=facts,
            memory=memory,
            scan=scan,
            mounts=mounts,
            shmem=breakdown,
            hierarchy=self._hierarchy,
            containers=containers,
            process_owners=process_owners,
            host_namespace=host_namespace,
            tmpfs_owners=tmpfs_owners,
            inspections=inspections,
            probe=probe,
            writers=writers,
            unreadable=(
                *missing,
                *memory.unreadable,
                *scan.unreadable,
                *mounts.unreadable,
                *self._hierarchy.unreadable,
                *breakdown.unreadable,
            ),
        )

    def refresh(self, last: Snapshot) -> Snapshot:
        """``last`` with what is cheap to ask read again: memory, the usage of each tmpfs, the memory of containers.

        Costs no look at processes or mounts: what came since is not in it, containers that went are left out, and a
        tmpfs that can't be reached as before keeps its figures. Raises OSError if /proc/meminfo can't be used.
        """
        now = self._host.now()
        memory = self._measure()
        superblocks = {device: self._usage_again(each, now) for device, each in last.mounts.superblocks.items()}
        mounts = replace(last.mounts, superblocks=superblocks)
        breakdown = _carried(last.shmem, _used(last.mounts), memory.partition.shmem_bytes, _used(mounts))
        containers = {}
        for container_id, container in last.containers.items():
            if container.cgroup is None:
                continue
            try:
                cheap = self._hierarchy.read(container.path, cheap=True)
            except FileNotFoundError:
                continue
            containers[container_id] = replace(container, cgroup=_updated(container.cgroup, cheap))
        return replace(
            last,
            observed_at=now,
            memory=_with_mapped(memory, breakdown),
            mounts=mounts,
            shmem=breakdown,
            containers=containers,
        )

    def _measure(self) -> meminfo.Memory:
        try:
            memory = meminfo.measure(self._host, layout=self._layout)
        except ValueError as error:
            raise OSError(errno.EBADMSG, str(error)) from error
        self._layout = memory.layout
        return memory

    def _inspect(
        self,
        scan: ProcessScan,
        mounts: MountScan,
        count: int,
        writers_of: int,
        progress: Callable[[str], None],
        missing: list[Unreadable],
    ) -> dict[str, _Found]:
        thrift = self._thrift
        now = self._clock()
        before, self._found = self._found, {}
        least = thrift.inspect_at_least_bytes if thrift else INSPECT_AT_LEAST_BYTES
        for superblock in _worth_inspecting(mounts, count, least):
            device, where = superblock.device, superblock.mounts[0].path
            wants_writers = len(self._found) < writers_of
            old = before.get(device)
            if (
                thrift is not None
                and old is not None
                and now - old.taken_at < thrift.max_age_seconds
                and not thrift.moved(old.used_bytes, superblock.used_bytes)
                and (old.writers is not None or not wants_writers)
            ):
                self._found[device] = old
                continue
            progress(f"files in {where}")
            try:
                inspection = tmpfs.inspect(self._host, superblock)
            except OSError as error:
                missing.append(Unreadable(f"files in {where}", error.strerror or str(error)))
                continue
            writers = shmem.writers(self._host, superblock, scan.processes) if wants_writers else None
            self._found[device] = _Found(now, superblock.used_bytes, inspection, writers)
        return self._found

    def _attribute(
        self,
        scan: ProcessScan,
        mounts: MountScan,
        memory: meminfo.Memory,
        deep: Deep,
        inspections: Mapping[str, Inspection],
    ) -> Breakdown:
        total = memory.partition.shmem_bytes
        now, used, last = self._clock(), _used(mounts), self._attributed
        if self._thrift is not None and last is not None and now - last.taken_at < self._thrift.max_age_seconds:
            carried = _carried(last.breakdown, last.used, total, used)
            if abs(carried.unattributed_bytes - last.breakdown.unattributed_bytes) <= self._thrift.moved_bytes:
                return carried
        breakdown = shmem.attribute(
            self._host,
            total,
            scan.processes,
            mounts,
            deep=deep,
            walked_bytes={device: each.found_bytes for device, each in inspections.items()},
            fields=memory.fields,
        )
        self._attributed = _Attributed(now, breakdown, used)
        return breakdown

    def _usage_again(self, superblock: Superblock, now: float) -> Superblock:
        """As before where it can't be reached, and where there was no count: a limit doesn't come by itself."""
        if superblock.access_path is None or superblock.used_bytes is None:
            return superblock

        def measure() -> list[int]:
            fd = tmpfs.open_mount(self._host, superblock)
            try:
                return mountusage.usage_of(fd)
            finally:
                os.close(fd)

        try:
            usage = FilesystemUsage(*self._host.observe(f"tmpfs {superblock.device} usage again", measure))
        except OSError:
            return superblock
        if not usage.size_bytes:
            return superblock
        return replace(
            superblock,
            size_bytes=usage.size_bytes,
            used_bytes=usage.used_bytes,
            inodes=usage.inodes or None,
            inodes_used=usage.inodes_used if usage.inodes else None,
            measured_at=now,
        )

    def _probed(self, scan: ProcessScan, total: meminfo.Partition) -> oom.Probe:
        """Asked until there is an answer: a running kernel keeps its generation."""
        if self._probe is None or self._probe.generation is oom.Generation.UNKNOWN:
            self._probe = oom.probe(
                self._host,
                oom.tasks_from(scan.processes.values(), self._host.page_size),
                oom.global_totalpages(total.total_bytes, total.swap_total_bytes, self._host.page_size),
            )
        return self._probe

    def _containers(self, paths: Mapping[int, str | None]) -> dict[str, Container]:
        """Found by walking the hierarchy, so that containers without processes are there too; else by processes."""
        root = self._hierarchy.root
        found: dict[str, tuple[ContainerRef, str]] = {}

        def inside_known(path: str) -> bool:
            ref = owners.parse_cgroup(path, root)
            return isinstance(ref, ContainerRef) and ref.container_id in found and found[ref.container_id][1] != path

        # With thrift a walk each few scans does: a new container is known by its processes before.
        walked = self._thrift is None or self._scans % CGROUP_ROTATION == 0
        for path in self._hierarchy.walk(prune=inside_known) if walked else self._cgroups:
            ref = owners.parse_cgroup(path, root)
            if isinstance(ref, ContainerRef):
                found.setdefault(ref.container_id, (ref, path))
        pids: dict[str, list[int]] = {}
        for pid, process_path in paths.items():
            ref = owners.parse_cgroup(process_path, root) if process_path is not None else None
            if isinstance(ref, ContainerRef):
                found.setdefault(ref.container_id, (ref, process_path or ""))
                pids.setdefault(ref.container_id, []).append(pid)
        return {
            container_id: Container(ref, path, self._read_cgroup(number, path), tuple(pids.get(container_id, ())))
            for number, (container_id, (ref, path)) in enumerate(found.items())
        }

    def _cgroup_paths(self, scan: ProcessScan) -> dict[int, str | None]:
        """Each process's path in the memory hierarchy: a reader in a cgroup namespace of its own is shown others."""
        known: dict[str, str | None] = {}
        paths: dict[int, str | None] = {}
        for pid, process in scan.processes.items():
            shown = process.cgroup
            if shown is not None and shown not in known:
                known[shown] = self._hierarchy.resolve(shown)
            paths[pid] = None if shown is None else known[shown]
        return paths

    def _read_cgroup(self, number: int, path: str) -> MemoryCgroup | None:
        """With thrift, limits and events of a container that stays are as old as ``CGROUP_ROTATION`` scans at most."""
        if self._hierarchy.memory_version is None:
            return None
        known = self._cgroups.get(path) if self._thrift is not None else None
        try:
            if known is not None and number % CGROUP_ROTATION != self._scans % CGROUP_ROTATION:
                return _updated(known, self._hierarchy.read(path, cheap=True))
            return self._hierarchy.read(path)
        except FileNotFoundError:
            return None

    def _tmpfs_owners(
        self,
        scan: ProcessScan,
        mounts: MountScan,
        process_owners: Mapping[int, Owner | None],
        host_namespace: int | None,
    ) -> dict[str, TmpfsOwner]:
        """Decided anew where a tmpfs is mounted elsewhere than before (a new list is made then), or processes moved."""
        by_namespace: dict[int, set[Owner]] = {}
        for namespace, pids in scan.mount_namespaces().items():
            by_namespace[namespace] = {owner for pid in pids if (owner := process_owners.get(pid)) is not None}
        namespaces_before, before = self._owned
        if by_namespace != namespaces_before:
            before = {}
        now: dict[str, tuple[list[MountPoint], TmpfsOwner]] = {}
        for device, superblock in mounts.superblocks.items():
            known = before.get(device)
            if known is None or known[0] is not superblock.mounts:
                known = (superblock.mounts, owners.classify(superblock, by_namespace, host_namespace))
            now[device] = known
        self._owned = (by_namespace, now)
        return {device: owner for device, (_, owner) in now.items()}

    def _host_namespace(self, scan: ProcessScan) -> int | None:
        """The mount namespace of init; of this process, where init's can't be read."""
        init = scan.processes.get(1)
        if init is not None and init.mnt_ns is not None:
            return init.mnt_ns
        try:
            link = self._host.readlink(f"{self._host.proc}/self/ns/mnt")
        except OSError:
            return None
        number = link.removeprefix("mnt:[").removesuffix("]")
        return int(number) if number.isdecimal() else None

    @property
    def cgroup_root(self) -> str:
        """The top of the memory hierarchy as seen here, see ``owners.parse_cgroup``."""
        return self._hierarchy.root

    def facts(self) -> KernelFacts:
        host = self._host

        def text(path: str) -> str | None:
            try:
                return host.read_small(f"{host.proc}/{path}").decode("utf-8", "surrogateescape").strip() or None
            except OSError:
                return None

        def number(path: str) -> int | None:
            value = text(path)
            return int(value) if value is not None and value.isdecimal() else None

        uptime = (text("uptime") or "").partition(" ")[0]
        allocating = number("sys/vm/oom_kill_allocating_task")
        return KernelFacts(
            node_name=text("sys/kernel/hostname"),
            release=text("sys/kernel/osrelease"),
            boot_id=text("sys/kernel/random/boot_id"),
            uptime_seconds=float(uptime) if uptime.replace(".", "", 1).isdecimal() else None,
            panic_on_oom=number("sys/vm/panic_on_oom"),
            oom_kill_allocating_task=None if allocating is None else allocating != 0,
            swappiness=number("sys/vm/swappiness"),
        )


def _used(mounts: MountScan) -> dict[str, int]:
    return {device: each.used_bytes for device, each in mounts.superblocks.items() if each.used_bytes is not None}


def _carried(
    breakdown: Breakdown, used_then: Mapping[str, int], total_bytes: int, used_now: Mapping[str, int]
) -> Breakdown:
    """The breakdown with a new total: what tmpfs gained or lost is known, the rest of the change is unattributed."""
    tmpfs_bytes = max(0, breakdown.tmpfs_bytes + sum(used_now.values()) - sum(used_then.values()))
    unattributed = (
        breakdown.unattributed_bytes + (total_bytes - breakdown.total_bytes) - (tmpfs_bytes - breakdown.tmpfs_bytes)
    )
    return replace(breakdown, total_bytes=total_bytes, tmpfs_bytes=tmpfs_bytes, unattributed_bytes=unattributed)


def _with_mapped(memory: meminfo.Memory, breakdown: Breakdown) -> meminfo.Memory:
    """What was found to be mapped is not hidden."""
    if breakdown.mapped_estimate_bytes is None:
        return memory
    mapped = min(breakdown.mapped_estimate_bytes, memory.partition.shmem_bytes)
    return replace(memory, partition=replace(memory.partition, mapped_shmem_bytes=mapped, mapped_shmem_error_bytes=0))


def _updated(cgroup: MemoryCgroup, cheap: MemoryCgroup) -> MemoryCgroup:
    """A full read with the figures of a later cheap one."""
    return replace(
        cgroup,
        usage_bytes=cheap.usage_bytes,
        anon_bytes=cheap.anon_bytes,
        file_bytes=cheap.file_bytes,
        shmem_bytes=cheap.shmem_bytes,
        swap_usage_bytes=cgroup.swap_usage_bytes if cheap.swap_usage_bytes is None else cheap.swap_usage_bytes,
        kernel_bytes=cgroup.kernel_bytes if cheap.kernel_bytes is None else cheap.kernel_bytes,
    )


def _worth_inspecting(mounts: MountScan, count: int, least_bytes: int) -> list[Superblock]:
    """The largest, and those without a limit: only a walk can tell what these hold."""
    candidates = [
        each for each in mounts.superblocks.values() if each.unlimited or (each.used_bytes or 0) >= least_bytes
    ]
    candidates.sort(key=lambda each: (not each.unlimited, -(each.used_bytes or 0)))
    return candidates[: count + sum(each.unlimited for each in candidates)]
