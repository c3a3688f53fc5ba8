"""The agent's metrics: the report's figures, and what the agent itself did.

The number of series is bounded as the report's lists are: what they leave out is one remainder each, so that sums are
right. No label has a value that a container can multiply, and values are escaped and shortened as in the report.
"""

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import get_args

from nodemem import __version__
from nodemem.api.exposition import Exposition, process
from nodemem.node.status import ContainerStatus, LimitState, ReclaimState, ReportStatus, Severity, TmpfsStatus

EXPOSURES_LISTED = 32
LIMITS_LISTED = 40
_PRESSING = ("Failed", "Contested", "Deferred", "Audit", "InSync")
_PARTS = {
    "free": "free_bytes",
    "anonymous": "anonymous_bytes",
    "page_cache": "page_cache_bytes",
    "buffers": "buffers_bytes",
    "shmem": "shmem_bytes",
    "slab_reclaimable": "slab_reclaimable_bytes",
    "slab_unreclaimable": "slab_unreclaimable_bytes",
    "kernel_stack": "kernel_stack_bytes",
    "page_tables": "page_tables_bytes",
    "vmalloc": "vmalloc_bytes",
    "per_cpu": "per_cpu_bytes",
    "huge_pages": "huge_pages_bytes",
    "other": "other_bytes",
    "unaccounted": "unaccounted_bytes",
}
_SOURCES = {
    "tmpfs": "tmpfs_bytes",
    "sysv": "sysv_bytes",
    "memfd": "memfd_bytes",
    "shared_anonymous": "shared_anonymous_bytes",
    "deleted_open": "deleted_open_bytes",
    "kernel_internal": "kernel_internal_bytes",
    "unattributed": "unattributed_bytes",
}


@dataclass(slots=True)
class Counters:
    """What the agent itself did. Written by several threads, a value each by one of them or under the lock."""

    started_at: float = 0.0
    scans: Counter[str] = field(default_factory=Counter)
    scan_seconds: dict[str, float] = field(default_factory=dict)
    scan_failures: int = 0
    last_scan_at: float | None = None
    writes: Counter[str] = field(default_factory=Counter)
    write_failures: int = 0
    written_at: float | None = None
    report_bytes: int | None = None
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    kills: Mapping[str, int] = field(default_factory=dict)
    lost_log_records: int = 0
    pods: int | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def request(self, verb: str, status: int) -> None:
        """By class of status, so that the series stay few; ``none``: no answer."""
        with self.lock:
            self.requests[verb, f"{status // 100}xx" if status else "none"] += 1


def render(status: ReportStatus | None, counters: Counters, open_metrics: bool = True) -> Exposition:
    """``status`` None before the first scan."""
    out = Exposition(open_metrics)
    out.family("nodemem_build", "info", "Version of nodemem.")
    out.sample("nodemem_build_info", 1, version=__version__, component="agent")
    if status is not None:
        _node(out, status)
        _tmpfs(out, status)
        _limits(out, status)
        _containers(out, status)
        _exposures(out, status)
    _agent(out, counters)
    process(out, counters.started_at)
    return out


def _node(out: Exposition, status: ReportStatus) -> None:
    memory, shmem, kernel = status.memory, status.shmem, status.kernel
    total, available, hidden = memory.total_bytes, memory.available_bytes, memory.hidden_bytes
    out.value("nodemem_memory_size_bytes", "gauge", "MemTotal: what the kernel manages.", total, "bytes")
    out.family("nodemem_memory_part_bytes", "gauge", "The parts of memory; they add up to its size.", "bytes")
    for part, name in _PARTS.items():
        out.sample("nodemem_memory_part_bytes", getattr(memory, name), part=part)
    out.value("nodemem_memory_available_bytes", "gauge", "What can be had without swapping.", available, "bytes")
    out.value("nodemem_memory_hidden_bytes", "gauge", "Memory in use that is in no process's RSS.", hidden, "bytes")
    out.value("nodemem_shmem_size_bytes", "gauge", "Shmem of /proc/meminfo.", shmem.total_bytes, "bytes")
    out.family(
        "nodemem_shmem_source_bytes", "gauge", "Shmem by source; they add up to its size and what is swapped.", "bytes"
    )
    for source, name in _SOURCES.items():
        out.sample("nodemem_shmem_source_bytes", getattr(shmem, name), source=source)
    swapped = shmem.swapped_bytes
    out.value("nodemem_shmem_swapped_bytes", "gauge", "How much of the sources is swapped out.", swapped, "bytes")
    out.family("nodemem_kernel", "info", "The kernel, and how it scores processes in an OOM.")
    out.sample(
        "nodemem_kernel_info", 1, release=kernel.release, oom_generation=kernel.oom_generation, cgroup=kernel.cgroup
    )
    out.family("nodemem_complete", "gauge", "1: everything could be read.")
    for condition in status.conditions:
        if condition.type == "Complete":
            out.sample("nodemem_complete", int(condition.status == "True"))


