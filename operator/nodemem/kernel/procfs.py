"""The process table of a node: what each process holds, what the OOM killer knows about it, and where it belongs.

A ``ProcessTable`` makes one pass over /proc per scan and remembers enough to make the next pass cheap (measurements:
docs/performance.md). What cannot be seen from here: processes that share one address space without being threads of
each other (vfork, CLONE_VM) each report all of it, and no file of /proc says so. A sum over processes counts it twice.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from nodemem.kernel.host import Host, Unreadable
from nodemem.kernel.processfiles import (
    MalformedError,
    Stat,
    StatusFields,
    StatusParser,
    parse_cgroup,
    parse_stat,
)

ROTATION = 10
"""A scan looks closer at every ROTATIONth process; in this many scans each process has had its turn."""

STATUS_TURNS = 3
"""Of so many turns one reads status, too, where statm says that memory is as it was."""

SETTLING = 2
"""So many further scans re-read everything of a process first seen: runtimes exec, move it to its cgroup, set its
oom_score_adj and namespaces right after the fork."""

_SMALL = 4095
"""What ``Host.read_small`` returns at most; a longer answer may have been cut there."""

_BLOCK = 50
"""So many processes are looked at together: what their files say takes 75 KB for a moment."""

_PF_KTHREAD = 0x00200000
"""include/linux/sched.h, the same bit since 2.6.18."""


@dataclass(slots=True)
class Process:
    """One process (thread group). Treat it as frozen: a later scan hands out the same object if nothing changed.

    Memory is what fs/proc/task_mmu.c prints, and what mm/oom_kill.c counts: ``rss_bytes`` = anon + file + shmem,
    without hugetlb pages. Since kernel 6.2 the counters are per CPU, and a value may be off by some pages for each CPU.
    ``rss_anon_bytes``, ``rss_file_bytes`` and ``rss_shmem_bytes`` are None before kernel 4.5, ``hugetlb_bytes`` before
    4.4. A process whose leader has exited while other threads live has the memory, cgroup and namespaces of such a
    thread, as the OOM killer sees it (find_lock_task_mm); ``state`` is still the leader's.

    ``has_mm`` is False for kernel threads, zombies and processes about to become one: nothing to kill there, sizes are
    0, and ``cgroup`` may already be the root. ``oom_score_adj``, ``cgroup`` and ``mnt_ns`` are None for
    kernel threads (never asked), where the kernel has no such file, and where it refuses it (``ProcessScan.unreadable``
    says so then). ``cgroup`` is the path in the hierarchy that has the memory controller. ``uid`` is the real one.
    ``start_time_ticks`` counts from boot in units of ``Host.clock_ticks``; None after a hurried first look.
    """

    pid: int
    ppid: int
    start_time_ticks: int | None
    comm: str
    state: str
    uid: int
    kernel_thread: bool
    has_mm: bool
    threads: int
    rss_anon_bytes: int | None
    rss_file_bytes: int | None
    rss_shmem_bytes: int | None
    rss_bytes: int
    swap_bytes: int
    page_tables_bytes: int
    hugetlb_bytes: int | None
    virtual_bytes: int
    oom_score_adj: int | None
    cgroup: str | None
    mnt_ns: int | None


@dataclass(frozen=True, slots=True)
class ProcessScan:
    """The processes by pid, in ascending order, and what is missing from them.

    ``zombies`` of them are dead and wait for their parent. ``vanished`` were listed and gone before they could be read.
    """

    processes: dict[int, Process]
    zombies: int
    vanished: int
    unreadable: list[Unreadable]

    def mount_namespaces(self) -> dict[int, list[int]]:
        """Inode number of each mount namespace -> pids in it, ascending."""
        found: dict[int, list[int]] = {}
        for pid, process in self.processes.items():
            if process.mnt_ns is not None:
                found.setdefault(process.mnt_ns, []).append(pid)
        return found


@dataclass(slots=True)
class _Seen:
    """What the table remembers of one process between scans."""

    inode: int
    process: Process
    statm: bytes = b""
    settling: int = SETTLING
    restless: bool = False
    denied: tuple[tuple[str, str], ...] = ()


class ProcessTable:
    """Scans of one host that get cheap from the second on.

    What a caller may rely on, counted in scans of one table:

    - Which processes exist, and that no value is an earlier process's with the same pid: always current.
    - Where the kernel's ``statm`` changed (pages: virtual, resident, resident file and shmem, data), ``status`` is read
      again: memory by kind, swap, page tables, hugetlb, threads, state, comm, uid, ppid.
    - What can change while statm stays as it was: ``oom_score_adj``, cgroup and namespaces are at most ``ROTATION``
      scans old. Three times as old (``STATUS_TURNS``): comm, uid, ppid, threads, state (but for death, which empties
      statm); page tables of memory only read and never written; one kind of page for another, as in a swap-out made up
      for by a swap-in.
    - In its first 1 + ``SETTLING`` scans a process is read completely, and so it is when its comm or uid is seen to
      change. ``scan(full=True)`` reads everything of every process.

    Not for use by two threads at once.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._seen: dict[str, _Seen] = {}
        self._scans = 0
        self._status = StatusParser()
        self._cgroups: dict[bytes, str | None] = {}
        self._comms: dict[bytes, str] = {}

    def scan(self, full: bool = False, *, hurried: bool = False) -> ProcessScan:
        """One pass over /proc. Raises nothing: what can't be read is in the result.

        ``hurried`` leaves out when the processes seen for the first time were started; the next scan has it.
        """
        host = self._host
        read = host.read_small
        proc = host.proc
        before, now = self._seen, {}
        processes: dict[int, Process] = {}
        unreadable: dict[tuple[str, str], int] = {}
        vanished = 0
        # A rotation by pid, not by place in the listing: every pid gets its turn, whoever comes and goes.
        turn = self._scans % ROTATION
        whole = self._scans // ROTATION % STATUS_TURNS
        self._scans += 1
        try:
            listing, identified = self._listing()
        except OSError as error:
            return ProcessScan({}, 0, 0, [Unreadable(proc, _why(error))])
        full = full or not identified
        hurried = hurried and identified
        if turn == 0 or len(self._cgroups) > 2 * len(listing):
            self._cgroups.clear()  # of containers that are gone
            self._comms.clear()

        new = {name: inode for name, inode in listing.items() if name not in before} if hurried else {}
        glances = self._glances(new)
        for name, inode in listing.items():
            pid = int(name)
            seen = before.get(name)
            try:
                if seen is not None and seen.inode != inode and not self._same(seen, name, inode):
                    seen = None
                if seen is None:
                    seen = glances.get(name) or self._read(pid, name, inode)
                elif full or seen.settling or pid % ROTATION == turn:
                    # statm before status: a change in between is then noticed by the next scan.
                    statm = b"" if seen.process.kernel_thread else read(f"{proc}/{name}/statm")
                    settling = max(seen.settling - 1, 0)
                    if full or seen.settling or statm != seen.statm or pid // ROTATION % STATUS_TURNS == whole:
                        seen = self._read(pid, name, inode, None if full else seen.process)
                        seen.statm, seen.settling = _copied(statm), settling
                    else:
                        self._check(seen, pid, name)
                elif not seen.process.kernel_thread:
                    statm = read(f"{proc}/{name}/statm")
                    if statm != seen.statm or seen.restless:
                        seen = self._update(seen, pid, name)
                        seen.statm = _copied(statm)
            except (FileNotFoundError, ProcessLookupError):
                vanished += 1
                continue
            except OSError as error:
                key = (f"{proc}/<pid>", _why(error))
                unreadable[key] = unreadable.get(key, 0) + 1
                continue
            except MalformedError as error:
                key = (f"{proc}/<pid>", str(error))
                unreadable[key] = unreadable.get(key, 0) + 1
                continue
            now[name] = seen
            processes[pid] = seen.process
            if seen.denied:
                for key in seen.denied:
                    unreadable[key] = unreadable.get(key, 0) + 1

        self._seen = now
        missing = [Unreadable(what, why, count) for (what, why), count in unreadable.items()]
        if "1" not in listing:
            missing.extend(self._hidden())
        zombies = sum(process.state == "Z" and not process.has_mm for process in processes.values())
        return ProcessScan(processes, zombies, vanished, missing)

    def _listing(self) -> tuple[dict[str, int], bool]:
        """The pids with the inode number of their directory, and whether these numbers are known.

        The kernel makes a new inode with the next number of a counter for a new process, and drops the old one when the
        process is reaped: the number, which getdents gives, tells a reused pid at the price of the listing. It changes,
        too, when the directory was dropped from the cache under memory pressure: a new number means "look again".
        """
        proc = self._host.proc
        try:
            found: dict[str, int] = self._host.observe(f"pids {proc}", lambda: _pids(proc))
            return found, True
        except FileNotFoundError:
            names = [name for name in self._host.listdir(proc) if name.isdecimal() and name.isascii()]
            return dict.fromkeys(sorted(names, key=int), 0), False

    def _same(self, seen: _Seen, name: str, inode: int) -> bool:
        stat = parse_stat(self._host.read_small(f"{self._host.proc}/{name}/stat"))
        if stat.start_time_ticks != seen.process.start_time_ticks:
            return False
        seen.inode = inode
        return True

    def _update(self, seen: _Seen, pid: int, name: str) -> _Seen:
        """``seen`` with its status read again; or all of it, where that tells of another program or an exit."""
        was = seen.process
        status = self._status.parse(self._read_status(f"{self._host.proc}/{name}/status"))
        comm = self._comm(status.comm)
        if not status.has_mm or seen.restless or comm != was.comm or status.uid != was.uid:
            again = self._read(pid, name, seen.inode)
            again.settling = 0
            return again
        seen.process = _process(pid, was.start_time_ticks, comm, status, was.oom_score_adj, was.cgroup, was.mnt_ns)
        return seen

    def _check(self, seen: _Seen, pid: int, name: str) -> None:
        """What can change while the memory stays, and decides something: oom_score_adj, cgroup, namespaces."""
        was = seen.process
        if was.kernel_thread or not was.has_mm or seen.restless or seen.denied:
            again = self._read(pid, name, seen.inode)
            seen.process, seen.restless, seen.denied = again.process, again.restless, again.denied
            return
        host = self._host
        base = f"{host.proc}/{name}"
        adj = int(host.read_small(base + "/oom_score_adj"))
        membership = host.read_small(base + "/cgroup")
        cgroup = self._cgroup(membership if len(membership) < _SMALL else host.read(base + "/cgroup"))
        mnt_ns = int(host.readlink(base + "/ns/mnt")[5:-1])
        if (adj, cgroup, mnt_ns) != (was.oom_score_adj, was.cgroup, was.mnt_ns):
            seen.process = self._read(pid, name, seen.inode).process

    def _glances(self, new: Mapping[str, int]) -> dict[str, _Seen]:
        """All but the start of the processes that have an address space and let it be read; the others take ``_read``.

        One file of many processes after the other, and then what they say: so the processor has the code at hand, the
        kernel's and the interpreter's (docs/performance.md).
        """
        found: dict[str, _Seen] = {}
        names = list(new)
        for start in range(0, len(names), _BLOCK):
            living: dict[str, StatusFields] = {}
            for name, text in self._texts(names[start : start + _BLOCK], "status").items():
                try:
                    fields = self._status.living(text) if _has_threads(text) else None
                except MalformedError:
                    continue
                if fields is not None:
                    living[name] = fields
            adjs = self._texts(living, "oom_score_adj")
            memberships = self._texts(adjs, "cgroup")
            for name, mnt_ns in self._links(memberships).items():
                fields, adj, membership = living[name], adjs[name].rstrip(), memberships[name]
                if adj.removeprefix(b"-").isdigit() and len(membership) < _SMALL:
                    comm, cgroup = self._comm(fields[0]), self._cgroup(membership)
                    process = _process(int(name), None, comm, fields, int(adj), cgroup, mnt_ns)
                    found[name] = _Seen(new[name], process)
        return found

    def _texts(self, names: Iterable[str], file: str) -> dict[str, bytes]:
        """The beginning of a file of each process that lets it be read."""
        read, proc = self._host.read_small, self._host.proc
        texts: dict[str, bytes] = {}
        for name in names:
            try:
                texts[name] = read(f"{proc}/{name}/{file}")
            except OSError:
                pass
        return texts

    def _links(self, names: Iterable[str]) -> dict[str, int]:
        """The mount namespace of each process that lets it be seen."""
        readlink, proc = self._host.readlink, self._host.proc
        links: dict[str, int] = {}
        for name in names:
            try:
                links[name] = int(readlink(f"{proc}/{name}/ns/mnt")[5:-1])
            except (OSError, ValueError):
                pass
        return links

    def _read(self, pid: int, name: str, inode: int, known: Process | None = None) -> _Seen:
        """Everything of one process; ``known`` to be the same as then, its start time needn't be asked again.

        Raises FileNotFoundError or ProcessLookupError if it is gone, another OSError if refused, or MalformedError.
        """
        host = self._host
        base = f"{host.proc}/{name}"
        stat: Stat | None = None
        if known is not None and known.start_time_ticks is not None and known.has_mm:
            started = known.start_time_ticks
        else:
            stat = parse_stat(host.read_small(base + "/stat"))
            if stat.flags & _PF_KTHREAD:
                return _Seen(inode, _kernel_thread(pid, stat), b"", SETTLING, False, ())
            started = stat.start_time_ticks
        if stat is None or stat.state not in "ZX":
            try:
                # In the order of _read_carefully, and for the reason given there.
                adj = int(host.read_small(base + "/oom_score_adj"))
                membership = host.read_small(base + "/cgroup")
                mnt_ns = int(host.readlink(base + "/ns/mnt")[5:-1])
                status = self._status.parse(self._read_status(base + "/status"))
            except (FileNotFoundError, PermissionError, ValueError):
                pass
            else:
                if status.has_mm and len(membership) < _SMALL:
                    comm, cgroup = self._comm(status.comm), self._cgroup(membership)
                    process = _process(pid, started, comm, status, adj, cgroup, mnt_ns)
                    return _Seen(inode, process, b"", SETTLING, False, ())
        if stat is None:
            stat = parse_stat(host.read_small(base + "/stat"))
        return self._read_carefully(pid, base, inode, stat)

    def _read_carefully(self, pid: int, base: str, inode: int, stat: Stat) -> _Seen:
        """``_read`` of a process that is dying, or does not let everything be read."""
        denied: list[tuple[str, str]] = []
        source: str | None = base
        if stat.state in "ZX":
            source = self._living_thread(base) if stat.threads > 1 else None
        adj = self._optional(denied, f"{base}/oom_score_adj")
        cgroup = self._optional(denied, f"{source or base}/cgroup")
        mnt_ns = None if source is None else self._namespace(denied, source)
        # Last, because it proves that the process still lives: a file missing above is then one that this kernel lacks.
        status = self._status.parse(self._read_status(f"{base}/status"))
        comm = self._comm(status.comm)
        restless = False
        if not status.has_mm and status.threads > 1:
            restless = True
            if (source := self._living_thread(base)) is not None:
                thread = self._status.parse(self._read_status(f"{source}/status"))
                status = thread._replace(state=status.state, ppid=status.ppid)
        process = _process(
            pid,
            stat.start_time_ticks,
            comm,
            status,
            None if adj is None else _number(adj, "oom_score_adj"),
            None if cgroup is None else self._cgroup(cgroup),
            mnt_ns,
        )
        return _Seen(inode, process, b"", SETTLING, restless, tuple(denied))

    def _living_thread(self, base: str) -> str | None:
        """The directory of the first thread that still has the address space; None if all are about to exit."""
        for tid in self._host.listdir(f"{base}/task"):
            path = f"{base}/task/{tid}"
            try:
                if self._status.parse(self._read_status(f"{path}/status")).has_mm:
                    return path
            except (FileNotFoundError, ProcessLookupError):
                continue
        return None

    def _read_status(self, path: str) -> bytes:
        """Enough of status for every field used: through the line Threads. The rest is long on big machines."""
        data = self._host.read_small(path)
        return data if _has_threads(data) else self._host.read(path)

    def _optional(self, denied: list[tuple[str, str]], path: str) -> bytes | None:
        try:
            data = self._host.read_small(path)
            return data if len(data) < _SMALL else self._host.read(path)
        except FileNotFoundError:
            return None
        except PermissionError as error:
            denied.append((self._generic(path), _why(error)))
            return None

    def _namespace(self, denied: list[tuple[str, str]], source: str) -> int | None:
        """Inode number from a link such as ``mnt:[4026531841]``; None where the process has left it (zombies)."""
        path = f"{source}/ns/mnt"
        try:
            link = self._host.readlink(path)
        except FileNotFoundError:
            return None
        except PermissionError as error:
            denied.append((self._generic(path), _why(error)))
            return None
        return _number(link[5:-1], "ns/mnt")

    def _cgroup(self, data: bytes) -> str | None:
        """One string for all processes with the same membership: there are fewer containers than processes."""
        try:
            return self._cgroups[data]
        except KeyError:
            path = parse_cgroup(data)
            return self._cgroups.setdefault(_copied(data), None if path is None else sys.intern(os.fsdecode(path)))

    def _comm(self, data: bytes) -> str:
        """One string for all processes of the same name."""
        name = self._comms.get(data)
        if name is None:
            name = self._comms[data] = os.fsdecode(data)
        return name

    def _generic(self, path: str) -> str:
        """``path`` without the pid, so that a thousand refusals make one line."""
        proc = self._host.proc
        tail = path[len(proc) + 1 :].split("/")[1:]
        return f"{proc}/<pid>/{'/'.join(tail[2:] if tail[0] == 'task' else tail)}"

    def _hidden(self) -> Iterator[Unreadable]:
        """Every process namespace has a process 1: if it is not listed, others aren't either."""
        proc = self._host.proc
        why = "process 1 is not listed"
        try:
            for line in self._host.read(f"{proc}/self/mounts").split(b"\n"):
                fields = line.split()
                if len(fields) > 3 and fields[1] == os.fsencode(proc) and fields[2] == b"proc":
                    for option in fields[3].split(b","):
                        if option.startswith(b"hidepid="):
                            why = f"{proc} is mounted with {os.fsdecode(option)}"
        except OSError:
            pass
        yield Unreadable("processes of other users", why)


