"""The experiments of the matrix: what is started, and whom these kernels kill for it.

Programs are numbered from 1 in the order of their start. ``killed`` is the order of the kills; it is written down here
and not computed, so that a prediction that goes wrong together with what reads the result still shows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MIB = 1024
PAUSE = 4
"""KiB: a program of one page."""

_SAME_ADDRESSES = ("kernel/randomize_va_space", "0")
"""Where the stack lies decides whether a program has a page table more or less."""


@dataclass(frozen=True, slots=True)
class Case:
    """``only``: the cgroup version it needs. ``short``: part of the set that a plain test run boots."""

    id: str
    arguments: Mapping[str, Any]
    killed: tuple[int, ...]
    only: str | None = None
    short: bool = False
    stalled: bool = False
    hasty: tuple[int, ...] | None = None
    """What a kernel 7.x may do instead: there the scan passes over a process that is already exiting, so the next one
    dies before the memory of the last is back (css_task_iter_advance() without CSS_TASK_ITER_WITH_DEAD)."""


def _case(
    id: str,
    *programs: tuple[int, int] | tuple[int, int, str],
    killed: tuple[int, ...],
    limit_mib: int | None = 240,
    only: str | None = None,
    short: bool = False,
    stalled: bool = False,
    hasty: tuple[int, ...] | None = None,
    **more: Any,
) -> Case:
    arguments = {"programs": programs, "limit_mib": limit_mib, **more}
    return Case(id, arguments, killed, only, short, stalled, hasty)


def _four(adj: int, sizes: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return tuple((size * MIB, adj) for size in sizes)


CASES = (
    # The rows of the observations on 5.4 and 6.1: the order of the start decides nothing on an accurate kernel.
    _case("998-hog-first", *_four(-998, (160, 40, 5, 1)), killed=(1,), short=True),
    _case("998-hog-second", *_four(-998, (1, 160, 40, 5)), killed=(2,)),
    _case("998-hog-last", *_four(-998, (1, 5, 40, 160)), killed=(4,), short=True),
    _case("250-hog-first", *_four(-250, (160, 40, 5, 1)), killed=(1,)),
    _case("100-hog-first", *_four(-100, (160, 40, 5, 1)), killed=(1,)),
    _case("100-hog-last", *_four(-100, (1, 5, 40, 160)), killed=(4,)),
    _case("0-hog-last", *_four(0, (1, 5, 40, 160)), killed=(4,)),
    _case("1000-hog-first", *_four(1000, (160, 40, 5, 1)), killed=(1,)),
    # Different values: 61 pages of score for each unit, the hog ends at about 50,000 pages.
    _case("ladder", (160 * MIB, 0), (40 * MIB, 300), (5 * MIB, 600), (1 * MIB, 1000), killed=(4, 1), short=True),
    _case("999-behind-998", (160 * MIB, -999), (40 * MIB, -998), (5 * MIB, -997), (1 * MIB, -996), killed=(1,)),
    _case(
        "hog-at-998-others-burstable",
        *((160 * MIB, -998), (40 * MIB, 3), (5 * MIB, 500), (1 * MIB, 999)),
        killed=(4, 3, 2, 1),
    ),
    _case("skewed", (160 * MIB, -500), (20 * MIB, 500), (5 * MIB, 0), killed=(2, 1)),
    _case(
        "skewed-by-a-little",
        (160 * MIB, -900),
        (40 * MIB, -300),
        (5 * MIB, -100),
        (1 * MIB, -50),
        killed=(4, 3, 1),
    ),
    _case(
        "unkillable-hog", (160 * MIB, -1000), (40 * MIB, 0), (5 * MIB, 0), (1 * MIB, 0), killed=(2, 3, 4), short=True
    ),
    _case("small-one-unkillable", (160 * MIB, -998), (40 * MIB, -1000), (5 * MIB, -998), killed=(1,)),
    _case("growing-one-is-small", (160 * MIB, -997), (5 * MIB, -997), (PAUSE, -998), killed=(1, 2), grows=2),
    _case(
        "growing-one-is-small-among-others",
        *((160 * MIB, -997), (60 * MIB, -997), (5 * MIB, -997)),
        killed=(1, 3),
        hasty=(1, 2, 3),
        limit_mib=256,
        grows=3,
    ),
    # Equal scores to the page, so without randomised addresses: the last one scanned dies, and the scan goes through
    # the cgroups in the order of their creation, in each in the order of joining.
    _case(
        "tie",
        (60 * MIB, -1000),
        (MIB, 0),
        (MIB, 0),
        (MIB, 0),
        killed=(4, 3, 2),
        limit_mib=80,
        settings=[_SAME_ADDRESSES],
        short=True,
    ),
    _case(
        "tie-in-containers",
        *((60 * MIB, -1000, "app"), (MIB, -998, "b"), (MIB, -998, "a"), (MIB, -998, "app")),
        killed=(3, 2, 4),
        limit_mib=80,
        settings=[_SAME_ADDRESSES],
    ),
    # Memory that no process's death gives back.
    _case("tmpfs", (40 * MIB, 0), (5 * MIB, 0), (1 * MIB, 0), killed=(1,), limit_mib=200, tmpfs_mib=140, short=True),
    _case(
        "tmpfs-and-the-small-one-grows",
        *((40 * MIB, -998), (5 * MIB, -998), (1 * MIB, -998)),
        killed=(1, 3),
        limit_mib=200,
        tmpfs_mib=140,
        grows=3,
    ),
    # Swap: 64 MiB of memory and 64 of swap.
    _case("swap", *_four(-998, (64, 20, 5, 1)), killed=(1,), limit_mib=64, swap_mib=64, short=True),
    _case("swap-ladder", (64 * MIB, 0), (20 * MIB, 400), (5 * MIB, 900), killed=(3, 1), limit_mib=64, swap_mib=64),
    _case(
        "swap-hog-at-998", (64 * MIB, -998), (20 * MIB, 0), (5 * MIB, 0), killed=(2, 3, 1), limit_mib=64, swap_mib=64
    ),
    # cgroups below the one that runs out: a pod with its pause process, and containers that come before the hog's.
    _case(
        "pod",
        *((PAUSE, -998, "pause"), (120 * MIB, -998, "app"), (40 * MIB, -998, "sidecar")),
        killed=(2,),
        limit_mib=200,
        short=True,
    ),
    _case(
        "pod-hog-in-the-first-container",
        *((120 * MIB, -997, "app"), (40 * MIB, -997, "sidecar"), (PAUSE, -998, "zz-pause")),
        killed=(1,),
        limit_mib=200,
    ),
    _case(
        "pod-burstable-sidecar",
        *((PAUSE, -998, "pause"), (120 * MIB, 3, "app"), (8 * MIB, 3, "app"), (20 * MIB, 900, "sidecar")),
        killed=(4, 2),
        limit_mib=180,
    ),
    # memory.oom.group: of the cgroup that runs out, of one container in it, and never what is at -1000.
    _case(
        "group",
        (160 * MIB, -998),
        (40 * MIB, -998),
        (PAUSE, -998),
        killed=(1, 2, 3),
        only="v2",
        oom_groups=[""],
        short=True,
    ),
    _case(
        "group-spares-1000", (160 * MIB, 0), (40 * MIB, 0), (5 * MIB, -1000), killed=(1, 2), only="v2", oom_groups=[""]
    ),
    _case(
        "group-of-one-container",
        *((PAUSE, -998, "pause"), (120 * MIB, -998, "app"), (5 * MIB, -998, "app"), (40 * MIB, -998, "sidecar")),
        killed=(2, 3),
        only="v2",
        limit_mib=200,
        oom_groups=["app"],
    ),
    _case(
        "group-of-the-other-container",
        *((120 * MIB, 0, "app"), (5 * MIB, 900, "sidecar"), (20 * MIB, 0, "sidecar")),
        killed=(2, 3, 1),
        only="v2",
        limit_mib=180,
        oom_groups=["sidecar"],
    ),
    # Who waits instead of dying.
    _case(
        "kill-disabled",
        (60 * MIB, 0),
        (5 * MIB, 500),
        killed=(),
        only="v1",
        limit_mib=80,
        cgroup_settings=[["memory.oom_control", "1"]],
        stalled=True,
        patience_seconds=4.0,
    ),
    _case(
        "nobody-to-kill",
        (60 * MIB, -1000),
        (5 * MIB, -1000),
        killed=(),
        limit_mib=80,
        stalled=True,
    ),
    # The machine itself, with and without swap. The guest has 768 MiB, about 190 pages of score for each unit.
    _case(
        "global",
        (64 * MIB, 0),
        (32 * MIB, 500),
        (5 * MIB, -998),
        (PAUSE, 1000),
        killed=(4, 1),
        limit_mib=None,
        swap=False,
        short=True,
    ),
    _case("global-998", *_four(-998, (160, 40, 5, 1)), killed=(1,), limit_mib=None, swap=False),
    _case(
        "global-unkillable-hog",
        (64 * MIB, -999),
        (32 * MIB, 0),
        (5 * MIB, -998),
        (PAUSE, 1000),
        killed=(4, 2, 1),
        limit_mib=None,
        swap=False,
    ),
    _case(
        "global-swap",
        (64 * MIB, 0),
        (32 * MIB, 600),
        (5 * MIB, -998),
        (PAUSE, 1000),
        killed=(4, 1),
        limit_mib=None,
    ),
    _case(
        "global-allocating-task",
        (64 * MIB, -900),
        (32 * MIB, 500),
        (5 * MIB, 1000),
        killed=(1,),
        limit_mib=None,
        swap=False,
        settings=[["vm/oom_kill_allocating_task", "1"]],
    ),
)
