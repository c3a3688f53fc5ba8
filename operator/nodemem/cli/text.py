"""How values are shown to people: hostile names made harmless, and the output formats."""

import json
import sys
from typing import Any

from rich.console import Console

from nodemem.node.units import binary_size, duration, growth, percent

__all__ = ["binary_size", "console", "dump", "duration", "growth", "percent", "printable", "safe"]

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
