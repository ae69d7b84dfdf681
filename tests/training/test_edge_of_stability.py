"""Full-batch gradient descent rises to the edge of stability and stays there (Cohen et al. 2021): tracked."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lbtrain import HessianSpectrum
from lbtrain._lightning import LightningModule, Trainer

RATE = 0.13
STEPS, EVERY = 900, 30


class Regression(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 2))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return 0.5 * ((self.net(x) - y) ** 2).sum(dim=1).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=RATE)


@pytest.fixture(scope="module")
def tracked():
    torch.manual_seed(0)
    x = torch.randn(64, 2)
    y = torch.stack([(3 * x[:, 0]).sin(), (2 * x[:, 1]).cos() * x[:, 0]], dim=1)
    spectrum = HessianSpectrum(top_k=1, every_n_steps=EVERY, figures=(), trace_probes=0, split_check=False)
    trainer = Trainer(
        max_epochs=STEPS, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[spectrum],
    )  # fmt: skip
    trainer.fit(Regression(), DataLoader(TensorDataset(x, y), batch_size=64))
    return spectrum.tracks


def test_sharpness_rises_to_the_edge_and_hovers_there(tracked):
    assert len(tracked) == STEPS // EVERY
    early, late = tracked[0]["hessian/stability"], [point["hessian/stability"] for point in tracked[-10:]]
    assert early < 0.8
    assert min(late) > 0.9
    assert max(late) < 1.3


def test_stability_is_half_the_rate_times_the_sharpness(tracked):
    for point in tracked:
        assert point["hessian/stability"] == pytest.approx(RATE * point["hessian/lambda_max"] / 2, rel=1e-6)


def test_a_tracked_point_takes_a_handful_of_products(tracked):
    spent = sorted(point["hessian/num_matvecs"] for point in tracked[1:-1])
    assert spent[len(spent) // 2] <= 8
