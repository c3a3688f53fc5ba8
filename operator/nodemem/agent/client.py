"""Requests to the API server over one kept connection, with typed errors.

The standard library alone, since the Kubernetes client costs 50 MB of memory on every node. A ``Client`` is for one
thread; a thread that watches has its own.
"""

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

from nodemem import __version__
from nodemem.agent.config import ConfigError, Server
from nodemem.agent.http import Connection, Response, quoted

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 30.0
_APPLY = "application/apply-patch+yaml"


class ApiError(Exception):
    """An answer that is no success. ``status`` 0: there was none. ``retry_after`` in seconds, if the server says."""

    def __init__(self, status: int, message: str, reason: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.reason = reason
        self.retry_after = retry_after


class Unreachable(ApiError):
    """No answer: refused, cut off, timed out, or a certificate that can't be trusted."""


class Silent(Unreachable):
    """A watch on which nothing came for too long."""


class Refused(ApiError):
    """401 or 403."""


class NotFound(ApiError):
    """404: the object, its kind, or its namespace."""


class Conflict(ApiError):
    """409: it exists already, or was changed meanwhile."""


class Gone(ApiError):
    """410: the resource version is too old, list again."""


class Busy(ApiError):
    """429 or 5xx: the server can't now."""


def chance() -> float:
    """At least 0 and less than 1. Not random.random: that module and what it imports are 0.4 MB."""
    return int.from_bytes(os.urandom(4)) / (1 << 32)


class Backoff:
    """How long to wait after a failure: doubling from ``first`` to ``most``, half of it random."""

    def __init__(self, first: float = 1.0, most: float = 30.0, *, chance: Callable[[], float] = chance) -> None:
        self._first = first
        self._most = most
        self._chance = chance
        self._next = first

    def failed(self, retry_after: float | None = None) -> float:
        """Seconds to wait now; never less than the server asked for (up to five minutes)."""
        delay = self._next * (0.5 + self._chance() / 2)
        self._next = min(self._next * 2, self._most)
        return max(delay, min(retry_after or 0.0, 300.0))

    def succeeded(self) -> None:
        self._next = self._first


class Client:
    """``counted(verb, status)`` is told of every answer; status 0 is none."""

    def __init__(
        self,
        server: Server,
        *,
        answer_seconds: float = ANSWER_SECONDS,
        counted: Callable[[str, int], None] = lambda verb, status: None,
    ) -> None:
        self._server = server
        self._answer_seconds = answer_seconds
        self._counted = counted
        self._connection: Connection | None = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def get(self, path: str, **query: str) -> Any:
        return self.request("GET", path, query=query)

    def create(self, path: str, body: Any, *, manager: str) -> Any:
        return self.request("POST", path, body, query={"fieldManager": manager})

    def apply(self, path: str, body: Any, *, manager: str) -> Any:
        """Server-side apply: creates or changes it; fields that ``manager`` applied before and leaves out now go."""
        return self.request("PATCH", path, body, query={"fieldManager": manager, "force": "true"}, kind=_APPLY)

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: dict[str, str] | None = None,
        kind: str = "application/json",
        hook: Callable[[dict[str, Any]], Any] | None = None,
    ) -> Any:
        """The decoded answer. ``hook`` sees every JSON object while it is decoded, inner ones first, and may return
        something smaller: a list of pods is then never in memory as a whole. Raises ApiError."""
        data = self._read(self._answer(method, path, body, query, kind))
        try:
            return json.loads(data, object_hook=hook) if data else None
        except ValueError as error:
            raise Busy(200, f"the answer is no JSON: {error}") from error

    def watch(
        self, path: str, query: dict[str, str], *, silence_seconds: float, hook: Callable[[dict[str, Any]], Any]
    ) -> Iterator[tuple[str, Any]]:
        """Type and object of each event until the server ends the stream. Raises ApiError: Silent when nothing came
        for ``silence_seconds``, not even a bookmark."""
        response = self._answer("GET", path, None, {**query, "watch": "true"}, "application/json", "WATCH")
        assert self._connection is not None
        self._connection.set_timeout(silence_seconds)
        try:
            for line in response.lines():
                event = json.loads(line, object_hook=hook)
                if event["type"] == "ERROR":
                    raise _error(int(event["object"].get("code", 500)), event["object"], None)
                yield event["type"], event["object"]
        except TimeoutError as error:
            raise Silent(0, _words(error)) from error
        except OSError as error:
            raise Unreachable(0, _words(error)) from error
        except (ValueError, KeyError, TypeError) as error:
            raise Busy(200, f"a watch event that is none: {error!r}") from error
        finally:
            self.close()

    def _answer(
        self, method: str, path: str, body: Any, query: dict[str, str] | None, kind: str, verb: str | None = None
    ) -> Response:
        verb = verb or method
        words = "&".join(f"{name}={quoted(value)}" for name, value in (query or {}).items())
        url = f"{self._server.prefix}{path}" + (f"?{words}" if words else "")
        data = None if body is None else json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        for again in (True, False):
            response = self._send(verb, method, url, data, kind)
            self._counted(verb, response.status)
            if response.status < 400:
                return response
            text = self._read(response)
            if response.status == 401 and again and self._server.token.expire():
                continue
            raise _error(response.status, _status(text), response.headers.get("retry-after"))
        raise AssertionError("not reached")

    def _send(self, verb: str, method: str, url: str, data: bytes | None, kind: str) -> Response:
        headers = {"Accept": "application/json", "User-Agent": f"nodemem-agent/{__version__}"}
        if data is not None:
            headers["Content-Type"] = kind
        while True:
            reused = self._connection is not None
            try:
                if (token := self._server.token.header()) is not None:
                    headers["Authorization"] = token
                connection = self._connection = self._connection or self._connect()
                return connection.request(method, url, headers, data)
            except (OSError, ConfigError) as error:
                self.close()
                # A kept connection may have been closed by the server meanwhile, which only shows when it is used.
                # Everything sent here may be sent twice.
                if reused and not isinstance(error, TimeoutError):
                    continue
                self._counted(verb, 0)
                raise Unreachable(0, _words(error)) from error

    def _connect(self) -> Connection:
        server = self._server
        return Connection(
            server.host,
            server.port,
            server.tls(),
            connect_seconds=CONNECT_SECONDS,
            answer_seconds=self._answer_seconds,
        )

    def _read(self, response: Response) -> bytes:
        try:
            data = response.read()
        except OSError as error:
            self.close()
            raise Unreachable(0, _words(error)) from error
        if response.headers.get("connection", "").lower() == "close":
            self.close()
        return data


def _status(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"message": text[:200].decode("utf-8", "replace").strip()}


def _error(status: int, body: dict[str, Any], retry_after: str | None) -> ApiError:
    message = str(body.get("message") or f"HTTP {status}")
    seconds = retry_after or (body.get("details") or {}).get("retryAfterSeconds")
    try:
        wait = None if not seconds else float(seconds)
    except ValueError:
        wait = None  # a date: nobody sends it
    kinds: dict[int, type[ApiError]] = {401: Refused, 403: Refused, 404: NotFound, 409: Conflict, 410: Gone, 429: Busy}
    kind = kinds.get(status, Busy if status >= 500 else ApiError)
    return kind(status, message, str(body.get("reason") or ""), wait)


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
