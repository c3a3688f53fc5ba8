"""As much of a snapshot as reclaim looks at."""

from types import SimpleNamespace
from typing import Any


def snapshot(*mount_points: str) -> Any:
    """The host has a tmpfs at each of these."""
    points = [SimpleNamespace(path=path, namespace=1, hidden=False) for path in mount_points]
    superblock = SimpleNamespace(fstype="tmpfs", mounts=points, used_bytes=0)
    mounts = SimpleNamespace(superblocks={"0:25": superblock}, pids={1: (1,)})
    return SimpleNamespace(mounts=mounts, host_namespace=1)
