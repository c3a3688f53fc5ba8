"""One page of a machine in trouble, and Debian's Chromium to look at it with."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

import debian
from page import scene

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass(frozen=True)
class Made:
    """``path``: the page; ``capture`` and ``replayed``: a capture of the same machine and the page made from that."""

    path: Path
    capture: Path
    replayed: Path
    said: str
    scene: scene.Scene


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    place = tmp_path_factory.mktemp("page")
    path, capture, replayed = place / "report.html", place / "node.tar.gz", place / "replayed.html"
    nodemem = [sys.executable, "-m", "nodemem"]
    with scene.trouble() as trouble:
        said = scene.write_page(path, trouble)
        subprocess.run([*nodemem, "capture", str(capture)], check=True, capture_output=True)
        subprocess.run(
            [*nodemem, "report", "--root", str(capture), "--html", str(replayed)], check=True, capture_output=True
        )
        yield Made(path, capture, replayed, said, trouble)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Not longer than a module: while playwright runs, its event loop is this thread's, and others can't have one."""
    chromium = debian.ensure("chromium", "chromium")
    with sync_playwright() as driver, driver.chromium.launch(executable_path=chromium, args=FLAGS) as found:
        yield found


@dataclass
class Looked:
    """``said``: errors and warnings of the console; ``asked``: everything the page wanted to load, ``refused`` what it
    did not get, and why."""

    page: Page
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    refused: dict[str, str | None] = field(default_factory=dict)


@pytest.fixture
def look(browser: Browser, made: Made) -> Iterator[Callable[..., Looked]]:
    """Open the page in a window of its own, offline: ``look(color_scheme="dark")``."""
    with ExitStack() as stack:

        def opened(width: int = 1280, height: int = 900, path: Path | None = None, **options: Any) -> Looked:
            context = browser.new_context(viewport={"width": width, "height": height}, offline=True, **options)
            stack.callback(context.close)
            looked = Looked(context.new_page())
            looked.page.on("console", lambda message: looked.said.append(message.text))
            looked.page.on("pageerror", lambda error: looked.said.append(str(error)))
            looked.page.on("request", lambda request: looked.asked.append(request.url))
            looked.page.on("requestfailed", lambda request: looked.refused.update({request.url: request.failure}))
            looked.page.goto((path or made.path).as_uri())
            return looked

        yield opened
