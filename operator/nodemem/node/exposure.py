"""Whom an OOM of each container and pod would kill, whether that is the right process, and what is exposed.

Pure: places (``oomdomains``) in, dataclasses out. What "exposed" means and which reasons there are is the kernel
module's (``oomexposure.exposure_reasons``); here it is put together for a node: which limit is hit first, how urgent
it is, what to do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from nodemem.kernel import oom, oomexposure
from nodemem.kernel.oom import Domain, Generation, Outcome, Prediction, Rules, Task
from nodemem.kernel.oomexposure import Reason
from nodemem.node import advice
from nodemem.node.adj import PROTECTED_AT_MOST
from nodemem.node.oomdomains import Node, Place, ProcessFigures, Scope, domain
from nodemem.node.owners import QosClass

IMMINENT_AT_PERCENT = 90.0
"""Of the limit: what must be in use, page cache not counted, for an exposure to be imminent."""


class Severity(StrEnum):
    IMMINENT = "Imminent"
    HIGH = "High"
    LOW = "Low"


@dataclass(frozen=True, slots=True)
class ContainerOutlook:
    """What an OOM of one container's (or pod's) own limit comes to.

    ``hit_first``: for what runs in it this limit has less room than the other one (a container's or its pod's).
    ``committed_bytes`` is usage without page cache. ``outcome``, ``predicted_victim``, ``largest``, ``right`` and
    ``exposed`` are None where there is no limit, or it can't be told; ``note`` then says why. ``possible_victims`` has
    more than one pid where the order that decides can't be seen. ``whole_group``: the memory cgroup that dies as a
    whole (memory.oom.group). ``reasons`` are kinds of ``oomexposure.Reason``.
    """

    scope: Scope
    path: str
    container_id: str | None
    pod_uid: str | None
    qos: QosClass | None
    protected: bool
    sandbox: bool
    limit_bytes: int | None
    usage_bytes: int | None
    committed_bytes: int | None
    hit_first: bool
    processes: int
    killable: int
    outcome: Outcome | None
    predicted_victim: ProcessFigures | None
    possible_victims: tuple[int, ...]
    largest: ProcessFigures | None
    right: bool | None
    whole_group: str | None
    reasons: tuple[str, ...]
    exposed: bool | None
    note: str
    oom_kill_events: int | None

    @property
    def used_percent(self) -> float | None:
        """Of the limit, page cache not counted."""
        if not self.limit_bytes or self.committed_bytes is None:
            return None
        return 100 * self.committed_bytes / self.limit_bytes


@dataclass(frozen=True, slots=True)
class Exposure:
    """An exposed container or pod. ``evidence`` has the kernel module's numbers for each of ``outlook.reasons``."""

    outlook: ContainerOutlook
    severity: Severity
    evidence: tuple[Reason, ...]
    mitigation: advice.MitigationAdvice
    message: str


@dataclass(frozen=True, slots=True)
class _Case:
    """One generation's answer for one domain."""

    domain: Domain
    rules: Rules
    prediction: Prediction
    reasons: tuple[Reason, ...]


def assess(
    places: Sequence[Place], node: Node, *, imminent_at_percent: float = IMMINENT_AT_PERCENT
) -> tuple[list[ContainerOutlook], list[Exposure]]:
    """Outlooks in the order of ``places``; exposures of the limits that are hit first, the most pressing ones first:
    Guaranteed and system-node-critical before others, then by severity and by how full they are."""
    first = _hit_first(places)
    outlooks, exposures = [], []
    all_rules = node.rules()
    for place in places:
        cases = _cases(place, node, all_rules)
        outlook = _outlook(place, node, cases, first[place.path])
        outlooks.append(outlook)
        if outlook.exposed and outlook.hit_first:
            exposures.append(_exposure(place, node, cases, outlook, imminent_at_percent))
    urgency = list(Severity)
    exposures.sort(
        key=lambda each: (
            not each.outlook.protected,
            urgency.index(each.severity),
            -(each.outlook.used_percent or 0),
            each.outlook.path,
        )
    )
    return outlooks, exposures


def _hit_first(places: Sequence[Place]) -> dict[str, bool]:
    """By path: whether this limit is the one that ends the growth of something in it.

    A charge goes to a container and to its pod alike, so the one with less room is hit first. Where the pod's limit is
    not the larger one it always is: its usage includes the container's.
    """
    pods = {place.pod_uid: place for place in places if place.scope == "pod"}
    first = dict.fromkeys((place.path for place in places), False)
    alone = {place.path for place in pods.values()}
    for place in places:
        if place.scope == "pod":
            continue
        pod = pods.get(place.pod_uid)
        if pod is not None and not place.path.startswith(f"{pod.path}/"):
            pod = None
        if pod is not None and not place.sandbox:
            alone.discard(pod.path)
        if place.limit_bytes is None:
            nearest = pod
        elif pod is None or pod.limit_bytes is None:
            nearest = place
        elif pod.limit_bytes <= place.limit_bytes:
            nearest = pod
        else:
            room, pod_room = place.room_bytes, pod.room_bytes
            nearest = pod if room is not None and pod_room is not None and pod_room < room else place
        if nearest is not None and not (place.sandbox and nearest is pod):
            first[nearest.path] = True
    return first | dict.fromkeys(alone, True)


def _cases(place: Place, node: Node, all_rules: Mapping[Generation, Rules]) -> dict[Generation, _Case]:
    """Empty where there is no limit, or no cgroup."""
    found = {}
    for generation, rules in all_rules.items():
        its_domain = domain(place, node, rules)
        prediction = None if its_domain is None else oom.predict_domain(its_domain, rules)
        if its_domain is None or prediction is None:
            continue
        reasons = oomexposure.exposure_reasons(its_domain, rules, prediction)
        if prediction.unknown:  # any of these may be the victim: only what no choice changes is certain
            reasons = tuple(
                each for each in reasons if isinstance(each, oomexposure.TmpfsHeld | oomexposure.Unkillable)
            )
        found[generation] = _Case(its_domain, rules, prediction, reasons)
    return found


