"""Which limits a node is to hold: TmpfsPolicies and what is known of the node in, the entries of its report's spec out.

For each mount, each policy that selects the node speaks through the first of its rules that fits. Of several policies

- one that is enforced always comes before one in Audit, whatever the priorities: an audit changes nothing, so it can't
  take a mount from an enforced limit (what it would do is counted, see ``audit``);
- then the higher priority wins, then the smaller size. Two of the same priority that don't want the same are a
  conflict, told on both.

Cost: labels are looked at once for each combination of values that the selectors tell apart, paths and sizes once for
each combination of policies; a mount then costs a few lookups. N nodes with M mounts each under P policies take
O(N * M + P) and not O(N * M * P).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, TypeVar

from nodemem.api.types import Adjust, LimitMode, TmpfsLimit, TmpfsPolicySpec, TmpfsRule
from nodemem.node.status import OnDelete, Scope
from nodemem.node.units import parse_size
from nodemem.policy import globs, reclaim
from nodemem.policy.selectors import keys, selects, selects_all
from nodemem.policy.sizes import LARGEST_LIMIT_BYTES as LARGEST_LIMIT_BYTES
from nodemem.policy.sizes import target_bytes as target_bytes
from nodemem.policy.sizes import whole_pages as whole_pages

SHM_SIZE = "nodemem.io/shm-size"
"""Annotation of a pod: the size of /dev/shm it asks for."""
MOST_LIMITS = 128
"""Of one node; as many as its report's spec takes."""
_LONGEST_MOUNT_POINT = 1024
_MOST_REMEMBERED = 65536
_ADJUSTS = ("Shrink", "Exact", "Grow")
_NONE: Mapping[str, str] = {}
_K = TypeVar("_K")
_V = TypeVar("_V")

Why = Literal["NoMemory", "NoPodLimit", "BadAnnotation", "AnnotationCapped", "Unnameable"]


@dataclass(frozen=True, slots=True)
class Policy:
    """``deleting``: it has a deletion timestamp, and wants nothing any more."""

    name: str
    spec: TmpfsPolicySpec
    deleting: bool = False


@dataclass(frozen=True, slots=True)
class Mount:
    """A tmpfs of the node's report; ``mount_point`` is on the node. ``pod_uid``: whose it is; None where unknown."""

    mount_point: str
    scope: Scope
    size_bytes: int | None = None
    used_bytes: int | None = None
    pod_uid: str | None = None
    unlimited: bool = False


@dataclass(frozen=True, slots=True)
class Pod:
    """``memory_limit_bytes`` None: it has none. ``shm_size``: its annotation, as written."""

    namespace: str
    labels: Mapping[str, str] = field(default_factory=dict)
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    memory_limit_bytes: int | None = None
    shm_size: str | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """What is known of a node.

    ``mounts`` None: its agent has not said. ``complete``: these are all the tmpfs there are; a report lists only the
    largest. ``pods``: by uid; None for one that is gone, absent where it has not been looked up (``pods_needed``).
    ``held``: spec.tmpfsLimits now, without those of which the agent says that they are mounted no more.
    ``freeable``: what its agent says that reclaim would free, by policy.
    """

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    memory_bytes: int | None = None
    mounts: tuple[Mount, ...] | None = ()
    pods: Mapping[str, Pod | None] = field(default_factory=dict)
    page_size_bytes: int = 4096
    complete: bool = True
    held: tuple[TmpfsLimit, ...] = ()
    freeable: Mapping[str, int] = field(default_factory=dict)


class Sized(NamedTuple):
    """What one policy wants of one mount. ``rule`` is the index in spec.rules."""

    policy: str
    rule: int
    priority: int
    mode: LimitMode
    adjust: Adjust
    size_bytes: int
    headroom_percent: int
    on_delete: OnDelete = "Restore"


class Trial(NamedTuple):
    """What a policy in Audit would come to if it were enforced. ``overruled_by``: the policy that would win still."""

    wanted: Sized
    overruled_by: str | None


class Note(NamedTuple):
    """Why a rule gave no limit, or not the one that was asked for."""

    policy: str
    rule: int
    why: Why
    detail: str = ""


