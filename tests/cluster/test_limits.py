"""TmpfsPolicies on a real API server, with simulated agents: rollout, failures, deaths, edits, conflicts, deletion."""

import os
import secrets
import signal
import time
from collections.abc import Iterator

import pytest

from cluster.agentlab import make_node, running_agent
from cluster.controllerlab import Controller, add_pod, now, plane, until, write_report, writes
from cluster.controlplane import ControlPlane
from cluster.limitslab import (
    GIB,
    MIB,
    POLICIES,
    REPORTS,
    Agents,
    Object,
    counts,
    cut_off,
    holds,
    limits,
    most_at_once,
    names,
    policy,
    policy_is_gone,
    remove_policies,
    said,
    tmpfs,
    tmpfs_policy,
    told,
)
from kernel import workloads
from nodemem.agent.changes import Cadence

FINALIZER = "nodemem.io/limits"


@pytest.fixture(scope="module")
def cluster() -> Iterator[ControlPlane]:
    with plane() as running:
        yield running


@pytest.fixture(autouse=True)
def policies_go(cluster: ControlPlane) -> Iterator[None]:
    yield
    remove_policies(cluster)


def told_in_all(cluster: ControlPlane, nodes: list[str]) -> int:
    now = limits(cluster)
    return sum(1 for each in nodes if now.get(each))


def test_200_nodes_are_changed_ten_at_a_time_though_the_controller_dies(cluster: ControlPlane) -> None:
    nodes = names(200)
    with Agents(cluster, nodes, seconds=0.5):
        with Controller(cluster).until_synced() as first:
            tmpfs_policy(cluster, "cap-run", rollout={"maxConcurrent": "5%"})
            until(lambda: told_in_all(cluster, nodes) > 40, "not begun", log=first.log)
            first.process.send_signal(signal.SIGKILL)
            first.process.wait()
        assert told_in_all(cluster, nodes) < 150
        with Controller(cluster).until_synced() as second:
            until(
                lambda: counts(policy(cluster, "cap-run")) == {"matched": 200, "inSync": 200},
                "not done",
                seconds=120,
                log=second.log,
            )
            assert second.metric("write_errors_total") == 0
        assert set(limits(cluster)[nodes[0]]) == {("/run", 2 * GIB, "Enforce", "cap-run")}
        assert 5 < most_at_once(cluster, nodes) <= 10
        # Each once: what was written before the death isn't written again.
        order = [name for what, name in told(cluster, nodes) if what == "told"]
        assert sorted({*order, *cut_off(cluster, nodes)}) == nodes
        assert len(order) == len(set(order))
        ready = said(policy(cluster, "cap-run"), "Ready")
        assert ready == ("True", "InSync", "Every limit holds: 200 mounts on 200 nodes.")


def test_failures_stop_it_and_an_edit_goes_on(cluster: ControlPlane) -> None:
    nodes = names(12)
    with Agents(cluster, nodes) as agents, Controller(cluster).until_synced() as controller:

        def refuse(name: str, limit: Object) -> Object:
            fails = name == nodes[3] and limit["sizeBytes"] == 2 * GIB
            return holds(limit, "Failed" if fails else "InSync", "tmpfs: Too small a size" if fails else None)

        agents.behave = refuse
        tmpfs_policy(cluster, "cap-run", rollout={"maxConcurrent": 2, "maxFailures": 1})
        until(lambda: said(policy(cluster, "cap-run"), "Progressing")[1] == "Stopped", "goes on", log=controller.log)
        controller.until_looked_again()
        assert told_in_all(cluster, nodes) <= 5
        found = policy(cluster, "cap-run")
        assert counts(found)["failed"] == 1
        assert found["status"]["problems"][0] == {
            "nodeName": nodes[3],
            "state": "Failed",
            "message": "tmpfs: Too small a size",
        }
        assert nodes[3] in said(found, "Degraded")[2]

        tmpfs_policy(cluster, "cap-run", size="3Gi", rollout={"maxConcurrent": 2, "maxFailures": 1})
        until(lambda: counts(policy(cluster, "cap-run")) == {"matched": 12, "inSync": 12}, "no end", log=controller.log)
        assert all(each == [("/run", 3 * GIB, "Enforce", "cap-run")] for each in limits(cluster).values())
        assert said(policy(cluster, "cap-run"), "Degraded")[0] == "False"
        assert policy(cluster, "cap-run")["status"]["observedGeneration"] == 2
        assert most_at_once(cluster, nodes) <= 2


