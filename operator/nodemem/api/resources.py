"""The four kinds: names, scope, columns of ``kubectl get``, and their types."""

from typing import Any, NamedTuple

from nodemem.api import types
from nodemem.node.status import API_VERSION, ReportStatus

GROUP, VERSION = API_VERSION.split("/")
CATEGORY = "nodemem"


class Column(NamedTuple):
    """A printer column. ``wide``: for ``-o wide`` alone."""

    name: str
    path: str
    doc: str
    type: str = "string"
    wide: bool = False


class Resource(NamedTuple):
    """``selectable``: fields of status for ``--field-selector``."""

    kind: str
    plural: str
    short_name: str
    namespaced: bool
    doc: str
    spec: type[Any] | None
    status: type[Any]
    columns: tuple[Column, ...]
    selectable: tuple[str, ...] = ()

    def path(self, name: str = "", *, namespace: str | None = None, subresource: str = "") -> str:
        """The URL path of one, or without ``name`` of all (in the namespace, if one is given)."""
        parts = [
            "/apis",
            API_VERSION,
            *(["namespaces", namespace] if namespace else []),
            self.plural,
            name,
            subresource,
        ]
        return "/".join(part for part in parts if part)


_AGE = Column("Age", ".metadata.creationTimestamp", "Time since it was created.", "date")


def _condition(kind: str, path: str = "status") -> str:
    return f'.status.conditions[?(@.type=="{kind}")].{path}'


MEMORY_REPORT = Resource(
    "MemoryReport",
    "memoryreports",
    "memrep",
    False,
    "Where a node's memory went, by its agent; named after the Node and owned by it. spec holds the tmpfs limits that"
    " the node must hold and what it is to clean, from the TmpfsPolicies, and the pods to mitigate, from the"
    " OomPolicies.",
    types.MemoryReportSpec,
    ReportStatus,
    (
        Column("Total", ".status.summary.total", "MemTotal."),
        Column("Shmem", ".status.summary.shmem", "tmpfs files, shared memory segments, memfds and the like."),
        Column("Tmpfs", ".status.summary.tmpfs", "Shmem that is in tmpfs files."),
        Column("Hidden", ".status.summary.hidden", "Memory in use that is in no process's RSS."),
        Column("Top-Tmpfs", ".status.summary.topTmpfs", "The fullest tmpfs, with used and size."),
        Column("Growth", ".status.summary.growth", "Growth of Shmem."),
        Column("Limits", ".status.summary.limits", "Worst state of the tmpfs limits and of reclaim."),
        Column("Exposed", ".status.summary.exposed", "Containers whose OOM would kill the wrong process.", "integer"),
        _AGE,
        Column("Observed", ".status.observedAt", "Time since the figures were taken.", "date", True),
        Column("Kernel", ".status.kernel.release", "Kernel release.", wide=True),
        Column("Kernel-Generation", ".status.kernel.oomGeneration", "How the kernel scores processes.", wide=True),
        Column("Cgroup", ".status.kernel.cgroup", "Where the memory controller is.", wide=True),
        Column("Mitigated", ".status.summary.mitigated", "Containers where a mitigation prevents it.", "integer", True),
        Column("Complete", _condition("Complete"), "Whether everything could be read.", wide=True),
        Column("Version", ".status.agentVersion", "Version of the agent.", wide=True),
    ),
)

TMPFS_POLICY = Resource(
    "TmpfsPolicy",
    "tmpfspolicies",
    "tmpfspol",
    False,
    "Which tmpfs on which nodes may be how large, and how carefully to get there.",
    types.TmpfsPolicySpec,
    types.TmpfsPolicyStatus,
    (
        Column("Mode", ".spec.mode", "Audit or Enforce."),
        Column("Nodes", ".status.nodes.matched", "Nodes that it is for.", "integer"),
        Column("In-Sync", ".status.nodes.inSync", "Nodes on which every limit holds.", "integer"),
        Column("Pending", ".status.nodes.pending", "Nodes whose turn has not come.", "integer"),
        Column("Deferred", ".status.nodes.deferred", "Nodes on which too much is in use.", "integer"),
        Column("Failed", ".status.nodes.failed", "Nodes on which a limit failed or is contested.", "integer"),
        Column("Ready", _condition("Ready"), "Whether every node is where it should be."),
        _AGE,
        Column("Priority", ".spec.priority", "The higher one wins a mount.", "integer", True),
        Column("Headroom", ".spec.headroom", "Room left above what is in use.", wide=True),
        Column("Concurrent", ".spec.rollout.maxConcurrent", "Nodes changed at a time.", wide=True),
        Column("Reason", _condition("Ready", "message"), "Why it is not ready.", wide=True),
    ),
)

OOM_EXPOSURE = Resource(
    "OomExposure",
    "oomexposures",
    "oomexp",
    True,
    "A pod in which the kernel would kill the wrong process when memory runs out; named after the Pod and owned by it."
    " Written by the controller, gone when the cause is gone.",
    None,
    types.OomExposureStatus,
    (
        Column("Severity", ".status.severity", "Imminent, High or Low."),
        Column("Reasons", ".status.summary.reasons", "Why the kernel would choose wrong."),
        Column("Container", ".status.summary.container", "The container that is worst off."),
        Column("Usage", ".status.summary.usage", "Its usage and limit."),
        Column("Victim", ".status.summary.victim", "Whom the kernel would kill."),
        Column("Largest", ".status.summary.largest", "Who holds most."),
        _AGE,
        Column("Node", ".status.nodeName", "Node of the pod.", wide=True),
        Column("Mitigated", _condition("Mitigated"), "Whether oom_score_adj was changed.", wide=True),
        Column("Observed", ".status.observedAt", "Time since it was seen last.", "date", True),
    ),
    (".status.nodeName", ".status.severity"),
)

OOM_POLICY = Resource(
    "OomPolicy",
    "oompolicies",
    "oompol",
    False,
    "Which pods are checked for exposure or left alone, and where the mitigation may be applied.",
    types.OomPolicySpec,
    types.OomPolicyStatus,
    (
        Column("Mode", ".spec.mode", "Ignore, Flag or Mitigate."),
        Column("Imminent-At", ".spec.imminentAt", "Usage from which an exposure is Imminent."),
        Column("Priority", ".spec.priority", "The higher one wins a pod.", "integer"),
        Column("Exposed", ".status.exposed", "Exposed pods that it is for.", "integer"),
        _AGE,
        Column("Mitigated", ".status.mitigated", "Pods whose oom_score_adj is mitigated.", "integer", True),
        Column("Ready", _condition("Ready"), "Whether it does what it says.", wide=True),
        Column("Reason", _condition("Ready", "message"), "Why it is not ready.", wide=True),
    ),
)

RESOURCES = (MEMORY_REPORT, TMPFS_POLICY, OOM_EXPOSURE, OOM_POLICY)
