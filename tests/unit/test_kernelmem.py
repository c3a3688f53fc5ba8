"""The level below the kernel's totals: slab caches, vmalloc callers, allocation sites, dying cgroups."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodemem.kernel import kernelmem
from nodemem.kernel.capture import ReplayHost

SLABINFO = b"""slabinfo - version: 2.1
# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables <limit> <batchcount>
nf conntrack           5     12    320   12    1 : tunables    0    0    0 : slabdata      1      1      0
dentry            183666 183666    192   21    1 : tunables    0    0    0 : slabdata   8746   8746      0
task_struct           90    120   9984    3    8 : tunables   24   12    8 : slabdata     30     40      0
radix_tree_node        0      0    584   28    4 : tunables    0    0    0 : slabdata      0      0      0
broken line
"""

VMALLOCINFO = b"""0x1-0x2   20480 irq_init_percpu_irqstack+0xed/0x120 vmap
0x1-0x2    8192 acpi_os_map_iomem+0x1bc/0x1e0 phys=0x00000000000a0000 ioremap
0x1-0x2   20480 kernel_clone+0xb8/0x400 pages=4 vmalloc N0=4
0x1-0x2   20480 kernel_clone+0xb8/0x400 pages=4 vmalloc N0=2 N1=2
0x1-0x2   20480 fork_idle+0x9e/0x150 pages=4 vmalloc N0=4
0x1-0x2 67112960 nf_ct_alloc_hashtable+0x33/0xb0 [nf_conntrack] pages=16384 vmalloc vpages N0=16384
0x1-0x2  413696 drm_gem_vmap+0x1a/0x50 [drm] pages=100 vmap
0x1-0x2   20480 unpurged vm_area
0x1-0x2 2097152 pcpu_get_vm_areas+0x0/0x1050 vmalloc
"""

ALLOCINFO = b"""allocinfo - version: 1.0
#     <size>  <calls> <tag info>
    16777216     4096 mm/shmem.c:1789 func:shmem_alloc_folio
       40960       10 kernel/fork.c:165 [some module] func:alloc_task_struct_node
           0        0 mm/slub.c:2381 func:alloc_slab_page
