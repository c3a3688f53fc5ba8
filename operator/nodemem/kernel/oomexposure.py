"""Why an OOM kill in a domain would go wrong, and the oom_score_adj that makes a clamped kernel choose right.

What the killer does is in ``oom``; here is what is wrong with that. Values in, values out; sizes are pages unless a
name says bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeAlias

from nodemem.kernel.oom import (
    OOM_SCORE_ADJ_MIN,
    Domain,
    Outcome,
    Prediction,
    Rules,
    Task,
    base_pages,
    dying_with,
    frees_most,
    kill_order,
    largest_task,
    predict,
    predict_domain,
    why_unkillable,
)

# --- mitigation -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mitigation:
    """An oom_score_adj for all processes of a domain on a clamped kernel; ``why_none`` when there is no such value.

    ``keeps_node_floor``: for the node as a whole each of them still scores 1, the least. A process that holds
    ``discriminates_above_percent`` of the domain's totalpages or more scores above the floor inside the domain, so that
    the largest of those is chosen. ``largest_stands_out``: the largest killable process of today is one.
    """

    oom_score_adj: int | None
    discriminates_above_percent: int | None
    keeps_node_floor: bool
    largest_stands_out: bool | None
    why_none: str | None = None


def mitigation(totalpages: int, node_totalpages: int, tasks: Sequence[Task], rules: Rules) -> Mitigation:
    """The negative adj nearest to zero that keeps the floor for any process the domain has room for.

    About -1000 * totalpages / node_totalpages. Exact on both sides: each total is divided by 1000 first. A process that
    already counts more than the domain's totalpages (file pages charged elsewhere) raises the bar.
    """
    if not rules.clamp:
        return _none("this kernel doesn't clamp scores: it needs no other oom_score_adj")
    weight, node_weight = totalpages // 1000, node_totalpages // 1000
    if weight == 0 or node_weight == 0:
        return _none("below 1000 pages oom_score_adj has no weight: the largest is chosen as it is")
    bases = [base_pages(task, rules) for task in tasks if why_unkillable(task) is None]
    most = max([totalpages, *bases])
    adj = -((most - 1 + node_weight - 1) // node_weight)
    needed = 2 - adj * weight
    percent = -(-100 * needed // totalpages)
    if adj <= OOM_SCORE_ADJ_MIN or percent > 100:
        return _none(
            "its limit is too large a part of the node: a value that keeps the node-level floor hides every process"
        )
    return Mitigation(adj, percent, True, max(bases) >= needed if bases else None)


def _none(why: str) -> Mitigation:
    return Mitigation(None, None, False, None, why)


# --- exposure ---------------------------------------------------------------------------------------------------------

UNKILLABLE_SHARE = 0.25
"""Of the domain's totalpages: what a process at -1000 must hold to leave the killer only the others."""

TMPFS_SHARE = 0.5
"""Of the limit: what must be tmpfs for kills to be in vain."""


@dataclass(frozen=True, slots=True)
class ClampedBadness:
    """All scores collapse to 1, and the order of the scan decides. ``at_floor`` processes share that score;
    ``largest_points`` is what a kernel without the clamp would give the largest."""

    kind: ClassVar[str] = "ClampedBadness"
    predicted: Task | None
    largest: Task
    at_floor: int
    predicted_points_unclamped: int | None
    largest_points_unclamped: int
    totalpages: int


@dataclass(frozen=True, slots=True)
class Unkillable:
    """A process at -1000 holds ``share`` of the domain; ``others`` lists whom the killer takes instead, in order."""

    kind: ClassVar[str] = "Unkillable"
    task: Task
    share: float
    others: tuple[int, ...]
    totalpages: int


@dataclass(frozen=True, slots=True)
class SkewedAdj:
    """Different oom_score_adj put another process above the largest, whatever the generation."""

    kind: ClassVar[str] = "SkewedAdj"
    predicted: Task
    largest: Task
    predicted_points: int
    largest_points: int
    totalpages: int


