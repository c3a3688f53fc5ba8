"""Statuses for the tests of the agent's decisions."""

from typing import Any

from nodemem.node.status import (
    Condition,
    ContainerStatus,
    ExposureStatus,
    KernelStatus,
    MemoryStatus,
    Omitted,
    OomKillStatus,
    OomScoreAdjRange,
    ReportStatus,
    ShmemStatus,
    SummaryStatus,
    TmpfsEntryStatus,
    TmpfsOwnerStatus,
    TmpfsStatus,
)

MIB = 1 << 20
GIB = 1 << 30
TIME = "2026-01-01T00:00:00Z"


def memory(**changes: Any) -> MemoryStatus:
    values: dict[str, Any] = {
        name: 0
        for name in MemoryStatus.__dataclass_fields__
        if name not in ("total_bytes", "available_bytes", "anonymous_bytes")
    }
    values |= {"total_bytes": 64 * GIB, "available_bytes": 32 * GIB, "anonymous_bytes": 16 * GIB}
    return MemoryStatus(**values | changes)


def tmpfs(number: int, used: int | None = MIB, *, files: int = 0) -> TmpfsStatus:
    return TmpfsStatus(
        device=f"0:{number}",
        mount_point=f"/var/lib/kubelet/pods/8d0c6b0e-6bd5-4e2c-9bdb-8f1f2bb0d3c{number % 10}/volumes/v{number}",
        scope="EmptyDir",
        owner=TmpfsOwnerStatus(
            kind="EmptyDir", pod_uid=f"uid-{number}", pod_namespace="load", pod_name=f"pod-{number}"
        ),
        size_bytes=GIB,
        unlimited=False,
        used_bytes=used,
        inodes=1000,
        inodes_used=5,
        growth_bytes_per_hour=0,
        full_at=None,
        written_by=("writer",),
        journal_bytes=None,
        largest=tuple(TmpfsEntryStatus(f"/logs/service-{each}.log", MIB, TIME) for each in range(files)),
        inspection_stopped=None,
        why_unknown=None,
    )


def container(number: int, shmem: int = 0, usage: int = 100 * MIB) -> ContainerStatus:
    return ContainerStatus(
        id=f"{number:064x}",
        name="application",
        pod_name=f"pod-{number}",
        pod_namespace="load",
        pod_uid=f"8d0c6b0e-6bd5-4e2c-9bdb-{number:012x}",
        qos="Burstable",
        cgroup=f"/kubepods/burstable/pod8d0c6b0e-6bd5-4e2c-9bdb-{number:012x}/{number:064x}",
        usage_bytes=usage,
        limit_bytes=GIB,
        shmem_bytes=shmem,
        oom_score_adj=OomScoreAdjRange(900, 900, 900),
        processes=3,
    )


def exposure(number: int, severity: Any = "High", *, message: str = "It kills the wrong one. " * 20) -> ExposureStatus:
    return ExposureStatus(
        name="application",
        reasons=("ClampedBadness",),
        severity=severity,
        limit_bytes=GIB,
        usage_bytes=GIB,
        predicted_victim=None,
        largest=None,
        mitigation=None,
        message=message,
        container_id=f"{number:064x}",
        pod_name=f"pod-{number}",
        pod_namespace="load",
        pod_uid=f"uid-{number}",
    )


def kill(number: int, **changes: Any) -> OomKillStatus:
    values: dict[str, Any] = {
        "key": f"boot:{number}",
        "killed_at": TIME,
        "victim": None,
        "largest": None,
        "verdict": "Wrong",
        "cause": "clamped",
        "limit_bytes": GIB,
        "message": "The kernel killed pause. " * 20,
    }
    return OomKillStatus(**values | changes)


def status(**changes: Any) -> ReportStatus:
    values: dict[str, Any] = {
        "observed_at": TIME,
        "agent_version": "1",
        "verdict": "Nothing large is hidden.",
        "kernel": KernelStatus("6.1", "Accurate", "v2", 0, 0, 0, False, 4096, 1.0),
        "memory": memory(),
        "shmem": ShmemStatus(GIB, GIB, 0, 0, 0, 0, 0, 0, 0, 0, False),
        "tmpfs": (),
        "containers": (),
        "conditions": (Condition("Complete", "True", "AllRead", "Everything could be read.", TIME),),
        "omitted": Omitted(),
        "summary": SummaryStatus("64Gi", "1Gi", "1Gi", "1Gi", None, None, None, 0),
        "exposures": (),
        "oom_kills": (),
    }
    return ReportStatus(**values | changes)
