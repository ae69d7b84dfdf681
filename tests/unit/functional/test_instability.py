import math
import random

import pytest

from lbtrain.functional._rises import undone
from lbtrain.functional.instability import instability_finding
from lbtrain.functional.training_curve import Curve


def gaussian(seed: int, size: int, scale: float) -> list[float]:
    draw = random.Random(seed)
    return [draw.gauss(0, scale) for _ in range(size)]


def steady(size: int, rate: float = 0.1) -> list[float]:
    return [rate] * size


def sampled(losses: list[float], every: int, **more) -> Curve:
    steps = list(range(0, len(losses), every))
    rates = more.pop("rates", steady(len(losses)))
    return Curve(losses, rates, steps, [losses[s] for s in steps], **more)


def undoing(stability: float, *, low: float = 1.2, peak: float = 4.0, end: float = 2.25) -> Curve:
    """Return a run that learns, spikes twice, recovers once, and ends as if it had learned nothing."""
    losses = [2.3, 2.1, low, low, 2.0, peak, 2.0, low, low, 2.2, peak - 0.1, *[end] * 29]
    steps = list(range(0, 40, 2))
    known = [stability if i % 5 == 0 else None for i in range(len(steps))]
    return Curve(losses, steady(40), steps, [losses[s] for s in steps], stabilities=known)


def test_a_run_beyond_its_largest_rate_that_undid_its_learning_is_unstable_from_the_spike_on() -> None:
    found = instability_finding(undoing(1.1))
    assert found is not None
    assert found.since == 5
    assert "from 2.3 to 4, and undid the learning" in found.evidence


@pytest.mark.parametrize(
    "curve",
    [undoing(0.9), undoing(1.1, low=1.9), undoing(1.1, peak=3.3), undoing(1.1, end=1.7)],
    ids=["a stable rate", "nothing learned before", "no spike", "much learned in the end"],
)
def test_each_part_of_that_is_needed(curve: Curve) -> None:
    assert undone(curve, 1.5, 0.8, 0.25) is None


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("height", [0.9, 5.0, 1e4])
def test_a_jump_is_found_at_its_step(seed: int, height: float) -> None:
    noise = gaussian(seed, 200, 0.02)
    losses = [(0.1 + 2 * 0.9**t if t < 120 else height) * math.exp(noise[t]) for t in range(200)]
    found = instability_finding(Curve(losses))
    assert found is not None
    assert found.problem == "instability"
    assert abs(found.since - 120) <= 1
    assert found.severity > 1


def test_the_words_have_factor_step_and_stability() -> None:
    losses = [0.3] * 38 + [2.7] * 60
    curve = Curve(
        losses,
        steady(98, 0.62),
        [0, 30, 60],
        [0.3, 0.3, 2.7],
        curvatures=[2.0, 10.0, None],
        stabilities=[0.62, 3.1, None],
    )
    found = instability_finding(curve)
    assert found.evidence == (
        "the loss rose 9.0x above its start from step 38 on, from 0.3 to 2.7, when lr*lambda_max/2 was 3.1 at step 30"
    )
    assert found.numbers == {"low": 0.3, "high": 2.7, "stability": 3.1}
    assert found.since == 38
    assert found.remedies[0].changes == {"lr": 0.1}  # 0.62 / (2 * 3.1)


def test_a_stability_of_another_law_is_not_called_lr_lambda() -> None:
    losses, steps, levels = [0.3] * 38 + [2.7] * 60, [0, 30, 60], [0.3, 0.3, 2.7]
    curve = Curve(losses, steady(98, 0.62), steps, levels, curvatures=[2.0, 10.0, None], stabilities=[0.3, 1.6, None])
    found = instability_finding(curve)
    assert "the rate was 1.6 times the largest stable one at step 30" in found.evidence


