"""Drop-ins for systemd to read, what is never aged, and when a limited tmpfs holds too much. systemd itself: vm/."""

from dataclasses import replace

import pytest

from nodemem.agent.reclaimwords import (
    ages_in,
    effective,
    journal_text,
    literal,
    over_limit,
    policy_in,
    tmpfiles_text,
    why_not_aged,
)
from nodemem.api.types import JournalLimit, TmpfilesAge, TmpfsLimit
from nodemem.kernel.hostfiles import MARK
from nodemem.node.status import LimitStatus

MIB = 1 << 20
AGES = [TmpfilesAge("/run/foo", "7d", "Enforce", "b"), TmpfilesAge("/run/bar-*", "1d12h", "Enforce", "a")]


def test_a_drop_in_names_who_wrote_it_and_for_which_policy() -> None:
    assert journal_text(JournalLimit(64 * MIB, "Enforce", "cap-run")) == (
        f"{MARK}\n# TmpfsPolicy cap-run\n[Journal]\nRuntimeMaxUse=67108864\n"
    )
    assert tmpfiles_text(AGES) == (
        f"{MARK}\n# TmpfsPolicy a\ne /run/bar-* - - - 1d12h\n# TmpfsPolicy b\ne /run/foo - - - 7d\n"
    )


def test_what_is_left_on_a_node_tells_what_it_was_for() -> None:
    assert sorted(ages_in(tmpfiles_text(AGES)), key=lambda each: each.path) == sorted(AGES, key=lambda each: each.path)
    assert ages_in(None) == []
    assert policy_in(journal_text(JournalLimit(64 * MIB, "Enforce", "cap-run"))) == "cap-run"
    assert policy_in(None) is None


def test_the_name_of_the_policy_is_not_what_journald_reads() -> None:
    one, other, more = (
        journal_text(JournalLimit(size * MIB, "Enforce", policy)) for size, policy in ((64, "a"), (64, "b"), (65, "a"))
    )
    assert effective(one) == effective(other) != effective(more)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/run/foo", None),
        ("/run/foo-*/logs", None),
        ("/run/user/1000/cache", None),
        ("/dev/shm/cache", None),
        ("/run/systemd", "Protected"),
        ("/run/systemd/units", "Protected"),
        ("/run/s*", "Protected"),
        ("/run/?????md/units", "Protected"),
        ("/run/*/journal", "Protected"),
        ("/run/log", "Protected"),
        ("/run/log/journal/x", "Protected"),
        ("/run/*", "Protected"),
        ("/run/containerd", "Protected"),
        ("/run/foo\nD /etc", "Invalid"),
        ("/run/foo bar", "Invalid"),
        ("/run/%m", "Invalid"),
        ("/run/../etc", "Invalid"),
        ("/run", "Invalid"),
        ("run/foo", "Invalid"),
        ("/run//foo", "Invalid"),
    ],
)
def test_what_others_work_with_and_what_makes_no_line_is_not_aged(path: str, reason: str | None) -> None:
    why = why_not_aged(TmpfilesAge(path, "7d", "Enforce", "a"))
    assert (None if why is None else why.reason) == reason


def test_an_age_that_makes_no_line_is_refused() -> None:
    assert why_not_aged(TmpfilesAge("/run/foo", "7d\nD /etc", "Enforce", "a")) is not None


@pytest.mark.parametrize(
    ("pattern", "where"),
    [("/run/foo", "/run/foo"), ("/run/foo-*", "/run"), ("/run/a/*/b?", "/run/a"), ("/*/a", "")],
)
def test_the_literal_part_of_a_pattern_is_a_directory(pattern: str, where: str) -> None:
    assert literal(pattern) == where


@pytest.mark.parametrize(
    ("used_mib", "changes", "over"),
    [
        (100, {}, True),
        (91, {}, True),
        (90, {}, False),
        (100, {"mode": "Audit"}, False),
        (100, {"scope": "EmptyDir"}, False),
        (100, {"headroom_percent": 0}, False),
        (101, {"headroom_percent": 0}, True),
        (None, {}, False),
    ],
)
def test_a_limit_is_exceeded_by_what_does_not_fit_with_its_headroom(
    used_mib: int | None, changes: dict[str, object], over: bool
) -> None:
    wanted = replace(TmpfsLimit("/run", "Host", 100 * MIB, "Enforce"), **changes)  # type: ignore[arg-type]
    status = LimitStatus("/run", 100 * MIB, 200 * MIB, None, "Deferred", device="0:25", target_bytes=100 * MIB)
    used = {"0:25": None if used_mib is None else used_mib * MIB}
    assert over_limit([wanted], [status], used) == (["/run"] if over else [])


def test_a_limit_of_what_is_not_mounted_is_not_exceeded() -> None:
    wanted = TmpfsLimit("/run", "Host", 100 * MIB, "Enforce")
    assert over_limit([wanted], [LimitStatus("/run", 100 * MIB, None, None, "InSync", "NotMounted")], {}) == []
    assert over_limit([wanted], [], {}) == []
