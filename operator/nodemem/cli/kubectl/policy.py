"""``kubectl nodemem policy``: what a policy does where, what it would do if it were enforced, and what comes next."""

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from nodemem.api.convert import read
from nodemem.api.resources import MEMORY_REPORT, OOM_POLICY, TMPFS_POLICY
from nodemem.api.types import LabelSelector, TmpfsPolicySpec, TmpfsPolicyStatus, TmpfsRule
from nodemem.cli.findingsview import STATE_STYLES, place, state_rank
from nodemem.cli.kubectl.cluster import Cluster, NotFound, Object, Trouble, similar
from nodemem.cli.kubectl.options import add_cluster, cluster_of
from nodemem.cli.kubectl.reports import why_stale
from nodemem.cli.options import add_output
from nodemem.cli.text import ONE_LINE, binary_size, dump, fitted, safe, show
from nodemem.node.status import Condition, LimitStatus, TmpfsStatus
from nodemem.policy.words import count

SHOWN = 20
"""Nodes and mounts listed, without -o wide."""

_WAITING = "Pending"
"""Of a limit that is asked for and that the agent has said nothing of yet."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "policy",
        help="what a policy does on each node, what Enforce would change, what is wrong, what comes next",
        description="A TmpfsPolicy in sentences: what it asks for, how far it is, each node's answer, what to do next. "
        "Of an OomPolicy: which pods it is for and how many of them are exposed. Without NAME: every policy.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="of a TmpfsPolicy or OomPolicy")
    add_output(parser, "table", "wide", "json", "yaml")
    add_cluster(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """0 done; 1 there is no such policy."""
    cluster = cluster_of(args)
    if args.name is None:
        return _list(cluster, args.output)
    found = _find(cluster, args.name)
    if args.output in ("json", "yaml"):
        dump(found, args.output)
    elif found["kind"] == OOM_POLICY.kind:
        show(*_oom_policy(found))
    else:
        answers = list(answers_of(cluster.items(MEMORY_REPORT.path()), found["metadata"]["name"]))
        show(*tmpfs_policy(found, answers, wide=args.output == "wide"), pipe_width=ONE_LINE)
    return 0


def _find(cluster: Cluster, name: str) -> Object:
    """A TmpfsPolicy of this name, else an OomPolicy. ``tmpfspolicy/NAME`` and ``oompolicy/NAME`` say which."""
    kind, slash, bare = name.rpartition("/")
    kinds = [
        each
        for each in (TMPFS_POLICY, OOM_POLICY)
        if not slash or kind.lower() in (each.plural, each.kind.lower(), each.short_name)
    ]
    if not kinds:
        raise Trouble(f"{name!r}: expected NAME, tmpfspolicy/NAME or oompolicy/NAME")
    for each in kinds:
        try:
            return cluster.named(each, bare)
        except NotFound:
            continue
    names = [each for resource in kinds for each in cluster.names(resource.path())]
    raise NotFound(f"there is no policy {bare!r}{similar(bare, names)}")


def _list(cluster: Cluster, output: str) -> int:
    found = [each for resource in (TMPFS_POLICY, OOM_POLICY) for each in cluster.items(resource.path())]
    if output in ("json", "yaml"):
        dump({"apiVersion": "v1", "kind": "List", "items": found}, output)
        return 0
    if not found:
        show(Text("There is no TmpfsPolicy and no OomPolicy."))
        return 0
    rows = []
    for each in found:
        condition = next(iter(_conditions(each, "Ready")), None)
        said = "" if condition is None else condition["message"]
        kind = "TmpfsPolicy" if "rules" in each.get("spec", {}) else "OomPolicy"
        rows.append([kind, safe(each["metadata"]["name"]), safe(each["spec"].get("mode", "")), safe(said)])
    columns = [("KIND", "left", 0), ("NAME", "text", 0), ("MODE", "left", 0), ("STATE", "text", 0)]
    show(fitted("", columns, rows), pipe_width=ONE_LINE)
    return 0


def _conditions(policy: Mapping[str, Any], kind: str) -> Iterator[Mapping[str, Any]]:
    return (each for each in policy.get("status", {}).get("conditions") or () if each.get("type") == kind)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a node was told of one tmpfs, and what it says. ``wanted_bytes`` None: the limit is being taken back.

    ``place``: the mount point, or of a pod its name. ``state`` of a node that is silent is what it said last.
    """

    node: str
    stale: bool
    mount_point: str
    place: str
    wanted_bytes: int | None
    said: LimitStatus | None
    state: str


