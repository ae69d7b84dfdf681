import math

import pytest

from lbtrain.functional.convexity import convexity_evidence
from lbtrain.functional.slow_progress import slow_finding, straightness
from lbtrain.functional.training_curve import Curve


def flow(rates: list[float], *, curvature: float = 1.0, start: float = 1.0, momentum: float = 0.0, **changes) -> Curve:
    """Return the curve of gradient descent on ``curvature w^2 / 2``, sampled 20 times."""
    w, velocity, seen = start, 0.0, []
    for rate in rates:
        seen.append(w)
        velocity = momentum * velocity + curvature * w
        w -= rate * velocity
    seen.append(w)
    every = len(rates) // 20
    steps = list(range(0, len(rates) + 1, every))
    given = {
        "losses": [0.5 * curvature * v * v for v in seen[:-1]],
        "rates": rates,
        "steps": steps,
        "levels": [0.5 * curvature * seen[s] ** 2 for s in steps],
        "gradient_norms": [curvature * abs(seen[s]) for s in steps],
        "curvatures": [curvature] * len(steps),
        "stabilities": [rates[min(s, len(rates) - 1)] * curvature / (2 + 2 * momentum) for s in steps],
    }
    return Curve(**{**given, **changes})


UNKNOWN = {"stabilities": (), "curvatures": ()}


def test_a_small_rate_is_found_with_its_remedies() -> None:
    found = slow_finding(flow([0.001] * 200), convexity=convexity_evidence([1.0], [0.0], [1.0]))
    assert found.problem == "slow progress"
    assert found.since == 0
    assert found.evidence == (
        "in 200 steps the loss fell by 32 % only, from 0.5 to 0.342 in a nearly straight line, at a rate of 0.0005 of "
        "the largest stable one; the rate is 0.001, 2/lambda_max 2; the loss looks convex here (lambda_min is 1 +- 0 "
        "or more at 1 point): no local optimum is in the way"
    )
    assert found.severity == pytest.approx(100)
    assert [r.changes for r in found.remedies] == [{"lr": 0.1}, {"momentum": 0.9}]


def test_the_remedy_stops_at_the_target_stability() -> None:
    found = slow_finding(flow([0.01] * 20))
    assert found.remedies[0].changes == {"lr": 0.5}  # lr*lambda_max = 0.5


def test_without_curvature_the_fall_that_the_rate_predicts_tells() -> None:
    found = slow_finding(flow([0.001] * 200, **UNKNOWN))
    assert found.numbers["against_flow"] == pytest.approx(1, abs=0.01)
    assert found.remedies[0].changes == {"lr": 0.01}


@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_momentum_makes_the_terminal_step_longer(momentum: float) -> None:
    curve = flow([0.00005] * 400, momentum=momentum, **UNKNOWN)
    found = slow_finding(curve, momentum=momentum)
    assert found.numbers["against_flow"] == pytest.approx(1, abs=0.05)
    known = slow_finding(flow([0.00005] * 400, momentum=momentum), momentum=momentum)
    assert [r.changes for r in known.remedies] == [{"lr": 0.005}]  # it has momentum already
    assert f"lr/(1-momentum) is {0.00005 / (1 - momentum):.2g}, 2/lambda_max 2" in known.evidence


def test_a_fall_that_the_rate_does_not_predict_has_another_reason() -> None:
    curve = flow([0.001] * 200, **UNKNOWN)
    assert slow_finding(Curve(**{**vars(curve), "gradient_norms": [3 * g for g in curve.gradient_norms]})) is None
    assert slow_finding(Curve(**{**vars(curve), "rates": (), "gradient_norms": curve.gradient_norms})) is None


def test_a_short_run_that_is_fast_is_left_alone() -> None:
    assert slow_finding(flow([0.02] * 40)) is None


def test_a_rate_near_its_limit_is_not_called_slow() -> None:
    # A steep direction that is done, and a flat one on its way: ill-conditioned, and no rate helps.
    assert slow_finding(flow([0.001] * 200, stabilities=[0.3] * 21)) is None


def test_a_run_that_has_come_to_its_floor_is_left_alone() -> None:
    steps = list(range(0, 201, 10))
    levels = [0.7 + 0.3 * math.exp(-s / 20) for s in steps]
    curve = Curve([1.0] * 200, [0.01] * 200, steps, levels, [1.0] * 21, stabilities=[0.01] * 21)
    assert slow_finding(curve) is None


@pytest.mark.parametrize(("noise", "slow"), [(0.3, True), (0.9, False), (None, True)])
def test_where_noise_rules_the_gradient_nothing_is_called_slow(noise: float | None, slow: bool) -> None:
    assert (slow_finding(flow([0.001] * 200, noises=[noise] * 21)) is not None) is slow


def test_a_fall_that_the_batches_do_not_see_is_none() -> None:
    # The subset is learned by heart, or falls by chance.
    assert slow_finding(flow([0.001] * 200, losses=[0.5] * 200)) is None


def test_a_line_that_ends_before_the_run_does_is_none() -> None:
    levels = [1.0 - 0.02 * min(i, 11) for i in range(21)]
    assert slow_finding(flow([0.001] * 200, levels=levels, losses=[0.5] * 200)) is None


def test_for_an_optimizer_that_rescales_the_rate_is_no_step() -> None:
    found = slow_finding(flow([0.001] * 200), momentum=0.9, rescales=True)
    assert "2/lambda_max" not in found.evidence
    assert [r.changes for r in found.remedies] == [{"lr": 0.1}]
    assert slow_finding(flow([0.001] * 200, **UNKNOWN), rescales=True) is None


def test_a_loss_that_does_not_fall_or_has_no_slope_is_not_slow() -> None:
    rising = [1.0 + 0.01 * i for i in range(21)]
    assert slow_finding(flow([0.001] * 200, levels=rising)) is None
    assert slow_finding(flow([0.001] * 200, gradient_norms=[0.0] * 21)) is None
    assert slow_finding(flow([0.001] * 200, levels=[math.nan] * 21)) is None
    assert slow_finding(Curve([1.0, 0.99], [0.1, 0.1])) is None


@pytest.mark.parametrize(
    "schedule",
    [
        lambda x: 1.0,
        lambda x: 0.5 * (1 + math.cos(math.pi * x)),
        lambda x: 1 - x,
        lambda x: min(1.0, 5 * x + 0.01),
        lambda x: 1.0 if x < 0.5 else 0.1,
    ],
)
def test_a_line_is_straight_in_the_sum_of_rates_whatever_the_schedule(schedule) -> None:
    curve = flow([1e-4 * schedule(t / 400) for t in range(400)])
    assert straightness(curve) == pytest.approx(1, abs=0.1)
    assert slow_finding(curve) is not None


def test_straightness_is_the_ratio_of_both_slopes() -> None:
    steps = [0, 10, 20]
    assert straightness(Curve(steps=[*steps, 30, 40], levels=[10.0, 8.0, 6.0, 5.5, 5.0])) == pytest.approx(0.25)
    assert straightness(Curve(steps=[*steps, 30, 40], levels=[10.0, 8.0, 6.0, 7.0, 7.0])) is None