class Resolution(NamedTuple):
    """The answer for one mount. ``wanted``: of every policy that has a rule for it, the winner first."""

    wanted: tuple[Sized, ...]
    conflicts: tuple[tuple[str, ...], ...]
    trials: tuple[Trial, ...]
    notes: tuple[Note, ...]


_NOTHING = Resolution((), (), (), ())


@dataclass(frozen=True, slots=True)
class NodeLimits:
    """The outcome for a node. ``selected``: the policies whose selector selects it, also those being deleted.

    ``limits``, sorted by mount point, each at most once: what spec.tmpfsLimits is to become; None where nothing is
    known of the node's mounts: leave it as it is. ``gone``: mount points in ``held`` that are no more. ``undecided``:
    mounts whose pod has to be looked up first; what they hold, they keep. ``left_out``: limits beyond what a report
    takes. ``reclaimed``: what spec.reclaim is to become, whether the mounts are known or not.
    """

    node: str
    selected: tuple[str, ...]
    limits: tuple[TmpfsLimit, ...] | None
    resolved: tuple[tuple[Mount, Resolution], ...] = ()
    gone: frozenset[str] = frozenset()
    undecided: int = 0
    left_out: int = 0
    reclaimed: reclaim.Reclaimed = reclaim.Reclaimed()
    freeable: Mapping[str, int] = field(default_factory=dict)


class _Rule(NamedTuple):
    policy: Policy
    number: int
    rule: TmpfsRule
    headroom_percent: int
    size: str
    largest: str | None
    """The end of the range for a pod's annotation; None: no annotation counts."""

    @property
    def blind(self) -> bool:
        """The pod makes no difference."""
        return (
            selects_all(self.rule.pod_selector)
            and selects_all(self.rule.namespace_selector)
            and not self.size.endswith("%")
            and self.largest is None
        )


_Rules = tuple[_Rule, ...]


class Limiter:
    """The policies, prepared for many nodes; keep it for as long as they stay the same.

    Raises ValueError with a sentence for a policy that the API server should have refused: try each with ``check``.
    """

    def __init__(self, policies: Iterable[Policy]) -> None:
        self._policies = tuple(sorted(policies, key=lambda each: each.name))
        self._rules = {each.name: () if each.deleting else _rules(each) for each in self._policies}
        self._claims = {
            each.name: () if each.deleting else reclaim.claims(each.name, each.spec) for each in self._policies
        }
        self._node_keys = keys(each.spec.node_selector for each in self._policies)
        self._groups: dict[tuple[str | None, ...], _Group] = {}
        self._same: dict[tuple[str, ...], _Group] = {}

    def group(self, labels: Mapping[str, str]) -> "_Group":
        signature = tuple(map(labels.get, self._node_keys))
        found = self._groups.get(signature)
        if found is None:
            chosen = tuple(each for each in self._policies if selects(each.spec.node_selector, labels))
            names = tuple(each.name for each in chosen)
            if names not in self._same:
                claims = [claim for name in names for claim in self._claims[name]]
                self._same[names] = _Group(names, [self._rules[name] for name in names], reclaim.resolve(claims))
            found = self._same[names]
            self._groups[signature] = found
        return found

    def pods_needed(self, node: Node) -> frozenset[str]:
        """Uids of the pods that have to be looked up for this node."""
        group = self.group(node.labels)
        return frozenset(
            each.pod_uid
            for each in node.mounts or ()
            if each.pod_uid is not None and each.scope in group.scopes and each.scope not in group.blind
        )

    def limits(self, node: Node) -> NodeLimits:
        group = self.group(node.labels)
        if node.mounts is None:
            return NodeLimits(node.name, group.names, None, reclaimed=group.reclaimed)
        return _limits(group, node)


def check(policy: Policy) -> None:
    """Raises ValueError with a sentence where the policy makes no sense."""
    for each in _rules(policy):
        parse_size(each.size, whole_bytes=1 << 30)
        if each.largest is not None:
            parse_size(each.largest, whole_bytes=1 << 30)
    reclaim.claims(policy.name, policy.spec)


def _rules(policy: Policy) -> _Rules:
    spec = policy.spec
    headroom = str(spec.headroom).removesuffix("%")
    if not (headroom.isascii() and headroom.isdigit() and int(headroom) <= 100):
        raise ValueError(f"headroom {str(spec.headroom)[:64]!r}: write a whole percentage from 0% to 100%, such as 10%")
    prepared = []
    for index, rule in enumerate(spec.rules):
        largest = rule.max_size
        prepared.append(
            _Rule(policy, index, rule, int(headroom), str(rule.size), None if largest is None else str(largest))
        )
    return tuple(prepared)


@dataclass(slots=True, eq=False)
class _Chosen:
    """The rules that fit a mount, with the answers they gave before."""

    rules: _Rules
    _resolved: dict[tuple[int | None, str | None, int], Resolution] = field(default_factory=dict)

    def resolve(self, whole_bytes: int | None, asked: str | None, page_size_bytes: int) -> Resolution:
        key = (whole_bytes, asked, page_size_bytes)
        found = self._resolved.get(key)
        if found is None:
            found = _remember(self._resolved, key, _resolve(self.rules, whole_bytes, asked, page_size_bytes))
        return found


class _Group:
    """The rules of all policies that select the same nodes, with the answers they gave before."""

    def __init__(self, names: tuple[str, ...], rules: Iterable[_Rules], reclaimed: reclaim.Reclaimed) -> None:
        self.names = names
        self.reclaimed = reclaimed
        of_all = [rule for each in rules for rule in each]
        self.by_scope: dict[str, _Rules] = {
            scope: tuple(rule for rule in of_all if rule.rule.scope == scope)
            for scope in ("Host", "EmptyDir", "SharedMemory")
        }
        self.scopes = frozenset(scope for scope, found in self.by_scope.items() if found)
        self.blind = frozenset(
            scope for scope in self.scopes if scope != "Host" and all(rule.blind for rule in self.by_scope[scope])
        )
        paths = {rule.rule.path or "" for rule in self.by_scope["Host"]}
        self.named_paths = tuple(sorted(path for path in paths if path and not globs.is_glob(path)))
        pod_rules = self.by_scope["EmptyDir"] + self.by_scope["SharedMemory"]
        self._pod_keys = keys(rule.rule.pod_selector for rule in pod_rules)
        self._namespace_keys = keys(rule.rule.namespace_selector for rule in pod_rules)
        self._chosen: dict[tuple[tuple[str, int], ...], _Chosen] = {}
        self._by_path: dict[str, _Chosen] = {}
        self._by_pod: dict[tuple[object, ...], _Chosen] = {}
        self._limits: dict[tuple[str, Sized], TmpfsLimit] = {}

    def on_host(self, path: str) -> _Chosen:
        found = self._by_path.get(path)
        if found is None:
            rules = (each for each in self.by_scope["Host"] if globs.matches(each.rule.path or "", path))
            found = _remember(self._by_path, path, self._choose(rules))
        return found

    def of_pod(self, scope: Scope, path: str, pod: Pod | None) -> _Chosen:
        """``pod`` None: only for a blind scope."""
        labels, namespace_labels = (pod.labels, pod.namespace_labels) if pod is not None else (_NONE, _NONE)
        signature = (
            scope,
            tuple(map(labels.get, self._pod_keys)),
            tuple(map(namespace_labels.get, self._namespace_keys)),
        )
        found = self._by_pod.get(signature)
        if found is None:
            rules = (
                each
                for each in self.by_scope[scope]
                if selects(each.rule.pod_selector, labels) and selects(each.rule.namespace_selector, namespace_labels)
            )
            found = _remember(self._by_pod, signature, self._choose(rules))
        if scope == "SharedMemory" or all(each.rule.path is None for each in found.rules):
            return found
        return self._choose(
            each for each in found.rules if each.rule.path is None or globs.matches(each.rule.path, path)
        )

    def limit(self, mount: Mount, winner: Sized) -> TmpfsLimit:
        """Nodes share the limits of their own mounts; a pod's are of one node alone."""
        if mount.scope != "Host":
            return _limit(mount, winner)
        key = (mount.mount_point, winner)
        found = self._limits.get(key)
        if found is None:
            found = _remember(self._limits, key, _limit(mount, winner))
        return found

    def _choose(self, rules: Iterable[_Rule]) -> _Chosen:
        listed = tuple(rules)
        which = tuple((each.policy.name, each.number) for each in listed)
        found = self._chosen.get(which)
        return _remember(self._chosen, which, _Chosen(listed)) if found is None else found


