"""Which nodes may be told of their new limits now.

What is told here of limits is true of reclaim, too: it is in the same spec, and a node's turn is for both.

Level-triggered: the plan follows from what the nodes' reports say, spec and status, and from nothing remembered, so a
controller that died resumes where it was. A policy is *in flight* on a node whose report has a limit of it that the
agent has not answered yet, or one taken back that it has not restored yet. The rules, for each policy by itself:

- What changes nothing on a node (Audit, a mount that is gone) is written at once and takes no turn.
- At most ``maxConcurrent`` nodes are in flight; the next ones follow in the order of their names. A node that is in
  flight may be given a newer limit: it has its turn already.
- InSync ends a node's turn, and so does Deferred: it may last for weeks, and the agent goes on by itself when it fits.
  So does Refused, which says that nothing was tried: it stops nothing.
- Failed or Contested nodes, ``maxFailures`` of them, stop it: no node is given a limit any more. A failure counts only
  while the limit that failed is still wanted, so an edit of that limit resumes, like a recovery or a higher
  maxFailures.
- Taking limits back (deletion, Enforce to Audit) takes turns as well, but failures don't stop it.
- A node that is stale gets no new limit and takes no turn from others. One that fell silent in flight may have been
  harmed by the limit: more of those than ``maxFailures`` stop it, too, until they are back or gone. One alone does not:
  nodes die for other reasons all the time.

Cost: O(limits of all nodes), sorted by node.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from nodemem.api.types import LimitMode, Rollout, TmpfsLimit
from nodemem.policy.entries import Answer, Entry, answers, name_answered, name_of
from nodemem.policy.limits import MOST_LIMITS
from nodemem.policy.words import some

Standing = Literal["InSync", "Audit", "Deferred", "Refused", "Failed", "Contested", "InFlight", "Waiting"]
HELD_ELSEWHERE = "HeldElsewhere"
"""The agent's reason where the tmpfs has another mount point, of which a limit speaks: it is restored with that one."""
UNKNOWN_POLICY = Rollout()
"""The pace at which limits go whose policy is no more (its finalizer was removed by hand)."""


@dataclass(frozen=True, slots=True)
class Pace:
    """``matched``: nodes that its selector selects, for a percentage of them."""

    rollout: Rollout
    matched: int
    mode: LimitMode = "Enforce"
    deleting: bool = False


@dataclass(frozen=True, slots=True)
class NodeState:
    """One node's report.

    ``current``: the entries of its spec as of the last write or event, whichever is newer. ``wanted`` None: not known,
    leave it. ``gone``: mount points that are no more. ``answered``: the status is about this very spec (its
    observedGeneration). ``touched``: the policies whose limits the writes changed that are not answered yet, as
    ``Write.touched`` told; None where that is not known (after a restart): then any of them. ``selected``: the policies
    that the node is selected by.
    """

    name: str
    current: tuple[Entry, ...]
    wanted: tuple[Entry, ...] | None
    statuses: tuple[Answer, ...] = ()
    answered: bool = True
    stale: bool = False
    gone: frozenset[str] = frozenset()
    touched: frozenset[str] | None = None
    selected: tuple[str, ...] = ()


class Write(NamedTuple):
    """``limits`` is to be the whole of the spec (``entries.spec``). ``touched`` goes into ``NodeState`` until it is
    answered."""

    node: str
    limits: tuple[Entry, ...]
    touched: frozenset[str] | None


class Problem(NamedTuple):
    node: str
    state: Literal["Failed", "Contested", "Stale", "Refused", "Deferred"]
    message: str


@dataclass(slots=True)
class Progress:
    """Where a policy is, before the writes of this plan. Each node is in at most one of the lists, which are sorted.

    ``silent`` are stale nodes in flight, ``stale`` those that wait for their turn. ``starting``: nodes written now.
    ``stopped``: why nothing new is started, in words. ``holding``: nodes whose report still has to do with it: as long
    as there is one, a deleted policy's finalizer stays.
    """

    in_sync: list[str] = field(default_factory=list)
    audit: list[str] = field(default_factory=list)
    deferred: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    in_flight: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    starting: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    stopped: str | None = None
    most: int = 1
    holding: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Plan:
    writes: tuple[Write, ...]
    policies: dict[str, Progress]


