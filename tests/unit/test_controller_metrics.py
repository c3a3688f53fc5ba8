"""The controller's metrics: what is served by whom, how much of it, and what promtool says of it."""

from dataclasses import replace

from nodemem.controller.metrics import EXPOSED_LISTED, STALE_LISTED, render
from promlab import families, parsed, promtool
from unit.metricsamples import exposed, figures, full_figures

FULL = full_figures()


def test_promtool_finds_no_fault_and_both_formats_have_the_same_families() -> None:
    older = render(FULL, open_metrics=False).done()
    assert promtool("check", "metrics", data=older) == ""
    newer = render(FULL, open_metrics=True).done()
    assert families(older) == families(newer)
    found = parsed(newer)
    assert found["nodemem_controller_leader"] == 1
    assert found["nodemem_controller_reconcile_seconds_total"] == 0.25
    assert found['nodemem_controller_tmpfspolicy_nodes{policy="cap",state="failed"}'] == 1
    assert found['nodemem_controller_report_stale{node="n1"}'] == 1
    assert (
        'nodemem_controller_pod_exposed{namespace="team",pod="pod-001",node="n1",severity="High",'
        'reasons="ClampedBadness,SkewedAdj"}'
    ) in found


def test_a_replica_that_stands_by_leaves_to_the_leader_what_would_be_counted_twice() -> None:
    for standby in (replace(FULL, leader=False), replace(FULL, synced=False)):
        names = {name.partition("{")[0] for name in parsed(render(standby, open_metrics=True).done())}
        assert "nodemem_controller_leader" in names
        for family in ("stale_reports", "report_stale", "exposures", "pod_exposed", "tmpfspolicy_nodes"):
            assert f"nodemem_controller_{family}" not in names


def test_nodes_and_pods_are_named_up_to_a_number_the_worst_first_and_counted_all() -> None:
    many = figures(
        stale=[f"n{number}" for number in range(1000)],
        exposed=[*(exposed(number) for number in range(500)), exposed(999, "Imminent")],
    )
    found = parsed(render(many, open_metrics=True).done())
    stale = [name for name in found if name.startswith("nodemem_controller_report_stale")]
    pods = [name for name in found if name.startswith("nodemem_controller_pod_exposed")]
    assert (len(stale), len(pods)) == (STALE_LISTED, EXPOSED_LISTED)
    assert 'pod="pod-999"' in pods[0]
    assert found["nodemem_controller_stale_reports"] == 1000
    assert found['nodemem_controller_exposures{severity="High"}'] == 500
    assert found['nodemem_controller_exposures{severity="Low"}'] == 0
