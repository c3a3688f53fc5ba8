"""The kernel's own arithmetic, statement by statement, with C's types: what nodemem.kernel.oom is compared with.

Nothing is shared with the code under test. ``ulong`` and ``long`` wrap like the 64-bit types; the C expression that a
line stands for is beside it where it isn't obvious. Sources: mm/oom_kill.c, fs/proc/base.c, mm/memcontrol.c at the
releases named.
"""

from collections.abc import Sequence
from dataclasses import dataclass

ULONG_MAX = 2**64 - 1
LONG_MIN = -(2**63)
PAGE_SIZE = 4096
PAGE_COUNTER_MAX = (2**63 - 1) // PAGE_SIZE


@dataclass(frozen=True)
class CTask:
    """The fields that oom_badness() and its callers look at. All tasks are thread group leaders."""

    pid: int
    rss: int
    swapents: int
    nr_ptes: int
    nr_pmds: int
    pgtables_bytes: int
    oom_score_adj: int
    cap_sys_admin: bool = False
    unkillable: bool = False
    has_mm: bool = True


def ulong(value: int) -> int:
    return value & ULONG_MAX


def long(value: int) -> int:
    value &= ULONG_MAX
    return value - 2**64 if value >= 2**63 else value


def long_div(a: int, b: int) -> int:
    """idiv: the quotient is cut off towards zero."""
    q = abs(a) // abs(b)
    return long(-q if (a < 0) ^ (b < 0) else q)


def badness_3_10(p: CTask, totalpages: int) -> int:
    if p.unkillable or not p.has_mm:
        return 0
    adj = long(p.oom_score_adj)
    if adj == -1000:
        return 0
    points = long(p.rss + p.nr_ptes + p.swapents)
    if p.cap_sys_admin:
        adj = long(adj - 30)
    adj = long(ulong(adj) * (totalpages // 1000))
    points = long(points + adj)
    return ulong(points) if points > 0 else 1


def _badness_with_usage_bonus(p: CTask, totalpages: int, page_tables: int) -> int:
    if p.unkillable or not p.has_mm:
        return 0
    adj = long(p.oom_score_adj)
    if adj == -1000:
        return 0
    points = long(p.rss + p.swapents + page_tables)
    if p.cap_sys_admin:
        points = long(points - long_div(long(points * 3), 100))
    adj = long(ulong(adj) * (totalpages // 1000))
    points = long(points + adj)
    return ulong(points) if points > 0 else 1


def badness_3_16(p: CTask, totalpages: int) -> int:
    return _badness_with_usage_bonus(p, totalpages, p.nr_ptes)


def badness_4_9(p: CTask, totalpages: int) -> int:
    return _badness_with_usage_bonus(p, totalpages, p.nr_ptes + p.nr_pmds)


def badness_4_16(p: CTask, totalpages: int) -> int:
    return _badness_with_usage_bonus(p, totalpages, p.pgtables_bytes // PAGE_SIZE)


def badness_5_4(p: CTask, totalpages: int) -> int:
    """4.17 to 5.8."""
    if p.unkillable or not p.has_mm:
        return 0
    adj = long(p.oom_score_adj)
    if adj == -1000:
        return 0
    points = long(p.rss + p.swapents + p.pgtables_bytes // PAGE_SIZE)
    adj = long(ulong(adj) * (totalpages // 1000))
    points = long(points + adj)
    return ulong(points) if points > 0 else 1


def badness_5_9(p: CTask, totalpages: int) -> int:
    if p.unkillable or not p.has_mm:
        return LONG_MIN
    adj = long(p.oom_score_adj)
    if adj == -1000:
        return LONG_MIN
    points = long(p.rss + p.swapents + p.pgtables_bytes // PAGE_SIZE)
    adj = long(ulong(adj) * (totalpages // 1000))
    return long(points + adj)


def proc_oom_score_5_4(badness: int, totalpages: int) -> int:
    """points = oom_badness(task, totalpages) * 1000 / totalpages, all unsigned."""
    return ulong(badness * 1000) // totalpages


def proc_oom_score_5_9(badness: int, totalpages: int) -> int:
    points = 0
    if badness != LONG_MIN:
        points = long_div(long((1000 + long_div(long(badness * 1000), long(totalpages))) * 2), 3)
    return ulong(points)


def select_before_2014(scores: Sequence[tuple[int, int]]) -> int | None:
    """(pid, points) in scan order: a higher score replaces the chosen."""
    chosen, chosen_points = None, 0
    for pid, points in scores:
        if points > chosen_points:
            chosen, chosen_points = pid, points
    return chosen


def select_4_9(scores: Sequence[tuple[int, int]]) -> int | None:
    """2014 to 5.2; every task is a leader, so an equal score never replaces."""
    chosen, chosen_points = None, 0
    for pid, points in scores:
        if not points or points < chosen_points:
            continue
        if points == chosen_points and chosen is not None:
            continue
        chosen, chosen_points = pid, points
    return chosen


def select_5_4(scores: Sequence[tuple[int, int]]) -> int | None:
    """5.3 to 5.8."""
    chosen, chosen_points = None, 0
    for pid, points in scores:
        if not points or points < chosen_points:
            continue
        chosen, chosen_points = pid, points
    return chosen


def select_5_9(scores: Sequence[tuple[int, int]]) -> int | None:
    chosen, chosen_points = None, LONG_MIN
    for pid, points in scores:
        if points == LONG_MIN or points < chosen_points:
            continue
        chosen, chosen_points = pid, points
    return chosen


def mem_cgroup_get_max_5_9(
    memory_max: int, memsw_max: int, swap_max: int, total_swap_pages: int, swappiness: int
) -> int:
    """memsw_max is PAGE_COUNTER_MAX on v2, swap_max on v1."""
    limit = memory_max
    if swappiness:
        swap_max = min(swap_max, total_swap_pages)
        limit = min(limit + swap_max, memsw_max)
    return limit


def mem_cgroup_get_max_5_10(
    memory_max: int, memsw_max: int, swap_max: int, total_swap_pages: int, swappiness: int, *, v1: bool
) -> int:
    limit = memory_max
    if v1:
        if swappiness:
            swap = ulong(memsw_max - limit)
            limit += min(swap, total_swap_pages)
    elif swappiness:
        limit += min(swap_max, total_swap_pages)
    return limit