def answers_of(reports: Iterable[Object], policy: str) -> Iterator[Answer]:
    for report in reports:
        status = report.get("status") or {}
        asked = {
            each["mountPoint"]: each["sizeBytes"]
            for each in report.get("spec", {}).get("tmpfsLimits") or ()
            if each.get("policy") == policy
        }
        said = {
            each["mountPoint"]: read(LimitStatus, each)
            for each in status.get("limits") or ()
            if each.get("mountPoint") in asked or each.get("policy") == policy
        }
        answered = status.get("observedGeneration") == report["metadata"].get("generation")
        for where in {**asked, **said}:
            limit = said.get(where)
            yield Answer(
                node=report["metadata"]["name"],
                stale=why_stale(report) is not None,
                mount_point=where,
                place=_place(where, status),
                wanted_bytes=asked.get(where),
                said=limit,
                state=limit.state if limit is not None and (answered or where not in asked) else _WAITING,
            )


def _place(mount_point: str, status: Mapping[str, Any]) -> str:
    for each in status.get("tmpfs") or ():
        if each.get("mountPoint") == mount_point:
            with suppress(ValueError):  # of another version: the mount point will do
                return place(mount_point, read(TmpfsStatus, each))
    return mount_point


def tmpfs_policy(policy: Object, answers: Sequence[Answer], *, wide: bool = False) -> Iterator[RenderableType]:
    name = policy["metadata"]["name"]
    try:
        spec = read(TmpfsPolicySpec, policy["spec"])
        status = read(TmpfsPolicyStatus, {"observedGeneration": None, "nodes": None} | (policy.get("status") or {}))
    except (ValueError, TypeError, AttributeError) as error:
        raise Trouble(f"policy {name} can't be read: {error}") from error
    deleting = "deletionTimestamp" in policy["metadata"]
    yield Text(safe(f"TmpfsPolicy {name}: {'being deleted' if deleting else spec.mode}"), style="bold")
    for sentence in asks(spec):
        yield Text(safe(f"  {sentence}"))
    yield ""
    yield from _state(policy, status)
    if status.problems:
        yield ""
        columns = [("NODE", "text", 0), ("STATE", "left", 0), ("WHAT", "text", 0)]
        rows: list[list[str | Text]] = [
            [safe(each.node_name), _styled(each.state), safe(each.message)] for each in status.problems
        ]
        yield fitted("Nodes that need a look", columns, rows)
    if answers:
        yield ""
        yield from _table(answers, wide)
    steps = list(_next(policy, spec, status, answers, deleting))
    if steps:
        yield ""
        yield Text("Next", style="bold")
        for step in steps:
            yield Text(safe(f"  {step}"))


def asks(spec: TmpfsPolicySpec) -> list[str]:
    """The specification in sentences."""
    nodes = _selector(spec.node_selector, "labels")
    said = [f"On {f'nodes with {nodes}' if nodes else 'every node'}:"]
    said += [f"- {_rule(each)}" for each in spec.rules]
    said.append(
        f"Never below what is in use plus {spec.headroom}; until that fits, a mount is left as it is (Deferred)."
    )
    rollout = (
        f"{spec.rollout.max_concurrent} of the nodes"
        if "%" in str(spec.rollout.max_concurrent)
        else (count(int(spec.rollout.max_concurrent), "node"))
    )
    said.append(f"{rollout} at a time; it stops at {count(spec.rollout.max_failures, 'failed node')}.")
    what = "the sizes found come back" if spec.on_delete == "Restore" else "the sizes stay until a reboot"
    said.append(f"When the policy is deleted, {what}.")
    return said


