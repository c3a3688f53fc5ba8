"""What to do about each limit of this node now: limits, tmpfs and what was done before in, steps out. Pure.

A change is made in two passes. The first one only says, in the limit's status, what size was found and what it is to
become; the change itself comes once that status is in the cluster. So whenever the agent dies, what it had found is
known, and a size that is neither that nor the one on record was set by somebody else.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from nodemem.api.types import TmpfsLimit
from nodemem.node.status import LimitStatus
from nodemem.node.summary import quantity
from nodemem.policy.sizes import target_bytes, whole_pages

MOST_FIGHTS = 3
"""So often a size that something else changed is set again."""

RESTORE_HEADROOM_PERCENT = 10

RECORDED, DRIFT, CHANGED_BY_OTHERS, RESTORING = "Recorded", "Drift", "ChangedByOthers", "Restoring"


@dataclass(frozen=True, slots=True)
class Place:
    """A tmpfs as it is now. ``instance`` tells it from a later one at the same place (``same``). ``refusal``: one word
    and a sentence why its size is not to be set. ``why_unknown``: where its size could not be read."""

    device: str
    instance: str
    size_bytes: int | None
    used_bytes: int | None
    unlimited: bool = False
    refusal: tuple[str, str] | None = None
    why_unknown: str | None = None


@dataclass(frozen=True, slots=True)
class Unclear:
    """A mount point that leads to no one tmpfs, or to one of another scope: why, in a word and a sentence."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Step:
    """``status`` is what to report if nothing is changed, or before it is; None: nothing any more. ``resize_bytes`` is
    to be set now. ``open``: more has to be done before this limit is answered. ``restores``: afterwards nothing is left
    to report. ``left``: a size was left as somebody else set it."""

    mount_point: str
    status: LimitStatus | None
    device: str | None = None
    resize_bytes: int | None = None
    headroom_percent: int = RESTORE_HEADROOM_PERCENT
    restores: bool = False
    drift: bool = False
    open: bool = False
    left: bool = False


def same(instance: str | None, other: str | None) -> bool:
    """Whether two instances, ``boot/device/id``, are the same; an unknown id (older kernels) is no difference."""
    if instance is None or other is None:
        return False
    (where, _, identity), (other_where, _, other_identity) = instance.rpartition("/"), other.rpartition("/")
    return where == other_where and (identity == other_identity or "0" in (identity, other_identity))


def decide(
    limits: Iterable[TmpfsLimit],
    found: Mapping[str, Place | Unclear],
    devices: Mapping[str, Place],
    previous: Mapping[str, LimitStatus],
    published: Mapping[str, LimitStatus],
    *,
    enforce: bool,
    page_size: int,
) -> tuple[Step, ...]:
    """``found``: by mount point of a limit. ``devices``: by device, those of ``found`` and of ``previous``.
    ``previous`` and ``published``: by mount point, as of the last pass and as in the cluster."""
    wanted = {each.mount_point: each for each in limits}
    taken: dict[str, str] = {}
    steps = []
    for mount_point in sorted(wanted):
        place = found.get(mount_point)
        if isinstance(place, Place):
            first = taken.setdefault(place.device, mount_point)
            if first != mount_point:
                message = f"{mount_point} is the same tmpfs as {first}, which has a limit of its own; write one of them"
                found = {**found, mount_point: Unclear("SameTmpfs", message)}
    for mount_point, before in sorted(previous.items()):
        if (limit := wanted.get(mount_point)) is not None:
            place = found.get(mount_point)
            if not isinstance(place, Place) or not same(before.instance, place.instance):
                continue  # it is another tmpfs now: what is to be restored is below, the rest is forgotten
            steps.append(_hold(limit, place, before, published.get(mount_point), enforce, page_size))
            del wanted[mount_point]
    for mount_point, before in sorted(previous.items()):
        if any(each.mount_point == mount_point for each in steps):
            continue
        old = devices.get(before.device or "")
        if before.original_bytes is None or old is None or not same(before.instance, old.instance):
            continue  # never changed, or unmounted: nothing to restore
        if mount_point not in wanted and before.on_delete == "Keep":
            continue
        if taken.get(old.device, mount_point) != mount_point:
            # Its other mount point has a limit, which speaks of this size now; what was found stays on record.
            message = f"This tmpfs is held by the limit of {taken[old.device]}; it is restored when that goes."
            status = replace(before, state="InSync", reason="HeldElsewhere", message=message)
            steps.append(Step(mount_point, status))
        else:
            steps.append(_restore(before, old, enforce, page_size))
        wanted.pop(mount_point, None)  # its turn comes when the old one is restored
    steps += [
        _hold(each, found.get(mount_point), None, None, enforce, page_size) for mount_point, each in wanted.items()
    ]
    return tuple(sorted(steps, key=lambda each: each.mount_point))


