"""A report stays small, and says what it leaves out."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from nodemem.agent.bounded import AIM_BYTES, LIMIT_BYTES, bounded, encoded_bytes
from nodemem.api.convert import wire
from nodemem.node.status import LimitStatus, Omitted, OomMitigationStatus, ReclaimStatus
from unit.agent_statuses import GIB, MIB, container, exposure, kill, status, tmpfs


def test_a_small_status_is_whole() -> None:
    plain = bounded(status(tmpfs=(tmpfs(1, files=5),), containers=(container(1),)))
    assert len(plain["tmpfs"]) == len(plain["containers"]) == 1
    assert len(plain["tmpfs"][0]["largest"]) == 5
    assert set(plain["omitted"].values()) == {0}


def test_a_node_of_110_pods_with_nothing_to_tell_stays_below_8_kib() -> None:
    full = status(
        tmpfs=tuple(tmpfs(each, (50 - each) * MIB, files=5) for each in range(20)),
        containers=tuple(container(each) for each in range(40)),
        omitted=Omitted(tmpfs=280, containers=290),
    )
    plain = bounded(full)
    assert encoded_bytes(plain) <= AIM_BYTES
    assert len(plain["tmpfs"]) + plain["omitted"]["tmpfs"] == 300
    assert len(plain["containers"]) + plain["omitted"]["containers"] == 330
    assert [each["device"] for each in plain["tmpfs"]] == [f"0:{each}" for each in range(len(plain["tmpfs"]))]
    assert len(plain["tmpfs"]) >= 3
    assert len(plain["tmpfs"][0]["largest"]) == 5


def test_findings_get_the_room_that_context_gives_up() -> None:
    full = status(
        tmpfs=tuple(tmpfs(each, files=5) for each in range(20)),
        containers=tuple(container(each) for each in range(40)),
        exposures=tuple(exposure(each) for each in range(20)),
        oom_kills=tuple(kill(each) for each in range(8)),
    )
    plain = bounded(full)
    assert encoded_bytes(plain) <= LIMIT_BYTES
    assert len(plain["exposures"]) >= 16
    assert len(plain["tmpfs"]) >= 3
    assert len(plain["exposures"][0]["message"]) > 200
    assert plain["oomKills"][0]["key"] == "boot:0"


def test_no_limit_is_left_out_since_the_sizes_found_are_in_them() -> None:
    said = "/var/lib/kubelet/pods holds too much for what it is to become, and is tried again. " * 4
    limits = tuple(LimitStatus(f"/mnt/{each}", GIB, 2 * GIB, 4 * GIB, "Deferred", message=said) for each in range(128))
    context = {"tmpfs": tuple(tmpfs(each) for each in range(20)), "containers": (container(1), container(2))}
    plain = bounded(status(**context, limits=limits))
    assert [each["originalBytes"] for each in plain["limits"]] == [4 * GIB] * 128
    assert plain["limits"][0]["message"] == said
    assert len(plain["limits"][-1]["message"]) == 160


def test_no_mitigation_is_left_out_since_the_kubelets_values_are_in_them() -> None:
    said = "oom_score_adj -997 could not be made -63: Permission denied. "
    each = OomMitigationStatus("a" * 64, "u" * 36, "Failed", "app", -63, -997, GIB, 1, 2, "KernelRefused", said)
    plain = bounded(status(tmpfs=tuple(tmpfs(each) for each in range(20)), oom_mitigations=(each,) * 128))
    assert [each["kubeletOomScoreAdj"] for each in plain["oomMitigations"]] == [-997] * 128
    assert plain["oomMitigations"][0]["message"] == said
    assert "message" not in plain["oomMitigations"][-1]
    assert plain["oomMitigations"][-1]["reason"] == "KernelRefused"
    assert len(plain["tmpfs"]) >= 3


def test_nothing_of_reclaim_is_left_out_but_the_ends_of_sentences() -> None:
    said = "On the way to it is a symlink. " * 20
    reclaim = tuple(
        ReclaimStatus("Tmpfiles", f"/run/app-{each}/logs", None, "7d", "Refused", "Symlink", said, "cap")
        for each in range(32)
    )
    context = {"tmpfs": tuple(tmpfs(each, files=5) for each in range(20))}
    plain = bounded(status(**context, reclaim=reclaim))
    assert len(plain["reclaim"]) == 32
    assert len(plain["reclaim"][-1]["message"]) == 160
    assert encoded_bytes(plain) <= LIMIT_BYTES


def test_kills_of_the_past_don_t_take_the_room_of_what_is_now() -> None:
    context = {"tmpfs": tuple(tmpfs(each, files=2) for each in range(5)), "containers": (container(1), container(2))}
    plain = bounded(status(**context, oom_kills=tuple(kill(each) for each in range(8))))
    assert len(plain["tmpfs"]) == 5
    assert len(plain["containers"]) == 2
    assert len(plain["oomKills"]) == 8


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 60),
    st.integers(0, 60),
    st.integers(0, 40),
    st.integers(0, 16),
    st.text(max_size=1024),
    st.integers(0, 5),
)
def test_whatever_is_in_it_an_object_stays_under_16_kib(
    mounts: int, containers: int, exposures: int, kills: int, message: str, files: int
) -> None:
    full = status(
        tmpfs=tuple(tmpfs(each, files=files) for each in range(mounts)),
        containers=tuple(container(each) for each in range(containers)),
        exposures=tuple(exposure(each, message=message) for each in range(exposures)),
        oom_kills=tuple(kill(each, message=message) for each in range(kills)),
        verdict=message,
    )
    plain = bounded(full)
    assert encoded_bytes(plain) <= LIMIT_BYTES
    assert len(plain["tmpfs"]) + plain["omitted"]["tmpfs"] == mounts
    assert len(plain["containers"]) + plain["omitted"]["containers"] == containers
    for figure, left_out, of in (
        ("usedBytes", "tmpfsUsedBytes", "tmpfs"),
        ("shmemBytes", "containersShmemBytes", "containers"),
        ("usageBytes", "containersUsageBytes", "containers"),
    ):
        whole = sum(wire(each)[figure] for each in getattr(full, of))
        assert sum(each[figure] for each in plain[of]) + plain["omitted"][left_out] == whole
    assert "null" not in json.dumps([value for value in plain.values() if not isinstance(value, str)]).split('"')


def test_hostile_names_are_text_that_json_and_terminals_take() -> None:
    plain = bounded(status(verdict="a\x1b[2Jb\udcffc\u202e"))
    assert plain["verdict"] == "a\\x1b[2Jb\\xffc\\u202e"
    json.dumps(plain, ensure_ascii=False).encode()
