import itertools
import math

import pytest
import torch

from lbtrain.functional.hvp import MeanLoss
from lbtrain.functional.sharpness import keskar_sharpness, sam_sharpness
from tests.problems import SmallNetwork, generator, leaf, matrix_with, quadratic

W = torch.tensor([0.5, -2.0, 0.0, 3.0], dtype=torch.float64)


def diagonal(values, w=W, height=0.0):
    """Return ``height + sum_i a_i (x_i - w_i)^2 / 2``, whose gradient at ``w`` is zero, and its parameter at ``w``."""
    x, a = leaf(w), torch.tensor(values, dtype=torch.float64)
    return MeanLoss([x], [lambda: height + 0.5 * (a * (x - w) ** 2).sum()], [1.0]), x


@pytest.mark.parametrize("measure", [keskar_sharpness, sam_sharpness])
def test_weights_come_back_bit_for_bit(measure):
    problem = SmallNetwork(torch.float32)
    before = [p.detach().clone() for p in problem.params]
    assert measure(problem.loss(8), problem.params, generator=generator()).value > 0
    assert all(torch.equal(p, q) for p, q in zip(problem.params, before, strict=True))
    assert all(p.grad is None for p in problem.params)


@pytest.mark.parametrize("measure", [keskar_sharpness, sam_sharpness])
def test_weights_come_back_after_an_error(measure):
    w, calls = leaf(torch.rand(100_000, generator=generator())), []
    before = w.detach().clone()

    def failing():
        calls.append(0)
        if len(calls) == 4:
            raise KeyError("disk")
        return (w**2).sum()

    with pytest.raises(KeyError):
        measure(MeanLoss([w], [failing], [1.0]), [w], generator=generator(), num_steps=5)
    assert torch.equal(w, before)


@pytest.mark.parametrize("height", [0.0, 3.0])
@pytest.mark.parametrize("values", [[2.0, 1.0, 0.3, 4.0], [2.0, 1.0, 0.3, -4.0], [2.0, -1.0, 0.0, -4.0]])
def test_keskar_on_a_diagonal_quadratic_at_its_critical_point(values, height):
    loss, w = diagonal(values, height=height)
    eps = 1e-3
    exact = 50 * sum(max(a, 0) * eps**2 * (abs(x) + 1) ** 2 for a, x in zip(values, W.tolist(), strict=True))
    found = keskar_sharpness(loss, [w], eps=eps, generator=generator())
    assert found.value == pytest.approx(exact / (1 + height), rel=1e-8)


def test_keskar_of_a_linear_loss_is_its_corner():
    w, g = leaf(W), torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    loss = MeanLoss([w], [lambda: 10 + g @ w], [1.0])
    exact = 100 * 1e-2 * float((g.abs() * (W.abs() + 1)).sum()) / (11 + float(g @ W))
    assert keskar_sharpness(loss, [w], eps=1e-2, generator=generator()).value == pytest.approx(exact, rel=1e-9)


def test_keskar_stays_in_the_box_and_is_never_negative():
    w = leaf(W)
    seen = []

    def at_a_maximum():
        seen.append(w.detach().clone())
        return 5 - 50 * ((w - W) ** 2).sum()

    found = keskar_sharpness(MeanLoss([w], [at_a_maximum], [1.0]), [w], eps=0.1, generator=generator())
    assert found.value == 0.0
    assert all(((x - W).abs() <= 0.1 * (W.abs() + 1) + 1e-12).all() for x in seen)


def test_keskar_beats_random_points_and_the_corner_of_the_gradient():
    problem = SmallNetwork()
    loss = problem.loss(30)
    found = keskar_sharpness(loss, problem.params, eps=0.05, generator=generator())
    base, w = loss.value(), [p.detach().clone() for p in problem.params]
    signs = [None, *range(20)]
    gradient = torch.autograd.grad(loss.losses[0](), problem.params)
    source = generator(4)
    for sign in signs:
        with torch.no_grad():
            for p, q, g in zip(problem.params, w, gradient, strict=True):
                side = g.sign() if sign is None else torch.randn(p.shape, generator=source, dtype=p.dtype).sign()
                p.copy_(q + 0.05 * (q.abs() + 1) * side)
        assert found.value >= 100 * (loss.value() - base) / (1 + base) * (1 - 1e-9)


def test_sam_of_a_linear_loss_is_rho_times_the_gradient_norm():
    w, g = leaf(W), torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    found = sam_sharpness(MeanLoss([w], [lambda: g @ w], [1.0]), [w], rho=0.05, num_steps=1, generator=generator())
    assert found.value == pytest.approx(0.05 * float(g.norm()), rel=1e-9)


