"""The definitions on a real API server: accepted, shown by kubectl, and refusing bad objects with words that help."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.controlplane import ApiError, ControlPlane
from nodemem.agent.bounded import bounded
from nodemem.api import types
from nodemem.api.convert import read, wire
from nodemem.api.reference import EXAMPLES
from nodemem.api.resources import MEMORY_REPORT, RESOURCES, Resource
from nodemem.kernel.host import Host
from nodemem.node import report
from nodemem.node.remedies import remedies
from nodemem.node.snapshot import Collector
from nodemem.node.status import API_VERSION, SummaryStatus
from nodemem.node.trends import History
from samples import status, tmpfs

MANIFESTS = Path(__file__).parents[2] / "manifests" / "crds"
Object = dict[str, Any]


def resource(kind: str, name: str, **content: Any) -> Object:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, **content}


def policy(rule: Object | None = None, /, *, leave_out: str = "", **spec: Any) -> Object:
    """A good TmpfsPolicy, with changes to its one rule and to its spec."""
    merged = {"scope": "Host", "path": "/run", "size": "2Gi"} | (rule or {})
    merged.pop(leave_out, None)
    return resource("TmpfsPolicy", "p", spec={"rules": [merged], **spec})


def limits(*entries: Object) -> Object:
    good = {"mountPoint": "/run", "scope": "Host", "sizeBytes": 2 << 30}
    return resource("MemoryReport", "n1", spec={"tmpfsLimits": [good | each for each in entries]})


def reclaim(*paths: str, **journal: Any) -> Object:
    ages = [{"path": path, "age": "7d", "mode": "Enforce"} for path in paths]
    return resource("MemoryReport", "n1", spec={"reclaim": {"tmpfiles": ages, "journal": {"mode": "Audit"} | journal}})


def oom(**spec: Any) -> Object:
    return resource("OomPolicy", "p", spec=spec)


def selector(**requirement: Any) -> Object:
    return policy(nodeSelector={"matchExpressions": [requirement]})


def journal(**content: Any) -> Object:
    return policy(reclaim={"journal": content})


def tmpfiles(**content: Any) -> Object:
    return policy(reclaim={"tmpfiles": [{"path": "/run/foo", "age": "7d"} | content]})


def create(cluster: ControlPlane, item: Object) -> Any:
    """As kubectl does, but stored nowhere. Raises ApiError."""
    path = cluster.path_of(item).rpartition("/")[0]
    return cluster.request("POST", f"{path}?dryRun=All&fieldValidation=Strict", item)


# Accepted


@pytest.mark.parametrize("each", RESOURCES, ids=lambda each: each.kind)
def test_a_definition_is_established_and_its_schema_structural(cluster: ControlPlane, each: Resource) -> None:
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{each.plural}.nodemem.io"
    conditions = cluster.request("GET", path)["status"]["conditions"]
    assert {condition["type"]: condition["status"] for condition in conditions} == {
        "NamesAccepted": "True",
        "Established": "True",
    }


def test_kubectl_applies_the_committed_files(cluster: ControlPlane) -> None:
    answer = cluster.kubectl(
        "apply", "--server-side", "--field-manager=test", "--dry-run=server", "--validate=strict", "-f", str(MANIFESTS)
    )
    assert answer.splitlines() == [
        f"customresourcedefinition.apiextensions.k8s.io/{name}.nodemem.io serverside-applied (server dry run)"
        for name in sorted(each.plural for each in RESOURCES)
    ]


@pytest.mark.parametrize("each", RESOURCES, ids=lambda each: each.kind)
def test_the_example_in_the_reference_is_accepted(cluster: ControlPlane, each: Resource) -> None:
    example = yaml.safe_load(EXAMPLES[each.kind])
    assert create(cluster, example).get("spec", {}).keys() >= example.get("spec", {}).keys()


def test_the_server_fills_in_the_defaults_that_the_types_have(cluster: ControlPlane) -> None:
    shortest = create(cluster, policy())["spec"]
    assert shortest == {
        "rules": [{"scope": "Host", "path": "/run", "size": "2Gi", "adjust": "Shrink"}],
        "nodeSelector": {},
        "mode": "Audit",
        "headroom": "10%",
        "rollout": {"maxConcurrent": "10%", "maxFailures": 1},
        "onDelete": "Restore",
        "priority": 0,
    }
    assert read(types.TmpfsPolicySpec, shortest) == read(types.TmpfsPolicySpec, policy()["spec"])
    # An absent selector and one that the server left empty select the same.
    assert read(types.OomPolicySpec, create(cluster, oom())["spec"]) == types.OomPolicySpec()
    assert read(types.OomPolicySpec, create(cluster, resource("OomPolicy", "p"))["spec"]) == types.OomPolicySpec()
    assert create(cluster, policy(rollout={"maxFailures": 3}))["spec"]["rollout"] == {
        "maxConcurrent": "10%",
        "maxFailures": 3,
    }
    assert read(types.MemoryReportSpec, create(cluster, limits({}))["spec"]).tmpfs_limits == (
        types.TmpfsLimit("/run", "Host", 2 << 30, "Audit", "Shrink", 10),
    )


GOOD = [
    policy({"size": 2 << 30}),
    policy({"size": "1Mi"}),
    policy({"size": "1048576"}),
    policy({"size": "1.5Gi"}),
    policy({"size": "2G"}),
    policy({"size": "1e9"}),
    policy({"size": "1Pi"}),
    policy({"size": "1%"}),
    policy({"size": "100%"}),
    policy({"path": "/run/user/*"}),
    policy({"path": "/dev/shm"}),
    policy({"path": "/run/..hidden/.x"}),
    policy({"path": "/sysadmin"}),
    policy({"path": "/srv/größe mit leerzeichen"}),
    policy({"adjust": "Exact"}),
    policy({"adjust": "Grow"}),
    policy({"scope": "EmptyDir", "podSelector": {"matchLabels": {"app": "x"}}}, leave_out="path"),
    policy({"scope": "SharedMemory", "adjust": "Grow", "size": "64Mi", "maxSize": "50%"}, leave_out="path"),
    policy({"scope": "SharedMemory", "adjust": "Grow", "namespaceSelector": {}}, leave_out="path"),
    policy({"scope": "SharedMemory", "path": "/dev/shm"}),
    policy(headroom="0%", mode="Enforce", onDelete="Keep", priority=-5),
    policy(rollout={"maxConcurrent": 1, "maxFailures": 10}),
    policy(rollout={"maxConcurrent": "100%"}),
    policy(nodeSelector={"matchLabels": {"example.com/pool_1": "web.a-b", "empty": ""}}),
    selector(key="pool", operator="In", values=["web", "db"]),
    selector(key="example.com/gpu", operator="DoesNotExist"),
    journal(runtimeMaxUse="16Mi"),
    journal(runtimeMaxUse=64 << 20),
    tmpfiles(path="/run/*/cache?", age="1d12h"),
    tmpfiles(age="30min"),
    resource("MemoryReport", "n1"),
    resource("MemoryReport", "node-1.example.com", spec={}),
    limits(),
    limits({}, {"mountPoint": "/tmp", "mode": "Enforce", "headroomPercent": 0, "policy": "p"}),
    limits(*({"mountPoint": f"/run/{number}"} for number in range(128))),
    oom(mode="Mitigate", imminentAt="1%", podSelector={"matchLabels": {"tier": "prod"}}),
]


@pytest.mark.parametrize("item", GOOD, ids=lambda item: json.dumps(item.get("spec"))[:100])
def test_accepted(cluster: ControlPlane, item: Object) -> None:
    assert create(cluster, item)["kind"] == item["kind"]


def test_the_policies_that_are_advised_against_a_leak_are_good_ones(cluster: ControlPlane) -> None:
    """Those on the page of ``nodemem report --html``."""
    leaks = [
        dataclasses.replace(tmpfs(0), mount_point=path, scope=scope, used_bytes=9 << 30, size_bytes=16 << 30)
        for path, scope in (
            ("/run", "Host"),
            ("/run/user/1000", "Host"),
            ("/mnt/a b: {c}, #d", "Host"),
            ("/srv/ünï", "Host"),
            ("/var/lib/kubelet/pods/x/volumes/kubernetes.io~empty-dir/cache", "EmptyDir"),
            ("/dev/shm", "SharedMemory"),
        )
    ]
    advised = [
        yaml.safe_load(step.code)
        for found in remedies(dataclasses.replace(status(), tmpfs=tuple(leaks)))
        for step in found.steps
        if step.code and "kind: TmpfsPolicy" in step.code
    ]
    for each in advised:
        create(cluster, each)
    hosts = [each.mount_point for each in leaks if each.scope == "Host"]
    assert [each["spec"]["rules"][0].get("path") for each in advised] == [*hosts, None, None]


# Refused

A_QUANTITY = "write a quantity such as 512Mi or 2Gi, or a percentage such as 10%"
A_PERCENTAGE = "write a whole percentage from 1% to 100%, such as 10%"
ENOUGH = "write at least 1Mi, such as 2Gi: 0 would lift the limit, and the kernel then refuses to set one again"
AT_MOST = "write at most 1Pi, such as 2Gi"
ABSOLUTE = "write an absolute path, such as /run or /run/user/*"
CLEAN = "write the path without //, . and .. and without a / at its end, such as /run or /run/user/*"
ELSEWHERE = "no tmpfs of a program is mounted there: write another path, such as /run or /dev/shm"
NOT_FOR_HOST = "is for EmptyDir and SharedMemory: leave it out, and select nodes with spec.nodeSelector"
HEADROOM = "write a whole percentage of what is in use, from 0% to 100%, such as 10%"
CONCURRENT = "write a number of nodes from 1, such as 5, or a percentage from 1% to 100%, such as 10%"
LABEL_KEY = "write a label's key, such as pool or example.com/pool"
JOURNAL = "write a quantity of at least 16Mi, such as 512Mi: journald keeps whole files of several MiB"
TMPFILES = "write letters, digits and . _ @ : + - * ? only: the path becomes part of a line of tmpfiles.d"
AGE = "write a time span of minutes or more, such as 30min, 12h or 7d: a shorter one would delete files in use"
IMMINENT = "write a whole percentage of the limit from 1% to 100%, such as 90%"

BAD: list[tuple[Object, str, str]] = [
    (policy({"size": "0"}), "spec.rules[0].size", ENOUGH),
    (policy({"size": 0}), "spec.rules[0].size", ENOUGH),
    (policy({"size": -1}), "spec.rules[0].size", ENOUGH),
    (policy({"size": "-1Gi"}), "spec.rules[0].size", ENOUGH),
    (policy({"size": "4Ki"}), "spec.rules[0].size", ENOUGH),
    (policy({"size": "500m"}), "spec.rules[0].size", ENOUGH),
    (policy({"size": "2GB"}), "spec.rules[0].size", A_QUANTITY),
    (policy({"size": "2 Gi"}), "spec.rules[0].size", A_QUANTITY),
    (policy({"size": "lots"}), "spec.rules[0].size", A_QUANTITY),
    (policy({"size": ""}), "spec.rules[0].size", A_QUANTITY),
    (policy({"size": "0%"}), "spec.rules[0].size", A_PERCENTAGE),
    (policy({"size": "101%"}), "spec.rules[0].size", A_PERCENTAGE),
    (policy({"size": "10.5%"}), "spec.rules[0].size", A_PERCENTAGE),
    (policy({"size": "-5%"}), "spec.rules[0].size", A_PERCENTAGE),
    (policy({"size": "%"}), "spec.rules[0].size", A_PERCENTAGE),
    (policy({"size": "9Ei"}), "spec.rules[0].size", AT_MOST),
    (policy({"size": 1 << 62}), "spec.rules[0].size", AT_MOST),
    (policy({"size": True}), "spec.rules[0].size", 'in body must be of type integer,string: "boolean"'),
    (policy(leave_out="size"), "spec.rules[0].size", "Required value"),
    (policy({"path": "run"}), "spec.rules[0].path", ABSOLUTE),
    (policy({"path": ""}), "spec.rules[0].path", ABSOLUTE),
    (policy({"path": "*"}), "spec.rules[0].path", ABSOLUTE),
    (policy({"path": "/"}), "spec.rules[0].path", CLEAN),
    (policy({"path": "/run/"}), "spec.rules[0].path", CLEAN),
    (policy({"path": "//run"}), "spec.rules[0].path", CLEAN),
    (policy({"path": "/run/./x"}), "spec.rules[0].path", CLEAN),
    (policy({"path": "/run/../etc"}), "spec.rules[0].path", CLEAN),
    (policy({"path": "/run/.."}), "spec.rules[0].path", CLEAN),
    (policy({"path": "/sys/fs/cgroup"}), "spec.rules[0].path", ELSEWHERE),
    (policy({"path": "/proc"}), "spec.rules[0].path", ELSEWHERE),
    (policy({"path": "/dev"}), "spec.rules[0].path", ELSEWHERE),
    (policy({"path": "/" + "a" * 512}), "spec.rules[0].path", "Too long: may not be more than 512 bytes"),
    (
        policy({"path": "/var/lib/kubelet/pods/1/volumes/kubernetes.io~empty-dir/cache"}),
        "spec.rules[0].path",
        "this is a pod's volume, not the node's: write scope: EmptyDir and leave path out",
    ),
    (
        policy(leave_out="path"),
        "spec.rules[0].path",
        "scope Host needs a path: write the mount point, such as path: /run",
    ),
    (
        policy({"scope": "SharedMemory"}),
        "spec.rules[0].path",
        "scope SharedMemory is always /dev/shm of a pod: leave path out",
    ),
    (policy({"podSelector": {}}), "spec.rules[0].podSelector", f"podSelector {NOT_FOR_HOST}"),
    (policy({"maxSize": "4Gi"}), "spec.rules[0].maxSize", "leave it out, or write scope: SharedMemory"),
    (
        policy({"scope": "SharedMemory", "maxSize": "all"}, leave_out="path"),
        "spec.rules[0].maxSize",
        "write a quantity such as 512Mi or 2Gi, or a percentage such as 10%",
    ),
    (policy({"namespaceSelector": {}}), "spec.rules[0].namespaceSelector", f"namespaceSelector {NOT_FOR_HOST}"),
    (
        policy({"scope": "EmptyDir", "adjust": "Grow"}, leave_out="path"),
        "spec.rules[0].adjust",
        "adjust Grow and Exact are for Host and SharedMemory: the kubelet evicts a pod whose emptyDir holds more than"
        " its sizeLimit, so raise sizeLimit in the pod and write adjust: Shrink here",
    ),
    (policy({"adjust": "shrink"}), "spec.rules[0].adjust", 'supported values: "Shrink", "Grow", "Exact"'),
    (policy({"scope": "host"}), "spec.rules[0].scope", 'supported values: "Host", "EmptyDir", "SharedMemory"'),
    (policy(leave_out="scope"), "spec.rules[0].scope", "Required value"),
    (policy({"sise": "2Gi"}), "spec.rules[0].sise", "unknown field"),
    (
        resource("TmpfsPolicy", "p", spec={"rules": []}),
        "spec.rules",
        "write at least one rule, such as {scope: Host, path: /run, size: 2Gi}",
    ),
    (resource("TmpfsPolicy", "p", spec={}), "spec.rules", "Required value"),
    (resource("TmpfsPolicy", "p"), "spec", "Required value"),
    (
        resource("TmpfsPolicy", "p", spec={"rules": policy()["spec"]["rules"] * 33}),
        "spec.rules",
        "Too many: 33: must have at most 32 items",
    ),
    (policy(mode="enforce"), "spec.mode", 'supported values: "Audit", "Enforce"'),
    (policy(onDelete="Delete"), "spec.onDelete", 'supported values: "Restore", "Keep"'),
    (policy(priority=10**7), "spec.priority", "should be less than or equal to 1000000"),
    (policy(headroom=10), "spec.headroom", HEADROOM),
    (policy(headroom="101%"), "spec.headroom", HEADROOM),
    (policy(headroom="1Gi"), "spec.headroom", HEADROOM),
    (policy(rollout={"maxConcurrent": 0}), "spec.rollout.maxConcurrent", CONCURRENT),
    (policy(rollout={"maxConcurrent": "0%"}), "spec.rollout.maxConcurrent", CONCURRENT),
    (policy(rollout={"maxConcurrent": "5"}), "spec.rollout.maxConcurrent", CONCURRENT),
    (policy(rollout={"maxFailures": 0}), "spec.rollout.maxFailures", "should be greater than or equal to 1"),
    (policy(nodeSelector={"pool": "web"}), "spec.nodeSelector.pool", "unknown field"),
    (
        policy(nodeSelector={"matchLabels": {"pool": "web!"}}),
        "spec.nodeSelector.matchLabels",
        "a label's value has letters, digits, -, _ and . only, and begins and ends with a letter or digit",
    ),
    (
        policy(nodeSelector={"matchLabels": {"po ol": "web"}}),
        "spec.nodeSelector.matchLabels",
        "write labels' keys, such as pool or example.com/pool",
    ),
    (policy(nodeSelector={"matchLabels": {"a": 1}}), "spec.nodeSelector.matchLabels.a", "must be of type string"),
    (
        selector(key="pool", operator="In"),
        "spec.nodeSelector.matchExpressions[0].values",
        "In and NotIn need values: write at least one, or use Exists or DoesNotExist",
    ),
    (
        selector(key="pool", operator="Exists", values=["web"]),
        "spec.nodeSelector.matchExpressions[0].values",
        "Exists and DoesNotExist take no values: leave them out, or use In or NotIn",
    ),
    (
        selector(key="pool", operator="Equals"),
        "spec.nodeSelector.matchExpressions[0].operator",
        'supported values: "In", "NotIn", "Exists", "DoesNotExist"',
    ),
    (selector(key="pool!", operator="Exists"), "spec.nodeSelector.matchExpressions[0].key", LABEL_KEY),
    (
        policy({"scope": "EmptyDir"}, leave_out="path", reclaim={"journal": {"runtimeMaxUse": "512Mi"}}),
        "spec.reclaim",
        "reclaim cleans tmpfs of the node itself: add a rule with scope: Host, or leave reclaim out",
    ),
    (journal(runtimeMaxUse="10%"), "spec.reclaim.journal.runtimeMaxUse", JOURNAL),
    (journal(runtimeMaxUse="1Mi"), "spec.reclaim.journal.runtimeMaxUse", JOURNAL),
    (journal(runtimeMaxUse=0), "spec.reclaim.journal.runtimeMaxUse", JOURNAL),
    (journal(), "spec.reclaim.journal.runtimeMaxUse", "Required value"),
    (
        tmpfiles(path="/run"),
        "spec.reclaim.tmpfiles[0].path",
        "write a directory inside a mount point, such as /run/foo: ageing all of /run would delete sockets and locks in"
        " use",
    ),
    *(
        (
            tmpfiles(path=path),
            "spec.reclaim.tmpfiles[0].path",
            "write a directory's name, such as /run/foo or /run/foo-*",
        )
        for path in ("/run/*", "/run/?*")
    ),
    (reclaim(runtimeMaxUseBytes=1), "spec.reclaim.journal.runtimeMaxUseBytes", "write at least 16777216, 16 MiB"),
    (
        reclaim("/run/a", "/run/b", "/run/a", runtimeMaxUseBytes=1 << 30),
        "spec.reclaim.tmpfiles",
        "write each path once: two ages for the same one contradict each other",
    ),
    (reclaim("/run/a\nD /", runtimeMaxUseBytes=1 << 30), "spec.reclaim.tmpfiles[0].path", TMPFILES),
    (tmpfiles(path="run/foo"), "spec.reclaim.tmpfiles[0].path", "write an absolute path, such as /run/foo"),
    (
        tmpfiles(path="/run/../etc/x"),
        "spec.reclaim.tmpfiles[0].path",
        "write the path without //, . and .. and without a / at its end, such as /run/foo",
    ),
    (tmpfiles(path="/run/foo\nD /etc"), "spec.reclaim.tmpfiles[0].path", TMPFILES),
    (tmpfiles(path="/run/foo\n"), "spec.reclaim.tmpfiles[0].path", TMPFILES),
    (tmpfiles(path="/run/a b"), "spec.reclaim.tmpfiles[0].path", TMPFILES),
    (tmpfiles(path="/run/%b"), "spec.reclaim.tmpfiles[0].path", TMPFILES),
    (tmpfiles(path='/run/"foo"'), "spec.reclaim.tmpfiles[0].path", TMPFILES),
    (tmpfiles(age="0"), "spec.reclaim.tmpfiles[0].age", AGE),
    (tmpfiles(age="0d"), "spec.reclaim.tmpfiles[0].age", AGE),
    (tmpfiles(age="5s"), "spec.reclaim.tmpfiles[0].age", AGE),
    (tmpfiles(age="a week"), "spec.reclaim.tmpfiles[0].age", AGE),
    (tmpfiles(age="7d\n"), "spec.reclaim.tmpfiles[0].age", AGE),
    (
        limits({"sizeBytes": 0}),
        "spec.tmpfsLimits[0].sizeBytes",
        "write at least 1048576, 1 MiB: 0 would lift the limit, and the kernel then refuses to set one again",
    ),
    (limits({"sizeBytes": "2Gi"}), "spec.tmpfsLimits[0].sizeBytes", "must be of type integer"),
    (limits({"mountPoint": "run"}), "spec.tmpfsLimits[0].mountPoint", "write an absolute path, such as /run"),
    (
        limits({"mountPoint": "/run/"}),
        "spec.tmpfsLimits[0].mountPoint",
        "write the path without //, . and .. and without a / at its end, such as /run",
    ),
    (limits({"headroomPercent": 101}), "spec.tmpfsLimits[0].headroomPercent", "less than or equal to 100"),
    (limits({"mode": "Off"}), "spec.tmpfsLimits[0].mode", 'supported values: "Audit", "Enforce"'),
    (
        limits({}, {}),
        "spec.tmpfsLimits",
        "write each mountPoint once: two limits for the same one contradict each other",
    ),
    (limits(*[{}] * 129), "spec.tmpfsLimits", "Too many: 129: must have at most 128 items"),
    (oom(mode="Kill"), "spec.mode", 'supported values: "Ignore", "Flag", "Mitigate"'),
    (oom(imminentAt=90), "spec.imminentAt", IMMINENT),
    (oom(imminentAt="0%"), "spec.imminentAt", IMMINENT),
    (oom(imminentAt="150%"), "spec.imminentAt", IMMINENT),
    (oom(podSelector={"tier": "prod"}), "spec.podSelector.tier", "unknown field"),
    (oom(priority="high"), "spec.priority", "must be of type integer"),
]


@pytest.mark.parametrize(("item", "field", "sentence"), BAD, ids=lambda value: json.dumps(value)[:60])
def test_refused(cluster: ControlPlane, item: Object, field: str, sentence: str) -> None:
    with pytest.raises(ApiError) as caught:
        create(cluster, item)
    assert caught.value.code in (400, 422)
    assert sentence in caught.value.message
    assert re.search(rf'(^|[\s"\[]){re.escape(field)}($|["\s:])', caught.value.message), caught.value.message
    sentences = caught.value.message.count("write ") + caught.value.message.count("leave ")
    assert sentences <= 2, f"more than the one thing that is wrong is said: {caught.value.message}"


def test_kubectl_shows_the_sentence(cluster: ControlPlane) -> None:
    answer = cluster.kubectl("apply", "-f", "-", stdin=json.dumps(policy({"size": "0"})), check=False)
    assert f'The TmpfsPolicy "p" is invalid: spec.rules[0].size: Invalid value: "0": {ENOUGH}' in answer


# Written by an agent, read by people


def publish(cluster: ControlPlane, name: str, plain: Object) -> Object:
    """As the agent does: create it if it is missing, then apply the status."""
    cluster.apply(resource("MemoryReport", name), manager="agent")
    written: Object = cluster.apply(
        resource("MemoryReport", name, status=plain), manager="agent", subresource="status"
    )[0]
    return written


@pytest.fixture(scope="module")
def this_machine(cluster: ControlPlane) -> Object:
    """A report of the machine that runs the tests, with a summary that is told from others."""
    snapshot = Collector(Host()).collect()
    built = report.build(snapshot, History(snapshot.facts.boot_id))
    summary = SummaryStatus("64.0Gi", "16.1Gi", "15.3Gi", "18.2Gi", "/run 15.1Gi/16Gi", "+210Mi/h", "Audit", 3)
    return publish(cluster, "this-machine", bounded(dataclasses.replace(built, summary=summary)))


def table(text: str) -> list[dict[str, str]]:
    """kubectl's table, by column: cells may hold spaces, so columns are told by where their names begin."""
    header, *rows = text.splitlines()
    starts = [match.start() for match in re.finditer(r"\S+", header)]
    ends = [*starts[1:], None]
    return [{header[a:b].strip(): row[a:b].strip() for a, b in zip(starts, ends, strict=True)} for row in rows]


