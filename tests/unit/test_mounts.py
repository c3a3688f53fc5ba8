"""Claims about mountinfo and the mount table on text: what one machine's kernel would not show, and any bytes."""

import errno
import os
import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from nodemem.kernel.capture import ReplayHost
from nodemem.kernel.host import FilesystemUsage, Host, Unreadable
from nodemem.kernel.mountinfo import Lines, MountNode, MountTree, QuickLook, look_at_rows, parse_rows
from nodemem.kernel.mounts import MountScan, MountTable, parse_mountinfo

MIB = 1 << 20


def line(
    mount_id: int,
    parent_id: int,
    path: str,
    fstype: str = "tmpfs",
    *,
    minor: int | None = None,
    root: str = "/",
    optional: str = "",
    options: str = "rw",
) -> str:
    device = f"0:{mount_id if minor is None else minor}"
    return f"{mount_id} {parent_id} {device} {root} {path} rw,nosuid{optional} - {fstype} source {options}\n"


def usage(pid: int, path: str, device: str, used_mib: int, size_mib: int = 16) -> dict[str, dict[str, Any]]:
    where = f"/proc/{pid}/root{path}"
    return {
        "stat": {where: {"value": [device, 1, 0, 2, 40, 0o41777, 0.0]}},
        "statvfs": {where: {"value": [size_mib * MIB, used_mib * MIB, 100, 2]}},
    }


def host(mountinfos: dict[int, str], *answers: dict[str, dict[str, Any]]) -> ReplayHost:
    merged: dict[str, dict[str, Any]] = {}
    for answer in answers:
        for verb, table in answer.items():
            merged.setdefault(verb, {}).update(table)
    return ReplayHost({f"/proc/{pid}/mountinfo": os.fsencode(text) for pid, text in mountinfos.items()}, merged)


def hidden(text: str) -> dict[int, bool]:
    found = MountTable(host({1: text})).scan({4026531840: [1]})
    return {point.mount_id: point.hidden for sb in found.superblocks.values() for point in sb.mounts}


def behind(text: str, pid: int = 7) -> dict[int, str | None]:
    found = MountTable(host({pid: text})).scan({4026531840: [pid]})
    return {point.mount_id: point.behind for sb in found.superblocks.values() for point in sb.mounts}


ROOT = line(1, 0, "/", "ext4")


# The format


def test_line_of_proc_5_is_taken_apart() -> None:
    text = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 propagate_from:2 - ext3 /dev/root rw,errors=continue\n"
    (mount,) = parse_mountinfo(text)
    assert (mount.mount_id, mount.parent_id, mount.device) == (36, 35, "98:0")
    assert (mount.root, mount.path, mount.options) == ("/mnt1", "/mnt2", "rw,noatime")
    assert mount.propagation == "master:1 propagate_from:2"
    assert (mount.fstype, mount.source, mount.super_options) == ("ext3", "/dev/root", "rw,errors=continue")


def test_octal_escapes_are_undone_in_every_field_that_has_them() -> None:
    text = rb"1 0 0:5 /a\011b /\134040\012\040 rw - tmpfs so\040urce rw" + b"\n"
    (mount,) = parse_mountinfo(text)
    assert (mount.root, mount.path, mount.source) == ("/a\tb", "/\\040\n ", "so urce")


def test_backslash_that_begins_no_octal_number_stays() -> None:
    (mount,) = parse_mountinfo(b"1 0 0:5 / /\\x\\9\\777\\04 rw - tmpfs t rw\n")
    assert mount.path == "/\\x\\9\\777\\04"


def test_source_may_be_empty_and_options_missing() -> None:
    mounts = list(parse_mountinfo(b"1 0 0:5 / /a rw - tmpfs  rw\n2 0 0:6 / /b rw - tmpfs none\n"))
    assert [(mount.source, mount.super_options) for mount in mounts] == [("", "rw"), ("none", "")]


def test_deleted_mount_points_and_roots_keep_the_kernels_mark() -> None:
    (mount,) = parse_mountinfo(b"1 0 0:5 /sub//deleted /gone//deleted rw - tmpfs t rw\n")
    assert (mount.root, mount.path) == ("/sub//deleted", "/gone//deleted")


