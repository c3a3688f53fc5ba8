"""Whom the kernel's OOM killer would take: mm/oom_kill.c in Python, for every generation of it.

What differs between kernels is data (``Rules``); the functions take values and return values. Only ``probe`` reads
from the host. Sizes are pages, as the kernel counts them, unless a name says bytes. All arithmetic is the kernel's:
integers, ``adj * (totalpages / 1000)`` with the division first, and C's division, which truncates towards zero.

A word on accuracy. The kernel scores with counters that are approximate: kept per thread before 6.2, per CPU since
(``rss_error_pages`` bounds both). Where two scores are closer than that (``Prediction.margin_pages``), the choice is as
good as open.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, TypeAlias

from nodemem.kernel.host import Host

if TYPE_CHECKING:  # a log can be judged without a process table or cgroups
    from nodemem.kernel.cgroups import MemoryCgroup
    from nodemem.kernel.procfs import Process

OOM_SCORE_ADJ_MIN = -1000
"""The kernel never kills a process with this oom_score_adj (include/uapi/linux/oom.h)."""

OOM_SCORE_ADJ_MAX = 1000


# --- the kernels ------------------------------------------------------------------------------------------------------


class Generation(StrEnum):
    """How a kernel's oom_badness() treats negative scores, and which of two equal ones it takes."""

    CLAMPED_FIRST = "ClampedFirst"
    CLAMPED_LAST = "ClampedLast"
    ACCURATE = "Accurate"
    UNKNOWN = "Unknown"


KNOWN_GENERATIONS = (Generation.CLAMPED_FIRST, Generation.CLAMPED_LAST, Generation.ACCURATE)

Tie: TypeAlias = Literal["first", "last"]
RootBonus: TypeAlias = Literal["none", "usage", "adjust"]
PageTableTerm: TypeAlias = Literal["nr_ptes", "nr_ptes+nr_pmds", "pgtables_bytes"]
ScanDirection: TypeAlias = Literal["oldest_first", "newest_first"]
Release: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Rules:
    """One kernel's way to choose a victim. Made by ``rules_for``; ``dataclasses.replace`` makes odd ones.

    ``clamp``: a score below 1 becomes 1. ``tie``: which of equal scores is taken, in order of the scan.
    ``root_bonus``, for processes with CAP_SYS_ADMIN: ``usage`` takes 3 % off their pages, ``adjust`` 30 off their
    oom_score_adj. ``page_table_term``: what counts as page tables. ``scan``: how tasks that were forked into a memory
    cgroup are lined up. ``scans_threads``: a memory cgroup's scan goes over threads, so that the pid in the log may be
    a thread's. ``kills_child``: the chosen process's child with the highest score dies in its place.

    ``decided_by`` has one sentence for each item that can't be probed and was taken from the release.
    """

    generation: Generation
    clamp: bool
    tie: Tie
    root_bonus: RootBonus = "none"
    page_table_term: PageTableTerm = "pgtables_bytes"
    scan: ScanDirection = "oldest_first"
    scans_threads: bool = False
    kills_child: bool = False
    decided_by: tuple[str, ...] = ()


VENDOR_CAVEAT = "vendors backport single changes, so a release says this only for upstream and stable kernels"

# (first release with it, field, value): the last row that applies wins; the sentence is what decided_by says.
_BY_RELEASE: tuple[tuple[Release, str, RootBonus | PageTableTerm | ScanDirection | bool, str], ...] = (
    ((0, 0, 0), "root_bonus", "adjust", "CAP_SYS_ADMIN takes 30 off oom_score_adj"),
    ((3, 14, 0), "root_bonus", "usage", "CAP_SYS_ADMIN takes 3 % off the usage"),
    ((4, 17, 0), "root_bonus", "none", "no bonus for CAP_SYS_ADMIN"),
    ((0, 0, 0), "page_table_term", "nr_ptes", "page tables count as nr_ptes"),
    ((4, 0, 0), "page_table_term", "nr_ptes+nr_pmds", "page tables count as nr_ptes + nr_pmds"),
    ((4, 15, 0), "page_table_term", "pgtables_bytes", "page tables count as pgtables_bytes"),
    ((0, 0, 0), "scan", "newest_first", "a memory cgroup's newest fork is scanned first"),
    ((4, 4, 0), "scan", "oldest_first", "a memory cgroup's tasks are scanned in the order they joined"),
    ((0, 0, 0), "scans_threads", True, "a memory cgroup's scan goes over threads"),
    ((5, 3, 0), "scans_threads", False, "a memory cgroup's scan goes over processes"),
    ((0, 0, 0), "kills_child", True, "a child may die in place of the chosen process"),
    ((5, 2, 0), "kills_child", False, "the chosen process itself dies"),
)

