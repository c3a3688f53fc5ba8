"""What /proc/<pid>/stat, status and cgroup say. Data in, data out."""

from struct import Struct
from struct import error as StructError
from typing import NamedTuple

_NONE = b"       0"
"""A size that most processes have none of, as in status."""


class MalformedError(ValueError):
    """A file of /proc that is not in the kernel's format; the message names the file and what was expected."""


class Stat(NamedTuple):
    """The fields of /proc/<pid>/stat that status lacks, and some of both. ``comm`` is as the kernel wrote it there."""

    comm: bytes
    state: str
    ppid: int
    flags: int
    threads: int
    start_time_ticks: int


StatusFields = tuple[
    bytes, str, int, int, int, bool, int, int, int | None, int | None, int | None, int, int, int | None
]
"""Those of ``Status``, in its order."""


class Status(NamedTuple):
    """/proc/<pid>/status; sizes in bytes, 0 without an address space (``has_mm`` False)."""

    comm: bytes
    state: str
    ppid: int
    uid: int
    threads: int
    has_mm: bool
    virtual_bytes: int
    rss_bytes: int
    rss_anon_bytes: int | None
    rss_file_bytes: int | None
    rss_shmem_bytes: int | None
    page_tables_bytes: int
    swap_bytes: int
    hugetlb_bytes: int | None


def parse_stat(data: bytes) -> Stat:
    """proc(5) /proc/<pid>/stat. The name may hold anything, so fields are counted from the last parenthesis."""
    try:
        opening, closing = data.index(b"("), data.rindex(b")")
        field = data[closing + 1 :].split(None, 20)
        comm, state = data[opening + 1 : closing], field[0].decode("ascii")
        return Stat(comm, state, int(field[1]), int(field[6]), int(field[17]), int(field[19]))
    except (ValueError, IndexError) as error:
        raise MalformedError("stat: expected 'pid (comm) state ppid ...' with 22 fields or more") from error


def parse_status(data: bytes) -> Status:
    """fs/proc/array.c proc_pid_status(), every layout since 3.10."""
    lines: dict[bytes, bytes] = {}
    for line in data.split(b"\n"):
        key, _, value = line.partition(b":")
        lines.setdefault(key, value)
    try:
        size = lines.get(b"VmSize")
        return Status(
            comm=_unescape(lines[b"Name"][1:]),
            state=lines[b"State"].split(None, 1)[0].decode("ascii"),
            ppid=int(lines[b"PPid"]),
            uid=int(lines[b"Uid"].split(None, 1)[0]),
            threads=int(lines[b"Threads"]),
            has_mm=size is not None,
            virtual_bytes=0 if size is None else _kilobytes(size),
            rss_bytes=0 if size is None else _kilobytes(lines[b"VmRSS"]),
            rss_anon_bytes=_field(lines, b"RssAnon", size),
            rss_file_bytes=_field(lines, b"RssFile", size),
            rss_shmem_bytes=_field(lines, b"RssShmem", size),
            # Their own lines from 4.0 to 4.14; before and since VmPTE is all of them.
            page_tables_bytes=0 if size is None else _kilobytes(lines[b"VmPTE"]) + (_field(lines, b"VmPMD", size) or 0),
            swap_bytes=_field(lines, b"VmSwap", size) or 0,
            hugetlb_bytes=_field(lines, b"HugetlbPages", size),
        )
    except (ValueError, IndexError, KeyError) as error:
        raise MalformedError(
            "status: expected Name, State, PPid, Uid, Threads, and VmRSS and VmPTE with VmSize"
        ) from error


def parse_cgroup(data: bytes) -> bytes | None:
    """The path in the memory controller's hierarchy: v1's where it has the controller, else v2's; None without both."""
    at = data.find(b":memory:")  # at a glance, where v1 has it in a hierarchy of its own
    if at > 0 and data[data.rfind(b"\n", 0, at) + 1 : at].isdigit():
        return data[at + 8 :].partition(b"\n")[0]
    unified = None
    for line in data.split(b"\n"):
        parts = line.split(b":", 2)
        if len(parts) == 3:
            if b"memory" in parts[1].split(b","):
                return parts[2]
            if parts[0] == b"0" and not parts[1]:
                unified = parts[2]
    return unified


