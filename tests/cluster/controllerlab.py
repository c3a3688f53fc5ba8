"""Controllers as processes, with the rights of docs/reference/rbac.md, and the objects they act on."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml

from cluster.controlplane import ApiError, ControlPlane
from nodemem.api.resources import RESOURCES
from nodemem.api.schema import definition
from nodemem.node.status import API_VERSION

RBAC = Path(__file__).parents[2] / "docs" / "reference" / "rbac.md"
NAMESPACE = "nodemem-system"
MANAGER = "nodemem-controller"
GIB = 1 << 30
T = TypeVar("T")
Object = dict[str, Any]

_libc = ctypes.CDLL(None)


def documented_roles() -> list[Object]:
    blocks = re.findall(r"```yaml\n(.*?)```", RBAC.read_text(), re.DOTALL)
    return [each for block in blocks for each in yaml.safe_load_all(block)]


@contextmanager
def plane() -> Iterator[ControlPlane]:
    """A control plane of its own: the controller acts on the whole of it."""
    with ControlPlane() as cluster:
        cluster.install(*(definition(each) for each in RESOURCES))
        identity = {"kind": "ServiceAccount", "name": MANAGER, "namespace": NAMESPACE}
        cluster.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": MANAGER, "namespace": NAMESPACE}},
        )
        for role in documented_roles():
            kind, name = role["kind"], role["metadata"]["name"]
            metadata = {"name": name} | ({"namespace": NAMESPACE} if kind == "Role" else {})
            binding = {
                "apiVersion": role["apiVersion"],
                "kind": f"{kind}Binding",
                "metadata": metadata,
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name},
                "subjects": [identity],
            }
            cluster.apply(role | {"metadata": metadata})
            if name == MANAGER:
                cluster.apply(binding)
            else:
                (cluster.directory / f"{name}.binding").write_text(yaml.safe_dump(binding))
        yield cluster


def grant_node_conditions(cluster: ControlPlane) -> None:
    """The second role of the page, for those who want the conditions."""
    for file in cluster.directory.glob("*.binding"):
        cluster.apply(yaml.safe_load(file.read_text()))


class Controller:
    """``nodemem controller`` in a process; ``identity`` is known once it asks for anything."""

    def __init__(self, cluster: ControlPlane, *args: str, name: str = "one") -> None:
        token = cluster.service_account_token(NAMESPACE, MANAGER)
        kubeconfig = cluster.write_kubeconfig(cluster.directory / f"controller-{name}.kubeconfig", token)
        self._log = cluster.directory / f"controller-{name}.log"
        self._from = self._log.stat().st_size if self._log.exists() else 0
        self.name = name
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    "import sys; from nodemem.cli.main import main; sys.exit(main())",
                    "controller",
                    f"--kubeconfig={kubeconfig}",
                    f"--namespace={NAMESPACE}",
                    "--listen=127.0.0.1:0",
                    "--resync=2",
                    *args,
                ],
                env=os.environ | {"POD_NAME": f"controller-{name}"},
                stdout=log,
                stderr=log,
                preexec_fn=_end_with_parent,
            )

    def __enter__(self) -> "Controller":
        return self

    def __exit__(self, *_: object) -> None:
        """In order, so that the Lease is free for the next one."""
        try:
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGCONT)
                self.end()
        finally:
            self.process.kill()
            self.process.wait()

    def end(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(15)

    def log(self) -> str:
        return self._log.read_bytes()[self._from :].decode(errors="replace")

    def get(self, path: str) -> tuple[int, str]:
        until(lambda: self.process.poll() is not None or self._port(), "no port", log=self.log)
        port = self._port()
        if port is None:
            pytest.fail(f"the controller ended with {self.process.poll()}:\n{self.log()[-4000:]}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def _port(self) -> str | None:
        found = re.search(r"health and metrics on port (\d+)", self.log())
        return found and found[1]

    def metric(self, name: str) -> float:
        found = re.search(rf"^nodemem_controller_{re.escape(name)} (\S+)$", self.get("/metrics")[1], re.MULTILINE)
        assert found, name
        return float(found[1])

    def until_synced(self) -> "Controller":
        until(lambda: self.metric("synced") == 1 and self.metric("reconciles_total") >= 1, "not synced", log=self.log)
        return self

    def until_looked_again(self) -> None:
        """Two more looks at everything, of which the second began after now."""
        seen = self.metric("reconciles_total")
        until(lambda: self.metric("reconciles_total") >= seen + 2, "no further look", log=self.log)


def _end_with_parent() -> None:
    _libc.prctl(1, signal.SIGKILL, 0, 0, 0)


def until(ask: Callable[[], T], what: str, *, seconds: float = 60, log: Callable[[], str] | None = None) -> T:
    """The first true answer; what the API server refuses or can't answer counts as none."""
    deadline = time.monotonic() + seconds
    while True:
        last: object = None
        try:
            found = ask()
            if found:
                return found
            last = found
        except (ApiError, OSError, AssertionError) as error:
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} after {seconds:.0f} s: {last!r}\n{log()[-4000:] if log else ''}")
        time.sleep(0.1)


