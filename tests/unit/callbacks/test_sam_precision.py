"""SAM under mixed and half precision: one unscaling, overflows that skip a step once, weights that come back."""

import weakref

import pytest
import torch

from lbtrain import GSAM, SAM, WSAM, FriendlySAM, LookSAM, MomentumSAM
from lbtrain._lightning import Callback, plugins
from lbtrain.callbacks._kept import KeptVector
from tests.modules import Everything, Plain, digits_like, fit, same

CLIMBERS = {
    "SAM": lambda **options: SAM(0.1, **options),
    "ASAM": lambda **options: SAM(0.5, adaptive=True, **options),
    "GSAM": lambda **options: GSAM(0.1, **options),
    "LookSAM": lambda **options: LookSAM(0.1, every_n_steps=2, **options),
    "FriendlySAM": lambda **options: FriendlySAM(0.1, **options),
    "WSAM": lambda **options: WSAM(0.1, gamma=0.8, **options),
    "WSAM coupled": lambda **options: WSAM(0.1, gamma=0.8, decoupled=False, **options),
    "MomentumSAM": lambda scope="": MomentumSAM(0.1),
}


def scaled(scale=2.0**10):
    """Return the plugin of `precision="16-mixed"`, which Lightning builds on GPUs only, with a scaler for the CPU."""
    return plugins.MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=scale))


class Watch(Callback):
    """Count unscalings and steps, and note the scale."""

    def on_train_start(self, trainer, pl_module):
        self.steps, self.unscaled, self.scales = 0, 0, []
        scaler = trainer.precision_plugin.scaler
        unscale = scaler.unscale_

        def unscale_(optimizer):
            self.unscaled += 1
            unscale(optimizer)

        scaler.unscale_ = unscale_
        trainer.optimizers[0].register_step_post_hook(lambda *_: self.count())

    def count(self):
        self.steps += 1

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.scales.append(trainer.precision_plugin.scaler.get_scale())


def plain(optimizer=None):
    torch.manual_seed(0)
    return Plain(optimizer=optimizer or (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", CLIMBERS)
def test_the_scale_does_not_change_the_training(name, accumulate):
    found = []
    for scale in (1.0, 2.0**10):
        module, watch = plain(), Watch()
        # Powers of two scale floats exactly, except where half precision runs out of small numbers.
        fit(module, digits_like(), [CLIMBERS[name](), watch], plugins=scaled(scale), accumulate_grad_batches=accumulate)
        assert watch.steps == watch.unscaled == 6 / accumulate
        found.append(torch.cat([p.detach().reshape(-1) for p in module.parameters()]))
    torch.testing.assert_close(*found, rtol=5e-3, atol=5e-4)
    exact = plain()
    fit(exact, digits_like(), [CLIMBERS[name]()], accumulate_grad_batches=accumulate)
    exact = torch.cat([p.detach().reshape(-1) for p in exact.parameters()])
    torch.testing.assert_close(found[1], exact, rtol=5e-2, atol=5e-3)
    assert not torch.equal(found[1], exact)  # half precision is really in use


class Overflowing(Plain):
    """The chosen call of `training_step` gives a gradient that overflows."""

    def __init__(self, call):
        super().__init__(optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
        self.bad = call
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append([p.detach().clone() for p in self.parameters()])
        loss = super().training_step(batch, batch_idx)
        return loss * torch.tensor(float("inf")) if Calls.made(self) == self.bad else loss


class Calls:
    """Count calls in a place that SAM does not put back."""

    # By the module itself, which may lie where an earlier one has lain.
    counts = weakref.WeakKeyDictionary()  # noqa: RUF012

    @classmethod
    def made(cls, module):
        """Return the number of this call, from 1."""
        cls.counts[module] = cls.counts.get(module, 0) + 1
        return cls.counts[module]


@pytest.mark.parametrize("which", ["first pass", "second pass"])
@pytest.mark.parametrize("name", [name for name in CLIMBERS if name != "MomentumSAM"])
def test_an_overflow_in_either_pass_skips_the_step_and_halves_the_scale_once(name, which):
    torch.manual_seed(0)
    module, watch = Overflowing({"first pass": 1, "second pass": 2}[which]), Watch()
    before = [p.detach().clone() for p in module.parameters()]
    fit(module, digits_like(8, 8), [CLIMBERS[name](), watch], plugins=scaled())
    assert (watch.steps, watch.unscaled, watch.scales) == (0, 1, [2.0**9])
    assert all(torch.equal(p, w) for p, w in zip(module.parameters(), before, strict=True))


@pytest.mark.parametrize("which", [1, 2])
@pytest.mark.parametrize("name", ["LookSAM", "FriendlySAM"])
def test_an_overflow_does_not_stay_in_what_is_kept(name, which):
    torch.manual_seed(0)
    module, climber = Overflowing(which), CLIMBERS[name]()
    fit(module, digits_like(40, 8), [climber], plugins=scaled())
    kept = next(v for v in vars(climber).values() if isinstance(v, KeptVector))
    assert kept
    assert all(torch.isfinite(t).all() for part in kept.state_dict()["parts"] for t in part.values())
    assert all(torch.isfinite(p).all() for p in module.parameters())


@pytest.mark.parametrize(
    "climber", [SAM(0), SAM(0, adaptive=True), FriendlySAM(0), MomentumSAM(0)], ids=lambda c: type(c).__name__
)
def test_rho_zero_is_plain_training_under_16_mixed(climber):
    states = []
    for callbacks in ([], [climber]):
        torch.manual_seed(0)
        module = Everything()
        watch = Watch()
        fit(module, digits_like(), [*callbacks, watch], plugins=scaled(), gradient_clip_val=0.1)
        states.append({**module.state_dict(), "scale": torch.tensor(watch.scales), "next": torch.rand(2)})
    assert same(*states)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("name", CLIMBERS)
@pytest.mark.filterwarnings("ignore:the weights are bfloat16")
def test_bfloat16_trains_and_every_climb_comes_back(name, precision):
    torch.manual_seed(0)
    module = Plain(optimizer=lambda p: torch.optim.SGD(p, lr=0.0, momentum=0.9))  # whatever moves is a climb
    before = None

    class Kept(Callback):
        def on_train_start(self, trainer, pl_module):
            nonlocal before
            before = [p.detach().clone() for p in pl_module.parameters()]

    fit(module, digits_like(), [Kept(), CLIMBERS[name](scope="micro_batch")], precision=precision)
    kind = torch.bfloat16 if precision == "bf16-true" else torch.float32
    assert {p.dtype for p in module.parameters()} == {kind}
    assert all(torch.equal(p, w) for p, w in zip(module.parameters(), before, strict=True))
    assert all(torch.isfinite(p.grad).all() for p in module.parameters())


def test_mixed_bfloat16_second_pass_runs_under_autocast():
    kinds = []

    class Seeing(Plain):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            kinds.append(self.net(batch[0]).dtype)
            return loss

    fit(Seeing(), digits_like(8, 8), [SAM(0.1)], precision="bf16-mixed")
    assert kinds == [torch.bfloat16] * 2
