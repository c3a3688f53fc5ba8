"""The process table against the running kernel: known sizes are found, changes are seen, psutil agrees."""

import ctypes
import mmap
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from nodemem.kernel.capture import RecordingHost, open_capture
from nodemem.kernel.host import Host
from nodemem.kernel.procfs import ROTATION, SETTLING, ProcessTable

MIB = 1024 * 1024
SLACK = MIB
"""What a forked Python process touches by itself while it makes a step, in bytes: well above what was seen."""
CLONE_NEWNS, CLONE_NEWPID = 0x00020000, 0x20000000

_libc = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    if _libc.unshare(flags) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Child:
    """A forked process that does one step for each byte it is sent, and acknowledges it."""

    def __init__(self, *steps: Callable[[], object]) -> None:
        self._mine, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                self._mine.close()
                keep = []
                for step in steps:
                    if not theirs.recv(1):
                        break
                    keep.append(step())
                    theirs.send(b"x")
                theirs.recv(1)
                status = 0
            finally:
                os._exit(status)
        theirs.close()

    def step(self) -> None:
        self._mine.send(b"x")
        assert self._mine.recv(1) == b"x"

    def end(self) -> None:
        self._mine.close()
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


@contextmanager
def child(*steps: Callable[[], object]) -> Iterator[Child]:
    process = Child(*steps)
    try:
        yield process
    finally:
        process.end()


def settled() -> ProcessTable:
    table = ProcessTable(Host())
    for _ in range(1 + SETTLING):
        table.scan()
    return table


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail("the kernel did not get there in 30 s")
        time.sleep(0.005)


def filled(size: int, flags: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size, flags | mmap.MAP_ANONYMOUS)
    memory.write(b"x" * size)
    return memory


LARGE_FILE = max(Path(os.__file__).parent.rglob("*.so"), key=lambda path: path.stat().st_size)


def read_file_mapping() -> tuple[mmap.mmap, int]:
    """A library mapped and read: file pages of a known number of bytes, on a filesystem that is no tmpfs."""
    with open(LARGE_FILE, "rb") as file:
        memory = mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
    return memory, sum(memory[at] for at in range(0, len(memory), mmap.PAGESIZE))


def test_anonymous_shared_and_file_memory_of_known_size_is_found_by_kind() -> None:
    file_size = LARGE_FILE.stat().st_size
    assert file_size > 2 * SLACK
    with child(
        lambda: filled(24 * MIB, mmap.MAP_PRIVATE), lambda: filled(16 * MIB, mmap.MAP_SHARED), read_file_mapping
    ) as process:
        table = settled()
        seen = [table.scan().processes[process.pid]]
        for _ in range(3):
            process.step()
            seen.append(table.scan().processes[process.pid])
    for size, kind, before, after in (
        (24 * MIB, "rss_anon_bytes", seen[0], seen[1]),
        (16 * MIB, "rss_shmem_bytes", seen[1], seen[2]),
        (file_size, "rss_file_bytes", seen[2], seen[3]),
    ):
        grown = getattr(after, kind) - getattr(before, kind)
        assert size - SLACK <= grown <= size + SLACK, kind
    last = seen[3]
    assert last.rss_anon_bytes is not None
    assert last.rss_file_bytes is not None
    assert last.rss_shmem_bytes is not None
    assert last.rss_bytes == last.rss_anon_bytes + last.rss_file_bytes + last.rss_shmem_bytes
    assert last.page_tables_bytes - seen[0].page_tables_bytes >= 40 * MIB // 512
    assert last.virtual_bytes >= seen[0].virtual_bytes + 40 * MIB


def test_a_hurried_look_leaves_out_the_start_alone() -> None:
    children = [Child(lambda: _libc.prctl(15, b"renamed", 0, 0, 0)) for _ in range(120)]
    try:
        for each in children[::2]:
            each.step()
        children[1].end()  # gone
        os.kill(children[3].pid, signal.SIGKILL)  # a zombie
        waiting = {each.pid: b") S " for each in children} | {children[3].pid: b") Z "}
        del waiting[children[1].pid]
        wait_for(lambda: all(state in Path(f"/proc/{pid}/stat").read_bytes() for pid, state in waiting.items()))
        hurried, full = (ProcessTable(Host()).scan(hurried=hurry).processes for hurry in (True, False))
        pids = {each.pid for each in children}
        assert hurried.keys() & pids == full.keys() & pids == pids - {children[1].pid}
        for pid in full.keys() & pids | {2}:
            started = None if full[pid].has_mm else full[pid].start_time_ticks
            assert hurried[pid] == replace(full[pid], start_time_ticks=started)
    finally:
        for each in children:
            each.end()


