"""One level below the kernel's totals: which slab cache, vmalloc caller, allocation site or dead cgroup has the memory.

Parsers take bytes and never raise; lines they don't understand are left out. Every list is bounded by ``top``, and
comes with the sum over everything so that a reader sees what was left out.
"""

import heapq
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from nodemem.kernel.host import Host, Unreadable

TOP = 10

# Who allocates kernel stacks with CONFIG_VMAP_STACK (kernel/fork.c). The caller that the kernel notes depends on what
# the compiler inlined: kernel_clone (5.10+) or _do_fork for ordinary tasks, fork_idle for the idle task of each CPU.
STACK_CALLERS = frozenset(
    {"alloc_thread_stack_node", "copy_process", "create_io_thread", "dup_task_struct", "_do_fork", "fork_idle"}
    | {"kernel_clone", "vhost_task_create"}
)


@dataclass(frozen=True, slots=True)
class SlabCache:
    """One line of /proc/slabinfo. SLUB merges caches of like size: the name may stand for several."""

    name: str
    active_objects: int
    objects: int
    object_bytes: int
    bytes: int


@dataclass(frozen=True, slots=True)
class VmallocCaller:
    """The function (and module) that allocated, over all its areas. Only areas that hold pages of their own."""

    caller: str
    areas: int
    bytes: int


@dataclass(frozen=True, slots=True)
class AllocationSite:
    """A line of kernel source and what it has allocated now (CONFIG_MEM_ALLOC_PROFILING)."""

    site: str
    calls: int
    bytes: int


@dataclass(frozen=True, slots=True)
class CgroupKernelMemory:
    path: str
    bytes: int


@dataclass(frozen=True, slots=True)
class DyingCgroups:
    """Removed memory cgroups that still exist because pages are charged to them. ``count`` None: unknown, see ``why``.

    ``source`` says which file counted. cgroup.stat's nr_dying_descendants counts the cgroups of all controllers;
    nr_dying_subsys_memory (6.13+) only those whose memory controller lives on.
    """

    count: int | None
    source: str
    why: str | None = None


@dataclass(frozen=True, slots=True)
class KernelMemory:
    """The largest of each kind. Totals are over all, None where the file can't be read or doesn't exist."""

    slab_caches: list[SlabCache]
    slab_total_bytes: int | None
    vmalloc_callers: list[VmallocCaller]
    vmalloc_total_bytes: int | None
    allocation_sites: list[AllocationSite]
    allocation_total_bytes: int | None
    cgroups: list[CgroupKernelMemory]
    cgroups_total_bytes: int
    dying_cgroups: DyingCgroups
    unreadable: list[Unreadable]


_Sized = TypeVar("_Sized", SlabCache, VmallocCaller, AllocationSite, CgroupKernelMemory)


