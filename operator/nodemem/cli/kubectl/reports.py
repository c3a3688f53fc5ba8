"""MemoryReports as the API server gives them: read into a status, their age, whether their agent is silent."""

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from nodemem.api.convert import read
from nodemem.cli.kubectl.cluster import Trouble
from nodemem.node.status import ReportStatus
from nodemem.node.units import duration

STALE = "Stale"
"""The condition that the controller sets."""

OLD_SECONDS = 900.0
"""Older figures are called stale even if no controller says so: three heartbeats."""


def status_of(report: Mapping[str, Any]) -> ReportStatus:
    """Raises Trouble where it has no status, or not the one of this version."""
    name = report.get("metadata", {}).get("name", "unknown")
    found = report.get("status")
    if not found or "observedAt" not in found:
        raise Trouble(f"the agent of node {name} has not measured yet: its report is there, and empty")
    try:
        return read(ReportStatus, found)
    except (ValueError, TypeError, AttributeError) as error:
        version = found.get("agentVersion", "unknown") if isinstance(found, Mapping) else "unknown"
        raise Trouble(f"the report of node {name} can't be read (by an agent of version {version}): {error}") from error


def age_seconds(report: Mapping[str, Any], now: float | None = None) -> float | None:
    """Since the figures were taken, by this machine's clock; a clock that is behind makes it 0."""
    try:
        taken = datetime.fromisoformat(report["status"]["observedAt"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return None
    return max(0.0, (time.time() if now is None else now) - taken)


def why_stale(report: Mapping[str, Any], now: float | None = None) -> str | None:
    """A sentence, or None for figures that are fresh."""
    age = age_seconds(report, now)
    old = f"the figures are {duration(age)} old" if age is not None else "it is not known how old the figures are"
    for each in report.get("status", {}).get("conditions") or ():
        if each.get("type") == STALE and each.get("status") == "True":
            return f"The agent of this node is silent: {old}."
    if age is not None and age > OLD_SECONDS:
        return f"By this machine's clock {old}, and no controller says so: is it running?"
    return None
