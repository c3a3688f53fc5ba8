"""Where on a node memory can run out: its containers and pods, each with what a prediction takes.

The one place that reads cgroups for the findings: a snapshot has the containers' cgroups, not their pods' and not the
order in which the kernel goes through them.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from nodemem.kernel import oom, oomexposure
from nodemem.kernel.cgroups import Hierarchy, MemoryCgroup
from nodemem.kernel.oom import Domain, Generation, Rules, Task
from nodemem.node import owners
from nodemem.node.containers import Container, pod_path
from nodemem.node.owners import ContainerRef, PodRef, QosClass
from nodemem.node.snapshot import Snapshot

Scope = Literal["container", "pod"]


@dataclass(frozen=True, slots=True)
class HeldTmpfs:
    """A tmpfs that can be reached from a place, so that its files may be charged there; ``shared``: from outside, too.
    ``used_bytes`` None: not known."""

    path: str
    used_bytes: int | None
    shared: bool


@dataclass(frozen=True, slots=True)
class ProcessFigures:
    """A process as evidence. ``frees_bytes``: what its death gives back for certain; ``points`` the kernel's score in
    the domain in question, in pages, None where it has none (never killed) or that is not known."""

    pid: int
    comm: str
    rss_bytes: int
    frees_bytes: int
    oom_score_adj: int | None
    points: int | None = None
    container_id: str | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """What the arithmetic takes that is the same for every domain. ``version``: of the memory controller; None when
    there is none to be reached."""

    page_size: int
    totalpages: int
    swap_total_bytes: int
    version: Literal["v1", "v2"] | None
    swappiness: int | None
    panic_on_oom: int
    generation: Generation
    release: str | None
    cgroup_root: str = "/"

    def figures(self, task: Task, points: int | None = None) -> ProcessFigures:
        owner = None if task.cgroup is None else owners.parse_cgroup(task.cgroup, self.cgroup_root)
        return ProcessFigures(
            pid=task.pid,
            comm=task.name,
            rss_bytes=task.rss_pages * self.page_size,
            frees_bytes=task.frees_pages * self.page_size,
            oom_score_adj=task.oom_score_adj,
            points=points,
            container_id=owner.container_id if isinstance(owner, ContainerRef) else None,
        )

    def rules(self) -> dict[Generation, Rules]:
        """The kernel's rules; where its generation is unknown, those of each known one."""
        known = oom.KNOWN_GENERATIONS if self.generation is Generation.UNKNOWN else (self.generation,)
        return {each: oom.rules_for(self.release, each) for each in known}


@dataclass(frozen=True, slots=True)
class Place:
    """One container, or one pod with everything in it, sandbox included.

    ``tasks`` have their path in the memory hierarchy as ``cgroup``; ``paths`` are the cgroups from ``path`` down as the
    kernel walks them. ``joined`` is the order of joining by cgroup, where the kernel shows it and it can matter.
    ``tmpfs``: None when mounts could not all be read, or Shmem is too little to matter. ``sandbox``: the pause
    container of a pod.
    """

    scope: Scope
    path: str
    container_id: str | None
    pod_uid: str | None
    qos: QosClass | None
    runtime: str | None
    sandbox: bool
    cgroup: MemoryCgroup | None
    paths: tuple[str, ...]
    tasks: tuple[Task, ...]
    sandbox_pids: frozenset[int] = frozenset()
    joined: Mapping[str, Sequence[int]] | None = None
    oom_group_paths: frozenset[str] = frozenset()
    tmpfs: tuple[HeldTmpfs, ...] | None = None

    @property
    def limit_bytes(self) -> int | None:
        return None if self.cgroup is None else self.cgroup.limit_bytes

    @property
    def usage_bytes(self) -> int | None:
        return None if self.cgroup is None else self.cgroup.usage_bytes

    @property
    def committed_bytes(self) -> int | None:
        """Usage less the page cache, which the kernel reclaims before it kills; all of it where the split is unknown.

        A container that reads and writes files is at its limit most of the time and in no danger.
        """
        if self.cgroup is None or self.cgroup.usage_bytes is None:
            return None
        file, shmem = self.cgroup.file_bytes, self.cgroup.shmem_bytes
        cache = 0 if file is None or shmem is None else max(0, file - shmem)
        return max(0, self.cgroup.usage_bytes - cache)

    @property
    def room_bytes(self) -> int | None:
        """What can still be charged before the limit leads to an OOM; None without a limit."""
        limit, committed = self.limit_bytes, self.committed_bytes
        return None if limit is None or committed is None else limit - committed


