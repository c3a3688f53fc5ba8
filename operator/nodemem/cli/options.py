"""Options that several sub-commands have."""

import argparse


def add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--root",
        metavar="DIR|FILE.tar",
        help="read a capture made by 'nodemem capture' (or the directory it was unpacked to) instead of this machine",
    )


def add_output(parser: argparse.ArgumentParser, *formats: str) -> None:
    """``-o``: the first format is the default."""
    parser.add_argument("-o", "--output", choices=formats, default=formats[0], help=f"default: {formats[0]}")


def positive_seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of seconds above 0, such as 5 or 0.5")
    return value
