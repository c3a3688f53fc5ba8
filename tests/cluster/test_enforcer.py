"""Limits of tmpfs, from the spec of a report in a real API server to the real mount, and back."""

import contextlib
import os
import random
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.agentlab import REPORTS, Proxy, RunningAgent, kubeconfig, make_node, report_of, running_agent, until
from cluster.controlplane import ControlPlane
from kernel import workloads
from kernel.workloads import MIB
from nodemem.agent.changes import Cadence

FAST = Cadence(heartbeat_seconds=2.0, apart_seconds=0.3)
ENFORCE = ("--enforce", "--interval=0.4", "--refresh=0.2")
MS_REMOUNT = 32


@pytest.fixture
def node(cluster: ControlPlane) -> Iterator[str]:
    name = f"n-{secrets.token_hex(4)}"
    make_node(cluster, name)
    yield name
    cluster.kubectl("delete", "node", name, "--ignore-not-found", "--wait=false")
    cluster.kubectl("delete", "memoryreport", name, "--ignore-not-found", "--wait=false")


@contextlib.contextmanager
def agent_of(node: str, config: Path, cadence: Cadence = FAST, *options: str) -> Iterator[RunningAgent]:
    with running_agent(node, config, *(options or ENFORCE), cadence=cadence) as agent:
        yield agent


def limit(where: str, size: int = 8 * MIB, **changes: Any) -> dict[str, Any]:
    return {"mountPoint": where, "scope": "Host", "sizeBytes": size, "mode": "Enforce", "policy": "cap"} | changes


def set_limits(cluster: ControlPlane, node: str, *limits: dict[str, Any]) -> int:
    """As the controller does it; the generation of the new spec."""
    made = cluster.apply(
        {
            "apiVersion": "nodemem.io/v1alpha1",
            "kind": "MemoryReport",
            "metadata": {"name": node},
            "spec": {"tmpfsLimits": list(limits)},
        },
        manager="nodemem-controller",
    )
    generation: int = made[0]["metadata"]["generation"]
    return generation


def status_of(cluster: ControlPlane, node: str) -> dict[str, Any]:
    report = report_of(cluster, node)
    return report["status"] if report else {}


def limits_of(cluster: ControlPlane, node: str) -> dict[str, dict[str, Any]]:
    return {each["mountPoint"]: each for each in status_of(cluster, node).get("limits", ())}


