"""``python -m bench``: measure every row against the yardstick, interleaved, and print the table."""

import argparse
import json
import os
import re
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.coprocess import Coprocess, coprocess
from bench.node import FILE_BYTES, LIMIT_BYTES, TMPFS, TMPFS_BYTES, Node, build, synthetic_node
from bench.peers import Server, program_ms
from bench.rows import ROWS, Row

WARMING = 13
"""Scans before a steady one is measured: until nothing is new to a process table, and each process had its turn."""


def subject(row: Row) -> list[str]:
    return [sys.executable, "-m", "bench.subject", row.name]


@dataclass(slots=True)
class Measured:
    """CPU milliseconds of every round, by row name; ``yardstick_ms`` of the same rounds."""

    processes: int
    counts: str = ""
    yardstick_ms: list[float] = field(default_factory=list)
    yardstick_processes_ms: list[float] = field(default_factory=list)
    cpu_ms: dict[str, list[float]] = field(default_factory=dict)
    rss_bytes: dict[str, int] = field(default_factory=dict)


def wrong(node: Node, found: dict[str, Any]) -> list[str]:
    """Differences between a scan and what the generator and a plain read of /proc say."""
    complaints = []
    if "processes" in found:
        for pid, truth in node.processes.items():
            got = found["processes"].get(str(pid))
            status = Path(f"/proc/{pid}/status").read_text()
            kib = {kind: int(size) for kind, size in re.findall(r"^Rss(\w+):\s+(\d+) kB$", status, re.M)}
            namespace = int(re.sub(r"\D", "", os.readlink(f"/proc/{pid}/ns/mnt")))
            want = [truth.cgroup, truth.oom_score_adj, kib["Anon"] * 1024, kib["File"] * 1024, truth.shmem_bytes]
            if got != [*want, namespace]:
                complaints.append(f"pid {pid}: found {got}, expected {[*want, namespace]}")
    if "limits" in found:
        for path in node.containers:
            if found["limits"].get(path) != LIMIT_BYTES:
                complaints.append(f"limit of {path}: found {found['limits'].get(path)}, expected {LIMIT_BYTES}")
    if "tmpfs" in found:
        mine = [sizes for *sizes, path in found["tmpfs"] if path.startswith(f"{node.scratch}/")]
        if mine != [[TMPFS_BYTES, FILE_BYTES]] * TMPFS:
            what = f"tmpfs of {TMPFS_BYTES} bytes with {FILE_BYTES} in use"
            complaints.append(f"found {mine.count([TMPFS_BYTES, FILE_BYTES])} {what} among {len(mine)}, not {TMPFS}")
    return complaints


def check(node: Node, rows: list[Row], steady: dict[str, Coprocess]) -> None:
    """Every row's result against the truth, before anything is timed and after the last round. Ends the run if wrong.

    The agent's refresh is left out: it doesn't look for what came and went.
    """
    for row in rows:
        if row.kind not in ("steady", "cold") or "refresh" in row.name:
            continue
        node.touch()
        if row.kind == "steady":
            found = json.loads(steady[row.name].ask("check"))["found"]
        else:
            with coprocess(*subject(row)) as fresh:
                found = json.loads(fresh.ask("check"))["found"]
        if row.name.startswith("mount table, steady"):  # its namespaces were found once: pods came since
            found.pop("tmpfs", None)
        if complaints := wrong(node, found):
            raise SystemExit(
                f"bench: '{row.name}' is wrong in {len(complaints)} places; no ratio of a wrong result\n"
                + "\n".join(complaints[:5])
            )


