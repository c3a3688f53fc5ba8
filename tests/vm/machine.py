"""Boots a Debian kernel under QEMU and runs functions inside it; results come back as JSON values.

Emulated (TCG), never KVM: it works the same on any machine, and a boot takes some seconds. A boot with several
scenarios costs little more than one, so give all that a combination of kernel, cgroup version and swap is wanted for to
one ``run``.
"""

import json
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from debian import ensure
from vm import initramfs, packages

_HERE = Path(__file__).parent
_SOURCE = _HERE.parent.parent / "operator" / "nodemem"
_PAGE = 4096

EMULATOR = ("qemu-system-x86_64", "qemu-system-x86")
"""The program, and Debian's package of it."""

_CPU = "qemu64,-cx16,+rdrand"
"""Without cmpxchg16b: QEMU 7.2 now and then leaves garbage in the flags after it, and the slab allocator dies of it."""

CONSOLE_TAIL = 6000
"""Characters of the console and of the kernel's log in a failure's message."""


class GuestError(RuntimeError):
    """The guest did not come up, or died; the message ends with what its console said last."""


class ScenarioError(AssertionError):
    """A scenario raised or hung inside the guest; the message holds its traceback and the kernel's log of that time."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What to boot. Sizes as QEMU writes them ("512M"); ``append`` goes to the kernel's command line.

    ``systemd``: systemd is the first process, with journald, and the scenarios run in a service of it; its cgroups are
    v2."""

    kernel: str
    cgroup: Literal["v1", "v2", "hybrid"] = "v2"
    memory: str = "768M"
    swap: str | None = None
    append: str = ""
    systemd: bool = False

    def __str__(self) -> str:
        return f"{self.kernel}-{self.cgroup}{'-swap' if self.swap else ''}{'-systemd' if self.systemd else ''}"


@dataclass(frozen=True, slots=True)
class Scenario:
    """A function in a module of tests/vm, to be called in the guest with JSON ``arguments``; it returns JSON values."""

    id: str
    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    module: str = "scenarios"
    timeout: float = 240.0


@dataclass(frozen=True, slots=True)
class Boot:
    """What came back. ``answers`` by scenario id, as the guest sent them."""

    machine: Machine
    release: str
    seconds: float
    answers: Mapping[str, Mapping[str, Any]]

    def value(self, scenario: str) -> Any:
        """Raises ScenarioError."""
        answer = self.answers[scenario]
        if "value" not in answer:
            raise ScenarioError(
                f"{scenario} on {self.machine} ({self.release}):\n{answer.get('error')}\n"
                f"kernel log:\n{self.log(scenario)}"
            )
        return answer["value"]

    def log(self, scenario: str) -> str:
        return str(self.answers[scenario].get("log", ""))[-CONSOLE_TAIL:]


def run(
    machine: Machine, scenarios: Sequence[Scenario], *, timeout: float = 600.0, files: Mapping[str, Path] | None = None
) -> Boot:
    """Boot, run the scenarios in order, power off. Raises GuestError, packages.FetchError, or InstallError.

    ``files``: what else the scenarios need, by its path in the guest; modules go below "scenarios".
    """
    kernel = packages.kernel(machine.kernel)
    emulator = ensure(*EMULATOR)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nodemem-vm-") as scratch:
        directory = Path(scratch)
        initrd = directory / "initrd"
        initrd.write_bytes(_userland_archive(machine) + _job_archive(machine, kernel, scenarios, files or {}))
        command = [
            *(emulator, "-accel", "tcg", "-machine", "pc", "-cpu", _CPU, "-smp", "1", "-m", machine.memory),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-kernel", str(kernel.image), "-initrd", str(initrd), "-append", _command_line(machine)),
            *("-serial", f"file:{directory}/console", "-serial", f"file:{directory}/results"),
        ]
        if machine.swap is not None:
            _make_swap(directory / "swap", _bytes(machine.swap))
            command += ["-drive", f"file={directory}/swap,if=virtio,format=raw,cache=unsafe"]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=timeout
            )
            end = "" if done.returncode == 0 else f"QEMU: {done.stderr.strip()} (exit code {done.returncode})"
        except subprocess.TimeoutExpired:
            end = f"no end after {timeout:.0f} s"
        console = _text(directory / "console")
        messages = [json.loads(line) for line in _text(directory / "results").split("\n")[:-1]]
    answers = {message["scenario"]: message for message in messages if "scenario" in message}
    boot = next((message["boot"] for message in messages if "boot" in message), None)
    if boot is None or not any("done" in message for message in messages):
        missing = [each.id for each in scenarios if each.id not in answers]
        raise GuestError(
            f"{machine} ({kernel.release}) ended without {', '.join(missing) or 'a last word'}. {end}\n"
            f"console:\n{console[-CONSOLE_TAIL:]}"
        )
    return Boot(machine, str(boot), time.monotonic() - started, answers)


