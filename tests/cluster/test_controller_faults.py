"""The controller when something breaks: a replica dies or freezes, the API server restarts, events are missed."""

import base64
import json
import secrets
import signal
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.controllerlab import (
    NAMESPACE,
    Controller,
    add_node,
    add_pod,
    exposure,
    exposures,
    plane,
    until,
    write_report,
    writes,
)
from cluster.controlplane import ControlPlane
from nodemem.node.status import API_VERSION

Object = dict[str, Any]


@pytest.fixture(scope="module")
def cluster() -> Iterator[ControlPlane]:
    with plane() as running:
        yield running


@pytest.fixture
def web(cluster: ControlPlane) -> Iterator[str]:
    name = f"web-{secrets.token_hex(4)}"
    cluster.add_namespace(name)
    yield name
    cluster.request("DELETE", f"/api/v1/namespaces/{name}")


@pytest.fixture
def node(cluster: ControlPlane) -> Iterator[Object]:
    made = add_node(cluster, f"node-{secrets.token_hex(4)}")
    yield made
    name = made["metadata"]["name"]
    cluster.kubectl("delete", "--ignore-not-found", f"node/{name}", f"memoryreport/{name}")


def holder(cluster: ControlPlane) -> str:
    """The name of the replica that the Lease names."""
    path = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/nodemem-controller"
    identity: str = cluster.request("GET", path)["spec"]["holderIdentity"]
    return identity.rpartition("_")[0].removeprefix("controller-")


def writers(cluster: ControlPlane, namespace: str) -> list[str]:
    """Which replica made each write there, in order."""
    agents = [each["userAgent"] for each in writes(cluster) if f"/{namespace}/" in each["requestURI"]]
    return [each.partition("(controller-")[2].rpartition("_")[0] for each in agents]


def pods_on(cluster: ControlPlane, namespace: str, node: Object, count: int) -> list[Object]:
    return [add_pod(cluster, namespace, f"app-{number}", node["metadata"]["name"]) for number in range(count)]


def test_standby_takes_over_from_a_killed_replica(cluster: ControlPlane, web: str, node: Object) -> None:
    pods = pods_on(cluster, web, node, 2)
    with Controller(cluster, name="a").until_synced() as active, Controller(cluster, name="b") as standby:
        until(lambda: standby.get("/readyz")[0] == 200, "not watching", log=standby.log)
        write_report(cluster, node, exposure(pods[0]))
        until(lambda: exposures(cluster, web), "no exposure", log=active.log)
        until(lambda: len(writers(cluster, web)) == 3, "no event")
        active.process.send_signal(signal.SIGKILL)
        active.process.wait()
        killed = time.monotonic()
        write_report(cluster, node, exposure(pods[0]), exposure(pods[1]))
        until(lambda: len(exposures(cluster, web)) == 2, "no takeover", seconds=25, log=standby.log)
        until(lambda: len(writers(cluster, web)) == 6, "no event")
        # The first is neither written nor told of again.
        assert writers(cluster, web) == ["a"] * 3 + ["b"] * 3
        assert time.monotonic() - killed < 25
        assert holder(cluster) == "b"


def test_ended_replica_hands_the_lease_over(cluster: ControlPlane, web: str, node: Object) -> None:
    pods = pods_on(cluster, web, node, 1)
    with Controller(cluster, name="a").until_synced() as active, Controller(cluster, name="b") as standby:
        until(lambda: standby.get("/readyz")[0] == 200, "not watching", log=standby.log)
        assert active.end() == 0
        write_report(cluster, node, exposure(pods[0]))
        # Less than the Lease's duration of 15 s.
        until(lambda: exposures(cluster, web), "no takeover", seconds=10, log=standby.log)
        assert set(writers(cluster, web)) == {"b"}


def test_frozen_replica_finds_the_fence_closed_when_it_wakes(cluster: ControlPlane, web: str, node: Object) -> None:
    pods = pods_on(cluster, web, node, 3)
    with Controller(cluster, name="a").until_synced() as active, Controller(cluster, name="b") as standby:
        until(lambda: standby.get("/readyz")[0] == 200, "not watching", log=standby.log)
        active.process.send_signal(signal.SIGSTOP)
        # What it would write as soon as it wakes.
        write_report(cluster, node, exposure(pods[0]))
        until(lambda: exposures(cluster, web), "no takeover", seconds=30, log=standby.log)
        write_report(cluster, node, exposure(pods[0]), exposure(pods[1]))
        active.process.send_signal(signal.SIGCONT)
        write_report(cluster, node, *(exposure(pod) for pod in pods))
        until(lambda: len(exposures(cluster, web)) == 3, "not all", log=standby.log)
        until(lambda: active.metric("leader") == 0, "thinks it leads", log=active.log)
        until(lambda: len(writers(cluster, web)) == 9, "too few", log=standby.log)
        standby.until_looked_again()
        assert writers(cluster, web) == ["b"] * 9
        assert holder(cluster) == "b"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["ended", "killed"])
