"""The harness itself: a real control plane that behaves as one, and of which nothing is left."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.controlplane import ApiError, ControlPlane

TESTS = Path(__file__).parents[1]


def until(condition: Callable[[], bool], what: str) -> None:
    """A deadline for what takes no time when it works; nothing is asserted about how long it takes."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """A zombie is not: init, or whoever is in its place, may be slow to reap."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def is_gone(cluster: ControlPlane, path: str) -> bool:
    try:
        cluster.request("GET", path)
    except ApiError as error:
        if error.code != 404:
            raise
        return True
    return False


def pod_on_node(cluster: ControlPlane, namespace: str, node: str) -> dict[str, Any]:
    cluster.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}})
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "agent", "namespace": namespace},
        "spec": {"nodeName": node, "containers": [{"name": "agent", "image": "example.com/agent:1"}]},
    }
    created: dict[str, Any] = cluster.apply(pod)[0]
    return created


def test_a_token_bound_to_a_pod_says_on_which_node_the_pod_is(cluster: ControlPlane, namespace: str) -> None:
    pod = pod_on_node(cluster, namespace, f"node-of-{namespace}")
    token = cluster.service_account_token(namespace, "default", pod=pod)
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    assert claims["kubernetes.io"]["node"]["name"] == f"node-of-{namespace}"
    assert claims["kubernetes.io"]["pod"]["uid"] == pod["metadata"]["uid"]

    review = cluster.request(
        "POST",
        "/apis/authentication.k8s.io/v1/selfsubjectreviews",
        {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"},
        token=token,
    )
    who = review["status"]["userInfo"]
    assert who["username"] == f"system:serviceaccount:{namespace}:default"
    assert who["extra"]["authentication.kubernetes.io/node-name"] == [f"node-of-{namespace}"]


def test_a_token_without_a_pod_names_no_node(cluster: ControlPlane, namespace: str) -> None:
    token = cluster.service_account_token(namespace, "default")
    assert "node" not in json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))["kubernetes.io"]


def test_the_token_of_a_deleted_pod_is_refused(cluster: ControlPlane, namespace: str) -> None:
    pod = pod_on_node(cluster, namespace, f"node-of-{namespace}")
    token = cluster.service_account_token(namespace, "default", pod=pod)
    path = f"/api/v1/namespaces/{namespace}/pods/agent"
    cluster.request("DELETE", f"{path}?gracePeriodSeconds=0")

    def refused() -> bool:
        try:
            cluster.request("GET", "/version", token=token)
        except ApiError as error:
            return error.code == 401
        return False

    until(refused, "the server remembers a token's review for some seconds, not for ever")


def test_a_service_account_may_do_only_what_rbac_grants(cluster: ControlPlane, namespace: str) -> None:
    token = cluster.service_account_token(namespace, "default")
    with pytest.raises(
        ApiError, match=r'User "system:serviceaccount:.*:default" cannot list resource "nodes"'
    ) as caught:
        cluster.request("GET", "/api/v1/nodes", token=token)
    assert caught.value.code == 403

    name = f"reads-nodes-{namespace}"
    rbac = "rbac.authorization.k8s.io"
    cluster.apply(
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRole",
            "metadata": {"name": name},
            "rules": [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}],
        },
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": namespace}],
        },
    )

    def granted() -> bool:
        try:
            return bool(cluster.request("GET", "/api/v1/nodes", token=token)["kind"] == "NodeList")
        except ApiError as error:
            if error.code != 403:
                raise
            return False

    until(granted, "the grant never took effect")
    with pytest.raises(ApiError, match="cannot delete resource"):
        cluster.request("DELETE", "/api/v1/nodes/any", token=token)


def test_what_an_object_owns_goes_with_it(cluster: ControlPlane, namespace: str) -> None:
    def config_map(name: str, owner: dict[str, Any] | None = None) -> dict[str, Any]:
        references = (
            []
            if owner is None
            else [{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}]
        )
        metadata = {"name": name, "namespace": namespace, "ownerReferences": references}
        created: dict[str, Any] = cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})[0]
        return created

    owner = config_map("owner")
    config_map("owned", owner)
    config_map("free")
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    cluster.request("DELETE", f"{path}/owner")
    until(lambda: is_gone(cluster, f"{path}/owned"), "garbage collection did not delete what the owner owned")
    assert not is_gone(cluster, f"{path}/free")


def test_writes_are_counted_from_the_audit_log(cluster: ControlPlane, namespace: str) -> None:
    item = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "counted", "namespace": namespace}}
    cluster.apply(item)
    cluster.request("GET", cluster.path_of(item))

    def seen() -> list[str]:
        objects = [(event["verb"], event["objectRef"]) for event in cluster.writes()]
        return [verb for verb, ref in objects if (ref.get("namespace"), ref.get("name")) == (namespace, "counted")]

    until(lambda: bool(seen()), "the write never got into the audit log")
    assert seen() == ["patch"]


def test_it_serves_on_loopback_alone(cluster: ControlPlane) -> None:
    listening = set()
    for name, pid in cluster.pids().items():
        inodes = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                parts = line.split()
                if parts[3] == "0A" and f"socket:[{parts[9]}]" in inodes:
                    listening.add((name, parts[1].partition(":")[0]))
    assert {name for name, _ in listening} == {"etcd", "kube-apiserver", "kube-controller-manager"}
    assert {address for _, address in listening} == {"0100007F"}


def test_nothing_is_left_at_the_end() -> None:
    with ControlPlane() as own:
        pids, directory, port = own.pids(), own.directory, int(own.url.rpartition(":")[2])
        assert len(pids) == 3
        assert all(is_running(pid) for pid in pids.values())
        assert directory.exists()
    assert [name for name, pid in pids.items() if is_running(pid)] == []
    assert not directory.exists()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_program_that_cannot_start_is_named_with_its_log_and_nothing_is_left() -> None:
    own = ControlPlane(controller_manager=False, apiserver_args=("--no-such-flag",))
    with (
        pytest.raises(RuntimeError, match=r"kube-apiserver ended with 1:\n.*unknown flag: --no-such-flag") as caught,
        own,
    ):
        raise AssertionError("it started")
    assert "kube-apiserver" in str(caught.value)
    assert own.pids() == {}
    assert not own.directory.exists()


def test_the_programs_end_with_a_killed_owner_and_the_next_start_removes_its_directory(
    cluster: ControlPlane,
) -> None:
    program = (
        "import json, time\n"
        "from cluster.controlplane import ControlPlane\n"
        "with ControlPlane() as own:\n"
        "    print(json.dumps([str(own.directory), own.pids()]), flush=True)\n"
        "    time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent / 'operator'}"}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment) as owner:
        assert owner.stdout is not None
        line = owner.stdout.readline()
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    directory, pids = json.loads(line)
    assert len(pids) == 3
    until(lambda: not any(is_running(pid) for pid in pids.values()), f"still running: {pids}")
    assert Path(directory).exists(), "nobody was there to remove it"

    with ControlPlane(controller_manager=False):
        assert not Path(directory).exists()
        assert cluster.directory.exists(), "the directory of a living owner was removed"
