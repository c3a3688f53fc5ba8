"""What the node itself needs to live through an OOM, and what must not: host services that would die before the
business processes that caused it, and business processes that the kernel may not kill.

Pure: tasks and owners in, findings with the exact text to set out.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from nodemem.kernel import oom
from nodemem.kernel.oom import OOM_SCORE_ADJ_MIN, Rules, Task
from nodemem.node.adj import BEST_EFFORT, GUARANTEED
from nodemem.node.oomdomains import Node, ProcessFigures
from nodemem.node.owners import ContainerRef, Owner, PodRef, QosClass, ServiceRef

BUSINESS_SHARE = 0.01
"""Of the node's pages: a process that holds less isn't what an OOM is about."""

HOLDS_BYTES = 64 << 20
"""A process at -1000 that holds less can do no harm by it."""

UNPROTECTED_ABOVE = -900
"""A service with a higher oom_score_adj lives only as long as others are larger."""

_NAMED = 3
_COMM_LENGTH = 15


@dataclass(frozen=True, slots=True)
class Service:
    """``comms`` are the names its main process may have, ``units`` systemd units whose main process has a name of no
    meaning (python3). ``oom_score_adj`` is what to set: -1000, but -999 for what starts other people's programs, since
    children inherit it. ``how``: where a drop-in is not the place to set it."""

    name: str
    comms: tuple[str, ...]
    why: str
    oom_score_adj: int = OOM_SCORE_ADJ_MIN
    how: str | None = None
    units: tuple[str, ...] = ()


_LOGIN = "without it nobody logs in to repair the machine"
_LOGS = "without it nothing is logged of what happened"
_RUNTIME = "it runs the containers; when it dies, the node is not ready and nothing can be started or stopped"
_AGENT = "the cloud's way in: without it there is no remote command, no key and no health report"
_DISKS = "without it a path that fails takes the disks with it"
_NET = "without it addresses and routes are not renewed"

SERVICES: tuple[Service, ...] = (
    Service("sshd", ("sshd", "dropbear"), _LOGIN),
    Service("systemd-logind", ("systemd-logind",), "without it logins hang and nobody can become root"),
    Service("login on the console", ("agetty", "getty"), _LOGIN),
    Service(
        "kubelet",
        ("kubelet", "kubelite", "k3s", "k3s-server", "k3s-agent", "rke2", "k0s"),
        "without it the node goes NotReady and all its pods are moved elsewhere",
        -999,
        "set oomScoreAdj: -999 in the kubelet's configuration file (its default; it writes the value itself at start)",
    ),
    Service("containerd", ("containerd",), _RUNTIME, -999),
    Service("dockerd", ("dockerd",), _RUNTIME, -999),
    Service("cri-o", ("crio",), _RUNTIME, -999),
    Service("cri-dockerd", ("cri-dockerd",), _RUNTIME, -999),
    Service("systemd", ("systemd",), "it starts again what died"),
    Service("systemd-journald", ("systemd-journald",), _LOGS),
    Service("rsyslogd", ("rsyslogd", "syslog-ng"), _LOGS),
    Service("auditd", ("auditd",), "without it the audit trail has a hole, or the machine halts"),
    Service("systemd-udevd", ("systemd-udevd",), "without it new devices and disks don't appear"),
    Service("dbus", ("dbus-daemon", "dbus-broker", "dbus-broker-launch"), "without it systemctl and logins hang"),
    Service("chronyd", ("chronyd", "ntpd", "systemd-timesyncd"), "without it the clock drifts and certificates fail"),
    Service("systemd-networkd", ("systemd-networkd", "NetworkManager", "wickedd", "dhclient"), _NET),
    Service("systemd-resolved", ("systemd-resolved",), "without it names are not resolved"),
    Service("multipathd", ("multipathd",), _DISKS),
    Service("iscsid", ("iscsid",), _DISKS),
    Service("watchdog", ("watchdog", "wd_keepalive"), "when it dies the machine is reset"),
    Service("amazon-ssm-agent", ("amazon-ssm-agent", "ssm-agent-worker"), _AGENT, -999),
    Service("Google guest agent", ("google_guest_agent", "google_osconfig_agent"), _AGENT, -999),
    Service("Azure agent", ("waagent",), _AGENT, -999, units=("walinuxagent.service", "waagent.service")),
    Service("Aliyun assistant", ("aliyun-service", "AliYunDun", "cloudmonitor"), _AGENT, -999),
    Service("Tencent agent", ("tat_agent", "sgagent", "YDService"), _AGENT, -999),
    Service("Oracle Cloud agent", ("oracle-cloud-agent", "oracle-cloud-agent-updater"), _AGENT, -999),
    Service("QEMU guest agent", ("qemu-ga",), _AGENT, -999),
    Service("VMware tools", ("vmtoolsd",), _AGENT, -999),
)
"""Extended by what the user names (``named``)."""


def named(name: str) -> Service:
    """A service that the user cares about, by the name of its process or of its unit."""
    bare = name.removesuffix(".service")
    return Service(bare, (bare,), "you asked for it to be kept", units=(f"{bare}.service",))


@dataclass(frozen=True, slots=True)
class ServiceAtRisk:
    """A host service that an OOM of the node can take.

    ``dies_first``: before larger business processes; ``outlived_by`` has the largest of them, ``outlived_count`` their
    number. Otherwise only its size keeps it alive. ``file`` and ``content``: the drop-in that sets it for good, both
    None where ``advice`` says what else to do; ``command`` sets it until the next start.
    """

    service: str
    why: str
    process: ProcessFigures
    unit: str | None
    dies_first: bool
    outlived_by: tuple[ProcessFigures, ...]
    outlived_count: int
    set_oom_score_adj: int
    file: str | None
    content: str | None
    command: str
    advice: str


@dataclass(frozen=True, slots=True)
class UnkillableBusiness:
    """A process at -1000 that is none of the node's services and holds memory: when it leaks, everything else dies."""

    process: ProcessFigures
    unit: str | None
    pod_uid: str | None
    set_oom_score_adj: int
    file: str | None
    content: str | None
    command: str
    advice: str


