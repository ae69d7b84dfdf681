"""Loss and accuracy of the final weights on the training and the test data, each sample once."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from lbtrain._lightning import LightningDataModule, LightningModule, Trainer
from lbtrain.callbacks._measurement import Measurement
from lbtrain.callbacks.diagnostics import OptimizationDiagnostics
from lbtrain.callbacks.loss_reduction import LossReductionCheck


class Share(DistributedSampler):
    """This rank's share of a data set, in order and without repeats.

    Lightning's own choice repeats samples until all ranks have equally many, and so counts some twice.
    """

    def __iter__(self) -> Iterator[int]:
        """Yield every num_replicas-th sample number, starting from the rank."""
        yield from range(self.rank, len(self.dataset), self.num_replicas)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(range(self.rank, len(self.dataset), self.num_replicas))  # type: ignore[arg-type]


def found(trainer: Trainer) -> dict[str, float | str]:
    """Return what the callbacks of a Trainer have found so far.

    Args:
        trainer: The Trainer, during or after `fit`.

    Returns:
        Its metrics; the verdict on the loss reduction; and the words of the measurements and the diagnosis at the end.
    """
    known: dict[str, float | str] = {key: float(value) for key, value in trainer.callback_metrics.items()}
    for callback in trainer.callbacks:
        result = getattr(callback, "result", None)
        if isinstance(callback, LossReductionCheck) and result is not None:
            known["loss/reduction"] = result.kind
        if isinstance(callback, Measurement | OptimizationDiagnostics) and result is not None:
            known.update({key: value for key, value in result.metrics().items() if isinstance(value, str)})
    return known


def evaluate(trainer: Trainer, model: LightningModule, data: LightningDataModule) -> dict[str, float]:
    """Test the current weights on the training and the test data, in eval mode.

    Args:
        trainer: The Trainer, after `fit`.
        model: A module whose `test_step` logs `test/...`; one without is not evaluated.
        data: Its data module.

    Returns:
        What `test_step` logged: `test/...` on the test data, `train/...` on the training data, and their differences
        test minus train, `gap/...`.
    """
    if not _overrides(model, LightningModule, "test_step"):
        return {}
    train = _tested(trainer, model, data.train_dataloader(), log=False)
    test = {}
    if _overrides(data, LightningDataModule, "test_dataloader"):
        data.setup("test")
        test = _tested(trainer, model, data.test_dataloader(), log=True)
    names = [key.removeprefix("test/") for key in test if key.startswith("test/")]
    gaps = {f"gap/{name}": test[f"test/{name}"] - train[f"test/{name}"] for name in names if f"test/{name}" in train}
    on_train = {key.replace("test/", "train/", 1): value for key, value in train.items()}
    return {**on_train, **test, **gaps}


def _overrides(owner: Any, base: type, name: str) -> bool:
    return getattr(type(owner), name) is not getattr(base, name)


def _tested(trainer: Trainer, model: LightningModule, loader: Any, *, log: bool) -> dict[str, float]:
    with _loggers(trainer, on=log):
        rows = trainer.test(model, dataloaders=_in_order(trainer, loader), verbose=False)
    return {key: float(value) for row in rows for key, value in row.items()}


def _in_order(trainer: Trainer, loader: Any) -> Any:
    """Return a loader over the same data set without shuffling and repeats.

    One that cannot be made again (no DataLoader, no fixed order) is taken as it is.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return loader
    sampler = None
    if trainer.world_size > 1:
        sampler = Share(loader.dataset, num_replicas=trainer.world_size, rank=trainer.global_rank, shuffle=False)
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size or 64,
        sampler=sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        generator=torch.Generator(),
    )


@contextmanager
def _loggers(trainer: Trainer, *, on: bool) -> Iterator[None]:
    loggers = trainer.loggers
    try:
        if not on:
            trainer.loggers = []
        yield
    finally:
        trainer.loggers = loggers
