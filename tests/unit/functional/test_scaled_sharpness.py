import math

import pytest
import torch

from lbtrain.functional.hvp import MeanLoss
from lbtrain.functional.scaled_sharpness import scaled_sharpness
from tests.problems import generator, leaf, matrix_with, split_quadratic

W = torch.tensor([0.5, -2.0, 0.0, 3.0], dtype=torch.float64)


@pytest.mark.parametrize("scale", [None, torch.tensor([1.0, 0.2, 3.0, 0.0])])
def test_value_residual_and_error_bar_of_a_quadratic(scale):
    A, w, shares = matrix_with([4.0, 1.0, 0.3, -2.0]), leaf(W), [0.5, 0.3, 0.2]
    loss = split_quadratic(A, w, shares)
    found = scaled_sharpness(loss, scale=scale, tol=1e-10, generator=generator())
    c = W.abs() if scale is None else scale.double()
    values, vectors = torch.linalg.eigh(c[:, None] * A * c)
    assert found.value == pytest.approx(float(values[-1]), rel=1e-9)
    assert found.residual < 1e-8
    # The curvature of each batch along the eigenvector, from its own dense matrix.
    x = c * vectors[:, -1]
    along = [float(x @ torch.func.hessian(lambda v, f=f: of(f, w, v))(w.detach()) @ x) for f in loss.losses]
    mean = sum(s * a for s, a in zip(shares, along, strict=True))
    exact = math.sqrt(1.5 * sum(s**2 * (a - mean) ** 2 for s, a in zip(shares, along, strict=True)))
    assert mean == pytest.approx(float(values[-1]), rel=1e-9)
    assert found.stderr == pytest.approx(exact, rel=1e-6)
    assert found.converged


def of(function, w, v):
    """Return a batch's quadratic at another point, from its default argument."""
    (M,) = function.__defaults__
    return 0.5 * v @ M @ v


def test_the_cost_is_that_of_the_search_and_one_product_for_the_error_bar():
    w = leaf(W)
    loss = split_quadratic(matrix_with([4.0, 1.0, 0.3, -2.0]), w, [0.5, 0.5])
    loss.hvp(W)
    found = scaled_sharpness(loss, generator=generator())
    assert found.num_matvecs == loss.num_matvecs - 1
    assert torch.equal(w, W)


def test_a_diverged_run_is_nan():
    w = leaf(W)
    found = scaled_sharpness(MeanLoss([w], [lambda: (w**2).sum() * math.nan], [1.0]), generator=generator())
    assert math.isnan(found.value)
    assert math.isnan(found.stderr)
    assert not found.converged
