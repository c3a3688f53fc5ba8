"""What `kubectl nodemem` says of objects as the API server gives them: exact, short, and safe in a terminal."""

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fleet_statuses import GIB, MIB, run_tmpfs, status
from nodemem.api.convert import wire
from nodemem.api.types import LabelSelector, LabelSelectorRequirement, TmpfsPolicySpec, TmpfsRule
from nodemem.cli.kubectl import policy, top
from nodemem.cli.kubectl.cluster import similar
from nodemem.cli.kubectl.completion import complete
from nodemem.cli.kubectl.main import main
from nodemem.cli.kubectl.reports import why_stale
from nodemem.cli.nextsteps import next_steps
from nodemem.node.status import Condition, LimitStatus, ReportStatus
from nodemem.node.units import timestamp

ROOT = Path(__file__).parents[2]


def report(name: str, found: ReportStatus) -> dict[str, Any]:
    return {"kind": "MemoryReport", "metadata": {"name": name, "generation": 1}, "status": wire(found)}


def text_of(parts: Any, width: int = 4000) -> str:
    out = Console(width=width, markup=False, emoji=False, highlight=False, file=open(os.devnull, "w"))  # noqa: SIM115
    with out, out.capture() as captured:
        for each in parts:
            out.print(each)
    out.file.close()
    return captured.get()


def names(text: str) -> list[str]:
    """The first column, below the header."""
    lines = text.splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith("NODE"))
    return [line.split()[0] for line in lines[start + 1 :] if line.strip()]


def fleet() -> list[dict[str, Any]]:
    """As of now: what is silent is silent for so long."""
    return [
        report(
            "b",
            status(run_tmpfs(2 * GIB, 6 * GIB, growth_bytes_per_hour=GIB), growth_bytes_per_hour=GIB, age_seconds=60),
        ),
        report("a", status(run_tmpfs(15 * GIB, 16 * GIB), age_seconds=7200)),
        report("c", status(run_tmpfs(MIB, 6 * GIB), total_bytes=128 * GIB)),
    ]


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("hidden", "abc"), ("shmem", "abc"), ("growth", "bac"), ("full", "bac"), ("name", "abc"), ("total", "cab"),
        ("available", "abc"), ("seen", "abc"),
    ],
)  # fmt: skip
def test_top_puts_first_what_needs_a_look(sort: str, order: str) -> None:
    rows = [top.row_of(each) for each in fleet()]
    assert "".join(names(text_of(top.render(rows, sort, wide=False)))) == order


def test_top_says_unknown_and_silent_and_missing_and_never_zero_for_them() -> None:
    bare = {"metadata": {"name": "bare"}, "status": {"observedAt": timestamp(time.time())}}
    empty = {"metadata": {"name": "empty"}}
    rows = [top.row_of(each) for each in (*fleet(), bare, empty)]
    text = text_of(top.render(rows, "hidden", wide=False))
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    assert " 2 h (stale)" in lines["a"]
    assert set(lines["bare"].split()[1:6]) == {"-"}
    assert lines["empty"].endswith("no report yet")
    assert "Stale: a." in text
    assert "Without a report: empty." in text
    assert names(text)[-2:] == ["bare", "empty"], "unknown is last"


def test_top_of_nothing_says_where_to_look() -> None:
    assert "No node has reported yet" in text_of(top.render([], "hidden", wide=False))
    assert "No node has the labels pool=x" in text_of(top.render([], "hidden", wide=False, selector="pool=x"))


def test_a_node_that_no_controller_calls_stale_is_stale_by_its_age() -> None:
    marked = status(
        age_seconds=60, conditions=(Condition("Stale", "True", "HeartbeatLate", "x", "2030-01-01T00:00:00Z"),)
    )
    assert "silent" in (why_stale(report("n", marked)) or "")
    assert "no controller says so" in (why_stale(report("n", status(age_seconds=1000))) or "")
    assert why_stale(report("n", status(age_seconds=600))) is None
    fine = status(conditions=(Condition("Stale", "False", "HeartbeatResumed", "x", "2030-01-01T00:00:00Z"),))
    assert why_stale(report("n", fine)) is None


