import math
from dataclasses import astuple

import pytest
import torch

from lbtrain.functional.average_sharpness import adaptive_average_sharpness, average_sharpness
from lbtrain.functional.hvp import MeanLoss
from tests.problems import SmallNetwork, generator, leaf, matrix_with, quadratic, split_quadratic
from tests.relu_network import ReluNetwork

W = torch.tensor([0.5, -2.0, 0.0, 3.0], dtype=torch.float64)
A = matrix_with([4.0, 1.0, 0.3, -2.0])
C = torch.tensor([1.0, 0.2, 3.0, 0.0], dtype=torch.float64)


@pytest.mark.parametrize(("p", "share"), [(2, 1.0), (math.inf, 1 / 3)])
@pytest.mark.parametrize("scale", [None, C])
def test_of_a_quadratic_is_half_the_trace_times_the_variance(p, share, scale):
    w = leaf(W)
    found = average_sharpness(quadratic(A, w, W), [w], rho=0.3, p=p, scale=scale, num_pairs=600, generator=generator())
    c = torch.ones(4) if scale is None else scale
    exact = share * 0.3**2 / 2 * float((c**2 * A.diagonal()).sum())
    assert abs(found.value - exact) < 4 * found.stderr
    assert found.stderr < 0.2 * 0.3**2 * share * float((c**2 * A.diagonal().abs()).sum())


def test_the_standard_error_of_a_quadratic_is_the_one_in_closed_form():
    w, pairs, rho = leaf(torch.zeros(4)), 6, 0.3
    source = generator(2)
    found = [average_sharpness(quadratic(A, w), [w], rho=rho, num_pairs=pairs, generator=source) for _ in range(300)]
    squares = torch.tensor([f.stderr**2 for f in found], dtype=torch.float64)
    exact = (rho**2 / 2) ** 2 * 2 * float((A**2).sum()) / pairs  # Var x'Ax = 2 ||A||_F^2 for normal x
    assert abs(float(squares.mean()) - exact) < 4 * float(squares.std()) / math.sqrt(len(found))
    values = torch.tensor([f.value for f in found], dtype=torch.float64)
    # The values have heavier tails than a normal variable, hence the half as much again.
    assert float(values.var()) == pytest.approx(exact, rel=1.5 * 4 * math.sqrt(2 / len(found)))
    assert abs(float(values.mean()) - rho**2 / 2 * float(A.trace())) < 4 * math.sqrt(exact / len(found))


@pytest.mark.parametrize("p", [2, math.inf])
def test_odd_orders_of_the_loss_cancel(p):
    w, g = leaf(W), torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    loss = MeanLoss([w], [lambda: 10 + g @ w + ((w - W) ** 3).sum()], [1.0])
    found = average_sharpness(loss, [w], rho=0.5, p=p, num_pairs=3, generator=generator())
    assert abs(found.value) < 1e-12
    assert found.stderr < 1e-12


def test_of_a_small_network_is_the_mean_of_the_dense_quadratic_form():
    problem, rho = SmallNetwork(), 1e-3
    c = torch.rand(59, generator=generator(5), dtype=torch.float64)
    found = average_sharpness(problem.loss(7), problem.params, rho=rho, scale=c, num_pairs=4, generator=generator())
    source, H = generator(), problem.dense_hessian()
    draws = [c * torch.randn(59, generator=source, dtype=torch.float64) for _ in range(4)]
    forms = torch.stack([rho**2 / 2 * d @ H @ d for d in draws])
    assert found.value == pytest.approx(float(forms.mean()), rel=1e-4)
    assert found.stderr == pytest.approx(float(forms.std()) / 2, rel=1e-4)


def test_the_error_over_batches_is_that_of_the_batches_own_rises():
    w, slopes, shares = leaf([0.0]), [1.0, 2.0, 9.0], [0.5, 0.4, 0.1]
    loss = MeanLoss([w], [lambda a=a: a * (w**2).sum() for a in slopes], shares)
    found = average_sharpness(loss, [w], rho=1.0, num_pairs=5, generator=generator())
    mean = sum(s * a for s, a in zip(shares, slopes, strict=True))
    spread = math.sqrt(1.5 * sum(s**2 * (a - mean) ** 2 for s, a in zip(shares, slopes, strict=True)))
    source = generator()
    square = sum(float(torch.randn(1, generator=source, dtype=torch.float64)) ** 2 for _ in range(5)) / 5
    assert (found.value, found.batch_stderr) == pytest.approx((mean * square, spread * square), rel=1e-12)


