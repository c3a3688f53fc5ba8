"""Claims about kernel/shmem on the real kernel: every byte that the generator makes is found, in the right place.

Needs root. Other processes of the machine hold Shmem too, some of them unreadable even to root, so the sums are
compared before and after.
"""

import contextlib
import mmap
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kernel import workloads
from kernel.workloads import MIB, Workload
from nodemem.kernel import meminfo
from nodemem.kernel.capture import RecordingHost, open_capture
from nodemem.kernel.host import Host
from nodemem.kernel.mounts import MountScan, MountTable
from nodemem.kernel.procfs import Process, ProcessTable
from nodemem.kernel.shmem import Breakdown, Deep, ShmemObject, attribute, writers

PAGES = 64 * 4096  # the counters behind Shmem are per CPU and lag by some pages


@dataclass(frozen=True)
class Observed:
    breakdown: Breakdown
    processes: dict[int, Process]
    mounts: MountScan


def observe(deep: Deep = "auto", host: Host | None = None) -> Observed:
    host = host or Host()
    scan = ProcessTable(host).scan()
    mounts = MountTable(host).scan(scan.mount_namespaces())
    fields = meminfo.parse(host.read(f"{host.proc}/meminfo"))
    breakdown = attribute(host, fields["Shmem"], scan.processes, mounts, deep=deep, fields=fields)
    return Observed(breakdown, scan.processes, mounts)


def look(deep: Deep = "auto") -> Breakdown:
    return observe(deep).breakdown


def the_object(breakdown: Breakdown, workload: Workload) -> ShmemObject:
    found = [one for one in breakdown.objects if one.inode == workload.inode and workload.pid in one.holders]
    assert len(found) == 1, (workload, breakdown.objects)
    return found[0]


def identity_holds(b: Breakdown) -> bool:
    parts = (b.sysv_bytes, b.memfd_bytes, b.shared_anonymous_bytes, b.deleted_open_bytes, b.kernel_internal_bytes)
    return b.tmpfs_bytes + sum(part or 0 for part in parts) + b.unattributed_bytes - b.swapped_bytes == b.total_bytes


@pytest.fixture(scope="module")
def before() -> Breakdown:
    return look("always")


def test_what_the_machine_holds_itself_is_explained_or_its_owner_is_named_as_unreadable(before: Breakdown) -> None:
    """The rest may be files of an initramfs that is still the root of process 1, which nobody else can enter."""
    assert identity_holds(before)
    if before.unattributed_bytes > max(before.total_bytes // 100, MIB):
        assert before.unreadable_rss_bytes > 0
        assert any(gap.what == "memory maps of a process" for gap in before.unreadable)


def test_every_byte_of_every_kind_is_found_in_its_place(before: Breakdown) -> None:
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        tmpfs = enter(workloads.tmpfs(32 * MIB))
        bound = enter(workloads.bind_mounted(8 * MIB))
        hidden = enter(workloads.hidden_mount(16 * MIB, above=4 * MIB))
        detached = [enter(workloads.detached_mount(8 * MIB, held_by=how)) for how in ("fd", "map", "cwd")]
        memfds = [
            enter(workloads.memfd(16 * MIB)),
            enter(workloads.memfd(16 * MIB, mapped=True)),
            enter(workloads.memfd(16 * MIB, holders=2)),
        ]
        segments = [
            enter(workloads.sysv(8 * MIB, attached=attached, new_ipc=new_ipc))
            for attached in (True, False)
            for new_ipc in (True, False)
        ]
        shared = [enter(workloads.shared_anonymous(16 * MIB, dev_zero=dev_zero)) for dev_zero in (True, False)]
        deleted = [enter(workloads.deleted_open(8 * MIB, rest=4 * MIB, mapped=mapped)) for mapped in (True, False)]
        observed = observe()
        after = observed.breakdown

        assert identity_holds(after)
        assert after.deep
        assert abs(after.unattributed_bytes - before.unattributed_bytes) < after.total_bytes // 100
        assert after.tmpfs_bytes - before.tmpfs_bytes == (32 + 8 + 16 + 4 + 3 * 8 + 2 * 4) * MIB
        assert grown(before.sysv_bytes, after.sysv_bytes) == 4 * 8 * MIB
        assert grown(before.memfd_bytes, after.memfd_bytes) == 3 * 16 * MIB
        assert grown(before.shared_anonymous_bytes, after.shared_anonymous_bytes) == 2 * 16 * MIB
        assert grown(before.deleted_open_bytes, after.deleted_open_bytes) == 2 * 8 * MIB
        for one in (tmpfs, bound, hidden):
            assert observed.mounts.superblocks[one.device].used_bytes == one.bytes
        for one in [*memfds, *shared, *deleted]:
            found = the_object(after, one)
            assert (found.bytes, found.device, found.holders, found.exact) == (one.bytes, one.device, one.pids, True)
        for one in segments:
            assert [
                found.bytes
                for found in after.objects
                if found.kind == "sysv" and (found.inode, found.ipc_ns) == (one.inode, one.namespace)
            ] == [one.bytes]
        for one in detached:
            assert [(d.used_bytes, d.holders) for d in after.detached if d.device == one.device] == [
                (one.bytes, one.pids)
            ]


def grown(before: int | None, after: int | None) -> int:
    assert before is not None
    assert after is not None
    return after - before


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: workloads.memfd(8 * MIB, mapped=True), "memfd"),
        (lambda: workloads.shared_anonymous(8 * MIB), "sharedAnonymous"),
        (lambda: workloads.sysv(8 * MIB), "sysv"),
        (lambda: workloads.deleted_open(8 * MIB, mapped=True), "deletedOpen"),
    ],
)
def test_a_mapped_object_needs_no_look_at_descriptors(
    make: Callable[[], contextlib.AbstractContextManager[Workload]], kind: str
) -> None:
    with make() as made:
        found = the_object(look("auto"), made)
        assert (found.kind, found.bytes, found.holders, found.mapped) == (kind, made.bytes, made.pids, True)


