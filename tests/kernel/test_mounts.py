"""Real mounts in mount namespaces of our own. Needs root, tmpfs, and /dev/fuse for the servers that never answer."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kernel.mountlab import (
    MIB,
    CountingHost,
    Lab,
    StuckFuse,
    bind,
    fill,
    make_shared,
    mount_namespace,
    tmpfs,
    unmount,
)
from nodemem.kernel import mountusage, syscalls
from nodemem.kernel.capture import RecordingHost, ReplayHost
from nodemem.kernel.host import Host
from nodemem.kernel.mounts import MountPoint, MountScan, MountTable, Superblock
from nodemem.kernel.namespaces import in_namespaces
from nodemem.node.snapshot import Collector, Thrift


def scan(*labs: Lab, host: Host | None = None) -> MountScan:
    return MountTable(host or Host()).scan({lab.namespace: [lab.pid] for lab in labs})


def at(found: MountScan, path: Path | str) -> list[Superblock]:
    """The superblocks mounted at a path, in the order of their mount ids."""
    every = [(point, sb) for sb in found.superblocks.values() for point in sb.mounts]
    return [sb for point, sb in sorted(every, key=lambda pair: pair[0].mount_id) if point.path == str(path)]


def only(found: MountScan, path: Path | str) -> Superblock:
    (superblock,) = at(found, path)
    return superblock


def point(superblock: Superblock, path: Path | str) -> MountPoint:
    (mount,) = [mount for mount in superblock.mounts if mount.path == str(path)]
    return mount


def filled(path: Path | str, mib: int, options: str = "size=16m") -> None:
    tmpfs(path, options)
    fill(Path(path) / "content", mib * MIB)


def test_tmpfs_of_another_namespace_is_measured_to_the_byte(tmp_path: Path) -> None:
    with mount_namespace(lambda: filled(tmp_path / "t", 3, "size=8m,nr_inodes=100,mode=700")) as lab:
        found = only(scan(lab), tmp_path / "t")
        assert (found.size_bytes, found.used_bytes) == (8 * MIB, 3 * MIB)
        assert (found.inodes, found.inodes_used) == (100, 2)
        assert (found.fstype, found.source, found.unlimited, found.why_unknown) == ("tmpfs", "lab", False, None)
        assert "size=8192k" in found.options.split(",")
        assert found.access_pid == lab.pid
        assert found.access_path == f"/proc/{lab.pid}/root{tmp_path}/t"
        assert os.stat(found.access_path).st_dev == os.makedev(*map(int, found.device.split(":")))
    assert not os.path.ismount(tmp_path / "t")


def test_one_superblock_in_two_namespaces_is_counted_once_and_listed_twice(tmp_path: Path) -> None:
    with (
        mount_namespace(lambda: filled(tmp_path / "t", 1)) as first,
        mount_namespace(lambda: None, copy_of=first) as second,
    ):
        found = only_device(scan(first, second), tmp_path / "t")
        assert {mount.namespace for mount in found.mounts} == {first.namespace, second.namespace}
        assert found.used_bytes == MIB


def only_device(found: MountScan, path: Path | str) -> Superblock:
    superblocks = {sb.device: sb for sb in at(found, path)}
    (superblock,) = superblocks.values()
    return superblock


def test_bind_mount_of_a_subdirectory_gives_the_whole_superblock(tmp_path: Path) -> None:
    def setup() -> None:
        filled(tmp_path / "t", 2)
        (tmp_path / "t/sub").mkdir()
        (tmp_path / "b").mkdir()
        bind(tmp_path / "t/sub", tmp_path / "b")
        unmount(tmp_path / "t")

    with mount_namespace(setup) as lab:
        found = only(scan(lab), tmp_path / "b")
        assert point(found, tmp_path / "b").root == "/sub"
        assert (found.size_bytes, found.used_bytes) == (16 * MIB, 2 * MIB)


def test_mount_of_the_whole_is_preferred_to_that_of_a_subdirectory(tmp_path: Path) -> None:
    def setup() -> None:
        tmpfs(tmp_path / "base")
        filled(tmp_path / "base/t", 2)
        (tmp_path / "base/t/sub").mkdir()
        (tmp_path / "b").mkdir()
        bind(tmp_path / "base/t/sub", tmp_path / "b")

    def move_to_the_end() -> None:
        (tmp_path / "z").mkdir()
        bind(tmp_path / "base/t", tmp_path / "z")
        unmount(tmp_path / "base/t")

    with mount_namespace(setup) as lab:
        lab.run(move_to_the_end)
        assert only(scan(lab), tmp_path / "b").access_path == f"/proc/{lab.pid}/root{tmp_path}/z"


def test_file_bind_mounted_from_a_tmpfs_gives_the_whole_superblock(tmp_path: Path) -> None:
    def setup() -> None:
        filled(tmp_path / "t", 2)
        (tmp_path / "file").touch()
        bind(tmp_path / "t/content", tmp_path / "file")
        unmount(tmp_path / "t")

    with mount_namespace(setup) as lab:
        found = only(scan(lab), tmp_path / "file")
        assert point(found, tmp_path / "file").root == "/content"
        assert found.used_bytes == 2 * MIB


def test_each_of_a_stack_of_mounts_gets_its_own_numbers(tmp_path: Path) -> None:
    def setup() -> None:
        for mib in (1, 2, 3):
            filled(tmp_path / "t", mib)

    with mount_namespace(setup) as lab:
        before = lab.mountinfo()
        stack = at(scan(lab), tmp_path / "t")
        assert [sb.used_bytes for sb in stack] == [1 * MIB, 2 * MIB, 3 * MIB]
        assert [sb.mounts[0].hidden for sb in stack] == [True, True, False]
        assert [sb.access_path is None for sb in stack] == [True, True, False]
        assert lab.mountinfo() == before


def test_mounts_below_an_overmounted_parent_get_their_own_numbers(tmp_path: Path) -> None:
    """``inner`` is in the lower tree, ``a`` is covered later; in the cover another stack hides ``a/x``."""

    def setup() -> None:
        filled(tmp_path / "a/b", 1)
        tmpfs(tmp_path / "a")
        filled(tmp_path / "a/x", 2)
        filled(tmp_path / "a/x", 3)
        filled(tmp_path / "a/b", 4)

    with mount_namespace(setup) as lab:
        before = lab.mountinfo()
        found = scan(lab)
        assert [(sb.used_bytes, sb.mounts[0].hidden) for sb in at(found, tmp_path / "a/b")] == [
            (1 * MIB, True),
            (4 * MIB, False),
        ]
        assert [(sb.used_bytes, sb.mounts[0].hidden) for sb in at(found, tmp_path / "a/x")] == [
            (2 * MIB, True),
            (3 * MIB, False),
        ]
        assert lab.mountinfo() == before


def test_looking_below_shared_mounts_leaves_every_peer_alone(tmp_path: Path) -> None:
    def setup() -> None:
        tmpfs(tmp_path / "base")
        make_shared(tmp_path / "base")
        filled(tmp_path / "base/t", 1)
        filled(tmp_path / "base/t", 2)

    with mount_namespace(setup) as lab, mount_namespace(lambda: None, copy_of=lab) as peer:
        assert b"shared:" in lab.mountinfo()
        before = lab.mountinfo(), peer.mountinfo()
        below, above = at(scan(lab), tmp_path / "base/t")
        assert (below.used_bytes, above.used_bytes) == (1 * MIB, 2 * MIB)
        assert (lab.mountinfo(), peer.mountinfo()) == before


def test_hidden_here_and_visible_elsewhere_is_measured_there(tmp_path: Path) -> None:
    with (
        mount_namespace(lambda: filled(tmp_path / "t", 1)) as plain,
        mount_namespace(lambda: filled(tmp_path / "t", 2), copy_of=plain) as covered,
    ):
        host = CountingHost()
        found = {sb.used_bytes: sb for sb in at(scan(covered, plain, host=host), tmp_path / "t")}
        assert set(found) == {1 * MIB, 2 * MIB}
        assert found[1 * MIB].access_pid == plain.pid
        assert found[1 * MIB].access_path is not None
        own = {found[1 * MIB].device, found[2 * MIB].device}
        assert not [key for key in host.observations if "below" in key and own & set(key.split())]


def test_mount_over_the_root_is_not_confused_with_the_root(tmp_path: Path) -> None:
    """Processes whose root is below it don't see it; a process that enters the namespace does."""
    with mount_namespace(lambda: filled_over_root(tmp_path)) as lab:
        found = scan(lab)
        cover = [sb for sb in found.superblocks.values() if "size=5120k" in sb.options]
        assert [(sb.used_bytes, sb.mounts[0].path, sb.mounts[0].hidden) for sb in cover] == [(0, "/", True)]
        assert only(found, tmp_path / "t").used_bytes == 1 * MIB


