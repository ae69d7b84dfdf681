import doctest
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lbtrain.functional import operator as module
from lbtrain.functional.hvp import MeanLoss
from lbtrain.functional.interruption import Interrupted
from lbtrain.functional.operator import HessianOperator
from tests.problems import LinearRegression, SmallNetwork, generator, leaf, matrix_with

MATRICES = pytest.mark.parametrize("matrix", ["hessian", "ggn"])
ENGINES = pytest.mark.parametrize("engine", ["autograd", "differences"])


def normal(n, seed=0):
    return torch.randn(n, generator=generator(seed), dtype=torch.float64)


def network_operator(batch_size=30, **options):
    problem = SmallNetwork()
    batches = list(zip(problem.X.split(batch_size), problem.y.split(batch_size), strict=True))
    reduction = options.get("reduction", "mean")
    operator = HessianOperator(
        lambda b: functional.cross_entropy(problem.net(b[0]), b[1], reduction=reduction),
        problem.params,
        batches,
        **options,
    )
    return operator, problem


def near(engine):
    """Return how far two products may lie apart that differ in their roundings only, and by their differences."""
    return {"rtol": 1e-9, "atol": 1e-12} if engine == "autograd" else {"rtol": 1e-6, "atol": 1e-7}


def test_the_example_runs():
    assert doctest.testmod(module).attempted >= 5
    assert doctest.testmod(module).failed == 0


@ENGINES
def test_products_are_those_of_the_dense_hessian(engine):
    operator, problem = network_operator(8, engine=engine)
    H, v = problem.dense_hessian(), normal(59)
    for product in (operator(v), operator @ v, operator.hvp(v)):
        torch.testing.assert_close(product, H @ v, **near(engine))
    assert operator.num_matvecs == 3
    assert operator.engine == engine
    assert operator.reason == ""


@MATRICES
@ENGINES
def test_symmetric_and_linear(matrix, engine):
    operator, _ = network_operator(8, matrix=matrix, engine=engine)
    u, v = normal(59, 1), normal(59, 2)
    torch.testing.assert_close(u @ (operator @ v), v @ (operator @ u), **near(engine))
    torch.testing.assert_close(operator @ (3 * u - 2 * v), 3 * (operator @ u) - 2 * (operator @ v), **near(engine))
    assert not (operator @ torch.zeros(59, dtype=torch.float64)).any()


@MATRICES
@ENGINES
@pytest.mark.parametrize("batch_size", [7, 8, 29])
def test_any_split_into_batches_and_any_order_gives_the_same_product(matrix, engine, batch_size):
    whole, v = network_operator(30, matrix=matrix, engine=engine)[0], normal(59)
    parts, problem = network_operator(batch_size, matrix=matrix, engine=engine)
    torch.testing.assert_close(parts @ v, whole @ v, **near(engine))
    batches = list(zip(problem.X.split(batch_size), problem.y.split(batch_size), strict=True))[::-1]
    turned = HessianOperator(
        lambda b: functional.cross_entropy(problem.net(b[0]), b[1]), problem.params, batches, matrix=matrix
    )
    torch.testing.assert_close(turned @ v, whole @ v, **near(engine))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_parameters_and_batches_may_come_from_generators(reduction):
    listed, problem = network_operator(8, reduction=reduction)
    operator = HessianOperator(
        lambda b: functional.cross_entropy(problem.net(b[0]), b[1], reduction=reduction),
        problem.net.parameters(),
        zip(problem.X.split(8), problem.y.split(8), strict=True),
        reduction=reduction,
    )
    v = normal(59)
    assert torch.equal(operator @ v, listed @ v)
    assert torch.equal(operator @ v, listed @ v)  # and again: the batches were kept
    with pytest.raises(ValueError, match="each tensor once, got 12 of which 6 repeat"):
        HessianOperator(lambda b: b.sum(), list(problem.net.parameters()) * 2, [])


def test_a_summed_loss_is_measured_as_the_mean():
    v = normal(59)
    torch.testing.assert_close(
        network_operator(8, reduction="sum")[0] @ v, network_operator(8)[0] @ v, rtol=1e-10, atol=1e-12
    )
    assert network_operator(8, reduction="sum")[0].value() == pytest.approx(network_operator(30)[0].value(), rel=1e-12)


