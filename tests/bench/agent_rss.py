"""``python -m bench.agent_rss [--day]``: memory of the whole agent, on the synthetic node, publishing over TLS.

A real API server holds 110 pods of 3 containers for it to watch; the metrics are scraped. Scans are made much more
often than in use, so that minutes show what hours would; a fifth of the processes changes in between. ``--day``: 5,000
scans, more than three days have, on a smaller node, while pods end and others start, on the node and in the API server.
Status 1 if a budget of docs/performance.md is broken.
"""

import argparse
import os
import sys
import time
from typing import Any

from bench.node import synthetic_node
from cluster.agentlab import RunningAgent, make_node, make_pod, report_of, running_agent, until
from cluster.controlplane import ControlPlane
from nodemem.api.resources import RESOURCES
from nodemem.api.schema import definition

BUDGET_BYTES = 32_000_000
GROWTH_BYTES = 1_000_000
"""From a tenth of the scans on: by then every path was taken."""
_NODE, _NAMESPACE = "synthetic", "load"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.agent_rss", description=__doc__)
    parser.add_argument("--processes", type=int, default=1000)
    parser.add_argument("--scans", type=int, default=60, help="full scans (default: 60), 0.5 s apart")
    parser.add_argument("--day", action="store_true", help="5,000 scans of 440 processes, pods coming and going")
    options = parser.parse_args()
    if options.day:
        options.processes, options.scans = 440, 5000
    kept = True
    with synthetic_node(options.processes) as node, ControlPlane(controller_manager=False) as cluster:
        cluster.install(*(definition(each) for each in RESOURCES))
        make_node(cluster, _NODE)
        cluster.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": _NAMESPACE}},
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": _NAMESPACE}},
        )
        pods = Pods(cluster)
        for paths in node.pods.containers.values():
            pods.add(paths)
        print(f"{options.processes} processes, {len(pods)} pods, {len(node.containers)} containers")
        print(
            f"{'full scans':>11}{'VmRSS MB':>10}{'anon':>7}{'VmHWM':>7}{'descriptors':>13}{'ms a full scan':>16}"
            f"{'a refresh':>11}{'pods gone':>11}"
        )
        pace = ("--interval=0.1", "--refresh=0.1") if options.day else ("--interval=0.5", "--refresh=0.2")
        with running_agent(_NODE, cluster.kubeconfig, *pace) as agent:
            # No figures of a wrong result: every container has to have got its name.
            until(lambda: _named(report_of(cluster, _NODE)), "a report in which every container has a name", 120)
            steps = sorted({1, 10, options.scans // 10, options.scans // 4, options.scans // 2, options.scans})
            seen: list[tuple[int, int, int]] = []
            gone = 0
            while steps:
                if agent.process.poll() is not None:
                    raise SystemExit(f"bench: the agent ended:\n{agent.text()}")
                node.touch()
                if options.day:
                    for old, new in node.churn():
                        pods.remove(old)
                        pods.add(new)
                        gone += 1
                done = agent.metric('nodemem_agent_scan_seconds_count{scan="full"}') or 0
                if done >= steps[0]:
                    rss, descriptors = _print(agent, steps.pop(0), gone)
                    seen.append((int(done), rss, descriptors))
                time.sleep(0.2)
            kept = all(rss <= BUDGET_BYTES for _, rss, _ in seen)
            late = [each for each in seen if each[0] >= options.scans // 10]
            if options.day:
                growth = late[-1][1] - late[0][1]
                opened = late[-1][2] - late[0][2]
                flat = growth <= GROWTH_BYTES and opened <= 0
                print(
                    f"since scan {late[0][0]}: {growth / 1e6:+.1f} MB, {opened:+} descriptors{'' if flat else '  OVER'}"
                )
                kept = kept and flat
            size = agent.metric("nodemem_agent_report_status_bytes")
        print(f"status as JSON: {size:.0f} bytes")
    return 0 if kept else 1


def _named(report: dict[str, Any] | None) -> bool:
    containers = report["status"]["containers"] if report else []
    return bool(containers) and all(each.get("podName") for each in containers)


class Pods:
    """The node's pods as the API server has them."""

    def __init__(self, cluster: ControlPlane) -> None:
        self._cluster = cluster
        self._names: dict[str, str] = {}
        self._made = 0

    def __len__(self) -> int:
        return len(self._names)

    def add(self, paths: list[str]) -> None:
        pod = paths[0].rsplit("/", 2)[1]
        name = self._names[pod] = f"pod-{self._made:05}"
        self._made += 1
        named = [(f"c{at}", path.rpartition("/")[2]) for at, path in enumerate(paths)]
        make_pod(self._cluster, _NAMESPACE, name, _NODE, named, static_uid=pod.removeprefix("pod"))

    def remove(self, paths: list[str]) -> None:
        name = self._names.pop(paths[0].rsplit("/", 2)[1])
        path = f"/api/v1/namespaces/{_NAMESPACE}/pods/{name}"
        self._cluster.request("DELETE", path, {"gracePeriodSeconds": 0})


def _print(agent: RunningAgent, scans: int, gone: int) -> tuple[int, int]:
    rss = agent.status_bytes("VmRSS")
    descriptors = len(os.listdir(f"/proc/{agent.pid}/fd"))
    each = []
    for kind in ("full", "refresh"):
        count = agent.metric(f'nodemem_agent_scan_seconds_count{{scan="{kind}"}}') or 1
        each.append(1000 * (agent.metric(f'nodemem_agent_scan_seconds_sum{{scan="{kind}"}}') or 0) / count)
    over = "" if rss <= BUDGET_BYTES else "  OVER"
    print(
        f"{scans:>11}{rss / 1e6:>10.1f}{agent.status_bytes('RssAnon') / 1e6:>7.1f}"
        f"{agent.status_bytes('VmHWM') / 1e6:>7.1f}{descriptors:>13}{each[0]:>16.1f}{each[1]:>11.1f}{gone:>11}{over}",
        flush=True,
    )
    return rss, descriptors


if __name__ == "__main__":
    sys.exit(main())
