"""What must hold for any loss: symmetry, linearity, and that coordinates, order, batches and scales do not matter.

Cases are drawn by hypothesis, the same ones each time. All in float64.
"""

import itertools
import math

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from lbtrain.curvature import HessianOperator, density, lanczos, loss_along, sharpness, trace
from tests.families import ends, normal, of_network, operator, size
from tests.problems import generator, leaf, rotation

# No shrinking: a case is small as drawn, and a failure must not take minutes.
few = settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),
)
seeds = st.integers(0, 2**31)
matrices = pytest.mark.parametrize("matrix", ["hessian", "ggn"])
N, DIM, SIZES = 12, 20, (5, 1, 4, 2)


@st.composite
def partitions(draw):
    """Return sizes of batches that add up to all samples."""
    cuts = draw(st.sets(st.integers(1, N - 1), max_size=5))
    edges = [0, *sorted(cuts), N]
    return tuple(b - a for a, b in itertools.pairwise(edges))


@st.composite
def regroupings(draw):
    """Return another order of the samples and sizes of batches."""
    return draw(st.permutations(range(N))), draw(partitions())


class Tiny:
    """A tanh network of 20 weights on 12 samples, in this order and so many times."""

    def __init__(self, order=range(N), copies=1):
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)).double()
        self.X, self.y = normal(N, 3, seed=8)[list(order)], (normal(N, seed=9) > 0).long()[list(order)]
        self.X, self.y = self.X.repeat(copies, 1), self.y.repeat(copies)
        self.params = list(self.net.parameters())


def measured(problem, sizes=SIZES, **options):
    return of_network(problem, sizes, **options)


# Products


@matrices
@few
@given(seed=seeds)
def test_the_matrix_is_symmetric(matrix, seed):
    H, u, v = measured(Tiny(), matrix=matrix), normal(DIM, seed=seed), normal(DIM, seed=seed + 1)
    assert float(u @ (H @ v)) == pytest.approx(float(v @ (H @ u)), rel=1e-9, abs=1e-12)


@matrices
@few
@given(seed=seeds, a=st.floats(-10, 10), b=st.floats(-10, 10))
def test_products_are_linear(matrix, seed, a, b):
    H, u, v = measured(Tiny(), matrix=matrix), normal(DIM, seed=seed), normal(DIM, seed=seed + 1)
    torch.testing.assert_close(H @ (a * u + b * v), a * (H @ u) + b * (H @ v), rtol=1e-9, atol=1e-11)


@few
@given(seed=seeds, a=st.floats(-5, 5))
def test_differences_are_symmetric_and_linear_to_their_error(seed, a):
    H, u, v = measured(Tiny(), engine="differences"), normal(DIM, seed=seed), normal(DIM, seed=seed + 1)
    Hu, Hv = H @ u, H @ v
    tol = 1e-7 * (1 + abs(a)) * max(size(u), size(v))
    assert abs(float(u @ Hv) - float(v @ Hu)) <= tol * (size(u) + size(v))
    assert size(H @ (a * u + v) - a * Hu - Hv) <= tol


@few
@given(case=regroupings(), seed=seeds)
def test_neither_order_nor_batches_of_the_samples_change_products_and_gradients(case, seed):
    order, sizes = case
    plain, v = measured(Tiny()), normal(DIM, seed=seed)
    for matrix in ("hessian", "ggn"):
        one, other = (measured(p, s, matrix=matrix) for p, s in ((Tiny(), SIZES), (Tiny(order), sizes)))
        torch.testing.assert_close(other @ v, one @ v, rtol=1e-9, atol=1e-12)
    other = measured(Tiny(order), sizes)
    torch.testing.assert_close(other.gradient(), plain.gradient(), rtol=1e-9, atol=1e-13)
    assert other.value() == pytest.approx(plain.value(), rel=1e-12)
    assert other.curvature(v).value == pytest.approx(float(v @ (plain @ v)), rel=1e-9)
    line = loss_along(other, v, [0.3])
    assert line.values == pytest.approx(loss_along(plain, v, [0.3]).values, rel=1e-12)


@few
@given(sizes=partitions(), seed=seeds)
def test_the_mean_of_the_batches_own_curvatures_is_the_curvature(sizes, seed):
    H, v = measured(Tiny(), sizes), normal(DIM, seed=seed)
    own, weights = H.curvatures(v), torch.tensor(sizes, dtype=torch.float64) / N
    assert float(own @ weights) == pytest.approx(float(v @ (H @ v)), rel=1e-9)
    assert H.curvature(v).num_batches == len(sizes)
    assert len(sizes) > 1 or math.isnan(H.curvature(v).stderr)