_LAST_WINS: Release = (5, 3, 0)
"""f168a9a54ec3 took the check for the thread group leader out of oom_evaluate_task()."""

_PER_CPU_RSS: Release = (6, 2, 0)
"""f1a7941243c1 made the RSS counters per CPU."""


def parse_release(release: str | None) -> Release | None:
    """``5.4.0-136-generic`` -> (5, 4, 0); None for what doesn't start like a kernel release."""
    match = re.match(r"(\d{1,4})\.(\d{1,6})(?:\.(\d{1,6}))?", release or "")
    return None if match is None else (int(match[1]), int(match[2]), int(match[3] or 0))


def tie_by_release(release: str | None) -> tuple[Tie, str]:
    """Which of equal scores dies, and the sentence that says how that is known. Today's rule for an unknown release."""
    version = parse_release(release)
    if version is None:
        return "last", "tie: the last scanned dies, as on today's kernels; the release is not known"
    if version >= _LAST_WINS:
        return "last", f"tie: the last scanned dies, from release {release} (5.3 or later)"
    return "first", f"tie: the first scanned dies, from release {release} (before 5.3); {VENDOR_CAVEAT}"


def rules_for(release: str | None, generation: Generation) -> Rules:
    """The rules of a kernel whose generation is known, by the probe or because someone asks "what if".

    ``release`` (as ``uname -r`` prints it) decides only what can't be probed; without one these are today's rules.
    Raises ValueError for ``Generation.UNKNOWN``: nothing can be computed then, short of trying all the others.
    """
    if generation is Generation.UNKNOWN:
        raise ValueError("no rules for an unknown generation: try each of KNOWN_GENERATIONS")
    version = parse_release(release)
    said: list[str] = []
    if generation is Generation.ACCURATE:
        tie, sentence = tie_by_release(release)
        said.append(sentence)
    else:
        tie = "first" if generation is Generation.CLAMPED_FIRST else "last"
    rules = Rules(generation, clamp=generation is not Generation.ACCURATE, tie=tie)
    if version is None:
        said.append("everything but the generation as on today's kernels; the release is not known")
        return replace(rules, decided_by=tuple(said))
    chosen = {name: (since, value, text) for since, name, value, text in _BY_RELEASE if version >= since}
    rules = replace(rules, **{name: value for name, (_, value, _) in chosen.items()})  # type: ignore[arg-type]
    said += [f"{text}, from release {release}" for _, _, text in chosen.values()]
    if version < _LAST_WINS and VENDOR_CAVEAT not in said[0]:
        said.append(VENDOR_CAVEAT)
    return replace(rules, decided_by=tuple(said))


def rss_error_pages(cpus: int, threads: int = 1, release: str | None = None) -> int:
    """How far the page count that the kernel scores with may be from the true one, in one process.

    From 6.2 each of the four counters (file, anon, shmem, swap) may keep up to percpu_counter_batch = max(32, 2 * CPUs)
    pages on each CPU unsummed; before, each thread up to 64 in each counter (mm/memory.c, TASK_RSS_EVENTS_THRESH).
    """
    version = parse_release(release)
    if version is None or version >= _PER_CPU_RSS:
        return 4 * max(32, 2 * cpus) * cpus
    return 4 * 64 * max(1, threads)


