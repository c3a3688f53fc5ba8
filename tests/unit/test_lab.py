"""Claims about the experiment's plan, its foresight and its comparison, without running anything out of memory."""

import argparse
import struct
from dataclasses import replace
from typing import Any

import pytest

from cgrouptrees import Figures, v2_host
from nodemem.cli import oom_lab
from nodemem.kernel import lab, labchecks, labplan, labprogram, oom
from nodemem.kernel.capture import ReplayHost
from nodemem.kernel.labplan import Plan, Program

MIB = 1 << 20
ACCURATE = oom.rules_for("6.1.0", oom.Generation.ACCURATE)
CLAMPED = oom.rules_for("5.4.119", oom.Generation.CLAMPED_LAST)
TOTALPAGES = 200 * MIB // 4096


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    oom_lab.add_parser(parser.add_subparsers())
    return parser.parse_args(["lab", *words])


def task(pid: int, mib: int, adj: int, cgroup: str = "/lab") -> oom.Task:
    pages = mib * MIB // 4096
    return oom.Task(pid, f"p{pid}", pages, oom_score_adj=adj, anon_pages=pages, cgroup=cgroup)


def domain(*tasks: oom.Task, **knobs: Any) -> oom.Domain:
    return oom.Domain(tasks, TOTALPAGES, replace(oom.MEMCG, domain_path="/lab", **knobs), "exact", 4096)


def foreseen(found: oom.Domain, rules: oom.Rules, grower: int, free_mib: int) -> list[int | None]:
    return [kill.predicted for kill in lab.foresee(found, TOTALPAGES, rules, grower, free_mib * MIB // 4096)]


@pytest.mark.parametrize("scenario", labplan.SCENARIOS.values(), ids=lambda each: each.name)
def test_every_named_scenario_is_a_valid_plan(scenario: labplan.Scenario) -> None:
    assert scenario.plan.problems() == []


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (Plan((), 64 * MIB), "no program"),
        (Plan((Program(MIB, -1001),), 64 * MIB), "oom_score_adj -1001 is not in -1000..1000"),
        (Plan((Program(-1, 0),), 64 * MIB), "a size below 0"),
        (Plan((Program(MIB, 0, "../up"),), 64 * MIB), "is not a name"),
        (Plan((Program(MIB, 0),), 64 * MIB, grows=1), "program 2 is to grow, but there are 1"),
        (Plan((Program(MIB, 0, "a"), Program(MIB, 0)), 64 * MIB), "either every program names a group, or none"),
        (Plan((Program(MIB, 0, "a"),), 64 * MIB, oom_groups=frozenset({"b"})), "which no program is in"),
        (Plan((Program(MIB, 0),), MIB), "leaves no room for the kernel's own pages"),
        (Plan((Program(65 * MIB, 0),), 64 * MIB), "bytes before anything grows"),
        (Plan((Program(MIB, 0),), None, swap_bytes=MIB), "belong to a cgroup"),
    ],
)
def test_a_plan_that_cannot_work_says_why(plan: Plan, says: str) -> None:
    assert any(says in problem for problem in plan.problems())


def test_the_default_limit_has_room_for_the_programs_and_more() -> None:
    programs = (Program(160 * MIB, 0), Program(4096, 0))
    limit = labplan.roomy_limit(programs)
    assert Plan(programs, limit).problems() == []
    assert 160 * MIB * 9 // 8 <= limit <= 200 * MIB


def test_a_clamped_kernel_is_foreseen_to_kill_the_small_ones_first_and_the_growing_one_last() -> None:
    """The cascade seen on 5.4.119: hog first, then 40, 5 and 1 MiB, all at -998."""
    found = domain(task(39, 150, -998), task(41, 40, -998), task(43, 5, -998), task(45, 1, -998))
    assert foreseen(found, CLAMPED, 39, 4) == [45, 43, 41, 39]
    assert foreseen(found, ACCURATE, 39, 4) == [39]


def test_the_growing_one_takes_what_each_death_frees_before_the_next_one() -> None:
    # 60 MiB would outrank 5 MiB, but by the second OOM the 5 MiB have become 140.
    found = domain(task(1, 120, -997), task(2, 60, -997), task(3, 5, -997))
    assert foreseen(found, ACCURATE, 3, 10) == [1, 3]


def test_an_unkillable_growing_one_is_foreseen_to_outlive_all_others() -> None:
    found = domain(task(1, 120, -1000), task(2, 40, 0), task(3, 5, 0))
    assert foreseen(found, ACCURATE, 1, 10) == [2, 3]


def test_with_oom_group_the_first_kill_takes_everyone_and_is_the_last() -> None:
    found = domain(task(1, 120, 0), task(2, 40, 0), oom_group_paths=frozenset({"/lab"}))
    (kill,) = lab.foresee(found, TOTALPAGES, ACCURATE, 1, 1000)
    assert set(kill.dies) == {1, 2}
    assert lab.agrees([kill], [1, 2])
    assert not lab.agrees([kill], [2, 1])
    assert lab.agrees([kill], [2, 1], ordered=False)
    assert not lab.agrees([kill], [1])


