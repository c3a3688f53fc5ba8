"""Findings on this machine: containers laid out as the kubelet does, real processes, and the kill that proves them.

Needs root and a v1 memory hierarchy. Only oom_score_adj of 0 and above, which asks for no CAP_SYS_RESOURCE.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel import workloads
from kernel.hungry import KillLog, Worker, eventually
from nodemem.kernel import oom, oomexposure
from nodemem.kernel.host import Host
from nodemem.node import findings
from nodemem.node.exposure import ContainerOutlook, Exposure, Severity
from nodemem.node.findings import Findings
from nodemem.node.snapshot import Collector

# Of this run alone: another one may go on beside it.
UID = f"6f2a1c1e-0000-4000-8000-{os.getpid():012d}"
PAUSE_ID, APP_ID = f"{os.getpid():063d}a", f"{os.getpid():063d}b"
HOST = Host()
MIB = 1 << 20


class Pod:
    """A pod's cgroup below one of this test's own, with a sandbox that runs ``pause`` and one container."""

    def __init__(
        self, stack: contextlib.ExitStack, qos: str, limit: int, pod_limit: int | None, pause_adj: int = 0
    ) -> None:
        self.stack = stack
        self.limit = limit
        self.pids: list[int] = []
        self.log = KillLog()
        stack.callback(self.log.close)
        sandbox = stack.enter_context(workloads.container_cgroup(UID, PAUSE_ID, qos=qos))
        self.app = stack.enter_context(workloads.container_cgroup(UID, APP_ID, qos=qos, limit=limit))
        self.path = self.app.parent
        # Nothing here counts on swap: with it, the limit would not be hit where it is said to be.
        for each in (self.path, self.app):
            (each / "memory.swappiness").write_text("0")
        if pod_limit is not None:
            (self.path / "memory.limit_in_bytes").write_text(str(pod_limit))
        self.pause = self.run("pause", sandbox, pause_adj)

    def run(self, name: str, cgroup: Path | None = None, adj: int = 0) -> Worker:
        worker = Worker(cgroup or self.app, adj, name=name)
        self.stack.callback(worker.end)
        self.pids.append(worker.pid)
        return worker

    def first_kill(self) -> int:
        """Of this pod's processes. A second may follow, before the pages of the first are back."""
        eventually("a kill", lambda: any(pid in self.pids for pid in self.log.read()))
        return next(pid for pid in self.log.pids if pid in self.pids)

    def usage(self, place: Path) -> int:
        return int((place / "memory.usage_in_bytes").read_text())

    def fill(self, worker: Worker, place: Path, limit: int) -> None:
        """To 2 to 3 MiB under the limit, so that what is predicted now is what the kernel will find. The next 4 MiB
        then end in one kill, if that frees as much."""
        while (room := limit - self.usage(place)) > 3 * MIB:
            assert worker.takes(min(MIB, room - 2 * MIB))


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as found:
        yield found


def find() -> Findings:
    return findings.find(Collector(HOST).collect(deep="never", inspect=0, writers_of=0))


def ours(found: Findings) -> dict[str, ContainerOutlook]:
    return {each.container_id or "pod": each for each in found.outlooks if each.pod_uid == UID}


def skew(exposed: Exposure) -> oomexposure.SkewedAdj:
    [evidence] = exposed.evidence
    assert isinstance(evidence, oomexposure.SkewedAdj)
    error = oom.rss_error_pages(os.cpu_count() or 1, release=os.uname().release)
    assert evidence.predicted_points - evidence.largest_points > error, "the scenario is too close to call"
    return evidence


def test_skewed_adj_is_found_with_its_numbers_and_the_kernel_kills_whom_it_names(stack: contextlib.ExitStack) -> None:
    pod = Pod(stack, "Burstable", 64 * MIB, 128 * MIB)
    database = pod.run("db")
    exporter = pod.run("exporter", adj=999)
    assert exporter.takes(4 * MIB)
    pod.fill(database, pod.app, pod.limit)

    found = find()
    outlooks = ours(found)
    assert set(outlooks) == {PAUSE_ID, APP_ID, "pod"}
    assert outlooks[PAUSE_ID].sandbox
    assert (outlooks[APP_ID].hit_first, outlooks["pod"].hit_first) == (True, False)
    assert outlooks["pod"].processes == 3
    [exposed] = [each for each in found.exposures if each.outlook.pod_uid == UID]
    outlook = exposed.outlook
    assert outlook.container_id == APP_ID
    assert outlook.reasons == ("SkewedAdj",)
    assert exposed.severity is Severity.IMMINENT
    assert outlook.limit_bytes == pod.limit
    assert outlook.predicted_victim is not None
    assert outlook.largest is not None
    assert (outlook.predicted_victim.pid, outlook.predicted_victim.comm) == (exporter.pid, "exporter")
    assert (outlook.largest.pid, outlook.largest.comm) == (database.pid, "db")
    assert outlook.largest.frees_bytes > 40 * MIB
    assert skew(exposed).totalpages == pod.limit // HOST.page_size

    database.ask(4 * MIB)
    assert pod.first_kill() == exporter.pid
    after = ours(find())
    assert after[APP_ID].exposed is False
    assert (after[APP_ID].oom_kill_events or 0) >= 1


