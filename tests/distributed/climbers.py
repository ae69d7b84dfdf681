"""The SAM family on two ranks, under every strategy that it serves; test_climbers.py compares what is written here."""

import os
import sys
import warnings

import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.data import DataLoader, DistributedSampler

from lbtrain import GSAM, SAM, WSAM, FriendlySAM, LookSAM, MomentumSAM
from lbtrain._lightning import MisconfigurationException, ModelCheckpoint, plugins, strategies
from tests.distributed.ranks import Reductions
from tests.modules import Everything, digits_like, fit

CLIMBERS = {
    "SAM": lambda **options: SAM(0.1, **options),
    "ASAM": lambda **options: SAM(0.5, adaptive=True, **options),
    "p=inf": lambda **options: SAM(0.01, p=float("inf"), **options),
    "GSAM": lambda **options: GSAM(0.1, **options),
    "LookSAM": lambda **options: LookSAM(0.1, every_n_steps=4, **options),
    "FriendlySAM": lambda **options: FriendlySAM(0.1, **options),
    "WSAM": lambda **options: WSAM(0.1, gamma=0.8, **options),
    "WSAM coupled": lambda **options: WSAM(0.1, gamma=0.8, decoupled=False, **options),
    "MomentumSAM": lambda scope="": MomentumSAM(0.1),
}
TWO_PASSES = [name for name in CLIMBERS if name != "MomentumSAM"]
STRATEGIES = ("ddp", "fsdp", "fsdp2", "tensor")
STEPS_PER_EPOCH = 6


class Net(nn.Module):
    """Two layers in float64, the same on every rank."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 4).double(), nn.Linear(4, 3).double()

    def forward(self, x):
        """Return logits."""
        return self.last(self.first(x).tanh())


class Cut(torch.nn.Module):
    """Names the ways to cut a model."""

    @staticmethod
    def fsdp2(module):
        """Shard both layers and the rest."""
        mesh = module.device_mesh["data_parallel"]
        for part in (module.net.first, module.net.last, module):
            fully_shard(part, mesh=mesh)

    @staticmethod
    def tensor(module):
        """Split the first layer's outputs and the last one's inputs."""
        plan = {"first": ColwiseParallel(), "last": RowwiseParallel()}
        parallelize_module(module.net, module.device_mesh["tensor_parallel"], plan)


def module_of(cut=None):
    """Return a module for a strategy."""
    from lbtrain._lightning import LightningModule

    class Two(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def configure_model(self):
            if cut is not None:
                cut(self)

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    return Two()


class CPUShards(strategies.FSDPStrategy):
    """FSDP on the CPU, which Lightning's own strategy does not ask torch for."""

    def _setup_model(self, model):
        def wrap(part):
            return FullyShardedDataParallel(part, device_id=torch.device("cpu"), use_orig_params=True)

        model.net.first, model.net.last = wrap(model.net.first), wrap(model.net.last)
        return wrap(model)


def strategy_of(kind):
    """Return the module's cut and the Trainer's options."""
    two = {"devices": 2}
    if kind == "alone":
        return None, {}
    if kind == "fsdp":
        return None, {**two, "strategy": CPUShards()}
    if kind == "fsdp2":
        return Cut.fsdp2, {
            **two,
            "strategy": strategies.ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
        }
    if kind == "tensor":
        return Cut.tensor, {
            **two,
            "strategy": strategies.ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=2),
            "use_distributed_sampler": False,
        }
    return None, {**two, "strategy": kind}


def data(samples, batch_size, *, shared=False):
    """Return a loader that gives ranks samples in turn, or to each all in batches twice as large."""
    loader = digits_like(samples, batch_size, dtype=torch.float64)
    rank = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_PROCID"))
    if shared or rank is None:
        return digits_like(samples, 2 * batch_size, dtype=torch.float64)
    sampler = DistributedSampler(loader.dataset, num_replicas=2, rank=int(rank), shuffle=False)
    return DataLoader(loader.dataset, batch_size, sampler=sampler)


def trained(callbacks, kind, *, samples=96, **options):
    """Train, and return the whole weights, the last logged numbers and the Trainer."""
    cut, strategy = strategy_of(kind)
    module = module_of(cut)
    loader = data(samples, 8, shared=kind == "tensor")
    trainer = fit(module, loader, callbacks, **{"log_every_n_steps": 1, **strategy, **options})
    numbers = {k: v.item() for k, v in trainer.callback_metrics.items()}
    return weights(module, trainer), numbers, trainer


