"""``nodemem oom explain``: what the OOM killer did, from a kernel log, in plain words."""

import argparse
import gzip
import io
import sys
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, cast

from nodemem.cli import text
from nodemem.kernel import kmsg
from nodemem.kernel.oom import Generation, Task, parse_release, why_unkillable
from nodemem.kernel.oomjudge import Judgement, judge
from nodemem.kernel.oomlog import MAX_LINE, PAGE_SIZES, Counter, reports

NO_REPORT = 3
"""Exit code: the input was read and has no OOM report in it."""

_ROWS = 20
_NAMES = {
    Generation.CLAMPED_FIRST: "clampedFirst",
    Generation.CLAMPED_LAST: "clampedLast",
    Generation.ACCURATE: "accurate",
    Generation.UNKNOWN: "unknown",
}
_IN_WORDS = {
    Generation.CLAMPED_FIRST: "clamped, first wins",
    Generation.CLAMPED_LAST: "clamped, last wins",
    Generation.ACCURATE: "accurate",
}
_READ_ERRORS = (OSError, EOFError, zlib.error)


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "explain",
        help="explain OOM reports of a kernel log: who was killed, why, and whether that was right",
        description="Explain the OOM reports in a kernel log: who was killed, who would have been on other kernels, "
        "whether that freed most, and what to do. Reads what dmesg, journalctl (text or JSON) and syslog write, also "
        "gzip'd, and pasted text. Without FILE: standard input, or on a terminal the kernel's own log.",
        epilog=f"Exit codes: 0 explained; 1 the input can't be read; 2 wrong usage; {NO_REPORT} no OOM report in it.",
    )
    parser.add_argument("file", nargs="?", metavar="FILE", help="a log, plain or gzip'd; - is standard input")
    parser.add_argument("-o", "--output", choices=("table", "json", "yaml"), default="table", help="default: table")
    parser.add_argument(
        "--page-size",
        type=_page_size,
        metavar="N",
        help="of the machine that wrote the log, such as 4096 or 64Ki (default: from the report)",
    )
    parser.add_argument(
        "--kernel",
        type=_release,
        metavar="RELEASE",
        help="that machine's kernel, as uname -r prints it, where the log doesn't say",
    )
    parser.add_argument("--all", action="store_true", help=f"all rows of the table, not only the {_ROWS} highest")
    parser.set_defaults(func=run, run=run)


def run(args: argparse.Namespace) -> int:
    """0 explained; 1 unreadable input; 3 no report in it."""
    judgements: list[Judgement] = []
    found = 0
    source = "the kernel's log"
    error: Exception | None = None
    as_table = args.output == "table"
    try:
        if args.file is None and sys.stdin.isatty():
            lines: Iterable[bytes] = kmsg.ring_buffer()
        else:
            source = "standard input" if args.file in (None, "-") else args.file
            lines = _lines(args.file)
        for report in reports(lines, page_size=args.page_size):
            found += 1
            judgement = judge(report, release=args.kernel)
            if as_table:
                _print(judgement, found, everything=args.all)
            else:
                judgements.append(judgement)
    except _READ_ERRORS as problem:
        error = problem
    if not as_table:
        text.dump({"reports": [as_data(judgement) for judgement in judgements]}, args.output)
    if error is not None:
        hint = (
            " (try as root, or: dmesg | nodemem oom explain -)"
            if isinstance(error, PermissionError) and args.file is None
            else ""
        )
        print(f"nodemem: {source}: {_why(error)}{hint}", file=sys.stderr)
        return 1
    if not found:
        print(
            f"nodemem: {source}: no OOM report in it. Expected the kernel's lines from 'invoked oom-killer' to "
            "'Killed process', as in: dmesg, or: journalctl -k",
            file=sys.stderr,
        )
        return NO_REPORT
    return 0


