"""An agent on a node whose clock is set, by real clock_settime(2) in a guest."""

from datetime import datetime

import pytest

from vm.machine import Machine, Scenario, run

JUMPS = [366 * 86400, -3600, -366 * 86400]


@pytest.mark.vm
def test_a_clock_that_is_set_stops_no_agent_and_bends_no_growth() -> None:
    scenario = Scenario("clock_jumps", "clock_jumps", {"jumps": JUMPS}, "agent_scenarios", timeout=600.0)
    found = run(Machine("bookworm", systemd=True), [scenario], timeout=900.0).value("clock_jumps")
    assert len(found) == 1 + len(JUMPS)
    for before, after, jump in zip(found, found[1:], JUMPS, strict=False):
        assert abs(after["now"] - before["now"] - jump) < 300, "the clock was set"
    for said in found:
        report = said["report"]
        observed = datetime.fromisoformat(report["observedAt"]).timestamp()
        assert said["health"] == 200
        assert 0 <= said["now"] - observed < 60
        (run_tmpfs,) = (each for each in report["tmpfs"] if each["mountPoint"] == "/run")
        assert 0.6 < run_tmpfs["growthBytesPerHour"] / said["leak"] < 1.6
        full = datetime.fromisoformat(run_tmpfs["fullAt"]).timestamp()
        left = (run_tmpfs["sizeBytes"] - run_tmpfs["usedBytes"]) / run_tmpfs["growthBytesPerHour"] * 3600
        assert abs(full - observed - left) < 120, "counted from the clock as it is"