def until_limit(
    cluster: ControlPlane, node: str, where: str, what: str, true: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    def ask() -> dict[str, Any] | None:
        status = limits_of(cluster, node).get(where)
        return status if status is not None and true(status) else None

    try:
        return until(ask, what)
    except AssertionError as error:
        error.add_note(f"it is: {limits_of(cluster, node).get(where)}")
        raise


def has(field: str, value: Any) -> Callable[[dict[str, Any]], bool]:
    return lambda each: each.get(field) == value


def until_in_sync(cluster: ControlPlane, node: str, where: str, size: int) -> dict[str, Any]:
    return until_limit(
        cluster, node, where, "in sync", lambda each: (each["state"], each.get("appliedBytes")) == ("InSync", size)
    )


def until_answered(cluster: ControlPlane, node: str, generation: int) -> dict[str, Any]:
    def ask() -> dict[str, Any] | None:
        status = status_of(cluster, node)
        return status if status.get("observedGeneration") == generation else None

    return until(ask, f"an answer to generation {generation}")


def size_of(path: str) -> int:
    found = os.statvfs(path)
    return found.f_blocks * found.f_frsize


def remount(path: str, size: int) -> None:
    workloads.mount("none", path, "tmpfs", MS_REMOUNT, f"size={size}")


def container_shm() -> None:
    """In a container's process: a /dev/shm of its own."""
    workloads.unshare(workloads.CLONE_NEWNS)
    workloads.mount("none", "/", None, workloads.MS_REC | workloads.MS_PRIVATE)
    workloads.mount("shm", "/dev/shm", "tmpfs", 0, "size=64m,mode=755,uid=5")


def test_a_limit_reaches_a_tmpfs_in_another_mount_namespace_and_leaves_with_it(
    cluster: ControlPlane, node: str
) -> None:
    uid, container_id = f"9d0c6b0e-6bd5-4e2c-9bdb-{secrets.token_hex(6)}", secrets.token_hex(32)
    before = size_of("/dev/shm")
    with workloads.container_cgroup(uid, container_id) as place, workloads.child(container_shm, place) as (pid, _):
        inside = f"/proc/{pid}/root/dev/shm"
        generation = set_limits(
            cluster, node, limit("/dev/shm", 128 * MIB, scope="SharedMemory", adjust="Grow", policy="larger-shm")
        )
        with agent_of(node, cluster.kubeconfig):
            status = until_in_sync(cluster, node, "/dev/shm", 128 * MIB)
            assert status["originalBytes"] == 64 * MIB
            assert status["policy"] == "larger-shm"
            assert size_of(inside) == 128 * MIB
            assert "mode=755,uid=5" in Path(f"/proc/{pid}/mountinfo").read_text()
            until_answered(cluster, node, generation)
            generation = set_limits(cluster, node)
            assert "limits" not in until_answered(cluster, node, generation) or not limits_of(cluster, node)
            assert size_of(inside) == 64 * MIB
    assert size_of("/dev/shm") == before, "the host's is another"


@pytest.mark.parametrize("then", ["held", "removed"])
@pytest.mark.parametrize("killed", ["recorded", "changed", "answered"])
def test_killed_at_any_step_it_knows_the_original_size(
    cluster: ControlPlane, node: str, killed: str, then: str
) -> None:
    with workloads.tmpfs_here(MIB, limit=32 * MIB) as here:
        set_limits(cluster, node, limit(here.path))
        # Which step comes next is waited for by the agent, either to look again or to write again.
        slow = ("--enforce", "--interval=3", "--refresh=3") if killed == "recorded" else ENFORCE
        cadence = Cadence(60.0, 6.0) if killed == "changed" else FAST
        with agent_of(node, cluster.kubeconfig, cadence, *slow) as agent:
            if killed == "changed":
                until(lambda: size_of(here.path) == 8 * MIB, "the change")
            elif killed == "recorded":
                until_limit(cluster, node, here.path, "a record", lambda each: each.get("reason") == "Recorded")
            else:
                until_in_sync(cluster, node, here.path, 8 * MIB)
            agent.process.send_signal(signal.SIGKILL)
            agent.process.wait()
        status = limits_of(cluster, node)[here.path]
        assert size_of(here.path) == (32 if killed == "recorded" else 8) * MIB
        assert status.get("reason") == (None if killed == "answered" else "Recorded")
        assert (status["originalBytes"], status["targetBytes"]) == (32 * MIB, 8 * MIB)
        if then == "removed":
            generation = set_limits(cluster, node)
        with agent_of(node, cluster.kubeconfig):
            if then == "removed":
                until_answered(cluster, node, generation)
                assert limits_of(cluster, node) == {}
                assert size_of(here.path) == 32 * MIB
            else:
                status = until_in_sync(cluster, node, here.path, 8 * MIB)
                assert (status["originalBytes"], size_of(here.path)) == (32 * MIB, 8 * MIB)


def test_killed_again_and_again_while_the_limit_is_edited_it_ends_right(cluster: ControlPlane, node: str) -> None:
    chance = random.Random(5)
    with workloads.tmpfs_here(MIB, limit=32 * MIB) as here:
        for size in (8, 4, 16, 64, 2, 8, 4, 16):
            set_limits(cluster, node, limit(here.path, size * MIB))
            with agent_of(node, cluster.kubeconfig) as agent:
                until(lambda agent=agent: agent.scans() >= 1, "a scan")  # type: ignore[misc]
                time.sleep(chance.uniform(0.0, 1.2))
                agent.process.send_signal(signal.SIGKILL)
                agent.process.wait()
        with agent_of(node, cluster.kubeconfig):
            until_in_sync(cluster, node, here.path, 16 * MIB)
            until_answered(cluster, node, set_limits(cluster, node))
        assert size_of(here.path) == 32 * MIB


def test_too_much_in_use_is_deferred_and_applied_when_files_go(cluster: ControlPlane, node: str) -> None:
    with workloads.tmpfs_here(16 * MIB, limit=32 * MIB) as here, agent_of(node, cluster.kubeconfig):
        until(lambda: report_of(cluster, node), "a report")
        generation = set_limits(cluster, node, limit(here.path))
        status = until_limit(cluster, node, here.path, "deferred", lambda each: each["state"] == "Deferred")
        assert status["reason"] == "InUse"
        assert "16Mi" in status["message"]
        assert "8Mi" in status["message"]
        until_answered(cluster, node, generation)
        assert size_of(here.path) == 32 * MIB
        os.unlink(f"{here.path}/data")
        assert until_in_sync(cluster, node, here.path, 8 * MIB)["originalBytes"] == 32 * MIB
        assert size_of(here.path) == 8 * MIB


def test_remounts_by_others_are_fought_three_times_and_then_contested(cluster: ControlPlane, node: str) -> None:
    with workloads.tmpfs_here(MIB, limit=32 * MIB) as here, agent_of(node, cluster.kubeconfig) as agent:
        set_limits(cluster, node, limit(here.path))
        until_in_sync(cluster, node, here.path, 8 * MIB)
        for fight in (1, 2, 3):
            remount(here.path, 24 * MIB)
            status = until_limit(cluster, node, here.path, f"fight {fight}", has("drifts", fight))
            until(lambda: size_of(here.path) == 8 * MIB, "its size again")
            until_in_sync(cluster, node, here.path, 8 * MIB)
        assert "24Mi" in status["message"]
        remount(here.path, 24 * MIB)
        status = until_limit(cluster, node, here.path, "contested", lambda each: each["state"] == "Contested")
        scans = agent.scans()
        until(lambda: agent.scans() > scans + 3, "more scans")
        assert size_of(here.path) == 24 * MIB
        assert (status["appliedBytes"], status["originalBytes"]) == (24 * MIB, 32 * MIB)
        set_limits(cluster, node, limit(here.path, 4 * MIB))
        until_in_sync(cluster, node, here.path, 4 * MIB)


def test_a_new_mount_that_matches_is_limited_from_its_own_size(cluster: ControlPlane, node: str) -> None:
    with workloads.directory() as path, agent_of(node, cluster.kubeconfig):
        generation = set_limits(cluster, node, limit(path))
        status = until_answered(cluster, node, generation)["limits"][0]
        assert (status["state"], status["reason"]) == ("InSync", "NotMounted")
        for original in (32, 16):
            workloads.mount("none", path, "tmpfs", 0, f"size={original}m")
            try:
                until_limit(cluster, node, path, "a record", has("originalBytes", original * MIB))
                until_in_sync(cluster, node, path, 8 * MIB)
                assert size_of(path) == 8 * MIB
            finally:
                workloads.umount(path, workloads.MNT_DETACH)
        until_limit(cluster, node, path, "not mounted", lambda each: each.get("reason") == "NotMounted")


def test_keep_keeps_the_size_when_the_limit_goes(cluster: ControlPlane, node: str) -> None:
    with workloads.tmpfs_here(MIB, limit=32 * MIB) as here, agent_of(node, cluster.kubeconfig):
        set_limits(cluster, node, limit(here.path, onDelete="Keep"))
        until_in_sync(cluster, node, here.path, 8 * MIB)
        until_answered(cluster, node, set_limits(cluster, node))
        assert limits_of(cluster, node) == {}
        assert size_of(here.path) == 8 * MIB


@pytest.mark.parametrize("mode", ["Audit", "Enforce"])
def test_audit_and_an_agent_without_enforcement_say_it_and_change_nothing(
    cluster: ControlPlane, node: str, mode: str
) -> None:
    options = ENFORCE if mode == "Audit" else ENFORCE[1:]
    with workloads.tmpfs_here(MIB, limit=32 * MIB) as here, agent_of(node, cluster.kubeconfig, FAST, *options) as agent:
        status = until_answered(cluster, node, set_limits(cluster, node, limit(here.path, mode=mode)))
        scans = agent.scans()
        until(lambda: agent.scans() > scans + 2, "more scans")
        found = status["limits"][0]
        said = f"Would shrink {here.path} from 32Mi to 8Mi; 1Mi is in use."
        assert found["state"] == "Audit"
        assert found["message"].startswith(said)
        assert ("without --enforce" in found["message"]) == (mode == "Enforce")
        assert "originalBytes" not in found
        assert status["summary"]["limits"] == "Audit"
        assert size_of(here.path) == 32 * MIB


def test_limits_hold_while_the_server_is_silent(cluster: ControlPlane, node: str) -> None:
    with workloads.tmpfs_here(MIB, limit=32 * MIB) as here, Proxy(cluster) as proxy:
        config = kubeconfig(cluster, server=proxy.url, name=node)
        with agent_of(node, config) as agent:
            set_limits(cluster, node, limit(here.path))
            until_in_sync(cluster, node, here.path, 8 * MIB)
            proxy.stall()
            scans = agent.scans()
            until(lambda: agent.scans() > scans + 3, "scans without a server")
            remount(here.path, 24 * MIB)
            until(lambda: size_of(here.path) == 8 * MIB, "its size again")


def test_a_report_that_is_deleted_keeps_its_limits_and_its_record(cluster: ControlPlane, node: str) -> None:
    with workloads.tmpfs_here(MIB, limit=32 * MIB) as here, agent_of(node, cluster.kubeconfig) as agent:
        set_limits(cluster, node, limit(here.path))
        until_in_sync(cluster, node, here.path, 8 * MIB)
        cluster.request("DELETE", f"{REPORTS}/{node}")
        assert until_in_sync(cluster, node, here.path, 8 * MIB)["originalBytes"] == 32 * MIB
        mitigation = {"podUID": "made-up", "podNamespace": "default", "podName": "made-up", "policy": "comes-first"}
        cluster.request("PATCH", f"{REPORTS}/{node}", {"spec": {"oomMitigations": [mitigation]}})
        scans = agent.scans()
        until(lambda: agent.scans() > scans + 3, "scans")
        assert size_of(here.path) == 8 * MIB
        set_limits(cluster, node, limit(here.path))
        until_answered(cluster, node, set_limits(cluster, node))
        assert size_of(here.path) == 32 * MIB


def test_what_the_kubelet_fills_is_refused(cluster: ControlPlane, node: str) -> None:
    with workloads.directory() as top:
        path = f"{top}/pods/8d0c6b0e-6bd5-4e2c-9bdb-8f1f2bb0d3c1/volumes/kubernetes.io~projected/token"
        os.makedirs(path)
        workloads.mount("none", path, "tmpfs", 0, "size=32m")
        try:
            with agent_of(node, cluster.kubeconfig):
                generation = set_limits(cluster, node, limit(path, scope="EmptyDir"))
                found = until_answered(cluster, node, generation)["limits"][0]
            assert (found["state"], found["reason"]) == ("Failed", "Protected")
            assert "projected volume token" in found["message"]
            assert size_of(path) == 32 * MIB
        finally:
            workloads.umount(path, workloads.MNT_DETACH)


def test_a_mount_point_that_is_unclear_or_of_another_kind_is_refused(cluster: ControlPlane, node: str) -> None:
    ids = [secrets.token_hex(32) for _ in range(2)]
    with contextlib.ExitStack() as stack:
        pids = []
        for number, container_id in enumerate(ids):
            place = stack.enter_context(
                workloads.container_cgroup(f"9d0c6b0e-0000-4e2c-9bdb-00000000000{number}", container_id)
            )
            pids.append(stack.enter_context(workloads.child(container_shm, place))[0])
        here = stack.enter_context(workloads.tmpfs_here(MIB, limit=32 * MIB))
        with agent_of(node, cluster.kubeconfig):
            generation = set_limits(
                cluster,
                node,
                limit("/dev/shm", scope="SharedMemory"),
                limit(here.path, scope="EmptyDir"),
            )
            until_answered(cluster, node, generation)
        found = limits_of(cluster, node)
        assert (found["/dev/shm"]["state"], found["/dev/shm"]["reason"]) == ("Failed", "Ambiguous")
        assert (found[here.path]["state"], found[here.path]["reason"]) == ("Failed", "WrongScope")
        assert [size_of(f"/proc/{pid}/root/dev/shm") for pid in pids] == [64 * MIB, 64 * MIB]
        assert size_of(here.path) == 32 * MIB


def test_the_agents_own_pod_is_left_alone(cluster: ControlPlane, node: str) -> None:
    uid, ids = f"9d0c6b0e-6bd5-4e2c-9bdb-{secrets.token_hex(6)}", [secrets.token_hex(32) for _ in range(2)]
    with contextlib.ExitStack() as stack:
        mine, sibling = (stack.enter_context(workloads.container_cgroup(uid, each)) for each in ids)
        pid, _ = stack.enter_context(workloads.child(container_shm, sibling))
        agent = stack.enter_context(agent_of(node, cluster.kubeconfig))
        (mine / "cgroup.procs").write_text(str(agent.pid))
        try:
            scans = agent.scans()
            until(lambda: agent.scans() > scans + 1, "a scan from there")
            until_answered(cluster, node, set_limits(cluster, node, limit("/dev/shm", scope="SharedMemory")))
            found = limits_of(cluster, node)["/dev/shm"]
            assert (found["state"], found["reason"]) == ("Failed", "Protected")
            assert "the pod of this agent" in found["message"]
            assert size_of(f"/proc/{pid}/root/dev/shm") == 64 * MIB
        finally:
            agent.close()