def services_at_risk(
    tasks: Iterable[Task],
    owners: Mapping[int, Owner | None],
    node: Node,
    *,
    sandbox_pids: Collection[int] = (),
    more: Sequence[str] = (),
) -> list[ServiceAtRisk]:
    """Those that die first, then those without protection, each in the order in which the kernel takes them.

    "First" is meant strictly: a service whose score equals that of a larger process is not listed for it. On a kernel
    whose generation is unknown all of them have to agree.
    """
    table = _Table(more)
    living = [task for task in tasks if oom.why_unkillable(task) is None and task.oom_score_adj is not None]
    mains = _main_processes(living, owners, table)
    essential = {task.pid for _, task in mains}
    business = [
        task
        for task in living
        if task.pid not in essential
        and task.pid not in sandbox_pids
        and task.frees_pages >= BUSINESS_SHARE * node.totalpages
    ]
    business.sort(key=lambda task: -task.frees_pages)
    all_rules = list(node.rules().values())
    found = []
    for service, task in mains:
        outlived_by = [
            each
            for each in business
            if each.frees_pages > task.frees_pages
            and all(_score(each, node, rules) < _score(task, node, rules) for rules in all_rules)
        ]
        if not outlived_by and (task.oom_score_adj or 0) <= UNPROTECTED_ABOVE:
            continue
        found.append((_score(task, node, all_rules[-1]), _at_risk(service, task, owners, node, outlived_by)))
    found.sort(key=lambda each: (not each[1].dies_first, -each[0], each[1].process.pid))
    return [each for _, each in found]


def unkillable_business(
    tasks: Iterable[Task],
    owners: Mapping[int, Owner | None],
    node: Node,
    *,
    sandbox_pids: Collection[int] = (),
    more: Sequence[str] = (),
) -> list[UnkillableBusiness]:
    """Processes of containers, and of the host where they are none of the services; the largest first."""
    table = _Table(more)
    found = []
    for task in tasks:
        owner = owners.get(task.pid)
        at_minus_1000 = task.oom_score_adj == OOM_SCORE_ADJ_MIN and task.has_mm and not task.init
        if not at_minus_1000 or task.kernel_thread or task.pid in sandbox_pids:
            continue
        if task.frees_pages * node.page_size < HOLDS_BYTES:
            continue
        if table.service(task, owner) is not None:
            continue
        found.append(_unkillable(task, owner, node))
    found.sort(key=lambda each: -each.process.frees_bytes)
    return found


