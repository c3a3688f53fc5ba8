"""Run a function inside another process's namespaces, in a short-lived forked child, and bring its answer back.

Enters: a process, the kinds of namespace, a function that returns JSON values. Leaves: that value, or the function's
OSError. The caller itself never changes its namespaces. Entering needs CAP_SYS_ADMIN (and CAP_SYS_CHROOT for mnt) here
and in the user namespace that owns the target.
"""

import contextlib
import errno
import gc
import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from nodemem.kernel import syscalls

_ORDER = ("user", "cgroup", "ipc", "uts", "net", "time", "pid", "mnt")  # user first: it brings the rights for the rest
_MAX_ANSWER = 64 << 20

# Killed children that would not die at once (in uninterruptible sleep): reaped by a later call.
_lingering: list[int] = []


class ChildFailedError(RuntimeError):
    """The function raised something else than OSError inside the child: a bug in it. Holds its class and message."""


def in_namespaces(
    pid: int,
    kinds: Sequence[str],
    fn: Callable[[], Any],
    timeout: float = 5.0,
    *,
    proc: str = "/proc",
    inodes: Mapping[str, int] | None = None,
) -> Any:
    """``fn()`` as run by a child inside the ``kinds`` ("mnt", "ipc", ...) of namespaces of process ``pid``.

    ``inodes`` (kind -> namespace inode) guards against a reused pid: ProcessLookupError when the process is in another
    one by now. Else raises what opening, setns(2) or ``fn`` raised as OSError, TimeoutError after ``timeout`` seconds
    (the child is killed), ChildProcessError when the child was killed by somebody else, ChildFailedError.
    """
    fds: list[int] = []
    try:
        for kind in sorted(kinds, key=_ORDER.index):
            path = f"{proc}/{pid}/ns/{kind}"
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            fds.append(fd)
            if inodes is not None and kind in inodes and os.fstat(fd).st_ino != inodes[kind]:
                raise ProcessLookupError(errno.ESRCH, f"the process is no longer in {kind}:[{inodes[kind]}]", path)
        return in_namespace_fds(fds, fn, timeout)
    finally:
        for fd in fds:
            os.close(fd)


def in_namespace_fds(fds: Iterable[int], fn: Callable[[], Any], timeout: float = 5.0) -> Any:
    """The same for namespaces that are already open; they are entered in the order given and left open."""
    _reap()
    fds = list(fds)
    reader, writer = os.pipe()
    try:
        child = os.fork()
        if child == 0:
            _child(fds, fn, writer)
        os.close(writer)
        writer = -1
        answer = _receive(reader, child, timeout)
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
    return _decode(answer)


def _child(fds: Sequence[int], fn: Callable[[], Any], writer: int) -> NoReturn:
    status = 1
    try:
        gc.disable()  # a collection would only copy the parent's pages
        syscalls.die_with_parent(signal.SIGKILL)
        try:
            for fd in fds:
                syscalls.setns(fd)
            answer: dict[str, Any] = {"value": fn()}
        except OSError as error:
            name = error.filename
            answer = {
                "errno": error.errno or errno.EIO,
                "strerror": error.strerror or str(error),
                "filename": os.fsdecode(name) if isinstance(name, str | bytes) else None,
            }
        data = memoryview(json.dumps(answer).encode("ascii"))
        while data:
            data = data[os.write(writer, data) :]
        status = 0
    except BaseException as error:  # noqa: BLE001 - nothing may escape into the code of the parent
        with contextlib.suppress(BaseException):
            os.write(writer, json.dumps({"failed": f"{type(error).__name__}: {error}"[:2000]}).encode("ascii"))
    finally:
        os._exit(status)


def _receive(reader: int, child: int, timeout: float) -> bytes:
    deadline = time.monotonic() + timeout
    parts: list[bytes] = []
    size = 0
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    try:
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(max(1, int(left * 1000))):
                raise TimeoutError(errno.ETIMEDOUT, f"no answer from inside the namespace within {timeout:g} s")
            part = os.read(reader, 65536)
            if not part:
                break
            size += len(part)
            if size > _MAX_ANSWER:
                raise OSError(errno.EFBIG, "the answer from inside the namespace is too long")
            parts.append(part)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        _lingering.append(child)
        _reap(patience=0.2)
        raise
    _, status = os.waitpid(child, 0)
    if not parts:
        what = f"killed by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "ended without an answer"
        raise ChildProcessError(errno.ECHILD, f"the child inside the namespace was {what}")
    return b"".join(parts)


def _reap(patience: float = 0.0) -> None:
    deadline = time.monotonic() + patience
    for child in list(_lingering):
        while True:
            try:
                done, _ = os.waitpid(child, os.WNOHANG)
            except ChildProcessError:
                done = child
            if done:
                _lingering.remove(child)
                break
            if time.monotonic() >= deadline:
                break
            time.sleep(0.005)


def _decode(data: bytes) -> Any:
    try:
        answer = json.loads(data)
    except ValueError:
        raise ChildProcessError(errno.ECHILD, "the child inside the namespace died within its answer") from None
    if "failed" in answer:
        raise ChildFailedError(answer["failed"])
    if "errno" in answer:
        raise OSError(answer["errno"], answer["strerror"], answer["filename"])
    return answer["value"]
