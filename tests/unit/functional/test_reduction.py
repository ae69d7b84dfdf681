"""Mean, sum, other units or coupled: laws on per-sample losses of every kind."""

import math
import re
from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lbtrain.functional.reduction import KINDS, find_reduction

LOSSES = [0.3, 2.0, 0.1, 0.9, 1.7]
LENGTHS = [1, 7, 2, 5, 3]


def mean(part):
    return sum(LOSSES[i] for i in part) / len(part)


def total(part):
    return sum(LOSSES[i] for i in part)


def token_mean(part):
    """A mean over tokens of samples with different lengths: right when doubled, wrong when halved."""
    return sum(LOSSES[i] for i in part) / sum(LENGTHS[i] for i in part)


def contrastive(part):
    """Each sample sees the others, itself twice when doubled."""
    x = torch.tensor([LOSSES[i] for i in part], dtype=torch.float64)
    return float((x[:, None] * x[None]).softmax(1).diagonal().log().neg().mean())


def spread(part):
    """Batch statistics: unchanged when doubled, but no mean."""
    return float(torch.tensor([LOSSES[i] for i in part], dtype=torch.float64).var(correction=0))


def hardest(part):
    """Unchanged when doubled, and the loss of one half."""
    return max(LOSSES[i] for i in part)


def repeated(part):
    """A mean on every part of the batch, that minds when samples come twice."""
    return mean(part) * len(part) / len(set(part))


LAWS = [
    (repeated, "batch-coupled", 6),
    (mean, "mean", 4),
    (total, "sum", 4),
    (token_mean, "mean over other units", 6),
    (contrastive, "batch-coupled", 6),
    (spread, "batch-coupled", 6),
    (hardest, "batch-coupled", 6),
    (lambda part: 0.7 + mean(part), "mean", 4),
    (lambda part: 0.7 + total(part), "sum", 6),
    (lambda part: 0.7 + token_mean(part), "mean over other units", 6),
    (lambda part: 0.7 + contrastive(part), "batch-coupled", 6),
    (lambda part: total(part) / 64, "sum", 4),
]


@pytest.mark.parametrize(("loss", "kind", "cost"), LAWS)
@pytest.mark.parametrize("scale", [1.0, 1e-6, -1e6])
def test_tells_the_reduction_at_any_scale(loss, kind, cost, scale):
    asked = []
    verdict = find_reduction(lambda part: asked.append(part) or scale * loss(part), 5, rtol=1e-9)
    assert (verdict.kind, verdict.num_losses, len(asked)) == (kind, cost, cost)
    assert verdict.kind in KINDS
    assert (verdict.deviation < 1e-12) == (kind != "batch-coupled")
    assert verdict.losses == tuple(scale * loss(part) for part in asked)
    assert f"L(5 samples) = {verdict.losses[0]:.6g}" in verdict.reason


def test_asks_for_the_batch_its_halves_and_parts_of_it_twice():
    asked = []
    find_reduction(lambda part: asked.append(list(part)) or contrastive(part), 5)
    first, second = [0, 1], [2, 3, 4]
    assert asked[:4] == [first + second, first, second, (first + second) * 2]
    assert [sorted(part) for part in asked[4:]] == [sorted(first * 2 + second), sorted(first + second * 2)]


def test_the_share_of_the_units_is_that_of_the_first_half():
    verdict = find_reduction(token_mean, 5)
    assert verdict.first_share == pytest.approx((1 + 7) / (1 + 7 + 2 + 5 + 3), rel=1e-12)
    # 8 units in 2 samples, 10 units in 3
    assert verdict.units_ratio == pytest.approx((8 / 2) / (10 / 3), rel=1e-12)
    assert find_reduction(mean, 5).first_share == 0.4
    assert find_reduction(mean, 5).units_ratio == pytest.approx(1, rel=1e-12)
    assert math.isnan(find_reduction(total, 5).first_share)
    assert math.isnan(find_reduction(contrastive, 5).units_ratio)


def test_a_lighter_first_half_gives_a_ratio_above_one_as_well():
    verdict = find_reduction(lambda part: token_mean([(i + 2) % 5 for i in part]), 5)
    assert verdict.first_share == pytest.approx(7 / 18, rel=1e-12)
    assert verdict.units_ratio == pytest.approx((11 / 3) / (7 / 2), rel=1e-12)


def test_a_thousandth_between_the_halves_is_enough_to_see_their_weights():
    """Tokens of a fresh network: the losses of the halves, in float32, differ by a thousandth."""

    def fresh(part):
        # ln(50257) and a little per token; the halves hold 8 and 10 tokens
        values = [(10.825 + 0.01 * LOSSES[i]) * LENGTHS[i] for i in part]
        return float(torch.tensor(sum(values) / sum(LENGTHS[i] for i in part), dtype=torch.float32))

    whole, first, second = fresh(range(5)), fresh([0, 1]), fresh([2, 3, 4])
    assert abs(first - second) / whole < 1e-3
    verdict = find_reduction(fresh, 5)
    assert verdict.kind == "mean over other units"
    assert verdict.first_share == pytest.approx(8 / 18, rel=0.05)
    assert find_reduction(fresh, 5, rtol=1e-3).kind == "mean"  # what a tolerance of 1e-3 makes of it


