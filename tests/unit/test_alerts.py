"""Alerts and dashboards, as Helm renders them, judged by promtool: they parse, they ask for what there is, and each
alert fires when it should and not when it nearly should."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_python.chart import Chart

import dashboards
from chartlab import CHART, NAMESPACE, ROOT, find, render
from promlab import documented_scrapes, promtool
from unit.metricsamples import known

CASES = sorted((ROOT / "tests" / "alerts").glob("*.yaml"))
PAGE = ROOT / "docs" / "alerts.md"


def rules(**values: Any) -> list[dict[str, Any]]:
    rule = find(render({"prometheusRule": {"enabled": True, **values}}), "PrometheusRule", "nodemem")
    found: list[dict[str, Any]] = [each for group in rule["spec"]["groups"] for each in group["rules"]]
    return found


RULES = rules()
NAMES = [each["alert"] for each in RULES]


def write(directory: Path, given: list[dict[str, Any]]) -> None:
    text = yaml.safe_dump({"groups": [{"name": "nodemem", "rules": given}]}, sort_keys=False)
    (directory / "rules.yaml").write_text(text)


# Rules


def test_promtool_takes_the_rules_that_helm_renders(tmp_path: Path) -> None:
    write(tmp_path, RULES)
    assert f"SUCCESS: {len(NAMES)} rules found" in promtool("check", "rules", "rules.yaml", cwd=tmp_path)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_alerts_fire_on_the_case_and_not_on_the_near_miss(path: Path, tmp_path: Path) -> None:
    write(tmp_path, RULES)
    (tmp_path / path.name).write_text(path.read_text())
    assert "SUCCESS" in promtool("test", "rules", path.name, cwd=tmp_path)


@pytest.mark.parametrize(
    ("alert", "changes"),
    [
        ("NodememShmemExhaustion", {"for": "5m"}),
        ("NodememShmemExhaustion", {"withinHours": 26}),
        ("NodememShmemExhaustion", {"availableBelowPercent": 95}),
        ("NodememTmpfsNearlyFull", {"usedPercent": 89}),
        ("NodememHiddenMemoryHigh", {"hiddenPercent": 29}),
        ("NodememAgentDown", {"for": "5m"}),
    ],
)
def test_the_near_misses_are_near(alert: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """With a value that is a little other, the same cases no longer hold."""
    write(tmp_path, rules(alerts={alert: changes}))
    (tmp_path / "node.yaml").write_text((ROOT / "tests" / "alerts" / "node.yaml").read_text())
    with pytest.raises(AssertionError, match=f"alertname: *{alert}"):
        promtool("test", "rules", "node.yaml", cwd=tmp_path)


def test_every_alert_has_cases_in_which_it_fires_and_in_which_it_does_not() -> None:
    fires, keeps_quiet = set(), set()
    for path in CASES:
        for case in yaml.safe_load(path.read_text())["tests"]:
            for each in case["alert_rule_test"]:
                (fires if each["exp_alerts"] else keeps_quiet).add(each["alertname"])
    assert fires == keeps_quiet == set(NAMES)


def test_every_alert_says_what_why_and_what_to_type_first() -> None:
    for each in RULES:
        annotations = each["annotations"]
        assert annotations["summary"].endswith("."), each["alert"]
        assert "kubectl " in annotations["description"], each["alert"]
        assert "${" not in json.dumps(each), each["alert"]
        assert len(annotations["summary"]) < 200, each["alert"]


def test_values_switch_alerts_off_and_change_them() -> None:
    changed = {
        each["alert"]: each
        for each in rules(
            alertLabels={"team": "platform", "severity": "ignored"},
            alerts={
                "NodememAgentDown": {"enabled": False},
                "NodememTmpfsNearlyFull": {"usedPercent": 97.5, "for": "1h", "severity": "page"},
            },
        )
    }
    assert set(NAMES) - changed.keys() == {"NodememAgentDown"}
    full = changed["NodememTmpfsNearlyFull"]
    assert full["expr"].endswith("> 97.5 / 100")
    assert full["for"] == "1h"
    assert full["labels"] == {"severity": "page", "team": "platform"}
    assert changed["NodememPodExposed"]["labels"] == {"severity": "warning", "team": "platform"}


def test_the_rules_values_and_schema_name_the_same_alerts() -> None:
    with Chart.load(CHART) as chart:
        assert set(chart.values["prometheusRule"]["alerts"]) == set(NAMES)
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert list(schema["properties"]["prometheusRule"]["properties"]["alerts"]["properties"]) == NAMES


def test_the_job_that_is_missed_is_the_one_that_the_podmonitor_makes() -> None:
    objects = render({"prometheusRule": {"enabled": True}, "podMonitor": {"enabled": True}, "fullnameOverride": "mem"})
    monitor = find(objects, "PodMonitor", "mem-agent")
    down = next(
        each
        for each in find(objects, "PrometheusRule", "mem")["spec"]["groups"][0]["rules"]
        if each["alert"] == "NodememAgentDown"
    )
    assert down["expr"] == f'up{{job="{NAMESPACE}/{monitor["metadata"]["name"]}"}} == 0'


# Runbooks


def sections() -> dict[str, str]:
    """Anchor, as code hosts make it of a heading -> text below it."""
    parts = re.split(r"^## (.+)$", PAGE.read_text(), flags=re.MULTILINE)
    return {
        re.sub(r"[^a-z0-9_ -]", "", name.lower()).replace(" ", "-"): text
        for name, text in zip(parts[1::2], parts[2::2], strict=True)
    }


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_every_alerts_link_leads_to_its_runbook(rule: dict[str, Any]) -> None:
    url, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert url.endswith(f"/{PAGE.relative_to(ROOT)}")
    text = sections()[anchor]
    for part in ("**Means:**", "**First:**", "**Then:**", "**Quiet:**"):
        assert part in text, part
    described = re.sub(r"\s+", " ", rule["annotations"]["description"])
    first = re.search(r"```console[^\n]*\n\$ (kubectl \S+ \S+)", text)
    assert first is not None, "a first command"
    assert first[1] in described, "the one that the alert itself names"


def test_the_page_has_no_runbook_of_an_alert_that_is_gone() -> None:
    assert {name for name in sections() if name.startswith("nodemem")} == {name.lower() for name in NAMES}


@pytest.mark.parametrize("page", ["alerts.md", "monitoring.md"])
def test_links_and_fields_of_the_page_exist(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        assert not path or (ROOT / "docs" / path).exists(), link
        assert not anchor or anchor in sections(), link
    reference = (ROOT / "docs" / "reference" / "custom-resources.md").read_text()
    for field in re.findall(r"`(\w+Bytes)`", text):
        assert f".{field}`" in reference, field


def test_the_scrape_configuration_on_the_page_is_one(tmp_path: Path) -> None:
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump({"scrape_configs": documented_scrapes({})}))
    assert "SUCCESS" in promtool("check", "config", "--syntax-only", "prometheus.yaml", cwd=tmp_path)


def test_the_page_relabels_as_the_podmonitors_do() -> None:
    """But for what prometheus-operator itself adds, and what it then takes away again: the labels of an agent's pod."""
    objects = render({"podMonitor": {"enabled": True}})
    jobs = {each["job_name"].rpartition("/")[2]: each for each in documented_scrapes({})}
    for name, job in jobs.items():
        endpoint = find(objects, "PodMonitor", name)["spec"]["podMetricsEndpoints"][0]
        assert endpoint["honorLabels"] is job["honor_labels"] is True
        written = [(each["source_labels"], each.get("target_label")) for each in job["relabel_configs"]]
        made = endpoint.get("relabelings", [])
        for each in made:
            if "targetLabel" in each:
                assert (each["sourceLabels"], each["targetLabel"]) in written
        dropped = {label for each in made if each.get("action") == "labeldrop" for label in each["regex"].split("|")}
        assert dropped == ({"pod", "container", "endpoint"} if name == "nodemem-agent" else set())
        assert dropped.isdisjoint(target for _, target in written)


