"""When a new status is worth a write: a pure decision.

A heartbeat each five minutes, and out of turn what a person would want to know soon: a finding, or a figure that moved.
Three things keep a node that never rests near the rate of an idle one, while what is new on it is still told soon:

- no two writes within half a minute;
- each figure and each finding by itself doubles that distance with every write in which it changed again, so that what
  swings around a threshold is told with the heartbeats soon, and hides nothing else;
- writes out of turn are from a store that fills slowly: where hundreds of things change once each, as on a node whose
  pods come and go, it is empty soon. The last of it is for findings.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from nodemem.node.status import Condition, LimitStatus, ReclaimStatus, ReportStatus

MOVED_SHARE = 0.05
MOVED_BYTES = 64 << 20
HEARTBEAT_SECONDS = 300.0
APART_SECONDS = 30.0
OUT_OF_TURN = 8
"""Writes that the store holds; one comes back in half a heartbeat's time."""

FOR_FINDINGS = 3
"""Of these, so many are not for figures."""

_MOST_DOUBLINGS = 4
Key = tuple[str, ...]
"""What changed: a kind, and which one of it."""

_FIGURES = frozenset({"memory", "shmem", "tmpfs", "container"})
_ANSWERED: Key = ("answered",)


@dataclass(frozen=True, slots=True)
class Cadence:
    """``heartbeat_seconds`` without a change, less ``jitter`` of it at random; never two writes within
    ``apart_seconds``. ``spread`` is the jitter of the first heartbeat after what happens to many nodes at once."""

    heartbeat_seconds: float = HEARTBEAT_SECONDS
    apart_seconds: float = APART_SECONDS
    jitter: float = 0.04
    spread: float = 0.7


@dataclass(frozen=True, slots=True)
class Written:
    """The last write: what, and when (monotonic).

    ``restless``: doublings of what changed lately, and when it was last written. ``store``: writes out of turn that
    were left. ``chance`` in [0, 1) spreads this node's next heartbeat, far where many nodes wrote ``together``.
    ``status`` None: it was deleted since.
    """

    status: ReportStatus | None
    at: float
    restless: Mapping[Key, tuple[int, float]] = field(default_factory=dict)
    store: float = OUT_OF_TURN
    chance: float = 0.5
    together: bool = False


def why_write(last: Written | None, status: ReportStatus, now: float, cadence: Cadence) -> str | None:
    """``new``, ``lost``, ``heartbeat``, and out of turn ``finding``, ``moved``; None: not now.

    ``now`` is monotonic time: a clock that is set back or forth has no say.
    """
    if last is None:
        return "new"
    since = now - last.at
    if since < cadence.apart_seconds:
        return None
    if last.status is None:
        return "lost"
    # Only ever sooner: a report that is older than a heartbeat is for others the sign of a dead agent.
    share = cadence.spread if last.together else cadence.jitter
    if since >= cadence.heartbeat_seconds * (1 - share * last.chance):
        return "heartbeat"
    due = {
        each
        for each in changes(last.status, status)
        if since >= cadence.apart_seconds * 2 ** _doublings(last, each, now, cadence)
    }
    store = _store(last, now, cadence)
    # Whoever changed the spec waits for the answer.
    if _ANSWERED in due or (store >= 1 and any(each[0] not in _FIGURES for each in due)):
        return "finding"
    if store >= 1 + FOR_FINDINGS and any(each[0] in _FIGURES for each in due):
        return "moved"
    return None


def written(
    last: Written | None,
    status: ReportStatus,
    now: float,
    why: str,
    chance: float,
    cadence: Cadence,
    *,
    together: bool = False,
) -> Written:
    """What to remember of a write."""
    together = together or why in ("new", "lost")
    if last is None or last.status is None:
        return Written(status, now, chance=chance, together=together)
    restless = {each: known for each, known in last.restless.items() if _doublings(last, each, now, cadence) > 0}
    for each in changes(last.status, status) - {_ANSWERED}:
        restless[each] = (min(_doublings(last, each, now, cadence) + 1, _MOST_DOUBLINGS), now)
    spent = why in ("finding", "moved")
    return Written(status, now, restless, max(0.0, _store(last, now, cadence) - spent), chance, together)


def _doublings(last: Written, key: Key, now: float, cadence: Cadence) -> int:
    """One less for each heartbeat's time in which it rested."""
    doublings, at = last.restless.get(key, (0, now))
    return max(0, doublings - int((now - at) / cadence.heartbeat_seconds))


