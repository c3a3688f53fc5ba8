"""What the guests with systemd run: the agent's own enforcer and reclaimer, called as the agent calls them.

In between they look at the journal, at journald and at files by other means. The agent is shut in as the chart's
container is: a mount namespace of its own with a read-only root and another /run, and no capabilities but those of an
agent that may enforce.
"""

import contextlib
import ctypes
import json
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from nodemem.agent import reclaim
from nodemem.agent.enforcer import Enforcer
from nodemem.agent.log import Log
from nodemem.agent.reclaimwords import JOURNAL_DROP_IN, TMPFILES_DROP_IN
from nodemem.agent.reports import OwnReport
from nodemem.api.convert import wire
from nodemem.api.types import JournalLimit, MemoryReportSpec, NodeReclaim, TmpfilesAge, TmpfsLimit
from nodemem.kernel import hostfiles, systemd
from nodemem.kernel.host import Host
from nodemem.node.snapshot import Collector, Thrift

MIB = 1 << 20
DAY = 86400
JOURNAL = "/run/log/journal"
MACHINE_ID = "0123456789abcdef0123456789abcdef"
CAPABILITIES = {
    "DAC_READ_SEARCH": 2,
    "SYS_CHROOT": 18,
    "SYS_PTRACE": 19,
    "SYS_ADMIN": 21,
    "SYSLOG": 34,
}
"""As in the chart's DaemonSet with enforcement.enabled."""

_libc = ctypes.CDLL(None, use_errno=True)
_NEWNS, _REC_PRIVATE, _BIND, _REMOUNT_RO_BIND = 0x20000, 0x44000, 0x1000, 0x1021
_CAPSET, _CAPBSET_DROP, _NO_NEW_PRIVS = 126, 24, 38


class Node:
    """An agent's enforcer and reclaimer, with what the API server would have of them."""

    def __init__(self, *, enforce: bool = True) -> None:
        self.lines: list[str] = []
        host, log = Host(), Log(self.lines.append)
        self._collector = Collector(host, Thrift())
        self._enforcer = Enforcer(host, log, enforce=enforce)
        self._reclaimer = reclaim.Reclaimer(host, log, enforce=enforce)
        self._own = OwnReport("uid", "1", 1, (), {}, {})

    def pass_over(self, spec: MemoryReportSpec) -> dict[str, Any]:
        """One pass of the agent; its answer, by the names of entries."""
        if wire(spec) != self._own.spec:
            self._own = replace(self._own, spec=wire(spec), generation=self._own.generation + 1)
        snapshot = self._collector.collect(full=False)
        self._enforcer.run(snapshot, self._own, self._enforcer.statuses)
        self._reclaimer.run(
            snapshot, self._own, self._enforcer.spec, self._enforcer.generation, self._enforcer.statuses
        )
        self._own = replace(self._own, limits=self._enforcer.statuses, reclaim=self._reclaimer.statuses)
        assert self._reclaimer.observed_generation == self._own.generation
        answers = {each.path or "journal": wire(each) for each in self._reclaimer.statuses}
        return answers | {each.mount_point: wire(each) for each in self._enforcer.statuses}


