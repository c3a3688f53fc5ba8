"""Each mount gets the one limit that the policies come to, whatever the order they come in."""

import dataclasses
from fractions import Fraction
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodemem.api.types import (
    SMALLEST_LIMIT_BYTES,
    LabelSelector,
    LabelSelectorRequirement,
    TmpfsRule,
)
from nodemem.policy import globs
from nodemem.policy.limits import (
    LARGEST_LIMIT_BYTES,
    MOST_LIMITS,
    Limiter,
    Mount,
    Node,
    Pod,
    Policy,
    check,
    target_bytes,
    whole_pages,
)
from nodemem.policy.selectors import keys, selects
from nodemem.policy.tally import tally
from unit.policy_cases import GiB, MiB, limit, limits, node, one, policy, rule

SHM = "/run/containerd/io.containerd.grpc.v1.cri/sandboxes/4f/shm"
VOLUME = "/var/lib/kubelet/pods/u1/volumes/kubernetes.io~empty-dir/cache"


def shm_rule(size: int | str = "64Mi", max_size: int | str | None = None) -> TmpfsRule:
    return TmpfsRule("SharedMemory", size, max_size=max_size, adjust="Grow")


def shm(pod: Pod | None, uid: str | None = "u1", size_bytes: int = 64 * MiB) -> Node:
    pods = {} if uid is None else {uid: pod}
    return node("n1", Mount(SHM, "SharedMemory", size_bytes, 0, uid), pods=pods)


# --- which mounts


def test_a_policy_limits_the_mount_it_names() -> None:
    found = one([policy("cap-run")], node())
    assert (found.mount_point, found.scope, found.size_bytes) == ("/run", "Host", 2 * GiB)
    assert (found.mode, found.adjust, found.headroom_percent, found.policy) == ("Enforce", "Shrink", 10, "cap-run")


def test_a_node_without_the_labels_is_left_alone() -> None:
    found = limits([policy("a", labels={"pool": "web"})], node(labels={"pool": "db"}))
    assert (found.selected, found.limits) == ((), ())


@pytest.mark.parametrize(
    ("operator", "values", "selected"),
    [
        ("In", ("web", "db"), ["web", "db"]),
        ("NotIn", ("web",), ["db", None]),
        ("Exists", (), ["web", "db", ""]),
        ("DoesNotExist", (), [None]),
    ],
)
def test_every_operator_selects_as_kubernetes_does(
    operator: str, values: tuple[str, ...], selected: list[str | None]
) -> None:
    requirement = LabelSelectorRequirement("pool", operator, values)  # type: ignore[arg-type]
    selector = LabelSelector(None, (requirement,))
    for value in ("web", "db", None, *([""] if operator == "Exists" else [])):
        labels = {} if value is None else {"pool": value}
        assert selects(selector, labels) == (value in selected)


def test_the_labels_that_decide_are_those_of_both_parts_of_a_selector() -> None:
    selector = LabelSelector({"b": "1"}, (LabelSelectorRequirement("a", "Exists"),))
    assert keys([selector, None, LabelSelector()]) == ("a", "b")


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("/run", "/run", True),
        ("/run", "/run/lock", False),
        ("/run/*", "/run/lock", True),
        ("/run/*", "/run/user/1000", False),
        ("/run/*", "/run", False),
        ("/run/user/*", "/run/user/1000", True),
        ("/run/**", "/run/user/1000", True),
        ("/run/**", "/run/lock", True),
        ("/run/**", "/run", False),
        ("/run/**", "/runs", False),
        ("/**/shm", "/dev/shm", True),
        ("/**/shm", "/shm", True),
        ("/**/shm", "/a/b/c/shm", True),
        ("/**/a/**/b", "/a/a/b/c/b", True),
        ("/**/a/**/b", "/a/a/b/c", False),
        ("/run/us**r/*", "/run/user/1000", True),
        ("/run/us**r/*", "/run/us/er/1000", False),
        ("/tmp?", "/tmp1", True),
        ("/tmp?", "/tmp/", False),
        ("/tmp[0-9]", "/tmp7", True),
        ("/tmp[!0-9]", "/tmp7", False),
        ("/a[/]b", "/a/b", False),
        ("/odd[*]name", "/odd*name", True),
        ("/odd[*]name", "/oddXname", False),
        ("/run/*", "/run/.hidden", True),
        ("/run/*", "/run/line\nbreak", True),
        ("/run.d", "/runxd", False),
        ("/*", "/", True),
    ],
)
def test_globs(pattern: str, path: str, fits: bool) -> None:
    assert globs.matches(pattern, path) == fits