def run(tmp_path: Path, *args: str, env: Mapping[str, str] | None = None, columns: int | None = None) -> str:
    """``python -m nodemem.cli.kubectl`` in a pipe or, with ``columns``, on a terminal so wide."""
    command = [sys.executable, "-m", "nodemem.cli.kubectl", *args]
    environment = {**os.environ, "TERM": "xterm-256color", "HOME": str(tmp_path), **(env or {})}
    environment.pop("KUBECONFIG", None)
    if columns is None:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout
    leader, follower = pty.openpty()
    environment["COLUMNS"] = str(columns)
    process = subprocess.Popen(command, env=environment, stdin=follower, stdout=follower, stderr=follower)
    os.close(follower)
    said = b""
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:
            break
        if not piece:
            break
        said += piece
    os.close(leader)
    assert process.wait(60) == 0, said
    return said.decode().replace("\r\n", "\n")


def saved(tmp_path: Path, found: Mapping[str, Any]) -> str:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(found))
    return str(path)


def test_colours_are_for_terminals_that_want_them(tmp_path: Path) -> None:
    path = saved(tmp_path, report("n1", status(run_tmpfs(15 * GIB, 16 * GIB))))
    assert "\x1b[" in run(tmp_path, "why", "-f", path, columns=100)
    plain = run(tmp_path, "why", "-f", path, columns=100, env={"NO_COLOR": "1"})
    assert not any(f"\x1b[{code}m" in plain for code in (31, 32, 33, 36))
    assert "\x1b" not in run(tmp_path, "why", "-f", path)


