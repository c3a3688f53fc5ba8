"""``nodemem report``: where this machine's memory went, on one screen or as a MemoryReport object."""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.text import Text

from nodemem.cli import history
from nodemem.cli.meminfo import kernel_memory, level_down
from nodemem.cli.options import add_output, add_root, positive_seconds
from nodemem.cli.reportview import render
from nodemem.cli.text import console, dump, safe, show
from nodemem.kernel.host import Host
from nodemem.node import report
from nodemem.node.snapshot import Collector
from nodemem.node.status import ReportStatus
from nodemem.node.trends import History


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "report",
        help="where this machine's memory went",
        description="Where this machine's memory went: the verdict first, then the parts of MemTotal, Shmem by source, "
        "the largest tmpfs and processes, and what could not be read. Run as root to see everything.",
    )
    add_output(parser, "table", "wide", "json", "yaml")
    parser.add_argument(
        "--html",
        metavar="FILE",
        help="write one self-contained page instead, to open in any browser or attach to an incident (-: to standard "
        "output); with --watch it is written again each time",
    )
    parser.add_argument("--all", action="store_true", help="complete lists; adds every process and every shmem object")
    parser.add_argument("--watch", type=positive_seconds, metavar="SECONDS", help="again and again, with the changes")
    parser.add_argument("--count", type=int, metavar="N", help="with --watch: stop after N reports")
    parser.add_argument(
        "--history",
        type=Path,
        metavar="FILE",
        default=None,
        help="where figures are kept between runs, for growth (default: %(const)s)",
        const=history.default_path(),
        nargs="?",
    )
    parser.add_argument(
        "--no-history", action="store_true", help="keep nothing; growth is then known with --watch only"
    )
    add_root(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """0 done. What could not be read is part of the report."""
    host: Host = args.host
    if args.html is not None:
        from nodemem.cli.html import write as html  # not loaded by every run of every command

        if wrong := html.why_not(args.html, args.output, args.watch is not None):
            print(f"nodemem: {wrong}", file=sys.stderr)
            return 2
    collector = Collector(host)
    history_file = None if args.no_history or not host.live else args.history or history.default_path()
    trend: History | None = None
    before: ReportStatus | None = None
    shown = 0
    while True:
        with _progress() as progress:
            snapshot = collector.collect(deep="always", progress=progress)
        if trend is None:
            trend = history.of_host(host, history_file, snapshot.facts.boot_id)
        report.observe(trend, snapshot)
        if history_file is not None:
            with suppress(OSError):  # a read-only home costs the growth between runs, not the report
                history.save(trend, history_file)
        status = report.build(snapshot, trend, everything=args.all or args.output in ("table", "wide"))
        if args.html is not None:
            html.write(args.html, host, snapshot, trend, everything=args.all)
        elif args.output in ("json", "yaml"):
            dump(report.as_object(status, snapshot.facts.node_name), args.output)
        else:
            if args.watch and (out := console()).is_terminal:
                out.clear()
            missing, unread = report.merged(snapshot.unreadable), snapshot.shmem.unreadable_rss_bytes
            wide = args.output == "wide"
            show(render(status, missing=missing, unreadable_rss_bytes=unread or 0, wide=wide, before=before))
            down = kernel_memory(host, snapshot.memory.partition, always=args.all)
            if down is not None:
                show(*level_down(down, snapshot.memory.partition))
        sys.stdout.flush()
        before = status
        shown += 1
        if not args.watch or not host.live or shown == args.count:
            return 0
        time.sleep(args.watch)


@contextmanager
def _progress() -> Iterator["_Progress"]:
    err = Console(stderr=True, markup=False)
    if not err.is_terminal:
        yield _Progress(None)
        return
    with err.status(Text("reading")) as status:
        yield _Progress(lambda text: status.update(Text(text)))


class _Progress:
    def __init__(self, show: object) -> None:
        self._show = show

    def __call__(self, step: str) -> None:
        if callable(self._show):
            self._show(f"reading {safe(step)}")
