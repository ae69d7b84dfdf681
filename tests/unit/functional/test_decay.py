import math
import random

import pytest

from lbtrain.functional.decay import Cut, decay_findings, line, rate_cuts
from lbtrain.functional.training_curve import Curve

SIZE = 400
SCHEDULES = {
    "constant": lambda x: 1.0,
    "cosine": lambda x: 0.5 * (1 + math.cos(math.pi * x)),
    "linear": lambda x: 1 - x,
    "warmup": lambda x: min(1.0, 10 * x + 0.001),
    "warmup and cosine": lambda x: 10 * x if x < 0.1 else 0.5 * (1 + math.cos(math.pi * (x - 0.1) / 0.9)),
    "exponential": lambda x: math.exp(-5 * x),
    "half at half": lambda x: 1.0 if x < 0.5 else 0.5,
}
STEPS = {
    "tenth at half": lambda x: 1.0 if x < 0.5 else 0.1,
    "30, 60, 90": lambda x: 0.1 ** sum(x >= place for place in (0.3, 0.6, 0.9)),
    "50, 75": lambda x: 0.1 ** sum(x >= place for place in (0.5, 0.75)),
    "a fifth at 80": lambda x: 1.0 if x < 0.8 else 0.2,
}


def trained(
    schedule,
    *,
    pace: float = 0.05,
    floor: float = 0.02,
    noise: float = 0.1,
    start: float = 2.3,
    fluctuation: float = 0.0,
    seed: int = 0,
) -> Curve:
    """Return a loss that falls at the pace of the rate to a floor, to which the rate adds fluctuations."""
    draw, gap, losses, clean = random.Random(seed), start - floor, [], []
    rates = [0.1 * schedule(t / SIZE) for t in range(SIZE)]
    for rate in rates:
        level = floor + gap + fluctuation * rate / 0.1 * draw.expovariate(1)
        clean.append(level)
        losses.append(level * math.exp(noise * draw.gauss(0, 1)))
        gap *= 1 - pace * rate / 0.1
    steps = list(range(0, SIZE, 20))
    return Curve(losses, rates, steps, [clean[s] for s in steps])


def test_cuts_are_found_at_their_steps() -> None:
    rates = [1.0] * 10 + [0.1] * 10 + [0.02] * 10
    assert rate_cuts(rates) == (Cut(10, 1.0, 0.1), Cut(20, 0.1, 0.02))
    assert rate_cuts(rates, factor=7) == (Cut(10, 1.0, 0.1),)
    assert rate_cuts([0.0] * 5 + [1.0] * 5) == ()


@pytest.mark.parametrize("size", [12, 100, 1000])
@pytest.mark.parametrize("name", SCHEDULES)
def test_smooth_schedules_have_no_cut(name: str, size: int) -> None:
    assert rate_cuts([SCHEDULES[name](t / size) for t in range(size)]) == ()


@pytest.mark.parametrize("seed", range(5))
def test_a_cut_that_stops_a_falling_loss_is_too_early(seed: int) -> None:
    (found,) = decay_findings(trained(lambda x: 1.0 if x < 0.05 else 0.01, seed=seed), steps_per_epoch=20)
    assert (found.problem, found.since) == ("decay too early", 20)
    assert "cut from 0.1 to 0.001 at step 20" in found.evidence
    assert found.remedies[0].changes == {"decay_epoch": 12}  # at 60 % of 20 epochs
    assert found.severity > 1


@pytest.mark.parametrize(("cut", "pace", "epoch"), [(200, 0.008, 15), (300, 0.006, 18), (340, 0.0054, None)])
def test_the_advice_is_never_an_earlier_cut(cut: int, pace: float, epoch: int | None) -> None:
    losses = [2.3 - pace * min(t, cut) for t in range(SIZE)]
    (found,) = decay_findings(Curve(losses, [0.1] * cut + [0.001] * (SIZE - cut)), steps_per_epoch=20)
    assert found.problem == "decay too early"
    assert found.remedies[0].changes.get("decay_epoch") == epoch
    assert (found.remedies[0].words == "do not cut it") is (epoch is None)  # hardly a run is left after it


def test_without_the_length_of_an_epoch_the_place_is_told_in_words() -> None:
    (found,) = decay_findings(trained(lambda x: 1.0 if x < 0.05 else 0.01))
    assert found.remedies[0].changes == {}
    assert "60 % of the run" in found.remedies[0].words


@pytest.mark.parametrize("seed", range(5))
def test_a_cut_that_ends_a_plateau_in_the_last_steps_is_too_late(seed: int) -> None:
    curve = trained(lambda x: 1.0 if x < 0.92 else 0.05, fluctuation=1.0, seed=seed)
    (found,) = decay_findings(curve, steps_per_epoch=20)
    assert found.problem == "decay too late"
    assert found.since < 250
    assert 9 <= found.remedies[0].changes["decay_epoch"] <= 12
    assert "at step 368 of 400" in found.evidence


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fluctuation", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("name", [*SCHEDULES, *STEPS])
def test_usual_schedules_are_left_alone(name: str, fluctuation: float, seed: int) -> None:
    schedule = {**SCHEDULES, **STEPS}[name]
    for pace in (0.02, 0.05, 0.3):
        assert decay_findings(trained(schedule, pace=pace, fluctuation=fluctuation, seed=seed)) == ()


def test_an_early_cut_that_still_leads_down_is_left_alone() -> None:
    assert decay_findings(trained(lambda x: 1.0 if x < 0.05 else 0.3)) == ()


def test_an_early_cut_at_a_high_floor_is_left_alone() -> None:
    assert decay_findings(trained(lambda x: 1.0 if x < 0.25 else 0.01, floor=1.5, pace=0.3)) == ()


def test_noise_before_a_cut_is_not_a_fall() -> None:
    for seed in range(30):
        flat = trained(lambda x: 1.0 if x < 0.1 else 0.01, pace=0.0, noise=0.8, seed=seed)
        assert decay_findings(flat) == (), seed


def test_a_run_that_lost_its_numbers_or_has_no_rates_is_not_judged() -> None:
    assert decay_findings(Curve([1.0, 2.0])) == ()
    sick = trained(lambda x: 1.0 if x < 0.05 else 0.01)
    assert decay_findings(Curve([math.nan] * SIZE, sick.rates)) == ()


def test_a_line_is_fitted_with_its_error() -> None:
    assert line([1.0, 3.0, 5.0, 7.0]) == (2.0, 0.0)
    draw, slopes, errors = random.Random(0), [], []
    for _ in range(400):
        slope, error = line([0.1 * i + draw.gauss(0, 1) for i in range(20)])
        slopes.append(slope)
        errors.append(error)
    assert sum(slopes) / 400 == pytest.approx(0.1, abs=0.01)
    spread = math.sqrt(sum((v - 0.1) ** 2 for v in slopes) / 400)
    assert sum(errors) / 400 == pytest.approx(spread, rel=0.1)
