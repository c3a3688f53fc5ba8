"""The containers of a node and what their memory cgroups hold, read again and again at little cost.

Enters: which processes are in which cgroup. Leaves: a ``Container`` for each, and the cgroups of their pods. How old a
figure may be is said at ``ContainerTable``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nodemem.kernel.cgroups import Hierarchy, MemoryCgroup, ancestors
from nodemem.node import owners
from nodemem.node.owners import ContainerRef, PodRef

ROTATION = 5
"""With thrift the limit and memory.stat of a cgroup are read in so many scans, and the hierarchy is walked as often."""

SETTINGS_ROTATION = 20
"""... and what hardly ever changes while a container runs: swappiness, the limits of swap, who is killed; events."""

SETTLING = 2
"""So many further scans read a new cgroup completely: runtimes make it first and write the limits then."""

FORGETTING = 30

SPLIT_FIRST = 16
"""So many of those that hold most are split in the first scan."""

_MOVED_BYTES = 1 << 20
_MOVED_SHARE = 50  # a fiftieth
_NEAR_LIMIT = 0.8


@dataclass(slots=True)
class Container:
    """A container's cgroup: ``cgroup`` None when it went away while it was read; ``pids`` of its whole subtree. Treat
    it as frozen."""

    ref: ContainerRef
    path: str
    cgroup: MemoryCgroup | None
    pids: tuple[int, ...]


@dataclass(slots=True)
class _Known:
    """``split_at``: the usage when memory.stat was read. ``turn``: of the rotation, in which it is read completely."""

    cgroup: MemoryCgroup
    split_at: int | None
    turn: int
    settling: int = SETTLING


def pod_path(hierarchy: Hierarchy, ref: ContainerRef, path: str) -> str | None:
    """The topmost ancestor that is the container's pod; none where runtimes keep containers outside of their pods."""
    if ref.pod_uid is None:
        return None
    found = None
    for each in ancestors(path, hierarchy.root):
        pod = owners.parse_cgroup(each, hierarchy.root)
        if isinstance(pod, PodRef) and pod.pod_uid == ref.pod_uid:
            found = each
        elif found is not None:
            break
    return found