def weights(module, trainer):
    """Return copies of the whole parameters."""
    if isinstance(trainer.strategy, CPUShards):
        with FullyShardedDataParallel.summon_full_params(trainer.strategy.model):
            return [p.detach().clone() for p in module.parameters()]
    return [(p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone() for p in module.parameters()]


def counted(build, scope, **options):
    """Return reductions and optimizer steps of a DDP run."""
    counting = Reductions()
    trainer = trained([build(scope=scope), counting], "ddp", **options)[2]
    return counting.count, trainer.global_step


def replicas(build, steps, **options):
    """Train the module that has everything; return on this rank its state, the optimizer's, logs and random numbers."""
    torch.manual_seed(0)
    module = Everything()
    options = {"strategy": "ddp_find_unused_parameters_true", "devices": 2, "max_steps": steps, **options}
    trainer = fit(module, digits_like(96, 8), [build()] if build else [], max_epochs=-1, **options)
    momenta = trainer.optimizers[0].state_dict()["state"]
    return {
        **module.state_dict(),
        **{f"momentum {i}": entry["momentum_buffer"] for i, entry in momenta.items()},
        **{f"logged {k}": v for k, v in trainer.callback_metrics.items() if not k.startswith("sam/")},
        "next random number": torch.rand(1),
        "steps": torch.tensor([trainer.global_step, module.calls]),
    }


def precisions():
    """Return the Trainer's options for each precision; 16-mixed with a scaler for the CPU."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    return {
        "32-true": {"precision": "32-true"},
        "bf16-mixed": {"precision": "bf16-mixed"},
        "16-mixed": {"plugins": plugins.MixedPrecision("16-mixed", "cpu", scaler=scaler)},
    }


class Branching(Everything):
    """Each rank trains a branch of its own, and which one changes from batch to batch."""

    def __init__(self):
        super().__init__(optimizer=lambda p: torch.optim.SGD(p, lr=0.05))
        self.branches = nn.ModuleList(nn.Linear(6, 3) for _ in range(3))

    def training_step(self, batch, batch_idx):
        chosen = self.branches[(batch_idx + self.global_rank) % 3]
        return super().training_step(batch, batch_idx) + nn.functional.cross_entropy(chosen(batch[0]), batch[1])


def branches(build):
    """Return the weights of a model whose ranks train different parts of it."""
    torch.manual_seed(0)
    module = Branching()
    options = {"strategy": "ddp_find_unused_parameters_true", "devices": 2, "accumulate_grad_batches": 2}
    fit(module, digits_like(96, 8), [build()] if build else [], **options)
    return {k: v for k, v in module.state_dict().items() if k.startswith("branches")}


class FailingError(Exception):
    """What the failing module raises."""


def failing():
    """Return whether both ranks' weights are back after an error in the second pass under FSDP2."""
    cut, strategy = strategy_of("fsdp2")
    module = module_of(cut)
    calls = []
    step = module.training_step

    def training_step(batch, batch_idx):
        calls.append(1)
        if len(calls) == 2:
            raise FailingError
        return step(batch, batch_idx)

    module.training_step = training_step
    before = [p.detach().clone() for p in Net().parameters()]
    try:
        fit(module, data(96, 8), [SAM(0.5, scope="global")], **strategy)
    except FailingError:
        after = [p.full_tensor().detach() for p in module.parameters()]
        return all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    return False


def resumed(build, kind, folder):
    """Return the weights of an uninterrupted run of two epochs, and of one that is resumed after the first."""
    folder = f"{folder}/{kind}-{build().__class__.__name__}"
    whole = trained([build(scope="global")], kind, max_epochs=2)[0]
    saving = ModelCheckpoint(folder, filename="half", every_n_train_steps=STEPS_PER_EPOCH)
    trained([build(scope="global"), saving], kind, enable_checkpointing=True)
    again = trained([build(scope="global")], kind, max_epochs=2, ckpt_path=f"{folder}/half.ckpt")[0]
    return whole, again


def refused(callback, kind, **options):
    """Return the message of a refusal."""
    try:
        trained([callback], kind, **options)
    except MisconfigurationException as error:
        return str(error)
    return "accepted"


def under_strategies():
    """Yield the family under each strategy: scope global, windows, and micro-batches where gradients are sharded."""
    for kind in STRATEGIES:
        yield ("plain", kind), trained([], kind)[:2]
        yield ("plain, window of 4", kind), trained([], kind, accumulate_grad_batches=4)[:2]
        yield ("rho 0", kind), trained([SAM(0, scope="global")], kind)[:2]
        for name, build in CLIMBERS.items():
            yield (name, kind), trained([build(scope="global")], kind)[:2]
        # 6 batches: the last window is a partial one.
        for name in ("SAM", "GSAM", "LookSAM", "FriendlySAM"):
            window = {"accumulate_grad_batches": 4}
            yield (f"{name}, window of 4", kind), trained([CLIMBERS[name](scope="global")], kind, **window)[:2]
    for kind in ("fsdp2", "tensor"):
        for name in TWO_PASSES:
            build = CLIMBERS[name](scope="micro_batch")
            yield (f"{name}, each batch", kind), trained([build], kind, accumulate_grad_batches=4)[:2]


def under_ddp():
    """Yield each scope under DDP: weights, reductions, and gradients as views of buckets."""
    window = {"accumulate_grad_batches": 3}
    for scope in ("rank", "global", "micro_batch"):
        for name, build in CLIMBERS.items():
            yield ("reductions", name, scope), counted(build, scope)
            yield ("reductions, window of 3", name, scope), counted(build, scope, **window)
        for name in TWO_PASSES:
            build, views = CLIMBERS[name], {"strategy": strategies.DDPStrategy(gradient_as_bucket_view=True), **window}
            if scope != "global":
                yield (name, scope), trained([build(scope=scope)], "ddp")[:2]
            yield (f"{name}, window of 3", scope), trained([build(scope=scope)], "ddp", **window)[:2]
            yield (f"{name}, views", scope), trained([build(scope=scope)], "ddp", **views)[:2]
        yield ("branches, rho 0", scope), branches(lambda scope=scope: SAM(0, scope=scope))
    all_on = {"accumulate_grad_batches": 4, "gradient_clip_val": 0.05}  # of 6 batches: a partial last window
    for kind in precisions():
        yield ("replicas", f"plain, {kind}"), replicas(None, 6, **all_on, **precisions()[kind])
        for scope in ("rank", "global", "micro_batch"):
            build = lambda scope=scope: SAM(0, scope=scope)
            yield ("replicas", f"rho 0, {scope}, {kind}"), replicas(build, 6, **all_on, **precisions()[kind])
    yield ("replicas", "plain"), replicas(None, 12)
    for name, build in CLIMBERS.items():
        yield ("replicas", name), replicas(build, 100 if name == "SAM" else 12)
    for name in ("plain", "SAM", "GSAM", "FriendlySAM", "LookSAM", "WSAM"):
        yield ("branches", name), branches(CLIMBERS.get(name))


def refusals():
    """Yield what is refused, and what is not."""
    for scope in ("rank", "micro_batch"):
        static = {"strategy": strategies.DDPStrategy(static_graph=True)}
        yield ("static graph", scope), refused(SAM(scope=scope), "ddp", **static)
    static = {"strategy": strategies.DDPStrategy(static_graph=True), "accumulate_grad_batches": 2}
    yield ("static graph", "window"), refused(SAM(scope="global"), "ddp", **static)
    static = {"strategy": strategies.DDPStrategy(static_graph=True)}
    yield ("static graph", "global"), trained([SAM(0.1, scope="global")], "ddp", **static)[:2]
    yield ("refused", "fsdp"), refused(SAM(), "fsdp")
    yield ("refused", "fsdp2"), refused(GSAM(), "fsdp2")
    yield ("refused", "fsdp, each batch"), refused(SAM(scope="micro_batch"), "fsdp")


def main(folder):
    """Run all cases on this rank."""
    results = {**dict(under_strategies()), **dict(under_ddp()), **dict(refusals())}
    for name in ("LookSAM", "FriendlySAM"):
        for kind in ("ddp", "fsdp2"):
            results["resumed", name, kind] = resumed(CLIMBERS[name], kind, folder)
    results["failing"] = failing()
    torch.save(results, f"{folder}/rank{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    main(sys.argv[1])
