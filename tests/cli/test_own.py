"""A user's own data and model, from a folder of their own, with either Lightning package."""

import subprocess
import sys
from pathlib import Path

import pytest

from lbtrain.records import read_record

LBTRAIN = Path(sys.executable).parent / "lbtrain"
MINE = """
import torch
from torch.utils.data import DataLoader, TensorDataset
import {package} as L

class Data(L.LightningDataModule):
    def __init__(self, bs: int = 8):
        super().__init__()
        self.bs = bs

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(0)
        data = TensorDataset(torch.randn(32, 3, generator=generator), torch.randint(0, 2, (32,), generator=generator))
        return DataLoader(data, self.bs)

class Model(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(3, 2)

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
"""


def lbtrain(folder, *words):
    command = [str(LBTRAIN), *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.fixture
def folder(tmp_path):
    """A folder with a module and its configs, by the name of the Lightning package."""

    def make(package):
        (tmp_path / "mine.py").write_text(MINE.format(package=package))
        for group, target in (("data", "Data\nbs: 8"), ("model", "Model")):
            (tmp_path / "my_conf" / group).mkdir(parents=True)
            (tmp_path / "my_conf" / group / "mine.yaml").write_text(f"_target_: mine.{target}\n")
        return tmp_path

    return make


COMMON = ["--config-dir=my_conf", "data=mine", "model=mine", "trainer.max_epochs=1", "objective=hessian/lambda_max"]
CALLBACKS = "callbacks=[lr_scaling,loss_reduction,sam,hessian,checkpoint]"


@pytest.mark.distributed
@pytest.mark.parametrize("package", ["lightning", "pytorch_lightning"])
def test_own_data_and_model(folder, package):
    here = folder(package)
    done = lbtrain(here, *COMMON, CALLBACKS, "callbacks.hessian.top_k=2", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "global batch 8 = 8 x 1 x 1, lr 0.1 -> 0.05 (linear, base 16)" in done.stderr + done.stdout
    record = read_record(here / "run")
    assert record.metrics["hessian/lambda_max"] > 0
    # The module makes its own optimizer, so the group says nothing about this run.
    assert not any(key.startswith("optimizer") for key in record.config)


@pytest.mark.distributed
def test_a_sweep_over_own_data(folder):
    here = folder("lightning")
    small = [CALLBACKS, "callbacks.hessian.top_k=2", "hydra.sweep.dir=sweep"]
    done = lbtrain(here, "-m", *COMMON, *small, "data.bs=4,8")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 runs: 2 finished" in done.stdout


@pytest.mark.distributed
def test_a_group_without_effect_is_refused(folder):
    done = lbtrain(folder("lightning"), *COMMON, "optimizer=adam", "hydra.run.dir=run")
    assert done.returncode == 1
    assert "optimizer=adam has no effect, since nothing in the config takes ${optimizer}" in done.stderr
