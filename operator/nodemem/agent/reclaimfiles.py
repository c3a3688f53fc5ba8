"""Old files in a tmpfs, which the host's systemd-tmpfiles deletes: a drop-in with a line for each path.

It heeds the drop-in whenever it runs, by the host's own timer. While a limited tmpfs of the host with aged paths in it
holds more than fits, it is started from here as well.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from nodemem.agent.log import Log
from nodemem.agent.reclaimwords import (
    TMPFILES_DROP_IN,
    Refusal,
    ages_in,
    kept_out,
    literal,
    over_limit,
    refusal_of,
    tmpfiles_status,
    tmpfiles_text,
    why_not_aged,
)
from nodemem.api.types import MemoryReportSpec, TmpfilesAge
from nodemem.kernel import systemd
from nodemem.kernel.host import Host
from nodemem.kernel.hostfiles import ForeignFileError, HostTree
from nodemem.kernel.systemd import OldFiles
from nodemem.node.snapshot import Snapshot
from nodemem.node.status import LimitStatus, ReclaimState, ReclaimStatus
from nodemem.node.units import parse_age, timestamp

CLEAN_SECONDS = 1800.0
"""systemd-tmpfiles is started no more often, however long a tmpfs holds too much."""

REST_SECONDS = 300.0
"""The same where it could not be started."""

LOOK_SECONDS = 300.0
"""Old files are counted no more often."""

_MOST_ENTRIES = 20_000
"""Files and directories that are looked at for that, for all paths together."""


class FileKeeper:
    def __init__(self, host: Host, tree: HostTree, log: Log, clock: Callable[[], float], *, enforce: bool) -> None:
        self._host = host
        self._tree = tree
        self._log = log
        self._clock = clock
        self._enforce = enforce
        self._clean_again = 0.0
        self._failure: Refusal | None = None
        self._counted: dict[tuple[str, str], tuple[float, OldFiles]] = {}
        self._most = _MOST_ENTRIES
        self._tidied = False

    def hold(
        self,
        entries: tuple[TmpfilesAge, ...],
        before: Mapping[str, ReclaimStatus],
        spec: MemoryReportSpec,
        snapshot: Snapshot,
        limits: Iterable[LimitStatus],
    ) -> list[ReclaimStatus]:
        """``before`` is by path. The entries' statuses, and those of what is not undone yet."""
        self._most = _MOST_ENTRIES // max(1, len(entries))
        refusals = self._why_not(entries, snapshot)
        held = [each for each in entries if each.mode == "Enforce" and self._enforce and each.path not in refusals]
        said = {each.path: self._say(each, refusals.get(each.path), before.get(each.path)) for each in entries}
        try:
            changed, left = self._write(entries, held)
            for each in left:
                message = f"{TMPFILES_DROP_IN} is to go, but enforcement is off on this node."
                said[each.path] = tmpfiles_status(each, "Failed", why=Refusal("EnforcementOff", message))
            used = {device: each.used_bytes for device, each in snapshot.mounts.superblocks.items()}
            over = over_limit(spec.tmpfs_limits, limits, used)
            full = [each for each in held if any(each.path.startswith(f"{mount}/") for mount in over)]
            if full and (changed or self._clock() >= self._clean_again):
                said |= self._clean(full, said)
            if self._failure is not None:
                said |= {each.path: tmpfiles_status(each, "Failed", why=self._failure) for each in full}
        except (ForeignFileError, OSError) as error:
            if not held and not any(each.state != "Audit" for each in before.values()):
                return list(said.values())  # there is nothing of ours, as far as anybody knows, nor is to be
            why = refusal_of(error, TMPFILES_DROP_IN)
            self._log.problem("systemd-tmpfiles' ages", why.message)
            state: ReclaimState = "Refused" if kept_out(error) else "Failed"
            said |= {each.path: tmpfiles_status(each, state, why=why) for each in held}
            said |= {
                path: replace(each, state=state, reason=why.reason, message=why.message)
                for path, each in before.items()
                if path not in said and each.state != "Audit"
            }
        else:
            self._log.well("systemd-tmpfiles' ages")
        return list(said.values())

    def _say(self, entry: TmpfilesAge, refusal: Refusal | None, before: ReclaimStatus | None) -> ReclaimStatus:
        """As it is if all goes well."""
        old = None if refusal is not None else self._old(entry)
        if entry.mode == "Audit" or not self._enforce:
            return tmpfiles_status(entry, "Audit", refusal=refusal, off=entry.mode == "Enforce", old=old)
        if refusal is not None:
            return tmpfiles_status(entry, "Refused", why=refusal)
        known = before is not None and before.age == entry.age
        freed = (before.freed_bytes, before.cleaned_at) if known and before is not None else None
        return tmpfiles_status(entry, "InSync", freed=freed, old=old)

    def _write(self, entries: Iterable[TmpfilesAge], held: list[TmpfilesAge]) -> tuple[bool, list[TmpfilesAge]]:
        """Whether the drop-in changed; what is in it and is to go, where it must not be changed."""
        if self._enforce and not self._tidied:
            self._tree.tidy(TMPFILES_DROP_IN)
            self._tidied = True
        text = self._tree.own(TMPFILES_DROP_IN)
        if not self._enforce:
            listed = {each.path for each in entries if each.mode == "Enforce"}
            return False, [each for each in ages_in(text) if each.path not in listed]
        wanted = tmpfiles_text(held) if held else None
        if text == wanted:
            return False, []
        if wanted is None:
            self._tree.remove(TMPFILES_DROP_IN)
        else:
            self._tree.write(TMPFILES_DROP_IN, wanted)
        self._log.info("systemd-tmpfiles has other ages", drop_in=TMPFILES_DROP_IN, text=wanted)
        return True, []

    def _why_not(self, entries: tuple[TmpfilesAge, ...], snapshot: Snapshot) -> dict[str, Refusal]:
        if not entries:
            return {}
        if not systemd.booted(self._tree):
            refusal = Refusal("NoSystemd", "This node does not run systemd.")
            return {each.path: refusal for each in entries}
        mounted = [
            point.path
            for superblock in snapshot.mounts.superblocks.values()
            for point in superblock.mounts
            if point.namespace == snapshot.host_namespace and not point.hidden and superblock.fstype == "tmpfs"
        ]
        read = snapshot.host_namespace in snapshot.mounts.pids  # else nothing is known of what is mounted
        found = {}
        for each in entries:
            why = why_not_aged(each)
            if why is None and read and not any(each.path.startswith(f"{path}/") for path in mounted):
                why = Refusal("NotTmpfs", f"{each.path} is in no tmpfs of the node; nothing on a disk is aged.")
            if why is None:
                try:
                    if not systemd.on_tmpfs(self._tree, literal(each.path)):
                        why = Refusal("NotTmpfs", f"{each.path} is not on a tmpfs; nothing on a disk is aged.")
                except OSError as error:
                    why = refusal_of(error, each.path)
            if why is not None:
                found[each.path] = why
        return found

    def _old(self, entry: TmpfilesAge, *, fresh: bool = False) -> OldFiles:
        key = (entry.path, entry.age)
        known = self._counted.get(key)
        now = self._clock()
        if known is not None and now < known[0] and not fresh:
            return known[1]
        if len(self._counted) > 256:
            self._counted.clear()
        directories = systemd.expand(self._tree, entry.path)
        counted = systemd.old_files(self._tree, directories, time.time() - parse_age(entry.age), most=self._most)
        self._counted[key] = (now + LOOK_SECONDS, counted)
        return counted

    def _clean(self, full: list[TmpfilesAge], said: Mapping[str, ReclaimStatus]) -> dict[str, ReclaimStatus]:
        self._clean_again = self._clock() + CLEAN_SECONDS
        self._failure = None
        before = {each.path: self._old(each, fresh=True).bytes for each in full}
        try:
            systemd.clean(self._host)
        except TimeoutError:
            pass  # the host goes on with it
        except (systemd.ProgramError, OSError) as error:
            self._failure = refusal_of(error, systemd.CLEAN)
            self._clean_again = self._clock() + REST_SECONDS
            self._log.info("systemd-tmpfiles was not started", why=self._failure.message)
            return {}
        at = timestamp(time.time())
        cleaned = {}
        for each in full:
            left = self._old(each, fresh=True).bytes
            freed = max(0, before[each.path] - left)
            cleaned[each.path] = replace(said[each.path], freed_bytes=freed, cleaned_at=at, freeable_bytes=left)
        freed_bytes = sum(each.freed_bytes or 0 for each in cleaned.values())
        self._log.info("systemd-tmpfiles was started", paths=list(cleaned), freed_bytes=freed_bytes)
        return cleaned
