"""What to do about what a report says: the remedies of the page, for a terminal and for somebody who has kubectl."""

import dataclasses
from collections.abc import Iterator

from rich.text import Text

from nodemem.cli.text import safe
from nodemem.node.remedies import Remedy, remedies
from nodemem.node.status import ReportStatus

ALSO = 4
"""Further remedies that are named; the most pressing one is told step by step."""


def next_steps(status: ReportStatus, node: str) -> Iterator[Text]:
    """Nothing where nothing needs a step. Exposures and limits have their own views, which are named."""
    found = remedies(dataclasses.replace(status, exposures=None, limits=None))
    views = list(_views(status))
    if not found and not views:
        return
    yield Text()
    if found:
        yield Text(safe(f"Next, on {node}: {found[0].title}"), style="bold")
        yield from _steps(found[0], {each.mount_point for each in status.limits or ()})
        also = "; ".join(each.title for each in found[1 : 1 + ALSO])
        if also:
            yield Text(safe(f"  Also: {also}"))
    else:
        yield Text("Next", style="bold")
    for each in views:
        yield Text(safe(f"  {each}"))


def _steps(remedy: Remedy, limited: set[str]) -> Iterator[Text]:
    for step in remedy.steps:
        policy = step.code is not None and "kind: TmpfsPolicy" in step.code
        if policy and any(f'"{path}"' in (step.code or "") for path in limited):
            continue  # it has one
        yield Text(safe(f"  - {step.text}"))
        for line in (step.code or "").splitlines():
            yield Text(safe(f"      {line}"), style="cyan")


def _views(status: ReportStatus) -> Iterator[str]:
    troubled = [each for each in status.limits or () if each.state in ("Failed", "Contested", "Deferred")]
    for name in sorted({each.policy for each in troubled if each.policy})[:1]:
        yield f"The limits that are not held: kubectl nodemem policy {name}"
    if status.exposures or (status.summary is not None and status.summary.exposed):
        yield "Exposed pods in all of the cluster: kubectl nodemem exposed -A"
