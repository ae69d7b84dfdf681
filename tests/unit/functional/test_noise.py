"""The noise scale against closed forms, known G and Sigma, real per-sample gradients, and its own reported error."""

import itertools
import math

import pytest
import torch
from sklearn.datasets import load_digits

from lbtrain.functional.noise import (
    NoiseEstimate,
    adascale_gain,
    halves_estimate,
    micro_batch_estimate,
    micro_batch_share,
    two_batch_estimate,
)
from lbtrain.functional.running_noise import NoiseScale, RunningNoise

SIZES = [2, 3, 7, 16]


def running(estimates, forget=0.0):
    noise = RunningNoise(forget)
    for g, t in estimates:
        noise.add(NoiseEstimate(float(g), float(t)))
    return noise


def test_two_batch_estimate_solves_the_two_equations():
    g, t = 0.3, 50.0
    found = two_batch_estimate(g + t / 8, g + t / 32, 8, 32)
    assert (found.gradient_sq, found.trace_sigma) == pytest.approx((g, t), rel=1e-12)


@pytest.mark.parametrize("summed", [False, True])
def test_micro_batches_of_different_sizes_solve_their_equations_exactly(summed):
    g, t, k = 0.3, 50.0, len(SIZES)
    # Expected squared norms of the gradient of each part, and of the mean over parts, for a mean and for a sum.
    each = [b * b * (g + t / b) if summed else g + t / b for b in SIZES]
    mean = sum(SIZES) / k
    of_mean = mean**2 * g + mean * t / k if summed else g + sum(1 / b for b in SIZES) * t / k**2
    shares = [micro_batch_share(b, summed=summed) for b in SIZES]
    squares = sum(square * factor for square, (factor, _) in zip(each, shares, strict=True))
    found = micro_batch_estimate(squares, sum(size for _, size in shares), of_mean, k, summed=summed)
    assert (found.gradient_sq, found.trace_sigma) == pytest.approx((g, t), rel=1e-12)


def gaussian(shape, generator, size=1.0):
    """Return per-sample gradients with known G and Sigma, and |G|^2 and tr(Sigma)."""
    mean, scales = size * torch.tensor([0.5, -0.2, 0.1, 0.0]), torch.tensor([1.0, 2.0, 0.5, 0.1])
    mixing = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64)).Q  # no axis is special
    noise = torch.randn(*shape, 4, generator=generator, dtype=torch.float64) * scales @ mixing
    return mean + noise, float(mean.square().sum()), float(scales.square().sum())


def estimates_of(gradients, sizes, *, summed=False):
    """Return an estimate per draw, from gradients of shape (draws, samples, parameters), split into these sizes."""
    parts = [p.sum(1) if summed else p.mean(1) for p in gradients.split(sizes, dim=1)]
    big_sq = (sum(parts) / len(sizes)).square().sum(-1)
    shares = [micro_batch_share(b, summed=summed) for b in sizes]
    squares = sum(p.square().sum(-1) * f for p, (f, _) in zip(parts, shares, strict=True))
    total = sum(size for _, size in shares)
    found = [
        micro_batch_estimate(float(s), total, float(b), len(sizes), summed=summed)
        for s, b in zip(squares, big_sq, strict=True)
    ]
    return torch.tensor([(e.gradient_sq, e.trace_sigma) for e in found], dtype=torch.float64)


@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("sizes", [[8, 8], [4, 4, 4, 4], [1, 2, 5, 8]], ids=str)
def test_the_estimator_is_unbiased_for_known_g_and_sigma(sizes, summed, generator):
    gradients, g, t = gaussian((2000, sum(sizes)), generator)
    found = estimates_of(gradients, sizes, summed=summed)
    error = found.std(0) / math.sqrt(len(found))
    assert ((found.mean(0) - torch.tensor([g, t])).abs() < 4 * error).all()
    # Sharp enough to see a bias of a seventh of tr(Sigma), and in |G|^2 one of tr(Sigma) / 16 samples.
    assert 4 * error[1] < t / 7
    assert 4 * error[0] < t / 16


