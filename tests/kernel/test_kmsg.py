"""/dev/kmsg followed while the kernel of this machine kills: needs root, and the v1 or v2 memory controller.

Every kill is in a memory cgroup of its own; kills of others that happen meanwhile are told from it by the path.
"""

import contextlib
import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nodemem.kernel.capture import ReplayHost
from nodemem.kernel.host import Host
from nodemem.kernel.kmsg import Follower, Source, Syslog, open_log, parse_record, ring_buffer
from nodemem.kernel.oomjudge import judge
from nodemem.kernel.oomlog import Report, reports

LIMIT_BYTES = 32 << 20
BOOT_ID = "/proc/sys/kernel/random/boot_id"

HOLD = "import time; held = bytearray(%d << 20); print(flush=True); time.sleep(60)"
GROW = "held = []\nwhile True: held.append(bytearray(1 << 20))"


@pytest.fixture
def cgroup() -> Iterator[Path]:
    v1 = Path("/sys/fs/cgroup/memory")
    path = (v1 if (v1 / "cgroup.procs").exists() else Path("/sys/fs/cgroup")) / f"nodemem-kmsg-{os.getpid()}"
    path.mkdir()
    try:
        limit = path / "memory.limit_in_bytes"
        (limit if limit.exists() else path / "memory.max").write_text(str(LIMIT_BYTES))
        yield path
    finally:
        deadline = time.monotonic() + 10
        while True:
            try:
                path.rmdir()
                break
            except OSError:
                assert time.monotonic() < deadline, "processes are left in the cgroup"
                time.sleep(0.05)


@contextlib.contextmanager
def started(cgroup: Path, code: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", code],
        stdout=subprocess.PIPE,
        preexec_fn=lambda: (cgroup / "cgroup.procs").write_text("0") and None,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def kill_one(cgroup: Path) -> tuple[int, int]:
    """Pids of the one that dies (it grows) and of the one that stays (8 MiB)."""
    with started(cgroup, HOLD % 8) as small:
        assert small.stdout is not None
        small.stdout.readline()
        with started(cgroup, GROW) as hog:
            assert hog.wait(60) == -9
            assert small.poll() is None
            return hog.pid, small.pid


def mine(found: list[Report], victim: int) -> list[Report]:
    """By the victim: beyond ten reports in five seconds the kernel prints the bare kill, without its cgroup."""
    return [report for report in found if victim in [kill.pid for kill in report.kills]]


def polled(follower: Follower, victim: int) -> list[Report]:
    """Polls until the kill is there; then once more, so that a second answer would show."""
    found: list[Report] = []
    deadline = time.monotonic() + 20
    while not found and time.monotonic() < deadline:
        found += mine(follower.poll(), victim)
        time.sleep(0.1)
    return found + mine(follower.poll(), victim)


@pytest.mark.parametrize("log", [open_log, Syslog])
def test_a_real_kill_is_seen_once_with_the_right_victim_time_and_cgroup(
    cgroup: Path, tmp_path: Path, log: Callable[[], Source]
) -> None:
    follower = Follower(Host(), tmp_path / "kmsg.json", settle_seconds=0.2, open_source=log)
    follower.poll()
    for _ in range(10):
        before = time.time()
        victim, other = kill_one(cgroup)
        after = time.time()
        (report,) = polled(follower, victim)
        if report.tasks:
            break
        time.sleep(5)  # the rate limit of reports, used up by other kills
    assert report.kills[0].pid == victim
    assert {task.pid for task in report.tasks} == {victim, other}
    assert report.constraint == "memcg"
    assert report.oom_memcg is not None
    assert report.oom_memcg.endswith(f"/{cgroup.name}")
    assert report.task_memcg == report.oom_memcg
    assert report.memory is not None
    assert report.memory.limit_bytes == LIMIT_BYTES
    assert report.page_size == os.sysconf("SC_PAGE_SIZE")
    assert report.kernel_release == os.uname().release
    assert report.key is not None
    assert report.key.startswith(Path(BOOT_ID).read_text().strip() + ":")
    assert report.time is not None
    assert before - 1 <= report.time <= after + 1
    judgement = judge(report)
    assert judgement.verdict == "right"
    assert all(pids == (victim,) for pids in judgement.predicted.values())
    follower.close()


def test_a_kill_is_seen_once_across_restarts_of_the_follower(cgroup: Path, tmp_path: Path) -> None:
    state = tmp_path / "kmsg.json"
    first = Follower(Host(), state, settle_seconds=0.2)
    first.poll()
    followed, _ = kill_one(cgroup)
    seen = polled(first, followed)
    first.close()

    second = Follower(Host(), state, settle_seconds=0.2)
    assert mine(second.poll(), followed) == []
    second.close()

    unattended, _ = kill_one(cgroup)
    third = Follower(Host(), state, settle_seconds=0.2)
    seen += polled(third, unattended)
    assert third.lost_records == 0
    third.close()

    fourth = Follower(Host(), state, settle_seconds=0.2)
    assert mine(fourth.poll(), followed) + mine(fourth.poll(), unattended) == []
    fourth.close()

    assert [report.kills[0].pid for report in seen] == [followed, unattended]
    assert len({report.key for report in seen}) == 2


def test_the_ring_buffer_reads_as_a_log_does(cgroup: Path) -> None:
    victim, _ = kill_one(cgroup)
    assert len(mine(list(reports(ring_buffer())), victim)) == 1


def test_what_a_process_writes_into_the_log_is_no_kill(tmp_path: Path) -> None:
    line = (
        f"Memory cgroup out of memory: Killed process {os.getpid()} (forged) total-vm:4kB, anon-rss:4kB, file-rss:0kB"
    )
    follower = Follower(Host(), tmp_path / "kmsg.json", settle_seconds=0)
    follower.poll()
    Path("/dev/kmsg").write_text(line)
    assert [report for report in follower.poll() if report.kills[0].name == "forged"] == []
    follower.close()


# --- what a machine in order doesn't do -------------------------------------------------------------------------------


class Scripted:
    """Records and errors one after the other, then nothing for now."""

    consecutive = True

    def __init__(self, *answers: bytes | OSError) -> None:
        self.answers = list(answers)

    def read(self) -> bytes:
        if not self.answers:
            raise BlockingIOError
        answer = self.answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    def close(self) -> None:
        self.answers.clear()


def record(sequence: int, text: str, *, flags: str = "-", priority: int = 6) -> bytes:
    return f"{priority},{sequence},{sequence * 1000},{flags};{text}\n SUBSYSTEM=x\n".encode()


def killed(sequence: int, pid: int) -> bytes:
    return record(sequence, f"Out of memory: Killed process {pid} (x) total-vm:4kB, anon-rss:4kB, file-rss:0kB")


def follower(state: Path | None, *answers: bytes | OSError, boot: str = "b1", settle: float = 0) -> Follower:
    host = ReplayHost({BOOT_ID: f"{boot}\n".encode()})
    return Follower(host, state, settle_seconds=settle, open_source=lambda: Scripted(*answers))


def pids(found: list[Report]) -> list[int]:
    return [report.kills[0].pid for report in found]


def test_records_that_were_overwritten_are_counted(tmp_path: Path) -> None:
    lost = OSError(errno.EPIPE, "overwritten")
    follow = follower(tmp_path / "s", record(1, "a"), killed(2, 11), lost, record(10, "b"), killed(11, 12))
    assert pids(follow.poll()) == [11, 12]
    assert follow.lost_records == 7


def test_records_lost_while_nobody_followed_are_counted(tmp_path: Path) -> None:
    assert pids(follower(tmp_path / "s", record(1, "a"), killed(2, 11)).poll()) == [11]
    follow = follower(tmp_path / "s", killed(20, 12))
    assert pids(follow.poll()) == [12]
    assert follow.lost_records == 17


def test_a_follower_that_stops_before_the_kill_has_settled_leaves_it_to_the_next(tmp_path: Path) -> None:
    log = (record(1, "a"), killed(2, 11), record(3, "b"))
    assert follower(tmp_path / "s", *log, settle=float("inf")).poll() == []
    (report,) = follower(tmp_path / "s", *log).poll()
    assert (report.kills[0].pid, report.key) == (11, "b1:2")
    assert follower(tmp_path / "s", *log).poll() == []


def test_another_boot_starts_anew(tmp_path: Path) -> None:
    assert pids(follower(tmp_path / "s", killed(500, 11)).poll()) == [11]
    again = follower(tmp_path / "s", killed(3, 12), boot="b2")
    (report,) = again.poll()
    assert report.kills[0].pid == 12
    assert report.key == "b2:3"
    assert again.lost_records == 0
    assert json.loads((tmp_path / "s").read_text()) == {"bootId": "b2", "sequence": 3}


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b'{"bootId": "b1"}', b'{"bootId": "b1", "sequence": "x"}', b"\xff"]
)
def test_a_damaged_note_is_no_note(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "s").write_bytes(damage)
    assert pids(follower(tmp_path / "s", killed(3, 12)).poll()) == [12]


