"""The training loss leaves no trace, also when it raises."""

import random

import numpy as np
import pytest
import torch
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassPrecision

from lbtrain._lightning import Callback, MisconfigurationException
from lbtrain.callbacks import _attributes
from lbtrain.callbacks._objective import TrainingLoss
from lbtrain.callbacks._traceless import random_streams, set_random_streams, traceless
from tests.modules import Everything, Plain, digits_like, fit


class Disturbing(Everything):
    """Does all that a training_step can do to its module and its surroundings."""

    raises = False

    def __init__(self):
        super().__init__()
        self.metrics = MetricCollection([MulticlassAccuracy(3), MulticlassPrecision(3)])
        self.table = {"seen": [0], "inner": {"count": 0}}
        self.names = {"a"}
        self.plain = torch.zeros(3)

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.metrics(self.net(batch[0]), batch[1])
        self.table["seen"].append(batch_idx)
        self.table["inner"]["count"] += 1
        self.names.add(str(batch_idx))
        self.plain += 1
        self.seen = torch.ones(1) * 7
        self.extra = "new"
        np.random.rand()
        random.random()
        self.net[0].weight.grad = torch.ones_like(self.net[0].weight)
        self.unused.requires_grad_(False)
        self.net[1].eval()
        self.logger.log_metrics({"direct": 1.0}) if self.logger else None
        self.print("noise")
        if self.raises:
            raise ValueError("no loss today")
        return loss


class Probe(Callback):
    """Evaluates the training loss before each batch and compares everything before and after."""

    def __init__(self, training, raises):
        self.training, self.raises, self.checked = training, raises, 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        before = everything(pl_module)
        pl_module.raises = self.raises
        loss = TrainingLoss(trainer, pl_module)
        if self.raises:
            with (
                pytest.raises(ValueError, match="no loss today"),
                traceless(trainer, pl_module, training=self.training),
            ):
                loss(batch, batch_idx)
        else:
            with traceless(trainer, pl_module, training=self.training):
                assert loss(batch, batch_idx).requires_grad
        pl_module.raises = False
        assert everything(pl_module) == before
        assert "log" not in vars(pl_module)
        self.checked += 1


def everything(module):
    """Return all state that could hold a trace, in a form that compares bit for bit."""
    tensors = {**dict(module.named_buffers()), "plain": module.plain}
    for name, m in module.named_modules():
        for state in getattr(m, "_defaults", {}):
            tensors[f"{name}.{state}"] = getattr(m, state)
        tensors.update({f"{name}.grad.{k}": p.grad for k, p in m.named_parameters(recurse=False)})
    streams = random_streams(torch.device("cpu"))
    return {
        "tensors": {k: (id(v), None if v is None else v.tolist()) for k, v in tensors.items()},
        "modes": [m.training for m in module.modules()],
        "required": [p.requires_grad for p in module.parameters()],
        "counts": [getattr(m, "_update_count", None) for m in module.modules()],
        "groups": str(module.metrics._groups),
        "plain": (str(module.table), sorted(module.names), len(module.losses), module.calls, hasattr(module, "extra")),
        "torch": streams["torch"].tolist(),
        "numpy": str(streams["numpy"]),
        "python": streams["python"],
    }


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("training", [None, True, False])
def test_no_trace(training, raises, capsys):
    module, probe = Disturbing(), Probe(training, raises)

    class Twin(Disturbing):
        pass

    fit(module, digits_like(), [probe])
    assert probe.checked == 6
    # The real steps print, the probed ones do not.
    assert capsys.readouterr().out.count("noise") == 6
    twin = Twin()
    trainer = fit(twin, digits_like())
    assert twin.calls == module.calls
    assert trainer.callback_metrics.keys() == {"train/acc", "train/loss", "train/loss_step", "train/loss_epoch"}


def test_the_same_streams_give_the_same_loss():
    class Compare(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            loss, streams = TrainingLoss(trainer, pl_module), random_streams(pl_module.device)
            with traceless(trainer, pl_module):
                first = loss(batch, 0, streams)
                self.again = torch.equal(first, loss(batch, 0, streams))
                self.fresh = torch.equal(first, loss(batch, 0))

    compare = Compare()
    fit(Everything(), digits_like(8, 8), [compare])
    assert compare.again
    assert not compare.fresh


def test_a_large_plain_tensor_changed_in_place_is_an_error(monkeypatch):
    monkeypatch.setattr(_attributes, "_COPY_LIMIT", 2)

    class Evaluate(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            with traceless(trainer, pl_module):
                TrainingLoss(trainer, pl_module)(batch)

    with pytest.raises(RuntimeError, match=r"Disturbing.plain in place; .* register it with register_buffer"):
        fit(Disturbing(), digits_like(), [Evaluate()])


@pytest.mark.parametrize(
    ("output", "message"),
    [(None, "got NoneType for batch 0"), ({"los": 1}, "got dict for batch 0"), (1.5, "got float")],
)
def test_a_step_without_loss_is_an_error(output, message):
    class Odd(Plain):
        def training_step(self, batch):
            return super().training_step(batch, 0) if self.trainer.fit_loop._should_accumulate() else self.odd(batch)

        def odd(self, batch):
            return output

    class Evaluate(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            with traceless(trainer, pl_module):
                TrainingLoss(trainer, pl_module)(batch)

    with pytest.raises(MisconfigurationException, match=message):
        fit(Odd(), digits_like(), [Evaluate()])


@pytest.mark.filterwarnings("ignore:.*`dataloader_iter`")
def test_a_step_that_takes_the_iterator_is_refused():
    class Iterating(Plain):
        def training_step(self, dataloader_iter):
            raise AssertionError("trained")

    class Evaluate(Callback):
        def on_train_start(self, trainer, pl_module):
            TrainingLoss(trainer, pl_module)

    with pytest.raises(MisconfigurationException, match="takes `dataloader_iter`.*take `batch` instead"):
        fit(Iterating(), digits_like(), [Evaluate()])


def test_streams_round_trip():
    streams = random_streams(torch.device("cpu"))
    drawn = (torch.rand(2).tolist(), np.random.rand(), random.random())
    set_random_streams(streams, torch.device("cpu"))
    assert drawn == (torch.rand(2).tolist(), np.random.rand(), random.random())
