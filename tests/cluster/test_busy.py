"""A server that has no time: 429 with Retry-After, from the API's own priority and fairness, for one account."""

import contextlib
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from chartlab import NAMESPACE
from cluster import rights
from cluster.agentlab import REPORTS, make_node, report_of, running_agent, until
from cluster.controllerlab import Controller, add_pod, exposure, exposures, write_report
from cluster.controlplane import ApiError, ControlPlane
from nodemem.agent.changes import Cadence

FLOW = "flowcontrol.apiserver.k8s.io/v1"
OFTEN = ("--interval=0.4", "--refresh=0.2")


@pytest.fixture(scope="module")
def installed() -> Iterator[ControlPlane]:
    with rights.installed() as running:
        yield running


@contextlib.contextmanager
def turned_away(cluster: ControlPlane, account: str, token: str) -> Iterator[Callable[[], None]]:
    """Every new request of the account is answered with 429, until what is yielded is called.

    The account shares a priority level that has room for one request at a time with another, whose request waits for an
    admission webhook that doesn't answer (30 s at most).
    """
    name = f"narrow-{secrets.token_hex(3)}"
    limited = {"nominalConcurrencyShares": 0, "borrowingLimitPercent": 0, "limitResponse": {"type": "Reject"}}
    everything = {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": True}
    subjects = [
        {"kind": "ServiceAccount", "serviceAccount": {"namespace": space, "name": each}}
        for space, each in ((NAMESPACE, account), ("default", name))
    ]
    silent = socket.create_server(("127.0.0.1", 0))
    hook = {
        "name": "silent.example.com",
        "clientConfig": {"url": f"https://127.0.0.1:{silent.getsockname()[1]}/"},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}],
        "matchConditions": [{"name": "held", "expression": f"object.metadata.name == '{name}'"}],
        "failurePolicy": "Fail",
        "sideEffects": "None",
        "timeoutSeconds": 30,
        "admissionReviewVersions": ["v1"],
    }
    cluster.kubectl("create", "serviceaccount", name)
    cluster.kubectl(
        "create", "clusterrolebinding", name, "--clusterrole=cluster-admin", f"--serviceaccount=default:{name}"
    )
    cluster.apply(
        {
            "apiVersion": FLOW,
            "kind": "PriorityLevelConfiguration",
            "metadata": {"name": name},
            "spec": {"type": "Limited", "limited": limited},
        },
        {
            "apiVersion": FLOW,
            "kind": "FlowSchema",
            "metadata": {"name": name},
            "spec": {
                "priorityLevelConfiguration": {"name": name},
                "matchingPrecedence": 2,
                "rules": [{"subjects": subjects, "resourceRules": [everything]}],
            },
        },
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": name},
            "webhooks": [hook],
        },
    )
    held = cluster.service_account_token("default", name)
    over = threading.Event()

    def hold() -> None:
        while not over.is_set():
            with contextlib.suppress(ApiError, OSError):
                cluster.request(
                    "POST", "/api/v1/namespaces/default/configmaps", {"metadata": {"name": name}}, token=held
                )
            over.wait(0.05)

    thread = threading.Thread(target=hold)

    def end() -> None:
        """The flow schema first: nobody waits behind the one that is held any more."""
        if not over.is_set():
            over.set()
            kinds = "flowschema,prioritylevelconfiguration,validatingwebhookconfiguration,clusterrolebinding"
            cluster.kubectl("delete", kinds, name, "--wait=false")
            silent.close()
            until(lambda: answer(cluster, token) == 200, "the end of it", 60)

    thread.start()
    try:
        until(lambda: answer(cluster, token) == 429 or None, "429", 60)
        yield end
    finally:
        end()
        thread.join()


def answer(cluster: ControlPlane, token: str) -> int:
    try:
        cluster.request("GET", "/apis/nodemem.io/v1alpha1/memoryreports?limit=1", token=token)
    except ApiError as error:
        return error.code
    return 200


def refused(cluster: ControlPlane, component: str) -> list[dict[str, Any]]:
    """Writes of the component that were answered with 429, as the server counts them."""
    return [
        each
        for each in cluster.writes()
        if each["responseStatus"]["code"] == 429 and each.get("userAgent", "").startswith(f"nodemem-{component}/")
    ]


def seconds(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["requestReceivedTimestamp"]).timestamp()