def node_of(snapshot: Snapshot) -> Node:
    total = snapshot.memory.partition
    return Node(
        page_size=snapshot.page_size,
        totalpages=oom.global_totalpages(total.total_bytes, total.swap_total_bytes, snapshot.page_size),
        swap_total_bytes=total.swap_total_bytes,
        version=snapshot.hierarchy.memory_version,
        swappiness=snapshot.facts.swappiness,
        panic_on_oom=snapshot.facts.panic_on_oom or 0,
        generation=snapshot.probe.generation,
        release=snapshot.probe.release,
        cgroup_root=snapshot.hierarchy.root,
    )


def domain(place: Place, node: Node, rules: Rules) -> Domain | None:
    """None for a cgroup that is gone, or a host without the memory controller.

    ``shmem_bytes`` of the domain is at most what the tmpfs that can be reached from here hold, where that is known:
    the rest is shared memory that dies with its processes.
    """
    if place.cgroup is None or node.version is None:
        return None
    tasks, order = oom.in_scan_order(place.tasks, rules, paths=place.paths, joined=place.joined)
    shmem, tmpfs = place.cgroup.shmem_bytes, None
    used = [each.used_bytes for each in place.tmpfs or ()]
    if shmem is not None and place.tmpfs is not None and None not in used:
        shmem = min(shmem, sum(each or 0 for each in used))
        tmpfs = None if any(each.shared for each in place.tmpfs) else shmem
    found = oom.memcg_domain(
        place.cgroup,
        tasks,
        order,
        page_size=node.page_size,
        version=node.version,
        total_swap_bytes=node.swap_total_bytes,
        vm_swappiness=node.swappiness,
        panic_on_oom=node.panic_on_oom,
        oom_group_paths=place.oom_group_paths,
        tmpfs_bytes=tmpfs,
    )
    return replace(found, shmem_bytes=shmem)


def places(snapshot: Snapshot, only: Collection[str] | None = None) -> list[Place]:
    """Every container, and every pod whose cgroup has a limit; or only those of the ``groups`` named.

    Costs a walk of their cgroups; on v2 kernels whose scan order matters, a read of cgroup.procs for each of them.
    """
    hierarchy = snapshot.hierarchy
    containers = {
        key: _completed(hierarchy, each)
        for key, each in snapshot.containers.items()
        if only is None or group_of(each) in only
    }
    if not containers:
        return []
    tops: Iterable[str | None] = (None,)
    if only is not None:
        tops = dict.fromkeys(pod_path(hierarchy, each.ref, each.path) or each.path for each in containers.values())
    walked = [path for top in tops for path in hierarchy.walk(top)]
    tasks = _tasks_by_path(snapshot, None if only is None else {*walked, *(each.path for each in containers.values())})
    in_order = snapshot.probe.generation is not Generation.ACCURATE and hierarchy.memory_version == "v2"
    groups = {each.path for each in containers.values() if each.cgroup and each.cgroup.oom_group}
    sandboxes = {each.path for each in containers.values() if _is_sandbox(snapshot, each)}
    sandbox_pids = {pid for each in containers.values() if each.path in sandboxes for pid in each.pids}
    known_paths = {each.path for each in containers.values()}
    index = {path: at for at, path in enumerate(walked)}

    def place(scope: Scope, ref: ContainerRef | PodRef, path: str, cgroup: MemoryCgroup | None) -> Place:
        below = _below(walked, index, path) or [path]
        found = [task for each in below for task in tasks.get(each, ())]
        inner = _oom_groups(hierarchy, below, known_paths) if hierarchy.memory_version == "v2" else set()
        pause = {task.pid for task in found if task.pid in sandbox_pids}
        container_id = ref.container_id if isinstance(ref, ContainerRef) else None
        return Place(
            scope=scope,
            path=path,
            container_id=container_id,
            pod_uid=ref.pod_uid,
            qos=ref.qos,
            runtime=ref.runtime if isinstance(ref, ContainerRef) else None,
            sandbox=scope == "container" and path in sandboxes,
            cgroup=cgroup,
            paths=tuple(below),
            tasks=tuple(found),
            sandbox_pids=frozenset(pause),
            joined={each: hierarchy.procs(each) for each in below} if in_order else None,
            oom_group_paths=frozenset(inner | {each for each in groups if _inside(each, path)}),
            tmpfs=_held(snapshot, cgroup, ref.pod_uid, container_id),
        )

    result = []
    pods: dict[str, PodRef] = {}
    for container in containers.values():
        result.append(place("container", container.ref, container.path, container.cgroup))
        if (pod := pod_path(hierarchy, container.ref, container.path)) is not None:
            pods.setdefault(pod, PodRef(container.ref.pod_uid or "", container.ref.qos or "Burstable"))
    for path, ref in pods.items():
        cgroup = snapshot.pods.get(path)
        if cgroup is not None and not cgroup.complete:
            cgroup = _read(hierarchy, path)
        if cgroup is not None and cgroup.limit_bytes is not None:
            result.append(place("pod", ref, path, cgroup))
    return result


