"""Exposures as found on the node -> as they stand in the report, with names."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from nodemem.node import exposure, mitigation, oomdomains
from nodemem.node.exposure import Exposure
from nodemem.node.mitigation import Target, Values
from nodemem.node.oomdomains import ProcessFigures
from nodemem.node.report import Names
from nodemem.node.snapshot import Snapshot
from nodemem.node.status import ExposureStatus, MitigationStatus, ProcessRef


@dataclass(frozen=True, slots=True)
class Found:
    """``exposures``: the most pressing ones first, as they would be without a mitigation, and last those that are none
    with it, whose cgroups are ``mitigated``: a list that is cut must not hide the others. ``targets``: what a
    mitigation would set, by container id."""

    exposures: tuple[Exposure, ...] = ()
    mitigated: frozenset[str] = frozenset()
    targets: Mapping[str, Target] = field(default_factory=dict)


def find(snapshot: Snapshot, values: Mapping[int, Values], pods: Collection[str]) -> Found:
    """``values``: of mitigated processes, by pid. ``pods``: UIDs of those whose targets are wanted. Costs a walk of the
    cgroups of pods in which there may be an exposure, and of ``pods``."""
    places = oomdomains.places(snapshot, oomdomains.suspects(snapshot).union(pods))
    node = oomdomains.node_of(snapshot)
    without = mitigation.without(places, values)
    _, exposures = exposure.assess(without, node)
    mitigated: frozenset[str] = frozenset()
    if values:
        _, left = exposure.assess(mitigation.as_they_are(places, values), node)
        mitigated = frozenset(each.outlook.path for each in exposures) - {each.outlook.path for each in left}
        exposures.sort(key=lambda each: each.outlook.path in mitigated)
    return Found(tuple(exposures), mitigated, mitigation.targets(without, node, pods) if pods else {})


def named(exposures: Sequence[Exposure], names: Names, mitigated: Collection[str] = ()) -> tuple[ExposureStatus, ...]:
    """``mitigated``: cgroups, see ``Found``."""
    return tuple(_status(each, names, each.outlook.path in mitigated) for each in exposures)


def _status(found: Exposure, names: Names, mitigated: bool) -> ExposureStatus:
    outlook, advice = found.outlook, found.mitigation
    pod = names.pod(outlook.pod_uid)
    return ExposureStatus(
        name=names.container(outlook.container_id),
        reasons=outlook.reasons,  # type: ignore[arg-type]
        severity=str(found.severity),  # type: ignore[arg-type]
        limit_bytes=outlook.limit_bytes,
        usage_bytes=outlook.usage_bytes,
        predicted_victim=_process(outlook.predicted_victim),
        largest=_process(outlook.largest),
        mitigation=None
        if advice.oom_score_adj is None
        else MitigationStatus(advice.oom_score_adj, advice.discriminates_above_percent),
        message=found.message,
        container_id=outlook.container_id,
        pod_name=pod.name if pod else None,
        pod_namespace=pod.namespace if pod else None,
        pod_uid=outlook.pod_uid,
        mitigated=mitigated or None,
    )


def _process(figures: ProcessFigures | None) -> ProcessRef | None:
    return None if figures is None else ProcessRef(figures.pid, figures.comm, figures.rss_bytes)
