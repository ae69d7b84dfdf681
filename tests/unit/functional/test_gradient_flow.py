"""Gradient flow against dense numbers, and when it is a problem of a run."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from lbtrain.functional.gradient_flow import LayerFlow, flow, flow_findings
from lbtrain.functional.layers import layers
from tests.problems import generator

NAN, INF = math.nan, math.inf


def at(*gradients, updates=None):
    """One step's numbers by layer."""
    updates = updates or [None] * len(gradients)
    return {
        f"net.{i}": SimpleNamespace(gradient=g, weight=1.0, update=u)
        for i, (g, u) in enumerate(zip(gradients, updates, strict=True))
    }


def judged(*points, losses=None, norms=None, **options):
    history = [(10 * i, point) for i, point in enumerate(points)]
    losses = losses or [1.0] * len(points)
    return flow_findings(history, losses, norms or [1.0] * len(points), **options)


VANISHED = at(1e-9, 1e-7, 1e-4, 1e-2)
EXPLODED = at(1e4, 1e2, 1.0, 1e-1)
EVEN = at(0.1, 0.2, 0.1, 0.3)


def test_the_numbers_are_root_mean_squares_over_all_entries_of_a_layer():
    w, b = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([0.0, 12.0])
    gradients = {"a": (torch.full((2, 2), 2.0), torch.full((2,), 2.0)), "b": (torch.tensor([-5.0]),)}
    weights = {"a": (w, b), "b": (torch.tensor([2.0]),)}
    found = flow(gradients, weights, {"a": (w / 10, -b / 10)})
    assert found["a"].gradient == pytest.approx(2.0)
    assert found["a"].weight == pytest.approx(13 / 6**0.5)
    assert found["a"].update == pytest.approx(0.1)
    assert found["b"] == LayerFlow(5.0, 2.0, None)
    assert list(found) == ["a", "b"]
    assert flow(gradients, weights)["a"].update is None
    assert flow({}, {}) == {}


def test_weights_of_zero_and_gradients_that_are_not_finite_are_told_as_they_are():
    zero = {"a": (torch.zeros(3),)}
    assert flow({"a": (torch.tensor([1.0, NAN, 1.0]),)}, zero, {"a": (torch.ones(3),)})["a"].update == INF
    assert math.isnan(flow({"a": (torch.tensor([1.0, NAN, 1.0]),)}, zero)["a"].gradient)


def test_a_layer_without_weights_or_entries_is_named():
    for gradients, weights in (({"a": (torch.ones(2),)}, {}), ({"a": ()}, {"a": ()})):
        with pytest.raises(ValueError, match="layer 'a' must have weights and a gradient"):
            flow(gradients, weights)


def real(depth, activation, scale=1.0, width=32, seed=0):
    """The flow at the start of a deep dense network, by autograd."""
    torch.manual_seed(seed)
    body = [m for _ in range(depth - 1) for m in (nn.Linear(width, width), activation())]
    net = nn.Sequential(*body, nn.Linear(width, 10))
    with torch.no_grad():
        for p in net.parameters():
            p *= scale
    x, y = torch.randn(256, width, generator=generator()), torch.arange(256) % 10
    loss = functional.cross_entropy(net(x), y)
    named = list(net.named_parameters())
    gradients = dict(zip((n for n, _ in named), torch.autograd.grad(loss, [p for _, p in named]), strict=True))
    by_layer = layers(gradients.items())
    return flow(dict(by_layer), dict(layers(named))), loss.item()


def test_twenty_sigmoid_layers_lose_the_gradient():
    numbers, loss = real(20, nn.Sigmoid)
    (finding,) = flow_findings([(0, numbers), (50, numbers)], [loss, loss], [1.0, 1.0])
    assert finding.problem == "vanishing gradients"
    assert finding.since == 0
    assert finding.severity > 1e5
    assert finding.evidence.startswith("the gradient of 0, ")
    assert "times smaller than 38's, " in finding.evidence
    assert finding.remedies[0].changes == {"activation": "relu", "init_scale": 1.0}


def he(depth, gain=1.0):
    """The start of He et al. (2015): torch's own, of a third of its variance, times sqrt(6)."""
    return real(depth, nn.ReLU, 6**0.5 * gain)


@pytest.mark.parametrize("depth", [3, 20])
def test_a_start_by_he_is_silent_at_any_depth(depth):
    numbers, loss = he(depth)
    assert flow_findings([(0, numbers)], [loss], [1.0]) == ()


@pytest.mark.parametrize(
    ("activation", "depth"), [(nn.ReLU, 10), (nn.Tanh, 10), (nn.GELU, 6), (nn.Sigmoid, 2), (nn.Sigmoid, 4)]
)
def test_torch_s_own_start_is_silent_at_usual_depths(depth, activation):
    numbers, loss = real(depth, activation)
    assert flow_findings([(0, numbers)], [loss], [1.0]) == ()


