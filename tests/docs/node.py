"""``python -m docs.node``: a node in namespaces of its own, with what the pages tell of; ``unshare`` starts it as PID 1.

A mount and a PID namespace make a small machine: /run is a tmpfs that a journal fills, a pod has two processes of which
the wrong one would die, and a /dev/shm of 64 MiB; nothing else of the real machine's processes and mounts is seen. The
memory, the kernel and the cgroups are the real ones. Everything ends with standard input.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from kernel import workloads
from kernel.workloads import MIB

POD_LIMIT = 256 * MIB
_PR_SET_NAME = 15


def journal_bytes() -> int:
    """Of memory as much as a report finds worth a step, and then some."""
    total_kib = int(Path("/proc/meminfo").read_text().split()[1])
    return (total_kib * 1024 * 3 // 100) // MIB * MIB


def journald() -> None:
    """In a child: a process of journald's name, with files where journald has them."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, b"systemd-journal", 0, 0, 0)
    place = Path("/run/log/journal/5f1c0c5f3ad94c0f9bbf2b6b0f1d2e3c")
    place.mkdir(parents=True)
    piece = 128 * MIB
    left = journal_bytes()
    number = 0
    while left > 0:
        name = place / ("system.journal" if number == 0 else f"system@{number:04d}.journal")
        stream = name.open("wb")
        os.posix_fallocate(stream.fileno(), 0, min(piece, left))
        workloads._keep.append(stream)
        left -= piece
        number += 1


def holds(size: int, adj: int) -> Callable[[], None]:
    def setup() -> None:
        workloads._keep.append(bytearray(os.urandom(4096) * (size // 4096)))
        Path("/proc/self/oom_score_adj").write_text(str(adj))

    return setup


def container(size: int, adj: int) -> Callable[[], None]:
    """The same, with the mounts of a container."""

    def setup() -> None:
        workloads.unshare(workloads.CLONE_NEWNS)
        workloads.mount("none", "/", None, workloads.MS_REC | workloads.MS_PRIVATE)
        workloads.mount("shm", "/dev/shm", "tmpfs", 0, "size=64m")
        holds(size, adj)()

    return setup


def main() -> int:
    told = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.ExitStack() as stack:
        workloads.mount("none", "/", None, workloads.MS_REC | workloads.MS_PRIVATE)
        workloads.mount("tmpfs", "/run", "tmpfs", 0, f"size={journal_bytes() * 17 // 16},mode=755")
        stack.enter_context(workloads.child(journald))
        cgroup = stack.enter_context(
            workloads.container_cgroup(told["podUID"], told["containerID"], qos="Guaranteed", limit=POD_LIMIT)
        )
        stack.enter_context(workloads.child(container(64 * MIB, 0), cgroup))
        stack.enter_context(workloads.child(holds(4 * MIB, 900), cgroup))
        environment = {**os.environ, "CADENCE": "2 0.3"}
        with open(told["log"], "wb") as log:
            agent = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "cluster.fast_agent",
                    f"--node-name={told['node']}",
                    f"--kubeconfig={told['kubeconfig']}",
                    "--listen=127.0.0.1:0",
                    "--interval=1",
                    "--refresh=0.5",
                    "--enforce",
                ],
                env=environment,
                stdin=subprocess.DEVNULL,
                stderr=log,
            )
        stack.callback(agent.wait)
        stack.callback(agent.kill)
        print("ready", flush=True)
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