def test_nothing_in_a_report_reaches_the_terminal_as_a_command_or_as_markup(tmp_path: Path) -> None:
    """The API server's schema lets control characters through: an agent that was taken over may write them."""
    evil = "\x1b[2J\u202e[bold red]x[/]\n"
    found = report("n1", status(run_tmpfs(15 * GIB, 16 * GIB), limits=(LimitStatus("/run", 1, 1, 1, "Failed"),)))

    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: poison(item) for key, item in value.items()}
        if isinstance(value, list):
            return [poison(item) for item in value]
        return f"{evil}{value}" if isinstance(value, str) and not value.startswith("20") else value

    found["status"] = poison(found["status"])
    found["metadata"]["name"] = evil
    for text in (
        run(tmp_path, "why", "-f", saved(tmp_path, found)),
        run(tmp_path, "why", "-o", "yaml", "-f", saved(tmp_path, found)),
        text_of(top.render([top.row_of(found)], "hidden", wide=True)),
    ):
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert "[bold red]x[/]" in text


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
def test_a_table_keeps_within_the_terminal_and_the_node_and_its_hidden_memory_are_in_it(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    rows = [top.row_of(each) for each in fleet()]
    text = text_of(top.render(rows, "hidden", wide=False), columns)
    header = next(line for line in text.splitlines() if line.startswith("NODE"))
    assert {"NODE", "HIDDEN"} <= set(header.split())
    table = text.splitlines()[text.splitlines().index(header) :]
    assert all(len(line) <= columns for line in table)
    assert len([line for line in table if line.strip()]) == 4, "one line a node"
    assert ("FULL IN" in header) == (columns >= 120)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "neither JSON nor YAML"),
        ("[]", "not a MemoryReport"),
        ('{"kind": "Pod"}', "not a MemoryReport"),
        ('{"kind": "MemoryReport"}', "without a name"),
        ('{"kind": "MemoryReport", "metadata": {"name": "n1"}}', "has not measured yet"),
        (
            '{"kind": "MemoryReport", "metadata": {"name": "n1"}, "status": {"observedAt": "x", "agentVersion": "9"}}',
            "by an agent of version 9",
        ),
    ],
)
def test_a_file_that_is_no_report_is_refused_with_a_sentence(
    content: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file"
    path.write_text(content)
    assert main(["why", "-f", str(path)]) == 1
    assert said in capsys.readouterr().err


def test_without_a_cluster_it_says_how_to_name_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert main(["top", "--kubeconfig", str(tmp_path / "none")]) == 1
    assert "--kubeconfig" in capsys.readouterr().err


def test_names_that_are_near_are_offered() -> None:
    assert similar("node-12", ["node-11", "other"]) == ": did you mean node-11?"
    assert similar("cap", ["cap-run"]) == ": did you mean cap-run?"
    assert similar("x", ["alpha"]) == "; there is alpha"
    assert similar("x", ["alpha", "beta"]) == "; there are alpha and beta"
    assert similar("x", [f"n{number}" for number in range(2000)]) == "; there are 2,000, such as n0, n1, n2"
    assert similar("x", []) == ", nor any other"


# --- next steps


def steps(*tmpfs: Any, **more: Any) -> str:
    return text_of(next_steps(status(*tmpfs, **more), "n1"))


def test_a_full_run_leads_to_its_files_and_to_a_policy_unless_there_is_one() -> None:
    said = steps(run_tmpfs(15 * GIB, 16 * GIB))
    assert "Next, on n1: tmpfs /run holds 15.0 GiB" in said
    assert "nodemem tmpfs ls /run" in said
    assert "kind: TmpfsPolicy" in said
    limit = LimitStatus("/run", 2 * GIB, 16 * GIB, None, "Deferred", policy="cap-run")
    said = steps(run_tmpfs(15 * GIB, 16 * GIB), limits=(limit,))
    assert "kind: TmpfsPolicy" not in said
    assert "kubectl nodemem policy cap-run" in said


def test_the_most_pressing_is_told_step_by_step_and_others_are_named() -> None:
    full = run_tmpfs(8 * GIB, 8 * GIB)
    said = steps(run_tmpfs(9 * GIB, 30 * GIB, device="0:30", mount_point="/srv"), full)
    assert "Next, on n1: tmpfs /run holds 8.0 GiB" in said
    assert "Also: tmpfs /srv holds 9.0 GiB" in said
    assert "nodemem tmpfs ls /srv" not in said


def test_what_is_small_leads_to_nothing() -> None:
    assert steps(run_tmpfs(MIB, 16 * GIB)) == ""


# --- policies in sentences


def test_a_policy_is_told_in_sentences() -> None:
    selector = LabelSelector({"pool": "web"}, (LabelSelectorRequirement("zone", "In", ("a", "b")),))
    spec = TmpfsPolicySpec(
        (
            TmpfsRule("Host", "2Gi", path="/run"),
            TmpfsRule("SharedMemory", "25%", adjust="Grow", pod_selector=LabelSelector({"app": "db"}), max_size="4Gi"),
            TmpfsRule("EmptyDir", "1Gi"),
        ),
        node_selector=selector,
    )
    said = policy.asks(spec)
    assert said[0] == "On nodes with labels pool=web, zone in (a, b):"
    assert said[1] == "- /run at most 2Gi"
    assert said[2].startswith("- /dev/shm of pods with labels app=db at least 25% of the pod's memory limit, or what")
    assert said[3] == "- volumes of medium Memory of pods at most 1Gi"
    assert "10% of the nodes at a time; it stops at 1 failed node." in said
    assert said[-1] == "When the policy is deleted, the sizes found come back."


def limited(name: str, state: str, *, generation: int = 2, answered: int = 2, **more: Any) -> dict[str, Any]:
    said = {"mountPoint": "/run", "requestedBytes": 2 * GIB, "state": state, "policy": "cap-run", **more}
    return {
        "metadata": {"name": name, "generation": generation},
        "spec": {"tmpfsLimits": [{"mountPoint": "/run", "scope": "Host", "sizeBytes": 2 * GIB, "policy": "cap-run"}]},
        "status": {"observedAt": timestamp(time.time()), "observedGeneration": answered, "limits": [said]},
    }


def cap_run(mode: str, **more: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "cap-run", "generation": 1, **more},
        "spec": {"rules": [{"scope": "Host", "path": "/run", "size": "2Gi"}], "mode": mode},
        "status": {"observedGeneration": 1, "nodes": {"matched": 4}},
    }


