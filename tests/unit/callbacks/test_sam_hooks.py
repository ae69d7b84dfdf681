"""What SAM does to a step besides its gradient: nothing that hooks, clipping, memory or the device could notice."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lbtrain import GSAM, SAM, WSAM, FriendlySAM, LookSAM, MomentumSAM
from lbtrain._lightning import MisconfigurationException, strategies
from lbtrain.callbacks._strategies import refuse_strategy
from tests.modules import Everything, Plain, digits_like, fit, same

CLIMBERS = {
    "SAM": lambda: SAM(0.1),
    "ASAM": lambda: SAM(0.5, adaptive=True),
    "p=inf": lambda: SAM(0.01, p=float("inf")),
    "each batch": lambda: SAM(0.1, scope="micro_batch"),
    "GSAM": lambda: GSAM(0.1),
    "LookSAM": lambda: LookSAM(0.1, every_n_steps=2),
    "FriendlySAM": lambda: FriendlySAM(0.1),
    "WSAM": lambda: WSAM(0.1),
    "MomentumSAM": lambda: MomentumSAM(0.1),
}
momentum = lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)


class Operations(TorchDispatchMode):
    """Count the operations that torch runs."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def operations(module, callbacks, **options):
    with Operations() as found:
        fit(module, digits_like(), callbacks, **options)
    return found.counts


@pytest.mark.parametrize("name", CLIMBERS)
def test_no_step_waits_for_the_device(name):
    reads = [
        operations(Plain(optimizer=momentum), callbacks, log_every_n_steps=0)["_local_scalar_dense"]
        for callbacks in ([], [CLIMBERS[name]()])
    ]
    assert reads[0] == reads[1]


def deep(layers):
    module = Plain(optimizer=momentum)
    module.net = torch.nn.Sequential(*[torch.nn.Linear(6, 6) for _ in range(layers)], torch.nn.Linear(6, 3))
    return module


def test_a_climb_and_the_way_back_are_five_groups_of_kernels_however_many_tensors_there_are():
    groups = []
    for layers in (1, 8):
        plain, sam = (operations(deep(layers), c, log_every_n_steps=0) for c in ([], [SAM(0.1)]))
        groups.append({k: (sam[k] - plain[k]) / 6 for k in sam if k.startswith("_foreach") and sam[k] != plain[k]})
    # The norm; the step and the move; what keeps the weights and what puts them back.
    assert groups[0] == groups[1] == {"_foreach_norm": 1, "_foreach_mul_": 1, "_foreach_add_": 1, "_foreach_copy_": 2}


@pytest.mark.parametrize("name", CLIMBERS)
def test_hooks_run_once_per_batch_and_step(name):
    class Hooked(Plain):
        def __init__(self):
            super().__init__(optimizer=momentum)
            self.told = Counter()

        def on_before_backward(self, loss):
            self.told["before_backward"] += 1

        def on_after_backward(self):
            self.told["after_backward"] += 1

        def on_before_optimizer_step(self, optimizer):
            self.told["before_step"] += 1

        def on_before_zero_grad(self, optimizer):
            self.told["zero_grad"] += 1

        def backward(self, loss):
            assert loss.requires_grad
            super().backward(loss)

    module = Hooked()
    fit(module, digits_like(), [CLIMBERS[name]()], accumulate_grad_batches=2)
    assert module.told == {"before_backward": 6, "after_backward": 6, "before_step": 3, "zero_grad": 3}


@pytest.mark.parametrize("name", CLIMBERS)
def test_parameters_stay_where_they_are_in_memory(name):
    module = Plain(optimizer=momentum)
    before = [(p, p.data_ptr()) for p in module.parameters()]
    fit(module, digits_like(), [CLIMBERS[name]()])
    assert all(p is q and p.data_ptr() == address for p, (q, address) in zip(module.parameters(), before, strict=True))


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_acts_on_the_final_gradient_only(algorithm):
    module, twin = Plain(dtype=torch.float64), Plain(dtype=torch.float64)
    twin.load_state_dict(module.state_dict())
    loader = digits_like(dtype=torch.float64)
    fit(module, loader, [SAM(0.1)], gradient_clip_val=0.02, gradient_clip_algorithm=algorithm)
    optimizer, weights = twin.configure_optimizers(), list(twin.parameters())
    for batch in loader:
        g = torch.autograd.grad(twin.training_step(batch, 0), weights)
        length = torch.cat([t.reshape(-1) for t in g]).norm()
        with torch.no_grad():
            start = [p.clone() for p in weights]
            for p, t in zip(weights, g, strict=True):
                p.add_(0.1 * t / length)
        optimizer.zero_grad()
        twin.training_step(batch, 0).backward()
        with torch.no_grad():
            for p, w in zip(weights, start, strict=True):
                p.copy_(w)
        clip = torch.nn.utils.clip_grad_norm_ if algorithm == "norm" else torch.nn.utils.clip_grad_value_
        clip(weights, 0.02)
        optimizer.step()
    for a, b in zip(module.parameters(), weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


class Changing(Plain):
    """Normalizes its batch in place."""

    def training_step(self, batch, batch_idx):
        batch[0].mul_(0.5)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("scope", ["rank", "global", "micro_batch"])
def test_a_batch_that_is_changed_in_place_is_replayed_as_it_came_if_cloned(scope):
    class Halving(Plain):
        def training_step(self, batch, batch_idx):
            return super().training_step((0.5 * batch[0], batch[1]), batch_idx)

    found = []
    for kind in (Changing, Halving):
        torch.manual_seed(0)
        module = kind()
        fit(module, digits_like(), [SAM(0.1, scope=scope, clone_batches=True)], accumulate_grad_batches=2)
        found.append(module.state_dict())
    assert same(*found)


def test_metrics_count_each_sample_once_in_every_scope():
    for scope in ("rank", "global", "micro_batch"):
        module = Everything()
        fit(module, digits_like(), [SAM(0.1, scope=scope)], accumulate_grad_batches=2)
        assert module.calls == 6
        assert module.seen == 48
        assert module.net[1].num_batches_tracked == 6


class DeepSpeedStrategy(strategies.SingleDeviceStrategy):
    """By its name alone, as DeepSpeed need not be installed."""


class XLAStrategy(strategies.SingleDeviceStrategy):
    """By its name alone."""


class OwnEngine(strategies.SingleDeviceStrategy):
    """A strategy that accumulates by itself."""

    handles_gradient_accumulation = True


@pytest.mark.parametrize("strategy", [DeepSpeedStrategy, XLAStrategy, OwnEngine])
def test_an_engine_of_its_own_is_refused_with_the_way_out(strategy):
    trainer = type("Trainer", (), {"strategy": strategy("cpu")})()
    with pytest.raises(MisconfigurationException, match=rf"GSAM .*{strategy.__name__}.*use strategy='ddp'.*drop GSAM"):
        refuse_strategy(trainer, "GSAM", "rank")


@pytest.mark.parametrize("name", [name for name in CLIMBERS if name != "MomentumSAM"])
def test_sparse_gradients_are_refused_with_the_way_out(name):
    class Sparse(Plain):
        def __init__(self):
            super().__init__(optimizer=momentum)
            self.words = torch.nn.Embedding(3, 3, sparse=True)

        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) + self.words(batch[1]).sum()

    with pytest.raises(MisconfigurationException, match=r"shape \(3, 3\) has a sparse gradient.*sparse=False"):
        fit(Sparse(), digits_like(), [CLIMBERS[name]()])
