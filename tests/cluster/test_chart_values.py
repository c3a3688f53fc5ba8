"""Every object that values can make, judged by a real API server, with prometheus-operator's own definitions; helm test
with a kubelet that this test plays; the first commands of the runbooks, by kubectl."""

import copy
import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helm_python import Config, HelmError
from helm_python.chart import Chart

from chartlab import CHART, NAMESPACE, RELEASE, ROOT, Object, render
from cluster import promoperator
from cluster.agentlab import make_node, make_pod, until
from cluster.controllerlab import now
from cluster.controlplane import ApiError, ControlPlane

REPORTS = "/apis/nodemem.io/v1alpha1/memoryreports"
MONITORED: dict[str, Any] = {each: {"enabled": True} for each in ("podMonitor", "prometheusRule", "dashboard")}


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with ControlPlane(controller_manager=False) as running:
        running.install(*promoperator.definitions())
        running.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        # A Pod of an account that is not there is refused even in a dry run.
        for name in ("default", f"{RELEASE}-test", "memory-test"):
            account = {"name": name, "namespace": NAMESPACE}
            running.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account})
        yield running


@pytest.fixture(scope="module")
def installed(plane: ControlPlane) -> Iterator[Config]:
    with Config(kubeconfig_path=plane.kubeconfig, namespace=NAMESPACE) as config:
        config.install(CHART, RELEASE, MONITORED)
        plane.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")
        yield config
        config.uninstall(RELEASE)


def defaults() -> dict[str, Any]:
    with Chart.load(CHART) as chart:
        return copy.deepcopy(chart.values)


def switches(values: dict[str, Any], *above: str) -> Iterator[tuple[str, ...]]:
    """Where there is a boolean. That each alert has one is enough to know of the alerts."""
    for name, value in values.items():
        if isinstance(value, bool):
            yield (*above, name)
        elif isinstance(value, dict) and name != "alerts":
            yield from switches(value, *above, name)


