"""``nodemem oom explain`` as a person and a program see it."""

import argparse
import gzip
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodemem.cli import oom_explain
from unit.oomlog_render import Scene, log, messages
from unit.test_oomlog import task

DATA = Path(__file__).parent.parent / "data" / "oom"
COMMIT = str(DATA / "oom-commit-9066e5cfb73c.log")


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    oom_explain.add_parser(parser.add_subparsers())
    args = parser.parse_args(["explain", *argv])
    code: int = args.func(args)
    return code


def as_json(capsys: pytest.CaptureFixture[str], *argv: str) -> list[dict[str, Any]]:
    assert run(*argv, "-o", "json") == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["reports"]
    return found


def test_json_has_the_fields_that_programs_rely_on(capsys: pytest.CaptureFixture[str]) -> None:
    (report,) = as_json(capsys, COMMIT)
    assert report["constraint"] == "memcg"
    assert report["limitBytes"] == 17179869184
    assert report["totalPages"] == 4194304
    assert report["pageSize"] == 4096
    assert len(report["processes"]) == 21
    assert {key: report["processes"][0][key] for key in ("pid", "name", "rssPages", "oomScoreAdj")} == {
        "pid": 5740,
        "name": "pause",
        "rssPages": 1,
        "oomScoreAdj": -998,
    }
    assert report["victim"] == {"pid": 5740, "name": "pause"}
    assert report["predicted"] == {"clampedFirst": [5740], "clampedLast": [58406], "accurate": [58406]}
    assert report["generation"] == "clampedFirst"
    assert (report["largest"]["pid"], report["largest"]["name"]) == (58406, "data_sim")
    assert report["verdict"] == "wrong"
    assert report["explanation"].startswith("The kernel killed pause")


def test_what_the_text_does_not_hold_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    (report,) = as_json(capsys, str(DATA / "6.x-v2-swap-in-use.log"))
    assert report["totalPages"] is None
    (report,) = as_json(capsys, str(DATA / "5.x-journal-multiline.log"))
    assert (report["limitBytes"], report["totalPages"]) == (None, None)
    (report,) = as_json(capsys, str(DATA / "6.10-quoted-wrapped-truncated.log"))
    assert (report["victim"], report["verdict"], report["generation"]) == (None, "unknown", "unknown")


def test_the_table_begins_with_the_verdict_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(COMMIT) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Report 1: verdict wrong, memory cgroup /kubepods/podf1c273d3")
    assert lines[1].startswith("The kernel killed pause (pid 5740, 36.0 KiB), but data_sim")
    rows = [line.split() for line in lines if line.split()[:1] and line.split()[0].isdigit()]
    assert rows[0][0] == "58406"
    assert rows[-1][0] == "5740"
    assert rows[-1][-1] == "killed"


def test_yaml_and_json_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    report = as_json(capsys, COMMIT)
    assert run(COMMIT, "-o", "yaml") == 0
    assert yaml.safe_load(capsys.readouterr().out)["reports"] == report


def test_compressed_logs_are_read_from_files_and_pipes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = gzip.compress(Path(COMMIT).read_bytes())
    (tmp_path / "kern.log.1.gz").write_bytes(packed)
    from_file = as_json(capsys, str(tmp_path / "kern.log.1.gz"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(packed))))  # type: ignore[type-var]
    assert as_json(capsys, "-") == from_file == as_json(capsys, COMMIT)


def test_a_damaged_archive_is_told_from_one_without_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cut.gz").write_bytes(gzip.compress(Path(COMMIT).read_bytes())[:-200])
    assert run(str(tmp_path / "cut.gz")) == 1
    assert "damaged or cut short" in capsys.readouterr().err


def test_an_input_without_a_report_has_an_exit_code_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").write_text("nothing to see\n")
    assert run(str(tmp_path / "empty"), "-o", "json") == oom_explain.NO_REPORT
    out, err = capsys.readouterr()
    assert json.loads(out) == {"reports": []}
    assert "no OOM report in it" in err


def test_a_missing_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("/nonexistent/kern.log") == 1
    assert capsys.readouterr().err == "nodemem: /nonexistent/kern.log: No such file or directory\n"


def test_the_given_page_size_and_kernel_are_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log"
    scene = Scene("4.19", (task(1000, 9000, -998), task(1001, 50, -998), task(1002, 600, -998)), 1)
    lines = [line for line in messages(scene) if "Comm:" not in line]
    path.write_bytes(b"".join(log(lines, "dmesg")))
    (report,) = as_json(capsys, str(path))
    assert report["predicted"]["clampedFirst"] == [1000, 1001, 1002]
    (report,) = as_json(capsys, str(path), "--kernel", "5.4.100", "--page-size", "64Ki")
    assert report["predicted"]["clampedFirst"] == [1000]
    assert (report["pageSize"], report["pageSizeFrom"]) == (65536, "given")


@pytest.mark.parametrize("argv", [("--page-size", "5000"), ("--kernel", "new"), ("--page-size", "-4096")])
def test_bad_options_say_what_is_expected(argv: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run("-", *argv)
    assert stop.value.code == 2
    assert "expected" in capsys.readouterr().err


def test_names_can_not_write_to_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b]0;pwn\x07[red]"
    path = tmp_path / "log"
    path.write_bytes(b"".join(log(messages(Scene("5.4", (task(1000, 9000, 0, evil),), 0)), "kmsg")))
    assert run(str(path)) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\\x1b]0;pwn\\x07[red]" in out
    (report,) = as_json(capsys, str(path))
    assert report["processes"][0]["name"] == "\\x1b]0;pwn\\x07[red]"


def test_a_file_without_line_ends_is_read_in_bounded_pieces() -> None:
    stream = io.BytesIO(b"x" * 1_000_000 + b"\nend\n")
    lines = list(oom_explain.bounded_lines(stream))
    assert [len(line) for line in lines] == [8192, 4]
