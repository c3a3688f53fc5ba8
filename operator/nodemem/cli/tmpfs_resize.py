"""``nodemem tmpfs resize``: set the size of one live tmpfs by hand."""

import argparse
import os
import re
import sys

from nodemem.cli.options import add_output
from nodemem.cli.text import binary_size, dump, safe
from nodemem.kernel import resize
from nodemem.kernel.host import FilesystemUsage, Host
from nodemem.kernel.mountinfo import parse_mountinfo
from nodemem.kernel.mounts import Superblock
from nodemem.kernel.resize import Resized, ResizeError
from nodemem.node.protected import why_protected
from nodemem.node.snapshot import Collector, Snapshot
from nodemem.node.units import parse_size

EXIT_FAILED, EXIT_USAGE, EXIT_IN_USE, EXIT_REFUSED = 1, 2, 3, 4
_DEVICE = re.compile(r"[0-9]+:[0-9]+")
_MAX_NAMED = 8


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "resize",
        help="set the size of one tmpfs, until it is unmounted",
        description="Set the size of one live tmpfs, in whatever mount namespace it is, and none of its other options. "
        "It is never made smaller than what it holds and some headroom. The size lasts until the tmpfs is unmounted "
        "(so not over a reboot) or somebody remounts it.",
        epilog="Exit codes: 0 it has that size (with --dry-run: it would get it); 1 could not be done; 2 wrong usage; "
        "3 it holds too much for that size now; 4 refused: no tmpfs, or one whose size is not to be set.",
    )
    parser.add_argument(
        "path", metavar="PATH|DEVICE", help="a mount point, or a device such as 0:39 for one in a container"
    )
    parser.add_argument(
        "size", metavar="SIZE", type=str, help="such as 2Gi, 512Mi, 1.5G, or 10%% of this machine's memory"
    )
    parser.add_argument("--inodes", type=int, metavar="N", help="set the limit on the number of files, too")
    parser.add_argument(
        "--headroom",
        type=_percent,
        default=10.0,
        metavar="PERCENT",
        help="never below what is in use plus so much of it (default: 10)",
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything, change nothing")
    add_output(parser, "text", "json", "yaml")
    parser.set_defaults(func=run)


def _percent(text: str) -> float:
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a percentage from 0 to 1000, such as 10")
    return value


def run(args: argparse.Namespace) -> int:
    """As the epilog says."""
    host: Host = args.host
    snapshot = Collector(host).collect(deep="never", inspect=0)
    try:
        size_bytes = parse_size(args.size, whole_bytes=snapshot.memory.fields["MemTotal"])
    except ValueError as error:
        return _fail(str(error), EXIT_USAGE)
    found = _find(snapshot, host, args.path)
    if isinstance(found, str):
        return _fail(found, EXIT_FAILED)
    try:
        done = resize.resize(
            host,
            found,
            size_bytes=size_bytes,
            inodes=args.inodes,
            headroom_percent=args.headroom,
            dry_run=args.dry_run,
            refuse=lambda superblock: why_protected(snapshot.tmpfs_owners.get(superblock.device)),
        )
    except resize.InUse as error:
        return _fail(error.message, EXIT_IN_USE)
    except resize.Refused as error:
        return _fail(error.message, EXIT_REFUSED)
    except ResizeError as error:
        return _fail(error.message, EXIT_FAILED)
    if args.output in ("json", "yaml"):
        dump(_as_data(done), args.output)
    else:
        print(_as_text(done))
    return 0


def _fail(message: str, code: int) -> int:
    print(f"nodemem: {safe(message)}", file=sys.stderr)
    return code


def _find(snapshot: Snapshot, host: Host, wanted: str) -> Superblock | str:
    """By device; else by mount point, in the host's namespace or where only one tmpfs is meant. A str says why not."""
    superblocks = snapshot.mounts.superblocks
    if _DEVICE.fullmatch(wanted):
        if wanted in superblocks:
            return superblocks[wanted]
        return f"{wanted}: no tmpfs has this device number; 'nodemem tmpfs' lists them all"
    path = os.path.abspath(wanted)
    visible = {
        (mount.namespace == snapshot.host_namespace, superblock.device)
        for superblock in superblocks.values()
        for mount in superblock.mounts
        if mount.path == path and not mount.hidden
    }
    devices = sorted(device for of_host, device in visible if of_host) or sorted(device for _, device in visible)
    if len(devices) == 1:
        return superblocks[devices[0]]
    if devices:
        more = f" and {len(devices) - _MAX_NAMED} more" if len(devices) > _MAX_NAMED else ""
        return (
            f"{path}: {len(devices)} containers have a tmpfs there; write the device of one instead: "
            f"{', '.join(devices[:_MAX_NAMED])}{more} ('nodemem tmpfs' says whose they are)"
        )
    return f"{path}: no tmpfs is mounted there{_what_is_there(host, path)}; 'nodemem tmpfs' lists them all"


def _what_is_there(host: Host, path: str) -> str:
    """From mountinfo alone: looking the path up might wait for a network file system's server."""
    try:
        mounts = list(parse_mountinfo(host.read(f"{host.proc}/self/mountinfo")))
    except OSError:
        return ""
    above = [mount for mount in mounts if mount.path == "/" or f"{path}/".startswith(f"{mount.path}/")]
    if not above:
        return ""
    mount = max(reversed(above), key=lambda mount: len(mount.path))
    if mount.path == path:
        return f" but {mount.fstype}"
    return f", it is in the {mount.fstype} mounted on {mount.path}"


def _as_text(done: Resized) -> str:
    parts = []
    if done.requested.size_bytes is not None:
        parts.append(_change("", binary_size(done.before.size_bytes), binary_size(done.after.size_bytes)))
    if done.requested.inodes is not None:
        parts.append(_change("inodes ", str(done.before.inodes), str(done.after.inodes)))
    state = "would become" if done.dry_run else "is now"
    if not done.changed:
        state = "is already"
    held = f"{binary_size(done.after.used_bytes)} and {done.after.inodes_used} inodes in use"
    return f"{safe(done.mount_point)} ({done.device}) {state} {', '.join(parts)}; {held}"


def _change(what: str, before: str, after: str) -> str:
    return f"{what}{after}" if before == after else f"{what}{after} (was {before})"


def _as_data(done: Resized) -> dict[str, object]:
    return {
        "device": done.device,
        "mountPoint": done.mount_point,
        "dryRun": done.dry_run,
        "changed": done.changed and not done.dry_run,
        "method": done.method,
        "requested": {"sizeBytes": done.requested.size_bytes, "inodes": done.requested.inodes},
        "before": _usage(done.before),
        "after": _usage(done.after),
    }


def _usage(usage: FilesystemUsage) -> dict[str, int | None]:
    """A limit of 0 is none."""
    return {
        "sizeBytes": usage.size_bytes or None,
        "usedBytes": usage.used_bytes if usage.size_bytes else None,
        "inodes": usage.inodes or None,
        "inodesUsed": usage.inodes_used if usage.inodes else None,
    }
