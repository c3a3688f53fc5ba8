"""A page about this machine, or about the one that a capture is of, into a file."""

import sys
from pathlib import Path

from nodemem.cli.html import data
from nodemem.cli.html.page import page
from nodemem.cli.text import binary_size
from nodemem.kernel.host import Host
from nodemem.node.snapshot import Snapshot
from nodemem.node.trends import History


def write(target: str, host: Host, snapshot: Snapshot, history: History, *, everything: bool) -> None:
    """``target``: a file's name, or ``-`` for standard output. Raises OSError."""
    status, extras = data.of_machine(host, snapshot, history, everything=everything)
    text = page(status, snapshot.facts.node_name, extras)
    if target == "-":
        print(text, end="")
        return
    Path(target).write_text(text, "utf-8")
    print(f"{target}: {binary_size(len(text.encode()))}; open it in a browser, or attach it as it is", file=sys.stderr)
