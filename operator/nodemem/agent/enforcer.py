"""Holds the limits of the report's spec: looks at the node, lets ``decide`` say what to do, does it, tells how it went.

Called after every scan, from the scanning thread. It holds the last limits it knows for as long as the API server is
away, and changes nothing that isn't on record there (see decide.py).
"""

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from nodemem.agent.decide import DRIFT, Place, Step, Unclear, decide
from nodemem.agent.log import Log
from nodemem.agent.reports import OwnReport
from nodemem.api.convert import read, safe
from nodemem.api.types import MemoryReportSpec, TmpfsLimit
from nodemem.kernel import resize
from nodemem.kernel.host import Host
from nodemem.kernel.mounts import Superblock
from nodemem.kernel.tmpfs import open_mount
from nodemem.node.protected import why_protected
from nodemem.node.snapshot import Snapshot
from nodemem.node.status import LimitStatus
from nodemem.node.summary import quantity

MOST_STATUSES = 256
"""As many as the report takes."""

REST_SECONDS = 60.0
"""So long a tmpfs whose change failed is left alone."""

CALM_SECONDS = 3600.0
"""After so long without one, drifts are forgotten."""

RECREATED_SECONDS = 120.0
"""A report that was deleted comes back with an empty spec; so long the controller has to say again what belongs there,
be it nothing."""