def told(mode: str, *reports: dict[str, Any], **more: Any) -> str:
    return text_of(policy.tmpfs_policy(cap_run(mode, **more), list(policy.answers_of(reports, "cap-run"))))


def test_each_node_is_listed_the_worst_first_and_each_state_has_a_next_step() -> None:
    text = told(
        "Enforce",
        limited("n1", "InSync", appliedBytes=2 * GIB, originalBytes=16 * GIB),
        limited("n2", "Deferred"),
        limited("n3", "Contested"),
        limited("n4", "Failed", message="EINVAL"),
    )
    rows = [line.split() for line in text.splitlines() if line.startswith("n")]
    assert [(row[0], row[2]) for row in rows] == [
        ("n4", "Failed"), ("n3", "Contested"), ("n2", "Deferred"), ("n1", "InSync"),
    ]  # fmt: skip
    assert "16.0 GiB" in text
    for said in ("Failed on n4", "Contested on n3", "kubectl nodemem why n2", "Undo it: kubectl delete tmpfspolicy"):
        assert said in text


def test_an_answer_to_an_older_limit_is_no_answer() -> None:
    assert " Pending " in told("Enforce", limited("n1", "InSync", generation=3))


def test_audit_says_how_to_do_it_and_enforcement_that_is_off_how_to_switch_it_on() -> None:
    assert '--patch=\'{"spec":{"mode":"Enforce"}}\'' in told("Audit", limited("n1", "Audit"))
    off = limited("n1", "Audit", message="Enforcement is off on this node: its agent runs without --enforce.")
    text = told("Enforce", off)
    assert "enforcement.enabled=true" in text
    assert "--patch" not in text


def test_a_policy_that_is_being_deleted_says_what_it_waits_for() -> None:
    text = told("Enforce", limited("n1", "InSync"), deletionTimestamp="2030-01-01T00:00:00Z")
    assert "being deleted" in text
    assert "gone when every node has its sizes back" in text


def test_a_controller_that_has_not_looked_is_named() -> None:
    found = cap_run("Audit", generation=2)
    assert "has not looked at this version" in text_of(policy.tmpfs_policy(found, []))


# --- completion


def completed(*words: str) -> list[str]:
    return [value for value, _ in complete(words)[0]]


def test_commands_options_and_their_values_are_completed_without_a_cluster() -> None:
    assert completed("") == ["top", "why", "exposed", "policy", "completion"]
    assert completed("--context", "x", "wh") == ["why"]
    assert completed("top", "--so") == ["--sort-by"]
    assert "hidden" in completed("top", "--sort", "")
    assert completed("top", "--sort=hi") == ["--sort=hidden"]
    assert completed("completion", "") == ["bash", "zsh", "fish"]
    assert completed("nonsense", "") == completed("")
    assert "--namespace" in completed("exposed", "--")
    assert "--namespace" not in completed("top", "--"), "it has no meaning there"


def test_files_are_completed_where_a_file_is_meant() -> None:
    assert complete(["why", "-f", ""]) == ([], ":0")
    assert complete(["top", "--kubeconfig", ""]) == ([], ":0")
    assert complete(["top", "--sort", "z"]) == ([], ":4")


def test_a_cluster_that_is_not_there_completes_nothing_and_says_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert complete(["--kubeconfig", str(tmp_path / "none"), "why", ""]) == ([], ":4")
    assert capfd.readouterr() == ("", "")
