"""The batches that measurements see: read once in a fixed order, and kept for the whole fit."""

from collections.abc import Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import torch
from torch.utils.data import DataLoader, IterableDataset

from lbtrain._lightning import LightningModule, MisconfigurationException, Trainer, rank_zero_info
from lbtrain.callbacks._frozen_data import Frozen, Generators, same_values, seeded
from lbtrain.callbacks._traceless import random_streams, set_random_streams

# Samples read twice to see whether they stay the same. One that is changed in half of all readings (a random flip)
# escapes with chance 1/2, so all of them with chance 2^-8.
_LOOKED_AT = 8


@dataclass
class Kept:
    """What measurements of one fit share."""

    batches: dict[Any, list[Any]] = field(default_factory=dict)
    told: bool = False
    """Whether a line has said that the data are random."""
    looked: bool = False
    """Whether it was seen to that the loss repeats itself."""
    repeats: bool = False
    """Whether this rank knows already that it does."""
    reduction: str | None = None
    """What the loss does with the samples of a batch, once that is known."""


_kept: WeakKeyDictionary[Trainer, Kept] = WeakKeyDictionary()


def kept_for(trainer: Trainer) -> Kept:
    """Return what measurements of this fit share.

    Args:
        trainer: The Trainer.

    Returns:
        The same object until `forget_batches`.
    """
    return _kept.setdefault(trainer, Kept())


def measured_batches(
    trainer: Trainer, pl_module: LightningModule, num_samples: int | None, batch_size: int | None, seed: int
) -> Sequence[Any]:
    """Return this rank's batches, in host memory: the same ones each time until `forget_batches`.

    The random streams of the process, and generators that the data set carries, are left as they were. Data that
    differ from one reading to the next are drawn once, by the seed, and a line says so.

    Args:
        trainer: The Trainer, with its loaders set up.
        pl_module: Its module.
        num_samples: Take this many samples, drawn by seed; None for all.
        batch_size: Samples per batch; None as in training.
        seed: Of the draw.

    Returns:
        The batches; perhaps none.
    """
    check_measurable(trainer, pl_module)
    chooser, kept = _chooser(trainer, pl_module), kept_for(trainer)
    key = seed if chooser is not None else (num_samples, batch_size, seed)
    if key not in kept.batches:
        streams = random_streams(pl_module.device)
        try:
            if chooser is not None:
                found, steady = _chosen(chooser, trainer, seed)
            else:
                found, steady = _of_training(trainer, num_samples, batch_size, seed)
        finally:
            set_random_streams(streams, pl_module.device)
        kept.batches[key] = found
        if not steady and not kept.told:
            kept.told = True
            rank_zero_info(_sentence(chooser, seed))
    return kept.batches[key]


def forget_batches(trainer: Trainer) -> None:
    """Let the batches go that were kept for measuring.

    Args:
        trainer: The Trainer that they were read for.
    """
    _kept.pop(trainer, None)


def check_measurable(trainer: Trainer, pl_module: LightningModule) -> None:
    """Refuse training data that cannot be measured on, before time is spent on training.

    Args:
        trainer: The Trainer, with its loaders set up.
        pl_module: Its module.

    Raises:
        MisconfigurationException: If the training data cannot be read in a fixed order.
    """
    loader = trainer.train_dataloader
    ordered = isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)
    if not ordered and _chooser(trainer, pl_module) is None:
        raise MisconfigurationException(
            f"the training data ({type(loader).__name__}) cannot be read in a fixed order, which measuring needs: "
            "define measure_dataloader() on the data module or the module, returning the batches to measure on"
        )


def check_not_empty(trainer: Trainer, pl_module: LightningModule) -> None:
    """Refuse a `measure_dataloader()` whose length is known to be 0, before time is spent on training.

    Args:
        trainer: The Trainer, with its loaders set up.
        pl_module: Its module.

    Raises:
        MisconfigurationException: If it has no batches.
    """  # noqa: DOC502 - _refuse_no_batches raises it
    chooser = _chooser(trainer, pl_module)
    if chooser is None:
        return
    streams = random_streams(pl_module.device)
    try:
        with seeded(chooser, 0):
            loader = chooser.measure_dataloader()
    finally:
        set_random_streams(streams, pl_module.device)
    if isinstance(loader, Sized) and len(loader) == 0:
        _refuse_no_batches(chooser)


def _refuse_no_batches(chooser: Any) -> NoReturn:
    raise MisconfigurationException(
        f"{type(chooser).__name__}.measure_dataloader() returned no batches, so there is nothing to measure on: return "
        "a DataLoader, or a list, with at least one batch"
    )


def _chooser(trainer: Trainer, pl_module: LightningModule) -> Any:
    """Return the data module or module that says itself what to measure on, or None."""
    return next((owner for owner in (trainer.datamodule, pl_module) if hasattr(owner, "measure_dataloader")), None)


def _sentence(chooser: Any, seed: int) -> str:
    if chooser is not None:
        return (
            f"{type(chooser).__name__}.measure_dataloader() returned other batches when it was read again (it shuffles "
            f"or augments): this run measures on its first reading, drawn by seed {seed}"
        )
    return (
        f"the training data change from one reading to the next (augmentation): this run measures on one draw of each "
        f"sample, by seed {seed}; define measure_dataloader() on the data module or the module to measure without "
        "augmentation"
    )


def _chosen(chooser: Any, trainer: Trainer, seed: int) -> tuple[list[Any], bool]:
    """Return this rank's share of `measure_dataloader()`, and whether its first batch came again."""
    with seeded(chooser, seed):  # before the loader is made: it may draw when it is
        batches = list(chooser.measure_dataloader())
    if not batches:
        _refuse_no_batches(chooser)
    with seeded(chooser, seed + 1):
        again = next(iter(chooser.measure_dataloader()), None)
    steady = same_values(batches[0], again)
    return batches[trainer.global_rank :: trainer.world_size], steady


def _of_training(
    trainer: Trainer, num_samples: int | None, batch_size: int | None, seed: int
) -> tuple[list[Any], bool]:
    """Return this rank's share of the training data set in order, and whether its first samples came again.

    Raises:
        MisconfigurationException: If it is empty.
    """
    loader = trainer.train_dataloader
    data, count = loader.dataset, len(loader.dataset)
    if count == 0:
        raise MisconfigurationException(
            "the training data set is empty, so there is nothing to measure on: define measure_dataloader() on the "
            "data module or the module, returning the batches to measure on"
        )
    chosen = list(range(count))
    if num_samples is not None and num_samples < count:
        draw = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        chosen = sorted(draw[:num_samples].tolist())
    size = batch_size or loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 64

    def read(source: Any, indices: list[int]) -> list[Any]:
        parts = [indices[i : i + size] for i in range(0, len(indices), size)]
        return list(DataLoader(source, batch_sampler=parts, collate_fn=loader.collate_fn, generator=torch.Generator()))

    with seeded(loader, seed):
        generators = Generators(loader)
        # The same samples on every rank, so that all come to one verdict.
        once, again = (read(Frozen(data, generators, s), chosen[:_LOOKED_AT]) for s in (seed, seed + 1))
        steady = same_values(once, again)
        generators.seed(seed)  # in case something random was not seen
        mine = chosen[trainer.global_rank :: trainer.world_size]
        return read(data if steady else Frozen(data, generators, seed), mine), steady
