"""The memory controller's cgroups, on v1, v2 and hybrid hosts: where they are, what they hold, who is in them.

Paths are those of the hierarchy, as the kernel names them: ``/`` is its root, ``/kubepods/pod1/c1`` a container. Where
only a part of the hierarchy is mounted (a container without a cgroup namespace), they keep the full name and ``walk``
starts at that part. cgroups come and go while they are read: ``walk`` and ``scan`` leave out what vanished, ``read``
raises FileNotFoundError for it.

Cost: ``walk`` is one stat(2) for a cgroup without children and a directory listing for the others. ``usage`` reads one
file, ``read`` 2 when ``cheap``, 7 in full on v1 and 9 on v2.
"""

import errno
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from os import fsdecode, scandir, stat, strerror
from typing import Any, Literal

from nodemem.kernel.host import Host, Unreadable
from nodemem.kernel.mounts import Mount, parse_mountinfo

Version = Literal["v1", "v2", "hybrid"]

# A v1 limit that was never set reads as the largest page counter in bytes: just under 2^63 on 64-bit kernels, whatever
# the page size; 2^31 - 1 pages on 32-bit ones (include/linux/page_counter.h).
_V1_NO_LIMIT = 1 << 62
_V1_NO_LIMIT_32BIT = ((1 << 31) - 1) * 4096

# ENODEV: the cgroup was removed between open(2) and read(2).
_GONE = (errno.ENOENT, errno.ENODEV, errno.ENOTDIR)


@dataclass(slots=True)
class MemoryCgroup:
    """What one memory cgroup holds, its descendants included, and where its limits are. Treat it as frozen: making a
    frozen one takes three times as long, and there are hundreds in each scan.

    ``file_bytes`` includes ``shmem_bytes`` (as memory.stat does on both versions). ``limit_bytes`` is the cgroup's own;
    see ``Hierarchy.effective_limit``. None is: no limit, for the three limits; unknown to this kernel, for everything
    else. After a cheap read (``complete`` False) the fields below the line are None because they were not read.
    """

    path: str
    complete: bool
    usage_bytes: int | None
    """memory.current; None for the root of v2, which has no such file."""
    anon_bytes: int | None
    file_bytes: int | None
    shmem_bytes: int | None
    """tmpfs, System V, memfd and shared anonymous pages charged here, by whoever mounted them."""
    # --- only when complete, except where memory.stat has it
    swap_usage_bytes: int | None
    """v1: in memory.stat, so in cheap reads too. v2: memory.swap.current."""
    kernel_bytes: int | None
    """v1: memory.kmem.usage_in_bytes. v2: memory.stat, also in cheap reads; before 5.18 the sum of its known parts."""
    limit_bytes: int | None = None
    high_bytes: int | None = None
    """v2 memory.high: above it the cgroup is throttled, not killed."""
    swap_limit_bytes: int | None = None
    """v2 memory.swap.max."""
    memsw_limit_bytes: int | None = None
    """v1 memory.memsw.limit_in_bytes: memory and swap together."""
    oom_events: int | None = None
    """v2: how often the limit of this cgroup or of one below led to an OOM. v1 does not count it."""
    oom_kill_events: int | None = None
    """Processes killed: on v2 in this cgroup and below; on v1 (from 4.13) in this cgroup alone."""
    oom_group_kill_events: int | None = None
    oom_events_local: int | None = None
    """v2 (from 5.2): how often this cgroup's own limit led to an OOM."""
    oom_kill_events_local: int | None = None
    oom_group: bool | None = None
    """v2 memory.oom.group: an OOM kill takes the whole cgroup."""
    oom_kill_disable: bool | None = None
    """v1: the kernel does not kill; processes wait."""
    under_oom: bool | None = None
    swappiness: int | None = None
    """v1 memory.swappiness; v2 follows vm.swappiness."""


class _Table:
    """A file of ``name number`` lines. Of the fifty or so in memory.stat few are used: only these are looked for."""

    def __init__(self, data: bytes) -> None:
        self._data = b"\n" + data + b"\n"

    def get(self, name: bytes) -> int | None:
        """None where there is no such line, or no number in it."""
        data = self._data
        at = data.find(b"\n" + name + b" ")
        if at < 0:
            return None
        word = data[at + len(name) + 2 : data.find(b"\n", at + 1)]
        return int(word) if _is_number(word) else None


