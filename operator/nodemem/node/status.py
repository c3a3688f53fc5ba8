"""MemoryReport.status as types: what the agent measures, in the shape the custom resource and ``-o json`` have.

Field names become camelCase keys (``pod_uid`` -> ``podUID``). None means unknown. The documentation of each field is
its ``doc`` metadata, and lists carry their bound: custom resource definition and reference are generated from both.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

API_VERSION = "nodemem.io/v1alpha1"

Scope = Literal["Host", "EmptyDir", "SharedMemory"]
LimitState = Literal["InSync", "Audit", "Deferred", "Failed", "Contested"]
ReclaimState = Literal["InSync", "Audit", "Refused", "Failed"]
OnDelete = Literal["Restore", "Keep"]
ExposureReason = Literal["ClampedBadness", "Unkillable", "SkewedAdj", "TmpfsHeld"]
Severity = Literal["Imminent", "High", "Low"]
OomMitigationState = Literal["Applied", "Pending", "Failed", "NotNeeded"]


class Rule(NamedTuple):
    """A CEL rule that the API server checks; ``message`` says what to write instead. ``field``: the one to blame."""

    expression: str
    message: str
    field: str | None = None


def doc(
    text: str,
    *,
    default: Any = dataclasses.MISSING,
    max_items: int | None = None,
    max_length: int = 512,
    minimum: int | None = None,
    maximum: int | None = None,
    rules: tuple[Rule, ...] = (),
    time: bool = False,
) -> Any:
    """A documented field. Of a list of strings, ``max_length`` bounds each. ``time``: an RFC 3339 timestamp.

    ``max_items`` 0 marks what only --all fills: it isn't part of the custom resource.
    """
    metadata = {
        "doc": text,
        "max_items": max_items,
        "max_length": max_length,
        "minimum": minimum,
        "maximum": maximum,
        "rules": rules,
        "time": time,
    }
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class KernelStatus:
    """The running kernel, as far as memory and its OOM killer go."""

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
    modified_at: str | None = doc("Last written.", default=None, time=True)


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
    full_at: str | None = doc("When it is full at this growth.", time=True)
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
class ProcessRef:
    """A process named in a finding."""

    pid: int = doc("Process id, in the node's PID namespace.")
    comm: str = doc("Command name, 15 bytes.", max_length=64)
    rss_bytes: int | None = doc("Resident memory.", default=None)


@dataclass(frozen=True, slots=True)
class MitigationStatus:
    """What would make a kernel with clamped scores choose right."""

    oom_score_adj: int = doc("The oom_score_adj for every process of the container.")
    discriminates_above_percent: int | None = doc(
        "A process that holds this share of the limit, or more, then stands out and is chosen."
    )


@dataclass(frozen=True, slots=True)
class ContainerExposure:
    """A container, or a pod as a whole, in which the kernel would kill the wrong process."""

    name: str | None = doc("Name of the container; absent where the pod's own limit is meant.", max_length=253)
    reasons: tuple[ExposureReason, ...] = doc(
        "Why: ClampedBadness, the kernel gives all the same score; Unkillable, a process at -1000 holds much;"
        " SkewedAdj, oom_score_adj differ and hide the largest; TmpfsHeld, killing frees little.",
        max_items=4,
    )
    severity: Severity = doc("Imminent: usage is near the limit. High: the wrong process would die. Low: it might.")
    limit_bytes: int | None = doc("The memory limit that would be hit.")
    usage_bytes: int | None = doc("What is charged to it now, page cache included.")
    predicted_victim: ProcessRef | None = doc("The process that the kernel would kill.")
    largest: ProcessRef | None = doc("The process whose death would free most.")
    mitigation: MitigationStatus | None = doc("A better oom_score_adj; absent where there is none or none is needed.")
    message: str = doc("The finding in a sentence, with the numbers behind it.", max_length=1024)


@dataclass(frozen=True, slots=True)
class ExposureStatus(ContainerExposure):
    """The same, with the pod it is in."""

    container_id: str | None = doc("Container id.", default=None)
    pod_name: str | None = doc("Name of the pod.", default=None, max_length=253)
    pod_namespace: str | None = doc("Namespace of the pod.", default=None, max_length=63)
    pod_uid: str | None = doc("UID of the pod.", default=None, max_length=64)
    mitigated: bool | None = doc(
        "The mitigation holds: with the oom_score_adj that was set the kernel would choose right. All else here is as"
        " it would be without.",
        default=None,
    )


@dataclass(frozen=True, slots=True)
class OomMitigationStatus:
    """What became of spec.oomMitigations in one container."""

    container_id: str = doc("Container id.", max_length=128)
    pod_uid: str = doc("UID of the pod, as the node knows it.", max_length=64)
    state: OomMitigationState = doc(
        "Applied: its processes have the value. Pending: something comes first, tried again with the next scan. Failed:"
        " nothing was set. NotNeeded: this kernel, or this container, needs no other value."
    )
    name: str | None = doc("Name of the container.", default=None, max_length=253)
    oom_score_adj: int | None = doc("The oom_score_adj that is set.", default=None, minimum=-1000, maximum=1000)
    kubelet_oom_score_adj: int | None = doc(
        "The kubelet's, which it replaces, and which is put back.", default=None, minimum=-1000, maximum=1000
    )
    limit_bytes: int | None = doc("The memory limit that the value was computed for.", default=None)
    processes: int | None = doc("Processes that have the value.", default=None)
    others: int | None = doc("Processes that have one of their own, which is left.", default=None)
    reason: str | None = doc("One word.", default=None, max_length=64)
    message: str | None = doc("A sentence, with the kernel's own words where it refused.", default=None)


@dataclass(frozen=True, slots=True)
class OomKillStatus:
    """A kill by the OOM killer, seen in the kernel's log and judged."""

    key: str = doc("What tells this kill from others: boot id and sequence number in the kernel's log.", max_length=128)
    killed_at: str | None = doc("When.", time=True)
    victim: ProcessRef | None = doc("The process that was killed; absent when there was nobody to kill.")
    largest: ProcessRef | None = doc("The process whose death would have freed most.")
    verdict: Literal["Right", "Wrong", "Unknown"] = doc("Whether the victim was the process whose death freed most.")
    cause: str = doc("Which rule decided, such as largest, clamped, oom_score_adj, unkillable.", max_length=64)
    limit_bytes: int | None = doc("The limit that was hit; absent when the node itself ran out.")
    message: str = doc("What happened, in a sentence.", max_length=1024)
    cgroup: str | None = doc("The memory cgroup that was out of memory.", default=None, max_length=1024)
    container_id: str | None = doc("Container of the victim.", default=None)
    container_name: str | None = doc("Its name in the pod.", default=None, max_length=253)
    pod_name: str | None = doc("Name of the pod.", default=None, max_length=253)
    pod_namespace: str | None = doc("Namespace of the pod.", default=None, max_length=63)
    pod_uid: str | None = doc("UID of the pod.", default=None, max_length=64)


