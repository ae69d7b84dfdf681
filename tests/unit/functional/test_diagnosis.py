"""The order in which findings are read, and what is no finding."""

import pytest

from lbtrain.functional.diagnosis import PROBLEMS, Finding, ranked


def finding(problem, since=None, severity=2.0):
    return Finding(problem, "seen", {}, severity, since)


def test_causes_stand_before_what_they_lead_to():
    names = ["slow progress", "instability", "invalid data", "dead units"]
    assert [f.problem for f in ranked(map(finding, names))] == [
        "invalid data",
        "dead units",
        "instability",
        "slow progress",
    ]
    assert ranked([]) == ()


def test_of_one_problem_the_graver_finding_stands_first():
    found = ranked([finding("dead units", severity=1.5), finding("dead units", severity=3.0)])
    assert [f.severity for f in found] == [3.0, 1.5]


@pytest.mark.parametrize(
    ("since", "first"),
    [(0, "dead units"), (None, "dead units"), (3, "instability"), (12, "instability")],
    ids=["from the start", "not known", "just before", "after"],
)
def test_units_that_died_on_the_way_are_a_trace_of_instability_and_not_its_cause(since, first):
    found = ranked([finding("dead units", since), finding("instability", 7), finding("oscillations", 1)])
    assert found[0].problem == first
    assert [f.problem for f in found].index("instability") < [f.problem for f in found].index("oscillations")


def test_without_instability_since_does_not_change_the_order():
    assert ranked([finding("fluctuations"), finding("dead units", 9)])[0].problem == "dead units"


def test_every_problem_has_one_place():
    assert [f.problem for f in ranked(finding(name) for name in reversed(PROBLEMS))] == list(PROBLEMS)


@pytest.mark.parametrize("severity", [0.99, float("nan")])
def test_less_than_the_threshold_is_no_finding(severity):
    with pytest.raises(ValueError, match="severity must be at least 1"):
        finding("saddle", severity=severity)


def test_an_unknown_problem_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match="problem must be one of invalid data, .*got 'sadle'"):
        finding("sadle")
