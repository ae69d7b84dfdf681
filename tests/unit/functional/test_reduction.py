"""Mean or sum: per-sample losses of every kind."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lbtrain.functional.reduction import find_reduction

LOSSES = [0.3, 2.0, 0.1, 0.9, 1.7]


def mean(part):
    return sum(LOSSES[i] for i in part) / len(part)


def total(part):
    return sum(LOSSES[i] for i in part)


def token_mean(part):
    """A mean over tokens of samples with different lengths: right when doubled, wrong when halved."""
    lengths = [1, 7, 2, 5, 3]
    return sum(LOSSES[i] for i in part) / sum(lengths[i] for i in part)


def contrastive(part):
    """Each sample sees the others, itself twice when doubled."""
    x = torch.tensor([LOSSES[i] for i in part])
    return float((x[:, None] * x[None]).softmax(1).diagonal().log().neg().mean())


@pytest.mark.parametrize(
    ("loss", "kind"), [(mean, "mean"), (total, "sum"), (token_mean, "other"), (contrastive, "other")]
)
@pytest.mark.parametrize("scale", [1.0, 1e-6, -1e6])
def test_tells_the_reduction_at_any_scale(loss, kind, scale):
    verdict = find_reduction(lambda part: scale * loss(part), 5)
    assert verdict.kind == kind
    assert verdict.num_losses == 4
    assert (verdict.deviation < 1e-12) == (kind != "other")


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=9))
def test_any_positive_losses(losses):
    assert find_reduction(lambda part: sum(losses[i] for i in part), len(losses)).kind == "sum"
    assert find_reduction(lambda part: sum(losses[i] for i in part) / len(part), len(losses)).kind == "mean"


@pytest.mark.parametrize(("value", "size"), [(0.0, 4), (math.nan, 4), (math.inf, 4), (1.0, 1), (1.0, 0)])
def test_nothing_is_told_from_a_loss_that_says_nothing(value, size):
    verdict = find_reduction(lambda part: value, size)
    assert verdict.kind == "unknown"
    assert math.isnan(verdict.deviation)


@pytest.mark.parametrize("rtol", [0, 0.2, -1])
def test_a_tolerance_that_cannot_tell_is_refused(rtol):
    with pytest.raises(ValueError, match="rtol must be above 0 and below"):
        find_reduction(mean, 5, rtol=rtol)
