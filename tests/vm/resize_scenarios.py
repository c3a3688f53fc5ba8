"""Resizing inside the guests. Arguments and return values are JSON."""

import itertools
import os
from typing import Any, Literal

from nodemem.kernel import syscalls
from nodemem.kernel.host import Host
from nodemem.kernel.mounts import MountTable
from nodemem.kernel.resize import InUse, resize

_MIB = 1 << 20
_BIND = 0x1000


def every_option(method: Literal["fspick", "mount"] | None, options: list[str]) -> dict[str, Any]:
    """tmpfs with all kinds of flags and options in a mount namespace of their own, each resized from outside to 3 MiB.

    ``options`` of which this kernel knows nothing are left out, and named in the answer.
    """
    pid, told = _container(options)
    with open(f"/proc/{pid}/mountinfo") as file:
        before = file.read()
    namespace = os.stat(f"/proc/{pid}/ns/mnt").st_ino
    found = MountTable(Host()).scan({namespace: [pid]}).superblocks.values()
    targets = [superblock for superblock in found if superblock.source == "lab"]
    done = [resize(Host(), target, size_bytes=3 * _MIB, inodes=600, method=method) for target in targets]
    with open(f"/proc/{pid}/mountinfo") as file:
        after = file.read()
    full = next(target for target in targets if target.mounts[0].path.endswith("/full"))
    words = None
    try:
        resize(Host(), full, size_bytes=5 * _MIB // 2, method=method)
    except InUse as error:
        words = str(error)
    return {
        "before": before,
        "after": after,
        "targets": len(targets),
        "methods": sorted({str(each.method) for each in done}),
        "sizes": sorted({each.after.size_bytes for each in done}),
        "inodes": sorted({each.after.inodes for each in done}),
        "in_use": words,
        "unknown": told,
    }


def _container(options: list[str]) -> tuple[int, list[str]]:
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = "the container was not set up"
        try:
            syscalls.die_with_parent(9)
            syscalls.unshare(syscalls.CLONE_NEWNS)
            syscalls.mount(None, b"/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
            said = " ".join(["ok", *_mounts(options)])
        except BaseException as error:  # noqa: BLE001 - told to the parent
            said = repr(error)
        os.write(tell, said.encode())
        while True:
            os.read(ready, 1)
    os.close(tell)
    said = os.read(ready, 4096).decode()
    assert said.split(" ")[0] == "ok", said
    return pid, said.split(" ")[1:]


def _mounts(options: list[str]) -> list[str]:
    top = "/tmp/lab"
    atimes = (syscalls.MS_RELATIME, syscalls.MS_NOATIME, syscalls.MS_STRICTATIME | syscalls.MS_NODIRATIME)
    safety = (syscalls.MS_NOSUID, syscalls.MS_NODEV, syscalls.MS_NOEXEC)
    flags = [sum(each) for count in range(4) for each in itertools.combinations(safety, count)]
    read_only = (0, syscalls.MS_RDONLY)
    for number, (safe, atime, whole, mount) in enumerate(itertools.product(flags, atimes, read_only, read_only)):
        _mount(f"{top}/flags{number}", safe | atime | whole, "size=1m,nr_inodes=50")
        if whole != mount:
            again = syscalls.MS_REMOUNT | _BIND | safe | atime | mount
            syscalls.mount(None, f"{top}/flags{number}".encode(), None, again)
    known = []
    for option in options:
        try:
            _mount(f"{top}/try", 0, f"size=1m,{option}")
        except OSError:
            continue
        known.append(option)
        syscalls.umount(f"{top}/try".encode())
    sets = [each for count in range(len(known) + 1) for each in itertools.combinations(known, count)]
    for number, chosen in enumerate(sets):
        _mount(f"{top}/options{number}", syscalls.MS_NOSUID, ",".join(("size=1m", "nr_inodes=50", *chosen)))
    _mount(f"{top}/full", 0, "size=8m,nr_inodes=50")
    with open(f"{top}/full/data", "wb") as file:
        file.write(b"x" * (5 * _MIB // 2))
    return [option for option in options if option not in known]


def _mount(path: str, flags: int, options: str) -> None:
    os.makedirs(path, exist_ok=True)
    syscalls.mount(b"lab", path.encode(), b"tmpfs", flags, options.encode())
