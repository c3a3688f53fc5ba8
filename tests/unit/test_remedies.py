"""What is advised against each finding: the pressing ones first, and commands that no name can turn into others."""

import dataclasses
import json
import shlex
import subprocess
from collections.abc import Iterator

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import samples
from nodemem.api import convert
from nodemem.api.types import TmpfsPolicySpec
from nodemem.node.exposure import Severity
from nodemem.node.findings import Findings
from nodemem.node.oomdomains import ProcessFigures
from nodemem.node.remedies import Remedy, remedies
from nodemem.node.services import ServiceAtRisk
from nodemem.node.status import (
    LimitStatus,
    MemoryStatus,
    ReportStatus,
    ShmemObjectStatus,
    TmpfsOwnerStatus,
    TmpfsStatus,
)
from nodemem.node.units import parse_size
from nodemem.policy import globs

GIB = 1 << 30


def quiet(*tmpfs: TmpfsStatus) -> ReportStatus:
    """64 GiB, nothing wrong but what ``tmpfs`` has."""
    status = samples.status()
    zero = {field.name: 0 for field in dataclasses.fields(MemoryStatus)}
    memory = MemoryStatus(**(zero | {"total_bytes": 64 * GIB, "free_bytes": 64 * GIB}))
    shmem = dataclasses.replace(
        status.shmem, **{name: 0 for name in status.shmem.__dataclass_fields__ if "_bytes" in name}
    )
    return dataclasses.replace(status, memory=memory, shmem=shmem, tmpfs=tmpfs, exposures=())


def host(used: int, size: int | None = 16 * GIB, path: str = "/run", **more: object) -> TmpfsStatus:
    return dataclasses.replace(
        samples.tmpfs(1),
        mount_point=path,
        scope="Host",
        owner=TmpfsOwnerStatus("Host"),
        used_bytes=used,
        size_bytes=size,
        unlimited=size is None,
        full_at=None,
        growth_bytes_per_hour=None,
        written_by=(),
        **more,  # type: ignore[arg-type]
    )


def codes(found: Remedy) -> list[str]:
    return [step.code for step in found.steps if step.code]


def policies(found: tuple[Remedy, ...]) -> Iterator[TmpfsPolicySpec]:
    for remedy in found:
        for text in codes(remedy):
            if "kind: TmpfsPolicy" in text:
                loaded = yaml.safe_load(text)
                assert loaded["apiVersion"] == "nodemem.io/v1alpha1"
                yield convert.read(TmpfsPolicySpec, loaded["spec"])


def test_a_quiet_machine_needs_nothing() -> None:
    assert remedies(quiet(host(32 << 20))) == ()


def test_a_leak_is_capped_a_tenth_above_what_it_holds_now() -> None:
    [found] = remedies(quiet(host(9 * GIB)))
    assert found.severity is Severity.HIGH
    assert codes(found)[0] == "nodemem tmpfs ls /run"
    [spec] = policies((found,))
    assert spec.rules[0].path == "/run"
    assert spec.mode == "Audit"
    size = parse_size(str(spec.rules[0].size))
    assert 9.9 * GIB <= size < 11 * GIB
    assert f"nodemem tmpfs resize /run {spec.rules[0].size} --dry-run" in codes(found)


def test_a_full_one_is_imminent_and_its_cap_waits_until_it_is_cleaned() -> None:
    [found] = remedies(quiet(host(15 * GIB)))
    assert found.severity is Severity.IMMINENT
    [spec] = policies((found,))
    assert parse_size(str(spec.rules[0].size)) == 8 * GIB
    assert not any("resize" in code for code in codes(found))
    assert any("Deferred until the files are gone" in step.text for step in found.steps)


def test_one_that_is_full_within_a_day_is_imminent() -> None:
    soon = dataclasses.replace(host(2 * GIB), full_at="2030-01-01T04:00:00Z", growth_bytes_per_hour=GIB)
    [found] = remedies(quiet(soon))
    assert found.severity is Severity.IMMINENT
    assert "full in 4 h" in found.why
    assert "grows 1.0 GiB/h" in found.title
    later = dataclasses.replace(soon, full_at="2030-01-09T04:00:00Z")
    assert remedies(quiet(later))[0].severity is Severity.LOW


def test_a_journal_is_journald_s_to_keep_small() -> None:
    [found] = remedies(quiet(host(9 * GIB, journal_bytes=8 * GIB)))
    text = "\n".join(codes(found))
    assert "--directory=/run/log/journal --vacuum-size=256M" in text
    assert "RuntimeMaxUse=256M" in text


@pytest.mark.parametrize(("scope", "kind"), [("EmptyDir", "EmptyDir"), ("SharedMemory", "SharedMemory")])
def test_a_pod_s_tmpfs_is_capped_by_a_rule_without_a_path(scope: str, kind: str) -> None:
    owner = TmpfsOwnerStatus(kind, "uid", "team", "web", "cache")
    mine = dataclasses.replace(host(9 * GIB), scope=scope, owner=owner)
    [spec] = policies(remedies(quiet(mine)))
    assert (spec.rules[0].scope, spec.rules[0].path, spec.rules[0].size) == (scope, None, "50%")


