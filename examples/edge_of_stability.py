"""Watch gradient descent rise to the edge of stability: sharpness against step, with the line 2/lr.

python examples/edge_of_stability.py    # seconds; leaves edge_of_stability/figures/hessian_tracks.png
"""

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lbtrain import HessianSpectrum


class Regression(LightningModule):
    """A small tanh network, trained by full-batch gradient descent."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 2))

    def training_step(self, batch, batch_idx):
        """Return half the mean squared distance."""
        x, y = batch
        return 0.5 * ((self.net(x) - y) ** 2).sum(dim=1).mean()

    def configure_optimizers(self):
        """Return plain gradient descent."""
        return torch.optim.SGD(self.parameters(), lr=0.13)


def train(directory, top_k):
    """Return the largest eigenvalues after every 30th of 900 steps."""
    torch.manual_seed(0)
    x = torch.randn(64, 2)
    y = torch.stack([(3 * x[:, 0]).sin(), (2 * x[:, 1]).cos() * x[:, 0]], dim=1)
    spectrum = HessianSpectrum(top_k=top_k, every_n_steps=30)
    trainer = Trainer(
        max_epochs=900,
        accelerator="cpu",
        callbacks=[spectrum],
        default_root_dir=directory,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Regression(), DataLoader(TensorDataset(x, y), batch_size=64))
    return spectrum.tracks


def main():
    """Print the last measurements."""
    for point in train("edge_of_stability", top_k=2)[-3:]:
        print(f"step {point['step']}: {point['hessian/stability']:.3f} of the edge")


if __name__ == "__main__":
    main()
