"""Shmem of /proc/meminfo by source: a partition in bytes, the objects behind it, and the processes that hold them.

Enters: the process table, the tmpfs superblocks. Leaves: a ``Breakdown``. It always holds that

    tmpfs + sysv + memfd + shared anonymous + deleted but open + kernel internal + unattributed - swapped = Shmem

All but the last three are allocated pages, resident or swapped out, as the kernel counts them (``st_blocks``, statvfs).

How an object is known. SysV segments, memfds and shared anonymous memory are files of one tmpfs that the kernel mounts
for itself and shows in no mountinfo; its device number is learned from a memfd of our own. Names there can't be
forged: the kernel writes ``/memfd:``, ``/SYSV`` and ``/dev/zero`` itself. A SysV segment's inode number is its shmid,
so it may equal a memfd's, and each IPC namespace counts from 0: the identity is (kind, device, inode, IPC namespace).
Huge page segments and memfds are files of hugetlbfs, are not in Shmem, and are left out by their device number.

What stays unattributed although it is somewhere: descriptors in flight in a socket or registered with io_uring, System
V segments of an IPC namespace without a process, graphics buffers of drivers that don't report them, whatever belongs
to processes that can't be read.
"""

import errno
import os
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

from nodemem.kernel import meminfo, namespaces, shmemfiles, syscalls
from nodemem.kernel.host import FileStat, FilesystemUsage, Host, Unreadable
from nodemem.kernel.mounts import MountScan, Superblock
from nodemem.kernel.procfs import Process
from nodemem.kernel.shmemfiles import Kind

Deep = Literal["auto", "always", "never", "spare"]

_BLOCK = 512
_UNEXPLAINED_SHARE = 100  # a hundredth of Shmem, or
UNEXPLAINED_BYTES = 1 << 20  # this much, is worth looking at the descriptors of all processes
_TAIL = 8  # of what is worth a look, the part that may be left to the many processes that map a little each
_MAX_PROBES = 64  # unknown mounts looked at in one scan, each by a forked child
_MAX_TIMEOUTS = 2
_PROBE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class ShmemObject:
    """Memory that has no path. ``bytes`` None: it exists and its size can't be read.

    ``exact`` False: ``bytes`` is only what the largest holder has resident of it. ``holders``: every process seen to
    map it or to have it open; empty for a SysV segment that nobody is attached to. ``creator_pid`` is the process that
    made a SysV segment, alive or not, as numbered here. ``cgroups``: of the holders. ``mapped``: at least one holder
    maps it.
    """

    kind: Kind
    device: str
    inode: int
    bytes: int | None
    exact: bool
    name: str
    holders: tuple[int, ...]
    mapped: bool
    cgroups: tuple[str, ...]
    ipc_ns: int | None = None
    creator_pid: int | None = None


@dataclass(frozen=True, slots=True)
class DetachedSuperblock:
    """A tmpfs that is in no mountinfo: unmounted lazily and still held, or a driver's own. ``access_path`` leads into
    it."""

    device: str
    size_bytes: int | None
    used_bytes: int | None
    inodes_used: int | None
    holders: tuple[int, ...]
    access_path: str


@dataclass(frozen=True, slots=True)
class Breakdown:
    """See the module's identity. A part is None where nobody looked (``deep="never"``): then it is in
    ``unattributed_bytes``, or, for deleted files, in ``tmpfs_bytes``.

    ``tmpfs_bytes``: the sum of the superblocks' ``used_bytes`` (detached ones too) without what ``deleted_open_bytes``
    has. ``swapped_bytes`` is an estimate: only SysV segments have a count of their own. ``unattributed_bytes`` is
    negative when more was found than Shmem and swap explain; it is not made to fit. ``mapped_estimate_bytes``: Shmem
    that is in some process's RSS, each page once; exact where no two processes map the same object, otherwise the
    objects' sizes. ``unreadable_rss_bytes``: the RssShmem of processes whose maps could not be read, a hint at what is
    unattributed. ``deep``: the descriptors of all candidates were read.
    """

    total_bytes: int
    tmpfs_bytes: int
    sysv_bytes: int | None
    memfd_bytes: int | None
    shared_anonymous_bytes: int | None
    deleted_open_bytes: int | None
    kernel_internal_bytes: int | None
    swapped_bytes: int
    unattributed_bytes: int
    mapped_estimate_bytes: int | None
    unreadable_rss_bytes: int
    deleted_open_by_device: Mapping[str, int]
    objects: tuple[ShmemObject, ...]
    detached: tuple[DetachedSuperblock, ...]
    deep: bool
    unreadable: tuple[Unreadable, ...]


