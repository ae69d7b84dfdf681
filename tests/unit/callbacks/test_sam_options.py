"""The options of the SAM callbacks: which steps climb, how far, with which parameters, and what is said about it."""

import inspect
import itertools
import math
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lbtrain import GSAM, SAM, WSAM, FriendlySAM, LearningRateScaling, LookSAM, MomentumSAM
from lbtrain._lightning import Callback, DummyLogger, LightningModule, MisconfigurationException
from tests.modules import Plain, digits_like, fit, same

VARIANTS = [GSAM, LookSAM, FriendlySAM, WSAM]


class Noting(Plain):
    """Tells someone outside of each evaluation; a list of its own would come back from a second pass as it was."""

    def __init__(self, note, scheduler=None, **options):
        super().__init__(**options)
        self.note, self.scheduler = note, scheduler

    def training_step(self, batch, batch_idx):
        self.note(self, batch_idx)
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        if self.scheduler is None:
            return optimizer
        make, interval = self.scheduler
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": make(optimizer), "interval": interval}}


class Lines(DummyLogger):
    """A logger that keeps the numbers of ascents, by optimizer step."""

    def __init__(self):
        super().__init__()
        self.lines, self.last = {}, {}

    def log_metrics(self, metrics, step=None):
        own = {k: v for k, v in metrics.items() if k.startswith("sam/")}
        if own and own != self.last:  # until its epoch ends, the Trainer says again what a callback said last
            assert step not in self.lines
            self.lines[step] = self.last = own


# --- which steps climb: 3 epochs of 6 batches ---


def climbed(callback, **options):
    """The optimizer steps with a second pass over their batches."""
    visits = Counter()
    module = Noting(lambda m, batch_idx: visits.update([(m.trainer.global_step, m.trainer.current_epoch, batch_idx)]))
    fit(module, digits_like(), [callback], **{"max_epochs": 3, **options})
    steps = {step: {n for (other, *_), n in visits.items() if other == step} for step, *_ in visits}
    assert all(counts in ({1}, {2}) for counts in steps.values())  # whole windows, twice at most
    return [step for step, counts in steps.items() if counts == {2}]


@pytest.mark.parametrize(
    ("options", "trainer", "expected"),
    [
        ({}, {}, range(18)),
        ({"every_n_steps": 4}, {}, [0, 4, 8, 12, 16]),
        ({"every_n_steps": 4}, {"accumulate_grad_batches": 2}, [0, 4, 8]),
        ({"every_n_steps": 4, "start": 1}, {}, [8, 12, 16]),
        ({"start": 1}, {}, range(6, 18)),
        ({"start": 1, "stop": 2}, {}, range(6, 12)),
        ({"stop": 1}, {"accumulate_grad_batches": 4}, [0, 1]),
        ({"start": 0.5}, {}, range(9, 18)),
        ({"stop": 0.25}, {}, range(5)),  # 4 / 18 < 0.25 < 5 / 18
        ({"start": 0.25, "stop": 2}, {}, range(5, 12)),
        ({"start": 0.0, "stop": 1.0}, {}, range(18)),
        ({"start": 1.0}, {}, []),
        ({"start": 0.5}, {"max_steps": 10}, range(5, 10)),
        ({"start": 0.5, "stop": 0.8}, {"max_steps": 10, "max_epochs": -1}, range(5, 8)),
        ({"start": 0.5}, {"max_steps": 100}, range(9, 18)),  # the epochs end it first
        ({"start": 0.5}, {"limit_train_batches": 4}, range(6, 12)),
        # The window of batches 2 and 3 of the second epoch begins before the middle, and is not cut.
        ({"start": 0.5}, {"accumulate_grad_batches": 2}, range(5, 9)),
    ],
    ids=str,
)  # fmt: skip
def test_steps_that_climb(options, trainer, expected):
    assert climbed(SAM(0.1, **options), **trainer) == list(expected)


