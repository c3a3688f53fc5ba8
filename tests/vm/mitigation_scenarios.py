"""The mitigation inside the guests, where negative oom_score_adj can be set. Arguments and return values are JSON."""

import ctypes
import json
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nodemem.agent.log import Log
from nodemem.agent.mitigator import Mitigator
from nodemem.agent.reports import OwnReport
from nodemem.api.convert import read, wire
from nodemem.kernel import syscalls
from nodemem.kernel.host import Host
from nodemem.kernel.oom import Generation
from nodemem.node import mitigation, oomdomains
from nodemem.node.report import Names, PodName
from nodemem.node.snapshot import Collector
from nodemem.node.status import OomMitigationStatus

UID, ID = "9d0c6b0e-6bd5-4e2c-9bdb-0123456789ab", "c" * 64
MIB = 1 << 20
_libc = ctypes.CDLL(None, use_errno=True)


def mitigated_and_back(capabilities: list[int], kubelets: int, limit_mib: int) -> dict[str, Any]:
    """A Guaranteed container with processes of several users; the agent with ``capabilities`` alone, a new one for each
    pass, as if it were killed after each. What every process has, step by step."""
    place = _container(limit_mib)
    processes = {
        "first": _process(place, kubelets, user=0),
        "users": _process(place, kubelets, user=1000),
        "own": _process(place, -500, user=1000),
        "unkillable": _process(place, -1000, user=0),
        "sandboxed": _process(place, kubelets, user=70000),
    }
    statuses: list[Any] = []
    steps: list[dict[str, Any]] = []

    def step(name: str, pods: Sequence[str] = (UID,), caps: Sequence[int] = capabilities) -> None:
        answer = _as(caps, lambda: _agent(pods, statuses))
        statuses[:] = answer["statuses"]
        steps.append(
            {"step": name, "adj": {each: _adj(pid) for each, pid in processes.items()}, "statuses": list(statuses)}
        )

    step("record")
    step("without DAC_OVERRIDE", caps=[each for each in capabilities if each != 1])
    step("apply")
    processes["new"] = _process(place, kubelets, user=1000)
    processes["child"] = _fork_of(processes["first"], place)
    step("apply again")
    step("restore", pods=())
    step("nothing left", pods=())
    step("record again")
    step("apply for good")
    scores = {each: _score(pid) for each, pid in processes.items()}
    return {"steps": steps, "pids": processes, "scores": scores, "bound": _bound(place, capabilities, kubelets)}


def killed_first(capabilities: list[int], kubelets: int, limit_mib: int) -> dict[str, Any]:
    """The container runs out of memory after it was mitigated: who dies, and who lives."""
    place = _container(limit_mib)
    small = [_process(place, kubelets, user=1000) for _ in range(3)]
    hog = _process(place, kubelets, user=1000, grows=True)
    statuses: list[Any] = []
    for _ in range(2):
        known = statuses
        statuses = _as(capabilities, lambda known=known: _agent((UID,), known))["statuses"]  # type: ignore[misc]
    before = [_adj(pid) for pid in (*small, hog)]
    os.kill(hog, signal.SIGUSR1)
    _, status = os.waitpid(hog, 0)
    return {
        "adj": before,
        "hog": os.waitstatus_to_exitcode(status),
        "living": sum(os.waitpid(pid, os.WNOHANG) == (0, 0) for pid in small),
        "status": statuses,
    }


def _bound(place: Path, capabilities: list[int], kubelets: int) -> dict[str, Any]:
    """Raised by somebody with CAP_SYS_RESOURCE, a value can't be lowered by somebody without it; else it can."""
    found = {}
    for name, caps in (("without", capabilities), ("with", [*capabilities, 24])):
        pid = _process(place, kubelets, user=1000)
        _as(caps, lambda pid=pid: {"done": _write(pid, -50)})  # type: ignore[misc]
        raised = _adj(pid)
        answer = _as(capabilities, lambda pid=pid: {"error": _write(pid, kubelets)})  # type: ignore[misc]
        found[name] = [raised, _adj(pid), answer["error"]]
    return found


def _write(pid: int, value: int) -> str | None:
    try:
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(value))
    except OSError as error:
        return str(error.strerror)
    return None


