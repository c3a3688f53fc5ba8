"""One JSON line on standard error for each thing worth knowing; a problem once, not each time it is met."""

import json
import sys
import threading
import time
from collections.abc import Callable

from nodemem.node.units import timestamp

REPEAT_SECONDS = 3600.0


class Log:
    """For all threads. A ``problem`` is said when it begins, when its words change and each hour; its end once."""

    def __init__(
        self,
        write: Callable[[str], object] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write or sys.stderr.write
        self._clock = clock
        self._lock = threading.Lock()
        self._open: dict[str, tuple[str, float, float, int]] = {}

    def info(self, message: str, **fields: object) -> None:
        self._line("info", message, fields)

    def problem(self, what: str, message: str, **fields: object) -> None:
        """``what`` stays the same while the problem lasts."""
        now = self._clock()
        with self._lock:
            before = self._open.get(what)
            since, times = (before[1], before[3] + 1) if before else (now, 1)
            quiet = before is not None and before[0] == message and now - before[2] < REPEAT_SECONDS
            said = before[2] if before is not None and quiet else now
            self._open[what] = (message, since, said, times)
        if not quiet:
            self._line("warning", f"{what}: {message}", fields)

    def well(self, what: str) -> None:
        """It works (again)."""
        if what not in self._open:
            return
        with self._lock:
            before = self._open.pop(what, None)
        if before is not None:
            seconds = round(self._clock() - before[1])
            self._line("info", f"{what}: works again", {"failures": before[3], "seconds": seconds})

    def problems(self) -> list[str]:
        """What is wrong now, in words."""
        with self._lock:
            return [f"{what}: {message}" for what, (message, *_) in self._open.items()]

    def _line(self, level: str, message: str, fields: dict[str, object]) -> None:
        line = {"time": timestamp(time.time()), "level": level, "message": message, **fields}
        self._write(json.dumps(line, default=str) + "\n")
