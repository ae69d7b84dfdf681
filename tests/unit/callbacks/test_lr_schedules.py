"""Scaling under every schedule, fresh, resumed and with another batch; warmup; schedules that count steps."""

import math

import pytest
import torch
from torch.optim import lr_scheduler as ls
from torch.utils.data import DataLoader

from lbtrain import LearningRateScaling
from lbtrain._lightning import Callback, GradientAccumulationScheduler, MisconfigurationException, ModelCheckpoint
from tests.modules import Plain, digits_like, fit, same
from tests.schedules import SCHEDULERS
from tests.unit.callbacks.rates import Rates
from tests.unit.callbacks.streams import Stream

STEPS_COUNTED = pytest.mark.filterwarnings("ignore:the schedule counts optimizer steps")
# The Trainer takes the end of an epoch of another length for the middle of one.
RESUMED = pytest.mark.filterwarnings(
    "ignore:Be aware that when using `ckpt_path`|You're resuming from a checkpoint that"
)
MISSING = pytest.mark.filterwarnings("ignore:Be aware|The dirpath has changed")
OLD_SCHEDULERS = pytest.mark.filterwarnings("ignore:The epoch parameter in:UserWarning")


class Scheduled(Plain):
    """SGD with a scheduler that steps with the optimizer."""

    def __init__(self, build, lr=0.1, **config):
        torch.manual_seed(0)
        super().__init__(dtype=torch.float64)
        self.build, self.lr, self.config = build, lr, config

    def training_step(self, batch, batch_idx):
        self.log("flat", 1.0)
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        scheduler = self.build(optimizer)
        if scheduler is None:
            return optimizer
        config = {
            "interval": "step",
            "monitor": "flat",
            "reduce_on_plateau": isinstance(scheduler, ls.ReduceLROnPlateau),
        }
        return [optimizer], [{"scheduler": scheduler, **config, **self.config}]


class StopAfter(Callback):
    """Ends training early, of whose length the Trainer then still thinks as planned."""

    def __init__(self, epochs):
        self.epochs = epochs

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


def trained(module, callbacks=(), *, batch_size=8, epochs=3, folder=None, start=None, **options):
    """Fit on 24 samples; return the rates of all steps."""
    rates = Rates()
    saving = [ModelCheckpoint(dirpath=folder, save_last=True)] if folder else []
    loader = digits_like(24, batch_size, dtype=torch.float64)
    options = {"max_epochs": epochs, "enable_checkpointing": folder is not None, "ckpt_path": start, **options}
    fit(module, loader, [*callbacks, *saving, rates], **options)
    return rates.used


@pytest.mark.parametrize("name", SCHEDULERS)
@STEPS_COUNTED
@RESUMED
@OLD_SCHEDULERS
def test_every_schedule_equals_one_built_with_the_scaled_rate(name, tmp_path):
    def module(factor):
        return Scheduled(lambda o: SCHEDULERS[name](o, factor), 0.1 * factor)

    scaling = lambda: [LearningRateScaling(2)]
    fresh, resumed = module(1.0), module(1.0)
    rates = trained(fresh, scaling())
    assert rates == pytest.approx(trained(module(4.0)), rel=1e-12)
    before = trained(module(1.0), scaling(), epochs=2, folder=tmp_path / "scaled")
    after = trained(resumed, scaling(), start=tmp_path / "scaled" / "last.ckpt")
    assert before + after == rates
    assert same(fresh.state_dict(), resumed.state_dict())
    # From batch 8 to batch 2, which is the base: as one that was never scaled.
    trained(module(1.0), epochs=2, folder=tmp_path / "plain")
    options = {"batch_size": 2, "max_steps": 10}
    twin = trained(module(1.0), start=tmp_path / "plain" / "last.ckpt", **options)
    with pytest.warns(UserWarning, match=r"the factor 4: they are multiplied by 0.25, so that the factor is 1"):
        elastic = trained(module(1.0), scaling(), start=tmp_path / "scaled" / "last.ckpt", **options)
    assert len(twin) == 4
    assert elastic == pytest.approx(twin, rel=1e-12)


@MISSING
def test_a_checkpoint_from_a_run_without_the_callback_is_scaled_and_says_so(tmp_path):
    trained(Scheduled(lambda o: None), epochs=1, folder=tmp_path)
    with pytest.warns(UserWarning, match=r"were never scaled: they are multiplied by 4, so that the factor is 4"):
        rates = trained(Scheduled(lambda o: None), [LearningRateScaling(2)], start=tmp_path / "last.ckpt")
    assert rates == pytest.approx([0.4] * 6)


