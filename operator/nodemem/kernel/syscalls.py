"""The system calls that Python's standard library does not offer, with errno turned into OSError.

Nothing here decides anything: arguments go to the kernel as they are. Paths are bytes.
"""

import ctypes
import errno
import os
import struct
from functools import lru_cache
from typing import Any, NamedTuple

CLONE_NEWNS = 0x00020000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_SYNCHRONOUS = 0x10
MS_REMOUNT = 0x20
MS_MANDLOCK = 0x40
MS_DIRSYNC = 0x80
MS_NOSYMFOLLOW = 0x100
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_RELATIME = 0x200000
MS_STRICTATIME = 0x1000000
MS_LAZYTIME = 0x2000000
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_RECONFIGURE = 7

RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_IN_ROOT = 0x10
RESOLVE_CACHED = 0x20

O_PATH = os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW

TMPFS_MAGIC = 0x01021994
RAMFS_MAGIC = 0x858458F6
NSFS_MAGIC = 0x6E736673

_SYS_FSCONFIG = 431  # these are the same on every architecture but alpha
_SYS_FSPICK = 433
_SYS_OPENAT2 = 437
_FSPICK_CLOEXEC = 0x1
_FSPICK_EMPTY_PATH = 0x8
_STATX_FLAGS = 0x1000 | 0x4000 | 0x800 | 0x100  # EMPTY_PATH, STATX_DONT_SYNC, NO_AUTOMOUNT, SYMLINK_NOFOLLOW
_STATX_BASIC_STATS = 0x7FF
_STATX_ATTR_MOUNT_ROOT = 0x2000
_PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)
_statx: Any = getattr(_libc, "statx", None)  # glibc 2.28, musl 1.2.0
_long = ctypes.c_long


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_OPENAT2, _HOW_SIZE = _long(_SYS_OPENAT2), _long(ctypes.sizeof(_OpenHow))


@lru_cache
def _how(flags: int, resolve: int) -> Any:
    return ctypes.byref(_OpenHow(flags, 0, resolve))


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def setns(fd: int, kind: int = 0) -> None:
    _check(_libc.setns(fd, kind), "setns")


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "unshare")


def mount(source: bytes | None, target: bytes, fstype: bytes | None, flags: int, options: bytes | None = None) -> None:
    _check(_libc.mount(source, target, fstype, ctypes.c_ulong(flags), options), "mount")


def umount(target: bytes, flags: int = 0) -> None:
    _check(_libc.umount2(target, flags), "umount2")


def fspick(fd: int) -> int:
    """A configuration context for the filesystem whose mount an open descriptor (O_PATH too) is the top of.

    Linux 5.2: ENOSYS before. EINVAL where the descriptor is not the top of a mount. The caller closes it.
    """
    return _check(
        _libc.syscall(_long(_SYS_FSPICK), _long(fd), b"", _long(_FSPICK_EMPTY_PATH | _FSPICK_CLOEXEC)), "fspick"
    )


def fsconfig(context: int, command: int, key: bytes | None = None, value: bytes | None = None) -> None:
    """The kernel's words on a failure are in the context's log: ``context_log``."""
    _check(_libc.syscall(_long(_SYS_FSCONFIG), _long(context), _long(command), key, value, _long(0)), "fsconfig")


def context_log(context: int) -> list[str]:
    """The messages in the log of a configuration context, oldest first; each is read once.

    The first letter is the severity: ``e tmpfs: Too small a size for current use``.
    """
    messages: list[str] = []
    while True:
        try:
            messages.append(os.fsdecode(os.read(context, 8192)).rstrip("\n"))
        except OSError as error:
            if error.errno == errno.ENODATA:
                return messages
            raise


