"""The whole agent in a guest with systemd. There is no API server: it scans, and publishes nothing."""

import threading
import time
import urllib.request
from collections.abc import Sequence
from typing import Any

from nodemem.agent.config import Server, Token
from nodemem.agent.log import Log
from nodemem.agent.loop import Agent, Intervals
from nodemem.node.status import ReportStatus, to_plain

_PATIENCE_SECONDS = 120.0
_BLOCK = b"x" * (64 << 10)


class Leak(threading.Thread):
    """A file in /run that gets longer, and how fast it truly does."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._ended = threading.Event()
        self._begun = time.monotonic()
        self._bytes = 0

    def run(self) -> None:
        with open("/run/leak", "ab", buffering=0) as file:
            while not self._ended.wait(0.2):
                self._bytes += file.write(_BLOCK)

    def end(self) -> None:
        self._ended.set()
        self.join()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begun

    @property
    def bytes_per_hour(self) -> float:
        return self._bytes / self.seconds * 3600


def clock_jumps(jumps: Sequence[float]) -> list[dict[str, Any]]:
    """The clock is set by so many seconds, one jump after the other, while a file in /run grows. Before and after each,
    what the agent says: its health, its report, and what is true."""
    agent = Agent(
        "guest",
        Server("127.0.0.1", 9, "", Token(text="none")),
        listen=("127.0.0.1", 0),
        intervals=Intervals(refresh_seconds=0.5, scan_seconds=1.0),
        log=Log(lambda _: None),
    )
    leak, thread = Leak(), threading.Thread(target=agent.run)
    leak.start()
    thread.start()
    try:
        while leak.seconds < 60:  # a rate takes half a minute of samples
            time.sleep(0.5)
        found = [_said(agent, leak)]
        for jump in jumps:
            time.clock_settime(time.CLOCK_REALTIME, time.time() + jump)
            found.append(_said(agent, leak))
        return found
    finally:
        agent.stop.set()
        thread.join()
        leak.end()


def _said(agent: Agent, leak: Leak) -> dict[str, Any]:
    """After three more full scans."""
    begun, scans = time.monotonic(), agent._counters.scans["full"]
    while agent._counters.scans["full"] < scans + 3:
        if time.monotonic() - begun > _PATIENCE_SECONDS:
            raise TimeoutError("the agent does not scan any more")
        time.sleep(0.05)
    status = agent._status
    assert isinstance(status, ReportStatus)
    with urllib.request.urlopen(f"http://127.0.0.1:{agent.health.port}/healthz", timeout=30) as answer:
        health = answer.status
    return {"health": health, "now": time.time(), "leak": leak.bytes_per_hour, "report": to_plain(status)}
