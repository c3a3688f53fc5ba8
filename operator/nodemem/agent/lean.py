"""What keeps the process small, and its scans short. Imported before everything else: some of it only helps what is
imported later."""

import ctypes
import gc
import sys
import types
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_BLOCK_BYTES = 128 << 10
_COLLECT_EVERY = 200_000
"""Objects more than there were. A first scan makes some ten thousand that stay, more on larger nodes, and almost none
that only the collector can find: with the usual 700 it looks at them again and again. The loop has it run in full."""


def _lean_dataclasses() -> None:
    """dataclasses imports inspect, with ast, dis and tokenize 1.1 MB, for the docstring of classes that have none.

    It gets one whose signatures are empty, and which imports the real one for whatever else it asks.
    Whoever imports inspect later gets the real one, too. And it writes a ``__repr__`` for each class, 0.4 MB of them,
    that an agent never calls.
    """
    if "inspect" in sys.modules or "dataclasses" in sys.modules:
        return

    def signature(_: object) -> str:
        return ""

    def real(name: str) -> Any:
        import inspect

        return getattr(inspect, name)

    stand_in = types.ModuleType("inspect")
    stand_in.__dict__.update(signature=signature, __getattr__=real)
    sys.modules["inspect"] = stand_in
    try:
        import dataclasses
    finally:
        del sys.modules["inspect"]
    make = dataclasses.dataclass

    def dataclass(cls: type | None = None, /, **options: Any) -> Any:
        return make(cls, **{"repr": False, **options})

    vars(dataclasses)["dataclass"] = dataclass


def _lean_malloc() -> None:
    """One arena for all threads, large blocks given back when they are freed: glibc otherwise keeps several MB of what
    a scan or a list of pods took for a moment. Without glibc nothing happens."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_MMAP_THRESHOLD, _BLOCK_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _BLOCK_BYTES)


_lean_dataclasses()
_lean_malloc()
gc.set_threshold(_COLLECT_EVERY)
