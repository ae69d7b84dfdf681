"""What a Lanczos run gives beside the eigenvalues, and how it is watched, warmed up and interrupted."""

import doctest
import importlib
import math

import pytest
import torch

from lbtrain.functional.interruption import Interrupted
from lbtrain.functional.lanczos import lanczos
from tests.problems import SmallNetwork, generator, matrix_with

BULK = torch.linspace(-0.5, 0.9, 150).tolist()
VALUES = [5.0, 4.0, 3.0, *BULK, -2.0]
MIXED = matrix_with(VALUES)


def spectrum(A, top_k=1, seed=0, **options):
    options = {"generator": generator(seed), "dtype": torch.float64} | options
    return lanczos(lambda v: A @ v, A.shape[0], top_k=top_k, **options)


def stopped_after(count, A=MIXED, top_k=2, **options):
    """Run until the user asks to stop at the product after ``count`` ones."""
    calls = []

    def matvec(v):
        if len(calls) == count:
            raise Interrupted
        calls.append(0)
        return A @ v

    return lanczos(matvec, len(A), top_k=top_k, generator=generator(), dtype=torch.float64, **options)


def moved(A, share, seed=3):
    """Return the matrix moved by a random symmetric one, ``share`` of its norm."""
    E = torch.randn(A.shape, generator=generator(seed), dtype=torch.float64)
    E = E + E.T
    return A + share * E * float(torch.linalg.matrix_norm(A, 2) / torch.linalg.matrix_norm(E, 2))


# -- the last product


@pytest.mark.parametrize("most", [2, 6, 300])
def test_an_eigenvalue_that_is_not_confirmed_is_the_same_for_a_product_less(most):
    confirmed = spectrum(MIXED, tol=1e-2, max_matvecs=most + 1, keep_vectors=True)
    found = spectrum(MIXED, tol=1e-2, max_matvecs=most, keep_vectors=True, confirm=False)
    assert found.eigenvalues == confirmed.eigenvalues
    assert torch.equal(found.vectors, confirmed.vectors)
    assert found.num_matvecs == confirmed.num_matvecs - 1 <= most
    # In exact products the measured residual is the bound of the projected problem.
    assert found.residuals == pytest.approx(confirmed.residuals, rel=1e-6)


# -- trace


@pytest.mark.parametrize("memory_bytes", [None, 8 * 154 * 9], ids=["free", "restarted"])
def test_trace_and_frobenius_norm_are_unbiased_with_the_error_they_claim(memory_bytes):
    rows = []
    for seed in range(200):
        found = spectrum(MIXED, 2, seed, trace_probes=4, memory_bytes=memory_bytes, tol=0.1).trace
        rows.append((found.value, found.stderr, found.frobenius_squared, found.frobenius_squared_stderr))
    value, stderr, square, square_stderr = torch.tensor(rows, dtype=torch.float64).T
    for samples, claimed, truth in ((value, stderr, MIXED.trace()), (square, square_stderr, (MIXED**2).sum())):
        assert abs(float(samples.mean() - truth)) <= 4 * float(samples.std()) / math.sqrt(200)
        # Each claim is from 4 samples and varies by sqrt(2 / 3) of itself: 200 of them give 4 standard errors of 23 %.
        assert float((claimed**2).mean()) == pytest.approx(float(samples.var()), rel=0.4)


def test_the_variance_is_that_of_what_lies_outside_the_basis():
    plain = 2 * float((MIXED**2).sum() - (MIXED.diagonal() ** 2).sum())
    found = spectrum(MIXED, 3, trace_probes=400, max_matvecs=500)
    assert 400 * found.trace.stderr**2 < 0.7 * plain
    assert found.trace.value == pytest.approx(sum(VALUES), abs=4 * found.trace.stderr)
    assert (found.trace.method, found.trace.num_matvecs) == ("lanczos", 400)


def test_the_norm_counts_what_couples_the_basis_to_its_complement():
    A = matrix_with([5.0, -4.0, 3.0, -2.0, *torch.linspace(-1, 1, 8).tolist()])
    found = spectrum(A, max_matvecs=3, trace_probes=1500).trace
    truth = float((A**2).sum())
    assert found.frobenius_squared == pytest.approx(truth, abs=4 * found.frobenius_squared_stderr)
    assert found.frobenius_squared_stderr < 0.02 * truth
    assert found.value == pytest.approx(float(A.trace()), abs=4 * found.stderr)


