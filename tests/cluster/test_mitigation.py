"""The mitigation end to end: an OomPolicy in a real API server, the controller, and the agent that sets oom_score_adj
of real processes. That the kernel clamps is simulated (cluster.clamped_agent)."""

import contextlib
import ctypes
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster import rights
from cluster.agentlab import make_node, make_pod, report_of, until
from cluster.clamped_agent import KUBELETS, real
from cluster.controllerlab import (
    Controller,
    Object,
    add_node,
    add_pod,
    condition,
    exposure,
    exposures,
    plane,
    report,
    write_report,
)
from cluster.controlplane import ControlPlane
from cluster.limitslab import holds, tmpfs
from kernel import workloads
from kernel.hungry import Worker
from kernel.workloads import MIB
from nodemem.node.status import API_VERSION


@pytest.fixture(scope="module")
def cluster() -> Iterator[ControlPlane]:
    with plane() as running:
        yield running


@pytest.fixture
def policy(cluster: ControlPlane, namespace: str) -> Iterator[str]:
    name = f"mend-{namespace}"
    mitigate(cluster, name, namespace)
    yield name
    cluster.kubectl("delete", "oompolicy", name, "--ignore-not-found")


def mitigate(cluster: ControlPlane, name: str, namespace: str, **spec: Any) -> None:
    mine = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    body = {"mode": "Mitigate", "namespaceSelector": mine, **spec}
    cluster.apply({"apiVersion": API_VERSION, "kind": "OomPolicy", "metadata": {"name": name}, "spec": body})


def policy_status(cluster: ControlPlane, name: str) -> Object:
    found: Object = cluster.request("GET", f"/apis/{API_VERSION}/oompolicies/{name}").get("status", {})
    return found


def ready(cluster: ControlPlane, name: str) -> Object | None:
    found = policy_status(cluster, name).get("conditions", ())
    return next((each for each in found if each["type"] == "Ready"), None)


def told(cluster: ControlPlane, node: str) -> list[Object]:
    found: list[Object] = report(cluster, node).get("spec", {}).get("oomMitigations", [])
    return found


def spec_writes(cluster: ControlPlane, node: str) -> int:
    return sum(
        each["objectRef"].get("resource") == "memoryreports"
        and each["objectRef"].get("name") == node
        and "subresource" not in each["objectRef"]
        and each.get("userAgent", "").startswith("nodemem-controller")
        for each in cluster.writes()
    )


# With the agent


@dataclass
class Lab:
    """A container of a Guaranteed pod in which a clamped kernel would kill ``small``."""

    cluster: ControlPlane
    node: str
    container_id: str
    place: Path
    hog: Worker
    own: Worker
    small: Worker

    @contextlib.contextmanager
    def agent(self, *options: str) -> Iterator["subprocess.Popen[bytes]"]:
        command = [sys.executable, "-m", "cluster.clamped_agent", f"--node-name={self.node}", "--listen=127.0.0.1:0"]
        command += [f"--kubeconfig={self.cluster.kubeconfig}", "--interval=0.6", "--refresh=0.3", *options]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "GUARANTEED": self.container_id}
        with (self.cluster.directory / f"agent-{self.node}.log").open("ab") as log:
            agent = subprocess.Popen(command, env=environment, stderr=log)
        try:
            yield agent
        except BaseException as error:
            error.add_note(f"the agent said:\n{self.cluster.log(f'agent-{self.node}')[-4000:]}")
            error.add_note(f"the report says:\n{self.answers()}, asked for {told(self.cluster, self.node)}")
            raise
        finally:
            agent.kill()
            agent.wait()

    def adj(self) -> list[int]:
        return [adj_of(each) for each in (self.hog, self.own, self.small)]

    def answers(self) -> list[Object]:
        found = report_of(self.cluster, self.node) or {"status": {}}
        answers: list[Object] = found["status"].get("oomMitigations", [])
        return answers


def adj_of(worker: Worker) -> int:
    return int(Path(f"/proc/{worker.pid}/oom_score_adj").read_text())


