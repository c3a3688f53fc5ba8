"""Claims about kernel/shmem on constructed trees: swap, kernels and drivers that this machine doesn't have, hostile
bytes."""

import errno
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodemem.kernel.capture import ReplayHost
from nodemem.kernel.host import FileStat
from nodemem.kernel.mounts import MountPoint, MountScan, Superblock
from nodemem.kernel.procfs import Process
from nodemem.kernel.shmem import Breakdown, Deep, attribute
from nodemem.kernel.shmemfiles import MappedFile, parse_maps, parse_sysvipc

MIB, GIB = 1 << 20, 1 << 30
HEADER = b" key shmid perms size cpid lpid nattch uid gid cuid cgid atime dtime ctime rss swap\n"
ADDRESS = b"7f0000000000-7f0000800000"
OTHER_ADDRESS = b"7e0000000000-7e0000200000"
OWN_IPC = 4026531839
REGULAR = 0o100600


def process(pid: int, shmem: int | None = 0, swap: int = 0) -> Process:
    return Process(
        pid=pid,
        ppid=1,
        start_time_ticks=0,
        comm="test",
        state="S",
        uid=0,
        kernel_thread=False,
        has_mm=True,
        threads=1,
        rss_anon_bytes=0,
        rss_file_bytes=0,
        rss_shmem_bytes=shmem,
        rss_bytes=shmem or 0,
        swap_bytes=swap,
        page_tables_bytes=0,
        hugetlb_bytes=0,
        virtual_bytes=0,
        oom_score_adj=0,
        cgroup="/",
        mnt_ns=1,
    )


def tmpfs(device: str, used: int | None, mount_id: int = 30, path: str = "/run") -> Superblock:
    return Superblock(
        device=device,
        fstype="tmpfs",
        source="tmpfs",
        options="rw",
        size_bytes=64 * GIB if used is not None else None,
        used_bytes=used,
        inodes=None,
        inodes_used=None,
        unlimited=used is None,
        mounts=[MountPoint(1, path, "/", mount_id, "rw", False)],
        access_pid=1,
        access_path=f"/proc/1/root{path}",
        why_unknown=None if used is not None else "mounted without a size limit",
        measured_at=0.0,
    )


