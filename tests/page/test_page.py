"""The page of `nodemem report --html` in a real browser: a machine with a leak, a memfd, an exposed container, and
names that are markup."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

import debian
from kernel.workloads import MIB
from page.conftest import Looked, Made
from page.scene import EVIL_COMM, FILES, LEAK

Look = Callable[..., Looked]
SCHEMES = ("light", "dark")


def embedded(page: Page) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(page.locator("script#report").text_content() or "")
    return found


def tile(page: Page, name: str) -> Any:
    return page.locator(f"#map .tile:has(> .label .name:text-is({json.dumps(name)}))").first


def starting(text: str) -> re.Pattern[str]:
    return re.compile(f"^{re.escape(text)}")


def area(page: Page, name: str) -> float:
    box = tile(page, name).bounding_box()
    assert box is not None
    return float(box["width"] * box["height"])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_it_loads_nothing_and_the_console_stays_empty(look: Look, made: Made, scheme: str) -> None:
    looked = look(color_scheme=scheme)
    looked.page.locator("#map .tile.shmem").first.click()
    assert looked.said == []
    assert looked.asked == [made.path.as_uri()]


def test_the_verdict_comes_first_and_is_the_report_s(look: Look, made: Made) -> None:
    page = look().page
    status = embedded(page)["status"]
    assert page.locator("header p").first.inner_text() == status["verdict"]
    assert made.scene.leak.path in status["verdict"]
    assert "full in" in status["verdict"]
    assert "open it in a browser" in made.said


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_axe_finds_no_fault_with_it(look: Look, scheme: str, width: int) -> None:
    page = look(width, color_scheme=scheme, reduced_motion="reduce").page
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    for step in ("whole", "inside"):
        if step == "inside":
            page.locator("#map .tile.shmem").first.click()
        found = Axe().run(page, options={"resultTypes": ["violations"]})
        assert found.violations_count == 0, f"{step}: {found.generate_report()}"
        assert len(found.response["passes"]) > 20


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_label_in_the_map_has_enough_contrast(look: Look, scheme: str) -> None:
    """axe passes over text on tiles that other elements cover: here the colours are put together by hand."""
    page = look(color_scheme=scheme).page
    contrasts = page.evaluate(
        """() => {
          const rgba = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
          const over = (top, below) => below.map((c, i) => i < 3 ? top[i] * top[3] + c * (1 - top[3]) : 1);
          const light = (c) => { const [r, g, b] = c.slice(0, 3).map((v) => v / 255).map(
            (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126*r + 0.7152*g + 0.0722*b; };
          const found = {};
          for (const tile of document.querySelectorAll("#map .tile .tile")) {
            const own = getComputedStyle(document.documentElement);
            const probe = document.createElement("i");
            document.body.append(probe);
            probe.style.background = getComputedStyle(tile).getPropertyValue("--tile");
            let colour = rgba(getComputedStyle(probe).backgroundColor);
            probe.style.background = own.getPropertyValue("--deeper");
            const veil = rgba(getComputedStyle(probe).backgroundColor);
            probe.remove();
            for (let up = tile; up.parentElement.parentElement.id !== "t0"; up = up.parentElement.closest(".tile"))
              if (!tile.classList.contains("unknown")) colour = over(veil, colour);
            const ink = rgba(getComputedStyle(tile).color);
            const [a, b] = [light(ink), light(colour)].sort((x, y) => y - x);
            found[tile.id] = (a + 0.05) / (b + 0.05);
          }
          return found;
        }"""
    )
    assert len(contrasts) > 20
    assert min(contrasts.values()) >= 4.5


def test_one_goes_inside_and_back_with_the_keyboard_alone(look: Look, made: Made) -> None:
    page = look(reduced_motion="reduce").page
    page.locator("body").press("Tab")
    for _ in range(60):
        if page.evaluate("document.activeElement.getAttribute('role')") == "treeitem":
            break
        page.keyboard.press("Tab")
    focused = page.locator("#map .tile:focus")
    while not (focused.get_attribute("aria-label") or "").startswith("Shmem:"):
        before = focused.get_attribute("id")
        page.keyboard.press("ArrowDown")
        assert focused.get_attribute("id") != before, "no Shmem among the parts"
    assert (page.locator("#map-detail").text_content() or "").startswith("Shmem: ")
    page.keyboard.press("Enter")
    expect(focused).to_have_attribute("aria-label", starting("files in tmpfs: "))
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    expect(focused).to_have_attribute("aria-label", starting("log/: "))
    crumbs = page.locator("#crumbs li")
    assert crumbs.all_inner_texts() == ["Memory", "Shmem", "files in tmpfs", made.scene.leak.path]
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    expect(focused).to_have_attribute("aria-label", starting("log/: "))
    for _ in range(3):
        page.keyboard.press("Escape")
    assert crumbs.all_inner_texts() == ["Memory"]
    expect(focused).to_have_attribute("aria-label", starting("Shmem: "))
    page.keyboard.press("End")
    page.keyboard.press("Tab")
    assert page.locator("#map .tile:focus").count() == 0, "the map is one stop"


def test_a_tile_that_is_entered_fills_the_map(look: Look) -> None:
    page = look(reduced_motion="reduce").page
    tile(page, "Shmem").click(position={"x": 3, "y": 40})
    whole, inside = page.locator("#map").bounding_box(), tile(page, "Shmem").bounding_box()
    assert whole is not None
    assert inside is not None
    assert [round(inside[side]) for side in inside] == [round(whole[side]) for side in whole]
    page.locator("#crumbs button").first.click()
    again = tile(page, "Shmem").bounding_box()
    assert again is not None
    assert again["width"] < whole["width"]


def test_areas_on_the_screen_are_to_scale(look: Look, made: Made) -> None:
    page = look().page
    memory = embedded(page)["status"]["memory"]
    whole = page.locator("#map").bounding_box()
    assert whole is not None
    pixels = whole["width"] * whole["height"]
    for name, field in (
        ("Shmem", "shmemBytes"),
        ("Page cache", "pageCacheBytes"),
        ("Private memory", "anonymousBytes"),
    ):
        share = memory[field] / memory["totalBytes"]
        assert area(page, name) / pixels == pytest.approx(share, abs=0.002), name
    leaked = area(page, made.scene.leak.path)
    assert leaked / area(page, "Shmem") == pytest.approx(LEAK / memory["shmemBytes"], rel=0.03)
    file = "/log/checkout/debug.log"
    assert area(page, "debug.log") / leaked == pytest.approx(FILES[file] * MIB / LEAK, rel=0.05)


def test_names_that_are_markup_stay_text(look: Look) -> None:
    page = look().page
    assert page.locator("img, iframe, object, embed, link, base, b, i:not(.line > i)").count() == 0
    assert page.locator("script").count() == 2
    assert page.get_by_text(EVIL_COMM).count() > 0
    assert page.get_by_text("<img src=x onerror=evil()>").count() > 0
    assert any(each["comm"] == EVIL_COMM for each in embedded(page)["status"]["processes"])


def test_the_policy_stops_a_script_that_got_in_all_the_same(look: Look) -> None:
    looked = look()
    inject = """() => {
      const script = document.createElement("script");
      script.textContent = "window.evil = 1";
      const image = document.createElement("img");
      image.src = "https://example.com/x";
      document.body.append(script, image);
    }"""
    with looked.page.expect_event("requestfailed"):
        looked.page.evaluate(inject)
    assert looked.page.evaluate("window.evil") is None
    assert any("Content Security Policy" in text for text in looked.said)
    assert looked.refused == {"https://example.com/x": "csp"}


def test_the_exposed_container_and_who_dies_first_are_named(look: Look, made: Made) -> None:
    page = look(path=made.replayed).page
    section = page.locator("#oom")
    expect(section).to_contain_text(f"exporter {made.scene.pids['exporter']}")
    expect(section).to_contain_text("SkewedAdj")
    first = section.locator("table").first.locator("tbody tr").first
    ranked = json.loads(
        subprocess.run(
            [sys.executable, "-m", "nodemem", "oom", "rank", "--root", str(made.capture), "-o", "json"],
            check=True,
            capture_output=True,
        ).stdout
    )["processes"][0]
    assert first.locator("td").nth(1).inner_text() == str(ranked["pid"])
    assert first.locator("td").nth(0).inner_text() == ranked["comm"]


def test_a_command_is_copied_as_it_stands(look: Look, made: Made) -> None:
    page = look(permissions=["clipboard-read", "clipboard-write"]).page
    block = page.locator(".finding").filter(has_text=f"tmpfs {made.scene.leak.path} holds").locator(".copied").first
    block.get_by_role("button", name="Copy").click()
    expect(block.get_by_role("button")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == f"nodemem tmpfs ls {made.scene.leak.path}"


def test_the_report_comes_out_of_it_again(look: Look, made: Made) -> None:
    page = look(path=made.replayed).page
    with page.expect_download() as downloading:
        page.get_by_text("Download the report as JSON").click()
    out = json.loads(downloading.value.path().read_text())
    assert out == embedded(page)
    command = [sys.executable, "-m", "nodemem", "report", "--root", str(made.capture), "--all", "-o", "json"]
    printed = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    here, there = out["status"], printed["status"]
    for part in ("memory", "kernel", "verdict", "observedAt"):
        assert here[part] == there[part], part
    assert here["shmem"] | {"objects": None} == there["shmem"] | {"objects": None}
    for part, most in (("tmpfs", 20), ("containers", 40), ("processes", 100)):
        assert here[part] == there[part][:most], part


def test_without_script_everything_is_there_to_read(look: Look, made: Made) -> None:
    page = look(java_script_enabled=False).page
    expect(page.locator(".verdict")).to_be_visible()
    box = tile(page, "Shmem").bounding_box()
    assert box is not None
    assert box["width"] > 30
    assert made.scene.leak.path in (tile(page, "files in tmpfs").inner_text())
    assert "Shmem: " in (tile(page, "Shmem").get_attribute("title") or "")
    expect(page.locator("#tmpfs table").first).to_contain_text(made.scene.leak.path)
    expect(page.locator("#findings pre").first).to_be_visible()
    assert page.locator("#crumbs").is_hidden()
    assert page.locator("figure").count() >= 3


@pytest.mark.parametrize("width", [320, 390, 768, 1920])
def test_no_screen_has_to_scroll_sideways(look: Look, width: int) -> None:
    page = look(width).page
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_nobody_who_asks_for_stillness_sees_motion(look: Look) -> None:
    assert (
        look(reduced_motion="reduce").page.locator("#t0").evaluate("e => getComputedStyle(e).transitionDuration")
        == "0s"
    )
    assert look().page.locator("#t0").evaluate("e => getComputedStyle(e).transitionDuration") != "0s"


def test_it_prints_with_its_folded_parts(look: Look, made: Made, tmp_path: Any) -> None:
    page = look(color_scheme="dark").page
    pdf = tmp_path / "page.pdf"
    page.pdf(path=pdf, format="A4", print_background=True)
    text = subprocess.run(
        [debian.ensure("pdftotext", "poppler-utils"), "-layout", str(pdf), "-"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert made.scene.leak.path in text
    assert "Objects of shared memory" in text
    assert "gpu-staging <i>" in text, "what is folded on the screen"
    assert "Skip to the map" not in text
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"


def test_the_trend_says_how_fast_and_when_it_is_full(look: Look, made: Made) -> None:
    page = look().page
    status = embedded(page)["status"]
    leak = next(each for each in status["tmpfs"] if each["device"] == made.scene.leak.device)
    figure = page.locator("#trend figure").filter(has_text=made.scene.leak.path)
    expect(figure.locator("figcaption")).to_contain_text(f"{leak['growthBytesPerHour'] / MIB:.1f} MiB/h")
    expect(figure.locator("figcaption")).to_contain_text(leak["fullAt"][:10])
    assert figure.locator("svg").get_attribute("role") == "img"
