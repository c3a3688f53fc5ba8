"""The root file system of a container: the image's, or one with the same content from what is installed here.

$NODEMEM_IMAGE_ROOT names the image's, built by ``make test-image``. The other is put together in seconds: this Python,
nodemem and what the image's requirements name, from the test environment. It has no shell and no other program.
"""

import compileall
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

ROOT = Path(__file__).parents[2]
_VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
_LEFT_OUT = shutil.ignore_patterns(
    "site-packages", "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "config-*", "*.a"
)


@contextlib.contextmanager
def image_root() -> Iterator[Path]:
    if given := os.environ.get("NODEMEM_IMAGE_ROOT"):
        yield Path(given)
        return
    root = Path(tempfile.mkdtemp(prefix="nodemem-root-", dir="/var/tmp"))
    try:
        root.chmod(0o755)
        _make(root)
        yield root
    finally:
        shutil.rmtree(root)


def _make(root: Path) -> None:
    for each in ("proc", "sys", "dev", "tmp", "run", "var", "etc", "usr/local/bin", "opt/nodemem/bin"):
        (root / each).mkdir(parents=True)
    (root / "var/run").symlink_to("/run")
    (root / "run/secrets/kubernetes.io/serviceaccount").mkdir(parents=True)
    program = root / "usr/local/bin" / _VERSION
    shutil.copy2(os.path.realpath(sys.executable), program)
    library = root / "usr/local/lib" / _VERSION
    shutil.copytree(Path(os.__file__).parent, library, ignore=_LEFT_OUT, symlinks=True)
    packages = root / "opt/nodemem/lib" / _VERSION / "site-packages"
    shutil.copytree(ROOT / "operator" / "nodemem", packages / "nodemem", ignore=shutil.ignore_patterns("__pycache__"))
    lines = (ROOT / "image-requirements.txt").read_text().splitlines()
    for name in [line.partition("==")[0] for line in lines if not line.startswith("#")]:
        _copy_distribution(name, packages)
    compileall.compile_dir(packages / "nodemem", quiet=1)
    (root / "opt/nodemem/pyvenv.cfg").write_text("home = /usr/local/bin\n")
    (root / "opt/nodemem/bin/python").symlink_to(f"/usr/local/bin/{_VERSION}")
    script = root / "opt/nodemem/bin/nodemem"
    script.write_text("#!/opt/nodemem/bin/python\nimport sys\nfrom nodemem.cli.main import main\nsys.exit(main())\n")
    script.chmod(0o755)
    for library_file in _libraries([program, *root.rglob("*.so"), *root.rglob("*.so.*")]):
        target = root / library_file.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            shutil.copy2(library_file, target)


def _copy_distribution(name: str, packages: Path) -> None:
    for each in distribution(name).files or ():
        if ".." in each.parts or "test" in each.parts:
            continue
        source = Path(str(each.locate()))
        if source.is_file():
            (packages / each).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, packages / each)


def _libraries(programs: list[Path]) -> set[Path]:
    """What the dynamic linker would load, under the names it asks for."""
    result = subprocess.run(["ldd", *programs], capture_output=True, text=True)
    return {Path(each) for each in re.findall(r"(?:=> |^\t)(/\S+) \(0x", result.stdout, re.MULTILINE)}
