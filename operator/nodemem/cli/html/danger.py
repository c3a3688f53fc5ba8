"""The sections on who dies first, on findings and how to mend them, and on what could not be read."""

from collections.abc import Iterator, Sequence

from nodemem.cli.html.data import Extras
from nodemem.cli.html.parts import Cell, code, table, when
from nodemem.cli.html.tags import Element, tag
from nodemem.cli.oom_rank import RankedProcess
from nodemem.cli.text import binary_size, percent
from nodemem.node.exposure import Severity
from nodemem.node.remedies import Remedy
from nodemem.node.status import ExposureStatus, ProcessRef, ReportStatus

RANKED_ROWS = 20
PROCESS_ROWS = 20
CONTAINER_ROWS = 20
EXPOSED_ROWS = 32


def who_dies(status: ReportStatus, extras: Extras) -> Iterator[Element]:
    if extras.ranking is None:
        yield tag(
            "p",
            "The order in which the kernel would take this node's processes is not part of a cluster's report: ",
            tag("code", "nodemem oom rank"),
            " on the node shows it.",
        )
    elif extras.ranking:
        yield from _ranking(status, extras.ranking, extras)
    if status.exposures:
        yield _exposures(status.exposures, status.summary.exposed if status.summary else None)
    elif status.exposures is not None:
        yield tag("p", "In no container would the kernel kill the wrong process, as far as could be told.")
    if status.containers:
        yield _containers(status)
    if status.oom_kills:
        yield _kills(status)


def _ranking(status: ReportStatus, ranking: Sequence[RankedProcess], extras: Extras) -> Iterator[Element]:
    clamped = status.kernel.oom_generation.startswith("Clamped")
    killable = [each for each in ranking if each.points is not None]
    never = [each for each in ranking if each.points is None]
    if killable:
        first = killable[0]
        yield tag(
            "p",
            "When this node runs out of memory, the kernel takes ",
            tag("strong", f"{first.comm} (pid {first.pid})"),
            f" first: {_why(first, extras.page_size, clamped)}. Its death gives back {binary_size(first.frees_bytes)}.",
        )
    if extras.evidence:
        yield tag("p", f"OOM scores of this kernel: {status.kernel.oom_generation} ({extras.evidence}).", class_="note")
    rows: list[list[Cell]] = [
        [
            str(place),
            each.comm,
            str(each.pid),
            _number(each.oom_score),
            _number(each.oom_score_adj),
            binary_size(each.rss_bytes),
            binary_size(each.frees_bytes),
            _why(each, extras.page_size, clamped),
            each.owner or "",
        ]
        for place, each in enumerate(killable[:RANKED_ROWS], 1)
    ]
    large = sorted(never, key=lambda each: -each.rss_bytes)[:5]
    rows += [
        ["never", each.comm, str(each.pid), _number(each.oom_score), _number(each.oom_score_adj),
         binary_size(each.rss_bytes), binary_size(each.frees_bytes), each.unkillable or "", each.owner or ""]
        for each in large
    ]  # fmt: skip
    columns = [
        ("Place", "number"), ("Command", "name"), ("PID", "number"), ("oom_score", "number"),
        ("oom_score_adj", "number"), ("RSS", "number"), ("Frees", "number"), ("Why", "text"), ("Owner", "name"),
    ]  # fmt: skip
    left = max(0, len(killable) - RANKED_ROWS), len(never) - len(large)
    parts = []
    if left[0]:
        parts.append(f"{left[0]} more that would be taken later")
    if left[1]:
        parts.append(f"{left[1]} more that are never taken")
    note = f"Not shown: {', '.join(parts)}; nodemem oom rank --top 0 has all." if parts else ""
    yield table("In this order an out-of-memory of the node takes its processes", columns, rows, note)


def _why(each: RankedProcess, page_size: int, clamped: bool) -> str:
    """What decides, from the kernel's own score: how much it is beside the memory that the process holds. ``clamped``:
    the kernel raises every score below 1 to 1."""
    if each.points is None:
        return each.unkillable or "unknown"
    if not each.oom_score_adj:
        return "its size alone"
    if clamped and each.points == 1 and each.oom_score_adj < 0:
        return (
            f"oom_score_adj {each.oom_score_adj}: the score is below 1, which this kernel raises to 1 whatever the size"
        )
    held = each.rss_bytes + each.swap_bytes + each.page_tables_bytes
    beside = each.points * page_size - held
    if beside > 0 and each.oom_score_adj > 0:
        return f"its size, and oom_score_adj {each.oom_score_adj}, which counts as {binary_size(beside)} more"
    if beside < 0 and each.oom_score_adj < 0:
        return f"its size, less {binary_size(-beside)} for oom_score_adj {each.oom_score_adj}"
    return f"its size, and oom_score_adj {each.oom_score_adj}"


def _number(value: int | None) -> str:
    return "unknown" if value is None else str(value)


def _badge(severity: str) -> Element:
    return tag("span", severity, class_=f"badge {Severity(severity).lower()}")


