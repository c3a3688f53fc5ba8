"""Policies, nodes and reports in few words, for the tests of ``nodemem.policy``."""

from typing import Any

from nodemem.api.types import (
    Adjust,
    LabelSelector,
    LimitMode,
    Rollout,
    TmpfsLimit,
    TmpfsPolicySpec,
    TmpfsRule,
)
from nodemem.node.status import LimitState, LimitStatus, Scope
from nodemem.policy.limits import Limiter, Mount, Node, NodeLimits, Policy

MiB = 1 << 20
GiB = 1 << 30


def rule(path: str | None = "/run", size: int | str = "2Gi", scope: Scope = "Host", **more: Any) -> TmpfsRule:
    return TmpfsRule(scope, size, path=path, **more)


def policy(
    name: str,
    *rules: TmpfsRule,
    mode: LimitMode = "Enforce",
    priority: int = 0,
    labels: dict[str, str] | None = None,
    deleting: bool = False,
    **more: Any,
) -> Policy:
    spec = TmpfsPolicySpec(
        rules=rules or (rule(),), mode=mode, priority=priority, node_selector=LabelSelector(labels), **more
    )
    return Policy(name, spec, deleting)


def node(name: str = "n1", *mounts: Mount, memory_bytes: int | None = 64 * GiB, **more: Any) -> Node:
    return Node(name, memory_bytes=memory_bytes, mounts=mounts or (Mount("/run", "Host", 16 * GiB, GiB),), **more)


def limits(policies: list[Policy], where: Node) -> NodeLimits:
    return Limiter(policies).limits(where)


def one(policies: list[Policy], where: Node) -> TmpfsLimit:
    found = limits(policies, where).limits
    assert found is not None
    (limit,) = found
    return limit


def limit(
    mount_point: str = "/run",
    size_bytes: int = 2 * GiB,
    policy: str | None = "a",
    mode: LimitMode = "Enforce",
    adjust: Adjust = "Shrink",
) -> TmpfsLimit:
    return TmpfsLimit(mount_point, "Host", size_bytes, mode, adjust, 10, policy=policy)


def answer(to: TmpfsLimit, state: LimitState = "InSync", message: str | None = None) -> LimitStatus:
    return LimitStatus(to.mount_point, to.size_bytes, to.size_bytes, 16 * GiB, state, None, message, to.policy)


def rollout(max_concurrent: int | str = 1, max_failures: int = 1) -> Rollout:
    return Rollout(max_concurrent, max_failures)
