"""The OOM experiment: programs of given sizes and oom_score_adj run out of memory together, and the kernel chooses.

A ``Plan`` (labplan.py) enters, and nothing of labchecks.py may be in the way. A ``Lab`` makes a memory cgroup of its
own, starts the programs in the given order, tells who is predicted to die (``standing``), and then lets one of them
grow (``drive``) until it is dead or alone. Who died is taken from the kernel: wait statuses for who, its log for the
order.

Harmless to others by construction: the OOM happens inside a cgroup whose limit the cgroups above have room for; the
programs die with this process (PR_SET_PDEATHSIG, end of their input); ``close`` removes everything. What a lab that was
itself killed leaves behind is an empty cgroup, which the next lab removes.
"""

import os
import re
import select
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Literal

from nodemem.kernel import kmsg, labprogram, meminfo, oom, syscalls
from nodemem.kernel.cgroups import Hierarchy, discover
from nodemem.kernel.host import Host
from nodemem.kernel.labchecks import TMPFS, directory_of, knob, parent_path
from nodemem.kernel.labplan import LabError, Plan, Program
from nodemem.kernel.procfs import ProcessTable

_STEP_BYTES = 256 << 10
_NAME = "nodemem-lab-"
_RECORDS_AT_ONCE = 2000
"""The log may grow faster than it is read: no reading is to go on for ever."""

_KILLED = re.compile(rb"Killed process (\d+)")


@dataclass(slots=True)
class _Running:
    """A started program; ``code`` is its wait status once it is gone."""

    number: int
    program: Program
    pid: int
    orders: int
    answers: int
    name: str
    code: int | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """A program before the OOM: what the kernel shows, and its points in this domain (None: never killed)."""

    number: int
    pid: int
    program: Program
    task: oom.Task
    oom_score: int | None
    points: int | None


@dataclass(frozen=True, slots=True)
class Standing:
    """The state just before the experiment: everything the prediction was made from, and the prediction.

    ``kills`` are in order; each may take several processes with it. ``rules`` are those of the probed generation, or
    today's where the probe could not tell.
    """

    domain: oom.Domain
    probe: oom.Probe
    rules: oom.Rules
    members: tuple[Member, ...]
    kills: tuple[oom.Prediction, ...]


Observer = Literal["kernel log", "order of exits"]


@dataclass(frozen=True, slots=True)
class Result:
    """What the kernel did. ``killed``: pids in order; programs of the lab, and in a global OOM whoever else died.

    ``stalled``: the growing program got no memory and nobody died for it. ``oom_kills``: the kernel's own count for the
    cgroup and those below, None where it doesn't count; a kill of a whole cgroup counts its first victim twice.
    """

    killed: tuple[int, ...]
    order_from: Observer
    survivors: tuple[int, ...]
    stalled: bool
    oom_kills: int | None
    usage_bytes: int | None = None


