"""What keeps the process small, and its scans short. Imported before everything else: some of it only helps what is
imported later."""

import gc
import sys
import types
from typing import Any

from nodemem.kernel import malloc

_COLLECT_EVERY = 20_000
"""Objects more than there were. A scan makes some ten thousand that stay, and almost none that only the collector can
find: with the usual 700 it looks at them again and again."""


def _lean_dataclasses() -> None:
    """dataclasses imports inspect, with ast, dis and tokenize 1.1 MB, for the docstring of classes that have none.

    It gets one that knows no signatures, which it is ready for, and imports the real one for whatever else it asks.
    Whoever imports inspect later gets the real one, too. And it writes a ``__repr__`` for each class, 0.4 MB of them,
    that an agent never calls.
    """
    if "inspect" in sys.modules or "dataclasses" in sys.modules:
        return

    def signature(_: object) -> None:
        raise ValueError("no signatures here")

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


_lean_dataclasses()
malloc.give_back()
gc.set_threshold(_COLLECT_EVERY)
