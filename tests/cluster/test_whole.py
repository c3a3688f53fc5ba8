"""Agent and controller together on a real API server: what one measures, the other shows in the pod's namespace."""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.agentlab import REPORTS, make_node, make_pod, report_of, running_agent, until
from cluster.controllerlab import Controller, plane
from cluster.controlplane import ApiError, ControlPlane
from kernel import workloads
from kernel.hungry import Worker
from kernel.workloads import MIB
from nodemem.agent.changes import Cadence

EXPOSURES = "/apis/nodemem.io/v1alpha1/namespaces/{}/oomexposures"


@pytest.fixture(scope="module")
def cluster() -> Iterator[ControlPlane]:
    with plane() as running:
        yield running


def holds(size: int, adj: int = 0) -> Any:
    def setup() -> None:
        Path("/proc/self/oom_score_adj").write_text(str(adj))
        workloads._keep.append(bytearray(b"x") * size)

    return setup


def exposure(cluster: ControlPlane, namespace: str, name: str) -> dict[str, Any] | None:
    with contextlib.suppress(ApiError):
        found: dict[str, Any] = cluster.request("GET", f"{EXPOSURES.format(namespace)}/{name}")
        return found if "status" in found else None
    return None


def test_a_guaranteed_pod_on_a_clamped_kernel_is_flagged_in_its_namespace_and_unflagged(
    cluster: ControlPlane, namespace: str
) -> None:
    node = f"node-{secrets.token_hex(3)}"
    make_node(cluster, node)
    container_id = secrets.token_hex(32)
    pod = make_pod(cluster, namespace, "bank-0", node, [("app", container_id)], request="128Mi", guaranteed=True)
    command = [sys.executable, "-m", "cluster.clamped_agent", f"--node-name={node}", "--listen=127.0.0.1:0"]
    command += [f"--kubeconfig={cluster.kubeconfig}", "--interval=0.6", "--refresh=0.3"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "GUARANTEED": container_id}
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(
            workloads.container_cgroup(pod["metadata"]["uid"], container_id, qos="Guaranteed", limit=128 * MIB)
        )
        # Programs of their own: a fork of the test process would count its pages, and score above the clamp.
        hog = Worker(place, name="hog")
        stack.callback(hog.end)
        assert hog.takes(80 * MIB)
        small = Worker(place, name="small")
        stack.callback(small.end)
        assert small.takes(2 * MIB)
        stack.enter_context(Controller(cluster, name="clamped"))
        log = stack.enter_context((cluster.directory / "clamped-agent.log").open("wb"))
        agent = stack.enter_context(subprocess.Popen(command, env=environment, stderr=log))
        stack.callback(agent.kill)
        stack.callback(lambda: print(cluster.log("clamped-agent")[-3000:], cluster.log("controller-clamped")[-3000:]))
        found = until(lambda: exposure(cluster, namespace, "bank-0"), "the exposure", 60)
        table = cluster.kubectl("get", "oomexposures", "-n", namespace)
        small.end()
        assert found["status"]["reasons"] == ["ClampedBadness"]
        assert found["metadata"]["ownerReferences"][0]["uid"] == pod["metadata"]["uid"]
        (container,) = found["status"]["containers"]
        assert container["predictedVictim"]["pid"] == small.pid, "the last one scanned dies on a tie"
        assert container["largest"]["pid"] == hog.pid
        assert -997 < container["mitigation"]["oomScoreAdj"] < 0
        assert "bank-0" in table
        assert "ClampedBadness" in table
        report = cluster.request("GET", f"{REPORTS}/{node}")["status"]
        assert report["kernel"]["oomGeneration"] == "ClampedLast"
        # One process alone can't be misselected.
        until(lambda: exposure(cluster, namespace, "bank-0") is None or None, "the end of the exposure", 60)


def test_a_slow_etcd_costs_time_and_nothing_else(cluster: ControlPlane, namespace: str) -> None:
    """etcd stopped in the middle of everything, three times, with a change in between: the state comes right, the
    writes don't pile up."""
    node = f"node-{secrets.token_hex(3)}"
    make_node(cluster, node)
    container_id = secrets.token_hex(32)
    pod = make_pod(cluster, namespace, "cart-0", node, [("app", container_id)], request="128Mi", guaranteed=True)
    options = ("--interval=0.6", "--refresh=0.3")
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(
            workloads.container_cgroup(pod["metadata"]["uid"], container_id, qos="Guaranteed", limit=128 * MIB)
        )
        stack.enter_context(workloads.child(holds(80 * MIB), place))
        stack.enter_context(Controller(cluster, name="slow"))
        agent = stack.enter_context(
            running_agent(node, cluster.kubeconfig, *options, cadence=Cadence(heartbeat_seconds=5.0, apart_seconds=0.5))
        )
        until(lambda: (report_of(cluster, node) or {}).get("status"), "the report", 60)
        stack.enter_context(workloads.child(holds(2 * MIB, 999), place))
        before = len(writes_of(cluster, node))
        started = time.monotonic()
        for _ in range(3):
            cluster.suspend("etcd")
            time.sleep(4)
            cluster.resume("etcd")
            time.sleep(1)
        found = until(lambda: exposure(cluster, namespace, "cart-0"), "the exposure after etcd came back", 60)
        assert found["status"]["reasons"] == ["SkewedAdj"]
        assert agent.process.poll() is None
        elapsed = time.monotonic() - started
        assert len(writes_of(cluster, node)) - before <= elapsed / 0.5 + 10


def writes_of(cluster: ControlPlane, node: str) -> list[dict[str, Any]]:
    return [
        event
        for event in cluster.writes()
        if event["objectRef"].get("resource") == "memoryreports" and event["objectRef"].get("name") == node
    ]


def test_the_agent_killed_again_and_again_leaves_a_report_that_is_right(cluster: ControlPlane) -> None:
    node = f"node-{secrets.token_hex(3)}"
    make_node(cluster, node)
    cadence = Cadence(heartbeat_seconds=1.0, apart_seconds=0.1)
    for wait in (0.3, 0.6, 0.9, 1.2):
        with running_agent(node, cluster.kubeconfig, "--interval=0.5", "--refresh=0.2", cadence=cadence) as agent:
            time.sleep(wait)
            agent.process.send_signal(signal.SIGKILL)
            agent.process.wait()
    with (
        workloads.tmpfs_here(48 * MIB, limit=64 * MIB) as made,
        running_agent(node, cluster.kubeconfig, "--interval=0.5", "--refresh=0.2", cadence=cadence),
    ):

        def shown() -> Any:
            status = (report_of(cluster, node) or {}).get("status", {})
            return [each for each in status.get("tmpfs", ()) if each["device"] == made.device] or None

        (entry,) = until(shown, "the tmpfs", 30)
        assert entry["usedBytes"] == 48 * MIB
        wide = cluster.kubectl("get", "memoryreports", node, "-o", "json")
        owners = json.loads(wide)["metadata"]["ownerReferences"]
        assert [each["kind"] for each in owners] == ["Node"]
