"""All callbacks of the SAM family: what they leave alone, where they meet, how they end early and go on."""

import functools
import inspect
import itertools
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lbtrain import (
    GSAM,
    SAM,
    WSAM,
    FriendlySAM,
    HessianSpectrum,
    LearningRateScaling,
    LookSAM,
    LossReductionCheck,
    MomentumSAM,
    RandomState,
    Sharpness,
    StepTime,
)
from lbtrain._lightning import Callback, DummyLogger, MisconfigurationException, ModelCheckpoint
from tests.modules import Everything, Plain, digits_like, fit, same

FAMILY = {
    "sam": SAM,
    "asam": functools.partial(SAM, adaptive=True),
    "inf": functools.partial(SAM, p=math.inf),
    "gsam": GSAM,
    "looksam": functools.partial(LookSAM, every_n_steps=2),
    "friendly": FriendlySAM,
    "wsam": WSAM,
    "wsam_coupled": functools.partial(WSAM, decoupled=False),
    "momentum": MomentumSAM,
}
# g_s = g is not enough for these: (1 - a) g + a g is g up to rounding only.
ROUNDED = {"gsam", "wsam_coupled"}
SCOPES = [{"scope": "rank"}, {"scope": "global"}, {"scope": "micro_batch"}]
CASES = [(name, o) for name in FAMILY for o in (SCOPES if name != "momentum" else [{}])]
SETTINGS = [
    {},
    # 6 batches: the last window is a partial one
    {"accumulate_grad_batches": 4, "gradient_clip_val": 0.05, "gradient_clip_algorithm": "norm"},
]
in_each_scope = pytest.mark.parametrize(
    ("name", "options"), CASES, ids=lambda v: v if isinstance(v, str) else v.get("scope", "")
)