def _pids(proc: str) -> dict[str, int]:
    with os.scandir(proc) as entries:
        return {entry.name: entry.inode() for entry in entries if entry.name.isdecimal()}


def _has_threads(status: bytes) -> bool:
    """The line is there as a whole."""
    if len(status) < _SMALL:
        return True
    at = status.find(b"\nThreads:")
    return at >= 0 and status.find(b"\n", at + 1) >= 0


def _copied(data: bytes) -> bytes:
    """To be kept: what read(2) filled is a block of 4 KB that was cut, and others would take what is left behind it."""
    return bytes(memoryview(data))


def _number(text: bytes | str, name: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise MalformedError(f"{name}: expected a number, found {text[:40]!r}") from error


def _why(error: OSError) -> str:
    return error.strerror or str(error)


def _kernel_thread(pid: int, stat: Stat) -> Process:
    return Process(
        pid=pid,
        ppid=stat.ppid,
        start_time_ticks=stat.start_time_ticks,
        comm=os.fsdecode(stat.comm),
        state=stat.state,
        uid=0,
        kernel_thread=True,
        has_mm=False,
        threads=stat.threads,
        rss_anon_bytes=0,
        rss_file_bytes=0,
        rss_shmem_bytes=0,
        rss_bytes=0,
        swap_bytes=0,
        page_tables_bytes=0,
        hugetlb_bytes=0,
        virtual_bytes=0,
        oom_score_adj=None,
        cgroup=None,
        mnt_ns=None,
    )


def _process(
    pid: int,
    start_time_ticks: int | None,
    comm: str,
    status: StatusFields,
    oom_score_adj: int | None,
    cgroup: str | None,
    mnt_ns: int | None,
) -> Process:
    _, state, ppid, uid, threads, has_mm, virtual, rss, anon, file, shmem, page_tables, swap, hugetlb = status
    return Process(
        pid,
        ppid,
        start_time_ticks,
        comm,
        state,
        uid,
        False,
        has_mm,
        threads,
        anon,
        file,
        shmem,
        rss,
        swap,
        page_tables,
        hugetlb,
        virtual,
        oom_score_adj,
        cgroup,
        mnt_ns,
    )
