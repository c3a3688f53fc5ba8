"""/proc/<pid>/mountinfo: its lines, and which of its mounts a path look-up reaches. Data in, data out."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from sys import intern
from typing import Any, NamedTuple

_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")
MEMORY_FILESYSTEMS = (b"tmpfs", b"devtmpfs", b"rootfs")

# Filesystems whose directories the kernel looks up without asking anybody outside it. All others may hang.
LOCAL = frozenset(
    b"tmpfs devtmpfs rootfs ramfs overlay aufs ext2 ext3 ext4 xfs btrfs bcachefs zfs f2fs jfs reiserfs nilfs2 squashfs "
    b"erofs cramfs romfs iso9660 udf vfat msdos exfat ntfs3 hfsplus minix ubifs jffs2 proc sysfs cgroup cgroup2 devpts "
    b"mqueue hugetlbfs securityfs debugfs tracefs bpf pstore configfs efivarfs binfmt_misc selinuxfs smackfs fusectl "
    b"nsfs resctrl rpc_pipefs nfsd bdev".split()
)


_MOST_DIGITS = 40  # of two ids of 64 bits


class Mount(NamedTuple):
    """One line of /proc/<pid>/mountinfo (proc(5)), unescaped. ``path`` is the mount point below the reader's root."""

    mount_id: int
    parent_id: int
    device: str
    root: str
    path: str
    options: str
    propagation: str
    fstype: str
    source: str
    super_options: str


def unescape(data: bytes) -> str:
    """A field of mountinfo: the kernel writes space, tab, newline and backslash as three octal digits."""
    if b"\\" in data:
        data = _OCTAL.sub(lambda match: bytes((int(match[1], 8),)), data)
    return os.fsdecode(data)


def parse_mountinfo(data: bytes, broken: list[bytes] | None = None) -> Iterator[Mount]:
    """The mounts in the kernel's order. Lines of another form are passed over, and appended to ``broken``."""
    for line in data.split(b"\n"):
        if not line:
            continue
        fields = split_line(line)
        if fields is None:
            if broken is not None:
                broken.append(line)
            continue
        head, tail = fields
        yield Mount(
            int(head[0]),
            int(head[1]),
            head[2].decode("ascii"),
            unescape(head[3]),
            unescape(head[4]),
            os.fsdecode(head[5]),
            os.fsdecode(b" ".join(head[6:])),
            unescape(tail[0]),
            unescape(tail[1]),
            os.fsdecode(b" ".join(tail[2:])),
        )


def _is_device(text: bytes) -> bool:
    major, _, minor = text.partition(b":")
    return major.isdigit() and minor.isdigit()


def split_line(line: bytes) -> tuple[list[bytes], list[bytes]] | None:
    before, _, after = line.partition(b" - ")
    head = before.split(b" ")
    tail = after.split(b" ")
    if len(head) < 6 or len(tail) < 2:
        return None
    if not (head[0].isdigit() and head[1].isdigit() and _is_device(head[2])):
        return None
    if len(head[0]) > 20 or len(head[1]) > 20:
        return None
    return head, tail


class Words(NamedTuple):
    """What a line of mountinfo says but its ids and its device, as strings."""

    fstype: str
    source: str
    super_options: str
    path: str
    root: str
    options: str


_new_words: Callable[[Iterable[str]], Words] = partial(tuple.__new__, Words)


@dataclass(slots=True)
class Line:
    """A line of mountinfo from the root on: alike in many namespaces, and read once for all of them.

    ``path`` is still escaped. ``words``: of the filesystems in memory only. ``spot``: the same number for lines that
    look-ups treat alike.
    """

    path: bytes
    fstype: bytes
    words: Words | None
    spot: int


Row = tuple[bytes, bytes, bytes, Line]
"""Mount id, parent id, device, and the rest of the line."""


Looks = Sequence[tuple[int, bool, str | None]]
"""The rows that have ``words``, by number: hidden, what on the way may hang."""