def die_with_parent(signal: int) -> None:
    """Have the kernel send ``signal`` to this process when the thread that forked it ends (prctl(2))."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal)), "prctl")


def openat2(directory: int, path: bytes, flags: int, resolve: int) -> int:
    """openat2(2), Linux 5.6: ENOSYS before, EINVAL for a ``resolve`` flag that this kernel does not know.

    A seccomp profile older than the call answers EPERM where it should answer ENOSYS.
    """
    return _check(_libc.syscall(_OPENAT2, directory, path, _how(flags, resolve), _HOW_SIZE), "openat2")


class Status(NamedTuple):
    """What statx(2) says. ``blocks`` are 512-byte units, ``mtime`` is Unix time, ``mount_root`` needs Linux 5.8."""

    mount_root: bool
    nlink: int
    mode: int
    inode: int
    size: int
    blocks: int
    mtime: float
    major: int
    minor: int


_statx_layout = struct.Struct("=8xQI8xH2xQQQ56xqI12xII")
_statx_device = struct.Struct("=136xII")
_statx_buffer = ctypes.create_string_buffer(256)


def status(directory: int, name: bytes = b"") -> Status:
    """Of an entry of an open directory, not following it, or of the descriptor itself (O_PATH too) without ``name``.

    Never asks a network or FUSE server, as fstatat(2) would when one is mounted there: AT_STATX_DONT_SYNC answers from
    what the kernel holds. Before Linux 4.11 there is only fstatat.
    """
    if _statx is not None:
        if _statx(directory, name, _STATX_FLAGS, _STATX_BASIC_STATS, _statx_buffer) == 0:
            attributes, nlink, mode, inode, size, blocks, seconds, nanoseconds, major, minor = (
                _statx_layout.unpack_from(_statx_buffer)
            )
            mount_root = bool(attributes & _STATX_ATTR_MOUNT_ROOT)
            return Status(mount_root, nlink, mode, inode, size, blocks, seconds + nanoseconds / 1e9, major, minor)
        number = ctypes.get_errno()
        if number not in (errno.ENOSYS, errno.EPERM):
            raise OSError(number, os.strerror(number), name or None)
    st = os.stat(name, dir_fd=directory, follow_symlinks=False) if name else os.fstat(directory)
    major, minor = os.major(st.st_dev), os.minor(st.st_dev)
    return Status(False, st.st_nlink, st.st_mode, st.st_ino, st.st_size, st.st_blocks, st.st_mtime, major, minor)


def fd_device(fd: int) -> str:
    """``major:minor`` of the filesystem that an open descriptor is on."""
    if _statx is not None and _statx(fd, b"", _STATX_FLAGS, 0, _statx_buffer) == 0:
        major, minor = _statx_device.unpack_from(_statx_buffer)
    else:
        *_, major, minor = status(fd)
    return f"{major}:{minor}"


def fd_magic(fd: int) -> int:
    """``f_type`` of fstatfs(2): the kind of filesystem, as in linux/magic.h."""
    buffer = ctypes.create_string_buffer(256)
    _check(_libc.fstatfs(fd, buffer), "fstatfs")
    kind: int = (ctypes.c_uint if os.uname().machine.startswith("s390") else _long).from_buffer(buffer).value
    return kind & 0xFFFFFFFF


def open_beneath(root: int, path: str, *, flags: int = O_PATH, cached_only: bool = False) -> int:
    """A descriptor for the absolute ``path`` as seen from the directory ``root``, following no symlink on the way.

    ``cached_only`` fails with EAGAIN where the kernel would have to ask a filesystem's server (Linux 5.12; EAGAIN on
    older kernels always). Raises ELOOP or ENOTDIR at a symlink. The caller closes the descriptor.
    """
    target = os.fsencode(path)
    resolve = RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
    if cached_only:
        try:
            return openat2(root, target, flags, resolve | RESOLVE_CACHED)
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.EINVAL, errno.EPERM):
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), path) from None
            raise
    try:
        return openat2(root, target, flags, resolve)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            raise
    return _open_by_component(root, target, flags)


def _open_by_component(root: int, path: bytes, flags: int) -> int:
    names = [name for name in path.split(b"/") if name not in (b"", b".")]
    if b".." in names:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
    if not names:
        return os.open(b".", flags & ~os.O_NOFOLLOW, dir_fd=root)
    directory = root
    try:
        for name in names[:-1]:
            below = os.open(name, O_PATH | os.O_DIRECTORY, dir_fd=directory)
            if directory != root:
                os.close(directory)
            directory = below
        fd = os.open(names[-1], flags | os.O_NOFOLLOW, dir_fd=directory)
    finally:
        if directory != root:
            os.close(directory)
    return fd


SYSLOG_ACTION_READ_ALL = 3
SYSLOG_ACTION_SIZE_BUFFER = 10


def kernel_log() -> bytes:
    """What is in the kernel's ring buffer, by syslog(2): ``<prio>[   12.345678] text`` lines. Takes nothing away from
    other readers. Raises OSError (EPERM without CAP_SYSLOG, where kernel.dmesg_restrict is set)."""
    size = _klogctl(SYSLOG_ACTION_SIZE_BUFFER, None, 0)
    buffer = ctypes.create_string_buffer(size)
    length = _klogctl(SYSLOG_ACTION_READ_ALL, buffer, size)
    return ctypes.string_at(buffer, length)


def _klogctl(action: int, buffer: Any, size: int) -> int:
    done = int(_libc.klogctl(action, buffer, size))
    if done < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "syslog(2)")
    return done
