"""Types to and from what an API server takes and gives."""

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from nodemem.node.status import key, named_fields

T = TypeVar("T")


def wire(value: Any) -> dict[str, Any]:
    """A dataclass as the API server will take it.

    Unknown values and what only --all fills are left out. Strings and lists are cut to their bounds, since one name
    that is too long would cost the whole write. Undecodable and control bytes are escaped as ``\\xNN``: the ones can't
    be in JSON, and the others would reach people's terminals through kubectl.
    """
    return {
        name: _wire(item, metadata)
        for attribute, name, metadata in named_fields(value.__class__)
        if metadata["max_items"] != 0 and (item := getattr(value, attribute)) is not None
    }


def _wire(value: Any, metadata: Mapping[str, Any]) -> Any:
    if isinstance(value, str):
        return _bounded(value, metadata["max_length"])
    if isinstance(value, tuple | list):
        return [_wire(item, metadata) for item in value[: metadata["max_items"]]]
    if dataclasses.is_dataclass(value):
        return wire(value)
    return dict(value) if isinstance(value, Mapping) else value


def _bounded(text: str, length: int) -> str:
    """The API server counts code points; so does len()."""
    text = safe(text)
    return text if len(text) <= length else text[: length - 3] + "..."


def safe(text: str) -> str:
    """Text from the kernel or a container, made printable: control bytes, bidirectional marks and invalid UTF-8 are
    escaped, so that a file name can't move the cursor or hide another."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def read(cls: type[T], plain: Mapping[str, Any]) -> T:
    """An object of the API server (its spec, say) as ``cls``. Fields that ``cls`` doesn't know are passed over.

    Raises ValueError, with the field's path, where one is missing that has no default.
    """
    return typing.cast(T, _read(cls, plain, ""))


def _read(hint: Any, value: Any, path: str) -> Any:
    if typing.get_origin(hint) is types.UnionType and value is not None:
        hint = next((each for each in typing.get_args(hint) if each is not type(None)), hint)
    if value is not None and typing.get_origin(hint) is tuple:
        (item, _) = typing.get_args(hint)
        return tuple(_read(item, each, f"{path}[{number}]") for number, each in enumerate(value))
    if value is None or not dataclasses.is_dataclass(hint):
        return value
    known = {}
    for field, name, inner in _fields(typing.cast(Any, hint)):
        if name in value:
            known[field.name] = _read(inner, value[name], f"{path}.{name}")
        elif field.default is dataclasses.MISSING:
            if type(None) not in typing.get_args(inner):
                raise ValueError(f"{path}.{name}: missing")
            known[field.name] = None
    return typing.cast(Any, hint)(**known)


@functools.cache
def _fields(cls: Any) -> tuple[tuple["dataclasses.Field[Any]", str, Any], ...]:
    hints = typing.get_type_hints(cls)
    return tuple((field, key(field.name), hints[field.name]) for field in dataclasses.fields(cls))
