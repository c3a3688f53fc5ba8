"""``status.summary``: the columns of ``kubectl get memoryreports``, as narrow as they can be read."""

from nodemem.node.status import (
    LimitStatus,
    MemoryStatus,
    ReclaimStatus,
    ShmemStatus,
    SummaryStatus,
    TmpfsStatus,
)

_UNITS = ("B", "Ki", "Mi", "Gi", "Ti", "Pi")
_QUIET_BYTES_PER_HOUR = 1 << 20
_WORST_FIRST = ("Failed", "Contested", "Deferred", "Refused", "Audit", "InSync")


def quantity(size_bytes: float | None) -> str | None:
    """``16214523904`` as ``15.1Gi``; from 100 on and for whole numbers without a decimal. None stays."""
    if size_bytes is None:
        return None
    sign, value, unit = ("-" if size_bytes < 0 else ""), abs(size_bytes), 0
    while value >= 1023.5 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    text = f"{value:.0f}" if value >= 99.95 or unit == 0 else f"{value:.1f}".removesuffix(".0")
    return f"{sign}{text}{_UNITS[unit]}"


def growth(bytes_per_hour: int | None) -> str | None:
    """``+210Mi/h``; less than 1 MiB an hour is ``0``."""
    if bytes_per_hour is None:
        return None
    if abs(bytes_per_hour) < _QUIET_BYTES_PER_HOUR:
        return "0"
    return f"{'+' if bytes_per_hour > 0 else ''}{quantity(bytes_per_hour)}/h"


def summary(
    memory: MemoryStatus,
    shmem: ShmemStatus,
    tmpfs: tuple[TmpfsStatus, ...],
    limits: tuple[LimitStatus | ReclaimStatus, ...],
    exposed: int | None,
    mitigated: int | None = None,
) -> SummaryStatus:
    """``tmpfs`` is largest first; ``limits``: what became of them, and of reclaim; ``exposed`` counts the exposures
    that are not listed, too. Those that a mitigation prevents are in ``mitigated`` instead."""
    states = {each.state for each in limits}
    return SummaryStatus(
        total=quantity(memory.total_bytes),
        shmem=quantity(memory.shmem_bytes),
        tmpfs=quantity(shmem.tmpfs_bytes),
        hidden=quantity(memory.hidden_bytes),
        top_tmpfs=_top(tmpfs[0]) if tmpfs and tmpfs[0].used_bytes else None,
        growth=growth(shmem.growth_bytes_per_hour),
        limits=next((state for state in _WORST_FIRST if state in states), None),
        exposed=exposed,
        mitigated=mitigated,
    )


def _top(tmpfs: TmpfsStatus) -> str:
    """Of a pod by the pod's name: the path on the node says it in 80 characters of uid."""
    owner = tmpfs.owner
    where = tmpfs.mount_point or tmpfs.device
    if owner.pod_name is not None:
        where = f"{owner.pod_name}:{owner.volume or ('/dev/shm' if tmpfs.scope == 'SharedMemory' else where)}"
    if len(where) > 60:
        where = f"{where[:28]}...{where[-29:]}"
    size = "" if tmpfs.size_bytes is None else f"/{quantity(tmpfs.size_bytes)}"
    return f"{where} {quantity(tmpfs.used_bytes)}{size}"