def test_memory_that_is_mapped_is_told_from_memory_that_only_exists(before: Breakdown) -> None:
    """Story: 1 GiB of shared anonymous memory is in the RSS of its process, a file in a tmpfs is in nobody's."""
    assert before.mapped_estimate_bytes is not None
    with workloads.shared_anonymous(32 * MIB), workloads.tmpfs(32 * MIB), workloads.memfd(32 * MIB):
        assert within(grown(before.mapped_estimate_bytes, look().mapped_estimate_bytes), 32 * MIB)


def test_a_page_that_two_processes_map_is_counted_as_mapped_once(before: Breakdown) -> None:
    with workloads.memfd(32 * MIB, mapped=True, holders=3) as made:
        observed = observe()
        assert sum(observed.processes[pid].rss_shmem_bytes or 0 for pid in made.pids) >= 3 * 32 * MIB
        assert within(grown(before.mapped_estimate_bytes, observed.breakdown.mapped_estimate_bytes), 32 * MIB)


def within(value: int, expected: int) -> bool:
    return abs(value - expected) <= max(PAGES, expected // 100)


def test_equal_shmids_of_two_ipc_namespaces_are_two_segments() -> None:
    with workloads.sysv(4 * MIB, new_ipc=True) as one, workloads.sysv(6 * MIB, new_ipc=True) as other:
        assert one.inode == other.inode
        breakdown = look()
        assert the_object(breakdown, one).bytes == 4 * MIB
        assert the_object(breakdown, other).bytes == 6 * MIB


def test_an_unattached_segment_names_the_process_that_made_it() -> None:
    with workloads.sysv(4 * MIB, attached=False) as made:
        (found,) = [one for one in look().objects if one.kind == "sysv" and one.inode == made.inode]
        assert (found.holders, found.creator_pid) == ((), made.pid)


def test_a_file_with_a_hard_link_left_is_not_deleted() -> None:
    def keep_open(path: str) -> int:
        os.link(f"{path}/data", f"{path}/other")
        fd = os.open(f"{path}/data", os.O_RDWR)
        workloads._keep.append(fd)
        os.unlink(f"{path}/data")
        return os.fstat(fd).st_ino

    with workloads.tmpfs(4 * MIB, files=keep_open) as made:
        breakdown = look("always")
        assert made.device not in breakdown.deleted_open_by_device
        assert not [one for one in breakdown.objects if one.device == made.device]


def test_a_living_file_called_deleted_is_not_deleted() -> None:
    def name_it_so(path: str) -> None:
        os.rename(f"{path}/data", f"{path}/data (deleted)")
        workloads._map_and_close(os.open(f"{path}/data (deleted)", os.O_RDWR), 4 * MIB)
        workloads._keep.append(os.open(f"{path}/data (deleted)", os.O_RDWR))

    with workloads.tmpfs(4 * MIB, files=name_it_so) as made:
        assert made.device not in look("always").deleted_open_by_device


def test_holes_and_hard_links_cost_nothing(before: Breakdown) -> None:
    def files(path: str) -> None:
        workloads.hard_links(path, 4 * MIB, 5)
        workloads.sparse_file(path, MIB, 1 << 30)

    with workloads.tmpfs(4 * MIB, limit=32 * MIB, files=files):
        assert look("always").tmpfs_bytes - before.tmpfs_bytes == (4 + 4 + 1) * MIB


def test_a_tmpfs_without_a_limit_is_counted_as_a_walk_found_it_and_else_named() -> None:
    host = Host()
    with workloads.tmpfs(8 * MIB, limit=0) as made:
        observed = observe()
        gaps = [gap.what for gap in observed.breakdown.unreadable]
        assert f"usage of tmpfs {made.device}" in gaps
        walked = attribute(
            host,
            observed.breakdown.total_bytes,
            observed.processes,
            observed.mounts,
            walked_bytes={made.device: 8 * MIB},
        )
        assert walked.tmpfs_bytes - observed.breakdown.tmpfs_bytes == 8 * MIB
        assert identity_holds(walked)
        assert f"usage of tmpfs {made.device}" not in [gap.what for gap in walked.unreadable]


def test_without_a_deep_look_what_was_not_looked_for_is_unknown_and_not_zero() -> None:
    with workloads.memfd(8 * MIB), workloads.deleted_open(8 * MIB):
        breakdown = look("never")
        assert (breakdown.memfd_bytes, breakdown.shared_anonymous_bytes, breakdown.deleted_open_bytes) == (None,) * 3
        assert breakdown.unattributed_bytes >= 8 * MIB
        assert identity_holds(breakdown)
        assert not breakdown.objects


def test_candidates_limit_whose_descriptors_are_read() -> None:
    host = Host()
    with workloads.memfd(8 * MIB) as one, workloads.memfd(8 * MIB) as other:
        observed = observe("never")
        found = attribute(
            host, observed.breakdown.total_bytes, observed.processes, observed.mounts, candidates=one.pids
        ).objects
        assert {holder for item in found for holder in item.holders} == {one.pid}
        assert other.pid in observed.processes


def test_an_object_names_the_cgroups_of_its_holders() -> None:
    uid, name = "0125ec2f-b64a-4868-8f5b-94b56cbab864", "ab" * 32
    for driver in ("cgroupfs", "systemd"):
        with (
            workloads.container_cgroup(uid, name, driver=driver) as place,
            workloads.memfd(8 * MIB, cgroup=place) as made,
        ):
            found = the_object(look(), made)
            assert found.cgroups == ("/" + str(place.relative_to(workloads.V1_MEMORY)),)


def test_the_writer_of_a_tmpfs_is_the_process_that_has_its_files_open_for_writing() -> None:
    def open_two(path: str) -> None:
        workloads._keep.append(os.open(f"{path}/data", os.O_WRONLY))
        workloads._keep.append(os.open(f"{path}/more", os.O_RDWR | os.O_CREAT))

    def only_read(path: str) -> None:
        workloads._keep.append(os.open(f"{path}/data", os.O_RDONLY))

    with workloads.tmpfs(MIB, files=open_two) as written, workloads.tmpfs(MIB, files=only_read) as read:
        observed = observe("never")
        superblocks = observed.mounts.superblocks
        (writer,) = writers(Host(), superblocks[written.device], observed.processes)
        assert (writer.pid, writer.files) == (written.pid, 2)
        assert writers(Host(), superblocks[read.device], observed.processes) == []


def test_a_writer_that_only_has_the_file_mapped_is_found() -> None:
    def map_it(path: str) -> None:
        workloads._map_and_close(os.open(f"{path}/data", os.O_RDWR), MIB)

    with workloads.tmpfs(MIB, files=map_it) as made:
        observed = observe("never")
        found = writers(Host(), observed.mounts.superblocks[made.device], observed.processes)
        assert [(writer.pid, writer.files) for writer in found] == [(made.pid, 1)]


@contextlib.contextmanager
def huge_pages(count: int) -> Iterator[None]:
    pool = Path("/proc/sys/vm/nr_hugepages")
    had = pool.read_text()
    pool.write_text(str(count))
    try:
        assert int(pool.read_text()) >= count, "no huge pages to be had on this machine"
        yield
    finally:
        pool.write_text(had)


def test_huge_page_segments_are_not_shmem(before: Breakdown) -> None:
    with huge_pages(8), workloads.sysv(8 * MIB, huge=True) as made:
        breakdown = look("always")
        assert grown(before.sysv_bytes, breakdown.sysv_bytes) == 0
        assert abs(breakdown.unattributed_bytes - before.unattributed_bytes) <= MIB
        assert made.pid not in {holder for one in breakdown.objects for holder in one.holders}


def test_a_segment_of_which_nobody_can_say_whether_it_is_of_huge_pages_is_named() -> None:
    with huge_pages(8), workloads.sysv(8 * MIB, huge=True, attached=False):
        assert any("huge pages" in gap.what for gap in look().unreadable)


def test_without_privileges_it_reports_what_it_sees_and_names_what_it_cannot() -> None:
    def unprivileged() -> list[object]:
        workloads.drop_privileges()
        breakdown = look("always")
        return [
            breakdown.total_bytes,
            identity_holds(breakdown),
            sorted({gap.what for gap in breakdown.unreadable}),
            [(one.kind, one.bytes, one.exact) for one in breakdown.objects if os.getpid() in one.holders],
        ]

    with workloads.sysv(4 * MIB, new_ipc=True, attached=False), workloads.memfd(8 * MIB, mapped=True):
        total, adds_up, gaps, _ = workloads.run(unprivileged)
        assert total >= 12 * MIB
        assert adds_up
        assert {"memory maps of a process", "open files of a process"} <= set(gaps)


def test_without_privileges_the_size_of_an_own_mapping_comes_from_its_resident_pages() -> None:
    def unprivileged() -> list[object]:
        area = mmap.mmap(-1, 8 * MIB)
        area[: 6 * MIB] = b"x" * (6 * MIB)
        workloads.drop_privileges()
        workloads._libc.prctl(4, 1)  # PR_SET_DUMPABLE: a changed uid took our own /proc files away
        breakdown = look("always")
        return [[one.kind, one.bytes, one.exact] for one in breakdown.objects if os.getpid() in one.holders]

    assert workloads.run(unprivileged) == [["sharedAnonymous", 6 * MIB, False]]


def test_a_capture_gives_the_same_breakdown_again(tmp_path: Path) -> None:
    with (
        workloads.memfd(8 * MIB, mapped=True),
        workloads.sysv(8 * MIB, new_ipc=True),
        workloads.detached_mount(8 * MIB),
        workloads.deleted_open(8 * MIB),
    ):
        recording = RecordingHost()
        first = observe("always", recording).breakdown
        recording.write(tmp_path / "capture.tar")
    again = observe("always", open_capture(str(tmp_path / "capture.tar"))).breakdown
    assert again == first


def test_the_generator_leaves_nothing_behind_when_a_test_fails() -> None:
    mounted = Path("/proc/self/mountinfo").read_bytes()
    segments = Path("/proc/sysvipc/shm").read_bytes().count(b"\n")
    cgroup = f"nodemem-test-{os.getpid()}"
    pids: list[int] = []
    places: list[str] = []

    def fail() -> None:
        with workloads.tmpfs_here(MIB) as here, workloads.sysv(MIB) as made, workloads.memory_cgroup(cgroup):
            pids.append(made.pid)
            places.append(here.path)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert Path("/proc/self/mountinfo").read_bytes() == mounted
    assert Path("/proc/sysvipc/shm").read_bytes().count(b"\n") == segments
    assert not os.path.exists(places[0])
    assert not (workloads.V1_MEMORY / cgroup).exists()
    assert not os.path.exists(f"/proc/{pids[0]}")
