import doctest
import math

import pytest
import torch

from lbtrain.functional import density as module
from lbtrain.functional.density import _smooth, density
from tests.problems import SmallNetwork, generator, matrix_with

BULK = torch.linspace(-0.5, 0.9, 117).tolist()
MIXED = matrix_with([5.0, 4.0, *BULK, -2.0])


def of(A, seed=0, **options):
    options.setdefault("dtype", torch.float64)
    A = A.to(options["dtype"])
    return density(lambda v: A @ v, len(A), generator=generator(seed), **options)


def mass(found):
    return float(torch.trapezoid(found.density, found.grid))


def test_moments_are_exact_up_to_twice_the_steps_minus_one():
    A, starts, m = MIXED, [], 6

    def matvec(v):
        starts.append(v.clone())
        return A @ v

    found = density(matvec, len(A), num_probes=1, num_steps=m, generator=generator(), dtype=torch.float64)
    power, v = starts[0], starts[0]
    for j in range(2 * m):
        assert float((found.weights * found.nodes**j).sum()) == pytest.approx(float(v @ power), rel=1e-10)
        power = A @ power
    assert float((found.weights * found.nodes ** (2 * m)).sum()) != pytest.approx(float(v @ power), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_integrates_to_one(dtype):
    for A in (MIXED, 1e-4 * MIXED, torch.zeros(30, 30), -7.0 * torch.eye(30), torch.eye(1)):
        found = of(A, num_probes=3, num_steps=20, dtype=dtype)
        assert mass(found) == pytest.approx(1.0, abs=1e-7)
        assert float(found.weights.sum()) == pytest.approx(1.0, abs=1e-12)
        assert bool((found.density >= 0).all())


@pytest.mark.parametrize("width", [1e-5, 0.01, 1.0])
def test_it_integrates_to_one_at_any_width(width):
    found = of(MIXED, num_probes=2, num_steps=10, width=width)
    assert mass(found) == pytest.approx(1.0, abs=1e-7)
    assert found.sigma == pytest.approx(width * (found.lambda_max - found.lambda_min))


def test_the_curve_is_a_gaussian_at_each_node():
    found = of(MIXED, num_probes=2, num_steps=7)
    distances = (found.grid[:, None] - found.nodes) / found.sigma
    direct = (found.weights * torch.exp(-0.5 * distances**2)).sum(1) / (found.sigma * math.sqrt(2 * math.pi))
    torch.testing.assert_close(found.density, direct, rtol=0, atol=1e-7 * float(direct.max()))


def test_the_default_width_lets_the_comb_of_nodes_ripple_by_one_and_a_half_percent():
    m = 20
    assert (found := of(MIXED, num_steps=m)).sigma == pytest.approx(
        math.pi / (4 * m) * (found.lambda_max - found.lambda_min)
    )
    # The nodes of Chebyshev's density 1 / (pi sqrt(1 - t^2)) in closed form, on a range of 2.
    nodes = torch.cos((2 * torch.arange(m, dtype=torch.float64) + 1) * math.pi / (2 * m))
    ripples = []
    for share in (1.0, 0.5):
        grid, curves = _smooth(
            nodes, torch.full((m,), 1 / m).double(), torch.zeros(m).long(), 1, share * math.pi / (2 * m)
        )
        inside = grid.abs() < 0.15
        truth = 1 / (math.pi * torch.sqrt(1 - grid[inside] ** 2))
        ripples.append(float((curves[0, inside] / truth - 1).abs().max()))
    assert ripples[0] == pytest.approx(2 * math.exp(-(math.pi**2) / 2), abs=6e-3)
    assert ripples[1] == pytest.approx(2 * math.exp(-(math.pi**2) / 8), rel=0.1)


def test_distinct_eigenvalues_end_the_run_and_weigh_their_multiplicity():
    repeats = {3.0: 5, 1.0: 20, -1.0: 15}
    A = matrix_with([value for value, count in repeats.items() for _ in range(count)])
    found = of(A, num_probes=200, num_steps=30)
    assert found.num_matvecs == 200 * 3
    for value, count in repeats.items():
        near = (found.nodes - value).abs() < 1e-9
        assert int(near.sum()) == 200
        shares = 200 * found.weights[near]
        assert float(shares.mean()) == pytest.approx(count / 40, abs=4 * float(shares.std()) / math.sqrt(200))
        counted, stderr = found.trace_of(lambda x, value=value: ((x - value).abs() < 0.5).double())
        assert counted == pytest.approx(count, abs=4 * stderr)


def test_float32_finds_the_same_few_nodes():
    found = of(matrix_with([3.0] * 5 + [1.0] * 20 + [-1.0] * 15), num_probes=4, num_steps=30, dtype=torch.float32)
    nearest = (found.nodes[:, None] - torch.tensor([3.0, 1.0, -1.0]).double()).abs().min(1).values
    assert float((found.weights * nearest).sum()) < 1e-6
    assert (found.lambda_max, found.lambda_min) == pytest.approx((3.0, -1.0), abs=1e-5)


@pytest.mark.parametrize(("value", "sigma"), [(0.0, 1.0), (-4.0, 4.0), (1e-9, 1e-9)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_one_eigenvalue_is_one_peak_as_wide_as_its_size(value, sigma, dtype):
    found = of(value * torch.eye(40, dtype=torch.float64), num_probes=3, num_steps=10, dtype=dtype)
    assert found.num_matvecs == 3
    assert found.sigma == pytest.approx(sigma * math.pi / 40, rel=1e-5)
    assert found.nodes.tolist() == pytest.approx([value] * 3, rel=1e-5)
    assert (found.trace, found.trace_stderr) == (pytest.approx(40 * value), pytest.approx(0, abs=1e-4 * abs(value)))
    assert float(found.grid[found.density.argmax()]) == pytest.approx(value, abs=found.sigma / 4)


def test_eigenvalues_that_differ_by_rounding_are_one():
    found = of(torch.diag(0.7 + torch.linspace(0, 3e-15, 40, dtype=torch.float64)), num_probes=3, num_steps=10)
    assert found.lambda_min < found.lambda_max
    assert found.sigma == pytest.approx(0.7 * math.pi / 40)


@pytest.mark.parametrize("factor", [1e-4, 1e6])
def test_scaling_the_loss_scales_the_grid_and_nothing_else(factor):
    plain, scaled = of(MIXED, num_steps=15), of(factor * MIXED, num_steps=15)
    torch.testing.assert_close(scaled.grid, factor * plain.grid, rtol=1e-8, atol=1e-9 * factor)
    torch.testing.assert_close(factor * scaled.density, plain.density, rtol=0, atol=1e-6)
    assert scaled.sigma == pytest.approx(factor * plain.sigma, rel=1e-9)
    assert scaled.trace == pytest.approx(factor * plain.trace, rel=1e-8)


def test_changing_the_sign_mirrors_the_curve():
    plain, mirrored = of(MIXED, num_steps=15), of(-MIXED, num_steps=15)
    assert (mirrored.lambda_min, mirrored.lambda_max) == pytest.approx((-plain.lambda_max, -plain.lambda_min))
    moments = [[float((f.density * f.grid**j).sum()) * f.sigma for j in (1, 2, 3)] for f in (plain, mirrored)]
    assert moments[1] == pytest.approx([-moments[0][0], moments[0][1], -moments[0][2]], rel=1e-6)


def test_adding_a_multiple_of_the_identity_shifts_the_grid():
    shift = 3.5
    plain, moved = of(MIXED, num_steps=15), of(MIXED + shift * torch.eye(120, dtype=torch.float64), num_steps=15)
    torch.testing.assert_close(moved.grid, plain.grid + shift, rtol=0, atol=1e-9)
    torch.testing.assert_close(moved.density, plain.density, rtol=0, atol=1e-6)
    assert moved.trace == pytest.approx(plain.trace + 120 * shift, abs=1e-8)
    assert moved.trace_stderr == pytest.approx(plain.trace_stderr, rel=1e-8)


def test_trace_and_frobenius_norm_are_unbiased_with_the_right_error():
    found = of(MIXED, num_probes=300, num_steps=2)
    assert found.trace == pytest.approx(float(MIXED.trace()), abs=4 * found.trace_stderr)
    assert found.frobenius_squared == pytest.approx(float((MIXED**2).sum()), abs=4 * found.frobenius_squared_stderr)
    # Uniform directions: n^2 Var(v'H v) = 2 n / (n + 2) (||H||_F^2 - tr(H)^2 / n).
    n, square = 120, float((MIXED**2).sum())
    variance = 2 * n / (n + 2) * (square - float(MIXED.trace()) ** 2 / n)
    assert 300 * found.trace_stderr**2 == pytest.approx(variance, rel=4 * math.sqrt(4 / 300))
    assert found.trace_of(lambda x: x) == pytest.approx((found.trace, found.trace_stderr), rel=1e-12)
    assert found.trace_of(lambda x: x**2)[0] == pytest.approx(found.frobenius_squared, rel=1e-12)


def test_the_curve_is_the_smoothed_dense_spectrum_within_its_error_bars():
    X = torch.randn(600, 200, generator=generator(4), dtype=torch.float64) / math.sqrt(600)
    A = X.T @ X
    found = of(A, num_probes=20, num_steps=40, width=0.04)
    distances = (found.grid[:, None] - torch.linalg.eigvalsh(A)) / found.sigma
    truth = torch.exp(-0.5 * distances**2).mean(1) / (found.sigma * math.sqrt(2 * math.pi))
    off = (found.density - truth).abs()
    assert bool((off <= 4 * found.density_stderr + 2e-3 * truth.max()).all())
    assert float(found.density_stderr.max()) < 0.1 * float(truth.max())
    # Marchenko and Pastur: the edges are (1 -+ sqrt(200 / 600))^2 up to fluctuations of n^(-2/3).
    edges = [(1 - math.sqrt(1 / 3)) ** 2, (1 + math.sqrt(1 / 3)) ** 2]
    assert [found.lambda_min, found.lambda_max] == pytest.approx(edges, abs=0.08)


def test_the_ends_lie_inside_the_spectrum_and_within_their_residuals():
    truth = torch.linalg.eigvalsh(MIXED)
    for steps in (3, 10, 30):
        found = of(MIXED, num_probes=3, num_steps=steps)
        assert float(truth[0]) - 1e-12 <= found.lambda_min <= found.lambda_max <= float(truth[-1]) + 1e-12
        assert float((truth - found.lambda_max).abs().min()) <= found.lambda_max_residual + 1e-12
        assert float((truth - found.lambda_min).abs().min()) <= found.lambda_min_residual + 1e-12
    assert found.lambda_max_residual < 1e-6
    one_sided = of(matrix_with([50.0, *BULK]), num_probes=1, num_steps=10)
    assert one_sided.lambda_max_residual < 1e-8 < 1e-4 < one_sided.lambda_min_residual


def test_a_network_counts_its_negative_eigenvalues():
    network = SmallNetwork()
    loss, truth = network.loss(12), torch.linalg.eigvalsh(network.dense_hessian())
    found = density(loss, loss.dim, num_probes=8, num_steps=59, generator=generator(), dtype=loss.dtype)
    assert loss.num_matvecs == found.num_matvecs
    scale = float(truth.abs().max())
    counted, stderr = found.trace_of(lambda x: (x < -1e-4 * scale).double())
    assert counted == pytest.approx(int((truth < -1e-4 * scale).sum()), abs=4 * stderr)
    assert found.trace == pytest.approx(float(truth.sum()), abs=4 * found.trace_stderr)
    assert found.lambda_min == pytest.approx(float(truth[0]), abs=1e-8)


def test_one_probe_has_no_error_bar_and_says_so():
    found = of(MIXED, num_probes=1, num_steps=5)
    assert math.isnan(found.trace_stderr)
    assert math.isnan(found.frobenius_squared_stderr)
    assert bool(found.density_stderr.isnan().all())
    assert mass(found) == pytest.approx(1.0, abs=1e-7)


def test_the_same_seed_gives_the_same_answer_and_another_seed_another():
    first, second, other = of(MIXED, num_steps=5), of(MIXED, num_steps=5), of(MIXED, seed=1, num_steps=5)
    assert torch.equal(first.density, second.density)
    assert first == second
    assert first.trace != other.trace


def test_the_default_run_has_800_products_and_a_grid_of_a_few_hundred_points():
    diagonal = torch.linspace(-1, 4, 200)
    found = density(lambda v: diagonal * v, 200, generator=generator())
    assert found.num_matvecs == 800
    assert 400 < len(found.grid) < 600


def test_a_diverged_network_gives_nan_and_ends():
    found = density(lambda v: v * math.nan, 10, generator=generator())
    numbers = (found.trace, found.trace_stderr, found.sigma, found.lambda_max, found.lambda_min_residual)
    assert all(math.isnan(x) for x in (*numbers, *found.trace_of(torch.abs)))
    assert (found.num_matvecs, len(found.grid), len(found.nodes)) == (1, 0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_probes": 0}, "num_probes = 0"),
        ({"num_steps": 1}, "num_steps = 1"),
        ({"dim": 0}, "dim = 0"),
        ({"width": 0.0}, "width must lie between 1e-5 and 1, a share of the spectrum's range, got 0.0"),
        ({"width": 2.0}, "got 2.0"),
        ({"width": math.nan}, "got nan"),
    ],
)
def test_arguments_are_checked(options, message):
    options = dict(options)
    with pytest.raises(ValueError, match=message):
        density(lambda v: v, options.pop("dim", 9), generator=generator(), **options)


def test_a_matvec_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"matvec must return shape \(9,\)"):
        density(lambda v: v[:8], 9, generator=generator())


def test_the_example_runs():
    assert doctest.testmod(module) == (0, 4)
