"""`kubectl nodemem` as people run it: by real kubectl, on a real API server, about real agents and made-up nodes."""

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import debian
from cluster import fleetlab
from cluster.agentlab import REPORTS, kubeconfig, make_node, make_pod, report_of, running_agent, until
from cluster.binaries import find_kubectl
from cluster.controllerlab import Controller, add_pod, exposure, exposures, plane, write_report
from cluster.controlplane import ControlPlane
from fleet_statuses import GIB, run_tmpfs, status
from kernel import workloads
from kernel.workloads import MIB
from nodemem.agent.changes import Cadence
from nodemem.node.status import OomKillStatus, ProcessRef

FAST = Cadence(heartbeat_seconds=2.0, apart_seconds=0.3)


@pytest.fixture(scope="module")
def cluster() -> Iterator[ControlPlane]:
    """With the controller, and four nodes that are made up: one that fills, one that is silent, one that is exposed,
    and one without a report."""
    with plane() as running, Controller(running, "--stale-after=120", name="plugin"):
        growing = run_tmpfs(15 * GIB + 300 * MIB, 16 * GIB, growth_bytes_per_hour=210 * MIB)
        found = status(growing, growth_bytes_per_hour=210 * MIB, anonymous_bytes=40 * GIB)
        fleetlab.publish(running, "full", found, labels={"pool": "web"})
        fleetlab.publish(running, "calm", status(run_tmpfs(200 * MIB, 6 * GIB)), labels={"pool": "db"})
        fleetlab.publish(running, "silent", status(run_tmpfs(3 * GIB, 6 * GIB), age_seconds=9000))
        make_node(running, "fresh")
        running.kubectl("label", "node", "fresh", "pool=web")
        yield running