@pytest.fixture
def lab(cluster: ControlPlane, namespace: str) -> Iterator[Lab]:
    node = f"node-{secrets.token_hex(3)}"
    make_node(cluster, node)
    container_id = secrets.token_hex(32)
    pod = make_pod(cluster, namespace, "bank-0", node, [("app", container_id)], request="128Mi", guaranteed=True)
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(
            workloads.container_cgroup(pod["metadata"]["uid"], container_id, qos="Guaranteed", limit=128 * MIB)
        )
        workers = []
        for name, size, adj in (("hog", 80, 0), ("own", 2, real(-500)), ("small", 2, 0)):
            worker = Worker(place, adj, name=name)
            stack.callback(worker.end)
            assert worker.takes(size * MIB)
            workers.append(worker)
        yield Lab(cluster, node, container_id, place, *workers)
        cluster.kubectl("delete", "node", node, "--wait=false")


def test_a_policy_reaches_the_processes_and_its_deletion_puts_the_kubelets_value_back(
    cluster: ControlPlane, namespace: str, policy: str, lab: Lab
) -> None:
    with Controller(cluster, name=namespace), lab.agent("--mitigate") as agent:

        def mitigated() -> Object | None:
            found = exposures(cluster, namespace).get("bank-0")
            return found if found and condition(found, "Mitigated") == "True" else None

        flag = until(mitigated, "mitigated", 60)
        (answer,) = lab.answers()
        value = answer["oomScoreAdj"]
        assert KUBELETS < value < 0
        assert lab.adj() == [real(value), real(-500), real(value)], "the one that set its own keeps it"
        assert (answer["state"], answer["kubeletOomScoreAdj"], answer["name"]) == ("Applied", KUBELETS, "app")
        assert (answer["processes"], answer["others"]) == (2, 1)
        # Still flagged, as what it would be without; and it says that it is not exposed now.
        assert condition(flag, "Exposed") == "False"
        assert flag["status"]["reasons"] == ["ClampedBadness"]
        assert flag["status"]["containers"][0]["mitigation"]["oomScoreAdj"] == value
        said = next(each for each in flag["status"]["conditions"] if each["type"] == "Mitigated")
        assert said["message"] == (
            f"By OomPolicy {policy}: oom_score_adj {value} in place of the kubelet's -997 in app."
        )
        until(lambda: policy_status(cluster, policy).get("mitigated") == 1, "counted")
        assert policy_status(cluster, policy)["exposed"] == 1
        until(lambda: (ready(cluster, policy) or {}).get("status") == "True", "ready")
        status = report(cluster, lab.node)["status"]
        assert status["summary"]["mitigated"] == 1
        assert [each.get("mitigated") for each in status["exposures"] if each.get("podName") == "bank-0"] == [True]

        # A new process, as 'kubectl exec' begins one, and nothing else moves: no write of the spec, no event.
        before = spec_writes(cluster, lab.node)
        new = Worker(lab.place, name="exec")
        try:
            until(lambda: adj_of(new) == real(value), "the new process")
            observed = report(cluster, lab.node)["status"]["observedAt"]
            until(lambda: report(cluster, lab.node)["status"]["observedAt"] > observed, "two heartbeats")
            time.sleep(4)
            assert mitigated()
            assert spec_writes(cluster, lab.node) == before == 1
        finally:
            new.end()

        # kill -9, the policy goes while nobody holds the values, and the next agent knows the way back.
        agent.kill()
        agent.wait()
        cluster.kubectl("delete", "oompolicy", policy)
        until(lambda: told(cluster, lab.node) == [], "the end of it in the spec")
        assert lab.adj() == [real(value), real(-500), real(value)]
        with lab.agent("--mitigate"):
            until(lambda: lab.adj() == [0, real(-500), 0], "the kubelet's value")
            until(lambda: lab.answers() == [], "the end of it in the status")
            until(lambda: condition(exposures(cluster, namespace)["bank-0"], "Exposed") == "True", "exposed again")
            until(lambda: condition(exposures(cluster, namespace)["bank-0"], "Mitigated") is None, "not mitigated")
            same = exposures(cluster, namespace)["bank-0"]["metadata"]["uid"]
            assert same == flag["metadata"]["uid"], "flagged all the time, however it stood"