def slow_match(pattern: list[str], path: list[str]) -> bool:
    if not pattern:
        return not path
    if pattern[0] == "**":
        least = 1 if len(pattern) == 1 else 0
        return any(slow_match(pattern[1:], path[taken:]) for taken in range(least, len(path) + 1))
    return bool(path) and pattern[0] in (path[0], "*") and slow_match(pattern[1:], path[1:])


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["a", "b", "*", "**"]), min_size=1, max_size=7),
    st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=8),
)
def test_globs_match_what_trying_everything_matches(pattern: list[str], path: list[str]) -> None:
    assert globs.matches("/" + "/".join(pattern), "/" + "/".join(path)) == slow_match(pattern, path)


def test_no_glob_makes_matching_explode() -> None:
    # Each takes longer than the test run where a star may be tried again for each of the others.
    assert not globs.matches("/" + "*a" * 100 + "*b", "/" + "a" * 250)
    assert not globs.matches("/**/a" * 60 + "/b", "/a" * 400)


# --- how large


@settings(deadline=None)
@given(st.integers(0, 1 << 62), st.sampled_from([4096, 16384, 65536]))
def test_a_size_is_rounded_up_to_pages_and_is_never_zero(size: int, page: int) -> None:
    rounded = whole_pages(size, page)
    assert rounded % page == 0
    assert rounded >= SMALLEST_LIMIT_BYTES
    assert rounded < size + page or size < SMALLEST_LIMIT_BYTES


def test_the_largest_size_still_fits_the_kernels_arithmetic() -> None:
    assert whole_pages((1 << 63) - 1, 65536) <= LARGEST_LIMIT_BYTES


@settings(deadline=None)
@given(st.integers(1, 100), st.integers(1 << 28, 1 << 45), st.sampled_from([4096, 65536]))
def test_a_percentage_is_exact(percent: int, memory: int, page: int) -> None:
    found = one([policy("a", rule(size=f"{percent}%"))], node(memory_bytes=memory, page_size_bytes=page))
    exact = Fraction(memory * percent, 100)
    assert found.size_bytes % page == 0
    assert exact - 1 < found.size_bytes < exact + page or exact < SMALLEST_LIMIT_BYTES == found.size_bytes


def test_a_percentage_of_unknown_memory_is_no_limit_and_says_so() -> None:
    found = limits([policy("a", rule(size="10%"))], node(memory_bytes=None))
    assert found.limits == ()
    assert [note.why for _, each in found.resolved for note in each.notes] == ["NoMemory"]


def test_a_percentage_of_a_pods_tmpfs_is_of_the_pods_memory_limit() -> None:
    found = one([policy("a", shm_rule("25%"))], shm(Pod("team", memory_limit_bytes=GiB)))
    assert found.size_bytes == 256 * MiB


def test_a_pod_without_memory_limit_takes_the_next_rule_that_fits() -> None:
    rules = [shm_rule("25%"), shm_rule("128Mi")]
    found = limits([policy("a", *rules)], shm(Pod("team")))
    assert found.limits is not None
    assert [each.size_bytes for each in found.limits] == [128 * MiB]
    assert [note.why for _, each in found.resolved for note in each.notes] == ["NoPodLimit"]


