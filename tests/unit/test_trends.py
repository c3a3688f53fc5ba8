"""Growth is what a person would call growth: not a step, not noise, the same over a gap."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodemem.cli.history import load, save
from nodemem.node.trends import MAX_SAMPLES, WINDOW_SECONDS, History, Series, seconds_until

MiB = 1 << 20


def series(samples: list[tuple[float, int]]) -> Series:
    result = Series()
    for time, value in samples:
        result.add(time, value)
    return result


def test_steady_growth_is_its_rate() -> None:
    grown = series([(t, 10 * MiB * t) for t in range(0, 600, 15)])
    assert grown.bytes_per_hour() == pytest.approx(10 * MiB * 3600)


def test_a_single_step_is_not_growth() -> None:
    stepped = series([(t, 5000 * MiB if t > 300 else 10 * MiB) for t in range(0, 600, 15)])
    assert stepped.bytes_per_hour() == pytest.approx(0)


def test_a_step_does_not_hide_the_growth_around_it() -> None:
    both = series([(t, MiB * t + (5000 * MiB if t > 300 else 0)) for t in range(0, 600, 15)])
    assert both.bytes_per_hour() == pytest.approx(MiB * 3600)


def test_one_rotation_does_not_hide_growth() -> None:
    rotated = series([(t, MiB * (t if t < 300 else t - 250)) for t in range(0, 600, 15)])
    assert rotated.bytes_per_hour() == pytest.approx(MiB * 3600)


def test_growth_over_a_gap_is_the_same_rate() -> None:
    gap = series([(t, MiB * t) for t in [*range(0, 120, 15), *range(7200, 7320, 15)]])
    assert gap.bytes_per_hour() == pytest.approx(MiB * 3600)


def test_growth_in_bursts_is_seen() -> None:
    # journald allocates 8 MiB at a time.
    bursts = series([(t, 8 * MiB * (t // 150)) for t in range(0, 3600, 15)])
    assert bursts.bytes_per_hour() == pytest.approx(8 * MiB * 24, rel=0.15)


def test_too_short_a_look_is_unknown() -> None:
    assert series([(0, 0)]).bytes_per_hour() is None
    assert series([(0, 0), (29, MiB)]).bytes_per_hour() is None
    assert series([(0, 0), (60, MiB)]).bytes_per_hour() == pytest.approx(60 * MiB)


def test_a_clock_set_back_starts_anew() -> None:
    back = series([(1000, 0), (1060, MiB), (500, 2 * MiB)])
    assert back.times == [500]


@given(st.lists(st.tuples(st.floats(0.5, 4000), st.integers(0, 1 << 40)), max_size=300))
def test_a_series_is_bounded_and_ordered(steps: list[tuple[float, int]]) -> None:
    grown, now = Series(), 0.0
    for step, value in steps:
        now += step
        grown.add(now, value)
        assert len(grown.times) == len(grown.values) <= MAX_SAMPLES
        assert grown.times == sorted(grown.times)
        assert grown.times[0] >= now - WINDOW_SECONDS
        assert (grown.times[-1], grown.values[-1]) == (now, value)


def test_time_until_full() -> None:
    assert seconds_until(3600 * MiB, MiB * 3600) == pytest.approx(3600)
    assert seconds_until(-5, 1.0) == 0
    assert seconds_until(5, 0.0) is None
    assert seconds_until(None, 1.0) is None
    assert seconds_until(5, None) is None


def test_history_survives_a_restart_but_not_a_reboot(tmp_path: Path) -> None:
    path = tmp_path / "state" / "history.json"
    history = History("boot-1")
    for t in range(0, 600, 60):
        history.observe(t, [("shmem", MiB * t), ("tmpfs 0:39", 7)])
    save(history, path)
    assert load(path, "boot-1").bytes_per_hour("shmem") == pytest.approx(MiB * 3600)
    assert load(path, "boot-2").bytes_per_hour("shmem") is None
    assert load(path, None).bytes_per_hour("shmem") is None
    assert [p.name for p in path.parent.iterdir()] == ["history.json"]


def test_a_figure_that_is_gone_is_forgotten() -> None:
    history = History("b")
    history.observe(0, [("a", 1), ("b", 1)])
    history.observe(60, [("a", 1)])
    history.observe(120, [("a", 1), ("b", 1)])
    assert history.bytes_per_hour("a") == 0
    assert history.bytes_per_hour("b") is None


@given(st.binary(max_size=200))
def test_a_damaged_history_is_an_empty_one(data: bytes) -> None:
    with tempfile.NamedTemporaryFile() as stream:
        stream.write(data)
        stream.flush()
        assert load(Path(stream.name), "b").bytes_per_hour("shmem") is None
