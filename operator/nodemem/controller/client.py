"""Requests to the API server: plain JSON over the official client's connection, TLS and credentials.

Every write goes through ``write``, which asks the fence (the Lease) right before it sends.
"""

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Literal
from urllib.parse import quote, urlencode

import aiohttp
from kubernetes.aio import client, config

METADATA_ONLY = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
MANAGER = "nodemem-controller"

WRITE_SECONDS = 4.0
"""A write that is not answered by then is given up: with the time between renew deadline and lease duration (5 s), one
that was sent by a holder who then loses the Lease is over before the next holder begins."""

READ_SECONDS = 30.0
PAGE = 500

Verb = Literal["POST", "PUT", "PATCH", "DELETE"]
_CONTENT = {
    "apply": "application/apply-patch+yaml",
    "strategic": "application/strategic-merge-patch+json",
    "merge": "application/merge-patch+json",
    "json": "application/json",
}


class ApiError(Exception):
    """No success: ``code`` is the HTTP status, 0 where there was no answer; ``retry_after`` is in seconds."""

    def __init__(self, code: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{code}: {message}" if code else message)
        self.code = code
        self.retry_after = retry_after


class NotHeld(Exception):
    """The Lease is not held (any more): the write was not sent."""


class Api:
    """``last_answer``: ``time.monotonic`` of the last answer, of whatever kind. ``writes``: how many were sent."""

    def __init__(self, kubeconfig: str | None, user_agent: str) -> None:
        self._kubeconfig = kubeconfig
        self._user_agent = user_agent
        self._client: client.ApiClient | None = None
        self._logged_in = float("-inf")
        self.fence: Callable[[], bool] = lambda: False
        self.last_answer = time.monotonic()
        self.writes = 0

    async def configuration(self) -> client.Configuration:
        """Credentials as they are now: the kubeconfig, or the service account's files. Raises ConfigException."""
        settings = client.Configuration()
        if self._kubeconfig is not None:
            await config.load_kube_config(self._kubeconfig, client_configuration=settings, persist_config=False)  # type: ignore[no-untyped-call]
        else:
            config.load_incluster_config(settings)  # type: ignore[no-untyped-call]
        return settings

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()  # type: ignore[no-untyped-call]
            self._client = None

    async def read(self, path: str, query: Mapping[str, str] | None = None, *, accept: str | None = None) -> Any:
        """GET. Raises ApiError."""
        return await self.send("GET", path, query, accept=accept, seconds=READ_SECONDS)

    async def find(self, path: str) -> Any | None:
        """GET; None for what doesn't exist."""
        try:
            return await self.read(path)
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    async def pages(self, path: str, *, metadata_only: bool) -> AsyncIterator[Mapping[str, Any]]:
        """The items of a consistent LIST, in chunks: one of them is in memory at a time."""
        query = {"limit": str(PAGE)}
        while True:
            answer = await self.read(path, query, accept=METADATA_ONLY if metadata_only else None)
            for item in answer.get("items") or ():
                yield item
            more = answer.get("metadata", {}).get("continue")
            if not more:
                return
            query["continue"] = more

    async def apply(self, path: str, body: Mapping[str, Any], *, manager: str = MANAGER) -> Any:
        """Server-side apply over any other's fields; what the ``manager`` applied before and does not name now is
        dropped. ``metadata.uid`` in ``body`` is a precondition."""
        return await self.write("PATCH", path, body, {"fieldManager": manager, "force": "true"}, content="apply")

    async def write(
        self,
        verb: Verb,
        path: str,
        body: Mapping[str, Any] | None,
        query: Mapping[str, str] | None = None,
        *,
        content: str = "json",
    ) -> Any:
        """Raises NotHeld before, ApiError after it is sent."""
        if not self.fence():
            raise NotHeld
        self.writes += 1
        return await self.send(verb, path, query, body=body, content=content)

    async def send(
        self,
        verb: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        body: Mapping[str, Any] | None = None,
        content: str = "json",
        accept: str | None = None,
        seconds: float = WRITE_SECONDS,
    ) -> Any:
        """One request, without the fence: for reads and for the Lease itself. Raises ApiError."""
        try:
            return await self._send(verb, path, query, body, content, accept, seconds)
        except ApiError as error:
            # The token may have been replaced on disk; not more often than every ten seconds.
            if error.code != 401 or time.monotonic() - self._logged_in < 10:
                raise
        await self.close()
        return await self._send(verb, path, query, body, content, accept, seconds)

    async def _send(
        self,
        verb: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Mapping[str, Any] | None,
        content: str,
        accept: str | None,
        seconds: float,
    ) -> Any:
        connection = await self._connection()
        headers = {"Accept": accept or "application/json", "User-Agent": self._user_agent}
        if body is not None:
            headers["Content-Type"] = _CONTENT[content]
        await connection.update_params_for_auth(headers, [], ["BearerToken"], path, verb, None)
        url = f"{connection.configuration.host}{quote(path)}" + (f"?{urlencode(query)}" if query else "")
        try:
            response = await connection.rest_client.request(  # type: ignore[no-untyped-call]
                verb, url, headers=headers, body=body, _request_timeout=aiohttp.ClientTimeout(total=seconds)
            )
            data = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(0, f"{verb} {path}: {error or type(error).__name__}") from error
        self.last_answer = time.monotonic()
        if not 200 <= response.status <= 299:
            raise _error(response.status, data, response.getheader("Retry-After"))
        return json.loads(data) if data else None

    async def _connection(self) -> client.ApiClient:
        if self._client is None:
            try:
                settings = await self.configuration()
            except (config.ConfigException, OSError) as error:
                raise ApiError(0, f"no credentials: {error}") from error
            self._client = client.ApiClient(settings)
            self._logged_in = time.monotonic()
        return self._client


def _error(status: int, data: bytes, retry_after: str | None) -> ApiError:
    text = data[:2048].decode(errors="replace")
    try:
        text = json.loads(data)["message"]
    except (ValueError, KeyError, TypeError):
        pass
    seconds = float(retry_after) if retry_after and retry_after.isdecimal() else None
    return ApiError(status, text, seconds)