@pytest.mark.parametrize(
    ("adjust", "original", "target"),
    [("Shrink", 4, 2), ("Shrink", 1, 1), ("Grow", 4, 4), ("Grow", 1, 2), ("Exact", 4, 2), ("Exact", 1, 2)],
)
def test_shrink_never_enlarges_and_grow_never_shrinks(adjust: str, original: int, target: int) -> None:
    assert target_bytes(adjust, 2, original) == target  # type: ignore[arg-type]


# --- pods


def test_pods_are_selected_by_their_labels_and_those_of_their_namespace() -> None:
    chosen = rule(
        None,
        "1Gi",
        "EmptyDir",
        pod_selector=LabelSelector({"app": "db"}),
        namespace_selector=LabelSelector({"team": "x"}),
    )
    for labels, namespace_labels, hit in [
        ({"app": "db"}, {"team": "x"}, 1),
        ({"app": "db"}, {"team": "y"}, 0),
        ({"app": "web"}, {"team": "x"}, 0),
        ({}, {}, 0),
    ]:
        pods = {"u1": Pod("team", labels, namespace_labels)}
        found = limits([policy("a", chosen)], node("n1", Mount(VOLUME, "EmptyDir", GiB, 0, "u1"), pods=pods))
        assert len(found.limits or ()) == hit


def test_a_host_rule_never_touches_a_pods_volume() -> None:
    found = limits([policy("a", rule("/**"))], node("n1", Mount(VOLUME, "EmptyDir", GiB, 0, "u1")))
    assert found.limits == ()


def test_a_pod_that_is_not_known_keeps_the_limit_it_has() -> None:
    held = dataclasses.replace(limit(SHM), scope="SharedMemory")
    where = dataclasses.replace(shm(None), pods={}, held=(held,))
    chosen = dataclasses.replace(shm_rule("1Gi"), pod_selector=LabelSelector({"app": "db"}))
    found = limits([policy("a", chosen)], where)
    assert (found.limits, found.undecided) == ((held,), 1)
    assert Limiter([policy("a", chosen)]).pods_needed(where) == {"u1"}


def test_a_pod_that_is_gone_has_no_limit() -> None:
    found = limits([policy("a", shm_rule("1Gi", "2Gi"))], shm(None))
    assert (found.limits, found.undecided) == ((), 0)


def test_pods_are_looked_up_only_where_they_make_a_difference() -> None:
    where = dataclasses.replace(shm(None), pods={})
    assert Limiter([policy("a", shm_rule("1Gi"))]).pods_needed(where) == frozenset()
    assert one([policy("a", shm_rule("1Gi"))], where).size_bytes == GiB


@pytest.mark.parametrize(
    ("asked", "size", "why"),
    [
        ("256Mi", 256 * MiB, []),
        ("16Mi", 64 * MiB, []),
        ("2Gi", GiB, ["AnnotationCapped"]),
        ("lots", 64 * MiB, ["BadAnnotation"]),
        ("50%", 64 * MiB, ["BadAnnotation"]),
        ("-1Gi", 64 * MiB, ["BadAnnotation"]),
        (None, 64 * MiB, []),
    ],
)
def test_a_pod_may_ask_for_a_larger_shm_within_the_range(asked: str | None, size: int, why: list[str]) -> None:
    found = limits([policy("a", shm_rule("64Mi", "1Gi"))], shm(Pod("team", shm_size=asked)))
    assert [each.size_bytes for each in found.limits or ()] == [size]
    assert [note.why for _, each in found.resolved for note in each.notes] == why


def test_without_a_range_no_annotation_counts() -> None:
    assert one([policy("a", shm_rule("64Mi"))], shm(Pod("team", shm_size="1Gi"))).size_bytes == 64 * MiB


