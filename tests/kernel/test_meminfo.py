"""The partition of MemTotal on the real kernel: memory of each kind, made here, shows up in its part and no other."""

import contextlib
import fcntl
import mmap
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
import pytest

from nodemem.kernel import kernelmem, memfields, meminfo
from nodemem.kernel.capture import RecordingHost, open_capture
from nodemem.kernel.host import Host

MIB = 1 << 20

# Others use the machine too: a claim about a change is tried again, and has to hold once.
ATTEMPTS = 8
HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")

# Parts that other programs on the machine change by reading files; the rest must hold still.
RESTLESS = {"free", "pageCache", "buffers", "slabReclaimable", "other"}


def measure() -> meminfo.Memory:
    return meminfo.measure(Host())


def parts() -> dict[str, int]:
    return {name: size or 0 for name, size in measure().partition.parts().items()}


def test_the_parts_add_up_to_memtotal_exactly() -> None:
    memory = measure()
    assert sum(size or 0 for size in memory.partition.parts().values()) == memory.fields["MemTotal"]


def test_every_field_of_this_kernel_is_explained() -> None:
    assert [name for name in measure().fields if memfields.describe(name) is None] == []


def test_every_line_is_parsed() -> None:
    data = Host().read("/proc/meminfo")
    assert len(meminfo.parse(data)) == data.count(b"\n")


def test_little_is_left_unaccounted() -> None:
    partition = measure().partition
    assert abs(partition.unaccounted_bytes) < 0.05 * partition.total_bytes


def test_every_part_is_read_as_root() -> None:
    memory = measure()
    assert memory.unreadable == []
    assert not memory.layout.stacks_guessed
    assert None not in memory.partition.parts().values()


def test_psutil_agrees_about_one_and_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("meminfo", "zoneinfo", "vmstat"):
        (tmp_path / name).write_bytes(Path("/proc", name).read_bytes())
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    expected = psutil.virtual_memory()
    swap = psutil.swap_memory()
    cut = meminfo.partition(meminfo.parse((tmp_path / "meminfo").read_bytes()))
    assert (cut.total_bytes, cut.free_bytes, cut.available_bytes) == (expected.total, expected.free, expected.available)
    assert (cut.shmem_bytes, cut.buffers_bytes) == (expected.shared, expected.buffers)
    assert cut.slab_reclaimable_bytes + cut.slab_unreclaimable_bytes == expected.slab
    assert (cut.swap_total_bytes, cut.swap_free_bytes) == (swap.total, swap.free)


def test_the_estimate_for_kernels_without_memavailable_is_near_what_this_one_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class WithoutAvailable(Host):
        def read(self, path: str) -> bytes:
            data = super().read(path)
            return re.sub(rb"(?m)^MemAvailable:.*\n", b"", data) if path.endswith("/meminfo") else data

    estimated = meminfo.measure(WithoutAvailable()).partition
    actual = measure().partition
    assert estimated.available_estimated
    assert estimated.available_bytes is not None
    assert actual.available_bytes is not None
    assert estimated.available_bytes == pytest.approx(actual.available_bytes, rel=0.05)


def test_a_capture_gives_the_same_measurement_again(tmp_path: Path) -> None:
    host = RecordingHost()
    memory, down = meminfo.measure(host), kernelmem.inspect(host)
    host.write(tmp_path / "capture.tar")
    replay = open_capture(str(tmp_path / "capture.tar"))
    assert meminfo.measure(replay) == memory
    assert kernelmem.inspect(replay) == down
    assert down.dying_cgroups.count is not None


# Memory of each kind. Each maker yields the number of bytes it made and takes them back afterwards.


@contextlib.contextmanager
def tmpfs_file() -> Iterator[int]:
    with mounted_tmpfs() as directory:
        write_zeros(os.open(f"{directory}/file", os.O_CREAT | os.O_WRONLY), 64 * MIB)
        yield 64 * MIB


@contextlib.contextmanager
def mounted_tmpfs() -> Iterator[str]:
    directory = os.path.realpath(os.fsdecode(os.path.join("/tmp", f"nodemem-test-{os.getpid()}")))
    os.mkdir(directory)
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", directory], check=True)
        try:
            yield directory
        finally:
            subprocess.run(["umount", directory], check=True)
    finally:
        os.rmdir(directory)