def test_a_rank_within_the_basis_leaves_nothing_to_estimate():
    found = spectrum(matrix_with([3.0, 2.0, -1.0, *([0.0] * 40)]), 2, trace_probes=5).trace
    assert (found.value, found.frobenius_squared) == pytest.approx((4.0, 14.0), abs=1e-9)
    assert found.stderr < 1e-9
    assert found.frobenius_squared_stderr < 1e-9


def test_a_basis_of_the_whole_space_needs_no_probes():
    found = spectrum(matrix_with([3.0, 1.0, 1.0, -2.0]), 4, trace_probes=5)
    trace = found.trace
    assert (trace.value, trace.frobenius_squared) == pytest.approx((3.0, 15.0), abs=1e-10)
    assert (trace.stderr, trace.frobenius_squared_stderr, trace.num_matvecs) == (0.0, 0.0, 0)


def test_one_probe_has_no_error_bar_and_none_no_trace():
    one = spectrum(MIXED, trace_probes=1)
    assert math.isnan(one.trace.stderr)
    assert math.isnan(one.trace.frobenius_squared_stderr)
    assert spectrum(MIXED).trace is None
    assert one.num_matvecs == spectrum(MIXED).num_matvecs + 1


def test_probes_come_on_top_of_the_budget_and_are_counted():
    network = SmallNetwork()
    loss = network.loss(12)
    found = lanczos(loss, loss.dim, max_matvecs=9, trace_probes=6, generator=generator(), dtype=loss.dtype)
    assert loss.num_matvecs == found.num_matvecs == 15


# -- density


def test_the_first_sweep_is_a_quadrature_of_the_spectrum():
    starts = []
    found = lanczos(
        lambda v: (starts.append(v.clone()), MIXED @ v)[1],
        len(MIXED),
        top_k=3,
        generator=generator(),
        dtype=torch.float64,
    )
    v, density = starts[0], found.density
    assert 8 <= len(density.nodes) < found.num_matvecs
    power = v
    for j in range(2 * len(density.nodes)):
        assert float((density.weights * density.nodes**j).sum()) == pytest.approx(float(v @ power), rel=1e-7)
        power = MIXED @ power
    assert float(torch.trapezoid(density.density, density.grid)) == pytest.approx(1.0, abs=1e-7)
    assert (density.num_probes, density.dim, density.num_matvecs) == (1, 154, len(density.nodes))


def test_there_is_no_density_from_a_start_that_is_not_random():
    assert spectrum(MIXED, start=torch.ones(154, dtype=torch.float64)).density is None


def test_a_restart_keeps_the_density_of_the_steps_before_it():
    tight, free = spectrum(MIXED, 2, memory_bytes=8 * 154 * 9), spectrum(MIXED, 2, max_matvecs=10, trace_probes=0)
    assert tight.num_restarts > 0
    torch.testing.assert_close(tight.density.nodes, free.density.nodes)


# -- warm starts


@pytest.mark.parametrize(("top_k", "most"), [(1, 6), (3, 9)])
def test_tracking_after_a_small_change_takes_a_handful_of_products(top_k, most):
    A = matrix_with([8.0, 5.3, 4.7, 3.4, 2.4, 1.8, *torch.linspace(-0.4, 1.2, 194).tolist()])
    options = {"smallest": False, "repeated": False, "top_k": top_k}
    cold = spectrum(A, keep_vectors=True, **options)
    B = moved(A, 0.01)
    warm, again = spectrum(B, start=cold.vectors, **options), spectrum(B, **options)
    assert warm.num_matvecs <= most < again.num_matvecs
    assert warm.converged
    truth = torch.linalg.eigvalsh(B).flip(0)[:top_k].tolist()
    for value, residual, exact in zip(warm.eigenvalues, warm.residuals, truth, strict=True):
        assert abs(value - exact) <= residual + 1e-12