def test_broken_lines_are_passed_over_and_counted() -> None:
    good = line(2, 1, "/run")
    bad = ["", "x", "1 2 3", "a b 0:1 / / rw - tmpfs t rw", "1 0 05 / / rw - tmpfs t rw", "1 0 0:5 / / rw tmpfs t rw"]
    bad += ["1 0 0:5 / / rw - tmpfs", "9" * 5000 + " 0 0:5 / / rw - tmpfs t rw"]
    text = "\n".join(bad) + "\n" + good
    broken: list[bytes] = []
    assert [mount.mount_id for mount in parse_mountinfo(text.encode(), broken)] == [2]
    assert len(broken) == len(bad) - 1, "an empty line is none"
    found = MountTable(host({1: text})).scan({4026531840: [1]})
    assert found.unreadable == [Unreadable("lines of mountinfo", "not in the format of proc(5)", len(broken))]


def escape(name: bytes) -> bytes:
    return re.sub(rb"[ \t\n\\]", lambda match: b"\\%03o" % match[0][0], name)


@settings(deadline=None)
@given(st.binary(min_size=1).filter(lambda name: b"\0" not in name), st.binary(max_size=20))
def test_any_name_comes_back_exactly(name: bytes, source: bytes) -> None:
    path, source = b"/" + name, source.replace(b"\0", b"")
    text = b"7 1 0:5 / " + escape(path) + b" rw shared:1 - tmpfs " + escape(source) + b" rw\n"
    (mount,) = parse_mountinfo(text)
    assert (os.fsencode(mount.path), os.fsencode(mount.source)) == (path, source)


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_arbitrary_bytes_neither_crash_the_parser_nor_get_lost(data: bytes) -> None:
    broken: list[bytes] = []
    mounts = list(parse_mountinfo(data, broken))
    assert len(mounts) + len(broken) == len([piece for piece in data.split(b"\n") if piece])


numbers = st.integers(0, 6)
paths = st.lists(st.sampled_from(["a", "b", "c"]), max_size=3).map(lambda names: "/" + "/".join(names))


@settings(deadline=None)
@given(st.lists(st.tuples(numbers, numbers, paths, st.sampled_from(["tmpfs", "ext4", "fuse.x", "rootfs", "nsfs"]))))
def test_any_tree_of_mounts_even_a_circular_one_ends_and_gives_no_wrong_number(lines: list[Any]) -> None:
    text = "".join(line(*fields) for fields in lines)
    found = MountTable(host({1: text})).scan({4026531840: [1]})
    for superblock in found.superblocks.values():
        assert superblock.used_bytes is None
        assert superblock.why_unknown


# What a look-up reaches


def test_plain_mounts_are_visible() -> None:
    text = ROOT + line(2, 1, "/run") + line(3, 2, "/run/lock") + line(4, 1, "/runner")
    assert hidden(text) == {2: False, 3: False, 4: False}


def test_hidden_mount_is_not_given_the_numbers_of_the_one_above_it() -> None:
    text = ROOT + line(2, 1, "/run") + line(3, 2, "/run")
    found = MountTable(host({1: text}, usage(1, "/run", "0:3", 5))).scan({4026531840: [1]})
    assert hidden(text) == {2: True, 3: False}
    assert found.superblocks["0:3"].used_bytes == 5 * MIB
    assert found.superblocks["0:2"].used_bytes is None
    assert (found.superblocks["0:2"].why_unknown or "").startswith("hidden by another mount")


def test_children_of_a_covered_mount_are_hidden_with_it() -> None:
    text = ROOT + line(2, 1, "/run") + line(3, 2, "/run/lock") + line(4, 2, "/run") + line(5, 4, "/run/lock")
    assert hidden(text) == {2: True, 3: True, 4: False, 5: False}


def test_mount_is_hidden_by_a_later_one_on_a_directory_above_it() -> None:
    text = ROOT + line(2, 1, "/a/b/c") + line(3, 1, "/a") + line(4, 1, "/a/bb") + line(5, 3, "/a/b/c")
    assert hidden(text) == {2: True, 3: False, 4: True, 5: False}


def test_order_of_the_lines_does_not_matter() -> None:
    lines = [ROOT, line(2, 1, "/a/b"), line(3, 1, "/a"), line(4, 3, "/a/b"), line(5, 4, "/a/b")]
    assert hidden("".join(lines)) == hidden("".join(reversed(lines))) == {2: True, 3: False, 4: True, 5: False}


def test_mount_over_the_processes_root_is_what_they_do_not_see() -> None:
    text = line(1, 0, "/") + line(2, 1, "/") + line(3, 1, "/run") + line(4, 2, "/run")
    assert hidden(text) == {1: False, 2: True, 3: False, 4: True}


