"""The controller on a real API server: exposures, policies, stale and vanished nodes, and what it does not write."""

import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.controllerlab import (
    GIB,
    MANAGER,
    NAMESPACE,
    Controller,
    add_node,
    add_pod,
    condition,
    events,
    exposure,
    exposures,
    grant_node_conditions,
    now,
    plane,
    report,
    until,
    write_report,
    writes,
)
from cluster.controlplane import ApiError, ControlPlane
from nodemem.node.status import API_VERSION

Object = dict[str, Any]


@pytest.fixture(scope="module")
def cluster() -> Iterator[ControlPlane]:
    with plane() as running:
        yield running


@pytest.fixture
def web(cluster: ControlPlane) -> Iterator[str]:
    """A namespace with the label team=web."""
    name = f"web-{secrets.token_hex(4)}"
    cluster.add_namespace(name, team="web")
    yield name
    cluster.request("DELETE", f"/api/v1/namespaces/{name}")


@pytest.fixture
def node(cluster: ControlPlane) -> Iterator[Object]:
    """A Node; its report goes with it."""
    made = add_node(cluster, f"node-{secrets.token_hex(4)}")
    yield made
    name = made["metadata"]["name"]
    cluster.kubectl("delete", "--ignore-not-found", f"node/{name}", f"memoryreport/{name}")


def pod_on(cluster: ControlPlane, namespace: str, node: Object, name: str = "app-0", **more: Any) -> Object:
    return add_pod(cluster, namespace, name, node["metadata"]["name"], **more)


def oom_policy(cluster: ControlPlane, name: str, **spec: Any) -> str:
    cluster.apply({"apiVersion": API_VERSION, "kind": "OomPolicy", "metadata": {"name": name}, "spec": spec})
    return f"/apis/{API_VERSION}/oompolicies/{name}"


def reasons(cluster: ControlPlane, namespace: str) -> list[str]:
    return [each["reason"] for each in events(cluster, namespace)]


def test_exposed_pod_is_flagged_then_updated_then_unflagged(cluster: ControlPlane, web: str, node: Object) -> None:
    pod = pod_on(cluster, web, node)
    with Controller(cluster).until_synced() as controller:
        write_report(cluster, node, exposure(pod))
        flag = until(lambda: exposures(cluster, web).get("app-0"), "no exposure", log=controller.log)
        assert flag["metadata"]["ownerReferences"] == [
            {"apiVersion": "v1", "kind": "Pod", "name": "app-0", "uid": pod["metadata"]["uid"]}
        ]
        assert flag["status"]["severity"] == "High"
        assert flag["status"]["containers"][0]["mitigation"] == {"oomScoreAdj": -63, "discriminatesAbovePercent": 7}
        table = cluster.kubectl("get", "oomexposures", "-n", web, "--no-headers").split()
        assert table[:8] == ["app-0", "High", "ClampedBadness", "app", "12Gi/16Gi", "pause", "4Ki", "data_sim"]
        cluster.kubectl("wait", "--for=condition=Exposed", "--timeout=10s", "-n", web, "oomexposure/app-0")

        write_report(cluster, node, exposure(pod, usage=15 * GIB, severity="Imminent"))
        until(lambda: exposures(cluster, web)["app-0"]["status"]["severity"] == "Imminent", "not imminent")
        since = exposures(cluster, web)["app-0"]["status"]["conditions"][0]["lastTransitionTime"]
        assert since == flag["status"]["conditions"][0]["lastTransitionTime"]

        write_report(cluster, node)
        until(lambda: not exposures(cluster, web), "still flagged", log=controller.log)
        until(lambda: len(events(cluster, web)) == 3, "too few events", log=controller.log)
        told = ["OomMisselectionExposed", "OomMisselectionGone", "OomMisselectionImminent"]
        assert sorted(reasons(cluster, web)) == told
        assert all(each["regarding"]["uid"] == pod["metadata"]["uid"] for each in events(cluster, web))
        assert controller.end() == 0


def test_exposure_that_a_person_deletes_comes_back(cluster: ControlPlane, web: str, node: Object) -> None:
    pod = pod_on(cluster, web, node)
    with Controller(cluster).until_synced() as controller:
        write_report(cluster, node, exposure(pod))
        first = until(lambda: exposures(cluster, web).get("app-0"), "no exposure", log=controller.log)
        cluster.kubectl("delete", "oomexposure", "-n", web, "app-0")
        again = until(lambda: exposures(cluster, web).get("app-0"), "not back", log=controller.log)
        assert again["metadata"]["uid"] != first["metadata"]["uid"]


