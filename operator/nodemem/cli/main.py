"""The ``nodemem`` command: its sub-commands and exit codes."""

import argparse


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="nodemem", description=__doc__)
    parser.parse_args(argv)
    return 0