def in_a_container(fn: Callable[[], Any]) -> Any:
    """What ``fn`` returns in a child that is shut in as the agent's container is."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _shut_in()
            answer = {"value": fn()}
        except BaseException as error:  # noqa: BLE001 - whatever it is, the parent is to see it
            import traceback

            answer = {"error": f"{error!r}\n{traceback.format_exc()}"}
        with os.fdopen(writer, "w") as pipe:
            pipe.write(json.dumps(answer))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    answer = json.loads(text)
    if "error" in answer:
        raise AssertionError(answer["error"])
    return answer["value"]


def _shut_in() -> None:
    check, top = _checked, "/container"
    os.makedirs(top, exist_ok=True)
    check(_libc.unshare(_NEWNS), "unshare")
    check(_libc.mount(b"none", b"/", None, ctypes.c_ulong(_REC_PRIVATE), None), "private")
    check(_libc.mount(b"/", top.encode(), None, ctypes.c_ulong(_BIND), None), "bind")
    for kind, where in (
        ("tmpfs", "run"),
        ("tmpfs", "tmp"),
        ("proc", "proc"),
        ("sysfs", "sys"),
        ("cgroup2", "sys/fs/cgroup"),
    ):
        check(_libc.mount(b"none", f"{top}/{where}".encode(), kind.encode(), ctypes.c_ulong(0), None), where)
    check(_libc.mount(b"none", top.encode(), None, ctypes.c_ulong(_REMOUNT_RO_BIND), None), "read-only")
    check(_libc.chroot(top.encode()), "chroot")
    os.chdir("/")
    with open("/proc/sys/kernel/cap_last_cap") as last:
        number = int(last.read())
    for each in range(number + 1):
        if each not in CAPABILITIES.values():
            check(_libc.prctl(_CAPBSET_DROP, each, 0, 0, 0), "bounding set")
    mask = sum(1 << each for each in CAPABILITIES.values())
    low, high = mask & 0xFFFFFFFF, mask >> 32
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
    check(_libc.syscall(ctypes.c_long(_CAPSET), header, data), "capset")
    check(_libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    with contextlib.suppress(OSError):
        with open("/forbidden", "w"):
            pass
        raise AssertionError("the root is writable")


def _checked(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


# Specs


def journal(mib: int, mode: Any = "Enforce", policy: str = "cap-run") -> MemoryReportSpec:
    return MemoryReportSpec((), NodeReclaim(JournalLimit(mib * MIB, mode, policy)))


NOTHING = MemoryReportSpec()


# Looks


def journald() -> int:
    """Its pid, once systemd says that it runs."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = _systemctl("show", "--property=MainPID,SubState", "systemd-journald.service")
        fields = dict(line.split("=", 1) for line in found.splitlines())
        if fields["SubState"] == "running":
            return int(fields["MainPID"])
        time.sleep(0.1)
    raise AssertionError(found)