@few
@given(sizes=partitions().filter(lambda sizes: len(sizes) > 1), seed=seeds)
def test_both_halves_together_are_the_whole(sizes, seed):
    H, v = measured(Tiny(), sizes), normal(DIM, seed=seed)
    even, odd = H.halves()
    share = sum(sizes[::2]) / N
    torch.testing.assert_close(share * (even @ v) + (1 - share) * (odd @ v), H @ v, rtol=1e-9, atol=1e-12)
    assert share * even.value() + (1 - share) * odd.value() == pytest.approx(H.value(), rel=1e-12)


@matrices
@few
@given(wanted=st.sets(st.integers(0, 3), min_size=1), seed=seeds)
def test_a_block_is_that_part_of_the_whole(matrix, wanted, seed):
    problem = Tiny()
    H = measured(problem, matrix=matrix)
    chosen = [problem.params[i] for i in sorted(wanted)]
    inside = torch.cat([torch.full((p.numel(),), any(p is c for c in chosen)) for p in problem.params])
    v = normal(DIM, seed=seed) * inside
    torch.testing.assert_close(H.block(chosen) @ v[inside], (H @ v)[inside], rtol=1e-9, atol=1e-12)


# Traces and spectra


@few
@given(case=regroupings())
def test_neither_order_nor_batches_change_the_spectrum_its_density_and_its_trace(case):
    order, sizes = case
    plain, other = measured(Tiny(), (N,)), measured(Tiny(order), sizes)
    one, two = (ends(H, 3, tol=1e-9) for H in (plain, other))
    assert two.eigenvalues == pytest.approx(one.eigenvalues, rel=1e-8)
    assert two.lambda_min == pytest.approx(one.lambda_min, rel=1e-8)
    drawn = {"generator": generator(5), "dtype": torch.float64}
    one, two = (
        trace(H, DIM, num_matvecs=6, method="hutch++", **{**drawn, "generator": generator(5)}) for H in (plain, other)
    )
    assert (two.value, two.stderr) == pytest.approx((one.value, one.stderr), rel=1e-7)
    one, two = (
        density(H, DIM, num_probes=1, num_steps=6, **{**drawn, "generator": generator(5)}) for H in (plain, other)
    )
    assert two.nodes.tolist() == pytest.approx(one.nodes.tolist(), rel=1e-6, abs=1e-9)
    assert two.weights.tolist() == pytest.approx(one.weights.tolist(), rel=1e-6, abs=1e-9)


@few
@given(seed=st.integers(0, 1000), sizes=partitions())
def test_rotated_coordinates_have_the_same_spectrum_trace_and_density(seed, sizes):
    Q, start = rotation(12, seed), normal(12, seed=seed)
    X, y = normal(N, 4, seed=1), torch.randint(0, 3, (N,), generator=generator(2))

    def in_coordinates(R):
        u = leaf(R.T @ start)
        loss = lambda x, y: nn.functional.cross_entropy(torch.tanh(x @ (R @ u).view(4, 3)), y)
        return operator(loss, [u], [X, y], sizes)

    plain, turned = in_coordinates(torch.eye(12, dtype=torch.float64)), in_coordinates(Q)
    v = normal(12, seed=seed + 1)
    torch.testing.assert_close(turned @ v, Q.T @ (plain @ (Q @ v)), rtol=1e-9, atol=1e-13)
    one, two = (ends(H, 4, tol=1e-9) for H in (plain, turned))
    assert two.eigenvalues == pytest.approx(one.eigenvalues, rel=1e-7, abs=1e-9)
    assert two.lambda_min == pytest.approx(one.lambda_min, rel=1e-7, abs=1e-9)
    exact = {"num_matvecs": 12, "generator": generator(), "dtype": torch.float64}
    one, two = (trace(H, 12, **exact) for H in (plain, turned))
    assert (two.value, two.frobenius_squared) == pytest.approx((one.value, one.frobenius_squared), rel=1e-9)
    full = {"num_probes": 1, "num_steps": 12, "generator": generator(), "dtype": torch.float64}
    nodes = density(turned, 12, **full).nodes
    assert nodes.tolist() == pytest.approx(density(plain, 12, **full).nodes.tolist(), abs=1e-8)


