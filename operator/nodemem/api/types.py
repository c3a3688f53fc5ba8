"""The custom resources' specs and statuses as types; MemoryReport.status is in ``node.status``.

A default here is the default that the API server fills in. A message of a rule says what to write instead: it is what a
person reads when ``kubectl apply`` refuses their object.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from nodemem.node.status import Condition, ContainerExposure, ExposureReason, OnDelete, Rule, Scope, Severity, doc

LimitMode = Literal["Audit", "Enforce"]
Adjust = Literal["Shrink", "Grow", "Exact"]
OomMode = Literal["Ignore", "Flag", "Mitigate"]
Operator = Literal["In", "NotIn", "Exists", "DoesNotExist"]

SMALLEST_LIMIT_BYTES = 1 << 20
"""No tmpfs is limited to less. 0 would lift the limit, and the kernel then takes no new one."""

LARGEST_LIMIT_BYTES = 1 << 50

MOST_MITIGATIONS = 64
"""Pods of one node that can be mitigated."""

SMALLEST_JOURNAL_BYTES = 16 << 20

_PERCENT = "^(100|[1-9][0-9]?)%$"


def _clean_path(example: str) -> tuple[Rule, ...]:
    return (
        Rule("self.startsWith('/')", f"write an absolute path, such as {example}"),
        Rule(
            # startsWith: a relative path has its own sentence. The list names each way to spell a place twice.
            r"!self.startsWith('/') || !self.matches('/[.]{0,2}(/|$)')",
            f"write the path without //, . and .. and without a / at its end, such as {example}",
        ),
    )


_SIZE_RULES = (
    Rule(
        "type(self) == int || self.endsWith('%') || isQuantity(self)",
        "write a quantity such as 512Mi or 2Gi, or a percentage such as 10%",
    ),
    Rule(
        f"type(self) == int || !self.endsWith('%') || self.matches('{_PERCENT}')",
        "write a whole percentage from 1% to 100%, such as 10%",
    ),
    Rule(
        f"type(self) == int ? self >= {SMALLEST_LIMIT_BYTES} : "
        "!isQuantity(self) || quantity(self).compareTo(quantity('1Mi')) >= 0",
        "write at least 1Mi, such as 2Gi: 0 would lift the limit, and the kernel then refuses to set one again",
    ),
    Rule(
        f"type(self) == int ? self <= {LARGEST_LIMIT_BYTES} : "
        "!isQuantity(self) || quantity(self).compareTo(quantity('1Pi')) <= 0",
        "write at most 1Pi, such as 2Gi",
    ),
)

_NOT_EMPTY = Rule("size(self) > 0", "write a name: an empty one means nothing")

_LABEL_KEY = "([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?"
_LABEL_VALUE = "([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?"


@dataclass(frozen=True, slots=True)
class LabelSelectorRequirement:
    key: str = doc(
        "The label's key.",
        max_length=317,
        rules=(Rule(f"self.matches('^{_LABEL_KEY}$')", "write a label's key, such as pool or example.com/pool"),),
    )
    operator: Operator = doc("How the label's value and values relate.")
    values: tuple[str, ...] = doc("For In and NotIn.", default=(), max_items=64, max_length=63)
    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!(self.operator in ['In', 'NotIn']) || (has(self.values) && size(self.values) > 0)",
            "In and NotIn need values: write at least one, or use Exists or DoesNotExist",
            "values",
        ),
        Rule(
            "self.operator in ['In', 'NotIn'] || !has(self.values) || size(self.values) == 0",
            "Exists and DoesNotExist take no values: leave them out, or use In or NotIn",
            "values",
        ),
    )


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """A metav1.LabelSelector; empty selects everything."""

    match_labels: dict[str, str] | None = doc(
        "Labels that must have exactly these values.",
        default=None,
        max_items=32,
        max_length=63,
        rules=(
            Rule(f"self.all(k, k.matches('^{_LABEL_KEY}$'))", "write labels' keys, such as pool or example.com/pool"),
            Rule(
                f"self.all(k, self[k].matches('^{_LABEL_VALUE}$'))",
                "a label's value has letters, digits, -, _ and . only, and begins and ends with a letter or digit",
            ),
        ),
    )
    match_expressions: tuple[LabelSelectorRequirement, ...] = doc(
        "Requirements that must all hold.", default=(), max_items=32
    )


# TmpfsPolicy


@dataclass(frozen=True, slots=True)
class TmpfsRule:
    scope: Scope = doc(
        "Whose tmpfs: Host, the node's own mounts; EmptyDir, volumes of pods with medium Memory; SharedMemory, the"
        " /dev/shm of pods."
    )
    size: int | str = doc(
        'The size limit: a quantity such as 2Gi, or a percentage such as "10%" of the node\'s memory, for EmptyDir and'
        " SharedMemory of the pod's memory limit.",
        max_length=32,
        rules=_SIZE_RULES,
    )
    path: str | None = doc(
        "Mount point, or a glob on it such as /run/user/*. Required for Host.",
        default=None,
        rules=(
            *_clean_path("/run or /run/user/*"),
            Rule(
                "!self.matches('^/(proc|sys)(/|$)') && self != '/dev'",
                "no tmpfs of a program is mounted there: write another path, such as /run or /dev/shm",
            ),
        ),
    )
    adjust: Adjust = doc(
        "Shrink: a cap, smaller mounts stay as they are. Grow: at least this, larger mounts stay. Exact: this.",
        default="Shrink",
    )
    pod_selector: LabelSelector | None = doc(
        "Pods whose tmpfs are meant; absent or empty: every pod. For EmptyDir and SharedMemory.", default=None
    )
    namespace_selector: LabelSelector | None = doc(
        "Namespaces of these pods; absent or empty: every namespace. For EmptyDir and SharedMemory.", default=None
    )
    max_size: int | str | None = doc(
        "The most that a pod may ask for by its annotation nodemem.io/shm-size; absent: the annotation has no say. For"
        " SharedMemory.",
        default=None,
        max_length=32,
        rules=_SIZE_RULES,
    )
    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.scope != 'Host' || has(self.path)",
            "scope Host needs a path: write the mount point, such as path: /run",
            "path",
        ),
        Rule(
            "self.scope != 'Host' || !has(self.path) || !self.path.contains('/kubelet/pods/')",
            "this is a pod's volume, not the node's: write scope: EmptyDir and leave path out",
            "path",
        ),
        Rule(
            "self.scope != 'SharedMemory' || !has(self.path) || self.path == '/dev/shm'",
            "scope SharedMemory is always /dev/shm of a pod: leave path out",
            "path",
        ),
        Rule(
            "self.scope == 'SharedMemory' || !has(self.maxSize)",
            "maxSize is what a pod may ask for its /dev/shm: leave it out, or write scope: SharedMemory",
            "maxSize",
        ),
        Rule(
            "self.scope != 'Host' || !has(self.podSelector)",
            "podSelector is for EmptyDir and SharedMemory: leave it out, and select nodes with spec.nodeSelector",
            "podSelector",
        ),
        Rule(
            "self.scope != 'Host' || !has(self.namespaceSelector)",
            "namespaceSelector is for EmptyDir and SharedMemory: leave it out, and select nodes with spec.nodeSelector",
            "namespaceSelector",
        ),
        Rule(
            "self.scope != 'EmptyDir' || self.adjust == 'Shrink'",
            "adjust Grow and Exact are for Host and SharedMemory: the kubelet evicts a pod whose emptyDir holds more"
            " than its sizeLimit, so raise sizeLimit in the pod and write adjust: Shrink here",
            "adjust",
        ),
    )


@dataclass(frozen=True, slots=True)
class Rollout:
    max_concurrent: int | str = doc(
        "Nodes that may be changing at the same time: a number, or a percentage of the nodes matched, rounded up.",
        default="10%",
        max_length=8,
        rules=(
            Rule(
                f"type(self) == int ? self >= 1 : self.matches('{_PERCENT}')",
                "write a number of nodes from 1, such as 5, or a percentage from 1% to 100%, such as 10%",
            ),
        ),
    )
    max_failures: int = doc("Failed nodes at which the rollout stops.", default=1, minimum=1, maximum=10000)


_TMPFILES_PATH_RULES = (
    *_clean_path("/run/foo"),
    Rule(
        "!self.startsWith('/') || self.matches('^/[^/]+/.')",
        "write a directory inside a mount point, such as /run/foo: ageing all of /run would delete sockets and"
        " locks in use",
    ),
    Rule(
        "!self.matches('^/[^/]+/[*?]+$')",
        "write a directory's name, such as /run/foo or /run/foo-*: a star alone means every directory there, also those"
        " of systemd and of the container runtime",
    ),
    Rule(
        "self.matches('^[A-Za-z0-9/._@:+*?-]*$')",
        "write letters, digits and . _ @ : + - * ? only: the path becomes part of a line of tmpfiles.d",
    ),
)
_AGE_RULES = (
    Rule(
        "self.matches('^([1-9][0-9]{0,5}(min|m|h|d|w))+$')",
        "write a time span of minutes or more, such as 30min, 12h or 7d: a shorter one would delete files in use",
    ),
)


@dataclass(frozen=True, slots=True)
class JournalReclaim:
    runtime_max_use: int | str = doc(
        "RuntimeMaxUse of systemd-journald: what its volatile journal may use, such as 512Mi.",
        max_length=32,
        rules=(
            Rule(
                f"type(self) == int ? self >= {SMALLEST_JOURNAL_BYTES} && self <= {LARGEST_LIMIT_BYTES} : "
                "isQuantity(self) && quantity(self).compareTo(quantity('16Mi')) >= 0 && "
                "quantity(self).compareTo(quantity('1Pi')) <= 0",
                "write a quantity of at least 16Mi, such as 512Mi: journald keeps whole files of several MiB",
            ),
        ),
    )


@dataclass(frozen=True, slots=True)
class TmpfilesReclaim:
    path: str = doc(
        "Directory, or a glob for several, whose old files systemd-tmpfiles deletes. It has to be in a tmpfs of the"
        " node.",
        max_length=256,
        rules=_TMPFILES_PATH_RULES,
    )
    age: str = doc(
        "Files not used for so long are deleted: a time span as in tmpfiles.d, such as 7d or 1d12h.",
        max_length=32,
        rules=_AGE_RULES,
    )


@dataclass(frozen=True, slots=True)
class Reclaim:
    journal: JournalReclaim | None = doc(
        "Limit systemd-journald's volatile journal, by a drop-in in /run that it is restarted with; it trims what is"
        " over itself.",
        default=None,
    )
    tmpfiles: tuple[TmpfilesReclaim, ...] = doc(
        "Let systemd-tmpfiles delete old files, by a drop-in in /run: whenever the node cleans, and at once while a"
        " Host tmpfs that they are in holds too much for its limit. The deleting is the node's own.",
        default=(),
        max_items=16,
    )


@dataclass(frozen=True, slots=True)
class TmpfsPolicySpec:
    rules: tuple[TmpfsRule, ...] = doc(
        "Which tmpfs may be how large.",
        max_items=32,
        rules=(Rule("size(self) > 0", "write at least one rule, such as {scope: Host, path: /run, size: 2Gi}"),),
    )
    node_selector: LabelSelector = doc("Nodes it is for; empty: every node.", default=LabelSelector())
    mode: LimitMode = doc("Audit reports what would be done and changes nothing; Enforce does it.", default="Audit")
    headroom: int | str = doc(
        "A mount is never made smaller than what is in use plus this; it is Deferred until it fits.",
        default="10%",
        max_length=8,
        rules=(
            Rule(
                "type(self) == string && self.matches('^(100|[1-9]?[0-9])%$')",
                "write a whole percentage of what is in use, from 0% to 100%, such as 10%",
            ),
        ),
    )
    rollout: Rollout = doc("How carefully the nodes are changed.", default=Rollout())
    on_delete: OnDelete = doc(
        "When the policy goes: Restore the sizes found, or Keep the limits until a reboot.", default="Restore"
    )
    priority: int = doc(
        "Of two policies for a mount the higher one wins; on a tie the smaller size, and a Conflict is reported.",
        default=0,
        minimum=-1000000,
        maximum=1000000,
    )
    reclaim: Reclaim | None = doc(
        "What the node itself may clean so that its tmpfs stay within their limits; undone when the policy goes, with"
        " onDelete Keep, too.",
        default=None,
    )
    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.reclaim) || self.rules.exists(r, r.scope == 'Host')",
            "reclaim cleans tmpfs of the node itself: add a rule with scope: Host, or leave reclaim out",
            "reclaim",
        ),
    )


@dataclass(frozen=True, slots=True)
class NodeCounts:
    matched: int = doc("Nodes that the policy is for.")
    in_sync: int = doc("Nodes on which every limit holds.", default=0)
    audit: int = doc("Nodes that report what would be done.", default=0)
    pending: int = doc("Nodes whose turn has not come, or that have not answered yet.", default=0)
    deferred: int = doc("Nodes on which too much is in use.", default=0)
    failed: int = doc("Nodes on which a limit failed or is contested.", default=0)
    refused: int = doc(
        "Nodes on which reclaim has nothing to work with, such as systemd; limits hold there.", default=0
    )


@dataclass(frozen=True, slots=True)
class NodeProblem:
    node_name: str = doc("The node.", max_length=253)
    state: str = doc("Deferred, Failed, Contested, Refused or Stale.", max_length=32)
    message: str = doc("The agent's words.", max_length=512)


@dataclass(frozen=True, slots=True)
class TmpfsPolicyStatus:
    observed_generation: int | None = doc("metadata.generation that this status is about.", minimum=0)
    nodes: NodeCounts | None = doc("How many nodes are where.")
    problems: tuple[NodeProblem, ...] = doc("Some of the nodes that need a look.", default=(), max_items=10)
    conditions: tuple[Condition, ...] = doc("Ready, Progressing, Degraded, Conflict.", default=(), max_items=8)


# MemoryReport


@dataclass(frozen=True, slots=True)
class TmpfsLimit:
    mount_point: str = doc("Where the tmpfs is mounted on the node.", max_length=1024, rules=_clean_path("/run"))
    scope: Scope = doc("Whose tmpfs it is.")
    size_bytes: int = doc(
        "The size limit.",
        rules=(
            Rule(
                f"self >= {SMALLEST_LIMIT_BYTES}",
                f"write at least {SMALLEST_LIMIT_BYTES}, 1 MiB: 0 would lift the limit, and the kernel then refuses to"
                " set one again",
            ),
        ),
    )
    mode: LimitMode = doc("Audit reports what would be done; Enforce does it.", default="Audit")
    adjust: Adjust = doc("Shrink: a cap. Grow: at least this. Exact: this.", default="Shrink")
    headroom_percent: int = doc("Never below what is in use plus this share of it.", default=10, minimum=0, maximum=100)
    on_delete: OnDelete = doc(
        "When the limit goes: Restore the size found, or Keep the limit until a reboot.", default="Restore"
    )
    policy: str | None = doc("The TmpfsPolicy it comes from.", default=None, max_length=253)


@dataclass(frozen=True, slots=True)
class OomMitigation:
    pod_uid: str = doc("UID of the pod, as the node knows it.", max_length=64, rules=(_NOT_EMPTY,))
    pod_namespace: str = doc("Namespace of the pod.", max_length=63, rules=(_NOT_EMPTY,))
    pod_name: str = doc("Name of the pod.", max_length=253, rules=(_NOT_EMPTY,))
    policy: str = doc("The OomPolicy it comes from.", max_length=253, rules=(_NOT_EMPTY,))


@dataclass(frozen=True, slots=True)
class JournalLimit:
    runtime_max_use_bytes: int = doc(
        "RuntimeMaxUse of systemd-journald.",
        rules=(Rule(f"self >= {SMALLEST_JOURNAL_BYTES}", f"write at least {SMALLEST_JOURNAL_BYTES}, 16 MiB"),),
    )
    mode: LimitMode = doc("Audit reports what would be done; Enforce does it.", default="Audit")
    policy: str | None = doc("The TmpfsPolicy it comes from.", default=None, max_length=253)


@dataclass(frozen=True, slots=True)
class TmpfilesAge:
    path: str = doc("Directory, or a glob for several.", max_length=256, rules=_TMPFILES_PATH_RULES)
    age: str = doc("Files not used for so long are deleted.", max_length=32, rules=_AGE_RULES)
    mode: LimitMode = doc("Audit reports what would be done; Enforce does it.", default="Audit")
    policy: str | None = doc("The TmpfsPolicy it comes from.", default=None, max_length=253)


@dataclass(frozen=True, slots=True)
class NodeReclaim:
    journal: JournalLimit | None = doc("What systemd-journald's volatile journal may use.", default=None)
    tmpfiles: tuple[TmpfilesAge, ...] = doc(
        "Where systemd-tmpfiles deletes old files.",
        default=(),
        max_items=32,
        rules=(
            Rule(
                "self.all(a, self.exists_one(b, a.path == b.path))",
                "write each path once: two ages for the same one contradict each other",
            ),
        ),
    )


@dataclass(frozen=True, slots=True)
class MemoryReportSpec:
    tmpfs_limits: tuple[TmpfsLimit, ...] = doc(
        "The limits that this node must hold; written by the controller, from the TmpfsPolicies.",
        default=(),
        max_items=128,
        rules=(
            Rule(
                "self.all(a, self.exists_one(b, a.mountPoint == b.mountPoint))",
                "write each mountPoint once: two limits for the same one contradict each other",
            ),
        ),
    )
    reclaim: NodeReclaim | None = doc(
        "What the node itself is to clean; written by the controller, from the TmpfsPolicies.", default=None
    )
    oom_mitigations: tuple[OomMitigation, ...] | None = doc(
        "Pods whose processes this node gives the oom_score_adj that makes its kernel choose right, which it computes"
        " itself; written by the controller, from the OomPolicies.",
        default=None,
        max_items=MOST_MITIGATIONS,
        rules=(
            Rule(
                "self.all(a, self.exists_one(b, a.podUID == b.podUID))",
                "write each podUID once: a pod is mitigated or it is not",
            ),
        ),
    )


# OomExposure


@dataclass(frozen=True, slots=True)
class ExposureSummary:
    """The columns of ``kubectl get oomexposures``, formatted."""

    reasons: str | None = doc("The reasons, such as ClampedBadness.", max_length=128)
    container: str | None = doc("The container that is worst off.", max_length=253)
    usage: str | None = doc("Its usage and limit, such as 15.9Gi/16.0Gi.", max_length=64)
    victim: str | None = doc("Whom the kernel would kill, and what that frees, such as pause 4.0Ki.", max_length=128)
    largest: str | None = doc("Who holds most, such as data_sim 15.1Gi.", max_length=128)


@dataclass(frozen=True, slots=True)
class OomExposureStatus:
    node_name: str | None = doc("Node of the pod.", max_length=253)
    reasons: tuple[ExposureReason, ...] = doc("Why the kernel would kill the wrong process.", max_items=4)
    severity: Severity = doc("Imminent: usage is near the limit. High: the wrong process would die. Low: it might.")
    containers: tuple[ContainerExposure, ...] = doc("The exposed containers, with the numbers.", max_items=32)
    summary: ExposureSummary | None = doc("What kubectl get prints.", default=None)
    observed_at: str | None = doc("When the node's agent saw it last.", default=None, time=True)
    conditions: tuple[Condition, ...] = doc("Exposed, Mitigated.", default=(), max_items=8)


# OomPolicy


@dataclass(frozen=True, slots=True)
class OomPolicySpec:
    pod_selector: LabelSelector = doc("Pods it is for; empty: every pod.", default=LabelSelector())
    namespace_selector: LabelSelector = doc("Namespaces of these pods; empty: every one.", default=LabelSelector())
    mode: OomMode = doc(
        "Ignore: not checked. Flag: an OomExposure and an Event for an exposed pod; what a Guaranteed pod without any"
        " policy gets. Mitigate: the agent also sets the oom_score_adj that makes the kernel choose right, where it may"
        " (mitigation.enabled of the chart), and puts the kubelet's back when the policy goes.",
        default="Flag",
    )
    imminent_at: int | str = doc(
        "Usage, in percent of the limit, from which an exposure is Imminent.",
        default="90%",
        max_length=8,
        rules=(
            Rule(
                f"type(self) == string && self.matches('{_PERCENT}')",
                "write a whole percentage of the limit from 1% to 100%, such as 90%",
            ),
        ),
    )
    priority: int = doc(
        "Of two policies for a pod the higher one wins; on a tie the one that comes first by name.",
        default=0,
        minimum=-1000000,
        maximum=1000000,
    )


@dataclass(frozen=True, slots=True)
class OomPolicyStatus:
    observed_generation: int | None = doc("metadata.generation that this status is about.", minimum=0)
    exposed: int | None = doc("Exposed pods that it is for.")
    mitigated: int | None = doc("Pods of these whose oom_score_adj is mitigated.", default=None)
    conditions: tuple[Condition, ...] = doc("Ready, Conflict.", default=(), max_items=8)
