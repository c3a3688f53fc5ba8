"""A report on the terminal: from what ``nodemem report`` just measured, or from a MemoryReport of the cluster.

Everything in it may come from a node or a container that nobody trusts: each string is ``safe`` before it is shown.
"""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nodemem.cli.findingsview import findings
from nodemem.cli.text import binary_size, duration, growth, percent, safe, table
from nodemem.kernel import meminfo
from nodemem.kernel.host import Unreadable
from nodemem.node.status import ProcessStatus, ReportStatus, TmpfsStatus

_BAR_WIDTH = 24
_ROWS = {"table": (5, 8), "wide": (20, 20)}
"""Rows of the tables of tmpfs and of processes."""

SHMEM_SOURCES = {
    "tmpfs_bytes": "files in tmpfs",
    "sysv_bytes": "System V segments",
    "memfd_bytes": "memfd",
    "shared_anonymous_bytes": "shared anonymous",
    "deleted_open_bytes": "deleted, still held",
    "kernel_internal_bytes": "kernel objects",
    "unattributed_bytes": "unattributed",
}
"""Fields of ShmemStatus that are its parts, and what they are called."""


def render(
    status: ReportStatus,
    *,
    missing: Sequence[Unreadable] = (),
    unreadable_rss_bytes: int = 0,
    wide: bool = False,
    before: ReportStatus | None = None,
) -> RenderableType:
    """The report as tables. ``missing`` (what could not be read, all of it) and ``unreadable_rss_bytes`` are known
    where it was measured; the custom resource has a sentence of it among its conditions."""
    tmpfs_rows, process_rows = _ROWS["wide" if wide else "table"]
    parts: list[RenderableType] = [_headline(status), Text(), Text(safe(status.verdict), style="bold"), Text()]
    parts += [
        _partition(status, before),
        Text(),
        *_shmem(status, unreadable_rss_bytes, before),
        Text(),
        *render_tmpfs(status, tmpfs_rows, before),
    ]
    if status.processes:
        parts += [Text(), _processes(status.processes, process_rows, wide)]
    parts += list(findings(status, everything=wide))
    parts += list(_missing(status, missing))
    return Group(*parts)


def _headline(status: ReportStatus) -> Text:
    kernel = status.kernel
    up = "" if kernel.uptime_seconds is None else f", up {duration(kernel.uptime_seconds)}"
    if kernel.swap_bytes is None:
        swap = "swap unknown"
    elif kernel.swap_bytes == 0:
        swap = "no swap"
    else:
        swap = f"{binary_size(kernel.swap_used_bytes)} of {binary_size(kernel.swap_bytes)} swap used"
    text = (
        f"{status.observed_at}  Linux {kernel.release or 'unknown'}{up}, {swap}, "
        f"cgroup {kernel.cgroup or 'unknown'}, OOM scores {kernel.oom_generation}"
    )
    return Text(safe(text), style="dim")


def _bar(share: float) -> Text:
    """Eighths of a cell, so that small parts are seen; a negative part has none."""
    eighths = round(max(0.0, min(1.0, share)) * _BAR_WIDTH * 8)
    full, rest = divmod(eighths, 8)
    return Text("█" * full + ("" if not rest else " ▏▎▍▌▋▊▉"[rest]), style="cyan")


def _change(now: int | None, then: int | None) -> str:
    if now is None or then is None:
        return ""
    difference = now - then
    return "" if abs(difference) < 1024 else f"{'+' if difference > 0 else ''}{binary_size(difference)}"


def _partition(status: ReportStatus, before: ReportStatus | None) -> Table:
    memory = status.memory
    rows = table(
        f"Where {binary_size(memory.total_bytes)} went",
        ("", "left"), ("SIZE", "right"), ("SHARE", "right"), ("", "left"), ("CHANGE" if before else "", "right"),
        ("", "text"),
    )  # fmt: skip
    for name, words in meminfo.PARTS.items():
        field = _PART_FIELDS[name]
        size: int | None = getattr(memory, field)
        change = _change(size, getattr(before.memory, field)) if before else ""
        share = (size or 0) / memory.total_bytes
        rows.add_row(
            name,
            binary_size(size),
            percent(size or 0, memory.total_bytes) if size is not None else "",
            _bar(share),
            change,
            Text(words, style="dim"),
        )
    rows.add_row(
        Text("hidden", style="bold"),
        Text(binary_size(memory.hidden_bytes), style="bold"),
        percent(memory.hidden_bytes or 0, memory.total_bytes),
        "",
        _change(memory.hidden_bytes, before.memory.hidden_bytes) if before else "",
        Text("of these: in use, and in no process's RSS", style="dim"),
    )
    return rows


_PART_FIELDS = {
    "free": "free_bytes",
    "anonymous": "anonymous_bytes",
    "pageCache": "page_cache_bytes",
    "buffers": "buffers_bytes",
    "shmem": "shmem_bytes",
    "slabReclaimable": "slab_reclaimable_bytes",
    "slabUnreclaimable": "slab_unreclaimable_bytes",
    "kernelStack": "kernel_stack_bytes",
    "pageTables": "page_tables_bytes",
    "vmalloc": "vmalloc_bytes",
    "perCpu": "per_cpu_bytes",
    "hugePages": "huge_pages_bytes",
    "other": "other_bytes",
    "unaccounted": "unaccounted_bytes",
}


