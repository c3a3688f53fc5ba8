"""What the agent does when the API server, its connections, its objects or the agent itself go."""

import secrets
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.agentlab import (
    REPORTS,
    Proxy,
    RunningAgent,
    kubeconfig,
    make_node,
    make_pod,
    report_of,
    running_agent,
    until,
)
from cluster.controlplane import ApiError, ControlPlane
from kernel import workloads
from kernel.workloads import MIB
from nodemem.agent.changes import Cadence
from nodemem.agent.client import Backoff, Client, Gone, Unreachable
from nodemem.agent.config import from_kubeconfig
from nodemem.agent.log import Log
from nodemem.agent.pods import PodTable, parse
from nodemem.agent.watch import Watch
from nodemem.api.resources import RESOURCES
from nodemem.api.schema import definition

FAST = Cadence(heartbeat_seconds=2.0, apart_seconds=0.3)
OFTEN = ("--interval=0.4", "--refresh=0.2")


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """One of its own: it is killed and suspended here."""
    with ControlPlane() as cluster:
        cluster.install(*(definition(each) for each in RESOURCES))
        yield cluster


@pytest.fixture
def node(plane: ControlPlane) -> Iterator[str]:
    name = f"n-{secrets.token_hex(4)}"
    make_node(plane, name)
    yield name
    plane.kubectl("delete", "node", name, "--ignore-not-found", "--wait=false")


def observed(cluster: ControlPlane, node: str) -> str:
    report = report_of(cluster, node)
    return report["status"]["observedAt"] if report else ""


def until_written_after(agent: RunningAgent, cluster: ControlPlane, node: str, before: str) -> None:
    until(lambda: observed(cluster, node) > before, f"a report later than {before}", 60)


def uid_of(cluster: ControlPlane, node: str) -> str:
    report = report_of(cluster, node)
    return report["metadata"]["uid"] if report else ""


def warnings(agent: RunningAgent) -> list[str]:
    return [line["message"] for line in agent.log() if line["level"] == "warning"]


def test_a_server_that_is_killed_and_comes_back(plane: ControlPlane, node: str) -> None:
    with running_agent(node, plane.kubeconfig, *OFTEN, cadence=FAST) as agent:
        until(lambda: report_of(plane, node), "a report")
        plane.stop("kube-apiserver", signal.SIGKILL)
        try:
            until(lambda: warnings(agent), "a word about it")
            scans = agent.scans()
            until(lambda: agent.scans() > scans + 3, "scans without a server")
            assert agent.get("/healthz")[0] == agent.get("/readyz")[0] == 200
            with workloads.tmpfs_here(40 * MIB, limit=64 * MIB) as here:
                used = f'device="{here.device}",mount_point="{here.path}",scope="Host"'
                until(lambda: agent.metric(f"nodemem_tmpfs_used_bytes{{{used}}}") == 40 * MIB, "fresh metrics")
        finally:
            plane.start_apiserver()
        before = observed(plane, node)
        until_written_after(agent, plane, node, before)
        # Said once when it began and once when it was over, for each thing that did not work.
        until(lambda: sum("works again" in line["message"] for line in agent.log()) >= 3, "the end of it")
        assert len({each.partition(":")[0] for each in warnings(agent)}) == 3
        assert len(agent.log()) < 20


def test_answers_of_5xx_are_waited_out_and_nothing_is_lost(plane: ControlPlane, node: str) -> None:
    def failed() -> float | None:
        return agent.metric('nodemem_agent_api_requests_total{verb="PATCH",status="5xx"}')

    with running_agent(node, plane.kubeconfig, *OFTEN, cadence=FAST) as agent:
        until(lambda: report_of(plane, node), "a report")
        plane.apply(broken_webhook(node))
        try:
            until(failed, "an answer of 5xx")
            scans, before = agent.scans(), failed()
            until(lambda: agent.scans() > scans + 10, "scans meanwhile")
            assert agent.get("/healthz")[0] == agent.get("/readyz")[0] == 200
            assert failed() <= before + 5, "it backs off"
            (said,) = warnings(agent)
            assert "failed calling webhook" in said
        finally:
            plane.kubectl("delete", "validatingwebhookconfiguration", node)
        with workloads.tmpfs_here(40 * MIB, limit=64 * MIB) as here:

            def told() -> bool:
                report = report_of(plane, node)
                return report is not None and here.path in {each["mountPoint"] for each in report["status"]["tmpfs"]}

            until(told, "a report of what came later", 60)
        until(lambda: any("works again" in line["message"] for line in agent.log()), "the end of it")


