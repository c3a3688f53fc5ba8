"""Claims about node/owners: every runtime's cgroup paths; mount points as kubelets, runtimes and systemd make them."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cgrouptrees import ID, LAYOUTS, NODE_ID, PLAIN_CONTAINERS, STATIC_UID, UID, Layout, cgroupfs_pod, systemd_pod
from nodemem.kernel.mounts import MountPoint, Superblock
from nodemem.node.owners import (
    ContainerRef,
    KernelRef,
    Owner,
    PodRef,
    ServiceRef,
    TmpfsOwner,
    classify,
    is_sandbox,
    parse_cgroup,
    process_owner,
)

HOST, POD_NS, OTHER_NS = 4026531841, 4026532500, 4026532600
QOS = ("Guaranteed", "Burstable", "BestEffort")
uuids = st.uuids().map(str)
static_uids = st.text("0123456789abcdef", min_size=32, max_size=32)
ids = st.text("0123456789abcdef", min_size=64, max_size=64)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
@given(uid=uuids | static_uids, id=ids, qos=st.sampled_from(QOS))
@example(uid=STATIC_UID, id=ID, qos="Burstable")
def test_a_container_s_path_gives_back_its_pod_its_id_and_its_class(
    layout: Layout, uid: str, id: str, qos: str
) -> None:
    assert parse_cgroup(layout.path(uid, id, qos)) == ContainerRef(id, layout.runtime, uid, qos)  # type: ignore[arg-type]


@pytest.mark.parametrize("pod", [cgroupfs_pod, systemd_pod, lambda uid, qos: systemd_pod(uid, qos, "kubelet")])
@pytest.mark.parametrize("uid", [UID, STATIC_UID])
@pytest.mark.parametrize("qos", QOS)
def test_a_pod_s_own_cgroup_is_the_pod_and_no_container(pod: Callable[[str, str], str], uid: str, qos: str) -> None:
    assert parse_cgroup(pod(uid, qos)) == PodRef(uid, qos)  # type: ignore[arg-type]


def test_a_pod_slice_as_long_as_a_container_id_is_not_taken_for_one() -> None:
    name = f"kubepods-burstable-pod{UID}.slice"
    assert len(name) == len(ID)
    assert parse_cgroup(f"/kubepods.slice/kubepods-burstable.slice/{name}") == PodRef(UID, "Burstable")


@pytest.mark.parametrize(("path", "expected"), PLAIN_CONTAINERS.items())
def test_containers_without_kubernetes_have_no_pod(path: str, expected: str | None) -> None:
    assert parse_cgroup(path) == ContainerRef(ID, expected)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/kubepods",
        "/kubepods/burstable",
        "/kubepods.slice",
        "/kubepods.slice/kubepods-besteffort.slice",
        "/system.slice/docker.service",
        "/system.slice/containerd.service",
        f"/system.slice/crio-conmon-{ID}.scope",
        f"/machine.slice/libpod-conmon-{ID}.scope",
        f"/machine.slice/machine-libpod_pod_{ID}.slice",
        "/podruntime/kubelet",
        f"/docker/{ID[:-1]}",
        f"/docker/{ID}0",
        f"/docker/{ID.upper()}",
        "/pods/podx",
        "/podman",
    ],
)
def test_what_is_no_container_and_no_pod_is_none(path: str) -> None:
    assert parse_cgroup(path) is None


@pytest.mark.parametrize(
    "path",
    [
        f"{systemd_pod(UID, 'Burstable')}/crio-conmon-{ID}.scope",
        f"{cgroupfs_pod(UID, 'Burstable')}/crio-conmon-{ID}",
        f"{cgroupfs_pod(UID, 'Burstable')}/kata_overhead/x",
    ],
)
def test_a_monitor_in_a_pod_is_the_pod_s_and_no_container(path: str) -> None:
    assert parse_cgroup(path) == PodRef(UID, "Burstable")


def test_a_cgroup_a_thousand_levels_deep_is_still_its_container_s() -> None:
    pod = cgroupfs_pod(UID, "Burstable")
    assert parse_cgroup(f"{pod}/{ID}" + "/deep" * 3000) == parse_cgroup(f"{pod}/{ID}")


def test_a_pod_in_a_pod_belongs_to_the_outer_one() -> None:
    path = (
        f"{systemd_pod(UID, 'Burstable')}/cri-containerd-{ID}.scope{cgroupfs_pod(STATIC_UID, 'Guaranteed')}/{NODE_ID}"
    )
    assert parse_cgroup(path) == ContainerRef(ID, "containerd", UID, "Burstable")


def test_on_a_node_that_is_a_container_its_daemons_are_its_own_services() -> None:
    root = f"/docker/{NODE_ID}"
    kubelet = f"{root}/system.slice/kubelet.service"
    assert process_owner(kubelet) == ContainerRef(NODE_ID, "docker")
    assert process_owner(kubelet, root=root) == ServiceRef("kubelet.service")
    container = f"{root}{cgroupfs_pod(UID, 'Burstable')}/{ID}"
    assert process_owner(container, root=root) == ContainerRef(ID, None, UID, "Burstable")
    assert process_owner(root, root=root) is None


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/system.slice/systemd-journald.service", ServiceRef("systemd-journald.service")),
        ("/system.slice/system-getty.slice/getty@tty1.service", ServiceRef("getty@tty1.service")),
        ("/system.slice/docker.service/supervisor", ServiceRef("docker.service")),
        ("/system.slice/a.service/b.service", ServiceRef("a.service")),
        ("/system.slice/_cpu.service", ServiceRef("cpu.service")),
        ("/init.scope", ServiceRef("init.scope")),
        ("/user.slice/user-1000.slice/session-1.scope", ServiceRef("session-1.scope", 1000)),
        ("/user.slice/user-1000.slice/user@1000.service/init.scope", ServiceRef("init.scope", 1000)),
        (
            "/user.slice/user-1000.slice/user@1000.service/app.slice/app-gnome-x.scope",
            ServiceRef("app-gnome-x.scope", 1000),
        ),
        ("/user.slice/user-1000.slice/user@1000.service", ServiceRef("user@1000.service", 1000)),
        ("/system.slice", ServiceRef("system.slice")),
        ("/podruntime/kubelet", ServiceRef("/podruntime/kubelet")),  # Talos
        (f"/system.slice/crio-conmon-{ID}.scope", ServiceRef(f"crio-conmon-{ID}.scope")),
        ("/", None),
        (None, None),
    ],
)
def test_processes_of_the_host_belong_to_systemd_s_units(path: str | None, expected: Owner | None) -> None:
    assert process_owner(path) == expected


def test_kernel_threads_belong_to_the_kernel() -> None:
    assert process_owner("/", kernel_thread=True) == KernelRef()


@given(
    st.text() | st.lists(st.sampled_from(["kubepods", "pod", "burstable", ":", "a:b:c", ".slice", ""])).map("/".join)
)
def test_no_path_is_a_crash(path: str) -> None:
    assert process_owner(path) is None or process_owner(path)
    assert process_owner(f"{systemd_pod(UID, 'Burstable')}/{path}") == parse_cgroup(
        f"{systemd_pod(UID, 'Burstable')}/{path}"
    )


@given(st.text(alphabet="ab/-:._pod0", max_size=80))
def test_nothing_below_a_container_is_another_owner(below: str) -> None:
    for layout in LAYOUTS:
        path = layout.path(UID, ID, "BestEffort")
        assert parse_cgroup(f"{path}/{below}") == parse_cgroup(path)


@dataclass
class Named:
    comm: str


def test_a_sandbox_is_one_process_called_pause() -> None:
    assert is_sandbox([Named("pause")])
    assert not is_sandbox([])
    assert not is_sandbox([Named("pause"), Named("pause")])
    assert not is_sandbox([Named("nginx")])


# --- whose a tmpfs is


def tmpfs(*mounts: tuple[int, str]) -> Superblock:
    points = [
        MountPoint(namespace=namespace, path=path, root="/", mount_id=n, options="rw", hidden=False)
        for n, (namespace, path) in enumerate(mounts, start=50)
    ]
    return Superblock(
        device="0:99",
        fstype="tmpfs",
        source="tmpfs",
        options="rw",
        size_bytes=1 << 20,
        used_bytes=0,
        inodes=None,
        inodes_used=None,
        unlimited=False,
        mounts=points,
        access_pid=None,
        access_path=None,
        why_unknown=None,
        measured_at=None,
    )


APP = ContainerRef(ID, "containerd", UID, "Burstable")
AGENT = ContainerRef("a" * 64, "containerd", STATIC_UID, "Burstable")
OWNERS: dict[int, list[Owner]] = {
    HOST: [ServiceRef("init.scope"), ServiceRef("kubelet.service"), KernelRef()],
    POD_NS: [APP],
    OTHER_NS: [AGENT],
}
VOLUMES = f"/var/lib/kubelet/pods/{UID}/volumes"


@pytest.mark.parametrize("kubelet", ["/var/lib/kubelet", "/var/lib/k0s/kubelet", "/data/kubelet", "/"])
@pytest.mark.parametrize(
    ("plugin", "kind"),
    [
        ("empty-dir", "EmptyDir"),
        ("projected", "Projected"),
        ("secret", "Secret"),
        ("downward-api", "DownwardAPI"),
        ("configmap", "Other"),
    ],
)
def test_a_volume_is_the_pod_s_with_its_name_wherever_the_kubelet_keeps_it(
    kubelet: str, plugin: str, kind: str
) -> None:
    path = f"{kubelet.rstrip('/')}/pods/{UID}/volumes/kubernetes.io~{plugin}/cache"
    # In the container it is where the pod's manifest says; the agent sees all of them below its own mount of the host.
    owner = classify(tmpfs((HOST, path), (POD_NS, "/tmp/x"), (OTHER_NS, f"/host{path}")), OWNERS, HOST)
    assert owner == TmpfsOwner(kind, path, UID, "cache", plugin, containers=(ID,))  # type: ignore[arg-type]


def test_a_csi_driver_s_tmpfs_names_pod_volume_and_plugin() -> None:
    owner = classify(tmpfs((HOST, f"{VOLUMES}/kubernetes.io~csi/secrets/mount")), OWNERS, HOST)
    assert (owner.kind, owner.pod_uid, owner.volume, owner.plugin) == ("Other", UID, "secrets", "csi")


def test_a_mount_inside_a_volume_is_not_the_volume() -> None:
    owner = classify(tmpfs((HOST, f"{VOLUMES}/kubernetes.io~empty-dir/a/inner")), OWNERS, HOST)
    assert owner.kind == "Host"


def test_a_container_cannot_pass_its_tmpfs_off_as_another_pod_s_volume() -> None:
    owner = classify(
        tmpfs((POD_NS, f"/var/lib/kubelet/pods/{STATIC_UID}/volumes/kubernetes.io~empty-dir/x")), OWNERS, HOST
    )
    assert (owner.kind, owner.pod_uid, owner.container_id) == ("Other", UID, ID)


SANDBOX = "5" * 64
SHM = [
    f"/run/containerd/io.containerd.grpc.v1.cri/sandboxes/{SANDBOX}/shm",
    f"/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/{SANDBOX}/shm",  # containerd/cri#686
    f"/run/k3s/containerd/io.containerd.grpc.v1.cri/sandboxes/{SANDBOX}/shm",
    f"/run/k0s/containerd/io.containerd.grpc.v1.cri/sandboxes/{SANDBOX}/shm",  # k0sproject/k0s#5537
    f"/run/containers/storage/overlay-containers/{SANDBOX}/userdata/shm",  # CRI-O
    f"/var/lib/containers/storage/overlay-containers/{SANDBOX}/userdata/shm",  # podman-container-tools/podman#9191
    f"/var/lib/docker/containers/{SANDBOX}/mounts/shm",
    f"/var/lib/docker/containers/{SANDBOX}/shm",  # coreos/bugs#2427
]


@pytest.mark.parametrize("path", SHM)
def test_a_sandbox_s_shm_is_the_pod_s_that_has_it_as_dev_shm(path: str) -> None:
    owner = classify(tmpfs((HOST, path), (OTHER_NS, f"/host{path}"), (POD_NS, "/dev/shm")), OWNERS, HOST)
    assert owner == TmpfsOwner("SharedMemory", path, UID, container_id=SANDBOX, containers=(ID,))


@pytest.mark.parametrize("path", SHM)
def test_a_sandbox_s_shm_that_only_a_node_agent_sees_is_of_no_known_pod(path: str) -> None:
    owner = classify(tmpfs((HOST, path), (OTHER_NS, f"/host{path}")), OWNERS, HOST)
    assert (owner.kind, owner.pod_uid, owner.container_id) == ("SharedMemory", None, SANDBOX)


def test_the_sandbox_itself_tells_its_pod_before_others_that_share_its_shm() -> None:
    owners = {**OWNERS, 7: [ContainerRef(SANDBOX, "containerd", "own", "Guaranteed")]}
    mounts = tmpfs((HOST, SHM[0]), (7, "/dev/shm"), (POD_NS, "/dev/shm"))
    assert classify(mounts, owners, HOST).pod_uid == "own"
    del owners[7]
    owners[8] = [AGENT]
    mounts = tmpfs((HOST, SHM[0]), (8, "/dev/shm"), (POD_NS, "/dev/shm"))
    assert classify(mounts, owners, HOST).pod_uid is None


def test_dev_shm_of_a_pod_in_the_host_s_ipc_namespace_is_the_host_s() -> None:
    owner = classify(tmpfs((HOST, "/dev/shm"), (POD_NS, "/dev/shm")), OWNERS, HOST)
    assert (owner.kind, owner.path, owner.pod_uid, owner.containers) == ("Host", "/dev/shm", None, (ID,))


def test_dev_shm_that_only_a_container_has_is_its_shared_memory() -> None:
    owner = classify(tmpfs((POD_NS, "/dev/shm")), OWNERS, HOST)
    assert owner == TmpfsOwner("SharedMemory", "/dev/shm", UID, container_id=ID, containers=(ID,))


@pytest.mark.parametrize("path", ["/proc/acpi", "/sys/firmware", "/proc/scsi", "/dev", "/run/secrets", "/scratch"])
def test_a_tmpfs_that_only_a_container_has_is_the_container_s(path: str) -> None:
    owner = classify(tmpfs((POD_NS, path)), OWNERS, HOST)
    assert owner == TmpfsOwner("Other", path, UID, container_id=ID, containers=(ID,))


def test_a_tmpfs_of_several_containers_of_one_pod_is_the_pod_s() -> None:
    owners = {1: [APP], 2: [ContainerRef("b" * 64, "containerd", UID, "Burstable")]}
    owner = classify(tmpfs((1, "/x"), (2, "/x")), owners, HOST)
    assert (owner.pod_uid, owner.container_id, owner.containers) == (UID, None, ("b" * 64, ID))


def test_tmpfs_of_the_host_is_the_host_s_although_containers_mount_it_too() -> None:
    owner = classify(tmpfs((HOST, "/run"), (HOST, "/var/run"), (OTHER_NS, "/host/run")), OWNERS, HOST)
    assert owner == TmpfsOwner("Host", "/run", containers=("a" * 64,))


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        ("/run/credentials/systemd-journald.service", "systemd-journald.service"),
        ("/run/user/1000", "user-runtime-dir@1000.service"),
        ("/run/lock", None),
    ],
)
def test_systemd_s_own_mounts_name_their_unit(path: str, unit: str | None) -> None:
    assert classify(tmpfs((HOST, path)), OWNERS, HOST).unit == unit


def test_a_unit_s_private_mount_is_the_host_s_and_names_the_unit() -> None:
    owner = classify(tmpfs((9, "/dev")), {**OWNERS, 9: [ServiceRef("chronyd.service")]}, HOST)
    assert owner == TmpfsOwner("Host", "/dev", unit="chronyd.service")


def test_a_tmpfs_that_nobody_known_has_is_other() -> None:
    assert classify(tmpfs((12345, "/x")), OWNERS, HOST) == TmpfsOwner("Other", "/x")
    assert classify(tmpfs(), OWNERS, HOST) == TmpfsOwner("Other")
    assert classify(tmpfs((POD_NS, "/x")), OWNERS, None).container_id == ID


def test_a_deleted_mount_point_still_tells_its_volume() -> None:
    path = f"{VOLUMES}/kubernetes.io~empty-dir/cache"
    assert classify(tmpfs((HOST, f"{path}//deleted")), OWNERS, HOST).volume == "cache"


paths = st.text(max_size=40) | st.lists(
    st.sampled_from(
        ["pods", "x", "volumes", "kubernetes.io~empty-dir", "sandboxes", "shm", "containers", "userdata", ""]
    )
).map("/".join)


@given(st.lists(st.tuples(st.sampled_from([HOST, POD_NS, OTHER_NS, 5]), paths), max_size=5))
def test_every_tmpfs_has_an_owner_whatever_its_mount_points_are_called(mounts: list[tuple[int, str]]) -> None:
    owner = classify(tmpfs(*mounts), OWNERS, HOST)
    on_host = [path for namespace, path in mounts if namespace == HOST]
    assert (owner.kind == "Host") <= bool(on_host)
    if not on_host:
        assert owner.volume is None
