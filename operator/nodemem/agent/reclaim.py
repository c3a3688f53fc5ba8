"""Has the node clean itself as spec.reclaim asks: systemd-journald by a limit of its own, systemd-tmpfiles by an age.

Both by a drop-in in /run, which is all that nodemem writes; what is deleted, they delete. Called after the limits, from
the scanning thread.
"""

import time
from collections.abc import Callable, Iterable

from nodemem.agent.log import Log
from nodemem.agent.reclaimfiles import FileKeeper
from nodemem.agent.reclaimjournal import JournalKeeper
from nodemem.agent.reclaimwords import out_of_reach
from nodemem.agent.reports import OwnReport
from nodemem.api.types import MemoryReportSpec, NodeReclaim
from nodemem.kernel.host import Host
from nodemem.kernel.hostfiles import HostTree
from nodemem.node.snapshot import Snapshot
from nodemem.node.status import LimitStatus, ReclaimStatus

_NOTHING = NodeReclaim()


class Reclaimer:
    """``enforce`` False: nothing is changed, whatever the spec says. ``tree``: the host's files. For one thread."""

    def __init__(
        self,
        host: Host,
        log: Log,
        *,
        enforce: bool = False,
        tree: HostTree | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tree = tree or HostTree(host)
        self._log = log
        self._journal = JournalKeeper(host, self._tree, log, clock, enforce=enforce)
        self._files = FileKeeper(host, self._tree, log, clock, enforce=enforce)
        self._enforce = enforce
        self._statuses: tuple[ReclaimStatus, ...] | None = None
        self._answered: int | None = None
        self._quiet = False

    @property
    def statuses(self) -> tuple[ReclaimStatus, ...]:
        return self._statuses or ()

    @property
    def observed_generation(self) -> int | None:
        """Of the last spec that was acted on."""
        return self._answered

    def run(
        self,
        snapshot: Snapshot,
        own: OwnReport | None,
        spec: MemoryReportSpec | None,
        generation: int | None,
        limits: Iterable[LimitStatus],
    ) -> None:
        """``spec`` and ``generation`` as last known, None: not yet. ``limits``: what became of the spec's."""
        if spec is None:
            return
        if self._statuses is None:
            self._statuses = () if own is None else own.reclaim
        if spec.reclaim is not None or self._statuses or not self._quiet:
            self._statuses = self._hold(spec, snapshot, limits, self._statuses)
            self._quiet = spec.reclaim is None and not self._statuses  # looked once: nothing of ours is there
        self._answered = generation

    def _hold(
        self,
        spec: MemoryReportSpec,
        snapshot: Snapshot,
        limits: Iterable[LimitStatus],
        before: tuple[ReclaimStatus, ...],
    ) -> tuple[ReclaimStatus, ...]:
        wanted = spec.reclaim or _NOTHING
        journal = next((each for each in before if each.kind == "Journal"), None)
        files = {each.path or "": each for each in before if each.kind == "Tmpfiles"}
        try:
            self._tree.exists("/run")
            held = self._journal.hold(wanted.journal, journal)
            aged = self._files.hold(wanted.tmpfiles, files, spec, snapshot, limits)
        except OSError as error:
            if spec.reclaim is not None or before:
                self._log.problem("reclaim", str(error))
            return out_of_reach(wanted, before, error, enforce=self._enforce)
        self._log.well("reclaim")
        return (*((held,) if held is not None else ()), *sorted(aged, key=lambda each: each.path or ""))
