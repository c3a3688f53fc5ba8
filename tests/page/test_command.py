"""`nodemem report --html` as people call it: to a file, to standard output, again and again, as nobody, wrongly."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kernel import workloads
from kernel.workloads import MIB
from nodemem.cli.html import write  # noqa: F401 - before rights are dropped: nobody may not read the source here
from nodemem.cli.main import main


def nodemem(*args: str, code: int = 0, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "nodemem", "report", "--no-history", *args]
    done = subprocess.run(command, capture_output=True, timeout=120, **options)
    assert done.returncode == code, done.stderr
    return done


def status_in(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="report">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    status: dict[str, Any] = json.loads(found[1])["status"]
    return status


def test_it_goes_to_a_file_and_says_what_to_do_with_it(tmp_path: Path) -> None:
    target = tmp_path / "n1.html"
    done = nodemem("--html", str(target))
    assert done.stdout == b""
    assert f"{target}: ".encode() in done.stderr
    text = target.read_text("utf-8")
    assert text.startswith("<!DOCTYPE html>")
    with open("/proc/meminfo", "rb") as stream:
        assert status_in(text)["memory"]["totalBytes"] == int(stream.readline().split()[1]) * 1024


def test_to_standard_output_it_is_the_page_alone_and_utf_8_in_any_locale() -> None:
    done = nodemem("--html", "-", env={**os.environ, "PYTHONIOENCODING": "latin-1"})
    text = done.stdout.decode("utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert text.endswith("</html>\n")
    assert "›" in text
    assert done.stderr == b""


def test_the_documented_command_takes_the_report_out_of_it(tmp_path: Path) -> None:
    target = tmp_path / "n1.html"
    nodemem("--html", str(target))
    page = Path(__file__).parents[2] / "docs" / "report-page.md"
    [command] = re.findall(r"^\$ (python3 -c .*)$", page.read_text(), re.MULTILINE)
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, capture_output=True)
    assert done.stdout == b""
    assert json.loads((tmp_path / "n1.json").read_text())["status"] == status_in(target.read_text())


def test_with_watch_the_file_is_written_again_and_shows_what_grew(tmp_path: Path) -> None:
    target = tmp_path / "watched.html"
    with workloads.tmpfs_here(8 * MIB, limit=256 * MIB) as here:
        command = [sys.executable, "-m", "nodemem", "report", "--no-history", "--watch", "0.2", "--count", "2"]
        with subprocess.Popen([*command, "--html", str(target)], stderr=subprocess.PIPE) as watching:
            assert watching.stderr is not None
            watching.stderr.readline()
            workloads.fill(f"{here.path}/more", 64 * MIB)
            watching.stderr.read()
        assert watching.returncode == 0
    used = {each["device"]: each["usedBytes"] for each in status_in(target.read_text())["tmpfs"]}
    assert used[here.device] in (8 * MIB, 72 * MIB)
    assert "samples in" in target.read_text()


def test_what_nobody_may_read_is_named_on_it() -> None:
    page = os.memfd_create("page")
    os.fchmod(page, 0o666)

    def demoted() -> int:
        workloads.drop_privileges()
        return main(["report", "--no-history", "--html", f"/proc/self/fd/{page}"])

    try:
        assert workloads.run(demoted) == 0
        text = Path(f"/proc/self/fd/{page}").read_text("utf-8")
    finally:
        os.close(page)
    section = text.partition('id="missing"')[2]
    assert "Permission denied" in section or "not permitted" in section
    conditions = {each["type"]: each["status"] for each in status_in(text)["conditions"]}
    assert conditions["Complete"] == "False"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--html", "/tmp"], "is a directory; name a file in it, such as /tmp/report.html"),
        (["--html", "x.html", "-o", "json"], "two outputs: choose one"),
        (["--html", "-", "--watch", "5"], "give --html a file"),
    ],
)
def test_options_that_contradict_each_other_are_refused(args: list[str], words: str) -> None:
    assert words in nodemem(*args, code=2).stderr.decode()


def test_a_file_that_can_t_be_written_is_one_line() -> None:
    text = nodemem("--html", "/nonexistent/x.html", code=1).stderr.decode()
    assert text.count("\n") == 1
    assert "No such file or directory" in text


def test_the_page_holds_no_contents_arguments_or_environment(tmp_path: Path) -> None:
    secret = "page-must-not-have-this-4711"
    script = "import sys, time; open(sys.argv[2], 'w').write(sys.argv[1] * 200000); print(flush=True); time.sleep(60)"
    with workloads.tmpfs_here(MIB, limit=64 * MIB) as here, contextlib.ExitStack() as stack:
        child = subprocess.Popen(
            [sys.executable, "-c", script, secret, f"{here.path}/file"],
            env={**os.environ, "SECRET": secret},
            stdout=subprocess.PIPE,
        )
        stack.callback(child.wait)
        stack.callback(child.kill)
        assert child.stdout is not None
        child.stdout.readline()
        child.stdout.close()
        text = nodemem("--all", "--html", "-").stdout.decode()
    assert "/file" in text
    assert secret not in text


def test_all_makes_the_data_complete() -> None:
    status = status_in(nodemem("--all", "--html", "-").stdout.decode())
    alive = {each["pid"] for each in status["processes"]}
    assert os.getpid() in alive
    assert set(status["omitted"].values()) == {0}
    assert time.strptime(status["observedAt"], "%Y-%m-%dT%H:%M:%SZ")