class Enforcer:
    """``enforce`` False: nothing is changed, whatever the limits say. For one thread."""

    def __init__(
        self, host: Host, log: Log, *, enforce: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._host = host
        self._log = log
        self._enforce = enforce
        self._clock = clock
        self._statuses: dict[str, LimitStatus] = {}
        self._found_in_cluster: tuple[LimitStatus, ...] | None = None
        self._spec: MemoryReportSpec | None = None
        self._uid: str | None = None
        self._emptied_at: float | None = None
        self._generation: int | None = None
        self._answered: int | None = None
        self._rest: dict[str, float] = {}
        self._drifted_at: dict[str, float] = {}

    @property
    def statuses(self) -> tuple[LimitStatus, ...]:
        """Those that have an original size first: if there are too many, none of these may be cut."""
        ordered = sorted(self._statuses.values(), key=lambda each: (each.original_bytes is None, each.mount_point))
        return tuple(ordered[:MOST_STATUSES])

    @property
    def observed_generation(self) -> int | None:
        """Of the last spec that was acted on in full."""
        return self._answered

    @property
    def spec(self) -> MemoryReportSpec | None:
        """The last one known; None: none is yet."""
        return self._spec

    @property
    def generation(self) -> int | None:
        """Of ``spec``."""
        return self._generation

    def run(self, snapshot: Snapshot, own: OwnReport | None, written: tuple[LimitStatus, ...] | None) -> None:
        """``own``: this node's report, once it has been asked for; None: there is none. ``written``: the limits of the
        status that is in the cluster, see ``Publisher.written_limits``. Sizes that it changes are new in ``snapshot``,
        too."""
        self._learn(own)
        if snapshot.host_namespace is not None and snapshot.host_namespace not in snapshot.mounts.pids:
            return  # what is mounted on the host was not read: nothing can be said
        limits = () if self._spec is None else self._spec.tmpfs_limits
        if not limits and not self._statuses:
            self._answered = self._generation
            return
        published = self._found_in_cluster or () if written is None else written
        now = self._clock()
        steps = self._decide(snapshot, limits, published, now)
        statuses: dict[str, LimitStatus] = {}
        unfinished = False
        for step in steps:
            before = self._statuses.get(step.mount_point)
            if step.left and before is not None:
                self._log.info(
                    "a size is left as somebody else set it",
                    mount_point=step.mount_point,
                    bytes=before.applied_bytes,
                    original_bytes=before.original_bytes,
                )
            status = self._do(step, before, snapshot, now)
            unfinished = unfinished or (step.open and (status is None or not step.restores))
            if status is not None:
                statuses[step.mount_point] = status
        self._statuses = statuses
        self._rest = {each: until for each, until in self._rest.items() if each in statuses}
        self._drifted_at = {each: at for each, at in self._drifted_at.items() if each in statuses}
        if not unfinished:
            self._answered = self._generation

    def _learn(self, own: OwnReport | None) -> None:
        if own is None:
            return  # deleted: it will be made again, and until then the limits hold
        if self._found_in_cluster is None:
            self._found_in_cluster = own.limits
            self._statuses = {each.mount_point: each for each in own.limits}
        try:
            spec = read(MemoryReportSpec, own.spec)
        except (ValueError, TypeError, AttributeError) as error:
            self._log.problem("limits", f"the report's spec can't be read: {error}")
            return
        self._log.well("limits")
        made_anew = self._uid is not None and own.uid != self._uid
        if made_anew and "tmpfsLimits" not in own.spec and _asks(self._spec):
            if self._emptied_at is None:
                self._emptied_at = self._clock()
            if self._clock() - self._emptied_at < RECREATED_SECONDS:
                return
        self._emptied_at = None
        self._uid, self._generation, self._spec = own.uid, own.generation, spec

    def _decide(
        self, snapshot: Snapshot, limits: tuple[TmpfsLimit, ...], published: Iterable[LimitStatus], now: float
    ) -> tuple[Step, ...]:
        previous = {
            each.mount_point: replace(each, drifts=None) if self._calm(each, now) else each
            for each in self._statuses.values()
        }
        places = _Places(self._host, snapshot)
        found = {each.mount_point: places.find(each) for each in limits}
        devices = {each.device: each for each in found.values() if isinstance(each, Place)}
        for status in previous.values():
            if status.device is not None and status.original_bytes is not None and status.device not in devices:
                place = places.of_device(status.device)
                if place is not None:
                    devices[status.device] = place
        return decide(
            limits,
            {mount_point: place for mount_point, place in found.items() if place is not None},
            devices,
            previous,
            {each.mount_point: each for each in published},
            enforce=self._enforce,
            page_size=snapshot.page_size,
        )

    def _calm(self, status: LimitStatus, now: float) -> bool:
        if not status.drifts or status.state != "InSync":
            return False
        return now - self._drifted_at.setdefault(status.mount_point, now) >= CALM_SECONDS

    def _do(self, step: Step, before: LimitStatus | None, snapshot: Snapshot, now: float) -> LimitStatus | None:
        """The step's status, or what became of the change."""
        status = step.status
        if step.drift:
            self._drifted_at[step.mount_point] = now
        if status is None or step.resize_bytes is None or step.device is None:
            return status
        resting = now < self._rest.get(step.mount_point, 0.0)
        if resting and before is not None and (before.state, before.target_bytes) == ("Failed", status.target_bytes):
            return before
        superblock = snapshot.mounts.superblocks[step.device]
        try:
            done = resize.resize(
                self._host,
                superblock,
                size_bytes=step.resize_bytes,
                headroom_percent=step.headroom_percent,
                refuse=lambda each: why_protected(snapshot.tmpfs_owners.get(each.device)),
                protect_namespace=_own_namespace(snapshot),
            )
        except resize.InUse as error:
            return replace(status, state="Deferred", reason=str(error.reason), message=error.message)
        except (resize.ResizeError, OSError) as error:
            self._rest[step.mount_point] = now + REST_SECONDS
            cause, why = ("KernelRefused", str(error)) if isinstance(error, OSError) else (error.reason, error.message)
            self._log.info("a tmpfs was not resized", mount_point=step.mount_point, why=why)
            return replace(status, state="Failed", reason=str(cause), message=why)
        after = done.after.size_bytes
        snapshot.mounts.superblocks[step.device] = replace(
            superblock, size_bytes=after, used_bytes=done.after.used_bytes
        )
        if done.changed:
            self._log.info(
                "a tmpfs was resized",
                mount_point=step.mount_point,
                device=step.device,
                before_bytes=done.before.size_bytes,
                after_bytes=after,
                original_bytes=status.original_bytes,
                restored=step.restores,
                policy=status.policy,
            )
        if step.restores:
            return None
        drifts = status.drifts
        reason: str | None = None
        message: str | None = None
        if step.drift and done.changed:
            reason = DRIFT
            message = (
                f"Something else had set {step.mount_point} to {quantity(done.before.size_bytes)}; it was set again,"
                f" {drifts} {'time' if drifts == 1 else 'times'} by now."
            )
        elif step.drift:
            drifts = before.drifts if before is not None else None
        return replace(status, state="InSync", reason=reason, message=message, applied_bytes=after, drifts=drifts)


def _asks(spec: MemoryReportSpec | None) -> bool:
    """For something that is done here or by ``Reclaimer``; mitigations are another's."""
    return spec is not None and (bool(spec.tmpfs_limits) or spec.reclaim is not None)


class _Places:
    """The tmpfs of a snapshot by mount point, as reports name them."""

    def __init__(self, host: Host, snapshot: Snapshot) -> None:
        self._host = host
        self._snapshot = snapshot
        self._protect = _own_namespace(snapshot)
        self._own_pod = _own_pod(snapshot)
        self._visible: dict[str, list[str]] = {}
        self._owned: dict[str, list[str]] = {}
        for device, superblock in snapshot.mounts.superblocks.items():
            for path in {
                point.path
                for point in superblock.mounts
                if point.namespace == snapshot.host_namespace and not point.hidden and point.root == "/"
            }:
                self._visible.setdefault(safe(path), []).append(device)
            owner = snapshot.tmpfs_owners.get(device)
            if owner is not None and owner.path is not None:
                self._owned.setdefault(safe(owner.path), []).append(device)

    def find(self, limit: TmpfsLimit) -> Place | Unclear | None:
        """For Host where the host's own view shows one, that; else what reports call so."""
        where = limit.mount_point
        owned = self._owned.get(where, [])
        devices = [each for each in owned if self._kind(each) == limit.scope]
        visible = self._visible.get(where, [])
        if limit.scope == "Host" or not devices:
            devices = visible or devices or owned
        if not devices:
            return None
        if len(devices) > 1:
            return Unclear("Ambiguous", f"{len(devices)} tmpfs are at {where} in several places; none can be meant")
        place = self.of_device(devices[0])
        kind = self._kind(devices[0])
        if place is not None and place.refusal is None and kind != limit.scope:
            return Unclear("WrongScope", f"{where} is of kind {kind}; the limit is written for {limit.scope}")
        return place

    def of_device(self, device: str) -> Place | None:
        superblock = self._snapshot.mounts.superblocks.get(device)
        if superblock is None:
            return None
        refusal = resize.refusal(superblock, refuse=self._why_not, protect_namespace=self._protect)
        return Place(
            device,
            self._instance(superblock),
            superblock.size_bytes,
            superblock.used_bytes,
            superblock.unlimited,
            None if refusal is None else (str(refusal.reason), refusal.message),
            superblock.why_unknown,
        )

    def _kind(self, device: str) -> str:
        return self._snapshot.tmpfs_owners[device].kind

    def _why_not(self, superblock: Superblock) -> str | None:
        owner = self._snapshot.tmpfs_owners.get(superblock.device)
        if owner is not None and owner.pod_uid is not None and owner.pod_uid == self._own_pod:
            return (
                f"{owner.path} belongs to the pod of this agent, which must not change its own; set sizeLimit instead"
            )
        return why_protected(owner)

    def _instance(self, superblock: Superblock) -> str:
        """``boot/device/id``. From Linux 5.13 each tmpfs has a random id; before, and where it can't be asked, 0."""
        identity = 0
        try:
            fd = open_mount(self._host, superblock)
        except OSError:
            pass
        else:
            try:
                identity = os.fstatvfs(fd).f_fsid
            except OSError:
                pass
            finally:
                os.close(fd)
        boot = (self._snapshot.facts.boot_id or "")[:8]  # it is in each limit's status
        return f"{boot}/{superblock.device}/{identity:x}"


def _own_namespace(snapshot: Snapshot) -> int | None:
    """The mount namespace of this process, unless it is the host's."""
    own = snapshot.processes.get(os.getpid())
    if own is None or own.mnt_ns == snapshot.host_namespace:
        return None
    return own.mnt_ns


def _own_pod(snapshot: Snapshot) -> str | None:
    owner = snapshot.container_of(os.getpid())
    return None if owner is None else owner.pod_uid
