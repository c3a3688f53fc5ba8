"""Which pods each node is to mitigate, from OomPolicies and what the nodes say. Pure.

A pod comes in when it is exposed and there is a value that helps, and stays while an OomPolicy asks for it: exposures
come and go with each short-lived process, and values that went back and forth with them would help nobody. It goes when
no policy asks for it any more, when it is gone, and when its node says that it needs no value.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping

from nodemem.api.types import MOST_MITIGATIONS, OomMitigation
from nodemem.controller.exposures import Pod, PodKey, Policy, Report, asks_for_namespaces, policy_for

Candidate = tuple[PodKey, str]
"""A pod's key, and the UID that the node knows it by."""


def candidates(report: Report) -> Iterator[Candidate]:
    """Pods of a node that are mitigated, and those that could be."""
    for held in report.mitigations:
        yield (held.pod_namespace, held.pod_name), held.pod_uid
    for each in report.exposures or ():
        if each.mitigation is not None and each.pod_namespace and each.pod_name and each.pod_uid:
            yield (each.pod_namespace, each.pod_name), each.pod_uid


def pods_needed(reports: Iterable[Report], policies: Iterable[Policy]) -> dict[PodKey, set[str]]:
    """Pods to look up, with the UIDs that reports give them. Without a policy that mitigates, those that are."""
    found: dict[PodKey, set[str]] = {}
    asked = any(each.spec.mode == "Mitigate" for each in policies)
    for report in reports:
        if asked or report.mitigations:
            for key, uid in candidates(report):
                found.setdefault(key, set()).add(uid)
    return found


def wanted(
    report: Report,
    pods: Mapping[PodKey, Pod | None],
    namespaces: Mapping[str, Mapping[str, str]],
    policies: Collection[Policy],
    unread: Collection[str],
) -> tuple[OomMitigation, ...]:
    """What the spec of one node should have; ``pods`` and ``namespaces`` as for ``exposures.wanted``. ``unread``:
    policies that can't be understood keep what they have. What can't be decided now stays as it is."""
    held = {each.pod_uid: each for each in report.mitigations}
    by_namespace = asks_for_namespaces(policies)
    exposed = {each.pod_uid for each in report.exposures or () if each.mitigation is not None}
    found: dict[str, OomMitigation] = {}
    for key, uid in candidates(report):
        if uid in found:
            continue
        has = held.get(uid)
        pod = pods.get(key)
        if key not in pods or (pod is not None and by_namespace and key[0] not in namespaces):
            if has is not None:
                found[uid] = has
            continue
        if pod is None or pod.node_name != report.node_name or not pod.known_as(uid):
            continue
        if has is not None and has.policy in unread:
            found[uid] = has
            continue
        policy = policy_for(pod, namespaces.get(key[0], {}), policies)
        if policy is None or policy.spec.mode != "Mitigate":
            continue
        if uid not in exposed and _needs_none(report, uid):
            continue
        found[uid] = OomMitigation(uid, key[0], key[1], policy.name)
    return tuple(sorted(list(found.values())[:MOST_MITIGATIONS], key=lambda each: (each.pod_namespace, each.pod_name)))


def _needs_none(report: Report, uid: str) -> bool:
    states = {each.state for each in report.mitigated if each.pod_uid == uid}
    return states == {"NotNeeded"}
