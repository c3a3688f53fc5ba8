"""reclaim of TmpfsPolicies on a real API server: into the reports' specs, by turns, and back. What a node does: vm/."""

from collections.abc import Iterator

import pytest

from cluster.agentlab import make_node, report_of, running_agent
from cluster.controllerlab import Controller, plane, until
from cluster.controlplane import ControlPlane
from cluster.limitslab import (
    MIB,
    POLICIES,
    Agents,
    Object,
    cleans,
    counts,
    most_at_once,
    names,
    policy,
    policy_is_gone,
    reclaim_of,
    remove_policies,
    said,
    tmpfs_policy,
)
from nodemem.agent.changes import Cadence

JOURNAL = {"journal": {"runtimeMaxUse": "512Mi"}}
LOGS = {"path": "/run/logs", "age": "7d"}
TOLD = {"runtimeMaxUseBytes": 512 * MIB, "mode": "Enforce", "policy": "cap-run"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[ControlPlane]:
    with plane() as running:
        yield running


@pytest.fixture(autouse=True)
def policies_go(cluster: ControlPlane) -> Iterator[None]:
    yield
    remove_policies(cluster)


def told(cluster: ControlPlane, name: str) -> list[Object]:
    report = report_of(cluster, name)
    return [] if report is None else reclaim_of(report)


def test_reclaim_that_is_added_takes_turns_and_goes_with_the_policy(cluster: ControlPlane) -> None:
    nodes = names(8)
    with Agents(cluster, nodes, seconds=0.3) as agents, Controller(cluster).until_synced() as controller:
        rollout = {"maxConcurrent": 2}
        tmpfs_policy(cluster, "cap-run", rollout={"maxConcurrent": 8})
        until(lambda: counts(policy(cluster, "cap-run")) == {"matched": 8, "inSync": 8}, "no end", log=controller.log)
        reclaim = JOURNAL | {"tmpfiles": [LOGS]}
        tmpfs_policy(cluster, "cap-run", rollout=rollout, reclaim=reclaim)
        until(lambda: all(told(cluster, each) for each in nodes), "not told", log=controller.log)
        until(lambda: counts(policy(cluster, "cap-run")) == {"matched": 8, "inSync": 8}, "no end", log=controller.log)
        assert told(cluster, nodes[0]) == [TOLD, LOGS | {"mode": "Enforce", "policy": "cap-run"}]
        ready = said(policy(cluster, "cap-run"), "Ready")[2]
        assert "Limits systemd-journald's volatile journal to 512Mi on 8 nodes." in ready

        # One can't undo it: the policy stays, with its words, until it can.
        agents.says_of_reclaim(nodes[3], cleans(TOLD, "Failed", message="there is no systemctl"))
        cluster.request("DELETE", f"{POLICIES}/cap-run")
        until(lambda: not any(told(cluster, each) for each in nodes), "still told", log=controller.log)
        until(lambda: counts(policy(cluster, "cap-run")).get("failed") == 1, "not told of", log=controller.log)
        assert policy(cluster, "cap-run")["status"]["problems"][0]["message"] == "there is no systemctl"
        agents.says_of_reclaim(nodes[3])
        until(lambda: policy_is_gone(cluster, "cap-run"), "still there", log=controller.log)


def test_at_most_so_many_are_restarted_at_once(cluster: ControlPlane) -> None:
    nodes = names(10)
    with Agents(cluster, nodes, seconds=0.3), Controller(cluster).until_synced() as controller:
        tmpfs_policy(cluster, "cap-run", rollout={"maxConcurrent": 3}, reclaim=JOURNAL)
        until(lambda: counts(policy(cluster, "cap-run")) == {"matched": 10, "inSync": 10}, "no end", log=controller.log)
        assert all(told(cluster, each) == [TOLD] for each in nodes)
        assert 1 < most_at_once(cluster, nodes) <= 3


def test_a_node_that_refuses_holds_up_nobody_and_one_that_fails_stops_it(cluster: ControlPlane) -> None:
    nodes = names(6)
    with Agents(cluster, nodes) as agents, Controller(cluster).until_synced() as controller:
        refuses = {nodes[1]: "This node does not run systemd."}
        agents.clean = lambda name, entry: (
            cleans(entry, "Refused", reason="NoSystemd", message=refuses[name]) if name in refuses else cleans(entry)
        )
        tmpfs_policy(cluster, "cap-run", rollout={"maxConcurrent": 1}, reclaim=JOURNAL)
        wanted = {"matched": 6, "inSync": 5, "refused": 1}
        until(lambda: counts(policy(cluster, "cap-run")) == wanted, "no end", log=controller.log)
        found = policy(cluster, "cap-run")
        assert said(found, "Ready")[:2] == ("True", "InSync")
        assert said(found, "Ready")[2].endswith(f"Reclaim is refused on {nodes[1]}: {refuses[nodes[1]]}")
        assert found["status"]["problems"] == [{"nodeName": nodes[1], "state": "Refused", "message": refuses[nodes[1]]}]

        failure = "systemctl: Job for systemd-journald.service failed."
        agents.clean = lambda name, entry: cleans(entry, "Failed" if name == nodes[2] else "InSync", message=failure)
        less = {"journal": {"runtimeMaxUse": "256Mi"}}
        tmpfs_policy(cluster, "cap-run", rollout={"maxConcurrent": 1}, reclaim=less)
        until(lambda: said(policy(cluster, "cap-run"), "Progressing")[1] == "Stopped", "goes on", log=controller.log)
        assert failure in said(policy(cluster, "cap-run"), "Degraded")[2]
        assert [each["runtimeMaxUseBytes"] // MIB for name in nodes for each in told(cluster, name)] == (
            [256] * 3 + [512] * 3
        )


def test_two_policies_that_want_different_journals_are_a_conflict_until_one_has_priority(cluster: ControlPlane) -> None:
    (name,) = names(1)
    with Agents(cluster, [name]), Controller(cluster).until_synced() as controller:
        tmpfs_policy(cluster, "cap-run", reclaim=JOURNAL)
        tmpfs_policy(cluster, "more", size="2Gi", reclaim={"journal": {"runtimeMaxUse": "1Gi"}})
        for each, other in (("cap-run", "more"), ("more", "cap-run")):
            until(lambda each=each: said(policy(cluster, each), "Conflict")[0] == "True", "none", log=controller.log)
            message = said(policy(cluster, each), "Conflict")[2]
            assert f"{other} wants something else with the same priority 0 for systemd-journald's limit" in message
        until(lambda: told(cluster, name) == [TOLD], "not the smaller one", log=controller.log)
        tmpfs_policy(cluster, "more", size="2Gi", priority=1, reclaim={"journal": {"runtimeMaxUse": "1Gi"}})
        wanted = TOLD | {"runtimeMaxUseBytes": 1024 * MIB, "policy": "more"}
        until(lambda: told(cluster, name) == [wanted], "not the higher one", log=controller.log)
        until(lambda: said(policy(cluster, "cap-run"), "Conflict")[0] == "False", "still", log=controller.log)


def test_the_real_agent_says_what_it_would_do(cluster: ControlPlane) -> None:
    """In Audit: a test must not restart the journald of the machine that it runs on."""
    (name,) = names(1)
    make_node(cluster, name)
    cluster.kubectl("label", "node", name, f"only={name}")
    often = ("--enforce", "--refresh=0.3", "--interval=0.6")
    with (
        running_agent(name, cluster.kubeconfig, *often, cadence=Cadence(300, 0.5)) as agent,
        Controller(cluster).until_synced() as controller,
    ):

        def log() -> str:
            return controller.log() + agent.text()

        def answers() -> dict[str, Object]:
            status = (report_of(cluster, name) or {}).get("status", {})
            return {each["kind"]: each for each in status.get("reclaim", [])}

        tmpfs_policy(
            cluster,
            "audit",
            mode="Audit",
            nodeSelector={"matchLabels": {"only": name}},
            reclaim=JOURNAL | {"tmpfiles": [LOGS]},
        )
        until(lambda: sorted(answers()) == ["Journal", "Tmpfiles"], "no answer", log=log)
        found = answers()
        assert {each["state"] for each in found.values()} == {"Audit"}
        assert {each["policy"] for each in found.values()} == {"audit"}
        assert found["Journal"]["runtimeMaxUseBytes"] == 512 * MIB
        assert found["Journal"]["message"].startswith("Would ")
        assert (found["Tmpfiles"]["path"], found["Tmpfiles"]["age"]) == ("/run/logs", "7d")
        until(lambda: counts(policy(cluster, "audit")) == {"matched": 1, "audit": 1}, "not counted", log=log)
        until(lambda: "systemd-tmpfiles delete files in /run/logs" in said(policy(cluster, "audit"), "Ready")[2], "?")
        cluster.request("DELETE", f"{POLICIES}/audit")
        until(lambda: policy_is_gone(cluster, "audit"), "still there", log=log)
        until(lambda: not answers(), "still answered", log=log)
    cluster.kubectl("delete", "--ignore-not-found", f"node/{name}", f"memoryreport/{name}")
