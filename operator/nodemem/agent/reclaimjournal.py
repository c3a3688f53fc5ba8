"""systemd-journald's limit on its volatile journal: a drop-in, a restart when that changed, a rotation, which trims.

A note beside the drop-in says that journald doesn't know of the change yet (see ``hostfiles``): an agent that is killed
on the way leaves it to the next one, which does it again.
"""

import time
from collections.abc import Callable

from nodemem.agent.log import Log
from nodemem.agent.reclaimwords import (
    JOURNAL_DROP_IN,
    Refusal,
    effective,
    journal_status,
    journal_text,
    kept_out,
    policy_in,
    refusal_of,
)
from nodemem.api.types import JournalLimit
from nodemem.kernel import systemd
from nodemem.kernel.host import Host
from nodemem.kernel.hostfiles import ForeignFileError, HostTree
from nodemem.node.status import ReclaimStatus
from nodemem.node.units import timestamp

REST_SECONDS = 300.0
"""So long journald is left alone when its change failed."""


class JournalKeeper:
    def __init__(self, host: Host, tree: HostTree, log: Log, clock: Callable[[], float], *, enforce: bool) -> None:
        self._host = host
        self._tree = tree
        self._log = log
        self._clock = clock
        self._enforce = enforce
        self._rests_until = 0.0
        self._failed_for: str | None = None
        self._tidied = False
        self._there: str | None = None  # what of ours was found in this pass

    def hold(self, limit: JournalLimit | None, before: ReclaimStatus | None) -> ReclaimStatus | None:
        """Do what is to be done, and what to report: None where there is nothing to say."""
        enforced = limit is not None and limit.mode == "Enforce" and self._enforce
        wanted = journal_text(limit) if enforced and limit is not None else None
        if (
            before is not None
            and before.state == "Failed"
            and self._failed_for == wanted
            and self._clock() < self._rests_until
        ):
            return before
        self._there = None
        try:
            held = self._hold(limit, wanted, before)
        except (ForeignFileError, systemd.ProgramError, OSError) as error:
            why = refusal_of(error, JOURNAL_DROP_IN)
            if limit is None and before is None and self._there is None:
                return None  # there is nothing of ours, as far as anybody knows
            if limit is not None and not enforced and self._there is None:
                return journal_status(limit, "Audit", refusal=why, off=limit.mode == "Enforce")
            self._rests_until, self._failed_for = self._clock() + REST_SECONDS, wanted
            self._log.problem("systemd-journald's limit", why.message)
            policy = before.policy if before is not None else policy_in(self._there)
            return journal_status(limit, "Refused" if kept_out(error) else "Failed", why=why, policy=policy)
        self._log.well("systemd-journald's limit")
        return held

    def _hold(
        self, limit: JournalLimit | None, wanted: str | None, before: ReclaimStatus | None
    ) -> ReclaimStatus | None:
        if self._enforce and not self._tidied:
            self._tree.tidy(JOURNAL_DROP_IN)
            self._tidied = True
        text, noted = self._tree.own(JOURNAL_DROP_IN), self._tree.noted(JOURNAL_DROP_IN)
        if text is not None or noted:
            self._there = text or ""
        freed = None if before is None else (before.freed_bytes, before.cleaned_at)
        if wanted is not None:
            why = self._why_not(there=text is not None)
            if why is not None:
                return journal_status(limit, "Refused", why=why)
            if text != wanted or noted:
                freed = self._change(text, wanted, noted=noted) or freed
            return journal_status(limit, "InSync", freed=freed)
        off = limit is not None and limit.mode == "Enforce"
        if (text is not None or noted) and not off:
            if not self._enforce:
                message = f"{JOURNAL_DROP_IN} is to go, but enforcement is off on this node."
                why = Refusal("EnforcementOff", message)
                return journal_status(limit, "Failed", why=why, policy=policy_in(text))
            self._change(text, None, noted=noted)
        if limit is None:
            return None
        why = self._why_not(there=False)
        return journal_status(limit, "Audit", refusal=why, off=off, used=systemd.journal_bytes(self._tree))

    def _why_not(self, *, there: bool) -> Refusal | None:
        """``there``: a drop-in of ours is in place; then it stays, though the journal may be on a disk by now."""
        if not systemd.booted(self._tree):
            return Refusal("NoSystemd", "This node does not run systemd.")
        if not there and systemd.journal_bytes(self._tree) is None:
            message = "systemd-journald keeps no volatile journal on this node: nothing of it is in a tmpfs."
            return Refusal("NotVolatile", message)
        other = systemd.overriding(self._tree, JOURNAL_DROP_IN, "RuntimeMaxUse")
        if other is not None:
            message = f"{other} has the last word on RuntimeMaxUse on this node; change it there, or remove it."
            return Refusal("Overridden", message)
        return None

    def _change(self, old: str | None, new: str | None, *, noted: bool) -> tuple[int | None, str | None] | None:
        """What that freed, and when; None where journald need not know of it."""
        if not noted and old is not None and new is not None and effective(old) == effective(new):
            self._tree.write(JOURNAL_DROP_IN, new)
            return None
        used = systemd.journal_bytes(self._tree)
        self._tree.note(JOURNAL_DROP_IN)
        if new is None:
            self._tree.remove(JOURNAL_DROP_IN)
        else:
            self._tree.write(JOURNAL_DROP_IN, new)
        systemd.restart_journald(self._host)
        freed = None
        if new is not None:
            systemd.rotate_journal(self._host)  # it trims only files that it writes no more
            after = systemd.journal_bytes(self._tree)
            freed = None if used is None or after is None else max(0, used - after)
        self._tree.done(JOURNAL_DROP_IN)
        self._log.info("systemd-journald has another limit", drop_in=JOURNAL_DROP_IN, text=new, freed_bytes=freed)
        return (freed, timestamp(time.time()))
