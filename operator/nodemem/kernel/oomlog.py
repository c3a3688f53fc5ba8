"""Kernel OOM reports in any text that quotes them -> ``Report``: what the kernel printed, and nothing it did not.

The text may come from /dev/kmsg, dmesg, journalctl, syslog, a ticket or an e-mail. Lines are not matched against known
prefixes: the kernel's own words (mm/oom_kill.c, mm/memcontrol.c, mm/show_mem.c, from 3.10 on) are looked for anywhere
in a line, so that whatever stands in front of them doesn't matter, nor do lines of other CPUs in between. The columns
of the task table are read from its own header.

Reading is a stream: one unfinished report is held, of at most ``MAX_ROWS`` rows; all patterns are linear in the line,
and a line counts up to ``MAX_LINE`` bytes.
"""

import json
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

MAX_ROWS = 32768
"""Rows kept of one table; more than that and the report says that its table isn't whole."""

MAX_LINE = 8192
_MAX_KILLS = 32768
_MAX_IDLE_LINES = 2000
"""So many lines without a word of the OOM killer end a report."""

_MAX_PREAMBLE_AGE = 500
_UNLIMITED_KB = 9_000_000_000_000_000
"""PAGE_COUNTER_MAX prints as 9007199254740988kB (4 KiB pages) or a little more or less on other kernels."""

DEFAULT_PAGE_SIZE = 4096
PAGE_SIZES = (4096, 8192, 16384, 65536)

LogConstraint: TypeAlias = Literal["memcg", "global", "cpuset", "mempolicy", "unknown"]
PageSizeSource: TypeAlias = Literal["given", "victim", "mem-info", "assumed"]


@dataclass(frozen=True, slots=True)
class LogTask:
    """One row of the table. ``pid`` is a thread's where the group's leader has exited; ``page_tables_bytes`` is from
    4.15, ``nr_ptes`` (pages) before, ``nr_pmds`` (pages) 4.0 to 4.14. None: no such column."""

    pid: int
    name: str
    uid: int | None
    tgid: int | None
    total_vm_pages: int | None
    rss_pages: int
    oom_score_adj: int | None
    swap_pages: int | None = None
    page_tables_bytes: int | None = None
    nr_ptes: int | None = None
    nr_pmds: int | None = None
    rss_anon_pages: int | None = None
    rss_file_pages: int | None = None
    rss_shmem_pages: int | None = None

    def page_table_pages(self, page_size: int) -> int:
        if self.page_tables_bytes is not None:
            return self.page_tables_bytes // page_size
        return (self.nr_ptes or 0) + (self.nr_pmds or 0)


@dataclass(frozen=True, slots=True)
class Counter:
    """``memory: usage 204800kB, limit 204800kB, failcnt 8``. ``limit_bytes`` None: printed, and without a limit."""

    usage_bytes: int
    limit_bytes: int | None
    failcnt: int


@dataclass(frozen=True, slots=True)
class Choice:
    """``Kill process 24572 (java) score 0 or sacrifice child`` (before 5.2): whom the scores chose, before a child or
    the thread group stood in for it. ``score`` is badness * 1000 / totalpages."""

    pid: int
    name: str
    score: int


@dataclass(frozen=True, slots=True)
class Kill:
    """``Killed process 45 (alloc) total-vm:2000kB, ...``; fields the kernel's version doesn't print are None."""

    pid: int
    name: str
    total_vm_bytes: int
    anon_rss_bytes: int
    file_rss_bytes: int
    shmem_rss_bytes: int | None = None
    uid: int | None = None
    page_tables_bytes: int | None = None
    oom_score_adj: int | None = None

    @property
    def rss_bytes(self) -> int:
        return self.anon_rss_bytes + self.file_rss_bytes + (self.shmem_rss_bytes or 0)


@dataclass(frozen=True, slots=True)
class Reaped:
    """An oom_reaper line: what was left of the process after its anonymous memory was taken away. None: it failed."""

    pid: int
    name: str
    anon_rss_bytes: int | None
    file_rss_bytes: int | None
    shmem_rss_bytes: int | None


