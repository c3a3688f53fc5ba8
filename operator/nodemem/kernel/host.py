"""One node's kernel files: everything above reads through a ``Host``.

That is what makes a report reproducible: ``capture.RecordingHost`` keeps each answer of the live kernel, and
``capture.ReplayHost`` gives the same answers on another machine.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_CHUNK = 65536
_FLAGS = os.O_RDONLY | os.O_CLOEXEC
_open, _read, _close = os.open, os.read, os.close  # found once: thousands of files are read in each scan


@dataclass(frozen=True, slots=True)
class FileStat:
    """The few values of stat(2) that nodemem uses. ``blocks`` are 512-byte units, whatever the filesystem."""

    device: str
    inode: int
    blocks: int
    nlink: int
    size: int
    mode: int
    mtime: float


@dataclass(slots=True)
class FilesystemUsage:
    """statvfs(3) in bytes. A filesystem mounted without a limit reports ``size_bytes`` 0. Treat it as frozen."""

    size_bytes: int
    used_bytes: int
    inodes: int
    inodes_used: int


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Something the report had to do without: what, why (the kernel's words), and how many times."""

    what: str
    why: str
    count: int = 1


def device_number(st_dev: int) -> str:
    """A ``st_dev`` in the ``major:minor`` notation of /proc/<pid>/mountinfo."""
    return f"{os.major(st_dev)}:{os.minor(st_dev)}"


class Host:
    """The live kernel. ``root`` puts another directory in front of /proc and /sys.

    Every method takes a path as built from ``proc`` or ``sys`` and raises OSError as the kernel does.
    """

    live = True

    def __init__(self, root: str = "") -> None:
        self.root = root.rstrip("/")
        self.proc = f"{self.root}/proc"
        self.sys = f"{self.root}/sys"
        self.page_size = os.sysconf("SC_PAGE_SIZE")
        self.clock_ticks = os.sysconf("SC_CLK_TCK")

    def now(self) -> float:
        """Unix time of the observation in seconds."""
        return time.time()

    def read(self, path: str) -> bytes:
        """The whole file; one read(2) more than it has chunks."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.read(fd, _CHUNK)
            if not data:
                return data
            parts = [data]
            while data := os.read(fd, _CHUNK):
                parts.append(data)
            return parts[0] if len(parts) == 1 else b"".join(parts)
        finally:
            os.close(fd)

    def read_small(self, path: str) -> bytes:
        """The first 4095 bytes in a single read(2): for /proc files that are known to be shorter."""
        fd = _open(path, _FLAGS)
        try:
            return _read(fd, 4095)
        finally:
            _close(fd)

    def listdir(self, path: str) -> list[str]:
        return os.listdir(path)

    def readlink(self, path: str) -> str:
        return os.readlink(path)

    def stat(self, path: str) -> FileStat:
        """stat(2), following a final symlink (so that /proc/<pid>/fd/<n> answers for the open file)."""
        st = os.stat(path)
        return FileStat(
            device_number(st.st_dev), st.st_ino, st.st_blocks, st.st_nlink, st.st_size, st.st_mode, st.st_mtime
        )

    def statvfs(self, path: str) -> FilesystemUsage:
        vfs = os.statvfs(path)
        return FilesystemUsage(
            size_bytes=vfs.f_blocks * vfs.f_frsize,
            used_bytes=(vfs.f_blocks - vfs.f_bfree) * vfs.f_frsize,
            inodes=vfs.f_files,
            inodes_used=vfs.f_files - vfs.f_ffree,
        )

    def observe(self, key: str, measure: Callable[[], Any]) -> Any:
        """An observation that is no file read (a walk of a tmpfs, a look from inside another namespace).

        ``measure`` returns JSON values or raises OSError; ``key`` names it in a capture. A replay never calls it.
        """
        return measure()
