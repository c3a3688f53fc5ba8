"""Every link of the documentation leads somewhere, and every page is reached from its index."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from docs.pages import DOCS, ROOT, anchors, links, pages

ALL = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md", ROOT / "charts" / "nodemem" / "README.md"]
WRITTEN_ELSEWHERE = {"performance.md"}


def local(page: Path) -> list[tuple[str, Path, str]]:
    """Links to files here: as written, the file, the anchor."""
    found = []
    for link in links(page):
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        found.append((link, (page.parent / parts.path).resolve() if parts.path else page, parts.fragment))
    return found


@pytest.mark.parametrize("page", ALL, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    broken = []
    for link, target, anchor in local(page):
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_the_index_has_every_page() -> None:
    index = DOCS / "README.md"
    linked = {target for _, target, _ in local(index)}
    missing = [page.name for page in pages() if page != index and page not in linked]
    assert not missing


def test_links_to_the_repository_on_the_web_name_files_that_are_here() -> None:
    """In what programs print and in the manifest for krew."""
    base = "https://github.com/nodemem/nodemem/blob/main/"
    sources = [*(ROOT / "operator").rglob("*.py"), ROOT / "deploy" / "krew" / "nodemem.yaml"]
    found = 0
    for source in sources:
        for piece in source.read_text().split(base)[1:]:
            path = piece.split('"')[0].split()[0].rstrip(".,)")
            found += 1
            assert (ROOT / path.replace("{DOCS}", "docs")).exists(), (source, path)
    assert found
