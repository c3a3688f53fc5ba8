"""When a new status is worth a write: a pure decision."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from nodemem.node.status import Condition, LimitStatus, ReportStatus

MOVED_SHARE = 0.05
MOVED_BYTES = 64 << 20
HEARTBEAT_SECONDS = 300.0
APART_SECONDS = 30.0
_MOST_DOUBLINGS = 4


@dataclass(frozen=True, slots=True)
class Cadence:
    """``heartbeat_seconds`` without a change; never two writes within ``apart_seconds``, and while figures move without
    end, the distance doubles up to the heartbeat: a busy node must not write more than a few times an idle one's."""

    heartbeat_seconds: float = HEARTBEAT_SECONDS
    apart_seconds: float = APART_SECONDS
    jitter: float = 0.2


@dataclass(frozen=True, slots=True)
class Written:
    """The last write: what, and when (monotonic). ``restless``: so many in a row were for moved figures.

    ``chance`` in [0, 1) spreads this node's next heartbeat. ``status`` None: it was deleted since.
    """

    status: ReportStatus | None
    at: float
    restless: int = 0
    chance: float = 0.5


def why_write(last: Written | None, status: ReportStatus, now: float, cadence: Cadence) -> str | None:
    """``new``, ``lost``, ``finding``, ``moved``, ``heartbeat``; None: not now.

    ``now`` is monotonic time: a clock that is set back or forth has no say.
    """
    if last is None:
        return "new"
    since = now - last.at
    if since < cadence.apart_seconds:
        return None
    if last.status is None:
        return "lost"
    if findings(status) != findings(last.status):
        return "finding"
    if since >= min(cadence.apart_seconds * 2**last.restless, cadence.heartbeat_seconds) and moved(last.status, status):
        return "moved"
    # Only ever sooner: a report that is older than a heartbeat is for others the sign of a dead agent.
    if since >= cadence.heartbeat_seconds * (1 - cadence.jitter * last.chance):
        return "heartbeat"
    return None


def written(last: Written | None, status: ReportStatus, now: float, why: str, chance: float) -> Written:
    """Each heartbeat at which figures have rested takes back one doubling."""
    restless = 0
    if last is not None and last.status is not None:
        restless = last.restless
        if why == "moved":
            restless = min(restless + 1, _MOST_DOUBLINGS)
        elif why == "heartbeat" and restless and not moved(last.status, status):
            restless -= 1
    return Written(status, now, restless, chance)


def moved(before: ReportStatus, now: ReportStatus) -> bool:
    """A figure of the node or of a listed tmpfs moved by more than 5 % and 64 MiB, or a container's Shmem.

    Usage of containers is left out: page cache moves it all the time, and it is in the metrics.
    """
    old, new = _figures(before), _figures(now)
    for key in old.keys() | new.keys():
        was, value = old.get(key, _at_most(before, key)), new.get(key, _at_most(now, key))
        if abs(value - was) > max(MOVED_BYTES, MOVED_SHARE * was):
            return True
    return False


_Key = tuple[str, str]


def _figures(status: ReportStatus) -> dict[_Key, int]:
    found: dict[_Key, int | None] = {
        ("node", "available"): status.memory.available_bytes,
        ("node", "hidden"): status.memory.hidden_bytes,
        ("node", "anonymous"): status.memory.anonymous_bytes,
        ("node", "shmem"): status.memory.shmem_bytes,
        ("node", "slab"): status.memory.slab_unreclaimable_bytes,
        ("node", "unattributed"): status.shmem.unattributed_bytes,
        **{("tmpfs", each.device): each.used_bytes for each in status.tmpfs},
        **{("container", each.id): each.shmem_bytes for each in status.containers},
    }
    return {key: value for key, value in found.items() if value is not None}


def _at_most(status: ReportStatus, key: _Key) -> int:
    """What something that isn't in the status held: of a list that was cut, no more than the last one listed."""
    match key[0]:
        case "tmpfs" if status.omitted.tmpfs:
            return min((each.used_bytes or 0 for each in status.tmpfs), default=0)
        case "container" if status.omitted.containers:
            return min((each.shmem_bytes or 0 for each in status.containers), default=0)
    return 0


def findings(status: ReportStatus) -> tuple[object, ...]:
    """What is told at once: exposures, kills, limits, mitigations, what can't be read; and names that came late."""
    return (
        tuple(
            (each.container_id, each.pod_uid, each.pod_name, each.name, each.reasons, each.severity, each.mitigated)
            for each in status.exposures or ()
        ),
        tuple((each.key, each.pod_name) for each in status.oom_kills or ()),
        tuple(_limit(each) for each in status.limits or ()),
        tuple(replace(each, message=None, processes=None, others=None) for each in status.oom_mitigations or ()),
        status.observed_generation,
        tuple((each.type, each.status, each.reason) for each in status.conditions),
        status.kernel.oom_generation,
    )


def _limit(each: LimitStatus) -> LimitStatus:
    """All but the sentence, whose figures move all the time."""
    return replace(each, message=None)


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
