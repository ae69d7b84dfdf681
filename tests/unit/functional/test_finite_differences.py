import doctest
import math

import pytest
import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from lbtrain.functional import finite_differences as module
from lbtrain.functional.density import density
from lbtrain.functional.finite_differences import FiniteDifferenceMatvec, finite_difference_matvec
from lbtrain.functional.hvp import MeanLoss
from lbtrain.functional.lanczos import lanczos
from lbtrain.functional.space import ShardedSpace
from tests.problems import LinearRegression, SmallNetwork, generator, leaf, matrix_with, quadratic

A = matrix_with([5.0, 2.0, *torch.linspace(-0.5, 0.9, 17).tolist(), -1.0])
BOTH = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


def normal(n, seed=0, dtype=torch.float64):
    return torch.randn(n, generator=generator(seed), dtype=torch.float64).to(dtype)


def size(v):
    return float(torch.linalg.vector_norm(v.double()))


def network(dtype):
    """Return products by differences, by double backward in float64 at the same weights, and the parameters."""
    rounded, exact = SmallNetwork(dtype), SmallNetwork()
    with torch.no_grad():
        for p, q in zip(exact.params, rounded.params, strict=True):
            p.copy_(q)
    exact.X = rounded.X.double()
    return finite_difference_matvec(rounded.loss(12).gradient, rounded.params), exact.loss(12), rounded.params


@BOTH
@pytest.mark.parametrize("length", [1.0, 1e-6, 1e4])
def test_a_quadratic_is_exact_up_to_rounding(dtype, length):
    w = leaf(normal(20), dtype)
    hvp = finite_difference_matvec(quadratic(A.to(dtype), w, normal(20, 1, dtype)).gradient, [w])
    v = length * normal(20, 2, dtype)
    off = size(hvp(v).double() - A @ v.double())
    assert off <= hvp.check(v) <= 100 * torch.finfo(dtype).eps ** (2 / 3) * size(v)


