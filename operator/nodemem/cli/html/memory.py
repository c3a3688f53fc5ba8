"""The sections on where memory is: headline, map and tables, tmpfs and their files, the kernel's own."""

from collections.abc import Iterator

from nodemem.cli.html import tree
from nodemem.cli.html.data import Extras
from nodemem.cli.html.mapview import treemap
from nodemem.cli.html.parts import Cell, Styles, bar, details, table, when
from nodemem.cli.html.tags import Content, Element, tag
from nodemem.cli.reportview import SHMEM_SOURCES, tmpfs_owner
from nodemem.cli.text import binary_size, duration, growth, percent
from nodemem.kernel import meminfo
from nodemem.kernel.kernelmem import KernelMemory
from nodemem.node.remedies import Remedy
from nodemem.node.report import file_time
from nodemem.node.status import ReportStatus, ShmemStatus, TmpfsStatus

TMPFS_ROWS = 20
OBJECT_ROWS = 20
NAMED_FINDINGS = 6


def header(status: ReportStatus, node_name: str | None, found: tuple[Remedy, ...]) -> Element:
    kernel = status.kernel
    facts: list[tuple[str, Cell]] = [
        ("Taken", [when(status.observed_at), tag("span", class_="local")]),
        ("Node", node_name or "unknown"),
        ("Kernel", f"Linux {kernel.release or 'unknown'}"),
        ("Up", duration(kernel.uptime_seconds)),
        ("Swap", _swap(status)),
        ("cgroup", kernel.cgroup or "unknown"),
        ("OOM scores", kernel.oom_generation),
        ("nodemem", status.agent_version),
    ]
    return tag(
        "header",
        tag("h1", f"Memory of {node_name or 'an unnamed node'}"),
        tag("p", status.verdict, class_="verdict"),
        _figures(status),
        _attention(found),
        tag("dl", *(tag("div", tag("dt", name), tag("dd", *_cell(value))) for name, value in facts), class_="facts"),
    )


def _cell(value: Cell) -> tuple[Content, ...]:
    return (value,) if isinstance(value, str | Element) or value is None else tuple(value)


def _swap(status: ReportStatus) -> str:
    size, used = status.kernel.swap_bytes, status.kernel.swap_used_bytes
    if size is None:
        return "unknown"
    return f"{binary_size(used)} of {binary_size(size)} used" if size else "none"


def _figures(status: ReportStatus) -> Element:
    memory, shmem = status.memory, status.shmem
    shown = [
        ("Total", binary_size(memory.total_bytes), ""),
        ("Available", binary_size(memory.available_bytes), _share(memory.available_bytes, memory.total_bytes)),
        ("Hidden", binary_size(memory.hidden_bytes), "in use, in no process's RSS"),
        ("Shmem", binary_size(memory.shmem_bytes), _share(memory.shmem_bytes, memory.total_bytes)),
        ("In tmpfs", binary_size(shmem.tmpfs_bytes), ""),
        ("Shmem growth", growth(shmem.growth_bytes_per_hour), ""),
    ]
    found = tag("dl", class_="figures")
    for name, value, note in shown:
        box = tag("div", tag("dt", name), tag("dd", value))
        if note:
            box.append(tag("dd", note, class_="note"))
        found.append(box)
    return found


def _share(size: int | None, total: int) -> str:
    return "" if size is None else f"{percent(size, total)} of memory"


def _attention(found: tuple[Remedy, ...]) -> Element:
    if not found:
        return tag("p", "Nothing was found that needs mending.", class_="calm")
    items = [
        tag("li", tag("span", each.severity, class_=f"badge {each.severity.lower()}"), " ",
            tag("a", each.title, href=f"#finding-{number}"))
        for number, each in enumerate(found[:NAMED_FINDINGS], 1)
    ]  # fmt: skip
    if len(found) > NAMED_FINDINGS:
        items.append(tag("li", tag("a", f"and {len(found) - NAMED_FINDINGS} more", href="#findings")))
    return tag("div", tag("h2", "What needs attention"), tag("ul", *items), class_="attention")


