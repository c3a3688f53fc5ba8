"""``python -m nodemem.agent``: the agent alone, without what the command line's other parts import.

Exit codes: 0 told to end; 1 it could not start, or something in it broke; 2 wrong usage.
"""

import argparse
import ctypes
import os
import sys

from nodemem.agent.config import ConfigError, Server, from_kubeconfig, in_cluster
from nodemem.agent.loop import Agent, Intervals
from nodemem.agent.server import parse_address

LISTEN = ":9812"
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--node-name",
        default=os.environ.get("NODE_NAME"),
        metavar="NAME",
        help="the Node that this machine is, as 'kubectl get nodes' shows it (default: $NODE_NAME)",
    )
    parser.add_argument(
        "--kubeconfig", metavar="FILE", help="how to reach the API server (default: as a pod, by its service account)"
    )
    parser.add_argument(
        "--listen",
        type=_address,
        default=LISTEN,
        metavar="ADDRESS:PORT",
        help=f"where /metrics, /healthz and /readyz are served (default: {LISTEN}, on every address)",
    )
    parser.add_argument(
        "--interval", type=_seconds, default=60.0, metavar="SECONDS", help="between full scans (default: 60)"
    )
    parser.add_argument(
        "--refresh", type=_seconds, default=15.0, metavar="SECONDS", help="between cheap readings (default: 15)"
    )


def run(args: argparse.Namespace) -> int:
    _lean()
    try:
        if not args.node_name:
            raise ConfigError("no node name: give --node-name NAME, or set NODE_NAME (in a pod from spec.nodeName)")
        server: Server = from_kubeconfig(args.kubeconfig) if args.kubeconfig else in_cluster()
        intervals = Intervals(refresh_seconds=min(args.refresh, args.interval), scan_seconds=args.interval)
        agent = Agent(args.node_name, server, listen=args.listen, intervals=intervals)
    except ConfigError as error:
        print(f"nodemem agent: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"nodemem agent: can't listen on {args.listen[0] or '*'}:{args.listen[1]}: {error}", file=sys.stderr)
        return 1
    agent.handle_signals()
    return 0 if agent.run() else 1


def _address(text: str) -> tuple[str, int]:
    try:
        return parse_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r}: expected seconds from 0.1 to 3600")
    return value


def _lean() -> None:
    """One malloc arena for all threads, large blocks given back when they are freed: glibc otherwise keeps several MB
    of what a scan or a list of pods took for a moment. Without glibc nothing happens."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_MMAP_THRESHOLD, 128 << 10)
    mallopt(_M_TRIM_THRESHOLD, 128 << 10)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="nodemem agent", description="Measure this node and publish its MemoryReport, until told to end."
    )
    add_arguments(parser)
    return run(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