def now(*, ago_seconds: float = 0) -> str:
    return (datetime.now(UTC) - timedelta(seconds=ago_seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def add_node(cluster: ControlPlane, name: str) -> Object:
    return cluster.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})[0]


def add_pod(
    cluster: ControlPlane,
    namespace: str,
    name: str,
    node: str,
    *,
    guaranteed: bool = True,
    labels: dict[str, str] | None = None,
) -> Object:
    amounts = {"cpu": "1", "memory": "16Gi"}
    resources = {"limits": amounts, "requests": amounts if guaranteed else {"cpu": "1", "memory": "1Gi"}}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels or {}},
        "spec": {
            "nodeName": node,
            "containers": [{"name": "app", "image": "none", "resources": resources}],
            "terminationGracePeriodSeconds": 0,
        },
    }
    return cluster.apply(pod)[0]


def exposure(
    pod: Object, *, usage: int = 12 * GIB, severity: str = "High", victim: str = "pause", **more: Any
) -> Object:
    metadata = pod["metadata"]
    return {
        "name": "app",
        "reasons": ["ClampedBadness"],
        "severity": severity,
        "limitBytes": 16 * GIB,
        "usageBytes": usage,
        "predictedVictim": {"pid": 5740, "comm": victim, "rssBytes": 4096},
        "largest": {"pid": 58406, "comm": "data_sim", "rssBytes": usage - GIB},
        "mitigation": {"oomScoreAdj": -63, "discriminatesAbovePercent": 7},
        "message": "The kernel would kill pause, 4.0 KiB, and data_sim would live.",
        "podName": metadata["name"],
        "podNamespace": metadata["namespace"],
        "podUID": metadata["uid"],
        **more,
    }


def write_report(
    cluster: ControlPlane, node: Object, *exposures: Object, observed_at: str | None = None, **status: Any
) -> Object:
    """As the agent writes: object, then status, by server-side apply with its own manager."""
    name = node["metadata"]["name"]
    owner = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": node["metadata"]["uid"]}
    base = {"apiVersion": API_VERSION, "kind": "MemoryReport"}
    path = f"/apis/{API_VERSION}/memoryreports/{name}"
    kind = "application/apply-patch+yaml"
    query = "?fieldManager=nodemem-agent&force=true"
    metadata = {"name": name, "ownerReferences": [owner]}
    cluster.request("PATCH", path + query, base | {"metadata": metadata}, content_type=kind)
    condition = {
        "type": "Complete",
        "status": "True",
        "reason": "AllRead",
        "message": "Everything could be read.",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    body = {
        "observedAt": observed_at or now(),
        "exposures": list(exposures),
        "conditions": [condition],
        "memory": {"totalBytes": 64 * GIB, "availableBytes": 30 * GIB, "shmemBytes": GIB},
        **status,
    }
    written: Object = cluster.request(
        "PATCH",
        f"{path}/status{query}",
        base | {"metadata": {"name": name}, "status": body},
        content_type=kind,
    )
    return written


def exposures(cluster: ControlPlane, namespace: str) -> dict[str, Object]:
    """OomExposures that have a status, by name."""
    found = cluster.request("GET", f"/apis/{API_VERSION}/namespaces/{namespace}/oomexposures")["items"]
    return {each["metadata"]["name"]: each for each in found if "status" in each}


def report(cluster: ControlPlane, name: str) -> Object:
    found: Object = cluster.request("GET", f"/apis/{API_VERSION}/memoryreports/{name}")
    return found


def condition(item: Object, kind: str) -> str | None:
    found = item.get("status", {}).get("conditions", [])
    return next((each["status"] for each in found if each["type"] == kind), None)


def events(cluster: ControlPlane, namespace: str) -> list[Object]:
    found: list[Object] = cluster.request("GET", f"/apis/events.k8s.io/v1/namespaces/{namespace}/events")["items"]
    return found


def writes(cluster: ControlPlane, *, since: int = 0) -> list[Object]:
    """Writes of controllers in the audit log, from the ``since``-th on."""
    return [each for each in cluster.writes() if each.get("userAgent", "").startswith(f"{MANAGER}/")][since:]
