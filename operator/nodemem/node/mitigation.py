"""Which oom_score_adj a pod's containers need on a clamped kernel, and what would be if they didn't have it. Pure.

A pod's containers get one value, that of the pod's limit, where it has a limit and there is such a value: with
different values the pod's own OOM would go by these and not by sizes. Else each gets that of its own limit.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from nodemem.kernel import oom, oomexposure
from nodemem.kernel.oom import Generation
from nodemem.node.oomdomains import Node, Place, domain

CLAMPED = (Generation.CLAMPED_FIRST, Generation.CLAMPED_LAST)


@dataclass(frozen=True, slots=True)
class Target:
    """``oom_score_adj`` None: there is no value, ``why_none`` says why. ``limit_bytes``: what it was computed for."""

    oom_score_adj: int | None
    limit_bytes: int | None
    why_none: str | None = None


@dataclass(frozen=True, slots=True)
class Values:
    """Of one process: the oom_score_adj that it has, and what it would have without the mitigation."""

    now: int
    without: int


def targets(places: Sequence[Place], node: Node, pods: Collection[str]) -> dict[str, Target]:
    """By container id, for the containers of ``pods`` (UIDs); empty on a kernel that is not known to clamp scores."""
    if node.generation not in CLAMPED:
        return {}
    whole = {each.pod_uid: _target(each, node) for each in places if each.scope == "pod" and each.pod_uid in pods}
    found = {}
    for place in places:
        if place.scope != "container" or place.container_id is None or place.sandbox or place.pod_uid not in pods:
            continue
        pod = whole.get(place.pod_uid)
        found[place.container_id] = pod if pod is not None and pod.oom_score_adj is not None else _target(place, node)
    return found


def _target(place: Place, node: Node) -> Target:
    rules = oom.rules_for(node.release, node.generation)
    its_domain = domain(place, node, rules)
    if its_domain is None or its_domain.totalpages is None:
        return Target(None, place.limit_bytes, "it has no memory limit: there is no OOM of its own")
    value = oomexposure.mitigation(its_domain.totalpages, node.totalpages, its_domain.tasks, rules)
    return Target(value.oom_score_adj, place.limit_bytes, value.why_none)


def as_they_are(places: Sequence[Place], values: Mapping[int, Values]) -> list[Place]:
    """``values`` by pid: fresher than those of the scan."""
    return [_with(place, {pid: each.now for pid, each in values.items()}) for place in places]


def without(places: Sequence[Place], values: Mapping[int, Values]) -> list[Place]:
    """As they would be had nobody set anything: what tells whether a mitigation is still needed."""
    return [_with(place, {pid: each.without for pid, each in values.items()}) for place in places]


def _with(place: Place, adj: Mapping[int, int]) -> Place:
    if not any(task.pid in adj for task in place.tasks):
        return place
    return replace(
        place,
        tasks=tuple(replace(task, oom_score_adj=adj[task.pid]) if task.pid in adj else task for task in place.tasks),
    )