def plugin(cluster: ControlPlane, *args: str, code: int = 0, config: Path | None = None) -> str:
    """``kubectl nodemem ...``; its standard output, or standard error where it is meant to fail."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "KUBECONFIG": str(config or cluster.kubeconfig), "PATH": path}
    environment["HOME"] = str(cluster.directory)
    done = subprocess.run(
        [find_kubectl(), "nodemem", *args], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done.stderr if code else done.stdout


def rows(text: str) -> dict[str, str]:
    lines = text.splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith("NODE"))
    return {line.split()[0]: line for line in lines[start + 1 :] if line.strip()}


def test_top_shows_this_machine_beside_the_others(cluster: ControlPlane) -> None:
    node = f"real-{secrets.token_hex(3)}"
    make_node(cluster, node)
    with running_agent(node, cluster.kubeconfig, "--interval=1", "--refresh=0.5", cadence=FAST):
        until(lambda: report_of(cluster, node), "the report", 60)
        text = plugin(cluster, "top")
        shown = rows(text)
        total_kib = int(Path("/proc/meminfo").read_text().split()[1])
        assert shown[node].split()[1] == f"{total_kib / 2**20:.1f}Gi".replace(".0Gi", "Gi")
        assert list(shown)[:2] == ["full", "silent"], "most hidden memory first"
        assert "/run 15.3Gi/16Gi" in shown["full"]
        assert "+210Mi/h" in shown["full"]
        assert re.search(r" 3 h \d+ min ", shown["full"]), "when it is full"
        assert "(stale)" in shown["silent"]
        assert "Stale: silent." in text
        wide = rows(plugin(cluster, "top", node, "-o", "wide"))
        assert list(wide) == [node]
        assert os.uname().release in wide[node]
    cluster.kubectl("delete", "node", node)


def test_top_selects_by_the_labels_of_nodes_and_names_those_without_a_report(cluster: ControlPlane) -> None:
    text = plugin(cluster, "top", "-l", "pool=web")
    assert list(rows(text)) == ["full", "fresh"]
    assert rows(text)["fresh"].endswith("no report yet")
    assert "No node has the labels pool=none" in plugin(cluster, "top", "-l", "pool=none")
    items = json.loads(plugin(cluster, "top", "-l", "pool in (web, db)", "--sort", "name", "-o", "json"))["items"]
    assert [each["metadata"]["name"] for each in items] == ["calm", "full"]
    assert "did you mean full" in plugin(cluster, "top", "ful", code=1)


def test_top_is_shown_again_until_it_is_interrupted(cluster: ControlPlane) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig), "PATH": path}
    command = [find_kubectl(), "nodemem", "top", "--watch", "0.5"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            shown = 0
            while shown < 3:
                line = process.stdout.readline()
                assert line, "it ended"
                shown += line.startswith("NODE")
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
        finally:
            process.kill()


def test_why_names_a_leak_of_this_machine_its_pod_and_its_file(cluster: ControlPlane, namespace: str) -> None:
    node, container = f"real-{secrets.token_hex(3)}", secrets.token_hex(32)
    make_node(cluster, node)
    pod = make_pod(cluster, namespace, "leaky", node, [("app", container)])
    with (
        workloads.container_cgroup(pod["metadata"]["uid"], container) as place,
        workloads.tmpfs(96 * MIB, limit=128 * MIB, cgroup=place) as made,
        running_agent(node, cluster.kubeconfig, "--interval=1", "--refresh=0.5", cadence=FAST),
    ):

        def named() -> bool | None:
            listed = (report_of(cluster, node) or {}).get("status", {}).get("tmpfs", ())
            return any(each["device"] == made.device and each["owner"].get("podName") for each in listed) or None

        until(named, "the tmpfs with its pod", 60)
        text = plugin(cluster, "why", node)
        line = next(each for each in text.splitlines() if f"{namespace}/leaky" in each)
        assert re.search(r" 96\.0 MiB +128\.0 MiB +75 % ", line)
        assert "data" in text
        assert text.splitlines()[0] == f"Node {node}"


def test_why_prints_what_report_prints_on_the_node(cluster: ControlPlane, tmp_path: Path) -> None:
    """One capture, twice: as ``nodemem report`` shows it, and as the MemoryReport made of it."""
    capture = str(tmp_path / "node.tar")

    def nodemem(*args: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "nodemem", *args], check=True, capture_output=True, text=True, timeout=120
        ).stdout

    nodemem("capture", capture)
    # How much could not be attributed for want of rights is known on the node alone.
    hint = "of the unattributed may be in processes"
    there = [line for line in nodemem("report", "--root", capture).splitlines() if hint not in line]
    (tmp_path / "report.json").write_text(nodemem("report", "--root", capture, "-o", "json"))
    here = plugin(cluster, "why", "-f", str(tmp_path / "report.json")).splitlines()
    verdict = there[2]
    assert verdict in here
    start = there.index(next(each for each in there if each.startswith("Where ")))
    end = there.index(next(each for each in there if each.startswith("Largest tmpfs")))
    where = here.index(there[start])
    assert here[where : where + end - start] == there[start:end], "partition and sources, line for line"
    assert "not a MemoryReport" in plugin(cluster, "why", "-f", str(cluster.kubeconfig), code=1)


def test_why_of_a_silent_node_says_so_at_the_top(cluster: ControlPlane) -> None:
    first = plugin(cluster, "why", "silent").splitlines()[0]
    assert first.startswith("STALE. ")
    assert "2 h 30 min old" in first


def test_why_shows_limits_exposures_and_kills_and_what_to_do_next(cluster: ControlPlane) -> None:
    kill = OomKillStatus(
        key="boot/1",
        killed_at="2030-01-01T00:00:00Z",
        victim=ProcessRef(5740, "pause", 4096),
        largest=ProcessRef(58406, "data_sim", 15 * GIB),
        verdict="Wrong",
        cause="clamped",
        limit_bytes=16 * GIB,
        message="The kernel killed pause (4.0 KiB); data_sim (15.0 GiB) lives.",
        pod_name="cart",
        pod_namespace="shop",
    )
    fleetlab.write_status(cluster, "calm", status(run_tmpfs(200 * MIB, 6 * GIB), oom_kills=(kill,)))
    text = plugin(cluster, "why", "calm")
    line = next(each for each in text.splitlines() if each.startswith("2030-01-01"))
    assert line.split()[1:5] == ["Wrong", "pause", "5740", "(4.0"]
    assert "Next, on full: tmpfs /run holds 15.3 GiB" in plugin(cluster, "why", "full")


def test_exposed_says_who_dies_who_holds_most_and_what_to_do(cluster: ControlPlane, namespace: str) -> None:
    node = make_node(cluster, f"node-{secrets.token_hex(3)}")
    name = node["metadata"]["name"]
    pod = add_pod(cluster, namespace, "bank-0", name)
    message = "The kernel would kill pause. Set oom_score_adj -63 for all processes of the pod."
    write_report(cluster, node, exposure(pod, usage=16 * GIB, severity="Imminent", message=message))
    until(lambda: exposures(cluster, namespace) or None, "the exposure", 60)
    text = plugin(cluster, "exposed", "-n", namespace)
    line = next(each for each in text.splitlines() if each.startswith(namespace))
    assert re.search(r"bank-0 +Imminent +app +100 % of 16\.0 GiB +ClampedBadness +pause 5740 \(4\.0 KiB\)", line)
    assert re.search(r"data_sim 58406 \(15\.0 GiB\) +-63 ", line)
    assert line.endswith(name)
    assert f"{namespace}/bank-0: {message}" in text
    assert "1 imminent" in text
    assert "bank-0" in plugin(cluster, "exposed", "-A")
    assert json.loads(plugin(cluster, "exposed", "-A", "-o", "json"))["items"]
    cluster.kubectl("delete", "node", name)


def test_nothing_exposed_says_what_was_checked_and_what_was_not(cluster: ControlPlane, namespace: str) -> None:
    policy = {"podSelector": {"matchLabels": {"tier": "batch"}}, "mode": "Ignore"}
    kind = {"apiVersion": "nodemem.io/v1alpha1", "kind": "OomPolicy", "metadata": {"name": "batch"}}
    cluster.apply(kind | {"spec": policy})
    text = " ".join(plugin(cluster, "exposed", "-n", namespace).split())
    assert text.startswith(f"No pod in namespace {namespace} is exposed. Checked: the containers of ")
    assert re.search(r"since the agent is silent: [^.]*silent", text)
    assert "Left alone by OomPolicies with mode: Ignore: what batch selects." in text
    assert "OomPolicy batch: Ignore" in plugin(cluster, "policy", "batch")
    cluster.kubectl("delete", "oompolicy", "batch")


def test_who_may_view_one_namespace_sees_its_exposures_and_is_told_what_the_rest_takes(
    cluster: ControlPlane, namespace: str
) -> None:
    rule = {"apiGroups": ["nodemem.io"], "resources": ["oomexposures"], "verbs": ["get", "list"]}
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role"}
    cluster.apply(role | {"metadata": {"name": "see", "namespace": namespace}, "rules": [rule]})
    cluster.kubectl("create", "rolebinding", "see", "-n", namespace, "--role=see", "--user=jane")
    text = plugin(cluster, "exposed", "-n", namespace, "--as", "jane")
    assert "can't be said without the right to list memoryreports" in " ".join(text.split())
    for args, missing in (
        (("top",), 'cannot list resource "memoryreports"'),
        (("exposed", "-A"), 'cannot list resource "oomexposures"'),
        (("exposed", "-n", "default"), 'in the namespace "default"'),
        (("why", "full"), 'cannot get resource "memoryreports"'),
        (("policy",), 'cannot list resource "tmpfspolicies"'),
    ):
        said = plugin(cluster, *args, "--as", "jane", code=1)
        assert 'User "jane"' in said
        assert missing in said
        assert "rbac.aggregateToView" in said


@pytest.fixture
def enforcing(cluster: ControlPlane) -> Iterator[str]:
    """A node whose agent is real and may resize."""
    node = f"real-{secrets.token_hex(3)}"
    make_node(cluster, node)
    cluster.kubectl("label", "node", node, f"only={node}")
    options = ("--enforce", "--interval=0.5", "--refresh=0.3")
    with running_agent(node, cluster.kubeconfig, *options, cadence=FAST):
        until(lambda: report_of(cluster, node), "the report", 60)
        yield node
    cluster.kubectl("delete", "node", node)


def size_of(path: str) -> int:
    found = os.statvfs(path)
    return found.f_blocks * found.f_frsize


def test_a_policy_is_followed_from_audit_to_enforce_to_gone_by_what_it_says_comes_next(
    cluster: ControlPlane, enforcing: str
) -> None:
    """The commands under "Next" are run as they are printed."""
    name = f"cap-{secrets.token_hex(3)}"

    def told(*words: str) -> str | None:
        text = plugin(cluster, "policy", name)
        return text if all(word in text for word in words) else None

    def step(text: str) -> None:
        command = re.search(r"(kubectl (?:patch|delete) tmpfspolicy .*?)(?: \([^()]*\))?$", text, re.MULTILINE)
        assert command, text
        environment = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig)}
        environment["PATH"] = os.pathsep.join([str(Path(find_kubectl()).parent), os.environ["PATH"]])
        subprocess.run(["bash", "-c", command[1]], env=environment, check=True, capture_output=True, timeout=60)

    with workloads.tmpfs_here(MIB, limit=32 * MIB) as here:
        spec = {
            "nodeSelector": {"matchLabels": {"only": enforcing}},
            "rules": [{"scope": "Host", "path": here.path, "size": "8Mi"}],
        }
        kind = {"apiVersion": "nodemem.io/v1alpha1", "kind": "TmpfsPolicy", "metadata": {"name": name}}
        cluster.apply(kind | {"spec": spec})
        text = until(lambda: told("Would shrink", "--patch"), "the audit", 60)
        assert f"On nodes with labels only={enforcing}:" in text
        assert f"- {here.path} at most 8Mi" in text
        assert "1 node matched: 1 audited." in text
        assert size_of(here.path) == 32 * MIB
        step(text)
        text = until(lambda: told("InSync", "Undo it"), "the limit", 60)
        assert size_of(here.path) == 8 * MIB
        row = next(each for each in text.splitlines() if each.startswith(enforcing))
        assert re.search(r" InSync +8\.0 MiB +8\.0 MiB +32\.0 MiB", row)
        assert name in plugin(cluster, "policy")
        step(text)
        until(lambda: size_of(here.path) == 32 * MIB or None, "the size found", 60)
        until(lambda: f"no policy '{name}'" in plugin(cluster, "policy", name, code=1) or None, "its end", 60)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A cluster in which nodemem is not installed."""
    with ControlPlane(controller_manager=False) as running:
        yield running


