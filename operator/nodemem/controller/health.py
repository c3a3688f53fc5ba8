"""/healthz, /readyz and /metrics, on a thread: a large LIST may hold the event loop for seconds."""

import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from nodemem.api.exposition import Exposition, wants_open_metrics

ALIVE_SECONDS = 60.0
"""A loop that has not turned for this long is not busy but stuck."""


class HealthServer:
    """``beat`` gives the ``time.monotonic`` at which the loop last turned; ``ready`` whether it watches;
    ``metrics`` is told whether to speak OpenMetrics."""

    def __init__(
        self,
        address: tuple[str, int],
        beat: Callable[[], float],
        ready: Callable[[], bool],
        metrics: Callable[[bool], Exposition],
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
                        found = metrics(wants_open_metrics(self.headers.get("Accept", "")))
                        self._answer(200, found.done(), found.content_type)
                    case _:
                        self._answer(404, "/healthz, /readyz, /metrics\n")

            def _answer(self, code: int, body: str | bytes, kind: str = "text/plain; charset=utf-8") -> None:
                data = body.encode() if isinstance(body, str) else body
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
