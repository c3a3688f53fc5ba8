"""The benchmark inside a guest, called by ``python -m bench.guest``. Arguments and return values are JSON."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import Any

from bench.__main__ import measure
from bench.node import PROGRAMS
from bench.rows import ROWS


def measured(processes: int, rounds: int, rows: Sequence[str], programs: str) -> dict[str, Any]:
    """The fields of ``Measured``; ``programs`` is the directory of those built on the host."""
    os.environ |= {PROGRAMS: programs, "PYTHONPATH": os.pathsep.join(sys.path)}
    return dataclasses.asdict(measure(processes, rounds, [row for row in ROWS if row.name in rows]))
