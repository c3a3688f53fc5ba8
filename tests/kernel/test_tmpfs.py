"""Real tmpfs with known contents, in mount namespaces of our own. Needs root."""

import contextlib
import os
import resource
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kernel.mountlab import MIB, Lab, StuckFuse, bind, fill, mount_namespace, tmpfs, unmount
from nodemem.kernel import syscalls
from nodemem.kernel import tmpfs as tmpfs_module
from nodemem.kernel.capture import RecordingHost, ReplayHost
from nodemem.kernel.host import Host
from nodemem.kernel.mounts import MountTable, Superblock
from nodemem.kernel.namespaces import in_namespaces
from nodemem.kernel.tmpfs import Inspection, inspect, open_mount

PAGE = os.sysconf("SC_PAGE_SIZE")


def superblock(lab: Lab, path: Path | str, host: Host | None = None) -> Superblock:
    """The one whose mount at the path was made first."""
    found = MountTable(host or Host()).scan({lab.namespace: [lab.pid]}).superblocks.values()
    return min((point.mount_id, sb.device, sb) for sb in found for point in sb.mounts if point.path == str(path))[2]


@contextmanager
def inspected(path: Path, setup: Callable[[], Any], options: str = "size=64m", **limits: Any) -> Iterator[Inspection]:
    def make() -> None:
        tmpfs(path, options)
        os.chdir(path)
        setup()
        os.chdir("/")

    with mount_namespace(make) as lab:
        yield inspect(Host(), superblock(lab, path), **limits)


def files(found: Inspection) -> dict[str, int]:
    return {file.path: file.bytes for file in found.files}


def directories(found: Inspection) -> dict[str, int]:
    return {directory.path: directory.bytes for directory in found.directories}


