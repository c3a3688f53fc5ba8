"""A kernel OOM report judged: who died, who would have under each generation, was it right, and which rule explains it.

Only what the text holds is used. Where it leaves open how large the domain was, everything is computed for all sizes
it may have had, and a prediction is one pid only if it is the same for all of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from nodemem.kernel.oom import (
    KNOWN_GENERATIONS,
    OOM_SCORE_ADJ_MIN,
    Generation,
    Rules,
    Task,
    badness,
    parse_release,
    rules_for,
    why_unkillable,
)
from nodemem.kernel.oomlog import Counter, Kill, LogTask, Report

Verdict: TypeAlias = Literal["right", "wrong", "unknown"]
Cause: TypeAlias = Literal[
    "largest", "clamped", "oom_score_adj", "unkillable", "child", "allocating task", "group", "nobody", "unknown"
]

_MOST_SAMPLES = 64
_ENDLESS = 1 << 62


@dataclass(frozen=True, slots=True)
class TotalPages:
    """What the kernel divided by: between ``low`` and ``high`` (None: no bound known). ``why`` is a sentence's part."""

    low: int
    high: int | None
    why: str

    @property
    def exact(self) -> int | None:
        return self.low if self.low == self.high else None


@dataclass(frozen=True, slots=True)
class Judgement:
    """``predicted``: for each generation one pid, several where the text can't decide, none where rows are missing.

    ``chosen``: the process whose score was the highest in the kernel's eyes; ``victim``: the one that died, which may
    be its child. ``largest``: whose death would have freed most, killable or not. ``frees_pages`` of the victim is from
    its row, or from the kill's own line where it has none. ``explanation`` is one paragraph, ``advice`` what to do;
    names in them are as the kernel gave them, control bytes and all.
    """

    report: Report
    tasks: tuple[Task, ...]
    total: TotalPages
    predicted: Mapping[Generation, tuple[int, ...]]
    generation: Generation
    chosen: Task | None
    victim: Task | None
    victim_frees_pages: int | None
    largest: Task | None
    verdict: Verdict
    cause: Cause
    explanation: str
    advice: tuple[str, ...]
    scores: Mapping[int, int | None]


def judge(report: Report, *, release: str | None = None) -> Judgement:
    """``release`` stands in where the report's own text doesn't name the kernel."""
    return _Case(report, report.kernel_release or release or _era(report)).judge()


def _era(report: Report) -> str | None:
    """A release of the age that the table's columns show, for rules that only age decides (root's bonus)."""
    if "nr_pmds" in report.columns:
        return "4.4"
    return "3.10" if "nr_ptes" in report.columns else None


def _task(row: LogTask, page_size: int, *, init: bool) -> Task:
    return Task(
        pid=row.pid,
        name=row.name,
        rss_pages=row.rss_pages,
        swap_pages=row.swap_pages or 0,
        page_table_pages=row.page_table_pages(page_size),
        oom_score_adj=row.oom_score_adj,
        anon_pages=row.rss_anon_pages,
        file_pages=row.rss_file_pages,
        shmem_pages=row.rss_shmem_pages,
        init=init,
        tgid=row.tgid,
        uid=row.uid,
    )


