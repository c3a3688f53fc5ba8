"""The process table on constructed trees (other kernels, refusals, deaths), and the parsers on arbitrary bytes."""

import errno
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodemem.kernel.capture import ReplayHost
from nodemem.kernel.host import Host, Unreadable
from nodemem.kernel.processfiles import (
    MalformedError,
    Status,
    StatusParser,
    parse_cgroup,
    parse_stat,
    parse_status,
)
from nodemem.kernel.procfs import ROTATION, SETTLING, Process, ProcessScan, ProcessTable

KIB = 1024

# Layouts as fs/proc/array.c and fs/proc/task_mmu.c of these releases print them; every field has another number.
STATUS_3_10 = b"""Name:\tjava
State:\tS (sleeping)
Tgid:\t700
Ngid:\t0
Pid:\t700
PPid:\t1
TracerPid:\t0
Uid:\t1001\t1002\t1003\t1004
Gid:\t100\t100\t100\t100
FDSize:\t64
Groups:\t100 101
VmPeak:\t   90000 kB
VmSize:\t   80000 kB
VmLck:\t       0 kB
VmPin:\t       0 kB
VmHWM:\t   50000 kB
VmRSS:\t   40000 kB
VmData:\t   30000 kB
VmStk:\t     136 kB
VmExe:\t       4 kB
VmLib:\t    5000 kB
VmPTE:\t     300 kB
VmSwap:\t      20 kB
Threads:\t30
SigQ:\t0/15000
"""
STATUS_4_5 = STATUS_3_10.replace(
    b"VmData:", b"RssAnon:\t   30000 kB\nRssFile:\t    9000 kB\nRssShmem:\t    1000 kB\nVmData:"
).replace(b"VmSwap:\t      20 kB\n", b"VmPMD:\t      12 kB\nVmSwap:\t      20 kB\nHugetlbPages:\t    2048 kB\n")
STATUS_4_18 = STATUS_4_5.replace(b"VmPMD:\t      12 kB\n", b"").replace(b"State:", b"Umask:\t0022\nState:")
STATUS_6_18 = STATUS_4_18.replace(b"VmPeak:", b"NStgid:\t700\nKthread:\t0\nVmPeak:").replace(
    b"Threads:", b"CoreDumping:\t0\nTHP_enabled:\t1\nuntag_mask:\t0xffffffffffffffff\nThreads:"
)
STATUS_DEAD = b"Name:\tsh\nState:\tZ (zombie)\nTgid:\t700\nPid:\t700\nPPid:\t5\nUid:\t0\t0\t0\t0\nThreads:\t1\n"
CGROUP_V1 = b"11:memory:/kubepods/pod1/c1\n2:cpu,cpuacct:/other\n1:name=systemd:/kubepods/pod1/c1\n"


def stat(
    comm: bytes = b"java", state: bytes = b"S", flags: int = 0x400000, threads: int = 1, start: int = 4321
) -> bytes:
    return b"700 (%s) %s 1 700 700 0 -1 %d 1 2 3 4 5 6 7 8 20 0 %d 0 %d 81920000 10000\n" % (
        comm,
        state,
        flags,
        threads,
        start,
    )


def files_of(pid: int, status: bytes = STATUS_6_18, **changed: bytes) -> dict[str, bytes]:
    files = {"stat": stat(), "status": status, "oom_score_adj": b"-997\n", "cgroup": CGROUP_V1} | changed
    return {f"/proc/{pid}/{name}": data for name, data in files.items()}


def namespaces_of(*pids: int) -> dict[str, Any]:
    return {f"/proc/{pid}/ns/mnt": {"value": "mnt:[4026531841]"} for pid in pids}


def refused(*paths: str, code: int = errno.EACCES) -> dict[str, Any]:
    return {path: {"errno": code} for path in paths}


def scan(files: Mapping[str, bytes], **answers: Mapping[str, Any]) -> ProcessScan:
    # Process 1 is always there: without it a listing counts as incomplete.
    links = {**namespaces_of(1), **answers.pop("readlink", {})}
    return ProcessTable(ReplayHost({**files_of(1), **files}, {"readlink": links, **answers})).scan()


