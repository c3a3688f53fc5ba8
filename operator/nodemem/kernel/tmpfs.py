"""What is in a tmpfs: its largest files and directories, found without reading, opening or following any of them.

A superblock (mounts.py) in, an ``Inspection`` out. The walk goes by descriptors: each directory is opened by name from
its parent, checked to be on the same filesystem before it is read, and never left through a symlink or a mount. So a
container that moves things about meanwhile can make a listing incomplete, but not lead it anywhere else.
"""

import errno
import heapq
import os
import re
import stat
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from nodemem.kernel import mountusage, syscalls
from nodemem.kernel.host import Host
from nodemem.kernel.mounts import Superblock

_JOURNAL = re.compile(r"/log/journal/[0-9a-f]{32}(\.[^/]+)?/[^/]+\.journal~?\Z")
_EXPLAINED = 0.9  # a directory one of whose children holds more than this of it is not worth a line of its own
_RECENT_SECONDS = 3600
_READ = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_MAX_OPEN = 64  # directories held open at a time; farther up they are opened again from below
_MAX_PATH = 4096  # longer paths can't be opened anyway; the end of it is kept


@dataclass(frozen=True, slots=True)
class FileUse:
    """A file by its path from the top of the mount, beginning with "/".

    ``bytes`` is what is allocated (holes cost nothing), ``size_bytes`` what ls(1) shows. ``links`` > 1: counted once,
    under the name met first. ``mtime``: Unix time of the last write, as far as the owner hasn't set another.
    """

    path: str
    bytes: int
    size_bytes: int
    links: int
    mtime: float


