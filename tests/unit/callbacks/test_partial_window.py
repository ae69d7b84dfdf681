"""The last step of an epoch whose window is not full: as if its losses had been divided by the batches it has."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lbtrain import GSAM, SAM, LookSAM, LossReductionCheck
from lbtrain._lightning import (
    Callback,
    GradientAccumulationScheduler,
    MisconfigurationException,
    ModelCheckpoint,
    plugins,
    strategies,
)
from tests.modules import Plain, digits_like, fit, same

FIX = {"on_problem": "ignore", "fix_partial_window": True}


class Boosted(Plain):
    """Multiplies the loss of the batches from one number on, as a Trainer does that divides it by fewer."""

    def __init__(self, start=None, factor=1.0, **options):
        torch.manual_seed(0)
        super().__init__(**{"optimizer": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), **options})
        self.start, self.factor = start, factor

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * self.factor if self.start is not None and batch_idx >= self.start else loss


def both(batches, window, *callbacks, build=Boosted, loader=None, **options):
    """Train with the callback, and a twin whose last window is divided by what it holds; return both modules."""
    left = batches % window
    loader = digits_like(8 * batches, 8) if loader is None else loader
    options = {"accumulate_grad_batches": window, "max_epochs": 2, **options}
    module, twin = build(), build(batches - left, window / left)
    # The twin has a check, too, which keeps its hands off: only its loss differs.
    fit(module, loader, [*[c() for c in callbacks], LossReductionCheck(**FIX)], **options)
    fit(twin, loader, [*[c() for c in callbacks], LossReductionCheck("ignore")], **options)
    return module, twin


def scaler():
    return plugins.MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**8))


def adam(p):
    return torch.optim.AdamW(p, lr=0.01)


@pytest.mark.parametrize(("batches", "window"), [(9, 4), (10, 4), (4, 8), (2, 8), (17, 16)])
def test_equals_its_twin_bit_for_bit(batches, window):
    module, twin = both(batches, window)
    assert same(module.state_dict(), twin.state_dict())


def test_without_the_fix_they_differ():
    module, twin = Boosted(), Boosted(8, 4.0)
    for one in (module, twin):
        fit(one, digits_like(72, 8), [LossReductionCheck("ignore")], accumulate_grad_batches=4)
    assert not same(module.state_dict(), twin.state_dict())


@pytest.mark.parametrize(("batches", "window"), [(11, 4), (7, 5), (2, 3), (3, 8)])
def test_equals_its_twin_to_rounding_where_the_factor_is_no_power_of_two(batches, window):
    module, twin = both(batches, window, build=lambda *a: Boosted(*a, dtype=torch.float64), precision="64-true")
    for p, q in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


OPTIONS = {
    "clipped by norm": {"gradient_clip_val": 0.05},
    "clipped by value": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "a gradient scaler": {"plugins": scaler},
    "a gradient scaler and clipping": {"plugins": scaler, "gradient_clip_val": 0.05},
    "bfloat16": {"precision": "bf16-mixed"},
    "AdamW": {"build": lambda *a: Boosted(*a, optimizer=adam)},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_equals_its_twin_with_what_comes_after_it(name):
    options = {k: v() if v is scaler else v for k, v in OPTIONS[name].items()}
    module, twin = both(9, 4, **options)
    assert same(module.state_dict(), twin.state_dict())


CLIMBERS = {
    "SAM": lambda: SAM(0.1),
    "ascent per batch": lambda: SAM(0.1, scope="micro_batch"),
    "ascent of all": lambda: SAM(0.1, scope="global"),
    "GSAM": lambda: GSAM(0.1),
    "LookSAM": lambda: LookSAM(0.1, every_n_steps=2),
}


@pytest.mark.parametrize("name", CLIMBERS)
def test_equals_its_twin_with_sam_before_it(name):
    module, twin = both(10, 4, CLIMBERS[name], build=lambda *a: Boosted(*a, dtype=torch.float64), precision="64-true")
    for p, q in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_full_windows_are_left_alone_bit_for_bit(monkeypatch):
    multiplied = []
    foreach = torch._foreach_mul_
    monkeypatch.setattr(torch, "_foreach_mul_", lambda *a: multiplied.append(a) or foreach(*a))
    states = []
    for callbacks in ([LossReductionCheck(**FIX)], []):
        module = Boosted()
        fit(module, digits_like(64, 8), callbacks, accumulate_grad_batches=4, max_epochs=2)
        states.append(module.state_dict())
    assert same(*states)
    assert multiplied == []


class Stream(IterableDataset):
    """Batches whose last one is known as such only when it comes."""

    def __iter__(self):
        yield from digits_like(72, 8)


def test_a_loader_without_a_length():
    loader = DataLoader(Stream(), batch_size=None)
    module, twin = both(9, 4, loader=loader)
    assert same(module.state_dict(), twin.state_dict())


def test_a_limit_on_the_batches():
    module, twin = both(9, 4, loader=digits_like(160, 8), limit_train_batches=9)
    assert same(module.state_dict(), twin.state_dict())


def test_an_accumulation_that_changes_from_epoch_to_epoch():
    """9 batches: 3 to a step in the first epoch, which divides them, then 4, which does not."""

    class Late(Boosted):
        def training_step(self, batch, batch_idx):
            self.start = 8 if self.current_epoch == 1 and self.factor > 1 else None
            return super().training_step(batch, batch_idx)

    def change():
        return GradientAccumulationScheduler({0: 3, 1: 4})

    module, twin = both(9, 4, change, build=Late, accumulate_grad_batches=1)
    assert same(module.state_dict(), twin.state_dict())


class Odd(Boosted):
    """Frozen, unused and sparse parameters, and one outside the optimizer."""

    def __init__(self, *arguments):
        super().__init__(*arguments, optimizer=None)
        self.embed = nn.Embedding(3, 6, sparse=True)
        self.frozen = nn.Parameter(torch.ones(6), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(6))
        self.outside = nn.Parameter(torch.ones(6))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return super().training_step([x * self.frozen * self.outside + self.embed(y), y], batch_idx)

    def configure_optimizers(self):
        return torch.optim.SGD([p for n, p in self.named_parameters() if n != "outside"], lr=0.1)


def test_parameters_without_a_gradient_or_with_a_sparse_one():
    module, twin = both(9, 4, build=Odd, max_epochs=1)
    assert same(module.state_dict(), twin.state_dict())
    assert not torch.equal(module.embed.weight, Odd().embed.weight)


def test_a_gradient_that_nobody_steps_with_is_not_touched():
    module, plain = Odd(), Odd()
    fit(module, digits_like(72, 8), [LossReductionCheck(**FIX)], accumulate_grad_batches=4)
    fit(plain, digits_like(72, 8), accumulate_grad_batches=4, limit_train_batches=8)  # the same two full windows
    before = plain.outside.grad.clone()
    ninth = list(digits_like(72, 8))[8]
    (plain.training_step(ninth, 8) / 4).backward()
    assert not torch.equal(plain.outside.grad, before)
    torch.testing.assert_close(module.outside.grad, plain.outside.grad)


def test_a_window_that_an_epoch_breaks_off_does_not_count_in_the_next():
    class Breaks(Boosted):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if (self.current_epoch, batch_idx) == (0, 1) else None

    module, twin = both(4, 8, build=Breaks)
    assert same(module.state_dict(), twin.state_dict())


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_batch_without_a_loss_counts_as_a_batch_of_its_window():
    """As in full windows, which are divided by all their batches: the twin's last window is divided by 2."""

    class Skips(Boosted):
        def training_step(self, batch, batch_idx):
            return None if batch_idx == 9 else super().training_step(batch, batch_idx)

    module, twin = both(10, 4, build=Skips, max_epochs=1)
    assert same(module.state_dict(), twin.state_dict())


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_resumed_run_goes_on_as_if_nothing_had_happened(tmp_path):
    loader, options = digits_like(72, 8), {"accumulate_grad_batches": 4, "max_epochs": 2}
    kept = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1, filename="{step}")  # 3 steps per epoch
    whole, rest = Boosted(), Boosted()
    fit(whole, loader, [LossReductionCheck(**FIX), kept], enable_checkpointing=True, **options)
    fit(rest, loader, [LossReductionCheck(**FIX)], ckpt_path=tmp_path / "step=3.ckpt", **options)
    assert same(whole.state_dict(), rest.state_dict())