@pytest.mark.parametrize("n", [3, 40])
def test_sam_at_a_quadratic_minimum_turns_to_the_top_eigenvector(n):
    A = matrix_with([5.0, *torch.linspace(0.0, 2.0, n - 1).tolist()])
    w = leaf(torch.zeros(n))
    found = sam_sharpness(quadratic(A, w, height=1.0), [w], rho=0.05, num_steps=12, generator=generator())
    assert found.value == pytest.approx(0.05**2 * 5 / 2, rel=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_sam_finds_the_rise_beside_a_steeper_fall(seed):
    """At a saddle with |lambda_min| > lambda_max a power iteration turns to the fall."""
    matrix, w = matrix_with([5.0, 1.0, -2.0, -9.0]), leaf([0.5, -2.0, 0.0, 3.0])
    centre = w.detach().clone()
    loss = MeanLoss([w], [lambda: 0.5 * (w - centre) @ matrix @ (w - centre)], [1.0])
    found = sam_sharpness(loss, [w], rho=0.1, num_steps=40, generator=generator(seed))
    assert found.value == pytest.approx(0.1**2 * 5.0 / 2, rel=1e-3)


@pytest.mark.parametrize("values", [[2.0, 1.0, 0.3, 4.0], [2.0, -1.0, 5.0, -4.0]])
def test_sam_in_a_cube_at_the_critical_point_of_a_diagonal_quadratic(values):
    loss, w = diagonal(values)
    found = sam_sharpness(loss, [w], rho=0.1, p=math.inf, generator=generator())
    assert found.value == pytest.approx(0.1**2 / 2 * sum(max(a, 0) for a in values), rel=1e-8)


@pytest.mark.parametrize(("p", "rho", "q"), [(2, 0.05, 2), (math.inf, 0.001, 1)])
def test_sam_of_a_linear_loss_is_its_default_radius_times_the_dual_norm(p, rho, q):
    w, g = leaf(W), torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    found = sam_sharpness(MeanLoss([w], [lambda: g @ w], [1.0]), [w], p=p, generator=generator())
    assert found.value == pytest.approx(rho * float(torch.linalg.vector_norm(g, ord=q)), rel=1e-9)


def test_the_corner_that_the_gradient_points_to_is_reported_beside_the_value():
    # On a slope with a fall behind it the corner lies below the weights; the value is found on the way.
    w = leaf(torch.zeros(2))
    loss = MeanLoss([w], [lambda: 1 + w.sum() - 10 * (w**2).sum()], [1.0])
    found = keskar_sharpness(loss, [w], eps=1.0, num_starts=2, generator=generator())
    assert found.corner == pytest.approx(100 * (2 - 20) / 2)
    assert found.value == pytest.approx(100 * 2 * (0.05 - 10 * 0.05**2) / 2, rel=1e-8)
    assert found.num_starts == 2
    linear = MeanLoss([w], [lambda: 1 + 3 * w.sum()], [1.0])
    found = keskar_sharpness(linear, [w], generator=generator())
    assert found.corner == pytest.approx(found.value, rel=1e-12)


def test_there_is_no_corner_without_a_gradient():
    loss, w = diagonal([1.0, 2.0, 3.0, 4.0])
    found = keskar_sharpness(loss, [w], generator=generator())
    assert math.isnan(found.corner)
    assert found.value > 0


@pytest.mark.parametrize("seed", range(3))
def test_more_starts_never_lose_and_can_find_a_higher_corner(seed):
    A, centre = matrix_with([5.0, 3.0, 1.0, 0.5, 0.2, 0.1]), torch.zeros(6, dtype=torch.float64)
    w = leaf(centre)
    one, eight = (keskar_sharpness(quadratic(A, w), [w], num_starts=k, generator=generator(seed)).value for k in (1, 8))
    corners = [torch.tensor(s, dtype=torch.float64) for s in itertools.product([-1.0, 1.0], repeat=6)]
    exact = 100 * max(float(0.5 * z @ A @ z) for z in corners) * 1e-6
    assert one <= eight * (1 + 1e-12)
    assert eight == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_a_later_start_that_ends_lower_does_not_count(seed):
    # From the weights the way leads up to 2, from a start on the left to 1, such as the last of seeds 1 and 3.
    w = leaf([0.0])
    loss = MeanLoss([w], [lambda: 1 + torch.where(w >= 0, 2 * w, -w).sum()], [1.0])
    found = keskar_sharpness(loss, [w], eps=1.0, num_starts=1 + seed, generator=generator(seed))
    assert found.value == pytest.approx(100 * 2 / 2)


@pytest.mark.parametrize("height", [-1.0, -5.0])
def test_percent_of_nothing_or_less_has_no_meaning(height):
    loss, w = diagonal([1.0, 2.0, 3.0, 4.0], height=height)
    found = keskar_sharpness(loss, [w], generator=generator())
    assert math.isnan(found.value)
    assert math.isnan(found.stderr)
    assert torch.equal(w, W)


def test_the_first_step_of_sam_is_the_classical_one():
    problem = SmallNetwork()
    loss = problem.loss(7)
    g = loss.gradient()
    e = 0.05 * g / g.norm()
    found = sam_sharpness(loss, problem.params, rho=0.05, num_steps=1, generator=generator())
    base = loss.value()
    with torch.no_grad():
        for p, piece in zip(problem.params, torch.split(e, [p.numel() for p in problem.params]), strict=True):
            p.add_(piece.view_as(p))
    assert found.value == pytest.approx(loss.value() - base, rel=1e-9)
    assert found.num_gradients == 1


def test_sam_never_loses_by_more_steps():
    problem = SmallNetwork()
    values = [
        sam_sharpness(problem.loss(30), problem.params, rho=0.5, num_steps=k, generator=generator()).value
        for k in (1, 3, 10)
    ]
    assert values[0] <= values[1] <= values[2]


def test_sam_of_a_maximum_is_zero():
    loss, w = diagonal([-1.0, -2.0, -0.5, -3.0])
    assert sam_sharpness(loss, [w], generator=generator()).value == 0.0


def test_error_bar_over_equal_batches_is_that_of_a_mean():
    w = leaf([0.0])
    slopes = [1.0, 2.0, 4.0, 9.0]
    loss = MeanLoss([w], [lambda a=a: a * w.sum() for a in slopes], [0.25] * 4)
    found = sam_sharpness(loss, [w], rho=0.5, num_steps=1, generator=generator())
    rises = 0.5 * torch.tensor(slopes)
    assert found.value == pytest.approx(float(rises.mean()))
    assert found.stderr == pytest.approx(float(rises.std()) / 2, rel=1e-6)


def test_error_bar_over_unequal_batches_and_ranks():
    w = leaf([0.0])
    slopes, shares = [1.0, 2.0, 9.0], [0.5, 0.4, 0.1]
    loss = MeanLoss([w], [lambda a=a: a * w.sum() for a in slopes], shares)
    found = sam_sharpness(loss, [w], rho=1.0, num_steps=1, generator=generator())
    mean = sum(s * a for s, a in zip(shares, slopes, strict=True))
    exact = math.sqrt(3 / 2 * sum(s**2 * (a - mean) ** 2 for s, a in zip(shares, slopes, strict=True)))
    assert (found.value, found.stderr) == pytest.approx((mean, exact), rel=1e-9)
    twice = MeanLoss([w], loss.losses[:2], [0.25, 0.25], all_reduce=lambda t: 2 * t)  # two ranks with equal data
    again = sam_sharpness(twice, [w], rho=1.0, num_steps=1, generator=generator())
    assert again.stderr == pytest.approx(math.sqrt(4 / 3 * 4 * 0.25**2 * 0.25), rel=1e-9)


@pytest.mark.parametrize("measure", [keskar_sharpness, sam_sharpness])
def test_one_batch_has_no_error_bar(measure):
    loss, w = diagonal([1.0, 2.0, 3.0, 4.0])
    assert math.isnan(measure(loss, [w], generator=generator()).stderr)


@pytest.mark.parametrize("measure", [keskar_sharpness, sam_sharpness])
def test_a_diverged_run_is_nan_at_once(measure):
    w = leaf(W)
    found = measure(MeanLoss([w], [lambda: w.sum() * math.inf], [1.0]), [w], generator=generator())
    assert math.isnan(found.value)
    assert math.isnan(found.stderr)
    assert found.num_gradients == 0


@pytest.mark.parametrize("measure", [keskar_sharpness, sam_sharpness])
def test_a_loss_that_overflows_beside_the_weights_ends(measure):
    w = leaf(W)
    loss = MeanLoss([w], [lambda: torch.where((w == W).all(), w.sum(), w.sum() * math.nan)], [1.0])
    assert measure(loss, [w], generator=generator()).value == 0.0
    assert torch.equal(w, W)


@pytest.mark.parametrize("measure", [keskar_sharpness, sam_sharpness])
def test_the_cost_is_counted(measure):
    loss, w = diagonal([1.0, 2.0, 3.0, 4.0])
    loss.gradient()
    found = measure(loss, [w], num_steps=4, generator=generator())
    assert 1 <= found.num_gradients <= 1 + 4
    assert found.num_gradients == loss.num_gradients - 1
    assert found.num_values == loss.num_values <= 3


def test_arguments_are_checked():
    loss, w = diagonal([1.0, 2.0, 3.0, 4.0])
    with pytest.raises(ValueError, match=r"rho = -0\.1"):
        sam_sharpness(loss, [w], rho=-0.1, generator=generator())
    with pytest.raises(ValueError, match="num_steps = 0"):
        keskar_sharpness(loss, [w], num_steps=0, generator=generator())
    with pytest.raises(ValueError, match="num_starts must be at least 1, got 0"):
        keskar_sharpness(loss, [w], num_starts=0, generator=generator())
    with pytest.raises(ValueError, match="p must be 2 or infinity, got 1"):
        sam_sharpness(loss, [w], p=1, generator=generator())
    with pytest.raises(ValueError, match=r"pass loss\.params"):
        keskar_sharpness(loss, [leaf(W)], generator=generator())
