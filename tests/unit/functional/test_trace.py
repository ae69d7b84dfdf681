import doctest
import math

import pytest
import torch

from lbtrain.functional import trace as module
from lbtrain.functional.spectral_results import mean_and_stderr
from lbtrain.functional.trace import trace
from tests.problems import SmallNetwork, generator, matrix_with, rotation

METHODS = ["hutchinson", "hutch++", "xtrace"]
# Neither diagonal nor of low rank, with both signs.
SPREAD = matrix_with([9.0, 4.0, -3.0, *torch.linspace(-0.5, 1.0, 21).tolist()])


def estimate(A, num_matvecs, method="hutchinson", seed=0, **options):
    options.setdefault("dtype", torch.float64)
    A = A.to(options["dtype"])
    source = generator(seed)
    return trace(lambda v: A @ v, len(A), num_matvecs=num_matvecs, method=method, generator=source, **options)


def repeated(A, num_matvecs, method, times):
    """Return values, standard errors, and the same of the squared Frobenius norm, each of shape ``(times,)``."""
    found = [estimate(A, num_matvecs, method, seed) for seed in range(times)]
    rows = [(f.value, f.stderr, f.frobenius_squared, f.frobenius_squared_stderr) for f in found]
    return torch.tensor(rows, dtype=torch.float64).T


def assert_mean(samples, truth):
    assert abs(float(samples.mean()) - truth) <= 4 * float(samples.std()) / math.sqrt(len(samples))


def low_rank(values, dim=30):
    return matrix_with([*values, *([0.0] * (dim - len(values)))])


def test_the_standard_error_of_two_samples_is_half_their_distance():
    assert mean_and_stderr(torch.tensor([1.0, 4.0])) == (2.5, 1.5)


@pytest.mark.parametrize("method", METHODS)
def test_trace_and_frobenius_norm_are_unbiased(method):
    values, _, squares, _ = repeated(SPREAD, 9, method, 400)
    assert_mean(values, float(SPREAD.trace()))
    assert_mean(squares, float((SPREAD**2).sum()))


@pytest.mark.parametrize("method", ["hutchinson", "hutch++"])
def test_standard_errors_are_the_spread_over_repetitions(method):
    values, stderr, squares, squares_stderr = repeated(SPREAD, 12, method, 400)
    for samples, errors in ((values, stderr), (squares, squares_stderr)):
        # A sample variance of N values has a relative standard error of sqrt((kurtosis - 1) / N).
        centred = samples - samples.mean()
        kurtosis = float((centred**4).mean() / (centred**2).mean() ** 2)
        claimed, spread = errors**2, float(samples.var())
        tolerance = 4 * math.hypot(spread * math.sqrt((kurtosis - 1) / 400), float(claimed.std()) / 20)
        assert float(claimed.mean()) == pytest.approx(spread, abs=tolerance)


def test_the_standard_error_of_xtrace_is_of_the_right_size():
    values, stderr, squares, squares_stderr = repeated(SPREAD, 16, "xtrace", 300)
    for samples, errors in ((values, stderr), (squares, squares_stderr)):
        assert 0.5 < float((errors**2).mean().sqrt() / samples.std()) < 2.0


def test_the_variance_of_hutchinson_is_the_formula():
    values = repeated(SPREAD, 1, "hutchinson", 2000)[0]
    variance = 2 * float((SPREAD**2).sum() - (SPREAD.diagonal() ** 2).sum())
    fourth = float(((values - values.mean()) ** 4).mean())
    tolerance = 4 * math.sqrt((fourth - variance**2) / 2000)
    assert float(values.var()) == pytest.approx(variance, abs=tolerance)
    assert tolerance < 0.3 * variance


def test_the_variance_of_the_squared_norm_is_the_formula_of_the_square():
    squares, square = repeated(SPREAD, 1, "hutchinson", 2000)[2], SPREAD @ SPREAD
    variance = 2 * float((square**2).sum() - (square.diagonal() ** 2).sum())
    fourth = float(((squares - squares.mean()) ** 4).mean())
    assert float(squares.var()) == pytest.approx(variance, abs=4 * math.sqrt((fourth - variance**2) / 2000))


@pytest.mark.parametrize("seed", range(5))
def test_one_rademacher_vector_is_exact_for_a_diagonal_matrix(seed):
    diagonal = torch.linspace(-2, 5, 40, dtype=torch.float64)
    found = estimate(torch.diag(diagonal), 1, seed=seed)
    assert found.value == pytest.approx(60.0, abs=1e-12)
    assert found.frobenius_squared == pytest.approx(float((diagonal**2).sum()), rel=1e-12)
    assert math.isnan(found.stderr)
    assert math.isnan(found.frobenius_squared_stderr)
    assert estimate(torch.diag(diagonal), 2, seed=seed).stderr == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("dtype", "rel"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("method", "num_matvecs"), [("hutch++", 9), ("hutch++", 20), ("xtrace", 8), ("xtrace", 20)])
def test_low_rank_is_exact_where_the_sketch_holds_it(method, num_matvecs, dtype, rel):
    found = estimate(low_rank([5.0, 2.0, -1.0]), num_matvecs, method, dtype=dtype)
    assert found.value == pytest.approx(6.0, rel=rel)
    assert found.frobenius_squared == pytest.approx(30.0, rel=rel)
    assert found.frobenius == pytest.approx(math.sqrt(30.0), rel=rel)
    assert found.stderr < 10 * rel
    assert found.frobenius_squared_stderr < 100 * rel


