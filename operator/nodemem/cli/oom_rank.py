"""Processes in the order in which an OOM of the node takes them, with what decides it."""

from dataclasses import dataclass

from nodemem.node import report
from nodemem.node.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class RankedProcess:
    """``points``: the kernel's score, in pages; None for one that it never takes (``unkillable`` says why).
    ``oom_score``: what /proc/<pid>/oom_score reads, None where that can't be told."""

    pid: int
    comm: str
    owner: str | None
    points: int | None
    oom_score: int | None
    oom_score_adj: int | None
    rss_bytes: int
    swap_bytes: int
    page_tables_bytes: int
    frees_bytes: int
    unkillable: str | None


def ranked(snapshot: Snapshot) -> tuple[RankedProcess, ...]:
    """First to die first, the unkillable last."""
    scores = report.oom_scores(snapshot)
    size = snapshot.page_size
    return tuple(
        RankedProcess(
            pid=each.pid,
            comm=each.task.name,
            owner=report.owner_name(snapshot.process_owners.get(each.pid)),
            points=each.points,
            oom_score=scores.get(each.pid),
            oom_score_adj=each.task.oom_score_adj,
            rss_bytes=each.task.rss_pages * size,
            swap_bytes=each.task.swap_pages * size,
            page_tables_bytes=(each.task.page_table_pages + each.task.pmd_pages) * size,
            frees_bytes=each.task.frees_pages * size,
            unkillable=each.why,
        )
        for each in report.node_ranking(snapshot)
    )
