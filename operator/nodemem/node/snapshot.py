"""One observation of a node: every kernel reader called in the right order, and what their results have in common.

A ``Collector`` keeps what makes the next snapshot cheap. It holds no opinion: findings and the report are made from the
``Snapshot`` it returns.
"""

import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from operator import attrgetter

from nodemem.kernel import cgroups, meminfo, mountusage, oom, shmem, tmpfs
from nodemem.kernel.cgroups import Hierarchy, MemoryCgroup
from nodemem.kernel.host import FilesystemUsage, Host, Unreadable
from nodemem.kernel.mounts import MountPoint, MountScan, MountTable, Superblock, is_quiet
from nodemem.kernel.procfs import Process, ProcessScan, ProcessTable
from nodemem.kernel.shmem import Breakdown, Deep, Writer
from nodemem.kernel.tmpfs import Inspection
from nodemem.node import owners
from nodemem.node.containers import Container as Container
from nodemem.node.containers import ContainerTable
from nodemem.node.owners import ContainerRef, KernelRef, Owner, TmpfsOwner

PROBE_CANDIDATES = 16
"""So many small processes that anybody may kill first are asked which generation the kernel is of; ..."""

MORE_PROBE_CANDIDATES = 200
"""... so many of all where these can't tell."""

INSPECT_AT_LEAST_BYTES = 1 << 20
"""A tmpfs that holds less is not searched for its largest files."""


@dataclass(frozen=True, slots=True)
class Thrift:
    """When a process that stays need not look again at what is dear: the files in a tmpfs, who writes them, and the
    shared memory of processes.

    What was found stays in use up to ``max_age_seconds``; files while their tmpfs holds the same within
    ``moved_share`` and ``moved_bytes`` (both have to be passed), shared memory while no more than ``moved_bytes`` of
    Shmem came without being in a tmpfs. Mounts that containers made, and tmpfs that hold little, are looked at in turn
    (``MountTable.scan`` sparing), and all at once when ``unexplained_bytes`` of Shmem came or went that are in none of
    the others.
    """

    max_age_seconds: float = 600.0
    moved_share: float = 0.05
    moved_bytes: int = 64 << 20
    inspect_at_least_bytes: int = 64 << 20
    unexplained_bytes: int = 16 << 20
    attribute_share: int = 256
    """Of memory, at most ``moved_bytes``: so much Shmem without a source is worth looking into processes."""

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
class Snapshot:
    """``tmpfs_owners`` and ``inspections`` are by device; ``containers`` by container id; ``pods`` are the cgroups of
    the containers' pods, by path."""

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
    pods: Mapping[str, MemoryCgroup] = field(default_factory=dict)

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


_OwnerOf = dict[str, tuple[str | None, Owner | None]]
"""By the cgroup that a process is shown in: its path in the memory hierarchy, and whose it is."""


