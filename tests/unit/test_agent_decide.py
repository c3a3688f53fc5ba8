"""What the agent does about each limit, pass by pass, on a tmpfs that is two numbers."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodemem.agent.decide import MOST_FIGHTS, Place, Step, Unclear, decide, same
from nodemem.api.types import TmpfsLimit
from nodemem.node.status import LimitStatus

MIB, GIB = 1 << 20, 1 << 30
RUN = "/run"


def limit(size: int = 2 * GIB, **changes: Any) -> TmpfsLimit:
    values: dict[str, Any] = {"mount_point": RUN, "scope": "Host", "size_bytes": size, "mode": "Enforce"}
    return TmpfsLimit(**values | changes)


@dataclass
class Node:
    """A tmpfs, what the agent has in memory, and what is in the cluster. Passes as the enforcer makes them."""

    size: int = 16 * GIB
    used: int = GIB
    instance: str = "boot/0:25/abc"
    limits: tuple[TmpfsLimit, ...] = ()
    enforce: bool = True
    mounted: bool = True
    memory: dict[str, LimitStatus] = field(default_factory=dict)
    cluster: dict[str, LimitStatus] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    changes: list[int] = field(default_factory=list)

    def look(self) -> tuple[Step, ...]:
        place = Place("0:25", self.instance, self.size, self.used, **self.more)
        found: dict[str, Place | Unclear] = {each.mount_point: place for each in self.limits} if self.mounted else {}
        return decide(
            self.limits,
            found,
            {"0:25": place} if self.mounted else {},
            self.memory,
            self.cluster,
            enforce=self.enforce,
            page_size=4096,
        )

    def once(self) -> None:
        statuses = {}
        for step in self.look():
            status = step.status
            if step.resize_bytes is not None and status is not None:
                before = self.cluster.get(step.mount_point)
                assert before is not None, "nothing changes before it is on record"
                assert before.original_bytes is not None
                self.size = step.resize_bytes
                self.changes.append(self.size)
                status = (
                    None if step.restores else replace(status, state="InSync", reason=None, applied_bytes=self.size)
                )
            if status is not None:
                statuses[step.mount_point] = status
        self.memory = statuses

    def publish(self) -> None:
        self.cluster = dict(self.memory)

    def settle(self) -> LimitStatus | None:
        for _ in range(6):
            self.once()
            self.publish()
        return self.memory.get(RUN)

    def restart(self) -> None:
        self.memory = dict(self.cluster)


def test_the_size_found_is_on_record_before_the_first_change() -> None:
    node = Node(limits=(limit(),))
    node.once()
    status = node.memory[RUN]
    assert (status.state, status.reason) == ("Deferred", "Recorded")
    assert (status.original_bytes, status.target_bytes, status.applied_bytes) == (16 * GIB, 2 * GIB, 16 * GIB)
    node.once()
    node.once()
    assert node.size == 16 * GIB, "not while the cluster has not got it"
    node.publish()
    node.once()
    assert node.size == 2 * GIB
    assert (node.memory[RUN].state, node.memory[RUN].applied_bytes) == ("InSync", 2 * GIB)


def test_until_the_change_is_made_the_limit_is_not_answered() -> None:
    node = Node(limits=(limit(),))
    assert [step.open for step in node.look()] == [True]
    node.settle()
    assert [step.open for step in node.look()] == [False]


@pytest.mark.parametrize(
    ("adjust", "size", "becomes"),
    [
        ("Shrink", 2 * GIB, 2 * GIB),
        ("Shrink", 32 * GIB, 16 * GIB),
        ("Grow", 2 * GIB, 16 * GIB),
        ("Grow", 32 * GIB, 32 * GIB),
        ("Exact", 2 * GIB, 2 * GIB),
        ("Exact", 32 * GIB, 32 * GIB),
    ],
)
def test_what_each_adjust_comes_to(adjust: Any, size: int, becomes: int) -> None:
    node = Node(limits=(limit(size, adjust=adjust),))
    status = node.settle()
    assert status is not None
    assert (node.size, status.state, status.applied_bytes) == (becomes, "InSync", becomes)
    assert status.original_bytes == (None if becomes == 16 * GIB else 16 * GIB)


def test_a_cap_that_is_eased_lets_it_grow_to_what_was_found_and_no_further() -> None:
    node = Node(limits=(limit(GIB),))
    node.settle()
    for eased, becomes in ((4 * GIB, 4 * GIB), (64 * GIB, 16 * GIB)):
        node.limits = (limit(eased),)
        status = node.settle()
        assert node.size == becomes
        assert status is not None
        assert status.state == "InSync"
        assert (status.original_bytes is None) == (becomes == 16 * GIB)


def test_audit_says_it_and_changes_nothing() -> None:
    node = Node(limits=(limit(mode="Audit"),))
    status = node.settle()
    assert status is not None
    assert (node.changes, status.state, status.original_bytes) == ([], "Audit", None)
    assert status.message == "Would shrink /run from 16Gi to 2Gi; 1Gi is in use."
    node.used = 8 * GIB
    status = node.settle()
    assert status is not None
    assert status.message == (
        "Would shrink /run from 16Gi to 2Gi, but 8Gi is in use, with 10 % headroom too much: would be deferred until"
        " 6.2Gi less is in use."
    )


def test_without_enforcement_enforce_is_an_audit_that_says_why() -> None:
    node = Node(limits=(limit(),), enforce=False)
    status = node.settle()
    assert status is not None
    assert (node.changes, status.state, status.reason) == ([], "Audit", "EnforcementOff")
    assert status.message is not None
    assert "Enforcement is off on this node" in status.message


def test_enforcement_turned_off_keeps_the_record_and_says_what_it_can_t_restore() -> None:
    node = Node(limits=(limit(),))
    node.settle()
    node.enforce = False
    status = node.settle()
    assert status is not None
    assert (status.state, status.original_bytes, node.size) == ("Audit", 16 * GIB, 2 * GIB)
    node.limits = ()
    status = node.settle()
    assert status is not None
    assert (status.state, status.reason, node.size) == ("Failed", "EnforcementOff", 2 * GIB)
    node.enforce = True
    assert node.settle() is None
    assert node.size == 16 * GIB


def test_too_much_in_use_is_deferred_and_done_when_it_fits() -> None:
    node = Node(limits=(limit(),), used=2 * GIB)
    status = node.settle()
    assert status is not None
    assert (status.state, status.reason, node.changes) == ("Deferred", "InUse", [])
    assert status.message is not None
    assert "2Gi" in status.message
    assert [step.open for step in node.look()] == [False], "that is an answer"
    node.used = GIB
    node.settle()
    assert node.size == 2 * GIB


def test_headroom_is_judged_to_the_page() -> None:
    node = Node(limits=(limit(110 * 4096 * 10),), used=100 * 4096 * 10)
    node.settle()
    assert node.size == 110 * 4096 * 10
    node = Node(limits=(limit(110 * 4096 * 10),), used=100 * 4096 * 10 + 4096)
    node.settle()
    assert node.changes == []


def test_a_size_that_others_change_is_set_again_three_times_and_then_contested() -> None:
    node = Node(limits=(limit(),))
    node.settle()
    for fight in range(1, MOST_FIGHTS + 1):
        node.size = 8 * GIB
        status = node.settle()
        assert status is not None
        assert (node.size, status.state, status.drifts) == (2 * GIB, "InSync", fight)
    node.size = 8 * GIB
    status = node.settle()
    assert status is not None
    assert (node.size, status.state, status.applied_bytes) == (8 * GIB, "Contested", 8 * GIB)
    node.restart()
    status = node.settle()
    assert status is not None
    assert status.state == "Contested"
    node.limits = (limit(3 * GIB),)
    status = node.settle()
    assert status is not None
    assert (node.size, status.state) == (3 * GIB, "InSync"), "an edit starts over"


def test_a_contested_size_is_theirs_when_the_limit_goes() -> None:
    node = Node(limits=(limit(),))
    node.settle()
    for _ in range(MOST_FIGHTS + 1):
        node.size = 8 * GIB
        node.settle()
    node.limits = ()
    assert node.settle() is None
    assert node.size == 8 * GIB


def test_an_exact_size_found_as_it_should_be_is_what_is_restored() -> None:
    node = Node(limits=(limit(16 * GIB, adjust="Exact"),))
    node.settle()
    node.size = 8 * GIB
    status = node.settle()
    assert status is not None
    assert status.drifts == 1
    assert node.size == 16 * GIB


def test_a_smaller_size_set_by_others_is_within_a_cap_and_stays() -> None:
    node = Node(limits=(limit(),))
    node.settle()
    node.size = GIB
    for _ in range(2):
        status = node.settle()
        assert status is not None
        assert (node.size, status.state, status.reason) == (GIB, "InSync", "ChangedByOthers")
    node.limits = ()
    assert node.settle() is None
    assert node.size == GIB, "theirs"


def test_removal_restores_and_then_forgets() -> None:
    node = Node(limits=(limit(),))
    node.settle()
    node.limits = ()
    node.once()
    assert (node.size, node.memory) == (16 * GIB, {})


def test_removal_with_keep_keeps() -> None:
    node = Node(limits=(limit(on_delete="Keep"),))
    node.settle()
    node.limits = ()
    assert node.settle() is None
    assert node.size == 2 * GIB


def test_enforce_to_audit_restores_first() -> None:
    node = Node(limits=(limit(),))
    node.settle()
    node.limits = (limit(mode="Audit"),)
    status = node.settle()
    assert status is not None
    assert (node.size, status.state, status.original_bytes) == (16 * GIB, "Audit", None)


def test_a_grown_tmpfs_is_restored_when_it_fits_again() -> None:
    node = Node(size=64 * MIB, used=MIB, limits=(limit(GIB, adjust="Grow"),))
    node.settle()
    node.used = 512 * MIB
    node.limits = ()
    status = node.settle()
    assert status is not None
    assert (status.state, status.original_bytes, node.size) == ("Deferred", 64 * MIB, GIB)
    node.used = MIB
    assert node.settle() is None
    assert node.size == 64 * MIB


def test_a_reboot_or_a_new_mount_starts_from_the_size_found_then() -> None:
    node = Node(limits=(limit(),))
    node.settle()
    for instance in ("boot2/0:25/abc", "boot2/0:25/def"):
        node.size, node.instance = 12 * GIB, instance
        status = node.settle()
        assert status is not None
        assert (node.size, status.original_bytes, status.drifts) == (2 * GIB, 12 * GIB, None)


def test_a_limit_of_what_was_remounted_anew_meanwhile_restores_nothing() -> None:
    node = Node(limits=(limit(),))
    node.settle()
    node.limits, node.size, node.instance = (), 12 * GIB, "boot2/0:25/abc"
    assert node.settle() is None
    assert node.size == 12 * GIB


def test_not_mounted_is_in_sync() -> None:
    node = Node(limits=(limit(),), mounted=False)
    status = node.settle()
    assert status is not None
    assert (status.state, status.reason) == ("InSync", "NotMounted")


@pytest.mark.parametrize("mode", ["Enforce", "Audit"])
def test_what_is_refused_is_failed_or_would_be(mode: Any) -> None:
    for more in ({"refusal": ("Protected", "It is a secret")}, {"unlimited": True}):
        node = Node(limits=(limit(mode=mode),), more=more)
        status = node.settle()
        assert status is not None
        assert status.state == ("Failed" if mode == "Enforce" else "Audit")
        assert status.reason in ("Protected", "Unlimited")
        assert node.changes == []
        assert status.message is not None
        assert status.message.startswith("Would fail") == (mode == "Audit")


def test_one_tmpfs_with_two_limits_obeys_the_first() -> None:
    node = Node(limits=(limit(), limit(GIB, mount_point="/run/same")))
    node.settle()
    assert node.size == 2 * GIB
    assert (node.memory["/run/same"].state, node.memory["/run/same"].reason) == ("Failed", "SameTmpfs")


def test_one_that_another_was_mounted_over_is_restored_before_the_other_is_changed() -> None:
    node = Node(limits=(limit(),))
    node.settle()
    covered = Place("0:25", node.instance, node.size, node.used)
    above = Place("0:30", "boot/0:30/def", 12 * GIB, 0)

    def steps() -> tuple[Step, ...]:
        devices = {"0:25": covered, "0:30": above}
        return decide(node.limits, {RUN: above}, devices, node.memory, node.cluster, enforce=True, page_size=4096)

    (step,) = steps()
    assert (step.device, step.resize_bytes, step.restores) == ("0:25", 16 * GIB, True)
    node.memory = {}
    (step,) = steps()
    assert step.status is not None
    assert (step.status.device, step.status.original_bytes, step.resize_bytes) == ("0:30", 12 * GIB, None)


def test_an_unknown_id_is_no_other_tmpfs() -> None:
    assert same("boot/0:25/0", "boot/0:25/abc")
    assert not same("boot/0:25/def", "boot/0:25/abc")
    assert not same("boot/0:26/0", "boot/0:25/0")
    assert not same(None, "boot/0:25/0")


EVENTS = st.sampled_from(["once", "publish", "kill", "1", "2", "4", "Audit", "remove", "fill", "free"])


@given(st.lists(EVENTS, max_size=40))
def test_whatever_happens_and_whenever_it_dies_removal_brings_back_what_was_found(events: list[str]) -> None:
    node = Node(limits=(limit(),))
    for event in events:
        match event:
            case "once":
                node.once()
            case "publish":
                node.publish()
            case "kill":
                node.restart()
            case "Audit":
                node.limits = (limit(mode="Audit"),)
            case "remove":
                node.limits = ()
            case "fill":
                node.used = min(node.size, 3 * GIB)
            case "free":
                node.used = MIB
            case size:
                node.limits = (limit(int(size) * GIB),)
        assert node.size >= node.used
        assert node.size in (16 * GIB, *(each * GIB for each in (1, 2, 4)))
    node.used = MIB
    node.limits = (limit(4 * GIB),)
    status = node.settle()
    assert (node.size, status.state if status else None) == (4 * GIB, "InSync")
    node.limits = ()
    assert node.settle() is None
    assert node.size == 16 * GIB
