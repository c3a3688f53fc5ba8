"""The metrics, in the text format that Prometheus reads: OpenMetrics 1.0.

The number of series is bounded as the report's lists are: no label has a value that a container can multiply, since the
lists are cut, and values are escaped and shortened as in the report.
"""

import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import get_args

from nodemem import __version__
from nodemem.api.convert import safe
from nodemem.node.status import ContainerStatus, LimitState, ReportStatus, TmpfsStatus

CONTENT_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_LABEL_LENGTH = 128
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


def render(status: ReportStatus | None, counters: Counters) -> bytes:
    """``status`` None before the first scan."""
    out = _Text()
    out.family("nodemem_build", "info", "Version of the agent.")
    out.sample("nodemem_build_info", 1, version=__version__)
    if status is not None:
        _node(out, status)
        _tmpfs(out, status)
        _limits(out, status)
        _containers(out, status)
    _agent(out, counters)
    return out.done()


class _Text:
    def __init__(self) -> None:
        self._lines: list[str] = []

    def family(self, name: str, kind: str, text: str, unit: str | None = None) -> None:
        self._lines.append(f"# TYPE {name} {kind}")
        if unit is not None:
            self._lines.append(f"# UNIT {name} {unit}")
        self._lines.append(f"# HELP {name} {_escaped(text)}")

    def sample(self, name: str, value: float | None, **labels: str | None) -> None:
        """Nothing for an unknown value: no series says more than a zero."""
        if value is None:
            return
        known = [f'{key}="{_label(text)}"' for key, text in labels.items() if text is not None]
        self._lines.append(f"{name}{{{','.join(known)}}} {value}" if known else f"{name} {value}")

    def done(self) -> bytes:
        return ("\n".join([*self._lines, "# EOF"]) + "\n").encode()


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _label(text: str) -> str:
    return _escaped(safe(text)[:_LABEL_LENGTH])


def _node(out: _Text, status: ReportStatus) -> None:
    memory, shmem = status.memory, status.shmem
    out.family("nodemem_memory_size_bytes", "gauge", "MemTotal: what the kernel manages.", "bytes")
    out.sample("nodemem_memory_size_bytes", memory.total_bytes)
    out.family("nodemem_memory_part_bytes", "gauge", "The parts of memory; they add up to its size.", "bytes")
    for part, name in _PARTS.items():
        out.sample("nodemem_memory_part_bytes", getattr(memory, name), part=part)
    out.family("nodemem_memory_available_bytes", "gauge", "What can be had without swapping.", "bytes")
    out.sample("nodemem_memory_available_bytes", memory.available_bytes)
    out.family("nodemem_memory_hidden_bytes", "gauge", "Memory in use that is in no process's RSS.", "bytes")
    out.sample("nodemem_memory_hidden_bytes", memory.hidden_bytes)
    out.family("nodemem_shmem_size_bytes", "gauge", "Shmem of /proc/meminfo.", "bytes")
    out.sample("nodemem_shmem_size_bytes", shmem.total_bytes)
    out.family(
        "nodemem_shmem_source_bytes", "gauge", "Shmem by source; they add up to its size and what is swapped.", "bytes"
    )
    for source, name in _SOURCES.items():
        out.sample("nodemem_shmem_source_bytes", getattr(shmem, name), source=source)
    out.family("nodemem_shmem_swapped_bytes", "gauge", "How much of the sources is swapped out.", "bytes")
    out.sample("nodemem_shmem_swapped_bytes", shmem.swapped_bytes)
    out.family("nodemem_kernel", "info", "The kernel, and how it scores processes in an OOM.")
    kernel = status.kernel
    out.sample(
        "nodemem_kernel_info", 1, release=kernel.release, oom_generation=kernel.oom_generation, cgroup=kernel.cgroup
    )
    out.family("nodemem_complete", "gauge", "1: everything could be read.")
    for condition in status.conditions:
        if condition.type == "Complete":
            out.sample("nodemem_complete", int(condition.status == "True"))
    out.family("nodemem_exposed_containers", "gauge", "Containers whose OOM would kill the wrong process.")
    if status.exposures is not None:
        severities = Counter(each.severity for each in status.exposures)
        for severity in ("Imminent", "High", "Low"):
            out.sample("nodemem_exposed_containers", severities[severity], severity=severity)


