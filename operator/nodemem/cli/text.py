"""How values are shown to people: sizes, ages, hostile names, and the output formats."""

import json
import sys
from typing import Any

from rich.console import Console

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def binary_size(size_bytes: float | None) -> str:
    """``17179869184`` as ``16.0 GiB``; None as ``unknown``."""
    if size_bytes is None:
        return "unknown"
    sign = "-" if size_bytes < 0 else ""
    value = abs(size_bytes)
    unit = 0
    # 1023.95 would print as 1024.0: move up before rounding does.
    while value >= 1023.95 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    return f"{sign}{value:.0f} {_UNITS[0]}" if unit == 0 else f"{sign}{value:.1f} {_UNITS[unit]}"


def duration(seconds: float | None) -> str:
    """The one or two largest units: ``4 h``, ``3 d 5 h``, ``45 s``; None as ``unknown``."""
    if seconds is None:
        return "unknown"
    seconds = max(0, int(seconds))
    days, rest = divmod(seconds, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, secs = divmod(rest, 60)
    if days >= 10:
        return f"{days} d"
    if days:
        return f"{days} d {hours} h" if hours else f"{days} d"
    if hours >= 10:
        return f"{hours} h"
    if hours:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{minutes} min" if minutes else f"{secs} s"


def safe(text: str) -> str:
    """Text from the kernel or a container, made printable: control bytes, bidirectional marks and invalid UTF-8 are
    escaped, so a file name can't move the cursor or hide another."""
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def console(*, width: int | None = None) -> Console:
    """Standard output without markup: names from the kernel are never read as rich tags."""
    return Console(markup=False, emoji=False, highlight=False, width=width, soft_wrap=not sys.stdout.isatty())


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
    """A copy of plain data in which every string is ``safe``."""
    if isinstance(value, str):
        return safe(value)
    if isinstance(value, dict):
        return {printable(key): printable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [printable(item) for item in value]
    return value