def test_get_memoryreports_answers_at_a_glance(cluster: ControlPlane, this_machine: Object) -> None:
    (row,) = table(cluster.kubectl("get", "memoryreports", this_machine["metadata"]["name"]))
    age = row.pop("AGE")
    assert re.fullmatch(r"\d+[smh]\S*", age)
    assert row == {
        "NAME": "this-machine",
        "TOTAL": "64.0Gi",
        "SHMEM": "16.1Gi",
        "TMPFS": "15.3Gi",
        "HIDDEN": "18.2Gi",
        "TOP-TMPFS": "/run 15.1Gi/16Gi",
        "GROWTH": "+210Mi/h",
        "LIMITS": "Audit",
        "EXPOSED": "3",
    }


def test_wide_adds_how_old_the_figures_are_and_the_kernel(cluster: ControlPlane, this_machine: Object) -> None:
    (row,) = table(cluster.kubectl("get", "memrep", "this-machine", "-o", "wide"))
    kernel = this_machine["status"]["kernel"]
    assert (row["KERNEL"], row["KERNEL-GENERATION"], row["CGROUP"]) == (
        kernel["release"],
        kernel["oomGeneration"],
        kernel["cgroup"],
    )
    assert row["VERSION"] == this_machine["status"]["agentVersion"]
    assert row["COMPLETE"] == this_machine["status"]["conditions"][0]["status"]
    assert re.fullmatch(r"\d+[smh]\S*", row["OBSERVED"])