@dataclass(slots=True)
class Lab:
    """One experiment: ``start``, ``standing``, ``drive``, in that order, inside ``with``."""

    plan: Plan
    host: Host = field(default_factory=Host)
    patience_seconds: float = 10.0
    """How long the growing program may wait for memory with nobody dying; then the OOM counts as stalled."""
    _running: list[_Running] = field(default_factory=list, init=False)
    _hierarchy: Hierarchy | None = field(default=None, init=False)
    _path: str = field(default="", init=False)
    _made: list[str] = field(default_factory=list, init=False)
    _log: "_KernelLog | None" = field(default=None, init=False)
    _own_adj: str | None = field(default=None, init=False)
    _file: int = field(default=-1, init=False)
    _exits: list[int] = field(default_factory=list, init=False)
    _stalled: bool = field(default=False, init=False)

    def __enter__(self) -> "Lab":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def path(self) -> str:
        """The experiment's memory cgroup; "" in a global one."""
        return self._path

    def start(self) -> None:
        """Make the cgroups and start the programs. Raises LabError, or OSError where the kernel refuses."""
        if problems := self.plan.problems():
            raise LabError("; ".join(problems))
        if self.plan.limit_bytes is None:
            own = Path("/proc/self/oom_score_adj")
            self._own_adj = own.read_text()
            own.write_text(str(oom.OOM_SCORE_ADJ_MIN))
        else:
            self._make_cgroups(self.plan.limit_bytes)
        self._log = _KernelLog.open()
        for number, program in enumerate(self.plan.programs, 1):
            self._launch(number, program, self._running)
        if self.plan.tmpfs_bytes:
            self._fill_tmpfs(self.plan.programs[self.plan.grows].group)
        for each in self._running:
            self._tell(each, -(-each.program.size_bytes // self.host.page_size))
            if not self._answered(each, 120.0):
                raise LabError(
                    f"program {each.number} ended or hung before it held its {each.program.size_bytes} bytes"
                )

    def standing(self) -> Standing:
        """Read the process table and the cgroup, and predict. Raises LabError when a program is gone already."""
        host = self.host
        tasks = [oom.Task.from_process(p, host.page_size) for p in ProcessTable(host).scan().processes.values()]
        memory = meminfo.parse(host.read(f"{host.proc}/meminfo"))
        node = oom.global_totalpages(memory["MemTotal"], memory["SwapTotal"], host.page_size)
        probe = self._probe(tasks, node)
        rules = probe.rules or oom.rules_for(None, oom.Generation.ACCURATE)
        if self.plan.limit_bytes is None:
            ordered, order = oom.in_scan_order(tasks, rules)
            knobs = oom.Knobs(
                panic_on_oom=knob(host, "panic_on_oom") or 0,
                oom_kill_allocating_task=bool(knob(host, "oom_kill_allocating_task")),
                allocating_pid=self._grower.pid,
            )
            domain = oom.Domain(ordered, node, knobs, order, host.page_size)
            free = memory.get("MemAvailable", memory["MemFree"]) + memory["SwapFree"]
        else:
            domain, free = self._cgroup_domain(tasks, rules, memory)
        by_pid = {task.pid: task for task in domain.tasks}
        gone = [each.number for each in self._running if each.pid not in by_pid]
        if gone or domain.totalpages is None:
            raise LabError(f"program {', '.join(map(str, gone))} was gone before the experiment began")
        kills = foresee(domain, domain.totalpages, rules, self._grower.pid, free // host.page_size)
        members = tuple(
            Member(
                each.number,
                each.pid,
                each.program,
                by_pid[each.pid],
                _score(host, each.pid),
                oom.badness(by_pid[each.pid], domain.totalpages, rules),
            )
            for each in self._running
        )
        return Standing(domain, probe, rules, members, tuple(kills))

    def drive(self) -> Iterator[int]:
        """Let the program grow until it is dead, stuck, or unkillable and alone; yields pids as they die."""
        grower = self._grower
        step = max(1, _STEP_BYTES // self.host.page_size)
        left = self._span // self.host.page_size
        told = 0
        while grower.code is None and left > 0 and not self._stalled:
            self._tell(grower, step)
            left -= step
            answered = self._answered(grower, self.patience_seconds)
            self._reap_these(self._poll(0.0))
            while told < len(self._exits):
                yield self._exits[told]
                told += 1
            if not answered and grower.code is None:
                # It would go on asking, and the kernel fill its log with the report of each try.
                self._stalled = True
                os.kill(grower.pid, signal.SIGKILL)
            elif self._exits and not self._killable():
                break
        self._settle()
        yield from (pid for pid in self._exits[told:] if pid not in self._stopped)

    def result(self) -> Result:
        """After ``drive``: what the kernel did, by its own account."""
        stopped = self._stopped
        by_signal = [each.pid for each in self._running if each.code == -signal.SIGKILL and each.pid not in stopped]
        exits = [pid for pid in self._exits if pid in by_signal]
        logged = self._log.kills() if self._log is not None else []
        if self.plan.limit_bytes is not None:
            logged = [pid for pid in logged if pid in by_signal]
        agree = set(by_signal) <= set(logged) and bool(by_signal)
        oom_kills = usage = None
        if self._hierarchy is not None and self._path:
            cgroup = self._hierarchy.read(self._path)
            usage = cgroup.usage_bytes
            counts = [self._hierarchy.read(path).oom_kill_events for path in self._hierarchy.walk(self._path)]
            # v2 counts for all below; v1 for each cgroup alone.
            local = [count for count in counts if count is not None]
            oom_kills = None if not local else local[0] if self._hierarchy.memory_version == "v2" else sum(local)
        return Result(
            killed=tuple(logged if agree else exits),
            order_from="kernel log" if agree else "order of exits",
            survivors=tuple(each.pid for each in self._running if each.code is None or each.pid in stopped),
            stalled=self._stalled,
            oom_kills=oom_kills,
            usage_bytes=usage,
        )

    def close(self) -> None:
        """End the programs and remove the cgroups; safe to call twice, and not interrupted by signals."""
        with _uninterrupted():
            self._close()

    def _close(self) -> None:
        for each in self._running:
            self._end(each)
        self._running.clear()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if self._log is not None:
            self._log.close()
            self._log = None
        if self._own_adj is not None:
            Path("/proc/self/oom_score_adj").write_text(self._own_adj)
            self._own_adj = None
        left = [place for place in reversed(self._made) if not _removed(place)]
        self._made.clear()
        self._path = ""
        if left:
            raise LabError(f"could not remove {', '.join(left)}; it is empty, remove it with rmdir")

    def _probe(self, tasks: Sequence[oom.Task], node_totalpages: int) -> oom.Probe:
        """The generation, from what runs anyway; where nothing small enough does, from a program of a page or two."""
        probe = oom.probe(self.host, tasks, node_totalpages)
        if probe.generation is not oom.Generation.UNKNOWN:
            return probe
        own = int(self.host.read_small(f"{self.host.proc}/self/oom_score_adj"))
        witnesses: list[_Running] = []
        try:
            pid = self._launch(0, Program(self.host.page_size, max(own, 0)), witnesses, inside=False)
            found = ProcessTable(self.host).scan().processes.values()
            task = next((oom.Task.from_process(p, self.host.page_size) for p in found if p.pid == pid), None)
            return probe if task is None else oom.probe(self.host, [task], node_totalpages)
        finally:
            for each in witnesses:
                self._end(each)

    # --- programs

    @property
    def _stopped(self) -> set[int]:
        """Ended by the lab itself, not by the OOM killer."""
        return {self._grower.pid} if self._stalled else set()

    @property
    def _grower(self) -> _Running:
        return self._running[self.plan.grows]

    @property
    def _span(self) -> int:
        """How much the growing program may take at most: more than there is."""
        if self.plan.limit_bytes is not None:
            return self.plan.limit_bytes + self.plan.swap_bytes + (64 << 20)
        memory = meminfo.parse(self.host.read(f"{self.host.proc}/meminfo"))
        return memory["MemTotal"] + memory["SwapTotal"]

    def _end(self, running: _Running) -> None:
        if running.code is None:
            with suppress(ProcessLookupError):
                os.kill(running.pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                running.code = os.waitstatus_to_exitcode(os.waitpid(running.pid, 0)[1])
        os.close(running.orders)
        os.close(running.answers)

    def _launch(self, number: int, program: Program, among: list[_Running], *, inside: bool = True) -> int:
        """Its pid. From its first moment on it is ``among`` those that will be ended, whatever comes between."""
        name = f"lab{number}-{_short(program.size_bytes)}"
        span = self._span if number - 1 == self.plan.grows else max(program.size_bytes, self.host.page_size)
        orders, to_child = os.pipe()
        from_child, answers = os.pipe()
        failure, failing = os.pipe()
        with _uninterrupted() as mask:
            pid = os.fork()
            if pid == 0:
                self._child(program, name, span, orders, answers, failing, inside, mask)
            among.append(_Running(number, program, pid, to_child, from_child, name))
        for fd in (orders, answers, failing):
            os.close(fd)
        with open(failure, "rb") as said:
            words = said.read()
        if words:
            raise LabError(f"program {number}: {os.fsdecode(words)}")
        return pid

    def _child(
        self,
        program: Program,
        name: str,
        span: int,
        orders: int,
        answers: int,
        failing: int,
        inside: bool,
        mask: set[signal.Signals | int],
    ) -> None:
        """In the forked child; never returns."""
        try:
            syscalls.die_with_parent(signal.SIGKILL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the lab, which then ends its programs
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            if inside and self._path:
                self._join(program.group)
            Path("/proc/self/oom_score_adj").write_text(str(program.oom_score_adj))
            os.dup2(orders, 0)
            os.dup2(answers, 1)
            # Whoever holds the other ends of these pipes keeps the programs alive: that must be the lab alone.
            os.closerange(3, failing)
            os.closerange(failing + 1, 1024)
            os.set_inheritable(failing, False)
            labprogram.become(name, span, self.host.page_size, before=lambda: os.close(failing))
        except OSError as error:
            with suppress(OSError):
                os.write(failing, os.fsencode(f"{error.filename or 'start'}: {error.strerror}"))
        finally:
            os._exit(0)

    def _tell(self, running: _Running, pages: int) -> None:
        with suppress(BrokenPipeError):
            os.write(running.orders, labprogram.COUNT.pack(pages))

    def _answered(self, running: _Running, seconds: float) -> bool:
        """Wait for its answer, noting whoever dies meanwhile; ``seconds`` count from the last death."""
        size = labprogram.COUNT.size
        deadline = time.monotonic() + seconds
        while running.code is None:
            ready = self._poll(min(0.25, max(0.0, deadline - time.monotonic())))
            if running in ready and len(os.read(running.answers, size)) == size:
                return True
            if self._reap_these(ready):
                deadline = time.monotonic() + (seconds if self._killable() else min(seconds, 1.0))
            elif time.monotonic() >= deadline or (self._log is not None and self._log.nobody_left()):
                return False
        return False

    def _killable(self) -> bool:
        alive = (each.program.oom_score_adj for each in self._running if each.code is None)
        return any(adj != oom.OOM_SCORE_ADJ_MIN for adj in alive)

    def _poll(self, seconds: float) -> list[_Running]:
        """Whose pipe has something to say: an answer, or its end."""
        alive = {each.answers: each for each in self._running if each.code is None}
        waiting = select.poll()
        for fd in alive:
            waiting.register(fd, select.POLLIN)
        return [alive[fd] for fd, _ in waiting.poll(seconds * 1000)]

    def _settle(self) -> None:
        """A killed process's memory is back before its pipes close: wait until every logged death has shown."""
        deadline = time.monotonic() + 5.0
        while time.monotonic() < deadline:
            self._reap_these(self._poll(0.02))
            logged = set(self._log.kills()) if self._log is not None else set()
            if not any(each.code is None and each.pid in logged for each in self._running):
                return

    def _reap_these(self, candidates: Sequence[_Running]) -> bool:
        died = False
        for each in candidates:
            pid, status = os.waitpid(each.pid, os.WNOHANG)
            if pid:
                each.code = os.waitstatus_to_exitcode(status)
                self._exits.append(each.pid)
                died = True
        return died

    def _fill_tmpfs(self, group: str) -> None:
        """Have a short-lived process of the cgroup write an unlinked file, which this process holds open."""
        self._file = os.open(TMPFS, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                syscalls.die_with_parent(signal.SIGKILL)
                if self._path:
                    self._join(group)
                os.posix_fallocate(self._file, 0, self.plan.tmpfs_bytes)
                code = 0
            finally:
                os._exit(code)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
            raise LabError(f"the tmpfs file of {self.plan.tmpfs_bytes} bytes could not be written in {TMPFS}")

    # --- cgroups

    def _make_cgroups(self, limit_bytes: int) -> None:
        self._hierarchy = hierarchy = discover(self.host)
        if hierarchy.memory_version is None:
            raise LabError("no memory cgroups here")
        parent = parent_path(hierarchy, self.host)
        _remove_leftovers(directory_of(hierarchy, parent))
        self._path = f"{parent.rstrip('/')}/{_NAME}{os.getpid()}"
        top = directory_of(hierarchy, self._path)
        self._make(top)
        groups = sorted({program.group for program in self.plan.programs} - {""})
        if hierarchy.memory_version == "v2":
            _write(top, "memory.max", limit_bytes)
            if os.path.exists(f"{top}/memory.swap.max"):
                _write(top, "memory.swap.max", self.plan.swap_bytes)
            if groups:
                _write(top, "cgroup.subtree_control", "+memory")
        else:
            self._limit_v1(top, limit_bytes)
        for group in dict.fromkeys(program.group for program in self.plan.programs if program.group):
            self._make(f"{top}/{group}")
        for group in self.plan.oom_groups:
            _write(f"{top}/{group}".rstrip("/"), "memory.oom.group", 1)

    def _limit_v1(self, top: str, limit_bytes: int) -> None:
        with suppress(OSError):
            _write(top, "memory.use_hierarchy", 1)  # 0 by default before 5.11; later it can only be 1
        _write(top, "memory.limit_in_bytes", limit_bytes)
        if os.path.exists(f"{top}/memory.memsw.limit_in_bytes"):
            _write(top, "memory.memsw.limit_in_bytes", limit_bytes + self.plan.swap_bytes)
        elif not self.plan.swap_bytes:
            _write(top, "memory.swappiness", 0)
        _write(top, "memory.oom_control", 0)  # a parent's oom_kill_disable is inherited

    def _make(self, place: str) -> None:
        os.mkdir(place)
        self._made.append(place)

    def _join(self, group: str) -> None:
        if self._hierarchy is not None:
            _write(f"{directory_of(self._hierarchy, self._path)}/{group}".rstrip("/"), "cgroup.procs", 0)

    def _cgroup_domain(
        self, tasks: Sequence[oom.Task], rules: oom.Rules, memory: Mapping[str, int]
    ) -> tuple[oom.Domain, int]:
        """The domain, and the bytes that are free in it."""
        hierarchy = self._hierarchy
        if hierarchy is None or hierarchy.memory_version is None:
            raise LabError("the experiment was not started")
        joined: dict[str, list[int]] = {}
        for each in self._running:
            joined.setdefault(f"{self._path}/{each.program.group}".rstrip("/"), []).append(each.pid)
        paths = list(hierarchy.walk(self._path))
        ordered, order = oom.in_scan_order(tasks, rules, paths=paths, joined=joined)
        cgroup = hierarchy.read(self._path)
        domain = oom.memcg_domain(
            cgroup,
            ordered,
            order,
            page_size=self.host.page_size,
            version=hierarchy.memory_version,
            total_swap_bytes=memory["SwapTotal"],
            vm_swappiness=knob(self.host, "swappiness"),
            panic_on_oom=knob(self.host, "panic_on_oom") or 0,
            oom_group_paths=[path for path in paths if hierarchy.read(path).oom_group],
            tmpfs_bytes=self.plan.tmpfs_bytes,
        )
        free = (cgroup.limit_bytes or 0) - (cgroup.usage_bytes or 0)
        free += min(self.plan.swap_bytes, memory["SwapFree"]) - (cgroup.swap_usage_bytes or 0)
        return domain, max(0, free)


def foresee(
    domain: oom.Domain, totalpages: int, rules: oom.Rules, grower: int, free_pages: int
) -> list[oom.Prediction]:
    """The kills to come while process ``grower`` takes all that is free, and again all that each death frees.

    Ends with the grower's own death, or where nobody is left to be killed.
    """
    tasks = list(domain.tasks)
    kills: list[oom.Prediction] = []
    while any(task.pid == grower for task in tasks):
        # One page of page table for each 512 pages (x86-64 and arm64 with 4 KiB pages).
        tables = free_pages // 513
        tasks = [
            replace(
                task,
                rss_pages=task.rss_pages + free_pages - tables,
                anon_pages=None if task.anon_pages is None else task.anon_pages + free_pages - tables,
                page_table_pages=task.page_table_pages + tables,
            )
            if task.pid == grower
            else task
            for task in tasks
        ]
        kill = oom.predict(tasks, totalpages, rules, domain.knobs, domain.order)
        if kill.predicted is None:
            break
        kills.append(kill)
        free_pages = sum(task.frees_pages for task in tasks if task.pid in kill.dies)
        tasks = [task for task in tasks if task.pid not in kill.dies]
    return kills


def agrees(predicted: Sequence[oom.Prediction], killed: Sequence[int], *, ordered: bool = True) -> bool:
    """Whether the kernel did what was predicted: the same victims in the same order, each with all that dies with it.

    Where the prediction names a tied set, any one of it will do. ``ordered`` False (the order was seen at the exits
    only) compares inside a kill without order.
    """
    rest = list(killed)
    for kill in predicted:
        count = max(1, len(kill.dies))
        now, rest = rest[:count], rest[count:]
        if not now:
            return False
        if count == 1:
            if now[0] not in kill.victims:
                return False
        elif set(now) != set(kill.dies) or (ordered and now[0] not in kill.victims):
            return False
    return not rest


# --- the kernel's log and files ---------------------------------------------------------------------------------------


class _KernelLog:
    """/dev/kmsg from the moment it was opened."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._kills: list[int] = []
        self._nobody = False

    @classmethod
    def open(cls) -> "_KernelLog | None":
        """None where there is no log or it may not be read."""
        try:
            fd = os.open(kmsg.DEVICE, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        os.lseek(fd, 0, os.SEEK_END)
        return cls(fd)

    def kills(self) -> list[int]:
        """Pids in order, each once: a kill of a whole cgroup goes over its first victim twice (oom_kill_process())."""
        self._read()
        return list(dict.fromkeys(self._kills))

    def nobody_left(self) -> bool:
        """Whether the kernel found no process to kill, which it says again at each try."""
        self._read()
        return self._nobody

    def _read(self) -> None:
        for _ in range(_RECORDS_AT_ONCE):
            try:
                record = kmsg.parse_record(os.read(self._fd, kmsg.RECORD_BYTES))
            except BlockingIOError:
                return
            except BrokenPipeError:
                continue  # records were overwritten before they were read
            if record is None or record.facility != 0:
                continue
            if match := _KILLED.search(record.text):
                self._kills.append(int(match[1]))
            elif b"no killable process" in record.text:
                self._nobody = True

    def close(self) -> None:
        os.close(self._fd)


def _remove_leftovers(parent: str) -> None:
    """Empty cgroups of labs that were killed: nobody has their pid now."""
    for name in os.listdir(parent):
        pid = name.removeprefix(_NAME)
        if name == pid or not pid.isdecimal() or os.path.exists(f"/proc/{pid}"):
            continue
        place = f"{parent}/{name}"
        with suppress(OSError):
            for below in os.scandir(place):
                if below.is_dir():
                    os.rmdir(below.path)
            os.rmdir(place)


@contextmanager
def _uninterrupted() -> Iterator[set[signal.Signals | int]]:
    """Signals that end a command wait; yields the mask as it was."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield mask
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _removed(place: str) -> bool:
    """rmdir, tried for some seconds: the kernel answers EBUSY until the last process is gone for good."""
    for _ in range(100):
        try:
            os.rmdir(place)
        except FileNotFoundError:
            return True
        except OSError:
            time.sleep(0.05)
        else:
            return True
    return False


def _write(place: str, name: str, value: int | str) -> None:
    path = f"{place}/{name}"
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(fd)


def _score(host: Host, pid: int) -> int | None:
    try:
        return int(host.read_small(f"{host.proc}/{pid}/oom_score"))
    except (OSError, ValueError):
        return None


def _short(size_bytes: int) -> str:
    for unit, suffix in ((1 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki")):
        if size_bytes >= unit and size_bytes % unit == 0:
            return f"{size_bytes // unit}{suffix}"
    return str(size_bytes)