def broken_webhook(name: str) -> dict[str, Any]:
    """Whoever writes a report's status is answered with 500: nobody listens at the webhook's address."""
    rule = {"apiGroups": ["nodemem.io"], "apiVersions": ["*"], "operations": ["UPDATE"], "resources": ["*/*"]}
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": name},
        "webhooks": [
            {
                "name": "broken.nodemem.io",
                "clientConfig": {"url": "https://127.0.0.1:9/"},
                "rules": [rule],
                "failurePolicy": "Fail",
                "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
            }
        ],
    }


def test_a_server_that_hangs_delays_neither_scans_nor_the_end(plane: ControlPlane, node: str) -> None:
    with running_agent(node, plane.kubeconfig, *OFTEN, cadence=FAST) as agent:
        until(lambda: report_of(plane, node), "a report")
        plane.suspend("kube-apiserver")
        try:
            time.sleep(2.5)  # more than a heartbeat: the publisher now waits for an answer
            scans = agent.scans()
            until(lambda: agent.scans() > scans + 3, "scans")
            agent.process.terminate()
            assert agent.process.wait(5) == 0
        finally:
            plane.resume("kube-apiserver")


def test_after_a_410_pods_that_went_meanwhile_are_gone(plane: ControlPlane, node: str) -> None:
    for name in ("stays", "goes"):
        make_pod(plane, "default", f"{name}-{node}", node, [("app", secrets.token_hex(32))])
    with running_agent(node, plane.kubeconfig, *OFTEN, cadence=FAST) as agent:
        until(lambda: agent.metric("nodemem_agent_pods") == 2, "both pods")
        agent.process.send_signal(signal.SIGSTOP)
        for number in range(3):
            plane.apply(config_map(f"{node}-{number}"))
        # A server that starts knows nothing older than its start: it answers the old version with 410.
        plane.stop("kube-apiserver", signal.SIGKILL)
        plane.start_apiserver()
        plane.request("DELETE", f"/api/v1/namespaces/default/pods/goes-{node}", {"gracePeriodSeconds": 0})
        agent.process.send_signal(signal.SIGCONT)
        until(lambda: agent.metric("nodemem_agent_pods") == 1, "the pod that stays", 60)
        assert any(line["message"] == "the watch has to start again" for line in agent.log())
        make_pod(plane, "default", f"comes-{node}", node, [("app", secrets.token_hex(32))])
        until(lambda: agent.metric("nodemem_agent_pods") == 2, "the watch goes on")


def config_map(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}}


def test_a_version_that_etcd_has_compacted_is_gone_to_the_client(plane: ControlPlane) -> None:
    client = Client(from_kubeconfig(str(plane.kubeconfig)))
    query = {"resourceVersion": "1", "fieldSelector": "spec.nodeName=x"}
    with pytest.raises(Gone):
        list(client.watch("/api/v1/pods", query, silence_seconds=10, hook=parse))
    client.close()