class ContainerTable:
    """What a caller may rely on with ``thrifty``, counted in scans:

    - Usage: always current.
    - Anonymous, file, shmem, kernel and swap (memory.stat): current where usage moved by 1 MiB and 2 % since they were
      read, and from 80 % of the limit on; else at most ``ROTATION`` scans old.
    - The limit: at most ``ROTATION`` scans old. Events, swappiness, limits of swap: ``SETTINGS_ROTATION``. All of it is
      current in the first scans of a container.
    - Of a pod without a limit nothing is known but that, at most ``ROTATION`` scans old.
    - In the first scan only these are read, and the split only of the ``SPLIT_FIRST`` that hold most, if more than
      1 MiB, and of what is half full; the cgroups are then not ``complete``.
    - Which containers there are: current for those with processes; an empty one is found by the second scan, and then
      within ``ROTATION`` scans.

    Without, everything is read each time.
    """

    def __init__(self, hierarchy: Hierarchy, *, thrifty: bool) -> None:
        self._hierarchy = hierarchy
        self._thrifty = thrifty
        self._scans = -1
        self._made = 0
        self._known: dict[str, _Known] = {}
        self._pod_of: dict[tuple[str, str | None], str | None] = {}
        self._before: dict[str, Container] = {}

    def scan(self, members: Mapping[str, Iterable[int]]) -> tuple[dict[str, Container], dict[str, MemoryCgroup]]:
        """Containers by id and the cgroups of their pods by path. ``members``: path in the hierarchy -> processes."""
        self._scans += 1
        if self._scans % FORGETTING == FORGETTING - 1:
            owners.forget()
        if self._thrifty and self._scans % ROTATION != 1:
            found = {container_id: (each.ref, each.path) for container_id, each in self._before.items()}
        else:
            found = self._walk()
        root = self._hierarchy.root
        pids: dict[str, Iterable[int]] = {}
        for path, its in members.items():
            ref = owners.parse_cgroup(path, root)
            if isinstance(ref, ContainerRef):
                container_id = ref.container_id
                if container_id not in found:
                    found[container_id] = (ref, self._top(path, ref))
                if container_id in pids:
                    pids[container_id] = sorted([*pids[container_id], *its])
                else:
                    pids[container_id] = its
        before, self._before = self._before, {}
        known, self._known = self._known, {}
        pod_of, self._pod_of = self._pod_of, {}
        containers: dict[str, Container] = {}
        pods: dict[str, MemoryCgroup] = {}
        for container_id, (ref, path) in found.items():
            cgroup = self._look(path, known.get(path))
            its_pids = tuple(pids.get(container_id, ()))
            old = before.get(container_id)
            if old is None or old.cgroup is not cgroup or old.pids != its_pids or old.path != path:
                old = Container(ref, path, cgroup, its_pids)
            containers[container_id] = old
            if cgroup is not None:
                self._before[container_id] = old
            place = path.rpartition("/")[0], ref.pod_uid  # the same for all containers of a pod
            if place in self._pod_of:
                continue
            pod = self._pod_of[place] = pod_of[place] if place in pod_of else pod_path(self._hierarchy, ref, path)
            if pod is not None and pod not in pods and (of_pod := self._look_at_pod(pod, known.get(pod))) is not None:
                pods[pod] = of_pod
        if self._hurried:
            self._split([*(each.cgroup for each in containers.values() if each.cgroup is not None), *pods.values()])
        return containers, pods

    def refresh(self, containers: Mapping[str, Container]) -> dict[str, Container]:
        """The same containers, without those that are gone, with usage current and the split as said above."""
        again: dict[str, Container] = {}
        for container_id, container in containers.items():
            if container.cgroup is None:
                continue
            known = self._known.get(container.path)
            if known is None:
                known = _Known(container.cgroup, None, 0)
            try:
                cgroup = self._update(container.path, known)
            except FileNotFoundError:
                continue
            if cgroup is not container.cgroup:
                container = Container(container.ref, container.path, cgroup, container.pids)
            again[container_id] = container
        return again

    def _walk(self) -> dict[str, tuple[ContainerRef, str]]:
        """Finds containers without processes, too."""
        root = self._hierarchy.root
        found: dict[str, tuple[ContainerRef, str]] = {}

        def stop(path: str) -> bool:
            """At a container, which needn't be looked into."""
            ref = owners.parse_cgroup(path, root)
            if not isinstance(ref, ContainerRef):
                return False
            found.setdefault(ref.container_id, (ref, path))
            return True

        for _ in self._hierarchy.walk(prune=stop):
            pass
        return found

    def _top(self, path: str, ref: ContainerRef) -> str:
        """A container may have its processes in cgroups that it made below its own."""
        root = self._hierarchy.root
        while path != root and owners.parse_cgroup(above := path.rpartition("/")[0] or "/", root) == ref:
            path = above
        return path

    def _look_at_pod(self, path: str, known: _Known | None) -> MemoryCgroup | None:
        """Without a limit there is nothing in a pod that its containers don't have."""
        if not self._thrifty or (known is not None and known.cgroup.limit_bytes is not None):
            return self._look(path, known)
        due = known is None or known.settling or self._scans % ROTATION == known.turn % ROTATION
        if due and self._hierarchy.limit(path) is not None:
            return self._look(path, None)
        if known is None:
            known = self._new(MemoryCgroup(path, False, None, None, None, None, None, None))
        known.settling = max(0, known.settling - 1)
        self._known[path] = known
        return known.cgroup

    def _look(self, path: str, known: _Known | None) -> MemoryCgroup | None:
        if self._hierarchy.memory_version is None:
            return None
        try:
            if known is None:
                known = self._new(self._glance(path) if self._hurried else self._hierarchy.read(path))
            elif not self._thrifty or known.settling or self._scans % SETTINGS_ROTATION == known.turn:
                known.cgroup = self._hierarchy.read(path)
                known.split_at = known.cgroup.usage_bytes
                known.settling = max(0, known.settling - 1)
            elif self._scans % ROTATION == known.turn % ROTATION:
                cheap = self._hierarchy.read(path, cheap=True)
                known.split_at = cheap.usage_bytes
                known.cgroup = _merged(known.cgroup, cheap, limit_bytes=self._hierarchy.limit(path))
            else:
                self._update(path, known)
        except FileNotFoundError:
            return None
        self._known[path] = known
        return known.cgroup

    def _new(self, cgroup: MemoryCgroup) -> _Known:
        self._made += 1
        return _Known(cgroup, cgroup.usage_bytes, self._made % SETTINGS_ROTATION)

    @property
    def _hurried(self) -> bool:
        """The first scan: hundreds are new, and what else there is to read comes next time."""
        return self._thrifty and self._scans == 0

    def _glance(self, path: str) -> MemoryCgroup:
        used, limit = self._hierarchy.usage_and_limit(path)
        return MemoryCgroup(path, False, used, None, None, None, None, None, limit)

    def _split(self, cgroups: Iterable[MemoryCgroup]) -> None:
        """What they are made of, where somebody may act on that."""
        by_usage = sorted(cgroups, key=lambda each: each.usage_bytes or 0, reverse=True)
        for at, each in enumerate(by_usage):
            used, limit = each.usage_bytes or 0, each.limit_bytes
            if not (at < SPLIT_FIRST and used > _MOVED_BYTES) and (limit is None or 2 * used < limit):
                continue
            try:
                cheap = self._hierarchy.read(each.path, cheap=True, usage=each.usage_bytes)
            except FileNotFoundError:
                continue
            each.anon_bytes, each.file_bytes, each.shmem_bytes = cheap.anon_bytes, cheap.file_bytes, cheap.shmem_bytes
            each.swap_usage_bytes, each.kernel_bytes = cheap.swap_usage_bytes, cheap.kernel_bytes

    def _update(self, path: str, known: _Known) -> MemoryCgroup:
        """Usage, and where it tells of a change what it is made of. The same object where nothing moved."""
        cgroup = known.cgroup
        used = self._hierarchy.usage(path)
        if _may_have_shifted(used, known.split_at, cgroup.limit_bytes):
            cheap = self._hierarchy.read(path, cheap=True)
            known.split_at = cheap.usage_bytes
            known.cgroup = _merged(cgroup, cheap, limit_bytes=cgroup.limit_bytes)
        elif used != cgroup.usage_bytes:
            known.cgroup = _merged(cgroup, cgroup, used=used, limit_bytes=cgroup.limit_bytes)
        return known.cgroup


