"""Kernels and a small userland for the guests, fetched once by apt and kept outside the tree.

Everything comes from the mirror that this machine's own apt uses, whichever that is: its address and its settings are
asked of apt at run time. A scratch apt state is used, so nothing of the machine's own apt is changed. apt checks the
signatures and the hashes; a suite whose key this machine does not have fails with apt's words and is never fetched
unchecked.
"""

import fcntl
import json
import lzma
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

KERNEL_SUITES = ("bullseye", "bookworm", "bookworm-backports", "trixie", "sid")
USERLAND_SUITE = "bookworm"
USERLAND_PACKAGES = (
    "libc6",
    "libexpat1",
    "libffi8",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "python3.11-minimal",
    "zlib1g",
)
SYSTEMD_PACKAGES = (
    "libacl1",
    "libapparmor1",
    "libaudit1",
    "libblkid1",
    "libcap-ng0",
    "libcap2",
    "libcrypt1",
    "libfdisk1",
    "libgcc-s1",
    "libgcrypt20",
    "libgpg-error0",
    "libip4tc2",
    "libkmod2",
    "liblz4-1",
    "liblzma5",
    "libmount1",
    "libpam0g",
    "libpcre2-8-0",
    "libseccomp2",
    "libselinux1",
    "libssl3",
    "libsystemd-shared",
    "libsystemd0",
    "libuuid1",
    "libzstd1",
    "mount",
    "systemd",
)
"""systemd, journald and their programs, with the libraries that these are linked to; nothing that they only may use."""

GUEST_PYTHON = "/usr/bin/python3.11"
# The cloud flavour: the same memory management as the others in a third of the size.
KERNEL_METAPACKAGE = "linux-image-cloud-amd64"
MODULES = ("virtio_pci", "virtio_blk")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


class FetchError(RuntimeError):
    """A kernel or the userland could not be had; the message holds apt's words."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """``modules`` are in the order in which they have to be inserted."""

    suite: str
    version: str
    release: str
    image: Path
    modules: tuple[Path, ...]


def cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "nodemem" / "vm"


def kernel(suite: str, *, refresh: bool = False) -> Kernel:
    """The suite's kernel: the cached one, or with ``refresh`` the newest. Raises FetchError."""
    if suite not in KERNEL_SUITES:
        raise FetchError(f"{suite}: expected one of {', '.join(KERNEL_SUITES)}")
    with _cache_lock() as cache:
        manifest = cache / f"kernel-{suite}.json"
        if refresh or not manifest.exists():
            _fetch_kernel(cache, suite, manifest)
        found = json.loads(manifest.read_text())
        directory = cache / found["directory"]
        return Kernel(
            suite,
            found["version"],
            found["release"],
            directory / "vmlinuz",
            tuple(directory / name for name in found["modules"]),
        )


def userland(*, systemd: bool = False, refresh: bool = False) -> Path:
    """A directory with Python and the libraries that it needs, byte-compiled; with systemd, too, if that is asked for.
    Raises FetchError."""
    with _cache_lock() as cache:
        name = "systemd" if systemd else "userland"
        manifest = cache / f"{name}.json"
        if refresh or not manifest.exists():
            _fetch_userland(cache, manifest, name, USERLAND_PACKAGES + (SYSTEMD_PACKAGES if systemd else ()))
        return cache / str(json.loads(manifest.read_text())["directory"])


@contextmanager
def _cache_lock() -> Iterator[Path]:
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield cache


def _fetch_kernel(cache: Path, suite: str, manifest: Path) -> None:
    apt = _Apt(cache, suite)
    wanted = apt.kernel_packages()
    version = apt.version(wanted[0])
    with apt.unpacked(wanted) as root:
        image = next(iter([*root.glob("boot/vmlinuz-*"), *root.glob("usr/lib/modules/*/vmlinuz")]), None)
        tree = next(iter([*root.glob("lib/modules/*/kernel"), *root.glob("usr/lib/modules/*/kernel")]), None)
        if image is None or tree is None:
            raise FetchError(f"{suite}: no kernel image or no modules in {' '.join(wanted)}")
        directory = _new_directory(cache, f"kernel-{suite}-{version}")
        shutil.copyfile(image, directory / "vmlinuz")
        names = []
        for name, data in _modules_in_order(tree, MODULES):
            (directory / name).write_bytes(data)
            names.append(name)
        release = tree.parent.name
    _write_manifest(manifest, directory=directory.name, version=version, release=release, modules=names)


