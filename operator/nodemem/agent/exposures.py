"""Exposures as found on the node -> as they stand in the report, with names."""

from collections.abc import Sequence

from nodemem.node import exposure, oomdomains
from nodemem.node.exposure import Exposure
from nodemem.node.oomdomains import ProcessFigures
from nodemem.node.report import Names
from nodemem.node.snapshot import Snapshot
from nodemem.node.status import ExposureStatus, MitigationStatus, ProcessRef


def find(snapshot: Snapshot) -> list[Exposure]:
    """The most pressing ones first. Costs a walk of the cgroups of pods in which there may be one."""
    places = oomdomains.places(snapshot, oomdomains.suspects(snapshot))
    _, exposures = exposure.assess(places, oomdomains.node_of(snapshot))
    return exposures


def named(exposures: Sequence[Exposure], names: Names) -> tuple[ExposureStatus, ...]:
    return tuple(_status(each, names) for each in exposures)


def _status(found: Exposure, names: Names) -> ExposureStatus:
    outlook, mitigation = found.outlook, found.mitigation
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
        if mitigation.oom_score_adj is None
        else MitigationStatus(mitigation.oom_score_adj, mitigation.discriminates_above_percent),
        message=found.message,
        container_id=outlook.container_id,
        pod_name=pod.name if pod else None,
        pod_namespace=pod.namespace if pod else None,
        pod_uid=outlook.pod_uid,
    )


def _process(figures: ProcessFigures | None) -> ProcessRef | None:
    return None if figures is None else ProcessRef(figures.pid, figures.comm, figures.rss_bytes)
