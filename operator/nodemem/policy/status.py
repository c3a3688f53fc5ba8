"""A policy's status from what was counted and planned: counts, the nodes that need a look, and four conditions.

Ready: every limit holds. Progressing: nodes are being changed, or wait for their turn. Degraded: something needs a
person. Conflict: another policy of the same priority wants something else for the same mount, or of journald or
tmpfiles.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from nodemem.api.types import NodeCounts, NodeProblem, TmpfsPolicyStatus
from nodemem.node.status import Condition
from nodemem.policy import audit
from nodemem.policy.entries import name_of
from nodemem.policy.limits import MOST_LIMITS, SHM_SIZE, Policy, Why
from nodemem.policy.reclaim import MOST_TMPFILES, claims, subject
from nodemem.policy.rollout import Progress
from nodemem.policy.tally import Remark, Tally
from nodemem.policy.words import clip, count, some

MOST_PROBLEMS = 10
_LONGEST_MESSAGE = 1024
_LONGEST_PROBLEM = 512


class _Said(NamedTuple):
    type: str
    status: Literal["True", "False"]
    reason: str
    message: str


def status(
    policy: Policy, generation: int, tally: Tally, progress: Progress, before: Iterable[Condition], now: str
) -> TmpfsPolicyStatus:
    """``before``: the conditions it has; one whose status stays keeps its time. ``now``: RFC 3339."""
    counts = _counts(policy, tally, progress)
    said = (
        _ready(policy, tally, progress, counts),
        _progressing(policy, progress),
        _degraded(policy, tally, progress),
        _conflict(policy, tally),
    )
    problems = tuple(
        NodeProblem(each.node, each.state, clip(each.message, _LONGEST_PROBLEM))
        for each in progress.problems[:MOST_PROBLEMS]
    )
    return TmpfsPolicyStatus(generation, counts, problems, _conditions(said, generation, before, now))


def refused(generation: int, why: str, before: Iterable[Condition], now: str) -> TmpfsPolicyStatus:
    """Of a policy that makes no sense: ``limits.check`` says why."""
    said = (
        _Said("Ready", "False", "Invalid", why),
        _Said("Progressing", "False", "Invalid", "Nothing is changed until the policy is corrected."),
        _Said("Degraded", "True", "Invalid", why),
    )
    return TmpfsPolicyStatus(generation, None, (), _conditions(said, generation, before, now))


def _conditions(said: Iterable[_Said], generation: int, before: Iterable[Condition], now: str) -> tuple[Condition, ...]:
    old = {each.type: each for each in before}
    return tuple(
        Condition(
            each.type,
            each.status,
            each.reason,
            clip(each.message, _LONGEST_MESSAGE),
            old[each.type].last_transition_time if each.type in old and old[each.type].status == each.status else now,
            generation,
        )
        for each in said
    )


def _counts(policy: Policy, tally: Tally, progress: Progress) -> NodeCounts:
    moving = (progress.in_flight, progress.waiting, progress.silent, progress.stale)
    return NodeCounts(
        matched=tally.matched,
        in_sync=len(progress.in_sync),
        audit=len(progress.audit),
        pending=sum(map(len, moving)) + (0 if policy.deleting else tally.unread),
        deferred=len(progress.deferred),
        failed=len(progress.failed),
        refused=len(progress.refused),
    )


def _ready(policy: Policy, tally: Tally, progress: Progress, counts: NodeCounts) -> _Said:
    if policy.deleting:
        verb = "restored" if policy.spec.on_delete == "Restore" else "let go"
        left = (
            f"{count(len(progress.holding), 'node')} still to be {verb}"
            if progress.holding
            else f"all nodes are {verb}"
        )
        return _Said("Ready", "False", "Deleting", f"The policy is being deleted: {left}{_few(progress.holding)}.")
    if not tally.matched:
        return _Said("Ready", "True", "NoNodes", "No node has the labels of spec.nodeSelector.")
    where = f"{count(tally.mounts, 'mount')} on {count(tally.limited, 'node')}"
    if policy.spec.mode == "Audit" and not (counts.pending or counts.failed or counts.deferred):
        said = " ".join(audit.sentences(tally)) or "No mount on the matched nodes fits a rule."
        said = " ".join((said, *audit.cleaning(policy, tally)))
        return _Said("Ready", "True", "Audit", f"Nothing is changed. {said}{_remarks(policy, tally)}")
    parts = [
        f"{counts.failed:,} failed" if counts.failed else "",
        f"{counts.pending:,} pending" if counts.pending else "",
        f"{counts.deferred:,} deferred until what is in use fits" if counts.deferred else "",
    ]
    if any(parts):
        reason = "Failed" if counts.failed else "Pending" if counts.pending else "Deferred"
        listed = ", ".join(filter(None, parts))
        return _Said("Ready", "False", reason, f"Of {count(tally.matched, 'node')}: {listed}.")
    if tally.mounts:
        text = f"Every limit holds: {where}."
    else:
        text = f"Nothing to limit: no mount on the {count(tally.matched, 'node')} matched is this policy's."
    text = f"{text}{_overruled(tally)}{_remarks(policy, tally)}"
    text = " ".join((text, *audit.cleaning(policy, tally), *_refused(progress)))
    return _Said("Ready", "True", "InSync" if tally.mounts else "NoMounts", text)


def _refused(progress: Progress) -> list[str]:
    """Not the policy's fault, and perhaps meant so: no reason not to be Ready."""
    if not progress.refused:
        return []
    why = next((each.message for each in progress.problems if each.state == "Refused"), "")
    return [f"Reclaim is refused on {some(progress.refused)}{f': {why}' if why else '.'}"]


