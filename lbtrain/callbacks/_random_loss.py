"""Whether the training loss is random: told where a seed can freeze it, refused where nothing can."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lbtrain._lightning import LightningModule, MisconfigurationException, Trainer, rank_zero_info
from lbtrain.callbacks._frozen_data import Generators, seed_streams
from lbtrain.callbacks._measured_data import kept_for
from lbtrain.callbacks._objective import TrainingLoss
from lbtrain.callbacks._shards import is_sharded
from lbtrain.callbacks._traceless import random_streams, set_random_streams, traceless

# Attributes that every module has and that hold no generators of the user: parameters, the Trainer with all its data.
_MACHINERY = {"_parameters", "_buffers", "_modules", "_trainer", "_fabric"}
# Relative differences of two evaluations that are no randomness: sums in another order (atomic additions on a GPU)
# differ by some 1e-6 in float32, a hundredth of the first; in bfloat16 one rounding alone may differ by 2^-8.
_NOISE, _HALF_NOISE = 1e-4, 1e-2
# Seeing that other random numbers give another value needs less: it is only told.
_TOLD_FROM = 1e-5


@contextmanager
def own_generators(pl_module: LightningModule, seed: int | None) -> Iterator[Callable[[], None]]:
    """Put the generators that a module carries in its attributes back behind the context.

    Args:
        pl_module: The module.
        seed: Seeds them inside; None leaves them as they are.

    Yields:
        Sets them back to where they were inside at first.
    """
    generators = Generators(*(value for m in pl_module.modules() for value in _attributes_of(m)))
    before = generators.states()
    try:
        if seed is not None:
            generators.seed_own(seed)
        states = generators.states()
        yield lambda: generators.restore(states)
    finally:
        generators.restore(before)


def check_repeatable(trainer: Trainer, pl_module: LightningModule, load: Callable[[], Any] | None, seed: int) -> None:
    """Evaluate one batch three times in eval mode, without a trace, and tell or refuse a loss that is random.

    Once per fit, and not where the examination of the reduction has told already; not under strategies that cut
    parameters into shards, where one rank alone cannot evaluate.

    Args:
        trainer: The Trainer of the run.
        pl_module: Its module.
        load: Gives the batch on the device; None: this rank has none.
        seed: Of the measurement.

    Raises:
        MisconfigurationException: If the loss differs from itself with the same random numbers.
    """
    kept = kept_for(trainer)
    skipped, kept.looked = kept.looked or kept.repeats or load is None or is_sharded(trainer), True
    if skipped:
        return
    with traceless(trainer, pl_module, training=False), own_generators(pl_module, None):
        batch, loss = load(), TrainingLoss(trainer, pl_module, local=True)
        first, again, other = (_evaluate(loss, pl_module, batch, s) for s in (seed, seed, seed + 1))
    size, moved = max(abs(first), abs(again)), abs(first - again)
    if moved > size * (_HALF_NOISE if "16" in str(trainer.precision) else _NOISE):  # never for values not finite
        raise MisconfigurationException(
            f"the training loss of one batch, in eval mode and with the same random numbers, was {first:.6g} and then "
            f"{again:.6g}: measured values would not be functions of the weights. Where training_step draws from a "
            "generator of its own, keep that as an attribute of the module, whose state measuring puts back; where it "
            "changes something that the loss depends on (a counter, a buffer), do so only if self.training; or drop "
            "the callback that measures"
        )
    if abs(other - first) > max(_TOLD_FROM * size, 10 * moved):
        rank_zero_info(
            "the training loss is random in eval mode too (training_step draws random numbers): it is measured at one "
            f"draw, frozen by seed {seed}; draw only if self.training to measure the loss without it"
        )


def _evaluate(loss: TrainingLoss, pl_module: LightningModule, batch: Any, seed: int) -> float:
    streams = random_streams(pl_module.device)
    with own_generators(pl_module, seed), torch.no_grad():
        seed_streams(seed, pl_module.device)
        value = float(loss(batch))
    set_random_streams(streams, pl_module.device)
    return value


def _attributes_of(module: nn.Module) -> list[Any]:
    if type(module).__module__.startswith("torch.nn.modules."):  # most of a model's modules, and none has any
        return []
    return [value for name, value in vars(module).items() if name not in _MACHINERY]
