"""What the policies come to over all nodes, counted in one pass: the basis of their statuses.

Cost: O(mounts that have a limit), a few additions each.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from nodemem.policy.limits import Mount, NodeLimits, Note, Policy, Sized, Why, target_bytes
from nodemem.policy.reclaim import Contest


@dataclass(slots=True)
class Effect:
    """What enforcing would do to the mounts of one place (``/run``, or all emptyDirs of pods).

    ``over``: mounts that hold more than fits under the limit with its headroom, so that they would be Deferred;
    ``over_bytes`` would have to be freed there first. ``less_bytes`` and ``more_bytes``: how much less, or more, the
    mounts could grow to. ``unknown``: size or usage is not known.
    """

    nodes: int = 0
    shrunk: int = 0
    shrunk_nodes: int = 0
    grown: int = 0
    grown_nodes: int = 0
    same: int = 0
    same_nodes: int = 0
    over: int = 0
    over_bytes: int = 0
    less_bytes: int = 0
    more_bytes: int = 0
    unlimited: int = 0
    unknown: int = 0
    _last: dict[str, str] = field(default_factory=dict)

    def add(self, node: str, mount: Mount, wanted: Sized) -> None:
        self.nodes += self._first("any", node)
        if mount.unlimited:
            self.unlimited += 1
            return
        if mount.size_bytes is None:
            self.unknown += 1
            return
        target = target_bytes(wanted.adjust, wanted.size_bytes, mount.size_bytes)
        if target > mount.size_bytes:
            self.grown += 1
            self.grown_nodes += self._first("grown", node)
            self.more_bytes += target - mount.size_bytes
        elif target == mount.size_bytes:
            self.same += 1
            self.same_nodes += self._first("same", node)
        else:
            self.shrunk += 1
            self.shrunk_nodes += self._first("shrunk", node)
            self.less_bytes += mount.size_bytes - target
            fits = target * 100 // (100 + wanted.headroom_percent)
            if mount.used_bytes is None:
                self.unknown += 1
            elif mount.used_bytes > fits:
                self.over += 1
                self.over_bytes += mount.used_bytes - fits

    def _first(self, what: str, node: str) -> int:
        """Nodes come one after the other: 1 at the first mount of each."""
        if self._last.get(what) == node:
            return 0
        self._last[what] = node
        return 1


@dataclass(slots=True)
class Clash:
    """A conflict of several policies. ``node``, ``mount_point``: the first one; ``holds``: the policy that won it."""

    mounts: int
    node: str
    mount_point: str
    holds: str | None


@dataclass(slots=True)
class Cleaning:
    """One entry of a policy's reclaim. ``nodes`` are told it (in Audit: would be if it were enforced); of ``overruled``
    nodes another policy has it, by its name."""

    nodes: int = 0
    overruled: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Remark:
    count: int
    node: str
    mount_point: str
    detail: str


@dataclass(slots=True)
class Tally:
    """``matched``: nodes that the selector selects. ``mounts``: those that the policy's limits are for, on ``limited``
    nodes. ``overruled``: mounts that another policy has, by its name."""

    matched: int = 0
    limited: int = 0
    mounts: int = 0
    overruled: dict[str, int] = field(default_factory=dict)
    effects: dict[str, Effect] = field(default_factory=dict)
    conflicts: dict[tuple[str, ...], Clash] = field(default_factory=dict)
    remarks: dict[tuple[int, Why], Remark] = field(default_factory=dict)
    unread: int = 0
    """Selected nodes whose mounts aren't known."""
    left_out: int = 0
    """Nodes that have more limits, or more of reclaim, than a report takes."""
    cleaning: dict[str, Cleaning] = field(default_factory=dict)
    """By the names of entries."""
    cleaning_conflicts: dict[tuple[str, tuple[str, ...]], Clash] = field(default_factory=dict)
    """By the names of an entry and of policies; ``mounts`` are nodes, and ``mount_point`` is the entry's name."""
    freeable_bytes: int = 0
    """What the agents say that reclaim would free."""


def tally(policies: Iterable[Policy], nodes: Iterable[NodeLimits]) -> dict[str, Tally]:
    """By policy. Nodes are taken by name, so that "the first" is the same whatever their order."""
    listed = list(policies)
    tallies = {each.name: Tally() for each in listed}
    places = {each.name: [_place(each, index) for index in range(len(each.spec.rules))] for each in listed}
    for node in sorted(nodes, key=lambda each: each.node):
        for name in node.selected:
            tallies[name].matched += 1
            tallies[name].unread += node.limits is None
            tallies[name].left_out += node.left_out > 0 or node.reclaimed.left_out > 0
            tallies[name].freeable_bytes += node.freeable.get(name, 0)
        for contest in node.reclaimed.contests:
            _clean(tallies, contest, node.node)
        here: set[str] = set()
        for mount, resolution in node.resolved:
            if resolution.wanted:
                winner = resolution.wanted[0]
                tallies[winner.policy].mounts += 1
                here.add(winner.policy)
                for loser in resolution.wanted[1:]:
                    if loser.mode == "Enforce":
                        _count(tallies[loser.policy].overruled, winner.policy)
            for wanted, overruled_by in resolution.trials:
                mine = tallies[wanted.policy]
                if overruled_by is not None:
                    _count(mine.overruled, overruled_by)
                else:
                    place = places[wanted.policy][wanted.rule]
                    mine.effects.setdefault(place, Effect()).add(node.node, mount, wanted)
            for names in resolution.conflicts:
                _clash(tallies, names, node.node, mount, resolution.wanted)
            for note in resolution.notes:
                _remark(tallies[note.policy], note, node.node, mount)
        for name in here:
            tallies[name].limited += 1
    return tallies


def _count(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


def _clean(tallies: dict[str, Tally], contest: Contest, node: str) -> None:
    for claim in contest.wanted:
        mine = tallies[claim.policy].cleaning.setdefault(contest.name, Cleaning())
        if claim.mode == "Audit":
            by = next(by for tried, by in contest.trials if tried.policy == claim.policy)
        else:
            by = None if claim is contest.wanted[0] else contest.wanted[0].policy
        if by is None:
            mine.nodes += 1
        else:
            _count(mine.overruled, by)
    for names in contest.conflicts:
        for name in names:
            clash = tallies[name].cleaning_conflicts.get((contest.name, names))
            if clash is None:
                holds = contest.wanted[0].policy
                tallies[name].cleaning_conflicts[contest.name, names] = Clash(1, node, contest.name, holds)
            else:
                clash.mounts += 1


def _clash(
    tallies: dict[str, Tally], names: tuple[str, ...], node: str, mount: Mount, wanted: tuple[Sized, ...]
) -> None:
    for name in names:
        clash = tallies[name].conflicts.get(names)
        if clash is None:
            tallies[name].conflicts[names] = Clash(1, node, mount.mount_point, wanted[0].policy)
        else:
            clash.mounts += 1


def _remark(mine: Tally, note: Note, node: str, mount: Mount) -> None:
    remark = mine.remarks.get((note.rule, note.why))
    if remark is None:
        mine.remarks[note.rule, note.why] = Remark(1, node, mount.mount_point, note.detail)
    else:
        remark.count += 1


def _place(policy: Policy, index: int) -> str:
    rule = policy.spec.rules[index]
    if rule.scope == "Host":
        return rule.path or "/"
    return "emptyDir of pods" if rule.scope == "EmptyDir" else "/dev/shm of pods"
