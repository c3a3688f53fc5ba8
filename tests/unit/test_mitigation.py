"""The values that a pod's containers would get, and exposures with and without them, on constructed nodes."""

from dataclasses import replace

import pytest

from cgrouptrees import UID
from nodemem.kernel.oom import Generation
from nodemem.node import exposure, mitigation
from nodemem.node.mitigation import Values
from nodemem.node.oomdomains import Place
from unit.test_findings import APP_ID, GIB, MIB, PAUSE_ID, POD, node, pause, place, pod_of, task

CLAMPED = node(Generation.CLAMPED_FIRST)
OTHER_ID = "2" * 63 + "c"


def app(limit: int | None = GIB, adj: int = -998) -> Place:
    return place([task(10, "sh", MIB, adj), task(11, "db", 600 * MIB, adj)], limit, 700 * MIB, qos="Guaranteed")


def other(limit: int | None = GIB, adj: int = -998) -> Place:
    path = f"{POD}/{OTHER_ID}"
    return place([task(12, "proxy", 20 * MIB, adj)], limit, qos="Guaranteed", path=path, container_id=OTHER_ID)


def whole(*containers: Place, limit: int | None = GIB) -> list[Place]:
    return [*containers, pause(), pod_of([pause(), *containers], limit, 700 * MIB, qos="Guaranteed")]


def test_a_pods_containers_get_one_value_and_the_sandbox_none() -> None:
    found = mitigation.targets(whole(app(), other(), limit=2 * GIB), CLAMPED, {UID})
    assert found.keys() == {APP_ID, OTHER_ID}
    assert PAUSE_ID not in found
    assert {each.oom_score_adj for each in found.values()} == {-32}, "2 GiB of 64 GiB, rounded down"
    assert {each.limit_bytes for each in found.values()} == {2 * GIB}


def test_where_the_pods_limit_allows_no_value_or_is_none_each_container_gets_its_own() -> None:
    for limit in (64 * GIB, None):
        found = mitigation.targets(whole(app(), other(4 * GIB), limit=limit), CLAMPED, {UID})
        assert (found[APP_ID].oom_score_adj, found[OTHER_ID].oom_score_adj) == (-16, -63)


def test_without_any_limit_there_is_no_value_and_that_is_said() -> None:
    found = mitigation.targets([app(None)], CLAMPED, {UID})[APP_ID]
    assert found.oom_score_adj is None
    assert "no memory limit" in (found.why_none or "")


@pytest.mark.parametrize("generation", [Generation.ACCURATE, Generation.UNKNOWN])
def test_no_value_on_a_kernel_that_is_not_known_to_clamp(generation: Generation) -> None:
    assert mitigation.targets(whole(app()), node(generation), {UID}) == {}


def test_pods_that_nobody_asked_about_get_none() -> None:
    assert mitigation.targets(whole(app()), CLAMPED, {"another"}) == {}


@pytest.mark.parametrize("generation", [Generation.CLAMPED_FIRST, Generation.CLAMPED_LAST])
def test_with_the_value_the_kernel_chooses_right_and_without_it_the_exposure_is_the_same_as_before(
    generation: Generation,
) -> None:
    its_node = node(generation)
    # The largest is in the middle of the scan, so that neither kernel takes it by luck.
    between = place(
        [task(10, "sh", MIB, -998), task(11, "db", 600 * MIB, -998), task(13, "tail", MIB, -998)],
        GIB,
        700 * MIB,
        qos="Guaranteed",
    )
    before = whole(between)
    _, exposed = exposure.assess(before, its_node)
    assert exposed
    value = mitigation.targets(before, its_node, {UID})[APP_ID].oom_score_adj
    assert value is not None
    values = {pid: Values(value, -998) for pid in (10, 11, 13)}
    stale = before  # the scan still has the old values
    assert exposure.assess(mitigation.as_they_are(stale, values), its_node)[1] == []
    assert exposure.assess(mitigation.without(stale, values), its_node)[1] == exposed
    fresh = [replace(each, tasks=tuple(replace(t, oom_score_adj=value) for t in each.tasks)) for each in before]
    assert exposure.assess(mitigation.without(fresh, {**values, 5: Values(-998, -998)}), its_node)[1] == exposed
    assert mitigation.targets(mitigation.without(fresh, values), its_node, {UID})[APP_ID].oom_score_adj == value


def test_a_process_with_a_value_of_its_own_keeps_the_container_exposed() -> None:
    """At -998 the largest stays on the floor: the mitigation of the others helps nobody, and that is not hidden."""
    mixed = [app()]
    values = {10: Values(-16, -998), 11: Values(-998, -998)}
    _, exposed = exposure.assess(mitigation.as_they_are(mixed, values), CLAMPED)
    assert [each.outlook.path for each in exposed] == [f"{POD}/{APP_ID}"]
