"""The scaling laws, and that scaling afterwards equals building with the scaled rate."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler as ls

from lbtrain.functional.scaling import exponent, rescale_rates, scaling_factor

K = 4.0
SCHEDULERS = {
    "none": lambda o, k: None,
    "step": lambda o, k: ls.StepLR(o, 5, 0.5),
    "multistep": lambda o, k: ls.MultiStepLR(o, [4, 9], 0.5),
    "multiplicative": lambda o, k: ls.MultiplicativeLR(o, lambda _: 0.95),
    "constant": lambda o, k: ls.ConstantLR(o, 0.5, 6),
    "linear": lambda o, k: ls.LinearLR(o, 0.3, 1.0, 7),
    "exponential": lambda o, k: ls.ExponentialLR(o, 0.9),
    "polynomial": lambda o, k: ls.PolynomialLR(o, 12, 2.0),
    "lambda": lambda o, k: ls.LambdaLR(o, lambda e: 0.9**e),
    "cosine": lambda o, k: ls.CosineAnnealingLR(o, 10),
    "cosine with floor": lambda o, k: ls.CosineAnnealingLR(o, 10, eta_min=0.01 * k),
    "warm restarts": lambda o, k: ls.CosineAnnealingWarmRestarts(o, 5),
    "warm restarts with floor": lambda o, k: ls.CosineAnnealingWarmRestarts(o, 5, eta_min=0.01 * k),
    "sequential": lambda o, k: ls.SequentialLR(o, [ls.LinearLR(o, 0.1, 1, 5), ls.CosineAnnealingLR(o, 13)], [5]),
    "chained": lambda o, k: ls.ChainedScheduler([ls.LinearLR(o, 0.1, 1, 5), ls.ExponentialLR(o, 0.9)]),
    "one cycle": lambda o, k: ls.OneCycleLR(o, max_lr=0.1 * k, total_steps=18),
    "cyclic": lambda o, k: ls.CyclicLR(o, base_lr=0.02 * k, max_lr=0.1 * k, step_size_up=4),
    "plateau with floor": lambda o, k: ls.ReduceLROnPlateau(o, factor=0.2, patience=1, min_lr=0.005 * k),
}


def rates(name, factor, after):
    """Return 18 rates of a run built with the rate times `factor`, then scaled by K / factor."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1 * factor, momentum=0.9)
    scheduler = SCHEDULERS[name](optimizer, factor)
    seen = []
    for step in range(18):
        if step == after:
            rescale_rates([optimizer], [scheduler] if scheduler else [], K / factor)
        seen.append(optimizer.param_groups[0]["lr"])
        weight.grad = torch.zeros(1)
        optimizer.step()
        if isinstance(scheduler, ls.ReduceLROnPlateau):
            scheduler.step(1.0)
        elif scheduler:
            scheduler.step()
    return seen


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("after", [0, 6])
@pytest.mark.filterwarnings("ignore:The epoch parameter in:UserWarning")
def test_scaling_a_schedule_equals_building_it_with_the_scaled_rate(name, after):
    built = rates(name, K, after)
    torch.testing.assert_close(rates(name, 1.0, after)[after:], built[after:], rtol=1e-12, atol=1e-15)


def test_a_tensor_rate_is_replaced_and_not_multiplied_in_place():
    rate = torch.tensor(0.1)
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=rate, capturable=True, foreach=False)
    rescale_rates([optimizer], [], 3.0)
    assert optimizer.param_groups[0]["lr"].item() == pytest.approx(0.3)
    assert rate.item() == pytest.approx(0.1)


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
    with pytest.raises(ValueError, match="rule must be one of .* or a finite exponent, got"):
        exponent(rule)


@pytest.mark.parametrize("k", [0, -1, math.inf])
def test_a_wrong_ratio_is_refused(k):
    with pytest.raises(ValueError, match="k must be positive and finite"):
        scaling_factor(k, "linear")
