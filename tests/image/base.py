"""A stand-in for the base image of the Dockerfile, python:3.11-slim-bookworm, on machines without a registry.

Debian's packages by debootstrap; below /usr/local this machine's Python as the official image has it: with pip, without
byte code and without its own tests.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from debian import ensure

_PACKAGES = "ca-certificates,libbz2-1.0,libffi8,liblzma5,libncursesw6,libreadline8,libsqlite3-0,libssl3,libuuid1,zlib1g"
_VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"


def make(place: Path) -> None:
    """Takes about a minute."""
    command = [ensure("debootstrap", "debootstrap"), "--variant=minbase", f"--include={_PACKAGES}", "bookworm", place]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for each in (place / "var/cache/apt", place / "var/lib/apt/lists"):
        shutil.rmtree(each)
        each.mkdir()
    prefix, local = Path(sys.base_prefix), place / "usr/local"
    shutil.copy2(os.path.realpath(prefix / "bin" / _VERSION), local / "bin" / _VERSION)
    for name in ("python3", "python"):
        (local / "bin" / name).symlink_to(_VERSION)
    for each in (prefix / "lib").glob("libpython*"):
        shutil.copy2(each, local / "lib" / each.name, follow_symlinks=False)
    without = shutil.ignore_patterns("__pycache__", "site-packages", "test", "tests", "idlelib")
    shutil.copytree(prefix / "lib" / _VERSION, local / "lib" / _VERSION, ignore=without, symlinks=True)
    (local / "lib" / _VERSION / "site-packages").mkdir()
    for words in (["ldconfig"], ["/usr/local/bin/python", "-m", "ensurepip"]):
        subprocess.run(["chroot", place, *words], check=True, capture_output=True)
    (local / "bin/pip").symlink_to("pip3")