def _progressing(policy: Policy, progress: Progress) -> _Said:
    waiting = len(progress.waiting)
    changing = sorted({*progress.in_flight, *progress.starting})
    if progress.stopped is not None and waiting and not policy.deleting:
        more = f"; {count(waiting, 'node')} wait{'s' if waiting == 1 else ''}"
        return _Said(
            "Progressing",
            "False",
            "Stopped",
            f"The rollout is {progress.stopped}{more}. It goes on when the cause is gone, the failed limit is edited or"
            " spec.rollout.maxFailures is raised.",
        )
    if changing or waiting:
        left = waiting - len(progress.starting)
        text = f"Changing {some(changing)}" if changing else "Nothing changes at the moment"
        text += f" (at most {progress.most:,} at a time)"
        if left > 0:
            text += f"; {count(left, 'node')} wait{'s' if left == 1 else ''} for {'its' if left == 1 else 'their'} turn"
        return _Said("Progressing", "True", "Deleting" if policy.deleting else "RollingOut", f"{text}.")
    away = sorted((*progress.silent, *progress.stale))
    if away:
        text = f"All that can be reached is done; nothing is heard from {some(away)}."
        return _Said("Progressing", "False", "Stale", text)
    return _Said("Progressing", "False", "Complete", "No node waits to be changed.")


def _degraded(policy: Policy, tally: Tally, progress: Progress) -> _Said:
    said: list[tuple[str, str]] = []
    if progress.failed:
        first = next((each for each in progress.problems if each.state in ("Failed", "Contested")), None)
        why = f": {first.node}: {first.message}" if first is not None and first.message else ""
        said.append(("NodesFailed", f"Failed on {some(progress.failed)}{why}"))
    if progress.silent:
        said.append(("NodesSilent", f"Fell silent while being changed: {some(progress.silent)}."))
    if tally.left_out:
        text = (
            f"{count(tally.left_out, 'node')} would need more than {MOST_LIMITS} limits, or {MOST_TMPFILES} paths to"
            " age: those of the mounts least used, and the last paths by name, are left out."
        )
        said.append(("TooManyLimits", text))
    for (rule, why), remark in sorted(tally.remarks.items()):
        if why == "NoMemory":
            said.append(("MemoryUnknown", _remark(policy, rule, why, remark)))
    if not said:
        return _Said("Degraded", "False", "AsExpected", "No limit failed.")
    return _Said("Degraded", "True", said[0][0], " ".join(each for _, each in said))


def _remarks(policy: Policy, tally: Tally) -> str:
    """What whoever runs the pods decides, and no fault of the policy."""
    return "".join(
        f" {_remark(policy, rule, why, remark)}"
        for (rule, why), remark in sorted(tally.remarks.items())
        if why != "NoMemory"
    )


def _remark(policy: Policy, rule: int, why: Why, remark: Remark) -> str:
    where = f"rules[{rule}]: {count(remark.count, 'mount')}, such as {clip(remark.mount_point, 128)!r} on {remark.node}"
    match why:
        case "NoMemory":
            return f"{where}: the size is a percentage, and the node's memory is unknown."
        case "NoPodLimit":
            size = policy.spec.rules[rule].size
            return f"{where}: {size} of the pod's memory limit, and the pod has none; write a size such as 1Gi."
        case "BadAnnotation":
            return f"{where}: annotation {SHM_SIZE}: {remark.detail}."
        case "AnnotationCapped":
            return f"{where}: annotation {SHM_SIZE} asks for {remark.detail!r}, more than the policy allows."
        case "Unnameable":
            return f"{where}: a mount point like that can't be limited."


def _conflict(policy: Policy, tally: Tally) -> _Said:
    if not (tally.conflicts or tally.cleaning_conflicts):
        return _Said("Conflict", "False", "None", "No other policy of this priority wants anything else.")
    said = []
    for names, clash in sorted(tally.conflicts.items(), key=lambda each: (-each[1].mounts, each[0])):
        others = [name for name in names if name != policy.name]
        on = f"{count(clash.mounts, 'mount')}, such as {clip(clash.mount_point, 128)} on {clash.node}"
        holds = f"{clash.holds} holds there" if clash.holds != policy.name else "this one holds there"
        said.append(_clashes(policy, others, on, holds))
    subjects = {name_of(each.entry): subject(each.entry) for each in claims(policy.name, policy.spec)}
    for (_, names), clash in sorted(tally.cleaning_conflicts.items(), key=lambda each: each[0]):
        others = [name for name in names if name != policy.name]
        on = f"{subjects.get(clash.mount_point, clash.mount_point)} on {count(clash.mounts, 'node')}"
        holds = f"{clash.holds if clash.holds != policy.name else 'this one'} holds there"
        said.append(_clashes(policy, others, on, holds))
    return _Said("Conflict", "True", "SamePriority", " ".join(said))


def _clashes(policy: Policy, others: list[str], on: str, holds: str) -> str:
    return (
        f"{some(others)} want{'s' if len(others) == 1 else ''} something else with the same priority"
        f" {policy.spec.priority} for {on}; {holds}. Give one of them a higher priority."
    )


def _overruled(tally: Tally) -> str:
    if not tally.overruled:
        return ""
    by = [f"{name} on {count(mounts, 'mount')}" for name, mounts in sorted(tally.overruled.items())]
    return f" Overruled by {some(by)}."


def _few(names: list[str]) -> str:
    return f" ({some(names)})" if names else ""
