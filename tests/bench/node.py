"""A synthetic Kubernetes node of known truth: pods as kubelet lays them out, made of small C processes.

110 pods, 330 containers with a memory cgroup and a mount namespace each, 302 tmpfs. Needs root. Everything is under one
memory cgroup named after this process, and goes away with the ``with`` block; the processes also with this process.
"""

import array
import compileall
import ctypes
import hashlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from types import FrameType

import nodemem

PODS = 110
CONTAINERS_PER_POD = 3
TMPFS = 302
TMPFS_BYTES = 1024 * 1024
FILE_BYTES = 16 * 1024
SHARED_BYTES = 32 * 1024
LIMIT_BYTES = 256 * 1024 * 1024
PROGRAMS = "NODEMEM_BENCH_PROGRAMS"
"""The environment variable that names a directory of programs built before, where there is no compiler."""
_PARENT = "nodemem-bench-"
_PR_SET_CHILD_SUBREAPER = 36
_HERE = Path(__file__).parent
_QOS = (("", "-997"), ("burstable/", "900"), ("besteffort/", "1000"))


@dataclass(frozen=True, slots=True)
class Truth:
    """What the generator knows of one process."""

    cgroup: str
    oom_score_adj: int
    shmem_bytes: int


@dataclass(slots=True)
class Node:
    """The running node: ``processes`` by pid, ``containers`` as cgroup paths, ``scratch`` a directory for programs."""

    memory_root: Path
    cgroup_version: str
    processes: dict[int, Truth]
    pods: "_Pods"
    reports: int
    scratch: Path

    @property
    def containers(self) -> list[str]:
        return [path for paths in self.pods.containers.values() for path in paths]

    @property
    def active(self) -> list[int]:
        """A fifth of the processes: those that ``touch`` changes."""
        return sorted(self.processes)[::5]

    def touch(self) -> None:
        """Every active process grows or shrinks; returns when all have."""
        active = self.active
        for pid in active:
            os.kill(pid, signal.SIGUSR1)
        _collect(self.reports, len(active))

    def churn(self, count: int = 1) -> list[tuple[list[str], list[str]]]:
        """``count`` pods end and as many start, in turn: the containers of the old and of the new one."""
        return [self.pods.replace() for _ in range(count)]


@dataclass(slots=True)
class _Pods:
    """The pods by number, and what it takes to start one."""

    root: Path
    top: Path
    version: str
    command: list[str]
    per_container: int
    reports: int
    reporting: int
    known: dict[int, Truth]
    running: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    containers: dict[int, list[str]] = field(default_factory=dict)
    made: int = 0

    def start(self, number: int) -> None:
        qos, adj = _QOS[number % len(_QOS)]
        paths = _make_cgroups(self.root, self.top, self.version, qos, self.made)
        self.made += 1
        tmpfs = TMPFS // PODS + (number < TMPFS % PODS)
        command = [*self.command, str(tmpfs), str(self.per_container), adj, str(self.reporting)]
        command += [f"{self.root}{path}/cgroup.procs" for path in paths]
        pod = self.running[number] = subprocess.Popen(command, pass_fds=[self.reporting])
        self.containers[number] = paths
        for pid, container, actual_adj in _collect(self.reports, 1 + self.per_container * (len(paths) - 1)):
            # The first process of each container but the sandbox has the shared memory; its forks came before that.
            first = pid != pod.pid and Path(f"/proc/{pid}/comm").read_bytes().strip() == b"app"
            self.known[pid] = Truth(paths[container], actual_adj, SHARED_BYTES if first else 0)

    def replace(self) -> tuple[list[str], list[str]]:
        number = self.made % PODS
        old = self.containers[number]
        gone = set(old)
        for pid in [pid for pid, truth in self.known.items() if truth.cgroup in gone]:
            del self.known[pid]
        directory = (self.root / old[0].lstrip("/")).parent
        _stop([self.running[number]], directory)
        _remove_tree(directory)
        self.start(number)
        return old, self.containers[number]


def build(source: str, into: Path, *options: str) -> Path:
    """Compile a C file of this directory, or take what ``PROGRAMS`` has of it."""
    if built := os.environ.get(PROGRAMS):
        return Path(built, Path(source).stem)
    program = into / Path(source).stem
    subprocess.run(["cc", "-O2", *options, str(_HERE / source), "-o", str(program)], check=True)
    return program


