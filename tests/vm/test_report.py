"""The report on what this machine can't be: a cgroup v2 node with swap, where a tmpfs holds more than is resident."""

from typing import Any

import pytest

from vm.boots import MACHINES, NEW, SWAPPED_OUT_TMPFS, boot
from vm.machine import Machine

FILE = 96 << 20
LIMIT = 48 << 20


def _found(machine: Machine, *, short: bool) -> dict[str, Any]:
    found: dict[str, Any] = boot(machine, short=short).value(SWAPPED_OUT_TMPFS.id)
    return found


def _check(found: dict[str, Any]) -> None:
    status = found["report"]
    big = next(each for each in status["tmpfs"] if each["mountPoint"] == "/run/big")
    assert big["usedBytes"] == FILE
    assert [each["path"] for each in big["largest"]] == ["/data"]
    assert found["swap_usage_bytes"] >= FILE - LIMIT, "the limit did not push the file out to swap"
    assert found["shmem_bytes"] <= LIMIT, "more is resident than the limit allows"

    shmem = status["shmem"]
    assert shmem["totalBytes"] == found["memory"]["Shmem"]
    assert shmem["tmpfsBytes"] >= FILE
    assert FILE - LIMIT <= shmem["swappedBytes"] <= found["memory"]["SwapTotal"] - found["memory"]["SwapFree"]
    assert abs(shmem["unattributedBytes"]) < 0.01 * shmem["totalBytes"]

    memory = status["memory"]
    parts = (
        "free", "anonymous", "pageCache", "buffers", "shmem", "slabReclaimable", "slabUnreclaimable", "kernelStack",
        "pageTables", "vmalloc", "perCpu", "hugePages", "other", "unaccounted",
    )  # fmt: skip
    assert sum(memory[f"{part}Bytes"] for part in parts) == memory["totalBytes"]

    (container,) = status["containers"]
    assert container["limitBytes"] == LIMIT
    assert container["shmemBytes"] <= LIMIT
    assert container["podUID"] == "0125ec2f-b64a-4868-8f5b-94b56cbab864"
    assert container["qos"] == "Guaranteed"
    assert status["kernel"]["cgroup"] == "v2"


def test_a_tmpfs_swapped_out_by_its_writers_limit_adds_up() -> None:
    _check(_found(NEW, short=True))


@pytest.mark.vm
@pytest.mark.parametrize("machine", [each for each in MACHINES if each.cgroup == "v2"], ids=str)
def test_a_tmpfs_swapped_out_by_its_writers_limit_adds_up_on(machine: Machine) -> None:
    _check(_found(machine, short=False))
