"""What the controller remembers of the objects it watches: a few values of each, never a body.

5,000 reports as parsed JSON are 300 MB; as these records they are a few. Readers never raise: an object that makes no
sense becomes a record that says "unknown", so that the table still knows that the object exists.
"""

import logging
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from nodemem.api.convert import read
from nodemem.api.types import (
    NodeReclaim,
    OomMitigation,
    OomPolicySpec,
    OomPolicyStatus,
    TmpfsLimit,
    TmpfsPolicySpec,
    TmpfsPolicyStatus,
)
from nodemem.node.status import ExposureStatus, LimitStatus, OomMitigationStatus, ReclaimStatus
from nodemem.node.units import parse_size
from nodemem.policy.entries import Answer, Entry, name_answered, reclaiming
from nodemem.policy.limits import Mount

Kind = Literal["reports", "nodes", "oom_policies", "tmpfs_policies"]

SCOPES = ("Host", "EmptyDir", "SharedMemory")
_POD_SCOPES = frozenset(SCOPES[1:])
STALE = "Stale"
SHMEM_PRESSURE = "ShmemPressure"
OOM_EXPOSED = "OomMisselectionExposed"
COMPLETE = "Complete"
FINALIZER = "nodemem.io/limits"
"""On a TmpfsPolicy that is enforced: it goes when its limits are gone from all nodes that answer."""

_log = logging.getLogger(__name__)


class Record(Protocol):
    """``version``: metadata.resourceVersion."""

    @property
    def uid(self) -> str: ...
    @property
    def version(self) -> str: ...


R = TypeVar("R", bound=Record)
T = TypeVar("T")


class Figures(NamedTuple):
    """Bytes of a node's memory; None is unknown."""

    total_bytes: int | None
    available_bytes: int | None
    shmem_bytes: int | None


@dataclass(frozen=True, slots=True)
class Mark:
    """A condition that the controller owns on an object, as it was last seen there."""

    status: str
    reason: str


@dataclass(frozen=True, slots=True)
class TmpfsRecord:
    """What a report says of tmpfs, their limits, and reclaim: the entries of its spec, and what the agent answers.

    ``mounts`` None: the agent has not said. Their ``size_bytes`` is that found, where a limit has changed it.
    ``complete``: none was left out. ``pods``: namespace and name of the pods among their owners, by UID.
    ``answered``: the generation of the spec that ``statuses`` are about. ``freeable``: what reclaim would free, by
    policy.
    """

    generation: int = 0
    answered: int = 0
    limits: tuple[Entry, ...] = ()
    statuses: tuple[Answer, ...] = ()
    mounts: tuple[Mount, ...] | None = None
    complete: bool = False
    pods: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    page_size_bytes: int = 4096
    freeable: Mapping[str, int] = field(default_factory=dict)

    def meaning(self, scopes: Collection[str]) -> tuple[object, ...]:
        """What decides on limits of mounts of these scopes; a heartbeat leaves it as it was."""
        return (
            self.generation,
            self.answered,
            self.limits,
            {(name_answered(each), each.state, _asked(each), each.policy, each.reason) for each in self.statuses},
            None
            if self.mounts is None
            else {(each.mount_point, each.size_bytes, each.pod_uid) for each in self.mounts if each.scope in scopes},
            self.complete,
            None if not _POD_SCOPES.intersection(scopes) else self.pods,
        )


