"""What to do about what a report says: each thing that is wrong, in words, with the steps that mend it.

Pure: a report and, where there is one, what was found on the OOM killer. The sentences on the OOM killer's choices are
those of ``advice`` and ``services``; here they get their place and their commands. Names are as the kernel has them: to
be escaped where they are shown. A command never has a name in it that a shell or a reader could take for another.
"""

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from nodemem.kernel import memfields, meminfo
from nodemem.node.exposure import IMMINENT_AT_PERCENT, Severity
from nodemem.node.findings import Findings
from nodemem.node.services import ServiceAtRisk, UnkillableBusiness
from nodemem.node.status import (
    ContainerStatus,
    ExposureStatus,
    LimitStatus,
    MemoryStatus,
    ProcessRef,
    ReportStatus,
    ShmemObjectStatus,
    ShmemStatus,
    TmpfsStatus,
    key,
)
from nodemem.node.units import binary_size, duration, growth, percent
from nodemem.node.verdict import NOTABLE_SHARE

LARGE_SHARE = 0.1
"""Of memory: from here on a tmpfs, or another kind of hidden memory, is a matter of importance."""

KERNEL_SHARE = 0.05
"""Of memory: from here on a part of the kernel's own memory is worth a look."""

FULL_AT_LEAST_BYTES = 64 << 20
"""A tmpfs that holds less takes no machine down, full or not."""

SOON_SECONDS = 24 * 3600

_NAMED = 3
"""How many processes a sentence names."""


@dataclass(frozen=True, slots=True)
class Step:
    """``code``: commands or a file, to be copied as they are."""

    text: str
    code: str | None = None


@dataclass(frozen=True, slots=True)
class Remedy:
    severity: Severity
    title: str
    why: str
    steps: tuple[Step, ...]


def remedies(status: ReportStatus, found: Findings | None = None) -> tuple[Remedy, ...]:
    """The most pressing ones first."""
    all_of_them = [
        *_of_tmpfs(status),
        *_of_sources(status),
        *_of_kernel(status.memory),
        *(_of_exposure(each, status) for each in status.exposures or ()),
        *(_of_limit(each) for each in status.limits or () if each.state in ("Failed", "Contested", "Deferred")),
    ]
    if found is not None:
        all_of_them += [_of_service(each) for each in found.services if each.dies_first]
        all_of_them += [_of_unkillable(each) for each in found.unkillable]
        all_of_them += [
            Remedy(
                Severity.LOW, f"Container {each.container_id[:12]} has an oom_score_adj of its own", each.message, ()
            )
            for each in found.drifts
        ]
    urgency = list(Severity)
    return tuple(sorted(all_of_them, key=lambda each: urgency.index(each.severity)))


# --- tmpfs


def _of_tmpfs(status: ReportStatus) -> Iterator[Remedy]:
    total = status.memory.total_bytes
    for each in status.tmpfs:
        used = each.used_bytes or 0
        full = bool(each.size_bytes) and 100 * used >= IMMINENT_AT_PERCENT * (each.size_bytes or 0)
        soon = _seconds_between(status.observed_at, each.full_at)
        if used < NOTABLE_SHARE * total and not (used >= FULL_AT_LEAST_BYTES and (full or soon is not None)):
            continue
        severity = Severity.LOW
        if used >= LARGE_SHARE * total:
            severity = Severity.HIGH
        if used >= FULL_AT_LEAST_BYTES and (full or (soon is not None and soon <= SOON_SECONDS)):
            severity = Severity.IMMINENT
        yield Remedy(severity, _tmpfs_title(each), _tmpfs_why(each, total, soon), tuple(_tmpfs_steps(each)))


def _tmpfs_title(each: TmpfsStatus) -> str:
    title = f"tmpfs {each.mount_point or each.device} holds {binary_size(each.used_bytes)}"
    if each.growth_bytes_per_hour is not None and each.growth_bytes_per_hour > 0:
        title += f" and grows {growth(each.growth_bytes_per_hour).removeprefix('+')}"
    return title


def _tmpfs_why(each: TmpfsStatus, total: int, soon: float | None) -> str:
    used = each.used_bytes or 0
    text = f"That is {percent(used, total)} of memory, in no process. It stays until the files are deleted"
    text += " or the machine reboots." if each.scope == "Host" else " or the last mount of it goes."
    if each.unlimited:
        text += " It has no size limit: it can take all memory."
    elif each.size_bytes:
        text += f" It is {percent(used, each.size_bytes)} full ({binary_size(each.size_bytes)})"
        text += f", and full in {duration(soon)} at this pace." if soon is not None else "."
    if each.written_by:
        text += f" Open for writing by {', '.join(each.written_by)}."
    return text