def _hold(
    limit: TmpfsLimit,
    place: Place | Unclear | None,
    before: LimitStatus | None,
    published: LimitStatus | None,
    enforce: bool,
    page_size: int,
) -> Step:
    """``before`` is about this very tmpfs."""
    where = limit.mount_point
    audit = limit.mode == "Audit" or not enforce
    status = LimitStatus(
        mount_point=where,
        requested_bytes=limit.size_bytes,
        applied_bytes=None,
        original_bytes=None,
        state="Audit" if audit else "InSync",
        policy=limit.policy,
        on_delete=limit.on_delete,
    )
    off = limit.mode == "Enforce" and not enforce
    note = " Enforcement is off on this node: its agent runs without --enforce." if off else ""
    if place is None:
        message = f"No tmpfs is mounted at {where} now; the limit applies when one is.{note}"
        return Step(where, replace(status, reason="NotMounted", message=message))
    if isinstance(place, Unclear):
        return Step(where, _refused(status, place.reason, place.message, audit, note))
    size, used = place.size_bytes, place.used_bytes
    status = replace(status, applied_bytes=size, device=place.device, instance=place.instance)
    if before is not None and before.original_bytes is not None:
        status = replace(status, original_bytes=before.original_bytes, target_bytes=before.target_bytes)
        if audit and enforce:
            return _restore(before, place, enforce, page_size)
    if place.refusal is not None:
        return Step(where, _refused(status, *place.refusal, audit, note))
    if place.unlimited:
        message = f"{where} was mounted without a size, and the kernel gives such a mount none later; mount it anew"
        return Step(where, _refused(status, "Unlimited", message, audit, note))
    if size is None:
        message = f"The size of {where} can't be read: {place.why_unknown or 'it is out of reach'}"
        return Step(where, _refused(status, "Unreachable", message, audit, note))
    original = status.original_bytes if status.original_bytes is not None else size
    if limit.adjust == "Exact" and before is not None and before.original_bytes is None and before.state == "InSync":
        original = before.applied_bytes or size  # it was as it should be when it was found
    target = whole_pages(target_bytes(limit.adjust, limit.size_bytes, original), page_size)
    if limit.adjust != "Exact" and target_bytes(limit.adjust, limit.size_bytes, original) == original:
        target = original
    over = _over(used, size, target, limit.headroom_percent, page_size)
    if audit:
        reason = "EnforcementOff" if off else None
        message = f"{_would(where, size, target, used, over, limit)}{note}"
        if status.original_bytes is None:
            status = replace(status, target_bytes=target)
        return Step(where, replace(status, reason=reason, message=message))
    status = replace(status, target_bytes=target)
    edited = before is None or before.requested_bytes != limit.size_bytes
    drifts = 0 if edited or before is None else before.drifts or 0
    status = replace(status, drifts=drifts or None)
    if size == target:
        kept = status.original_bytes if status.original_bytes != size else None
        if drifts and before is not None and before.state == "InSync" and before.reason == DRIFT:
            status = replace(status, reason=DRIFT, message=before.message)
        return Step(where, replace(status, original_bytes=kept))
    by_others = before is not None and _by_others(before, size, target)
    if by_others and ((limit.adjust == "Shrink" and size < target) or (limit.adjust == "Grow" and size > target)):
        message = (
            f"Something else set {where} to {_size(size)}, within the limit of {_size(limit.size_bytes)}; left so."
        )
        return Step(where, replace(status, reason=CHANGED_BY_OTHERS, message=message))
    if by_others and drifts >= MOST_FIGHTS:
        message = (
            f"Something else keeps setting {where} to {_size(size)}; it was set back to {_size(target)} {drifts} times"
            " and is left now. Find what remounts it, or edit the limit to try again."
        )
        return Step(where, replace(status, state="Contested", reason=DRIFT, message=message))
    if over is not None:
        message = (
            f"{where} holds {_size(used)}, with {limit.headroom_percent} % headroom too much for {_size(target)}; tried"
            f" again when {_size(over)} less is in use."
        )
        return Step(where, replace(status, state="Deferred", reason="InUse", message=message))
    if by_others:
        drifts += 1
    status = replace(
        status,
        state="Deferred",
        reason=RECORDED,
        original_bytes=original,
        drifts=drifts or None,
        message=f"{where} was found at {_size(size)}; the change to {_size(target)} follows when that is on record.",
    )
    recorded = (
        published is not None
        and (published.original_bytes, published.target_bytes) == (original, target)
        and published.instance == place.instance
    )
    return Step(
        where,
        status,
        place.device,
        target if recorded else None,
        limit.headroom_percent,
        drift=by_others,
        open=not recorded,
    )


