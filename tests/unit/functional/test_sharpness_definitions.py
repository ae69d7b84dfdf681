"""All definitions side by side: what changes none of them, what changes which, and defects of other tools."""

import math
from functools import partial

import pytest
import torch

from lbtrain.functional import sharpness
from lbtrain.functional.hvp import MeanLoss
from lbtrain.functional.interruption import Interrupted
from lbtrain.functional.scaled_sharpness import scaled_sharpness
from tests.problems import SmallNetwork, generator, leaf, matrix_with
from tests.relu_network import ReluNetwork

STEPS = {"num_steps": 4}
MAXIMA = {
    "keskar": partial(sharpness.keskar_sharpness, eps=0.01, **STEPS),
    "keskar_subspace": partial(sharpness.keskar_subspace_sharpness, eps=0.01, dim=3, **STEPS),
    "sam": partial(sharpness.sam_sharpness, **STEPS),
    "sam_one_step": partial(sharpness.sam_sharpness, num_steps=1),
    "sam_inf": partial(sharpness.sam_sharpness, p=math.inf, **STEPS),
    "adaptive": partial(sharpness.adaptive_sharpness, **STEPS),
    "adaptive_inf": partial(sharpness.adaptive_sharpness, p=math.inf, **STEPS),
}
AVERAGES = {
    "average": partial(sharpness.average_sharpness, num_pairs=3),
    "adaptive_average": partial(sharpness.adaptive_average_sharpness, num_pairs=3),
}
CURVATURES = {
    "scaled_hessian": lambda loss, params, *, generator: scaled_sharpness(loss, tol=1e-9, generator=generator),
    "relative_flatness": lambda loss, params, *, generator: sharpness.relative_flatness(
        loss, next(p for p in params if p.dim() > 1), num_probes=5, generator=generator
    ),
}
ALL = {**MAXIMA, **AVERAGES, **CURVATURES}
ADAPTIVE = {"adaptive", "adaptive_inf", "adaptive_average", "scaled_hessian", "relative_flatness"}


def value(name, problem, loss):
    return ALL[name](loss, problem.params, generator=generator()).value


def test_all_definitions_are_under_one_name():
    assert all(callable(getattr(sharpness, name)) for name in sharpness.__all__)
    assert {f.func.__name__ for f in (*MAXIMA.values(), *AVERAGES.values())} <= set(sharpness.__all__)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("factor", [3.0, torch.tensor([3.0, 0.1, 7.0, 1.5])], ids=["layer", "units"])
def test_which_definitions_see_a_rescaling_that_the_function_does_not(name, factor):
    before, after = ReluNetwork(), ReluNetwork(factor)
    a, b = (value(name, x, x.loss(8)) for x in (before, after))
    if name in ADAPTIVE:
        assert b == pytest.approx(a, rel=1e-6)
    else:
        assert abs(b / a - 1) > 0.05


@pytest.mark.parametrize("name", ALL)
def test_a_loss_times_a_number_is_sharper_by_it(name):
    one, other = ReluNetwork(), ReluNetwork(height=1e-3)
    a, b = (value(name, x, x.loss(8)) for x in (one, other))
    share = (1 + one.loss().value()) / (1 + other.loss().value()) if name.startswith("keskar") else 1.0
    assert b == pytest.approx(1e-3 * a * share, rel=1e-6)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("batch_size", [1, 7, 15])
def test_neither_the_split_into_batches_nor_their_order_matters(name, batch_size):
    problem = SmallNetwork()
    whole, split = problem.loss(30), problem.loss(batch_size)
    turned = MeanLoss(problem.params, split.losses[::-1], split.weights[::-1])
    values = [value(name, problem, loss) for loss in (whole, split, turned)]
    assert values == pytest.approx([values[0]] * 3, rel=1e-7)


@pytest.mark.parametrize("name", ALL)
def test_the_same_seed_gives_the_same_numbers_and_leaves_the_weights_and_the_counts_right(name):
    problem = SmallNetwork(torch.float32)
    before, loss = [p.detach().clone() for p in problem.params], problem.loss(8)
    first, second = (ALL[name](loss, problem.params, generator=generator(3)) for _ in range(2))
    assert first == second
    assert all(torch.equal(p, q) for p, q in zip(problem.params, before, strict=True))
    if name in MAXIMA:
        assert loss.num_gradients == 2 * first.num_gradients
    assert name == "relative_flatness" or loss.num_values == 2 * getattr(first, "num_values", 0)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("after", [1, 3, 4])
def test_an_interruption_passes_through_and_the_weights_come_back(name, after):
    problem = SmallNetwork(torch.float32)
    before, asked = [p.detach().clone() for p in problem.params], []
    loss = problem.loss(30, should_stop=lambda: asked.append(0) or len(asked) > after)
    with pytest.raises(Interrupted):
        ALL[name](loss, problem.params, generator=generator())
    assert all(torch.equal(p, q) for p, q in zip(problem.params, before, strict=True))


# ---- Defects of other tools.

W = torch.tensor([0.5, -2.0, 1.0, 3.0], dtype=torch.float64)


def watched(function, w):
    """Return a loss that notes each point and its value, and the notes."""
    seen = []

    def evaluate():
        found = function(w)
        seen.append((w.detach().clone(), found.item()))
        return found

    return MeanLoss([w], [evaluate], [1.0]), seen


@pytest.mark.parametrize("name", MAXIMA)
@pytest.mark.parametrize("seed", range(4))
def test_a_start_without_a_gradient_does_not_end_at_zero(name, seed):
    """L-BFGS-B from the weights themselves, as in SmoothOut, returns 0 at a minimum."""
    A, w = matrix_with([5.0, 1.0, 0.4, 0.1]), leaf(W)
    loss = MeanLoss([w], [lambda: 0.5 * (w - W) @ A @ (w - W)], [1.0])
    assert not loss.gradient().any()
    found = MAXIMA[name](loss, [w], generator=generator(seed))
    assert found.value > 0


@pytest.mark.parametrize("name", [name for name in MAXIMA if name != "sam_one_step"])
def test_the_value_is_that_of_the_highest_point_met(name):
    """APGD of the released code of Andriushchenko et al. goes on from the best weights with another point's step."""
    A = matrix_with([5.0, 1.0, -4.0, -90.0])
    w = leaf(W)
    loss, seen = watched(lambda x: 2 + 0.1 * x.sum() + 0.5 * (x - W) @ A @ (x - W), w)
    found = MAXIMA[name](loss, [w], generator=generator())
    base = seen[0][1]
    factor = 100 / (1 + base) if name.startswith("keskar") else 1.0
    assert found.value == pytest.approx(factor * (max(v for _, v in seen) - base), rel=1e-12)
    # The point of the error bar, evaluated last, is that point.
    assert seen[-1][1] == max(v for _, v in seen)


RADII = {
    "sam": (lambda x: (x - W).norm(), sharpness.sam_sharpness),
    "sam_inf": (lambda x: (x - W).abs().max(), partial(sharpness.sam_sharpness, p=math.inf)),
    "adaptive": (lambda x: ((x - W) / W).norm(), sharpness.adaptive_sharpness),
    "adaptive_inf": (lambda x: ((x - W) / W).abs().max(), partial(sharpness.adaptive_sharpness, p=math.inf)),
}


@pytest.mark.parametrize("name", RADII)
@pytest.mark.parametrize("rho", [1e-6, 1e-3, 10.0])
def test_the_radius_is_met_relative_to_its_size(name, rho):
    """The projection of the same code bisects until 1e-5 absolute, 1 % of a radius of 1e-3."""
    length, measure = RADII[name]
    w, g = leaf(W), torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    loss, seen = watched(lambda x: g @ x, w)
    measure(loss, [w], rho=rho, generator=generator())
    assert float(length(seen[-1][0])) == pytest.approx(rho, rel=1e-8)
    assert all(float(length(x)) <= rho * (1 + 1e-8) for x, _ in seen)


@pytest.mark.parametrize("name", ALL)
def test_frozen_and_unused_parameters_are_no_obstacle(name):
    """Neither has a gradient, which the same code reads."""
    problem = SmallNetwork()
    unused, frozen = leaf(torch.ones(2, 2)), problem.params[1].requires_grad_(False)
    params = [*(p for p in problem.params if p is not frozen), unused]
    batches = zip(problem.X.split(8), problem.y.split(8), strict=True)
    losses = [lambda x=x, y=y: torch.nn.functional.cross_entropy(problem.net(x), y) for x, y in batches]
    loss = MeanLoss(params, losses, [8 / 30] * 3 + [6 / 30])
    before = [p.detach().clone() for p in (*params, frozen)]
    assert math.isfinite(ALL[name](loss, params, generator=generator()).value)
    assert all(torch.equal(p, q) for p, q in zip((*params, frozen), before, strict=True))
