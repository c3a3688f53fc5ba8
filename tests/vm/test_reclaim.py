"""Reclaim in a guest whose first process is systemd (Debian's 252), by an agent shut in as the chart's container is."""

from functools import cache
from typing import Any

import pytest

import chartlab
from vm.machine import Boot, GuestError, Machine, Scenario, run
from vm.reclaim_scenarios import CAPABILITIES, MIB

JOURNAL_DROP_IN = "/run/systemd/journald.conf.d/90-nodemem.conf"
TMPFILES_DROP_IN = "/run/tmpfiles.d/zz-nodemem.conf"
NOTE = "/run/systemd/journald.conf.d/.90-nodemem.conf.pending"
MARK = "# Written by nodemem; changed and removed by it\n"


def scenario(name: str, **arguments: Any) -> Scenario:
    return Scenario(name, name, arguments, "reclaim_scenarios", timeout=1800.0)


STEPS = ["restart_journald"]
"""Of test runs that are to be short: the drop-in is as it is to be, and journald doesn't know of it."""


@cache
def _boot() -> Boot | GuestError:
    """The order matters: the last one sets the clock."""
    scenarios = [
        scenario("talks_on"),
        scenario("killed_at_any_step", steps=STEPS),
        scenario("refused"),
        scenario("limited_and_back"),
        scenario("aged"),
    ]
    try:
        return run(Machine("bookworm", systemd=True), scenarios, timeout=1200.0)
    except GuestError as error:
        return error


@pytest.fixture
def boot() -> Boot:
    found = _boot()
    if isinstance(found, GuestError):
        raise found
    return found


def test_the_agent_of_these_tests_has_the_capabilities_of_the_chart() -> None:
    objects = chartlab.render({"enforcement": {"enabled": True}})
    agent = next(each for each in objects if each["kind"] == "DaemonSet")
    context = agent["spec"]["template"]["spec"]["containers"][0]["securityContext"]
    assert sorted(context["capabilities"]["add"]) == sorted(CAPABILITIES)
    assert context["readOnlyRootFilesystem"]


def test_journald_gets_a_limit_trims_its_journal_and_keeps_the_limit(boot: Boot) -> None:
    found = boot.value("limited_and_back")
    assert found["before_limit"] == "max 96.0M"
    assert found["before"] > 20 * MIB
    assert found["drop_ins"] == {
        JOURNAL_DROP_IN: f"{MARK}# TmpfsPolicy cap-run\n[Journal]\nRuntimeMaxUse=16777216\n",
    }
    assert found["after_limit"] == "max 16.0M"
    assert found["after"] <= 16 * MIB
    assert found["full"] <= 16 * MIB, "though 20 MiB were logged since"
    first = found["said"][0]
    assert (first["state"], first["policy"], first["runtimeMaxUseBytes"]) == ("InSync", "cap-run", 16 * MIB)
    assert first["freedBytes"] >= found["before"] - 16 * MIB
    assert "cleanedAt" in first


def test_audit_says_what_would_be_freed_and_changes_nothing(boot: Boot) -> None:
    found = boot.value("limited_and_back")
    audit, first = found["audit"], found["said"][0]
    assert audit["state"] == "Audit"
    assert "Would limit systemd-journald's volatile journal to 16Mi" in audit["message"]
    # It frees whole files: at least what is over.
    assert 0 < audit["freeableBytes"] <= first["freedBytes"]


def test_journald_is_restarted_when_its_limit_changes_and_not_else(boot: Boot) -> None:
    found = boot.value("limited_and_back")
    before, limited, later, undone = found["pids"]
    assert before != limited, "audit and three passes: one restart"
    assert len([line for line in found["log"] if "another limit" in line]) == 1
    assert found["said"][1:] == found["said"][:1] * 2
    assert found["renamed"]["policy"] == "other"
    assert "# TmpfsPolicy other\n" in found["renamed_drop_ins"][JOURNAL_DROP_IN]
    assert later == limited, "the policy's name is no change"
    assert undone != later


def test_nothing_is_left_of_it_when_the_policy_goes(boot: Boot) -> None:
    found = boot.value("limited_and_back")
    assert found["undone"] == {}
    assert found["left"] == {}
    assert found["undone_limit"] == "max 96.0M"


def test_a_service_logs_on_while_journald_is_restarted_and_no_line_is_lost(boot: Boot) -> None:
    found = boot.value("talks_on")
    assert len(set(found["pids"])) == 4, "limited, limited otherwise, and not any more"
    assert found["numbers"] == list(range(len(found["numbers"])))
    assert len(found["numbers"]) > 20


