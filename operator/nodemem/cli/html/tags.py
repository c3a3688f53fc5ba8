"""HTML elements from text that may say anything.

The standard library's serialiser escapes all text and every attribute; nothing else here makes markup.
"""

from xml.etree.ElementTree import Element, tostring

from nodemem.cli.text import safe

Content = Element | str | None
_LONGEST = 4096
"""Of one piece of text: as long as a path can be."""


def tag(name: str, /, *content: Content, **attributes: str | None) -> Element:
    """An element. ``class_`` and ``for_`` lose their underscore, other underscores are hyphens; None is left out.

    Strings are made printable, which is also what keeps out the characters that no document may have.
    """
    element = Element(name)
    for key, value in attributes.items():
        if value is not None:
            element.set(key.rstrip("_").replace("_", "-"), shown(value))
    add(element, *content)
    return element


def add(element: Element, *content: Content) -> Element:
    """Append to an element; None is left out."""
    for each in content:
        if isinstance(each, Element):
            element.append(each)
        elif each is not None:
            _add_text(element, shown(each))
    return element


def raw(name: str, text: str, /, **attributes: str) -> Element:
    """A style or script element, the contents of which HTML takes as they are: only text of this package, or JSON in
    which every ``<`` is escaped. Raises ValueError where it could end the element."""
    if "</" in text or "<!" in text:
        raise ValueError(f"text of <{name}> that could end it")
    element = tag(name, **attributes)
    element.text = text
    return element


def document(root: Element) -> str:
    return "<!DOCTYPE html>\n" + tostring(root, encoding="unicode", method="html") + "\n"


def shown(text: str) -> str:
    text = "\n".join(map(safe, text.split("\n"))) if "\n" in text else safe(text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _add_text(element: Element, text: str) -> None:
    if len(element):
        element[-1].tail = (element[-1].tail or "") + text
    else:
        element.text = (element.text or "") + text


__all__ = ["Content", "Element", "add", "document", "raw", "shown", "tag"]
