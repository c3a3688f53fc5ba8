"""``nodemem capture FILE.tar``: what a report was made from, to send with a bug report."""

import argparse
import sys
from pathlib import Path

from nodemem.cli import history
from nodemem.cli.meminfo import kernel_memory
from nodemem.cli.text import binary_size
from nodemem.kernel.capture import RecordingHost
from nodemem.node.snapshot import Collector


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "capture",
        help="save what a report is made from, for a bug report",
        description="Save the kernel's files that a report is made from. 'nodemem report --root FILE' then prints the "
        "same report anywhere. The capture holds names (of processes, mount points, cgroups, mapped and open "
        "files) and numbers; never the contents of files, nor arguments or environment of anything that runs.",
    )
    parser.add_argument("file", type=Path, metavar="FILE.tar", help="a name that ends in .gz is compressed")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """0 done; 1 it can't be written."""
    path: Path = args.file
    if path.is_dir():
        print(f"nodemem: {path} is a directory; name a file in it, such as {path / 'nodemem.tar'}", file=sys.stderr)
        return 1
    host = RecordingHost()
    snapshot = Collector(host).collect(deep="always")
    history.of_host(host, history.default_path(), snapshot.facts.boot_id)
    kernel_memory(host, snapshot.memory.partition, always=True)
    host.write(path)
    print(f"{path}: {binary_size(path.stat().st_size)}; print it with: nodemem report --root {path}")
    return 0
