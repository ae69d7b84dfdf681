import math
import random

import pytest

from lbtrain.functional.averaging import averaging_gain
from lbtrain.functional.fluctuation import fluctuation_finding
from lbtrain.functional.training_curve import Curve

GAIN = averaging_gain(0.1, [0.5, 0.6, 0.4, 0.5, 0.55])
NONE = averaging_gain(0.49, [0.5, 0.6, 0.4, 0.5, 0.55])


def curve(
    seed: int = 0, *, spread: float = 0.5, level: float = 0.5, rates: list[float] | None = None, **changes
) -> Curve:
    draw, steps = random.Random(seed), list(range(0, 400, 20))
    given = {
        # On the same iterates batches have the same mean loss.
        "losses": [level * math.exp(0.5 * spread**2) * draw.expovariate(1) for _ in range(400)],
        "rates": rates or [0.3] * 400,
        "steps": steps,
        "levels": [(level + 2 * math.exp(-s / 20)) * math.exp(draw.gauss(0, spread)) if s else 2.0 for s in steps],
        "noises": [0.9] * 20,
    }
    return Curve(**{**given, **changes})


def test_a_loss_that_averaging_would_lower_is_found_with_its_remedies() -> None:
    found = fluctuation_finding(curve(spread=0.05), averaging=GAIN, batch_size=2)
    assert found.problem == "fluctuations"
    assert "at the mean of recent iterates the loss is 0.1 where they have 0.51" in found.evidence
    assert "up to 90 % of a batch gradient's square is noise" in found.evidence
    assert found.numbers == {"lost": pytest.approx(0.41), "noise": 0.9}
    assert found.severity == pytest.approx(0.41 / 0.51 / 0.3)
    assert [r.changes for r in found.remedies] == [{"lr": 0.03}, {"averaging": True}, {"batch_size": 16}]
    assert "at the same rate" in found.remedies[2].words


def test_a_swing_that_the_batches_do_not_see_is_one_of_the_evaluation() -> None:
    # Batch normalization: running statistics lag, and the batches with their own are low, or still fall.
    draw = random.Random(0)
    low = [0.06 * draw.expovariate(1) for _ in range(400)]
    falling = [4 * 0.994**t for t in range(400)]
    for losses, found in (([0.5] * 400, True), (low, False), (falling, False)):
        assert (fluctuation_finding(curve(spread=0.3, losses=losses), averaging=GAIN) is not None) is found


@pytest.mark.parametrize(("oscillates", "found"), [(None, True), (False, True), (True, False)])
def test_whether_it_is_an_oscillation_may_be_known(oscillates: bool | None, found: bool) -> None:
    assert (fluctuation_finding(curve(spread=0.05), averaging=GAIN, oscillates=oscillates) is not None) is found


def test_without_rates_and_batch_size_remedies_are_words() -> None:
    found = fluctuation_finding(Curve(**{**vars(curve(spread=0.05)), "rates": ()}), averaging=GAIN)
    assert [r.changes for r in found.remedies] == [{}, {"averaging": True}, {}]


def test_a_loss_that_swings_on_the_same_samples_is_found_without_averaging() -> None:
    found = fluctuation_finding(curve(spread=1.0))
    assert "in its lowest tenth" in found.evidence
    assert 0 <= found.since <= 100


def test_it_is_found_in_nearly_all_draws() -> None:
    assert sum(fluctuation_finding(curve(seed, spread=0.8), averaging=GAIN) is not None for seed in range(50)) >= 43


def test_a_quiet_loss_at_its_floor_is_left_alone() -> None:
    assert all(fluctuation_finding(curve(seed, spread=0.05), averaging=NONE) is None for seed in range(50))


def test_the_last_percents_may_fluctuate() -> None:
    tiny = averaging_gain(0.0005, [0.002, 0.003, 0.001, 0.002])
    assert all(fluctuation_finding(curve(seed, level=0.002, spread=0.6), averaging=tiny) is None for seed in range(50))


def test_a_single_spike_is_no_fluctuation() -> None:
    levels = [2.0] + [0.1] * 14 + [1.9] + [0.1] * 4
    assert fluctuation_finding(curve(levels=levels), averaging=averaging_gain(0.1, [0.1, 1.9, 0.1, 0.1])) is None


def test_batches_whose_gradient_vanishes_do_not_hide_the_noise_of_the_others() -> None:
    assert fluctuation_finding(curve(spread=0.05, noises=[0.0] * 15 + [0.9] + [0.0] * 4), averaging=GAIN) is not None
    assert fluctuation_finding(curve(spread=0.05, noises=[0.9] * 5 + [0.0] * 15), averaging=GAIN) is None


def test_a_gradient_without_noise_does_not_fluctuate() -> None:
    assert fluctuation_finding(curve(spread=0.05, noises=[0.2] * 20), averaging=GAIN) is None


def test_a_rate_that_has_come_down_counts_by_its_end_only() -> None:
    cosine = [0.15 * (1 + math.cos(math.pi * t / 400)) for t in range(400)]
    levels = [2.0] + [0.8, 0.3, 1.2] * 3 + [1.5, 0.1, 1.2, 0.2, 0.9] + [0.5, 0.1, 0.6, 0.2, 0.1]
    gain = averaging_gain(0.05, [0.5, 0.4, 0.6, 0.3, 0.4])
    assert fluctuation_finding(curve(rates=cosine, levels=levels), averaging=gain) is None
    assert fluctuation_finding(curve(levels=levels), averaging=gain) is not None
    assert fluctuation_finding(curve(rates=cosine, levels=[2.0] + [0.5] * 19), averaging=gain) is not None


def test_a_loss_that_still_falls_or_ended_above_its_start_is_not_this() -> None:
    falling = curve(levels=[2.0 * 0.8**i for i in range(20)])
    assert fluctuation_finding(falling, averaging=GAIN) is None
    assert fluctuation_finding(curve(levels=[2.0] + [5.0, 50.0] * 9 + [9.0]), averaging=GAIN) is None
    assert fluctuation_finding(curve(losses=[math.nan] * 400), averaging=GAIN) is None


def test_what_alternates_is_oscillation_and_not_this() -> None:
    alternating = [[(-1.0) ** t for t in range(8)]] * 20
    assert (
        fluctuation_finding(curve(spread=0.05, stabilities=[0.75] * 20, projections=alternating), averaging=GAIN)
        is None
    )
