"""SAM: its closed form, a loop written by hand, and everything that it must leave alone."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lbtrain import GSAM, SAM, WSAM, FriendlySAM, LookSAM
from lbtrain._lightning import MisconfigurationException
from tests.modules import Everything, Plain, Quadratic, digits_like, fit, same

SETTINGS = [
    {},
    {"accumulate_grad_batches": 4},  # 6 batches: the last window is a partial one
    {"gradient_clip_val": 0.05},
    {"precision": "bf16-mixed"},
    {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05, "precision": "bf16-mixed"},
]


def test_quadratic_step_is_the_closed_form():
    matrix = torch.tensor([[3.0, 0.5, 0.0], [0.5, 2.0, -0.3], [0.0, -0.3, 1.0]], dtype=torch.float64)
    start = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    zeros = DataLoader(TensorDataset(torch.zeros(4, 3, dtype=torch.float64)), batch_size=4)
    module = Quadratic(matrix, start, lr=0.1)
    fit(module, zeros, [SAM(rho=0.2)])
    g = matrix @ start
    expected = start - 0.1 * matrix @ (start + 0.2 * g / g.norm())
    torch.testing.assert_close(module.w.detach(), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("adaptive", [False, True])
def test_twenty_steps_equal_a_loop_written_by_hand(adaptive):
    loader = digits_like(160, 8, dtype=torch.float64)
    optimizer = lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01)
    torch.manual_seed(3)
    module = Plain(dtype=torch.float64, optimizer=optimizer)
    twin = Plain(dtype=torch.float64, optimizer=optimizer)
    twin.load_state_dict(module.state_dict())
    trainer = fit(module, loader, [SAM(rho=0.1, adaptive=adaptive)])
    by_hand(twin, loader, rho=0.1, adaptive=adaptive)
    assert trainer.global_step == 20
    assert same(module.state_dict(), twin.state_dict())


def by_hand(module, loader, rho, adaptive):
    """Two forward-backward passes per batch, from the algorithm in the paper."""
    optimizer = module.configure_optimizers()
    for batch in loader:
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        before = [p.detach().clone() for p in module.parameters()]
        with torch.no_grad():
            named = list(module.named_parameters())
            scale = [p.abs() + 0.01 if adaptive and "weight" in n else torch.ones_like(p) for n, p in named]
            scaled = [p.grad * t for (_, p), t in zip(named, scale, strict=True)]
            length = torch.stack([s.norm() for s in scaled]).norm()
            for (_, p), s, t in zip(named, scaled, scale, strict=True):
                p.add_(s * (rho / (length + 1e-12)) * t)
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        with torch.no_grad():
            for p, w in zip(module.parameters(), before, strict=True):
                p.copy_(w)
        optimizer.step()


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_rho_zero_is_plain_training_bit_for_bit(options):
    plain, sam = run(None, options), run(SAM(rho=0), options)
    assert same(plain[0].state_dict(), sam[0].state_dict())
    assert same(flat_state(plain[1]), flat_state(sam[1]))
    assert plain[2] == sam[2]
    assert plain[1].callback_metrics.keys() == sam[1].callback_metrics.keys()
    assert all(torch.equal(v, sam[1].callback_metrics[k]) for k, v in plain[1].callback_metrics.items())
    assert plain[0].losses == sam[0].losses
    assert plain[0].calls == sam[0].calls == 12
    assert plain[1].global_step == sam[1].global_step


def test_rho_above_zero_trains_differently_but_counts_once():
    plain, sam = run(None, {}), run(SAM(rho=0.1), {})
    assert not same(plain[0].state_dict(), sam[0].state_dict())
    assert plain[2] == sam[2]
    assert sam[0].calls == 12
    assert sam[0].seen == 96
    assert sam[0].net[1].num_batches_tracked == 12


def run(callback, options):
    module = Everything()
    torch.manual_seed(5)
    for p in module.parameters():
        nn.init.normal_(p, std=0.3) if p.requires_grad else None
    trainer = fit(module, digits_like(shuffle=True), [callback] if callback else [], max_epochs=2, **options)
    return module, trainer, torch.rand(3).tolist()


def flat_state(trainer):
    state = trainer.optimizers[0].state_dict()["state"]
    return {f"{i}.{k}": v for i, entry in state.items() for k, v in entry.items() if isinstance(v, torch.Tensor)}


def test_micro_batches_of_a_window_equal_one_large_batch():
    large, small = Plain(dtype=torch.float64), Plain(dtype=torch.float64)
    small.load_state_dict(large.state_dict())
    fit(large, digits_like(48, 24, dtype=torch.float64), [SAM(0.1)])
    fit(small, digits_like(48, 8, dtype=torch.float64), [SAM(0.1)], accumulate_grad_batches=3)
    for a, b in zip(large.parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


class Dropping(Plain):
    """The second pass of each step leaves a layer out, or fails."""

    fails = False

    def training_step(self, batch, batch_idx):
        self.start = self.start if hasattr(self, "start") else [p.detach().clone() for p in self.parameters()]
        moved = any(not torch.equal(p, w) for p, w in zip(self.parameters(), self.start, strict=True))
        if moved and self.fails:
            raise RuntimeError("the second pass fails")
        if moved:
            return nn.functional.cross_entropy(self.net[2](torch.zeros(len(batch[1]), 5)), batch[1])
        return super().training_step(batch, batch_idx)


def test_a_parameter_without_gradient_in_the_second_pass_is_restored():
    module = Dropping()
    first = module.net[0].weight.detach().clone()
    fit(module, digits_like(8, 8), [SAM(0.5)])
    assert torch.equal(module.net[0].weight, first)
    assert module.net[0].weight.grad is None
    assert not torch.equal(module.net[2].bias, module.start[3])


def test_weights_are_back_when_the_second_pass_raises(tmp_path):
    module = Dropping()
    module.fails = True
    with pytest.raises(RuntimeError, match="the second pass fails"):
        fit(module, digits_like(8, 8), [SAM(0.5)])
    assert all(torch.equal(p, w) for p, w in zip(module.parameters(), module.start, strict=True))


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_step_without_loss_is_left_out():
    class Skipping(Plain):
        def training_step(self, batch, batch_idx):
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    plain, sam = Skipping(), Skipping()
    sam.load_state_dict(plain.state_dict())
    for module, callbacks in ((plain, []), (sam, [SAM(0)])):
        fit(module, digits_like(), callbacks, accumulate_grad_batches=2)
    assert same(plain.state_dict(), sam.state_dict())


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.parametrize(
    ("climber", "scope"),
    [
        *((climber, scope) for climber in (SAM, GSAM, LookSAM, WSAM) for scope in ("rank", "global", "micro_batch")),
        (FriendlySAM, "rank"),  # with an ascent per batch its average counts in shares of the window
    ],
)
def test_a_step_whose_last_batch_gives_no_loss_climbs_with_the_others(climber, scope):
    class Half(Plain):
        """Gives a batch half its weight, as a window of two does."""

        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) / 2

    class Skipping(Plain):
        def training_step(self, batch, batch_idx):
            return None if batch_idx % 2 else super().training_step(batch, batch_idx)

    found = []
    for kind, accumulate in ((Skipping, 2), (Half, 1)):
        torch.manual_seed(0)
        module = kind(dtype=torch.float64)
        loader = digits_like(dtype=torch.float64)
        if kind is Half:
            x, y = (torch.stack(column) for column in zip(*loader.dataset, strict=True))
            used = torch.cat([torch.arange(i, i + 8) for i in range(0, 48, 16)])
            loader = DataLoader(TensorDataset(x[used], y[used]), batch_size=8)
        fit(module, loader, [climber(0.3, scope=scope)], accumulate_grad_batches=accumulate)
        found.append(torch.cat([p.detach().reshape(-1) for p in module.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rho", [-0.1, math.inf, math.nan])
def test_a_wrong_rho_is_refused(rho):
    with pytest.raises(ValueError, match="rho must be at least 0 and finite, got"):
        SAM(rho=rho)


def test_manual_optimization_is_refused_before_training():
    class Manual(Plain):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            raise AssertionError("trained")

    with pytest.raises(MisconfigurationException, match="SAM .* needs automatic optimization"):
        fit(Manual(), digits_like(), [SAM()])


def test_lbfgs_is_refused():
    module = Plain(optimizer=lambda p: torch.optim.LBFGS(p))
    with pytest.raises(MisconfigurationException, match="LBFGS calls its closure many times"):
        fit(module, digits_like(), [SAM()])


def test_gradients_outside_the_optimizer_stay_as_in_plain_training():
    class Partial(Plain):
        def configure_optimizers(self):
            return torch.optim.SGD(self.net[2].parameters(), lr=0.1)

    plain, sam = Partial(), Partial()
    sam.load_state_dict(plain.state_dict())
    fit(plain, digits_like())
    fit(sam, digits_like(), [SAM(0)])
    assert torch.equal(plain.net[0].weight.grad, sam.net[0].weight.grad)
