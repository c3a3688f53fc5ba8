"""What /proc shows of memory without a path, parsed: mappings, System V segments, descriptors, graphics buffers.

Data in, data out, but for the last part: what a memfd of our own, or a child in other namespaces, asks of the live
kernel for shmem.py.
"""

import errno
import os
import re
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from nodemem.kernel import syscalls
from nodemem.kernel.host import device_number

Kind = Literal["sysv", "memfd", "sharedAnonymous", "deletedOpen", "kernelInternal"]

DELETED = " (deleted)"
"""What the kernel writes behind the name of a file that has none any more."""

_SHM_DEST = 0o1000

# start, end, permissions, minor, inode, name. Only devices of major 0 that are a filesystem: each tmpfs has such a
# number.
_MAPPING = re.compile(
    rb"^([0-9a-f]+)-([0-9a-f]+) ([-rwxsp]{4}) [0-9a-f]+ 00:(?!0+ )([0-9a-f]+) (\d{1,20})(?: +(.*))?$", re.MULTILINE
)
_ANY_MAPPING = re.compile(rb" 00:(?!0+ )")  # most processes map no such file: this is told ten times as fast
_SMAPS = re.compile(rb"^([0-9a-f]+-[0-9a-f]+) |^Rss: +(\d+) kB", re.MULTILINE)
_MOUNT = re.compile(rb"^(\d+) \d+ (\d+:\d+) ", re.MULTILINE)
_DRM = re.compile(rb"^(drm-[\w-]+):[ \t]*(\S+)(?:[ \t]+([KM]iB))?", re.MULTILINE)
_DRM_SYSTEM_MEMORY = (b"drm-resident-memory", b"drm-resident-system0")  # shmem-backed: GEM helpers, msm; i915
_UNITS = {b"": 1, b"KiB": 1 << 10, b"MiB": 1 << 20}


class MappedFile(NamedTuple):
    """A line of /proc/<pid>/maps. ``range`` is the name of its entry in map_files, ``name`` without the deleted
    mark."""

    range: str
    length_bytes: int
    writable: bool
    shared: bool
    device: str
    inode: int
    name: str
    deleted: bool


class Segment(NamedTuple):
    """A line of /proc/sysvipc/shm (ipc/shm.c). Sizes are of pages that exist, ``size_bytes`` is what was asked for."""

    shmid: int
    key: int
    size_bytes: int
    creator_pid: int
    attached: int
    uid: int
    rss_bytes: int
    swap_bytes: int
    removed: bool


def parse_maps(data: bytes, devices: Container[str] | None = None) -> Iterator[MappedFile]:
    """The mappings of files on ``devices`` (all of major 0 if None). Lines of another form are passed over."""
    if _ANY_MAPPING.search(data) is None:
        return
    for match in _MAPPING.finditer(data):
        start, end, permissions, minor, inode, raw = match.groups(b"")
        device = f"0:{int(minor, 16)}"
        if devices is not None and device not in devices:
            continue
        name = _unescape(raw)
        low, high = int(start, 16), int(end, 16)
        deleted = name.endswith(DELETED)
        yield MappedFile(
            range=f"{low:x}-{high:x}",
            length_bytes=high - low,
            writable=permissions[1:2] == b"w",
            shared=permissions[3:4] == b"s",
            device=device,
            inode=int(inode),
            name=name[: -len(DELETED)] if deleted else name,
            deleted=deleted,
        )


def parse_sysvipc(data: bytes) -> list[Segment]:
    """/proc/sysvipc/shm; columns are found by the header. Lines of another form are passed over."""
    lines = data.split(b"\n")
    names = lines[0].split()
    found: list[Segment] = []
    for line in lines[1:]:
        row = dict(zip(names, line.split(), strict=False))
        try:
            found.append(
                Segment(
                    shmid=int(row[b"shmid"]),
                    key=int(row[b"key"]) & 0xFFFFFFFF,
                    size_bytes=int(row[b"size"]),
                    creator_pid=int(row[b"cpid"]),
                    attached=int(row[b"nattch"]),
                    uid=int(row[b"uid"]),
                    rss_bytes=int(row[b"rss"]),
                    swap_bytes=int(row[b"swap"]),
                    removed=bool(int(row[b"perms"], 8) & _SHM_DEST),
                )
            )
        except (KeyError, ValueError):
            continue
    return found


def parse_smaps(data: bytes) -> Iterator[tuple[str, int]]:
    """/proc/<pid>/smaps: the range of each mapping, named as ``MappedFile.range``, and its resident bytes."""
    where = ""
    for match in _SMAPS.finditer(data):
        if match[1] is not None:
            low, _, high = match[1].partition(b"-")
            where = f"{int(low, 16):x}-{int(high, 16):x}"
        elif where:
            yield where, int(match[2]) * 1024
            where = ""


