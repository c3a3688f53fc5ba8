"""Every tmpfs of a node: the mountinfo of each mount namespace in, distinct superblocks with their usage out.

A superblock is one filesystem, known by its device number; it may be mounted in many places and namespaces. Usage
comes from statvfs through ``/proc/<pid>/root``, on a descriptor whose device number was compared with mountinfo: a
mount that is covered by another one is never given the other's numbers. Covered ones are measured by a short-lived
child that takes the cover off in a private copy of the mount namespace (mountusage.py).

Nothing here can wait for a network or FUSE server: paths are looked up with openat2(RESOLVE_NO_SYMLINKS), and where the
way to a tmpfs leads through a filesystem that isn't known to be local, the kernel may only use what it has cached
(RESOLVE_CACHED); where that isn't enough, the usage is unknown. What remains: an overlay whose lower layers are
themselves on a stuck server, and on kernels without openat2 a mount made by a hostile container in the microseconds
between mountinfo and look-up.
"""

import errno
import itertools
import os
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from nodemem.kernel import mountusage
from nodemem.kernel.host import FilesystemUsage, Host, Unreadable
from nodemem.kernel.mountinfo import Lines, Words, look_at_rows, parse_rows
from nodemem.kernel.mountinfo import Mount as Mount
from nodemem.kernel.mountinfo import parse_mountinfo as parse_mountinfo

ROTATION = 10
"""A sparing scan reads the mountinfo of every ROTATIONth namespace: in so many scans each has had its turn."""

QUIET_ROTATION = 5
"""... and the usage of every QUIET_ROTATIONth quiet tmpfs."""

SETTLING = 2
"""So many further scans read the mountinfo of a new namespace: runtimes mount after they have made it."""

QUIET_BYTES = 1 << 20

_MOVED = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ESRCH)

_MAX_READERS = 64  # processes tried for the mountinfo of one namespace
_MAX_TRIES = 64  # mount points tried for one superblock in one scan
_LOST_TRIES = 2  # the same, sparing, where none led there before
_MAX_KEPT_NAMESPACES = 32  # process-less namespaces looked into in one scan


class MountPoint(NamedTuple):
    """One place where a superblock is mounted.

    ``root`` is the directory of the filesystem that shows there: "/" or, for a bind mount of a subdirectory, that one
    ("//deleted" at its end: removed since). ``hidden``: looking up ``path`` ends at another mount, or nowhere.
    ``behind``: the filesystem, of a kind that may hang, through which the path leads.
    """

    namespace: int
    path: str
    root: str
    mount_id: int
    options: str
    hidden: bool
    behind: str | None = None


_mount_point: Callable[[tuple[object, ...]], MountPoint] = partial(tuple.__new__, MountPoint)
"""In half the time; there are thousands in a first scan."""


@dataclass(slots=True)
class Superblock:
    """A tmpfs or devtmpfs and what it holds, in allocated pages (holes cost nothing, swapped-out pages count). Treat it
    as frozen: making a frozen one takes three times as long.

    ``size_bytes`` is None when it is unknown, and when there is no limit: then ``unlimited`` is True and the kernel
    keeps no count of used pages either. ``inodes`` None: unknown, or no limit on them. ``access_path`` leads there
    through the root of process ``access_pid``; None where it is covered (look_below gets there through that process) or
    out of reach (both None). ``measured_at`` is Unix time: usage found below
    another mount is up to ``MountTable.hidden_refresh_seconds`` old.
    """

    device: str
    fstype: str
    source: str
    options: str
    size_bytes: int | None
    used_bytes: int | None
    inodes: int | None
    inodes_used: int | None
    unlimited: bool
    mounts: list[MountPoint]
    access_pid: int | None
    access_path: str | None
    why_unknown: str | None
    measured_at: float | None


@dataclass(frozen=True, slots=True)
class MountScan:
    """``pids``: for each mount namespace the process through which it was read (None: kept alive by a bind mount)."""

    superblocks: dict[str, Superblock]
    unreadable: list[Unreadable]
    pids: dict[int, int | None]


@dataclass(slots=True)
class _View:
    """What one namespace's mountinfo says, kept as long as its text stays the same. ``turn``: of the rotation."""

    key: tuple[int, int]
    entries: list[tuple[str, Words, MountPoint]]
    kept: list[tuple[int, MountPoint]]
    broken: int
    root_pid: int | None = None
    turn: int = 0
    settling: int = SETTLING
    members: frozenset[int] = frozenset()


