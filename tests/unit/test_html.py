"""The page of `nodemem report --html`: areas to scale, the report's own numbers, and no text that can become markup."""

import base64
import dataclasses
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import samples
from nodemem.api import convert
from nodemem.cli.html import data, tags, tree
from nodemem.cli.html.data import Extras
from nodemem.cli.html.page import page
from nodemem.cli.html.tree import Node
from nodemem.cli.html.treemap import Rect, layout, squarify
from nodemem.cli.oom_rank import RankedProcess
from nodemem.cli.reportview import SHMEM_SOURCES
from nodemem.cli.text import binary_size, printable
from nodemem.kernel import meminfo
from nodemem.node import report
from nodemem.node.status import (
    MemoryStatus,
    ProcessStatus,
    ReportStatus,
    ShmemObjectStatus,
    TmpfsEntryStatus,
)
from nodemem.node.trends import History

GIB = 1 << 30
MIB = 1 << 20


class Parsed(HTMLParser):
    """What a browser makes of it: elements with their attributes, and the text of each kind of element."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "rect", "line", "polyline", "polygon"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        self.text.setdefault(self._open[-1] if self._open else "", []).append(data)

    def all_text(self) -> str:
        return "\n".join("".join(parts) for name, parts in self.text.items() if name not in ("script", "style"))


def memory(**sizes: int | None) -> MemoryStatus:
    """Of 64 GiB, free but for ``sizes``."""
    parts: dict[str, Any] = {
        field.name: 0 for field in dataclasses.fields(MemoryStatus) if field.name not in ("total_bytes", "free_bytes")
    }
    parts |= sizes
    used = sum(parts[name] or 0 for name in parts if name not in ("available_bytes", "hidden_bytes"))
    return MemoryStatus(total_bytes=64 * GIB, free_bytes=64 * GIB - used, **parts)


def leaking() -> ReportStatus:
    """A node with 16 GiB in /run, of which the largest files are known."""
    run = dataclasses.replace(
        samples.tmpfs(1),
        device="0:25",
        mount_point="/run",
        scope="Host",
        used_bytes=12 * GIB,
        size_bytes=16 * GIB,
        largest=(
            TmpfsEntryStatus("/log/", 11 * GIB),
            TmpfsEntryStatus("/log/a.journal", 8 * GIB, "2030-01-01T00:00:00Z"),
            TmpfsEntryStatus("/log/old/b.journal", 2 * GIB),
            TmpfsEntryStatus("/lock", GIB // 2),
        ),
    )
    status = samples.status(containers=3, exposures=2, kills=1)
    shmem = dataclasses.replace(
        status.shmem,
        **dict.fromkeys(SHMEM_SOURCES, 0),
        swapped_bytes=0,
        total_bytes=14 * GIB,
    )
    shmem = dataclasses.replace(
        shmem,
        tmpfs_bytes=12 * GIB + 512 * MIB,
        memfd_bytes=GIB,
        unattributed_bytes=512 * MIB,
        objects=(ShmemObjectStatus("memfd", "0:1", 7, 768 * MIB, "/memfd:x", (4711,), None),),
    )
    process = ProcessStatus(4711, "java", None, "app.service", 3 * GIB, 0, 0, 3 * GIB, 0, 0, -500, 100)
    return dataclasses.replace(
        status,
        tmpfs=(run,),
        shmem=shmem,
        memory=memory(shmem_bytes=14 * GIB, anonymous_bytes=4 * GIB, page_cache_bytes=GIB, vmalloc_bytes=None),
        processes=(process,),
        verdict="14.0 GiB of Shmem.",
    )


def find(node: Node, name: str) -> Node:
    found = [each for each in walk(node) if each.name == name]
    assert len(found) == 1, name
    return found[0]


def walk(node: Node) -> list[Node]:
    return [node, *(each for child in node.children for each in walk(child))]


# --- treemap

SIZES = st.lists(st.integers(1, 1 << 50), min_size=1, max_size=40)


@given(SIZES, st.floats(0.2, 5), st.booleans())
def test_areas_are_to_each_other_as_the_sizes_and_fill_the_whole(sizes: list[int], width: float, falling: bool) -> None:
    sizes = sorted(sizes, reverse=True) if falling else sizes
    whole = Rect(2, 3, width, 1)
    rects = squarify(sizes, whole)
    assert len(rects) == len(sizes)
    for size, rect in zip(sizes, rects, strict=True):
        assert rect.area / whole.area == pytest.approx(size / sum(sizes), rel=1e-5, abs=1e-9)
        assert rect.x >= whole.x - 1e-9
        assert rect.y >= whole.y - 1e-9
        assert rect.x + rect.width <= whole.x + whole.width + 1e-9
        assert rect.y + rect.height <= whole.y + whole.height + 1e-9
    assert sum(rect.area for rect in rects) == pytest.approx(whole.area)


@given(SIZES)
def test_no_two_tiles_overlap(sizes: list[int]) -> None:
    rects = squarify(sorted(sizes, reverse=True), Rect(0, 0, 1.6, 1))
    for number, one in enumerate(rects):
        for other in rects[number + 1 :]:
            wide = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
            high = min(one.y + one.height, other.y + other.height) - max(one.y, other.y)
            assert min(wide, high) <= 1e-9


def test_tiles_of_equal_size_come_out_as_squares() -> None:
    for rect in squarify([1] * 16, Rect(0, 0, 1, 1)):
        assert rect.width == pytest.approx(rect.height)


NODES = st.recursive(
    st.builds(Node, st.just("leaf"), st.integers(1, 1 << 40), st.just("shmem")),
    lambda inner: st.lists(inner, min_size=1, max_size=5).map(
        lambda children: Node("group", sum(each.bytes for each in children), "shmem", "", tuple(children))
    ),
    max_leaves=25,
)


@given(NODES, st.floats(0.3, 3))
def test_tiles_of_every_level_are_on_one_scale(root: Node, aspect: float) -> None:
    tiles = layout(root, aspect)
    for tile in tiles:
        assert tile.rect.area == pytest.approx(tile.node.bytes / root.bytes, rel=1e-4, abs=1e-9)
        if tile.parent is not None:
            outer = tiles[tile.parent].rect
            assert outer.x - 1e-9 <= tile.rect.x
            assert tile.rect.x + tile.rect.width <= outer.x + outer.width + 1e-9


def test_a_label_leaves_room_for_the_names_of_the_tiles_it_begins_under() -> None:
    file = Node("file", 4, "shmem")
    directory = Node("directory", 4, "shmem", "", (file,))
    root = Node("Memory", 8, "free", "", (Node("Shmem", 8, "shmem", "", (directory, Node("beside", 4, "shmem"))),))
    bands = {tile.node.name: tile.bands for tile in layout(root)}
    assert bands == {"Memory": 0, "Shmem": 0, "directory": 1, "beside": 1, "file": 2}


# --- the report as a tree


def test_the_tree_has_the_report_s_numbers() -> None:
    status = leaking()
    root = tree.memory_tree(status, Extras())
    assert root.bytes == status.memory.total_bytes == root.children_bytes
    assert find(root, "Shmem").bytes == status.memory.shmem_bytes == find(root, "Shmem").children_bytes
    assert find(root, "Free").bytes == status.memory.free_bytes
    assert find(root, "/run").bytes == 12 * GIB
    assert find(root, "elsewhere in tmpfs").bytes == 512 * MIB
    assert find(root, "/memfd:x").bytes == 768 * MIB
    assert "java (pid 4711)" in find(root, "/memfd:x").detail
    assert find(root, "java").bytes == 3 * GIB
    assert find(root, "other processes").bytes == GIB
    assert find(root, "unattributed").kind == "unknown"


def test_files_lie_in_the_directories_that_are_listed_with_the_rest() -> None:
    run = find(tree.memory_tree(leaking(), Extras()), "/run")
    assert [(each.name, each.bytes) for each in run.children] == [
        ("log/", 11 * GIB),
        ("lock", GIB // 2),
        ("other files", GIB // 2),
    ]
    assert [(each.name, each.bytes) for each in run.children[0].children] == [
        ("a.journal", 8 * GIB),
        ("old/b.journal", 2 * GIB),
        ("other files", GIB),
    ]
    assert run.children[0].children[0].detail == "/run/log/a.journal"


@given(
    st.lists(st.tuples(st.from_regex(r"(/[ab]{1,2}){1,4}/?", fullmatch=True), st.integers(0, 100)), max_size=25),
    st.integers(1, 200),
)
def test_no_file_is_lost_or_counted_twice_and_nothing_exceeds_the_tmpfs_unsaid(
    found: list[tuple[str, int]], used: int
) -> None:
    children = tree.contents(found, used)
    sizes = {path: size for path, size in found if size}
    if len(sizes) <= tree.CHILDREN_SHOWN:
        names = [each.detail.split(";")[0] for child in children for each in walk(child) if each.name != "other files"]
        assert sorted(names) == sorted(sizes)
    for each in (each for child in children for each in walk(child)):
        assert each.bytes > 0
        assert not each.children or each.children_bytes >= each.bytes
        assert each.children_bytes <= each.bytes or "adds up to" in each.detail


def test_a_deleted_file_is_not_counted_in_its_tmpfs_as_well() -> None:
    status = leaking()
    gone = ShmemObjectStatus("deletedOpen", "0:25", 9, 2 * GIB, "/run/gone", (), None)
    shmem = dataclasses.replace(
        status.shmem, tmpfs_bytes=10 * GIB + 512 * MIB, deleted_open_bytes=2 * GIB, objects=(gone,)
    )
    root = tree.memory_tree(dataclasses.replace(status, shmem=shmem), Extras())
    assert find(root, "/run").bytes == 10 * GIB
    assert find(root, "/run/gone").bytes == 2 * GIB
    assert find(root, "Shmem").children_bytes == find(root, "Shmem").bytes


def test_unknown_and_negative_parts_have_no_area_and_are_in_the_table() -> None:
    status = dataclasses.replace(leaking(), memory=memory(vmalloc_bytes=None, unaccounted_bytes=-5 * MIB))
    names = {each.name for each in walk(tree.memory_tree(status, Extras()))}
    assert not names & {"vmalloc", "Unaccounted"}
    text = Parsed(page(status, "n1")).all_text()
    assert "-5.0 MiB" in text
    assert "the kernel's counters claim more than there is" in text
    assert "unknown" in text


def test_every_part_and_source_of_a_report_has_a_name() -> None:
    assert set(tree.PART_NAMES) == set(meminfo.PARTS) == set(tree.parts(memory()))
    fields = {name for name in samples.status().shmem.__dataclass_fields__ if name.endswith("_bytes")}
    assert set(SHMEM_SOURCES) == fields - {"total_bytes", "swapped_bytes"}


# --- the page


def ranked(**changes: Any) -> RankedProcess:
    return dataclasses.replace(
        RankedProcess(4711, "java", "app.service", 1000, 700, 100, 2 * MIB, 0, 4096, MIB, None), **changes
    )


def test_the_page_says_what_the_report_says() -> None:
    status = leaking()
    text = Parsed(page(status, "n1", Extras(ranking=(ranked(),)))).all_text()
    sizes = [*tree.parts(status.memory).values(), *tree.sources(status.shmem).values(), status.memory.hidden_bytes]
    for size in sizes:
        assert binary_size(size) in text
    assert status.verdict in text
    assert "2030-01-01 00:00:00 UTC" in text
    for each in status.exposures or ():
        assert each.message in text
        assert f"pause {each.predicted_victim.pid}" in text if each.predicted_victim else True


def test_why_a_process_dies_first_is_told_from_the_kernel_s_own_score() -> None:
    higher = ranked(points=2000)  # 2 MiB and a page are 513 pages: 1487 come from oom_score_adj
    text = Parsed(
        page(leaking(), "n1", Extras(ranking=(higher, ranked(points=None, unkillable="the global init"))))
    ).all_text()
    assert f"oom_score_adj 100, which counts as {binary_size(1487 * 4096)} more" in text
    assert "the global init" in text
    lower = Parsed(page(leaking(), "n1", Extras(ranking=(ranked(points=13, oom_score_adj=-5),)))).all_text()
    assert f"its size, less {binary_size(500 * 4096)} for oom_score_adj -5" in lower


def test_a_clamped_score_is_not_explained_by_the_size() -> None:
    status = leaking()
    status = dataclasses.replace(status, kernel=dataclasses.replace(status.kernel, oom_generation="ClampedLast"))
    pause = ranked(points=1, oom_score_adj=-998)
    text = Parsed(page(status, "n1", Extras(ranking=(pause,)))).all_text()
    assert "oom_score_adj -998: the score is below 1, which this kernel raises to 1 whatever the size" in text
    assert "less" not in text.partition("In this order")[2].partition("Exposed")[0]


def test_the_report_can_be_read_back_from_the_page() -> None:
    status = leaking()
    embedded = json.loads("".join(Parsed(page(status, "n1")).text["script"]).partition('"use strict"')[0])
    assert embedded == printable(report.as_object(status, "n1"))


def test_a_cluster_s_report_makes_a_page_with_what_it_has() -> None:
    whole = samples.status(containers=110, file_systems=40, exposures=3, kills=2)
    read = convert.read(ReportStatus, convert.wire(whole))
    text = Parsed(page(read, "node-7")).all_text()
    assert "is not part of a cluster's report" in text
    assert "no earlier figures" in text
    assert "And 20 more, smaller or empty." in text
    assert "team-payments-production/checkout-frontend" in text
    assert "simulator-1" in text


def test_growth_is_drawn_from_two_samples_on() -> None:
    history = History("boot")
    history.observe(1_900_000_000, [("shmem", 10 * GIB), ("tmpfs 0:25", 8 * GIB)])
    one = Parsed(page(leaking(), "n1", Extras(history=history)))
    assert "There is one sample only" in one.all_text()
    assert not any(name == "figure" for name, _ in one.elements)
    history.observe(1_900_003_600, [("shmem", 14 * GIB), ("tmpfs 0:25", 12 * GIB)])
    two = Parsed(page(leaking(), "n1", Extras(history=history)))
    assert sum(name == "figure" for name, _ in two.elements) == 2
    assert "from 8.0 GiB to 12.0 GiB" in two.all_text()
    [line] = [
        attributes["points"]
        for name, attributes in two.elements
        if name == "polyline" and attributes["class"] == "line" and "25.00" in (attributes["points"] or "")
    ]
    assert line == "0.00,50.00 66.67,25.00", "8 and 12 of 16 GiB, the size; a third of the width is the time ahead"


HOSTILE = st.text(min_size=1, max_size=60) | st.sampled_from(
    [
        "</script><script>evil()</script>",
        "<!--<script>",
        "]]>",
        "&lt;&amp;&#60;img src=x onerror=evil()>",
        '"><img src=x onerror="evil()">',
        "' onmouseover='evil()",
        "javascript:evil()",
        "}</style><style>*{background:url(//x)}",
        "\x00\x1b[31m\u202e\u2028\ufffe",
        b"\xff\xfe/\xc3(".decode("utf-8", "surrogateescape"),
        "a" * 5000,
    ]
)


@settings(max_examples=60, deadline=None)
@given(HOSTILE, HOSTILE, HOSTILE)
def test_no_name_becomes_markup(comm: str, path: str, words: str) -> None:
    quiet = leaking()
    [file_system] = quiet.tmpfs
    entry = TmpfsEntryStatus(f"/{path}", 5 * GIB)
    loud = dataclasses.replace(
        quiet,
        verdict=words,
        kernel=dataclasses.replace(quiet.kernel, release=words),
        tmpfs=(
            dataclasses.replace(
                file_system,
                mount_point=f"/{path}",
                largest=(entry, *file_system.largest),
                written_by=(comm,),
                owner=dataclasses.replace(file_system.owner, pod_name=comm, pod_namespace=words, volume=path),
            ),
        ),
        processes=tuple(dataclasses.replace(each, comm=comm, owner=words) for each in quiet.processes or ()),
        exposures=tuple(dataclasses.replace(each, message=words, name=comm) for each in quiet.exposures or ()),
    )
    allowed = {name for name, _ in Parsed(page(quiet, "n1", Extras(ranking=(ranked(),)))).elements}
    made = page(loud, words, Extras(ranking=(ranked(comm=comm, owner=words),)))
    parsed = Parsed(made)
    assert {name for name, _ in parsed.elements} <= allowed
    assert sum(name == "script" for name, _ in parsed.elements) == 2
    assert sum(name == "style" for name, _ in parsed.elements) == 1
    for name, attributes in parsed.elements:
        assert not any(key.startswith("on") or key == "style" for key in attributes), (name, attributes)
        assert (attributes.get("href") or "#").startswith("#")
        assert "src" not in attributes
    raw = re.search(r'<script type="application/json" id="report">(.*?)</script>', made, re.DOTALL)
    assert raw is not None
    assert not set("<>&") & set(raw[1])
    assert json.loads(raw[1]) == printable(report.as_object(loud, words))
    made.encode("utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e\u2028\ufffe]", made)


def test_its_policy_allows_this_style_and_this_script_and_nothing_else() -> None:
    made = page(leaking(), "n1")
    parsed = Parsed(made)
    [policy] = [each["content"] for _, each in parsed.elements if each.get("http-equiv") == "Content-Security-Policy"]
    style = re.search("<style>(.*?)</style>", made, re.DOTALL)
    script = re.search("<script>(.*?)</script>", made, re.DOTALL)
    assert policy is not None
    assert style is not None
    assert script is not None
    digests = [base64.b64encode(hashlib.sha256(each[1].encode()).digest()).decode() for each in (style, script)]
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )
    assert not re.search(r"(?i)https?://|\burl\(|@import|\bfetch\(|XMLHttpRequest|eval\(", style[1] + script[1])


def test_a_machine_with_a_great_many_of_everything_still_makes_a_small_page() -> None:
    long = "x" * 255
    process = ProcessStatus(1, "comm-of-15-byte", "c" * 64, "unit-" + long, *([GIB] * 6), 0, 0)
    mapped = ShmemObjectStatus("memfd", "0:1", 7, MIB, long, tuple(range(200)), "c" * 64)
    status = samples.status(containers=0, file_systems=0)
    many = dataclasses.replace(
        status,
        processes=tuple(dataclasses.replace(process, pid=number) for number in range(20_000)),
        tmpfs=tuple(map(samples.tmpfs, range(2000))),
        containers=tuple(map(samples.container, range(2000))),
        shmem=dataclasses.replace(status.shmem, objects=(mapped,) * 5000),
    )
    kept, left_out = data.bounded(many)
    assert left_out == {"tmpfs": 1980, "containers": 1960, "processes": 19_900, "shared memory objects": 4900}
    assert (kept.omitted.tmpfs, kept.omitted.containers) == (1980, 1960)
    assert kept.omitted.tmpfs_used_bytes == 1980 * (samples.tmpfs(0).used_bytes or 0)
    assert kept.omitted.containers_usage_bytes == 1960 * (samples.container(0).usage_bytes or 0)
    ranking = tuple(ranked(pid=number, owner=long) for number in range(20_000))
    made = page(kept, "n1", Extras(ranking=ranking, left_out=left_out))
    assert len(made) < 1_000_000
    text = Parsed(made).all_text()
    assert "19900 processes" in text
    assert "19980 more that would be taken later" in text
    assert sum(name == "tr" for name, _ in Parsed(made).elements) < 400


def test_text_that_could_end_its_element_is_refused() -> None:
    with pytest.raises(ValueError, match="could end it"):
        tags.raw("script", "</script>")
    with pytest.raises(ValueError, match="could end it"):
        tags.raw("style", "<!--")
