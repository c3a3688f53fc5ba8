"""What the tests of the agent have in common: fake Nodes and Pods in a real API server, and the agent as a process."""

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cluster.controlplane import ApiError, ControlPlane, free_port
from nodemem.agent.changes import Cadence

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
    static_uid: str | None = None,
    request: str = "64Mi",
    guaranteed: bool = False,
) -> dict[str, Any]:
    """A running pod as the API shows it; ``containers`` are name and id. The server chooses the uid; a static pod's
    mirror (``static_uid``) names the one that its cgroups have."""
    annotations = {"kubernetes.io/config.mirror": static_uid, "kubernetes.io/config.hash": static_uid}
    amounts = {"cpu": "100m", "memory": request}
    resources = {"requests": amounts} | ({"limits": amounts} if guaranteed else {})
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
    """``python -m nodemem.agent`` for a node with exactly the chart's user and capabilities, with another ``cadence``
    if one is given (cluster.fast_agent)."""

    def __init__(
        self,
        node: str,
        kubeconfig: Path,
        *options: str,
        cadence: Cadence | None = None,
    ) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by close()
        self.port = free_port()
        module = "nodemem.agent" if cadence is None else "cluster.fast_agent"
        command = [sys.executable, "-m", module, f"--node-name={node}", f"--listen=127.0.0.1:{self.port}"]
        paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        if cadence is not None:
            environment["CADENCE"] = f"{cadence.heartbeat_seconds} {cadence.apart_seconds}"
        from cluster import rights  # needs Helm, which the demo does without

        capabilities = rights.chart_capabilities(enforcement="--enforce" in options, mitigation="--mitigate" in options)
        command = [*rights.with_capabilities(capabilities), *command, f"--kubeconfig={kubeconfig}", *options]
        self.process = subprocess.Popen(command, stderr=self._log, env=environment)

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

    def writes(self) -> float:
        """Of the report's status, by the agent's own count."""
        lines = self.get("/metrics")[1].splitlines()
        return sum(float(each.rpartition(" ")[2]) for each in lines if each.startswith("nodemem_agent_report_writes_"))

    def scans(self) -> float:
        return self.metric('nodemem_agent_scan_seconds_count{scan="full"}') or 0

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()
        self._log.close()


@contextlib.contextmanager
def running_agent(node: str, kubeconfig: Path, *options: str, cadence: Cadence | None = None) -> Iterator[RunningAgent]:
    agent = RunningAgent(node, kubeconfig, *options, cadence=cadence)
    try:
        yield agent
    except BaseException as error:
        error.add_note(f"the agent said:\n{agent.text()[-4000:]}")
        raise
    finally:
        agent.close()


class Proxy:
    """A TCP proxy in front of the API server; TLS goes through it end to end. ``listener`` may be in another network
    namespace."""

    def __init__(self, cluster: ControlPlane, *, listener: socket.socket | None = None) -> None:
        self._target = ("127.0.0.1", int(cluster.url.rpartition(":")[2]))
        self._listener = listener or socket.create_server(("127.0.0.1", 0))
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._stop, self._cut, self._stalled = threading.Event(), threading.Event(), threading.Event()
        self.accepted = 0
        self._thread = threading.Thread(target=self._run)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._listener.getsockname()[1]}"

    def cut(self) -> None:
        """Close every connection, as a load balancer does that restarts."""
        self._cut.set()
        until(lambda: not self._cut.is_set(), "the cut")

    def stall(self) -> None:
        """From now on nothing comes through, and nobody is told."""
        self._stalled.set()

    def __enter__(self) -> "Proxy":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._drop()
        self._selector.close()
        self._listener.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            if self._cut.is_set():
                self._drop()
                self._cut.clear()
            if self._stalled.is_set():
                self._stop.wait(0.02)
                continue
            for key, _ in self._selector.select(0.02):
                ready = key.fileobj
                assert isinstance(ready, socket.socket)
                if ready is self._listener:
                    self._accept()
                elif ready in self._pairs:
                    self._pump(ready)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        self.accepted += 1
        try:
            server = socket.create_connection(self._target)
        except OSError:
            client.close()
            return
        for one, other in ((client, server), (server, client)):
            self._pairs[one] = other
            self._selector.register(one, selectors.EVENT_READ)

    def _pump(self, ready: socket.socket) -> None:
        other = self._pairs[ready]
        try:
            data = ready.recv(65536)
            if data:
                other.sendall(data)
                return
        except OSError:
            pass
        self._close(ready)

    def _close(self, one: socket.socket) -> None:
        other = self._pairs[one]
        for each in (one, other):
            self._pairs.pop(each, None)
            self._selector.unregister(each)
            each.close()

    def _drop(self) -> None:
        while self._pairs:
            self._close(next(iter(self._pairs)))


def kubeconfig(cluster: ControlPlane, *, server: str | None = None, name: str = "agent", **user: str) -> Path:
    """A kubeconfig for the administrator, or for another ``user`` (its fields), through another ``server``."""
    config = json.loads(cluster.kubeconfig.read_text())
    if server is not None:
        config["clusters"][0]["cluster"]["server"] = server
    if user:
        config["users"][0]["user"] = user
    path = cluster.directory / f"{name}.kubeconfig"
    path.write_text(json.dumps(config))
    return path
