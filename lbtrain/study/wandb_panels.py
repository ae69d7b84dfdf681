"""What a W&B report shows of a sweep: scatters, curves and parallel coordinates, where the runs have the numbers."""

from typing import Any

import pandas as pd

_WIDTH, _HEIGHT, _PER_ROW = 12, 8, 2  # of a panel, in units of wandb's grid, which is 24 wide
_ACCURACY, _CURVATURE = "test/acc", "hessian/lambda_max"
# x axis, y axis and title of each scatter; a name with a slash is a metric, another one a key of the config.
_SCATTERS = (
    (_CURVATURE, _ACCURACY, "Test accuracy against lambda_max"),
    ("global_batch", "test/loss", "Test loss against batch size"),
    ("global_batch", _ACCURACY, "Test accuracy against batch size"),
    ("global_batch", _CURVATURE, "lambda_max against batch size"),
    ("global_batch", "sharpness/keskar", "Keskar sharpness against batch size"),
    ("global_batch", "sharpness/sam", "SAM sharpness against batch size"),
    ("global_batch", "gap/loss", "Generalization gap against batch size"),
)
_COORDINATES = ("global_batch", "lr_scaled", "rho", "method", _ACCURACY, _CURVATURE, "gap/acc", "gap/loss")
_CURVES = ("val/loss", "val/acc")
_COLUMNS = ("global_batch", "lr_scaled", "lr_rule", "method", "rho", "seed")
# Keys of the config that span decades.
_DECADES = ("global_batch", "lr_scaled")


def pinned(table: pd.DataFrame) -> list[str]:
    """Name the columns that stand first in the table of runs.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        Accessors of wandb: the run's name, its settings, and the final numbers that were measured.
    """
    metrics = [key for key in (_ACCURACY, "test/loss", _CURVATURE, "gap/loss") if _measured(table, key)]
    return ["run:displayName", *(f"config:{key}.value" for key in _COLUMNS), *(f"summary:{key}" for key in metrics)]


def panels(wr: Any, table: pd.DataFrame) -> list[Any]:
    """Make the panels that the runs have numbers for, two in a row, and the parallel coordinates below them.

    Args:
        wr: The module `wandb_workspaces.reports.v2`.
        table: As `load_sweep` gives it.

    Returns:
        Panels of wandb-workspaces with their places.
    """
    made = [
        wr.ScatterPlot(title=title, x=_axis(wr, x), y=_axis(wr, y), log_x=_is_log(table, x), log_y=_is_log(table, y))
        for x, y, title in _SCATTERS
        if _known(table, x) and _known(table, y)
    ]
    for key in _CURVES:
        if _measured(table, key):
            made.append(wr.LinePlot(title=f"{key} while training", x="trainer/global_step", y=[key]))
    for place, panel in enumerate(made):
        row, column = divmod(place, _PER_ROW)
        panel.layout = wr.Layout(column * _WIDTH, row * _HEIGHT, _WIDTH, _HEIGHT)
    columns = [
        wr.ParallelCoordinatesPlotColumn(_axis(wr, key), display_name=key, log=_is_log(table, key))
        for key in _COORDINATES
        if _known(table, key)
    ]
    below = wr.Layout(0, -(-len(made) // _PER_ROW) * _HEIGHT, _WIDTH * _PER_ROW, _HEIGHT)
    return [*made, wr.ParallelCoordinatesPlot(columns=columns, layout=below)]


def _axis(wr: Any, key: str) -> Any:
    return wr.SummaryMetric(key) if "/" in key else wr.Config(key)


def _known(table: pd.DataFrame, key: str) -> bool:
    # Every run has the keys of the config.
    return "/" not in key or _measured(table, key)


def _measured(table: pd.DataFrame, key: str) -> bool:
    return key in table.columns and bool(table[key].notna().any())


def _is_log(table: pd.DataFrame, key: str) -> bool | None:
    """Return whether an axis is logarithmic: decades of a setting, or a curvature or sharpness that is positive."""
    if key in _DECADES:
        return True
    spans = key == _CURVATURE or key.startswith("sharpness/")
    return True if spans and bool((table[key].dropna().astype(float) > 0).all()) else None
