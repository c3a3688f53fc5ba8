"""The ``kubectl nodemem`` command, which kubectl finds on PATH as ``kubectl-nodemem``.

Exit codes: 0 done, whatever was found; 1 it could not be done, standard error says why; 2 wrong usage; 130 interrupted.
"""

import argparse
import os
import signal
import sys

from nodemem import __version__
from nodemem.cli.kubectl import completion, exposed, policy, top, why
from nodemem.cli.kubectl.cluster import Trouble
from nodemem.cli.kubectl.options import add_cluster


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kubectl nodemem",
        description="Where the memory of the cluster's nodes went, and which pods the OOM killer would wrong. From the "
        "MemoryReports, OomExposures and policies of the cluster; nothing is changed.",
        epilog="Exit codes: 0 done; 1 could not be done; 2 wrong usage; 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"kubectl-nodemem {__version__}")
    add_cluster(parser, outermost=True)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for module in (top, why, exposed, policy, completion):
        module.add_parser(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["__complete"]:
        return completion.main(words[1:])
    args = build_parser().parse_args(words)
    try:
        code: int = args.func(args)
        sys.stdout.flush()
        return code
    except Trouble as error:
        print(f"nodemem: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except OSError as error:
        print(f"nodemem: {error}", file=sys.stderr)
        return 1
