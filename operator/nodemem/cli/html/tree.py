"""A report as a tree of sizes: MemTotal, its parts, Shmem by source, tmpfs, directories and files; processes.

Pure, and without arithmetic of its own but sums and remainders: every size is one of the report.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nodemem.cli.html.data import Extras
from nodemem.cli.reportview import SHMEM_SOURCES
from nodemem.cli.text import binary_size, safe
from nodemem.kernel import meminfo
from nodemem.kernel.tmpfs import Inspection
from nodemem.node.status import MemoryStatus, ReportStatus, ShmemObjectStatus, ShmemStatus, TmpfsStatus, key

CHILDREN_SHOWN = 12
"""Of one node; the rest is one node more."""

KINDS = {
    "shmem": "shared memory and tmpfs",
    "anonymous": "private memory of processes",
    "cache": "cache, given back on demand",
    "kernel": "the kernel's own",
    "huge": "huge page pool",
    "free": "free",
    "unknown": "no counter or source shows what it is",
}
"""What a colour stands for."""

_PART_KINDS = {
    "free": "free",
    "anonymous": "anonymous",
    "pageCache": "cache",
    "buffers": "cache",
    "slabReclaimable": "cache",
    "shmem": "shmem",
    "hugePages": "huge",
    "unaccounted": "unknown",
}

PART_NAMES = {
    "free": "Free",
    "anonymous": "Private memory",
    "pageCache": "Page cache",
    "buffers": "Buffers",
    "shmem": "Shmem",
    "slabReclaimable": "Slab, reclaimable",
    "slabUnreclaimable": "Slab, unreclaimable",
    "kernelStack": "Kernel stacks",
    "pageTables": "Page tables",
    "vmalloc": "vmalloc",
    "perCpu": "Per-CPU",
    "hugePages": "Huge pages",
    "other": "Other",
    "unaccounted": "Unaccounted",
}

_OBJECT_KINDS = {
    "sysv_bytes": "sysv",
    "memfd_bytes": "memfd",
    "shared_anonymous_bytes": "sharedAnonymous",
    "deleted_open_bytes": "deletedOpen",
    "kernel_internal_bytes": "kernelInternal",
}


@dataclass(frozen=True, slots=True)
class Node:
    """``bytes`` is above 0. ``name`` is short, ``detail`` says more of it; both are as the kernel has them. ``kind``
    is one of KINDS."""

    name: str
    bytes: int
    kind: str
    detail: str = ""
    children: tuple["Node", ...] = ()

    @property
    def children_bytes(self) -> int:
        return sum(each.bytes for each in self.children)


def part_kind(name: str) -> str:
    return _PART_KINDS.get(name, "kernel")


def parts(memory: MemoryStatus) -> dict[str, int | None]:
    """The parts of MemTotal in reading order, by their names in ``meminfo.PARTS``; None is unknown."""
    by_key = {key(name): getattr(memory, name) for name in memory.__dataclass_fields__}
    return {name: by_key[f"{name}Bytes"] for name in meminfo.PARTS}


def sources(shmem: ShmemStatus) -> dict[str, int | None]:
    return {name: getattr(shmem, name) for name in SHMEM_SOURCES}


def memory_tree(status: ReportStatus, extras: Extras) -> Node:
    """Parts that are 0, unknown, or (what the kernel counts twice) negative have no node."""
    children = []
    for name, size in parts(status.memory).items():
        if not size or size < 0:
            continue
        inner: tuple[Node, ...] = ()
        if name == "shmem":
            inner = _sources(status, extras)
        elif name == "anonymous":
            inner = _processes(status, size)
        children.append(_node(PART_NAMES[name], size, part_kind(name), meminfo.PARTS[name], inner))
    return Node("Memory", status.memory.total_bytes, "free", "MemTotal: what the kernel manages", tuple(children))


def _node(name: str, size: int, kind: str, detail: str, children: Iterable[Node]) -> Node:
    """Says so where the children add up to more."""
    node = Node(name, size, kind, detail, tuple(children))
    excess = node.children_bytes - size
    if excess <= 0:
        return node
    more = f"what is inside adds up to {binary_size(node.children_bytes)} (shared or swapped), drawn to scale in itself"
    return Node(name, size, kind, f"{detail}; {more}" if detail else more, node.children)


def _filled(children: Sequence[Node], size: int, kind: str, rest: str, detail: str = "") -> tuple[Node, ...]:
    """The largest of ``children`` and, as one node more, what else is in ``size``."""
    shown = sorted((each for each in children if each.bytes > 0), key=lambda each: -each.bytes)[:CHILDREN_SHOWN]
    left = size - sum(each.bytes for each in shown)
    if shown and left > 0:
        shown.append(Node(rest, left, kind, detail))
    return tuple(shown)


def _processes(status: ReportStatus, size: int) -> tuple[Node, ...]:
    found = [
        Node(
            each.comm, each.rss_anon_bytes or 0, "anonymous", f"pid {each.pid}" + (f", {each.owner}" * bool(each.owner))
        )
        for each in status.processes or ()
    ]
    return _filled(found, size, "anonymous", "other processes")


def _sources(status: ReportStatus, extras: Extras) -> tuple[Node, ...]:
    shmem = status.shmem
    found = []
    for name, size in sources(shmem).items():
        if not size or size < 0:
            continue
        kind = "unknown" if name == "unattributed_bytes" else "shmem"
        inner = _file_systems(status, extras, size) if name == "tmpfs_bytes" else _objects(status, name, size)
        doc = str(ShmemStatus.__dataclass_fields__[name].metadata["doc"]).rstrip(".")
        found.append(_node(SHMEM_SOURCES[name], size, kind, doc, inner))
    return tuple(found)


def _objects(status: ReportStatus, source: str, size: int) -> tuple[Node, ...]:
    """Where the report lists them (it does with --all)."""
    comms = {each.pid: each.comm for each in status.processes or ()}
    found = [
        Node(each.name or f"inode {each.inode}", each.bytes or 0, "shmem", held(each, comms))
        for each in status.shmem.objects or ()
        if each.kind == _OBJECT_KINDS.get(source)
    ]
    if source == "deleted_open_bytes":
        found += [
            Node(f"tmpfs {each.device}", each.used_bytes or 0, "shmem", "mounted nowhere any more, but held")
            for each in status.tmpfs
            if each.mount_point is None
        ]
    return _filled(found, size, "shmem", "others")


def held(each: ShmemObjectStatus, comms: Mapping[int, str]) -> str:
    if not each.holders:
        return "held by no process"
    named = [f"{comms[pid]} (pid {pid})" if pid in comms else f"pid {pid}" for pid in each.holders[:3]]
    more = len(each.holders) - len(named)
    return f"held by {', '.join(named)}" + (f" and {more} more" if more else "")


def _file_systems(status: ReportStatus, extras: Extras, size: int) -> tuple[Node, ...]:
    """Deleted files that a tmpfs still holds have their own place among the sources, so they are taken off here."""
    deleted: dict[str | None, int] = {}
    for each in status.shmem.objects or ():
        if each.kind == "deletedOpen":
            deleted[each.device] = deleted.get(each.device, 0) + (each.bytes or 0)
    found = []
    for file_system in status.tmpfs:
        used = (file_system.used_bytes or 0) - deleted.get(file_system.device, 0)
        if file_system.mount_point is None or used <= 0:
            continue
        inspection = extras.inspections.get(file_system.device)
        detail = f"tmpfs {file_system.device}, {tmpfs_size(file_system)}"
        inner = contents(entries(file_system, inspection), used, inspection, file_system.mount_point)
        found.append(_node(file_system.mount_point, used, "shmem", detail, inner))
    number = len(found) - CHILDREN_SHOWN + status.omitted.tmpfs
    return _filled(found, size, "shmem", f"{number} more tmpfs" if number > 0 else "elsewhere in tmpfs")


def tmpfs_size(file_system: TmpfsStatus) -> str:
    return "no limit" if file_system.unlimited else f"size {binary_size(file_system.size_bytes)}"


def entries(file_system: TmpfsStatus, inspection: Inspection | None) -> list[tuple[str, int]]:
    """Files and directories by path below the mount point, directories ending in "/"; the report's own where there is
    no more."""
    if inspection is None:
        return [(each.path, each.bytes) for each in file_system.largest]
    found = [(each.path, each.bytes) for each in inspection.files]
    return found + [(f"{each.path}/", each.bytes) for each in inspection.directories if each.path != "/"]


def contents(
    found: Sequence[tuple[str, int]], used: int, inspection: Inspection | None = None, mount_point: str = ""
) -> tuple[Node, ...]:
    """Files within the directories that are listed, with what else there is. The sizes of a directory are of all below
    it, so each entry goes into the nearest directory above it."""
    unique = {f"/{path.strip('/')}" + ("/" if path.endswith("/") else ""): size for path, size in found if size > 0}
    directories = sorted((path for path in unique if path.endswith("/") and path != "/"), key=len)
    inside: dict[str, list[str]] = {}
    for path in unique:
        if path == "/":
            continue
        above = next((each for each in reversed(directories) if each != path and path.startswith(each)), "")
        inside.setdefault(above, []).append(path)

    def nodes(above: str) -> list[Node]:
        made = []
        for path in inside.get(above, ()):
            size = unique[path]
            inner: tuple[Node, ...] = ()
            if path in inside:
                inner = _filled(nodes(path), size, "shmem", "other files")
            made.append(_node(path.removeprefix(above or "/"), size, "shmem", f"{mount_point}{path}", inner))
        return made

    top = nodes("")
    unseen = 0 if inspection is None else used - inspection.found_bytes
    if unseen <= 0:
        return _filled(top, used, "shmem", "other files")
    more = (
        "more than could be searched" if inspection and inspection.stopped else "deleted, below mounts or not reached"
    )
    seen = _filled(top, used - unseen, "shmem", "other files")
    return (*seen, Node("not found", unseen, "unknown", more)) if seen else ()


def label(node: Node, total: int) -> str:
    """All there is to say of a node, for people who hear it or point at it."""
    share = f" ({100 * node.bytes / total:.1f} % of memory)" if total else ""
    return f"{safe(node.name)}: {binary_size(node.bytes)}{share}" + (f". {safe(node.detail)}" if node.detail else "")