def test_the_range_may_be_a_share_of_the_pods_limit() -> None:
    pod = Pod("team", memory_limit_bytes=GiB, shm_size="10Gi")
    assert one([policy("a", shm_rule("64Mi", "50%"))], shm(pod)).size_bytes == 512 * MiB


# --- several policies


def test_the_higher_priority_wins() -> None:
    found = limits([policy("a", rule(size="4Gi"), priority=5), policy("b", rule(size="1Gi"))], node())
    assert [(each.policy, each.size_bytes) for each in found.limits or ()] == [("a", 4 * GiB)]
    assert [each.conflicts for _, each in found.resolved] == [()]


def test_on_a_tie_the_smaller_size_holds_and_both_have_a_conflict() -> None:
    policies = [policy("a", rule(size="4Gi")), policy("b", rule(size="1Gi"))]
    found = limits(policies, node())
    assert [(each.policy, each.size_bytes) for each in found.limits or ()] == [("b", GiB)]
    counted = tally(policies, [found])
    assert set(counted["a"].conflicts) == set(counted["b"].conflicts) == {("a", "b")}


def test_two_that_want_the_same_have_no_conflict() -> None:
    policies = [policy("a", rule(size="1Gi")), policy("b", rule("/r*", "1024Mi"))]
    found = limits(policies, node())
    assert one(policies, node()).policy == "a"
    assert [each.conflicts for _, each in found.resolved] == [()]


def test_a_tie_below_the_winner_is_no_conflict() -> None:
    policies = [policy("a", priority=9), policy("b", rule(size="1Gi")), policy("c", rule(size="3Gi"))]
    assert [each.conflicts for _, each in limits(policies, node()).resolved] == [()]


def test_an_audit_never_takes_a_mount_from_an_enforced_limit() -> None:
    policies = [policy("a", rule(size="1Gi"), mode="Audit", priority=9), policy("b")]
    found = one(policies, node())
    assert (found.policy, found.mode) == ("b", "Enforce")
    ((_, resolution),) = limits(policies, node()).resolved
    assert [(each.wanted.policy, each.overruled_by) for each in resolution.trials] == [("a", None)]


def test_an_audit_of_a_lower_priority_says_that_it_would_be_overruled() -> None:
    policies = [policy("a", rule(size="1Gi"), mode="Audit"), policy("b", priority=9)]
    ((_, resolution),) = limits(policies, node()).resolved
    assert [(each.wanted.policy, each.overruled_by) for each in resolution.trials] == [("a", "b")]


def test_within_a_policy_the_first_rule_that_fits_counts() -> None:
    found = limits(
        [policy("a", rule("/run/lock", "8Mi"), rule("/run/*", "1Gi"))],
        node("n1", Mount("/run/lock", "Host", GiB, 0), Mount("/run/x", "Host", GiB, 0)),
    )
    assert [each.size_bytes for each in found.limits or ()] == [8 * MiB, GiB]


def test_a_policy_being_deleted_wants_nothing() -> None:
    found = limits([policy("a", deleting=True)], node())
    assert (found.selected, found.limits) == (("a",), ())


# --- what is not known


def test_a_node_that_has_not_reported_keeps_its_limits() -> None:
    assert limits([policy("a")], Node("n1", mounts=None)).limits is None


def test_a_mount_missing_from_a_cut_list_keeps_its_limit() -> None:
    held = (limit("/run/user/7"), dataclasses.replace(limit(VOLUME), scope="EmptyDir"))
    rules = (rule("/run/user/*"), rule(None, "1Gi", "EmptyDir"))
    cut = node("n1", Mount("/tmp", "Host", GiB, 0), complete=False, held=held)
    found = limits([policy("a", *rules)], cut)
    assert [each.mount_point for each in found.limits or ()] == ["/run/user/7", VOLUME]
    assert found.gone == frozenset()
    whole = limits([policy("a", *rules)], dataclasses.replace(cut, complete=True))
    assert (whole.limits, whole.gone) == ((), {"/run/user/7", VOLUME})


