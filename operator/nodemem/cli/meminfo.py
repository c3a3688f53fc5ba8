"""``nodemem meminfo``: the fields of /proc/meminfo in plain words with this machine's values; where MemTotal went."""

import argparse
import sys
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from nodemem.cli import text
from nodemem.cli.options import add_root
from nodemem.kernel import cgroups, kernelmem, memfields, meminfo
from nodemem.kernel.host import Host, Unreadable
from nodemem.node import owners

_LEVEL_DOWN_SHARE = 0.05
_TOP = 10


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "meminfo",
        help="explain /proc/meminfo with this machine's values",
        description="Explain the fields of /proc/meminfo with this machine's values, and cut MemTotal into parts that "
        "add up. With FIELD: what makes it high and what to look at next.",
    )
    parser.add_argument("field", nargs="*", metavar="FIELD", help="explain these fields in full (case doesn't matter)")
    parser.add_argument(
        "--all", action="store_true", help="also fields that are 0, and the kernel's memory one level down"
    )
    parser.add_argument(
        "-o",
        "--output",
        choices=("table", "json", "yaml", "markdown"),
        default="table",
        help="markdown: the reference of all fields, without values",
    )
    add_root(parser)
    parser.set_defaults(func=run, run=run)


def run(args: argparse.Namespace) -> int:
    """0 done; 1 /proc/meminfo is unusable; 2 an unknown FIELD."""
    if args.output == "markdown":
        print(reference(), end="")
        return 0
    host: Host = args.host
    try:
        memory = meminfo.measure(host)
    except ValueError as error:
        print(f"nodemem: {error}", file=sys.stderr)
        return 1
    if args.field:
        return _explain(args.field, memory, args.output)
    down = kernel_memory(host, memory.partition, always=args.all)
    if args.output == "table":
        text.show(*_tables(memory, down, show_zero=args.all))
    else:
        text.dump(as_data(memory, down), args.output)
    return 0


def as_data(memory: meminfo.Memory, down: kernelmem.KernelMemory | None) -> dict[str, Any]:
    """Plain data for JSON and YAML. Sizes in bytes; null is unknown."""
    partition = memory.partition
    data: dict[str, Any] = {
        "memory": {
            "totalBytes": partition.total_bytes,
            "availableBytes": partition.available_bytes,
            "availableEstimated": partition.available_estimated,
            **{f"{name}Bytes": size for name, size in partition.parts().items()},
            "hiddenBytes": partition.hidden_bytes,
            "hiddenErrorBytes": partition.mapped_shmem_error_bytes,
            "swapTotalBytes": partition.swap_total_bytes,
            "swapFreeBytes": partition.swap_free_bytes,
        },
        "other": {f"{name}Bytes": size for name, size in partition.other.items()},
        "fields": {name: _field_data(name, value) for name, value in memory.fields.items()},
    }
    unreadable = list(memory.unreadable)
    if down is not None:
        data["kernel"] = {
            "slabCaches": [
                {"name": c.name, "bytes": c.bytes, "objects": c.objects, "activeObjects": c.active_objects}
                for c in down.slab_caches
            ],
            "vmallocCallers": [{"caller": c.caller, "bytes": c.bytes, "areas": c.areas} for c in down.vmalloc_callers],
            "allocationSites": [{"site": s.site, "bytes": s.bytes, "calls": s.calls} for s in down.allocation_sites],
            "containers": [{"cgroup": c.path, "bytes": c.bytes} for c in down.cgroups],
            "dyingCgroups": down.dying_cgroups.count,
        }
        unreadable = _merge(unreadable, down.unreadable)
    data["unreadable"] = [{"what": entry.what, "why": entry.why, "count": entry.count} for entry in unreadable]
    return data


def _merge(first: list[Unreadable], second: list[Unreadable]) -> list[Unreadable]:
    return first + [entry for entry in second if entry not in first]


def _field_data(name: str, value: int) -> dict[str, Any]:
    known = memfields.describe(name)
    unit = known.unit if known else "bytes"
    return {"value": value, "unit": unit, "meaning": known.meaning if known else None}


def _explain(names: list[str], memory: meminfo.Memory, output: str) -> int:
    spelled = {name.lower(): name for name in (*memfields.FIELDS, *memory.fields)}
    fields = []
    for name in names:
        name = spelled.get(name.lower(), name)
        known = memfields.describe(name)
        if known is None:
            why = "a field of this kernel that nodemem doesn't know" if name in memory.fields else "no such field"
            print(f"nodemem: {text.safe(name)}: {why}; see 'nodemem meminfo --all'", file=sys.stderr)
            return 2
        fields.append((known, memory.fields.get(name)))
    if output != "table":
        text.dump(
            [
                {
                    "name": known.name,
                    "value": value,
                    "unit": known.unit,
                    "meaning": known.meaning,
                    "high": known.high,
                    "lookNext": known.look_next,
                    "part": known.part,
                    "since": known.since,
                }
                for known, value in fields
            ],
            output,
        )
        return 0
    console = text.console()
    for index, (known, value) in enumerate(fields):
        if index:
            console.print()
        console.print(f"{known.name}  {_value(known, value)}", style="bold")
        grid = Table.grid(padding=(0, 2, 0, 2))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        grid.add_row("meaning", known.meaning)
        grid.add_row("high when", known.high)
        grid.add_row("look at", known.look_next)
        grid.add_row("counted in", known.part or "no part: a limit, or memory that another part has")
        if known.since:
            grid.add_row("since", f"Linux {known.since}")
        console.print(grid)
    return 0


def _value(known: memfields.Field | None, value: int | None) -> str:
    if value is None:
        return "not on this kernel"
    if known is not None and known.unit != "bytes":
        return f"{value} {known.unit}"
    return text.binary_size(value)


def _table(*columns: str, title: str) -> Table:
    """The first and the last column hold text, those between are numbers."""
    kinds = ["left", *["right"] * (len(columns) - 2), "text"]
    return text.table(title, *zip(columns, kinds, strict=True))


def _tables(memory: meminfo.Memory, down: kernelmem.KernelMemory | None, *, show_zero: bool) -> list[RenderableType]:
    table = _table("FIELD", "VALUE", "MEANING", title="/proc/meminfo")
    left_out = 0
    for name, value in memory.fields.items():
        if not value and not show_zero:
            left_out += 1
            continue
        known = memfields.describe(name)
        meaning = known.meaning if known else "A field of this kernel that nodemem doesn't know."
        table.add_row(text.safe(name), _value(known, value), meaning)
    parts: list[RenderableType] = [table]
    if left_out:
        parts.append(f"{left_out} fields that are 0 left out (--all shows them).")

    partition = memory.partition
    table = _table("PART", "SIZE", "SHARE", "WHAT IT IS", title="Where MemTotal is")
    for name, size in partition.parts().items():
        table.add_row(name, text.binary_size(size), _share(size, partition.total_bytes), meminfo.PARTS[name])
        if name == "other":
            for inner, inner_size in partition.other.items():
                table.add_row(f"  {inner}", f"({text.binary_size(inner_size)})", "", meminfo.OTHER[inner])
    table.add_row("MemTotal", text.binary_size(partition.total_bytes), "100 %", "the sum of the parts")
    parts += ["", table, *_remarks(memory)]
    if down is not None:
        parts += level_down(down, partition)
    for entry in _merge(memory.unreadable, down.unreadable if down else []):
        parts.append(f"Could not read {text.safe(entry.what)}: {entry.why}")
    return parts


def _share(size: int | None, total: int) -> str:
    return "" if size is None or not total else text.percent(size, total)


def _remarks(memory: meminfo.Memory) -> list[str]:
    partition = memory.partition
    error = partition.mapped_shmem_error_bytes
    hidden = text.binary_size(partition.hidden_bytes)
    most = f" (up to {text.binary_size(partition.hidden_bytes + error)}: 'nodemem report' counts it)" if error else ""
    lines = [f"Hidden, in use and in no process: {hidden}{most}."]
    estimated = " (estimated: this kernel has no MemAvailable)" if partition.available_estimated else ""
    lines.append(f"Available: {text.binary_size(partition.available_bytes)}{estimated}.")
    if partition.unaccounted_bytes < 0:
        lines.append("Unaccounted is negative: the kernel's counters claim more than there is, or changed while read.")
    if partition.unevictable_cache_bytes > 0.01 * partition.total_bytes:
        size = text.binary_size(partition.unevictable_cache_bytes)
        lines.append(f"Up to {size} of the page cache can't be given back: see 'nodemem meminfo Unevictable'.")
    return lines


