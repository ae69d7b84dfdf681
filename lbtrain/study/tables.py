"""The tables of a report, as text: the settings with their numbers, and the runs without a result."""

import pandas as pd

from lbtrain.study.axes import METRICS
from lbtrain.study.compare import run_label
from lbtrain.study.conditions import Cell, cells
from lbtrain.study.estimates import digits, plain
from lbtrain.study.families import objective
from lbtrain.study.load import ARGUMENT
from lbtrain.study.settings import extra_columns, other_keys, rows, short_names

_SHOWN = (
    "train/loss",
    "test/loss",
    "val/acc",
    "test/acc",
    "hessian/lambda_max",
    "hessian/stability",
    "sharpness/keskar",
    "sharpness/sam",
    "time/step_ms",
    "time/fit_s",
)


def settings_table(table: pd.DataFrame) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Lay out one row per setting: mean, and the standard deviation where there are seeds.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        Column names with units, and rows of text.
    """
    everything = cells(table)
    names = list(short_names(other_keys(table)).values())
    extra = extra_columns(table)
    options = {key.removeprefix(ARGUMENT): name for key, name in extra.items() if key.startswith(ARGUMENT)}
    goal = objective(table)
    wanted = dict.fromkeys([*_SHOWN, goal] if goal else _SHOWN)
    metrics = [m for m in wanted if any(cell.estimate(m) or _lost_value(cell, m) for cell in everything.values())]
    columns = [
        "optimizer",
        *names,
        "rate",
        "batch size",
        "learning rate",
        "method",
        "SAM rho",
        *options.values(),
        "seeds",
        *map(_headed, metrics),
        "runs",
    ]
    body = []
    for key, cell in everything.items():
        rate = cell.runs[0]["lr"]
        body.append((
            key.optimizer or "-",
            *(value for _, value in key.others),
            key.rate,
            "-" if key.batch is None else plain(key.batch),
            "-" if rate is None else plain(rate),
            key.sam.method or "none",
            f"{key.sam.rho:g}" if key.sam.method else "-",
            *(dict(key.sam.options).get(name, "-") for name in options),
            str(len(cell.runs)) + (f", {cell.num_diverged} diverged" if cell.num_diverged else ""),
            *(_value(cell, metric) for metric in metrics),
            ", ".join(sorted(str(run["run"]) for run in cell.runs)),
        ))
    return tuple(columns), tuple(body)


def lost_runs(table: pd.DataFrame) -> tuple[tuple[str, str, str], ...]:
    """List the runs without a result.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        Run, its settings (or overrides), and the reason, sorted by settings.
    """
    lost = []
    for row in rows(table):
        if row["outcome"] != "ok":
            reason = (
                "diverged, or learned nothing: training and test loss"
                if row["outcome"] == "diverged"
                else f"{row['status']}: {row['error']}"
            )
            if row["outcome"] == "diverged":
                reason += f" {_shown(row.get('train/loss'))} / {_shown(row.get('test/loss'))}"
            name = run_label(table, row) if row["status"] in {"finished", "failed"} else row["overrides"] or "unknown"
            lost.append((str(row["run"]), name, reason))
    return tuple(sorted(lost, key=lambda item: (item[1], item[2], item[0])))


def _headed(metric: str) -> str:
    return f"{METRICS[metric][0]} ({METRICS[metric][1]})" if metric in METRICS else metric


def _value(cell: Cell, metric: str) -> str:
    estimate = cell.estimate(metric)
    if estimate is None:
        return _lost_value(cell, metric) or "-"
    return digits(estimate.mean) + (f" \N{PLUS-MINUS SIGN} {digits(estimate.std)}" if estimate.std is not None else "")


def _lost_value(cell: Cell, metric: str) -> str:
    # The losses and times of a setting that diverged; its curvature would be that of no minimum.
    if cell.num_diverged < len(cell.runs) or metric.startswith(("hessian/", "sharpness/")):
        return ""
    return _shown(cell.runs[0].get(metric), missing="")


def _shown(value: object, missing: str = "nan") -> str:
    return digits(float(value)) if isinstance(value, int | float) else missing
