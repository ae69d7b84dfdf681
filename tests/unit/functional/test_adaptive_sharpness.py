import math

import pytest
import torch

from lbtrain.functional.adaptive_sharpness import adaptive_sharpness
from lbtrain.functional.hvp import MeanLoss
from lbtrain.functional.scaled_hessian import scaled_spectrum
from lbtrain.functional.sharpness import sam_sharpness
from lbtrain.functional.weight_scale import weight_scale
from tests.problems import SmallNetwork, generator, leaf, matrix_with, quadratic
from tests.relu_network import ReluNetwork

W = torch.tensor([0.5, -2.0, 0.0, 3.0], dtype=torch.float64)
G = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
ORDERS = [2, math.inf]


def around(A, w):
    """Return ``(x - w)' A (x - w) / 2``, whose gradient at ``w`` is zero, and its parameter at ``w``."""
    x = leaf(w)
    return MeanLoss([x], [lambda: 0.5 * (x - w) @ (A @ (x - w))], [1.0]), x


def linear(w):
    return MeanLoss([w], [lambda: 10 + G @ w], [1.0])


def moved(loss, params, e):
    """Return the rise of the loss at ``w + e``, by hand."""
    base = loss.value()
    with torch.no_grad():
        for p, piece in zip(params, torch.split(e, [p.numel() for p in params]), strict=True):
            p.add_(piece.view_as(p))
    rise = loss.value() - base
    with torch.no_grad():
        for p, piece in zip(params, torch.split(e, [p.numel() for p in params]), strict=True):
            p.sub_(piece.view_as(p))
    return rise


@pytest.mark.parametrize("num_steps", [1, 4])
@pytest.mark.parametrize("scale", [None, torch.tensor([1.0, 0.2, 3.0, 0.0])])
def test_of_a_linear_loss_is_the_dual_norm(scale, num_steps):
    w, c = leaf(W), W.abs() if scale is None else scale.double()
    options = {"scale": scale, "num_steps": num_steps, "generator": generator()}
    assert adaptive_sharpness(linear(w), [w], **options).value == pytest.approx(0.5 * float((c * G).norm()), rel=1e-9)
    found = adaptive_sharpness(linear(w), [w], p=math.inf, **options)
    assert found.value == pytest.approx(0.001 * float((c * G).abs().sum()), rel=1e-9)


def test_at_a_quadratic_minimum_is_the_largest_eigenvalue_of_the_scaled_matrix():
    A = matrix_with([5.0, 1.0, 0.4, 0.1])
    loss, w = around(A, W)
    found = adaptive_sharpness(loss, [w], rho=0.3, num_steps=40, generator=generator())
    exact = 0.3**2 / 2 * float(torch.linalg.eigvalsh(W.abs()[:, None] * A * W.abs()).max())
    assert found.value == pytest.approx(exact, rel=1e-6)
    spectrum = scaled_spectrum(loss, tol=1e-8, generator=generator())
    assert found.value == pytest.approx(0.3**2 / 2 * spectrum.lambda_max, rel=1e-6)


