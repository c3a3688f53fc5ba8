"""The chart on a real API server, by real Helm: what is installed, what its accounts may do, what is left of it; and
the agent with exactly the chart's capabilities on the real kernel."""

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_python import Config, HelmError

from chartlab import CHART, NAMESPACE, RELEASE, ROOT, find, render
from cluster import rights
from cluster.agentlab import REPORTS, make_node, report_of, running_agent, until
from cluster.controlplane import ApiError, ControlPlane
from cluster.rights import chart_capabilities, words

OOM_POLICIES = "/apis/nodemem.io/v1alpha1/oompolicies"


@pytest.fixture(scope="module")
def plain() -> Iterator[ControlPlane]:
    """A control plane without anything of nodemem's."""
    with ControlPlane() as running:
        yield running


@pytest.fixture
def helm(plain: ControlPlane) -> Iterator[Config]:
    with Config(kubeconfig_path=plain.kubeconfig, namespace=NAMESPACE) as config:
        yield config
        config.uninstall(RELEASE, ignore_not_found=True)
    _without_definitions(plain)


@pytest.fixture(scope="module")
def installed() -> Iterator[ControlPlane]:
    """A control plane with the chart as it comes, and two nodes."""
    with rights.installed() as running:
        for node in ("node-a", "node-b"):
            make_node(running, node)
        yield running


def _without_definitions(cluster: ControlPlane) -> None:
    cluster.remove_definitions("crd", "-l", f"app.kubernetes.io/instance={RELEASE}")


def ours(cluster: ControlPlane) -> set[tuple[str, str]]:
    """Kind and name of everything that carries the release's label, wherever and of whatever kind."""
    kinds = cluster.kubectl("api-resources", "--verbs=list", "-o", "name").split()
    found = cluster.kubectl(
        "get", ",".join(kinds), "-A", "-l", f"app.kubernetes.io/instance={RELEASE}", "-o", "json", "--ignore-not-found"
    )
    return {(each["kind"], each["metadata"]["name"]) for each in json.loads(found)["items"]} if found.strip() else set()


def _ours_or_none(cluster: ControlPlane) -> set[tuple[str, str]] | None:
    """None while a kind that was just listed is going away."""
    try:
        return ours(cluster)
    except subprocess.CalledProcessError:
        return None


# The server's verdict on what is rendered


