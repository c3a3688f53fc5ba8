"""Where the API server is and how to prove who we are: in a pod, or from a kubeconfig.

What is read from files is read again when it changes: the kubelet rotates the token, the cluster its certificates.
"""

import importlib
import json
import os
import re
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
TOKEN_SECONDS = 60.0
"""The kubelet replaces a token when 80 % of its life is over, at the earliest after 8 minutes."""

_SERVER = re.compile(r"https://(?P<host>\[[0-9a-fA-F:.]+\]|[^\s/:@\[\]?#]+)(?::(?P<port>\d{1,5}))?(?P<path>/[^\s?#]*)?")


class ConfigError(ValueError):
    """The message is a sentence for the person who has to correct it."""


class Token:
    """A bearer token: given, or read from a file each ``TOKEN_SECONDS``. Used by several threads."""

    def __init__(
        self, text: str | None = None, path: str | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._text = text
        self._path = path
        self._clock = clock
        self._read_at: float | None = None

    def header(self) -> str | None:
        """The Authorization header; None without a token. While the file can't be read the last token stays in use.

        Raises ConfigError if the file could never be read.
        """
        if self._path is not None and (self._read_at is None or self._clock() - self._read_at >= TOKEN_SECONDS):
            try:
                with open(self._path, encoding="ascii") as stream:
                    text = stream.read().strip()
            except (OSError, UnicodeDecodeError) as error:
                if self._text is None:
                    raise ConfigError(f"{self._path}: no token to authenticate with: {error}") from error
            else:
                if len(text.split()) == 1:
                    self._text = text
                elif self._text is None:
                    raise ConfigError(f"{self._path}: expected a token, one word")
            self._read_at = self._clock()
        return None if self._text is None else f"Bearer {self._text}"

    def expire(self) -> bool:
        """The server refused the token: read it again at the next use. False if there is no file to read."""
        self._read_at = None
        return self._path is not None


@dataclass(slots=True)
class Server:
    """An API server, its certificate authority (None: the system's) and our credentials."""

    host: str
    port: int
    prefix: str
    token: Token
    ca_file: str | None = None
    ca_data: str | None = None
    certificate: bytes | None = None
    """PEM: client certificate and key."""
    _context: ssl.SSLContext | None = field(default=None, repr=False)
    _ca_stamp: tuple[int, int] | None = field(default=None, repr=False)

    def tls(self) -> ssl.SSLContext:
        """The context for a new connection, made anew when the CA file was replaced. Raises OSError."""
        stamp = None
        if self.ca_file is not None:
            status = os.stat(self.ca_file)
            stamp = (status.st_ino, status.st_mtime_ns)
        if self._context is None or stamp != self._ca_stamp:
            context = ssl.create_default_context(cafile=self.ca_file, cadata=self.ca_data)
            context.set_alpn_protocols(["http/1.1"])
            if self.certificate is not None:
                _load_certificate(context, self.certificate)
            self._context, self._ca_stamp = context, stamp
        return self._context


def in_cluster(directory: str = SERVICE_ACCOUNT, environment: Mapping[str, str] = os.environ) -> Server:
    """The API server as a pod is told of it. Raises ConfigError."""
    host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise ConfigError(
            "KUBERNETES_SERVICE_HOST is not set, so this is no pod: name a kubeconfig with --kubeconfig FILE"
        )
    if not port.isdecimal():
        raise ConfigError(f"KUBERNETES_SERVICE_PORT is {port!r}: expected a number")
    token = Token(path=f"{directory}/token")
    token.header()
    ca_file = f"{directory}/ca.crt"
    if not os.path.exists(ca_file):
        raise ConfigError(f"{ca_file}: not there, so the API server's certificate can't be checked")
    return Server(host, int(port), "", token, ca_file=ca_file)


def from_kubeconfig(path: str) -> Server:
    """The current context of a kubeconfig: a token or a client certificate; TLS is always checked.

    A file in JSON needs nothing; for YAML, PyYAML has to be installed. Raises ConfigError.
    """
    config = _load(path)
    try:
        context = _named(config, "contexts", config["current-context"])["context"]
        cluster = _named(config, "clusters", context["cluster"])["cluster"]
        user = _named(config, "users", context["user"])["user"]
        url = _SERVER.fullmatch(cluster["server"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: expected a current-context with its cluster, server and user ({error})") from error
    if url is None:
        raise ConfigError(f"{path}: server is {cluster['server']!r}: expected https://HOST[:PORT]")
    for what, where in (("insecure-skip-tls-verify", cluster), ("proxy-url", cluster), ("exec", user)):
        if where.get(what):
            raise ConfigError(f"{path}: {what} is not supported: give a certificate authority, and a token or key")
    base = os.path.dirname(os.path.abspath(path))
    token = user.get("token")
    token_file = _beside(base, user.get("tokenFile"))
    certificate = _pem(path, base, user, "client-certificate")
    key = _pem(path, base, user, "client-key")
    if not token and not token_file and certificate is None:
        raise ConfigError(f"{path}: the user {context['user']!r} has no token and no client certificate")
    if (certificate is None) != (key is None):
        raise ConfigError(f"{path}: client-certificate and client-key only work together")
    ca_data = _pem(path, base, {**cluster, "certificate-authority": None}, "certificate-authority")
    server = Server(
        url["host"].strip("[]"),
        int(url["port"] or 443),
        (url["path"] or "").rstrip("/"),
        Token(text=None if token_file else token, path=token_file),
        ca_file=None if ca_data else _beside(base, cluster.get("certificate-authority")),
        ca_data=None if ca_data is None else ca_data.decode("ascii", "replace"),
        certificate=None if certificate is None or key is None else certificate + b"\n" + key,
    )
    server.token.header()
    try:
        server.tls()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: the certificates in it can't be used: {error}") from error
    return server


def _load(path: str) -> Any:
    try:
        with open(path, "rb") as stream:
            data = stream.read()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    try:
        return json.loads(data)
    except ValueError:
        pass
    try:
        # Only for people: a pod has no kubeconfig, and the agent's image no PyYAML. By name, as it is no dependency.
        yaml = importlib.import_module("yaml")
    except ImportError as error:
        raise ConfigError(
            f"{path}: not JSON, and PyYAML is not installed; write it with: kubectl config view --raw -o json"
        ) from error
    try:
        return yaml.safe_load(data)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: neither JSON nor YAML: {error}") from error


def _named(config: Any, kind: str, name: str) -> Any:
    found = next((entry for entry in config.get(kind) or () if entry["name"] == name), None)
    if found is None:
        raise KeyError(f"no {name!r} in {kind}")
    return found


def _beside(base: str, path: str | None) -> str | None:
    """Paths in a kubeconfig are relative to the file."""
    return os.path.join(base, path) if path else None


def _pem(path: str, base: str, where: Mapping[str, Any], what: str) -> bytes | None:
    """``what``-data in base64, else the file that ``what`` names."""
    if data := where.get(f"{what}-data"):
        import base64  # no pod needs it

        try:
            return base64.b64decode(data, validate=True)
        except ValueError as error:
            raise ConfigError(f"{path}: {what}-data is not base64") from error
    file = _beside(base, where.get(what))
    if file is None:
        return None
    try:
        with open(file, "rb") as stream:
            return stream.read()
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error


def _load_certificate(context: ssl.SSLContext, pem: bytes) -> None:
    """OpenSSL reads certificates from files only; this one is in memory and nowhere else."""
    fd = os.memfd_create("client-certificate", os.MFD_CLOEXEC)
    try:
        os.write(fd, pem)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
