"""What a page is made from: a report, and what only the machine itself (or its capture) can add."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nodemem.agent.exposures import named
from nodemem.cli import oom_rank
from nodemem.cli.meminfo import kernel_memory
from nodemem.cli.oom_rank import RankedProcess
from nodemem.kernel.host import Host, Unreadable
from nodemem.kernel.kernelmem import KernelMemory
from nodemem.kernel.tmpfs import Inspection
from nodemem.node import findings, report
from nodemem.node.findings import Findings
from nodemem.node.snapshot import Snapshot
from nodemem.node.status import ReportStatus
from nodemem.node.trends import History

PROCESSES_KEPT = 100
OBJECTS_KEPT = 100


@dataclass(frozen=True, slots=True)
class Extras:
    """Each may be missing: a cluster's report comes with none of them.

    ``inspections`` by device. ``evidence``: how the OOM killer's arithmetic was told. ``left_out``: what the report had
    more of, in words and numbers.
    """

    ranking: tuple[RankedProcess, ...] | None = None
    page_size: int = 4096
    evidence: str | None = None
    findings: Findings | None = None
    inspections: Mapping[str, Inspection] = field(default_factory=dict)
    history: History | None = None
    kernel_memory: KernelMemory | None = None
    unreadable: tuple[Unreadable, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)


NO_EXTRAS = Extras()


def of_machine(
    host: Host, snapshot: Snapshot, history: History, *, everything: bool = False
) -> tuple[ReportStatus, Extras]:
    """The report with its exposures. ``everything``: with complete lists, however long."""
    found = findings.find(snapshot)
    exposures = named(found.exposures, report.NO_NAMES)
    status = report.build(snapshot, history, everything=True, exposures=exposures)
    left_out: dict[str, int] = {}
    if not everything:
        status, left_out = bounded(status)
    return status, Extras(
        ranking=oom_rank.ranked(snapshot),
        page_size=snapshot.page_size,
        evidence=snapshot.probe.evidence,
        findings=found,
        inspections=snapshot.inspections,
        history=history,
        kernel_memory=kernel_memory(host, snapshot.memory.partition, always=everything),
        unreadable=tuple(report.merged(snapshot.unreadable)),
        left_out=left_out,
    )


def bounded(status: ReportStatus) -> tuple[ReportStatus, dict[str, int]]:
    """The report with lists as long as a page has use for; and how many entries of which list went."""
    objects = tuple(sorted(status.shmem.objects or (), key=lambda each: -(each.bytes or 0)))
    kept: dict[str, Any] = {
        "tmpfs": status.tmpfs[: report.TMPFS_LISTED],
        "containers": status.containers[: report.CONTAINERS_LISTED],
        "processes": None if status.processes is None else status.processes[:PROCESSES_KEPT],
    }
    left_out = {name: len(getattr(status, name) or ()) - len(part or ()) for name, part in kept.items()}
    left_out["shared memory objects"] = max(0, len(objects) - OBJECTS_KEPT)
    omitted = status.omitted.and_tmpfs(status.tmpfs[report.TMPFS_LISTED :])
    omitted = omitted.and_containers(status.containers[report.CONTAINERS_LISTED :])
    shmem = status.shmem
    if shmem.objects is not None:
        shmem = replace(shmem, objects=objects[:OBJECTS_KEPT])
    return (
        replace(status, **kept, omitted=omitted, shmem=shmem),
        {name: number for name, number in left_out.items() if number},
    )
