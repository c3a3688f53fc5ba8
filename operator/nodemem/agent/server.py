"""Metrics and health on one port: /metrics, /healthz, /readyz."""

import socket
import socketserver
import threading
from collections.abc import Callable

from nodemem.api.exposition import Exposition, wants_open_metrics

_REQUEST_BYTES = 8192
_SECONDS = 5.0
_AT_ONCE = 8


def parse_address(text: str) -> tuple[str, int]:
    """``HOST:PORT``, ``[IPv6]:PORT`` or ``:PORT`` (every address). Raises ValueError with a sentence."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535 or (":" in host and not host.startswith("[")):
        raise ValueError(f"{text!r}: expected ADDRESS:PORT, such as 127.0.0.1:9812, [::1]:9812 or :9812")
    return host.strip("[]"), int(port)


Answer = tuple[int, str, bytes]


class HealthServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """``metrics`` is told whether to speak OpenMetrics. ``healthy`` and ``ready`` give None when all is well, else why
    not. A thread for each request, a few at once."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 16

    def __init__(
        self,
        address: tuple[str, int],
        *,
        metrics: Callable[[bool], Exposition],
        healthy: Callable[[], str | None],
        ready: Callable[[], str | None],
    ) -> None:
        """Raises OSError when the address can't be listened on."""
        self._metrics = metrics
        self._healthy = healthy
        self._ready = ready
        self._room = threading.BoundedSemaphore(_AT_ONCE)
        host, port = address
        if not host and not _has_ipv6():
            host = "0.0.0.0"
        self.address_family = socket.AF_INET6 if not host or ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            # "::" is for IPv4, too.
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def answer(self, method: str, path: str, accept: str = "") -> Answer:
        if method not in ("GET", "HEAD"):
            return 405, "text/plain", b"only GET\n"
        match path.partition("?")[0]:
            case "/metrics":
                found = self._metrics(wants_open_metrics(accept))
                return 200, found.content_type, found.done()
            case "/healthz":
                return _health(self._healthy())
            case "/readyz":
                return _health(self._ready())
        return 404, "text/plain", b"/metrics, /healthz and /readyz are here\n"

    def process_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(
        self, request: socket.socket | tuple[bytes, socket.socket], client_address: object
    ) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is not worth a word."""


def _health(why_not: str | None) -> Answer:
    return (200, "text/plain", b"ok\n") if why_not is None else (503, "text/plain", f"{why_not}\n".encode())


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


class _Handler(socketserver.BaseRequestHandler):
    """HTTP/1.1 as far as a scraper and the kubelet need it: one request for each connection."""

    def handle(self) -> None:
        connection: socket.socket = self.request
        connection.settimeout(_SECONDS)
        data = b""
        while b"\r\n\r\n" not in data:
            more = connection.recv(4096)
            data += more
            if not more or len(data) > _REQUEST_BYTES:
                return
        lines = data.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
        words = lines[0].split(" ")
        status, kind, body = 400, "text/plain", b"not HTTP\n"
        if len(words) == 3 and words[2].startswith("HTTP/1."):
            assert isinstance(self.server, HealthServer)
            status, kind, body = self.server.answer(words[0], words[1], _accept(lines[1:]))
        head = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n"
        )
        connection.sendall(head.encode() + (b"" if words[0] == "HEAD" else body))


def _accept(headers: list[str]) -> str:
    return next((each.partition(":")[2] for each in headers if each.lower().startswith("accept:")), "")


_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}