def test_a_policy_edited_on_the_way_ends_as_edited_within_its_turns(cluster: ControlPlane) -> None:
    nodes = names(30)
    with Agents(cluster, nodes, seconds=0.3), Controller(cluster).until_synced() as controller:
        tmpfs_policy(cluster, "cap-run", rollout={"maxConcurrent": 4})
        until(lambda: told_in_all(cluster, nodes) >= 8, "not begun", log=controller.log)
        tmpfs_policy(cluster, "cap-run", size="1Gi", rollout={"maxConcurrent": 4})
        until(lambda: counts(policy(cluster, "cap-run")).get("inSync") == 30, "no end", log=controller.log)
        assert {limit for each in limits(cluster).values() for limit in each} == {("/run", GIB, "Enforce", "cap-run")}
        assert most_at_once(cluster, nodes) <= 4


def test_an_api_server_that_is_killed_on_the_way_gives_nobody_a_second_turn(cluster: ControlPlane) -> None:
    nodes = names(40)
    with Agents(cluster, nodes, seconds=0.3), Controller(cluster).until_synced() as controller:
        tmpfs_policy(cluster, "cap-run", rollout={"maxConcurrent": 3})
        until(lambda: told_in_all(cluster, nodes) >= 8, "not begun", log=controller.log)
        cluster.stop("kube-apiserver", signal.SIGKILL)
        cluster.start_apiserver()
        until(
            lambda: counts(policy(cluster, "cap-run")) == {"matched": 40, "inSync": 40},
            "no end",
            seconds=120,
            log=controller.log,
        )
        assert controller.process.poll() is None
        assert most_at_once(cluster, nodes) <= 3


def test_a_standby_goes_on_where_the_first_was_frozen(cluster: ControlPlane) -> None:
    nodes = names(40)
    with (
        Agents(cluster, nodes, seconds=0.3),
        Controller(cluster, name="a").until_synced() as first,
        Controller(cluster, name="b") as standby,
    ):
        until(lambda: standby.get("/readyz")[0] == 200, "not watching", log=standby.log)
        tmpfs_policy(cluster, "cap-run", rollout={"maxConcurrent": 3})
        until(lambda: told_in_all(cluster, nodes) >= 8, "not begun", log=first.log)
        first.process.send_signal(signal.SIGSTOP)
        until(lambda: standby.metric("leader") == 1, "no takeover", log=standby.log)
        first.process.send_signal(signal.SIGCONT)
        until(
            lambda: counts(policy(cluster, "cap-run")) == {"matched": 40, "inSync": 40},
            "no end",
            seconds=120,
            log=standby.log,
        )
        assert most_at_once(cluster, nodes) <= 3


def test_an_audit_is_told_at_once_and_says_what_enforcing_would_do(cluster: ControlPlane) -> None:
    nodes = names(5)
    with Agents(cluster, nodes), Controller(cluster).until_synced() as controller:
        tmpfs_policy(cluster, "cap-run", mode="Audit")
        until(lambda: counts(policy(cluster, "cap-run")) == {"matched": 5, "audit": 5}, "no audit", log=controller.log)
        status, reason, text = said(policy(cluster, "cap-run"), "Ready")
        assert (status, reason) == ("True", "Audit")
        assert text == "Nothing is changed. Would shrink /run on 5 nodes, by 70Gi in all."
        # Nothing to restore: it may go without the controller.
        assert "finalizers" not in policy(cluster, "cap-run")["metadata"]


def test_of_two_policies_of_one_priority_both_are_told_and_the_smaller_holds(cluster: ControlPlane) -> None:
    nodes = names(3)
    with Agents(cluster, nodes), Controller(cluster).until_synced() as controller:
        tmpfs_policy(cluster, "large", size="4Gi")
        tmpfs_policy(cluster, "small", size="1Gi")
        for name in ("large", "small"):
            until(lambda name=name: said(policy(cluster, name), "Conflict")[0] == "True", name, log=controller.log)
        until(
            lambda: all(limits(cluster)[each] == [("/run", GIB, "Enforce", "small")] for each in nodes),
            "not the smaller",
            log=controller.log,
        )
        assert "small wants something else with the same priority 0" in said(policy(cluster, "large"), "Conflict")[2]
        tmpfs_policy(cluster, "large", size="4Gi", priority=1)
        until(
            lambda: all(limits(cluster)[each] == [("/run", 4 * GIB, "Enforce", "large")] for each in nodes),
            "not the higher",
            log=controller.log,
        )
        until(lambda: said(policy(cluster, "small"), "Conflict")[0] == "False", "still a conflict")