class Lines(dict[bytes, Line | None]):
    """What was read of each line from the root on; None: not in the format.

    Containers are alike: each has devices of its own at the same places. ``looks``: where look-ups end among mounts at
    the same spots, each on the same other one.
    """

    def __init__(self) -> None:
        self.looks: dict[Any, Looks] = {}
        self._spots: dict[tuple[bytes, bytes, bool], int] = {}

    def __missing__(self, rest: bytes) -> Line | None:
        self[rest] = line = self._parse(rest)
        return line

    def _parse(self, rest: bytes) -> Line | None:
        head, _, tail = rest.partition(b" - ")
        fields = head.split(b" ", 3)
        fstype, space, _ = tail.partition(b" ")
        if len(fields) < 3 or not space:
            return None
        root, path = fields[:2]
        in_memory = fstype in MEMORY_FILESYSTEMS or (fstype == b"nsfs" and root.startswith(b"mnt:["))
        words = _words(rest) if in_memory else None
        spots = self._spots
        return Line(path, fstype, words, spots.setdefault((path, fstype, in_memory), len(spots)))


def _words(rest: bytes) -> Words:
    head, _, tail = os.fsdecode(rest).partition(" - ")
    root, path, options = head.split(" ", 3)[:3]
    fstype, _, tail = tail.partition(" ")
    source, _, super_options = tail.partition(" ")
    if b"\\" in rest:
        root, path, source = (unescape(os.fsencode(each)) for each in (root, path, source))
    # Interned, since there are hundreds from scan to scan with the same few strings.
    return _new_words(map(intern, (fstype, source, super_options, path, root, options)))


def parse_rows(data: bytes, lines: Lines) -> tuple[list[Row], int]:
    """The same as ``parse_mountinfo`` with nothing converted, and the number of broken lines.

    The device is looked at only in lines that have ``words``: nobody uses the others'.
    ``lines`` spares the parsing of what another namespace had: give the same one for all of them.
    """
    rows: list[Row] = []
    broken = 0
    for text in data.split(b"\n"):
        try:
            mount_id, parent_id, device, rest = text.split(b" ", 3)
        except ValueError:
            broken += bool(text)
            continue
        line = lines[rest]
        if (
            line is not None
            and mount_id.isdigit()
            and parent_id.isdigit()
            and len(mount_id) + len(parent_id) <= _MOST_DIGITS
            and (line.words is None or _is_device(device))
        ):
            rows.append((mount_id, parent_id, device, line))
        else:
            broken += 1
    return rows, broken


def look_at_rows(rows: Sequence[Row], lines: Lines, trusted_root: bool) -> Looks:
    """Where look-ups end, for the rows that have ``words``; found once for namespaces that are alike in it."""
    number = {row[0]: at for at, row in enumerate(rows)}
    shape = (trusted_root, *[row[3].spot for row in rows], *[number.get(row[1]) for row in rows])
    looks = lines.looks.get(shape)
    if looks is None or len(number) != len(rows):
        looks = lines.looks[shape] = _look(rows, trusted_root)
    return looks


def _look(rows: Sequence[Row], trusted_root: bool) -> Looks:
    looks: list[tuple[int, bool, str | None]] = []
    quick = QuickLook(rows, trusted_root)
    tree: MountTree | None = None
    for at, (mount_id, _, _, line) in enumerate(rows):
        if line.words is None:
            continue
        seen = quick.look(mount_id)
        if seen is None:
            tree = tree or _tree(rows, trusted_root)
            seen = tree.look(int(mount_id))
        looks.append((at, *seen))
    return looks


def _tree(rows: Sequence[Row], trusted_root: bool) -> "MountTree":
    tree = MountTree(trusted_root)
    for mount_id, parent_id, _, line in rows:
        tree.add(int(mount_id), MountNode(int(parent_id), line.path, line.fstype))
    return tree


