"""What is in the way of an OOM experiment here, found without changing anything; and where its cgroup would go."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from nodemem.kernel import meminfo, oom
from nodemem.kernel.cgroups import Hierarchy, ancestors, discover
from nodemem.kernel.host import Host
from nodemem.kernel.labplan import LabError, Plan

TMPFS = "/dev/shm"
_INIT_PID_NAMESPACE = 0xEFFFFFFC  # include/linux/proc_ns.h, PROC_PID_INIT_INO


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Something this process may not do or this machine does not have, and what would help."""

    what: str
    remedy: str


def obstacles(plan: Plan, host: Host) -> list[Obstacle]:
    """Everything that would stop the experiment half way, found without changing anything."""
    found = []
    lowest = min(program.oom_score_adj for program in plan.programs)
    if not _may_set_adj(lowest):
        own = int(host.read_small(f"{host.proc}/self/oom_score_adj"))
        found.append(
            Obstacle(
                f"oom_score_adj {lowest}: this process is at {own} and lacks CAP_SYS_RESOURCE, without which no lower "
                "one can be given",
                f"run with CAP_SYS_RESOURCE, or give values from {own} up (scenario 'plain')",
            )
        )
    memory = meminfo.parse(host.read(f"{host.proc}/meminfo"))
    if plan.tmpfs_bytes:
        try:
            usage = host.statvfs(TMPFS)
            free = usage.size_bytes - usage.used_bytes
            if usage.size_bytes and free < plan.tmpfs_bytes:
                found.append(Obstacle(f"{TMPFS} has {free} bytes free of {plan.tmpfs_bytes}", "a larger /dev/shm"))
        except OSError as error:
            found.append(Obstacle(f"{TMPFS}: {error.strerror}", "mount a tmpfs there"))
    if knob(host, "panic_on_oom") == 2 or (plan.limit_bytes is None and knob(host, "panic_on_oom")):
        found.append(Obstacle("vm.panic_on_oom: this OOM would stop the machine", "sysctl vm.panic_on_oom=0"))
    hierarchy = discover(host)
    if plan.limit_bytes is None:
        return found + _obstacles_to_global(hierarchy, host)
    if plan.swap_bytes and memory.get("SwapTotal", 0) < plan.swap_bytes:
        found.append(Obstacle("this machine has less swap than the experiment is to use", "leave --swap out"))
    available = memory.get("MemAvailable", memory["MemFree"])
    if available < plan.limit_bytes * 5 // 4:
        found.append(
            Obstacle(
                f"{available} bytes of memory are available; with a limit of {plan.limit_bytes} the machine could run "
                "out first",
                "a smaller --limit",
            )
        )
    return found + _obstacles_to_cgroup(plan, hierarchy, host)


def _obstacles_to_cgroup(plan: Plan, hierarchy: Hierarchy, host: Host) -> list[Obstacle]:
    if hierarchy.memory_version is None:
        return [Obstacle("no memory cgroups here", "mount the memory controller, v1 or v2")]
    try:
        parent = parent_path(hierarchy, host)
    except LabError as error:
        return [Obstacle(str(error), "run it from a session outside of a delegated cgroup, as root")]
    found = []
    if plan.oom_groups and hierarchy.memory_version == "v1":
        found.append(Obstacle("memory.oom.group: cgroup v1 has none", "a machine with cgroup v2"))
    if not os.access(directory_of(hierarchy, parent), os.W_OK):
        found.append(Obstacle(f"memory cgroup {parent}: no cgroup can be made in it by this user", "run as root"))
    for path in (parent, *ancestors(parent, hierarchy.root)):
        above = hierarchy.read(path)
        if above.limit_bytes is not None and above.usage_bytes is not None:
            room = above.limit_bytes - above.usage_bytes
            if room < (plan.limit_bytes or 0):
                found.append(
                    Obstacle(
                        f"memory cgroup {path} has {room} bytes left of its own limit, less than the experiment's: "
                        "others in it could be killed",
                        "a smaller --limit",
                    )
                )
    return found


def _obstacles_to_global(hierarchy: Hierarchy, host: Host) -> list[Obstacle]:
    found = []
    if hierarchy.memory_version is not None:
        own = hierarchy.path_of(host.read(f"{host.proc}/self/cgroup"))
        limit = None if own is None else hierarchy.effective_limit(own)
        if limit is not None:
            found.append(
                Obstacle(
                    f"this process is in a cgroup with a limit of {limit} bytes: that would run out", "another cgroup"
                )
            )
    if not _may_set_adj(oom.OOM_SCORE_ADJ_MIN):
        found.append(
            Obstacle(
                "oom_score_adj -1000: the experiment itself has to outlive it, and CAP_SYS_RESOURCE is missing",
                "run with CAP_SYS_RESOURCE",
            )
        )
    return found


def _may_set_adj(value: int) -> bool:
    """Tried in a child, because what is allowed depends on capabilities and on values set before."""
    child = os.fork()
    if child == 0:
        try:
            Path("/proc/self/oom_score_adj").write_text(str(value))
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def virtual_machine(host: Host) -> str | None:
    """What shows that this kernel runs in a virtual machine; None where nothing does."""
    try:
        for line in host.read(f"{host.proc}/cpuinfo").splitlines():
            if line.startswith(b"flags") and b" hypervisor" in line:
                return "the processor flag 'hypervisor'"
    except OSError:
        pass
    for name in ("product_name", "sys_vendor"):
        try:
            text = os.fsdecode(host.read_small(f"{host.sys}/class/dmi/id/{name}")).strip()
        except OSError:
            continue
        if re.search(r"QEMU|KVM|VMware|VirtualBox|Virtual Machine|Bochs|Xen|Amazon EC2|Google Compute", text):
            return f"the machine's {name} {text!r}"
    return None


def shared_with(host: Host) -> str | None:
    """Why an OOM of this machine would hit work that is not the caller's; None where no sign of such work is found."""
    try:
        if host.stat(f"{host.proc}/self/ns/pid").inode != _INIT_PID_NAMESPACE:
            return "this is a container: the machine belongs to others"
    except OSError:
        pass
    hierarchy = discover(host)
    for path in hierarchy.walk():
        if re.search(r"kubepods|/docker/|/docker-[0-9a-f]{64}|/libpod", path):
            return f"containers run on this machine (memory cgroup {path})"
    return None


def parent_path(hierarchy: Hierarchy, host: Host) -> str:
    """Where the experiment's cgroup goes: this process's own on v1; on v2 the nearest that hands the controller down.

    Raises LabError.
    """
    own = hierarchy.path_of(host.read(f"{host.proc}/self/cgroup"))
    if own is None:
        raise LabError("this process's memory cgroup is outside of what is mounted here")
    if hierarchy.memory_version == "v1":
        return own
    for path in (own, *ancestors(own, hierarchy.root)):
        try:
            if b"memory" in host.read_small(f"{directory_of(hierarchy, path)}/cgroup.subtree_control").split():
                return path
        except OSError:
            continue
    raise LabError(
        f"no cgroup from {own} up has the memory controller enabled for its children (cgroup.subtree_control)"
    )


def directory_of(hierarchy: Hierarchy, path: str) -> str:
    prefix = hierarchy.root.rstrip("/")
    return (hierarchy.directory + path.removeprefix(prefix)).rstrip("/")


def knob(host: Host, name: str) -> int | None:
    try:
        return int(host.read_small(f"{host.proc}/sys/vm/{name}"))
    except (OSError, ValueError):
        return None
