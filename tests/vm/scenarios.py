"""What runs inside the guests: nodemem's own code against that kernel. Arguments and return values are JSON."""

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from nodemem.kernel import lab, meminfo, oom
from nodemem.kernel.host import Host
from nodemem.kernel.procfs import ProcessTable

SWAP_DEVICE = b"/dev/vda"


def experiment(
    programs: Sequence[Sequence[Any]],
    limit_mib: int | None,
    grows: int | None = None,
    swap_mib: int = 0,
    tmpfs_mib: int = 0,
    oom_groups: Sequence[str] = (),
    swap: bool = True,
    settings: Sequence[Sequence[str]] = (),
    cgroup_settings: Sequence[Sequence[str]] = (),
    patience_seconds: float = 30.0,
) -> dict[str, Any]:
    """``nodemem oom lab``: programs are [size in KiB, oom_score_adj] or [.., .., group], numbered from 1; ``grows`` too.

    ``swap`` False: without the machine's swap. ``settings``: [file below /proc/sys, value], put back afterwards;
    ``cgroup_settings``: [file of the experiment's cgroup, value], written when the programs run.
    """
    made = tuple(lab.Program(int(each[0]) << 10, int(each[1]), *each[2:]) for each in programs)
    largest = max(range(len(made)), key=lambda at: made[at].size_bytes)
    plan = lab.Plan(
        made,
        None if limit_mib is None else limit_mib << 20,
        largest if grows is None else grows - 1,
        swap_mib << 20,
        tmpfs_mib << 20,
        frozenset(oom_groups),
    )
    host = Host()
    with ExitStack() as stack:
        if not swap:
            stack.enter_context(_without_swap())
        for name, value in settings:
            stack.enter_context(_setting(f"/proc/sys/{name}", value))
        obstacles = lab.obstacles(plan, host)
        assert obstacles == [], obstacles
        experiment = stack.enter_context(lab.Lab(plan, host, patience_seconds))
        experiment.start()
        for name, value in cgroup_settings:
            Path("/sys/fs/cgroup", _memory_directory() + experiment.path, name).write_text(value)
        before = experiment.standing()
        died = list(experiment.drive())
        result = experiment.result()
        numbers = {member.pid: member.number for member in before.members}
        return {
            "generation": before.probe.generation,
            "totalpages": before.domain.totalpages,
            "members": [
                {"number": m.number, "rss": m.task.rss_pages, "score": m.oom_score, "points": m.points}
                for m in before.members
            ],
            "predicted": [[numbers.get(pid, pid) for pid in kill.dies or kill.victims] for kill in before.kills],
            "outcome": oom.predict(
                before.domain.tasks, before.domain.totalpages or 1, before.rules, before.domain.knobs
            ).outcome,
            "margins": [kill.margin_pages for kill in before.kills],
            "killed": [numbers.get(pid, pid) for pid in result.killed],
            "died": [numbers[pid] for pid in died],
            "survivors": [numbers[pid] for pid in result.survivors],
            "order_from": result.order_from,
            "oom_kills": result.oom_kills,
            "stalled": result.stalled,
            "usage_bytes": result.usage_bytes,
            "agrees": lab.agrees(before.kills, result.killed, ordered=result.order_from == "kernel log"),
        }


def scores(programs: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """Every process of the guest: oom_score as read, and as computed from the process table."""
    host = Host()
    plan = lab.Plan(tuple(lab.Program(int(size) << 10, int(adj)) for size, adj in programs), 256 << 20)
    with lab.Lab(plan, host) as experiment:
        experiment.start()
        rules = experiment.standing().rules
        memory = meminfo.parse(host.read("/proc/meminfo"))
        node = oom.global_totalpages(memory["MemTotal"], memory["SwapTotal"], host.page_size)
        found = []
        for process in ProcessTable(host).scan().processes.values():
            task = oom.Task.from_process(process, host.page_size)
            try:
                read = int(host.read_small(f"/proc/{task.pid}/oom_score"))
            except OSError:
                continue
            found.append(
                {
                    "pid": task.pid,
                    "name": task.name,
                    "adj": task.oom_score_adj,
                    "read": read,
                    "computed": oom.oom_score(task, node, rules),
                }
            )
        return found


def _memory_directory() -> str:
    return "memory" if os.path.isdir("/sys/fs/cgroup/memory") else ""


@contextmanager
def _setting(path: str, value: str) -> Iterator[None]:
    before = Path(path).read_text()
    Path(path).write_text(value)
    try:
        yield
    finally:
        Path(path).write_text(before)


@contextmanager
def _without_swap() -> Iterator[None]:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.swapoff(SWAP_DEVICE) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        assert libc.swapon(SWAP_DEVICE, 0) == 0, os.strerror(ctypes.get_errno())
