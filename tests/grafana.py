"""A Grafana dashboard, put together row by row; panels of a row share its width. Each asks the datasource that the
dashboard's variable names, so it works in any Grafana."""

from typing import Any

Panel = dict[str, Any]
Target = tuple[str, str]
"""Expression and legend; of a table, the name of the column."""

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS = 24


class Dashboard:
    def __init__(self, uid: str, title: str, text: str, *, node_link: str) -> None:
        """``node_link``: where the column ``node`` of a table leads."""
        self._node_link = node_link
        self._rows: list[tuple[str, int, list[Panel]]] = []
        self._variables = [
            {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "refresh": 1}
        ]
        link = {"type": "dashboards", "title": "nodemem", "tags": ["nodemem"], "includeVars": True, "keepTime": True}
        self._head = {
            "uid": uid,
            "title": title,
            "description": text,
            "tags": ["nodemem", "kubernetes", "memory"],
            "schemaVersion": 39,
            "editable": True,
            "refresh": "1m",
            "time": {"from": "now-6h", "to": "now"},
            "links": [link],
        }

    def variable(self, name: str, label: str, query: str) -> None:
        asked = {"definition": query, "query": {"query": query, "refId": name}, "refresh": 2, "sort": 1}
        self._variables.append({"name": name, "label": label, "type": "query", "datasource": SOURCE, **asked})

    def row(self, title: str, height: int) -> None:
        self._rows.append((title, height, []))

    def stat(self, title: str, expression: str, text: str, *, unit: str = "short", bad: float | None = None) -> None:
        """One figure, red from ``bad`` on."""
        steps: list[dict[str, Any]] = [{"color": "green" if bad else "text", "value": None}]
        if bad:
            steps.append({"color": "red", "value": bad})
        panel = _panel("stat", title, [(expression, "")], unit, text, instant=True)
        panel["fieldConfig"]["defaults"]["thresholds"] = _steps(steps)
        panel["options"] = {
            "reduceOptions": {"calcs": ["lastNotNull"]},
            "graphMode": "none",
            "colorMode": "value",
        }
        self._add(panel)

    def series(
        self, title: str, *targets: Target, unit: str = "short", stacked: bool = False, bars: bool = False
    ) -> None:
        panel = _panel("timeseries", title, targets, unit)
        panel["fieldConfig"]["defaults"]["custom"] = {
            "drawStyle": "bars" if bars else "line",
            "fillOpacity": 80 if bars else 30 if stacked else 0,
            "showPoints": "never",
            "stacking": {"mode": "normal" if stacked or bars else "none", "group": "A"},
        }
        panel["options"] = {
            "legend": {"displayMode": "table", "placement": "right", "calcs": ["lastNotNull"]},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
        self._add(panel)

    def heat(self, title: str, expression: str, legend: str, text: str, colors: dict[str, float | None]) -> None:
        """A line for each series, a cell for each five minutes. ``colors``: from which share on each."""
        panel = _panel("status-history", title, [(expression, legend)], "percentunit", text)
        panel["interval"] = "5m"
        panel["fieldConfig"]["defaults"] |= {
            "thresholds": _steps([{"color": color, "value": value} for color, value in colors.items()]),
            "color": {"mode": "thresholds"},
            "custom": {"fillOpacity": 85},
        }
        panel["options"] = {"showValue": "never", "rowHeight": 0.9, "colWidth": 1, "legend": {"showLegend": False}}
        self._add(panel)

    def table(
        self,
        title: str,
        *columns: Target,
        unit: str = "bytes",
        units: dict[str, str] | None = None,
        sort: str | None = None,
        hide: tuple[str, ...] = (),
    ) -> None:
        """A row for each set of labels, a column for each label and target. ``units``: of single columns."""
        names = {_value(at, len(columns)): name for at, (_, name) in enumerate(columns)}
        panel = _panel("table", title, columns, unit, instant=True)
        link = {"title": "This node", "url": self._node_link}
        panel["fieldConfig"]["overrides"] = [
            *(_override(name, "unit", of) for name, of in (units or {}).items()),
            _override("node", "links", [link]),
        ]
        panel["options"] = {"sortBy": [{"displayName": sort, "desc": True}] if sort else []}
        hidden = ["Time", *hide, *(value for value, name in names.items() if name in hide)]
        organized = {"excludeByName": dict.fromkeys(hidden, True), "renameByName": names}
        panel["transformations"] = [{"id": "merge", "options": {}}, {"id": "organize", "options": organized}]
        self._add(panel)

    def plain(self) -> dict[str, Any]:
        panels: list[Panel] = []
        y = 0
        for title, height, row in self._rows:
            if title:
                panels.append({"type": "row", "title": title, "gridPos": _place(0, y, COLUMNS, 1), "panels": []})
                y += 1
            width = COLUMNS // len(row)
            panels += [each | {"gridPos": _place(at * width, y, width, height)} for at, each in enumerate(row)]
            y += height
        numbered = [{"id": number, **each} for number, each in enumerate(panels, start=1)]
        return {**self._head, "templating": {"list": self._variables}, "panels": numbered}

    def _add(self, panel: Panel) -> None:
        self._rows[-1][2].append(panel)


def _panel(
    kind: str, title: str, targets: tuple[Target, ...] | list[Target], unit: str, text: str = "", instant: bool = False
) -> Panel:
    how = {"instant": True, "format": "table" if kind == "table" else "time_series"} if instant else {"range": True}
    asked = [
        {"refId": _letter(at), "datasource": SOURCE, "expr": expression, "legendFormat": legend, **how}
        for at, (expression, legend) in enumerate(targets)
    ]
    made = {"type": kind, "title": title, "datasource": SOURCE, "targets": asked}
    fields = {"defaults": {"unit": unit}, "overrides": []}
    return made | {"fieldConfig": fields} | ({"description": text} if text else {})


def _value(at: int, columns: int) -> str:
    """What Grafana calls the column of a query."""
    return "Value" if columns == 1 else f"Value #{_letter(at)}"


def _letter(at: int) -> str:
    return "ABCDEFGH"[at]


def _override(name: str, key: str, value: Any) -> dict[str, Any]:
    return {"matcher": {"id": "byName", "options": name}, "properties": [{"id": key, "value": value}]}


def _steps(steps: list[dict[str, Any]]) -> dict[str, Any]:
    return {"mode": "absolute", "steps": steps}


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}
