"""Reports and OomPolicies -> the OomExposures there should be, and what to write to get there. Pure."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal

from nodemem.api.types import ExposureSummary, OomExposureStatus, OomMitigation, OomPolicySpec
from nodemem.controller import mitigated
from nodemem.node.status import (
    Condition,
    ContainerExposure,
    ExposureReason,
    ExposureStatus,
    OomMitigationStatus,
    ProcessRef,
    Severity,
)
from nodemem.node.summary import quantity
from nodemem.policy.selectors import selects, selects_all

PodKey = tuple[str, str]
"""Namespace and name; also those of its OomExposure."""

DEFAULT_IMMINENT_PERCENT = 90
NODE_CRITICAL = "system-node-critical"
EXPOSED = "Exposed"

MOVED_SHARE = 0.05
"""Of the limit: a figure that moved by more is written, at the pace of ``FIGURES_SECONDS``."""

MOVED_BYTES = 64 << 20
"""The same where the limit is unknown."""

FIGURES_SECONDS = 300.0
"""Figures alone are written no more often: who watches an exposure wants to know that it is there, and how bad."""

_RANK: dict[Severity, int] = {"Imminent": 0, "High": 1, "Low": 2}


@dataclass(frozen=True, slots=True)
class Pod:
    """What a pod was when it was looked up. ``config_hash``: of a static pod, the UID that the node knows it by.
    ``memory_limit_bytes``: of all its containers; None where one has none. ``shm_size``: its annotation."""

    uid: str
    config_hash: str | None
    node_name: str | None
    qos: str | None
    priority_class: str | None
    labels: Mapping[str, str]
    memory_limit_bytes: int | None = None
    shm_size: str | None = None

    def known_as(self, uid: str | None) -> bool:
        return uid is not None and uid in (self.uid, self.config_hash)


@dataclass(frozen=True, slots=True)
class Policy:
    name: str
    spec: OomPolicySpec


@dataclass(frozen=True, slots=True)
class Report:
    """What one node says, and what it was told (``mitigations``). ``exposures`` None: nothing is known."""

    node_name: str
    observed_at: str | None
    stale: bool
    exposures: tuple[ExposureStatus, ...] | None
    omitted: int = 0
    mitigations: tuple[OomMitigation, ...] = ()
    mitigated: tuple[OomMitigationStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class Claim:
    """That a pod is exposed, by the agent of one node. ``mitigated``: what it says of the pod's mitigation."""

    node_name: str
    observed_at: str | None
    stale: bool
    pod_uid: str
    containers: tuple[ExposureStatus, ...]
    mitigated: tuple[OomMitigationStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class Wanted:
    """An OomExposure as it should be; ``policy``: which one it follows. ``tied``: others of the same priority, which
    come after it by their names alone."""

    key: PodKey
    pod_uid: str
    status: OomExposureStatus
    policy: str | None
    tied: tuple[str, ...] = ()

    @property
    def mitigation(self) -> Condition | None:
        """What became of it; None where nothing was asked for or done."""
        return next((each for each in self.status.conditions if each.type == mitigated.MITIGATED), None)

    @property
    def mitigated(self) -> bool:
        return self.mitigation is not None and self.mitigation.status == "True"


@dataclass(frozen=True, slots=True)
class Actual:
    """An OomExposure as it is. ``status`` None: there is none yet. ``written``: ``time.monotonic`` of the last write,
    or of reading it."""

    uid: str
    owner_uid: str | None
    status: OomExposureStatus | None
    written: float


Difference = Literal["none", "figures", "meaning"]


@dataclass(frozen=True, slots=True)
class Change:
    """``wanted`` None deletes; ``actual`` None creates."""

    key: PodKey
    actual: Actual | None
    wanted: Wanted | None

    @property
    def news(self) -> Literal["Appeared", "Imminent", "Gone"] | None:
        """What is worth an Event on the pod."""
        if self.wanted is None:
            return "Gone"
        if self.actual is None or self.actual.status is None or self.actual.owner_uid != self.wanted.pod_uid:
            return "Appeared"
        became = self.wanted.status.severity == "Imminent" != self.actual.status.severity
        return "Imminent" if became else None


def claims(reports: Iterable[Report]) -> dict[PodKey, list[Claim]]:
    """Exposures that name their pod, by pod. One pod may be claimed by two nodes, when it was moved."""
    found: dict[PodKey, list[Claim]] = {}
    for report in reports:
        by_pod: dict[tuple[PodKey, str], list[ExposureStatus]] = {}
        for each in report.exposures or ():
            if each.pod_namespace and each.pod_name and each.pod_uid:
                by_pod.setdefault(((each.pod_namespace, each.pod_name), each.pod_uid), []).append(each)
        for (key, uid), containers in by_pod.items():
            said = tuple(each for each in report.mitigated if each.pod_uid == uid)
            claim = Claim(report.node_name, report.observed_at, report.stale, uid, tuple(containers), said)
            found.setdefault(key, []).append(claim)
    return found


def policy_for(pod: Pod, namespace: Mapping[str, str], policies: Iterable[Policy]) -> Policy | None:
    """The highest priority that selects the pod; of equals the first by name. ``namespace``: its labels."""
    return next(iter(_candidates(pod, namespace, policies)), None)


def _candidates(pod: Pod, namespace: Mapping[str, str], policies: Iterable[Policy]) -> list[Policy]:
    """Of the highest priority that selects the pod; the first one wins."""
    fitting = [
        each
        for each in policies
        if selects(each.spec.pod_selector, pod.labels) and selects(each.spec.namespace_selector, namespace)
    ]
    highest = max((each.spec.priority for each in fitting), default=0)
    return sorted((each for each in fitting if each.spec.priority == highest), key=lambda each: each.name)


def wanted(
    claimed: Mapping[PodKey, list[Claim]],
    pods: Mapping[PodKey, Pod | None],
    namespaces: Mapping[str, Mapping[str, str]],
    policies: Collection[Policy],
) -> tuple[dict[PodKey, Wanted], set[PodKey]]:
    """The OomExposures that there should be, and the pods of which that can't be said now.

    ``pods``: None is a pod that doesn't exist; one that isn't in it could not be looked up. ``namespaces``: the labels
    of those that a policy asks for. A node is believed about the pods that are bound to it, and about no other.
    """
    found: dict[PodKey, Wanted] = {}
    undecided: set[PodKey] = set()
    by_namespace = asks_for_namespaces(policies)
    for key, each in claimed.items():
        if key not in pods:
            undecided.add(key)
            continue
        pod = pods[key]
        claim = next((c for c in each if pod and pod.node_name == c.node_name and pod.known_as(c.pod_uid)), None)
        if pod is None or claim is None:
            continue
        if by_namespace and key[0] not in namespaces:
            undecided.add(key)
            continue
        fitting = _candidates(pod, namespaces.get(key[0], {}), policies)
        policy = fitting[0] if fitting else None
        if _flagged(pod, policy):
            tied = tuple(each.name for each in fitting[1:])
            found[key] = Wanted(key, pod.uid, _status(claim, policy), policy.name if policy else None, tied)
    return found, undecided


def changes(
    wanted: Mapping[PodKey, Wanted],
    actual: Mapping[PodKey, Actual],
    *,
    undecided: Collection[PodKey],
    keep_nodes: Collection[str],
    unnamed: Collection[str],
    now: float,
) -> Iterator[Change]:
    """What to write. Of ``keep_nodes`` not everything is known: nothing that they had is removed. ``unnamed``: UIDs of
    pods that are exposed, and whose names their agent has not learnt yet."""
    for key, want in wanted.items():
        have = actual.get(key)
        if have is None or have.owner_uid != want.pod_uid:
            yield Change(key, have, want)
            continue
        match difference(have.status, want.status):
            case "meaning":
                yield Change(key, have, want)
            case "figures" if now - have.written >= FIGURES_SECONDS:
                yield Change(key, have, want)
    for key, have in actual.items():
        if key in wanted or key in undecided or have.owner_uid in unnamed:
            continue
        if have.status is not None and have.status.node_name in keep_nodes:
            continue
        yield Change(key, have, None)


def difference(have: OomExposureStatus | None, want: OomExposureStatus) -> Difference:
    """``meaning``: what a person would act on. ``figures``: numbers that moved and sentences that name them."""
    if have is None or _meaning(have) != _meaning(want):
        return "meaning"
    pairs = zip(have.containers, want.containers, strict=True)
    return "figures" if any(_moved(old, new) for old, new in pairs) else "none"


def settle(want: OomExposureStatus, have: OomExposureStatus | None, now: str) -> OomExposureStatus:
    """The status to write: a condition whose status is as it was keeps its transition time. ``now``: RFC 3339."""
    former = {each.type: each for each in (have.conditions if have else ())}
    conditions = tuple(
        replace(
            each,
            last_transition_time=old.last_transition_time
            if (old := former.get(each.type)) is not None and old.status == each.status
            else now,
        )
        for each in want.conditions
    )
    return replace(want, conditions=conditions)


def asks_for_namespaces(policies: Iterable[Policy]) -> bool:
    return any(not selects_all(each.spec.namespace_selector) for each in policies)


def _flagged(pod: Pod, policy: Policy | None) -> bool:
    if policy is None:
        return pod.qos == "Guaranteed" or pod.priority_class == NODE_CRITICAL
    return policy.spec.mode != "Ignore"


def _status(claim: Claim, policy: Policy | None) -> OomExposureStatus:
    percent = imminent_percent(policy.spec) if policy else DEFAULT_IMMINENT_PERCENT
    containers = sorted(
        (
            replace(_bare(each), severity="Low" if each.mitigated else severity(each, percent))
            for each in claim.containers
        ),
        key=lambda each: (_RANK[each.severity], each.name or ""),
    )[:32]
    worst = containers[0]
    reasons: tuple[ExposureReason, ...] = tuple(dict.fromkeys(reason for each in containers for reason in each.reasons))
    return OomExposureStatus(
        node_name=claim.node_name,
        reasons=reasons,
        severity=worst.severity,
        containers=tuple(containers),
        summary=ExposureSummary(
            reasons=",".join(reasons) or None,
            container=worst.name or "(pod)",
            usage=f"{quantity(worst.usage_bytes) or '?'}/{quantity(worst.limit_bytes) or '?'}",
            victim=_process(worst.predicted_victim),
            largest=_process(worst.largest),
        ),
        observed_at=claim.observed_at,
        conditions=tuple(
            each
            for each in (
                _exposed(claim, reasons, worst),
                mitigated.condition(claim.containers, claim.mitigated, _mitigating(policy), stale=claim.stale),
            )
            if each is not None
        ),
    )


def _mitigating(policy: Policy | None) -> str | None:
    return policy.name if policy is not None and policy.spec.mode == "Mitigate" else None


def _exposed(claim: Claim, reasons: tuple[ExposureReason, ...], worst: ContainerExposure) -> Condition:
    if claim.stale:
        text = f"The agent of node {claim.node_name} is silent; so it was at {claim.observed_at or 'an unknown time'}."
        return Condition(EXPOSED, "Unknown", "ReportStale", text, "")
    if all(each.mitigated for each in claim.containers):
        text = f"With the oom_score_adj that was set the kernel chooses right. Without it: {worst.message}"
        return Condition(EXPOSED, "False", "Mitigated", text, "")
    return Condition(EXPOSED, "True", reasons[0] if reasons else "Exposed", worst.message, "")


def imminent_percent(spec: OomPolicySpec) -> int:
    text = str(spec.imminent_at).removesuffix("%")
    return int(text) if text.isdecimal() else DEFAULT_IMMINENT_PERCENT


def severity(exposure: ContainerExposure, percent: int) -> Severity:
    """The agent's severity, which takes 90 % and leaves out the page cache, moved to the ``percent`` of a policy."""
    if percent == DEFAULT_IMMINENT_PERCENT or exposure.severity == "Low":
        return exposure.severity
    if not exposure.limit_bytes or exposure.usage_bytes is None:
        return exposure.severity
    reached = 100 * exposure.usage_bytes >= percent * exposure.limit_bytes
    if exposure.severity == "Imminent":
        return "Imminent" if reached or percent < DEFAULT_IMMINENT_PERCENT else "High"
    return "Imminent" if reached and percent < DEFAULT_IMMINENT_PERCENT else exposure.severity


def _bare(exposure: ExposureStatus) -> ContainerExposure:
    """Without the pod, which the OomExposure is named after."""
    return ContainerExposure(**{each.name: getattr(exposure, each.name) for each in fields(ContainerExposure)})


def _meaning(status: OomExposureStatus) -> tuple[object, ...]:
    return (
        status.node_name,
        status.severity,
        frozenset(status.reasons),
        tuple((each.type, each.status, each.reason) for each in status.conditions),
        tuple(
            (
                each.name,
                each.severity,
                frozenset(each.reasons),
                each.limit_bytes,
                each.predicted_victim and each.predicted_victim.comm,
                each.largest and each.largest.comm,
                each.mitigation,
            )
            for each in status.containers
        ),
    )


def _moved(old: ContainerExposure, new: ContainerExposure) -> bool:
    bound = MOVED_SHARE * new.limit_bytes if new.limit_bytes else MOVED_BYTES
    pairs = [(old.usage_bytes, new.usage_bytes)]
    for had, has in ((old.predicted_victim, new.predicted_victim), (old.largest, new.largest)):
        if had is None or has is None:
            continue
        if had.pid != has.pid:
            return True
        pairs.append((had.rss_bytes, has.rss_bytes))
    return any(
        abs(after - before) > bound if before is not None and after is not None else before != after
        for before, after in pairs
    )


def _process(process: ProcessRef | None) -> str | None:
    return None if process is None else f"{process.comm} {quantity(process.rss_bytes) or '?'}"
