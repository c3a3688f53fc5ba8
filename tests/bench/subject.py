"""One row of the table in an interpreter of its own: ``python -m bench.subject ROW``, one scan per line on stdin.

Each is answered by one JSON line: CPU milliseconds and the memory of this process; for ``check`` also what was found.
"""

import json
import os
import sys
import time
from typing import Any

from bench.rows import ROWS
from nodemem.kernel.host import Host


def main() -> None:
    row = next(row for row in ROWS if row.name == sys.argv[1])
    scan = row.make(Host())
    for line in sys.stdin:
        start = time.process_time_ns()
        found = scan()
        answer: dict[str, Any] = {"cpu_ms": (time.process_time_ns() - start) / 1e6, "rss_bytes": _rss_bytes()}
        if line.strip() == "check":
            answer["found"] = _found(found)
        found = None
        print(json.dumps(answer), flush=True)


def _rss_bytes() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _found(found: Any) -> dict[str, Any]:
    """The parts of a scan's result that the synthetic node knows the truth of, in the form it is compared in."""
    parts: dict[str, Any] = {}
    processes = getattr(found, "processes", None)
    if processes is not None:
        parts["processes"] = {
            pid: [p.cgroup, p.oom_score_adj, p.rss_anon_bytes, p.rss_file_bytes, p.rss_shmem_bytes, p.mnt_ns]
            for pid, p in processes.items()
        }
    mounts = getattr(found, "mounts", found)
    if hasattr(mounts, "superblocks"):
        parts["tmpfs"] = [[each.size_bytes, each.used_bytes] for each in mounts.superblocks.values()]
    if hasattr(found, "containers"):
        parts["limits"] = {each.path: each.cgroup and each.cgroup.limit_bytes for each in found.containers.values()}
    elif isinstance(found, dict):
        parts["limits"] = {path: each.limit_bytes for path, each in found.items()}
    return parts


main()
