"""The gallery: runs that are each built to have one problem, and healthy ones; their settings are in conf/sick."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from lbtrain.app.train import train

HEALTHY = "healthy"  # what stands in place of a problem


@dataclass(frozen=True)
class Expected:
    """What a run of the gallery must be found to have first, and whether a change of its config cures it."""

    problem: str
    curable: bool = False


GALLERY = {
    # A slip in code, and data that are not numbers: no setting mends them.
    "wrong_backward": Expected("incorrect gradients"),
    "detached": Expected("incorrect gradients"),
    "nan_labels": Expected("invalid data"),
    "summed_loss": Expected("summed loss", curable=True),
    "shifted_inputs": Expected("ill-conditioned inputs", curable=True),
    "zero_init": Expected("symmetries", curable=True),
    "duplicated_units": Expected("symmetries", curable=True),
    "saturated_sigmoid": Expected("saturated units", curable=True),
    "dead_relu": Expected("dead units", curable=True),
    "quadratic_divergence": Expected("instability", curable=True),
    "digits_divergence": Expected("instability", curable=True),
    "unwarmed_large_batch": Expected("instability", curable=True),
    "quadratic_oscillation": Expected("oscillations", curable=True),
    "digits_oscillation": Expected("oscillations", curable=True),
    "tiny_batch": Expected("fluctuations", curable=True),
    "early_decay": Expected("decay too early", curable=True),
    "hard_thresholds": Expected("plateau", curable=True),
    "saddle_start": Expected("saddle", curable=True),
    "slow_rate": Expected("slow progress", curable=True),
    "healthy_sgd": Expected(HEALTHY),
    "healthy_adam": Expected(HEALTHY),
    "healthy_sam": Expected(HEALTHY),
    "healthy_small_batch": Expected(HEALTHY),
    "healthy_softmax": Expected(HEALTHY),
    "healthy_large_batch": Expected(HEALTHY),
    "healthy_least_squares": Expected(HEALTHY),
    "healthy_noisy_labels": Expected(HEALTHY),
    "healthy_batch_norm": Expected(HEALTHY),
}
SICK = [name for name, expected in GALLERY.items() if expected.problem != HEALTHY]
CURABLE = [name for name, expected in GALLERY.items() if expected.curable]


@dataclass(frozen=True)
class Outcome:
    """What a run has left: its `diagnosis.json`, and the mean training loss of its final weights, per sample."""

    diagnosis: dict[str, Any]
    loss: float

    @property
    def first(self) -> str:
        """The problem that stands first."""
        found = self.diagnosis["findings"]
        return found[0]["problem"] if found else HEALTHY

    @property
    def cure(self) -> list[str]:
        """The overrides of the first finding's first remedy that has any."""
        remedies = self.diagnosis["findings"][0]["remedies"] if self.diagnosis["findings"] else []
        return next((list(remedy["overrides"]) for remedy in remedies if remedy["overrides"]), [])


def run(name: str, folder: Path, *overrides: str, seed: int = 0) -> Outcome:
    """Train one run of the gallery in this process, as `python train.py sick=NAME` does in one of its own.

    Args:
        name: One of `GALLERY`.
        folder: Its directory.
        *overrides: As on the command line.
        seed: Of data, weights and order.

    Returns:
        What it has left.
    """
    given = [f"sick={name}", f"seed={seed}", "trainer.enable_progress_bar=false", *overrides]
    try:
        metrics = train(_job(given, folder))
    finally:
        HydraConfig.instance().cfg = None
    loss = metrics["train/loss"]
    diagnosis = json.loads((folder / "diagnosis.json").read_text())
    return Outcome(diagnosis, loss if math.isfinite(loss) else math.inf)


def _job(overrides: list[str], folder: Path) -> DictConfig:
    """Compose a config and make this process its Hydra job."""
    with initialize_config_module("lbtrain.conf", version_base="1.3"):
        cfg = compose("train", overrides, return_hydra_config=True)
    with open_dict(cfg):
        cfg.hydra.runtime.output_dir = str(folder)
        cfg.hydra.mode = RunMode.RUN
        HydraConfig.instance().set_config(cfg)
        del cfg["hydra"]
    return cfg
