"""``kubectl nodemem why NODE``: the report of a node, as ``nodemem report`` prints it there."""

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from nodemem.api.resources import MEMORY_REPORT
from nodemem.cli.kubectl.cluster import Cluster, NotFound, Object, Trouble
from nodemem.cli.kubectl.options import add_cluster, cluster_of
from nodemem.cli.kubectl.reports import status_of, why_stale
from nodemem.cli.nextsteps import next_steps
from nodemem.cli.options import add_output
from nodemem.cli.reportview import render
from nodemem.cli.text import dump, safe, show


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "why",
        help="where a node's memory went: the verdict, the parts, Shmem by source, tmpfs, limits, exposures, kills",
        description="Where a node's memory went, from its MemoryReport: the verdict first, then the figures behind it, "
        "and what to do next.",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("node", nargs="?", metavar="NODE", help="name of the node")
    which.add_argument(
        "-f", "--filename", metavar="FILE", help="a MemoryReport as JSON or YAML, of any cluster or machine; -: stdin"
    )
    add_output(parser, "table", "wide", "json", "yaml")
    add_cluster(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """0 done; 1 there is no such report."""
    report = _from_file(args.filename) if args.filename else of_node(cluster_of(args), args.node)
    if args.output in ("json", "yaml"):
        dump(report, args.output)
        return 0
    show(*parts(report, wide=args.output == "wide", now_matters=not args.filename))
    return 0


def parts(report: Object, *, wide: bool = False, now_matters: bool = True) -> Iterator[RenderableType]:
    """``now_matters``: off for a report that was put aside, which is as old as it is. Raises Trouble."""
    status = status_of(report)
    stale = why_stale(report) if now_matters else None
    if stale is not None:
        yield Text(safe(f"STALE. {stale}"), style="bold yellow")
    yield Text(f"Node {safe(report['metadata']['name'])}", style="bold")
    yield render(status, wide=wide)
    yield from next_steps(status, report["metadata"]["name"])


def of_node(cluster: Cluster, name: str) -> Object:
    """Raises NotFound: it says whether there is such a node at all."""
    try:
        return cluster.named(MEMORY_REPORT, name)
    except NotFound as error:
        try:
            cluster.get(f"/api/v1/nodes/{name}")
        except Trouble:
            raise error from None
        raise NotFound(
            f"node {name} has no report yet. Does its agent run?\n"
            f"kubectl get pods -A -l app.kubernetes.io/component=agent --field-selector spec.nodeName={name}"
        ) from None


def _from_file(name: str) -> Object:
    try:
        if name == "-":
            text = sys.stdin.read()
        else:
            with open(name, encoding="utf-8") as stream:
                text = stream.read()
        found = _parsed(text)
    except (OSError, ValueError) as error:
        raise Trouble(f"{name}: {error}") from error
    if isinstance(found, dict) and found.get("kind") == "List" and len(found.get("items") or ()) == 1:
        found = found["items"][0]
    if not isinstance(found, dict) or found.get("kind") != MEMORY_REPORT.kind:
        raise Trouble(
            f"{name}: not a MemoryReport; expected what 'nodemem report -o json' or 'kubectl get memoryreport NODE "
            "-o yaml' print"
        )
    if not isinstance(found.get("metadata"), dict) or not isinstance(found["metadata"].get("name"), str):
        raise Trouble(f"{name}: a MemoryReport without a name")
    return found


def _parsed(text: str) -> Any:
    """JSON, or else YAML. Raises ValueError."""
    try:
        return json.loads(text)
    except ValueError:
        import yaml

        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"neither JSON nor YAML: {error}") from error
