"""Pods as a node runs them: the part of a kubelet and of containerd that starts a pod of the API server in runc.

User, capabilities, seccomp, read-only root, the projected token, environment, namespaces, cgroups, memory limit and
oom_score_adj come from the pod as the server stored it, nothing else does. What is not a node's: AppArmor, SELinux, a
network outside of the pod; the API server alone is reached, at the address that pods are told (10.96.0.1).
"""

import contextlib
import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cluster.agentlab import Proxy
from cluster.controlplane import ControlPlane
from cluster.seccomp import profile
from debian import ensure
from kernel import workloads

T = TypeVar("T")
Object = dict[str, Any]

SERVICE = ("10.96.0.1", 443)
"""Of `kubernetes.default`: the first address of the control plane's service range, and in its certificate."""
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_SANDBOXES = Path("/run/containerd/io.containerd.grpc.v1.cri/sandboxes")
_CLONE_NEWNET, _CLONE_NEWUTS = 0x40000000, 0x04000000
_libc = ctypes.CDLL(None, use_errno=True)

# As containerd's: oci/spec.go and cri.
_MASKED = ("acpi", "asound", "kcore", "keys", "latency_stats", "timer_list", "timer_stats", "sched_debug", "scsi")
_READ_ONLY = ("bus", "fs", "irq", "sys", "sysrq-trigger")
_NO = ["nosuid", "noexec", "nodev"]
_MOUNTS = [
    {"destination": "/proc", "type": "proc", "source": "proc", "options": _NO},
    {
        "destination": "/dev",
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
    },
    {
        "destination": "/dev/pts",
        "type": "devpts",
        "source": "devpts",
        "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
    },
    {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": _NO},
    {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*_NO, "ro"]},
    {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": [*_NO, "relatime", "ro"]},
]


@dataclass
class Sandbox:
    """A pod's network, IPC and /dev/shm, held by its pause process, with the way to the API server."""

    pod: Object
    pause: int
    cgroup: str
    """Of the pod, in every hierarchy."""
    volumes: dict[str, Path]
    """Where each volume is on the node."""
    shm: Path
    """The tmpfs of the pod's containers, on the node."""
    proxy: Proxy
    containers: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def inside(self, work: Callable[[], T]) -> T:
        """``work()`` in the pod's network, by a thread of its own."""
        answer: list[T] = []
        failure: list[BaseException] = []

        def run() -> None:
            try:
                with open(f"/proc/{self.pause}/ns/net", "rb") as namespace:
                    workloads._check(_libc.setns(namespace.fileno(), _CLONE_NEWNET), "setns")
                answer.append(work())
            except BaseException as error:  # noqa: BLE001 - it is raised again below
                failure.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return answer[0]

    def get(self, path: str, port: int) -> tuple[int, str]:
        """As the kubelet probes and Prometheus scrapes; 0 where nobody listens."""

        def ask() -> tuple[int, str]:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.read().decode()
            except OSError:
                return 0, ""

        return self.inside(ask)


class Container:
    """A container that runs, or has ended."""

    def __init__(self, name: str, directory: Path, process: "subprocess.Popen[bytes]") -> None:
        self.id = name
        self._directory = directory
        self.process = process

    @property
    def pid(self) -> int:
        """Of its first process, in the node's numbers."""
        deadline = time.monotonic() + 30
        file = self._directory / "pid"
        while not (file.exists() and file.read_text()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the container did not start:\n{self.text()}")
            time.sleep(0.02)
        return int(file.read_text())

    def text(self) -> str:
        """What it wrote, to both streams."""
        return (self._directory / "log").read_text(errors="replace")

    def log(self) -> list[Object]:
        """The lines that are JSON objects."""
        found = []
        for line in self.text().splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return [each for each in found if isinstance(each, dict)]

    def wait(self, seconds: float = 60) -> int:
        """Its exit code."""
        return self.process.wait(seconds)

    def status(self, field_: str) -> str:
        """Of /proc/<pid>/status."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{field_}:"):
                return line.split(None, 1)[1]
        raise LookupError(field_)


@contextlib.contextmanager
def sandbox(cluster: ControlPlane, pod: Object) -> Iterator[Sandbox]:
    """Everything of a pod that is there before its containers; nothing of it is left at the end."""
    uid = pod["metadata"]["uid"]
    level = {"Guaranteed": "", "Burstable": "burstable", "BestEffort": "besteffort"}[pod["status"]["qosClass"]]
    top = f"nodemem-pods-{os.getpid()}-{secrets.token_hex(3)}"
    parts = [top, "kubepods", *([level] if level else []), f"pod{uid}"]

    with contextlib.ExitStack() as stack:
        stack.callback(_remove_cgroups, top)
        place = stack.enter_context(workloads.memory_cgroup("/".join([*parts, secrets.token_hex(32)])))
        directory = Path(stack.enter_context(workloads.directory()))
        volumes = {
            each["name"]: stack.enter_context(_projected(cluster, pod, each, directory / "pods" / uid / "volumes"))
            for each in pod["spec"].get("volumes", ())
        }
        shm = _SANDBOXES / secrets.token_hex(32) / "shm"
        stack.callback(_remove_empty, shm)
        shm.mkdir(parents=True)
        workloads.mount("shm", str(shm), "tmpfs", 14, "mode=1777,size=65536k")  # MS_NOSUID, MS_NODEV, MS_NOEXEC
        stack.callback(workloads.umount, str(shm), workloads.MNT_DETACH)

        def pause() -> None:
            workloads.unshare(workloads.CLONE_NEWNS | workloads.CLONE_NEWIPC | _CLONE_NEWNET | _CLONE_NEWUTS)
            workloads.mount(str(shm), "/dev/shm", None, workloads.MS_BIND)
            socket.sethostname(pod["metadata"]["name"])

        pid, _ = stack.enter_context(workloads.child(pause, place))
        for words in ("link set lo up", f"address add {SERVICE[0]}/32 dev lo"):
            command = [ensure("nsenter", "util-linux"), f"--net=/proc/{pid}/ns/net", ensure("ip", "iproute2")]
            subprocess.run([*command, *words.split()], check=True)
        found = Sandbox(pod, pid, "/" + "/".join(parts), volumes, shm, None)  # type: ignore[arg-type]
        listener = found.inside(lambda: socket.create_server(SERVICE))
        found.proxy = stack.enter_context(Proxy(cluster, listener=listener))
        stack.enter_context(found.containers)
        yield found


@contextlib.contextmanager
def started(
    box: Sandbox,
    root: Path,
    *,
    command: Sequence[str] | None = None,
    args: Sequence[str] = (),
    without: Sequence[str] = (),
) -> Iterator[Container]:
    """The pod's only container with ``root`` as its image. ``command`` instead of the pod's; ``args`` after the pod's
    own; ``without``: capabilities that it doesn't get."""
    runtime = ensure("runc", "runc")
    name = secrets.token_hex(32)
    with contextlib.ExitStack() as stack:
        bundle = Path(tempfile.mkdtemp(prefix="nodemem-bundle-"))
        stack.callback(shutil.rmtree, bundle)
        config = _config(box, root, f"{box.cgroup}/{name}", command, args, set(without))
        (bundle / "config.json").write_text(json.dumps(config))
        state = ["--root", str(bundle / "state")]
        # However this process ends, the container ends: the shell sees the end of its input.
        end = " ".join(["read line;", "exec", runtime, *state, "delete", "--force", name])
        with (bundle / "log").open("wb") as log:
            process = subprocess.Popen(
                [runtime, *state, "run", f"--bundle={bundle}", f"--pid-file={bundle / 'pid'}", name],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        undertaker = subprocess.Popen(
            ["sh", "-c", end], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        container = Container(name, bundle, process)
        try:
            yield container
        except BaseException as error:
            error.add_note(f"the container said:\n{container.text()[-4000:]}")
            raise
        finally:
            undertaker.communicate(b"\n")
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            process.wait()


def ran(box: Sandbox, root: Path, *command: str, without: Sequence[str] = ()) -> "subprocess.CompletedProcess[str]":
    """``command`` in the container's place, to its end."""
    with started(box, root, command=command, without=without) as container:
        code = container.wait()
        return subprocess.CompletedProcess(list(command), code, container.text())


def _config(
    box: Sandbox,
    root: Path,
    cgroup: str,
    command: Sequence[str] | None,
    args: Sequence[str],
    without: set[str],
) -> Object:
    spec = box.pod["spec"]
    (container,) = spec["containers"]
    context = {**(spec.get("securityContext") or {}), **(container.get("securityContext") or {})}
    user, group = context["runAsUser"], context["runAsGroup"]
    assert context["capabilities"]["drop"] == ["ALL"], "the runtime's default list is not known here"
    added = [f"CAP_{each}" for each in context["capabilities"].get("add", ()) if each not in without]
    resources = container["resources"]
    limit, request = (quantity(resources[each]["memory"]) for each in ("limits", "requests"))
    volumes = [
        {
            "destination": each["mountPath"],
            "type": "bind",
            "source": str(box.volumes[each["name"]]),
            "options": ["rbind", "rprivate", "ro" if each.get("readOnly") else "rw"],
        }
        for each in container.get("volumeMounts", ())
    ]
    shm = {"destination": "/dev/shm", "type": "bind", "source": str(box.shm), "options": ["rbind", "rprivate"]}
    namespaces = [{"type": "mount"}] + [
        {"type": kind, "path": f"/proc/{box.pause}/ns/{short}"}
        for kind, short in (("network", "net"), ("ipc", "ipc"), ("uts", "uts"))
    ]
    if not spec.get("hostPID"):
        namespaces.append({"type": "pid"})
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": user, "gid": group, "additionalGids": [context["fsGroup"]] if "fsGroup" in context else []},
            "args": list(command) if command else [*container["command"], *container["args"], *args],
            "env": _environment(box.pod, container),
            "cwd": "/",
            # What is bounding is also permitted to user 0 and to nobody else, by execve(2); there are no ambient ones.
            "capabilities": dict.fromkeys(("bounding", "permitted", "effective"), added),
            "noNewPrivileges": context.get("allowPrivilegeEscalation") is False,
            **_oom_score_adj(spec, request),
        },
        "root": {"path": str(root), "readonly": bool(context.get("readOnlyRootFilesystem"))},
        "mounts": [*_MOUNTS, shm, *volumes],
        "linux": {
            "namespaces": namespaces,
            "cgroupsPath": cgroup,
            "resources": {
                "devices": [{"allow": False, "access": "rwm"}, *_devices()],
                "memory": {"limit": limit},
            },
            "seccomp": profile(added),
            "maskedPaths": [*(f"/proc/{each}" for each in _MASKED), "/sys/firmware"],
            "readonlyPaths": [f"/proc/{each}" for each in _READ_ONLY],
        },
    }


def _oom_score_adj(spec: Object, request: int) -> Object:
    """The kubelet's, where this machine may set it: to go below 0 takes CAP_SYS_RESOURCE."""
    critical = spec.get("priorityClassName") == "system-node-critical"
    adj = -997 if critical else max(2, min(999, 1000 - 1000 * request // _node_bytes()))

    def lowered() -> bool:
        try:
            Path("/proc/self/oom_score_adj").write_text(str(adj))
        except PermissionError:
            return False
        return True

    return {"oomScoreAdj": adj} if workloads.run(lowered) else {}


def _devices() -> list[Object]:
    numbers = [(1, 3), (1, 8), (1, 7), (5, 0), (1, 5), (1, 9), (5, 1), (136, None), (5, 2)]
    return [
        {"allow": True, "type": "c", "major": major, "access": "rwm"} | ({} if minor is None else {"minor": minor})
        for major, minor in numbers
    ]


def _environment(pod: Object, container: Object) -> list[str]:
    values = {
        "PATH": "/opt/nodemem/bin:/usr/local/bin:/usr/bin:/bin",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "HOSTNAME": pod["metadata"]["name"],
        "KUBERNETES_SERVICE_HOST": SERVICE[0],
        "KUBERNETES_SERVICE_PORT": str(SERVICE[1]),
    }
    for each in container.get("env", ()):
        value: Any = each.get("value")
        if value is None:
            value = pod
            for key in each["valueFrom"]["fieldRef"]["fieldPath"].split("."):
                value = value[key]
        values[each["name"]] = value
    return [f"{name}={value}" for name, value in values.items()]


@contextlib.contextmanager
def _projected(cluster: ControlPlane, pod: Object, volume: Object, volumes: Path) -> Iterator[Path]:
    """The volume that the API server's admission adds for the account: token, authority and namespace."""
    spec = pod["spec"]
    place = volumes / "kubernetes.io~projected" / volume["name"]
    place.mkdir(parents=True)
    workloads.mount("tmpfs", str(place), "tmpfs", 0, "size=1m")
    try:
        for source in volume["projected"]["sources"]:
            for name, text in _source(cluster, pod, source):
                file = place / name
                file.write_text(text)
                # The kubelet: for the user of all containers, and readable to fsGroup.
                context = spec["securityContext"]
                os.chown(file, context["runAsUser"], context.get("fsGroup", 0))
                file.chmod(0o640 if "fsGroup" in context else 0o600)
        yield place
    finally:
        workloads.umount(str(place), workloads.MNT_DETACH)


def _source(cluster: ControlPlane, pod: Object, source: Object) -> Iterator[tuple[str, str]]:
    namespace = pod["metadata"]["namespace"]
    match source:
        case {"serviceAccountToken": wanted}:
            seconds = wanted.get("expirationSeconds", 3600)
            token = cluster.service_account_token(
                namespace, pod["spec"]["serviceAccountName"], pod=pod, seconds=seconds
            )
            yield wanted["path"], token
        case {"configMap": wanted}:
            path = f"/api/v1/namespaces/{namespace}/configmaps/{wanted['name']}"
            data = cluster.request("GET", path)["data"]
            for item in wanted["items"]:
                yield item["path"], data[item["key"]]
        case {"downwardAPI": wanted}:
            for item in wanted["items"]:
                assert item["fieldRef"]["fieldPath"] == "metadata.namespace"
                yield item["path"], namespace
        case _:
            raise AssertionError(f"a volume that nodemem's pods don't have: {source}")


def quantity(text: str) -> int:
    """Bytes of a memory quantity as the chart writes them."""
    units = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
    return int(text[:-2]) * units[text[-2:]]


def _node_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _remove_empty(place: Path) -> None:
    """The directory and those above that hold nothing else."""
    for each in (place, *place.parents):
        try:
            each.rmdir()
        except OSError:
            return


def _remove_cgroups(top: str) -> None:
    """runc makes a cgroup in each hierarchy and removes the last part of its path alone."""
    for hierarchy in Path("/sys/fs/cgroup").iterdir():
        for directory, _, _ in os.walk(hierarchy / top, topdown=False):
            workloads._remove_cgroup(Path(directory))
    for directory, _, _ in os.walk(Path("/sys/fs/cgroup") / top, topdown=False):
        workloads._remove_cgroup(Path(directory))
