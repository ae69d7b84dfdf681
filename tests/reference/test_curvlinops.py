"""A rival library as an oracle: Hessian products, gradient and eigenvalues of the same network and data."""

import warnings

import pytest
import torch
from torch import nn

from lbtrain.functional.lanczos import lanczos
from tests.problems import SmallNetwork, generator

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its dependencies warn at import
    curvlinops = pytest.importorskip("curvlinops", exc_type=ImportError)

pytestmark = pytest.mark.filterwarnings("ignore")


def operator(problem, batch_size):
    data = list(zip(problem.X.split(batch_size), problem.y.split(batch_size), strict=True))
    return curvlinops.HessianLinearOperator(problem.net, nn.CrossEntropyLoss(), problem.params, data)


@pytest.mark.parametrize("batch_size", [30, 8])
def test_products_agree(batch_size):
    problem = SmallNetwork()
    v = torch.randn(59, generator=generator(), dtype=torch.float64)
    torch.testing.assert_close(problem.loss(batch_size)(v), operator(problem, batch_size) @ v, rtol=1e-10, atol=1e-13)


def test_eigenvalues_agree_with_its_operator_under_arpack():
    linalg = pytest.importorskip("scipy.sparse.linalg")
    problem = SmallNetwork()
    theirs = linalg.eigsh(operator(problem, 30).to_scipy(), k=4, which="LA", return_eigenvectors=False)
    loss = problem.loss(7)
    ours = lanczos(loss, loss.dim, top_k=4, tol=1e-8, generator=generator(), dtype=loss.dtype)
    assert ours.eigenvalues == pytest.approx(sorted(theirs, reverse=True), rel=1e-8)
