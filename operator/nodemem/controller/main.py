"""Puts the parts together and runs them until a signal, or until one of them fails: then the process ends, and a
standby, or the next start, goes on from what is in the API server."""

import asyncio
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from nodemem import __version__
from nodemem.controller import metrics, watch
from nodemem.controller.client import Api, ApiError
from nodemem.controller.health import HealthServer
from nodemem.controller.lease import Elector
from nodemem.controller.metrics import Figures
from nodemem.controller.reconcile import Reconciler
from nodemem.controller.state import PATHS, Options

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Config:
    """``kubeconfig`` None: the service account of the pod. ``listen`` None: no health and metrics."""

    kubeconfig: str | None = None
    namespace: str = "nodemem-system"
    lease: str = "nodemem-controller"
    listen: tuple[str, int] | None = ("0.0.0.0", 8080)
    options: Options = field(default_factory=Options)


async def run(config: Config, stop: asyncio.Event) -> int:
    """0 after ``stop``; 1 when a part failed. Raises OSError when the port is taken."""
    identity = f"{os.environ.get('POD_NAME') or socket.gethostname()}_{secrets.token_hex(4)}"
    api = Api(config.kubeconfig, f"nodemem-controller/{__version__} ({identity})")
    reconciler = Reconciler(api, config.options, identity)
    elector = Elector(api, config.namespace, config.lease, identity, reconciler.lease)
    api.fence = lambda: elector.held
    watching = asyncio.Event()
    server, started_at = None, time.time()
    if config.listen is not None:
        server = HealthServer(
            config.listen,
            lambda: reconciler.beat,
            watching.is_set,
            lambda open_metrics: metrics.render(_figures(api, elector, reconciler, started_at), open_metrics),
        )
        _log.info("health and metrics on port %d", server.port)
    # Own tasks before kopf's: it ends those that begin after it.
    tasks: list[asyncio.Task[Any]] = [
        asyncio.create_task(elector.run(), name="lease"),
        asyncio.create_task(reconciler.run(), name="reconcile"),
        asyncio.create_task(stop.wait(), name="stop"),
    ]
    try:
        tasks.append(asyncio.create_task(_watch(api, reconciler, watching), name="watch"))
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return 0 if stop.is_set() else 1
    finally:
        # The Lease goes last: no write of this replica after the first of the next.
        await _end(tasks)
        await elector.release()
        await api.close()
        if server is not None:
            server.close()


async def _watch(api: Api, reconciler: Reconciler, watching: asyncio.Event) -> None:
    """Wait until the definitions are there (kopf would pass over what isn't), then watch."""
    for path in PATHS.values():
        while True:
            try:
                await api.read(path, {"limit": "1"})
                break
            except ApiError as error:
                _log.warning("waiting for %s: %s", path, error)
                await asyncio.sleep(2)
    await watch.operate(api, reconciler, watching)


async def _end(tasks: "Sequence[asyncio.Task[Any]]") -> None:
    """Cancel what still runs and wait; what had failed is logged."""
    for task in tasks:
        task.cancel()
    for task, outcome in zip(tasks, await asyncio.gather(*tasks, return_exceptions=True), strict=True):
        if isinstance(outcome, Exception):
            _log.error("%s failed", task.get_name(), exc_info=outcome)


class _Loop(asyncio.SelectorEventLoop):
    """Signals are taken once: kopf would take them over, be slow to end, and look like a part that failed."""

    def add_signal_handler(self, sig: int, callback: Callable[..., object], *args: object) -> None:
        pass

    def take_signals(self, callback: Callable[[], None]) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            super().add_signal_handler(number, callback)


def serve(config: Config) -> int:
    """In an event loop of its own, until SIGTERM or SIGINT."""
    loop = _Loop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        stop = asyncio.Event()
        loop.take_signals(stop.set)
        return runner.run(run(config, stop))


def _figures(api: Api, elector: Elector, reconciler: Reconciler, started_at: float) -> Figures:
    state, queue = reconciler.state, reconciler.queue
    return Figures(
        leader=elector.held,
        synced=reconciler.synced,
        nodes=len(state.nodes),
        reports=len(state.reports),
        tmpfs_policies=len(state.tmpfs_policies),
        oom_policies=len(state.oom_policies),
        writes=api.writes,
        write_errors=queue.errors,
        queue_depth=queue.depth,
        events=reconciler.writer.events,
        counts=reconciler.counts,
        started_at=started_at,
    )