def test_deletion_restores_first(cluster: ControlPlane) -> None:
    nodes = names(6)
    with Agents(cluster, nodes) as agents, Controller(cluster).until_synced() as controller:
        tmpfs_policy(cluster, "cap-run", rollout={"maxConcurrent": 3})
        until(lambda: counts(policy(cluster, "cap-run")).get("inSync") == 6, "no end", log=controller.log)
        assert policy(cluster, "cap-run")["metadata"]["finalizers"] == [FINALIZER]
        agents.away = {nodes[0]}
        cluster.request("DELETE", f"{POLICIES}/cap-run")
        until(lambda: told_in_all(cluster, nodes) == 0, "not taken back", log=controller.log)
        controller.until_looked_again()
        found = policy(cluster, "cap-run")
        assert said(found, "Ready")[1] == "Deleting"
        assert nodes[0] in said(found, "Ready")[2]
        agents.away = set()
        until(lambda: policy_is_gone(cluster, "cap-run"), "still there", log=controller.log)
        assert most_at_once(cluster, nodes) <= 3


def test_a_node_that_is_gone_holds_up_no_deletion(cluster: ControlPlane) -> None:
    nodes = names(4)
    with Agents(cluster, nodes) as agents, Controller(cluster).until_synced() as controller:
        tmpfs_policy(cluster, "cap-run", rollout={"maxConcurrent": 4})
        until(lambda: counts(policy(cluster, "cap-run")).get("inSync") == 4, "no end", log=controller.log)
        agents.away = {nodes[0], nodes[1]}
        cluster.request("DELETE", f"{POLICIES}/cap-run")
        until(lambda: told_in_all(cluster, nodes) == 0, "not taken back", log=controller.log)
        assert not policy_is_gone(cluster, "cap-run")
        for each in agents.away:
            cluster.request("DELETE", f"/api/v1/nodes/{each}")
        until(lambda: policy_is_gone(cluster, "cap-run"), "still there", log=controller.log)


def test_a_silent_node_gives_its_turn_away_and_is_named(cluster: ControlPlane) -> None:
    nodes = names(4)
    with Agents(cluster, nodes) as agents, Controller(cluster, "--stale-after=4").until_synced() as controller:
        agents.away = {nodes[0]}
        stop = time.monotonic() + 60
        tmpfs_policy(cluster, "cap-run", rollout={"maxConcurrent": 1})
        while counts(policy(cluster, "cap-run")).get("inSync") != 3:
            for each in nodes[1:]:
                agents.heartbeat(each, used=GIB)
            assert time.monotonic() < stop, controller.log()[-3000:]
            time.sleep(0.5)
        found = policy(cluster, "cap-run")
        assert counts(found)["pending"] == 1
        assert nodes[0] in said(found, "Degraded")[2]


def test_limits_of_a_policy_whose_finalizer_was_taken_off_by_hand_are_taken_back(cluster: ControlPlane) -> None:
    nodes = names(3)
    with Agents(cluster, nodes):
        with Controller(cluster).until_synced() as controller:
            tmpfs_policy(cluster, "cap-run", rollout={"maxConcurrent": 3})
            until(lambda: counts(policy(cluster, "cap-run")).get("inSync") == 3, "no end", log=controller.log)
        cluster.request("DELETE", f"{POLICIES}/cap-run")
        cluster.request("PATCH", f"{POLICIES}/cap-run", {"metadata": {"finalizers": None}})
        assert policy_is_gone(cluster, "cap-run")
        with Controller(cluster).until_synced() as controller:
            until(lambda: told_in_all(cluster, nodes) == 0, "still told", log=controller.log)


def test_heartbeats_and_a_restart_cause_no_write(cluster: ControlPlane) -> None:
    nodes = names(3)
    with Agents(cluster, nodes) as agents:
        with Controller(cluster).until_synced() as controller:
            tmpfs_policy(cluster, "cap-run", rollout={"maxConcurrent": 3})
            tmpfs_policy(cluster, "audit", mode="Audit", size="1Gi", priority=1)
            until(lambda: counts(policy(cluster, "cap-run")).get("inSync") == 3, "no end", log=controller.log)
            until(lambda: said(policy(cluster, "audit"), "Ready")[1] == "Audit", "no audit", log=controller.log)
            controller.until_looked_again()
            time.sleep(3)  # counts are written no more often than every two seconds
            controller.until_looked_again()
            made = len(writes(cluster))
            for beat in range(10):
                for each in nodes:
                    agents.heartbeat(each, used=GIB + beat * 100 * MIB)
            controller.until_looked_again()
            controller.until_looked_again()
            assert [each["requestURI"] for each in writes(cluster, since=made)] == []
            for each in nodes:
                agents.heartbeat(each, used=GIB)
            controller.process.kill()
        with Controller(cluster).until_synced() as controller:
            controller.until_looked_again()
            assert [each["requestURI"] for each in writes(cluster, since=made)] == []