class Lines(DummyLogger):
    """A logger that keeps what it is told, without the ascent's own numbers."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def log_metrics(self, metrics, step=None):
        own = {k: v for k, v in metrics.items() if not k.startswith("sam/")}
        self.lines.append((step, own))


def run(*callbacks, seed=5, epochs=2, loader=None, **options):
    """Train `Everything` and return the module, the Trainer, and the next random numbers."""
    module = Everything()
    torch.manual_seed(seed)
    for p in module.parameters():
        nn.init.normal_(p, std=0.3) if p.requires_grad else None
    options = {"logger": Lines(), "log_every_n_steps": 1, **options}
    trainer = fit(module, loader or digits_like(shuffle=True), callbacks, max_epochs=epochs, **options)
    return module, trainer, torch.rand(3).tolist()


@functools.cache
def plain(setting):
    return run(**SETTINGS[setting])


def own_metrics(trainer):
    return {k: v.item() for k, v in trainer.callback_metrics.items() if not k.startswith("sam/")}


def flat_state(trainer):
    state = trainer.optimizers[0].state_dict()["state"]
    return {f"{i}.{k}": v for i, entry in state.items() for k, v in entry.items() if isinstance(v, torch.Tensor)}


def assert_equal_runs(first, second, *, rounded=False):
    (a, trainer_a, draws_a), (b, trainer_b, draws_b) = first, second
    assert draws_a == draws_b
    assert trainer_a.global_step == trainer_b.global_step > 0
    assert a.calls == b.calls
    if rounded:
        close = functools.partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)
        close(a.state_dict(), b.state_dict())
        close(flat_state(trainer_a), flat_state(trainer_b))
        close(a.losses, b.losses)
        close(own_metrics(trainer_a), own_metrics(trainer_b))
        return
    assert same(a.state_dict(), b.state_dict())
    assert same(flat_state(trainer_a), flat_state(trainer_b))
    assert a.losses == b.losses
    assert own_metrics(trainer_a) == own_metrics(trainer_b)
    assert trainer_a.logger.lines == trainer_b.logger.lines
    assert len(trainer_a.logger.lines) > trainer_a.global_step


@pytest.mark.parametrize("setting", [0, 1], ids=["plain", "accumulated"])
@in_each_scope
def test_rho_zero_is_plain_training(name, options, setting):
    sam = run(FAMILY[name](0.0, **options), **SETTINGS[setting])
    assert_equal_runs(plain(setting), sam, rounded=name in ROUNDED)


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("options", SCOPES, ids=str)
def test_no_weight_on_the_sharpness_is_plain_training_bit_for_bit(options, decoupled):
    assert_equal_runs(plain(1), run(WSAM(0.2, gamma=0, decoupled=decoupled, **options), **SETTINGS[1]))


@in_each_scope
def test_rho_above_zero_trains_differently_but_counts_and_draws_once(name, options):
    module, trainer, draws = run(FAMILY[name](0.2, **options), **SETTINGS[1])
    base = plain(1)
    assert not same(module.state_dict(), base[0].state_dict())
    assert (draws, trainer.global_step, module.calls) == (base[2], base[1].global_step, base[0].calls)
    assert module.seen == 96
    assert module.net[1].num_batches_tracked == 12


IDENTITIES = {
    "gsam": (lambda **o: GSAM(0.2, alpha=0, **o), SAM),
    "friendly": (lambda **o: FriendlySAM(0.2, sigma=0, **o), SAM),
    "wsam": (lambda **o: WSAM(0.2, gamma=0.5, decoupled=False, **o), SAM),
    "looksam": (lambda **o: LookSAM(0.2, alpha=0, every_n_steps=2, **o), functools.partial(SAM, every_n_steps=2)),
}


@pytest.mark.parametrize("options", [{}, *SCOPES[1:], {"adaptive": True}], ids=str)
@pytest.mark.parametrize("name", IDENTITIES)
def test_a_variant_without_what_it_adds_is_sam_bit_for_bit(name, options):
    variant, base = IDENTITIES[name]
    assert_equal_runs(run(base(0.2, **options), **SETTINGS[1]), run(variant(**options), **SETTINGS[1]))


@in_each_scope
def test_micro_batches_of_a_window_equal_one_large_batch(name, options):
    # In scope micro_batch the ascents differ by definition; there, one batch per window is the common case.
    size = 24 if options.get("scope") == "micro_batch" else 8
    ends = []
    for batch_size in (24, size):
        torch.manual_seed(3)
        module = Plain(dtype=torch.float64, optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
        callback = FAMILY[name](0.1, **(options if batch_size == size else {}))
        loader = digits_like(96, batch_size, dtype=torch.float64)
        trainer = fit(module, loader, [callback], accumulate_grad_batches=24 // batch_size, max_epochs=2)
        assert trainer.global_step == 8
        ends.append(module.state_dict())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-10, atol=1e-11)


class Home(Callback):
    """Note the weights where each batch starts, before any callback after this one moves them."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pl_module.home = tuple(p.detach().clone() for p in pl_module.parameters())


class Watch(Callback):
    """Hold that all after a backward find the weights where the batch found them, and a gradient that can be used."""

    def on_after_backward(self, trainer, pl_module):
        assert not pl_module.away()

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        assert not pl_module.away()
        if any(p.grad is not None and not p.grad.isfinite().all() for p in pl_module.parameters()):
            raise ArithmeticError("the gradient is not finite")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        assert pl_module.rate > 0 or not pl_module.away()


class Travelling(Plain):
    """Knows whether it is evaluated away from home, and can fail there, or give no loss."""

    def __init__(self, *, rate=0.1, fails=None, without_loss=()):
        super().__init__(optimizer=lambda p: torch.optim.SGD(p, lr=rate, momentum=0.9))
        self.rate, self.fails, self.without_loss = rate, fails, without_loss
        self.trips = itertools.count()  # no plain attribute, so a second pass counts, too

    def away(self):
        return any(not torch.equal(p, w) for p, w in zip(self.parameters(), self.home, strict=True))

    def training_step(self, batch, batch_idx):
        away = self.away()
        if away:
            next(self.trips)
        if batch_idx in self.without_loss:
            return None
        loss = super().training_step(batch, batch_idx)
        return self.fails(loss) if away and self.fails and self.trainer.global_step >= 3 else loss


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.parametrize("without_loss", [(), (0, 3, 4)], ids=str)
@pytest.mark.parametrize("accumulate", [1, 2])
@in_each_scope
def test_only_the_optimizer_moves_weights(name, options, accumulate, without_loss):
    # At rate 0 they stay, whatever happens between, also in batches without a gradient.
    module = Travelling(rate=0.0, without_loss=without_loss)
    start = {k: v.clone() for k, v in module.state_dict().items()}
    callbacks = [Home(), FAMILY[name](0.5, **options), Watch()]
    trainer = fit(module, digits_like(), callbacks, accumulate_grad_batches=accumulate, max_epochs=2)
    assert trainer.global_step == 2 * 6 // accumulate
    assert next(module.trips) > 0
    assert same(module.state_dict(), start)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.parametrize("name", FAMILY)
