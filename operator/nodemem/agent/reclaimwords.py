"""The texts of reclaim: drop-ins, written and read back, and statuses; and what follows from texts alone. Pure."""

import errno
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from nodemem.api.types import JournalLimit, NodeReclaim, TmpfilesAge, TmpfsLimit
from nodemem.kernel.hostfiles import MARK, ForeignFileError
from nodemem.kernel.systemd import OldFiles, ProgramError
from nodemem.node.status import LimitStatus, ReclaimState, ReclaimStatus
from nodemem.node.summary import quantity
from nodemem.node.units import parse_age
from nodemem.policy import globs

JOURNAL_DROP_IN = "/run/systemd/journald.conf.d/90-nodemem.conf"
TMPFILES_DROP_IN = "/run/tmpfiles.d/zz-nodemem.conf"
"""Of two lines for one path systemd-tmpfiles takes the one in the file that comes first by name: the node's own wins,
an ``x`` that excludes the path, say."""

_POLICY = "# TmpfsPolicy "
_SAFE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789/._@:+*?-")
_IN_THE_WAY = (errno.ELOOP, errno.ENOTDIR)
_OFF = " Enforcement is off on this node: its agent runs without --enforce."

_KEPT = ("/run/systemd", "/run/udev", "/run/credentials", "/run/log/journal")
_KEPT_ALONE = (
    *("/run/user", "/run/lock", "/run/dbus", "/run/containerd", "/run/crio", "/run/docker", "/run/netns"),
    *("/run/kubernetes", "/run/flannel", "/run/calico", "/run/cilium", "/run/nodemem"),
)
"""Of ``_KEPT`` nothing is aged, of these not the directory as a whole."""


class Refusal(NamedTuple):
    """Why something is not done: a word and a sentence."""

    reason: str
    message: str


# Drop-ins


def journal_text(limit: JournalLimit) -> str:
    return f"{MARK}\n{_POLICY}{limit.policy}\n[Journal]\nRuntimeMaxUse={limit.runtime_max_use_bytes}\n"


def tmpfiles_text(entries: Iterable[TmpfilesAge]) -> str:
    """``e``: of a directory that is there, what is old is deleted; nothing is made, and nothing else changed."""
    lines = [MARK]
    for each in sorted(entries, key=lambda each: each.path):
        lines += [f"{_POLICY}{each.policy}", f"e {each.path} - - - {each.age}"]
    return "\n".join(lines) + "\n"


def effective(text: str) -> list[str]:
    """What a program reads of it."""
    return [line for line in text.splitlines() if not line.startswith("#")]


def policy_in(text: str | None) -> str | None:
    """The first policy that a drop-in names."""
    lines = (text or "").splitlines()
    return next((line.removeprefix(_POLICY) for line in lines if line.startswith(_POLICY)), None)


def ages_in(text: str | None) -> list[TmpfilesAge]:
    found = []
    policy = None
    for line in (text or "").splitlines():
        parts = line.split()
        if line.startswith(_POLICY):
            policy = line.removeprefix(_POLICY)
        elif len(parts) == 6 and parts[0] == "e":
            found.append(TmpfilesAge(parts[1], parts[5], "Enforce", policy))
    return found


# Decisions


def literal(pattern: str) -> str:
    """The directory that a pattern's first wildcard is in, or the path itself."""
    parts = pattern.split("/")
    wild = next((number for number, part in enumerate(parts) if globs.is_glob(part)), len(parts))
    return "/".join(parts[:wild])


def why_not_aged(entry: TmpfilesAge) -> Refusal | None:
    """The API server checked it as well; but here it becomes a line of a file that root's programs read."""
    segments = entry.path.split("/")
    clean = entry.path[:1] == "/" and len(segments) > 2 and not any(part in ("", ".", "..") for part in segments[1:])
    try:
        parse_age(entry.age)
    except ValueError:
        clean = False
    if not clean or not _SAFE.issuperset(entry.path):
        return Refusal("Invalid", f"{entry.path!r} with age {entry.age!r} makes no line of tmpfiles.d.")
    for kept in (*_KEPT, *_KEPT_ALONE):
        parts = kept.split("/")
        shorter = min(len(parts), len(segments))
        if globs.matches("/".join(segments[:shorter]), "/".join(parts[:shorter])) and (
            kept in _KEPT or len(segments) <= len(parts)
        ):
            message = f"{entry.path} takes in {kept}, which systemd or the container runtime works with."
            return Refusal("Protected", message)
    return None


def over_limit(
    wanted: Iterable[TmpfsLimit], statuses: Iterable[LimitStatus], used_bytes: Mapping[str, int | None]
) -> list[str]:
    """Mount points of the node's own that hold more than fits under their limits with the headroom: those that wait
    for room, and those that are limited and have filled up. ``used_bytes`` is by device."""
    known = {each.mount_point: each for each in statuses}
    found = []
    for limit in wanted:
        status = known.get(limit.mount_point)
        if limit.scope != "Host" or limit.mode != "Enforce" or status is None or status.device is None:
            continue
        used, size = used_bytes.get(status.device), status.target_bytes or limit.size_bytes
        if used is not None and used * (100 + limit.headroom_percent) > size * 100:
            found.append(limit.mount_point)
    return found


# Statuses