@pytest.mark.parametrize("command", [("top",), ("why", "n1"), ("exposed",), ("policy", "x"), ("policy",)])
def test_where_nodemem_is_not_installed_every_command_says_so(bare: ControlPlane, command: tuple[str, ...]) -> None:
    said = plugin(bare, *command, code=1)
    assert "nodemem is not installed in this cluster" in said
    assert "install.md" in said


def test_what_is_missing_is_told_apart(cluster: ControlPlane) -> None:
    said = plugin(cluster, "why", "fresh", code=1)
    assert "node fresh has no report yet" in said
    assert "spec.nodeName=fresh" in said
    assert "did you mean silent?" in plugin(cluster, "why", "silence", code=1)
    assert "not a name" in plugin(cluster, "why", "../../pods", code=1)
    cluster.apply({"apiVersion": "nodemem.io/v1alpha1", "kind": "MemoryReport", "metadata": {"name": "fresh"}})
    try:
        assert "has not measured yet" in plugin(cluster, "why", "fresh", code=1)
        assert rows(plugin(cluster, "top"))["fresh"].endswith("no report yet")
    finally:
        cluster.request("DELETE", f"{REPORTS}/fresh")
    assert "there is no context 'tst': did you mean test?" in plugin(cluster, "top", "--context", "tst", code=1)
    assert "expected NAME" in plugin(cluster, "policy", "pod/x", code=1)


