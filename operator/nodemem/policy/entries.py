"""The entries of a report's spec, of whatever kind: which is which, what answers it, and the spec they make.

The rollout treats them all alike. An entry's name is the mount point of a limit, ``journal``, or ``tmpfiles`` and a
path: a mount point begins with a slash, so no two kinds share a name.
"""

from collections.abc import Iterable

from nodemem.api.types import JournalLimit, MemoryReportSpec, NodeReclaim, TmpfilesAge, TmpfsLimit
from nodemem.node.status import LimitStatus, ReclaimStatus

Reclaiming = JournalLimit | TmpfilesAge
Entry = TmpfsLimit | Reclaiming
Answer = LimitStatus | ReclaimStatus

JOURNAL = "journal"


def name_of(entry: Entry) -> str:
    if isinstance(entry, TmpfsLimit):
        return entry.mount_point
    return JOURNAL if isinstance(entry, JournalLimit) else _tmpfiles(entry.path)


def name_answered(answer: Answer) -> str:
    """The name of the entry that it is about."""
    if isinstance(answer, LimitStatus):
        return answer.mount_point
    return JOURNAL if answer.kind == "Journal" else _tmpfiles(answer.path or "")


def answers(answer: Answer, entry: Entry) -> bool:
    """Whether it is about what the entry asks for now; both have the same name."""
    if isinstance(entry, TmpfsLimit):
        return isinstance(answer, LimitStatus) and answer.requested_bytes == entry.size_bytes
    if not isinstance(answer, ReclaimStatus):
        return False
    if isinstance(entry, JournalLimit):
        return answer.runtime_max_use_bytes == entry.runtime_max_use_bytes
    return answer.age == entry.age


def reclaiming(reclaim: NodeReclaim | None) -> tuple[Reclaiming, ...]:
    if reclaim is None:
        return ()
    return (*((reclaim.journal,) if reclaim.journal else ()), *reclaim.tmpfiles)


def spec(entries: Iterable[Entry]) -> MemoryReportSpec:
    listed = sorted(entries, key=name_of)
    journal = next((each for each in listed if isinstance(each, JournalLimit)), None)
    tmpfiles = tuple(each for each in listed if isinstance(each, TmpfilesAge))
    return MemoryReportSpec(
        tuple(each for each in listed if isinstance(each, TmpfsLimit)),
        NodeReclaim(journal, tmpfiles) if journal or tmpfiles else None,
    )


def _tmpfiles(path: str) -> str:
    return f"tmpfiles {path}"