def _modules_in_order(tree: Path, wanted: Sequence[str]) -> list[tuple[str, bytes]]:
    """Each wanted module after all it depends on, uncompressed. One that is built in has no file and is left out."""
    files = {path.name.split(".ko")[0].replace("-", "_"): path for path in tree.rglob("*.ko*")}
    ordered: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in ordered or name not in files:
            return
        data = files[name].read_bytes()
        if files[name].suffix == ".xz":
            data = lzma.decompress(data)
        found = re.search(rb"\0depends=([^\0]*)\0", data)
        for needed in found[1].decode().split(",") if found else ():
            add(needed.replace("-", "_"))
        ordered[name] = data

    for name in wanted:
        add(name)
    return [(f"{name}.ko", data) for name, data in ordered.items()]


def _fetch_userland(cache: Path, manifest: Path, name: str, wanted: Sequence[str]) -> None:
    apt = _Apt(cache, USERLAND_SUITE)
    versions = {package: apt.version(package) for package in wanted}
    with apt.unpacked(wanted) as root:
        directory = _new_directory(cache, f"{name}-{versions.get('systemd') or versions['python3.11-minimal']}")
        for part in ("bin", "sbin", "etc", "lib", "lib64", "usr/lib", "usr/bin"):
            if (root / part).exists():
                shutil.copytree(root / part, directory / part, symlinks=True, dirs_exist_ok=True)
    for junk in ("usr/lib/x86_64-linux-gnu/gconv", "usr/lib/python3.11/lib2to3", "usr/lib/python3.11/pydoc_data"):
        shutil.rmtree(directory / junk, ignore_errors=True)
    byte_compile(directory, directory / "usr/lib/python3.11")
    _write_manifest(manifest, directory=directory.name, versions=versions)


def byte_compile(root: Path, directory: Path) -> None:
    """Compile with the guest's own interpreter; emulated, each import would cost a second more.

    Where this machine can't run it (another architecture), the guest compiles for itself.
    """
    command = [
        str(root / "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"),
        "--library-path",
        f"{root}/lib/x86_64-linux-gnu:{root}/usr/lib/x86_64-linux-gnu",
        f"{root}{GUEST_PYTHON}",
        "-I",
        "-m",
        "compileall",
        "-qq",
        "--invalidation-mode=unchecked-hash",
        "-s",
        str(root),
        "-p",
        "/",
        str(directory),
    ]
    try:
        subprocess.run(command, env={"PYTHONHOME": f"{root}/usr"}, capture_output=True, check=False)
    except OSError:
        return


