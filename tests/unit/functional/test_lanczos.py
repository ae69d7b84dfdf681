import math

import pytest
import torch

from lbtrain.functional.hvp import MeanLoss
from lbtrain.functional.lanczos import lanczos
from tests.problems import LinearRegression, SoftmaxRegression, generator, leaf, matrix_with, rotation

BULK = torch.linspace(-0.5, 0.9, 150).tolist()


def spectrum(A, top_k=1, seed=0, **options):
    options.setdefault("dtype", torch.float64)
    A = A.to(options["dtype"])
    return lanczos(lambda v: A @ v, A.shape[0], top_k=top_k, generator=generator(seed), **options)


def of_loss(loss, top_k, **options):
    return lanczos(loss, loss.dim, top_k=top_k, generator=generator(1), dtype=torch.float64, **options)


@pytest.mark.parametrize("tol", [1e-2, 1e-4, 1e-8])
def test_both_ends_within_their_residuals(tol):
    found = spectrum(matrix_with([5.0, 4.0, 3.0, *BULK, -2.0]), top_k=3, tol=tol)
    assert found.converged
    assert all(r <= 2 * tol * 5 for r in (*found.residuals, found.lambda_min_residual))
    for value, truth, residual in zip(found.eigenvalues, (5, 4, 3), found.residuals, strict=True):
        assert abs(value - truth) <= residual + 1e-12
    assert abs(found.lambda_min + 2) <= found.lambda_min_residual + 1e-12
    assert found.lambda_max == found.eigenvalues[0] <= 5 + 1e-12
    assert found.lambda_max_residual == found.residuals[0]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("repeats", [1, 2, 5])
def test_repeated_eigenvalues_are_all_found(seed, repeats):
    values = sorted([5.0] * repeats + [4.0] * repeats + [1.5] * 3, reverse=True)
    found = spectrum(matrix_with([*values, *BULK], seed=seed), top_k=5, seed=seed)
    assert found.converged
    assert found.eigenvalues == pytest.approx(values[:5], abs=5e-3)


@pytest.mark.parametrize("seed", range(5))
def test_a_repeated_kth_eigenvalue_and_a_close_one_below(seed):
    found = spectrum(matrix_with([3.0, 2.0, 2.0, 2.0, 1.99, *BULK], seed=seed), top_k=4, seed=seed, tol=1e-3)
    assert found.eigenvalues == pytest.approx([3.0, 2.0, 2.0, 2.0], abs=3e-3)
    assert found.converged


def test_top_one_needs_no_search_for_repeats():
    A = matrix_with([5.0, 5.0, *BULK])
    assert spectrum(A, top_k=1).num_matvecs < spectrum(A, top_k=2).num_matvecs
    assert spectrum(A, top_k=1).eigenvalues == pytest.approx((5.0,), abs=5e-3)


def test_linear_regression_with_repeated_and_zero_eigenvalues():
    problem = LinearRegression([4.0, 1.0, 1.0, 0.25, 0.0], outputs=3)
    found = of_loss(problem.loss(10), 8, tol=1e-9)
    assert found.eigenvalues == pytest.approx(problem.spectrum[:8], abs=1e-8)
    assert found.lambda_min == pytest.approx(0.0, abs=1e-8)


def test_softmax_regression_at_zero_weights():
    problem = SoftmaxRegression()
    found = of_loss(problem.loss(), 10, tol=1e-9)
    assert found.eigenvalues == pytest.approx(problem.spectrum[:10], abs=1e-8)
    assert found.lambda_min == pytest.approx(0.0, abs=1e-8)


def test_a_saddle_of_plus_and_minus_one():
    w = leaf([0.0, 0.0])
    found = of_loss(MeanLoss([w], [lambda: 0.5 * (w[0] * w[1] - 1) ** 2], [1.0]), 1)
    assert (found.lambda_max, found.lambda_min) == pytest.approx((1.0, -1.0), abs=1e-12)
    assert found.num_matvecs <= 3


def test_rank_one_of_a_deep_linear_chain():
    w = leaf([0.5, 2.0, 1.5, 2.0])  # product 3 = y, so that the residual and its curvature vanish
    found = of_loss(MeanLoss([w], [lambda: 0.5 * (w.prod() - 3) ** 2], [1.0]), 2)
    assert found.eigenvalues == pytest.approx((sum((3 / x) ** 2 for x in w.tolist()), 0.0), abs=1e-9)
    assert found.lambda_min == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(("dim", "top_k"), [(1, 1), (20, 1), (20, 5), (5, 5)])
@pytest.mark.parametrize("value", [0.0, 1.0, -2.0])
def test_multiples_of_the_identity(value, dim, top_k):
    found = spectrum(value * torch.eye(dim, dtype=torch.float64), top_k=top_k)
    assert found.eigenvalues == pytest.approx([value] * top_k, abs=1e-12)
    assert found.lambda_min == pytest.approx(value, abs=1e-12)
    assert found.converged


def test_the_whole_spectrum_of_a_small_matrix():
    found = spectrum(matrix_with([3.0, 1.0, 1.0, -2.0]), top_k=4)
    assert found.eigenvalues == pytest.approx([3.0, 1.0, 1.0, -2.0], abs=1e-10)
    assert found.lambda_min == pytest.approx(-2.0, abs=1e-10)