def test_looksam_climbs_on_its_own_interval_and_reuses_within_its_span_only():
    assert climbed(LookSAM(0.1, every_n_steps=5, start=1)) == [10, 15]
    plain, looks = (Plain(dtype=torch.float64) for _ in range(2))
    looks.load_state_dict(plain.state_dict())
    loader = digits_like(dtype=torch.float64)
    fit(plain, loader, [SAM(0.3, every_n_steps=6, stop=1)], max_epochs=2, limit_train_batches=1)
    fit(looks, loader, [LookSAM(0.3, every_n_steps=6, stop=1)], max_epochs=2, limit_train_batches=1)
    assert same(plain.state_dict(), looks.state_dict())  # one ascent in epoch 0, whose direction epoch 1 leaves alone


@pytest.mark.parametrize("callback", [SAM, MomentumSAM])
@pytest.mark.parametrize(
    "options", [{"start": 0.5}, {"stop": 0.5}, {"rho_schedule": "linear"}, {"rho_schedule": "cosine"}]
)
def test_shares_of_a_training_without_an_end_are_refused(callback, options):
    with pytest.raises(
        MisconfigurationException, match=f"{callback.__name__} is counted in shares .* length is unknown"
    ):
        fit(Plain(), digits_like(), [callback(**options)], max_epochs=-1, max_time="00:00:00:05")


# --- how far ---


def logged(callback, key="sam/rho", *, module=None, callbacks=(), **options):
    """A number of the ascents by optimizer step."""
    logger = Lines()
    module = module or Plain(optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
    options = {"max_epochs": 3, "log_every_n_steps": 1, **options}
    fit(module, digits_like(), [*callbacks, callback], logger=logger, **options)
    return {step: line[key] for step, line in logger.lines.items()}


SCHEDULES = {
    "constant": lambda t: 0.4,
    "linear": lambda t: 0.4 - 0.3 * t,
    "cosine": lambda t: 0.1 + 0.3 * (1 + math.cos(math.pi * t)) / 2,
}


@pytest.mark.parametrize("callback", [SAM, GSAM, LookSAM, FriendlySAM, WSAM, MomentumSAM])
@pytest.mark.parametrize(("trainer", "steps"), [({}, 18), ({"max_steps": 12}, 12)], ids=["epochs", "steps"])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_the_radius_follows_its_schedule(kind, trainer, steps, callback):
    end = {} if kind == "constant" else {"rho_end": 0.1}
    every = {"every_n_steps": 1} if callback is LookSAM else {}
    found = logged(callback(0.4, rho_schedule=kind, **end, **every), **trainer)
    # Before its first step an optimizer has no momentum to move along.
    assert list(found) == list(range(1 if callback is MomentumSAM else 0, steps))
    assert found == pytest.approx({k: SCHEDULES[kind](k / steps) for k in found})


class Rates(Callback):
    """Note the learning rate of each step."""

    def __init__(self):
        self.rates = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.mark.parametrize(
    ("scheduler", "highest"),
    [
        ((lambda o: torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.5), "epoch"), 0.1),
        ((lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.8, total_steps=18), "step"), 0.8),
        ((lambda o: torch.optim.lr_scheduler.LinearLR(o, start_factor=0.1, total_iters=9), "step"), 0.1),
        (None, 0.1),
    ],
    ids=["StepLR", "OneCycleLR", "LinearLR", "none"],
)
def test_the_radius_follows_the_learning_rate(scheduler, highest):
    rates = Rates()
    module = Noting(lambda *_: None, scheduler)
    found = logged(SAM(0.4, rho_schedule="lr", rho_end=0.1), module=module, callbacks=[rates])
    assert len(set(rates.rates)) > (1 if scheduler else 0)
    assert found == pytest.approx({k: 0.1 + 0.3 * rate / highest for k, rate in enumerate(rates.rates)})


@pytest.mark.parametrize("first", [False, True])
def test_the_radius_follows_a_warmup_of_the_rate_whatever_the_order_of_the_callbacks(first):
    # From a quarter of the scaled rate to all of it, over the 6 steps of the first epoch.
    sam, scaling = SAM(0.4, rho_schedule="lr"), LearningRateScaling(base_batch_size=2, warmup_epochs=1)
    found = logged(scaling if first else sam, callbacks=[sam if first else scaling])
    assert found == pytest.approx({k: 0.4 * (0.25 + 0.75 * min(k / 6, 1)) for k in range(18)})