def filled_over_root(base: Path) -> None:
    filled(base / "t", 1)
    syscalls.mount(b"cover", b"/", b"tmpfs", 0, b"size=5m")


def test_mount_hidden_below_a_root_that_is_itself_covered_is_found(tmp_path: Path) -> None:
    def setup() -> None:
        filled(tmp_path / "t", 2)
        filled_over_root(tmp_path)

    with mount_namespace(setup) as lab:
        assert [sb.used_bytes for sb in at(scan(lab), tmp_path / "t")] == [2 * MIB, 1 * MIB]


def test_removed_subdirectory_that_is_still_bind_mounted_is_measured(tmp_path: Path) -> None:
    def setup() -> None:
        filled(tmp_path / "t", 1)
        (tmp_path / "t/sub").mkdir()
        (tmp_path / "b").mkdir()
        bind(tmp_path / "t/sub", tmp_path / "b")
        (tmp_path / "t/sub").rmdir()
        unmount(tmp_path / "t")

    with mount_namespace(setup) as lab:
        found = only(scan(lab), tmp_path / "b")
        assert point(found, tmp_path / "b").root == "/sub//deleted"
        assert found.used_bytes == 1 * MIB


def test_mount_point_removed_from_another_namespace_leaves_no_wrong_number(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    with mount_namespace(lambda: filled(tmp_path / "t", 1)) as lab:
        table = MountTable(Host())
        assert only(table.scan({lab.namespace: [lab.pid]}), tmp_path / "t").used_bytes == MIB
        (tmp_path / "t").rmdir()
        (tmp_path / "t").mkdir()
        for superblock in at(table.scan({lab.namespace: [lab.pid]}), tmp_path / "t"):
            assert superblock.used_bytes in (MIB, None)


def test_tmpfs_without_a_limit_is_not_one_of_size_zero(tmp_path: Path) -> None:
    with mount_namespace(lambda: filled(tmp_path / "t", 1, "size=0,nr_inodes=0")) as lab:
        found = only(scan(lab), tmp_path / "t")
        assert found.unlimited
        assert (found.size_bytes, found.used_bytes, found.inodes, found.inodes_used) == (None, None, None, None)
        assert found.why_unknown is not None
        assert "without a size limit" in found.why_unknown
        assert found.access_path is not None


@pytest.mark.parametrize(
    "name", [b"a b", b"a\nb", b"tab\there", b"back\\slash", b"\\040", b"\xff\xfe", b"#", b"(x) - y"]
)
def test_mount_points_with_hostile_names_are_measured(tmp_path: Path, name: bytes) -> None:
    path = os.fsencode(tmp_path) + b"/" + name

    def setup() -> None:
        tmpfs(path)
        fill(path + b"/content", MIB)

    with mount_namespace(setup) as lab:
        assert only(scan(lab), os.fsdecode(path)).used_bytes == MIB


def test_a_thousand_bind_mounts_cost_one_read_and_one_look_per_superblock(tmp_path: Path) -> None:
    def setup() -> None:
        tmpfs(tmp_path / "base")
        filled(tmp_path / "base/t", 1)
        for number in range(1000):
            target = tmp_path / f"base/{number}"
            target.mkdir()
            bind(tmp_path / "base/t", target)

    with mount_namespace(setup) as lab:
        host = CountingHost()
        table = MountTable(host)
        first = table.scan({lab.namespace: [lab.pid]})
        assert len(only_device(first, tmp_path / "base/t").mounts) == 1001
        assert host.reads == [f"/proc/{lab.pid}/mountinfo"]
        usages = [key for key in host.observations if "usage" in key]
        assert len(usages) == len([sb for sb in first.superblocks.values() if sb.access_path])
        host.reads.clear()
        host.observations.clear()
        second = table.scan({lab.namespace: [lab.pid]})
        assert host.reads == [f"/proc/{lab.pid}/mountinfo"]
        assert host.observations == usages, "a steady scan looks at each once, and below covers not at all"
        for device, superblock in second.superblocks.items():
            assert superblock.mounts is first.superblocks[device].mounts, "an unchanged mountinfo is not parsed again"


def test_hundreds_of_mounts_stacked_on_one_path_are_all_measured(tmp_path: Path) -> None:
    def setup() -> None:
        for number in range(300):
            tmpfs(tmp_path / "t", f"size={number + 1}m")

    with mount_namespace(setup) as lab:
        stack = at(scan(lab), tmp_path / "t")
        assert [sb.size_bytes for sb in stack] == [(number + 1) * MIB for number in range(300)]


def test_where_too_many_covers_are_stacked_the_lower_ones_are_unknown_and_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mountusage, "_MAX_SECONDS", 0.0)
    with mount_namespace(lambda: [filled(tmp_path / "t", mib) for mib in (1, 2, 3, 4)]) as lab:
        stack = at(scan(lab), tmp_path / "t")
        assert stack[0].used_bytes is None
        assert stack[0].why_unknown == "hidden by another mount; too many other mounts cover it"
        assert stack[3].used_bytes == 4 * MIB