@dataclass(frozen=True, slots=True)
class DirectoryUse:
    """A directory with all that is below it. Where one child holds nearly all, only that child is listed."""

    path: str
    bytes: int
    files: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a walk found. ``stopped`` says which bound ended it early: then all figures are lower bounds.

    ``used_bytes`` is the filesystem's own count at the start of the walk (None: it has no limit and keeps none).
    ``not_found_bytes`` of it are in deleted files that somebody holds open, below mounts, or not reached. ``root``: the
    directory of the filesystem that was walked; other than "/" where only a bind mount of it can be reached.
    ``entries`` are files and directories seen, ``mounts_passed`` those not entered because something is mounted there,
    ``unreadable`` directories that could not be opened. ``journal_bytes``: in files of systemd-journald.
    ``recent_bytes``: in files written during the hour before the walk.
    """

    device: str
    mount_point: str
    root: str
    used_bytes: int | None
    found_bytes: int
    not_found_bytes: int | None
    files: list[FileUse]
    directories: list[DirectoryUse]
    newest: FileUse | None
    oldest_mtime: float | None
    newest_mtime: float | None
    recent_bytes: int
    journal_bytes: int
    entries: int
    mounts_passed: int
    unreadable: int
    stopped: str | None


def open_mount(host: Host, superblock: Superblock) -> int:
    """An O_PATH descriptor of the superblock's mount at ``access_path``; the caller closes it.

    No symlink is followed, and the descriptor is checked to be on a tmpfs (or a devtmpfs) with the superblock's device
    number: what is done through it can't reach another filesystem. Raises OSError: ESTALE when something else is there,
    ENOENT when no path leads there.
    """
    if superblock.access_path is None or superblock.access_pid is None:
        raise FileNotFoundError(errno.ENOENT, superblock.why_unknown or "no path leads there", superblock.device)
    top = f"{host.proc}/{superblock.access_pid}/root"
    path = superblock.access_path.removeprefix(top)
    cached_only = any(
        point.behind is not None for point in superblock.mounts if point.path == path and not point.hidden
    )
    root = os.open(top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = syscalls.open_beneath(root, path, cached_only=cached_only)
    finally:
        os.close(root)
    try:
        _check(fd, superblock)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check(fd: int, superblock: Superblock) -> None:
    if syscalls.fd_device(fd) == superblock.device:
        magic = syscalls.fd_magic(fd)
        if magic == syscalls.TMPFS_MAGIC or (magic == syscalls.RAMFS_MAGIC and superblock.fstype != "tmpfs"):
            return
    raise OSError(errno.ESTALE, "another file system is mounted there", superblock.access_path)


def inspect(
    host: Host,
    superblock: Superblock,
    *,
    max_entries: int = 100_000,
    max_seconds: float = 2.0,
    top: int = 10,
) -> Inspection:
    """List what holds the memory of a tmpfs. Cost: a statx per entry, within the bounds. Raises OSError.

    A covered tmpfs is walked by a child that takes the covers off in its private copy of the mount namespace.
    """
    path, root = _place(host, superblock)
    limits = _Limits(max_entries, max_seconds, top)
    key = f"tmpfs {superblock.device} contents"
    found: dict[str, Any]
    if superblock.access_path is not None or superblock.access_pid is None:
        found = host.observe(key, partial(_walk_mount, host, superblock, path, limits))
    else:
        found = host.observe(key, partial(_walk_below, host, superblock, path, limits))
    used = found["used"]
    return Inspection(
        device=superblock.device,
        mount_point=path,
        root=root,
        used_bytes=used,
        found_bytes=found["found"],
        not_found_bytes=None if used is None else max(0, used - found["found"]),
        files=[FileUse(*file) for file in found["files"][:top]],
        directories=[DirectoryUse(*directory) for directory in found["directories"][:top]],
        newest=FileUse(*found["newest"]) if found["newest"] else None,
        oldest_mtime=found["oldest"],
        newest_mtime=found["newest"][4] if found["newest"] else None,
        recent_bytes=found["recent"],
        journal_bytes=found["journal"],
        entries=found["entries"],
        mounts_passed=found["mounts"],
        unreadable=found["unreadable"],
        stopped=found["stopped"],
    )


@dataclass(frozen=True, slots=True)
class _Limits:
    entries: int
    seconds: float
    top: int


def _place(host: Host, superblock: Superblock) -> tuple[str, str]:
    """(mount point, directory of the filesystem that shows there) of the mount that will be walked."""
    if superblock.access_path is not None:
        path = superblock.access_path.removeprefix(f"{host.proc}/{superblock.access_pid}/root")
        root = next((p.root for p in superblock.mounts if p.path == path and not p.hidden), "/")
        return path, root
    point = next((point for point in superblock.mounts if point.hidden), None)
    return (point.path, point.root) if point is not None else ("", "/")


def _walk_mount(host: Host, superblock: Superblock, path: str, limits: _Limits) -> dict[str, Any]:
    fd = open_mount(host, superblock)
    try:
        return _Walk(fd, path, limits).run()
    finally:
        os.close(fd)


def _walk_below(host: Host, superblock: Superblock, path: str, limits: _Limits) -> dict[str, Any]:
    pid = superblock.access_pid
    assert pid is not None
    namespace = os.stat(f"{host.proc}/{pid}/ns/mnt").st_ino
    answer = mountusage.look_below(
        host.proc,
        pid,
        namespace,
        [superblock.device],
        lambda fd: _Walk(fd, path, limits).run(),
        timeout=limits.seconds + 10,
    )[superblock.device]
    if isinstance(answer, str):
        raise OSError(errno.EIO, answer, path)
    walked: dict[str, Any] = answer
    return walked


@dataclass(slots=True)
class _Directory:
    """A directory on the way from the top to where the walk is; ``fd`` is -1 while it is closed."""

    fd: int
    name: str
    inode: int
    waiting: list[str]
    bytes: int = 0
    files: int = 0
    largest_child: int = 0


class _Walk:
    """One walk, depth first, over descriptors. Files are seen once by inode, directories too."""

    def __init__(self, fd: int, mount_point: str, limits: _Limits) -> None:
        self._top = fd
        self._mount_point = mount_point.rstrip("/")
        self._limits = limits
        self._deadline = time.monotonic() + limits.seconds
        self._now = time.time()
        self._device = (0, 0)
        self._stack: list[_Directory] = []
        self._seen: set[int] = set()
        self._files: list[tuple[int, int, FileUse]] = []
        self._directories: list[tuple[int, int, DirectoryUse]] = []
        self._found = self._recent = self._journal = 0
        self._entries = self._mounts = self._unreadable = 0
        self._oldest: float | None = None
        self._newest: FileUse | None = None
        self._stopped: str | None = None
        self._serial = 0

    def run(self) -> dict[str, Any]:
        size, used, _, _ = mountusage.usage_of(self._top)
        st = syscalls.status(self._top)
        self._device = (st.major, st.minor)
        try:
            if stat.S_ISDIR(st.mode):
                self._descend(self._top, "", st)
                self._walk()
            else:
                self._file("", st)
        finally:
            for directory in self._stack:
                if directory.fd >= 0:
                    os.close(directory.fd)
        return {
            "used": used if size else None,
            "found": self._found,
            "files": [_values(file) for _, _, file in sorted(self._files, reverse=True)],
            "directories": [_values(directory) for _, _, directory in sorted(self._directories, reverse=True)],
            "newest": _values(self._newest) if self._newest else None,
            "oldest": self._oldest,
            "recent": self._recent,
            "journal": self._journal,
            "entries": self._entries,
            "mounts": self._mounts,
            "unreadable": self._unreadable,
            "stopped": self._stopped,
        }

    def _walk(self) -> None:
        while self._stack:
            here = self._stack[-1]
            if here.waiting and self._stopped is None:
                name = here.waiting.pop()
                if here.fd >= 0:
                    self._enter(here, name)
                else:
                    self._unreadable += len(here.waiting) + 1
                    here.waiting.clear()
            else:
                self._leave()

    def _enter(self, parent: _Directory, name: str) -> None:
        try:
            fd = os.open(name, syscalls.O_PATH | os.O_DIRECTORY, dir_fd=parent.fd)
        except OSError as error:
            self._count_unless_gone(error)
            return
        try:
            st = syscalls.status(fd)
            if (st.major, st.minor) != self._device or st.mount_root or st.inode in self._seen:
                self._mounts += 1
                return
            self._descend(fd, name, st)
        except OSError as error:
            self._count_unless_gone(error)
        finally:
            os.close(fd)

    def _descend(self, fd: int, name: str, st: syscalls.Status) -> None:
        """Read the directory behind an O_PATH descriptor that was checked to be on this filesystem."""
        try:
            opened = os.open(".", _READ | os.O_NOATIME, dir_fd=fd)
        except PermissionError:  # O_NOATIME is for the owner; without it, tmpfiles cleaning may take the look for a use
            opened = os.open(".", _READ, dir_fd=fd)
        self._seen.add(st.inode)
        here = _Directory(opened, name, st.inode, [], bytes=st.blocks * 512)
        self._found += here.bytes
        self._stack.append(here)
        if len(self._stack) > _MAX_OPEN and (above := self._stack[-_MAX_OPEN]).fd >= 0:
            os.close(above.fd)
            above.fd = -1
        with os.scandir(opened) as entries:
            for entry in entries:
                if self._entries >= self._limits.entries:
                    self._stopped = "entries"
                elif self._entries % 128 == 0 and time.monotonic() > self._deadline:
                    self._stopped = "time"
                if self._stopped is not None:
                    return
                self._entries += 1
                self._entry(here, entry.name)

    def _entry(self, here: _Directory, name: str) -> None:
        try:
            st = syscalls.status(here.fd, os.fsencode(name))
        except OSError as error:
            self._count_unless_gone(error)
            return
        if (st.major, st.minor) != self._device or st.mount_root:
            self._mounts += 1
        elif stat.S_ISDIR(st.mode):
            here.waiting.append(name)
        else:
            self._file(name, st)

    def _file(self, name: str, st: syscalls.Status) -> None:
        if st.nlink > 1:
            if st.inode in self._seen:
                return
            self._seen.add(st.inode)
        used = st.blocks * 512
        self._found += used
        if self._stack:
            self._stack[-1].bytes += used
            self._stack[-1].files += 1
        if not stat.S_ISREG(st.mode):
            return
        newest = self._newest is None or st.mtime > self._newest.mtime
        large = used > 0 and (len(self._files) < self._limits.top or used > self._files[0][0])
        journal = name.endswith((".journal", ".journal~"))
        if newest or large or journal:
            file = FileUse(self._path(name), used, st.size, st.nlink, st.mtime)
            if newest:
                self._newest = file
            if large:
                self._keep(self._files, used, file)
            if journal and _JOURNAL.search(self._mount_point + file.path):
                self._journal += used
        if self._oldest is None or st.mtime < self._oldest:
            self._oldest = st.mtime
        if self._now - st.mtime < _RECENT_SECONDS:
            self._recent += used

    def _leave(self) -> None:
        done = self._stack[-1]
        if len(self._stack) > 1:
            parent = self._stack[-2]
            if parent.fd < 0 and self._stopped is None:
                self._open_parent(done, parent)
            parent.bytes += done.bytes
            parent.files += done.files
            parent.largest_child = max(parent.largest_child, done.bytes)
            if done.bytes > 0 and done.largest_child <= _EXPLAINED * done.bytes:
                kept = self._directories
                if len(kept) < self._limits.top or done.bytes > kept[0][0]:
                    use = DirectoryUse(self._path(), done.bytes, done.files)
                    self._keep(kept, done.bytes, use)
        self._stack.pop()
        if done.fd >= 0:
            os.close(done.fd)

    def _open_parent(self, child: _Directory, parent: _Directory) -> None:
        """Open a directory again from the one below, unless that has been moved elsewhere in the meantime."""
        if child.fd < 0:
            return
        try:
            fd = os.open("..", syscalls.O_PATH | os.O_DIRECTORY, dir_fd=child.fd)
        except OSError:
            return
        st = syscalls.status(fd)
        if (st.major, st.minor, st.inode) == (*self._device, parent.inode):
            parent.fd = fd
        else:
            os.close(fd)

    def _keep(self, heap: list[tuple[int, int, Any]], size: int, item: Any) -> None:
        self._serial -= 1  # of equals, the first met stays in front
        heapq.heappush(heap, (size, self._serial, item))
        if len(heap) > self._limits.top:
            heapq.heappop(heap)

    def _path(self, name: str = "") -> str:
        """The path of an entry of the directory the walk is in, or of that directory."""
        parts = [name] if name else []
        length = len(name)
        for directory in reversed(self._stack[1:]):
            length += len(directory.name) + 1
            if length > _MAX_PATH:
                return ".../" + "/".join(reversed(parts))
            parts.append(directory.name)
        return "/" + "/".join(reversed(parts))

    def _count_unless_gone(self, error: OSError) -> None:
        """What was removed, or replaced by a symlink or a file, since its name was read is no failure."""
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            self._unreadable += 1


def _values(use: FileUse | DirectoryUse) -> list[Any]:
    return [getattr(use, name) for name in use.__slots__]