@MISSING
def test_a_run_without_the_callback_keeps_the_scaled_rates_and_the_next_one_knows(tmp_path):
    module = lambda: Scheduled(lambda o: ls.ExponentialLR(o, 0.5), interval="epoch")
    trained(module(), [LearningRateScaling(2)], epochs=1, folder=tmp_path / "a")
    between = trained(module(), epochs=2, start=tmp_path / "a" / "last.ckpt", folder=tmp_path / "b")
    assert between == pytest.approx([0.2] * 3)
    after = trained(module(), [LearningRateScaling(2)], epochs=3, start=tmp_path / "b" / "last.ckpt")
    assert after == pytest.approx([0.1] * 3)


@RESUMED
def test_the_callbacks_own_state_speaks_for_an_optimizer_that_drops_unknown_keys(tmp_path):
    trained(Scheduled(lambda o: None), [LearningRateScaling(2)], epochs=1, folder=tmp_path)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    (group,) = saved["optimizer_states"][0]["param_groups"]
    marks = [key for key in group if key.startswith("lbtrain_")]
    assert marks
    for key in marks:
        del group[key]
    torch.save(saved, tmp_path / "bare.ckpt")
    rates = trained(Scheduled(lambda o: None), [LearningRateScaling(2)], start=tmp_path / "bare.ckpt")
    assert rates == pytest.approx([0.4] * 6)


@RESUMED
def test_a_resumed_run_with_a_summed_loss_keeps_its_law(tmp_path):
    def run(epochs, **options):
        rates, module = Rates(), Plain(reduction="sum", lr=0.01)
        saving = [ModelCheckpoint(dirpath=tmp_path, save_last=True)] if epochs == 1 else []
        options |= {"enable_checkpointing": epochs == 1, "accumulate_grad_batches": 3}
        fit(module, digits_like(), [LearningRateScaling(2), rates, *saving], max_epochs=epochs, **options)
        return rates.used

    assert run(1) == pytest.approx([0.03] * 2)
    assert run(2, ckpt_path=tmp_path / "last.ckpt") == pytest.approx([0.03] * 2)


@RESUMED
def test_moments_and_decay_of_a_resumed_run_follow_the_batch(tmp_path):
    def run(batch_size, epochs, **options):
        module = Plain(dtype=torch.float64, optimizer=lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1))
        scaling = LearningRateScaling(2, adam_moments=True, weight_decay="scale")
        loader = digits_like(24, batch_size, dtype=torch.float64)
        trainer = fit(module, loader, [scaling, *options.pop("saving", [])], max_epochs=epochs, **options)
        group = trainer.optimizers[0].param_groups[0]
        return (group["lr"], *group["betas"], group["eps"], group["weight_decay"])

    saving = [ModelCheckpoint(dirpath=tmp_path, save_last=True)]
    large = run(8, 1, saving=saving, enable_checkpointing=True)
    assert large == pytest.approx((0.02, 0.6, 0.996, 5e-9, 0.2))
    assert run(8, 2, ckpt_path=tmp_path / "last.ckpt") == large
    with pytest.warns(UserWarning, match="multiplied by 0.5"):
        assert run(2, 2, ckpt_path=tmp_path / "last.ckpt") == pytest.approx((0.01, 0.9, 0.999, 1e-8, 0.1))


@pytest.mark.parametrize("warmup", [{"warmup_epochs": 1.5}, {"warmup_steps": 4}])
def test_warmup_grows_per_step_from_the_unscaled_rate_on_top_of_a_schedule(warmup):
    module = Scheduled(lambda o: ls.ExponentialLR(o, 0.5), interval="epoch")
    rates = Rates()
    loader = digits_like(24, 8, dtype=torch.float64)
    fit(module, loader, [LearningRateScaling(2, **warmup), rates], max_epochs=3)
    length = warmup.get("warmup_steps", 4.5)
    scheduled = [0.4] * 3 + [0.2] * 3 + [0.1] * 3
    share = [0.25 + 0.75 * min(step / length, 1) for step in range(9)]
    assert rates.used == pytest.approx([a * b for a, b in zip(scheduled, share, strict=True)])
    # Between steps, where schedulers, monitors and checkpoints look, the rate is the scheduled one.
    assert rates.shown == pytest.approx([*scheduled[1:], 0.05])


@RESUMED
def test_a_run_resumed_within_its_warmup_goes_on_with_it(tmp_path):
    scaling = lambda: [LearningRateScaling(2, warmup_steps=7)]
    module = lambda: Scheduled(lambda o: ls.ExponentialLR(o, 0.9), interval="epoch")
    whole = trained(module(), scaling())
    first = trained(module(), scaling(), epochs=1, folder=tmp_path)
    assert first + trained(module(), scaling(), start=tmp_path / "last.ckpt") == whole


def test_a_rate_that_is_lowered_is_not_warmed_up():
    assert trained(Scheduled(lambda o: None), [LearningRateScaling(16, warmup_steps=5)]) == pytest.approx([0.05] * 9)