def _rule(rule: TmpfsRule) -> str:
    how = {"Shrink": "at most", "Grow": "at least", "Exact": "exactly"}[rule.adjust]
    if rule.scope == "Host":
        return f"{rule.path} {how} {rule.size}"
    what = (
        "/dev/shm"
        if rule.scope == "SharedMemory"
        else f"volumes of medium Memory{f' at {rule.path}' if rule.path else ''}"
    )
    pods, spaces = _selector(rule.pod_selector, "labels"), _selector(rule.namespace_selector, "labels")
    whose = f" with {pods}" if pods else ""
    where = f" in namespaces with {spaces}" if spaces else ""
    size = f"{rule.size} of the pod's memory limit" if "%" in str(rule.size) else str(rule.size)
    asked = f", or what the pod's annotation nodemem.io/shm-size asks for, to {rule.max_size}" if rule.max_size else ""
    return f"{what} of pods{whose}{where} {how} {size}{asked}"


def _selector(selector: LabelSelector | None, what: str) -> str:
    """``labels a=b, c in (d, e)``; empty where everything is selected."""
    if selector is None:
        return ""
    parts = [f"{key}={value}" for key, value in (selector.match_labels or {}).items()]
    for each in selector.match_expressions:
        values = f" ({', '.join(each.values)})" if each.values else ""
        verb = {"In": "in", "NotIn": "not in", "Exists": "exists", "DoesNotExist": "does not exist"}[each.operator]
        parts.append(f"{each.key} {verb}{values}")
    return f"{what} {', '.join(parts)}" if parts else ""


def _state(policy: Object, status: TmpfsPolicyStatus) -> Iterator[RenderableType]:
    if status.observed_generation != policy["metadata"].get("generation"):
        yield Text(
            "The controller has not looked at this version of the policy yet. Does it run? "
            "kubectl get pods -A -l app.kubernetes.io/component=controller",
            style="yellow",
        )
    if status.nodes is not None:
        nodes = status.nodes
        parts = {
            "in sync": nodes.in_sync,
            "audited": nodes.audit,
            "pending": nodes.pending,
            "deferred": nodes.deferred,
            "failed": nodes.failed,
        }
        said = ", ".join(f"{number:,} {words}" for words, number in parts.items() if number)
        yield Text(f"{count(nodes.matched, 'node')} matched{f': {said}' if said else ''}.")
    for each in status.conditions:
        if _worth_saying(each):
            style = "red" if each.type in ("Degraded", "Conflict") else ""
            yield Text(safe(f"{each.type}: {each.message}" if each.type != "Ready" else each.message), style=style)


def _worth_saying(condition: Condition) -> bool:
    """Ready says what is; the others only where they say something else."""
    if condition.type == "Progressing":
        return condition.status == "True" or condition.reason not in ("Complete", "Invalid")
    return condition.type == "Ready" or condition.status == "True"


def _table(answers: Sequence[Answer], wide: bool) -> Iterator[RenderableType]:
    ordered = sorted(answers, key=lambda each: (state_rank(each.state), each.node, each.mount_point))
    shown = ordered if wide else ordered[:SHOWN]
    columns = [
        ("NODE", "text", 0), ("TMPFS", "text", 0), ("STATE", "left", 0), ("NOW", "right", 2),
        ("WANTED", "right", 1), ("FOUND", "right", 3), ("WHAT", "text", 0),
    ]  # fmt: skip
    rows: list[list[str | Text]] = []
    for each in shown:
        said = each.said
        state = Text.assemble(_styled(each.state), (" (stale)", "yellow") if each.stale else "")
        rows.append(
            [
                safe(each.node),
                safe(each.place),
                state,
                "" if said is None or said.applied_bytes is None else binary_size(said.applied_bytes),
                "restore" if each.wanted_bytes is None else binary_size(each.wanted_bytes),
                "" if said is None or said.original_bytes is None else binary_size(said.original_bytes),
                safe((said.message if said is not None else None) or ""),
            ]
        )
    yield fitted("Node by node (FOUND: the size before nodemem changed it)", columns, rows)
    if len(shown) < len(ordered):
        yield Text(f"and {len(ordered) - len(shown):,} more: -o wide shows them", style="dim")