@dataclass(frozen=True, slots=True)
class LimitStatus:
    """What became of one entry of spec.tmpfsLimits."""

    mount_point: str = doc("The mount point, as in spec.tmpfsLimits.", max_length=1024)
    requested_bytes: int | None = doc("The size asked for.")
    applied_bytes: int | None = doc("The size that the mount has now.")
    original_bytes: int | None = doc("The size it had before nodemem changed it; absent while it is unchanged.")
    state: LimitState = doc(
        "InSync: it holds. Audit: nothing was changed, the message says what would be. Deferred: too much is in use,"
        " tried again. Failed: the kernel refused. Contested: something else keeps changing it back."
    )
    reason: str | None = doc("One word.", default=None, max_length=64)
    message: str | None = doc(
        "A sentence, with the kernel's own words where it refused.", default=None, max_length=1024
    )
    policy: str | None = doc("The TmpfsPolicy it comes from.", default=None, max_length=253)
    device: str | None = doc("major:minor of the file system.", default=None, max_length=32)
    target_bytes: int | None = doc("The size that the limit comes to here: of the size found, by adjust.", default=None)
    on_delete: str | None = doc("What becomes of the size when the limit goes.", default=None, max_length=16)
    drifts: int | None = doc("How often something else changed the size lately, and it was set again.", default=None)
    instance: str | None = doc(
        "What tells this tmpfs from one that is mounted there later: boot, device and file system id.",
        default=None,
        max_length=96,
    )