def test_an_agent_killed_at_any_moment_leaves_values_that_the_last_one_gets_right(
    cluster: ControlPlane, namespace: str, policy: str, lab: Lab
) -> None:
    with Controller(cluster, name=namespace):
        for number, wait in enumerate((0.5, 0.9, 1.1, 1.3, 1.5, 1.7, 2.0, 2.4)):
            with lab.agent("--mitigate"):
                time.sleep(wait)
            if number == 4:
                cluster.kubectl("delete", "oompolicy", policy)
            if number == 6:
                mitigate(cluster, policy, namespace)
            assert lab.adj()[1] == real(-500)
        with lab.agent("--mitigate"):
            until(lambda: {each["state"] for each in lab.answers()} == {"Applied"}, "applied", 60)
            value = real(lab.answers()[0]["oomScoreAdj"])
            assert lab.adj() == [value, real(-500), value]
            mitigate(cluster, policy, namespace, mode="Flag")
            until(lambda: lab.adj() == [0, real(-500), 0], "the kubelet's value", 60)


def test_an_agent_without_leave_says_so_and_so_does_the_policy(
    cluster: ControlPlane, namespace: str, policy: str, lab: Lab
) -> None:
    with Controller(cluster, name=namespace), lab.agent():
        until(lambda: (ready(cluster, policy) or {}).get("reason") == "MitigationOff", "the policy's reason")
        said = ready(cluster, policy)
        assert said is not None
        assert f"Pod {namespace}/bank-0: app: Nothing was set" in said["message"]
        assert "mitigation.enabled" in said["message"]
        assert lab.adj() == [0, real(-500), 0]


# With reports as agents write them


@pytest.fixture
def node(cluster: ControlPlane) -> Iterator[Object]:
    made = add_node(cluster, f"node-{secrets.token_hex(3)}")
    yield made
    cluster.kubectl("delete", "node,memoryreport", made["metadata"]["name"], "--ignore-not-found", "--wait=false")


def test_mitigations_and_tmpfs_limits_of_one_report_do_not_drop_each_other(
    cluster: ControlPlane, namespace: str, policy: str, node: Object
) -> None:
    name = node["metadata"]["name"]
    cluster.kubectl("label", "node", name, f"pool={name}")
    pod = add_pod(cluster, namespace, "app-0", name)
    cap = {"path": "/run", "scope": "Host", "size": "2Gi"}
    body = {"nodeSelector": {"matchLabels": {"pool": name}}, "mode": "Audit", "rules": [cap]}
    with Controller(cluster, name=namespace):
        write_report(cluster, node, exposure(pod), tmpfs=[tmpfs()], observedGeneration=1)
        uid = pod["metadata"]["uid"]
        entry = {"podUID": uid, "podNamespace": namespace, "podName": "app-0", "policy": policy}
        until(lambda: told(cluster, name) == [entry], "told")
        cluster.apply({"apiVersion": API_VERSION, "kind": "TmpfsPolicy", "metadata": {"name": name}, "spec": body})

        def both() -> Object | None:
            spec: Object = report(cluster, name)["spec"]
            return spec if spec.get("tmpfsLimits") else None

        spec = until(both, "a limit")
        assert spec["oomMitigations"] == [entry]
        generation = report(cluster, name)["metadata"]["generation"]
        answers = [holds(each) for each in spec["tmpfsLimits"]]
        write_report(cluster, node, exposure(pod), tmpfs=[tmpfs()], observedGeneration=generation, limits=answers)
        cluster.kubectl("delete", "oompolicy", policy)
        until(lambda: told(cluster, name) == [], "the end of the mitigation")
        assert report(cluster, name)["spec"]["tmpfsLimits"] == spec["tmpfsLimits"]
        mitigate(cluster, policy, namespace)
        until(lambda: told(cluster, name) == [entry], "told again")
        cluster.kubectl("delete", "tmpfspolicy", name)
        until(lambda: not report(cluster, name)["spec"].get("tmpfsLimits"), "the end of the limit")
        assert told(cluster, name) == [entry]


