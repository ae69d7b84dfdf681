"""Gradients held against central differences: right ones pass, wrong ones are found and named, kinks are no errors."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from lbtrain.functional._gradient_line import judge
from lbtrain.functional.gradient_check import gradient_check, gradient_finding
from tests.problems import generator, leaf


class Halved(torch.autograd.Function):
    """The identity, with half of its gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g / 2


class Through(torch.autograd.Function):
    """A threshold with the gradient of the identity."""

    @staticmethod
    def forward(ctx, x):
        return (x > 0).to(x)

    @staticmethod
    def backward(ctx, g):
        return g


def data(features=4, samples=16, dtype=torch.float64):
    x = torch.randn(samples, features, generator=generator(3), dtype=dtype)
    return x, torch.randint(0, 3, (samples,), generator=generator(4))


def network(*layers, dtype=torch.float64):
    """Return layers with seeded weights."""
    net = nn.Sequential(*layers).to(dtype)
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(torch.randn(p.shape, generator=generator(i), dtype=dtype) / max(1, p[0].numel()) ** 0.5)
    return net


def checked(net, inputs=None, *, after=lambda z: z, **options):
    x, y = data(dtype=next(net.parameters()).dtype)
    x = x if inputs is None else inputs
    names, params = zip(*net.named_parameters(), strict=True)
    return gradient_check(lambda: functional.cross_entropy(after(net(x)), y), params, names, generator(), **options)


def kinds(check):
    return {t.name: t.kind for t in check.tensors}


def wrong(check):
    return {t.name for t in check.wrong}


def mlp(activation=None, dtype=torch.float64):
    return network(nn.Linear(4, 6), activation or nn.Tanh(), nn.Linear(6, 3), dtype=dtype)


def test_of_a_cubic_both_numbers_are_the_slope_in_closed_form():
    w = leaf([1.0, -2.0, 3.0])
    found = gradient_check(lambda: (w**3).sum(), [w], ["w"], generator(7), per_tensor=True)
    draw = generator(7)
    for _ in range(2):
        torch.randn(3, generator=draw, dtype=torch.float64)
    direction = torch.randn(3, generator=draw, dtype=torch.float64) * math.sqrt(14 / 3)
    slope = float((3 * w.detach() ** 2) @ direction)
    (only,) = found.tensors
    assert only.autograd == pytest.approx(slope, rel=1e-14)
    assert only.difference == pytest.approx(slope, rel=1e-8)
    assert only.kind == "ok"
    assert found.passes
    assert gradient_finding(found) is None


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.ReLU(), nn.GELU(), nn.Softplus()])
def test_a_right_network_passes_with_little_effort(activation):
    found = checked(mlp(activation))
    assert found.passes
    assert found.tensors == ()
    assert max(d.error for d in found.directions) < 1e-6
    assert found.num_evaluations == 2 + 2 * 2


def test_every_tensor_is_looked_at_on_demand():
    found = checked(mlp(), per_tensor=True)
    assert set(kinds(found).values()) == {"ok"}
    assert len(found.tensors) == 4
    assert max(t.error for t in found.tensors) < 1e-7


def test_a_wrong_backward_is_found_in_all_layers_before_it_with_both_numbers():
    class Wrong(nn.Module):
        def forward(self, x):
            return Halved.apply(x)

    net = network(nn.Linear(4, 6), nn.Tanh(), Wrong(), nn.Linear(6, 3))
    found = checked(net)
    assert wrong(found) == {"0.weight", "0.bias"}
    assert kinds(found)["3.weight"] == "ok"
    worst = found.tensors[0]
    assert worst.autograd == pytest.approx(worst.difference / 2, rel=1e-6)
    assert worst.error == pytest.approx(0.5, rel=1e-6)
    assert worst.expected < 1e-7
    finding = gradient_finding(found)
    assert (finding.problem, finding.since) == ("incorrect gradients", 0)
    assert f"layer {worst.name}: autograd says {worst.autograd:.3g}, central differences" in finding.evidence
    assert "error 50%" in finding.evidence
    assert "1 more of 4 tensors are wrong: 0." in finding.evidence
    assert finding.severity == pytest.approx(500, rel=1e-3)


def test_a_misplaced_detach_is_found():
    class Cut(nn.Module):
        def forward(self, x):
            return x.detach()

    found = checked(network(nn.Linear(4, 6), nn.Tanh(), Cut(), nn.Linear(6, 3)))
    assert wrong(found) == {"0.weight", "0.bias"}
    assert {t.autograd for t in found.wrong} == {0.0}


