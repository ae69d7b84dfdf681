"""Schedules are stretched to exactly what torch builds with the stretched lengths, wherever they stand."""

import copy
import inspect
import math

import pytest
import torch
from torch.optim import lr_scheduler as torch_schedulers
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiplicativeLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from torch.optim.swa_utils import SWALR

from lbtrain.functional.schedules import horizon, lengths, nested, stretch, unknown, warms_up

STEPS = 40


def inverse(step):
    return 1.0 / (1.0 + step)


def at_once(step):
    return 0.5 if step % 8 == 0 else 1.0


class Half:
    """A callable object: torch saves its attributes in the checkpoint."""

    def __init__(self):
        self.base = 0.9

    def __call__(self, step):
        return self.base**step


def product(function, r):
    """Return the factor per stretched step: the product of the factors of the old steps in it."""
    return lambda t: math.prod(function(s) for s in range(math.floor((t - 1) / r) + 1, math.floor(t / r) + 1))


# Each builds a schedule of 40 steps in about 40 r steps, as a user would who writes the stretched lengths down.
def w(steps, r):
    return max(1, round(steps * r))


CASES = {
    "cosine": lambda o, r: CosineAnnealingLR(o, w(40, r), eta_min=0.01),
    "cosine past its end": lambda o, r: CosineAnnealingLR(o, w(16, r), eta_min=0.01),
    "one cycle": lambda o, r: OneCycleLR(o, [0.5, 0.7], total_steps=w(40, r)),
    "one cycle in three": lambda o, r: OneCycleLR(o, 0.5, w(40, r), three_phase=True, anneal_strategy="linear"),
    "cyclic": lambda o, r: CyclicLR(o, 0.01, [0.1, 0.2], step_size_up=8 * r, step_size_down=16 * r),
    "cyclic exp": lambda o, r: CyclicLR(o, 0.01, 0.1, 8 * r, mode="exp_range", gamma=0.9 ** (1 / r)),
    "cyclic own": lambda o, r: CyclicLR(
        o, 0.01, 0.1, 8 * r, scale_fn=lambda t: inverse(t / r), scale_mode="iterations", cycle_momentum=False
    ),
    "cyclic triangular2": lambda o, r: CyclicLR(o, 0.01, 0.1, 8 * r, mode="triangular2"),
    "warm restarts": lambda o, r: CosineAnnealingWarmRestarts(o, w(8, r), T_mult=2, eta_min=0.01),
    "step": lambda o, r: StepLR(o, w(8, r)),
    "milestones": lambda o, r: MultiStepLR(o, [w(8, r), w(20, r), w(20, r)], gamma=0.3),
    "constant": lambda o, r: ConstantLR(o, 0.25, w(8, r)),
    "linear": lambda o, r: LinearLR(o, 0.1, 0.8, w(16, r)),
    "polynomial": lambda o, r: PolynomialLR(o, w(24, r), power=2.0),
    "exponential": lambda o, r: ExponentialLR(o, 0.9 ** (1 / r)),
    "lambda": lambda o, r: LambdaLR(o, [lambda t: inverse(t / r), lambda t: 0.5 ** (t / r)]),
    "multiplicative": lambda o, r: MultiplicativeLR(o, product(at_once, r)),
    "swa": lambda o, r: SWALR(o, 0.05, anneal_epochs=w(16, r)),
    "chained": lambda o, r: ChainedScheduler([LinearLR(o, 0.1, 1.0, w(12, r)), ExponentialLR(o, 0.9 ** (1 / r))]),
    "sequential": lambda o, r: SequentialLR(
        o, [LinearLR(o, 0.1, 1.0, w(8, r)), CosineAnnealingLR(o, w(32, r), eta_min=0.01)], [w(8, r)]
    ),
    "sequential of many": lambda o, r: SequentialLR(
        o, [ConstantLR(o, 0.5, w(4, r)), StepLR(o, w(4, r)), PolynomialLR(o, w(20, r))], [w(4, r), w(20, r)]
    ),
    "sequential of chained": lambda o, r: SequentialLR(
        o,
        [ChainedScheduler([LinearLR(o, 0.1, 1.0, w(8, r)), StepLR(o, w(4, r))]), ExponentialLR(o, 0.9 ** (1 / r))],
        [w(16, r)],
    ),
    "chained of sequential": lambda o, r: ChainedScheduler([
        SequentialLR(o, [LinearLR(o, 0.1, 1.0, w(8, r)), StepLR(o, w(8, r))], [w(16, r)]),
        MultiplicativeLR(o, product(at_once, r)),
    ]),
}
# Torch 2.4 cannot build this one, and shares tensor rates between the schedulers of a sequence.
OLD = not hasattr(SequentialLR, "recursive_undo")
if OLD:
    del CASES["sequential of chained"]
