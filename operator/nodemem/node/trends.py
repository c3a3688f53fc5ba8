"""Growth of a byte figure over time: robust against single steps and gaps, in a bounded amount of memory."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

MAX_SAMPLES = 48
WINDOW_SECONDS = 6 * 3600.0
MIN_SPAN_SECONDS = 30.0


@dataclass(slots=True)
class Series:
    """Samples of one figure, oldest first: at most ``MAX_SAMPLES``, none older than ``WINDOW_SECONDS``.

    When it is full, the sample that stands closest between its neighbours goes, so the span stays long and the recent
    end stays dense enough. O(MAX_SAMPLES) per addition.
    """

    times: list[float] = field(default_factory=list)
    values: list[int] = field(default_factory=list)

    def add(self, time: float, value: int) -> None:
        """Samples not later than the last one (a clock set back) start the series anew."""
        if self.times and time <= self.times[-1]:
            self.times.clear()
            self.values.clear()
        self.times.append(time)
        self.values.append(value)
        while self.times[0] < time - WINDOW_SECONDS:
            del self.times[0], self.values[0]
        if len(self.times) > MAX_SAMPLES:
            times = self.times
            crowded = min(range(1, len(times) - 1), key=lambda i: times[i + 1] - times[i - 1])
            del self.times[crowded], self.values[crowded]

    def bytes_per_hour(self) -> float | None:
        """Mean growth with the interval that deviates most from it left out; None below ``MIN_SPAN_SECONDS``.

        One step (a file copied in, a log rotated) is that interval, so it isn't taken for a rate. Steady growth gives
        the same rate whichever interval is left out, a gap in the samples included. Growth in k equal bursts comes
        out as (k-1)/k of itself.
        """
        if len(self.times) < 2:
            return None
        span = self.times[-1] - self.times[0]
        change = self.values[-1] - self.values[0]
        if span < MIN_SPAN_SECONDS:
            return None
        if len(self.times) >= 4:
            rate = change / span
            step, duration = max(
                (
                    (self.values[i + 1] - self.values[i], self.times[i + 1] - self.times[i])
                    for i in range(len(self.times) - 1)
                ),
                key=lambda interval: abs(interval[0] - rate * interval[1]),
            )
            change -= step
            span -= duration
        return change / span * 3600


def seconds_until(room_bytes: int | None, bytes_per_hour: float | None) -> float | None:
    """Time until growth has used up the room; None when it doesn't grow or either is unknown, 0 when it is used up."""
    if room_bytes is None or bytes_per_hour is None or bytes_per_hour <= 0:
        return None
    return max(0, room_bytes) / bytes_per_hour * 3600


class History:
    """Series by name, kept for the names of the last observation only.

    ``boot_id`` ties stored samples to one boot: after a reboot a device number belongs to another tmpfs.
    """

    def __init__(self, boot_id: str | None = None) -> None:
        self.boot_id = boot_id
        self._series: dict[str, Series] = {}

    def observe(self, time: float, figures: Iterable[tuple[str, int]]) -> None:
        """Add a sample to each named series and forget the series that are not named."""
        kept: dict[str, Series] = {}
        for name, value in figures:
            series = self._series.get(name) or Series()
            series.add(time, value)
            kept[name] = series
        self._series = kept

    def series(self, name: str) -> Series | None:
        return self._series.get(name)

    def bytes_per_hour(self, name: str) -> float | None:
        series = self._series.get(name)
        return series.bytes_per_hour() if series else None

    def plain(self) -> dict[str, Any]:
        """The history as JSON values, for ``from_plain``."""
        series = {name: [series.times, series.values] for name, series in self._series.items()}
        return {"bootID": self.boot_id, "series": series}

    @classmethod
    def from_plain(cls, stored: Any, boot_id: str | None) -> "History":
        """The stored history if it is of this boot; an empty one if not, or if it isn't a history."""
        history = cls(boot_id)
        try:
            if boot_id is None or stored["bootID"] != boot_id:
                return history
            for name, (times, values) in stored["series"].items():
                if len(times) == len(values) <= MAX_SAMPLES and times == sorted(map(float, times)):
                    history._series[str(name)] = Series([float(t) for t in times], [int(v) for v in values])
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            return cls(boot_id)
        return history
