"""``python -m bench.tried``: the choices behind the process table, measured one by one (docs/performance.md).

CPU microseconds per process, medians of interleaved rounds on the synthetic node, a fifth of the processes active.
"""

import os
import resource
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from bench.node import synthetic_node
from nodemem.kernel import procfs
from nodemem.kernel.host import Host
from nodemem.kernel.mountinfo import Lines
from nodemem.kernel.mounts import _parse_view
from nodemem.kernel.procfs import ProcessTable

PROCESSES = 1000
ROUNDS = 15


def reading(pids: list[str], name: str) -> Callable[[], object]:
    read = Host().read_small

    def run() -> None:
        for pid in pids:
            with suppress(OSError):
                read(f"/proc/{pid}/{name}")

    return run


def buffered(pids: list[str]) -> None:
    for pid in pids:
        with suppress(OSError), open(f"/proc/{pid}/status") as file:
            file.read().split()


def links(pids: list[str], name: str) -> None:
    for pid in pids:
        with suppress(OSError):
            os.readlink(f"/proc/{pid}/ns/{name}")


def kept(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        with suppress(OSError):
            os.pread(descriptor, 256, 0)


def slab_kib() -> int:
    return next(int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if line[:5] == "Slab:")


MOUNTS = """\
{d}1 / / - overlay overlay rw,lowerdir={layers},upperdir=/var/lib/containerd/{n}/fs,workdir=/var/lib/containerd/{n}/work
{d}2 / /proc - proc proc rw
{d}3 / /dev - tmpfs tmpfs rw,size=65536k,mode=755
{d}4 / /dev/pts - devpts devpts rw,gid=5,mode=620,ptmxmode=666
{p}5 / /dev/mqueue - mqueue mqueue rw
{p}6 / /sys - sysfs sysfs ro
26 /../{n} /sys/fs/cgroup - cgroup2 cgroup rw
259 /kubelet/pods/{p}/etc-hosts /etc/hosts - ext4 /dev/sda1 rw
259 /kubelet/pods/{p}/containers/{n} /dev/termination-log - ext4 /dev/sda1 rw
259 /containerd/sandboxes/{p}/hostname /etc/hostname - ext4 /dev/sda1 rw
259 /containerd/sandboxes/{p}/resolv.conf /etc/resolv.conf - ext4 /dev/sda1 rw
{p}7 / /dev/shm - tmpfs shm rw,size=65536k
{p}8 / /run/secrets/kubernetes.io/serviceaccount - tmpfs tmpfs rw,size=32768k
{d}2 /bus /proc/bus - proc proc rw
{d}2 /fs /proc/fs - proc proc rw
{d}2 /irq /proc/irq - proc proc rw
{d}2 /sys /proc/sys - proc proc rw
{d}2 /sysrq-trigger /proc/sysrq-trigger - proc proc rw
{d}9 / /proc/acpi - tmpfs tmpfs ro
{d}3 /null /proc/kcore - tmpfs tmpfs rw,size=65536k,mode=755
{d}3 /null /proc/keys - tmpfs tmpfs rw,size=65536k,mode=755
{d}3 /null /proc/timer_list - tmpfs tmpfs rw,size=65536k,mode=755
{d}0 / /sys/firmware - tmpfs tmpfs ro
"""
"""Device, root and mount point, and the filesystem, as in a container that containerd made."""


def mountinfo(container: int) -> bytes:
    """Made up: containers here have no devices of their own for /proc, /dev and the like, as those of a runtime do."""
    layers = ":".join(f"/var/lib/containerd/{container + layer}/fs" for layer in range(12))
    text = MOUNTS.format(n=container, p=container // 3, d=container, layers=layers)
    ids: dict[str, int] = {}
    lines = []
    for mount_id, line in enumerate(text.splitlines(), start=1000 + 40 * container):
        device, root, path, rest = line.split(" ", 3)
        on = 1 if path == "/" else next(ids[str(above)] for above in Path(path).parents if str(above) in ids)
        ids[path] = mount_id
        lines.append(f"{mount_id} {on} 0:{device} {root} {path} rw,nosuid,nodev,noexec,relatime {rest}\n")
    return "".join(lines).encode()


def steady(rotation: int) -> tuple[ProcessTable, Callable[[], object]]:
    table = ProcessTable(Host())

    def run() -> None:
        before, procfs.ROTATION = procfs.ROTATION, rotation
        table.scan()
        procfs.ROTATION = before

    return table, run


def main() -> None:
    with synthetic_node(PROCESSES) as node:
        pids = [str(pid) for pid in sorted(node.processes)]
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        for pid in pids:
            Path(f"/proc/{pid}/statm").read_bytes()
        before = slab_kib()
        descriptors = [os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC) for pid in pids]
        kept(descriptors)
        pinned = (slab_kib() - before) * 1024 / len(descriptors)
        tables = {rotation: steady(rotation) for rotation in (1, 5, 10, 30)}
        keeping = ProcessTable(Host())
        cases: dict[str, Callable[[], object]] = {
            "list /proc, names only": lambda: os.listdir("/proc"),
            "list /proc, names and inode numbers": lambda: procfs._pids("/proc"),
            "stat(2) of /proc/<pid>": lambda: [os.stat(f"/proc/{pid}") for pid in pids],
            **{f"read {name}": reading(pids, name) for name in ("statm", "stat", "status")},
            "read status by open().read().split()": lambda: buffered(pids),
            **{f"read {name}": reading(pids, name) for name in ("oom_score_adj", "oom_score", "cgroup")},
            "read the link ns/mnt": lambda: links(pids, "mnt"),
            "pread statm, descriptor kept": lambda: kept(descriptors),
            "table, first scan": lambda: ProcessTable(Host()).scan(),
            "table, everything again": lambda: keeping.scan(full=True),
            **{f"table, steady, rotation of {rotation}": run for rotation, (_, run) in tables.items()},
        }
        taken: dict[str, list[float]] = {name: [] for name in cases}
        for number in range(ROUNDS + 5):
            for name, run in cases.items():
                node.touch()
                start = time.process_time_ns()
                run()
                if number >= 5:
                    taken[name].append((time.process_time_ns() - start) / 1000 / len(pids))
        for descriptor in descriptors:
            os.close(descriptor)
        for name, values in taken.items():
            print(f"{name:<44}{statistics.median(values):>7.2f}")
        print(f"kernel memory of a kept descriptor, bytes   {pinned:>7.0f}")
    texts = {namespace: mountinfo(namespace) for namespace in range(330)}
    spent = []
    for _ in range(ROUNDS):
        start, lines = time.process_time_ns(), Lines()
        views = [_parse_view(namespace, text, (0, 0), False, lines) for namespace, text in texts.items()]
        spent.append((time.process_time_ns() - start) / 1000 / len(texts))
    assert all(len(view.entries) == 8 and not view.broken for view in views)
    print(f"{'mounts of a container of containerd':<44}{statistics.median(spent):>7.2f}")


main()
