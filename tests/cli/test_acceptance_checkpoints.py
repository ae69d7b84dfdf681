"""A checkpoint of a run with any of the shipped callbacks loads without trust in the file."""

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from lbtrain.app.train import train
from tests.cli.commands import ROOT

NAMES = sorted(path.stem for path in (ROOT / "conf" / "callbacks").glob("*.yaml") if path.stem != "none")
# Each of them takes the step, so a run has one.
CLIMBERS = [name for name in NAMES if "sam" in name]
OTHERS = [name for name in NAMES if name not in CLIMBERS]
SMALL = ["trainer.max_epochs=1", "data.batch_size=512", "trainer.enable_progress_bar=false", "model=linear"]
SMALL += ["callbacks.checkpoint.save_last=true"]


@pytest.fixture
def checkpoint(tmp_path):
    """Return what trains with some callbacks, in a Hydra job that this process is for as long, and gives the file."""

    def trained(callbacks, *overrides):
        given = [*SMALL, f"callbacks=[{','.join(callbacks)}]", "logger=csv", *overrides]
        with initialize_config_module("lbtrain.conf", version_base="1.3"):
            cfg = compose("train", overrides=given, return_hydra_config=True)
        with open_dict(cfg):
            cfg.hydra.runtime.output_dir = str(tmp_path / "run")
            HydraConfig.instance().set_config(cfg)
            del cfg["hydra"]
        train(cfg)
        return tmp_path / "run" / "checkpoints" / "last.ckpt"

    yield trained
    HydraConfig.instance().cfg = None


def kept(path):
    """Return the class names of the callbacks whose state the file holds; the whole of it is loaded safely."""
    return {key.partition("{")[0] for key in torch.load(path, weights_only=True)["callbacks"]}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of so small a run: what is loaded counts here
def test_with_every_callback_that_goes_with_the_others(checkpoint):
    assert {"lr_scaling", "loss_reduction", "hessian", "sharpness", "noise", "random_state"} <= set(OTHERS)
    found = kept(checkpoint([*OTHERS, "sam"], "callbacks.hessian.every_n_steps=1", "callbacks.hessian.top_k=1"))
    assert {"LearningRateScaling", "HessianSpectrum", "RandomState", "ModelCheckpoint"} <= found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CLIMBERS)
def test_with_each_callback_that_takes_the_step(name, checkpoint):
    assert "RandomState" in kept(checkpoint(["lr_scaling", "checkpoint", name]))
