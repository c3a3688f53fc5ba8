"""A squarified treemap: rectangles whose areas are to each other as the numbers they stand for.

Pure. After Bruls, Huizing and van Wijk, "Squarified Treemaps" (2000): rows of rectangles along the shorter side, each
row as long as that makes its rectangles squarer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from nodemem.cli.html.tree import Node


class Rect(NamedTuple):
    """In units of the map's width and height, from its top left corner."""

    x: float
    y: float
    width: float
    height: float

    @property
    def area(self) -> float:
        return self.width * self.height


@dataclass(frozen=True, slots=True)
class Tile:
    """A node's place. ``parent`` is an index into the list of tiles, None for the root's. ``bands``: how many tiles
    above it in the tree, the root aside, begin at the same top edge, so that their names come first there."""

    node: Node
    rect: Rect
    parent: int | None
    depth: int
    bands: int


def layout(root: Node, aspect: float = 1.6) -> list[Tile]:
    """The root over the whole map, parents before their children. ``aspect``: width to height of the map as it will be
    shown; it decides how square the tiles look, never their areas.

    Children fill their parent: where they add up to more than it holds (pages counted twice), they are to scale among
    themselves.
    """
    tiles: list[Tile] = []
    queue: list[tuple[Node, Rect, int | None, int, int]] = [(root, Rect(0, 0, 1, 1), None, 0, 0)]
    for node, rect, parent, depth, bands in queue:  # grows while it is walked
        number = len(tiles)
        tiles.append(Tile(node, rect, parent, depth, bands))
        children = sorted(node.children, key=lambda each: -each.bytes)
        # Laid out in the shape that is seen, then scaled back to the map's units.
        seen = Rect(rect.x * aspect, rect.y, rect.width * aspect, rect.height)
        for child, place in zip(children, squarify([each.bytes for each in children], seen), strict=True):
            inside = Rect(place.x / aspect, place.y, place.width / aspect, place.height)
            at_top = parent is not None and abs(place.y - rect.y) < 1e-9
            queue.append((child, inside, number, depth + 1, bands + 1 if at_top else 0))
    return tiles


def squarify(values: Sequence[float], rect: Rect) -> list[Rect]:
    """A rectangle for each of ``values`` (positive, best in falling order), in the same order; together they are
    ``rect``."""
    total = sum(values)
    if not values or total <= 0:
        return []
    scale = rect.area / total
    found: list[Rect] = []
    rest, start = rect, 0
    while start < len(values):
        side = min(rest.width, rest.height)
        end = start + 1
        row = values[start] * scale
        while end < len(values):
            longer = row + values[end] * scale
            if _worst(values[start : end + 1], scale, longer, side) > _worst(values[start:end], scale, row, side):
                break
            row, end = longer, end + 1
        last = end == len(values)
        *placed, rest = _row([each * scale for each in values[start:end]], row, rest, last)
        found += placed
        start = end
    return found


def _worst(values: Sequence[float], scale: float, row: float, side: float) -> float:
    """The least square of a row's rectangles, as the ratio of its sides."""
    if row <= 0 or side <= 0:
        return float("inf")
    square = row * row
    largest, smallest = max(values) * scale, min(values) * scale
    return max(side * side * largest / square, square / (side * side * smallest) if smallest > 0 else float("inf"))


def _row(areas: Sequence[float], row: float, rest: Rect, last: bool) -> Iterator[Rect]:
    """The row's rectangles, then what is left for the next rows."""
    wide = rest.width >= rest.height
    length = rest.height if wide else rest.width
    room = rest.width if wide else rest.height
    depth = room if last else min(room, row / length) if length > 0 else 0.0
    at = 0.0
    for number, area in enumerate(areas):
        # The last one takes what is left, so that rounding leaves no gap.
        extent = length - at if number == len(areas) - 1 else (area / row * length if row > 0 else 0.0)
        yield Rect(rest.x, rest.y + at, depth, extent) if wide else Rect(rest.x + at, rest.y, extent, depth)
        at += extent
    if wide:
        yield Rect(rest.x + depth, rest.y, rest.width - depth, rest.height)
    else:
        yield Rect(rest.x, rest.y + depth, rest.width, rest.height - depth)