def _tmpfs(out: Exposition, status: ReportStatus) -> None:
    out.family("nodemem_tmpfs_used_bytes", "gauge", "Allocated to the files of a tmpfs (the largest ones).", "bytes")
    for each, labels in _labelled_tmpfs(status):
        out.sample("nodemem_tmpfs_used_bytes", each.used_bytes, **labels)
    out.family("nodemem_tmpfs_size_bytes", "gauge", "What a tmpfs may hold; absent without a limit.", "bytes")
    for each, labels in _labelled_tmpfs(status):
        out.sample("nodemem_tmpfs_size_bytes", each.size_bytes, **labels)
    omitted = status.omitted
    out.value("nodemem_tmpfs_omitted", "gauge", "tmpfs without series of their own.", omitted.tmpfs)
    out.value(
        "nodemem_tmpfs_omitted_used_bytes", "gauge", "Allocated to files of these.", omitted.tmpfs_used_bytes, "bytes"
    )


def _labelled_tmpfs(status: ReportStatus) -> Iterator[tuple[TmpfsStatus, dict[str, str | None]]]:
    for each in status.tmpfs:
        yield (
            each,
            {
                "device": each.device,
                "mount_point": each.mount_point,
                "scope": each.scope,
                "namespace": each.owner.pod_namespace,
                "pod": each.owner.pod_name,
                "volume": each.owner.volume,
            },
        )


def _limits(out: Exposition, status: ReportStatus) -> None:
    if status.limits is None:
        return
    out.family("nodemem_tmpfs_limits", "gauge", "Limits that this node is to hold, by what became of them: all.")
    counts = Counter(each.state for each in status.limits)
    for state in get_args(LimitState):
        out.sample("nodemem_tmpfs_limits", counts[state], state=state)
    listed = sorted(status.limits, key=lambda each: _PRESSING.index(each.state))[:LIMITS_LISTED]
    out.family("nodemem_tmpfs_limit_state", "gauge", "1: a limit is in this state (those in trouble first).")
    for each in listed:
        out.sample(
            "nodemem_tmpfs_limit_state",
            1,
            mount_point=each.mount_point,
            policy=each.policy,
            state=each.state,
            reason=each.reason,
        )
    out.family("nodemem_tmpfs_limit_requested_bytes", "gauge", "The size that the policy asks for.", "bytes")
    for each in listed:
        out.sample(
            "nodemem_tmpfs_limit_requested_bytes",
            each.requested_bytes,
            mount_point=each.mount_point,
            policy=each.policy,
        )
    out.family("nodemem_reclaim", "gauge", "What this node is to clean itself, by what became of it.")
    reclaimed = Counter(each.state for each in status.reclaim or ())
    for state in get_args(ReclaimState):
        out.sample("nodemem_reclaim", reclaimed[state], state=state)


def _containers(out: Exposition, status: ReportStatus) -> None:
    families = (
        ("nodemem_container_shmem_bytes", "Shmem charged to a container (those with most).", "shmem_bytes"),
        ("nodemem_container_usage_bytes", "Memory charged to a container, page cache included.", "usage_bytes"),
        ("nodemem_container_limit_bytes", "Memory limit of a container; absent without one.", "limit_bytes"),
    )
    for family, text, name in families:
        out.family(family, "gauge", text, "bytes")
        for each, labels in _labelled_containers(status):
            out.sample(family, getattr(each, name), **labels)
    out.family("nodemem_container_oom_score_adj", "gauge", "Lowest and highest oom_score_adj of its processes.")
    for each, labels in _labelled_containers(status):
        if each.oom_score_adj is not None:
            out.sample("nodemem_container_oom_score_adj", each.oom_score_adj.min, **labels, bound="min")
            out.sample("nodemem_container_oom_score_adj", each.oom_score_adj.max, **labels, bound="max")
    omitted = status.omitted
    shmem, usage = omitted.containers_shmem_bytes, omitted.containers_usage_bytes
    out.value("nodemem_containers_omitted", "gauge", "Containers without series of their own.", omitted.containers)
    out.value("nodemem_containers_omitted_shmem_bytes", "gauge", "Shmem charged to these.", shmem, "bytes")
    out.value("nodemem_containers_omitted_usage_bytes", "gauge", "Memory charged to these.", usage, "bytes")


