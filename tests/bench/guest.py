"""``python -m bench.guest``: the same benchmark on cgroup v2, whatever this machine has, in a guest under QEMU.

The guest is emulated, so its milliseconds say nothing, and its ratios are no node's: there are no budgets here, only
results that are checked, and ratios to compare with those of another guest. It has no compiler and no packages: the C
programs come from here, linked statically (this machine has to be amd64, too), and other projects' are left out.
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from bench.__main__ import Measured, print_table
from bench.node import build
from bench.rows import ROWS
from vm.machine import Machine, Scenario, run
from vm.packages import KERNEL_SUITES

_HERE = Path(__file__).parent
_PROGRAMS = "programs"
_TIMEOUT = 3 * 3600.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.guest", description=__doc__)
    parser.add_argument("--kernel", choices=KERNEL_SUITES, default="trixie", help="default: trixie")
    parser.add_argument("--cgroup", choices=("v1", "v2"), default="v2", help="default: v2; v1 to compare on one kernel")
    parser.add_argument("--processes", type=int, default=1000, help="default: 1000")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default: 5)")
    parser.add_argument("--row", action="append", metavar="WORD", help="only rows with this word in their name")
    options = parser.parse_args()
    own = [
        replace(row, budget=None, goal=None)
        for row in ROWS
        if row.kind in ("steady", "cold") and "psutil" not in row.name
    ]
    rows = [row for row in own if not options.row or any(word in row.name for word in options.row)]
    arguments = {
        "processes": options.processes,
        "rounds": options.rounds,
        "rows": [row.name for row in rows],
        "programs": f"/{_PROGRAMS}",
    }
    scenario = Scenario("bench", "measured", arguments, "bench_scenarios", timeout=_TIMEOUT)
    # On a ramfs the processes' code counts as file pages, as on a disk; the usual root would be a tmpfs.
    machine = Machine(options.kernel, options.cgroup, memory="3G", append="rootfstype=ramfs")
    with tempfile.TemporaryDirectory(prefix="nodemem-bench-guest-") as scratch:
        programs = [build(source, Path(scratch), "-static") for source in ("yardstick.c", "pod.c")]
        files = {f"{_PROGRAMS}/{path.name}": path for path in programs}
        files |= {f"scenarios/bench/{path.name}": path for path in _HERE.glob("*.py")}
        files["scenarios/debian.py"] = _HERE.parent / "debian.py"
        boot = run(machine, [scenario], timeout=_TIMEOUT + 600, files=files)
    print(f"{machine}: Linux {boot.release}, emulated")
    return 0 if print_table(Measured(**boot.value(scenario.id)), rows) else 1


if __name__ == "__main__":
    sys.exit(main())