def test_restart_of_the_api_server_is_survived(
    cluster: ControlPlane, web: str, node: Object, how: signal.Signals
) -> None:
    pods = pods_on(cluster, web, node, 2)
    with Controller(cluster).until_synced() as controller:
        write_report(cluster, node, exposure(pods[0]))
        until(lambda: exposures(cluster, web), "no exposure", log=controller.log)
        cluster.stop("kube-apiserver", how)
        # Longer than the Lease lasts.
        time.sleep(12)
        cluster.start_apiserver()
        write_report(cluster, node, exposure(pods[0]), exposure(pods[1]))
        until(lambda: len(exposures(cluster, web)) == 2, "not seen", log=controller.log)
        controller.until_looked_again()
        # Object, status and event of each, once.
        until(lambda: len(writers(cluster, web)) >= 6, "too few", log=controller.log)
        assert len(writers(cluster, web)) == 6
        assert controller.process.poll() is None


def test_told_to_end_at_any_moment_of_its_beginning_it_ends(cluster: ControlPlane) -> None:
    for moment in range(12):
        with Controller(cluster) as controller:
            until(lambda made=controller: "health and metrics" in made.log(), "not begun", log=controller.log)
            time.sleep(moment * 0.05)
            assert controller.end() == 0, controller.log()


def test_what_was_deleted_unseen_is_noticed(cluster: ControlPlane, web: str, node: Object) -> None:
    """The watch breaks, a policy goes from the store, and the new watch begins with 410 Gone: no DELETED event."""
    pods = pods_on(cluster, web, node, 1)
    name = f"ignore-{secrets.token_hex(4)}"
    cluster.apply(
        {"apiVersion": API_VERSION, "kind": "OomPolicy", "metadata": {"name": name}, "spec": {"mode": "Ignore"}}
    )
    with Controller(cluster, "--resync=3000", "--verbose").until_synced() as controller:
        write_report(cluster, node, exposure(pods[0]))
        until(lambda: controller.metric("reconciles_total") >= 2, "not looked", log=controller.log)
        assert exposures(cluster, web) == {}
        cluster.stop("kube-apiserver", signal.SIGKILL)
        etcd(cluster, "kv/deleterange", key=f"/registry/nodemem.io/oompolicies/{name}")
        revision = etcd(cluster, "kv/range", key="/registry/")["header"]["revision"]
        etcd(cluster, "kv/compaction", revision=revision)
        cluster.start_apiserver()
        until(lambda: exposures(cluster, web), "not noticed", seconds=60, log=controller.log)


def test_controller_without_its_rights_waits_and_names_what_is_refused(cluster: ControlPlane) -> None:
    cluster.request("DELETE", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/nodemem-controller")
    try:
        with Controller(cluster) as controller:
            until(lambda: "forbidden" in controller.log(), "no word", log=controller.log)
            assert controller.get("/readyz") == (503, "not watching yet\n")
    finally:
        cluster.apply(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "ClusterRoleBinding",
                "metadata": {"name": "nodemem-controller"},
                "roleRef": {
                    "apiGroup": "rbac.authorization.k8s.io",
                    "kind": "ClusterRole",
                    "name": "nodemem-controller",
                },
                "subjects": [{"kind": "ServiceAccount", "name": "nodemem-controller", "namespace": NAMESPACE}],
            }
        )


def etcd(cluster: ControlPlane, method: str, *, key: str | None = None, revision: str | None = None) -> Object:
    """The store itself, through etcd's JSON gateway."""
    body: Object = {}
    if key is not None:
        body = {"key": base64.b64encode(key.encode()).decode()}
    if revision is not None:
        body = {"revision": revision, "physical": True}
    request = urllib.request.Request(
        f"http://127.0.0.1:{cluster._etcd_port}/v3/{method}",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        found: Object = json.loads(answer.read())
    return found
