"""What a report says beyond the figures, as tables: limits of tmpfs, exposures, kills.

A MemoryReport of the cluster has them; ``nodemem report`` measures without (``nodemem oom exposed`` and ``nodemem oom
explain`` look there).
"""

from collections.abc import Iterator, Mapping, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from nodemem.cli.text import binary_size, percent, safe, table
from nodemem.node.status import (
    ContainerExposure,
    ExposureStatus,
    LimitStatus,
    OomKillStatus,
    ProcessRef,
    ReportStatus,
    TmpfsStatus,
)

SHOWN = 5
"""Entries of each list, unless everything is wanted."""

SEVERITY_STYLES = {"Imminent": "bold red", "High": "red", "Low": "yellow"}
STATE_STYLES = {"Failed": "bold red", "Contested": "red", "Deferred": "yellow", "Audit": "cyan", "InSync": "green"}
STATES_WORST_FIRST = ("Failed", "Contested", "Deferred", "Audit", "InSync")


def findings(status: ReportStatus, *, everything: bool = False) -> Iterator[RenderableType]:
    most = None if everything else SHOWN
    if status.limits:
        worst_first = sorted(status.limits, key=lambda each: state_rank(each.state))
        yield Text()
        yield _limits(worst_first[:most], {each.mount_point: each for each in status.tmpfs})
        yield from _more(len(worst_first), most)
    if status.exposures:
        total = status.summary.exposed if status.summary is not None else None
        yield Text()
        yield _exposures(status.exposures[:most])
        for each in status.exposures[:most]:
            yield Text()
            yield Text(safe(each.message))
        yield from _more(max(len(status.exposures), total or 0), most)
    if status.oom_kills:
        yield Text()
        yield _kills(status.oom_kills[:most])
        yield from _more(len(status.oom_kills), most)


def state_rank(state: str) -> int:
    """A state that this version doesn't know comes first: somebody should look."""
    return STATES_WORST_FIRST.index(state) if state in STATES_WORST_FIRST else -1


def process(found: ProcessRef | None) -> str:
    return "unknown" if found is None else safe(f"{found.comm} {found.pid} ({binary_size(found.rss_bytes)})")


def of_limit(usage_bytes: int | None, limit_bytes: int | None) -> str:
    if usage_bytes is None or not limit_bytes:
        return binary_size(usage_bytes)
    return f"{percent(usage_bytes, limit_bytes)} of {binary_size(limit_bytes)}"


def set_adj(exposure: ContainerExposure) -> str:
    return "" if exposure.mitigation is None else str(exposure.mitigation.oom_score_adj)


def place(mount_point: str, tmpfs: TmpfsStatus | None) -> str:
    """Of a pod by its name: the path on the node says it in 80 characters of id."""
    if tmpfs is None or not tmpfs.owner.pod_name:
        return mount_point
    what = tmpfs.owner.volume or ("/dev/shm" if tmpfs.scope == "SharedMemory" else mount_point)
    return f"{tmpfs.owner.pod_namespace}/{tmpfs.owner.pod_name}: {what}"


def _limits(limits: Sequence[LimitStatus], tmpfs: Mapping[str | None, TmpfsStatus]) -> Table:
    rows = table(
        "Limits of tmpfs",
        ("TMPFS", "text"), ("STATE", "left"), ("NOW", "right"), ("WANTED", "right"), ("FOUND", "right"),
        ("POLICY", "text"), ("WHAT", "text"),
    )  # fmt: skip
    for each in limits:
        rows.add_row(
            safe(place(each.mount_point, tmpfs.get(each.mount_point))),
            Text(safe(each.state), style=STATE_STYLES.get(each.state, "")),
            "" if each.applied_bytes is None else binary_size(each.applied_bytes),
            binary_size(each.requested_bytes),
            "" if each.original_bytes is None else binary_size(each.original_bytes),
            safe(each.policy or ""),
            safe(each.message or ""),
        )
    return rows


def _exposures(exposures: Sequence[ExposureStatus]) -> Table:
    rows = table(
        "Exposed: the wrong process would be killed",
        ("SEVERITY", "left"), ("POD", "text"), ("CONTAINER", "text"), ("IN USE", "right"), ("REASON", "text"),
        ("KILLED", "text"), ("LARGEST", "text"), ("SET ADJ", "right"),
    )  # fmt: skip
    for each in exposures:
        pod = f"{each.pod_namespace}/{each.pod_name}" if each.pod_name else f"pod {each.pod_uid}"
        rows.add_row(
            Text(safe(each.severity), style=SEVERITY_STYLES.get(each.severity, "")),
            safe(pod),
            safe(each.name or "(pod)"),
            of_limit(each.usage_bytes, each.limit_bytes),
            safe(", ".join(each.reasons)),
            process(each.predicted_victim),
            process(each.largest),
            set_adj(each),
        )
    return rows


def _kills(kills: Sequence[OomKillStatus]) -> Table:
    rows = table(
        "Killed by the OOM killer, newest first",
        ("WHEN", "left"), ("VERDICT", "left"), ("KILLED", "text"), ("WHERE", "text"), ("WHAT", "text"),
    )  # fmt: skip
    for each in kills:
        pod = f"{each.pod_namespace}/{each.pod_name}" if each.pod_name else _short(each.cgroup) or "the node"
        rows.add_row(
            safe(each.killed_at or "unknown"),
            Text(safe(each.verdict), style="red" if each.verdict == "Wrong" else ""),
            "nobody" if each.victim is None else process(each.victim),
            safe(pod),
            safe(each.message),
        )
    return rows


def _short(cgroup: str | None) -> str:
    """The end of it tells most."""
    return "" if cgroup is None else cgroup if len(cgroup) <= 40 else f"...{cgroup[-37:]}"


def _more(found: int, shown: int | None) -> Iterator[Text]:
    if shown is not None and found > shown:
        yield Text(f"and {found - shown} more: -o wide shows them", style="dim")