def _tmpfs_steps(each: TmpfsStatus) -> Iterator[Step]:
    name = _word(each.mount_point) or each.device
    yield Step("See what is in it, the largest files first.", f"nodemem tmpfs ls {name}")
    if each.mount_point is None:
        yield Step("It is mounted nowhere any more: it goes when the processes that hold it end.")
        return
    if (each.journal_bytes or 0) * 2 > (each.used_bytes or 0) and _word(each.mount_point):
        journal = _word(f"{each.mount_point}/log/journal")
        yield Step(
            "Most of it is systemd-journald's journal. Throw away all but the newest of it, and let it keep less.",
            f"journalctl --rotate && journalctl --directory={journal} --vacuum-size=256M\n"
            "mkdir -p /etc/systemd/journald.conf.d\n"
            "printf '[Journal]\\nRuntimeMaxUse=256M\\n' > /etc/systemd/journald.conf.d/50-size.conf\n"
            "systemctl restart systemd-journald",
        )
    else:
        writers = f" ({', '.join(each.written_by)})" if each.written_by else ""
        yield Step(
            f"Delete what nobody needs, and have the writer{writers} rotate its files or write to a disk. A file that "
            "is deleted but still open keeps its memory: restart what has it open, or empty it (truncate -s 0 FILE) "
            "first."
        )
    if each.scope == "EmptyDir":
        volume = json.dumps(each.owner.volume or "cache")
        yield Step(
            "Give the volume a size in the pod's specification: a memory emptyDir without one may grow to the pod's "
            "limit, or the node's.",
            f"volumes:\n- name: {volume}\n  emptyDir: {{medium: Memory, sizeLimit: 256Mi}}",
        )
        yield Step("Or cap all of them, here at half of their pod's memory limit.", _policy("EmptyDir", None, "50%"))
        return
    if each.scope == "SharedMemory":
        yield Step(
            "Cap the /dev/shm of pods, here at half of their memory limit.", _policy("SharedMemory", None, "50%")
        )
        return
    cap = _cap(each)
    if cap is not None and cap[1]:
        yield Step(
            "Stop the growth now, until the next mount or boot; what writes there is then told that no space is left. "
            "Without --dry-run it is done.",
            f"nodemem tmpfs resize {name} {cap[0]} --dry-run",
        )
    path = each.mount_point
    if each.scope == "Host" and cap is not None and _may_be_in_a_policy(path):
        wait = "" if cap[1] else " More than that is in use now: it is Deferred until the files are gone."
        yield Step(
            f"Hold it on every node of the cluster. Enforce in place of Audit when Audit says what you want.{wait}",
            _policy("Host", path, cap[0]),
        )
    elif each.scope == "Other":
        yield Step("Whoever mounts it should give it a size (mount -o size=..., docker run --tmpfs PATH:size=...).")


