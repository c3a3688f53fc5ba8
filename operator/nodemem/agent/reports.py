"""This node's own MemoryReport in the cluster: whether it is there, whose it is, and what it asks for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nodemem.api.convert import read
from nodemem.node.status import Condition, LimitStatus, OomMitigationStatus, ReclaimStatus

GROUP_PATH = "/apis/nodemem.io/v1alpha1/memoryreports"


@dataclass(frozen=True, slots=True)
class OwnReport:
    """``owner_uids``: of the Nodes that it names as owner. ``spec`` as it is in the cluster. ``conditions`` by type.

    ``limits``, ``mitigations`` and ``reclaim``: those of its status.
    """

    uid: str
    resource_version: str
    generation: int
    owner_uids: tuple[str, ...]
    spec: dict[str, Any]
    conditions: dict[str, Condition]
    limits: tuple[LimitStatus, ...] = ()
    mitigations: tuple[OomMitigationStatus, ...] = ()
    reclaim: tuple[ReclaimStatus, ...] = ()


def parse(found: dict[str, Any]) -> Any:
    meta = found.get("metadata")
    if found.get("kind") != "MemoryReport" or not isinstance(meta, dict):
        return found
    return OwnReport(
        uid=str(meta.get("uid", "")),
        resource_version=str(meta.get("resourceVersion", "")),
        generation=int(meta.get("generation", 0)),
        owner_uids=tuple(
            str(each.get("uid")) for each in meta.get("ownerReferences") or () if each.get("kind") == "Node"
        ),
        spec=found.get("spec") or {},
        conditions={
            condition.type: condition
            for each in (found.get("status") or {}).get("conditions") or ()
            for condition in [read(Condition, each)]
        },
        limits=tuple(read(LimitStatus, each) for each in (found.get("status") or {}).get("limits") or ()),
        mitigations=tuple(
            read(OomMitigationStatus, each) for each in (found.get("status") or {}).get("oomMitigations") or ()
        ),
        reclaim=tuple(read(ReclaimStatus, each) for each in (found.get("status") or {}).get("reclaim") or ()),
    )


class OwnReportTable:
    """Fed by a ``Watch``. ``changed`` is called when the report came, went, or has another spec or owner."""

    def __init__(self, changed: Callable[[OwnReport | None], None]) -> None:
        self._changed = changed
        self.current: OwnReport | None = None

    def parse(self, found: dict[str, Any]) -> Any:
        return parse(found)

    def replace(self, objects: Sequence[OwnReport]) -> None:
        self._set(objects[0] if objects else None)

    def change(self, kind: str, found: OwnReport) -> None:
        self._set(None if kind == "DELETED" else found)

    def _set(self, found: OwnReport | None) -> None:
        before, self.current = self.current, found
        if _identity(before) != _identity(found) or found is None:
            self._changed(found)


def _identity(report: OwnReport | None) -> tuple[Any, ...] | None:
    return None if report is None else (report.uid, report.generation, report.owner_uids)
