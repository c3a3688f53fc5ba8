"""Constructed cgroup trees: where each runtime puts its containers, and whole hosts to replay.

``LAYOUTS`` are the paths, each with where it is known from. ``v1_host`` and ``v2_host`` make a ``ReplayHost`` of given
cgroups; others add /proc files to ``files`` before.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from nodemem.kernel.capture import ReplayHost

UID = "0125ec2f-b64a-4868-8f5b-94b56cbab864"
STATIC_UID = "187bff14cccb94f179e943eacce55bb3"
ID = "ee4b20e90ac7f42a10bd004d05646b13d8ab5e2c5e7cbc01abf8006bac016459"
NODE_ID = "d6701ec289c56e4391acb11d07474b3139466857a305490575508a8b7a9fcf22"

Qos = str
V1_UNLIMITED = b"9223372036854771712\n"


@dataclass(frozen=True)
class Layout:
    """``path(uid, id, qos)`` is a container's cgroup; ``source`` where such a path was seen."""

    name: str
    source: str
    path: Callable[[str, str, Qos], str]
    runtime: str | None


def cgroupfs_pod(uid: str, qos: Qos) -> str:
    """The kubelet's cgroupfs driver: Guaranteed pods have no level of their own."""
    return "/kubepods" + ("" if qos == "Guaranteed" else f"/{qos.lower()}") + f"/pod{uid}"


def systemd_pod(uid: str, qos: Qos, prefix: str = "") -> str:
    """The kubelet's systemd driver: slices named after their ancestors, "_" for "-" in the uid."""
    parts = [part for part in prefix.split("-") if part] + ["kubepods"]
    parts += [] if qos == "Guaranteed" else [qos.lower()]
    parts.append("pod" + uid.replace("-", "_"))
    return "".join(f"/{'-'.join(parts[: n + 1])}.slice" for n in range(len(parts)))


def _scope(prefix: str, root: str = "", slices: str = "") -> Callable[[str, str, Qos], str]:
    return lambda uid, id, qos: f"{root}{systemd_pod(uid, qos, slices)}/{prefix}-{id}.scope"


def _plain(root: str = "", prefix: str = "") -> Callable[[str, str, Qos], str]:
    return lambda uid, id, qos: f"{root}{cgroupfs_pod(uid, qos)}/{prefix}{id}"


LAYOUTS = [
    Layout("containerd or Docker, cgroupfs", "containerd/containerd#4857; k3s and Talos too", _plain(), None),
    Layout(
        "containerd, systemd (Bottlerocket, EKS, kubeadm)",
        "netdata/netdata#4868",
        _scope("cri-containerd"),
        "containerd",
    ),
    Layout("CRI-O, systemd", "opencontainers/runc#4620", _scope("crio"), "cri-o"),
    Layout("CRI-O, cgroupfs", "the crio- prefix of its cgroupfs manager", _plain(prefix="crio-"), "cri-o"),
    Layout(
        "Docker, systemd", "kontena/pharos-cluster#440; OOM reports in istio/istio#42734", _scope("docker"), "docker"
    ),
    Layout("kind before 0.14, cgroup v1", "kind's --cgroup-root=/kubelet", _plain(f"/docker/{NODE_ID}/kubelet"), None),
    Layout("kind, cgroup v2", "kubernetes-sigs/kind#3947", _scope("cri-containerd", slices="kubelet"), "containerd"),
    Layout(
        "kind, seen from the machine it runs on",
        "the same below Docker's scope",
        _scope("cri-containerd", f"/system.slice/docker-{NODE_ID}.scope", "kubelet"),
        "containerd",
    ),
    Layout("minikube on Docker with CRI-O", "kubernetes/minikube#11280", _scope("crio", f"/docker/{NODE_ID}"), "cri-o"),
    Layout("k3d", "k3s in Docker", _plain(f"/docker/{NODE_ID}"), None),
    Layout(
        "a kubelet with systemd names, a runtime without",
        "kubernetes/kubernetes#36807",
        lambda uid, id, qos: f"{systemd_pod(uid, qos)}/{id}",
        None,
    ),
    Layout(
        "systemd path given to containerd's cgroupfs driver, under its service",
        "open-telemetry/opentelemetry-java#4507",
        lambda uid, id, qos: (
            f"/system.slice/containerd.service/{systemd_pod(uid, qos).rpartition('/')[2]}:cri-containerd:{id}"
        ),
        "containerd",
    ),
    Layout(
        "the same, in hierarchies that systemd leaves alone",
        "open-telemetry/opentelemetry-java#4507",
        lambda uid, id, qos: f"/{systemd_pod(uid, qos).rpartition('/')[2]}:cri-containerd:{id}",
        "containerd",
    ),
    Layout("--cgroup-root=/custom, cgroupfs", "the kubelet's option", _plain("/custom"), None),
    Layout(
        "systemd inside of the container",
        "its own tree below",
        lambda u, i, q: f"{_scope('crio')(u, i, q)}/init.scope",
        "cri-o",
    ),
    Layout(
        "crun's and podman's inner cgroup",
        "containers/crun#678",
        lambda u, i, q: f"{_scope('crio')(u, i, q)}/container",
        "cri-o",
    ),
    Layout(
        "Docker in a pod",
        "a container in a container",
        lambda u, i, q: f"{_scope('cri-containerd')(u, i, q)}/docker/{NODE_ID}",
        "containerd",
    ),
]

