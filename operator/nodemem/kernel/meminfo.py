"""/proc/meminfo, and the partition of MemTotal into parts that overlap nowhere. What a field means: memfields.py.

Where one counter of the kernel contains another, ``partition`` takes the inner one out; the reasons stand beside the
code. What no counter explains stays as ``unaccounted_bytes``, so the parts always add up to MemTotal exactly.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from nodemem.kernel import kernelmem
from nodemem.kernel.host import Host, Unreadable

IN_VMALLOC, IN_SLAB, IN_PAGES = "vmalloc", "slab", "pages"


def parse(data: bytes) -> dict[str, int]:
    """Fields in the kernel's order: bytes where the line ends in kB, else the bare count (HugePages_*).

    Lines of another form are left out; never raises.
    """
    fields: dict[str, int] = {}
    for line in data.splitlines():
        name, _, rest = line.partition(b":")
        words = rest.split()
        # At most 20 digits: the kernel prints an unsigned long, and longer ones would cost time to convert.
        if words and len(words[0]) <= 20 and words[0].isdigit() and (name := name.strip()):
            fields[os.fsdecode(name)] = int(words[0]) * (1024 if words[1:2] == [b"kB"] else 1)
    return fields


@dataclass(frozen=True, slots=True)
class Layout:
    """What decides where a byte is counted and doesn't change while a kernel runs: learn it once.

    ``stacks_in``: kernel stacks are inside VmallocUsed (CONFIG_VMAP_STACK), inside slab (pages of 64 KiB, stacks
    smaller than a page), or only in KernelStack. ``stacks_guessed``: /proc/vmallocinfo could not tell.
    ``balloon_in_total``: the balloon driver leaves MemTotal as it is. ``zswap_in_zsmalloc``: nr_zspages includes Zswap.
    """

    stacks_in: str = IN_VMALLOC
    stacks_guessed: bool = True
    balloon_in_total: bool = False
    zswap_in_zsmalloc: bool = True


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What other files add to /proc/meminfo. None: not readable, or not kept by this kernel.

    ``vmalloc_bytes``: pages held by vmalloc, stacks included, from /proc/vmallocinfo; only needed where VmallocUsed is
    no memory. ``huge_page_pools``: page size -> number of pages. ``low_watermark_bytes``: sum over zones.
    ``cma_used_bytes``: CMA pages that drivers hold, without those that are huge pages.
    """

    vmalloc_bytes: int | None = None
    huge_page_pools: Mapping[int, int] = field(default_factory=dict)
    per_cpu_free_bytes: int | None = None
    low_watermark_bytes: int | None = None
    zsmalloc_bytes: int | None = None
    balloon_bytes: int | None = None
    page_descriptor_bytes: int | None = None
    cma_used_bytes: int | None = None
    zfs_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Partition:
    """MemTotal, cut into parts: ``parts()`` sums to ``total_bytes`` exactly.

    A part that this kernel doesn't report is None and lies in ``unaccounted_bytes``, which is negative when counters
    claim more than there is (the first chunk of Percpu, at boot, is outside MemTotal: a few hundred KiB per CPU).
    """

    total_bytes: int
    available_bytes: int | None
    available_estimated: bool
    free_bytes: int
    anonymous_bytes: int
    page_cache_bytes: int
    buffers_bytes: int
    shmem_bytes: int
    slab_reclaimable_bytes: int
    slab_unreclaimable_bytes: int
    kernel_stack_bytes: int
    page_tables_bytes: int
    vmalloc_bytes: int | None
    per_cpu_bytes: int | None
    huge_pages_bytes: int
    other: Mapping[str, int]
    unaccounted_bytes: int
    swap_total_bytes: int
    swap_free_bytes: int
    mapped_shmem_bytes: int
    mapped_shmem_error_bytes: int
    unevictable_cache_bytes: int

    @property
    def other_bytes(self) -> int:
        """Everything known that has no part of its own, see ``other``."""
        return sum(self.other.values())

    @property
    def hidden_bytes(self) -> int:
        """Memory in use and in no process's RSS.

        Page cache and buffers are not in it: they are given back on demand; nor pages on per-CPU free lists, which are
        not in use. Where ``mapped_shmem_bytes`` was bounded and not counted, this is the least it can be, and it may be
        ``mapped_shmem_error_bytes`` more.
        """
        return (
            self.total_bytes
            - self.free_bytes
            - self.other.get(PER_CPU_FREE, 0)
            - self.anonymous_bytes
            - self.page_cache_bytes
            - self.buffers_bytes
            - self.mapped_shmem_bytes
        )

    @property
    def kernel_bytes(self) -> int:
        """Memory the kernel uses for itself, as far as it is known: without huge pages, ``other`` and the remainder."""
        return (
            self.slab_reclaimable_bytes
            + self.slab_unreclaimable_bytes
            + self.kernel_stack_bytes
            + self.page_tables_bytes
            + (self.vmalloc_bytes or 0)
            + (self.per_cpu_bytes or 0)
        )

    def parts(self) -> dict[str, int | None]:
        """Name -> bytes in reading order; None counts as 0 and is inside ``unaccounted``."""
        return {
            "free": self.free_bytes,
            "anonymous": self.anonymous_bytes,
            "pageCache": self.page_cache_bytes,
            "buffers": self.buffers_bytes,
            "shmem": self.shmem_bytes,
            "slabReclaimable": self.slab_reclaimable_bytes,
            "slabUnreclaimable": self.slab_unreclaimable_bytes,
            "kernelStack": self.kernel_stack_bytes,
            "pageTables": self.page_tables_bytes,
            "vmalloc": self.vmalloc_bytes,
            "perCpu": self.per_cpu_bytes,
            "hugePages": self.huge_pages_bytes,
            "other": self.other_bytes,
            "unaccounted": self.unaccounted_bytes,
        }