def parse_mount_devices(data: bytes) -> Iterator[tuple[bytes, str]]:
    """/proc/<pid>/mountinfo: the ids of the mounts and their devices alone."""
    for match in _MOUNT.finditer(data):
        yield match[1], match[2].decode("ascii")


def parse_drm(data: bytes) -> tuple[tuple[bytes, ...], int]:
    """The fdinfo of a graphics device: which client it is (Documentation/gpu/drm-usage-stats.rst), and how many bytes
    of system memory its buffers have."""
    values: dict[bytes, tuple[bytes, bytes]] = {}
    for match in _DRM.finditer(data):
        values.setdefault(match[1], (match[2], match[3] or b""))
    client = tuple(values.get(name, (b"",))[0] for name in (b"drm-driver", b"drm-pdev", b"drm-client-id"))
    size = 0
    for name in _DRM_SYSTEM_MEMORY:
        number, unit = values.get(name, (b"0", b""))
        size += int(number) * _UNITS[unit] if number.isdigit() else 0
    return client, size


def inode_in(link: str) -> int | None:
    """Of a namespace, from a link such as ``ipc:[4026531839]``."""
    number = link.partition("[")[2].rstrip("]")
    return int(number) if number.isdecimal() else None


def internal_kind(name: str) -> Kind:
    """By the names the kernel gives (mm/memfd.c, ipc/shm.c, mm/shmem.c); drivers choose their own ("drm mm object")."""
    if name.startswith("/memfd:"):
        return "memfd"
    if name.startswith("/SYSV"):
        return "sysv"
    return "sharedAnonymous" if name == "/dev/zero" else "kernelInternal"


def mount_id_of(fdinfo: bytes) -> bytes | None:
    """None before Linux 3.15."""
    at = fdinfo.find(b"\nmnt_id:")
    return fdinfo[at + 8 : fdinfo.find(b"\n", at + 8)].strip() if at >= 0 else None


def parse_fdinfo(data: bytes) -> dict[bytes, bytes]:
    return {name: value.strip() for name, _, value in (line.partition(b":") for line in data.split(b"\n"))}


def _unescape(name: bytes) -> str:
    """maps writes only a newline as octal, so a backslash and three digits in a real name can't be told from it."""
    return os.fsdecode(name.replace(b"\\012", b"\n"))


# --- run on the live kernel only, by way of Host.observe: JSON values


def internal_mount() -> list[str]:
    fd = os.memfd_create("nodemem")
    try:
        with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
            mount_id = mount_id_of(file.read()) or b""
        return [device_number(os.fstat(fd).st_dev), mount_id.decode("ascii")]
    finally:
        os.close(fd)


def read_tables(proc: str, wanted: Mapping[int, int]) -> dict[str, str | list[int]]:
    """In a child: the segments of each IPC namespace as text, or the errno. Namespaces without a segment are left
    out."""
    tables: dict[str, str | list[int]] = {}
    for inode, pid in wanted.items():
        try:
            fd = os.open(f"{proc}/{pid}/ns/ipc", os.O_RDONLY | os.O_CLOEXEC)
            try:
                if os.fstat(fd).st_ino != inode:
                    continue
                syscalls.setns(fd)
            finally:
                os.close(fd)
            with open(f"{proc}/sysvipc/shm", "rb") as file:
                data = file.read()
            if data.count(b"\n") > 1:
                tables[str(inode)] = os.fsdecode(data)
        except (FileNotFoundError, ProcessLookupError):
            continue
        except OSError as error:
            tables[str(inode)] = [error.errno or errno.EIO]
    return tables


def usage_of(path: str) -> list[str | int]:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return _usage_of_fd(fd)
    finally:
        os.close(fd)


def _usage_of_fd(fd: int) -> list[str | int]:
    magic = syscalls.fd_magic(fd)
    vfs = os.fstatvfs(fd)
    used = (vfs.f_blocks - vfs.f_bfree) * vfs.f_frsize
    return [syscalls.fd_device(fd), magic, vfs.f_blocks * vfs.f_frsize, used, vfs.f_files, vfs.f_files - vfs.f_ffree]


def directories(proc: str, pids: Iterable[int], known: Collection[str]) -> dict[str, list[Any]]:
    """In a child: of each tmpfs not ``known`` that somebody has as working directory: path, holders, usage."""
    known = set(known)
    found: dict[str, list[Any]] = {}
    holders: dict[str, list[int]] = {}
    for pid in pids:
        path = f"{proc}/{pid}/cwd"
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            device = syscalls.fd_device(fd)
            if device in known:
                continue
            if device not in found:
                _, magic, *usage = _usage_of_fd(fd)
                if magic != syscalls.TMPFS_MAGIC:
                    known.add(device)
                    continue
                found[device] = [path, holders.setdefault(device, []), *usage]
            holders[device].append(pid)
        except OSError:
            continue
        finally:
            os.close(fd)
    return found
