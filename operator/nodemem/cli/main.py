"""The ``nodemem`` command: its sub-commands, what they share, and the exit codes.

Exit codes: 0 done (what could not be read is named in the output); 1 it could not be done, one line on standard error
says why; 2 wrong usage; 130 interrupted. A sub-command with codes of its own documents them in its help.
"""

import argparse
import os
import signal
import sys

from nodemem import __version__
from nodemem.cli import agent, capture, check, controller, crds, meminfo, oom, report, tmpfs
from nodemem.kernel.capture import CaptureError, open_capture
from nodemem.kernel.host import Host


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nodemem",
        description="Where this node's memory went, and which process the OOM killer will take.",
        epilog="Exit codes: 0 done; 1 could not be done; 2 wrong usage; 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"nodemem {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for module in (report, meminfo, tmpfs, oom, capture, agent, controller, check, crds):
        module.add_parser(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        root = getattr(args, "root", None)
        args.host = open_capture(root) if root else Host()
        code: int = args.func(args)
        sys.stdout.flush()
        return code
    except CaptureError as error:
        print(f"nodemem: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of a pipe went away (`nodemem report | head`): nothing to say, and nothing left to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except OSError as error:
        print(f"nodemem: {error}", file=sys.stderr)
        return 1
