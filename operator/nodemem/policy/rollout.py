"""Which nodes may be told of their new limits now.

Level-triggered: the plan follows from what the nodes' reports say, spec and status, and from nothing remembered, so a
controller that died resumes where it was. A policy is *in flight* on a node whose report has a limit of it that the
agent has not answered yet, or one taken back that it has not restored yet. The rules, for each policy by itself:

- What changes nothing on a node (Audit, a mount that is gone) is written at once and takes no turn.
- At most ``maxConcurrent`` nodes are in flight; the next ones follow in the order of their names. A node that is in
  flight may be given a newer limit: it has its turn already.
- InSync ends a node's turn, and so does Deferred: it may last for weeks, and the agent goes on by itself when it fits.
- Failed or Contested nodes, ``maxFailures`` of them, stop it: no node is given a limit any more. A failure counts only
  while the limit that failed is still wanted, so an edit of that limit resumes, like a recovery or a higher
  maxFailures.
- Taking limits back (deletion, Enforce to Audit) takes turns as well, but failures don't stop it.
- A node that is stale gets no new limit and takes no turn from others. One that fell silent in flight may have been
  harmed by the limit: more of those than ``maxFailures`` stop it, too, until they are back or gone. One alone does not:
  nodes die for other reasons all the time.

Cost: O(limits of all nodes), sorted by node.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from nodemem.api.types import Rollout, TmpfsLimit
from nodemem.node.status import LimitStatus

Standing = Literal["InSync", "Audit", "Deferred", "Failed", "Contested", "InFlight", "Waiting"]
UNKNOWN_POLICY = Rollout()
"""The pace at which limits go whose policy is no more (its finalizer was removed by hand)."""


@dataclass(frozen=True, slots=True)
class Pace:
    """``matched``: nodes that its selector selects, for a percentage of them."""

    rollout: Rollout
    matched: int
    deleting: bool = False

    @property
    def most(self) -> int:
        return most_concurrent(self.rollout.max_concurrent, self.matched)


@dataclass(frozen=True, slots=True)
class NodeState:
    """One node's report.

    ``current``: spec.tmpfsLimits as of the last write or event, whichever is newer. ``wanted`` None: not known, leave
    it. ``gone``: mount points that are no more. ``answered``: the status is about this very spec (its
    observedGeneration). ``touched``: the policies whose limits the writes changed that are not answered yet, as
    ``Write.touched`` told; None where that is not known (after a restart): then any of them.
    """

    name: str
    current: tuple[TmpfsLimit, ...]
    wanted: tuple[TmpfsLimit, ...] | None
    statuses: tuple[LimitStatus, ...] = ()
    answered: bool = True
    stale: bool = False
    gone: frozenset[str] = frozenset()
    touched: frozenset[str] | None = None


class Write(NamedTuple):
    """``limits`` is to be the whole of spec.tmpfsLimits. ``touched`` goes into ``NodeState`` until it is answered."""

    node: str
    limits: tuple[TmpfsLimit, ...]
    touched: frozenset[str]


class Problem(NamedTuple):
    node: str
    state: Literal["Failed", "Contested", "Stale", "Deferred"]
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
    views = [_View(each) for each in sorted(nodes, key=lambda each: each.name)]
    named = {name for view in views for name in view.policies} | policies.keys()
    courses = {name: _Course(name, policies.get(name)) for name in sorted(named)}
    for view in views:
        for name, part in view.policies.items():
            courses[name].see(view, part)
    for course in courses.values():
        course.judge()
    writes = [write for view in views if (write := _write(view, courses)) is not None]
    return Plan(tuple(writes), {name: each.progress for name, each in courses.items()})


def may_go(progress: Progress | None) -> bool:
    """Whether the finalizer of a policy that is being deleted can go: no report names it any more, but of nodes whose
    agent is silent, which have it in writing. A node that is gone has no report."""
    return progress is None or not progress.holding


class _Change(NamedTuple):
    """``policy`` paces it; None: it changes nothing on the node. ``withdraws``: no new limit is enforced by it."""

    mount_point: str
    old: TmpfsLimit | None
    new: TmpfsLimit | None
    policy: str | None
    withdraws: bool


@dataclass(slots=True)
class _Part:
    """One policy on one node."""

    changes: list[_Change] = field(default_factory=list)
    standing: Standing | None = None
    message: str = ""
    counts: bool = False
    """Of a failure: the limit that failed is still wanted."""
    named: bool = False
    """The report's spec or status has a limit of it."""

    def rank(self, standing: Standing, message: str = "") -> None:
        """The worst of its limits is the node's standing."""
        if self.standing is None or _RANKS.index(standing) < _RANKS.index(self.standing):
            self.standing, self.message = standing, message


_RANKS: tuple[Standing, ...] = ("InFlight", "Failed", "Contested", "Waiting", "Deferred", "Audit", "InSync")
_NOT_OURS = ""


class _View:
    """A node, and of each policy the part it has there."""

    __slots__ = ("policies", "state")

    def __init__(self, state: NodeState) -> None:
        self.state = state
        self.policies: dict[str, _Part] = {}
        current = {each.mount_point: each for each in state.current}
        statuses = {each.mount_point: each for each in state.statuses}
        wanted = current if state.wanted is None else {each.mount_point: each for each in state.wanted}
        for mount_point, limit in current.items():
            self._stand(limit, statuses.get(mount_point), wanted.get(mount_point), mount_point in state.gone)
        for mount_point, status in statuses.items():
            if mount_point not in current and status.policy:
                self._restoring(status, mount_point in state.gone)
        if current != wanted:
            for mount_point in sorted(current.keys() | wanted.keys()):
                old, new = current.get(mount_point), wanted.get(mount_point)
                if old != new:
                    change = _change(mount_point, old, new, mount_point in state.gone)
                    self.part(change.policy or _NOT_OURS).changes.append(change)
        self.policies.pop(_NOT_OURS, None) if not self._free() else None

    def part(self, name: str) -> _Part:
        found = self.policies.get(name)
        if found is None:
            found = self.policies[name] = _Part()
        return found