def test_a_summed_loss_has_the_spread_over_batches_of_the_mean(generator):
    summed, mean = (network_operator(8, reduction=kind)[0] for kind in ("sum", "mean"))
    v = torch.randn(mean.dim, generator=generator, dtype=mean.dtype)
    torch.testing.assert_close(summed.curvatures(v), mean.curvatures(v), rtol=1e-10, atol=1e-12)
    assert summed.curvature(v).stderr == pytest.approx(mean.curvature(v).stderr, rel=1e-9)
    pairs = zip(summed.halves(), mean.halves(), strict=True)
    assert all(ours.curvature(v).value == pytest.approx(theirs.curvature(v).value, rel=1e-9) for ours, theirs in pairs)


@ENGINES
@MATRICES
def test_curvatures_of_batches_average_to_the_quotient(engine, matrix):
    operator, _ = network_operator(8, engine=engine, matrix=matrix)
    v = normal(59)
    found, values = operator.curvature(v), operator.curvatures(v)
    assert values.dtype == torch.float64
    assert values.shape == (4,)
    torch.testing.assert_close(
        values @ torch.tensor(operator.weights, dtype=torch.float64), v @ (operator @ v), **near(engine)
    )
    assert found.value == pytest.approx(float(v @ (operator @ v)), rel=1e-6)
    assert found.num_batches == 4
    w = torch.tensor(operator.weights, dtype=torch.float64)
    # The textbook formula, written out.
    assert found.stderr == pytest.approx(math.sqrt(4 / 3 * float((w**2 * (values - found.value) ** 2).sum())), rel=1e-6)


def test_the_standard_error_of_a_curvature_is_the_spread_of_its_batches():
    """Batches ``a_b w^2 / 2`` of one parameter: the curvature is the mean of ``a``, its error that of a mean."""
    slopes, w = [1.0, 2.0, 4.0, 9.0], leaf([3.0])
    operator = HessianOperator(lambda a: 0.5 * a.sum() * (w**2).sum(), [w], [torch.tensor([a]) for a in slopes])
    found = operator.curvature(torch.ones(1, dtype=torch.float64))
    spread = torch.tensor(slopes, dtype=torch.float64)
    assert found.value == pytest.approx(4.0, rel=1e-12)
    assert found.stderr == pytest.approx(float(spread.std()) / 2, rel=1e-12)
    alone = HessianOperator(lambda a: 0.5 * a.sum() * (w**2).sum(), [w], [torch.ones(1)])
    assert math.isnan(alone.curvature(torch.ones(1, dtype=torch.float64)).stderr)


@ENGINES
@MATRICES
def test_halves_are_of_even_and_odd_batches_and_average_to_the_whole(engine, matrix):
    operator, _ = network_operator(7, engine=engine, matrix=matrix)
    first, second = operator.halves()
    v, counted = normal(59), operator.num_gradients
    assert len(first.losses) == 3
    assert len(second.losses) == 2
    for half in (first, second):
        assert sum(half.weights) == pytest.approx(1.0, rel=1e-12)
        assert half.num_matvecs == 0
    shares = [sum(operator.weights[0::2]), sum(operator.weights[1::2])]
    together = shares[0] * (first @ v) + shares[1] * (second @ v)
    assert operator.num_gradients - counted == (0 if engine == "autograd" else operator.num_gradients - counted)
    torch.testing.assert_close(together, operator @ v, **near(engine))
    assert isinstance(first, HessianOperator)
    assert first.engine == engine
    assert first.value() * shares[0] + second.value() * shares[1] == pytest.approx(operator.value(), rel=1e-12)


def test_halves_need_two_batches():
    with pytest.raises(ValueError, match="two batches"):
        network_operator(30)[0].halves()


@ENGINES
@MATRICES
@pytest.mark.parametrize("memory", [2**30, 0])
def test_a_block_is_the_principal_part_of_the_matrix(engine, matrix, memory):
    operator, problem = network_operator(8, engine=engine, matrix=matrix, graph_memory_bytes=memory)
    full = torch.stack([operator @ e for e in torch.eye(59, dtype=torch.float64)])
    chosen = [problem.params[3], problem.params[2]]
    block, v = operator.block(chosen), normal(21)
    rows = [*range(48, 51), *range(30, 48)]
    assert block.dim == 21
    torch.testing.assert_close(block @ v, full[rows][:, rows] @ v, **near(engine))
    torch.testing.assert_close(block.gradient(), operator.gradient()[rows], rtol=1e-12, atol=1e-14)
    assert block.value() == operator.value()
    half, _ = block.halves()
    assert half.dim == 21


