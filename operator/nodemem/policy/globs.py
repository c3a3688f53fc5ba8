"""Globs on mount points.

``*``, ``?`` and ``[...]`` stay within one segment of the path, as in a shell; a leading dot is nothing special. ``**``
as a whole segment stands for any number of segments, at the end of the pattern for at least one: ``/run/**`` is all
that is mounted below /run and not /run itself, ``/a/**/b`` is ``/a/b``, too. Inside a segment ``**`` is ``*``.
``[*]`` is a star itself.

Matching takes time proportional to the lengths of pattern and path, multiplied, whatever they are.
"""

import fnmatch
import re
from collections.abc import Sequence
from functools import lru_cache


def is_glob(pattern: str) -> bool:
    return any(sign in pattern for sign in "*?[")


def matches(pattern: str, path: str) -> bool:
    if not is_glob(pattern):
        return pattern == path
    return _match_segments(_compile(pattern), path.split("/"))


@lru_cache(maxsize=4096)
def _compile(pattern: str) -> tuple[re.Pattern[str] | None, ...]:
    """A regular expression for each segment, None for ``**``."""
    segments = pattern.split("/")
    compiled: list[re.Pattern[str] | None] = []
    for each in segments:
        if each != "**":
            # fnmatch groups each star atomically: no backtracking into an earlier one.
            compiled.append(re.compile(fnmatch.translate(each)))
        elif not compiled or compiled[-1] is not None:
            compiled.append(None)
    if compiled[-1] is None:
        compiled.append(re.compile(r"(?s:.+)\Z"))
    return tuple(compiled)


def _match_segments(pattern: Sequence[re.Pattern[str] | None], path: Sequence[str]) -> bool:
    """Only the last ``**`` ever needs to be widened: what an earlier one took was the shortest that fits."""
    at, place = 0, 0
    wide: tuple[int, int] | None = None
    while place < len(path):
        segment = pattern[at] if at < len(pattern) else None
        if at < len(pattern) and segment is None:
            wide = (at + 1, place)
            at += 1
        elif segment is not None and segment.match(path[place]):
            at, place = at + 1, place + 1
        elif wide is not None:
            at, place = wide[0], wide[1] + 1
            wide = (at, place)
        else:
            return False
    return at == len(pattern)