# --- tasks and scores -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Task:
    """A process as the OOM killer sees it. ``rss_pages`` is anon + file + shmem; the split is None where not known.

    ``page_table_pages`` is what the kernel's own term counts (``Rules.page_table_term``), with the PMD pages apart for
    kernels that list them apart. ``cap_sys_admin`` matters before 4.17 only. ``init`` is the global init, not a
    container's pid 1. ``mm_id`` is equal for processes that share one address space (CLONE_VM): they die together.
    """

    pid: int
    name: str
    rss_pages: int
    swap_pages: int = 0
    page_table_pages: int = 0
    oom_score_adj: int | None = 0
    pmd_pages: int = 0
    anon_pages: int | None = None
    file_pages: int | None = None
    shmem_pages: int | None = None
    has_mm: bool = True
    kernel_thread: bool = False
    init: bool = False
    cap_sys_admin: bool | None = None
    tgid: int | None = None
    uid: int | None = None
    ppid: int | None = None
    threads: int = 1
    cgroup: str | None = None
    start_time_ticks: int | None = None
    mm_id: int | None = None

    @classmethod
    def from_process(cls, process: "Process", page_size: int, *, init_pid: int | None = 1) -> "Task":
        """``init_pid`` None: pid 1 is a container's, not the machine's (the reader lives in a pid namespace)."""
        return cls(
            pid=process.pid,
            name=process.comm,
            rss_pages=process.rss_bytes // page_size,
            swap_pages=process.swap_bytes // page_size,
            page_table_pages=process.page_tables_bytes // page_size,
            oom_score_adj=0 if process.kernel_thread else process.oom_score_adj,
            anon_pages=_pages(process.rss_anon_bytes, page_size),
            file_pages=_pages(process.rss_file_bytes, page_size),
            shmem_pages=_pages(process.rss_shmem_bytes, page_size),
            has_mm=process.has_mm,
            kernel_thread=process.kernel_thread,
            init=process.pid == init_pid,
            tgid=process.pid,
            uid=process.uid,
            ppid=process.ppid,
            threads=process.threads,
            cgroup=process.cgroup,
            start_time_ticks=process.start_time_ticks,
        )

    @property
    def frees_pages(self) -> int:
        """What comes back to the domain for certain when this process dies: anonymous memory, swap, page tables.

        File pages are the page cache's and can be reclaimed without a kill. Shmem pages stay with their tmpfs, segment
        or other users; only a private shared mapping dies with its last user, and that can't be seen here. Where the
        split isn't known all of the RSS counts: an upper bound (``frees_is_upper_bound``). Pages shared with a forked
        relative (copy on write) count for both.
        """
        mapped = self.rss_pages if self.anon_pages is None else self.anon_pages
        return mapped + self.swap_pages + self.page_table_pages + self.pmd_pages

    @property
    def frees_is_upper_bound(self) -> bool:
        return self.anon_pages is None


def tasks_from(processes: Iterable["Process"], page_size: int) -> list[Task]:
    """All tasks of a process table. Kernel threads in it tell the machine's pid namespace, where pid 1 is the init that
    can't be killed, from a container's."""
    table = list(processes)
    init_pid = 1 if any(process.kernel_thread for process in table) else None
    return [Task.from_process(process, page_size, init_pid=init_pid) for process in table]


def _pages(size_bytes: int | None, page_size: int) -> int | None:
    return None if size_bytes is None else size_bytes // page_size


def why_unkillable(task: Task) -> str | None:
    """Why the kernel passes this task over, or None. Not visible from outside, and so not here: a process between
    vfork and exec, and one that was already killed or reaped (MMF_OOM_SKIP)."""
    if task.init:
        return "the global init"
    if task.kernel_thread:
        return "a kernel thread"
    if not task.has_mm:
        return "no memory of its own: exiting, or a zombie"
    if task.oom_score_adj == OOM_SCORE_ADJ_MIN:
        return "oom_score_adj -1000"
    return None


def base_pages(task: Task, rules: Rules) -> int:
    """The score before oom_score_adj: RSS, swap and page tables, less root's bonus where the kernel has one."""
    pages = task.rss_pages + task.swap_pages + task.page_table_pages
    if rules.page_table_term == "nr_ptes+nr_pmds":
        pages += task.pmd_pages
    if rules.root_bonus == "usage" and task.cap_sys_admin:
        pages -= pages * 3 // 100
    return pages


