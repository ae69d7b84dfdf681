"""Add large-batch callbacks to a LightningModule that knows nothing of them.

python examples/add_callbacks.py
"""

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from lbtrain import SAM, HessianSpectrum, LearningRateScaling, LossReductionCheck


class Digits(pl.LightningModule):
    """Any module with automatic optimization will do."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))

    def training_step(self, batch, batch_idx):
        """Return the mean loss of a batch."""
        x, y = batch
        return torch.nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        """Return SGD with a rate that was tuned at batch size 16."""
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def main():
    """Train for a few epochs and print what the callbacks have measured."""
    x, y = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y))
    callbacks = [LearningRateScaling(base_batch_size=16), LossReductionCheck(), SAM(rho=0.05), HessianSpectrum(top_k=3)]
    trainer = pl.Trainer(max_epochs=5, callbacks=callbacks, logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.fit(Digits(), DataLoader(data, batch_size=128, shuffle=True))
    for key, value in sorted(trainer.callback_metrics.items()):
        print(f"{key:30} {value.item():.6g}")


if __name__ == "__main__":
    main()
