"""``nodemem oom exposed``: where the OOM killer would take the wrong process, and which host services it would take."""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from nodemem.cli.options import add_output, add_root
from nodemem.cli.text import binary_size, dump, safe, show, table
from nodemem.kernel import oom, oomexposure
from nodemem.kernel.host import Unreadable
from nodemem.node import findings
from nodemem.node.advice import count
from nodemem.node.exposure import IMMINENT_AT_PERCENT, ContainerOutlook, Exposure, Severity
from nodemem.node.findings import Findings
from nodemem.node.oomdomains import ProcessFigures
from nodemem.node.report import merged
from nodemem.node.snapshot import Collector
from nodemem.node.status import to_plain

_EXPLAINED = 5
"""Exposures that are explained in words below the table, without --all."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "exposed",
        help="containers in which the wrong process would be killed, and host services that would die first",
        description="Containers and pods in which an OOM would not kill the process whose death frees most, with the "
        "reason and what to do; host services that an OOM of the node would take before larger business processes; "
        "and business processes that it may not take at all.",
        epilog="Exit codes: 0 done, whatever was found; 1 could not be done.",
    )
    parser.add_argument("--all", action="store_true", help="every container's outlook, and every service at risk")
    parser.add_argument(
        "--imminent-at",
        type=_percentage,
        default=IMMINENT_AT_PERCENT,
        metavar="PERCENT",
        help="of the limit in use, page cache not counted: from here on an exposure is imminent (default: 90)",
    )
    parser.add_argument(
        "--service",
        action="append",
        default=[],
        metavar="NAME",
        help="also look after this host service, by the name of its process or unit; may be repeated",
    )
    add_output(parser, "table", "json", "yaml")
    add_root(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """0 done."""
    snapshot = Collector(args.host).collect(deep="never", inspect=0, writers_of=0)
    found = findings.find(snapshot, imminent_at_percent=args.imminent_at, more_services=args.service)
    missing = merged(snapshot.unreadable)
    if args.output in ("json", "yaml"):
        dump(as_data(found, snapshot.page_size, args.imminent_at, missing), args.output)
    else:
        show(*_parts(found, missing, everything=args.all))
    return 0


def _percentage(text: str) -> float:
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = 0.0
    if not 0 < value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a percentage above 0 and up to 100, such as 90")
    return value


# --- data


def as_data(found: Findings, page_size: int, imminent_at: float, missing: Sequence[Unreadable]) -> dict[str, Any]:
    """Plain data for JSON and YAML. Sizes in bytes; null is unknown."""
    return {
        "kernel": {
            "release": found.probe.release,
            "oomGeneration": str(found.probe.generation),
            "evidence": found.probe.evidence,
            "decidedBy": list(found.probe.decided_by),
        },
        "imminentAtPercent": imminent_at,
        "exposures": [_exposure_data(each, page_size) for each in found.exposures],
        "services": [to_plain(each) for each in found.services],
        "unkillable": [to_plain(each) for each in found.unkillable],
        "drift": [
            {
                **to_plain(each),
                "observed": [{"oomScoreAdj": adj, "pids": list(pids)} for adj, pids in each.observed.items()],
            }
            for each in found.drifts
        ],
        "containers": [{**to_plain(each), "usedPercent": each.used_percent} for each in found.outlooks],
        "unreadable": [to_plain(each) for each in missing],
    }


def _exposure_data(exposure: Exposure, page_size: int) -> dict[str, Any]:
    """In the words of the OomExposure resource."""
    outlook = exposure.outlook
    return {
        "scope": outlook.scope,
        "containerID": outlook.container_id,
        "podUID": outlook.pod_uid,
        "qos": outlook.qos,
        "cgroup": outlook.path,
        "severity": exposure.severity,
        "reasons": list(outlook.reasons),
        "limitBytes": outlook.limit_bytes,
        "usageBytes": outlook.usage_bytes,
        "committedBytes": outlook.committed_bytes,
        "usedPercent": outlook.used_percent,
        "predictedVictim": to_plain(outlook.predicted_victim),
        "possibleVictims": list(outlook.possible_victims),
        "largest": to_plain(outlook.largest),
        "evidence": [_evidence_data(each, page_size) for each in exposure.evidence],
        "mitigation": to_plain(exposure.mitigation),
        "message": exposure.message,
    }


def _evidence_data(reason: oomexposure.Reason, page_size: int) -> dict[str, Any]:
    match reason:
        case oomexposure.ClampedBadness():
            return {
                "reason": reason.kind,
                "scoringTheSame": reason.at_floor,
                "predictedPointsUnclamped": reason.predicted_points_unclamped,
                "largestPointsUnclamped": reason.largest_points_unclamped,
                "totalPages": reason.totalpages,
            }
        case oomexposure.SkewedAdj():
            return {
                "reason": reason.kind,
                "predictedPoints": reason.predicted_points,
                "predictedOomScoreAdj": reason.predicted.oom_score_adj,
                "largestPoints": reason.largest_points,
                "largestOomScoreAdj": reason.largest.oom_score_adj,
                "totalPages": reason.totalpages,
            }
        case oomexposure.Unkillable():
            return {
                "reason": reason.kind,
                "pid": reason.task.pid,
                "comm": reason.task.name,
                "holdsBytes": reason.task.frees_pages * page_size,
                "holdsPercent": 100 * reason.share,
                "killedInstead": list(reason.others),
                "totalPages": reason.totalpages,
            }
        case oomexposure.TmpfsHeld():
            return {
                "reason": reason.kind,
                "heldBytes": reason.held_bytes,
                "limitBytes": reason.limit_bytes,
                "upperBound": reason.upper_bound,
            }


# --- tables


_COLOURS = {Severity.IMMINENT: "bold red", Severity.HIGH: "red", Severity.LOW: "yellow"}


def _parts(found: Findings, missing: Sequence[Unreadable], *, everything: bool) -> Iterator[RenderableType]:
    yield Text(_headline(found), style="bold")
    probe = found.probe
    yield Text(f"OOM scores of this kernel: {probe.generation} ({probe.evidence})", style="dim")
    for sentence in probe.decided_by:
        yield Text(sentence, style="dim")
    if found.exposures:
        yield ""
        yield _exposures(found.exposures)
        explained = found.exposures if everything else found.exposures[:_EXPLAINED]
        for exposure in explained:
            yield ""
            yield Text(safe(exposure.message))
        yield from _more(len(found.exposures) - len(explained))
    for part in _services(found, everything):
        yield ""
        yield part
    if found.drifts:
        yield ""
        drifts = table("Not the oom_score_adj that the kubelet sets", ("CONTAINER", "left"), ("WHAT", "text"))
        shown = found.drifts if everything else found.drifts[:_EXPLAINED]
        for drift in shown:
            drifts.add_row(drift.container_id[:12], safe(drift.message))
        yield drifts
        yield from _more(len(found.drifts) - len(shown))
    if everything and found.outlooks:
        yield ""
        yield _outlooks(found.outlooks)
    for entry in missing:
        times = f" ({entry.count} times)" if entry.count > 1 else ""
        yield Text(f"Could not read {safe(entry.what)}: {safe(entry.why)}{times}", style="yellow")


def _more(count: int) -> Iterator[RenderableType]:
    if count:
        yield Text(f"and {count} more; --all explains them all", style="dim")


def _headline(found: Findings) -> str:
    checked = sum(each.scope == "container" for each in found.outlooks)
    unknown = sum(each.exposed is None and each.hit_first for each in found.outlooks)
    first = sum(each.dies_first for each in found.services)
    imminent = sum(each.severity is Severity.IMMINENT for each in found.exposures)
    parts = [f"{len(found.exposures) or 'none'} exposed" + (f", {imminent} imminent" if imminent else "")]
    if unknown:
        parts.append(f"{unknown} can't be told (--all says why)")
    parts.append(f"{count(first, 'host service', 'host services')} would die before business processes")
    if found.unkillable:
        parts.append(f"{count(len(found.unkillable), 'business process', 'business processes')} can't be killed")
    return f"{count(checked, 'container', 'containers')} checked: {'; '.join(parts)}."


def _name(outlook: ContainerOutlook) -> str:
    """Short, as other tools show ids; the explanations and JSON have all of it."""
    if outlook.container_id:
        return safe(f"container {outlook.container_id[:12]}")
    return safe(f"pod {(outlook.pod_uid or '')[:8]}")


def _who(process: ProcessFigures | None) -> str:
    return "unknown" if process is None else f"{safe(process.comm)} {process.pid} ({binary_size(process.frees_bytes)})"


def _of_limit(outlook: ContainerOutlook) -> str:
    if outlook.limit_bytes is None or outlook.used_percent is None:
        return binary_size(outlook.usage_bytes)
    return f"{outlook.used_percent:.0f} % of {binary_size(outlook.limit_bytes)}"


def _exposures(exposures: Iterable[Exposure]) -> Table:
    rows = table(
        "Exposed: the wrong process would be killed (sizes: what its death frees)",
        ("SEVERITY", "left"), ("WHERE", "left"), ("QOS", "left"), ("IN USE", "right"), ("REASON", "left"),
        ("KILLED", "left"), ("LARGEST", "left"), ("SET ADJ", "right"),
    )  # fmt: skip
    for column in rows.columns[1:]:
        column.no_wrap = False
    for each in exposures:
        outlook = each.outlook
        several = len(outlook.possible_victims) > 1 and outlook.predicted_victim is None
        rows.add_row(
            Text(each.severity, style=_COLOURS[each.severity]),
            _name(outlook),
            outlook.qos or "",
            _of_limit(outlook),
            ", ".join(outlook.reasons),
            f"one of {len(outlook.possible_victims)}" if several else _victim(outlook),
            _who(outlook.largest),
            "" if each.mitigation.oom_score_adj is None else str(each.mitigation.oom_score_adj),
        )
    return rows


def _victim(outlook: ContainerOutlook) -> str:
    if outlook.outcome is not None and outlook.outcome is not oom.Outcome.KILLS:
        return outlook.outcome.lower()
    return _who(outlook.predicted_victim)


def _services(found: Findings, everything: bool) -> Iterable[Table]:
    shown = [each for each in found.services if each.dies_first or everything]
    if shown:
        rows = table(
            "Host services that an OOM of the node would take",
            ("SERVICE", "left"), ("PID", "right"), ("ADJ", "right"), ("DIES BEFORE", "left"), ("WHAT TO DO", "left"),
        )  # fmt: skip
        rows.columns[-1].no_wrap = False
        for each in shown:
            outlived = ", ".join(_who(process) for process in each.outlived_by[:1])
            more = f" and {each.outlived_count - 1} more" if each.outlived_count > 1 else ""
            rows.add_row(
                safe(each.service),
                str(each.process.pid),
                str(each.process.oom_score_adj),
                f"{outlived}{more}" if outlived else "(unprotected)",
                safe(f"{each.why}: {each.advice}"),
            )
        yield rows
    if found.unkillable:
        rows = table(
            "Business processes that are never killed (oom_score_adj -1000)",
            ("COMMAND", "left"), ("PID", "right"), ("HOLDS", "right"), ("OWNER", "left"), ("WHAT TO DO", "left"),
        )  # fmt: skip
        rows.columns[-1].no_wrap = False
        for process in found.unkillable:
            container = process.process.container_id
            rows.add_row(
                safe(process.process.comm),
                str(process.process.pid),
                binary_size(process.process.frees_bytes),
                f"container {container[:12]}" if container else safe(process.unit or ""),
                safe(process.advice),
            )
        yield rows


def _outlooks(outlooks: Iterable[ContainerOutlook]) -> Table:
    rows = table(
        "Outlook of every container, and of every pod with a limit",
        ("WHERE", "left"), ("QOS", "left"), ("IN USE", "right"), ("HIT FIRST", "left"), ("PROCESSES", "right"),
        ("KILLED", "left"), ("LARGEST", "left"), ("RIGHT", "left"), ("NOTE", "left"),
    )  # fmt: skip
    for column in rows.columns:
        column.no_wrap = False
    for each in sorted(outlooks, key=lambda each: (each.pod_uid or "", each.scope != "pod", each.path)):
        reasons = ", ".join(each.reasons)
        rows.add_row(
            _name(each) + (" (pause)" if each.sandbox else ""),
            each.qos or "",
            _of_limit(each),
            "yes" if each.hit_first else "",
            str(each.processes),
            "" if each.outcome is None else _victim(each),
            "" if each.outcome is None else _who(each.largest),
            "" if each.right is None else "yes" if each.right else "no",
            safe("; ".join(part for part in (reasons, each.note) if part)),
        )
    return rows
