"""The scaling laws: of the rate, of betas and eps, of weight decay, and which optimizer follows which."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lbtrain.functional.optimizers import decay_per_epoch, decay_per_step, terminal_step
from lbtrain.functional.scaling import AUTO, Law, auto_rule, exponent, factors, scaled_moments, scaling_factor


def test_the_laws():
    assert scaling_factor(16, "linear") == 16
    assert scaling_factor(16, "sqrt") == 4
    assert scaling_factor(16, "none") == 1
    assert scaling_factor(16, 0.25) == 2


@given(st.floats(0.1, 100), st.floats(0.1, 100), st.sampled_from(["linear", "sqrt", "none", 0.3]))
def test_scaling_twice_equals_scaling_once(a, b, rule):
    assert scaling_factor(a, rule) * scaling_factor(b, rule) == pytest.approx(scaling_factor(a * b, rule))


@pytest.mark.parametrize("rule", ["lineer", None, True, math.inf, math.nan])
def test_an_unknown_rule_is_refused(rule):
    with pytest.raises(ValueError, match="rule must be auto, one of .* or a finite exponent, got"):
        exponent(rule)


@pytest.mark.parametrize("k", [0, -1, math.inf])
def test_a_wrong_ratio_is_refused(k):
    with pytest.raises(ValueError, match="k must be positive and finite"):
        scaling_factor(k, "linear")


def optimizer_of(kind, **options):
    return kind([torch.nn.Parameter(torch.zeros(2, 2))], lr=0.1, **options)


def law_of(kind, law, **options):
    optimizer = optimizer_of(kind, **options)
    return factors(optimizer, optimizer.param_groups[0], law)


LINEAR = ["SGD"]
SQRT = ["Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adafactor", "RMSprop"]


@pytest.mark.parametrize("name", LINEAR + SQRT)
def test_auto_knows_the_law_of_torchs_optimizers(name):
    if not hasattr(torch.optim, name):
        pytest.skip(f"torch {torch.__version__} has no {name}")
    assert auto_rule(optimizer_of(getattr(torch.optim, name))) == ("linear" if name in LINEAR else "sqrt")


@pytest.mark.parametrize(
    ("name", "rule"), [("LARS", "linear"), ("Lamb", "sqrt"), ("AdaFactor", "sqrt"), ("AdaMax", "sqrt")]
)
def test_auto_knows_the_law_of_other_libraries_optimizers(name, rule):
    pytest_optimizer = pytest.importorskip("pytorch_optimizer")
    assert auto_rule(optimizer_of(getattr(pytest_optimizer, name))) == rule


def test_auto_knows_what_derives_from_them():
    class Mine(torch.optim.AdamW):
        pass

    assert auto_rule(optimizer_of(Mine)) == "sqrt"


@pytest.mark.parametrize("name", ["Adagrad", "ASGD", "Rprop", "Adadelta"])
def test_auto_asks_where_no_law_is_known(name):
    with pytest.raises(ValueError, match=rf"no scaling law for the optimizer {name} .*: give rule='linear', 'sqrt'"):
        auto_rule(optimizer_of(getattr(torch.optim, name)))


def test_a_mean_follows_the_samples_and_a_sum_the_batches():
    assert law_of(torch.optim.SGD, Law(samples=16, batches=4)).lr == 16
    assert law_of(torch.optim.SGD, Law(samples=16, batches=4, summed=True)).lr == 4
    assert law_of(torch.optim.SGD, Law(samples=16, batches=4, summed=True, rule="sqrt")).lr == 2


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.RMSprop])
def test_an_optimizer_that_divides_by_the_gradient_does_not_see_a_sum(kind):
    """Its step on a sum equals its step on a mean, so its rate follows the samples in both cases."""
    assert law_of(kind, Law(samples=16, batches=1, summed=True)).lr == 4
    weights = [torch.nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2)]
    for w, times in zip(weights, (1.0, 64.0), strict=True):
        optimizer = kind([w], lr=0.1, eps=0.0)
        for step in range(3):
            w.grad = times * torch.tensor([0.3, -2.0, 1.0], dtype=torch.float64) * (step + 1)
            optimizer.step()
    torch.testing.assert_close(*(w.detach() for w in weights), rtol=1e-12, atol=0)


def test_a_parameter_group_has_its_own_rule():
    optimizer = optimizer_of(torch.optim.SGD)
    group = {**optimizer.param_groups[0], "scaling_rule": "sqrt"}
    found = factors(optimizer, group, Law(samples=16))
    assert (found.rule, found.lr) == ("sqrt", 4)
    with pytest.raises(ValueError, match="rule must be auto, one of"):
        factors(optimizer, {**group, "scaling_rule": "cubic"}, Law(samples=16))


def test_moments_follow_the_square_root_law():
    found = law_of(torch.optim.Adam, Law(samples=4, adam_moments=True))
    assert (found.lr, found.moments) == (2, 4)
    moments = scaled_moments({"betas": (0.9, 0.999), "eps": 1e-8, "lr": 1.0}, 4.0)
    assert moments["betas"] == pytest.approx((0.6, 0.996), rel=1e-15)
    assert moments["eps"] == 5e-9
    assert set(moments) == {"betas", "eps"}
    assert scaled_moments({"alpha": 0.99, "eps": 1e-8}, 4.0)["alpha"] == pytest.approx(0.96)
    assert scaled_moments({"betas": (0.0, 0.999), "eps": 1e-8}, 4.0)["betas"] == pytest.approx((0.0, 0.996))


@pytest.mark.parametrize("k", [10.0, 16.0])
def test_moments_beyond_the_laws_range_are_refused(k):
    with pytest.raises(
        ValueError, match=r"1 - k \(1 - beta\) > 0, but k=.* and beta=0.9 in betas .* up to k = 10; take"
    ):
        scaled_moments({"betas": (0.9, 0.999), "eps": 1e-8}, k)


def test_moments_without_the_square_root_are_refused():
    with pytest.raises(
        ValueError, match="adam_moments=True belongs to the square-root law, and Adam has rule='linear'"
    ):
        law_of(torch.optim.Adam, Law(samples=4, rule="linear", adam_moments=True))


def test_sde_of_adam_is_kept_by_the_square_root_law():
    """On pure noise, k times as large a batch and 1/k of the steps leave weights spread as widely (Malladi et al.)."""
    spread = {}
    for k in (1, 4):
        torch.manual_seed(0)
        moments = scaled_moments({"betas": (0.9, 0.99), "eps": 1e-8}, float(k))
        w = torch.nn.Parameter(torch.zeros(20000))
        optimizer = torch.optim.Adam([w], lr=1e-3 * math.sqrt(k), **moments)
        for _ in range(400 // k):
            w.grad = torch.randn_like(w) / math.sqrt(k)
            optimizer.step()
        spread[k] = w.detach().std().item()
    assert spread[4] == pytest.approx(spread[1], rel=0.06)  # the discretization is O(1 - beta); without the law 1.4


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "dampening": 0.5}])
def test_decay_of_sgd_is_what_its_steps_do(options):
    w = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([w], lr=0.01, weight_decay=1e-3, **options)
    share = decay_per_step(optimizer, optimizer.param_groups[0])
    values = []
    for _ in range(400):
        w.grad = torch.zeros_like(w)
        optimizer.step()
        values.append(w.item())
    assert 1 - values[-1] / values[-2] == pytest.approx(share, rel=2e-3)


def test_decay_of_adamw_is_what_its_steps_do():
    optimizer = optimizer_of(torch.optim.AdamW, weight_decay=0.02)
    w = optimizer.param_groups[0]["params"][0]
    with torch.no_grad():
        w.fill_(1.0)
    w.grad = torch.zeros_like(w)
    optimizer.step()
    assert 1 - w[0, 0].item() == pytest.approx(decay_per_step(optimizer, optimizer.param_groups[0]), rel=1e-4)


def test_decay_within_a_normalized_gradient_has_no_share():
    optimizer = optimizer_of(torch.optim.Adam, weight_decay=0.02)
    assert decay_per_step(optimizer, optimizer.param_groups[0]) is None
    with pytest.raises(ValueError, match=r"weight_decay='scale' keeps .*, but Adam adds the decay .*: use AdamW"):
        law_of(torch.optim.Adam, Law(samples=4, scale_decay=True), weight_decay=0.02)
    assert law_of(torch.optim.Adam, Law(samples=4, scale_decay=True)).decay == 1.0


@pytest.mark.parametrize("rule", ["linear", "sqrt", "none", 0.25])
def test_scaled_decay_keeps_the_decay_per_epoch(rule):
    optimizer = optimizer_of(torch.optim.AdamW, weight_decay=0.02)
    group, k = optimizer.param_groups[0], 16.0
    found = factors(optimizer, group, Law(samples=k, rule=rule, scale_decay=True))
    steps = 64
    before = decay_per_step(optimizer, group) * steps
    scaled = {**group, "lr": group["lr"] * found.lr, "weight_decay": group["weight_decay"] * found.decay}
    assert decay_per_step(optimizer, scaled) * steps / k == pytest.approx(before)


def test_the_terminal_step_is_where_momentum_ends():
    group = {"lr": 0.1, "momentum": 0.9}
    assert terminal_step(group) == pytest.approx(1.0)
    assert terminal_step({**group, "dampening": 0.5}) == pytest.approx(0.5)
    assert terminal_step({"lr": 0.1}) == 0.1
    assert terminal_step({"lr": 0.1, "momentum": 1.0}) == math.inf
    w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([w], lr=0.1, momentum=0.9)
    for _ in range(200):
        before = w.item()
        w.grad = torch.ones_like(w)
        optimizer.step()
    assert before - w.item() == pytest.approx(1.0, rel=1e-6)


def test_no_optimizer_has_two_laws():
    names = [name for group in AUTO.values() for name in group]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("decay", [0.01, 1.0, 20.0])
def test_the_decay_of_an_epoch_is_a_share(decay):
    """lr 0.1 and decay 1 leave 0.9 of a weight in each step; from lr * decay = 1 on nothing is left."""
    optimizer = optimizer_of(torch.optim.SGD, weight_decay=decay)
    w = optimizer.param_groups[0]["params"][0]
    with torch.no_grad():
        w.fill_(1.0)
    for _ in range(5):
        w.grad = torch.zeros_like(w)
        optimizer.step()
    share = decay_per_epoch(optimizer, optimizer.param_groups[0], 5)
    assert share == pytest.approx(1 - w[0, 0].item() if decay < 10 else 1.0, rel=1e-4)
    assert (
        decay_per_epoch(optimizer_of(torch.optim.Adam, weight_decay=1.0), {"lr": 0.1, "weight_decay": 1.0}, 5) is None
    )
