"""The result of one run, as a small table on the screen."""

import math
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

# Label -> key, the key of its standard error, and the unit.
_ROWS = {
    "lambda_max": ("hessian/lambda_max", None, " (largest Hessian eigenvalue)"),
    "its residual": ("hessian/lambda_max_residual", None, " (bound on its error)"),
    "lambda_max over data": ("hessian/lambda_max_batches", "hessian/lambda_max_batches_stderr", ""),
    "lambda_min": ("hessian/lambda_min", None, ""),
    "trace": ("hessian/trace", "hessian/trace_stderr", ""),
    "the weights": ("hessian/verdict", None, ""),
    "stability": ("hessian/stability", None, " (1 = edge of stability)"),
    "sharpness, Keskar": ("sharpness/keskar", "sharpness/keskar_stderr", " % of 1 + loss"),
    "sharpness, SAM": ("sharpness/sam", "sharpness/sam_stderr", " loss"),
    "sharpness, average": ("sharpness/average", "sharpness/average_stderr", " loss"),
    "sharpness, adaptive": ("sharpness/adaptive", "sharpness/adaptive_stderr", " loss"),
    "time, fit": ("time/fit_s", None, " s"),
    "time, measuring": ("time/measure_s", None, " s"),
}


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
    for label, (key, stderr, unit) in _ROWS.items():
        if key in metrics:
            known = f" ± {_number(metrics[stderr])}" if stderr in metrics else ""
            rest.add_row(label, _number(metrics[key]) + known + unit)
    console = Console(file=sys.stdout)
    for table in (quality, rest):
        if table.row_count:
            console.print(table)
    console.print(f"results: {escape(directory)}", highlight=False, soft_wrap=True)


def _number(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or "-"
    return f"{value:.3g}" if math.isfinite(value) else str(value)
