"""Packaged programs that answer part of the same question, as Debian ships them: what they take, in the same run.

They are no budget. smem reads smaps of every process, process-exporter all of /proc/<pid>/{stat,status,smaps,...}, and
node_exporter no process at all; none of them reads cgroups, mount namespaces or tmpfs of containers.
"""

import os
import resource
import subprocess
import time
import urllib.request
from pathlib import Path

from debian import ensure


def smem() -> list[str]:
    return [ensure("smem", "smem"), "-c", "pid rss"]


def node_exporter(port: int) -> list[str]:
    return [ensure("prometheus-node-exporter", "prometheus-node-exporter"), f"--web.listen-address=127.0.0.1:{port}"]


def process_exporter(port: int) -> list[str]:
    program = ensure("prometheus-process-exporter", "prometheus-process-exporter")
    return [program, f"-web.listen-address=127.0.0.1:{port}", "-procnames=app,worker,pause"]


def program_ms(command: list[str]) -> float:
    """CPU of one run, the start of its interpreter included."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"bench: {command} ended with {process.returncode}")
    return (used.ru_utime + used.ru_stime) * 1e3


class Server:
    """An exporter on loopback; ``scrape_ms`` is its CPU for one scrape."""

    def __init__(self, command: list[str], port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/metrics"
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while True:
            try:
                self._scrape()
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"bench: {command[0]} serves nothing") from None
                time.sleep(0.1)

    def _scrape(self) -> None:
        with urllib.request.urlopen(self._url, timeout=60) as answer:
            answer.read()

    def scrape_ms(self) -> float:
        before = self._cpu_ns()
        self._scrape()
        return (self._cpu_ns() - before) / 1e6

    def _cpu_ns(self) -> int:
        """schedstat has nanoseconds; threads that ended meanwhile are not in it, and Go ends none."""
        tasks = Path(f"/proc/{self._process.pid}/task")
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir())

    def rss_bytes(self) -> int:
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