def test_a_pod_is_taken_out_when_it_is_relabelled_deleted_or_overruled_and_heartbeats_write_nothing(
    cluster: ControlPlane, namespace: str, policy: str, node: Object
) -> None:
    name = node["metadata"]["name"]
    pod = add_pod(cluster, namespace, "app-0", name)
    answer = {
        "containerID": "a" * 64,
        "podUID": pod["metadata"]["uid"],
        "name": "app",
        "state": "Applied",
        "oomScoreAdj": -63,
        "kubeletOomScoreAdj": -997,
        "processes": 3,
    }

    def heartbeat(**more: Any) -> None:
        write_report(cluster, node, exposure(pod, mitigated=True), oomMitigations=[{**answer, **more}])

    with Controller(cluster, name=namespace) as controller:
        write_report(cluster, node, exposure(pod))
        until(lambda: len(told(cluster, name)) == 1, "told")
        heartbeat()
        until(lambda: policy_status(cluster, policy).get("mitigated") == 1, "counted")
        until(lambda: (ready(cluster, policy) or {}).get("status") == "True", "ready")
        controller.until_looked_again()
        before = controller.metric("writes_total")
        for processes in (4, 5, 6):
            heartbeat(processes=processes)
            controller.until_looked_again()
        # The exposure goes, as a short-lived process ends: the mitigation stays.
        write_report(cluster, node, oomMitigations=[answer])
        until(lambda: not exposures(cluster, namespace), "unflagged")
        assert len(told(cluster, name)) == 1
        heartbeat()
        until(lambda: exposures(cluster, namespace), "flagged")
        assert controller.metric("writes_total") - before <= 8
        mitigate(cluster, "over-it", namespace, mode="Flag", priority=1)
        until(lambda: told(cluster, name) == [], "overruled")
        cluster.kubectl("delete", "oompolicy", "over-it")
        until(lambda: len(told(cluster, name)) == 1, "told again")
        cluster.kubectl("delete", "pod", "app-0", "-n", namespace, "--grace-period=0", "--force")
        write_report(cluster, node, oomMitigations=[answer])
        until(lambda: told(cluster, name) == [], "gone with the pod")


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([{"podUID": "", "podNamespace": "a", "podName": "b", "policy": "c"}], "write a name: an empty one"),
        ([{"podUID": "1", "podNamespace": "a", "podName": "b", "policy": "c"}] * 2, "write each podUID once"),
        ([{"podUID": "1", "podNamespace": "a", "podName": "b"}], "policy: Required value"),
        (
            [{"podUID": str(n), "podNamespace": "a", "podName": "b", "policy": "c"} for n in range(65)],
            "must have at most 64 items",
        ),
    ],
)
def test_entries_that_make_no_sense_are_refused(cluster: ControlPlane, entries: list[Object], says: str) -> None:
    body = {
        "apiVersion": API_VERSION,
        "kind": "MemoryReport",
        "metadata": {"name": f"refused-{secrets.token_hex(3)}"},
        "spec": {"oomMitigations": entries},
    }
    with pytest.raises(Exception, match=says):
        cluster.apply(body)


# What it takes


_SET = """
import sys
from nodemem.kernel.host import Host
from nodemem.kernel.oomadj import HeldProcess
with HeldProcess(Host(), int(sys.argv[1])) as held:
    held.set_oom_score_adj(int(sys.argv[2]))
"""


def test_oom_score_adj_of_others_takes_exactly_the_capability_that_mitigation_adds() -> None:
    """Set and put back; negative values: vm/test_mitigation.py."""

    def other() -> None:
        workloads.drop_privileges(1000)
        ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE, as an exec does it: else its /proc files are root's

    def allowed(capabilities: Sequence[str], pid: int, value: int) -> bool:
        command = [*rights.with_capabilities(capabilities), sys.executable, "-c", _SET, str(pid), str(value)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    reporter = rights.chart_capabilities()
    with workloads.child(other) as (pid, _):
        assert not allowed(reporter, pid, 500)
        assert not allowed(rights.chart_capabilities(enforcement=True), pid, 500)
        assert not allowed([*reporter, "sys_resource"], pid, 500)
        for value in (500, 100):
            assert allowed(rights.chart_capabilities(mitigation=True), pid, value)
            assert Path(f"/proc/{pid}/oom_score_adj").read_text() == f"{value}\n"