def badness(task: Task, totalpages: int, rules: Rules) -> int | None:
    """oom_badness() in pages; None: never killed, or (``oom_score_adj`` None) not known."""
    if task.oom_score_adj is None or why_unkillable(task) is not None:
        return None
    adj = task.oom_score_adj
    if rules.root_bonus == "adjust" and task.cap_sys_admin:
        adj -= 30
    points = base_pages(task, rules) + adj * (totalpages // 1000)
    return max(points, 1) if rules.clamp else points


def oom_score(task: Task, node_totalpages: int, rules: Rules) -> int | None:
    """What /proc/<pid>/oom_score reads: always against the whole node, whatever the cgroup's limit. None: not known."""
    if task.oom_score_adj is None:
        return None
    points = badness(task, node_totalpages, rules)
    return 0 if points is None else score_of_points(points, node_totalpages, clamp=rules.clamp)


def score_of_points(points: int, totalpages: int, *, clamp: bool) -> int:
    """fs/proc/base.c, proc_oom_score(): 0 and up for a clamped kernel, 0 to 2000 for an accurate one.

    With ``clamp`` and the domain's totalpages this is also the "score" in a kill's log line before 5.2.
    """
    if clamp:
        return points * 1000 // totalpages
    return _divide((1000 + _divide(points * 1000, totalpages)) * 2, 3)


def _divide(dividend: int, divisor: int) -> int:
    """C's division of signed numbers: towards zero."""
    quotient = abs(dividend) // abs(divisor)
    return quotient if (dividend < 0) == (divisor < 0) else -quotient


# --- domains ----------------------------------------------------------------------------------------------------------

Constraint: TypeAlias = Literal["memcg", "global", "cpuset", "mempolicy"]

Order: TypeAlias = Literal["exact", "likely", "unknown"]
"""How well the order of the tasks is the kernel's scan order; ``exact`` is also right where no scores are equal."""


def memcg_totalpages(
    limit_bytes: int | None,
    *,
    page_size: int,
    version: Literal["v1", "v2"],
    total_swap_bytes: int,
    swappiness: int | None = None,
    memsw_limit_bytes: int | None = None,
    swap_limit_bytes: int | None = None,
) -> int | None:
    """mem_cgroup_get_max(): the limit of the cgroup that ran out, plus the swap it may use. None: it has no limit.

    v1 bounds memory and swap together (``memsw_limit_bytes``), v2 swap alone (``swap_limit_bytes``); None is no bound.
    ``swappiness`` is memory.swappiness on v1, vm.swappiness on v2; 0 leaves swap out, None counts as not 0. The
    formulas before and since 5.10 are written differently and give the same number. The limit of an ancestor plays no
    part.
    """
    if limit_bytes is None:
        return None
    limit = limit_bytes // page_size
    if swappiness == 0:
        return limit or 1
    swap = total_swap_bytes // page_size
    if version == "v1":
        if memsw_limit_bytes is not None:
            swap = min(swap, memsw_limit_bytes // page_size - limit)
    elif swap_limit_bytes is not None:
        swap = min(swap, swap_limit_bytes // page_size)
    return limit + swap or 1


def global_totalpages(mem_total_bytes: int, swap_total_bytes: int, page_size: int) -> int:
    """totalram_pages() + total_swap_pages, that is MemTotal and SwapTotal of /proc/meminfo."""
    return mem_total_bytes // page_size + swap_total_bytes // page_size


@dataclass(frozen=True, slots=True)
class Knobs:
    """The settings that change what happens in an OOM. The defaults are the kernel's.

    ``oom_group_paths``: the memory cgroups with memory.oom.group set. ``domain_path``: the cgroup that ran out; None
    for the node. ``oom_kill_disable``: that cgroup's, v1. ``allocating_pid``: who asked for the memory, if known.
    """

    constraint: Constraint = "global"
    domain_path: str | None = None
    oom_group_paths: frozenset[str] = frozenset()
    oom_kill_disable: bool = False
    panic_on_oom: int = 0
    oom_kill_allocating_task: bool = False
    allocating_pid: int | None = None


MEMCG = Knobs(constraint="memcg")


@dataclass(frozen=True, slots=True)
class Domain:
    """What runs out together: a container, a pod (pause included), any memory cgroup with all below it, or the node.

    ``tasks`` are in the kernel's scan order as far as ``order`` says. ``shmem_bytes`` is what memory.stat charges to
    the cgroup; ``tmpfs_bytes`` the part of it that is known to be in tmpfs and outlives every process.
    """

    tasks: tuple[Task, ...]
    totalpages: int | None
    knobs: Knobs
    order: Order = "likely"
    page_size: int = 4096
    limit_bytes: int | None = None
    usage_bytes: int | None = None
    shmem_bytes: int | None = None
    tmpfs_bytes: int | None = None


def in_scan_order(
    tasks: Iterable[Task],
    rules: Rules,
    *,
    paths: Sequence[str] | None = None,
    joined: Mapping[str, Sequence[int]] | None = None,
) -> tuple[tuple[Task, ...], Order]:
    """The tasks as the kernel goes through them, and how sure that is.

    ``paths``: the memory cgroups of the domain in pre-order (``Hierarchy.walk``); None is the node, where the kernel
    follows the order of forks. Tasks of other cgroups are left out, at a cost: for many domains, group them first.

    Inside a cgroup it is the order of joining. A v2 ``cgroup.procs`` shows it (give those lists as ``joined``); v1
    sorts that file by pid, so there the start time stands in, which is right unless processes were moved in late.
    """
    if paths is None:
        return tuple(sorted(tasks, key=_by_start)), "likely"
    members: dict[str, list[Task]] = {path: [] for path in paths}
    for task in tasks:
        if task.cgroup in members:
            members[task.cgroup].append(task)
    ordered: list[Task] = []
    order: Order = "exact"
    for path, found in members.items():
        place = {pid: at for at, pid in enumerate(joined.get(path, ()))} if joined is not None else {}
        if all(task.pid in place for task in found):
            found.sort(key=lambda task, place=place: place[task.pid])  # type: ignore[misc]
        else:
            found.sort(key=_by_start)
            order = "likely"
        if rules.scan == "newest_first":
            # Only forks are put in front, a process moved in goes to the end: which it was can't be seen.
            found.reverse()
            order = "likely"
        ordered += found
    return tuple(ordered), order if len(ordered) > 1 else "exact"


def _by_start(task: Task) -> tuple[bool, int, int]:
    ticks = task.start_time_ticks
    return ticks is None, ticks or 0, task.pid


def memcg_domain(
    cgroup: "MemoryCgroup",
    tasks: Sequence[Task],
    order: Order,
    *,
    page_size: int,
    version: Literal["v1", "v2"],
    total_swap_bytes: int,
    vm_swappiness: int | None = None,
    panic_on_oom: int = 0,
    oom_group_paths: Iterable[str] = (),
    tmpfs_bytes: int | None = None,
) -> Domain:
    """The domain of a fully read memory cgroup; ``tasks`` and ``order`` come from ``in_scan_order``."""
    groups = set(oom_group_paths)
    if cgroup.oom_group:
        groups.add(cgroup.path)
    return Domain(
        tasks=tuple(tasks),
        totalpages=memcg_totalpages(
            cgroup.limit_bytes,
            page_size=page_size,
            version=version,
            total_swap_bytes=total_swap_bytes,
            swappiness=cgroup.swappiness if version == "v1" else vm_swappiness,
            memsw_limit_bytes=cgroup.memsw_limit_bytes,
            swap_limit_bytes=cgroup.swap_limit_bytes,
        ),
        knobs=Knobs(
            constraint="memcg",
            domain_path=cgroup.path,
            oom_group_paths=frozenset(groups),
            oom_kill_disable=bool(cgroup.oom_kill_disable),
            panic_on_oom=panic_on_oom,
        ),
        order=order,
        page_size=page_size,
        limit_bytes=cgroup.limit_bytes,
        usage_bytes=cgroup.usage_bytes,
        shmem_bytes=cgroup.shmem_bytes,
        tmpfs_bytes=tmpfs_bytes,
    )


# --- prediction -------------------------------------------------------------------------------------------------------


class Outcome(StrEnum):
    """What an OOM in the domain comes to."""

    KILLS = "Kills"
    KILLS_ALLOCATING = "KillsAllocating"
    """oom_kill_allocating_task: whoever asks for memory dies, no scores involved."""
    HANGS = "Hangs"
    """memcg oom_kill_disable: the tasks that need memory wait until someone raises the limit."""
    PANICS = "Panics"
    """panic_on_oom, or nobody to kill on the node."""
    NOBODY = "Nobody"
    """No killable process in the memory cgroup: its allocations fail or are tried again without end."""


Rule: TypeAlias = Literal[
    "highest score", "first of equal scores", "last of equal scores", "child of the chosen", "allocating task"
]


@dataclass(frozen=True, slots=True)
class Ranked:
    """One task's standing. ``points`` None: the kernel never takes it (``why`` says so), or its adj is not known."""

    task: Task
    points: int | None
    why: str | None = None

    @property
    def pid(self) -> int:
        return self.task.pid


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the kernel would do, and whether that is right.

    ``victims``: one pid when it is certain, the tied set in scan order when the order that decides can't be seen.
    ``predicted``: the one most likely; None if nothing favours one. ``dies``: everything that goes with it: processes
    that share its memory, and the whole of ``group``, the topmost memory cgroup with oom.group. ``rule``: which one
    decides. ``ranking``: highest score first, then those that can't be killed. ``tied``: how many have the top score.
    ``margin_pages``: how far the top score is ahead of the next; None if there is no other.

    ``largest``: whose death frees most, be it killable or not. ``right``: whether ``largest`` (or one that frees as
    much) dies; None if nobody does or it hangs on a tie. ``unknown``: tasks without a known oom_score_adj; any of them
    may be the victim instead.
    """

    outcome: Outcome
    predicted: int | None
    victims: tuple[int, ...]
    dies: tuple[int, ...]
    group: str | None
    rule: Rule | None
    ranking: tuple[Ranked, ...]
    tied: int
    margin_pages: int | None
    largest: int | None
    right: bool | None
    unknown: tuple[int, ...] = ()

    @property
    def certain(self) -> bool:
        return len(self.victims) == 1 and not self.unknown

    def of(self, pid: int) -> Ranked:
        """Raises KeyError."""
        for ranked in self.ranking:
            if ranked.pid == pid:
                return ranked
        raise KeyError(pid)


def predict(
    tasks: Sequence[Task],
    totalpages: int,
    rules: Rules,
    knobs: Knobs = MEMCG,
    order: Order = "exact",
) -> Prediction:
    """Whom the kernel takes from ``tasks``, which are in scan order (``in_scan_order``) as far as ``order`` says."""
    ranked = [Ranked(task, badness(task, totalpages, rules), why_unkillable(task)) for task in tasks]
    ranking = tuple(sorted(ranked, key=lambda each: (each.points is None, -(each.points or 0))))
    scores = [each.points for each in ranking if each.points is not None]
    tied = [each.task for each in ranked if scores and each.points == scores[0]]
    unknown = tuple(each.pid for each in ranked if each.points is None and each.why is None)
    outcome = _outcome(knobs, {each.pid for each in ranked if each.points is not None})

    picks: list[Task] = []
    guess: Task | None = None
    rule: Rule | None = None
    if outcome is Outcome.KILLS_ALLOCATING:
        guess = next((task for task in tasks if task.pid == knobs.allocating_pid), None)
        picks = [] if guess is None else [guess]
        rule = "allocating task"
    elif outcome is Outcome.KILLS:
        at = 0 if rules.tie == "first" else -1
        together = len(tied) == 1 or (tied[0].mm_id is not None and len({task.mm_id for task in tied}) == 1)
        picks = [tied[at]] if together or order == "exact" else tied
        guess = tied[at] if together or order != "unknown" else None
        rule = "highest score" if together else "first of equal scores" if at == 0 else "last of equal scores"
        if rules.kills_child:
            victims_of = [_child_instead(pick, tasks, totalpages, rules) for pick in picks]
            victim_of_guess = None if guess is None else _child_instead(guess, tasks, totalpages, rules)
            if victims_of != picks and len(set(victims_of)) == 1:
                rule = "child of the chosen"
            picks, guess = victims_of, victim_of_guess

    victims = tuple(dict.fromkeys(task.pid for task in picks))
    predicted = guess.pid if guess is not None else victims[0] if len(victims) == 1 else None
    largest = largest_task(tasks)
    right: bool | None = None
    if largest is not None and picks and not unknown:
        good = {task.pid: frees_most(dying_with(task, tasks, knobs), largest) for task in picks}
        right = good[predicted] if predicted is not None else good[victims[0]] if len(set(good.values())) == 1 else None
    victim = next((task for task in tasks if task.pid == predicted), None)
    return Prediction(
        outcome=outcome,
        predicted=predicted,
        victims=victims,
        dies=() if victim is None else tuple(task.pid for task in dying_with(victim, tasks, knobs)),
        group=None if victim is None else _group_of(victim, knobs),
        rule=rule,
        ranking=ranking,
        tied=len(tied),
        margin_pages=scores[0] - scores[1] if len(scores) > 1 else None,
        largest=None if largest is None else largest.pid,
        right=right,
        unknown=unknown,
    )


def predict_domain(domain: Domain, rules: Rules) -> Prediction | None:
    """``predict`` for a domain; None when it has no limit, and so no OOM of its own."""
    if domain.totalpages is None:
        return None
    return predict(domain.tasks, domain.totalpages, rules, domain.knobs, domain.order)


def kill_order(
    tasks: Sequence[Task],
    totalpages: int,
    rules: Rules,
    knobs: Knobs = MEMCG,
    order: Order = "exact",
    n: int | None = None,
) -> list[Prediction]:
    """The kills one after the other, should each free too little: at most ``n``, until nobody can be predicted.

    Sizes stay as they are, which holds for all but the process that keeps growing.
    """
    left = list(tasks)
    found: list[Prediction] = []
    while n is None or len(found) < n:
        prediction = predict(left, totalpages, rules, knobs, order)
        if prediction.predicted is None:
            break
        found.append(prediction)
        left = [task for task in left if task.pid not in prediction.dies]
    return found


def _outcome(knobs: Knobs, eligible: set[int]) -> Outcome:
    """mem_cgroup_oom(), then out_of_memory(), in their order."""
    memcg = knobs.constraint == "memcg"
    if memcg and knobs.oom_kill_disable:
        return Outcome.HANGS
    if knobs.panic_on_oom == 2 or (knobs.panic_on_oom == 1 and knobs.constraint == "global"):
        return Outcome.PANICS
    if (
        not memcg
        and knobs.oom_kill_allocating_task
        and (knobs.allocating_pid is None or knobs.allocating_pid in eligible)
    ):
        return Outcome.KILLS_ALLOCATING
    if not eligible:
        return Outcome.NOBODY if memcg else Outcome.PANICS
    return Outcome.KILLS


def _child_instead(chosen: Task, tasks: Sequence[Task], totalpages: int, rules: Rules) -> Task:
    """oom_kill_process() before 5.2: the first of the children with the highest score, if any can be killed."""
    best, best_points = chosen, 0
    for task in tasks:
        if task.ppid != chosen.pid or (task.mm_id is not None and task.mm_id == chosen.mm_id):
            continue
        points = badness(task, totalpages, rules)
        if points is not None and points > best_points:
            best, best_points = task, points
    return best


def dying_with(victim: Task, tasks: Sequence[Task], knobs: Knobs) -> list[Task]:
    """The victim first, then whatever the kernel kills with it."""
    group = _group_of(victim, knobs)
    dead = [victim]
    for task in tasks:
        if task is victim or task.init or task.kernel_thread:
            continue
        shares = victim.mm_id is not None and task.mm_id == victim.mm_id
        grouped = group is not None and _inside(task.cgroup, group) and task.oom_score_adj != OOM_SCORE_ADJ_MIN
        if shares or grouped:
            dead.append(task)
    return dead


def _group_of(victim: Task, knobs: Knobs) -> str | None:
    """mem_cgroup_get_oom_group(): the topmost cgroup with oom.group from the victim's up to the domain's."""
    above = [
        path
        for path in knobs.oom_group_paths
        if _inside(victim.cgroup, path) and (knobs.domain_path is None or _inside(path, knobs.domain_path))
    ]
    return min(above, key=len, default=None)


def _inside(path: str | None, top: str) -> bool:
    return path is not None and (path == top or path.startswith(top.rstrip("/") + "/"))


def largest_task(tasks: Sequence[Task]) -> Task | None:
    """Whose death would free most: anyone who could be killed if only its oom_score_adj let the kernel do so."""
    could = [task for task in tasks if task.has_mm and not task.kernel_thread and not task.init]
    return max(could, key=lambda task: task.frees_pages, default=None)


def frees_most(dead: Sequence[Task], largest: Task) -> bool:
    """Whether these free as much as the death of ``largest`` would."""
    if any(task.pid == largest.pid for task in dead):
        return True
    spaces = {task.pid if task.mm_id is None else -task.mm_id - 1: task.frees_pages for task in dead}
    return sum(spaces.values()) >= largest.frees_pages


# --- the probe --------------------------------------------------------------------------------------------------------

_PROBED = 32
"""Processes whose oom_score the probe reads at most: those with the least memory, whose scores are known best."""

_TOLERANCE = 20
"""Of 1000: how far a read oom_score may be from the computed one; processes grow between the two readings."""


@dataclass(frozen=True, slots=True)
class Probe:
    """``release`` as the kernel gives it; ``evidence`` and ``decided_by`` are sentences for a report."""

    generation: Generation
    release: str | None
    evidence: str
    decided_by: tuple[str, ...] = ()

    @property
    def rules(self) -> Rules | None:
        return None if self.generation is Generation.UNKNOWN else rules_for(self.release, self.generation)


def probe(host: Host, tasks: Iterable[Task], node_totalpages: int) -> Probe:
    """The generation of the running kernel, from what /proc/<pid>/oom_score reads. Needs no privilege, never raises.

    The release decides only the side of a tie on a clamped kernel.
    """
    try:
        release: str | None = host.read_small(f"{host.proc}/sys/kernel/osrelease").decode("ascii", "replace").strip()
    except OSError:
        release = None
    useful = [task for task in tasks if _tells_apart(task, node_totalpages)]
    useful.sort(key=lambda task: (task.frees_pages, task.pid))
    readings: list[tuple[Task, int]] = []
    for task in useful:
        try:
            readings.append((task, int(host.read_small(f"{host.proc}/{task.pid}/oom_score"))))
        except (OSError, ValueError):
            continue  # gone, or hidden: another process will do
        if len(readings) == _PROBED:
            break
    return generation_of(readings, node_totalpages, release)


def generation_of(readings: Iterable[tuple[Task, int]], node_totalpages: int, release: str | None) -> Probe:
    """Decide from (task, its oom_score) pairs. Tasks that can't tell are passed over.

    A 0 alone proves little (an accurate kernel shows it for a process between vfork and exec, or already killed), but
    a small process at adj 0 reads 666 on no clamped kernel: so one such reading outweighs all zeros.
    """
    accurate: list[str] = []
    clamped: list[str] = []
    zero: list[str] = []
    neither: list[str] = []
    for task, score in readings:
        if not _tells_apart(task, node_totalpages):
            continue
        expect_accurate, expect_clamped = _expected(task, node_totalpages)
        text = (
            f"pid {task.pid} with oom_score_adj {task.oom_score_adj} reads oom_score {score}"
            f" (accurate: {expect_accurate}, clamped: {expect_clamped})"
        )
        if abs(score - expect_accurate) <= _TOLERANCE:
            accurate.append(text)
        elif abs(score - expect_clamped) <= _TOLERANCE:
            (clamped if score else zero).append(text)
        else:
            neither.append(text)
    if accurate and clamped:
        return Probe(Generation.UNKNOWN, release, f"contradictory: {accurate[0]}, but {clamped[0]}")
    if accurate:
        return Probe(Generation.ACCURATE, release, f"{accurate[0]}; {len(accurate)} processes agree")
    if clamped or zero:
        tie, sentence = tie_by_release(release)
        generation = Generation.CLAMPED_FIRST if tie == "first" else Generation.CLAMPED_LAST
        said = (clamped + zero)[0]
        return Probe(generation, release, f"{said}; {len(clamped + zero)} processes agree", (sentence,))
    if neither:
        return Probe(Generation.UNKNOWN, release, f"fits no known kernel: {neither[0]}")
    return Probe(Generation.UNKNOWN, release, "no process whose oom_score can be read and tells the generations apart")


def _expected(task: Task, node_totalpages: int) -> tuple[int, int]:
    """oom_score on an accurate and on a clamped kernel. Root's bonus is far inside the tolerance for small tasks."""
    expected = [
        oom_score(task, node_totalpages, Rules(generation, clamp=clamp, tie="last"))
        for generation, clamp in ((Generation.ACCURATE, False), (Generation.CLAMPED_LAST, True))
    ]
    return expected[0] or 0, expected[1] or 0


def _tells_apart(task: Task, node_totalpages: int) -> bool:
    if task.oom_score_adj is None or why_unkillable(task) is not None or node_totalpages < 1000:
        return False
    accurate, clamped = _expected(task, node_totalpages)
    return abs(accurate - clamped) > 2 * _TOLERANCE and (task.rss_pages + task.swap_pages) * 100 <= node_totalpages