# As torch does not keep OneCycleLR's pct_start, it comes back with a rounding error.
ROUNDED = {"one cycle", "one cycle in three"}
RATIOS = [0.25, 0.5, 4.0]


def sgd(tensor=False):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.1, 0.3)]
    if tensor:
        groups = [{**group, "lr": torch.tensor(group["lr"], dtype=torch.float64)} for group in groups]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    optimizer._opt_called = True  # torch warns of a ChainedScheduler in a SequentialLR before the first step
    return optimizer


def seen(optimizer):
    return [(float(group["lr"]), group["momentum"]) for group in optimizer.param_groups]


def walk(optimizer, scheduler, steps):
    """Step on, and return all rates and momenta on the way."""
    rows = [seen(optimizer)]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        rows.append(seen(optimizer))
    return rows


def equal(first, second, name):
    assert len(first) == len(second)
    if name in ROUNDED:
        flat = [[v for row in rows for pair in row for v in pair] for rows in (first, second)]
        assert flat[0] == pytest.approx(flat[1], rel=1e-12, abs=1e-15)
    else:
        assert first == second


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("name", CASES)
def test_fresh_schedule_is_the_one_built_with_the_stretched_lengths(name, ratio):
    stretched, built = sgd(), sgd()
    scheduler, twin = CASES[name](stretched, 1), CASES[name](built, ratio)
    assert stretch(scheduler, ratio) == []
    equal(walk(stretched, scheduler, int(STEPS * ratio)), walk(built, twin, int(STEPS * ratio)), name)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("name", CASES)