@few
@given(factor=st.floats(1e-6, 1e6))
def test_a_scaled_loss_scales_all_that_is_linear_in_it_for_the_same_cost(factor):
    problem = Tiny()
    plain, scaled = measured(problem), measured(problem, factor=factor)
    one, two = (ends(H, 2, tol=1e-6) for H in (plain, scaled))
    assert two.eigenvalues == pytest.approx([factor * x for x in one.eigenvalues], rel=1e-9)
    assert two.num_matvecs == one.num_matvecs
    assert two.lambda_max_residual <= 2e-6 * two.lambda_max
    of = lambda measure, L, **options: measure(L, problem.params, generator=generator(), **options).value
    for measure in (sharpness.sam_sharpness, sharpness.adaptive_sharpness, sharpness.average_sharpness):
        assert of(measure, scaled) == pytest.approx(factor * of(measure, plain), rel=1e-6)
    scaled_trace, plain_trace = (
        trace(H, DIM, num_matvecs=5, generator=generator(), dtype=torch.float64).value for H in (scaled, plain)
    )
    assert scaled_trace == pytest.approx(factor * plain_trace, rel=1e-9)


@few
@given(factor=st.floats(1e-3, 1e3))
def test_parameters_in_another_unit_scale_the_hessian_by_its_square_and_leave_what_is_relative(factor):
    X, y, start = normal(N, 4, seed=1), torch.randint(0, 3, (N,), generator=generator(2)), normal(4, 3, seed=3)

    def in_unit(scale):
        u = leaf(start / scale)
        return operator(lambda x, y: nn.functional.cross_entropy(x @ (scale * u), y), [u], [X, y], SIZES), [u]

    (plain, w), (scaled, u) = in_unit(1.0), in_unit(factor)
    one, two = (ends(H, 3, tol=1e-9) for H in (plain, scaled))
    assert two.eigenvalues == pytest.approx([factor**2 * x for x in one.eigenvalues], rel=1e-7)
    relative = [
        sharpness.adaptive_sharpness(H, p, rho=0.1, generator=generator()).value for H, p in ((plain, w), (scaled, u))
    ]
    assert relative[1] == pytest.approx(relative[0], rel=1e-7)
    top = [sharpness.scaled_spectrum(H, tol=1e-9, generator=generator()).lambda_max for H in (plain, scaled)]
    assert top[1] == pytest.approx(top[0], rel=1e-8)


# Sharpness


@few
@given(case=regroupings())
def test_neither_order_nor_batches_change_a_sharpness_of_the_mean_loss(case):
    order, sizes = case
    measures = [
        sharpness.keskar_sharpness,
        sharpness.keskar_subspace_sharpness,
        sharpness.sam_sharpness,
        sharpness.adaptive_sharpness,
        sharpness.average_sharpness,
        sharpness.adaptive_average_sharpness,
    ]
    for measure in measures:
        options = {"dim": 10} if measure is sharpness.keskar_subspace_sharpness else {}
        found = []
        for problem, cut in ((Tiny(), (N,)), (Tiny(order), sizes)):
            L = measured(problem, cut)
            found.append(measure(L, problem.params, generator=generator(), **options).value)
        assert found[1] == pytest.approx(found[0], rel=1e-7)


@few
@given(sizes=partitions())
def test_relative_flatness_is_a_property_of_the_data_and_not_of_its_batches(sizes):
    found = []
    for cut in ((N,), sizes):
        problem = Tiny()
        weight = problem.net[2].weight
        found.append(sharpness.relative_flatness(measured(problem, cut), weight, generator=generator()).value)
    assert found[1] == pytest.approx(found[0], rel=1e-9)


@few
@given(copies=st.integers(2, 4), sizes=partitions())
def test_copies_of_all_samples_change_nothing(copies, sizes):
    v = normal(DIM)
    H, many = measured(Tiny(), sizes), measured(Tiny(copies=copies), sizes * copies)
    torch.testing.assert_close(many @ v, H @ v, rtol=1e-9, atol=1e-13)


@few
@given(seed=st.integers(0, 1000))
def test_the_answer_depends_on_the_start_only_within_its_residuals(seed):
    H = measured(Tiny())
    a, b = (lanczos(H, DIM, top_k=2, tol=1e-4, generator=generator(s), dtype=torch.float64) for s in (seed, seed + 1))
    for x, y, p, q in zip(a.eigenvalues, b.eigenvalues, a.residuals, b.residuals, strict=True):
        assert abs(x - y) <= p + q
    again = lanczos(H, DIM, top_k=2, tol=1e-4, generator=generator(seed), dtype=torch.float64)
    assert again.eigenvalues == a.eigenvalues


def test_an_operator_of_the_whole_batch_is_that_of_its_samples_one_by_one():
    problem, v = Tiny(), normal(DIM)
    singles = HessianOperator(
        lambda batch: nn.functional.cross_entropy(problem.net(batch[0]), batch[1]),
        problem.params,
        list(zip(problem.X.split(1), problem.y.split(1), strict=True)),
        sizes=[1] * N,
    )
    torch.testing.assert_close(singles @ v, measured(problem, (N,)) @ v, rtol=1e-9, atol=1e-13)