def inspect(host: Host, cgroups: Iterable[tuple[str, int | None]] = (), *, top: int = TOP) -> KernelMemory:
    """Read everything once. ``cgroups``: (path, kernel memory in bytes) as the cgroup walk found them; None is skipped.

    Cost: slabinfo takes each cache's lock in turn and vmallocinfo has a line per thread; not for every scan.
    """
    unreadable: list[Unreadable] = []

    def read(path: str) -> bytes | None:
        try:
            return host.read(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            unreadable.append(Unreadable(path, error.strerror or str(error)))
            return None

    slabinfo = read(f"{host.proc}/slabinfo")
    caches = None if slabinfo is None else parse_slabinfo(slabinfo, host.page_size)
    vmallocinfo = read(f"{host.proc}/vmallocinfo")
    callers = None if vmallocinfo is None else parse_vmallocinfo(vmallocinfo, host.page_size)
    allocinfo = read(f"{host.proc}/allocinfo")
    sites = None if allocinfo is None else parse_allocinfo(allocinfo)
    charged = [CgroupKernelMemory(path, size) for path, size in cgroups if size is not None]
    return KernelMemory(
        slab_caches=_largest(caches, top),
        slab_total_bytes=None if caches is None else sum(cache.bytes for cache in caches),
        vmalloc_callers=_largest(callers, top),
        vmalloc_total_bytes=None if callers is None else sum(caller.bytes for caller in callers),
        allocation_sites=_largest(sites, top),
        allocation_total_bytes=None if sites is None else sum(site.bytes for site in sites),
        cgroups=_largest(charged, top),
        cgroups_total_bytes=sum(cgroup.bytes for cgroup in charged),
        dying_cgroups=dying_cgroups(host),
        unreadable=unreadable,
    )


def _largest(items: list[_Sized] | None, top: int) -> list[_Sized]:
    return heapq.nlargest(top, (item for item in items or () if item.bytes), key=lambda item: item.bytes)


def parse_slabinfo(data: bytes, page_size: int) -> list[SlabCache]:
    """Format 2.x (mm/slab_common.c). The memory of a cache is its slabs, whether their objects are in use or not."""
    caches = []
    for line in data.splitlines():
        head, _, rest = line.partition(b" : tunables")
        _, _, slabdata = rest.partition(b": slabdata")
        columns = head.rsplit(None, 5)
        numbers = [_number(word) for word in (*columns[1:], *slabdata.split()[:2])]
        if len(columns) != 6 or len(numbers) != 7 or line.startswith(b"#"):
            continue
        active, objects, object_bytes, _, pages_per_slab, _, slabs = numbers
        if None in numbers or active is None or objects is None or object_bytes is None:
            continue
        size = (slabs or 0) * (pages_per_slab or 0) * page_size
        caches.append(SlabCache(os.fsdecode(columns[0].strip()), active, objects, object_bytes, size))
    return caches


def parse_vmallocinfo(data: bytes, page_size: int) -> list[VmallocCaller]:
    """Memory by caller (mm/vmalloc.c, s_show). Areas without ``pages=`` (ioremap, per-CPU, guard) only hold addresses.

    ``vmap`` with ``pages=`` maps pages that someone else allocated and another counter has: left out too.
    """
    found: dict[bytes, list[int]] = {}
    for line in data.splitlines():
        words = line.split()
        if len(words) < 4 or b"vmap" in words[3:]:
            continue
        for index in range(3, min(len(words), 6)):
            if words[index].startswith(b"pages="):
                pages = _number(words[index][6:])
                break
        else:
            continue
        if not pages:
            continue
        caller = words[2].partition(b"+0x")[0]
        if words[3].startswith(b"["):
            caller += b" " + words[3]
        entry = found.setdefault(caller, [0, 0])
        entry[0] += 1
        entry[1] += pages
    return [VmallocCaller(os.fsdecode(name), areas, pages * page_size) for name, (areas, pages) in found.items()]


def vmalloc_stack_bytes(callers: Iterable[VmallocCaller]) -> int:
    """The part of vmalloc memory that is kernel stacks: more than 0 exactly where CONFIG_VMAP_STACK is on."""
    return sum(entry.bytes for entry in callers if is_stack_caller(entry.caller))


def is_stack_caller(caller: str) -> bool:
    """Compilers add suffixes to functions that they split: copy_process.part.0."""
    return caller.partition(".")[0] in STACK_CALLERS


def parse_allocinfo(data: bytes) -> list[AllocationSite]:
    """/proc/allocinfo (lib/alloc_tag.c, 6.10+): ``size calls file:line [module] func:name``."""
    sites = []
    for line in data.splitlines():
        words = line.split(None, 2)
        if len(words) == 3 and (size := _number(words[0])) is not None and (calls := _number(words[1])) is not None:
            sites.append(AllocationSite(os.fsdecode(words[2].rstrip()), calls, size))
    return sites


def dying_cgroups(host: Host) -> DyingCgroups:
    """Count the memory cgroups that were removed but not freed, on v2 and v1.

    v1 has no such counter: /proc/cgroups counts every memory cgroup that exists, the walk those that still have a
    directory. Only meaningful where the mount shows the real root, told by ``release_agent``, which only a root has.
    """
    unified = f"{host.sys}/fs/cgroup"
    try:
        if b"memory" in host.read_small(f"{unified}/cgroup.controllers").split():
            stat = dict(line.split(None, 1) for line in host.read_small(f"{unified}/cgroup.stat").splitlines() if line)
            for key in (b"nr_dying_subsys_memory", b"nr_dying_descendants"):
                if (count := _number(stat.get(key, b"").strip())) is not None:
                    return DyingCgroups(count, f"cgroup.stat {key.decode()}")
            return DyingCgroups(None, "cgroup.stat", "this kernel does not count dying cgroups (4.14 and later do)")
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        return DyingCgroups(None, "cgroup.stat", str(error))

    root = f"{host.sys}/fs/cgroup/memory"
    source = "/proc/cgroups minus directories"
    try:
        host.read_small(f"{root}/release_agent")
        existing = _memory_cgroups(host.read_small(f"{host.proc}/cgroups"))
        visible = int(host.observe("cgroup-directories:memory", lambda: _count_directories(root)))
    except FileNotFoundError:
        return DyingCgroups(None, source, "the root of the memory cgroup hierarchy is not mounted here")
    except (OSError, ValueError) as error:
        return DyingCgroups(None, source, str(error))
    if existing is None:
        return DyingCgroups(None, source, "/proc/cgroups has no line for memory")
    return DyingCgroups(max(0, existing - visible), source)


def _memory_cgroups(data: bytes) -> int | None:
    for line in data.splitlines():
        words = line.split()
        if len(words) == 4 and words[0] == b"memory":
            return _number(words[2])
    return None


def _count_directories(root: str) -> int:
    """Directories of the tree, the root included. One that vanishes meanwhile is not counted further."""
    count = 0
    pending = [root]
    while pending:
        path = pending.pop()
        try:
            with os.scandir(path) as entries:
                pending.extend(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            if path == root:
                raise
            continue
        count += 1
    return count


def _number(word: bytes) -> int | None:
    """A decimal of at most 64 bits; the length check keeps hostile digits from costing time."""
    return int(word) if len(word) <= 20 and word.isdigit() else None
