"""How amounts are written: sizes in binary units, durations, timestamps."""

import re
import time

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_QUANTITY = re.compile(r"([+-]?)([0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE]([+-]?[0-9]+)|([a-zA-Z%]*))")
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_AGE = re.compile(r"([1-9][0-9]{0,5})(min|m|h|d|w)")
_AGE_SECONDS = {"min": 60, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_LONGEST_QUANTITY = 64
_LARGEST_SIZE = (1 << 63) - 1  # of a Kubernetes quantity, too


def binary_size(size_bytes: float | None) -> str:
    """``17179869184`` as ``16.0 GiB``; None as ``unknown``."""
    if size_bytes is None:
        return "unknown"
    sign = "-" if size_bytes < 0 else ""
    value = abs(size_bytes)
    unit = 0
    # 1023.95 would print as 1024.0: move up before rounding does.
    while value >= 1023.95 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    return f"{sign}{value:.0f} {_UNITS[0]}" if unit == 0 else f"{sign}{value:.1f} {_UNITS[unit]}"


def duration(seconds: float | None) -> str:
    """The one or two largest units: ``4 h``, ``3 d 5 h``, ``45 s``; None as ``unknown``."""
    if seconds is None:
        return "unknown"
    seconds = max(0, int(seconds))
    days, rest = divmod(seconds, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, secs = divmod(rest, 60)
    if days >= 10:
        return f"{days} d"
    if days:
        return f"{days} d {hours} h" if hours else f"{days} d"
    if hours >= 10:
        return f"{hours} h"
    if hours:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{minutes} min" if minutes else f"{secs} s"


def parse_age(text: str) -> int:
    """Seconds of a time span of tmpfiles.d, in minutes or more: ``1d12h``, where ``m`` is minutes, too. Raises
    ValueError with a sentence."""
    seconds, end = 0, 0
    while match := _AGE.match(text, end):
        seconds, end = seconds + int(match[1]) * _AGE_SECONDS[match[2]], match.end()
    if not end or end < len(text):
        raise ValueError(f"{text[:_LONGEST_QUANTITY]!r} is not an age: write a time span such as 30min, 12h or 7d")
    return seconds


def growth(bytes_per_hour: float | None) -> str:
    """``+210.0 MiB/h``; None as ``unknown``."""
    if bytes_per_hour is None:
        return "unknown"
    if abs(bytes_per_hour) < 1:
        return "0"
    return f"{'+' if bytes_per_hour > 0 else ''}{binary_size(bytes_per_hour)}/h"


def percent(part: float, whole: float) -> str:
    """``25 %``; below 10 with one decimal."""
    share = 100 * part / whole if whole else 0.0
    return f"{share:.1f} %" if abs(share) < 9.95 and share else f"{share:.0f} %"


def timestamp(unix_seconds: float) -> str:
    """RFC 3339 in UTC, seconds. Raises OverflowError or ValueError outside of the years 1 to 9999."""
    year, month, day, hour, minute, second, *_ = time.gmtime(int(unix_seconds))
    if not 1 <= year <= 9999:
        raise ValueError(f"year {year} is out of range")
    return f"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"


def parse_size(text: str, *, whole_bytes: int | None = None) -> int:
    """Bytes of a Kubernetes quantity (``2Gi``, ``1.5G``, ``1e9``), or of a percentage of ``whole_bytes`` (``10%``).

    Exact: no float on the way. A fraction of a byte is rounded up as Kubernetes does, for a percentage down as the
    kernel does. 0 is a size. Raises ValueError with a sentence that says what to write instead.
    """
    match = _QUANTITY.fullmatch(text) if len(text) <= _LONGEST_QUANTITY else None
    if match is None:
        raise ValueError(f"{text[:_LONGEST_QUANTITY]!r} is not a size: write one such as 512Mi, 2Gi, 1.5G or 10%")
    sign, number, exponent, suffix = match.groups()
    whole, _, part = number.partition(".")
    # In integers: fractions and what it imports are 1 MB in an agent.
    value, parts = int(whole + part or "0"), 10 ** len(part)
    if sign == "-" and value:
        raise ValueError(f"{text!r} is negative: write a size such as 2Gi")
    if suffix == "%":
        if whole_bytes is None:
            raise ValueError(f"{text!r}: a percentage has no meaning here; write a size such as 2Gi")
        return _bounded(text, value * whole_bytes // (100 * parts))
    if exponent is not None:
        power = max(-99, min(99, int(exponent)))
    elif suffix in _BINARY:
        value, power = value << _BINARY[suffix], 0
    elif suffix in _DECIMAL:
        power = _DECIMAL[suffix]
    else:
        raise ValueError(f"{text!r} is not a size: {_about_suffix(number, suffix)}")
    value, parts = value * 10 ** max(0, power), parts * 10 ** max(0, -power)
    if suffix in ("n", "u", "m") and value % parts:
        part = {"n": "billionths", "u": "millionths", "m": "thousandths"}[suffix]
        raise ValueError(f"{text!r}: {suffix} means {part} of a byte; write {number}Mi for mebibytes")
    return _bounded(text, -(-value // parts))


def _bounded(text: str, value: int) -> int:
    if value > _LARGEST_SIZE:
        raise ValueError(f"{text!r} is too large: a size is below 8Ei")
    return value


def _about_suffix(number: str, suffix: str) -> str:
    letter = suffix[0].upper()
    if f"{letter}i" not in _BINARY or suffix[1:].lower() not in ("", "b", "i", "ib"):
        return "write one such as 512Mi, 2Gi, 1.5G or 10%"
    decimal = "k" if letter == "K" else letter
    return f"write {number}{letter}i (powers of 1024) or {number}{decimal} (powers of 1000)"
