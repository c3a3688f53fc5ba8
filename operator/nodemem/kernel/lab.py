"""The OOM experiment: programs of given sizes and oom_score_adj run out of memory together, and the kernel chooses.

A ``Plan`` enters; ``obstacles`` says beforehand what this process may not do; a ``Lab`` makes a memory cgroup of its
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
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Literal

from nodemem.kernel import kmsg, labprogram, meminfo, oom, syscalls
from nodemem.kernel.cgroups import Hierarchy, ancestors, discover
from nodemem.kernel.host import Host
from nodemem.kernel.procfs import ProcessTable

SMALLEST_LIMIT_BYTES = 4 << 20
_STEP_BYTES = 256 << 10
_NAME = "nodemem-lab-"
_TMPFS = "/dev/shm"
_RECORDS_AT_ONCE = 2000
"""The log may grow faster than it is read: no reading is to go on for ever."""

_KILLED = re.compile(rb"Killed process (\d+)")


class LabError(RuntimeError):
    """The experiment can't go on; everything made for it has been removed, or the message names what was not."""


@dataclass(frozen=True, slots=True)
class Program:
    """One process: what it holds before the experiment, and in which child cgroup ("" is the experiment's own)."""

    size_bytes: int
    oom_score_adj: int
    group: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """``grows`` is an index into ``programs``, which start in their order.

    ``limit_bytes`` None: no cgroup, the machine itself runs out. ``swap_bytes``: swap the cgroup may use.
    ``tmpfs_bytes``: written to an unlinked tmpfs file by a process of the cgroup that is gone by the time of the OOM.
    ``oom_groups``: the groups with memory.oom.group set ("" for the experiment's own cgroup, so for all).
    """

    programs: tuple[Program, ...]
    limit_bytes: int | None
    grows: int = 0
    swap_bytes: int = 0
    tmpfs_bytes: int = 0
    oom_groups: frozenset[str] = frozenset()

    def problems(self) -> list[str]:
        """What is wrong with it on any machine; sentences."""
        found = []
        if not self.programs:
            return ["no program: give at least one"]
        if not 0 <= self.grows < len(self.programs):
            found.append(f"program {self.grows + 1} is to grow, but there are {len(self.programs)}")
        for number, program in enumerate(self.programs, 1):
            if not oom.OOM_SCORE_ADJ_MIN <= program.oom_score_adj <= oom.OOM_SCORE_ADJ_MAX:
                found.append(f"program {number}: oom_score_adj {program.oom_score_adj} is not in -1000..1000")
            if program.size_bytes < 0:
                found.append(f"program {number}: a size below 0")
            if program.group and not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,30}", program.group):
                found.append(f"program {number}: group {program.group!r} is not a name of a-z, 0-9 and '-'")
        groups = {program.group for program in self.programs}
        if "" in groups and len(groups) > 1:
            found.append("either every program names a group, or none (cgroup v2 has processes only in leaves)")
        if self.oom_groups - groups - {""}:
            found.append(f"oom.group for {', '.join(sorted(self.oom_groups - groups))}, which no program is in")
        if self.limit_bytes is not None:
            if self.limit_bytes < SMALLEST_LIMIT_BYTES:
                found.append(f"a limit below {SMALLEST_LIMIT_BYTES} bytes leaves no room for the kernel's own pages")
            elif self.needs_bytes > self.limit_bytes + self.swap_bytes:
                found.append(
                    f"the programs and the tmpfs file need {self.needs_bytes} bytes before anything grows; "
                    f"the limit (with swap) is {self.limit_bytes + self.swap_bytes}"
                )
        elif self.swap_bytes or any(groups) or self.oom_groups:
            found.append("swap, groups and oom.group belong to a cgroup; without a limit there is none")
        return found

    @property
    def needs_bytes(self) -> int:
        """What the cgroup holds before anything grows, page tables and kernel stacks included; rounded up."""
        each = (program.size_bytes + program.size_bytes // 256 + (96 << 10) for program in self.programs)
        return sum(each) + self.tmpfs_bytes + (512 << 10)


def roomy_limit(programs: Sequence[Program], tmpfs_bytes: int = 0) -> int:
    """A limit of whole MiB that leaves the growing program an eighth of room."""
    needs = Plan(tuple(programs), None, tmpfs_bytes=tmpfs_bytes).needs_bytes
    return max(SMALLEST_LIMIT_BYTES, -(-needs * 9 // (8 << 20)) << 20)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A named experiment; ``text`` says what it shows."""

    name: str
    text: str
    plan: Plan


def _scenario(
    name: str,
    text: str,
    *programs: tuple[int, int] | tuple[int, int, str],
    limit_mib: int,
    tmpfs_mib: int = 0,
    oom_groups: frozenset[str] = frozenset(),
) -> Scenario:
    made = tuple(Program(each[0] << 10, each[1], each[2] if len(each) > 2 else "") for each in programs)
    largest = max(range(len(made)), key=lambda at: made[at].size_bytes)
    return Scenario(name, text, Plan(made, limit_mib << 20, largest, 0, tmpfs_mib << 20, oom_groups))


_M = 1024

SCENARIOS: Mapping[str, Scenario] = {
    each.name: each
    for each in (
        _scenario(
            "plain",
            "oom_score_adj from 0 up, which needs no privilege: small processes with a high value die first",
            *((160 * _M, 0), (40 * _M, 300), (5 * _M, 600), (1 * _M, 1000)),
            limit_mib=240,
        ),
        _scenario(
            "guaranteed",
            "a Guaranteed pod (-997, pause -998), its largest process started first: clamped kernels kill the others",
            *((160 * _M, -997), (40 * _M, -997), (5 * _M, -997), (4, -998)),
            limit_mib=240,
        ),
        _scenario(
            "mitigated",
            "the same processes at -250, where clamped kernels see again who is largest",
            *((160 * _M, -250), (40 * _M, -250), (5 * _M, -250), (4, -250)),
            limit_mib=240,
        ),
        _scenario(
            "skewed",
            "different oom_score_adj in one container hide the largest process behind a small one",
            *((160 * _M, -500), (20 * _M, 500), (5 * _M, 0)),
            limit_mib=240,
        ),
        _scenario(
            "unkillable",
            "the process that grows is at -1000: all others die for it, and it lives",
            *((160 * _M, -1000), (40 * _M, 0), (5 * _M, 0), (1 * _M, 0)),
            limit_mib=240,
        ),
        _scenario(
            "tmpfs",
            "most of the limit is held by a file in a tmpfs: whoever dies, little comes back",
            *((40 * _M, 0), (5 * _M, 0), (1 * _M, 0)),
            limit_mib=200,
            tmpfs_mib=140,
        ),
        _scenario(
            "oom-group",
            "memory.oom.group (cgroup v2): the whole cgroup dies with its victim, except what is at -1000",
            *((160 * _M, 0), (40 * _M, 0), (5 * _M, -1000)),
            limit_mib=240,
            oom_groups=frozenset({""}),
        ),
        _scenario(
            "pause",
            "a pod with a pause process and two containers in cgroups of their own, all at -998",
            *((4, -998, "pause"), (120 * _M, -998, "app"), (40 * _M, -998, "sidecar")),
            limit_mib=200,
        ),
    )
}


# --- what is in the way -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Something this process may not do or this machine does not have, and what would help."""

    what: str
    remedy: str


def obstacles(plan: Plan, host: Host) -> list[Obstacle]:
    """Everything that would stop the experiment half way, found without changing anything."""
    found = []
    lowest = min(program.oom_score_adj for program in plan.programs)
    if not _may_set_adj(lowest):
        own = int(host.read_small(f"{host.proc}/self/oom_score_adj"))
        found.append(
            Obstacle(
                f"oom_score_adj {lowest}: this process is at {own} and lacks CAP_SYS_RESOURCE, without which no lower "
                "one can be given",
                f"run with CAP_SYS_RESOURCE, or give values from {own} up (scenario 'plain')",
            )
        )
    memory = meminfo.parse(host.read(f"{host.proc}/meminfo"))
    if plan.tmpfs_bytes:
        try:
            usage = host.statvfs(_TMPFS)
            free = usage.size_bytes - usage.used_bytes
            if usage.size_bytes and free < plan.tmpfs_bytes:
                found.append(Obstacle(f"{_TMPFS} has {free} bytes free of {plan.tmpfs_bytes}", "a larger /dev/shm"))
        except OSError as error:
            found.append(Obstacle(f"{_TMPFS}: {error.strerror}", "mount a tmpfs there"))
    if _knob(host, "panic_on_oom") == 2 or (plan.limit_bytes is None and _knob(host, "panic_on_oom")):
        found.append(Obstacle("vm.panic_on_oom: this OOM would stop the machine", "sysctl vm.panic_on_oom=0"))
    hierarchy = discover(host)
    if plan.limit_bytes is None:
        return found + _obstacles_to_global(hierarchy, host)
    if plan.swap_bytes and memory.get("SwapTotal", 0) < plan.swap_bytes:
        found.append(Obstacle("this machine has less swap than the experiment is to use", "leave --swap out"))
    available = memory.get("MemAvailable", memory["MemFree"])
    if available < plan.limit_bytes * 5 // 4:
        found.append(
            Obstacle(
                f"{available} bytes of memory are available; with a limit of {plan.limit_bytes} the machine could run "
                "out first",
                "a smaller --limit",
            )
        )
    return found + _obstacles_to_cgroup(plan, hierarchy, host)


def _obstacles_to_cgroup(plan: Plan, hierarchy: Hierarchy, host: Host) -> list[Obstacle]:
    if hierarchy.memory_version is None:
        return [Obstacle("no memory cgroups here", "mount the memory controller, v1 or v2")]
    try:
        parent = _parent(hierarchy, host)
    except LabError as error:
        return [Obstacle(str(error), "run it from a session outside of a delegated cgroup, as root")]
    found = []
    if plan.oom_groups and hierarchy.memory_version == "v1":
        found.append(Obstacle("memory.oom.group: cgroup v1 has none", "a machine with cgroup v2"))
    if not os.access(_place(hierarchy, parent), os.W_OK):
        found.append(Obstacle(f"memory cgroup {parent}: no cgroup can be made in it by this user", "run as root"))
    for path in (parent, *ancestors(parent, hierarchy.root)):
        above = hierarchy.read(path)
        if above.limit_bytes is not None and above.usage_bytes is not None:
            room = above.limit_bytes - above.usage_bytes
            if room < (plan.limit_bytes or 0):
                found.append(
                    Obstacle(
                        f"memory cgroup {path} has {room} bytes left of its own limit, less than the experiment's: "
                        "others in it could be killed",
                        "a smaller --limit",
                    )
                )
    return found


def _obstacles_to_global(hierarchy: Hierarchy, host: Host) -> list[Obstacle]:
    found = []
    if hierarchy.memory_version is not None:
        own = hierarchy.path_of(host.read(f"{host.proc}/self/cgroup"))
        limit = None if own is None else hierarchy.effective_limit(own)
        if limit is not None:
            found.append(
                Obstacle(
                    f"this process is in a cgroup with a limit of {limit} bytes: that would run out", "another cgroup"
                )
            )
    if not _may_set_adj(oom.OOM_SCORE_ADJ_MIN):
        found.append(
            Obstacle(
                "oom_score_adj -1000: the experiment itself has to outlive it, and CAP_SYS_RESOURCE is missing",
                "run with CAP_SYS_RESOURCE",
            )
        )
    return found


def _may_set_adj(value: int) -> bool:
    """Tried in a child, because what is allowed depends on capabilities and on values set before."""
    child = os.fork()
    if child == 0:
        try:
            Path("/proc/self/oom_score_adj").write_text(str(value))
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def virtual_machine(host: Host) -> str | None:
    """What shows that this kernel runs in a virtual machine; None where nothing does."""
    try:
        for line in host.read(f"{host.proc}/cpuinfo").splitlines():
            if line.startswith(b"flags") and b" hypervisor" in line:
                return "the processor flag 'hypervisor'"
    except OSError:
        pass
    for name in ("product_name", "sys_vendor"):
        try:
            text = os.fsdecode(host.read_small(f"{host.sys}/class/dmi/id/{name}")).strip()
        except OSError:
            continue
        if re.search(r"QEMU|KVM|VMware|VirtualBox|Virtual Machine|Bochs|Xen|Amazon EC2|Google Compute", text):
            return f"the machine's {name} {text!r}"
    return None


def shared_with(host: Host) -> str | None:
    """Why an OOM of this machine would hit work that is not the caller's; None where no sign of such work is found."""
    try:
        if host.stat(f"{host.proc}/self/ns/pid").inode != _INIT_PID_NAMESPACE:
            return "this is a container: the machine belongs to others"
    except OSError:
        pass
    hierarchy = discover(host)
    for path in hierarchy.walk():
        if re.search(r"kubepods|/docker/|/docker-[0-9a-f]{64}|/libpod", path):
            return f"containers run on this machine (memory cgroup {path})"
    return None


_INIT_PID_NAMESPACE = 0xEFFFFFFC  # include/linux/proc_ns.h, PROC_PID_INIT_INO


# --- the experiment ---------------------------------------------------------------------------------------------------


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
            self._running.append(self._launch(number, program))
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
                panic_on_oom=_knob(host, "panic_on_oom") or 0,
                oom_kill_allocating_task=bool(_knob(host, "oom_kill_allocating_task")),
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
        held = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
        try:
            self._close()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)

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
        witness = self._launch(0, Program(self.host.page_size, max(own, 0)), inside=False)
        try:
            found = ProcessTable(self.host).scan().processes.values()
            task = next((oom.Task.from_process(p, self.host.page_size) for p in found if p.pid == witness.pid), None)
            return probe if task is None else oom.probe(self.host, [task], node_totalpages)
        finally:
            self._end(witness)

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

    def _launch(self, number: int, program: Program, *, inside: bool = True) -> _Running:
        name = f"lab{number}-{_short(program.size_bytes)}"
        span = self._span if number - 1 == self.plan.grows else max(program.size_bytes, self.host.page_size)
        orders, to_child = os.pipe()
        from_child, answers = os.pipe()
        failure, failing = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._child(program, name, span, orders, answers, failing, inside)
        for fd in (orders, answers, failing):
            os.close(fd)
        running = _Running(number, program, pid, to_child, from_child, name)
        with open(failure, "rb") as said:
            words = said.read()
        if words:
            os.waitpid(pid, 0)
            os.close(to_child)
            os.close(from_child)
            raise LabError(f"program {number}: {os.fsdecode(words)}")
        return running

    def _child(
        self, program: Program, name: str, span: int, orders: int, answers: int, failing: int, inside: bool
    ) -> None:
        """In the forked child; never returns."""
        try:
            syscalls.die_with_parent(signal.SIGKILL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the lab, which then ends its programs
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
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
        self._file = os.open(_TMPFS, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
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
            raise LabError(f"the tmpfs file of {self.plan.tmpfs_bytes} bytes could not be written in {_TMPFS}")

    # --- cgroups

    def _make_cgroups(self, limit_bytes: int) -> None:
        self._hierarchy = hierarchy = discover(self.host)
        if hierarchy.memory_version is None:
            raise LabError("no memory cgroups here")
        parent = _parent(hierarchy, self.host)
        _remove_leftovers(_place(hierarchy, parent))
        self._path = f"{parent.rstrip('/')}/{_NAME}{os.getpid()}"
        top = _place(hierarchy, self._path)
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
            _write(f"{_place(self._hierarchy, self._path)}/{group}".rstrip("/"), "cgroup.procs", 0)

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
            vm_swappiness=_knob(self.host, "swappiness"),
            panic_on_oom=_knob(self.host, "panic_on_oom") or 0,
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


def _parent(hierarchy: Hierarchy, host: Host) -> str:
    """Where the experiment's cgroup goes: this process's own on v1; on v2 the nearest that hands the controller down.

    Raises LabError.
    """
    own = hierarchy.path_of(host.read(f"{host.proc}/self/cgroup"))
    if own is None:
        raise LabError("this process's memory cgroup is outside of what is mounted here")
    if hierarchy.memory_version == "v1":
        return own
    for path in (own, *ancestors(own, hierarchy.root)):
        try:
            if b"memory" in host.read_small(f"{_place(hierarchy, path)}/cgroup.subtree_control").split():
                return path
        except OSError:
            continue
    raise LabError(
        f"no cgroup from {own} up has the memory controller enabled for its children (cgroup.subtree_control)"
    )


def _place(hierarchy: Hierarchy, path: str) -> str:
    prefix = hierarchy.root.rstrip("/")
    return (hierarchy.directory + path.removeprefix(prefix)).rstrip("/")


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


def _knob(host: Host, name: str) -> int | None:
    try:
        return int(host.read_small(f"{host.proc}/sys/vm/{name}"))
    except (OSError, ValueError):
        return None


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