def test_changes_between_scans_are_seen(tmp_path: Path) -> None:
    with mount_namespace(lambda: filled(tmp_path / "t", 1)) as lab:
        table = MountTable(Host())
        namespaces = {lab.namespace: [lab.pid]}
        assert only(table.scan(namespaces), tmp_path / "t").used_bytes == 1 * MIB
        lab.run(lambda: fill(tmp_path / "t/more", 2 * MIB))
        assert only(table.scan(namespaces), tmp_path / "t").used_bytes == 3 * MIB
        lab.run(lambda: filled(tmp_path / "u", 1))
        assert only(table.scan(namespaces), tmp_path / "u").used_bytes == 1 * MIB
        lab.run(lambda: unmount(tmp_path / "t"))
        assert at(table.scan(namespaces), tmp_path / "t") == []
        assert table.scan({}).superblocks == {}


def test_covered_ones_are_left_to_the_next_scan_where_those_in_the_open_hold_enough(tmp_path: Path) -> None:
    def setup() -> None:
        filled(tmp_path / "t", 1)
        filled(tmp_path / "t", 2)

    with mount_namespace(setup) as lab:
        namespaces = {lab.namespace: [lab.pid]}
        table = MountTable(Host())
        first = at(table.scan(namespaces, enough_bytes=2 * MIB), tmp_path / "t")
        second = at(table.scan(namespaces), tmp_path / "t")
        assert [sb.used_bytes for sb in first] == [None, 2 * MIB]
        assert first[0].why_unknown == "hidden by another mount; not looked at yet"
        assert [sb.used_bytes for sb in second] == [1 * MIB, 2 * MIB]
        at_once = at(MountTable(Host()).scan(namespaces, enough_bytes=1 << 50), tmp_path / "t")
        assert [sb.used_bytes for sb in at_once] == [1 * MIB, 2 * MIB]


