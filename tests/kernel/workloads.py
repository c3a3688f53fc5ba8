"""Real memory of every kind and of known size, made by child processes and gone when the ``with`` block ends.

Each context manager yields a ``Workload``. They compose: nest them, or put them into an ExitStack. Children die with
the test process (PR_SET_PDEATHSIG); what outlives a process (segments of this IPC namespace, mounts of this mount
namespace, cgroups) is removed on every way out. All of it needs root. Import as ``from kernel import workloads``.
"""

import contextlib
import ctypes
import json
import mmap
import os
import secrets
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MIB = 1 << 20
CLONE_NEWNS, CLONE_NEWIPC = 0x00020000, 0x08000000
MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 4096, 16384, 1 << 18, 2
IPC_CREAT, IPC_RMID, SHM_HUGETLB = 0o1000, 0, 0o4000
V1_MEMORY = Path("/sys/fs/cgroup/memory")
V2_ROOT = Path("/sys/fs/cgroup")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.shmat.restype = ctypes.c_void_p
_libc.shmat.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
_libc.shmget.argtypes = (ctypes.c_int, ctypes.c_size_t, ctypes.c_int)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.shmdt.argtypes = (ctypes.c_void_p,)

_RUN = secrets.token_hex(3)  # process numbers repeat in other PID namespaces
_keep: list[Any] = []  # what a child's set-up must not let go of


@dataclass(frozen=True)
class Workload:
    """``bytes`` allocated in Shmem; ``device`` as in mountinfo ("0:39"), ``inode`` of the file or object (a SysV
    segment's shmid); ``path`` as the child sees it; ``namespace``: inode of the mount or IPC namespace that was made
    for it."""

    pids: tuple[int, ...]
    bytes: int
    device: str = ""
    inode: int = 0
    path: str = ""
    namespace: int | None = None
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def pid(self) -> int:
        return self.pids[0]


# --- children


class ChildError(RuntimeError):
    """The set-up failed in the child; the message is its traceback."""


@contextlib.contextmanager
def child(setup: Callable[[], Any], cgroup: Path | None = None) -> Iterator[tuple[int, Any]]:
    """A forked process that has run ``setup``, and what that returned (JSON values). It then only waits to be killed.

    ``cgroup``: the directory whose cgroup.procs it joins before ``setup``.
    """
    parent = os.getpid()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            _libc.prctl(1, ctypes.c_ulong(signal.SIGKILL))
            if os.getppid() != parent:
                os._exit(1)
            os.close(reader)
            answer: dict[str, Any]
            try:
                if cgroup is not None:
                    (cgroup / "cgroup.procs").write_text(str(os.getpid()))
                answer = {"value": setup()}
            except BaseException:  # noqa: BLE001 - it is told to the parent
                answer = {"error": traceback.format_exc()}
            os.write(writer, json.dumps(answer).encode())
            os.close(writer)
            while True:
                signal.pause()
        finally:
            os._exit(status)
    os.close(writer)
    try:
        with os.fdopen(reader, "rb") as stream:
            data = stream.read()
        answer = json.loads(data) if data else {"error": "the child died"}
        if "error" in answer:
            raise ChildError(answer["error"])
        yield pid, answer["value"]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def run(work: Callable[[], Any], cgroup: Path | None = None) -> Any:
    """``work()`` in a child of its own: for what may not happen in the test process (dropped privileges,
    namespaces)."""
    with child(work, cgroup) as (_, value):
        return value


def drop_privileges(uid: int = 65534) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "unshare")
    if flags & CLONE_NEWNS:
        mount("none", "/", None, MS_REC | MS_PRIVATE)


def namespace_inode(kind: str) -> int:
    return os.stat(f"/proc/self/ns/{kind}").st_ino


# --- mounts and files


def mount(source: str, target: str, fstype: str | None, flags: int = 0, options: str | None = None) -> None:
    words = [os.fsencode(word) if word is not None else None for word in (source, target, fstype, options)]
    _check(_libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]), f"mount {target}")


def umount(target: str, flags: int = 0) -> None:
    _check(_libc.umount2(os.fsencode(target), flags), f"umount {target}")


