"""``python -m bench.agent_rss``: memory of the whole agent, on the synthetic node, publishing over TLS.

A real API server holds 110 pods of 3 containers for it to watch; the metrics are scraped. Scans are made much more
often than in use, so that minutes show what hours would; a fifth of the processes changes in between. Status 1 if the
budget of docs/performance.md is broken.
"""

import argparse
import sys
import time

from bench.node import synthetic_node
from cluster.agentlab import RunningAgent, make_node, make_pod, report_of, running_agent, until
from cluster.controlplane import ControlPlane
from nodemem.api.resources import RESOURCES
from nodemem.api.schema import definition

BUDGET_BYTES = 32_000_000
_NODE, _NAMESPACE = "synthetic", "load"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.agent_rss", description=__doc__)
    parser.add_argument("--processes", type=int, default=1000)
    parser.add_argument("--scans", type=int, default=60, help="full scans (default: 60), 0.5 s apart")
    options = parser.parse_args()
    kept = True
    with synthetic_node(options.processes) as node, ControlPlane(controller_manager=False) as cluster:
        cluster.install(*(definition(each) for each in RESOURCES))
        make_node(cluster, _NODE)
        cluster.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": _NAMESPACE}},
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": _NAMESPACE}},
        )
        pods: dict[str, list[str]] = {}
        for path in node.containers:
            pod, container = path.rsplit("/", 2)[1:]
            pods.setdefault(pod.removeprefix("pod"), []).append(container)
        for number, (uid, ids) in enumerate(pods.items()):
            named = [(f"c{at}", container) for at, container in enumerate(ids)]
            make_pod(cluster, _NAMESPACE, f"pod-{number:03}", _NODE, named, static_uid=uid)
        print(f"{options.processes} processes, {len(pods)} pods, {len(node.containers)} containers")
        print(f"{'full scans':>11}{'VmRSS MB':>10}{'anon':>7}{'VmHWM':>7}{'ms a full scan':>20}{'a refresh':>11}")
        with running_agent(_NODE, cluster.kubeconfig, "--interval=0.5", "--refresh=0.2") as agent:
            report = until(lambda: report_of(cluster, _NODE), "the first report", 60)
            named_containers = [each for each in report["status"]["containers"] if each.get("podName")]
            if len(named_containers) != len(report["status"]["containers"]) or not named_containers:
                raise SystemExit("bench: containers without names in the report; no figures of a wrong result")
            steps = sorted({1, 10, options.scans // 2, options.scans})
            while steps:
                if agent.process.poll() is not None:
                    raise SystemExit(f"bench: the agent ended:\n{agent.text()}")
                node.touch()
                done = agent.metric('nodemem_agent_scan_seconds_count{scan="full"}') or 0
                if done >= steps[0]:
                    kept = _print(agent, steps.pop(0)) and kept
                time.sleep(0.2)
            size = agent.metric("nodemem_agent_report_status_bytes")
        print(f"status as JSON: {size:.0f} bytes")
    return 0 if kept else 1


def _print(agent: RunningAgent, scans: int) -> bool:
    rss = agent.status_bytes("VmRSS")
    each = []
    for kind in ("full", "refresh"):
        count = agent.metric(f'nodemem_agent_scan_seconds_count{{scan="{kind}"}}') or 1
        each.append(1000 * (agent.metric(f'nodemem_agent_scan_seconds_sum{{scan="{kind}"}}') or 0) / count)
    over = "" if rss <= BUDGET_BYTES else "  OVER"
    print(
        f"{scans:>11}{rss / 1e6:>10.1f}{agent.status_bytes('RssAnon') / 1e6:>7.1f}"
        f"{agent.status_bytes('VmHWM') / 1e6:>7.1f}{each[0]:>20.1f}{each[1]:>11.1f}{over}",
        flush=True,
    )
    return rss <= BUDGET_BYTES


if __name__ == "__main__":
    sys.exit(main())
