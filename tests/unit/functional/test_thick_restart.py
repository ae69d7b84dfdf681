import pytest
import torch

from lbtrain.functional._krylov import KrylovBasis
from lbtrain.functional.lanczos import lanczos
from tests.problems import generator, matrix_with

BULK = torch.linspace(-0.5, 0.9, 150).tolist()
ROW = 8  # bytes of an entry


def spectrum(A, rows=None, top_k=1, seed=0, **options):
    memory = None if rows is None else rows * ROW * len(A)
    options = {"generator": generator(seed), "dtype": torch.float64, "max_matvecs": 2000} | options
    return lanczos(lambda v: A @ v, len(A), top_k=top_k, memory_bytes=memory, **options)


def rows_of(basis):
    return basis.vectors(torch.eye(basis.rows, dtype=torch.float64)).T


def assert_true_of_the_matrix(basis, A):
    """Rows are orthonormal, the projection is theirs, and nothing but the ends leads out of them."""
    Q = rows_of(basis)
    torch.testing.assert_close(Q @ Q.T, torch.eye(basis.rows, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(basis.projected(), Q @ A @ Q.T, rtol=0, atol=1e-11)
    ritz = basis.ritz()
    X = Q.T @ ritz.coefficients
    residuals = (A @ X - X * ritz.values).norm(dim=0)
    assert bool((residuals <= ritz.bounds + 1e-11).all())
    return residuals, ritz.bounds


def test_a_compressed_basis_still_knows_what_it_knew():
    A, basis = matrix_with([5.0, 4.0, 4.0, *BULK, -2.0]), KrylovBasis(154, 20, torch.float64, "cpu")
    basis.begin(torch.randn(154, generator=generator(), dtype=torch.float64))
    for _ in range(4):
        while not basis.full:
            basis.step(lambda v: A @ v)
        before = basis.ritz()
        basis.compress(before.coefficients[:, [0, 1, -4, -3, -2, -1]])
        assert basis.alphas == basis.betas == []  # no tridiagonal matrix, so no count of steps, from here on
        assert basis.ritz().values.tolist() == pytest.approx(before.values[[0, 1, -4, -3, -2, -1]].tolist(), abs=1e-12)
        residuals, bounds = assert_true_of_the_matrix(basis, A)
        # One sweep has one end, so that its bounds are the residuals themselves.
        torch.testing.assert_close(residuals, bounds, rtol=1e-6, atol=1e-10)
        basis.step(lambda v: A @ v)
        assert_true_of_the_matrix(basis, A)
        assert basis.alphas == []


def test_ends_of_several_sweeps_pass_through_a_compression_and_are_taken_afterwards():
    A, basis, source = (
        matrix_with([5.0, 4.0, 4.0, *BULK, -2.0]),
        KrylovBasis(154, 60, torch.float64, "cpu"),
        generator(),
    )
    for _ in range(3):
        basis.begin(torch.randn(154, generator=source, dtype=torch.float64))
        for _ in range(6):
            basis.step(lambda v: A @ v)
    basis.compress(basis.ritz().coefficients[:, -5:])
    assert_true_of_the_matrix(basis, A)
    for _ in range(3):
        before = float(basis.ritz().bounds[-1])
        basis.begin(basis.take_end(basis.ritz().coefficients[:, -1:]))
        basis.step(lambda v: A @ v)
        assert_true_of_the_matrix(basis, A)
    assert float(basis.ritz().bounds[-1]) < before


MATRICES = {
    "spread": [5.0, 4.0, 3.0, 2.5, 2.0, *BULK, -2.0],
    "clustered": [3.0, 2.99, 2.98, 2.97, 2.96, *BULK, -0.6, -0.61],
    "repeated": [5.0, 5.0, 5.0, 4.0, 4.0, 1.5, *BULK, -1.0, -1.0],
    "negative": [-0.1, *[-1.0 - x for x in BULK]],
    "low rank": [2.0, 1.0, *([0.0] * 100), -1.0],
}


@pytest.mark.parametrize("rows", [10, 13, 25])
@pytest.mark.parametrize("values", MATRICES.values(), ids=MATRICES)
def test_the_same_eigenvalues_as_without_a_limit(values, rows):
    A, tol = matrix_with(values), 1e-6
    scale = max(abs(x) for x in values)
    free, tight = spectrum(A, top_k=5, tol=tol), spectrum(A, rows, top_k=5, tol=tol)
    assert free.converged
    assert tight.converged
    assert free.num_restarts == 0
    truth = sorted(values, reverse=True)
    for found in (free, tight):
        assert found.eigenvalues == pytest.approx(truth[:5], abs=3 * tol * scale)
        assert found.lambda_min == pytest.approx(truth[-1], abs=3 * tol * scale)
    assert tight.num_restarts > 0 or free.num_matvecs <= rows + 1


@pytest.mark.parametrize("seed", range(8))
def test_repeated_eigenvalues_are_found_in_little_memory(seed):
    values = [5.0, 5.0, 4.0, 4.0, 4.0, 1.5, *BULK]
    found = spectrum(matrix_with(values, seed=seed), 11, top_k=5, seed=seed, smallest=False)
    assert found.converged
    assert found.eigenvalues == pytest.approx(values[:5], abs=5e-3)
    assert found.num_restarts > 0


def test_the_basis_never_holds_more_than_the_memory(monkeypatch):
    sizes, begin = [], KrylovBasis.step

    def step(self, matvec):
        done = begin(self, matvec)
        sizes.append((self.rows, self._buffer.nbytes))
        return done

    monkeypatch.setattr(KrylovBasis, "step", step)
    A = matrix_with(MATRICES["spread"])
    assert spectrum(A, 12, top_k=3, tol=1e-8).converged
    assert max(rows for rows, _ in sizes) == 12
    assert {size for _, size in sizes} == {12 * ROW * len(A)}


def test_vectors_survive_a_restart():
    values = MATRICES["repeated"]
    A = matrix_with(values)
    found = spectrum(A, 12, top_k=4, tol=1e-8, keep_vectors=True)
    assert found.num_restarts > 1
    X, low = found.vectors, found.min_vector
    torch.testing.assert_close(X.T @ X, torch.eye(4, dtype=X.dtype), rtol=0, atol=1e-10)
    torch.testing.assert_close(A @ X, X * torch.tensor(found.eigenvalues), rtol=0, atol=1e-6)
    assert float(low.norm()) == pytest.approx(1.0, abs=1e-10)
    assert float((A @ low - found.lambda_min * low).norm()) <= 1e-6


def test_vectors_survive_where_only_the_search_for_repeats_needs_room():
    A = matrix_with([5.0, 4.0, 3.0, *BULK, -2.0])
    found = spectrum(A, 20, top_k=3, tol=1e-5, keep_vectors=True)
    assert found.num_restarts == 1
    torch.testing.assert_close(A @ found.vectors, found.vectors * torch.tensor(found.eigenvalues), rtol=0, atol=1e-3)
    low = found.min_vector
    assert float(low.norm()) == pytest.approx(1.0, abs=1e-10)
    assert float((A @ low - found.lambda_min * low).norm()) <= found.lambda_min_residual + 1e-10


def test_single_precision_stays_orthogonal_over_many_restarts():
    A = matrix_with(MATRICES["clustered"]).float()
    found = lanczos(
        lambda v: A @ v, len(A), top_k=3, tol=1e-4, memory_bytes=9 * 4 * len(A), max_matvecs=900, generator=generator()
    )
    assert found.converged
    assert found.num_restarts > 5
    assert found.eigenvalues == pytest.approx([3.0, 2.99, 2.98], abs=1e-4)


def test_too_little_memory_is_refused_with_what_would_do():
    A = matrix_with(MATRICES["spread"])
    n = len(A)
    with pytest.raises(ValueError, match=f"memory_bytes must be at least {8 * n * ROW}, 8 vectors of {n * ROW} bytes"):
        spectrum(A, 7, top_k=3)
    assert spectrum(A, 8, top_k=3).converged
