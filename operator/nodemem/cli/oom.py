"""``nodemem oom``: who dies first, why something was killed, and the experiment."""

import argparse

from rich.console import RenderableType
from rich.text import Text

from nodemem.cli import oom_explain, oom_exposed, oom_lab, oom_rank
from nodemem.cli.options import add_output, add_root
from nodemem.cli.text import binary_size, dump, safe, show, table
from nodemem.kernel import oom
from nodemem.node.snapshot import Collector
from nodemem.node.status import to_plain


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("oom", help="who the OOM killer takes, before and after")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    rank = commands.add_parser(
        "rank",
        help="processes in the order in which an OOM of the node takes them",
        description="Processes in the order in which an OOM of the whole node takes them, with score, oom_score_adj, "
        "memory and owner.",
    )
    rank.add_argument("--top", type=int, default=30, metavar="N", help="rows of the table (default: 30; 0: all)")
    add_output(rank, "table", "json", "yaml")
    add_root(rank)
    rank.set_defaults(func=run_rank)
    oom_exposed.add_parser(commands)
    oom_explain.add_parser(commands)
    oom_lab.add_parser(commands)


def run_rank(args: argparse.Namespace) -> int:
    """0 done, also when the kernel's generation is unknown: the output says so and ranks by today's rules."""
    snapshot = Collector(args.host).collect(deep="never", inspect=0)
    ranking = oom_rank.ranked(snapshot)
    if args.output in ("json", "yaml"):
        dump(
            {
                "oomGeneration": str(snapshot.probe.generation),
                "evidence": snapshot.probe.evidence,
                "processes": [to_plain(each) for each in ranking],
            },
            args.output,
        )
        return 0
    parts: list[RenderableType] = []
    parts.append(
        Text(f"OOM scores of this kernel: {snapshot.probe.generation} ({snapshot.probe.evidence})", style="dim")
    )
    if snapshot.probe.generation is oom.Generation.UNKNOWN:
        parts.append(
            Text("The kernel's generation is unknown: ranked by the rules of kernels since 5.9.", style="yellow")
        )
    rows = table(
        "First to die first",
        ("#", "right"), ("PID", "right"), ("COMMAND", "left"), ("SCORE", "right"), ("ADJ", "right"), ("RSS", "right"),
        ("SWAP", "right"), ("FREES", "right"), ("OWNER", "text"),
    )  # fmt: skip
    shown = ranking[: args.top] if args.top > 0 else ranking
    for place, each in enumerate(shown, 1):
        rows.add_row(
            str(place) if each.points is not None else "never",
            str(each.pid),
            safe(each.comm),
            "unknown" if each.oom_score is None else str(each.oom_score),
            "unknown" if each.oom_score_adj is None else str(each.oom_score_adj),
            binary_size(each.rss_bytes),
            binary_size(each.swap_bytes),
            binary_size(each.frees_bytes),
            safe(each.owner or "") + (f" ({each.unkillable})" if each.unkillable else ""),
        )
    parts.append(rows)
    if len(shown) < len(ranking):
        parts.append(Text(f"and {len(ranking) - len(shown)} more; --top 0 shows all", style="dim"))
    show(*parts)
    return 0