def _parse_view(namespace: int, data: bytes, key: tuple[int, int], trusted_root: bool, lines: Lines) -> _View:
    rows, broken = parse_rows(data, lines)
    entries: list[tuple[str, Words, MountPoint]] = []
    kept: list[tuple[int, MountPoint]] = []
    for at, hidden, behind in look_at_rows(rows, lines, trusted_root):
        mount_id, _, device, line = rows[at]
        words = line.words
        assert words is not None
        point = _mount_point((namespace, words.path, words.root, int(mount_id), words.options, hidden, behind))
        if words.fstype != "nsfs":
            entries.append((device.decode("ascii"), words, point))
        elif (inode := words.root[5:-1]).isdigit():
            kept.append((int(inode), point))
    return _View(key, entries, kept, broken)


@dataclass(slots=True)
class _Group:
    device: str
    fstype: str
    source: str
    options: str
    mounts: list[MountPoint]
    usual: MountPoint | None = None
    below: "_Below | None" = None
    last: Superblock | None = None
    turn: int = 0
    lost: bool = False  # when all was read, no mount point led there


@dataclass(slots=True)
class _Below:
    """The last look below the mounts that cover a superblock: usage or the reason why not."""

    taken: float
    measured_at: float
    usage: FilesystemUsage | None
    why: str


