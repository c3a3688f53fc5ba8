"""TmpfsPolicies: what each node is to hold, which nodes may be told so now, and how each policy stands.

Everything is decided in ``nodemem.policy``; here the controller's tables become its input. Nothing is remembered that a
report doesn't say, but for two things: the writes under way, whose outcome no report shows yet, and which policies an
unanswered spec is about.

Cost: a node is resolved anew when its report, its Node, its pods or the policies changed; the plan and the counts take
O(mounts that have a limit) each time. Where there is no policy and no limit, nothing is done.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from nodemem.api.types import Rollout, TmpfsLimit
from nodemem.controller import exposures
from nodemem.controller.exposures import PodKey
from nodemem.controller.records import NodeRecord, ReportRecord, TmpfsPolicyRecord, TmpfsRecord
from nodemem.controller.state import State
from nodemem.policy import limits, rollout
from nodemem.policy.entries import Entry, name_answered, name_of
from nodemem.policy.limits import Limiter, NodeLimits, Policy
from nodemem.policy.rollout import NodeState, Pace, Progress
from nodemem.policy.selectors import selects_all
from nodemem.policy.tally import Tally, tally

NOT_MOUNTED = "NotMounted"
"""The agent's reason where the limit's mount is no more."""

_UNASKED = object()


@dataclass(slots=True)
class Planned:
    """``refused``: policies that make no sense, with a sentence why. ``policies``: the others, by name."""

    writes: tuple[rollout.Write, ...] = ()
    policies: dict[str, Policy] = field(default_factory=dict)
    progress: dict[str, Progress] = field(default_factory=dict)
    tallies: dict[str, Tally] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


class _Resolved(NamedTuple):
    """An answer for a node, with what it came from."""

    report: TmpfsRecord | None
    node: NodeRecord
    held: tuple[Entry, ...]
    pods: Mapping[str, limits.Pod | None]
    answer: NodeLimits


class Planner:
    """``sent``: writes of limits whose outcome isn't known: under way, or given up without an answer."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.sent: dict[str, rollout.Write] = {}
        self._touched: dict[str, tuple[int, frozenset[str] | None]] = {}
        self._policies: dict[str, Policy] = {}
        self._refused: dict[str, str] = {}
        self._from: tuple[object, ...] = ()
        self._limiter = Limiter(())
        self._resolved: dict[str, _Resolved] = {}

    def told(self, name: str, generation: int, touched: frozenset[str] | None) -> None:
        """A node's spec was written; ``generation``: what it has become."""
        self._touched[name] = (generation, touched)

    # Pods

    def pods_needed(self) -> dict[PodKey, set[str]]:
        """Pods to look up, with the UIDs that reports give them."""
        self._prepare()
        found: dict[PodKey, set[str]] = {}
        if not self._policies:
            return found
        for name, report, node in self._nodes():
            if report is not None:
                for uid in self._limiter.pods_needed(_node(name, report, node)):
                    key = report.tmpfs.pods.get(uid)
                    if key is not None:
                        found.setdefault(key, set()).add(uid)
        return found

    def asks_for_namespaces(self) -> bool:
        return any(
            not selects_all(rule.namespace_selector) for each in self._policies.values() for rule in each.spec.rules
        )

    # The plan

    def plan(
        self,
        stale: Mapping[str, bool],
        pods: Mapping[PodKey, exposures.Pod | None],
        namespaces: Mapping[str, Mapping[str, str]] | None,
    ) -> Planned:
        """``namespaces`` None: nobody asked for them."""
        self._prepare()
        if namespaces is None and self.asks_for_namespaces():
            namespaces = {}  # a policy came while pods were looked up: unknown, not without labels
        if not (self._policies or self._refused or self.sent or self._anything_held()):
            return Planned()
        answers: list[NodeLimits] = []
        states: list[NodeState] = []
        for name, report, node in self._nodes():
            held = () if report is None else self._current(name, report)
            answer = self._answer(name, report, node, held, _pods(name, report, pods, namespaces))
            answers.append(answer)
            if report is not None:
                states.append(self._node_state(name, report.tmpfs, held, answer, stale=stale.get(name, False)))
        for table in (self._resolved, self._touched):
            for name in table.keys() - {each.node for each in answers}:
                del table[name]
        tallies = tally(self._policies.values(), answers)
        paces = {
            name: Pace(each.spec.rollout, tallies[name].matched, each.spec.mode, each.deleting)
            for name, each in self._policies.items()
        }
        paces |= {name: Pace(Rollout(), 0) for name in self._refused}
        made = rollout.plan(paces, states)
        return Planned(made.writes, self._policies, made.policies, tallies, self._refused)

    def _prepare(self) -> None:
        table = self._state.tmpfs_policies
        now = tuple((name, each.uid, each.generation, each.deleting) for name, each in sorted(table.items()))
        if now == self._from:
            return
        self._from = now
        self._policies, self._refused = _checked(table)
        self._limiter = Limiter(self._policies.values())
        self._resolved.clear()

    def _nodes(self) -> Iterator[tuple[str, ReportRecord | None, NodeRecord]]:
        """Every Node. A report without one is of a node that is gone: nothing is waited for there."""
        for name, node in self._state.nodes.items():
            yield name, self._state.reports.get(name), node

    def _anything_held(self) -> bool:
        return any(each.tmpfs.limits or each.tmpfs.statuses for each in self._state.reports.values())

    def _current(self, name: str, report: ReportRecord) -> tuple[Entry, ...]:
        sent = self.sent.get(name)
        return report.tmpfs.limits if sent is None else sent.limits

    def _answer(
        self,
        name: str,
        report: ReportRecord | None,
        node: NodeRecord,
        held: tuple[Entry, ...],
        pods: Mapping[str, limits.Pod | None],
    ) -> NodeLimits:
        tmpfs = None if report is None else report.tmpfs
        former = self._resolved.get(name)
        if (
            former is not None
            and former.report is tmpfs
            and former.node is node
            and former.held == held
            and former.pods == pods
        ):
            return former.answer
        described = _node(name, report, node)
        if tmpfs is not None:
            unmounted = {name_answered(each) for each in tmpfs.statuses if each.reason == NOT_MOUNTED}
            mounted = tuple(each for each in held if isinstance(each, TmpfsLimit) and each.mount_point not in unmounted)
            described = replace(described, pods=pods, held=mounted, freeable=tmpfs.freeable)
        answer = self._limiter.limits(described)
        self._resolved[name] = _Resolved(tmpfs, node, held, pods, answer)
        return answer

    def _node_state(
        self, name: str, tmpfs: TmpfsRecord, held: tuple[Entry, ...], answer: NodeLimits, *, stale: bool
    ) -> NodeState:
        sent = self.sent.get(name)
        generation, touched = self._touched.get(name, (-1, None))
        if sent is not None:
            answered, touched = False, sent.touched
        else:
            # The first generation of a report has no limits, and needs no answer.
            answered = tmpfs.answered >= tmpfs.generation or (tmpfs.generation <= 1 and not tmpfs.limits)
            touched = touched if generation == tmpfs.generation else None
        return NodeState(
            name=name,
            current=held,
            wanted=self._with_refused(held, answer),
            statuses=tmpfs.statuses,
            answered=answered,
            stale=stale,
            gone=answer.gone,
            touched=touched,
            selected=answer.selected,
        )

    def _with_refused(self, held: tuple[Entry, ...], answer: NodeLimits) -> tuple[Entry, ...] | None:
        """A policy that makes no sense any more keeps what it has, until it is corrected or deleted."""
        if answer.limits is None:
            return None
        wanted = (*answer.limits, *answer.reclaimed.entries)
        if not self._refused:
            return wanted
        kept = {name_of(each): each for each in held if each.policy in self._refused}
        return (*(each for each in wanted if name_of(each) not in kept), *kept.values()) if kept else wanted