# path -> (container id, runtime): containers without Kubernetes.
PLAIN_CONTAINERS = {
    f"/docker/{ID}": "docker",
    f"/system.slice/docker-{ID}.scope": "docker",
    f"/{ID}": None,  # Docker on Debian 7, neuvector/neuvector share/system/cgroup_test.go
    f"/machine.slice/libpod-{ID}.scope": "podman",
    f"/machine.slice/libpod-{ID}.scope/container": "podman",
    f"/machine.slice/machine-libpod_pod_{NODE_ID}.slice/libpod-{ID}.scope/container": "podman",
    f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope": "podman",
    f"/srv.slice/web.service/libpod-payload-{ID}": "podman",  # --cgroups=split, podman#13673
    f"/libpod_parent/libpod-{ID}": "podman",
    f"/default/{ID}": "containerd",
    f"/system.slice/nerdctl-{ID}.scope": "containerd",
    f"/system.slice/system-getty.slice/cri-containerd-{ID}.scope": "containerd",  # crictl, containerd/cri#290
    f"/docker/{ID}/system.slice/kubelet.service": "docker",  # a kind node's own daemons
    f"/ecs/0d4a/{ID}": None,
}


@dataclass
class Figures:
    """What one constructed cgroup holds; None leaves the file or line out."""

    usage: int | None = 1 << 20
    limit: int | None = None
    anon: int = 600_000
    file: int = 300_000
    shmem: int = 100_000
    swap: int = 0
    kernel: int | None = 50_000
    procs: list[int] = field(default_factory=list)
    oom: int = 0
    oom_kill: int = 0
    oom_group: bool = False
    stat: Mapping[str, int] = field(default_factory=dict)
    """More lines of memory.stat."""


def v2_files(directory: str, cgroups: Mapping[str, Figures], swap: bool = True) -> dict[str, bytes]:
    """The files of a v2 tree as kernel 6.x has them; the root has no current, max or events."""
    files = {}
    for path, held in cgroups.items():
        place = directory + ("" if path == "/" else path)
        lines = {"anon": held.anon, "file": held.file}
        lines |= {} if held.kernel is None else {"kernel": held.kernel}
        lines |= {"kernel_stack": 16384, "pagetables": 8192, "percpu": 1024, "sock": 0, "shmem": held.shmem}
        lines |= {"slab_reclaimable": 9000, "slab_unreclaimable": 1000, "slab": 10000, **held.stat}
        files[f"{place}/memory.stat"] = _lines(lines)
        files[f"{place}/cgroup.procs"] = b"".join(b"%d\n" % pid for pid in held.procs)
        files[f"{place}/cgroup.controllers"] = b"cpuset cpu io memory pids\n"
        if path == "/":
            continue
        if held.usage is not None:
            files[f"{place}/memory.current"] = b"%d\n" % held.usage
        files[f"{place}/memory.max"] = b"max\n" if held.limit is None else b"%d\n" % held.limit
        files[f"{place}/memory.high"] = b"max\n"
        if swap:
            files[f"{place}/memory.swap.current"] = b"%d\n" % held.swap
            files[f"{place}/memory.swap.max"] = b"0\n"
        events = {"low": 0, "high": 0, "max": 9, "oom": held.oom, "oom_kill": held.oom_kill, "oom_group_kill": 0}
        files[f"{place}/memory.events"] = _lines(events)
        files[f"{place}/memory.events.local"] = _lines({**events, "oom": 0, "oom_kill": 0})
        files[f"{place}/memory.oom.group"] = b"%d\n" % held.oom_group
    return files