def test_root_that_is_its_own_parent_is_no_circle() -> None:
    assert hidden(line(1, 1, "/", "rootfs", options="rw,size=1k") + line(2, 1, "/run")) == {1: False, 2: False}


def test_initial_ramfs_is_not_taken_for_a_tmpfs() -> None:
    ramfs = MountTable(host({1: line(1, 1, "/", "rootfs")}, usage(1, "/", "0:1", 0, 0))).scan({4026531840: [1]})
    assert ramfs.superblocks == {}
    tmpfs = MountTable(host({1: line(1, 1, "/", "rootfs")}, usage(1, "/", "0:1", 4, 8))).scan({4026531840: [1]})
    assert tmpfs.superblocks["0:1"].used_bytes == 4 * MIB


def test_chrooted_process_shows_mounts_whose_parent_is_out_of_sight() -> None:
    text = line(2, 99, "/a/b") + line(3, 99, "/a") + line(4, 99, "/c")
    assert hidden(text) == {2: True, 3: False, 4: False}


def test_way_through_a_network_or_fuse_file_system_is_told() -> None:
    text = ROOT + line(2, 1, "/nfs", "nfs4") + line(3, 2, "/nfs/t") + line(4, 3, "/nfs/t/u") + line(5, 1, "/t")
    assert behind(text) == {3: "nfs4 at /nfs", 4: "nfs4 at /nfs", 5: None}


def test_unknown_kind_of_file_system_is_not_trusted() -> None:
    assert behind(ROOT + line(2, 1, "/x", "wonderfs") + line(3, 2, "/x/t")) == {3: "wonderfs at /x"}


def test_root_on_the_network_is_trusted_only_where_the_whole_machine_stands_on_it() -> None:
    text = line(1, 0, "/", "nfs4") + line(2, 1, "/run")
    assert behind(text, pid=1) == {2: None}
    assert behind(text, pid=7) == {2: "nfs4 at /"}


# The table


def scan(a_host: Host, namespaces: dict[int, list[int]]) -> MountScan:
    return MountTable(a_host).scan(namespaces)


def test_usage_comes_with_its_inodes_options_and_place() -> None:
    text = ROOT + line(2, 1, "/run", options="rw,size=16384k")
    found = scan(host({1: text}, usage(1, "/run", "0:2", 3)), {4026531840: [1]}).superblocks["0:2"]
    assert (found.size_bytes, found.used_bytes, found.inodes, found.inodes_used) == (16 * MIB, 3 * MIB, 100, 2)
    assert (found.access_pid, found.access_path, found.options) == (1, "/proc/1/root/run", "rw,size=16384k")
    assert [(p.namespace, p.path, p.root, p.options) for p in found.mounts] == [(4026531840, "/run", "/", "rw,nosuid")]


def test_answer_of_another_file_system_is_refused_and_the_next_mount_point_asked() -> None:
    text = ROOT + line(2, 1, "/a", minor=50) + line(3, 1, "/b", minor=50)
    answers = usage(1, "/a", "0:51", 9), usage(1, "/b", "0:50", 3)
    found = scan(host({1: text}, *answers), {4026531840: [1]}).superblocks["0:50"]
    assert (found.used_bytes, found.access_path) == (3 * MIB, "/proc/1/root/b")
    refused = scan(host({1: text}, answers[0]), {4026531840: [1]}).superblocks["0:50"]
    assert (refused.used_bytes, refused.access_path) == (None, None)


def test_other_namespace_serves_where_the_first_is_unreadable() -> None:
    denied = {"stat": {"/proc/10/root/run": {"errno": errno.EACCES}}}
    text = ROOT + line(2, 1, "/run", minor=50)
    a_host = host({10: text, 20: text}, denied, usage(20, "/run", "0:50", 3))
    found = scan(a_host, {1010: [10], 2020: [20]}).superblocks["0:50"]
    assert (found.used_bytes, found.access_pid, len(found.mounts)) == (3 * MIB, 20, 2)


def test_nobody_may_look_is_said_in_the_kernels_words() -> None:
    denied = {"stat": {"/proc/10/root/run": {"errno": errno.EACCES}}}
    found = scan(host({10: ROOT + line(2, 1, "/run")}, denied), {1010: [10]}).superblocks["0:2"]
    assert (found.used_bytes, found.why_unknown) == (None, "Permission denied")


def test_namespaces_that_cannot_be_read_are_counted_and_vanished_ones_are_not() -> None:
    denied = {"read": {f"/proc/{pid}/mountinfo": {"errno": errno.EACCES} for pid in (10, 20)}}
    found = scan(host({}, denied), {1010: [10], 2020: [20], 3030: [30]})
    assert found.unreadable == [Unreadable("mount namespace", "Permission denied", 2)]
    assert found.pids == {}


