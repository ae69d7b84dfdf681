"""A rival library as an oracle where it is right: equal batches, double backward, enough Lanczos steps."""

import warnings

import pytest
import torch
from torch import nn

from lbtrain.curvature import trace
from tests.families import ends, normal, of_network
from tests.problems import SmallNetwork, generator

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its dependencies warn at import
    eigenthings = pytest.importorskip("hessian_eigenthings", exc_type=ImportError)

pytestmark = pytest.mark.filterwarnings("ignore")

EQUAL = (10, 10, 10)  # it averages over batches, which is right only where they are equal
LOSS = nn.CrossEntropyLoss()


def batches(problem):
    return list(zip(problem.X.split(10), problem.y.split(10), strict=True))


def hessian(problem, **options):
    return eigenthings.HessianOperator(problem.net, batches(problem), eigenthings.supervised_loss(LOSS), **options)


def gauss_newton(problem):
    inner = eigenthings.supervised_loss_of_output(LOSS)
    return eigenthings.GGNOperator(problem.net, batches(problem), eigenthings.supervised_forward, inner)


@pytest.mark.parametrize(("matrix", "build"), [("hessian", hessian), ("ggn", gauss_newton)])
@pytest.mark.parametrize("sizes", [EQUAL, (30,), (9, 1, 14, 6)])
def test_products_agree_however_ours_are_cut(matrix, build, sizes):
    problem = SmallNetwork()
    ours, theirs = of_network(problem, sizes, matrix=matrix), build(problem)
    for seed in range(3):
        v = normal(59, seed=seed)
        torch.testing.assert_close(ours @ v, theirs @ v, rtol=1e-10, atol=1e-13)


def test_products_of_a_part_of_the_weights_agree():
    problem = SmallNetwork()
    theirs = hessian(problem, param_filter=eigenthings.match_names("2.*"))
    ours, v = of_network(problem).block(list(problem.net[2].parameters())), normal(21)
    torch.testing.assert_close(ours @ v, theirs @ v, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(("matrix", "build"), [("hessian", hessian), ("ggn", gauss_newton)])
def test_eigenvalues_agree_with_its_lanczos_in_the_full_dimension(matrix, build):
    problem = SmallNetwork()
    full = {"max_iter": 59, "reorthogonalize": True, "seed": 0}
    largest, smallest = (eigenthings.lanczos(build(problem), k=4, which=w, **full) for w in ("LA", "SA"))
    found = ends(of_network(problem, matrix=matrix), 4, tol=1e-9)
    assert found.eigenvalues == pytest.approx(largest.eigenvalues.tolist(), rel=1e-8)
    assert found.lambda_min == pytest.approx(float(smallest.eigenvalues[0]), abs=1e-9)


def test_the_top_eigenvector_agrees_with_its_power_iteration():
    problem = SmallNetwork()
    theirs = eigenthings.deflated_power_iteration(hessian(problem), k=1, max_iter=3000, tol=1e-10, seed=0)
    ours = ends(of_network(problem), tol=1e-9, keep_vectors=True)
    assert bool(theirs.converged.all())
    assert ours.lambda_max == pytest.approx(float(theirs.eigenvalues[0]), rel=1e-9)
    assert abs(float(ours.vectors[:, 0] @ theirs.eigenvectors[0])) == pytest.approx(1.0, abs=1e-9)


def test_the_exact_trace_is_the_sum_of_its_diagonal():
    problem = SmallNetwork()
    theirs, ours = hessian(problem), of_network(problem)
    columns = [theirs.matvec(e) for e in torch.eye(59, dtype=torch.float64)]
    found = trace(ours, 59, num_matvecs=59, generator=generator(), dtype=torch.float64)
    assert found.value == pytest.approx(sum(float(c[i]) for i, c in enumerate(columns)), rel=1e-10)
    assert found.frobenius_squared == pytest.approx(sum(float(c @ c) for c in columns), rel=1e-10)