def v1_files(directory: str, cgroups: Mapping[str, Figures], unlimited: bytes = V1_UNLIMITED) -> dict[str, bytes]:
    """The files of a v1 memory tree. The plain lines of memory.stat are made smaller than the total_ ones."""
    files = {}
    for path, held in cgroups.items():
        place = directory + ("" if path == "/" else path)
        above = [cgroups[each].limit for each in cgroups if path == each or path.startswith(each.rstrip("/") + "/")]
        hierarchical = min((limit for limit in above if limit is not None), default=int(unlimited))
        files[f"{place}/memory.stat"] = _lines(
            {
                "cache": 1,
                "rss": 2,
                "rss_huge": 0,
                "shmem": 3,
                "mapped_file": 0,
                "swap": 0,
                "hierarchical_memory_limit": hierarchical,
                "total_cache": held.file,
                "total_rss": held.anon,
                "total_rss_huge": 0,
                "total_shmem": held.shmem,
                "total_mapped_file": 0,
                "total_swap": held.swap,
                **held.stat,
            }
        )
        files[f"{place}/cgroup.procs"] = b"".join(b"%d\n" % pid for pid in held.procs)
        if held.usage is not None:
            files[f"{place}/memory.usage_in_bytes"] = b"%d\n" % held.usage
        files[f"{place}/memory.limit_in_bytes"] = unlimited if held.limit is None else b"%d\n" % held.limit
        files[f"{place}/memory.memsw.limit_in_bytes"] = unlimited
        files[f"{place}/memory.kmem.usage_in_bytes"] = b"%d\n" % (held.kernel or 0)
        files[f"{place}/memory.oom_control"] = _lines(
            {"oom_kill_disable": 0, "under_oom": 0, "oom_kill": held.oom_kill}
        )
        files[f"{place}/memory.swappiness"] = b"60\n"
    return files


V2_MOUNTINFO = b"30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTINFO = b"""\
31 23 0:25 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:4 - tmpfs tmpfs ro,mode=755
32 31 0:26 / /sys/fs/cgroup/systemd rw,relatime shared:5 - cgroup cgroup rw,xattr,name=systemd
33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:6 - cgroup cgroup rw,cpu,cpuacct
34 31 0:33 / /sys/fs/cgroup/memory rw,relatime shared:7 - cgroup cgroup rw,memory
"""
HYBRID_MOUNTINFO = V1_MOUNTINFO + b"35 31 0:40 / /sys/fs/cgroup/unified rw,relatime shared:8 - cgroup2 cgroup2 rw\n"


def v2_host(
    cgroups: Mapping[str, Figures], files: Mapping[str, bytes] | None = None, *, swap: bool = True
) -> ReplayHost:
    """A v2 machine as its init sees it."""
    tree = v2_files("/proc/1/root/sys/fs/cgroup", cgroups, swap)
    return ReplayHost({"/proc/1/mountinfo": V2_MOUNTINFO, **tree, **(files or {})})


def v1_host(
    cgroups: Mapping[str, Figures],
    files: Mapping[str, bytes] | None = None,
    *,
    mountinfo: bytes = V1_MOUNTINFO,
    unlimited: bytes = V1_UNLIMITED,
) -> ReplayHost:
    """A v1 (or, with ``HYBRID_MOUNTINFO``, hybrid) machine as its init sees it."""
    tree = v1_files("/proc/1/root/sys/fs/cgroup/memory", cgroups, unlimited)
    return ReplayHost({"/proc/1/mountinfo": mountinfo, **tree, **(files or {})})


def kubernetes_node(layout: Layout, limits: Mapping[Qos, int | None]) -> dict[str, Figures]:
    """One pod of each QoS class with a sandbox and a container, and every cgroup above them."""
    tree = {"/": Figures(usage=None)}
    for number, (qos, limit) in enumerate(limits.items(), start=1):
        for kind in "ab":
            uid = f"{number:08x}{UID[8:]}"
            path = layout.path(uid, f"{number:063x}{kind}", qos)
            steps = path.strip("/").split("/")
            for depth in range(1, len(steps)):
                tree.setdefault("/" + "/".join(steps[:depth]), Figures())
            tree[path] = Figures(limit=limit, procs=[number * 100 + (kind == "b")])
    return tree


def _lines(values: Mapping[str, int]) -> bytes:
    return "".join(f"{key} {value}\n" for key, value in values.items()).encode()
