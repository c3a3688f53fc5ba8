"""The running kernel against the prediction: scores of all processes, and real kills in a 64 MiB memory cgroup.

Needs root and the memory controller (v1 or v2). Only oom_score_adj of 0 and above, which asks for no CAP_SYS_RESOURCE.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kernel.hungry import KillLog, Worker, eventually
from nodemem.kernel import oom
from nodemem.kernel.cgroups import discover
from nodemem.kernel.host import Host
from nodemem.kernel.meminfo import parse as parse_meminfo
from nodemem.kernel.oom import Domain, Generation, Outcome, Task
from nodemem.kernel.procfs import ProcessTable

MIB = 1 << 20
LIMIT = 64 * MIB
OVER = 4 * MIB
"""More than ``Arena.fill`` leaves, less than any victim frees: one kill is enough."""

HOST = Host()
PAGE = HOST.page_size
RELEASE = os.uname().release


def node_totalpages() -> int:
    meminfo = parse_meminfo(HOST.read("/proc/meminfo"))
    return oom.global_totalpages(meminfo["MemTotal"], meminfo["SwapTotal"], PAGE)


def tasks_now() -> list[Task]:
    return oom.tasks_from(ProcessTable(HOST).scan().processes.values(), PAGE)


class Arena:
    """A memory cgroup of its own, children of it, and the workers in them."""

    def __init__(self) -> None:
        self.hierarchy = discover(HOST)
        self.v2 = self.hierarchy.memory_version == "v2"
        self.path = f"{self.hierarchy.root.rstrip('/')}/nodemem-test-oom-{os.getpid()}"
        self.directory = Path(self.hierarchy.directory, Path(self.path).name)
        self.workers: list[Worker] = []
        self.log = KillLog()
        self.made: list[Path] = []
        if self.v2:
            Path(self.hierarchy.directory, "cgroup.subtree_control").write_text("+memory")
        self.make(self.directory, LIMIT)

    def make(self, directory: Path, limit: int | None) -> Path:
        directory.mkdir()
        self.made.append(directory)
        if limit is not None:
            (directory / ("memory.max" if self.v2 else "memory.limit_in_bytes")).write_text(str(limit))
            with contextlib.suppress(FileNotFoundError):
                (directory / ("memory.swap.max" if self.v2 else "memory.swappiness")).write_text("0")
        return directory

    def child(self, name: str, limit: int | None = None) -> Path:
        if self.v2:
            (self.directory / "cgroup.subtree_control").write_text("+memory")
        return self.make(self.directory / name, limit)

    def worker(self, mebibytes: int, adj: int = 0, cgroup: Path | None = None, shared: bool = False) -> Worker:
        worker = Worker(cgroup or self.directory, adj, shared=shared)
        self.workers.append(worker)
        if mebibytes:
            assert worker.takes(mebibytes * MIB)
        return worker

    def usage(self, directory: Path) -> int:
        return int((directory / ("memory.current" if self.v2 else "memory.usage_in_bytes")).read_text())

    def fill(self, worker: Worker, directory: Path, limit: int) -> None:
        """To just under the limit, so that what is predicted now is what the kernel will find."""
        while (room := limit - self.usage(directory)) > 3 * MIB:
            assert worker.takes(min(MIB, room - 2 * MIB))

    def domain(self, directory: Path | None = None) -> Domain:
        path = self.path if directory is None or directory == self.directory else f"{self.path}/{directory.name}"
        paths = list(self.hierarchy.walk(path))
        joined = {each: self.hierarchy.procs(each) for each in paths} if self.v2 else None
        tasks, order = oom.in_scan_order(tasks_now(), rules(), paths=paths, joined=joined)
        return oom.memcg_domain(
            self.hierarchy.read(path),
            tasks,
            order,
            page_size=PAGE,
            version="v2" if self.v2 else "v1",
            total_swap_bytes=parse_meminfo(HOST.read("/proc/meminfo"))["SwapTotal"],
        )

    def killed(self) -> list[int]:
        """In the kernel's order. There may be more of them than needed: until a victim's pages are uncharged the next
        attempt to charge finds the cgroup full, and nobody dying."""
        ours = {worker.pid for worker in self.workers}
        return [pid for pid in self.log.read() if pid in ours]

    def first_kill(self) -> int:
        eventually("a kill", lambda: bool(self.killed()))
        return self.killed()[0]

    def close(self) -> None:
        for worker in self.workers:
            worker.end()
        for directory in reversed(self.made):
            eventually(f"{directory} to be empty", lambda directory=directory: _removed(directory))
        self.log.close()


def _removed(directory: Path) -> bool:
    try:
        directory.rmdir()
    except OSError:
        return False
    return True


def rules() -> oom.Rules:
    found = oom.probe(HOST, tasks_now(), node_totalpages()).rules
    assert found is not None
    return found


@pytest.fixture
def arena() -> Iterator[Arena]:
    found = Arena()
    try:
        yield found
    finally:
        found.close()


def predicted_victim(domain: Domain) -> int:
    prediction = oom.predict_domain(domain, rules())
    assert prediction is not None
    assert prediction.predicted is not None
    assert prediction.margin_pages is not None
    error = oom.rss_error_pages(os.cpu_count() or 1, release=RELEASE)
    assert prediction.margin_pages > error, "the scenario is too close to call"
    return prediction.predicted


# --- scores


def scores_by_pid() -> dict[int, int]:
    found = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError):
                found[int(name)] = int(Path("/proc", name, "oom_score").read_text())
    return found


def test_the_score_of_every_process_is_the_one_the_kernel_prints() -> None:
    """Exact but for the kernel's own error: from 6.2 it scores with approximate counters, while /proc/<pid>/status
    shows exact ones on some kernels. What changed while it was read is asked again."""
    total, found_rules = node_totalpages(), rules()
    error = oom.rss_error_pages(os.cpu_count() or 1, release=RELEASE)
    wrong: dict[int, str] = {}
    for _ in range(5):
        before, tasks, after = scores_by_pid(), tasks_now(), scores_by_pid()
        assert len(tasks) > 10
        wrong = {}
        for task in tasks:
            if task.pid not in before or task.pid not in after:
                continue
            points = oom.badness(task, total, found_rules)
            if points is None:
                low = high = oom.oom_score(task, total, found_rules)
            else:
                low, high = (
                    oom.score_of_points(each, total, clamp=found_rules.clamp)
                    for each in (points - error, points + error)
                )
            assert low is not None
            assert high is not None
            seen = (before[task.pid], after[task.pid])
            if not (low <= max(seen) and min(seen) <= high):
                wrong[task.pid] = f"{task.name}: {seen}, computed {low} to {high}"
        if not wrong:
            break
    assert wrong == {}


def test_the_probe_tells_this_kernels_generation() -> None:
    found = oom.probe(HOST, tasks_now(), node_totalpages())
    assert found.generation is Generation.ACCURATE
    assert found.release == RELEASE
    assert "oom_score" in found.evidence


def test_the_probe_says_unknown_when_all_it_sees_is_init() -> None:
    assert oom.probe(HOST, [t for t in tasks_now() if t.init], node_totalpages()).generation is Generation.UNKNOWN


# --- kills


@pytest.mark.parametrize(
    ("workers", "expected"),
    [
        pytest.param([(2, 0), (4, 0), (0, 0)], 2, id="the one that grows is the largest"),
        pytest.param([(4, 0), (30, 0), (4, 0), (0, 0)], 1, id="an idle one is larger than the one that asks"),
        pytest.param([(2, 600), (30, 0), (0, 0)], 0, id="600 outweighs 28 MiB"),
        pytest.param([(2, 100), (34, 0), (0, 0)], 1, id="100 does not"),
        pytest.param([(12, 1000), (8, 1000), (0, 1000)], 2, id="equal adj, all at the top"),
        pytest.param([(4, 300), (24, 700), (4, 900), (0, 0)], 1, id="size and adj together"),
    ],
)
def test_the_predicted_process_is_killed(arena: Arena, workers: list[tuple[int, int]], expected: int) -> None:
    """The last worker is the one that grows."""
    started = [arena.worker(mebibytes, adj) for mebibytes, adj in workers]
    arena.fill(started[-1], arena.directory, LIMIT)
    predicted = predicted_victim(arena.domain())
    assert predicted == started[expected].pid
    started[-1].ask(OVER)
    assert arena.first_kill() == predicted


def test_shared_anonymous_memory_counts_for_the_choice(arena: Arena) -> None:
    sharer = arena.worker(34, shared=True)
    grows = arena.worker(0)
    arena.fill(grows, arena.directory, LIMIT)
    domain = arena.domain()
    assert (domain.shmem_bytes or 0) >= 34 * MIB
    predicted = predicted_victim(domain)
    assert predicted == sharer.pid
    grows.ask(OVER)
    assert arena.first_kill() == predicted


def test_processes_are_killed_in_the_predicted_order(arena: Arena) -> None:
    order = [arena.worker(8, adj) for adj in (950, 1000, 900)]
    grows = arena.worker(0)
    arena.fill(grows, arena.directory, LIMIT)
    domain = arena.domain()
    assert domain.totalpages is not None
    predicted = [
        kill.predicted for kill in oom.kill_order(domain.tasks, domain.totalpages, rules(), domain.knobs, domain.order)
    ]
    assert predicted == [order[1].pid, order[0].pid, order[2].pid, grows.pid]
    while grows.takes(MIB):
        pass
    eventually("the last kill", lambda: grows.pid in arena.killed())
    assert arena.killed() == predicted


def test_a_limit_in_a_child_takes_nobody_outside_of_it(arena: Arena) -> None:
    inner, beside = arena.child("inner", 24 * MIB), arena.child("beside")
    outside = arena.worker(24, adj=1000, cgroup=beside)
    small = arena.worker(8, cgroup=inner)
    grows = arena.worker(0, cgroup=inner)
    arena.fill(grows, inner, 24 * MIB)
    domain = arena.domain(inner)
    assert {task.pid for task in domain.tasks} == {small.pid, grows.pid}
    assert domain.totalpages == 24 * MIB // PAGE
    grows.ask(OVER)
    prediction = oom.predict_domain(domain, rules())
    assert prediction is not None
    assert arena.first_kill() == prediction.predicted
    assert outside.pid not in prediction.victims


def test_the_limit_of_the_parent_reaches_into_all_children(arena: Arena) -> None:
    first, second = arena.child("first"), arena.child("second")
    arena.worker(4, cgroup=first)
    large = arena.worker(34, cgroup=second)
    grows = arena.worker(0, cgroup=first)
    arena.fill(grows, arena.directory, LIMIT)
    domain = arena.domain()
    assert len(domain.tasks) == 3
    assert predicted_victim(domain) == large.pid
    grows.ask(OVER)
    assert arena.first_kill() == large.pid


def test_with_oom_kill_disable_everybody_waits_and_with_it_off_the_predicted_one_dies(arena: Arena) -> None:
    """v1 only; v2 has no such file, and there the domain says so."""
    large = arena.worker(34)
    grows = arena.worker(0)
    arena.fill(grows, arena.directory, LIMIT)
    if arena.v2:
        assert not arena.domain().knobs.oom_kill_disable
        return
    control = arena.directory / "memory.oom_control"
    control.write_text("1")
    try:
        domain = arena.domain()
        prediction = oom.predict_domain(domain, rules())
        assert prediction is not None
        assert (prediction.outcome, prediction.predicted) == (Outcome.HANGS, None)
        grows.ask(OVER)
        eventually("the cgroup to be under OOM", lambda: "under_oom 1" in control.read_text())
        assert arena.killed() == []
    finally:
        control.write_text("0")
    predicted = predicted_victim(replace(domain, knobs=replace(domain.knobs, oom_kill_disable=False)))
    assert predicted == large.pid
    assert arena.first_kill() == predicted