def _goes_right(found: list[dict[str, Any]]) -> None:
    for each in found:
        limited = each["wanted"] == "journal"
        assert each["limit"] == ("max 32.0M" if limited else "max 96.0M"), each
        assert list(each["left"]) == ([JOURNAL_DROP_IN] if limited else []), each
        assert not each["restarted_later"], each
        if limited:
            assert each["answer"]["journal"]["state"] == "InSync"
        else:
            assert each["answer"] == {}
        assert NOTE not in each["left"], each


def test_killed_before_journald_knows_of_a_change_the_next_agent_tells_it(boot: Boot) -> None:
    found = boot.value("killed_at_any_step")
    assert [(each["wanted"], each["killed"]) for each in found] == [("journal", True), ("nothing", True)]
    assert [sorted(each["between"]) for each in found] == [[NOTE, JOURNAL_DROP_IN], [NOTE]]
    _goes_right(found)


@pytest.mark.vm
def test_killed_at_any_step_the_next_agent_ends_it() -> None:
    boot = run(Machine("bookworm", systemd=True), [scenario("killed_at_any_step")], timeout=2400.0)
    found = boot.value("killed_at_any_step")
    for wanted, least in (("journal", 8), ("nothing", 5)):
        killed = [each["killed"] for each in found if each["wanted"] == wanted]
        assert killed == [True] * (len(killed) - 1) + [False]
        assert len(killed) > least
    _goes_right(found)


@pytest.mark.parametrize(
    ("what", "reason"), [("directories", "Symlink"), ("files", "Symlink"), ("foreign", "ForeignFile")]
)
def test_what_is_planted_in_place_of_a_drop_in_is_neither_followed_nor_touched(
    boot: Boot, what: str, reason: str
) -> None:
    found = boot.value("refused")
    assert {each["reason"] for each in found[what].values()} == {reason}
    assert {each["state"] for each in found[what].values()} == {"Refused"}
    assert found["elsewhere"] == []
    assert found["kept"] == dict.fromkeys((JOURNAL_DROP_IN, TMPFILES_DROP_IN), "# of an administrator\n")
    assert len(set(found["pids"])) == 1, "journald was left alone"


def test_a_setting_of_the_node_that_counts_more_is_told(boot: Boot) -> None:
    said = boot.value("refused")["overridden"]["journal"]
    assert (said["state"], said["reason"]) == ("Refused", "Overridden")
    assert "/etc/systemd/journald.conf.d/99-late.conf" in said["message"]


def test_a_journal_that_is_not_volatile_is_left_alone(boot: Boot) -> None:
    said = boot.value("refused")["persistent"]["journal"]
    assert (said["state"], said["reason"]) == ("Refused", "NotVolatile")


def test_without_enforcement_nothing_is_written_and_what_is_left_is_told(boot: Boot) -> None:
    found = boot.value("refused")
    assert {(each["state"], each["reason"]) for each in found["off"].values()} == {("Audit", "EnforcementOff")}
    assert sorted(found["taken"]) == [JOURNAL_DROP_IN, TMPFILES_DROP_IN]
    assert {(each["state"], each["reason"]) for each in found["off_undo"].values()} == {("Failed", "EnforcementOff")}
    assert {each["policy"] for each in found["off_undo"].values()} == {"cap-run"}
    assert found["off_left"] == found["taken"]
    assert (found["undone"], found["left"]) == ({}, {})


def test_old_files_go_while_their_tmpfs_holds_too_much_and_young_ones_stay(boot: Boot) -> None:
    found = boot.value("aged")
    everything = ["logs/kept/old", "logs/old", "logs/young", "other"]
    assert found["audit_left"] == [everything, {}]
    assert found["audit"]["/run/spool/logs"]["freeableBytes"] == 17 * MIB
    drop_in = {TMPFILES_DROP_IN: f"{MARK}# TmpfsPolicy cap-spool\ne /run/spool/logs - - - 7d\n"}
    assert found["roomy_left"] == [everything, drop_in], "there is room: the node's own timer will do"
    first, *_, last = found["over"]
    assert first["/run/spool"]["state"] == "Deferred"
    assert first["/run/spool/logs"]["state"] == "InSync"
    assert first["/run/spool/logs"]["freedBytes"] == 16 * MIB
    assert found["over_left"] == [["logs/kept/old", "logs/young", "other"], drop_in], "what the node excludes stays"
    assert (last["/run/spool"]["state"], last["/run/spool"]["appliedBytes"]) == ("InSync", 24 * MIB)
    assert "size=24576k" in found["size"]
    assert found["undone"][-1] == {}
    assert found["undone_left"] == [["logs/kept/old", "logs/young", "other"], {}]


def test_a_node_without_systemd_refuses() -> None:
    found = run(Machine("bookworm"), [scenario("without_systemd")]).value("without_systemd")
    assert {(each["state"], each["reason"]) for each in found["said"].values()} == {("Refused", "NoSystemd")}
    assert sorted(found["said"]) == ["/run/spool", "journal"]
    assert found["undone"] == {}
    assert found["run"] == ["spool"]