@pytest.mark.parametrize("factor", [1e-4, 1e6])
def test_scaling_the_loss_scales_everything_else_alike(factor):
    A = matrix_with([5.0, 5.0, 3.0, *BULK])
    plain, scaled = spectrum(A, top_k=3), spectrum(factor * A, top_k=3)
    assert scaled.eigenvalues == pytest.approx([factor * x for x in plain.eigenvalues], rel=1e-9)
    assert scaled.num_matvecs == plain.num_matvecs


def test_float32_reaches_float32_accuracy():
    found = spectrum(matrix_with([5.0, 5.0, 4.0, *BULK]), top_k=3, dtype=torch.float32)
    assert found.converged
    assert found.eigenvalues == pytest.approx([5.0, 5.0, 4.0], rel=1e-5)


def test_products_are_counted_and_the_budget_holds():
    A, calls = matrix_with([5.0, 4.0, 3.0, *BULK]), []
    for budget in (4, 5, 12, 300):
        calls.clear()
        found = lanczos(
            lambda v: (calls.append(0), A @ v)[1],
            A.shape[0],
            top_k=3,
            max_matvecs=budget,
            generator=generator(),
            dtype=torch.float64,
        )
        assert found.num_matvecs == len(calls) <= budget
        assert found.converged == (budget == 300)
        # An unconverged value is still near some eigenvalue, as near as its residual says.
        truth = torch.tensor([5.0, 4.0, 3.0, *BULK], dtype=torch.float64)
        for value, residual in zip(found.eigenvalues, found.residuals, strict=True):
            assert float((truth - value).abs().min()) <= residual + 1e-12


def test_noise_in_the_products_shows_in_the_residual():
    A, noise = matrix_with([5.0, 4.0, *BULK]), generator(5)
    found = lanczos(
        lambda v: A @ v + 0.01 * torch.randn(v.shape, generator=noise, dtype=v.dtype),
        A.shape[0],
        generator=generator(),
        dtype=torch.float64,
    )
    assert found.lambda_max_residual > 0.05  # 0.01 sqrt(152) = 0.12
    assert not found.converged


@pytest.mark.parametrize(("size", "converged"), [(0.002, True), (0.006, False)])
def test_converged_means_that_noise_too_is_within_the_tolerance(size, converged):
    A, noise = matrix_with([5.0, 4.0, *BULK]), generator(5)
    found = lanczos(
        lambda v: A @ v + size * torch.randn(v.shape, generator=noise, dtype=v.dtype),
        A.shape[0],
        tol=0.01,
        generator=generator(),
        dtype=torch.float64,
    )
    assert found.lambda_max_residual < 2 * 0.01 * 5  # noise of 0.002 sqrt(152) = 0.025, and 0.074
    assert (found.lambda_max_residual <= 0.01 * found.lambda_max) == found.converged == converged


def test_vectors_are_eigenvectors():
    A = matrix_with([5.0, 5.0, 3.0, *BULK])
    found = spectrum(A, top_k=3, tol=1e-8, keep_vectors=True)
    X = found.vectors
    torch.testing.assert_close(X.T @ X, torch.eye(3, dtype=X.dtype), rtol=0, atol=1e-12)
    torch.testing.assert_close(A @ X, X * torch.tensor(found.eigenvalues), rtol=0, atol=1e-6)
    assert spectrum(A).vectors is None


def test_a_good_start_saves_products_and_an_invariant_one_does_not_mislead():
    A = matrix_with([5.0, 4.9, *BULK])
    cold = spectrum(A, keep_vectors=True, tol=1e-6, smallest=False)
    warm = spectrum(A, start=cold.vectors[:, 0], tol=1e-6, smallest=False)
    assert warm.num_matvecs < cold.num_matvecs
    exact = rotation(60, 0)[:, 3]  # an eigenvector of 1.0, so that the first sweep ends after one product
    found = spectrum(matrix_with([7.0, 6.0, 2.0, 1.0, *([0.5] * 55), -1.0]), start=exact)
    assert (found.lambda_max, found.lambda_min) == pytest.approx((7.0, -1.0), abs=1e-2)


def test_without_the_smallest_it_is_cheaper_and_says_so():
    A = matrix_with([5.0, *BULK])
    both, top = spectrum(A), spectrum(A, smallest=False)
    assert top.num_matvecs < both.num_matvecs
    assert top.lambda_min_residual > 1e-3 * 5
    assert top.lambda_max == pytest.approx(5.0, abs=5e-3)


def test_a_diverged_network_gives_nan_and_ends():
    found = lanczos(lambda v: v * math.nan, 10, top_k=2, generator=generator())
    assert all(math.isnan(x) for x in (*found.eigenvalues, *found.residuals, found.lambda_min))
    assert (found.converged, found.num_matvecs) == (False, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 5}, "top_k = 5 and dim = 3"),
        ({"top_k": 0}, "top_k = 0"),
        ({"top_k": 2, "max_matvecs": 2}, "max_matvecs = 2 and top_k = 2"),
        ({"tol": 0.0}, "tol must be positive, got 0.0"),
        ({"start": torch.zeros(3)}, "nonzero vector"),
        ({"start": torch.ones(4)}, r"got shape \(4,\)"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        lanczos(lambda v: v, 3, generator=generator(), **options)


def test_a_matvec_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"matvec must return shape \(3,\)"):
        lanczos(lambda v: v[:2], 3, generator=generator())