def test_a_loss_that_is_cut_off_altogether_is_found():
    w = leaf([1.0, 2.0])
    found = gradient_check(lambda: (w.detach() ** 2).sum(), [w], ["w"], generator())
    assert wrong(found) == {"w"}


def test_an_edit_in_place_under_no_grad_is_found():
    def after(z):
        with torch.no_grad():
            z.mul_(3)
        return z

    assert wrong(checked(mlp(), after=after)) == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_an_error_of_one_small_tensor_alone_is_found():
    big, small = leaf(torch.randn(1000, generator=generator(1), dtype=torch.float64)), leaf([1e-3])
    found = gradient_check(
        lambda: (big**2).mean() + 10 * Halved.apply(small).sum(), [big, small], ["b", "s"], generator()
    )
    assert wrong(found) == {"s"}


def test_a_gradient_that_is_no_number_where_the_loss_is_one_is_an_error():
    w = leaf([0.0, 1.0])
    found = gradient_check(lambda: torch.where(w > 0, w, (w * 0).sqrt()).sum(), [w], ["w"], generator())
    assert wrong(found) == {"w"}


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(), nn.Hardtanh(), nn.ReLU6()])
def test_weights_that_stand_at_kinks_are_no_error(activation):
    # Zero biases and a sample of zeros: all hidden units stand at the kink of ReLU, with slopes of both signs behind.
    net = mlp(activation)
    with torch.no_grad():
        net[0].bias.zero_()
    x, _ = data()
    x[:8] = 0
    found = checked(net, x, per_tensor=True)
    assert found.passes
    if not isinstance(activation, nn.Hardtanh) or isinstance(activation, nn.ReLU6):
        assert kinds(found)["0.bias"] == "kink"
    assert kinds(found)["2.weight"] == "ok"


def test_half_an_absolute_value_at_zero_is_a_kink_and_beside_it_right():
    w = leaf([0.0, 0.0, 0.0])
    found = gradient_check(lambda: w.relu().sum() + w @ torch.ones(3, dtype=torch.float64), [w], ["w"], generator())
    assert kinds(found) == {"w": "kink"}
    assert found.passes


def test_an_error_behind_kinks_is_found_all_the_same():
    net = mlp(nn.ReLU())
    with torch.no_grad():
        net[0].bias.zero_()
    x, _ = data()
    x[:8] = 0
    found = checked(net, x, after=Halved.apply)
    assert wrong(found) == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_pooling_over_equal_pixels_is_no_error():
    net = network(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 3))
    x = torch.randn(16, 1, 8, 8, generator=generator(5), dtype=torch.float64)
    x[:, :, :, :4] = 0
    assert checked(net, x, per_tensor=True).passes


def test_hard_thresholds_are_flat_and_no_error_but_a_gradient_through_them_is_wrong():
    class Hard(nn.Module):
        def forward(self, x):
            return (x > 0).to(x) + 0 * x

    class Straight(nn.Module):
        def forward(self, x):
            return Through.apply(x)

    flat = checked(mlp(Hard()), per_tensor=True)
    assert set(kinds(flat).values()) == {"ok"}
    assert wrong(checked(mlp(Straight()))) == {"0.weight", "0.bias"}


def test_dead_units_have_no_slope_and_no_error():
    net = mlp(nn.ReLU())
    with torch.no_grad():
        net[0].bias.fill_(-100)
    found = checked(net, per_tensor=True)
    assert set(kinds(found).values()) == {"ok"}
    assert {t.name for t in found.tensors if t.autograd == t.difference == 0} >= {"0.weight", "0.bias"}


def test_a_loss_rounded_to_float32_inside_is_no_error():
    for scale in (1.0, 1e-2, 1e-5):
        base = checked(mlp(), after=lambda z, s=scale: (s * z).float(), per_tensor=True)
        hidden = checked(mlp(), after=lambda z, s=scale: (s * z).float().double(), per_tensor=True)
        assert base.passes
        assert hidden.passes
        assert base.tolerance == 0.05


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.ReLU()])
def test_float32_passes_with_its_own_step_and_still_finds_an_error(activation):
    assert checked(mlp(activation, torch.float32), per_tensor=True).passes
    found = checked(mlp(activation, torch.float32), after=Halved.apply)
    assert {"0.weight", "2.weight"} <= wrong(found)


