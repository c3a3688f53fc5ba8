"""The chart's pods in a real OCI runtime, with their own tokens, on a real API server and this machine's kernel.

Run by test_pods.py, which gives them a node of their own.
"""

import contextlib
import ctypes
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chartlab import NAMESPACE
from cluster import rights
from cluster.agentlab import REPORTS, make_node, make_pod, report_of, until
from cluster.controlplane import ApiError, ControlPlane
from cluster.imageroot import image_root
from cluster.podlab import ACCOUNT, Container, Sandbox, ran, sandbox, started
from kernel import workloads
from kernel.workloads import MIB

ENFORCING = {"enforcement": {"enabled": True}}
PORT, CONTROLLER_PORT = 9812, 8080
OFTEN = ("--interval=1", "--refresh=0.5")
EXPOSURES = "/apis/nodemem.io/v1alpha1/namespaces/{}/oomexposures"


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    with image_root() as found:
        yield found


@pytest.fixture(scope="module")
def installed() -> Iterator[ControlPlane]:
    with rights.installed() as running:
        yield running


@contextlib.contextmanager
def agent_pod(cluster: ControlPlane, node: str, values: dict[str, Any] | None = None) -> Iterator[Sandbox]:
    make_node(cluster, node)
    with sandbox(cluster, rights.pod_of(cluster, "DaemonSet", "nodemem-agent", node, values)) as box:
        yield box


@pytest.fixture(scope="module")
def reporting(installed: ControlPlane) -> Iterator[Sandbox]:
    with agent_pod(installed, "node-looks") as box:
        yield box


@pytest.fixture(scope="module")
def enforcing(installed: ControlPlane) -> Iterator[Sandbox]:
    """For commands in the place of an enforcing agent."""
    with agent_pod(installed, "node-commands", ENFORCING) as box:
        yield box


def tell_status(cluster: ControlPlane, box: Sandbox, container: Container) -> None:
    """What the kubelet says of a pod that runs."""
    name = box.pod["spec"]["containers"][0]["name"]
    entry = {
        "name": name,
        "containerID": f"containerd://{container.id}",
        "image": "nodemem",
        "imageID": "nodemem",
        "ready": True,
        "restartCount": 0,
        "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
    }
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{box.pod['metadata']['name']}/status"
    cluster.request("PATCH", path, {"status": {"phase": "Running", "containerStatuses": [entry]}})


def status_of(cluster: ControlPlane, node: str) -> dict[str, Any]:
    return (report_of(cluster, node) or {}).get("status", {})


# The agent


def test_the_reporters_pod_publishes_what_this_machine_and_its_containers_hold(
    installed: ControlPlane, root: Path
) -> None:
    node, container_id = "node-reporter", secrets.token_hex(32)
    with contextlib.ExitStack() as stack:
        box = stack.enter_context(agent_pod(installed, node))
        pod = make_pod(installed, "default", "web-0", node, [("app", container_id)], request="1Gi")
        place = stack.enter_context(workloads.container_cgroup(pod["metadata"]["uid"], container_id))
        held = stack.enter_context(workloads.tmpfs(96 * MIB, limit=128 * MIB, cgroup=place))
        agent = stack.enter_context(started(box, root, args=OFTEN))
        tell_status(installed, box, agent)

        def named() -> dict[str, Any] | None:
            status = status_of(installed, node)
            names = {each.get("podName") for each in status.get("containers", ())}
            return status if {"web-0", box.pod["metadata"]["name"]} <= names else None

        # On a slow machine the first report may be older than the list of pods: names that come late are written soon.
        status = until(named, "a report with both pods", 90)
        assert "nodemem_agent_pods 2" in box.get("/metrics", PORT)[1]
        assert status["memory"]["totalBytes"] == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        entry = next(each for each in status["tmpfs"] if each["device"] == held.device)
        assert entry["usedBytes"] == 96 * MIB
        assert (entry["owner"]["podNamespace"], entry["owner"]["podName"]) == ("default", "web-0")
        own = next(each for each in status["containers"] if each["id"] == agent.id)
        assert (own["podNamespace"], own["name"], own["qos"]) == (NAMESPACE, "agent", "Burstable")
        assert own["limitBytes"] == 128 * MIB
        assert own["oomScoreAdj"]["expected"] == -997, "a node-critical pod, whatever it requests"
        complete = next(each for each in status["conditions"] if each["type"] == "Complete")
        assert complete["reason"] != "Unreadable" or "Permission denied" not in complete["message"]
        assert box.get("/healthz", PORT)[0] == box.get("/readyz", PORT)[0] == 200
        assert f'nodemem_tmpfs_used_bytes{{device="{held.device}"' in box.get("/metrics", PORT)[1]
        assert [each for each in agent.log() if each.get("level") not in ("info", None)] == []
        assert int(agent.status("CapEff"), 16).bit_count() == len(rights.chart_capabilities())
        assert agent.status("Uid").split() == ["0"] * 4
        assert agent.status("Seccomp") == "2"
        assert agent.status("NoNewPrivs") == "1"
    owner = installed.request("GET", f"{REPORTS}/{node}")["metadata"]["ownerReferences"][0]
    assert (owner["kind"], owner["name"]) == ("Node", node)


