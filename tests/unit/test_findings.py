"""What is found on constructed nodes: exposures, drift, services at risk, unkillable business processes.

``node_of_the_commit`` is the machine of commit 9066e5cfb73c as files of /proc and cgroups: what is found there goes
through the same readers as on a real one.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cgrouptrees import ID, UID, V1_MOUNTINFO, V2_MOUNTINFO, Figures, v1_files, v2_files
from nodemem.agent import exposures
from nodemem.cli import oom_exposed
from nodemem.kernel import oom, oomexposure
from nodemem.kernel.capture import ReplayHost
from nodemem.kernel.cgroups import MemoryCgroup
from nodemem.kernel.host import Host
from nodemem.kernel.oom import Generation, Outcome, Task
from nodemem.node import exposure, findings, oomdomains, services
from nodemem.node.adj import GUARANTEED_OLD, drift, expected_oom_score_adj
from nodemem.node.exposure import ContainerOutlook, Exposure, Severity
from nodemem.node.oomdomains import HeldTmpfs, Node, Place
from nodemem.node.owners import ContainerRef, Owner, PodRef, ServiceRef
from nodemem.node.snapshot import Collector, Thrift
from unit.test_oom import GOLDEN_PAGES, table

GIB = 1 << 30
MIB = 1 << 20
PAGE = 4096
PAUSE_ID = "0" * 63 + "a"
APP_ID = "1" * 63 + "b"
POD = f"/kubepods/pod{UID}"


# --- constructed places


def node(generation: Generation = Generation.ACCURATE, total: int = 64 * GIB, version: str = "v2") -> Node:
    release = {Generation.CLAMPED_FIRST: "4.19.0", Generation.CLAMPED_LAST: "5.4.119"}.get(generation, "6.1.0")
    return Node(PAGE, total // PAGE, 0, version, 60, 0, generation, release)  # type: ignore[arg-type]


def task(pid: int, name: str, size: int, adj: int | None = 0, **changes: Any) -> Task:
    return Task(pid, name, size // PAGE, oom_score_adj=adj, anon_pages=size // PAGE, start_time_ticks=pid, **changes)


def cgroup(path: str, limit: int | None, usage: int | None = None, **changes: Any) -> MemoryCgroup:
    used = limit // 2 if usage is None and limit else usage
    return replace(
        MemoryCgroup(path, True, used, used, 0, 0, 0, 0, limit_bytes=limit, swap_limit_bytes=0, swappiness=60),
        **changes,
    )


def place(tasks: Sequence[Task], limit: int | None = GIB, usage: int | None = None, **changes: Any) -> Place:
    """A container of a Burstable pod, all tasks in the one cgroup."""
    path = changes.pop("path", f"{POD}/{APP_ID}")
    in_cgroup = changes.pop("cgroup", {})
    fields: dict[str, Any] = {
        "scope": "container",
        "path": path,
        "container_id": APP_ID,
        "pod_uid": UID,
        "qos": "Burstable",
        "runtime": None,
        "sandbox": False,
        "cgroup": cgroup(path, limit, usage, **in_cgroup),
        "paths": (path,),
        "tasks": tuple(each if each.cgroup else replace(each, cgroup=path) for each in tasks),
    }
    return Place(**{**fields, **changes})


def pod_of(containers: Sequence[Place], limit: int | None, usage: int | None = None, **changes: Any) -> Place:
    return place(
        [task for each in containers for task in each.tasks],
        limit,
        usage,
        path=POD,
        scope="pod",
        container_id=None,
        paths=(POD, *(each.path for each in containers)),
        sandbox_pids=frozenset(task.pid for each in containers if each.sandbox for task in each.tasks),
        **changes,
    )


def pause(limit: int | None = None) -> Place:
    its = task(5, "pause", 40 * 1024, -998)
    return place(
        [its],
        limit,
        MIB,
        path=f"{POD}/{PAUSE_ID}",
        container_id=PAUSE_ID,
        sandbox=True,
        sandbox_pids=frozenset({5}),
    )


def assess(
    places: Sequence[Place], its_node: Node | None = None, **options: float
) -> tuple[list[ContainerOutlook], list[Exposure]]:
    return exposure.assess(places, its_node or node(), **options)


def only(place: Place, its_node: Node | None = None) -> tuple[ContainerOutlook, Exposure | None]:
    [outlook], exposures = assess([place], its_node)
    assert len(exposures) <= 1
    return outlook, exposures[0] if exposures else None


SKEWED = [task(10, "db", 600 * MIB, -900), task(11, "exporter", MIB), task(12, "sh", MIB // 2)]


# --- the four reasons


@pytest.mark.parametrize("generation", oom.KNOWN_GENERATIONS)
def test_skewed_adj_is_found_on_every_kernel_and_says_what_to_set(generation: Generation) -> None:
    outlook, found = only(place(SKEWED), node(generation))
    assert found is not None
    assert outlook.reasons == ("SkewedAdj",)
    assert outlook.predicted_victim is not None
    assert outlook.largest is not None
    assert (outlook.predicted_victim.pid, outlook.predicted_victim.comm) == (11, "exporter")
    assert (outlook.largest.pid, outlook.largest.frees_bytes) == (10, 600 * MIB)
    assert outlook.right is False
    assert found.severity is Severity.LOW
    assert found.mitigation.oom_score_adj is None
    assert found.mitigation.why_none is not None
    assert "same" in found.mitigation.why_none
    assert "exporter (pid 11)" in found.message
    assert "the same value, 0 (choom" in found.message


def test_an_unkillable_hog_is_named_with_those_who_die_in_its_place() -> None:
    outlook, found = only(place([task(10, "java", 700 * MIB, -1000), task(11, "sh", MIB), task(12, "cron", 2 * MIB)]))
    assert found is not None
    assert outlook.reasons == ("Unkillable",)
    assert outlook.largest is not None
    assert outlook.largest.pid == 10
    assert outlook.killable == 2
    assert "cron (pid 12), then sh (pid 11)" in found.message
    assert "choom -n ADJ -p 10" in found.message


def test_tmpfs_that_fills_the_limit_is_named_and_any_value_is_said_not_to_help() -> None:
    held = (HeldTmpfs("/var/lib/kubelet/pods/x/volumes/kubernetes.io~empty-dir/cache", 900 * MIB, False),)
    tasks = [task(10, "app", 50 * MIB), task(11, "sh", MIB)]
    outlook, found = only(
        place(tasks, usage=GIB, tmpfs=held, cgroup={"shmem_bytes": 900 * MIB, "file_bytes": 900 * MIB})
    )
    assert found is not None
    assert outlook.reasons == ("TmpfsHeld",)
    assert outlook.right is True
    assert outlook.committed_bytes == GIB
    assert found.severity is Severity.IMMINENT
    assert "empty-dir/cache (900.0 MiB)" in found.message
    assert "up to" not in found.message
    assert found.mitigation.why_none == "memory held by tmpfs is not freed by any kill"


def test_shmem_that_no_reachable_tmpfs_explains_dies_with_its_processes() -> None:
    """A database's shared memory: charged as Shmem, in no tmpfs."""
    tasks = [task(10, "postgres", 50 * MIB), task(11, "postgres", MIB)]
    in_cgroup = {"shmem_bytes": 900 * MIB, "file_bytes": 900 * MIB}
    small = (HeldTmpfs("/dev/shm", MIB, False),)
    assert only(place(tasks, tmpfs=small, cgroup=in_cgroup))[1] is None
    for unknown in (None, (HeldTmpfs("/cache", None, False),)):
        outlook, found = only(place(tasks, tmpfs=unknown, cgroup=in_cgroup))
        assert found is not None
        assert outlook.reasons == ("TmpfsHeld",)
        assert "up to 900.0 MiB" in found.message