@dataclass(frozen=True, slots=True)
class Report:
    """One run of the OOM killer. None and empty mean that the text doesn't say.

    ``tasks`` are in the table's order. ``gaps`` says in words what is missing from the text. ``earlier_kills``: pids
    and names that the same log shows killed before; if they are still in the table, the kernel passed them over.
    ``kills``: one, or every member of ``group`` (memory.oom.group). ``stamp`` is the log's own time of the first line,
    ``uptime_seconds`` the kernel's. ``time`` is Unix time, filled in by who knows it (the follower of /dev/kmsg), and
    ``key`` names the kill uniquely there.
    """

    constraint: LogConstraint = "unknown"
    invoker_pid: int | None = None
    invoker_name: str | None = None
    order: int | None = None
    kernel_release: str | None = None
    oom_memcg: str | None = None
    task_memcg: str | None = None
    nodes: str | None = None
    memory: Counter | None = None
    memory_swap: Counter | None = None
    swap: Counter | None = None
    ram_pages: int | None = None
    reserved_pages: int | None = None
    total_swap_bytes: int | None = None
    node_present_bytes: tuple[tuple[int, int], ...] = ()
    columns: tuple[str, ...] = ()
    tasks: tuple[LogTask, ...] = ()
    choice: Choice | None = None
    kills: tuple[Kill, ...] = ()
    reaped: tuple[Reaped, ...] = ()
    group: str | None = None
    allocating_task: bool = False
    nobody: bool = False
    panicked: bool = False
    suppressed: int = 0
    gaps: tuple[str, ...] = ()
    earlier_kills: frozenset[tuple[int, str]] = frozenset()
    page_size: int = DEFAULT_PAGE_SIZE
    page_size_source: PageSizeSource = "assumed"
    stamp: str | None = None
    uptime_seconds: float | None = None
    time: float | None = None
    key: str | None = None

    @property
    def victim(self) -> Kill | None:
        return self.kills[0] if self.kills else None

    @property
    def table_whole(self) -> bool:
        return bool(self.tasks) and not self.gaps


# --- the kernel's sentences -------------------------------------------------------------------------------------------

_INVOKED = b" invoked oom-killer"
_ORDER = re.compile(rb"order=(-?\d{1,9})")
_NODEMASK = re.compile(rb"nodemask=([\d,-]{1,400})")
_COMM = re.compile(
    rb"(?:PID|Pid): (\d{1,10}),? [Cc]omm: (.{1,15}?) (?:Kdump: loaded )?(?:Not tainted|Tainted: .{1,60}?)"
    rb" (\d+\.\d+\S{0,80}) "
)
_TASK_IN = re.compile(rb"Task in (.+?) killed as a result of limit of (\S.*)")
_COUNTER = re.compile(rb"(memory\+swap|memory|kmem|swap): usage (\d{1,20})kB, limit (\d{1,20})kB, failcnt (\d{1,20})")
_HEADER = re.compile(rb"\[\s{0,4}pid\s{0,4}\]\s+uid\s+tgid((?:\s+[a-z_]{1,30}){2,16})")
_HEADER_START = re.compile(rb"\[\s{0,4}pid\s{0,4}\]\s+uid\b")
_ROW_START = re.compile(rb"\[\s{0,8}(\d{1,10})\](?=\s+\d{1,10}\s+\d)")
_NUMBERS = re.compile(rb"(?:\s+-?\d{1,20})*")
_SUMMARY_DOMAIN = re.compile(rb",mems_allowed=[\d,-]{0,400},(global_oom,task_memcg=|oom_memcg=|task=)")
_CHOICE = re.compile(rb"Kill process (\d{1,10}) \((.{0,64})\) score (\d{1,20}) or sacrifice child")
_KILLED = re.compile(
    rb"Killed process (\d{1,10})(?:, UID \d{1,10},)? \((.{0,64})\),? (?:UID (\d{1,10}), )?"
    rb"total-vm:(\d{1,20})kB, anon-rss:(\d{1,20})kB, file-rss:(\d{1,20})kB(?:, shmem-rss:(\d{1,20})kB)?"
    rb"(?:, UID:(\d{1,10}) pgtables:(\d{1,20})kB oom_score_adj:(-?\d{1,5}))?"
)
_REAPED = re.compile(
    rb"oom_reaper: reaped process (\d{1,10}) \((.{0,64})\), now anon-rss:(\d{1,20})kB, file-rss:(\d{1,20})kB,"
    rb" shmem-rss:(\d{1,20})kB"
)
_NOT_REAPED = re.compile(rb"oom_reaper: unable to reap pid:(\d{1,10}) \((.{0,64})\)")
_GROUP = re.compile(rb"Tasks in (.+) are going to be killed due to memory\.oom\.group set")
_SUPPRESSED = re.compile(
    rb"oom_kill_process: (\d{1,9}) callbacks suppressed|dump_header: (\d{1,9}) callbacks suppressed"
)
_RAM = re.compile(rb"(\d{1,15}) pages RAM")
_RESERVED = re.compile(rb"(\d{1,15}) pages reserved")
_TOTAL_SWAP = re.compile(rb"Total swap = (\d{1,20})kB")
_ACTIVE_PAGES = re.compile(rb"active_anon:(\d{1,15}) inactive_anon:(\d{1,15}) ")
_ACTIVE_KB = re.compile(rb"Node (\d{1,5}) active_anon:(\d{1,15})kB inactive_anon:(\d{1,15})kB")
_PRESENT = re.compile(rb"Node (\d{1,5}) \w{1,12} free:\d{1,15}kB.{1,600}? present:(\d{1,15})kB")
_SMALLEST = re.compile(rb"Node \d{1,5} \w{1,12}: \d{1,12}\*(\d{1,3})kB ")
_LOST = re.compile(
    rb"printk messages dropped|Missed \d{1,9} kernel messages|messages suppressed|\[\s?(?:\.\.\.|\u2026)\s?\]"
    rb"|\((?:\.\.\.)?\s?snip|^[>|\s]*(?:\.\.\.|<snip>)\s*$".replace(rb"\u2026", "\u2026".encode())
)
_OWN_SENTENCE = re.compile(
    rb"Kill(?:ed)? process \d{1,10} \(|Tasks? in /|oom-kill:constraint=| invoked oom-killer|: usage \d|oom_reaper:"
    rb"|Memory cgroup stats|^Call Trace"
)

