"""What the agent spares itself between two full looks, and that its figures stay the kernel's."""

import contextlib
import secrets
from collections.abc import Iterator

import pytest

from kernel import workloads
from kernel.workloads import MIB
from nodemem.kernel.host import Host
from nodemem.node.snapshot import Collector, Snapshot, Thrift

SOURCES = ("tmpfs", "sysv", "memfd", "shared_anonymous", "deleted_open", "kernel_internal", "unattributed")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def collector(clock: Clock) -> Collector:
    return Collector(Host(), Thrift(), clock=clock)


@contextlib.contextmanager
def counted_reads(collector: Collector) -> Iterator[list[str]]:
    """The files that are read through the host meanwhile."""
    paths: list[str] = []
    host = collector._host
    original = host.read, host.read_small

    def read(path: str) -> bytes:
        paths.append(path)
        return original[0](path)

    def read_small(path: str) -> bytes:
        paths.append(path)
        return original[1](path)

    host.read, host.read_small = read, read_small  # type: ignore[method-assign]
    try:
        yield paths
    finally:
        host.read, host.read_small = original  # type: ignore[method-assign]


def adds_up(snapshot: Snapshot) -> bool:
    shmem = snapshot.shmem
    found = sum(getattr(shmem, f"{source}_bytes") or 0 for source in SOURCES)
    return found - shmem.swapped_bytes == shmem.total_bytes == snapshot.memory.partition.shmem_bytes


def test_a_refresh_sees_memory_tmpfs_and_containers_move(collector: Collector) -> None:
    container_id = secrets.token_hex(32)
    with (
        workloads.tmpfs_here(8 * MIB, limit=256 * MIB) as here,
        workloads.container_cgroup("0f3c8a52-6b1e-4d7a-9c55-7e2f9a1b3c4d", container_id) as place,
    ):
        collector.collect(full=False)  # the first one reads less of each container
        before = collector.collect(full=False)
        assert adds_up(before)
        workloads.fill(f"{here.path}/more", 100 * MIB)
        with workloads.shared_anonymous(70 * MIB, cgroup=place):
            after = collector.refresh(before)
    assert after.mounts.superblocks[here.device].used_bytes == 108 * MIB
    assert after.shmem.tmpfs_bytes - before.shmem.tmpfs_bytes == pytest.approx(100 * MIB, abs=8 * MIB)
    # Which source the rest belongs to is only known after a full look.
    assert after.shmem.unattributed_bytes - before.shmem.unattributed_bytes == pytest.approx(70 * MIB, abs=8 * MIB)
    assert adds_up(after)
    cgroups = [snapshot.containers[container_id].cgroup for snapshot in (before, after)]
    assert cgroups[0] is not None
    assert cgroups[1] is not None
    assert (cgroups[1].shmem_bytes or 0) - (cgroups[0].shmem_bytes or 0) == 70 * MIB
    assert cgroups[1].limit_bytes == cgroups[0].limit_bytes
    assert cgroups[1].complete


def test_a_refresh_asks_no_process(collector: Collector) -> None:
    snapshot = collector.collect(full=False)
    with counted_reads(collector) as paths:
        refreshed = collector.refresh(snapshot)
    assert "/proc/meminfo" in paths
    assert not [path for path in paths if path.startswith("/proc/") and path.split("/")[2].isdecimal()]
    assert refreshed.processes is snapshot.processes


def test_what_went_since_is_left_out_or_as_it_was(collector: Collector) -> None:
    container_id = secrets.token_hex(32)
    with (
        workloads.tmpfs_here(8 * MIB, limit=64 * MIB) as here,
        workloads.container_cgroup("0f3c8a52-6b1e-4d7a-9c55-7e2f9a1b3c4d", container_id),
    ):
        collector.collect(full=False)
        snapshot = collector.collect(full=False)
        assert container_id in snapshot.containers, "the second scan finds what no process is in"
    refreshed = collector.refresh(snapshot)
    assert container_id not in refreshed.containers
    assert refreshed.mounts.superblocks[here.device] == snapshot.mounts.superblocks[here.device]
    assert here.device not in collector.collect(full=False).mounts.superblocks


