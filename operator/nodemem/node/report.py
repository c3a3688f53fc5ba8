"""A snapshot as MemoryReport.status: the figures people and the API server see, in lists of bounded length."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from nodemem import __version__
from nodemem.kernel import oom
from nodemem.kernel.host import Unreadable
from nodemem.kernel.mounts import Superblock
from nodemem.kernel.shmem import DetachedSuperblock
from nodemem.node import trends
from nodemem.node.containers import Container
from nodemem.node.owners import ContainerRef, KernelRef, Owner, PodRef, ServiceRef, TmpfsOwner
from nodemem.node.snapshot import Snapshot
from nodemem.node.status import (
    Condition,
    ContainerStatus,
    ExposureStatus,
    KernelStatus,
    LimitStatus,
    MemoryStatus,
    Omitted,
    OomKillStatus,
    OomMitigationStatus,
    OomScoreAdjRange,
    ProcessStatus,
    ReclaimStatus,
    ReportStatus,
    ShmemObjectStatus,
    ShmemStatus,
    TmpfsEntryStatus,
    TmpfsOwnerStatus,
    TmpfsStatus,
    to_plain,
)
from nodemem.node.summary import summary
from nodemem.node.units import timestamp
from nodemem.node.verdict import verdict

API_VERSION = "nodemem.io/v1alpha1"
TMPFS_LISTED = 20
CONTAINERS_LISTED = 40
LARGEST_LISTED = 5
WRITERS_LISTED = 5
OBSERVED_AT_LEAST_BYTES = 1 << 20
"""The growth of a tmpfs that holds less is not followed: each secret and token of a pod is one, hundreds on a node."""


class PodName(NamedTuple):
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Names:
    """What only the API server knows: pods by uid (as cgroups have it), containers by id."""

    pods: Mapping[str, PodName] = field(default_factory=dict)
    containers: Mapping[str, str] = field(default_factory=dict)
    expected_oom_score_adj: Mapping[str, int] = field(default_factory=dict)
    """What the kubelet sets, by container id."""

    def pod(self, uid: str | None) -> PodName | None:
        return None if uid is None else self.pods.get(uid)

    def container(self, container_id: str | None) -> str | None:
        return None if container_id is None else self.containers.get(container_id)


NO_NAMES = Names()


def observe(history: trends.History, snapshot: Snapshot, time: float | None = None) -> None:
    """Add the snapshot's figures to the history that growth is computed from.

    ``time``: of a clock that is never set, for a process that stays; None: the time of day of the snapshot.
    """
    figures = [("shmem", snapshot.memory.partition.shmem_bytes)]
    if (available := snapshot.memory.partition.available_bytes) is not None:
        figures.append(("available", available))
    figures += [
        (f"tmpfs {device}", each.used_bytes or 0)
        for device, each in snapshot.mounts.superblocks.items()
        if (each.used_bytes or 0) >= OBSERVED_AT_LEAST_BYTES
    ]
    history.observe(snapshot.observed_at if time is None else time, figures)


def build(
    snapshot: Snapshot,
    history: trends.History,
    *,
    everything: bool = False,
    tmpfs_listed: int = TMPFS_LISTED,
    containers_listed: int = CONTAINERS_LISTED,
    names: Names = NO_NAMES,
    exposures: tuple[ExposureStatus, ...] | None = None,
    oom_kills: tuple[OomKillStatus, ...] | None = None,
    limits: tuple[LimitStatus, ...] | None = None,
    reclaim: tuple[ReclaimStatus, ...] | None = None,
    observed_generation: int | None = None,
    oom_mitigations: tuple[OomMitigationStatus, ...] | None = None,
) -> ReportStatus:
    """``everything``: complete lists, every process and every shmem object (``--all``)."""
    memory = _memory(snapshot)
    shmem = _shmem(snapshot, history, everything)
    superblocks = snapshot.mounts.superblocks.values()
    full_in = {}
    for each in superblocks:
        room = None if each.size_bytes is None or each.used_bytes is None else each.size_bytes - each.used_bytes
        left = trends.seconds_until(room, history.bytes_per_hour(f"tmpfs {each.device}"))
        if left is not None:
            full_in[each.device] = left
    # Sorted first, and only those listed made: hundreds of others would be the larger part of the work.
    largest_first: list[Superblock | DetachedSuperblock] = [*superblocks, *snapshot.shmem.detached]
    largest_first.sort(key=lambda each: (-(_held_bytes(snapshot, each) or 0), each.device))
    tmpfs = tuple(
        _detached(each)
        if isinstance(each, DetachedSuperblock)
        else _tmpfs(snapshot, history, each, full_in.get(each.device), names)
        for each in (largest_first if everything else largest_first[:tmpfs_listed])
    )
    by_shmem = sorted(snapshot.containers.values(), key=_by_shmem)
    containers = _containers(snapshot, names, by_shmem if everything else by_shmem[:containers_listed])
    available_growth = history.bytes_per_hour("available")
    largest = max(snapshot.processes.values(), key=lambda process: process.rss_bytes, default=None)
    return ReportStatus(
        observed_at=timestamp(snapshot.observed_at),
        agent_version=__version__,
        verdict=verdict(
            memory,
            shmem,
            tmpfs,
            full_in=full_in,
            recent={device: each.recent_bytes for device, each in snapshot.inspections.items()},
            exhausted_in=trends.seconds_until(
                memory.available_bytes, None if available_growth is None else -available_growth
            ),
            holders=_main_holders(snapshot),
            largest_process=(largest.comm, largest.rss_bytes) if largest is not None else None,
            other=snapshot.memory.partition.other,
        ),
        kernel=_kernel(snapshot),
        memory=memory,
        shmem=shmem,
        tmpfs=tmpfs,
        containers=containers,
        conditions=_conditions(snapshot),
        omitted=_omitted(snapshot, largest_first[len(tmpfs) :], by_shmem[len(containers) :]),
        processes=_processes(snapshot) if everything else None,
        summary=summary(memory, shmem, tmpfs, (*(limits or ()), *(reclaim or ())), *_exposed(exposures)),
        exposures=exposures,
        oom_kills=oom_kills,
        limits=limits,
        reclaim=reclaim or None,
        observed_generation=observed_generation,
        oom_mitigations=oom_mitigations,
    )


def _omitted(
    snapshot: Snapshot, tmpfs: Sequence[Superblock | DetachedSuperblock], containers: Sequence[Container]
) -> Omitted:
    cgroups = [each.cgroup for each in containers if each.cgroup is not None]
    return Omitted(
        tmpfs=len(tmpfs),
        containers=len(containers),
        tmpfs_used_bytes=sum(_held_bytes(snapshot, each) or 0 for each in tmpfs),
        containers_shmem_bytes=sum(each.shmem_bytes or 0 for each in cgroups),
        containers_usage_bytes=sum(each.usage_bytes or 0 for each in cgroups),
    )


def _exposed(exposures: tuple[ExposureStatus, ...] | None) -> tuple[int | None, int | None]:
    if exposures is None:
        return None, None
    mitigated = sum(each.mitigated is True for each in exposures)
    return len(exposures) - mitigated, mitigated or None


def as_object(status: ReportStatus, node_name: str | None) -> dict[str, Any]:
    """The MemoryReport that ``-o json`` prints. Unknown values are null."""
    return {
        "apiVersion": API_VERSION,
        "kind": "MemoryReport",
        "metadata": {"name": node_name or "unknown"},
        "status": to_plain(status),
    }


def merged(unreadable: Iterable[Unreadable]) -> list[Unreadable]:
    """One entry for each thing and reason, with the counts added up."""
    counts: Counter[tuple[str, str]] = Counter()
    for each in unreadable:
        counts[each.what, each.why] += each.count
    return [Unreadable(what, why, count) for (what, why), count in counts.items()]


def owner_name(owner: Owner | None) -> str | None:
    """A process's owner in a word: a unit, a container's short id, a pod, ``kernel``."""
    match owner:
        case ContainerRef():
            return f"container {owner.container_id[:12]}"
        case PodRef():
            return f"pod {owner.pod_uid}"
        case ServiceRef():
            return owner.unit
        case KernelRef():
            return "kernel"
        case None:
            return None


def _kernel(snapshot: Snapshot) -> KernelStatus:
    facts, partition = snapshot.facts, snapshot.memory.partition
    return KernelStatus(
        release=facts.release,
        oom_generation=str(snapshot.probe.generation),
        cgroup=snapshot.hierarchy.version,
        swap_bytes=partition.swap_total_bytes,
        swap_used_bytes=partition.swap_total_bytes - partition.swap_free_bytes,
        panic_on_oom=facts.panic_on_oom,
        oom_kill_allocating_task=facts.oom_kill_allocating_task,
        page_size_bytes=snapshot.page_size,
        uptime_seconds=facts.uptime_seconds,
    )


def _memory(snapshot: Snapshot) -> MemoryStatus:
    part = snapshot.memory.partition
    return MemoryStatus(
        total_bytes=part.total_bytes,
        available_bytes=part.available_bytes,
        hidden_bytes=part.hidden_bytes,
        free_bytes=part.free_bytes,
        anonymous_bytes=part.anonymous_bytes,
        page_cache_bytes=part.page_cache_bytes,
        buffers_bytes=part.buffers_bytes,
        shmem_bytes=part.shmem_bytes,
        slab_reclaimable_bytes=part.slab_reclaimable_bytes,
        slab_unreclaimable_bytes=part.slab_unreclaimable_bytes,
        kernel_stack_bytes=part.kernel_stack_bytes,
        page_tables_bytes=part.page_tables_bytes,
        vmalloc_bytes=part.vmalloc_bytes,
        per_cpu_bytes=part.per_cpu_bytes,
        huge_pages_bytes=part.huge_pages_bytes,
        other_bytes=part.other_bytes,
        unaccounted_bytes=part.unaccounted_bytes,
    )


def _shmem(snapshot: Snapshot, history: trends.History, everything: bool) -> ShmemStatus:
    found = snapshot.shmem
    return ShmemStatus(
        total_bytes=found.total_bytes,
        tmpfs_bytes=found.tmpfs_bytes,
        sysv_bytes=found.sysv_bytes,
        memfd_bytes=found.memfd_bytes,
        shared_anonymous_bytes=found.shared_anonymous_bytes,
        deleted_open_bytes=found.deleted_open_bytes,
        kernel_internal_bytes=found.kernel_internal_bytes,
        swapped_bytes=found.swapped_bytes,
        unattributed_bytes=found.unattributed_bytes,
        growth_bytes_per_hour=_whole(history.bytes_per_hour("shmem")),
        deep=found.deep,
        objects=tuple(
            ShmemObjectStatus(
                kind=each.kind,
                device=each.device or None,
                inode=each.inode,
                bytes=each.bytes,
                name=each.name,
                holders=each.holders,
                container_id=_common_container(snapshot, each.holders),
            )
            for each in found.objects
        )
        if everything
        else None,
    )


def _common_container(snapshot: Snapshot, pids: Sequence[int]) -> str | None:
    ids = {ref.container_id if (ref := snapshot.container_of(pid)) else None for pid in pids}
    return ids.pop() if len(ids) == 1 else None


def _main_holders(snapshot: Snapshot) -> dict[str, str]:
    """For each kind of shmem object, by status field: the process that holds the largest one."""
    fields = {
        "sysv": "sysv_bytes",
        "memfd": "memfd_bytes",
        "sharedAnonymous": "shared_anonymous_bytes",
        "deletedOpen": "deleted_open_bytes",
    }
    largest: dict[str, tuple[int, str]] = {}
    for each in snapshot.shmem.objects:
        holder = next((snapshot.processes[pid] for pid in each.holders if pid in snapshot.processes), None)
        name = fields.get(each.kind)
        if name is not None and holder is not None and (each.bytes or 0) > largest.get(name, (0, ""))[0]:
            largest[name] = (each.bytes or 0, f"{holder.comm} (pid {holder.pid})")
    return {name: text for name, (_, text) in largest.items()}


def _held_bytes(snapshot: Snapshot, superblock: Superblock | DetachedSuperblock) -> int | None:
    if superblock.used_bytes is None and (inspection := snapshot.inspections.get(superblock.device)) is not None:
        # Without a limit the kernel keeps no count, but every file was seen.
        return inspection.found_bytes if inspection.stopped is None else None
    return superblock.used_bytes


def _tmpfs(
    snapshot: Snapshot, history: trends.History, superblock: Superblock, full_in: float | None, names: Names
) -> TmpfsStatus:
    owner = snapshot.tmpfs_owners[superblock.device]
    inspection = snapshot.inspections.get(superblock.device)
    used = _held_bytes(snapshot, superblock)
    largest: tuple[TmpfsEntryStatus, ...] = ()
    if inspection is not None:
        entries: list[tuple[str, int, float | None]] = [
            (each.path, each.bytes, each.mtime) for each in inspection.files
        ]
        entries += [(f"{each.path}/", each.bytes, None) for each in inspection.directories if each.path != "/"]
        entries.sort(key=lambda entry: (-entry[1], entry[0]))
        largest = tuple(
            TmpfsEntryStatus(path, size, file_time(modified)) for path, size, modified in entries[:LARGEST_LISTED]
        )
    return TmpfsStatus(
        device=superblock.device,
        mount_point=owner.path,
        scope=owner.kind if owner.kind in ("Host", "EmptyDir", "SharedMemory") else "Other",
        owner=_tmpfs_owner(owner, names),
        size_bytes=superblock.size_bytes,
        unlimited=superblock.unlimited,
        used_bytes=used,
        inodes=superblock.inodes,
        inodes_used=superblock.inodes_used,
        growth_bytes_per_hour=_whole(history.bytes_per_hour(f"tmpfs {superblock.device}")),
        full_at=None if full_in is None else _later(snapshot.observed_at, full_in),
        written_by=_writers(snapshot, superblock.device),
        journal_bytes=inspection.journal_bytes if inspection is not None else None,
        largest=largest,
        inspection_stopped=inspection.stopped if inspection is not None else None,
        why_unknown=superblock.why_unknown if used is None else None,
    )


def _detached(found: DetachedSuperblock) -> TmpfsStatus:
    """A tmpfs that is mounted nowhere any more, but held by a process."""
    return TmpfsStatus(
        device=found.device,
        mount_point=None,
        scope="Other",
        owner=TmpfsOwnerStatus(kind="Other"),
        size_bytes=found.size_bytes,
        unlimited=False,
        used_bytes=found.used_bytes,
        inodes=None,
        inodes_used=found.inodes_used,
        growth_bytes_per_hour=None,
        full_at=None,
        written_by=(),
        journal_bytes=None,
        largest=(),
        inspection_stopped=None,
        why_unknown=None,
    )


def _writers(snapshot: Snapshot, device: str) -> tuple[str, ...]:
    """Names of the processes that have most files of it open for writing, each name once."""
    names = (snapshot.processes[each.pid].comm for each in snapshot.writers.get(device, ()))
    return tuple(dict.fromkeys(names))[:WRITERS_LISTED]


def _tmpfs_owner(owner: TmpfsOwner, names: Names) -> TmpfsOwnerStatus:
    pod = names.pod(owner.pod_uid)
    return TmpfsOwnerStatus(
        kind=owner.kind,
        pod_uid=owner.pod_uid,
        pod_namespace=pod.namespace if pod else None,
        pod_name=pod.name if pod else None,
        volume=owner.volume,
        container_id=owner.container_id,
        container_name=names.container(owner.container_id),
    )


def _later(now: float, seconds: float) -> str | None:
    """None beyond a year: nobody plans for that, and a calendar has an end."""
    return timestamp(now + seconds) if seconds < 366 * 86400 else None


def _containers(snapshot: Snapshot, names: Names, containers: Iterable[Container]) -> tuple[ContainerStatus, ...]:
    found = []
    for container in containers:
        adjs = [
            adj
            for pid in container.pids
            if (process := snapshot.processes.get(pid)) is not None and (adj := process.oom_score_adj) is not None
        ]
        cgroup = container.cgroup
        pod = names.pod(container.ref.pod_uid)
        expected = names.expected_oom_score_adj.get(container.ref.container_id)
        found.append(
            ContainerStatus(
                id=container.ref.container_id,
                name=names.container(container.ref.container_id),
                pod_name=pod.name if pod else None,
                pod_namespace=pod.namespace if pod else None,
                pod_uid=container.ref.pod_uid,
                qos=container.ref.qos,
                cgroup=container.path,
                usage_bytes=cgroup.usage_bytes if cgroup else None,
                limit_bytes=cgroup.limit_bytes if cgroup else None,
                shmem_bytes=cgroup.shmem_bytes if cgroup else None,
                oom_score_adj=OomScoreAdjRange(min(adjs), max(adjs), expected) if adjs else None,
                processes=len(container.pids),
            )
        )
    return tuple(found)


def _by_shmem(container: Container) -> tuple[int, int, str]:
    cgroup = container.cgroup
    if cgroup is None:
        return 0, 0, container.ref.container_id
    return -(cgroup.shmem_bytes or 0), -(cgroup.usage_bytes or 0), container.ref.container_id


def _processes(snapshot: Snapshot) -> tuple[ProcessStatus, ...]:
    """User processes, largest first; kernel threads hold no memory of their own."""
    score = oom_scores(snapshot)
    return tuple(
        ProcessStatus(
            pid=process.pid,
            comm=process.comm,
            container_id=ref.container_id if (ref := snapshot.container_of(process.pid)) else None,
            owner=owner_name(snapshot.process_owners.get(process.pid)),
            rss_anon_bytes=process.rss_anon_bytes,
            rss_file_bytes=process.rss_file_bytes,
            rss_shmem_bytes=process.rss_shmem_bytes,
            rss_bytes=process.rss_bytes,
            swap_bytes=process.swap_bytes,
            page_tables_bytes=process.page_tables_bytes,
            oom_score_adj=process.oom_score_adj,
            oom_score=score.get(process.pid),
        )
        for process in sorted(snapshot.processes.values(), key=lambda process: (-process.rss_bytes, process.pid))
        if not process.kernel_thread
    )


def oom_scores(snapshot: Snapshot) -> dict[int, int]:
    """What /proc/<pid>/oom_score reads, computed; empty on a kernel whose generation is unknown."""
    rules = snapshot.probe.rules
    if rules is None:
        return {}
    total = node_totalpages(snapshot)
    scores = {}
    for task in tasks_of(snapshot):
        value = oom.oom_score(task, total, rules)
        if value is not None:
            scores[task.pid] = value
    return scores


def node_ranking(snapshot: Snapshot) -> tuple[oom.Ranked, ...]:
    """User processes in the order in which an OOM of the node takes them, the unkillable last."""
    rules = snapshot.probe.rules or oom.rules_for(None, oom.Generation.ACCURATE)
    tasks = [each for each in tasks_of(snapshot) if not each.kernel_thread]
    ordered, order = oom.in_scan_order(tasks, rules)
    return oom.predict(ordered, node_totalpages(snapshot), rules, oom.Knobs(), order).ranking


def tasks_of(snapshot: Snapshot) -> list[oom.Task]:
    return oom.tasks_from(snapshot.processes.values(), snapshot.page_size)


def node_totalpages(snapshot: Snapshot) -> int:
    part = snapshot.memory.partition
    return oom.global_totalpages(part.total_bytes, part.swap_total_bytes, snapshot.page_size)


def _conditions(snapshot: Snapshot) -> tuple[Condition, ...]:
    """``Complete`` says whether everything could be read and, if not, what is missing and why."""
    missing = merged(snapshot.unreadable)
    now = timestamp(snapshot.observed_at)
    if not missing:
        return (Condition("Complete", "True", "AllRead", "Everything could be read.", now),)
    text = "; ".join(
        f"{each.what}: {each.why}" + (f" ({each.count} times)" if each.count > 1 else "") for each in missing
    )
    return (Condition("Complete", "False", "Unreadable", text if len(text) <= 1024 else text[:1021] + "...", now),)


def file_time(mtime: float | None) -> str | None:
    """A file's owner may have set any time: what no calendar has is unknown."""
    try:
        return None if mtime is None else timestamp(mtime)
    except (OverflowError, ValueError, OSError):
        return None


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
