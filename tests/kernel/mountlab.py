"""Mount namespaces of our own, with known tmpfs in them. Everything is gone when the block ends.

with mount_namespace(lambda: tmpfs(base, "size=8m")) as lab:
    lab.pid, lab.namespace      # a process in it that waits
    lab.run(function)           # in a child inside it; its mounts stay, its answer is JSON
"""

import os
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nodemem.kernel import syscalls
from nodemem.kernel.host import Host
from nodemem.kernel.namespaces import in_namespaces

MIB = 1 << 20
MS_BIND = 0x1000
MS_SHARED = 0x100000


@dataclass(frozen=True)
class Lab:
    pid: int
    namespace: int

    def run(self, function: Callable[[], Any]) -> Any:
        return in_namespaces(self.pid, ("mnt",), function, 30.0)

    def mountinfo(self) -> bytes:
        return Path(f"/proc/{self.pid}/mountinfo").read_bytes()


@contextmanager
def mount_namespace(setup: Callable[[], Any], copy_of: Lab | None = None) -> Iterator[Lab]:
    """A process in a mount namespace of its own, a copy of this one or of a lab's, in which ``setup`` was called."""
    ready, tell = os.pipe()
    wait, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = b"setup never returned"
        try:
            os.close(end)
            syscalls.die_with_parent(9)
            if copy_of is not None:
                fd = os.open(f"/proc/{copy_of.pid}/ns/mnt", os.O_RDONLY)
                syscalls.setns(fd)
            syscalls.unshare(syscalls.CLONE_NEWNS)
            if copy_of is None:
                syscalls.mount(None, b"/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
            setup()
            said = b"ok"
        except BaseException as error:  # noqa: BLE001 - told to the parent
            said = repr(error).encode()
        finally:
            os.write(tell, said)
            os.read(wait, 1)
            os._exit(0)
    os.close(tell)
    os.close(wait)
    try:
        said = os.read(ready, 4096)
        assert said == b"ok", said
        yield Lab(pid, os.stat(f"/proc/{pid}/ns/mnt").st_ino)
    finally:
        os.close(ready)
        os.close(end)
        os.waitpid(pid, 0)


def tmpfs(path: Path | str | bytes, options: str = "size=16m") -> None:
    os.makedirs(path, exist_ok=True)
    syscalls.mount(b"lab", os.fsencode(path), b"tmpfs", 0, options.encode())


def bind(source: Path | str, target: Path | str, *, recursive: bool = False) -> None:
    flags = MS_BIND | (syscalls.MS_REC if recursive else 0)
    syscalls.mount(os.fsencode(source), os.fsencode(target), None, flags)


def make_shared(path: Path | str) -> None:
    syscalls.mount(None, os.fsencode(path), None, MS_SHARED)


def unmount(path: Path | str) -> None:
    syscalls.umount(os.fsencode(path), syscalls.MNT_DETACH)


def fill(path: Path | str | bytes, size: int) -> None:
    with open(path, "wb") as file:
        file.write(b"x" * size)


class CountingHost(Host):
    """Counts what is asked of the kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []
        self.observations: list[str] = []

    def read(self, path: str) -> bytes:
        self.reads.append(path)
        return super().read(path)

    def observe(self, key: str, measure: Callable[[], Any]) -> Any:
        self.observations.append(key)
        return super().observe(key, measure)


class StuckFuse:
    """A FUSE filesystem with one empty directory, ``d``, whose server answers until ``stop`` and never after."""

    def __init__(self, path: Path | str, entry_seconds: int) -> None:
        os.makedirs(path, exist_ok=True)
        self._fd = os.open("/dev/fuse", os.O_RDWR)
        self._entry_seconds = entry_seconds
        options = f"fd={self._fd},rootmode=40000,user_id=0,group_id=0,allow_other"
        syscalls.mount(b"stuck", os.fsencode(path), b"fuse.stuck", 0, options.encode())
        self._stopping = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True

    def _serve(self) -> None:
        while True:
            request = os.read(self._fd, 1 << 20)
            if self._stopping:
                return
            _, opcode, unique, node = struct.unpack_from("=IIQQ", request)
            body = request[40:]
            status, answer = 0, b""
            if opcode == 26:  # INIT
                answer = struct.pack("=IIIIHHIIHHI28x", 7, 31, 65536, 0, 12, 9, 65536, 1, 32, 0, 0)
            elif opcode == 1 and body == b"d\0":  # LOOKUP
                answer = struct.pack("=QQQQII", 2, 0, self._entry_seconds, self._entry_seconds, 0, 0) + self._attr(2)
            elif opcode == 3:  # GETATTR
                answer = struct.pack("=QII", self._entry_seconds, 0, 0) + self._attr(node)
            elif opcode == 1:
                status = -2
            else:
                status = -38
            if opcode not in (2, 42):  # FORGET, BATCH_FORGET take no answer
                os.write(self._fd, struct.pack("=IiQ", 16 + len(answer), status, unique) + answer)

    @staticmethod
    def _attr(node: int) -> bytes:
        return struct.pack("=QQQQQQIIIIIIIIII", node, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 2, 0, 0, 0, 4096, 0)
