"""The kubectl plugin as krew's users get it: the built archive, installed by real krew, run by real kubectl.

Slow (the build takes half a minute), and apart: ``make test-krew``.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import binaries, fleetlab
from cluster.controlplane import ControlPlane
from fleet_statuses import GIB, run_tmpfs, status
from nodemem.api.resources import RESOURCES
from nodemem.api.schema import definition

pytestmark = pytest.mark.krew

ROOT = Path(__file__).parents[2]
KREW = "sigs.k8s.io/krew/cmd/krew@v0.4.3"


@pytest.fixture(scope="module")
def krew() -> Path:
    """Built once, from the Go module proxy."""
    place = binaries.cache_directory().parents[1] / "krew" / KREW.rpartition("@")[2]
    program = place / "krew"
    if not program.exists():
        environment = {**os.environ, "GOBIN": str(place), "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
        subprocess.run([binaries.find_go(), "install", KREW], env=environment, check=True, cwd="/")
    return program


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, ROOT / "deploy" / "krew" / "build.py", "--output", output], check=True)
    return output


@pytest.fixture(scope="module")
def bare() -> Iterator[ControlPlane]:
    with ControlPlane(controller_manager=False) as cluster:
        cluster.install(*(definition(each) for each in RESOURCES))
        yield cluster


def test_krew_installs_it_and_kubectl_runs_it_without_any_other_python(
    krew: Path, built: Path, bare: ControlPlane, tmp_path: Path
) -> None:
    (archive,) = built.glob("*.tar.gz")
    environment = {"HOME": str(tmp_path), "KREW_ROOT": str(tmp_path / "krew"), "KUBECONFIG": str(bare.kubeconfig)}
    environment["PATH"] = f"{tmp_path}/krew/bin:/usr/bin:/bin"
    (tmp_path / "krew" / "index").mkdir(parents=True)
    command = [krew, "install", f"--manifest={built / 'nodemem.yaml'}", f"--archive={archive}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Installed plugin: nodemem" in done.stdout + done.stderr
    fleetlab.publish(bare, "n1", status(run_tmpfs(15 * GIB, 16 * GIB)))
    for words, said in ((("top",), "/run 15Gi/16Gi"), (("why", "n1"), "15.0 GiB of it in tmpfs /run")):
        shown = subprocess.run(
            [binaries.find_kubectl(), "nodemem", *words], env=environment, capture_output=True, text=True, timeout=60
        )
        assert said in shown.stdout, shown.stderr
    completed = subprocess.run(
        [tmp_path / "krew" / "bin" / "kubectl-nodemem", "__complete", "why", ""],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert completed.stdout == "n1\n:4\n"


def test_the_archive_is_the_same_each_time(built: Path, tmp_path: Path) -> None:
    """Of the same files: who checks a release can build it again."""
    sys.path.insert(0, str(ROOT / "deploy" / "krew"))
    try:
        import build
    finally:
        sys.path.pop(0)
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "program").write_text("x")
    first = build._packed(tmp_path / "directory")
    os.utime(tmp_path / "directory" / "program", (1, 1))
    assert build._packed(tmp_path / "directory") == first
