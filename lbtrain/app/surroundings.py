"""What a job changes around itself: warnings, Lightning's greetings, its seed variable, and how a refusal looks."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lbtrain
from lbtrain._lightning import MisconfigurationException
from lbtrain.app.signatures import ConfigError

_PACKAGE = Path(lbtrain.__file__).parent
_FORMAT = warnings.formatwarning


@contextmanager
def in_one_line() -> Iterator[None]:
    """Let Hydra print a refusal, which says all itself, without a traceback (HYDRA_FULL_ERROR=1 shows it).

    Raises:
        ConfigError: In the place of a MisconfigurationException.
    """
    try:
        yield
    except MisconfigurationException as error:
        raise ConfigError(str(error)) from error


@contextmanager
def seed_variable() -> Iterator[None]:
    """Put Lightning's seed variable back: a later run in this process, without a seed, would take this one's."""
    before = os.environ.get("PL_GLOBAL_SEED")
    try:
        yield
    finally:
        os.environ.pop("PL_GLOBAL_SEED", None)
        if before is not None:
            os.environ["PL_GLOBAL_SEED"] = before


def hush(*, resumed: bool) -> None:
    """Keep Lightning's greetings, and warnings about what this application does on purpose, off the screen.

    Warnings of this package are printed as their sentences alone.

    Args:
        resumed: Whether the job reads a checkpoint.
    """
    warnings.formatwarning = _plain_warning
    greetings = ("GPU available", "TPU available", "HPU available", "\N{ELECTRIC LIGHT BULB} Tip")
    for name in ("pytorch_lightning", "lightning.pytorch"):
        rank_zero = logging.getLogger(f"{name}.utilities.rank_zero")
        rank_zero.addFilter(lambda record: not record.getMessage().startswith(greetings))
    # The run directory holds Hydra's files before the logger writes its own.
    warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
    if resumed:
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.")  # torch on Lightning's use of it
    # Small data is read faster in the process itself than by workers.
    warnings.filterwarnings("ignore", message="The '.*_dataloader' does not have many workers")


def _plain_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Format a warning of this package as its sentence alone: the line of code says nothing more.

    Returns:
        What is printed.
    """
    if Path(filename).is_relative_to(_PACKAGE):
        return f"warning: {message}\n"
    return _FORMAT(message, category, filename, lineno, line)
