"""``python -m vm``: fetch kernels, or run single experiments in a guest and print what came back."""

import argparse
import json
import sys

from debian import ensure
from vm import packages
from vm.boots import cases_for
from vm.machine import EMULATOR, Machine, Scenario, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m vm", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    fetch = commands.add_parser("fetch", help="fetch what is not in the cache; with --refresh the newest of everything")
    fetch.add_argument("suites", nargs="*", metavar="SUITE", help=f"default: {' '.join(packages.KERNEL_SUITES)}")
    fetch.add_argument("--refresh", action="store_true")
    boot = commands.add_parser("boot", help="run experiments of cases.py, all if none is named")
    boot.add_argument("kernel", choices=packages.KERNEL_SUITES)
    boot.add_argument("cgroup", choices=("v1", "v2", "hybrid"))
    boot.add_argument("cases", nargs="*", metavar="CASE")
    args = parser.parse_args()
    if args.command == "fetch":
        ensure(*EMULATOR)
        print(packages.userland(refresh=args.refresh))
        for suite in args.suites or packages.KERNEL_SUITES:
            found = packages.kernel(suite, refresh=args.refresh)
            print(f"{suite}: {found.release} ({found.version})")
        return 0
    machine = Machine(args.kernel, args.cgroup, swap="128M")
    cases = [case for case in cases_for(machine) if not args.cases or case.id in args.cases]
    found = run(machine, [Scenario(case.id, "experiment", case.arguments) for case in cases])
    for case in cases:
        print(case.id, json.dumps(found.answers[case.id].get("value") or found.answers[case.id]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