def only(files: Mapping[str, bytes], **answers: Mapping[str, Any]) -> Process:
    found = scan(files, **answers)
    assert list(found.processes) == [1, 700]
    return found.processes[700]


def test_every_field_of_a_current_kernel_lands_in_its_place() -> None:
    assert only(files_of(700), readlink=namespaces_of(700)) == Process(
        pid=700,
        ppid=1,
        start_time_ticks=4321,
        comm="java",
        state="S",
        uid=1001,
        kernel_thread=False,
        has_mm=True,
        threads=30,
        rss_anon_bytes=30000 * KIB,
        rss_file_bytes=9000 * KIB,
        rss_shmem_bytes=1000 * KIB,
        rss_bytes=40000 * KIB,
        swap_bytes=20 * KIB,
        page_tables_bytes=300 * KIB,
        hugetlb_bytes=2048 * KIB,
        virtual_bytes=80000 * KIB,
        oom_score_adj=-997,
        cgroup="/kubepods/pod1/c1",
        mnt_ns=4026531841,
    )


def test_before_4_5_the_kinds_of_rss_are_unknown_and_not_zero() -> None:
    process = only(files_of(700, STATUS_3_10))
    assert (process.rss_anon_bytes, process.rss_file_bytes, process.rss_shmem_bytes) == (None, None, None)
    assert process.hugetlb_bytes is None
    assert process.rss_bytes == 40000 * KIB
    assert process.swap_bytes == 20 * KIB


def test_page_middle_directories_are_page_tables_where_the_kernel_lists_them_apart() -> None:
    assert parse_status(STATUS_4_5).page_tables_bytes == 312 * KIB
    assert parse_status(STATUS_4_18).page_tables_bytes == 300 * KIB


def test_a_kernel_thread_is_known_by_its_flag_and_asked_for_nothing_more() -> None:
    tree = {"/proc/700/stat": stat(comm=b"kworker/0:1-events", state=b"I", flags=0x04208060)}
    process = only(tree)
    assert (process.kernel_thread, process.has_mm, process.comm) == (True, False, "kworker/0:1-events")
    assert (process.rss_bytes, process.oom_score_adj, process.cgroup) == (0, None, None)


def test_a_zombie_is_counted_and_holds_nothing() -> None:
    found = scan(files_of(700, STATUS_DEAD, stat=stat(state=b"Z")))
    assert found.zombies == 1
    assert found.unreadable == []
    zombie = found.processes[700]
    assert (zombie.has_mm, zombie.rss_bytes, zombie.rss_anon_bytes, zombie.mnt_ns) == (False, 0, 0, None)


def test_a_dead_leader_has_the_memory_of_its_living_thread() -> None:
    dead = STATUS_DEAD.replace(b"Threads:\t1", b"Threads:\t2")
    tree = files_of(700, dead, stat=stat(state=b"Z", threads=2))
    tree["/proc/700/task/700/status"] = dead
    tree["/proc/700/task/701/status"] = STATUS_6_18.replace(b"Name:\tjava", b"Name:\tworker")
    tree["/proc/700/task/701/cgroup"] = CGROUP_V1.replace(b"pod1/c1", b"pod1/c2")
    links = {path.replace("/700/", "/700/task/701/"): link for path, link in namespaces_of(700).items()}
    found = scan(tree, readlink=links)
    process = found.processes[700]
    assert found.zombies == 0
    assert (process.rss_anon_bytes, process.has_mm) == (30000 * KIB, True)
    assert (process.comm, process.state, process.ppid) == ("sh", "Z", 5)
    assert (process.cgroup, process.mnt_ns) == ("/kubepods/pod1/c2", 4026531841)


def test_a_process_that_exits_while_it_is_read_is_vanished_and_not_half_known() -> None:
    tree = files_of(700)
    del tree["/proc/700/status"]
    found = scan(tree)
    assert (list(found.processes), found.vanished) == ([1], 1)


def test_esrch_in_the_middle_of_a_process_is_vanished_too() -> None:
    tree = files_of(700)
    del tree["/proc/700/status"]
    found = scan(tree, read=refused("/proc/700/status", code=errno.ESRCH))
    assert (list(found.processes), found.vanished, found.unreadable) == ([1], 1, [])