def test_kills_without_a_report_each_have_a_key(tmp_path: Path) -> None:
    found = follower(None, killed(1, 11), killed(2, 12), killed(3, 13)).poll()
    assert pids(found) == [11, 12, 13]
    assert [report.key for report in found] == ["b1:1", "b1:2", "b1:3"]


def test_a_line_in_two_records_is_one_line() -> None:
    found = follower(
        None,
        record(1, "x invoked oom-killer: gfp_mask=0xd0, order=0, oom_score_adj=0"),
        record(2, "Task in /a", flags="c"),
        record(3, " killed as a result of limit of /b", flags="+"),
        killed(4, 11),
    ).poll()
    assert [(report.task_memcg, report.oom_memcg) for report in found] == [("/a", "/b")]


@pytest.mark.parametrize("data", [b"", b"x", b"6,1,1", b"a,b,c,-;x", b"6,1,1,-" + b"," * 200 + b";x", b"\x00" * 50])
def test_what_is_no_record_is_passed_over(data: bytes) -> None:
    assert parse_record(data) is None
    assert pids(follower(None, data or b"\n", killed(1, 11)).poll()) == [11]


def test_a_record_is_unescaped_and_its_dictionary_left_out() -> None:
    found = parse_record(b"6,339,5140900,-;a\\x5cb \\x1b[0m\\xff\n SUBSYSTEM=acpi\n")
    assert found is not None
    assert (found.text, found.sequence, found.uptime_usec) == (b"a\\b \x1b[0m\xff", 339, 5140900)


def test_where_the_device_may_not_be_opened_the_system_call_reads_the_same() -> None:
    """As in a container without the device: another process has no /dev/kmsg, and the same lines come out."""
    by_device = list(ring_buffer())
    by_call = list(ring_buffer(Syslog()))
    # The call leaves out what was cut at the start, and what is written in between is in one of them only.
    shared = set(by_device) & set(by_call)
    assert len(shared) > 0.9 * len(by_call) > 0


def test_records_of_the_call_are_not_counted_as_lost(tmp_path: Path) -> None:
    follower = Follower(Host(), tmp_path / "kmsg.json", open_source=Syslog)
    follower.poll()
    assert follower.lost_records == 0
    follower.close()
