"""The chart installed, and what it grants: capabilities, accounts, and pods made from its templates."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

from helm_python import Config

from chartlab import CHART, NAMESPACE, RELEASE, find, render
from cluster.agentlab import REPORTS, until
from cluster.controlplane import ApiError, ControlPlane


@functools.cache
def chart_capabilities(*, enforcement: bool = False, mitigation: bool = False) -> tuple[str, ...]:
    """Of the agent, as setpriv(1) writes them."""
    values = {"enforcement": {"enabled": enforcement}, "mitigation": {"enabled": mitigation}}
    daemonset = find(render(values), "DaemonSet", "nodemem-agent")
    context = daemonset["spec"]["template"]["spec"]["containers"][0]["securityContext"]
    return tuple(each.lower() for each in context["capabilities"]["add"])


def with_capabilities(names: Sequence[str]) -> list[str]:
    """As a runtime starts user 0 with ``drop: [ALL]``, ``add: names`` and no privilege escalation."""
    bounding = ",".join(["-all", *(f"+{each}" for each in names)])
    return ["setpriv", "--reuid=0", "--regid=0", "--clear-groups", "--no-new-privs", f"--bounding-set={bounding}"]


@contextlib.contextmanager
def installed(values: dict[str, Any] | None = None) -> Iterator[ControlPlane]:
    """A control plane with the chart, by real Helm, its admission policy in force."""
    with ControlPlane() as running:
        with Config(kubeconfig_path=running.kubeconfig, namespace=NAMESPACE) as config:
            config.install(CHART, RELEASE, values or {}, create_namespace=True)
        running.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")
        # The server takes a moment to put a new policy in force.
        token = running.service_account_token(NAMESPACE, "nodemem-agent")
        report = {"apiVersion": "nodemem.io/v1alpha1", "kind": "MemoryReport", "metadata": {"name": "no-node"}}
        until(lambda: "names no node" in words(running, token, "POST", REPORTS, report), "the policy")
        yield running


def words(cluster: ControlPlane, token: str, method: str, path: str, body: Any = None) -> str:
    """Of the server's refusal; "" without one."""
    try:
        cluster.request(method, path, body, token=token)
    except ApiError as error:
        return error.message
    return ""


def pod_of(
    cluster: ControlPlane, kind: str, name: str, node: str, values: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A pod on ``node`` from the template of a workload of the chart, made if it isn't there."""
    template = find(render(values), kind, name)["spec"]["template"]
    pod = f"{name}-{node}"
    path = f"/api/v1/namespaces/{NAMESPACE}/pods"
    found: dict[str, Any]
    try:
        found = cluster.request("GET", f"{path}/{pod}")
    except ApiError:
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": pod, "namespace": NAMESPACE, "labels": template["metadata"]["labels"]},
            "spec": {**template["spec"], "nodeName": node},
        }
        found = cluster.request("POST", f"{path}?fieldValidation=Strict", body)
    return found