def test_told_to_end_the_pod_ends_at_once(installed: ControlPlane, root: Path) -> None:
    with agent_pod(installed, "node-ends") as box, started(box, root, args=OFTEN) as agent:
        until(lambda: box.get("/readyz", PORT)[0] == 200, "ready", 60)
        os.kill(agent.pid, 15)
        assert agent.wait(10) == 0
        assert agent.log()[-1]["message"] == "agent stopped"


def test_the_enforcers_pod_resizes_another_pods_shared_memory_and_gives_it_back(
    installed: ControlPlane, root: Path
) -> None:
    node = "node-enforcer"

    def limits(*entries: dict[str, Any]) -> None:
        spec = {"apiVersion": "nodemem.io/v1alpha1", "kind": "MemoryReport", "metadata": {"name": node}}
        installed.apply(spec | {"spec": {"tmpfsLimits": list(entries)}}, manager="nodemem-controller")

    with contextlib.ExitStack() as stack:
        box = stack.enter_context(agent_pod(installed, node, ENFORCING))
        make_pod(installed, "default", "shm-0", node, [("app", secrets.token_hex(32))], request="1Gi")
        pod = installed.request("GET", "/api/v1/namespaces/default/pods/shm-0")
        shm = stack.enter_context(sandbox(installed, pod)).shm
        stack.enter_context(started(box, root, args=OFTEN))

        def size() -> int:
            found = os.statvfs(shm)
            return found.f_blocks * found.f_frsize

        def said(place: Path) -> str:
            found = status_of(installed, node).get("limits", ())
            return next(
                (f"{each['state']} {each.get('reason')}" for each in found if each["mountPoint"] == str(place)), ""
            )

        until(lambda: report_of(installed, node), "a report", 60)
        wanted = {"scope": "SharedMemory", "adjust": "Grow", "mode": "Enforce", "sizeBytes": 128 * MIB, "policy": "shm"}
        limits({**wanted, "mountPoint": str(shm)}, {**wanted, "mountPoint": str(box.shm)})
        # Written at most twice a minute, and the size found is on record before the change.
        until(lambda: size() == 128 * MIB, "the change", 120)
        assert said(box.shm) == "Failed OwnNamespace"
        assert os.statvfs(box.shm).f_blocks * os.statvfs(box.shm).f_frsize == 64 * MIB, "its own is left alone"
        options = next(line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(shm) in line)
        assert "nosuid,nodev,noexec" in options
        limits()
        until(lambda: size() == 64 * MIB, "its own size again", 90)


def test_the_token_in_the_pod_is_the_kubelets_and_a_new_one_is_taken_up(installed: ControlPlane, root: Path) -> None:
    """Both tokens are bound to the pod. The first is made void by a pod of the same name in its place."""
    node = "node-token"
    with agent_pod(installed, node) as box, started(box, root, args=OFTEN) as agent:
        (volume,) = box.volumes.values()
        assert sorted(each.name for each in volume.iterdir()) == ["ca.crt", "namespace", "token"]
        until(lambda: report_of(installed, node), "a report", 60)
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{box.pod['metadata']['name']}"
        installed.request("DELETE", path, {"gracePeriodSeconds": 0})
        again = rights.pod_of(installed, "DaemonSet", "nodemem-agent", node)
        token = installed.service_account_token(NAMESPACE, "nodemem-agent", pod=again)
        (volume / "token").write_text(token)
        before = installed.request("GET", f"{REPORTS}/{node}")["metadata"]["resourceVersion"]
        installed.request("DELETE", f"{REPORTS}/{node}")

        def back() -> bool:
            found = report_of(installed, node)
            return found is not None and found["metadata"]["resourceVersion"] != before

        until(back, "the report written with the new token", 60)
        assert refusals(box)
        assert [each for each in agent.log() if each.get("level") == "warning"] == []


