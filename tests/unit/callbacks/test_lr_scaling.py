"""The scaled rate: the line, the numbers, the law under a sum, groups, moments, decay, and what is refused."""

import math

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lbtrain import LearningRateScaling, LossReductionCheck
from lbtrain._lightning import (
    GradientAccumulationScheduler,
    LearningRateFinder,
    LightningModule,
    MisconfigurationException,
    pl,
)
from tests.modules import LeastSquares, Plain, digits_like, fit
from tests.unit.callbacks.rates import Rates, line_of


@pytest.mark.parametrize(
    ("rule", "rate", "options", "line"),
    [
        ("linear", 0.2, {}, "global batch 8 = 8 x 1 x 1, lr 0.1 -> 0.2 (linear, base 4)"),
        ("sqrt", 0.2, {"accumulate_grad_batches": 2}, "global batch 16 = 8 x 1 x 2, lr 0.1 -> 0.2 (sqrt, base 4)"),
        ("none", 0.1, {}, "global batch 8 = 8 x 1 x 1, lr 0.1 -> 0.1 (none, base 4)"),
        (0.25, 0.1 * 2**0.25, {}, "global batch 8 = 8 x 1 x 1, lr 0.1 -> 0.118921 (0.25, base 4)"),
    ],
)
def test_the_line_and_the_numbers(rule, rate, options, line, caplog):
    caplog.set_level("INFO")
    rates = Rates()
    scaling = LearningRateScaling(4, rule=rule)
    trainer = fit(Plain(lr=0.1), digits_like(), [scaling, rates], **options)
    assert line_of(caplog) == line
    assert rates.used == pytest.approx([rate] * len(rates.used))
    shown = {k: v.item() for k, v in trainer.callback_metrics.items()}
    per_step = options.get("accumulate_grad_batches", 1)
    assert shown["lr/base"] == pytest.approx(0.1)
    assert shown["lr/scaled"] == pytest.approx(rate)
    assert shown["lr/factor"] == pytest.approx(rate / 0.1)
    assert shown["batch/global"] == 8 * per_step
    assert (shown["batch/per_device"], shown["batch/accumulate"], shown["batch/data_parallel"]) == (8, per_step, 1)


class Worked(LightningModule):
    """8 of every 64 samples are wrong, with dL/dw = 0.5 for each wrong one."""

    def __init__(self, reduction):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.reduction = reduction

    def training_step(self, batch, batch_idx):
        (wrong,) = batch
        losses = 1.0 + 0.5 * self.w * wrong
        return losses.sum() if self.reduction == "sum" else losses.mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.parametrize(
    ("reduction", "batch_size", "base", "moved"),
    [
        ("sum", 64, 64, -0.08),  # two batches of 64
        ("sum", 128, 64, -0.08),  # one batch of 128: the sum needs no scaling
        ("mean", 64, 1, -0.08),  # lr 0.01 * 64, two batches
        ("mean", 128, 1, -0.08),  # lr 0.01 * 128, one batch
        ("mean", 128, 2, -0.04),  # lr 0.01 * 64 left alone at batch 128: half of it is lost
    ],
)
def test_the_worked_example(reduction, batch_size, base, moved):
    wrong = torch.tensor([1.0] * 8 + [0.0] * 56, dtype=torch.float64).repeat(2)
    loader = DataLoader(TensorDataset(wrong), batch_size=batch_size)
    module = Worked(reduction)
    callbacks = [LearningRateScaling(base), LossReductionCheck(on_problem="ignore")]
    if reduction == "mean" and base == 2:
        callbacks = [LearningRateScaling(base, batch_size=128)]
    fit(module, loader, callbacks)
    assert module.w.item() == pytest.approx(moved, rel=1e-15, abs=0)


