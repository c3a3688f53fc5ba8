"""One boot for each machine and set of scenarios, however many tests ask for its results."""

from functools import cache

from vm.cases import CASES, Case
from vm.machine import Boot, GuestError, Machine, Scenario, run

OLD = Machine("bullseye", "v1", swap="128M")
NEW = Machine("trixie", "v2", swap="128M")
SHORT = (OLD, NEW)
"""The short set's: the oldest of the kernels with cgroup v1, and a current stable one with v2."""

MACHINES = (
    OLD,
    Machine("bullseye", "v2", swap="128M"),
    Machine("bookworm", "v1", swap="128M"),
    Machine("bookworm", "v2", swap="128M"),
    Machine("bookworm", "hybrid", swap="128M"),
    Machine("bookworm-backports", "v2", swap="128M"),
    NEW,
    Machine("sid", "v2", swap="128M"),
)
"""The matrix. Debian's kernels from 6.12 on have no memory controller for cgroup v1 (CONFIG_MEMCG_V1)."""

SCORES = Scenario(
    "scores",
    "scores",
    {"programs": [[1024, adj] for adj in (-1000, -999, -998, -500, -1, 0, 3, 500, 999, 1000)]},
)
SWAPPED_OUT_TMPFS = Scenario("swapped-out-tmpfs", "swapped_out_tmpfs", {"file_mib": 96, "limit_mib": 48})
RAISES = Scenario("raises", "raises", {"message": "as it was asked to"})


def cases_for(machine: Machine, *, short: bool = False) -> list[Case]:
    """Those that this machine's cgroups allow."""
    memory = "v2" if machine.cgroup == "v2" else "v1"
    return [case for case in CASES if case.only in (None, memory) and (case.short or not short)]


def boot(machine: Machine, *, short: bool = False) -> Boot:
    """The cases' experiments and what else is looked at on every machine. Raises GuestError, the same each time."""
    found = _boot(machine, short)
    if isinstance(found, GuestError):
        raise found
    return found


@cache
def _boot(machine: Machine, short: bool) -> Boot | GuestError:
    scenarios = [Scenario(each.id, "experiment", each.arguments) for each in cases_for(machine, short=short)]
    scenarios += [SCORES, RAISES]
    if machine.cgroup == "v2":
        scenarios.append(SWAPPED_OUT_TMPFS)
    try:
        return run(machine, scenarios, timeout=1200.0)
    except GuestError as error:
        return error