def test_the_radius_follows_a_rate_that_is_lowered_by_hand():
    class Halving(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            trainer.optimizers[0].param_groups[0]["lr"] = 0.1 * 0.5**trainer.current_epoch

    found = logged(SAM(0.4, rho_schedule="lr"), callbacks=[Halving()])
    assert found == pytest.approx({k: 0.4 * 0.5 ** (k // 6) for k in range(18)})


@pytest.mark.parametrize("climber", [SAM, MomentumSAM])
@pytest.mark.parametrize("schedule", ["lr", "linear"])
def test_all_batches_of_a_step_have_one_radius(climber, schedule):
    radii = []

    class Noted(climber):
        def _climbers(self, trainer, vectors):
            radii.append(self._radii[0])
            return super()._climbers(trainer, vectors)

    options = {"scope": "micro_batch"} if climber is SAM else {}
    scaling = LearningRateScaling(base_batch_size=4, warmup_epochs=1)
    module = Plain(optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
    callbacks = [Noted(0.4, rho_schedule=schedule, **options), scaling]
    fit(module, digits_like(), callbacks, accumulate_grad_batches=2, max_epochs=2)
    # Global batch 16 over 4: from a quarter of the scaled rate, over 3 steps of 2 batches each.
    expected = [0.1, 0.2, 0.3, 0.4, 0.4, 0.4] if schedule == "lr" else [0.4 * (1 - k / 6) for k in range(6)]
    assert radii[::2] == radii[1::2] == pytest.approx(expected)


def test_scale_rho_multiplies_by_the_interval():
    found = logged(SAM(0.1, every_n_steps=3, scale_rho=True))
    assert found == pytest.approx(dict.fromkeys(range(0, 18, 3), 0.3))
    assert same(travelled(SAM(0.1, every_n_steps=3, scale_rho=True))[1], travelled(SAM(3 * 0.1))[1])


# --- who climbs: where the second pass of the first batch finds the parameters ---


class Normed(Noting):
    """Six parameters, two of them of a normalization layer."""

    def __init__(self, note, groups=None, momentum=0.0):
        torch.manual_seed(3)
        super().__init__(note, dtype=torch.float64)
        self.net = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3)).double()
        self.groups, self.momentum = groups or (lambda m: m.parameters()), momentum

    def configure_optimizers(self):
        return torch.optim.SGD(self.groups(self), lr=0.1, momentum=self.momentum)


def travelled(callback, make=Normed, batches=1, **options):
    """The first batch's gradient, and how far from the start the last evaluation was, both by name."""
    places = []
    module = make(lambda m, _: places.append({n: p.detach().clone() for n, p in m.named_parameters()}), **options)
    loader = digits_like(8 * batches, 8, dtype=torch.float64)
    home = {n: p.detach().clone() for n, p in module.named_parameters()}
    loss = nn.functional.cross_entropy(module.net(next(iter(loader))[0]), next(iter(loader))[1])
    params = {n: p for n, p in module.named_parameters() if p.requires_grad}
    g = dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))
    fit(module, loader, [callback])
    return g, {n: p - home[n] for n, p in places[-1].items()}


def together(vectors):
    return torch.cat([v.reshape(-1) for v in vectors]).norm()


WEIGHTS, BIASES = ({f"net.{i}.{kind}" for i in (0, 1, 3)} for kind in ("weight", "bias"))
NORM = {"net.1.weight", "net.1.bias"}


@pytest.mark.parametrize(
    ("options", "movers"),
    [
        ({}, WEIGHTS | BIASES),
        ({"exclude": ["biases"]}, WEIGHTS),
        ({"exclude": ["norms"]}, (WEIGHTS | BIASES) - NORM),
        ({"exclude": ["biases", "norms"]}, WEIGHTS - NORM),
        ({"only": ["norms"]}, NORM),
        ({"only": ["net.3"]}, {"net.3.weight", "net.3.bias"}),
        ({"exclude": ["net.0.weight"]}, (WEIGHTS | BIASES) - {"net.0.weight"}),
        ({"only": ["net.?.weight"], "exclude": ["net.1"]}, WEIGHTS - NORM),
    ],
    ids=lambda value: str(value if isinstance(value, dict) else sorted(value)),
)
def test_the_chosen_parameters_move_and_only_they_count_in_the_norm(options, movers):
    g, e = travelled(SAM(0.2, **options))
    length = together([g[n] for n in movers])
    for name, step in e.items():
        expected = 0.2 * g[name] / length if name in movers else torch.zeros_like(step)
        torch.testing.assert_close(step, expected, rtol=1e-10, atol=1e-14)
        assert name in movers or not step.any()


@pytest.mark.parametrize("callback", [GSAM, LookSAM, FriendlySAM, WSAM])
def test_variants_choose_as_sam_does(callback):
    assert same(travelled(SAM(0.2, only=["norms"]))[1], travelled(callback(0.2, only=["norms"]))[1])


def test_momentum_sam_moves_the_chosen_parameters_only():
    # After one step the momentum is the first gradient; before the second, plain training is at w - 0.1 g.
    g, found = travelled(MomentumSAM(0.2, only=["norms"]), batches=2, momentum=0.9)
    length = together([g[n] for n in NORM])
    for name, gradient in g.items():
        shift = -0.2 * gradient / length if name in NORM else 0.0
        torch.testing.assert_close(found[name], -0.1 * gradient + shift, rtol=1e-10, atol=1e-14)


def grouped(module):
    named = dict(module.named_parameters())
    own = {"net.0.weight": 0.5, "net.0.bias": 0.0}
    return [{"params": [p], **({"sam_rho": own[n]} if n in own else {})} for n, p in named.items()]


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_group_has_a_radius_of_its_own_and_at_zero_is_not_in_the_norm(adaptive):
    g, e = travelled(SAM(0.2, adaptive=adaptive), groups=grouped)
    fresh = dict(Normed(None).named_parameters())
    t = {n: p.detach().abs() + 0.01 if adaptive and "weight" in n else torch.ones_like(p) for n, p in fresh.items()}
    length = together([t[n] * g[n] for n in g if n != "net.0.bias"])
    for name, step in e.items():
        rho = {"net.0.weight": 0.5, "net.0.bias": 0.0}.get(name, 0.2)
        torch.testing.assert_close(step, rho * t[name] ** 2 * g[name] / length, rtol=1e-10, atol=1e-14)
    assert not e["net.0.bias"].any()


def test_a_radius_of_a_group_that_is_no_number_is_refused():
    module = Plain(optimizer=lambda p: torch.optim.SGD([{"params": list(p), "sam_rho": -0.1}], lr=0.1))
    with pytest.raises(ValueError, match="sam_rho of parameter group 0 must be at least 0 and finite, got -0.1"):
        fit(module, digits_like(), [SAM()])


def tied(note):
    module = Normed(note)
    module.net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 3)).double()
    module.net[2].weight = module.net[0].weight
    module.net[3].weight.requires_grad_(False)
    return module