def test_a_batch_without_loss_changes_nothing_at_rho_zero(name):
    options = {"accumulate_grad_batches": 2, "max_epochs": 2}
    ends = []
    for callbacks in ([], [FAMILY[name](0.0)]):
        torch.manual_seed(3)
        ends.append(Travelling(without_loss=(1, 2)))
        fit(ends[-1], digits_like(), [Home(), *callbacks], **options)
    torch.testing.assert_close(ends[0].state_dict(), ends[1].state_dict(), rtol=1e-5, atol=1e-6)
    assert name in ROUNDED or same(ends[0].state_dict(), ends[1].state_dict())


def raises(error):
    def fail(loss):
        raise error

    return fail


FAILURES = {
    "error": (raises(RuntimeError("fails there")), RuntimeError),
    "memory": (raises(torch.cuda.OutOfMemoryError("no memory there")), torch.cuda.OutOfMemoryError),
    "nan": (lambda loss: loss * math.nan, ArithmeticError),
}


@pytest.mark.skipif(
    "save_on_exception" not in inspect.signature(ModelCheckpoint).parameters, reason="this Lightning has no such option"
)
@pytest.mark.parametrize("failure", FAILURES)
@in_each_scope
def test_weights_are_back_after_a_failure_in_the_module_and_in_the_checkpoint(name, options, failure, tmp_path):
    fails, error = FAILURES[failure]
    module, callback = Travelling(fails=fails), FAMILY[name](0.3, **options)
    saving = ModelCheckpoint(tmp_path, save_on_exception=True)
    with pytest.raises(error):
        fit(module, digits_like(), [Home(), callback, Watch(), saving], enable_checkpointing=True)
    assert not module.away()
    (path,) = tmp_path.glob("*.ckpt")
    saved = torch.load(path, weights_only=True)
    assert saved["global_step"] >= 3
    assert same(saved["state_dict"], module.state_dict())


@in_each_scope
def test_a_callback_whose_run_failed_trains_the_next_as_a_new_one(name, options):
    used = FAMILY[name](0.3, **options)
    with pytest.raises(RuntimeError, match="fails there"):
        fit(Travelling(fails=FAILURES["error"][0]), digits_like(), [Home(), used], max_epochs=2)
    assert_equal_runs(*(run(callback, **SETTINGS[1]) for callback in (FAMILY[name](0.3, **options), used)))


RESUMED = {
    "sam": lambda: SAM(0.2, every_n_steps=5, rho_schedule="cosine", start=1),
    "gsam": lambda: GSAM(0.2, every_n_steps=5, scope="micro_batch", rho_schedule="linear", stop=0.8),
    "looksam": lambda: LookSAM(0.2, every_n_steps=5),
    "friendly": lambda: FriendlySAM(0.2, rho_schedule="cosine"),
    "wsam": lambda: WSAM(0.2, every_n_steps=5),
    "momentum": lambda: MomentumSAM(0.2, rho_schedule="linear"),
}


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_goes_on_bit_for_bit(name, tmp_path):
    keeping = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    # RandomState asks for data that draw nothing from the global streams; a loader draws a seed for each pass.
    loader = DataLoader(digits_like().dataset, 8, generator=torch.Generator())
    options = {"epochs": 4, "enable_checkpointing": True, "loader": loader}
    whole = run(RESUMED[name](), RandomState(), keeping, **options)
    path = tmp_path / "epoch=1.ckpt"
    assert torch.load(path, weights_only=True)["global_step"] == 12  # in the middle of every interval
    fresh = [RESUMED[name](), RandomState(), ModelCheckpoint(tmp_path)]
    resumed = run(*fresh, seed=6, **options, ckpt_path=path)
    assert resumed[2] == whole[2]
    assert same(resumed[0].state_dict(), whole[0].state_dict())
    assert same(flat_state(resumed[1]), flat_state(whole[1]))
    assert resumed[0].losses == whole[0].losses[12:]
    kept = [
        next(c for c in trainer.callbacks if isinstance(c, SAM | MomentumSAM)).state_dict()
        for trainer in (whole[1], resumed[1])
    ]
    assert bool(kept[0]) == (name in {"looksam", "friendly"})
    torch.testing.assert_close(kept[0], kept[1], rtol=0, atol=0)


