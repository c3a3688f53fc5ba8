"""What the kernel printed is what is read, whatever wrote the log down; and the judgement says no more than that."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nodemem.kernel.oom import KNOWN_GENERATIONS, Generation
from nodemem.kernel.oomjudge import Judgement, judge
from nodemem.kernel.oomlog import MAX_ROWS, LogTask, Report, reports
from unit.oomlog_render import COLUMNS, WRAPPINGS, Scene, log, messages, row

DATA = Path(__file__).parent.parent / "data" / "oom"

FIRST, LAST, ACCURATE = KNOWN_GENERATIONS


def read(name: str) -> list[Report]:
    return list(reports((DATA / name).read_bytes().splitlines(keepends=True)))


def only(name: str) -> Report:
    (report,) = read(name)
    return report


def predicted(judgement: Judgement) -> tuple[list[int], ...]:
    return tuple(list(judgement.predicted[generation]) for generation in KNOWN_GENERATIONS)


# --- real reports -----------------------------------------------------------------------------------------------------


def test_the_commits_own_table_names_the_pause_process_first_and_the_simulator_otherwise() -> None:
    judgement = judge(only("oom-commit-9066e5cfb73c.log"))
    assert judgement.report.constraint == "memcg"
    assert judgement.report.memory is not None
    assert judgement.report.memory.limit_bytes == 16 << 30
    assert judgement.total.exact == 4194304
    assert len(judgement.tasks) == 21
    assert predicted(judgement) == ([5740], [58406], [58406])
    assert judgement.generation is Generation.CLAMPED_FIRST
    assert judgement.largest is not None
    assert judgement.largest.pid == 58406
    assert (judgement.verdict, judgement.cause) == ("wrong", "clamped")
    assert judgement.scores[58406] == -209232
    assert judgement.scores[5740] == -4185603
    assert "data_sim (pid 58406, 15.2 GiB) would have freed most" in judgement.explanation


def test_the_cascade_of_5_4_119_is_three_wrong_kills_of_the_last_one_scanned() -> None:
    judgements = [judge(report) for report in read("oom-5.4.119-cascade.log")]
    victims = [judgement.report.kills[0].pid for judgement in judgements]
    assert victims == [45, 43, 41]
    for judgement, victim in zip(judgements, victims, strict=True):
        assert predicted(judgement) == ([39], [victim], [39])
        assert judgement.generation is Generation.CLAMPED_LAST
        assert judgement.largest is not None
        assert judgement.largest.pid == 39
        assert judgement.verdict == "wrong"
        assert judgement.report.kernel_release == "5.4.119-1"
    assert judgements[2].report.reaped[0].pid == 41


RIGHT = {
    "3.7-rc-memcg-quoted.log": (4611, 3, "3.6.0+", 140800),
    "3.10-el7-memcg.log": (1399, 2, "3.10.0-693.21.1.el7.x86_64", 262144),
    "3.10-el7-swap-unknown.log": (25892, 6, None, None),
    "4.4-memcg.log": (24387, 2, None, 25600),
    "4.x-global-journal.log": (4358, 1, None, 4069095),
    "4.15-pod-dmesg-T.log": (32308, 6, "4.15.0-46-generic", 31488),
    "4.18-rc-cut-lines.log": (1990, 3, "4.18.0-rc7-work+", None),
    "5.x-journal-multiline.log": (69431, 3, None, None),
    "5.8-memcg.log": (19289, 1, "5.8.0-1031-oracle", 33),
    "5.10-global-swap.log": (211, 9, "5.10.0-rc3-next-20201116-dirty", 770395),
    "5.15-docker-v2-swap.log": (3974, 2, "5.15.0-107-generic", 4096),
    "6.x-v2-swap-in-use.log": (128825, 2, None, None),
    "6.x-ppc64le-64k-pages.log": (177372, 1, None, None),
    "6.12-global-no-prefix.log": (996, 12, "6.12.62+rpt-rpi-v8", 213013),
    "6.18-mail-torn-words.log": (1122, 2, "6.18.0+", None),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_kernel_that_took_the_largest_was_right_under_every_rule(name: str) -> None:
    victim, rows, release, total = RIGHT[name]
    judgement = judge(only(name))
    assert [kill.pid for kill in judgement.report.kills] == [victim]
    assert len(judgement.tasks) == rows
    assert judgement.report.kernel_release == release
    assert judgement.total.exact == total
    assert predicted(judgement) == ([victim], [victim], [victim])
    assert judgement.verdict == "right"
    assert judgement.generation is Generation.UNKNOWN
    assert judgement.report.gaps == ()


@pytest.mark.parametrize(
    ("name", "size", "source"),
    [
        ("6.x-ppc64le-64k-pages.log", 65536, "victim"),
        ("4.4-memcg.log", 4096, "victim"),
        ("6.10-quoted-wrapped-truncated.log", 4096, "assumed"),
    ],
)
def test_page_size_comes_from_what_the_report_says_in_both_units(name: str, size: int, source: str) -> None:
    report = only(name)
    assert (report.page_size, report.page_size_source) == (size, source)


@pytest.mark.parametrize(
    ("line", "size"),
    [
        ("Node 0 Normal: 5*16kB (UE) 3*32kB (U) 0*64kB = 176kB", 16384),
        ("Node 0 active_anon:6400kB inactive_anon:0kB active_file:0kB", 65536),
    ],
)
def test_page_size_comes_from_mem_info_where_the_victim_has_no_row(line: str, size: int) -> None:
    text = [
        "x invoked oom-killer: gfp_mask=0x0, order=0, oom_score_adj=0",
        "Mem-Info:",
        "active_anon:100 inactive_anon:0 isolated_anon:0",
        line,
        "Out of memory: Killed process 7 (x) total-vm:64kB, anon-rss:64kB, file-rss:0kB, shmem-rss:0kB",
    ]
    (report,) = reports(line.encode() for line in text)
    assert (report.page_size, report.page_size_source) == (size, "mem-info")


def test_a_wrapped_and_quoted_mail_gives_whole_rows_and_says_that_the_end_is_missing() -> None:
    report = only("6.10-quoted-wrapped-truncated.log")
    assert [(task.pid, task.name, task.rss_file_pages) for task in report.tasks] == [
        (1461, "kbench", 477),
        (4170, "time", 321),
        (4171, "make", 762),
    ]
    judgement = judge(report)
    assert judgement.verdict == "unknown"
    assert predicted(judgement) == ([], [], [])
    assert "ends before the line that says who was killed" in judgement.explanation


def test_words_torn_in_two_by_a_mail_program_are_whole_again() -> None:
    report = only("6.18-mail-torn-words.log")
    assert [(task.pid, task.name) for task in report.tasks] == [(1121, "stress"), (1122, "stress")]
    assert report.columns[-1] == "oom_score_adj"
    assert (report.oom_memcg, report.task_memcg) == ("/test512mb", "/test512mb")
    assert report.kills[0].page_tables_bytes == 1072 * 1024
    assert report.invoker_name == "stress"


def test_a_child_that_died_for_the_chosen_one_is_told_from_it() -> None:
    judgement = judge(only("4.19-child-hard-wrapped.log"))
    assert judgement.chosen is not None
    assert (judgement.chosen.pid, judgement.report.kills[0].pid) == (62685, 62769)
    assert judgement.cause == "child"
    assert judgement.generation is Generation.CLAMPED_FIRST
    assert judgement.report.oom_memcg == (
        "/kubepods/pod951f6bc5-c5a5-11ea-8707-80e455f266a2/"
        "024952d653ef1cd852f875a61bd27cf45cb1fd6cab3659ca7e5f12f037d99aa9"
    )


def test_a_thread_that_was_chosen_is_the_process_that_died() -> None:
    killed, cut = read("3.10-el7-thread-chosen.log")
    judgement = judge(killed)
    assert killed.choice is not None
    assert (killed.choice.pid, killed.choice.score) == (24572, 0)
    assert judgement.chosen is not None
    assert judgement.chosen.pid == 28438
    assert killed.gaps == ()
    assert cut.kills == ()
    assert cut.gaps != ()


def test_all_members_of_an_oom_group_are_one_report_and_the_chosen_one_counts_once() -> None:
    report = only("4.19-oom-group.log")
    assert report.group == "/A1"
    assert [kill.pid for kill in report.kills] == [1221, 1217, 1218, 1219, 1220, 1222]
    assert judge(report).cause == "group"
    assert judge(report).verdict == "unknown"


def test_nobody_to_kill_is_no_victim() -> None:
    report = only("6.x-nobody.log")
    judgement = judge(report)
    assert report.nobody
    assert report.panicked
    assert (judgement.verdict, judgement.cause) == ("unknown", "nobody")
    assert predicted(judgement) == ([], [], [])


# --- what the text leaves open ----------------------------------------------------------------------------------------


def task(pid: int, rss: int, adj: int, name: str = "app", swap: int = 0, uid: int = 1000) -> LogTask:
    return LogTask(
        pid=pid,
        name=name,
        uid=uid,
        tgid=pid,
        total_vm_pages=rss + 1000,
        rss_pages=rss,
        oom_score_adj=adj,
        swap_pages=swap,
        page_tables_bytes=0,
    )


def judged(tasks: list[LogTask], victim: int, kernel: str = "5.4", limit_kb: int | None = 1048576) -> Judgement:
    scene = Scene(kernel, tuple(tasks), [each.pid for each in tasks].index(victim), limit_kb)
    (report,) = reports(log(messages(scene), "dmesg"))
    return judge(report)


def test_oom_score_adj_that_hides_the_largest_is_named() -> None:
    judgement = judged([task(1000, 200000, 0, "big"), task(1001, 50000, 900, "small")], 1001)
    assert predicted(judgement) == ([1001], [1001], [1001])
    assert (judgement.verdict, judgement.cause) == ("wrong", "oom_score_adj")


def test_an_unkillable_process_that_holds_most_is_named() -> None:
    judgement = judged([task(1000, 200000, -1000, "db"), task(1001, 50000, 0, "small")], 1001)
    assert (judgement.verdict, judgement.cause) == ("wrong", "unkillable")
    assert any("above -1000" in line for line in judgement.advice)


def test_a_process_killed_before_is_passed_over() -> None:
    first = Scene("5.4", (task(1000, 200000, 0), task(1001, 5000, 0)), 0)
    second = replace(first, victim=1)
    judgements = [judge(report) for report in reports(log([*messages(first), *messages(second)], "dmesg"))]
    assert [predicted(judgement)[1] for judgement in judgements] == [[1000], [1001]]
    assert [judgement.verdict for judgement in judgements] == ["right", "right"]


def test_init_is_never_taken_on_the_node_but_is_in_a_table_of_a_memory_cgroup() -> None:
    tasks = [task(1, 200000, 0, "init"), task(1001, 50000, 0)]
    assert predicted(judged(tasks, 1001, limit_kb=None))[1] == [1001]
    assert predicted(judged(tasks, 1))[1] == [1]


def test_without_a_limit_equal_adjustments_decide_only_the_accurate_kernels() -> None:
    tasks = (task(1000, 9000, -998), task(1001, 50, -998))
    lines = [line for line in messages(Scene("5.4", tasks, 1)) if ": usage " not in line]
    (report,) = reports(log(lines, "dmesg"))
    judgement = judge(report)
    assert judgement.total.exact is None
    assert predicted(judgement)[2] == [1000]
    assert predicted(judgement)[1] == [1000, 1001]
    assert "isn't known" in judgement.explanation


def test_without_a_limit_different_adjustments_leave_the_set_of_those_it_may_be() -> None:
    tasks = (task(1000, 9000, 0), task(1001, 5000, 500), task(1002, 4000, 100))
    lines = [line for line in messages(Scene("5.4", tasks, 1)) if ": usage " not in line]
    (report,) = reports(log(lines, "dmesg"))
    assert predicted(judge(report)) == ([1000, 1001], [1000, 1001], [1000, 1001])


@pytest.mark.parametrize("kernel", ["4.15", "4.19"])
def test_a_tie_before_5_3_is_open_as_the_table_is_in_another_order_than_the_scan(kernel: str) -> None:
    tasks = [task(1000, 9000, -998), task(1001, 50, -998), task(1002, 600, -998)]
    judgement = judged(tasks, 1001, kernel)
    assert predicted(judgement) == ([1000, 1001, 1002], [1002], [1000])
    assert judgement.generation is Generation.CLAMPED_FIRST


def test_the_printed_score_tells_how_much_swap_there_was() -> None:
    tasks = (task(1000, 100000, 0, swap=20000), task(1001, 50, 0))
    scene = Scene("4.15", tasks, 0, limit_kb=524288, score=120000 * 1000 // 262144)
    lines = [
        line.replace("memory+swap: usage 524288kB, limit 524288kB", "memory+swap: usage 604288kB, limit 1048576kB")
        for line in messages(scene)
    ]
    (report,) = reports(log(lines, "dmesg"))
    assert judge(report).total.exact == 262144


@pytest.mark.parametrize(
    ("marker", "gap"),
    [
        ("** 12 printk messages dropped **", "lines are missing"),
        ("[...]", "lines are missing"),
        ("(...snipped...)", "lines are missing"),
    ],
)
def test_a_table_with_a_hole_decides_nothing(marker: str, gap: str) -> None:
    lines = messages(Scene("5.4", (task(1000, 900, -998), task(1001, 50, -998)), 1))
    lines.insert(lines.index(row(task(1001, 50, -998), "5.4")), marker)
    (report,) = reports(log(lines, "bare"))
    judgement = judge(report)
    assert any(gap in each for each in report.gaps)
    assert predicted(judgement) == ([], [], [])
    assert judgement.generation is Generation.UNKNOWN
    assert judgement.verdict == "wrong", "a larger one is there to see, whatever else is missing"


def test_a_row_missing_for_the_victim_is_a_gap() -> None:
    lines = messages(Scene("5.4", (task(1000, 900, 0), task(1001, 50000, 0)), 1))
    (report,) = reports(log([line for line in lines if not line.startswith("[   1001]")], "dmesg"))
    assert [each.pid for each in report.tasks] == [1000]
    assert judge(report).verdict == "unknown"


def test_kills_without_a_report_are_counted_one_by_one() -> None:
    line = b"[ 1.0] Memory cgroup out of memory: Killed process %d (a) total-vm:8kB, anon-rss:4kB, file-rss:0kB"
    found = list(reports([b"[ 0.9] oom_kill_process: 70 callbacks suppressed", line % 5, line % 6, line % 7]))
    assert [[kill.pid for kill in report.kills] for report in found] == [[5], [6], [7]]
    assert found[0].suppressed == 70
    assert all(judge(report).verdict == "unknown" for report in found)


def test_the_allocating_task_dies_whatever_the_sizes() -> None:
    lines = [
        line.replace("Out of memory:", "Out of memory (oom_kill_allocating_task):")
        for line in messages(Scene("5.4", (task(1000, 90000, 0), task(1001, 50, 0)), 1, limit_kb=None))
    ]
    (report,) = reports(log(lines, "dmesg"))
    judgement = judge(report)
    assert (judgement.cause, judgement.verdict) == ("allocating task", "wrong")
    assert judgement.generation is Generation.UNKNOWN


def test_a_cpuset_counts_the_present_pages_of_its_nodes() -> None:
    lines = messages(Scene("5.4", (task(1000, 90000, 0), task(1001, 50, 0)), 0, limit_kb=None))
    lines = [
        line.replace("CONSTRAINT_NONE", "CONSTRAINT_CPUSET").replace("mems_allowed=0,", "mems_allowed=1,")
        for line in lines
    ]
    lines.insert(6, "Node 0 Normal free:100kB min:4kB low:8kB high:12kB present:4194304kB managed:4000000kB")
    lines.insert(7, "Node 1 DMA32 free:100kB min:4kB low:8kB high:12kB present:1048576kB managed:1000000kB")
    lines.insert(8, "Node 1 Normal free:100kB min:4kB low:8kB high:12kB present:1048576kB managed:1000000kB")
    (report,) = reports(log(lines, "dmesg"))
    assert report.constraint == "cpuset"
    assert judge(report).total.exact == (2 * 1048576 + 1048576) // 4


def test_a_hostile_name_changes_nothing_but_itself() -> None:
    names = ["a] b", "x,pid=1,uid=0", "1234", "oom-killer: gfp", "0 0 0 bash", ") score 9 (", "Killed process"]
    tasks = tuple(task(1000 + at, 100 + at, 0, name[:15]) for at, name in enumerate(names))
    for victim in range(len(tasks)):
        (report,) = reports(log(messages(Scene("5.4", tasks, victim)), "dmesg"))
        assert report.tasks == tasks
        assert [kill.pid for kill in report.kills] == [tasks[victim].pid]
        assert report.oom_memcg == "/kubepods/pod1"


# --- any kernel, any tool ---------------------------------------------------------------------------------------------

_pages = st.integers(0, 2**40)
_names = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp", "Zs", "Cs"]), min_size=1, max_size=3
) | st.sampled_from(["CPU 2/KVM", "(sd-pam)", "tmux: server", "7zip", "runc:[2:INIT]", "\udcff\udcfe"])


@st.composite
def _scenes(draw: st.DrawFn) -> Scene:
    kernel = draw(st.sampled_from(sorted(COLUMNS)))
    pids = draw(st.lists(st.integers(2, 4194304), min_size=1, max_size=8, unique=True))
    tasks = tuple(
        LogTask(
            pid=pid,
            name=draw(_names),
            uid=draw(st.integers(0, 2**32 - 1)),
            tgid=pid,
            total_vm_pages=draw(_pages),
            rss_pages=draw(_pages),
            oom_score_adj=draw(st.integers(-1000, 1000)),
            **{column: draw(_pages) for column in COLUMNS[kernel]},
        )
        for pid in pids
    )
    return Scene(kernel, tasks, draw(st.integers(0, len(tasks) - 1)), draw(st.sampled_from([None, 1048576])))


@settings(deadline=None, max_examples=200)
@given(_scenes(), st.sampled_from(sorted(WRAPPINGS)))
def test_any_table_of_any_kernel_through_any_tool_is_read_as_it_was(scene: Scene, wrapping: str) -> None:
    if wrapping in ("journalctl json", "journalctl json-pretty"):
        scene = replace(scene, tasks=tuple(replace(each, name=_text(each.name)) for each in scene.tasks))
    (report,) = reports(log(messages(scene), wrapping))
    victim = scene.tasks[scene.victim]
    assert report.tasks == scene.tasks
    assert [(kill.pid, kill.name) for kill in report.kills] == [(victim.pid, victim.name)]
    assert report.constraint == ("global" if scene.limit_kb is None else "memcg")
    assert report.kernel_release == f"{scene.kernel}.0-test"
    assert report.gaps == ()
    assert [each.pid for each in report.reaped] == [victim.pid]
    if scene.limit_kb is not None:
        assert report.memory is not None
        assert report.memory.limit_bytes == scene.limit_kb * 1024
        assert report.oom_memcg == scene.path
    judgement = judge(report)
    if victim.oom_score_adj != -1000:
        assert judgement.total.exact is not None
        for pids in judgement.predicted.values():
            assert set(pids) <= {each.pid for each in scene.tasks if each.oom_score_adj != -1000}
            assert pids


def _text(name: str) -> str:
    return name.encode("utf-8", "replace").decode()


@pytest.mark.parametrize("wrapping", sorted(WRAPPINGS))
def test_reports_one_after_the_other_stay_apart_with_other_lines_in_between(wrapping: str) -> None:
    scenes = [Scene(kernel, (task(1000, 900, 0), task(1001, 50, 0)), 0) for kernel in COLUMNS]
    lines: list[str] = []
    for scene in scenes:
        lines += ["usb 1-1: new high-speed USB device", "kauditd_printk_skb: 12 callbacks suppressed"]
        for line in messages(scene):
            lines += [line, " ? try_charge+0x3e9/0x4f7", "eth0: link up"]
    found = list(reports(log(lines, wrapping)))
    assert [report.kernel_release for report in found] == [f"{scene.kernel}.0-test" for scene in scenes]
    assert all(len(report.tasks) == 2 and not report.gaps for report in found)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.binary(max_size=300), max_size=40))
@example([b"{" * 2000, b'"MESSAGE": "\\ud800"', b"6,1,1,-;\\xZZ"])
def test_arbitrary_bytes_never_crash(lines: list[bytes]) -> None:
    for report in reports(lines):
        judge(report)


_FRAGMENTS = [line.encode() for kernel in COLUMNS for line in messages(Scene(kernel, (task(7, 9, -998),), 0))]
_FRAGMENTS += [line for path in sorted(DATA.glob("*.log")) for line in path.read_bytes().splitlines()]


def test_a_path_after_a_torn_line_is_not_taken_for_its_end() -> None:
    lines = [b"app invoked oom-killer: gfp_mask=0xcc0,", b"order=0, oom_score_adj=0", b"see a/b", b"a/b"]
    (report,) = reports(lines)
    assert (report.oom_memcg, report.order) == (None, 0)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(_FRAGMENTS), max_size=30), st.data())
def test_lines_cut_mixed_and_put_together_at_random_never_crash(lines: list[bytes], data: st.DataObject) -> None:
    cut = [line[: data.draw(st.integers(0, len(line)))] if data.draw(st.booleans()) else line for line in lines]
    for report in reports(cut):
        judgement = judge(report)
        assert judgement.verdict in ("right", "wrong", "unknown")


@pytest.mark.parametrize(
    "line",
    [
        b"oom-kill:constraint=" + b",mems_allowed=0,oom_memcg=/a,task_memcg=/b,task=c,pid=" * 200,
        b"Killed process 1 (" * 400,
        b"Task in / killed as a result of limit of " * 200,
        b"[ 1] 1 1 1 " * 800,
        b"[ pid ]   uid  tgid" + b" rss" * 2000,
        b"Node 0 DMA free:1kB" * 400,
        b"Comm: " * 1300 + b"Tainted: ",
        b"PID: 1 Comm: x Tainted: " * 300,
        b"9" * 8000 + b" pages RAM",
    ],
)
def test_a_hostile_line_neither_hangs_the_reader_nor_hides_the_kill_after_it(line: bytes) -> None:
    head = b"x invoked oom-killer: order=0\n[ pid ]   uid  tgid total_vm rss oom_score_adj name".split(b"\n")
    kill = b"Memory cgroup out of memory: Killed process 77 (x) total-vm:36kB, anon-rss:36kB, file-rss:0kB"
    found = list(reports([*head, *[line] * 20, b"[ 1.000000] Call Trace:", kill]))
    assert [judge(report).report.kills[0].pid for report in found if report.kills] == [77]


def test_a_table_beyond_the_bound_says_so() -> None:
    def lines() -> Iterator[bytes]:
        yield b"[ pid ]   uid  tgid total_vm      rss oom_score_adj name"
        for pid in range(1, MAX_ROWS + 100):
            yield b"[%5d]     0 %5d        9        9             0 a" % (pid, pid)
        yield b"Out of memory: Killed process 5 (a) total-vm:36kB, anon-rss:36kB, file-rss:0kB"

    (report,) = reports(lines())
    assert len(report.tasks) == MAX_ROWS
    assert any("more than" in gap for gap in report.gaps)


def test_a_journal_of_100_mb_is_read_in_a_stream_of_flat_memory() -> None:
    filler = [
        b"May 17 19:54:29 host app[%d]: GET /index.html 200 %s oomph Task memory\n"
        % (at, os.urandom(40).hex().encode())
        for at in range(50)
    ]
    incident = log(messages(Scene("5.4", (task(1000, 900, -998), task(1001, 50, -998)), 1)), "journalctl short")
    size = 0

    def journal() -> Iterator[bytes]:
        nonlocal size
        while size < 100_000_000:
            for _ in range(1000):
                yield from filler
                size += sum(map(len, filler))
            yield from incident

    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    found = sum(1 for _ in reports(journal()))
    assert found == size // (1000 * sum(map(len, filler)))
    assert size >= 100_000_000
    assert _resident("VmHWM") - before < 8 << 20


def _resident(field: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
