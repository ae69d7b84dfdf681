import math
import random
from types import SimpleNamespace

import pytest

from lbtrain.functional._robust import blocks, quantile, running_median, scatter, two_digits
from lbtrain.functional.training_curve import Curve, share_left, still_falling


def test_a_quantile_lies_between_its_neighbours() -> None:
    assert [quantile([3.0, 1.0, 2.0], q) for q in (0.0, 0.25, 0.5, 1.0)] == [1.0, 1.5, 2.0, 3.0]
    assert quantile([1.0, math.inf, math.inf], 0.9) == math.inf


def test_the_running_median_passes_over_single_outliers_and_keeps_steps_in_place() -> None:
    assert running_median([1, 1, 9, 1, 1, 5, 5, 5], 3) == [1, 1, 1, 1, 1, 5, 5, 5]


def test_the_scatter_is_that_of_the_noise_and_not_of_a_few_spikes_or_a_trend() -> None:
    draw = random.Random(0)
    noise = [draw.gauss(0, 1) for _ in range(2000)]
    trend = [0.05 * i + v for i, v in enumerate(noise)]
    spikes = [v + 1e6 * (i % 100 == 0) for i, v in enumerate(noise)]
    # Of |x_i - median of 5|; the median takes a part of x_i's own noise.
    assert 1.2 < scatter(noise) < 1.9
    assert scatter(trend) == pytest.approx(scatter(noise), rel=0.05)
    assert scatter(spikes) == pytest.approx(scatter(noise), rel=0.1)
    assert scatter([]) == 0


def test_blocks_cover_the_sequence_once() -> None:
    parts = blocks(list(range(103)), 20)
    assert len(parts) == 20
    assert [v for _, part in parts for v in part] == list(range(103))
    assert all(part[0] == first for first, part in parts)
    assert len(blocks([1.0, 2.0], 20)) == 2
    assert blocks([], 20) == []


@pytest.mark.parametrize(
    ("value", "rounded"), [(0.02, 0.02), (0.0299, 0.029), (123.4, 120.0), (1.0, 1.0), (3.999e-5, 3.9e-5), (0.0, 0.0)]
)
def test_rates_are_rounded_down_to_two_digits(value: float, rounded: float) -> None:
    assert two_digits(value) == rounded


def test_a_curve_is_made_of_points() -> None:
    points = [
        SimpleNamespace(
            step=0,
            loss=2.0,
            gradient_norm=1.0,
            lambda_max=4.0,
            stability=0.2,
            noise=None,
            projections=(1.0, 2.0),
            product=0.25,
        ),
        SimpleNamespace(
            step=2,
            loss=1.0,
            gradient_norm=0.5,
            lambda_max=None,
            stability=None,
            noise=0.3,
            projections=(),
            product=None,
        ),
    ]
    curve = Curve.of([2.1, 1.4], [0.1, 0.05], points)
    assert (curve.steps, curve.levels, curve.gradient_norms) == ((0, 2), (2.0, 1.0), (1.0, 0.5))
    assert (curve.curvatures, curve.noises, curve.projections) == ((4.0, None), (None, 0.3), ((1.0, 2.0), ()))
    assert curve.products == (0.25, None)
    assert curve.known_stabilities() == [(0, 0.2)]
    assert curve.known_stabilities(1) == []
    assert (curve.start, curve.peak, curve.length, curve.finite) == (2.0, 0.1, 2, True)
    assert [curve.rate_at(step) for step in (0, 1, 5)] == [0.1, 0.05, 0.05]


def test_a_curve_of_batches_alone_has_a_track_of_block_means() -> None:
    curve = Curve([float(i) for i in range(100)])
    steps, levels = curve.track
    assert len(levels) == 20
    assert levels[:2] == [2.0, 7.0]
    assert steps[:2] == [2, 7]
    assert (curve.start, curve.end) == (2.0, 92.0)
    assert (curve.rate_at(3), curve.peak) == (None, None)


def test_samples_are_preferred_to_batches() -> None:
    curve = Curve([9.0] * 8, steps=[0, 2, 4, 6, 8], levels=[4.0, 3.0, 2.0, 1.0, 1.0])
    assert (curve.start, curve.end, share_left(curve)) == (4.0, 1.0, 0.25)


def test_a_loss_that_is_no_number_is_not_finite_and_neither_is_nothing() -> None:
    assert not Curve([1.0, math.nan]).finite
    assert not Curve([1.0], steps=[0, 1], levels=[1.0, math.inf]).finite
    assert not Curve().finite
    assert math.isnan(Curve().start)
    assert math.isnan(Curve().end)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"losses": [1.0], "rates": [0.1, 0.1]}, "one rate per loss, got 2 for 1"),
        ({"steps": [0], "levels": []}, "one loss per sample, got 0 for 1"),
        ({"steps": [0], "levels": [1.0], "stabilities": [None, None]}, "stabilities must hold one entry per sample"),
    ],
)
def test_curves_of_different_lengths_are_refused(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Curve(**given)


def test_a_decay_still_falls_and_a_floor_does_not() -> None:
    assert still_falling([0.9**i for i in range(20)])
    assert not still_falling([1.0 + 0.5**i for i in range(20)])
    assert still_falling([1.0, 1.0])  # too few to tell
    assert not still_falling([4.0, 4.1, 3.9, 4.0] * 2 + [6.0, 6.1, 5.9, 6.0] + [4.0, 4.1, 3.9, 4.0])  # down from a hump


def test_a_fall_in_two_quarters_running_counts_though_the_last_one_is_noisy() -> None:
    # Samples of a healthy run on digits.
    seen = [
        2.318,
        2.203,
        2.019,
        1.752,
        1.364,
        0.901,
        0.608,
        0.575,
        0.34,
        0.294,
        0.178,
        0.328,
        0.293,
        0.19,
        0.113,
        0.131,
        0.113,
    ]
    assert still_falling(seen)


def test_noise_without_trend_falls_in_few_of_many_draws() -> None:
    draw = random.Random(0)
    alarms = sum(still_falling([math.exp(draw.gauss(0, 0.5)) for _ in range(20)]) for _ in range(400))
    assert 0 < alarms < 28  # 4 % of 400 in the mean, and 7 %