@pytest.mark.parametrize("values", [[2.0, 1.0, 0.3, 4.0], [2.0, 1.0, 5.0, -4.0], [2.0, -1.0, 0.0, -4.0]])
def test_of_a_diagonal_quadratic_at_its_critical_point_with_p_infinity(values):
    a = torch.tensor(values, dtype=torch.float64)
    loss, w = around(torch.diag(a), W)
    found = adaptive_sharpness(loss, [w], rho=0.1, p=math.inf, generator=generator())
    assert found.value == pytest.approx(0.1**2 / 2 * float((a.clamp_min(0) * W**2).sum()), rel=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_a_saddle_is_climbed_although_its_steepest_curvature_leads_down(seed):
    A = matrix_with([5.0, 1.0, -2.0, -9.0])
    loss, w = around(A, W)
    found = adaptive_sharpness(loss, [w], rho=0.1, scale=torch.ones(4), num_steps=40, generator=generator(seed))
    assert found.value == pytest.approx(0.1**2 / 2 * 5, rel=1e-3)


@pytest.mark.parametrize(("p", "num_steps", "share"), [(2, 60, 0.98), (math.inf, 4, 1 - 1e-9)])
def test_a_maximum_inside_the_ball_is_found(p, num_steps, share):
    x, a = leaf(W), torch.tensor([50.0, 60.0, 70.0, 80.0], dtype=torch.float64)
    loss = MeanLoss([x], [lambda: G @ (x - W) - 0.5 * (a * (x - W) ** 2).sum()], [1.0])
    options = {"scale": torch.ones(4), "num_steps": num_steps, "generator": generator()}
    found = adaptive_sharpness(loss, [x], rho=1.0, p=p, **options)
    exact = float((G**2 / (2 * a)).sum())
    assert exact * share < found.value <= exact * (1 + 1e-9)


def test_with_ones_and_one_step_is_that_of_sam():
    problem, ones = SmallNetwork(), torch.ones(59)
    options = {"rho": 0.05, "num_steps": 1, "generator": generator()}
    plain = sam_sharpness(problem.loss(7), problem.params, **options)
    assert adaptive_sharpness(problem.loss(7), problem.params, scale=ones, **options).value == pytest.approx(
        plain.value, rel=1e-9
    )


@pytest.mark.parametrize("p", ORDERS)
def test_the_first_step_is_the_one_of_adaptive_sam(p):
    problem = SmallNetwork()
    adapted = [q.dim() > 1 for q in problem.params]
    T = torch.cat([(q.detach().abs() + 0.01 if q.dim() > 1 else torch.ones_like(q)).flatten() for q in problem.params])
    loss = problem.loss(7)
    g = loss.gradient()
    e = 0.2 * T**2 * g / (T * g).norm() if p == 2 else 0.2 * T * g.sign()
    scale = weight_scale(problem.params, eta=0.01, adapted=adapted)
    found = adaptive_sharpness(loss, problem.params, rho=0.2, p=p, scale=scale, num_steps=1, generator=generator())
    assert found.value == pytest.approx(moved(loss, problem.params, e), rel=1e-9)
    assert found.num_gradients == 1


@pytest.mark.parametrize("p", ORDERS)
def test_no_random_point_of_the_ball_lies_higher_and_more_steps_never_lose(p):
    problem, rho = SmallNetwork(), 0.3
    values = [
        adaptive_sharpness(problem.loss(30), problem.params, rho=rho, p=p, num_steps=k, generator=generator()).value
        for k in (1, 3, 20)
    ]
    assert values[0] <= values[1] <= values[2]
    c, source, loss = weight_scale(problem.params), generator(4), problem.loss(30)
    for _ in range(20):
        x = torch.randn(59, generator=source, dtype=torch.float64)
        e = rho * c * (x / x.norm() if p == 2 else x.sign())
        assert moved(loss, problem.params, e) <= values[2] * (1 + 1e-9)


@pytest.mark.parametrize("p", ORDERS)
def test_stays_in_the_ball_and_leaves_weights_of_zero_alone(p):
    w, seen = leaf(W), []
    A = matrix_with([5.0, 1.0, -2.0, -100.0])

    def watched():
        seen.append(w.detach().clone())
        return G @ w + 0.5 * w @ A @ w

    adaptive_sharpness(MeanLoss([w], [watched], [1.0]), [w], rho=0.3, p=p, generator=generator())
    moving = W != 0
    lengths = [torch.linalg.vector_norm(((x - W) / W)[moving], ord=p) for x in seen]
    assert 0.29 < max(lengths) <= 0.3 * (1 + 1e-12)
    assert all(x[2] == 0 for x in seen)


@pytest.mark.parametrize("p", ORDERS)
def test_is_blind_to_a_rescaling_of_relu_layers_and_the_plain_one_is_not(p):
    before, after = ReluNetwork(), ReluNetwork(torch.tensor([3.0, 0.1, 7.0, 1.5]))
    options = {"rho": 0.2, "p": p, "generator": generator()}
    a, b = (adaptive_sharpness(x.loss(8), x.params, **options) for x in (before, after))
    assert (b.value, b.stderr) == pytest.approx((a.value, a.stderr), rel=1e-6)
    plain = [adaptive_sharpness(x.loss(8), x.params, scale=torch.ones(20), **options).value for x in (before, after)]
    assert plain[1] > 1.5 * plain[0]


@pytest.mark.parametrize("p", ORDERS)
def test_scales_with_the_loss(p):
    one, small = ReluNetwork(), ReluNetwork(height=1e-4)
    a, b = (adaptive_sharpness(x.loss(8), x.params, p=p, generator=generator()) for x in (one, small))
    assert (b.value, b.stderr) == pytest.approx((1e-4 * a.value, 1e-4 * a.stderr), rel=1e-6)


@pytest.mark.parametrize("p", ORDERS)
def test_of_a_maximum_and_of_weights_that_are_all_zero_is_zero(p):
    loss, w = around(-matrix_with([1.0, 2.0, 0.5, 3.0]), W)
    assert adaptive_sharpness(loss, [w], p=p, generator=generator()).value == 0.0
    zero = leaf(torch.zeros(4))
    for at_zero in (linear(zero), quadratic(matrix_with([1.0, 2.0, 0.5, 3.0]), zero)):
        found = adaptive_sharpness(at_zero, [zero], p=p, generator=generator())
        assert (found.value, found.num_gradients) == (0.0, 1)


def test_error_bar_is_over_batches():
    w, slopes = leaf([1.0]), [1.0, 2.0, 4.0, 9.0]
    loss = MeanLoss([w], [lambda a=a: a * w.sum() for a in slopes], [0.25] * 4)
    found = adaptive_sharpness(loss, [w], rho=0.5, generator=generator())
    rises = 0.5 * torch.tensor(slopes)
    assert (found.value, found.stderr) == pytest.approx((float(rises.mean()), float(rises.std()) / 2), rel=1e-6)


@pytest.mark.parametrize("p", ORDERS)
def test_weights_come_back_bit_for_bit_and_the_cost_is_counted(p):
    problem = SmallNetwork(torch.float32)
    before, loss = [q.detach().clone() for q in problem.params], problem.loss(8)
    loss.gradient()
    found = adaptive_sharpness(loss, problem.params, p=p, num_steps=4, generator=generator())
    assert found.value > 0
    assert all(torch.equal(q, r) for q, r in zip(problem.params, before, strict=True))
    assert 1 <= found.num_gradients == loss.num_gradients - 1 <= 4
    assert found.num_values == loss.num_values <= 3


@pytest.mark.parametrize("p", ORDERS)
def test_weights_come_back_after_an_error(p):
    w, calls = leaf(torch.rand(1000, generator=generator())), []
    before = w.detach().clone()

    def failing():
        calls.append(0)
        if len(calls) == 3:
            raise KeyError("disk")
        return (w**2).sum()

    with pytest.raises(KeyError):
        adaptive_sharpness(MeanLoss([w], [failing], [1.0]), [w], p=p, generator=generator())
    assert torch.equal(w, before)


@pytest.mark.parametrize("p", ORDERS)
def test_a_diverged_run_is_nan_at_once_and_an_overflow_beside_it_ends(p):
    w = leaf(W)
    found = adaptive_sharpness(MeanLoss([w], [lambda: w.sum() * math.inf], [1.0]), [w], p=p, generator=generator())
    assert math.isnan(found.value)
    assert found.num_gradients == 0
    loss = MeanLoss([w], [lambda: torch.where((w == W).all(), w.sum(), w.sum() * math.nan)], [1.0])
    assert adaptive_sharpness(loss, [w], p=p, generator=generator()).value == 0.0
    assert torch.equal(w, W)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rho": -0.1}, r"rho = -0\.1"),
        ({"rho": math.nan}, "rho = nan"),
        ({"num_steps": 0}, "num_steps = 0"),
        ({"p": 3}, "p must be 2 or infinity, got 3"),
        ({"scale": torch.ones(5)}, r"got shape \(5,\)"),
    ],
)
def test_arguments_are_checked(arguments, message):
    w = leaf(W)
    with pytest.raises(ValueError, match=message):
        adaptive_sharpness(linear(w), [w], generator=generator(), **arguments)