def _why(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"damaged or cut short: {error}"


def _lines(file: str | None) -> Iterator[bytes]:
    if file is None or file == "-":
        yield from bounded_lines(_unpacked(sys.stdin.buffer))
        return
    with open(file, "rb") as stream:
        yield from bounded_lines(_unpacked(stream))


def _unpacked(stream: BinaryIO) -> BinaryIO:
    """Looks at the first bytes without taking them away, which works on a pipe too."""
    buffered = cast(io.BufferedReader, stream)
    return cast(BinaryIO, gzip.GzipFile(fileobj=buffered)) if buffered.peek(2)[:2] == b"\x1f\x8b" else stream


def bounded_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Lines of which what goes beyond ``MAX_LINE`` is left out, so that a file without line ends needs no memory."""
    while line := stream.readline(MAX_LINE):
        yield line
        while line and not line.endswith(b"\n") and len(line) == MAX_LINE:
            line = stream.readline(MAX_LINE)


def _page_size(value: str) -> int:
    number, unit = (value[:-2], 1024) if value.lower().endswith("ki") else (value, 1)
    size = int(number) * unit if number.isdecimal() and len(number) < 9 else 0
    if size not in PAGE_SIZES:
        known = ", ".join(str(each) for each in PAGE_SIZES)
        raise argparse.ArgumentTypeError(f"{value!r}: expected one of {known}, or 4Ki, 16Ki, 64Ki")
    return size


def _release(value: str) -> str:
    if parse_release(value) is None:
        raise argparse.ArgumentTypeError(f"{value!r}: expected a kernel release such as 5.4.0-136-generic")
    return value


# --- as data ----------------------------------------------------------------------------------------------------------


def as_data(judgement: Judgement) -> dict[str, Any]:
    report = judgement.report
    victim = report.victim
    limit = report.memory.limit_bytes if report.memory is not None else None
    return {
        "constraint": report.constraint,
        "time": report.time,
        "logTime": report.stamp,
        "uptimeSeconds": report.uptime_seconds,
        "kernelRelease": report.kernel_release,
        "invoker": None
        if report.invoker_name is None
        else {"pid": report.invoker_pid, "name": report.invoker_name, "order": report.order},
        "cgroup": report.oom_memcg,
        "victimCgroup": report.task_memcg,
        "limitBytes": limit if report.constraint in ("memcg", "unknown") else None,
        "memory": _counter(report.memory),
        "memoryAndSwap": _counter(report.memory_swap),
        "swap": _counter(report.swap),
        "totalPages": judgement.total.exact,
        "totalPagesFrom": judgement.total.why,
        "pageSize": report.page_size,
        "pageSizeFrom": report.page_size_source,
        "processes": [_process(task, judgement) for task in judgement.tasks],
        "tableWhole": report.table_whole,
        "gaps": list(report.gaps),
        "chosen": None if report.choice is None else {"pid": report.choice.pid, "name": report.choice.name},
        "printedScore": None if report.choice is None else report.choice.score,
        "victim": None if victim is None else {"pid": victim.pid, "name": victim.name},
        "killed": [
            {"pid": kill.pid, "name": kill.name, "rssBytes": kill.rss_bytes, "oomScoreAdj": kill.oom_score_adj}
            for kill in report.kills
        ],
        "oomGroup": report.group,
        "predicted": {_NAMES[generation]: list(pids) for generation, pids in judgement.predicted.items()},
        "generation": _NAMES[judgement.generation],
        "largest": None
        if judgement.largest is None
        else {
            "pid": judgement.largest.pid,
            "name": judgement.largest.name,
            "freesBytes": judgement.largest.frees_pages * report.page_size,
        },
        "verdict": judgement.verdict,
        "cause": judgement.cause,
        "explanation": judgement.explanation,
        "advice": list(judgement.advice),
    }


def _counter(counter: Counter | None) -> dict[str, Any] | None:
    if counter is None:
        return None
    return {"usageBytes": counter.usage_bytes, "limitBytes": counter.limit_bytes, "failures": counter.failcnt}


def _process(task: Task, judgement: Judgement) -> dict[str, Any]:
    return {
        "pid": task.pid,
        "name": task.name,
        "uid": task.uid,
        "rssPages": task.rss_pages,
        "rssAnonPages": task.anon_pages,
        "rssFilePages": task.file_pages,
        "rssShmemPages": task.shmem_pages,
        "swapPages": task.swap_pages,
        "pageTablePages": task.page_table_pages,
        "oomScoreAdj": task.oom_score_adj,
        "points": judgement.scores.get(task.pid),
        "unkillable": why_unkillable(task),
    }


# --- as a table -------------------------------------------------------------------------------------------------------


def _print(judgement: Judgement, number: int, *, everything: bool) -> None:
    out = text.console()
    report = judgement.report
    if number > 1:
        out.print()
    out.print(text.safe(f"Report {number}: {_headline(judgement)}"), style="bold")
    out.print(text.safe(judgement.explanation))
    for advice in judgement.advice:
        out.print(text.safe(f"- {advice}"))
    if not judgement.tasks:
        return
    if any(judgement.predicted.values()):
        out.print("Would have died: " + "; ".join(_predicted(judgement)))
    titles = ("PID", "FREES", "RSS", "SWAP", "TABLES", "ADJ", "SCORE")
    table = text.table("", *((title, "right") for title in titles), ("NAME", "left"), ("", "left"))
    ranked = sorted(judgement.tasks, key=lambda task: _rank(task, judgement))
    marked = {task.pid for task in (judgement.largest, judgement.victim, judgement.chosen) if task is not None}
    shown = [task for at, task in enumerate(ranked) if everything or at < _ROWS or task.pid in marked]
    size = report.page_size
    for task in shown:
        points = judgement.scores.get(task.pid)
        table.add_row(
            str(task.pid),
            text.binary_size(task.frees_pages * size),
            text.binary_size(task.rss_pages * size),
            text.binary_size(task.swap_pages * size),
            text.binary_size(task.page_table_pages * size),
            "unknown" if task.oom_score_adj is None else str(task.oom_score_adj),
            "-" if points is None else str(points),
            text.safe(task.name),
            ", ".join(_marks(task, judgement)),
        )
    out.print(table)
    if len(shown) < len(ranked):
        out.print(f"{len(ranked) - len(shown)} more: --all shows them.")
    if judgement.scores:
        out.print("SCORE is in pages, before a clamped kernel raises what is below 1 to 1.")


def _headline(judgement: Judgement) -> str:
    report = judgement.report
    where = {
        "memcg": f"memory cgroup {report.oom_memcg or '(not named)'} at its limit",
        "global": "the whole machine out of memory",
        "cpuset": f"NUMA nodes {report.nodes or '(not named)'} of a cpuset out of memory",
        "mempolicy": f"NUMA nodes {report.nodes or '(not named)'} of a memory policy out of memory",
        "unknown": "out of memory",
    }[report.constraint]
    if report.constraint == "memcg" and report.memory is not None and report.memory.limit_bytes is not None:
        where += f" of {text.binary_size(report.memory.limit_bytes)}"
    parts = [f"verdict {judgement.verdict}", where]
    if report.stamp is not None or report.uptime_seconds is not None:
        parts.append(report.stamp or f"{report.uptime_seconds:.0f} s after boot")
    if report.kernel_release is not None:
        parts.append(f"kernel {report.kernel_release}")
    return ", ".join(parts)


def _predicted(judgement: Judgement) -> Iterator[str]:
    for generation, pids in judgement.predicted.items():
        who = " or ".join(str(pid) for pid in pids[:5]) + (f" or {len(pids) - 5} others" if len(pids) > 5 else "")
        yield f"{who or 'nobody knows'} ({_IN_WORDS[generation]})"


def _rank(task: Task, judgement: Judgement) -> tuple[bool, int, int]:
    points = judgement.scores.get(task.pid)
    if judgement.scores:
        return points is None, -(points or 0), -task.frees_pages
    return why_unkillable(task) is not None, 0, -task.frees_pages


def _marks(task: Task, judgement: Judgement) -> Iterator[str]:
    if any(kill.pid in (task.pid, task.tgid) for kill in judgement.report.kills):
        yield "killed"
    elif judgement.chosen is not None and judgement.chosen.pid == task.pid:
        yield "chosen"
    if judgement.largest is not None and judgement.largest.pid == task.pid:
        yield "largest"
    if why := why_unkillable(task):
        yield why
