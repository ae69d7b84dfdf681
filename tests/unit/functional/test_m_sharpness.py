import math
from functools import partial

import pytest
import torch

from lbtrain.functional.adaptive_sharpness import adaptive_sharpness
from lbtrain.functional.hvp import MeanLoss
from lbtrain.functional.interruption import Interrupted
from lbtrain.functional.m_sharpness import m_sharpness
from lbtrain.functional.ranks import RankFailedError
from lbtrain.functional.sharpness import keskar_sharpness, sam_sharpness
from tests.problems import SmallNetwork, generator, leaf
from tests.relu_network import ReluNetwork
from tests.threads import in_threads

SLOPES = torch.tensor([[1.0, 0.0], [-2.0, 1.0], [0.0, 3.0]], dtype=torch.float64)
SHARES = [0.5, 0.3, 0.2]


def linear(w, all_reduce=None, rows=(0, 1, 2)):
    """Return a loss whose batches have slopes that point to different sides."""
    losses = [lambda a=SLOPES[i]: a @ w for i in rows]
    return MeanLoss([w], losses, [SHARES[i] for i in rows], all_reduce=all_reduce)


def test_of_linear_losses_is_the_mean_length_of_their_slopes():
    w = leaf([1.0, 2.0])
    found = m_sharpness(linear(w), [w], partial(sam_sharpness, rho=0.1, num_steps=1), generator=generator())
    rises = 0.1 * SLOPES.norm(dim=1)
    shares = torch.tensor(SHARES, dtype=torch.float64)
    mean = float((shares * rises).sum())
    spread = math.sqrt(1.5 * float((shares**2 * (rises - mean) ** 2).sum()))
    assert (found.value, found.stderr) == pytest.approx((mean, spread), rel=1e-9)
    together = sam_sharpness(linear(w), [w], rho=0.1, generator=generator()).value
    assert together == pytest.approx(0.1 * float((shares @ SLOPES).norm()), rel=1e-9)
    assert together < found.value


def test_smaller_batches_are_sharper_and_one_batch_is_the_measure_itself():
    problem = SmallNetwork()
    measure = partial(adaptive_sharpness, rho=0.3)
    values = [m_sharpness(problem.loss(m), problem.params, measure, generator=generator()).value for m in (30, 10, 3)]
    assert values[0] < values[1] < values[2]
    whole = measure(problem.loss(30), problem.params, generator=generator()).value
    assert values[0] == pytest.approx(whole, rel=1e-9)


def test_adaptive_stays_blind_to_a_rescaling_of_relu_layers():
    nets = ReluNetwork(), ReluNetwork(torch.tensor([3.0, 0.1, 7.0, 1.5]))
    a, b = (m_sharpness(x.loss(5), x.params, adaptive_sharpness, generator=generator()) for x in nets)
    assert (b.value, b.stderr) == pytest.approx((a.value, a.stderr), rel=1e-6)


@pytest.mark.parametrize("rows", [((0, 1, 2), ()), ((2,), (0, 1)), ((), (1,), (2, 0))])
def test_ranks_with_different_numbers_of_batches_agree_with_one_process(rows):
    measure = partial(sam_sharpness, rho=0.1, num_steps=3)
    whole = m_sharpness(linear(w := leaf([1.0, 2.0])), [w], measure, generator=generator())

    def on_rank(rank, group):
        w, source = leaf([1.0, 2.0]), generator()
        found = m_sharpness(linear(w, group.all_reduce(rank), rows[rank]), [w], measure, generator=source)
        return found, source.get_state()

    for found, state in in_threads(len(rows), on_rank):
        assert (found.value, found.stderr) == pytest.approx((whole.value, whole.stderr), rel=1e-12)
        assert (found.num_gradients, found.num_values) == (whole.num_gradients, whole.num_values)
        m_sharpness(linear(w), [w], measure, generator=(source := generator()))
        assert torch.equal(state, source.get_state())


def test_a_rank_that_fails_ends_all():
    def on_rank(rank, group):
        w = leaf([1.0, 2.0])

        def failing():
            raise KeyError("disk")

        losses = [lambda: w.sum(), failing] if rank else [lambda: w.sum()]
        loss = MeanLoss(
            [w], losses, [1 / 3] * len(losses), all_reduce=group.all_reduce(rank), gather=group.gather(rank)
        )
        return m_sharpness(loss, [w], sam_sharpness, generator=generator())

    healthy, broken = in_threads(2, on_rank)
    assert isinstance(broken, KeyError)
    assert isinstance(healthy, RankFailedError)
    assert "rank 1: KeyError: 'disk'" in str(healthy)


def test_a_wish_to_stop_ends_all_ranks_between_batches():
    def on_rank(rank, group):
        w, asked = leaf([1.0, 2.0]), []
        loss = MeanLoss(
            [w],
            [lambda: w.sum()] * 4,
            [1 / 8] * 4,
            all_reduce=group.all_reduce(rank),
            should_stop=lambda: asked.append(0) or (rank == 1 and len(asked) > 2),
        )
        return m_sharpness(loss, [w], sam_sharpness, generator=generator()), len(asked)

    assert [type(found) for found in in_threads(2, on_rank)] == [Interrupted, Interrupted]


def test_the_cost_is_in_passes_over_all_the_data():
    w = leaf([1.0, 2.0])
    loss = linear(w)
    found = m_sharpness(loss, [w], partial(sam_sharpness, num_steps=4), generator=generator())
    # The first step leads to the top of a linear loss, as the gradient there shows.
    assert (found.num_gradients, found.num_values) == (2, 2)
    assert (loss.num_gradients, loss.num_values) == (0, 0)


def test_batches_draw_from_generators_of_their_own():
    w = leaf([1.0, 2.0])
    seeds = []

    def measure(loss, params, *, generator):
        seeds.append(generator.initial_seed())
        return sam_sharpness(loss, params, generator=generator)

    m_sharpness(linear(w), [w], measure, generator=generator())
    assert len(set(seeds)) == 3


def test_weights_come_back_bit_for_bit_and_one_bad_batch_shows():
    problem = SmallNetwork(torch.float32)
    before = [p.detach().clone() for p in problem.params]
    assert m_sharpness(problem.loss(7), problem.params, keskar_sharpness, generator=generator()).value > 0
    assert all(torch.equal(p, q) for p, q in zip(problem.params, before, strict=True))
    w = leaf([1.0])
    loss = MeanLoss([w], [lambda: w.sum(), lambda: w.sum() * math.nan], [0.5, 0.5])
    assert math.isnan(m_sharpness(loss, [w], sam_sharpness, generator=generator()).value)
