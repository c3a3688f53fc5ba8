"""A capture gives the same answers as the machine it was taken on, errors included."""

import errno
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from nodemem.kernel.capture import CAPTURE_INDEX, CaptureError, RecordingHost, ReplayHost, open_capture
from nodemem.kernel.host import Host, device_number


def record(host: Host) -> dict[str, object]:
    def outcome(call: object, *args: object) -> object:
        try:
            return call(*args)  # type: ignore[operator]
        except OSError as error:
            return errno.errorcode[error.errno or 0]

    proc = host.proc
    return {
        "meminfo": outcome(host.read, f"{proc}/meminfo"),
        "status": outcome(host.read_small, f"{proc}/self/status"),
        "gone": outcome(host.read, f"{proc}/4194999/status"),
        "directory": outcome(host.read, f"{proc}/self/ns"),
        "ns": outcome(host.readlink, f"{proc}/self/ns/mnt"),
        "not a link": outcome(host.readlink, f"{proc}/meminfo"),
        "list": outcome(host.listdir, f"{proc}/sys/vm"),
        "no list": outcome(host.listdir, f"{proc}/nothing"),
        "stat": outcome(host.stat, f"{proc}/self/exe"),
        "statvfs": outcome(host.statvfs, "/dev/shm"),
        "seen": outcome(host.observe, "walk", lambda: {"entries": 3, "name": "\udcff"}),
        "now": host.now(),
        "page size": host.page_size,
    }


@pytest.mark.parametrize("name", ["capture.tar", "capture.tar.gz"])
def test_a_capture_replays_every_answer(tmp_path: Path, name: str) -> None:
    live = RecordingHost()
    seen = record(live)
    live.write(tmp_path / name)

    def never() -> None:
        raise AssertionError("a replay measures nothing")

    replay = open_capture(str(tmp_path / name))
    assert record(replay) == seen
    assert replay.observe("walk", never) == seen["seen"]
    assert not replay.live


def test_an_unpacked_capture_replays_too(tmp_path: Path) -> None:
    live = RecordingHost()
    seen = record(live)
    live.write(tmp_path / "c.tar")
    with tarfile.open(tmp_path / "c.tar") as tar:
        tar.extractall(tmp_path / "c", filter="data")
    assert record(open_capture(str(tmp_path / "c"))) == seen


def test_a_bare_directory_serves_its_files_and_links(tmp_path: Path) -> None:
    (tmp_path / "proc/7/ns").mkdir(parents=True)
    (tmp_path / "proc/7/status").write_bytes(b"Name:\tx\n")
    (tmp_path / "proc/7/ns/mnt").symlink_to("mnt:[4026531832]")
    host = open_capture(str(tmp_path))
    assert host.listdir("/proc/7") == ["status"]
    assert host.readlink("/proc/7/ns/mnt") == "mnt:[4026531832]"
    with pytest.raises(FileNotFoundError):
        host.statvfs("/proc/7/root/run")


def test_a_running_system_is_no_capture() -> None:
    with pytest.raises(CaptureError, match="this is a running system"):
        open_capture("/")


def tar_of(path: Path, files: dict[str, bytes]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return str(path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"readme": b"x"}, "no proc/ in it"),
        ({CAPTURE_INDEX: b"{"}, "is damaged"),
        ({CAPTURE_INDEX: b"[]"}, "is damaged"),
        ({CAPTURE_INDEX: json.dumps({"format": 99}).encode()}, "capture format 99; this nodemem reads format 1"),
    ],
)
def test_what_is_no_capture_is_refused_by_name(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        open_capture(tar_of(tmp_path / "x.tar", files))


def test_a_file_that_is_no_tar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CaptureError, match=r"notes\.txt: expected a capture"):
        open_capture(str(tmp_path / "notes.txt"))
    with pytest.raises(CaptureError, match="expected a capture"):
        open_capture(str(tmp_path / "absent.tar"))


def test_a_hostile_capture_writes_nothing(tmp_path: Path) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    open_capture(tar_of(inside / "x.tar", {"../../escape": b"x", "proc/meminfo": b"MemTotal: 1 kB\n"}))
    assert [p.name for p in tmp_path.rglob("*")] == ["in", "x.tar"]


def test_directories_of_a_constructed_tree_list_their_children() -> None:
    host = ReplayHost({"/proc/1/status": b"", "/proc/2/status": b"", "/proc/meminfo": b""})
    assert host.listdir("/proc") == ["1", "2", "meminfo"]
    assert host.listdir("/proc/1") == ["status"]
    with pytest.raises(FileNotFoundError):
        host.listdir("/proc/3")


def test_device_numbers_read_as_in_mountinfo() -> None:
    st = os.stat("/proc")
    rows = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    assert device_number(st.st_dev) in {row[2] for row in rows if row[4] == "/proc"}
