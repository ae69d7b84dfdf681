"""The one door to Lightning: `pytorch_lightning` or `lightning.pytorch`, whichever this process already uses.

The two packages hold separate copies of every class, and the Trainer of one refuses the callbacks of the other. So all
of lbtrain takes its Lightning names from here, and here follows the user: the package that the process has imported
first wins; with neither imported yet, the installed one, `pytorch_lightning` before `lightning`.
"""

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

_PACKAGES = ("pytorch_lightning", "lightning.pytorch")


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name.split(".")[0]) is not None


def _choose() -> ModuleType:
    """Return the Lightning package of this process.

    Raises:
        ModuleNotFoundError: If neither package is installed.
    """
    # `sys.modules` keeps the order of first import, so with both imported the user's earlier choice wins.
    imported = [name for name in sys.modules if name in _PACKAGES]
    for name in imported or filter(_installed, _PACKAGES):
        return importlib.import_module(name)
    raise ModuleNotFoundError("lbtrain needs PyTorch Lightning: pip install pytorch-lightning")


def _callback_since(name: str, release: str) -> Any:
    """Return a callback of Lightning, or in releases that lack it what says so when one is built."""

    def refuse(**arguments: Any) -> None:
        known = f"{name} is in Lightning {release} and later, and {pl.__version__} is installed"
        raise MisconfigurationException(f"{known}: upgrade it, or leave the callback out")

    return getattr(_callbacks, name, refuse)


pl = _choose()

Callback = pl.Callback
LightningDataModule = pl.LightningDataModule
LightningModule = pl.LightningModule
Trainer = pl.Trainer
seed_everything = pl.seed_everything

_callbacks = importlib.import_module(f"{pl.__name__}.callbacks")
_loggers = importlib.import_module(f"{pl.__name__}.loggers")
_rank_zero = importlib.import_module(f"{pl.__name__}.utilities.rank_zero")
_exceptions = importlib.import_module(f"{pl.__name__}.utilities.exceptions")
_dummy = importlib.import_module(f"{pl.__name__}.loggers.logger")

BatchSizeFinder = _callbacks.BatchSizeFinder
EarlyStopping = _callbacks.EarlyStopping
# First release: its changelog, "[2.6.0] - 2025-11-28", Lightning-AI/pytorch-lightning#21260.
EMAWeightAveraging = _callback_since("EMAWeightAveraging", "2.6.0")
GradientAccumulationScheduler = _callbacks.GradientAccumulationScheduler
LearningRateFinder = _callbacks.LearningRateFinder
ModelCheckpoint = _callbacks.ModelCheckpoint
CSVLogger = _loggers.CSVLogger
WandbLogger = _loggers.WandbLogger
DummyLogger = _dummy.DummyLogger
MisconfigurationException = _exceptions.MisconfigurationException
rank_zero_info = _rank_zero.rank_zero_info
rank_zero_only = _rank_zero.rank_zero_only
rank_zero_warn = _rank_zero.rank_zero_warn
plugins = importlib.import_module(f"{pl.__name__}.plugins")
strategies = importlib.import_module(f"{pl.__name__}.strategies")
prepare_for_backward = importlib.import_module(f"{pl.__name__}.overrides.distributed").prepare_for_backward