class _Case:
    def __init__(self, report: Report, release: str | None) -> None:
        self.report = report
        self.release = release
        on_node = report.constraint != "memcg"
        self.tasks = tuple(
            _task(row, report.page_size, init=on_node and row.pid == 1 and row.tgid in (1, None))
            for row in report.tasks
        )
        dying = report.earlier_kills - {(kill.pid, kill.name) for kill in report.kills}
        self.candidates = tuple(
            task
            for task in self.tasks
            if why_unkillable(task) is None and task.oom_score_adj is not None and (task.pid, task.name) not in dying
        )
        self.skipped = tuple(task for task in self.tasks if (task.pid, task.name) in dying)
        self.rules = {generation: rules_for(release, generation) for generation in KNOWN_GENERATIONS}
        self.unclamped = replace(self.rules[Generation.CLAMPED_FIRST], clamp=False)
        self.with_bonus = {task.pid: replace(task, cap_sys_admin=True) for task in self.tasks if task.uid == 0}
        self.bonuses = self._bonuses()
        self.victim = self._row_of(report.victim)
        self.chosen = self._chosen()
        self.total = self._refined(total_pages(report))

    # Who is who.

    def _row_of(self, kill: Kill | None) -> Task | None:
        if kill is None:
            return None
        by_pid = next((task for task in self.tasks if task.pid == kill.pid), None)
        return by_pid or next((task for task in self.tasks if task.tgid == kill.pid), None)

    def _chosen(self) -> Task | None:
        """Before 5.3 the scan went over threads: a choice that has no row may be a thread of the process that died."""
        choice = self.report.choice
        if choice is None:
            return self.victim
        row = next((task for task in self.tasks if choice.pid in (task.pid, task.tgid)), None)
        if row is None and self.victim is not None and self.victim.name == choice.name:
            return self.victim
        return row

    def _bonuses(self) -> tuple[bool, ...]:
        """Root's bonus before 4.17 goes by a capability that no log shows: with uid 0, both are possible."""
        rules = self.unclamped
        if rules.root_bonus == "none" or not any(task.uid == 0 for task in self.candidates):
            return (False,)
        return (False, True)

    def _points(self, task: Task, weight: int, rules: Rules, bonus: bool) -> int:
        """``weight`` is totalpages / 1000, the only form in which totalpages enters a score."""
        if bonus:
            task = self.with_bonus.get(task.pid, task)
        points = badness(task, weight * 1000, rules)
        return 0 if points is None else points

    # How large the domain was.

    def _refined(self, total: TotalPages) -> TotalPages:
        """Where the text leaves a range: the end of it that gives the printed score, if just one does."""
        choice = self.report.choice
        if choice is None or self.chosen is None or self.chosen.oom_score_adj is None or not choice.score:
            return total
        fits = {size: self._bonuses_that_fit(size) for size in {total.low, total.high} if size is not None and size > 0}
        good = [size for size, bonuses in fits.items() if bonuses]
        if total.exact is None and len(good) == 1:
            total = TotalPages(good[0], good[0], f"{total.why}; the printed score {choice.score} tells which")
        if total.exact is not None and good:
            self.bonuses = fits[total.exact]
        return total

    def _bonuses_that_fit(self, totalpages: int) -> tuple[bool, ...]:
        """With which of root's bonuses the chosen process gets the printed score, off by one for rounding sizes."""
        choice, chosen = self.report.choice, self.chosen
        if choice is None or chosen is None:
            return ()
        rules = self.rules[Generation.CLAMPED_FIRST]
        return tuple(
            bonus
            for bonus in self.bonuses
            if abs(self._points(chosen, totalpages // 1000, rules, bonus) * 1000 // totalpages - choice.score) <= 1
        )

    # Who would have died.

    def _winners(self, generation: Generation) -> tuple[int, ...]:
        """Union over all that the text leaves open, in the order of the table."""
        found: set[int] = set()
        rules = self.rules[generation]
        for bonus in self.bonuses:
            for weight in self._weights(bonus):
                points = [self._points(task, weight, rules, bonus) for task in self.candidates]
                best = max(points)
                tied = [task.pid for task, score in zip(self.candidates, points, strict=True) if score == best]
                found.update(self._of_tied(tied, generation))
        return tuple(task.pid for task in self.candidates if task.pid in found)

    def _of_tied(self, tied: list[int], generation: Generation) -> list[int]:
        """Before 5.3 the table of a memory cgroup isn't in the order of the scan. The kernels whose last one wins
        print theirs in that order; among those whose first one wins, only the outcome can confirm it."""
        if generation is not Generation.CLAMPED_FIRST:
            return tied[-1:]
        confirmed = self.chosen is not None and self.chosen.pid == tied[0]
        return tied[:1] if confirmed or self.table_in_scan_order else tied

    @property
    def table_in_scan_order(self) -> bool:
        """5.3 and later (5eee7e1cdb97), which a kill line with its page tables (5.4) shows too; the node always."""
        if self.report.constraint != "memcg":
            return True
        version = parse_release(self.release)
        if version is not None:
            return version >= (5, 3, 0)
        return any(kill.page_tables_bytes is not None for kill in self.report.kills)

    def _weights(self, bonus: bool) -> list[int]:
        """The values of totalpages / 1000 at which the highest score may change hands; [] when they are too many.

        Each score is a line in that weight, so the highest is a convex curve: it is followed from corner to corner.
        """
        low = self.total.low // 1000
        high = _ENDLESS if self.total.high is None else self.total.high // 1000
        if low >= high:
            return [low]
        lines = sorted(
            {
                (self._points(task, 1, self.unclamped, bonus) - base, base)
                for task in self.candidates
                for base in (self._points(task, 0, self.unclamped, bonus),)
            }
        )
        best: dict[int, int] = dict(lines)
        at, weights = low, {low, high}
        slope = max(best, key=lambda each: (best[each] + each * low, each))
        while True:
            crossings = [
                ((best[slope] - base) // (steeper - slope), steeper)
                for steeper, base in best.items()
                if steeper > slope
            ]
            crossings = [(where, steeper) for where, steeper in crossings if where <= high]
            if not crossings or len(weights) > _MOST_SAMPLES:
                break
            at = max(low, min(where for where, _ in crossings))
            weights |= {at, min(at + 1, high)}
            slope = max(
                (steeper for where, steeper in crossings if max(low, where) == at),
                key=lambda each: (best[each] + each * (at + 1), each),
            )
        return sorted(weights) if len(weights) <= _MOST_SAMPLES else []

    # The verdict.

    def judge(self) -> Judgement:
        report = self.report
        whole = report.table_whole and len(self.candidates) > 0 and not report.nobody
        predicted = {generation: self._winners(generation) if whole else () for generation in KNOWN_GENERATIONS}
        consistent = self._consistent(predicted)
        generation = consistent[0] if len(consistent) == 1 else Generation.UNKNOWN
        largest = max(
            (task for task in self.tasks if not task.init and task not in self.skipped),
            key=lambda task: task.frees_pages,
            default=None,
        )
        frees = self._victim_frees()
        verdict = self._verdict(largest, frees)
        cause = self._cause(consistent, predicted, largest, verdict)
        return Judgement(
            report=report,
            tasks=self.tasks,
            total=self.total,
            predicted=predicted,
            generation=generation,
            chosen=self.chosen,
            victim=self.victim,
            victim_frees_pages=frees,
            largest=largest,
            verdict=verdict,
            cause=cause,
            explanation=" ".join(self._explain(predicted, consistent, largest, frees, verdict, cause)),
            advice=tuple(self._advice(largest, verdict, cause)),
            scores=self._scores(generation),
        )

    def _victim_frees(self) -> int | None:
        """All that died together, if the whole memory cgroup did."""
        kills = self.report.kills
        if not kills:
            return None
        rows = {id(row): row for row in map(self._row_of, kills) if row is not None}
        if rows:
            return sum(row.frees_pages for row in rows.values())
        return kills[0].rss_bytes // self.report.page_size

    def _verdict(self, largest: Task | None, frees: int | None) -> Verdict:
        if largest is None or frees is None:
            return "unknown"
        if self.report.group is not None:
            dead = {row.pid for row in map(self._row_of, self.report.kills) if row is not None}
            if largest.pid in dead or frees >= largest.frees_pages:
                return "right"
            # Members are named one by one; without those lines nobody can say who else went.
            return "unknown" if len(self.report.kills) == 1 else "wrong"
        if frees < largest.frees_pages:
            # A larger one is there to see, whatever else is missing.
            return "wrong" if self.victim is not None or not self.report.gaps else "unknown"
        return "right" if self.report.table_whole else "unknown"

    def _consistent(self, predicted: Mapping[Generation, tuple[int, ...]]) -> list[Generation]:
        """The generations that would have chosen the same process, less those that would have printed another score."""
        if self.chosen is None or self.report.allocating_task:
            return []
        found = [generation for generation in KNOWN_GENERATIONS if self.chosen.pid in predicted[generation]]
        choice = self.report.choice
        if choice is not None and choice.score == 0 and Generation.ACCURATE in found:
            weight = self.total.low // 1000
            if all(self._points(self.chosen, weight, self.unclamped, bonus) < 0 for bonus in self.bonuses):
                found.remove(Generation.ACCURATE)
        return found

    def _all_at_floor(self) -> bool:
        weight = self.total.low // 1000
        return len(self.candidates) > 1 and all(
            self._points(task, weight, self.unclamped, bonus) <= 1 for task in self.candidates for bonus in self.bonuses
        )

    def _cause(
        self,
        consistent: Sequence[Generation],
        predicted: Mapping[Generation, tuple[int, ...]],
        largest: Task | None,
        verdict: Verdict,
    ) -> Cause:
        report = self.report
        if report.nobody or not report.kills:
            return "nobody" if report.nobody else "unknown"
        if report.allocating_task:
            return "allocating task"
        if report.group is not None:
            return "group"
        if self.chosen is not None and self.victim is not None and self.chosen.pid != self.victim.pid:
            return "child"
        if self.chosen is None or largest is None or not consistent:
            return "unknown"
        if Generation.ACCURATE not in consistent and self._all_at_floor():
            return "clamped"
        if verdict == "right":
            return "largest"
        if largest.oom_score_adj == OOM_SCORE_ADJ_MIN:
            return "unkillable"
        if largest.oom_score_adj != self.chosen.oom_score_adj:
            return "oom_score_adj"
        return "clamped" if Generation.ACCURATE not in consistent else "unknown"

    def _scores(self, generation: Generation) -> dict[int, int | None]:
        """Each row's score before clamping, where totalpages is known; None for those that are never killed."""
        if self.total.exact is None:
            return {}
        weight, bonus = self.total.exact // 1000, self.bonuses == (True,)
        rules = self.unclamped if generation is not Generation.ACCURATE else self.rules[Generation.ACCURATE]
        alive = {task.pid for task in self.candidates}
        return {
            task.pid: self._points(task, weight, rules, bonus) if task.pid in alive else None for task in self.tasks
        }

    # In words.

    def _size(self, pages: int) -> str:
        value = float(pages * self.report.page_size)
        for unit in ("B", "KiB", "MiB", "GiB"):
            if value < 1023.95:
                return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
            value /= 1024
        return f"{value:.1f} TiB"

    def _who(self, task: Task) -> str:
        return f"{task.name} (pid {task.pid}, {self._size(task.frees_pages)})"

    def _explain(
        self,
        predicted: Mapping[Generation, tuple[int, ...]],
        consistent: Sequence[Generation],
        largest: Task | None,
        frees: int | None,
        verdict: Verdict,
        cause: Cause,
    ) -> list[str]:
        report, victim = self.report, self.report.victim
        said: list[str] = []
        if victim is None:
            if report.nobody:
                said.append("The kernel found nobody it may kill.")
            else:
                said.append("The text doesn't say who was killed.")
        else:
            size = "" if frees is None else f", {self._size(frees)}"
            name = f"{victim.name} (pid {victim.pid}{size})"
            if verdict == "right":
                said.append(f"The kernel killed {name}: no other process would have freed more.")
            elif verdict == "wrong" and largest is not None:
                said.append(f"The kernel killed {name}, but {self._who(largest)} would have freed most.")
            else:
                said.append(f"The kernel killed {name}; whether that freed most can't be told from this text.")
        said += self._because(consistent, largest, cause)
        if report.group is not None and len(report.kills) > 1:
            said.append(f"{len(report.kills)} processes died together.")
        if report.panicked:
            said.append("Then the kernel panicked.")
        said += self._limits_of_knowledge(predicted)
        said += self._generation_in_words(consistent, cause)
        return said

    def _because(self, consistent: Sequence[Generation], largest: Task | None, cause: Cause) -> list[str]:
        report = self.report
        if cause == "clamped":
            side = (
                "the first one scanned"
                if list(consistent) == [Generation.CLAMPED_FIRST]
                else "the last one scanned"
                if list(consistent) == [Generation.CLAMPED_LAST]
                else "one of them by its place in the scan"
            )
            adjs = sorted({task.oom_score_adj for task in self.candidates if task.oom_score_adj is not None})
            spread = f"{adjs[0]}" if len(adjs) == 1 else f"{adjs[0]} to {adjs[-1]}"
            return [
                f"With oom_score_adj {spread} every one of the {len(self.candidates)} scores falls below 1, and this"
                f" kernel raises each of them to 1: size played no part, and it took {side}."
            ]
        if cause == "oom_score_adj" and self.chosen is not None and largest is not None:
            return [
                f"oom_score_adj decided: {self.chosen.oom_score_adj} against {largest.oom_score_adj} of {largest.name}"
                " put the smaller process ahead."
            ]
        if cause == "unkillable" and largest is not None:
            return [f"{largest.name} has oom_score_adj -1000 and is never killed, so the killer takes the others."]
        if cause == "child" and self.chosen is not None:
            return [f"The scores chose {self._who(self.chosen)}; kernels before 5.2 kill one of its children instead."]
        if cause == "allocating task":
            return ["vm.oom_kill_allocating_task is set: whoever asked for memory dies, and sizes play no part."]
        if cause == "group":
            return [f"memory.oom.group is set on {report.group}: all its processes die, so the choice is moot."]
        if cause == "largest" and self.chosen is not None and len(self.candidates) == 1:
            return ["It was the only process that could be killed."]
        if cause == "largest":
            return ["It had the highest score."]
        if cause == "unknown" and self.chosen is not None and report.table_whole and not consistent:
            return ["No known rule gives this choice from the sizes in the table."]
        return []

    def _limits_of_knowledge(self, predicted: Mapping[Generation, tuple[int, ...]]) -> list[str]:
        report = self.report
        said: list[str] = []
        if report.gaps:
            said.append("The report isn't whole: " + "; ".join(report.gaps) + ".")
        elif not report.tasks and not report.nobody:
            said.append("There is no task table, so nothing can be compared.")
        if report.suppressed:
            said.append(f"The kernel left out {report.suppressed} reports before this one (rate limit).")
        if report.tasks and self.total.exact is None and any(task.oom_score_adj for task in self.candidates):
            certain = all(len(pids) == 1 for pids in predicted.values())
            said.append(
                f"How large the domain was isn't known ({self.total.why})"
                + ("; the predictions are the same for every size it may have had." if certain else ".")
            )
        if any(len(pids) > 1 for pids in predicted.values()):
            said.append("Where several pids are predicted, the text leaves open which of them.")
        if report.tasks and report.page_size_source == "assumed":
            said.append("Pages of 4 KiB are assumed.")
        if self.skipped:
            said.append(
                "Killed before and passed over: " + ", ".join(str(task.pid) for task in self.skipped[:10]) + "."
            )
        return said

    def _generation_in_words(self, consistent: Sequence[Generation], cause: Cause) -> list[str]:
        names = {
            Generation.CLAMPED_FIRST: "clamped, first wins",
            Generation.CLAMPED_LAST: "clamped, last wins",
            Generation.ACCURATE: "accurate",
        }
        if cause in ("allocating task", "nobody") or not consistent or len(consistent) == len(names):
            return []
        if len(consistent) == 1:
            return [f"Only the generation '{names[consistent[0]]}' explains this."]
        return ["The generations " + " and ".join(f"'{names[each]}'" for each in consistent) + " both explain this."]

    def _advice(self, largest: Task | None, verdict: Verdict, cause: Cause) -> list[str]:
        advice: list[str] = []
        if cause == "clamped" and largest is not None:
            advice.append(
                "Run a kernel with commit 9066e5cfb73c (5.9, 5.4.144, or a vendor's backport), which compares negative"
                " scores too."
            )
            if self.total.exact and self.total.exact >= 1000:
                base = self._points(largest, 0, self.unclamped, False)
                # The smallest adj with base + adj * (totalpages / 1000) >= 2, so that the largest is above the floor.
                adj = -((base - 2) // (self.total.exact // 1000))
                if -1000 < adj < 0:
                    advice.append(
                        f"Until then: with oom_score_adj {adj} or higher for all of them, {largest.name} would have"
                        " been chosen. See 'nodemem oom' for the value that also keeps the protection on the node."
                    )
        elif cause == "oom_score_adj" and largest is not None:
            advice.append(
                f"If {largest.name} should go first, raise its oom_score_adj or that of the others to the same value."
            )
        elif cause == "unkillable" and largest is not None:
            advice.append(f"Give {largest.name} an oom_score_adj above -1000, or a memory limit of its own.")
        elif cause == "allocating task":
            advice.append("Set vm.oom_kill_allocating_task to 0 to let the scores decide.")
        elif cause == "nobody":
            advice.append("Find what holds the memory outside of processes: 'nodemem report'.")
        elif verdict == "right":
            where = {"memcg": "the limit of the memory cgroup", "global": "the machine's memory"}
            place = where.get(self.report.constraint, "the memory of the allowed NUMA nodes")
            advice.append(f"The choice was right: {place} is too small for this load, or the process leaks.")
        if self.report.gaps or (not self.report.tasks and not self.report.nobody):
            advice.append(
                "For more, take the whole report from the log: from 'invoked oom-killer' to 'Killed process'."
            )
        return advice


def total_pages(report: Report) -> TotalPages:
    """The number that the kernel scaled oom_score_adj with, as far as the text bounds it (kernel: oc->totalpages)."""
    size = report.page_size
    if report.constraint == "memcg":
        return _memcg_total(report)
    swap = None if report.total_swap_bytes is None else report.total_swap_bytes // size
    if report.constraint == "global":
        if report.ram_pages is None or report.reserved_pages is None:
            return TotalPages(0, None, "the text has no Mem-Info with the pages of RAM")
        ram = report.ram_pages - report.reserved_pages
        return _plus_swap(ram, swap, "pages RAM less reserved")
    if report.constraint in ("cpuset", "mempolicy"):
        present = dict(report.node_present_bytes)
        nodes = _node_list(report.nodes)
        if not nodes or not all(node in present for node in nodes):
            return TotalPages(0, None, "the text doesn't say how large the allowed NUMA nodes are")
        return _plus_swap(sum(present[node] for node in nodes) // size, swap, "present pages of the allowed nodes")
    return TotalPages(0, None, "the text doesn't say what ran out")


def _plus_swap(pages: int, swap: int | None, what: str) -> TotalPages:
    if swap is None:
        return TotalPages(pages, None, f"{what}; the text doesn't say how much swap there is")
    return TotalPages(pages + swap, pages + swap, f"{what}, and swap")


def _memcg_total(report: Report) -> TotalPages:
    memory = report.memory
    size = report.page_size
    if memory is None or memory.limit_bytes is None:
        used = 0 if memory is None else memory.usage_bytes // size
        return TotalPages(used, None, "the text doesn't hold the limit")
    limit = memory.limit_bytes // size
    room = _swap_room(report, limit)
    if room == 0:
        return TotalPages(limit, limit, "the limit; swap isn't allowed")
    if report.total_swap_bytes is not None:
        swap = report.total_swap_bytes // size
        swap = swap if room is None else min(swap, room)
        return TotalPages(limit + swap, limit + swap, "the limit, and the swap it may use")
    used = _swap_used(report)
    if used == 0:
        # Had there been any to use, it would have been used before a kill; with swappiness 0 it doesn't count either.
        return TotalPages(limit, limit, "the limit; no swap is in use, so none can be had")
    high = None if room is None else limit + room
    if high is not None and limit + used >= high:
        return TotalPages(high, high, "the limit, and all the swap it may use")
    return TotalPages(limit + used, high, "swap is in use, and the text doesn't say how much of it there is")


def _swap_room(report: Report, limit_pages: int) -> int | None:
    """How much swap the cgroup's own limits allow; None: any amount."""
    counter: Counter | None
    if (counter := report.swap) is not None and counter.limit_bytes is not None:
        return counter.limit_bytes // report.page_size
    if (counter := report.memory_swap) is not None and counter.limit_bytes is not None:
        return max(0, counter.limit_bytes // report.page_size - limit_pages)
    return None


def _swap_used(report: Report) -> int:
    """Of the cgroup's own counters; without them (no swap accounting) of the table, which counts shared pages twice."""
    size = report.page_size
    if report.swap is not None:
        return report.swap.usage_bytes // size
    if report.memory_swap is not None and report.memory is not None and report.memory_swap.usage_bytes:
        return max(0, report.memory_swap.usage_bytes - report.memory.usage_bytes) // size
    return max((task.swap_pages or 0 for task in report.tasks), default=0)


def _node_list(text: str | None) -> list[int]:
    """``0-1,3`` -> [0, 1, 3]; [] for what isn't such a list."""
    nodes: list[int] = []
    for part in (text or "").split(","):
        first, _, last = part.partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()) or len(part) > 9:
            return []
        nodes += range(int(first), min(int(last or first), int(first) + 1024) + 1)
    return nodes
