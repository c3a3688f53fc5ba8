"""Kernel OOM reports rendered as each kernel prints them, and as each tool passes them on: for round trips."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from nodemem.kernel.oomlog import LogTask

COLUMNS = {
    "3.10": ("nr_ptes", "swap_pages"),
    "4.4": ("nr_ptes", "nr_pmds", "swap_pages"),
    "4.15": ("page_tables_bytes", "swap_pages"),
    "4.19": ("page_tables_bytes", "swap_pages"),
    "5.4": ("page_tables_bytes", "swap_pages"),
    "6.8": ("rss_anon_pages", "rss_file_pages", "rss_shmem_pages", "page_tables_bytes", "swap_pages"),
}
"""The columns between rss and oom_score_adj, by the first release that prints them so."""

_HEADS = {
    "3.10": "[ pid ]   uid  tgid total_vm      rss nr_ptes swapents oom_score_adj name",
    "4.4": "[ pid ]   uid  tgid total_vm      rss nr_ptes nr_pmds swapents oom_score_adj name",
    "4.15": "[ pid ]   uid  tgid total_vm      rss pgtables_bytes swapents oom_score_adj name",
    "4.19": "[  pid  ]   uid  tgid total_vm      rss pgtables_bytes swapents oom_score_adj name",
    "5.4": "[  pid  ]   uid  tgid total_vm      rss pgtables_bytes swapents oom_score_adj name",
    "6.8": "[  pid  ]   uid  tgid total_vm      rss rss_anon rss_file rss_shmem pgtables_bytes swapents"
    " oom_score_adj name",
}


@dataclass(frozen=True)
class Scene:
    """What happened; ``limit_kb`` None is the node. ``victim`` is an index into ``tasks``."""

    kernel: str
    tasks: tuple[LogTask, ...]
    victim: int
    limit_kb: int | None = 1048576
    page_kb: int = 4
    score: int = 0
    path: str = "/kubepods/pod1"


def row(task: LogTask, kernel: str) -> str:
    width = 5 if kernel in ("3.10", "4.4", "4.15") else 7
    middle = " ".join(f"{getattr(task, name) or 0:>8}" for name in COLUMNS[kernel])
    return (
        f"[{task.pid:>{width}}] {task.uid:>5} {task.tgid:>5} {task.total_vm_pages:>8} {task.rss_pages:>8} {middle}"
        f"         {task.oom_score_adj:>5} {task.name}"
    )


def messages(scene: Scene) -> list[str]:
    """The kernel's own lines, without any prefix."""
    kernel, victim = scene.kernel, scene.tasks[scene.victim]
    memcg = scene.limit_kb is not None
    one_line = kernel in ("5.4", "6.8")
    said = [
        f"{victim.name.strip()} invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0",
        f"CPU: 0 PID: {victim.pid} Comm: {victim.name} Not tainted {kernel}.0-test #1",
        "Call Trace:",
        " dump_stack+0x50/0x63",
        " dump_header+0x45/0x177",
    ]
    if memcg:
        if not one_line:
            said.append(f"Task in {scene.path}/c1 killed as a result of limit of {scene.path}")
        said += [
            f"memory: usage {scene.limit_kb}kB, limit {scene.limit_kb}kB, failcnt 8",
            f"memory+swap: usage {scene.limit_kb}kB, limit {scene.limit_kb}kB, failcnt 0",
            "kmem: usage 0kB, limit 9007199254740988kB, failcnt 0",
            f"Memory cgroup stats for {scene.path}:",
            "anon 209645568",
        ]
    else:
        said += [
            "Mem-Info:",
            "Free swap  = 0kB",
            "Total swap = 1048576kB",
            "2062044 pages RAM",
            "0 pages HighMem/MovableOnly",
            "56052 pages reserved",
        ]
    if one_line:
        said.append("Tasks state (memory values in pages):")
    said.append(_HEADS[kernel])
    said += [row(task, kernel) for task in scene.tasks]
    what = "Memory cgroup out of memory" if memcg else "Out of memory"
    total_vm = (victim.total_vm_pages or 0) * scene.page_kb
    sizes = f"total-vm:{total_vm}kB, anon-rss:{victim.rss_pages * scene.page_kb}kB, file-rss:0kB, shmem-rss:0kB"
    if one_line:
        domain = f"oom_memcg={scene.path},task_memcg={scene.path}/c1" if memcg else "global_oom,task_memcg=/"
        constraint = "CONSTRAINT_MEMCG" if memcg else "CONSTRAINT_NONE"
        said += [
            f"oom-kill:constraint={constraint},nodemask=(null),cpuset=/,mems_allowed=0,{domain},task={victim.name},"
            f"pid={victim.pid},uid={victim.uid}",
            f"{what}: Killed process {victim.pid} ({victim.name}) {sizes}, UID:{victim.uid}"
            f" pgtables:{(victim.page_tables_bytes or 0) // 1024}kB oom_score_adj:{victim.oom_score_adj}",
        ]
    else:
        said += [
            f"{what}: Kill process {victim.pid} ({victim.name}) score {scene.score} or sacrifice child",
            f"Killed process {victim.pid} ({victim.name}) {sizes}",
        ]
    said.append(
        f"oom_reaper: reaped process {victim.pid} ({victim.name}), now anon-rss:0kB, file-rss:0kB, shmem-rss:0kB"
    )
    return said


