"""What has to hold on each machine; shared by the short set and the matrix."""

from vm.boots import SCORES
from vm.cases import Case
from vm.machine import Boot


def predicted_is_killed(boot: Boot, case: Case) -> None:
    found = boot.value(case.id)
    seen = f"{case.id} on {boot.machine} ({boot.release}): {found}\n{boot.log(case.id)}"
    assert found["generation"] == "Accurate", seen
    assert found["order_from"] == ("kernel log" if case.killed else "order of exits"), seen
    assert sorted(found["died"]) == sorted(found["killed"]), seen
    if case.hasty is not None and boot.release.startswith("7.") and tuple(found["killed"]) == case.hasty:
        return
    assert tuple(found["killed"]) == case.killed, seen
    assert [pid for kill in found["predicted"] for pid in kill] == list(case.killed), seen
    assert found["agrees"], seen
    assert sorted(found["survivors"]) == sorted(set(range(1, len(found["members"]) + 1)) - set(case.killed)), seen
    assert found["stalled"] == case.stalled, seen


def every_score_is_computed(boot: Boot) -> None:
    found = boot.value(SCORES.id)
    seen_adj = {each["adj"] for each in found}
    assert {-1000, -998, 0, 500, 1000} <= seen_adj
    # What is running while it is read moves by a page; a unit of the score is about 200 of them.
    wrong = [each for each in found if each["computed"] is None or abs(each["computed"] - each["read"]) > 1]
    assert wrong == []
    still = [each for each in found if each["name"].startswith("lab")]
    assert [each for each in still if each["computed"] != each["read"]] == []
