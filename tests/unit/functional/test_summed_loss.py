"""A loss that is a sum over its batch is told with its factor, any other is not."""

import math

import pytest

from lbtrain.functional.reduction import find_reduction
from lbtrain.functional.summed_loss import at_its_rate, reduction_finding


def of_sum(size, scale=1.0):
    return find_reduction(lambda samples: scale * sum(1.0 + i for i in samples), size)


def of_mean(size):
    return find_reduction(lambda samples: sum(1.0 + i for i in samples) / len(samples), size)


@pytest.mark.parametrize("size", [2, 16, 1024])
def test_a_sum_makes_each_step_as_many_times_longer_as_the_batch_has_samples(size):
    found = reduction_finding(of_sum(size), 0.5)
    assert found.problem == "summed loss"
    assert found.severity == size / 2
    assert found.since == 0
    assert f"is {size} times that of a mean" in found.evidence
    mean, lower = found.remedies
    assert mean.changes == {"reduction": "mean"}
    assert lower.changes["lr"] * size == pytest.approx(0.5)


def test_a_mean_is_no_problem():
    assert reduction_finding(of_mean(16), 0.5) is None


def test_a_loss_that_cannot_be_told_is_no_problem():
    assert reduction_finding(find_reduction(lambda _: math.nan, 16), 0.5) is None


def test_a_smaller_factor_can_be_asked_for():
    assert reduction_finding(of_sum(16), 0.5, factor=17) is None
    assert reduction_finding(of_sum(16), 0.5, factor=16).severity == 1


def test_a_run_whose_rate_suits_the_sum_is_not_told_to_divide_it_again():
    (only,) = at_its_rate(reduction_finding(of_sum(16), 0.01)).remedies
    assert only.changes == {"reduction": "mean"}
    assert "with a mean 0.16 takes the same steps" in only.words


def test_of_an_optimizer_that_divides_by_the_gradient_no_other_rate_is_asked():
    found = reduction_finding(of_sum(16), 0.5, scale_free=True)
    assert [remedy.changes for remedy in found.remedies] == [{"reduction": "mean"}]
    assert "each step" not in found.evidence
    assert at_its_rate(found) is found