def test_agreement_needs_the_same_victims_in_the_same_order_and_no_others() -> None:
    found = domain(task(1, 120, 0), task(2, 10, 1000))
    kills = lab.foresee(found, TOTALPAGES, ACCURATE, 1, 1000)
    assert lab.agrees(kills, [2, 1])
    assert not lab.agrees(kills, [1, 2])
    assert not lab.agrees(kills, [2])
    assert not lab.agrees(kills, [2, 1, 7])
    assert not lab.agrees([], [1])


def test_any_of_a_tied_set_agrees() -> None:
    tied = replace(domain(task(1, 120, -1000), task(2, 10, 0), task(3, 10, 0)), order="likely")
    kill = oom.predict(tied.tasks, TOTALPAGES, ACCURATE, tied.knobs, "likely")
    assert lab.agrees([kill], [2])
    assert lab.agrees([kill], [3])
    assert not lab.agrees([kill], [1])


def test_the_program_is_a_static_executable_that_starts_at_its_code() -> None:
    image = labprogram.executable("lab1-160Mi", 160 * MIB, 4096, "x86_64")
    assert image is not None
    assert image[:4] == b"\x7fELF"
    kind, machine, _, entry, programs = struct.unpack_from("<HHIQQ", image, 16)
    load, flags, offset, address, _, in_file, in_memory = struct.unpack_from("<IIQQQQQ", image, programs)
    assert (kind, machine) == (2, 62)
    assert (load, flags, offset) == (1, 5, 0)
    assert in_file == in_memory == len(image)
    assert image[entry - address :].startswith(b"\xb8\x9d\x00\x00\x00")
    span, page, name = struct.unpack("<QQ16s", image[-32:])
    assert (span, page, name.rstrip(b"\0")) == (160 * MIB, 4096, b"lab1-160Mi")


def test_a_machine_without_a_program_of_its_own_has_none() -> None:
    assert labprogram.executable("lab", MIB, 4096, "riscv64") is None


def test_the_command_line_gives_the_plan() -> None:
    plan = oom_lab.plan_of(parsed("--process", "4Ki:-998:pause", "--process", "160Mi:-997:app", "--limit", "200Mi"))
    assert plan.programs == (Program(4096, -998, "pause"), Program(160 * MIB, -997, "app"))
    assert (plan.grows, plan.limit_bytes) == (1, 200 * MIB)


def test_the_order_of_the_start_can_be_chosen_and_the_same_program_grows() -> None:
    words = ("--process", "1Mi:1", "--process", "9Mi:2", "--process", "5Mi:3", "--grow", "3")
    plan = oom_lab.plan_of(parsed(*words, "--order", "largest-first"))
    assert [program.size_bytes // MIB for program in plan.programs] == [9, 5, 1]
    assert plan.programs[plan.grows].oom_score_adj == 3
    plan = oom_lab.plan_of(parsed(*words, "--order", "smallest-first"))
    assert [program.size_bytes // MIB for program in plan.programs] == [1, 5, 9]
    assert plan.programs[plan.grows].oom_score_adj == 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--process", "9Mi", "--grow", "2"), "there are 1 programs"),
        (("--grow", "1"), "--grow belongs to --process"),
        (("--process", "9Mi", "--limit", "4Mi"), "before anything grows"),
        (("--global", "--process", "9Mi", "--limit", "64Mi"), "leave --limit out"),
        (
            (
                "--process",
                "9Mi:2000",
            ),
            "is not in -1000..1000",
        ),
    ],
)
def test_a_contradiction_on_the_command_line_is_named(words: tuple[str, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        oom_lab.plan_of(parsed(*words))


@pytest.mark.parametrize("text", ["", "MiB", "1.5Mi", "-1", "9Mi:x", "9Mi:12345"])
def test_what_is_no_size_or_program_is_refused_with_an_example(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        parsed(f"--process={text}")
    assert refused.value.code == 2
    assert "160Mi" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "evidence"),
    [
        ({"/proc/cpuinfo": b"flags\t\t: fpu hypervisor sse2\n"}, "hypervisor"),
        ({"/proc/cpuinfo": b"Features : fp\n", "/sys/class/dmi/id/product_name": b"KVM Virtual Machine\n"}, "product"),
        ({"/proc/cpuinfo": b"flags\t\t: fpu sse2\n", "/sys/class/dmi/id/sys_vendor": b"Dell Inc.\n"}, None),
    ],
)
def test_a_virtual_machine_is_told_by_its_processor_or_its_maker(files: dict[str, bytes], evidence: str | None) -> None:
    found = labchecks.virtual_machine(ReplayHost(files))
    assert (found is None) if evidence is None else (found is not None and evidence in found)


def test_a_node_that_runs_containers_is_not_for_a_global_experiment() -> None:
    host = v2_host({"/": Figures(), "/kubepods.slice": Figures()})
    assert "kubepods" in (labchecks.shared_with(host) or "")


def test_a_container_is_not_for_a_global_experiment() -> None:
    host = ReplayHost({}, {"stat": {"/proc/self/ns/pid": {"value": ["0:4", 4026532198, 0, 1, 0, 0o444, 0.0]}}})
    assert "container" in (labchecks.shared_with(host) or "")
