"""The agent on this machine, publishing to a real API server."""

import contextlib
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cluster.agentlab import REPORTS, kubeconfig, make_node, make_pod, report_of, running_agent, until
from cluster.controlplane import ControlPlane
from kernel import workloads
from kernel.workloads import MIB
from nodemem.agent.changes import Cadence
from nodemem.node.summary import quantity

FAST = Cadence(heartbeat_seconds=2.0, apart_seconds=0.3)
OFTEN = ("--interval=0.4", "--refresh=0.2")
AGENT_RULES = [
    {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]},
    {"apiGroups": ["nodemem.io"], "resources": ["memoryreports"], "verbs": ["list", "watch", "create", "patch"]},
    {"apiGroups": ["nodemem.io"], "resources": ["memoryreports/status"], "verbs": ["patch"]},
]
"""All that the agent needs."""


@pytest.fixture
def node(cluster: ControlPlane) -> Iterator[str]:
    name = f"n-{secrets.token_hex(4)}"
    make_node(cluster, name)
    yield name
    cluster.kubectl("delete", "node", name, "--ignore-not-found", "--wait=false")
    cluster.kubectl("delete", "memoryreport", name, "--ignore-not-found", "--wait=false")


def meminfo(field: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def status_of(cluster: ControlPlane, node: str) -> dict[str, Any]:
    report = until(lambda: report_of(cluster, node), "a report")
    status: dict[str, Any] = report["status"]
    return status


def until_status(cluster: ControlPlane, node: str, true: Any, what: str) -> dict[str, Any]:
    """The first status of which ``true`` holds."""

    def ask() -> dict[str, Any] | None:
        status = status_of(cluster, node)
        return status if true(status) else None

    return until(ask, what)


def test_a_report_appears_and_says_what_the_kernel_says(cluster: ControlPlane, node: str) -> None:
    with workloads.tmpfs_here(160 * MIB, limit=200 * MIB) as here, running_agent(node, cluster.kubeconfig) as agent:
        report = until(lambda: report_of(cluster, node), "a report")
        printed = cluster.kubectl("get", "memoryreports", node, "--no-headers").split()
        wide = cluster.kubectl("get", "memoryreports", node, "-o", "wide")
        scraped = agent.metric("nodemem_memory_size_bytes")
        shmem = meminfo("Shmem")
    status = report["status"]
    assert scraped == status["memory"]["totalBytes"] == meminfo("MemTotal")
    assert abs(status["shmem"]["totalBytes"] - shmem) < 32 * MIB
    # Whatever else runs on this machine may have a larger one.
    entry = next(each for each in status["tmpfs"] if each["device"] == here.device)
    assert (entry["usedBytes"], entry["sizeBytes"]) == (160 * MIB, 200 * MIB)
    assert (entry["mountPoint"], entry["scope"]) == (here.path, "Host")
    assert printed[:3] == [node, quantity(meminfo("MemTotal")), quantity(status["shmem"]["totalBytes"])]
    assert status["summary"]["topTmpfs"].split()[-1] in printed
    release = Path("/proc/sys/kernel/osrelease").read_text().strip()
    assert f" {release} " in wide
    owner = report["metadata"]["ownerReferences"][0]
    assert owner["kind"] == "Node"
    assert owner["uid"] == cluster.request("GET", f"/api/v1/nodes/{node}")["metadata"]["uid"]
    assert len(json.dumps(report, separators=(",", ":"))) < 16 * 1024


def test_pods_and_containers_have_their_names(cluster: ControlPlane, node: str, namespace: str) -> None:
    container_id = secrets.token_hex(32)
    with running_agent(node, cluster.kubeconfig, *OFTEN, cadence=FAST) as agent:
        status_of(cluster, node)
        pod = make_pod(cluster, namespace, "web-0", node, [("app", container_id)], request="1Gi")
        uid = pod["metadata"]["uid"]
        with (
            workloads.container_cgroup(uid, container_id) as place,
            workloads.tmpfs(96 * MIB, limit=128 * MIB, cgroup=place) as made,
        ):
            status = until_status(
                cluster,
                node,
                lambda status: any(each["id"] == container_id and "podName" in each for each in status["containers"]),
                "the container with its names",
            )
            top = cluster.request("GET", f"{REPORTS}/{node}")["status"]["summary"]["topTmpfs"]
            labels = f'namespace="{namespace}",pod="web-0",container="app",id="{container_id[:12]}"'
            shmem = agent.metric(f"nodemem_container_shmem_bytes{{{labels}}}")
    container = next(each for each in status["containers"] if each["id"] == container_id)
    assert (container["podNamespace"], container["podName"], container["name"]) == (namespace, "web-0", "app")
    assert container["podUID"] == uid
    assert container["oomScoreAdj"]["expected"] == 1000 - 1000 * (1 << 30) // meminfo("MemTotal")
    owner = next(each for each in status["tmpfs"] if each["device"] == made.device)["owner"]
    assert (owner["podNamespace"], owner["podName"], owner["containerName"]) == (namespace, "web-0", "app")
    assert top == f"web-0:{made.path} 96Mi/128Mi"
    assert shmem is not None
    assert shmem >= 96 * MIB


def test_a_kill_is_in_the_report_and_an_event_on_the_pod(cluster: ControlPlane, node: str, namespace: str) -> None:
    container_id = secrets.token_hex(32)
    pod = make_pod(cluster, namespace, "db-0", node, [("db", container_id)])
    with running_agent(node, cluster.kubeconfig, *OFTEN, cadence=FAST):
        status_of(cluster, node)
        with workloads.container_cgroup(pod["metadata"]["uid"], container_id, limit=48 * MIB) as place:
            victim = run_out_of_memory(place)
            assert victim.wait(30) == -9

            def of_the_kill(status: dict[str, Any]) -> bool:
                return any(each.get("containerID") == container_id for each in status.get("oomKills", ()))

            status = until_status(cluster, node, of_the_kill, "the kill")
            kill = next(each for each in status["oomKills"] if each.get("containerID") == container_id)
            events = until(lambda: events_of(cluster, namespace), "an Event")
    assert kill["victim"]["pid"] == victim.pid
    assert kill["verdict"] == "Right"
    assert (kill["podName"], kill["podNamespace"], kill["containerName"]) == ("db-0", namespace, "db")
    assert kill["limitBytes"] == 48 * MIB
    assert events[0]["involvedObject"]["uid"] == pod["metadata"]["uid"]
    assert events[0]["reason"] == "OomKill"
    assert f"pid {victim.pid}" in events[0]["message"]
    # The next agent reads the same log: the kill is in its report too, and not told a second time.
    with running_agent(node, cluster.kubeconfig, *OFTEN, cadence=FAST) as agent:
        until(lambda: agent.writes() or None, "a write")
        until(lambda: agent.metric('nodemem_agent_api_requests_total{verb="POST",status="4xx"}'), "the same Event")
        assert of_the_kill(status_of(cluster, node))
        assert len(events_of(cluster, namespace)) == 1
    assert f"pid {victim.pid}" in cluster.kubectl("describe", "pod", "db-0", "-n", namespace)


def run_out_of_memory(place: Path) -> "subprocess.Popen[bytes]":
    script = (
        f"import os; open({str(place / 'cgroup.procs')!r}, 'w').write(str(os.getpid()));"
        "open('/proc/self/oom_score_adj', 'w').write('900'); data = bytearray(b'x') * (200 << 20)"
    )
    return subprocess.Popen([sys.executable, "-c", script])


def events_of(cluster: ControlPlane, namespace: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = cluster.request("GET", f"/api/v1/namespaces/{namespace}/events")["items"]
    return found


def test_an_exposed_container_is_flagged_and_unflagged(cluster: ControlPlane, node: str, namespace: str) -> None:
    """A small process with a high oom_score_adj hides the large one: the kernel would take it first."""
    container_id = secrets.token_hex(32)
    pod = make_pod(cluster, namespace, "pay-0", node, [("pay", container_id)], guaranteed=True)

    def hold(size: int, adj: int) -> Any:
        def setup() -> None:
            Path("/proc/self/oom_score_adj").write_text(str(adj))
            workloads._keep.append(bytearray(b"x") * size)

        return setup

    def mine(status: dict[str, Any]) -> list[dict[str, Any]]:
        return [each for each in status.get("exposures", ()) if each.get("containerID") == container_id]

    with contextlib.ExitStack() as stack:
        place = stack.enter_context(
            workloads.container_cgroup(pod["metadata"]["uid"], container_id, qos="Guaranteed", limit=128 * MIB)
        )
        stack.enter_context(running_agent(node, cluster.kubeconfig, *OFTEN, cadence=FAST))
        stack.enter_context(workloads.child(hold(80 * MIB, 0), place))
        with workloads.child(hold(2 * MIB, 999), place) as (pid, _):
            status = until_status(cluster, node, mine, "the exposure")
            exposed = mine(status)[0]
            assert (exposed["podName"], exposed["name"], exposed["reasons"]) == ("pay-0", "pay", ["SkewedAdj"])
            assert exposed["predictedVictim"]["pid"] == pid
            assert status["summary"]["exposed"] >= 1
        until_status(cluster, node, lambda status: not mine(status), "the end of the exposure")


def test_an_idle_node_writes_its_heartbeats_and_no_more(cluster: ControlPlane, node: str) -> None:
    """Counted by the server. What moves on this machine meanwhile is counted apart, by the agent."""
    cadence = Cadence(heartbeat_seconds=1.0, apart_seconds=0.25)
    with running_agent(node, cluster.kubeconfig, "--interval=0.4", "--refresh=0.1", cadence=cadence) as agent:
        status_of(cluster, node)
        started = time.monotonic()
        heartbeat = 'nodemem_agent_report_writes_total{reason="heartbeat"}'
        until(lambda: (agent.metric(heartbeat) or 0) >= 6, "six heartbeats")
        seconds = time.monotonic() - started
        heartbeats = agent.metric(heartbeat) or 0
        agent.process.terminate()
        agent.process.wait(10)
    writes = [each for each in cluster.writes() if f"/memoryreports/{node}" in each["requestURI"]]
    status_writes = [each for each in writes if f"/memoryreports/{node}/status" in each["requestURI"]]
    assert heartbeats <= seconds / (1.0 * 0.8) + 1
    assert len(writes) - len(status_writes) == 1, "the object is made once"
    times = [time_of(each["requestReceivedTimestamp"]) for each in status_writes]
    assert min(late - early for early, late in pairwise(times)) >= 0.24
    assert all(each["responseStatus"]["code"] in (200, 201) for each in writes)


def time_of(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


def test_with_a_service_account_s_rights_and_a_token_that_is_replaced(
    cluster: ControlPlane, node: str, namespace: str
) -> None:
    role = f"agent-{namespace}"
    cluster.apply(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": role},
            "rules": AGENT_RULES,
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": role},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": namespace}],
        },
    )
    tokens = []
    for name in ("agent-a", "agent-b"):
        pod = make_pod(cluster, namespace, name, node, [("agent", secrets.token_hex(32))])
        tokens.append(cluster.service_account_token(namespace, "default", pod=pod))
    token = cluster.directory / f"{node}.token"
    token.write_text(tokens[0])
    config = kubeconfig(cluster, name=node, tokenFile=str(token))
    refused = 'nodemem_agent_api_requests_total{verb="PATCH",status="4xx"}'
    with running_agent(node, config, *OFTEN, cadence=FAST) as agent:
        status_of(cluster, node)
        # The pod that the first token is bound to goes, as in a restart of the DaemonSet: the token is void at once.
        token.write_text(tokens[1])
        path = f"/api/v1/namespaces/{namespace}/pods/agent-a"
        cluster.request("DELETE", path, {"gracePeriodSeconds": 0})
        until(lambda: agent.metric(refused), "a refusal of the old token", 60)
        written = agent.writes()
        until(lambda: agent.writes() > written, "a write with the new token")
        assert not [line for line in agent.log() if line["level"] == "warning"]
    assert len(cluster.request("GET", f"{REPORTS}/{node}")["metadata"]["managedFields"]) == 2
    cluster.kubectl("delete", "clusterrole,clusterrolebinding", role)


def test_told_to_end_it_ends_with_0(cluster: ControlPlane, node: str) -> None:
    with running_agent(node, cluster.kubeconfig) as agent:
        status_of(cluster, node)
        agent.process.terminate()
        assert agent.process.wait(5) == 0
        assert agent.log()[-1]["message"] == "agent stopped"


def test_two_agents_can_t_listen_on_one_port(cluster: ControlPlane, node: str) -> None:
    with running_agent(node, cluster.kubeconfig) as agent:
        until(lambda: agent.get("/healthz")[0] == 200, "health")
        words = [f"--node-name={node}", f"--kubeconfig={cluster.kubeconfig}", f"--listen=127.0.0.1:{agent.port}"]
        second = subprocess.run([sys.executable, "-m", "nodemem.agent", *words], capture_output=True, text=True)
    assert second.returncode == 1
    assert "can't listen on 127.0.0.1" in second.stderr