class MountNode(NamedTuple):
    """A mount as far as look-ups need it; the path still escaped."""

    parent_id: int
    path: bytes
    fstype: bytes


class MountTree:
    """Which mounts a path look-up from the processes' root reaches. Linear in mounts times path depth.

    A look-up that arrives at a mount goes on to whatever is mounted on its root, except at the starting point itself: a
    mount over "/" is not entered by processes whose root is below it.
    """

    def __init__(self, trusted_root: bool = False) -> None:
        self.nodes: dict[int, MountNode] = {}
        self.children: dict[int, dict[bytes, int]] = {}
        self._known: dict[int, tuple[bool, str | None]] = {}
        self._trusted_root = trusted_root

    def add(self, mount_id: int, node: MountNode) -> None:
        self.nodes[mount_id] = node
        if node.parent_id != mount_id:
            self.children.setdefault(node.parent_id, {})[node.path] = mount_id

    def _is_root(self, mount_id: int) -> bool:
        node = self.nodes[mount_id]
        return node.path == b"/" and (node.parent_id == mount_id or node.parent_id not in self.nodes)

    def _chain(self, mount_id: int) -> list[int]:
        """The mount and the mounts it is on, root last. Cut where a torn mountinfo makes a circle."""
        chain: list[int] = []
        seen: set[int] = set()
        while mount_id in self.nodes and mount_id not in seen:
            seen.add(mount_id)
            chain.append(mount_id)
            mount_id = self.nodes[mount_id].parent_id
        return chain

    def _blocker(self, mount_id: int) -> int | None:
        """What a look-up enters instead, on the step from the parent to this mount. Itself: no look-up leads here."""
        node = self.nodes[mount_id]
        parent = self.nodes.get(node.parent_id)
        if parent is None or node.parent_id == mount_id:
            start = b"/"
        else:
            start = parent.path
            if node.path == start:
                return mount_id if self._is_root(node.parent_id) else None
        siblings = self.children.get(node.parent_id, {})
        if parent is not None and not self._is_root(node.parent_id) and start in siblings:
            return siblings[start]
        if len(siblings) > 1:
            position = node.path.find(b"/", len(start) + 1 if start != b"/" else 1)
            while position > 0:
                blocker = siblings.get(node.path[:position])
                if blocker is not None:
                    return blocker
                position = node.path.find(b"/", position + 1)
        return None

    def _reach(self, mount_id: int) -> tuple[bool, str | None]:
        """(whether a look-up arrives at the mount, what on the way may hang)."""
        todo: list[int] = []  # no recursion: a thousand mounts may be stacked on one path
        step = mount_id
        seen: set[int] = set()
        while step not in self._known and step in self.nodes and step not in seen:
            seen.add(step)
            todo.append(step)
            step = self.nodes[step].parent_id
        for step in reversed(todo):
            node = self.nodes[step]
            parent = self.nodes.get(node.parent_id)
            if parent is None or node.parent_id == step:
                reached = node.path == b"/" or self._blocker(step) is None
                behind = None if node.path == b"/" else "a file system outside of the process's root"
            else:
                above, behind = self._known.get(node.parent_id, (False, None))
                reached = above and self._blocker(step) is None
                if behind is None and parent.fstype not in LOCAL:
                    trusted = self._trusted_root and self._is_root(node.parent_id)
                    behind = None if trusted else f"{unescape(parent.fstype)} at {unescape(parent.path)}"
            self._known[step] = (reached, behind)
        return self._known.get(mount_id, (False, None))

    def look(self, mount_id: int) -> tuple[bool, str | None]:
        """(hidden, what on the way may hang)."""
        reached, behind = self._reach(mount_id)
        covered = self.nodes[mount_id].path in self.children.get(mount_id, ()) and not self._is_root(mount_id)
        return not reached or covered, behind

    def cover(self, mount_id: int) -> int | None:
        """The topmost mount that has to go next so that a hidden one comes to light; None where that can't be done."""
        for step in reversed(self._chain(mount_id)):
            blocker = self._blocker(step)
            if blocker == step:
                return None
            if blocker is not None:
                return self._top(blocker)
        top = self._top(mount_id)
        return None if top == mount_id else top

    def _top(self, mount_id: int) -> int:
        seen = {mount_id}
        while (
            above := self.children.get(mount_id, {}).get(self.nodes[mount_id].path)
        ) is not None and above not in seen:
            seen.add(above)
            mount_id = above
        return mount_id

    def carriers(self, mount_ids: Iterable[int]) -> dict[int, int]:
        """For each mount that one of these is on, directly or not: one of them. Linear in the mounts passed."""
        found: dict[int, int] = {}
        for mount_id in mount_ids:
            below = self.nodes[mount_id].parent_id
            while below in self.nodes and below not in found:
                found[below] = mount_id
                below = self.nodes[below].parent_id
        return found