def test_no_limit_is_not_an_unknown_limit() -> None:
    text = ROOT + line(2, 1, "/run")
    unlimited = scan(host({1: text}, usage(1, "/run", "0:2", 0, 0)), {1010: [1]}).superblocks["0:2"]
    unknown = scan(host({1: text}), {1010: [1]}).superblocks["0:2"]
    assert (unlimited.size_bytes, unlimited.used_bytes, unlimited.unlimited) == (None, None, True)
    assert (unknown.size_bytes, unknown.used_bytes, unknown.unlimited) == (None, None, False)


def test_answers_from_a_live_capture_are_preferred_to_stat() -> None:
    key = "tmpfs 0:2 usage /proc/1/root/run"
    recorded = {"observe": {key: {"value": [8 * MIB, MIB, 10, 1]}}}
    found = scan(host({1: ROOT + line(2, 1, "/run")}, recorded), {1010: [1]}).superblocks["0:2"]
    assert (found.size_bytes, found.used_bytes) == (8 * MIB, MIB)


class ChangingHost(Host):
    """mountinfo as the test last set it; every tmpfs holds 1 MiB."""

    def __init__(self) -> None:
        super().__init__()
        self.live = False
        self.text = ROOT

    def read(self, path: str) -> bytes:
        return self.text.encode()

    def observe(self, key: str, measure: Any) -> Any:
        return [2 * MIB, MIB, 10, 1]

    def statvfs(self, path: str) -> FilesystemUsage:
        raise AssertionError("observe answered")


def test_mount_tables_follow_what_is_mounted_unmounted_and_resized() -> None:
    a_host = ChangingHost()
    table = MountTable(a_host)
    assert table.scan({1010: [1]}).superblocks == {}
    a_host.text = ROOT + line(2, 1, "/run", options="rw,size=1k") + line(3, 1, "/tmp")
    assert sorted(table.scan({1010: [1]}).superblocks) == ["0:2", "0:3"]
    a_host.text = ROOT + line(2, 1, "/run", options="rw,size=2k")
    assert [sb.options for sb in table.scan({1010: [1]}).superblocks.values()] == ["rw,size=2k"]
    assert len(table.scan({1010: [1], 2020: [2]}).superblocks["0:2"].mounts) == 2
    assert table.scan({}).superblocks == {}


def test_memory_namespace_files_are_looked_into_only_when_no_process_is_there() -> None:
    text = ROOT + line(2, 1, "/run/ns", "nsfs", root="mnt:[4026532999]")
    inner = line(1, 0, "/", "ext4") + line(9, 1, "/t")
    key = "tmpfs of mnt:[4026532999] kept at /proc/1/root/run/ns"
    kept = {"observe": {key: {"value": {"mountinfo": inner, "usage": {"0:9": [8 * MIB, MIB, 10, 1]}}}}}
    found = scan(host({1: text}, kept), {1010: [1]})
    assert found.superblocks["0:9"].used_bytes == MIB
    assert found.pids == {1010: 1, 4026532999: None}
    with_process = scan(host({1: text, 5: inner}, usage(5, "/t", "0:9", 4)), {1010: [1], 4026532999: [5]})
    assert with_process.superblocks["0:9"].used_bytes == 4 * MIB
    not_allowed = scan(host({1: text}, {"observe": {key: {"errno": errno.EPERM}}}), {1010: [1]})
    ((what, why),) = [(item.what, item.why) for item in not_allowed.unreadable]
    assert what == "mount namespace without a process"
    assert "CAP_SYS_ADMIN" in why


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(numbers, numbers, paths, st.sampled_from(["tmpfs", "ext4", "fuse.x"]))), st.booleans())
def test_quick_look_agrees_with_the_tree_or_leaves_it_to_it(lines: list[Any], trusted: bool) -> None:
    rows, broken = parse_rows("".join(line(*fields) for fields in lines).encode(), Lines())
    assert not broken
    quick, tree = QuickLook(rows, trusted), MountTree(trusted)
    for mount_id, parent_id, _, rest in rows:
        tree.add(int(mount_id), MountNode(int(parent_id), rest.path, rest.fstype))
    for mount_id, *_ in rows:
        assert quick.look(mount_id) in (None, tree.look(int(mount_id)))


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_what_was_found_for_one_namespace_is_true_of_another_that_is_alike(data: st.DataObject) -> None:
    lines = st.tuples(numbers, numbers, paths, st.sampled_from(["tmpfs", "ext4", "fuse.x"]))
    known = Lines()
    for _ in range(2):
        text = "".join(line(*fields) for fields in data.draw(st.lists(lines, max_size=5))).encode()
        shift = data.draw(st.integers(0, 3))  # the same mounts with other ids
        moved = b"\n".join(
            b"%d %d %s" % (int(words[0]) + shift, int(words[1]) + shift, words[2])
            for words in (each.split(b" ", 2) for each in text.splitlines())
        )
        for each in (text, moved):
            looks = look_at_rows(parse_rows(each, known)[0], known, False)
            assert looks == look_at_rows(parse_rows(each, Lines())[0], Lines(), False)