def test_schedule_goes_on_at_the_same_share_of_its_course(name, ratio):
    stretched, built = sgd(), sgd()
    scheduler, twin = CASES[name](stretched, 1), CASES[name](built, ratio)
    walk(stretched, scheduler, 20)
    assert stretch(scheduler, ratio) == []
    walk(built, twin, int(20 * ratio))
    left = int(20 * ratio)
    equal(walk(stretched, scheduler, left), walk(built, twin, left), name)
    assert scheduler.get_last_lr() == pytest.approx([group["lr"] for group in stretched.param_groups], rel=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_stretching_there_and_back_changes_nothing(name):
    optimizer, untouched = sgd(), sgd()
    scheduler, twin = CASES[name](optimizer, 1), CASES[name](untouched, 1)
    walk(optimizer, scheduler, 16)
    walk(untouched, twin, 16)
    stretch(scheduler, 0.25)
    stretch(scheduler, 4.0)
    first, second = walk(optimizer, scheduler, 24), walk(untouched, twin, 24)
    flat = [[v for row in rows for pair in row for v in pair] for rows in (first, second)]
    assert flat[0] == pytest.approx(flat[1], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_checkpoint_of_a_stretched_schedule_continues_where_it_was(name, tmp_path):
    optimizer = sgd()
    scheduler = CASES[name](optimizer, 1)
    if "anneal_func" in scheduler.state_dict():
        pytest.skip("torch 2.4 saves a function of SWALR")
    stretch(scheduler, 0.5)
    walk(optimizer, scheduler, 9)
    torch.save({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}, tmp_path / "c.pt")
    # `Counter` and the schedulers' own states are what torch saves; a stretched function must not be among it.
    saved = torch.load(tmp_path / "c.pt", weights_only=True)
    resumed = sgd()
    again = CASES[name](resumed, 1)
    resumed.load_state_dict(saved["optimizer"])
    again.load_state_dict(saved["scheduler"])
    stretch(again, 0.5, functions_only=True)
    equal(walk(resumed, again, 11), walk(optimizer, scheduler, 11), name)


def test_callable_objects_keep_what_torch_saves_of_them():
    optimizer, resumed = sgd(), sgd()
    scheduler, again = LambdaLR(optimizer, Half()), LambdaLR(resumed, Half())
    scheduler.lr_lambdas[0].base = 0.8
    stretch(scheduler, 0.5)
    state = copy.deepcopy(scheduler.state_dict())
    assert state["lr_lambdas"] == [{"base": 0.8}, {"base": 0.8}]
    again.load_state_dict(state)
    stretch(again, 0.5, functions_only=True)
    assert walk(resumed, again, 5)[-1][0][0] == pytest.approx(0.1 * 0.8**10)


def test_functions_of_whole_steps_are_asked_for_whole_steps():
    table = [1.0, 0.5, 0.25, 0.125, 0.0625]
    asked = []

    def function(step):
        asked.append(step)
        return table[step]

    optimizer = sgd()
    scheduler = LambdaLR(optimizer, function)
    stretch(scheduler, 2.0)
    assert [row[0][0] for row in walk(optimizer, scheduler, 4)] == [0.1, 0.1, 0.05, 0.05, 0.025]
    assert all(isinstance(step, int) for step in asked if step == round(step))


@pytest.mark.parametrize("name", ["cosine", "one cycle", "exponential", *([] if OLD else ["sequential"])])
def test_tensor_rates_are_filled_in_place(name):
    optimizer, built = sgd(tensor=True), sgd(tensor=True)
    scheduler, twin = CASES[name](optimizer, 1), CASES[name](built, 0.5)
    walk(optimizer, scheduler, 20)
    held = [group["lr"] for group in optimizer.param_groups]
    stretch(scheduler, 0.5)
    assert all(group["lr"] is rate for group, rate in zip(optimizer.param_groups, held, strict=True))
    walk(built, twin, 10)
    assert [float(g["initial_lr"]) for g in optimizer.param_groups] == [
        float(g["initial_lr"]) for g in built.param_groups
    ]
    equal(walk(optimizer, scheduler, 10), walk(built, twin, 10), "one cycle")


def test_betas_cycle_with_the_rate():
    optimizers = [torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=0.1) for _ in range(2)]
    scheduler, twin = (OneCycleLR(o, 0.1, total_steps=n) for o, n in zip(optimizers, (40, 10), strict=True))
    for steps, part in ((20, scheduler), (5, twin)):
        for _ in range(steps):
            part.optimizer.step()
            part.step()
    stretch(scheduler, 0.25)
    assert optimizers[0].param_groups[0]["betas"] == pytest.approx(optimizers[1].param_groups[0]["betas"], rel=1e-12)


def test_rate_that_something_else_has_changed_keeps_that_change():
    optimizer, alone = sgd(), sgd()
    scheduler, twin = CASES["exponential"](optimizer, 1), CASES["cosine"](alone, 1)
    other = CASES["cosine"](optimizer, 1)
    walk(alone, twin, 20)
    for _ in range(20):
        optimizer.step()
        scheduler.step()
        other.step()
    before = seen(optimizer)
    stretch(scheduler, 0.5)
    # The exponential is where it was, at its own new step 10: nothing else moves.
    assert [row[0] for row in seen(optimizer)] == pytest.approx([row[0] for row in before], rel=1e-12)
    for group in optimizer.param_groups:
        group["lr"] *= 0.5
    halved = [row[0] for row in seen(optimizer)]
    stretch(StepLR(optimizer, 10), 0.5)
    assert [row[0] for row in seen(optimizer)] == halved


def test_rounded_position_multiplies_a_shared_rate_by_the_ratio_of_the_schedules():
    optimizer = sgd()
    scheduler = ExponentialLR(optimizer, 0.9)
    walk(optimizer, scheduler, 5)
    optimizer.param_groups[0]["lr"] *= 0.5
    stretch(scheduler, 0.5)  # 2.5 steps become 2, which stand for 4 old ones
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * 0.1 * 0.9**4, rel=1e-12)
    assert optimizer.param_groups[1]["lr"] == pytest.approx(0.3 * 0.9**4, rel=1e-12)
    assert scheduler.get_last_lr() == [group["lr"] for group in optimizer.param_groups]


def test_rate_of_a_schedule_that_was_at_zero_is_not_divided_by_it():
    optimizer = sgd()
    scheduler = PolynomialLR(optimizer, 4)
    walk(optimizer, scheduler, 4)
    optimizer.param_groups[0]["lr"] = 0.05  # by someone who goes on
    stretch(scheduler, 0.5)
    assert seen(optimizer)[0][0] == 0.05
    optimizer = sgd()
    scheduler = LambdaLR(optimizer, lambda step: step % 2)
    walk(optimizer, scheduler, 2)
    optimizer.param_groups[0]["lr"] = 0.05
    stretch(scheduler, 0.75)  # 1.5 steps become 2, which stand for 2 2/3
    assert seen(optimizer)[0][0] == pytest.approx(0.1 * 2 / 3)


def test_position_is_rounded_to_the_nearest_step():
    optimizer = sgd()
    scheduler = ExponentialLR(optimizer, 0.9)
    walk(optimizer, scheduler, 3)
    stretch(scheduler, 0.6)
    assert scheduler.last_epoch == 2


def test_factors_count_every_old_step_once():
    optimizer = sgd()
    scheduler = MultiplicativeLR(optimizer, lambda step: 0.5)
    stretch(scheduler, 0.1)
    stretch(scheduler, 3.0)  # 0.1 x 3 is a little more than 0.3
    assert walk(optimizer, scheduler, 3)[-1][0][0] == pytest.approx(0.1 * 0.5**10)


def test_factors_are_never_asked_for_steps_before_the_first():
    asked = []

    def function(step):
        asked.append(step)
        return 0.5

    optimizer = sgd()
    parts = [ConstantLR(optimizer, 1.0, 4), MultiplicativeLR(optimizer, function)]
    scheduler = SequentialLR(optimizer, parts, [4])
    stretch(scheduler, 0.25)
    walk(optimizer, scheduler, 2)
    assert min(asked) >= 0
    assert {step for step in asked if step > 0} == {1, 2, 3, 4}


def test_plateau_multiplies_its_patience_and_its_counts():
    optimizer = sgd()
    scheduler = ReduceLROnPlateau(optimizer, patience=8, cooldown=1)
    for metric in (1.0, 2.0, 2.0, 2.0, 2.0):
        scheduler.step(metric)
    assert stretch(scheduler, 0.5) == []
    assert (scheduler.patience, scheduler.cooldown, scheduler.num_bad_epochs) == (4, 1, 2)
    assert seen(optimizer) == [(0.1, 0.9), (0.3, 0.9)]
    for _ in range(3):
        scheduler.step(2.0)
    assert seen(optimizer)[0][0] == pytest.approx(0.01)


def test_one_cycle_is_never_a_step_too_short():
    optimizer = sgd()
    scheduler = OneCycleLR(optimizer, 0.5, total_steps=100)
    stretch(scheduler, 1 / 3)
    assert scheduler.total_steps == 34


