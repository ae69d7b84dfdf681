import math

import pytest
import torch

from lbtrain.functional.hvp import MeanLoss
from lbtrain.functional.scaled_hessian import scaled_spectrum
from lbtrain.functional.weight_scale import weight_scale
from tests.problems import SmallNetwork, descending, generator, leaf, matrix_with, quadratic
from tests.relu_network import ReluNetwork

W = torch.tensor([0.5, -2.0, 0.0, 3.0], dtype=torch.float64)
A = matrix_with([4.0, 1.0, 0.3, -2.0])


@pytest.mark.parametrize("scale", [None, torch.tensor([1.0, 0.2, 3.0, 0.0])])
def test_of_a_quadratic_is_that_of_the_scaled_matrix(scale):
    w = leaf(W)
    found = scaled_spectrum(quadratic(A, w), scale=scale, top_k=2, tol=1e-8, generator=generator())
    c = W.abs() if scale is None else scale.double()
    exact = descending(torch.linalg.eigvalsh(c[:, None] * A * c))
    assert found.eigenvalues == pytest.approx(exact[:2], abs=1e-7)
    assert found.lambda_min == pytest.approx(exact[-1], abs=1e-7)
    assert max(found.residuals) < 1e-6


def test_of_a_small_network_is_that_of_the_dense_matrix_and_costs_few_products():
    problem = SmallNetwork()
    loss, c = problem.loss(7), weight_scale(problem.params)
    found = scaled_spectrum(loss, top_k=3, tol=1e-6, generator=generator(), keep_vectors=True)
    M = c[:, None] * problem.dense_hessian() * c
    assert found.eigenvalues == pytest.approx(descending(torch.linalg.eigvalsh(M))[:3], abs=1e-6)
    v = found.vectors[:, 0]
    assert float((M @ v - found.lambda_max * v).norm()) <= 2 * found.lambda_max_residual + 1e-9
    assert found.converged
    assert found.num_matvecs == loss.num_matvecs < 59


def test_is_blind_to_a_rescaling_of_relu_layers_and_the_hessian_is_not():
    before, after = ReluNetwork().loss(), ReluNetwork(torch.tensor([3.0, 0.1, 7.0, 1.5])).loss()
    values = [scaled_spectrum(x, tol=1e-8, generator=generator()).lambda_max for x in (before, after)]
    ones = torch.ones(20)
    plain = [scaled_spectrum(x, scale=ones, tol=1e-8, generator=generator()).lambda_max for x in (before, after)]
    assert values[1] == pytest.approx(values[0], rel=1e-6)
    assert plain[1] > 2 * plain[0]


def test_scales_with_the_loss():
    one, small = (scaled_spectrum(ReluNetwork(height=h).loss(), generator=generator()) for h in (1.0, 1e-4))
    assert small.lambda_max == pytest.approx(1e-4 * one.lambda_max, rel=1e-9)
    assert small.num_matvecs == one.num_matvecs


def test_of_weights_that_are_all_zero_is_zero():
    w = leaf(torch.zeros(4))
    found = scaled_spectrum(quadratic(A, w), generator=generator())
    assert (found.lambda_max, found.lambda_min, found.lambda_max_residual) == (0.0, 0.0, 0.0)


def test_weights_that_are_not_finite_give_nan():
    w = leaf([1.0, math.nan])
    found = scaled_spectrum(MeanLoss([w], [lambda: (w**2).sum()], [1.0]), generator=generator())
    assert math.isnan(found.lambda_max)
    assert not found.converged


def test_a_known_eigenvector_saves_products_and_the_weights_do_not_move():
    problem = SmallNetwork(torch.float32)
    loss, before = problem.loss(30), [p.detach().clone() for p in problem.params]
    options = {"tol": 1e-3, "smallest": False}
    cold = scaled_spectrum(loss, generator=generator(), keep_vectors=True, **options)
    warm = scaled_spectrum(loss, generator=generator(), start=cold.vectors[:, 0], **options)
    assert warm.num_matvecs < cold.num_matvecs
    assert warm.lambda_max == pytest.approx(cold.lambda_max, rel=2e-3)
    assert all(torch.equal(p, q) for p, q in zip(problem.params, before, strict=True))


def test_the_smallest_eigenvalue_costs_products_of_its_own_unless_it_may_stay_rough():
    rough, exact = (
        scaled_spectrum(SmallNetwork().loss(30), smallest=smallest, generator=generator()) for smallest in (False, True)
    )
    assert rough.num_matvecs < exact.num_matvecs
    assert exact.lambda_min_residual <= 1e-3 * exact.lambda_max < rough.lambda_min_residual


def test_a_scale_that_does_not_fit_is_refused():
    w = leaf(W)
    with pytest.raises(ValueError, match="one entry per parameter"):
        scaled_spectrum(quadratic(A, w), scale=torch.ones(5), generator=generator())
