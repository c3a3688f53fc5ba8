"""oom_score_adj of the processes of real cgroups. Root; values are positive, as negative ones take CAP_SYS_RESOURCE,
which a test machine may lack: those are tried in vm/test_mitigation.py."""

import contextlib
import ctypes
import mmap
import os
import secrets
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from kernel import workloads
from kernel.hungry import eventually
from kernel.workloads import MIB
from nodemem.agent.log import Log
from nodemem.agent.mitigator import GONE_SECONDS, Mitigator
from nodemem.agent.reports import OwnReport
from nodemem.kernel import oomadj
from nodemem.kernel.cgroups import discover
from nodemem.kernel.host import Host
from nodemem.kernel.oom import Generation
from nodemem.node.mitigation import Target
from nodemem.node.report import Names, PodName
from nodemem.node.snapshot import Collector
from nodemem.node.status import OomMitigationStatus

KUBELETS, OURS, OWN = 400, 700, 1000


def adj_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def has(value: int, *, below: str | None = None) -> Callable[[], None]:
    """``below``: the process moves into a cgroup that it makes in its own."""

    def setup() -> None:
        Path("/proc/self/oom_score_adj").write_text(str(value))
        if below is not None:
            Path(below).mkdir()
            Path(below, "cgroup.procs").write_text("0")

    return setup


# One process


def pid_again(pid: int) -> int:
    """A new process with a pid that was another's."""
    for _ in range(1000):
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
        if child == pid:
            return child
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    pytest.fail(f"pid {pid} did not come again")


def test_a_held_process_is_never_taken_for_a_later_one_with_its_pid() -> None:
    with workloads.child(has(KUBELETS)) as (first, _):
        held = oomadj.HeldProcess(Host(), first)
        assert held.oom_score_adj() == KUBELETS
    again = pid_again(first)
    try:
        with held:
            for ask in (held.oom_score_adj, lambda: held.set_oom_score_adj(OURS), lambda: held.read("cgroup")):
                with pytest.raises(ProcessLookupError):
                    ask()
        assert adj_of(again) == adj_of(os.getpid())
    finally:
        os.kill(again, signal.SIGKILL)
        os.waitpid(again, 0)


def test_the_processes_of_a_cgroup_are_the_living_ones_in_all_of_it_and_no_others() -> None:
    hierarchy = discover(Host())
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(workloads.memory_cgroup(f"nodemem-test-{os.getpid()}/adj"))
        path = hierarchy.path_of(workloads.run(lambda: Path("/proc/self/cgroup").read_text(), place).encode())
        assert path is not None
        stack.callback(lambda: workloads._remove_cgroup(place / "inner"))
        direct, _ = stack.enter_context(workloads.child(has(KUBELETS), place))
        inner, _ = stack.enter_context(workloads.child(has(KUBELETS, below=f"{place}/inner"), place))
        dead = os.fork()
        if dead == 0:
            (place / "cgroup.procs").write_text("0")
            os._exit(0)
        stack.callback(lambda: os.waitpid(dead, 0))
        os.waitid(os.P_PID, dead, os.WEXITED | os.WNOWAIT)
        assert [each.pid for each in oomadj.processes(Host(), hierarchy, path)] == [direct, inner]
        assert list(oomadj.processes(Host(), hierarchy, f"{path}-gone")) == []


def test_the_kernel_sets_processes_that_share_their_memory_together() -> None:
    """CLONE_VM without threads: known, and told in the documents, since nobody can change it."""

    def shares() -> int:
        has(KUBELETS)()
        libc = ctypes.CDLL(None, use_errno=True)
        stack = mmap.mmap(-1, MIB)
        workloads._keep.append(stack)
        top = ctypes.addressof(ctypes.c_char.from_buffer(stack)) + MIB - 64
        clone_vm, clone_files = 0x100, 0x400  # the files, too, or it would keep this test's pipe open
        pid = libc.clone(libc.pause, ctypes.c_void_p(top), clone_vm | clone_files | signal.SIGKILL, None)
        assert pid > 0, os.strerror(ctypes.get_errno())
        return int(pid)

    with workloads.child(shares) as (pid, sibling):
        try:
            with oomadj.HeldProcess(Host(), sibling) as held:
                held.set_oom_score_adj(OURS)
            assert adj_of(pid) == OURS
        finally:
            os.kill(sibling, signal.SIGKILL)


# The agent's own code on a container


@dataclass
class Container:
    """A container of a Guaranteed pod, and an agent that mitigates it. What it publishes is on record at once."""

    place: Path
    uid: str
    container_id: str
    pods: list[str]
    mitigator: Mitigator = field(default_factory=lambda: Mitigator(Host(), Log(), mitigate=True))
    cluster: tuple[OomMitigationStatus, ...] = ()
    collector: Collector = field(default_factory=lambda: Collector(Host()))
    target: Target = Target(OURS, 64 * MIB)

    def once(self) -> None:
        spec = {
            "oomMitigations": [
                {"podUID": each, "podNamespace": "x", "podName": "y", "policy": "z"} for each in self.pods
            ]
        }
        self.mitigator.learn(OwnReport("uid", "1", 2, (), spec, {}, (), self.cluster))
        snapshot = self.collector.collect(full=False)
        # The kernel of a test machine is accurate.
        snapshot = replace(snapshot, probe=replace(snapshot.probe, generation=Generation.CLAMPED_LAST))
        names = Names({self.uid: PodName("x", "y")}, {self.container_id: "app"}, {self.container_id: KUBELETS})
        self.mitigator.run(snapshot, {self.container_id: self.target}, names, self.cluster)

    def settle(self) -> None:
        for _ in range(3):
            self.once()
            self.cluster = self.mitigator.statuses

    @property
    def status(self) -> OomMitigationStatus:
        (found,) = self.mitigator.statuses
        return found


