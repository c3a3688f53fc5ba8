"""A status that fits: the API server and everybody who watches reports pay for each byte of each node."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nodemem.api.convert import wire
from nodemem.node.status import ReportStatus

AIM_BYTES = 6656
"""For all but findings, that is for a node with nothing to tell: 8 KiB with metadata and managedFields."""

LIMIT_BYTES = 13 * 1024
"""For everything. With metadata and managedFields, below 2 KiB, an object stays under 16 KiB."""

_LEAST = 3
_SHORT_MESSAGE = 160
_FINDINGS = ("exposures", "oomKills", "limits", "oomMitigations", "reclaim")

_SUMS = {
    "tmpfs": (("tmpfsUsedBytes", "usedBytes"),),
    "containers": (("containersShmemBytes", "shmemBytes"), ("containersUsageBytes", "usageBytes")),
}
"""What ``omitted`` adds up of the entries that are left out."""


def bounded(status: ReportStatus, aim_bytes: int = AIM_BYTES, limit_bytes: int = LIMIT_BYTES) -> dict[str, Any]:
    """The status as the API server takes it, its lists cut at their ends, where the least important entries are.

    ``omitted`` counts and sums up what is cut of tmpfs and containers, ``summary.exposed`` all exposures.
    """
    plain = wire(status)
    for name, whole in (("tmpfs", status.tmpfs), ("containers", status.containers)):
        _count(plain, name, [wire(each) for each in whole[len(plain[name]) :]])
    while (size := encoded_bytes({**plain, **dict.fromkeys(_FINDINGS, ())})) > aim_bytes:
        if not _less_context(plain, 1 - aim_bytes / size):
            break
    while (size := encoded_bytes(plain)) > limit_bytes:
        if not _shorter(plain, 1 - limit_bytes / size):
            break
    return plain


def encoded_bytes(plain: Any) -> int:
    return len(json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode())


def _less_context(plain: dict[str, Any], excess: float) -> bool:
    """A step: first the files of the lesser tmpfs, then the end of the longer one of the two lists."""
    tmpfs, containers = plain["tmpfs"], plain["containers"]
    if any(len(each["largest"]) > 1 for each in tmpfs[_LEAST:]):
        for each in tmpfs[_LEAST:]:
            del each["largest"][1:]
        return True
    if containers and len(containers) >= len(tmpfs) - _LEAST:
        _cut(plain, "containers", _fewer(len(containers), excess))
        return True
    if len(tmpfs) > _LEAST:
        _cut(plain, "tmpfs", max(_LEAST, _fewer(len(tmpfs), excess)))
        return True
    return False


def _shorter(plain: dict[str, Any], excess: float) -> bool:
    """A step: long sentences of limits, mitigations and reclaim (none of these is left out: what is to be undone is in
    them) and of the lesser findings, old kills, context, exposures, at last the files in tmpfs."""
    exposures, kills, limits, mitigations, reclaim = (plain.get(each, []) for each in _FINDINGS)
    if [each for each in mitigations[_LEAST:] if each.pop("message", None)]:
        return True  # the reason says it in a word
    if _shorten(limits[_LEAST:]) or _shorten(reclaim[_LEAST:]) or _shorten([*exposures[_LEAST:], *kills[1:]]):
        return True
    if len(kills) > _LEAST:
        del kills[max(_LEAST, _fewer(len(kills), excess)) :]
        return True
    if _less_context(plain, excess):
        return True
    if len(exposures) > _LEAST:
        del exposures[max(_LEAST, _fewer(len(exposures), excess)) :]
        return True
    files = [each["largest"] for each in plain["tmpfs"] if each["largest"]]
    for each in files:
        each.clear()
    return bool(files)


def _cut(plain: dict[str, Any], name: str, kept: int) -> None:
    _count(plain, name, plain[name][kept:])
    del plain[name][kept:]


def _count(plain: dict[str, Any], name: str, left_out: Sequence[Mapping[str, Any]]) -> None:
    omitted = plain["omitted"]
    omitted[name] += len(left_out)
    for total, figure in _SUMS[name]:
        omitted[total] += sum(each.get(figure) or 0 for each in left_out)


def _fewer(length: int, excess: float) -> int:
    return min(length - 1, int(length * (1 - excess)))


def _shorten(entries: list[dict[str, Any]]) -> bool:
    """Whether a message was long."""
    long = [each for each in entries if len(each.get("message", "")) > _SHORT_MESSAGE]
    for each in long:
        each["message"] = f"{each['message'][: _SHORT_MESSAGE - 3]}..."
    return bool(long)
