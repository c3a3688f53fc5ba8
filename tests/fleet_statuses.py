"""Reports of nodes that are made up: a /run that a journal fills, and what else a test wants."""

import dataclasses
import time
from typing import Any

from nodemem.node.status import (
    Condition,
    KernelStatus,
    MemoryStatus,
    Omitted,
    ReportStatus,
    ShmemStatus,
    TmpfsEntryStatus,
    TmpfsOwnerStatus,
    TmpfsStatus,
)
from nodemem.node.summary import summary
from nodemem.node.units import timestamp
from nodemem.node.verdict import verdict

MIB, GIB = 1 << 20, 1 << 30


def run_tmpfs(used_bytes: int, size_bytes: int, **more: Any) -> TmpfsStatus:
    """/run with the journal in it."""
    made = TmpfsStatus(
        device="0:25",
        mount_point="/run",
        scope="Host",
        owner=TmpfsOwnerStatus("Host"),
        size_bytes=size_bytes,
        unlimited=False,
        used_bytes=used_bytes,
        inodes=819200,
        inodes_used=1024,
        growth_bytes_per_hour=None,
        full_at=None,
        written_by=("systemd-journal",),
        journal_bytes=used_bytes,
        largest=(
            TmpfsEntryStatus("log/journal/", used_bytes),
            TmpfsEntryStatus("log/journal/system.journal", 128 * MIB),
        ),
        inspection_stopped=None,
        why_unknown=None,
    )
    return dataclasses.replace(made, **more)


def status(
    *tmpfs: TmpfsStatus,
    total_bytes: int = 64 * GIB,
    anonymous_bytes: int = 8 * GIB,
    growth_bytes_per_hour: int | None = None,
    age_seconds: float = 5.0,
    **more: Any,
) -> ReportStatus:
    """Of a node whose Shmem is what is in ``tmpfs``; the parts add up."""
    shmem_bytes = sum(each.used_bytes or 0 for each in tmpfs)
    parts = {field.name: 0 for field in dataclasses.fields(MemoryStatus)}
    parts |= {
        "total_bytes": total_bytes,
        "anonymous_bytes": anonymous_bytes,
        "shmem_bytes": shmem_bytes,
        "slab_unreclaimable_bytes": 512 * MIB,
        "hidden_bytes": shmem_bytes + 512 * MIB,
        "free_bytes": total_bytes - anonymous_bytes - shmem_bytes - 512 * MIB,
        "available_bytes": total_bytes - anonymous_bytes - shmem_bytes - 512 * MIB,
    }
    memory = MemoryStatus(**parts)
    shmem = ShmemStatus(shmem_bytes, shmem_bytes, 0, 0, 0, 0, 0, 0, 0, growth_bytes_per_hour, deep=True)
    now = time.time() - age_seconds
    rooms = {
        each.device: (each.size_bytes - (each.used_bytes or 0)) * 3600 / each.growth_bytes_per_hour
        for each in tmpfs
        if each.growth_bytes_per_hour and each.size_bytes
    }
    tmpfs = tuple(
        dataclasses.replace(each, full_at=timestamp(now + rooms[each.device])) if each.device in rooms else each
        for each in tmpfs
    )
    fields: dict[str, Any] = {
        "observed_at": timestamp(now),
        "agent_version": "0.1.0",
        "verdict": verdict(memory, shmem, tmpfs, full_in=rooms),
        "kernel": KernelStatus("6.8.0-45-generic", "Accurate", "v2", 0, 0, 0, False, 4096, 41 * 86400.0),
        "memory": memory,
        "shmem": shmem,
        "tmpfs": tmpfs,
        "containers": (),
        "conditions": (Condition("Complete", "True", "AllRead", "Everything could be read.", timestamp(now)),),
        "omitted": Omitted(),
        "limits": (),
        "exposures": (),
        "oom_kills": (),
        "observed_generation": 1,
    }
    fields |= more
    exposed = len(fields["exposures"] or ())
    fields.setdefault("summary", summary(memory, shmem, tmpfs, fields["limits"], exposed))
    return ReportStatus(**fields)
