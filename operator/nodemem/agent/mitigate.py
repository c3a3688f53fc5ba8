"""What to do about the oom_score_adj of each container of a pod to be mitigated: containers in, steps out. Pure.

As for sizes of tmpfs (decide.py), a change is made in two passes: the first only says in the status which value is to
come and which one it replaces; once that is in the cluster, the next pass sets it. So whenever the agent dies, what is
the kubelet's value and what is ours is known, and a process that has neither set its own.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from nodemem.kernel.oom import OOM_SCORE_ADJ_MIN, Generation
from nodemem.node.adj import GUARANTEED, GUARANTEED_OLD
from nodemem.node.mitigation import CLAMPED, Target
from nodemem.node.status import OomMitigationStatus

RECORDED, RESTORING, OFF = "Recorded", "Restoring", "MitigationOff"


@dataclass(frozen=True, slots=True)
class Container:
    """``observed``: the oom_score_adj of its processes, now. ``expected``: what the kubelet sets, by the pod's
    specification; None while that is not known."""

    container_id: str
    pod_uid: str
    name: str | None
    observed: tuple[int, ...]
    expected: int | None
    target: Target | None


@dataclass(frozen=True, slots=True)
class Step:
    """``status`` is what to report before anything is done, None: nothing any more. ``set_from`` and ``set_to``:
    processes that have the one value get the other. ``restores``: when that is done, nothing is left to report."""

    container_id: str
    status: OomMitigationStatus | None
    set_from: int | None = None
    set_to: int | None = None
    restores: bool = False


def decide(
    pods: Collection[str],
    containers: Iterable[Container],
    previous: Mapping[str, OomMitigationStatus],
    published: Mapping[str, OomMitigationStatus],
    *,
    generation: Generation,
    mitigate: bool,
) -> tuple[Step, ...]:
    """``pods``: UIDs of those that are to be mitigated. ``containers``: the running ones of these, and those in
    ``previous``, which has, by container id, what was last said, as ``published`` has what is in the cluster. A
    container that runs no more is forgotten."""
    steps = []
    for each in sorted(containers, key=lambda one: (one.pod_uid, one.name or "", one.container_id)):
        before = previous.get(each.container_id)
        recorded = before if before is not None and _sane(before) else None
        if each.pod_uid in pods:
            steps.append(_hold(each, recorded, published.get(each.container_id), generation, mitigate))
        elif recorded is not None:
            steps.append(_restore(each, recorded, mitigate))
    return tuple(steps)


def _sane(record: OomMitigationStatus) -> bool:
    """Whether it has both values, and such as are ever written: never -1000, and never one below the kubelet's."""
    ours, kubelets = record.oom_score_adj, record.kubelet_oom_score_adj
    return ours is not None and kubelets is not None and OOM_SCORE_ADJ_MIN < kubelets < ours


def kubelets_value(expected: int | None, observed: Iterable[int]) -> int | None:
    """What the kubelet set, where it is known. Guaranteed containers have -998 from old kubelets, -997 from others:
    which of the two, their processes show."""
    if expected not in (GUARANTEED, GUARANTEED_OLD):
        return expected
    seen = Counter(each for each in observed if each in (GUARANTEED, GUARANTEED_OLD))
    return max(seen, key=lambda each: (seen[each], each == expected), default=expected)


