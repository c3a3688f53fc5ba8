"""`nodemem report` on the real kernel: memory of every kind and known size is in its place, with its owner."""

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kernel import workloads
from kernel.workloads import MIB
from nodemem.cli.main import main
from nodemem.kernel.host import Host
from nodemem.node.report import build
from nodemem.node.snapshot import Collector
from nodemem.node.trends import History

POD = "0f3c8a52-6b1e-4d7a-9c55-7e2f9a1b3c4d"
CONTAINER = "ab" * 32
SYSTEMD_POD = "1a2b3c4d-5e6f-4a7b-8c9d-0e1f2a3b4c5d"
SYSTEMD_CONTAINER = "cd" * 32


def nodemem(*args: str, env: dict[str, str] | None = None, check: bool = True) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "nodemem", *args],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **(env or {})},
    )
    assert not check or result.returncode == 0, result.stderr
    return result.stdout if check else result.stdout + result.stderr


def report(*args: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(nodemem("report", "--no-history", "-o", "json", *args))
    assert found["apiVersion"] == "nodemem.io/v1alpha1"
    assert found["kind"] == "MemoryReport"
    status: dict[str, Any] = found["status"]
    return status


SIZES = {"tmpfs": 40, "hidden": 24, "memfd": 36, "sysv": 28, "sysv_elsewhere": 20, "anonymous": 44, "deleted": 32}


@pytest.fixture(scope="module")
def made() -> Iterator[dict[str, workloads.Workload]]:
    """One of each kind, in containers of both cgroup drivers, existing together."""
    with contextlib.ExitStack() as stack:
        pod = stack.enter_context(workloads.container_cgroup(POD, CONTAINER, driver="cgroupfs", qos="Guaranteed"))
        other = stack.enter_context(
            workloads.container_cgroup(SYSTEMD_POD, SYSTEMD_CONTAINER, driver="systemd", qos="Burstable")
        )
        enter = stack.enter_context
        yield {
            "tmpfs": enter(workloads.tmpfs(SIZES["tmpfs"] * MIB, limit=64 * MIB, cgroup=pod)),
            "hidden": enter(workloads.hidden_mount(SIZES["hidden"] * MIB, above=4 * MIB)),
            "memfd": enter(workloads.memfd(SIZES["memfd"] * MIB, mapped=True, cgroup=other)),
            "sysv": enter(workloads.sysv(SIZES["sysv"] * MIB)),
            "sysv_elsewhere": enter(workloads.sysv(SIZES["sysv_elsewhere"] * MIB, new_ipc=True, attached=False)),
            "anonymous": enter(workloads.shared_anonymous(SIZES["anonymous"] * MIB, cgroup=pod)),
            "deleted": enter(workloads.deleted_open(SIZES["deleted"] * MIB)),
        }


def test_every_part_of_memory_adds_up(made: dict[str, workloads.Workload]) -> None:
    memory = report()["memory"]
    parts = {name: size for name, size in memory.items() if name not in ("totalBytes", "availableBytes", "hiddenBytes")}
    assert sum(size or 0 for size in parts.values()) == memory["totalBytes"]
    with open("/proc/meminfo", "rb") as stream:
        assert memory["totalBytes"] == int(stream.readline().split()[1]) * 1024


def test_shmem_is_found_by_source_and_adds_up(made: dict[str, workloads.Workload]) -> None:
    shmem = report("--all")["shmem"]
    sources = ("tmpfs", "sysv", "memfd", "sharedAnonymous", "deletedOpen", "kernelInternal", "unattributed")
    assert sum(shmem[f"{name}Bytes"] for name in sources) - shmem["swappedBytes"] == shmem["totalBytes"]
    assert shmem["sysvBytes"] >= (SIZES["sysv"] + SIZES["sysv_elsewhere"]) * MIB
    assert shmem["memfdBytes"] >= SIZES["memfd"] * MIB
    assert shmem["sharedAnonymousBytes"] >= SIZES["anonymous"] * MIB
    assert shmem["deletedOpenBytes"] >= SIZES["deleted"] * MIB
    assert shmem["tmpfsBytes"] >= (SIZES["tmpfs"] + SIZES["hidden"]) * MIB


def test_all_lists_each_object_with_its_holders(made: dict[str, workloads.Workload]) -> None:
    objects = report("--all")["shmem"]["objects"]
    for kind, name in (("memfd", "memfd"), ("sharedAnonymous", "anonymous"), ("deletedOpen", "deleted")):
        of_pid = [each for each in objects if each["kind"] == kind and made[name].pid in each["holders"]]
        assert sum(each["bytes"] for each in of_pid) == SIZES[name] * MIB, kind
        assert all(each["device"] and each["inode"] for each in of_pid)
    held = {each["inode"]: each for each in objects if each["kind"] == "memfd"}
    assert held[made["memfd"].inode]["containerID"] == SYSTEMD_CONTAINER


def test_what_a_short_list_leaves_out_is_in_its_remainder(made: dict[str, workloads.Workload]) -> None:
    snapshot, history = Collector(Host()).collect(), History()
    whole = build(snapshot, history, everything=True)
    short = build(snapshot, history, tmpfs_listed=1, containers_listed=1)
    assert short.omitted.tmpfs == len(whole.tmpfs) - 1 > 0
    assert short.omitted.containers == len(whole.containers) - 1 > 0

    def left_out(name: str, figure: str) -> int:
        return sum(getattr(each, figure) or 0 for each in getattr(whole, name)) - sum(
            getattr(each, figure) or 0 for each in getattr(short, name)
        )

    assert short.omitted.tmpfs_used_bytes == left_out("tmpfs", "used_bytes") > MIB
    assert short.omitted.containers_shmem_bytes == left_out("containers", "shmem_bytes")
    assert short.omitted.containers_usage_bytes == left_out("containers", "usage_bytes")


def test_a_tmpfs_in_a_container_is_listed_with_size_use_and_owner(made: dict[str, workloads.Workload]) -> None:
    entry = next(each for each in report()["tmpfs"] if each["device"] == made["tmpfs"].device)
    assert entry["sizeBytes"] == 64 * MIB
    assert entry["usedBytes"] == SIZES["tmpfs"] * MIB
    assert entry["mountPoint"] == made["tmpfs"].path
    assert entry["inodesUsed"] >= 2
    assert entry["scope"] == "Other"
    assert entry["owner"]["containerID"] == CONTAINER
    assert entry["owner"]["podUID"] == POD
    assert entry["growthBytesPerHour"] is None
    assert entry["largest"][0]["bytes"] == SIZES["tmpfs"] * MIB


def test_a_hidden_tmpfs_is_measured_apart_from_the_one_above_it(made: dict[str, workloads.Workload]) -> None:
    entry = next(each for each in report()["tmpfs"] if each["device"] == made["hidden"].device)
    assert entry["usedBytes"] == SIZES["hidden"] * MIB


def test_a_tmpfs_that_is_mounted_nowhere_but_held_is_listed() -> None:
    with workloads.detached_mount(12 * MIB) as detached:
        entry = next(each for each in report()["tmpfs"] if each["device"] == detached.device)
    assert entry["usedBytes"] == 12 * MIB
    assert entry["mountPoint"] is None


def test_containers_of_both_drivers_are_found(made: dict[str, workloads.Workload]) -> None:
    containers = {each["id"]: each for each in report()["containers"]}
    assert containers[CONTAINER]["podUID"] == POD
    assert containers[CONTAINER]["qos"] == "Guaranteed"
    assert containers[CONTAINER]["processes"] == 2
    assert containers[CONTAINER]["shmemBytes"] >= (SIZES["tmpfs"] + SIZES["anonymous"]) * MIB
    assert containers[CONTAINER]["usageBytes"] >= containers[CONTAINER]["shmemBytes"]
    assert containers[CONTAINER]["oomScoreAdj"] == {"min": 0, "max": 0, "expected": None}
    assert containers[SYSTEMD_CONTAINER]["podUID"] == SYSTEMD_POD
    assert containers[SYSTEMD_CONTAINER]["qos"] == "Burstable"
    assert containers[SYSTEMD_CONTAINER]["limitBytes"] is None


def test_processes_are_listed_with_what_the_kernel_says_of_them(made: dict[str, workloads.Workload]) -> None:
    processes = {each["pid"]: each for each in report("--all")["processes"]}
    holder = processes[made["anonymous"].pid]
    assert holder["containerID"] == CONTAINER
    assert holder["rssShmemBytes"] >= SIZES["anonymous"] * MIB
    assert holder["oomScoreAdj"] == 0
    assert abs(holder["oomScore"] - int(Path(f"/proc/{holder['pid']}/oom_score").read_text())) <= 1


def test_mapped_shared_memory_is_not_hidden(made: dict[str, workloads.Workload]) -> None:
    before = report("--all")["memory"]
    with workloads.shared_anonymous(256 * MIB):
        mapped = report("--all")["memory"]
    with workloads.tmpfs(256 * MIB):
        unmapped = report("--all")["memory"]
    assert mapped["shmemBytes"] - before["shmemBytes"] >= 250 * MIB
    assert abs(mapped["hiddenBytes"] - before["hiddenBytes"]) < 128 * MIB
    assert unmapped["hiddenBytes"] - before["hiddenBytes"] > 128 * MIB


def test_the_verdict_names_the_tmpfs_and_its_writer_first() -> None:
    with open("/proc/meminfo", "rb") as stream:
        total = int(stream.readline().split()[1]) * 1024
    size = total // 25 // 4096 * 4096

    def keep_open(path: str) -> None:
        workloads.fill(f"{path}/leak.log", size)
        workloads._keep.append(open(f"{path}/leak.log", "ab"))  # noqa: SIM115

    with workloads.tmpfs(0, limit=2 * size, files=keep_open) as leak:
        text = nodemem("report", "--no-history")
        writer = Path(f"/proc/{leak.pid}/comm").read_text().strip()
    verdict = text.splitlines()[2]
    assert "of Shmem (" in verdict
    assert f"of it in tmpfs {leak.path}" in verdict
    assert f"written by {writer}" in verdict
    assert "leak.log" in text


def test_watch_shows_what_grew() -> None:
    with workloads.tmpfs_here(MIB, limit=256 * MIB) as here:
        command = [sys.executable, "-m", "nodemem", "report", "--no-history"]
        command += ["--watch", "0.3", "--count", "2", "-o", "json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
            assert watching.stdout is not None
            decoder, text, found = json.JSONDecoder(), "", []
            for line in watching.stdout:
                text += line
                if line == "}\n":
                    found.append(decoder.decode(text)["status"])
                    text = ""
                    workloads.fill(f"{here.path}/more", 64 * MIB)
        assert watching.returncode == 0
    used = [next(t["usedBytes"] for t in status["tmpfs"] if t["device"] == here.device) for status in found]
    assert used == [MIB, 65 * MIB]


def test_growth_is_known_from_the_run_before(tmp_path: Path) -> None:
    history = tmp_path / "history.json"
    with workloads.tmpfs_here(8 * MIB, limit=256 * MIB) as here:

        def growth() -> tuple[dict[str, Any], dict[str, Any]]:
            status = json.loads(nodemem("report", "-o", "json", "--history", str(history)))["status"]
            return status, next(each for each in status["tmpfs"] if each["device"] == here.device)

        assert growth()[1]["growthBytesPerHour"] is None
        # The run before was an hour ago: what is stored is moved back, so that the test need not wait.
        stored = json.loads(history.read_text())
        for times, _ in stored["series"].values():
            times[:] = [each - 3600 for each in times]
        history.write_text(json.dumps(stored))
        workloads.fill(f"{here.path}/more", 32 * MIB)
        status, entry = growth()
    assert entry["growthBytesPerHour"] == pytest.approx(32 * MIB, rel=0.02)
    seconds = time.mktime(time.strptime(entry["fullAt"], "%Y-%m-%dT%H:%M:%SZ")) - time.mktime(
        time.strptime(status["observedAt"], "%Y-%m-%dT%H:%M:%SZ")
    )
    assert seconds == pytest.approx((256 - 40) / 32 * 3600, rel=0.03)


def test_a_capture_reproduces_the_report(made: dict[str, workloads.Workload], tmp_path: Path) -> None:
    capture = tmp_path / "node.tar.gz"
    env = {"XDG_STATE_HOME": str(tmp_path)}
    assert str(capture) in nodemem("capture", str(capture), env=env)
    replayed = json.loads(nodemem("report", "--root", str(capture), "--all", "-o", "json"))["status"]
    assert nodemem("report", "--root", str(capture)) == nodemem("report", "--root", str(capture))
    entry = next(each for each in replayed["tmpfs"] if each["device"] == made["tmpfs"].device)
    assert entry["usedBytes"] == SIZES["tmpfs"] * MIB
    assert entry["owner"]["containerID"] == CONTAINER
    assert entry["largest"][0]["bytes"] == SIZES["tmpfs"] * MIB
    kinds = {each["kind"] for each in replayed["shmem"]["objects"]}
    assert {"memfd", "sysv", "sharedAnonymous", "deletedOpen"} <= kinds
    assert replayed["kernel"]["oomGeneration"] == report()["kernel"]["oomGeneration"]
    conditions = {each["type"]: each for each in replayed["conditions"]}
    assert "not in the capture" not in json.dumps(conditions)


def test_a_capture_holds_no_contents_arguments_or_environment(tmp_path: Path) -> None:
    secret = "capture-must-not-have-this-4711"
    script = "import os, sys, time; open(sys.argv[2], 'w').write(sys.argv[1] * 5000); print(flush=True); time.sleep(60)"
    with workloads.tmpfs_here(MIB, limit=64 * MIB) as here:
        child = subprocess.Popen(
            [sys.executable, "-c", script, secret, f"{here.path}/file"],
            env={**os.environ, "SECRET": secret},
            stdout=subprocess.PIPE,
        )
        try:
            assert child.stdout is not None
            child.stdout.readline()
            nodemem("capture", str(tmp_path / "c.tar"), env={"XDG_STATE_HOME": str(tmp_path)})
        finally:
            child.kill()
            child.wait()
            child.stdout.close()
    data = (tmp_path / "c.tar").read_bytes()
    assert b"meminfo" in data
    assert secret.encode() not in data


def test_without_root_it_reports_what_it_can_and_names_the_rest(made: dict[str, workloads.Workload]) -> None:
    def demoted() -> str:
        workloads.drop_privileges()
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            assert main(["report", "--no-history", "-o", "json"]) == 0
        return out.getvalue()

    status = json.loads(workloads.run(demoted))["status"]
    assert status["memory"]["totalBytes"] > 0
    complete = next(each for each in status["conditions"] if each["type"] == "Complete")
    assert complete["status"] == "False"
    assert "Permission denied" in complete["message"] or "not permitted" in complete["message"]


def test_tmpfs_lists_and_shows_contents(made: dict[str, workloads.Workload]) -> None:
    listed = json.loads(nodemem("tmpfs", "-o", "json"))["tmpfs"]
    assert made["tmpfs"].device in {each["device"] for each in listed}
    inside = json.loads(nodemem("tmpfs", "ls", made["tmpfs"].device, "-o", "json"))
    assert inside["foundBytes"] == inside["usedBytes"] == SIZES["tmpfs"] * MIB
    assert inside["stopped"] is None
    assert sum(each["bytes"] for each in inside["files"]) == SIZES["tmpfs"] * MIB
    with workloads.tmpfs_here(3 * MIB, limit=8 * MIB) as here:
        assert "3.0 MiB of 3.0 MiB used" in nodemem("tmpfs", "ls", here.path)
    assert "no tmpfs is mounted there" in nodemem("tmpfs", "ls", "/proc", check=False)


def test_oom_rank_is_the_kernel_s_order() -> None:
    """Our own children at four values of oom_score_adj, which the kernel ranks by /proc/<pid>/oom_score."""
    with contextlib.ExitStack() as stack:
        children = {}
        for adj in (1000, 700, 400, 100):

            def setup(adj: int = adj) -> None:
                Path("/proc/self/oom_score_adj").write_text(str(adj))

            pid, _ = stack.enter_context(workloads.child(setup))
            children[pid] = int(Path(f"/proc/{pid}/oom_score").read_text())
        ranking = json.loads(nodemem("oom", "rank", "-o", "json"))
    assert ranking["oomGeneration"] == "Accurate"
    found = [each for each in ranking["processes"] if each["pid"] in children]
    assert [each["pid"] for each in found] == sorted(children, key=lambda pid: -children[pid])
    assert [each["oomScore"] for each in found] == sorted(children.values(), reverse=True)
    assert ranking["processes"][-1]["unkillable"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["report", "--root", "/nonexistent.tar"], "expected a capture written by 'nodemem capture'"),
        (["report", "--root", "/"], "this is a running system, not a capture"),
        (["report", "--watch", "0"], "expected a number of seconds above 0"),
        (["capture", "/tmp"], "is a directory; name a file in it"),
        (["capture", "/nonexistent/x.tar"], "No such file or directory"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_bad_arguments_get_a_sentence_not_a_traceback(args: list[str], words: str) -> None:
    text = nodemem(*args, check=False)
    assert words in text
    assert "Traceback" not in text