@dataclass(frozen=True, slots=True)
class TmpfsHeld:
    """``held_bytes`` of the limit stay when processes die. ``upper_bound``: it is all Shmem charged to the cgroup, of
    which a part may be shared memory that dies with its users."""

    kind: ClassVar[str] = "TmpfsHeld"
    held_bytes: int
    limit_bytes: int
    upper_bound: bool


Reason: TypeAlias = ClampedBadness | Unkillable | SkewedAdj | TmpfsHeld


def exposure_reasons(domain: Domain, rules: Rules, prediction: Prediction | None = None) -> tuple[Reason, ...]:
    """Why an OOM in this domain would go wrong, with the numbers; empty when it would not.

    ``prediction`` is that of ``predict_domain`` for the same arguments, if it is at hand.
    Empty too where nobody is chosen (``Outcome``), except for what no choice can free.
    """
    reasons: list[Reason] = []
    if prediction is None:
        prediction = predict_domain(domain, rules)
    if prediction is not None and domain.totalpages is not None:
        if prediction.outcome is Outcome.KILLS:
            reasons += _wrong_choice(domain, domain.totalpages, rules, prediction)
        reasons += _unkillable(domain, domain.totalpages, rules)
    held = domain.tmpfs_bytes if domain.tmpfs_bytes is not None else domain.shmem_bytes
    if domain.limit_bytes and held is not None and held >= TMPFS_SHARE * domain.limit_bytes:
        reasons.append(TmpfsHeld(held, domain.limit_bytes, domain.tmpfs_bytes is None))
    return tuple(reasons)


def _wrong_choice(domain: Domain, totalpages: int, rules: Rules, prediction: Prediction) -> list[Reason]:
    killable = [each.task for each in prediction.ranking if each.points is not None]
    largest = largest_task(killable)
    if largest is None or len(killable) < 2:
        return []
    by_pid = {task.pid: task for task in killable}
    predicted = None if prediction.predicted is None else by_pid[prediction.predicted]
    possible = [by_pid[pid] for pid in prediction.victims] if predicted is None else [predicted]
    if all(frees_most(dying_with(task, domain.tasks, domain.knobs), largest) for task in possible):
        return []
    unclamped = replace(rules, clamp=False)
    ideal = predict(domain.tasks, totalpages, unclamped, domain.knobs, domain.order)
    points = {each.pid: each.points for each in ideal.ranking}
    reasons: list[Reason] = []
    if rules.clamp and prediction.ranking[0].points == 1:
        reasons.append(
            ClampedBadness(
                predicted=predicted,
                largest=largest,
                at_floor=prediction.tied,
                predicted_points_unclamped=None if predicted is None else points[predicted.pid],
                largest_points_unclamped=points[largest.pid] or 0,
                totalpages=totalpages,
            )
        )
    ahead = None if ideal.predicted is None else by_pid.get(ideal.predicted)
    if (
        ahead is not None
        and ahead.pid != largest.pid
        and ahead.oom_score_adj != largest.oom_score_adj
        and base_pages(ahead, rules) < base_pages(largest, rules)
    ):
        reasons.append(
            SkewedAdj(ahead, largest, points[ahead.pid] or 0, points[largest.pid] or 0, totalpages),
        )
    return reasons


def _unkillable(domain: Domain, totalpages: int, rules: Rules) -> list[Reason]:
    reasons: list[Reason] = []
    for task in domain.tasks:
        if task.oom_score_adj != OOM_SCORE_ADJ_MIN or task.init or task.kernel_thread or not task.has_mm:
            continue
        if task.frees_pages >= UNKILLABLE_SHARE * totalpages:
            kills = kill_order(domain.tasks, totalpages, rules, domain.knobs, domain.order)
            others = tuple(kill.predicted for kill in kills if kill.predicted is not None)
            reasons.append(Unkillable(task, task.frees_pages / totalpages, others, totalpages))
    return reasons