class Hierarchy:
    """The cgroup tree that the memory controller of one host is bound to. Made by ``discover``.

    ``version`` is the host's layout; ``memory_version`` says which of the two holds the memory controller, and so
    which files there are. Both are None when no memory hierarchy can be reached.
    """

    def __init__(
        self,
        host: Host,
        version: Version | None,
        memory_version: Literal["v1", "v2"] | None,
        directory: str,
        shown_root: str,
        problems: list[Unreadable],
    ) -> None:
        self.host = host
        self.version = version
        self.memory_version = memory_version
        self.directory = directory
        """Where the mount's root is reached."""
        self.shown_root = shown_root
        """The mount's root as mountinfo shows it to this reader: ``/..`` when it is above the reader's namespace."""
        self._usage_name = "memory.usage_in_bytes" if memory_version == "v1" else "memory.current"
        self._limit_name = "memory.limit_in_bytes" if memory_version == "v1" else "memory.max"
        self._prefix = "" if _goes_up(shown_root) else shown_root.rstrip("/")
        self._problems = problems
        self._denied: Counter[str] = Counter()
        self._own: list[str] | None = None
        self._own_known = False

    @property
    def root(self) -> str:
        """The topmost path that ``walk`` gives."""
        return self._prefix or "/"

    @property
    def unreadable(self) -> list[Unreadable]:
        """What ``discover`` and the reads since then had to do without."""
        denied = [Unreadable(f"cgroup file {name}", "permission denied", n) for name, n in sorted(self._denied.items())]
        return self._problems + denied

    def walk(self, top: str | None = None, *, prune: Callable[[str], bool] | None = None) -> Iterator[str]:
        """Paths below and including ``top``, parents first, siblings in order of creation as far as it can be seen.

        The kernel's memcg OOM scan goes through siblings in the order of their creation. What shows it is the inode
        number: since 4.14 kernfs hands them out in a cycle, since 5.5 in 64 bits, so that they never repeat
        (fs/kernfs/dir.c). Before, or after 2^31 nodes, the order of siblings is a guess. ``prune`` returning True
        leaves out a path and all below it.
        """
        if self.memory_version is None:
            return
        stack = [self.root if top is None or top == "/" else top]
        while stack:
            path = stack.pop()
            if prune is not None and prune(path):
                continue
            try:
                children = self._children(self._place(path))
            except OSError as error:
                if error.errno not in _GONE:
                    self._denied["(directory)"] += 1
                    yield path
                continue
            yield path
            start = "" if path == "/" else path
            stack.extend(f"{start}/{name}" for name in reversed(children))

    def read(self, path: str, *, cheap: bool = False, usage: int | None = None) -> MemoryCgroup:
        """The memory of one cgroup; ``cheap`` reads usage and memory.stat only. ``usage``: as just read.

        A v2 cgroup that the memory controller is not enabled for has None everywhere: its memory is counted in the
        nearest ancestor. Raises FileNotFoundError when the cgroup is gone.
        """
        place = self._place(path)
        table = self._read(place, "memory.stat")
        if table is None:
            self._must_exist(place)
        stat_values = _Table(table or b"")
        if self.memory_version == "v1":
            return self._read_v1(path, place, stat_values, cheap, usage)
        return self._read_v2(path, place, stat_values, cheap, usage)

    def usage(self, path: str) -> int | None:
        """``usage_bytes`` alone. Raises FileNotFoundError when the cgroup is gone."""
        return self._usage(self._place(path))

    def limit(self, path: str) -> int | None:
        """``limit_bytes`` alone; None also where it can't be read, or the cgroup is gone."""
        return self._limit(self._place(path))

    def usage_and_limit(self, path: str) -> tuple[int | None, int | None]:
        """Both at once. Raises FileNotFoundError when the cgroup is gone."""
        place = self._place(path)
        return self._usage(place), self._limit(place)

    def _usage(self, place: str) -> int | None:
        try:
            return int(self.host.read_small(f"{place}/{self._usage_name}"))
        except (OSError, ValueError):
            pass  # the slow way knows why
        used = self._number(place, self._usage_name)
        if used is None:
            self._must_exist(place)
        return used

    def _limit(self, place: str) -> int | None:
        limit = self._number(place, self._limit_name)
        return _v1_limit(limit) if self.memory_version == "v1" else limit

    def scan(
        self, top: str | None = None, *, prune: Callable[[str], bool] | None = None, cheap: bool = False
    ) -> dict[str, MemoryCgroup]:
        """``read`` of everything that ``walk`` finds and that is still there."""
        cgroups = {}
        for path in self.walk(top, prune=prune):
            try:
                cgroups[path] = self.read(path, cheap=cheap)
            except FileNotFoundError:
                continue
        return cgroups

    def effective_limit(self, path: str) -> int | None:
        """The smallest limit among the cgroup's own and those of its ancestors; None if there is none.

        v1: one read, and ancestors outside of the mount count too. v2: one read for each level that can be seen.
        Raises FileNotFoundError when the cgroup is gone.
        """
        if self.memory_version == "v1":
            data = self._read(self._place(path), "memory.stat")
            if data is None:
                self._must_exist(self._place(path))
            return _v1_limit(_Table(data or b"").get(b"hierarchical_memory_limit"))
        self._must_exist(self._place(path))
        limits = [self._number(self._place(each), "memory.max") for each in (path, *ancestors(path, self.root))]
        return min((limit for limit in limits if limit is not None), default=None)

    def procs(self, path: str) -> list[int]:
        """The processes in exactly this cgroup; none when it is gone or threaded.

        Processes outside of the reader's pid namespace have no number and are left out.
        """
        data = self._read(self._place(path), "cgroup.procs", large=True)
        return [int(word) for word in (data or b"").split() if _is_number(word) and word != b"0"]

    def subtree_procs(self, path: str) -> list[int]:
        """The processes in this cgroup and all below it, in the order of ``walk``."""
        return [pid for each in self.walk(path) for pid in self.procs(each)]

    def path_of(self, proc_cgroup: bytes) -> str | None:
        """The path in this hierarchy of the process whose /proc/<pid>/cgroup is given; None if it is outside."""
        shown = _shown_path(proc_cgroup, self.memory_version)
        return None if shown is None else self.resolve(shown)

    def resolve(self, shown: str) -> str | None:
        """A path as /proc/<pid>/cgroup shows it to this reader -> the path in this hierarchy, None if it is outside.

        The kernel shows paths relative to the reader's cgroup namespace: an agent in a container of its own namespace
        sees ``/../../system.slice/x.service``. Where the names that the dots stand for are needed, they are found once,
        by looking for the reader's own process in the hierarchy.
        """
        root = self.shown_root.rstrip("/")
        if shown == root or shown.startswith(f"{root}/"):
            inside = shown[len(root) :]
            return None if _goes_up(inside) else f"{self._prefix}{inside}" or "/"
        if not _goes_up(root):
            return None
        own = self._own_namespace()
        parts = [part for part in shown.split("/") if part]
        ups = next((n for n, part in enumerate(parts) if part != ".."), len(parts))
        if own is None or ups > len(own):
            return None
        return "/" + "/".join(own[: len(own) - ups] + parts[ups:])

    def _own_namespace(self) -> list[str] | None:
        if not self._own_known:
            self._own_known = True
            self._own = self._find_own_namespace()
        return self._own

    def _find_own_namespace(self) -> list[str] | None:
        try:
            pid = int(self.host.readlink(f"{self.host.proc}/self"))
            data = self.host.read(f"{self.host.proc}/self/cgroup")
        except (OSError, ValueError) as error:
            self._problems.append(Unreadable("this process's cgroup", str(error)))
            return None
        inside = [part for part in (_shown_path(data, self.memory_version) or "").split("/") if part]
        for path in self.walk():
            if pid in self.procs(path):
                names = [part for part in path.split("/") if part]
                if ".." in inside or names[len(names) - len(inside) :] != inside:
                    return None
                return names[: len(names) - len(inside)]
        return None

    def _place(self, path: str) -> str:
        if "/.." in path and "/../" in f"{path}/":
            raise FileNotFoundError(errno.ENOENT, "outside of the mounted cgroups", path)
        if path == self.root:
            return self.directory
        if self._prefix and not path.startswith(f"{self._prefix}/"):
            raise FileNotFoundError(errno.ENOENT, "outside of the mounted cgroups", path)
        return self.directory + path[len(self._prefix) :]

    def _children(self, place: str) -> list[str]:
        """Names of the child cgroups, by inode number."""
        try:
            found = self.host.observe(f"child cgroups of {place}", lambda: _subdirectories(place))
        except FileNotFoundError:
            if self.host.live:
                raise
            return self._children_by_listing(place)
        return [str(name) for _, name in found]

    def _children_by_listing(self, place: str) -> list[str]:
        """For a capture that is a plain copy of the files, where creation order is lost: by name."""
        names = []
        for name in sorted(self.host.listdir(place)):
            try:
                self.host.listdir(f"{place}/{name}")
            except OSError:
                continue
            names.append(name)
        return names

    def _read(self, place: str, name: str, *, large: bool = False) -> bytes | None:
        """None: there is no such file (or no longer), or it may not be read, which is counted."""
        path = f"{place}/{name}"
        try:
            if large:
                return self.host.read(path)
            data = self.host.read_small(path)
            return data if len(data) < 4095 else self.host.read(path)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:  # cgroup.procs of a threaded cgroup
                return b""
            if error.errno not in _GONE:
                self._denied[name] += 1
            return None

    def _must_exist(self, place: str) -> None:
        """Raises FileNotFoundError for a cgroup that is gone, rather than one that lacks a file."""
        try:
            self.host.read_small(f"{place}/cgroup.procs")
        except OSError as error:
            if error.errno in _GONE:
                raise FileNotFoundError(errno.ENOENT, strerror(errno.ENOENT), place) from error

    def _number(self, place: str, name: str) -> int | None:
        data = self._read(place, name)
        if data is None or not _is_number(word := data.strip()):  # v2 prints "max" where there is no limit
            return None
        return int(word)

    def _read_v1(self, path: str, place: str, table: _Table, cheap: bool, usage: int | None) -> MemoryCgroup:
        # total_* sums up the subtree; kernels always print them (mm/memcontrol-v1.c, memcg_stat_show).
        usage = self._number(place, self._usage_name) if usage is None else usage
        anon, file = table.get(b"total_rss"), table.get(b"total_cache")
        shmem, swap = table.get(b"total_shmem"), table.get(b"total_swap")
        if cheap:
            return MemoryCgroup(path, False, usage, anon, file, shmem, swap, None)
        oom = _Table(self._read(place, "memory.oom_control") or b"")
        return MemoryCgroup(
            path,
            True,
            usage,
            anon,
            file,
            shmem,
            swap,
            self._number(place, "memory.kmem.usage_in_bytes"),
            limit_bytes=_v1_limit(self._number(place, "memory.limit_in_bytes")),
            memsw_limit_bytes=_v1_limit(self._number(place, "memory.memsw.limit_in_bytes")),
            oom_kill_events=oom.get(b"oom_kill"),
            oom_kill_events_local=oom.get(b"oom_kill"),
            oom_kill_disable=_flag(oom.get(b"oom_kill_disable")),
            under_oom=_flag(oom.get(b"under_oom")),
            swappiness=self._number(place, "memory.swappiness"),
        )

    def _read_v2(self, path: str, place: str, table: _Table, cheap: bool, usage: int | None) -> MemoryCgroup:
        usage = self._number(place, self._usage_name) if usage is None else usage
        anon, file, shmem = table.get(b"anon"), table.get(b"file"), table.get(b"shmem")
        kernel = table.get(b"kernel")
        if kernel is None:
            parts = [value for key in _V2_KERNEL_PARTS if (value := table.get(key)) is not None]
            kernel = sum(parts) if parts else None
        if cheap:
            return MemoryCgroup(path, False, usage, anon, file, shmem, None, kernel)
        events = _Table(self._read(place, "memory.events") or b"")
        local = _Table(self._read(place, "memory.events.local") or b"")
        return MemoryCgroup(
            path,
            True,
            usage,
            anon,
            file,
            shmem,
            self._number(place, "memory.swap.current"),
            kernel,
            limit_bytes=self._number(place, "memory.max"),
            high_bytes=self._number(place, "memory.high"),
            swap_limit_bytes=self._number(place, "memory.swap.max"),
            oom_events=events.get(b"oom"),
            oom_kill_events=events.get(b"oom_kill"),
            oom_group_kill_events=events.get(b"oom_group_kill"),
            oom_events_local=local.get(b"oom"),
            oom_kill_events_local=local.get(b"oom_kill"),
            oom_group=_flag(self._number(place, "memory.oom.group")),
        )


