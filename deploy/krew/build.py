"""``make krew``: the kubectl plugin with its Python in one archive, and krew's manifest of what was built.

An archive is for the platform it is built on, and for a C library as new as this machine's. Archives of other platforms
that are already in the output directory get into the manifest, too.
"""

import argparse
import gzip
import hashlib
import io
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
TEMPLATE = Path(__file__).with_name("nodemem.yaml")
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_ENTRY = "import sys\nfrom nodemem.cli.kubectl.main import main\nsys.exit(main())\n"


def archive_name(machine: str) -> str:
    """Raises KeyError for a machine that nobody has asked for yet."""
    return f"kubectl-nodemem-linux-{ARCHITECTURES[machine]}.tar.gz"


def build(output: Path) -> Path:
    """Raises CalledProcessError."""
    with tempfile.TemporaryDirectory() as scratch:
        entry = Path(scratch, "kubectl-nodemem.py")
        entry.write_text(_ENTRY)
        command = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level=WARN", "--onedir", "--strip"]
        command += ["--name=kubectl-nodemem", f"--paths={ROOT / 'operator'}", f"--distpath={scratch}/dist"]
        command += [f"--workpath={scratch}/work", f"--specpath={scratch}", str(entry)]
        subprocess.run(command, check=True)
        made = Path(scratch, "dist", "kubectl-nodemem")
        shutil.copy(ROOT / "LICENSE", made)
        target = output / archive_name(platform.machine())
        target.write_bytes(_packed(made))
    return target


def _packed(directory: Path) -> bytes:
    """The same bytes for the same files: no times, no owners."""
    held = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=held, mode="wb", mtime=0) as squeezed,
        tarfile.open(fileobj=squeezed, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        for path in sorted(directory.rglob("*")):
            tar.add(path, path.relative_to(directory).as_posix(), recursive=False, filter=_nobody)
    return held.getvalue()


def _nobody(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.mtime = member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def manifest(output: Path, template: Path = TEMPLATE) -> dict[str, Any]:
    """Of the archives in ``output``. Raises FileNotFoundError where there is none."""
    found: dict[str, Any] = yaml.safe_load(template.read_text())
    built = []
    for each in found["spec"]["platforms"]:
        archive = output / each["uri"].rpartition("/")[2]
        if archive.exists():
            built.append(each | {"sha256": hashlib.sha256(archive.read_bytes()).hexdigest()})
    if not built:
        raise FileNotFoundError(f"{output}: no archive of the plugin")
    found["spec"]["platforms"] = built
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the kubectl plugin's archive, and krew's manifest.")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", metavar="DIR", help="default: dist")
    output: Path = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    archive = build(output)
    path = output / "nodemem.yaml"
    path.write_text(yaml.safe_dump(manifest(output), sort_keys=False, allow_unicode=True, width=120))
    print(f"{archive}: {archive.stat().st_size / 2**20:.1f} MiB\n{path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
