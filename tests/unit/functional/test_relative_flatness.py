import math

import pytest
import torch
from torch import nn

from lbtrain.functional.hvp import MeanLoss
from lbtrain.functional.relative_flatness import relative_flatness
from tests.problems import SmallNetwork, generator, leaf
from tests.relu_network import ReluNetwork


def kappa(H, W):
    """Return the definition, term by term, from the Hessian block of the flattened ``W``."""
    d, m = W.shape
    blocks = H.reshape(d, m, d, m)
    return sum(float(W[s] @ W[t]) * float(blocks[s, :, t, :].trace()) for s in range(d) for t in range(d))


def weights_of(problem):
    """Yield each weight matrix of a small network with its block of the dense Hessian."""
    H, start = problem.dense_hessian(), 0
    for p in problem.params:
        stop = start + p.numel()
        if p.dim() == 2:
            yield p, H[start:stop, start:stop]
        start = stop


def test_of_least_squares_is_the_ridge_penalty_times_the_trace_of_the_inputs():
    X = torch.randn(20, 3, generator=generator(1), dtype=torch.float64)
    Y = torch.randn(20, 2, generator=generator(2), dtype=torch.float64)
    W = leaf(torch.randn(2, 3, generator=generator(3), dtype=torch.float64))
    loss = MeanLoss([W], [lambda: ((X @ W.T - Y) ** 2).sum(dim=1).mean()], [1.0])
    found = relative_flatness(loss, W, generator=generator())
    exact = 2 * float((W.detach() ** 2).sum()) * float((X**2).sum()) / 20
    assert found.value == pytest.approx(exact, rel=1e-12)
    assert (found.stderr, found.exact, found.num_matvecs) == (0.0, True, 6)


def test_the_exact_sum_is_the_definition_on_each_layer_of_a_network():
    problem = SmallNetwork()
    for weight, block in weights_of(problem):
        found = relative_flatness(problem.loss(7), weight, num_probes=None, generator=generator())
        assert found.value == pytest.approx(kappa(block, weight.detach()), rel=1e-9)
        assert found.num_matvecs == min(weight.shape) * weight.shape[1]


def test_probes_are_unbiased_and_their_standard_error_is_right():
    problem, source = SmallNetwork(), generator(3)
    weight, block = next(weights_of(problem))
    exact, loss = kappa(block, weight.detach()), problem.loss(30)
    found = [relative_flatness(loss, weight, num_probes=8, generator=source) for _ in range(150)]
    values = torch.tensor([f.value for f in found], dtype=torch.float64)
    squares = torch.tensor([f.stderr**2 for f in found], dtype=torch.float64)
    assert not any(f.exact for f in found)
    assert all(f.num_matvecs == 8 for f in found)
    assert abs(float(values.mean()) - exact) < 4 * float(values.std()) / math.sqrt(150)
    # Two estimates of one variance, each with its own error.
    error = math.sqrt(float(squares.var()) / 150 + float(((values - values.mean()) ** 2).var()) / 150)
    assert abs(float(squares.mean()) - float(values.var())) < 4 * error
    assert error < 0.4 * float(values.var())


def test_probes_are_unbiased_where_the_weights_and_the_inputs_share_one_direction():
    v, u = torch.ones(20, dtype=torch.float64), torch.linspace(-1, 1, 25, dtype=torch.float64)
    W = leaf(torch.outer(u, v))
    loss = MeanLoss([W], [lambda: ((W @ v) ** 2).sum()], [1.0])
    exact = 2 * float(u @ u) * 20 * 20
    found = relative_flatness(loss, W, num_probes=390, generator=generator())
    assert abs(found.value - exact) < 4 * found.stderr
    assert found.stderr < 0.3 * exact


def test_is_blind_to_a_rescaling_of_the_units_that_a_layer_makes_and_not_of_those_that_it_reads():
    factors = torch.tensor([3.0, 0.1, 7.0, 1.5])
    before, after = ReluNetwork(), ReluNetwork(factors)
    made, read = (
        [
            relative_flatness(x.loss(8), x.params[i], num_probes=None, generator=generator()).value
            for x in (before, after)
        ]
        for i in (0, 1)
    )
    assert made[1] == pytest.approx(made[0], rel=1e-9)
    assert abs(read[1] / read[0] - 1) > 0.1


def test_is_blind_to_a_rescaling_of_whole_relu_layers():
    before, after = ReluNetwork(), ReluNetwork(3.0)
    for first, second in zip(before.params, after.params, strict=True):
        for probes in (None, 2):
            a = relative_flatness(before.loss(8), first, num_probes=probes, generator=generator())
            b = relative_flatness(after.loss(8), second, num_probes=probes, generator=generator())
            assert (b.value, b.stderr) == pytest.approx((a.value, a.stderr), rel=1e-9)
            assert a.value != 0


