"""Processes that take memory when told to, and the kernel's word on which of them it killed."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

PATIENCE_SECONDS = 60
"""Not a claim about speed: after this the kernel is not going to do it any more."""

_PROGRAM = """
import mmap, sys
cgroup, adj, flags, name = sys.argv[1:]
open("/proc/self/comm", "w").write(name)
open(cgroup + "/cgroup.procs", "w").write("0")
open("/proc/self/oom_score_adj", "w").write(adj)
held = []
print("ready", flush=True)
for line in sys.stdin:
    part = mmap.mmap(-1, int(line), flags=int(flags))
    for at in range(0, len(part), 4096):
        part[at] = 1
    held.append(part)
    print("held", flush=True)
"""


class Worker:
    """A process in ``cgroup``, called ``name``, that takes memory when told to."""

    def __init__(self, cgroup: Path, adj: int = 0, *, name: str = "worker", shared: bool = False) -> None:
        flags = 0x20 | (0x01 if shared else 0x02)  # MAP_ANONYMOUS | MAP_SHARED or MAP_PRIVATE
        self._popen = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM, str(cgroup), str(adj), str(flags), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.pid = self._popen.pid
        assert self._answer() == b"ready\n"

    def _answer(self) -> bytes:
        assert self._popen.stdout is not None
        return self._popen.stdout.readline()

    def ask(self, size: int) -> None:
        assert self._popen.stdin is not None
        self._popen.stdin.write(b"%d\n" % size)
        self._popen.stdin.flush()

    def takes(self, size: int) -> bool:
        """False when it died of it."""
        self.ask(size)
        return self._answer() == b"held\n"

    def end(self) -> None:
        self._popen.kill()
        self._popen.wait()
        for stream in (self._popen.stdin, self._popen.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def eventually(what: str, ask: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not ask():
        if time.monotonic() > deadline:
            pytest.fail(f"still waiting for: {what}")
        time.sleep(0.01)


class KillLog:
    """The pids that the kernel says it killed, in order, from now on. /dev/kmsg gives one record a read(2)."""

    def __init__(self) -> None:
        self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(self._fd, 0, os.SEEK_END)
        self.pids: list[int] = []

    def read(self) -> list[int]:
        while True:
            try:
                record = os.read(self._fd, 8192)
            except BlockingIOError:
                return self.pids
            if match := re.search(rb"Killed process (\d+)", record):
                self.pids.append(int(match[1]))

    def close(self) -> None:
        os.close(self._fd)