@pytest.mark.parametrize("forget", [0.0, 0.05])
def test_the_reported_errors_are_the_spread_over_repetitions(forget, generator):
    repetitions, count = 300, 100
    gradients, _, _ = gaussian((repetitions * count, 16), generator, size=4.0)  # the ratio of means is near to linear
    found = estimates_of(gradients, [8, 8]).view(repetitions, count, 2)
    results = [running(one, forget).result(16, 8) for one in found]
    for value, error in (
        ("b_simple", "stderr"),
        ("gradient_sq", "gradient_sq_stderr"),
        ("trace_sigma", "trace_sigma_stderr"),
    ):
        spread = torch.tensor([getattr(r, value) for r in results]).std()
        reported = torch.tensor([getattr(r, error) for r in results]).square().mean().sqrt()
        # 4 standard errors of a standard deviation, and as much again for the reported one.
        assert spread / reported == pytest.approx(1.0, abs=4 * math.sqrt(2 / (2 * repetitions))), value


def test_the_covariance_of_both_means_is_in_the_error(generator):
    # g and t that move together leave their ratio alone: an error without the covariance would be far too large.
    common = 1 + 0.1 * torch.randn(50, generator=generator)
    result = running(torch.stack([2 * common, 6 * common], 1)).result(16, 8)
    assert result.b_simple == pytest.approx(3.0)
    assert result.stderr < 1e-6
    assert result.gradient_sq_stderr > 0.01


@pytest.mark.parametrize("forget", [0.0, 0.03, 0.5])
def test_running_means_are_the_weighted_means_with_their_errors(forget, generator):
    values = torch.rand(60, 2, generator=generator, dtype=torch.float64) + 1
    noise = running(values, forget)
    weights = (1 - forget) ** torch.arange(59, -1, -1, dtype=torch.float64)
    shares = weights / weights.sum()
    mean = shares @ values
    centred = values - mean
    covariance = (centred.T * shares) @ centred / (1 - shares.square().sum()) * shares.square().sum()
    found = noise.result(16, 8)
    assert (found.gradient_sq, found.trace_sigma) == pytest.approx(mean.tolist(), rel=1e-12)
    assert found.gradient_sq_stderr == pytest.approx(float(covariance[0, 0].sqrt()), rel=1e-9)
    assert found.trace_sigma_stderr == pytest.approx(float(covariance[1, 1].sqrt()), rel=1e-9)
    slope = torch.tensor([-mean[1] / mean[0] ** 2, 1 / mean[0]])
    assert found.stderr == pytest.approx(float((slope @ covariance @ slope).sqrt()), rel=1e-9)
    assert noise.effective_number == pytest.approx(float(1 / shares.square().sum()), rel=1e-12)


def test_the_memory_fades_at_the_documented_rate():
    noise = running([(1.0, 1.0)] * 2000, forget=0.01)
    assert noise.effective_number == pytest.approx(2 / 0.01 - 1, rel=1e-6)
    for _ in range(500):
        noise.add(NoiseEstimate(3.0, 3.0))
    assert noise.result(1, 1).gradient_sq == pytest.approx(3 - 2 * 0.99**500, rel=1e-6)


def test_each_is_averaged_before_the_ratio():
    result = running([(1.0, 4.0), (3.0, 4.0)]).result(16, 8)
    assert result.b_simple == 2.0  # and not the mean of 4 and 4/3


@pytest.mark.parametrize(
    ("estimate", "b_simple"),
    [((-1.0, 4.0), math.inf), ((0.0, 4.0), math.inf), ((0.0, 0.0), math.nan), ((1.0, -4.0), math.nan)],
)
def test_what_has_no_ratio_is_infinite_or_nan_and_never_negative(estimate, b_simple):
    result = running([estimate, estimate]).result(16, 8)
    assert result.b_simple == pytest.approx(b_simple, nan_ok=True)
    assert math.isnan(result.stderr)
    assert not result.resolved
    assert result.gradient_sq == estimate[0]