def test_a_server_that_is_away_or_refuses_the_credentials_is_named(cluster: ControlPlane) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"https://127.0.0.1:{taken.getsockname()[1]}"
        said = plugin(cluster, "top", code=1, config=kubeconfig(cluster, server=url, name="away"))
    assert f"{url} can't be reached" in said
    assert "refused" in said
    said = plugin(cluster, "top", code=1, config=kubeconfig(cluster, name="stranger", token="wrong"))
    assert "does not accept the credentials" in said
    assert len(said.splitlines()) <= 2, "no traceback"


def test_a_server_that_is_silent_is_given_up(cluster: ControlPlane) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        config = kubeconfig(cluster, server=url, name="mute")
        said = plugin(cluster, "top", "--request-timeout", "1s", code=1, config=config)
    assert "can't be reached" in said


# --- completion


def completed(cluster: ControlPlane, *words: str) -> list[str]:
    """By kubectl's own completion, which runs ``kubectl_complete-nodemem``."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig), "PATH": path}
    done = subprocess.run(
        [find_kubectl(), "__complete", "nodemem", *words], env=environment, capture_output=True, text=True, timeout=60
    )
    return [line.split("\t")[0] for line in done.stdout.splitlines() if not line.startswith(":")]


def test_kubectl_completes_commands_nodes_policies_and_namespaces(cluster: ControlPlane, namespace: str) -> None:
    kind = {"apiVersion": "nodemem.io/v1alpha1", "kind": "TmpfsPolicy", "metadata": {"name": "cap-run"}}
    nowhere = {"nodeSelector": {"matchLabels": {"no": "where"}}}
    cluster.apply(kind | {"spec": {"rules": [{"scope": "Host", "path": "/run", "size": "2Gi"}], **nowhere}})
    assert completed(cluster, "") == ["top", "why", "exposed", "policy", "completion"]
    assert completed(cluster, "why", "si") == ["silent"]
    assert completed(cluster, "why", "full", "") == [], "one node is enough"
    assert "full" not in completed(cluster, "top", "full", "")
    assert completed(cluster, "policy", "cap") == ["cap-run"]
    assert namespace in completed(cluster, "exposed", "-n", "")
    assert completed(cluster, "top", "--context", "") == ["test"]
    cluster.kubectl("delete", "tmpfspolicy", "cap-run")


@pytest.mark.parametrize(
    ("shell", "package", "script"),
    [
        (
            "bash",
            "bash",
            'source <(kubectl-nodemem completion bash); COMP_WORDS=(kubectl-nodemem why "si"); COMP_CWORD=2; '
            '_kubectl_nodemem; printf "%s\\n" "${COMPREPLY[@]}"',
        ),
        (
            "zsh",
            "zsh",
            'compdef() { :; }; _describe() { print -l -- "${(@)found}"; }; '
            "source <(kubectl-nodemem completion zsh); words=(kubectl-nodemem why si); CURRENT=3; _kubectl_nodemem",
        ),
        (
            "fish",
            "fish",
            'kubectl-nodemem completion fish | source; complete -C "kubectl-nodemem why si"',
        ),
    ],
)
def test_each_shell_completes_the_name_of_a_node(cluster: ControlPlane, shell: str, package: str, script: str) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig), "PATH": path, "TERM": "dumb"}
    done = subprocess.run(
        [debian.ensure(shell, package), "-c", script], env=environment, capture_output=True, text=True, timeout=120
    )
    assert [line.partition(":")[0] for line in done.stdout.split()] == ["silent"], (done.stdout, done.stderr)