def test_what_was_measured_is_stored_unchanged(cluster: ControlPlane, this_machine: Object) -> None:
    stored = cluster.request("GET", MEMORY_REPORT.path("this-machine"))["status"]
    assert stored["memory"]["totalBytes"] == Collector(Host()).collect().memory.partition.total_bytes
    assert stored == this_machine["status"]
    memory = stored["memory"]
    derived = ("totalBytes", "availableBytes", "hiddenBytes")
    assert sum(size for name, size in memory.items() if name not in derived) == memory["totalBytes"]


def test_describe_tells_the_verdict_the_figures_and_the_largest_tmpfs(
    cluster: ControlPlane, this_machine: Object
) -> None:
    status = this_machine["status"]
    words = " ".join(cluster.kubectl("describe", "memoryreport", "this-machine").split())
    assert f"Verdict: {' '.join(status['verdict'].split())}" in words
    assert "Hidden: 18.2Gi" in words
    assert "Top Tmpfs: /run 15.1Gi/16Gi" in words
    assert f"Reason: {status['conditions'][0]['reason']}" in words
    assert f"Unattributed Bytes: {status['shmem']['unattributedBytes']}" in words
    largest = status["tmpfs"][0]
    assert f"Mount Point: {largest['mountPoint']} Owner: Kind: {largest['owner']['kind']}" in words


