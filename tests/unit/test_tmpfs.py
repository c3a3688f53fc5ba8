"""Claims about kernel/tmpfs on answers of a capture: the real walks are in tests/kernel."""

import errno
from typing import Any

import pytest

from nodemem.kernel.capture import ReplayHost
from nodemem.kernel.mounts import MountPoint, Superblock
from nodemem.kernel.tmpfs import DirectoryUse, FileUse, inspect

MIB = 1 << 20

WALKED: dict[str, Any] = {
    "used": 9 * MIB,
    "found": 8 * MIB,
    "files": [["/log/a", 5 * MIB, 6 * MIB, 1, 100.5], ["/b", 3 * MIB, 3 * MIB, 2, 50.0]],
    "directories": [["/log", 5 * MIB, 1]],
    "newest": ["/log/a", 5 * MIB, 6 * MIB, 1, 100.5],
    "oldest": 50.0,
    "recent": 0,
    "journal": 0,
    "entries": 3,
    "mounts": 0,
    "unreadable": 0,
    "stopped": None,
}


def superblock(**changes: Any) -> Superblock:
    values: dict[str, Any] = {
        "device": "0:39",
        "fstype": "tmpfs",
        "source": "tmpfs",
        "options": "rw",
        "size_bytes": 16 * MIB,
        "used_bytes": 9 * MIB,
        "inodes": None,
        "inodes_used": None,
        "unlimited": False,
        "mounts": [MountPoint(1010, "/run", "/", 2, "rw", False)],
        "access_pid": 1,
        "access_path": "/proc/1/root/run",
        "why_unknown": None,
        "measured_at": 0.0,
    }
    return Superblock(**{**values, **changes})


def replay(answer: dict[str, Any]) -> ReplayHost:
    return ReplayHost({}, {"observe": {"tmpfs 0:39 contents": answer}})


def test_captured_walk_reads_as_the_live_one_did() -> None:
    found = inspect(replay({"value": WALKED}), superblock())
    assert found.files == [FileUse("/log/a", 5 * MIB, 6 * MIB, 1, 100.5), FileUse("/b", 3 * MIB, 3 * MIB, 2, 50.0)]
    assert found.directories == [DirectoryUse("/log", 5 * MIB, 1)]
    assert (found.mount_point, found.root, found.device) == ("/run", "/", "0:39")
    assert (found.used_bytes, found.found_bytes, found.not_found_bytes) == (9 * MIB, 8 * MIB, MIB)
    assert (found.oldest_mtime, found.newest_mtime) == (50.0, 100.5)


def test_fewer_may_be_asked_of_a_capture_than_it_holds() -> None:
    assert [file.path for file in inspect(replay({"value": WALKED}), superblock(), top=1).files] == ["/log/a"]


def test_covered_one_is_named_by_where_it_is_mounted() -> None:
    covered = superblock(access_path=None, mounts=[MountPoint(1010, "/run", "/", 2, "rw", True)])
    assert inspect(replay({"value": WALKED}), covered).mount_point == "/run"


def test_without_a_limit_nothing_can_be_missing_from_the_count() -> None:
    found = inspect(replay({"value": {**WALKED, "used": None}}), superblock(unlimited=True, used_bytes=None))
    assert (found.used_bytes, found.not_found_bytes) == (None, None)


def test_files_written_during_the_walk_do_not_make_the_rest_negative() -> None:
    assert inspect(replay({"value": {**WALKED, "used": MIB}}), superblock()).not_found_bytes == 0


def test_error_of_the_kernel_comes_through() -> None:
    with pytest.raises(PermissionError):
        inspect(replay({"errno": errno.EACCES}), superblock())