def _cap(each: TmpfsStatus) -> tuple[str, bool] | None:
    """A size to suggest as a quantity, and whether it can be set now: what is in use and a tenth fit into it. Half of
    the size where nothing smaller fits. None where nothing is known."""
    if each.used_bytes is None:
        return None
    step = max(1 << 20, 1 << max(0, each.used_bytes.bit_length() - 4))  # three digits are enough
    fits = -(-each.used_bytes * 11 // 10 // step) * step
    if each.size_bytes is None or fits < each.size_bytes:
        return _quantity(max(fits, 16 << 20)), True
    half = each.size_bytes // 2 // step * step
    return (_quantity(half), False) if half else None


def _quantity(size_bytes: int) -> str:
    for unit, shift in (("Ti", 40), ("Gi", 30)):
        if size_bytes % (1 << shift) == 0:
            return f"{size_bytes >> shift}{unit}"
    return f"{size_bytes >> 20}Mi"


def _word(path: str | None) -> str | None:
    """As a word of a shell command; None for what can't be typed, or would be read as an option."""
    return None if path is None or not path.isprintable() or not path.startswith("/") else shlex.quote(path)


def _may_be_in_a_policy(path: str) -> bool:
    plain = path.isprintable() and not any(sign in path for sign in "*?[\\")
    return plain and path != "/dev" and not f"{path}/".startswith(("/proc/", "/sys/"))


def _policy(scope: str, path: str | None, size: str) -> str:
    where = "" if path is None else f"path: {json.dumps(path, ensure_ascii=False)}, "
    word = "".join(char if char.isascii() and char.isalnum() else "-" for char in (path or scope).lower()).strip("-")
    return (
        "apiVersion: nodemem.io/v1alpha1\n"
        "kind: TmpfsPolicy\n"
        f"metadata: {{name: cap-{word[:40].strip('-') or 'tmpfs'}}}\n"
        "spec:\n"
        "  rules:\n"
        f"  - {{scope: {scope}, {where}size: {size}}}\n"
        "  mode: Audit\n"
    )


def _seconds_between(earlier: str, later: str | None) -> float | None:
    if later is None:
        return None
    from datetime import datetime  # an agent that has no such question does without

    try:
        return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()
    except (ValueError, TypeError):
        return None


# --- other Shmem, and the kernel's memory

_SOURCES = {
    "sysv_bytes": (
        "sysv",
        "System V segments",
        Step(
            "A segment with nattch 0 is used by nobody, and stays until it is removed: ipcrm -m SHMID. Each IPC "
            "namespace, hence each pod, has its own.",
            "ipcs -m -p",
        ),
    ),
    "memfd_bytes": (
        "memfd",
        "memfds",
        Step("Each is gone when its last holder closes it, or ends.", "nodemem report --all"),
    ),
    "shared_anonymous_bytes": (
        "sharedAnonymous",
        "shared anonymous memory",
        Step(
            "It shows in the SHR of the processes that map it; databases keep their buffers there. Look whether it is "
            "as large as it was set up to be.",
            "nodemem report --all",
        ),
    ),
    "deleted_open_bytes": (
        "deletedOpen",
        "deleted files that are still open",
        Step(
            "No path leads there any more. It is freed when the process that holds the file closes it, or ends.",
            "ls -l /proc/[0-9]*/fd 2>/dev/null | grep '(deleted)'",
        ),
    ),
    "unattributed_bytes": (
        "",
        "Shmem that no source explains",
        Step("As root more of it is explained: what could not be read is listed on this page.", "sudo nodemem report"),
    ),
}


def _of_sources(status: ReportStatus) -> Iterator[Remedy]:
    total = status.memory.total_bytes
    for name, (kind, words, step) in _SOURCES.items():
        size: int | None = getattr(status.shmem, name)
        if size is None or size < NOTABLE_SHARE * total:
            continue
        severity = Severity.HIGH if size >= LARGE_SHARE * total else Severity.LOW
        doc = str(ShmemStatus.__dataclass_fields__[name].metadata["doc"])
        why = f"That is {percent(size, total)} of memory. {doc}"
        objects = [each for each in status.shmem.objects or () if each.kind == kind]
        if objects:
            why += f" {_largest_object(max(objects, key=lambda each: each.bytes or 0), status)}"
        yield Remedy(severity, f"{binary_size(size)} in {words}", why, (step,))


def _largest_object(each: ShmemObjectStatus, status: ReportStatus) -> str:
    text = f"The largest one: {each.name or f'inode {each.inode}'}, {binary_size(each.bytes)}"
    comms = {process.pid: process.comm for process in status.processes or ()}
    if not each.holders:
        return f"{text}, held by no process."
    holders = [f"{comms[pid]} (pid {pid})" if pid in comms else f"pid {pid}" for pid in each.holders[:_NAMED]]
    more = len(each.holders) - len(holders)
    return f"{text}, held by {', '.join(holders)}" + (f" and {more} more." if more else ".")


def _of_kernel(memory: MemoryStatus) -> Iterator[Remedy]:
    by_key = {key(name): getattr(memory, name) for name in MemoryStatus.__dataclass_fields__}
    for part in ("slabUnreclaimable", "kernelStack", "pageTables", "vmalloc", "perCpu", "hugePages", "unaccounted"):
        size: int | None = by_key[f"{part}Bytes"]
        if size is None or size < KERNEL_SHARE * memory.total_bytes:
            continue
        fields = [each for each in memfields.FIELDS.values() if each.part == part]
        why = " ".join(
            [f"{percent(size, memory.total_bytes)} of memory: {meminfo.PARTS[part]}."] + [f.high for f in fields]
        )
        steps = [Step(f"{each.name}: {each.look_next}") for each in fields]
        steps.append(Step("The kernel's memory one level down.", "nodemem meminfo --all"))
        yield Remedy(Severity.LOW, f"{binary_size(size)} in {part}", why, tuple(steps))


# --- the OOM killer's choice


def _of_exposure(each: ExposureStatus, status: ReportStatus) -> Remedy:
    if each.pod_name:
        where = f"{each.pod_namespace}/{each.pod_name}" + (f", container {each.name}" if each.name else "")
    else:
        where = f"container {each.container_id[:12]}" if each.container_id else f"pod {each.pod_uid}"
    victim, largest = _who(each.predicted_victim), _who(each.largest)
    if each.reasons == ("TmpfsHeld",):
        title = f"In {where} kills would free little: tmpfs holds the memory"
    elif victim and largest and each.predicted_victim != each.largest:
        title = f"In {where} the kernel would kill {victim} and not {largest}"
    else:
        title = f"In {where} the kernel would kill the wrong process"
    steps = []
    if each.mitigation is not None:
        adj = each.mitigation.oom_score_adj
        processes = _processes_of(each, status)
        code = f"for pid in $(cat {processes}); do choom -n {adj} -p $pid; done" if processes else None
        steps.append(Step(f"Give all its processes oom_score_adj {adj}, until they are started again.", code))
    if "TmpfsHeld" in each.reasons:
        steps.append(
            Step(
                "Give the volume a size well below the limit.",
                "volumes:\n- name: cache\n  emptyDir: {medium: Memory, sizeLimit: 256Mi}",
            )
        )
    if "SkewedAdj" in each.reasons and (processes := _processes_of(each, status)) is not None:
        show = "echo $pid $(cat /proc/$pid/oom_score_adj)"
        steps.append(
            Step("See which of its processes has which value.", f"for pid in $(cat {processes}); do {show}; done")
        )
    steps.append(Step("Look again, with every container's outlook.", "nodemem oom exposed --all"))
    return Remedy(Severity(each.severity), title, each.message, tuple(steps))


def _who(process: ProcessRef | None) -> str | None:
    return None if process is None else f"{process.comm} ({process.pid})"


def _processes_of(each: ExposureStatus, status: ReportStatus) -> str | None:
    """The file with the processes of an exposed container; None for a pod as a whole, or where it isn't known."""
    found: ContainerStatus | None = next((c for c in status.containers if c.id == each.container_id), None)
    top = {"v1": "/sys/fs/cgroup/memory", "hybrid": "/sys/fs/cgroup/memory", "v2": "/sys/fs/cgroup"}
    root = top.get(status.kernel.cgroup or "")
    return None if found is None or root is None else _word(f"{root}{found.cgroup}/cgroup.procs")


def _of_service(each: ServiceAtRisk) -> Remedy:
    title = f"{each.service} ({each.process.pid}) would die before larger business processes"
    if each.outlived_by:
        first = each.outlived_by[0]
        title = f"{each.service} ({each.process.pid}) would die before {first.comm} ({first.pid})"
    why = f"{each.why[:1].upper()}{each.why[1:]}."
    return Remedy(Severity.HIGH, title, why, _adjust(each))


def _of_unkillable(each: UnkillableBusiness) -> Remedy:
    process = each.process
    return Remedy(
        Severity.HIGH,
        f"{process.comm} ({process.pid}) is never killed, and holds {binary_size(process.frees_bytes)}",
        "It has oom_score_adj -1000. When it leaks, the kernel takes all others, one by one, and it lives.",
        _adjust(each),
    )


def _adjust(each: ServiceAtRisk | UnkillableBusiness) -> tuple[Step, ...]:
    if each.file is None or each.content is None:
        return (Step(f"{each.advice[:1].upper()}{each.advice[1:]}.", each.command),)
    file, folder = shlex.quote(each.file), shlex.quote(each.file.rpartition("/")[0])
    lines = each.content.rstrip("\n").replace("\n", "\\n")
    if not each.file.isprintable():
        return (Step("Now:", each.command),)
    return (
        Step("Now, until it is started again.", each.command),
        Step(
            "For good.",
            f"mkdir -p {folder}\nprintf '{lines}\\n' > {file}\nsystemctl daemon-reload",
        ),
    )


def _of_limit(each: LimitStatus) -> Remedy:
    severity = Severity.LOW if each.state == "Deferred" else Severity.HIGH
    title = f"The limit of {each.mount_point} is {each.state}"
    return Remedy(severity, title, each.message or "", ())
