"""docs/reference/metrics.md: made from what agent and controller write."""

from nodemem.agent import metrics as agent_metrics
from nodemem.controller import metrics as controller_metrics
from promlab import families
from unit import metricsamples

_HEAD = """\
# Metrics

Made from the code by `tests/chartlab.py`. What the labels of a scrape are, and how many series there are:
[monitoring](../monitoring.md).
"""


def page() -> str:
    agent = agent_metrics.render(metricsamples.full_status(), metricsamples.agent_counters(), open_metrics=False)
    controller = controller_metrics.render(metricsamples.full_figures(), open_metrics=False)
    return _HEAD + _table("The agent", agent.done()) + _table("The controller", controller.done())


def _table(title: str, text: bytes) -> str:
    labels = families(text)
    rows = [f"\n## {title}\n\n| metric | type | labels | meaning |\n|---|---|---|---|\n"]
    kind = ""
    for line in text.decode().splitlines():
        words = line.split(" ", 3)
        if line.startswith("# TYPE "):
            kind = words[3]
        elif line.startswith("# HELP "):
            name, meaning = words[2], words[3]
            suffix = "_count" if kind == "summary" else ""
            shown = ", ".join(f"`{each}`" for each in sorted(labels[name + suffix]))
            rows.append(f"| `{name}` | {kind} | {shown} | {meaning} |\n")
    return "".join(rows)
