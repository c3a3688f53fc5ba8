"""Claims about kernel/cgroups on the real kernel: cgroups of our own, real limits, tmpfs pages and OOM kills.

Needs root, and a memory controller that root may make cgroups in.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cgrouptrees import ID, UID, cgroupfs_pod, systemd_pod
from nodemem.kernel.capture import RecordingHost, open_capture
from nodemem.kernel.cgroups import Hierarchy, discover
from nodemem.kernel.host import Host
from nodemem.node.owners import ContainerRef, PodRef, parse_cgroup, process_owner

MIB = 1 << 20
_NUMBERS = itertools.count()


class Playground:
    """A cgroup of our own, and processes in it."""

    def __init__(self, hierarchy: Hierarchy) -> None:
        self.hierarchy = hierarchy
        self.v1 = hierarchy.memory_version == "v1"
        self.name = f"nodemem-test-{os.getpid()}-{next(_NUMBERS)}"
        self.path = f"{hierarchy.root.rstrip('/')}/{self.name}"
        self.directory = Path(hierarchy.directory, self.name)
        self.processes: list[subprocess.Popen[bytes]] = []
        if not self.v1:
            Path(hierarchy.directory, "cgroup.subtree_control").write_text("+memory")
        self.directory.mkdir()

    def make(self, name: str, *, limit: int | None = None) -> str:
        """A cgroup below; on v2 with the controller handed down to it."""
        place = self.directory
        for part in name.split("/"):
            if not self.v1:
                (place / "cgroup.subtree_control").write_text("+memory")
            place = place / part
            place.mkdir(exist_ok=True)
        if limit is not None:
            self.limit(name, limit)
        return f"{self.path}/{name}"

    def limit(self, name: str, limit: int) -> None:
        (self.directory / name / ("memory.limit_in_bytes" if self.v1 else "memory.max")).write_text(str(limit))

    def run(self, name: str, code: str) -> subprocess.Popen[bytes]:
        """Python code in a process in that cgroup, which prints a line when it is done with what it was to do."""
        procs = self.directory / name / "cgroup.procs"
        into = f"import os, sys, time; open({str(procs)!r}, 'w').write(str(os.getpid()))\n"
        process = subprocess.Popen([sys.executable, "-c", into + code], stdout=subprocess.PIPE, stdin=subprocess.PIPE)
        self.processes.append(process)
        return process

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        for place, _, _ in os.walk(self.directory, topdown=False):
            os.rmdir(place)


WAIT = "print('ready', flush=True); sys.stdin.read()"


def line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def hierarchy() -> Hierarchy:
    return discover(Host())


@pytest.fixture
def ground(hierarchy: Hierarchy) -> Iterator[Playground]:
    playground = Playground(hierarchy)
    try:
        yield playground
    finally:
        playground.close()


def test_the_memory_hierarchy_of_this_machine_is_found(hierarchy: Hierarchy) -> None:
    kinds = {fields.split()[0] for fields in _cgroup_mounts()}
    assert hierarchy.version == {("cgroup",): "v1", ("cgroup2",): "v2"}.get(tuple(kinds), "hybrid")
    controllers = Path("/proc/cgroups").read_text().splitlines()
    number = next((row.split()[1] for row in controllers if row.startswith("memory")), "0")
    assert hierarchy.memory_version == ("v2" if number == "0" else "v1")


def _cgroup_mounts() -> list[str]:
    rows = Path("/proc/self/mountinfo").read_text().splitlines()
    return [row.partition(" - ")[2] for row in rows if row.partition(" - ")[2].startswith("cgroup")]


def test_this_process_is_in_the_cgroup_that_it_is_placed_in(hierarchy: Hierarchy) -> None:
    path = hierarchy.path_of(Path("/proc/self/cgroup").read_bytes())
    assert path is not None
    assert os.getpid() in hierarchy.procs(path)
    assert path in list(hierarchy.walk())


def test_siblings_are_walked_in_the_order_they_were_made_in(ground: Playground) -> None:
    names = ["z", "a", "m", "0", "b"]
    for name in names:
        ground.make(name)
    ground.make("m/y")
    ground.make("m/x")
    os.rmdir(ground.directory / "a")
    ground.make("a")
    expected = ["", "/z", "/m", "/m/y", "/m/x", "/0", "/b", "/a"]
    assert list(ground.hierarchy.walk(ground.path)) == [ground.path + name for name in expected]


def test_limits_are_read_with_those_above(ground: Playground) -> None:
    ground.make("pod", limit=64 * MIB)
    small = ground.make("pod/small", limit=16 * MIB)
    large = ground.make("pod/large", limit=512 * MIB)
    free = ground.make("pod/free")
    read = ground.hierarchy.read
    assert [read(path).limit_bytes for path in (small, large, free)] == [16 * MIB, 512 * MIB, None]
    effective = ground.hierarchy.effective_limit
    assert [effective(path) for path in (small, large, free)] == [16 * MIB, 64 * MIB, 64 * MIB]


def test_pages_of_a_tmpfs_are_shmem_of_the_cgroup_that_wrote_them(ground: Playground, tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "nodemem-test", str(tmp_path)], check=True)
    try:
        writer = ground.make("pod/writer")
        ground.make("pod/other")
        before = ground.hierarchy.read(writer, cheap=True)
        assert before.shmem_bytes == 0
        process = ground.run("pod/writer", f"open({str(tmp_path / 'f')!r}, 'wb').write(bytes({8 * MIB})); {WAIT}")
        assert line(process) == b"ready"
        after = ground.hierarchy.read(writer)
        assert after.shmem_bytes == 8 * MIB
        assert after.file_bytes is not None
        assert after.file_bytes >= 8 * MIB
        assert after.usage_bytes is not None
        assert after.usage_bytes >= 8 * MIB
        assert ground.hierarchy.read(ground.path).shmem_bytes == 8 * MIB
        assert ground.hierarchy.read(f"{ground.path}/pod/other").shmem_bytes == 0
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_an_oom_kill_is_counted_where_it_happened(ground: Playground) -> None:
    small = ground.make("small", limit=16 * MIB)
    other = ground.make("other")
    process = ground.run(
        "small", f"print('ready', flush=True); x = bytearray({64 * MIB}); x[::4096] = b'x' * {16 * 1024}; {WAIT}"
    )
    assert line(process) == b"ready"
    assert process.wait() == -signal.SIGKILL
    assert ground.hierarchy.read(small).oom_kill_events == 1
    assert ground.hierarchy.read(other).oom_kill_events == 0
    assert ground.hierarchy.read(small).under_oom in (False, None)


def test_processes_are_found_where_they_are(ground: Playground) -> None:
    inner, outer = ground.make("pod/inner"), ground.make("outer")
    first, second = ground.run("pod/inner", WAIT), ground.run("outer", WAIT)
    assert line(first) == line(second) == b"ready"
    assert ground.hierarchy.procs(inner) == [first.pid]
    assert ground.hierarchy.procs(outer) == [second.pid]
    assert ground.hierarchy.procs(f"{ground.path}/pod") == []
    assert ground.hierarchy.subtree_procs(ground.path) == [first.pid, second.pid]
    for process, path in ((first, inner), (second, outer)):
        assert ground.hierarchy.path_of(Path(f"/proc/{process.pid}/cgroup").read_bytes()) == path


def test_a_cgroup_removed_during_the_walk_is_passed_over(ground: Playground) -> None:
    for name in ("a", "b", "c"):
        ground.make(name)
    seen = []
    for path in ground.hierarchy.walk(ground.path):
        seen.append(path)
        if path.endswith("/a"):
            os.rmdir(ground.directory / "b")
    assert seen == [ground.path, f"{ground.path}/a", f"{ground.path}/c"]
    with pytest.raises(FileNotFoundError):
        ground.hierarchy.read(f"{ground.path}/b")
    assert ground.hierarchy.unreadable == []


def test_a_reader_in_its_own_cgroup_namespace_sees_the_same_tree(ground: Playground) -> None:
    agent, sibling = ground.make("pod/agent"), ground.make("pod/sibling")
    other = ground.run("pod/sibling", WAIT)
    assert line(other) == b"ready"
    code = f"""