def test_namespaces_refused_to_a_user_are_unknown_and_said_once_with_their_number() -> None:
    paths = [f"/proc/{pid}/ns/mnt" for pid in (700, 701)]
    found = scan(files_of(700) | files_of(701), readlink=refused(*paths))
    assert found.processes[701].mnt_ns is None
    assert found.processes[701].rss_bytes == 40000 * KIB
    assert found.unreadable == [Unreadable("/proc/<pid>/ns/mnt", "Permission denied", 2)]


def test_hidepid_1_leaves_out_the_refused_processes_and_counts_them() -> None:
    tree = {"/proc/700/status": b"", "/proc/701/status": b""}
    found = scan(tree, read=refused("/proc/700/stat", "/proc/701/stat", code=errno.EPERM))
    assert list(found.processes) == [1]
    assert found.unreadable == [Unreadable("/proc/<pid>", "Operation not permitted", 2)]


def test_hidepid_2_is_told_by_the_missing_process_1() -> None:
    mounts = b"proc /proc proc rw,relatime,hidepid=invisible 0 0\n"
    found = ProcessTable(ReplayHost(files_of(700) | {"/proc/self/mounts": mounts})).scan()
    assert list(found.processes) == [700]
    assert found.unreadable == [
        Unreadable("processes of other users", "/proc is mounted with hidepid=invisible"),
    ]


def test_without_proc_there_is_a_sentence_and_no_traceback() -> None:
    found = ProcessTable(ReplayHost({})).scan()
    assert found.processes == {}
    assert [missing.what for missing in found.unreadable] == ["/proc"]


@pytest.mark.parametrize("name", ["stat", "status", "oom_score_adj"])
def test_a_damaged_file_costs_one_process_and_is_said(name: str) -> None:
    found = scan(files_of(700, **{name: b"\xff(\x00"}))
    assert list(found.processes) == [1]
    assert [(missing.what, missing.count) for missing in found.unreadable] == [("/proc/<pid>", 1)]


def test_fields_after_4095_bytes_of_groups_are_found() -> None:
    groups = b"Groups:\t" + b" ".join(b"%d" % number for number in range(2000, 4000))
    assert only(files_of(700, STATUS_6_18.replace(b"Groups:\t100 101", groups))).rss_bytes == 40000 * KIB


def test_a_status_cut_after_the_fields_in_use_is_not_read_again() -> None:
    class Counting(ReplayHost):
        whole_reads = 0

        def read(self, path: str) -> bytes:
            if path.endswith("status"):
                self.whole_reads += 1
            return super().read(path)

        def read_small(self, path: str) -> bytes:
            return super().read(path)[:4095]

    host = Counting(files_of(1, STATUS_6_18 + b"Mems_allowed:\t" + b"00000000," * 1000))
    assert ProcessTable(host).scan().processes[1].rss_bytes == 40000 * KIB
    assert host.whole_reads == 0


def test_a_cgroup_path_longer_than_a_small_read_is_whole() -> None:
    deep = "/" + "/".join("d" * 200 for _ in range(30))
    tree = files_of(700, cgroup=b"2:cpu:/\n1:memory:" + deep.encode() + b"\n")
    assert only(tree, readlink=namespaces_of(700)).cgroup == deep


def test_processes_of_one_container_share_one_string() -> None:
    found = scan(files_of(700) | files_of(701)).processes
    assert found[700].cgroup is found[701].cgroup


def test_namespaces_are_grouped_with_ascending_pids() -> None:
    found = scan(files_of(701) | files_of(700), readlink=namespaces_of(700, 701))
    assert found.mount_namespaces() == {4026531841: [1, 700, 701]}


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (CGROUP_V1, b"/kubepods/pod1/c1"),
        (b"0::/kubepods.slice/x\n", b"/kubepods.slice/x"),
        (b"4:memory:/m\n0::/u\n", b"/m"),
        (b"9:name=systemd:/a:memory:/b\n4:memory:/m:memory:/n\n", b"/m:memory:/n"),
        (b"0::/u:memory:/v\n", b"/u:memory:/v"),
        (b"0::/u\n4:memory:/m", b"/m"),
        (b"0::/u\n4:cpu,memory:/m\n", b"/m"),
        (b"1:name=memory:/wrong\n0::/u\n", b"/u"),
        (b"0::/with:colon:\xff\n", b"/with:colon:\xff"),
        (b"5:cpu:/a\n", None),
        (b"", None),
    ],
)
def test_the_hierarchy_with_the_memory_controller_gives_the_cgroup(text: bytes, path: bytes | None) -> None:
    assert parse_cgroup(text) == path