def test_memory_without_a_path_names_its_largest_object_and_holder() -> None:
    status = quiet()
    objects = tuple(ShmemObjectStatus("sysv", None, n, n * GIB, f"key {n}", (7,), None) for n in (1, 7))
    status = dataclasses.replace(
        status,
        shmem=dataclasses.replace(status.shmem, sysv_bytes=8 * GIB, objects=objects),
        processes=None,
    )
    [found] = remedies(status)
    assert found.title == "8.0 GiB in System V segments"
    assert "key 7, 7.0 GiB, held by pid 7." in found.why
    assert codes(found) == ["ipcs -m -p"]


def test_the_kernel_s_own_memory_is_explained_as_meminfo_does() -> None:
    status = quiet()
    [found] = remedies(
        dataclasses.replace(status, memory=dataclasses.replace(status.memory, page_tables_bytes=8 * GIB))
    )
    assert "8.0 GiB in pageTables" in found.title
    assert any(step.text.startswith("PageTables: ") for step in found.steps)


def test_an_exposure_keeps_its_sentence_and_gets_the_command_for_its_container() -> None:
    exposed = dataclasses.replace(samples.exposure(3), pod_name=None, severity="High", reasons=("ClampedBadness",))
    status = dataclasses.replace(quiet(), exposures=(exposed,), containers=(samples.container(3),))
    [found] = remedies(status)
    assert found.severity is Severity.HIGH
    assert found.why == exposed.message
    assert "kill pause (5740) and not data_sim (58406)" in found.title
    [command] = [code for code in codes(found) if "choom" in code]
    assert command.startswith(f"for pid in $(cat /sys/fs/cgroup{samples.container(3).cgroup}/cgroup.procs)")
    assert "choom -n -63 -p $pid" in command


def test_a_service_that_dies_first_gets_its_drop_in() -> None:
    service = ServiceAtRisk(
        service="sshd",
        why="without it nobody logs in",
        process=ProcessFigures(812, "sshd", 1 << 20, 1 << 20, 0),
        unit="ssh.service",
        dies_first=True,
        outlived_by=(ProcessFigures(9, "java", GIB, GIB, -997),),
        outlived_count=1,
        set_oom_score_adj=-1000,
        file="/etc/systemd/system/ssh.service.d/50-oom.conf",
        content="[Service]\nOOMScoreAdjust=-1000\n",
        command="choom -n -1000 -p 812",
        advice="write it",
    )
    found = remedies(quiet(), Findings(None, (), (), (), (service,), ()))  # type: ignore[arg-type]
    assert found[0].title == "sshd (812) would die before java (9)"
    assert codes(found[0])[0] == "choom -n -1000 -p 812"
    printing = codes(found[0])[1].splitlines()[1].partition(" > ")[0]
    written = subprocess.run(["bash", "-c", printing], capture_output=True, text=True, check=True)
    assert written.stdout == service.content


def test_a_limit_that_failed_says_why() -> None:
    limit = LimitStatus(mount_point="/run", requested_bytes=1, applied_bytes=None, original_bytes=None, state="Failed",
                        reason="x", message="the kernel said no")  # fmt: skip
    [found] = remedies(dataclasses.replace(quiet(), limits=(limit,)))
    assert found.why == "the kernel said no"
    assert found.severity is Severity.HIGH


def test_the_most_pressing_come_first() -> None:
    found = remedies(quiet(host(GIB), host(15 * GIB, path="/b"), host(9 * GIB, path="/c")))
    assert [each.severity for each in found] == [Severity.IMMINENT, Severity.HIGH, Severity.LOW]


PATHS = st.text(min_size=1, max_size=40).map(lambda text: f"/{text}") | st.sampled_from(
    [
        "/a b",
        "/$(reboot)",
        "/`reboot`",
        "/a;reboot",
        "/a'b",
        '/a"b',
        "/a\nreboot",
        "/-rf",
        "/a*b",
        "/ü",
        "/a\\b",
        "/a\x1b[1m",
    ]
)


@settings(max_examples=200, deadline=None)
@given(PATHS)
def test_no_path_is_anything_but_one_word_of_a_command(path: str) -> None:
    """And what a policy names is that path alone."""
    found = remedies(quiet(host(9 * GIB, path=path, journal_bytes=8 * GIB)))
    [remedy] = found
    for code in codes(remedy):
        if code.startswith("nodemem tmpfs"):
            words = shlex.split(code)
            assert words[:2] == ["nodemem", "tmpfs"]
            assert words[3] in (path, "0:1")
            assert len(code.splitlines()) == 1
        assert all(char.isprintable() or char == "\n" for char in code)
    for spec in policies(found):
        assert spec.rules[0].path == path
        assert not globs.is_glob(path)
        assert json.loads(json.dumps(path)) == path