@dataclass(frozen=True, slots=True)
class ReclaimStatus:
    """What became of one entry of spec.reclaim."""

    kind: Literal["Journal", "Tmpfiles"] = doc("Journal: systemd-journald's limit. Tmpfiles: an age for old files.")
    path: str | None = doc("Of Tmpfiles: the path, as in spec.reclaim.tmpfiles.", max_length=256)
    runtime_max_use_bytes: int | None = doc("Of Journal: the limit asked for.")
    age: str | None = doc("Of Tmpfiles: the age asked for.", max_length=32)
    state: ReclaimState = doc(
        "InSync: the node does it. Audit: nothing was changed, the message says what would be. Refused: it can't be"
        " done on this node, as it is. Failed: it was tried."
    )
    reason: str | None = doc("One word.", default=None, max_length=64)
    message: str | None = doc(
        "A sentence, with the words of the kernel or of systemd where they refused.", default=None, max_length=1024
    )
    policy: str | None = doc("The TmpfsPolicy it comes from.", default=None, max_length=253)
    freeable_bytes: int | None = doc("What cleaning would free now, about; absent where it is not known.", default=None)
    freed_bytes: int | None = doc("What the last cleaning freed, about.", default=None)
    cleaned_at: str | None = doc("When it was last had cleaned.", default=None, time=True)


@dataclass(frozen=True, slots=True)
class SummaryStatus:
    """The columns of ``kubectl get memoryreports``, formatted: a printer column can't format bytes."""

    total: str | None = doc("MemTotal, such as 64.0Gi.", max_length=32)
    shmem: str | None = doc("Shmem, such as 16.1Gi.", max_length=32)
    tmpfs: str | None = doc("Shmem that is in tmpfs files, such as 15.3Gi.", max_length=32)
    hidden: str | None = doc("Memory in use that is in no process's RSS, such as 18.2Gi.", max_length=32)
    top_tmpfs: str | None = doc("The fullest tmpfs: mount point, used, size, such as /run 15.1Gi/16Gi.", max_length=128)
    growth: str | None = doc("Growth of Shmem, such as +210Mi/h.", max_length=32)
    limits: str | None = doc(
        "Limits and reclaim in a word: the worst state of all, such as Audit or InSync.", max_length=32
    )
    exposed: int | None = doc("Number of containers in which the kernel would kill the wrong process.")
    mitigated: int | None = doc("Number of containers in which it would, were it not for a mitigation.", default=None)


@dataclass(frozen=True, slots=True)
class Condition:
    """A metav1.Condition."""

    type: str = doc("Name of the condition.", max_length=316)
    status: Literal["True", "False", "Unknown"] = doc("True, False or Unknown.")
    reason: str = doc("One word.", max_length=1024)
    message: str = doc("A sentence.", max_length=1024)
    last_transition_time: str = doc("When status last changed.", time=True)
    observed_generation: int | None = doc(
        "metadata.generation of the spec that this was said of.", default=None, minimum=0
    )


@dataclass(frozen=True, slots=True)
class Omitted:
    """How many entries the bounded lists leave out, and how much they hold together, as far as that is known."""

    tmpfs: int = doc("tmpfs not listed.", default=0)
    containers: int = doc("Containers not listed.", default=0)
    tmpfs_used_bytes: int = doc("Allocated to the files of the tmpfs that are not listed.", default=0)
    containers_shmem_bytes: int = doc("Shmem charged to the containers that are not listed.", default=0)
    containers_usage_bytes: int = doc("Charged to the containers that are not listed.", default=0)

    def and_tmpfs(self, left_out: Sequence[TmpfsStatus]) -> "Omitted":
        return dataclasses.replace(
            self,
            tmpfs=self.tmpfs + len(left_out),
            tmpfs_used_bytes=self.tmpfs_used_bytes + sum(each.used_bytes or 0 for each in left_out),
        )

    def and_containers(self, left_out: Sequence[ContainerStatus]) -> "Omitted":
        return dataclasses.replace(
            self,
            containers=self.containers + len(left_out),
            containers_shmem_bytes=self.containers_shmem_bytes + sum(each.shmem_bytes or 0 for each in left_out),
            containers_usage_bytes=self.containers_usage_bytes + sum(each.usage_bytes or 0 for each in left_out),
        )