def test_a_mount_over_a_tmpfs_does_not_give_it_its_numbers(collector: Collector) -> None:
    with workloads.tmpfs_here(8 * MIB, limit=64 * MIB) as here:
        snapshot = collector.collect(full=False)
        workloads.mount("none", here.path, "tmpfs", options="size=1m")
        try:
            refreshed = collector.refresh(snapshot)
        finally:
            workloads.umount(here.path)
    assert refreshed.mounts.superblocks[here.device].used_bytes == 8 * MIB
    assert refreshed.mounts.superblocks[here.device].size_bytes == 64 * MIB


def test_files_are_looked_at_again_when_the_tmpfs_moved_or_time_has_passed(collector: Collector, clock: Clock) -> None:
    with workloads.tmpfs_here(100 * MIB, limit=512 * MIB) as here:

        def inspection() -> object:
            return collector.collect(full=False).inspections[here.device]

        first = inspection()
        assert inspection() is first
        workloads.fill(f"{here.path}/little", 30 * MIB)
        assert inspection() is first
        workloads.fill(f"{here.path}/much", 100 * MIB)
        second = inspection()
        assert second is not first
        clock.now += 599
        assert inspection() is second
        clock.now += 2
        assert inspection() is not second


def test_small_tmpfs_are_not_searched(collector: Collector) -> None:
    with workloads.tmpfs_here(32 * MIB, limit=64 * MIB) as here:
        assert here.device not in collector.collect(full=False).inspections
        assert here.device in Collector(Host()).collect(full=False).inspections


def test_shared_memory_is_attributed_again_when_much_came(collector: Collector) -> None:
    before = collector.collect(full=False)
    with workloads.memfd(20 * MIB):
        kept = collector.collect(full=False)
        assert kept.shmem.memfd_bytes == before.shmem.memfd_bytes
        assert adds_up(kept)
    with workloads.memfd(150 * MIB):
        again = collector.collect(full=False)
        assert (again.shmem.memfd_bytes or 0) - (before.shmem.memfd_bytes or 0) >= 150 * MIB
        assert adds_up(again)


def test_what_is_spared_is_asked_at_once_when_shmem_moves_unexplained(collector: Collector) -> None:
    with workloads.tmpfs_here(256 << 10, limit=512 * MIB) as here:
        for _ in range(4):
            snapshot = collector.collect(full=False)
        workloads.fill(f"{here.path}/little", 128 << 10)
        later = []
        for _ in range(5):
            snapshot = collector.collect(full=False)
            later.append(snapshot.mounts.superblocks[here.device].used_bytes)
        assert later[-1] == 384 << 10, "within five scans"
        workloads.fill(f"{here.path}/much", 40 * MIB)
        assert collector.collect(full=False).mounts.superblocks[here.device].used_bytes == (384 << 10) + 40 * MIB


def test_a_refresh_sees_a_small_tmpfs_fill(collector: Collector) -> None:
    with workloads.tmpfs_here(256 << 10, limit=512 * MIB) as here:
        snapshot = collector.collect(full=False)
        workloads.fill(f"{here.path}/much", 40 * MIB)
        refreshed = collector.refresh(snapshot)
    assert refreshed.mounts.superblocks[here.device].used_bytes == (256 << 10) + 40 * MIB


def test_the_split_of_a_container_is_read_again_when_its_usage_moved(collector: Collector) -> None:
    container_id = secrets.token_hex(32)
    with workloads.container_cgroup("0f3c8a52-6b1e-4d7a-9c55-7e2f9a1b3c4d", container_id) as place:
        for _ in range(4):
            collector.collect(full=False)
        with workloads.shared_anonymous(8 * MIB, cgroup=place):
            cgroup = collector.collect(full=False).containers[container_id].cgroup
    assert cgroup is not None
    assert cgroup.shmem_bytes == 8 * MIB


def test_growth_of_a_tmpfs_alone_costs_no_new_attribution(collector: Collector) -> None:
    before = collector.collect(full=False)
    attributed = collector._attributed
    with workloads.tmpfs_here(200 * MIB, limit=512 * MIB):
        after = collector.collect(full=False)
    assert after.shmem.tmpfs_bytes - before.shmem.tmpfs_bytes == pytest.approx(200 * MIB, abs=16 * MIB)
    assert after.shmem.memfd_bytes == before.shmem.memfd_bytes
    assert collector._attributed is attributed


