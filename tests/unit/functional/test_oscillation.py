import itertools
import math
import random

import pytest

from lbtrain.functional.averaging import averaging_gain
from lbtrain.functional.oscillation import gradient_correlation, oscillation_finding, projection_correlation
from lbtrain.functional.training_curve import Curve


def projected(stability: float, momentum: float, seed: int, size: int, *, noise: float = 1.0, start: float = 0.0):
    """Return batch gradients along an eigenvector: heavy ball on a quadratic of curvature 1 with gradient noise."""
    draw, rate = random.Random(seed), 2 * (1 + momentum) * stability
    x, velocity, found = start, 0.0, []
    for _ in range(size):
        gradient = x + noise * draw.gauss(0, 1)
        velocity = momentum * velocity + gradient
        x -= rate * velocity
        found.append(gradient)
    return found


def windows(gradients: list[float]) -> list[list[float]]:
    return [gradients[i : i + 8] for i in range(100, len(gradients) - 8, 50)]


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("stability", [0.1, 0.3, 0.5, 0.75, 0.9])
def test_noisy_gradients_on_a_quadratic_have_the_correlation_of_the_theory(stability: float, momentum: float) -> None:
    gradients = projected(stability, momentum, 0, 60_000)[1000:]
    measured = sum(a * b for a, b in itertools.pairwise(gradients)) / sum(a * a for a in gradients)
    assert measured == pytest.approx(gradient_correlation(stability, momentum), abs=0.03)


@pytest.mark.parametrize("stability", [0.1, 0.4, 0.75, 0.95])
def test_without_momentum_the_correlation_is_minus_the_stability(stability: float) -> None:
    assert gradient_correlation(stability) == pytest.approx(-stability)


@pytest.mark.parametrize("h", [0.5, 1.2, 1.5, 1.9])
def test_without_noise_it_is_one_less_rate_times_curvature(h: float) -> None:
    found = projection_correlation([projected(h / 2, 0.0, 0, 8, noise=0.0, start=s) for s in (1.0, 1e-6)])
    # mean(p_t p_{t+1}) / mean(p_t^2) of a geometric sequence, which loses its last square.
    a = 1 - h
    ends = (1 - a**14) / (1 - a**16) * 8 / 7
    assert found.value == pytest.approx(a * ends)
    assert found.pairs == 14


def test_with_much_momentum_the_swing_outweighs_the_noise_and_the_sign_changes_near_one_half() -> None:
    assert gradient_correlation(0.4, 0.9) > 0
    assert gradient_correlation(0.5, 0.99) == pytest.approx(0, abs=0.01)
    assert gradient_correlation(0.6, 0.9) < -0.2


def test_a_state_that_is_not_stationary_has_no_correlation() -> None:
    with pytest.raises(ValueError, match="from 0 to below 1"):
        gradient_correlation(1.0)


def test_windows_of_all_scales_count_alike_and_empty_ones_not_at_all() -> None:
    up, down = [1.0, 1.0, 1.0], [1e6, -1e6, 1e6]
    found = projection_correlation([up, down, [], [3.0], [0.0, 0.0], [1.0, math.nan]])
    assert (found.value, found.pairs) == (0.0, 4)
    assert found.stderr == pytest.approx(1.0)
    assert math.isnan(projection_correlation([[], [1.0]]).value)


def test_the_error_covers_the_truth_as_often_as_two_errors_should() -> None:
    truth, hits = gradient_correlation(0.6), 0
    for seed in range(200):
        found = projection_correlation(windows(projected(0.6, 0.0, seed, 320)))
        hits += abs(found.value - truth) <= 2 * found.stderr
    assert hits >= 180


def oscillating(seed: int = 0, stability: float = 0.75, **changes) -> Curve:
    gradients = projected(stability, 0.0, seed, 2000)
    draw, steps = random.Random(seed + 1), list(range(0, 400, 20))
    given = {
        "losses": [1.0] * 400,
        "rates": [0.3] * 400,
        "steps": steps,
        "levels": [2.0 if s == 0 else 0.5 * math.exp(draw.gauss(0, 0.2)) for s in steps],
        "stabilities": [stability if i % 5 == 0 else None for i in range(20)],
        "projections": [gradients[s : s + 8] if i % 5 == 0 else [] for i, s in enumerate(steps)],
    }
    return Curve(**{**given, **changes})