def test_one_cycle_whose_first_phase_ends_at_once_still_runs():
    optimizer = sgd()
    scheduler = OneCycleLR(optimizer, 0.5, total_steps=40, pct_start=0.25)
    with pytest.raises(ZeroDivisionError):
        OneCycleLR(sgd(), 0.5, total_steps=4, pct_start=0.25)
    stretch(scheduler, 0.1)
    rates = [row[0][0] for row in walk(optimizer, scheduler, 3)]
    assert rates[0] == pytest.approx(0.02)
    assert rates[-1] == pytest.approx(0.02 / 1e4)


def test_lengths_never_fall_to_zero_and_zero_stays_zero():
    optimizer = sgd()
    scheduler = SequentialLR(optimizer, [ConstantLR(optimizer, 1.0, 0), StepLR(optimizer, 3)], [2])
    stretch(scheduler, 0.01)
    assert lengths(scheduler) == {
        "SequentialLR.milestones": [1],
        "SequentialLR[0].ConstantLR.total_iters": 0,
        "SequentialLR[1].StepLR.step_size": 1,
    }
    endless = ConstantLR(sgd(), 0.5, math.inf)
    stretch(endless, 0.5)
    assert lengths(endless) == {"ConstantLR.total_iters": math.inf}


@pytest.mark.parametrize("ratio", [0.0, -1.0, math.inf, math.nan])
def test_impossible_ratio_is_refused(ratio):
    with pytest.raises(ValueError, match="ratio must be positive and finite, got .*: give new steps / old steps"):
        stretch(CASES["cosine"](sgd(), 1), ratio)


class Own(LRScheduler):
    def get_lr(self):
        return [base * 0.9**self.last_epoch for base in self.base_lrs]


class OwnCosine(CosineAnnealingLR):
    pass


def test_schedules_that_nobody_knows_are_named_and_left_alone():
    optimizer = sgd()
    held = [LinearLR(optimizer, 0.1, 1.0, 8), Own(optimizer), OwnCosine(optimizer, 8)]
    scheduler = SequentialLR(optimizer, held, [8, 16])
    before = scheduler.state_dict()
    assert unknown([scheduler]) == ["Own", "OwnCosine"]
    assert stretch(scheduler, 0.5) == ["Own", "OwnCosine"]
    assert scheduler.state_dict() == before
    assert unknown([CASES[name](sgd(), 1) for name in CASES]) == []
    namesake = type("StepLR", (Own,), {})(sgd())
    assert unknown([namesake]) == ["StepLR"]
    for part in (held[1], namesake):
        assert (lengths(part), horizon(part), warms_up(part)) == ({}, None, None)


def test_every_scheduler_of_torch_is_known():
    public = {name for name in torch_schedulers.__all__ if name != "LRScheduler"}
    built = {type(part).__name__ for name in CASES for part in nested([CASES[name](sgd(), 1)])}
    assert public - built <= {"ReduceLROnPlateau"}
    assert all(inspect.isclass(getattr(torch_schedulers, name)) for name in public)


@pytest.mark.parametrize("name", CASES)
def test_every_schedule_lists_what_it_counts(name):
    scheduler = CASES[name](sgd(), 1)
    found = lengths(scheduler)
    assert found
    owners = {key.rpartition(".")[0].rpartition("].")[2] for key in found}
    assert owners == {type(part).__name__ for part in nested([scheduler])} - {"ChainedScheduler"}