def test_a_kept_limit_follows_its_policys_mode_and_goes_with_its_policy() -> None:
    held = (dataclasses.replace(limit(VOLUME), scope="EmptyDir"),)
    cut = node("n1", complete=False, held=held)
    audit = policy("a", rule(None, "1Gi", "EmptyDir"), mode="Audit")
    assert one([audit], cut).mode == "Audit"
    assert limits([policy("b", rule(None, "1Gi", "EmptyDir"))], cut).limits == ()


def test_a_path_named_in_full_is_limited_although_the_list_was_cut_before_it() -> None:
    cut = node("n1", Mount("/tmp", "Host", GiB, 0), complete=False)
    assert one([policy("a")], cut).mount_point == "/run"


def test_mounts_that_a_spec_could_not_tell_apart_are_not_limited() -> None:
    twice = node("n1", *(Mount("/dev/shm", "SharedMemory", 64 * MiB, 0, uid) for uid in ("u1", "u2")))
    assert limits([policy("a", shm_rule("1Gi"))], twice).limits == ()


def test_a_host_mount_over_another_is_one_mount() -> None:
    stacked = node("n1", Mount("/run", "Host", GiB, 0), Mount("/run", "Host", 2 * GiB, 0))
    assert one([policy("a")], stacked).mount_point == "/run"


@pytest.mark.parametrize("odd", ["/", "/a//b", "/a/../b", "/a/.", "/" + "x" * 1100])
def test_a_mount_point_that_a_spec_refuses_is_left_out_and_said(odd: str) -> None:
    found = limits([policy("a", rule("/**")), policy("b", rule("/*"))], node("n1", Mount(odd, "Host", GiB, 0)))
    assert found.limits == ()
    assert {note.why for _, each in found.resolved for note in each.notes} == {"Unnameable"}


def test_a_node_gets_no_more_limits_than_a_report_takes_and_keeps_those_it_has() -> None:
    mounts = tuple(Mount(f"/run/user/{number}", "Host", GiB, number) for number in range(MOST_LIMITS + 40))
    held = tuple(limit(f"/run/user/{number}") for number in range(10))
    found = limits([policy("a", rule("/run/user/*"))], node("n1", *mounts, held=held))
    assert found.limits is not None
    assert (len(found.limits), found.left_out) == (MOST_LIMITS, 40)
    assert {each.mount_point for each in held} <= {each.mount_point for each in found.limits}
    assert f"/run/user/{MOST_LIMITS + 39}" in {each.mount_point for each in found.limits}


def test_a_policy_that_makes_no_sense_is_refused_with_a_sentence() -> None:
    with pytest.raises(ValueError, match="write one such as 512Mi"):
        check(policy("a", rule(size="much")))
    with pytest.raises(ValueError, match="whole percentage"):
        check(policy("a", headroom="-5%"))


# --- of all of it


