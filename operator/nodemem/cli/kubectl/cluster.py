"""What is asked of the API server, and the sentences for when it says no.

The connection and its credentials are the official client's, loaded when they are needed: it takes a third of a second.
"""

import difflib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

from nodemem import __version__
from nodemem.api.resources import GROUP, Resource
from nodemem.cli.text import safe
from nodemem.policy.words import some

Object = dict[str, Any]

PAGE = 500
NAMES_ONLY = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
INSTALL = "https://github.com/nodemem/nodemem/blob/main/docs/install.md"


class Trouble(Exception):
    """It can't be done. The text says what is wrong and what to do; it is safe to print."""

    def __init__(self, text: str) -> None:
        super().__init__("\n".join(safe(line) for line in text.split("\n")))


class NotFound(Trouble):
    pass


class NotInstalled(Trouble):
    pass


class Forbidden(Trouble):
    pass


class Cluster:
    """Read-only. ``namespace`` is that of the kubeconfig's context."""

    def __init__(self, client: Any, namespace: str, *, user: str | None, seconds: float) -> None:
        self._client = client
        self._as = user
        self._seconds = seconds
        self.namespace = namespace
        self.url: str = client.configuration.host

    def get(self, path: str, query: Mapping[str, str] | None = None, *, accept: str = "application/json") -> Any:
        """Raises Trouble, and the kinds of it above."""
        import urllib3

        headers = {"Accept": accept, "Accept-Encoding": "gzip", "User-Agent": f"kubectl-nodemem/{__version__}"}
        if self._as is not None:
            headers["Impersonate-User"] = self._as
        try:
            self._client.update_params_for_auth(headers, [], ["BearerToken"], path, "GET", None)
            url = self.url + quote(path) + (f"?{urlencode(query)}" if query else "")
            answer = self._client.rest_client.request("GET", url, headers=headers, _request_timeout=self._seconds)
            data = answer.read()
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise Trouble(f"the API server at {self.url} can't be reached: {_cause(error)}") from error
        if 200 <= answer.status <= 299:
            try:
                return json.loads(data)
            except ValueError as error:
                raise Trouble(f"{self.url} answers, but not as an API server does: is it a proxy's login?") from error
        raise _refusal(answer.status, data, path)

    def items(
        self, path: str, query: Mapping[str, str] | None = None, *, accept: str = "application/json"
    ) -> Iterator[Object]:
        """Of a consistent LIST, in chunks. Raises Trouble."""
        more = {"limit": str(PAGE), **(query or {})}
        while True:
            page = self.get(path, more, accept=accept)
            yield from page.get("items") or ()
            rest = page.get("metadata", {}).get("continue")
            if not rest:
                return
            more["continue"] = rest

    def names(self, path: str, query: Mapping[str, str] | None = None) -> list[str]:
        return [each["metadata"]["name"] for each in self.items(path, query, accept=NAMES_ONLY)]

    def named(self, resource: Resource, name: str) -> Object:
        """One object of a cluster-wide kind. Where there is none, NotFound names similar ones."""
        if not _is_name(name):
            raise NotFound(f"{name!r} is not a name of an object")
        try:
            found: Object = self.get(resource.path(name))
            return found
        except NotFound as error:
            like = similar(name, self.names(resource.path()))
            raise NotFound(f"there is no {resource.kind} {name!r}{like}") from error


def similar(name: str, names: Sequence[str]) -> str:
    """``: did you mean n1 or n2?``, or what there is at all."""
    if not names:
        return ", nor any other"
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6) or [each for each in names if name in each][:3]
    if near:
        return f": did you mean {' or '.join(near)}?"
    if len(names) > 5:
        return f"; there are {len(names):,}, such as {', '.join(names[:3])}"
    return f"; there {'is' if len(names) == 1 else 'are'} {some(names, 5)}"


def connect(
    *, kubeconfig: str | None, context: str | None, namespace: str | None, user: str | None, seconds: float
) -> Cluster:
    """Credentials as kubectl finds them: --kubeconfig, $KUBECONFIG, ~/.kube/config, else the pod's service account."""
    try:
        from kubernetes import client, config
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "kubernetes":
            raise
        raise Trouble("the package kubernetes is not installed: pip install 'nodemem[kubectl]'") from error
    settings = client.Configuration()
    own = namespace
    in_pod = not kubeconfig and not context and "KUBERNETES_SERVICE_HOST" in os.environ
    try:
        contexts, active = config.list_kube_config_contexts(kubeconfig)  # type: ignore[no-untyped-call]
        chosen = active if context is None else next((each for each in contexts if each["name"] == context), None)
        if chosen is None:
            raise Trouble(
                f"there is no context {context!r}{similar(context or '', [each['name'] for each in contexts])}"
            )
        own = own or chosen["context"].get("namespace")
        config.load_kube_config(  # type: ignore[no-untyped-call]
            kubeconfig, context=context, client_configuration=settings, persist_config=False
        )
    except config.ConfigException as error:
        if not in_pod:
            raise Trouble(f"no cluster to ask: {error}\nName one with --kubeconfig, or in KUBECONFIG.") from error
        config.load_incluster_config(settings)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise Trouble(f"the kubeconfig can't be read: {error}") from error
    settings.retries = False
    return Cluster(client.ApiClient(settings), own or "default", user=user, seconds=seconds)


def _refusal(status: int, data: bytes, path: str) -> Trouble:
    text, reason = data[:500].decode(errors="replace").strip(), ""
    details: dict[str, Any] = {}
    try:
        answer = json.loads(data)
        text, reason, details = answer["message"], answer.get("reason", ""), answer.get("details") or {}
    except (ValueError, KeyError, TypeError):
        pass
    if status == 401:
        return Trouble(f"the API server does not accept the credentials: {text}\nTry kubectl auth whoami.")
    if status == 403:
        return _forbidden(text, path)
    if status == 404 and f"/{GROUP}/" in path and not details.get("name"):
        return NotInstalled(
            f"nodemem is not installed in this cluster: it knows no {path.split('/')[4]}.{GROUP}.\n"
            f"How to install it: {INSTALL}"
        )
    if status == 404:
        return NotFound(text)
    if status == 429 or status >= 500:
        return Trouble(f"the API server is in trouble ({status} {reason}): {text}")
    return Trouble(f"the API server refused ({status} {reason}): {text}")


def _forbidden(text: str, path: str) -> Forbidden:
    said = text.partition("forbidden: ")[2] or text
    lines = [f"not allowed: {said}"]
    if f"/{GROUP}/" in path:
        lines.append(
            "The cluster role 'view' has this right where the chart's rbac.aggregateToView is on: ask for a binding of "
            f"it {'in this namespace' if '/namespaces/' in path else 'for the whole cluster'}."
        )
    elif path.startswith("/api/v1/nodes"):
        lines.append("The labels of -l are those of Nodes: it takes the right to list nodes.")
    return Forbidden("\n".join(lines))


def _cause(error: BaseException) -> str:
    """The reason at the bottom, without the layers of the client."""
    reason = getattr(error, "reason", None)
    while isinstance(reason, BaseException):
        error, reason = reason, getattr(reason, "reason", None)
    text = str(error)
    return (text.partition(": ")[2] if text.startswith("<") else text) or type(error).__name__


def _is_name(name: str) -> bool:
    """Of an object: a path is made of it."""
    return bool(name) and len(name) <= 253 and all(c.isascii() and (c.isalnum() or c in "-.") for c in name)