_ANSI = re.compile(rb"\x1b\[[0-9;?]{0,32}[A-Za-z]")
_QUOTE = re.compile(rb"^[>|\s]+")
_UPTIME = re.compile(rb"\[\s{0,6}(\d{1,10}\.\d{1,9})\]")
_STAMP = re.compile(
    rb"^[>|\s\[]*(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?"
    rb"|(?:[^\W\d]{3} +)?[^\W\d]{3} +\d{1,2} \d\d:\d\d:\d\d(?:\.\d{1,9})?(?: \d{4})?)"
)
_SYSLOG_5424 = re.compile(rb"^<\d{1,3}>1 (\S{1,40}) ")
_JOURNAL_TIME = re.compile(rb'"__REALTIME_TIMESTAMP"\s*:\s*"(\d{1,18})"')
_KMSG = re.compile(rb"^\d{1,4},\d{1,20},\d{1,20},[^;\n]{1,40};")
_JSON_FIELD = re.compile(rb'^\s*"MESSAGE"\s*:\s*(".*"),?\s*$')
_JSON_BYTES = re.compile(rb'^\{.*"MESSAGE"\s?:\s?\[')
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")

_WORDS = (b"oom", b"f memory", b"Kill", b"Task", b" usage ", b"on memory")
_MEM_INFO_WORDS = (b" pages R", b" pages reserved", b"Total swap", b"active_anon:", b" present:", b"kB (", b"Mem-Info")

_COLUMN_FIELDS = {
    "uid": "uid",
    "tgid": "tgid",
    "total_vm": "total_vm_pages",
    "rss": "rss_pages",
    "rss_anon": "rss_anon_pages",
    "rss_file": "rss_file_pages",
    "rss_shmem": "rss_shmem_pages",
    "nr_ptes": "nr_ptes",
    "nr_pmds": "nr_pmds",
    "pgtables_bytes": "page_tables_bytes",
    "swapents": "swap_pages",
    "oom_score_adj": "oom_score_adj",
}
_COLUMNS_3_10 = ("uid", "tgid", "total_vm", "rss", "nr_ptes", "swapents", "oom_score_adj")
_COLUMNS_4_0 = ("uid", "tgid", "total_vm", "rss", "nr_ptes", "nr_pmds", "swapents", "oom_score_adj")
_COLUMNS_4_15 = ("uid", "tgid", "total_vm", "rss", "pgtables_bytes", "swapents", "oom_score_adj")
_COLUMNS_6_8 = (
    *("uid", "tgid", "total_vm", "rss", "rss_anon", "rss_file", "rss_shmem"),
    *("pgtables_bytes", "swapents", "oom_score_adj"),
)
_GUESSED_COLUMNS = {8: _COLUMNS_4_0, 10: _COLUMNS_6_8}


def reports(lines: Iterable[bytes], *, page_size: int | None = None) -> Iterator[Report]:
    """Each report of a log, as soon as it is certain that it has ended. Lines may keep their ends."""
    parser = Parser(page_size=page_size)
    for line in lines:
        yield from parser.feed(line)
    yield from parser.flush()


@dataclass(slots=True)
class _MemInfo:
    """The part of a Mem-Info block that says how large the machine is, and its pages."""

    ram_pages: int | None = None
    reserved_pages: int | None = None
    total_swap_bytes: int | None = None
    present_bytes: dict[int, int] = field(default_factory=dict)
    anon_pages: int | None = None
    anon_kb: dict[int, int] = field(default_factory=dict)
    smallest_kb: int | None = None
    kernel_release: str | None = None
    age: int = 0

    def read(self, line: bytes) -> None:
        self.age = 0
        if match := _RAM.search(line):
            self.ram_pages = int(match[1])
        elif match := _RESERVED.search(line):
            self.reserved_pages = int(match[1])
        elif match := _TOTAL_SWAP.search(line):
            self.total_swap_bytes = int(match[1]) * 1024
        elif match := _ACTIVE_KB.search(line):
            self._bounded(self.anon_kb, int(match[1]), int(match[2]) + int(match[3]))
        elif match := _ACTIVE_PAGES.search(line):
            self.anon_pages = int(match[1]) + int(match[2])
        elif match := _PRESENT.search(line):
            node = int(match[1])
            self._bounded(self.present_bytes, node, self.present_bytes.get(node, 0) + int(match[2]) * 1024)
        elif match := _SMALLEST.search(line):
            self.smallest_kb = int(match[1])

    @staticmethod
    def _bounded(table: dict[int, int], key: int, value: int) -> None:
        if key in table or len(table) < 1024:
            table[key] = value

    def page_size(self) -> int | None:
        if self.smallest_kb is not None and self.smallest_kb * 1024 in PAGE_SIZES:
            return self.smallest_kb * 1024
        return _page_size_of(sum(self.anon_kb.values()), self.anon_pages)