def _tmpfs(out: _Text, status: ReportStatus) -> None:
    out.family("nodemem_tmpfs_used_bytes", "gauge", "Allocated to the files of a tmpfs (the largest ones).", "bytes")
    for each, labels in _labelled_tmpfs(status):
        out.sample("nodemem_tmpfs_used_bytes", each.used_bytes, **labels)
    out.family("nodemem_tmpfs_limit_bytes", "gauge", "Size limit of a tmpfs; absent without one.", "bytes")
    for each, labels in _labelled_tmpfs(status):
        out.sample("nodemem_tmpfs_limit_bytes", each.size_bytes, **labels)
    out.family("nodemem_tmpfs_omitted", "gauge", "tmpfs without series of their own.")
    out.sample("nodemem_tmpfs_omitted", status.omitted.tmpfs)


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


def _limits(out: _Text, status: ReportStatus) -> None:
    if status.limits is None:
        return
    out.family("nodemem_tmpfs_limits", "gauge", "Limits of tmpfs that this node is to hold, by what became of them.")
    counts = Counter(each.state for each in status.limits)
    for state in get_args(LimitState):
        out.sample("nodemem_tmpfs_limits", counts[state], state=state)


def _containers(out: _Text, status: ReportStatus) -> None:
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
    out.family("nodemem_containers_omitted", "gauge", "Containers without series of their own.")
    out.sample("nodemem_containers_omitted", status.omitted.containers)


def _labelled_containers(status: ReportStatus) -> Iterator[tuple[ContainerStatus, dict[str, str | None]]]:
    for each in status.containers:
        yield (
            each,
            {"namespace": each.pod_namespace, "pod": each.pod_name, "container": each.name, "id": each.id[:12]},
        )


def _agent(out: _Text, counters: Counters) -> None:
    out.family("nodemem_oom_kills", "counter", "OOM kills seen in the kernel's log, judged.")
    for verdict, count in counters.kills.items():
        out.sample("nodemem_oom_kills_total", count, verdict=verdict.lower())
    out.family("nodemem_kernel_log_lost_records", "counter", "Records overwritten before they could be read.")
    out.sample("nodemem_kernel_log_lost_records_total", counters.lost_log_records)
    out.family("nodemem_agent_scan_seconds", "summary", "Duration of scans: full ones and refreshes.", "seconds")
    with counters.lock:
        scans, seconds = dict(counters.scans), dict(counters.scan_seconds)
        requests, writes = dict(counters.requests), dict(counters.writes)
    for kind, count in scans.items():
        out.sample("nodemem_agent_scan_seconds_count", count, scan=kind)
        out.sample("nodemem_agent_scan_seconds_sum", round(seconds[kind], 6), scan=kind)
    out.family("nodemem_agent_scan_failures", "counter", "Scans that could not be made.")
    out.sample("nodemem_agent_scan_failures_total", counters.scan_failures)
    out.family("nodemem_agent_last_scan_timestamp_seconds", "gauge", "When the last scan ended.", "seconds")
    out.sample("nodemem_agent_last_scan_timestamp_seconds", counters.last_scan_at)
    out.family("nodemem_agent_report_writes", "counter", "Writes of the MemoryReport, by what made it worth one.")
    for why, count in writes.items():
        out.sample("nodemem_agent_report_writes_total", count, reason=why)
    out.family("nodemem_agent_report_write_failures", "counter", "Writes that failed, each try.")
    out.sample("nodemem_agent_report_write_failures_total", counters.write_failures)
    out.family("nodemem_agent_report_written_timestamp_seconds", "gauge", "When it was written last.", "seconds")
    out.sample("nodemem_agent_report_written_timestamp_seconds", counters.written_at)
    out.family("nodemem_agent_report_status_bytes", "gauge", "Size of the status last written, as JSON.", "bytes")
    out.sample("nodemem_agent_report_status_bytes", counters.report_bytes)
    out.family("nodemem_agent_pods", "gauge", "Pods of this node that the watch knows.")
    out.sample("nodemem_agent_pods", counters.pods)
    out.family("nodemem_agent_api_requests", "counter", "Requests to the API server, by class of status.")
    for (verb, status), count in sorted(requests.items()):
        out.sample("nodemem_agent_api_requests_total", count, verb=verb, status=status)
    times = os.times()
    out.family("process_cpu_seconds", "counter", "CPU time of the agent.", "seconds")
    out.sample("process_cpu_seconds_total", round(times.user + times.system, 2))
    out.family("process_resident_memory_bytes", "gauge", "Resident memory of the agent.", "bytes")
    out.sample("process_resident_memory_bytes", _resident_bytes())
    out.family("process_start_time_seconds", "gauge", "When the agent started.", "seconds")
    out.sample("process_start_time_seconds", counters.started_at)


def _resident_bytes() -> int | None:
    try:
        with open("/proc/self/statm", "rb") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