def _completed(hierarchy: Hierarchy, container: Container) -> Container:
    if container.cgroup is None or container.cgroup.complete:
        return container
    return replace(container, cgroup=_read(hierarchy, container.path))


def _read(hierarchy: Hierarchy, path: str) -> MemoryCgroup | None:
    try:
        return hierarchy.read(path)
    except FileNotFoundError:
        return None


def group_of(container: Container) -> str:
    """What is judged together: a pod, or a container without one."""
    return container.ref.pod_uid or container.ref.container_id


def suspects(snapshot: Snapshot) -> set[str]:
    """The groups in which something may be exposed: all others can be left out of ``places``. Reads nothing.

    Why the others can't: the kernel takes the highest score, and with one oom_score_adj for all that is the largest.
    It is another one only if its oom_score_adj is higher than the largest one's; or if the clamp makes all scores
    equal, which takes an oom_score_adj of 0 or less in all of them; or if the largest can't be killed at all. And
    kills are in vain only where so much is Shmem.
    """
    accurate = snapshot.probe.generation is Generation.ACCURATE
    rules = snapshot.probe.rules
    by_adj_alone = rules is None or rules.kills_child
    groups: dict[str, list[Container]] = {}
    for container in snapshot.containers.values():
        groups.setdefault(group_of(container), []).append(container)
    full = {path for path, cgroup in snapshot.pods.items() if _held_by_shmem(cgroup)}
    found: set[str] = set()
    for group, containers in groups.items():
        choices = [_choice(snapshot, each.pids) for each in containers]
        if (
            any(_held_by_shmem(each.cgroup) for each in containers)
            or any(_may_be_wrong(each, accurate, by_adj_alone) for each in (*choices, _together(choices)))
            or (full and pod_path(snapshot.hierarchy, containers[0].ref, containers[0].path) in full)
        ):
            found.add(group)
    # What is in a pod and in none of its containers counts for the pod's own limit.
    examples = {process.cgroup: pid for pid, process in snapshot.processes.items()}
    for pid in examples.values():
        if isinstance(owner := snapshot.process_owners.get(pid), PodRef):
            found.add(owner.pod_uid)
    return found


def _held_by_shmem(cgroup: MemoryCgroup | None) -> bool:
    if cgroup is None or not cgroup.limit_bytes:
        return False
    return (cgroup.shmem_bytes or 0) >= oomexposure.TMPFS_SHARE * cgroup.limit_bytes


class _Choice(NamedTuple):
    """What the killer can take. ``of_largest``: the oom_score_adj of the one whose death frees ``most``, the lowest of
    several. ``unsure``: an oom_score_adj is unknown, or one can't be killed."""

    killable: int
    lowest: int
    highest: int
    most: int
    of_largest: int
    unsure: bool


def _choice(snapshot: Snapshot, pids: Iterable[int]) -> _Choice:
    lowest = highest = of_largest = 0
    most, killable, unsure = -1, 0, False
    for pid in pids:
        process = snapshot.processes[pid]
        if not process.has_mm or process.kernel_thread:
            continue
        adj = process.oom_score_adj
        if adj is None or adj == oom.OOM_SCORE_ADJ_MIN:
            unsure = True
            continue
        mapped = process.rss_bytes if process.rss_anon_bytes is None else process.rss_anon_bytes
        frees = mapped + process.swap_bytes + process.page_tables_bytes
        if killable == 0:
            lowest = highest = adj
        elif adj < lowest:
            lowest = adj
        elif adj > highest:
            highest = adj
        if frees > most or (frees == most and adj < of_largest):
            most, of_largest = frees, adj
        killable += 1
    return _Choice(killable, lowest, highest, most, of_largest, unsure)