@dataclass(slots=True)
class _Draft:
    """A report that is still being read."""

    fields: dict[str, Any] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    tasks: list[LogTask] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    reaped: list[Reaped] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)
    mem_info: _MemInfo = field(default_factory=_MemInfo)
    memcg_oom: bool | None = None
    summary: bool = False
    idle: int = 0

    def gap(self, text: str) -> None:
        if text not in self.gaps:
            self.gaps.append(text)

    @property
    def in_table(self) -> bool:
        return bool(self.columns or self.tasks) and not (self.summary or self.kills or "choice" in self.fields)

    @property
    def decided(self) -> bool:
        return bool(self.kills) or "nobody" in self.fields

    @property
    def empty(self) -> bool:
        said = self.fields.keys() - {"suppressed", "stamp", "uptime_seconds", "time", "kernel_release"}
        return not (said or self.columns or self.tasks or self.kills)


class Parser:
    """The stream behind ``reports``, for who has lines as they come. ``feed`` and ``flush`` return finished reports."""

    def __init__(self, *, page_size: int | None = None) -> None:
        self._page_size = page_size
        self._draft: _Draft | None = None
        self._preamble: _MemInfo | None = None
        self._held: list[bytes] = []
        self._torn: Literal["name", "path"] | None = None
        self._killed: deque[tuple[int, str]] = deque(maxlen=256)
        self._row_patterns: dict[int, re.Pattern[bytes]] = {}

    @property
    def pending(self) -> bool:
        """Whether a report has begun."""
        return self._draft is not None

    @property
    def decided(self) -> bool:
        """Whether the report that has begun already says who died; more members of a group may follow."""
        return self._draft is not None and self._draft.decided

    def feed(self, line: bytes) -> list[Report]:
        if len(line) > MAX_LINE:
            line = line[:MAX_LINE]
        if self._draft is None and not _worth_reading(line) and not _JSON_BYTES.match(line):
            if self._preamble is not None:
                self._preamble.age += 1
                if self._preamble.age > _MAX_PREAMBLE_AGE:
                    self._preamble = None
            return []
        done: list[Report] = []
        for message in _messages(line):
            self._message(message, line, done)
        return done

    def flush(self) -> list[Report]:
        """The report that has begun, if any, as far as the text goes."""
        done: list[Report] = []
        if self._held:
            self._release(b"", done)
        self._finish(done)
        return done

    # Wrapped lines: a sentence that begins but doesn't end is held, and the next lines are tried as its rest.

    def _message(self, message: bytes, line: bytes, done: list[Report]) -> None:
        if self._held:
            rest = _QUOTE.sub(b"", message)
            whole = self._joined(rest) if rest and not rest.startswith((b"[", b"<")) else None
            if whole is not None:
                self._held = []
                self._sentence(whole, line, done)
                self._torn = "name" if _ROW_START.search(whole) else None
                return
            if rest and not self._incomplete(message) and not self._starts(rest) and len(self._held) < 4:
                self._held.append(message)
                return
            self._release(line, done)
        torn, self._torn = self._torn, None
        if (torn == "name" and self._last_word(message)) or (torn == "path" and self._path_end(message)):
            return
        if self._incomplete(message):
            self._held = [message]
            return
        self._sentence(message, line, done)

    def _last_word(self, message: bytes) -> bool:
        """After a row that was put together: the rest of its name, if the line break fell into that."""
        draft = self._draft
        rest = _QUOTE.sub(b"", message).rstrip()
        if draft is None or not draft.in_table or not draft.tasks or not rest or self._starts(rest):
            return False
        last = draft.tasks[-1]
        if len(os.fsencode(last.name)) + len(rest) > 15 or rest.startswith((b"[", b"<")):
            return False
        draft.tasks[-1] = replace(last, name=last.name + os.fsdecode(rest))
        return True

    def _path_end(self, message: bytes) -> bool:
        """After ``Task in /a killed as a result of limit of /kubepo``: the rest of that path."""
        draft = self._draft
        rest = message.rstrip()
        if draft is None or "oom_memcg" not in draft.fields or b" " in rest:
            return False
        if b"/" not in rest or rest.startswith(b"/"):
            return False
        draft.fields["oom_memcg"] += os.fsdecode(rest)
        return True

    def _joined(self, rest: bytes) -> bytes | None:
        """The held lines and this one as a whole sentence, broken at a space (e-mail) or anywhere (a terminal)."""
        wholes = [self._held[0]]
        for part in (*(_QUOTE.sub(b"", part) for part in self._held[1:]), rest):
            # The kernel's summary has no spaces of its own, all other sentences do.
            glues = (b"", b" ") if b"oom-kill:" in wholes[0] or b"oom-kill:" in part else (b" ", b"")
            wholes = [whole.rstrip() + glue + part for whole in wholes for glue in glues]
        return next((whole for whole in wholes if not self._incomplete(whole)), None)

    def _starts(self, message: bytes) -> bool:
        """Whether the line says something by itself, and so can't be the rest of another."""
        return bool(_ROW_START.match(message) or _HEADER_START.search(message) or _OWN_SENTENCE.search(message)) or any(
            word in message for word in (b"kernel:", *_MEM_INFO_WORDS)
        )

    def _release(self, line: bytes, done: list[Report]) -> None:
        """No rest came: the held lines count one by one."""
        held, self._held = self._held, []
        self._cut_short(held[0])
        for message in held:
            self._sentence(message, line, done)

    def _cut_short(self, held: bytes) -> None:
        draft = self._draft
        if draft is None or not draft.in_table or not _ROW_START.search(held):
            return
        match = self._row(held, draft.columns, nameless=True)
        if match is not None:
            self._add_row(draft, match, draft.columns)
        else:
            draft.gap("a row of the table is cut short")

    def _incomplete(self, message: bytes) -> bool:
        draft = self._draft
        if draft is not None and draft.in_table and (start := _ROW_START.search(message)):
            if draft.columns:
                return self._row(message, draft.columns) is None and _only_numbers(message, start.end())
            return False
        if _HEADER_START.search(message):
            return not message.rstrip().endswith(b" oom_score_adj name")
        if b"oom-kill:constraint=" in message:
            return not _whole_summary(message)
        if b"Killed process " in message:
            return _KILLED.search(message) is None or message.rstrip().endswith(b",")
        if b"Kill process " in message and b" (" in message:
            return _CHOICE.search(message) is None and b"sharing same memory" not in message
        if b"Tasks in /" in message:
            return _GROUP.search(message) is None
        if b"Task in /" in message:
            return _TASK_IN.search(message) is None
        if _INVOKED in message:
            return _ORDER.search(message) is None
        return False

    # Sentences.

    def _sentence(self, message: bytes, line: bytes, done: list[Report]) -> None:
        draft = self._draft
        if draft is not None and draft.in_table and _ROW_START.search(message):
            columns = draft.columns or _guess_columns(message) or ()
            match = self._row(message, columns) if columns else None
            if match is not None:
                draft.idle = 0
                self._add_row(draft, match, columns)
                return
        if any(word in message for word in _WORDS) and self._killer(message, line, done):
            if self._draft is not None:
                self._draft.idle = 0
            return
        if any(word in message for word in _MEM_INFO_WORDS):
            self._mem_info(message)
            return
        draft = self._draft
        if draft is None:
            if match := _COMM.search(message):
                self._preamble = self._preamble or _MemInfo()
                self._preamble.kernel_release = os.fsdecode(match[3])
            return
        draft.idle += 1
        if draft.idle > _MAX_IDLE_LINES:
            self._finish(done)
            return
        if match := _COMM.search(message):
            draft.fields.setdefault("invoker_pid", int(match[1]))
            draft.fields["invoker_name"] = os.fsdecode(match[2])
            draft.fields["kernel_release"] = os.fsdecode(match[3])
        elif draft.in_table and _LOST.search(message):
            draft.gap("lines are missing from the table")

    def _killer(self, message: bytes, line: bytes, done: list[Report]) -> bool:
        """Whether it was a sentence of the OOM killer."""
        if (at := message.find(_INVOKED)) >= 0:
            draft = self._begin(line, done)
            draft.fields["invoker_name"] = os.fsdecode(_comm_before(message[:at]))
            if match := _ORDER.search(message, at):
                draft.fields["order"] = int(match[1])
            if match := _NODEMASK.search(message, at):
                draft.fields["nodes"] = match[1].decode().strip(",")
        elif match := _KILLED.search(message):
            self._killed_line(match, message, line, done)
        elif match := _COUNTER.search(message):
            name = {b"memory": "memory", b"memory+swap": "memory_swap", b"swap": "swap"}.get(match[1])
            draft = self._continued(line, done, unless=name == "memory" and self._seen("memory"))
            limit = int(match[3])
            if name is not None:
                draft.fields[name] = Counter(
                    int(match[2]) * 1024, None if limit >= _UNLIMITED_KB else limit * 1024, int(match[4])
                )
            draft.memcg_oom = True
        elif match := _HEADER.search(message):
            columns = tuple(match[1].decode().split())
            if columns[-1] != "name" or "rss" not in columns:
                return False
            draft = self._continued(line, done, unless=self._in_or_after_table())
            draft.columns = ("uid", "tgid", *columns[:-1])
        elif b"oom-kill:constraint=" in message:
            self._summary(message, line, done)
        elif match := _CHOICE.search(message):
            draft = self._continued(line, done, unless=self._seen("choice"))
            draft.fields["choice"] = Choice(int(match[1]), os.fsdecode(match[2]), int(match[3]))
            self._kind(draft, message)
        elif match := _GROUP.search(message):
            draft = self._draft or self._begin(line, done)
            draft.fields["group"] = os.fsdecode(match[1])
        elif match := _REAPED.search(message):
            if self._draft is not None and len(self._draft.reaped) < _MAX_KILLS:
                sizes = [int(match[n]) * 1024 for n in (3, 4, 5)]
                self._draft.reaped.append(Reaped(int(match[1]), os.fsdecode(match[2]), *sizes))
        elif match := _NOT_REAPED.search(message):
            if self._draft is not None and len(self._draft.reaped) < _MAX_KILLS:
                self._draft.reaped.append(Reaped(int(match[1]), os.fsdecode(match[2]), None, None, None))
        elif match := _TASK_IN.search(message):
            draft = self._continued(line, done, unless=self._seen("oom_memcg"))
            draft.fields["task_memcg"] = os.fsdecode(match[1])
            draft.fields["oom_memcg"] = os.fsdecode(match[2].rstrip())
            self._torn = "path"
            draft.memcg_oom = True
        elif b"Out of memory and no killable processes" in message:
            draft = self._continued(line, done, unless=False)
            draft.fields["nobody"] = True
        elif match := _SUPPRESSED.search(message):
            draft = self._continued(line, done, unless=self._draft is not None)
            draft.fields["suppressed"] = int(match[1] or match[2])
        elif b"Kernel panic - not syncing: " in message and (b"ut of memory" in message or b"on memory" in message):
            if self._draft is not None:
                self._draft.fields["panicked"] = True
                if b"deadlocked on memory" in message and self._draft.memcg_oom is None:
                    self._draft.memcg_oom = False
        else:
            return False
        return True

    def _killed_line(self, match: re.Match[bytes], message: bytes, line: bytes, done: list[Report]) -> None:
        opens = b"ut of memory" in message[: match.start()]
        draft = self._draft
        if draft is None or (draft.kills and "group" not in draft.fields):
            draft = self._begin(line, done)
        uid = match[3] or match[8]
        kill = Kill(
            pid=int(match[1]),
            name=os.fsdecode(match[2]),
            total_vm_bytes=int(match[4]) * 1024,
            anon_rss_bytes=int(match[5]) * 1024,
            file_rss_bytes=int(match[6]) * 1024,
            shmem_rss_bytes=None if match[7] is None else int(match[7]) * 1024,
            uid=None if uid is None else int(uid),
            page_tables_bytes=None if match[9] is None else int(match[9]) * 1024,
            oom_score_adj=None if match[10] is None else int(match[10]),
        )
        # With oom.group the chosen process is named twice: once as the victim, once as a member.
        if len(draft.kills) < _MAX_KILLS and all(kill.pid != other.pid for other in draft.kills[:1]):
            draft.kills.append(kill)
        if opens:
            self._kind(draft, message)

    def _kind(self, draft: _Draft, message: bytes) -> None:
        if b"Memory cgroup out of memory" in message:
            draft.memcg_oom = True
        elif b"Out of memory" in message and draft.memcg_oom is None:
            draft.memcg_oom = False
        if b"(oom_kill_allocating_task)" in message:
            draft.fields["allocating_task"] = True

    def _summary(self, message: bytes, line: bytes, done: list[Report]) -> None:
        """The oom-kill line of 5.0 and later. Split from both ends: paths and names may hold anything, commas too."""
        draft = self._continued(line, done, unless=self._draft is not None and self._draft.summary)
        draft.summary = True
        body = message[message.index(b"oom-kill:constraint=") + len(b"oom-kill:constraint=") :]
        kind, _, body = body.partition(b",nodemask=")
        nodemask, _, body = body.partition(b",cpuset=")
        _, _, body = body.partition(b",mems_allowed=")
        constraint: dict[bytes, LogConstraint] = {
            b"CONSTRAINT_NONE": "global",
            b"CONSTRAINT_MEMCG": "memcg",
            b"CONSTRAINT_CPUSET": "cpuset",
            b"CONSTRAINT_MEMORY_POLICY": "mempolicy",
        }
        draft.fields["constraint"] = constraint.get(kind, "unknown")
        body = body.rpartition(b",task=")[0]
        domain, _, task_memcg = body.partition(b",task_memcg=")
        if task_memcg:
            draft.fields["task_memcg"] = os.fsdecode(task_memcg)
        mems, at, oom_memcg = domain.partition(b",oom_memcg=")
        if at:
            draft.fields["oom_memcg"] = os.fsdecode(oom_memcg)
        nodes = nodemask if kind == b"CONSTRAINT_MEMORY_POLICY" else mems.removesuffix(b",global_oom")
        draft.fields["nodes"] = os.fsdecode(nodes)

    def _mem_info(self, message: bytes) -> None:
        if self._draft is not None:
            if self._draft.kills:
                return
            self._draft.idle = 0
            self._draft.mem_info.read(message)
            return
        if self._preamble is None or b"Mem-Info" in message:
            self._preamble = _MemInfo()
        self._preamble.read(message)

    def _row(self, message: bytes, columns: tuple[str, ...], *, nameless: bool = False) -> re.Match[bytes] | None:
        count = len(columns)
        pattern = self._row_patterns.get(-count if nameless else count)
        if pattern is None:
            tail = rb"()\s*$" if nameless else rb" (.*\S)"
            pattern = re.compile(rb"\[\s{0,8}(\d{1,10})\]((?:\s+-?\d{1,20}){%d})" % count + tail)
            if len(self._row_patterns) < 64:
                self._row_patterns[-count if nameless else count] = pattern
        return pattern.search(message)

    def _add_row(self, draft: _Draft, match: re.Match[bytes], columns: tuple[str, ...]) -> None:
        if len(draft.tasks) >= MAX_ROWS:
            draft.gap(f"the table has more than {MAX_ROWS} rows")
            return
        if not draft.columns:
            draft.gap("the head of the table is missing")
        values: dict[str, Any] = {"uid": None, "tgid": None, "total_vm_pages": None, "oom_score_adj": None}
        for name, value in zip(columns, match[2].split(), strict=True):
            if name in _COLUMN_FIELDS:
                values[_COLUMN_FIELDS[name]] = int(value)
        draft.tasks.append(LogTask(pid=int(match[1]), name=os.fsdecode(match[3]), **values))

    # Where one report ends and the next begins.

    def _seen(self, name: str) -> bool:
        draft = self._draft
        return draft is not None and (name in draft.fields or draft.decided or (bool(draft.tasks) and name != "choice"))

    def _in_or_after_table(self) -> bool:
        draft = self._draft
        return draft is not None and bool(draft.columns or draft.kills or draft.summary or "choice" in draft.fields)

    def _continued(self, line: bytes, done: list[Report], *, unless: bool) -> _Draft:
        draft = self._draft
        if draft is None or unless or draft.decided:
            return self._begin(line, done)
        return draft

    def _begin(self, line: bytes, done: list[Report]) -> _Draft:
        draft = self._draft
        # "N callbacks suppressed" stands in front of the report it belongs to.
        suppressed = draft.fields.get("suppressed") if draft is not None and draft.empty else None
        self._finish(done)
        self._draft = draft = _Draft()
        if suppressed is not None:
            draft.fields["suppressed"] = suppressed
        if self._preamble is not None:
            draft.mem_info, self._preamble = self._preamble, None
            if draft.mem_info.kernel_release is not None:
                draft.fields["kernel_release"] = draft.mem_info.kernel_release
        if match := _UPTIME.search(line[:200]):
            draft.fields["uptime_seconds"] = float(match[1])
        if (match := _STAMP.search(line[:200])) or (match := _SYSLOG_5424.search(line[:200])):
            draft.fields["stamp"] = match[1].decode("utf-8", "replace")
        if match := _JOURNAL_TIME.search(line):
            draft.fields["time"] = int(match[1]) / 1e6
        return draft

    def _finish(self, done: list[Report]) -> None:
        draft, self._draft = self._draft, None
        if draft is None or draft.empty:
            return
        done.append(self._report(draft))
        self._killed.extend((kill.pid, kill.name) for kill in draft.kills[:256])

    def _report(self, draft: _Draft) -> Report:
        info = draft.mem_info
        if "constraint" not in draft.fields:
            draft.fields["constraint"] = {True: "memcg", False: "global", None: "unknown"}[draft.memcg_oom]
        if draft.columns and not draft.tasks and "nobody" not in draft.fields:
            draft.gap("the rows of the table are missing")
        if not draft.decided and "panicked" not in draft.fields:
            draft.gap("the text ends before the line that says who was killed")
        elif draft.tasks and draft.kills and not _holds_victim(draft):
            draft.gap("the process that was chosen isn't in the table")
        size, source = self._infer_page_size(draft)
        listed = {(task.pid, task.name) for task in draft.tasks}
        return Report(
            **draft.fields,
            ram_pages=info.ram_pages,
            reserved_pages=info.reserved_pages,
            total_swap_bytes=info.total_swap_bytes,
            node_present_bytes=tuple(sorted(info.present_bytes.items())),
            columns=draft.columns,
            tasks=tuple(draft.tasks),
            kills=tuple(draft.kills),
            reaped=tuple(draft.reaped),
            gaps=tuple(draft.gaps),
            earlier_kills=frozenset(killed for killed in self._killed if killed in listed),
            page_size=size,
            page_size_source=source,
        )

    def _infer_page_size(self, draft: _Draft) -> tuple[int, PageSizeSource]:
        if self._page_size is not None:
            return self._page_size, "given"
        by_pid = {task.pid: task for task in draft.tasks}
        for kill in draft.kills:
            task = by_pid.get(kill.pid)
            if task is not None:
                size = _page_size_of(kill.total_vm_bytes // 1024, task.total_vm_pages)
                size = size or _page_size_of(kill.rss_bytes // 1024, task.rss_pages)
                if size is not None:
                    return size, "victim"
        size = draft.mem_info.page_size()
        return (size, "mem-info") if size is not None else (DEFAULT_PAGE_SIZE, "assumed")


def _page_size_of(kilobytes: int, pages: int | None) -> int | None:
    """The page size that makes so many pages so many kB, within a tenth (the two are read at different moments)."""
    if not pages or not kilobytes:
        return None
    ratio = kilobytes * 1024 / pages
    return next((size for size in PAGE_SIZES if 0.9 < ratio / size < 1.1), None)


def _holds_victim(draft: _Draft) -> bool:
    """Whether the table has a row for the process that was chosen or for the one that died."""
    pids = {kill.pid for kill in draft.kills[:1]}
    choice = draft.fields.get("choice")
    if choice is not None and choice.name != draft.kills[0].name:
        pids = {choice.pid}
    elif choice is not None:
        pids.add(choice.pid)
    return any(task.pid in pids or task.tgid in pids for task in draft.tasks)


def _whole_summary(message: bytes) -> bool:
    domain = _SUMMARY_DOMAIN.search(message)
    if domain is None or (domain[1] == b"oom_memcg=" and message.find(b",task_memcg=", domain.end()) < 0):
        return False
    head, _, uid = message.rstrip().rpartition(b",uid=")
    return uid.isdigit() and head.rpartition(b",pid=")[2].isdigit()


def _guess_columns(message: bytes) -> tuple[str, ...] | None:
    """The columns of a row whose head was lost, by how many numbers it has."""
    start = _ROW_START.search(message)
    if start is None:
        return None
    numbers = _NUMBERS.match(message, start.end())
    values = numbers[0].split() if numbers is not None else []
    if len(values) == 7:
        # Page tables in bytes are whole pages of 4 KiB or more; a count of pages that large is 16 MiB of page tables.
        tables = int(values[4])
        return _COLUMNS_4_15 if tables >= 4096 and tables % 4096 == 0 else _COLUMNS_3_10
    return _GUESSED_COLUMNS.get(len(values))


def _only_numbers(message: bytes, start: int) -> bool:
    numbers = _NUMBERS.match(message, start)
    return numbers is not None and not message[numbers.end() :].strip()


def _comm_before(prefix: bytes) -> bytes:
    """The command name (at most 15 bytes) at the end of a line's beginning: ``... kernel: [ 12.3] runc:[2:INIT]``."""
    tail = prefix[-15:]
    if len(prefix) > 15:
        tail = max((tail.rpartition(mark)[2] for mark in (b"] ", b"kernel: ", b": ")), key=lambda part: -len(part))
    return _QUOTE.sub(b"", tail)


def _worth_reading(line: bytes) -> bool:
    """Whether a line outside of any report may begin one. Plain searches: this runs on every line of a journal."""
    return (
        b"oom" in line
        or b"f memory" in line
        or b"Kill" in line
        or b": usage " in line
        or b"Task" in line
        or b"Total swap" in line
        or b" pages R" in line
        or b" pages reserved" in line
        or b"Mem-Info" in line
        or b" Comm: " in line
        or b"active_anon:" in line
        or b" present:" in line
    )


def _messages(line: bytes) -> Iterator[bytes]:
    """The message or messages that a line of a log carries, without colours and line ends."""
    line = line.rstrip(b"\r\n")
    if _KMSG.match(line):
        yield from unescape(line[line.index(b";") + 1 :]).split(b"\n")
        return
    if b"\x1b" in line:
        line = _ANSI.sub(b"", line)
    if line.startswith(b"{"):
        message = _json_message(line)
        if message is not None:
            yield from message.split(b"\n")
            return
    elif match := _JSON_FIELD.match(line):
        try:
            yield from str(json.loads(match[1])).encode("utf-8", "surrogateescape").split(b"\n")
        except (ValueError, UnicodeError):
            pass
        else:
            return
    yield line


def _json_message(line: bytes) -> bytes | None:
    """The text of a journal entry in JSON (``journalctl -o json``), or of a container runtime's ``log`` lines.

    journald gives a message that isn't UTF-8 as a list of numbers.
    """
    try:
        entry = json.loads(line)
        message = next((entry[key] for key in ("MESSAGE", "message", "msg", "log") if key in entry), None)
        if isinstance(message, str):
            return message.encode("utf-8", "surrogateescape")
        if isinstance(message, list):
            return bytes(message)
    except (ValueError, TypeError, UnicodeError, RecursionError):
        return None
    return None


def unescape(text: bytes) -> bytes:
    r"""The text of a /dev/kmsg record: control bytes, backslashes and everything beyond ASCII come as ``\xNN``."""
    return _ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), text) if b"\\x" in text else text
