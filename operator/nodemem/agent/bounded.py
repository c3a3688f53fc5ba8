"""A status that fits: the API server and everybody who watches reports pay for each byte of each node."""

import json
from dataclasses import replace
from typing import Any

from nodemem.api.convert import wire
from nodemem.node.status import ReportStatus

STATUS_BYTES = 12 * 1024
"""With metadata and managedFields, which take about 3 KiB, an object stays below 16 KiB."""

_LEAST = 3


def bounded(status: ReportStatus, limit_bytes: int = STATUS_BYTES) -> dict[str, Any]:
    """The status as the API server takes it, its lists cut at their ends until it fits, ``omitted`` counting the rest
    (of the exposures ``summary.exposed``).

    The entries at the end are the least important ones of their list. A list keeps its first ``_LEAST`` entries, except
    that of the containers, which the metrics have as well.
    """
    while True:
        plain = wire(status)
        size = encoded_bytes(plain)
        if size <= limit_bytes:
            return plain
        smaller = _smaller(status, (size - limit_bytes) / size)
        if smaller is None:
            return plain
        status = smaller


def encoded_bytes(plain: Any) -> int:
    return len(json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode())


def _smaller(status: ReportStatus, excess: float) -> ReportStatus | None:
    """A step: a part of the least important list that still has something to give."""
    cut = {
        "containers": (len(status.containers), 0),
        "tmpfs": (len(status.tmpfs), _LEAST),
        "oom_kills": (len(status.oom_kills or ()), 1),
        "exposures": (len(status.exposures or ()), _LEAST),
    }
    if any(len(each.largest) > 1 for each in status.tmpfs[_LEAST:]):
        return replace(
            status,
            tmpfs=(
                *status.tmpfs[:_LEAST],
                *(replace(each, largest=each.largest[:1]) for each in status.tmpfs[_LEAST:]),
            ),
        )
    # In turns by length, so that neither list takes all the room.
    name = max(cut, key=lambda each: cut[each][0] - cut[each][1])
    length, least = cut[name]
    if length <= least:
        return None
    kept = max(least, min(length - 1, int(length * (1 - excess))))
    gone = length - kept
    omitted = status.omitted
    if name == "containers":
        return replace(
            status,
            containers=status.containers[:kept],
            omitted=replace(omitted, containers=omitted.containers + gone),
        )
    if name == "tmpfs":
        return replace(status, tmpfs=status.tmpfs[:kept], omitted=replace(omitted, tmpfs=omitted.tmpfs + gone))
    if name == "exposures":
        return replace(status, exposures=(status.exposures or ())[:kept])
    return replace(status, oom_kills=(status.oom_kills or ())[:kept])