def test_memory_given_back_is_seen_by_the_next_scan() -> None:
    memory = filled(8 * MIB, mmap.MAP_PRIVATE)
    with child(lambda: memory.madvise(mmap.MADV_DONTNEED)) as process:
        table = settled()
        before = table.scan().processes[process.pid].rss_bytes
        process.step()
        assert table.scan().processes[process.pid].rss_bytes <= before - 8 * MIB + SLACK


def test_psutil_agrees_about_every_process_that_stays() -> None:
    def by_psutil() -> dict[int, tuple[object, ...]]:
        found = {}
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess), process.oneshot():
                memory = process.memory_info()
                found[process.pid] = (
                    process.ppid(),
                    memory.rss,
                    memory.vms,
                    process.uids().real,
                    process.num_threads(),
                    round(process.create_time() - psutil.boot_time(), 1),
                )
        return found

    table = ProcessTable(Host())
    for _ in range(3):
        before = by_psutil()
        found = table.scan().processes
        after = by_psutil()
        unmoved = {pid for pid in before if pid != os.getpid() and before[pid] == after.get(pid)}
        assert len(unmoved) > len(after) // 2
        for pid in unmoved:
            mine = found[pid]
            seconds = round(mine.start_time_ticks / os.sysconf("SC_CLK_TCK"), 1)
            got = (mine.ppid, mine.rss_bytes, mine.virtual_bytes, mine.uid, mine.threads, seconds)
            assert got[:5] == before[pid][:5], pid
            assert abs(seconds - float(str(before[pid][5]))) <= 0.2, pid


def test_kernel_threads_are_those_that_run_no_program() -> None:
    def runs_no_program(pid: int) -> bool:
        try:
            os.readlink(f"/proc/{pid}/exe")
        except FileNotFoundError:
            return Path(f"/proc/{pid}").exists()
        except PermissionError:
            return False
        return False

    found = ProcessTable(Host()).scan().processes
    expected = {pid for pid, process in found.items() if process.state not in "ZX" and runs_no_program(pid)}
    assert {pid for pid, process in found.items() if process.kernel_thread} == expected
    assert os.getpid() not in expected


@pytest.mark.parametrize("name", [b"two words", b"paren) R 1", b"line\nfeed", b"back\\slash\\n", b"\xff\xfe(", b"((("])
def test_a_name_chosen_by_a_process_comes_back_byte_for_byte(name: bytes) -> None:
    with child(lambda: _libc.prctl(15, ctypes.c_char_p(name), 0, 0, 0)) as process:
        process.step()
        found = ProcessTable(Host()).scan().processes[process.pid]
    assert os.fsencode(found.comm) == name
    assert found.ppid == os.getpid()


def test_a_zombie_holds_nothing_and_is_counted() -> None:
    with child() as process:
        table = settled()
        assert table.scan().processes[process.pid].has_mm
        os.kill(process.pid, signal.SIGKILL)
        wait_for(lambda: b") Z " in Path(f"/proc/{process.pid}/stat").read_bytes())
        found = table.scan()
        assert (found.processes[process.pid].state, found.processes[process.pid].rss_bytes) == ("Z", 0)
        assert found.zombies >= 1