def test_lengths_are_named_by_class_and_argument():
    assert lengths(CASES["cosine"](sgd(), 1)) == {"CosineAnnealingLR.T_max": 40}
    assert lengths(CASES["milestones"](sgd(), 1)) == {"MultiStepLR.milestones": [8, 20, 20]}
    assert lengths(CASES["cyclic"](sgd(), 1)) == {"CyclicLR.step_size_up": 8.0, "CyclicLR.step_size_down": 16.0}
    assert lengths(CASES["cyclic exp"](sgd(), 1))["CyclicLR.gamma"] == 0.9
    assert lengths(CASES["exponential"](sgd(), 1)) == {"ExponentialLR.gamma": 0.9}
    assert lengths(CASES["lambda"](sgd(), 1)) == {"LambdaLR.lr_lambdas": "a function of the step"}
    assert lengths(ReduceLROnPlateau(sgd())) == {"ReduceLROnPlateau.patience": 10, "ReduceLROnPlateau.cooldown": 0}
    assert lengths(CASES["chained of sequential"](sgd(), 1)) == {
        "ChainedScheduler[0].SequentialLR.milestones": [16],
        "ChainedScheduler[0].SequentialLR[0].LinearLR.total_iters": 8,
        "ChainedScheduler[0].SequentialLR[1].StepLR.step_size": 8,
        "ChainedScheduler[1].MultiplicativeLR.lr_lambdas": "a function of the step",
    }


ENDS = {
    "cosine": 40,
    "one cycle": 40,
    "milestones": 20,
    "constant": 8,
    "linear": 16,
    "polynomial": 24,
    "swa": 16,
    "sequential": 40,
    "sequential of many": 40,
}


@pytest.mark.parametrize("name", CASES)
def test_horizon_is_where_the_schedule_has_run_its_course(name):
    end = {"cosine past its end": 16, "one cycle in three": 40, **ENDS}.get(name)
    assert horizon(CASES[name](sgd(), 1)) == end


def test_horizon_of_chained_schedules_is_the_last_one_s():
    optimizer = sgd()
    assert horizon(ChainedScheduler([LinearLR(optimizer, total_iters=5), PolynomialLR(optimizer, 9)])) == 9
    assert horizon(MultiStepLR(sgd(), [])) == 0
    assert horizon(ConstantLR(sgd(), total_iters=math.inf)) is None


@pytest.mark.parametrize("name", ["milestones", "constant", "linear", "polynomial", "sequential of many", "swa"])
def test_rates_stay_after_the_horizon(name):
    optimizer = sgd()
    scheduler = CASES[name](optimizer, 1)
    rows = walk(optimizer, scheduler, 60)
    end = horizon(scheduler)
    assert all(row == rows[end] for row in rows[end:])
    assert rows[end] != rows[end - 1]


CLIMBS = {
    "one cycle": "OneCycleLR climbs to max_lr first",
    "one cycle in three": "OneCycleLR climbs to max_lr first",
    "constant": "ConstantLR holds 0.25 of the rate before it gives it all",
    "linear": "LinearLR climbs from 0.1 to 0.8 of the rate",
    "chained": "LinearLR climbs from 0.1 to 1 of the rate",
    "sequential": "LinearLR climbs from 0.1 to 1 of the rate",
    "sequential of many": "ConstantLR holds 0.5 of the rate before it gives it all",
    "sequential of chained": "LinearLR climbs from 0.1 to 1 of the rate",
    "chained of sequential": "LinearLR climbs from 0.1 to 1 of the rate",
    **{name: "CyclicLR climbs from base_lr to max_lr in each cycle" for name in CASES if name.startswith("cyclic")},
}


@pytest.mark.parametrize("name", CASES)
def test_a_schedule_that_begins_below_its_peak_says_so(name):
    assert warms_up(CASES[name](sgd(), 1)) == CLIMBS.get(name)


def test_functions_that_grow_at_the_first_step_are_a_warmup():
    assert warms_up(LambdaLR(sgd(), lambda step: min(1.0, step / 10))).startswith("LambdaLR has a function")
    assert warms_up(MultiplicativeLR(sgd(), lambda step: 1.1 if step < 10 else 1.0)).startswith("MultiplicativeLR")
    assert warms_up(LinearLR(sgd(), 1.0, 0.1)) is None
    assert warms_up(ConstantLR(sgd(), 1.0)) is None
    optimizer = sgd()
    later = [StepLR(optimizer, 5), LinearLR(optimizer, 0.1, 1.0)]
    assert warms_up(SequentialLR(optimizer, later, [10])) is None