def test_a_start_of_several_columns_uses_all_of_them():
    A = torch.diag(torch.tensor([5.0, 4.0, 3.0, *torch.linspace(0, 0.5, 20)], dtype=torch.float64))
    columns = (torch.eye(23, 3, dtype=torch.float64) + 1e-5) * torch.tensor([1.0, 1e-6, 1e3])
    found = spectrum(A, 3, start=columns, smallest=False, repeated=False)
    assert found.eigenvalues == pytest.approx([5.0, 4.0, 3.0], abs=1e-3)
    assert found.num_matvecs <= 5  # three for the space of the three, one for the residual
    assert spectrum(A, 3, start=columns[:, 0], smallest=False, repeated=False).num_matvecs > 5


def test_without_the_search_for_repeats_each_value_counts_once():
    A = matrix_with([5.0, 5.0, 4.0, *BULK])
    once, twice = spectrum(A, 2, repeated=False, smallest=False), spectrum(A, 2, smallest=False)
    assert once.eigenvalues == pytest.approx([5.0, 4.0], abs=5e-3)
    assert twice.eigenvalues == pytest.approx([5.0, 5.0], abs=5e-3)
    assert once.converged
    assert once.num_matvecs < twice.num_matvecs


# -- vectors, watching, interruption


def test_the_vector_of_the_smallest_eigenvalue():
    found = spectrum(MIXED, 3, tol=1e-8, keep_vectors=True)
    x = found.min_vector
    assert float(x.norm()) == pytest.approx(1.0, abs=1e-12)
    assert float((MIXED @ x - found.lambda_min * x).norm()) <= found.lambda_min_residual + 1e-12
    assert found.lambda_min == pytest.approx(-2.0, abs=1e-6)
    assert spectrum(MIXED).min_vector is None


def test_each_product_is_told():
    seen = []
    found = spectrum(MIXED, 2, trace_probes=3, watch=seen.append)
    assert [p.num_matvecs for p in seen] == list(range(1, found.num_matvecs + 1))
    assert {p.limit for p in seen} == {303}
    stages = [p.stage for p in seen]
    assert list(dict.fromkeys(stages)) == ["lanczos", "repeated", "residual", "trace"]
    assert (stages.count("residual"), stages.count("trace")) == (1, 3)
    assert seen[stages.index("repeated") - 1].residual <= 1e-3 < seen[2].residual
    assert all(math.isnan(p.residual) for p in seen if p.stage == "trace")


@pytest.mark.parametrize("count", [0, 1, 2, 8, 12])
def test_an_interrupted_run_keeps_what_it_has(count):
    found = stopped_after(count, keep_vectors=True)
    assert (found.interrupted, found.converged, found.num_matvecs) == (True, False, count)
    assert len(found.eigenvalues) == len(found.residuals) == 2
    for i in range(2):
        assert math.isnan(found.eigenvalues[i]) == (count <= i)
    if count > 1:
        x, theta = found.vectors[:, 0], found.lambda_max
        residual = float((MIXED @ x - theta * x).norm())
        assert 0.9 * found.lambda_max_residual <= residual <= found.lambda_max_residual + 1e-12


def test_an_interrupted_trace_keeps_the_probes_that_are_done():
    free = spectrum(MIXED)
    found = stopped_after(free.num_matvecs + 2, top_k=1, trace_probes=5)
    assert found.interrupted
    assert found.trace.num_matvecs == 2
    assert found.eigenvalues == free.eigenvalues
    assert stopped_after(free.num_matvecs, top_k=1, trace_probes=5).trace is None


def test_the_same_seed_gives_the_same_answer_twice():
    options = {"top_k": 3, "trace_probes": 2, "keep_vectors": True, "dtype": torch.float32}
    first, second = (spectrum(MIXED.float(), **options) for _ in range(2))
    assert first == second
    assert torch.equal(first.vectors, second.vectors)
    assert torch.equal(first.min_vector, second.min_vector)
    assert torch.equal(first.density.density, second.density.density)
    assert spectrum(MIXED.float(), seed=1, **options) != first


def test_the_example_runs():
    # The package's attribute of that name may be the function.
    assert doctest.testmod(importlib.import_module("lbtrain.functional.lanczos")).failed == 0