@dataclass(frozen=True, slots=True)
class Writer:
    """A process that has ``files`` files of a tmpfs open for writing or mapped writable and shared."""

    pid: int
    files: int


def attribute(
    host: Host,
    shmem_bytes: int,
    processes: Mapping[int, Process],
    mounts: MountScan,
    *,
    deep: Deep = "auto",
    candidates: Collection[int] | None = None,
    walked_bytes: Mapping[str, int] | None = None,
    fields: Mapping[str, int] | None = None,
    worth_bytes: int = UNEXPLAINED_BYTES,
    likely: Callable[[int], bool] = lambda pid: True,
) -> Breakdown:
    """Find what makes up ``shmem_bytes``.

    "never" reads the superblocks and this IPC namespace's segments only. "auto" adds every IPC namespace and the maps
    of processes with shared memory in their RSS; then, only if more than 1 % of Shmem and 1 MiB is still unexplained,
    the descriptors of all and the maps of the rest. "always" reads these in any case. Both look for tmpfs that are
    mounted nowhere only while so much is unexplained.
    "spare" is for looking again and again: where tmpfs explain all but ``worth_bytes``, and processes map no more than
    that, no process is looked into. Else the maps of those that map most, then, while more is unexplained, the
    descriptors of ``likely`` processes, then all else.
    IPC namespaces without a ``likely`` process are entered in the end only, while something is unexplained.
    ``candidates`` limits which processes are looked into. ``walked_bytes``: per device, what a walk found allocated in
    a tmpfs without a size limit (the kernel keeps no count for it). ``fields``: a parsed /proc/meminfo; read if None.
    """
    if fields is None:
        fields = meminfo.parse(host.read(f"{host.proc}/meminfo"))
    scan = _Scan(host, shmem_bytes, processes, mounts, walked_bytes or {}, fields, worth_bytes)
    pids = [pid for pid in (processes if candidates is None else sorted(candidates)) if _has_memory(processes, pid)]
    scan.read_own_segments()
    if deep == "never":
        return scan.breakdown(looked=False, deep=False)
    mapping = [pid for pid in pids if deep == "always" or processes[pid].rss_shmem_bytes != 0]
    if deep == "spare":
        mapped = sum(processes[pid].rss_shmem_bytes or 0 for pid in mapping)
        if not scan.is_unexplained() and mapped <= scan.worth_bytes:
            return scan.breakdown(looked=False, deep=False)
        mapping = _largest_first(processes, mapping, mapped - scan.worth_bytes // _TAIL)
    scan.learn_internal_device()
    scan.read_other_segments(likely)
    for pid in mapping:
        scan.read_maps(pid)
    read_fds = deep == "always" or scan.is_unexplained()
    rest = pids if read_fds else []
    if read_fds and deep == "spare":
        first = [pid for pid in pids if likely(pid)]
        for pid in first:
            scan.read_fds(pid)
        rest = sorted(set(pids).difference(first)) if scan.is_unexplained() else []
    for pid in rest:
        scan.read_fds(pid)
    if scan.is_unexplained():
        scan.read_other_segments(lambda pid: True)
        for pid in sorted(set(pids).difference(mapping)):
            scan.read_maps(pid)
        scan.read_named_fds()
        scan.probe_mapped()
        scan.probe_directories(pids)
    return scan.breakdown(looked=True, deep=read_fds)


def _largest_first(processes: Mapping[int, Process], pids: Iterable[int], bytes_wanted: int) -> list[int]:
    """Those that map most, as many as it takes to have ``bytes_wanted`` of what all map, and where it is unknown."""
    found: list[int] = []
    for pid in sorted(pids, key=lambda pid: -(processes[pid].rss_shmem_bytes or 1 << 62)):
        if bytes_wanted <= 0:
            break
        found.append(pid)
        bytes_wanted -= processes[pid].rss_shmem_bytes or 0
    return found


def writers(
    host: Host, superblock: Superblock, processes: Mapping[int, Process], *, everywhere: bool = True
) -> list[Writer]:
    """The processes that can be writing to a tmpfs now, most open files first. Reads descriptors and maps of all of
    them; not ``everywhere``: of those in mount namespaces that have it, which misses who was handed a descriptor.

    One that opens a file, writes and closes it again is only seen if it happens to be at it. Unreadable ones are left
    out.
    """
    ids = {str(point.mount_id).encode() for point in superblock.mounts}
    found: list[Writer] = []
    namespaces_with_it = {point.namespace for point in superblock.mounts}
    for pid, process in processes.items():
        if not _has_memory(processes, pid) or not (everywhere or process.mnt_ns in namespaces_with_it):
            continue
        try:
            names = {f"fd {name}" for name in _writing_fds(host, pid, ids)}
            maps = host.read(f"{host.proc}/{pid}/maps")
        except OSError:
            continue
        mapped = {m.inode for m in shmemfiles.parse_maps(maps, (superblock.device,)) if m.writable and m.shared}
        if names or mapped:
            found.append(Writer(pid, max(len(names), len(mapped))))
    return sorted(found, key=lambda writer: (-writer.files, writer.pid))


def _writing_fds(host: Host, pid: int, mount_ids: Container[bytes]) -> Iterator[str]:
    for name in host.listdir(f"{host.proc}/{pid}/fd"):
        try:
            link = host.readlink(f"{host.proc}/{pid}/fd/{name}")
            if not link.startswith("/") or link.startswith(("/dev/null", "/dev/pts/", "/memfd:", "/proc/")):
                continue
            info = shmemfiles.parse_fdinfo(host.read_small(f"{host.proc}/{pid}/fdinfo/{name}"))
            if info.get(b"mnt_id") in mount_ids and int(info.get(b"flags", b"0"), 8) & os.O_ACCMODE != os.O_RDONLY:
                yield name
        except (FileNotFoundError, ProcessLookupError, ValueError):
            continue


class _Key(NamedTuple):
    """Identity of an object. ``ipc_ns`` only for SysV segments. Kind "file": a file of a tmpfs that has a name."""

    kind: str
    device: str
    inode: int
    ipc_ns: int | None = None


@dataclass(slots=True)
class _Found:
    name: str
    bytes: int | None = None
    exact: bool = True
    swap_bytes: int = 0
    holders: set[int] = field(default_factory=set)
    mapped: bool = False
    creator_pid: int | None = None


@dataclass(slots=True)
class _Detached:
    usage: FilesystemUsage
    access_path: str
    holders: set[int] = field(default_factory=set)


class _Scan:
    """The state of one ``attribute`` call: each ``read_`` method adds what one kind of file shows."""

    def __init__(
        self,
        host: Host,
        shmem_bytes: int,
        processes: Mapping[int, Process],
        mounts: MountScan,
        walked: Mapping[str, int],
        fields: Mapping[str, int],
        worth_bytes: int,
    ) -> None:
        self._host = host
        self._total = shmem_bytes
        self.worth_bytes = max(shmem_bytes // _UNEXPLAINED_SHARE, worth_bytes)
        self._processes = processes
        self._mounts = mounts
        self._walked = walked
        self._fields = fields
        self._objects: dict[_Key, _Found] = {}
        self._gone: set[_Key] = set()  # looked like deleted files, but still have a name
        self._detached: dict[str, _Detached] = {}
        self._missing: dict[tuple[str, str], int] = {}
        self._unreadable_rss = 0
        self._internal: str | None = None
        self._tmpfs = set(mounts.superblocks)
        self._tables: set[int | None] = set()  # IPC namespaces whose segments are known
        self._huge: set[_Key] = set()
        self._maps_of: dict[int, set[_Key]] = {}  # for the estimate of what is mapped
        self._named: list[tuple[int, str]] = []  # open files with a name, not yet looked at
        self._example: dict[_Key, str] = {}  # a path through which a mapped file of a tmpfs can be measured
        self._devices: set[str] = set()  # of every filesystem in some mountinfo
        self._unknown_maps: dict[str, dict[int, str]] = {}  # device -> pid -> path
        self._learned: set[int | None] = set()
        self._probes = 0
        self._timeouts = 0
        self._drm: dict[tuple[bytes, ...], int] = {}
        self._ipc_of: dict[int, int | None] = {}
        self._own_ipc = self._find_own_ipc()
        self._entered: set[int | None] = {self._own_ipc}

    @cached_property
    def _device_of_mount(self) -> dict[bytes, str | None]:
        """By mount id; wanted only where descriptors are looked at."""
        superblocks = self._mounts.superblocks.values()
        return {str(point.mount_id).encode(): each.device for each in superblocks for point in each.mounts}

    # --- what is there without looking into processes

    def _find_own_ipc(self) -> int | None:
        try:
            return shmemfiles.inode_in(self._host.readlink(f"{self._host.proc}/self/ns/ipc"))
        except OSError:
            return None

    def read_own_segments(self) -> None:
        try:
            data = self._host.read(f"{self._host.proc}/sysvipc/shm")
        except FileNotFoundError:
            return  # a kernel without CONFIG_SYSVIPC
        except OSError as error:
            self._miss("System V segments", error)
            return
        self._add_segments(self._own_ipc, data)

    def read_other_segments(self, likely: Callable[[int], bool]) -> None:
        """Those of the IPC namespaces of ``likely`` processes, where they were not read yet.

        One forked child enters each in turn: all of them in one go cost less than a child for each."""
        wanted: dict[int, int] = {}
        for pid, process in self._processes.items():
            if process.has_mm and likely(pid):
                ipc_ns = self._ipc_namespace(pid)
                if ipc_ns is not None and ipc_ns not in self._entered:
                    wanted.setdefault(ipc_ns, pid)
        self._entered |= wanted.keys()
        if not wanted:
            return
        proc = self._host.proc
        try:
            answers: Mapping[str, Any] = self._host.observe(
                "sysvipc of the other IPC namespaces",
                lambda: namespaces.in_namespace_fds([], lambda: shmemfiles.read_tables(proc, wanted)),
            )
        except OSError as error:
            self._miss("System V segments of an IPC namespace", error, len(wanted))
            return
        for inode in wanted:
            answer = answers.get(str(inode))
            if isinstance(answer, str):
                self._add_segments(inode, os.fsencode(answer))
            elif isinstance(answer, list):
                words = "entering it needs CAP_SYS_ADMIN" if answer[0] == errno.EPERM else os.strerror(answer[0])
                self._count("System V segments of an IPC namespace", words)

    def _ipc_namespace(self, pid: int) -> int | None:
        """Inode number, asked once; None where the process has left it, or it may not be seen."""
        if pid not in self._ipc_of:
            self._ipc_of[pid] = None
            base = f"{self._host.proc}/{pid}"
            try:
                self._ipc_of[pid] = self._link_of(f"{base}/ns/ipc") or self._link_of_a_thread(base)
            except OSError as error:
                self._miss("IPC namespace of a process", error)
        return self._ipc_of[pid]

    def _link_of(self, path: str) -> int | None:
        try:
            return shmemfiles.inode_in(self._host.readlink(path))
        except (FileNotFoundError, ProcessLookupError):
            return None

    def _link_of_a_thread(self, base: str) -> int | None:
        """Where the first thread has exited."""
        try:
            tids = self._host.listdir(f"{base}/task")
        except (FileNotFoundError, ProcessLookupError):
            return None
        links = (self._link_of(f"{base}/task/{tid}/ns/ipc") for tid in tids)
        return next((link for link in links if link is not None), None)

    def _add_segments(self, ipc_ns: int | None, data: bytes) -> None:
        self._tables.add(ipc_ns)
        for segment in shmemfiles.parse_sysvipc(data):
            found = self._found(_Key("sysv", "", segment.shmid, ipc_ns), f"SYSV{segment.key:08x}")
            found.bytes = segment.rss_bytes + segment.swap_bytes
            found.swap_bytes = segment.swap_bytes
            found.creator_pid = segment.creator_pid

    def learn_internal_device(self) -> None:
        """The kernel's own tmpfs: device and mount id of a memfd of ours. Not in a bare tree: then by name from
        maps."""
        try:
            device, mount_id = self._host.observe("internal shm mount", shmemfiles.internal_mount)
        except OSError:
            return
        self._internal = device
        if mount_id:
            self._device_of_mount[mount_id.encode()] = device

    def learn_mounts(self) -> None:
        """Every mount id and device of every namespace, to tell what is mounted nowhere. Costly: once, when needed."""
        for namespace, pid in self._mounts.pids.items():
            if pid is not None:
                self._learn_mounts_of(namespace, pid)

    def _learn_mounts_of(self, namespace: int | None, pid: int) -> None:
        if namespace in self._learned:
            return
        self._learned.add(namespace)
        try:
            data = self._host.read(f"{self._host.proc}/{pid}/mountinfo")
        except OSError:
            return
        for mount_id, device in shmemfiles.parse_mount_devices(data):
            self._devices.add(device)
            self._device_of_mount.setdefault(mount_id, device)

    # --- what processes show

    def read_maps(self, pid: int) -> None:
        base = f"{self._host.proc}/{pid}"
        process = self._processes[pid]
        try:
            data = self._host.read(f"{base}/maps")
        except (FileNotFoundError, ProcessLookupError):
            return
        except OSError as error:
            self._miss("memory maps of a process", error)
            self._unreadable_rss += process.rss_shmem_bytes or 0
            return
        mine = self._maps_of.setdefault(pid, set())
        blind: dict[str, _Key] = {}
        for mapping in shmemfiles.parse_maps(data):
            device = mapping.device
            internal = device == self._internal
            if not internal and device not in self._tmpfs:
                if mapping.name.startswith("/SYSV") and mapping.deleted and self._internal is not None:
                    self._huge.add(self._segment(mapping.inode, pid))
                if (
                    self._internal is None
                    and mapping.deleted
                    and shmemfiles.internal_kind(mapping.name) != "kernelInternal"
                ):
                    self._internal, internal = device, True
                else:
                    if device not in self._devices:
                        self._unknown_maps.setdefault(device, {}).setdefault(pid, f"{base}/map_files/{mapping.range}")
                    continue
            path = f"{base}/map_files/{mapping.range}"
            key = self._key_of(mapping, internal, pid)
            if key.kind != "file" and key not in self._gone:
                found = self._found(key, mapping.name)
                found.holders.add(pid)
                found.mapped = True
                if found.bytes is None or not found.exact:
                    try:
                        self._measured(key, found, self._host.stat(path))
                    except ProcessLookupError:
                        pass
                    except OSError as error:
                        # Absent: unmapped meanwhile, or a kernel without map_files.
                        if not isinstance(error, FileNotFoundError):
                            self._miss("size of a mapped object", error)
                        blind[mapping.range] = key
            if key in self._gone:
                key = key._replace(kind="file")
            mine.add(key)
            self._example.setdefault(key, path)
        if blind:
            self._read_smaps(pid, blind)

    def _key_of(self, mapping: shmemfiles.MappedFile, internal: bool, pid: int) -> _Key:
        if internal:
            kind = shmemfiles.internal_kind(mapping.name)
            if kind == "sysv":
                return self._segment(mapping.inode, pid)
            return _Key(kind, mapping.device, mapping.inode)
        return _Key("deletedOpen" if mapping.deleted else "file", mapping.device, mapping.inode)

    def _segment(self, shmid: int, pid: int) -> _Key:
        """A process that changed its IPC namespace after attaching makes this wrong; nothing in /proc tells."""
        ipc_ns = self._ipc_namespace(pid)
        return _Key("sysv", "", shmid, self._own_ipc if ipc_ns is None else ipc_ns)

    def _measured(self, key: _Key, found: _Found, stat: FileStat) -> bool:
        """Take the size. A "deleted" file that has a link left (a hard link, or a name that only ends so) is none."""
        if key.kind == "deletedOpen" and stat.nlink > 0:
            self._gone.add(key)
            self._objects.pop(key, None)
            return False
        found.bytes, found.exact = stat.blocks * _BLOCK, True
        return True

    def _read_smaps(self, pid: int, blind: Mapping[str, _Key]) -> None:
        """Where map_files is closed (CAP_CHECKPOINT_RESTORE) but the process is ours: what it has resident of each."""
        try:
            data = self._host.read(f"{self._host.proc}/{pid}/smaps")
        except OSError:
            return
        sums: dict[_Key, int] = {}
        for where, rss_bytes in shmemfiles.parse_smaps(data):
            if (key := blind.get(where)) is not None:
                sums[key] = sums.get(key, 0) + rss_bytes
        for key, size in sums.items():
            found = self._objects.get(key)
            if found is not None and (found.bytes is None or (not found.exact and size > found.bytes)):
                found.bytes, found.exact = size, False

    def read_fds(self, pid: int) -> None:
        base = f"{self._host.proc}/{pid}"
        host = self._host
        try:
            names = host.listdir(f"{base}/fd")
        except (FileNotFoundError, ProcessLookupError):
            return
        except OSError as error:
            self._miss("open files of a process", error)
            return
        for name in names:
            try:
                link = host.readlink(f"{base}/fd/{name}")
                if not link.startswith("/"):
                    continue
                deleted = link.endswith(shmemfiles.DELETED)
                if not deleted and link.startswith(("/dev/", "/proc/", "/sys/")):
                    if link.startswith("/dev/dri/"):
                        client, size = shmemfiles.parse_drm(host.read_small(f"{base}/fdinfo/{name}"))
                        self._drm[client] = size
                    continue
                if deleted:
                    self._read_fd(pid, name, link, deleted)
                else:
                    self._named.append((pid, name))
            except (FileNotFoundError, ProcessLookupError):
                continue
            except PermissionError as error:  # names may be listed and yet nothing more be told, for all alike
                self._miss("open files of a process", error)
                return
            except OSError as error:
                self._miss("open file of a process", error)

    def read_named_fds(self) -> None:
        """Open files that have a name may be on a tmpfs that is mounted nowhere; the name doesn't tell."""
        for pid, name in self._named:
            try:
                self._read_fd(pid, name, "", False)
            except OSError:
                continue  # vanished: what can't be read was counted before
        self._named.clear()

    def _read_fd(self, pid: int, name: str, link: str, deleted: bool) -> None:
        """Never stat what may be on a network or FUSE filesystem: its server may not answer. The mount id says which.

        What remains: a hostile process that puts a FUSE file in the descriptor's place within these microseconds.
        """
        path = f"{self._host.proc}/{pid}/fd/{name}"
        mount_id = shmemfiles.mount_id_of(self._host.read_small(f"{self._host.proc}/{pid}/fdinfo/{name}"))
        if mount_id is not None and mount_id not in self._device_of_mount:
            self._learn_mounts_of(self._processes[pid].mnt_ns, pid)  # mostly one of its own
            if mount_id not in self._device_of_mount:
                self.learn_mounts()
        if mount_id is None:  # before Linux 3.15
            device: str | None = self._host.stat(path).device if deleted else None
        elif mount_id in self._device_of_mount:
            device = self._device_of_mount[mount_id]
        else:
            device = self._device_of_mount[mount_id] = self._probe(path)
        if device is None:
            return
        if device in self._detached:
            self._detached[device].holders.add(pid)
        if not deleted:
            return
        shown = link[: -len(shmemfiles.DELETED)]
        nameless = self._internal is None and device not in self._devices and shown.startswith("/memfd:")
        if device == self._internal or nameless:
            kind: str = shmemfiles.internal_kind(shown)
        elif device in self._tmpfs:
            kind = "deletedOpen"
        else:
            return
        stat = self._host.stat(path)
        if stat.device != device and mount_id is not None:
            return  # the descriptor was closed and used again meanwhile
        key = _Key(kind, device, stat.inode)
        if kind == "sysv":  # a segment's file can be opened by way of map_files
            key = self._segment(stat.inode, pid)
        if key in self._gone:
            return
        found = self._found(key, shown)
        if self._measured(key, found, stat):
            found.holders.add(pid)

    # --- filesystems that are mounted nowhere

    def _probe(self, path: str) -> str | None:
        """The device of an unknown mount; if it is a tmpfs, it joins those that are measured. Can't hang: a child
        asks."""
        if self._probes >= _MAX_PROBES or self._timeouts >= _MAX_TIMEOUTS:
            self._count("file system that is in no mountinfo", "too many of them")
            return None
        self._probes += 1
        try:
            device, magic, *usage = self._host.observe(
                f"file system at {path}",
                lambda: namespaces.in_namespace_fds([], lambda: shmemfiles.usage_of(path), _PROBE_SECONDS),
            )
        except TimeoutError as error:
            self._timeouts += 1
            self._miss("file system that is in no mountinfo", error)
            return None
        except (FileNotFoundError, ProcessLookupError):
            return None
        except OSError as error:
            self._miss("file system that is in no mountinfo", error)
            return None
        if magic == syscalls.TMPFS_MAGIC and device != self._internal and device not in self._tmpfs:
            self._detached[device] = _Detached(FilesystemUsage(*usage), path)
            self._tmpfs.add(device)
        return str(device)

    def probe_mapped(self) -> None:
        """Mapped files of devices that no mountinfo has."""
        self.learn_mounts()
        unknown, self._unknown_maps = self._unknown_maps, {}
        for device, paths in unknown.items():
            if device in self._devices:
                continue
            if device not in self._detached and device not in self._tmpfs:
                self._probe(next(iter(paths.values())))
            if device in self._detached:
                self._detached[device].holders.update(paths)
                for pid in paths:
                    self.read_maps(pid)

    def probe_directories(self, pids: Iterable[int]) -> None:
        """Tmpfs that are only held as somebody's working directory; /proc shows no device for these."""
        self.learn_mounts()
        known = [*self._devices, *self._tmpfs]
        proc = self._host.proc
        pids = list(pids)
        try:
            answer: Mapping[str, Any] = self._host.observe(
                "directories on file systems in no mountinfo",
                lambda: namespaces.in_namespace_fds(
                    [], lambda: shmemfiles.directories(proc, pids, known), _PROBE_SECONDS
                ),
            )
        except OSError as error:
            self._miss("working directories", error)
            return
        for device, (path, holders, *usage) in answer.items():
            detached = _Detached(FilesystemUsage(*usage), str(path), set(holders))
            if device != self._internal and device not in self._tmpfs:
                self._detached[device] = detached
                self._tmpfs.add(device)

    # --- what it comes to

    def _sums(self) -> tuple[dict[str, int], dict[str, int]]:
        """Bytes by kind, and of deleted files by device."""
        for key in self._huge:
            self._objects.pop(key, None)
        sums: dict[str, int] = dict.fromkeys(("sysv", "memfd", "sharedAnonymous", "deletedOpen", "kernelInternal"), 0)
        deleted: dict[str, int] = {}
        for key, found in self._objects.items():
            sums[key.kind] += found.bytes or 0
            if key.kind == "deletedOpen":
                deleted[key.device] = deleted.get(key.device, 0) + (found.bytes or 0)
        return sums, deleted

    def _settle(self, sums: dict[str, int], tmpfs: int) -> tuple[int, int]:
        """What is swapped and what is unattributed. Graphics buffers come last, into ``sums``: drivers count a shared
        one once for each client, so they never get more than is left."""
        known = tmpfs + sum(sums.values())
        swapped = self._swapped(known)
        remainder = self._total + swapped - known
        graphics = min(sum(self._drm.values()) - sums["kernelInternal"], remainder)
        if graphics > 0:
            sums["kernelInternal"] += graphics
            remainder -= graphics
        return swapped, remainder

    def is_unexplained(self) -> bool:
        sums, deleted = self._sums()
        _, remainder = self._settle(sums, self._tmpfs_bytes(deleted, {}))
        return abs(remainder) > self.worth_bytes

    def breakdown(self, *, looked: bool, deep: bool) -> Breakdown:
        missing = dict(self._missing)
        sums, deleted = self._sums()
        self._doubt_segments(missing)
        tmpfs = self._tmpfs_bytes(deleted, missing)
        swapped, remainder = self._settle(sums, tmpfs)
        return Breakdown(
            total_bytes=self._total,
            tmpfs_bytes=tmpfs,
            sysv_bytes=sums["sysv"] if looked or self._tables else None,
            memfd_bytes=sums["memfd"] if looked else None,
            shared_anonymous_bytes=sums["sharedAnonymous"] if looked else None,
            deleted_open_bytes=sums["deletedOpen"] if deep or deleted else None,
            kernel_internal_bytes=sums["kernelInternal"] if looked else None,
            swapped_bytes=swapped,
            unattributed_bytes=remainder,
            mapped_estimate_bytes=self._mapped_estimate(),
            unreadable_rss_bytes=self._unreadable_rss,
            deleted_open_by_device=deleted,
            objects=tuple(sorted(self._frozen(), key=lambda one: (-(one.bytes or 0), one.kind, one.device, one.inode))),
            detached=tuple(
                DetachedSuperblock(
                    device=device,
                    size_bytes=one.usage.size_bytes or None,
                    used_bytes=one.usage.used_bytes if one.usage.size_bytes else None,
                    inodes_used=one.usage.inodes_used if one.usage.inodes else None,
                    holders=tuple(sorted(one.holders)),
                    access_path=one.access_path,
                )
                for device, one in sorted(self._detached.items())
            ),
            deep=deep,
            unreadable=tuple(Unreadable(what, why, count) for (what, why), count in missing.items()),
        )

    def _tmpfs_bytes(self, deleted: Mapping[str, int], missing: dict[tuple[str, str], int]) -> int:
        """A walk sees no deleted files, so only the kernel's own count has them to be taken off."""
        total = 0
        counted = {device: one.used_bytes for device, one in self._mounts.superblocks.items()}
        for device, one in self._detached.items():
            counted[device] = one.usage.used_bytes if one.usage.size_bytes else None
        for device, used in counted.items():
            if used is not None:
                total += max(used - deleted.get(device, 0), 0)
            elif device in self._walked:
                total += self._walked[device]
            else:
                superblock = self._mounts.superblocks.get(device)
                why = superblock.why_unknown if superblock else "mounted without a size limit"
                missing[f"usage of tmpfs {device}", why or "unknown"] = 1
        return total

    def _doubt_segments(self, missing: dict[tuple[str, str], int]) -> None:
        """A segment of huge pages that nobody is attached to looks like any other, and its pages are not in Shmem."""
        page = self._fields.get("Hugepagesize", 0)
        if not page or not (self._fields.get("HugePages_Total", 0) or self._fields.get("Hugetlb", 0)):
            return
        doubt = ("System V segment without a process, counted as if it had no huge pages", "the kernel does not tell")
        for key, found in self._objects.items():
            if key.kind == "sysv" and not found.mapped and found.bytes and found.bytes % page == 0:
                missing[doubt] = missing.get(doubt, 0) + 1

    def _swapped(self, known: int) -> int:
        """How much of what is known is in swap. The swap that no process's VmSwap explains, at least what the segments
        say and what exceeds Shmem, at most the swap in use. VmSwap counts a page shared after fork once per process."""
        used = self._fields.get("SwapTotal", 0) - self._fields.get("SwapFree", 0)
        if used <= 0:
            return 0
        explained = sum(process.swap_bytes for process in self._processes.values())
        estimate = used - self._fields.get("SwapCached", 0) - explained
        segments = sum(found.swap_bytes for found in self._objects.values())
        return min(max(estimate, segments, known - self._total, 0), used)

    def _mapped_estimate(self) -> int | None:
        """Processes that map a common object form a group: in it, at least the largest RssShmem and at most the sum of
        them and the sum of the objects' sizes; that upper bound is taken."""
        leader: dict[object, object] = {}

        def find(node: object) -> object:
            while (above := leader.setdefault(node, node)) != node:
                leader[node] = node = leader[above]
            return node

        rss: dict[int, int] = {}
        for pid, process in self._processes.items():
            if process.rss_shmem_bytes is None and process.has_mm:
                return None
            if process.rss_shmem_bytes:
                rss[pid] = process.rss_shmem_bytes
                for key in self._maps_of.get(pid, ()):
                    leader[find(key)] = find(pid)
        groups: dict[object, list[int]] = {}
        for pid in rss:
            groups.setdefault(find(pid), []).append(pid)
        total = 0
        for members in groups.values():
            bound = sum(rss[pid] for pid in members)
            if len(members) > 1:
                keys = {key for pid in members for key in self._maps_of.get(pid, ())}
                sizes = [self._size(key) for key in keys]
                if None not in sizes and all(pid in self._maps_of for pid in members):
                    bound = min(bound, sum(size or 0 for size in sizes))
                bound = max(bound, *(rss[pid] for pid in members))
            total += bound
        return min(total, self._total)

    def _size(self, key: _Key) -> int | None:
        found = self._objects.get(key)
        if found is not None:
            return found.bytes if found.exact else None
        try:
            return self._host.stat(self._example[key]).blocks * _BLOCK
        except OSError:
            return None

    def _frozen(self) -> Iterator[ShmemObject]:
        for key, found in self._objects.items():
            if found.bytes == 0:
                continue
            cgroups = {self._processes[pid].cgroup for pid in found.holders}
            yield ShmemObject(
                kind=key.kind,  # type: ignore[arg-type]
                device=key.device or self._internal or "",
                inode=key.inode,
                bytes=found.bytes,
                exact=found.exact,
                name=found.name,
                holders=tuple(sorted(found.holders)),
                mapped=found.mapped,
                cgroups=tuple(sorted(cgroup for cgroup in cgroups if cgroup is not None)),
                ipc_ns=key.ipc_ns,
                creator_pid=found.creator_pid,
            )

    def _found(self, key: _Key, name: str) -> _Found:
        found = self._objects.get(key)
        if found is None:
            found = self._objects[key] = _Found(name)
        return found

    def _miss(self, what: str, error: OSError, count: int = 1) -> None:
        self._count(what, error.strerror or str(error), count)

    def _count(self, what: str, why: str, count: int = 1) -> None:
        self._missing[what, why] = self._missing.get((what, why), 0) + count


def _has_memory(processes: Mapping[int, Process], pid: int) -> bool:
    process = processes.get(pid)
    return process is not None and process.has_mm and not process.kernel_thread
