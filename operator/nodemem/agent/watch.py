"""List, then watch, for as long as the agent lives: what is in the cluster, kept up to date in a table.

A watch alone can miss the end of an object: after a 410, or a connection lost for too long, a new list tells what is
still there, and the table drops the rest.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from nodemem.agent.client import ApiError, Backoff, Client, Gone, Silent, chance
from nodemem.agent.log import Log

SILENCE_SECONDS = 90.0
"""Bookmarks come each minute while anything in the cluster changes; a peer silent for longer may be gone."""

BRIEF_SECONDS = 5.0
"""A watch that ends sooner counts as a failure, or a server that closes at once would be asked in a hot loop."""


class Versioned(Protocol):
    @property
    def resource_version(self) -> str: ...


class Table(Protocol):
    """What is fed. ``parse`` is called with every JSON object of an answer, inner ones first, and turns those of its
    kind into something with a ``resource_version`` and gives back all others. Called from the watching thread."""

    def parse(self, found: dict[str, Any]) -> Any: ...

    def replace(self, objects: Sequence[Any]) -> None: ...

    def change(self, kind: str, found: Any) -> None: ...


class Watch:
    """``run`` in a thread of its own. ``synced`` is set after the first list, which may be a moment old if it may come
    ``from_cache``."""

    def __init__(
        self,
        client: Client,
        path: str,
        selector: str,
        table: Table,
        log: Log,
        *,
        backoff: Backoff | None = None,
        silence_seconds: float = SILENCE_SECONDS,
        chance: Callable[[], float] = chance,
        from_cache: bool = True,
    ) -> None:
        self._client = client
        self._path = path
        self._selector = selector
        self._table = table
        self._log = log
        self._backoff = backoff or Backoff()
        self._silence_seconds = silence_seconds
        self._chance = chance
        self._version: str | None = None
        self._listed_before = not from_cache
        self.synced = threading.Event()

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            begun = time.monotonic()
            try:
                if self._version is None:
                    self._list()
                events = self._watch(stop)
                if not events and time.monotonic() - begun < BRIEF_SECONDS:
                    stop.wait(self._backoff.failed())
                else:
                    self._backoff.succeeded()
            except Silent:
                pass  # gone, or nothing to say: a new connection shows which
            except Gone as error:
                self._version = None
                self._log.info("the watch has to start again", path=self._path, why=error.message)
                stop.wait(self._backoff.failed(error.retry_after))
            except ApiError as error:
                self._log.problem(f"watch {self._path}", error.message, status=error.status)
                stop.wait(self._backoff.failed(error.retry_after))

    def _list(self) -> None:
        """The first one may come from the server's cache; after a 410 the cache is what can't be trusted."""
        query = {"fieldSelector": self._selector}
        if not self._listed_before:
            query["resourceVersion"] = "0"
        answer = self._client.request("GET", self._path, query=query, hook=self._table.parse)
        self._table.replace(answer.get("items") or [])
        self._version = str(answer["metadata"]["resourceVersion"])
        self._listed_before = True
        self._log.well(f"watch {self._path}")
        self.synced.set()

    def _watch(self, stop: threading.Event) -> int:
        query = {
            "fieldSelector": self._selector,
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version or "",
            # Spread, so that the watches of all nodes don't end together for ever after a restart of the server.
            "timeoutSeconds": str(240 + int(120 * self._chance())),
        }
        events = 0
        for kind, found in self._client.watch(
            self._path, query, silence_seconds=self._silence_seconds, hook=self._table.parse
        ):
            if stop.is_set():
                break
            self._log.well(f"watch {self._path}")
            self._version = found.resource_version
            events += 1
            if kind != "BOOKMARK":
                self._table.change(kind, found)
        return events