def test_an_agent_that_is_turned_away_waits_as_told_and_reports_afterwards(
    installed: ControlPlane, tmp_path: Path
) -> None:
    node = f"node-{secrets.token_hex(3)}"
    make_node(installed, node)
    pod = rights.pod_of(installed, "DaemonSet", "nodemem-agent", node)
    token = installed.service_account_token(NAMESPACE, "nodemem-agent", pod=pod)
    config = installed.write_kubeconfig(tmp_path / "kubeconfig", token)
    cadence = Cadence(heartbeat_seconds=0.5, apart_seconds=0.2)
    with running_agent(node, config, *OFTEN, cadence=cadence) as agent:
        until(lambda: report_of(installed, node), "a report")
        with turned_away(installed, "nodemem-agent", token):
            until(lambda: len(refused(installed, "agent")) >= 3, "three refusals", 60)
            scans = agent.scans()
            until(lambda: agent.scans() > scans + 3, "scans meanwhile")
            assert agent.get("/healthz")[0] == 200
            before = installed.request("GET", f"{REPORTS}/{node}")["metadata"]["resourceVersion"]
        until(
            lambda: installed.request("GET", f"{REPORTS}/{node}")["metadata"]["resourceVersion"] != before,
            "a report afterwards",
            60,
        )
        until(lambda: any("works again" in each["message"] for each in agent.log()), "a word at the end")
        found = [seconds(each) for each in refused(installed, "agent")]
        # It has something to write five times a second. The server says Retry-After: 1.
        assert min(late - early for early, late in pairwise(found)) >= 1
        warnings = [each for each in agent.log() if each["level"] == "warning"]
        assert {each["status"] for each in warnings} == {429}
        assert len(warnings) == 1, "said once"


def test_an_agent_that_starts_meanwhile_gets_through_when_it_is_over(installed: ControlPlane, tmp_path: Path) -> None:
    """Its lists are turned away, too."""
    node = f"node-{secrets.token_hex(3)}"
    make_node(installed, node)
    pod = rights.pod_of(installed, "DaemonSet", "nodemem-agent", node)
    token = installed.service_account_token(NAMESPACE, "nodemem-agent", pod=pod)
    config = installed.write_kubeconfig(tmp_path / "kubeconfig", token)
    with contextlib.ExitStack() as stack:
        end = stack.enter_context(turned_away(installed, "nodemem-agent", token))
        agent = stack.enter_context(running_agent(node, config, *OFTEN))
        refusals = 'nodemem_agent_api_requests_total{verb="GET",status="4xx"}'
        until(lambda: (agent.metric(refusals) or 0) >= 3, "refused lists", 60)
        started = agent.metric("nodemem_agent_pods")
        assert started is None, "unknown, not 0"
        # Three threads, each waiting 1, 2, 4, ... seconds (half of it by chance): no more than that in any time.
        assert (agent.metric(refusals) or 0) <= 12
        end()
        until(lambda: report_of(installed, node), "a report", 90)
        until(lambda: agent.metric("nodemem_agent_pods") == 1, "its pods", 90)


def test_a_controller_that_is_turned_away_does_what_is_due_afterwards(installed: ControlPlane) -> None:
    name = f"node-{secrets.token_hex(3)}"
    node = make_node(installed, name)
    pods = [add_pod(installed, "default", f"{name}-{number}", name) for number in range(5)]
    token = installed.service_account_token(NAMESPACE, "nodemem-controller")
    with Controller(installed).until_synced() as controller:
        write_report(installed, node, exposure(pods[0]))
        until(lambda: f"{name}-0" in exposures(installed, "default"), "an exposure", 60)
        with turned_away(installed, "nodemem-controller", token):
            write_report(installed, node, *(exposure(each) for each in pods))
            until(lambda: "429" in controller.log(), "a refusal", 60)
            until(lambda: controller.metric("leader") == 0, "the Lease run out", 60)
            assert controller.process.poll() is None
        until(lambda: {f"{name}-{number}" for number in range(5)} <= set(exposures(installed, "default")), "all", 120)
        assert controller.process.poll() is None
        # Of each of the four new ones at most a few tries until the Lease ran out: 1, 2, 4 and 8 s apart.
        assert len(refused(installed, "controller")) <= 4 * 5
        written = [each for each in installed.writes() if f"/{name}-0" in each["requestURI"]]
        assert len([each for each in written if each.get("userAgent", "").startswith("nodemem-controller/")]) <= 3