def test_the_stability_of_a_sample_grows_with_the_rate_since_then() -> None:
    losses = [1.0] * 50 + [30.0] * 50
    rates = [0.001 * t for t in range(100)]
    curve = sampled(losses, 25, rates=rates, stabilities=[0.0, 0.8, None, None], curvatures=[2.0, 64.0, None, None])
    found = instability_finding(curve)
    assert found.since == 50
    assert found.remedies[0].changes["lr"] == pytest.approx(0.05 * 0.5 / 1.6, rel=0.05)


def test_where_the_stability_explains_nothing_a_tenth_of_the_rate_is_named() -> None:
    losses = [1.0] * 50 + [30.0] * 50
    found = instability_finding(sampled(losses, 25, stabilities=[0.1] * 4))
    assert found.remedies[0].changes == {"lr": 0.01}
    assert instability_finding(Curve(losses)).remedies[0].changes == {}
    assert instability_finding(sampled(losses, 25, stabilities=[0.68] * 4)).remedies[0].changes == {"lr": 0.01}


@pytest.mark.parametrize(("momentum", "rate"), [(0.0, 0.025), (0.5, 0.025), (0.9, 0.005)])
def test_with_much_momentum_the_rate_goes_further_down(momentum: float, rate: float) -> None:
    losses = [1.0] * 50 + [30.0] * 50
    found = instability_finding(sampled(losses, 25, stabilities=[2.0] * 4), momentum=momentum)
    assert found.remedies[0].changes["lr"] == pytest.approx(rate)


def test_no_warmup_is_advised_far_beyond_the_largest_stable_rate() -> None:
    losses = [2.3, 2.2, 2.4, 9.0, 60.0, 12.0, 3.0] + [2.303] * 93
    for stability, warmable in ((1.8, True), (61.0, False)):
        found = instability_finding(sampled(losses, 20, stabilities=[stability, None, None, 0.1, None]))
        assert any("warm" in remedy.words for remedy in found.remedies) is warmable


def test_a_rise_from_the_first_step_on_is_told_so() -> None:
    losses = [60.0, 12.0, 3.0] + [2.303] * 57
    found = instability_finding(Curve(losses, steady(60), [0, 20, 40, 60], [2.303] * 4))
    assert "the loss rose 26x from the first step on" in found.evidence


@pytest.mark.parametrize("start", [1e-6, 1e-3, 0.1])
def test_a_divergence_that_first_falls_is_found_where_it_begins_to_rise(start: float) -> None:
    # Rate 2.2 / lambda_max: the top coordinate grows by 1.2 in a step, its loss by 1.44, while the others fall.
    losses = [start * 1.44**t + 0.8**t for t in range(60)]
    place = min(range(60), key=losses.__getitem__)
    found = instability_finding(sampled(losses, 3, stabilities=[1.1] * 20))
    assert found is not None
    assert found.since >= place
    # Both definitions of the beginning: it left the lowest level, or what it had been at the start.
    assert losses[found.since - 1] <= 1.1 * losses[0]
    assert found.remedies[0].changes["lr"] == pytest.approx(0.045)


def test_a_divergence_in_eight_steps_is_found() -> None:
    assert instability_finding(Curve([1.44**t for t in range(8)])) is not None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_becomes_no_number_is_found_where_it_began_to_grow(bad: float) -> None:
    losses = [1.0, 0.9, 0.8, 0.7, 0.7, 0.7, 2.0, 9.0, 80.0, bad, bad]
    found = instability_finding(Curve(losses, steady(11)))
    assert found.since == 6
    assert f"became {bad:g}" in found.evidence
    assert found.severity == math.inf


def test_numbers_lost_in_the_last_step_show_in_the_last_sample() -> None:
    found = instability_finding(Curve([1.0, 0.9, 0.8], steady(3), [0, 3], [1.0, math.nan]))
    assert found.since == 3


def test_invalid_data_are_not_the_rates_fault() -> None:
    assert instability_finding(Curve([1.0, math.nan, math.nan]), invalid_data=True) is None


def test_a_loss_without_a_number_from_the_start_is_no_fault_of_the_rate_and_says_so() -> None:
    found = instability_finding(Curve([math.nan] * 5, steady(5)))
    assert found.since == 0
    assert "no rate is to blame" in found.evidence
    assert found.remedies[0].changes == {}