def test_weights_come_back_bit_for_bit_also_when_the_loss_raises():
    net = mlp(dtype=torch.float32)
    before = [p.clone() for p in net.parameters()]
    checked(net, after=Halved.apply)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    calls = []

    def after(z):
        calls.append(1)
        if len(calls) == 4:
            raise KeyError("no more")
        return z

    with pytest.raises(KeyError):
        checked(net, after=after)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert all(p.grad is None for p in net.parameters())


def test_a_loss_that_edits_its_weights_in_place_leaves_no_trace():
    w = leaf([3.0, 4.0])

    def loss():
        with torch.no_grad():
            w.mul_(0.5)
        return (w**2).sum()

    found = gradient_check(loss, [w], ["w"], generator())
    assert w.tolist() == [3.0, 4.0]
    assert wrong(found) == {"w"}


def test_of_a_random_loss_nothing_is_judged():
    w, draw = leaf([1.0]), generator()
    found = gradient_check(lambda: (w * torch.rand(1, generator=draw)).sum(), [w], ["w"], generator())
    assert found.passes
    assert found.tensors == ()
    assert "the loss is random" in found.reason


def test_of_a_loss_that_is_not_finite_nothing_is_judged():
    w = leaf([1.0])
    found = gradient_check(lambda: (w * math.nan).sum(), [w], ["w"], generator())
    assert (found.passes, found.reason) == (True, "the loss is nan, so its differences say nothing")


def test_a_loss_that_is_not_finite_beside_the_weights_is_unknown():
    w = leaf([0.0])
    found = gradient_check(lambda: torch.where(w > 0, math.inf, 2 * w).sum(), [w], ["w"], generator())
    assert found.passes
    assert {d.kind for d in found.directions} == {"unknown"}


def test_noise_in_the_values_is_not_taken_for_an_error():
    # Of the size that makes differences of the first step wrong by 10 %: other steps then say something else.
    for seed in range(40):
        draw = generator(seed)

        def value(t, draw=draw):
            return 1 + t + 6e-7 * float(torch.randn(1, generator=draw))

        assert judge(value, 1.0, 1.0, eps=2e-16, step=6e-6, tolerance=1e-3).kind != "error"


def verdict(value, autograd=1.0):
    return judge(value, value(0.0), autograd, eps=2.2e-16, step=6e-6, tolerance=1e-3).kind


def test_a_kink_within_reach_of_the_first_step_drops_out_of_shorter_ones():
    assert verdict(lambda t: 1 + t + 5 * max(0.0, t - 3e-6)) == "ok"
    assert verdict(lambda t: 1 + t + 5 * max(0.0, t - 3e-6), autograd=2.0) == "error"


def test_a_kink_at_the_point_is_told_from_a_curvature():
    assert verdict(lambda t: 1 + t + 5 * max(0.0, t)) == "kink"
    assert verdict(lambda t: 1 + t + 100 * t * t, autograd=1.1) == "error"


def test_differences_that_agree_with_each_other_by_rounding_alone_are_not_trusted():
    # 1.33 at the first two steps, since the values are multiples of 8e-6, and 0 at all others.
    assert verdict(lambda t: 1 + 8e-6 * round(t / 8e-6)) == "unknown"


def test_differences_that_disagree_with_each_other_prove_nothing():
    assert verdict(lambda t: 1 + t + 1e-6 * math.sin(1e9 * t)) == "unknown"


def test_a_slope_below_the_rounding_of_the_loss_is_right():
    assert verdict(lambda t: 1.0, autograd=1e-10) == "ok"
    assert verdict(lambda t: 1.0, autograd=1e-8) == "error"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": []}, "params and names"),
        ({"directions": 0}, "directions must be at least 1"),
        ({"step": 0.0}, "step must be between 0 and 1"),
        ({"tolerance": 1.0}, "tolerance must be between 0 and 1"),
        ({"params": [torch.zeros(1, dtype=torch.long)]}, "params must be floating tensors"),
    ],
)
def test_wrong_arguments_are_refused(change, message):
    w = leaf([1.0])
    arguments = {"params": [w], "names": ["w"], **change}
    with pytest.raises(ValueError, match=message):
        gradient_check(lambda: w.sum(), generator=generator(), **arguments)