@pytest.mark.parametrize(("method", "num_matvecs"), [("hutch++", 6), ("xtrace", 6)])
def test_a_rank_above_the_sketch_is_not_claimed_to_be_exact(method, num_matvecs):
    assert estimate(low_rank([5.0, 2.0, -1.0, 1.0]), num_matvecs, method).stderr > 1e-3


def test_a_sketch_never_misses_the_range_that_signs_would_miss():
    ones = torch.ones(2, 2, dtype=torch.float64)
    A = torch.block_diag(torch.zeros(5, 5), ones, torch.zeros(5, 5))
    for seed in range(10):
        assert estimate(A, 3, "hutch++", seed).value == pytest.approx(2.0, abs=1e-12)


def test_xtrace_is_exact_for_multiples_of_the_identity():
    found = estimate(-3.0 * torch.eye(25, dtype=torch.float64), 10, "xtrace")
    assert (found.value, found.frobenius_squared) == pytest.approx((-75.0, 225.0), abs=1e-11)
    assert found.stderr == pytest.approx(0.0, abs=1e-12)


def test_decaying_spectra_are_where_the_sketches_win():
    A = matrix_with([2.0**-i for i in range(60)])
    spread = {method: float((repeated(A, 24, method, 30)[0] - A.trace()).square().mean().sqrt()) for method in METHODS}
    assert spread["hutch++"] < spread["hutchinson"] / 20
    assert spread["xtrace"] < spread["hutch++"] / 3


@pytest.mark.parametrize("method", METHODS)
def test_as_many_products_as_columns_are_exact(method):
    found = estimate(SPREAD, 200, method)
    assert (found.value, found.stderr) == (pytest.approx(float(SPREAD.trace()), abs=1e-12), 0.0)
    assert (found.frobenius_squared, found.frobenius_squared_stderr) == (pytest.approx(float((SPREAD**2).sum())), 0.0)
    assert (found.method, found.num_matvecs) == ("exact", 24)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num_matvecs", [4, 9, 16])
def test_products_are_counted_and_the_budget_holds(method, num_matvecs):
    calls = []
    found = trace(lambda v: (calls.append(0), v)[1], 50, num_matvecs=num_matvecs, method=method, generator=generator())
    assert found.num_matvecs == len(calls) == num_matvecs - (method == "xtrace" and num_matvecs % 2)
    assert found.method == method


@pytest.mark.parametrize("method", METHODS)
def test_scaling_the_matrix_scales_the_result_alike(method):
    plain, scaled = estimate(SPREAD, 12, method), estimate(1e-6 * SPREAD, 12, method)
    assert scaled.value == pytest.approx(1e-6 * plain.value, rel=1e-9)
    assert scaled.stderr == pytest.approx(1e-6 * plain.stderr, rel=1e-9)
    assert scaled.frobenius_squared == pytest.approx(1e-12 * plain.frobenius_squared, rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_zero_matrix_has_trace_zero(method):
    found = estimate(torch.zeros(30, 30), 12, method)
    assert (found.value, found.stderr, found.frobenius, found.frobenius_squared_stderr) == (0.0,) * 4


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_answer_and_another_seed_another(method):
    assert estimate(SPREAD, 9, method, 3) == estimate(SPREAD, 9, method, 3)
    assert estimate(SPREAD, 9, method, 3).value != estimate(SPREAD, 9, method, 4).value


@pytest.mark.parametrize("method", METHODS)
def test_a_network_within_four_standard_errors_of_its_dense_hessian(method):
    network = SmallNetwork()
    loss, H = network.loss(12), network.dense_hessian()
    found = trace(loss, loss.dim, num_matvecs=24, method=method, generator=generator(2), dtype=loss.dtype)
    assert found.value == pytest.approx(float(H.trace()), abs=4 * found.stderr)
    assert found.frobenius_squared == pytest.approx(float((H**2).sum()), abs=4 * found.frobenius_squared_stderr)
    assert loss.num_matvecs == found.num_matvecs == 24


def test_large_entries_do_not_overflow_float32():
    A = 1e25 * rotation(30).diagonal().diag().float()
    found = estimate(A, 5, dtype=torch.float32)
    assert found.value == pytest.approx(float(A.double().trace()), rel=1e-5)
    assert found.frobenius_squared == pytest.approx(float((A.double() ** 2).sum()), rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_diverged_network_gives_nan_after_one_product(method, bad):
    found = trace(lambda v: v * bad, 20, num_matvecs=12, method=method, generator=generator())
    numbers = (found.value, found.stderr, found.frobenius_squared, found.frobenius_squared_stderr, found.frobenius)
    assert all(math.isnan(x) for x in numbers)
    assert found.num_matvecs == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "hutch"}, "method must be one of hutchinson, hutch\\+\\+, xtrace, got 'hutch'"),
        ({"num_matvecs": 0}, "num_matvecs >= 1 for hutchinson, got dim = 9 and num_matvecs = 0"),
        ({"num_matvecs": 3, "method": "xtrace"}, "num_matvecs >= 4 for xtrace"),
        ({"num_matvecs": 2, "method": "hutch++"}, "num_matvecs >= 3 for hutch"),
        ({"dim": 0}, "got dim = 0"),
    ],
)
def test_arguments_are_checked(options, message):
    options = {"dim": 9, "num_matvecs": 5, **options}
    with pytest.raises(ValueError, match=message):
        trace(lambda v: v, options.pop("dim"), generator=generator(), **options)


def test_a_matvec_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"matvec must return shape \(9,\), as its argument, got \(8,\)"):
        trace(lambda v: v[:8], 9, num_matvecs=5, generator=generator())


def test_the_example_runs():
    assert doctest.testmod(module) == (0, 3)
