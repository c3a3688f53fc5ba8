"""MemoryReport.status as types: what the agent measures, in the shape the custom resource and ``-o json`` have.

Field names become camelCase keys (``pod_uid`` -> ``podUID``). None means unknown. The documentation of each field is
its ``doc`` metadata, and lists carry their bound: custom resource definition and reference are generated from both.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any


def doc(text: str, *, default: Any = dataclasses.MISSING, max_items: int | None = None, max_length: int = 512) -> Any:
    metadata = {"doc": text, "max_items": max_items, "max_length": max_length}
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class KernelStatus:
    release: str | None = doc("Kernel release, as uname -r prints it.")
    oom_generation: str = doc(
        "How this kernel scores processes in an out-of-memory kill, probed:"
        " ClampedFirst, ClampedLast, Accurate or Unknown."
    )
    cgroup: str | None = doc("Where the memory controller is: v1, v2 or hybrid.")
    swap_bytes: int | None = doc("Size of swap.")
    swap_used_bytes: int | None = doc("Swap in use.")
    panic_on_oom: int | None = doc("vm.panic_on_oom: 0 kills a process, 1 and 2 stop the machine.")
    oom_kill_allocating_task: bool | None = doc(
        "vm.oom_kill_allocating_task: the process that asked dies, not the largest."
    )
    page_size_bytes: int = doc("Size of a page.")
    uptime_seconds: float | None = doc("Time since boot.")


@dataclass(frozen=True, slots=True)
class MemoryStatus:
    """The partition of MemTotal: every part but total, available and hidden adds up to total."""

    total_bytes: int = doc("MemTotal: what the kernel manages.")
    available_bytes: int | None = doc("MemAvailable: what can be had without swapping, by the kernel's estimate.")
    hidden_bytes: int | None = doc(
        "In use and in no process's RSS: unmapped Shmem, slab, kernel stacks, page tables, vmalloc, per-CPU, huge page"
        " pool, other, unaccounted."
    )
    free_bytes: int = doc("Free pages.")
    anonymous_bytes: int = doc("Private memory of processes: heap, stack, private mappings.")
    page_cache_bytes: int = doc("Cached file data on disks; reclaimable.")
    buffers_bytes: int = doc("Cached block device data and file system metadata; reclaimable.")
    shmem_bytes: int = doc("tmpfs files, shared memory segments, memfds, shared anonymous memory.")
    slab_reclaimable_bytes: int = doc("Kernel objects that can be reclaimed, such as dentries and inodes.")
    slab_unreclaimable_bytes: int = doc("Kernel objects that can't be reclaimed.")
    kernel_stack_bytes: int = doc("Stacks of threads in the kernel, 16 KiB each on most machines.")
    page_tables_bytes: int = doc("Page tables of processes and of virtual machines.")
    vmalloc_bytes: int | None = doc("vmalloc areas in use, kernel stacks not counted again.")
    per_cpu_bytes: int | None = doc("Per-CPU variables.")
    huge_pages_bytes: int = doc("The hugetlb pool, used or not.")
    other_bytes: int = doc("Known but rare: compressed swap, hardware-corrupted and ballooned memory, and the like.")
    unaccounted_bytes: int = doc(
        "The remainder: pages that no counter of the kernel shows, or, negative, counted twice by it."
    )


@dataclass(frozen=True, slots=True)
class ShmemObjectStatus:
    kind: str = doc("sysv, memfd, sharedAnonymous, deletedOpen or kernelInternal.")
    device: str | None = doc("major:minor of the file system.")
    inode: int | None = doc("Inode number; of a System V segment its shmid.")
    bytes: int | None = doc("Allocated memory, swapped pages included.")
    name: str | None = doc("The kernel's name for it.")
    holders: tuple[int, ...] = doc("Processes that have it mapped or open.", max_items=64)
    container_id: str | None = doc("Container of the holders, when it is one.")


@dataclass(frozen=True, slots=True)
class ShmemStatus:
    """Shmem by source.

    tmpfs + sysv + memfd + sharedAnonymous + deletedOpen + kernelInternal + unattributed - swapped = total.
    """

    total_bytes: int = doc("Shmem of /proc/meminfo.")
    tmpfs_bytes: int | None = doc("Files in mounted tmpfs; what deleted files still hold there is under deletedOpen.")
    sysv_bytes: int | None = doc("System V segments of every IPC namespace.")
    memfd_bytes: int | None = doc("Files made by memfd_create.")
    shared_anonymous_bytes: int | None = doc("MAP_SHARED|MAP_ANONYMOUS mappings and /dev/zero.")
    deleted_open_bytes: int | None = doc(
        "Deleted tmpfs files that a process still holds, and tmpfs that are detached but held."
    )
    kernel_internal_bytes: int | None = doc("Objects the kernel itself keeps in shmem, such as graphics buffers.")
    swapped_bytes: int | None = doc(
        "How much of these is swapped out, hence not in total (an estimate unless swap is unused)."
    )
    unattributed_bytes: int | None = doc("What no source explains.")
    growth_bytes_per_hour: int | None = doc("Growth of total, the largest single step left out.")
    deep: bool = doc("Whether descriptors and mappings of processes were searched.")
    objects: tuple[ShmemObjectStatus, ...] | None = doc("Every object found; with --all.", default=None, max_items=0)


@dataclass(frozen=True, slots=True)
class TmpfsOwnerStatus:
    kind: str = doc("Host, EmptyDir, SharedMemory, Projected, Secret or Other.")
    pod_uid: str | None = doc("UID of the pod.", default=None)
    pod_namespace: str | None = doc("Namespace of the pod.", default=None)
    pod_name: str | None = doc("Name of the pod.", default=None)
    volume: str | None = doc("Name of the volume.", default=None)
    container_id: str | None = doc("Container whose mount it is.", default=None)
    container_name: str | None = doc("Name of that container in its pod.", default=None)


@dataclass(frozen=True, slots=True)
class TmpfsEntryStatus:
    path: str = doc("Path below the mount point; a directory ends in /.")
    bytes: int = doc("Allocated blocks; of a directory, of all below it.")
    modified_at: str | None = doc("Last written.", default=None)


@dataclass(frozen=True, slots=True)
class TmpfsStatus:
    device: str = doc("major:minor, the identity of the file system.")
    mount_point: str | None = doc("Where it is mounted, in the host's namespace if it is mounted there.")
    scope: str = doc("Host, EmptyDir, SharedMemory or Other.")
    owner: TmpfsOwnerStatus = doc("Whose it is.")
    size_bytes: int | None = doc("Size limit; absent when unlimited or unknown (see unlimited).")
    unlimited: bool = doc("Mounted without a size limit.")
    used_bytes: int | None = doc("Allocated to files, deleted but open ones and swapped pages included.")
    inodes: int | None = doc("Inode limit.")
    inodes_used: int | None = doc("Inodes in use.")
    growth_bytes_per_hour: int | None = doc("Growth, the largest single step left out.")
    full_at: str | None = doc("When it is full at this growth.")
    written_by: tuple[str, ...] = doc("Processes that have files in it open for writing.", max_items=5)
    journal_bytes: int | None = doc("systemd-journald's volatile journal.")
    largest: tuple[TmpfsEntryStatus, ...] = doc("Largest files and directories.", max_items=10)
    inspection_stopped: str | None = doc("Why the search for the largest files ended early: entries or time.")
    why_unknown: str | None = doc("Why its usage could not be measured.")


@dataclass(frozen=True, slots=True)
class OomScoreAdjRange:
    min: int = doc("Lowest oom_score_adj of its processes.")
    max: int = doc("Highest.")
    expected: int | None = doc("What the kubelet sets for this container.", default=None)


@dataclass(frozen=True, slots=True)
class ContainerStatus:
    id: str = doc("Container id.")
    name: str | None = doc("Name in the pod.")
    pod_name: str | None = doc("Name of the pod.")
    pod_namespace: str | None = doc("Namespace of the pod.")
    pod_uid: str | None = doc("UID of the pod; absent for containers without Kubernetes.")
    qos: str | None = doc("Guaranteed, Burstable or BestEffort.")
    cgroup: str = doc("Path of its memory cgroup.", max_length=1024)
    usage_bytes: int | None = doc("Charged to it, page cache included.")
    limit_bytes: int | None = doc("Its own limit; absent when there is none.")
    shmem_bytes: int | None = doc("Shmem charged to it: to the container that touched a page first.")
    oom_score_adj: OomScoreAdjRange | None = doc("oom_score_adj of its processes.")
    processes: int = doc("Number of processes.")


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    pid: int = doc("Process id.")
    comm: str = doc("Command name, 15 bytes.")
    container_id: str | None = doc("Container.")
    owner: str | None = doc("Systemd unit, container or kernel.")
    rss_anon_bytes: int | None = doc("Resident private memory.")
    rss_file_bytes: int | None = doc("Resident pages of mapped files.")
    rss_shmem_bytes: int | None = doc("Resident shared memory.")
    rss_bytes: int | None = doc("All three.")
    swap_bytes: int | None = doc("Swapped private memory.")
    page_tables_bytes: int | None = doc("Page tables.")
    oom_score_adj: int | None = doc("oom_score_adj.")
    oom_score: int | None = doc("What /proc/<pid>/oom_score reads.")


@dataclass(frozen=True, slots=True)
class Condition:
    """A metav1.Condition."""

    type: str = doc("Name of the condition.", max_length=316)
    status: str = doc("True, False or Unknown.")
    reason: str = doc("One word.", max_length=1024)
    message: str = doc("A sentence.", max_length=1024)
    last_transition_time: str = doc("When status last changed.")


@dataclass(frozen=True, slots=True)
class Omitted:
    """How many entries the bounded lists leave out."""

    tmpfs: int = doc("tmpfs not listed.", default=0)
    containers: int = doc("Containers not listed.", default=0)


@dataclass(frozen=True, slots=True)
class ReportStatus:
    observed_at: str = doc("When the figures were taken.")
    agent_version: str = doc("Version of nodemem.")
    verdict: str = doc("Where the memory went, in a sentence.", max_length=1024)
    kernel: KernelStatus = doc("The kernel.")
    memory: MemoryStatus = doc("Where MemTotal went.")
    shmem: ShmemStatus = doc("Shmem by source.")
    tmpfs: tuple[TmpfsStatus, ...] = doc("Largest tmpfs first.", max_items=40)
    containers: tuple[ContainerStatus, ...] = doc("Most Shmem first, then most used.", max_items=60)
    conditions: tuple[Condition, ...] = doc("What is wrong, and what could not be read.", max_items=16)
    omitted: Omitted = doc("What the lists leave out.")
    processes: tuple[ProcessStatus, ...] | None = doc("Every process; with --all.", default=None, max_items=0)


_UPPER = {"uid": "UID", "id": "ID"}


def key(name: str) -> str:
    """``pod_uid`` -> ``podUID``, ``used_bytes`` -> ``usedBytes``."""
    head, *rest = name.split("_")
    return head + "".join(_UPPER.get(part, part.capitalize()) for part in rest)


def to_plain(value: Any, *, keep_unknown: bool = True) -> Any:
    """Dicts, lists and scalars for JSON.

    None stays, as null, unless ``keep_unknown`` is off (an API server prunes it); lists that only --all fills are left
    out when they are None.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            key(field.name): to_plain(item, keep_unknown=keep_unknown)
            for field in dataclasses.fields(value)
            if (item := getattr(value, field.name)) is not None
            or (keep_unknown and field.metadata.get("max_items") != 0)
        }
    if isinstance(value, tuple | list):
        return [to_plain(item, keep_unknown=keep_unknown) for item in value]
    return value