def test_without_a_policy_only_guaranteed_pods_are_flagged(cluster: ControlPlane, web: str, node: Object) -> None:
    burstable = pod_on(cluster, web, node, "burstable", guaranteed=False)
    guaranteed = pod_on(cluster, web, node, "guaranteed")
    with Controller(cluster).until_synced() as controller:
        write_report(cluster, node, exposure(burstable), exposure(guaranteed))
        until(lambda: exposures(cluster, web), "no exposure", log=controller.log)
        controller.until_looked_again()
        assert set(exposures(cluster, web)) == {"guaranteed"}

        path = oom_policy(cluster, "flag-web", namespaceSelector={"matchLabels": {"team": "web"}})
        try:
            until(lambda: set(exposures(cluster, web)) == {"guaranteed", "burstable"}, "not both", log=controller.log)
            until(lambda: cluster.request("GET", path).get("status", {}).get("exposed") == 2, "no count")
        finally:
            cluster.request("DELETE", path)
        until(lambda: set(exposures(cluster, web)) == {"guaranteed"}, "not undone", log=controller.log)


def test_policy_that_ignores_unflags_the_pods_it_selects(cluster: ControlPlane, web: str, node: Object) -> None:
    pods = [pod_on(cluster, web, node, name, labels={"app": name}) for name in ("batch", "shop")]
    with Controller(cluster).until_synced() as controller:
        write_report(cluster, node, *(exposure(pod) for pod in pods))
        until(lambda: len(exposures(cluster, web)) == 2, "not both", log=controller.log)
        paths = [
            oom_policy(cluster, "ignore-batch", mode="Ignore", podSelector={"matchLabels": {"app": "batch"}}),
            oom_policy(cluster, "elsewhere", mode="Ignore", namespaceSelector={"matchLabels": {"team": "other"}}),
        ]
        try:
            until(lambda: set(exposures(cluster, web)) == {"shop"}, "not ignored", log=controller.log)
            controller.until_looked_again()
            assert set(exposures(cluster, web)) == {"shop"}
        finally:
            for path in paths:
                cluster.request("DELETE", path)
        until(lambda: len(exposures(cluster, web)) == 2, "not flagged again", log=controller.log)


def test_policy_moves_where_imminent_begins(cluster: ControlPlane, web: str, node: Object) -> None:
    pod = pod_on(cluster, web, node)
    path = oom_policy(cluster, "early", imminentAt="70%")
    try:
        with Controller(cluster).until_synced() as controller:
            write_report(cluster, node, exposure(pod, usage=12 * GIB, severity="High"))
            flag = until(lambda: exposures(cluster, web).get("app-0"), "no exposure", log=controller.log)
            assert flag["status"]["severity"] == "Imminent"
    finally:
        cluster.request("DELETE", path)


def test_node_is_not_believed_about_pods_of_another_node(cluster: ControlPlane, web: str, node: Object) -> None:
    other = add_node(cluster, f"other-{secrets.token_hex(4)}")
    mine, theirs = pod_on(cluster, web, node, "mine"), pod_on(cluster, web, other, "theirs")
    forged = mine | {"metadata": mine["metadata"] | {"name": "absent", "uid": "1234"}}
    with Controller(cluster).until_synced() as controller:
        write_report(cluster, node, exposure(mine), exposure(theirs), exposure(forged))
        until(lambda: exposures(cluster, web), "no exposure", log=controller.log)
        controller.until_looked_again()
        assert set(exposures(cluster, web)) == {"mine"}
    cluster.request("DELETE", f"/api/v1/nodes/{other['metadata']['name']}")


def test_static_pod_is_flagged_under_its_mirror(cluster: ControlPlane, web: str, node: Object) -> None:
    mirror = pod_on(cluster, web, node)
    cluster.kubectl("annotate", "pod", "-n", web, "app-0", "kubernetes.io/config.hash=0123456789abcdef")
    with Controller(cluster).until_synced() as controller:
        write_report(cluster, node, exposure(mirror, podUID="0123456789abcdef"))
        flag = until(lambda: exposures(cluster, web).get("app-0"), "no exposure", log=controller.log)
        assert flag["metadata"]["ownerReferences"][0]["uid"] == mirror["metadata"]["uid"]


