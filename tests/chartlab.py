"""The chart as real Helm renders it, and what is made from it: ``python tests/chartlab.py`` writes these files anew."""

import functools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from helm_python import _native
from helm_python.chart import Chart

import dashboards
import metricsdoc

Object = dict[str, Any]

ROOT = Path(__file__).parents[1]
CHART = ROOT / "charts" / "nodemem"
CRDS = ROOT / "manifests" / "crds"
NAMESPACE = "nodemem-system"
RELEASE = "nodemem"

_ORDER = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
_HELM = re.compile(r"^ +(helm\.sh/chart|app\.kubernetes\.io/managed-by): .*\n", re.MULTILINE)
_HEADER = "# Rendered from charts/nodemem by tests/chartlab.py: edit the chart instead.\n"


def templates(values: Mapping[str, Any] | None = None, **options: str) -> dict[str, str]:
    """Text by file name. ``options``: name, namespace, kube_version. Raises helm_python.HelmError."""
    words = json.dumps({"name": RELEASE, "namespace": NAMESPACE, **options})
    with Chart.load(CHART) as chart:
        # Chart.render() has no kube_version.
        answer = _native.call_string("helm_render", chart._raw(), json.dumps(values or {}), words)
    found: dict[str, str] = json.loads(answer)
    return {name.partition("/templates/")[2]: text for name, text in found.items()}


def render(values: Mapping[str, Any] | None = None, *, hooks: bool = False, **options: str) -> list[Object]:
    """The objects of a release; with ``hooks`` also those that only helm test makes."""
    return [
        each
        for name, text in templates(values, **options).items()
        if name.endswith(".yaml")
        for each in yaml.safe_load_all(text)
        if each and (hooks or "helm.sh/hook" not in each["metadata"].get("annotations", {}))
    ]


def find(objects: list[Object], kind: str, name: str) -> Object:
    return next(each for each in objects if each["kind"] == kind and each["metadata"]["name"] == name)


@functools.cache
def generated() -> dict[Path, str]:
    """What follows from the chart, its schema, the definitions, the metrics and the dashboards."""
    files = {
        ROOT / "manifests" / "nodemem.yaml": _manifest(),
        ROOT / "manifests" / "kustomization.yaml": _kustomization(),
        CHART / "README.md": _readme(),
        ROOT / "docs" / "reference" / "metrics.md": metricsdoc.page(),
    }
    for path in sorted(CRDS.glob("*.yaml")):
        files[CHART / "files" / "crds" / path.name] = path.read_text()
    for name, text in dashboards.files().items():
        files[CHART / "files" / "dashboards" / name] = text
    return files


def _manifest() -> str:
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "privileged"}},
    }
    documents = []
    for name, text in templates({"crds": {"install": False}}).items():
        if name.endswith(".yaml"):
            found = [each.strip("\n") for each in re.split(r"^---$", text, flags=re.MULTILINE) if each.strip()]
            documents += [each for each in found if "helm.sh/hook" not in each]
    documents.sort(key=_rank)
    text = "\n---\n".join([yaml.safe_dump(namespace, sort_keys=False).strip(), *documents])
    return _HEADER + _HELM.sub("", text) + "\n"


def _rank(document: str) -> tuple[int, str, str]:
    found = yaml.safe_load(document)
    kind = found["kind"]
    return (_ORDER.index(kind) if kind in _ORDER else len(_ORDER), kind, found["metadata"]["name"])


def _kustomization() -> str:
    resources = [f"crds/{path.name}" for path in sorted(CRDS.glob("*.yaml"))]
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [*resources, "nodemem.yaml"],
    }
    return _HEADER + yaml.safe_dump(kustomization, sort_keys=False)


_README = """\
# The nodemem chart

An agent on every node, a controller, the custom resource definitions, and the rights they need. How to install, upgrade
and remove it: [docs/install.md](../../docs/install.md), [docs/uninstall.md](../../docs/uninstall.md); what it may do
and why: [docs/security.md](../../docs/security.md).

## Values

Made from `values.schema.json` by `tests/chartlab.py`. A value that isn't here is refused.

| value | default | meaning |
|---|---|---|
"""


def _readme() -> str:
    schema = json.loads((CHART / "values.schema.json").read_text())
    with Chart.load(CHART) as chart:
        defaults = chart.values
    return _README + "".join(
        f"| `{name}` | {_code(default)} | {text} |\n" if default is not None else f"| **{name}** | | **{text}** |\n"
        for name, default, text in _values(schema, defaults)
    )


def _values(schema: Object, defaults: Object, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    for name, each in schema["properties"].items():
        if name not in defaults:
            continue
        if "properties" in each and name != "resources":
            yield f"{prefix}{name}", None, each["description"]
            yield from _values(each, defaults[name], f"{prefix}{name}.")
        else:
            choice = "".join(f", `{value}`" for value in each.get("enum", ()) if value)
            yield f"{prefix}{name}", defaults[name], each["description"] + (f" One of{choice[1:]}." if choice else "")


def _code(value: Any) -> str:
    return f"`{json.dumps(value)}`"


if __name__ == "__main__":
    for path, text in generated().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
