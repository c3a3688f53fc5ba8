"""The chart as Helm renders it: values, security contexts, what is made from it, and the image's recipe."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_python import HelmError, HelmValuesError
from helm_python.chart import Chart, lint

import chartlab
from chartlab import CHART, ROOT, find, render, templates

OLD = "v1.29.3"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
RBAC = (ROOT / "docs" / "reference" / "rbac.md").read_text()


def agent(values: dict[str, Any] | None = None, **options: Any) -> Any:
    return find(render(values, **options), "DaemonSet", "nodemem-agent")["spec"]["template"]


def controller(values: dict[str, Any] | None = None) -> Any:
    return find(render(values), "Deployment", "nodemem-controller")["spec"]["template"]


@pytest.mark.parametrize("version", ["v1.29.0", "v1.30.0", "v1.34.1"])
@pytest.mark.parametrize(
    "values",
    [
        {},
        {
            "enforcement": {"enabled": True},
            "controller": {"nodeConditions": True},
            "podMonitor": {"enabled": True},
            "prometheusRule": {"enabled": True},
            "dashboard": {"enabled": True},
        },
    ],
    ids=["as it comes", "everything on"],
)
def test_strict_lint_finds_nothing_to_say(version: str, values: dict[str, Any]) -> None:
    found = lint(CHART, values, strict=True, namespace="nodemem-system", kube_version=version)
    assert found["errors"] == []
    assert [each["error"] for each in found["messages"] if each["error"] != "icon is recommended"] == []


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"agnet": {}}, "'agnet' not allowed"),
        ({"agent": {"scanSecond": 30}}, "at '/agent': additional properties 'scanSecond' not allowed"),
        ({"agent": {"resources": {"limit": {}}}}, "'limit' not allowed"),
        ({"agent": {"resources": {"limits": {"memory": "128MB"}}}}, "'/agent/resources/limits/memory'"),
        ({"agent": {"extraCapabilities": ["CAP_SYS_ADMIN"]}}, "'/agent/extraCapabilities/0'"),
        ({"agent": {"maxUnavailable": "0%"}}, "'/agent/maxUnavailable'"),
        ({"enforcement": True}, "at '/enforcement': got boolean, want object"),
        ({"image": {"digest": "sha256:abc"}}, "at '/image/digest'"),
        ({"controller": {"replicas": 0}}, "at '/controller/replicas'"),
        ({"networkPolicy": {"apiServerPorts": ["https"]}}, "'/networkPolicy/apiServerPorts/0'"),
        ({"podMonitor": {"interval": "30"}}, "'/podMonitor/interval'"),
        ({"prometheusRule": {"alerts": {"NodememAgentsDown": {}}}}, "'NodememAgentsDown' not allowed"),
        ({"prometheusRule": {"alerts": {"NodememAgentDown": {"for": "5 minutes"}}}}, "/NodememAgentDown/for'"),
        ({"prometheusRule": {"alerts": {"NodememAgentDown": {"usedPercent": 5}}}}, "'usedPercent' not allowed"),
        ({"prometheusRule": {"alerts": {"NodememTmpfsNearlyFull": {"usedPercent": 0.9}}}}, "/usedPercent'"),
    ],
)
def test_a_value_that_is_mistyped_or_out_of_range_is_refused_by_its_name(values: dict[str, Any], says: str) -> None:
    with pytest.raises(HelmValuesError) as caught:
        render(values)
    assert says in str(caught.value)


@pytest.mark.parametrize("component", ["agent", "controller"])
def test_an_account_that_is_not_made_has_to_be_named(component: str) -> None:
    values = {component: {"serviceAccount": {"create": False}}}
    with pytest.raises(HelmError, match=f"say in {component}.serviceAccount.name which account to use"):
        render(values)
    values[component]["serviceAccount"]["name"] = "theirs"  # type: ignore[assignment]
    objects = render(values)
    assert [each["subjects"][0]["name"] for each in objects if each["kind"] == "ClusterRoleBinding"].count(
        "theirs"
    ) == 1
    assert ("ServiceAccount", "theirs") not in {(each["kind"], each["metadata"]["name"]) for each in objects}


def test_every_default_is_described_and_every_description_has_a_default() -> None:
    def walk(schema: Any, values: Any, path: str) -> None:
        described = set(schema["properties"]) - ({"global"} if not path else set())
        assert described == set(values), path
        for name, each in schema["properties"].items():
            if name in values and "properties" in each and name != "resources":
                assert each["additionalProperties"] is False, f"{path}{name}"
                walk(each, values[name], f"{path}{name}.")

    with Chart.load(CHART) as chart:
        walk(json.loads((CHART / "values.schema.json").read_text()), chart.values, "")


@pytest.mark.parametrize("path", sorted(chartlab.generated()), ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_made_from_the_chart_is_up_to_date(path: Path) -> None:
    assert path.read_text() == chartlab.generated()[path], "run: python tests/chartlab.py"


def test_definitions_in_the_chart_are_those_that_are_generated() -> None:
    def names(directory: Path) -> set[str]:
        return {each.name for each in directory.iterdir()}

    assert names(CHART / "files" / "crds") == names(chartlab.CRDS)


def test_the_plain_manifests_are_one_installation_without_helm() -> None:
    objects = list(yaml.safe_load_all((ROOT / "manifests" / "nodemem.yaml").read_text()))
    assert objects[0]["kind"] == "Namespace"
    assert "elm" not in (ROOT / "manifests" / "nodemem.yaml").read_text()
    rendered = {(each["kind"], each["metadata"]["name"]) for each in render({"crds": {"install": False}})}
    assert {(each["kind"], each["metadata"]["name"]) for each in objects[1:]} == rendered


# Security


def capabilities(values: dict[str, Any]) -> set[str]:
    context = agent(values)["spec"]["containers"][0]["securityContext"]
    assert context["capabilities"]["drop"] == ["ALL"]
    return set(context["capabilities"]["add"])


def test_enforcement_adds_two_capabilities_that_make_one_needless_and_the_word_for_it() -> None:
    reporter, enforcer = agent(), agent({"enforcement": {"enabled": True}})
    assert capabilities({}) == {"SYS_PTRACE", "DAC_READ_SEARCH", "CHECKPOINT_RESTORE", "SYSLOG"}
    added = enforcer["spec"]["containers"][0]["securityContext"]["capabilities"].pop("add")
    kept = reporter["spec"]["containers"][0]["securityContext"]["capabilities"].pop("add")
    assert set(added) - set(kept) == {"SYS_ADMIN", "SYS_CHROOT"}
    assert set(kept) - set(added) == {"CHECKPOINT_RESTORE"}
    enforcer["spec"]["containers"][0]["args"].remove("--enforce")
    assert enforcer == reporter


def test_mitigation_adds_one_capability_and_the_word_for_it_and_nothing_else() -> None:
    reporter, mitigator = agent(), agent({"mitigation": {"enabled": True}})
    added = mitigator["spec"]["containers"][0]["securityContext"]["capabilities"].pop("add")
    kept = reporter["spec"]["containers"][0]["securityContext"]["capabilities"].pop("add")
    assert set(added) - set(kept) == {"DAC_OVERRIDE"}
    mitigator["spec"]["containers"][0]["args"].remove("--mitigate")
    assert mitigator == reporter


def test_no_kernel_log_no_syslog_capability() -> None:
    assert "SYSLOG" not in capabilities({"agent": {"kernelLog": False}})


@pytest.mark.parametrize("values", [{}, {"enforcement": {"enabled": True}}])
def test_nothing_is_privileged_and_every_root_is_read_only(values: dict[str, Any]) -> None:
    for template in (agent(values), controller(values)):
        spec = template["spec"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not spec.get("hostNetwork")
        assert not spec.get("hostIPC")
        assert "volumes" not in spec, "no path of the host, no Secret"
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["privileged"] is False
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert "memory" in container["resources"]["limits"]


def test_the_controller_is_nobody_with_nothing() -> None:
    spec = controller()["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] != 0
    assert spec["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert "hostPID" not in spec


def documented_roles() -> dict[tuple[str, str], Any]:
    blocks = re.findall(r"```yaml\n(.*?)```", RBAC, re.DOTALL)
    found = [each for block in blocks for each in yaml.safe_load_all(block)]
    return {(each["kind"], each["metadata"]["name"]): each["rules"] for each in found}


def test_the_controllers_roles_are_those_of_the_reference_that_its_tests_run_with() -> None:
    objects = render({"controller": {"nodeConditions": True}})
    documented = {key: rules for key, rules in documented_roles().items() if key[1].startswith("nodemem-controller")}
    assert len(documented) == 3
    for (kind, name), rules in documented.items():
        assert find(objects, kind, name)["rules"] == rules, f"{kind} {name}"


def test_the_right_to_node_status_comes_only_with_node_conditions() -> None:
    assert "nodes/status" not in json.dumps(render())
    assert "--node-conditions" not in controller()["spec"]["containers"][0]["args"]
    assert "--node-conditions" in controller({"controller": {"nodeConditions": True}})["spec"]["containers"][0]["args"]


def test_no_role_has_a_wildcard_a_secret_or_a_token() -> None:
    roles = [
        each
        for each in render({"controller": {"nodeConditions": True}, "enforcement": {"enabled": True}}, hooks=True)
        if each["kind"] in ("Role", "ClusterRole")
    ]
    assert len(roles) == 7
    text = json.dumps([each["rules"] for each in roles])
    for word in ("*", "secrets", "configmaps", "token", "impersonate", "escalate", "bind", "exec", "deletecollection"):
        assert word not in text


# Clusters


def test_an_old_cluster_gets_no_policy_an_annotation_for_apparmor_and_a_warning() -> None:
    kinds = {each["kind"] for each in render(kube_version=OLD)}
    assert not any(kind.startswith("ValidatingAdmissionPolicy") for kind in kinds)
    template = agent(kube_version=OLD)
    annotations = template["metadata"]["annotations"]
    assert annotations["container.apparmor.security.beta.kubernetes.io/agent"] == "unconfined"
    assert "appArmorProfile" not in template["spec"]["securityContext"]
    assert "WARNING: Kubernetes v1.29.3 is too old" in templates(kube_version=OLD)["NOTES.txt"]


def test_a_newer_cluster_gets_the_policy_the_field_and_no_warning() -> None:
    objects = render(kube_version="v1.30.0")
    assert find(objects, "ValidatingAdmissionPolicy", "nodemem-agent-own-report")["spec"]["failurePolicy"] == "Fail"
    template = agent(kube_version="v1.30.0")
    assert template["spec"]["securityContext"]["appArmorProfile"] == {"type": "Unconfined"}
    assert "annotations" not in template["metadata"]
    assert "WARNING" not in templates(kube_version="v1.30.0")["NOTES.txt"]


def test_a_policy_switched_off_is_warned_of() -> None:
    assert (
        "WARNING: admissionPolicy.enabled is false" in templates({"admissionPolicy": {"enabled": False}})["NOTES.txt"]
    )


def test_alerts_that_nothing_feeds_are_warned_of() -> None:
    says = "WARNING: prometheusRule.enabled without podMonitor.enabled"
    assert says in templates({"prometheusRule": {"enabled": True}})["NOTES.txt"]
    assert says not in templates({"prometheusRule": {"enabled": True}, "podMonitor": {"enabled": True}})["NOTES.txt"]
    assert "helm test nodemem --namespace nodemem-system" in templates()["NOTES.txt"]
    assert "helm test" not in templates({"tests": {"enabled": False}})["NOTES.txt"]


# What Artifact Hub shows


def test_artifact_hub_is_told_of_the_image_the_definitions_and_pages_that_there_are() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    told = {name.partition("/")[2]: text for name, text in chart["annotations"].items()}
    images = [each["image"] for each in yaml.safe_load(told["images"])]
    assert images == [agent()["spec"]["containers"][0]["image"]]
    crds = {each["name"] for each in yaml.safe_load(told["crds"])}
    assert crds == {f"{path.stem}.nodemem.io" for path in chartlab.CRDS.glob("*.yaml")}
    for link in yaml.safe_load(told["links"]):
        base, _, path = link["url"].partition("/blob/main/")
        assert base == chart["home"]
        assert (ROOT / path).is_file(), link
    for change in yaml.safe_load(told["changes"]):
        assert change["kind"] in ("added", "changed", "deprecated", "removed", "fixed", "security")
        assert change["description"].endswith(".")


# Values that reach objects


def test_an_image_pinned_by_digest_keeps_its_tag_for_people() -> None:
    digest = f"sha256:{'a' * 64}"
    values = {"image": {"repository": "r.example/n", "tag": "1", "digest": digest, "pullSecrets": [{"name": "key"}]}}
    for template in (agent(values), controller(values)):
        assert template["spec"]["containers"][0]["image"] == f"r.example/n:1@{digest}"
        assert template["spec"]["imagePullSecrets"] == [{"name": "key"}]


def test_labels_and_annotations_reach_every_object_and_do_not_replace_the_charts_own() -> None:
    values = {
        "commonLabels": {"team": "x", "app.kubernetes.io/name": "other"},
        "commonAnnotations": {"note": "y"},
        "agent": {"podLabels": {"pod": "1"}, "podAnnotations": {"pod": "2"}, "env": [{"name": "A", "value": "B"}]},
    }
    for each in render(values):
        assert each["metadata"]["labels"]["team"] == "x"
        assert each["metadata"]["labels"]["app.kubernetes.io/name"] == "nodemem"
        assert each["metadata"]["annotations"]["note"] == "y"
    template = agent(values)
    assert template["metadata"]["labels"]["pod"] == "1"
    assert template["metadata"]["annotations"] == {"pod": "2", "note": "y"}
    assert {"name": "A", "value": "B"} in template["spec"]["containers"][0]["env"]


def test_a_chart_version_alone_starts_no_pod_again() -> None:
    assert "helm.sh/chart" not in json.dumps([agent(), controller()])


def test_names_stay_short_enough_for_a_release_name_of_53_characters() -> None:
    names = [each["metadata"]["name"] for each in render({"crds": {"install": False}}, name="r" * 53)]
    assert max(map(len, names)) <= 63
    assert len(names) == len(render({"crds": {"install": False}}))


def test_agents_are_replaced_a_tenth_at_a_time_on_every_node() -> None:
    daemonset = find(render(), "DaemonSet", "nodemem-agent")["spec"]
    assert daemonset["updateStrategy"]["rollingUpdate"] == {"maxUnavailable": "10%"}
    assert daemonset["template"]["spec"]["tolerations"] == [{"operator": "Exists"}]


def test_a_single_controller_has_no_disruption_budget_that_would_block_a_drain() -> None:
    kinds = [each["kind"] for each in render({"controller": {"replicas": 1}})]
    assert "PodDisruptionBudget" not in kinds
    assert "PodDisruptionBudget" in [each["kind"] for each in render()]


def test_definitions_are_kept_unless_told_otherwise() -> None:
    def policies(values: dict[str, Any]) -> set[str | None]:
        return {
            each["metadata"].get("annotations", {}).get("helm.sh/resource-policy")
            for each in render(values)
            if each["kind"] == "CustomResourceDefinition"
        }

    assert policies({}) == {"keep"}
    assert policies({"crds": {"keep": False}}) == {None}
    assert policies({"crds": {"install": False}}) == set()


# The image


def stages() -> list[str]:
    return re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]


def instructions(stage: str) -> list[list[str]]:
    text = re.sub(r"^#.*\n", "", stage, flags=re.MULTILINE).replace("\\\n", " ")
    return [line.split(None, 1) for line in text.splitlines()[1:] if line.strip()]


def test_the_image_is_built_in_a_stage_that_is_left_behind() -> None:
    first, last = stages()
    assert first.splitlines()[0].endswith(" AS build")
    assert {base.split()[0] for base in (first, last)} == {"${BASE}${BASE_DIGEST:+@${BASE_DIGEST}}"}
    copies = [rest for word, rest in instructions(last) if word == "COPY"]
    assert copies == ["--from=build /opt/nodemem /opt/nodemem"]


def test_the_image_runs_as_nobody_unless_the_pod_says_otherwise() -> None:
    steps = instructions(stages()[-1])
    users = [rest for word, rest in steps if word == "USER"]
    assert users == ["65532:65532"]
    assert [word for word, _ in steps].index("USER") > [word for word, _ in steps].index("COPY")
    assert str(controller()["spec"]["securityContext"]["runAsUser"]) in users[0]


def test_the_image_gets_no_compiler_no_installer_and_byte_code_for_everything() -> None:
    first, last = ([rest for word, rest in instructions(each) if word == "RUN"] for each in stages())
    assert not re.search(r"apt-get|apk |gcc|build-essential", DOCKERFILE)
    assert any("pip uninstall" in each for each in first)
    assert any("rm -rf /usr/local/bin/pip*" in each for each in last)
    for steps, directory in ((first, "/opt/nodemem/lib"), (last, "/usr/local/lib/python3.*")):
        assert any("compileall" in each and "unchecked-hash" in each and directory in each for each in steps)


def test_every_dependency_in_the_image_has_one_version() -> None:
    lines = (ROOT / "image-requirements.txt").read_text().splitlines()
    assert all(re.fullmatch(r"#.*|[a-z0-9._-]+==[0-9][0-9a-z.]*", each) for each in lines)
    pinned = {each.partition("==")[0] for each in lines}
    assert {"kopf", "kubernetes", "rich", "pyyaml"} <= pinned


def test_the_build_sees_only_what_it_copies() -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [
        source
        for stage in stages()
        for word, rest in instructions(stage)
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    ]
    assert sorted(allowed) == sorted(copied)
    assert all((ROOT / each).exists() for each in copied)


@pytest.mark.parametrize("page", ["install.md", "security.md", "uninstall.md", "monitoring.md", "alerts.md"])
def test_values_named_in_the_docs_exist(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    named = set(re.findall(r"--set ([\w.]+)=", text))
    assert named
    with Chart.load(CHART) as chart:
        known = chart.values
    for path in named:
        value: Any = known
        for key in path.split("."):
            if value == {}:
                break  # a map of whatever names
            assert key in value, path
            value = value[key]