def test_heartbeats_cause_no_write(cluster: ControlPlane, web: str, node: Object) -> None:
    pod = pod_on(cluster, web, node)
    with Controller(cluster).until_synced() as controller:
        write_report(cluster, node, exposure(pod))
        until(lambda: reasons(cluster, web), "no event", log=controller.log)
        controller.until_looked_again()
        made = len(writes(cluster))
        for beat in range(20):
            usage = 12 * GIB + beat * (20 << 20)
            write_report(cluster, node, exposure(pod, usage=usage), observed_at=now(ago_seconds=100 - beat))
        controller.until_looked_again()
        controller.until_looked_again()
        assert [each["requestURI"] for each in writes(cluster, since=made)] == []
        untouched = report(cluster, node["metadata"]["name"])["metadata"]
        assert {each["manager"] for each in untouched["managedFields"]} == {"nodemem-agent"}
        assert "annotations" not in untouched
        assert "finalizers" not in untouched


def test_restarted_controller_writes_nothing_when_nothing_changed(
    cluster: ControlPlane, web: str, node: Object
) -> None:
    pod = pod_on(cluster, web, node)
    path = oom_policy(cluster, "all", mode="Flag")
    try:
        with Controller(cluster).until_synced() as controller:
            write_report(cluster, node, exposure(pod))
            until(lambda: reasons(cluster, web), "no event", log=controller.log)
            until(lambda: cluster.request("GET", path).get("status", {}).get("exposed") == 1, "no count")
            controller.until_looked_again()
            controller.process.kill()
        made = len(writes(cluster))
        with Controller(cluster).until_synced() as controller:
            controller.until_looked_again()
            assert [each["requestURI"] for each in writes(cluster, since=made)] == []
            assert set(exposures(cluster, web)) == {"app-0"}
    finally:
        cluster.request("DELETE", path)


def test_controller_that_died_between_object_and_status_finishes(cluster: ControlPlane, web: str, node: Object) -> None:
    pod = pod_on(cluster, web, node)
    write_report(cluster, node, exposure(pod))
    owner = {"apiVersion": "v1", "kind": "Pod", "name": "app-0", "uid": pod["metadata"]["uid"]}
    metadata = {"name": "app-0", "namespace": web, "ownerReferences": [owner]}
    cluster.apply({"apiVersion": API_VERSION, "kind": "OomExposure", "metadata": metadata}, manager=MANAGER)
    with Controller(cluster) as controller:
        until(lambda: exposures(cluster, web), "no status", log=controller.log)


def test_exposures_that_a_cut_list_leaves_out_stay(cluster: ControlPlane, web: str, node: Object) -> None:
    pods = [pod_on(cluster, web, node, name) for name in ("first", "second")]
    with Controller(cluster).until_synced() as controller:
        write_report(cluster, node, *(exposure(pod) for pod in pods))
        until(lambda: len(exposures(cluster, web)) == 2, "not both", log=controller.log)
        write_report(cluster, node, exposure(pods[0], severity="Imminent"), summary={"exposed": 2})
        until(lambda: exposures(cluster, web)["first"]["status"]["severity"] == "Imminent", "not seen")
        controller.until_looked_again()
        assert set(exposures(cluster, web)) == {"first", "second"}
        write_report(cluster, node, exposure(pods[0]))
        until(lambda: set(exposures(cluster, web)) == {"first"}, "not removed", log=controller.log)


def test_silent_agent_makes_its_node_stale_until_it_is_heard_again(
    cluster: ControlPlane, web: str, node: Object
) -> None:
    pod, name = pod_on(cluster, web, node), node["metadata"]["name"]
    write_report(cluster, node, exposure(pod))
    with Controller(cluster, "--stale-after=5").until_synced() as controller:
        until(lambda: condition(report(cluster, name), "Stale") == "True", "not stale", log=controller.log)
        until(lambda: condition(exposures(cluster, web)["app-0"], "Exposed") == "Unknown", "said to be sure")
        assert condition(report(cluster, name), "Complete") == "True"
        written = len(writes(cluster))
        controller.until_looked_again()
        assert len(writes(cluster)) == written

        write_report(cluster, node, exposure(pod), observed_at=now(ago_seconds=-1))
        until(lambda: condition(report(cluster, name), "Stale") == "False", "still stale", log=controller.log)
        until(lambda: condition(exposures(cluster, web)["app-0"], "Exposed") == "True", "still unsure")


