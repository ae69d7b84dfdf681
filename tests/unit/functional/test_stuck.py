import math

import pytest

from lbtrain.functional.convexity import convexity_evidence
from lbtrain.functional.stuck import plateau_finding, saddle_finding
from lbtrain.functional.training_curve import Curve


def standing(slope: float = 0.0, *, level: float = 2.3, start: float = 2.3, rate: float = 0.1, **changes) -> Curve:
    steps = list(range(0, 201, 10))
    given = {
        "losses": [level] * 200,
        "rates": [rate] * 200,
        "steps": steps,
        "levels": [start] + [level] * 20,
        "gradient_norms": [slope] * 21,
    }
    return Curve(**{**given, **changes})


def test_a_gradient_of_zero_at_the_first_loss_is_a_plateau() -> None:
    found = plateau_finding(standing())
    assert (found.problem, found.since) == ("plateau", 0)
    assert (
        found.evidence
        == "the loss is 2.3 after 200 steps, 100 % of the first, and the gradient is exactly 0 at all samples"
    )
    assert [r.changes for r in found.remedies] == [{"activation": "relu"}, {"init_scale": 1.0}]


def test_a_small_gradient_is_a_plateau_by_the_verdict_of_the_end() -> None:
    curve = standing(gradient_norms=[1.0] * 5 + [1e-6] * 16)
    found = plateau_finding(curve, verdict="plateau", lambda_min=-1e-9, lambda_max=1e-7)
    assert found.since == 50
    assert "nothing near changes the loss" in found.evidence
    for verdict in (None, "minimum", "not critical", "unknown", "saddle"):
        assert plateau_finding(curve, verdict=verdict) is None


def test_curvature_that_is_clearly_negative_is_no_plateau_but_a_saddle() -> None:
    curve, ends = standing(1e-3), {"lambda_min": -0.5, "lambda_max": 0.6}
    assert plateau_finding(curve, verdict="plateau", **ends) is None
    found = saddle_finding(curve, **ends)
    assert (found.problem, found.since) == ("saddle", 0)
    assert found.evidence == (
        "the loss is 2.3 after 200 steps, 100 % of the first; the gradient is 0.001 and lambda_min -0.5 with "
        "lambda_max 0.6: the way out grows e-fold in 20 steps"
    )
    assert [r.changes for r in found.remedies] == [{"init_scale": 1.0}, {}, {"lr": 1.6}]
    assert found.severity == pytest.approx(0.5 / 0.06)


def test_the_rate_is_not_named_where_it_is_large_already() -> None:
    assert saddle_finding(standing(1e-3, rate=1.5), lambda_min=-0.5, lambda_max=0.6).remedies[2].changes == {}


def test_a_saddle_that_was_reached_on_the_way_has_its_step() -> None:
    curve = standing(1e-3, levels=[2.3, 2.2, 2.05] + [1.9] * 18)
    assert saddle_finding(curve, lambda_min=-0.5, lambda_max=0.6).since == 30


@pytest.mark.parametrize(("samples", "away", "stands"), [(15, 1, True), (15, 2, False), (13, 1, True), (11, 1, False)])
def test_one_noisy_level_of_seven_or_more_is_no_way_out(samples: int, away: int, stands: bool) -> None:
    levels = [2.3] * (samples - 2 - away) + [2.0] * away + [2.3] * 2
    curve = standing(1e-3, levels=levels, steps=list(range(samples)), gradient_norms=[1e-3] * samples)
    assert (saddle_finding(curve, lambda_min=-0.5, lambda_max=0.6) is not None) == stands


@pytest.mark.parametrize(
    "ends",
    [
        {"lambda_min": -0.01, "lambda_max": 1.0},  # as networks have it near their minima
        {"lambda_min": -0.5, "lambda_max": 0.6, "residual": 0.6},
        {"lambda_min": 0.0, "lambda_max": 0.6},
        {"lambda_min": math.nan, "lambda_max": 0.6},
        {"lambda_min": -0.5, "lambda_max": math.inf},
    ],
)
def test_without_clearly_negative_curvature_there_is_no_saddle(ends: dict) -> None:
    assert saddle_finding(standing(1e-3), **ends) is None


def test_a_gradient_that_promises_much_is_no_saddle() -> None:
    assert saddle_finding(standing(1.0), lambda_min=-0.5, lambda_max=0.6) is None


def test_the_noise_of_a_subset_s_gradient_hides_no_saddle_and_no_slope() -> None:
    around_zero = standing(1.0, products=[None, *[0.01, -0.01] * 10])
    found = saddle_finding(around_zero, lambda_min=-0.5, lambda_max=0.6)
    assert found is not None
    assert found.numbers["gradient_norm"] == pytest.approx(0.0, abs=0.05)
    assert saddle_finding(standing(1e-3, products=[1.0] * 21), lambda_min=-0.5, lambda_max=0.6) is None
    # Three products are no mean: the last norm stands.
    assert saddle_finding(standing(1.0, products=[None] * 18 + [0.0] * 3), lambda_min=-0.5, lambda_max=0.6) is None


@pytest.mark.parametrize(("level", "start"), [(0.01, 2.3), (1.0, 2.3), (4.9, 2.3)])
def test_a_run_that_has_done_its_work_or_ended_elsewhere_stands_nowhere(level: float, start: float) -> None:
    curve = standing(1e-6, level=level, start=start)
    assert plateau_finding(curve, verdict="plateau") is None
    assert saddle_finding(curve, lambda_min=-0.5, lambda_max=0.6) is None


def test_a_run_that_moves_is_not_stuck() -> None:
    curve = standing(1e-3, levels=[2.3 - 0.01 * i for i in range(21)])
    assert plateau_finding(curve, verdict="plateau") is None
    assert saddle_finding(curve, lambda_min=-0.5, lambda_max=0.6) is None


def test_a_convex_loss_has_neither() -> None:
    proven = convexity_evidence([0.0], [1e-3], [1.0], linear=True)
    assert plateau_finding(standing(1e-6), verdict="plateau", convexity=proven) is None
    assert saddle_finding(standing(1e-6), lambda_min=-0.5, lambda_max=0.6, convexity=proven) is None


def test_least_squares_whose_minimum_is_high_is_a_minimum() -> None:
    # |g| = 0 up to rounding, and curvature that holds the weights.
    assert plateau_finding(standing(1e-7, level=0.95, start=1.0), verdict="minimum") is None
    assert saddle_finding(standing(1e-7, level=0.95, start=1.0), lambda_min=-1e-7, lambda_max=1.0) is None


def test_without_gradients_or_numbers_nothing_is_said() -> None:
    assert plateau_finding(standing(gradient_norms=()), verdict="plateau") is None
    assert plateau_finding(standing(level=math.nan), verdict="plateau") is None
    assert saddle_finding(standing(gradient_norms=()), lambda_min=-0.5, lambda_max=0.6) is None


def test_where_the_steps_sufficed_to_settle_there_is_a_valley_and_no_plateau() -> None:
    # 200 steps at a rate of 0.1: the weights come down by e along curvature 0.05.
    for top, found in ((0.049, True), (0.051, False)):
        assert (plateau_finding(standing(1e-6), verdict="plateau", lambda_min=0.0, lambda_max=top) is not None) == found
