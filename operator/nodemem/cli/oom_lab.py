"""``nodemem oom lab``: programs run out of memory together, and the prediction stands beside what happened."""

import argparse
import re
import signal
import sys
from dataclasses import replace
from typing import Any, NoReturn

from rich.text import Text

from nodemem.cli.options import add_output
from nodemem.cli.text import binary_size, console, dump, safe, table
from nodemem.kernel import lab, labchecks, labplan, oom
from nodemem.kernel.host import Host

_HASTY = (7, 0, 0)
"""Since about then a memory cgroup's scan passes over processes that are exiting (docs/experiment.md)."""

NOT_ALLOWED = 3
DIFFERENT = 4

_GLOBAL_CONSENT = "--i-know-this-kills-processes-of-the-whole-machine"

_EPILOG = f"""\
Scenarios:
{{scenarios}}

Exit codes: 0 the kernel killed as predicted; 1 the experiment failed, one line says why; 2 wrong usage;
{NOT_ALLOWED} something needed is not allowed or not there, named beforehand, nothing was started;
{DIFFERENT} the kernel killed otherwise than predicted; 130 interrupted (everything was cleaned up).
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "lab",
        help="run programs out of memory in a cgroup of their own, and compare with the prediction",
        description="Start programs with the oom_score_adj you give in a memory cgroup of their own, let one grow "
        "until the cgroup is out of memory, and show whom the kernel kills next to whom nodemem predicted.",
        epilog=_EPILOG.format(
            scenarios="\n".join(f"  {each.name:11} {each.text}" for each in labplan.SCENARIOS.values())
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--scenario", choices=sorted(labplan.SCENARIOS), help="a named experiment (default: plain)")
    what.add_argument(
        "--process",
        action="append",
        type=_program,
        metavar="SIZE[:ADJ[:GROUP]]",
        help="a program, such as 160Mi:-998 or 4Ki:-998:pause; repeat it, in the order of their start",
    )
    parser.add_argument(
        "--order",
        choices=("given", "largest-first", "smallest-first"),
        default="given",
        help="the order of their start, which decides between equal scores",
    )
    parser.add_argument("--grow", type=int, metavar="N", help="which program grows, as given (default: the largest)")
    parser.add_argument(
        "--limit", type=_size, metavar="SIZE", help="of the cgroup (default: what they need and an eighth)"
    )
    parser.add_argument("--swap", type=_size, metavar="SIZE", help="swap the cgroup may use (default: none)")
    parser.add_argument("--tmpfs", type=_size, metavar="SIZE", help="held by a file in a tmpfs besides")
    parser.add_argument("--oom-group", action="store_true", help="set memory.oom.group (cgroup v2)")
    parser.add_argument(
        "--global",
        dest="whole_machine",
        action="store_true",
        help="no cgroup: the machine itself runs out of memory. Only in a virtual machine that runs no containers",
    )
    parser.add_argument(
        _GLOBAL_CONSENT,
        dest="consent",
        action="store_true",
        help="with --global: anywhere. Processes of this machine that have nothing to do with it may be killed",
    )
    add_output(parser, "table", "json")
    parser.set_defaults(func=run, usage_error=parser.error)


def run(args: argparse.Namespace) -> int:
    """See the module's exit codes. SIGTERM and SIGINT clean up like the end of the experiment."""
    try:
        plan = plan_of(args)
    except ValueError as error:
        args.usage_error(str(error))
    host: Host = getattr(args, "host", None) or Host()
    missing = labchecks.obstacles(plan, host)
    if args.whole_machine and not args.consent:
        missing += _global_obstacles(host)
    if missing:
        return _refuse(missing, args.output)
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        return _experiment(plan, host, args.output)
    except labplan.LabError as error:
        print(f"nodemem: {error}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)


def plan_of(args: argparse.Namespace) -> labplan.Plan:
    """Raises ValueError with a sentence for the user."""
    if args.process:
        programs = tuple(args.process)
        grows = args.grow - 1 if args.grow else max(range(len(programs)), key=lambda at: programs[at].size_bytes)
        if not 0 <= grows < len(programs):
            raise ValueError(f"--grow {args.grow}: there are {len(programs)} programs")
        tmpfs = args.tmpfs or 0
        plan = labplan.Plan(programs, None, grows, args.swap or 0, tmpfs)
    else:
        plan = labplan.SCENARIOS[args.scenario or "plain"].plan
        if args.grow:
            raise ValueError("--grow belongs to --process; a scenario has its own")
        plan = replace(
            plan, swap_bytes=args.swap or 0, tmpfs_bytes=plan.tmpfs_bytes if args.tmpfs is None else args.tmpfs
        )
    order = list(range(len(plan.programs)))
    if args.order != "given":
        order.sort(key=lambda at: plan.programs[at].size_bytes, reverse=args.order == "largest-first")
    plan = replace(
        plan,
        programs=tuple(plan.programs[at] for at in order),
        grows=order.index(plan.grows),
        oom_groups=plan.oom_groups | ({""} if args.oom_group else set()),
    )
    if args.whole_machine:
        if args.limit is not None:
            raise ValueError("--global has no limit but the machine's memory: leave --limit out")
        plan = replace(plan, limit_bytes=None)
    elif args.limit is not None:
        plan = replace(plan, limit_bytes=args.limit)
    elif args.process or plan.tmpfs_bytes:
        plan = replace(plan, limit_bytes=labplan.roomy_limit(plan.programs, plan.tmpfs_bytes))
    if problems := plan.problems():
        raise ValueError("; ".join(problems))
    return plan


def _global_obstacles(host: Host) -> list[labchecks.Obstacle]:
    found = []
    if labchecks.virtual_machine(host) is None:
        found.append(labchecks.Obstacle("--global: nothing shows that this is a virtual machine", _GLOBAL_CONSENT))
    if why := labchecks.shared_with(host):
        found.append(labchecks.Obstacle(f"--global: {why}", _GLOBAL_CONSENT))
    return found


def _refuse(missing: list[labchecks.Obstacle], output: str) -> int:
    if output == "json":
        dump(
            {"verdict": "notAllowed", "obstacles": [{"what": each.what, "remedy": each.remedy} for each in missing]},
            output,
        )
    for each in missing:
        print(f"nodemem: {safe(each.what)}. What would help: {each.remedy}.", file=sys.stderr)
    print("nodemem: nothing was started.", file=sys.stderr)
    return NOT_ALLOWED


def _experiment(plan: labplan.Plan, host: Host, output: str) -> int:
    with lab.Lab(plan, host) as experiment:
        experiment.start()
        before = experiment.standing()
        if output == "table":
            _show_standing(plan, before)
        for pid in experiment.drive():
            if output == "table":
                console().print(Text(f"  died: {_name(before, pid)}"))
        result = experiment.result()
    right = lab.agrees(before.kills, result.killed, ordered=result.order_from == "kernel log")
    if output == "json":
        dump(as_json(plan, before, result, right), output)
    else:
        _show_result(before, result, right)
    return 0 if right else DIFFERENT


def as_json(plan: labplan.Plan, before: lab.Standing, result: lab.Result, right: bool) -> dict[str, Any]:
    size = before.domain.page_size
    numbers = {member.pid: member.number for member in before.members}

    def process(pid: int) -> dict[str, Any]:
        return {"pid": pid, "process": numbers.get(pid), "name": _comm(before, pid)}

    return {
        "kernel": {
            "release": before.probe.release,
            "generation": str(before.probe.generation),
            "evidence": before.probe.evidence,
        },
        "limitBytes": plan.limit_bytes,
        "swapBytes": plan.swap_bytes,
        "tmpfsBytes": plan.tmpfs_bytes,
        "totalPages": before.domain.totalpages,
        "pageSize": size,
        "grows": plan.grows + 1,
        "processes": [
            {
                "process": member.number,
                "pid": member.pid,
                "name": member.task.name,
                "group": member.program.group or None,
                "sizeBytes": member.program.size_bytes,
                "rssBytes": member.task.rss_pages * size,
                "oomScoreAdj": member.program.oom_score_adj,
                "oomScore": member.oom_score,
                "points": member.points,
            }
            for member in before.members
        ],
        "predicted": [
            {
                "victim": process(kill.predicted),
                "dies": [process(pid) for pid in kill.dies],
                "candidates": list(kill.victims),
            }
            for kill in before.kills
            if kill.predicted is not None
        ],
        "killed": [process(pid) for pid in result.killed],
        "orderFrom": result.order_from,
        "oomKills": result.oom_kills,
        "survivors": [process(pid) for pid in result.survivors],
        "stalled": result.stalled,
        "usageAfterBytes": result.usage_bytes,
        "verdict": "asPredicted" if right else "different",
    }


def _show_standing(plan: labplan.Plan, before: lab.Standing) -> None:
    out = console()
    where = (
        "the whole machine" if plan.limit_bytes is None else f"a cgroup with a limit of {binary_size(plan.limit_bytes)}"
    )
    extra = f", {binary_size(plan.tmpfs_bytes)} of it held by a tmpfs file" if plan.tmpfs_bytes else ""
    out.print(Text(f"Kernel {before.probe.release}: {before.probe.generation} ({before.probe.evidence})", style="dim"))
    if before.probe.generation is oom.Generation.UNKNOWN:
        out.print(
            Text("The kernel's generation is unknown: predicted by the rules of kernels since 5.9.", style="yellow")
        )
    rows = table(
        f"Processes in {where}{extra}",
        ("#", "right"), ("PID", "right"), ("NAME", "left"), ("GROUP", "left"), ("ADJ", "right"), ("RSS", "right"),
        ("OOM_SCORE", "right"), ("POINTS HERE", "right"), ("", "left"),
    )  # fmt: skip
    for member in before.members:
        rows.add_row(
            str(member.number),
            str(member.pid),
            safe(member.task.name),
            member.program.group or "-",
            str(member.program.oom_score_adj),
            binary_size(member.task.rss_pages * before.domain.page_size),
            "unknown" if member.oom_score is None else str(member.oom_score),
            "never killed" if member.points is None else str(member.points),
            "grows" if member.number == plan.grows + 1 else "",
        )
    out.print(rows)
    out.print(Text(f"Predicted: {_kills(before) or 'nobody can be killed'}"))


def _show_result(before: lab.Standing, result: lab.Result, right: bool) -> None:
    out = console()
    rows = table("", ("KILL", "right"), ("PREDICTED", "left"), ("KILLED", "left"))
    predicted = [pid for kill in before.kills for pid in (kill.dies or kill.victims)]
    for at in range(max(len(predicted), len(result.killed))):
        rows.add_row(
            str(at + 1),
            _name(before, predicted[at]) if at < len(predicted) else "-",
            _name(before, result.killed[at]) if at < len(result.killed) else "-",
        )
    out.print(rows)
    if result.survivors:
        out.print(Text(f"Alive at the end: {', '.join(_name(before, pid) for pid in result.survivors)}"))
    if result.stalled:
        out.print(
            Text("The program that grows got no more memory, and the kernel killed nobody for it.", style="yellow")
        )
    verdict = "The kernel killed as predicted" if right else "The kernel killed otherwise than predicted"
    out.print(Text(f"{verdict} (order seen in the {result.order_from}).", style="bold green" if right else "bold red"))
    release = oom.parse_release(before.probe.release)
    if not right and release is not None and release >= _HASTY:
        out.print(Text("Kernels from 7.0 on may kill the next process before the memory of the last one is back."))


def _kills(before: lab.Standing) -> str:
    """Each kill with all that dies in it; ``or`` between those of which one dies."""
    return ", then ".join(
        " with ".join(_name(before, pid) for pid in kill.dies)
        if len(kill.victims) == 1
        else " or ".join(_name(before, pid) for pid in kill.victims)
        for kill in before.kills
    )


def _comm(before: lab.Standing, pid: int) -> str | None:
    return next((task.name for task in before.domain.tasks if task.pid == pid), None)


def _name(before: lab.Standing, pid: int) -> str:
    number = next((member.number for member in before.members if member.pid == pid), None)
    return f"{'' if number is None else f'#{number} '}{safe(_comm(before, pid) or 'process')} ({pid})"


def _terminated(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


_UNITS = {"": 1, "k": 1000, "M": 1000**2, "G": 1000**3, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d{1,15})(Ki|Mi|Gi|k|M|G)?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a size such as 160Mi, 4Ki or 1Gi")
    return int(match[1]) * _UNITS[match[2] or ""]


def _program(text: str) -> labplan.Program:
    size, _, rest = text.partition(":")
    adj, _, group = rest.partition(":")
    if adj and not re.fullmatch(r"[+-]?\d{1,4}", adj):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected SIZE[:ADJ[:GROUP]] such as 160Mi:-998, ADJ from -1000 to 1000"
        )
    return labplan.Program(_size(size), int(adj or 0), group)