def _agent(pods: Sequence[str], cluster: list[Any]) -> dict[str, Any]:
    """One pass of the agent, which begins with what is in the cluster. The kernel is taken for a clamped one."""
    mitigator = Mitigator(Host(), Log(), mitigate=True)
    spec = {"oomMitigations": [{"podUID": each, "podNamespace": "x", "podName": "y", "policy": "z"} for each in pods]}
    known = tuple(read(OomMitigationStatus, each) for each in cluster)
    mitigator.learn(OwnReport("uid", "1", 2, (), spec, {}, (), known))
    snapshot = Collector(Host()).collect(full=False)
    snapshot = replace(snapshot, probe=replace(snapshot.probe, generation=Generation.CLAMPED_LAST))
    places = mitigation.without(oomdomains.places(snapshot), mitigator.values(snapshot))
    targets = mitigation.targets(places, oomdomains.node_of(snapshot), mitigator.pods)
    # As for a pod of the API whose kubelet sets -997: which of the two Guaranteed ones it is, the processes show.
    mitigator.run(snapshot, targets, Names({UID: PodName("x", "y")}, {ID: "app"}, {ID: -997}), known)
    return {"statuses": [wire(each) for each in mitigator.statuses]}


def _as(capabilities: Sequence[int], work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """In a child of user 0 with these capabilities and no others."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        answer: dict[str, Any] = {}
        try:
            _only(capabilities)
            answer = work()
        except BaseException as error:  # noqa: BLE001 - told to the parent
            answer = {"broken": repr(error)}
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        answer = json.loads(pipe.read())
    os.waitpid(pid, 0)
    assert "broken" not in answer, answer
    return answer


def _only(capabilities: Sequence[int]) -> None:
    for each in range(41):
        if each not in capabilities:
            _libc.prctl(24, each, 0, 0, 0)  # PR_CAPBSET_DROP; not there on older kernels: no matter
    bits = sum(1 << each for each in capabilities)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    words = [bits & 0xFFFFFFFF, bits & 0xFFFFFFFF, 0, bits >> 32, bits >> 32, 0]
    assert _libc.capset(header, (ctypes.c_uint32 * 6)(*words)) == 0, os.strerror(ctypes.get_errno())
    line = next(each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("CapEff"))
    assert int(line.split()[1], 16) == bits


def _container(limit_mib: int) -> Path:
    top = Path("/sys/fs/cgroup")
    v1 = (top / "memory").is_dir()
    place = top / "memory" if v1 else top
    for number, name in enumerate(("kubepods", f"pod{UID}", ID)):
        place /= name
        if place.is_dir():
            _empty(place)
        place.mkdir(exist_ok=True)
        if not v1 and name != ID:
            (place / "cgroup.subtree_control").write_text("+memory")
        if number:
            (place / ("memory.limit_in_bytes" if v1 else "memory.max")).write_text(str(limit_mib * MIB))
    return place


def _empty(place: Path) -> None:
    for pid in (place / "cgroup.procs").read_text().split():
        os.kill(int(pid), signal.SIGKILL)
        try:
            os.waitpid(int(pid), 0)
        except ChildProcessError:
            pass


def _process(place: Path, adj: int, *, user: int, grows: bool = False) -> int:
    """Started as a runtime does it: by somebody with every right, who sets the value and then becomes the user.
    ``grows``: takes memory without end when it gets SIGUSR1."""
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(ready)
            _be(place, adj, user, tell, grows)
        finally:
            os._exit(1)
    os.close(tell)
    assert os.read(ready, 1) == b"x", "it died at its set-up"
    _ready[pid] = ready
    return pid


_ready: dict[int, int] = {}


def _be(place: Path, adj: int, user: int, tell: int, grows: bool) -> None:
    (place / "cgroup.procs").write_text("0")
    Path("/proc/self/oom_score_adj").write_text(str(adj))
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    _libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, as an exec does it: else its /proc files are root's
    syscalls.die_with_parent(9)  # last: another user is another death signal, that is none
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    held = [bytearray(b"x") * (20 * MIB if grows else MIB)]
    os.write(tell, b"x")
    signal.sigwait({signal.SIGUSR1})
    while grows:
        held.append(bytearray(b"x") * MIB)
    if os.fork() == 0:
        syscalls.die_with_parent(9)
        os.write(tell, b"x")
    signal.sigwait({signal.SIGUSR1})


def _fork_of(pid: int, place: Path) -> int:
    """A child of one of the container's processes: it inherits."""
    before = set((place / "cgroup.procs").read_text().split())
    os.kill(pid, signal.SIGUSR1)
    os.read(_ready[pid], 1)
    (new,) = set((place / "cgroup.procs").read_text().split()) - before
    return int(new)


def _adj(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def _score(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score").read_text())