@pytest.fixture(params=["cgroupfs", "systemd"])
def container(request: pytest.FixtureRequest) -> Iterator[Container]:
    uid, container_id = f"9d0c6b0e-6bd5-4e2c-9bdb-{secrets.token_hex(6)}", secrets.token_hex(32)
    with workloads.container_cgroup(uid, container_id, driver=request.param, qos="Guaranteed", limit=64 * MIB) as place:
        yield Container(place, uid, container_id, [uid])
        workloads._remove_cgroup(place / "inner")


def test_processes_with_the_kubelets_value_get_ours_and_get_theirs_back_and_others_are_left(
    container: Container,
) -> None:
    place = container.place
    with (
        workloads.child(has(KUBELETS), place) as (plain, _),
        workloads.child(has(OWN), place) as (own, _),
        workloads.child(has(KUBELETS, below=f"{place}/inner"), place) as (inner, _),
        workloads.child(has(KUBELETS)) as (outside, _),
    ):
        container.once()
        assert [adj_of(pid) for pid in (plain, own, inner)] == [KUBELETS, OWN, KUBELETS], "not before it is on record"
        assert container.status.reason == "Recorded"
        container.settle()
        assert [adj_of(pid) for pid in (plain, own, inner, outside)] == [OURS, OWN, OURS, KUBELETS]
        assert (container.status.state, container.status.processes, container.status.others) == ("Applied", 2, 1)
        with workloads.child(has(KUBELETS), place) as (new, _):
            container.once()
            assert adj_of(new) == OURS
        container.pods = []
        container.settle()
        assert [adj_of(pid) for pid in (plain, own, inner, outside)] == [KUBELETS, OWN, KUBELETS, KUBELETS]
        assert container.mitigator.statuses == ()


def test_the_next_agent_puts_back_what_the_one_before_it_set(container: Container) -> None:
    with workloads.child(has(KUBELETS), container.place) as (pid, _):
        container.settle()
        assert adj_of(pid) == OURS
        container.mitigator = Mitigator(Host(), Log(), mitigate=True)
        container.pods = []
        container.settle()
        assert adj_of(pid) == KUBELETS


def test_a_container_that_is_not_seen_for_a_scan_is_not_forgotten_and_one_that_is_gone_is() -> None:
    now = [1000.0]
    uid, container_id = f"9d0c6b0e-6bd5-4e2c-9bdb-{secrets.token_hex(6)}", secrets.token_hex(32)
    with workloads.container_cgroup(uid, container_id, qos="Guaranteed", limit=64 * MIB) as place:
        container = Container(place, uid, container_id, [uid])
        container.mitigator = Mitigator(Host(), Log(), mitigate=True, clock=lambda: now[0])
        with workloads.child(has(KUBELETS), place):
            container.settle()
            assert container.status.state == "Applied"
    for seconds, remembered in ((0, 1), (GONE_SECONDS - 1, 1), (1, 0)):
        now[0] += seconds
        container.settle()
        assert len(container.mitigator.statuses) == remembered


def test_without_leave_nothing_is_set(container: Container) -> None:
    container.mitigator = Mitigator(Host(), Log())
    with workloads.child(has(KUBELETS), container.place) as (pid, _):
        container.settle()
        assert adj_of(pid) == KUBELETS
        assert (container.status.state, container.status.reason) == ("Failed", "MitigationOff")


def forks_all_the_time() -> None:
    """Never more than a few children at a time, each of which forks on and ends."""
    has(KUBELETS)()
    if os.fork() == 0:
        os.closerange(3, 64)  # the pipe that tells the test of this set-up
        workloads._libc.prctl(1, ctypes.c_ulong(signal.SIGKILL))
        while True:
            if (child := os.fork()) == 0:
                grandchild = os.fork()
                if grandchild != 0:
                    os.waitpid(grandchild, 0)
                os._exit(0)
            os.waitpid(child, 0)


def test_a_container_that_forks_without_end_is_set_and_put_back(container: Container) -> None:
    with workloads.child(forks_all_the_time, container.place):

        def values() -> set[int]:
            pids = (container.place / "cgroup.procs").read_text().split()
            found = set()
            for pid in pids:
                with contextlib.suppress(OSError):
                    found.add(adj_of(int(pid)))
            return found

        container.settle()
        eventually("ours everywhere", lambda: (container.once(), values() == {OURS})[1])
        container.pods = []
        eventually("the kubelet's everywhere", lambda: (container.settle(), container.mitigator.statuses == ())[1])
        assert values() == {KUBELETS}


def test_a_refusal_is_reported_in_the_kernels_words(container: Container) -> None:
    """A user who is neither the processes' owner nor has CAP_DAC_OVERRIDE."""

    def outcome() -> Any:
        workloads.drop_privileges(65534)
        container.settle()
        status = container.status
        return [status.state, status.reason, status.message]

    with workloads.child(has(KUBELETS), container.place) as (pid, _):
        state, reason, message = workloads.run(outcome)
        assert (state, reason) == ("Failed", "KernelRefused")
        assert "Permission denied" in message
        assert "DAC_OVERRIDE" in message
        assert adj_of(pid) == KUBELETS