import ctypes, json
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x02000000) == 0  # CLONE_NEWCGROUP
from nodemem.kernel.cgroups import discover
from nodemem.kernel.host import Host
hierarchy = discover(Host())
cgroup = lambda pid: open(f"/proc/{{pid}}/cgroup", "rb").read()
print(json.dumps([list(hierarchy.walk()), hierarchy.path_of(cgroup("self")), hierarchy.path_of(cgroup({other.pid}))]))
"""
    reader = ground.run("pod/agent", code)
    walked, own, others = json.loads(line(reader))
    assert {agent, sibling} <= set(walked)
    assert (own, others) == (agent, sibling)


@pytest.mark.parametrize("pod", [cgroupfs_pod, systemd_pod])
def test_processes_in_either_driver_s_cgroups_are_given_to_their_containers(
    ground: Playground, pod: Callable[[str, str], str]
) -> None:
    plain = pod is cgroupfs_pod
    app = f"{pod(UID, 'Burstable')[1:]}/{ID if plain else f'cri-containerd-{ID}.scope'}"
    ground.make(app, limit=64 * MIB)
    process = ground.run(app, WAIT)
    assert line(process) == b"ready"
    container = ContainerRef(ID, None if plain else "containerd", UID, "Burstable")
    path = ground.hierarchy.path_of(Path(f"/proc/{process.pid}/cgroup").read_bytes())
    assert process_owner(path) == container
    found = {each: parse_cgroup(each) for each in ground.hierarchy.walk(ground.path)}
    assert [owner for owner in found.values() if owner] == [PodRef(UID, "Burstable"), container]


def test_a_capture_replays_the_same_cgroups(ground: Playground, tmp_path: Path) -> None:
    ground.make("z", limit=32 * MIB)
    ground.make("a/b")
    process = ground.run("a/b", WAIT)
    assert line(process) == b"ready"
    host = RecordingHost()
    live = discover(host)
    scan = live.scan(ground.path)
    procs = live.subtree_procs(ground.path)
    host.write(tmp_path / "capture.tar")
    again = discover(open_capture(str(tmp_path / "capture.tar")))
    assert (again.version, again.memory_version, again.root) == (live.version, live.memory_version, live.root)
    assert list(again.scan(ground.path).items()) == list(scan.items())
    assert again.subtree_procs(ground.path) == procs == [process.pid]
