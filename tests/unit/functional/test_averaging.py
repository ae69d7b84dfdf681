import math

import pytest
import torch

from lbtrain.functional.averaging import averaging_gain


def test_gain_error_and_share_are_those_of_the_means() -> None:
    found = averaging_gain(0.5, [1.0, 2.0, 3.0])
    assert (found.gain, found.share, found.recent, found.at_mean) == (1.5, 0.75, 2.0, 0.5)
    assert found.error == pytest.approx(1 / math.sqrt(3))
    assert found.helps
    assert found.words == (
        "averaging would help: the loss is 0.5 at the mean of the recent iterates and 2 +- 0.6 at the iterates"
    )


def test_the_gain_on_a_quadratic_is_the_trace_of_curvature_times_covariance() -> None:
    draw = torch.Generator().manual_seed(0)
    A = torch.diag(torch.tensor([3.0, 1.0, 0.2], dtype=torch.float64))
    iterates = torch.randn(4000, 3, generator=draw, dtype=torch.float64) * torch.tensor([0.5, 1.0, 2.0])
    loss = lambda w: float(0.5 * w @ A @ w + 7)
    found = averaging_gain(loss(iterates.mean(0)), [loss(w) for w in iterates])
    expected = 0.5 * (3 * 0.25 + 1 * 1.0 + 0.2 * 4.0)
    assert found.gain == pytest.approx(expected, abs=4 * found.error)
    assert found.error < 0.05 * expected


def test_on_the_way_down_the_mean_gains_nothing() -> None:
    way = [0.9**t for t in range(40)]
    mean = sum(way) / len(way)
    found = averaging_gain(0.5 * mean**2, [0.5 * w**2 for w in way])
    assert not found.helps
    assert "no difference" in found.words


def test_where_the_mean_is_higher_averaging_would_harm() -> None:
    assert "would harm" in averaging_gain(3.0, [1.0, 1.1, 0.9]).words


def test_a_mean_that_beats_all_of_five_is_sure_whatever_their_spread() -> None:
    losses = [1.0, 1.1, 1.2, 1.0, 60.0]
    assert averaging_gain(0.9, losses).helps
    assert "would help" in averaging_gain(0.9, losses).words
    assert not averaging_gain(1.05, losses).helps
    assert not averaging_gain(0.9, losses[1:]).helps


def test_a_single_loss_has_no_error_and_decides_nothing() -> None:
    found = averaging_gain(0.1, [1.0])
    assert math.isnan(found.error)
    assert not found.helps


def test_losses_that_are_no_numbers_give_no_verdict() -> None:
    found = averaging_gain(math.nan, [1.0, 2.0])
    assert math.isnan(found.gain)
    assert not found.helps
    assert "cannot be judged" in found.words


def test_without_losses_there_is_nothing_to_compare() -> None:
    with pytest.raises(ValueError, match="at least one loss, got none"):
        averaging_gain(1.0, [])
