"""OOM kills of this node: followed in the kernel's log, judged, and told in the report and as an Event on the pod."""

import time
from dataclasses import dataclass, replace
from typing import Any

from nodemem.agent.pods import Pod
from nodemem.api.convert import safe
from nodemem.kernel import kmsg, oomjudge
from nodemem.kernel.host import Host
from nodemem.kernel.oom import Task
from nodemem.kernel.oomlog import Report
from nodemem.node.owners import ContainerRef, PodRef, parse_cgroup
from nodemem.node.report import Names
from nodemem.node.status import OomKillStatus, ProcessRef
from nodemem.node.units import timestamp

KEPT = 5
EVENT_SECONDS = 3600.0
"""A kill that is older gets no Event: the server keeps them no longer, and an agent that starts reads the whole log."""

_MESSAGE_LENGTH = 1000
_VERDICTS = {"right": "Right", "wrong": "Wrong"}


@dataclass(frozen=True, slots=True)
class Seen:
    """A kill, still without names; ``at`` is Unix time."""

    status: OomKillStatus
    at: float | None

    @property
    def recent(self) -> bool:
        return self.at is not None and time.time() - self.at < EVENT_SECONDS


class Kills:
    """The last ``KEPT`` kills, newest first. Nothing is kept on disk: the kernel's own log outlives the agent, and the
    names of Events come from the kill's place in that log, so that none is told twice."""

    def __init__(self, host: Host, cgroup_root: str = "/", release: str | None = None) -> None:
        """Raises OSError where /dev/kmsg can't be opened."""
        self._follower = kmsg.Follower(host)
        self._cgroup_root = cgroup_root
        self._release = release
        self._last: list[OomKillStatus] = []
        self.counts: dict[str, int] = {"Right": 0, "Wrong": 0, "Unknown": 0}

    @property
    def lost_records(self) -> int:
        return self._follower.lost_records

    def poll(self) -> list[Seen]:
        """New kills, oldest first. Raises OSError."""
        found = [Seen(self._status(report), report.time) for report in self._follower.poll()]
        for kill in found:
            self.counts[kill.status.verdict] += 1
        self._last = [*(each.status for each in reversed(found)), *self._last][:KEPT]
        return found

    def last(self, names: Names) -> tuple[OomKillStatus, ...]:
        return tuple(named(kill, names) for kill in self._last)

    def close(self) -> None:
        self._follower.close()

    def _status(self, report: Report) -> OomKillStatus:
        judgement = oomjudge.judge(report, release=self._release)
        cgroup = report.task_memcg or report.oom_memcg
        owner = parse_cgroup(cgroup, self._cgroup_root) if cgroup else None
        limited = report.constraint == "memcg" and report.memory is not None
        return OomKillStatus(
            key=report.key or "",
            killed_at=None if report.time is None else timestamp(report.time),
            victim=_victim(report),
            largest=_process(judgement.largest, report.page_size),
            verdict=_VERDICTS.get(judgement.verdict, "Unknown"),  # type: ignore[arg-type]
            cause=judgement.cause,
            limit_bytes=report.memory.limit_bytes if limited and report.memory else None,
            message=judgement.explanation,
            cgroup=report.oom_memcg,
            container_id=owner.container_id if isinstance(owner, ContainerRef) else None,
            pod_uid=owner.pod_uid if isinstance(owner, ContainerRef | PodRef) else None,
        )


def _victim(report: Report) -> ProcessRef | None:
    victim = report.victim
    return None if victim is None else ProcessRef(victim.pid, victim.name, victim.rss_bytes)


def _process(task: Task | None, page_size: int) -> ProcessRef | None:
    return None if task is None else ProcessRef(task.pid, task.name, task.rss_pages * page_size)


def named(kill: OomKillStatus, names: Names) -> OomKillStatus:
    pod = names.pod(kill.pod_uid)
    return replace(
        kill,
        container_name=names.container(kill.container_id),
        pod_name=pod.name if pod else None,
        pod_namespace=pod.namespace if pod else None,
    )


def event(kill: OomKillStatus, pod: Pod, container: str | None, node_name: str) -> dict[str, Any]:
    """The Event on the pod. Its name is the same whenever it is made again."""
    reference: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "namespace": pod.namespace,
        "name": pod.name,
        "uid": pod.uid,
    }
    if container is not None:
        reference["fieldPath"] = f"spec.containers{{{container}}}"
    suffix = ".oom-" + "".join(c if c.isascii() and (c.isalnum() or c == ".") else "-" for c in kill.key.lower())
    message = safe(kill.message)
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": pod.namespace, "name": f"{pod.name[: 253 - len(suffix)]}{suffix}"},
        "involvedObject": reference,
        "type": "Warning",
        "reason": "WrongOomVictim" if kill.verdict == "Wrong" else "OomKill",
        "message": message if len(message.encode()) <= _MESSAGE_LENGTH else _cut(message),
        "source": {"component": "nodemem-agent", "host": node_name},
        "reportingComponent": "nodemem.io/agent",
        "reportingInstance": node_name,
        "firstTimestamp": kill.killed_at,
        "lastTimestamp": kill.killed_at,
        "count": 1,
    }


def _cut(message: str) -> str:
    return message.encode()[: _MESSAGE_LENGTH - 3].decode("utf-8", "ignore") + "..."
