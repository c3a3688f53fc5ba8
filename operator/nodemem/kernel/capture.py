"""A node's answers written down, and read back: how a user sends a bug, and how other kernels are tested.

A capture is a tar of the files that were read, and an index with every other answer: links, stat and statvfs results,
listings, observations, errors.
"""

import errno
import io
import json
import os
import tarfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from nodemem.kernel.host import FileStat, FilesystemUsage, Host

CAPTURE_FORMAT = 1
CAPTURE_INDEX = "nodemem-capture.json"


class RecordingHost(Host):
    """A live host that keeps each answer it gives, to be written to a capture."""

    def __init__(self, root: str = "") -> None:
        super().__init__(root)
        self._files: dict[str, bytes] = {}
        self._answers: dict[str, dict[str, Any]] = {}
        self._started = time.time()

    def now(self) -> float:
        return self._started

    def _strip(self, path: str) -> str:
        return path[len(self.root) :] if self.root and path.startswith(self.root) else path

    def _keep(self, verb: str, path: str, ask: Callable[[], Any], encode: Callable[[Any], Any]) -> Any:
        answers = self._answers.setdefault(verb, {})
        try:
            value = ask()
        except OSError as error:
            answers[self._strip(path)] = {"errno": error.errno or errno.EIO}
            raise
        answers[self._strip(path)] = {"value": encode(value)}
        return value

    def _keep_file(self, path: str, ask: Callable[[str], bytes]) -> bytes:
        data: bytes = self._keep("read", path, lambda: ask(path), lambda value: None)
        self._files[self._strip(path)] = data
        return data

    def read(self, path: str) -> bytes:
        return self._keep_file(path, super().read)

    def read_small(self, path: str) -> bytes:
        return self._keep_file(path, super().read_small)

    def listdir(self, path: str) -> list[str]:
        names: list[str] = self._keep("listdir", path, lambda: os.listdir(path), list)
        return names

    def readlink(self, path: str) -> str:
        target: str = self._keep("readlink", path, lambda: os.readlink(path), str)
        return target

    def stat(self, path: str) -> FileStat:
        ask = super().stat
        value: FileStat = self._keep("stat", path, lambda: ask(path), _slots)
        return value

    def statvfs(self, path: str) -> FilesystemUsage:
        ask = super().statvfs
        value: FilesystemUsage = self._keep("statvfs", path, lambda: ask(path), _slots)
        return value

    def observe(self, key: str, measure: Callable[[], Any]) -> Any:
        return self._keep("observe", key, measure, lambda value: value)

    def write(self, path: Path) -> None:
        """Write the capture as a tar of what was read, plus ``nodemem-capture.json`` for all other answers."""
        answers = {
            verb: {key: value for key, value in table.items() if verb != "read" or "errno" in value}
            for verb, table in self._answers.items()
        }
        head = {
            "format": CAPTURE_FORMAT,
            "observedAt": self._started,
            "pageSize": self.page_size,
            "clockTicks": self.clock_ticks,
            "answers": answers,
        }
        with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as tar:
            _add(tar, CAPTURE_INDEX, json.dumps(head, indent=0).encode("utf-8", "surrogateescape"), self._started)
            for name in sorted(self._files):
                _add(tar, name.lstrip("/"), self._files[name], self._started)


class CaptureError(ValueError):
    """A capture that can't be read: the message names the file and what was expected in it."""