def _remember(memo: dict[_K, _V], key: _K, value: _V) -> _V:
    """What is remembered is bounded: the keys come from nodes and pods."""
    if len(memo) >= _MOST_REMEMBERED:
        memo.clear()
    memo[key] = value
    return value


def _limits(group: _Group, node: Node) -> NodeLimits:
    mounts = node.mounts or ()
    present = {each.mount_point for each in mounts}
    unseen = [each for each in node.held if each.mount_point not in present]
    kept: dict[str, TmpfsLimit] = {}
    if not node.complete:
        on_host = {each.mount_point for each in unseen if each.scope == "Host"}
        on_host.update(path for path in group.named_paths if path not in present)
        mounts = (*mounts, *(Mount(path, "Host") for path in on_host))
        kept = {each.mount_point: again for each in unseen if (again := _again(group, each)) is not None}
    undecided = 0
    resolved: list[tuple[Mount, Resolution]] = []
    held = {each.mount_point: each for each in node.held} if group.scopes else {}
    for mount in _distinct(mounts):
        if mount.scope not in group.scopes:
            continue
        resolution = _of_mount(group, node, mount)
        if resolution is None:
            undecided += 1
            before = held.get(mount.mount_point)
            if before is not None and (again := _again(group, before)) is not None:
                kept[mount.mount_point] = again
        elif resolution.wanted or resolution.notes:
            resolved.append((mount, resolution))
    resolved.sort(key=lambda each: each[0].mount_point)
    limits, left_out = _bounded(group, resolved, kept, held)
    gone = frozenset(each.mount_point for each in unseen) if node.complete else frozenset[str]()
    return NodeLimits(
        node.name,
        group.names,
        limits,
        tuple(resolved),
        gone,
        undecided,
        left_out,
        group.reclaimed,
        node.freeable,
    )


def _of_mount(group: _Group, node: Node, mount: Mount) -> Resolution | None:
    """None: the pod isn't known yet."""
    if mount.scope == "Host":
        resolution = group.on_host(mount.mount_point).resolve(node.memory_bytes, None, node.page_size_bytes)
    else:
        pod = None if mount.pod_uid is None else node.pods.get(mount.pod_uid)
        if pod is None and mount.scope not in group.blind:
            return _NOTHING if mount.pod_uid is None or mount.pod_uid in node.pods else None
        chosen = group.of_pod(mount.scope, mount.mount_point, pod)
        resolution = chosen.resolve(
            None if pod is None else pod.memory_limit_bytes,
            pod.shm_size if pod is not None and mount.scope == "SharedMemory" else None,
            node.page_size_bytes,
        )
    if resolution.wanted and not _nameable(mount.mount_point):
        notes = tuple(Note(each.policy, each.rule, "Unnameable") for each in resolution.wanted)
        return Resolution((), (), (), notes)
    return resolution


def _again(group: _Group, held: TmpfsLimit) -> TmpfsLimit | None:
    """A limit of a mount of which nothing is known now: as it is, for as long as its policy has such a rule here."""
    if held.scope == "Host":
        return None  # resolved like any other: it takes nothing but the path
    rule = next((each for each in group.by_scope[held.scope] if each.policy.name == held.policy), None)
    if rule is None:
        return None
    spec = rule.policy.spec
    return replace(held, mode=spec.mode, headroom_percent=rule.headroom_percent, on_delete=spec.on_delete)


def _distinct(mounts: Iterable[Mount]) -> Iterable[Mount]:
    """A spec names a mount by its mount point. Of several mounts at one, a pod's can't be told apart and are left out;
    the node's own are one to it: the one that is seen, of which the figures are known only where they agree."""
    found: dict[str, list[Mount]] = {}
    for each in mounts:
        found.setdefault(each.mount_point, []).append(each)
    for same in found.values():
        if len(same) == 1:
            yield same[0]
            continue
        on_host = {each for each in same if each.scope == "Host"}
        if len(on_host) == 1:
            yield from on_host
        elif on_host:
            yield Mount(same[0].mount_point, "Host")


