"""How much a mounted tmpfs holds: asked in the open, below the mounts that cover it, or in a namespace nobody is in.

Descriptors of a place in, JSON values out; these run where nothing is recorded, inside ``Host.observe``.
"""

import errno
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nodemem.kernel import namespaces as ns
from nodemem.kernel import syscalls
from nodemem.kernel.mountinfo import (
    LOCAL,
    MEMORY_FILESYSTEMS,
    MountNode,
    MountTree,
    parse_mountinfo,
    split_line,
    unescape,
)

_MAX_SECONDS = 2.0  # for taking off covers; each costs a look at all the mounts


def usage_at(root: int, path: str, device: str, cached_only: bool) -> list[int]:
    """FilesystemUsage values of the mount at ``path``. Raises ESTALE when another filesystem is there."""
    fd = syscalls.open_beneath(root, path, cached_only=cached_only)
    try:
        if syscalls.fd_device(fd) != device:
            raise OSError(errno.ESTALE, "another file system is mounted there", path)
        return usage_of(fd)
    finally:
        os.close(fd)


def usage_of(fd: int) -> list[int]:
    try:
        vfs = os.fstatvfs(fd)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        vfs = os.statvfs(f"/proc/self/fd/{fd}")  # before Linux 3.12 an O_PATH descriptor can't be asked
    return [
        vfs.f_blocks * vfs.f_frsize,
        (vfs.f_blocks - vfs.f_bfree) * vfs.f_frsize,
        vfs.f_files,
        vfs.f_files - vfs.f_ffree,
    ]


def look_below(
    proc: str,
    pid: int,
    namespace: int,
    devices: Sequence[str],
    ask: Callable[[int], Any],
    timeout: float = 5.0,
) -> dict[str, Any]:
    """``ask(descriptor)`` for tmpfs that other mounts cover, by taking the covers off in a private copy.

    A forked child enters the mount namespace of ``pid``, copies it (CLONE_NEWNS), cuts the copy off from all
    propagation, and lazily unmounts what covers the wanted ones; nobody else sees any of it, and it ends with the
    child. The answer has for each device what ``ask`` returned as JSON, or a str: why not. Raises what in_namespaces
    raises. Not for a namespace whose root is on a network or FUSE filesystem: chroot(2) would ask its server.
    """
    root = os.open(f"{proc}/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    proc_root = os.open(proc, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        answers: dict[str, Any] = ns.in_namespaces(
            pid,
            ("mnt",),
            lambda: _Uncover(root, proc_root, devices, ask).run(),
            timeout,
            proc=proc,
            inodes={"mnt": namespace},
        )
        return answers
    finally:
        os.close(root)
        os.close(proc_root)


def _mountinfo_of_child(proc_root: int) -> bytes:
    fd = os.open("self/mountinfo", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc_root)
    with open(fd, "rb") as file:
        return file.read()