def _outlook(place: Place, node: Node, cases: Mapping[Generation, _Case], hit_first: bool) -> ContainerOutlook:
    sure = _agreed([case.prediction for case in cases.values()])
    some = next(iter(cases.values()), None)
    kinds = _common_kinds(cases)
    exposed: bool | None = False
    if kinds:
        exposed = True
    elif any(case.reasons or case.prediction.unknown for case in cases.values()):
        exposed = None
    by_pid = {each.pid: each for each in some.prediction.ranking} if some else {}

    def figures(pid: int | None) -> ProcessFigures | None:
        if pid is None or pid not in by_pid:
            return None
        return node.figures(by_pid[pid].task, by_pid[pid].points if len(cases) == 1 else None)

    ordinary = [task for task in place.tasks if task.pid not in place.sandbox_pids]
    predictions = [case.prediction for case in cases.values()]
    return ContainerOutlook(
        scope=place.scope,
        path=place.path,
        container_id=place.container_id,
        pod_uid=place.pod_uid,
        qos=place.qos,
        protected=place.qos == "Guaranteed" or any(_is_protected(task) for task in ordinary),
        sandbox=place.sandbox,
        limit_bytes=place.limit_bytes,
        usage_bytes=place.usage_bytes,
        committed_bytes=place.committed_bytes,
        hit_first=hit_first,
        processes=len(place.tasks),
        killable=sum(oom.why_unkillable(task) is None for task in place.tasks),
        outcome=some.prediction.outcome if some else None,
        predicted_victim=figures(sure.predicted) if sure else None,
        possible_victims=tuple(dict.fromkeys(pid for each in predictions for pid in each.victims)),
        largest=figures(some.prediction.largest) if some else None,
        right=sure.right if sure else None,
        whole_group=sure.group if sure else None,
        reasons=kinds,
        exposed=exposed,
        note=_note(place, node, cases, sure, exposed),
        oom_kill_events=place.cgroup.oom_kill_events if place.cgroup else None,
    )


def _is_protected(task: Task) -> bool:
    adj = task.oom_score_adj
    return adj is not None and oom.OOM_SCORE_ADJ_MIN < adj <= PROTECTED_AT_MOST


def _agreed(predictions: Sequence[Prediction]) -> Prediction | None:
    """One of them, if all kill the same process."""
    same = {(each.outcome, each.predicted, each.right) for each in predictions}
    return predictions[0] if len(same) == 1 else None


def _common_kinds(cases: Mapping[Generation, _Case]) -> tuple[str, ...]:
    """The reasons that hold for every generation the kernel may be of."""
    kinds = [list(dict.fromkeys(each.kind for each in case.reasons)) for case in cases.values()]
    return tuple(kind for kind in kinds[0] if all(kind in others for others in kinds)) if kinds else ()


def _note(
    place: Place, node: Node, cases: Mapping[Generation, _Case], sure: Prediction | None, exposed: bool | None
) -> str:
    """What a reader should know that the figures don't say; empty if nothing."""
    if place.cgroup is None:
        return "its cgroup could not be read" if node.version else "no memory controller to be reached"
    if place.limit_bytes is None:
        return "no limit of its own"
    if not place.tasks:
        return "no processes"
    case = next(iter(cases.values()))
    prediction = case.prediction
    match prediction.outcome:
        case Outcome.HANGS:
            return "oom_kill_disable is set: nobody is killed, processes wait until the limit is raised"
        case Outcome.PANICS:
            return "vm.panic_on_oom is 2: the machine panics"
        case Outcome.NOBODY:
            return "no process can be killed: allocations fail or wait"
    if prediction.unknown:
        return f"oom_score_adj of {advice.count(len(prediction.unknown), 'process', 'processes')} can't be read"
    if sure is None:
        said = ", ".join(f"{generation}: {_whom(each)}" for generation, each in cases.items())
        return f"depends on the kernel's generation, which is unknown ({said})"
    if exposed:
        return ""
    if sure.group is not None:
        return "memory.oom.group is set: the whole cgroup dies, whoever is chosen"
    killable = sum(each.points is not None for each in sure.ranking)
    if killable == 1:
        return "one process that can be killed: no choice to make"
    if sure.right and sure.tied > 1 and case.rules.clamp and sure.ranking[0].points == 1:
        return f"right by luck: {sure.tied} processes score 1, and the order in which they started decides"
    if sure.right is False:
        return "the victim counts more pages (shared memory, mapped files), but its death frees less"
    return ""


def _whom(case: _Case) -> str:
    task = _task(case, case.prediction.predicted)
    return "unknown" if task is None else f"{task.name} ({task.pid})"


def _task(case: _Case, pid: int | None) -> Task | None:
    return next((task for task in case.domain.tasks if task.pid == pid), None)


def _exposure(
    place: Place,
    node: Node,
    cases: Mapping[Generation, _Case],
    outlook: ContainerOutlook,
    imminent_at_percent: float,
) -> Exposure:
    case = next(iter(cases.values()))
    evidence = tuple(each for each in case.reasons if each.kind in outlook.reasons)
    mitigation = advice.mitigation(case.domain, node, case.rules, evidence)
    used = outlook.used_percent
    severity = Severity.HIGH if outlook.protected else Severity.LOW
    if used is not None and used >= imminent_at_percent:
        severity = Severity.IMMINENT
    message = advice.message(place, node, case.domain, evidence, mitigation)
    return Exposure(outlook, severity, evidence, mitigation, message)