def test_report_without_a_node_is_removed(cluster: ControlPlane, node: Object) -> None:
    # Without an owner reference: the garbage collector leaves it alone.
    lonely = f"lonely-{secrets.token_hex(4)}"
    orphan = {"apiVersion": API_VERSION, "kind": "MemoryReport", "metadata": {"name": lonely}}
    cluster.apply(orphan)
    write_report(cluster, node)
    with Controller(cluster, "--gone-after=2").until_synced() as controller:
        path = f"/apis/{API_VERSION}/memoryreports"
        names = until(
            lambda: (
                found
                if lonely not in (found := {each["metadata"]["name"] for each in cluster.request("GET", path)["items"]})
                else None
            ),
            "still there",
            log=controller.log,
        )
        assert node["metadata"]["name"] in names


def test_exposure_goes_with_its_pod_and_does_not_come_back(cluster: ControlPlane, web: str, node: Object) -> None:
    pod = pod_on(cluster, web, node)
    with Controller(cluster).until_synced() as controller:
        write_report(cluster, node, exposure(pod))
        until(lambda: exposures(cluster, web), "no exposure", log=controller.log)
        until(lambda: events(cluster, web), "no event", log=controller.log)
        cluster.request("DELETE", f"/api/v1/namespaces/{web}/pods/app-0?gracePeriodSeconds=0")
        # The agent has not noticed yet: its report still names the pod. (The garbage collector looks for new kinds
        # twice a minute, which is why this test is not among the first.)
        until(lambda: not exposures(cluster, web), "still there", log=controller.log)
        made = len(writes(cluster))
        controller.until_looked_again()
        assert exposures(cluster, web) == {}
        assert [each["requestURI"] for each in writes(cluster, since=made)] == []
        assert reasons(cluster, web) == ["OomMisselectionExposed"]


def test_node_conditions_come_with_the_setting_and_go_without_it(cluster: ControlPlane, web: str, node: Object) -> None:
    grant_node_conditions(cluster)
    pod, name = pod_on(cluster, web, node), node["metadata"]["name"]
    path = f"/api/v1/nodes/{name}"
    low = {"totalBytes": 64 * GIB, "availableBytes": 3 * GIB, "shmemBytes": 30 * GIB}
    write_report(cluster, node, exposure(pod), memory=low)
    with Controller(cluster, "--node-conditions").until_synced() as controller:
        for kind in ("ShmemPressure", "OomMisselectionExposed"):
            until(lambda kind=kind: condition(cluster.request("GET", path), kind) == "True", kind, log=controller.log)
        until(lambda: reasons(cluster, web), "no event", log=controller.log)
        made = len(writes(cluster))
        for beat in range(5):
            memory = low | {"availableBytes": 4 * GIB - beat}
            write_report(cluster, node, exposure(pod), memory=memory, observed_at=now(ago_seconds=50 - beat))
        controller.until_looked_again()
        assert [each["requestURI"] for each in writes(cluster, since=made)] == []
        write_report(cluster, node)
        for kind in ("ShmemPressure", "OomMisselectionExposed"):
            until(lambda kind=kind: condition(cluster.request("GET", path), kind) == "False", kind, log=controller.log)
        assert controller.end() == 0
    with Controller(cluster).until_synced() as controller:
        until(
            lambda: condition(cluster.request("GET", path), "ShmemPressure") is None, "not removed", log=controller.log
        )
        assert condition(cluster.request("GET", path), "OomMisselectionExposed") is None


def test_health_and_metrics_are_served(cluster: ControlPlane, node: Object) -> None:
    write_report(cluster, node)
    with Controller(cluster).until_synced() as controller:
        assert controller.get("/healthz")[0] == 200
        assert controller.get("/readyz") == (200, "watching\n")
        assert controller.get("/other")[0] == 404
        assert controller.metric("leader") == 1
        assert controller.metric("memoryreports") >= 1
        assert controller.metric("write_errors_total") == 0


def test_controller_has_no_right_to_read_secrets_or_list_pods(cluster: ControlPlane) -> None:
    token = cluster.service_account_token(NAMESPACE, MANAGER)
    for path in ("/api/v1/secrets", "/api/v1/pods", "/api/v1/configmaps"):
        with pytest.raises(ApiError) as refused:
            cluster.request("GET", path, token=token)
        assert refused.value.code == 403
