"""Reports of nodes that are made up, written as their agents would write them."""

from cluster.agentlab import REPORTS, make_node
from cluster.controlplane import ControlPlane
from nodemem.api.convert import wire
from nodemem.node.status import API_VERSION, ReportStatus


def publish(cluster: ControlPlane, name: str, found: ReportStatus, *, labels: dict[str, str] | None = None) -> None:
    """The Node, and its report by server-side apply with the agent's manager."""
    node = make_node(cluster, name)
    if labels:
        cluster.kubectl("label", "node", name, *(f"{key}={value}" for key, value in labels.items()))
    owner = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": node["metadata"]["uid"]}
    base = {"apiVersion": API_VERSION, "kind": "MemoryReport", "metadata": {"name": name, "ownerReferences": [owner]}}
    cluster.apply(base, manager="nodemem-agent")
    write_status(cluster, name, found)


def write_status(cluster: ControlPlane, name: str, found: ReportStatus) -> None:
    body = {
        "apiVersion": API_VERSION,
        "kind": "MemoryReport",
        "metadata": {"name": name},
        "status": wire(found),
    }
    cluster.request(
        "PATCH",
        f"{REPORTS}/{name}/status?fieldManager=nodemem-agent&force=true&fieldValidation=Strict",
        body,
        content_type="application/apply-patch+yaml",
    )
