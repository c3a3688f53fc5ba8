"""A page about this machine, or about the one that a capture is of, into a file."""

import sys
from pathlib import Path

from nodemem.cli.html import data
from nodemem.cli.html.page import page
from nodemem.cli.text import binary_size
from nodemem.kernel.host import Host
from nodemem.node.snapshot import Snapshot
from nodemem.node.trends import History


def why_not(target: str, output: str, watch: bool) -> str | None:
    """What is wrong with these options; None if nothing is."""
    if Path(target).is_dir():
        return f"{target} is a directory; name a file in it, such as {Path(target, 'report.html')}"
    if output != "table":
        return f"--html and -o {output} are two outputs: choose one (the page has the JSON in it)"
    if watch and target == "-":
        return "--watch writes the page again and again: give --html a file"
    return None


def write(target: str, host: Host, snapshot: Snapshot, history: History, *, everything: bool) -> None:
    """``target``: a file's name, or ``-`` for standard output. Raises OSError."""
    status, extras = data.of_machine(host, snapshot, history, everything=everything)
    text = page(status, snapshot.facts.node_name, extras)
    if target == "-":
        with open(1, "wb", closefd=False) as out:  # the page says that it is UTF-8, whatever the locale
            out.write(text.encode())
        return
    Path(target).write_text(text, "utf-8")
    print(f"{target}: {binary_size(len(text.encode()))}; open it in a browser, or attach it as it is", file=sys.stderr)
