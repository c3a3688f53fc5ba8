"""Reads and sets oom_score_adj of the processes of one memory cgroup, and of no others.

Each process is held by a descriptor of its /proc directory, which stands for this process alone: once it is gone, the
kernel answers ESRCH, whoever has its pid by then. What is read there (cgroup, state, value) and what is written is of
one and the same process. Nothing can be compared and set in one step: a program that sets its own value in the
microseconds between the two is overruled.

What the kernel asks for (fs/proc/base.c, __set_oom_adj): to open the file for writing takes its owner, the process's
effective user, or CAP_DAC_OVERRIDE. To raise the value, and to lower it again to what somebody with CAP_SYS_RESOURCE
set last (oom_score_adj_min), takes nothing more. A writer that has CAP_SYS_RESOURCE moves that bound, too, so that
only another one with it could lower the value again: a process that is to put values back must not have it.

Processes that share an address space (CLONE_VM; vfork until exec aside) are all set by the kernel when one of them is.
"""

import errno
import os
from collections.abc import Iterator
from types import TracebackType

from nodemem.kernel.cgroups import Hierarchy
from nodemem.kernel.host import Host
from nodemem.kernel.processfiles import MalformedError, parse_stat

_PF_KTHREAD = 0x00200000
_GONE = (errno.ENOENT, errno.ESRCH)


class HeldProcess:
    """One process by its /proc directory. Every method raises OSError; ProcessLookupError when it is gone."""

    def __init__(self, host: Host, pid: int) -> None:
        self.pid = pid
        self._fd = os.open(f"{host.proc}/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def __enter__(self) -> "HeldProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def read(self, name: str) -> bytes:
        """The first 4095 bytes of a file in its directory."""
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            return os.read(fd, 4095)
        finally:
            os.close(fd)

    def counts(self) -> bool:
        """Whether the OOM killer looks at its value: not at a kernel thread's, nor at that of a dead process."""
        try:
            stat = parse_stat(self.read("stat"))
        except MalformedError as error:
            raise ProcessLookupError(errno.ESRCH, str(error)) from error
        return not stat.flags & _PF_KTHREAD and stat.state not in "ZXx"

    def oom_score_adj(self) -> int:
        return int(self.read("oom_score_adj"))

    def set_oom_score_adj(self, value: int) -> None:
        fd = os.open("oom_score_adj", os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            os.write(fd, b"%d" % value)
        finally:
            os.close(fd)


def processes(host: Host, hierarchy: Hierarchy, path: str) -> Iterator[HeldProcess]:
    """The living processes in ``path`` and all below it, as they are now; each is closed when the next one comes."""
    for pid in hierarchy.subtree_procs(path):
        try:
            with HeldProcess(host, pid) as process:
                # Asked of the descriptor: the pid may be another process's than the one that was listed.
                place = hierarchy.path_of(process.read("cgroup"))
                if place is not None and _inside(place, path) and process.counts():
                    yield process
        except OSError as error:
            if error.errno not in _GONE:
                raise


def _inside(path: str, top: str) -> bool:
    return path == top or path.startswith(f"{top.rstrip('/')}/")