def test_what_failed_on_3_of_200_nodes_stays_stopped_over_a_death_and_is_taken_back_in_turns(
    cluster: ControlPlane,
) -> None:
    nodes = names(200)
    bad = {nodes[7], nodes[25], nodes[43]}
    pace = {"maxConcurrent": "10%", "maxFailures": 3}
    with Agents(cluster, nodes, seconds=0.2) as agents:
        agents.behave = lambda name, limit: holds(limit, "Failed" if name in bad else "InSync", "Too small a size")
        with Controller(cluster).until_synced() as first:
            tmpfs_policy(cluster, "cap-run", rollout=pace)
            until(
                lambda: said(policy(cluster, "cap-run"), "Progressing")[1] == "Stopped",
                "goes on",
                seconds=120,
                log=first.log,
            )
            first.until_looked_again()
            first.process.send_signal(signal.SIGKILL)
            first.process.wait()
        reached = told_in_all(cluster, nodes)
        # Those before the third that failed, and those that were at it at the same time.
        assert 44 <= reached <= 44 + 2 * 20
        made = len(writes(cluster))
        with Controller(cluster).until_synced() as second:
            second.until_looked_again()
            assert told_in_all(cluster, nodes) == reached
            assert [each for each in writes(cluster, since=made) if each["requestURI"].startswith(REPORTS)] == []
            assert counts(policy(cluster, "cap-run"))["failed"] == 3
            cluster.request("DELETE", f"{POLICIES}/cap-run")
            until(lambda: policy_is_gone(cluster, "cap-run"), "still there", seconds=120, log=second.log)
        assert told_in_all(cluster, nodes) == 0
        assert most_at_once(cluster, nodes) <= 20


def test_neither_an_outage_nor_a_handover_causes_a_write(cluster: ControlPlane) -> None:
    nodes = names(20)
    with (
        Agents(cluster, nodes),
        Controller(cluster, name="a").until_synced() as first,
        Controller(cluster, name="b") as standby,
    ):
        tmpfs_policy(cluster, "cap-run", rollout={"maxConcurrent": 20})
        until(lambda: counts(policy(cluster, "cap-run")).get("inSync") == 20, "no end", log=first.log)
        until(lambda: standby.metric("memoryreports") >= 20, "not watching", log=standby.log)
        time.sleep(3)  # counts are written no more often than every two seconds
        first.until_looked_again()
        made = len(writes(cluster))
        cluster.stop("kube-apiserver", signal.SIGKILL)
        cluster.compact()
        cluster.start_apiserver()
        until(lambda: first.metric("leader") == 1 and first.metric("synced") == 1, "not back", log=first.log)
        first.until_looked_again()
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
        standby.until_synced()
        standby.until_looked_again()
        assert [each["requestURI"] for each in writes(cluster, since=made)] == []


