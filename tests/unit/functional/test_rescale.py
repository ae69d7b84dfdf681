"""Scaling afterwards equals building with the scaled rate, for every schedule; marks; what cannot follow."""

import pytest
import torch
from torch.optim import lr_scheduler as ls

from lbtrain.functional.rescale import UNSCALED, mark, marked, rescale_others, rescale_rates
from lbtrain.functional.scaling import Factors
from tests.schedules import SCHEDULERS

K = 4.0


def rates(name, factor, after):
    """Return 18 rates of a run built with the rate times `factor`, then scaled by K / factor."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1 * factor, momentum=0.9)
    scheduler = SCHEDULERS[name](optimizer, factor)
    seen = []
    for step in range(18):
        if step == after:
            rescale_rates(optimizer, [scheduler] if scheduler else [], [K / factor])
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
    rescale_rates(optimizer, [], [3.0])
    assert optimizer.param_groups[0]["lr"].item() == pytest.approx(0.3)
    assert rate.item() == pytest.approx(0.1)


def test_a_rate_that_became_a_tensor_keeps_its_kind():
    optimizer = torch.optim.Adam(
        [torch.nn.Parameter(torch.zeros(1))], lr=torch.tensor(0.1), capturable=True, foreach=False
    )
    rescale_rates(optimizer, [], [3.0])
    assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor)


def two_groups(scheduler):
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": weights[:1]}, {"params": weights[1:], "lr": 0.3}], lr=0.1)
    return optimizer, scheduler(optimizer)


def test_groups_are_multiplied_each_by_its_own_ratio():
    optimizer, scheduler = two_groups(lambda o: ls.LambdaLR(o, lambda e: 0.5**e))
    assert rescale_rates(optimizer, [scheduler], [2.0, 3.0]) == []
    assert scheduler.get_last_lr() == pytest.approx([0.2, 0.9])
    optimizer.step()
    scheduler.step()
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.1, 0.45])


def test_a_floor_common_to_groups_with_different_ratios_is_named():
    optimizer, scheduler = two_groups(lambda o: ls.CosineAnnealingLR(o, 5, eta_min=0.01))
    assert rescale_rates(optimizer, [scheduler], [2.0, 3.0]) == ["CosineAnnealingLR.eta_min=0.01"]
    assert scheduler.eta_min == 0.01
    assert rescale_rates(optimizer, [scheduler], [2.0, 2.0]) == []
    assert scheduler.eta_min == 0.02


def test_floors_stay_where_that_is_wanted():
    optimizer, scheduler = two_groups(lambda o: ls.CosineAnnealingLR(o, 5, eta_min=0.01))
    plateau = ls.ReduceLROnPlateau(optimizer, min_lr=0.02)
    assert rescale_rates(optimizer, [scheduler, plateau], [2.0, 3.0], scale_floor=False) == []
    assert (scheduler.eta_min, plateau.min_lrs) == (0.01, [0.02, 0.02])
    assert scheduler.base_lrs == pytest.approx([0.2, 0.9])


def test_groups_that_came_after_the_scheduler_do_not_keep_the_others_from_being_scaled():
    optimizer, scheduler = two_groups(lambda o: ls.LambdaLR(o, lambda e: 0.5**e))
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 1.0})
    rescale_rates(optimizer, [scheduler], [2.0, 3.0, 4.0])
    assert scheduler.base_lrs == pytest.approx([0.2, 0.9])
    assert optimizer.param_groups[2]["lr"] == 4.0


def test_a_mark_says_what_a_group_contains():
    group = {}
    assert marked(group) is None
    mark(group, Factors("sqrt", 4.0, 2.0, 4.0, 3.0))
    found = marked(group)
    assert (found.lr, found.moments, found.decay) == (2.0, 4.0, 3.0)
    assert all(isinstance(value, float) for value in group.values())


def test_betas_eps_and_decay_go_from_one_batch_to_the_next_and_back():
    before = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
    group = dict(before)
    large = Factors("sqrt", 4.0, 2.0, 4.0, 2.0)
    rescale_others(group, UNSCALED, large)
    assert group["betas"] == pytest.approx((0.6, 0.996))
    assert group["eps"] == pytest.approx(5e-9)
    assert group["weight_decay"] == pytest.approx(0.02)
    assert group["lr"] == 0.1
    rescale_others(group, large, UNSCALED)
    assert group["betas"] == pytest.approx(before["betas"], rel=1e-12)
    assert (group["eps"], group["weight_decay"]) == pytest.approx((1e-8, 0.01))
