"""The Node conditions ShmemPressure and OomMisselectionExposed, from what a node reports."""

from typing import NamedTuple

from nodemem.controller.records import OOM_EXPOSED, SHMEM_PRESSURE, Figures, Mark
from nodemem.node.units import binary_size

SHMEM_SHARE = 0.25
"""Less Shmem than this share of memory is not what a shortage comes from."""

AVAILABLE_LOW, AVAILABLE_FINE = 0.10, 0.15
"""Share of memory available below which there is pressure, and above which it is over: apart, so that it can't flap."""


class Wanted(NamedTuple):
    """A condition of a Node, without its time."""

    type: str
    status: str
    reason: str
    message: str


def shmem(figures: Figures, reported: str | None, former: Mark | None, *, stale: bool) -> Wanted:
    """``reported``: the agent's own condition, which wins. Unknown where the figures are, or are old."""
    total, available, held = figures
    if stale or not total or available is None or held is None:
        reason = "ReportStale" if stale else "FiguresUnknown"
        return Wanted(SHMEM_PRESSURE, "Unknown", reason, "nodemem has no fresh figures of this node.")
    bound = AVAILABLE_FINE if former is not None and former.status == "True" else AVAILABLE_LOW
    short = held >= SHMEM_SHARE * total and available < bound * total
    text = f"{binary_size(held)} of {binary_size(total)} is Shmem, {binary_size(available)} is available."
    if reported == "True" or (reported is None and short):
        return Wanted(SHMEM_PRESSURE, "True", "ShmemHoldsMemory", text)
    return Wanted(SHMEM_PRESSURE, "False", "MemoryAvailable", text)


def exposed(pods: int, *, known: bool, stale: bool) -> Wanted:
    """``pods``: exposed pods on the node that a policy wants flagged."""
    if stale or not known:
        reason = "ReportStale" if stale else "FiguresUnknown"
        return Wanted(OOM_EXPOSED, "Unknown", reason, "nodemem has no fresh figures of this node.")
    if pods:
        text = "kubectl get oomexposures -A --field-selector status.nodeName=<this node> lists the exposed pods."
        return Wanted(OOM_EXPOSED, "True", "PodsExposed", text)
    return Wanted(OOM_EXPOSED, "False", "NoPodExposed", "In no flagged pod would the kernel kill the wrong process.")