def test_is_blind_to_a_rescaling_of_single_neurons_on_their_inputs_only():
    before, after = ReluNetwork(), ReluNetwork(torch.tensor([3.0, 0.1, 7.0, 1.5]))
    pairs = zip(before.params, after.params, strict=True)
    ratios = []
    for first, second in pairs:
        a = relative_flatness(before.loss(), first, generator=generator()).value
        ratios.append(relative_flatness(after.loss(), second, generator=generator()).value / a)
    assert ratios[0] == pytest.approx(1.0, rel=1e-9)
    assert ratios[1] != pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("probes", [None, 5])
def test_scales_with_the_loss(probes):
    one, small = ReluNetwork(), ReluNetwork(height=1e-4)
    a, b = (relative_flatness(x.loss(8), x.V, num_probes=probes, generator=generator()) for x in (one, small))
    assert (b.value, b.stderr) == pytest.approx((1e-4 * a.value, 1e-4 * a.stderr), rel=1e-9)


def test_a_convolution_is_the_affine_map_of_its_patches():
    x = torch.randn(5, 2, 4, 4, generator=generator(1), dtype=torch.float64)
    kernel = leaf(torch.randn(3, 2, 2, 2, generator=generator(2), dtype=torch.float64))
    affine = leaf(kernel.detach().reshape(3, 8))
    patches = nn.functional.unfold(x, 2)
    by_kernel = MeanLoss([kernel], [lambda: nn.functional.conv2d(x, kernel).tanh().square().mean()], [1.0])
    by_patches = MeanLoss([affine], [lambda: (affine @ patches).tanh().square().mean()], [1.0])
    a = relative_flatness(by_kernel, kernel, num_probes=None, generator=generator())
    b = relative_flatness(by_patches, affine, num_probes=None, generator=generator())
    assert a.value == pytest.approx(b.value, rel=1e-9)
    assert a.num_matvecs == 24


def test_the_exact_sum_is_taken_where_it_needs_no_more_products_than_the_probes():
    problem = SmallNetwork()
    for weight, needed in ((problem.params[2], 3 * 6), (problem.params[0], 4 * 4)):  # 3 x 6 and 6 x 4
        fewer, enough = (
            relative_flatness(problem.loss(30), weight, num_probes=count, generator=generator())
            for count in (needed - 1, needed)
        )
        assert (fewer.exact, fewer.num_matvecs) == (False, needed - 1)
        assert (enough.exact, enough.num_matvecs) == (True, needed)


def test_the_split_into_batches_and_ranks_does_not_matter():
    problem = SmallNetwork()
    W = problem.params[2]
    whole = relative_flatness(problem.loss(30), W, num_probes=4, generator=generator())
    split = relative_flatness(problem.loss(7), W, num_probes=4, generator=generator())
    ranks = MeanLoss(problem.params, problem.loss(30).losses, [0.5], all_reduce=lambda t: 2 * t)
    again = relative_flatness(ranks, W, num_probes=4, generator=generator())
    for other in (split, again):
        assert (other.value, other.stderr) == pytest.approx((whole.value, whole.stderr), rel=1e-9)


def test_neither_the_weights_nor_the_loss_and_its_counters_change():
    problem = SmallNetwork(torch.float32)
    loss, before = problem.loss(8), [p.detach().clone() for p in problem.params]
    loss.hvp(torch.ones(59))
    found = relative_flatness(loss, problem.params[0], num_probes=3, generator=generator())
    assert math.isfinite(found.value)
    assert (loss.num_matvecs, loss.num_gradients, loss.num_values) == (1, 0, 0)
    assert all(torch.equal(p, q) for p, q in zip(problem.params, before, strict=True))
    assert all(p.grad is None for p in problem.params)


def test_one_probe_has_no_error_bar():
    problem = SmallNetwork()
    found = relative_flatness(problem.loss(30), problem.params[0], num_probes=1, generator=generator())
    assert math.isfinite(found.value)
    assert math.isnan(found.stderr)


@pytest.mark.parametrize("probes", [None, 2])
def test_a_diverged_run_is_nan(probes):
    for value, factor in ((math.nan, 1.0), (1.0, math.inf)):
        W = leaf([[value, 1.0], [2.0, 3.0]])
        loss = MeanLoss([W], [lambda W=W, factor=factor: factor * (W**2).sum()], [1.0])
        assert math.isnan(relative_flatness(loss, W, num_probes=probes, generator=generator()).value)


def test_arguments_are_checked():
    problem = SmallNetwork()
    loss = problem.loss(30)
    with pytest.raises(ValueError, match=r"at least 2 axes, got shape \(6,\)"):
        relative_flatness(loss, problem.params[1], generator=generator())
    with pytest.raises(ValueError, match="one of the 6 parameters"):
        relative_flatness(loss, problem.params[0].detach().clone().requires_grad_(), generator=generator())
    with pytest.raises(ValueError, match="num_probes must be at least 1 or None"):
        relative_flatness(loss, problem.params[0], num_probes=0, generator=generator())