def where(status: ReportStatus, extras: Extras, styles: Styles) -> Iterator[Element]:
    root = tree.memory_tree(status, extras)
    yield tag(
        "p",
        "Areas are to scale. Point at a tile, or move to it with the arrow keys, for what it is; click it or press "
        "Enter to look inside, Escape to come back. The tables below say the same.",
        class_="hint",
    )
    yield from treemap(root, styles)
    yield _partition(status)
    yield _shmem(status)
    if objects := status.shmem.objects:
        yield details("Objects of shared memory", _objects(status, len(objects)))


def _partition(status: ReportStatus) -> Element:
    memory = status.memory
    rows: list[list[Cell]] = []
    for name, size in tree.parts(memory).items():
        kind = tree.part_kind(name)
        share = [] if size is None else [percent(size, memory.total_bytes)]
        line = None if size is None else bar(size / memory.total_bytes, kind)
        rows.append([tree.PART_NAMES[name], binary_size(size), share, line, meminfo.PARTS[name]])
    hidden = memory.hidden_bytes
    share = [] if hidden is None else [percent(hidden, memory.total_bytes)]
    rows.append(["of these hidden", binary_size(hidden), share, None, "in use, and in no process's RSS"])
    columns = [("Part", "text"), ("Size", "number"), ("Share", "number"), ("Share as a bar", "bars"), ("", "text")]
    columns[-1] = ("What it is", "text")
    note = ""
    if memory.unaccounted_bytes < 0:
        note = "Unaccounted is negative: the kernel's counters claim more than there is."
    return table(f"The parts of MemTotal, {binary_size(memory.total_bytes)}", columns, rows, note)


def _shmem(status: ReportStatus) -> Element:
    shmem = status.shmem
    rows: list[list[Cell]] = []
    for name, size in tree.sources(shmem).items():
        kind = "unknown" if name == "unattributed_bytes" else "shmem"
        line = None if size is None or not shmem.total_bytes else bar(size / shmem.total_bytes, kind)
        doc = str(ShmemStatus.__dataclass_fields__[name].metadata["doc"])
        rows.append([SHMEM_SOURCES[name], binary_size(size), line, doc])
    if shmem.swapped_bytes:
        doc = str(ShmemStatus.__dataclass_fields__["swapped_bytes"].metadata["doc"])
        rows.append(["of these swapped out", binary_size(shmem.swapped_bytes), None, doc])
    columns = [("Source", "text"), ("Size", "number"), ("Share as a bar", "bars"), ("What it is", "text")]
    note = "" if shmem.deep else "Descriptors and mappings of processes were not searched."
    return table(f"Shmem by source, {binary_size(shmem.total_bytes)}", columns, rows, note)


def _objects(status: ReportStatus, number: int) -> Element:
    objects = sorted(status.shmem.objects or (), key=lambda each: -(each.bytes or 0))[:OBJECT_ROWS]
    comms = {each.pid: each.comm for each in status.processes or ()}
    rows: list[list[Cell]] = [
        [each.name or f"inode {each.inode}", each.kind, binary_size(each.bytes), tree.held(each, comms)]
        for each in objects
    ]
    columns = [("Name", "name"), ("Kind", "text"), ("Size", "number"), ("Held by", "text")]
    note = f"The largest {OBJECT_ROWS} of {number}." if number > OBJECT_ROWS else ""
    return table("Objects of shared memory", columns, rows, note)


