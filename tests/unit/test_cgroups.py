"""Claims about kernel/cgroups on constructed trees: v2, v1 and hybrid machines, older kernels, containers' views."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cgrouptrees import (
    HYBRID_MOUNTINFO,
    LAYOUTS,
    NODE_ID,
    V1_MOUNTINFO,
    V2_MOUNTINFO,
    Figures,
    kubernetes_node,
    v1_files,
    v1_host,
    v2_files,
    v2_host,
)
from nodemem.kernel.capture import ReplayHost
from nodemem.kernel.cgroups import ancestors, discover, effective_limits

SMALL = {"/": Figures(usage=None), "/a": Figures(limit=1 << 30), "/a/b": Figures(limit=2 << 30), "/c": Figures()}


def test_a_v2_machine_is_found_by_its_controllers() -> None:
    hierarchy = discover(v2_host(SMALL))
    assert (hierarchy.version, hierarchy.memory_version) == ("v2", "v2")
    assert list(hierarchy.walk()) == ["/", "/a", "/a/b", "/c"]
    assert hierarchy.unreadable == []


def test_a_v1_machine_is_found_by_the_super_options_and_not_by_the_mount_point() -> None:
    mountinfo = V1_MOUNTINFO.replace(b"/sys/fs/cgroup/memory", b"/cgroups/all").replace(b"rw,memory", b"rw,cpu,memory")
    files = v1_files("/proc/1/root/cgroups/all", SMALL)
    hierarchy = discover(ReplayHost({"/proc/1/mountinfo": mountinfo, **files}))
    assert (hierarchy.version, hierarchy.memory_version) == ("v1", "v1")
    assert list(hierarchy.walk()) == ["/", "/a", "/a/b", "/c"]


def test_a_hybrid_machine_has_the_memory_controller_on_v1() -> None:
    unified = {"/proc/1/root/sys/fs/cgroup/unified/cgroup.controllers": b"hugetlb\n"}
    hierarchy = discover(v1_host(SMALL, unified, mountinfo=HYBRID_MOUNTINFO))
    assert (hierarchy.version, hierarchy.memory_version) == ("hybrid", "v1")


def test_v2_beside_v1_controllers_is_hybrid_with_the_memory_controller_on_v2() -> None:
    # cgroup_no_v1=memory
    mountinfo = HYBRID_MOUNTINFO.replace(b"rw,memory", b"rw,pids")
    files = v2_files("/proc/1/root/sys/fs/cgroup/unified", SMALL)
    hierarchy = discover(ReplayHost({"/proc/1/mountinfo": mountinfo, **files}))
    assert (hierarchy.version, hierarchy.memory_version) == ("hybrid", "v2")
    assert hierarchy.read("/a").limit_bytes == 1 << 30


def test_a_named_hierarchy_called_memory_is_not_the_memory_controller() -> None:
    mountinfo = b"32 31 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,xattr,name=memory\n"
    files = v1_files("/proc/1/root/sys/fs/cgroup/memory", SMALL)
    assert discover(ReplayHost({"/proc/1/mountinfo": mountinfo, **files})).version is None


def test_without_a_cgroup_mount_there_is_no_hierarchy_and_a_reason() -> None:
    hierarchy = discover(ReplayHost({"/proc/1/mountinfo": b"22 27 0:21 / /proc rw - proc proc rw\n"}))
    assert (hierarchy.version, hierarchy.memory_version) == (None, None)
    assert list(hierarchy.walk()) == []
    assert hierarchy.scan() == {}
    whats = [problem.what for problem in hierarchy.unreadable]
    assert whats == ["/proc/self/mountinfo", "memory cgroups"]


def test_v2_without_the_memory_controller_is_none() -> None:
    files = {"/proc/1/root/sys/fs/cgroup/cgroup.controllers": b"cpu io\n", "/proc/1/mountinfo": V2_MOUNTINFO}
    assert discover(ReplayHost(files)).version is None


def test_init_out_of_reach_leaves_this_process_s_own_view_and_says_so() -> None:
    files = {"/proc/self/mountinfo": V2_MOUNTINFO, **v2_files("/proc/self/root/sys/fs/cgroup", SMALL)}
    hierarchy = discover(ReplayHost(files, {"read": {"/proc/1/mountinfo": {"errno": errno.EACCES}}}))
    assert hierarchy.version == "v2"
    assert list(hierarchy.walk()) == ["/", "/a", "/a/b", "/c"]
    assert [(problem.what, problem.why) for problem in hierarchy.unreadable] == [
        ("/proc/1/mountinfo", "Permission denied")
    ]


def test_the_same_mount_reached_through_this_process_is_no_loss() -> None:
    files = {"/proc/1/mountinfo": V2_MOUNTINFO, "/proc/self/mountinfo": V2_MOUNTINFO}
    files |= v2_files("/proc/self/root/sys/fs/cgroup", SMALL)
    denied = {"read": {"/proc/1/root/sys/fs/cgroup/cgroup.controllers": {"errno": errno.EACCES}}}
    hierarchy = discover(ReplayHost(files, denied))
    assert hierarchy.version == "v2"
    assert hierarchy.unreadable == []


def test_a_plain_copy_of_a_machine_s_files_is_read_where_it_was_mounted() -> None:
    files = {"/proc/1/mountinfo": V2_MOUNTINFO, **v2_files("/sys/fs/cgroup", SMALL)}
    assert list(discover(ReplayHost(files)).walk()) == ["/", "/a", "/a/b", "/c"]


def test_a_mount_hidden_by_another_filesystem_is_not_taken_for_the_hierarchy() -> None:
    place = "/proc/1/root/sys/fs/cgroup"
    stat = {place: {"value": ["0:99", 1, 0, 2, 0, 0o40555, 0.0]}}
    files = {"/proc/1/mountinfo": V2_MOUNTINFO, **v2_files(place, SMALL)}
    assert discover(ReplayHost(files, {"stat": stat})).version is None
    stat[place]["value"] = ["0:26", 1, 0, 2, 0, 0o40555, 0.0]
    assert discover(ReplayHost(files, {"stat": stat})).version == "v2"


def test_the_whole_tree_is_preferred_over_a_part_mounted_earlier() -> None:
    part = b"29 23 0:26 /kubepods /mnt/part rw - cgroup2 cgroup2 rw\n"
    files = {"/proc/1/mountinfo": part + V2_MOUNTINFO, **v2_files("/proc/1/root/sys/fs/cgroup", SMALL)}
    files |= v2_files("/proc/1/root/mnt/part", {"/": Figures()})
    assert discover(ReplayHost(files)).directory == "/proc/1/root/sys/fs/cgroup"


def test_v2_figures_are_read_under_their_names() -> None:
    held = Figures(usage=9, limit=10, anon=1, file=2, shmem=3, swap=4, kernel=5, oom=6, oom_kill=7, oom_group=True)
    cgroup = discover(v2_host({"/": Figures(), "/a": held})).read("/a")
    assert cgroup.complete
    assert (cgroup.usage_bytes, cgroup.limit_bytes, cgroup.high_bytes) == (9, 10, None)
    assert (cgroup.anon_bytes, cgroup.file_bytes, cgroup.shmem_bytes, cgroup.kernel_bytes) == (1, 2, 3, 5)
    assert (cgroup.swap_usage_bytes, cgroup.swap_limit_bytes, cgroup.memsw_limit_bytes) == (4, 0, None)
    assert (cgroup.oom_events, cgroup.oom_kill_events, cgroup.oom_group_kill_events) == (6, 7, 0)
    assert (cgroup.oom_events_local, cgroup.oom_kill_events_local) == (0, 0)
    assert (cgroup.oom_group, cgroup.oom_kill_disable, cgroup.swappiness) == (True, None, None)


def test_the_root_of_v2_has_no_usage_rather_than_none_used() -> None:
    cgroup = discover(v2_host(SMALL)).read("/")
    assert cgroup.usage_bytes is None
    assert cgroup.oom_events is None
    assert cgroup.anon_bytes == 600_000


def test_kernel_memory_before_5_18_is_the_sum_of_its_parts() -> None:
    cgroup = discover(v2_host({"/": Figures(), "/a": Figures(kernel=None)})).read("/a", cheap=True)
    assert cgroup.kernel_bytes == 16384 + 8192 + 1024 + 10000


def test_v2_without_swap_accounting_has_unknown_swap() -> None:
    cgroup = discover(v2_host(SMALL, swap=False)).read("/a")
    assert (cgroup.swap_usage_bytes, cgroup.swap_limit_bytes) == (None, None)


def test_a_v2_cgroup_without_the_memory_controller_is_there_with_nothing_known() -> None:
    service = {"/proc/1/root/sys/fs/cgroup/c/s/cgroup.procs": b"12\n13\n"}
    hierarchy = discover(v2_host(SMALL, service))
    assert "/c/s" in list(hierarchy.walk())
    cgroup = hierarchy.read("/c/s")
    assert (cgroup.usage_bytes, cgroup.anon_bytes, cgroup.limit_bytes) == (None, None, None)
    assert hierarchy.procs("/c/s") == [12, 13]


def test_v1_figures_are_those_of_the_whole_subtree() -> None:
    held = Figures(usage=9, limit=4096, anon=11, file=12, shmem=13, swap=14, kernel=5, oom_kill=7)
    cgroup = discover(v1_host({"/": Figures(), "/a": held})).read("/a")
    assert (cgroup.usage_bytes, cgroup.limit_bytes, cgroup.memsw_limit_bytes) == (9, 4096, None)
    assert (cgroup.anon_bytes, cgroup.file_bytes, cgroup.shmem_bytes, cgroup.kernel_bytes) == (11, 12, 13, 5)
    assert (cgroup.swap_usage_bytes, cgroup.swap_limit_bytes, cgroup.swappiness) == (14, None, 60)
    assert (cgroup.oom_kill_events, cgroup.oom_events, cgroup.oom_group) == (7, None, None)
    assert (cgroup.oom_kill_disable, cgroup.under_oom) == (False, False)


@pytest.mark.parametrize(
    "unlimited",
    [
        b"9223372036854771712\n",  # 4 KiB pages
        b"9223372036854710272\n",  # 64 KiB pages
        b"9223372036854775807\n",  # before 3.19
        b"8796093018112\n",  # 32-bit kernels
    ],
)
def test_a_v1_limit_never_set_is_none(unlimited: bytes) -> None:
    hierarchy = discover(v1_host({"/": Figures(), "/a": Figures()}, unlimited=unlimited))
    assert hierarchy.read("/a").limit_bytes is None
    assert hierarchy.read("/a").memsw_limit_bytes is None
    assert hierarchy.effective_limit("/a") is None


def test_v1_kernels_without_shmem_and_oom_kill_leave_them_unknown() -> None:
    # memory.stat has shmem since 4.11 or so, memory.oom_control has oom_kill since 4.13; 3.10 has neither.
    place = "/proc/1/root/sys/fs/cgroup/memory/a"
    old = {
        f"{place}/memory.stat": b"cache 1\nrss 2\nhierarchical_memory_limit 9\ntotal_cache 30\ntotal_rss 40\n",
        f"{place}/memory.oom_control": b"oom_kill_disable 1\nunder_oom 1\n",
    }
    cgroup = discover(v1_host({"/": Figures(), "/a": Figures()}, old)).read("/a")
    assert (cgroup.anon_bytes, cgroup.file_bytes, cgroup.shmem_bytes, cgroup.swap_usage_bytes) == (40, 30, None, None)
    assert (cgroup.oom_kill_events, cgroup.oom_kill_disable, cgroup.under_oom) == (None, True, True)


@pytest.mark.parametrize("make", [v1_host, v2_host])
def test_the_effective_limit_is_the_smallest_on_the_way_up(make) -> None:  # type: ignore[no-untyped-def]
    hierarchy = discover(make(SMALL))
    assert hierarchy.read("/a/b").limit_bytes == 2 << 30
    assert hierarchy.effective_limit("/a/b") == 1 << 30
    assert hierarchy.effective_limit("/c") is None
    assert effective_limits(hierarchy.scan()) == {"/": None, "/a": 1 << 30, "/a/b": 1 << 30, "/c": None}


class CountingHost(ReplayHost):
    """Counts the files read."""

    reads = 0

    def read(self, path: str) -> bytes:
        self.reads += 1
        return super().read(path)


@pytest.mark.parametrize(("make", "full"), [(v1_host, 7), (v2_host, 9)])
def test_cheap_reads_are_two_files_and_full_ones_as_many_as_documented(make, full: int) -> None:  # type: ignore[no-untyped-def]
    host = CountingHost(make(SMALL)._files)
    hierarchy = discover(host)
    host.reads = 0
    cheap = hierarchy.read("/a", cheap=True)
    assert (cheap.complete, cheap.shmem_bytes, cheap.limit_bytes) == (False, 100_000, None)
    assert host.reads == 2
    hierarchy.read("/a")
    assert host.reads == 2 + full


def test_memory_stat_longer_than_one_small_read_is_read_to_its_end() -> None:
    many = {f"a_long_name_of_a_counter_{number}": number for number in range(200)}
    tree = {"/": Figures(), "/a": Figures(stat={**many, "kernel": 77})}
    place = "/proc/1/root/sys/fs/cgroup/a/memory.stat"
    host = v2_host(tree)
    lines = host.read(place).replace(b"shmem 100000\n", b"") + b"shmem 4242\n"
    assert len(lines) > 4095
    assert discover(v2_host(tree, {place: lines})).read("/a").shmem_bytes == 4242


def test_a_vanished_cgroup_is_left_out_of_a_scan_and_an_error_when_asked_for() -> None:
    place = "/proc/1/root/sys/fs/cgroup"
    files = {"/proc/1/mountinfo": V2_MOUNTINFO, **v2_files(place, {"/": Figures(), "/a": Figures()})}
    # Listed with "gone" in it, which then has no files; "/a" is removed between open and read.
    observe = {f"child cgroups of {place}": {"value": [[7, "gone"], [9, "a"]]}}
    observe[f"child cgroups of {place}/a"] = {"value": []}
    hierarchy = discover(ReplayHost(files, {"observe": observe}))
    assert list(hierarchy.scan()) == ["/", "/a"]
    with pytest.raises(FileNotFoundError):
        hierarchy.read("/gone")
    with pytest.raises(FileNotFoundError):
        hierarchy.effective_limit("/gone")
    assert hierarchy.procs("/gone") == []
    assert hierarchy.unreadable == []

    for name in ("memory.stat", "cgroup.procs", "memory.current"):
        del files[f"{place}/a/{name}"]
    dying = {f"{place}/a/{name}": {"errno": errno.ENODEV} for name in ("memory.stat", "cgroup.procs")}
    hierarchy = discover(ReplayHost(files, {"observe": observe, "read": dying}))
    assert list(hierarchy.scan()) == ["/"]


def test_siblings_come_in_the_order_of_their_inode_numbers() -> None:
    place = "/proc/1/root/sys/fs/cgroup"
    files = {"/proc/1/mountinfo": V2_MOUNTINFO, **v2_files(place, SMALL)}
    observe = {f"child cgroups of {place}": {"value": [[5, "c"], [4294967301, "a"]]}}
    assert list(discover(ReplayHost(files, {"observe": observe})).walk()) == ["/", "/c", "/a", "/a/b"]


def test_pruned_cgroups_are_left_out_with_all_below() -> None:
    hierarchy = discover(v2_host(SMALL))
    assert list(hierarchy.walk(prune=lambda path: path == "/a")) == ["/", "/c"]
    assert list(hierarchy.walk("/a")) == ["/a", "/a/b"]


def test_unreadable_files_are_counted_by_name() -> None:
    place = "/proc/1/root/sys/fs/cgroup"
    files = {"/proc/1/mountinfo": V2_MOUNTINFO, **v2_files(place, SMALL)}
    denied = {}
    for path in ("/a", "/c"):
        del files[f"{place}{path}/memory.current"]
        denied[f"{place}{path}/memory.current"] = {"errno": errno.EACCES}
    hierarchy = discover(ReplayHost(files, {"read": denied}))
    assert hierarchy.scan()["/a"].usage_bytes is None
    assert [(problem.what, problem.count) for problem in hierarchy.unreadable] == [("cgroup file memory.current", 2)]


def test_a_threaded_cgroup_has_no_processes_of_its_own() -> None:
    place = "/proc/1/root/sys/fs/cgroup"
    files = {"/proc/1/mountinfo": V2_MOUNTINFO, **v2_files(place, SMALL)}
    del files[f"{place}/c/cgroup.procs"]
    threaded = {f"{place}/c/cgroup.procs": {"errno": errno.EOPNOTSUPP}}
    hierarchy = discover(ReplayHost(files, {"read": threaded}))
    assert hierarchy.procs("/c") == []
    assert hierarchy.unreadable == []


def test_processes_of_a_subtree_come_in_the_order_of_the_walk() -> None:
    tree = {"/": Figures(procs=[1]), "/a": Figures(procs=[9]), "/a/b": Figures(procs=[3, 2]), "/c": Figures(procs=[4])}
    hierarchy = discover(v2_host(tree))
    assert hierarchy.subtree_procs("/") == [1, 9, 3, 2, 4]
    assert hierarchy.subtree_procs("/a") == [9, 3, 2]


def test_processes_of_other_pid_namespaces_are_left_out() -> None:
    hierarchy = discover(v2_host({"/": Figures(procs=[0, 0, 5])}))
    assert hierarchy.procs("/") == [5]


def test_dots_do_not_lead_out_of_the_hierarchy() -> None:
    hierarchy = discover(v2_host(SMALL, {"/proc/1/root/sys/fs/memory.stat": b"anon 1\n"}))
    for path in ("/..", "/../memory", "/a/../../x", "/a/.."):
        with pytest.raises(FileNotFoundError):
            hierarchy.read(path)
    assert hierarchy.resolve("/../x") is None


def test_a_process_is_placed_by_the_line_of_the_memory_controller() -> None:
    proc = b"9:name=systemd:/s\n4:cpu,memory:/kubepods/pod1/x\n3:cpuset:/\n0::/unified\n"
    assert discover(v1_host(SMALL)).path_of(proc) == "/kubepods/pod1/x"
    assert discover(v2_host(SMALL)).path_of(proc) == "/unified"
    assert discover(v2_host(SMALL)).path_of(b"0::/a:b:c (deleted)\n") == "/a:b:c"
    assert discover(v2_host(SMALL)).path_of(b"4:memory:/x\n") is None


def test_a_part_mounted_without_a_namespace_keeps_the_full_names() -> None:
    """kind on cgroup v1: init's mountinfo and every /proc/<pid>/cgroup show the container's path."""
    mountinfo = V1_MOUNTINFO.replace(b"0:33 / ", f"0:33 /docker/{NODE_ID} ".encode())
    hierarchy = discover(v1_host(SMALL, mountinfo=mountinfo))
    top = f"/docker/{NODE_ID}"
    assert hierarchy.root == top
    assert list(hierarchy.walk()) == [top, f"{top}/a", f"{top}/a/b", f"{top}/c"]
    assert hierarchy.read(f"{top}/a").limit_bytes == 1 << 30
    assert hierarchy.effective_limit(f"{top}/a/b") == 1 << 30
    assert hierarchy.path_of(f"4:memory:{top}/a\n".encode()) == f"{top}/a"
    assert hierarchy.path_of(b"4:memory:/system.slice/docker.service\n") is None
    with pytest.raises(FileNotFoundError):
        hierarchy.read("/a")


def test_an_agent_in_a_cgroup_namespace_of_its_own_finds_every_process_s_cgroup() -> None:
    """What a container sees of the host's init: roots and paths that go up from the container's own cgroup."""
    agent = "/kubepods/burstable/pod1/agent"
    tree = {path: Figures() for path in [*reversed(ancestors(agent)), "/system.slice", "/kubepods/burstable/pod2"]}
    tree[agent] = Figures(procs=[77])
    files = {
        "/proc/self/cgroup": b"0::/\n",
        "/proc/1/mountinfo": V2_MOUNTINFO.replace(b"0:26 / ", b"0:26 /../../../.. "),
    }
    host = v2_host(tree, files)
    answers = {"readlink": {"/proc/self": {"value": "77"}}}
    hierarchy = discover(ReplayHost(host._files, answers))
    assert hierarchy.root == "/"
    assert hierarchy.path_of(b"0::/../../../../system.slice\n") == "/system.slice"
    assert hierarchy.path_of(b"0::/../../../..\n") == "/"
    assert hierarchy.path_of(b"0::/../../pod2\n") == "/kubepods/burstable/pod2"
    assert hierarchy.path_of(b"0::/\n") == agent
    assert hierarchy.path_of(b"0::/child\n") == f"{agent}/child"
    assert hierarchy.path_of(b"0::/../../../../../x\n") is None


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
@pytest.mark.parametrize("make", [v1_host, v2_host])
def test_every_layout_s_containers_are_walked_and_their_limits_found(layout, make) -> None:  # type: ignore[no-untyped-def]
    tree = kubernetes_node(layout, {"Guaranteed": 1 << 20, "Burstable": 1 << 21, "BestEffort": None})
    hierarchy = discover(make(tree))
    found = hierarchy.scan()
    assert set(found) == set(tree)
    assert all(found[path].limit_bytes == tree[path].limit for path in tree)
    assert sorted(hierarchy.subtree_procs("/")) == [100, 101, 200, 201, 300, 301]
    order = list(hierarchy.walk())
    assert all(order.index(above) < order.index(path) for path in order for above in ancestors(path))


@given(
    st.dictionaries(
        st.sampled_from(
            ["memory.stat", "memory.current", "memory.max", "memory.events", "memory.oom.group", "cgroup.procs"]
        ),
        st.binary(max_size=200),
    ),
    st.binary(max_size=200),
)
def test_arbitrary_bytes_in_the_files_are_no_crash(contents: dict[str, bytes], proc_cgroup: bytes) -> None:
    place = "/proc/1/root/sys/fs/cgroup/a"
    host = v2_host(SMALL, {f"{place}/{name}": data for name, data in contents.items()})
    hierarchy = discover(host)
    cgroup = hierarchy.read("/a")
    assert cgroup.usage_bytes is None or cgroup.usage_bytes >= 0
    assert all(pid > 0 for pid in hierarchy.procs("/a"))
    path = hierarchy.path_of(proc_cgroup)
    assert path is None or not path.startswith("/..")


@given(st.binary(max_size=300))
def test_an_arbitrary_mountinfo_is_no_crash(mountinfo: bytes) -> None:
    assert discover(ReplayHost({"/proc/1/mountinfo": mountinfo})).version is None