def test_with_equal_adj_the_container_is_not_exposed_and_the_largest_dies(stack: contextlib.ExitStack) -> None:
    pod = Pod(stack, "Burstable", 64 * MIB, 128 * MIB)
    database = pod.run("db", adj=990)
    pod.run("exporter", adj=990)
    pod.fill(database, pod.app, pod.limit)
    found = find()
    assert [each for each in found.exposures if each.outlook.pod_uid == UID] == []
    outlook = ours(found)[APP_ID]
    assert outlook.right is True
    assert outlook.predicted_victim is not None
    assert outlook.predicted_victim.pid == database.pid
    database.ask(4 * MIB)
    assert pod.first_kill() == database.pid


def test_a_pod_of_one_container_hits_its_own_limit_first_and_not_the_containers(stack: contextlib.ExitStack) -> None:
    """Equal limits, as the kubelet sets them, and the pod's usage has the sandbox in it. The sandbox has the higher
    score here: it can only die if the whole pod takes part."""
    pod = Pod(stack, "Guaranteed", 64 * MIB, 64 * MIB, pause_adj=999)
    assert pod.pause.takes(4 * MIB)
    app = pod.run("app")
    pod.fill(app, pod.path, pod.limit)
    found = find()
    outlooks = ours(found)
    assert (outlooks[APP_ID].hit_first, outlooks["pod"].hit_first) == (False, True)
    [exposed] = [each for each in found.exposures if each.outlook.pod_uid == UID]
    assert exposed.outlook == outlooks["pod"]
    assert skew(exposed).predicted.pid == pod.pause.pid
    assert skew(exposed).largest.pid == app.pid
    app.ask(4 * MIB)
    assert pod.first_kill() == pod.pause.pid


def test_a_guaranteed_container_at_0_is_drift_and_its_sandbox_is_not(stack: contextlib.ExitStack) -> None:
    pod = Pod(stack, "Guaranteed", 64 * MIB, None)
    app = pod.run("app")
    [drift] = [each for each in find().drifts if each.pod_uid == UID]
    assert drift.container_id == APP_ID
    assert drift.observed == {0: (app.pid,)}
    assert "-997" in drift.message


def test_a_limit_full_of_tmpfs_is_exposed_and_names_it(stack: contextlib.ExitStack) -> None:
    pod = Pod(stack, "Burstable", 64 * MIB, 128 * MIB)
    held = stack.enter_context(workloads.tmpfs(40 * MIB, cgroup=pod.app))
    [exposed] = [each for each in find().exposures if each.outlook.pod_uid == UID]
    assert exposed.outlook.reasons == ("TmpfsHeld",)
    [evidence] = exposed.evidence
    assert isinstance(evidence, oomexposure.TmpfsHeld)
    assert evidence.held_bytes >= held.bytes
    assert held.path in exposed.message


def test_a_memfd_of_the_same_size_is_not_taken_for_tmpfs(stack: contextlib.ExitStack) -> None:
    pod = Pod(stack, "Burstable", 64 * MIB, 128 * MIB)
    with contextlib.ExitStack() as inner:
        inner.enter_context(workloads.memfd(40 * MIB, cgroup=pod.app))
        outlook = ours(find())[APP_ID]
        assert outlook.usage_bytes is not None
        assert outlook.usage_bytes >= 40 * MIB
        assert outlook.reasons == ()


def test_the_command_finds_it_on_this_machine(stack: contextlib.ExitStack) -> None:
    pod = Pod(stack, "Burstable", 64 * MIB, 128 * MIB)
    database = pod.run("db")
    assert pod.run("exp\x1b[2Jorter", adj=999).takes(4 * MIB)
    pod.fill(database, pod.app, pod.limit)
    script = (
        "import argparse, sys; from nodemem.cli import oom_exposed; from nodemem.kernel.host import Host;"
        "parser = argparse.ArgumentParser(); oom_exposed.add_parser(parser.add_subparsers());"
        "args = parser.parse_args(sys.argv[1:]); args.host = Host(); sys.exit(args.func(args))"
    )
    done = subprocess.run([sys.executable, "-c", script, "exposed"], capture_output=True, text=True, check=True)
    [row] = [line for line in done.stdout.splitlines() if f"db {database.pid} " in line]
    assert APP_ID.startswith(row.split("container ")[1].split()[0])
    assert "SkewedAdj" in row
    assert "\\x1b[2Jorter" in row
    assert row.startswith("Imminent")
    assert "\x1b" not in done.stdout
