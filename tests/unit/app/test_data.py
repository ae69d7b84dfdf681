import warnings
from types import SimpleNamespace

import pytest
import torch
from sklearn.datasets import load_digits

from lbtrain._lightning import Callback, LightningModule, Trainer
from lbtrain.app.data import DigitsData, EpochSampler, split_digits


def test_split_sizes_classes_and_types():
    split = split_digits(seed=0)
    assert [len(part) for part in (split.train, split.val, split.test)] == [1293, 144, 360]
    images, labels = split.train.tensors
    assert images.shape == (1293, 1, 8, 8)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    for part in (split.val, split.test):
        share = torch.bincount(part.tensors[1], minlength=10) / len(part)
        assert torch.allclose(share, torch.bincount(labels, minlength=10) / len(labels), atol=0.01)


def test_parts_are_disjoint_and_cover_all_images():
    split = split_digits(seed=3)
    parts = [part.tensors[0] * split.std + split.mean for part in (split.train, split.val, split.test)]
    pixels = torch.cat(parts).reshape(1797, -1).round().to(torch.int64)
    original = torch.from_numpy(load_digits().data).to(torch.int64)
    assert sorted(map(tuple, pixels.tolist())) == sorted(map(tuple, original.tolist()))


def test_statistics_are_those_of_the_training_part_alone():
    split = split_digits(seed=0)
    train = split.train.tensors[0].to(torch.float64)
    assert abs(train.mean()) < 1e-6
    assert abs(train.std(unbiased=False) - 1) < 1e-6
    pixels = (train * split.std + split.mean).round()
    assert pixels.mean().item() == pytest.approx(split.mean, abs=1e-12)
    assert split.mean != pytest.approx(load_digits().images.mean(), abs=1e-4)


def test_seed_decides_the_split():
    same, other = split_digits(seed=1), split_digits(seed=2)
    assert torch.equal(same.test.tensors[0], split_digits(seed=1).test.tensors[0])
    assert not torch.equal(same.test.tensors[0], other.test.tensors[0])


def test_sampler_depends_on_seed_and_epoch_alone():
    sampler = EpochSampler(50, seed=4)
    first = list(sampler)
    assert sorted(first) == list(range(50))
    assert len(sampler) == 50
    torch.manual_seed(123)
    assert list(sampler) == first
    sampler.set_epoch(7)
    assert list(sampler) == list(EpochSampler(50, seed=4, epoch=7)) != first


def test_sampler_does_not_add_seed_and_epoch():
    orders = {tuple(EpochSampler(50, seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_loaders_leave_the_global_stream_alone():
    data = DigitsData()
    before = torch.get_rng_state()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        next(iter(loader))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("drop_last", "batches"), [(False, 21), (True, 20)])
def test_batches_without_a_trainer(drop_last, batches):
    loader = DigitsData(batch_size=64, drop_last=drop_last).train_dataloader()
    assert len(loader) == len(list(loader)) == batches
    assert len(DigitsData(batch_size=64, drop_last=drop_last).test_dataloader()) == 6


def test_loader_opens_at_the_epoch_of_its_trainer():
    # Worker processes take their first indices before Lightning has set the epoch of a resumed run.
    data = DigitsData(batch_size=1293)
    data.trainer = SimpleNamespace(current_epoch=5)
    (labels,) = [labels for _, labels in data.train_dataloader()]
    assert torch.equal(labels, data.split.train.tensors[1][list(EpochSampler(1293, seed=0, epoch=5))])


class _Seen(Callback):
    def __init__(self):
        self.labels = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.labels.append(batch[1].tolist())


class _Still(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        return self.weight**2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def _order(tmp_path, max_epochs, ckpt_path=None):
    seen = _Seen()
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        default_root_dir=tmp_path,
        callbacks=[seen],
        limit_val_batches=0,
        **options,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning advises more workers
        trainer.fit(_Still(), datamodule=DigitsData(batch_size=256), ckpt_path=ckpt_path)
    trainer.save_checkpoint(tmp_path / f"{max_epochs}.ckpt")
    return seen.labels


def test_resumed_run_sees_the_batches_of_the_uninterrupted_one(tmp_path):
    whole = _order(tmp_path, 3)
    start = _order(tmp_path, 1)
    rest = _order(tmp_path, 3, tmp_path / "1.ckpt")
    assert start + rest == whole
    assert whole[:6] != whole[6:12]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"batch_size": 16.0}, "batch_size must be an integer of at least 1, got 16.0"),
        ({"batch_size": True}, "batch_size must be an integer"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"seed": 2**32}, r"seed must be below 2\*\*32"),
        ({"num_workers": -1}, "num_workers must be"),
        ({"test_fraction": 0.0}, "test_fraction must lie strictly between 0 and 1, for example 0.2, got 0.0"),
        ({"val_fraction": 1}, "val_fraction must lie"),
        ({"val_fraction": "0.1"}, "val_fraction must lie"),
        ({"val_fraction": float("nan")}, "val_fraction must lie"),
    ],
)
def test_arguments_are_checked_when_built(arguments, message):
    with pytest.raises(ValueError, match=message):
        DigitsData(**arguments)


def test_fraction_that_leaves_a_part_without_every_class():
    with pytest.raises(
        ValueError, match=r"test_fraction=0.001 and val_fraction=0.1 leave a part without all 10 classes"
    ):
        DigitsData(test_fraction=0.001).train_dataloader()
