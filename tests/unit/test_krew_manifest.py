"""deploy/krew/nodemem.yaml against what krew's documentation asks of a manifest, and against this project."""

import hashlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from nodemem import __version__

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "deploy" / "krew" / "nodemem.yaml"
PLATFORMS = {("linux", "amd64"), ("linux", "arm64"), ("darwin", "amd64"), ("darwin", "arm64"), ("windows", "amd64")}


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("krew_build", MANIFEST.with_name("build.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made(build: ModuleType, tmp_path: Path, *architectures: str) -> dict[str, Any]:
    for each in architectures:
        (tmp_path / f"kubectl-nodemem-linux-{each}.tar.gz").write_bytes(each.encode())
    found: dict[str, Any] = build.manifest(tmp_path)
    return found


def test_it_is_a_manifest_as_krew_documents_it(build: ModuleType, tmp_path: Path) -> None:
    found = made(build, tmp_path, "amd64", "arm64")
    assert found["apiVersion"] == "krew.googlecontainertools.github.com/v1alpha2"
    assert found["kind"] == "Plugin"
    assert found["metadata"] == {"name": MANIFEST.stem}
    spec = found["spec"]
    assert set(spec) == {"version", "homepage", "shortDescription", "description", "caveats", "platforms"}
    assert re.fullmatch(r"v\d+\.\d+\.\d+", spec["version"])
    assert "\n" not in spec["shortDescription"]
    assert len(spec["shortDescription"]) <= 70, "krew search shows it in one line"
    assert "kubectl" not in spec["shortDescription"].lower(), "the naming guide asks for it"
    for each in spec["platforms"]:
        assert set(each) == {"selector", "uri", "sha256", "bin"}
        labels = each["selector"]["matchLabels"]
        assert (labels["os"], labels["arch"]) in PLATFORMS
        assert re.fullmatch(r"[0-9a-f]{64}", each["sha256"])
        assert each["uri"].startswith("https://")
        assert each["uri"].endswith((".tar.gz", ".zip"))
        assert not each["bin"].startswith("/")
        assert ".." not in each["bin"]


def test_it_is_of_this_version_of_the_project(build: ModuleType) -> None:
    spec = yaml.safe_load(MANIFEST.read_text())["spec"]
    assert spec["version"] == f"v{__version__}"
    for each in spec["platforms"]:
        assert f"/download/v{__version__}/" in each["uri"]
        assert each["uri"].endswith(
            build.archive_name({"amd64": "x86_64", "arm64": "aarch64"}[each["selector"]["matchLabels"]["arch"]])
        )


def test_a_platform_that_was_not_built_is_not_offered(build: ModuleType, tmp_path: Path) -> None:
    (only,) = made(build, tmp_path, "amd64")["spec"]["platforms"]
    assert only["selector"]["matchLabels"]["arch"] == "amd64"
    assert only["sha256"] == hashlib.sha256(b"amd64").hexdigest()
    with pytest.raises(FileNotFoundError):
        build.manifest(tmp_path / "empty")
