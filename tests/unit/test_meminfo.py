"""/proc/meminfo of kernels this machine can't be: parsing, meaning, and a partition that counts no page twice.

The figures of the captured machines are from public bug reports, named at each.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodemem.cli import meminfo as cli
from nodemem.kernel import memfields, meminfo
from nodemem.kernel.capture import ReplayHost
from nodemem.kernel.host import Host, Unreadable

DOCS = Path(__file__).parents[2] / "docs" / "meminfo.md"
MIB, GIB = 1 << 20, 1 << 30

# An early RHEL 7 with very much slab (brendangregg/perf-tools issue 78): no MemAvailable, old VmallocUsed.
CAPTURED_3_10 = b"""MemTotal:       24592560 kB
MemFree:          532324 kB
Buffers:          236832 kB
Cached:           459252 kB
SwapCached:        60448 kB
Active:          7312736 kB
Inactive:        1607264 kB
Active(anon):    6851356 kB
Inactive(anon):  1372752 kB
Active(file):     461380 kB
Inactive(file):   234512 kB
Unevictable:           0 kB
Mlocked:               0 kB
SwapTotal:       2097148 kB
SwapFree:        1424980 kB
Dirty:               136 kB
Writeback:            24 kB
AnonPages:       8199460 kB
Mapped:            69492 kB
Shmem:               192 kB
Slab:           14876100 kB
SReclaimable:   14810428 kB
SUnreclaim:        65672 kB
KernelStack:       23496 kB
PageTables:        38716 kB
NFS_Unstable:          0 kB
Bounce:                0 kB
WritebackTmp:          0 kB
CommitLimit:    14393428 kB
Committed_AS:    8999040 kB
VmallocTotal:   34359738367 kB
VmallocUsed:      213232 kB
VmallocChunk:   34359392960 kB
HardwareCorrupted:     0 kB
AnonHugePages:   2250752 kB
HugePages_Total:       0
HugePages_Free:        0
HugePages_Rsvd:        0
HugePages_Surp:        0
Hugepagesize:       2048 kB
DirectMap4k:       10240 kB
DirectMap2M:    25155584 kB
"""

# RHEL 8.2, 4.18.0-193 (giampaolo/psutil issue 1915), the part that was reported; the rest as that kernel prints it.
CAPTURED_4_18 = b"""MemTotal: 2034872 kB
MemFree: 1404800 kB
MemAvailable: 8844 kB
Buffers: 0 kB
Cached: 337820 kB
SwapCached: 22324 kB
Active: 262020 kB
Inactive: 227652 kB
Active(anon): 93700 kB
Inactive(anon): 71680 kB
Active(file): 168320 kB
Inactive(file): 155972 kB
Unevictable: 0 kB
Mlocked: 0 kB
SwapTotal: 4194300 kB
SwapFree: 3505148 kB
Dirty: 48 kB
Writeback: 0 kB
AnonPages: 135152 kB
Mapped: 58268 kB
Shmem: 13528 kB
KReclaimable: 36728 kB
Slab: 78332 kB
SReclaimable: 36728 kB
SUnreclaim: 41604 kB
KernelStack: 9084 kB
PageTables: 17788 kB
NFS_Unstable: 0 kB
Bounce: 0 kB
WritebackTmp: 0 kB
CommitLimit: 5211736 kB
VmallocTotal: 34359738367 kB
VmallocUsed: 0 kB
VmallocChunk: 0 kB
HardwareCorrupted: 0 kB
AnonHugePages: 0 kB
ShmemHugePages: 0 kB
ShmemPmdMapped: 0 kB
HugePages_Total: 0
HugePages_Free: 0
HugePages_Rsvd: 0
HugePages_Surp: 0
Hugepagesize: 2048 kB
Hugetlb: 0 kB
DirectMap4k: 188288 kB
"""

# A ZFS server on 6.x (htop-dev/htop issue 1559), as far as it was reported.
CAPTURED_6_X = b"""MemTotal:       65710420 kB
MemFree:        10564240 kB
MemAvailable:   26828796 kB
Buffers:          867748 kB
Cached:         15599856 kB
SwapCached:            0 kB
Active:          4145672 kB
Inactive:       15218136 kB
Active(anon):    3183452 kB
Inactive(anon):        0 kB
Active(file):     962220 kB
Inactive(file): 15218136 kB
Unevictable:        3136 kB
Mlocked:              48 kB
SwapTotal:       8388604 kB
SwapFree:        8388604 kB
Zswap:                 0 kB
Zswapped:              0 kB
Dirty:                68 kB
Writeback:             0 kB
AnonPages:       2899384 kB
Mapped:          1170800 kB
Shmem:            287252 kB
KReclaimable:     818376 kB
Slab:            2754160 kB
SReclaimable:     818376 kB
SUnreclaim:      1935784 kB
KernelStack:       24576 kB
PageTables:        57072 kB
SecPageTables:         0 kB
NFS_Unstable:          0 kB
Bounce:                0 kB
WritebackTmp:          0 kB
CommitLimit:    41243812 kB
Committed_AS:   23490112 kB
VmallocTotal:   34359738367 kB
VmallocUsed:     1654744 kB
VmallocChunk:          0 kB
Percpu:            71232 kB
HardwareCorrupted:     0 kB
AnonHugePages:         0 kB
ShmemHugePages:        0 kB
ShmemPmdMapped:        0 kB
FileHugePages:         0 kB
FilePmdMapped:         0 kB
Unaccepted:            0 kB
HugePages_Total:       0
"""


def constructed(**kib: int) -> dict[str, int]:
    """Fields of a 64 GiB machine: those named, in KiB, and counts for HugePages_*."""
    fields = {"MemTotal": 64 << 20, **kib}
    return {name: value if name.startswith("HugePages_") else value * 1024 for name, value in fields.items()}


LAYOUTS: dict[str, dict[str, int]] = {
    "3.10": meminfo.parse(CAPTURED_3_10),
    "4.18": meminfo.parse(CAPTURED_4_18),
    "5.4": constructed(
        MemFree=30 << 20, MemAvailable=32 << 20, Buffers=100, Cached=20 << 20, SwapCached=0, AnonPages=8 << 20,
        Mapped=1 << 20, Shmem=16 << 20, KReclaimable=900_000, Slab=1_200_000, SReclaimable=800_000, SUnreclaim=400_000,
        KernelStack=64_000, PageTables=120_000, VmallocUsed=150_000, VmallocChunk=0, Percpu=90_000, FileHugePages=0,
        FilePmdMapped=0, CmaTotal=65536, CmaFree=60000, HugePages_Total=512, HugePages_Free=500, Hugepagesize=2048,
        Hugetlb=512 * 2048 + (1 << 20), DirectMap4k=500_000, DirectMap1G=60 << 20,
    ),
    "6.x": meminfo.parse(CAPTURED_6_X),
    "7.x": constructed(
        MemFree=10 << 20, MemAvailable=20 << 20, Cached=16 << 20, Shmem=4 << 20, AnonPages=20 << 20, Zswap=300_000,
        Zswapped=900_000, KReclaimable=2_000_000, SReclaimable=2_000_000, SUnreclaim=500_000, KernelStack=80_000,
        ShadowCallStack=20_000, PageTables=300_000, SecPageTables=50_000, VmallocUsed=400_000, VmallocChunk=0,
        Percpu=100_000, Unaccepted=1 << 20, Balloon=0, GPUActive=2_785_056, GPUReclaim=76, Hugetlb=0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("release", LAYOUTS)
def test_every_field_of_every_kernel_has_a_meaning(release: str) -> None:
    assert [name for name in LAYOUTS[release] if memfields.describe(name) is None] == []


@pytest.mark.parametrize("release", LAYOUTS)
def test_the_parts_add_up_to_memtotal_on_every_kernel(release: str) -> None:
    cut = meminfo.partition(LAYOUTS[release])
    assert sum(size or 0 for size in cut.parts().values()) == LAYOUTS[release]["MemTotal"]
    assert list(cut.parts()) == list(meminfo.PARTS)


def test_kilobytes_become_bytes_and_huge_pages_stay_a_count() -> None:
    fields = meminfo.parse(
        b"MemTotal:   24683656 kB\nHugePages_Total:   16\nSecPageTables:\t     512 kB\nNoise\nX: y kB\n"
    )
    assert fields == {"MemTotal": 24683656 * 1024, "HugePages_Total": 16, "SecPageTables": 512 * 1024}


def test_all_captured_lines_are_parsed() -> None:
    assert len(meminfo.parse(CAPTURED_3_10)) == CAPTURED_3_10.count(b"\n")
    assert len(meminfo.parse(CAPTURED_4_18)) == CAPTURED_4_18.count(b"\n")


@given(st.binary())
def test_no_bytes_break_the_parser(data: bytes) -> None:
    assert all(value >= 0 for value in meminfo.parse(data).values())
    assert all(value >= 0 for value in meminfo.parse(b"MemTotal: " + data).values())


def test_a_number_beyond_64_bits_is_left_out() -> None:
    assert meminfo.parse(b"MemTotal: " + b"9" * 1_000_000 + b" kB\nMemFree: 1 kB\n") == {"MemFree": 1024}


@given(
    st.dictionaries(st.sampled_from(sorted(memfields.FIELDS)), st.integers(0, 1 << 50)),
    st.sampled_from([meminfo.IN_VMALLOC, meminfo.IN_SLAB, meminfo.IN_PAGES]),
    st.booleans(),
    st.none() | st.integers(-5, 1 << 50),
)
def test_whatever_the_kernel_says_the_parts_add_up(
    fields: dict[str, int], stacks_in: str, flag: bool, mapped: int | None
) -> None:
    fields["MemTotal"] = 1 << 40
    around = meminfo.Surroundings(vmalloc_bytes=3 << 20, per_cpu_free_bytes=5 << 20, zfs_bytes=7)
    layout = meminfo.Layout(stacks_in, flag, flag, flag)
    cut = meminfo.partition(fields, around, layout, mapped)
    parts = cut.parts()
    assert sum(size or 0 for size in parts.values()) == 1 << 40
    assert all(size is None or size >= 0 for name, size in parts.items() if name != "unaccounted")
    assert 0 <= cut.mapped_shmem_bytes <= cut.shmem_bytes
    assert 0 <= cut.mapped_shmem_error_bytes <= cut.mapped_shmem_bytes
    not_hidden = ("free", "anonymous", "pageCache", "buffers", "shmem", "other")
    hidden = sum(size or 0 for name, size in parts.items() if name not in not_hidden)
    hidden += cut.shmem_bytes - cut.mapped_shmem_bytes + cut.other_bytes - cut.other.get(meminfo.PER_CPU_FREE, 0)
    assert cut.hidden_bytes == hidden


@given(st.binary(), st.binary(), st.binary())
def test_no_bytes_in_the_other_files_break_a_measurement(first: bytes, second: bytes, third: bytes) -> None:
    files = {
        "/proc/meminfo": b"MemTotal: 100 kB\nCmaTotal: 4 kB\n" + first,
        "/proc/vmallocinfo": second,
        "/proc/vmstat": b"nr_zspages " + second,
        "/proc/zoneinfo": b"  count: " + third,
        "/proc/spl/kstat/zfs/abdstats": b"scatter_data_size 4 " + third,
        "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": third,
        "/sys/kernel/mm/cma/reserved/total_pages": first,
        "/sys/kernel/mm/cma/reserved/available_pages": second,
    }
    cut = meminfo.measure(ReplayHost(files)).partition
    assert sum(size or 0 for size in cut.parts().values()) == cut.total_bytes


def test_a_file_without_memtotal_is_refused() -> None:
    with pytest.raises(ValueError, match="MemTotal"):
        meminfo.partition({"MemFree": 4096})


# What is inside what.


def test_shmem_is_taken_out_of_cached() -> None:
    cut = meminfo.partition(LAYOUTS["5.4"])
    assert cut.shmem_bytes == 16 * GIB
    assert cut.page_cache_bytes == 4 * GIB


def test_stacks_in_vmalloc_are_counted_as_stacks_only() -> None:
    cut = meminfo.partition(LAYOUTS["5.4"], layout=meminfo.Layout(meminfo.IN_VMALLOC))
    assert cut.kernel_stack_bytes == 64_000 * 1024
    assert cut.vmalloc_bytes == 86_000 * 1024


def test_stacks_outside_vmalloc_leave_it_whole() -> None:
    cut = meminfo.partition(LAYOUTS["5.4"], layout=meminfo.Layout(meminfo.IN_PAGES))
    assert cut.vmalloc_bytes == 150_000 * 1024


def test_stacks_smaller_than_a_page_are_taken_out_of_slab() -> None:
    cut = meminfo.partition(LAYOUTS["5.4"], layout=meminfo.Layout(meminfo.IN_SLAB))
    assert cut.slab_unreclaimable_bytes == 336_000 * 1024
    assert cut.vmalloc_bytes == 150_000 * 1024


def test_vmalloc_never_falls_below_zero() -> None:
    fields = constructed(KernelStack=200, VmallocUsed=100, VmallocChunk=0)
    assert meminfo.partition(fields, layout=meminfo.Layout(meminfo.IN_VMALLOC)).vmalloc_bytes == 0


def test_address_space_in_use_of_old_kernels_is_no_memory() -> None:
    assert meminfo.partition(LAYOUTS["3.10"]).vmalloc_bytes is None
    assert meminfo.partition(LAYOUTS["4.18"]).vmalloc_bytes is None


def test_vmallocinfo_stands_in_where_vmallocused_is_no_memory() -> None:
    vmallocinfo = (
        b"0x1-0x2 12288 f+0x1/0x2 [nf_tables] pages=2 vmalloc N0=2\n"
        b"0x1-0x2 20480 _do_fork+0x1/0x2 pages=4 vmalloc N0=4\n"
        * 2000
        + b"0x1-0x2 1048576 ioremap+0x1/0x2 phys=0x1 ioremap\n"
    )
    fields = CAPTURED_4_18.replace(b"KernelStack: 9084 kB", b"KernelStack: 16000 kB")
    memory = meminfo.measure(ReplayHost({"/proc/meminfo": fields, "/proc/vmallocinfo": vmallocinfo}))
    assert memory.layout == meminfo.Layout(meminfo.IN_VMALLOC, stacks_guessed=False)
    assert memory.partition.vmalloc_bytes == (6 * 2000 * 4096) - 16000 * 1024


def test_a_kernel_without_stacks_in_vmallocinfo_has_them_elsewhere() -> None:
    files = {"/proc/meminfo": CAPTURED_6_X, "/proc/vmallocinfo": b"0x1-0x2 12288 f+0x1/0x2 pages=2 vmalloc N0=2\n"}
    memory = meminfo.measure(ReplayHost(files))
    assert memory.layout.stacks_in == meminfo.IN_PAGES
    assert memory.partition.vmalloc_bytes == 1654744 * 1024


def test_stacks_in_a_slab_cache_are_found_on_64k_pages() -> None:
    slabinfo = b"thread_stack 90 96 16384 4 1 : tunables 0 0 0 : slabdata 24 24 0\n"
    files = {"/proc/meminfo": CAPTURED_6_X, "/proc/vmallocinfo": b"", "/proc/slabinfo": slabinfo}
    assert meminfo.measure(ReplayHost(files, page_size=65536)).layout.stacks_in == meminfo.IN_SLAB
    assert meminfo.measure(ReplayHost(files, page_size=4096)).layout.stacks_in == meminfo.IN_PAGES


def test_an_unreadable_vmallocinfo_is_named_once_and_the_stacks_are_guessed() -> None:
    for capture in (CAPTURED_6_X, CAPTURED_4_18):
        host = ReplayHost({"/proc/meminfo": capture}, {"read": {"/proc/vmallocinfo": {"errno": 13}}})
        memory = meminfo.measure(host)
        assert memory.unreadable == [Unreadable("/proc/vmallocinfo", "Permission denied")]
        assert memory.layout.stacks_guessed
    assert memory.partition.vmalloc_bytes is None


def test_a_known_layout_spares_the_look_at_vmallocinfo() -> None:
    host = ReplayHost({"/proc/meminfo": CAPTURED_6_X}, {"read": {"/proc/vmallocinfo": {"errno": 13}}})
    assert meminfo.measure(host, layout=meminfo.Layout()).unreadable == []


def test_only_unmapped_swap_cache_is_counted_beside_anonymous_memory() -> None:
    cut = meminfo.partition(LAYOUTS["4.18"])
    assert cut.other == {"swapCache": (93700 + 71680 - 135152 - 13528) * 1024}
    # Here the lists hold less than AnonPages and Shmem together: all of the swap cache may be mapped.
    fields = constructed(SwapCached=500, AnonPages=1000, Shmem=10, **{"Active(anon)": 600, "Inactive(anon)": 300})
    assert meminfo.partition(fields).other == {}


def test_secondary_page_tables_are_page_tables() -> None:
    assert meminfo.partition(LAYOUTS["7.x"]).page_tables_bytes == 350_000 * 1024


def test_huge_pages_of_all_sizes_come_from_hugetlb_or_from_the_pools() -> None:
    assert meminfo.partition(LAYOUTS["5.4"]).huge_pages_bytes == 2 * GIB
    old = constructed(HugePages_Total=512, Hugepagesize=2048)
    files = {
        "/proc/meminfo": b"MemTotal: 67108864 kB\nHugePages_Total: 512\nHugepagesize: 2048 kB\n",
        "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": b"512\n",
        "/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages": b"3\n",
    }
    assert meminfo.partition(old).huge_pages_bytes == GIB
    assert meminfo.measure(ReplayHost(files)).partition.huge_pages_bytes == 4 * GIB


def test_misc_reclaimable_is_what_kreclaimable_has_beyond_slab() -> None:
    assert meminfo.partition(LAYOUTS["5.4"]).other == {"driverPools": 100_000 * 1024}


def test_free_contiguous_and_unaccepted_memory_is_not_counted_beside_memfree() -> None:
    plain = constructed(MemFree=1 << 20)
    more = constructed(MemFree=1 << 20, CmaTotal=1000, CmaFree=900, Unaccepted=5000)
    assert meminfo.partition(plain) == meminfo.partition(more)


def test_contiguous_memory_of_drivers_counts_without_huge_pages() -> None:
    base = "/sys/kernel/mm/cma"
    files = {
        "/proc/meminfo": b"MemTotal: 67108864 kB\nCmaTotal: 262144 kB\n",
        f"{base}/reserved/total_pages": b"16384\n",
        f"{base}/reserved/available_pages": b"16000\n",
        f"{base}/hugetlb0/total_pages": b"32768\n",
        f"{base}/hugetlb0/available_pages": b"0\n",
    }
    assert meminfo.measure(ReplayHost(files)).partition.other == {"contiguous": 384 * 4096}


@pytest.mark.parametrize(
    ("zpool", "compressed"),
    [(b"zsmalloc\n", 5000 * 4096), (b"zbud\n", 5000 * 4096 + 300_000 * 1024), (None, 5000 * 4096)],
)
def test_zswap_is_inside_zsmalloc_unless_it_uses_another_pool(zpool: bytes | None, compressed: int) -> None:
    files = {"/proc/meminfo": b"MemTotal: 67108864 kB\nZswap: 300000 kB\n", "/proc/vmstat": b"nr_zspages 5000\n"}
    if zpool is None:
        # Without zsmalloc's own counter, Zswap is all there is.
        files["/proc/vmstat"] = b"nr_free_pages 1\n"
        compressed = 300_000 * 1024
    else:
        files["/sys/module/zswap/parameters/zpool"] = zpool
    if zpool == b"zsmalloc\n":
        files["/proc/meminfo"] = b"MemTotal: 67108864 kB\nZswap: 10000 kB\n"
    assert meminfo.measure(ReplayHost(files)).partition.other == {"compressed": compressed}


FEATURES = "/sys/bus/virtio/drivers/virtio_balloon/virtio3/features"


@pytest.mark.parametrize(
    ("files", "balloon"),
    [
        ({FEATURES: b"01100101\n"}, 4 * MIB),
        ({FEATURES: b"01000101\n"}, None),
        ({"/sys/module/vmw_balloon/refcnt": b"0\n"}, 4 * MIB),
        ({}, None),
    ],
)
def test_a_balloon_counts_only_where_memtotal_still_contains_it(files: dict[str, bytes], balloon: int | None) -> None:
    by_field = {**files, "/proc/meminfo": b"MemTotal: 67108864 kB\nBalloon: 4096 kB\n"}
    by_events = {
        **files,
        "/proc/meminfo": b"MemTotal: 67108864 kB\n",
        "/proc/vmstat": b"balloon_inflate 3024\nballoon_deflate 2000\nballoon_migrate 7\n",
    }
    for case in (by_field, by_events):
        assert meminfo.measure(ReplayHost(case)).partition.other.get("balloon") == balloon


ZONEINFO = b"""Node 0, zone   Normal
  pages free     4999474
        boost    0
        min      16335
        low      20000
        high     28000
        managed  5768012
        protection: (0, 0, 0, 0)
      nr_free_pages 4999474
  pagesets
    cpu: 0
              count:    3000
              high:     14000
              batch:    63
    cpu: 1
              count:    1096
              high:     14000
"""


def test_pages_on_per_cpu_lists_are_known_and_not_hidden() -> None:
    fields = b"MemTotal: 67108864 kB\nMemFree: 33554432 kB\n"
    with_lists = meminfo.measure(ReplayHost({"/proc/meminfo": fields, "/proc/zoneinfo": ZONEINFO})).partition
    assert with_lists.other == {"perCpuFreeLists": 16 * MIB}
    assert with_lists.hidden_bytes == 32 * GIB - 16 * MIB


def test_zfs_pages_and_page_descriptors_are_known() -> None:
    files = {
        "/proc/meminfo": CAPTURED_6_X,
        "/proc/vmstat": b"nr_memmap_pages 1000\n",
        "/proc/spl/kstat/zfs/abdstats": b"13 1 0x01 21 5712\nname type data\nscatter_data_size 4 30000000000\n",
    }
    memory = meminfo.measure(ReplayHost(files))
    assert memory.partition.other == {"pageDescriptors": 4096000, "zfs": 30_000_000_000}
    assert memory.partition.unaccounted_bytes < 4 * GIB


def test_memory_in_no_counter_is_unaccounted_and_hidden() -> None:
    cut = meminfo.partition(LAYOUTS["6.x"])
    # Stacks are inside VmallocUsed, Shmem inside Cached.
    counted = 10564240 + 867748 + 15599856 + 2899384 + 2754160 + 57072 + 1654744 + 71232
    assert cut.unaccounted_bytes == (65710420 - counted) * 1024
    assert cut.hidden_bytes > cut.unaccounted_bytes


def test_a_kernel_that_counts_too_much_makes_the_remainder_negative() -> None:
    # GPUReclaim above MemTotal on 7.2 (AvengeMedia/dgop issue 44); its own figure is made up.
    fields = {
        name: kib * 1024
        for name, kib in {
            "MemTotal": 31997424, "MemFree": 4639528, "MemAvailable": 10744916, "Buffers": 336, "Cached": 7051908,
            "SReclaimable": 292536, "Shmem": 407680, "GPUReclaim": 32000000,
        }.items()
    }  # fmt: skip
    cut = meminfo.partition(fields)
    assert cut.unaccounted_bytes == -11986884 * 1024
    assert sum(size or 0 for size in cut.parts().values()) == cut.total_bytes


# Hidden memory.


def test_hidden_memory_counts_shmem_that_nobody_maps() -> None:
    nobody, half, all_of_it = (
        meminfo.partition(LAYOUTS["5.4"], mapped_shmem_bytes=mapped) for mapped in (0, 8 * GIB, 99 * GIB)
    )
    assert nobody.hidden_bytes - half.hidden_bytes == 8 * GIB
    assert half.hidden_bytes - all_of_it.hidden_bytes == 8 * GIB
    assert {cut.mapped_shmem_error_bytes for cut in (nobody, half, all_of_it)} == {0}


def test_without_a_count_hidden_memory_is_bounded_from_below() -> None:
    # Mapped is 1 GiB: between none and all of it may be shmem.
    bounded = meminfo.partition(LAYOUTS["5.4"])
    none_mapped = meminfo.partition(LAYOUTS["5.4"], mapped_shmem_bytes=0)
    assert bounded.mapped_shmem_bytes == GIB
    assert bounded.mapped_shmem_error_bytes == GIB
    assert bounded.hidden_bytes + GIB == none_mapped.hidden_bytes
    # What is mapped beyond the page cache must be shmem.
    fields = constructed(Cached=9 << 20, Shmem=8 << 20, Mapped=5 << 20)
    tight = meminfo.partition(fields)
    assert (tight.mapped_shmem_bytes, tight.mapped_shmem_error_bytes) == (5 * GIB, GIB)


def test_page_cache_that_cannot_be_dropped_is_bounded() -> None:
    fields = constructed(Cached=9 << 20, Shmem=1 << 20, Unevictable=3 << 20, Mlocked=1 << 20)
    assert meminfo.partition(fields).unevictable_cache_bytes == 2 * GIB


# psutil reads the same file independently.


def captured_proc(directory: Path, data: bytes) -> Path:
    (directory / "meminfo").write_bytes(data)
    (directory / "zoneinfo").write_bytes(ZONEINFO)
    (directory / "vmstat").write_bytes(b"pswpin 0\npswpout 0\n")
    return directory


@pytest.mark.parametrize("data", [CAPTURED_3_10, CAPTURED_6_X], ids=["3.10", "6.x"])
def test_psutil_agrees_on_a_captured_machine(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(captured_proc(tmp_path, data)))
    expected = psutil.virtual_memory()
    cut = meminfo.measure(ReplayHost({"/proc/meminfo": data, "/proc/zoneinfo": ZONEINFO})).partition
    assert (cut.total_bytes, cut.free_bytes, cut.shmem_bytes) == (expected.total, expected.free, expected.shared)
    assert cut.slab_reclaimable_bytes + cut.slab_unreclaimable_bytes == expected.slab
    assert cut.available_bytes == pytest.approx(expected.available, abs=4096)
    assert cut.available_estimated == (data is CAPTURED_3_10)


def test_available_is_unknown_without_any_source() -> None:
    cut = meminfo.partition(LAYOUTS["3.10"])
    assert (cut.available_bytes, cut.available_estimated) == (None, True)


# The text.


def test_every_field_says_what_it_is_what_makes_it_high_and_where_to_look() -> None:
    for name, known in memfields.FIELDS.items():
        assert known.name == name
        assert known.meaning.endswith(".")
        assert "\n" not in known.meaning + known.high + known.look_next
        assert len(known.meaning) <= 120
        assert known.high
        assert known.look_next
        assert known.part is None or known.part in meminfo.PARTS


def test_other_direct_map_sizes_are_explained_and_vendor_fields_are_not_guessed() -> None:
    known = memfields.describe("DirectMap16G")
    assert known is not None
    assert "16 GiB" in known.meaning
    assert memfields.describe("VendorMystery") is None


def test_whatever_other_holds_has_a_description() -> None:
    everything = dict.fromkeys(memfields.FIELDS, GIB) | {"MemTotal": 1 << 40, "AnonPages": 0, "KReclaimable": 2 * GIB}
    numbers: dict[str, Any] = {
        item.name: 1 for item in dataclasses.fields(meminfo.Surroundings) if item.name != "huge_page_pools"
    }
    cut = meminfo.partition(everything, meminfo.Surroundings(**numbers), meminfo.Layout(balloon_in_total=True))
    assert set(cut.other) == set(meminfo.OTHER)


def test_the_reference_page_is_what_the_command_prints() -> None:
    assert DOCS.read_text() == cli.reference()


# The command.


def run(host: Host, *words: str) -> int:
    parser = argparse.ArgumentParser()
    cli.add_parser(parser.add_subparsers())
    args = parser.parse_args(["meminfo", *words])
    args.host = host
    code: int = args.func(args)
    return code


def captured() -> ReplayHost:
    return ReplayHost({"/proc/meminfo": CAPTURED_6_X, "/proc/zoneinfo": ZONEINFO})


@pytest.mark.parametrize("output", ["json", "yaml"])
def test_the_command_prints_plain_data(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    assert run(captured(), "--all", "-o", output) == 0
    text = capsys.readouterr().out
    data = json.loads(text) if output == "json" else yaml.safe_load(text)
    parts = {name: data["memory"][f"{name}Bytes"] or 0 for name in meminfo.PARTS}
    assert sum(parts.values()) == data["memory"]["totalBytes"] == 65710420 * 1024
    assert data["fields"]["Shmem"]["value"] == 287252 * 1024
    assert data["kernel"]["slabCaches"] == []


def test_the_table_names_each_part_and_the_total(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(captured()) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in meminfo.PARTS)
    assert "62.7 GiB" in out
    assert "NFS_Unstable" not in out
    assert run(captured(), "--all") == 0
    assert "NFS_Unstable" in capsys.readouterr().out


def test_a_field_is_explained_whatever_its_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(captured(), "shmem", "hugepages_total", "GPUActive") == 0
    out = capsys.readouterr().out
    assert "280.5 MiB" in out
    assert "0 pages" in out
    assert "not on this kernel" in out


def test_an_unknown_field_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(captured(), "Shmen") == 2
    assert "Shmen" in capsys.readouterr().err


def test_a_damaged_meminfo_is_reported_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(ReplayHost({"/proc/meminfo": b"garbage"})) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_names_from_a_hostile_capture_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    host = ReplayHost({"/proc/meminfo": b"MemTotal: 100 kB\n\x1b[2J\xff[bold]: 5 kB\n"})
    assert run(host) == 0
    out = capsys.readouterr().out
    assert "\x1b[2J" not in out
    assert "[bold]" in out