def test_cut_connections_lose_nothing(plane: ControlPlane, node: str) -> None:
    with Proxy(plane) as proxy:
        config = kubeconfig(plane, server=proxy.url, name=node)
        with running_agent(node, config, *OFTEN, cadence=FAST) as agent:
            until(lambda: report_of(plane, node), "a report")
            for number in range(3):
                proxy.cut()
                make_pod(plane, "default", f"p{number}-{node}", node, [("app", secrets.token_hex(32))])
                until(lambda wanted=number + 1: agent.metric("nodemem_agent_pods") == wanted, "the new pod")
            before = observed(plane, node)
            proxy.cut()
            until_written_after(agent, plane, node, before)
            # Three connections, each made anew after a cut: nobody knocks in a loop.
            assert proxy.accepted <= 3 + 4 * 3 + 3


def test_a_peer_that_falls_silent_is_left(plane: ControlPlane) -> None:
    with Proxy(plane) as proxy:
        client = Client(from_kubeconfig(str(kubeconfig(plane, server=proxy.url, name="stalled"))))
        events = client.watch("/api/v1/namespaces", {}, silence_seconds=0.5, hook=lambda found: found)
        assert next(events)[0] == "ADDED"
        proxy.stall()
        with pytest.raises(Unreachable, match="timed out"):
            list(events)
        client.close()


def test_a_watch_on_which_nothing_comes_is_made_anew_without_a_word(plane: ControlPlane, node: str) -> None:
    """A server sends no bookmarks where nothing changes: that is no problem to tell anybody of."""
    said: list[str] = []
    with Proxy(plane) as proxy:
        client = Client(from_kubeconfig(str(kubeconfig(plane, server=proxy.url, name=node))))
        selector = f"spec.nodeName={node}"
        watch = Watch(client, "/api/v1/pods", selector, PodTable(), Log(said.append), silence_seconds=0.3)
        stop = threading.Event()
        thread = threading.Thread(target=watch.run, args=(stop,))
        thread.start()
        until(lambda: proxy.accepted >= 4, "new connections")
        stop.set()
        thread.join(10)
        client.close()
    assert not thread.is_alive()
    assert said == []


def test_a_server_that_closes_each_watch_at_once_is_not_asked_in_a_hot_loop(plane: ControlPlane, node: str) -> None:
    """timeoutSeconds=0 isn't sent by the agent; a watch of an empty list through a proxy that cuts comes near."""
    waits: list[float] = []

    class Recorded(Backoff):
        def failed(self, retry_after: float | None = None) -> float:
            waits.append(super().failed(retry_after))
            return 0.01

    with Proxy(plane) as proxy:
        client = Client(from_kubeconfig(str(kubeconfig(plane, server=proxy.url, name=node))))
        watch = Watch(
            client,
            "/api/v1/pods",
            f"spec.nodeName={node}",
            PodTable(),
            Log(lambda text: None),
            backoff=Recorded(chance=lambda: 1.0),
        )
        stop = threading.Event()
        thread = threading.Thread(target=watch.run, args=(stop,))
        thread.start()
        assert watch.synced.wait(10)
        while len(waits) < 5:
            proxy.cut()
        stop.set()
        proxy.cut()
        thread.join(10)
        assert not thread.is_alive()
        client.close()
    assert waits[:5] == [1, 2, 4, 8, 16]


def test_a_report_that_is_deleted_comes_back_and_not_in_a_storm(plane: ControlPlane, node: str) -> None:
    with running_agent(node, plane.kubeconfig, *OFTEN, cadence=Cadence(600.0, 1.0)) as agent:
        until(lambda: report_of(plane, node), "a report")
        for _ in range(3):
            old = uid_of(plane, node)
            plane.kubectl("delete", "memoryreport", node)
            until(lambda old=old: uid_of(plane, node) not in ("", old), "another report")
        assert not warnings(agent)
    made = [each for each in plane.writes() if f"/memoryreports/{node}?" in each["requestURI"]]
    assert len([each for each in made if each["verb"] == "patch"]) == 4
    owner = plane.request("GET", f"{REPORTS}/{node}")["metadata"]["ownerReferences"][0]
    assert owner["uid"] == plane.request("GET", f"/api/v1/nodes/{node}")["metadata"]["uid"]


