"""Initial RAM filesystems ("newc" cpio, Documentation/driver-api/early-userspace/buffer-format.rst), written by hand.

The kernel unpacks archives that are laid end to end, so the large part (the userland) is built once and kept, and what
changes (nodemem, the job) is appended at each boot.
"""

import os
import stat
from collections.abc import Iterable
from pathlib import Path


def directory(path: str) -> bytes:
    return _entry(path, stat.S_IFDIR | 0o755, b"")


def file(path: str, data: bytes, *, executable: bool = False) -> bytes:
    return _entry(path, stat.S_IFREG | (0o755 if executable else 0o644), data)


def symlink(path: str, target: str) -> bytes:
    return _entry(path, stat.S_IFLNK | 0o777, os.fsencode(target))


def character_device(path: str, major: int, minor: int) -> bytes:
    return _entry(path, stat.S_IFCHR | 0o600, b"", major, minor)


def tree(top: Path, below: str = "") -> Iterable[bytes]:
    """Everything in the directory ``top``, as ``below`` in the guest."""
    for parent, folders, names in os.walk(top):
        at = Path(below) / Path(parent).relative_to(top)
        folders.sort()
        links = [name for name in folders if Path(parent, name).is_symlink()]
        if str(at) != ".":
            yield directory(str(at))
        for name in sorted(names + links):
            path = Path(parent, name)
            if path.is_symlink():
                yield symlink(str(at / name), os.readlink(path))
            elif path.is_file():
                yield file(str(at / name), path.read_bytes(), executable=os.access(path, os.X_OK))


def archive(entries: Iterable[bytes]) -> bytes:
    data = b"".join(entries) + _entry("TRAILER!!!", 0, b"")
    return data + b"\0" * (-len(data) % 512)


def _entry(path: str, mode: int, data: bytes, major: int = 0, minor: int = 0) -> bytes:
    name = os.fsencode(path.lstrip("/")) + b"\0"
    # Each file has an inode of its own as long as nlink is 1: the kernel then looks for no hard links.
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    return _padded(head) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
