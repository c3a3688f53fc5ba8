"""Programs and files of Debian's packages that tests use: those installed, else apt installs them, which is said."""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path


class InstallError(RuntimeError):
    """A program could not be had; the message holds apt's words."""


def ensure(program: str, package: str) -> str:
    """The path of ``program``. As root on a Debian machine without it, apt installs ``package``, and says so first.

    Several test runs may ask at once: one installs, the others wait. Raises InstallError.
    """
    return _ensure(lambda: shutil.which(program), program, package)


def ensure_file(path: str, package: str) -> str:
    """The same for a file that is no program."""
    return _ensure(lambda: path if os.path.exists(path) else None, path, package)


def _ensure(find: Callable[[], str | None], what: str, package: str) -> str:
    if found := find():
        return found
    if os.geteuid() != 0:
        raise InstallError(f"{what} is not installed; run: apt-get install {package}")
    with open(Path(tempfile.gettempdir(), "nodemem-apt.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if found := find():
            return found
        print(f"tests: installing {package} with apt-get, for {what}", file=sys.stderr, flush=True)
        # The lists may be missing or old; one of the machine's other sources may be out of order: installing tells.
        _apt("update", check=False)
        _apt("install", "--yes", "--no-install-recommends", package)
    if found := find():
        return found
    raise InstallError(f"{what}: still not there after apt-get install {package}")


def _apt(*words: str, check: bool = True) -> None:
    command = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300", *words]
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise InstallError("apt-get: not found; the tests install what they need on Debian only") from error
    if check and done.returncode:
        raise InstallError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