def test_describe_tells_why_a_pod_is_exposed(cluster: ControlPlane, namespace: str) -> None:
    example = yaml.safe_load(EXAMPLES["OomExposure"])
    example["metadata"]["namespace"] = namespace
    content = example.pop("status")
    cluster.apply(example)
    cluster.apply({**example, "status": content}, subresource="status")
    words = " ".join(cluster.kubectl("describe", "oomexposure", "simulator-0", "-n", namespace).split())
    message = content["containers"][0]["message"]
    assert f"Message: {message}" in words
    assert "Predicted Victim: Comm: pause Pid: 5740 Rss Bytes: 4096" in words
    assert "Mitigation: Discriminates Above Percent: 7 Oom Score Adj: -63" in words
    assert "Reasons: ClampedBadness Severity: High" in words
    assert "Node Name: n1" in words


def test_explain_tells_what_a_field_means(cluster: ControlPlane) -> None:
    answer = cluster.kubectl("explain", "memoryreport.status.tmpfs")
    assert "Largest tmpfs first." in answer
    assert "usedBytes\t<integer>\n    Allocated to files, deleted but open ones and swapped pages included." in answer


@pytest.mark.parametrize("each", RESOURCES, ids=lambda each: each.kind)
def test_explain_knows_every_kind(cluster: ControlPlane, each: Resource) -> None:
    answer = cluster.kubectl("explain", each.kind.lower())
    assert " ".join(answer.split()).count(each.doc) == 1
    assert "status\t<Object>\n    What is." in answer