def _labelled_containers(status: ReportStatus) -> Iterator[tuple[ContainerStatus, dict[str, str | None]]]:
    for each in status.containers:
        yield (
            each,
            {"namespace": each.pod_namespace, "pod": each.pod_name, "container": each.name, "id": each.id[:12]},
        )


def _exposures(out: Exposition, status: ReportStatus) -> None:
    """As the node sees it. Which of them an OomPolicy flags, the controller knows."""
    applied = sum(each.state == "Applied" for each in status.oom_mitigations or ())
    out.value("nodemem_mitigated_containers", "gauge", "Containers whose oom_score_adj is the mitigation's.", applied)
    out.family("nodemem_exposed_containers", "gauge", "Containers whose OOM would kill the wrong process: all.")
    if status.exposures is None:
        return
    exposures = [each for each in status.exposures if not each.mitigated]
    severities = Counter(each.severity for each in exposures)
    for severity in get_args(Severity):
        out.sample("nodemem_exposed_containers", severities[severity], severity=severity)
    out.family("nodemem_container_exposed", "gauge", "1: its OOM would kill the wrong process (the worst ones).")
    for each in exposures[:EXPOSURES_LISTED]:
        out.sample(
            "nodemem_container_exposed",
            1,
            namespace=each.pod_namespace,
            pod=each.pod_name,
            container=each.name,
            id=(each.container_id or each.pod_uid or "")[:12],
            severity=each.severity,
            reasons=",".join(each.reasons),
        )


def _agent(out: Exposition, counters: Counters) -> None:
    out.family("nodemem_oom_kills", "counter", "OOM kills seen in the kernel's log, judged.")
    for verdict, count in counters.kills.items():
        out.sample("nodemem_oom_kills_total", count, verdict=verdict.lower())
    lost = counters.lost_log_records
    out.value("nodemem_kernel_log_lost_records", "counter", "Records overwritten before they could be read.", lost)
    out.family("nodemem_agent_scan_seconds", "summary", "Duration of scans: full ones and refreshes.", "seconds")
    with counters.lock:
        scans, seconds = dict(counters.scans), dict(counters.scan_seconds)
        requests, writes = dict(counters.requests), dict(counters.writes)
    for kind, count in scans.items():
        out.sample("nodemem_agent_scan_seconds_count", count, scan=kind)
        out.sample("nodemem_agent_scan_seconds_sum", round(seconds[kind], 6), scan=kind)
    out.value("nodemem_agent_scan_failures", "counter", "Scans that could not be made.", counters.scan_failures)
    last, written = counters.last_scan_at, counters.written_at
    out.value("nodemem_agent_last_scan_timestamp_seconds", "gauge", "When the last scan ended.", last, "seconds")
    out.family("nodemem_agent_report_writes", "counter", "Writes of the MemoryReport, by what made it worth one.")
    for why, count in writes.items():
        out.sample("nodemem_agent_report_writes_total", count, reason=why)
    failures, size = counters.write_failures, counters.report_bytes
    out.value("nodemem_agent_report_write_failures", "counter", "Writes that failed, each try.", failures)
    out.value(
        "nodemem_agent_report_written_timestamp_seconds", "gauge", "When it was written last.", written, "seconds"
    )
    out.value("nodemem_agent_report_status_bytes", "gauge", "Size of the status last written, as JSON.", size, "bytes")
    out.value("nodemem_agent_pods", "gauge", "Pods of this node that the watch knows.", counters.pods)
    out.family("nodemem_agent_api_requests", "counter", "Requests to the API server, by class of status.")
    for (verb, status), count in sorted(requests.items()):
        out.sample("nodemem_agent_api_requests_total", count, verb=verb, status=status)
