"""Types -> CustomResourceDefinitions: structural schemas with descriptions, bounds, defaults and CEL rules.

Everything has an upper bound, since the API server estimates the cost of a rule from the bounds and refuses a
definition that might be too dear. In a status nothing is required (but a condition's fields): the agent of the version
before must still be able to write when the definitions are already the next ones. What has one writer (a status, a
selector) is atomic: managedFields then holds one entry for it, instead of one for each value.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from nodemem.api.resources import CATEGORY, GROUP, VERSION, Resource
from nodemem.api.types import LabelSelector
from nodemem.node.status import Condition, Rule, key, to_plain

_SCALARS: dict[type[Any], dict[str, Any]] = {
    int: {"type": "integer", "format": "int64"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
}


def definition(resource: Resource) -> dict[str, Any]:
    """The apiextensions.k8s.io/v1 CustomResourceDefinition."""
    schema: dict[str, Any] = {
        "type": "object",
        "description": resource.doc,
        "properties": {
            "apiVersion": {"type": "string", "description": f"{GROUP}/{VERSION}"},
            "kind": {"type": "string", "description": resource.kind},
            "metadata": {"type": "object"},
        },
    }
    if resource.spec is not None:
        spec = _object(resource.spec, strict=True)
        schema["properties"]["spec"] = {"description": "What is wanted.", **spec}
        if "required" in spec:
            schema["required"] = ["spec"]
        else:
            schema["properties"]["spec"]["default"] = {}
    schema["properties"]["status"] = {"description": "What is.", **_object(resource.status, strict=False)}
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            {"name": column.name, "type": column.type, "jsonPath": column.path, "description": column.doc}
            | ({"priority": 1} if column.wide else {})
            for column in resource.columns
        ],
    }
    if resource.selectable:
        version["selectableFields"] = [{"jsonPath": path} for path in resource.selectable]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{resource.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": resource.kind,
                "listKind": f"{resource.kind}List",
                "plural": resource.plural,
                "singular": resource.kind.lower(),
                "shortNames": [resource.short_name],
                "categories": [CATEGORY],
            },
            "scope": "Namespaced" if resource.namespaced else "Cluster",
            "versions": [version],
        },
    }


def _object(cls: type[Any], *, strict: bool) -> dict[str, Any]:
    """``strict``: a field without a default, that can't be None, is required."""
    hints = typing.get_type_hints(cls)
    properties: dict[str, Any] = {}
    required = []
    for field in dataclasses.fields(cls):
        if field.metadata["max_items"] == 0:
            continue
        hint, optional = _without_none(hints[field.name])
        schema = {"description": field.metadata["doc"], **_value(hint, field.metadata, strict=strict)}
        missing = field.default is dataclasses.MISSING
        if not missing and field.default is not None and field.default != () and strict:
            schema["default"] = _default(field.default)
        if missing and not optional and (strict or cls is Condition):
            required.append(key(field.name))
        properties[key(field.name)] = schema
    result: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        result["required"] = required
    return result | _rules(getattr(cls, "RULES", ()))


def _default(value: Any) -> Any:
    """Of an object only what says something: an empty selector is ``{}``."""
    plain = to_plain(value, keep_unknown=False)
    return {name: item for name, item in plain.items() if item != []} if isinstance(plain, dict) else plain


def _value(hint: Any, metadata: Mapping[str, Any], *, strict: bool) -> dict[str, Any]:
    rules = _rules(metadata["rules"])
    bounds = {"minimum": metadata["minimum"], "maximum": metadata["maximum"]}
    bounds = {name: value for name, value in bounds.items() if value is not None}
    text = {"maxLength": metadata["max_length"]}
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        schema = _object(hint, strict=strict)
        own = schema.pop("x-kubernetes-validations", [])
        if not strict or hint is LabelSelector:
            schema["x-kubernetes-map-type"] = "atomic"
        both = own + rules.get("x-kubernetes-validations", [])
        return schema | ({"x-kubernetes-validations": both} if both else {})
    if origin is tuple:
        items = _value(args[0], {**metadata, "rules": ()}, strict=strict)
        lists = (
            {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
            if args[0] is Condition
            else {"x-kubernetes-list-type": "atomic"}
        )
        return {"type": "array", "maxItems": metadata["max_items"], "items": items, **lists, **rules}
    if origin is dict:
        values = {"type": "string", **text}
        return {"type": "object", "maxProperties": metadata["max_items"], "additionalProperties": values, **rules}
    if origin is typing.Literal:
        return {"type": "string", "enum": list(args), **rules}
    if origin is types.UnionType and set(args) == {int, str}:
        either = {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": True}
        return {**either, **text, **rules}
    if hint is str:
        return {"type": "string", **({"format": "date-time"} if metadata["time"] else text), **rules}
    if hint in _SCALARS:
        return {**_SCALARS[hint], **bounds, **rules}
    raise TypeError(f"{hint}: no schema for this type")


def _rules(rules: tuple[Rule, ...]) -> dict[str, Any]:
    if not rules:
        return {}
    return {
        "x-kubernetes-validations": [
            {"rule": rule.expression, "message": rule.message} | ({"fieldPath": f".{rule.field}"} if rule.field else {})
            for rule in rules
        ]
    }


def _without_none(hint: Any) -> tuple[Any, bool]:
    args = typing.get_args(hint)
    if typing.get_origin(hint) is types.UnionType and type(None) in args:
        rest = [each for each in args if each is not type(None)]
        joined = rest[0]
        for each in rest[1:]:
            joined = joined | each
        return joined, True
    return hint, False