def test_the_category_lists_all_kinds(cluster: ControlPlane, this_machine: Object, namespace: str) -> None:
    cluster.apply(
        policy() | {"metadata": {"name": namespace}},
        oom() | {"metadata": {"name": namespace}},
        resource("OomExposure", "p") | {"metadata": {"name": "p", "namespace": namespace}},
    )
    names = cluster.kubectl("get", "nodemem", "-A", "-o", "name").split()
    assert set(names) >= {
        "memoryreport.nodemem.io/this-machine",
        f"tmpfspolicy.nodemem.io/{namespace}",
        f"oompolicy.nodemem.io/{namespace}",
        "oomexposure.nodemem.io/p",
    }
    cluster.kubectl("delete", "tmpfspolicy,oompolicy", namespace)


def test_exposures_are_read_at_a_glance_and_selected_by_node(cluster: ControlPlane, namespace: str) -> None:
    example = yaml.safe_load(EXAMPLES["OomExposure"])
    example["metadata"]["namespace"] = namespace
    content = example.pop("status")
    cluster.apply(example)
    cluster.apply({**example, "status": content}, subresource="status")
    (row,) = table(cluster.kubectl("get", "oomexposures", "-n", namespace))
    row.pop("AGE")
    assert row == {
        "NAME": "simulator-0",
        "SEVERITY": "High",
        "REASONS": "ClampedBadness",
        "CONTAINER": "app",
        "USAGE": "16.0Gi/16.0Gi",
        "VICTIM": "pause 4.0Ki",
        "LARGEST": "data_sim 15.1Gi",
    }

    def on_node(node: str) -> list[str]:
        return cluster.kubectl(
            "get", "oomexp", "-n", namespace, "-o", "name", "--field-selector", f"status.nodeName={node}"
        ).split()

    assert on_node("n1") == ["oomexposure.nodemem.io/simulator-0"]
    assert on_node("n2") == []