class Killed(Callback):
    """Keeps a checkpoint in the middle of a window."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 5:
            trainer.save_checkpoint(self.path)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
def test_a_window_that_a_resumed_run_finishes_is_the_mean_of_the_batches_it_has(tmp_path):
    """After 6 of 9 batches the gradient of the second window's first two is lost: the others are divided by 2."""
    path, loader = tmp_path / "middle.ckpt", digits_like(72, 8)
    options = {"accumulate_grad_batches": 4, "max_steps": 2}
    fit(Boosted(), loader, [LossReductionCheck(**FIX), Killed(path)], **options)
    seen = []

    class Notes(Boosted):
        def training_step(self, batch, batch_idx):
            seen.append(batch_idx)
            return super().training_step(batch, batch_idx)

    module, twin = Notes(), Boosted(0, 2.0)
    fit(module, loader, [LossReductionCheck(**FIX)], ckpt_path=path, **options)
    fit(twin, loader, ckpt_path=path, **options)
    assert seen[-2:] == [6, 7]
    assert same(module.state_dict(), twin.state_dict())


def test_a_strategy_that_accumulates_by_itself_is_refused(monkeypatch):
    monkeypatch.setattr(strategies.SingleDeviceStrategy, "handles_gradient_accumulation", True)
    with pytest.raises(MisconfigurationException, match="SingleDeviceStrategy accumulates by itself"):
        fit(Boosted(), digits_like(), [LossReductionCheck(**FIX)])
