"""The image, built from the Dockerfile by buildah on a stand-in for its base, and the pods' claims in it.

The build reaches no network: pip gets a directory of wheels, by the secret that the Dockerfile takes for an own index.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from debian import ensure
from image import base

ROOT = Path(__file__).parents[2]
REVISION = "0123456789abcdef0123456789abcdef01234567"
pytestmark = pytest.mark.image


@dataclass(frozen=True)
class Image:
    root: Path
    about: dict[str, Any]
    base_bytes: int

    def run(self, *command: str, user: str = "65532:65532") -> "subprocess.CompletedProcess[str]":
        """In the root, in a mount namespace where it is read-only."""
        into = f'mount --bind -o ro {self.root} {self.root} && exec chroot --userspec={user} {self.root} "$@"'
        words = ["unshare", "--mount", "--propagation=private", "sh", "-c", into, "sh", *command]
        environment = {"PATH": self.environment["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
        path = {**environment, "PATH": f"{environment['PATH']}:/usr/sbin:/sbin"}
        return subprocess.run(words, env=path, capture_output=True, text=True)

    @property
    def environment(self) -> dict[str, str]:
        pairs = (each.partition("=") for each in self.about["config"]["Env"])
        return {name: value for name, _, value in pairs}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    place = tmp_path_factory.mktemp("image")
    place.chmod(0o755)
    place.parent.chmod(0o755)
    program = ensure("buildah", "buildah")

    def buildah(*words: object) -> str:
        where = [program, "--root", place / "storage", "--runroot", place / "run", "--storage-driver", "vfs"]
        done = subprocess.run([*where, *words], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout.strip()

    wheels, bottom = place / "wheels", place / "base"
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary", ":all:", "--dest", wheels]
    subprocess.run([*download, "--no-deps", "-r", ROOT / "image-requirements.txt"], check=True)
    wanted = re.search(r"hatchling==\S+", (ROOT / "Dockerfile").read_text())
    assert wanted
    subprocess.run([*download, wanted[0]], check=True)
    base.make(bottom)
    container = buildah("from", "scratch")
    buildah("copy", "--quiet", container, bottom, "/")
    buildah("config", "--env", "PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", container)
    buildah("commit", "--quiet", container, "localhost/base")
    (place / "pip.conf").write_text("[global]\nno-index = true\nfind-links = /mnt\n")
    options = ["--isolation", "chroot", "--secret", f"id=pip,src={place / 'pip.conf'}", "--volume", f"{wheels}:/mnt:ro"]
    arguments = ["--build-arg", "BASE=localhost/base", "--build-arg", f"REVISION={REVISION}"]
    buildah("bud", *options, *arguments, "--tag", "localhost/nodemem", ".")
    about = json.loads(buildah("inspect", "--type", "image", "localhost/nodemem"))["OCIv1"]
    made = buildah("from", "localhost/nodemem")
    mounted = Path(buildah("mount", made))
    try:
        yield Image(mounted, about, size(bottom))
    finally:
        buildah("umount", made)


def size(place: Path) -> int:
    done = subprocess.run(["du", "--summarize", "--bytes", place], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[0])


def test_it_starts_as_nobody_with_nodemem_as_its_program(image: Image) -> None:
    config = image.about["config"]
    assert config["User"] == "65532:65532"
    assert config["Entrypoint"] == ["nodemem"]
    labels = config["Labels"]
    assert labels["org.opencontainers.image.title"] == "nodemem"
    assert labels["org.opencontainers.image.revision"] == REVISION
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    assert labels["org.opencontainers.image.version"] == version[1]
    assert image.run("nodemem", "--version").stdout == f"nodemem {version[1]}\n"


def test_every_part_starts_on_a_read_only_root(image: Image) -> None:
    assert image.run("nodemem", "crds").stdout.count("kind: CustomResourceDefinition") == 4
    assert "controller" in image.run("nodemem", "controller", "--help").stdout
    agent = image.run("python", "-I", "-m", "nodemem.agent", "--node-name=n1", user="0:0")
    assert (agent.returncode, "KUBERNETES_SERVICE_HOST is not set" in agent.stderr) == (1, True)
    assert image.run("python", "-c", "open('/opt/nodemem/x', 'w')", user="0:0").stderr.count("Read-only") == 1


def test_there_is_no_compiler_no_installer_and_nothing_of_the_build(image: Image) -> None:
    places = [f"{top}{each}" for top in ("", "usr/", "usr/local/", "opt/nodemem/") for each in ("bin", "sbin")]
    names = {each.name for place in places for each in (image.root / place).glob("*")}
    assert "python3.11" in names
    unwanted = r"(pip|gcc|cc|c\+\+|g\+\+|ld|as|make|tcc|clang)(-?[0-9].*|\.bfd|\.gold)?"
    assert {each for each in names if re.fullmatch(unwanted, each)} == set()
    assert image.run("python", "-m", "pip", "--version").returncode != 0
    assert list((image.root / "mnt").iterdir()) == []
    assert not (image.root / "src").exists()
    leftover = image.root / "etc" / "pip.conf"
    assert not leftover.exists() or leftover.read_text() == ""
    said = json.dumps(image.about)
    assert "find-links" not in said
    assert "/wheels" not in said


def test_all_code_is_compiled(image: Image) -> None:
    """The official image's own modules too: without byte code each start would compile them, and keep nothing."""
    missing = [
        source
        for top in ("opt/nodemem/lib", "usr/local/lib")
        for source in (image.root / top).rglob("*.py")
        if "lib2to3/tests" not in str(source) and not list((source.parent / "__pycache__").glob(f"{source.stem}.*.pyc"))
    ]
    assert missing == []


def test_it_adds_less_than_200_mb_to_its_base(image: Image) -> None:
    added = size(image.root) - image.base_bytes
    print(f"base {image.base_bytes / 1e6:.0f} MB, added {added / 1e6:.0f} MB")
    assert added < 200e6


def test_the_pods_claims_hold_in_it(image: Image) -> None:
    tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/cluster/test_pods.py"]
    environment = {**os.environ, "NODEMEM_IMAGE_ROOT": str(image.root)}
    done = subprocess.run([sys.executable, *tests], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout
