"""Live tmpfs in mount namespaces of our own, resized from outside by both methods. Needs root."""

import ctypes
import errno
import hashlib
import itertools
import json
import mmap
import os
import random
import re
import signal
import struct
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kernel import workloads
from kernel.mountlab import MIB, MS_BIND, Lab, bind, fill, mount_namespace, tmpfs, unmount
from nodemem.cli.main import main
from nodemem.kernel import syscalls
from nodemem.kernel.host import Host
from nodemem.kernel.mounts import MountTable, Superblock
from nodemem.kernel.resize import Failed, InUse, Method, Reason, Refused, ResizeError, resize

METHODS: tuple[Method, ...] = ("fspick", "mount")
PAGE = os.sysconf("SC_PAGE_SIZE")
MS_MOVE = 0x2000


def superblocks(lab: Lab) -> dict[str, Superblock]:
    return MountTable(Host()).scan({lab.namespace: [lab.pid]}).superblocks


def superblock(lab: Lab, path: Path | str) -> Superblock:
    """The one whose mount at the path was made first."""
    found = superblocks(lab).values()
    return min((point.mount_id, sb.device, sb) for sb in found for point in sb.mounts if point.path == str(path))[2]


def size_inside(lab: Lab, path: Path | str) -> int:
    def look() -> int:
        vfs = os.statvfs(path)
        return vfs.f_blocks * vfs.f_frsize

    size: int = lab.run(look)
    return size


def shown(lab: Lab) -> bytes:
    """The lab's own lines of mountinfo; others may change theirs at any time."""
    return b"\n".join(
        line for line in lab.mountinfo().splitlines() if line.partition(b" - ")[2].split(b" ")[1] == b"lab"
    )


def without_sizes(mountinfo: bytes) -> bytes:
    return re.sub(rb",size=[0-9]+k", b"", mountinfo)


def mount_with(path: Path | str, flags: int, options: str) -> None:
    os.makedirs(path, exist_ok=True)
    syscalls.mount(b"lab", os.fsencode(path), b"tmpfs", flags, options.encode())


@contextmanager
def one(path: Path, options: str = "size=16m", setup: Callable[[], Any] = lambda: None) -> Iterator[Lab]:
    def make() -> None:
        tmpfs(path, options)
        setup()

    with mount_namespace(make) as lab:
        yield lab


# --- what is changed, and what is not


@pytest.mark.parametrize("method", METHODS)
def test_every_combination_of_mount_flags_is_kept(tmp_path: Path, method: Method) -> None:
    """Including read-only mounts of a writable tmpfs, and the other way round."""
    safety = (syscalls.MS_NOSUID, syscalls.MS_NODEV, syscalls.MS_NOEXEC, syscalls.MS_NOSYMFOLLOW)
    atimes = (
        syscalls.MS_RELATIME,
        syscalls.MS_NOATIME,
        syscalls.MS_STRICTATIME,
        syscalls.MS_NODIRATIME | syscalls.MS_RELATIME,
        syscalls.MS_NODIRATIME | syscalls.MS_NOATIME,
        syscalls.MS_NODIRATIME | syscalls.MS_STRICTATIME,
    )
    chosen = [
        (sum(flags), atime, filesystem_ro, mount_ro)
        for count in range(len(safety) + 1)
        for flags in itertools.combinations(safety, count)
        for atime in atimes
        for filesystem_ro in (0, syscalls.MS_RDONLY)
        for mount_ro in (0, syscalls.MS_RDONLY)
    ]

    def make() -> None:
        for number, (flags, atime, filesystem_ro, mount_ro) in enumerate(chosen):
            path = tmp_path / str(number)
            mount_with(path, flags | atime | filesystem_ro, "size=1m")
            if filesystem_ro != mount_ro:
                again = syscalls.MS_REMOUNT | MS_BIND | flags | atime | mount_ro
                syscalls.mount(None, os.fsencode(path), None, again)

    with mount_namespace(make) as lab:
        before = shown(lab)
        combinations = {line.split(b" ")[5] + b" " + line.split(b" ")[9][:2] for line in before.splitlines()}
        assert len(combinations) == len(chosen) == 16 * 6 * 4  # the kernel does show each of them as different
        targets = [sb for sb in superblocks(lab).values() if sb.source == "lab"]
        assert len(targets) == len(chosen)
        for target in targets:
            done = resize(Host(), target, size_bytes=3 * MIB, method=method)
            assert (done.method, done.after.size_bytes) == (method, 3 * MIB)
        after = shown(lab)
        assert after.count(b"size=3072k") == len(chosen)
        assert without_sizes(after) == without_sizes(before)


@pytest.mark.parametrize("method", METHODS)
def test_every_combination_of_filesystem_options_is_kept(tmp_path: Path, method: Method) -> None:
    words = ("mode=750", "uid=123", "gid=456", "nr_inodes=1234", "huge=within_size", "noswap", "mpol=bind:0")
    sets = [chosen for count in range(len(words) + 1) for chosen in itertools.combinations(words, count)]
    flags = (syscalls.MS_SYNCHRONOUS, syscalls.MS_DIRSYNC, syscalls.MS_LAZYTIME)
    flag_sets = [sum(chosen) for count in range(len(flags) + 1) for chosen in itertools.combinations(flags, count)]

    def make() -> None:
        for number, chosen in enumerate(sets):
            mount_with(tmp_path / f"o{number}", 0, ",".join(("size=1m", *chosen)))
        for number, chosen_flags in enumerate(flag_sets):
            mount_with(tmp_path / f"f{number}", chosen_flags, "size=1m,mode=711,noswap")

    def roots() -> list[list[int]]:
        found = (os.stat(tmp_path / name) for name in sorted(os.listdir(tmp_path)))
        return [[st.st_mode, st.st_uid, st.st_gid] for st in found]

    with mount_namespace(make) as lab:
        before, roots_before = shown(lab), lab.run(roots)
        targets = [sb for sb in superblocks(lab).values() if sb.source == "lab"]
        assert len({sb.options for sb in targets}) == len(targets) == len(sets) + len(flag_sets)  # all are shown
        for target in targets:
            resize(Host(), target, size_bytes=3 * MIB, method=method)
        after = shown(lab)
        assert after.count(b"size=3072k") == len(targets)
        assert without_sizes(after) == without_sizes(before)
        assert lab.run(roots) == roots_before


@pytest.mark.parametrize("method", METHODS)
def test_inodes_and_size_are_set_together_or_alone(tmp_path: Path, method: Method) -> None:
    with one(tmp_path / "t", "size=16m,nr_inodes=500") as lab:
        target = superblock(lab, tmp_path / "t")
        done = resize(Host(), target, inodes=300, method=method)
        assert (done.after.inodes, done.after.size_bytes, done.requested.size_bytes) == (300, 16 * MIB, None)
        done = resize(Host(), target, size_bytes=8 * MIB, method=method)
        assert (done.after.inodes, done.after.size_bytes) == (300, 8 * MIB)
        done = resize(Host(), target, size_bytes=32 * MIB, inodes=700, method=method)
        assert (done.before.inodes, done.after.inodes, done.after.size_bytes) == (300, 700, 32 * MIB)
        assert f"{target.device} / {tmp_path}/t rw,relatime - tmpfs lab rw,size=32768k,nr_inodes=700".encode() in (
            shown(lab)
        )


def test_odd_sizes_are_rounded_up_to_pages_as_the_kernel_does(tmp_path: Path) -> None:
    with one(tmp_path / "t") as lab:
        done = resize(Host(), superblock(lab, tmp_path / "t"), size_bytes=5 * MIB + 1)
        assert done.requested.size_bytes == done.after.size_bytes == size_inside(lab, tmp_path / "t") == 5 * MIB + PAGE
        assert resize(Host(), superblock(lab, tmp_path / "t"), size_bytes=1).after.size_bytes == PAGE


@pytest.mark.parametrize("method", METHODS)
def test_same_size_again_does_nothing(tmp_path: Path, method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    with one(tmp_path / "t", "size=16m,nr_inodes=500") as lab:
        target = superblock(lab, tmp_path / "t")
        assert resize(Host(), target, size_bytes=9 * MIB, method=method).changed
        for name in ("fspick", "mount"):
            monkeypatch.setattr(syscalls, name, lambda *_: pytest.fail("the kernel was asked to change something"))
        done = resize(Host(), target, size_bytes=9 * MIB - 1, inodes=500, method=method)
        assert (done.changed, done.method, done.before) == (False, None, done.after)


@pytest.mark.parametrize("method", [None, *METHODS])
def test_dry_run_says_what_would_be_and_changes_nothing(tmp_path: Path, method: Method | None) -> None:
    with one(tmp_path / "t", "size=16m", lambda: fill(tmp_path / "t/data", 4 * MIB)) as lab:
        target, before = superblock(lab, tmp_path / "t"), shown(lab)
        done = resize(Host(), target, size_bytes=8 * MIB, method=method, dry_run=True)
        assert (done.before.size_bytes, done.after.size_bytes, done.after.used_bytes) == (16 * MIB, 8 * MIB, 4 * MIB)
        assert (done.dry_run, done.method) == (True, method or "fspick")
        with pytest.raises(InUse):
            resize(Host(), target, size_bytes=3 * MIB, method=method, dry_run=True)
        assert shown(lab) == before


@pytest.mark.parametrize("method", METHODS)
def test_tmpfs_below_another_mount_is_resized_and_the_one_above_is_not(tmp_path: Path, method: Method) -> None:
    path = tmp_path / "t"

    def cover() -> None:
        fill(path / "data", 2 * MIB)
        tmpfs(path, "size=5m")

    with one(path, "size=16m", cover) as lab:
        target, before = superblock(lab, path), shown(lab)
        assert target.access_path is None
        done = resize(Host(), target, size_bytes=8 * MIB, method=method)
        assert (done.before.size_bytes, done.after.size_bytes, done.after.used_bytes) == (16 * MIB, 8 * MIB, 2 * MIB)
        assert (done.mount_point, done.method) == (str(path), method)
        assert shown(lab) == before.replace(b"size=16384k", b"size=8192k")
        with pytest.raises(InUse, match=r"holds 2\.0 MiB, with 10 % headroom 2\.2 MiB") as caught:
            resize(Host(), target, size_bytes=MIB, method=method)
        assert (caught.value.fits_bytes, caught.value.fits_inodes) == (-(-int(2.2 * MIB) // PAGE) * PAGE, 3)
        assert size_inside(lab, path) == 5 * MIB


@pytest.mark.parametrize("method", METHODS)
def test_tmpfs_reached_only_through_a_bind_mount_of_a_directory_in_it_is_resized(
    tmp_path: Path, method: Method
) -> None:
    def rebind() -> None:
        os.makedirs(tmp_path / "t/sub")
        os.makedirs(tmp_path / "only")
        bind(tmp_path / "t/sub", tmp_path / "only")
        syscalls.mount(None, os.fsencode(tmp_path / "only"), None, syscalls.MS_REMOUNT | MS_BIND | syscalls.MS_RDONLY)
        unmount(tmp_path / "t")

    with one(tmp_path / "t", "size=16m", rebind) as lab:
        before = shown(lab)
        assert resize(Host(), superblock(lab, tmp_path / "only"), size_bytes=4 * MIB, method=method).changed
        assert size_inside(lab, tmp_path / "only") == 4 * MIB
        assert shown(lab) == before.replace(b"size=16384k", b"size=4096k")


def test_tmpfs_reached_only_through_a_bind_mounted_file_is_resized_by_fspick_alone(tmp_path: Path) -> None:
    def rebind() -> None:
        fill(tmp_path / "t/file", 100)
        fill(tmp_path / "only", 0)
        bind(tmp_path / "t/file", tmp_path / "only")
        unmount(tmp_path / "t")

    with one(tmp_path / "t", "size=16m", rebind) as lab:
        target = superblock(lab, tmp_path / "only")
        with pytest.raises(Failed, match="mounted as a single file") as caught:
            resize(Host(), target, size_bytes=4 * MIB, method="mount")
        assert caught.value.reason is Reason.UNREACHABLE
        assert resize(Host(), target, size_bytes=4 * MIB).after.size_bytes == 4 * MIB


@pytest.mark.parametrize("method", METHODS)
def test_nothing_of_it_reaches_namespaces_that_share_the_mount(tmp_path: Path, method: Method) -> None:
    """The filesystem is one; the mount flags and the mounts of the others stay theirs."""
    path = tmp_path / "t"

    def make() -> None:
        tmpfs(tmp_path / "shared", "size=16m")
        syscalls.mount(None, os.fsencode(tmp_path / "shared"), None, 0x100000)
        os.makedirs(tmp_path / "shared/t")
        tmpfs(tmp_path / "shared/t", "size=8m,mode=700")

    def stricter() -> None:
        flags = syscalls.MS_REMOUNT | MS_BIND | syscalls.MS_RDONLY | syscalls.MS_NOEXEC
        syscalls.mount(None, os.fsencode(path), None, flags)

    path = tmp_path / "shared/t"
    with mount_namespace(make) as first, mount_namespace(stricter, copy_of=first) as second:
        before = shown(first), shown(second)
        assert resize(Host(), superblock(second, path), size_bytes=4 * MIB, method=method).changed
        assert before == tuple(
            shown(lab).replace(b"size=4096k,mode=700", b"size=8192k,mode=700") for lab in (first, second)
        )
        assert size_inside(first, path) == size_inside(second, path) == 4 * MIB


@pytest.mark.parametrize("method", METHODS)
def test_tmpfs_mounted_inside_a_user_namespace_is_resized_from_the_hosts(tmp_path: Path, method: Method) -> None:
    def own_users() -> None:
        syscalls.unshare(0x10000000 | syscalls.CLONE_NEWNS)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text("0 0 1")
        Path("/proc/self/gid_map").write_text("0 0 1")
        mount_with(tmp_path / "inner", syscalls.MS_NOSUID | syscalls.MS_NOATIME, "size=16m,mode=700")

    with one(tmp_path / "t", "size=16m,nr_inodes=70", own_users) as lab:
        before = shown(lab)
        for name in ("t", "inner"):
            assert resize(Host(), superblock(lab, tmp_path / name), size_bytes=4 * MIB, method=method).changed
        assert shown(lab) == before.replace(b"size=16384k", b"size=4096k")


# --- what is refused


@pytest.mark.parametrize("method", METHODS)
def test_limit_is_not_lowered_below_what_is_in_use_and_headroom(tmp_path: Path, method: Method) -> None:
    with one(tmp_path / "t", "size=16m,nr_inodes=100", lambda: fill(tmp_path / "t/data", 10 * MIB)) as lab:
        target = superblock(lab, tmp_path / "t")
        with pytest.raises(InUse) as caught:
            resize(Host(), target, size_bytes=11 * MIB - PAGE, method=method)
        assert str(caught.value) == (
            f"{tmp_path}/t ({target.device}) holds 10.0 MiB, with 10 % headroom 11.0 MiB: more than the 11.0 MiB asked "
            "for; free some of it, or write at least 11Mi"
        )
        assert (caught.value.reason, caught.value.fits_bytes, caught.value.kernel_words) == (
            Reason.IN_USE,
            11 * MIB,
            None,
        )
        with pytest.raises(InUse, match="has 2 inodes in use, with 50 % headroom 3: more than the 2 asked for"):
            resize(Host(), target, inodes=2, headroom_percent=50, method=method)
        with pytest.raises(InUse, match=r"holds 10\.0 MiB: more than the 9\.0 MiB asked for"):
            resize(Host(), target, size_bytes=9 * MIB, headroom_percent=0, method=method)
        assert size_inside(lab, tmp_path / "t") == 16 * MIB
        assert resize(Host(), target, size_bytes=11 * MIB, method=method).changed


def test_limit_may_always_be_raised_even_where_headroom_is_short(tmp_path: Path) -> None:
    with one(tmp_path / "t", "size=10m", lambda: fill(tmp_path / "t/data", 10 * MIB)) as lab:
        target = superblock(lab, tmp_path / "t")
        assert not resize(Host(), target, size_bytes=10 * MIB).changed
        assert resize(Host(), target, size_bytes=10 * MIB + PAGE).after.size_bytes == 10 * MIB + PAGE


@pytest.mark.parametrize("covered", [False, True])
@pytest.mark.parametrize(("method", "words"), [("fspick", "tmpfs: Too small a size for current use"), ("mount", None)])
def test_kernel_refuses_in_its_words_when_a_writer_was_faster_than_the_check(
    tmp_path: Path, method: Method, words: str | None, covered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t"
    with one(path, "size=16m") as lab:
        data = Path(f"/proc/{lab.pid}/root{path}/data")
        file = data.open("wb", buffering=0)
        if covered:
            lab.run(lambda: tmpfs(path, "size=5m"))
        for name in ("fspick", "mount"):
            monkeypatch.setattr(syscalls, name, writing_first(getattr(syscalls, name), file, 6 * MIB))
        with file, pytest.raises(InUse) as caught:
            resize(Host(), superblock(lab, path), size_bytes=5 * MIB, method=method)
        assert caught.value.kernel_words == (words or "Invalid argument")
        assert str(caught.value).endswith(f"6.0 MiB and 2 inodes, and the kernel refused: {caught.value.kernel_words}")
        assert b"size=16384k" in shown(lab)


def writing_first(call: Callable[..., Any], file: Any, size: int) -> Callable[..., Any]:
    def write_then_call(*arguments: Any) -> Any:
        if call.__name__ == "fspick" or arguments[2] == b"tmpfs":
            os.pwrite(file.fileno(), b"x" * size, 0)
        return call(*arguments)

    return write_then_call


@pytest.mark.parametrize(
    ("option", "wish", "words"),
    [
        ("size=0", {"size_bytes": MIB}, "mounted without a limit (size=0)"),
        ("size=1m,nr_inodes=0", {"inodes": 100}, "mount it anew with nr_inodes=100"),
    ],
)
def test_tmpfs_without_a_limit_can_not_be_given_one(
    tmp_path: Path, option: str, wish: dict[str, int], words: str
) -> None:
    """The kernel's "Cannot retroactively limit size", explained."""
    with one(tmp_path / "t", option) as lab:
        for dry_run in (False, True):
            with pytest.raises(Refused, match=re.escape(words)) as caught:
                resize(Host(), superblock(lab, tmp_path / "t"), dry_run=dry_run, **wish)
            assert caught.value.reason is Reason.UNLIMITED


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"size_bytes": 0}, "a size of 0 would lift the limit for good"),
        ({"size_bytes": -1}, "a size of -1 would lift"),
        ({"size_bytes": 1 << 64}, "write one below 8Ei"),
        ({"inodes": 0}, "0 inodes would lift that limit for good"),
        ({"size_bytes": MIB, "inodes": 1 << 64}, "inodes are too many"),
    ],
)
def test_sizes_that_the_kernel_would_take_for_no_limit_are_refused(
    tmp_path: Path, wish: dict[str, int], words: str
) -> None:
    with one(tmp_path / "t") as lab:
        with pytest.raises(Refused, match=words) as caught:
            resize(Host(), superblock(lab, tmp_path / "t"), **wish)
        assert caught.value.reason is Reason.BAD_SIZE
        assert size_inside(lab, tmp_path / "t") == 16 * MIB


def test_devtmpfs_and_the_root_of_the_cgroup_hierarchies_are_refused(tmp_path: Path) -> None:
    def make() -> None:
        os.makedirs(tmp_path / "dev")
        syscalls.mount(b"lab", os.fsencode(tmp_path / "dev"), b"devtmpfs", 0)
        tmpfs("/sys/fs/cgroup", "size=4m")

    with mount_namespace(make) as lab:
        before = shown(lab)
        for path, reason in ((tmp_path / "dev", Reason.DEVTMPFS), ("/sys/fs/cgroup", Reason.CGROUP_ROOT)):
            target = max(
                (point.mount_id, sb.device, sb)
                for sb in superblocks(lab).values()
                for point in sb.mounts
                if point.path == str(path)
            )[2]
            with pytest.raises(Refused) as caught:
                resize(Host(), target, size_bytes=64 << 30)
            assert caught.value.reason is reason
        assert shown(lab) == before


def test_filesystem_of_another_kind_behind_a_tmpfs_device_number_is_not_touched(tmp_path: Path) -> None:
    """What a scan of the past says is not believed: the descriptor is asked."""

    def make() -> None:
        os.makedirs(tmp_path / "ramfs")
        syscalls.mount(b"lab", os.fsencode(tmp_path / "ramfs"), b"ramfs", 0)

    with one(tmp_path / "t", setup=make) as lab:
        target = superblock(lab, tmp_path / "t")
        place = f"/proc/{lab.pid}/root{tmp_path}/ramfs"
        device = os.stat(place).st_dev
        lie = replace(target, device=f"{os.major(device)}:{os.minor(device)}", access_path=place)
        with pytest.raises(Failed, match="something else is there") as caught:
            resize(Host(), lie, size_bytes=MIB)
        assert caught.value.reason is Reason.GONE
        with pytest.raises(Refused, match="is ramfs, not tmpfs"):
            resize(Host(), replace(lie, fstype="ramfs"), size_bytes=MIB)


def test_callers_veto_and_its_own_namespace_are_respected(tmp_path: Path) -> None:
    with one(tmp_path / "t") as lab:
        target = superblock(lab, tmp_path / "t")
        with pytest.raises(Refused, match="a secret of pod x") as caught:
            resize(Host(), target, size_bytes=MIB, refuse=lambda sb: f"{sb.device} is a secret of pod x")
        assert caught.value.reason is Reason.PROTECTED
        with pytest.raises(Refused, match="in the container that would resize it") as caught:
            resize(Host(), target, size_bytes=MIB, protect_namespace=lab.namespace)
        assert caught.value.reason is Reason.OWN_NAMESPACE
        assert size_inside(lab, tmp_path / "t") == 16 * MIB
        own = os.stat("/proc/self/ns/mnt").st_ino
        assert resize(Host(), target, size_bytes=MIB, refuse=lambda _: None, protect_namespace=own).changed


def test_hosts_tmpfs_of_which_a_runtime_binds_a_file_into_the_callers_container_is_not_its_own(tmp_path: Path) -> None:
    """As CRI-O does with /etc/resolv.conf from /run."""

    def bind_file() -> None:
        fill(tmp_path / "t/resolv.conf", 10)
        fill(tmp_path / "resolv.conf", 0)
        bind(tmp_path / "t/resolv.conf", tmp_path / "resolv.conf")

    with (
        one(tmp_path / "t", setup=bind_file) as host_side,
        mount_namespace(lambda: unmount(tmp_path / "t"), copy_of=host_side) as agent,
    ):
        both = MountTable(Host()).scan({lab.namespace: [lab.pid] for lab in (host_side, agent)}).superblocks
        target = both[superblock(host_side, tmp_path / "t").device]
        assert agent.namespace in {point.namespace for point in target.mounts}
        assert resize(Host(), target, size_bytes=MIB, protect_namespace=agent.namespace).changed


def test_volume_that_a_container_puts_over_its_cgroups_is_no_cgroup_root(tmp_path: Path) -> None:
    def put_there() -> None:
        fill(tmp_path / "t/data", 2 * MIB)
        bind(tmp_path / "t", "/sys/fs/cgroup")

    with one(tmp_path / "t", setup=put_there) as lab:
        assert resize(Host(), superblock(lab, tmp_path / "t"), size_bytes=4 * MIB).changed


@pytest.mark.parametrize("method", [None, *METHODS])
def test_unprivileged_caller_is_told_what_it_needs(method: Method | None) -> None:
    """Both where it may not even look, and where it can see the mount but not change it."""
    with workloads.directory() as top, one(Path(top) / "t") as lab:
        os.chmod(top, 0o755)
        foreign = superblock(lab, f"{top}/t")

        def attempt() -> list[list[str]]:
            syscalls.setns(os.open(f"/proc/{lab.pid}/ns/mnt", os.O_RDONLY))
            workloads.drop_privileges()
            own = os.stat("/proc/self/ns/mnt").st_ino
            near = MountTable(Host()).scan({own: [os.getpid()]}).superblocks[foreign.device]
            said = []
            for target in (foreign, near):
                for dry_run in (False, True):
                    with pytest.raises(ResizeError) as caught:
                        resize(Host(), target, size_bytes=MIB, method=method, dry_run=dry_run)
                    said.append([str(caught.value.reason), str(caught.value)])
            return said

        answers = workloads.run(attempt)
        assert [reason for reason, _ in answers] == ["NotPermitted"] * 4
        for _, sentence in answers:
            assert "resizing a tmpfs needs root with CAP_SYS_ADMIN, CAP_SYS_PTRACE and CAP_SYS_CHROOT" in sentence
        assert size_inside(lab, f"{top}/t") == 16 * MIB


# --- kernels and containers without fspick


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
def test_where_fspick_is_missing_or_filtered_mount_does_it(tmp_path: Path, number: int) -> None:
    """A seccomp filter answers as a kernel before 5.2, or a profile that is older than the call, does."""
    with one(tmp_path / "t", "size=16m,mode=700,nr_inodes=99") as lab:
        target, before = superblock(lab, tmp_path / "t"), shown(lab)

        def attempt() -> list[Any]:
            answer_to_call(433, number)
            dry = resize(Host(), target, size_bytes=4 * MIB, dry_run=True)
            done = resize(Host(), target, size_bytes=4 * MIB)
            return [dry.method, done.method, done.after.size_bytes]

        assert workloads.run(attempt) == ["mount", "mount", 4 * MIB]
        assert shown(lab) == before.replace(b"size=16384k,nr_inodes=99", b"size=4096k,nr_inodes=99")


def answer_to_call(call: int, number: int) -> None:
    """From now on this process gets ``number`` as the errno of one system call."""
    program = b"".join(
        struct.pack("=HBBI", *line)
        for line in (
            (0x20, 0, 0, 0),  # load the call's number
            (0x15, 0, 1, call),
            (0x06, 0, 0, 0x00050000 | number),
            (0x06, 0, 0, 0x7FFF0000),
        )
    )
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(program)
    descriptor = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    assert libc.prctl(38, ctypes.c_ulong(1), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) == 0
    assert libc.prctl(22, ctypes.c_ulong(2), descriptor) == 0, os.strerror(ctypes.get_errno())


# --- a container that swaps the path


def swap_for_symlink(base: Path) -> None:
    os.rename(base / "x", base / "away")
    os.symlink("victims", base / "x")


def swap_for_bind_mount(base: Path) -> None:
    bind(base / "victims/t", base / "x/t")


def swap_for_new_tmpfs(base: Path) -> None:
    mount_with(base / "x/t", 0, "size=6m,mode=711")


def swap_for_other_filesystem(base: Path) -> None:
    syscalls.mount(b"lab", os.fsencode(base / "x/t"), b"ramfs", 0)