def _field(lines: dict[bytes, bytes], key: bytes, size: bytes | None) -> int | None:
    if size is None:
        return 0
    value = lines.get(key)
    return None if value is None else _kilobytes(value)


def _kilobytes(value: bytes) -> int:
    number, unit = value.split()
    if unit != b"kB":
        raise ValueError(unit)
    return int(number) * 1024


def _unescape(comm: bytes) -> bytes:
    r"""Undo seq_escape_str(): status writes a newline as ``\n`` and a backslash as ``\\``, and nothing else."""
    if b"\\" not in comm:
        return comm
    return b"\\".join(part.replace(b"\\n", b"\n") for part in comm.split(b"\\\\"))


class StatusParser:
    """``parse_status`` for thousands of files of one kernel.

    Every process with an address space has the same lines in the same order on one kernel, and sizes below 95 GiB are
    eight characters wide: where they are, counted from the end of the line VmSize, is learned from the first one. A
    file that does not fit (no address space, more than that resident) goes through ``parse_status``.
    """

    _SIZES = (b"VmRSS", b"RssAnon", b"RssFile", b"RssShmem", b"VmPTE", b"VmSwap", b"HugetlbPages")

    def __init__(self) -> None:
        self._lines: tuple[int, int, int] | None = None
        self._sizes = Struct("9s")

    def parse(self, data: bytes) -> Status:
        """The same as ``parse_status(data)``."""
        found = self.living(data)
        return parse_status(data) if found is None else Status._make(found)

    def living(self, data: bytes) -> StatusFields | None:
        """The same as a plain tuple, made in half the time; None, at a glance, without an address space."""
        size = data.find(b"\nVmSize:")
        if size < 0:
            return None
        if self._lines is not None:
            state, ppid, uid = self._lines
            line = data[:size].split(b"\n", uid + 1)
            at = data.find(b"\n", size + 1)
            end = at + self._sizes.size
            try:
                rss, anon, file, shmem, page_tables, swap, hugetlb, last = self._sizes.unpack_from(data, at)
                # What is wider than learned moves the last name to the right.
                if last == b"\nThreads:":
                    comm = line[0][6:]
                    return (
                        _unescape(comm) if b"\\" in comm else comm,
                        chr(line[state][7]),
                        int(line[ppid][6:]),
                        int(line[uid].split(b"\t", 2)[1]),
                        int(data[end : data.find(b"\n", end)]),
                        True,
                        int(data[size + 8 : at - 3]) << 10,
                        int(rss) << 10,
                        int(anon) << 10,
                        int(file) << 10,
                        int(shmem) << 10 if shmem != _NONE else 0,
                        int(page_tables) << 10,
                        int(swap) << 10 if swap != _NONE else 0,
                        int(hugetlb) << 10 if hugetlb != _NONE else 0,
                    )
            except (IndexError, ValueError, StructError):
                pass
        status = parse_status(data)
        if status.has_mm:
            self._learn(data)
        return status

    def _learn(self, data: bytes) -> None:
        self._lines = None
        keys = [line[: line.find(b":")] for line in data.split(b"\n")]
        last = data.find(b"\n", data.find(b"\nVmSize:") + 1)
        layout = "="
        for name in self._SIZES:
            at = data.find(b"\n" + name + b":\t", last) + len(name) + 3
            if at < last or data[at + 8 : at + 12] != b" kB\n":
                return  # a line is missing, or too large here
            layout += f"{at - last}x8s"
            last = at + 8
        threads = data.find(b"\nThreads:", last)
        if keys[0] == b"Name" and b"VmPMD" not in keys and threads > 0:
            self._sizes = Struct(f"{layout}{threads - last}x9s")
            self._lines = (keys.index(b"State"), keys.index(b"PPid"), keys.index(b"Uid"))
