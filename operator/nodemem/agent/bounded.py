"""A status that fits: the API server and everybody who watches reports pay for each byte of each node."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from nodemem.api.convert import wire
from nodemem.node.status import ExposureStatus, LimitStatus, OomKillStatus, ReportStatus

AIM_BYTES = 7 * 1024
"""For all but findings, that is for a node with nothing to tell."""

LIMIT_BYTES = 13 * 1024
"""For everything. With metadata and managedFields, below 2 KiB, an object stays under 16 KiB."""

T = TypeVar("T", ExposureStatus, OomKillStatus, LimitStatus)

_FINDINGS = ("exposures", "oomKills", "limits", "oomMitigations")
_LEAST = 3
_SHORT_MESSAGE = 160


def bounded(status: ReportStatus, aim_bytes: int = AIM_BYTES, limit_bytes: int = LIMIT_BYTES) -> dict[str, Any]:
    """The status as the API server takes it, its lists cut at their ends, where the least important entries are.

    ``omitted`` counts and sums up what is cut of tmpfs and containers, ``summary.exposed`` all exposures.
    """
    plain = wire(status)
    while (size := encoded_bytes({**plain, **dict.fromkeys(_FINDINGS, ())})) > aim_bytes:
        smaller = _less_context(status, 1 - aim_bytes / size)
        if smaller is None:
            break
        status, plain = smaller, wire(smaller)
    while (size := encoded_bytes(plain)) > limit_bytes:
        smaller = _shorter(status, 1 - limit_bytes / size)
        if smaller is None:
            break
        status, plain = smaller, wire(smaller)
    return plain


def encoded_bytes(plain: Any) -> int:
    return len(json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode())


def _less_context(status: ReportStatus, excess: float) -> ReportStatus | None:
    """A step: first the files of the lesser tmpfs, then the end of the longer one of the two lists."""
    if any(len(each.largest) > 1 for each in status.tmpfs[_LEAST:]):
        lesser = tuple(replace(each, largest=each.largest[:1]) for each in status.tmpfs[_LEAST:])
        return replace(status, tmpfs=(*status.tmpfs[:_LEAST], *lesser))
    omitted, tmpfs, containers = status.omitted, len(status.tmpfs), len(status.containers)
    if containers and containers >= tmpfs - _LEAST:
        kept = _fewer(containers, excess)
        omitted = omitted.and_containers(status.containers[kept:])
        return replace(status, containers=status.containers[:kept], omitted=omitted)
    if tmpfs > _LEAST:
        kept = max(_LEAST, _fewer(tmpfs, excess))
        omitted = omitted.and_tmpfs(status.tmpfs[kept:])
        return replace(status, tmpfs=status.tmpfs[:kept], omitted=omitted)
    return None


def _shorter(status: ReportStatus, excess: float) -> ReportStatus | None:
    """A step: long sentences of limits and mitigations (none of these is ever left out: what is to be put back is in
    them) and of the lesser findings, old kills, context, exposures, at last the files in tmpfs."""
    exposures, kills, limits = status.exposures or (), status.oom_kills or (), status.limits or ()
    mitigations = status.oom_mitigations or ()
    if any(each.message for each in mitigations[_LEAST:]):
        bare = (replace(each, message=None) for each in mitigations[_LEAST:])  # the reason says it in a word
        return replace(status, oom_mitigations=(*mitigations[:_LEAST], *bare))
    if any(len(each.message or "") > _SHORT_MESSAGE for each in limits[_LEAST:]):
        return replace(status, limits=(*limits[:_LEAST], *_shortened(limits[_LEAST:])))
    sentences = [*(each.message for each in exposures[_LEAST:]), *(each.message for each in kills[1:])]
    if any(len(sentence) > _SHORT_MESSAGE for sentence in sentences):
        return replace(
            status,
            exposures=(*exposures[:_LEAST], *_shortened(exposures[_LEAST:])),
            oom_kills=(*kills[:1], *_shortened(kills[1:])),
        )
    if len(kills) > _LEAST:
        return replace(status, oom_kills=kills[: max(_LEAST, _fewer(len(kills), excess))])
    if (less := _less_context(status, excess)) is not None:
        return less
    if len(exposures) > _LEAST:
        return replace(status, exposures=exposures[: max(_LEAST, _fewer(len(exposures), excess))])
    if any(each.largest for each in status.tmpfs):
        return replace(status, tmpfs=tuple(replace(each, largest=()) for each in status.tmpfs))
    return None


def _fewer(length: int, excess: float) -> int:
    return min(length - 1, int(length * (1 - excess)))


def _shortened(found: Sequence[T]) -> list[T]:
    return [
        replace(each, message=f"{message[: _SHORT_MESSAGE - 3]}...")
        if len(message := each.message or "") > _SHORT_MESSAGE
        else each
        for each in found
    ]