def _store(last: Written, now: float, cadence: Cadence) -> float:
    return min(float(OUT_OF_TURN), last.store + 2 * (now - last.at) / cadence.heartbeat_seconds)


def changes(before: ReportStatus, now: ReportStatus) -> set[Key]:
    """What differs by so much that it is worth a write."""
    old, new = _findings(before), _findings(now)
    return {each for each in old.keys() | new.keys() if old.get(each) != new.get(each)} | _moved(before, now)


def _moved(before: ReportStatus, now: ReportStatus) -> set[Key]:
    """Figures of the node that moved by more than 5 % and 64 MiB; what is in a listed tmpfs, a container's Shmem and
    their sum by more than 64 MiB: they are counted exactly, and 5 % of a large one is minutes of a leak.

    What came and what went is one thing for each kind. Usage of containers is left out: page cache moves it all the
    time, and it is in the metrics.
    """
    found: set[Key] = set()
    old, new = _figures(before), _figures(now)
    for key in old.keys() | new.keys():
        was, value = old.get(key), new.get(key)
        known = was is not None and value is not None
        was, value = _at_most(before, key) if was is None else was, _at_most(now, key) if value is None else value
        if abs(value - was) > (max(MOVED_BYTES, MOVED_SHARE * was) if key[0] == "memory" else MOVED_BYTES):
            found.add(key if known else (key[0], "came or went"))
    return found


def _figures(status: ReportStatus) -> dict[Key, int]:
    found: dict[Key, int | None] = {
        ("memory", "available"): status.memory.available_bytes,
        ("memory", "hidden"): status.memory.hidden_bytes,
        ("memory", "anonymous"): status.memory.anonymous_bytes,
        ("memory", "slab"): status.memory.slab_unreclaimable_bytes,
        ("shmem", "total"): status.memory.shmem_bytes,
        ("shmem", "unattributed"): status.shmem.unattributed_bytes,
        **{("tmpfs", each.device): each.used_bytes for each in status.tmpfs},
        **{("container", each.id): each.shmem_bytes for each in status.containers},
    }
    return {key: value for key, value in found.items() if value is not None}


def _at_most(status: ReportStatus, key: Key) -> int:
    """What something that isn't in the status held: of a list that was cut, no more than the last one listed."""
    match key[0]:
        case "tmpfs" if status.omitted.tmpfs:
            return min((each.used_bytes or 0 for each in status.tmpfs), default=0)
        case "container" if status.omitted.containers:
            return min((each.shmem_bytes or 0 for each in status.containers), default=0)
    return 0


def _findings(status: ReportStatus) -> dict[Key, object]:
    """What is told at once: exposures, kills, limits, mitigations, what can't be read; and names that came late.

    Kills are one thing: a container in a crash loop has a new one every few minutes, and each has its Event. A limit
    that is edited is another one.
    """
    found: dict[Key, object] = {
        _ANSWERED: status.observed_generation,
        ("kernel",): status.kernel.oom_generation,
        ("names",): any(each.pod_name for each in status.containers),
        ("kills",): tuple((each.key, each.pod_name) for each in status.oom_kills or ()),
    }
    for exposure in status.exposures or ():
        key = ("exposure", exposure.container_id or "", exposure.pod_uid or "", exposure.name or "")
        found[key] = (exposure.pod_name, exposure.reasons, exposure.severity, exposure.mitigated)
    for limit in status.limits or ():
        found["limit", limit.mount_point, str(limit.requested_bytes)] = _limit(limit)
    for mitigation in status.oom_mitigations or ():
        key = ("mitigation", mitigation.container_id, str(mitigation.oom_score_adj), "")
        found[key] = replace(mitigation, message=None, processes=None, others=None)
    for clean in status.reclaim or ():
        found["reclaim", clean.kind, clean.path or ""] = _reclaim(clean)
    for condition in status.conditions:
        found["condition", condition.type] = (condition.status, condition.reason)
    return found


def _limit(each: LimitStatus) -> LimitStatus:
    """All but the sentence, whose figures move all the time."""
    return replace(each, message=None)


def _reclaim(each: ReclaimStatus) -> ReclaimStatus:
    return replace(each, message=None, freeable_bytes=None)


def with_transitions(status: ReportStatus, before: Mapping[str, Condition]) -> ReportStatus:
    """Conditions keep the time at which their status last changed; ``before`` is by type."""
    return replace(
        status,
        conditions=tuple(
            replace(each, last_transition_time=before[each.type].last_transition_time)
            if each.type in before and before[each.type].status == each.status
            else each
            for each in status.conditions
        ),
    )
