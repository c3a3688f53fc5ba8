"""Small files of our own in the host's file tree: found, written and removed with no symlink followed.

A ``HostTree`` is the tree that pid 1 sees. Every path is resolved inside it (openat2: no symlink, no magic link), so
that nothing planted on the way leads anywhere else. Only a file whose first line is ``MARK`` is ever written over or
removed.

Next to a file there may be a *note*: an empty file that says that its content is not yet in effect. It is made before
the file is changed and removed when all that depends on it is done: whoever comes after a crash does it again.
"""

import errno
import os
import stat

from nodemem.kernel import syscalls
from nodemem.kernel.host import Host

MARK = "# Written by nodemem; changed and removed by it"
_LARGEST = 65536
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


class ForeignFileError(Exception):
    """There is a file at this path that nodemem didn't write."""


class HostTree:
    """``top``: a directory in place of pid 1's root, for tests. Raises OSError: ELOOP or ENOTDIR at a symlink."""

    def __init__(self, host: Host, top: str | None = None) -> None:
        self._top = top or f"{host.proc}/1/root"

    def open(self, path: str, flags: int = _DIRECTORY) -> int:
        """The caller closes it. Raises ProcessLookupError without a root: that says nothing of the path."""
        try:
            root = os.open(self._top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH), self._top) from None
        try:
            return syscalls.open_beneath(root, path, flags=flags)
        finally:
            os.close(root)

    def exists(self, path: str) -> bool:
        """A directory. False for what isn't one, or is behind a symlink."""
        try:
            os.close(self.open(path))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return False
            raise
        return True

    def names(self, path: str) -> list[str]:
        """What is in a directory; nothing where there is none."""
        try:
            fd = self.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return []
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)

    def read(self, path: str) -> str | None:
        """The first 64 KiB of a regular file; None where there is none."""
        try:
            fd = self.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "not a regular file", path)
            return os.read(fd, _LARGEST).decode("utf-8", "surrogateescape")
        finally:
            os.close(fd)

    def own(self, path: str) -> str | None:
        """Our file's text; None where there is none. Raises ForeignFileError."""
        text = self.read(path)
        if text is not None and not text.startswith(MARK):
            raise ForeignFileError(path)
        return text

    def noted(self, path: str) -> bool:
        directory, name = os.path.split(path)
        return self.exists(directory) and _note(name) in self.names(directory)

    def note(self, path: str) -> None:
        directory, name = self._parent(path)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(_note(name), flags, 0o600, dir_fd=directory))
        finally:
            os.close(directory)

    def done(self, path: str) -> None:
        """The note goes."""
        directory, name = os.path.split(path)
        self._unlink(directory, _note(name))

    def write(self, path: str, text: str) -> None:
        """All of it or nothing, whatever happens on the way; the directory is made where it is missing."""
        self.own(path)
        directory, name = self._parent(path)
        scratch = _scratch(name)
        try:
            _unlink(scratch, directory)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(scratch, flags, 0o600, dir_fd=directory)
            try:
                os.write(fd, text.encode("utf-8", "surrogateescape"))
                os.fchmod(fd, 0o644)
            finally:
                os.close(fd)
            os.rename(scratch, name, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError:
            _unlink(scratch, directory)
            raise
        finally:
            os.close(directory)

    def tidy(self, path: str) -> None:
        """Remove what a ``write`` that was killed may have left."""
        directory, name = os.path.split(path)
        if self.exists(directory):
            self._unlink(directory, _scratch(name))

    def remove(self, path: str) -> None:
        if self.own(path) is not None:
            self._unlink(*os.path.split(path))

    def _unlink(self, directory: str, name: str) -> None:
        try:
            fd = self.open(directory)
        except FileNotFoundError:
            return
        try:
            _unlink(name, fd)
        finally:
            os.close(fd)

    def _parent(self, path: str) -> tuple[int, str]:
        directory, name = os.path.split(path)
        try:
            return self.open(directory), name
        except FileNotFoundError:
            above, last = os.path.split(directory)
            fd = self.open(above)
            try:
                os.mkdir(last, 0o755, dir_fd=fd)
            except FileExistsError:
                pass
            finally:
                os.close(fd)
        return self.open(directory), name


def _note(name: str) -> str:
    """No program reads it, nor the next: what they read ends in .conf and doesn't begin with a dot."""
    return f".{name}.pending"


def _scratch(name: str) -> str:
    return f".{name}.new"


def _unlink(name: str, directory: int) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass
