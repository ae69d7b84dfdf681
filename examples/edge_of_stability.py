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


def main():
    """Train for 900 steps, measure the top two eigenvalues after every 30th, and print the last points."""
    torch.manual_seed(0)
    x = torch.randn(64, 2)
    y = torch.stack([(3 * x[:, 0]).sin(), (2 * x[:, 1]).cos() * x[:, 0]], dim=1)
    spectrum = HessianSpectrum(top_k=2, every_n_steps=30)
    trainer = Trainer(
        max_epochs=900,
        accelerator="cpu",
        callbacks=[spectrum],
        default_root_dir="edge_of_stability",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Regression(), DataLoader(TensorDataset(x, y), batch_size=64))
    for point in spectrum.tracks[-3:]:
        print(f"step {point['step']}: {point['hessian/stability']:.3f} of the edge")


if __name__ == "__main__":
    main()