def test_warmup_of_a_loader_without_length_is_counted_in_steps():
    stream = lambda: DataLoader(Stream(), batch_size=8)
    with pytest.raises(MisconfigurationException, match=r"warmup_epochs=1 needs a training loader with a length"):
        fit(Plain(), stream(), [LearningRateScaling(4, warmup_epochs=1)], max_steps=2)
    rates = Rates()
    fit(Plain(lr=0.1), stream(), [LearningRateScaling(4, warmup_steps=2), rates], max_steps=3)
    assert rates.used == pytest.approx([0.1, 0.15, 0.2])


@pytest.mark.parametrize("name", ["linear", "sequential", "one cycle", "chained", "constant"])
def test_a_second_warmup_is_refused(name):
    module = Scheduled(lambda o: SCHEDULERS[name](o, 1.0))
    with pytest.raises(
        MisconfigurationException, match=r"the schedule has one already \((LinearLR|OneCycleLR|ConstantLR)"
    ):
        trained(module, [LearningRateScaling(2, warmup_steps=3)])


STEP_SCHEDULES = {
    "cosine": (lambda o, s: ls.CosineAnnealingLR(o, 36 // s), "CosineAnnealingLR.T_max=36"),
    "milestones": (lambda o, s: ls.MultiStepLR(o, [8 // s, 24 // s], 0.1), r"MultiStepLR.milestones=\[8, 24\]"),
    "step": (lambda o, s: ls.StepLR(o, 12 // s, 0.5), "StepLR.step_size=12"),
    "one cycle": (
        lambda o, s: ls.OneCycleLR(o, 0.1 if s == 1 else 0.4, total_steps=36 // s),
        "OneCycleLR.total_steps=36",
    ),
    "lambda": (lambda o, s: ls.LambdaLR(o, lambda t: 0.97 ** (t * s)), "a function of the step"),
    "sequential": (
        lambda o, s: ls.SequentialLR(
            o, [ls.ConstantLR(o, 1.0, 12 // s), ls.LambdaLR(o, lambda t: 0.9 ** (t * s))], [12 // s]
        ),
        r"SequentialLR.milestones=\[12\]",
    ),
}


@pytest.mark.parametrize("name", STEP_SCHEDULES)
def test_a_schedule_in_steps_gets_a_warning_with_both_numbers(name):
    build, said = STEP_SCHEDULES[name]
    with pytest.warns(
        UserWarning, match=rf"{said}.*36 optimizer steps at the base batch and 9 at this one.*stretch_schedule"
    ):
        trained(Scheduled(lambda o: build(o, 1)), [LearningRateScaling(2)])


@pytest.mark.parametrize("name", STEP_SCHEDULES)
@RESUMED
@OLD_SCHEDULERS
def test_a_stretched_schedule_equals_one_built_shorter_and_is_not_stretched_twice(name, tmp_path):
    build, _ = STEP_SCHEDULES[name]
    module, scaling = lambda: Scheduled(lambda o: build(o, 1)), lambda: [LearningRateScaling(2, stretch_schedule=True)]
    rates = trained(module(), scaling())
    assert rates == pytest.approx(trained(Scheduled(lambda o: build(o, 4), 0.4)), rel=1e-9)
    first = trained(module(), scaling(), epochs=2, folder=tmp_path)
    assert first + trained(module(), scaling(), start=tmp_path / "last.ckpt") == pytest.approx(rates, rel=1e-12)


@RESUMED
def test_a_stretched_schedule_goes_on_at_the_same_share_with_another_batch(tmp_path):
    def module(length=36):
        return Scheduled(lambda o: ls.CosineAnnealingLR(o, length))

    trained(module(), [LearningRateScaling(2, stretch_schedule=True)], epochs=2, folder=tmp_path)
    with pytest.warns(UserWarning, match="multiplied by 0.25"):
        rates = trained(
            module(),
            [LearningRateScaling(2, stretch_schedule=True)],
            start=tmp_path / "last.ckpt",
            batch_size=2,
        )
    # Two of three epochs are done, so step 24 of 36 comes next.
    expected = [0.05 * (1 + math.cos(math.pi * t / 36)) for t in range(24, 36)]
    assert rates == pytest.approx(expected, rel=1e-5)  # torch computes each rate from the one before


@pytest.mark.parametrize(
    "options",
    [
        {"interval": "epoch"},
        {"max_steps": 5},
        {"base": 8},
        {"length": 9},
        {"length": 3, "frequency": 3},
    ],
    ids=["counts epochs", "training counts steps", "base batch", "made for these steps", "made for these periods"],
)
@pytest.mark.parametrize("stretch", [False, True])
def test_a_schedule_that_fits_gets_no_warning_and_is_not_stretched(options, stretch):
    options = dict(options)
    base, length = options.pop("base", 2), options.pop("length", 36)
    training = {"max_steps": options.pop("max_steps")} if "max_steps" in options else {}
    built = []
    module = Scheduled(lambda o: built.append(ls.CosineAnnealingLR(o, length)) or built[-1], **options)
    trained(module, [LearningRateScaling(base, stretch_schedule=stretch)], **training)
    assert built[0].T_max == length


def test_a_scheduler_of_unknown_kind_is_named():
    class Own(ls.LambdaLR):
        pass

    module = Scheduled(lambda o: Own(o, lambda t: 1.0), interval="epoch")
    with pytest.warns(UserWarning, match=r"does not know the scheduler Own: it scales the rates"):
        rates = trained(module, [LearningRateScaling(2)])
    assert rates == pytest.approx([0.4] * 9)


def test_accumulation_that_changes_is_followed():
    schedule = GradientAccumulationScheduler({0: 1, 1: 2})
    rates = trained(Scheduled(lambda o: None), [LearningRateScaling(2), schedule], epochs=2)
    assert rates == pytest.approx([0.4] * 3 + [0.8] * 2)


def test_a_group_that_is_added_within_a_warmup_is_warmed_up_as_the_others():
    class Unfreezing(Scheduled):
        def on_train_batch_start(self, batch, batch_idx):
            optimizer = self.optimizers().optimizer
            if self.global_step == 2 and len(optimizer.param_groups) == 1:
                optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.04})

    module = Unfreezing(lambda o: None)
    seen = []
    module.on_before_optimizer_step = lambda optimizer: optimizer.register_step_pre_hook(
        lambda o, *_: seen.append([g["lr"] for g in o.param_groups])
    )
    trained(module, [LearningRateScaling(2, warmup_steps=8)], epochs=1)
    assert seen[-1] == pytest.approx([0.4 * 0.4375, 0.04 * 0.4375])


@pytest.mark.parametrize(("drop_last", "length"), [(False, 39), (True, 36)])
@RESUMED
def test_a_schedule_as_long_as_the_run_at_the_base_batch_becomes_as_long_as_this_run(drop_last, length, tmp_path):
    """25 samples are 13 batches of 2, and 4 of 8: a quarter of 3 x 13 steps would be too short for OneCycleLR."""

    def run(batch_size, epochs, **options):
        built = []
        module = Scheduled(lambda o: built.append(ls.OneCycleLR(o, 0.1, total_steps=length)) or built[-1])
        data = digits_like(25, dtype=torch.float64).dataset
        saving = [ModelCheckpoint(dirpath=tmp_path, save_last=True)] if epochs == 1 else []
        scaling = LearningRateScaling(2, stretch_schedule=True)
        loader = DataLoader(data, batch_size, drop_last=drop_last)
        options |= {"max_epochs": 3, "enable_checkpointing": bool(saving), "limit_train_batches": 1.0}
        stop = [StopAfter(epochs)]
        fit(module, loader, [scaling, *saving, *stop], **options)
        return built[0].total_steps

    assert run(8, 1) == (9 if drop_last else 12)
    assert run(8, 3, ckpt_path=tmp_path / "last.ckpt") == (9 if drop_last else 12)
    with pytest.warns(UserWarning, match=r"multiplied by 0.5"):
        assert run(4, 3, ckpt_path=tmp_path / "last.ckpt") == (18 if drop_last else 21)


def lowered(optimizer):
    return ls.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)


@RESUMED
@MISSING
@STEPS_COUNTED
@pytest.mark.parametrize("old", [False, True])
def test_what_a_plateau_has_lowered_is_told_as_it_was_at_the_start(old, tmp_path):
    def run(folder, batch_size=8, epochs=1, start=None):
        callbacks = [LearningRateScaling(2), ModelCheckpoint(dirpath=tmp_path / folder, save_last=True)]
        data = digits_like(24, batch_size, dtype=torch.float64)
        options = {"max_epochs": epochs, "enable_checkpointing": True, "ckpt_path": start}
        found = fit(Scheduled(lowered), data, callbacks, **options).callback_metrics
        return [found[key].item() for key in ("lr/base", "lr/scaled", "lr/terminal")]

    first = run("first")
    assert first == pytest.approx([0.1, 0.4, 4.0])
    path = tmp_path / "first" / "last.ckpt"
    saved = torch.load(path, weights_only=True)
    assert saved["optimizer_states"][0]["param_groups"][0]["lr"] < 0.4
    if old:  # without the rates of the start: as they are now, but it loads
        del saved["callbacks"]["LearningRateScaling"]["bases"]
        torch.save(saved, path)
        assert run("again", epochs=2, start=path) != first
        return
    assert run("again", epochs=2, start=path) == first
    with pytest.warns(UserWarning, match="global batch"):
        assert run("elastic", 4, epochs=2, start=path) == pytest.approx([0.1, 0.2, 2.0])
