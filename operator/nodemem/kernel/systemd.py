"""The host's systemd: whether it runs, journald's volatile journal, and the programs that change something there.

What is changed, systemd and its programs change: our part is a drop-in (``hostfiles``), a restart, a rotation, a start.
The host's own programs run in a short-lived child inside pid 1's mount namespace, so that they fit the host's systemd;
they speak to it over its sockets in /run, as root.
"""

import os
import stat
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from nodemem.kernel import namespaces, syscalls
from nodemem.kernel.host import Host
from nodemem.kernel.hostfiles import HostTree

JOURNALD, CLEAN = "systemd-journald.service", "systemd-tmpfiles-clean.service"
VOLATILE_JOURNAL = "/run/log/journal"

_PLACES = ("/usr/bin", "/bin", "/run/current-system/sw/bin")
_CONFIGURATION = ("/etc/systemd", "/run/systemd", "/usr/local/lib/systemd", "/usr/lib/systemd", "/lib/systemd")
_MACHINE_ID_LENGTH = 32
_MOST_OUTPUT = 4096
_READ = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_MOST_DEPTH = 32


class ProgramError(Exception):
    """A program of the host is missing, or ended with an error; the message holds its words."""


class OldFiles(NamedTuple):
    """Regular files below a path that were not used for some time. ``whole`` False: not all of it was looked at."""

    files: int
    bytes: int
    whole: bool = True


def booted(tree: HostTree) -> bool:
    """As sd_booted(3) tells it."""
    return tree.exists("/run/systemd/system")


