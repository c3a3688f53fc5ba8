"""``nodemem tmpfs``: every tmpfs of this machine, and what is in one."""

import argparse
import sys

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from nodemem.cli import history, tmpfs_resize
from nodemem.cli.options import add_output, add_root, positive_seconds
from nodemem.cli.reportview import render_tmpfs
from nodemem.cli.text import binary_size, dump, safe, show, table
from nodemem.kernel import tmpfs
from nodemem.kernel.host import Host
from nodemem.kernel.mounts import Superblock
from nodemem.node import report
from nodemem.node.snapshot import Collector, Snapshot
from nodemem.node.status import to_plain


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "tmpfs",
        help="every tmpfs, and what is in it",
        description="Every tmpfs of this machine, those of containers included: largest first, each file system once.",
    )
    add_output(parser, "table", "wide", "json", "yaml")
    add_root(parser)
    parser.set_defaults(func=run)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    listing = commands.add_parser(
        "ls",
        help="the largest files and directories of one tmpfs",
        description="The largest files and directories of one tmpfs, by allocated blocks. No file is opened.",
    )
    listing.add_argument(
        "path", metavar="PATH|DEVICE", help="a mount point, or a device such as 0:39 for one in a container"
    )
    listing.add_argument("--top", type=int, default=20, metavar="N", help="entries of each kind (default: 20)")
    listing.add_argument("--max-entries", type=int, default=1_000_000, metavar="N", help="stop after so many entries")
    listing.add_argument("--max-seconds", type=positive_seconds, default=30.0, metavar="S", help="stop after so long")
    add_output(listing, "table", "json", "yaml")
    add_root(listing)
    listing.set_defaults(func=run_ls)
    tmpfs_resize.add_parser(commands)


def run(args: argparse.Namespace) -> int:
    """0 done."""
    host: Host = args.host
    snapshot = Collector(host).collect(deep="never", inspect=0)
    trend = history.of_host(host, history.default_path(), snapshot.facts.boot_id)
    status = report.build(snapshot, trend, everything=True)
    if args.output in ("json", "yaml"):
        dump({"tmpfs": to_plain(status.tmpfs)}, args.output)
        return 0
    show(*render_tmpfs(status, len(status.tmpfs) if args.output == "wide" else 40, empty_too=True))
    if args.output == "wide":
        show(Text(), _mounts(snapshot))
    return 0


def _mounts(snapshot: Snapshot) -> Table:
    rows = table(
        "Where they are mounted",
        ("DEVICE", "left"), ("NAMESPACE", "left"), ("PATH", "text"), ("SHOWS", "text"), ("OPTIONS", "text"),
    )  # fmt: skip
    for superblock in snapshot.mounts.superblocks.values():
        for mount in superblock.mounts:
            shows = "hidden by another mount" if mount.hidden else safe(mount.root)
            rows.add_row(superblock.device, str(mount.namespace), safe(mount.path), shows, safe(superblock.options))
    return rows


def run_ls(args: argparse.Namespace) -> int:
    """0 done; 1 no such tmpfs, or it can't be entered."""
    host: Host = args.host
    snapshot = Collector(host).collect(deep="never", inspect=0)
    superblock = _find(snapshot, args.path)
    if superblock is None:
        print(f"nodemem: {args.path}: no tmpfs is mounted there; 'nodemem tmpfs' lists them all", file=sys.stderr)
        return 1
    found = tmpfs.inspect(host, superblock, max_entries=args.max_entries, max_seconds=args.max_seconds, top=args.top)
    if args.output in ("json", "yaml"):
        dump(_as_data(found), args.output)
        return 0
    parts: list[RenderableType] = []
    used = "unknown" if superblock.used_bytes is None else binary_size(superblock.used_bytes)
    parts.append(Text(f"{found.mount_point}: {found.entries} entries, {binary_size(found.found_bytes)} of {used} used"))
    if found.not_found_bytes and not found.stopped:
        parts.append(Text(f"{binary_size(found.not_found_bytes)} more in deleted but open files or below other mounts"))
    if found.recent_bytes:
        parts.append(Text(f"{binary_size(found.recent_bytes)} in files written within the last hour"))
    if found.journal_bytes:
        parts.append(Text(f"systemd-journald's volatile journal: {binary_size(found.journal_bytes)}"))
    if found.stopped:
        limit = "--max-entries" if found.stopped == "entries" else "--max-seconds"
        parts.append(Text(f"stopped early; look further with {limit}", style="yellow"))
    directories = table("Directories", ("SIZE", "right"), ("FILES", "right"), ("PATH", "text"))
    for directory in found.directories:
        directories.add_row(binary_size(directory.bytes), str(directory.files), safe(directory.path))
    files = table("Files", ("SIZE", "right"), ("LAST WRITTEN", "left"), ("PATH", "text"))
    for file in found.files:
        links = f" ({file.links} links)" if file.links > 1 else ""
        files.add_row(binary_size(file.bytes), report.file_time(file.mtime) or "unknown", safe(file.path) + links)
    show(*parts, directories, files)
    return 0


def _find(snapshot: Snapshot, wanted: str) -> Superblock | None:
    """By device; else by mount point, in the host's namespace first. A mount point hidden there is not meant."""
    if wanted in snapshot.mounts.superblocks:
        return snapshot.mounts.superblocks[wanted]
    path = wanted.rstrip("/") or "/"
    found = [
        (mount.hidden, mount.namespace != snapshot.host_namespace, superblock.device)
        for superblock in snapshot.mounts.superblocks.values()
        for mount in superblock.mounts
        if mount.path == path
    ]
    return snapshot.mounts.superblocks[min(found)[2]] if found else None


def _as_data(found: tmpfs.Inspection) -> dict[str, object]:
    return {
        "device": found.device,
        "mountPoint": found.mount_point,
        "usedBytes": found.used_bytes,
        "foundBytes": found.found_bytes,
        "notFoundBytes": found.not_found_bytes,
        "writtenLastHourBytes": found.recent_bytes,
        "journalBytes": found.journal_bytes,
        "entries": found.entries,
        "unreadable": found.unreadable,
        "stopped": found.stopped,
        "directories": [{"path": each.path, "bytes": each.bytes, "files": each.files} for each in found.directories],
        "files": [
            {
                "path": each.path,
                "bytes": each.bytes,
                "sizeBytes": each.size_bytes,
                "links": each.links,
                "modifiedAt": report.file_time(each.mtime),
            }
            for each in found.files
        ],
    }