# What "kernel" (5.18) is the total of, as far as older kernels print it; sock is not in it (mm/memcontrol.c).
_V2_KERNEL_PARTS = (b"kernel_stack", b"pagetables", b"sec_pagetables", b"percpu", b"vmalloc", b"slab")


def discover(host: Host) -> Hierarchy:
    """The memory hierarchy as the host's init sees it, else as this process does; ``version`` None if neither helps.

    Init's mounts come first, so that an agent in a container (with the host's pid namespace) sees every cgroup of the
    node and not only its own.
    """
    problems: list[Unreadable] = []
    of_init: list[Mount] = []
    for who in ("1", "self"):
        try:
            data = host.read(f"{host.proc}/{who}/mountinfo")
        except OSError as error:
            problems.append(Unreadable(f"/proc/{who}/mountinfo", error.strerror or str(error)))
            continue
        mounts = [mount for mount in parse_mountinfo(data) if mount.fstype in ("cgroup", "cgroup2")]
        if who == "1":
            of_init = mounts
        for mount in sorted(mounts, key=_whole_trees_first):
            directory = _reach(host, who, mount, problems)
            if directory is None:
                continue
            kinds = {each.fstype for each in mounts}
            version: Version = "hybrid" if len(kinds) == 2 else "v1" if mount.fstype == "cgroup" else "v2"
            # The same mount, reached another way: nothing is missing.
            lost = [] if who == "self" and mount in of_init else problems
            return Hierarchy(
                host, version, "v1" if mount.fstype == "cgroup" else "v2", directory, mount.root, list(lost)
            )
    problems.append(Unreadable("memory cgroups", "no cgroup filesystem with the memory controller is mounted here"))
    return Hierarchy(host, None, None, "", "/", problems)


