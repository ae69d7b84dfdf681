"""Tiny LightningModules whose training is known or easy to disturb."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lbtrain._lightning import LightningModule, Trainer, seed_everything


def fit(module, loader, callbacks=(), *, seed=0, datamodule=None, ckpt_path=None, **options):
    """Train quietly on the CPU and return the Trainer."""
    seed_everything(seed, verbose=False)
    options = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, "accelerator": "cpu", **options}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(callbacks=list(callbacks), **quiet, **options)
    trainer.fit(module, loader, datamodule=datamodule, ckpt_path=ckpt_path)
    return trainer


def digits_like(samples=48, batch_size=8, *, shuffle=False, dtype=torch.float32, classes=3, features=6):
    """Return a loader over random labelled vectors, the same each time."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, features, generator=generator, dtype=dtype)
    y = torch.randint(0, classes, (samples,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=batch_size, shuffle=shuffle)


class Quadratic(LightningModule):
    """L = mean over the batch of (1/2 w'Aw - x'w), as a module: the gradient is A w - mean x."""

    def __init__(self, matrix, start, lr=0.1):
        super().__init__()
        self.matrix = matrix
        self.w = nn.Parameter(start.clone())
        self.lr = lr

    def training_step(self, batch, batch_idx):
        (x,) = batch
        return 0.5 * self.w @ self.matrix @ self.w - (x @ self.w).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Everything(LightningModule):
    """Batch normalization, dropout, metrics, logs, a list that grows, frozen and unused parameters, random numbers."""

    def __init__(self, *, features=6, classes=3, optimizer=None, dropout=0.4):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(features, 12), nn.BatchNorm1d(12), nn.Dropout(dropout), nn.Tanh(), nn.Linear(12, classes)
        )
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(2))
        self.accuracy = MulticlassAccuracy(classes)
        self.register_buffer("seen", torch.zeros(1))
        self.losses = []
        self.calls = 0
        self.optimizer = optimizer or (lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9))

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self.net(x + 0.01 * torch.randn_like(x))
        loss = nn.functional.cross_entropy(logits, y)
        self.accuracy(logits, y)
        self.log("train/acc", self.accuracy, on_step=False, on_epoch=True)
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        self.seen += len(x)
        self.losses.append(loss.item())
        self.calls += 1
        return loss

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


class Plain(LightningModule):
    """A small smooth network without anything random; mean or sum."""

    def __init__(self, *, features=6, classes=3, reduction="mean", lr=0.1, optimizer=None, dtype=torch.float32):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(features, 5), nn.Tanh(), nn.Linear(5, classes)).to(dtype)
        self.reduction = reduction
        self.optimizer = optimizer or (lambda p: torch.optim.SGD(p, lr=lr))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y, reduction=self.reduction)

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


class LeastSquares(LightningModule):
    """Least squares, with the mean or the sum of the squared errors; the rate is meant for one batch of 64."""

    def __init__(self, reduction):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(6, 1, dtype=torch.float64))
        self.reduction = reduction

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(x @ self.w, y.to(x)[:, None], reduction=self.reduction)

    def configure_optimizers(self):
        lr = 0.1 if self.reduction == "mean" else 0.1 / 64
        return torch.optim.SGD(self.parameters(), lr=lr, momentum=0.9)


def same(first, second):
    """Whether two state dicts agree bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
