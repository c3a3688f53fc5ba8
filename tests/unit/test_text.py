"""What people read is short, exact and can't be forged by a file name."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodemem.cli.text import binary_size, dump, duration, safe
from nodemem.node.status import Omitted, TmpfsOwnerStatus, to_plain


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, "unknown"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (17179869184, "16.0 GiB"),
        (-5 * 1024, "-5.0 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (1024**7, "1024.0 EiB"),
    ],
)
def test_sizes(size: int | None, text: str) -> None:
    assert binary_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "unknown"),
        (0, "0 s"),
        (59, "59 s"),
        (61, "1 min"),
        (3600, "1 h"),
        (4 * 3600 + 120, "4 h 2 min"),
        (90000, "1 d 1 h"),
        (41 * 86400, "41 d"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_hostile_names_are_escaped() -> None:
    assert safe("a\x1b[2Jb\n\u202ec") == "a\\x1b[2Jb\\x0a\\u202ec"
    assert safe("\udcff") == "\\xff"
    assert safe("données") == "données"


@given(st.text(st.characters(exclude_categories=())))
def test_safe_text_can_be_printed_anywhere(text: str) -> None:
    shown = safe(text)
    assert shown.isprintable()
    shown.encode()


def test_json_keeps_hostile_names_apart_from_its_own_syntax(capsys: pytest.CaptureFixture[str]) -> None:
    dump({"name": 'x"\udc80\n'}, "json")
    assert json.loads(capsys.readouterr().out) == {"name": 'x"\\x80\\x0a'}


def test_status_keys_are_the_custom_resource_s() -> None:
    owner = TmpfsOwnerStatus(kind="EmptyDir", pod_uid="u", volume="cache")
    assert to_plain(owner)["podUID"] == "u"
    assert to_plain(owner)["containerID"] is None
    assert to_plain(owner, keep_unknown=False) == {"kind": "EmptyDir", "podUID": "u", "volume": "cache"}
    assert to_plain(Omitted(tmpfs=3, containers_usage_bytes=7)) == {
        "tmpfs": 3,
        "containers": 0,
        "tmpfsUsedBytes": 0,
        "containersShmemBytes": 0,
        "containersUsageBytes": 7,
    }
