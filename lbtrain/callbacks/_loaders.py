"""How many samples a batch of the training loaders holds, as far as they say."""

from collections.abc import Iterator, Mapping, Sized
from typing import Any

from torch.utils.data import DataLoader

from lbtrain._lightning import BatchSizeFinder, MisconfigurationException, Trainer


def loader_batch_size(trainer: Trainer) -> int:
    """Return the batch size per device that the training loaders are set to.

    Args:
        trainer: The Trainer, in `on_train_start` or later.

    Returns:
        Samples per batch.

    Raises:
        MisconfigurationException: If the loaders do not say, or do not agree; it lists what was found.
    """
    combined = trainer.fit_loop._combined_loader
    loaders = list(_named(combined.iterables, ""))
    if len(loaders) == 1:
        size = _batch_size(loaders[0][1]) or _found_by_finder(trainer)
        if size is not None:
            return size
    listed = ", ".join(f"{name}{_description(loader)}" for name, loader in loaders)
    several = f"; {len(loaders)} loaders feed each step, in mode {combined._mode}" if len(loaders) > 1 else ""
    raise MisconfigurationException(
        f"the batch size per device cannot be read off the training loaders ({listed}{several}): give the samples per "
        "device and step, LearningRateScaling(batch_size=...) or callbacks.lr_scaling.batch_size=..."
    )


def said_batch_size(trainer: Trainer) -> int | None:
    """Return the batch size that a single training loader says, for comparison with a given one.

    Args:
        trainer: The Trainer, in `on_train_start` or later.

    Returns:
        Samples per batch; None if there are several loaders, or it does not say.
    """
    loaders = list(_named(trainer.fit_loop._combined_loader.iterables, ""))
    return _batch_size(loaders[0][1]) if len(loaders) == 1 else None


def _named(loaders: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Walk the structure of loaders as a Trainer takes them: mappings and sequences of loaders, nested.

    Yields:
        Name ("labelled: ", "0: ", empty for a single loader) and loader.
    """
    if isinstance(loaders, Mapping):
        entries = loaders.items()
    elif isinstance(loaders, list | tuple) and loaders and all(hasattr(x, "__iter__") for x in loaders):
        entries = enumerate(loaders)  # type: ignore[assignment]
    else:
        yield f"{name}: " if name else "", loaders
        return
    for key, loader in entries:
        yield from _named(loader, f"{name}.{key}" if name else str(key))


def _batch_size(loader: Any) -> int | None:
    """Return what a loader, of torch or another library, says its batch size is; no more than its sampler has."""
    batches = getattr(loader, "batch_sampler", None)
    given = getattr(loader, "batch_size", None) or getattr(batches, "batch_size", None)
    if not isinstance(given, int) or given < 1:
        return None
    sampler = getattr(batches, "sampler", None)
    return min(given, len(sampler)) if isinstance(sampler, Sized) and len(sampler) else given


def _description(loader: Any) -> str:
    size, name = _batch_size(loader), type(loader).__name__
    if size is not None:
        return f"{name} with batch size {size}"
    if not isinstance(loader, DataLoader):
        return f"{name}, which has no batch_size"
    if loader.batch_sampler is None:
        return f"{name} with batch_size=None, whose data set {type(loader.dataset).__name__} makes the batches"
    return f"{name} with batch sampler {type(loader.batch_sampler).__name__}, which has no batch_size"


def _found_by_finder(trainer: Trainer) -> int | None:
    """Return the result of a BatchSizeFinder, for a loader that does not tell it."""
    return next((c.optimal_batch_size for c in trainer.callbacks if isinstance(c, BatchSizeFinder)), None)
