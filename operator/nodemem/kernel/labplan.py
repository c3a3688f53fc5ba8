"""What the OOM experiment is to do: the programs, the limit, and named scenarios. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nodemem.kernel import oom

SMALLEST_LIMIT_BYTES = 4 << 20


class LabError(RuntimeError):
    """The experiment can't go on; everything made for it has been removed, or the message names what was not."""


@dataclass(frozen=True, slots=True)
class Program:
    """One process: what it holds before the experiment, and in which child cgroup ("" is the experiment's own)."""

    size_bytes: int
    oom_score_adj: int
    group: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """``grows`` is an index into ``programs``, which start in their order.

    ``limit_bytes`` None: no cgroup, the machine itself runs out. ``swap_bytes``: swap the cgroup may use.
    ``tmpfs_bytes``: written to an unlinked tmpfs file by a process of the cgroup that is gone by the time of the OOM.
    ``oom_groups``: the groups with memory.oom.group set ("" for the experiment's own cgroup, so for all).
    """

    programs: tuple[Program, ...]
    limit_bytes: int | None
    grows: int = 0
    swap_bytes: int = 0
    tmpfs_bytes: int = 0
    oom_groups: frozenset[str] = frozenset()

    def problems(self) -> list[str]:
        """What is wrong with it on any machine; sentences."""
        found = []
        if not self.programs:
            return ["no program: give at least one"]
        if not 0 <= self.grows < len(self.programs):
            found.append(f"program {self.grows + 1} is to grow, but there are {len(self.programs)}")
        for number, program in enumerate(self.programs, 1):
            if not oom.OOM_SCORE_ADJ_MIN <= program.oom_score_adj <= oom.OOM_SCORE_ADJ_MAX:
                found.append(f"program {number}: oom_score_adj {program.oom_score_adj} is not in -1000..1000")
            if program.size_bytes < 0:
                found.append(f"program {number}: a size below 0")
            if program.group and not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,30}", program.group):
                found.append(f"program {number}: group {program.group!r} is not a name of a-z, 0-9 and '-'")
        groups = {program.group for program in self.programs}
        if "" in groups and len(groups) > 1:
            found.append("either every program names a group, or none (cgroup v2 has processes only in leaves)")
        if self.oom_groups - groups - {""}:
            found.append(f"oom.group for {', '.join(sorted(self.oom_groups - groups))}, which no program is in")
        if self.limit_bytes is not None:
            if self.limit_bytes < SMALLEST_LIMIT_BYTES:
                found.append(f"a limit below {SMALLEST_LIMIT_BYTES} bytes leaves no room for the kernel's own pages")
            elif self.needs_bytes > self.limit_bytes + self.swap_bytes:
                found.append(
                    f"the programs and the tmpfs file need {self.needs_bytes} bytes before anything grows; "
                    f"the limit (with swap) is {self.limit_bytes + self.swap_bytes}"
                )
        elif self.swap_bytes or any(groups) or self.oom_groups:
            found.append("swap, groups and oom.group belong to a cgroup; without a limit there is none")
        return found

    @property
    def needs_bytes(self) -> int:
        """What the cgroup holds before anything grows, page tables and kernel stacks included; rounded up."""
        each = (program.size_bytes + program.size_bytes // 256 + (96 << 10) for program in self.programs)
        return sum(each) + self.tmpfs_bytes + (512 << 10)


def roomy_limit(programs: Sequence[Program], tmpfs_bytes: int = 0) -> int:
    """A limit of whole MiB that leaves the growing program an eighth of room."""
    needs = Plan(tuple(programs), None, tmpfs_bytes=tmpfs_bytes).needs_bytes
    return max(SMALLEST_LIMIT_BYTES, -(-needs * 9 // (8 << 20)) << 20)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A named experiment; ``text`` says what it shows."""

    name: str
    text: str
    plan: Plan


def _scenario(
    name: str,
    text: str,
    *programs: tuple[int, int] | tuple[int, int, str],
    limit_mib: int,
    tmpfs_mib: int = 0,
    oom_groups: frozenset[str] = frozenset(),
) -> Scenario:
    made = tuple(Program(each[0] << 10, each[1], each[2] if len(each) > 2 else "") for each in programs)
    largest = max(range(len(made)), key=lambda at: made[at].size_bytes)
    return Scenario(name, text, Plan(made, limit_mib << 20, largest, 0, tmpfs_mib << 20, oom_groups))


_M = 1024

SCENARIOS: Mapping[str, Scenario] = {
    each.name: each
    for each in (
        _scenario(
            "plain",
            "oom_score_adj from 0 up, which needs no privilege: small processes with a high value die first",
            *((160 * _M, 0), (40 * _M, 300), (5 * _M, 600), (1 * _M, 1000)),
            limit_mib=240,
        ),
        _scenario(
            "guaranteed",
            "a Guaranteed pod (-997, pause -998), its largest process started first: clamped kernels kill the others",
            *((160 * _M, -997), (40 * _M, -997), (5 * _M, -997), (4, -998)),
            limit_mib=240,
        ),
        _scenario(
            "mitigated",
            "the same processes at -250, where clamped kernels see again who is largest",
            *((160 * _M, -250), (40 * _M, -250), (5 * _M, -250), (4, -250)),
            limit_mib=240,
        ),
        _scenario(
            "skewed",
            "different oom_score_adj in one container hide the largest process behind a small one",
            *((160 * _M, -500), (20 * _M, 500), (5 * _M, 0)),
            limit_mib=240,
        ),
        _scenario(
            "unkillable",
            "the process that grows is at -1000: all others die for it, and it lives",
            *((160 * _M, -1000), (40 * _M, 0), (5 * _M, 0), (1 * _M, 0)),
            limit_mib=240,
        ),
        _scenario(
            "tmpfs",
            "most of the limit is held by a file in a tmpfs: whoever dies, little comes back",
            *((40 * _M, 0), (5 * _M, 0), (1 * _M, 0)),
            limit_mib=200,
            tmpfs_mib=140,
        ),
        _scenario(
            "oom-group",
            "memory.oom.group (cgroup v2): the whole cgroup dies with its victim, except what is at -1000",
            *((160 * _M, 0), (40 * _M, 0), (5 * _M, -1000)),
            limit_mib=240,
            oom_groups=frozenset({""}),
        ),
        _scenario(
            "pause",
            "a pod with a pause process and two containers in cgroups of their own, all at -998",
            *((4, -998, "pause"), (120 * _M, -998, "app"), (40 * _M, -998, "sidecar")),
            limit_mib=200,
        ),
    )
}