def measure(processes: int, rounds: int, rows: list[Row]) -> Measured:
    measured = Measured(processes)
    with synthetic_node(processes) as node:
        programs = {row.name: row.make() for row in rows if row.kind == "program"}
        servers: dict[str, Server] = {}
        program = build("yardstick.c", node.scratch)
        yardstick = Coprocess(str(program), str(node.memory_root), node.cgroup_version)
        steady = {row.name: Coprocess(*subject(row)) for row in rows if row.kind == "steady"}
        try:
            for port, row in enumerate((row for row in rows if row.kind == "server"), start=19_871):
                servers[row.name] = Server(row.make(port), port)
            yardstick.ask()
            for _ in range(WARMING):
                node.churn()
                node.touch()
                for program_of_row in steady.values():
                    program_of_row.ask()
            check(node, rows, steady)
            for _ in range(rounds):
                node.churn()
                node.touch()
                total, part, *counts = yardstick.ask().split()
                measured.yardstick_ms.append(float(total))
                measured.yardstick_processes_ms.append(float(part))
                names = ("processes", "mount namespaces", "tmpfs", "containers")
                measured.counts = ", ".join(f"{count} {name}" for count, name in zip(counts, names, strict=False))
                for row in rows:
                    if row.kind == "steady":
                        answer = json.loads(steady[row.name].ask())
                    elif row.kind == "program":
                        answer = {"cpu_ms": program_ms(programs[row.name]), "rss_bytes": 0}
                    elif row.kind == "server":
                        server = servers[row.name]
                        answer = {"cpu_ms": server.scrape_ms(), "rss_bytes": server.rss_bytes()}
                    else:
                        with coprocess(*subject(row)) as fresh:
                            answer = json.loads(fresh.ask())
                    measured.cpu_ms.setdefault(row.name, []).append(answer["cpu_ms"])
                    measured.rss_bytes[row.name] = answer["rss_bytes"]
            check(node, rows, steady)
        finally:
            yardstick.close()
            for server in servers.values():
                server.close()
            for program_of_row in steady.values():
                program_of_row.close()
    return measured


def print_table(measured: Measured, rows: list[Row]) -> bool:
    """The ratios of one node. True if every budget is kept."""
    base = statistics.median(measured.yardstick_ms)
    part = statistics.median(measured.yardstick_processes_ms)
    print(f"\nsynthetic node: {measured.counts}; medians of {len(measured.yardstick_ms)} interleaved rounds")
    print(f"{'scanner':<44}{'CPU ms':>9}{'/ C reads all':>15}{'budget':>9}{'RSS MB':>9}")
    print(f"{'C reads all (yardstick)':<44}{base:>9.1f}{1:>15.2f}")
    print(f"{'  of it, the files of the processes':<44}{part:>9.1f}{part / base:>15.2f}")
    kept = True
    for row in rows:
        # The ratio of each round, then the median: a slow moment of the machine slows both sides of its round.
        ratios = [mine / its for mine, its in zip(measured.cpu_ms[row.name], measured.yardstick_ms, strict=True)]
        ratio = statistics.median(ratios)
        budget = "" if row.budget is None else f"{row.budget:.1f}"
        over = row.budget is not None and ratio > row.budget
        kept = kept and not over
        note = "  OVER" if over else f"  misses {row.goal}" if row.goal is not None and ratio > row.goal else ""
        print(
            f"{row.name:<44}{statistics.median(measured.cpu_ms[row.name]):>9.1f}{ratio:>15.2f}{budget:>9}"
            f"{measured.rss_bytes[row.name] / 1e6 or '':>9.4}{note}"
        )
    return kept


def print_growth(small: Measured, large: Measured, rows: list[Row]) -> bool:
    """CPU of the large node against the small one. The budget is 5 for 5,000 processes against 1,000."""
    factor = large.processes / small.processes
    print(f"\n{large.processes} processes against {small.processes}, CPU (budget {factor:.0f})")
    kept = True
    for row in rows:
        growth = statistics.median(large.cpu_ms[row.name]) / statistics.median(small.cpu_ms[row.name])
        over = row.budget is not None and growth > factor
        kept = kept and not over
        print(f"{row.name:<44}{growth:>9.2f}{'  OVER' if over else ''}")
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--processes", type=int, help="one node of this size (default: 1000, then 5000)")
    parser.add_argument("--rounds", type=int, help="interleaved rounds (default: 15)")
    parser.add_argument("--quick", action="store_true", help="a node of 1000, five rounds")
    parser.add_argument("--row", action="append", metavar="WORD", help="only rows with this word in their name")
    options = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("bench: needs root, for cgroups and mount namespaces")
    rows = [row for row in ROWS if not options.row or any(word in row.name for word in options.row)]
    rounds = options.rounds or (5 if options.quick else 15)
    sizes = [options.processes] if options.processes else [1000] if options.quick else [1000, 5000]
    kept = True
    results = []
    for size in sizes:
        results.append(measure(size, rounds, rows))
        kept = print_table(results[-1], rows) and kept
    if len(results) == 2:
        kept = print_growth(results[0], results[1], rows) and kept
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
