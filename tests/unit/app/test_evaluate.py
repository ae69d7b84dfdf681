"""Each sample counts once, in eval mode, and only the test pass is logged."""

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lbtrain._lightning import DummyLogger, LightningDataModule, LightningModule, Trainer
from lbtrain.app.evaluate import Share, evaluate
from tests.modules import Plain, digits_like


class Data(LightningDataModule):
    """0, 1, ..., 9 for training, shuffled and without the last batch; 10, 11, 12 for testing."""

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.arange(10.0)), batch_size=4, shuffle=True, drop_last=True)

    def test_dataloader(self):
        return DataLoader(TensorDataset(torch.arange(10.0, 13.0)), batch_size=2)


class TrainingOnly(LightningDataModule):
    train_dataloader = Data.train_dataloader


class Mean(LightningModule):
    """Its loss is the mean of its data."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.modes = [], []

    def training_step(self, batch, batch_idx):
        return (self.w - batch[0].mean()) ** 2

    def test_step(self, batch, batch_idx):
        self.seen += batch[0].tolist()
        self.modes.append(self.training)
        self.log("test/loss", batch[0].mean(), batch_size=len(batch[0]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Log(DummyLogger):
    """A logger that remembers."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append(metrics)


def fitted(model, data, logger=False):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=logger, **quiet)
    trainer.fit(model, datamodule=data)
    return trainer


def test_every_sample_counts_once_on_both_parts():
    model, data, log = Mean(), Data(), Log()
    trainer = fitted(model, data, log)
    log.rows.clear()
    found = evaluate(trainer, model, data)
    assert found == {"train/loss": 4.5, "test/loss": 11.0, "gap/loss": 6.5}
    assert model.seen == list(map(float, range(13)))
    assert not any(model.modes)
    # The pass over the training data logs under test/..., so it is kept away from the loggers.
    assert [row["test/loss"] for row in log.rows] == [11.0]
    assert trainer.loggers == [log]


def test_data_without_a_test_part_gives_no_gap():
    model, data = Mean(), TrainingOnly()
    assert evaluate(fitted(model, data), model, data) == {"train/loss": 4.5}


def test_module_without_a_test_step_is_not_evaluated():
    class Wrapped(LightningDataModule):
        def train_dataloader(self):
            return digits_like()

    model, data = Plain(), Wrapped()
    assert evaluate(fitted(model, data), model, data) == {}


def test_loader_that_cannot_be_made_again_is_taken_as_it_is():
    class Stream(IterableDataset):
        def __iter__(self):
            yield from ((value,) for value in torch.arange(4.0))

    class Streamed(LightningDataModule):
        def train_dataloader(self):
            return DataLoader(Stream(), batch_size=2)

    model, data = Mean(), Streamed()
    assert evaluate(fitted(model, data), model, data) == {"train/loss": 1.5}


def test_loggers_come_back_after_an_error():
    class Failing(Mean):
        def test_step(self, batch, batch_idx):
            raise RuntimeError("planted")

    model, data, log = Failing(), Data(), Log()
    trainer = fitted(model, data, log)
    with pytest.raises(RuntimeError, match="planted"):
        evaluate(trainer, model, data)
    assert trainer.loggers == [log]


@pytest.mark.parametrize(("samples", "ranks"), [(10, 2), (11, 2), (11, 4), (2, 3)])
def test_shares_cover_the_data_without_repeats(samples, ranks):
    shares = [Share(range(samples), num_replicas=ranks, rank=rank, shuffle=False) for rank in range(ranks)]
    assert sorted(number for share in shares for number in share) == list(range(samples))
    assert [len(share) for share in shares] == [len(list(share)) for share in shares]