def _kmsg(line: str, number: int) -> str:
    text = "".join(
        chr(byte) if 32 <= byte < 127 and byte != 0x5C else f"\\x{byte:02x}"
        for byte in line.encode("utf-8", "surrogateescape")
    )
    return f"6,{number},{number * 10},-;{text}"


WRAPPINGS: dict[str, Callable[[str, int], str]] = {
    "bare": lambda line, number: line,
    "dmesg": lambda line, number: f"[{number:>5}.000123] {line}",
    "dmesg with the caller": lambda line, number: f"[{number:>5}.000123][ T{number}] {line}",
    "dmesg -T": lambda line, number: f"[Sat Apr 27 22:56:09 2019] {line}",
    "dmesg -x": lambda line, number: f"kern  :warn  : [{number:>5}.000123] {line}",
    "dmesg -r": lambda line, number: f"<4>[{number:>5}.000123] {line}",
    "dmesg --time-format iso": lambda line, number: f"2024-05-17T19:54:29,123456+00:00 {line}",
    "dmesg --color": lambda line, number: f"\x1b[32m[{number:>5}.000123] \x1b[0m\x1b[33m{line}\x1b[0m",
    "kmsg": _kmsg,
    "journalctl short": lambda line, number: f"May 17 19:54:29 host kernel: {line}",
    "journalctl short-precise": lambda line, number: f"May 17 19:54:29.123456 host kernel: {line}",
    "journalctl short-iso": lambda line, number: f"2024-05-17T19:54:29+0000 host kernel: {line}",
    "journalctl short-monotonic": lambda line, number: f"[{number:>5}.000123] host kernel: {line}",
    "journalctl json": lambda line, number: json.dumps(
        {"__REALTIME_TIMESTAMP": "1715975669000000", "MESSAGE": line, "_TRANSPORT": "kernel"}
    ),
    "journalctl json of bytes": lambda line, number: json.dumps(
        {"MESSAGE": list(line.encode("utf-8", "surrogateescape"))}
    ),
    "journalctl json-pretty": lambda line, number: f'\t"MESSAGE" : {json.dumps(line)},',
    "journalctl export": lambda line, number: f"MESSAGE={line}",
    "syslog RFC 3164": lambda line, number: f"<4>May 17 19:54:29 host kernel: [{number}.000123] {line}",
    "syslog RFC 5424": lambda line, number: f"<4>1 2024-05-17T19:54:29.123Z host kernel - - - [{number}.000123] {line}",
    "e-mail": lambda line, number: f"> > [{number:>5}.000123] {line}",
    "CRLF": lambda line, number: f"[{number:>5}.000123] {line}\r",
}


def log(lines: Iterable[str], wrapping: str) -> list[bytes]:
    wrap = WRAPPINGS[wrapping]
    return [
        wrap(line, number).encode("utf-8", "surrogateescape") + b"\n" for number, line in enumerate(lines, start=1000)
    ]