PER_CPU_FREE = "perCpuFreeLists"

PARTS: dict[str, str] = {
    "free": "holds nothing",
    "anonymous": "private memory of processes",
    "pageCache": "cached files, given back on demand",
    "buffers": "cached block devices, given back on demand",
    "shmem": "tmpfs and shared memory; stays until deleted",
    "slabReclaimable": "kernel objects, given back on demand",
    "slabUnreclaimable": "kernel objects in use",
    "kernelStack": "one stack per thread",
    "pageTables": "tables that map memory",
    "vmalloc": "kernel memory in pieces, without stacks",
    "perCpu": "kernel variables of each CPU",
    "hugePages": "reserved huge pages, used or not",
    "other": "known, and none of the above",
    "unaccounted": "in no counter: drivers, network buffers, file systems with their own cache",
}
"""The parts of a Partition in reading order, with a few words for each."""

OTHER: dict[str, str] = {
    PER_CPU_FREE: "free pages kept by each CPU (free, but not in MemFree)",
    "swapCache": "swap cache that no process maps",
    "compressed": "compressed pages of zswap and zram",
    "driverPools": "page pools of drivers, given back on demand",
    "gpu": "GPU objects in system RAM",
    "gpuPools": "freed GPU memory, given back on demand",
    "balloon": "given to the hypervisor",
    "contiguous": "contiguous memory held by drivers",
    "pageDescriptors": "page descriptors of hot-plugged memory",
    "hardwareCorrupted": "broken, out of use",
    "zfs": "ZFS cache",
    "quicklists": "free page tables",
    "bounce": "bounce buffers",
    "writebackCopies": "copies made by FUSE",
}
"""What ``Partition.other`` may hold."""


