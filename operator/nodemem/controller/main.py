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


async def run(config: Config, stop: asyncio.Event, on_watching: Callable[[], None] | None = None) -> int:
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
        tasks.append(asyncio.create_task(_watch(api, reconciler, watching, on_watching), name="watch"))
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return 0 if stop.is_set() else 1
    finally:
        # The Lease goes last: no write of this replica after the first of the next.
        await _end(tasks)
        await elector.release()
        await api.close()
        if server is not None:
            server.close()


async def _watch(
    api: Api, reconciler: Reconciler, watching: asyncio.Event, on_watching: Callable[[], None] | None
) -> None:
    """Wait until the definitions are there (kopf would pass over what isn't), then watch."""
    for path in PATHS.values():
        while True:
            try:
                await api.read(path, {"limit": "1"})
                break
            except ApiError as error:
                _log.warning("waiting for %s: %s", path, error)
                await asyncio.sleep(2)

    async def begun() -> None:
        await watching.wait()
        # kopf says so a moment before it takes the signals.
        await asyncio.sleep(0.2)
        if on_watching is not None:
            on_watching()

    waiting = asyncio.create_task(begun(), name="begun")
    try:
        await watch.operate(api, reconciler, watching)
    finally:
        await _end([waiting])


async def _end(tasks: "Sequence[asyncio.Task[Any]]") -> None:
    """Cancel what still runs and wait; what had failed is logged."""
    for task in tasks:
        task.cancel()
    for task, outcome in zip(tasks, await asyncio.gather(*tasks, return_exceptions=True), strict=True):
        if isinstance(outcome, Exception):
            _log.error("%s failed", task.get_name(), exc_info=outcome)


def serve(config: Config) -> int:
    """In an event loop of its own, until SIGTERM or SIGINT."""

    async def main() -> int:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def take_signals() -> None:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, stop.set)

        take_signals()
        # kopf takes them too, and would be slow to end: take them back.
        return await run(config, stop, take_signals)

    return asyncio.run(main())


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