GAIN = averaging_gain(0.1, [0.5, 0.6, 0.4, 0.5, 0.55])


def test_an_oscillation_is_found_with_words_numbers_and_a_rate() -> None:
    found = oscillation_finding(oscillating(), averaging=GAIN)
    assert found.problem == "oscillations"
    assert "at 0.75 times the largest stable rate" in found.evidence
    assert "at the mean of recent iterates the loss is 0.1 where they have 0.51" in found.evidence
    assert found.numbers["correlation"] < -0.4
    assert (found.severity, found.since) == (1.5, 0)
    assert found.remedies[0].changes == {"lr": 0.1}  # 0.3 * 0.25 / 0.75: lr*lambda_max = 0.5
    assert "momentum" in found.remedies[1].words


def test_the_words_have_lr_lambda_where_the_optimizer_is_plain_gradient_descent() -> None:
    found = oscillation_finding(oscillating(curvatures=[5.0] * 20), averaging=GAIN)
    assert "at lr*lambda_max = 1.5, of the 2 that it may reach" in found.evidence


def test_momentum_is_no_remedy_where_there_is_much() -> None:
    for momentum, offered in ((0.0, True), (0.9, False)):
        remedies = oscillation_finding(oscillating(), averaging=GAIN, momentum=momentum).remedies
        assert any("momentum" in remedy.words for remedy in remedies) is offered


def test_a_schedule_that_ends_at_zero_is_scaled_as_a_whole() -> None:
    rates = [0.3] * 300 + [0.3 - 0.003 * t for t in range(100)]
    known = [0.75 if i % 5 == 0 else None for i in range(19)] + [0.0]
    found = oscillation_finding(oscillating(rates=rates, stabilities=known), averaging=GAIN)
    assert found.remedies[0].changes == {"lr": 0.1}


def test_it_is_found_in_nearly_all_draws_and_at_a_stable_rate_in_none() -> None:
    assert sum(oscillation_finding(oscillating(seed), averaging=GAIN) is not None for seed in range(50)) >= 44
    assert all(oscillation_finding(oscillating(seed, 0.45), averaging=GAIN) is None for seed in range(50))


def test_gradients_that_do_not_alternate_are_no_oscillation() -> None:
    draw = random.Random(0)
    free = [[draw.gauss(0, 1) for _ in range(8)] for _ in range(20)]
    assert oscillation_finding(oscillating(projections=free), averaging=GAIN) is None


def test_a_loss_that_still_falls_is_left_alone() -> None:
    assert oscillation_finding(oscillating(levels=[2.0 * 0.8**i for i in range(20)]), averaging=GAIN) is None


def test_an_oscillation_that_costs_nothing_is_left_alone() -> None:
    little = averaging_gain(0.495, [0.5, 0.6, 0.4, 0.5, 0.55])
    assert oscillation_finding(oscillating(levels=[2.0] + [0.5] * 19), averaging=little) is None
    assert (
        oscillation_finding(
            oscillating(levels=[2.0] + [1e-3, 4e-3] * 9 + [1e-3]), averaging=averaging_gain(1e-3, [4e-3, 4e-3])
        )
        is None
    )


def test_it_needs_curvature_and_projections_and_finite_losses() -> None:
    assert oscillation_finding(oscillating(stabilities=()), averaging=GAIN) is None
    assert oscillation_finding(oscillating(projections=()), averaging=GAIN) is None
    assert oscillation_finding(oscillating(losses=[math.nan] * 400), averaging=GAIN) is None


def test_beyond_the_edge_it_is_instability_and_not_this() -> None:
    assert oscillation_finding(oscillating(stabilities=[1.4] * 20), averaging=GAIN) is None
