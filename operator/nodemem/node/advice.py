"""Exposures in plain words: what would happen, why, and what to do about it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from nodemem.kernel import oom, oomexposure
from nodemem.kernel.oom import Domain, Rules, Task
from nodemem.kernel.oomexposure import Reason
from nodemem.node.adj import BEST_EFFORT, GUARANTEED
from nodemem.node.oomdomains import Node, Place
from nodemem.node.units import binary_size, percent

WHY_NO_VALUE = {
    "Unkillable": "no value for the others makes a process at -1000 killable: that one has to change",
    "SkewedAdj": "the processes need the same oom_score_adj, whichever it is",
    "TmpfsHeld": "memory held by tmpfs is not freed by any kill",
}

_NAMED = 3
"""How many processes or tmpfs a sentence names."""


def count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


@dataclass(frozen=True, slots=True)
class MitigationAdvice:
    """``oom_score_adj`` for all processes of the place, or ``why_none``."""

    oom_score_adj: int | None
    discriminates_above_percent: int | None
    why_none: str | None


def mitigation(domain: Domain, node: Node, rules: Rules, reasons: Sequence[Reason]) -> MitigationAdvice:
    """A value helps against the clamp (and, being the same for all, against a skew that comes with it)."""
    if not any(isinstance(each, oomexposure.ClampedBadness) for each in reasons):
        return MitigationAdvice(None, None, "; ".join(WHY_NO_VALUE[each.kind] for each in reasons))
    found = oomexposure.mitigation(domain.totalpages or 0, node.totalpages, domain.tasks, rules)
    return MitigationAdvice(found.oom_score_adj, found.discriminates_above_percent, found.why_none)


def message(place: Place, node: Node, domain: Domain, reasons: Sequence[Reason], value: MitigationAdvice) -> str:
    """One paragraph. Names of processes are as the kernel has them: to be escaped where they are shown."""
    words = _Words(place, node, domain)
    return " ".join(
        words.clamped(reason, value)
        if isinstance(reason, oomexposure.ClampedBadness)
        else words.unkillable(reason)
        if isinstance(reason, oomexposure.Unkillable)
        else words.skewed(reason)
        if isinstance(reason, oomexposure.SkewedAdj)
        else words.held(reason)
        for reason in reasons
    )


class _Words:
    def __init__(self, place: Place, node: Node, domain: Domain) -> None:
        self._place, self._node, self._domain = place, node, domain
        what = f"container {place.container_id[:12]}" if place.container_id else f"pod {place.pod_uid}"
        self._subject = f"When {what} reaches its limit of {binary_size(place.limit_bytes)}"

    def clamped(self, reason: oomexposure.ClampedBadness, value: MitigationAdvice) -> str:
        if reason.predicted is not None:
            whom = f"{self._process(reason.predicted)}, which frees {self._frees(reason.predicted)}"
        else:
            whom = f"any of {reason.at_floor} processes that it can't tell apart"
        text = (
            f"{self._subject}, this kernel kills {whom}, and not {self._process(reason.largest)}, which holds "
            f"{self._frees(reason.largest)}: it raises every score below 1 to 1, so "
            f"{count(reason.at_floor, 'process scores', 'processes score')} the same and the order in which they "
            "started decides. The next OOM follows at once. A kernel with commit 9066e5cfb73c (5.9, 5.4.144, or a "
            "vendor's that has it) chooses right."
        )
        adj, scope = value.oom_score_adj, self._place.scope
        if adj is None:
            return f"{text} There is no oom_score_adj that helps here: {value.why_none}."
        return (
            f"{text} Until then set oom_score_adj {adj} for all processes of the {scope} (choom -n {adj} -p PID): for "
            f"the node they stay as safe as they are, and in the {scope} any that holds "
            f"{value.discriminates_above_percent} % of the limit or more stands out."
        )

    def unkillable(self, reason: oomexposure.Unkillable) -> str:
        held = f"{self._process(reason.task)} holds {self._frees(reason.task)}, {percent(reason.share, 1)} of it"
        names = {task.pid: task for task in self._domain.tasks}
        others = [self._process(names[pid]) for pid in reason.others[:_NAMED]]
        more = len(reason.others) - len(others)
        if others:
            list_of = ", then ".join(others) + (f" and {more} more" if more > 0 else "")
            then = f"The kernel takes the others instead, one after the other ({list_of}), and the memory stays."
        else:
            then = "There is nobody else to kill: allocations fail or wait, and the memory stays."
        return (
            f"{self._subject}, {held}, but has oom_score_adj -1000 and is never killed. {then} Set it to "
            f"{self._usual({reason.task.pid})} (choom -n ADJ -p {reason.task.pid}) and find out who made it -1000: it, "
            "the script that starts it, or a parent that had it (children inherit it)."
        )

    def skewed(self, reason: oomexposure.SkewedAdj) -> str:
        text = (
            f"{self._subject}, the kernel kills {self._process(reason.predicted)}, which frees "
            f"{self._frees(reason.predicted)}, and not {self._process(reason.largest)}, which holds "
            f"{self._frees(reason.largest)}: oom_score_adj {reason.predicted.oom_score_adj} against "
            f"{reason.largest.oom_score_adj} outweighs the sizes, on any kernel."
        )
        if reason.predicted.cgroup != reason.largest.cgroup and self._place.scope == "pod":
            return (
                f"{text} They are in different containers, which get it from their memory requests: request memory in "
                "proportion to what each uses, or give each a limit of its own that is hit before the pod's."
            )
        return (
            f"{text} Give all processes of the container the same value, {self._usual(set())} (choom -n ADJ -p PID); "
            "some program in it, or its start script, writes /proc/<pid>/oom_score_adj."
        )

    def held(self, reason: oomexposure.TmpfsHeld) -> str:
        least = "up to " if reason.upper_bound else ""
        tmpfs = sorted(self._place.tmpfs or (), key=lambda each: -(each.used_bytes or 0))
        where = ", ".join(f"{each.path} ({binary_size(each.used_bytes)})" for each in tmpfs[:_NAMED] if each.used_bytes)
        return (
            f"{self._subject}, {least}{binary_size(reason.held_bytes)} of it "
            f"({percent(reason.held_bytes, reason.limit_bytes)}) is tmpfs{f': {where}' if where else ''}. It stays "
            "when processes die, so kills free little and follow one another. Delete files there, and give the volume "
            "a sizeLimit well below the limit (emptyDir with medium Memory), or move it to disk."
        )

    def _process(self, task: Task) -> str:
        return f"{task.name} (pid {task.pid})"

    def _frees(self, task: Task) -> str:
        return binary_size(task.frees_pages * self._node.page_size)

    def _usual(self, without: set[int]) -> str:
        """The value the kubelet gave the container or, where its class doesn't tell, that most of the others have."""
        if self._place.qos == "Guaranteed":
            return str(GUARANTEED)
        if self._place.qos == "BestEffort":
            return str(BEST_EFFORT)
        values = Counter(
            task.oom_score_adj
            for task in self._place.tasks
            if task.pid not in without | self._place.sandbox_pids
            and task.oom_score_adj not in (None, oom.OOM_SCORE_ADJ_MIN)
        )
        return str(values.most_common(1)[0][0]) if values else "0"