@pytest.mark.parametrize(("first", "second"), [(SAM, SAM), (GSAM, MomentumSAM), (WSAM, LookSAM)])
def test_two_callbacks_that_climb_are_refused(first, second):
    names = f"{first.__name__} and {second.__name__} each replace the gradient"
    with pytest.raises(MisconfigurationException, match=names):
        fit(Plain(), digits_like(), [first(), second()])


@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_momentum_sam_refuses_an_optimizer_without_momentum(name):
    module = Plain(optimizer=lambda p: getattr(torch.optim, name)(p, lr=0.1))
    with pytest.raises(MisconfigurationException, match=f"{name} keeps none: use SGD with momentum=0.9"):
        fit(module, digits_like(), [MomentumSAM()])


@pytest.mark.parametrize("wsam_first", [False, True])
def test_decoupled_wsam_steps_with_the_warmed_up_rate(wsam_first):
    # Scaled by 2, and from 1 to 2 over the 6 steps of the first epoch.
    torch.manual_seed(3)
    module, twin = (Plain(dtype=torch.float64, lr=0.05) for _ in range(2))
    twin.load_state_dict(module.state_dict())
    loader = digits_like(dtype=torch.float64)
    callbacks = [WSAM(0.2, gamma=0.75), LearningRateScaling(base_batch_size=4, warmup_epochs=1)]
    fit(module, loader, callbacks if wsam_first else callbacks[::-1], max_epochs=2)
    params = list(twin.parameters())
    for step, batch in enumerate([*loader, *loader]):
        rate = 0.05 * (1 + min(step / 6, 1))
        g = torch.autograd.grad(twin.training_step(batch, 0), params)
        length = torch.cat([x.reshape(-1) for x in g]).norm()
        home = [p.detach().clone() for p in params]
        for p, x in zip(params, g, strict=True):
            p.data += 0.2 * x / length
        g_s = torch.autograd.grad(twin.training_step(batch, 0), params)
        for p, w, x, y in zip(params, home, g, g_s, strict=True):
            p.data = w - rate * x - rate * 3 * (y - x)
    torch.testing.assert_close(module.state_dict(), twin.state_dict(), rtol=1e-10, atol=1e-11)


def test_sam_beside_every_other_callback_equals_sam_alone_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where callbacks leave their files
    others = [
        LearningRateScaling(base_batch_size=8, rule="none"),
        LossReductionCheck("ignore"),
        HessianSpectrum(top_k=1, tol=0.1),
        Sharpness({"sam": {"num_steps": 2}}),
        RandomState(),
        StepTime(),
    ]
    alone, together = run(SAM(0.2), **SETTINGS[1]), run(SAM(0.2), *others, **SETTINGS[1])
    assert alone[2] == together[2]
    assert same(alone[0].state_dict(), together[0].state_dict())
    assert same(flat_state(alone[1]), flat_state(together[1]))
    assert alone[0].losses == together[0].losses
    shared = alone[1].callback_metrics
    assert {"sam/grad_norm", "sam/ascent_loss_gain"} < shared.keys()
    assert all(torch.equal(v, together[1].callback_metrics[k]) for k, v in shared.items())
    assert {"hessian/lambda_1", "sharpness/sam", "time/step_ms", "lr/factor"} < together[1].callback_metrics.keys()
