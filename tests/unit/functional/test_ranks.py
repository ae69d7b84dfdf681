"""Several ranks as threads, which meet in each sum: all end together, whatever happens on one of them."""

import threading

import pytest
import torch
from torch.nn import functional

from lbtrain.functional.interruption import Interrupted
from lbtrain.functional.operator import HessianOperator
from lbtrain.functional.ranks import RankFailedError
from tests.problems import SmallNetwork, generator
from tests.threads import in_threads

V = torch.randn(59, generator=generator(1), dtype=torch.float64)
SEEDED = threading.Lock()  # the network is drawn from torch's global stream


def operator(rank, group, *, loss=None, shares=((0, 11), (11, 30)), told=True, **options):
    """Return the operator of one rank's share of the data, with parameters of its own."""
    with SEEDED:
        problem = SmallNetwork()
    begin, end = shares[rank]
    pieces = [slice(i, min(i + 8, end)) for i in range(begin, end, 8)]
    batches = [(problem.X[rows], problem.y[rows]) for rows in pieces]

    def plain(batch):
        return functional.cross_entropy(problem.net(batch[0]), batch[1])

    return HessianOperator(
        plain if loss is None else lambda batch: loss(rank, plain(batch)),
        problem.params,
        batches,
        all_reduce=group.all_reduce(rank),
        gather=group.gather(rank) if told else None,
        **options,
    )


def everything(op):
    """Return all that an operator can be asked for, as one vector."""
    along = op.curvature(V)
    first, second = op.halves()
    numbers = torch.tensor([op.value(), along.value, along.stderr, along.num_batches, first.value()])
    block = op.block(op.params[:1])
    return torch.cat([numbers.double(), op @ V, op.gradient(), second @ V, block @ V[:24]])


@pytest.mark.parametrize("engine", ["autograd", "differences"])
@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
@pytest.mark.parametrize("shares", [((0, 11), (11, 30)), ((0, 30), (30, 30))])
def test_uneven_shares_and_an_empty_rank_give_what_one_process_gives(engine, matrix, shares):
    options = {"engine": engine, "matrix": matrix}
    first, second = in_threads(2, lambda r, g: everything(operator(r, g, shares=shares, **options)))
    assert torch.equal(first, second)
    if shares[1] == (30, 30):
        (alone,) = in_threads(1, lambda r, g: everything(operator(r, g, shares=((0, 30),), **options)))
        torch.testing.assert_close(first, alone, rtol=1e-12, atol=1e-14)
    whole = SmallNetwork()
    exact = HessianOperator(
        lambda b: functional.cross_entropy(whole.net(b[0]), b[1]), whole.params, [(whole.X, whole.y)], matrix=matrix
    )
    near = 1e-12 if engine == "autograd" else 1e-7
    torch.testing.assert_close(first[5:64], exact @ V, rtol=near, atol=near)
    assert float(first[0]) == pytest.approx(exact.value(), rel=1e-6)


def test_one_sum_for_each_product_gradient_and_curvature():
    def work(rank, group):
        op = operator(rank, group)
        counts = []
        for ask in (lambda: op @ V, lambda: op @ V, op.gradient, op.value, lambda: op.curvature(V)):
            before = group.num_sums
            ask()
            counts.append(group.num_sums - before)
        return counts

    assert in_threads(2, work)[0] == [1, 1, 1, 1, 1]


@pytest.mark.parametrize("ask", ["product", "gradient", "value", "values", "curvature", "curvatures"])
@pytest.mark.parametrize("told", [True, False])
def test_the_failure_of_one_rank_ends_all_with_one_message(ask, told):
    def fail(rank, loss):
        if rank == 1:
            raise ArithmeticError("the cause")
        return loss

    def work(rank, group):
        op = operator(rank, group, loss=fail, told=told)
        asks = {
            "product": lambda: op @ V,
            "gradient": op.gradient,
            "value": op.value,
            "values": lambda: op.total(op.batch_values().sum()),
            "curvature": lambda: op.curvature(V),
            "curvatures": lambda: op.total(op.curvatures(V).sum()),
        }
        asks[ask]()

    first, second = in_threads(2, work)
    assert isinstance(second, ArithmeticError)
    assert isinstance(first, RankFailedError)
    assert ("rank 1: ArithmeticError: the cause" in str(first)) == told


def test_a_failure_in_the_middle_of_a_choice_of_step_ends_all():
    def fail(rank, loss):
        if rank == 0 and threading.current_thread().calls > 5:
            raise ArithmeticError("late")
        threading.current_thread().calls += 1
        return loss

    def work(rank, group):
        threading.current_thread().calls = 0
        operator(rank, group, loss=fail, engine="differences") @ V

    first, second = in_threads(2, work)
    assert isinstance(first, ArithmeticError)
    assert isinstance(second, RankFailedError)


def test_samples_that_one_rank_cannot_count_end_all():
    def work(rank, group):
        HessianOperator(
            lambda b: None,
            [torch.ones(1, requires_grad=True)],
            [torch.ones(2)] if rank else ["text"],
            all_reduce=group.all_reduce(rank),
            gather=lambda text: group.exchange(rank, text),
        )

    first, second = in_threads(2, work)
    assert isinstance(first, ValueError)
    assert "rank 0: ValueError: sizes must give" in str(second)


def test_the_wish_of_one_rank_stops_all():
    asked = []

    def work(rank, group):
        op = operator(rank, group, should_stop=lambda: bool(asked) and rank == 1)
        op @ V
        group.exchange(rank, None)
        asked.append(rank)
        ends = []
        for ask in (lambda: op @ V, op.gradient, op.value, lambda: op.curvature(V)):
            try:
                ask()
            except Interrupted:
                ends.append(True)
        return len(ends), float(op.total(torch.ones(())))

    assert in_threads(2, work) == [(4, 2.0), (4, 2.0)]


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


def test_all_ranks_fall_back_when_one_has_no_second_derivative():
    def work(rank, group):
        op = operator(rank, group, loss=lambda r, loss: Square.apply(loss) if r == 1 else loss**2)
        return op @ V, op.engine, op.reason

    whole = SmallNetwork()
    pieces = [slice(0, 8), slice(8, 11), slice(11, 19), slice(19, 27), slice(27, 30)]
    exact = HessianOperator(
        lambda b: functional.cross_entropy(whole.net(b[0]), b[1]) ** 2,
        whole.params,
        [(whole.X[rows], whole.y[rows]) for rows in pieces],
    )
    found = in_threads(2, work)
    for product, engine, reason in found:
        torch.testing.assert_close(product, exact @ V, rtol=1e-6, atol=1e-7)
        assert engine == "differences"
        assert "Square" in reason
    assert "rank 1" in found[0][2]