def _hold(
    container: Container,
    before: OomMitigationStatus | None,
    published: OomMitigationStatus | None,
    generation: Generation,
    mitigate: bool,
) -> Step:
    """``before``: with a value on record."""
    status = OomMitigationStatus(container.container_id, container.pod_uid, "Pending", container.name)
    if before is not None and before.kubelet_oom_score_adj is not None:
        kubelets: int | None = before.kubelet_oom_score_adj
    else:
        kubelets = kubelets_value(container.expected, container.observed)
    if not mitigate:
        if before is not None:
            return _restore(container, before, mitigate)
        message = "Nothing was set: on this node the agent runs without --mitigate (the chart's mitigation.enabled)."
        return _said(status, "Failed", OFF, message)
    if generation not in CLAMPED:
        if before is not None:
            return _restore(container, before, mitigate)
        if generation is Generation.ACCURATE:
            message = "This kernel doesn't clamp scores: it takes the largest process as it is."
            return _said(status, "NotNeeded", "AccurateKernel", message)
        return _said(status, "NotNeeded", "UnknownKernel", "How this kernel scores processes could not be told.")
    if kubelets is None:
        message = "What the kubelet sets for it is not known yet: the pod has not been seen in the API."
        return _said(status, "Pending", "PodUnknown", message)
    if container.target is not None:
        target, limit_bytes = container.target.oom_score_adj, container.target.limit_bytes
    elif before is not None:
        target, limit_bytes = before.oom_score_adj, before.limit_bytes
    else:
        return _said(status, "Pending", "NotScanned", "It follows with the next full scan.")
    if target is None or target <= kubelets:
        if before is not None:
            return _restore(container, before, mitigate)
        if target is None:
            why = None if container.target is None else container.target.why_none
            return _said(status, "Failed", "NoValue", f"There is no oom_score_adj that helps: {why}.")
        message = f"The kubelet's oom_score_adj {kubelets} is no lower than {target}, which would be set."
        return _said(status, "NotNeeded", "HighEnough", message)
    if before is not None and before.oom_score_adj is not None and before.limit_bytes == limit_bytes:
        # For the same limit it only ever goes down: a figure that wavers must not have it set again and again.
        target = min(target, before.oom_score_adj)
    if before is not None and before.oom_score_adj != target:
        return _restore(container, before, mitigate)  # the new one follows when the old one is gone
    status = replace(status, oom_score_adj=target, kubelet_oom_score_adj=kubelets, limit_bytes=limit_bytes)
    if before is None and not set(container.observed) & {target, kubelets}:
        message = (
            f"None of its processes has the kubelet's oom_score_adj {kubelets}: they set their own, which are left."
            if container.observed
            else "It has no processes."
        )
        bare = replace(status, oom_score_adj=None, kubelet_oom_score_adj=None)
        return _said(bare, "Failed", "OwnValues", message)
    if not _same(status, published):
        message = f"oom_score_adj {target} in place of {kubelets} follows when that is on record."
        return _said(status, "Pending", RECORDED, message)
    return Step(container.container_id, replace(status, state="Applied"), kubelets, target)


def _restore(container: Container, before: OomMitigationStatus, mitigate: bool) -> Step:
    ours, kubelets = before.oom_score_adj, before.kubelet_oom_score_adj
    if ours not in container.observed:
        return Step(container.container_id, None)  # and none can inherit it
    if not mitigate:
        message = (
            f"oom_score_adj {kubelets} is to be put back in place of {ours}, but on this node the agent runs without"
            " --mitigate (the chart's mitigation.enabled)."
        )
        return _said(before, "Failed", OFF, message)
    status = replace(before, state="Pending", reason=RESTORING, message=f"oom_score_adj goes back to {kubelets}.")
    return Step(container.container_id, status, ours, kubelets, restores=True)


def _said(status: OomMitigationStatus, state: str, reason: str, message: str) -> Step:
    return Step(
        status.container_id,
        replace(status, state=state, reason=reason, message=message),  # type: ignore[arg-type]
    )


def _same(status: OomMitigationStatus, published: OomMitigationStatus | None) -> bool:
    return published is not None and (
        published.oom_score_adj,
        published.kubelet_oom_score_adj,
    ) == (status.oom_score_adj, status.kubelet_oom_score_adj)


def counted(status: OomMitigationStatus, observed: Iterable[int]) -> OomMitigationStatus:
    """With the numbers of processes that have the value, and of those that keep one of their own."""
    values = list(observed)
    ours = sum(each == status.oom_score_adj for each in values)
    own = sum(each not in (status.oom_score_adj, status.kubelet_oom_score_adj) for each in values)
    return replace(status, processes=ours, others=own or None)
