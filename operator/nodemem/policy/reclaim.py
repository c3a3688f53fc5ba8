"""What the nodes are to clean themselves: the reclaim of TmpfsPolicies in, entries of their reports' specs out.

The same for all nodes that the same policies select: nothing of the node counts. For journald's limit, and for each
path that is aged, the policies come in the order that they have for a mount (see ``limits``): one that is enforced
before one in Audit, then the higher priority, then the smaller limit of the journal, and the longer age of files: what
deletes less.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from nodemem.api.types import SMALLEST_JOURNAL_BYTES, JournalLimit, LimitMode, TmpfilesAge, TmpfsPolicySpec
from nodemem.node.summary import quantity
from nodemem.node.units import parse_age, parse_size
from nodemem.policy.entries import Reclaiming, name_of

MOST_TMPFILES = 32
"""As many as a report's spec takes."""


class Claim(NamedTuple):
    """What one policy wants. Of two that are otherwise equal the one of lower ``rank`` wins."""

    policy: str
    priority: int
    mode: LimitMode
    entry: Reclaiming
    rank: int


class Contest(NamedTuple):
    """All that is wanted under one name (``name_of``), the winner first; ``conflicts`` as in ``limits``. A trial is a
    claim in Audit, and the policy that would come before it if it were enforced, if any."""

    name: str
    wanted: tuple[Claim, ...]
    conflicts: tuple[tuple[str, ...], ...]
    trials: tuple[tuple[Claim, str | None], ...]


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """``left_out``: entries beyond what a report takes."""

    entries: tuple[Reclaiming, ...] = ()
    contests: tuple[Contest, ...] = ()
    left_out: int = 0


def claims(policy: str, spec: TmpfsPolicySpec) -> tuple[Claim, ...]:
    """Raises ValueError with a sentence where the policy makes no sense."""
    found: list[Claim] = []
    if spec.reclaim is None:
        return ()
    if spec.reclaim.journal is not None:
        size = parse_size(str(spec.reclaim.journal.runtime_max_use))
        if size < SMALLEST_JOURNAL_BYTES:
            raise ValueError(f"reclaim.journal.runtimeMaxUse {size}: write a quantity of at least 16Mi")
        found.append(Claim(policy, spec.priority, spec.mode, JournalLimit(size, spec.mode, policy), size))
    paths = set()
    for each in spec.reclaim.tmpfiles:
        age = parse_age(each.age)
        if each.path not in paths:  # of two for one path the first counts, as for rules
            paths.add(each.path)
            entry = TmpfilesAge(each.path, each.age, spec.mode, policy)
            found.append(Claim(policy, spec.priority, spec.mode, entry, -age))
    return tuple(found)


def resolve(wanted: Iterable[Claim]) -> Reclaimed:
    by_name: dict[str, list[Claim]] = {}
    for each in wanted:
        by_name.setdefault(name_of(each.entry), []).append(each)
    contests = tuple(_contest(each, sorted(by_name[each], key=_precedence)) for each in sorted(by_name))
    winners = sorted((each.wanted[0] for each in contests), key=_importance)
    journal = [each.entry for each in winners if isinstance(each.entry, JournalLimit)]
    tmpfiles = [each.entry for each in winners if isinstance(each.entry, TmpfilesAge)]
    entries: list[Reclaiming] = [*journal, *tmpfiles[:MOST_TMPFILES]]
    return Reclaimed(tuple(sorted(entries, key=name_of)), contests, max(0, len(tmpfiles) - MOST_TMPFILES))


def _contest(called: str, ordered: list[Claim]) -> Contest:
    enforced = [each for each in ordered if each.mode == "Enforce"]
    conflicts = {_tie(enforced), _tie(sorted(ordered, key=_precedence_alone))} - {()}
    trials = []
    for each in ordered:
        if each.mode == "Audit":
            best = min((*enforced, each), key=_precedence_alone)
            trials.append((each, None if best is each else best.policy))
    return Contest(called, tuple(ordered), tuple(sorted(conflicts)), tuple(trials))


def _precedence_alone(each: Claim) -> tuple[int, int, str]:
    return (-each.priority, each.rank, each.policy)


def _precedence(each: Claim) -> tuple[object, ...]:
    return (each.mode != "Enforce", *_precedence_alone(each))


def _importance(each: Claim) -> tuple[object, ...]:
    return (each.mode != "Enforce", -each.priority, name_of(each.entry))


def _tie(ordered: list[Claim]) -> tuple[str, ...]:
    """The policies of the highest priority, by name, if they don't all want the same."""
    first = [each for each in ordered if each.priority == ordered[0].priority]
    return tuple(sorted(each.policy for each in first)) if len({each.rank for each in first}) > 1 else ()


def subject(entry: Reclaiming) -> str:
    return "systemd-journald's limit" if isinstance(entry, JournalLimit) else f"the age of files in {entry.path}"


def sentence(entry: Reclaiming, *, would: bool) -> str:
    if isinstance(entry, JournalLimit):
        limit = quantity(entry.runtime_max_use_bytes)
        return f"{'Would limit' if would else 'Limits'} systemd-journald's volatile journal to {limit}"
    verb = "Would let" if would else "Lets"
    return f"{verb} systemd-tmpfiles delete files in {entry.path} that were not used for {entry.age}"
