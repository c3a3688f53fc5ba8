"""The custom resources' types, and what is generated from them. What a real server says: cluster/test_crds.py."""

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nodemem.api import types
from nodemem.api.convert import read, safe, wire
from nodemem.api.reference import EXAMPLES, markdown
from nodemem.api.resources import MEMORY_REPORT, OOM_EXPOSURE, RESOURCES, Resource
from nodemem.api.schema import definition
from nodemem.cli import crds
from nodemem.node import report
from nodemem.node.status import KernelStatus, ProcessRef, ReportStatus
from samples import status, tmpfs

ROOT = Path(__file__).parents[2]
HOSTILE = "\udcff\x1b[2J\n" + "a" * 5000


def schema_of(resource: Resource) -> dict[str, Any]:
    schema: dict[str, Any] = definition(resource)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def fields(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for name, field in schema.get("properties", {}).items():
        yield f"{path}.{name}", field
        yield from fields(field, f"{path}.{name}")
    if "items" in schema:
        yield f"{path}[]", {"description": "of the list", **schema["items"]}
        yield from fields(schema["items"], f"{path}[]")


ALL_FIELDS = [
    (each.kind, path, field)
    for each in RESOURCES
    for path, field in fields(schema_of(each))
    if path not in (".apiVersion", ".kind", ".metadata")
]


# Generated files


def test_the_committed_definitions_are_what_the_types_generate() -> None:
    directory = ROOT / "manifests" / "crds"
    assert {path.name: path.read_text() for path in directory.iterdir()} == crds.files()


def test_the_committed_reference_is_what_the_types_generate() -> None:
    assert (ROOT / "docs" / "reference" / "custom-resources.md").read_text() == markdown(RESOURCES)


def test_crds_writes_one_file_for_each_kind_into_a_new_directory(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    crds.add_parser(parser.add_subparsers())
    args = parser.parse_args(["crds", str(tmp_path / "new" / "crds")])
    assert args.func(args) == 0
    assert {path.name: path.read_text() for path in (tmp_path / "new" / "crds").iterdir()} == crds.files()


def test_crds_prints_documents_that_kubectl_can_read(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    crds.add_parser(parser.add_subparsers())
    args = parser.parse_args(["crds"])
    assert args.func(args) == 0
    assert list(yaml.safe_load_all(capsys.readouterr().out)) == [definition(each) for each in RESOURCES]


# Definitions


def test_every_field_is_described_in_words() -> None:
    assert [f"{kind}{path}" for kind, path, field in ALL_FIELDS if len(field.get("description", "")) < 4] == []


def test_everything_that_has_a_length_has_a_bound() -> None:
    unbounded = [
        f"{kind}{path}"
        for kind, path, field in ALL_FIELDS
        if (field.get("type") == "array" and "maxItems" not in field)
        or ("additionalProperties" in field and "maxProperties" not in field)
        or (field.get("x-kubernetes-int-or-string") and "maxLength" not in field)
        or (field.get("type") == "string" and not field.keys() & {"maxLength", "enum", "format"})
    ]
    assert unbounded == []


def test_every_list_says_how_it_is_merged_and_conditions_are_a_map_by_type() -> None:
    lists = {f"{kind}{path}": field for kind, path, field in ALL_FIELDS if field.get("type") == "array"}
    by_type = {path for path, field in lists.items() if field["x-kubernetes-list-type"] == "map"}
    assert by_type == {path for path in lists if path.endswith(".conditions")}
    assert {lists[path]["x-kubernetes-list-map-keys"][0] for path in by_type} == {"type"}
    assert all(lists[path]["x-kubernetes-list-type"] == "atomic" for path in lists.keys() - by_type)


def test_a_status_requires_nothing_so_that_an_older_agent_can_write_it() -> None:
    required = [
        f"{kind}{path}"
        for kind, path, field in ALL_FIELDS
        if path.startswith(".status") and "required" in field and not path.endswith(".conditions[]")
    ]
    assert required == []


def test_every_rule_has_a_message_that_says_what_to_write_or_leave_out() -> None:
    rules = [rule for _, _, field in ALL_FIELDS for rule in field.get("x-kubernetes-validations", ())]
    vague = [
        rule["message"]
        for rule in rules
        if not any(word in rule["message"] for word in ("write", "leave", "add", "raise", "use ", "has letters"))
    ]
    assert len(rules) > 30
    assert vague == []


def test_every_column_reads_a_field_that_exists() -> None:
    for each in RESOURCES:
        known = {path for path, _ in fields(schema_of(each))} | {".metadata.creationTimestamp"}
        for column in each.columns:
            path = column.path.split("[?(")[0]
            assert path in known, f"{each.kind} {column.name}: {column.path}"


def test_what_only_all_fills_is_no_part_of_the_resource() -> None:
    properties = schema_of(MEMORY_REPORT)["properties"]["status"]["properties"]
    assert "processes" not in properties
    assert "objects" not in properties["shmem"]["properties"]


def test_the_group_is_the_one_that_the_report_prints() -> None:
    assert yaml.safe_load(EXAMPLES["MemoryReport"])["apiVersion"] == report.API_VERSION


def test_the_url_of_a_resource() -> None:
    assert MEMORY_REPORT.path("n1", subresource="status") == "/apis/nodemem.io/v1alpha1/memoryreports/n1/status"
    assert OOM_EXPOSURE.path("p", namespace="d") == "/apis/nodemem.io/v1alpha1/namespaces/d/oomexposures/p"
    assert OOM_EXPOSURE.path() == "/apis/nodemem.io/v1alpha1/oomexposures"


# To the API server


def test_unknown_values_are_left_out_and_not_sent_as_null_or_zero() -> None:
    plain = wire(dataclasses.replace(status(), kernel=KernelStatus(None, "Unknown", *([None] * 5), 4096, None)))
    assert plain["kernel"] == {"oomGeneration": "Unknown", "pageSizeBytes": 4096}
    assert "processes" not in plain


def test_hostile_names_are_escaped_and_cut_to_what_the_definition_allows() -> None:
    plain = wire(dataclasses.replace(tmpfs(1), mount_point=HOSTILE, written_by=(HOSTILE,) * 9))
    allowed = schema_of(MEMORY_REPORT)["properties"]["status"]["properties"]["tmpfs"]["items"]["properties"]
    assert plain["mountPoint"].startswith("\\xff\\x1b[2J\\x0aaaa")
    assert len(plain["mountPoint"]) == allowed["mountPoint"]["maxLength"]
    assert len(plain["writtenBy"]) == allowed["writtenBy"]["maxItems"]
    assert plain["mountPoint"].endswith("...")


@given(st.text(st.characters(codec=None), max_size=2000))
def test_any_name_becomes_one_printable_line_within_its_bound(name: str) -> None:
    text = wire(ProcessRef(1, name, None))["comm"]
    assert text.isprintable()
    assert len(text) <= 64
    assert text.encode().decode() == text


def test_printable_text_is_not_changed() -> None:
    assert safe("/run/user/1000 — größer") == "/run/user/1000 — größer"


# From the API server


def test_a_policy_as_the_server_returns_it_becomes_a_typed_one() -> None:
    spec = read(types.TmpfsPolicySpec, yaml.safe_load(EXAMPLES["TmpfsPolicy"])["spec"])
    assert spec.rules[0] == types.TmpfsRule(scope="Host", size="2Gi", path="/run")
    selector = spec.rules[1].pod_selector
    assert selector is not None
    assert selector.match_expressions == (types.LabelSelectorRequirement("app", "In", ("postgres", "chromium")),)
    assert spec.node_selector.match_labels == {"pool": "web"}
    assert spec.rollout == types.Rollout("10%", 1)
    assert spec.reclaim is not None
    assert spec.reclaim.tmpfiles[0].age == "7d"


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda each: each.kind)
def test_reading_and_writing_an_example_keeps_all_that_was_given(resource: Resource) -> None:
    part = "spec" if resource.spec else "status"
    given = yaml.safe_load(EXAMPLES[resource.kind])[part]
    assert lost(given, wire(read(resource.spec or resource.status, given))) == []


def lost(given: Any, kept: Any, path: str = "") -> list[str]:
    """The paths of what is in ``given`` and not, or not the same, in ``kept``."""
    if isinstance(given, dict):
        return [each for name, value in given.items() for each in lost(value, kept.get(name), f"{path}.{name}")]
    if isinstance(given, list) and len(given) == len(kept):
        return [each for n, (a, b) in enumerate(zip(given, kept, strict=True)) for each in lost(a, b, f"{path}[{n}]")]
    return [] if given == kept else [path]


def test_a_field_of_a_later_version_is_passed_over() -> None:
    assert read(types.OomPolicySpec, {"mode": "Ignore", "later": {"x": 1}}) == types.OomPolicySpec(mode="Ignore")


def test_a_missing_field_is_named_with_its_path() -> None:
    with pytest.raises(ValueError, match=r"^\.rules\[1\]\.size: missing$"):
        read(types.TmpfsPolicySpec, {"rules": [{"scope": "Host", "size": 1 << 30}, {"scope": "Host"}]})


def test_a_report_read_back_is_the_report_that_was_written() -> None:
    written = status(3, 2, 1, 1)
    assert read(ReportStatus, json.loads(json.dumps(wire(written)))) == written


def test_the_agent_can_import_the_types_without_anything_but_the_standard_library() -> None:
    program = (
        "import sys; import nodemem.api.convert, nodemem.api.resources, nodemem.api.types;"
        "print(sorted({name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names - {'__main__'}))"
    )
    result = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT / 'operator')!r}); {program}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "['nodemem']"
