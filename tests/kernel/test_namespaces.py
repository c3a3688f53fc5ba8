"""Real kernel, root: needs CAP_SYS_ADMIN and CAP_SYS_CHROOT."""

import atexit
import ctypes
import errno
import os
import signal
import time
from pathlib import Path

import pytest

from kernel.mountlab import Lab, mount_namespace, tmpfs
from nodemem.kernel.namespaces import ChildFailedError, in_namespaces


@pytest.fixture
def lab(tmp_path: Path):
    with mount_namespace(lambda: tmpfs(tmp_path / "only-here")) as lab:
        yield lab


def test_function_sees_the_other_mount_namespace_and_the_caller_stays_in_its_own(lab: Lab, tmp_path: Path) -> None:
    before = os.stat("/proc/self/ns/mnt").st_ino

    def look() -> list[int | bool]:
        return [os.stat("/proc/self/ns/mnt").st_ino, os.path.ismount(tmp_path / "only-here")]

    assert in_namespaces(lab.pid, ("mnt",), look) == [lab.namespace, True]
    assert os.stat("/proc/self/ns/mnt").st_ino == before
    assert not os.path.ismount(tmp_path / "only-here")


def test_sysv_segments_of_another_ipc_namespace_are_seen_from_inside_it(lab: Lab) -> None:
    libc = ctypes.CDLL(None, use_errno=True)

    def segments() -> list[str]:
        return Path("/proc/sysvipc/shm").read_text().splitlines()[1:]

    def make_one_in_a_new_ipc_namespace() -> dict[str, list[str]]:
        assert libc.unshare(0x08000000) == 0
        assert libc.shmget(0x6E6D, 4096, 0o1600) >= 0
        mine = in_namespaces(os.getpid(), ("ipc",), segments)
        outside = in_namespaces(lab.pid, ("ipc",), segments)
        return {"inside": mine, "outside": outside}

    answer = in_namespaces(lab.pid, ("mnt",), make_one_in_a_new_ipc_namespace)
    key = str(0x6E6D)
    assert [line.split()[0] for line in answer["inside"]] == [key]
    assert key not in [line.split()[0] for line in answer["outside"]]


def test_oserror_inside_comes_back_with_its_number_and_class(lab: Lab) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        in_namespaces(lab.pid, ("mnt",), lambda: os.stat("/no/such/\udcff"))
    assert caught.value.errno == errno.ENOENT
    assert caught.value.filename == "/no/such/\udcff"


def test_a_bug_inside_is_told_apart_from_an_error_of_the_kernel(lab: Lab) -> None:
    with pytest.raises(ChildFailedError, match="ZeroDivisionError"):
        in_namespaces(lab.pid, ("mnt",), lambda: 1 // 0)


def test_hostile_names_survive_the_way_back(lab: Lab) -> None:
    name = os.fsdecode(b"\xff\n\x00-\xe2\x82")
    assert in_namespaces(lab.pid, ("mnt",), lambda: {name: [name]}) == {name: [name]}


def test_an_answer_larger_than_a_pipe_arrives_whole(lab: Lab) -> None:
    assert in_namespaces(lab.pid, ("mnt",), lambda: "x" * 3_000_000) == "x" * 3_000_000


def test_child_that_takes_too_long_is_killed_and_reaped(lab: Lab, tmp_path: Path) -> None:
    note = tmp_path / "pid"

    def sleep() -> None:
        note.write_text(str(os.getpid()))
        time.sleep(3600)

    with pytest.raises(TimeoutError):
        in_namespaces(lab.pid, ("mnt",), sleep, timeout=0.5)
    assert not Path(f"/proc/{note.read_text()}").exists()


def test_child_killed_by_somebody_else_is_said_so(lab: Lab) -> None:
    with pytest.raises(ChildProcessError, match="killed by signal 9"):
        in_namespaces(lab.pid, ("mnt",), lambda: os.kill(os.getpid(), signal.SIGKILL))


def test_no_child_is_left_and_no_descriptor(lab: Lab) -> None:
    before = os.listdir("/proc/self/fd")
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    others = children.read_text()
    for function in (lambda: 1, lambda: os.stat("/no/such")):
        try:
            in_namespaces(lab.pid, ("mnt",), function)
        except FileNotFoundError:
            pass
    assert os.listdir("/proc/self/fd") == before
    assert children.read_text() == others


def test_exit_handlers_of_the_caller_do_not_run_in_the_child(lab: Lab, tmp_path: Path) -> None:
    note = tmp_path / "ran"
    atexit.register(note.touch)
    try:
        in_namespaces(lab.pid, ("mnt",), lambda: None)
    finally:
        atexit.unregister(note.touch)
    assert not note.exists()


def test_a_process_that_is_gone_is_process_vanished_not_a_surprise() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(FileNotFoundError):
        in_namespaces(pid, ("mnt",), lambda: None)


def test_reused_pid_in_another_namespace_is_refused(lab: Lab) -> None:
    with pytest.raises(ProcessLookupError):
        in_namespaces(lab.pid, ("mnt",), lambda: None, inodes={"mnt": lab.namespace + 1})


def test_without_privilege_the_error_is_permission_denied(lab: Lab) -> None:
    def unprivileged() -> str:
        os.setuid(65534)
        try:
            in_namespaces(os.getpid(), ("mnt",), lambda: None)
        except PermissionError as error:
            return str(error.strerror)
        return "entered"

    assert in_namespaces(lab.pid, ("mnt",), unprivileged) == os.strerror(errno.EPERM)
