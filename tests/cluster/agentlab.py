"""What the tests of the agent have in common: fake Nodes and Pods in a real API server, and the agent as a process."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cluster.controlplane import ApiError, ControlPlane

T = TypeVar("T")
REPORTS = "/apis/nodemem.io/v1alpha1/memoryreports"


def make_node(cluster: ControlPlane, name: str) -> dict[str, Any]:
    node: dict[str, Any] = cluster.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})[0]
    return node


def make_pod(
    cluster: ControlPlane,
    namespace: str,
    name: str,
    node: str,
    containers: Sequence[tuple[str, str]],
    *,
    qos: str = "Burstable",
    static_uid: str | None = None,
    request: str | None = "64Mi",
    limit: str | None = None,
) -> dict[str, Any]:
    """A running pod as the API shows it; ``containers`` are name and id. The server chooses the uid; a static pod's
    mirror (``static_uid``) names the one that its cgroups have."""
    annotations = {"kubernetes.io/config.mirror": static_uid, "kubernetes.io/config.hash": static_uid}
    resources: dict[str, Any] = {}
    if request is not None:
        resources["requests"] = {"memory": request}
    if limit is not None:
        resources["limits"] = {"memory": limit}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "annotations": annotations if static_uid else {}},
        "spec": {
            "nodeName": node,
            "automountServiceAccountToken": False,
            "containers": [
                {
                    "name": each,
                    "image": "registry.example/team/application:1.2.3",
                    "resources": resources,
                    "env": [{"name": f"SETTING_{number}", "value": "x" * 40} for number in range(10)],
                }
                for each, _ in containers
            ],
        },
    }
    made: dict[str, Any] = cluster.request("POST", f"/api/v1/namespaces/{namespace}/pods", pod)
    status = {
        "phase": "Running",
        "qosClass": qos,
        "containerStatuses": [
            {
                "name": each,
                "containerID": f"containerd://{container_id}",
                "image": "registry.example/team/application:1.2.3",
                "imageID": "registry.example/team/application@sha256:" + "0" * 64,
                "ready": True,
                "restartCount": 0,
                "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
            }
            for each, container_id in containers
        ],
    }
    cluster.request("PATCH", f"/api/v1/namespaces/{namespace}/pods/{name}/status", {"status": status})
    return made


def until(ask: Callable[[], T | None], what: str, seconds: float = 30.0) -> T:
    """The first answer that is neither None nor False."""
    deadline = time.monotonic() + seconds
    while True:
        found = ask()
        if found is not None and found is not False:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.05)


def report_of(cluster: ControlPlane, node: str) -> dict[str, Any] | None:
    """The report once it has a status."""
    try:
        found: dict[str, Any] = cluster.request("GET", f"{REPORTS}/{node}")
    except (ApiError, OSError):
        return None
    return found if found.get("status") else None


class RunningAgent:
    """``python -m nodemem.agent`` for a node. ``log`` is what it said so far, as JSON objects."""

    def __init__(self, node: str, kubeconfig: Path, *options: str, environment: dict[str, str] | None = None) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by close()
        self.port = _free_port()
        command = [sys.executable, "-m", "nodemem.agent", f"--node-name={node}", f"--listen=127.0.0.1:{self.port}"]
        if str(kubeconfig) != ".":
            command.append(f"--kubeconfig={kubeconfig}")
        self.process = subprocess.Popen(
            [*command, *options], stderr=self._log, env={**os.environ, **(environment or {})}
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def text(self) -> str:
        self._log.flush()
        self._log.seek(0)
        return self._log.read()

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]

    def get(self, path: str) -> tuple[int, str]:
        """Status and body; 0 where nobody listens."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, series: str) -> float | None:
        for line in self.get("/metrics")[1].splitlines():
            if line.startswith(f"{series} "):
                return float(line.rpartition(" ")[2])
        return None

    def status_bytes(self, field: str) -> int:
        """A field of /proc/<pid>/status, such as VmRSS."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
        raise LookupError(field)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._log.close()


@contextlib.contextmanager
def running_agent(
    node: str, kubeconfig: Path, *options: str, environment: dict[str, str] | None = None
) -> Iterator[RunningAgent]:
    agent = RunningAgent(node, kubeconfig, *options, environment=environment)
    try:
        yield agent
    finally:
        agent.close()


class Proxy:
    """A TCP proxy in front of the API server, to cut what goes through it. TLS goes end to end."""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
