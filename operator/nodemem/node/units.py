"""How amounts are written: sizes in binary units, durations, timestamps."""

from datetime import UTC, datetime

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


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
    """RFC 3339 in UTC, seconds. Raises OverflowError or ValueError beyond the year 9999."""
    return datetime.fromtimestamp(int(unix_seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
