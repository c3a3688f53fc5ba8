"""``nodemem agent``: what the DaemonSet runs, also for one machine outside of a cluster with ``--kubeconfig``."""

import argparse
import os
import sys
from typing import NoReturn

from nodemem.agent import options
from nodemem.agent.config import ConfigError

_NAMES = ("node-name", "kubeconfig", "listen", "interval", "refresh")


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "agent",
        help="measure this node and publish its MemoryReport",
        description="Measure this node and publish its MemoryReport, until told to end. Runs as root. "
        "Exit codes: 0 told to end; 1 it could not start, or something in it broke; 2 wrong usage.",
    )
    parser.add_argument(
        "--node-name",
        metavar="NAME",
        help="the Node that this machine is, as 'kubectl get nodes' shows it ($NODE_NAME)",
    )
    parser.add_argument(
        "--kubeconfig", metavar="FILE", help="how to reach the API server (default: as a pod, by its service account)"
    )
    parser.add_argument(
        "--listen",
        metavar="ADDRESS:PORT",
        help=f"where /metrics, /healthz and /readyz are served (default: {options.LISTEN}, on every address)",
    )
    parser.add_argument(
        "--interval", metavar="SECONDS", help=f"between full scans (default: {options.SCAN_SECONDS:.0f})"
    )
    parser.add_argument(
        "--refresh", metavar="SECONDS", help=f"between cheap readings (default: {options.REFRESH_SECONDS:.0f})"
    )
    parser.add_argument(
        "--enforce",
        action="store_true",
        help="resize tmpfs where the report's spec says so; without it, only say what would be done",
    )
    parser.add_argument(
        "--mitigate",
        action="store_true",
        help="set oom_score_adj where the report's spec says so; without it, nothing is set",
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Becomes an interpreter that holds the agent alone: this one has the whole command line in memory."""
    given = {name: getattr(args, name.replace("-", "_")) for name in _NAMES}
    words = [f"--{name}={value}" for name, value in given.items() if value is not None]
    words += [f"--{name}" for name in ("enforce", "mitigate") if getattr(args, name)]
    try:
        options.parse(words)
    except ConfigError as error:
        print(f"nodemem agent: {error}", file=sys.stderr)
        return 2
    return _become(words)


def _become(words: list[str]) -> NoReturn:
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "nodemem.agent", *words])
