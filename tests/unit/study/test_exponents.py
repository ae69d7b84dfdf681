import math

import numpy as np
import pytest

from lbtrain.study.exponents import BestRate, best_rate, fit_exponent

BATCHES = (16, 32, 64, 128, 256)
RATES = [0.001 * 2.0**k for k in range(-3, 13)]  # one grid for all batch sizes, as a sweep has


def sweep(rng, power: float, seeds: int = 3, batches=BATCHES, noise: float = 0.1, wobble: float = 0.0) -> dict:
    """Simulated objectives: asymmetric bowls in ln(rate) whose bottoms lie on a power of the batch."""
    start = math.log(0.01) + rng.uniform(-0.35, 0.35)  # anywhere between two rates of the grid
    found = {}
    for batch in batches:
        bottom = start + power * math.log(batch / batches[0]) + wobble * rng.normal()
        away = {rate: math.log(rate) - bottom for rate in RATES}
        found[batch] = {
            rate: {seed: 0.3 * d * d * (1 + 0.3 * math.tanh(d)) + noise * rng.normal() for seed in range(seeds)}
            for rate, d in away.items()
        }
    return found


@pytest.mark.parametrize(
    ("power", "options"),
    [
        (1.0, {}),
        (0.5, {"noise": 0.05}),
        (0.0, {"wobble": 0.2}),
        (0.5, {"seeds": 1, "batches": (16, 64, 256, 1024)}),
        (0.5, {"seeds": 4, "batches": (16, 64, 256)}),
    ],
)
def test_the_interval_holds_the_true_exponent_in_95_of_100_sweeps(power, options) -> None:
    fits = [fit_exponent(sweep(np.random.default_rng(seed), power, **options)).p for seed in range(100)]
    held = sum(fit.low <= power <= fit.high for fit in fits)
    assert 90 <= held <= 99  # 95 +- 2.3 standard deviations of a binomial of 100
    assert np.mean([fit.mean for fit in fits]) == pytest.approx(power, abs=0.03)

    assert np.median([fit.high - fit.low for fit in fits]) < 0.6  # an interval that holds everything says nothing


def test_a_parabola_gives_its_bottom_exactly() -> None:
    bowl = {rate: (math.log(rate / 0.03)) ** 2 for rate in (0.01, 0.02, 0.04, 0.08)}
    best = best_rate(64, bowl)
    assert best.rate == pytest.approx(0.03)
    assert (best.edge, best.on_grid, best.variance) == ("", False, 0.0)


@pytest.mark.parametrize(("rates", "edge"), [((0.1, 0.2, 0.4), "lowest"), ((0.001, 0.002, 0.004), "highest")])
def test_the_best_at_an_edge_is_said_to_be_there_and_left_out(rates, edge) -> None:
    best = best_rate(16, {rate: (math.log(rate / 0.03)) ** 2 for rate in rates})
    assert best.edge == edge
    inside = sweep(np.random.default_rng(0), 0.5)
    inside[512] = {rate: {0: (math.log(rate / 0.03)) ** 2} for rate in rates}
    fit = fit_exponent(inside)
    assert [point.batch for point in fit.left_out] == [512]
    assert [point.batch for point in fit.used] == list(BATCHES)


def test_beside_a_rate_that_diverged_the_swept_rate_counts_with_the_variance_of_the_grid() -> None:
    best = best_rate(16, {0.01: 1.0, 0.02: 0.5, 0.04: 0.4, 0.08: None})
    assert (best.rate, best.on_grid, best.edge) == (0.04, True, "")
    assert best.variance == pytest.approx(math.log(2) ** 2 / 12)
    # On a perfect line of such rates the scatter is 0, and the interval is still as wide as the grid makes it.
    objective = {
        16 * 2**i: {0.01 * 2.0**k: {0: abs(k - i)} if k <= i else None for k in range(-2, 8)} for i in range(5)
    }
    fit = fit_exponent(objective)
    assert fit.p.mean == pytest.approx(1.0)
    x = np.log([16 * 2**i for i in range(5)])
    half = 3.182446 * math.log(2) / math.sqrt(12) / math.sqrt(((x - x.mean()) ** 2).sum())
    assert (fit.p.low, fit.p.high) == pytest.approx((1 - half, 1 + half))


def test_what_does_not_determine_an_exponent_gives_none() -> None:
    assert best_rate(16, {0.1: 1.0, 0.2: 0.5}) is None  # two rates have no inside
    assert best_rate(16, {0.1: None, 0.2: None, 0.4: None}) is None
    one = sweep(np.random.default_rng(0), 0.5, batches=(16,))
    assert fit_exponent(one) is None
    assert fit_exponent({}) is None


def test_two_batch_sizes_of_one_seed_give_an_exponent_without_interval() -> None:
    fit = fit_exponent(sweep(np.random.default_rng(0), 1.0, seeds=1, batches=(16, 64), noise=0.0))
    assert fit.p.mean == pytest.approx(1.0, abs=0.1)
    assert (fit.p.low, fit.p.high, fit.laws) == (None, None, {})


def test_the_interval_is_students_t_of_the_scatter() -> None:
    # By hand: ln lr = (0, 1, 2, 4) against ln B = (0, 1, 2, 3).
    objective = {
        math.exp(x): {math.exp(y + k): {0: float(k * k)} for k in (-1, 0, 1)}
        for x, y in zip(range(4), (0, 1, 2, 4), strict=True)
    }
    fit = fit_exponent(objective)
    assert fit.p.mean == pytest.approx(1.3)
    half = 4.302653 * math.sqrt(0.3 / 2 / 5)
    assert fit.p.high - fit.p.mean == pytest.approx(half, rel=1e-6)
    assert fit.laws == {"linear": True, "square root": False, "no growth": False}
    assert [type(point) for point in fit.used] == [BestRate] * 4