def test_the_split_into_batches_and_ranks_does_not_matter():
    w = leaf(W)
    whole = average_sharpness(quadratic(A, w), [w], generator=generator())
    split = average_sharpness(split_quadratic(A, w, [0.5, 0.3, 0.2]), [w], generator=generator())
    half = quadratic(A, w)
    ranks = MeanLoss([w], half.losses, [0.5], all_reduce=lambda t: 2 * t)  # two ranks with equal data
    again = average_sharpness(ranks, [w], generator=generator())
    assert split.value == pytest.approx(whole.value, rel=1e-9)
    assert (again.value, again.stderr) == pytest.approx((whole.value, whole.stderr), rel=1e-12)
    assert again.batch_stderr == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("p", [2, math.inf])
def test_adaptive_is_blind_to_a_rescaling_of_relu_layers_and_plain_is_not(p):
    factor = torch.tensor([3.0, 0.1, 7.0, 1.5])
    before, after = ReluNetwork(), ReluNetwork(factor)
    adaptive = [adaptive_average_sharpness(x.loss(8), x.params, p=p, generator=generator()) for x in (before, after)]
    assert astuple(adaptive[1]) == pytest.approx(astuple(adaptive[0]), rel=1e-9)
    plain = [average_sharpness(x.loss(8), x.params, p=p, generator=generator()).value for x in (before, after)]
    assert abs(plain[1] / plain[0]) > 2 or abs(plain[1] / plain[0]) < 0.5


def test_adaptive_of_a_quadratic_weighs_the_diagonal_with_squared_weights():
    w = leaf(W)
    found = adaptive_average_sharpness(quadratic(A, w), [w], rho=0.2, num_pairs=800, generator=generator())
    exact = 0.2**2 / 2 * float((W**2 * A.diagonal()).sum())
    assert abs(found.value - exact) < 4 * found.stderr


def test_scales_with_the_loss():
    one, small = ReluNetwork(), ReluNetwork(height=1e-4)
    a, b = (average_sharpness(x.loss(8), x.params, generator=generator()) for x in (one, small))
    assert (b.value, b.stderr, b.batch_stderr) == pytest.approx(
        (1e-4 * a.value, 1e-4 * a.stderr, 1e-4 * a.batch_stderr), rel=1e-9
    )


def test_weights_come_back_bit_for_bit_and_the_cost_is_counted():
    problem = SmallNetwork(torch.float32)
    before, loss = [p.detach().clone() for p in problem.params], problem.loss(8)
    loss.value()
    found = average_sharpness(loss, problem.params, num_pairs=3, generator=generator())
    assert all(torch.equal(p, q) for p, q in zip(problem.params, before, strict=True))
    assert (found.num_pairs, found.num_values) == (3, 7) == (3, loss.num_values - 1)
    assert loss.num_gradients == 0


def test_weights_come_back_after_an_error():
    w, calls = leaf(torch.rand(1000, generator=generator())), []
    before = w.detach().clone()

    def failing():
        calls.append(0)
        if len(calls) == 3:
            raise KeyError("disk")
        return (w**2).sum()

    with pytest.raises(KeyError):
        average_sharpness(MeanLoss([w], [failing], [1.0]), [w], generator=generator())
    assert torch.equal(w, before)


def test_a_diverged_run_is_nan_at_once_and_an_overflow_beside_it_shows():
    w = leaf(W)
    found = average_sharpness(MeanLoss([w], [lambda: w.sum() * math.inf], [1.0]), [w], generator=generator())
    assert math.isnan(found.value)
    assert (found.num_pairs, found.num_values) == (0, 1)
    loss = MeanLoss([w], [lambda: torch.where((w == W).all(), w.sum(), w.sum() * math.nan)], [1.0])
    assert math.isnan(average_sharpness(loss, [w], generator=generator()).value)
    assert torch.equal(w, W)


def test_one_pair_and_one_batch_have_no_error_bar():
    w = leaf(W)
    found = average_sharpness(quadratic(A, w), [w], num_pairs=1, generator=generator())
    assert math.isfinite(found.value)
    assert math.isnan(found.stderr)
    assert math.isnan(found.batch_stderr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rho": 0.0}, r"rho = 0\.0"),
        ({"num_pairs": 0}, "num_pairs must be at least 1, got 0"),
        ({"p": 1}, "p must be 2 or infinity, got 1"),
        ({"scale": torch.ones(3)}, r"got shape \(3,\)"),
    ],
)
def test_arguments_are_checked(arguments, message):
    w = leaf(W)
    with pytest.raises(ValueError, match=message):
        average_sharpness(quadratic(A, w), [w], generator=generator(), **arguments)
