"""What the controller remembers of the objects it watches: a few values of each, never a body.

5,000 reports as parsed JSON are 300 MB; as these records they are a few. Readers never raise: an object that makes no
sense becomes a record that says "unknown", so that the table still knows that the object exists.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from nodemem.api.convert import read
from nodemem.api.types import OomPolicySpec
from nodemem.node.status import ExposureStatus

Kind = Literal["reports", "nodes", "oom_policies", "tmpfs_policies"]

STALE = "Stale"
SHMEM_PRESSURE = "ShmemPressure"
OOM_EXPOSED = "OomMisselectionExposed"

_log = logging.getLogger(__name__)


class Record(Protocol):
    """``version``: metadata.resourceVersion."""

    @property
    def uid(self) -> str: ...
    @property
    def version(self) -> str: ...


R = TypeVar("R", bound=Record)


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
class ReportRecord:
    """``exposures`` None: the agent has not said; not the same as none. ``exposures_omitted``: found, but there was no
    room to list them. ``pressure``: the agent's own ShmemPressure, if any."""

    uid: str
    version: str
    observed_at: str | None
    figures: Figures
    exposures: tuple[ExposureStatus, ...] | None
    exposures_omitted: int
    stale: Mark | None
    pressure: str | None


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """``marks``: the conditions of the controller, by type."""

    uid: str
    version: str
    marks: Mapping[str, Mark]


@dataclass(frozen=True, slots=True)
class OomPolicyRecord:
    """``spec`` None: it can't be read, and is as if it weren't there. ``exposed``: status, as last seen."""

    uid: str
    version: str
    generation: int
    spec: OomPolicySpec | None
    exposed: int | None
    observed_generation: int | None


@dataclass(frozen=True, slots=True)
class TmpfsPolicyRecord:
    uid: str
    version: str


def report(body: Mapping[str, Any]) -> ReportRecord:
    uid, version = _identity(body)
    status = _mapping(body.get("status"))
    memory = _mapping(status.get("memory"))
    conditions = _conditions(status)
    exposures = _exposures(status.get("exposures"))
    counted = _integer(_mapping(status.get("summary")).get("exposed")) or 0
    return ReportRecord(
        uid=uid,
        version=version,
        observed_at=_text(status.get("observedAt")),
        figures=Figures(*(_integer(memory.get(name)) for name in ("totalBytes", "availableBytes", "shmemBytes"))),
        exposures=exposures,
        exposures_omitted=max(0, counted - len(exposures or ())),
        stale=conditions.get(STALE),
        pressure=mark.status if (mark := conditions.get(SHMEM_PRESSURE)) else None,
    )


def node(body: Mapping[str, Any]) -> NodeRecord:
    uid, version = _identity(body)
    found = _conditions(_mapping(body.get("status")))
    return NodeRecord(uid, version, {each: found[each] for each in (SHMEM_PRESSURE, OOM_EXPOSED) if each in found})


def oom_policy(body: Mapping[str, Any]) -> OomPolicyRecord:
    uid, version = _identity(body)
    status = _mapping(body.get("status"))
    try:
        spec = read(OomPolicySpec, _mapping(body.get("spec")))
    except (ValueError, TypeError) as error:
        _log.error("OomPolicy %s is passed over: %s", body.get("metadata", {}).get("name"), error)
        spec = None
    return OomPolicyRecord(
        uid,
        version,
        _integer(_mapping(body.get("metadata")).get("generation")) or 0,
        spec,
        _integer(status.get("exposed")),
        _integer(status.get("observedGeneration")),
    )


def tmpfs_policy(body: Mapping[str, Any]) -> TmpfsPolicyRecord:
    return TmpfsPolicyRecord(*_identity(body))


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