names = st.binary(max_size=6).map(lambda name: name.replace(b"\0", b""))


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(numbers, names, names, names, st.sampled_from(["", "shared:1 ", "shared:1 master:2 "]))))
def test_rows_say_the_same_as_the_plain_parser(mounts: list[Any]) -> None:
    data = b"".join(
        b"%d 1 0:%d /%s /%s rw,nodev %s- tmpfs %s rw,size=%dk\n"
        % (at, minor, escape(root), escape(path), optional.encode(), escape(source), minor)
        for at, (minor, root, path, source, optional) in enumerate(mounts)
    )
    rows, broken = parse_rows(data, Lines())
    assert not broken
    found = [(int(mount_id), device.decode(), *(rest.words or ())) for mount_id, _, device, rest in rows]
    assert found == [
        (each.mount_id, each.device, each.fstype, each.source, each.super_options, each.path, each.root, each.options)
        for each in parse_mountinfo(data)
    ]


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_no_line_is_lost_among_rows(data: bytes) -> None:
    rows, broken = parse_rows(data, Lines())
    assert len(rows) + broken == len([piece for piece in data.split(b"\n") if piece])


def test_quick_look_is_sure_of_what_containers_have() -> None:
    text = ROOT + line(2, 1, "/dev") + line(3, 2, "/dev/shm") + line(4, 3, "/dev/shm") + line(5, 1, "/n", "nfs4")
    rows, _ = parse_rows((text + line(6, 5, "/n/t")).encode(), Lines())
    quick = QuickLook(rows)
    looks = {int(mount_id): quick.look(mount_id) for mount_id, *_ in rows}
    assert looks == {
        1: (False, None),
        2: (False, None),
        3: (True, None),
        4: (False, None),
        5: (False, None),
        6: (False, "nfs4 at /n"),
    }


def test_sparing_scan_reads_again_what_the_host_mounts_and_what_fails_and_the_rest_in_turn() -> None:
    class Texts(ChangingHost):
        def __init__(self) -> None:
            super().__init__()
            self.texts = {1: ROOT, 5: ROOT}
            self.reads: list[str] = []
            self.gone: set[str] = set()

        def read(self, path: str) -> bytes:
            self.reads.append(path)
            return self.texts[int(path.split("/")[2])].encode()

        def observe(self, key: str, measure: Any) -> Any:
            if any(key.endswith(path) for path in self.gone):
                raise OSError(errno.ESTALE, "gone")
            return [64 * MIB, 2 * MIB, 10, 1]

    host, namespaces = Texts(), {1010: [1], 5050: [5]}
    table = MountTable(host)
    for _ in range(3):
        table.scan(namespaces, sparing=True)
    host.texts[1] += line(2, 1, "/host")
    host.texts[5] += line(3, 1, "/inside")
    host.reads.clear()
    assert "0:2" in table.scan(namespaces, sparing=True).superblocks
    assert host.reads == ["/proc/1/mountinfo"]
    seen = [sorted(table.scan(namespaces, sparing=True).superblocks) for _ in range(10)]
    assert seen[-1] == ["0:2", "0:3"]
    host.texts[5] = ROOT
    host.gone.add("/inside")
    assert sorted(table.scan(namespaces, sparing=True).superblocks) == ["0:2"], "a look-up that fails is followed up"
    host.texts[6] = ROOT + line(6, 1, "/other")
    seen = sorted(table.scan({1010: [1], 5050: [6]}, sparing=True).superblocks)
    assert seen == ["0:2", "0:6"], "the number of a namespace that ended is given out again"
    host.texts[5] += line(4, 1, "/again")
    assert sorted(table.scan(namespaces).superblocks) == ["0:2", "0:4"]