class _ProcessOwners(Mapping[int, Owner | None]):
    """Whose each process is, found when asked for: there are few cgroups and many processes."""

    def __init__(self, processes: Mapping[int, Process], owner_of: _OwnerOf) -> None:
        self._processes = processes
        self._owner_of = owner_of

    def __getitem__(self, pid: int) -> Owner | None:
        process = self._processes[pid]
        if process.kernel_thread:
            return KernelRef()
        return None if process.cgroup is None else self._owner_of[process.cgroup][1]

    def __iter__(self) -> Iterator[int]:
        return iter(self._processes)

    def __len__(self) -> int:
        return len(self._processes)


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
        self._hurried = thrift is not None
        """The first scan, which leaves to the second what can wait."""
        self._found: dict[str, _Found] = {}
        self._attributed: _Attributed | None = None
        self._processes = ProcessTable(host)
        self._mounts = MountTable(host)
        self._hierarchy = cgroups.discover(host)
        self._layout: meminfo.Layout | None = None
        self._probe: oom.Probe | None = None
        self._beside_tmpfs: int | None = None
        self._containers = ContainerTable(self._hierarchy, thrifty=thrift is not None)
        self._owners: _OwnerOf = {}
        self._owners_of: dict[int, tuple[Owner, ...]] = {}  # by mount namespace
        self._owned: tuple[dict[int, set[str | None]], dict[str, tuple[list[MountPoint], TmpfsOwner]]] = ({}, {})

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
        hurried, self._hurried = self._hurried, False
        host = self._host
        now = host.now()
        missing: list[Unreadable] = []
        progress("processes")
        scan = self._processes.scan(full=full, hurried=hurried)
        members = self._by_cgroup(scan)
        progress("mounts")
        namespaces = scan.mount_namespaces()
        mounts, memory = self._mounts_and_memory(namespaces, hurried)
        progress("cgroups")
        containers, pods = self._containers.scan(members)
        found = self._inspect(scan, mounts, inspect, writers_of, progress, missing)
        inspections = {device: each.inspection for device, each in found.items()}
        progress("shared memory")
        breakdown = self._attribute(scan, mounts, memory, deep, inspections, containers)
        memory = _with_mapped(memory, breakdown)
        writers = {device: each.writers for device, each in found.items() if each.writers is not None}
        process_owners = _ProcessOwners(scan.processes, self._owners)
        host_namespace = self._host_namespace(scan)
        tmpfs_owners = self._tmpfs_owners(namespaces, scan, mounts, host_namespace)
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
            pods=pods,
        )

    def refresh(self, last: Snapshot) -> Snapshot:
        """``last`` with what is cheap to ask read again: memory, the usage of each tmpfs, the memory of containers.

        Costs no look at processes or mounts: what came since is not in it, containers that went are left out, and a
        tmpfs that can't be reached as before keeps its figures. Raises OSError if /proc/meminfo can't be used.
        """
        now = self._host.now()
        memory = self._measure()
        spared = self._thrift is not None
        superblocks = {
            device: each if spared and is_quiet(each) else self._usage_again(each, now)
            for device, each in last.mounts.superblocks.items()
        }
        mounts = replace(last.mounts, superblocks=superblocks)
        if spared and self._came_unexplained(mounts, memory):
            superblocks = {
                device: self._usage_again(each, now) if is_quiet(each) else each for device, each in superblocks.items()
            }
            mounts = replace(mounts, superblocks=superblocks)
            self._beside_tmpfs = _beside_tmpfs(mounts, memory)
        breakdown = _carried(last.shmem, _used(last.mounts), memory.partition.shmem_bytes, _used(mounts))
        return replace(
            last,
            observed_at=now,
            memory=_with_mapped(memory, breakdown),
            mounts=mounts,
            shmem=breakdown,
            containers=self._containers.refresh(last.containers),
        )

    def _mounts_and_memory(
        self, namespaces: Mapping[int, Sequence[int]], hurried: bool
    ) -> tuple[MountScan, meminfo.Memory]:
        """With thrift a sparing scan first; what that may have missed shows in Shmem."""
        if self._thrift is not None and self._beside_tmpfs is not None:
            mounts, memory = self._mounts.scan(namespaces, sparing=True), self._measure()
            if not self._came_unexplained(mounts, memory):
                return mounts, memory
        if hurried:
            memory = self._measure(hurried)
            enough = memory.partition.shmem_bytes - self._worth(memory)
            mounts = self._mounts.scan(namespaces, enough_bytes=enough)
        else:
            mounts, memory = self._mounts.scan(namespaces), self._measure()
        self._beside_tmpfs = _beside_tmpfs(mounts, memory)
        return mounts, memory

    def _came_unexplained(self, mounts: MountScan, memory: meminfo.Memory) -> bool:
        """Whether Shmem that no tmpfs is known to hold has moved since each was last asked."""
        if self._thrift is None or self._beside_tmpfs is None:
            return True
        return abs(_beside_tmpfs(mounts, memory) - self._beside_tmpfs) > self._thrift.unexplained_bytes

    def _measure(self, hurried: bool = False) -> meminfo.Memory:
        try:
            memory = meminfo.measure(self._host, layout=self._layout, hurried=hurried)
        except ValueError as error:
            raise OSError(errno.EBADMSG, str(error)) from error
        self._layout = None if hurried else memory.layout
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
            writers = None
            if wants_writers:
                writers = shmem.writers(self._host, superblock, scan.processes, everywhere=thrift is None)
            self._found[device] = _Found(now, superblock.used_bytes, inspection, writers)
        return self._found

    def _attribute(
        self,
        scan: ProcessScan,
        mounts: MountScan,
        memory: meminfo.Memory,
        deep: Deep,
        inspections: Mapping[str, Inspection],
        containers: Mapping[str, Container],
    ) -> Breakdown:
        thrift = self._thrift
        total = memory.partition.shmem_bytes
        now, used, last = self._clock(), _used(mounts), self._attributed
        worth = self._worth(memory)
        if thrift is not None and deep == "auto":
            deep = "spare"
            if last is not None and now - last.taken_at < thrift.max_age_seconds:
                carried = _carried(last.breakdown, last.used, total, used)
                if abs(carried.unattributed_bytes - last.breakdown.unattributed_bytes) <= worth:
                    return carried
        # Containers to which no Shmem to speak of is charged hold none.
        unlikely: set[int] = set()
        if thrift is not None:
            cgroups = ((each, each.cgroup) for each in containers.values())
            without = (each for each, cgroup in cgroups if cgroup and (cgroup.shmem_bytes or 0) < worth // 8)
            unlikely.update(*(each.pids for each in without))
        breakdown = shmem.attribute(
            self._host,
            total,
            scan.processes,
            mounts,
            deep=deep,
            walked_bytes={device: each.found_bytes for device, each in inspections.items()},
            fields=memory.fields,
            worth_bytes=worth,
            likely=lambda pid: pid not in unlikely,
        )
        self._attributed = _Attributed(now, breakdown, used)
        return breakdown

    def _worth(self, memory: meminfo.Memory) -> int:
        """So much Shmem without a source is worth a look."""
        thrift, least = self._thrift, shmem.UNEXPLAINED_BYTES
        if thrift is None:
            return least
        return max(least, min(thrift.moved_bytes, memory.partition.total_bytes // thrift.attribute_share))

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
            # A few small processes tell; to weigh all of them would be a tenth of a first scan.
            living = [each for each in scan.processes.values() if each.has_mm and each.oom_score_adj is not None]
            living.sort(key=attrgetter("rss_bytes"))
            init = 1 if any(each.kernel_thread for each in scan.processes.values()) else None
            totalpages = oom.global_totalpages(total.total_bytes, total.swap_total_bytes, self._host.page_size)
            plain = (each for each in living if (each.oom_score_adj or 0) >= 0)
            for candidates in (islice(plain, PROBE_CANDIDATES), living[:MORE_PROBE_CANDIDATES]):
                tasks = [oom.Task.from_process(each, self._host.page_size, init_pid=init) for each in candidates]
                self._probe = probe = oom.probe(self._host, tasks, totalpages)
                if probe.generation is not oom.Generation.UNKNOWN:
                    break
            return probe
        return self._probe

    def _by_cgroup(self, scan: ProcessScan) -> dict[str, list[int]]:
        """The processes of each cgroup, by its path in the memory hierarchy: a reader in a cgroup namespace of its own
        is shown others. Whose each shown path is is kept in ``_owners``."""
        members: dict[str | None, list[int]] = {}
        for pid, process in scan.processes.items():
            its = members.get(process.cgroup)
            if its is None:
                members[process.cgroup] = [pid]
            else:
                its.append(pid)
        before, self._owners = self._owners, {}
        paths: dict[str, list[int]] = {}
        for shown, pids in members.items():
            if shown is None:
                continue
            known = before.get(shown)
            if known is None:
                path = self._hierarchy.resolve(shown)
                known = (path, owners.process_owner(path, root=self._hierarchy.root))
            self._owners[shown] = known
            if known[0] is not None:
                paths.setdefault(known[0], []).extend(pids)
        return paths

    def _tmpfs_owners(
        self, namespaces: Mapping[int, Sequence[int]], scan: ProcessScan, mounts: MountScan, host_namespace: int | None
    ) -> dict[str, TmpfsOwner]:
        """Decided anew where a tmpfs is mounted elsewhere than before (a new list is made then), or where in a mount
        namespace that has it mounted there are processes of other cgroups than before."""
        processes = scan.processes
        cgroups_before, before = self._owned
        cgroups = {namespace: {processes[pid].cgroup for pid in pids} for namespace, pids in namespaces.items()}
        changed = {namespace for namespace, its in cgroups.items() if its != cgroups_before.get(namespace)}
        changed |= cgroups_before.keys() - cgroups.keys()
        for namespace in changed:
            self._owners_of.pop(namespace, None)
        by_namespace = self._owners_of
        now: dict[str, tuple[list[MountPoint], TmpfsOwner]] = {}
        for device, superblock in mounts.superblocks.items():
            known = before.get(device)
            if (
                known is None
                or known[0] is not superblock.mounts
                or (changed and any(point.namespace in changed for point in superblock.mounts))
            ):
                for point in superblock.mounts:
                    if point.namespace not in by_namespace and point.namespace in cgroups:
                        by_namespace[point.namespace] = self._owners_in(cgroups[point.namespace])
                known = (superblock.mounts, owners.classify(superblock, by_namespace, host_namespace))
            now[device] = known
        self._owned = (cgroups, now)
        return {device: owner for device, (_, owner) in now.items()}

    def _owners_in(self, cgroups: Iterable[str | None]) -> tuple[Owner, ...]:
        found = [self._owners[shown][1] for shown in cgroups if shown is not None]
        return tuple([owner for owner in found if owner is not None])

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


def _beside_tmpfs(mounts: MountScan, memory: meminfo.Memory) -> int:
    return memory.partition.shmem_bytes - sum(_used(mounts).values())


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


def _worth_inspecting(mounts: MountScan, count: int, least_bytes: int) -> list[Superblock]:
    """The largest, and those without a limit: only a walk can tell what these hold."""
    candidates = [
        each for each in mounts.superblocks.values() if each.unlimited or (each.used_bytes or 0) >= least_bytes
    ]
    candidates.sort(key=lambda each: (not each.unlimited, -(each.used_bytes or 0)))
    return candidates[: count + sum(each.unlimited for each in candidates)]