class Tree:
    """A bare tree: files, links and sizes, without what only a live kernel or a capture could tell."""

    def __init__(self, *superblocks: Superblock) -> None:
        self.files: dict[str, bytes] = {"/proc/1/mountinfo": b"25 1 254:0 / / rw - ext4 /dev/vda rw\n"}
        self.links: dict[str, Any] = {"/proc/self/ns/ipc": {"value": f"ipc:[{OWN_IPC}]"}}
        self.stats: dict[str, Any] = {}
        self.superblocks = {one.device: one for one in superblocks}
        self.processes: dict[int, Process] = {}

    def maps(self, one: Process, data: bytes, *sizes: int, device: str = "0:1", nlink: int = 0) -> None:
        """``sizes``: allocated bytes of the mapped objects, in order."""
        self.processes[one.pid] = one
        self.files[f"/proc/{one.pid}/maps"] = data
        for mapping, size in zip(parse_maps(data), sizes, strict=False):
            stat = FileStat(mapping.device, mapping.inode, size // 512, nlink, size, REGULAR, 0.0)
            self.stats[f"/proc/{one.pid}/map_files/{mapping.range}"] = as_answer(stat)

    def fd(self, one: Process, number: int, link: str, fdinfo: bytes, stat: FileStat | None = None) -> None:
        self.processes[one.pid] = one
        self.files.setdefault(f"/proc/{one.pid}/maps", b"")
        self.files[f"/proc/{one.pid}/fd/{number}"] = b""  # to be listed
        self.files[f"/proc/{one.pid}/fdinfo/{number}"] = fdinfo
        self.links[f"/proc/{one.pid}/fd/{number}"] = {"value": link}
        if stat is not None:
            self.stats[f"/proc/{one.pid}/fd/{number}"] = as_answer(stat)

    def segments(self, *lines: bytes) -> None:
        self.files["/proc/sysvipc/shm"] = HEADER + b"".join(lines)

    def host(self) -> ReplayHost:
        return ReplayHost(self.files, {"readlink": self.links, "stat": self.stats})

    def attribute(
        self, shmem: int, *, swap_total: int = 0, swap_free: int = 0, swap_cached: int = 0, deep: Deep = "always"
    ) -> Breakdown:
        fields = {"Shmem": shmem, "SwapTotal": swap_total, "SwapFree": swap_free, "SwapCached": swap_cached}
        mounts = MountScan(self.superblocks, [], {1: 1})
        found = attribute(self.host(), shmem, self.processes, mounts, deep=deep, fields=fields)
        parts = (found.sysv_bytes, found.memfd_bytes, found.shared_anonymous_bytes, found.deleted_open_bytes)
        known = found.tmpfs_bytes + sum(part or 0 for part in parts) + (found.kernel_internal_bytes or 0)
        assert known + found.unattributed_bytes - found.swapped_bytes == shmem
        return found


def as_answer(stat: FileStat) -> dict[str, Any]:
    return {"value": [getattr(stat, name) for name in stat.__slots__]}


def segment(shmid: int, rss: int, swap: int = 0, key: int = 0, perms: bytes = b" 600") -> bytes:
    return b"%10d %10d %s %d 77 0 0 0 0 0 0 0 0 0 %d %d\n" % (key, shmid, perms, rss + swap, rss, swap)


# --- parsers


def test_a_maps_line_gives_device_inode_and_the_name_of_its_map_files_entry() -> None:
    data = (
        b"00400000-00401000 r-xp 00000000 fe:00 18500                            /usr/bin/app\n"
        b"00600000-00700000 rw-s 00000000 00:01 1026                             /dev/zero (deleted)\n"
        b"7f0000000000-7f0000001000 rw-p 00000000 00:00 0 \n"
        b"7f0000100000-7f0000200000 r--p 00001000 00:1c3 7                       /run/a file (deleted)\n"
        b"7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                        [stack]\n"
    )
    assert list(parse_maps(data)) == [
        MappedFile("600000-700000", MIB, True, True, "0:1", 1026, "/dev/zero", True),
        MappedFile("7f0000100000-7f0000200000", MIB, False, False, "0:451", 7, "/run/a file", True),
    ]


def test_only_the_wanted_devices_are_given() -> None:
    data = ADDRESS + b" rw-s 0 00:01 5 /memfd:a (deleted)\n" + ADDRESS + b" rw-s 0 00:1b 6 /dev/shm/b\n"
    assert [one.inode for one in parse_maps(data, {"0:27"})] == [6]


@pytest.mark.parametrize("name", [b"/run/new\\012line", b"/run/\xff\xfe", b"/memfd: (deleted) (deleted)"])
def test_hostile_names_stay_in_their_line(name: bytes) -> None:
    data = ADDRESS + b" rw-s 00000000 00:19 5      " + name + b"\n" + ADDRESS + b" rw-s 0 00:19 6 /b\n"
    assert [one.inode for one in parse_maps(data)] == [5, 6]


@given(st.binary(max_size=300))
def test_maps_of_arbitrary_bytes_are_read_without_harm(data: bytes) -> None:
    assert len(list(parse_maps(data))) <= data.count(b"\n") + 1


@given(
    st.integers(0, 2**47),
    st.integers(1, 2**40),
    st.integers(1, 2**20),
    st.integers(1, 2**64 - 1),
    st.binary(max_size=40).map(lambda raw: raw.replace(b"\n", b"").strip()),
    st.booleans(),
)
def test_what_the_kernel_writes_is_what_is_parsed(
    start: int, length: int, minor: int, inode: int, raw: bytes, deleted: bool
) -> None:
    head = b"%08x-%08x rw-s 00000000 00:%02x %d" % (start, start + length, minor, inode)
    line = head.ljust(73) + b"/" + raw + (b" (deleted)" if deleted else b"") + b"\n"
    (found,) = parse_maps(line)
    assert (found.device, found.inode, found.length_bytes) == (f"0:{minor}", inode, length)
    assert found.range == f"{start:x}-{start + length:x}"
    assert deleted is False or found.deleted


def test_segments_are_read_by_the_names_of_the_columns() -> None:
    line = b"-559038737 3  1600 8192  4242  4243      1     5     0     0     0 1 2 3 4096 8192\n"
    (found,) = parse_sysvipc(HEADER + line)
    assert (found.shmid, found.key, found.removed, found.creator_pid, found.attached) == (3, 0xDEADBEEF, True, 4242, 1)
    assert (found.size_bytes, found.rss_bytes, found.swap_bytes, found.uid) == (8192, 4096, 8192, 5)


@given(st.one_of(st.binary(max_size=300), st.binary(max_size=300).map(lambda raw: HEADER + raw)))
def test_segments_of_arbitrary_bytes_are_read_without_harm(data: bytes) -> None:
    assert len(parse_sysvipc(data)) <= data.count(b"\n")


@given(st.binary(max_size=200), st.binary(max_size=200), st.binary(max_size=200), st.text(max_size=40))
def test_hostile_files_of_a_process_never_break_the_sum(maps: bytes, fdinfo: bytes, shm: bytes, link: str) -> None:
    tree = Tree(tmpfs("0:25", MIB))
    tree.files["/proc/sysvipc/shm"] = HEADER + shm
    tree.maps(process(7, MIB), ADDRESS + b" rw-s 0 00:01 5 /memfd:a (deleted)\n" + maps)
    tree.fd(process(7, MIB), 3, "/dev/dri/" + link, fdinfo)
    tree.fd(process(7, MIB), 4, "/" + link + " (deleted)", fdinfo)
    tree.attribute(8 * MIB)


# --- swap


def test_a_tmpfs_that_is_partly_swapped_out_holds_more_than_is_resident() -> None:
    tree = Tree(tmpfs("0:25", 10 * GIB))
    found = tree.attribute(6 * GIB, swap_total=8 * GIB, swap_free=4 * GIB)
    assert (found.tmpfs_bytes, found.swapped_bytes, found.unattributed_bytes) == (10 * GIB, 4 * GIB, 0)


def test_swap_that_processes_account_for_is_not_taken_for_shared_memory() -> None:
    tree = Tree(tmpfs("0:25", 6 * GIB))
    tree.maps(process(7, 0, swap=4 * GIB), b"")
    found = tree.attribute(6 * GIB, swap_total=8 * GIB, swap_free=4 * GIB)
    assert (found.swapped_bytes, found.unattributed_bytes) == (0, 0)


def test_pages_in_the_swap_cache_are_not_swapped_shared_memory() -> None:
    tree = Tree(tmpfs("0:25", 6 * GIB))
    found = tree.attribute(6 * GIB, swap_total=8 * GIB, swap_free=7 * GIB, swap_cached=GIB)
    assert (found.swapped_bytes, found.unattributed_bytes) == (0, 0)


def test_swapped_segments_are_known_exactly_and_are_the_least_that_is_swapped() -> None:
    tree = Tree()
    tree.segments(segment(3, rss=2 * MIB, swap=6 * MIB))
    tree.maps(process(7, 0, swap=GIB), b"")  # shared after fork: VmSwap explains all swap and more
    found = tree.attribute(2 * MIB, swap_total=GIB, swap_free=GIB - 8 * MIB)
    assert (found.sysv_bytes, found.swapped_bytes, found.unattributed_bytes) == (8 * MIB, 6 * MIB, 0)


def test_swapped_is_never_more_than_the_swap_in_use() -> None:
    found = Tree(tmpfs("0:25", 10 * GIB)).attribute(6 * GIB, swap_total=8 * GIB, swap_free=7 * GIB)
    assert (found.swapped_bytes, found.unattributed_bytes) == (GIB, -3 * GIB)


def test_more_than_shmem_without_swap_is_reported_as_negative() -> None:
    found = Tree(tmpfs("0:25", 3 * MIB)).attribute(2 * MIB)
    assert (found.swapped_bytes, found.unattributed_bytes) == (0, -MIB)


# --- objects


def test_in_a_bare_tree_the_internal_mount_is_known_by_the_names_on_it() -> None:
    tree = Tree()
    tree.maps(process(7, 4 * MIB), ADDRESS + b" rw-s 0 00:05 9 /dev/zero (deleted)\n", 4 * MIB)
    found = tree.attribute(4 * MIB)
    assert [(one.kind, one.device, one.bytes) for one in found.objects] == [("sharedAnonymous", "0:5", 4 * MIB)]


def test_a_memfd_whose_inode_number_is_a_shmid_is_another_object() -> None:
    tree = Tree()
    tree.segments(segment(5, rss=2 * MIB))
    maps = ADDRESS + b" rw-s 0 00:01 5 /memfd:a (deleted)\n"
    maps += OTHER_ADDRESS + b" rw-s 0 00:01 5 /SYSV00000000 (deleted)\n"
    tree.maps(process(7, 3 * MIB), maps, MIB, 2 * MIB)
    found = tree.attribute(3 * MIB)
    assert [(one.kind, one.bytes) for one in found.objects] == [("sysv", 2 * MIB), ("memfd", MIB)]
    assert found.unattributed_bytes == 0


def test_a_memfd_of_huge_pages_is_left_out_by_its_device() -> None:
    tree = Tree()
    maps = ADDRESS + b" rw-s 0 00:01 5 /dev/zero (deleted)\n" + ADDRESS + b" rw-s 0 00:0f 6 /memfd:huge (deleted)\n"
    tree.maps(process(7, MIB), maps, MIB, 64 * MIB)
    assert [one.inode for one in tree.attribute(MIB).objects] == [5]


def test_an_attached_segment_of_huge_pages_is_left_out_by_its_device() -> None:
    tree = Tree()
    tree.segments(segment(5, rss=2 * MIB))
    maps = ADDRESS + b" rw-s 0 00:01 9 /dev/zero (deleted)\n" + ADDRESS + b" rw-s 0 00:0f 5 /SYSV00000000 (deleted)\n"
    tree.maps(process(7, MIB), maps, MIB)
    found = tree.attribute(MIB)
    assert (found.sysv_bytes, found.unattributed_bytes) == (0, 0)


def test_what_a_driver_maps_is_kernel_internal() -> None:
    tree = Tree()
    maps = ADDRESS + b" rw-s 0 00:01 5 /dev/zero (deleted)\n"
    maps += OTHER_ADDRESS + b" rw-s 0 00:01 6 /drm mm object (deleted)\n"
    tree.maps(process(7, 3 * MIB), maps, MIB, 2 * MIB)
    assert tree.attribute(3 * MIB).kernel_internal_bytes == 2 * MIB


DRM = b"pos:\t0\ndrm-driver:\ti915\ndrm-pdev:\t0000:00:02.0\ndrm-client-id:\t4\ndrm-resident-system0:\t3 MiB\n"


def test_graphics_buffers_are_counted_once_for_each_client() -> None:
    tree = Tree()
    tree.fd(process(7), 3, "/dev/dri/card0", DRM)
    tree.fd(process(8), 4, "/dev/dri/card0", DRM)  # the same client, inherited
    tree.fd(process(8), 5, "/dev/dri/card0", DRM.replace(b"\t4\n", b"\t5\n").replace(b"3 MiB", b"1024 KiB"))
    found = tree.attribute(10 * MIB)
    assert (found.kernel_internal_bytes, found.unattributed_bytes) == (4 * MIB, 6 * MIB)


def test_graphics_buffers_never_get_more_than_is_left() -> None:
    tree = Tree(tmpfs("0:25", 9 * MIB))
    tree.fd(process(7), 3, "/dev/dri/renderD128", DRM)
    found = tree.attribute(10 * MIB)
    assert (found.kernel_internal_bytes, found.unattributed_bytes) == (MIB, 0)


def test_deleted_files_are_taken_off_the_tmpfs_that_still_counts_them() -> None:
    tree = Tree(tmpfs("0:25", 10 * MIB, mount_id=30))
    gone = FileStat("0:25", 7, 6 * MIB // 512, 0, 6 * MIB, REGULAR, 0.0)
    tree.fd(process(7), 3, "/run/gone (deleted)", b"pos:\t0\nmnt_id:\t30\n", gone)
    found = tree.attribute(10 * MIB)
    assert (found.tmpfs_bytes, found.deleted_open_bytes, found.unattributed_bytes) == (4 * MIB, 6 * MIB, 0)
    assert found.deleted_open_by_device == {"0:25": 6 * MIB}


def test_deleted_files_of_a_walked_tmpfs_are_not_taken_off_a_walk_that_never_saw_them() -> None:
    tree = Tree(tmpfs("0:25", None, mount_id=30))
    gone = FileStat("0:25", 7, 6 * MIB // 512, 0, 6 * MIB, REGULAR, 0.0)
    tree.fd(process(7), 3, "/run/gone (deleted)", b"pos:\t0\nmnt_id:\t30\n", gone)
    mounts = MountScan(tree.superblocks, [], {1: 1})
    found = attribute(
        tree.host(), 10 * MIB, tree.processes, mounts, deep="always", walked_bytes={"0:25": 4 * MIB}, fields={}
    )
    assert (found.tmpfs_bytes, found.deleted_open_bytes, found.unattributed_bytes) == (4 * MIB, 6 * MIB, 0)


def test_a_deleted_file_of_another_filesystem_is_never_touched() -> None:
    """On NFS or FUSE a stat waits for the server, which may never answer."""

    class Guard(ReplayHost):
        def stat(self, path: str) -> FileStat:
            raise AssertionError(f"stat of {path}")

    tree = Tree(tmpfs("0:25", MIB))
    tree.fd(process(7), 3, "/data/gone (deleted)", b"pos:\t0\nmnt_id:\t25\n")
    tree.fd(process(7), 4, "/memfd:looks-like-one (deleted)", b"pos:\t0\nmnt_id:\t25\n")
    host = Guard(tree.files, {"readlink": tree.links})
    found = attribute(host, MIB, tree.processes, MountScan(tree.superblocks, [], {1: 1}), deep="always", fields={})
    assert found.objects == ()


# --- older kernels, fewer rights


def test_without_map_files_the_size_is_what_the_largest_holder_has_resident() -> None:
    tree = Tree()
    for pid, rss in ((7, 512), (8, 2048)):
        tree.maps(process(pid, rss * 1024), ADDRESS + b" rw-s 0 00:01 5 /memfd:a (deleted)\n")
        smaps = b" rw-s 0 00:01 5 /memfd:a (deleted)\nSize: 8192 kB\nRss:  %d kB\n" % rss
        tree.files[f"/proc/{pid}/smaps"] = ADDRESS + smaps
    (found,) = tree.attribute(2 * MIB).objects
    assert (found.bytes, found.exact, found.holders) == (2 * MIB, False, (7, 8))


def test_an_object_of_unknown_size_is_listed_and_its_bytes_are_unattributed() -> None:
    tree = Tree()
    tree.maps(process(7, MIB), ADDRESS + b" rw-s 0 00:01 5 /memfd:a (deleted)\n")
    tree.stats[f"/proc/7/map_files/{ADDRESS.decode()}"] = {"errno": 1}
    found = tree.attribute(MIB)
    assert [one.bytes for one in found.objects] == [None]
    assert found.unattributed_bytes == MIB
    assert [gap.what for gap in found.unreadable] == ["size of a mapped object"]


def test_before_kernel_4_5_every_process_is_looked_into_and_the_mapped_part_is_unknown() -> None:
    tree = Tree()
    tree.maps(process(7, None), ADDRESS + b" rw-s 0 00:04 5 /dev/zero (deleted)\n", MIB)
    found = tree.attribute(MIB, deep="auto")
    assert (found.shared_anonymous_bytes, found.mapped_estimate_bytes, found.deep) == (MIB, None, False)


def test_before_kernel_3_15_descriptors_have_no_mount_id() -> None:
    tree = Tree(tmpfs("0:25", 2 * MIB))
    gone = FileStat("0:25", 7, MIB // 512, 0, MIB, REGULAR, 0.0)
    tree.fd(process(7), 3, "/run/gone (deleted)", b"pos:\t0\nflags:\t02\n", gone)
    assert tree.attribute(2 * MIB).deleted_open_bytes == MIB


def test_a_process_whose_maps_are_closed_is_named_with_what_it_has_resident() -> None:
    tree = Tree()
    tree.processes[7] = process(7, 5 * MIB)
    host = ReplayHost(tree.files, {"read": {"/proc/7/maps": {"errno": 13}}, "listdir": {"/proc/7/fd": {"errno": 13}}})
    found = attribute(host, 5 * MIB, tree.processes, MountScan({}, [], {}), fields={})
    assert (found.unreadable_rss_bytes, found.unattributed_bytes, found.mapped_estimate_bytes) == (5 * MIB,) * 3
    assert {(gap.what, gap.count) for gap in found.unreadable} >= {
        ("memory maps of a process", 1),
        ("open files of a process", 1),
    }


def test_segments_of_other_ipc_namespaces_come_from_inside_them() -> None:
    tree = Tree()
    tree.processes = {pid: process(pid) for pid in (7, 8, 9)}
    links = {
        "/proc/self/ns/ipc": {"value": f"ipc:[{OWN_IPC}]"},
        "/proc/7/ns/ipc": {"value": "ipc:[99]"},
        "/proc/8/ns/ipc": {"value": "ipc:[98]"},
        "/proc/9/ns/ipc": {"errno": errno.EACCES},
    }
    answers = {"99": (HEADER + segment(0, rss=3 * MIB)).decode(), "98": [1]}
    observed = {"sysvipc of the other IPC namespaces": {"value": answers}}
    host = ReplayHost(tree.files, {"observe": observed, "readlink": links})
    found = attribute(host, 3 * MIB, tree.processes, MountScan({}, [], {}), fields={})
    assert [(one.ipc_ns, one.bytes) for one in found.objects] == [(99, 3 * MIB)]
    assert {(gap.what, gap.why, gap.count) for gap in found.unreadable} >= {
        ("System V segments of an IPC namespace", "entering it needs CAP_SYS_ADMIN", 1),
        ("IPC namespace of a process", "Permission denied", 1),
    }


def test_ipc_namespace_of_a_process_whose_first_thread_has_exited_is_a_threads() -> None:
    tree = Tree()
    tree.processes[7] = process(7)
    tree.files["/proc/7/task/9/comm"] = b"app\n"
    links = tree.links | {"/proc/7/task/9/ns/ipc": {"value": "ipc:[99]"}}
    answers = {"99": (HEADER + segment(0, rss=3 * MIB)).decode()}
    observed = {"sysvipc of the other IPC namespaces": {"value": answers}}
    host = ReplayHost(tree.files, {"observe": observed, "readlink": links})
    found = attribute(host, 3 * MIB, tree.processes, MountScan({}, [], {}), fields={})
    assert [(one.ipc_ns, one.bytes) for one in found.objects] == [(99, 3 * MIB)]


def test_nothing_deep_is_read_where_the_tmpfs_explain_shmem() -> None:
    class Guard(ReplayHost):
        def listdir(self, path: str) -> list[str]:
            raise AssertionError(f"listing of {path}")

    tree = Tree(tmpfs("0:25", 4 * GIB))
    tree.processes[7] = process(7)
    host = Guard(tree.files, {"readlink": {"/proc/7/ns/ipc": {"value": f"ipc:[{OWN_IPC}]"}}})
    found = attribute(host, 4 * GIB + MIB, tree.processes, MountScan(tree.superblocks, [], {1: 1}), fields={})
    assert (found.deep, found.deleted_open_bytes, found.unattributed_bytes) == (False, None, MIB)


def test_two_mappers_of_one_object_have_it_resident_once() -> None:
    tree = Tree()
    for pid in (7, 8, 9):
        tree.maps(process(pid, 4 * MIB), ADDRESS + b" rw-s 0 00:01 5 /memfd:a (deleted)\n", 4 * MIB)
    tree.maps(process(10, MIB), ADDRESS + b" rw-s 0 00:01 6 /memfd:b (deleted)\n", 32 * MIB)
    assert tree.attribute(64 * MIB).mapped_estimate_bytes == 5 * MIB
