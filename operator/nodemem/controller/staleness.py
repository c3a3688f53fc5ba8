"""When is a node's report stale: by the time since it last changed, on the controller's own clock.

A node's clock may be wrong and the API server may have been away; neither makes a node stale. ``observedAt`` counts
only for what was there before the controller was.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime


@dataclass(slots=True)
class Heartbeats:
    """``after_seconds`` of silence make a node stale. All times are ``time.monotonic``."""

    after_seconds: float
    started: float
    _heard: dict[str, tuple[str | None, float]] = field(default_factory=dict)
    _floor: float = field(init=False)

    def __post_init__(self) -> None:
        self.excuse(self.started)

    def excuse(self, now: float) -> None:
        """Nothing could be heard until now (start, outage, this process was stopped): every agent gets the time of one
        heartbeat and its jitter, two fifths of three heartbeats, before it counts as silent."""
        self._floor = now - 0.6 * self.after_seconds

    def heard(self, name: str, observed_at: str | None, now: float, wall: float) -> None:
        """A report was seen at ``now``; ``wall`` is Unix time. The first time, its own timestamp says how old it is."""
        former = self._heard.get(name)
        if former is None:
            self._heard[name] = (observed_at, now - _age(observed_at, wall))
        elif former[0] != observed_at:
            self._heard[name] = (observed_at, now)

    def forget(self, name: str) -> None:
        self._heard.pop(name, None)

    def stale(self, name: str, now: float) -> bool:
        heard = self._heard.get(name)
        return heard is not None and now - max(heard[1], self._floor) > self.after_seconds


def _age(observed_at: str | None, wall: float) -> float:
    """Seconds, at least 0: a timestamp from the future is a clock that is ahead. Without one, 0."""
    try:
        seen = datetime.fromisoformat(observed_at or "")
    except ValueError:
        return 0.0
    return max(0.0, wall - (seen if seen.tzinfo else seen.replace(tzinfo=UTC)).timestamp())
