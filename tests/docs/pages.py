"""Pages of docs/ as tests read them: fenced blocks, what is to be run in them, what it should print, links, anchors.

A block's info string says what a test does with it; GitHub shows none of it but the language:

    ```console                     the lines with "$ " are run, in order; what follows each is what it prints
    ```console exact               the same, and numbers are compared, too
    ```console fails               the commands are meant to end with an error
    ```console untested="why"      not run, and why
    ```yaml file=cap-run.yaml      written to this file, which commands after it use

In what is printed, ``...`` stands for anything. Numbers, sizes and times differ from machine to machine: they are only
compared where it says "exact". So is the layout: any white space is as good as any other.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_FENCE = re.compile(r"^(?P<fence>`{3,})(?P<info>[^`\n]*)\n(?P<body>.*?)^(?P=fence)[ \t]*$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """``line``: of its first line in the page."""

    page: str
    line: int
    language: str
    words: tuple[str, ...]
    body: str

    def value(self, name: str) -> str | None:
        return next((each.partition("=")[2] for each in self.words if each.startswith(f"{name}=")), None)

    @property
    def exact(self) -> bool:
        return "exact" in self.words

    @property
    def fails(self) -> bool:
        return "fails" in self.words


@dataclass(frozen=True, slots=True)
class Command:
    text: str
    prints: str
    line: int


def pages() -> list[Path]:
    return sorted(DOCS.glob("*.md"))


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in _FENCE.finditer(text):
        language, *words = shlex.split(found["info"]) or [""]
        yield Block(page.name, text.count("\n", 0, found.start()) + 2, language, tuple(words), found["body"])


def commands(block: Block) -> Iterator[Command]:
    """Raises ValueError for output without a command."""
    text: list[str] = []
    prints: list[str] = []
    line = 0
    for number, each in enumerate(block.body.splitlines(), block.line):
        goes_on = bool(text) and not prints and (text[-1].endswith("\\") or each.startswith("> "))
        if each.startswith("$ ") or goes_on:
            if text and not goes_on:
                yield Command("\n".join(text), "\n".join(prints), line)
                text, prints = [], []
            if not text:
                line = number
            text.append(each.removeprefix("$ ") if not goes_on else each.removeprefix("> "))
        elif text:
            prints.append(each)
        else:
            raise ValueError(f"{block.page}:{number}: output before the first '$ '")
    if text:
        yield Command("\n".join(text), "\n".join(prints), line)


_NUMBER = re.compile(r"(?<![A-Za-z_])[-+]?\d[\d.,]*(?<![.,])")
_AMOUNT = re.compile(r"#\s?(?:[KMGT]i?B?|B|kB|bytes)(?![A-Za-z])")
_TIME = re.compile(r"#\s?(?:s|min|h|d)(?![A-Za-z])(?:\s#\s?(?:s|min|h)(?![A-Za-z]))*")
_BARS = re.compile("[▏▎▍▌▋▊▉█]+")


def plain(text: str, *, exact: bool) -> str:
    """In one line, without bars; unless ``exact`` with numbers, sizes and times all alike."""
    text = _BARS.sub(" ", text)
    if not exact:
        text = _NUMBER.sub("#", text)
        text = _TIME.sub("#t", _AMOUNT.sub("#b", text))
    return " ".join(text.split())


def matches(prints: str, printed: str, *, exact: bool = False) -> bool:
    wanted = [re.escape(part.strip()) for part in plain(prints, exact=exact).split("...")]
    return (
        re.fullmatch(r"\s*" + r".*?".join(rf"\s*{part}\s*" for part in wanted), plain(printed, exact=exact)) is not None
    )


# --- links


_LINK = re.compile(r"\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^()\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)


def prose(page: Path) -> str:
    """Without fenced blocks and code in lines: a bracket in those is no link."""
    return re.sub(r"`[^`\n]*`", "`code`", _FENCE.sub("", page.read_text()))


def links(page: Path) -> list[str]:
    return _LINK.findall(prose(page))


def anchors(page: Path) -> set[str]:
    """As GitHub makes them: lower case, punctuation gone, spaces to hyphens, and a number for one that is taken."""
    found: dict[str, int] = {}
    made = set()
    for heading in _HEADING.findall(_FENCE.sub("", page.read_text())):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        anchor = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        made.add(f"{anchor}-{found[anchor]}" if anchor in found else anchor)
        found[anchor] = found.get(anchor, 0) + 1
    return made
