"""Set the size of a live tmpfs, and nothing else of it. A superblock (mounts.py) and a wish in, a ``Resized`` out.

What is acted on is what was checked: one descriptor, opened without following a symlink, whose filesystem kind, device
number and mount id are compared with the scan's while it pins the mount. Whatever is mounted over the path afterwards,
it is never touched.

Two methods. ``fspick`` (Linux 5.2) reconfigures the filesystem behind the descriptor and names only what is to change.
``mount`` is MS_REMOUNT, for older kernels: it resets each flag and may reset each option that it isn't given again, so
all are read from mountinfo first, and it is done by a short-lived child in a private copy of the mount namespace: the
flags of the mounts that others see are out of its reach.
"""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Any, Literal

from nodemem.kernel import mountusage, syscalls
from nodemem.kernel.host import FilesystemUsage, Host
from nodemem.kernel.mountinfo import Mount, parse_mountinfo, unescape
from nodemem.kernel.mounts import MountPoint, Superblock
from nodemem.kernel.namespaces import in_namespaces
from nodemem.kernel.tmpfs import open_mount

Method = Literal["fspick", "mount"]
Refuse = Callable[[Superblock], str | None]

_LARGEST = (1 << 63) - (1 << 20)  # above, the kernel's own arithmetic overflows, and 2**64 would mean "no limit"
_LARGEST_INODES = 1 << 53
_MIB = 1 << 20

_MOUNT_FLAGS = {
    "nosuid": syscalls.MS_NOSUID,
    "nodev": syscalls.MS_NODEV,
    "noexec": syscalls.MS_NOEXEC,
    "nosymfollow": syscalls.MS_NOSYMFOLLOW,
    "noatime": syscalls.MS_NOATIME,
    "nodiratime": syscalls.MS_NODIRATIME,
    "relatime": syscalls.MS_RELATIME,
}
_SUPERBLOCK_FLAGS = {
    "ro": syscalls.MS_RDONLY,
    "rw": 0,
    "sync": syscalls.MS_SYNCHRONOUS,
    "dirsync": syscalls.MS_DIRSYNC,
    "mand": syscalls.MS_MANDLOCK,
    "lazytime": syscalls.MS_LAZYTIME,
}
_LIMITS = ("size", "nr_blocks", "nr_inodes")
_NO_FSPICK = (errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP)


class Reason(StrEnum):
    """Why a resize was not done. The values are for programs; the message of the error is for people."""

    NOT_TMPFS = "NotTmpfs"
    DEVTMPFS = "Devtmpfs"
    ROOTFS = "Rootfs"
    CGROUP_ROOT = "CgroupRoot"
    OWN_NAMESPACE = "OwnNamespace"
    PROTECTED = "Protected"
    UNLIMITED = "Unlimited"
    BAD_SIZE = "BadSize"
    CAPTURE = "Capture"
    IN_USE = "InUse"
    GONE = "Gone"
    UNREACHABLE = "Unreachable"
    NOT_PERMITTED = "NotPermitted"
    KERNEL_REFUSED = "KernelRefused"
    NOT_HELD = "NotHeld"


