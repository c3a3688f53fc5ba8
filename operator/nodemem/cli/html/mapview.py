"""The treemap as nested lists: what a screen reader reads is what is drawn."""

from nodemem.cli.html import tree
from nodemem.cli.html.parts import Styles
from nodemem.cli.html.tags import Element, add, tag
from nodemem.cli.html.tree import Node
from nodemem.cli.html.treemap import Tile, layout
from nodemem.cli.text import binary_size


def treemap(root: Node, styles: Styles) -> list[Element]:
    """Without script it shows everything at once; with it, one can go inside."""
    tiles = layout(root)
    elements: list[Element] = []
    lists: dict[int, Element] = {}
    for number, tile in enumerate(tiles):
        element = _tile(number, tile, root.bytes)
        _place(number, tile, tiles, styles)
        elements.append(element)
        if tile.parent is not None:
            if tile.parent not in lists:
                lists[tile.parent] = tag("ul")
                elements[tile.parent].append(lists[tile.parent])
            lists[tile.parent].append(element)
    drawing = tag("ul", elements[0], class_="map", id="map", aria_label="Where the memory is, as areas")
    kinds = {tile.node.kind for tile in tiles[1:]}
    legend = tag("ul", class_="legend", aria_label="Colours")
    for kind, words in tree.KINDS.items():
        if kind in kinds:
            add(legend, tag("li", tag("span", class_=f"swatch {kind}", aria_hidden="true"), words))
    return [
        tag("nav", id="crumbs", class_="crumbs", aria_label="Place in the map", hidden="hidden"),
        drawing,
        tag("p", tree.label(root, 0), id="map-detail", class_="detail"),
        legend,
    ]


def _tile(number: int, tile: Tile, total: int) -> Element:
    node = tile.node
    words = tree.label(node, total if number else 0)
    name = tag("span", _short(node.name), class_="name")
    size = tag("span", binary_size(node.bytes), class_="size")
    # A label that does not fit goes to a second line, or column, which is cut off (page.css).
    label = tag("span", tag("span", tag("i"), name, " ", size, class_="line"), class_="label")
    group = " group" if node.children else ""
    box = " ".join(f"{edge:.8f}" for edge in tile.rect)  # in units of the map, for the script that goes inside
    return tag("li", label, class_=f"tile {node.kind}{group}", id=f"t{number}", title=words, data_box=box)


def _short(name: str) -> str:
    return name if len(name) <= 60 else f"…{name[-59:]}"


def _place(number: int, tile: Tile, tiles: list[Tile], styles: Styles) -> None:
    """In percent of the parent, in which the element lies."""
    outer = tiles[tile.parent].rect if tile.parent is not None else tile.rect
    if outer.width <= 0 or outer.height <= 0:
        return
    styles.place(
        f"t{number}",
        left=100 * (tile.rect.x - outer.x) / outer.width,
        top=100 * (tile.rect.y - outer.y) / outer.height,
        width=100 * tile.rect.width / outer.width,
        height=100 * tile.rect.height / outer.height,
        bands=tile.bands,
    )