def file_systems(status: ReportStatus, extras: Extras) -> Iterator[Element]:
    used = [each for each in status.tmpfs if each.used_bytes or each.used_bytes is None]
    shown = used[:TMPFS_ROWS]
    if not shown:
        yield tag("p", "No tmpfs holds anything.")
        return
    rows: list[list[Cell]] = [
        [
            each.mount_point or f"device {each.device} (mounted nowhere, but held)",
            binary_size(each.used_bytes) if each.used_bytes is not None else [f"unknown: {each.why_unknown or ''}"],
            "no limit" if each.unlimited else binary_size(each.size_bytes),
            "" if not each.size_bytes or each.used_bytes is None else percent(each.used_bytes, each.size_bytes),
            "" if each.growth_bytes_per_hour is None else growth(each.growth_bytes_per_hour),
            when(each.full_at) if each.full_at else "",
            tmpfs_owner(each),
            ", ".join(each.written_by),
        ]
        for each in shown
    ]
    columns = [
        ("Mount point", "name"), ("Used", "number"), ("Size", "number"), ("Use", "number"), ("Growth", "number"),
        ("Full at", "text"), ("Whose", "text"), ("Written by", "text"),
    ]  # fmt: skip
    rest = len(status.tmpfs) - len(shown) + status.omitted.tmpfs
    yield table("tmpfs, the largest first", columns, rows, f"And {rest} more, smaller or empty." if rest else "")
    for number, each in enumerate(shown):
        if each.largest:
            found = details(f"Largest files in {each.mount_point or each.device}", _files(each, extras))
            if number == 0:
                found.set("open", "open")
            yield found


def _files(each: TmpfsStatus, extras: Extras) -> Element:
    inspection = extras.inspections.get(each.device)
    written = {entry.path: entry.modified_at for entry in each.largest}
    if inspection is not None:
        written |= {file.path: file_time(file.mtime) for file in inspection.files}
    found = sorted(tree.entries(each, inspection), key=lambda entry: -entry[1])
    rows: list[list[Cell]] = [
        [path, binary_size(size), when(written[path]) if written.get(path) else ""] for path, size in found
    ]
    note = "Directories count all that is below them."
    if each.journal_bytes:
        note += f" systemd-journald's journal: {binary_size(each.journal_bytes)}."
    if each.inspection_stopped:
        what = "many entries" if each.inspection_stopped == "entries" else "slow"
        note += f" The search was stopped (too {what}): there may be larger ones."
    columns = [("Path below the mount point", "name"), ("Size", "number"), ("Last written", "text")]
    return table(f"Largest in {each.mount_point or each.device}", columns, rows, note)


def kernel(down: KernelMemory) -> Iterator[Element]:
    """One level down."""
    if down.slab_caches:
        caches: list[list[Cell]] = [
            [each.name, binary_size(each.bytes), str(each.objects), str(each.active_objects)]
            for each in down.slab_caches
        ]
        columns = [("Cache", "name"), ("Size", "number"), ("Objects", "number"), ("In use", "number")]
        yield table("Largest slab caches", columns, caches)
    if down.vmalloc_callers:
        callers: list[list[Cell]] = [[e.caller, binary_size(e.bytes), str(e.areas)] for e in down.vmalloc_callers]
        columns = [("Caller", "name"), ("Size", "number"), ("Areas", "number")]
        yield table("Largest vmalloc callers, kernel stacks included", columns, callers)
    if down.allocation_sites:
        sites: list[list[Cell]] = [[e.site, binary_size(e.bytes), str(e.calls)] for e in down.allocation_sites]
        columns = [("Site", "name"), ("Size", "number"), ("Calls", "number")]
        yield table("Largest allocation sites", columns, sites)
    if down.cgroups:
        groups: list[list[Cell]] = [[each.path, binary_size(each.bytes)] for each in down.cgroups]
        yield table("Containers by kernel memory charged to them", [("cgroup", "name"), ("Size", "number")], groups)
    dying = down.dying_cgroups
    count = f"unknown ({dying.why})" if dying.count is None else f"{dying.count} ({dying.source})"
    yield tag("p", f"Dying memory cgroups, removed but still holding memory: {count}.")