def test_people_can_wait_for_a_condition(cluster: ControlPlane) -> None:
    publish(cluster, "waited-for", bounded(status()))
    cluster.kubectl("wait", "--for=condition=Complete", "--timeout=10s", "memoryreport/waited-for")


def test_the_report_of_a_full_node_takes_less_than_16_kib_and_its_bookkeeping_little(cluster: ControlPlane) -> None:
    written = publish(cluster, "full", bounded(status(330, 300, 32, 16)))
    assert written["status"]["omitted"]["containers"] > 330 - report.CONTAINERS_LISTED
    assert len(json.dumps(written["metadata"]["managedFields"])) < 1024
    raw = cluster.kubectl("get", "--raw", MEMORY_REPORT.path("full"))
    assert len(raw) < 16 << 10


def test_names_that_a_container_chose_reach_the_server_and_harm_nobody(cluster: ControlPlane) -> None:
    full = status(1, 1)
    hostile = dataclasses.replace(
        full.tmpfs[0], mount_point="/run/\udcff\x1b[2J" + "a" * 5000, written_by=("\udc80\n",)
    )
    written = publish(cluster, "hostile", bounded(dataclasses.replace(full, tmpfs=(hostile,))))
    (entry,) = written["status"]["tmpfs"]
    assert entry["mountPoint"].startswith("/run/\\xff\\x1b[2Jaaa")
    assert entry["writtenBy"] == ["\\x80\\x0a"]
    assert "\x1b" not in cluster.kubectl("get", "memoryreport", "hostile", "-o", "yaml")


