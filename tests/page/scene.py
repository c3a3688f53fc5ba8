"""A machine in trouble, made on this one: a leak in a tmpfs, a memfd, a container in which the wrong process would die,
names that try to break out of a page; and what `nodemem report --html` writes of it."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kernel import workloads
from kernel.hungry import Worker
from kernel.workloads import MIB

LEAK = 1536 * MIB
FILES = {
    "/log/checkout/debug.log": 620,
    "/log/checkout/debug.log.1": 310,
    "/log/checkout/access.log": 96,
    "/log/payments/trace.bin": 240,
    "/cache/thumbnails/index.db": 120,
    "/cache/thumbnails/blobs-0001.pack": 64,
    "/session.sock.journal": 38,
}
"""In MiB; small ones make up the rest."""

EVIL = "</script><script>evil()<!--"
EVIL_COMM = "<b>&\"'</b>"
MEMFD = 300 * MIB
HOURS = 5
POD = f"5c1f7a20-0000-4000-8000-{os.getpid():012d}"
CONTAINER = f"{os.getpid():x}".ljust(64, "e")


@dataclass(frozen=True)
class Scene:
    leak: workloads.Workload
    memfd: workloads.Workload
    pids: dict[str, int]


@contextlib.contextmanager
def trouble() -> Iterator[Scene]:
    with contextlib.ExitStack() as stack:
        leak = stack.enter_context(workloads.tmpfs_here(0, limit=2048 * MIB))
        for path, size in FILES.items():
            os.makedirs(os.path.dirname(leak.path + path), exist_ok=True)
            workloads.fill(leak.path + path, size * MIB)
        os.makedirs(f"{leak.path}/{EVIL.replace('/', '_')}")
        rest = LEAK - sum(FILES.values()) * MIB
        workloads.fill(f"{leak.path}/{EVIL.replace('/', '_')}/<img src=x onerror=evil()>", rest // 2)
        for number in range(16):
            workloads.fill(f"{leak.path}/log/part-{number}", rest // 32)
        memfd = stack.enter_context(workloads.memfd(MEMFD, name="gpu-staging <i>"))
        limit = 256 * MIB
        app = stack.enter_context(workloads.container_cgroup(POD, CONTAINER, qos="Burstable", limit=limit))
        pids = {}
        for name, adj, size in ((EVIL_COMM, 0, 190), ("exporter", 999, 12)):
            worker = Worker(app, adj, name=name)
            stack.callback(worker.end)
            assert worker.takes(size * MIB)
            pids[name] = worker.pid
        yield Scene(leak, memfd, pids)


def write_page(target: Path, scene: Scene, *options: str) -> str:
    """By the command, with a history of some hours in which the leak grew steadily."""
    history = target.with_suffix(".history")
    history.unlink(missing_ok=True)
    command = [sys.executable, "-m", "nodemem", "report", "--history", str(history)]
    subprocess.run(command, check=True, capture_output=True)
    stored = json.loads(history.read_text())
    steps = 24
    for name, series in stored["series"].items():
        (now,), (value,) = series
        shares = [0.45 + 0.55 * step / steps for step in range(steps + 1)]
        moved = name == f"tmpfs {scene.leak.device}"
        series[0] = [now - 3600 * HOURS * (1 - step / steps) for step in range(steps + 1)]
        grown = LEAK if name in ("shmem", "available") else value
        sign = {"shmem": 1, "available": -1}.get(name, 1 if moved else 0)
        series[1] = [int(value - sign * grown * (1 - share)) for share in shares]
    history.write_text(json.dumps(stored))
    done = subprocess.run([*command, *options, "--html", str(target)], check=True, capture_output=True, text=True)
    return done.stderr
