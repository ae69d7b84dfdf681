import math
from functools import partial

import pytest
import torch

from lbtrain.functional.adaptive_sharpness import adaptive_sharpness
from lbtrain.functional.hvp import MeanLoss
from lbtrain.functional.m_sharpness import m_sharpness
from lbtrain.functional.sharpness import keskar_sharpness, sam_sharpness
from tests.problems import SmallNetwork, generator, leaf
from tests.relu_network import ReluNetwork

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


def test_ranks_with_different_numbers_of_batches_agree_with_one_process():
    w = leaf([1.0, 2.0])
    measure = partial(sam_sharpness, rho=0.1, num_steps=3)
    whole = m_sharpness(linear(w), [w], measure, generator=generator())
    sent = []
    for rows in ((0, 1, 2), ()):
        m_sharpness(linear(w, lambda t: sent.append(t) or t, rows), [w], measure, generator=generator())
    sums = iter([a + b for a, b in zip(sent[:2], sent[2:], strict=True)])
    source, other = generator(), generator()
    ranks = m_sharpness(linear(w, lambda t: next(sums), ()), [w], measure, generator=source)
    assert ranks == whole
    m_sharpness(linear(w), [w], measure, generator=other)
    assert torch.equal(source.get_state(), other.get_state())


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
