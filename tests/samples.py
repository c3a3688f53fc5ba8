"""MemoryReports of large nodes, with names as long as they usually get."""

import dataclasses

from nodemem.node import report
from nodemem.node.status import (
    Condition,
    ContainerStatus,
    ExposureStatus,
    KernelStatus,
    MemoryStatus,
    MitigationStatus,
    Omitted,
    OomKillStatus,
    OomScoreAdjRange,
    ProcessRef,
    ReportStatus,
    ShmemStatus,
    SummaryStatus,
    TmpfsEntryStatus,
    TmpfsOwnerStatus,
    TmpfsStatus,
)


def container(number: int) -> ContainerStatus:
    pod_uid = f"8f2d2d9c-4a44-4f8e-9d1e-{number:012d}"
    return ContainerStatus(
        id=f"{number:064x}",
        name="istio-proxy",
        pod_name=f"checkout-frontend-6d4cf56db6-{number:05d}",
        pod_namespace="team-payments-production",
        pod_uid=pod_uid,
        qos="Burstable",
        cgroup=f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{pod_uid.replace('-', '_')}.slice"
        f"/cri-containerd-{number:064x}.scope",
        usage_bytes=123456789012,
        limit_bytes=223456789012,
        shmem_bytes=103456789012,
        oom_score_adj=OomScoreAdjRange(-997, 1000, 998),
        processes=12,
    )


def tmpfs(number: int) -> TmpfsStatus:
    path = f"/var/lib/kubelet/pods/8f2d2d9c-4a44-4f8e-9d1e-{number:012d}/volumes/kubernetes.io~empty-dir/cache"
    return TmpfsStatus(
        device=f"0:{number}",
        mount_point=path,
        scope="EmptyDir",
        owner=TmpfsOwnerStatus("EmptyDir", f"8f2d2d9c-4a44-4f8e-9d1e-{number:012d}", "team", "checkout-5", "cache"),
        size_bytes=25276063744,
        unlimited=False,
        used_bytes=15276063744,
        inodes=3085457,
        inodes_used=100,
        growth_bytes_per_hour=220200960,
        full_at="2030-01-01T00:00:00Z",
        written_by=("java", "nginx"),
        journal_bytes=None,
        largest=tuple(TmpfsEntryStatus(f"work/segment-{n}.bin", 10**9, "2030-01-01T00:00:00Z") for n in range(5)),
        inspection_stopped=None,
        why_unknown=None,
    )


def exposure(number: int) -> ExposureStatus:
    return ExposureStatus(
        name="app",
        reasons=("ClampedBadness", "TmpfsHeld"),
        severity="Imminent",
        limit_bytes=17179869184,
        usage_bytes=17179000000,
        predicted_victim=ProcessRef(5740, "pause", 4096),
        largest=ProcessRef(58406, "data_sim", 16250150912),
        mitigation=MitigationStatus(-63, 7),
        message="The kernel would kill pause (4.0 KiB) while data_sim holds 15.1 GiB of the limit of 16.0 GiB.",
        container_id=f"{number:064x}",
        pod_name=f"simulator-{number}",
        pod_namespace="default",
        pod_uid=f"8f2d2d9c-4a44-4f8e-9d1e-{number:012d}",
    )


def kill(number: int) -> OomKillStatus:
    return OomKillStatus(
        key=f"8f2d2d9c-4a44-4f8e-9d1e-0123456789ab/{number}",
        killed_at="2030-01-01T00:00:00Z",
        victim=ProcessRef(5740, "pause", 4096),
        largest=ProcessRef(58406, "data_sim", 16250150912),
        verdict="Wrong",
        cause="clamped",
        limit_bytes=17179869184,
        message="The kernel killed pause (4.0 KiB); data_sim (15.1 GiB) lives.",
    )


def status(containers: int = 0, file_systems: int = 0, exposures: int = 0, kills: int = 0) -> ReportStatus:
    """Of a node that has so many; the lists are as long as ``report.build`` makes them."""
    return ReportStatus(
        observed_at="2030-01-01T00:00:00Z",
        agent_version="0.1.0",
        verdict="x" * 300,
        kernel=KernelStatus("6.18.0", "Accurate", "v2", 0, 0, 0, False, 4096, 1234567.8),
        memory=MemoryStatus(**{field.name: 68719476736 for field in dataclasses.fields(MemoryStatus)}),
        shmem=ShmemStatus(*([17179869184] * 10), deep=True),
        tmpfs=tuple(map(tmpfs, range(min(file_systems, report.TMPFS_LISTED)))),
        containers=tuple(map(container, range(min(containers, report.CONTAINERS_LISTED)))),
        conditions=(Condition("Complete", "True", "AllRead", "Everything could be read.", "2030-01-01T00:00:00Z"),),
        omitted=Omitted(
            tmpfs=max(0, file_systems - report.TMPFS_LISTED), containers=max(0, containers - report.CONTAINERS_LISTED)
        ),
        summary=SummaryStatus("64.0Gi", "16.1Gi", "15.3Gi", "18.2Gi", "/run 15.1Gi/16Gi", "+210Mi/h", "Audit", 3),
        limits=(),
        exposures=tuple(map(exposure, range(exposures))),
        oom_kills=tuple(map(kill, range(kills))),
    )
