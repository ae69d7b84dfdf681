"""Tiny runs for the diagnosis: a network that learns clusters in a second, and ways to make it sick."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lbtrain import OptimizationDiagnostics
from lbtrain._lightning import LightningModule
from tests.modules import fit


def clusters(samples=192, batch_size=16, *, classes=3, features=6, shift=0.0):
    """Return a loader over clusters of points, one per class, the same each time."""
    generator = torch.Generator().manual_seed(3)
    centres = 2.0 * torch.randn(classes, features, generator=generator)
    y = torch.arange(samples) % classes
    x = centres[y] + torch.randn(samples, features, generator=generator) + shift
    return DataLoader(TensorDataset(x, y), batch_size=batch_size)


class Classifier(LightningModule):
    """Two layers with a ReLU between them."""

    def __init__(self, *, lr=0.1, bias=None, reduction="mean", optimizer=None):
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.out = nn.Linear(6, 16), nn.Linear(16, 3)
        if bias is not None:
            nn.init.constant_(self.hidden.bias, bias)
        self.reduction = reduction
        self.optimizer = optimizer or (lambda p: torch.optim.SGD(p, lr=lr))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self.out(torch.relu(self.hidden(x))), y, reduction=self.reduction)

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


class Breaking(Classifier):
    """Fails in the training step of a batch, when it trains."""

    def __init__(self, error, at=30, **options):
        super().__init__(**options)
        self.error, self.at = error, at

    def on_train_batch_start(self, batch, batch_idx):
        if self.trainer.global_step == self.at:
            raise self.error


def diagnosed(module=None, loader=None, callbacks=(), *, max_epochs=8, where=None, fit_options=None, **options):
    """Train with the diagnosis and return it."""
    doctor = OptimizationDiagnostics(**{"figures": False, **options})
    place = {} if where is None else {"default_root_dir": where}
    fit(
        module or Classifier(),
        loader or clusters(),
        [*callbacks, doctor],
        max_epochs=max_epochs,
        **place,
        **(fit_options or {}),
    )
    return doctor


def without_seconds(state):
    """Return a state without the clocks, for comparison."""
    return {key: value for key, value in state.items() if key not in {"seconds", "elapsed"}}