def test_a_cubic_has_no_truncation_error_at_any_step():
    w = leaf([1.0, -2.0, 0.5])
    hvp = finite_difference_matvec(lambda: w.detach() ** 2 / 2, [w], step=0.25)
    v = torch.tensor([1.0, 3.0, -2.0], dtype=torch.float64)
    torch.testing.assert_close(hvp(v), w.detach() * v, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("step", [0.5, 0.05])
def test_the_truncation_error_of_a_quartic_is_the_known_one(step):
    w = leaf([1.0, -2.0, 0.5])
    hvp = finite_difference_matvec(lambda: w.detach() ** 3 / 6, [w], step=step)
    v = torch.tensor([1.0, 3.0, -2.0], dtype=torch.float64)
    u = v / size(v)
    truncation = step**2 / 6 * u**3 * size(v)  # h^2 g'''[u, u, u] / 6, with g''' = 1
    torch.testing.assert_close(hvp(v) - w.detach() ** 2 / 2 * v, truncation, rtol=1e-9, atol=1e-13)
    # D(2h) - D(h) is three times that, and the bound is twice the disagreement.
    assert hvp.check(v) == pytest.approx(6 * size(truncation), rel=1e-9)
    assert math.isnan(hvp.step.error)
    assert hvp.step.length == step


def test_a_longer_vector_gives_a_longer_product_and_moves_the_weights_no_further():
    w, distances = leaf([1.0, -2.0, 0.5]), []
    start = w.detach().clone()

    def gradient():
        distances.append(size(w.detach() - start))
        return w.detach() ** 3 / 6

    hvp, v = finite_difference_matvec(gradient, [w], step=0.1), normal(3)
    torch.testing.assert_close(hvp(1e6 * v), 1e6 * hvp(v), rtol=1e-9, atol=0)
    assert distances == pytest.approx([0.1] * 4, rel=1e-9)


@BOTH
def test_the_reported_error_bounds_the_true_one_on_a_network(dtype):
    hvp, exact, params = network(dtype)
    H = torch.stack([exact(e) for e in torch.eye(exact.dim, dtype=torch.float64)])
    values, vectors = torch.linalg.eigh((H + H.T) / 2)
    gradient = exact.gradient()
    for v in (gradient, vectors[:, -1], vectors[:, 0], *(3 * normal(exact.dim, seed) for seed in range(4))):
        off = size(hvp(v.to(hvp.dtype)).double() - exact(v))
        bound = hvp.check(v.to(hvp.dtype))
        assert off <= bound
        assert bound <= 2 * hvp.step.error * size(v)  # the gradient's direction stands for the others
    assert size(hvp((gradient / size(gradient)).to(hvp.dtype)).double() - exact(gradient / size(gradient))) <= (
        hvp.step.error
    )
    # To half of the digits at least: central differences keep two thirds of them.
    assert hvp.step.error <= math.sqrt(torch.finfo(dtype).eps) * float(values[-1])
    assert all(p.dtype == dtype for p in params)


@BOTH
@pytest.mark.parametrize("sharpness", [1e-2, 1.0, 1e2])
def test_the_step_follows_the_scale_on_which_the_loss_bends(dtype, sharpness):
    """L = sum cos(s w) / s^2: the truncation error is (s h)^2 / 6, so that the best step goes with 1 / s."""
    w = leaf(normal(30), dtype)
    hvp = finite_difference_matvec(lambda: -torch.sin(sharpness * w.detach()) / sharpness, [w])
    v = normal(30, 1, dtype)
    truth = -torch.cos(sharpness * w.detach().double()) * v.double()
    assert size(hvp(v).double() - truth) <= hvp.check(v) <= 1e3 * torch.finfo(dtype).eps ** (2 / 3) * size(v)
    blunt = finite_difference_matvec(lambda: -torch.sin(w.detach()), [w])
    assert sharpness <= 1 or hvp.step.length < blunt.step.length


def test_half_precision_weights_are_measured_with_an_honest_error():
    hvp, exact, _ = network(torch.bfloat16)
    v = normal(exact.dim)
    assert size(hvp(v.float()).double() - exact(v)) <= hvp.check(v.float())
    assert hvp(v.float()).dtype == torch.float32
    assert hvp.step.length >= 0.1


def test_half_precision_in_many_dimensions_is_not_measured_as_flat():
    w = leaf(3 + 0.1 * normal(4000), torch.bfloat16)
    hvp = finite_difference_matvec(lambda: 2 * w.detach().float(), [w])
    v = normal(4000, 1, torch.float32)
    assert size(hvp(v) - 2 * v) <= hvp.check(v) <= 0.5 * size(2 * v)
    # Each weight would move by a thirtieth of its rounding, so that no gradient changes.
    lost = finite_difference_matvec(lambda: 2 * w.detach().float(), [w], step=0.03)
    assert size(lost(v)) == 0
    assert lost.check(v) == math.inf


def test_a_rounding_of_the_weights_that_is_alike_at_every_step_counts_as_error():
    w, rounding = leaf([1000.0], torch.float32), 2.0**-14
    # 8.1, 16.2 and 32.4 roundings become 8, 16 and 32: the three differences agree, and miss one part in 81.
    hvp = finite_difference_matvec(lambda: w.detach() - 1000, [w], step=16.2 * rounding)
    one = torch.ones(1)
    off = abs(float(hvp(one)) - 1)
    assert off == pytest.approx(1 / 81, rel=1e-4)
    assert off <= hvp.check(one) <= 1.01 * off


def test_a_bend_inside_the_step_shows_in_the_error():
    w = leaf([3.0])
    hvp = finite_difference_matvec(
        lambda: torch.where((w.detach() - 3).abs() < 0.07, 1, 2) * (w.detach() - 3), [w], step=0.1
    )
    one = torch.ones(1, dtype=torch.float64)
    assert hvp(one).tolist() == pytest.approx([2.0], rel=1e-9)
    assert hvp.check(one) == pytest.approx(2.0, rel=1e-9)  # H = 1, as the half step sees; twice the disagreement


def test_coarse_weights_are_given_a_step_that_they_can_follow():
    w = leaf(1e4 * (1 + normal(50).abs()), torch.float32)  # a rounding of 1e-3, about the usual step per weight
    hvp = finite_difference_matvec(lambda: 2 * w.detach(), [w])
    v = normal(50, 1, torch.float32)
    assert hvp.step.length > 4 * torch.finfo(torch.float32).eps ** (1 / 3)
    assert size(hvp(v) - 2 * v) <= hvp.check(v) <= 0.1 * size(v)


def test_noise_in_the_gradient_shows_in_the_error():
    w, noise = leaf(normal(20)), generator(3)
    hvp = finite_difference_matvec(lambda: A @ w.detach() + 1e-4 * torch.randn(20, generator=noise, dtype=w.dtype), [w])
    v = normal(20, 4)
    off = size(hvp(v) - A @ v)
    assert 1e-6 < off <= 2 * hvp.check(v)
    # A longer step drowns the noise.
    assert hvp.step.length > 10 * torch.finfo(torch.float64).eps ** (1 / 3)


@BOTH
def test_it_is_a_matvec_for_lanczos_and_density(dtype):
    hvp, exact, _ = network(dtype)
    truth = lanczos(exact, exact.dim, top_k=3, tol=1e-8, generator=generator(), dtype=torch.float64)
    found = lanczos(hvp, hvp.dim, top_k=3, generator=generator(), dtype=hvp.dtype, device=hvp.device)
    assert found.converged
    assert found.eigenvalues == pytest.approx(truth.eigenvalues, abs=max(found.residuals) + hvp.step.error)
    assert found.lambda_min == pytest.approx(truth.lambda_min, abs=found.lambda_min_residual + hvp.step.error)
    assert hvp.num_matvecs == found.num_matvecs
    spread = density(hvp, hvp.dim, num_probes=2, num_steps=20, generator=generator(), dtype=hvp.dtype)
    assert spread.lambda_max == pytest.approx(truth.lambda_max, rel=1e-3)


def test_flash_attention_has_products_though_it_has_no_second_derivative():
    w = leaf(normal(32, 5).view(2, 4, 4))
    tokens = normal(24, 6).view(1, 1, 6, 4)

    def loss(backend):
        def value():
            q, k = (tokens @ part for part in w)
            with sdpa_kernel(backend):
                return functional.scaled_dot_product_attention(q, k, tokens).square().mean()

        return MeanLoss([w], [value], [1.0])

    flash, exact, v = loss(SDPBackend.FLASH_ATTENTION), loss(SDPBackend.MATH), normal(32)
    with pytest.raises(RuntimeError, match="no second derivative"):
        flash(v)
    hvp = finite_difference_matvec(flash.gradient, flash.params)
    assert size(hvp(v) - exact(v)) <= hvp.check(v) <= 1e-6 * size(exact(v))


def test_a_function_that_double_backward_leaves_out_in_silence_is_measured():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**2 / 2

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, grad):
            return grad * ctx.saved_tensors[0]

    w = leaf([1.0, -2.0])
    loss = MeanLoss([w], [lambda: (Square.apply(w) * w).sum()], [1.0])
    hvp = finite_difference_matvec(loss.gradient, loss.params)
    torch.testing.assert_close(hvp(torch.ones(2)), 3 * w.detach(), rtol=1e-8, atol=0)  # L = w^3 / 2


