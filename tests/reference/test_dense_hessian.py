"""The dense Hessian by torch.func, another route through autograd than the products'."""

import pytest
import torch

from lbtrain.functional.lanczos import lanczos
from tests.problems import SmallNetwork, descending, generator


@pytest.mark.parametrize("batch_size", [30, 8])
@pytest.mark.parametrize("memory", [2**30, 0])
def test_eigenvalues_of_a_network(batch_size, memory):
    problem = SmallNetwork()
    truth = descending(torch.linalg.eigvalsh(problem.dense_hessian()))
    loss = problem.loss(batch_size, graph_memory_bytes=memory)
    found = lanczos(loss, loss.dim, top_k=5, tol=1e-6, generator=generator(), dtype=loss.dtype)
    assert found.converged
    assert found.eigenvalues == pytest.approx(truth[:5], rel=1e-4)
    assert found.lambda_min == pytest.approx(truth[-1], rel=1e-4)


def test_eigenvalues_of_a_float32_network():
    truth = descending(torch.linalg.eigvalsh(SmallNetwork().dense_hessian()))
    loss = SmallNetwork(torch.float32).loss(8)
    found = lanczos(loss, loss.dim, top_k=3, tol=1e-4, generator=generator())
    assert found.converged
    assert found.eigenvalues == pytest.approx(truth[:3], rel=1e-4)
