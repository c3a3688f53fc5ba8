"""The program of the OOM experiment: takes memory page by page as it is told, and holds it.

It reads 8-byte little-endian page counts from standard input, touches that many new pages of a private anonymous
mapping for each, and writes the 8 bytes back. At the end of its input it exits. So whoever started it has it in hand,
and it never outlives them.

On x86-64 it is an executable of its own, a page of code and a page of stack, written here as machine code: a process of
four pages can stand for a pod's pause process, which an interpreter of 9 MiB can't. On other machines, or where a memfd
may not be executed, a fork of this interpreter does the same, and counts with the pages that it inherits.
"""

import mmap
import os
import struct
from collections.abc import Callable
from contextlib import suppress

_X86_64 = bytes.fromhex(
    "b89d000000 bf29000000 be01000000 31d2 4531d2 4531c0 0f05"  # prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
    "b89d000000 bf0f000000 488d3596000000 0f05"  # prctl(PR_SET_NAME, name)
    "b809000000 31ff 488b3576000000 ba03000000 41ba22400000 4983c8ff 4531c9 0f05"  # mmap(0, span, READ|WRITE,
    "4885c0 7853"  # PRIVATE|ANONYMOUS|NORESERVE, -1, 0); failed: exit
    "4889c3 488d2c30"  # rbx: the next page, rbp: the end
    "31c0 31ff 488d7424f0 ba08000000 0f05"  # next: read(0, count, 8)
    "4883f808 7536 488b4c24f0"  # not 8 bytes: exit; rcx = count
    "4885c9 7414 4839eb 730f"  # touch: none left, or at the end: done
    "c60301 48031d2f000000 48ffc9 ebe7"  # *rbx = 1; rbx += page; rcx--; touch
    "b801000000 bf01000000 488d7424f0 ba08000000 0f05 ebb4"  # done: write(1, count, 8); next
    "b8e7000000 31ff 0f05 90"  # exit: exit_group(0)
)  # and then its data: span (8 bytes), page size (8), name (16)

_BASE = 0x400000
_HEADERS = 64 + 56
_ARCHITECTURES = {"x86_64": (62, _X86_64)}

_MAP_NORESERVE = 0x4000  # not among the constants of Python's mmap

COUNT = struct.Struct("<Q")


def executable(name: str, span_bytes: int, page_size: int, machine: str) -> bytes | None:
    """A static ELF image that may take up to ``span_bytes``; None for a ``machine`` (uname -m) without one."""
    if machine not in _ARCHITECTURES:
        return None
    number, code = _ARCHITECTURES[machine]
    body = code + COUNT.pack(span_bytes) + COUNT.pack(page_size) + os.fsencode(name)[:15].ljust(16, b"\0")
    size = _HEADERS + len(body)
    # e_type EXEC; one program header: PT_LOAD, read and execute, the whole file.
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 2, number, 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x10000)
    return header + segment + body


def become(name: str, span_bytes: int, page_size: int, *, before: Callable[[], object]) -> None:
    """Turn this freshly forked child into the program, its pipes at 0 and 1. Returns at the end of its input.

    The caller then has to leave by ``os._exit``. ``before`` is called where no exec closes the caller's other files.
    """
    image = executable(name, span_bytes, page_size, os.uname().machine)
    if image is not None:
        with suppress(OSError):  # vm.memfd_noexec, a seccomp profile: the interpreter does it
            fd = os.memfd_create(name, os.MFD_CLOEXEC)
            os.write(fd, image)
            # By its path: Debian's 5.10.223 answers ENOENT to execveat(2) with AT_EMPTY_PATH.
            os.execve(f"/proc/self/fd/{fd}", [name], {})
    before()
    with suppress(OSError), open("/proc/self/comm", "w") as comm:
        comm.write(name[:15])
    with mmap.mmap(-1, span_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE) as memory:
        with suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_NOHUGEPAGE)
        at = 0
        while len(order := os.read(0, COUNT.size)) == COUNT.size:
            for _ in range(COUNT.unpack(order)[0]):
                if at < span_bytes:
                    memory[at] = 1
                    at += page_size
            os.write(1, order)