def test_products_take_two_gradients_and_all_are_counted():
    problem = LinearRegression([4.0, 1.0, 0.25])
    loss = problem.loss(10)
    hvp = finite_difference_matvec(loss.gradient, loss.params)
    assert hvp.num_gradients == loss.num_gradients == hvp.step.num_gradients <= 2 * 24 + 1
    before = loss.num_gradients
    hvp(normal(loss.dim))
    assert (loss.num_gradients - before, hvp.num_matvecs) == (2, 1)
    hvp.check(normal(loss.dim))
    assert (loss.num_gradients - before, hvp.num_matvecs) == (8, 1)
    assert finite_difference_matvec(loss.gradient, loss.params, step=1e-4).num_gradients == 0


@BOTH
def test_the_weights_return_bit_for_bit(dtype):
    problem = SmallNetwork(dtype)
    before = [p.detach().clone() for p in problem.params]
    hvp = finite_difference_matvec(problem.loss(12).gradient, problem.params)
    hvp(normal(hvp.dim, 0, dtype))
    hvp.check(normal(hvp.dim, 1, dtype))
    assert all(torch.equal(p, saved) for p, saved in zip(problem.params, before, strict=True))
    assert all(p.grad is None and p.requires_grad for p in problem.params)


@pytest.mark.parametrize("fails_at", [1, 2])
def test_the_weights_return_when_a_gradient_fails(fails_at):
    w, calls = leaf([0.1, 0.2, 0.3]), []

    def gradient():
        calls.append(w.detach().clone())
        if len(calls) == fails_at:
            raise RuntimeError("out of memory")
        return w.detach()

    before = w.detach().clone()
    with pytest.raises(RuntimeError, match="out of memory"):
        finite_difference_matvec(gradient, [w], step=0.1)(torch.ones(3, dtype=torch.float64))
    assert torch.equal(w.detach(), before)
    assert not torch.equal(calls[-1], before)


def test_both_sides_start_from_the_same_weights_when_the_gradient_is_a_view_of_them():
    w = leaf([1.0, 2.0])
    hvp = finite_difference_matvec(lambda: w.detach(), [w])
    torch.testing.assert_close(hvp(torch.ones(2).double()), torch.ones(2).double(), rtol=1e-9, atol=0)


def test_a_zero_vector_costs_nothing_and_one_that_is_not_finite_moves_nothing():
    w = leaf([1.0, 2.0])
    hvp = finite_difference_matvec(lambda: w.detach() ** 3, [w], step=1e-3)
    assert hvp(torch.zeros(2)).tolist() == [0.0, 0.0]
    assert bool(hvp(torch.tensor([math.nan, 1.0])).isnan().all())
    assert bool(hvp(torch.tensor([math.inf, 1.0])).isnan().all())
    assert (hvp.check(torch.zeros(2)), math.isnan(hvp.check(torch.tensor([math.inf, 1.0])))) == (0.0, True)
    assert hvp.num_gradients == 0