def test_a_dead_leader_still_has_the_memory_of_its_threads() -> None:
    reading, writing = os.pipe()

    def exit_the_leader_alone() -> None:
        memory = filled(8 * MIB, mmap.MAP_PRIVATE)

        def hold_until_told() -> None:
            os.read(reading, 1)
            memory.close()
            time.sleep(60)

        threading.Thread(target=hold_until_told).start()
        _libc.syscall(60 if os.uname().machine == "x86_64" else 93, 0)

    own = ProcessTable(Host()).scan().processes[os.getpid()]
    for young in (True, False):
        with child(exit_the_leader_alone) as process:
            table = ProcessTable(Host()) if young else settled()
            process._mine.send(b"x")
            wait_for(lambda pid=process.pid: b") Z " in Path(f"/proc/{pid}/stat").read_bytes())
            seen = table.scan().processes[process.pid]
            assert (seen.state, seen.has_mm, seen.threads) == ("Z", True, 2)
            assert seen.rss_bytes >= 8 * MIB
            assert (seen.mnt_ns, seen.cgroup) == (own.mnt_ns, own.cgroup)
            for _ in range(SETTLING + 1):
                table.scan()
            before = seen.rss_bytes
            os.write(writing, b"x")
            wait_for(lambda pid=process.pid, before=before: read_thread_rss(pid) < before - 7 * MIB)
            assert table.scan().processes[process.pid].rss_bytes < before - 7 * MIB
    os.close(reading)
    os.close(writing)


def read_thread_rss(pid: int) -> int:
    """The memory of the last thread: the one that lives when the leader is dead."""
    thread = max(Path(f"/proc/{pid}/task").iterdir(), key=lambda path: int(path.name))
    pages = int((thread / "statm").read_bytes().split()[1])
    return pages * mmap.PAGESIZE