def _resolve(rules: _Rules, whole_bytes: int | None, asked: str | None, page_size_bytes: int) -> Resolution:
    by_policy: dict[str, Sized] = {}
    notes: list[Note] = []
    for each in rules:
        if each.policy.name in by_policy:
            continue
        size = _size(each, whole_bytes, asked, notes)
        if size is not None:
            spec = each.policy.spec
            by_policy[each.policy.name] = Sized(
                each.policy.name,
                each.number,
                spec.priority,
                spec.mode,
                each.rule.adjust,
                whole_pages(size, page_size_bytes),
                each.headroom_percent,
                spec.on_delete,
            )
    wanted = sorted(by_policy.values(), key=_precedence)
    enforced = [sized for sized in wanted if sized.mode == "Enforce"]
    conflicts = {_tie(enforced), _tie(sorted(wanted, key=_precedence_alone))} - {()}
    trials = []
    for sized in wanted:
        if sized.mode == "Audit":
            best = min((*enforced, sized), key=_precedence_alone)
            trials.append(Trial(sized, None if best is sized else best.policy))
    return Resolution(tuple(wanted), tuple(sorted(conflicts)), tuple(trials), tuple(notes))


def _precedence_alone(each: Sized) -> tuple[int, int, int, int, str]:
    """As if all were enforced."""
    return (-each.priority, each.size_bytes, _ADJUSTS.index(each.adjust), -each.headroom_percent, each.policy)


def _precedence(each: Sized) -> tuple[object, ...]:
    return (each.mode != "Enforce", *_precedence_alone(each))


def _tie(ordered: list[Sized]) -> tuple[str, ...]:
    """The policies of the highest priority, by name, if they don't all want the same."""
    first = [each for each in ordered if each.priority == ordered[0].priority]
    if len({(each.size_bytes, each.adjust) for each in first}) < 2:
        return ()
    return tuple(sorted(each.policy for each in first))


def _size(rule: _Rule, whole_bytes: int | None, asked: str | None, notes: list[Note]) -> int | None:
    def amount(text: str) -> int | None:
        if text.endswith("%") and whole_bytes is None:
            why: Why = "NoMemory" if rule.rule.scope == "Host" else "NoPodLimit"
            notes.append(Note(rule.policy.name, rule.number, why))
            return None
        return parse_size(text, whole_bytes=whole_bytes)

    size = amount(rule.size)
    if size is None or asked is None or rule.largest is None or rule.rule.scope != "SharedMemory":
        return size
    try:
        wish = parse_size(asked)
    except ValueError as error:
        notes.append(Note(rule.policy.name, rule.number, "BadAnnotation", str(error)))
        return size
    most = amount(rule.largest)
    if most is None or wish <= size:
        return size
    if wish > most:
        notes.append(Note(rule.policy.name, rule.number, "AnnotationCapped", asked[:64]))
    return max(size, min(wish, most))


def _limit(mount: Mount, winner: Sized) -> TmpfsLimit:
    return TmpfsLimit(
        mount_point=mount.mount_point,
        scope=mount.scope,
        size_bytes=winner.size_bytes,
        mode=winner.mode,
        adjust=winner.adjust,
        headroom_percent=winner.headroom_percent,
        on_delete=winner.on_delete,
        policy=winner.policy,
    )


def _nameable(mount_point: str) -> bool:
    """Whether a report's spec takes it."""
    return (
        len(mount_point) <= _LONGEST_MOUNT_POINT
        and mount_point[:1] == "/"
        and not any(segment in ("", ".", "..") for segment in mount_point[1:].split("/"))
    )


def _bounded(
    group: _Group,
    resolved: list[tuple[Mount, Resolution]],
    kept: Mapping[str, TmpfsLimit],
    held: Mapping[str, TmpfsLimit],
) -> tuple[tuple[TmpfsLimit, ...], int]:
    """Sorted by mount point. Where there are too many: enforced, of the node's own, held already, most used first."""
    found = {
        mount.mount_point: (group.limit(mount, r.wanted[0]), mount.used_bytes) for mount, r in resolved if r.wanted
    }
    for mount_point, limit in kept.items():
        found.setdefault(mount_point, (limit, None))
    chosen = sorted(found)
    if len(chosen) > MOST_LIMITS:

        def importance(mount_point: str) -> tuple[object, ...]:
            limit, used_bytes = found[mount_point]
            return (limit.mode != "Enforce", limit.scope != "Host", mount_point not in held, -(used_bytes or 0))

        chosen = sorted(sorted(chosen, key=importance)[:MOST_LIMITS])
    return tuple(found[mount_point][0] for mount_point in chosen), len(found) - len(chosen)
