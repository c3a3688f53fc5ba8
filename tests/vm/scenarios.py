"""What runs inside the guests: nodemem's own code against that kernel. Arguments and return values are JSON."""

from typing import Any

from nodemem.kernel import lab, oom
from nodemem.kernel.host import Host


def experiment(
    programs: list[list[Any]],
    limit_mib: int | None,
    grows: int | None = None,
    swap_mib: int = 0,
    tmpfs_mib: int = 0,
    oom_groups: list[str] | None = None,
) -> dict[str, Any]:
    """``nodemem oom lab``: programs are [size in KiB, oom_score_adj] or [.., .., group]."""
    made = tuple(lab.Program(int(each[0]) << 10, int(each[1]), *each[2:]) for each in programs)
    if grows is None:
        grows = max(range(len(made)), key=lambda at: made[at].size_bytes)
    limit = None if limit_mib is None else limit_mib << 20
    plan = lab.Plan(made, limit, grows, swap_mib << 20, tmpfs_mib << 20, frozenset(oom_groups or ()))
    host = Host()
    obstacles = lab.obstacles(plan, host)
    assert obstacles == [], obstacles
    with lab.Lab(plan, host) as experiment:
        experiment.start()
        before = experiment.standing()
        list(experiment.drive())
        result = experiment.result()
        numbers = {member.pid: member.number for member in before.members}
        return {
            "generation": str(before.probe.generation),
            "evidence": before.probe.evidence,
            "totalpages": before.domain.totalpages,
            "members": [
                {"number": m.number, "rss": m.task.rss_pages, "score": m.oom_score, "points": m.points}
                for m in before.members
            ],
            "predicted": [[numbers.get(pid, pid) for pid in kill.dies or kill.victims] for kill in before.kills],
            "margins": [kill.margin_pages for kill in before.kills],
            "certain": [kill.certain for kill in before.kills],
            "right": [kill.right for kill in before.kills],
            "killed": [numbers.get(pid, pid) for pid in result.killed],
            "survivors": [numbers[pid] for pid in result.survivors],
            "order_from": result.order_from,
            "oom_kills": result.oom_kills,
            "stalled": result.stalled,
            "usage": result.usage_bytes,
            "agrees": lab.agrees(before.kills, result.killed, ordered=result.order_from == "kernel log"),
        }


__all__ = ["experiment", "oom"]


def dbg():
    import os
    from nodemem.kernel import labprogram
    image = labprogram.executable("x", 4096, 4096, "x86_64")
    fd = os.memfd_create("x", os.MFD_CLOEXEC)
    os.write(fd, image)
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.execve(fd, ["x"], {})
        except OSError as e:
            os.write(w, repr(e).encode())
        os._exit(1)
    os.close(w)
    return [os.read(r, 1000).decode(), os.waitpid(pid, 0)[1]]