@dataclass(frozen=True, slots=True)
class ReportRecord:
    """``exposures`` None: the agent has not said; not the same as none. ``exposures_omitted``: found, but there was no
    room to list them. ``pressure``: the agent's own ShmemPressure, if any. ``mitigations``: those of the spec, and
    ``mitigated`` what the agent says of them."""

    uid: str
    version: str
    observed_at: str | None
    figures: Figures
    exposures: tuple[ExposureStatus, ...] | None
    exposures_omitted: int
    stale: Mark | None
    pressure: str | None
    tmpfs: TmpfsRecord
    mitigations: tuple[OomMitigation, ...] = ()
    mitigated: tuple[OomMitigationStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """``marks``: the conditions of the controller, by type. ``memory_bytes``: capacity."""

    uid: str
    version: str
    marks: Mapping[str, Mark]
    labels: Mapping[str, str] = field(default_factory=dict)
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class OomPolicyRecord:
    """``spec`` None: it can't be read, and is as if it weren't there. ``status``: as last seen; None where
    there is none, or none that makes sense."""

    uid: str
    version: str
    generation: int
    spec: OomPolicySpec | None
    status: OomPolicyStatus | None = None


@dataclass(frozen=True, slots=True)
class TmpfsPolicyRecord:
    """``spec`` None: it can't be read. ``status``: as last seen; None where there is none, or none that makes sense."""

    uid: str
    version: str
    generation: int = 0
    spec: TmpfsPolicySpec | None = None
    deleting: bool = False
    finalizers: tuple[str, ...] = ()
    status: TmpfsPolicyStatus | None = None


def report(body: Mapping[str, Any]) -> ReportRecord:
    uid, version = _identity(body)
    status = _mapping(body.get("status"))
    memory = _mapping(status.get("memory"))
    conditions = _conditions(status)
    exposures = _exposures(status.get("exposures"))
    summary = _mapping(status.get("summary"))
    counted = sum(_integer(summary.get(name)) or 0 for name in ("exposed", "mitigated"))
    return ReportRecord(
        uid=uid,
        version=version,
        observed_at=_text(status.get("observedAt")),
        figures=Figures(*(_integer(memory.get(name)) for name in ("totalBytes", "availableBytes", "shmemBytes"))),
        exposures=exposures,
        exposures_omitted=max(0, counted - len(exposures or ())),
        stale=conditions.get(STALE),
        pressure=mark.status if (mark := conditions.get(SHMEM_PRESSURE)) else None,
        tmpfs=_tmpfs(body, status, conditions.get(COMPLETE)),
        mitigations=tuple(_each(OomMitigation, _mapping(body.get("spec")).get("oomMitigations"))),
        mitigated=tuple(_each(OomMitigationStatus, status.get("oomMitigations"))),
    )


def node(body: Mapping[str, Any]) -> NodeRecord:
    uid, version = _identity(body)
    status = _mapping(body.get("status"))
    found = _conditions(status)
    # Thousands of nodes have the same labels.
    labels = {
        sys.intern(str(key)): sys.intern(str(value))
        for key, value in _mapping(_mapping(body.get("metadata")).get("labels")).items()
    }
    marks = {each: found[each] for each in (SHMEM_PRESSURE, OOM_EXPOSED) if each in found}
    return NodeRecord(uid, version, marks, labels, quantity_bytes(_mapping(status.get("capacity")).get("memory")))


def oom_policy(body: Mapping[str, Any]) -> OomPolicyRecord:
    uid, version = _identity(body)
    spec: OomPolicySpec | None = None
    status: OomPolicyStatus | None = None
    try:
        spec = read(OomPolicySpec, _mapping(body.get("spec")))
    except (ValueError, TypeError, AttributeError) as error:
        _log.error("OomPolicy %s is passed over: %s", body.get("metadata", {}).get("name"), error)
    if body.get("status"):
        try:
            status = read(OomPolicyStatus, _mapping(body.get("status")))
        except (ValueError, TypeError, AttributeError):
            _log.warning("the status of OomPolicy %s makes no sense and is replaced", body["metadata"].get("name"))
    return OomPolicyRecord(uid, version, _integer(_mapping(body.get("metadata")).get("generation")) or 0, spec, status)


def tmpfs_policy(body: Mapping[str, Any]) -> TmpfsPolicyRecord:
    uid, version = _identity(body)
    metadata = _mapping(body.get("metadata"))
    spec: TmpfsPolicySpec | None = None
    status: TmpfsPolicyStatus | None = None
    try:
        spec = read(TmpfsPolicySpec, _mapping(body.get("spec")))
    except (ValueError, TypeError, AttributeError) as error:
        _log.error("TmpfsPolicy %s is passed over: %s", metadata.get("name"), error)
    if body.get("status"):
        try:
            status = read(TmpfsPolicyStatus, _mapping(body.get("status")))
        except (ValueError, TypeError, AttributeError):
            _log.warning("the status of TmpfsPolicy %s makes no sense and is replaced", metadata.get("name"))
    finalizers = metadata.get("finalizers")
    return TmpfsPolicyRecord(
        uid,
        version,
        _integer(metadata.get("generation")) or 0,
        spec,
        "deletionTimestamp" in metadata,
        tuple(map(str, finalizers)) if isinstance(finalizers, list) else (),
        status,
    )


def older(version: str, other: str) -> bool:
    """Whether ``version`` precedes ``other``. Resource versions of one kind are comparable integers in every API server
    on etcd (and by API convention from 1.35); where they aren't numbers, nothing is called older."""
    return version.isdecimal() and other.isdecimal() and int(version) < int(other)


class Table(dict[str, R]):
    """Objects of one kind by name, and when (``time.monotonic``) each was last heard of."""

    __slots__ = ("heard",)

    def __init__(self) -> None:
        super().__init__()
        self.heard: dict[str, float] = {}

    def saw(self, name: str, record: R, now: float) -> R | None:
        """Take what an event or an answer to a write says, unless it is older than what is known. The former record.

        kopf handles the events of one UID in order, those of a deleted object and its successor in any order.
        """
        former = self.get(name)
        self.heard[name] = now
        if former is None or not older(record.version, former.version):
            self[name] = record
        return former

    def lost(self, name: str, uid: str) -> bool:
        """A DELETED event; of no effect when the name already has another object."""
        former = self.get(name)
        if former is None or former.uid != uid:
            return False
        del self[name]
        self.heard.pop(name, None)
        return True

    def missing(self, listed: Mapping[str, str]) -> list[str]:
        """Names of a LIST (name -> uid) that no event has told of yet."""
        return [name for name, uid in listed.items() if (record := self.get(name)) is None or record.uid != uid]

    def prune(self, listed: Mapping[str, str], started: float) -> list[str]:
        """Drop what a consistent LIST that began at ``started`` doesn't have, but for what was heard of since then.

        After 410 Gone, kopf lists again and tells nobody of what was deleted meanwhile.
        """
        gone = [
            name
            for name, record in self.items()
            if listed.get(name) != record.uid and self.heard.get(name, started) < started
        ]
        for name in gone:
            del self[name]
            self.heard.pop(name, None)
        return gone


def quantity_bytes(value: Any) -> int | None:
    """A quantity of Kubernetes in bytes; None without one, and where it is none."""
    try:
        return None if value is None else parse_size(str(value))
    except ValueError:
        return None


def _tmpfs(body: Mapping[str, Any], status: Mapping[str, Any], complete: Mark | None) -> TmpfsRecord:
    statuses = tuple(_each(LimitStatus, status.get("limits")))
    cleaning = tuple(_each(ReclaimStatus, status.get("reclaim")))
    freeable: dict[str, int] = {}
    for said in cleaning:
        if said.policy and said.state == "Audit" and said.freeable_bytes:
            freeable[said.policy] = freeable.get(said.policy, 0) + said.freeable_bytes
    listed = status.get("tmpfs")
    mounts: list[Mount] | None = None
    pods: dict[str, tuple[str, str]] = {}
    if isinstance(listed, list):
        found = {each.mount_point: each.original_bytes for each in statuses if each.original_bytes}
        mounts = []
        for each in listed:
            entry = _mapping(each)
            path, scope, owner = entry.get("mountPoint"), entry.get("scope"), _mapping(entry.get("owner"))
            if not isinstance(path, str) or scope not in SCOPES:
                continue
            uid, namespace, name = (_text(owner.get(key)) for key in ("podUID", "podNamespace", "podName"))
            if uid and namespace and name:
                pods[uid] = (sys.intern(namespace), name)
            size = found.get(path) or _integer(entry.get("sizeBytes"))
            used = _integer(entry.get("usedBytes"))
            path = sys.intern(path) if scope == "Host" else path
            mounts.append(Mount(path, scope, size, used, uid, entry.get("unlimited") is True))
    omitted = _integer(_mapping(status.get("omitted")).get("tmpfs"))
    return TmpfsRecord(
        generation=_integer(_mapping(body.get("metadata")).get("generation")) or 0,
        answered=_integer(status.get("observedGeneration")) or 0,
        limits=(*_limits(_mapping(body.get("spec")).get("tmpfsLimits")), *_reclaim(_mapping(body.get("spec")))),
        statuses=(*statuses, *cleaning),
        mounts=None if mounts is None else tuple(mounts),
        complete=not omitted and (complete is None or complete.status == "True"),
        pods=pods,
        page_size_bytes=_integer(_mapping(status.get("kernel")).get("pageSizeBytes")) or 4096,
        freeable=freeable,
    )


def _asked(answer: Answer) -> object:
    if isinstance(answer, LimitStatus):
        return answer.requested_bytes
    return answer.runtime_max_use_bytes if answer.kind == "Journal" else answer.age


def _limits(value: Any) -> list[TmpfsLimit]:
    found = []
    for each in value if isinstance(value, list) else ():
        try:
            found.append(_limit(tuple(sorted(each.items()))))
        except (ValueError, TypeError, AttributeError) as error:
            _log.warning("a limit in a MemoryReport is passed over: %s", error)
    return found


@lru_cache(maxsize=65536)
def _limit(items: tuple[tuple[str, Any], ...]) -> TmpfsLimit:
    """Thousands of nodes have the same."""
    return read(TmpfsLimit, dict(items))


def _reclaim(spec: Mapping[str, Any]) -> tuple[Entry, ...]:
    try:
        return reclaiming(read(NodeReclaim, spec["reclaim"])) if spec.get("reclaim") else ()
    except (ValueError, TypeError, AttributeError) as error:
        _log.warning("the reclaim of a MemoryReport is passed over: %s", error)
        return ()


def _each(cls: type[T], value: Any) -> list[T]:
    found = []
    for each in value if isinstance(value, list) else ():
        try:
            found.append(read(cls, each))
        except (ValueError, TypeError, AttributeError) as error:
            _log.warning("a %s in a MemoryReport is passed over: %s", cls.__name__, error)
    return found


def _exposures(value: Any) -> tuple[ExposureStatus, ...] | None:
    if not isinstance(value, list):
        return None
    found = []
    for each in value:
        try:
            found.append(read(ExposureStatus, each))
        except (ValueError, TypeError, AttributeError) as error:
            _log.warning("an exposure in a MemoryReport is passed over: %s", error)
    return tuple(found)


def _conditions(status: Mapping[str, Any]) -> dict[str, Mark]:
    listed = status.get("conditions")
    return {
        str(each["type"]): Mark(str(each.get("status")), str(each.get("reason")))
        for each in (listed if isinstance(listed, list) else ())
        if isinstance(each, Mapping) and "type" in each
    }


def _identity(body: Mapping[str, Any]) -> tuple[str, str]:
    metadata = _mapping(body.get("metadata"))
    return str(metadata.get("uid", "")), str(metadata.get("resourceVersion", ""))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
