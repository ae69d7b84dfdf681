"""A figure on its way out: a PNG in the run's directory, and a picture in the loggers that take one."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from lbtrain._lightning import Trainer, rank_zero_only, rank_zero_warn
from lbtrain.callbacks._drawing import png_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Trainers and loggers that have refused a picture and were told of once.
_told: WeakSet[Any] = WeakSet()


@rank_zero_only
def publish_figure(trainer: Trainer, name: str, figure: Figure | Callable[[], Figure]) -> None:
    """Write a figure to `figures/<name>.png` in the run's directory and hand it to wandb and TensorBoard.

    Never fails a run: what cannot be drawn or written, or a logger refuses, becomes one warning for each.

    Args:
        trainer: The Trainer; with `fast_dev_run`, which leaves nothing behind, there is no file.
        name: Stem of the file; loggers know it as `figures/<name>`.
        figure: The figure, or what draws it, which is then called on rank zero only.
    """
    with _told_once(trainer, f"the figure {name!r} is missing in the run's directory"):
        drawn = figure() if callable(figure) else figure
        png, words = png_of(drawn), drawn.get_label()
        for logger in trainer.loggers:
            with _told_once(logger, f"{type(logger).__name__} has not taken the figure {name!r}"):
                _hand_over(trainer, logger, f"figures/{name}", png, words)
        if not trainer.fast_dev_run:
            path = run_directory(trainer) / "figures" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png)


def run_directory(trainer: Trainer) -> Path:
    """Return where a run leaves its files, without asking the other ranks as `trainer.log_dir` does.

    Args:
        trainer: The Trainer.

    Returns:
        The folder of the first logger if it has one of its own for each run (CSV, TensorBoard), else the Trainer's.
    """
    folder = getattr(trainer.logger, "log_dir", None)
    return Path(folder or trainer.default_root_dir)


def _hand_over(trainer: Trainer, logger: Any, key: str, png: bytes, words: str) -> None:
    """Give the picture to a logger that takes pictures; the others have the file."""
    step = trainer.fit_loop.epoch_loop._batches_that_stepped
    if hasattr(logger, "log_image"):  # wandb's
        logger.log_image(key, [_pixels(png)], step=step, caption=[words])
    elif hasattr(logger.experiment, "add_image"):  # TensorBoard's writer; its add_figure would load pyplot
        logger.experiment.add_image(key, _pixels(png), step, dataformats="HWC")


def _pixels(png: bytes) -> Any:
    """Return the picture as bytes, shape (height, width, 3)."""
    import numpy as np
    from PIL import Image  # comes with matplotlib

    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


@contextmanager
def _told_once(owner: Any, what: str) -> Iterator[None]:
    """Turn an error into a warning, the first one of this owner, since the next ones have the same cause."""
    try:
        yield
    except Exception as error:  # a picture is never worth a run
        if owner not in _told:
            _told.add(owner)
            rank_zero_warn(f"{what}: {type(error).__name__}: {error}; the numbers are not affected")
