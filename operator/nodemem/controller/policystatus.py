"""The status of an OomPolicy: how many pods it is about, and whether it does what it says. Pure."""

from collections.abc import Iterable
from typing import Literal

from nodemem.api.types import OomPolicyStatus
from nodemem.controller.exposures import Wanted
from nodemem.controller.records import OomPolicyRecord
from nodemem.node.status import Condition

READY, CONFLICT = "Ready", "Conflict"


def status(name: str, record: OomPolicyRecord, wanted: Iterable[Wanted], now: str) -> OomPolicyStatus:
    """``wanted``: all OomExposures. ``now``: RFC 3339."""
    every = list(wanted)
    mine = [each for each in every if each.policy == name]
    said = (_ready(record, mine), _conflict(name, every))
    before = {each.type: each for each in record.status.conditions} if record.status else {}
    return OomPolicyStatus(
        observed_generation=record.generation,
        exposed=len(mine),
        mitigated=sum(each.mitigated for each in mine),
        conditions=tuple(
            Condition(
                kind,
                state,
                reason,
                message[:1024],
                was.last_transition_time if (was := before.get(kind)) is not None and was.status == state else now,
                record.generation,
            )
            for kind, state, reason, message in said
        ),
    )


def meaning(of: OomPolicyStatus) -> tuple[object, ...]:
    """What is written without delay: all but counts and sentences."""
    return (of.observed_generation, {(each.type, each.status, each.reason) for each in of.conditions})


def counts(of: OomPolicyStatus) -> tuple[object, ...]:
    return (of.exposed, of.mitigated)


_Said = tuple[str, Literal["True", "False"], str, str]


def _ready(record: OomPolicyRecord, mine: list[Wanted]) -> _Said:
    if record.spec is None:
        return READY, "False", "NotUnderstood", "The policy can't be read, and what it had asked for stays as it is."
    match record.spec.mode:
        case "Ignore":
            return READY, "True", "Ignored", "The pods it selects are not checked."
        case "Flag":
            return READY, "True", "Flagged", "Exposed pods that it selects are flagged."
    missing = sorted((each for each in mine if not _holds(each)), key=lambda each: each.key)
    if missing:
        (namespace, pod), said = missing[0].key, missing[0].mitigation
        assert said is not None
        more = f" And {len(missing) - 1} more." if len(missing) > 1 else ""
        return READY, "False", said.reason, f"Pod {namespace}/{pod}: {said.message}{more}"
    return READY, "True", "Mitigated", "Every exposed pod that it selects is mitigated."


def _holds(each: Wanted) -> bool:
    """Nothing was asked for where no oom_score_adj is at fault."""
    return each.mitigation is None or each.mitigated


def _conflict(name: str, every: list[Wanted]) -> _Said:
    for each in sorted(every, key=lambda one: one.key):
        others = (each.policy, *each.tied)
        if each.tied and name in others:
            rest = ", ".join(str(other) for other in others if other != name)
            text = (
                f"Pod {each.key[0]}/{each.key[1]} is selected by {rest}, too, with the same priority: {each.policy}"
                " wins, by its name. Give one of them a higher priority."
            )
            return CONFLICT, "True", "SamePriority", text
    return CONFLICT, "False", "None", "No other policy of this priority selects the same exposed pods."
