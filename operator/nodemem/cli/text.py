"""How values are shown to people: hostile names made harmless, and the output formats."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from nodemem.api.convert import safe
from nodemem.node.units import binary_size, duration, growth, percent

PIPE_WIDTH = 180
ONE_LINE = 4000
"""Of a pipe whose reader takes a line for a row (grep, awk): nothing is folded."""

__all__ = [
    "ONE_LINE",
    "binary_size",
    "console",
    "dump",
    "duration",
    "fitted",
    "growth",
    "percent",
    "printable",
    "safe",
    "show",
    "table",
]


def console(*, width: int | None = None) -> Console:
    """Standard output, without markup: names from the kernel are never read as tags. A file or pipe gets long lines."""
    if width is None and not sys.stdout.isatty():
        width = PIPE_WIDTH
    return Console(markup=False, emoji=False, highlight=False, width=width)


def show(*parts: RenderableType, pipe_width: int = PIPE_WIDTH) -> None:
    """Print one below the other; without the padding at line ends where the output is a file or a pipe."""
    out = console() if sys.stdout.isatty() else console(width=pipe_width)
    if out.is_terminal:
        out.print(Group(*parts))
        return
    with out.capture() as captured:
        out.print(Group(*parts))
    print("\n".join(line.rstrip() for line in captured.get().split("\n")), end="")


def table(title: str, *columns: tuple[str, str]) -> Table:
    """A borderless table. Columns are (name, "left" | "right" | "text"); only "text" wraps where lines are short."""
    heading = Text(title, style="bold", no_wrap=True, overflow="ignore")
    rows = Table(title=heading, title_justify="left", box=None, pad_edge=False, show_edge=False)
    for name, kind in columns:
        rows.add_column(name, justify="right" if kind == "right" else "left", no_wrap=kind != "text", overflow="fold")
    return rows


def fitted(title: str, columns: Sequence[tuple[str, str, int]], rows: Sequence[Sequence[str | Text]]) -> RenderableType:
    """A table whose rows are one line each where the terminal is wide enough, and else lacks columns.

    Columns are (name, kind as of ``table``, rank). Empty ones go first, then those of the highest rank, of rank 0 none.
    Where even these are too wide it is a ``table``, which folds, and takes a millisecond for a row.
    """
    widths = [
        max(cell_len(str(each)) for each in (name, *(row[at] for row in rows)))
        for at, (name, _, _) in enumerate(columns)
    ]
    room = console().width if sys.stdout.isatty() else ONE_LINE
    kept = list(range(len(columns)))
    may_go = sorted(
        (at for at in kept if columns[at][2]),
        key=lambda at: (not any(str(row[at]) for row in rows), columns[at][2], at),
    )
    while (wide := sum(widths[at] + 2 for at in kept) - 2 > room) and may_go:
        kept.remove(may_go.pop())
    names = [columns[at][0] for at in kept]
    if wide:
        made = table(title, *((columns[at][0], columns[at][1]) for at in kept))
        for row in rows:
            made.add_row(*(row[at] for at in kept))
        return made
    places = [(widths[at], columns[at][1] == "right") for at in kept]
    lines = [Text(title, style="bold")] if title else []
    lines.append(_line([Text(name, style="bold") for name in names], places))
    lines += (_line([row[at] for at in kept], places) for row in rows)
    return Group(*lines)


def _line(cells: Sequence[str | Text], places: Sequence[tuple[int, bool]]) -> Text:
    """Cells in columns of these widths; True: to the right."""
    line = Text(no_wrap=True, overflow="ignore", end="\n")
    for at, (cell, (width, right)) in enumerate(zip(cells, places, strict=True)):
        space = " " * (width - cell_len(str(cell)))
        if right:
            line.append(space)
        line.append(cell)
        if at < len(cells) - 1:
            line.append("  " if right else f"{space}  ")
    return line


def dump(value: Any, output: str) -> None:
    """Print plain data as ``json`` or ``yaml``. Undecodable bytes in names appear as ``\\xNN``."""
    value = printable(value)
    if output == "json":
        print(json.dumps(value, indent=2, ensure_ascii=False))
    elif output == "yaml":
        import yaml

        print(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120), end="")
    else:
        raise ValueError(f"output {output!r}: expected json or yaml")


def printable(value: Any) -> Any:
    """A copy of plain data in which every string is ``safe``, and no more than a string."""
    if isinstance(value, str):
        return str(safe(value))  # an enumeration's member becomes its text
    if isinstance(value, dict):
        return {printable(key): printable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [printable(item) for item in value]
    return value