def fill(path: str, size: int, at: int = 0) -> None:
    """Write ``size`` bytes at offset ``at``: with a gap before, the file is sparse."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fill_fd(fd, size, at)
    finally:
        os.close(fd)


def fill_fd(fd: int, size: int, at: int = 0) -> None:
    chunk = b"\x5a" * min(size, MIB)
    end = at + size
    while at < end:
        at += os.pwrite(fd, chunk[: end - at], at)


def device_of(stat: os.stat_result) -> str:
    return f"{os.major(stat.st_dev)}:{os.minor(stat.st_dev)}"


@contextlib.contextmanager
def directory() -> Iterator[str]:
    """An empty directory on disk, outside any tmpfs, to mount on."""
    path = tempfile.mkdtemp(prefix="nodemem-test-", dir="/var/tmp")
    try:
        yield path
    finally:
        shutil.rmtree(path)


@contextlib.contextmanager
def tmpfs(
    size: int,
    *,
    limit: int | None = None,
    options: str = "",
    files: Callable[[str], Any] | None = None,
    cgroup: Path | None = None,
) -> Iterator[Workload]:
    """A tmpfs with a file "data" of ``size`` bytes, in a mount namespace of its own.

    ``limit``: its size= (default: twice what it holds; 0: no limit). ``files(path)`` makes more, and its result is in
    ``more["files"]``.
    """
    with directory() as path:

        def setup() -> dict[str, Any]:
            unshare(CLONE_NEWNS)
            made = _make_tmpfs(path, size, limit, options)
            extra = files(path) if files is not None else None
            return {**made, "namespace": namespace_inode("mnt"), "files": extra}

        with child(setup, cgroup) as (pid, made):
            yield Workload(
                (pid,), size, made["device"], made["inode"], path, made["namespace"], {"files": made["files"]}
            )


@contextlib.contextmanager
def tmpfs_here(size: int, *, limit: int | None = None, options: str = "") -> Iterator[Workload]:
    """The same in this mount namespace and with no process of its own: ``pids`` is empty."""
    with directory() as path:
        try:
            made = _make_tmpfs(path, size, limit, options)
            yield Workload((), size, made["device"], made["inode"], path)
        finally:
            with contextlib.suppress(OSError):
                umount(path, MNT_DETACH)


def _make_tmpfs(path: str, size: int, limit: int | None, options: str = "") -> dict[str, Any]:
    limit = max(2 * size, MIB) if limit is None else limit
    mount("nodemem-test", path, "tmpfs", 0, f"size={limit}" + (f",{options}" if options else ""))
    fill(f"{path}/data", size)
    stat = os.stat(f"{path}/data")
    return {"device": device_of(stat), "inode": stat.st_ino}


def hard_links(path: str, size: int, count: int) -> None:
    """One file of ``size`` bytes with ``count`` names."""
    fill(f"{path}/link0", size)
    for number in range(1, count):
        os.link(f"{path}/link0", f"{path}/link{number}")


def sparse_file(path: str, size: int, length: int) -> None:
    """A file ``length`` long of which the last ``size`` bytes are allocated."""
    fill(f"{path}/sparse", size, length - size)


@contextlib.contextmanager
def bind_mounted(size: int) -> Iterator[Workload]:
    """A tmpfs whose subdirectory "sub" is bind-mounted on a second place (``more["bind"]``) too."""
    with directory() as path, directory() as second:

        def setup() -> dict[str, Any]:
            unshare(CLONE_NEWNS)
            made = _make_tmpfs(path, size, None)
            os.mkdir(f"{path}/sub")
            mount(f"{path}/sub", second, None, MS_BIND)
            return {**made, "namespace": namespace_inode("mnt")}

        with child(setup) as (pid, made):
            yield Workload((pid,), size, made["device"], made["inode"], path, made["namespace"], {"bind": second})


@contextlib.contextmanager
def hidden_mount(size: int, above: int) -> Iterator[Workload]:
    """A tmpfs with ``size`` bytes that can't be reached: another with ``above`` bytes (``more["above"]``: its device)
    lies on the same mount point."""
    with directory() as path:

        def setup() -> dict[str, Any]:
            unshare(CLONE_NEWNS)
            made = _make_tmpfs(path, size, None)
            return {**made, "namespace": namespace_inode("mnt"), "above": _make_tmpfs(path, above, None)["device"]}

        with child(setup) as (pid, made):
            yield Workload(
                (pid,), size, made["device"], made["inode"], path, made["namespace"], {"above": made["above"]}
            )


@contextlib.contextmanager
def detached_mount(size: int, *, held_by: str = "fd") -> Iterator[Workload]:
    """A tmpfs unmounted lazily and kept alive by an open file ("fd"), a mapping of it ("map") or a working
    directory."""
    with directory() as path:

        def setup() -> dict[str, Any]:
            unshare(CLONE_NEWNS)
            made = _make_tmpfs(path, size, None)
            if held_by == "cwd":
                os.chdir(path)
            else:
                fd = os.open(f"{path}/data", os.O_RDWR)
                _keep.append(fd)
                if held_by == "map":
                    _map_and_close(fd, size)
            umount(path, MNT_DETACH)
            return {**made, "namespace": namespace_inode("mnt")}

        with child(setup) as (pid, made):
            yield Workload((pid,), size, made["device"], made["inode"], path, made["namespace"])


@contextlib.contextmanager
def deleted_open(size: int, *, rest: int = 0, mapped: bool = False, cgroup: Path | None = None) -> Iterator[Workload]:
    """A file without a name on a tmpfs that holds ``rest`` bytes besides. Held by a descriptor, or only by a
    mapping."""
    with directory() as path:

        def setup() -> dict[str, Any]:
            unshare(CLONE_NEWNS)
            made = _make_tmpfs(path, rest, 2 * (size + rest))
            fd = os.open(f"{path}/gone", os.O_RDWR | os.O_CREAT, 0o600)
            fill_fd(fd, size)
            stat = os.fstat(fd)
            os.unlink(f"{path}/gone")
            _keep.append(fd)
            if mapped:
                _map_and_close(fd, size)
            return {"device": made["device"], "inode": stat.st_ino, "namespace": namespace_inode("mnt")}

        with child(setup, cgroup) as (pid, made):
            yield Workload((pid,), size, made["device"], made["inode"], f"{path}/gone", made["namespace"])


# --- memory without a path


@contextlib.contextmanager
def memfd(
    size: int, *, mapped: bool = False, holders: int = 1, name: str = "nodemem-test", cgroup: Path | None = None
) -> Iterator[Workload]:
    """A memfd, only open or also mapped and touched, held by ``holders`` processes (the later ones open it in the
    first)."""

    def setup() -> dict[str, Any]:
        fd = os.memfd_create(name)
        fill_fd(fd, size)
        _keep.append(fd)
        if mapped:
            _keep.append(mmap.mmap(fd, size))
            _touch(_keep[-1])
        stat = os.fstat(fd)
        return {"device": device_of(stat), "inode": stat.st_ino, "fd": fd}

    with contextlib.ExitStack() as stack:
        pid, made = stack.enter_context(child(setup, cgroup))
        pids = [pid]

        def join() -> None:
            fd = os.open(f"/proc/{pid}/fd/{made['fd']}", os.O_RDWR)
            _keep.append(fd)
            if mapped:
                _keep.append(mmap.mmap(fd, size))
                _touch(_keep[-1])

        for _ in range(holders - 1):
            pids.append(stack.enter_context(child(join, cgroup))[0])
        yield Workload(tuple(pids), size, made["device"], made["inode"], f"/memfd:{name}")


@contextlib.contextmanager
def shared_anonymous(size: int, *, dev_zero: bool = False, cgroup: Path | None = None) -> Iterator[Workload]:
    """MAP_SHARED|MAP_ANONYMOUS, or a shared mapping of /dev/zero, which is the same to the kernel; touched."""

    def setup() -> dict[str, Any]:
        fd = os.open("/dev/zero", os.O_RDWR) if dev_zero else -1
        area = mmap.mmap(fd, size) if dev_zero else mmap.mmap(-1, size)
        if dev_zero:
            os.close(fd)
        _touch(area, write=True)
        _keep.append(area)
        for line in Path("/proc/self/maps").read_text().splitlines():
            words = line.split()
            if line.endswith("/dev/zero (deleted)"):
                major, minor = words[3].split(":")
                return {"device": f"{int(major, 16)}:{int(minor, 16)}", "inode": int(words[4])}
        raise LookupError("no mapping of /dev/zero in /proc/self/maps")

    with child(setup, cgroup) as (pid, made):
        yield Workload((pid,), size, made["device"], made["inode"], "/dev/zero")


@contextlib.contextmanager
def sysv(
    size: int, *, new_ipc: bool = False, attached: bool = True, huge: bool = False, cgroup: Path | None = None
) -> Iterator[Workload]:
    """A SysV segment, touched, in this IPC namespace or in a new one, still attached or not. ``inode`` is the shmid."""
    ours: list[int] = []

    def setup() -> dict[str, Any]:
        if new_ipc:
            unshare(CLONE_NEWIPC)
        shmid = _check(_libc.shmget(0, size, IPC_CREAT | 0o600 | (SHM_HUGETLB if huge else 0)), "shmget")
        address = _libc.shmat(shmid, None, 0)
        ctypes.memset(address, 0x5A, size)
        if not attached:
            _check(_libc.shmdt(address), "shmdt")
        return {"shmid": shmid, "namespace": namespace_inode("ipc")}

    try:
        with child(setup, cgroup) as (pid, made):
            if not new_ipc:
                ours.append(made["shmid"])
            yield Workload((pid,), size, "", made["shmid"], "", made["namespace"])
    finally:
        for shmid in ours:
            _libc.shmctl(shmid, IPC_RMID, None)


def _map_and_close(fd: int, size: int, *, touch: bool = True) -> None:
    """Map and touch; no descriptor is left. (mmap.mmap keeps a duplicate of its own.)"""
    address = _libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "mmap")
    for offset in range(0, size if touch else 0, mmap.PAGESIZE):
        ctypes.string_at(address + offset, 1)
    os.close(fd)


def _touch(area: mmap.mmap, *, write: bool = False) -> None:
    for offset in range(0, len(area), mmap.PAGESIZE):
        if write:
            area[offset] = 0x5A
        else:
            area[offset]


# --- cgroups (v1 memory hierarchy)


@contextlib.contextmanager
def memory_cgroup(path: str, *, limit: int | None = None, root: Path | None = None) -> Iterator[Path]:
    """The directory of a cgroup at ``path`` ("a/b/c"; missing ancestors are made, and removed again), on v1 or v2."""
    v2 = not V1_MEMORY.is_dir()
    made: list[Path] = []
    try:
        place = root or (V2_ROOT if v2 else V1_MEMORY)
        for name in path.strip("/").split("/"):
            if v2:
                (place / "cgroup.subtree_control").write_text("+memory")
            place /= name
            if not place.is_dir():
                place.mkdir()
                made.append(place)
        if limit is not None:
            (place / ("memory.max" if v2 else "memory.limit_in_bytes")).write_text(str(limit))
        yield place
    finally:
        for one in reversed(made):
            _remove_cgroup(one)


@contextlib.contextmanager
def container_cgroup(
    uid: str, container_id: str, *, driver: str = "cgroupfs", qos: str = "Burstable", limit: int | None = None
) -> Iterator[Path]:
    """Where the kubelet's cgroup driver puts a container, below a cgroup of this process's own.

    "cgroupfs" as with Docker or containerd; "systemd" with containerd's scope names. Guaranteed pods have no QoS level.
    """
    level = "" if qos == "Guaranteed" else qos.lower()
    if driver == "cgroupfs":
        parts = ["kubepods", *([level] if level else []), f"pod{uid}", container_id]
    else:
        slices = ["kubepods", *([level] if level else []), "pod" + uid.replace("-", "_")]
        parts = ["-".join(slices[: depth + 1]) + ".slice" for depth in range(len(slices))]
        parts.append(f"cri-containerd-{container_id}.scope")
    with memory_cgroup("/".join([f"nodemem-test-{os.getpid()}-{_RUN}", *parts]), limit=limit) as place:
        yield place


def _remove_cgroup(place: Path) -> None:
    """A cgroup stays busy for a moment after its last process is gone."""
    for _ in range(200):
        try:
            place.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.01)
        else:
            return
    place.rmdir()


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def pids_of(workloads: Sequence[Workload]) -> list[int]:
    return [pid for workload in workloads for pid in workload.pids]
