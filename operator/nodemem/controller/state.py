"""Everything the controller knows: the watched objects as records, its own exposures, and who was heard when."""

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from nodemem.api import resources
from nodemem.api.convert import read
from nodemem.api.types import OomExposureStatus
from nodemem.controller import records
from nodemem.controller.exposures import Actual, PodKey, Policy, Report
from nodemem.controller.records import Kind, Table
from nodemem.controller.staleness import Heartbeats

PATHS: dict[Kind, str] = {
    "reports": resources.MEMORY_REPORT.path(),
    "nodes": "/api/v1/nodes",
    "oom_policies": resources.OOM_POLICY.path(),
    "tmpfs_policies": resources.TMPFS_POLICY.path(),
}


@dataclass(frozen=True, slots=True)
class Options:
    """``stale_seconds``: three heartbeats. ``gone_seconds``: how long a report outlives its Node, where the garbage
    collector has not taken it. ``exposures_seconds``, ``names_seconds``: how often lists are compared."""

    node_conditions: bool = False
    stale_seconds: float = 900.0
    gone_seconds: float = 300.0
    exposures_seconds: float = 60.0
    names_seconds: float = 300.0

    @property
    def tick_seconds(self) -> float:
        """Time alone makes nodes stale and reports obsolete."""
        return min(15.0, self.stale_seconds / 5, self.gone_seconds / 5, self.exposures_seconds)


class State:
    """``exposures``: the OomExposures that there are, by the last LIST and the own writes since."""

    def __init__(self, options: Options) -> None:
        self._figures_matter = options.node_conditions
        self._scopes: frozenset[str] | None = None
        self.reports: Table[records.ReportRecord] = Table()
        self.nodes: Table[records.NodeRecord] = Table()
        self.oom_policies: Table[records.OomPolicyRecord] = Table()
        self.tmpfs_policies: Table[records.TmpfsPolicyRecord] = Table()
        self.heartbeats = Heartbeats(options.stale_seconds, time.monotonic())
        self.exposures: dict[PodKey, Actual] = {}

    def take(self, kind: Kind, body: Mapping[str, Any]) -> bool:
        """Remember an object that was watched, or that a write answered with; whether it may change what is wanted."""
        name, now = body["metadata"]["name"], time.monotonic()
        match kind:
            case "reports":
                new = records.report(body)
                old = self.reports.saw(name, new, now)
                self.heartbeats.heard(name, new.observed_at, now, time.time())
                return old is None or self._relevant(old) != self._relevant(new)
            case "nodes":
                node = records.node(body)
                former = self.nodes.saw(name, node, now)
                return former is None or any(
                    getattr(former, each) != getattr(node, each) for each in ("uid", "marks", "labels", "memory_bytes")
                )
            case "oom_policies":
                policy = records.oom_policy(body)
                before = self.oom_policies.saw(name, policy, now)
                return before is None or before.version != policy.version
            case "tmpfs_policies":
                limiting = records.tmpfs_policy(body)
                known = self.tmpfs_policies.saw(name, limiting, now)
                self._scopes = None
                return known is None or known.version != limiting.version

    def lost(self, kind: Kind, name: str, uid: str) -> bool:
        """It was deleted; whether it was known."""
        known = self.table(kind).lost(name, uid)
        self._scopes = None
        if known and kind == "reports":
            self.heartbeats.forget(name)
        return known

    def prune(self, kind: Kind, listed: Mapping[str, str], started: float) -> list[str]:
        """What was deleted unseen, by a LIST that began at ``started``; it is forgotten."""
        gone = self.table(kind).prune(listed, started)
        self._scopes = None
        for name in gone if kind == "reports" else ():
            self.heartbeats.forget(name)
        return gone

    def table(self, kind: Kind) -> Table[Any]:
        found: Table[Any] = getattr(self, kind)
        return found

    def stale(self, now: float) -> dict[str, bool]:
        """Each report, and whether its agent is silent."""
        return {name: self.heartbeats.stale(name, now) for name in self.reports}

    def claimed(self, stale: Mapping[str, bool]) -> Iterator[Report]:
        for name, each in self.reports.items():
            yield Report(
                name,
                each.observed_at,
                stale[name],
                each.exposures,
                each.exposures_omitted,
                each.mitigations,
                each.mitigated,
            )

    def policies(self) -> list[Policy]:
        return [Policy(name, each.spec) for name, each in self.oom_policies.items() if each.spec is not None]

    def unread_policies(self) -> set[str]:
        return {name for name, each in self.oom_policies.items() if each.spec is None}

    def unnamed(self) -> set[str]:
        """UIDs of exposed pods whose names their agent has not learnt yet."""
        return {
            each.pod_uid
            for record in self.reports.values()
            for each in record.exposures or ()
            if each.pod_uid and not each.pod_name
        }

    def _limited_scopes(self) -> frozenset[str]:
        """Those that policies have rules for: of a node's other mounts nothing depends on which are listed."""
        if self._scopes is None:
            specs = [each.spec for each in self.tmpfs_policies.values()]
            self._scopes = frozenset(
                scope
                for spec in specs
                for scope in (records.SCOPES if spec is None else [rule.scope for rule in spec.rules])
            )
        return self._scopes

    def _relevant(self, record: records.ReportRecord) -> tuple[object, ...]:
        """What a heartbeat leaves as it was."""
        marked = record.stale is not None and record.stale.status == "True"
        limited = self.tmpfs_policies or record.tmpfs.limits or record.tmpfs.statuses
        return (
            record.uid,
            record.exposures,
            record.exposures_omitted,
            record.pressure,
            record.stale,
            record.figures if self._figures_matter else None,
            record.observed_at if marked else None,
            record.tmpfs.meaning(self._limited_scopes()) if limited else None,
            record.mitigations,
            record.mitigated,
        )


def actual(body: Mapping[str, Any], written: float) -> Actual:
    """An OomExposure as the API server gives it; a status that can't be read is none, and is written again."""
    metadata = body["metadata"]
    owners = metadata.get("ownerReferences") or ()
    owner = next((each["uid"] for each in owners if each.get("kind") == "Pod"), None)
    status: OomExposureStatus | None = None
    with suppress(ValueError, TypeError):
        if body.get("status"):
            status = read(OomExposureStatus, body["status"])
    return Actual(metadata["uid"], owner, status, written)