def _by_others(before: LimitStatus, size: int, target: int) -> bool:
    """Whether somebody else set this size, which is not the target: it was as it should be, or theirs, before."""
    if before.reason == CHANGED_BY_OTHERS and before.applied_bytes == size:
        return True
    if before.target_bytes != target:
        return False
    return before.state == "Contested" or (before.state == "InSync" and before.applied_bytes == target)


def _restore(before: LimitStatus, place: Place, enforce: bool, page_size: int) -> Step:
    """Back to the size found, unless it has become somebody else's."""
    where, original, size = before.mount_point, before.original_bytes, place.size_bytes
    assert original is not None
    status = replace(before, applied_bytes=size)
    if size == original:
        return Step(where, None, open=True)
    theirs = before.state == "Contested" or before.reason == CHANGED_BY_OTHERS
    if size is not None and (theirs or size not in (before.applied_bytes, before.target_bytes)):
        return Step(where, None, left=True, open=True)
    if not enforce:
        message = (
            f"{where} is to be restored to {_size(original)}, but enforcement is off on this node: its agent runs"
            " without --enforce."
        )
        return Step(where, replace(status, state="Failed", reason="EnforcementOff", message=message))
    if size is None:
        message = f"The size of {where} can't be read: {place.why_unknown or 'it is out of reach'}"
        return Step(where, replace(status, state="Failed", reason="Unreachable", message=message))
    over = _over(place.used_bytes, size, original, RESTORE_HEADROOM_PERCENT, page_size)
    if over is not None:
        message = (
            f"{where} is to be restored to {_size(original)} and holds {_size(place.used_bytes)}; tried again when"
            f" {_size(over)} less is in use."
        )
        return Step(where, replace(status, state="Deferred", reason="InUse", message=message))
    message = f"{where} goes back to {_size(original)}."
    status = replace(status, state="InSync", reason=RESTORING, message=message)
    return Step(where, status, place.device, original, restores=True, open=True)


def _refused(status: LimitStatus, reason: str, message: str, audit: bool, note: str) -> LimitStatus:
    if audit:
        return replace(status, reason=reason, message=f"Would fail: {message}.{note}")
    return replace(status, state="Failed", reason=reason, message=message)


def _over(used: int | None, size: int, target: int, headroom_percent: int, page_size: int) -> int | None:
    """How much less has to be in use for the target; None: it fits, as far as is known. As kernel/resize computes."""
    if used is None or target >= size:
        return None
    if -(-(used // page_size) * (100 + headroom_percent) // 100) * page_size <= target:
        return None
    return used - target * 100 // (100 + headroom_percent)


def _would(where: str, size: int, target: int, used: int | None, over: int | None, limit: TmpfsLimit) -> str:
    if target == size:
        return f"Would leave {where} at {_size(size)}."
    text = f"Would {'shrink' if target < size else 'grow'} {where} from {_size(size)} to {_size(target)}"
    if over is None:
        return f"{text}; {_size(used)} is in use."
    return (
        f"{text}, but {_size(used)} is in use, with {limit.headroom_percent} % headroom too much: would be deferred"
        f" until {_size(over)} less is in use."
    )


def _size(size_bytes: int | None) -> str:
    return quantity(size_bytes) or "an unknown amount"
