"""What the pages of docs/ tell people to type is typed, on a small node with a real agent, with a real controller, API
server and kubectl, and prints what the pages say it prints."""

import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import debian
from cluster import fleetlab
from cluster.agentlab import make_node, make_pod, report_of, until
from cluster.controllerlab import Controller, plane
from cluster.controlplane import ControlPlane
from docs.node import journal_files
from docs.pages import DOCS, ROOT, Command, blocks, commands, matches, pages
from docs.shell import Shell
from fleet_statuses import GIB, run_tmpfs, status

NODE = "n1"
SECONDS = 60.0
"""How long a question is asked again until its answer is the page's: agents and controller take their time."""

QUESTIONS = ("kubectl get", "kubectl nodemem", "kubectl auth", "nodemem ", "df ", "grep ", "findmnt ", "ls ")
"""Commands that change nothing, so that they may be repeated."""

ACTIONS = ("nodemem oom lab", "nodemem tmpfs resize", "nodemem capture")

ON_THE_MACHINE = ("experiment.md",)
"""Run beside the small node: the kernel's log has the numbers of its processes in the PID namespace of the machine."""

PLACEHOLDER = re.compile(r"\b(NODE|POD|NAME|NAMESPACE|FILE|PID)\b")

NOT_RUN = {
    "performance.md": "it tells of make targets that take many minutes, and of their results",
    "meminfo.md": "printed by nodemem meminfo -o markdown; tests/unit/test_meminfo.py compares it",
}


class Place(NamedTuple):
    """Where pages are run: the control plane, the PID of the small node, a directory for their files."""

    cluster: ControlPlane
    pid: int
    directory: Path


def environment(cluster: ControlPlane) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("LANG", "LC_ALL", "TMPDIR") if name in os.environ}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**kept, "PATH": path, "KUBECONFIG": str(cluster.kubeconfig), "HOME": str(cluster.directory), "TERM": "dumb"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("reader")
    debian.ensure("ps", "procps")
    with plane() as cluster, Controller(cluster, "--stale-after=120", name="docs"):
        fleetlab.publish(cluster, "n2", status(run_tmpfs(200 << 20, 6 * GIB)), labels={"pool": "db"})
        fleetlab.publish(cluster, "n3", status(run_tmpfs(3 * GIB, 6 * GIB), age_seconds=9000), labels={"pool": "db"})
        make_node(cluster, NODE)
        cluster.kubectl("label", "node", NODE, "pool=web")
        cluster.add_namespace("shop")
        container = secrets.token_hex(32)
        pod = make_pod(cluster, "shop", "cart", NODE, [("app", container)], request="256Mi", guaranteed=True)
        cluster.kubectl("label", "pod", "-n", "shop", "cart", "app=cart")
        for name in ("oom-commit-9066e5cfb73c.log", "oom-5.4.119-cascade.log"):
            (directory / name).write_bytes((ROOT / "tests" / "data" / "oom" / name).read_bytes())
        log = directory / "agent.log"
        told = {
            "node": NODE,
            "kubeconfig": str(cluster.kubeconfig),
            "podUID": pod["metadata"]["uid"],
            "containerID": container,
            "log": str(log),
        }
        command = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
        command += [sys.executable, "-m", "docs.node", json.dumps(told)]
        tests = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
        node = subprocess.Popen(command, env=tests, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert node.stdout is not None
            assert node.stdout.readline() == "ready\n"
            children = Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split()
            until(lambda: report_of(cluster, NODE), "the report", 60)
            yield Place(cluster, int(children[0]), directory)
        except BaseException as error:
            error.add_note(f"the agent said:\n{log.read_text()[-3000:] if log.exists() else 'nothing'}")
            raise
        finally:
            assert node.stdin is not None
            node.stdin.close()
            try:
                node.wait(30)
            finally:
                node.kill()
                node.wait()
            node.stdout.close()  # type: ignore[union-attr]


def pages_that_are_run() -> list[Path]:
    return [page for page in pages() if any(each.language == "console" for each in blocks(page))]


@pytest.mark.parametrize("page", pages_that_are_run(), ids=lambda page: page.name)
def test_a_page_does_what_it_says(place: Place, page: Path) -> None:
    inside = [] if page.name in ON_THE_MACHINE else ["nsenter", f"--target={place.pid}", "--mount", "--pid"]
    shell = Shell(place.directory, environment(place.cluster), inside)
    try:
        if inside:
            for path, size in journal_files():
                assert shell.run(f"[ -e {path} ] || fallocate -l {size} {path}", 30) == (0, ""), path
        for block in blocks(page):
            if (name := block.value("file")) is not None:
                (place.directory / name).write_text(block.body)
            if block.language != "console" or block.value("untested") is not None:
                continue
            for command in commands(block):
                _type(shell, command, f"{page.name}:{command.line}", exact=block.exact, fails=block.fails)
    finally:
        shell.close()


def _type(shell: Shell, command: Command, where: str, *, exact: bool, fails: bool) -> None:
    again = command.text.startswith(QUESTIONS) and not command.text.startswith(ACTIONS)
    deadline = time.monotonic() + SECONDS
    while True:
        code, printed = shell.run(command.text, 120)
        right = (code != 0) == fails and (not command.prints or matches(command.prints, printed, exact=exact))
        if right:
            return
        if not again or time.monotonic() > deadline:
            pytest.fail(
                f"{where}: $ {command.text}\nended with {code} and printed:\n{printed}\nThe page says:\n"
                f"{command.prints}",
                pytrace=False,
            )
        time.sleep(0.5)


def test_every_command_is_run_or_says_why_not() -> None:
    """A block without a language that has commands in it is one that nobody runs. A command with a placeholder, such as
    NODE, is a pattern: nobody could."""
    unmarked = []
    for page in pages():
        if page.name in NOT_RUN:
            continue
        for block in blocks(page):
            lines = [each for each in block.body.splitlines() if not PLACEHOLDER.search(each)]
            typed = [each for each in lines if each.startswith(("kubectl", "nodemem", "helm", "$ "))]
            if block.language in ("", "sh", "bash", "shell") and typed:
                unmarked.append(f"{block.page}:{block.line}")
            if block.language == "console" and (reason := block.value("untested")) is not None:
                assert len(reason) > 10, f"{block.page}:{block.line}: say why"
    assert not unmarked


@pytest.mark.parametrize(
    "page",
    [
        "find-a-shmem-leak.md", "shared-memory.md", "cap-run.md", "kernel-memory.md", "who-dies-first.md",
        "is-my-cluster-exposed.md", "experiment.md", "enlarge-dev-shm.md", "oom-explain.md", "lesson.md",
        "report-page.md",
    ],
)  # fmt: skip
def test_a_page_for_a_task_is_one_that_is_run(page: str) -> None:
    assert DOCS / page in pages_that_are_run()
    run = [each for each in blocks(DOCS / page) if each.language == "console" and each.value("untested") is None]
    assert run
