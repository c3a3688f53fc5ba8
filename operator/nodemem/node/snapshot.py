"""One observation of a node: every kernel reader called in the right order, and what their results have in common.

A ``Collector`` keeps what makes the next snapshot cheap. It holds no opinion: findings and the report are made from the
``Snapshot`` it returns.
"""

import errno
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from nodemem.kernel import cgroups, meminfo, oom, shmem, tmpfs
from nodemem.kernel.cgroups import Hierarchy, MemoryCgroup
from nodemem.kernel.host import Host, Unreadable
from nodemem.kernel.mounts import MountScan, MountTable, Superblock
from nodemem.kernel.procfs import Process, ProcessScan, ProcessTable
from nodemem.kernel.shmem import Breakdown, Deep, Writer
from nodemem.kernel.tmpfs import Inspection
from nodemem.node import owners
from nodemem.node.owners import ContainerRef, Owner, TmpfsOwner

INSPECT_AT_LEAST_BYTES = 1 << 20
"""A tmpfs that holds less is not searched for its largest files."""


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


class Collector:
    """``collect`` once for a report, or again and again: later scans re-read what changed."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._processes = ProcessTable(host)
        self._mounts = MountTable(host)
        self._hierarchy = cgroups.discover(host)
        self._layout: meminfo.Layout | None = None

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
        inspections = {}
        for superblock in _worth_inspecting(mounts, inspect):
            progress(f"files in {superblock.mounts[0].path}")
            try:
                inspections[superblock.device] = tmpfs.inspect(host, superblock)
            except OSError as error:
                missing.append(Unreadable(f"files in {superblock.mounts[0].path}", error.strerror or str(error)))
        progress("shared memory")
        try:
            memory = meminfo.measure(host, layout=self._layout)
        except ValueError as error:
            raise OSError(errno.EBADMSG, str(error)) from error
        self._layout = memory.layout
        breakdown = shmem.attribute(
            host,
            memory.partition.shmem_bytes,
            scan.processes,
            mounts,
            deep=deep,
            walked_bytes={device: each.found_bytes for device, each in inspections.items()},
            fields=memory.fields,
        )
        if breakdown.mapped_estimate_bytes is not None:
            mapped = min(breakdown.mapped_estimate_bytes, memory.partition.shmem_bytes)
            partition = replace(memory.partition, mapped_shmem_bytes=mapped, mapped_shmem_error_bytes=0)
            memory = replace(memory, partition=partition)
        progress("writers")
        writers = {
            device: shmem.writers(host, mounts.superblocks[device], scan.processes)
            for device in list(inspections)[:writers_of]
        }
        process_owners = {
            pid: owners.process_owner(paths[pid], kernel_thread=process.kernel_thread, root=self._hierarchy.root)
            for pid, process in scan.processes.items()
        }
        host_namespace = self._host_namespace(scan)
        tmpfs_owners = _tmpfs_owners(scan, mounts, process_owners, host_namespace)
        facts = self._facts()
        total = memory.partition
        probe = oom.probe(
            host,
            oom.tasks_from(scan.processes.values(), host.page_size),
            oom.global_totalpages(total.total_bytes, total.swap_total_bytes, host.page_size),
        )
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

    def _containers(self, paths: Mapping[int, str | None]) -> dict[str, Container]:
        """Found by walking the hierarchy, so that containers without processes are there too; else by processes."""
        root = self._hierarchy.root
        found: dict[str, tuple[ContainerRef, str]] = {}

        def inside_known(path: str) -> bool:
            ref = owners.parse_cgroup(path, root)
            return isinstance(ref, ContainerRef) and ref.container_id in found and found[ref.container_id][1] != path

        for path in self._hierarchy.walk(prune=inside_known):
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
            container_id: Container(ref, path, self._read_cgroup(path), tuple(pids.get(container_id, ())))
            for container_id, (ref, path) in found.items()
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

    def _read_cgroup(self, path: str) -> MemoryCgroup | None:
        if self._hierarchy.memory_version is None:
            return None
        try:
            return self._hierarchy.read(path)
        except FileNotFoundError:
            return None

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

    def _facts(self) -> KernelFacts:
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


def _tmpfs_owners(
    scan: ProcessScan,
    mounts: MountScan,
    process_owners: Mapping[int, Owner | None],
    host_namespace: int | None,
) -> dict[str, TmpfsOwner]:
    by_namespace: dict[int, set[Owner]] = {}
    for namespace, pids in scan.mount_namespaces().items():
        by_namespace[namespace] = {owner for pid in pids if (owner := process_owners.get(pid)) is not None}
    return {
        device: owners.classify(superblock, by_namespace, host_namespace)
        for device, superblock in mounts.superblocks.items()
    }


def _worth_inspecting(mounts: MountScan, count: int) -> list[Superblock]:
    """The largest, and those without a limit: only a walk can tell what these hold."""
    candidates = [
        each
        for each in mounts.superblocks.values()
        if each.unlimited or (each.used_bytes or 0) >= INSPECT_AT_LEAST_BYTES
    ]
    candidates.sort(key=lambda each: (not each.unlimited, -(each.used_bytes or 0)))
    return candidates[: count + sum(each.unlimited for each in candidates)]
