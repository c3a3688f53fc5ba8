"""One row of the table in an interpreter of its own: ``python -m bench.subject ROW``, one scan per line on stdin.

Each is answered by one JSON line: CPU milliseconds and the memory of this process; for ``check`` also what was found.
"""

import json
import os
import resource
import sys
import time
from typing import Any

from bench.rows import ROWS
from nodemem.kernel.host import Host


def main() -> None:
    row = next(row for row in ROWS if row.name == sys.argv[1])
    scan = row.make(Host())
    for line in sys.stdin:
        start = _cpu_seconds()
        found = scan()
        answer: dict[str, Any] = {"cpu_ms": (_cpu_seconds() - start) * 1e3, "rss_bytes": _rss_bytes()}
        if line.strip() == "check":
            answer["found"] = _found(found)
        found = None
        print(json.dumps(answer), flush=True)


def _cpu_seconds() -> float:
    """Of this process and of the children that it has waited for: looks into other namespaces are made by such."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


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
        parts["tmpfs"] = [
            [each.size_bytes, each.used_bytes, each.mounts[0].path] for each in mounts.superblocks.values()
        ]
    if hasattr(found, "containers"):
        parts["limits"] = {each.path: each.cgroup and each.cgroup.limit_bytes for each in found.containers.values()}
    elif isinstance(found, dict):
        parts["limits"] = {path: each.limit_bytes for path, each in found.items()}
    return parts


main()
