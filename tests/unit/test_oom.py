"""Whom the OOM killer takes.

Figures of real kernels: the message of commit 9066e5cfb73c, and kills seen on 3.10, 5.4.119 and 6.1.192.
"""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nodemem.kernel import oom, oomexposure
from nodemem.kernel.capture import ReplayHost
from nodemem.kernel.oom import Domain, Generation, Knobs, Outcome, Task
from nodemem.kernel.procfs import Process
from unit import kernel_badness as c

DATA = Path(__file__).parent.parent / "data" / "oom"
FIRST = oom.rules_for("4.19.100", Generation.CLAMPED_FIRST)
LAST = oom.rules_for("5.4.119", Generation.CLAMPED_LAST)
ACCURATE = oom.rules_for("6.1.192", Generation.ACCURATE)
GIB = 1 << 18  # pages
MIB = 1 << 8


def table(name: str) -> list[list[Task]]:
    """The task tables of a kernel log with the columns of 4.15 to 6.7, one list for each report."""
    reports: list[list[Task]] = []
    row = re.compile(r"\[ *(\d+)\] +(\d+) +(\d+) +\d+ +(\d+) +(\d+) +(\d+) +(-?\d+) (.+)")
    for line in (DATA / name).read_text().splitlines():
        if "oom_score_adj name" in line:
            reports.append([])
        elif match := row.search(line):
            pid, uid, tgid, rss, tables, swap, adj = map(int, match.groups()[:7])
            reports[-1].append(
                Task(pid, match[8], rss, swap, tables // 4096, adj, uid=uid, tgid=tgid, cap_sys_admin=None)
            )
    return reports


GOLDEN = """
 5740        9 -4185603
58804      791 -4184821
58908      713 -4184899
58910     5616 -4179996
59620     1441 -4184171
59622     6725 -4178887
59624     5295 -4180317
59625     9488 -4176124
59627    64428 -4121184
59631    15106 -4170506
61396     3275 -4182337
61641    29320 -4156292
 9236      480 -4185132
42898      879 -4184733
42900      886 -4184726
42925    19115 -4166497
57146      866 -4184746
57195    23078 -4162534
58376    14473 -4171139
58395     4509 -4181103
58406  3976380  -209232
"""
GOLDEN_ROWS = [tuple(map(int, line.split())) for line in GOLDEN.split("\n") if line]
GOLDEN_PAGES = 4194304


@pytest.fixture(scope="module")
def golden() -> list[Task]:
    [tasks] = table("oom-commit-9066e5cfb73c.log")
    assert [task.pid for task in tasks] == [pid for pid, _, _ in GOLDEN_ROWS]
    return tasks


# --- the commit's table


def test_every_score_of_the_commits_table(golden: list[Task]) -> None:
    for task, (_, base, accurate) in zip(golden, GOLDEN_ROWS, strict=True):
        assert oom.base_pages(task, ACCURATE) == base
        assert oom.badness(task, GOLDEN_PAGES, FIRST) == 1
        assert oom.badness(task, GOLDEN_PAGES, LAST) == 1
        assert oom.badness(task, GOLDEN_PAGES, ACCURATE) == accurate


@pytest.mark.parametrize(
    ("rules", "pid", "right", "rule"),
    [
        (FIRST, 5740, False, "first of equal scores"),
        (LAST, 58406, True, "last of equal scores"),
        (ACCURATE, 58406, True, "highest score"),
        (replace(ACCURATE, tie="first"), 58406, True, "highest score"),
    ],
)
def test_whom_each_generation_takes_from_the_commits_table(
    golden: list[Task], rules: oom.Rules, pid: int, right: bool, rule: str
) -> None:
    prediction = oom.predict(golden, GOLDEN_PAGES, rules)
    assert (prediction.predicted, prediction.victims, prediction.right) == (pid, (pid,), right)
    assert prediction.rule == rule
    assert prediction.largest == 58406
    assert prediction.certain


def test_the_whole_table_is_named_where_the_order_of_the_scan_is_not_known(golden: list[Task]) -> None:
    prediction = oom.predict(golden, GOLDEN_PAGES, FIRST, order="unknown")
    assert prediction.victims == tuple(task.pid for task in golden)
    assert prediction.predicted is None
    assert prediction.right is None
    assert prediction.dies == ()
    assert oom.predict(golden, GOLDEN_PAGES, FIRST, order="likely").predicted == 5740
    assert oom.predict(golden, GOLDEN_PAGES, ACCURATE, order="unknown").victims == (58406,)


def test_the_margin_is_the_lead_over_the_second_score(golden: list[Task]) -> None:
    assert oom.predict(golden, GOLDEN_PAGES, ACCURATE).margin_pages == -209232 - -4121184
    assert oom.predict(golden, GOLDEN_PAGES, FIRST).margin_pages == 0
    assert oom.predict(golden[:1], GOLDEN_PAGES, FIRST).margin_pages is None


def test_the_ebpf_probes_score() -> None:
    task = Task(1, "x", 261735, page_table_pages=2195456 // 4096, oom_score_adj=1000)
    assert oom.badness(task, 262144, ACCURATE) == 524271


# --- real kills


def test_the_cascade_of_a_real_5_4_119() -> None:
    reports = table("oom-5.4.119-cascade.log")
    killed = [45, 43, 41]
    assert [len(tasks) for tasks in reports] == [4, 3, 2]
    for tasks, victim in zip(reports, killed, strict=True):
        clamped = oom.predict(tasks, 51200, LAST)
        assert (clamped.predicted, clamped.right, clamped.largest) == (victim, False, 39)
        accurate = oom.predict(tasks, 51200, ACCURATE)
        assert (accurate.predicted, accurate.right) == (39, True)
    assert [kill.predicted for kill in oom.kill_order(reports[0], 51200, LAST, n=3)] == killed


SIZES = {160: (39484, 88), 40: (10444, 30), 5: (1402, 12), 1: (412, 9)}


@pytest.mark.parametrize(
    ("rules", "adj", "started", "killed"),
    [
        (LAST, -998, [160, 40, 5, 1], [1, 5, 40]),
        (LAST, -998, [1, 160, 40, 5], [5, 40]),
        (LAST, -998, [1, 5, 40, 160], [160]),
        (LAST, -250, [160, 40, 5, 1], [160]),
        (LAST, -100, [160, 40, 5, 1], [160]),
        (ACCURATE, -998, [1, 5, 40, 160], [160]),
        (ACCURATE, -100, [1, 5, 40, 160], [160]),
        (ACCURATE, 0, [1, 5, 40, 160], [160]),
    ],
)
def test_kills_seen_in_a_200_mib_cgroup(rules: oom.Rules, adj: int, started: list[int], killed: list[int]) -> None:
    tasks = [
        Task(size, "alloc", SIZES[size][0], page_table_pages=SIZES[size][1], oom_score_adj=adj) for size in started
    ]
    order = oom.kill_order(tasks, 51200, rules, n=len(killed))
    assert [kill.predicted for kill in order] == killed


def test_four_equal_tasks_on_3_10_die_newest_first() -> None:
    """Seen on 3.10.0-1160: the last row of the printed table, which is the newest."""
    rules = oom.rules_for("3.10.0-1160.el7.x86_64", Generation.CLAMPED_FIRST)
    tasks = [Task(pid, "stress", 5000, cgroup="/a", start_time_ticks=pid, oom_score_adj=-998) for pid in (11, 12, 13)]
    ordered, order = oom.in_scan_order(tasks, rules, paths=["/a"])
    prediction = oom.predict(ordered, 51200, rules, order=order)
    assert prediction.predicted == 13
    assert set(prediction.victims) == {11, 12, 13}


# --- printed scores


def test_root_bonus_in_printed_scores() -> None:
    """1955 printed for a root task means 955 of 1000 in pages at adj 1000; with 3 % off the usage it reads 1926."""
    total = 1_000_000
    root = Task(1, "x", 955_400, oom_score_adj=1000, cap_sys_admin=True)
    usage = replace(FIRST, root_bonus="usage")
    adjust = replace(FIRST, root_bonus="adjust")

    def score(task: Task, rules: oom.Rules) -> int | None:
        return oom.oom_score(task, total, rules)

    assert score(root, FIRST) == 1955
    assert score(root, usage) == 1926
    assert score(root, adjust) == 1925
    assert score(replace(root, cap_sys_admin=False), usage) == 1955
    root = replace(root, oom_score_adj=0, rss_pages=987_500)
    assert (score(root, FIRST), score(root, usage)) == (987, 957)


def test_totalpages_behind_the_printed_memsw_scores() -> None:
    """v1 with memory.memsw of twice the limit: the score in the log is of limit and swap together."""
    for memsw_kib, limit_kib, printed in ((40960, 20480, 1046), (614400, 307200, 1003)):
        total = oom.memcg_totalpages(
            limit_kib << 10, page_size=4096, version="v1", total_swap_bytes=4 << 30, memsw_limit_bytes=memsw_kib << 10
        )
        assert total == memsw_kib // 4
        points = -(-printed * total // 1000)
        assert oom.score_of_points(points, total, clamp=True) == printed
        assert oom.score_of_points(points - 1, total, clamp=True) == printed - 1


@pytest.mark.parametrize(
    ("adj", "clamped", "accurate"), [(0, 0, 666), (1000, 1000, 1333), (-999, 0, 1), (-998, 0, 2), (-1000, 0, 0)]
)
def test_oom_score_of_an_idle_process(adj: int, clamped: int, accurate: int) -> None:
    task = Task(10, "idle", 100, page_table_pages=10, oom_score_adj=adj)
    total = 6_000_000
    assert oom.oom_score(task, total, LAST) == clamped
    assert oom.oom_score(task, total, ACCURATE) == accurate


def test_a_score_of_something_unkillable_reads_zero() -> None:
    init = Task(1, "init", 1000, init=True)
    kthread = Task(2, "kthreadd", 0, kernel_thread=True)
    for task in (init, kthread, replace(init, init=False, has_mm=False)):
        assert oom.oom_score(task, GIB, ACCURATE) == 0
        assert oom.oom_score(task, GIB, LAST) == 0
    assert oom.oom_score(Task(3, "hidden", 100, oom_score_adj=None), GIB, ACCURATE) is None


# --- against the transcription

ctasks = st.builds(
    c.CTask,
    pid=st.just(1),
    rss=st.integers(0, 1 << 34),
    swapents=st.integers(0, 1 << 30),
    nr_ptes=st.integers(0, 1 << 26),
    nr_pmds=st.integers(0, 1 << 18),
    pgtables_bytes=st.integers(0, 1 << 38),
    oom_score_adj=st.one_of(st.integers(-1000, 1000), st.sampled_from([-1000, -999, -998, -997, 0, 1000])),
    cap_sys_admin=st.booleans(),
    unkillable=st.booleans(),
    has_mm=st.sampled_from([True, True, True, False]),
)
totals = st.one_of(st.integers(1, 5000), st.integers(1, 1 << 34))
KERNELS = {
    "3.10.1": (c.badness_3_10, "nr_ptes"),
    "3.16.0": (c.badness_3_16, "nr_ptes"),
    "4.9.337": (c.badness_4_9, "nr_ptes"),
    "4.16.18": (c.badness_4_16, "pgtables"),
    "4.17.0": (c.badness_5_4, "pgtables"),
    "5.4.143": (c.badness_5_4, "pgtables"),
    "5.9.0": (c.badness_5_9, "pgtables"),
    "6.18.1": (c.badness_5_9, "pgtables"),
}


def as_task(ctask: c.CTask, term: str) -> Task:
    return Task(
        pid=ctask.pid,
        name="c",
        rss_pages=ctask.rss,
        swap_pages=ctask.swapents,
        page_table_pages=ctask.nr_ptes if term == "nr_ptes" else ctask.pgtables_bytes // 4096,
        pmd_pages=ctask.nr_pmds,
        oom_score_adj=ctask.oom_score_adj,
        cap_sys_admin=ctask.cap_sys_admin,
        kernel_thread=ctask.unkillable,
        has_mm=ctask.has_mm,
    )


def rules_of(release: str) -> oom.Rules:
    version = oom.parse_release(release)
    assert version is not None
    if version >= (5, 9, 0):
        return oom.rules_for(release, Generation.ACCURATE)
    clamped = Generation.CLAMPED_LAST if version >= (5, 3, 0) else Generation.CLAMPED_FIRST
    return oom.rules_for(release, clamped)


@given(st.sampled_from(sorted(KERNELS)), ctasks, totals)
def test_badness_and_oom_score_equal_the_kernels_c(release: str, ctask: c.CTask, totalpages: int) -> None:
    literal, term = KERNELS[release]
    rules = rules_of(release)
    task = as_task(ctask, term)
    expected = literal(ctask, totalpages)
    nobody = 0 if rules.clamp else c.LONG_MIN
    points = oom.badness(task, totalpages, rules)
    assert (nobody if points is None else points) == expected
    printed = c.proc_oom_score_5_4 if rules.clamp else c.proc_oom_score_5_9
    assert oom.oom_score(task, totalpages, rules) == printed(expected, totalpages)


@given(
    st.sampled_from(sorted(KERNELS)),
    st.lists(ctasks, max_size=8),
    totals,
)
def test_the_choice_equals_the_kernels_loop(release: str, ctasks: list[c.CTask], totalpages: int) -> None:
    literal, term = KERNELS[release]
    rules = rules_of(release)
    ctasks = [replace(ctask, pid=10 + i) for i, ctask in enumerate(ctasks)]
    version = oom.parse_release(release) or (0, 0, 0)
    select = (
        c.select_before_2014
        if version < (3, 14, 0)
        else c.select_4_9
        if version < (5, 3, 0)
        else c.select_5_4
        if version < (5, 9, 0)
        else c.select_5_9
    )
    expected = select([(ctask.pid, literal(ctask, totalpages)) for ctask in ctasks])
    tasks = [as_task(ctask, term) for ctask in ctasks]
    prediction = oom.predict(tasks, totalpages, rules)
    assert prediction.predicted == expected
    assert prediction.victims == (() if expected is None else (expected,))
    assert expected in (*oom.predict(tasks, totalpages, rules, order="unknown").victims, None)


@given(
    st.integers(1, 1 << 30),
    st.one_of(st.none(), st.integers(0, 1 << 30)),
    st.integers(0, 1 << 30),
    st.sampled_from([0, 1, 60]),
    st.sampled_from(["v1", "v2"]),
)
def test_totalpages_of_a_cgroup_equal_both_of_the_kernels_formulas(
    limit: int, extra: int | None, total_swap: int, swappiness: int, version: str
) -> None:
    """``extra`` is the room above the limit: memsw on v1 (never below the limit), swap.max on v2; None is no bound."""
    v1 = version == "v1"
    memsw = limit + extra if v1 and extra is not None else c.PAGE_COUNTER_MAX
    swap_max = extra if not v1 and extra is not None else c.PAGE_COUNTER_MAX
    total = oom.memcg_totalpages(
        limit * 4096,
        page_size=4096,
        version="v1" if v1 else "v2",
        total_swap_bytes=total_swap * 4096,
        swappiness=swappiness,
        memsw_limit_bytes=memsw * 4096 if v1 and extra is not None else None,
        swap_limit_bytes=swap_max * 4096 if not v1 and extra is not None else None,
    )
    assert total == c.mem_cgroup_get_max_5_9(limit, memsw, swap_max, total_swap, swappiness)
    assert total == c.mem_cgroup_get_max_5_10(limit, memsw, swap_max, total_swap, swappiness, v1=v1)


def test_a_cgroup_without_a_limit_has_no_totalpages() -> None:
    assert oom.memcg_totalpages(None, page_size=4096, version="v2", total_swap_bytes=1 << 30) is None
    assert oom.memcg_totalpages(0, page_size=4096, version="v2", total_swap_bytes=0) == 1
    domain = Domain((Task(1, "a", 5),), None, oom.MEMCG)
    assert oom.predict_domain(domain, LAST) is None
    assert oomexposure.exposure_reasons(domain, LAST) == ()


def test_totalpages_of_the_node_are_memtotal_and_swaptotal() -> None:
    assert oom.global_totalpages(24683656 << 10, 2097148 << 10, 4096) == 6170914 + 524287
    assert oom.global_totalpages(24683648 << 10, 0, 65536) == 385682


# --- rules


@pytest.mark.parametrize(
    ("release", "bonus", "term", "scan", "threads", "child"),
    [
        ("3.10.108", "adjust", "nr_ptes", "newest_first", True, True),
        ("3.16.85", "usage", "nr_ptes", "newest_first", True, True),
        ("4.3.6", "usage", "nr_ptes+nr_pmds", "newest_first", True, True),
        ("4.14.336", "usage", "nr_ptes+nr_pmds", "oldest_first", True, True),
        ("4.15.18", "usage", "pgtables_bytes", "oldest_first", True, True),
        ("4.19.0-25-amd64", "none", "pgtables_bytes", "oldest_first", True, True),
        ("5.2.21", "none", "pgtables_bytes", "oldest_first", True, False),
        ("5.4.119", "none", "pgtables_bytes", "oldest_first", False, False),
        ("7.1.0-rc3", "none", "pgtables_bytes", "oldest_first", False, False),
    ],
)
def test_older_differences_by_release(
    release: str, bonus: str, term: str, scan: str, threads: bool, child: bool
) -> None:
    rules = oom.rules_for(release, Generation.CLAMPED_FIRST)
    assert (rules.root_bonus, rules.page_table_term, rules.scan) == (bonus, term, scan)
    assert (rules.scans_threads, rules.kills_child) == (threads, child)
    assert rules.tie == "first"
    assert all(release in sentence for sentence in rules.decided_by if sentence != oom.VENDOR_CAVEAT)
    assert (oom.VENDOR_CAVEAT in rules.decided_by) == (release < "5.3" and release[0] < "7")


def test_an_accurate_kernel_with_an_old_release_keeps_the_first_on_a_tie() -> None:
    rules = oom.rules_for("4.18.0-513.el8.x86_64", Generation.ACCURATE)
    assert (rules.tie, rules.clamp) == ("first", False)
    assert "before 5.3" in rules.decided_by[0]
    assert oom.rules_for("5.14.0", Generation.ACCURATE).tie == "last"


@pytest.mark.parametrize("release", [None, "", "linux"])
def test_without_a_release_the_rules_are_todays_and_say_so(release: str | None) -> None:
    rules = oom.rules_for(release, Generation.CLAMPED_FIRST)
    today = oom.rules_for("6.18.0", Generation.CLAMPED_FIRST)
    assert replace(rules, decided_by=()) == replace(today, decided_by=())
    assert "not known" in rules.decided_by[-1]


def test_an_unknown_generation_has_no_rules() -> None:
    with pytest.raises(ValueError, match="unknown generation"):
        oom.rules_for("6.1.0", Generation.UNKNOWN)


@pytest.mark.parametrize(
    ("text", "release"),
    [("5.4.0-136-generic", (5, 4, 0)), ("6.18", (6, 18, 0)), ("5.10.0+", (5, 10, 0)), ("x5.4", None), (None, None)],
)
def test_releases_as_uname_prints_them(text: str | None, release: oom.Release | None) -> None:
    assert oom.parse_release(text) == release


def test_the_bound_on_the_kernels_own_rss_error() -> None:
    assert oom.rss_error_pages(2, release="6.18.0") == 4 * 32 * 2
    assert oom.rss_error_pages(96, release="6.2.0") == 4 * 192 * 96
    assert oom.rss_error_pages(96, threads=10, release="5.4.119") == 4 * 64 * 10


# --- who can't be killed, and what else an OOM comes to


def test_only_unkillable_processes_mean_nobody_dies() -> None:
    tasks = [
        Task(1, "init", 9, init=True),
        Task(2, "kt", 9, kernel_thread=True),
        Task(3, "db", 900, oom_score_adj=-1000),
    ]
    prediction = oom.predict(tasks, 51200, ACCURATE)
    assert (prediction.outcome, prediction.predicted, prediction.victims) == (Outcome.NOBODY, None, ())
    assert [each.why for each in prediction.ranking] == ["the global init", "a kernel thread", "oom_score_adj -1000"]
    assert prediction.largest == 3
    assert prediction.right is None
    assert oom.predict(tasks, 51200, ACCURATE, Knobs()).outcome is Outcome.PANICS


def test_a_containers_own_init_can_be_killed() -> None:
    assert oom.predict([Task(1, "sh", 10)], 51200, ACCURATE).predicted == 1


def test_a_task_whose_adj_is_not_known_makes_the_prediction_uncertain() -> None:
    prediction = oom.predict([Task(1, "a", 10), Task(2, "b", 99, oom_score_adj=None)], 51200, ACCURATE)
    assert prediction.predicted == 1
    assert prediction.unknown == (2,)
    assert not prediction.certain
    assert prediction.right is None
    assert prediction.of(2).points is None


TWO = [Task(1, "small", 10), Task(2, "big", 1000)]


@pytest.mark.parametrize(
    ("knobs", "outcome", "predicted"),
    [
        (Knobs("memcg", oom_kill_disable=True), Outcome.HANGS, None),
        (Knobs("memcg", oom_kill_disable=True, panic_on_oom=2), Outcome.HANGS, None),
        (Knobs("memcg", panic_on_oom=1), Outcome.KILLS, 2),
        (Knobs("memcg", panic_on_oom=2), Outcome.PANICS, None),
        (Knobs("global", panic_on_oom=1), Outcome.PANICS, None),
        (Knobs("cpuset", panic_on_oom=1), Outcome.KILLS, 2),
        (Knobs("mempolicy", panic_on_oom=2), Outcome.PANICS, None),
        (Knobs("global", oom_kill_allocating_task=True), Outcome.KILLS_ALLOCATING, None),
        (Knobs("global", oom_kill_allocating_task=True, allocating_pid=1), Outcome.KILLS_ALLOCATING, 1),
        (Knobs("global", oom_kill_allocating_task=True, allocating_pid=99), Outcome.KILLS, 2),
        (Knobs("memcg", oom_kill_allocating_task=True, allocating_pid=1), Outcome.KILLS, 2),
    ],
)
def test_settings_that_change_the_outcome(knobs: Knobs, outcome: Outcome, predicted: int | None) -> None:
    prediction = oom.predict(TWO, 51200, ACCURATE, knobs)
    assert (prediction.outcome, prediction.predicted) == (outcome, predicted)
    assert prediction.victims == (() if predicted is None else (predicted,))
    assert prediction.right == (None if predicted is None else predicted == 2)


def test_processes_that_share_memory_die_together() -> None:
    tasks = [Task(1, "a", 50, mm_id=7), Task(2, "b", 50, mm_id=7), Task(3, "c", 40)]
    prediction = oom.predict(tasks, 51200, LAST, order="unknown")
    assert prediction.predicted == 2
    assert set(prediction.dies) == {1, 2}
    assert prediction.right
    assert [kill.predicted for kill in oom.kill_order(tasks, 51200, LAST)] == [2, 3]


def test_oom_group_takes_the_topmost_marked_cgroup_of_the_victim_but_not_the_exempt() -> None:
    tasks = [
        Task(1, "pause", 1, cgroup="/pod/pause", oom_score_adj=-998),
        Task(2, "sh", 10, cgroup="/pod/app"),
        Task(3, "db", 1000, cgroup="/pod/app/inner"),
        Task(4, "exempt", 10, cgroup="/pod/app", oom_score_adj=-1000),
        Task(5, "app2", 10, cgroup="/pod/app2"),
    ]
    groups = frozenset({"/pod/app", "/pod/app/inner", "/"})
    knobs = Knobs("memcg", domain_path="/pod", oom_group_paths=groups)
    prediction = oom.predict(tasks, 51200, ACCURATE, knobs)
    assert (prediction.predicted, prediction.group) == (3, "/pod/app")
    assert prediction.dies == (3, 2)
    lone = oom.predict(tasks, 51200, ACCURATE, replace(knobs, domain_path="/pod/app/inner"))
    assert (lone.group, lone.dies) == ("/pod/app/inner", (3,))


def test_with_oom_group_the_wrong_pick_is_right_for_the_largest_dies_too() -> None:
    tasks = [
        Task(1, "big", 9000, oom_score_adj=-998, cgroup="/c"),
        Task(2, "small", 1, oom_score_adj=-998, cgroup="/c"),
    ]
    grouped = Knobs("memcg", domain_path="/c", oom_group_paths=frozenset({"/c"}))
    assert oom.predict(tasks, 51200, LAST, grouped).right
    assert oom.predict(tasks, 51200, LAST).right is False
    assert oomexposure.exposure_reasons(Domain(tuple(tasks), 51200, grouped, "exact"), LAST) == ()


def test_before_5_2_the_largest_child_dies_for_its_parent() -> None:
    tasks = [
        Task(10, "parent", 1000),
        Task(11, "child", 100, ppid=10),
        Task(12, "bigger", 200, ppid=10),
        Task(13, "equal", 200, ppid=10),
        Task(14, "exempt", 900, ppid=10, oom_score_adj=-1000),
        Task(15, "stranger", 300, ppid=1),
    ]
    old = oom.predict(tasks, 51200, FIRST)
    assert (old.predicted, old.rule, old.right) == (12, "child of the chosen", False)
    assert oom.predict(tasks, 51200, LAST).predicted == 10


# --- what a death frees


def test_tmpfs_and_file_pages_are_not_counted_as_freed() -> None:
    holder = Task(1, "tmpfs", 5000, anon_pages=100, file_pages=1900, shmem_pages=3000, page_table_pages=10)
    anon = Task(2, "anon", 2000, anon_pages=2000, file_pages=0, shmem_pages=0, swap_pages=5)
    assert holder.frees_pages == 110
    assert anon.frees_pages == 2005
    assert not anon.frees_is_upper_bound
    prediction = oom.predict([holder, anon], 51200, ACCURATE)
    assert (prediction.predicted, prediction.largest, prediction.right) == (1, 2, False)


def test_without_the_split_all_of_the_rss_counts_as_an_upper_bound() -> None:
    task = Task(1, "old kernel", 5000, swap_pages=1, page_table_pages=2, pmd_pages=3)
    assert task.frees_pages == 5006
    assert task.frees_is_upper_bound


def process(pid: int = 7, **changes: object) -> Process:
    values: dict[str, object] = {
        "pid": pid,
        "ppid": 1,
        "start_time_ticks": 100,
        "comm": "p",
        "state": "S",
        "uid": 5,
        "kernel_thread": False,
        "has_mm": True,
        "threads": 3,
        "rss_anon_bytes": 8192,
        "rss_file_bytes": 4096,
        "rss_shmem_bytes": 0,
        "rss_bytes": 12288,
        "swap_bytes": 4096,
        "page_tables_bytes": 45056,
        "hugetlb_bytes": 0,
        "virtual_bytes": 1 << 20,
        "oom_score_adj": -5,
        "cgroup": "/c",
        "mnt_ns": 1,
    }
    return Process(**(values | changes))  # type: ignore[arg-type]


def test_a_task_from_the_process_table() -> None:
    task = Task.from_process(process(), 4096)
    assert (task.rss_pages, task.anon_pages, task.swap_pages, task.page_table_pages) == (3, 2, 1, 11)
    assert (task.oom_score_adj, task.threads, task.cgroup, task.uid) == (-5, 3, "/c", 5)
    old = Task.from_process(process(rss_anon_bytes=None, rss_file_bytes=None, rss_shmem_bytes=None), 4096)
    assert old.anon_pages is None
    assert old.frees_pages == 3 + 1 + 11


def test_pid_1_is_the_global_init_only_in_the_machines_pid_namespace() -> None:
    kthreadd = process(2, kernel_thread=True, has_mm=False, oom_score_adj=None)
    init, kernel = oom.tasks_from([process(1), kthreadd], 4096)
    assert oom.why_unkillable(init) == "the global init"
    assert oom.why_unkillable(kernel) == "a kernel thread"
    [containers, other] = oom.tasks_from([process(1), process(9)], 4096)
    assert oom.why_unkillable(containers) is None
    assert oom.why_unkillable(other) is None


# --- scan order


def tasks_of(*rows: tuple[int, str, int]) -> list[Task]:
    return [Task(pid, "t", 1, cgroup=path, start_time_ticks=ticks) for pid, path, ticks in rows]


def pids(tasks: tuple[Task, ...]) -> list[int]:
    return [task.pid for task in tasks]


def test_the_scan_goes_through_cgroups_in_pre_order_then_by_joining() -> None:
    tasks = tasks_of((5, "/p/b", 1), (4, "/p", 9), (3, "/p/a", 7), (2, "/p/a", 8), (1, "/other", 0))
    found, order = oom.in_scan_order(tasks, LAST, paths=["/p", "/p/a", "/p/b"])
    assert (pids(found), order) == ([4, 3, 2, 5], "likely")
    found, order = oom.in_scan_order(
        tasks, LAST, paths=["/p", "/p/a", "/p/b"], joined={"/p": [4], "/p/a": [2, 3], "/p/b": [5]}
    )
    assert (pids(found), order) == ([4, 2, 3, 5], "exact")


def test_a_task_that_is_missing_in_the_list_of_joining_makes_the_order_likely() -> None:
    tasks = tasks_of((3, "/p", 7), (2, "/p", 8))
    assert oom.in_scan_order(tasks, LAST, paths=["/p"], joined={"/p": [2]})[1] == "likely"
    assert oom.in_scan_order(tasks, LAST, paths=["/p"], joined={})[1] == "likely"


def test_one_task_needs_no_order() -> None:
    assert oom.in_scan_order(tasks_of((3, "/p", 7)), LAST, paths=["/p"])[1] == "exact"


def test_the_node_is_scanned_in_the_order_of_forks_not_of_pids() -> None:
    tasks = tasks_of((300, "/", 5), (2, "/", 900), (301, "/a", 5))
    assert oom.in_scan_order(tasks, LAST) == ((tasks[0], tasks[2], tasks[1]), "likely")


def test_3_10_scans_the_newest_fork_of_a_cgroup_first() -> None:
    rules = oom.rules_for("3.10.0", Generation.CLAMPED_FIRST)
    tasks = tasks_of((1, "/p", 1), (2, "/p", 2), (3, "/p/a", 3))
    found, order = oom.in_scan_order(tasks, rules, paths=["/p", "/p/a"], joined={"/p": [1, 2], "/p/a": [3]})
    assert (pids(found), order) == ([2, 1, 3], "likely")


# --- the probe

TOTAL = 4 * GIB


@pytest.mark.parametrize(
    ("readings", "release", "generation"),
    [
        ([(0, 666)], "5.4.144", Generation.ACCURATE),
        ([(0, 666), (0, 0)], "4.18.0-513.el8", Generation.ACCURATE),
        ([(0, 667), (900, 1267), (-300, 466)], None, Generation.ACCURATE),
        ([(0, 0)], "5.4.119", Generation.CLAMPED_LAST),
        ([(0, 0), (1000, 1000)], "4.19.0", Generation.CLAMPED_FIRST),
        ([(0, 2), (900, 901)], "5.8.0", Generation.CLAMPED_LAST),
        ([(0, 0)], None, Generation.CLAMPED_LAST),
        ([(0, 666), (1000, 1000)], "6.1.0", Generation.UNKNOWN),
        ([(0, 300)], "6.1.0", Generation.UNKNOWN),
        ([(-1000, 0)], "6.1.0", Generation.UNKNOWN),
        ([(-998, 1)], "6.1.0", Generation.UNKNOWN),
        ([], "6.1.0", Generation.UNKNOWN),
    ],
)
def test_the_generation_is_told_by_what_oom_score_reads(
    readings: list[tuple[int, int]], release: str | None, generation: Generation
) -> None:
    pairs = [(Task(10 + i, "p", 300, oom_score_adj=adj), score) for i, (adj, score) in enumerate(readings)]
    found = oom.generation_of(pairs, TOTAL, release)
    assert found.generation is generation
    assert found.evidence
    assert (found.rules is None) == (generation is Generation.UNKNOWN)
    clamped = generation in (Generation.CLAMPED_FIRST, Generation.CLAMPED_LAST)
    assert bool(found.decided_by) == clamped


def test_the_tie_of_a_clamped_kernel_is_said_to_come_from_the_release() -> None:
    found = oom.generation_of([(Task(9, "p", 300), 0)], TOTAL, "5.4.119")
    assert "5.4.119" in found.decided_by[0]
    assert "last scanned" in found.decided_by[0]


def test_processes_that_prove_nothing_are_not_asked() -> None:
    """The global init reads 0 whatever its adj; so do kernel threads; a large process's score is anyone's guess."""
    tasks = [
        Task(1, "init", 300, init=True),
        Task(2, "kthreadd", 0, kernel_thread=True),
        Task(3, "zombie", 0, has_mm=False),
        Task(4, "hidden", 300, oom_score_adj=None),
        Task(5, "huge", TOTAL // 2),
    ]
    files = {f"/proc/{task.pid}/oom_score": b"0\n" for task in tasks}
    assert oom.probe(ReplayHost(files), tasks, TOTAL).generation is Generation.UNKNOWN
    assert oom.generation_of([(task, 0) for task in tasks], TOTAL, "5.4.0").generation is Generation.UNKNOWN


@pytest.mark.parametrize(
    ("files", "generation"),
    [
        ({"/proc/sys/kernel/osrelease": b"5.4.0-80-generic\n", "/proc/8/oom_score": b"0\n"}, Generation.CLAMPED_LAST),
        ({"/proc/sys/kernel/osrelease": b"5.4.0-90-generic\n", "/proc/8/oom_score": b"666\n"}, Generation.ACCURATE),
        ({"/proc/8/oom_score": b"666\n"}, Generation.ACCURATE),
        ({"/proc/7/oom_score": b"", "/proc/8/oom_score": b"666\n"}, Generation.ACCURATE),
        ({}, Generation.UNKNOWN),
    ],
)
def test_the_probe_reads_what_it_can(files: dict[str, bytes], generation: Generation) -> None:
    tasks = [Task(7, "gone", 300), Task(8, "p", 400)]
    assert oom.probe(ReplayHost(files), tasks, TOTAL).generation is generation


# --- mitigation


def test_the_commits_container_needs_minus_63_on_a_node_of_256_gib(golden: list[Task]) -> None:
    found = oomexposure.mitigation(GOLDEN_PAGES, 256 * GIB, golden, FIRST)
    assert (found.oom_score_adj, found.discriminates_above_percent) == (-63, 7)
    assert found.keeps_node_floor
    assert found.largest_stands_out
    changed = [replace(task, oom_score_adj=-63) for task in golden]
    assert oom.predict(changed, GOLDEN_PAGES, FIRST).predicted == 58406
    assert all(oom.badness(task, 256 * GIB, FIRST) == 1 for task in changed)
    one_more = [replace(task, rss_pages=GOLDEN_PAGES, page_table_pages=0, oom_score_adj=-62) for task in golden]
    assert (oom.badness(one_more[0], 256 * GIB, FIRST) or 0) > 1


@pytest.mark.parametrize(
    ("rules", "limit", "node", "why"),
    [
        (ACCURATE, GIB, 64 * GIB, "doesn't clamp"),
        (LAST, 65 * GIB, 64 * GIB, "too large a part"),
        (LAST, 64 * GIB, 64 * GIB, "too large a part"),
        (LAST, 999, 64 * GIB, "no weight"),
    ],
)
def test_no_mitigation_says_why(rules: oom.Rules, limit: int, node: int, why: str) -> None:
    found = oomexposure.mitigation(limit, node, TWO, rules)
    assert found.oom_score_adj is None
    assert found.discriminates_above_percent is None
    assert not found.keeps_node_floor
    assert why in (found.why_none or "")


@given(
    node=st.integers(GIB, 1024 * GIB),
    part=st.integers(1, 1200),
    shares=st.lists(st.integers(0, 1000), min_size=1, max_size=6),
    rules=st.sampled_from([FIRST, LAST]),
)
@example(node=256 * GIB, part=63, shares=[1000, 1, 1], rules=LAST)
def test_the_mitigation_keeps_the_floor_on_the_node_and_frees_the_choice_in_the_container(
    node: int, part: int, shares: list[int], rules: oom.Rules
) -> None:
    limit = max(1, node * part // 1000)
    tasks = [Task(i, "t", limit * share // 1000, oom_score_adj=-997) for i, share in enumerate(shares)]
    found = oomexposure.mitigation(limit, node, tasks, rules)
    if found.oom_score_adj is None:
        assert found.why_none
        # Nothing is given up too early: whoever fills the limit stays at the floor with every value that keeps it.
        floor = [adj for adj in range(-999, 1) if limit + adj * (node // 1000) <= 1]
        assert limit < 1000 or not any(limit + adj * (limit // 1000) > 1 for adj in floor)
        return
    assert found.why_none is None
    changed = [replace(task, oom_score_adj=found.oom_score_adj) for task in tasks]
    assert all(oom.badness(task, node, rules) == 1 for task in changed)
    percent = found.discriminates_above_percent
    assert percent is not None
    largest = max(changed, key=lambda task: task.rss_pages)
    if largest.rss_pages * 100 >= percent * limit:
        assert found.largest_stands_out
        prediction = oom.predict(changed, limit, rules)
        assert prediction.right
        assert prediction.ranking[0].task.rss_pages == largest.rss_pages
        assert (prediction.ranking[0].points or 0) > 1
    # It is the value nearest to zero: one more, and a process as large as the limit would stand out on the node.
    over = Task(99, "t", limit, oom_score_adj=found.oom_score_adj + 1)
    assert found.oom_score_adj == 0 or (oom.badness(over, node, rules) or 0) > 1


def test_a_process_that_counts_more_than_the_limit_raises_the_bar() -> None:
    over = [Task(1, "maps much", 3 * GIB)]
    lower = oomexposure.mitigation(2 * GIB, 64 * GIB, [], LAST)
    higher = oomexposure.mitigation(2 * GIB, 64 * GIB, over, LAST)
    assert lower.oom_score_adj is not None
    assert higher.oom_score_adj is not None
    assert higher.oom_score_adj < lower.oom_score_adj
    assert lower.largest_stands_out is None
    assert oom.badness(replace(over[0], oom_score_adj=higher.oom_score_adj), 64 * GIB, LAST) == 1


# --- exposure


def domain(tasks: list[Task], order: oom.Order = "exact", **changes: object) -> Domain:
    return replace(Domain(tuple(tasks), 51200, Knobs("memcg", "/c"), order), **changes)  # type: ignore[arg-type]


def test_clamped_badness_names_the_numbers_behind_both(golden: list[Task]) -> None:
    [reason] = oomexposure.exposure_reasons(Domain(tuple(golden), GOLDEN_PAGES, oom.MEMCG, "exact"), FIRST)
    assert isinstance(reason, oomexposure.ClampedBadness)
    assert reason.predicted is not None
    assert (reason.predicted.pid, reason.largest.pid, reason.at_floor) == (5740, 58406, 21)
    assert (reason.predicted_points_unclamped, reason.largest_points_unclamped) == (-4185603, -209232)
    assert reason.kind == "ClampedBadness"


def test_an_accurate_kernel_and_a_lucky_order_are_not_exposed(golden: list[Task]) -> None:
    found = Domain(tuple(golden), GOLDEN_PAGES, oom.MEMCG, "exact")
    assert oomexposure.exposure_reasons(found, ACCURATE) == ()
    assert oomexposure.exposure_reasons(found, LAST) == ()


def test_a_tie_nobody_can_see_through_is_an_exposure(golden: list[Task]) -> None:
    [reason] = oomexposure.exposure_reasons(Domain(tuple(golden), GOLDEN_PAGES, oom.MEMCG, "unknown"), LAST)
    assert isinstance(reason, oomexposure.ClampedBadness)
    assert reason.predicted is None
    assert reason.predicted_points_unclamped is None


def test_one_killable_process_is_no_choice_and_no_exposure() -> None:
    assert oomexposure.exposure_reasons(domain([Task(1, "a", 9000, oom_score_adj=-998)]), LAST) == ()


def test_an_unkillable_hog_names_whom_the_killer_takes_instead() -> None:
    tasks = [Task(1, "a", 10), Task(2, "hog", 25600, oom_score_adj=-1000), Task(3, "b", 20)]
    [reason] = oomexposure.exposure_reasons(domain(tasks), ACCURATE)
    assert isinstance(reason, oomexposure.Unkillable)
    assert (reason.task.pid, reason.share, reason.others) == (2, 0.5, (3, 1))
    small = [replace(tasks[1], rss_pages=10), *tasks[:1]]
    assert oomexposure.exposure_reasons(domain(small), ACCURATE) == ()


@pytest.mark.parametrize("rules", [FIRST, LAST, ACCURATE])
def test_skewed_adj_hides_the_largest_on_every_kernel(rules: oom.Rules) -> None:
    tasks = [Task(1, "db", 30000, oom_score_adj=-900), Task(2, "exporter", 50), Task(3, "log", 40)]
    [reason] = oomexposure.exposure_reasons(domain(tasks), rules)
    assert isinstance(reason, oomexposure.SkewedAdj)
    assert (reason.predicted.pid, reason.largest.pid) == (2, 1)
    assert (reason.predicted_points, reason.largest_points) == (50, 30000 - 900 * 51)


def test_different_adj_that_hide_nothing_are_not_exposed() -> None:
    tasks = [Task(1, "pause", 1, oom_score_adj=-998), Task(2, "app", 9000, oom_score_adj=900)]
    assert oomexposure.exposure_reasons(domain(tasks), LAST) == ()


def test_a_limit_full_of_tmpfs_cannot_be_helped_by_kills() -> None:
    limit = 51200 * 4096
    held = domain(TWO, limit_bytes=limit, shmem_bytes=limit // 2)
    assert oomexposure.exposure_reasons(held, ACCURATE) == (oomexposure.TmpfsHeld(limit // 2, limit, True),)
    known = replace(held, tmpfs_bytes=limit // 10)
    assert oomexposure.exposure_reasons(known, ACCURATE) == ()
    known = replace(held, tmpfs_bytes=limit)
    assert oomexposure.exposure_reasons(known, ACCURATE) == (oomexposure.TmpfsHeld(limit, limit, False),)
    assert oomexposure.exposure_reasons(replace(held, shmem_bytes=None), ACCURATE) == ()


def test_an_oom_that_hangs_has_no_wrong_choice() -> None:
    hangs = domain(
        [Task(1, "a", 9000, oom_score_adj=-900), Task(2, "b", 1)], knobs=Knobs("memcg", oom_kill_disable=True)
    )
    assert oomexposure.exposure_reasons(hangs, LAST) == ()


@given(st.lists(ctasks, min_size=1, max_size=7), totals, st.sampled_from([FIRST, LAST, ACCURATE]))
def test_kill_order_takes_everyone_that_can_be_killed_once(
    ctasks: list[c.CTask], totalpages: int, rules: oom.Rules
) -> None:
    tasks = [replace(as_task(ctask, "pgtables"), pid=i) for i, ctask in enumerate(ctasks)]
    killed = [kill.predicted for kill in oom.kill_order(tasks, totalpages, rules)]
    assert sorted(pid for pid in killed if pid is not None) == [
        task.pid for task in tasks if oom.why_unkillable(task) is None
    ]
