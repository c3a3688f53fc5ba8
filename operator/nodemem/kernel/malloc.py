"""glibc's malloc, told to be small. Imports nothing else of the project: it is wanted before everything else."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_BLOCK_BYTES = 128 << 10


def give_back() -> None:
    """One arena for all threads, large blocks given back when they are freed: glibc otherwise keeps several MB of what
    a scan or a list of objects took for a moment. Without glibc nothing happens."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_MMAP_THRESHOLD, _BLOCK_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _BLOCK_BYTES)