def _styled(state: str) -> Text:
    return Text(safe(state), style=STATE_STYLES.get(state, "yellow" if state in ("Stale", _WAITING) else ""))


def _next(
    policy: Object, spec: TmpfsPolicySpec, status: TmpfsPolicyStatus, answers: Sequence[Answer], deleting: bool
) -> Iterator[str]:
    name = policy["metadata"]["name"]
    by_state: dict[str, list[Answer]] = {}
    for each in answers:
        by_state.setdefault(each.state, []).append(each)
    if deleting:
        if answers:
            yield "It is gone when every node has its sizes back. A node that is gone for good: delete its Node object."
        return
    for each in by_state.get("Failed", ())[:1]:
        yield (
            f"Failed on {each.node}: the message above has the kernel's words. It is tried again when the limit is "
            "edited."
        )
    for each in by_state.get("Contested", ())[:1]:
        yield (
            f"Contested on {each.node}: find what sets {each.mount_point} back there (a cron job, a configuration "
            "tool, /etc/fstab), stop it, then edit the policy."
        )
    for each in by_state.get("Deferred", ())[:1]:
        yield f"Deferred on {each.node}: what fills {each.mount_point} is listed by kubectl nodemem why {each.node}"
    off = next((each for each in answers if each.said is not None and "--enforce" in (each.said.message or "")), None)
    if spec.mode == "Enforce" and off is not None:
        yield f"The agent of {off.node} may not resize: helm upgrade ... --reuse-values --set enforcement.enabled=true"
    if spec.mode == "Audit" and by_state.get("Audit") and (status.nodes is None or status.nodes.pending == 0):
        yield (
            "Do it: kubectl patch tmpfspolicy " + name + ' --type=merge --patch=\'{"spec":{"mode":"Enforce"}}\''
            " (the agents need enforcement.enabled=true)"
        )
    if spec.mode == "Enforce" and by_state.get("InSync"):
        back = "restores the sizes found" if spec.on_delete == "Restore" else "keeps the sizes until a reboot"
        yield f"Undo it: kubectl delete tmpfspolicy {name} ({back})"


def _oom_policy(policy: Object) -> Iterator[RenderableType]:
    name, spec, status = policy["metadata"]["name"], policy.get("spec") or {}, policy.get("status") or {}
    mode = spec.get("mode", "Flag")
    yield Text(safe(f"OomPolicy {name}: {mode}"), style="bold")
    pods = _selector(read(LabelSelector, spec.get("podSelector") or {}), "labels")
    spaces = _selector(read(LabelSelector, spec.get("namespaceSelector") or {}), "labels")
    whom = f"Pods{f' with {pods}' if pods else ''}{f' in namespaces with {spaces}' if spaces else ''}"
    imminent = "" if mode == "Ignore" else f"; imminent from {spec.get('imminentAt', '90%')} of the limit on"
    what = {
        "Ignore": "are not flagged, whatever the kernel would do",
        "Flag": "are flagged where the kernel would kill the wrong process",
        "Mitigate": "are flagged, and get the oom_score_adj that makes the kernel choose right, where it may be set",
    }.get(mode, mode)
    yield Text(safe(f"  {whom} {what}{imminent}."))
    yield Text(f"  Of two policies for a pod the higher priority wins; this one has {spec.get('priority', 0)}.")
    yield ""
    exposed, mitigated = status.get("exposed"), status.get("mitigated")
    yield Text("The controller has said nothing of it yet." if exposed is None else f"{count(exposed, 'pod')} exposed.")
    if mitigated is not None:
        yield Text(f"{count(mitigated, 'pod')} mitigated.")
    for each in status.get("conditions") or ():
        if each.get("message"):
            yield Text(safe(f"{each.get('type')}: {each['message']}"))
    if exposed:
        yield ""
        yield Text("Next", style="bold")
        yield Text("  Which, and what to do: kubectl nodemem exposed -A")
