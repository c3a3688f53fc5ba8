"""``kubectl nodemem top``: all nodes on one screen, those with the most hidden memory first."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from nodemem.api.resources import MEMORY_REPORT
from nodemem.cli.kubectl.cluster import Cluster, NotFound, Object, similar
from nodemem.cli.kubectl.options import add_cluster, cluster_of
from nodemem.cli.kubectl.reports import age_seconds, why_stale
from nodemem.cli.options import add_output, positive_seconds
from nodemem.cli.text import ONE_LINE, binary_size, console, dump, duration, fitted, percent, safe, show
from nodemem.node.summary import growth, quantity
from nodemem.policy.words import count, some

UNKNOWN = "-"


@dataclass(frozen=True, slots=True)
class Row:
    """A node. None is unknown. ``fields``: of status.memory and status.shmem, in bytes, by the columns' names."""

    name: str
    reported: bool
    stale: bool
    age_seconds: float | None
    total: int | None = None
    available: int | None = None
    shmem: int | None = None
    tmpfs: int | None = None
    hidden: int | None = None
    growth: int | None = None
    top: str = ""
    full_seconds: float | None = None
    limits: str = ""
    exposed: int | None = None
    kernel: str = ""
    generation: str = ""
    cgroup: str = ""
    complete: str = ""
    version: str = ""


