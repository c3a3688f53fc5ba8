"""Resizing on kernels from 5.10 on: by fspick, and forced to mount(2) as kernels before 5.2 need it."""

import re
from typing import Any

import pytest

from vm.machine import Machine, Scenario, run

OPTIONS = ["mode=750", "uid=123", "huge=advise", "noswap", "mpol=bind:0", "inode32"]
NEW_OPTIONS = {"noswap": (6, 4)}
SCENARIOS = [
    Scenario(str(method), "every_option", {"method": method, "options": OPTIONS}, "resize_scenarios")
    for method in ("fspick", "mount", None)
]


def _without_limits(mountinfo: str) -> str:
    return re.sub(r",(size=[0-9]+k|nr_inodes=[0-9]+k?)", "", mountinfo)


def _check(found: dict[str, Any], release: str, method: str) -> None:
    version = tuple(int(part) for part in release.split(".")[:2])
    assert found["unknown"] == [option for option, since in NEW_OPTIONS.items() if version < since]
    known = len(OPTIONS) - len(found["unknown"])
    assert found["targets"] == 8 * 3 * 4 + 2**known + 1
    assert found["methods"] == [method]
    assert (found["sizes"], found["inodes"]) == ([3 << 20], [600])
    assert found["after"].count("size=3072k,nr_inodes=600") == found["targets"]
    assert _without_limits(found["after"]) == _without_limits(found["before"])
    assert re.search(r"/full .* holds 2\.5 MiB, with 10 % headroom 2\.8 MiB", found["in_use"])


@pytest.mark.parametrize(
    "kernel",
    ["bullseye", *(pytest.param(each, marks=pytest.mark.vm) for each in ("bookworm", "trixie", "sid"))],
)
def test_every_flag_and_option_is_kept_by_both_methods(kernel: str) -> None:
    boot = run(Machine(kernel), SCENARIOS)
    for scenario in SCENARIOS:
        _check(boot.value(scenario.id), boot.release, "mount" if scenario.id == "mount" else "fspick")
