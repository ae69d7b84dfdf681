"""The batch size, read off loaders of all kinds, or asked for."""

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from lbtrain import LearningRateScaling
from lbtrain._lightning import BatchSizeFinder, LightningDataModule, MisconfigurationException, ModelCheckpoint, pl
from tests.modules import Plain, digits_like, fit
from tests.unit.callbacks.rates import Rates
from tests.unit.callbacks.streams import Stream

DATA = digits_like().dataset


class Buckets:
    """Batches of samples of like length, so of different sizes, and no `batch_size`."""

    def __iter__(self):
        yield from ([0, 1, 2], [3, 4, 5, 6, 7])

    def __len__(self):
        return 2


class Shelf:
    """A loader of another library."""

    batch_size = 8

    def __iter__(self):
        return iter(digits_like())

    def __len__(self):
        return 6


class Ready(Stream):
    """Makes the batches itself."""

    def __iter__(self):
        return iter(digits_like())


class Pair(Plain):
    """Takes batches of two loaders at a time."""

    def training_step(self, batch, batch_idx):
        batches = batch.values() if isinstance(batch, dict) else batch
        return sum(super(Pair, self).training_step(b, batch_idx) for b in batches)


def combined(mode, sizes):
    loaders = {name: DataLoader(DATA, size) for name, size in zip(("labelled", "rest"), sizes, strict=True)}
    return pl.utilities.CombinedLoader(loaders, mode)


@pytest.mark.parametrize(
    ("loader", "found"),
    [
        (
            lambda: DataLoader(Ready(), batch_size=None),
            r"\(DataLoader with batch_size=None, whose data set Ready makes the",
        ),
        (lambda: DataLoader(DATA, batch_sampler=Buckets()), r"\(DataLoader with batch sampler Buckets, which has no"),
        (lambda: list(digits_like()), r"\(.*(list|Tensor|tuple), which has no batch_size"),
        (
            lambda: combined("max_size_cycle", (8, 4)),
            r"\(labelled: DataLoader with batch size 8, rest: DataLoader with batch size 4; 2 loaders feed each "
            "step, in mode max_size_cycle",
        ),
        (lambda: {"a": DataLoader(DATA, 8), "b": [DataLoader(DATA, 8)]}, r"\(a: DataLoader with .* 8, b.0: DataLoader"),
    ],
    ids=["pre-batched", "buckets", "list", "combined", "nested"],
)
def test_a_batch_size_that_cannot_be_read_is_asked_for_with_the_loaders_found(loader, found):
    with pytest.raises(MisconfigurationException, match=rf"{found}.*callbacks.lr_scaling.batch_size="):
        fit(Pair(), loader(), [LearningRateScaling(4)])


@pytest.mark.parametrize(
    ("loader", "module"),
    [
        (lambda: DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 8, False)), Plain),
        (lambda: DataLoader(Stream(), batch_size=8), Plain),
        (Shelf, Plain),
    ],
    ids=["batch sampler", "stream", "another library"],
)
def test_a_batch_size_is_read_off_any_loader_that_has_one(loader, module):
    rates = Rates()
    fit(module(lr=0.1), loader(), [LearningRateScaling(4), rates], max_steps=2)
    assert rates.used == pytest.approx([0.2] * 2)


def test_a_given_batch_size_wins():
    loaders = {"a": DataLoader(DATA, 8), "b": DataLoader(DATA, 4)}
    trainer = fit(Pair(lr=0.1), loaders, [LearningRateScaling(4, batch_size=16, reduction="mean")])
    assert trainer.callback_metrics["lr/scaled"] == pytest.approx(0.4)


class Found(LightningDataModule):
    """Takes its batch size from BatchSizeFinder, and shows it to the loader or not."""

    def __init__(self, *, shown):
        super().__init__()
        self.batch_size = 2
        self.shown = shown

    def train_dataloader(self):
        if self.shown:
            return DataLoader(DATA, self.batch_size)
        order = torch.arange(len(DATA)).split(self.batch_size)
        return DataLoader(DATA, batch_sampler=[part.tolist() for part in order])


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("finder_first", [True, False])
def test_the_result_of_batch_size_finder_is_used(shown, finder_first, tmp_path):
    finder = BatchSizeFinder(init_val=2, max_trials=3, steps_per_trial=1)
    rates = Rates()
    scaling = LearningRateScaling(4, reduction="mean")
    callbacks = [finder, scaling] if finder_first else [scaling, finder]
    options = {"datamodule": Found(shown=shown), "default_root_dir": tmp_path}
    trainer = fit(Plain(lr=0.1), None, [*callbacks, rates], **options)
    assert finder.optimal_batch_size == 8
    assert rates.used == pytest.approx([0.2] * 6)
    assert trainer.callback_metrics["batch/per_device"] == 8


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`|Checkpoint directory .* exists")
def test_the_state_of_a_stateful_loader_is_not_dropped(tmp_path):
    """Reading the loaders before the Trainer has restored them would make it forget their state."""

    class Stateful(Shelf):
        restored = None

        def state_dict(self):
            return {"position": 3}

        def load_state_dict(self, state):
            Stateful.restored = state

    saving = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=3, save_top_k=-1, filename="{step}")
    fit(Plain(lr=0.1), Stateful(), [LearningRateScaling(4, warmup_epochs=1), saving], enable_checkpointing=True)
    again = LearningRateScaling(4, warmup_epochs=1)
    fit(
        Plain(lr=0.1),
        Stateful(),
        [again, ModelCheckpoint(dirpath=tmp_path)],
        ckpt_path=tmp_path / "step=3.ckpt",
        enable_checkpointing=True,
    )
    assert Stateful.restored == {"position": 3}