def test_first_scan_has_what_a_container_holds_and_leaves_the_split_of_a_small_one_to_the_second(
    collector: Collector,
) -> None:
    large, small = secrets.token_hex(32), secrets.token_hex(32)
    uid = "0f3c8a52-6b1e-4d7a-9c55-7e2f9a1b3c4d"
    with (
        workloads.container_cgroup(uid, large) as of_large,
        workloads.container_cgroup(uid, small) as of_small,
        workloads.shared_anonymous(70 * MIB, cgroup=of_large),
        workloads.shared_anonymous(4096, cgroup=of_small),
    ):
        first, second = (collector.collect(full=False).containers for _ in range(2))
    holds = [(each[large].cgroup, each[small].cgroup) for each in (first, second)]
    (large_first, small_first), (large_second, small_second) = holds
    assert large_first is not None
    assert large_first.shmem_bytes == 70 * MIB
    assert large_second is not None
    assert large_first.limit_bytes == large_second.limit_bytes
    assert small_first is not None
    assert 0 < (small_first.usage_bytes or 0) <= MIB
    assert small_first.shmem_bytes is None, "not read is unknown, and not 0"
    assert small_second is not None
    assert small_second.shmem_bytes == 4096
    assert not small_first.complete
    assert small_second.complete


def test_first_scan_splits_what_holds_most_and_what_is_half_full(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nodemem.node.containers.SPLIT_FIRST", 1)
    most, more, half_full = (secrets.token_hex(32) for _ in range(3))
    uid = "0f3c8a52-6b1e-4d7a-9c55-7e2f9a1b3c4f"
    with (
        workloads.container_cgroup(uid, most) as of_most,
        workloads.container_cgroup(uid, more) as of_more,
        workloads.container_cgroup(uid, half_full, limit=8 * MIB) as of_half_full,
        workloads.shared_anonymous(600 * MIB, cgroup=of_most),
        workloads.shared_anonymous(60 * MIB, cgroup=of_more),
        workloads.shared_anonymous(5 * MIB, cgroup=of_half_full),
    ):
        first, second = (collector.collect(full=False).containers for _ in range(2))
    split = {name: [each[name].cgroup.shmem_bytes for each in (first, second)] for name in (most, more, half_full)}
    assert split == {most: [600 * MIB] * 2, more: [None, 60 * MIB], half_full: [5 * MIB] * 2}


def test_of_a_pod_without_a_limit_only_that_is_read(collector: Collector) -> None:
    container = secrets.token_hex(32)
    with (
        workloads.container_cgroup("0f3c8a52-6b1e-4d7a-9c55-7e2f9a1b3c4e", container) as place,
        workloads.shared_anonymous(2 * MIB, cgroup=place),
        counted_reads(collector) as paths,
    ):
        first = collector.collect(full=False)
    directory = f"/{place.parent.name}/"
    of_pod = {path.partition(directory)[2] for path in paths if directory in path and container not in path}
    assert of_pod <= {"memory.limit_in_bytes", "memory.max"}
    assert len(of_pod) == 1
    assert first.containers[container].cgroup is not None
    (pod,) = (each for path, each in first.pods.items() if path.endswith(place.parent.name))
    assert (pod.limit_bytes, pod.usage_bytes, pod.complete) == (None, None, False)


def test_first_scan_guesses_where_stacks_are_and_the_second_looks(collector: Collector) -> None:
    with counted_reads(collector) as paths:
        collector.collect(full=False)
    assert "/proc/vmallocinfo" not in paths
    with counted_reads(collector) as paths:
        snapshot = collector.collect(full=False)
    assert "/proc/vmallocinfo" in paths
    assert not snapshot.memory.layout.stacks_guessed


def test_second_scan_knows_the_start_times_that_the_first_did_not_ask(collector: Collector) -> None:
    with workloads.shared_anonymous(4096) as workload:
        first, second, at_once = (
            each.collect(full=False).processes[workload.pid] for each in (collector, collector, Collector(Host()))
        )
    assert first.start_time_ticks is None
    assert second.start_time_ticks is not None
    assert second.start_time_ticks == at_once.start_time_ticks