def refusals(box: Sandbox) -> bool:
    series = 'status="4xx"}'
    lines = box.get("/metrics", PORT)[1].splitlines()
    return any(series in each and float(each.rpartition(" ")[2]) > 0 for each in lines)


# The controller


def test_the_controllers_pod_flags_an_exposed_pod_as_nobody_with_nothing(installed: ControlPlane, root: Path) -> None:
    node, container_id = "node-exposed", secrets.token_hex(32)

    def hold(size: int, adj: int) -> Any:
        def setup() -> None:
            Path("/proc/self/oom_score_adj").write_text(str(adj))
            workloads._keep.append(bytearray(b"x") * size)

        return setup

    with contextlib.ExitStack() as stack:
        box = stack.enter_context(agent_pod(installed, node))
        pod = make_pod(installed, "default", "pay-0", node, [("pay", container_id)], request="128Mi", guaranteed=True)
        uid = pod["metadata"]["uid"]
        place = stack.enter_context(workloads.container_cgroup(uid, container_id, qos="Guaranteed", limit=128 * MIB))
        stack.enter_context(workloads.child(hold(80 * MIB, 0), place))
        stack.enter_context(workloads.child(hold(2 * MIB, 999), place))
        stack.enter_context(started(box, root, args=OFTEN))
        template = rights.pod_of(installed, "Deployment", "nodemem-controller", node)
        office = stack.enter_context(sandbox(installed, template))
        controller = stack.enter_context(started(office, root, args=["--resync=2"]))

        def flagged() -> dict[str, Any] | None:
            with contextlib.suppress(ApiError):
                found: dict[str, Any] = installed.request("GET", f"{EXPOSURES.format('default')}/pay-0")
                return found if "status" in found else None
            return None

        assert until(flagged, "the exposure", 90)["status"]["reasons"] == ["SkewedAdj"]
        lease = installed.request(
            "GET", f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/nodemem-controller"
        )
        assert lease["spec"]["holderIdentity"].startswith(template["metadata"]["name"])
        assert controller.status("Uid").split() == ["65532"] * 4
        assert {int(controller.status(each), 16) for each in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {0}
        assert controller.status("Seccomp") == "2"
        assert office.get("/readyz", CONTROLLER_PORT)[0] == 200
        os.kill(controller.pid, 15)
        assert controller.wait(20) == 0


# What a pod can't do


def test_the_root_is_read_only_and_nothing_of_the_host_is_mounted(enforcing: Sandbox, root: Path) -> None:
    code = """
import json, os
def written(path):
    try:
        open(path + "/x", "w").close()
        return True
    except OSError as error:
        return error.strerror
mounts = [line.split() for line in open("/proc/self/mountinfo")]
print(json.dumps({
    "written": {each: written(each) for each in ("/", "/opt/nodemem", "/tmp", "%s")},
    "mounts": {words[4]: words[words.index("-") + 1] for words in mounts},
}))
"""
    done = ran(enforcing, root, "python", "-I", "-c", code % ACCOUNT)
    assert done.returncode == 0, done.stdout
    found = json.loads(done.stdout)
    assert set(found["written"].values()) == {"Read-only file system"}
    own = {"/", "/proc", "/dev", "/dev/pts", "/dev/mqueue", "/dev/shm", "/sys", "/sys/fs/cgroup"}
    disk = {
        each for each, kind in found["mounts"].items() if kind in ("ext4", "xfs", "btrfs", "overlay", "9p", "virtiofs")
    }
    assert disk == {"/"}
    others = {
        each
        for each in found["mounts"]
        if each not in own and not each.startswith(("/proc/", "/sys/", "/dev/")) and "serviceaccount" not in each
    }
    assert others == set()


# Each capability is needed, and for what


PROGRAM = """
import json, subprocess, sys
from nodemem.kernel import kmsg
from nodemem.kernel.host import Host

def nodemem(*words):
    return subprocess.run([sys.executable, "-I", "-m", "nodemem", *words], capture_output=True, text=True)

devices, size = sys.argv[1:3], sys.argv[3]
report = nodemem("report", "-o", "json", "--no-history", "--all")
if report.returncode:
    sys.exit(report.stderr)
try:
    kmsg.Follower(Host()).close()
    log = True
except OSError:
    log = False
resized = [nodemem("tmpfs", "resize", each, size).returncode == 0 for each in devices]
print(json.dumps({"status": json.loads(report.stdout)["status"], "log": log, "resized": resized}))
"""

MEASURE = "the size of a container's tmpfs"
FILES = "the files in a tmpfs of mode 0700"
MAPPED = "the size of shared memory that is mapped and nowhere open"
OPEN = "memfds that are open and not mapped"
LOG = "the kernel's log"
RESIZE = "a container's tmpfs resized"
COVERED = "a covered tmpfs resized"

REPORTER = {
    "SYS_PTRACE": {MEASURE, FILES, MAPPED, OPEN},
    "DAC_READ_SEARCH": {FILES, MAPPED, OPEN},
    "CHECKPOINT_RESTORE": {MAPPED},
    "SYSLOG": {LOG},
}
ENFORCER = {
    "SYS_PTRACE": {MEASURE, FILES, MAPPED, OPEN, RESIZE, COVERED},
    "DAC_READ_SEARCH": {FILES, MAPPED, OPEN},
    "SYSLOG": {LOG},
    "SYS_ADMIN": {MAPPED, RESIZE, COVERED},
    "SYS_CHROOT": {COVERED},
}
"""What doesn't work without each capability. SYS_ADMIN opens what CHECKPOINT_RESTORE does, and more."""


@contextlib.contextmanager
def others() -> Iterator[tuple[int, list[str]]]:
    """Other users' memory: a tmpfs of mode 0700 in another mount namespace, a covered one there, memfds. The process
    with the tmpfs, and the device numbers of both."""

    def mounts() -> list[str]:
        workloads.unshare(workloads.CLONE_NEWNS)
        workloads.mount("x", "/mnt", "tmpfs", 0, "size=64m,mode=0700,uid=1000")
        workloads.fill("/mnt/big-one", 24 * MIB)
        workloads.mount("x", "/media", "tmpfs", 0, "size=64m")
        devices = [workloads.device_of(os.stat(each)) for each in ("/mnt", "/media")]
        workloads.mount("x", "/media", "tmpfs", 0, "size=1m")
        workloads.drop_privileges(1000)
        return devices

    def anonymous() -> None:
        workloads.drop_privileges(1001)
        ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE, which changing the user took
        # Mapped and not touched: nothing of it is in the process's RSS. No descriptor is left.
        mapped = os.memfd_create("nodemem-mapped")
        workloads.fill_fd(mapped, 24 * MIB)
        workloads._map_and_close(mapped, 24 * MIB, touch=False)
        opened = os.memfd_create("nodemem-opened")
        workloads.fill_fd(opened, 24 * MIB)
        workloads._keep.append(opened)

    with workloads.child(mounts) as (pid, devices), workloads.child(anonymous):
        yield pid, devices


def works(box: Sandbox, root: Path, pid: int, devices: list[str], size: int, without: str | None) -> set[str]:
    """Of what is looked at, with the enforcer's capabilities but one."""
    command = ["python", "-I", "-c", PROGRAM, *devices, f"{size}Mi"]
    done = ran(box, root, *command, without=[without] if without else [])
    assert done.returncode == 0, done.stdout
    found = json.loads(done.stdout)
    status = found["status"]
    (entry,) = [each for each in status["tmpfs"] if each["device"] == devices[0]] or [{}]
    objects = {each["name"]: each["bytes"] for each in status["shmem"]["objects"]}
    usage = os.statvfs(f"/proc/{pid}/root/mnt")
    assert found["resized"][0] == (usage.f_blocks * usage.f_frsize == size * MIB)
    looked_at = {
        MEASURE: entry.get("usedBytes") == 24 * MIB,
        FILES: [each["path"].rpartition("/")[2] for each in entry.get("largest", ())] == ["big-one"],
        MAPPED: objects.get("/memfd:nodemem-mapped") == 24 * MIB,
        OPEN: objects.get("/memfd:nodemem-opened") == 24 * MIB,
        LOG: found["log"],
        RESIZE: found["resized"][0],
        COVERED: found["resized"][1],
    }
    return {name for name, does in looked_at.items() if does}


@pytest.mark.parametrize("role", ["reporter", "enforcer"])
def test_no_capability_can_go_and_each_opens_what_the_docs_say(
    enforcing: Sandbox, reporting: Sandbox, root: Path, role: str
) -> None:
    box, expected = (enforcing, ENFORCER) if role == "enforcer" else (reporting, REPORTER)
    granted = [each.upper() for each in rights.chart_capabilities(enforcement=role == "enforcer")]
    assert set(granted) == set(expected)
    with others() as (pid, devices):
        everything = works(box, root, pid, devices, 48, None)
        assert everything == set.union(*expected.values())
        lost = {
            each: everything - works(box, root, pid, devices, 47 - number, each) for number, each in enumerate(granted)
        }
    assert lost == expected