@pytest.mark.parametrize("check_first", [False, True])
def test_a_sum_is_not_multiplied_by_the_batch_whatever_the_order(check_first, caplog):
    caplog.set_level("INFO")
    callbacks = [LearningRateScaling(4), LossReductionCheck(on_problem="ignore")]
    rates = Rates()
    module = Plain(reduction="sum", lr=0.1)
    fit(module, digits_like(), [*(callbacks[::-1] if check_first else callbacks), rates], accumulate_grad_batches=3)
    assert rates.used == pytest.approx([0.3, 0.3])
    assert line_of(caplog) == (
        "global batch 24 = 8 x 1 x 3, lr 0.1 -> 0.3 (linear, base 4; the loss is a sum over the batch, so k = "
        "data-parallel x "
        "accumulate = 3)"
    )


def test_a_reduction_of_neither_kind_is_told(caplog):
    caplog.set_level("INFO")
    trainer = fit(Plain(lr=0.1), digits_like(4, 1), [LearningRateScaling(1), LossReductionCheck(on_problem="ignore")])
    assert trainer.callback_metrics["lr/scaled"] == pytest.approx(0.1)
    assert line_of(caplog).endswith("(linear, base 1; loss reduction: unknown, taken as a mean over the batch)")


def test_a_second_fit_starts_afresh():
    scaling = LearningRateScaling(4)
    for _ in range(2):
        module = Plain(lr=0.1)
        trainer = fit(module, digits_like(), [scaling])
        assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.2)


def test_accumulation_that_changes_is_followed():
    rates = Rates()
    schedule = GradientAccumulationScheduler({0: 1, 1: 2})
    fit(Plain(lr=0.1), digits_like(), [LearningRateScaling(4), schedule, rates], max_epochs=2)
    assert rates.used == pytest.approx([0.2] * 6 + [0.4] * 3)


def test_a_given_batch_size_wins():
    trainer = fit(Plain(lr=0.1), digits_like(), [LearningRateScaling(4, batch_size=16)])
    assert trainer.callback_metrics["lr/scaled"] == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base_batch_size": 0}, "base_batch_size must be a whole number of samples, at least 1, got 0"),
        ({"base_batch_size": 2.5}, "base_batch_size must be a whole number .* got 2.5"),
        ({"base_batch_size": 4, "batch_size": -1}, "batch_size must be .* got -1"),
        ({"base_batch_size": 4, "rule": "lineer"}, "rule must be auto, one of .* got 'lineer'"),
        ({"base_batch_size": 4, "warmup_epochs": -1}, "warmup_epochs must be at least 0 and finite, got -1"),
        ({"base_batch_size": 4, "warmup_epochs": math.inf}, "warmup_epochs must be"),
        ({"base_batch_size": 4, "warmup_epochs": "5"}, "warmup_epochs must be at least 0 and finite, got '5'"),
        ({"base_batch_size": 4, "warmup_steps": 1.5}, "warmup_steps must be a whole number of optimizer steps"),
        ({"base_batch_size": 4, "warmup_steps": 1, "warmup_epochs": 1}, "warmup_epochs or warmup_steps, not both"),
        ({"base_batch_size": 4, "reduction": "average"}, "reduction must be one of auto, mean, sum, got 'average'"),
        ({"base_batch_size": 4, "weight_decay": 0.1}, "weight_decay must be one of keep, scale, got 0.1"),
        ({"base_batch_size": 4, "base_batches": 0}, "base_batches must be a whole number of batches, at least 1"),
        ({"base_batch_size": 4, "adam_moments": "yes"}, "adam_moments must be True or False, got 'yes'"),
        ({"base_batch_size": 4, "rule": []}, "rule must be a rule, or a list with one for each optimizer"),
        ({"base_batch_size": 4, "rule": ["linear", "cubic"]}, "rule must be auto, one of .* got 'cubic'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LearningRateScaling(**arguments)


def test_what_would_scale_twice_is_refused():
    with pytest.raises(MisconfigurationException, match="would count the batch twice"):
        fit(Plain(), digits_like(), [LearningRateScaling(4), LearningRateFinder()])

    class Mine(LearningRateScaling):
        pass

    class Yours(LearningRateScaling):
        pass

    for callbacks in ([LearningRateScaling(4), Mine(4)], [Mine(4), Yours(4)]):
        with pytest.raises(MisconfigurationException, match="two LearningRateScaling callbacks"):
            fit(Plain(), digits_like(), callbacks)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_sum_is_found_without_the_check_and_without_a_trace(reduction, caplog):
    caplog.set_level("INFO")
    modules = [Plain(reduction=reduction, lr=0.1) for _ in range(2)]
    modules[1].load_state_dict(modules[0].state_dict())
    fit(modules[0], digits_like(shuffle=True), [LearningRateScaling(4)])
    assert ("is a sum over the batch" in line_of(caplog)) == (reduction == "sum")
    twin = Plain(reduction=reduction, lr=0.2 if reduction == "mean" else 0.1)
    twin.load_state_dict(modules[1].state_dict())
    fit(twin, digits_like(shuffle=True))
    for a, b in zip(modules[0].parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("reduction", "rate"), [("mean", 0.6), ("sum", 0.15)])
def test_a_given_reduction_needs_no_evaluation(reduction, rate):
    calls = []

    class Counting(Plain):
        def training_step(self, batch, batch_idx):
            calls.append(batch_idx)
            return super().training_step(batch, batch_idx)

    rates = Rates()
    scaling = LearningRateScaling(4, reduction=reduction, base_batches=2)
    fit(Counting(lr=0.1), digits_like(), [scaling, rates], accumulate_grad_batches=3)
    assert calls == list(range(6))
    assert rates.used == pytest.approx([rate] * 2)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_64_samples_make_the_same_step_however_they_are_split(reduction):
    """One batch of 64 and 4 accumulated ones of 16 end in the same weights; two devices: tests/distributed."""
    ends = []
    for batch_size, accumulate in ((64, 1), (16, 4)):
        module = LeastSquares(reduction)
        loader = digits_like(256, batch_size, dtype=torch.float64)
        scaling = LearningRateScaling(64)
        fit(module, loader, [scaling], max_epochs=3, accumulate_grad_batches=accumulate)
        ends.append(module.w.detach())
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-15)
    assert ends[0].abs().min() > 1e-3


