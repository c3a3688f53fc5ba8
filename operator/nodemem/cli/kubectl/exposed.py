"""``kubectl nodemem exposed``: in which pods the kernel would kill the wrong process, and what to do about it."""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from nodemem.api.convert import read
from nodemem.api.resources import MEMORY_REPORT, OOM_EXPOSURE, OOM_POLICY
from nodemem.api.types import OomExposureStatus
from nodemem.cli.findingsview import SEVERITY_STYLES, of_limit, process, set_adj
from nodemem.cli.kubectl.cluster import Cluster, Forbidden, Object, Trouble
from nodemem.cli.kubectl.options import add_cluster, cluster_of
from nodemem.cli.kubectl.reports import age_seconds, why_stale
from nodemem.cli.options import add_output
from nodemem.cli.text import ONE_LINE, dump, duration, fitted, safe, show
from nodemem.policy.words import count, some

EXPLAINED = 5
"""Exposures in words below the table, without -o wide."""

_ORDER = tuple(SEVERITY_STYLES)


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "exposed",
        help="pods in which the kernel would kill the wrong process: who would die, who holds most, what to do",
        description="Pods in which an OOM would not kill the process whose death frees most, from the OomExposures "
        "that the controller keeps. It takes rights in the namespace alone.",
    )
    parser.add_argument("pods", nargs="*", metavar="POD", help="these pods only")
    add_output(parser, "table", "wide", "json", "yaml")
    add_cluster(parser, namespace=True)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """0 done, whatever was found."""
    cluster = cluster_of(args)
    namespace = None if args.all_namespaces else cluster.namespace
    found = [
        each
        for each in cluster.items(OOM_EXPOSURE.path(namespace=namespace))
        if "status" in each and (not args.pods or each["metadata"]["name"] in args.pods)
    ]
    found.sort(key=_key)
    if args.output in ("json", "yaml"):
        dump({"apiVersion": "v1", "kind": "List", "items": found}, args.output)
        return 0
    if not found:
        show(Text(safe(nothing(cluster, namespace, args.pods))))
        return 0
    show(*render(found, wide=args.output == "wide"), pipe_width=ONE_LINE)
    return 0


def _key(exposure: Object) -> tuple[int, str, str]:
    severity = exposure["status"].get("severity")
    rank = _ORDER.index(severity) if severity in _ORDER else -1
    return rank, exposure["metadata"]["namespace"], exposure["metadata"]["name"]


def render(exposures: Sequence[Object], *, wide: bool) -> Iterator[RenderableType]:
    imminent = sum(each["status"].get("severity") == "Imminent" for each in exposures)
    words = f"{count(len(exposures), 'pod')} exposed" + (f", {imminent:,} imminent" if imminent else "")
    yield Text(f"{words}: the kernel would kill the wrong process.", style="bold")
    yield ""
    rows, explained = [], []
    for each in exposures:
        status = _status(each)
        rows += [_row(each, status, at) for at in range(len(status.containers))]
        explained.append(_explanation(each, status))
    columns = [
        ("NAMESPACE", "text", 3), ("POD", "text", 0), ("SEVERITY", "left", 1), ("CONTAINER", "text", 3),
        ("IN USE", "right", 2), ("REASON", "left", 1), ("KILLED", "left", 1), ("LARGEST", "left", 1),
        ("SET ADJ", "right", 2), ("NODE", "text", 4),
    ]  # fmt: skip
    yield fitted("", [(name, kind, 0 if wide else rank) for name, kind, rank in columns], rows)
    shown = explained if wide else explained[:EXPLAINED]
    for text in shown:
        yield ""
        yield text
    if len(shown) < len(explained):
        yield ""
        yield Text(f"and {len(explained) - len(shown)} more: -o wide explains them all", style="dim")


def _status(exposure: Object) -> OomExposureStatus:
    metadata = exposure["metadata"]
    try:
        return read(OomExposureStatus, exposure["status"])
    except (ValueError, TypeError, AttributeError) as error:
        raise Trouble(f"exposure {metadata['namespace']}/{metadata['name']} can't be read: {error}") from error


def _row(exposure: Object, status: OomExposureStatus, at: int) -> list[str | Text]:
    metadata, each = exposure["metadata"], status.containers[at]
    return [
        safe(metadata["namespace"]),
        safe(metadata["name"]),
        Text(safe(each.severity), style=SEVERITY_STYLES.get(each.severity, "")),
        safe(each.name or "(pod)"),
        of_limit(each.usage_bytes, each.limit_bytes),
        safe(",".join(each.reasons)),
        process(each.predicted_victim),
        process(each.largest),
        set_adj(each),
        safe(status.node_name or ""),
    ]


def _explanation(exposure: Object, status: OomExposureStatus) -> Text:
    metadata = exposure["metadata"]
    text = Text()
    text.append(safe(f"{metadata['namespace']}/{metadata['name']}:"), style="bold")
    for condition in status.conditions:
        if condition.type == "Exposed" and condition.status != "True":
            text.append(safe(f" {condition.message}"), style="yellow")
    for each in status.containers:
        where = f" {each.name}:" if len(status.containers) > 1 and each.name else ""
        text.append(safe(f"{where} {each.message}"))
    return text


def nothing(cluster: Cluster, namespace: str | None, pods: Sequence[str] = ()) -> str:
    """That there is no exposure, and what that is worth: which nodes were heard, which pods nobody looks at."""
    where = "in any namespace" if namespace is None else f"in namespace {namespace}"
    what = f"None of {some(list(pods))} {where} is exposed." if pods else f"No pod {where} is exposed."
    try:
        reports = list(cluster.items(MEMORY_REPORT.path()))
    except Forbidden:
        return f"{what} How fresh that is can't be said without the right to list memoryreports."
    if not reports:
        return f"{what} But no node has reported yet, so nothing was checked."
    said = [what, f"Checked: the containers of {count(len(reports), 'node')}{_freshness(reports)}."]
    silent = [each["metadata"]["name"] for each in reports if why_stale(each) is not None]
    if silent:
        said.append(f"Not known, since the agent is silent: {some(silent)}.")
    unflagged = sum((each.get("status", {}).get("summary") or {}).get("exposed") or 0 for each in reports)
    if unflagged and namespace is None:
        said.append(
            f"The agents see {count(unflagged, 'container')} exposed that are not flagged: of pods that are not "
            "Guaranteed, without an OomPolicy that says mode: Flag, or in a moment (kubectl nodemem why NODE)."
        )
    said += _ignored(cluster)
    return " ".join(said)


def _freshness(reports: Sequence[Object]) -> str:
    fresh = [age for each in reports if why_stale(each) is None and (age := age_seconds(each)) is not None]
    return f", figures up to {duration(max(fresh))} old" if fresh else ""


def _ignored(cluster: Cluster) -> list[str]:
    try:
        policies: list[dict[str, Any]] = list(cluster.items(OOM_POLICY.path()))
    except Forbidden:
        return []
    names = [each["metadata"]["name"] for each in policies if each.get("spec", {}).get("mode") == "Ignore"]
    return [f"Left alone by OomPolicies with mode: Ignore: what {some(names)} selects."] if names else []
