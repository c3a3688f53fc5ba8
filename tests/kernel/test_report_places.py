"""The report where not everything can be seen: a container, hidden processes, no cgroups. It names what is missing."""

import contextlib
import io
import json
import os
import subprocess
import sys
from typing import Any

from kernel import workloads
from kernel.workloads import CLONE_NEWNS, MIB
from nodemem.cli.main import main

REPORT = f"{sys.executable} -m nodemem report --no-history -o json --all"


def report_in(script: str) -> dict[str, Any]:
    """The report of a shell script that ends in one, in namespaces of its own."""
    command = ["unshare", "--mount", "--pid", "--fork", "--propagation", "private", "sh", "-ec", script]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ})
    assert result.returncode == 0, result.stderr
    status: dict[str, Any] = json.loads(result.stdout)["status"]
    return status


def complete(status: dict[str, Any]) -> dict[str, Any]:
    return next(each for each in status["conditions"] if each["type"] == "Complete")


def test_in_a_container_s_pid_namespace_memory_of_others_is_unattributed_not_lost() -> None:
    with workloads.shared_anonymous(64 * MIB):
        status = report_in(f"mount -t proc proc /proc; exec {REPORT}")
    shmem = status["shmem"]
    assert {each["pid"] for each in status["processes"]} == {1}
    assert status["memory"]["shmemBytes"] >= 64 * MIB
    assert shmem["sharedAnonymousBytes"] < 64 * MIB
    assert shmem["unattributedBytes"] >= 64 * MIB


def test_without_a_cgroup_mount_containers_are_unknown_and_it_says_so() -> None:
    status = report_in(f"umount -lR /sys/fs/cgroup; mount -t proc proc /proc; exec {REPORT}")
    assert status["kernel"]["cgroup"] is None
    assert status["containers"] == []
    assert "memory cgroups" in complete(status)["message"]
    assert status["memory"]["totalBytes"] > 0


def test_hidepid_is_named_as_the_reason_for_missing_processes() -> None:
    def hidden() -> dict[str, Any]:
        workloads.unshare(CLONE_NEWNS)
        workloads.mount("proc", "/proc", "proc", 0, "hidepid=2")
        workloads.drop_privileges()
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            assert main(["report", "--no-history", "-o", "json", "--all"]) == 0
        found: dict[str, Any] = json.loads(out.getvalue())["status"]
        return found

    status = workloads.run(hidden)
    assert "hidepid" in complete(status)["message"]
    assert all(each["pid"] != 1 for each in status["processes"])
    assert status["memory"]["totalBytes"] > 0