class Moving(Host):
    """One process of which the test sets the files between scans; listed with an inode as the live kernel does."""

    def __init__(self) -> None:
        super().__init__("")
        self.files = files_of(1) | {"/proc/1/statm": b"20000 10000 2500 1 0 7500 0\n"}
        self.inode = 77

    def observe(self, key: str, measure: object) -> Any:
        return {"1": self.inode}

    def read(self, path: str) -> bytes:
        if path not in self.files:
            raise FileNotFoundError(errno.ENOENT, "gone", path)
        return self.files[path]

    def read_small(self, path: str) -> bytes:
        return self.read(path)[:4095]

    def readlink(self, path: str) -> str:
        kind = path.rpartition("/")[2]
        return f"{kind}:[4026531840]"


def settled(host: Host) -> ProcessTable:
    table = ProcessTable(host)
    for _ in range(1 + SETTLING):
        table.scan()
    return table


def test_an_unchanged_process_is_the_same_object() -> None:
    host = Moving()
    table = settled(host)
    objects = {id(table.scan().processes[1]) for _ in range(3)}
    assert len(objects) == 1


def test_a_changed_statm_is_followed_by_a_new_status() -> None:
    host = Moving()
    table = settled(host)
    before = table.scan().processes[1]
    host.files["/proc/1/statm"] = b"20000 10001 2500 1 0 7500 0\n"
    host.files["/proc/1/status"] = STATUS_6_18.replace(b"30000 kB", b"30004 kB")
    assert table.scan().processes[1].rss_anon_bytes == 30004 * KIB
    assert before.rss_anon_bytes == 30000 * KIB


def test_what_statm_does_not_show_is_seen_within_one_rotation() -> None:
    host = Moving()
    table = settled(host)
    host.files["/proc/1/oom_score_adj"] = b"500\n"
    seen = [table.scan().processes[1].oom_score_adj for _ in range(ROTATION)]
    assert seen[-1] == 500
    assert seen == sorted(seen, key=lambda adj: adj == 500)


def test_everything_is_read_again_in_the_first_scans_of_a_process() -> None:
    host = Moving()
    table = ProcessTable(host)
    table.scan()
    for adj in range(SETTLING):
        host.files["/proc/1/oom_score_adj"] = b"%d\n" % adj
        assert table.scan().processes[1].oom_score_adj == adj


def test_a_new_name_means_that_everything_is_read_again() -> None:
    host = Moving()
    table = settled(host)
    host.files["/proc/1/statm"] = b"1 1 1 1 0 1 0\n"
    host.files["/proc/1/status"] = STATUS_6_18.replace(b"java", b"bash")
    host.files["/proc/1/cgroup"] = CGROUP_V1.replace(b"/pod1/c1", b"/pod9/c9")
    process = table.scan().processes[1]
    assert (process.comm, process.cgroup) == ("bash", "/kubepods/pod9/c9")


def test_a_reused_pid_inherits_nothing_even_with_the_same_sizes() -> None:
    host = Moving()
    table = settled(host)
    host.inode += 1
    host.files["/proc/1/stat"] = stat(start=9999)
    host.files["/proc/1/oom_score_adj"] = b"3\n"
    process = table.scan().processes[1]
    assert (process.start_time_ticks, process.oom_score_adj) == (9999, 3)


def test_a_new_inode_of_the_same_process_costs_no_full_read() -> None:
    host = Moving()
    table = settled(host)
    before = table.scan().processes[1]
    host.inode += 1
    assert table.scan().processes[1] is before


def test_a_full_scan_believes_nothing_from_before() -> None:
    host = Moving()
    table = settled(host)
    host.files["/proc/1/oom_score_adj"] = b"7\n"
    assert table.scan(full=True).processes[1].oom_score_adj == 7