def _systemctl(*arguments: str) -> str:
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def journalctl(*arguments: str) -> str:
    done = subprocess.run(
        ["journalctl", "--no-pager", "--quiet", *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout


def in_journal() -> int:
    folder = f"{JOURNAL}/{MACHINE_ID}"
    return sum(os.stat(f"{folder}/{name}").st_blocks * 512 for name in os.listdir(folder))


def limit_in_use() -> str:
    """What the running journald says of its limit: "max 16.0M"."""
    journalctl("--rotate")  # when it says it
    said = journalctl(f"_PID={journald()}", "--output=cat").splitlines()
    line = [each for each in said if each.startswith("Runtime Journal (")][-1]
    return line.split(", ")[1]


def numbers() -> list[int]:
    lines = journalctl("--unit=talker.service", "--output=cat").splitlines()
    return [int(line.removeprefix("number ")) for line in lines if line.startswith("number ")]


def until_more_numbers(than: int) -> list[int]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = numbers()
        if found and found[-1] > than:
            return found
        time.sleep(0.3)
    raise AssertionError(f"the service says nothing more after {than}: {found[-5:]}")


def log_mib(mib: int) -> None:
    """Into the journal, as a program does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        to.connect("/run/systemd/journal/socket")
        for _ in range(mib * 32):
            to.send(f"MESSAGE={secrets.token_hex(32 * 1024)}\n".encode())  # half of it when it is compressed


def make_room() -> None:
    _checked(_libc.mount(b"none", b"/run", b"tmpfs", ctypes.c_ulong(0x20 | 6), b"size=256m"), "remount /run")


def drop_ins() -> dict[str, str]:
    found = {}
    for place in ("/run/systemd/journald.conf.d", "/run/tmpfiles.d"):
        for name in os.listdir(place) if os.path.isdir(place) else ():
            with open(f"{place}/{name}") as file:
                found[f"{place}/{name}"] = file.read()
    return found


# Scenarios


def limited_and_back() -> dict[str, Any]:
    make_room()
    log_mib(26)
    found: dict[str, Any] = {"before": in_journal(), "before_limit": limit_in_use(), "pids": [journald()]}

    def passes() -> list[dict[str, Any]]:
        node = Node()
        said = [node.pass_over(journal(16, "Audit")), *(node.pass_over(journal(16)) for _ in range(3))]
        return [*said, {"lines": node.lines}]

    *said, lines = in_a_container(passes)
    found |= {"audit": said[0]["journal"], "said": [each["journal"] for each in said[1:]], "log": lines["lines"]}
    found["pids"].append(journald())
    found |= {"after": in_journal(), "drop_ins": drop_ins(), "after_limit": limit_in_use()}
    log_mib(20)
    found["full"] = in_journal()
    found["renamed"] = in_a_container(lambda: Node().pass_over(journal(16, policy="other")))["journal"]
    found["renamed_drop_ins"] = drop_ins()
    found["pids"].append(journald())
    found["undone"] = in_a_container(lambda: Node().pass_over(NOTHING))
    found |= {"left": drop_ins(), "undone_limit": limit_in_use()}
    found["pids"].append(journald())
    return found


def talks_on() -> dict[str, Any]:
    last = until_more_numbers(-1)[-1]
    pids = [journald()]
    for size in (64, 48, None):
        spec = NOTHING if size is None else journal(size)
        in_a_container(lambda spec=spec: Node().pass_over(spec))
        pids.append(journald())
        last = until_more_numbers(last + 5)[-1]
    return {"numbers": numbers(), "pids": pids}


def killed_at_any_step(steps: list[str] | None = None) -> list[dict[str, Any]]:
    """Each step of a change, and of undoing it, is where one agent is killed; the next one starts and goes over it.
    ``steps``: these alone, by the names of functions."""
    found = []
    for spec, start in ((journal(32), NOTHING), (NOTHING, journal(32))):
        for step in steps or range(1000):
            in_a_container(lambda start=start: Node().pass_over(start))
            killed = _killed_at(step, spec)
            between = drop_ins()
            pid = journald()
            answer = in_a_container(lambda spec=spec: Node().pass_over(spec))
            again = journald()
            in_a_container(lambda spec=spec: Node().pass_over(spec))
            found.append(
                {
                    "wanted": "journal" if spec.reclaim else "nothing",
                    "step": step,
                    "killed": killed,
                    "between": between,
                    "answer": answer,
                    "left": drop_ins(),
                    "limit": limit_in_use(),
                    "restarted": pid != again,
                    "restarted_later": again != journald(),
                }
            )
            _systemctl("reset-failed", "systemd-journald.service")
            if not killed:
                break
    return found


def _killed_at(step: int | str, spec: MemoryReportSpec) -> bool:
    """An agent that dies before the call with this number, or name, that changes something; False if it came to its
    end."""
    child = os.fork()
    if child == 0:
        calls = iter(range(1000))

        def mortal(fn: Callable[..., Any]) -> Callable[..., Any]:
            def called(*args: Any, **kwargs: Any) -> Any:
                if step in (next(calls), fn.__name__):
                    os.kill(os.getpid(), signal.SIGKILL)
                return fn(*args, **kwargs)

            return called

        hostfiles.HostTree.note = mortal(hostfiles.HostTree.note)  # type: ignore[method-assign]
        hostfiles.HostTree.done = mortal(hostfiles.HostTree.done)  # type: ignore[method-assign]
        hostfiles.os.rename = mortal(os.rename)
        hostfiles.os.fchmod = mortal(os.fchmod)
        hostfiles._unlink = mortal(hostfiles._unlink)
        systemd.restart_journald = mortal(systemd.restart_journald)
        systemd.rotate_journal = mortal(systemd.rotate_journal)
        Node().pass_over(spec)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def refused() -> dict[str, Any]:
    """One thing after the other in the way."""
    both = MemoryReportSpec(
        (),
        NodeReclaim(
            JournalLimit(32 * MIB, "Enforce", "cap-run"), (TmpfilesAge("/run/spool", "7d", "Enforce", "cap-run"),)
        ),
    )
    found: dict[str, Any] = {"pids": [journald()]}
    os.mkdir("/run/spool")

    def ask(what: str) -> None:
        found[what] = in_a_container(lambda: Node().pass_over(both))

    os.mkdir("/run/elsewhere")
    for link in (os.path.dirname(JOURNAL_DROP_IN), os.path.dirname(TMPFILES_DROP_IN)):
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(link)
        os.symlink("/run/elsewhere", link)
    ask("directories")
    found["elsewhere"] = os.listdir("/run/elsewhere")
    for link in (os.path.dirname(JOURNAL_DROP_IN), os.path.dirname(TMPFILES_DROP_IN)):
        os.unlink(link)
        os.mkdir(link)
    for path in (JOURNAL_DROP_IN, TMPFILES_DROP_IN):
        os.symlink("/run/elsewhere/file", path)
    ask("files")
    found["elsewhere"] += os.listdir("/run/elsewhere")
    for path in (JOURNAL_DROP_IN, TMPFILES_DROP_IN):
        os.unlink(path)
        with open(path, "w") as file:
            file.write("# of an administrator\n")
    ask("foreign")
    found["kept"] = drop_ins()
    for path in (JOURNAL_DROP_IN, TMPFILES_DROP_IN):
        os.unlink(path)
    with open("/etc/systemd/journald.conf.d/99-late.conf", "w") as file:
        file.write("[Journal]\nRuntimeMaxUse=64M\n")
    ask("overridden")
    os.unlink("/etc/systemd/journald.conf.d/99-late.conf")
    os.rename(JOURNAL, "/run/elsewhere/journal")
    ask("persistent")
    os.rename("/run/elsewhere/journal", JOURNAL)
    found["pids"].append(journald())
    found["off"] = in_a_container(lambda: Node(enforce=False).pass_over(both))
    in_a_container(lambda: Node().pass_over(both))
    found["taken"] = drop_ins()
    found["off_undo"] = in_a_container(lambda: Node(enforce=False).pass_over(NOTHING))
    found["off_left"] = drop_ins()
    found["undone"] = in_a_container(lambda: Node().pass_over(NOTHING))
    found["left"] = drop_ins()
    os.rmdir("/run/spool")
    return found


def aged() -> dict[str, Any]:
    """In a tmpfs of its own, with the clock set forth."""
    os.makedirs("/run/spool")
    _checked(_libc.mount(b"none", b"/run/spool", b"tmpfs", ctypes.c_ulong(6), b"size=64m"), "mount")
    os.makedirs("/run/spool/logs/kept")
    with open("/etc/tmpfiles.d/kept.conf", "w") as file:
        file.write("x /run/spool/logs/kept\n")
    _fill("/run/spool/logs/old", 16)
    _fill("/run/spool/logs/kept/old", 1)
    _fill("/run/spool/other", 4)
    time.clock_settime(time.CLOCK_REALTIME, time.time() + 8 * DAY)
    _fill("/run/spool/logs/young", 12)
    found: dict[str, Any] = {}

    def spec(mode: Any, size_mib: int) -> MemoryReportSpec:
        ages = (TmpfilesAge("/run/spool/logs", "7d", mode, "cap-spool"),)
        return MemoryReportSpec(
            (TmpfsLimit("/run/spool", "Host", size_mib * MIB, mode, policy="cap-spool"),), NodeReclaim(None, ages)
        )

    def files() -> list[str]:
        listed = [os.path.join(where, name) for where, _, names in os.walk("/run/spool") for name in names]
        return sorted(path.removeprefix("/run/spool/") for path in listed)

    found["audit"] = in_a_container(lambda: Node().pass_over(spec("Audit", 24)))
    found["audit_left"] = [files(), drop_ins()]
    found["roomy"] = in_a_container(lambda: Node().pass_over(spec("Enforce", 64)))
    found["roomy_left"] = [files(), drop_ins()]

    def passes() -> list[dict[str, Any]]:
        node = Node()
        return [node.pass_over(spec("Enforce", 24)) for _ in range(3)]

    found["over"] = in_a_container(passes)
    found["over_left"] = [files(), drop_ins()]
    with open("/proc/self/mountinfo") as mounts:
        found["size"] = next(line.rpartition(" ")[2] for line in mounts if " /run/spool " in line)

    def back() -> list[dict[str, Any]]:
        node = Node()
        node.pass_over(spec("Enforce", 24))
        return [node.pass_over(NOTHING) for _ in range(2)]

    found["undone"] = in_a_container(back)
    found["undone_left"] = [files(), drop_ins()]
    return found


def _fill(path: str, mib: int) -> None:
    with open(path, "wb") as file:
        for _ in range(mib):
            file.write(os.urandom(MIB))


def without_systemd() -> dict[str, Any]:
    """In a guest whose first process is another."""
    os.makedirs("/run/spool")
    spec = MemoryReportSpec(
        (),
        NodeReclaim(
            JournalLimit(32 * MIB, "Enforce", "cap-run"), (TmpfilesAge("/run/spool", "7d", "Enforce", "cap-run"),)
        ),
    )
    said = Node().pass_over(spec)
    undone = Node().pass_over(NOTHING)
    return {"said": said, "undone": undone, "run": sorted(os.listdir("/run"))}