def test_a_status_that_names_less_drops_the_rest(cluster: ControlPlane) -> None:
    publish(cluster, "shrinking", wire(status(3, 2, 1, 1)))
    plain = wire(status(1))
    del plain["oomKills"], plain["verdict"]
    written = publish(cluster, "shrinking", plain)["status"]
    assert written == plain


def test_the_specs_writer_cannot_change_the_status_nor_the_agent_the_spec(cluster: ControlPlane) -> None:
    publish(cluster, "apart", wire(status()))
    cluster.apply(
        resource("MemoryReport", "apart", spec=limits({})["spec"], status={"verdict": "forged"}), manager="controller"
    )
    cluster.apply(
        resource("MemoryReport", "apart", spec={"tmpfsLimits": []}, status=wire(status())),
        manager="agent",
        subresource="status",
    )
    stored = cluster.request("GET", MEMORY_REPORT.path("apart"))
    assert stored["status"]["verdict"] == status().verdict
    assert stored["spec"]["tmpfsLimits"][0]["mountPoint"] == "/run"


def test_a_report_goes_with_its_node(cluster: ControlPlane) -> None:
    node = cluster.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "short-lived"}})[0]
    owner = {"apiVersion": "v1", "kind": "Node", "name": "short-lived", "uid": node["metadata"]["uid"]}
    item = resource("MemoryReport", "short-lived")
    item["metadata"]["ownerReferences"] = [owner]
    cluster.apply(item)
    cluster.request("DELETE", "/api/v1/nodes/short-lived")
    cluster.kubectl("wait", "--for=delete", "--timeout=60s", "memoryreport/short-lived")
    with pytest.raises(ApiError, match="not found"):
        cluster.request("GET", MEMORY_REPORT.path("short-lived"))