@contextlib.contextmanager
def memfd() -> Iterator[int]:
    fd = os.memfd_create("nodemem-test")
    kept = os.dup(fd)
    write_zeros(fd, 64 * MIB)
    try:
        yield 64 * MIB
    finally:
        os.close(kept)


def write_zeros(fd: int, size: int) -> None:
    block = bytes(MIB)
    try:
        for _ in range(size // MIB):
            assert os.write(fd, block) == MIB
    finally:
        os.close(fd)


@contextlib.contextmanager
def anonymous_memory() -> Iterator[int]:
    with mmap.mmap(-1, 64 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as area:
        for offset in range(0, 64 * MIB, mmap.PAGESIZE):
            area[offset] = 1
        yield 64 * MIB


@contextlib.contextmanager
def page_tables() -> Iterator[int]:
    """A read of an untouched private page maps the zero page: a table of one page for each 2 MiB, and nothing else."""
    tables = 8192
    step = mmap.PAGESIZE * mmap.PAGESIZE // 8
    # Read-only, so that the kernel doesn't hold the size against its overcommit limit.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with mmap.mmap(-1, tables * step, flags, mmap.PROT_READ) as area:
        area.madvise(mmap.MADV_NOHUGEPAGE)
        for index in range(tables):
            assert area[index * step] == 0
        yield tables * mmap.PAGESIZE


@contextlib.contextmanager
def full_pipes() -> Iterator[int]:
    """The pages of a pipe are in no counter of the kernel."""
    with contextlib.ExitStack() as stack:
        for _ in range(32):
            for fd in (ends := os.pipe()):
                stack.callback(os.close, fd)
            assert fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, MIB) == MIB
            assert os.write(ends[1], bytes(MIB)) == MIB
        yield 32 * MIB


@contextlib.contextmanager
def huge_pages() -> Iterator[int]:
    """A pool of huge pages, without anyone who uses them."""
    before = int(HUGE_PAGES.read_text())
    size = measure().fields["Hugepagesize"]
    count = 32 * MIB // size
    try:
        HUGE_PAGES.write_text(f"{before + count}\n")
        assert int(HUGE_PAGES.read_text()) == before + count
        yield count * size
    finally:
        HUGE_PAGES.write_text(f"{before}\n")


def moved(make: Callable[[], AbstractContextManager[int]], part: str) -> None:
    """Claim that ``make`` moves ``part`` by what it made, give or take a tenth, and no other by more than an eighth."""
    for _ in range(ATTEMPTS):
        before = parts()
        with make() as made:
            during = parts()
        change = {name: during[name] - before[name] for name in before}
        others = {name: size for name, size in change.items() if name != part and name not in RESTLESS}
        if abs(change[part] - made) <= made // 10 and all(abs(size) <= made // 8 for size in others.values()):
            return
    pytest.fail(f"made {made} bytes of {part}, saw {change}")


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (tmpfs_file, "shmem"),
        (memfd, "shmem"),
        (anonymous_memory, "anonymous"),
        (page_tables, "pageTables"),
        (full_pipes, "unaccounted"),
        (huge_pages, "hugePages"),
    ],
)
def test_memory_shows_up_in_its_part_and_in_no_other(
    make: Callable[[], AbstractContextManager[int]], part: str
) -> None:
    moved(make, part)


def test_shmem_in_no_process_is_hidden_and_anonymous_memory_is_not() -> None:
    def hidden() -> int:
        return meminfo.measure(Host(), mapped_shmem_bytes=0).partition.hidden_bytes

    for _ in range(ATTEMPTS):
        before = hidden()
        with memfd() as made:
            with_shmem = hidden() - before
        before = hidden()
        with anonymous_memory():
            with_anonymous = hidden() - before
        if abs(with_shmem - made) <= made // 8 and abs(with_anonymous) <= made // 8:
            return
    pytest.fail(f"{made} bytes of shmem moved hidden by {with_shmem}, anonymous {with_anonymous}")