def test_parameter_groups_are_scaled_each_by_its_own_rule(caplog):
    caplog.set_level("INFO")
    module = Plain()
    first, *rest = module.parameters()
    groups = [{"params": [first]}, {"params": rest, "lr": 0.3, "scaling_rule": "sqrt"}]
    module.configure_optimizers = lambda: torch.optim.SGD(groups, lr=0.1)
    trainer = fit(module, digits_like(), [LearningRateScaling(2)])
    assert [g["lr"] for g in trainer.optimizers[0].param_groups] == pytest.approx([0.4, 0.6])
    assert line_of(caplog).endswith("lr 0.1 -> 0.4 (linear, base 2); group 1: lr 0.3 -> 0.6 (sqrt)")


class TwoOptimizers(Plain):
    """Manual optimization with an optimizer for each layer."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self):
        return torch.optim.SGD(self.net[0].parameters(), lr=0.1), torch.optim.Adam(self.net[2].parameters(), lr=0.01)


@pytest.mark.parametrize(("rule", "rates"), [("auto", (0.4, 0.02)), (["none", 0.25], (0.1, 0.01 * 2**0.5))])
def test_optimizers_are_scaled_each_by_its_own_rule(rule, rates, caplog):
    caplog.set_level("INFO")
    scaling = LearningRateScaling(2, rule=rule, batch_size=8, reduction="mean")
    trainer = fit(TwoOptimizers(), digits_like(), [scaling])
    assert [o.param_groups[0]["lr"] for o in trainer.optimizers] == pytest.approx(rates)
    assert "Adam 1, group 0: lr 0.01 -> " in line_of(caplog)


def test_manual_optimization_is_asked_for_what_only_it_knows():
    for options in ({}, {"batch_size": 8}, {"reduction": "mean"}):
        with pytest.raises(MisconfigurationException, match=r"it alone knows .* give LearningRateScaling\(batch_size="):
            fit(TwoOptimizers(), digits_like(), [LearningRateScaling(2, **options)])


def test_rules_that_do_not_match_the_optimizers_are_refused():
    with pytest.raises(
        MisconfigurationException, match=r"rule lists 2 rules \(linear, sqrt\) for 1 optimizers \(SGD\)"
    ):
        fit(Plain(), digits_like(), [LearningRateScaling(2, rule=["linear", "sqrt"])])


def test_an_unknown_optimizer_is_asked_for_a_rule():
    module = Plain(optimizer=lambda p: torch.optim.Adagrad(p, lr=0.1))
    with pytest.raises(
        MisconfigurationException, match="parameter group 0 of Adagrad: rule='auto' knows no scaling law"
    ):
        fit(module, digits_like(), [LearningRateScaling(2)])
    trainer = fit(module, digits_like(), [LearningRateScaling(2, rule="sqrt")])
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.2)


def test_moments_follow_the_batch_and_are_told(caplog):
    caplog.set_level("INFO")
    module = Plain(optimizer=lambda p: torch.optim.Adam(p, lr=0.01))
    trainer = fit(module, digits_like(), [LearningRateScaling(2, adam_moments=True)])
    group = trainer.optimizers[0].param_groups[0]
    assert (*group["betas"], group["eps"], group["lr"]) == pytest.approx((0.6, 0.996, 5e-9, 0.02))
    assert line_of(caplog).endswith("(sqrt, base 2); betas 0.6, 0.996, eps 5e-09, from betas 0.9, 0.999, eps 1e-08")


def test_moments_beyond_their_law_are_refused_with_nothing_changed():
    module = Plain()
    adam = torch.optim.Adam([{"params": module.net[0].parameters()}, {"params": module.net[2].parameters()}], lr=0.01)
    adam.param_groups[1]["betas"] = (0.5, 0.999)
    module.configure_optimizers = lambda: adam
    with pytest.raises(
        MisconfigurationException, match=r"parameter group 1 of Adam: adam_moments=True asks for .* k = 2;"
    ):
        fit(module, digits_like(), [LearningRateScaling(2, adam_moments=True)])
    assert [(g["lr"], g["betas"]) for g in adam.param_groups] == [(0.01, (0.9, 0.999)), (0.01, (0.5, 0.999))]
    with pytest.raises(
        MisconfigurationException, match=r"adam_moments=True\) scales betas and eps, which SGD does not have"
    ):
        fit(Plain(), digits_like(), [LearningRateScaling(2, adam_moments=True)])


@pytest.mark.parametrize(
    ("base", "end"), [(1, "with adam_moments=True betas 0.2, 0.992, eps 3.54e-09"), (2, "(sqrt, base 2)")]
)
def test_far_from_the_base_the_line_says_what_the_moments_would_be(base, end, caplog):
    caplog.set_level("INFO")
    fit(Plain(optimizer=lambda p: torch.optim.Adam(p, lr=0.01)), digits_like(), [LearningRateScaling(base)])
    assert line_of(caplog).endswith(end)


def test_the_end_of_the_moments_law_is_told(caplog):
    caplog.set_level("INFO")
    module = Plain(optimizer=lambda p: torch.optim.Adam(p, lr=0.01))
    fit(module, digits_like(batch_size=16), [LearningRateScaling(1)])
    assert line_of(caplog).endswith("the law's own range ends at k = 10, and k is 16")


@pytest.mark.parametrize(
    ("optimizer", "options", "line"),
    [
        (
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
            {},
            "terminal step lr/(1-momentum) 2; weight decay 0.01, 0.114 of each weight per epoch (0.114 at the base "
            "batch)",
        ),
        (
            lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
            {},
            "weight decay 0.1, 0.00846 of each weight per epoch (0.0119 at the base batch)",
        ),
        (
            lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
            {"weight_decay": "scale"},
            "weight decay 0.1 -> 0.141421, 0.0119 of each weight per epoch (0.0119 at the base batch)",
        ),
        (
            lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
            {},
            "weight decay 0.1, within the gradient that Adam normalizes",
        ),
    ],
    ids=["sgd", "adamw", "adamw scaled", "adam"],
)
def test_the_line_says_the_terminal_step_and_the_decay_per_epoch(optimizer, options, line, caplog):
    caplog.set_level("INFO")
    trainer = fit(Plain(optimizer=optimizer), digits_like(), [LearningRateScaling(4, **options)])
    assert line_of(caplog).endswith(f"base 4); {line}")
    decay = trainer.callback_metrics.get("decay/per_epoch")
    assert (decay is None) == ("within" in line)
    assert ("lr/terminal" in trainer.callback_metrics) == ("terminal" in line)


def test_tensor_parallel_devices_do_not_count(monkeypatch):
    """Of 8 devices in groups of 4 that share their data, 2 see different data."""
    from lbtrain._lightning import Trainer

    monkeypatch.setattr(Trainer, "distributed_sampler_kwargs", property(lambda _: {"num_replicas": 2, "rank": 0}))
    monkeypatch.setattr(Trainer, "world_size", property(lambda _: 8))
    from lbtrain.callbacks._trainer import global_batch

    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    assert str(global_batch(trainer, 8)) == "16 = 8 x 2 x 1"


def test_a_batch_that_holds_more_than_the_loader_says_is_told():
    x, y = torch.randn(12, 8, 6), torch.zeros(12, 8, dtype=torch.long)
    ready = DataLoader(TensorDataset(x, y), batch_size=1, collate_fn=lambda items: items[0])
    with pytest.warns(UserWarning, match="says batch size 1, but the first batch holds 8 samples"):
        fit(Plain(), ready, [LearningRateScaling(4)])
    trainer = fit(Plain(lr=0.1), ready, [LearningRateScaling(4, batch_size=8)])
    assert trainer.callback_metrics["lr/scaled"] == pytest.approx(0.2)


def test_groups_that_are_added_while_training_count_as_scaled():
    class Unfreezing(Plain):
        def on_train_epoch_end(self):
            if self.current_epoch == 0:
                optimizer = self.optimizers().optimizer
                extra = {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": optimizer.param_groups[0]["lr"] / 10}
                optimizer.add_param_group(extra)

    schedule = GradientAccumulationScheduler({0: 1, 2: 2})
    trainer = fit(Unfreezing(lr=0.1), digits_like(), [LearningRateScaling(4), schedule], max_epochs=3)
    assert [g["lr"] for g in trainer.optimizers[0].param_groups] == pytest.approx([0.4, 0.04])


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.parametrize("check", [[], [LossReductionCheck(on_problem="ignore")]], ids=["alone", "with the check"])
def test_a_batch_without_a_loss_leaves_the_law_to_the_next_one(check, caplog):
    first = digits_like().dataset[0][0]

    class Late(Plain):
        def training_step(self, batch, batch_idx):
            return None if torch.equal(batch[0][0], first) else super().training_step(batch, batch_idx)

    caplog.set_level("INFO")
    trainer = fit(Late(reduction="sum", lr=0.1), digits_like(), [LearningRateScaling(4), *check])
    assert trainer.callback_metrics["lr/scaled"] == pytest.approx(0.1)
    assert "is a sum over the batch" in line_of(caplog)


def test_each_group_that_decays_is_in_the_line_with_its_own_numbers(caplog):
    caplog.set_level("INFO")
    module = Plain()
    first, second, *rest = module.parameters()
    groups = [
        {"params": [first], "weight_decay": 0.0},
        {"params": [second], "weight_decay": 0.1},
        {"params": rest, "lr": 0.02, "scaling_rule": "none", "weight_decay": 0.05},
    ]
    module.configure_optimizers = lambda: torch.optim.AdamW(groups, lr=0.01)
    fit(module, digits_like(), [LearningRateScaling(2, weight_decay="scale")])
    assert line_of(caplog).endswith(
        "(sqrt, base 2); group 2: lr 0.02 -> 0.02 (none); group 1: weight decay 0.1 -> 0.2, 0.0238 of each weight per "
        "epoch (0.0237 at the base batch); group 2: weight decay 0.05 -> 0.2, 0.0238 of each weight per epoch (0.0237 "
        "at the base batch)"
    )


def test_the_decay_at_the_base_batch_counts_its_own_steps(caplog):
    """72 samples are 9 steps of 8, and 3 of 32, the last one of a single batch."""
    caplog.set_level("INFO")
    module = Plain(optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1))
    scaling = LearningRateScaling(8)
    fit(module, digits_like(72, 8), [scaling], accumulate_grad_batches=4)
    assert line_of(caplog).endswith("weight decay 0.1, 0.0006 of each weight per epoch (0.0009 at the base batch)")


def test_a_loader_gives_no_more_than_its_data_set_has():
    trainer = fit(Plain(lr=0.1), digits_like(12, 1024), [LearningRateScaling(4)])
    assert trainer.callback_metrics["batch/global"] == 12
    assert trainer.callback_metrics["lr/scaled"] == pytest.approx(0.3)


def test_a_batch_size_that_the_loader_contradicts_is_in_the_line(caplog):
    caplog.set_level("INFO")
    fit(Plain(lr=0.1), digits_like(), [LearningRateScaling(4, batch_size=16)])
    assert line_of(caplog).endswith("(linear, base 4); batch_size=16 as given, where the training loader says 8")


def test_a_reduction_that_the_check_contradicts_is_told():
    with pytest.warns(UserWarning, match=r"reduction='sum'\) was given, and LossReductionCheck finds a mean"):
        fit(Plain(), digits_like(), [LearningRateScaling(4, reduction="sum"), LossReductionCheck()])


def test_rates_that_other_callbacks_bring_along_are_told():
    averaging = pl.callbacks.StochasticWeightAveraging(swa_lrs=0.02)
    with pytest.warns(UserWarning, match=r"StochasticWeightAveraging sets swa_lrs=.0.02. itself .* multiplied by 2"):
        fit(Plain(), digits_like(), [LearningRateScaling(4), averaging], max_epochs=2)


def test_a_module_without_an_optimizer_is_refused():
    module = Plain()
    module.configure_optimizers = lambda: None
    with (
        pytest.warns(UserWarning, match="returned `None`"),
        pytest.raises(MisconfigurationException, match="gives none"),
    ):
        fit(module, digits_like(), [LearningRateScaling(4)])


def test_an_accumulation_of_nothing_is_refused():
    with pytest.raises(MisconfigurationException, match="accumulate_grad_batches must be at least 1 .* got 0"):
        fit(Plain(), digits_like(), [LearningRateScaling(4)], accumulate_grad_batches=0)


def test_a_change_of_the_accumulation_is_announced(caplog):
    caplog.set_level("INFO")
    fit(
        Plain(lr=0.1),
        digits_like(),
        [LearningRateScaling(4), GradientAccumulationScheduler({0: 1, 1: 2})],
        max_epochs=2,
    )
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("global batch")]
    assert lines == [
        "global batch 8 = 8 x 1 x 1, lr 0.1 -> 0.2 (linear, base 4)",
        "global batch 16 = 8 x 1 x 2, lr 0.1 -> 0.4 (linear, base 4)",
    ]


def test_a_second_fit_of_the_same_trainer_is_no_resumption():
    from lbtrain._lightning import Trainer

    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    trainer = Trainer(max_epochs=1, callbacks=[LearningRateScaling(4)], enable_checkpointing=False, **quiet)
    module = Plain(lr=0.1)
    trainer.fit(module, digits_like())
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, digits_like())
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.2)