"""

V2 = {"/sys/fs/cgroup/cgroup.controllers": b"cpuset cpu io memory pids\n"}


def test_a_slab_cache_takes_its_slabs_not_its_objects_in_use() -> None:
    caches = {cache.name: cache for cache in kernelmem.parse_slabinfo(SLABINFO, 4096)}
    assert caches["dentry"] == kernelmem.SlabCache("dentry", 183666, 183666, 192, 8746 * 4096)
    assert caches["task_struct"].bytes == 40 * 8 * 4096
    assert caches["nf conntrack"].bytes == 4096
    assert caches["radix_tree_node"].bytes == 0
    assert len(caches) == 4


def test_vmalloc_counts_only_areas_with_pages_of_their_own_and_names_the_module() -> None:
    callers = {caller.caller: caller for caller in kernelmem.parse_vmallocinfo(VMALLOCINFO, 4096)}
    assert callers == {
        "kernel_clone": kernelmem.VmallocCaller("kernel_clone", 2, 8 * 4096),
        "fork_idle": kernelmem.VmallocCaller("fork_idle", 1, 4 * 4096),
        "nf_ct_alloc_hashtable [nf_conntrack]": kernelmem.VmallocCaller(
            "nf_ct_alloc_hashtable [nf_conntrack]", 1, 64 << 20
        ),
    }
    assert kernelmem.vmalloc_stack_bytes(callers.values()) == 12 * 4096


def test_stacks_are_known_by_callers_that_the_compiler_split_too() -> None:
    line = b"0x1-0x2   20480 copy_process.part.34+0x1d5/0x1d10 pages=4 vmalloc N0=4\n"
    assert kernelmem.vmalloc_stack_bytes(kernelmem.parse_vmallocinfo(line, 4096)) == 16384


def test_allocation_sites_keep_spaces_in_their_tag() -> None:
    sites = kernelmem.parse_allocinfo(ALLOCINFO)
    assert sites[0] == kernelmem.AllocationSite("mm/shmem.c:1789 func:shmem_alloc_folio", 4096, 16 << 20)
    assert sites[1].site == "kernel/fork.c:165 [some module] func:alloc_task_struct_node"


def test_inspect_keeps_the_largest_and_the_sum_over_all() -> None:
    host = ReplayHost(
        {"/proc/slabinfo": SLABINFO, "/proc/vmallocinfo": VMALLOCINFO, "/proc/allocinfo": ALLOCINFO},
    )
    found = kernelmem.inspect(host, [("/a", 5), ("/b", 7), ("/c", None), ("/d", 0)], top=1)
    assert [cache.name for cache in found.slab_caches] == ["dentry"]
    assert found.slab_total_bytes == (8746 + 320 + 1) * 4096
    assert [caller.areas for caller in found.vmalloc_callers] == [1]
    assert found.vmalloc_total_bytes == (16384 + 12) * 4096
    assert [site.calls for site in found.allocation_sites] == [4096]
    assert found.allocation_total_bytes == (16 << 20) + 40960
    assert found.cgroups == [kernelmem.CgroupKernelMemory("/b", 7)]
    assert found.cgroups_total_bytes == 12
    assert found.unreadable == []


def test_a_forbidden_file_is_named_and_an_absent_one_is_unknown() -> None:
    host = ReplayHost({}, {"read": {"/proc/slabinfo": {"errno": 13}}})
    found = kernelmem.inspect(host)
    assert [entry.what for entry in found.unreadable] == ["/proc/slabinfo"]
    assert found.slab_total_bytes is None
    assert found.vmalloc_total_bytes is None
    assert found.allocation_total_bytes is None


@pytest.mark.parametrize(
    ("stat", "count", "source"),
    [
        (b"nr_descendants 40\nnr_dying_descendants 7\n", 7, "cgroup.stat nr_dying_descendants"),
        (
            b"nr_descendants 40\nnr_subsys_memory 35\nnr_dying_descendants 9\nnr_dying_subsys_memory 1234\n",
            1234,
            "cgroup.stat nr_dying_subsys_memory",
        ),
        (b"nr_descendants 40\n", None, "cgroup.stat"),
        (b"", None, "cgroup.stat"),
        (b"nr_dying_descendants\n", None, "cgroup.stat"),
    ],
)
def test_dying_cgroups_of_v2_come_from_the_root(stat: bytes, count: int | None, source: str) -> None:
    dying = kernelmem.dying_cgroups(ReplayHost({**V2, "/sys/fs/cgroup/cgroup.stat": stat}))
    assert (dying.count, dying.source) == (count, source)
    assert (dying.why is None) == (count is not None)


CGROUPS = b"#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t1\t9\t1\nmemory\t4\t%d\t1\n"


def v1(existing: int, directories: int, *, root: bool = True) -> ReplayHost:
    files = {"/proc/cgroups": CGROUPS % existing}
    if root:
        files["/sys/fs/cgroup/memory/release_agent"] = b"\n"
    return ReplayHost(files, {"observe": {"cgroup-directories:memory": {"value": directories}}})


def test_dying_cgroups_of_v1_are_those_without_a_directory() -> None:
    assert kernelmem.dying_cgroups(v1(40014, 14)).count == 40000


def test_a_cgroup_made_during_the_count_does_not_make_it_negative() -> None:
    assert kernelmem.dying_cgroups(v1(14, 15)).count == 0


def test_dying_cgroups_are_unknown_where_only_a_part_of_the_tree_is_mounted() -> None:
    dying = kernelmem.dying_cgroups(v1(40014, 3, root=False))
    assert dying.count is None
    assert dying.why is not None


@given(st.binary())
def test_no_bytes_break_the_parsers(data: bytes) -> None:
    for caches in (kernelmem.parse_slabinfo(data, 4096), kernelmem.parse_slabinfo(b"x 1 2 3 4 5 " + data, 4096)):
        assert all(cache.bytes >= 0 for cache in caches)
    for line in (data, b"0x1-0x2 8192 f+0x1/0x2 pages=" + data, b"0x1-0x2 8192 f+0x1/0x2 " + data):
        assert all(caller.bytes > 0 for caller in kernelmem.parse_vmallocinfo(line, 4096))
    assert all(site.bytes >= 0 for site in kernelmem.parse_allocinfo(data))
    files = {
        **V2,
        "/sys/fs/cgroup/cgroup.stat": data,
        "/proc/slabinfo": data,
        "/proc/vmallocinfo": data,
        "/proc/allocinfo": data,
    }
    found = kernelmem.inspect(ReplayHost(files))
    assert found.unreadable == []


@given(st.binary())
def test_no_bytes_in_proc_cgroups_break_the_count(data: bytes) -> None:
    files = {"/proc/cgroups": data, "/sys/fs/cgroup/memory/release_agent": b""}
    host = ReplayHost(files, {"observe": {"cgroup-directories:memory": {"value": 1}}})
    dying = kernelmem.dying_cgroups(host)
    assert dying.count is not None or dying.why


def test_digits_beyond_64_bits_are_no_number() -> None:
    line = b"0x1-0x2 8192 f+0x1/0x2 pages=" + b"9" * 100_000 + b" vmalloc\n"
    assert kernelmem.parse_vmallocinfo(line, 4096) == []