def test_without_estimates_all_is_nan_and_one_has_no_error():
    empty = RunningNoise().result(16, 8)
    assert math.isnan(empty.b_simple)
    assert math.isnan(empty.gain)
    assert empty.num_estimates == 0
    one = running([(2.0, 8.0)]).result(16, 8, num_gradients=2)
    assert (one.b_simple, one.num_estimates, one.num_gradients) == (4.0, 1, 2)
    assert math.isnan(one.stderr)
    assert math.isnan(one.gradient_sq_stderr)


@pytest.mark.parametrize(("g", "t", "gain"), [(0.0, 5.0, 16.0), (5.0, 0.0, 1.0), (1.0, 32.0, 17 / 2.0625 / 1.0)])
def test_adascale_gain_lies_between_one_and_the_growth_of_the_batch(g, t, gain):
    base, batch = 2, 32
    expected = (t / base + g) / (t / batch + g)
    assert adascale_gain(g, t, batch, base) == pytest.approx(expected)
    assert 1 <= adascale_gain(g, t, batch, base) <= 16
    if t in (0.0, 5.0):
        assert expected == pytest.approx(gain)
    assert adascale_gain(g, t, base, base) == 1


def test_adascale_gain_is_nan_where_noise_made_an_estimate_negative():
    assert all(math.isnan(adascale_gain(g, t, 32, 2)) for g, t in ((-1.0, 5.0), (1.0, -5.0), (0.0, 0.0)))


@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("sizes", [(8, 8), (3, 4)], ids=str)
def test_halves_are_the_two_batch_estimate(sizes, summed, generator):
    sides = [
        [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((3, 2), (4,))] for _ in range(2)
    ]
    before = [[g.clone() for g in side] for side in sides]
    found = halves_estimate(*sides, sizes, summed=summed)
    assert all(torch.equal(a, b) for x, y in zip(sides, before, strict=True) for a, b in zip(x, y, strict=True))
    # Means of per-sample gradients, whatever the loss: g_A and g_B are then at 1/a and 1/b.
    a, b = (
        torch.cat([g.reshape(-1) for g in side]) / (n if summed else 1) for side, n in zip(sides, sizes, strict=True)
    )
    if sizes[0] == sizes[1]:
        small, big = float(a @ a + b @ b) / 2, float((a + b) @ (a + b)) / 4
        expected = two_batch_estimate(small, big, sizes[0], 2 * sizes[0])
        assert (float(found[0]), float(found[1])) == pytest.approx((expected.gradient_sq, expected.trace_sigma))
    assert float(found[0]) == pytest.approx(float(a @ b))
    assert float(found[1]) == pytest.approx(float((a - b) @ (a - b)) * sizes[0] * sizes[1] / sum(sizes))


def test_halves_in_half_precision_are_squared_in_single():
    sides = [[torch.full((1000,), 300.0, dtype=torch.float16)], [torch.full((1000,), -300.0, dtype=torch.float16)]]
    found = halves_estimate(*sides, (4, 4))
    assert [float(v) for v in found] == pytest.approx([-9e7, 2 * 3.6e8])


def test_of_no_tensors_halves_are_zero():
    assert [float(v) for v in halves_estimate([], [], (4, 4))] == [0, 0]


def test_without_replacement_the_squared_gradient_comes_out_lower_by_a_known_amount(generator):
    gradients = torch.randn(6, 3, generator=generator, dtype=torch.float64) + 1
    pairs = torch.tensor(list(itertools.permutations(range(6), 2)))
    found = estimates_of(gradients[pairs], [1, 1]).mean(0)
    mean = gradients.mean(0)
    trace = float((gradients - mean).square().sum()) / 5
    assert found.tolist() == pytest.approx([float(mean @ mean) - trace / 6, trace], rel=1e-12)


