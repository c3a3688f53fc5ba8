r"""/dev/kmsg followed: each OOM kill once, across restarts of the reader, with its time of day.

A record is ``prio,seq,usec,flags[,...];text`` and then lines with a space in front that hold its dictionary
(Documentation/ABI/testing/dev-kmsg). Control bytes, backslashes and bytes beyond ASCII come as ``\xNN``. One read(2)
returns one record; EPIPE says that unread ones were overwritten, and the next read goes on at the oldest.

Anyone who may write to /dev/kmsg can write text that looks like a kill; the kernel files it under another facility than
its own, and such records are passed over.
"""

import contextlib
import errno
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from nodemem.kernel import syscalls
from nodemem.kernel.host import Host
from nodemem.kernel.oomlog import Parser, Report, unescape

DEVICE = "/dev/kmsg"
RECORD_BYTES = 16384
"""Larger than any record the kernel hands out (PRINTK_MESSAGE_MAX is 2048, escaped at most four times that)."""

SETTLE_SECONDS = 1.0
"""A kill counts as complete after so long without another line of it: the members of a group follow at once."""

_UNDECIDED_SECONDS = 30.0
_SYSLOG_LINE = re.compile(rb"<(\d{1,6})>\[ *(\d{1,12})\.(\d{6})\] ?(.*)")
_SAME_MOMENT = 1000
"""Records of one microsecond at most; the factor between times and made-up sequence numbers."""

_HEAD = re.compile(rb"(\d{1,6}),(\d{1,20}),(\d{1,20}),([^;\n]{0,80});")


@dataclass(frozen=True, slots=True)
class Record:
    """``uptime_usec`` is the kernel's clock, which stands still in suspend. ``continues``: the rest of a line."""

    facility: int
    level: int
    sequence: int
    uptime_usec: int
    continues: bool
    text: bytes


def parse_record(data: bytes) -> Record | None:
    """None for what isn't a record. The dictionary (device, subsystem) is left out."""
    head = _HEAD.match(data)
    if head is None:
        return None
    priority = int(head[1])
    text = data[head.end() :].partition(b"\n")[0]
    flags = head[4].split(b",")[0]
    return Record(
        facility=priority >> 3,
        level=priority & 7,
        sequence=int(head[2]),
        uptime_usec=int(head[3]),
        continues=b"+" in flags,
        text=unescape(text),
    )


class Source(Protocol):
    """What the follower reads: one record a call, b"" or BlockingIOError for none now, OSError EPIPE for lost ones.

    ``consecutive``: a gap in the sequence numbers is a lost record.
    """

    consecutive: bool

    def read(self) -> bytes: ...

    def close(self) -> None: ...


class _Device:
    consecutive = True

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def read(self) -> bytes:
        return os.read(self._fd, RECORD_BYTES)

    def close(self) -> None:
        os.close(self._fd)


class Syslog:
    """The same records by syslog(2). A container without the device in its device cgroup can't open /dev/kmsg, whatever
    its capabilities; this takes CAP_SYSLOG alone.

    Each look copies the whole ring buffer (2 ms for 1 MiB). The call has no sequence numbers: they are made from the
    times, which every reader of this boot sees alike. Needs printk.time, the default.
    """

    consecutive = False

    def __init__(self) -> None:
        self._last = -1
        self._waiting: list[bytes] = []
        self._look()

    def read(self) -> bytes:
        if not self._waiting:
            self._look()
        return self._waiting.pop() if self._waiting else b""

    def close(self) -> None:
        self._waiting.clear()

    def _look(self) -> None:
        found: list[bytes] = []
        moment, index = -1, 0
        for line in syscalls.kernel_log().split(b"\n"):
            match = _SYSLOG_LINE.fullmatch(line)
            if match is None:
                continue  # cut off at the start of the buffer
            usec = int(match[2]) * 1_000_000 + int(match[3])
            index = index + 1 if usec == moment else 0
            moment, sequence = usec, usec * _SAME_MOMENT + index
            if sequence > self._last:
                self._last = sequence
                text = match[4].replace(b"\\", rb"\x5c")
                found.append(b"%s,%d,%d,-;%s" % (match[1], sequence, usec, text))
        self._waiting = found[::-1]


def open_log() -> Source:
    """/dev/kmsg, or syslog(2) where that can't be opened. Raises OSError where neither is allowed."""
    try:
        return _Device(DEVICE)
    except (PermissionError, FileNotFoundError):
        return Syslog()


def ring_buffer(source: Source | None = None) -> Iterator[bytes]:
    """What the kernel itself wrote and still remembers, oldest first, as dmesg prints it: ``[  12.345678] text``.

    Raises OSError where the log can't be read.
    """
    source = source or open_log()
    try:
        for record in _records(source):
            if record.facility == 0:
                yield from _as_printed(record)
    finally:
        source.close()