def test_forty_bounded_layers_with_large_weights_let_the_gradient_explode():
    numbers, loss = real(40, nn.Hardtanh, 4.0)
    (finding,) = flow_findings([(0, numbers)], [loss], [1.0])
    assert finding.problem == "exploding gradients"
    assert finding.severity > 10
    changes = [remedy.changes for remedy in finding.remedies]
    assert changes == [{"gradient_clip_val": 1.0}, {"init_scale": 1.0}, {}]


def test_an_exploding_gradient_is_told_with_both_ends():
    (finding,) = judged(EXPLODED)
    assert finding.problem == "exploding gradients"
    assert finding.evidence == (
        "the gradient of net.0, 1e+04 by root mean square, is 1e+05 times larger than net.3's, 0.1, from the start"
    )
    assert finding.severity == pytest.approx(10)


def test_the_step_is_that_of_the_last_stretch():
    assert judged(VANISHED, EVEN, VANISHED, VANISHED)[0].since == 20
    assert judged(EVEN, EXPLODED, EXPLODED)[0].since == 10
    assert judged(EVEN, EXPLODED, EXPLODED)[0].evidence.endswith("since step 10")


def test_a_run_that_trains_is_silent_whatever_its_gradients_are():
    assert judged(VANISHED, VANISHED, losses=[2.3, 0.2]) == ()
    assert judged(EXPLODED, EXPLODED, losses=[2.3, 0.2]) == ()
    assert judged(VANISHED, VANISHED, losses=[2.3, 1.2])


def test_a_converged_run_is_silent():
    small = at(1e-12, 2e-12, 1e-12, 3e-12)
    assert judged(EVEN, small, losses=[2.3, 1e-6], norms=[1.0, 1e-11]) == ()


def test_an_optimizer_that_makes_up_for_small_gradients_is_silent():
    adam = at(1e-9, 1e-7, 1e-4, 1e-2, updates=[1e-3, 1e-3, 1e-3, 1e-3])
    assert judged(EVEN, adam) == ()
    sgd = at(1e-9, 1e-7, 1e-4, 1e-2, updates=[1e-10, 1e-8, 1e-5, 1e-3])
    assert judged(EVEN, sgd)[0].problem == "vanishing gradients"


def test_one_layer_that_stands_out_makes_no_trend():
    assert judged(at(1e-9, 0.2, 0.1, 0.2, 0.1)) == ()
    assert judged(at(1e-9, 1.0)) == ()  # two layers neither


def test_zero_gradients_are_dead_units_and_not_vanishing():
    assert judged(at(0.0, 0.0, 0.0, 1.0)) == ()
    assert judged(at(0.0, 0.0, 0.0, 0.0)) == ()


def test_what_a_diverged_run_leaves_is_not_judged():
    assert judged(EVEN, at(NAN, NAN, NAN, NAN), losses=[1.0, NAN], norms=[1.0, NAN]) == ()
    assert judged(at(NAN, NAN, NAN, NAN), losses=[NAN], norms=[NAN]) == ()
    assert judged() == ()
    assert judged(VANISHED, at(NAN, NAN, NAN, NAN), losses=[1.0, NAN], norms=[1.0, NAN])[0].since == 0


def test_a_gradient_far_beyond_the_earlier_ones_is_found_where_the_loss_rose():
    (finding,) = judged(*[EVEN] * 5, losses=[1, 0.9, 0.8, 5.0, 0.9], norms=[1.0, 0.5, 0.7, 4e3, 1.0])
    assert finding.problem == "exploding gradients"
    assert finding.since == 30
    assert finding.severity == pytest.approx(4e3 / 0.7 / 1e3)
    assert finding.evidence == (
        "the norm of the gradient is 4e+03 at step 30, where the loss is 5; the median before was 0.7"
    )
    assert finding.remedies[0].changes == {"gradient_clip_val": 0.7}
    assert judged(*[EVEN] * 5, losses=[1, 0.9, 0.8, 0.7, 0.9], norms=[1.0, 0.5, 0.7, 4e3, 1.0]) == ()
    assert judged(*[EVEN] * 5, losses=[1, 0.9, 0.8, 5.0, 0.9], norms=[1.0, 0.5, 0.7, 600, 1.0]) == ()


def test_a_gradient_that_is_not_finite_where_the_loss_is_has_exploded():
    (finding,) = judged(EVEN, EVEN, norms=[1.0, NAN])
    assert (finding.since, finding.severity) == (10, INF)
    assert finding.remedies[0].words == "clip the gradient at a norm of 1 (Pascanu et al. 2013)"
    assert judged(EVEN, norms=[INF])[0].since == 0


@pytest.mark.parametrize("name", ["ratio", "update_ratio", "explosion", "jump", "trend", "loss_share"])
def test_thresholds_that_are_not_positive_are_named(name):
    with pytest.raises(ValueError, match=f"{name} must be above 0"):
        judged(EVEN, **{name: 0.0})


def test_sequences_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="of the same steps, got 1, 2 and 1 of them"):
        flow_findings([(0, EVEN)], [1.0, 2.0], [1.0])