def test_a_node_that_is_made_anew_owns_the_report(plane: ControlPlane, node: str) -> None:
    with running_agent(node, plane.kubeconfig, *OFTEN, cadence=FAST) as agent:
        until(lambda: report_of(plane, node), "a report")
        plane.kubectl("delete", "node", node)
        until(lambda: gone(plane, node), "garbage collection of the report", 60)
        until(lambda: any("there is no Node" in each for each in warnings(agent)), "a word about it")
        new = make_node(plane, node)["metadata"]["uid"]

        def owner() -> str:
            report = report_of(plane, node)
            return report["metadata"]["ownerReferences"][0]["uid"] if report else ""

        until(lambda: owner() == new, "the report of the new Node", 60)


def gone(cluster: ControlPlane, node: str) -> bool:
    try:
        cluster.request("GET", f"{REPORTS}/{node}")
    except ApiError as error:
        return error.code == 404
    return False


def test_a_report_that_another_node_uid_owns_is_taken_over(plane: ControlPlane, node: str) -> None:
    """As when the Node was made anew while the agent was away and nobody collected the garbage."""
    with running_agent(node, plane.kubeconfig, *OFTEN, cadence=FAST):
        until(lambda: report_of(plane, node), "a report")
    right = plane.request("GET", f"{REPORTS}/{node}")["metadata"]["ownerReferences"]
    plane.stop("kube-controller-manager")
    try:
        wrong = [{**right[0], "uid": "00000000-0000-4000-8000-000000000000"}]
        plane.request("PATCH", f"{REPORTS}/{node}", {"metadata": {"ownerReferences": wrong}})
        with running_agent(node, plane.kubeconfig, *OFTEN, cadence=FAST):
            until(lambda: right[0] in plane.request("GET", f"{REPORTS}/{node}")["metadata"]["ownerReferences"], "it")
    finally:
        plane.start_controller_manager()


@pytest.mark.parametrize("delay", [0.05, 0.15, 0.3, 0.6])
def test_killed_at_any_point_the_next_one_puts_it_right(plane: ControlPlane, node: str, delay: float) -> None:
    with running_agent(node, plane.kubeconfig, *OFTEN, cadence=FAST) as agent:
        time.sleep(delay)
        agent.process.kill()
        agent.process.wait()
    started = time.time()
    with running_agent(node, plane.kubeconfig, *OFTEN, cadence=FAST):
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started))
        until(lambda: observed(plane, node) >= stamp, "a fresh report", 20)
    report = plane.request("GET", f"{REPORTS}/{node}")
    assert len(report["metadata"]["ownerReferences"]) == 1
    assert len(report["metadata"]["managedFields"]) == 2


def test_a_restart_keeps_the_times_of_the_conditions(plane: ControlPlane, node: str) -> None:
    with running_agent(node, plane.kubeconfig, *OFTEN, cadence=FAST):
        first = until(lambda: report_of(plane, node), "a report")
    before = first["status"]["conditions"][0]
    time.sleep(1.1)
    with running_agent(node, plane.kubeconfig, *OFTEN, cadence=FAST) as agent:
        until_written_after(agent, plane, node, first["status"]["observedAt"])
    after = plane.request("GET", f"{REPORTS}/{node}")["status"]["conditions"][0]
    assert after["status"] == before["status"]
    assert after["lastTransitionTime"] == before["lastTransitionTime"]


def test_an_agent_that_came_before_its_node_and_its_definitions_says_so_and_waits() -> None:
    with ControlPlane(controller_manager=False) as bare, running_agent("n1", bare.kubeconfig, *OFTEN) as agent:
        until(lambda: any("there is no Node 'n1'" in each for each in warnings(agent)), "the missing Node")
        assert agent.get("/healthz")[0] == 200
        make_node(bare, "n1")
        until(lambda: any("definitions installed?" in each for each in warnings(agent)), "the missing definitions")
        bare.install(*(definition(each) for each in RESOURCES))
        until(lambda: report_of(bare, "n1"), "a report", 60)
