"""Large-batch training for PyTorch Lightning.

Rooms: `functional` is the mathematics (tensors in, frozen results out), `callbacks` brings it into any Trainer, `app`
runs and sweeps experiments with Hydra, `study` compares what the runs left on disk; `records` is what the last two
share.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lbtrain.callbacks.diagnostics import OptimizationDiagnostics
    from lbtrain.callbacks.friendly_sam import FriendlySAM
    from lbtrain.callbacks.gsam import GSAM
    from lbtrain.callbacks.hessian import HessianSpectrum
    from lbtrain.callbacks.looksam import LookSAM
    from lbtrain.callbacks.loss_reduction import LossReductionCheck
    from lbtrain.callbacks.lr_scaling import LearningRateScaling
    from lbtrain.callbacks.momentum_sam import MomentumSAM
    from lbtrain.callbacks.noise import GradientNoiseScale
    from lbtrain.callbacks.random_state import RandomState
    from lbtrain.callbacks.sam import SAM
    from lbtrain.callbacks.sharpness import Sharpness
    from lbtrain.callbacks.step_time import StepTime
    from lbtrain.callbacks.subset_loss import FixedSubsetLoss
    from lbtrain.callbacks.target import TargetReached
    from lbtrain.callbacks.wsam import WSAM

__version__ = "0.1.0"
__all__ = [
    "LearningRateScaling",
    "LossReductionCheck",
    "SAM",
    "GSAM",
    "LookSAM",
    "FriendlySAM",
    "WSAM",
    "MomentumSAM",
    "GradientNoiseScale",
    "HessianSpectrum",
    "Sharpness",
    "FixedSubsetLoss",
    "OptimizationDiagnostics",
    "RandomState",
    "StepTime",
    "TargetReached",
]

# Names are looked up when first used: `train.py --help` must answer without importing torch.
_FILES = {
    "LearningRateScaling": "lr_scaling",
    "LossReductionCheck": "loss_reduction",
    "SAM": "sam",
    "GSAM": "gsam",
    "LookSAM": "looksam",
    "FriendlySAM": "friendly_sam",
    "WSAM": "wsam",
    "MomentumSAM": "momentum_sam",
    "GradientNoiseScale": "noise",
    "HessianSpectrum": "hessian",
    "Sharpness": "sharpness",
    "FixedSubsetLoss": "subset_loss",
    "OptimizationDiagnostics": "diagnostics",
    "RandomState": "random_state",
    "StepTime": "step_time",
    "TargetReached": "target",
}


def __getattr__(name: str) -> Any:
    if name in _FILES:
        return getattr(importlib.import_module(f"lbtrain.callbacks.{_FILES[name]}"), name)
    raise AttributeError(f"module 'lbtrain' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_FILES])
