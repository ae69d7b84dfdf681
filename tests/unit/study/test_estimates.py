import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lbtrain.study.estimates import Estimate, difference, digits, interval, mean_over_seeds, plain, ratio


def test_one_seed_has_no_error_bar() -> None:
    assert mean_over_seeds([0.5]) == Estimate(0.5, 1, None, None, None)
    assert interval(mean_over_seeds([0.5])) == ""


def test_the_interval_is_students() -> None:
    values = [1.0, 2.0, 4.0, 5.5]
    estimate = mean_over_seeds(values)
    low, high = stats.t.interval(0.95, 3, loc=3.125, scale=stats.sem(values))
    assert estimate.mean == 3.125
    assert (estimate.low, estimate.high) == pytest.approx((low, high), rel=1e-12)


def test_equal_values_have_no_spread() -> None:
    assert mean_over_seeds([0.011] * 3).std == 0.0


def test_no_value_is_an_error() -> None:
    with pytest.raises(ValueError, match="values must hold at least one number"):
        mean_over_seeds([])


@given(st.permutations([0.1, 0.2, 0.3, 1e9, 1e-9]))
def test_the_order_of_the_runs_changes_no_digit(values: list[float]) -> None:
    assert mean_over_seeds(values) == mean_over_seeds(sorted(values))


def test_a_ratio_is_paired_by_seed() -> None:
    # Every seed doubles, though the seeds differ tenfold: the interval has no width. Seed 3 is on one side only.
    change = ratio({0: 1.0, 1: 10.0, 3: 5.0}, {1: 20.0, 0: 2.0, 2: 7.0})
    assert change.ratio.mean == pytest.approx(2.0, rel=1e-12)
    assert (change.ratio.low, change.ratio.high) == pytest.approx((2.0, 2.0), rel=1e-12)
    assert change.ratio.n == 2
    assert (change.before, change.after) == pytest.approx((math.sqrt(10), 2 * math.sqrt(10)), rel=1e-12)


def test_the_interval_of_a_ratio_is_that_of_its_logarithm() -> None:
    change = ratio({0: 1.0, 1: 1.0}, {0: 1.0, 1: math.e})
    half = stats.t.ppf(0.975, 1) * math.sqrt(0.5) / math.sqrt(2)
    bounds = (math.exp(0.5 - half), math.exp(0.5 + half))
    assert (change.ratio.low, change.ratio.high) == pytest.approx(bounds, rel=1e-9)


def test_without_a_common_positive_seed_there_is_no_ratio() -> None:
    assert ratio({0: 1.0}, {1: 1.0}) is None
    assert ratio({0: -1.0}, {0: 1.0}) is None
    assert difference({0: 1.0}, {1: 1.0}) is None


def test_a_difference_is_paired_by_seed() -> None:
    estimate = difference({0: 1.0, 1: 10.0}, {0: 1.5, 1: 10.5, 2: 0.0})
    assert estimate == Estimate(0.5, 2, 0.0, 0.5, 0.5)
    assert interval(estimate) == "95 % interval 0.500 to 0.500 over 2 seeds"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0712345, "0.0712"),
        (14.3, "14.3"),
        (0.9996, "1.00"),
        (999.6, "1000"),
        (1024.0, "1024"),
        (0.0, "0"),
        (-2.5, "-2.50"),
        (1.5e-7, "1.50e-07"),
        (math.nan, "nan"),
        (math.inf, "inf"),
    ],
)
def test_digits(value: float, text: str) -> None:
    assert digits(value) == text


def test_numbers_as_people_write_them() -> None:
    assert digits(0.0471, signed=True) == "+0.0471"
    assert [plain(value) for value in (16.0, 0.05, 1e6)] == ["16", "0.05", "1000000"]
