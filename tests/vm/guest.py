"""The first process of a guest: mounts what nodemem reads, runs the scenarios, sends their results, powers off.

Runs in the guest alone, as /init; where systemd is the first process, as a service of it, and systemd mounts. Results
go out by the second serial port, one JSON object a line; the first serial port is the kernel's console. Each scenario
is a child of its own, so that one that dies or hangs costs only itself.
"""

import ctypes
import importlib
import json
import os
import select
import signal
import sys
import time
import traceback
from typing import Any, NoReturn

JOB = "/job.json"
RESULTS = "/dev/ttyS1"

_libc = ctypes.CDLL(None, use_errno=True)
_V1_CONTROLLERS = ("memory", "cpu", "pids")
_FINIT_MODULE = 313
_RB_POWER_OFF = 0x4321FEDC
_RB_AUTOBOOT = 0x01234567


def main() -> NoReturn:
    try:
        alone = os.getpid() == 1
        if alone:
            mount_all()
        with open(JOB) as text:
            job = json.load(text)
        results = os.open(RESULTS, os.O_WRONLY | os.O_NOCTTY)
        make_raw(results)
        if alone:
            mount_cgroups(job["cgroup"])
        if job["swap"]:
            for name in job["modules"]:
                insert_module(f"/modules/{name}")
            swap_on("/dev/vda")
        send(results, {"boot": os.uname().release})
        for scenario in job["scenarios"]:
            send(results, {"scenario": scenario["id"]} | run(scenario))
        send(results, {"done": True})
    except BaseException:  # noqa: BLE001 - the last words of pid 1 go to the console
        traceback.print_exc()
    finally:
        os.sync()
        time.sleep(0.1)
        _libc.reboot(_RB_POWER_OFF)
        _libc.reboot(_RB_AUTOBOOT)
        os._exit(1)


def run(scenario: dict[str, Any]) -> dict[str, Any]:
    """One scenario in a child: its value, or what went wrong; and the kernel's log of that time."""
    log = open_log()
    reader, writer = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.setsid()
        answer: dict[str, Any]
        try:
            module = importlib.import_module(scenario["module"])
            answer = {"value": getattr(module, scenario["function"])(**scenario["arguments"])}
        except BaseException:  # noqa: BLE001 - whatever it is, the host is to see it
            answer = {"error": traceback.format_exc()}
        with os.fdopen(writer, "w") as pipe:
            pipe.write(json.dumps(answer))
        os._exit(0)
    os.close(writer)
    text = b""
    deadline = started + scenario["timeout"]
    while time.monotonic() < deadline:
        if select.select([reader], [], [], 0.5)[0]:
            data = os.read(reader, 65536)
            if not data:
                break
            text += data
    else:
        os.kill(child, signal.SIGKILL)
        text = json.dumps({"error": f"timed out after {scenario['timeout']} s"}).encode()
    os.close(reader)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    reap_orphans()
    try:
        result: dict[str, Any] = json.loads(text)
    except ValueError:
        result = {"error": f"no answer: exit status {status}, {text[-2000:]!r}"}
    return result | {"seconds": round(time.monotonic() - started, 2), "log": read_log(log)}


def reap_orphans() -> None:
    """Children of a dead scenario die with it (PR_SET_PDEATHSIG) and are then this process's to wait for."""
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                return
        except ChildProcessError:
            return


def mount_all() -> None:
    mount("proc", "/proc", "proc")
    mount("sysfs", "/sys", "sysfs")
    mount("devtmpfs", "/dev", "devtmpfs")
    os.makedirs("/dev/shm", exist_ok=True)
    mount("tmpfs", "/dev/shm", "tmpfs", "size=80%")
    mount("tmpfs", "/run", "tmpfs")
    mount("tmpfs", "/tmp", "tmpfs")


def mount(source: str, target: str, fstype: str, options: str = "") -> None:
    os.makedirs(target, exist_ok=True)
    if _libc.mount(source.encode(), target.encode(), fstype.encode(), ctypes.c_ulong(0), options.encode()):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"mount {fstype} on {target}")


def mount_cgroups(version: str) -> None:
    top = "/sys/fs/cgroup"
    if version == "v2":
        mount("cgroup2", top, "cgroup2")
        with open(f"{top}/cgroup.subtree_control", "w") as control:
            control.write("+memory")
        return
    mount("tmpfs", top, "tmpfs", "size=1m")
    for controller in _V1_CONTROLLERS:
        mount("cgroup", f"{top}/{controller}", "cgroup", controller)
    if version == "hybrid":
        mount("cgroup2", f"{top}/unified", "cgroup2")


def insert_module(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    if _libc.syscall(ctypes.c_long(_FINIT_MODULE), fd, b"", 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    os.close(fd)


def swap_on(device: str) -> None:
    for _ in range(100):
        if os.path.exists(device):
            break
        time.sleep(0.1)
    if _libc.swapon(device.encode(), 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"swapon {device}")


def make_raw(fd: int) -> None:
    """No echo and no newline translation on the result port."""
    import termios

    settings = termios.tcgetattr(fd)
    settings[0] = settings[1] = settings[3] = 0
    termios.tcsetattr(fd, termios.TCSANOW, settings)


def send(fd: int, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(fd, data) :]


def open_log() -> int:
    fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    os.lseek(fd, 0, os.SEEK_END)
    return fd


def read_log(fd: int) -> str:
    """The kernel's messages since ``open_log``, a line each; the dictionary lines are left out."""
    lines = []
    while True:
        try:
            record = os.read(fd, 16384)
        except BlockingIOError:
            break
        except BrokenPipeError:
            lines.append("[messages lost]")
            continue
        lines.append(record.partition(b";")[2].partition(b"\n")[0].decode("utf-8", "replace"))
    os.close(fd)
    return "\n".join(lines)


if __name__ == "__main__":
    sys.path[:0] = ["/nodemem", "/scenarios"]
    main()