def _command_line(machine: Machine) -> str:
    # swapaccount: 5.10 leaves memory.memsw.* out without it; later kernels need it no more and say so.
    first = "/lib/systemd/systemd systemd.unit=scenarios.target" if machine.systemd else "/init"
    return (
        "console=ttyS0 loglevel=4 panic=-1 nokaslr mitigations=off random.trust_cpu=on "
        f"cgroup_enable=memory swapaccount=1 log_buf_len=4M rdinit={first} {machine.append}"
    ).strip()


def _userland_archive(machine: Machine) -> bytes:
    """Kept beside the userland in the cache: building it takes longer than reading it."""
    top = packages.userland(systemd=machine.systemd)
    kept = top.parent / f"{top.name}.cpio"
    if not kept.exists():
        scratch = kept.with_suffix(f".{time.monotonic_ns()}")
        scratch.write_bytes(initramfs.archive(initramfs.tree(top)))
        scratch.replace(kept)
    return kept.read_bytes()


def _job_archive(
    machine: Machine, kernel: packages.Kernel, scenarios: Sequence[Scenario], files: Mapping[str, Path]
) -> bytes:
    job = {
        "cgroup": machine.cgroup,
        "swap": machine.swap is not None,
        "modules": [path.name for path in kernel.modules],
        "scenarios": [
            {
                "id": each.id,
                "module": each.module,
                "function": each.function,
                "arguments": dict(each.arguments),
                "timeout": each.timeout,
            }
            for each in scenarios
        ],
    }
    with tempfile.TemporaryDirectory(prefix="nodemem-vm-") as scratch:
        code = Path(scratch)
        for target, source in (_code(_SOURCE, "nodemem/nodemem") | _code(_HERE, "scenarios") | dict(files)).items():
            (code / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, code / target)
        packages.byte_compile(packages.userland(), code)
        entries = [
            *(initramfs.directory(path) for path in ("dev", "proc", "sys", "run", "tmp", "modules")),
            initramfs.character_device("dev/console", 5, 1),
            initramfs.symlink("usr/bin/python3", Path(packages.GUEST_PYTHON).name),
            initramfs.file("init", b"#!/usr/bin/python3\n" + (_HERE / "guest.py").read_bytes(), executable=True),
            initramfs.file("job.json", json.dumps(job).encode()),
            *initramfs.tree(code),
            *(initramfs.file(f"modules/{path.name}", path.read_bytes()) for path in kernel.modules),
            *(_systemd_entries() if machine.systemd else ()),
        ]
    return initramfs.archive(entries)


def _systemd_entries() -> list[bytes]:
    """What a Debian installation would have made for systemd, as far as it needs it, and the units of the test."""
    return [
        *initramfs.tree(_HERE / "systemd"),
        initramfs.file("etc/machine-id", b"0123456789abcdef0123456789abcdef\n"),
        initramfs.file("etc/os-release", b"ID=debian\nPRETTY_NAME=Debian\n"),
        initramfs.file("etc/passwd", b"root:x:0:0:root:/:/bin/false\n"),
        initramfs.file("etc/group", b"root:x:0:\nsystemd-journal:x:101:\n"),
    ]


def _code(top: Path, target: str) -> dict[str, Path]:
    return {f"{target}/{path.relative_to(top)}": path for path in sorted(top.rglob("*.py"))}


def _make_swap(path: Path, size: int) -> None:
    """What mkswap(8) writes: version, last page and signature in the first page."""
    with open(path, "wb") as file:
        file.truncate(size)
        file.seek(1024)
        file.write(struct.pack("<III", 1, size // _PAGE - 1, 0))
        file.seek(_PAGE - 10)
        file.write(b"SWAPSPACE2")


def _bytes(text: str) -> int:
    return int(text[:-1]) << {"K": 10, "M": 20, "G": 30}[text[-1]]


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
