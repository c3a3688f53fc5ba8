"""The condition Mitigated of an OomExposure: what was asked for, what the agent did, and whether it helps. Pure."""

from collections.abc import Sequence

from nodemem.node.status import Condition, ExposureStatus, OomMitigationStatus

MITIGATED = "Mitigated"


def condition(
    exposed: Sequence[ExposureStatus], said: Sequence[OomMitigationStatus], policy: str | None, *, stale: bool
) -> Condition | None:
    """``said``: the agent's answers for this pod. ``policy``: the OomPolicy that asks for it, if one does. None where
    nothing was asked for or done."""
    if stale:
        # The agent is silent: what it said last is in the report, and may be so no more.
        return Condition(MITIGATED, "Unknown", "ReportStale", "The node's agent is silent.", "") if said else None
    with_value = [each for each in said if each.oom_score_adj is not None]
    clamped = any("ClampedBadness" in each.reasons for each in exposed)
    if not with_value and (policy is None or not clamped):
        return None  # against other reasons no value helps
    if policy is None:
        return _no("Restoring", f"No OomPolicy asks for it any more. {_sentences(with_value)}")
    if all(each.mitigated for each in exposed):
        return Condition(MITIGATED, "True", "Applied", f"By OomPolicy {policy}: {_values(with_value)}.", "")
    for state, fallback in (("Failed", "Failed"), ("Pending", "Pending")):
        found = [each for each in said if each.state == state]
        if found:
            return _no(found[0].reason or fallback, _sentences(found))
    if any(each.mitigation is not None for each in exposed) and not with_value:
        return _no("Pending", f"OomPolicy {policy} asks for it; the node's agent has not answered yet.")
    if with_value:
        others = sum(each.others or 0 for each in with_value)
        left = f" Processes that keep a value of their own: {others}." if others else ""
        text = f"By OomPolicy {policy}: {_values(with_value)}. Still the kernel would choose wrong.{left}"
        return _no("StillExposed", text)
    return _no("NoValue", f"OomPolicy {policy} asks for it, but there is no oom_score_adj that helps here.")


def _no(reason: str, message: str) -> Condition:
    return Condition(MITIGATED, "False", reason, message[:1024], "")


def _values(said: Sequence[OomMitigationStatus]) -> str:
    return "; ".join(
        f"oom_score_adj {each.oom_score_adj} in place of the kubelet's {each.kubelet_oom_score_adj} in {_name(each)}"
        for each in said
    )


def _sentences(said: Sequence[OomMitigationStatus]) -> str:
    return " ".join(f"{_name(each)}: {each.message or each.state}" for each in said)


def _name(each: OomMitigationStatus) -> str:
    return each.name or f"container {each.container_id[:12]}"