def test_first_scan_of_an_agent_looks_below_covers_only_for_shmem_that_nothing_else_explains(tmp_path: Path) -> None:
    def setup() -> None:
        filled(tmp_path / "t", 8)
        filled(tmp_path / "t", 2)

    anything_goes = Thrift(moved_bytes=1 << 50, attribute_share=1)
    each_page_counts = Thrift(moved_bytes=0)
    with mount_namespace(setup):
        found = [Collector(Host(), thrift).collect(full=False) for thrift in (anything_goes, each_page_counts)]
        assert [at(each.mounts, tmp_path / "t")[0].used_bytes for each in found] == [None, 8 * MIB]


def test_usage_below_a_cover_is_taken_again_when_it_is_old(tmp_path: Path) -> None:
    def setup() -> None:
        filled(tmp_path / "t", 1)
        os.makedirs(tmp_path / "way-in")
        bind(tmp_path / "t", tmp_path / "way-in")
        filled(tmp_path / "t", 2)

    with (
        mount_namespace(setup) as writer,
        mount_namespace(lambda: unmount(tmp_path / "way-in"), copy_of=writer) as lab,
    ):
        patient, eager = MountTable(Host(), 3600), MountTable(Host(), 0)
        namespaces = {lab.namespace: [lab.pid]}
        assert [at(table.scan(namespaces), tmp_path / "t")[0].used_bytes for table in (patient, eager)] == [MIB, MIB]
        writer.run(lambda: fill(tmp_path / "way-in/more", MIB))
        late = [at(table.scan(namespaces), tmp_path / "t")[0] for table in (patient, eager)]
        assert [sb.used_bytes for sb in late] == [1 * MIB, 2 * MIB]
        assert late[0].measured_at is not None
        assert late[1].measured_at is not None
        assert late[0].measured_at < late[1].measured_at


