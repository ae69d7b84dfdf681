"""Twelve kinds of training_step, and more, whose loss reduction is known, each with a batch for it."""

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from lbtrain._lightning import LightningModule


def one(*batches):
    """Return a loader of these batches, as they are."""
    return DataLoader(list(batches), batch_size=None, collate_fn=lambda batch: batch)


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def vectors(samples=8):
    return [draws(samples, 6), torch.arange(samples) % 3]


def sequences(samples=8, steps=9):
    """Token sequences of which the samples of the second half are much shorter; -100 marks what is not there."""
    labels = torch.arange(samples * steps).reshape(samples, steps) % 3
    for i in range(samples):
        labels[i, steps - i :] = -100
    return {"x": draws(samples, steps, 6), "labels": labels}


def transcripts(samples=8):
    lengths = torch.tensor([3, 2, 4, 1, 3, 2, 2, 4])[:samples]
    targets = 1 + torch.arange(samples * 4).reshape(samples, 4) % 2
    return draws(samples, 12, 6), targets, torch.full((samples,), 12), lengths


def ragged():
    """One sequence of vectors per sample, and its label."""
    lengths = [5, 2, 4, 6, 1, 2, 3, 1]
    return {"x": [draws(n, 6, seed=i) for i, n in enumerate(lengths)], "y": [torch.tensor(n % 3) for n in lengths]}


class Net(LightningModule):
    """A small network; subclasses say what its loss is."""

    batch = staticmethod(vectors)

    def __init__(self, lr=0.01):
        super().__init__()
        torch.manual_seed(0)
        self.net = self.network()
        self.lr = lr

    def network(self):
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class CrossEntropySum(Net):
    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1], reduction="sum")


class MeanOverOutputs(Net):
    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self.net(batch[0]), batch[0][:, :3])


class Ctc(Net):
    """The mean of nn.CTCLoss divides by each target's length first, so it is one over samples."""

    batch = staticmethod(transcripts)

    def training_step(self, batch, batch_idx):
        x, targets, frames, lengths = batch
        return nn.CTCLoss()(self.net(x).log_softmax(-1).transpose(0, 1), targets, frames, lengths)


class MaskedTokens(Net):
    batch = staticmethod(sequences)

    def training_step(self, batch, batch_idx):
        logits, labels = self.net(batch["x"]).flatten(0, 1), batch["labels"].flatten()
        return nn.functional.cross_entropy(logits, labels, ignore_index=-100)


class FreshTokens(MaskedTokens):
    """As a language model at its start: every token costs about the logarithm of the vocabulary."""

    def network(self):
        net = super().network()
        nn.init.normal_(net[2].weight, std=0.05)
        nn.init.zeros_(net[2].bias)
        return net


class TokenSum(MaskedTokens):
    """A sum over tokens is a sum over samples, too."""

    def training_step(self, batch, batch_idx):
        logits, labels = self.net(batch["x"]).flatten(0, 1), batch["labels"].flatten()
        return nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")


class ClassWeights(Net):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y, weight=torch.tensor([1.0, 2.0, 5.0], dtype=x.dtype))


class NtXent(Net):
    """Two views of each sample; the others of the batch are the negatives."""

    def training_step(self, batch, batch_idx):
        z = nn.functional.normalize(torch.cat([self.net(batch[0]), self.net(batch[0].flip(1))]), dim=1)
        similar = (z @ z.T / 0.5).masked_fill(torch.eye(len(z), dtype=torch.bool), float("-inf"))
        return nn.functional.cross_entropy(similar, torch.arange(len(z)).roll(len(z) // 2))


class Triplet(Net):
    """The hardest positive and the hardest negative in the batch."""

    def training_step(self, batch, batch_idx):
        z, same = self.net(batch[0]), batch[1][:, None] == batch[1]
        apart = (z[:, None] - z).square().sum(-1)
        hardest = apart.masked_fill(~same, 0).amax(1) - apart.masked_fill(same, 9.0).amin(1)
        return nn.functional.relu(hardest + 0.5).mean()


class Focal(Net):
    """Normalized by the positives of the batch, of which the first half has more."""

    @staticmethod
    def batch():
        return [draws(8, 6), torch.tensor([1, 1, 0, 1, 0, 0, 1, 0])]

    def training_step(self, batch, batch_idx):
        p = self.net(batch[0])[:, 0].sigmoid()
        right = torch.where(batch[1] == 1, p, 1 - p)
        return -((1 - right) ** 2 * right.log()).sum() / batch[1].sum()


class ReturnsDict(Net):
    def training_step(self, batch, batch_idx):
        return {"loss": super().training_step(batch, batch_idx), "extra": batch[0]}


class LogsAndCounts(Net):
    def __init__(self):
        super().__init__()
        self.accuracy = MulticlassAccuracy(3)
        self.seen = []

    def training_step(self, batch, batch_idx):
        logits = self.net(batch[0])
        loss = nn.functional.cross_entropy(logits, batch[1])
        self.accuracy(logits, batch[1])
        self.log("train/acc", self.accuracy, on_step=True, on_epoch=True)
        self.log_dict({"train/loss": loss}, prog_bar=True, on_epoch=True)
        self.seen.append(len(batch[0]))
        return loss


class WithBatchNorm(Net):
    def network(self):
        return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))


class AlwaysBatchStatistics(Net):
    def network(self):
        return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 3))


class WithDropout(Net):
    def network(self):
        return nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5), nn.Tanh(), nn.Linear(5, 3))


class RaggedLists(Net):
    """Each sample's own mean over its vectors, then the mean over samples."""

    batch = staticmethod(ragged)

    def training_step(self, batch, batch_idx):
        logits = torch.stack([self.net(x).mean(0) for x in batch["x"]])
        return nn.functional.cross_entropy(logits, torch.stack(batch["y"]))


class RaggedUnits(RaggedLists):
    """The mean over all vectors of the batch."""

    def training_step(self, batch, batch_idx):
        labels = torch.cat([y.expand(len(x)) for x, y in zip(batch["x"], batch["y"], strict=True)])
        return nn.functional.cross_entropy(self.net(torch.cat(batch["x"])), labels)


class Zero(Net):
    def training_step(self, batch, batch_idx):
        return 0.0 * self.net(batch[0]).sum()


class Penalized(Net):
    """A penalty on the weights beside the loss."""

    def __init__(self, reduction):
        super().__init__()
        self.reduction = reduction

    def training_step(self, batch, batch_idx):
        penalty = sum(p.square().sum() for p in self.parameters())
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1], reduction=self.reduction) + 0.3 * penalty


class Random(Net):
    """Noise on the inputs, in eval mode as well."""

    def __init__(self, noise, base=Net):
        super().__init__()
        self.noise, self.base = noise, base

    def training_step(self, batch, batch_idx):
        x = batch[0] + self.noise * torch.randn_like(batch[0])
        return self.base.training_step(self, [x, batch[1]], batch_idx)