POLICIES = st.builds(
    lambda name, rules, mode, priority, labels, deleting: policy(
        name, *rules, mode=mode, priority=priority, labels=labels, deleting=deleting
    ),
    st.sampled_from("abcdef"),
    st.lists(
        st.one_of(
            st.builds(
                rule,
                st.sampled_from(["/run", "/run/*", "/run/**", "/tmp", "/**"]),
                st.sampled_from(["1Gi", "2Gi", "10%"]),
                adjust=st.sampled_from(["Shrink", "Grow", "Exact"]),
            ),
            st.builds(
                lambda scope, size, app: rule(None, size, scope, pod_selector=app and LabelSelector({"app": app})),
                st.sampled_from(["EmptyDir", "SharedMemory"]),
                st.sampled_from(["1Gi", "25%"]),
                st.sampled_from([None, "db", "web"]),
            ),
        ),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from(["Audit", "Enforce"]),
    st.integers(0, 1),
    st.sampled_from([None, {"pool": "x"}]),
    st.booleans(),
)
MOUNTS = st.builds(
    Mount,
    st.sampled_from(["/run", "/run/a", "/run/a/b", "/tmp", "/v/1", "/v/2"]),
    st.sampled_from(["Host", "EmptyDir", "SharedMemory"]),
    st.sampled_from([None, GiB, 16 * GiB]),
    st.sampled_from([None, 0, 3 * GiB]),
    st.sampled_from([None, "u1", "u2", "u3"]),
)
NODES = st.builds(
    lambda name, mounts, pool, complete, held: Node(
        name,
        {"pool": pool},
        GiB,
        tuple(mounts),
        {"u1": Pod("x", {"app": "db"}, {}, GiB), "u2": None},
        complete=complete,
        held=tuple({each.mount_point: each for each in held}.values()),
    ),
    st.sampled_from(["n1", "n2", "n3"]),
    st.lists(MOUNTS, max_size=8),
    st.sampled_from(["x", "y"]),
    st.booleans(),
    st.lists(st.builds(limit, st.sampled_from(["/run", "/run/z", "/v/9"]), policy=st.sampled_from("ab")), max_size=3),
)


@settings(deadline=None)
@given(st.lists(POLICIES, max_size=5, unique_by=lambda each: each.name), st.lists(NODES, max_size=3), st.randoms())
def test_the_order_of_policies_nodes_and_mounts_makes_no_difference(
    policies: list[Policy], nodes: list[Node], random: Random
) -> None:
    nodes = list({each.name: each for each in nodes}.values())
    limiter = Limiter(policies)
    first = [limiter.limits(each) for each in nodes]
    shuffled = random.sample(policies, len(policies))
    mixed = [
        dataclasses.replace(each, mounts=tuple(random.sample(each.mounts or (), len(each.mounts or ()))))
        for each in random.sample(nodes, len(nodes))
    ]
    other = Limiter(shuffled)
    second = {each.name: other.limits(each) for each in mixed}
    assert [second[each.node] for each in first] == first
    counted, again = tally(policies, first), tally(shuffled, [second[each.name] for each in mixed])
    assert counted == again


@settings(deadline=None)
@given(st.lists(POLICIES, max_size=5, unique_by=lambda each: each.name), NODES)
def test_every_mount_gets_at_most_one_limit_from_a_policy_that_selects_it(policies: list[Policy], where: Node) -> None:
    found = limits(policies, where)
    assert found.limits is not None
    places = [each.mount_point for each in found.limits]
    assert len(set(places)) == len(places)
    assert places == sorted(places)
    living = {each.name: each for each in policies if not each.deleting}
    for each in found.limits:
        assert each.policy in found.selected
        assert each.policy in living
        assert each.mode == living[each.policy].spec.mode
        assert each.size_bytes % 4096 == 0
        assert each.size_bytes >= SMALLEST_LIMIT_BYTES
    enforced = {each.name for each in living.values() if each.spec.mode == "Enforce"}
    for mount, resolution in found.resolved:
        if {each.policy for each in resolution.wanted} & enforced:
            assert resolution.wanted[0].policy in enforced, mount


def test_labels_and_paths_are_matched_once_for_all_nodes_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    real = globs.matches

    def counting(pattern: str, path: str) -> bool:
        nonlocal calls
        calls += 1
        return real(pattern, path)

    monkeypatch.setattr(globs, "matches", counting)
    policies = [policy(f"p{number}", rule("/run/user/*"), labels={"pool": f"x{number}"}) for number in range(20)]
    limiter = Limiter(policies)
    for number in range(5000):
        labels = {"pool": f"x{number % 20}", "kubernetes.io/hostname": f"n{number}"}
        limiter.limits(node(f"n{number}", Mount("/run/user/1", "Host", GiB, 0), labels=labels))
    assert calls == 20