def partition(
    fields: Mapping[str, int],
    around: Surroundings | None = None,
    layout: Layout | None = None,
    mapped_shmem_bytes: int | None = None,
) -> Partition:
    """Cut MemTotal into parts of which no two hold the same page.

    ``mapped_shmem_bytes``: Shmem pages that some process maps, each once. When None it is bounded from above by
    min(Shmem, Mapped), so that hidden memory is never overstated; the width of the bound is reported.
    Raises ValueError when MemTotal is missing.
    """
    if "MemTotal" not in fields:
        raise ValueError("/proc/meminfo: expected a line MemTotal")
    around = around or Surroundings()
    layout = layout or Layout()

    def get(name: str) -> int:
        return fields.get(name, 0)

    total, free, anonymous, shmem = get("MemTotal"), get("MemFree"), get("AnonPages"), get("Shmem")
    # NR_FILE_PAGES counts every page in a page cache. meminfo prints it in three disjoint lines: Buffers (of block
    # devices), SwapCached (of swap) and Cached, the rest. Shmem pages are in Cached until they move to swap.
    page_cache = max(0, get("Cached") - shmem)

    slab_unreclaimable = get("SUnreclaim")
    stacks = get("KernelStack")
    vmalloc = _vmalloc(fields, around)
    # KernelStack counts the same pages as VmallocUsed or, where a stack is smaller than a page, as SUnreclaim. They are
    # shown once, as stacks. ShadowCallStack also lies in one of the two and is left there.
    if layout.stacks_in == IN_SLAB:
        slab_unreclaimable = max(0, slab_unreclaimable - stacks)
    elif layout.stacks_in == IN_VMALLOC and vmalloc is not None:
        vmalloc = max(0, vmalloc - stacks)

    parts = {
        "free": free,
        "anonymous": anonymous,
        "page_cache": page_cache,
        "buffers": get("Buffers"),
        "shmem": shmem,
        "slab_reclaimable": get("SReclaimable"),
        "slab_unreclaimable": slab_unreclaimable,
        "kernel_stack": stacks,
        "page_tables": get("PageTables") + get("SecPageTables"),
        "huge_pages": _huge_pages(fields, around),
    }
    per_cpu = fields.get("Percpu")
    other = _other(fields, around, layout)
    known = sum(parts.values()) + (vmalloc or 0) + (per_cpu or 0) + sum(other.values())

    mapped = get("Mapped")
    if mapped_shmem_bytes is not None:
        mapped_shmem, error = min(max(0, mapped_shmem_bytes), shmem), 0
    else:
        mapped_shmem = min(shmem, mapped)
        # Mapped file pages can't exceed the page cache: what goes beyond must be shmem, as ShmemPmdMapped surely is.
        error = mapped_shmem - min(mapped_shmem, max(0, mapped - page_cache - get("Buffers"), get("ShmemPmdMapped")))

    available = fields.get("MemAvailable")
    return Partition(
        total_bytes=total,
        available_bytes=_available(fields, around) if available is None else available,
        available_estimated=available is None,
        free_bytes=free,
        anonymous_bytes=anonymous,
        page_cache_bytes=page_cache,
        buffers_bytes=parts["buffers"],
        shmem_bytes=shmem,
        slab_reclaimable_bytes=parts["slab_reclaimable"],
        slab_unreclaimable_bytes=slab_unreclaimable,
        kernel_stack_bytes=stacks,
        page_tables_bytes=parts["page_tables"],
        vmalloc_bytes=vmalloc,
        per_cpu_bytes=per_cpu,
        huge_pages_bytes=parts["huge_pages"],
        other=other,
        unaccounted_bytes=total - known,
        swap_total_bytes=get("SwapTotal"),
        swap_free_bytes=get("SwapFree"),
        mapped_shmem_bytes=mapped_shmem,
        mapped_shmem_error_bytes=error,
        unevictable_cache_bytes=min(page_cache, max(0, get("Unevictable") - get("Mlocked"))),
    )


def vmalloc_used_is_memory(fields: Mapping[str, int]) -> bool:
    """Whether VmallocUsed counts pages (nr_vmalloc_pages, 5.3 and backports).

    Up to 4.3 it was address space, ioremap included, next to a VmallocChunk that is not 0; from 4.4 to 5.2 always 0.
    Told by the values, so that a vendor's backport is judged by what it does.
    """
    return fields.get("VmallocUsed", 0) > 0 and fields.get("VmallocChunk", 0) == 0


def _vmalloc(fields: Mapping[str, int], around: Surroundings) -> int | None:
    return fields["VmallocUsed"] if vmalloc_used_is_memory(fields) else around.vmalloc_bytes


def _huge_pages(fields: Mapping[str, int], around: Surroundings) -> int:
    """The pools of all sizes, surplus pages included. They are part of MemTotal, also when reserved at boot."""
    if "Hugetlb" in fields:
        return fields["Hugetlb"]
    default_size = fields.get("Hugepagesize", 0)
    pools = {size: count for size, count in around.huge_page_pools.items() if size != default_size}
    return fields.get("HugePages_Total", 0) * default_size + sum(size * count for size, count in pools.items())