def _shmem(status: ReportStatus, unreadable_rss_bytes: int, before: ReportStatus | None) -> Iterator[RenderableType]:
    shmem = status.shmem
    title = f"Shmem by source: {binary_size(shmem.total_bytes)}"
    if shmem.growth_bytes_per_hour is not None:
        title += f", {growth(shmem.growth_bytes_per_hour)}"
    rows = table(title, ("", "left"), ("SIZE", "right"), ("", "left"), ("CHANGE" if before else "", "right"))
    for field, words in SHMEM_SOURCES.items():
        size: int | None = getattr(shmem, field)
        if size == 0 and field not in ("tmpfs_bytes", "unattributed_bytes"):
            continue
        share = (size or 0) / shmem.total_bytes if shmem.total_bytes else 0.0
        change = _change(size, getattr(before.shmem, field)) if before else ""
        rows.add_row(words, binary_size(size), _bar(share), change)
    if shmem.swapped_bytes:
        rows.add_row("of these swapped out", binary_size(shmem.swapped_bytes), "", "")
    yield rows
    if unreadable_rss_bytes and (shmem.unattributed_bytes or 0) > 0:
        unread = binary_size(unreadable_rss_bytes)
        yield Text(f"{unread} of the unattributed may be in processes whose mappings could not be read", style="dim")


def render_tmpfs(
    status: ReportStatus, limit: int, before: ReportStatus | None = None, *, empty_too: bool = False
) -> Iterator[RenderableType]:
    earlier = {each.device: each for each in before.tmpfs} if before else {}
    rows = table(
        "Largest tmpfs",
        ("MOUNT POINT", "text"), ("USED", "right"), ("SIZE", "right"), ("USE", "right"), ("GROWTH", "right"),
        ("CHANGE" if before else "", "right"), ("OWNER", "text"), ("WRITTEN BY", "text"),
    )  # fmt: skip
    shown = [each for each in status.tmpfs if empty_too or each.used_bytes or each.used_bytes is None][:limit]
    for each in shown:
        full = "" if not each.size_bytes or each.used_bytes is None else percent(each.used_bytes, each.size_bytes)
        then = earlier.get(each.device)
        rows.add_row(
            safe(each.mount_point or f"device {each.device} (mounted nowhere, but held)"),
            binary_size(each.used_bytes),
            "no limit" if each.unlimited else binary_size(each.size_bytes),
            full,
            growth(each.growth_bytes_per_hour) if each.growth_bytes_per_hour is not None else "",
            _change(each.used_bytes, then.used_bytes) if then else "",
            safe(tmpfs_owner(each)),
            safe(", ".join(each.written_by)),
        )
    yield rows
    for each in shown:
        if each.largest:
            yield Padding(_files(each), (1, 0, 0, 2))
    others = [each for each in status.tmpfs if each not in shown]
    rest = len(others) + status.omitted.tmpfs
    if rest:
        used = sum(each.used_bytes or 0 for each in others) + status.omitted.tmpfs_used_bytes
        yield Text(f"and {rest} more tmpfs, together {binary_size(used)}", style="dim")


def _files(tmpfs: TmpfsStatus) -> Table:
    where = safe(tmpfs.mount_point or f"device {tmpfs.device}")
    title = f"Largest in {where}"
    if tmpfs.journal_bytes:
        title += f" (systemd-journald's journal: {binary_size(tmpfs.journal_bytes)})"
    if tmpfs.inspection_stopped:
        title += f" (search stopped: too {'many entries' if tmpfs.inspection_stopped == 'entries' else 'slow'})"
    rows = table(title, ("", "right"), ("", "text"), ("", "left"))
    rows.show_header = False
    for entry in tmpfs.largest:
        written = "" if entry.modified_at is None else f"last written {entry.modified_at}"
        rows.add_row(binary_size(entry.bytes), safe(entry.path), Text(written, style="dim"))
    return rows


def tmpfs_owner(tmpfs: TmpfsStatus) -> str:
    owner = tmpfs.owner
    if owner.pod_name:
        who = f"{owner.pod_namespace}/{owner.pod_name}"
    elif owner.pod_uid:
        who = f"pod {owner.pod_uid}"
    elif owner.container_id:
        who = f"container {owner.container_id[:12]}"
    else:
        who = ""
    return " ".join(part for part in (owner.kind, owner.volume, who) if part)


def _processes(processes: tuple[ProcessStatus, ...], limit: int, wide: bool) -> Table:
    columns = [("PID", "right"), ("COMMAND", "left"), ("RSS", "right"), ("PRIVATE", "right"), ("SHMEM", "right")]
    columns += [("SWAP", "right"), ("OOM ADJ", "right"), ("OOM SCORE", "right"), ("OWNER", "text")]
    if wide:
        columns[5:5] = [("FILE", "right"), ("PAGE TABLES", "right")]
    rows = table("Largest processes", *columns)
    for each in processes[:limit]:
        cells = [str(each.pid), safe(each.comm), binary_size(each.rss_bytes), binary_size(each.rss_anon_bytes)]
        cells.append(binary_size(each.rss_shmem_bytes))
        if wide:
            cells += [binary_size(each.rss_file_bytes), binary_size(each.page_tables_bytes)]
        cells += [binary_size(each.swap_bytes), *(_number(n) for n in (each.oom_score_adj, each.oom_score))]
        rows.add_row(*cells, safe(each.owner or ""))
    return rows


def _number(value: int | None) -> str:
    return "unknown" if value is None else str(value)


def _missing(status: ReportStatus, missing: Sequence[Unreadable]) -> Iterator[RenderableType]:
    if missing:
        yield Text()
        yield Text("Could not be read", style="bold yellow")
        for each in missing:
            times = f" ({each.count} times)" if each.count > 1 else ""
            yield Text(f"  {safe(each.what)}: {safe(each.why)}{times}")
    else:
        for condition in status.conditions:
            if condition.type == "Complete" and condition.status != "True":
                yield Text()
                yield Text(safe(f"Not complete: {condition.message}"), style="yellow")