def in_new_pid_namespace(action: Callable[[], object]) -> str:
    """Run ``action`` as a child of process 1 of a new pid namespace that has a /proc of its own; return what it says.

    There, pids can be chosen by ns_last_pid without disturbing anyone.
    """
    reading, writing = os.pipe()
    outer = os.fork()
    if outer == 0:
        try:
            unshare(CLONE_NEWPID | CLONE_NEWNS)
            init = os.fork()
            if init:
                os.waitpid(init, 0)
                os._exit(0)
            assert _libc.mount(b"none", b"/", None, 0x4000 | 0x40000, None) == 0
            assert _libc.mount(b"proc", b"/proc", b"proc", 0, None) == 0
            answer = "it raised"
            try:
                answer = str(action())
            finally:
                os.write(writing, answer.encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(outer, 0)
    with open(reading, "rb") as pipe:
        return pipe.read().decode()


def fork_as(pid: int) -> Child:
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
    process = Child()
    assert process.pid == pid
    return process


def test_a_reused_pid_never_has_its_predecessors_data() -> None:
    def reuse() -> str:
        table = ProcessTable(Host())
        first = fork_as(500)
        for _ in range(1 + SETTLING + ROTATION):
            table.scan()
        for number in range(50):
            # The same program with the same sizes: nothing but its identity tells the two apart. The clock tick must
            # move on, because a start time is what the kernel has to offer, in ticks.
            start = table.scan().processes[500].start_time_ticks
            first.end()
            time.sleep(0.011)
            first = fork_as(500)
            Path("/proc/500/oom_score_adj").write_text(str(number))
            process = table.scan().processes[500]
            if process.oom_score_adj != number or process.start_time_ticks <= start:
                return f"stale: {process}"
            for _ in range(SETTLING + number % ROTATION):
                table.scan()
        first.end()
        return "current"

    assert in_new_pid_namespace(reuse) == "current"


def test_a_pid_reused_by_a_thread_of_another_process_is_no_process() -> None:
    def reuse() -> str:
        table = ProcessTable(Host())
        first = fork_as(500)
        table.scan()
        first.end()
        Path("/proc/sys/kernel/ns_last_pid").write_text("499")
        stop = threading.Event()
        thread = threading.Thread(target=stop.wait)
        thread.start()
        found = 500 in table.scan().processes, thread.native_id
        stop.set()
        thread.join()
        return str(found)

    assert in_new_pid_namespace(reuse) == str((False, 500))


def test_a_new_oom_score_adj_is_seen_within_the_documented_scans() -> None:
    with child() as process:
        table = settled()
        Path(f"/proc/{process.pid}/oom_score_adj").write_text("321")
        seen = [table.scan().processes[process.pid].oom_score_adj for _ in range(ROTATION)]
    assert seen[-1] == 321


def test_a_full_scan_sees_a_new_oom_score_adj_at_once() -> None:
    with child() as process:
        table = settled()
        Path(f"/proc/{process.pid}/oom_score_adj").write_text("321")
        assert table.scan(full=True).processes[process.pid].oom_score_adj == 321


def test_an_exec_is_seen_by_the_next_scan() -> None:
    process = subprocess.Popen(
        ["sh", "-c", "echo ready; read line; exec sleep 60"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin
    assert process.stdout
    try:
        process.stdout.readline()
        table = settled()
        assert table.scan().processes[process.pid].comm == "sh"
        process.stdin.write(b"go\n")
        process.stdin.flush()
        wait_for(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n")
        assert table.scan().processes[process.pid].comm == "sleep"
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_a_new_mount_namespace_is_seen_at_once_in_a_young_process_and_within_a_rotation_later() -> None:
    own = os.stat("/proc/self/ns/mnt").st_ino
    with child(lambda: unshare(CLONE_NEWNS)) as process:
        table = ProcessTable(Host())
        assert table.scan().processes[process.pid].mnt_ns == own
        process.step()
        mnt_ns = table.scan().processes[process.pid].mnt_ns
        assert mnt_ns == os.stat(f"/proc/{process.pid}/ns/mnt").st_ino != own
    with child(lambda: unshare(CLONE_NEWNS)) as process:
        table = settled()
        process.step()
        later = [table.scan() for _ in range(ROTATION)][-1]
        assert later.processes[process.pid].mnt_ns == os.stat(f"/proc/{process.pid}/ns/mnt").st_ino
        assert process.pid in later.mount_namespaces()[os.stat(f"/proc/{process.pid}/ns/mnt").st_ino]


def memory_hierarchy() -> Path:
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    v1 = [mount[1] for mount in mounts if mount[2] == "cgroup" and "memory" in mount[3].split(",")]
    return Path((v1 or [mount[1] for mount in mounts if mount[2] == "cgroup2"])[0])


def test_a_move_to_another_cgroup_is_seen_within_a_rotation() -> None:
    cgroup = memory_hierarchy() / f"nodemem-test-procfs-{os.getpid()}"
    cgroup.mkdir()
    try:
        with child() as process:
            table = settled()
            assert table.scan().processes[process.pid].cgroup != f"/{cgroup.name}"
            (cgroup / "cgroup.procs").write_text(str(process.pid))
            later = [table.scan() for _ in range(ROTATION)][-1]
            assert later.processes[process.pid].cgroup == f"/{cgroup.name}"
    finally:
        wait_for(lambda: not (cgroup / "cgroup.procs").read_text())
        cgroup.rmdir()


def test_processes_that_come_and_go_during_a_scan_do_no_harm() -> None:
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            subprocess.run(["true"], check=True)

    threads = [threading.Thread(target=churn) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        table = ProcessTable(Host())
        for _ in range(100):
            found = table.scan()
            assert found.processes[os.getpid()].has_mm
            assert list(found.processes) == sorted(found.processes)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def as_nobody(action: Callable[[], object]) -> str:
    """What ``action`` says without any privilege."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            os.write(writing, str(action()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(pid, 0)
    with open(reading, "rb") as pipe:
        return pipe.read().decode()


def test_without_privilege_the_sizes_are_there_and_the_missing_namespace_is_said() -> None:
    parent = os.getpid()

    def look() -> object:
        found = ProcessTable(Host()).scan()
        seen = found.processes[parent]
        return seen.rss_bytes > MIB, seen.mnt_ns, sorted({missing.what for missing in found.unreadable})

    assert as_nobody(look) == str((True, None, ["/proc/<pid>/ns/mnt"]))


def test_hidepid_is_named_as_the_reason() -> None:
    def look() -> object:
        found = ProcessTable(Host()).scan()
        return sorted(missing.why for missing in found.unreadable if missing.what == "processes of other users")

    def hidden() -> str:
        assert _libc.mount(b"proc", b"/proc", b"proc", 32, b"hidepid=2") == 0  # MS_REMOUNT
        return as_nobody(look)

    assert "hidepid=" in in_new_pid_namespace(hidden)


def test_a_capture_gives_the_same_processes_again(tmp_path: Path) -> None:
    host = RecordingHost()
    found = ProcessTable(host).scan()
    host.write(tmp_path / "capture.tar")
    again = ProcessTable(open_capture(str(tmp_path / "capture.tar"))).scan()
    assert again.processes == found.processes
    assert again.unreadable == found.unreadable
