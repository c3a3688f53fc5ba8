"""How figures moved: one small chart for each, with what the growth leads to."""

from collections.abc import Iterator
from dataclasses import dataclass

from nodemem.cli.html.data import Extras
from nodemem.cli.html.parts import Styles, details, moment, table, when
from nodemem.cli.html.tags import Content, Element, tag
from nodemem.cli.text import binary_size, duration, growth
from nodemem.node.status import ReportStatus
from nodemem.node.trends import Series, seconds_until
from nodemem.node.units import timestamp

TMPFS_SHOWN = 3
FORECAST_SHARE = 0.5
"""How far a chart looks ahead, as a share of the time that it looks back."""


@dataclass(frozen=True, slots=True)
class Figure:
    """``limit_bytes``: the line that growth runs into, if any; ``limit_name`` says what it is. ``full_at`` is the
    report's."""

    name: str
    series: Series
    bytes_per_hour: float | None
    limit_bytes: int | None
    limit_name: str
    full_at: str | None = None


def figures(status: ReportStatus, extras: Extras) -> list[Figure]:
    history = extras.history
    if history is None:
        return []
    total = status.memory.total_bytes
    found = []
    if (series := history.series("shmem")) is not None:
        found.append(Figure("Shmem", series, status.shmem.growth_bytes_per_hour, None, ""))
    for each in status.tmpfs:
        series = history.series(f"tmpfs {each.device}")
        if series is None or len(found) > TMPFS_SHOWN:
            continue
        name = f"tmpfs {each.mount_point or each.device}"
        found.append(Figure(name, series, each.growth_bytes_per_hour, each.size_bytes, "its size", each.full_at))
    if (series := history.series("available")) is not None:
        found.append(Figure("Available", series, history.bytes_per_hour("available"), total, "MemTotal"))
    return found


def charts(status: ReportStatus, extras: Extras, styles: Styles) -> Iterator[Element]:
    found = figures(status, extras)
    if not found:
        yield tag(
            "p",
            "This report has no earlier figures with it. What its growth was is in the tables above; nodemem report on "
            "the node keeps figures between runs.",
        )
        return
    if all(len(each.series.times) < 2 for each in found):
        yield tag(
            "p",
            "There is one sample only, so nothing can be said of growth yet. Run nodemem report --html again in some "
            "minutes: figures are kept between runs.",
        )
        return
    grid = tag("div", class_="charts")
    for number, each in enumerate(found):
        if len(each.series.times) >= 2:
            grid.append(_chart(number, each, styles))
    yield grid


def _chart(number: int, figure: Figure, styles: Styles) -> Element:
    times, values = figure.series.times, figure.series.values
    start, now = times[0], times[-1]
    span = now - start
    rate = figure.bytes_per_hour
    horizon = now + FORECAST_SHARE * span
    top = _top(figure, values, rate, span)
    at = (lambda time: 100 * (time - start) / (horizon - start), lambda value: 100 - 100 * value / top)

    line = " ".join(f"{at[0](time):.2f},{at[1](value):.2f}" for time, value in zip(times, values, strict=True))
    drawn: list[Content] = [
        tag("polygon", points=f"0,100 {line} {at[0](now):.2f},100", class_="area"),
        tag("polyline", points=line, class_="line"),
    ]
    labels: list[Content] = []
    if figure.limit_bytes is not None and figure.limit_bytes <= top:
        level = f"{at[1](figure.limit_bytes):.2f}"
        drawn.insert(0, tag("line", x1="0", x2="100", y1=level, y2=level, class_="limit"))
    if rate is not None:
        ahead = min(max(values[-1] + rate * (horizon - now) / 3600, 0), top)
        end = now + (ahead - values[-1]) / rate * 3600 if rate else horizon
        points = f"{at[0](now):.2f},{at[1](values[-1]):.2f} {at[0](end):.2f},{at[1](ahead):.2f}"
        drawn.append(tag("polyline", points=points, class_="forecast"))
    reached = f", {figure.limit_name}" if figure.limit_bytes == top else ""
    labels.append(tag("span", f"{binary_size(top)}{reached}", class_="y top"))
    labels.append(tag("span", "0", class_="y bottom"))
    labels.append(tag("span", timestamp(start)[11:16], class_="x start"))
    now_name = f"c{number}-now"
    labels.append(tag("span", f"{timestamp(now)[11:16]} UTC", class_="x now", id=now_name))
    labels.append(tag("span", f"+{duration(horizon - now)}", class_="x end"))
    drawing = tag("svg", *drawn, preserveAspectRatio="none", role="img", aria_label=_told(figure))
    drawing.set("viewBox", "0 0 100 100")
    styles.place(now_name, left=at[0](now))
    samples = table(
        f"Samples of {figure.name}",
        [("Time", "text"), ("Size", "number")],
        [[when(timestamp(time)), binary_size(value)] for time, value in zip(times, values, strict=True)],
    )
    return tag(
        "figure",
        tag("figcaption", tag("strong", figure.name), " ", _told(figure)),
        tag("div", drawing, *labels, class_="chart"),
        details(f"{len(times)} samples in {duration(span)}", samples),
    )


def _top(figure: Figure, values: list[int], rate: float | None, span: float) -> float:
    """The limit, where what is drawn comes near enough to it for both to be seen."""
    largest = max(*values, values[-1] + max(0.0, rate or 0) * FORECAST_SHARE * span / 3600, 1)
    if figure.limit_bytes is not None and (largest >= figure.limit_bytes / 8 or figure.name == "Available"):
        return max(figure.limit_bytes, largest)
    return 1.15 * largest


def _told(figure: Figure) -> str:
    """What the chart shows, for people who can't see it, too."""
    values = figure.series.values
    text = f"from {binary_size(values[0])} to {binary_size(values[-1])}"
    pace = growth(figure.bytes_per_hour)
    text += {"unknown": ", growth unknown", "0": ", no steady growth"}.get(pace, f", {pace}")
    if figure.full_at is not None:
        text += f", full at {moment(figure.full_at)}"
    elif figure.name == "Available" and figure.bytes_per_hour is not None:
        left = seconds_until(values[-1], -figure.bytes_per_hour)
        text += "" if left is None else f", none left in {duration(left)}"
    if figure.limit_bytes is not None:
        text += f" ({figure.limit_name}: {binary_size(figure.limit_bytes)})"
    return text