def test_a_process_gone_is_forgotten() -> None:
    host = Moving()
    table = settled(host)
    saved = dict(host.files)
    host.files.clear()
    found = table.scan()
    assert (found.processes, found.vanished) == ({}, 1)
    host.files.update(saved, **{"/proc/1/oom_score_adj": b"8\n"})
    assert table.scan().processes[1].oom_score_adj == 8


def test_memory_of_containers_that_came_and_went_is_given_back() -> None:
    host = Moving()
    table = ProcessTable(host)
    for number in range(100):
        host.inode += 1
        host.files["/proc/1/stat"] = stat(start=number)
        host.files["/proc/1/cgroup"] = b"0::/kubepods/pod%d\n" % number
        assert table.scan().processes[1].cgroup == f"/kubepods/pod{number}"
    assert len(table._cgroups) <= 3
    assert len(table._seen) == 1


@given(st.binary(max_size=600))
def test_arbitrary_bytes_are_refused_with_what_was_expected(data: bytes) -> None:
    for parse in (parse_stat, parse_status, StatusParser().parse):
        with pytest.raises(MalformedError, match="expected"):
            parse(data)
    assert parse_cgroup(data) is None or parse_cgroup(data) in data


@given(st.sampled_from([STATUS_3_10, STATUS_4_5, STATUS_4_18, STATUS_6_18]), st.data())
def test_a_damaged_status_is_parsed_or_refused(status: bytes, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(status)))
    end = data.draw(st.integers(start, min(len(status), start + 40)))
    damaged = status[:start] + data.draw(st.binary(max_size=8)) + status[end:]
    parser = StatusParser()
    parser.parse(status)
    for parse in (parser.parse, parse_status):
        with suppress(MalformedError):
            assert isinstance(parse(damaged), Status)


@given(
    st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, 2**31), st.integers(-1, 2**22)
)
def test_the_learned_layout_reads_the_same_as_the_plain_parser(
    size: int, rss: int, anon: int, uid: int, ppid: int
) -> None:
    parser = StatusParser()
    parser.parse(STATUS_6_18)
    other = (
        re.sub(rb"VmSize:\t *\d+", b"VmSize:\t%8d" % size, STATUS_6_18)
        .replace(b"VmRSS:\t   40000", b"VmRSS:\t%8d" % rss)
        .replace(b"RssAnon:\t   30000", b"RssAnon:\t%8d" % anon)
        .replace(b"Uid:\t1001", b"Uid:\t%d" % uid)
        .replace(b"PPid:\t1", b"PPid:\t%d" % ppid)
    )
    assert parser.parse(other) == parse_status(other)
    assert parser.parse(other).rss_bytes == rss * KIB


@pytest.mark.parametrize("status", [STATUS_3_10, STATUS_4_5, STATUS_4_18, STATUS_6_18, STATUS_DEAD])
def test_a_parser_that_knows_another_layout_is_not_misled(status: bytes) -> None:
    for first in (STATUS_4_5, STATUS_4_18, STATUS_6_18):
        parser = StatusParser()
        parser.parse(first)
        assert parser.parse(status) == parse_status(status)


@given(st.binary(max_size=15).filter(lambda comm: b"\0" not in comm))
def test_a_name_of_any_bytes_comes_back_as_it_was(comm: bytes) -> None:
    escaped = comm.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
    status = STATUS_6_18.replace(b"Name:\tjava", b"Name:\t" + escaped)
    parser = StatusParser()
    parser.parse(STATUS_6_18)
    assert parse_status(status).comm == comm
    assert parser.parse(status).comm == comm
    assert parse_stat(stat(comm=comm)).start_time_ticks == 4321
    assert parse_stat(stat(comm=comm)).comm == comm


@given(st.text(alphabet="\udcff\udc80é) (\n\\a", max_size=6))
def test_a_name_reaches_the_table_with_its_bytes_kept(name: str) -> None:
    raw = name.encode("utf-8", "surrogateescape")
    escaped = raw.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
    tree = files_of(700, STATUS_6_18.replace(b"Name:\tjava", b"Name:\t" + escaped), stat=stat(comm=escaped))
    assert only(tree).comm.encode("utf-8", "surrogateescape") == raw
