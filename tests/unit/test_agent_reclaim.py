"""What the agent says of reclaim where it can't do it, and what it writes for systemd-tmpfiles. With systemd: vm/."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nodemem.agent.log import Log
from nodemem.agent.reclaim import Reclaimer
from nodemem.agent.reclaimwords import JOURNAL_DROP_IN, TMPFILES_DROP_IN
from nodemem.agent.reports import OwnReport
from nodemem.api.types import JournalLimit, LimitMode, MemoryReportSpec, NodeReclaim, TmpfilesAge
from nodemem.kernel.host import Host
from nodemem.kernel.hostfiles import MARK, HostTree
from nodemem.node.status import ReclaimStatus
from unit import reclaim_cases

MIB = 1 << 20
NOTHING = MemoryReportSpec()


def wanted(mode: LimitMode = "Enforce", *paths: str, journal: bool = True) -> MemoryReportSpec:
    ages = tuple(TmpfilesAge(path, "7d", mode, "cap") for path in paths or ("/run/foo",))
    return MemoryReportSpec((), NodeReclaim(JournalLimit(64 * MIB, mode, "cap") if journal else None, ages))


@pytest.fixture
def top() -> Iterator[Path]:
    """The root of a node, on a tmpfs."""
    path = tempfile.mkdtemp(dir="/dev/shm", prefix="nodemem-test-")
    (Path(path) / "run/foo").mkdir(parents=True)
    yield Path(path)
    shutil.rmtree(path)


@dataclass
class Agent:
    top: Path
    enforce: bool = True
    before: tuple[ReclaimStatus, ...] = ()
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._made = Reclaimer(
            Host(), Log(self.lines.append), enforce=self.enforce, tree=HostTree(Host(), str(self.top))
        )
        self._own = OwnReport("uid", "1", 1, (), {}, {}, reclaim=self.before)

    def say(self, spec: MemoryReportSpec) -> dict[str, tuple[str, str | None]]:
        self._made.run(reclaim_cases.snapshot("/run"), self._own, spec, 3, ())
        assert self._made.observed_generation == 3
        return {each.path or "journal": (each.state, each.reason) for each in self._made.statuses}


def test_before_the_spec_is_known_nothing_is_said() -> None:
    made = Reclaimer(Host(), Log(lambda _: None), enforce=True, tree=HostTree(Host(), "/nowhere"))
    made.run(reclaim_cases.snapshot("/run"), None, None, None, ())
    assert (made.statuses, made.observed_generation) == ((), None)


def test_where_the_nodes_files_are_out_of_reach_it_says_so(top: Path) -> None:
    nowhere = top / "nowhere"
    assert Agent(nowhere).say(wanted()) == dict.fromkeys(("journal", "/run/foo"), ("Failed", "Unreachable"))
    assert Agent(nowhere).say(wanted("Audit")) == dict.fromkeys(("journal", "/run/foo"), ("Audit", "Unreachable"))
    off = Agent(nowhere, enforce=False).say(wanted())
    assert off == dict.fromkeys(("journal", "/run/foo"), ("Audit", "EnforcementOff"))


def test_where_nothing_is_wanted_and_nothing_is_known_it_is_silent(top: Path) -> None:
    for where in (top, top / "nowhere"):
        agent = Agent(where)
        assert agent.say(NOTHING) == {}
        assert agent.lines == []


def test_what_is_on_record_and_out_of_reach_stays_on_record(top: Path) -> None:
    record = ReclaimStatus("Journal", None, 64 * MIB, None, "InSync", policy="cap")
    agent = Agent(top / "nowhere", before=(record,))
    assert agent.say(NOTHING) == {"journal": ("Failed", "Unreachable")}


def test_a_node_without_systemd_refuses_and_has_nothing_to_undo(top: Path) -> None:
    agent = Agent(top)
    assert agent.say(wanted()) == dict.fromkeys(("journal", "/run/foo"), ("Refused", "NoSystemd"))
    assert agent.say(NOTHING) == {}
    assert sorted(os.listdir(top / "run")) == ["foo"]


def test_a_file_of_somebody_else_is_no_business_of_a_node_without_reclaim(top: Path) -> None:
    for path in (JOURNAL_DROP_IN, TMPFILES_DROP_IN):
        (top / path[1:]).parent.mkdir(parents=True)
        (top / path[1:]).write_text("# mine\n")
    agent = Agent(top)
    assert agent.say(NOTHING) == {}
    assert agent.lines == []


def test_each_path_gets_a_line_or_a_reason_and_lines_go_with_their_entries(top: Path) -> None:
    (top / "run/systemd/system").mkdir(parents=True)
    (top / "run/link").symlink_to("/run/foo")
    (top / "run/bar").mkdir()
    paths = ("/run/foo", "/run/bar/later", "/run/link/x", "/run/systemd", "/srv/foo")
    agent = Agent(top)
    assert agent.say(wanted("Enforce", *paths, journal=False)) == {
        "/run/foo": ("InSync", None),
        "/run/bar/later": ("InSync", None),
        "/run/link/x": ("Refused", "Symlink"),
        "/run/systemd": ("Refused", "Protected"),
        "/srv/foo": ("Refused", "NotTmpfs"),
    }
    drop_in = top / TMPFILES_DROP_IN[1:]
    assert drop_in.read_text() == (
        f"{MARK}\n# TmpfsPolicy cap\ne /run/bar/later - - - 7d\n# TmpfsPolicy cap\ne /run/foo - - - 7d\n"
    )
    agent.say(wanted("Enforce", "/run/foo", journal=False))
    assert drop_in.read_text() == f"{MARK}\n# TmpfsPolicy cap\ne /run/foo - - - 7d\n"
    off = Agent(top, enforce=False)
    assert off.say(NOTHING) == {"/run/foo": ("Failed", "EnforcementOff")}
    assert drop_in.exists()
    assert agent.say(wanted("Audit", "/run/foo", journal=False)) == {"/run/foo": ("Audit", None)}
    assert not drop_in.exists()


def test_a_problem_is_logged_once_and_its_end(top: Path) -> None:
    (top / "run/systemd/system").mkdir(parents=True)
    drop_in = top / TMPFILES_DROP_IN[1:]
    drop_in.parent.mkdir()
    drop_in.write_text("# mine\n")
    agent = Agent(top)
    spec = wanted("Enforce", journal=False)
    for _ in range(3):
        assert agent.say(spec) == {"/run/foo": ("Refused", "ForeignFile")}
    assert len(agent.lines) == 1
    drop_in.unlink()
    assert agent.say(spec) == {"/run/foo": ("InSync", None)}
    assert "works again" in agent.lines[-1]