def level_down(down: kernelmem.KernelMemory, partition: meminfo.Partition) -> list[RenderableType]:
    """Who in the kernel holds its memory, as tables."""
    parts: list[RenderableType] = []
    if down.slab_caches:
        slab = partition.slab_reclaimable_bytes + partition.slab_unreclaimable_bytes
        title = f"Largest slab caches (all: {text.binary_size(slab)})"
        table = _table("CACHE", "SIZE", "OBJECTS", "IN USE", title=title)
        for cache in down.slab_caches:
            in_use = _share(cache.active_objects, cache.objects)
            table.add_row(text.safe(cache.name), text.binary_size(cache.bytes), str(cache.objects), in_use)
        parts += ["", table]
    if down.vmalloc_callers:
        title = f"Largest vmalloc callers (all: {text.binary_size(down.vmalloc_total_bytes)}, kernel stacks included)"
        table = _table("CALLER", "SIZE", "AREAS", "", title=title)
        for caller in down.vmalloc_callers:
            stacks = "kernel stacks" if kernelmem.is_stack_caller(caller.caller) else ""
            table.add_row(text.safe(caller.caller), text.binary_size(caller.bytes), str(caller.areas), stacks)
        parts += ["", table]
    if down.allocation_sites:
        title = f"Largest allocation sites (all: {text.binary_size(down.allocation_total_bytes)})"
        table = _table("SITE", "SIZE", "CALLS", "", title=title)
        for site in down.allocation_sites:
            table.add_row(text.safe(site.site), text.binary_size(site.bytes), str(site.calls), "")
        parts += ["", table]
    if down.cgroups:
        title = f"Containers by kernel memory charged to them (all: {text.binary_size(down.cgroups_total_bytes)})"
        table = _table("SIZE", "CGROUP", title=title)
        for cgroup in down.cgroups:
            table.add_row(text.binary_size(cgroup.bytes), text.safe(cgroup.path))
        parts += ["", table]
    dying = down.dying_cgroups
    if dying.count is None:
        parts.append(f"Dying memory cgroups: unknown ({dying.why}).")
    else:
        parts.append(f"Dying memory cgroups, removed but still holding memory: {dying.count} ({dying.source}).")
    return parts


def kernel_memory(host: Host, partition: meminfo.Partition, *, always: bool) -> kernelmem.KernelMemory | None:
    """The kernel's memory one level down, where it is high; None where it isn't and nobody asked for it."""
    if not always and partition.kernel_bytes <= _LEVEL_DOWN_SHARE * partition.total_bytes:
        return None
    hierarchy = cgroups.discover(host)
    containers = (
        (path, cgroup.kernel_bytes)
        for path, cgroup in hierarchy.scan().items()
        if isinstance(owners.parse_cgroup(path, hierarchy.root), owners.ContainerRef)
    )
    return kernelmem.inspect(host, containers, top=_TOP)


def reference() -> str:
    """docs/meminfo.md: every field and every part, from the same text that the command prints."""
    lines = [
        "# /proc/meminfo, field by field",
        "",
        "Written by `nodemem meminfo -o markdown`; don't edit. `nodemem meminfo FIELD` prints the same with this",
        "machine's value.",
        "",
        "## Where MemTotal is",
        "",
        "The parts add up to MemTotal exactly, and no two of them hold the same page. Hidden memory is what is in use",
        "and in no process's RSS: Shmem that nobody maps, and every part below it in this table. A negative",
        "`unaccounted` means that the kernel's counters claim more than there is: Percpu, for one, counts memory that",
        "was set aside before MemTotal.",
        "",
        "| part | what it is | fields |",
        "|---|---|---|",
    ]
    for name, what in meminfo.PARTS.items():
        fields = ", ".join(f"`{entry.name}`" for entry in memfields.FIELDS.values() if entry.part == name)
        lines.append(f"| {name} | {what} | {fields} |")
    lines += ["", "`other` is the sum of:", "", "| name | what it is |", "|---|---|"]
    lines += [f"| {name} | {what} |" for name, what in meminfo.OTHER.items()]
    lines += ["", "## Fields", ""]
    for entry in memfields.FIELDS.values():
        lines += [f"### {entry.name}", "", entry.meaning, "", f"- High when: {_markdown(entry.high)}"]
        lines.append(f"- Look at: {_markdown(entry.look_next)}")
        if entry.part:
            lines.append(f"- Counted in: {entry.part}")
        if entry.since:
            lines.append(f"- Since: Linux {entry.since}")
        lines.append("")
    return "\n".join(lines)


def _markdown(words: str) -> str:
    return words.replace("*", "\\*").replace("|", "\\|")