def swap_for_tmpfs_with_the_same_numbers(base: Path) -> None:
    unmount(base / "x/t")
    mount_with(base / "x/t", 0, "size=6m,mode=711")


def swap_places(base: Path) -> None:
    os.makedirs(base / "moved")
    for source, target in (("x/t", "moved"), ("victims/t", "x/t")):
        syscalls.mount(os.fsencode(base / source), os.fsencode(base / target), None, MS_MOVE)


SWAPS = (
    swap_for_symlink,
    swap_for_bind_mount,
    swap_for_new_tmpfs,
    swap_for_other_filesystem,
    swap_for_tmpfs_with_the_same_numbers,
    swap_places,
)


@contextmanager
def hostile(tmp_path: Path) -> Iterator[tuple[Lab, Path]]:
    """``x/t`` is the tmpfs to be resized (16 MiB), ``victims/t`` another (7 MiB)."""
    base = tmp_path / "base"

    def make() -> None:
        os.makedirs(base)
        tmpfs(base, "size=1m")
        syscalls.mount(None, os.fsencode(base), None, syscalls.MS_PRIVATE)
        tmpfs(base / "x/t", "size=16m,mode=700")
        tmpfs(base / "victims/t", "size=7m,mode=701")

    with mount_namespace(make) as lab:
        yield lab, base


def sizes(lab: Lab) -> dict[tuple[str, str], list[str]]:
    """(mode, root directory of the mount) of each tmpfs -> the sizes shown for it."""
    found: dict[tuple[str, str], list[str]] = {}
    for line in shown(lab).decode().splitlines():
        head, _, tail = line.partition(" - tmpfs lab ")
        if match := re.search(r"size=([0-9]+k),mode=(7..)", tail):
            found.setdefault((match[2], head.split()[3]), []).append(match[1])
    return found