def _may_have_shifted(used: int | None, then: int | None, limit: int | None) -> bool:
    """A container at its limit may turn page cache into shared memory while its usage stays."""
    if used is None or then is None:
        return True
    if limit is not None and used >= _NEAR_LIMIT * limit:
        return True
    return abs(used - then) > max(_MOVED_BYTES, then // _MOVED_SHARE)


def _merged(
    cgroup: MemoryCgroup, cheap: MemoryCgroup, *, limit_bytes: int | None, used: int | None = None
) -> MemoryCgroup:
    """``cgroup`` with the figures of a later cheap read; ``used``: with that usage instead of its own."""
    return MemoryCgroup(
        cgroup.path,
        cgroup.complete,
        cheap.usage_bytes if used is None else used,
        cheap.anon_bytes,
        cheap.file_bytes,
        cheap.shmem_bytes,
        cgroup.swap_usage_bytes if cheap.swap_usage_bytes is None else cheap.swap_usage_bytes,
        cgroup.kernel_bytes if cheap.kernel_bytes is None else cheap.kernel_bytes,
        limit_bytes,
        cgroup.high_bytes,
        cgroup.swap_limit_bytes,
        cgroup.memsw_limit_bytes,
        cgroup.oom_events,
        cgroup.oom_kill_events,
        cgroup.oom_group_kill_events,
        cgroup.oom_events_local,
        cgroup.oom_kill_events_local,
        cgroup.oom_group,
        cgroup.oom_kill_disable,
        cgroup.under_oom,
        cgroup.swappiness,
    )