class ReplayHost(Host):
    """The answers of a capture. What was not captured raises FileNotFoundError, as an absent file does."""

    live = False

    def __init__(
        self,
        files: Mapping[str, bytes],
        answers: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        observed_at: float = 0.0,
        page_size: int = 4096,
        clock_ticks: int = 100,
    ) -> None:
        super().__init__("")
        self._files = files
        self._answers = answers or {}
        self._observed_at = observed_at
        self.page_size = page_size
        self.clock_ticks = clock_ticks
        self._children = _children(files)

    def now(self) -> float:
        return self._observed_at

    def _answer(self, verb: str, path: str) -> Any:
        answer = self._answers.get(verb, {}).get(path)
        if answer is None:
            raise FileNotFoundError(errno.ENOENT, "not in the capture", path)
        if "errno" in answer:
            raise OSError(answer["errno"], os.strerror(answer["errno"]), path)
        return answer["value"]

    def read(self, path: str) -> bytes:
        data = self._files.get(path)
        if data is None:
            self._answer("read", path)
            raise FileNotFoundError(errno.ENOENT, "not in the capture", path)
        return data

    def read_small(self, path: str) -> bytes:
        return self.read(path)[:4095]

    def listdir(self, path: str) -> list[str]:
        if path in self._answers.get("listdir", {}):
            return [str(name) for name in self._answer("listdir", path)]
        children = self._children.get(path.rstrip("/"))
        if children is None:
            raise FileNotFoundError(errno.ENOENT, "not in the capture", path)
        return sorted(children)

    def readlink(self, path: str) -> str:
        return str(self._answer("readlink", path))

    def stat(self, path: str) -> FileStat:
        return FileStat(*self._answer("stat", path))

    def statvfs(self, path: str) -> FilesystemUsage:
        return FilesystemUsage(*self._answer("statvfs", path))

    def observe(self, key: str, measure: Callable[[], Any]) -> Any:
        return self._answer("observe", key)


def open_capture(path: str) -> Host:
    """A capture written by ``nodemem capture`` (tar, plain or gzip), or a directory it was unpacked to.

    A directory without an index serves the files and symlinks in its proc/ and sys/; usage and sizes are then unknown.
    Raises CaptureError.
    """
    source = Path(path)
    files: dict[str, bytes] = {}
    links: dict[str, Any] = {}
    if source.is_dir():
        names = [CAPTURE_INDEX] if (source / CAPTURE_INDEX).is_file() else []
        if not names and (source / "proc" / "self").exists():
            raise CaptureError(f"{path}: this is a running system, not a capture; run nodemem there without --root")
        for top in ("proc", "sys"):
            for parent, _, children in os.walk(source / top):
                names += [os.path.relpath(os.path.join(parent, child), source) for child in children]
        for name in names:
            full = source / name
            if full.is_symlink():
                links[f"/{name}"] = {"value": os.readlink(full)}
            elif full.is_file():
                files[f"/{name}"] = full.read_bytes()
    else:
        try:
            with tarfile.open(source) as tar:
                for member in tar:
                    if member.isfile() and (stream := tar.extractfile(member)) is not None:
                        files["/" + member.name.removeprefix("./").lstrip("/")] = stream.read()
        except (OSError, tarfile.TarError) as error:
            raise CaptureError(
                f"{path}: expected a capture written by 'nodemem capture', or a directory: {error}"
            ) from error
    index = files.pop(f"/{CAPTURE_INDEX}", None)
    if index is None:
        if not any(name.startswith("/proc/") for name in files):
            raise CaptureError(f"{path}: no proc/ in it; expected what 'nodemem capture' writes")
        return ReplayHost(files, {"readlink": links})
    try:
        head = json.loads(index.decode("utf-8", "surrogateescape"))
        if head["format"] != CAPTURE_FORMAT:
            raise CaptureError(f"{path}: capture format {head['format']}; this nodemem reads format {CAPTURE_FORMAT}")
        return ReplayHost(
            files,
            head["answers"],
            observed_at=float(head["observedAt"]),
            page_size=int(head["pageSize"]),
            clock_ticks=int(head["clockTicks"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, CaptureError):
            raise
        raise CaptureError(f"{path}: {CAPTURE_INDEX} in it is damaged: {error!r}") from error


def _slots(value: FileStat | FilesystemUsage) -> list[Any]:
    return [getattr(value, name) for name in value.__slots__]


def _add(tar: tarfile.TarFile, name: str, data: bytes, mtime: float) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    member.mtime = int(mtime)
    tar.addfile(member, io.BytesIO(data))


def _children(paths: Iterable[str]) -> dict[str, set[str]]:
    children: dict[str, set[str]] = {}
    for path in paths:
        parent, _, name = path.rpartition("/")
        while name and name not in children.setdefault(parent, set()):
            children[parent].add(name)
            parent, _, name = parent.rpartition("/")
    return children
