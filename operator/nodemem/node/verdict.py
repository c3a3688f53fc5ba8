"""Where the memory went, in a sentence that a tired engineer can act on."""

from collections.abc import Mapping, Sequence

from nodemem.kernel import meminfo
from nodemem.node.status import MemoryStatus, ShmemStatus, TmpfsStatus
from nodemem.node.units import binary_size, duration, percent

NOTABLE_SHARE = 0.01
"""A hidden part is worth the first sentence from this share of memory on."""

RECLAIMABLE_SHARE = 0.1
"""... reclaimable slab, which counts as available, from this share on."""

GROWTH_BYTES_PER_HOUR = 1 << 20
"""Slower growth is not mentioned."""

_HIDDEN_PARTS = {
    "slab_unreclaimable_bytes": "unreclaimable slab (kernel objects)",
    "kernel_stack_bytes": "kernel stacks",
    "page_tables_bytes": "page tables",
    "vmalloc_bytes": "vmalloc areas",
    "per_cpu_bytes": "per-CPU memory",
    "huge_pages_bytes": "the huge page pool",
    "unaccounted_bytes": "pages no counter of the kernel shows",
}

_SHMEM_SOURCES = {
    "sysv_bytes": "System V segments",
    "memfd_bytes": "memfds",
    "shared_anonymous_bytes": "shared anonymous memory",
    "deleted_open_bytes": "deleted files that are still open",
    "kernel_internal_bytes": "objects of the kernel",
    "unattributed_bytes": "no source that could be read",
}


def verdict(
    memory: MemoryStatus,
    shmem: ShmemStatus,
    tmpfs: Sequence[TmpfsStatus],
    *,
    full_in: Mapping[str, float],
    recent: Mapping[str, int] | None = None,
    exhausted_in: float | None = None,
    holders: Mapping[str, str] | None = None,
    largest_process: tuple[str, int] | None = None,
    other: Mapping[str, int] | None = None,
) -> str:
    """One or two sentences. ``tmpfs`` is largest first; ``full_in`` is seconds by device, ``recent``
    bytes in files written within the last hour; ``holders`` names the main
    holder of a Shmem source (by field name); ``largest_process`` is its name and RSS in bytes; ``other`` is
    ``Partition.other``."""
    notable = NOTABLE_SHARE * memory.total_bytes
    hidden = [(words, getattr(memory, name) or 0) for name, words in _HIDDEN_PARTS.items()]
    if memory.slab_reclaimable_bytes >= RECLAIMABLE_SHARE * memory.total_bytes:
        hidden.append(("reclaimable slab (dentries, inodes)", memory.slab_reclaimable_bytes))
    hidden += [(meminfo.OTHER[name], size) for name, size in (other or {}).items() if name != meminfo.PER_CPU_FREE]
    part, size = max(hidden, key=lambda item: item[1])
    if memory.shmem_bytes >= notable and memory.shmem_bytes >= size:
        first = _of_shmem(memory, shmem, tmpfs, full_in, recent or {}, holders or {})
    elif size >= notable:
        first = (
            f"{binary_size(size)} ({percent(size, memory.total_bytes)} of memory) is {part}, "
            "which belongs to no process"
        )
    else:
        first = f"Nothing large is hidden: {binary_size(memory.anonymous_bytes)} is private memory of processes"
        if largest_process and largest_process[1]:
            first += f" (largest: {largest_process[0]}, {binary_size(largest_process[1])})"
        if memory.hidden_bytes is not None:
            first += f", {binary_size(memory.hidden_bytes)} is in no process"
    sentences = [first + "."]
    if memory.available_bytes is not None:
        rest = f"{binary_size(memory.available_bytes)} of {binary_size(memory.total_bytes)} is available"
        if exhausted_in is not None:
            rest += f"; at this pace none is left in {duration(exhausted_in)}"
        sentences.append(rest + ".")
    return " ".join(sentences)


def _of_shmem(
    memory: MemoryStatus,
    shmem: ShmemStatus,
    tmpfs: Sequence[TmpfsStatus],
    full_in: Mapping[str, float],
    recent: Mapping[str, int],
    holders: Mapping[str, str],
) -> str:
    text = f"{binary_size(memory.shmem_bytes)} of Shmem ({percent(memory.shmem_bytes, memory.total_bytes)} of memory)"
    source, size = max(((name, getattr(shmem, name) or 0) for name in _SHMEM_SOURCES), key=lambda item: item[1])
    top = tmpfs[0] if tmpfs else None
    if top is not None and (top.used_bytes or 0) >= size:
        text += f", {binary_size(top.used_bytes)} of it in tmpfs {top.mount_point or top.device}"
        if top.owner.kind != "Host":
            text += f" ({_owner(top)})"
        writers = top.written_by or (
            ("systemd-journald",) if (top.journal_bytes or 0) * 2 > (top.used_bytes or 0) else ()
        )
        if writers:
            text += f", written by {' and '.join(writers[:2])}"
        if top.growth_bytes_per_hour is not None and top.growth_bytes_per_hour >= GROWTH_BYTES_PER_HOUR:
            text += f", growing {binary_size(top.growth_bytes_per_hour)}/h"
        elif top.growth_bytes_per_hour is None and recent.get(top.device):
            text += f", {binary_size(recent[top.device])} in files written within the last hour"
        if top.device in full_in:
            text += f", full in {duration(full_in[top.device])}"
        return text
    text += f", {binary_size(size)} of it in {_SHMEM_SOURCES[source]}"
    if source in holders:
        text += f", most held by {holders[source]}"
    if shmem.growth_bytes_per_hour is not None and shmem.growth_bytes_per_hour >= GROWTH_BYTES_PER_HOUR:
        text += f", growing {binary_size(shmem.growth_bytes_per_hour)}/h"
    return text


def _owner(tmpfs: TmpfsStatus) -> str:
    owner = tmpfs.owner
    who = f"pod {owner.pod_namespace}/{owner.pod_name}" if owner.pod_name else ""
    if not who and owner.pod_uid:
        who = f"pod {owner.pod_uid}"
    if not who and owner.container_id:
        who = f"container {owner.container_id[:12]}"
    volume = f" volume {owner.volume}" if owner.volume else ""
    return f"{owner.kind}{volume}{' of ' + who if who else ''}"