def test_a_tied_parameter_moves_once_and_a_frozen_one_not_at_all():
    g, e = travelled(SAM(0.2), tied)
    assert "net.2.weight" not in e  # the name that torch leaves out
    assert not e.pop("net.3.weight").any()
    torch.testing.assert_close(together(e.values()), torch.tensor(0.2, dtype=torch.float64), rtol=1e-10, atol=0)
    torch.testing.assert_close(e["net.0.weight"], 0.2 * g["net.0.weight"] / together(g.values()), rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", ["net.0.weight", "net.2.weight", "net.2"])
def test_a_tied_parameter_is_left_out_by_any_of_its_names(name):
    _, e = travelled(SAM(0.2, exclude=[name]), tied)
    assert not e["net.0.weight"].any()
    assert e["net.0.bias"].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exclude": ["net.7"]}, "exclude has 'net.7', which is no parameter of net.0.weight, .*: give biases, norms"),
        ({"only": ["biases", "head.*"]}, r"only has 'head\.\*', which is no parameter"),
        ({"exclude": ["*"]}, r"exclude=\['\*'\] and only=\[\] leave no parameter to climb with"),
        ({"exclude": ["norms"], "only": ["net.1"]}, "leave no parameter"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("callback", [SAM, MomentumSAM])
def test_a_choice_that_cannot_be_meant_is_refused(callback, options, message):
    with pytest.raises(MisconfigurationException, match=message):
        fit(Normed(lambda *_: None, momentum=0.9), digits_like(dtype=torch.float64), [callback(**options)])


# --- parameters with a gradient in one of the two passes ---


class Branching(LightningModule):
    """L = (|a|^2 + |b|^2) / 2 in first passes, (|a|^2 + |c|^2) / 2 in second ones."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.tensor(v).double()) for v in ([1.0, -2.0], [3.0], [0.5, 0.25]))
        self.calls = itertools.count()

    def training_step(self, batch, batch_idx):
        return (self.a.square().sum() + (self.c if next(self.calls) % 2 else self.b).square().sum()) / 2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("scope", ["rank", "micro_batch"])
@pytest.mark.parametrize("name", ["sam", "asam", "gsam", "friendly", "wsam", "coupled", "looksam"])
def test_a_gradient_missing_in_one_pass_counts_as_zero(name, scope):
    callback = {
        "sam": lambda **o: SAM(0.4, **o),
        "asam": lambda **o: SAM(0.4, adaptive=True, **o),  # nothing here is called a weight
        "gsam": lambda **o: GSAM(0.4, alpha=0.3, **o),
        "friendly": lambda **o: FriendlySAM(0.4, **o),
        "wsam": lambda **o: WSAM(0.4, gamma=0.75, **o),
        "coupled": lambda **o: WSAM(0.4, gamma=0.75, decoupled=False, **o),
        "looksam": lambda **o: LookSAM(0.4, alpha=0.6, every_n_steps=2, **o),
    }[name](scope=scope)
    module = Branching()
    a, b, c = (p.detach().clone() for p in module.parameters())
    loader = digits_like(16 if name == "looksam" else 8, 8)
    fit(module, loader, [callback])
    g = torch.cat([a, b, torch.zeros(2)])
    g_s = torch.cat([a + 0.4 * a / g.norm(), torch.zeros(1), c])
    used = {
        "gsam": g_s - 0.3 * (g - (g @ g_s) / (g_s @ g_s) * g_s),
        "wsam": g + 3 * (g_s - g),  # with plain SGD both forms of WSAM are the same
        "coupled": g + 3 * (g_s - g),
    }.get(name, g_s)
    w = torch.cat([a, b, c]) - 0.1 * used
    if name == "looksam":  # one more step, in which c has no gradient
        v = (g_s - (g_s @ g) / (g @ g) * g)[:3]
        g = w[:3]
        w = torch.cat([g - 0.1 * (g + 0.6 * g.norm() / v.norm() * v), w[3:]])
    torch.testing.assert_close(torch.cat([p.detach() for p in module.parameters()]), w, rtol=1e-12, atol=1e-14)


# --- what is logged ---


@pytest.mark.parametrize("scope", ["rank", "global", "micro_batch"])
def test_logged_numbers_equal_those_by_hand(scope):
    # 20 samples in batches of 8, 8, 4, and windows of two: the second window is one batch of 4.
    loader = digits_like(20, 8, dtype=torch.float64)
    module, logger = Plain(dtype=torch.float64, lr=0.0), Lines()
    fit(module, loader, [SAM(0.2, scope=scope)], logger=logger, log_every_n_steps=1, accumulate_grad_batches=2)
    assert list(logger.lines) == [0, 1]
    batches, params = list(loader), list(module.parameters())
    home = [p.detach().clone() for p in params]

    def look(group):
        for p, w in zip(params, home, strict=True):
            p.data = w.clone()
        before = sum(module.training_step(b, 0) for b in group) / len(group)
        g = torch.autograd.grad(before, params)
        for p, x in zip(params, g, strict=True):
            p.data += 0.2 * x / together(g)
        after = sum(module.training_step(b, 0) for b in group) / len(group)
        return (after - before).item(), together(g).item()

    for step, window in enumerate([batches[:2], batches[2:]]):
        looks = [look(group) for group in ([[b] for b in window] if scope == "micro_batch" else [window])]
        missing = 1 if scope == "micro_batch" else 2 / len(window)  # the Trainer divides by two all the same
        expected = {
            "sam/ascent_loss_gain": sum(gain for gain, _ in looks) / len(looks),
            "sam/grad_norm": looks[-1][1] / missing,  # of the last ascent
            "sam/rho": 0.2,
            "sam/m": {"micro_batch": [8, 4]}.get(scope, [16, 4])[step],
        }
        assert logger.lines[step] == pytest.approx(expected, rel=1e-4)  # losses are logged in float32


def test_momentum_sam_logs_the_length_of_the_momentum_and_no_gain():
    logger, loader = Lines(), digits_like(16, dtype=torch.float64)
    module = Normed(lambda *_: None, momentum=0.9)
    g = torch.autograd.grad(
        nn.functional.cross_entropy(module.net(next(iter(loader))[0]), next(iter(loader))[1]), module.parameters()
    )
    fit(module, loader, [MomentumSAM(0.3)], logger=logger, log_every_n_steps=1)
    assert logger.lines == {1: pytest.approx({"sam/grad_norm": together(g).item(), "sam/rho": 0.3})}


def test_samples_that_cannot_be_counted_are_left_out_of_the_log():
    logger = Lines()
    batch = (torch.randn(8, 6), torch.zeros(8, dtype=torch.long), torch.ones(3))

    class Weighted(Plain):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch[:2], batch_idx)

    fit(Weighted(), DataLoader([batch], batch_size=None), [SAM()], logger=logger, log_every_n_steps=1)
    assert logger.lines[0].keys() == {"sam/grad_norm", "sam/ascent_loss_gain", "sam/rho"}


@pytest.mark.parametrize(
    ("every", "log", "accumulate", "expected"),
    [
        (1, 3, 1, {2: 2, 5: 5, 8: 8, 11: 11}),
        (1, 4, 2, {3: 3}),
        (2, 2, 1, {1: 0, 3: 2, 5: 4, 7: 6, 9: 8, 11: 10}),  # climbs on even steps, logs on odd ones
        (4, 6, 1, {5: 4, 11: 8}),
        (4, 3, 1, {2: 0, 5: 4, 8: 8}),
        (1, 0, 1, {}),
    ],
)  # fmt: skip
def test_the_last_ascent_is_logged_at_the_interval_and_not_again(every, log, accumulate, expected):
    sent = []

    class Telling(Plain):
        def log_dict(self, dictionary, **options):
            sent.append(self.trainer.global_step)
            super().log_dict(dictionary, **options)

    radii = {step: 0.4 * (1 - step / 12) for step in range(12)}  # says which step's numbers they are
    callback = SAM(0.4, every_n_steps=every, rho_schedule="linear" if accumulate == 1 else "constant")
    options = {"log_every_n_steps": log, "accumulate_grad_batches": accumulate, "max_epochs": 2}
    found = logged(callback, module=Telling(), **options)
    assert found == pytest.approx({k: radii[v] if accumulate == 1 else 0.4 for k, v in expected.items()})
    assert sent == list(expected)  # nothing is computed for other steps


@pytest.mark.parametrize("callback", [SAM, LookSAM, WSAM, MomentumSAM])
def test_logging_does_not_change_the_training(callback):
    ends = []
    for every in (1, 0):
        torch.manual_seed(3)
        ends.append(Plain(optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)))
        fit(ends[-1], digits_like(), [callback(0.2)], logger=Lines(), log_every_n_steps=every, max_epochs=2)
    assert same(ends[0].state_dict(), ends[1].state_dict())


# --- arguments ---


@pytest.mark.parametrize(
    ("callback", "options", "message"),
    [
        (SAM, {"rho": "0.1"}, "rho must be at least 0 and finite, got '0.1'"),
        (SAM, {"rho": True}, "rho must be at least 0 and finite, got True"),
        (SAM, {"eta": -1.0}, "eta must be at least 0 and finite, got -1.0; 0.01 is the usual value"),
        (SAM, {"p": 1}, "p must be 2 or inf, got 1"),
        (SAM, {"scope": "device"}, "scope must be one of rank, global, micro_batch, got 'device'"),
        (SAM, {"every_n_steps": 0}, "every_n_steps must be an integer of at least 1, got 0"),
        (LookSAM, {"every_n_steps": 2.5}, "every_n_steps must be an integer of at least 1, got 2.5"),
        (SAM, {"start": 1.5}, r"start must be an epoch .* or a share of training .*, got 1.5"),
        (SAM, {"start": True}, "start must be an epoch"),
        (MomentumSAM, {"stop": -1}, "stop must be an epoch .*, got -1"),
        (SAM, {"start": 2, "stop": 2}, "start must be before stop, got start=2 and stop=2"),
        (SAM, {"start": 0.5, "stop": 0.25}, "start must be before stop"),
        (SAM, {"rho_schedule": "step"}, "rho_schedule must be one of constant, linear, cosine, lr, got 'step'"),
        (SAM, {"rho_end": 0.1}, r"rho_end=0.1 needs a schedule: set rho_schedule to linear, cosine or lr"),
        (MomentumSAM, {"rho_end": -0.1, "rho_schedule": "lr"}, "rho_end must be at least 0 and finite, got -0.1"),
        (SAM, {"exclude": "biases"}, r"exclude must be a list of texts, got 'biases'; for example \[biases, norms\]"),
        (GSAM, {"only": [1]}, r"only must be a list of texts, got \[1\]"),
        (GSAM, {"alpha": -0.1}, "alpha must be at least 0 and finite, got -0.1; 0.4 is the value of the authors'"),
        (LookSAM, {"alpha": math.nan}, "alpha must be at least 0 and finite, got nan; 0.7 is the usual value"),
        (FriendlySAM, {"sigma": -1}, "sigma must be at least 0 and finite, got -1; 1 is the authors' value"),
        (FriendlySAM, {"decay": 1.0}, r"decay must be in \[0, 1\), got 1.0; 0.9 is the authors' value"),
        (WSAM, {"gamma": 1.0}, r"gamma must be in \[0, 1\), got 1.0; 0.5 is SAM"),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_argument_is_named_with_the_values_that_are_right(callback, options, message):
    with pytest.raises(ValueError, match=message):
        callback(**options)


@pytest.mark.parametrize("callback", VARIANTS)
def test_a_variant_shows_every_option_with_its_default_and_takes_it(callback):
    shown, base = inspect.signature(callback).parameters, inspect.signature(SAM).parameters
    assert base.keys() < shown.keys()
    own = {"rho", "alpha", "every_n_steps", "sigma", "decay", "gamma", "decoupled"}
    assert all(shown[name].default == base[name].default for name in base.keys() - own)
    assert not any(p.kind is p.VAR_KEYWORD for p in shown.values())
    made = callback(**{name: p.default for name, p in shown.items()})
    assert all(getattr(made, name) == p.default for name, p in shown.items() if hasattr(made, name))
    given = callback(scope="global", adaptive=True, p=math.inf, every_n_steps=7)
    assert (given.scope, given.adaptive, given.p, given.every_n_steps) == ("global", True, math.inf, 7)


@pytest.mark.parametrize("callback", [SAM, *VARIANTS, MomentumSAM])
def test_a_mistyped_option_is_refused(callback):
    with pytest.raises(TypeError, match="unexpected keyword argument 'every_n_step'"):
        callback(every_n_step=2)


@pytest.mark.parametrize("callback", [SAM, MomentumSAM])
def test_weights_in_half_precision_are_warned_of_where_a_step_may_round_away(callback):
    def run(rho):
        module = Plain(optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
        fit(module, digits_like(), [callback(rho)], precision="bf16-true")

    with pytest.warns(UserWarning, match="the weights are bfloat16: .* rounded away.*precision=bf16-mixed"):
        run(0.1)
    run(0.0)  # a warning would be an error