_UNSURE = b""
_DEEP = 64


class QuickLook:
    """``MountTree.look`` where the answer is plain, in a tenth of the time: every mount on the way is the only one at
    its path, or the top of a stack, and its parent is the next one above. That is almost every mount of a container."""

    def __init__(self, rows: Sequence[Row], trusted_root: bool = False) -> None:
        self._rows = {row[0]: row for row in rows}
        self._torn = len(self._rows) != len(rows)
        self._trusted_root = trusted_root
        self._at = {line.path: mount_id for mount_id, _, _, line in rows}
        self._known: dict[bytes, tuple[str | None] | None] = {}
        if len(self._at) == len(rows):
            return
        stacks: dict[bytes, set[bytes]] = {}
        for mount_id, _, _, line in rows:
            if self._at[line.path] != mount_id:
                stacks.setdefault(line.path, {self._at[line.path]}).add(mount_id)
        for path, stack in stacks.items():
            self._at[path] = _UNSURE if path == b"/" else self._top(stack)

    def _top(self, stack: set[bytes]) -> bytes:
        below = {parent for each in stack if (parent := self._rows[each][1]) in stack}
        tops = stack - below
        # One on the other, in a single line: each but the lowest has its parent in the stack, and no two the same one.
        return tops.pop() if len(tops) == 1 and len(below) == len(stack) - 1 and len(stack) < _DEEP else _UNSURE

    def look(self, mount_id: bytes) -> tuple[bool, str | None] | None:
        """(hidden, what on the way may hang); None: ask a ``MountTree``."""
        path = self._rows[mount_id][3].path
        if self._torn or path.count(b"/") > _DEEP:
            return None
        way = self._way(mount_id)
        return None if way is None else (self._at[path] != mount_id, way[0])

    def _way(self, mount_id: bytes) -> tuple[str | None] | None:
        """What may hang on a way that leads here; None where it isn't plain that one does."""
        if mount_id not in self._known:
            self._known[mount_id] = None  # what a torn mountinfo's circle comes back to
            self._known[mount_id] = self._find_way(mount_id)
        return self._known[mount_id]

    def _find_way(self, mount_id: bytes) -> tuple[str | None] | None:
        _, parent_id, _, line = self._rows[mount_id]
        path, at = line.path, self._at
        if at[path] == _UNSURE:
            return None
        parent = self._rows.get(parent_id)
        if path == b"/":
            return (None,) if parent is None or parent_id == mount_id else None
        if parent is None:
            return None
        if parent[3].path != path:
            above = path
            while True:
                above = above[: above.rfind(b"/")] or b"/"
                if above in at:
                    break
                if above == b"/":
                    return None
            if at[above] != parent_id:
                return None
        way = self._way(parent_id)
        if way is None or way[0] is not None or parent[3].fstype in LOCAL:
            return way
        if self._trusted_root and parent[3].path == b"/":
            return way
        return (f"{unescape(parent[3].fstype)} at {unescape(parent[3].path)}",)
