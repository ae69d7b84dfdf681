"""The scaled rate: the line, the numbers, the law under a sum, warmup, resuming, and what is refused."""

import math

import pytest
import torch
from torch.optim import lr_scheduler as ls
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, TensorDataset

from lbtrain import LearningRateScaling, LossReductionCheck
from lbtrain._lightning import (
    Callback,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LightningModule,
    MisconfigurationException,
    ModelCheckpoint,
)
from tests.modules import Plain, digits_like, fit, same


class Rates(Callback):
    """Records the rate inside each optimizer step, where it counts."""

    def __init__(self):
        self.used, self.shown = [], []

    def on_train_start(self, trainer, pl_module):
        trainer.optimizers[0].register_step_pre_hook(self.note)

    def note(self, optimizer, *_):
        self.used.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.shown.append(trainer.optimizers[0].param_groups[0]["lr"])


def line_of(caplog):
    return next(r.getMessage() for r in caplog.records if r.getMessage().startswith("global batch"))


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
    callbacks = [LearningRateScaling(base), LossReductionCheck(on_sum="ignore")]
    if reduction == "mean" and base == 2:
        callbacks = [LearningRateScaling(base, batch_size=128)]
    fit(module, loader, callbacks)
    assert module.w.item() == pytest.approx(moved, rel=1e-15, abs=0)


@pytest.mark.parametrize("check_first", [False, True])
def test_a_sum_is_not_multiplied_by_the_batch_whatever_the_order(check_first, caplog):
    caplog.set_level("INFO")
    callbacks = [LearningRateScaling(4), LossReductionCheck(on_sum="ignore")]
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
    trainer = fit(Plain(lr=0.1), digits_like(4, 1), [LearningRateScaling(1), LossReductionCheck()])
    assert trainer.callback_metrics["lr/scaled"] == pytest.approx(0.1)
    assert line_of(caplog).endswith("(linear, base 1; loss reduction unknown, taken as a mean over the batch)")


def test_warmup_grows_per_step_from_the_unscaled_rate_on_top_of_a_schedule():
    rates = Rates()
    module = Plain(lr=0.1, optimizer=None)
    module.configure_optimizers = lambda: (
        [o := torch.optim.SGD(module.parameters(), lr=0.1)],
        [{"scheduler": ls.ExponentialLR(o, 0.5), "interval": "epoch"}],
    )
    fit(module, digits_like(), [LearningRateScaling(2, warmup_epochs=1.5), rates], max_epochs=3)
    scheduled = [0.4] * 6 + [0.2] * 6 + [0.1] * 6
    share = [0.25 + 0.75 * min(step / 9, 1) for step in range(18)]
    assert rates.used == pytest.approx([a * b for a, b in zip(scheduled, share, strict=True)])
    # Between steps, where schedulers, monitors and checkpoints look, the rate is the scheduled one.
    assert rates.shown == pytest.approx([*scheduled[1:], 0.05])


