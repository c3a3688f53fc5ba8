"""``nodemem agent``: what the DaemonSet runs, also for one machine outside of a cluster with ``--kubeconfig``."""

import argparse
import os
import sys

from nodemem.agent.__main__ import add_arguments


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "agent",
        help="measure this node and publish its MemoryReport",
        description="Measure this node and publish its MemoryReport, until told to end. Runs as root. "
        "Exit codes: 0 told to end; 1 it could not start, or something in it broke; 2 wrong usage.",
    )
    add_arguments(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Becomes an interpreter that holds the agent alone: this one has the whole command line in memory."""
    host, port = args.listen
    options = [f"--listen=[{host}]:{port}" if ":" in host else f"--listen={host}:{port}"]
    options += [f"--interval={args.interval}", f"--refresh={args.refresh}"]
    if args.node_name:
        options.append(f"--node-name={args.node_name}")
    if args.kubeconfig:
        options.append(f"--kubeconfig={args.kubeconfig}")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *_flags(), "-m", "nodemem.agent", *options])


def _flags() -> list[str]:
    """Those of this interpreter that decide what it imports."""
    return ["-I"] if sys.flags.isolated else []