def test_stacks_of_threads_are_counted_once() -> None:
    """A thread has a stack in KernelStack and, with CONFIG_VMAP_STACK, the same pages in VmallocUsed."""
    count = 1000
    for _ in range(ATTEMPTS):
        before, fields = parts(), measure().fields
        with threads(count):
            during, fields_during = parts(), measure().fields
        stacks = during["kernelStack"] - before["kernelStack"]
        vmalloc = during["vmalloc"] - before["vmalloc"]
        grown = fields_during["VmallocUsed"] - fields["VmallocUsed"]
        if (
            abs(stacks - count * 16384) <= 2 * MIB
            and abs(vmalloc) <= 2 * MIB
            and (grown > 14 * MIB) == (measure().layout.stacks_in == meminfo.IN_VMALLOC)
        ):
            return
    pytest.fail(f"stacks {stacks}, vmalloc without stacks {vmalloc}, VmallocUsed {grown}")


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    done = threading.Event()
    started = [threading.Thread(target=done.wait) for _ in range(count)]
    previous = threading.stack_size(128 * 1024)
    try:
        for thread in started:
            thread.start()
        yield
    finally:
        threading.stack_size(previous)
        done.set()
        for thread in started:
            if thread.ident is not None:
                thread.join()


def test_many_names_show_up_in_slab_and_in_the_dentry_cache(tmp_path: Path) -> None:
    """Each name that doesn't exist leaves a negative dentry; a long one takes a kmalloc object beside."""
    count = 100_000
    with contextlib.ExitStack() as stack:
        for attempt in range(ATTEMPTS):
            directory = tmp_path / str(attempt)
            directory.mkdir()
            # Removing it frees the dentries: only at the end, or the next attempt would find their slabs half empty.
            stack.callback(directory.rmdir)
            before, dentries = parts(), dentry_cache().objects
            for index in range(count):
                assert not os.path.exists(f"{directory}/{index:0>200}")
            during, dentries_during = parts(), dentry_cache().objects
            grown = during["slabReclaimable"] - before["slabReclaimable"]
            others = {name: during[name] - before[name] for name in during if name not in RESTLESS}
            if (
                grown >= count * (192 + 256) * 0.75
                and dentries_during - dentries >= count * 0.75
                and all(abs(size) <= 4 * MIB for size in others.values())
            ):
                return
        pytest.fail(f"slabReclaimable grew by {grown}, others {others}")


def dentry_cache() -> kernelmem.SlabCache:
    caches = kernelmem.parse_slabinfo(Host().read("/proc/slabinfo"), mmap.PAGESIZE)
    return next(cache for cache in caches if cache.name == "dentry")


# One level down.


def test_slab_caches_explain_nearly_all_of_slab() -> None:
    total = kernelmem.inspect(Host()).slab_total_bytes
    assert total is not None
    # Beside the caches there are kmalloc allocations above two pages, which have no cache.
    assert total == pytest.approx(measure().fields["Slab"], rel=0.25)


def test_vmalloc_callers_explain_vmallocused() -> None:
    found = kernelmem.inspect(Host(), top=100)
    assert found.vmalloc_total_bytes == pytest.approx(measure().fields["VmallocUsed"], rel=0.1, abs=2 * MIB)
    assert found.unreadable == []
    sizes = [caller.bytes for caller in found.vmalloc_callers]
    assert sizes == sorted(sizes, reverse=True)


def test_a_removed_cgroup_that_still_holds_a_page_is_counted_as_dying() -> None:
    root = memory_root()
    cgroup = root / f"nodemem-test-{os.getpid()}"
    for _ in range(ATTEMPTS):
        before = kernelmem.dying_cgroups(Host()).count
        fd = os.memfd_create("nodemem-test-charged")
        made = [cgroup.with_name(f"{cgroup.name}-{index}") for index in range(20)]
        for index, path in enumerate(made):
            path.mkdir()
            write = f"echo $$ > {path}/cgroup.procs && exec dd if=/dev/zero of=/dev/fd/{fd} bs=64k count=1 seek={index}"
            subprocess.run(["sh", "-c", write + " conv=notrunc"], pass_fds=[fd], check=True, capture_output=True)
            path.rmdir()
        with_dying = kernelmem.dying_cgroups(Host())
        os.close(fd)
        assert with_dying.why is None
        assert before is not None
        assert with_dying.count is not None
        if with_dying.count - before >= 15:
            return
    pytest.fail(f"20 charged cgroups removed, dying went from {before} to {with_dying}")


def memory_root() -> Path:
    unified = Path("/sys/fs/cgroup/cgroup.controllers")
    if unified.exists() and "memory" in unified.read_text().split():
        return Path("/sys/fs/cgroup")
    return Path("/sys/fs/cgroup/memory")