class ResizeError(Exception):
    """The tmpfs was not resized; the message is a sentence with the place, the cause, and what to do instead.

    ``kernel_words``: what the kernel said when it was the one to refuse, as from a context's log ("tmpfs: Too small a
    size for current use"). ``fits_bytes`` and ``fits_inodes`` go with InUse.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        kernel_words: str | None = None,
        fits_bytes: int | None = None,
        fits_inodes: int | None = None,
    ) -> None:
        super().__init__(reason, message, kernel_words, fits_bytes, fits_inodes)
        self.reason = reason
        self.message = message
        self.kernel_words = kernel_words
        self.fits_bytes = fits_bytes
        self.fits_inodes = fits_inodes

    def __str__(self) -> str:
        return self.message


class Refused(ResizeError):
    """Asking again changes nothing: this tmpfs is not to be resized, or not to what was asked. Nothing was tried."""


class InUse(ResizeError):
    """It holds too much now; worth asking again later, or with at least ``fits_bytes`` and ``fits_inodes``."""


class Failed(ResizeError):
    """It should have worked. Gone, Unreachable: scan again first; NotHeld: somebody else changes it, too."""


@dataclass(frozen=True, slots=True)
class Requested:
    """``size_bytes`` in whole pages, rounded up as the kernel does. None: left as it is."""

    size_bytes: int | None
    inodes: int | None


@dataclass(frozen=True, slots=True)
class Resized:
    """``before`` and ``after`` are statvfs of the descriptor acted on; of a dry run, ``after`` is what would be.

    ``method`` is None where nothing had to be done.
    """

    device: str
    mount_point: str
    before: FilesystemUsage
    after: FilesystemUsage
    requested: Requested
    method: Method | None
    dry_run: bool

    @property
    def changed(self) -> bool:
        return self.method is not None


def resize(
    host: Host,
    superblock: Superblock,
    *,
    size_bytes: int | None = None,
    inodes: int | None = None,
    headroom_percent: float = 10,
    dry_run: bool = False,
    method: Method | None = None,
    refuse: Refuse | None = None,
    protect_namespace: int | None = None,
) -> Resized:
    """Set size and number of inodes of a tmpfs in whatever mount namespace it is; what is None stays as it is.

    A limit is never lowered below what is in use plus ``headroom_percent`` of that; raising one is always right, and
    one that is as asked already is left alone. ``method`` forces one (default: fspick, else mount). ``refuse`` may say
    a sentence why not. ``protect_namespace`` refuses what is mounted as a whole in that mount namespace, such as the
    caller's own.

    Needs CAP_SYS_ADMIN and CAP_SYS_PTRACE; for ``mount`` and for a covered tmpfs CAP_SYS_CHROOT. Raises Refused, InUse
    or Failed, and ValueError when called with nothing to set or a negative headroom.
    """
    if size_bytes is None and inodes is None:
        raise ValueError("neither size_bytes nor inodes given")
    if not 0 <= headroom_percent < 1e6:
        raise ValueError(f"headroom_percent {headroom_percent}: expected a number from 0 on")
    if (why_not := refusal(superblock, refuse=refuse, protect_namespace=protect_namespace)) is not None:
        raise why_not
    if not host.live:
        raise Refused(Reason.CAPTURE, f"{_name(superblock)}: this is a capture; only a running machine can be changed")
    wish = _Wish(
        _requested(superblock, host.page_size, size_bytes, inodes), headroom_percent, dry_run, method, host.page_size
    )
    if superblock.access_path is not None and superblock.access_pid is not None:
        return _resize_open(host, superblock, wish)
    return _resize_covered(host, superblock, wish)


# --- what is refused before anything is opened


def refusal(
    superblock: Superblock, *, refuse: Refuse | None = None, protect_namespace: int | None = None
) -> Refused | None:
    """Why ``resize`` would refuse this tmpfs whatever the size, without touching it."""
    try:
        _refuse_kind(superblock)
        _refuse_place(superblock, protect_namespace)
    except Refused as error:
        return error
    why = None if refuse is None else refuse(superblock)
    return None if why is None else Refused(Reason.PROTECTED, why)


def _name(superblock: Superblock) -> str:
    point = next((point for point in superblock.mounts if not point.hidden), next(iter(superblock.mounts), None))
    return f"{point.path} ({superblock.device})" if point is not None else superblock.device


def _refuse_kind(superblock: Superblock) -> None:
    name, kind = _name(superblock), superblock.fstype
    if kind == "devtmpfs":
        raise Refused(
            Reason.DEVTMPFS,
            f"{name} is a devtmpfs: the kernel keeps device nodes there for the whole machine, in containers too; "
            "what programs leave in /dev belongs in /dev/shm, which can be limited",
        )
    if kind == "rootfs":
        raise Refused(
            Reason.ROOTFS,
            f"{name} is the kernel's initial root file system; choose a tmpfs that was mounted later",
        )
    if kind != "tmpfs":
        raise Refused(Reason.NOT_TMPFS, f"{name} is {kind}, not tmpfs: only the size of a tmpfs can be set")
    at_cgroups = any(point.path == "/sys/fs/cgroup" for point in superblock.mounts)
    if at_cgroups and (superblock.used_bytes or 0) < _MIB:  # with data in it, it is a volume that a container put there
        raise Refused(
            Reason.CGROUP_ROOT,
            f"{name} holds the mount points of the cgroup hierarchies and no data; there is nothing to limit",
        )


def _refuse_place(superblock: Superblock, protect_namespace: int | None) -> None:
    if protect_namespace is None:
        return
    # Only what is mounted there as a whole: runtimes bind single files of the host's /run into every container.
    own = next((p for p in superblock.mounts if p.namespace == protect_namespace and p.root == "/"), None)
    if own is not None:
        raise Refused(
            Reason.OWN_NAMESPACE,
            f"{_name(superblock)} is mounted at {own.path} in the container that would resize it, which must not "
            "change its own; set sizeLimit on its volume instead",
        )


def _requested(superblock: Superblock, page_size: int, size_bytes: int | None, inodes: int | None) -> Requested:
    name = _name(superblock)
    if size_bytes is not None:
        if size_bytes <= 0:
            raise Refused(
                Reason.BAD_SIZE,
                f"{name}: a size of {size_bytes} would lift the limit for good, since the kernel can't set one again; "
                f"write at least {page_size} bytes",
            )
        if size_bytes > _LARGEST:
            raise Refused(Reason.BAD_SIZE, f"{name}: {size_bytes} bytes is no size; write one below 8Ei")
        size_bytes = -(-size_bytes // page_size) * page_size
    if inodes is not None:
        if inodes <= 0:
            raise Refused(
                Reason.BAD_SIZE,
                f"{name}: {inodes} inodes would lift that limit for good, since the kernel can't set one again; "
                "write at least 1",
            )
        if inodes > _LARGEST_INODES:
            raise Refused(Reason.BAD_SIZE, f"{name}: {inodes} inodes are too many; write at most {_LARGEST_INODES}")
    return Requested(size_bytes, inodes)


# --- the way there


@dataclass(frozen=True, slots=True)
class _Wish:
    requested: Requested
    headroom_percent: float
    dry_run: bool
    method: Method | None
    page_size: int


@dataclass(frozen=True, slots=True)
class _Target:
    """An open, checked place: ``mountinfo`` shows it, ``remount(flags, options)`` is mount(2) on it, and without flags
    only goes there. ``mount`` is its line; ``fd`` pins it, so that neither its mount id nor its device number can
    become another's.
    """

    name: str
    fd: int
    mount: Mount
    mountinfo: Callable[[], bytes]
    remount: Callable[[int | None, bytes], None]


def _resize_open(host: Host, superblock: Superblock, wish: _Wish) -> Resized:
    name = _name(superblock)
    pid = superblock.access_pid
    assert pid is not None
    proc = -1
    try:
        fd = open_mount(host, superblock)
    except OSError as error:
        raise _not_opened(name, error) from error
    try:
        proc = os.open(host.proc, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        mountinfo = partial(host.read, f"{host.proc}/{pid}/mountinfo")
        mount = _line(mountinfo(), _mount_id(proc, fd))
        point = _same_mount(superblock, mount, copied=False)
        if mount is None or point is None:
            raise Failed(Reason.GONE, f"{name}: another mount is there since it was looked at; look again")

        def remount(flags: int | None, options: bytes) -> None:
            def inside() -> None:
                os.fchdir(fd)
                syscalls.unshare(syscalls.CLONE_NEWNS)  # the working directory moves to the copy
                if flags is not None:
                    syscalls.mount(b"none", b".", b"tmpfs", flags, options)

            in_namespaces(pid, ("mnt",), inside, proc=host.proc, inodes={"mnt": point.namespace})

        return _act(_Target(name, fd, mount, mountinfo, remount), superblock, wish)
    except OSError as error:
        raise _failed(name, error) from error
    finally:
        os.close(fd)
        if proc >= 0:
            os.close(proc)


def _resize_covered(host: Host, superblock: Superblock, wish: _Wish) -> Resized:
    """Below another mount: inside the child that takes the cover off in its private copy of the namespace."""
    name, pid = _name(superblock), superblock.access_pid
    if pid is None:
        why = superblock.why_unknown or "no path leads there"
        raise Failed(Reason.UNREACHABLE, f"{name} can't be reached: {why}")
    proc = os.open(host.proc, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def remount(fd: int, flags: int | None, options: bytes) -> None:
        os.fchdir(fd)
        if flags is not None:
            syscalls.mount(b"none", b".", b"tmpfs", flags, options)

    def act(fd: int) -> dict[str, Any]:
        mountinfo = partial(_read_at, proc, "self/mountinfo")
        mount = _line(mountinfo(), _mount_id(proc, fd))
        same = _same_mount(superblock, mount, copied=True) is not None
        if mount is None or not same or syscalls.fd_magic(fd) != syscalls.TMPFS_MAGIC:
            raise OSError(errno.ESTALE, "another file system is mounted there")
        try:
            return _pack(_act(_Target(name, fd, mount, mountinfo, partial(remount, fd)), superblock, wish))
        except ResizeError as error:
            return {"refused": _pack_error(error)}
        except OSError as error:
            return {"refused": _pack_error(_failed(name, error))}

    try:
        namespace = int(host.readlink(f"{host.proc}/{pid}/ns/mnt").removeprefix("mnt:[").removesuffix("]"))
        answers = mountusage.look_below(host.proc, pid, namespace, [superblock.device], act)
    except OSError as error:
        raise _not_opened(name, error) from error
    finally:
        os.close(proc)
    answer = answers[superblock.device]
    if isinstance(answer, str):
        raise Failed(Reason.UNREACHABLE, f"{name} is covered by another mount, and can't be reached below it: {answer}")
    if "refused" in answer:
        raise _unpack_error(answer["refused"])
    return _unpack(answer, superblock, wish)


def _read_at(directory: int, name: str) -> bytes:
    with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory), "rb") as file:
        return file.read()


def _mount_id(proc: int, fd: int) -> int:
    """Of an open descriptor, as in mountinfo (Linux 3.15)."""
    for line in _read_at(proc, f"self/fdinfo/{fd}").split(b"\n"):
        key, _, value = line.partition(b":")
        if key == b"mnt_id":
            return int(value)
    raise OSError(errno.EOPNOTSUPP, "this kernel does not say on which mount an open file is")


def _line(mountinfo: bytes, mount_id: int) -> Mount | None:
    return next((mount for mount in parse_mountinfo(mountinfo) if mount.mount_id == mount_id), None)


def _same_mount(superblock: Superblock, mount: Mount | None, *, copied: bool) -> MountPoint | None:
    """The scanned mount that a line of mountinfo is (or is a copy of, with an id of its own), if it is one.

    Limits may have changed in between, and ro/rw. But device numbers and mount ids are given out again after an
    unmount, to the next mount made: so what can't change while mounted has to be the same, too.
    """
    if mount is None or _lasting(mount.super_options) != _lasting(superblock.options):
        return None
    if (mount.device, mount.fstype, mount.source) != (superblock.device, superblock.fstype, superblock.source):
        return None
    for point in superblock.mounts:
        if (point.path, point.root) == (mount.path, mount.root) and (copied or point.mount_id == mount.mount_id):
            return point
    return None


# --- on the open descriptor


def _act(target: _Target, superblock: Superblock, wish: _Wish) -> Resized:
    before = FilesystemUsage(*mountusage.usage_of(target.fd))
    requested = wish.requested
    size = requested.size_bytes if requested.size_bytes != before.size_bytes else None
    inodes = requested.inodes if requested.inodes != before.inodes else None
    result = Resized(superblock.device, target.mount.path, before, before, requested, None, wish.dry_run)
    if size is None and inodes is None:
        return result
    _check_limited(target, before, size, inodes)
    _check_fits(target, before, size, inodes, wish)
    if wish.dry_run:
        wanted = replace(before, size_bytes=size or before.size_bytes, inodes=inodes or before.inodes)
        return replace(result, after=wanted, method=_method(target, wish))
    method = _apply(target, size, inodes, wish)
    after = FilesystemUsage(*mountusage.usage_of(target.fd))
    _verify(target, after, size, inodes)
    return replace(result, after=after, method=method)


def _check_limited(target: _Target, before: FilesystemUsage, size: int | None, inodes: int | None) -> None:
    for wanted, limit, option in ((size, before.size_bytes, "size"), (inodes, before.inodes, "nr_inodes")):
        if wanted is not None and limit == 0:
            raise Refused(
                Reason.UNLIMITED,
                f"{target.name} was mounted without a limit ({option}=0), and the kernel can't set one on it any "
                f"more; unmount it and mount it anew with {option}={wanted}",
            )


def _check_fits(target: _Target, usage: FilesystemUsage, size: int | None, inodes: int | None, wish: _Wish) -> None:
    fits_bytes, fits_inodes = _fits(usage, wish)
    headroom = f", with {wish.headroom_percent:g} % headroom {{}}" if wish.headroom_percent else ""
    if size is not None and size < usage.size_bytes and size < fits_bytes:
        message = (
            f"{target.name} holds {_mib(usage.used_bytes)}{headroom.format(_mib(fits_bytes))}: more than the "
            f"{_mib(size)} asked for; free some of it, or write at least {-(-fits_bytes // _MIB)}Mi"
        )
        raise InUse(Reason.IN_USE, message, None, fits_bytes, fits_inodes)
    if inodes is not None and inodes < usage.inodes and inodes < fits_inodes:
        message = (
            f"{target.name} has {usage.inodes_used} inodes in use{headroom.format(fits_inodes)}: more than the "
            f"{inodes} asked for; remove files, or write at least {fits_inodes}"
        )
        raise InUse(Reason.IN_USE, message, None, fits_bytes, fits_inodes)


def _fits(usage: FilesystemUsage, wish: _Wish) -> tuple[int, int]:
    """The least size (whole pages) and number of inodes for what is in use with the headroom."""
    part, whole = float(wish.headroom_percent).as_integer_ratio()

    def with_headroom(used: int) -> int:
        return -(-used * (100 * whole + part) // (100 * whole))

    return with_headroom(usage.used_bytes // wish.page_size) * wish.page_size, with_headroom(usage.inodes_used)


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / _MIB:.1f} MiB"


def _options(size: int | None, inodes: int | None) -> list[tuple[str, str]]:
    named = (("size", size), ("nr_inodes", inodes))
    return [(option, str(value)) for option, value in named if value is not None]


def _method(target: _Target, wish: _Wish) -> Method:
    """Which one a real run would take, tried as far as nothing is changed."""
    if wish.method != "mount":
        try:
            os.close(syscalls.fspick(target.fd))
        except OSError as error:
            if wish.method == "fspick" or error.errno not in _NO_FSPICK:
                raise
        else:
            return "fspick"
    target.remount(None, b"")
    return "mount"


def _apply(target: _Target, size: int | None, inodes: int | None, wish: _Wish) -> Method:
    if wish.method != "mount":
        try:
            context = syscalls.fspick(target.fd)
        except OSError as error:
            # EPERM: a seccomp profile older than the call says so, too. The other method will tell.
            if wish.method == "fspick" or error.errno not in _NO_FSPICK:
                raise
        else:
            try:
                _reconfigure(target, context, size, inodes, wish)
            finally:
                os.close(context)
            return "fspick"
    _remount(target, size, inodes, wish)
    return "mount"


def _reconfigure(target: _Target, context: int, size: int | None, inodes: int | None, wish: _Wish) -> None:
    try:
        if "noswap" in _split(target.mount.super_options):
            # Kernels from 6.4 on took its absence for the wish to enable swap, and refused that.
            syscalls.fsconfig(context, syscalls.FSCONFIG_SET_FLAG, b"noswap")
        for option, value in _options(size, inodes):
            syscalls.fsconfig(context, syscalls.FSCONFIG_SET_STRING, option.encode(), value.encode())
        syscalls.fsconfig(context, syscalls.FSCONFIG_CMD_RECONFIGURE)
    except OSError as error:
        words = "; ".join(line[2:] for line in syscalls.context_log(context) if line[:2] in ("e ", "w "))
        raise _kernel_refused(target, error, words, size, inodes, wish) from error


def _remount(target: _Target, size: int | None, inodes: int | None, wish: _Wish) -> None:
    flags = syscalls.MS_REMOUNT | remount_flags(target.mount.options, target.mount.super_options)
    options = [option for option in _split(target.mount.super_options) if option not in _SUPERBLOCK_FLAGS]
    kept = [unescape(os.fsencode(option)) for option in options if option.partition("=")[0] not in _LIMITS]
    named = [f"{option}={value}" for option, value in _options(size, inodes)]
    try:
        # A limit that isn't named stays. The carried ones come last: an mpol= list of nodes has commas in it.
        target.remount(flags, os.fsencode(",".join(named + kept)))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        if _line(target.mountinfo(), target.mount.mount_id) is None:
            raise Failed(Reason.GONE, f"{target.name} has just been unmounted there; look again") from error
        raise _kernel_refused(target, error, "", size, inodes, wish) from error


def remount_flags(options: str, super_options: str) -> int:
    """The MS_* flags with which mount(2) leaves a mount as mountinfo shows it.

    MS_RDONLY is the filesystem's own: mount(2) sets both, and a read-only mount of a writable filesystem must not stop
    the others' writers.
    """
    words = options.split(",")
    flags = 0
    for word in words:
        flags |= _MOUNT_FLAGS.get(word, 0)
    if not flags & (syscalls.MS_NOATIME | syscalls.MS_RELATIME):
        flags |= syscalls.MS_STRICTATIME  # mountinfo shows it by showing neither
    for option in _split(super_options):
        flags |= _SUPERBLOCK_FLAGS.get(option, 0)
    return flags


def _split(super_options: str) -> list[str]:
    """Superblock options. A comma inside quotes or before a digit belongs to a value (context="...", mpol=bind:0,2)."""
    options: list[str] = []
    quoted = False
    for piece in super_options.split(","):
        if options and (quoted or piece[:1].isdigit()):
            options[-1] += f",{piece}"
        else:
            options.append(piece)
        quoted ^= piece.count('"') % 2 == 1
    return options


def _lasting(super_options: str) -> frozenset[str]:
    """The options that stay the same whatever limits are set, and whether it is read-only."""
    return frozenset(o for o in _split(super_options) if o.partition("=")[0] not in (*_LIMITS, "ro", "rw"))


def _verify(target: _Target, after: FilesystemUsage, size: int | None, inodes: int | None) -> None:
    for wanted, found, what in ((size, after.size_bytes, "bytes"), (inodes, after.inodes, "inodes")):
        if wanted is not None and found != wanted:
            raise Failed(
                Reason.NOT_HELD,
                f"{target.name} was set to {wanted} {what} and reads back {found}: something else sets it, too",
            )
    now = _line(target.mountinfo(), target.mount.mount_id)
    if now is None:
        return  # unmounted since; there is nothing left to compare
    before = (target.mount.options, _without_limits(target.mount.super_options))
    if (now.options, _without_limits(now.super_options)) != before:
        raise Failed(
            Reason.NOT_HELD,
            f"{target.name} was resized, but its options changed meanwhile from {' '.join(before)} to "
            f"{now.options} {_without_limits(now.super_options)}: something else remounts it",
        )


def _without_limits(super_options: str) -> str:
    return ",".join(option for option in _split(super_options) if option.partition("=")[0] not in _LIMITS)


# --- errors as sentences


def _kernel_refused(
    target: _Target, error: OSError, words: str, size: int | None, inodes: int | None, wish: _Wish
) -> ResizeError:
    if isinstance(error, PermissionError):
        return _failed(target.name, error)
    usage = FilesystemUsage(*mountusage.usage_of(target.fd))
    said = words or error.strerror or str(error)
    if (size is not None and usage.used_bytes > size) or (inodes is not None and usage.inodes_used > inodes):
        fits_bytes, fits_inodes = _fits(usage, wish)
        message = (
            f"{target.name} holds more than was asked for, {_mib(usage.used_bytes)} and {usage.inodes_used} inodes, "
            f"and the kernel refused: {said}"
        )
        return InUse(Reason.IN_USE, message, said, fits_bytes, fits_inodes)
    return Failed(Reason.KERNEL_REFUSED, f"{target.name}: the kernel refused: {said}", said)


def _not_opened(name: str, error: OSError) -> ResizeError:
    if error.errno in (errno.ESTALE, errno.ENOENT, errno.ESRCH, errno.ENOTDIR, errno.ELOOP, errno.EXDEV):
        return Failed(
            Reason.GONE,
            f"{name}: something else is there since it was looked at ({error.strerror}); look again",
        )
    if error.errno == errno.EAGAIN:
        return Failed(Reason.UNREACHABLE, f"{name} is only reached through a file system whose server might not answer")
    return _failed(name, error)


def _failed(name: str, error: OSError) -> ResizeError:
    said = error.strerror or str(error)
    if isinstance(error, PermissionError):
        return Failed(
            Reason.NOT_PERMITTED,
            f"{name}: resizing a tmpfs needs root with CAP_SYS_ADMIN, CAP_SYS_PTRACE and CAP_SYS_CHROOT ({said})",
            said,
        )
    if isinstance(error, ProcessLookupError | FileNotFoundError):
        return Failed(Reason.GONE, f"{name}: the process it was reached through is gone ({said}); look again")
    if error.errno == errno.ENOTDIR:
        return Failed(
            Reason.UNREACHABLE, f"{name} is mounted as a single file here, and this kernel can only resize a directory"
        )
    return Failed(Reason.KERNEL_REFUSED, f"{name}: {said}", said)


# --- over the pipe from the child


def _pack(result: Resized) -> dict[str, Any]:
    usages = [[getattr(usage, slot) for slot in usage.__slots__] for usage in (result.before, result.after)]
    return {"path": result.mount_point, "usages": usages, "method": result.method}


def _unpack(answer: dict[str, Any], superblock: Superblock, wish: _Wish) -> Resized:
    before, after = (FilesystemUsage(*usage) for usage in answer["usages"])
    return Resized(superblock.device, answer["path"], before, after, wish.requested, answer["method"], wish.dry_run)


def _pack_error(error: ResizeError) -> list[Any]:
    return [type(error).__name__, *error.args]


def _unpack_error(packed: list[Any]) -> ResizeError:
    kind, reason, *rest = packed
    return {"Refused": Refused, "InUse": InUse, "Failed": Failed}[kind](Reason(reason), *rest)