@dataclass(slots=True)
class _Roots:
    """The root directory of the process last used, opened once for a run of superblocks in one namespace."""

    proc: str
    pid: int = -1
    fd: int = -1

    def open(self, pid: int) -> int:
        if pid != self.pid:
            self.close()
            self.fd = os.open(f"{self.proc}/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            self.pid = pid
        return self.fd

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.pid = self.fd = -1


class MountTable:
    """Scans mount namespaces. Keeps what it parsed, never a descriptor: that would pin a container's mounts.

    A steady scan costs one read of mountinfo per namespace and one look-up with statx and statvfs per superblock.
    ``hidden_refresh_seconds``: how old the usage of a covered tmpfs may be before a child looks again.
    """

    def __init__(self, host: Host, hidden_refresh_seconds: float = 300.0) -> None:
        self._host = host
        self.hidden_refresh_seconds = hidden_refresh_seconds
        self._views: dict[int, _View] = {}
        self._groups: dict[str, _Group] = {}
        self._kept: dict[int, tuple[float, dict[str, Any] | str]] = {}
        self._had_kept = False
        self._scans = 0
        self._made = 0

    def scan(
        self, namespaces: Mapping[int, Sequence[int]], *, sparing: bool = False, enough_bytes: int | None = None
    ) -> MountScan:
        """``namespaces``: mount namespace inode -> the processes in it, those to read through first in front.

        ``sparing`` may miss what only a container did, for a while: a mount that it made or took off itself for
        ``ROTATION`` scans (what the host mounts is in the namespace of process 1, which is always read), and for
        ``QUIET_ROTATION`` scans what came into a tmpfs that was quiet (``is_quiet``). All of it is Shmem: who sees
        that grow without a reason scans again, not sparing. Where a look-up fails, that is done here.
        ``enough_bytes``: where the tmpfs in the open hold that much together, no child is sent to those that other
        mounts cover; the next scan does that.
        """
        self._scans += 1
        missing: dict[tuple[str, str], int] = {}
        pids, changed, unread = self._read_all(namespaces, missing, sparing)
        kept = self._look_into_kept(namespaces, pids, missing)
        if changed or kept or self._had_kept:
            self._regroup(kept)
        self._had_kept = bool(kept)
        for view in self._views.values():
            if view.broken:
                _count(missing, "lines of mountinfo", "not in the format of proc(5)", view.broken)
        superblocks = self._measure(namespaces, pids, kept, sparing, unread, enough_bytes)
        if superblocks is None:
            return self.scan(namespaces)
        unreadable = [Unreadable(what, why, count) for (what, why), count in missing.items()]
        return MountScan(superblocks, unreadable, {**pids, **dict.fromkeys(kept)})

    def _read_all(
        self, namespaces: Mapping[int, Sequence[int]], missing: dict[tuple[str, str], int], sparing: bool
    ) -> tuple[dict[int, int], bool, set[int]]:
        """The process that each was read through, whether anything changed, and which were not read."""
        pids: dict[int, int] = {}
        unread: set[int] = set()
        changed = False
        turn = self._scans % ROTATION
        lines = Lines()
        for namespace, members in namespaces.items():
            view = self._views.get(namespace)
            if view is not None and members[0] not in view.members and view.members.isdisjoint(members):
                view = None  # the number of a namespace that ended is given out again
            if sparing and view is not None and not view.settling and view.turn != turn and members[0] != 1:
                if len(members) != len(view.members) or not view.members.issuperset(members):
                    view.members = frozenset(members)
                pids[namespace] = members[0]
                unread.add(namespace)
                continue
            why = ""
            for pid in members[:_MAX_READERS]:
                try:
                    data = self._host.read(f"{self._host.proc}/{pid}/mountinfo")
                except OSError as error:
                    # EINVAL: the process is a zombie and has left its namespaces.
                    if error.errno not in (errno.ENOENT, errno.ESRCH, errno.EINVAL):
                        why = error.strerror or str(error)
                    continue
                pids[namespace] = pid
                key = (len(data), hash(data))
                if view is None or view.key != key:
                    parsed = _parse_view(namespace, data, key, 1 in members, lines)
                    if view is None:
                        self._made += 1
                        parsed.turn = self._made % ROTATION
                    else:
                        parsed.turn, parsed.settling = view.turn, view.settling
                    self._views[namespace] = view = parsed
                    changed = True
                else:
                    view.settling = max(0, view.settling - 1)
                view.members = frozenset(members)
                break
            else:
                if why:
                    _count(missing, "mount namespace", why)
        for namespace in [gone for gone in self._views if gone not in pids]:
            del self._views[namespace]
            changed = True
        return pids, changed, unread

    def _regroup(self, kept: Mapping[int, tuple[_View, Mapping[str, Any]]]) -> None:
        before = self._groups
        groups: dict[str, _Group] = {}
        for view in [*self._views.values(), *(view for view, _ in kept.values())]:
            for device, words, point in view.entries:
                group = groups.get(device)
                if group is None:
                    group = groups[device] = _Group(device, words.fstype, words.source, words.super_options, [])
                group.mounts.append(point)
        for device, group in groups.items():
            old = before.get(device)
            if old is not None and old.mounts == group.mounts:
                group.mounts = old.mounts  # the same list as before says: nothing changed here
            if old is not None and (old.source, old.options) == (group.source, group.options):
                group.below, group.last, group.turn, group.lost = old.below, old.last, old.turn, old.lost
                if old.usual in group.mounts:
                    group.usual = old.usual
            else:
                self._made += 1
                group.turn = self._made % QUIET_ROTATION
        self._groups = groups

    def _measure(
        self,
        namespaces: Mapping[int, Sequence[int]],
        pids: Mapping[int, int],
        kept: Mapping[int, tuple[_View, Mapping[str, Any]]],
        sparing: bool,
        unread: Container[int],
        enough_bytes: int | None,
    ) -> dict[str, Superblock] | None:
        """None: a look-up failed where mountinfo was not read."""
        found: dict[str, Superblock] = {}
        covered: list[_Group] = []
        roots = _Roots(self._host.proc)
        now = self._host.now()
        turn = self._scans % QUIET_ROTATION
        try:
            for device, group in self._groups.items():
                last, usual = group.last, group.usual
                if (
                    sparing
                    and last is not None
                    and usual is not None
                    and group.turn != turn
                    and last.mounts is group.mounts
                    and is_quiet(last)
                    and last.access_pid in namespaces.get(usual.namespace, ())
                ):
                    found[device] = last
                    continue
                why = ""
                tries = _LOST_TRIES if sparing and group.lost else _MAX_TRIES
                for point in itertools.islice(self._candidates(group, pids), tries):
                    try:
                        pid, usage = self._ask(roots, point, device, namespaces[point.namespace], pids[point.namespace])
                    except OSError as error:
                        if error.errno in _MOVED and point.namespace in unread and not group.lost:
                            return None
                        why = _why(error, point)
                        continue
                    group.usual, group.lost = point, False
                    path = f"{self._host.proc}/{pid}/root{point.path}"
                    found[device] = group.last = _superblock(group, usage, now, pid, path)
                    break
                else:
                    group.lost = group.lost or not sparing
                    usage_list = next((u[device] for _, u in kept.values() if device in u), None)
                    if usage_list is not None:
                        found[device] = _superblock(group, FilesystemUsage(*usage_list), now)
                    else:
                        covered.append(group)
                        found[device] = _superblock(group, None, None, why=why or "no process to look through")
        finally:
            roots.close()
        if enough_bytes is not None and sum(each.used_bytes or 0 for each in found.values()) >= enough_bytes:
            for group in covered:
                found[group.device] = _superblock(group, None, None, why="hidden by another mount; not looked at yet")
        elif covered:
            self._look_below(covered, pids, found)
        return {
            device: superblock
            for device, superblock in found.items()
            # An initial ramfs has no size and is called rootfs as a tmpfs is: only the latter is limited.
            if superblock.fstype != "rootfs" or superblock.size_bytes or "size=" in superblock.options
        }

    def _candidates(self, group: _Group, pids: Mapping[int, int]) -> Iterator[MountPoint]:
        usual = group.usual
        if usual is not None and usual.namespace in pids:
            yield usual
        # The whole filesystem rather than a subdirectory or a file of it: its contents can be listed, too.
        best = None
        for point in group.mounts:
            plain = point.root == "/" and not point.hidden and point.behind is None
            if plain and point is not usual and point.namespace in pids:
                best = point
                yield point
                break
        others = [p for p in group.mounts if not p.hidden and p not in (usual, best) and p.namespace in pids]
        others.sort(key=lambda point: (point.behind is not None, point.root != "/"))
        yield from others

    def _ask(
        self, roots: _Roots, point: MountPoint, device: str, members: Sequence[int], first: int
    ) -> tuple[int, FilesystemUsage]:
        """Through the process that showed the mounts; another one where its root may not be entered."""
        view = self._views[point.namespace]
        failed: OSError | None = None
        for pid in self._readers(view, members, first):
            try:
                usage = self._usage(roots, pid, point, device)
            except (PermissionError, ProcessLookupError, FileNotFoundError) as error:
                failed = failed or error
                if isinstance(error, FileNotFoundError) and self._host.live and roots.pid == pid:
                    break  # the root was there, the mount point was not
                continue
            view.root_pid = pid
            return pid, usage
        raise failed or FileNotFoundError(errno.ENOENT, "no process left in the namespace")

    def _readers(self, view: _View, members: Sequence[int], first: int) -> Iterator[int]:
        usual = view.root_pid if view.root_pid is not None and view.root_pid in members else first
        yield usual
        own = [os.getpid()] if self._host.live else []
        rest = [first, *(pid for pid in own if pid in members), *(members[:16] if self._host.live else members)]
        yield from (pid for pid in dict.fromkeys(rest) if pid != usual)

    def _usage(self, roots: _Roots, pid: int, point: MountPoint, device: str) -> FilesystemUsage:
        host = self._host
        cached_only = point.behind is not None

        def measure() -> list[int]:
            return mountusage.usage_at(roots.open(pid), point.path, device, cached_only)

        try:
            return FilesystemUsage(*host.observe(f"tmpfs {device} usage /proc/{pid}/root{point.path}", measure))
        except FileNotFoundError:
            if host.live:
                raise
        # A tree put together by hand has stat and statvfs of the path instead.
        path = f"{host.proc}/{pid}/root{point.path}"
        if host.stat(path).device != device:
            raise OSError(errno.ESTALE, "another file system is mounted there", path)
        return host.statvfs(path)

    def _look_below(self, groups: list[_Group], pids: Mapping[int, int], found: dict[str, Superblock]) -> None:
        clock = time.monotonic()
        due: dict[int, list[_Group]] = {}
        for group in groups:
            reachable = [point for point in group.mounts if point.hidden and point.namespace in pids]
            point = next((point for point in reachable if point.behind is None), None)
            if point is None:
                if reachable:
                    why = f"covered, and only reached through {reachable[0].behind}, which might not answer"
                    found[group.device] = _superblock(group, None, None, why=why)
                continue
            below = group.below
            if below is None or not self._host.live or clock - below.taken >= self.hidden_refresh_seconds:
                due.setdefault(point.namespace, []).append(group)
                continue
            found[group.device] = _superblock(
                group, below.usage, below.measured_at, pids[point.namespace], why=below.why
            )
        for namespace, members in due.items():
            devices = [group.device for group in members]
            answers: dict[str, Any] = {}
            why = ""
            try:
                answers = self._host.observe(
                    f"tmpfs below mounts in mnt:[{namespace}] {' '.join(devices)}",
                    partial(
                        mountusage.look_below,
                        self._host.proc,
                        pids[namespace],
                        namespace,
                        devices,
                        mountusage.usage_of,
                    ),
                )
            except OSError as error:
                why = _why_not_below(error)
            for group in members:
                answer = answers.get(group.device, why)
                usage = None if isinstance(answer, str) else FilesystemUsage(*answer)
                words = f"hidden by another mount; {answer}" if isinstance(answer, str) else ""
                group.below = _Below(clock, self._host.now(), usage, words)
                found[group.device] = _superblock(group, usage, group.below.measured_at, pids[namespace], why=words)

    def _look_into_kept(
        self,
        namespaces: Mapping[int, Sequence[int]],
        pids: Mapping[int, int],
        missing: dict[tuple[str, str], int],
    ) -> dict[int, tuple[_View, Mapping[str, Any]]]:
        """Mount namespaces that no process is in, kept by a bind mount of their /proc/<pid>/ns/mnt file."""
        wanted: dict[int, tuple[int, MountPoint]] = {}
        for namespace, view in self._views.items():
            for inode, point in view.kept:
                if inode not in namespaces and not point.hidden and point.behind is None:
                    wanted.setdefault(inode, (namespace, point))
        for inode in [gone for gone in self._kept if gone not in wanted]:
            del self._kept[inode]
        result: dict[int, tuple[_View, Mapping[str, Any]]] = {}
        clock = time.monotonic()
        for number, (inode, (namespace, point)) in enumerate(wanted.items()):
            what = "mount namespace without a process"
            if number >= _MAX_KEPT_NAMESPACES:
                _count(missing, what, f"only {_MAX_KEPT_NAMESPACES} are looked into")
                continue
            known = self._kept.get(inode)
            if known is None or not self._host.live or clock - known[0] >= self.hidden_refresh_seconds:
                try:
                    answer: dict[str, Any] | str = self._host.observe(
                        f"tmpfs of mnt:[{inode}] kept at /proc/{pids[namespace]}/root{point.path}",
                        partial(mountusage.look_into, self._host.proc, pids[namespace], point.path, inode),
                    )
                except OSError as error:
                    answer = _why_not_below(error)
                known = self._kept[inode] = (clock, answer)
            answer = known[1]
            if isinstance(answer, str):
                _count(missing, what, answer)
                continue
            data = os.fsencode(answer["mountinfo"])
            result[inode] = (_parse_view(inode, data, (0, 0), False, Lines()), answer["usage"])
        return result


def is_quiet(superblock: Superblock) -> bool:
    """It holds little, and less than half of what it may: what comes next is no figure that anybody acts on."""
    size, used, inodes = superblock.size_bytes, superblock.used_bytes, superblock.inodes
    if size is None or used is None or used >= QUIET_BYTES or 2 * used >= size:
        return False
    return inodes is None or 2 * (superblock.inodes_used or 0) < inodes


def _count(missing: dict[tuple[str, str], int], what: str, why: str, count: int = 1) -> None:
    missing[what, why] = missing.get((what, why), 0) + count


def _why(error: OSError, point: MountPoint) -> str:
    if error.errno == errno.EAGAIN and point.behind is not None:
        return f"only reached through {point.behind}, which might not answer"
    return error.strerror or str(error)


def _why_not_below(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return f"looking there needs CAP_SYS_ADMIN, CAP_SYS_CHROOT and CAP_SYS_PTRACE ({error.strerror})"
    return f"looking there: {error.strerror or error}"


def _superblock(
    group: _Group,
    usage: FilesystemUsage | None,
    measured_at: float | None,
    pid: int | None = None,
    path: str | None = None,
    *,
    why: str = "",
) -> Superblock:
    unlimited = usage is not None and usage.size_bytes == 0
    limited = usage if usage is not None and not unlimited else None
    if unlimited:
        why = "mounted without a size limit: the kernel does not count its pages"
    return Superblock(
        device=group.device,
        fstype=group.fstype,
        source=group.source,
        options=group.options,
        size_bytes=limited.size_bytes if limited else None,
        used_bytes=limited.used_bytes if limited else None,
        inodes=usage.inodes if usage is not None and usage.inodes else None,
        inodes_used=usage.inodes_used if usage is not None and usage.inodes else None,
        unlimited=unlimited,
        mounts=group.mounts,
        access_pid=pid,
        access_path=path,
        why_unknown=(why or "unknown") if limited is None else None,
        measured_at=measured_at if usage is not None else None,
    )