class _Table:
    """The services by the names that tell them. What the user names comes first."""

    def __init__(self, more: Sequence[str]) -> None:
        services = [*map(named, more), *SERVICES]
        # The kernel keeps 15 bytes of a name.
        self._by_comm = {comm[:_COMM_LENGTH]: each for each in reversed(services) for comm in each.comms}
        self._by_unit = {unit: each for each in reversed(services) for unit in each.units}

    def service(self, task: Task, owner: Owner | None) -> Service | None:
        """Only the host's own processes: in a container, and in a user's session, anything may call itself sshd."""
        if isinstance(owner, ContainerRef | PodRef):
            return None
        if not isinstance(owner, ServiceRef):
            return self._by_comm.get(task.name)
        if owner.user_uid is not None:
            return None
        return self._by_comm.get(task.name) or self._by_unit.get(owner.unit)


def _main_processes(
    tasks: Iterable[Task], owners: Mapping[int, Owner | None], table: _Table
) -> list[tuple[Service, Task]]:
    """For each service and unit the process that was started first: later ones are its children."""
    found: dict[tuple[str, str | None], tuple[Service, Task]] = {}
    for task in tasks:
        owner = owners.get(task.pid)
        service = table.service(task, owner)
        if service is None:
            continue
        key = (service.name, owner.unit if isinstance(owner, ServiceRef) else None)
        if key not in found or _start(task) < _start(found[key][1]):
            found[key] = (service, task)
    return list(found.values())


def _start(task: Task) -> tuple[int, int]:
    return (task.start_time_ticks or 0, task.pid)


def _score(task: Task, node: Node, rules: Rules) -> int:
    points = oom.badness(task, node.totalpages, rules)
    assert points is not None  # only killable tasks with a known oom_score_adj come here
    return points


def _at_risk(
    service: Service, task: Task, owners: Mapping[int, Owner | None], node: Node, outlived_by: Sequence[Task]
) -> ServiceAtRisk:
    owner = owners.get(task.pid)
    unit = owner.unit if isinstance(owner, ServiceRef) else None
    file, content = _drop_in(unit, service.oom_score_adj) if service.how is None else (None, None)
    command = f"choom -n {service.oom_score_adj} -p {task.pid}"
    return ServiceAtRisk(
        service=service.name,
        why=service.why,
        process=node.figures(task, oom.badness(task, node.totalpages, next(iter(node.rules().values())))),
        unit=unit,
        dies_first=bool(outlived_by),
        outlived_by=tuple(node.figures(each) for each in outlived_by[:_NAMED]),
        outlived_count=len(outlived_by),
        set_oom_score_adj=service.oom_score_adj,
        file=file,
        content=content,
        command=command,
        advice=_how(service.how, file, content, command),
    )


def _unkillable(task: Task, owner: Owner | None, node: Node) -> UnkillableBusiness:
    unit = owner.unit if isinstance(owner, ServiceRef) else None
    qos: QosClass | None = owner.qos if isinstance(owner, ContainerRef | PodRef) else None
    adj = GUARANTEED if qos == "Guaranteed" else BEST_EFFORT if qos == "BestEffort" else 0
    file, content = _drop_in(unit, adj)
    command = f"choom -n {adj} -p {task.pid}"
    how = None
    if isinstance(owner, ContainerRef | PodRef):
        how = "find who writes /proc/<pid>/oom_score_adj in it, or starts it from a process at -1000 (children inherit)"
    return UnkillableBusiness(
        process=node.figures(task),
        unit=unit,
        pod_uid=owner.pod_uid if isinstance(owner, ContainerRef | PodRef) else None,
        set_oom_score_adj=adj,
        file=file,
        content=content,
        command=command,
        advice=_how(how, file, content, command),
    )


def _drop_in(unit: str | None, adj: int) -> tuple[str | None, str | None]:
    if unit is None or not unit.endswith(".service") or "/" in unit:
        return None, None
    return f"/etc/systemd/system/{unit}.d/50-oom.conf", f"[Service]\nOOMScoreAdjust={adj}\n"


def _how(how: str | None, file: str | None, content: str | None, command: str) -> str:
    """No restart is advised: that of dbus, for one, takes half of the machine with it."""
    if how is not None:
        return f"{how}; for now: {command}"
    if file is not None and content is not None:
        lines = " and ".join(content.split("\n")[:2])
        return f"write {lines} to {file} and run systemctl daemon-reload, for the next start; for now: {command}"
    return f"it is no systemd service: have whatever starts it set the value; for now: {command}"