@pytest.mark.parametrize(("apart", "clear"), [(1e-2, True), (1e-4, False), (0.0, False)])
def test_says_where_equal_halves_cannot_tell_samples_from_units(apart, clear):
    verdict = find_reduction(lambda part: 1 + apart * sum(i >= 2 for i in part) / len(part), 4)
    assert verdict.kind == "mean"
    assert ("too little to tell samples from other units" not in verdict.reason) == clear


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=9))
def test_any_positive_losses(losses):
    assert find_reduction(lambda part: sum(losses[i] for i in part), len(losses)).kind == "sum"
    assert find_reduction(lambda part: sum(losses[i] for i in part) / len(part), len(losses)).kind == "mean"


@given(
    st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=2, max_size=9),
    st.floats(-5, 5),
)
def test_any_mean_over_units_is_a_mean_of_some_kind(samples, penalty):
    def loss(part):
        return sum(u * value for u, value in (samples[i] for i in part)) / sum(samples[i][0] for i in part) + penalty

    verdict = find_reduction(loss, len(samples), rtol=1e-9)
    half = len(samples) // 2
    share = sum(u for u, _ in samples[:half]) / sum(u for u, _ in samples)
    if verdict.kind == "mean over other units":
        apart = abs(verdict.losses[1] - verdict.losses[2]) / max(map(abs, verdict.losses))
        assert verdict.first_share == pytest.approx(share, abs=1e-8 / apart)
    elif verdict.kind == "mean" and "too little" not in verdict.reason:
        assert share == pytest.approx(half / len(samples), abs=0.051)
    else:
        assert verdict.kind in ("mean", "unknown")


@pytest.mark.parametrize(
    ("value", "size", "reason"),
    [
        (0.0, 4, "a loss of zero obeys"),
        (math.nan, 4, r"L\(4 samples\) = nan, .*: not all of them are finite"),
        (math.inf, 4, "not all of them are finite"),
        (1.0, 1, "a batch of 1 has no halves"),
        (1.0, 0, "a batch of 0 has no halves"),
    ],
)
def test_nothing_is_told_from_a_loss_that_says_nothing(value, size, reason):
    verdict = find_reduction(lambda part: value, size)
    assert (verdict.kind, verdict.num_losses) == ("unknown", 4 if size > 1 else 0)
    assert math.isnan(verdict.deviation)
    assert re.search(reason, verdict.reason)


@pytest.mark.parametrize("broken", [1, 3, 5])
def test_a_part_without_a_finite_loss_leaves_the_verdict_unknown(broken):
    count = iter(range(6))
    verdict = find_reduction(lambda part: math.nan if next(count) == broken else token_mean(part), 5)
    assert verdict.kind == "unknown"


def test_a_mean_that_is_off_by_a_little_is_no_sum():
    """Four times what is allowed, where laws of derived numbers may be off by five times that."""
    losses = iter([1.0, 1.00004, 1.0, 1.0, 1.0, 1.0])
    assert find_reduction(lambda part: next(losses), 4, rtol=1e-5).kind != "sum"


def test_losses_that_cancel_are_no_proof():
    signed = [1.0, 2.0, -3.0, 0.0]
    assert find_reduction(lambda part: sum(signed[i] for i in part), 4).kind == "unknown"
    assert find_reduction(lambda part: sum(signed[i] for i in part) / len(part), 4).kind == "unknown"


class Noisy:
    """A loss that draws: the same numbers for every first question, others when asked again."""

    def __init__(self, loss, noise):
        self.loss, self.noise = loss, noise
        self.generator = torch.Generator().manual_seed(3)

    def __call__(self, part):
        return self.loss(part) * (1 + self.noise * torch.randn(1, generator=self.generator).item())


@pytest.mark.parametrize("loss", [mean, total, contrastive])
@pytest.mark.parametrize("seed", range(20))
def test_a_random_loss_is_judged_to_within_its_noise(loss, seed):
    kind = {mean: "mean", total: "sum", contrastive: "batch-coupled"}[loss]
    noisy = Noisy(loss, 1e-3)
    noisy.generator.manual_seed(seed)
    verdict = find_reduction(noisy, 5, redrawn=noisy)
    assert verdict.kind == kind, verdict.reason
    assert verdict.num_losses == 6
    assert "other random numbers" in verdict.reason


def test_more_noise_than_loss_is_unknown():
    noisy = Noisy(mean, 1.0)
    verdict = find_reduction(noisy, 5, redrawn=noisy)
    assert verdict.kind == "unknown"
    assert "random numbers change it by" in verdict.reason


def test_a_random_sum_with_a_penalty_is_not_called_coupled():
    noisy = Noisy(lambda part: 0.7 + total(part), 1e-3)
    assert find_reduction(noisy, 5, redrawn=noisy).kind != "batch-coupled"


def test_the_verdict_is_frozen():
    with pytest.raises(FrozenInstanceError):
        find_reduction(mean, 5).kind = "sum"


@pytest.mark.parametrize("rtol", [0, 0.2, -1, math.nan])
def test_a_tolerance_that_cannot_tell_is_refused(rtol):
    with pytest.raises(ValueError, match=r"rtol must be above 0 and below 0.2, got .*: take a few times the rounding"):
        find_reduction(mean, 5, rtol=rtol)
