"""What runs inside the guests: nodemem's own code against that kernel. Arguments and return values are JSON."""

import ctypes
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from nodemem.kernel import lab, labchecks, labplan, meminfo, oom, syscalls
from nodemem.kernel.host import Host
from nodemem.kernel.procfs import ProcessTable
from nodemem.node import report, trends
from nodemem.node.snapshot import Collector

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
    late_settings: Sequence[Sequence[str]] = (),
    patience_seconds: float = 30.0,
) -> dict[str, Any]:
    """``nodemem oom lab``: programs are [size in KiB, oom_score_adj] or [.., .., group]; ``grows`` counts from 1.

    ``swap`` False: without the machine's swap. ``settings``: [file below /proc/sys, value], put back afterwards;
    ``late_settings`` are written when the programs run, and so are ``cgroup_settings``: [file of the experiment's
    cgroup, value].
    """
    made = tuple(labplan.Program(int(each[0]) << 10, int(each[1]), *each[2:]) for each in programs)
    largest = max(range(len(made)), key=lambda at: made[at].size_bytes)
    plan = labplan.Plan(
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
        obstacles = labchecks.obstacles(plan, host)
        assert obstacles == [], obstacles
        experiment = stack.enter_context(lab.Lab(plan, host, patience_seconds))
        experiment.start()
        for name, value in cgroup_settings:
            Path("/sys/fs/cgroup", _memory_directory() + experiment.path, name).write_text(value)
        for name, value in late_settings:
            stack.enter_context(_setting(f"/proc/sys/{name}", value))
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
    plan = labplan.Plan(tuple(labplan.Program(int(size) << 10, int(adj)) for size, adj in programs), 256 << 20)
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


def raises(message: str) -> None:
    """For the harness's own tests."""
    raise RuntimeError(message)


def swapped_out_tmpfs(file_mib: int, limit_mib: int) -> dict[str, Any]:
    """The report of a v2 node on which a container wrote a tmpfs file that its memory limit pushed out to swap."""
    uid, container = "0125ec2f-b64a-4868-8f5b-94b56cbab864", "ab" * 32
    place = Path("/sys/fs/cgroup/kubepods", f"pod{uid}", container)
    os.makedirs(place)
    for above in (place.parent.parent, place.parent):
        (above / "cgroup.subtree_control").write_text("+memory")
    (place / "memory.max").write_text(str(limit_mib << 20))
    mount = Path("/run/big")
    mount.mkdir()
    syscalls.mount(b"tmpfs", os.fsencode(mount), b"tmpfs", 0, b"size=80%")
    orders, done = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            (place / "cgroup.procs").write_text("0")
            with open(mount / "data", "wb") as file:
                for at in range(file_mib):
                    file.write(bytes([at % 255 + 1]) * (1 << 20))
            os.write(done, b".")
            signal.pause()
        finally:
            os._exit(1)
    try:
        os.close(done)
        assert os.read(orders, 1) == b".", "the container died before its file was written"
        host = Host()
        # Each CPU keeps the last pages that it counted to itself, for a second (vm.stat_interval).
        Path("/proc/sys/vm/stat_refresh").write_text("1")
        snapshot = Collector(host).collect(deep="always")
        status = report.build(snapshot, trends.History(), everything=True)
        return {
            "report": report.as_object(status, "guest")["status"],
            "memory": meminfo.parse(host.read("/proc/meminfo")),
            "swap_usage_bytes": int((place / "memory.swap.current").read_text()),
            "shmem_bytes": next(
                int(line.split()[1])
                for line in (place / "memory.stat").read_text().splitlines()
                if line.startswith("shmem ")
            ),
        }
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        syscalls.umount(os.fsencode(mount))
        for each in (place, place.parent, place.parent.parent):
            each.rmdir()
