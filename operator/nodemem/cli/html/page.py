"""The page as a whole: what stands where, the policy that lets it load nothing, and the report itself as JSON."""

import base64
import hashlib
import json
from importlib import resources

from nodemem.cli.html import chart, danger, memory
from nodemem.cli.html.data import NO_EXTRAS, Extras
from nodemem.cli.html.parts import Styles, section
from nodemem.cli.html.tags import Content, Element, document, raw, tag
from nodemem.cli.text import printable
from nodemem.node import report
from nodemem.node.remedies import remedies
from nodemem.node.status import ReportStatus


def _asset(name: str) -> str:
    return resources.files("nodemem.cli.html").joinpath("assets", name).read_text("utf-8")


_STYLE, _SCRIPT = _asset("page.css"), _asset("page.js")


def page(status: ReportStatus, node_name: str | None, extras: Extras = NO_EXTRAS) -> str:
    """The whole document. Nothing in it comes from elsewhere, and its policy would not let it."""
    styles = Styles()
    found = remedies(status, extras.findings)
    body = tag(
        "main",
        section("where", "Where the memory is", *memory.where(status, extras, styles)),
        section("tmpfs", "tmpfs and the files in them", *memory.file_systems(status, extras)),
        section("trend", "How it grows", *chart.charts(status, extras, styles)),
        section("oom", "Who dies first, and why", *danger.who_dies(status, extras)),
        section("findings", "Findings, and how to mend them", *danger.findings(found)),
        id="content",
    )
    if (processes := danger.processes(status)) is not None:
        body.append(section("processes", "Processes", processes))
    if extras.kernel_memory is not None:
        body.append(section("kernel", "The kernel's own memory", *memory.kernel(extras.kernel_memory)))
    body.append(section("missing", "What could not be read", *danger.missing(status, extras)))
    body.append(section("data", "The report as data", *_about(status, extras)))
    header = memory.header(status, node_name, found)
    header.append(_contents(body))
    title = f"Memory of {node_name or 'a node'}, {status.observed_at}"
    style = f"{_STYLE}\n{styles.text()}\n"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(style, _SCRIPT)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("meta", name="generator", content=f"nodemem {status.agent_version}"),
        tag("title", title),
        raw("style", style),
    )
    data = raw("script", _json(status, node_name), type="application/json", id="report")
    skip = tag("a", "Skip to the map", href="#where", class_="skip")
    footer = tag("footer", tag("p", f"Made by nodemem {status.agent_version} from the kernel's own figures."))
    whole = tag("body", skip, header, body, footer, data, raw("script", _SCRIPT))
    return document(tag("html", head, whole, lang="en"))


def _contents(body: Element) -> Element:
    entries = [tag("li", tag("a", each[0].text, href=f"#{each.get('id')}")) for each in body]
    return tag("nav", tag("ul", *entries), class_="contents", aria_label="On this page")


def _about(status: ReportStatus, extras: Extras) -> list[Content]:
    parts: list[Content] = [
        tag(
            "p",
            "This page has the MemoryReport in it, as ",
            tag("code", "nodemem report -o json"),
            " prints it, in the element ",
            tag("code", "script#report"),
            ". It has names (of processes, mount points, files, cgroups) and sizes; never the contents of files, nor "
            "arguments or environments of processes.",
        ),
        tag("p", class_="download", id="download"),
    ]
    left = [f"{number} {name}" for name, number in extras.left_out.items()]
    if left:
        parts.append(
            tag(
                "p",
                f"Left out to keep it small: {', '.join(left)}, the smallest ones. With --all they are in the data.",
            )
        )
    return parts


def _json(status: ReportStatus, node_name: str | None) -> str:
    """Safe inside of a script element, whatever is in it: no character has a meaning to HTML."""
    text = json.dumps(printable(report.as_object(status, node_name)), ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(style: str, script: str) -> str:
    """Nothing may be loaded, sent or run but this style sheet and this script."""
    return (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
