"""What the agent can be told, checked: each refusal is a sentence."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nodemem.agent.config import ConfigError
from nodemem.agent.server import parse_address

LISTEN = ":9812"
SCAN_SECONDS = 60.0
REFRESH_SECONDS = 15.0

_NODE_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Options:
    """``kubeconfig`` None: in a pod. ``refresh_seconds`` is never more than ``scan_seconds``. ``enforce``: tmpfs may be
    resized, and the node told to clean itself. ``mitigate``: oom_score_adj may be set."""

    node_name: str
    kubeconfig: str | None
    listen: tuple[str, int]
    scan_seconds: float
    refresh_seconds: float
    enforce: bool = False
    mitigate: bool = False


def parse(words: Iterable[str], environment: Mapping[str, str] = os.environ) -> Options:
    """``--name=value`` words, ``--enforce`` and ``--mitigate``. Raises ConfigError."""
    values: dict[str, str] = {}
    allowed = {"--enforce": False, "--mitigate": False}
    for word in words:
        if word in allowed:
            allowed[word] = True
            continue
        name, equals, value = word.partition("=")
        if name not in ("--node-name", "--kubeconfig", "--listen", "--interval", "--refresh") or not equals:
            raise ConfigError(f"{word!r}: see 'nodemem agent --help'; here options are written --name=value")
        values[name] = value
    node_name = values.get("--node-name") or environment.get("NODE_NAME", "")
    if not node_name:
        raise ConfigError("no node name: give --node-name NAME, or set NODE_NAME (in a pod from spec.nodeName)")
    if not _NODE_NAME.fullmatch(node_name):
        raise ConfigError(f"{node_name!r} is no name of a Node: write it as 'kubectl get nodes' shows it")
    try:
        listen = parse_address(values.get("--listen") or LISTEN)
    except ValueError as error:
        raise ConfigError(f"--listen {error}") from error
    scan = _seconds("--interval", values, SCAN_SECONDS)
    return Options(
        node_name,
        values.get("--kubeconfig") or None,
        listen,
        scan,
        min(_seconds("--refresh", values, REFRESH_SECONDS), scan),
        allowed["--enforce"],
        allowed["--mitigate"],
    )


def _seconds(name: str, values: Mapping[str, str], default: float) -> float:
    text = values.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= 3600:
        raise ConfigError(f"{name} {text!r}: expected seconds from 0.1 to 3600")
    return value
