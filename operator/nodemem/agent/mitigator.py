"""Gives the processes of mitigated containers the oom_score_adj that makes a clamped kernel choose right, and puts the
kubelet's back.

Called after every scan, from the scanning thread. ``mitigate`` decides; here is what looks at processes and sets them.
It goes on with the pods it knows for as long as the API server is away, and sets nothing that isn't on record there.
"""

import errno
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace

from nodemem.agent.enforcer import RECREATED_SECONDS
from nodemem.agent.log import Log
from nodemem.agent.mitigate import Container, Step, counted, decide
from nodemem.agent.reports import OwnReport
from nodemem.api.convert import read
from nodemem.api.types import MemoryReportSpec
from nodemem.kernel import oomadj
from nodemem.kernel.host import Host
from nodemem.node.mitigation import Target, Values
from nodemem.node.report import Names
from nodemem.node.snapshot import Snapshot
from nodemem.node.status import OomMitigationStatus

MOST_STATUSES = 128
"""As many as the report takes."""

GONE_SECONDS = 120.0
"""So long a container that is not seen is remembered: one scan without it must not cost the record of its values."""

_ROUNDS = 5
"""A process that is set may have forked a moment before: the children are looked for so often in one pass."""


class Mitigator:
    """``mitigate`` False: nothing is set, whatever the spec says. For one thread."""

    def __init__(
        self, host: Host, log: Log, *, mitigate: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._host = host
        self._log = log
        self._mitigate = mitigate
        self._clock = clock
        self._statuses: dict[str, OomMitigationStatus] = {}
        self._found_in_cluster: tuple[OomMitigationStatus, ...] | None = None
        self._pods: frozenset[str] = frozenset()
        self._uid: str | None = None
        self._emptied_at: float | None = None
        self._missing: dict[str, float] = {}

    @property
    def statuses(self) -> tuple[OomMitigationStatus, ...]:
        """Those that have a value on record first: if there are too many, none of these may be cut."""
        ordered = sorted(self._statuses.values(), key=lambda each: (each.oom_score_adj is None, each.pod_uid))
        return tuple(ordered[:MOST_STATUSES])

    @property
    def pods(self) -> frozenset[str]:
        """UIDs of the pods that are mitigated, or to be, or not yet put back."""
        return self._pods | {each.pod_uid for each in self._statuses.values()}

    def learn(self, own: OwnReport | None) -> bool:
        """What the report asks for; whether that is news. None: it was deleted, and until it is made again all stays as
        it is."""
        if own is None:
            return False
        former = self.pods
        if self._found_in_cluster is None:
            self._found_in_cluster = own.mitigations
            self._statuses = {each.container_id: each for each in own.mitigations}
        try:
            pods = frozenset(each.pod_uid for each in read(MemoryReportSpec, own.spec).oom_mitigations or ())
        except (ValueError, TypeError, AttributeError) as error:
            self._log.problem("mitigations", f"the report's spec can't be read: {error}")
            return former != self.pods
        self._log.well("mitigations")
        if self._uid is not None and own.uid != self._uid and "oomMitigations" not in own.spec and self._pods:
            if self._emptied_at is None:
                self._emptied_at = self._clock()
            if self._clock() - self._emptied_at < RECREATED_SECONDS:
                return former != self.pods
        self._emptied_at = None
        self._uid, self._pods = own.uid, pods
        return former != self.pods

    def values(self, snapshot: Snapshot) -> dict[int, Values]:
        """By pid, what the processes of containers that have a value on record have now, and would have without."""
        found = {}
        for container_id, status in self._statuses.items():
            container = snapshot.containers.get(container_id)
            ours, kubelets = status.oom_score_adj, status.kubelet_oom_score_adj
            if container is None or ours is None or kubelets is None:
                continue
            try:
                for pid, now in self._observed(snapshot, container.path):
                    found[pid] = Values(now, kubelets if now == ours else now)
            except OSError as error:
                self._log.problem("mitigations", f"{container.path}: {error}")
        return found

    def run(
        self,
        snapshot: Snapshot,
        targets: Mapping[str, Target],
        names: Names,
        written: Iterable[OomMitigationStatus] | None,
    ) -> bool:
        """Whether something was set; what was, is new in ``snapshot``, too. ``targets``: of the last full scan.
        ``written``: what the status in the cluster has; None: what it had when this agent began."""
        if self._found_in_cluster is None or snapshot.hierarchy.memory_version is None:
            return False  # what is on record, or where containers are, is not known
        if not self._pods and not self._statuses:
            return False
        published = self._found_in_cluster if written is None else written
        found = {each.container_id: (each, path) for each, path in self._containers(snapshot, targets, names)}
        steps = decide(
            self._pods,
            [each for each, _ in found.values()],
            self._statuses,
            {each.container_id: each for each in published},
            generation=snapshot.probe.generation,
            mitigate=self._mitigate,
        )
        statuses, changed = self._unseen(found), 0
        for step in steps:
            status, number = self._do(step, snapshot, *found[step.container_id])
            changed += number
            if status is not None:
                statuses[step.container_id] = status
        self._statuses = statuses
        return changed > 0

    def _unseen(self, found: Collection[str]) -> dict[str, OomMitigationStatus]:
        now = self._clock()
        missing = self._statuses.keys() - found
        self._missing = {each: self._missing.get(each, now) for each in missing}
        return {each: self._statuses[each] for each in missing if now - self._missing[each] < GONE_SECONDS}

    def _containers(
        self, snapshot: Snapshot, targets: Mapping[str, Target], names: Names
    ) -> Iterator[tuple[Container, str]]:
        """With the paths of their cgroups. One whose processes can't be read is left out."""
        for container_id, each in snapshot.containers.items():
            uid, name = each.ref.pod_uid, names.container(container_id)
            # The sandbox has no name in the API; nor has what is too young to be known.
            wanted = uid in self._pods and (container_id in targets or name is not None)
            if not wanted and container_id not in self._statuses:
                continue
            try:
                observed = tuple(adj for _, adj in self._observed(snapshot, each.path))
            except OSError as error:
                self._log.problem("mitigations", f"{each.path}: {error}")
                continue
            expected = names.expected_oom_score_adj.get(container_id)
            yield Container(container_id, uid or "", name, observed, expected, targets.get(container_id)), each.path

    def _observed(self, snapshot: Snapshot, path: str) -> list[tuple[int, int]]:
        """Pid and oom_score_adj."""
        found = []
        for process in oomadj.processes(self._host, snapshot.hierarchy, path):
            try:
                found.append((process.pid, process.oom_score_adj()))
            except OSError as error:
                if not _gone(error):
                    raise
        return found

    def _do(
        self, step: Step, snapshot: Snapshot, container: Container, path: str
    ) -> tuple[OomMitigationStatus | None, int]:
        """The step's status, or what became of it; how many processes were set."""
        status = step.status
        if status is None or step.set_from is None or step.set_to is None:
            return status, 0
        if step.set_from not in container.observed:
            return counted(status, container.observed), 0
        changed, values, failed = self._set(snapshot, path, step.set_from, step.set_to)
        if changed:
            self._log.info(
                "oom_score_adj was set",
                container=step.container_id,
                before=step.set_from,
                after=step.set_to,
                processes=changed,
                restored=step.restores,
            )
        subject = f"oom_score_adj of container {step.container_id[:12]}"
        if failed is not None:
            message = f"oom_score_adj {step.set_from} could not be made {step.set_to}: {failed}"
            self._log.problem(subject, message)
            failure = replace(status, state="Failed", reason="KernelRefused", message=message)
            return counted(failure, values), changed
        self._log.well(subject)
        if step.restores and step.set_from not in values:
            return None, changed
        return counted(status, values), changed

    def _set(self, snapshot: Snapshot, path: str, before: int, after: int) -> tuple[int, list[int], str | None]:
        """How many were set; the values that all have now; why one could not be set."""
        changed = 0
        for _ in range(_ROUNDS):
            values: list[int] = []
            fresh, failed = 0, None
            try:
                for process in oomadj.processes(self._host, snapshot.hierarchy, path):
                    try:
                        values.append(process.oom_score_adj())
                        if values[-1] == before:
                            process.set_oom_score_adj(after)
                            values[-1] = after
                            fresh += 1
                            # The scan doesn't ask for it again for some time.
                            if (scanned := snapshot.processes.get(process.pid)) is not None:
                                scanned.oom_score_adj = after
                    except OSError as error:
                        if not _gone(error):
                            failed = _words(error)
            except OSError as error:
                failed = _words(error)
            changed += fresh
            if not fresh:
                break
        return changed, values, failed


def _gone(error: OSError) -> bool:
    return error.errno in (errno.ENOENT, errno.ESRCH)


def _words(error: OSError) -> str:
    if error.errno != errno.EACCES:
        return str(error.strerror or error)
    if error.filename is not None:  # open(2); write(2) has none
        return f"{error.strerror}: the agent lacks the capability DAC_OVERRIDE, which mitigation.enabled adds"
    return f"{error.strerror}: below what somebody with CAP_SYS_RESOURCE set last"