def _other(fields: Mapping[str, int], around: Surroundings, layout: Layout) -> dict[str, int]:
    """Known memory without a part of its own. CmaFree and Unaccepted are not here: MemFree contains both."""

    def get(name: str) -> int:
        return fields.get(name, 0)

    # Swap cache that is mapped is in AnonPages too. What the anonymous LRU lists hold beyond AnonPages and Shmem can
    # only be unmapped swap cache; mlocked and lazily freed pages are on other lists, so this never claims too much.
    on_lists = get("Active(anon)") + get("Inactive(anon)")
    swap_cache = min(get("SwapCached"), max(0, on_lists - get("AnonPages") - get("Shmem")))
    zsmalloc, zswap = around.zsmalloc_bytes or 0, get("Zswap")
    balloon = fields.get("Balloon", around.balloon_bytes or 0)
    other = {
        PER_CPU_FREE: around.per_cpu_free_bytes or 0,
        "swapCache": swap_cache,
        # zram and zswap both keep their pages in zsmalloc; zswap could use zbud or z3fold, which only Zswap counts.
        "compressed": max(zsmalloc, zswap) if layout.zswap_in_zsmalloc else zsmalloc + zswap,
        "driverPools": max(0, get("KReclaimable") - get("SReclaimable")) if "KReclaimable" in fields else 0,
        "gpu": get("GPUActive"),
        "gpuPools": get("GPUReclaim"),
        # Most drivers take ballooned pages out of MemTotal: then they are no part of it.
        "balloon": balloon if layout.balloon_in_total else 0,
        "contiguous": around.cma_used_bytes or 0,
        "pageDescriptors": around.page_descriptor_bytes or 0,
        "hardwareCorrupted": get("HardwareCorrupted"),
        "zfs": around.zfs_bytes or 0,
        "quicklists": get("Quicklists"),
        "bounce": get("Bounce"),
        "writebackCopies": get("WritebackTmp"),
    }
    return {name: size for name, size in other.items() if size}