def most_concurrent(max_concurrent: int | str, matched: int) -> int:
    """A percentage is of the nodes matched, rounded up; never less than 1."""
    text = str(max_concurrent)
    if text.endswith("%"):
        return max(1, -(-int(text[:-1]) * matched // 100))
    return max(1, int(text))


def plan(policies: Mapping[str, Pace], nodes: Iterable[NodeState]) -> Plan:
    """What may be written now, by node name, and where each policy is."""
    views = [_View(each, policies) for each in sorted(nodes, key=lambda each: each.name)]
    named = {name for view in views for name in view.parts} | policies.keys()
    courses = {name: _Course(name, policies.get(name)) for name in sorted(named)}
    for view in views:
        for name, part in view.parts.items():
            courses[name].see(view, part)
        for name in view.state.selected:
            if name not in view.parts and name in courses:
                courses[name].see(view, None)
    for course in courses.values():
        course.judge()
    writes = [write for view in views if (write := _write(view, courses)) is not None]
    return Plan(tuple(writes), {name: each.progress for name, each in courses.items()})


def may_go(progress: Progress | None) -> bool:
    """Whether the finalizer of a policy that is being deleted can go: no report names it any more, but of nodes whose
    agent is silent, which have it in writing. A node that is gone has no report."""
    return progress is None or not progress.holding


class _Change(NamedTuple):
    """``policy`` paces it; None: it changes nothing on the node. ``withdraws``: it only takes a limit back;
    ``successor``: which it does only where the policy that has the mount next is stopped."""

    name: str
    new: Entry | None
    policy: str | None
    withdraws: bool = False
    successor: str | None = None


@dataclass(slots=True)
class _Part:
    """One policy on one node. ``standing`` and ``message`` are those of the worst of its limits; ``failing``: one that
    is still wanted failed; ``holds``: the report has to do with it."""

    changes: list[_Change] = field(default_factory=list)
    standing: Standing | None = None
    message: str = ""
    failing: bool = False
    holds: bool = False

    def rank(self, standing: Standing, message: str | None = None) -> None:
        if self.standing is None or _WORST_FIRST.index(standing) < _WORST_FIRST.index(self.standing):
            self.standing, self.message = standing, message or ""


_WORST_FIRST: tuple[Standing, ...] = (
    *("InFlight", "Failed", "Contested", "Waiting", "Deferred", "Refused", "Audit", "InSync"),
)
_NOBODY = ""
"""Stands for the policy of a limit that names none."""


class _View:
    """A node, and the part each policy has there."""

    __slots__ = ("_policies", "changes", "parts", "state")

    def __init__(self, state: NodeState, policies: Mapping[str, Pace]) -> None:
        self.state = state
        self._policies = policies
        self.parts: dict[str, _Part] = {}
        self.changes: list[_Change] = []
        current = {name_of(each): each for each in state.current}
        statuses = {name_answered(each): each for each in state.statuses}
        if state.wanted is None:
            wanted = {called: each for called, each in current.items() if self._lives(each)}
        else:
            wanted = {name_of(each): each for each in state.wanted}
        for called, entry in current.items():
            part = self.part(entry.policy or _NOBODY)
            part.holds = True
            if called not in state.gone:
                self._stand(part, entry, statuses.get(called), entry == wanted.get(called))
        for called, status in statuses.items():
            if called not in current and called not in state.gone and status.state != "Audit":
                self._restoring(self.part(status.policy or _NOBODY), status)
        if not state.answered:
            for policy in state.selected if state.touched is None else state.touched:
                part = self.part(policy)
                part.rank("InFlight")
                part.holds = part.holds or not state.stale
        if current != wanted:
            for called in sorted(current.keys() | wanted.keys()):
                old, new = current.get(called), wanted.get(called)
                if old != new:
                    self._change(old, new, called)

    def part(self, policy: str) -> _Part:
        found = self.parts.get(policy)
        if found is None:
            found = self.parts[policy] = _Part()
        return found

    def unanswered(self, policy: str) -> bool:
        return not self.state.answered and (self.state.touched is None or policy in self.state.touched)

    def _lives(self, entry: Entry) -> bool:
        pace = self._policies.get(entry.policy or _NOBODY)
        return pace is not None and not pace.deleting

    def _stand(self, part: _Part, entry: Entry, status: Answer | None, still_wanted: bool) -> None:
        unanswered = self.unanswered(entry.policy or _NOBODY)
        if entry.mode == "Audit":
            if status is None or status.state == "Audit":
                part.rank("Audit")
            elif unanswered or status.state == "InSync":
                part.rank("InFlight")  # it was enforced, and is not yet restored
            else:
                part.rank(status.state, status.message)
            return
        if unanswered or status is None or not answers(status, entry):
            part.rank("InFlight")
        elif status.state not in ("Failed", "Contested", "Audit"):
            part.rank(status.state, status.message)
        elif still_wanted:
            # Audit in answer to an enforced limit: the agent may not enforce.
            part.rank("Failed" if status.state == "Audit" else status.state, status.message)
            part.failing = True

    def _restoring(self, part: _Part, status: Answer) -> None:
        """The limit is not in the spec any more, and the agent still has it."""
        if status.reason == HELD_ELSEWHERE and not self.unanswered(status.policy or _NOBODY):
            return
        # A silent node has it in writing that the limit is gone, and will follow when it is back.
        part.holds = part.holds or not self.state.stale
        if status.state == "InSync" or self.unanswered(status.policy or _NOBODY):
            part.rank("InFlight")
        else:
            part.rank(status.state, status.message)

    def _change(self, old: Entry | None, new: Entry | None, called: str) -> None:
        was = old.policy or _NOBODY if old is not None and old.mode == "Enforce" else None
        becomes = new.policy or _NOBODY if new is not None and new.mode == "Enforce" else None
        if called in self.state.gone or (was is None and becomes is None):
            self.changes.append(_Change(called, new, None))
            return
        policy = becomes if becomes is not None else was
        assert policy is not None
        part = self.part(policy)
        part.changes.append(_Change(called, new, policy, becomes is None))
        part.rank("Waiting")
        if becomes is not None and was is not None and was != becomes and old is not None and not self._lives(old):
            # A policy that goes doesn't wait for one that is stopped.
            retreat = self.part(was)
            retreat.changes.append(_Change(called, None, was, True, becomes))
            retreat.rank("Waiting")


class _Course:
    """One policy over all nodes."""

    def __init__(self, name: str, pace: Pace | None) -> None:
        self.name = name
        self.pace = pace if pace is not None else Pace(UNKNOWN_POLICY, 0, deleting=True)
        self.progress = Progress()
        self._turns: set[str] = set()
        self._failing: list[tuple[str, str]] = []

    def see(self, view: _View, part: _Part | None) -> None:
        """``part`` None: nothing of it is there, and nothing is to come."""
        state, progress = view.state, self.progress
        selected = self.name in state.selected and not self.pace.deleting
        standing = part.standing if part is not None else None
        if part is None or standing is None:
            if selected and state.wanted is not None:
                (progress.audit if self.pace.mode == "Audit" else progress.in_sync).append(state.name)
        elif standing in ("InFlight", "Waiting"):
            self._moving(state, standing)
        elif standing in ("Failed", "Contested"):
            progress.failed.append(state.name)
            progress.problems.append(
                Problem(state.name, "Failed" if standing == "Failed" else "Contested", part.message)
            )
        elif standing == "Deferred":
            progress.deferred.append(state.name)
            progress.problems.append(Problem(state.name, "Deferred", part.message))
        elif standing == "Refused":
            progress.refused.append(state.name)
            progress.problems.append(Problem(state.name, "Refused", part.message))
        elif selected:
            (progress.audit if standing == "Audit" else progress.in_sync).append(state.name)
        if part is not None:
            if part.failing:
                self._failing.append((state.name, part.message))
            if part.holds:
                progress.holding.append(state.name)

    def _moving(self, state: NodeState, standing: Standing) -> None:
        progress = self.progress
        if not state.stale:
            (progress.in_flight if standing == "InFlight" else progress.waiting).append(state.name)
            return
        silent = standing == "InFlight"
        (progress.silent if silent else progress.stale).append(state.name)
        progress.problems.append(Problem(state.name, "Stale", _SILENT if silent else _STALE))

    def judge(self) -> None:
        """Once all nodes are seen."""
        progress, rollout = self.progress, self.pace.rollout
        # A policy that is no more has no selector: its share is of the nodes that still have it.
        matched = self.pace.matched or len(progress.holding)
        progress.most = most_concurrent(rollout.max_concurrent, matched)
        progress.problems.sort(key=lambda each: (_PROBLEMS.index(each.state), each.node))
        self._turns = set(progress.in_flight)
        if len(self._failing) >= rollout.max_failures:
            names = some([name for name, _ in self._failing])
            why = next((f": {message}" for _, message in self._failing if message), "")
            progress.stopped = f"stopped by maxFailures {rollout.max_failures}, failed on {names}{why}"
        elif len(progress.silent) > rollout.max_failures:
            progress.stopped = f"stopped, since {some(progress.silent)} fell silent while they were being changed"

    def lets(self, state: NodeState, changes: Iterable[_Change]) -> list[_Change]:
        """Those of the changes that may be made on the node now; it takes a turn if need be."""
        stopped = self.progress.stopped is not None
        allowed = [each for each in changes if each.withdraws or not (stopped or state.stale)]
        if not allowed or state.stale:
            return allowed
        if state.name in self._turns:
            # Whether it has a turn is known, or assumed for want of knowing: then it may be one too many.
            certain = state.answered or state.touched is not None
            return allowed if certain or len(self._turns) <= self.progress.most else []
        if len(self._turns) >= self.progress.most:
            return []
        self._turns.add(state.name)
        self.progress.starting.append(state.name)
        return allowed


_PROBLEMS = ("Failed", "Contested", "Stale", "Refused", "Deferred")
_SILENT = "The agent fell silent before it had answered; it takes part again when it is back."
_STALE = "Nothing is heard from the agent; it gets its turn when it is back."


def _write(view: _View, courses: Mapping[str, _Course]) -> Write | None:
    state = view.state
    allowed: dict[str, _Change] = {each.name: each for each in view.changes}
    # A successor's limit comes before the retreat of the policy that it follows.
    for withdraws in (False, True):
        for policy in sorted(view.parts):
            changes = [
                each
                for each in view.parts[policy].changes
                if each.withdraws == withdraws
                and each.name not in allowed
                and (each.successor is None or state.stale or courses[each.successor].progress.stopped is not None)
            ]
            if changes:
                allowed.update((each.name, each) for each in courses[policy].lets(state, changes))
    if not allowed:
        return None
    entries = {name_of(each): each for each in state.current}
    added = []
    for called, change in sorted(allowed.items()):
        if change.new is None:
            entries.pop(called, None)
        elif called in entries or not isinstance(change.new, TmpfsLimit):
            entries[called] = change.new
        else:
            added.append(change.new)
    # Of those that are to make room, some may have to wait for their turn.
    room = MOST_LIMITS - sum(isinstance(each, TmpfsLimit) for each in entries.values())
    entries.update((name_of(each), each) for each in added[: max(0, room)])
    here = frozenset(each.policy for each in allowed.values() if each.policy is not None)
    touched: frozenset[str] | None = here
    if not state.answered:
        # What is not known stays so until the agent answers.
        touched = None if state.touched is None else here | state.touched
    return Write(state.name, tuple(entries[each] for each in sorted(entries)), touched)