@pytest.mark.parametrize(
    "values",
    [
        {},
        {
            "enforcement": {"enabled": True},
            "mitigation": {"enabled": True},
            "controller": {"nodeConditions": True, "replicas": 1},
        },
        {
            "crds": {"keep": False},
            "fullnameOverride": "memory",
            "commonLabels": {"a": "b"},
            "commonAnnotations": {"c": "d"},
        },
        {
            "image": {"digest": f"sha256:{'0' * 64}", "pullSecrets": [{"name": "key"}]},
            "agent": {
                "kernelLog": False,
                "seLinuxType": "",
                "appArmorProfile": "",
                "priorityClassName": "",
                "maxUnavailable": 3,
                "resources": {},
                "tolerations": [],
                "affinity": {"nodeAffinity": {}},
                "env": [{"name": "X", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "extraCapabilities": ["SYS_RESOURCE"],
            },
            "controller": {"topologySpread": False, "tolerations": [{"key": "x", "operator": "Exists"}]},
            "networkPolicy": {"metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]},
        },
        {"rbac": {"create": False}, "networkPolicy": {"enabled": False}, "admissionPolicy": {"enabled": False}},
    ],
    ids=["as it comes", "everything on", "other names", "much changed", "much off"],
)
def test_the_server_takes_every_object_with_no_field_it_does_not_know(
    plain: ControlPlane, values: dict[str, Any]
) -> None:
    plain.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    objects = render(values)
    assert objects
    for each in objects:
        answer = plain.request(
            "PATCH",
            f"{plain.path_of(each)}?fieldManager=test&force=true&fieldValidation=Strict&dryRun=All",
            each,
            content_type="application/apply-patch+yaml",
        )
        assert answer["metadata"]["name"] == each["metadata"]["name"]


def test_the_plain_manifests_are_applied_by_kubectl() -> None:
    with ControlPlane(controller_manager=False) as cluster:
        said = cluster.kubectl("apply", "-k", str(ROOT / "manifests"))
        assert "daemonset.apps/nodemem-agent created" in said
        assert "customresourcedefinition.apiextensions.k8s.io/memoryreports.nodemem.io created" in said
        assert "unchanged" in cluster.kubectl("apply", "-k", str(ROOT / "manifests"))
        cluster.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")
        assert "No resources found" in cluster.kubectl("get", "memoryreports", check=False)


# The life of a release


def test_install_upgrade_rollback_uninstall_leave_only_the_definitions(plain: ControlPlane, helm: Config) -> None:
    plain.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    before = ours(plain)

    def added() -> Any:
        daemonset = plain.request("GET", f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/nodemem-agent")
        return daemonset["spec"]["template"]["spec"]["containers"][0]["securityContext"]["capabilities"]["add"]

    notes = helm.install(CHART, RELEASE, {})["notes"]
    assert "kubectl get memoryreports" in notes
    assert "WARNING" not in notes
    assert "SYS_ADMIN" not in added()
    helm.upgrade(CHART, RELEASE, {"enforcement": {"enabled": True}, "controller": {"nodeConditions": True}})
    assert "SYS_ADMIN" in added()
    assert ("ClusterRole", "nodemem-controller-node-conditions") in ours(plain)
    helm.rollback(RELEASE)
    assert "SYS_ADMIN" not in added()
    assert ("ClusterRole", "nodemem-controller-node-conditions") not in ours(plain)
    assert [each["revision"] for each in helm.history(RELEASE)] == [1, 2, 3]

    plain.apply({"apiVersion": "nodemem.io/v1alpha1", "kind": "OomPolicy", "metadata": {"name": "mine"}, "spec": {}})
    helm.uninstall(RELEASE)
    left = ours(plain) - before
    assert left == {
        ("CustomResourceDefinition", f"{each}.nodemem.io")
        for each in ("memoryreports", "oomexposures", "oompolicies", "tmpfspolicies")
    }
    assert "mine" in plain.kubectl("get", "oompolicies")

    # Installed again over what was kept; and with keep switched off nothing stays.
    helm.install(CHART, RELEASE, {})
    assert "mine" in plain.kubectl("get", "oompolicies")
    helm.upgrade(CHART, RELEASE, {"crds": {"keep": False}})
    helm.uninstall(RELEASE)
    until(lambda: _ours_or_none(plain) == before, "everything gone")


def everything(cluster: ControlPlane) -> set[tuple[str, str, str]]:
    """Kind, namespace and name of all that is in the cluster, but for what comes and goes by itself."""
    kinds = set(cluster.kubectl("api-resources", "--verbs=list", "-o", "name").split())
    kinds -= {"events", "events.events.k8s.io", "leases.coordination.k8s.io", "componentstatuses"}
    found = cluster.kubectl("get", ",".join(sorted(kinds)), "-A", "-o", "json", "--ignore-not-found")
    return {
        (each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"])
        for each in json.loads(found)["items"]
    }


def test_of_an_installation_nothing_is_left_but_the_definitions_whatever_its_label(
    plain: ControlPlane, helm: Config
) -> None:
    plain.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    plain.kubectl("wait", "--for=create", "--timeout=60s", "-n", NAMESPACE, "serviceaccount/default")
    plain.kubectl("wait", "--for=create", "--timeout=60s", "-n", NAMESPACE, "configmap/kube-root-ca.crt")
    before = everything(plain)
    helm.install(CHART, RELEASE, {"enforcement": {"enabled": True}, "controller": {"nodeConditions": True}})
    assert len(everything(plain) - before) > 20
    helm.uninstall(RELEASE)
    definitions = {
        ("CustomResourceDefinition", "", f"{each}.nodemem.io")
        for each in ("memoryreports", "oomexposures", "oompolicies", "tmpfspolicies")
    }
    kept = definitions | {("APIService", "", "v1alpha1.nodemem.io")}
    until(lambda: everything(plain) - before == kept, "the definitions alone", 60)
    assert before <= everything(plain)


@pytest.fixture
def next_chart(tmp_path: Path) -> Path:
    """The chart one version later: an OomPolicy has a field more."""
    chart = tmp_path / "nodemem"
    shutil.copytree(CHART, chart)
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    (chart / "Chart.yaml").write_text(yaml.safe_dump(about | {"version": "99.0.0", "appVersion": "99.0.0"}))
    file = chart / "files" / "crds" / "oompolicies.yaml"
    definition = yaml.safe_load(file.read_text())
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema["properties"]["spec"]["properties"]["remark"] = {"type": "string", "description": "Why.", "maxLength": 64}
    file.write_text(yaml.safe_dump(definition))
    return chart


def remarked(name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "nodemem.io/v1alpha1", "kind": "OomPolicy", "metadata": {"name": name}, "spec": spec}


def test_a_new_version_brings_its_definitions_and_takes_no_object_away(
    plain: ControlPlane, helm: Config, next_chart: Path
) -> None:
    plain.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})

    def accepted(item: dict[str, Any]) -> bool:
        try:
            plain.apply(item)
        except ApiError as error:
            if "remark: field not declared in schema" not in error.message:
                raise
            return False
        return True

    def image() -> str:
        daemonset = plain.request("GET", f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/nodemem-agent")
        found: str = daemonset["spec"]["template"]["spec"]["containers"][0]["image"]
        return found

    helm.install(CHART, RELEASE, {})
    plain.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")
    until(lambda: accepted(remarked("old")), "the kind")
    old_uid = plain.request("GET", "/apis/nodemem.io/v1alpha1/oompolicies/old")["metadata"]["uid"]
    assert not accepted(remarked("new", remark="x"))
    before = image()
    helm.upgrade(next_chart, RELEASE, {})
    assert image().endswith(":99.0.0")
    until(lambda: accepted(remarked("new", remark="x")), "the new field", 60)
    helm.rollback(RELEASE)
    assert image() == before
    until(lambda: not accepted(remarked("newer", remark="x")), "the old definition", 60)
    names = {each["metadata"]["name"]: each for each in plain.request("GET", OOM_POLICIES)["items"]}
    assert names["old"]["metadata"]["uid"] == old_uid
    assert "new" in names


def test_definitions_that_kubectl_brought_are_left_to_it_when_told_so(plain: ControlPlane, helm: Config) -> None:
    plain.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    helm.install(CHART, RELEASE, {"crds": {"install": False}})
    assert not [each for each in ours(plain) if each[0] == "CustomResourceDefinition"]
    helm.uninstall(RELEASE)
    plain.kubectl("apply", "-f", str(ROOT / "manifests" / "crds"))
    try:
        with pytest.raises(HelmError, match="invalid ownership metadata"):
            helm.install(CHART, RELEASE, {})
        helm.uninstall(RELEASE, ignore_not_found=True)
        helm.install(CHART, RELEASE, {"crds": {"install": False}})
        helm.uninstall(RELEASE)
        assert "memoryreports.nodemem.io" in plain.kubectl("get", "crd", "-o", "name")
    finally:
        plain.remove_definitions("-f", str(ROOT / "manifests" / "crds"))


def test_a_typo_stops_an_installation_before_anything_is_made(plain: ControlPlane, helm: Config) -> None:
    plain.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    with pytest.raises(HelmError, match="additional properties 'enforcment' not allowed"):
        helm.install(CHART, RELEASE, {"enforcment": {"enabled": True}})
    assert ours(plain) == set()


# What the accounts may do


def agent_token(cluster: ControlPlane, node: str) -> str:
    """As the kubelet would mount it into the agent's pod on ``node``, which is made from the DaemonSet's template."""
    pod = rights.pod_of(cluster, "DaemonSet", "nodemem-agent", node)
    return cluster.service_account_token(NAMESPACE, "nodemem-agent", pod=pod)


def refused(
    cluster: ControlPlane, token: str, method: str, path: str, body: Any = None, kind: str | None = None
) -> str:
    """The server's words."""
    with pytest.raises(ApiError) as caught:
        cluster.request(method, path, body, token=token, content_type=kind)
    assert caught.value.code == 403, caught.value
    return caught.value.message


def report(node: str) -> dict[str, Any]:
    return {"apiVersion": "nodemem.io/v1alpha1", "kind": "MemoryReport", "metadata": {"name": node}}


def status(node: str) -> dict[str, Any]:
    return {**report(node), "status": {"agentVersion": "1"}}


def test_an_agent_writes_the_report_of_its_own_node_alone(installed: ControlPlane) -> None:
    token_a, token_b = agent_token(installed, "node-a"), agent_token(installed, "node-b")
    for node, token in (("node-a", token_a), ("node-b", token_b)):
        installed.apply(report(node), manager="nodemem-agent", token=token)
        installed.apply(status(node), manager="nodemem-agent", token=token, subresource="status")
    says = "the nodemem agent of node node-a may write no MemoryReport but its own, not node-b"
    query = "?fieldManager=nodemem-agent&force=true"
    apply = "application/apply-patch+yaml"
    merge = "application/merge-patch+json"
    mine = {"metadata": {"labels": {"x": "y"}}}
    assert says in refused(installed, token_a, "PATCH", f"{REPORTS}/node-b/status{query}", status("node-b"), apply)
    assert says in refused(installed, token_a, "PATCH", f"{REPORTS}/node-b{query}", report("node-b"), apply)
    assert says in refused(installed, token_a, "PATCH", f"{REPORTS}/node-b", mine, merge)
    assert "but its own, not node-c" in refused(installed, token_a, "POST", REPORTS, report("node-c"))
    assert "but its own, not node-c" in refused(
        installed, token_a, "PATCH", f"{REPORTS}/node-c{query}", report("node-c"), apply
    )
    installed.request("PATCH", f"{REPORTS}/node-a", mine, token=token_a)
    for node in ("node-a", "node-b"):
        assert "cannot delete" in refused(installed, token_a, "DELETE", f"{REPORTS}/{node}")
    assert "cannot deletecollection" in refused(installed, token_a, "DELETE", REPORTS)
    assert "cannot update" in refused(installed, token_a, "PUT", f"{REPORTS}/node-a", report("node-a"))


def test_the_policy_holds_even_where_somebody_gives_the_agents_more(installed: ControlPlane) -> None:
    token_a, token_b = agent_token(installed, "node-a"), agent_token(installed, "node-b")
    installed.apply(report("node-b"), manager="nodemem-agent", token=token_b)
    rule = {"apiGroups": ["nodemem.io"], "resources": ["memoryreports", "memoryreports/status"], "verbs": ["*"]}
    meta = {"name": "too-generous"}
    subject = {"kind": "ServiceAccount", "name": "nodemem-agent", "namespace": NAMESPACE}
    ref = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "too-generous"}
    kind = "rbac.authorization.k8s.io/v1"
    installed.apply(
        {"apiVersion": kind, "kind": "ClusterRole", "metadata": meta, "rules": [rule]},
        {"apiVersion": kind, "kind": "ClusterRoleBinding", "metadata": meta, "roleRef": ref, "subjects": [subject]},
    )
    try:
        says = "may write no MemoryReport but its own, not node-b"
        stored = installed.request("GET", f"{REPORTS}/node-b")
        until(lambda: says in words(installed, token_a, "DELETE", f"{REPORTS}/node-b"), "the policy's words")
        assert says in refused(installed, token_a, "PUT", f"{REPORTS}/node-b", stored)
        assert says in refused(installed, token_a, "PUT", f"{REPORTS}/node-b/status", stored)
        with pytest.raises(ApiError):
            installed.request("DELETE", REPORTS, token=token_a)
        assert installed.request("GET", f"{REPORTS}/node-b")["metadata"]["uid"] == stored["metadata"]["uid"]
        installed.request("PUT", f"{REPORTS}/node-b", stored, token=token_b)
    finally:
        installed.kubectl("delete", "clusterrole,clusterrolebinding", "too-generous")


def test_a_token_that_names_no_node_writes_no_report(installed: ControlPlane) -> None:
    token = installed.service_account_token(NAMESPACE, "nodemem-agent")
    assert "names no node" in refused(installed, token, "POST", REPORTS, report("node-a"))


def test_the_policy_is_for_agents_and_nobody_else(installed: ControlPlane) -> None:
    installed.request("POST", REPORTS, report("by-hand"))
    installed.request("DELETE", f"{REPORTS}/by-hand")


RULES = tuple[str, str, str, str]


def expanded(rules: Sequence[Any]) -> set[RULES]:
    return {
        (group, resource, verb, name)
        for rule in rules
        for group in rule.get("apiGroups") or ()
        for resource in rule.get("resources") or ()
        for verb in rule["verbs"]
        for name in rule.get("resourceNames") or [""]
    }


def summed_up(cluster: ControlPlane, token: str, namespace: str) -> set[RULES]:
    """All that the bearer may do in the namespace and the cluster, as the server's authorizer sums it up."""
    answer = cluster.request(
        "POST",
        "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectRulesReview",
            "spec": {"namespace": namespace},
        },
        token=token,
    )
    return expanded(answer["status"]["resourceRules"])


@pytest.mark.parametrize("component", ["agent", "controller"])
def test_an_account_may_do_what_its_roles_say_and_nothing_else(installed: ControlPlane, component: str) -> None:
    installed.kubectl("create", "serviceaccount", f"nobody-{component}", "-n", "default")
    nobody = summed_up(installed, installed.service_account_token("default", f"nobody-{component}"), "default")
    token = installed.service_account_token(NAMESPACE, f"nodemem-{component}")
    objects = render()
    cluster_wide = expanded(find(objects, "ClusterRole", f"nodemem-{component}")["rules"])
    assert summed_up(installed, token, "default") - nobody == cluster_wide
    inside = expanded(find(objects, "Role", "nodemem-controller")["rules"]) if component == "controller" else set()
    assert summed_up(installed, token, NAMESPACE) - nobody == cluster_wide | inside


NOBODYS = [
    ("GET", "/api/v1/secrets", None),
    ("GET", f"/api/v1/namespaces/{NAMESPACE}/secrets/sh.helm.release.v1.nodemem.v1", None),
    ("GET", "/api/v1/configmaps", None),
    ("POST", f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/nodemem-agent/token", {}),
    ("POST", f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/nodemem-controller/token", {}),
    ("POST", "/api/v1/namespaces/default/pods", {"metadata": {"name": "x"}}),
    ("DELETE", "/api/v1/namespaces/default/pods/x", None),
    ("GET", "/api/v1/namespaces/default/pods/x/exec?command=sh&stdin=true", None),
    ("POST", "/api/v1/namespaces/default/pods/x/eviction", {}),
    ("PATCH", "/api/v1/nodes/node-a", {"spec": {"unschedulable": True}}),
    ("PATCH", "/api/v1/nodes/node-a/status", {"status": {}}),
    ("GET", "/api/v1/nodes/node-a/proxy/metrics", None),
    ("PATCH", "/apis/rbac.authorization.k8s.io/v1/clusterroles/nodemem-agent", {"rules": []}),
    ("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", {}),
    ("DELETE", "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/nodemem-agent-own-report", None),
    ("PATCH", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/memoryreports.nodemem.io", {}),
    ("PATCH", "/apis/nodemem.io/v1alpha1/oompolicies/x", {}),
    ("POST", "/apis/nodemem.io/v1alpha1/tmpfspolicies", {}),
    ("PATCH", f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/nodemem-agent", {}),
]
AGENTS = [
    ("GET", "/api/v1/nodes", None),
    ("GET", "/api/v1/namespaces/default/pods/x", None),
    ("GET", "/apis/nodemem.io/v1alpha1/oomexposures", None),
    ("PATCH", "/apis/nodemem.io/v1alpha1/namespaces/default/oomexposures/x", {}),
    ("PATCH", "/api/v1/namespaces/default/events/x", {}),
    ("DELETE", "/api/v1/namespaces/default/events/x", None),
    ("POST", f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases", {}),
]
CONTROLLERS = [
    ("GET", "/api/v1/pods", None),
    ("POST", REPORTS, {}),
    ("DELETE", REPORTS, None),
    ("PUT", "/apis/nodemem.io/v1alpha1/memoryreports/node-a/status", {}),
    ("PATCH", f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/another", {}),
    ("GET", "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/nodemem-controller", None),
]


@pytest.mark.parametrize(("method", "path", "body"), NOBODYS + AGENTS)
def test_what_the_agent_must_not_do_is_refused(installed: ControlPlane, method: str, path: str, body: Any) -> None:
    assert "cannot" in refused(installed, agent_token(installed, "node-a"), method, path, body)


@pytest.mark.parametrize(("method", "path", "body"), NOBODYS + CONTROLLERS)
def test_what_the_controller_must_not_do_is_refused(installed: ControlPlane, method: str, path: str, body: Any) -> None:
    assert "cannot" in refused(
        installed, installed.service_account_token(NAMESPACE, "nodemem-controller"), method, path, body
    )


def test_who_may_view_a_namespace_sees_its_exposures(installed: ControlPlane) -> None:
    installed.kubectl("create", "serviceaccount", "viewer", "-n", "default")
    binding = ["--clusterrole=view", "--serviceaccount=default:viewer", "-n", "default"]
    installed.kubectl("create", "rolebinding", "viewer", *binding)
    token = installed.service_account_token("default", "viewer")
    path = "/apis/nodemem.io/v1alpha1/namespaces/{}/oomexposures"
    # The role view is put together by the controller manager, which this control plane runs without that part.
    role = installed.request("GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles/nodemem-view")
    assert role["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-view"] == "true"
    view = installed.request("GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles/view")
    view["rules"] = [*(view.get("rules") or []), *role["rules"]]
    view.pop("aggregationRule")
    installed.request("PUT", "/apis/rbac.authorization.k8s.io/v1/clusterroles/view", view)
    until(lambda: not words(installed, token, "GET", path.format("default")), "a view")
    assert "cannot list" in refused(installed, token, "GET", path.format("kube-system"))


# The agent as the DaemonSet runs it: its user, its capabilities, its account


def test_the_agent_reports_with_the_charts_rights_and_capabilities_alone(
    installed: ControlPlane, tmp_path: Path
) -> None:
    token = agent_token(installed, "node-a")
    kubeconfig = installed.write_kubeconfig(tmp_path / "kubeconfig", token)
    with running_agent("node-a", kubeconfig, "--interval=5", "--refresh=1") as running:
        found = until(lambda: (report_of(installed, "node-a") or {}).get("status", {}).get("summary"), "a report", 60)
        assert found["total"].endswith("i")
        capabilities = [
            line for line in Path(f"/proc/{running.pid}/status").read_text().splitlines() if line.startswith("Cap")
        ]
        effective = int(next(line for line in capabilities if line.startswith("CapEff")).split()[1], 16)
        assert effective.bit_count() == len(chart_capabilities())
        refusals = [each for each in running.log() if each.get("status") in (401, 403)]
        assert refusals == []
    stored = installed.request("GET", f"{REPORTS}/node-a")
    assert stored["metadata"]["ownerReferences"][0]["name"] == "node-a"


def test_the_agent_started_on_another_node_with_a_stolen_token_gets_nowhere(
    installed: ControlPlane, tmp_path: Path
) -> None:
    kubeconfig = installed.write_kubeconfig(tmp_path / "kubeconfig", agent_token(installed, "node-a"))
    make_node(installed, "node-d")
    with running_agent("node-d", kubeconfig, "--interval=5", "--refresh=1") as running:
        said = until(
            lambda: [each for each in running.log() if each.get("status") == 403] or None, "a refusal in the log", 60
        )
    assert "may write no MemoryReport but its own, not node-d" in json.dumps(said)
    assert report_of(installed, "node-d") is None
