"""The spectra that a run has measured: `spectrum.json` in its directory, and tables in wandb."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lbtrain._lightning import Trainer, rank_zero_only
from lbtrain.callbacks.hessian import HessianSpectrum
from lbtrain.functional.results import Spectrum
from lbtrain.records import replace_file

SPECTRUM_NAME = "spectrum.json"


@rank_zero_only
def write_spectra(trainer: Trainer, directory: Path) -> None:
    """Write what each HessianSpectrum has found to `spectrum.json`, and hand it to wandb as tables.

    Without a result, and with `fast_dev_run`, there is no file.

    Args:
        trainer: The Trainer, after `fit`.
        directory: Of the run; made when absent.
    """
    found = {} if trainer.fast_dev_run else spectra(trainer)
    if not found:
        return
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_words(found), indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    replace_file(directory / SPECTRUM_NAME, f"{text}\n".encode())
    for logger in trainer.loggers:
        if hasattr(logger, "log_table"):  # wandb's
            step = trainer.fit_loop.epoch_loop._batches_that_stepped
            for key, (columns, rows) in tables(found).items():
                logger.log_table(key, columns=list(columns), data=rows, step=step)


def spectra(trainer: Trainer) -> dict[str, dict[str, Any]]:
    """Collect the spectra that a Trainer's callbacks have measured when training ended.

    Args:
        trainer: The Trainer, after `fit`.

    Returns:
        By matrix (`hessian`, `ggn`), the parts that were measured: `eigenvalues` (descending), `residuals`,
        `lambda_min`, its `lambda_min_residual` and the `layers`, in loss per squared parameter; `grid` and `sigma` in
        the same unit, and `density` and `density_stderr` as shares of the eigenvalues per unit.
    """
    found = {}
    for callback in trainer.callbacks:
        result = callback.result if isinstance(callback, HessianSpectrum) else None
        if result is None:
            continue
        spectrum, density = result.spectrum, result.density
        parts: dict[str, Any] = {
            "eigenvalues": list(spectrum.eigenvalues),
            "residuals": list(spectrum.residuals),
            "lambda_min": spectrum.lambda_min,
            "lambda_min_residual": spectrum.lambda_min_residual,
        }
        if density is not None and len(density.grid):
            parts |= {name: getattr(density, name).tolist() for name in ("grid", "density", "density_stderr")}
            parts["sigma"] = density.sigma
        if result.layers:
            parts["layers"] = {name: _layer(block) for name, block in result.layers.items()}
        found[result.matrix] = parts
    return found


def tables(found: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[Sequence[str], list[list[Any]]]]:
    """Lay spectra out as tables.

    Args:
        found: As `spectra` gives them.

    Returns:
        By key (`spectrum/hessian`, `spectrum/hessian_density`, `spectrum/hessian_layers`): the names of the columns,
        and the rows.
    """
    made: dict[str, tuple[Sequence[str], list[list[Any]]]] = {}
    for matrix, parts in found.items():
        pairs = zip(parts["eigenvalues"], parts["residuals"], strict=True)
        rows = [[i, *pair] for i, pair in enumerate(pairs, start=1)]
        made[f"spectrum/{matrix}"] = (("index", "eigenvalue", "residual"), rows)
        if "grid" in parts:
            names = ("grid", "density", "density_stderr")
            points = [list(row) for row in zip(*(parts[name] for name in names), strict=True)]
            made[f"spectrum/{matrix}_density"] = (("eigenvalue", *names[1:]), points)
        if "layers" in parts:
            columns = ("lambda_max", "lambda_min", "trace")
            blocks = [[name, *(block.get(column) for column in columns)] for name, block in parts["layers"].items()]
            made[f"spectrum/{matrix}_layers"] = (("layer", *columns), blocks)
    return made


def _layer(block: Spectrum) -> dict[str, float]:
    found = {"lambda_max": block.lambda_max, "lambda_min": block.lambda_min}
    return found if block.trace is None else {**found, "trace": block.trace.value}


def _words(value: Any) -> Any:
    """Return a value that JSON has a word for: NaN and the infinities become the texts of `summary.json`."""
    if isinstance(value, Mapping):
        return {key: _words(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_words(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