def test_next_process_of_the_namespace_is_used_when_the_first_is_gone(tmp_path: Path) -> None:
    gone = os.fork()
    if gone == 0:
        os._exit(0)
    # Until it is waited for it is a zombie, which is in no namespace any more.
    with mount_namespace(lambda: filled(tmp_path / "t", 1)) as lab:
        os.waitid(os.P_PID, gone, os.WEXITED | os.WNOWAIT)
        for _ in range(2):
            found = MountTable(Host()).scan({lab.namespace: [gone, lab.pid]})
            assert found.pids == {lab.namespace: lab.pid}
            assert only(found, tmp_path / "t").used_bytes == MIB
            if Path(f"/proc/{gone}").exists():
                os.waitpid(gone, 0)
        vanished = MountTable(Host()).scan({lab.namespace: [gone]})
        assert (vanished.superblocks, vanished.unreadable) == ({}, [])


def unprivileged_scan(lab: Lab, namespaces: dict[int, list[int]], path: Path) -> list[list[Any]]:
    """[used, why unknown] of what is at the path, seen by user nobody from inside; pid 0 stands for that process."""

    def look() -> list[list[Any]]:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        pids = {namespace: [pid or os.getpid() for pid in members] for namespace, members in namespaces.items()}
        return [[sb.used_bytes, sb.why_unknown] for sb in at(MountTable(Host()).scan(pids), path)]

    answer: list[list[Any]] = lab.run(look)
    return answer


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that other users may enter."""
    path = Path("/tmp", f"nodemem-{os.getpid()}-{time.monotonic_ns()}")
    path.mkdir(mode=0o755)
    try:
        yield path
    finally:
        for name in path.iterdir():
            name.rmdir()
        path.rmdir()


def test_without_cap_sys_admin_a_covered_tmpfs_is_unknown_and_says_why(open_path: Path) -> None:
    def setup() -> None:
        filled(open_path / "t", 1)
        filled(open_path / "t", 2)

    with mount_namespace(setup) as lab:
        below, above = unprivileged_scan(lab, {lab.namespace: [0]}, open_path / "t")
        assert below[0] is None
        assert "CAP_SYS_ADMIN" in below[1]
        assert above == [2 * MIB, None]


def test_without_ptrace_rights_only_the_own_process_can_be_looked_through(open_path: Path) -> None:
    with mount_namespace(lambda: filled(open_path / "t", 1)) as lab:
        assert unprivileged_scan(lab, {lab.namespace: [lab.pid]}, open_path / "t") == [[None, "Permission denied"]]
        assert unprivileged_scan(lab, {lab.namespace: [lab.pid, 0]}, open_path / "t") == [[MIB, None]]


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Lab]:
    """A namespace that keeps another one alive in which there is no process any more.

    A namespace may only be kept in an older one, and newer kernels number them in batches per CPU: so both on one.
    """
    cpus = os.sched_getaffinity(0)

    def setup() -> None:
        tmpfs(tmp_path / "ns")
        (tmp_path / "ns/kept").touch()

    os.sched_setaffinity(0, {min(cpus)})
    try:
        with mount_namespace(setup) as keeper:
            with mount_namespace(lambda: covered_twice(tmp_path / "t")) as short:
                keeper.run(lambda: bind(f"/proc/{short.pid}/ns/mnt", tmp_path / "ns/kept"))
            yield keeper
    finally:
        os.sched_setaffinity(0, cpus)


def covered_twice(path: Path) -> None:
    filled(path, 1)
    filled(path, 3)


def test_namespace_without_a_process_is_looked_into(kept: Lab, tmp_path: Path) -> None:
    found = scan(kept)
    assert [sb.used_bytes for sb in at(found, tmp_path / "t")] == [1 * MIB, 3 * MIB]
    (inode,) = {point.namespace for sb in at(found, tmp_path / "t") for point in sb.mounts}
    assert found.pids == {kept.namespace: kept.pid, inode: None}
    assert found.unreadable == []


def test_namespace_without_a_process_is_said_when_it_cannot_be_entered(kept: Lab, tmp_path: Path) -> None:
    def look() -> list[list[Any]]:
        os.chmod(tmp_path, 0o755)
        for parent in (tmp_path.parent, tmp_path.parent.parent, tmp_path.parent.parent.parent):
            os.chmod(parent, 0o755)
        os.setuid(65534)
        found = MountTable(Host()).scan({kept.namespace: [os.getpid()]})
        return [[item.what, item.why, item.count] for item in found.unreadable]

    ((what, why, count),) = kept.run(look)
    assert (what, count) == ("mount namespace without a process", 1)
    assert "CAP_SYS_ADMIN" in why


def stuck(base: Path, entry_seconds: int) -> None:
    server = StuckFuse(base / "fuse", entry_seconds)
    tmpfs(base / "fuse/d")
    fill(base / "fuse/d/content", MIB)
    server.stop()


def scan_in_a_child(lab: Lab, path: Path) -> list[list[Any]]:
    """So that a look that hangs fails the test instead of hanging it: closing the lab's /dev/fuse ends the wait."""

    def look() -> list[list[Any]]:
        return [[sb.used_bytes, sb.why_unknown] for sb in at(scan(lab), path)]

    answer: list[list[Any]] = in_namespaces(os.getpid(), (), look, 20.0)
    return answer