class _Apt:
    """apt for one suite of the machine's Debian mirror, with its state in a scratch directory of the cache."""

    def __init__(self, cache: Path, suite: str) -> None:
        self.suite = suite
        self._state = cache / "apt" / suite
        for part in ("lists/partial", "archives/partial", "empty"):
            (self._state / part).mkdir(parents=True, exist_ok=True)
        (self._state / "status").touch()
        self._configure()
        self._run("apt-get", "-q", "update", "--error-on=any")

    def _configure(self) -> None:
        uri, signed_by = _mirror()
        (self._state / "suite.sources").write_text(
            "Types: deb\n"
            f"URIs: {uri}\n"
            f"Suites: {self.suite}\n"
            "Components: main\n"
            "Architectures: amd64\n" + (f"Signed-By: {signed_by}\n" if signed_by else "")
        )
        # APT_CONFIG is read first, so Dir::Etc::parts here keeps the machine's hooks out (some delete the machine's own
        # package cache after an update); its proxy, certificates and time-outs come along as the Acquire tree.
        settings = {
            "APT::Architecture": "amd64",
            "APT::Sandbox::User": "root",  # _apt can't enter a home directory; signatures are checked all the same
            "Dir::Etc::main": self._state / "none",
            "Dir::Etc::parts": self._state / "empty",
            "Dir::Etc::sourcelist": self._state / "suite.sources",
            "Dir::Etc::sourceparts": self._state / "empty",
            "Dir::Etc::preferences": self._state / "none",
            "Dir::Etc::preferencesparts": self._state / "empty",
            "Dir::State": self._state,
            "Dir::State::lists": self._state / "lists",
            "Dir::State::status": self._state / "status",
            "Dir::Cache": self._state,
        }
        own = "".join(f'{name} "{value}";\n' for name, value in settings.items())
        inherited = subprocess.run(["apt-config", "dump", "Acquire"], capture_output=True, text=True, check=True).stdout
        lines = [line for line in inherited.splitlines() if not line.startswith("Acquire::IndexTargets")]
        (self._state / "apt.conf").write_text(own + "\n".join(lines) + '\nAcquire::Languages "none";\n')

    def _run(self, *command: str, cwd: Path | None = None) -> str:
        return _run(command, os.environ | {"APT_CONFIG": str(self._state / "apt.conf")}, cwd)

    def _show(self, package: str) -> dict[str, str]:
        text = self._run("apt-cache", "show", "--no-all-versions", package)
        return dict(line.split(": ", 1) for line in text.splitlines() if ": " in line and not line.startswith(" "))

    def version(self, package: str) -> str:
        return self._show(package)["Version"]

    def kernel_packages(self) -> list[str]:
        """What holds the image and the modules: one package, or (from 7.x) linux-binary-*, linux-modules-*."""
        image = _named(self._show(KERNEL_METAPACKAGE)["Depends"], "linux-image-")
        depends = self._show(image[0])["Depends"]
        return _named(depends, "linux-binary-", "linux-modules-") or image

    @contextmanager
    def unpacked(self, packages: Sequence[str]) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(dir=self._state) as scratch:
            downloads = Path(scratch, "download")
            root = Path(scratch, "root")
            downloads.mkdir()
            root.mkdir()
            self._run("apt-get", "-q", "download", *packages, cwd=downloads)
            for package in sorted(downloads.glob("*.deb")):
                _run(["dpkg", "-x", str(package), str(root)])
            yield root
        shutil.rmtree(self._state)  # package lists: large, and fetched anew for the next refresh anyway


def _named(depends: str, *prefixes: str) -> list[str]:
    names = [item.split()[0] for item in depends.split(",") if item.strip()]
    return [name for name in names if name.startswith(prefixes)]


def _mirror() -> tuple[str, str]:
    """URI and keyring of the Debian archive this machine installs from: the source that holds its own release."""
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line).get(
        "VERSION_CODENAME", ""
    )
    listing = _run(
        ["apt-get", "indextargets", "Created-By: Packages", "--format", "$(RELEASE)|$(COMPONENT)|$(REPO_URI)"]
    )
    for line in listing.splitlines():
        suite, component, uri = line.split("|", 2)
        if suite == release and component == "main":
            return uri, KEYRING if Path(KEYRING).exists() else ""
    raise FetchError(f"this machine's apt has no source for its own release {release!r}, so there is no mirror to ask")


def _run(command: Sequence[str], environment: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(
            command, env=environment, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
    except FileNotFoundError as error:
        raise FetchError(f"{command[0]}: not found; fetching kernels needs a Debian machine") from error
    if done.returncode:
        raise FetchError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def _new_directory(cache: Path, name: str) -> Path:
    directory = cache / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


def _write_manifest(path: Path, **values: object) -> None:
    scratch = path.with_suffix(".new")
    scratch.write_text(json.dumps(values, indent=1))
    scratch.replace(path)