@pytest.fixture(scope="module")
def digits():
    """Per-sample gradients of a linear classifier on the digits: (softmax - target) x input."""
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x / 16), torch.tensor(y)
    weights = 0.1 * torch.randn(64, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wrong = (x @ weights).softmax(1) - torch.nn.functional.one_hot(y, 10)
    return (x[:, :, None] * wrong[:, None, :]).reshape(len(x), -1)


@pytest.mark.parametrize("size", [8, 16, 32, 64, 128, 256, 512])
def test_the_variance_of_the_gradient_of_digits_falls_as_one_over_s(digits, size, generator):
    draws, count = 200, len(digits)
    mean = digits.mean(0)
    trace = float((digits - mean).square().sum(1).mean())
    picked = torch.randint(count, (draws, size), generator=generator)
    times = torch.zeros(draws, count, dtype=torch.float64).scatter_add_(
        1, picked, torch.ones(draws, size, dtype=torch.float64)
    )
    squared = (times @ digits / size - mean).square().sum(1)
    error = float(squared.std()) / math.sqrt(draws)
    assert abs(float(squared.mean()) - trace / size) < 4 * error
    assert error < 0.1 * trace / size
    # And the estimator sees the same trace and the same |G|^2 at every batch size.
    gradients = torch.stack([digits[one].view(2, size // 2, -1).mean(1) for one in picked])
    sides = [halves_estimate([a], [b], (size // 2, size // 2)) for a, b in gradients]
    found = torch.tensor([(float(g), float(t)) for g, t in sides])
    error = found.std(0) / math.sqrt(draws)
    assert ((found.mean(0) - torch.tensor([float(mean @ mean), trace])).abs() < 4 * error).all()
    assert error[1] < 0.1 * trace


def test_the_state_goes_on_bit_for_bit(generator):
    values = torch.rand(40, 2, generator=generator).tolist()
    whole, first = running(values, 0.05), running(values[:25], 0.05)
    state = first.state_dict()
    assert all(type(v) in (int, float) for v in state.values())
    again = RunningNoise(0.05)
    again.load_state_dict(state)
    for g, t in values[25:]:
        again.add(NoiseEstimate(g, t))
    assert again.result(16, 8) == whole.result(16, 8)


def test_a_result_is_resolved_two_errors_above_zero():
    facts = {"b_simple": 4.0, "stderr": 1.0, "trace_sigma": 8.0, "trace_sigma_stderr": 1.0, "gain": 1.0}
    counts = {"global_batch": 8, "base_batch": 8, "num_estimates": 9, "num_gradients": 0}
    assert NoiseScale(gradient_sq=2.0, gradient_sq_stderr=0.9, **facts, **counts).resolved
    assert not NoiseScale(gradient_sq=2.0, gradient_sq_stderr=1.1, **facts, **counts).resolved


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: two_batch_estimate(1.0, 1.0, 8, 8), "small=8 and big=8"),
        (lambda: two_batch_estimate(1.0, 1.0, 0, 8), "0 < small < big"),
        (lambda: micro_batch_share(0), "size must be above 0 samples, got 0"),
        (lambda: micro_batch_estimate(1.0, 1.0, 1.0, 1), "at least 2 micro-batches"),
        (lambda: halves_estimate([torch.ones(1)], [], (1, 1)), "got 1 and 0"),
        (lambda: adascale_gain(1.0, 1.0, 0, 8), "got 0 and 8 samples"),
        (lambda: RunningNoise(1.0), "forget must be at least 0 and below 1, got 1.0"),
        (lambda: RunningNoise(-0.1), "got -0.1"),
        (lambda: RunningNoise().add(NoiseEstimate(math.inf, 1.0)), "estimate must be finite"),
    ],
)
def test_an_error_names_the_argument_and_the_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()
