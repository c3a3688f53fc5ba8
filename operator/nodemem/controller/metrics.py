"""The controller's metrics. What only the holder of the Lease knows is served by it alone, so that sums over replicas
are right. Series for single nodes and pods are few, with a count of all beside them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import get_args

from nodemem import __version__
from nodemem.api.exposition import Exposition, process
from nodemem.controller.exposures import Wanted
from nodemem.node.status import Severity

STALE_LISTED = 20
EXPOSED_LISTED = 50
_PREFIX = "nodemem_controller_"
_SEVERITIES = get_args(Severity)


@dataclass(slots=True)
class Counts:
    """What the last look at everything found, and how many there were."""

    reconciles: int = 0
    reconcile_seconds: float = 0.0
    stale: list[str] = field(default_factory=list)
    """Nodes, by name."""
    exposed: list[Wanted] = field(default_factory=list)
    policies: dict[str, dict[str, int]] = field(default_factory=dict)
    """Nodes of each TmpfsPolicy, by where they are."""


@dataclass(frozen=True, slots=True)
class Figures:
    """A moment of the controller."""

    leader: bool
    synced: bool
    nodes: int
    reports: int
    tmpfs_policies: int
    oom_policies: int
    writes: int
    write_errors: int
    queue_depth: int
    events: int
    counts: Counts
    started_at: float


def render(figures: Figures, open_metrics: bool) -> Exposition:
    out = Exposition(open_metrics)
    counts = figures.counts
    out.family("nodemem_build", "info", "Version of nodemem.")
    out.sample("nodemem_build_info", 1, version=__version__, component="controller")
    for name, kind, text, value in (
        ("leader", "gauge", "1 where this replica holds the Lease.", int(figures.leader)),
        ("synced", "gauge", "1 where the tables hold all that a LIST has.", int(figures.synced)),
        ("memoryreports", "gauge", "MemoryReports known.", figures.reports),
        ("nodes", "gauge", "Nodes known.", figures.nodes),
        ("tmpfspolicies", "gauge", "TmpfsPolicies known.", figures.tmpfs_policies),
        ("oompolicies", "gauge", "OomPolicies known.", figures.oom_policies),
        ("writes", "counter", "Writes sent to the API server.", figures.writes),
        ("write_errors", "counter", "Writes that failed; each is tried again.", figures.write_errors),
        ("queue_depth", "gauge", "Writes that wait or run.", figures.queue_depth),
        ("events", "counter", "Events written.", figures.events),
        ("reconciles", "counter", "Comparisons of what is with what should be.", counts.reconciles),
    ):
        out.value(_PREFIX + name, kind, text, value)
    seconds = round(counts.reconcile_seconds, 6)
    out.value(f"{_PREFIX}reconcile_seconds", "counter", "Time they took.", seconds, "seconds")
    if figures.leader and figures.synced:
        _stale(out, counts.stale)
        _exposed(out, counts.exposed)
        out.family(f"{_PREFIX}tmpfspolicy_nodes", "gauge", "Nodes of each TmpfsPolicy, by where they are.")
        for policy, places in sorted(counts.policies.items()):
            for place, nodes in places.items():
                out.sample(f"{_PREFIX}tmpfspolicy_nodes", nodes, policy=policy, state=place)
    process(out, figures.started_at)
    return out


def _stale(out: Exposition, nodes: list[str]) -> None:
    out.value(f"{_PREFIX}stale_reports", "gauge", "Reports whose agent is silent: all.", len(nodes))
    out.family(f"{_PREFIX}report_stale", "gauge", "1: the agent of this node is silent (some of them).")
    for node in sorted(nodes)[:STALE_LISTED]:
        out.sample(f"{_PREFIX}report_stale", 1, node=node)


def _exposed(out: Exposition, exposed: Iterable[Wanted]) -> None:
    worst = sorted(exposed, key=lambda each: (_SEVERITIES.index(each.status.severity), each.key))
    out.family(f"{_PREFIX}exposures", "gauge", "Exposed pods that are flagged and not mitigated: all.")
    for severity in _SEVERITIES:
        count = sum(each.status.severity == severity for each in worst)
        out.sample(f"{_PREFIX}exposures", count, severity=severity)
    out.family(f"{_PREFIX}pod_exposed", "gauge", "1: an OOM of this pod would kill the wrong process (the worst ones).")
    for each in worst[:EXPOSED_LISTED]:
        namespace, pod = each.key
        out.sample(
            f"{_PREFIX}pod_exposed",
            1,
            namespace=namespace,
            pod=pod,
            node=each.status.node_name,
            severity=each.status.severity,
            reasons=",".join(each.status.reasons),
        )