def test_pods_are_chosen_by_their_labels_and_namespaces(cluster: ControlPlane) -> None:
    (name,) = names(1)
    spaces = {}
    for team in ("web", "batch"):
        spaces[team] = f"{team}-{secrets.token_hex(3)}"
        cluster.add_namespace(spaces[team], team=team)
    with Agents(cluster, [name]) as agents, Controller(cluster).until_synced() as controller:
        mounts = [tmpfs()]
        for team, app in (("web", "db"), ("web", "cache"), ("batch", "db")):
            pod = add_pod(cluster, spaces[team], app, name, labels={"app": app})["metadata"]
            owner = {"podUID": pod["uid"], "podNamespace": spaces[team], "podName": app}
            mounts.append(tmpfs(f"/sandboxes/{team}-{app}/shm", size=64 * MIB, used=0, scope="SharedMemory", **owner))
        agents.mounts = mounts
        write_report(cluster, agents.nodes[name], tmpfs=mounts, observedGeneration=1)
        rule = {
            "scope": "SharedMemory",
            "size": "10%",
            "adjust": "Grow",
            "podSelector": {"matchLabels": {"app": "db"}},
            "namespaceSelector": {"matchLabels": {"team": "web"}},
        }
        tmpfs_policy(cluster, "grow-shm", rules=[rule])
        whole = 16 * GIB // 10
        size = -(-whole // 4096) * 4096
        until(
            lambda: limits(cluster)[name] == [("/sandboxes/web-db/shm", size, "Enforce", "grow-shm")],
            "not told",
            log=controller.log,
        )
        until(lambda: counts(policy(cluster, "grow-shm")) == {"matched": 1, "inSync": 1}, "no end", log=controller.log)
    for each in spaces.values():
        cluster.request("DELETE", f"/api/v1/namespaces/{each}")


def test_nodes_are_chosen_by_their_labels_and_follow_them(cluster: ControlPlane) -> None:
    nodes = names(2)
    with Agents(cluster, nodes), Controller(cluster).until_synced() as controller:
        cluster.kubectl("label", "node", nodes[0], "pool=web")
        tmpfs_policy(cluster, "cap-run", nodeSelector={"matchLabels": {"pool": "web"}})
        until(lambda: counts(policy(cluster, "cap-run")) == {"matched": 1, "inSync": 1}, "no end", log=controller.log)
        assert limits(cluster)[nodes[1]] == []
        cluster.kubectl("label", "node", nodes[0], "pool-")
        cluster.kubectl("label", "node", nodes[1], "pool=web")
        until(lambda: limits(cluster)[nodes[1]] and not limits(cluster)[nodes[0]], "not moved", log=controller.log)


@pytest.mark.parametrize(("on_delete", "left_bytes"), [("Restore", 200 * MIB), ("Keep", 64 * MIB)])
def test_from_a_line_of_yaml_to_the_mount_and_back(cluster: ControlPlane, on_delete: str, left_bytes: int) -> None:
    """The real agent on the real kernel."""
    (name,) = names(1)
    make_node(cluster, name)
    cluster.kubectl("label", "node", name, f"only={name}")
    spec = {"nodeSelector": {"matchLabels": {"only": name}}, "onDelete": on_delete}
    often = ("--enforce", "--refresh=0.3", "--interval=0.6")
    with (
        workloads.tmpfs_here(8 * MIB, limit=200 * MIB) as here,
        running_agent(name, cluster.kubeconfig, *often, cadence=Cadence(300, 0.5)) as agent,
        Controller(cluster).until_synced() as controller,
    ):

        def size() -> int:
            found = os.statvfs(here.path)
            return found.f_blocks * found.f_frsize

        def log() -> str:
            return controller.log() + agent.text()

        rules = [{"scope": "Host", "path": here.path, "size": "64Mi"}]
        tmpfs_policy(cluster, "cap", rules=rules, mode="Audit", **spec)
        until(lambda: said(policy(cluster, "cap"), "Ready")[1] == "Audit", "no audit", log=log)
        until(lambda: "Would shrink" in said(policy(cluster, "cap"), "Ready")[2], "no sentence", log=log)
        assert size() == 200 * MIB
        tmpfs_policy(cluster, "cap", rules=rules, **spec)
        until(lambda: size() == 64 * MIB, "not shrunk", log=log)
        until(lambda: counts(policy(cluster, "cap")) == {"matched": 1, "inSync": 1}, "not in sync", log=log)
        cluster.request("DELETE", f"{POLICIES}/cap")
        until(lambda: policy_is_gone(cluster, "cap"), "still there", log=log)
        assert size() == left_bytes
    cluster.kubectl("delete", "--ignore-not-found", f"node/{name}", f"memoryreport/{name}")


def test_what_others_write_into_a_spec_is_put_right(cluster: ControlPlane) -> None:
    (name,) = names(1)
    with Agents(cluster, [name]), Controller(cluster).until_synced() as controller:
        tmpfs_policy(cluster, "cap-run")
        until(lambda: counts(policy(cluster, "cap-run")).get("inSync") == 1, "no end", log=controller.log)
        cluster.request("PATCH", f"{REPORTS}/{name}", {"spec": {"tmpfsLimits": []}})
        until(lambda: limits(cluster)[name], "not put right", log=controller.log)


def test_a_silent_report_without_an_answer_to_its_first_spec_needs_none(cluster: ControlPlane) -> None:
    """An agent that knows nothing of limits reports no observedGeneration: it holds up nobody it isn't told of."""
    nodes = names(2)
    with Agents(cluster, nodes) as agents, Controller(cluster).until_synced() as controller:
        agents.away = {nodes[1]}
        write_report(cluster, agents.nodes[nodes[1]], observed_at=now(), tmpfs=[tmpfs("/srv")])
        tmpfs_policy(cluster, "cap-run", rollout={"maxConcurrent": 1})
        until(lambda: counts(policy(cluster, "cap-run")) == {"matched": 2, "inSync": 2}, "no end", log=controller.log)