def refusal_of(error: Exception, path: str) -> Refusal:
    """What went wrong at a file, or with a program, in a word and a sentence."""
    if isinstance(error, ForeignFileError):
        return Refusal("ForeignFile", f"{path} was not written by nodemem, and is left alone; remove it to go on.")
    if isinstance(error, ProgramError):
        return Refusal("SystemdRefused", str(error))
    if isinstance(error, TimeoutError):
        return Refusal("Timeout", str(error))
    number = error.errno if isinstance(error, OSError) else None
    if number in _IN_THE_WAY:
        message = f"On the way to {path} is a symlink, or something else than a directory; not followed."
        return Refusal("Symlink", message)
    return Refusal("KernelRefused", f"{path}: {os.strerror(number) if number else error}")


def kept_out(error: Exception) -> bool:
    """Whether that is how the node is, and no failure."""
    return isinstance(error, ForeignFileError) or (isinstance(error, OSError) and error.errno in _IN_THE_WAY)


def out_of_reach(
    wanted: NodeReclaim, before: Iterable[ReclaimStatus], error: OSError, *, enforce: bool
) -> tuple[ReclaimStatus, ...]:
    """Where the host's files can't be reached at all; what is on record as done is held on record."""
    why = Refusal("Unreachable", f"The node's own files can't be reached: {error.strerror}: {error.filename}.")
    found: dict[tuple[str, str | None], ReclaimStatus] = {}
    for each in before:
        if each.state != "Audit":
            found[each.kind, each.path] = replace(each, state="Failed", reason=why.reason, message=why.message)
    journal = wanted.journal
    if journal is not None:
        held = journal.mode == "Enforce" and enforce
        found["Journal", None] = (
            journal_status(journal, "Failed", why=why)
            if held
            else journal_status(journal, "Audit", refusal=why, off=journal.mode == "Enforce")
        )
    for entry in wanted.tmpfiles:
        held = entry.mode == "Enforce" and enforce
        found["Tmpfiles", entry.path] = (
            tmpfiles_status(entry, "Failed", why=why)
            if held
            else tmpfiles_status(entry, "Audit", refusal=why, off=entry.mode == "Enforce")
        )
    return tuple(found[each] for each in sorted(found, key=lambda each: (each[0], each[1] or "")))


def journal_status(
    limit: JournalLimit | None,
    state: ReclaimState,
    *,
    why: Refusal | None = None,
    refusal: Refusal | None = None,
    off: bool = False,
    used: int | None = None,
    freed: tuple[int | None, str | None] | None = None,
    policy: str | None = None,
) -> ReclaimStatus:
    """``why``: the reason for the state; ``refusal``: what would be in the way. ``off``: it is not enforced since this
    agent may not. ``policy``: whose it was, without a limit."""
    size = None if limit is None else limit.runtime_max_use_bytes
    freeable = None
    if why is not None:
        message = why.message
    elif refusal is not None:
        why, message = refusal, f"Would be refused: {refusal.message}"
    elif state == "Audit":
        freeable = None if used is None or size is None else max(0, used - size)
        message = (
            f"Would limit systemd-journald's volatile journal to {quantity(size)}; it has {quantity(used)}, of which"
            f" about {quantity(freeable)} would be freed. journald would be restarted; nothing is lost by that."
        )
    else:
        message = f"systemd-journald's volatile journal is limited to {quantity(size)}, by {JOURNAL_DROP_IN}."
    freed_bytes, cleaned_at = freed or (None, None)
    return ReclaimStatus(
        kind="Journal",
        path=None,
        runtime_max_use_bytes=size,
        age=None,
        state=state,
        reason="EnforcementOff" if off else None if why is None else why.reason,
        message=f"{message}{_OFF if off else ''}",
        policy=policy if limit is None else limit.policy,
        freeable_bytes=freeable,
        freed_bytes=freed_bytes,
        cleaned_at=cleaned_at,
    )


def tmpfiles_status(
    entry: TmpfilesAge,
    state: ReclaimState,
    *,
    why: Refusal | None = None,
    refusal: Refusal | None = None,
    off: bool = False,
    old: OldFiles | None = None,
    freed: tuple[int | None, str | None] | None = None,
) -> ReclaimStatus:
    """As ``journal_status``; ``old``: the files that would go."""
    if why is not None:
        message = why.message
    elif refusal is not None:
        why, message = refusal, f"Would be refused: {refusal.message}"
    elif state == "Audit":
        message = f"Would let systemd-tmpfiles delete files in {entry.path} that were not used for {entry.age}"
        if old is not None:
            few = "" if old.whole else "at least "
            message += f": {few}{old.files:,} file{'' if old.files == 1 else 's'} with {quantity(old.bytes)} now"
        message += "."
    else:
        message = (
            f"systemd-tmpfiles deletes files in {entry.path} that were not used for {entry.age}: whenever the node"
            " cleans, and at once while its tmpfs holds too much for its limit."
        )
    freed_bytes, cleaned_at = freed or (None, None)
    return ReclaimStatus(
        kind="Tmpfiles",
        path=entry.path,
        runtime_max_use_bytes=None,
        age=entry.age,
        state=state,
        reason="EnforcementOff" if off else None if why is None else why.reason,
        message=f"{message}{_OFF if off else ''}",
        policy=entry.policy,
        freeable_bytes=None if old is None else old.bytes,
        freed_bytes=freed_bytes,
        cleaned_at=cleaned_at,
    )