def test_halves_and_blocks_share_the_kept_graphs():
    calls = []
    problem = SmallNetwork()
    batches = list(zip(problem.X.split(8), problem.y.split(8), strict=True))

    def loss(batch):
        calls.append(len(batch[0]))
        return functional.cross_entropy(problem.net(batch[0]), batch[1])

    operator, v = HessianOperator(loss, problem.params, batches), normal(59)
    operator @ v
    first, second = operator.halves()
    block = operator.block(problem.params[:1])
    first @ v, second @ v, block @ normal(24), block.halves()[0] @ normal(24)
    assert calls == [8, 8, 8, 6]
    with torch.no_grad():
        problem.params[5].add_(0.1)
    torch.testing.assert_close(
        block @ v[:24], (operator @ torch.cat([v[:24], 0 * v[24:]]))[:24], rtol=1e-10, atol=1e-12
    )


def test_a_block_without_shared_graphs_gives_its_memory_back():
    operator, problem = network_operator(30)
    block = operator.block(problem.params[:1])
    block @ normal(24)
    assert block.kept_bytes > 0
    held = block._engine.graphs.budget
    assert held.used == block.kept_bytes
    del block
    assert held.used == 0


def test_a_block_of_unknown_parameters_is_refused():
    operator, _ = network_operator(30)
    with pytest.raises(ValueError, match="1 are not among them"):
        operator.block([leaf([1.0])])
    with pytest.raises(ValueError, match="got 0"):
        operator.block([])


def test_products_by_differences_cost_two_gradients_and_the_step_is_chosen_once():
    operator, _ = network_operator(8, engine="differences")
    operator @ normal(59)
    chosen = operator.num_gradients - 2
    assert 11 <= chosen <= 30
    before = operator.num_gradients
    for seed in range(5):
        operator @ normal(59, seed)
    operator.curvature(normal(59))
    assert operator.num_gradients - before == 12
    assert 0 < operator.error < 1e-6


def test_the_error_of_differences_bounds_what_is_lost_along_the_gradient():
    operator, problem = network_operator(8, engine="differences")
    assert math.isnan(operator.error)
    g = operator.gradient()
    truth = problem.dense_hessian() @ g
    assert float((operator @ g - truth).norm() / truth.norm()) <= operator.error


@ENGINES
def test_nothing_of_the_module_changes(engine):
    operator, problem = network_operator(8, engine=engine)
    before = [(p.detach().clone(), p.requires_grad) for p in problem.params]
    mark = problem.params[0].grad = torch.ones_like(problem.params[0])
    operator @ normal(59), operator.curvature(normal(59)), operator.halves()[0] @ normal(59)
    for p, (value, required) in zip(problem.params, before, strict=True):
        assert torch.equal(p, value)
        assert p.requires_grad == required
    assert problem.params[0].grad is mark
    assert bool((mark == 1).all())


def test_weights_return_when_a_loss_fails_beside_them():
    w = leaf([1.0, 2.0])

    def loss(batch):
        if not torch.equal(w.detach(), torch.tensor([1.0, 2.0], dtype=torch.float64)):
            raise RuntimeError("only there")
        return (w**2).sum()

    with pytest.raises(RuntimeError, match="only there"):
        HessianOperator(loss, [w], [torch.ones(1)], engine="differences") @ torch.ones(2)
    assert w.tolist() == [1.0, 2.0]


def test_vectors_of_another_type_are_taken_and_products_have_the_operators_type():
    operator, problem = network_operator(30)
    v = normal(59).float()
    assert (operator @ v).dtype == torch.float64
    torch.testing.assert_close(operator @ v, problem.dense_hessian() @ v.double(), rtol=1e-9, atol=1e-12)


def test_samples_are_counted_in_nested_batches_and_given_sizes_win():
    @dataclass
    class Pair:
        name: str
        x: Tensor

    w = leaf([1.0])
    for batch in ([Pair("a", torch.ones(3))], {"id": "b", "x": [torch.ones(3, 2)]}, (torch.tensor(1.0), torch.ones(3))):
        operator = HessianOperator(lambda b: (w**2).sum(), [w], [batch, torch.ones(1)])
        assert operator.weights == (0.75, 0.25)
    assert HessianOperator(lambda b: (w**2).sum(), [w], ["a", "b"], sizes=[1, 4]).weights == (0.2, 0.8)


def test_arguments_are_checked():
    w = leaf([1.0])
    square = lambda b: (w**2).sum()
    with pytest.raises(ValueError, match="matrix must be one of hessian, ggn, got 'fisher'"):
        HessianOperator(square, [w], [torch.ones(1)], matrix="fisher")
    with pytest.raises(ValueError, match="engine must be one of auto, autograd, differences"):
        HessianOperator(square, [w], [torch.ones(1)], engine="forward")
    with pytest.raises(ValueError, match="reduction must be one of mean, sum"):
        HessianOperator(square, [w], [torch.ones(1)], reduction="none")
    with pytest.raises(ValueError, match=r"sizes must give .* got \[None\]; pass sizes"):
        HessianOperator(square, [w], ["text"])
    with pytest.raises(ValueError, match="each of 1 batches"):
        HessianOperator(square, [w], [torch.ones(1)], sizes=[1, 2])
    with pytest.raises(TypeError, match="must return the loss as a tensor"):
        HessianOperator(lambda b: 3.0, [w], [torch.ones(1)]).value()
    with pytest.raises(ValueError, match="params must be real"):
        HessianOperator(square, [torch.ones(1, dtype=torch.complex64, requires_grad=True)], [torch.ones(1)])


def test_a_wish_to_stop_ends_products_gradients_and_values_and_nothing_else():
    asked = []
    operator, _ = network_operator(8, should_stop=lambda: bool(asked))
    v = normal(59)
    operator @ v
    asked.append(True)
    for work in (lambda: operator @ v, operator.gradient, operator.value, lambda: operator.curvature(v)):
        with pytest.raises(Interrupted):
            work()
    assert operator.total(torch.ones(2)).tolist() == [1.0, 1.0]
    asked.clear()
    torch.testing.assert_close(operator @ v, network_operator(30)[0] @ v, rtol=1e-10, atol=1e-12)


def test_usable_where_a_mean_loss_is():
    from lbtrain.functional.sharpness import sam_sharpness

    operator, problem = network_operator(8)
    theirs = problem.loss(8)
    assert isinstance(operator, MeanLoss)
    found = sam_sharpness(operator, problem.params, generator=generator())
    assert found.value == pytest.approx(sam_sharpness(theirs, problem.params, generator=generator()).value, rel=1e-9)


def test_a_rotation_of_the_parameters_rotates_the_operator():
    A, v = matrix_with([3.0, 1.0, -1.0, 0.5]), normal(4)
    Q = torch.linalg.qr(torch.randn(4, 4, generator=generator(3), dtype=torch.float64))[0]
    w, turned = leaf(normal(4, 1)), leaf(Q.T @ normal(4, 1))
    quartic = lambda x: 0.5 * x @ A @ x + (x**4).sum()
    plain = HessianOperator(lambda b: quartic(w), [w], [torch.ones(1)])
    rotated = HessianOperator(lambda b: quartic(Q @ turned), [turned], [torch.ones(1)])
    torch.testing.assert_close(Q @ (rotated @ (Q.T @ v)), plain @ v, rtol=1e-12, atol=1e-12)


def test_a_short_last_batch_counts_by_its_size():
    problem = LinearRegression([4.0, 1.0, 0.25])
    batches = list(zip(problem.X.split(10), problem.Y.split(10), strict=True))
    operator = HessianOperator(lambda b: nn.functional.mse_loss(b[0] @ problem.W, b[1]), [problem.W], batches)
    full = torch.stack([operator @ e for e in torch.eye(6, dtype=torch.float64)])
    assert torch.linalg.eigvalsh(full).flip(0).tolist() == pytest.approx(problem.spectrum, rel=1e-12)
