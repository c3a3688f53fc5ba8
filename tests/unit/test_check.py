"""``nodemem check``: who counts as heard. The whole of it, by helm test: cluster/test_chart_values.py."""

from typing import Any

import pytest

from nodemem.cli.check import unheard
from nodemem.cli.main import main


def pod(node: str | None, started: str | None = "2026-01-01T12:00:00Z") -> dict[str, Any]:
    return {"metadata": {"name": "agent"}, "spec": {"nodeName": node}, "status": {"startTime": started}}


def report(node: str, observed: str | None) -> dict[str, Any]:
    return {"metadata": {"name": node}, "status": {"observedAt": observed}}


@pytest.mark.parametrize("observed", ["2026-01-01T12:00:00Z", "2026-01-02T00:00:00Z"])
def test_an_agent_whose_report_is_younger_than_its_pod_is_heard(observed: str) -> None:
    assert unheard([pod("n1")], [report("n1", observed), report("n2", None)]) == []


@pytest.mark.parametrize(
    ("given", "reports", "says"),
    [
        (pod("n1"), [report("n1", "2026-01-01T11:59:59Z")], "n1 has a report from before agent started"),
        (pod("n1"), [report("n2", "2026-01-02T00:00:00Z")], "n1 has no report"),
        (pod("n1"), [{"metadata": {"name": "n1"}}], "n1 has no report"),
        (pod("n1", None), [report("n1", "2026-01-02T00:00:00Z")], "agent has not started on n1"),
        (pod(None, None), [], "agent is not on a node yet"),
    ],
)
def test_who_is_not_heard_and_why(given: dict[str, Any], reports: list[dict[str, Any]], says: str) -> None:
    assert unheard([given], reports) == [says]


def test_outside_of_a_cluster_it_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert main(["check"]) == 1
    assert "name a kubeconfig with --kubeconfig FILE" in capsys.readouterr().err
