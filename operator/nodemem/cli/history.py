"""The figures of earlier runs, kept so that the next one knows the growth."""

import json
import os
import tempfile
from pathlib import Path

from nodemem.kernel.host import Host
from nodemem.node.trends import History


def default_path() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return Path(state, "nodemem", "history.json")


def of_host(host: Host, path: Path | None, boot_id: str | None) -> History:
    """What is stored for this boot; through ``observe``, so that a capture brings its growth along."""
    try:
        stored = host.observe("history", lambda: (load(path, boot_id) if path else History(boot_id)).plain())
    except FileNotFoundError:
        stored = None
    return History.from_plain(stored, boot_id)


def load(path: Path, boot_id: str | None) -> History:
    """The stored history of this boot; an empty one when there is none, or what is there isn't a history."""
    try:
        return History.from_plain(json.loads(path.read_bytes()), boot_id)
    except (OSError, ValueError, RecursionError):
        return History(boot_id)


def save(history: History, path: Path) -> None:
    """Replace the file atomically. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name, delete=False) as stream:
        try:
            json.dump(history.plain(), stream)
            stream.close()
            os.replace(stream.name, path)
        except BaseException:
            os.unlink(stream.name)
            raise