def having(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    for name in reversed(path):
        value = {name: value}
    found: dict[str, Any] = value
    return found


def at(values: dict[str, Any], path: tuple[str, ...]) -> Any:
    for name in path:
        values = values[name]
    return values


def merged(*maps: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in maps:
        for name, value in each.items():
            found[name] = merged(found[name], value) if isinstance(found.get(name), dict) else value
    return found


SWITCHES = list(switches(defaults()))
NAMED = {"agent": {"serviceAccount": {"name": "theirs"}}, "controller": {"serviceAccount": {"name": "theirs"}}}
EVERYTHING = merged(*(having(path, True) for path in SWITCHES))
MUCH = {
    "podMonitor": {
        "enabled": True,
        "interval": "",
        "scrapeTimeout": "10s",
        "labels": {"release": "x"},
        "annotations": {"a": "b"},
        "relabelings": [{"targetLabel": "cluster", "replacement": "c1"}],
        "metricRelabelings": [{"sourceLabels": ["__name__"], "regex": "nodemem_container_.*", "action": "drop"}],
    },
    "prometheusRule": {
        "enabled": True,
        "labels": {"release": "x"},
        "annotations": {"a": "b"},
        "alertLabels": {"team": "x"},
        "alerts": {"NodememAgentDown": {"enabled": False}, "NodememShmemExhaustion": {"withinHours": 0.5}},
    },
    "dashboard": {"enabled": True, "annotations": {"grafana_folder": "Nodes"}},
    "commonLabels": {"a": "b"},
    "commonAnnotations": {"c": "d"},
    "fullnameOverride": "memory",
}


def accepted(plane: ControlPlane, objects: Iterable[Object]) -> None:
    """Every object, with no field that the server does not know."""
    for each in objects:
        answer = plane.request(
            "PATCH",
            f"{plane.path_of(each)}?fieldManager=test&force=true&fieldValidation=Strict&dryRun=All",
            each,
            content_type="application/apply-patch+yaml",
        )
        assert answer["metadata"]["name"] == each["metadata"]["name"]


@pytest.mark.parametrize(
    "values",
    [{}, MONITORED, EVERYTHING, MUCH, having(("rbac", "create"), False) | having(("tests", "enabled"), False)],
    ids=["as it comes", "monitored", "everything on", "much changed", "least"],
)
def test_the_server_takes_all_that_these_values_make(plane: ControlPlane, values: dict[str, Any]) -> None:
    objects = render(values, hooks=True)
    assert len(objects) >= 12
    accepted(plane, objects)


@pytest.mark.parametrize("path", SWITCHES, ids=".".join)
def test_each_switch_changes_something_and_the_server_takes_it(plane: ControlPlane, path: tuple[str, ...]) -> None:
    values = merged(MONITORED, NAMED)
    before = render(values, hooks=True)
    was = at(merged(defaults(), values), path)
    after = render(merged(values, having(path, not was)), hooks=True)
    changed = [each for each in after if each not in before]
    assert changed or len(after) < len(before)
    accepted(plane, changed)


def test_the_server_would_refuse_a_field_that_prometheus_operator_does_not_have(plane: ControlPlane) -> None:
    monitor = next(each for each in render(MONITORED) if each["kind"] == "PodMonitor")
    monitor["spec"]["podMetricsEndpoints"][0]["honourLabels"] = True
    with pytest.raises(ApiError, match="honourLabels: field not declared in schema"):
        plane.apply(monitor)


# helm test


def play_kubelet(plane: ControlPlane, tmp_path: Path, said: list[str]) -> None:
    """Run the command of the test's pod, as its account, and tell the server how it ended."""
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{RELEASE}-test"

    def started() -> Any:
        """Not the one of a test before, which Helm leaves there until the next."""
        try:
            found = plane.request("GET", path)
        except ApiError:
            return None
        return found if found["status"]["phase"] == "Pending" else None

    pod = until(started, "the test's pod")
    container = pod["spec"]["containers"][0]
    assert container["command"] == ["nodemem", "check"]
    token = plane.service_account_token(NAMESPACE, pod["spec"]["serviceAccountName"], pod=pod)
    kubeconfig = plane.write_kubeconfig(tmp_path / "kubeconfig", token)
    words = [*container["args"][:-1], "--wait=1", f"--kubeconfig={kubeconfig}"]
    done = subprocess.run([sys.executable, "-m", "nodemem", "check", *words], capture_output=True, text=True)
    said.append(done.stdout + done.stderr)
    phase = "Failed" if done.returncode else "Succeeded"
    plane.request("PATCH", f"{path}/status", {"status": {"phase": phase}})


def helm_test(plane: ControlPlane, config: Config, tmp_path: Path) -> str:
    """What the test's pod said. Raises HelmError when it failed, with that as a note."""
    said: list[str] = []
    kubelet = threading.Thread(target=play_kubelet, args=(plane, tmp_path, said))
    kubelet.start()
    try:
        config.test(RELEASE, timeout=60)
    except HelmError as error:
        kubelet.join()
        error.add_note(said[0])
        raise
    kubelet.join()
    return said[0]


def left_of_tests(plane: ControlPlane) -> str:
    kinds = "serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings,pods"
    return plane.kubectl("get", kinds, "-A", "-l", "app.kubernetes.io/component=test", "-o", "name")


def agent_pod(plane: ControlPlane, node: str) -> None:
    pod = make_pod(plane, NAMESPACE, f"agent-{node}", node, [("agent", "0" * 64)])
    labels = {"name": "nodemem", "instance": RELEASE, "component": "agent"}
    metadata = {"labels": {f"app.kubernetes.io/{name}": value for name, value in labels.items()}}
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod['metadata']['name']}"
    plane.request("PATCH", path, {"metadata": metadata})
    plane.request("PATCH", f"{path}/status", {"status": {"startTime": now(ago_seconds=60)}})


def write_report(plane: ControlPlane, node: str, *, ago_seconds: float) -> None:
    report = {"apiVersion": "nodemem.io/v1alpha1", "kind": "MemoryReport", "metadata": {"name": node}}
    plane.apply(report)
    plane.apply(report | {"status": {"observedAt": now(ago_seconds=ago_seconds)}}, subresource="status")


def test_helm_test_succeeds_once_every_agent_has_reported_and_leaves_nothing(
    plane: ControlPlane, installed: Config, tmp_path: Path
) -> None:
    with pytest.raises(HelmError) as caught:
        helm_test(plane, installed, tmp_path)
    assert "There is no pod of the agent in namespace nodemem-system" in caught.value.__notes__[0]
    assert "pod/nodemem-test" in left_of_tests(plane)
    page = (ROOT / "docs" / "uninstall.md").read_text()
    remove = next(line for line in page.splitlines() if line.endswith("app.kubernetes.io/component=test"))
    plane.kubectl(*remove.removeprefix("$ kubectl ").split())
    assert left_of_tests(plane) == ""

    for node in ("n1", "n2"):
        make_node(plane, node)
        agent_pod(plane, node)
    write_report(plane, "n1", ago_seconds=10)
    write_report(plane, "n2", ago_seconds=3600)
    with pytest.raises(HelmError) as caught:
        helm_test(plane, installed, tmp_path)
    assert "1 of 2 agents have reported: n2 has a report from before agent-n2 started." in caught.value.__notes__[0]

    write_report(plane, "n2", ago_seconds=0)
    assert helm_test(plane, installed, tmp_path) == "2 of 2 agents have reported.\n"
    assert left_of_tests(plane) == ""


def test_the_tests_account_may_list_reports_and_the_agents_pods_and_nothing_else(plane: ControlPlane) -> None:
    objects = render({}, hooks=True)
    made = [each for each in objects if each["metadata"]["name"] == f"{RELEASE}-test" and "rules" in each]
    assert [each["kind"] for each in made] == ["ClusterRole", "Role"]
    assert [rule for each in made for rule in each["rules"]] == [
        {"apiGroups": ["nodemem.io"], "resources": ["memoryreports"], "verbs": ["list"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
    ]


# Runbooks


def test_kubectl_takes_every_command_of_the_runbooks(plane: ControlPlane, installed: Config) -> None:
    make_node(plane, "n1")
    write_report(plane, "n1", ago_seconds=0)
    exposure = {
        "apiVersion": "nodemem.io/v1alpha1",
        "kind": "OomExposure",
        "metadata": {"name": "db-0", "namespace": NAMESPACE},
    }
    plane.apply(exposure)
    text = (ROOT / "docs" / "alerts.md").read_text()
    commands = set(re.findall(r"^\$ (.+)$", text, re.MULTILINE))
    assert len(commands) >= 5
    for command in commands:
        words = command.replace("'", "").split()
        values = {"NODE": "n1", "POD": "db-0", "NAMESPACE": NAMESPACE}
        words = [
            re.sub(r"\b(NODE|POD|NAMESPACE)\b", lambda found, values=values: values[found[1]], word) for word in words
        ]
        assert words[0] == "kubectl"
        plane.kubectl(*words[1:])
