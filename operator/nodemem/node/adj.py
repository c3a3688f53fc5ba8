"""oom_score_adj as the kubelet sets it, and processes that have another one (drift)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nodemem.node.owners import QosClass

GUARANTEED = -997
"""Kubelets before 1.19 or so set ``GUARANTEED_OLD``, the same as the sandbox has."""

GUARANTEED_OLD = -998
BEST_EFFORT = 1000
PROTECTED_AT_MOST = -997
"""Guaranteed and system-node-critical containers have this or less, no other container has."""


def expected_oom_score_adj(
    qos: QosClass | None,
    memory_request_bytes: int | None,
    capacity_bytes: int,
    *,
    critical: bool = False,
    sidecar_of_bytes: Sequence[int] | None = None,
    guaranteed: int = GUARANTEED,
) -> int | None:
    """What the kubelet sets for a container (pkg/kubelet/qos/policy.go); None where it can't be told.

    ``memory_request_bytes`` is the container's own; 0: it has none, None: not known, which only matters for Burstable.
    With pod-level resources the kubelet adds the container's share of what the pod requests beyond its containers: the
    caller's to add. ``capacity_bytes`` is the node's memory capacity (MemTotal). ``critical``: priority class
    system-node-critical. ``sidecar_of_bytes``: for an init container with restartPolicy Always (from 1.33), the
    memory requests of the pod's regular containers, none of which it should outrank as a victim. ``guaranteed``:
    ``GUARANTEED_OLD`` for an old kubelet, whose Burstable floor is then 2 and not 3.
    """
    if critical or qos == "Guaranteed":
        return guaranteed
    if qos == "BestEffort":
        return BEST_EFFORT
    if qos is None or memory_request_bytes is None or capacity_bytes <= 0:
        return None
    adj = _by_request(memory_request_bytes, capacity_bytes)
    if sidecar_of_bytes:
        adj = min(adj, _by_request(min(sidecar_of_bytes), capacity_bytes))
    adj = max(adj, 1000 + guaranteed)
    return BEST_EFFORT - 1 if adj == BEST_EFFORT else adj


def _by_request(request_bytes: int, capacity_bytes: int) -> int:
    return 1000 - 1000 * request_bytes // capacity_bytes


@dataclass(frozen=True, slots=True)
class Drift:
    """Processes of one container whose oom_score_adj the kubelet did not set.

    ``expected``: the one value, where it is known; ``allowed`` says in words what would have been fine. ``observed`` is
    every deviating value with its pids.
    """

    container_id: str
    pod_uid: str | None
    expected: int | None
    allowed: str
    observed: Mapping[int, tuple[int, ...]]
    message: str


def drift(
    container_id: str,
    pod_uid: str | None,
    qos: QosClass | None,
    observed: Iterable[tuple[int, int]],
    *,
    expected: int | None = None,
) -> Drift | None:
    """``observed`` is (pid, oom_score_adj) of the container's processes; None when all are as the kubelet sets them.

    Without ``expected`` (which takes the API) only what no kubelet sets is drift: for Guaranteed anything but -997 and
    -998, for BestEffort anything but 1000, for Burstable what is not in 2 to 999. A pod of any class may be
    system-node-critical, which shows as -997 or -998 in all processes of the container.
    """
    values: dict[int, list[int]] = {}
    for pid, adj in observed:
        values.setdefault(adj, []).append(pid)
    if not values or (qos is None and expected is None):
        return None
    guaranteed = {GUARANTEED, GUARANTEED_OLD}
    if expected is not None:
        fine, allowed = {expected}, str(expected)
        if expected in guaranteed:
            fine = guaranteed
    elif set(values) <= guaranteed:
        return None
    elif qos == "Guaranteed":
        fine, allowed = guaranteed, "-997 (older kubelets: -998)"
    elif qos == "BestEffort":
        fine, allowed = {BEST_EFFORT}, "1000"
    else:
        fine, allowed = set(range(1000 + GUARANTEED_OLD, BEST_EFFORT)), "2 to 999"
    other = {adj: tuple(sorted(pids)) for adj, pids in sorted(values.items()) if adj not in fine}
    if not other:
        return None
    found = "; ".join(f"{adj} in {_pids(pids)}" for adj, pids in other.items())
    return Drift(
        container_id,
        pod_uid,
        expected,
        allowed,
        other,
        f"The kubelet sets oom_score_adj {allowed} for this container{f' ({qos})' if qos else ''}; found {found}. A "
        "process, or whoever started it, wrote /proc/<pid>/oom_score_adj, or it was started by a process that had this "
        "value: children inherit it.",
    )


def _pids(pids: Sequence[int]) -> str:
    shown = ", ".join(map(str, pids[:5]))
    more = f" and {len(pids) - 5} more" if len(pids) > 5 else ""
    return f"{'pid' if len(pids) == 1 else 'pids'} {shown}{more}"