def ancestors(path: str, root: str = "/") -> list[str]:
    """The cgroups above ``path``, nearest first, down to and including ``root``."""
    found = []
    while path not in (root, "/"):
        path = path.rpartition("/")[0] or "/"
        found.append(path)
    return found


def effective_limits(cgroups: Mapping[str, MemoryCgroup]) -> dict[str, int | None]:
    """For each cgroup of a full ``scan`` the smallest limit on the way up, as far as the scan went."""
    limits: dict[str, int | None] = {}
    for path in sorted(cgroups, key=lambda path: path.count("/") if path != "/" else 0):
        above = next((limits[each] for each in ancestors(path) if each in limits), None)
        own = cgroups[path].limit_bytes
        limits[path] = min((limit for limit in (own, above) if limit is not None), default=None)
    return limits


def _whole_trees_first(mount: Mount) -> bool:
    return mount.root != "/" and not _goes_up(mount.root)


def _reach(host: Host, who: str, mount: Mount, problems: list[Unreadable]) -> str | None:
    """The directory of a cgroup mount, if the memory controller is in it and it is not hidden by a later mount."""
    if mount.fstype == "cgroup" and "memory" not in mount.super_options.split(","):
        return None
    starts = [f"{host.proc}/{who}/root"]
    if who == "self" or not host.live:  # a capture may be a plain copy of a machine's files
        starts.append(host.proc.removesuffix("/proc"))
    for start in starts:
        directory = f"{start}{mount.path}".rstrip("/")
        try:
            if mount.fstype == "cgroup":
                host.read_small(f"{directory}/memory.stat")
            elif b"memory" not in host.read_small(f"{directory}/cgroup.controllers").split():
                return None
        except OSError as error:
            if error.errno not in _GONE:
                problems.append(Unreadable(f"{mount.path} as process {who} sees it", strerror(error.errno or 0)))
            continue
        try:
            if host.stat(directory).device != mount.device:
                continue
        except OSError:  # not in a capture made by hand
            pass
        return directory
    return None


def _goes_up(shown: str) -> bool:
    return shown == "/.." or shown.startswith("/../")


def _shown_path(proc_cgroup: bytes, memory_version: str | None) -> str | None:
    """The memory controller's line of a /proc/<pid>/cgroup."""
    for line in proc_cgroup.split(b"\n"):
        number, _, rest = line.partition(b":")
        controllers, separator, path = rest.partition(b":")
        if separator and (
            b"memory" in controllers.split(b",") if memory_version == "v1" else number == b"0" and not controllers
        ):
            return fsdecode(path).removesuffix(" (deleted)")
    return None


def _subdirectories(place: str) -> list[Any]:
    # A cgroup directory has a link for each child beside its own two: no need to list the files of a leaf.
    if stat(place).st_nlink == 2:
        return []
    with scandir(place) as entries:
        return sorted([entry.inode(), entry.name] for entry in entries if entry.is_dir(follow_symlinks=False))


def _v1_limit(value: int | None) -> int | None:
    return None if value is None or value >= _V1_NO_LIMIT or value == _V1_NO_LIMIT_32BIT else value


def _flag(value: int | None) -> bool | None:
    return None if value is None else value != 0


def _is_number(word: bytes) -> bool:
    return word.isdigit() and len(word) <= 20
