"""Every metric there is, as agent and controller write it: what rules and dashboards may ask for."""

from dataclasses import replace
from typing import Any

from nodemem.agent import metrics as agent_metrics
from nodemem.agent.metrics import Counters
from nodemem.api.types import OomExposureStatus
from nodemem.controller import metrics as controller_metrics
from nodemem.controller.exposures import Wanted
from nodemem.controller.metrics import Counts, Figures
from nodemem.node.status import LimitStatus, Omitted, ReclaimStatus, ReportStatus
from promlab import families
from unit.agent_statuses import GIB, MIB, container, exposure, status, tmpfs

TARGET_LABELS = {"node", "instance", "job", "namespace", "pod", "container", "endpoint"}
"""What the PodMonitors add."""


def limit(number: int, state: Any = "InSync", reason: str | None = None) -> LimitStatus:
    return LimitStatus(f"/run/{number}", GIB, GIB, None, state, reason=reason, policy="cap")


def full_status() -> ReportStatus:
    """Every family of the agent has a sample."""
    volume = tmpfs(1, 5 * MIB)
    return status(
        tmpfs=(replace(volume, owner=replace(volume.owner, volume="cache")),),
        containers=(container(1, 3 * MIB),),
        exposures=(exposure(1, "Imminent"),),
        limits=(limit(1, "Failed", "Unlimited"), limit(2)),
        reclaim=(ReclaimStatus("Journal", None, GIB, None, "Refused", "NoSystemd", policy="cap"),),
        omitted=Omitted(3, 4, 5 * MIB, 6 * MIB, 7 * MIB),
    )


def agent_counters() -> Counters:
    found = Counters(started_at=1.0, last_scan_at=2.0, written_at=2.0, report_bytes=3, pods=4)
    found.scans["full"] = 2
    found.scan_seconds["full"] = 0.5
    found.writes["new"] = 1
    found.kills = {"Right": 1, "Wrong": 2, "Unknown": 0}
    found.request("GET", 200)
    found.request("GET", 0)
    return found


def exposed(number: int, severity: Any = "High") -> Wanted:
    told = OomExposureStatus(
        node_name=f"n{number}", reasons=("ClampedBadness", "SkewedAdj"), severity=severity, containers=()
    )
    return Wanted(("team", f"pod-{number:03}"), f"uid-{number}", told, None)


def figures(**counts: Any) -> Figures:
    found = Counts(reconciles=3, reconcile_seconds=0.25, **counts)
    return Figures(True, True, 5, 4, 1, 0, 10, 0, 2, 1, found, started_at=1.0)


def full_figures() -> Figures:
    return figures(stale=["n2", "n1"], exposed=[exposed(1)], policies={"cap": {"in_sync": 3, "failed": 1}})


def known() -> dict[str, set[str]]:
    """Every metric, with the labels that it has once it is scraped."""
    agent = agent_metrics.render(full_status(), agent_counters(), open_metrics=False)
    controller = controller_metrics.render(full_figures(), open_metrics=False)
    found: dict[str, set[str]] = {"up": set(TARGET_LABELS)}
    for text in (agent.done(), controller.done()):
        for name, labels in families(text).items():
            found.setdefault(name, set(TARGET_LABELS)).update(labels)
    return found
