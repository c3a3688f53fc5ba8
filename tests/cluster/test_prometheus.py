"""A real Prometheus scrapes a real agent and a real controller, with the configuration of docs/monitoring.md; it
evaluates the chart's rules, and answers the dashboards' questions."""

import json
import re
import secrets
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dashboards
from chartlab import NAMESPACE, find, render
from cluster.agentlab import RunningAgent, running_agent, until
from cluster.controllerlab import Controller, add_node, add_pod, exposure, plane, write_report
from cluster.controlplane import ControlPlane
from kernel import workloads
from kernel.workloads import MIB
from promlab import Prometheus, documented_scrapes

AGENT, CONTROLLER = "nodemem-system/nodemem-agent", "nodemem-system/nodemem-controller"
QUIET = {
    "Wrong kills, last day",
    "Nothing left in",
    "Limits in trouble",
    "Policies: nodes by state",
    "Limits by state",
    "Limits",
    "Sizes asked for",
    "Containers in which the kernel would kill the wrong process",
}
"""Panels that may have nothing to show on this machine: there is no policy, and nothing need be wrong."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[ControlPlane]:
    with plane() as running:
        yield running


def target(component: str, port: str, **meta: str) -> dict[str, Any]:
    """What Prometheus' discovery knows of a pod."""
    known = {
        "namespace": NAMESPACE,
        "pod_label_app_kubernetes_io_component": component,
        "pod_container_port_name": "metrics",
        **meta,
    }
    return {
        "targets": [f"127.0.0.1:{port}"],
        "labels": {f"__meta_kubernetes_{name}": value for name, value in known.items()},
    }


def rules_at_once() -> list[dict[str, Any]]:
    """The chart's rules, which wait for nothing."""
    rule = find(render({"prometheusRule": {"enabled": True}}), "PrometheusRule", "nodemem")
    return [each | {"for": "0s"} for group in rule["spec"]["groups"] for each in group["rules"]]


@pytest.fixture(scope="module")
def scene(
    cluster: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Prometheus, RunningAgent, str, str]]:
    """The server, the agent, its node, and where a tmpfs is mounted that is 96 % full. Another node's report, written
    as an agent would, says that a pod is exposed."""
    node = f"node-{secrets.token_hex(3)}"
    add_node(cluster, node)
    other = add_node(cluster, f"{node}-other")
    pod = add_pod(cluster, "default", "victim", other["metadata"]["name"])
    write_report(cluster, other, exposure(pod))
    options = ("--interval=2", "--refresh=1")
    with (
        workloads.container_cgroup(str(uuid.uuid4()), secrets.token_hex(32), limit=64 * MIB) as container,
        workloads.child(lambda: None, container),
        workloads.tmpfs_here(48 * MIB, limit=50 * MIB) as full,
        running_agent(node, cluster.kubeconfig, *options) as agent,
        Controller(cluster).until_synced() as controller,
    ):
        controller_port = re.search(r"health and metrics on port (\d+)", controller.log())
        assert controller_port is not None
        scrapes = documented_scrapes(
            {
                AGENT: [target("agent", str(agent.port), pod_node_name=node, pod_name="nodemem-agent-x")],
                CONTROLLER: [target("controller", controller_port[1], pod_name="nodemem-controller-x")],
            }
        )
        directory: Path = tmp_path_factory.mktemp("prometheus")
        with Prometheus(directory, scrapes, rules_at_once()) as server:
            yield server, agent, node, str(full.path)


@pytest.fixture
def server(scene: tuple[Prometheus, RunningAgent, str, str]) -> Prometheus:
    return scene[0]


def test_both_are_scraped_as_open_metrics(server: Prometheus) -> None:
    for job in (AGENT, CONTROLLER):
        until(lambda job=job: server.query(f'up{{job="{job}"}} == 1') or None, f"{job} is up")
    until(lambda: server.ask("targets/metadata", metric="nodemem_build") or None, "metadata")
    kinds = {each["type"] for each in server.ask("targets/metadata", metric="nodemem_build")}
    assert kinds == {"info"}, "the older format has no such type"


def test_an_agents_series_are_the_nodes_and_name_no_pod_of_the_agent(
    scene: tuple[Prometheus, RunningAgent, str, str],
) -> None:
    server, _, node, mounted = scene
    found = until(lambda: server.query("nodemem_memory_size_bytes") or None, "a figure")
    assert len(found) == 1
    assert found[0][0] == {
        "__name__": "nodemem_memory_size_bytes",
        "job": AGENT,
        "instance": node,
        "node": node,
        "namespace": NAMESPACE,
    }
    total = int(re.findall(r"MemTotal: +(\d+)", Path("/proc/meminfo").read_text())[0]) * 1024
    assert found[0][1] == total
    parts = server.query("sum(nodemem_memory_part_bytes)")
    assert parts[0][1] == total
    assert server.query(f'nodemem_tmpfs_used_bytes{{mount_point="{mounted}"}}')[0][1] == 48 * MIB


def test_a_metric_about_a_pod_keeps_that_pods_labels(server: Prometheus) -> None:
    found = until(lambda: server.query("nodemem_controller_pod_exposed") or None, "the exposure")
    labels = found[0][0]
    assert (labels["namespace"], labels["pod"], labels["job"]) == ("default", "victim", CONTROLLER)
    assert not [name for name in labels if name.startswith("exported_")]


def test_alerts_fire_with_words_about_this_node(scene: tuple[Prometheus, RunningAgent, str, str]) -> None:
    server, _, node, mounted = scene

    def firing() -> dict[str, Any] | None:
        found = {
            each["labels"]["alertname"]: each
            for each in server.ask("alerts")["alerts"]
            if each["labels"].get("mount_point", mounted) == mounted
        }
        return found if {"NodememTmpfsNearlyFull", "NodememPodExposed"} <= found.keys() else None

    alerts = until(firing, "the alerts", 60)
    full, exposed = alerts["NodememTmpfsNearlyFull"], alerts["NodememPodExposed"]
    assert full["annotations"]["summary"] == f"A tmpfs on node {node} is 96% full."
    assert exposed["labels"]["pod"] == "victim"
    assert f"kubectl describe memoryreport {node}" in full["annotations"]["description"]
    assert "NodememControllerDown" not in alerts
    assert "NodememAgentDown" not in alerts


def test_the_server_has_no_word_to_say_against_a_rule(server: Prometheus) -> None:
    until(lambda: server.query("nodemem_controller_pod_exposed") or None, "everything is scraped")
    states = [rule for group in server.ask("rules")["groups"] for rule in group["rules"]]
    assert len(states) == len(rules_at_once())
    assert {each["health"] for each in states} <= {"ok", "unknown"}
    assert [each["lastError"] for each in states if each.get("lastError")] == []
    assert "level=error" not in server.log()


def test_the_dashboards_get_answers(scene: tuple[Prometheus, RunningAgent, str, str]) -> None:
    server, agent, node, mounted = scene
    Path(mounted, "more").write_bytes(b"x" * MIB)  # so that something grows
    until(lambda: agent.scans() >= 3, "some scans", 60)
    until(lambda: server.query("nodemem_controller_pod_exposed") or None, "everything is scraped")
    asked = [
        (panel["title"], each["expr"].replace("$__rate_interval", "1m").replace("$node", node))
        for text in dashboards.files().values()
        for panel in json.loads(text)["panels"]
        for each in panel.get("targets", ())
    ]
    assert len(asked) > 50
    deadline = time.monotonic() + 60
    while unanswered := [each for each in asked if not server.query(each[1]) and each[0] not in QUIET]:
        assert time.monotonic() < deadline, unanswered
        time.sleep(1)
