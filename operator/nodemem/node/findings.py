"""What is wrong, or about to go wrong, with the OOM killer's choices on one node: everything found in one snapshot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nodemem.kernel import oom
from nodemem.node import adj, exposure, oomdomains, services
from nodemem.node.adj import Drift
from nodemem.node.exposure import ContainerOutlook, Exposure
from nodemem.node.oomdomains import Place
from nodemem.node.services import ServiceAtRisk, UnkillableBusiness
from nodemem.node.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Findings:
    """``outlooks`` has every container, and every pod with a limit, exposed or not."""

    probe: oom.Probe
    outlooks: tuple[ContainerOutlook, ...]
    exposures: tuple[Exposure, ...]
    drifts: tuple[Drift, ...]
    services: tuple[ServiceAtRisk, ...]
    unkillable: tuple[UnkillableBusiness, ...]


def find(
    snapshot: Snapshot,
    *,
    imminent_at_percent: float = exposure.IMMINENT_AT_PERCENT,
    more_services: Sequence[str] = (),
    expected_adj: Mapping[str, int] | None = None,
) -> Findings:
    """``expected_adj`` by container id, from ``adj.expected_oom_score_adj``, where the pods' specifications are known.

    Reads cgroups (see ``oomdomains.places``); everything else is in the snapshot.
    """
    node = oomdomains.node_of(snapshot)
    places = oomdomains.places(snapshot)
    outlooks, exposures = exposure.assess(places, node, imminent_at_percent=imminent_at_percent)
    tasks = oom.tasks_from(snapshot.processes.values(), snapshot.page_size)
    sandbox_pids = {pid for place in places for pid in place.sandbox_pids}
    owners = snapshot.process_owners
    return Findings(
        probe=snapshot.probe,
        outlooks=tuple(outlooks),
        exposures=tuple(exposures),
        drifts=tuple(_drifts(places, expected_adj or {})),
        services=tuple(services.services_at_risk(tasks, owners, node, sandbox_pids=sandbox_pids, more=more_services)),
        unkillable=tuple(
            services.unkillable_business(tasks, owners, node, sandbox_pids=sandbox_pids, more=more_services)
        ),
    )


def _drifts(places: Sequence[Place], expected: Mapping[str, int]) -> list[Drift]:
    """Sandboxes aside: their value is the runtime's, not the kubelet's."""
    found = []
    for place in places:
        if place.container_id is None or place.sandbox:
            continue
        observed = [(task.pid, task.oom_score_adj) for task in place.tasks if task.oom_score_adj is not None]
        drift = adj.drift(
            place.container_id, place.pod_uid, place.qos, observed, expected=expected.get(place.container_id)
        )
        if drift is not None:
            found.append(drift)
    return found