class _Uncover:
    """The child's side: runs inside the target's mount namespace, the only thread of its process, and ends with it."""

    def __init__(self, root: int, proc_root: int, devices: Sequence[str], ask: Callable[[int], Any]) -> None:
        self._root = root
        self._proc_root = proc_root
        self._wanted = set(devices)
        self._ask = ask
        self._answers: dict[str, Any] = {}

    def run(self) -> dict[str, Any]:
        self._enter_private_copy()
        words = "what covers it can't be taken off in a copy of the namespace"
        deadline = time.monotonic() + _MAX_SECONDS
        while True:
            tree, places = self._read()
            self._answer_visible(tree, places)
            if not self._wanted or not self._take_off_one(tree, places):
                break
            if time.monotonic() > deadline:
                words = "too many other mounts cover it"
                break
        for device in self._wanted:
            self._answers.setdefault(device, words)
        return self._answers

    def _enter_private_copy(self) -> None:
        # What covers "/" itself is where setns left this process: look from there before going where the target is.
        top = os.open("/", syscalls.O_PATH)
        tree, places = self._read()
        for device in sorted(self._wanted):
            for mount_id in places.get(device, ()):
                if tree.nodes[mount_id].path == b"/":
                    self._try(top, "/", device, False)
        os.close(top)
        os.fchdir(self._root)
        syscalls.unshare(syscalls.CLONE_NEWNS)  # root and working directory move to the copies
        syscalls.mount(None, b"/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        try:
            syscalls.mount(None, b".", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise OSError(errno.EINVAL, "the processes' root directory is not a mount point") from None
        os.chroot(".")
        os.chdir("/")
        for mount in parse_mountinfo(_mountinfo_of_child(self._proc_root)):
            if "shared:" in mount.propagation:
                # Never seen; unmounting would now reach other namespaces, so it has to be ruled out.
                raise OSError(errno.EBUSY, f"the copy of {mount.path} still propagates to other namespaces")

    def _read(self) -> tuple[MountTree, dict[str, list[int]]]:
        tree = MountTree()
        places: dict[str, list[int]] = {}
        for line in _mountinfo_of_child(self._proc_root).split(b"\n"):
            if line and (fields := split_line(line)) is not None:
                head, tail = fields
                mount_id = int(head[0])
                tree.add(mount_id, MountNode(int(head[1]), head[4], tail[0]))
                device = head[2].decode("ascii")
                if device in self._wanted and tail[0] in MEMORY_FILESYSTEMS:
                    places.setdefault(device, []).append(mount_id)
        return tree, places

    def _answer_visible(self, tree: MountTree, places: Mapping[str, Sequence[int]]) -> None:
        root = os.open("/", syscalls.O_PATH)
        for device in sorted(self._wanted):
            for mount_id in places.get(device, ()):
                hidden, behind = tree.look(mount_id)
                if not hidden and self._try(root, unescape(tree.nodes[mount_id].path), device, behind is not None):
                    break
        os.close(root)

    def _try(self, root: int, path: str, device: str, cached_only: bool) -> bool:
        try:
            fd = syscalls.open_beneath(root, path, cached_only=cached_only)
        except OSError as error:
            self._answers[device] = error.strerror or str(error)
            return False
        try:
            if syscalls.fd_device(fd) != device:
                return False
            self._answers[device] = self._ask(fd)
            self._wanted.discard(device)
        except OSError as error:
            self._answers[device] = error.strerror or str(error)
            return False
        finally:
            os.close(fd)
        return True

    def _take_off_one(self, tree: MountTree, places: Mapping[str, Sequence[int]]) -> bool:
        """Lazily unmount one cover, and what is on it: so one with nothing wanted there. False where none can go."""
        wanted = [mount_id for device in self._wanted for mount_id in places.get(device, ())]
        carries = tree.carriers(wanted)
        tried: set[int] = set()
        for mount_id in wanted:
            cover = tree.cover(mount_id)
            while cover is not None and cover not in tried:
                tried.add(cover)
                on_it = carries.get(cover)
                if on_it is None:
                    if tree.look(cover) == (False, None) and self._unmount(unescape(tree.nodes[cover].path)):
                        return True
                    break
                cover = tree.cover(on_it)
        return False

    def _unmount(self, path: str) -> bool:
        try:
            syscalls.umount(os.fsencode(path), syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
        except OSError as error:
            for device in self._wanted:
                self._answers[device] = f"taking off what covers it: {error.strerror}"
            return False
        return True


def look_into(proc: str, pid: int, path: str, inode: int) -> dict[str, Any]:
    """mountinfo and tmpfs usage of a mount namespace that only the nsfs file at ``path`` keeps alive."""
    root = os.open(f"{proc}/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    proc_root = os.open(proc, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    fd = -1
    try:
        # A device node in its place would be opened, too: look first.
        place = syscalls.open_beneath(root, path)
        try:
            if os.fstat(place).st_ino != inode or syscalls.fd_magic(place) != syscalls.NSFS_MAGIC:
                raise OSError(errno.ESTALE, "the namespace file is no longer there", path)
            fd = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(place)

        def inside() -> dict[str, Any]:
            data = _mountinfo_of_child(proc_root)
            mounts = list(parse_mountinfo(data))
            remote = next((m.fstype for m in mounts if m.path == "/" and os.fsencode(m.fstype) not in LOCAL), None)
            if remote is not None:
                raise OSError(errno.EAGAIN, f"its root is on {remote}, which might not answer")
            devices = {m.device for m in mounts if os.fsencode(m.fstype) in MEMORY_FILESYSTEMS}
            top = os.open("/", syscalls.O_PATH)
            answers = _Uncover(top, proc_root, sorted(devices), usage_of).run()
            usage = {device: answer for device, answer in answers.items() if not isinstance(answer, str)}
            return {"mountinfo": os.fsdecode(data), "usage": usage}

        answer: dict[str, Any] = ns.in_namespace_fds([fd], inside)
        return answer
    finally:
        for opened in (root, proc_root, fd):
            if opened >= 0:
                os.close(opened)
