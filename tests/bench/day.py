"""``python -m bench.day``: 5,000 scans, more than three days have, back to back, while pods come and go.

Everything that the agent does in a scan and in a refresh, but for the API server: the scan, exposures, trends, the
report, its bounded form as JSON, the metrics. A fifth of the processes changes and every third scan finds a pod
replaced. Memory and descriptors have to stay flat from a tenth of the scans on: by then every path was taken. Status 1
if not. ``bench.agent_rss --day`` does the same with the whole agent, in real time.
"""

import argparse
import gc
import json
import os
import sys
import time
from typing import Any

GROWTH_BYTES = 1_000_000
CHUNK = 3


def agent() -> None:
    """The measured side: a line to stdin is a number of scans, the answer says what this process holds then."""
    from nodemem.agent import lean  # isort: skip # noqa: F401 - as the agent does it
    from nodemem.agent import bounded, exposures, metrics
    from nodemem.agent.loop import TIDY_SCANS
    from nodemem.kernel.host import Host
    from nodemem.node import report
    from nodemem.node.snapshot import Collector, Thrift
    from nodemem.node.trends import History

    # The clock of a day: a scan a minute, so that what is kept for ten minutes is found again as often as in use.
    minutes = 0
    collector = Collector(Host(), Thrift(), clock=lambda: 60.0 * minutes)
    history, names, counters = History(), report.Names(), metrics.Counters(started_at=time.time())
    size = 0
    for line in sys.stdin:
        for _ in range(int(line)):
            minutes += 1
            snapshot = collector.collect(full=False)
            found = exposures.named(exposures.find(snapshot, {}, ()).exposures, names)
            snapshot = collector.refresh(snapshot)
            report.observe(history, snapshot, 60.0 * minutes)
            status = report.build(snapshot, history, names=names, exposures=found)
            size = len(json.dumps(bounded.bounded(status)))
            metrics.render(status, counters)
            snapshot = None  # type: ignore[assignment]
            if minutes % TIDY_SCANS == 1:
                gc.collect()
        containers, processes = status.omitted.containers + len(status.containers), len(os.listdir("/proc"))
        with open("/proc/self/statm", "rb") as file:
            rss = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        held = {"rss": rss, "descriptors": len(os.listdir("/proc/self/fd")), "bytes": size}
        print(json.dumps({**held, "containers": containers, "processes": processes}), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.day", description=__doc__)
    parser.add_argument("--scans", type=int, default=5000)
    parser.add_argument("--processes", type=int, default=440)
    parser.add_argument("--agent", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.agent:
        agent()
        return 0
    from bench.coprocess import coprocess
    from bench.node import synthetic_node

    steps = sorted({CHUNK, *(options.scans * part // 10 for part in (1, 2, 4, 6, 8, 10))})
    seen: list[tuple[int, dict[str, Any]]] = []
    done = gone = 0
    with (
        synthetic_node(options.processes) as node,
        coprocess(sys.executable, "-m", "bench.day", "--agent") as measured,
    ):
        print(f"{options.processes} processes, {len(node.containers)} containers, a pod replaced every {CHUNK} scans")
        print(
            f"{'scans':>7}{'pods gone':>11}{'VmRSS MB':>10}{'descriptors':>13}{'status bytes':>14}{'in /proc':>10}",
            flush=True,
        )
        while done < options.scans:
            node.churn()
            node.touch()
            gone += 1
            held = json.loads(measured.ask(str(CHUNK)))
            done += CHUNK
            if held["containers"] < len(node.containers):  # others may run on this machine
                raise SystemExit(f"bench: {held['containers']} containers found of {len(node.containers)}")
            if done >= steps[0]:
                steps.pop(0)
                seen.append((done, held))
                rss, descriptors = held["rss"] / 1e6, held["descriptors"]
                print(
                    f"{done:>7}{gone:>11}{rss:>10.2f}{descriptors:>13}{held['bytes']:>14}{held['processes']:>10}",
                    flush=True,
                )
    (first, early), (_, last) = seen[1], seen[-1]
    growth, opened = last["rss"] - early["rss"], last["descriptors"] - early["descriptors"]
    flat = growth <= GROWTH_BYTES and opened <= 0
    print(f"since scan {first}: {growth / 1e6:+.2f} MB, {opened:+} descriptors{'' if flat else '  OVER'}")
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
