"""The result of one run, as a small table on the screen."""

import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

# Of one matrix: label -> key and unit. A standard error, where there is one, has the same key and `_stderr`.
_OF_MATRIX = {
    "lambda_max": ("lambda_max", " (largest {} eigenvalue)"),
    "its residual": ("lambda_max_residual", " (bound on its error)"),
    "lambda_max over data": ("lambda_max_batches", ""),
    "lambda_min": ("lambda_min", ""),
    "trace": ("trace", ""),
    "the weights": ("verdict", ""),
    "stability": ("stability", " (1 = edge of stability)"),
}
# Key of a matrix -> its name, and what its labels begin with.
_MATRICES = {"hessian": ("Hessian", ""), "ggn": ("Gauss-Newton", "ggn: ")}
_SHARPNESS = "sharpness/"
_LABELS = {"keskar": "Keskar", "sam": "SAM"}
# Numbers beside a measure, which is not called so.
_BESIDE = ("_stderr", "_corner", "_residual", "/interrupted")
_TIMES = {"time, fit": "time/fit_s", "time, measuring": "time/measure_s"}


def show(metrics: Mapping[str, Any], directory: str) -> None:
    """Print the result of a run.

    Args:
        metrics: By key, as in the run's record; what is not there is not shown.
        directory: Of the run, named at the end.
    """
    quality = Table(show_header=True, header_style="bold")
    for title in ("", "train", "test", "gap"):
        quality.add_column(title, justify="right" if title else "left")
    for label, key in (("loss", "loss"), ("accuracy", "acc")):
        values = [metrics.get(f"{part}/{key}") for part in ("train", "test", "gap")]
        if any(value is not None for value in values):
            quality.add_row(label, *map(_number, values))
    rest = Table(show_header=False)
    for label, key, unit in _rows(metrics):
        if key in metrics:
            stderr = metrics.get(f"{key}_stderr")
            known = "" if stderr is None else f" ± {_number(stderr)}"
            rest.add_row(escape(label), escape(_number(metrics[key])) + known + unit)
    console = Console(file=sys.stdout)
    for table in (quality, rest):
        if table.row_count:
            console.print(table)
    lost = [f"{key} is {metrics[key]}" for key in ("train/loss", "test/loss") if not _is_finite(metrics.get(key))]
    if lost:
        console.print(f"diverged: {', '.join(lost)}", highlight=False, soft_wrap=True)
    console.print(f"results: {escape(directory)}", highlight=False, soft_wrap=True)


def _rows(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield label, key and unit of what there may be."""
    for matrix, (name, prefix) in _MATRICES.items():
        for label, (key, unit) in _OF_MATRIX.items():
            yield prefix + label, f"{matrix}/{key}", unit.format(name)
    for key in metrics:
        if key.startswith(_SHARPNESS) and not key.endswith(_BESIDE):
            name = key.removeprefix(_SHARPNESS)
            yield f"sharpness, {_LABELS.get(name, name)}", key, _unit(name)
    for label, key in _TIMES.items():
        yield label, key, " s"


def _unit(name: str) -> str:
    """Return the unit of a measure, nothing where a user has named it."""
    from lbtrain.callbacks._sharpness_kinds import KINDS

    kind = name.removeprefix("m_")
    return "" if kind not in KINDS else " % of 1 + loss" if kind.startswith("keskar") else " loss"


def _is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _number(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or "-"
    return f"{value:.3g}" if math.isfinite(value) else str(value)