def test_at_a_critical_point_a_fixed_random_direction_chooses_the_step():
    w = leaf(torch.zeros(20))
    loss = MeanLoss([w], [lambda: 0.5 * w @ (A @ w) + (w**4).sum()], [1.0])
    first, second = (finite_difference_matvec(loss.gradient, [w]) for _ in range(2))
    assert first.step == second.step
    v = normal(20)
    assert size(first(v) - A @ v) <= first.check(v) < 1e-6 * size(v)


def test_a_flat_loss_has_products_of_zero_and_a_step_no_longer_than_the_weights():
    w = leaf([3.0, 4.0])
    hvp = finite_difference_matvec(lambda: torch.ones(2, dtype=torch.float64), [w])
    assert hvp(torch.ones(2)).tolist() == [0.0, 0.0]
    assert hvp.step.length <= 5.0
    assert 0 < hvp.step.error < 1e-12


def test_a_gradient_that_is_not_finite_gives_nan_and_ends():
    w = leaf([1.0, 2.0])
    hvp = finite_difference_matvec(lambda: w.detach() * math.nan, [w])
    assert math.isnan(hvp.step.error)
    assert hvp.num_gradients == 1
    assert bool(hvp(torch.ones(2)).isnan().all())
    assert hvp.check(torch.ones(2)) == math.inf


def test_a_step_into_overflow_is_not_taken():
    w = leaf([1.0, 2.0])
    edge = 1e-5  # beyond it the gradient overflows

    def gradient():
        away = (w.detach() - torch.tensor([1.0, 2.0], dtype=w.dtype)).abs().max()
        return w.detach() ** 3 if away < edge else w.detach() * math.inf

    hvp = finite_difference_matvec(gradient, [w])
    assert hvp.step.length < edge
    v = torch.tensor([1.0, 1.0], dtype=torch.float64)
    assert size(hvp(v) - 3 * w.detach() ** 2 * v) <= hvp.check(v) < 1e-6


def test_a_direction_of_the_callers_choice_is_checked():
    w = leaf([1.0, 2.0])
    hvp = finite_difference_matvec(lambda: torch.sin(w.detach() * torch.tensor([1.0, 300.0]).double()), [w])
    blunt = hvp.choose_step(torch.tensor([1.0, 0.0]))
    sharp = hvp.choose_step(torch.tensor([0.0, 1.0]))
    assert sharp.length < blunt.length
    assert hvp.step == sharp
    with pytest.raises(ValueError, match="direction must not be zero"):
        hvp.choose_step(torch.zeros(2))


def test_parts_of_sharded_weights_move_as_the_whole_does():
    """Two parts of one loss, as two processes would hold them: the norm over both makes the same step and product."""
    parts = [leaf(normal(3, 1)), leaf(normal(5, 2))]
    whole = [leaf(torch.cat([p.detach() for p in parts]))]
    vectors = [normal(3, 3), normal(5, 4)]

    def sine(params):
        return lambda: torch.cat([torch.sin(p.detach()) for p in params])

    expected = finite_difference_matvec(sine(whole), whole, step=0.2)(torch.cat(vectors))
    total = size(torch.cat(vectors)) ** 2
    found = [
        finite_difference_matvec(sine([p]), [p], step=0.2, space=ShardedSpace([1], lambda x, t=total: x * 0 + t))(v)
        for p, v in zip(parts, vectors, strict=True)
    ]
    torch.testing.assert_close(torch.cat(found), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("step", [0.0, -1.0, math.nan, math.inf])
def test_a_step_that_is_none_is_refused(step):
    with pytest.raises(ValueError, match="step must be positive and finite"):
        finite_difference_matvec(lambda: torch.ones(2), [leaf([1.0, 2.0])], step=step)


def test_arguments_are_checked():
    w = leaf([1.0, 2.0])
    with pytest.raises(ValueError, match="params must be one or more tensors, got none"):
        finite_difference_matvec(lambda: torch.ones(2), [])
    with pytest.raises(ValueError, match=r"gradient must return shape \(2,\), .* got \(3,\)"):
        finite_difference_matvec(lambda: torch.ones(3), [w])
    with pytest.raises(ValueError, match=r"vector must have shape \(2,\)"):
        FiniteDifferenceMatvec(lambda: torch.ones(2), [w])(torch.ones(3))


def test_the_example_runs():
    assert doctest.testmod(module) == (0, 3)