def _as_printed(record: Record) -> Iterator[bytes]:
    stamp = b"" if record.continues else b"[%5d.%06d] " % divmod(record.uptime_usec, 1_000_000)
    for line in record.text.split(b"\n"):
        yield stamp + line


def _records(source: Source) -> Iterator[Record]:
    """All records until there are no more for now. What was overwritten shows as a gap in their sequence."""
    while True:
        try:
            data = source.read()
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.EINVAL):
                continue  # overwritten; or larger than the buffer, and the kernel went past it
            raise
        if not data:
            return
        record = parse_record(data)
        if record is not None:
            yield record


@dataclass(frozen=True, slots=True)
class _Seen:
    record: Record
    read_at: float

    def age(self) -> float:
        """Seconds since it was written, or at least since it was read, should the kernel's two clocks disagree."""
        now = time.monotonic()
        return max(now - self.record.uptime_usec / 1e6, now - self.read_at)


class Follower:
    """Call ``poll`` now and then. ``state_path`` keeps, by boot, how far the log was read; None forgets.

    ``lost_records`` counts what the kernel overwrote before it could be read; a kill in there is not in any answer
    (memory.events and vmstat's oom_kill still count it). Without state the first poll answers with the kills of this
    boot that the kernel still remembers.
    """

    def __init__(
        self,
        host: Host,
        state_path: str | os.PathLike[str] | None = None,
        *,
        settle_seconds: float = SETTLE_SECONDS,
        open_source: Callable[[], Source] = open_log,
    ) -> None:
        """Raises OSError where the log can't be read: the caller says so once and goes on without."""
        self.lost_records = 0
        self._settle_seconds = settle_seconds
        self._state_path = None if state_path is None else os.fspath(state_path)
        self._boot_id = host.read_small(f"{host.proc}/sys/kernel/random/boot_id").decode("ascii", "replace").strip()
        self._parser = Parser(page_size=host.page_size)
        self._done_through = self._load()
        self._last_seen = self._done_through
        self._begun: _Seen | None = None
        self._decided: _Seen | None = None
        self._source = open_source()

    def poll(self) -> list[Report]:
        """The kills since the last call, oldest first, with ``time`` and a ``key`` (boot and record) of their own.

        What is returned is noted as done before it is returned. Never waits. Raises OSError where the note can't be
        written.
        """
        found: list[Report] = []
        for record in _records(self._source):
            if self._source.consecutive and 0 <= self._last_seen < record.sequence - 1:
                self.lost_records += record.sequence - self._last_seen - 1
            self._last_seen = max(self._last_seen, record.sequence)
            if record.facility == 0 and record.sequence > self._done_through:
                for line in _as_printed(record):
                    self._feed(line, record, found)
        settled = self._decided is not None and self._decided.age() >= self._settle_seconds
        given_up = self._decided is None and self._begun is not None and self._begun.age() >= _UNDECIDED_SECONDS
        if settled or given_up:
            self._take(self._parser.flush(), found)
            self._begun = self._decided = None
        self._save(self._last_seen if self._begun is None else self._begun.record.sequence - 1)
        return found

    def close(self) -> None:
        self._source.close()

    def _feed(self, line: bytes, record: Record, found: list[Report]) -> None:
        reports = self._parser.feed(line)
        if reports:
            self._take(reports, found)
            self._begun = self._decided = None
        if self._parser.pending and self._begun is None:
            self._begun = _Seen(record, time.monotonic())
        if self._parser.decided and self._decided is None:
            self._decided = _Seen(record, time.monotonic())

    def _take(self, reports: list[Report], found: list[Report]) -> None:
        if self._decided is None:
            return  # a report that was cut off; nobody is known to have died
        record = self._decided.record
        for number, report in enumerate(reports):
            key = f"{self._boot_id}:{record.sequence}" + (f".{number}" if number else "")
            found.append(replace(report, time=_time_of_day(record.uptime_usec), key=key))

    def _load(self) -> int:
        """The last record that is done with; -1 on another boot, or where the note is missing or damaged."""
        if self._state_path is None:
            return -1
        try:
            with open(self._state_path, "rb") as stream:
                state = json.load(stream)
            if state["bootId"] == self._boot_id:
                return int(state["sequence"])
        except (OSError, ValueError, TypeError, KeyError):
            pass
        return -1

    def _save(self, sequence: int) -> None:
        """Replaced in one step: a crash leaves the old note or the new one."""
        if sequence <= self._done_through or self._state_path is None:
            return
        self._done_through = sequence
        beside = f"{self._state_path}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        with open(beside, "x") as stream:
            json.dump({"bootId": self._boot_id, "sequence": sequence}, stream)
        os.replace(beside, self._state_path)


def _time_of_day(uptime_usec: int) -> float:
    """Unix time of a record. Both clocks stand still in suspend: right for what happened since the last resume."""
    return time.time() - (time.monotonic() - uptime_usec / 1e6)
