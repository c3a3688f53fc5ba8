"""What to do about what a report says: the command to run, or the page to read, for the largest parts."""

from nodemem.node.status import ReportStatus, TmpfsStatus

DOCS = "https://github.com/nodemem/nodemem/blob/main/docs"

NOTABLE_SHARE = 0.02
"""Of memory: what is smaller needs no step."""

_OBJECTS = {
    "sysv_bytes": "System V segments",
    "memfd_bytes": "memfds",
    "shared_anonymous_bytes": "shared anonymous memory",
    "deleted_open_bytes": "deleted files that are still held",
}


def next_steps(status: ReportStatus, node: str) -> list[str]:
    """The most pressing first. ``nodemem ...`` is to be run on the node."""
    notable = NOTABLE_SHARE * status.memory.total_bytes
    steps: list[str] = []
    for each in status.tmpfs[:2]:
        if (each.used_bytes or 0) >= notable:
            steps += _of_tmpfs(
                each, limited=any(limit.mount_point == each.mount_point for limit in status.limits or ())
            )
    for name, words in _OBJECTS.items():
        if (getattr(status.shmem, name) or 0) >= notable:
            steps.append(
                f"Who holds the {words}: 'nodemem report --all' on {node} names each object and its processes."
            )
    if max(status.memory.slab_unreclaimable_bytes, status.memory.vmalloc_bytes or 0) >= notable:
        steps.append(f"Which kernel objects, and who asked for them: 'nodemem meminfo --all' on {node}.")
    states = {each.state for each in status.limits or ()}
    if states & {"Failed", "Contested", "Deferred"}:
        names = sorted({each.policy for each in status.limits or () if each.policy})
        steps.append(f"The limits: kubectl nodemem policy {names[0]}" if names else "The limits are shown above.")
    if status.exposures or (status.summary is not None and status.summary.exposed):
        steps.append("Exposed pods in all of the cluster: kubectl nodemem exposed -A")
    return steps


def _of_tmpfs(tmpfs: TmpfsStatus, *, limited: bool) -> list[str]:
    owner, where = tmpfs.owner, tmpfs.mount_point or tmpfs.device
    if tmpfs.scope == "Host":
        steps = [f"See what is in it: 'nodemem tmpfs ls {where}' on the node; delete what nobody needs."]
        if not limited:
            steps.append(
                f"Limit {where} on every node where it may grow like this, with a TmpfsPolicy: {DOCS}/cap-run.md"
            )
        return steps
    if tmpfs.scope == "EmptyDir" and owner.pod_name:
        return [
            f"Give volume {owner.volume or 'of medium Memory'} of pod {owner.pod_namespace}/{owner.pod_name} a "
            "sizeLimit, or put it on disk (leave out medium: Memory)."
        ]
    if tmpfs.scope == "SharedMemory" and owner.pod_name:
        return [
            f"/dev/shm of pod {owner.pod_namespace}/{owner.pod_name}: kubectl exec -n {owner.pod_namespace}"
            f" {owner.pod_name} -- du -a /dev/shm; limit it with a TmpfsPolicy of scope SharedMemory."
        ]
    return []