def _available(fields: Mapping[str, int], around: Surroundings) -> int | None:
    """MemAvailable for kernels before 3.14, with the formula that 3.14 introduced."""
    low = around.low_watermark_bytes
    if low is None:
        return None
    page_cache = fields.get("Active(file)", 0) + fields.get("Inactive(file)", 0)
    slab = fields.get("SReclaimable", 0)
    droppable = page_cache - min(page_cache // 2, low) + slab - min(slab // 2, low)
    return max(0, fields.get("MemFree", 0) - low + droppable)


@dataclass(frozen=True, slots=True)
class Memory:
    """One measurement. ``unreadable`` names the files that exist and could not be read."""

    fields: dict[str, int]
    partition: Partition
    layout: Layout
    unreadable: list[Unreadable]


def measure(
    host: Host, *, layout: Layout | None = None, mapped_shmem_bytes: int | None = None, hurried: bool = False
) -> Memory:
    """Read /proc/meminfo and what completes it: vmstat, zoneinfo, and only where needed vmallocinfo and sysfs.

    Pass the ``layout`` of an earlier measurement to spare the look at /proc/vmallocinfo, which takes milliseconds.
    ``hurried`` does without: where the stacks are may then be guessed. Raises OSError when
    /proc/meminfo itself can't be read, ValueError when it has no MemTotal.
    """
    reader = _Reader(host)
    fields = parse(host.read(f"{host.proc}/meminfo"))
    if layout is None:
        layout = _learn(reader, fields, hurried)
    vmalloc = None
    if not vmalloc_used_is_memory(fields) and (data := reader.read(f"{host.proc}/vmallocinfo")) is not None:
        vmalloc = sum(caller.bytes for caller in kernelmem.parse_vmallocinfo(data, host.page_size))
    vmstat = _counters(reader.read(f"{host.proc}/vmstat"))
    per_cpu_free, low = _zones(reader.read(f"{host.proc}/zoneinfo"))

    def pages(count: int | None) -> int | None:
        return None if count is None else count * host.page_size

    balloon = None
    if "balloon_inflate" in vmstat and "balloon_deflate" in vmstat:
        balloon = pages(max(0, vmstat["balloon_inflate"] - vmstat["balloon_deflate"]))
    around = Surroundings(
        vmalloc_bytes=vmalloc,
        huge_page_pools={} if "Hugetlb" in fields else reader.huge_page_pools(),
        per_cpu_free_bytes=pages(per_cpu_free),
        low_watermark_bytes=pages(low),
        zsmalloc_bytes=pages(vmstat.get("nr_zspages")),
        balloon_bytes=balloon,
        page_descriptor_bytes=pages(vmstat.get("nr_memmap_pages")),
        cma_used_bytes=pages(reader.cma_used_pages()) if fields.get("CmaTotal") else None,
        zfs_bytes=_zfs(reader.read(f"{host.proc}/spl/kstat/zfs/abdstats")),
    )
    return Memory(fields, partition(fields, around, layout, mapped_shmem_bytes), layout, reader.unreadable)


class _Reader:
    """Reads optional files: one that is absent is None, one that is forbidden is None and remembered."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.unreadable: list[Unreadable] = []

    def read(self, path: str) -> bytes | None:
        try:
            return self.host.read(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            entry = Unreadable(path, error.strerror or str(error))
            if entry not in self.unreadable:
                self.unreadable.append(entry)
            return None

    def listdir(self, path: str) -> list[str]:
        try:
            return self.host.listdir(path)
        except OSError:
            return []

    def number(self, path: str) -> int | None:
        data = (self.read(path) or b"").strip()
        return int(data) if data.isdigit() and len(data) <= 20 else None

    def huge_page_pools(self) -> dict[int, int]:
        pools = {}
        base = f"{self.host.sys}/kernel/mm/hugepages"
        for name in self.listdir(base):
            match = re.fullmatch(r"hugepages-([0-9]{1,15})kB", name)
            if match and (count := self.number(f"{base}/{name}/nr_hugepages")) is not None:
                pools[int(match[1]) * 1024] = count
        return pools

    def cma_used_pages(self) -> int | None:
        """Pages allocated from CMA areas (6.12+). Areas of hugetlb are left out: Hugetlb counts their pages."""
        base = f"{self.host.sys}/kernel/mm/cma"
        used = None
        for name in self.listdir(base):
            total = self.number(f"{base}/{name}/total_pages")
            available = self.number(f"{base}/{name}/available_pages")
            if total is not None and available is not None and not name.startswith("hugetlb"):
                used = (used or 0) + max(0, total - available)
        return used


def _learn(reader: _Reader, fields: Mapping[str, int], hurried: bool) -> Layout:
    host = reader.host
    stacks_in, guessed = IN_VMALLOC, True
    data = None if hurried else reader.read(f"{host.proc}/vmallocinfo")
    if data is not None:
        names = [name.encode("ascii") for name in kernelmem.STACK_CALLERS]
        lines = (line for line in data.splitlines() if any(name in line for name in names))
        # One stack is enough: there is a line for each thread.
        stacks = any(kernelmem.vmalloc_stack_bytes(kernelmem.parse_vmallocinfo(line, host.page_size)) for line in lines)
        stacks_in, guessed = (IN_VMALLOC if stacks else IN_PAGES), False
    elif vmalloc_used_is_memory(fields) and fields["VmallocUsed"] < fields.get("KernelStack", 0):
        stacks_in, guessed = IN_PAGES, False
    if stacks_in == IN_PAGES and host.page_size > 16384 and (slabs := reader.read(f"{host.proc}/slabinfo")):
        caches = kernelmem.parse_slabinfo(slabs, host.page_size)
        if any(cache.name == "thread_stack" and cache.objects for cache in caches):
            stacks_in = IN_SLAB

    # virtio-balloon lowers MemTotal by what it gives away, except with VIRTIO_BALLOON_F_DEFLATE_ON_OOM (feature bit 2);
    # VMware's driver never does, all others always do.
    balloon_in_total = bool(reader.listdir(f"{host.sys}/module/vmw_balloon"))
    drivers = f"{host.sys}/bus/virtio/drivers/virtio_balloon"
    for name in reader.listdir(drivers):
        if re.fullmatch(r"virtio\d+", name):
            features = reader.read(f"{drivers}/{name}/features") or b""
            balloon_in_total = features[2:3] == b"1"
    zpool = (reader.read(f"{host.sys}/module/zswap/parameters/zpool") or b"").strip()
    return Layout(stacks_in, guessed, balloon_in_total, zpool not in (b"zbud", b"z3fold"))


def _counters(data: bytes | None) -> dict[str, int]:
    """The counters of /proc/vmstat that the partition needs."""
    wanted = (b"nr_zspages", b"balloon_inflate", b"balloon_deflate", b"nr_memmap_pages")
    counters = {}
    for line in (data or b"").splitlines():
        words = line.split()
        if len(words) == 2 and words[0] in wanted and words[1].isdigit() and len(words[1]) <= 20:
            counters[words[0].decode()] = int(words[1])
    return counters


def _zones(data: bytes | None) -> tuple[int | None, int | None]:
    """Pages on the per-CPU free lists and the sum of the low watermarks, from /proc/zoneinfo."""
    free = low = None
    for line in (data or b"").splitlines():
        words = line.split()
        if len(words) != 2 or not words[1].isdigit() or len(words[1]) > 20:
            continue
        if words[0] == b"count:":
            free = (free or 0) + int(words[1])
        elif words[0] == b"low":
            low = (low or 0) + int(words[1])
    return free, low


def _zfs(data: bytes | None) -> int | None:
    """Pages of the ZFS cache. The kernel counts them nowhere; the rest of the ARC is in slab and vmalloc already."""
    for line in (data or b"").splitlines():
        words = line.split()
        if len(words) == 3 and words[0] == b"scatter_data_size" and words[2].isdigit() and len(words[2]) <= 20:
            return int(words[2])
    return None