@contextmanager
def synthetic_node(processes: int) -> Iterator[Node]:
    """A node of about ``processes`` processes: a pause process per pod, the others spread over the containers."""
    # As in the image: an interpreter that has to compile its modules stays 2 MB larger.
    compileall.compile_dir(str(Path(nodemem.__file__).parent), quiet=1)
    per_container = max(1, round((processes - PODS) / (PODS * (CONTAINERS_PER_POD - 1))))
    with ExitStack() as stack:
        stack.enter_context(_stoppable())
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        root, version = _memory_hierarchy()
        _remove_abandoned(root)
        top = root / f"{_PARENT}{os.getpid()}"
        scratch = Path(stack.enter_context(TemporaryDirectory(prefix=f"{_PARENT}{os.getpid()}-")))
        pod_program = build("pod.c", scratch, "-static")
        for number in range(3):
            (scratch / str(number)).mkdir()
        reading, writing = os.pipe()
        stack.callback(os.close, reading)
        stack.callback(os.close, writing)
        pods = _Pods(root, top, version, [str(pod_program), str(scratch)], per_container, reading, writing, {})
        stack.callback(_remove_tree, top)
        stack.callback(lambda: _stop(list(pods.running.values()), top))
        for number in range(PODS):
            pods.start(number)
        yield Node(root, version, pods.known, pods, reading, scratch)


def _memory_hierarchy() -> tuple[Path, str]:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, options, *_ = line.split()
        if kind == "cgroup" and "memory" in options.split(","):
            return Path(point), "v1"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(point), "v2"
    raise SystemExit("bench: no cgroup hierarchy with the memory controller is mounted")


def _make_cgroups(root: Path, top: Path, version: str, qos: str, pod: int) -> list[str]:
    # Two benchmarks at once have no pod in common.
    uid = hashlib.sha256(f"{top.name} pod {pod}".encode()).hexdigest()
    uid = f"{uid[:8]}-{uid[8:12]}-{uid[12:16]}-{uid[16:20]}-{uid[20:32]}"
    paths = []
    for container in range(CONTAINERS_PER_POD):
        name = hashlib.sha256(f"{top.name} container {pod} {container}".encode()).hexdigest()
        path = top / "kubepods" / f"{qos}pod{uid}" / name
        path.mkdir(parents=True)
        if version == "v2":
            for parent in reversed([parent for parent in path.parents if parent.is_relative_to(root)]):
                (parent / "cgroup.subtree_control").write_text("+memory")
        (path / ("memory.limit_in_bytes" if version == "v1" else "memory.max")).write_text(str(LIMIT_BYTES))
        paths.append(f"/{path.relative_to(root)}")
    return paths


def _collect(fd: int, count: int) -> list[tuple[int, int, int]]:
    """``count`` reports of three ints each; a pod that died reports nothing, so the wait has an end."""
    data = b""
    deadline = time.monotonic() + 60
    os.set_blocking(fd, False)
    while len(data) < 12 * count:
        try:
            data += os.read(fd, 12 * count - len(data))
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise SystemExit("bench: the processes of the synthetic node did not report") from error
            time.sleep(0.002)
    values = array.array("i", data)
    return [(values[at], values[at + 1], values[at + 2]) for at in range(0, len(values), 3)]


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM and SIGHUP end the benchmark as Ctrl-C does: through every ``finally``."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _members(top: Path) -> list[int]:
    pids = []
    for procs in top.rglob("cgroup.procs"):
        with suppress(OSError):
            pids += [int(pid) for pid in procs.read_text().split()]
    return pids


def _stop(pods: list[subprocess.Popen[bytes]], top: Path) -> None:
    """Kill by membership of our own cgroup: also finds what never reported."""
    deadline = time.monotonic() + 30
    while (pids := _members(top)) and time.monotonic() < deadline:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pod in pods:
            pod.poll()
        time.sleep(0.01)
    for pod in pods:
        pod.kill()
        pod.wait()
    # The pods' processes became children of this one: not every machine has an init that reaps.
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _remove_tree(top: Path) -> None:
    """rmdir is refused for a moment after the last process has gone."""
    deadline = time.monotonic() + 30
    while top.exists():
        for directory in sorted((path for path in top.rglob("*") if path.is_dir()), reverse=True):
            with suppress(OSError):
                directory.rmdir()
        with suppress(OSError):
            top.rmdir()
        if time.monotonic() > deadline:
            raise SystemExit(f"bench: {top} could not be removed")
        if top.exists():
            time.sleep(0.02)


def _remove_abandoned(root: Path) -> None:
    """What a benchmark left that was killed with SIGKILL."""
    for top in root.glob(f"{_PARENT}*"):
        if not Path(f"/proc/{top.name.removeprefix(_PARENT)}").exists():
            _stop([], top)
            _remove_tree(top)
    for scratch in Path(gettempdir()).glob(f"{_PARENT}*-*"):
        if not Path(f"/proc/{scratch.name.removeprefix(_PARENT).partition('-')[0]}").exists():
            shutil.rmtree(scratch, ignore_errors=True)
