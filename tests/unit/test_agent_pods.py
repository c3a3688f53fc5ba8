"""Pods as the API server gives them -> the few values that are kept."""

import json
from typing import Any

import pytest

from nodemem.agent.pods import Pod, PodTable, parse, quantity_bytes
from nodemem.node.report import PodName

GIB = 1 << 30


def pod(name: str = "web-0", uid: str = "uid-1", **changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "metadata": {"name": name, "namespace": "shop", "uid": uid, "resourceVersion": "7"},
        "spec": {
            "priorityClassName": "high",
            "containers": [
                {
                    "name": "app",
                    "resources": {"limits": {"memory": "1Gi"}, "requests": {"memory": "512Mi"}},
                    "env": [{"name": "X", "value": "y"}],
                },
                {"name": "log", "resources": {}},
            ],
            "initContainers": [
                {"name": "mesh", "restartPolicy": "Always", "resources": {"requests": {"memory": "100Mi"}}}
            ],
        },
        "status": {
            "qosClass": "Burstable",
            "containerStatuses": [
                {"name": "app", "containerID": "containerd://" + "a" * 64},
                {"name": "log", "containerID": ""},
            ],
            "initContainerStatuses": [{"name": "mesh", "containerID": "cri-o://" + "c" * 64}],
        },
    }
    return made | changes


def decoded(found: dict[str, Any]) -> Any:
    """Through the decoder, as the client does it: the hook sees inner objects first."""
    return json.loads(json.dumps(found), object_hook=parse)


def test_of_a_pod_the_values_a_report_needs_are_kept() -> None:
    found = decoded(pod())
    assert isinstance(found, Pod)
    assert (found.namespace, found.name, found.uid, found.resource_version) == ("shop", "web-0", "uid-1", "7")
    app, log, mesh = found.containers
    assert (app.id, app.request_bytes, app.limit_bytes) == ("a" * 64, 512 << 20, GIB)
    assert (log.id, log.request_bytes, log.limit_bytes) == (None, 0, None)
    assert (mesh.id, mesh.sidecar, mesh.regular) == ("c" * 64, True, False)


def test_a_list_is_made_of_such_pods_alone() -> None:
    found = decoded({"kind": "PodList", "metadata": {"resourceVersion": "9"}, "items": [pod(), pod("b", "uid-2")]})
    assert [type(each) for each in found["items"]] == [Pod, Pod]


def test_a_bookmark_has_a_version_and_no_name() -> None:
    event = {
        "type": "BOOKMARK",
        "object": {"kind": "Pod", "metadata": {"resourceVersion": "12"}, "spec": {"containers": None}, "status": {}},
    }
    assert decoded(event)["object"].resource_version == "12"


def test_annotations_that_look_like_a_pod_are_none() -> None:
    tricky = pod()
    tricky["metadata"]["annotations"] = {"metadata": "x", "spec": "y", "status": "z"}
    assert isinstance(decoded(tricky), Pod)


def test_a_static_pod_is_found_by_the_uid_that_its_cgroups_have() -> None:
    mirror = pod()
    mirror["metadata"]["annotations"] = {"kubernetes.io/config.mirror": "0f1e", "kubernetes.io/config.hash": "0f1e"}
    table = PodTable()
    table.replace([decoded(mirror)])
    assert table.names.pod("0f1e") == PodName("shop", "web-0")
    assert table.names.pod("uid-1") is None
    found = table.of_cgroup("0f1e")
    assert found is not None
    assert found.uid == "uid-1"


def test_an_annotation_alone_makes_no_static_pod() -> None:
    forged = pod()
    forged["metadata"]["annotations"] = {"kubernetes.io/config.hash": "uid-of-another"}
    assert decoded(forged).cgroup_uid == "uid-1"


def test_the_table_follows_events_and_a_new_list_drops_what_is_gone() -> None:
    table = PodTable()
    table.replace([decoded(pod("a", "1")), decoded(pod("b", "2"))])
    table.change("ADDED", decoded(pod("c", "3")))
    table.change("DELETED", decoded(pod("a", "1")))
    assert set(table.names.pods) == {"2", "3"}
    table.replace([decoded(pod("c", "3"))])
    assert set(table.names.pods) == {"3"}
    assert len(table) == 1


def test_expected_oom_score_adj_is_the_kubelet_s() -> None:
    table = PodTable()
    table.replace([decoded(pod())])
    assert table.names.expected_oom_score_adj == {}
    table.set_capacity(64 * GIB)
    expected = table.names.expected_oom_score_adj
    assert expected["a" * 64] == 1000 - 1000 * (512 << 20) // (64 * GIB)
    # A sidecar is no likelier to die than the regular container that asks for least.
    assert expected["c" * 64] == min(1000 - 1000 * (100 << 20) // (64 * GIB), 999)
    critical = pod()
    critical["spec"]["priorityClassName"] = "system-node-critical"
    table.replace([decoded(critical)])
    assert table.names.expected_oom_score_adj["a" * 64] == -997


@pytest.mark.parametrize(
    ("text", "size"),
    [("1Gi", GIB), ("1.5G", 1_500_000_000), ("12e6", 12_000_000), ("128974848000m", 128974848), (4096, 4096)],
)
def test_quantities(text: str | int, size: int) -> None:
    assert quantity_bytes(text) == size


@pytest.mark.parametrize("text", [None, "", "much", "1XB", "--1"])
def test_what_is_no_quantity_is_unknown(text: str | None) -> None:
    assert quantity_bytes(text) is None