@dataclass(frozen=True, slots=True)
class ReportStatus:
    """What the node's agent measured and did."""

    observed_at: str = doc("When the figures were taken.", time=True)
    agent_version: str = doc("Version of nodemem.", max_length=64)
    verdict: str = doc("Where the memory went, in a sentence.", max_length=1024)
    kernel: KernelStatus = doc("The kernel.")
    memory: MemoryStatus = doc("Where MemTotal went.")
    shmem: ShmemStatus = doc("Shmem by source.")
    tmpfs: tuple[TmpfsStatus, ...] = doc("Largest tmpfs first.", max_items=40)
    containers: tuple[ContainerStatus, ...] = doc("Most Shmem first, then most used.", max_items=60)
    conditions: tuple[Condition, ...] = doc("What is wrong, and what could not be read.", max_items=16)
    omitted: Omitted = doc("What the lists leave out.")
    processes: tuple[ProcessStatus, ...] | None = doc("Every process; with --all.", default=None, max_items=0)
    summary: SummaryStatus | None = doc("What kubectl get prints.", default=None)
    limits: tuple[LimitStatus, ...] | None = doc(
        "Each limit of spec.tmpfsLimits, and those taken back whose size is not yet restored.",
        default=None,
        max_items=256,
    )
    exposures: tuple[ExposureStatus, ...] | None = doc(
        "Containers in which the kernel would kill the wrong process, most severe first, those included in which only a"
        " mitigation prevents it; summary.exposed and summary.mitigated count all.",
        default=None,
        max_items=32,
    )
    oom_kills: tuple[OomKillStatus, ...] | None = doc(
        "The last kills of the OOM killer on this node, newest first.", default=None, max_items=16
    )
    observed_generation: int | None = doc(
        "metadata.generation of the spec that limits and reclaim answer in full.", default=None, minimum=0
    )
    reclaim: tuple[ReclaimStatus, ...] | None = doc(
        "Each entry of spec.reclaim, and those taken back that are not yet undone.", default=None, max_items=64
    )
    oom_mitigations: tuple[OomMitigationStatus, ...] | None = doc(
        "Each container of the pods in spec.oomMitigations, and those whose oom_score_adj is not yet put back.",
        default=None,
        max_items=128,
    )


_UPPER = {"uid": "UID", "id": "ID"}


def key(name: str) -> str:
    """``pod_uid`` -> ``podUID``, ``used_bytes`` -> ``usedBytes``."""
    head, *rest = name.split("_")
    return head + "".join(_UPPER.get(part, part.capitalize()) for part in rest)


@functools.cache
def named_fields(cls: type) -> tuple[tuple[str, str, Mapping[str, Any]], ...]:
    """Of a dataclass: attribute, its name in JSON, metadata. Made once: ``dataclasses.fields`` makes a tuple from a
    generator each time, and Python keeps up to two thousand of these of every length for later."""
    return tuple((field.name, key(field.name), field.metadata) for field in dataclasses.fields(cls))


def to_plain(value: Any, *, keep_unknown: bool = True) -> Any:
    """Dicts, lists and scalars for JSON.

    None stays, as null, unless ``keep_unknown`` is off (an API server prunes it); lists that only --all fills are left
    out when they are None.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            name: to_plain(item, keep_unknown=keep_unknown)
            for attribute, name, metadata in named_fields(type(value))
            if (item := getattr(value, attribute)) is not None or (keep_unknown and metadata.get("max_items") != 0)
        }
    if isinstance(value, tuple | list):
        return [to_plain(item, keep_unknown=keep_unknown) for item in value]
    return value