def _together(choices: Sequence[_Choice]) -> _Choice:
    some = [each for each in choices if each.killable]
    unsure = any(each.unsure for each in choices)
    if not some:
        return _Choice(0, 0, 0, -1, 0, unsure)
    most = max(each.most for each in some)
    return _Choice(
        sum(each.killable for each in some),
        min(each.lowest for each in some),
        max(each.highest for each in some),
        most,
        min(each.of_largest for each in some if each.most == most),
        unsure,
    )


def _may_be_wrong(choice: _Choice, accurate: bool, by_adj_alone: bool) -> bool:
    if choice.unsure:
        return True
    if choice.killable < 2:
        return False
    if choice.highest <= 0 and not accurate:
        return True
    return choice.highest > (choice.lowest if by_adj_alone else choice.of_largest)


def _tasks_by_path(snapshot: Snapshot, only: Collection[str] | None) -> dict[str, list[Task]]:
    resolved: dict[str, str | None] = {}
    found: dict[str, list[Task]] = {}
    init_pid = 1 if any(process.kernel_thread for process in snapshot.processes.values()) else None
    for process in snapshot.processes.values():
        shown = process.cgroup
        if shown is None:
            continue
        if shown not in resolved:
            resolved[shown] = snapshot.hierarchy.resolve(shown)
        path = resolved[shown]
        if path is None or (only is not None and path not in only):
            continue
        task = Task.from_process(process, snapshot.page_size, init_pid=init_pid)
        found.setdefault(path, []).append(task if path == shown else replace(task, cgroup=path))
    return found


def _is_sandbox(snapshot: Snapshot, container: Container) -> bool:
    processes = [snapshot.processes[pid] for pid in container.pids if pid in snapshot.processes]
    return container.ref.pod_uid is not None and owners.is_sandbox(processes)


def _below(walked: Sequence[str], index: Mapping[str, int], path: str) -> list[str]:
    """In a walk parents come first: what is below follows without a gap."""
    if (at := index.get(path)) is None:
        return []
    end = at + 1
    while end < len(walked) and _inside(walked[end], path):
        end += 1
    return list(walked[at:end])


def _inside(path: str, top: str) -> bool:
    return path == top or path.startswith(f"{top.rstrip('/')}/")


def _oom_groups(hierarchy: Hierarchy, paths: Sequence[str], known: set[str]) -> set[str]:
    """Those of cgroups that a container made inside of its own."""
    found = set()
    for path in paths[1:]:
        if path in known:
            continue
        try:
            if hierarchy.read(path).oom_group:
                found.add(path)
        except FileNotFoundError:
            continue
    return found


def _held(
    snapshot: Snapshot, cgroup: MemoryCgroup | None, pod_uid: str | None, container_id: str | None
) -> tuple[HeldTmpfs, ...] | None:
    """Only for a place with so much Shmem that it matters how much of it is tmpfs: this goes through all of them."""
    if cgroup is None or snapshot.mounts.unreadable or not cgroup.limit_bytes:
        return None
    if (cgroup.shmem_bytes or 0) < oomexposure.TMPFS_SHARE * cgroup.limit_bytes:
        return None
    return tuple(_reachable(snapshot, pod_uid, container_id))


def _reachable(snapshot: Snapshot, pod_uid: str | None, container_id: str | None) -> Iterator[HeldTmpfs]:
    """The tmpfs mounted in a container; of a pod its volumes too, and what its containers have mounted."""
    if container_id is not None:
        users = {container_id}
    else:
        users = {each.ref.container_id for each in snapshot.containers.values() if each.ref.pod_uid == pod_uid}
    for device, owner in snapshot.tmpfs_owners.items():
        mounted_by = set(owner.containers)
        if not users & mounted_by and (container_id is not None or owner.pod_uid != pod_uid):
            continue
        superblock = snapshot.mounts.superblocks[device]
        inspection = snapshot.inspections.get(device)
        used = superblock.used_bytes
        if used is None and inspection is not None and inspection.stopped is None:
            used = inspection.found_bytes
        yield HeldTmpfs(owner.path or device, used, bool(mounted_by - users) or owner.kind == "Host")
