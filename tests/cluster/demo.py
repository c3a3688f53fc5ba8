"""``python -m cluster.demo``: nodemem in a real cluster of one node, on this machine, on loopback.

A real API server is started and nodemem installed into it; the controller and this machine's agent run with the rights
that the installation gives them. A pod on this node has real processes: a leak in a memory volume, and a container in
which the kernel would kill the wrong process. Then kubectl is asked. Everything ends with this program.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cluster.agentlab import make_node, make_pod
from cluster.controlplane import ApiError, ControlPlane
from kernel import workloads
from kernel.workloads import MIB

ROOT = Path(__file__).parents[2]
NAMESPACE = "shop"
SYSTEM = "nodemem-system"
LEAK = 96 * MIB


def say(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n# {text}", flush=True)


def kubectl(cluster: ControlPlane, *args: str) -> str:
    print(f"$ kubectl {' '.join(args)}", flush=True)
    text = cluster.kubectl(*args)
    print(text, flush=True)
    return text


@contextlib.contextmanager
def program(cluster: ControlPlane, name: str, *args: str) -> Iterator[subprocess.Popen[bytes]]:
    """``nodemem NAME``, ended with the block; its log is in the cluster's directory."""
    with (cluster.directory / f"{name}.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "nodemem", name, *args], stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def until(what: str, ask: Callable[[], Any], seconds: float = 60.0) -> Any:
    """The first answer that is not empty. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(ApiError):
            if found := ask():
                return found
        time.sleep(0.3)
    raise TimeoutError(f"{what}: not there after {seconds:.0f} s")


@contextlib.contextmanager
def pod_with_problems(cluster: ControlPlane, node: str) -> Iterator[dict[str, Any]]:
    """A Guaranteed pod whose processes are real ones of this machine, in the cgroup that a kubelet would make.

    One process leaks into a tmpfs. The other two differ in oom_score_adj, so that the small one dies for the large.
    """
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    until(
        "the service account", lambda: cluster.request("GET", f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default")
    )
    container = os.urandom(32).hex()
    pod = make_pod(cluster, NAMESPACE, "cart", node, [("app", container)], request="256Mi", guaranteed=True)

    def hold(size: int, adj: int) -> Callable[[], None]:
        def setup() -> None:
            workloads._keep.append(bytearray(os.urandom(4096) * (size // 4096)))
            Path("/proc/self/oom_score_adj").write_text(str(adj))

        return setup

    with contextlib.ExitStack() as stack:
        cgroup = stack.enter_context(
            workloads.container_cgroup(pod["metadata"]["uid"], container, qos="Guaranteed", limit=256 * MIB)
        )
        stack.enter_context(workloads.tmpfs(LEAK, limit=128 * MIB, cgroup=cgroup))
        stack.enter_context(workloads.child(hold(64 * MIB, 0), cgroup))
        stack.enter_context(workloads.child(hold(4 * MIB, 900), cgroup))
        yield pod


def install(cluster: ControlPlane) -> None:
    manifests = os.path.relpath(ROOT / "manifests")
    kubectl(cluster, "apply", "--server-side", "-k", manifests)
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=60s", "-f", f"{manifests}/crds")


def token_of(cluster: ControlPlane, role: str, node: str) -> str:
    """The token that a pod of the installation's service account on this node would have."""
    account = f"nodemem-{role}"
    pod = cluster.request(
        "POST",
        f"/api/v1/namespaces/{SYSTEM}/pods",
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"{account}-demo", "namespace": SYSTEM},
            "spec": {
                "nodeName": node,
                "serviceAccountName": account,
                "containers": [{"name": role, "image": "nodemem"}],
            },
        },
    )
    return cluster.service_account_token(SYSTEM, account, pod=pod)


def main() -> int:
    if os.geteuid() != 0:
        print("demo: the agent measures as root; run 'sudo make demo'", file=sys.stderr)
        return 1
    node = socket.gethostname().lower()
    say("Starting etcd, kube-apiserver and kube-controller-manager on loopback")
    with ControlPlane() as cluster, contextlib.ExitStack() as stack:
        print(f"Kubernetes {cluster.request('GET', '/version')['gitVersion']} at {cluster.url}")
        say("Installing nodemem")
        install(cluster)
        make_node(cluster, node)
        stack.enter_context(pod_with_problems(cluster, node))
        say("Running the controller, and the agent of this machine")
        for role, args in (
            ("controller", ["--namespace", SYSTEM, "--listen", "none"]),
            ("agent", ["--node-name", node, "--listen", "127.0.0.1:0", "--interval", "5", "--refresh", "2"]),
        ):
            config = cluster.write_kubeconfig(cluster.directory / f"{role}.kubeconfig", token_of(cluster, role, node))
            stack.enter_context(program(cluster, role, "--kubeconfig", str(config), *args))
        try:
            until(
                "the exposure", lambda: json.loads(cluster.kubectl("get", "oomexposures", "-A", "-o", "json"))["items"]
            )
        except TimeoutError:
            for role in ("controller", "agent"):
                print(cluster.log(role)[-2000:], file=sys.stderr)
            raise
        say("Where did the node's memory go?")
        kubectl(cluster, "get", "memoryreports", "-o", "wide")
        report = cluster.request("GET", f"/apis/nodemem.io/v1alpha1/memoryreports/{node}")
        print(report["status"]["verdict"])
        say("Its largest tmpfs, and whose they are")
        fields = "{.device}{'\\t'}{.usedBytes}{'\\t'}{.sizeBytes}{'\\t'}{.owner.podName}{'\\t'}{.mountPoint}{'\\n'}"
        kubectl(cluster, "get", "memoryreport", node, "-o", f"jsonpath={{range .status.tmpfs[:5]}}{fields}{{end}}")
        say("In which pods would the kernel kill the wrong process?")
        kubectl(cluster, "get", "oomexposures", "-A")
        exposure = cluster.request("GET", f"/apis/nodemem.io/v1alpha1/namespaces/{NAMESPACE}/oomexposures/cart")
        print(exposure["status"]["containers"][0]["message"])
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