# Dashboards

BOARDS = [json.loads(text) for text in dashboards.files().values()]


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    for board in BOARDS:
        for panel in board["panels"]:
            yield f"{board['uid']}: {panel['title']}", panel


def expressions() -> Iterator[tuple[str, str]]:
    for rule in RULES:
        yield rule["alert"], rule["expr"]
    for title, panel in panels():
        for target in panel.get("targets", ()):
            yield title, target["expr"].replace("$__rate_interval", "5m").replace("$node", "n1")


def test_the_configmap_holds_the_dashboards_as_they_are_made() -> None:
    found = find(render({"dashboard": {"enabled": True, "labels": {"mine": "1"}}}), "ConfigMap", "nodemem-dashboards")
    assert found["metadata"]["labels"]["mine"] == "1"
    assert {name: json.loads(text) for name, text in found["data"].items()} == {
        f"nodemem-{name}": json.loads(text) for name, text in dashboards.files().items()
    }


def test_panels_have_ids_of_their_own_and_do_not_lie_on_each_other() -> None:
    for board in BOARDS:
        assert max(Counter(panel["id"] for panel in board["panels"]).values()) == 1
        cells: Counter[tuple[int, int]] = Counter()
        for panel in board["panels"]:
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= 24
            cells.update(
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            )
        assert max(cells.values()) == 1


def test_no_dashboard_names_a_datasource_but_by_its_variable() -> None:
    def sources(value: Any) -> Iterator[Any]:
        if isinstance(value, dict):
            for key, each in value.items():
                if key == "datasource":
                    yield each
                else:
                    yield from sources(each)
        elif isinstance(value, list):
            for each in value:
                yield from sources(each)

    for board in BOARDS:
        assert {json.dumps(each) for each in sources(board)} == {'{"type": "prometheus", "uid": "${datasource}"}'}
        assert board["templating"]["list"][0]["name"] == "datasource"


def test_promtool_can_read_every_expression(tmp_path: Path) -> None:
    recorded = [{"record": f"x:{at}", "expr": expr} for at, (_, expr) in enumerate(expressions())]
    write(tmp_path, recorded)
    assert f"SUCCESS: {len(recorded)} rules found" in promtool("check", "rules", "rules.yaml", cwd=tmp_path)
    assert len(recorded) > 60


def test_every_expression_asks_for_metrics_and_labels_that_there_are() -> None:
    there = known()
    for where, expression in expressions():
        bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expression)
        asked = re.findall(r"\b(nodemem_\w+|process_\w+|up)\b(?:\{([^}]*)\})?", bare)
        assert asked, where
        for name, matchers in asked:
            assert name in there, f"{where}: {name}"
            for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers):
                assert label in there[name], f"{where}: {name} has no label {label}"
        labels = set().union(*(there[name] for name, _ in asked))
        for grouped in re.findall(r"\b(?:by|on|ignoring|without) \(([^)]*)\)", bare):
            assert {each.strip() for each in grouped.split(",")} <= labels, f"{where}: {grouped}"


def test_legends_and_columns_name_labels_that_there_are() -> None:
    there = known()
    for where, panel in panels():
        for target in panel.get("targets", ()):
            names = re.findall(r"nodemem_\w+|process_\w+", target["expr"])
            labels = set().union(*(there[name] for name in names))
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels, where
