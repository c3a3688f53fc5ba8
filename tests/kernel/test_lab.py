"""Claims about ``nodemem oom lab`` on the real kernel: real programs, real OOM kills in a memory cgroup of their own.

Needs root and a memory controller that root may make cgroups in. Values of oom_score_adj are 0 and up here, which needs
no capability; lower ones are in tests/vm.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodemem.kernel import lab, labchecks, labprogram, oomexposure
from nodemem.kernel.cgroups import discover
from nodemem.kernel.host import Host
from nodemem.kernel.labplan import Plan, Program

KIB, MIB = 1 << 10, 1 << 20
COMMAND = [sys.executable, "-m", "nodemem", "oom", "lab"]
CAP_SYS_RESOURCE = 24


def lab_cgroups() -> set[str]:
    return {path for path in discover(Host()).walk() if "nodemem-lab-" in path}


def lab_programs() -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdecimal() and Path(f"/proc/{name}/comm").read_text().startswith("lab"):
                found.append(int(name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def until(what: str, holds: object) -> None:
    assert callable(holds)
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    before = lab_cgroups()
    yield
    assert lab_cgroups() <= before
    until("programs of the lab outlive it", lambda: not lab_programs())


def run(plan: Plan) -> tuple[lab.Standing, lab.Result, dict[int, int]]:
    assert labchecks.obstacles(plan, Host()) == []
    with lab.Lab(plan) as experiment:
        experiment.start()
        before = experiment.standing()
        died = list(experiment.drive())
        result = experiment.result()
    assert sorted(died) == sorted(result.killed)
    return before, result, {member.pid: member.number for member in before.members}


def test_the_kernel_kills_whom_the_lab_predicts() -> None:
    programs = (Program(40 * MIB, 0), Program(10 * MIB, 300), Program(2 * MIB, 600), Program(MIB, 1000))
    before, result, numbers = run(Plan(programs, 60 * MIB))
    assert [numbers[pid] for pid in result.killed] == [4, 1]
    assert [numbers[pid] for pid in result.survivors] == [2, 3]
    assert lab.agrees(before.kills, result.killed)
    assert result.oom_kills == 2


def test_the_programs_hold_what_they_were_given_to_the_page() -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    sizes = (20 * MIB, MIB, page)
    before, _, _ = run(Plan(tuple(Program(size, 0) for size in sizes), 40 * MIB))
    # Beyond the memory they were told to take: the stack, the code.
    extra = [member.task.rss_pages - size // page for member, size in zip(before.members, sizes, strict=True)]
    assert all(0 <= pages <= 8 for pages in extra), extra


def test_programs_run_by_the_interpreter_are_predicted_just_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labprogram, "_ARCHITECTURES", {})
    programs = (Program(40 * MIB, 0), Program(10 * MIB, 200), Program(MIB, 900))
    before, result, numbers = run(Plan(programs, 80 * MIB))
    assert before.members[2].task.rss_pages * os.sysconf("SC_PAGE_SIZE") > 4 * MIB
    assert [numbers[pid] for pid in result.killed] == [3, 1]
    assert lab.agrees(before.kills, result.killed)


def test_containers_of_a_pod_are_cgroups_below_the_one_that_runs_out() -> None:
    programs = (Program(4 * KIB, 0, "pause"), Program(40 * MIB, 0, "app"), Program(10 * MIB, 900, "sidecar"))
    before, result, numbers = run(Plan(programs, 60 * MIB, grows=1))
    assert {member.task.cgroup.rpartition("/")[2] for member in before.members if member.task.cgroup} == {
        "pause",
        "app",
        "sidecar",
    }
    assert [numbers[pid] for pid in result.killed] == [3, 2]
    assert lab.agrees(before.kills, result.killed)


def test_memory_in_a_tmpfs_file_stays_when_processes_die() -> None:
    before, result, numbers = run(Plan((Program(10 * MIB, 0), Program(MIB, 0)), 64 * MIB, tmpfs_bytes=40 * MIB))
    assert [numbers[pid] for pid in result.killed] == [1]
    assert before.domain.shmem_bytes is not None
    assert before.domain.shmem_bytes >= 40 * MIB
    assert result.usage_bytes is not None
    assert result.usage_bytes >= 40 * MIB
    assert any(
        isinstance(reason, oomexposure.TmpfsHeld)
        for reason in oomexposure.exposure_reasons(before.domain, before.rules)
    )


def test_without_the_kernel_log_the_exits_tell_who_died(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab._KernelLog, "open", classmethod(lambda cls: None))
    before, result, numbers = run(Plan((Program(20 * MIB, 0), Program(5 * MIB, 900)), 40 * MIB))
    assert result.order_from == "order of exits"
    assert [numbers[pid] for pid in result.killed] == [2, 1]
    assert lab.agrees(before.kills, result.killed, ordered=False)


def test_the_command_shows_scores_prediction_and_kills() -> None:
    words = ["--process", "30Mi:0", "--process", "4Mi:900", "-o", "json"]
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["verdict"] == "asPredicted"
    assert [each["process"] for each in found["killed"]] == [2, 1]
    assert [each["victim"]["process"] for each in found["predicted"]] == [2, 1]
    assert all(each["oomScore"] > 0 for each in found["processes"])
    table = subprocess.run([*COMMAND, *words[:-2]], capture_output=True, text=True, check=True).stdout
    assert "Predicted: #2 lab2-4Mi" in table
    assert "The kernel killed as predicted" in table


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_lab_leaves_nothing(number: signal.Signals) -> None:
    # A gigabyte takes a while to grow into; the signal comes in the middle.
    process = subprocess.Popen(
        [*COMMAND, "--process", "8Mi", "--limit", "1Gi"],
        stdout=subprocess.PIPE,
        # Tests that run in the background inherit an ignored SIGINT.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL) and None,
    )
    try:
        until("no program was started", lab_programs)
        process.send_signal(number)
        assert process.wait(timeout=30) == 128 + number
    finally:
        process.kill()
        process.communicate()
    assert not lab_cgroups()


def test_a_signal_at_the_moment_of_a_fork_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        pid = real_fork()
        if pid:
            born.append(pid)
            signal.raise_signal(signal.SIGINT)
        return pid

    born: list[int] = []
    real_fork = os.fork
    monkeypatch.setattr(os, "fork", fork)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), lab.Lab(Plan((Program(MIB, 0),), 8 * MIB)) as experiment:
            experiment.start()
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(born) == 1
    assert not Path(f"/proc/{born[0]}").exists()


def test_the_programs_of_a_killed_lab_die_and_the_next_lab_removes_its_cgroup() -> None:
    process = subprocess.Popen([*COMMAND, "--process", "8Mi", "--limit", "1Gi"], stdout=subprocess.PIPE)
    try:
        until("no program was started", lab_programs)
    finally:
        process.kill()
        process.communicate()
    until("programs outlive the lab", lambda: not lab_programs())
    (left,) = lab_cgroups()
    run(Plan((Program(MIB, 0),), 8 * MIB))
    assert left not in lab_cgroups()


def without_capability() -> None:
    import ctypes

    ctypes.CDLL(None).prctl(24, CAP_SYS_RESOURCE, 0, 0, 0)  # PR_CAPBSET_DROP: gone after the exec


def test_without_cap_sys_resource_a_negative_value_is_refused_beforehand() -> None:
    done = subprocess.run(
        [*COMMAND, "--scenario", "guaranteed", "-o", "json"],
        capture_output=True,
        text=True,
        preexec_fn=without_capability,
    )
    assert done.returncode == 3
    assert "lacks CAP_SYS_RESOURCE" in done.stderr
    assert "nothing was started" in done.stderr
    assert json.loads(done.stdout)["verdict"] == "notAllowed"


def test_a_user_who_may_not_make_cgroups_is_told_so() -> None:
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        said = [each.what for each in labchecks.obstacles(Plan((Program(MIB, 0),), 8 * MIB), Host())]
        os._exit(0 if any("no cgroup can be made in it" in what for what in said) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_limit_that_the_machine_has_no_room_for_is_refused() -> None:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found = labchecks.obstacles(Plan((Program(MIB, 0),), memory), Host())
    assert any("the machine could run out first" in each.what for each in found)


def test_a_limit_that_a_cgroup_above_has_no_room_for_is_refused() -> None:
    hierarchy = discover(Host())
    plan = Plan((Program(MIB, 0),), 64 * MIB)
    parent = labchecks.parent_path(hierarchy, Host())
    place = Path(labchecks.directory_of(hierarchy, parent), "nodemem-test-outer")
    place.mkdir()
    try:
        name = "memory.max" if hierarchy.memory_version == "v2" else "memory.limit_in_bytes"
        (place / name).write_text(str(32 * MIB))
        if hierarchy.memory_version == "v2":
            (place / "cgroup.subtree_control").write_text("+memory")
            inside = place / "leaf"
            inside.mkdir()
        else:
            inside = place
        child = os.fork()
        if child == 0:
            (inside / "cgroup.procs").write_text("0")
            said = [each.what for each in labchecks.obstacles(plan, Host())]
            os._exit(0 if any("bytes left of its own limit" in what for what in said) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        for each in (place / "leaf", place):
            if each.exists():
                each.rmdir()


def test_a_global_experiment_needs_consent_where_others_could_be_hit() -> None:
    """No machine that runs these tests is a guest made for them: there are always other processes to protect."""
    done = subprocess.run([*COMMAND, "--global", "--process", "1Mi"], capture_output=True, text=True)
    needs_consent = labchecks.virtual_machine(Host()) is None or labchecks.shared_with(Host()) is not None
    blocked = labchecks.obstacles(Plan((Program(MIB, 0),), None), Host())
    assert needs_consent or blocked, "this machine would let a global experiment run"
    assert done.returncode == 3
    assert "nothing was started" in done.stderr
