"""What is measured: one function per row of the table.

To add a row, write a function that takes a ``Host`` and returns a callable that makes one scan, and name it in
``ROWS``. Imports stay inside the function, so that the memory of a row is that of its own imports. What a scan returns
is compared with the synthetic node's truth as far as ``bench.subject`` knows its parts.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nodemem.kernel.host import Host

Scan = Callable[[], Any]


def process_table(host: Host) -> Scan:
    """The process pass with the sum per container that a report needs."""
    from nodemem.kernel.procfs import ProcessTable

    table = ProcessTable(host)

    def scan() -> Any:
        found = table.scan()
        containers: dict[str, int] = {}
        for process in found.processes.values():
            if process.cgroup is not None:
                containers[process.cgroup] = containers.get(process.cgroup, 0) + process.rss_bytes
        return found

    return scan


def process_table_full(host: Host) -> Scan:
    """``scan(full=True)``: everything of every process, as the command line reads it."""
    from nodemem.kernel.procfs import ProcessTable

    table = ProcessTable(host)
    return lambda: table.scan(full=True)


def mount_table(host: Host) -> Scan:
    """Every tmpfs of every mount namespace with its usage. The namespaces are found once, which is not measured."""
    from nodemem.kernel.mounts import MountTable
    from nodemem.kernel.procfs import ProcessTable

    namespaces = ProcessTable(host).scan().mount_namespaces()
    table = MountTable(host)
    return lambda: table.scan(namespaces)


def memory_cgroups(host: Host) -> Scan:
    """The walk of the memory hierarchy and the values of each cgroup in it."""
    from nodemem.kernel import cgroups

    hierarchy = cgroups.discover(host)
    return hierarchy.scan


def agent(host: Host) -> Scan:
    """Once a minute in the agent: all that the yardstick reads, what is made of it, exposures, the report's status."""
    from nodemem.agent import lean  # isort: skip # noqa: F401 - as the agent does it
    from nodemem.agent import exposures
    from nodemem.node import report
    from nodemem.node.snapshot import Collector, Thrift
    from nodemem.node.trends import History

    collector, history, names = Collector(host, Thrift()), History(), report.Names()

    def scan() -> Any:
        snapshot = collector.collect(full=False)
        found = exposures.named(exposures.find(snapshot, {}, ()).exposures, names)
        report.observe(history, snapshot, time.monotonic())
        report.build(snapshot, history, names=names, exposures=found)
        return snapshot

    return scan


def agent_refresh(host: Host) -> Scan:
    """Three times a minute in the agent: memory, tmpfs and containers, no look at processes and mounts."""
    from nodemem.agent import lean  # isort: skip # noqa: F401 - as the agent does it
    from nodemem.node.snapshot import Collector, Thrift

    collector = Collector(host, Thrift())
    for _ in range(4):
        last = collector.collect(full=False)
    return lambda: collector.refresh(last)


def snapshot(host: Host) -> Scan:
    """What the agent reads and makes of it (owners, partition, Shmem by source), without exposures and report."""
    from nodemem.agent import lean  # isort: skip # noqa: F401 - as the agent does it
    from nodemem.node.snapshot import Collector, Thrift

    collector = Collector(host, Thrift())
    return lambda: collector.collect(full=False)


def snapshot_deep(host: Host) -> Scan:
    """The same with the descriptors and maps of all processes."""
    from nodemem.agent import lean  # isort: skip # noqa: F401 - as the agent does it
    from nodemem.node.snapshot import Collector, Thrift

    collector = Collector(host, Thrift())
    return lambda: collector.collect(full=False, deep="always", inspect=0, writers_of=0)


def snapshot_report(host: Host) -> Scan:
    """As ``nodemem report``: everything read again, Shmem looked into where needed, the largest tmpfs walked."""
    from nodemem.node.snapshot import Collector

    collector = Collector(host)
    return lambda: collector.collect()


def psutil_processes(host: Host) -> Scan:
    """The same figures by psutil, for comparison."""
    import psutil

    return lambda: list(psutil.process_iter(["pid", "ppid", "name", "memory_info", "create_time", "status", "uids"]))


def smem() -> list[str]:
    from bench import peers

    return peers.smem()


def node_exporter(port: int) -> list[str]:
    from bench import peers

    return peers.node_exporter(port)


def process_exporter(port: int) -> list[str]:
    from bench import peers

    return peers.process_exporter(port)


@dataclass(frozen=True, slots=True)
class Row:
    """``kind`` steady: one scanner scans again and again, pods and a fifth of the processes change in between. cold:
    the first scan of a new interpreter, without its start and imports. program, server: another project's
    (bench.peers).

    ``budget`` is the greatest ratio to "C reads all" that passes; None: for information. ``goal``: what it should be,
    where the budget only keeps it from getting worse.
    """

    name: str
    kind: str
    make: Callable[..., Any]
    budget: float | None = None
    goal: float | None = None


ROWS = [
    Row("agent, steady: scan, exposures, report", "steady", agent, 1.0),
    Row("snapshot, steady scan", "steady", snapshot),
    Row("agent, refresh", "steady", agent_refresh),
    Row("snapshot, cold scan", "cold", snapshot, 1.9, goal=1.5),
    Row("snapshot, deep scan", "steady", snapshot_deep, 2.5),
    Row("snapshot, as for nodemem report", "steady", snapshot_report),
    Row("process table, steady scan", "steady", process_table),
    Row("process table, cold scan", "cold", process_table),
    Row("process table, full re-read", "steady", process_table_full),
    Row("mount table, steady scan", "steady", mount_table),
    Row("mount table, cold scan", "cold", mount_table),
    Row("memory cgroups", "steady", memory_cgroups),
    Row("psutil process_iter", "steady", psutil_processes),
    Row("smem, processes", "program", smem),
    Row("node_exporter, a scrape", "server", node_exporter),
    Row("process-exporter, a scrape", "server", process_exporter),
]