def test_tmpfs_below_a_server_that_never_answers_is_unknown_and_does_not_hang(tmp_path: Path) -> None:
    with mount_namespace(lambda: stuck(tmp_path, 0)) as lab:
        ((used, why),) = scan_in_a_child(lab, tmp_path / "fuse/d")
        assert used is None
        assert why == f"only reached through fuse.stuck at {tmp_path}/fuse, which might not answer"


def test_tmpfs_below_such_a_server_is_measured_where_the_kernel_need_not_ask_it(tmp_path: Path) -> None:
    with mount_namespace(lambda: stuck(tmp_path, 3600)) as lab:
        assert scan_in_a_child(lab, tmp_path / "fuse/d") == [[MIB, None]]


def test_tmpfs_covered_by_such_a_server_is_measured(tmp_path: Path) -> None:
    def setup() -> None:
        filled(tmp_path / "t", 1)
        StuckFuse(tmp_path / "t", 0).stop()

    with mount_namespace(setup) as lab:
        assert scan_in_a_child(lab, tmp_path / "t") == [[MIB, None]]


def test_look_up_by_component_of_older_kernels_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def setup() -> None:
        filled(tmp_path / "t", 1)
        filled(tmp_path / "t", 2)

    with mount_namespace(setup) as lab:
        monkeypatch.setattr(syscalls, "openat2", raise_enosys)
        assert [sb.used_bytes for sb in at(scan(lab), tmp_path / "t")] == [1 * MIB, 2 * MIB]


def test_symlink_in_place_of_a_directory_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def setup() -> None:
        tmpfs(tmp_path / "base")
        filled(tmp_path / "base/real/t", 1)
        os.symlink("real", tmp_path / "base/link")

    with mount_namespace(setup) as lab:
        for _ in ("openat2", "component by component"):
            root = os.open(f"/proc/{lab.pid}/root", os.O_PATH)
            try:
                os.close(syscalls.open_beneath(root, f"{tmp_path}/base/real/t"))
                for path in (f"{tmp_path}/base/link/t", f"{tmp_path}/base/link"):
                    with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
                        syscalls.open_beneath(root, path, flags=syscalls.O_PATH | os.O_DIRECTORY)
            finally:
                os.close(root)
            monkeypatch.setattr(syscalls, "openat2", raise_enosys)


def raise_enosys(*_: object) -> int:
    raise OSError(38, "Function not implemented")


def test_a_capture_gives_the_same_scan_again(tmp_path: Path) -> None:
    def setup() -> None:
        filled(tmp_path / "t", 1)
        filled(tmp_path / "t", 2)
        filled(tmp_path / "u", 3)

    with mount_namespace(setup) as lab:
        recording = RecordingHost()
        live = scan(lab, host=recording)
    replay = ReplayHost(recording._files, recording._answers, observed_at=recording.now())
    assert scan(lab, host=replay) == live


def test_every_descriptor_is_closed_after_a_scan(tmp_path: Path) -> None:
    with mount_namespace(lambda: covered_twice(tmp_path / "t")) as lab:
        before = os.listdir("/proc/self/fd")
        scan(lab)
        assert os.listdir("/proc/self/fd") == before


def test_this_machines_own_namespace_agrees_with_statvfs() -> None:
    own = os.stat("/proc/self/ns/mnt").st_ino
    found = MountTable(Host()).scan({own: [os.getpid()]})
    visible = [sb for sb in found.superblocks.values() if sb.access_path and sb.size_bytes]
    assert visible
    for superblock in visible:
        assert superblock.access_path is not None
        assert os.statvfs(superblock.access_path).f_blocks * os.sysconf("SC_PAGE_SIZE") == superblock.size_bytes