@pytest.mark.parametrize("moment", ["before open", "after open", "before the change"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("swap", SWAPS)
def test_path_swapped_at_a_given_moment_never_gets_another_filesystem_resized(
    tmp_path: Path, swap: Callable[[Path], None], method: Method, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hostile(tmp_path) as (lab, base):
        target = superblock(lab, base / "x/t")
        pin = os.open(f"/proc/{lab.pid}/root{base}/x/t", os.O_PATH) if moment != "before open" else -1
        done: list[int] = []

        def once(call: Callable[..., Any], *, after: bool) -> Callable[..., Any]:
            def interposed(*arguments: Any, **more: Any) -> Any:
                result = call(*arguments, **more) if after else None
                if not done:
                    done.append(1)
                    lab.run(lambda: swap(base))
                return result if after else call(*arguments, **more)

            return interposed

        if moment == "before the change":
            monkeypatch.setattr(syscalls, "fspick", once(syscalls.fspick, after=False))
            if method == "mount":
                from nodemem.kernel import resize as module

                monkeypatch.setattr(module, "in_namespaces", once(module.in_namespaces, after=False))
        else:
            monkeypatch.setattr(syscalls, "open_beneath", once(syscalls.open_beneath, after=moment == "after open"))
        outcome = "resized"
        try:
            resize(Host(), target, size_bytes=3 * MIB, method=method)
        except ResizeError as error:
            outcome = str(error.reason)
        assert done
        assert outcome in ("resized", "Gone"), outcome
        after = sizes(lab)
        assert after.get(("701", "/"), ["7168k"]) == ["7168k"] * len(after.get(("701", "/"), ["7168k"]))
        assert after.get(("711", "/"), ["6144k"]) == ["6144k"]
        if pin >= 0:
            vfs = os.statvfs(f"/proc/self/fd/{pin}")
            assert vfs.f_blocks * vfs.f_frsize == (3 * MIB if outcome == "resized" else 16 * MIB)
            os.close(pin)
        if moment == "before open":
            assert outcome == "Gone"
        elif method == "fspick" and moment == "before the change":
            assert outcome == "resized"


@contextmanager
def busy(lab: Lab, work: Callable[[Callable[[], bool]], Any]) -> Iterator[Callable[[], Any]]:
    """``work(stopped)`` in a process inside the lab, beside this one; the yielded function stops it for its result."""
    reader, writer = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        stop: list[int] = []
        answer: dict[str, Any] = {}
        try:
            signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
            os.write(writer, b" ")
            syscalls.die_with_parent(signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
            syscalls.setns(os.open(f"/proc/{lab.pid}/ns/mnt", os.O_RDONLY))
            answer = {"value": work(lambda: bool(stop))}
        except BaseException:  # noqa: BLE001 - told to the parent
            answer = {"error": traceback.format_exc()}
        finally:
            os.write(writer, json.dumps(answer).encode())
            os._exit(0)
    os.close(writer)
    assert os.read(reader, 1) == b" "  # it can be told to stop

    def finish() -> Any:
        os.kill(pid, signal.SIGTERM)
        with open(reader, "rb", closefd=False) as file:
            answer = json.loads(file.read())
        assert "error" not in answer, answer["error"]
        return answer["value"]

    try:
        yield finish
    finally:
        os.close(reader)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def swap_for_ever(base: Path, stopped: Callable[[], bool]) -> dict[str, int]:
    """Each way of putting something else in the place of ``x/t`` and back; ``y/t`` is unmounted and mounted anew, as
    the tmpfs it was or as another with the same device number and mount id. Counts rounds, and others resized."""
    count = {"rounds": 0, "resized": 0}
    x, y, victim, parked = base / "x/t", base / "y/t", base / "victims/t", base / "parked"

    def check(path: Path, size: int) -> None:
        vfs = os.statvfs(path)
        count["resized"] += vfs.f_blocks * vfs.f_frsize != size

    while not stopped():
        swap_for_symlink(base)
        os.unlink(base / "x")
        os.rename(base / "away", base / "x")
        swap_for_bind_mount(base)
        check(x, 7 * MIB)
        unmount(x)
        swap_for_new_tmpfs(base)
        check(x, 6 * MIB)
        unmount(x)
        swap_for_other_filesystem(base)
        unmount(x)
        syscalls.mount(os.fsencode(x), os.fsencode(parked), None, MS_MOVE)
        swap_for_new_tmpfs(base)
        check(x, 6 * MIB)
        unmount(x)
        syscalls.mount(os.fsencode(parked), os.fsencode(x), None, MS_MOVE)
        unmount(y)
        mount_with(y, 0, "size=6m,mode=711")
        time.sleep(0)
        check(y, 6 * MIB)
        unmount(y)
        mount_with(y, 0, "size=16m,mode=702")
        check(victim, 7 * MIB)
        count["rounds"] += 1
    return count


@pytest.mark.parametrize(("method", "tries"), [("fspick", 4000), ("mount", 1000)])
def test_container_that_keeps_swapping_the_path_never_gets_another_filesystem_resized(
    tmp_path: Path, method: Method, tries: int
) -> None:
    with hostile(tmp_path) as (lab, base):
        lab.run(lambda: tmpfs(base / "y/t", "size=16m,mode=702"))
        lab.run(lambda: os.makedirs(base / "parked"))
        known = superblocks(lab)
        targets = [superblock(lab, base / "x/t"), superblock(lab, base / "y/t")]
        devices = {target.device for target in targets}
        pins = [os.open(f"/proc/{lab.pid}/root{base}/{path}/t", os.O_PATH) for path in ("x", "victims")]
        outcomes: dict[tuple[str, str], int] = {}
        wanted = {(which, outcome) for which in "xy" for outcome in ("resized", "Gone")}
        dice = random.Random(method)
        with busy(lab, lambda stopped: swap_for_ever(base, stopped)) as finish:
            last = 0
            for number in range(20 * tries):
                if number >= tries and wanted <= outcomes.keys():
                    break
                if number % 2 == 0:
                    now = superblocks(lab)
                    # Of another mode: the container's own new tmpfs, with the number of one that went.
                    targets = [now[d] for d in devices if d in now and "mode=70" in now[d].options] or targets
                target = dice.choice(targets)
                size = dice.randrange(8 * MIB, 16 * MIB, PAGE)
                which = "x" if "mode=700" in target.options else "y"
                try:
                    resize(Host(), target, size_bytes=size, method=method)
                except ResizeError as error:
                    outcome = str(error.reason)
                else:
                    outcome = "resized"
                    last = size if which == "x" else last
                outcomes[which, outcome] = outcomes.get((which, outcome), 0) + 1
            count = finish()
        assert count["resized"] == 0
        assert count["rounds"] > 100
        assert {outcome for _, outcome in outcomes} <= {"resized", "Gone", "Unreachable"}, outcomes
        assert wanted <= outcomes.keys(), outcomes
        vfs = [os.statvfs(f"/proc/self/fd/{pin}") for pin in pins]
        assert [each.f_blocks * each.f_frsize for each in vfs] == [last, 7 * MIB]
        for pin in pins:
            os.close(pin)
        assert {device: known[device].options for device in known if device not in devices} == {
            device: sb.options for device, sb in superblocks(lab).items() if device in known and device not in devices
        }


# --- under load


def write_for_ever(path: Path, seed: int, stopped: Callable[[], bool]) -> dict[str, int]:
    """Blocks of a file and of a mapping are overwritten at random, files come and go; at the end all is read back."""
    blocks, block = 256, 8192
    dice = random.Random(seed)
    model = [b"\0" * block] * (2 * blocks)
    file = os.open(path / f"file{seed}", os.O_RDWR | os.O_CREAT)
    mapped = os.open(path / f"mapped{seed}", os.O_RDWR | os.O_CREAT)
    for fd in (file, mapped):
        os.truncate(fd, blocks * block)
    count = {"writes": 0, "wrong": 0}
    with mmap.mmap(mapped, blocks * block) as area:
        while not stopped():
            data, at = dice.randbytes(block), dice.randrange(2 * blocks)
            model[at] = data
            if at < blocks:
                assert os.pwrite(file, data, at * block) == block
            else:
                area[(at - blocks) * block : (at - blocks + 1) * block] = data
            if at % 16 == 0:
                fill(path / f"passing{seed}", dice.randrange(2 * MIB))
                os.unlink(path / f"passing{seed}")
            count["writes"] += 1
        found = os.pread(file, blocks * block, 0) + area[:]
    for at, data in enumerate(model):
        count["wrong"] += found[at * block : (at + 1) * block] != data
    return count


def test_files_and_writers_survive_a_thousand_resizes_under_load(tmp_path: Path) -> None:
    path = tmp_path / "t"

    def checksums() -> dict[str, str]:
        kept = sorted(name for name in os.listdir(path) if name.startswith("kept"))
        return {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in kept}

    def make() -> None:
        for number in range(20):
            (path / f"kept{number}").write_bytes(random.Random(number).randbytes(100_000 + number))

    with one(path, "size=64m,nr_inodes=1000", make) as lab, ExitStack() as stack:
        before, mounts_before = lab.run(checksums), shown(lab)
        target = superblock(lab, path)
        dice = random.Random(1)
        writers = [stack.enter_context(busy(lab, partial(write_for_ever, path, seed))) for seed in range(3)]
        for number in range(1000):
            size = 24 * MIB + dice.randrange(40 * MIB)
            done = resize(Host(), target, size_bytes=size, inodes=100 + number, method=METHODS[number % 2])
            assert done.changed
        counts = [finish() for finish in writers]
        assert all(count["writes"] > 1000 for count in counts), counts
        assert [count["wrong"] for count in counts] == [0, 0, 0]
        assert lab.run(checksums) == before
        assert len(before) == 20
        resize(Host(), target, size_bytes=64 * MIB, inodes=1000)
        assert shown(lab) == mounts_before


# --- the command


def command(*words: str) -> int:
    return main(["tmpfs", "resize", *words])


def test_command_shows_before_and_after_and_works_by_path_or_device(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t"
    with one(path, "size=16m,nr_inodes=500", lambda: fill(path / "data", 4 * MIB)) as lab:
        device = superblock(lab, path).device
        assert command(str(path), "8Mi", "--dry-run") == 0
        assert capsys.readouterr().out == (
            f"{path} ({device}) would become 8.0 MiB (was 16.0 MiB); 4.0 MiB and 2 inodes in use\n"
        )
        assert size_inside(lab, path) == 16 * MIB
        assert command(device, "8Mi", "--inodes", "100", "-o", "json") == 0
        assert json.loads(capsys.readouterr().out) == {
            "device": device,
            "mountPoint": str(path),
            "dryRun": False,
            "changed": True,
            "method": "fspick",
            "requested": {"sizeBytes": 8 * MIB, "inodes": 100},
            "before": {"sizeBytes": 16 * MIB, "usedBytes": 4 * MIB, "inodes": 500, "inodesUsed": 2},
            "after": {"sizeBytes": 8 * MIB, "usedBytes": 4 * MIB, "inodes": 100, "inodesUsed": 2},
        }
        assert command(str(path), "8Mi") == 0
        assert "is already 8.0 MiB; 4.0 MiB" in capsys.readouterr().out


def test_percentage_is_of_the_machines_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with one(tmp_path / "t") as lab:
        assert command(str(tmp_path / "t"), "1%") == 0
        total = int(re.search(r"MemTotal: +([0-9]+) kB", Path("/proc/meminfo").read_text())[1]) * 1024  # type: ignore[index]
        assert size_inside(lab, tmp_path / "t") == -(-(total // 100) // PAGE) * PAGE


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("T", "2Mi"), 3, "holds 4.0 MiB, with 10 % headroom 4.4 MiB: more than the 2.0 MiB asked for"),
        (("T", "4.2Mi", "--headroom", "20%"), 3, "write at least 5Mi"),
        (("T", "0"), 4, "a size of 0 would lift the limit for good"),
        (("/dev", "1Gi"), 4, "is a devtmpfs"),
        (("T", "2gb"), 2, "write 2Gi (powers of 1024) or 2G (powers of 1000)"),
        (("T/sub", "2Gi"), 1, "no tmpfs is mounted there"),
        (("/proc", "2Gi"), 1, "/proc: no tmpfs is mounted there but proc; 'nodemem tmpfs' lists them all"),
        (("0:99999", "2Gi"), 1, "no tmpfs has this device number"),
    ],
)
def test_command_says_in_one_line_why_not_and_what_to_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, said: str
) -> None:
    path = tmp_path / "t"
    with one(path, "size=16m", lambda: fill(path / "data", 4 * MIB)) as lab:
        before = shown(lab)
        assert command(*(word.replace("T", str(path), 1) if word[0] == "T" else word for word in words)) == code
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("nodemem: ")
        assert err.count("\n") == 1
        assert said in err
        assert shown(lab) == before


def test_path_that_is_a_tmpfs_in_two_containers_is_asked_for_by_device(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t"
    with one(path) as first, one(path) as second:
        devices = {superblock(lab, path).device for lab in (first, second)}
        assert command(str(path), "2Mi") == 1
        said = capsys.readouterr().err
        assert "2 containers have a tmpfs there; write the device of one instead: " in said
        assert all(device in said for device in devices)
        assert command(superblock(second, path).device, "2Mi") == 0
        assert (size_inside(first, path), size_inside(second, path)) == (16 * MIB, 2 * MIB)


def test_command_leaves_a_secret_volume_to_the_kubelet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Told by its mount point in the host's namespace."""
    place = tmp_path / "pods/7b1f6e5a-0000-4000-8000-000000000001/volumes/kubernetes.io~secret/token"
    tmpfs(place, "size=2m")
    try:
        assert command(str(place), "1Mi") == 4
        assert "is the secret token of pod 7b1f6e5a-0000-4000-8000-000000000001" in capsys.readouterr().err
    finally:
        unmount(place)


def test_size_of_a_captured_machine_is_not_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with one(tmp_path / "t") as lab:
        assert main(["capture", str(tmp_path / "capture.tar")]) == 0
        capsys.readouterr()
        assert main(["tmpfs", "--root", str(tmp_path / "capture.tar"), "resize", str(tmp_path / "t"), "1Mi"]) == 4
        assert "this is a capture; only a running machine can be changed" in capsys.readouterr().err
        assert size_inside(lab, tmp_path / "t") == 16 * MIB
