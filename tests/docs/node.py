"""``python -m docs.node``: a node in namespaces of its own, with what the pages tell of. It is PID 1 there.

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

SANDBOX_SHM = f"/run/containerd/io.containerd.grpc.v1.cri/sandboxes/{'5a' * 32}/shm"
"""Where containerd has the /dev/shm that a pod's containers share."""

JOURNAL = "/run/log/journal/5f1c0c5f3ad94c0f9bbf2b6b0f1d2e3c"

POD_LIMIT = 256 * MIB
_PR_SET_NAME = 15


def journal_bytes() -> int:
    """Of memory as much as a report finds worth a step, and then some."""
    total_kib = int(Path("/proc/meminfo").read_text().split()[1])
    return (total_kib * 1024 * 3 // 100) // MIB * MIB


def journal_files() -> list[tuple[str, int]]:
    """Path and size; the first one is the current one."""
    piece, left, files = 128 * MIB, journal_bytes(), []
    while left > 0:
        name = f"system@{len(files):04d}.journal" if files else "system.journal"
        files.append((f"{JOURNAL}/{name}", min(piece, left)))
        left -= piece
    return files


def journald() -> None:
    """In a child: a process of journald's name, with files where journald has them, and the current one open."""
    call_it("systemd-journal")
    os.makedirs(JOURNAL)
    for path, size in journal_files():
        stream = open(path, "wb")  # noqa: SIM115 - the current one stays open
        os.posix_fallocate(stream.fileno(), 0, size)
        workloads._keep.append(stream)
        if len(workloads._keep) > 1:
            workloads._keep.pop().close()


def call_it(name: str) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def holds(name: str, size: int, adj: int) -> Callable[[], None]:
    def setup() -> None:
        call_it(name)
        workloads._keep.append(bytearray(os.urandom(4096) * (size // 4096)))
        Path("/proc/self/oom_score_adj").write_text(str(adj))

    return setup


def container(name: str, size: int, adj: int) -> Callable[[], None]:
    """The same, with the mounts of a container."""

    def setup() -> None:
        workloads.unshare(workloads.CLONE_NEWNS)
        workloads.mount("none", "/", None, workloads.MS_REC | workloads.MS_PRIVATE)
        workloads.mount(SANDBOX_SHM, "/dev/shm", None, workloads.MS_BIND)
        holds(name, size, adj)()

    return setup


def main() -> int:
    told = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.ExitStack() as stack:
        workloads.mount("none", "/", None, workloads.MS_REC | workloads.MS_PRIVATE)
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            if "/nodemem-test-" in (path := line.split()[4]):
                workloads.umount(path, workloads.MNT_DETACH)  # of tests that run at the same time
        workloads.mount("tmpfs", "/run", "tmpfs", 0, f"size={journal_bytes() * 17 // 16},mode=755")
        stack.enter_context(workloads.child(journald))
        os.makedirs(SANDBOX_SHM)
        workloads.mount("shm", SANDBOX_SHM, "tmpfs", 0, "size=64m,mode=1777")
        # As container_cgroup, but for the name: it has the PID in it, which is 1 in every PID namespace.
        pod = f"nodemem-docs-{told['podUID'][:8]}/kubepods/pod{told['podUID']}/{told['containerID']}"
        cgroup = stack.enter_context(workloads.memory_cgroup(pod, limit=POD_LIMIT))
        stack.enter_context(workloads.child(container("cart", 64 * MIB, 0), cgroup))
        stack.enter_context(workloads.child(holds("exporter", 4 * MIB, 900), cgroup))
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