def scheduled(scheduler, lr):
    def configure(module):
        optimizer = torch.optim.SGD(module.parameters(), lr=lr, momentum=0.9)
        return [optimizer], [{"scheduler": scheduler(optimizer, lr), "interval": "step"}]

    return type("Scheduled", (Plain,), {"configure_optimizers": configure})(dtype=torch.float64)


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda o, lr: ls.CosineAnnealingLR(o, 20, eta_min=lr / 10),
        lambda o, lr: ls.OneCycleLR(o, max_lr=lr, total_steps=20),
        lambda o, lr: ls.LambdaLR(o, lambda e: 0.9**e),
    ],
    ids=["cosine", "one cycle", "lambda"],
)
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_resumed_run_is_not_scaled_twice(scheduler, tmp_path):
    loader = digits_like(dtype=torch.float64)
    whole = scheduled(scheduler, 0.1)
    start = {k: v.clone() for k, v in whole.state_dict().items()}
    full = fit(whole, loader, [LearningRateScaling(4)], max_epochs=3)
    first, second = scheduled(scheduler, 0.1), scheduled(scheduler, 0.1)
    first.load_state_dict(start)
    saving = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    fit(first, loader, [LearningRateScaling(4), saving], max_epochs=2, enable_checkpointing=True)
    again = LearningRateScaling(4)
    resumed = fit(second, loader, [again], max_epochs=3, ckpt_path=tmp_path / "last.ckpt")
    assert again.state_dict() == {"factor": 2.0, "reduction": "mean"}
    assert same(whole.state_dict(), second.state_dict())
    assert full.optimizers[0].param_groups[0]["lr"] == resumed.optimizers[0].param_groups[0]["lr"]
    built = scheduled(scheduler, 0.2)
    built.load_state_dict(start)
    fit(built, loader, max_epochs=3)
    for a, b in zip(whole.parameters(), built.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_resuming_with_another_batch_rescales_by_the_ratio_and_says_so(tmp_path):
    saving = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    fit(Plain(lr=0.1), digits_like(batch_size=8), [LearningRateScaling(4), saving], enable_checkpointing=True)
    rates = Rates()
    with pytest.warns(UserWarning, match=r"factor 2: they are multiplied by 2, so that the factor is 4"):
        fit(
            Plain(lr=0.1),
            digits_like(batch_size=16),
            [LearningRateScaling(4), rates],
            max_epochs=2,
            ckpt_path=tmp_path / "last.ckpt",
        )
    assert rates.used == pytest.approx([0.4] * 3)


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


class Stream(IterableDataset):
    def __iter__(self):
        return iter(digits_like().dataset)


DATA = digits_like().dataset


@pytest.mark.parametrize(
    ("loader", "found"),
    [
        (DataLoader(Stream(), batch_size=None), r"DataLoader with batch size unknown"),
        ({"a": DataLoader(DATA, 8), "b": DataLoader(DATA, 4)}, r"DataLoader with batch size 8, .* batch size 4"),
        ([next(iter(digits_like()))], r"Tensor with batch size unknown"),
    ],
    ids=["pre-batched", "two loaders", "list"],
)
def test_a_batch_size_that_cannot_be_read_is_asked_for(loader, found):
    with pytest.raises(MisconfigurationException, match=rf"{found}.*callbacks.lr_scaling.batch_size="):
        fit(Plain(), loader, [LearningRateScaling(4)])


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 8, False)),
        DataLoader(Stream(), batch_size=8),
    ],
    ids=["batch sampler", "stream"],
)
def test_a_batch_size_is_read_off_any_loader_that_has_one(loader):
    trainer = fit(Plain(lr=0.1), loader, [LearningRateScaling(4)], max_steps=2)
    assert trainer.callback_metrics["lr/scaled"] == pytest.approx(0.2)


def test_a_given_batch_size_wins():
    trainer = fit(Plain(lr=0.1), digits_like(), [LearningRateScaling(4, batch_size=16)])
    assert trainer.callback_metrics["lr/scaled"] == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base_batch_size": 0}, "base_batch_size must be a whole number of samples, at least 1, got 0"),
        ({"base_batch_size": 2.5}, "base_batch_size must be a whole number .* got 2.5"),
        ({"base_batch_size": 4, "batch_size": -1}, "batch_size must be .* got -1"),
        ({"base_batch_size": 4, "rule": "lineer"}, "rule must be one of"),
        ({"base_batch_size": 4, "warmup_epochs": -1}, "warmup_epochs must be at least 0 and finite, got -1"),
        ({"base_batch_size": 4, "warmup_epochs": math.inf}, "warmup_epochs must be"),
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

    with pytest.raises(MisconfigurationException, match="two LearningRateScaling callbacks"):
        fit(Plain(), digits_like(), [LearningRateScaling(4), Mine(4)])


def test_warmup_without_a_length_is_refused():
    with pytest.raises(MisconfigurationException, match=r"warmup_epochs=1 needs a training loader with a length"):
        fit(Plain(), DataLoader(Stream(), batch_size=8), [LearningRateScaling(4, warmup_epochs=1)], max_steps=2)