def unguarded(policies: Mapping[str, Policy], table: Mapping[str, TmpfsPolicyRecord], finalizer: str) -> set[str]:
    """Enforced policies without our finalizer: deleted now, they would leave nothing to restore by."""
    return {
        name
        for name, each in policies.items()
        if each.spec.mode == "Enforce" and not each.deleting and finalizer not in table[name].finalizers
    }


def enforces(write: rollout.Write, former: Iterable[Entry], policies: set[str]) -> bool:
    """Whether a write gives a node an enforced entry of one of these policies."""
    known = set(former)
    return any(each.policy in policies and each.mode == "Enforce" and each not in known for each in write.limits)


def _checked(table: Mapping[str, TmpfsPolicyRecord]) -> tuple[dict[str, Policy], dict[str, str]]:
    policies: dict[str, Policy] = {}
    refused: dict[str, str] = {}
    for name, record in table.items():
        if record.spec is None:
            why: str | None = "The policy can't be read."
        else:
            policy, why = Policy(name, record.spec, record.deleting), None
            try:
                limits.check(policy)
                policies[name] = policy
            except ValueError as error:
                why = f"{error}."
        if why is not None and not record.deleting:
            refused[name] = why
    return policies, refused


def _node(name: str, report: ReportRecord | None, node: NodeRecord) -> limits.Node:
    if report is None:
        return limits.Node(name, node.labels, mounts=None)
    tmpfs = report.tmpfs
    memory_bytes = report.figures.total_bytes
    return limits.Node(
        name,
        node.labels,
        node.memory_bytes if memory_bytes is None else memory_bytes,
        tmpfs.mounts,
        page_size_bytes=tmpfs.page_size_bytes,
        complete=tmpfs.complete,
    )


def _pods(
    name: str,
    report: ReportRecord | None,
    pods: Mapping[PodKey, exposures.Pod | None],
    namespaces: Mapping[str, Mapping[str, str]] | None,
) -> dict[str, limits.Pod | None]:
    """By UID, those that were looked up, and their namespaces. A node is believed about its own pods only."""
    found: dict[str, limits.Pod | None] = {}
    if report is None or not pods:
        return found
    for uid, key in report.tmpfs.pods.items():
        pod = pods.get(key, _UNASKED)
        if isinstance(pod, exposures.Pod) and pod.known_as(uid) and pod.node_name == name:
            labels = {} if namespaces is None else namespaces.get(key[0])
            if labels is not None:
                found[uid] = limits.Pod(key[0], pod.labels, labels, pod.memory_limit_bytes, pod.shm_size)
        elif pod is not _UNASKED:
            found[uid] = None
    return found
