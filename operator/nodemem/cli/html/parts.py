"""Pieces that every section uses: tables, times, code to copy, and the rules of style that carry positions."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from nodemem.cli.html.tags import Content, Element, add, tag


class Styles:
    """Positions and sizes that come from data: the policy of the page allows no style attributes, so each is a rule of
    its one style sheet. Takes numbers only."""

    def __init__(self) -> None:
        self._rules: list[str] = []

    def place(self, name: str, **numbers: float) -> None:
        """``place("t1", left=25.0)``: in percent; ``bands`` is a plain number, in a variable."""
        words = [f"--bands:{value:d}" if key == "bands" else f"{key}:{value:.4f}%" for key, value in numbers.items()]
        self._rules.append(f"#{name}{{{';'.join(words)}}}")

    def text(self) -> str:
        return "\n".join(self._rules)


Cell = Content | Sequence[Content]


def table(caption: str, columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[Cell]], note: str = "") -> Element:
    """Columns are (heading, "text" | "number" | "name"); the first one names its row. Scrolls by itself where it is too
    wide."""
    head = tag("tr", *(tag("th", name, scope="col", class_=kind) for name, kind in columns))
    body = tag("tbody")
    for row in rows:
        line = tag("tr")
        for number, ((_, kind), cell) in enumerate(zip(columns, row, strict=True)):
            content = [cell] if isinstance(cell, Element | str) or cell is None else cell
            name, scope = ("th", "row") if number == 0 else ("td", None)
            line.append(tag(name, *content, scope=scope, class_=kind))
        body.append(line)
    title = tag("caption", caption)
    if note:
        add(title, tag("span", note, class_="note"))
    whole = tag("table", title, tag("thead", head), body)
    return tag("div", whole, class_="scroll", role="region", aria_label=caption, tabindex="0")


def moment(text: str) -> str:
    """An RFC 3339 time, readable and with its zone; as it is where it is none."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except ValueError:
        return text


def when(text: str | None) -> Element | str:
    return "unknown" if text is None else tag("time", moment(text), datetime=text)


def code(text: str) -> Element:
    return tag("pre", tag("code", text.rstrip("\n")), tabindex="0")


def bar(share: float, kind: str) -> Element:
    """The share as a length; the number stands beside it in the table."""
    width = f"{100 * max(0.0, min(1.0, share)):.2f}"
    rect = tag("rect", width=width, height="8")
    drawing = tag("svg", rect, class_=f"bar {kind}", preserveAspectRatio="none", aria_hidden="true", focusable="false")
    drawing.set("viewBox", "0 0 100 8")
    return drawing


def section(name: str, title: str, *content: Content) -> Element:
    heading = tag("h2", title, id=f"{name}-title")
    return tag("section", heading, *content, id=name, aria_labelledby=f"{name}-title")


def details(summary: str, *content: Content) -> Element:
    return tag("details", tag("summary", summary), *content)