SORTS: dict[str, Callable[[Row], float | None]] = {
    "hidden": lambda row: row.hidden,
    "shmem": lambda row: row.shmem,
    "tmpfs": lambda row: row.tmpfs,
    "growth": lambda row: row.growth,
    "total": lambda row: row.total,
    "exposed": lambda row: row.exposed,
    "seen": lambda row: row.age_seconds,
    "available": lambda row: None if row.available is None else -row.available,
    "full": lambda row: None if row.full_seconds is None else -row.full_seconds,
    "name": lambda row: 0,
}
"""Largest first; what is short (available, full) with the shortest first."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "top",
        help="every node: Shmem, tmpfs, hidden memory, growth, limits, exposures",
        description="Every node on one line. HIDDEN is memory in use that is in no process's RSS; TOP TMPFS the "
        "fullest one; FULL IN when the first tmpfs is full at its growth; SEEN the age of the figures. On a narrow "
        "terminal columns are left out; -o wide has all of them.",
    )
    parser.add_argument("nodes", nargs="*", metavar="NODE", help="these nodes only")
    parser.add_argument("-l", "--selector", metavar="LABELS", help="nodes with these labels, such as pool=web")
    parser.add_argument(
        "--sort", "--sort-by", dest="sort", choices=tuple(SORTS), default="hidden", help="default: hidden"
    )
    parser.add_argument("--watch", "-w", type=positive_seconds, metavar="SECONDS", help="again and again")
    add_output(parser, "table", "wide", "json", "yaml")
    add_cluster(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """0 done."""
    cluster = cluster_of(args)
    while True:
        reports, missing = _chosen(cluster, args.nodes, args.selector)
        if args.output in ("json", "yaml"):
            reports.sort(key=lambda each: _key(row_of(each), args.sort))
            dump({"apiVersion": "v1", "kind": "List", "items": reports}, args.output)
        else:
            rows = [row_of(each) for each in reports] + [Row(name, False, False, None) for name in missing]
            if args.watch and (out := console()).is_terminal:
                out.clear()
            show(*render(rows, args.sort, wide=args.output == "wide", selector=args.selector), pipe_width=ONE_LINE)
        if not args.watch:
            return 0
        sys.stdout.flush()
        time.sleep(args.watch)


def _chosen(cluster: Cluster, names: Sequence[str], selector: str | None) -> tuple[list[Object], list[str]]:
    """Reports, and nodes that have none as far as that was asked. Raises Trouble."""
    if names and selector is None:
        return [cluster.named(MEMORY_REPORT, name) for name in dict.fromkeys(names)], []
    reports = {each["metadata"]["name"]: each for each in cluster.items(MEMORY_REPORT.path())}
    if selector is None:
        return list(reports.values()), []
    nodes = cluster.names("/api/v1/nodes", {"labelSelector": selector})
    for name in names:
        if name not in nodes:
            raise NotFound(f"no node {name!r} has the labels {selector}{similar(name, nodes)}")
    wanted = [name for name in nodes if not names or name in names]
    return [reports[name] for name in wanted if name in reports], [name for name in wanted if name not in reports]


def row_of(report: Mapping[str, Any], now: float | None = None) -> Row:
    """What a report lacks is unknown: it may be of another version."""
    name, status = report["metadata"]["name"], report.get("status") or {}
    memory, shmem = status.get("memory") or {}, status.get("shmem") or {}
    summary, kernel = status.get("summary") or {}, status.get("kernel") or {}
    conditions = {each.get("type"): each.get("status") for each in status.get("conditions") or ()}
    return Row(
        name,
        "observedAt" in status,
        why_stale(report, now) is not None,
        age_seconds(report, now),
        memory.get("totalBytes"),
        memory.get("availableBytes"),
        memory.get("shmemBytes"),
        shmem.get("tmpfsBytes"),
        memory.get("hiddenBytes"),
        shmem.get("growthBytesPerHour"),
        summary.get("topTmpfs") or "",
        _full_seconds(status.get("tmpfs") or (), time.time() if now is None else now),
        summary.get("limits") or "",
        summary.get("exposed"),
        kernel.get("release") or "",
        kernel.get("oomGeneration") or "",
        kernel.get("cgroup") or "",
        conditions.get("Complete") or "",
        status.get("agentVersion") or "",
    )


def _full_seconds(tmpfs: Sequence[Mapping[str, Any]], now: float) -> float | None:
    """Until the first of them is full."""
    left = []
    for each in tmpfs:
        try:
            left.append(datetime.fromisoformat(each["fullAt"]).timestamp() - now)
        except (KeyError, TypeError, ValueError):
            continue
    return max(0.0, min(left)) if left else None


def _key(row: Row, sort: str) -> tuple[bool, float, str]:
    value = SORTS[sort](row)
    return value is None, -(value or 0), row.name


def render(rows: Sequence[Row], sort: str, *, wide: bool, selector: str | None = None) -> Iterator[RenderableType]:
    if not rows and selector is not None:
        yield Text(f"No node has the labels {safe(selector)}.")
        return
    if not rows:
        yield Text(
            "No node has reported yet. The agents write within a minute of their start: "
            "kubectl get daemonsets -A -l app.kubernetes.io/name=nodemem"
        )
        return
    yield Text(_headline(rows), style="bold")
    yield ""
    columns = _COLUMNS + (_WIDE if wide else ())
    cells = [[cell(row) for _, _, _, cell in columns] for row in sorted(rows, key=lambda row: _key(row, sort))]
    ranked = [(name, kind, 0 if wide else rank) for name, kind, rank, _ in columns]
    yield fitted("", ranked, cells)


def _headline(rows: Sequence[Row]) -> str:
    hidden, total = sum(row.hidden or 0 for row in rows), sum(row.total or 0 for row in rows)
    shmem = sum(row.shmem or 0 for row in rows)
    said = [
        f"{count(len(rows), 'node')}, {binary_size(total)}: {binary_size(hidden)} ({percent(hidden, total)}) is "
        f"hidden, {binary_size(shmem)} is Shmem."
    ]
    exposed = sum(row.exposed or 0 for row in rows)
    if exposed:
        said.append(f"{count(exposed, 'container')} exposed to the wrong kill (kubectl nodemem exposed -A).")
    if any(row.stale for row in rows):
        said.append(f"Stale: {safe(some([row.name for row in rows if row.stale]))}.")
    if not all(row.reported for row in rows):
        said.append(f"Without a report: {safe(some([row.name for row in rows if not row.reported]))}.")
    return " ".join(said)


def _size(size_bytes: int | None) -> str:
    return quantity(size_bytes) or UNKNOWN


def _hidden(row: Row) -> Text:
    share = (row.hidden or 0) / row.total if row.total else 0.0
    return Text(_size(row.hidden), style="red" if share >= 0.3 else "yellow" if share >= 0.15 else "")


def _seen(row: Row) -> Text:
    if not row.reported:
        return Text("no report yet", style="yellow")
    age = duration(row.age_seconds)
    return Text(f"{age} (stale)" if row.stale else age, style="yellow" if row.stale else "")


def _limits(row: Row) -> Text:
    return Text(safe(row.limits), style={"Failed": "red", "Contested": "red", "Deferred": "yellow"}.get(row.limits, ""))


def _exposed(row: Row) -> Text:
    return Text(UNKNOWN if row.exposed is None else str(row.exposed), style="red" if row.exposed else "")


Cell = Callable[[Row], str | Text]

_COLUMNS: tuple[tuple[str, str, int, Cell], ...] = (
    ("NODE", "text", 0, lambda row: safe(row.name)),
    ("TOTAL", "right", 2, lambda row: _size(row.total)),
    ("AVAILABLE", "right", 4, lambda row: _size(row.available)),
    ("SHMEM", "right", 1, lambda row: _size(row.shmem)),
    ("TMPFS", "right", 5, lambda row: _size(row.tmpfs)),
    ("HIDDEN", "right", 0, _hidden),
    ("GROWTH", "right", 3, lambda row: growth(row.growth) or UNKNOWN),
    ("TOP TMPFS", "text", 3, lambda row: safe(row.top)),
    ("FULL IN", "right", 4, lambda row: "" if row.full_seconds is None else duration(row.full_seconds)),
    ("LIMITS", "left", 5, _limits),
    ("EXPOSED", "right", 2, _exposed),
    ("SEEN", "left", 1, _seen),
)
_WIDE: tuple[tuple[str, str, int, Cell], ...] = (
    ("KERNEL", "left", 0, lambda row: safe(row.kernel)),
    ("OOM SCORES", "left", 0, lambda row: safe(row.generation)),
    ("CGROUP", "left", 0, lambda row: safe(row.cgroup)),
    ("COMPLETE", "left", 0, lambda row: safe(row.complete)),
    ("VERSION", "left", 0, lambda row: safe(row.version)),
)