def _exposures(exposures: Sequence[ExposureStatus], count: int | None) -> Element:
    rows: list[list[Cell]] = []
    for each in exposures[:EXPOSED_ROWS]:
        used = ""
        if each.usage_bytes is not None and each.limit_bytes:
            used = f"{percent(each.usage_bytes, each.limit_bytes)} of {binary_size(each.limit_bytes)}"
        rows.append(
            [
                _place(each),
                [_badge(each.severity)],
                ", ".join(each.reasons),
                used,
                _process(each.predicted_victim),
                _process(each.largest),
                "" if each.mitigation is None else str(each.mitigation.oom_score_adj),
            ]
        )
    columns = [
        ("Where", "name"), ("Severity", "text"), ("Reason", "text"), ("Charged", "number"),
        ("Would be killed", "name"), ("Largest", "name"), ("Set adj", "number"),
    ]  # fmt: skip
    more = (count or 0) - len(rows)
    note = "Sizes of processes are their RSS." + (f" {more} more are not shown." if more > 0 else "")
    return table("Exposed: the kernel would kill the wrong process", columns, rows, note)


def _place(each: ExposureStatus) -> str:
    if each.pod_name:
        return f"{each.pod_namespace}/{each.pod_name}" + (f" {each.name}" if each.name else "")
    return f"container {each.container_id[:12]}" if each.container_id else f"pod {each.pod_uid}"


def _process(each: ProcessRef | None) -> str:
    return "unknown" if each is None else f"{each.comm} {each.pid} ({binary_size(each.rss_bytes)})"


def _containers(status: ReportStatus) -> Element:
    rows: list[list[Cell]] = []
    for each in status.containers[:CONTAINER_ROWS]:
        adj = each.oom_score_adj
        span = "unknown" if adj is None else str(adj.min) if adj.min == adj.max else f"{adj.min} to {adj.max}"
        pod = (
            f"{each.pod_namespace}/{each.pod_name}" if each.pod_name else f"pod {each.pod_uid}" if each.pod_uid else ""
        )
        name = f"{each.name or 'container'} {each.id[:12]}"
        limit = "none" if each.limit_bytes is None else binary_size(each.limit_bytes)
        figures = [binary_size(each.usage_bytes), limit, binary_size(each.shmem_bytes)]
        rows.append([name, pod, each.qos or "", *figures, span, str(each.processes)])
    columns = [
        ("Container", "name"), ("Pod", "name"), ("QoS", "text"), ("Charged", "number"), ("Limit", "number"),
        ("Shmem", "number"), ("oom_score_adj", "number"), ("Processes", "number"),
    ]  # fmt: skip
    rest = len(status.containers) - len(rows) + status.omitted.containers
    return table("Containers, most Shmem first", columns, rows, f"And {rest} more." if rest else "")


def _kills(status: ReportStatus) -> Element:
    rows: list[list[Cell]] = [
        [when(each.killed_at), _process(each.victim), _process(each.largest), each.verdict, each.message]
        for each in status.oom_kills or ()
    ]
    columns = [
        ("When", "text"), ("Killed", "name"), ("Largest", "name"), ("Right?", "text"), ("What happened", "text"),
    ]  # fmt: skip
    return table("Kills of the OOM killer, newest first", columns, rows)


def processes(status: ReportStatus) -> Element | None:
    if not status.processes:
        return None
    rows: list[list[Cell]] = [
        [
            each.comm,
            str(each.pid),
            binary_size(each.rss_bytes),
            binary_size(each.rss_anon_bytes),
            binary_size(each.rss_shmem_bytes),
            binary_size(each.swap_bytes),
            each.owner or "",
        ]
        for each in status.processes[:PROCESS_ROWS]
    ]
    columns = [
        ("Command", "name"), ("PID", "number"), ("RSS", "number"), ("Private", "number"), ("Shmem", "number"),
        ("Swap", "number"), ("Owner", "name"),
    ]  # fmt: skip
    return table("Largest processes", columns, rows)


def findings(found: Sequence[Remedy]) -> Iterator[Element]:
    if not found:
        yield tag("p", "Nothing was found that needs mending.")
    for number, each in enumerate(found, 1):
        article = tag(
            "article",
            tag("h3", _badge(each.severity), " ", each.title),
            tag("p", each.why),
            class_=f"finding {each.severity.lower()}",
            id=f"finding-{number}",
        )
        if each.steps:
            steps = tag("ol")
            for step in each.steps:
                steps.append(tag("li", tag("p", step.text), None if step.code is None else code(step.code)))
            article.append(tag("h4", "How to mend it"))
            article.append(steps)
        yield article


def missing(status: ReportStatus, extras: Extras) -> Iterator[Element]:
    if extras.unreadable:
        items = []
        for each in extras.unreadable[:100]:
            times = f" ({each.count} times)" if each.count > 1 else ""
            items.append(tag("li", tag("code", each.what), f": {each.why}{times}"))
        if len(extras.unreadable) > len(items):
            items.append(tag("li", f"and {len(extras.unreadable) - len(items)} more"))
        yield tag("ul", *items)
    wrong = [each for each in status.conditions if each.status != "True"]
    if extras.unreadable:
        wrong = [each for each in wrong if each.type != "Complete"]  # the list above, cut
    for condition in wrong:
        yield tag("p", f"{condition.type} is {condition.status}: {condition.message}")
    if not extras.unreadable and not wrong:
        yield tag("p", "Everything could be read.")
