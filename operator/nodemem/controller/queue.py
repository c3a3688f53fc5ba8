"""Writes, paced: the newest plan replaces the one before; what failed waits its time and is planned anew."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from nodemem.controller.client import ApiError, NotHeld

_log = logging.getLogger(__name__)

WRITES_PER_SECOND = 200.0
WORKERS = 8
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 1.0, 60.0

Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Write:
    """``key``: what it writes to; of two with the same key one runs at a time. ``run`` raises ApiError or NotHeld."""

    key: Key
    run: Callable[[], Awaitable[None]]


class WriteQueue:
    """``on_idle`` is called when a write has ended whose key was planned again meanwhile, or that failed."""

    def __init__(self, on_idle: Callable[[], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._on_idle = on_idle
        self._clock = clock
        self._pending: dict[Key, Write] = {}
        self._running: set[Key] = set()
        self._again: set[Key] = set()
        self._failed: dict[Key, tuple[int, float]] = {}
        self._ready = asyncio.Event()
        self._slot = 0.0
        self.done = 0
        self.errors = 0

    def plan(self, writes: Iterable[Write]) -> None:
        """These and no others are to be done; those that run, end."""
        now = self._clock()
        self._pending.clear()
        planned = set()
        for each in writes:
            planned.add(each.key)
            if each.key in self._running:
                self._again.add(each.key)
            elif self._failed.get(each.key, (0, 0.0))[1] <= now:
                self._pending[each.key] = each
        for key in self._failed.keys() - planned:
            del self._failed[key]
        if self._pending:
            self._ready.set()

    def clear(self) -> None:
        self.plan(())

    @property
    def depth(self) -> int:
        return len(self._pending) + len(self._running)

    def next_retry(self) -> float | None:
        """When, on the clock, a failed write may be planned again; what may be already, is."""
        now = self._clock()
        return min((until for _, until in self._failed.values() if until > now), default=None)

    async def run(self) -> None:
        """Work, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            await self._ready.wait()
            if not self._pending:
                self._ready.clear()
                continue
            key = next(iter(self._pending))
            write = self._pending.pop(key)
            self._running.add(key)
            try:
                await self._pace()
                await self._run(write)
            finally:
                self._running.discard(key)
            if key in self._again or key in self._failed:
                self._again.discard(key)
                self._on_idle()

    async def _pace(self) -> None:
        now = self._clock()
        slot = max(now, self._slot)
        self._slot = slot + 1 / WRITES_PER_SECOND
        if slot > now:
            await asyncio.sleep(slot - now)

    async def _run(self, write: Write) -> None:
        try:
            await write.run()
        except NotHeld:
            # Nothing failed: the next holder plans it.
            return
        except ApiError as error:
            self.errors += 1
            tries = self._failed.get(write.key, (0, 0.0))[0] + 1
            wait = min(FIRST_RETRY_SECONDS * 2 ** (tries - 1), LAST_RETRY_SECONDS) * random.uniform(0.8, 1.2)
            self._failed[write.key] = (tries, self._clock() + max(wait, error.retry_after or 0.0))
            _log.warning("%s: %s (try %d, next in %.0f s)", "/".join(write.key), error, tries, wait)
            return
        self.done += 1
        self._failed.pop(write.key, None)