def put(path: str, size: int) -> None:
    if os.path.dirname(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
    fill(path, size)


def test_files_and_directories_are_listed_largest_first_and_explain_all_that_is_used(tmp_path: Path) -> None:
    def setup() -> None:
        put("log/a/big", 5 * MIB)
        put("log/b/middle", 3 * MIB)
        put("small", 1 * MIB)
        put("empty", 0)

    with inspected(tmp_path / "t", setup) as found:
        assert [(file.path, file.bytes, file.size_bytes) for file in found.files] == [
            ("/log/a/big", 5 * MIB, 5 * MIB),
            ("/log/b/middle", 3 * MIB, 3 * MIB),
            ("/small", 1 * MIB, 1 * MIB),
        ]
        assert [(d.path, d.bytes, d.files) for d in found.directories] == [
            ("/log", 8 * MIB, 2),
            ("/log/a", 5 * MIB, 1),
            ("/log/b", 3 * MIB, 1),
        ]
        assert (found.used_bytes, found.found_bytes, found.not_found_bytes) == (9 * MIB, 9 * MIB, 0)
        assert (found.entries, found.stopped, found.unreadable, found.mounts_passed) == (7, None, 0, 0)
        assert (found.mount_point, found.root) == (str(tmp_path / "t"), "/")


def test_chain_of_directories_with_the_same_content_is_one_line(tmp_path: Path) -> None:
    def setup() -> None:
        put("log/journal/deep/deeper/file", 20 * MIB)
        put("log/other", MIB)

    with inspected(tmp_path / "t", setup) as found:
        assert directories(found) == {"/log/journal/deep/deeper": 20 * MIB}


def test_hard_links_are_counted_once(tmp_path: Path) -> None:
    def setup() -> None:
        put("a/file", 2 * MIB)
        os.mkdir("b")
        os.link("a/file", "b/again")
        os.link("a/file", "a/third")

    with inspected(tmp_path / "t", setup) as found:
        ((_, used),) = files(found).items()
        assert used == 2 * MIB
        assert found.files[0].links == 3
        assert (found.found_bytes, found.not_found_bytes) == (2 * MIB, 0)


def test_holes_of_a_sparse_file_cost_nothing(tmp_path: Path) -> None:
    def setup() -> None:
        with open("sparse", "wb") as file:
            file.truncate(1 << 40)
            file.seek(1 << 30)
            file.write(b"x")

    with inspected(tmp_path / "t", setup) as found:
        assert [(file.bytes, file.size_bytes) for file in found.files] == [(PAGE, 1 << 40)]
        assert found.used_bytes == found.found_bytes == PAGE


def test_space_reserved_by_fallocate_is_counted(tmp_path: Path) -> None:
    def setup() -> None:
        with open("reserved", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, 3 * MIB)

    with inspected(tmp_path / "t", setup) as found:
        assert found.used_bytes == found.found_bytes == 3 * MIB


def test_deleted_file_that_is_held_open_is_used_but_not_found(tmp_path: Path) -> None:
    held: list[int] = []

    def setup() -> None:
        put("kept", MIB)
        held.append(os.open("deleted", os.O_WRONLY | os.O_CREAT))
        os.write(held[0], b"x" * 4 * MIB)
        os.unlink("deleted")

    with inspected(tmp_path / "t", setup) as found:
        assert (found.used_bytes, found.found_bytes, found.not_found_bytes) == (5 * MIB, MIB, 4 * MIB)


def test_what_another_mount_hides_inside_is_used_but_not_found_and_the_mount_is_passed(tmp_path: Path) -> None:
    def setup() -> None:
        put("sub/covered", 2 * MIB)
        put("file", MIB)
        tmpfs("sub")
        put("sub/elsewhere", 3 * MIB)

    with inspected(tmp_path / "t", setup) as found:
        assert files(found) == {"/file": MIB}
        assert (found.not_found_bytes, found.mounts_passed) == (2 * MIB, 1)


def test_bind_mounts_of_the_tmpfs_inside_itself_are_not_counted_twice(tmp_path: Path) -> None:
    def setup() -> None:
        put("a/file", MIB)
        os.mkdir("b")
        bind("a", "b")
        os.mkdir("c")
        bind(".", "c", recursive=True)
        put("f", MIB)
        put("g", 0)
        bind("f", "g")

    with inspected(tmp_path / "t", setup) as found:
        assert files(found) == {"/a/file": MIB, "/f": MIB}
        assert (found.found_bytes, found.not_found_bytes, found.mounts_passed) == (2 * MIB, 0, 3)


@pytest.mark.parametrize("name", [b"a b", b"\n", b"\xff\xfe", b"\\", b"\x1b[31m", b"..."])
def test_hostile_names_are_exact(tmp_path: Path, name: bytes) -> None:
    def setup() -> None:
        os.mkdir(name)
        fill(name + b"/" + name, MIB)

    with inspected(tmp_path / "t", setup) as found:
        assert [os.fsencode(file.path) for file in found.files] == [b"/" + name + b"/" + name]
        assert [os.fsencode(directory.path) for directory in found.directories] == [b"/" + name]


def test_symlinks_sockets_and_devices_are_neither_followed_nor_opened(tmp_path: Path) -> None:
    def setup() -> None:
        os.symlink("/", "root")
        os.symlink("/etc/passwd", "passwd")
        os.mkfifo("fifo")  # opening it would wait for a writer
        os.mknod("device", stat.S_IFCHR | 0o600, os.makedev(10, 0))
        put("file", MIB)

    with inspected(tmp_path / "t", setup) as found:
        assert files(found) == {"/file": MIB}
        assert (found.entries, found.unreadable) == (5, 0)


def test_walk_stops_at_the_bound_of_entries_and_says_so(tmp_path: Path) -> None:
    def setup() -> None:
        for number in range(300):
            put(f"{number % 7}/{number}", PAGE)

    with inspected(tmp_path / "t", setup, max_entries=100) as found:
        assert (found.stopped, found.entries) == ("entries", 100)
        assert 0 < found.found_bytes < 300 * PAGE
        assert found.not_found_bytes == 300 * PAGE - found.found_bytes


def test_walk_of_exactly_the_bound_is_complete(tmp_path: Path) -> None:
    with inspected(tmp_path / "t", lambda: [put(str(n), PAGE) for n in range(10)], max_entries=10) as found:
        assert (found.stopped, found.entries, found.found_bytes) == (None, 10, 10 * PAGE)


def test_walk_stops_at_the_bound_of_time_and_says_so(tmp_path: Path) -> None:
    with inspected(tmp_path / "t", lambda: put("file", MIB), max_seconds=-1.0) as found:
        assert (found.stopped, found.entries) == ("time", 0)


def test_only_as_many_as_asked_for_are_listed_and_they_are_the_largest(tmp_path: Path) -> None:
    def setup() -> None:
        for number in range(1, 40):
            put(f"{number}/{number}", number * PAGE)

    with inspected(tmp_path / "t", setup, top=3) as found:
        assert [file.path for file in found.files] == ["/39/39", "/38/38", "/37/37"]
        assert [directory.path for directory in found.directories] == ["/39", "/38", "/37"]


def nest(levels: int) -> None:
    here = os.open(".", os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=here)
        os.mkdir("later", dir_fd=here)
        for name in ("d", "later"):
            fd = os.open(f"{name}/file" if name == "later" else "here", os.O_WRONLY | os.O_CREAT, dir_fd=here)
            os.write(fd, b"x")
            os.close(fd)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def test_thousands_of_nested_directories_need_few_descriptors_and_no_recursion(tmp_path: Path) -> None:
    def make() -> None:
        tmpfs(tmp_path / "t", "size=64m")
        os.chdir(tmp_path / "t")
        nest(3000)
        os.chdir("/")

    with mount_namespace(make) as lab:
        target = superblock(lab, tmp_path / "t")

        def with_few_descriptors() -> list[Any]:
            resource.setrlimit(resource.RLIMIT_NOFILE, (150, 150))
            found = inspect(Host(), target, max_seconds=60)
            return [found.found_bytes, found.entries, found.unreadable, found.stopped]

        assert in_namespaces(os.getpid(), (), with_few_descriptors, 90) == [6000 * PAGE, 12000, 0, None]


def test_journald_files_are_named_as_such(tmp_path: Path) -> None:
    machine = "0123456789abcdef0123456789abcdef"

    def setup() -> None:
        put(f"log/journal/{machine}/system.journal", 8 * MIB)
        put(f"log/journal/{machine}/user-1000@0005f-01.journal~", 4 * MIB)
        put(f"log/journal/{machine}.ns/system.journal", 2 * MIB)
        put(f"log/journal/{machine}/notes", MIB)
        put("log/journal/other/system.journal", MIB)
        put("system.journal", MIB)

    with inspected(tmp_path / "run", setup) as found:
        assert found.journal_bytes == 14 * MIB


def test_journal_of_a_tmpfs_mounted_on_the_journal_directory_is_recognised(tmp_path: Path) -> None:
    machine = "0123456789abcdef0123456789abcdef"
    with inspected(tmp_path / "run/log/journal", lambda: put(f"{machine}/system.journal", MIB)) as found:
        assert found.journal_bytes == MIB


def test_ages_and_the_newest_written_file_are_told(tmp_path: Path) -> None:
    def setup() -> None:
        put("old", MIB)
        os.utime("old", (1_000_000, 1_000_000))
        put("grows", 2 * MIB)

    before = time.time() - 1
    with inspected(tmp_path / "t", setup) as found:
        assert found.oldest_mtime == 1_000_000
        assert found.newest is not None
        assert found.newest.path == "/grows"
        assert found.newest_mtime == found.newest.mtime
        assert before < found.newest.mtime <= time.time() + 1
        assert found.recent_bytes == 2 * MIB


def test_tmpfs_without_a_limit_is_summed_up_by_its_files(tmp_path: Path) -> None:
    with inspected(tmp_path / "t", lambda: put("file", 3 * MIB), options="size=0") as found:
        assert (found.used_bytes, found.found_bytes, found.not_found_bytes) == (None, 3 * MIB, None)


def test_empty_tmpfs_has_no_largest(tmp_path: Path) -> None:
    with inspected(tmp_path / "t", lambda: None) as found:
        assert (found.files, found.directories, found.newest, found.found_bytes) == ([], [], None, 0)


def test_bind_mount_of_a_subdirectory_says_which_part_was_seen(tmp_path: Path) -> None:
    def make() -> None:
        tmpfs(tmp_path / "t")
        put(str(tmp_path / "t/sub/file"), MIB)
        put(str(tmp_path / "t/other"), 2 * MIB)
        (tmp_path / "b").mkdir()
        bind(tmp_path / "t/sub", tmp_path / "b")
        unmount(tmp_path / "t")

    with mount_namespace(make) as lab:
        found = inspect(Host(), superblock(lab, tmp_path / "b"))
        assert (found.root, files(found)) == ("/sub", {"/file": MIB})
        assert (found.used_bytes, found.not_found_bytes) == (3 * MIB, 2 * MIB)


def test_single_file_that_is_bind_mounted_is_told(tmp_path: Path) -> None:
    def make() -> None:
        tmpfs(tmp_path / "t")
        put(str(tmp_path / "t/file"), MIB)
        (tmp_path / "b").touch()
        bind(tmp_path / "t/file", tmp_path / "b")
        unmount(tmp_path / "t")

    with mount_namespace(make) as lab:
        found = inspect(Host(), superblock(lab, tmp_path / "b"))
        assert (found.root, found.found_bytes, files(found)) == ("/file", MIB, {"/": MIB})


def cover(path: Path) -> None:
    tmpfs(path)
    put(str(path / "below"), 2 * MIB)
    tmpfs(path)
    put(str(path / "above"), 1 * MIB)


def test_covered_tmpfs_is_inspected_without_anybody_noticing(tmp_path: Path) -> None:
    with mount_namespace(lambda: cover(tmp_path / "t")) as lab:
        before = lab.mountinfo()
        found = inspect(Host(), superblock(lab, tmp_path / "t"))
        assert files(found) == {"/below": 2 * MIB}
        assert (found.used_bytes, found.not_found_bytes) == (2 * MIB, 0)
        assert lab.mountinfo() == before


def test_listing_does_not_count_as_a_use_of_the_directories(tmp_path: Path) -> None:
    """systemd-tmpfiles and its like keep what has been accessed lately."""

    def make() -> None:
        syscalls.mount(b"lab", os.fsencode(tmp_path), b"tmpfs", 1 << 24, b"size=1m")  # MS_STRICTATIME
        os.mkdir(tmp_path / "d")
        fill(tmp_path / "d/f", 1)
        os.utime(tmp_path / "d", (1000, 1000))

    with mount_namespace(make) as lab:
        inspect(Host(), superblock(lab, tmp_path))
        assert lab.run(lambda: os.stat(tmp_path / "d").st_atime) == 1000


def test_server_that_never_answers_mounted_inside_is_passed(tmp_path: Path) -> None:
    def make() -> None:
        tmpfs(tmp_path / "t")
        fill(tmp_path / "t/file", MIB)
        StuckFuse(tmp_path / "t/fuse", 0).stop()

    with mount_namespace(make) as lab:
        target = superblock(lab, tmp_path / "t")

        def look() -> list[Any]:
            found = inspect(Host(), target)
            return [files(found), found.mounts_passed]

        assert in_namespaces(os.getpid(), (), look, 20.0) == [{"/file": MIB}, 1]


def test_open_mount_refuses_what_was_mounted_over_it_since(tmp_path: Path) -> None:
    with mount_namespace(lambda: tmpfs(tmp_path / "t")) as lab:
        target = superblock(lab, tmp_path / "t")
        fd = open_mount(Host(), target)
        assert syscalls.fd_device(fd) == target.device
        os.close(fd)
        lab.run(lambda: tmpfs(tmp_path / "t"))
        with pytest.raises(OSError, match="another file system") as caught:
            open_mount(Host(), target)
        assert caught.value.errno == 116  # ESTALE


def test_open_mount_does_not_follow_a_symlink_put_in_the_way(tmp_path: Path) -> None:
    def make() -> None:
        tmpfs(tmp_path / "base")
        tmpfs(tmp_path / "base/dir/t")

    def swap() -> None:
        os.rename(tmp_path / "base/dir", tmp_path / "base/moved")
        os.symlink("moved", tmp_path / "base/dir")

    with mount_namespace(make) as lab:
        target = superblock(lab, tmp_path / "base/dir/t")
        lab.run(swap)
        with pytest.raises(OSError, match="symbolic link") as caught:
            open_mount(Host(), target)
        assert caught.value.errno == 40  # ELOOP


def test_open_mount_of_a_covered_one_says_there_is_no_path(tmp_path: Path) -> None:
    with mount_namespace(lambda: cover(tmp_path / "t")) as lab, pytest.raises(FileNotFoundError):
        open_mount(Host(), superblock(lab, tmp_path / "t"))


def test_directories_swapped_for_symlinks_meanwhile_lead_nowhere_else(tmp_path: Path) -> None:
    """A process exchanges a directory that is walked and a symlink to a tree outside, as fast as it can."""
    outside = tmp_path / "outside"
    for directory in (outside, outside / "inner"):
        directory.mkdir()
        for number in range(20):
            (directory / f"secret-{number}").write_bytes(b"x" * PAGE)

    def make() -> None:
        tmpfs(tmp_path / "t")
        for number in range(20):
            put(str(tmp_path / f"t/sub/dir/inner/file-{number}"), PAGE)
        os.symlink(outside, tmp_path / "t/link")
        (tmp_path / "walked").mkdir()
        bind(tmp_path / "t/sub", tmp_path / "walked")
        os.chdir(tmp_path / "t")
        unmount(tmp_path / "t")  # so that the link is out of the walk's sight, and within that of the process
        if os.fork() == 0:
            syscalls.die_with_parent(signal.SIGKILL)
            while True:
                exchange(b"sub/dir", b"link")

    with mount_namespace(make) as lab:
        target = superblock(lab, tmp_path / "walked")
        outcomes: dict[int, int] = {}
        for _ in range(1000):
            found = inspect(Host(), target)
            assert not [file.path for file in found.files if "secret" in file.path]
            outcomes[found.found_bytes] = outcomes.get(found.found_bytes, 0) + 1
        assert set(outcomes) == {0, 20 * PAGE}, "the race must have been run, with both outcomes"


def exchange(one: bytes, other: bytes) -> None:
    syscalls._libc.renameat2(-100, one, -100, other, 2)  # RENAME_EXCHANGE


def test_directory_moved_out_from_under_a_deep_walk_ends_that_part_only(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(tmpfs_module, "_MAX_OPEN", 2)

    def make() -> None:
        tmpfs(tmp_path / "t")
        for parent in ("a", "a/b", "a/b/c", "a/b/c/d"):
            put(str(tmp_path / "t" / parent / "file"), PAGE)
        (tmp_path / "t/a/later").mkdir()

    with mount_namespace(make) as lab:
        target = superblock(lab, tmp_path / "t")
        assert inspect(Host(), target).found_bytes == 4 * PAGE
        original = tmpfs_module._Walk._leave

        def leave(walk: Any) -> None:
            if walk._stack[-1].name == "c":
                with contextlib.suppress(FileNotFoundError):
                    os.rename(f"/proc/{lab.pid}/root{tmp_path}/t/a/b/c", f"/proc/{lab.pid}/root{tmp_path}/t/c")
            original(walk)

        monkeypatch.setattr(tmpfs_module._Walk, "_leave", leave)
        moved = inspect(Host(), target)
        assert moved.found_bytes == 4 * PAGE


def test_unreadable_directories_are_counted(tmp_path: Path) -> None:
    def make() -> None:
        os.chmod(tmp_path, 0o755)
        tmpfs(tmp_path / "t", "mode=755")
        put(str(tmp_path / "t/closed/file"), PAGE)
        put(str(tmp_path / "t/open"), PAGE)
        os.chmod(tmp_path / "t/closed", 0)

    def look() -> list[Any]:
        os.setuid(65534)
        fd = os.open(".", os.O_PATH)
        found = tmpfs_module._Walk(fd, "/t", tmpfs_module._Limits(1000, 10, 10)).run()
        return [found["unreadable"], found["found"]]

    with mount_namespace(make) as lab:
        assert lab.run(lambda: (os.chdir(tmp_path / "t"), look())[1]) == [1, PAGE]


def test_a_capture_gives_the_same_inspection_again(tmp_path: Path) -> None:
    recording = RecordingHost()
    with mount_namespace(lambda: cover(tmp_path / "t")) as lab:
        below = superblock(lab, tmp_path / "t", recording)
        live = inspect(recording, below)
    replay = ReplayHost(recording._files, recording._answers, observed_at=recording.now())
    assert inspect(replay, below) == live


def test_every_descriptor_is_closed_after_an_inspection(tmp_path: Path) -> None:
    with mount_namespace(lambda: cover(tmp_path / "t")) as lab:
        target = superblock(lab, tmp_path / "t")
        before = os.listdir("/proc/self/fd")
        inspect(Host(), target)
        inspect(Host(), superblock(lab, "/dev"))
        assert os.listdir("/proc/self/fd") == before