def test_tmpfs_shared_with_others_is_an_upper_bound() -> None:
    held = (HeldTmpfs("/cache", 900 * MIB, True),)
    _, found = only(place([task(10, "app", MIB)], tmpfs=held, cgroup={"shmem_bytes": 900 * MIB}))
    assert found is not None
    assert isinstance(found.evidence[0], oomexposure.TmpfsHeld)
    assert found.evidence[0].upper_bound


CLAMPED = [task(10, "big", 600 * MIB, -997), task(11, "small", MIB, -997), task(12, "tiny", MIB // 2, -997)]


def test_clamped_badness_comes_with_a_value_that_changes_the_victim() -> None:
    where = place(CLAMPED, qos="Guaranteed")
    outlook, found = only(where, node(Generation.CLAMPED_LAST))
    assert found is not None
    assert outlook.reasons == ("ClampedBadness",)
    assert outlook.predicted_victim is not None
    assert outlook.predicted_victim.pid == 12
    assert found.severity is Severity.HIGH
    assert found.mitigation.oom_score_adj == -16  # 1 of 64 GiB is 15.6 thousandths
    assert found.mitigation.discriminates_above_percent == 2
    assert "choom -n -16" in found.message
    changed = replace(where, tasks=tuple(replace(each, oom_score_adj=-16) for each in where.tasks))
    after, none = only(changed, node(Generation.CLAMPED_LAST))
    assert none is None
    assert after.predicted_victim is not None
    assert after.predicted_victim.pid == 10


def test_a_limit_as_large_as_the_node_has_no_such_value_and_the_message_says_why() -> None:
    where = place(CLAMPED, limit=63 * GIB, usage=0, qos="Guaranteed")
    _, found = only(where, node(Generation.CLAMPED_LAST, total=63 * GIB))
    assert found is not None
    assert found.mitigation.oom_score_adj is None
    assert "too large a part of the node" in (found.mitigation.why_none or "")
    assert "too large a part of the node" in found.message


def test_the_same_container_is_not_exposed_on_an_accurate_kernel() -> None:
    outlook, found = only(place(CLAMPED, qos="Guaranteed"))
    assert (found, outlook.exposed, outlook.right) == (None, False, True)


def test_a_right_pick_that_hangs_on_the_order_of_start_is_said_to_be_luck() -> None:
    outlook, found = only(place(list(reversed(CLAMPED)), qos="Guaranteed"), node(Generation.CLAMPED_FIRST))
    assert found is None
    assert outlook.right is True
    assert "by luck: 3 processes score 1" in outlook.note


# --- what is not exposed, and says so


@pytest.mark.parametrize("generation", oom.KNOWN_GENERATIONS)
def test_a_single_process_is_no_choice(generation: Generation) -> None:
    outlook, found = only(place([task(10, "app", 900 * MIB, -997)], usage=GIB, qos="Guaranteed"), node(generation))
    assert found is None
    assert outlook.exposed is False
    assert outlook.note == "one process that can be killed: no choice to make"


def test_with_oom_group_the_choice_is_moot() -> None:
    where = place(SKEWED, cgroup={"oom_group": True})
    outlook, found = only(where)
    assert found is None
    assert outlook.exposed is False
    assert outlook.whole_group == where.path
    assert "oom.group" in outlook.note
    # In an OOM of the pod it is moot only if the victim's own container is such a group.
    other = place([task(20, "log", MIB, 999)], path=f"{POD}/{ID}", container_id=ID)
    whole = pod_of([where, other], GIB, GIB, oom_group_paths=frozenset({where.path}))
    [*_, of_pod], _ = assess([where, other, whole])
    assert of_pod.predicted_victim is not None
    assert of_pod.predicted_victim.pid == 20
    assert of_pod.exposed


def test_oom_kill_disable_hangs() -> None:
    outlook, found = only(place(SKEWED, cgroup={"oom_kill_disable": True}), node(version="v1"))
    assert found is None
    assert outlook.outcome is Outcome.HANGS
    assert outlook.predicted_victim is None
    assert "oom_kill_disable" in outlook.note


def test_panic_on_oom_2_panics() -> None:
    outlook, found = only(place(SKEWED), replace(node(), panic_on_oom=2))
    assert (found, outlook.outcome) == (None, Outcome.PANICS)
    assert "panics" in outlook.note


def test_no_limit_no_cgroup_and_no_processes_are_told_apart() -> None:
    assert only(place(SKEWED, limit=None, usage=MIB))[0].note == "no limit of its own"
    gone = replace(place(SKEWED), cgroup=None)
    assert only(gone)[0].note == "its cgroup could not be read"
    assert only(gone, replace(node(), version=None))[0].note == "no memory controller to be reached"
    outlook, found = only(place([]))
    assert (found, outlook.note, outlook.largest) == (None, "no processes", None)


def test_an_unreadable_oom_score_adj_makes_it_unknown() -> None:
    outlook, found = only(place([*SKEWED, task(13, "hidden", MIB, None)]))
    assert (found, outlook.exposed, outlook.right) == (None, None, None)
    assert outlook.note == "oom_score_adj of 1 process can't be read"


def test_a_victim_with_much_shared_memory_and_the_same_adj_is_wrong_but_not_exposed() -> None:
    shared = replace(task(11, "reader", MIB), rss_pages=800 * MIB // PAGE, shmem_pages=799 * MIB // PAGE)
    outlook, found = only(place([task(10, "db", 600 * MIB), shared]))
    assert (found, outlook.right, outlook.exposed) == (None, False, False)
    assert "frees less" in outlook.note


# --- a kernel of unknown generation


def test_on_an_unknown_generation_what_all_agree_on_is_exposed() -> None:
    outlook, found = only(place(SKEWED), node(Generation.UNKNOWN))
    assert found is not None
    assert outlook.reasons == ("SkewedAdj",)
    assert outlook.predicted_victim is not None
    assert outlook.predicted_victim.points is None  # each generation has its own


def test_on_an_unknown_generation_what_they_differ_on_is_unknown() -> None:
    outlook, found = only(place(CLAMPED, qos="Guaranteed"), node(Generation.UNKNOWN))
    assert (found, outlook.exposed, outlook.right, outlook.predicted_victim) == (None, None, None, None)
    assert set(outlook.possible_victims) == {10, 11, 12}
    assert "ClampedFirst: big (10), ClampedLast: tiny (12), Accurate: big (10)" in outlook.note


# --- which limit is hit first


def test_a_pod_with_one_container_runs_into_its_own_limit_first() -> None:
    app = place([task(10, "app", 900 * MIB, -997)], GIB, GIB - MIB, qos="Guaranteed")
    sandbox = pause()
    whole = pod_of([sandbox, app], GIB, GIB, qos="Guaranteed")
    outlooks, found = assess([sandbox, app, whole], node(Generation.CLAMPED_FIRST))
    assert [each.hit_first for each in outlooks] == [False, False, True]
    assert outlooks[1].note == "one process that can be killed: no choice to make"
    [of_pod] = found
    assert of_pod.outlook.scope == "pod"
    assert of_pod.outlook.predicted_victim is not None
    assert of_pod.outlook.predicted_victim.comm == "pause"
    assert of_pod.severity is Severity.IMMINENT


def test_a_container_with_less_room_than_its_pod_runs_into_its_own_limit_first() -> None:
    full = place([task(10, "app", 900 * MIB, -997), task(11, "sh", MIB, -997)], GIB, GIB - MIB, qos="Guaranteed")
    other = place([task(20, "log", MIB, -997)], GIB, MIB, path=f"{POD}/{ID}", container_id=ID, qos="Guaranteed")
    whole = pod_of([full, other], 2 * GIB, GIB, qos="Guaranteed")
    outlooks, found = assess([full, other, whole], node(Generation.CLAMPED_LAST))
    assert [each.hit_first for each in outlooks] == [True, True, False]
    assert [each.outlook.container_id for each in found] == [APP_ID]
    # The pod would be exposed too, were its limit the one in the way.
    assert outlooks[2].exposed


def test_a_container_without_a_limit_runs_into_its_pods() -> None:
    app, whole = place(SKEWED, None, MIB), pod_of([place(SKEWED, None, MIB)], GIB)
    outlooks, found = assess([app, whole])
    assert [each.hit_first for each in outlooks] == [False, True]
    assert [each.outlook.scope for each in found] == ["pod"]


def test_different_values_of_two_containers_are_told_from_those_inside_of_one() -> None:
    big = place([task(10, "db", 600 * MIB, 3)], None, MIB)
    other = place([task(20, "log", MIB, 999)], None, MIB, path=f"{POD}/{ID}", container_id=ID)
    _, [found] = assess([big, other, pod_of([big, other], GIB)])
    assert "different containers" in found.message
    assert found.outlook.predicted_victim is not None
    assert found.outlook.predicted_victim.container_id == ID


# --- severity and order


def test_page_cache_makes_nothing_imminent() -> None:
    reads = place(SKEWED, usage=GIB, cgroup={"file_bytes": 300 * MIB})
    outlook, found = only(reads)
    assert found is not None
    assert outlook.usage_bytes == GIB
    assert outlook.committed_bytes == 724 * MIB
    assert found.severity is Severity.LOW
    assert only(place(SKEWED, usage=GIB, cgroup={"file_bytes": None}))[1] is not None
    [_], [unknown_split] = assess([place(SKEWED, usage=GIB, cgroup={"file_bytes": None})])
    assert unknown_split.severity is Severity.IMMINENT


@pytest.mark.parametrize(
    ("usage", "imminent_at", "severity"),
    [(90, 90, Severity.IMMINENT), (89, 90, Severity.LOW), (50, 50, Severity.IMMINENT), (99, 100, Severity.LOW)],
)
def test_imminent_is_configurable(usage: int, imminent_at: float, severity: Severity) -> None:
    _, [found] = assess([place(SKEWED, 1000 * MIB, usage * 10 * MIB)], imminent_at_percent=imminent_at)
    assert found.severity is severity


def test_guaranteed_and_node_critical_come_first_and_the_fuller_before_the_emptier() -> None:
    skewed_guaranteed = [task(10, "db", 600 * MIB, -997), task(11, "exporter", MIB)]

    def one(name: str, tasks: Sequence[Task], usage: int, qos: str) -> Place:
        return place(
            tasks, GIB, usage * MIB, path=f"/kubepods/pod{name}/{ID}", container_id=name, pod_uid=name, qos=qos
        )

    places = [
        one("burstable, imminent", SKEWED, 1024, "Burstable"),
        one("guaranteed", skewed_guaranteed, 600, "Guaranteed"),
        one("burstable", SKEWED, 700, "Burstable"),
        one("critical", skewed_guaranteed, 800, "Burstable"),
        one("guaranteed, imminent", skewed_guaranteed, 1000, "Guaranteed"),
    ]
    _, found = assess(places)
    assert [(each.outlook.container_id, str(each.severity)) for each in found] == [
        ("guaranteed, imminent", "Imminent"),
        ("critical", "High"),
        ("guaranteed", "High"),
        ("burstable, imminent", "Imminent"),
        ("burstable", "Low"),
    ]


def test_a_process_at_minus_1000_or_the_sandbox_does_not_make_a_pod_protected() -> None:
    app = place([task(10, "app", MIB, -1000), task(11, "b", MIB, 5)], None, MIB)
    outlooks, _ = assess([app, pod_of([pause(), app], GIB)])
    assert [each.protected for each in outlooks] == [False, False]


# --- the commit's machine, read from its files


def process_files(each: Task, start: int, path: str, score: int) -> dict[str, bytes]:
    kib = each.rss_pages * 4
    status = (
        f"Name:\t{each.name}\nState:\tS (sleeping)\nPid:\t{each.pid}\nPPid:\t1\nUid:\t0\t0\t0\t0\n"
        f"VmSize:\t{2 * kib + 4} kB\nVmRSS:\t{kib} kB\nRssAnon:\t{kib} kB\nRssFile:\t0 kB\nRssShmem:\t0 kB\n"
        f"VmPTE:\t{each.page_table_pages * 4} kB\nVmSwap:\t0 kB\nThreads:\t1\n"
    )
    stat = f"{each.pid} ({each.name}) S 1 1 1 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 1 0 {start} 4096 1"
    base = f"/proc/{each.pid}"
    return {
        f"{base}/stat": stat.encode(),
        f"{base}/status": status.encode(),
        f"{base}/statm": b"2 1 0 0 0 0 0\n",
        f"{base}/oom_score_adj": b"%d\n" % (each.oom_score_adj or 0),
        f"{base}/oom_score": b"%d\n" % score,
        f"{base}/cgroup": f"4:memory:{path}\n".encode(),
    }


KTHREAD = {"/proc/2/stat": b"2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 1 0 0"}
MEMINFO = b"MemTotal: %d kB\nMemFree: 1048576 kB\nMemAvailable: 2097152 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n"


def node_of_the_commit(
    *, accurate: bool = False, more: Sequence[tuple[Task, str]] = (), v2: bool = False, group: bool = False
) -> ReplayHost:
    """The pod of the log on a node of 256 GiB: pause and one container, kernel 4.19. ``group``: with memory.oom.group
    on the pod. On ``v2`` the container's processes joined in the reverse order of their start."""
    [golden] = table("oom-commit-9066e5cfb73c.log")
    app = [each.pid for each in golden[1:]]
    limit = GOLDEN_PAGES * PAGE
    used = Figures(usage=limit, limit=limit, anon=limit, file=0, shmem=0)
    tree = {
        "/": Figures(usage=None),
        "/kubepods": Figures(),
        POD: used,
        f"{POD}/{PAUSE_ID}": Figures(usage=40960, anon=4096, file=0, shmem=0, procs=[golden[0].pid]),
        f"{POD}/{APP_ID}": replace(used, usage=limit - 40960, procs=app),
        "/system.slice": Figures(),
        "/system.slice/ssh.service": Figures(procs=[800]),
    }
    tree[POD] = replace(used, oom_group=group)
    if v2:
        tree[f"{POD}/{APP_ID}"].procs.reverse()
        files = {"/proc/1/mountinfo": V2_MOUNTINFO, **v2_files("/proc/1/root/sys/fs/cgroup", tree, swap=False)}
    else:
        files = {"/proc/1/mountinfo": V1_MOUNTINFO, **v1_files("/proc/1/root/sys/fs/cgroup/memory", tree)}
    files |= KTHREAD
    files["/proc/meminfo"] = MEMINFO % (256 << 20)
    files["/proc/sys/kernel/osrelease"] = b"4.19.36\n"
    sshd = (Task(800, "sshd", 1500, oom_score_adj=0), "/system.slice/ssh.service")
    init = (Task(1, "systemd", 2000, oom_score_adj=0), "/")
    rows = [(golden[0], f"{POD}/{PAUSE_ID}"), *((each, f"{POD}/{APP_ID}") for each in golden[1:])]
    for start, (each, path) in enumerate([init, sshd, *rows, *more], start=100):
        at_zero = 666 if accurate else 0
        files |= process_files(each, start, path, 0 if each.oom_score_adj else at_zero)
        if v2:
            files[f"/proc/{each.pid}/cgroup"] = f"0::{path}\n".encode()
    links = {
        f"/proc/{each.pid}/ns/{kind}": {"value": f"{kind}:[{4026531840 + (kind == 'ipc')}]"}
        for each, _ in [init, sshd, *rows, *more]
        for kind in ("mnt", "ipc")
    }
    return ReplayHost(files, {"readlink": links})


def found_on(host: Host, **options: Any) -> findings.Findings:
    return findings.find(Collector(host).collect(deep="never", inspect=0, writers_of=0), **options)


def test_the_pod_of_the_commit_is_exposed_by_the_pause_process() -> None:
    found = found_on(node_of_the_commit())
    assert found.probe.generation is Generation.CLAMPED_FIRST
    [of_pod] = found.exposures
    outlook = of_pod.outlook
    assert (outlook.scope, outlook.pod_uid, outlook.qos, outlook.reasons) == (
        "pod",
        UID,
        "Guaranteed",
        ("ClampedBadness",),
    )
    assert of_pod.severity is Severity.IMMINENT
    assert (outlook.limit_bytes, outlook.usage_bytes) == (17179869184, 17179869184)
    assert outlook.predicted_victim is not None
    assert outlook.largest is not None
    victim, largest = outlook.predicted_victim, outlook.largest
    assert (victim.pid, victim.comm, victim.rss_bytes, victim.container_id) == (5740, "pause", 4096, PAUSE_ID)
    assert (largest.pid, largest.comm, largest.rss_bytes) == (58406, "data_sim", 3967322 * PAGE)
    assert largest.frees_bytes == 3976380 * PAGE
    assert largest.container_id == APP_ID
    [evidence] = of_pod.evidence
    assert isinstance(evidence, oomexposure.ClampedBadness)
    assert (evidence.at_floor, evidence.largest_points_unclamped) == (21, -209232)
    assert (of_pod.mitigation.oom_score_adj, of_pod.mitigation.discriminates_above_percent) == (-63, 7)
    for words in (
        "pause (pid 5740), which frees 36.0 KiB",
        "data_sim (pid 58406), which holds 15.2 GiB",
        "9066e5cfb73c",
        "choom -n -63",
    ):
        assert words in of_pod.message


def test_the_container_of_the_commit_would_be_exposed_too_but_its_limit_is_not_hit_first() -> None:
    outlooks = {each.path: each for each in found_on(node_of_the_commit()).outlooks}
    container = outlooks[f"{POD}/{APP_ID}"]
    assert container.predicted_victim is not None
    assert container.predicted_victim.comm == "entry_point.bas"
    assert (container.exposed, container.hit_first) == (True, False)
    sandbox = outlooks[f"{POD}/{PAUSE_ID}"]
    assert (sandbox.sandbox, sandbox.limit_bytes, sandbox.note) == (True, None, "no limit of its own")


def test_the_same_machine_with_an_accurate_kernel_is_right() -> None:
    found = found_on(node_of_the_commit(accurate=True))
    assert found.probe.generation is Generation.ACCURATE
    assert found.exposures == ()
    assert {each.right for each in found.outlooks if each.limit_bytes} == {True}


def test_minus_998_is_no_drift_but_a_process_that_changed_is() -> None:
    assert found_on(node_of_the_commit()).drifts == ()
    changed = (Task(60000, "postgres", 500, oom_score_adj=0), f"{POD}/{APP_ID}")
    [found] = found_on(node_of_the_commit(more=[changed])).drifts
    assert found.container_id == APP_ID
    assert found.observed == {0: (60000,)}
    [by_api] = found_on(node_of_the_commit(), expected_adj={APP_ID: 3}).drifts
    assert by_api.expected == 3
    assert sum(map(len, by_api.observed.values())) == 20


def test_sshd_at_0_dies_before_the_16_gib_of_a_guaranteed_pod() -> None:
    found = found_on(node_of_the_commit())
    [sshd] = found.services
    assert (sshd.service, sshd.process.pid, sshd.unit, sshd.dies_first) == ("sshd", 800, "ssh.service", True)
    assert [each.comm for each in sshd.outlived_by] == ["data_sim"]
    assert sshd.file == "/etc/systemd/system/ssh.service.d/50-oom.conf"
    assert sshd.content == "[Service]\nOOMScoreAdjust=-1000\n"
    assert sshd.command == "choom -n -1000 -p 800"
    assert "OOMScoreAdjust=-1000" in sshd.advice


def run_cli(host: Host, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    import argparse

    parser = argparse.ArgumentParser()
    oom_exposed.add_parser(parser.add_subparsers())
    args = parser.parse_args(["exposed", *arguments])
    args.host = host
    assert args.func(args) == 0
    return capsys.readouterr().out


def test_the_table_names_victim_largest_value_and_service(capsys: pytest.CaptureFixture[str]) -> None:
    text = run_cli(node_of_the_commit(), capsys)
    [row] = [line for line in text.splitlines() if line.startswith("Imminent")]
    for words in (f"pod {UID[:8]}", "100 % of 16.0 GiB", "ClampedBadness", "pause 5740", "data_sim 58406", "-63"):
        assert words in row
    assert f"When pod {UID} reaches" in text
    assert "2 containers checked: 1 exposed, 1 imminent; 1 host service would die" in text
    assert "entry_point" not in text
    assert "entry_point.bas 58804" in run_cli(node_of_the_commit(), capsys, "--all")


@pytest.mark.parametrize("output", ["json", "yaml"])
def test_json_and_yaml_have_everything(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    changed = (Task(60000, "post\x1bgres", 500, oom_score_adj=0), f"{POD}/{APP_ID}")
    text = run_cli(node_of_the_commit(more=[changed]), capsys, "-o", output, "--imminent-at", "95%")
    data = json.loads(text) if output == "json" else yaml.safe_load(text)
    assert data["imminentAtPercent"] == 95
    assert data["kernel"]["oomGeneration"] == "ClampedFirst"
    [exposed] = data["exposures"]
    assert exposed["severity"] == "Imminent"
    assert exposed["reasons"] == ["SkewedAdj"]
    assert exposed["mitigation"]["oomScoreAdj"] is None
    assert exposed["mitigation"]["whyNone"]
    assert exposed["predictedVictim"]["rssBytes"] == 500 * PAGE
    assert exposed["evidence"][0]["predictedOomScoreAdj"] == 0
    assert exposed["evidence"][0]["largestPoints"] == -209232
    assert {each["path"] for each in data["containers"]} >= {POD, f"{POD}/{APP_ID}", f"{POD}/{PAUSE_ID}"}
    assert data["drift"][0]["observed"] == [{"oomScoreAdj": 0, "pids": [60000]}]
    assert data["services"][0]["outlivedBy"][0]["comm"] == "data_sim"
    assert "\x1b" not in text


def test_a_hostile_name_cannot_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = (Task(60000, "\x1b[31m[b]x", 900, oom_score_adj=500), f"{POD}/{APP_ID}")
    text = run_cli(node_of_the_commit(more=[hostile]), capsys, "--all")
    assert "\x1b" not in text
    assert "\\x1b[31m[b]x 60000" in text


@pytest.mark.parametrize("text", ["0", "101", "-5", "many", "nan", "inf"])
def test_an_impossible_percentage_is_wrong_usage(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_cli(ReplayHost({}), capsys, f"--imminent-at={text}")
    assert stopped.value.code == 2


def test_a_machine_without_the_memory_controller_still_gets_its_services() -> None:
    files = {"/proc/meminfo": MEMINFO % (256 << 20), **KTHREAD}
    files |= process_files(Task(800, "sshd", 1500), 1, "/system.slice/ssh.service", 666)
    files |= process_files(Task(900, "java", 9 << 20, oom_score_adj=-500), 2, "/system.slice/app.service", 0)
    found = found_on(ReplayHost(files))
    assert found.outlooks == ()
    [sshd] = found.services
    assert [each.comm for each in sshd.outlived_by] == ["java"]


# --- what the kubelet sets


CAPACITY = 16 * GIB


@pytest.mark.parametrize(
    ("qos", "request_bytes", "options", "expected"),
    [
        ("Guaranteed", GIB, {}, -997),
        ("Guaranteed", None, {"guaranteed": GUARANTEED_OLD}, -998),
        ("BestEffort", None, {}, 1000),
        ("BestEffort", None, {"critical": True}, -997),
        ("Burstable", 0, {}, 999),
        ("Burstable", 1, {}, 999),
        ("Burstable", GIB, {}, 938),  # 62.5 thousandths, rounded down
        ("Burstable", 8 * GIB, {}, 500),
        ("Burstable", 16 * GIB, {}, 3),
        ("Burstable", 20 * GIB, {}, 3),
        ("Burstable", 16 * GIB, {"guaranteed": GUARANTEED_OLD}, 2),
        ("Burstable", None, {}, None),
        ("Burstable", GIB, {"critical": True}, -997),
        ("Burstable", GIB, {"sidecar_of_bytes": [8 * GIB, 4 * GIB]}, 750),
        ("Burstable", 8 * GIB, {"sidecar_of_bytes": [GIB]}, 500),
        ("Burstable", 0, {"sidecar_of_bytes": [0]}, 999),
        (None, GIB, {}, None),
    ],
)
def test_what_the_kubelet_sets(
    qos: Any, request_bytes: int | None, options: Mapping[str, Any], expected: int | None
) -> None:
    assert expected_oom_score_adj(qos, request_bytes, CAPACITY, **options) == expected


@given(st.integers(0, 1 << 45), st.integers(1, 1 << 45))
def test_burstable_is_always_between_guaranteed_and_best_effort(request_bytes: int, capacity: int) -> None:
    adj = expected_oom_score_adj("Burstable", request_bytes, capacity)
    assert adj is not None
    assert 3 <= adj <= 999
    assert drift(APP_ID, UID, "Burstable", [(1, adj)]) is None


@pytest.mark.parametrize(
    ("qos", "values", "deviating"),
    [
        ("Guaranteed", [-997, -997], None),
        ("Guaranteed", [-998], None),
        ("Guaranteed", [-997, 0, 0], {0: (2, 3)}),
        ("Guaranteed", [-1000], {-1000: (1,)}),
        ("BestEffort", [1000], None),
        ("BestEffort", [1000, 0], {0: (2,)}),
        ("BestEffort", [-997, -997], None),  # system-node-critical
        ("BestEffort", [-997, 1000], {-997: (1,)}),
        ("Burstable", [2, 999], None),
        ("Burstable", [1000, 1, 500, -900], {-900: (4,), 1: (2,), 1000: (1,)}),
        ("Burstable", [-998], None),
        (None, [-500], None),
        ("Guaranteed", [], None),
    ],
)
def test_drift_without_the_api_is_what_no_kubelet_sets(
    qos: Any, values: list[int], deviating: dict[int, tuple[int, ...]] | None
) -> None:
    found = drift(APP_ID, UID, qos, list(enumerate(values, start=1)))
    assert (found.observed if found else None) == deviating


def test_drift_with_the_api_is_exact() -> None:
    assert drift(APP_ID, UID, "Burstable", [(1, 938)], expected=938) is None
    found = drift(APP_ID, UID, "Burstable", [(1, 938), (2, 937)], expected=938)
    assert found is not None
    assert found.observed == {937: (2,)}
    assert "938" in found.message
    assert drift(APP_ID, UID, "Guaranteed", [(1, -998)], expected=-997) is None


# --- services and business processes


CONTAINER = ContainerRef(APP_ID, None, UID, "Guaranteed")


def at_risk(
    rows: Sequence[tuple[Task, Owner | None]], its_node: Node | None = None, more: Sequence[str] = ()
) -> list[services.ServiceAtRisk]:
    owners = {each.pid: owner for each, owner in rows}
    return services.services_at_risk([each for each, _ in rows], owners, its_node or node(), more=more)


BUSINESS = (task(50, "java", 8 * GIB, -997), CONTAINER)


def service(pid: int, name: str, adj: int, unit: str | None = None) -> tuple[Task, Owner | None]:
    return task(pid, name[:15], 20 * MIB, adj), ServiceRef(unit or f"{name}.service")


@pytest.mark.parametrize("generation", oom.KNOWN_GENERATIONS)
@pytest.mark.parametrize(
    ("name", "adj", "dies_first"),
    [
        ("sshd", 0, True),
        ("containerd", -999, None),
        ("kubelet", -999, None),
        ("sshd", -1000, None),
    ],
)
def test_a_service_is_at_risk_while_a_larger_business_process_would_live(
    generation: Generation, name: str, adj: int, dies_first: bool | None
) -> None:
    found = at_risk([service(9, name, adj), BUSINESS], node(generation))
    assert [each.dies_first for each in found] == ([] if dies_first is None else [dies_first])


def test_where_the_clamp_makes_scores_equal_neither_is_said_to_die_first() -> None:
    rows = [service(9, "systemd-journald", -250), BUSINESS]
    assert [each.dies_first for each in at_risk(rows)] == [True]
    assert [each.dies_first for each in at_risk(rows, node(Generation.CLAMPED_LAST))] == [False]


def test_what_is_advised_takes_it_off_the_list() -> None:
    for each in services.SERVICES:
        [found] = at_risk([service(9, each.comms[0], 0), BUSINESS])
        assert found.service == each.name
        assert at_risk([service(9, each.comms[0], found.set_oom_score_adj), BUSINESS]) == []


def test_a_service_that_only_its_size_protects_is_listed_last() -> None:
    best_effort = (task(50, "java", 8 * GIB, 1000), ContainerRef(APP_ID, None, UID, "BestEffort"))
    [found] = at_risk([service(9, "sshd", 0), best_effort])
    assert (found.dies_first, found.outlived_by, found.outlived_count) == (False, (), 0)
    both = at_risk([service(9, "chronyd", -890), service(8, "sshd", 0), (task(50, "java", 8 * GIB, -895), CONTAINER)])
    assert [(each.service, each.dies_first) for each in both] == [("sshd", True), ("chronyd", False)]


def test_small_and_unkillable_processes_are_no_measure() -> None:
    small = (task(50, "sh", 30 * MIB, -997), CONTAINER)
    never = (task(51, "java", 8 * GIB, -1000), CONTAINER)
    [found] = at_risk([service(9, "sshd", 0), small, never])
    assert not found.dies_first


def test_names_are_believed_on_the_host_only() -> None:
    in_container = (task(9, "sshd", MIB, 0), CONTAINER)
    in_pod = (task(10, "sshd", MIB, 0), PodRef(UID, "Guaranteed"))
    in_session = (task(11, "sshd", MIB, 0), ServiceRef("session-3.scope", user_uid=1000))
    assert at_risk([in_container, in_pod, in_session, BUSINESS]) == []
    assert [each.process.pid for each in at_risk([(in_container[0], None), BUSINESS])] == [9]


def test_only_the_main_process_of_a_service_is_meant() -> None:
    found = at_risk([service(30, "sshd", 0), service(9, "sshd", 0), BUSINESS])
    assert [each.process.pid for each in found] == [9]


def test_the_list_can_be_extended_by_process_or_unit() -> None:
    unit = service(9, "mydaemon", 0, "my-thing.service")
    assert at_risk([unit, BUSINESS]) == []
    for name in ("mydaemon", "my-thing", "my-thing.service"):
        [found] = at_risk([unit, BUSINESS], more=[name])
        assert found.content == "[Service]\nOOMScoreAdjust=-1000\n"
        assert found.file == "/etc/systemd/system/my-thing.service.d/50-oom.conf"
    [by_unit] = at_risk([service(9, "python3", 0, "walinuxagent.service"), BUSINESS])
    assert by_unit.service == "Azure agent"
    assert by_unit.set_oom_score_adj == -999  # what it runs inherits it


def test_where_no_drop_in_helps_it_says_what_does() -> None:
    [kubelet] = at_risk([service(9, "kubelet", 0), BUSINESS])
    assert kubelet.file is None
    assert "oomScoreAdj: -999" in kubelet.advice
    [bare] = at_risk([(task(9, "sshd", MIB, 0), None), BUSINESS])
    assert (bare.file, bare.content) == (None, None)
    assert "no systemd service" in bare.advice


def test_on_an_unknown_generation_all_have_to_agree() -> None:
    clamp_decides = [service(9, "sshd", -250), BUSINESS]
    assert [each.dies_first for each in at_risk(clamp_decides, node(Generation.UNKNOWN))] == [False]
    assert [each.dies_first for each in at_risk([service(9, "sshd", 0), BUSINESS], node(Generation.UNKNOWN))] == [True]


def unkillable(rows: Sequence[tuple[Task, Owner | None]], **options: Any) -> list[services.UnkillableBusiness]:
    return services.unkillable_business(
        [each for each, _ in rows], {each.pid: owner for each, owner in rows}, node(), **options
    )


def test_business_at_minus_1000_is_named_with_what_to_set() -> None:
    hog = task(50, "java", 8 * GIB, -1000)
    [in_container] = unkillable([(hog, CONTAINER)])
    assert (in_container.set_oom_score_adj, in_container.command) == (-997, "choom -n -997 -p 50")
    assert in_container.process.frees_bytes == 8 * GIB
    assert in_container.file is None
    [on_host] = unkillable([(hog, ServiceRef("app.service"))])
    assert on_host.file == "/etc/systemd/system/app.service.d/50-oom.conf"
    assert on_host.content == "[Service]\nOOMScoreAdjust=0\n"


def test_services_small_processes_sandboxes_and_init_at_minus_1000_are_as_they_should_be() -> None:
    rows: list[tuple[Task, Owner | None]] = [
        (task(9, "systemd-journal", GIB, -1000), ServiceRef("systemd-journald.service")),
        (task(10, "java", MIB, -1000), CONTAINER),
        (task(11, "pause", GIB, -1000), CONTAINER),
        (task(1, "init", GIB, -1000, init=True), None),
        (task(12, "mydaemon", GIB, -1000), None),
        (task(13, "java", GIB, -999), CONTAINER),
    ]
    assert unkillable(rows, sandbox_pids={11}, more=["mydaemon"]) == []
    assert [each.process.pid for each in unkillable(rows, sandbox_pids={11})] == [12]
    # The same name in a container is none of the host's services.
    assert len(unkillable([(task(9, "systemd-journal", GIB, -1000), CONTAINER)])) == 1


# --- where places come from


def test_places_have_the_order_of_joining_where_it_can_matter() -> None:
    snapshot = Collector(node_of_the_commit()).collect(deep="never", inspect=0, writers_of=0)
    found = {each.path: each for each in oomdomains.places(snapshot)}
    assert found[POD].paths == (POD, f"{POD}/{PAUSE_ID}", f"{POD}/{APP_ID}")
    assert found[POD].sandbox_pids == {5740}
    assert len(found[POD].tasks) == 21
    assert found[POD].joined is None  # v1 sorts cgroup.procs
    assert found[f"{POD}/{APP_ID}"].container_id == APP_ID
    assert Path(found[POD].path).name == f"pod{UID}"


MORE = st.lists(
    st.tuples(
        st.sampled_from([1, 4000, 3_900_000, 4_100_000]),
        st.sampled_from([-1000, -999, -998, -900, -1, 0, 1, 300, 1000]),
        st.sampled_from([PAUSE_ID, APP_ID, ""]),
    ),
    max_size=4,
)


@settings(deadline=None, max_examples=80)
@given(MORE, st.booleans(), st.booleans(), st.booleans())
def test_the_agent_that_looks_where_there_may_be_one_misses_no_exposure(
    more: list[tuple[int, int, str]], accurate: bool, v2: bool, group: bool
) -> None:
    tasks = [
        (Task(70000 + at, f"more{at}", pages, oom_score_adj=adj), f"{POD}/{inside}".rstrip("/"))
        for at, (pages, adj, inside) in enumerate(more)
    ]
    host = node_of_the_commit(accurate=accurate, more=tasks, v2=v2, group=group)
    snapshot = Collector(host).collect(deep="never", inspect=0, writers_of=0)
    everything = findings.find(snapshot).exposures
    sparing = exposures.find(Collector(host, Thrift()).collect(full=False), {}, ()).exposures
    assert [each.outlook for each in sparing] == [each.outlook for each in everything]


def test_the_generation_is_known_where_hundreds_of_sandboxes_are_smaller_than_what_tells_it() -> None:
    pauses = [(Task(70000 + at, "pause", 10, oom_score_adj=-998), f"{POD}/{PAUSE_ID}") for at in range(300)]
    host = node_of_the_commit(accurate=True, more=pauses)
    assert Collector(host, Thrift()).collect(full=False).probe.generation is Generation.ACCURATE


def test_on_v2_the_order_of_joining_decides_and_not_that_of_starting() -> None:
    outlooks = {each.path: each for each in found_on(node_of_the_commit(v2=True)).outlooks}
    container, pod = outlooks[f"{POD}/{APP_ID}"], outlooks[POD]
    assert container.predicted_victim is not None
    assert container.predicted_victim.comm == "data_sim"
    assert "by luck" in container.note
    assert pod.possible_victims == (5740,)


def test_oom_group_of_the_pod_ends_the_exposure() -> None:
    host = node_of_the_commit(v2=True, group=True)
    found = found_on(host)
    assert found.exposures == ()
    of_pod = next(each for each in found.outlooks if each.scope == "pod")
    assert (of_pod.whole_group, of_pod.right) == (POD, True)


def test_oom_group_of_a_cgroup_that_a_container_made_is_seen() -> None:
    inner = f"{POD}/{APP_ID}/inner"
    tree = {
        f"{POD}/{APP_ID}": Figures(usage=900 * MIB, limit=GIB),
        inner: Figures(usage=900 * MIB, oom_group=True, procs=[10, 11]),
    }
    files = v2_files("/proc/1/root/sys/fs/cgroup", {"/": Figures(usage=None), "/kubepods": Figures(), **tree}, False)
    files |= v2_files("/proc/1/root/sys/fs/cgroup", {POD: Figures()}, False)
    files |= {"/proc/1/mountinfo": V2_MOUNTINFO, "/proc/meminfo": MEMINFO % (64 << 20), **KTHREAD}
    for each in (task(9, "idle", MIB), task(10, "db", 600 * MIB, -900), task(11, "exporter", MIB)):
        path = "/" if each.pid == 9 else inner
        files |= process_files(each, each.pid, path, 0 if each.oom_score_adj else 666)
        files[f"/proc/{each.pid}/cgroup"] = f"0::{path}\n".encode()
    [outlook] = found_on(ReplayHost(files)).outlooks
    assert outlook.predicted_victim is not None
    assert outlook.predicted_victim.comm == "exporter"
    assert (outlook.whole_group, outlook.exposed) == (inner, False)