def journal_bytes(tree: HostTree) -> int | None:
    """Allocated to the files of journald's volatile journal, those of its namespaces (``<id>.<name>``) left out, which
    have limits of their own. None where it keeps none: its journal is on disk, or nowhere."""
    found = None
    for name in tree.names(VOLATILE_JOURNAL):
        if len(name) != _MACHINE_ID_LENGTH:
            continue
        try:
            fd = tree.open(f"{VOLATILE_JOURNAL}/{name}", _READ)
        except OSError:
            continue  # not a directory
        try:
            for each in os.listdir(fd):
                if each.endswith((".journal", ".journal~")):
                    try:
                        status = os.stat(each, dir_fd=fd, follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    found = (found or 0) + status.st_blocks * 512
        finally:
            os.close(fd)
    return found


def overriding(tree: HostTree, drop_in: str, setting: str) -> str | None:
    """The file that has the last word on a setting instead of ``drop_in``, a name in journald.conf.d. Of equal names
    /etc comes before /run, and of different ones the last counts."""
    directory, name = os.path.split(drop_in)
    kind = os.path.basename(directory)
    for place in _CONFIGURATION:
        for each in reversed(tree.names(f"{place}/{kind}") if tree.exists(f"{place}/{kind}") else []):
            path = f"{place}/{kind}/{each}"
            if path == drop_in or not each.endswith(".conf"):
                continue
            if each == name and place == "/etc/systemd":
                return path
            try:
                text = tree.read(path) if each > name else None
            except OSError:
                continue  # a link to /dev/null, as masks are
            if text is not None and any(line.strip().startswith(f"{setting}=") for line in text.splitlines()):
                return path
    return None


def old_files(tree: HostTree, directories: Sequence[str], before: float, *, most: int = 20_000) -> OldFiles:
    """Below the directories, what systemd-tmpfiles would find old: last read, written and changed before that Unix
    time. An estimate: it leaves out what is locked, in use as a socket, or excluded by the host. Stays on one tmpfs.

    Cost: a stat(2) for each entry, ``most`` of them.
    """
    files = size = seen = 0
    seen_files: set[tuple[int, int]] = set()
    for directory in directories:
        try:
            fd = tree.open(directory, _READ)
        except OSError:
            continue
        for status in _walk(fd, os.fstat(fd).st_dev, _MOST_DEPTH):
            seen += 1
            if seen > most:
                return OldFiles(files, size, whole=False)
            identity = (status.st_dev, status.st_ino)
            if (
                stat.S_ISREG(status.st_mode)
                and max(status.st_atime, status.st_mtime, status.st_ctime) < before
                and identity not in seen_files
            ):
                files += 1
                size += status.st_blocks * 512
                if status.st_nlink > 1:
                    seen_files.add(identity)
    return OldFiles(files, size)


def _walk(fd: int, device: int, depth: int) -> Iterator[os.stat_result]:
    """Closes ``fd``."""
    try:
        for name in os.listdir(fd):
            try:
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if status.st_dev != device:
                    continue
                yield status
                if stat.S_ISDIR(status.st_mode) and depth:
                    yield from _walk(os.open(name, _READ, dir_fd=fd), device, depth - 1)
            except OSError:
                continue  # gone, or replaced by something else
    finally:
        os.close(fd)


def expand(tree: HostTree, pattern: str, *, most: int = 256) -> list[str]:
    """The directories that a path with wildcards means; the path itself where it has none."""
    from fnmatch import fnmatchcase

    found = [""]
    for part in pattern.split("/")[1:]:
        if not any(sign in part for sign in "*?"):
            found = [f"{each}/{part}" for each in found]
            continue
        below: list[str] = []
        for each in found:
            try:
                names = tree.names(each or "/")
            except OSError:
                continue
            # As glob(3) does: a wildcard doesn't stand for a leading dot.
            below += [
                f"{each}/{name}" for name in names if fnmatchcase(name, part) and (name[0] != "." or part[0] == ".")
            ]
        found = [each for each in below if tree.exists(each)][:most]
    return found


def on_tmpfs(tree: HostTree, path: str) -> bool:
    """Whether a directory is on a tmpfs; of one that isn't there yet, the nearest one above. Raises OSError: ELOOP or
    ENOTDIR where a symlink or a file is on the way."""
    while True:
        try:
            fd = tree.open(path or "/")
        except FileNotFoundError:
            path = os.path.dirname(path)
            continue
        try:
            return syscalls.fd_magic(fd) == syscalls.TMPFS_MAGIC
        finally:
            os.close(fd)


def restart_journald(host: Host, timeout: float = 45.0) -> None:
    """It reads its configuration anew. systemd keeps its sockets open meanwhile, and the streams of running services
    (FileDescriptorStoreMax of its unit)."""
    _run(host, "systemctl", ("--no-ask-password", "--quiet", "restart", JOURNALD), timeout)


def rotate_journal(host: Host, timeout: float = 45.0) -> None:
    """journald closes the files it writes, begins new ones, and removes the oldest until all fit its limits. Returns
    when that is done, but where journalctl is too old to ask for it."""
    try:
        _run(host, "journalctl", ("--rotate",), timeout)
    except ProgramError:
        _run(host, "systemctl", ("--no-ask-password", "kill", "--signal=USR2", JOURNALD), timeout)


def clean(host: Host, timeout: float = 45.0) -> None:
    """What systemd's daily timer starts: systemd-tmpfiles --clean, with all of the host's configuration. TimeoutError:
    it goes on by itself."""
    _run(host, "systemctl", ("--no-ask-password", "--quiet", "start", CLEAN), timeout)


def _run(host: Host, program: str, arguments: tuple[str, ...], timeout: float) -> None:
    def inside() -> list[object]:
        path = next((each for place in _PLACES if os.access(each := f"{place}/{program}", os.X_OK)), None)
        if path is None:
            return [-1, f"there is no {program} in {', '.join(_PLACES)}"]
        reader, writer = os.pipe()
        child = os.posix_spawn(
            path,
            [path, *arguments],
            {"PATH": ":".join(_PLACES), "LC_ALL": "C", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, writer, 1),
                (os.POSIX_SPAWN_DUP2, writer, 2),
            ],
        )
        os.close(writer)
        text = b""
        while part := os.read(reader, _MOST_OUTPUT):
            text = (text + part)[-_MOST_OUTPUT:]
        return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text.decode("utf-8", "replace")]

    started = time.monotonic()
    try:
        code, text = namespaces.in_namespaces(1, ("mnt",), inside, timeout, proc=host.proc)
    except TimeoutError:
        raise TimeoutError(
            f"{program} {' '.join(arguments)}: no end after {time.monotonic() - started:.0f} s"
        ) from None
    if code != 0:
        words = " ".join(str(text).split()) or f"exit code {code}"
        raise ProgramError(f"{program}: {words}")
