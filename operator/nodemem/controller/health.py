"""/healthz, /readyz and /metrics, on a thread: a large LIST may hold the event loop for seconds."""

import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ALIVE_SECONDS = 60.0
"""A loop that has not turned for this long is not busy but stuck."""

Metric = tuple[str, str, str, list[tuple[str, float]]]
"""Name, type, help, and values by their labels as text."""


class HealthServer:
    """``beat`` gives the ``time.monotonic`` at which the loop last turned; ``ready`` whether it watches."""

    def __init__(
        self,
        address: tuple[str, int],
        beat: Callable[[], float],
        ready: Callable[[], bool],
        metrics: Callable[[], Iterator[Metric]],
    ) -> None:
        """Listens at once. Raises OSError."""

        class Handler(BaseHTTPRequestHandler):
            timeout = 10.0
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                match self.path:
                    case "/healthz":
                        age = time.monotonic() - beat()
                        self._answer(200 if age < ALIVE_SECONDS else 503, f"the loop turned {age:.0f} s ago\n")
                    case "/readyz":
                        self._answer(200, "watching\n") if ready() else self._answer(503, "not watching yet\n")
                    case "/metrics":
                        self._answer(200, text(metrics()), "text/plain; version=0.0.4; charset=utf-8")
                    case _:
                        self._answer(404, "/healthz, /readyz, /metrics\n")

            def _answer(self, code: int, body: str, kind: str = "text/plain; charset=utf-8") -> None:
                data = body.encode()
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(address, Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def text(metrics: Iterator[Metric]) -> str:
    """The Prometheus text format."""
    lines = []
    for name, kind, about, values in metrics:
        lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
        lines += [f"{name}{f'{{{labels}}}' if labels else ''} {value:.15g}" for labels, value in values]
    return "\n".join(lines) + "\n"