def test_a_spike_that_kills_a_network_is_found_though_the_loss_ends_at_its_start() -> None:
    losses = [2.3, 2.2, 2.4, 9.0, 60.0, 12.0, 3.0] + [2.303 + 0.001 * (t % 3) for t in range(50)]
    found = instability_finding(sampled(losses, 3))
    assert found.since == 3
    assert "never recovered" in found.evidence
    assert "warm the rate up" in found.remedies[1].words


def test_a_spike_in_the_middle_is_fatal_only_if_it_undid_what_was_learned() -> None:
    for before, fatal in ((1.6, True), (2.3, False)):
        losses = [2.3] * 10 + [before] * 90 + [40.0, 9.0, 4.0] + [2.3] * 97
        assert (instability_finding(Curve(losses)) is not None) == fatal


def test_warmup_has_a_number_where_the_rate_is_right_later() -> None:
    losses = [2.3, 2.2, 2.4, 9.0, 60.0, 12.0, 3.0] + [2.303] * 93
    stabilities = [1.8, None, None, 0.1, None]
    found = instability_finding(sampled(losses, 20, stabilities=stabilities))
    assert found.remedies[1].changes == {"warmup_steps": 10}
    died = instability_finding(sampled(losses, 20, stabilities=[1.8, None, None, 1e-6, None]))
    assert died.remedies[1].changes == {}


HEALTHY = {
    "a fall": [2.3 * 0.97**t for t in range(200)],
    "a bump in warmup": [
        2.3 + 3 * math.exp(-((t - 12) ** 2) / 20) if t < 40 else 2.3 * 0.97 ** (t - 40) for t in range(300)
    ],
    "a spike that recovers": [2.3 * 0.98**t + (50.0 if 100 <= t < 103 else 0) for t in range(200)],
    "a late spike of little height": [2.3 * 0.95**t + (0.02 if t > 180 else 0) for t in range(200)],
    "a constant": [0.7] * 100,
    "a single step": [0.7],
    "three steps": [0.7, 0.8, 0.6],
}


@pytest.mark.parametrize("name", HEALTHY)
def test_no_instability_is_seen_in(name: str) -> None:
    losses = HEALTHY[name]
    assert instability_finding(Curve(losses)) is None
    assert instability_finding(sampled(losses, max(1, len(losses) // 20))) is None


def test_no_instability_is_seen_in_the_noise_of_small_batches() -> None:
    for seed in range(60):
        draw = random.Random(seed)
        # Exponential losses, as of batches of 2, around a level that falls to a floor.
        losses = [(0.3 + 2 * 0.97**t) * draw.expovariate(1) for t in range(300)]
        assert instability_finding(Curve(losses)) is None, seed


def test_no_instability_is_seen_in_a_level_that_wanders() -> None:
    for seed in range(60):
        draw, level, losses = random.Random(seed), 0.0, []
        for t in range(300):
            level = 0.9 * level + draw.gauss(0, 0.25)
            losses.append((0.3 + 2 * 0.95**t) * math.exp(level) * draw.expovariate(1))
        assert instability_finding(Curve(losses)) is None, seed


def test_batches_that_get_harder_are_not_a_loss_that_rises() -> None:
    losses = [1.0] * 50 + [3.0] * 50
    curve = Curve(losses, steady(100), [0, 25, 50, 75, 100], [2.0, 1.6, 1.3, 1.1, 1.0])
    assert instability_finding(curve) is None
    assert instability_finding(Curve(losses)) is not None


def test_a_loss_below_zero_may_rise_too() -> None:
    losses = [-1.0 - 0.02 * t for t in range(50)] + [1.0] * 50
    assert instability_finding(Curve(losses)) is not None
    assert instability_finding(Curve([-1.0 - 0.02 * t for t in range(100)])) is None


def test_thresholds_are_arguments() -> None:
    losses = [1.0] * 50 + [1.6] * 50
    assert instability_finding(Curve(losses)) is None
    assert instability_finding(Curve(losses), factor=1.5) is not None
