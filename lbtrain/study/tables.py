"""The tables of a report: the settings with their numbers, and the runs without a result."""

import pandas as pd

from lbtrain.study.axes import METRICS
from lbtrain.study.compare import run_label
from lbtrain.study.conditions import Cell, Condition, cells, condition, failures, varied
from lbtrain.study.estimates import digits, plain
from lbtrain.study.families import objective
from lbtrain.study.load import ARGUMENT
from lbtrain.study.methods import as_number, is_number
from lbtrain.study.settings import Row, extra_columns, other_keys, rows, short_names
from lbtrain.study.sheets import Entry, Sheet, estimated, number

# Shown where any run has them.
_SHOWN = (
    "train/loss",
    "test/loss",
    "val/acc",
    "test/acc",
    "gap/loss",
    "gap/acc",
    "hessian/lambda_max",
    "hessian/stability",
    "sharpness/keskar",
    "sharpness/sam",
    "time/step_ms",
    "time/epoch_s",
    "time/fit_s",
)
# Shown where they tell settings apart, while there is room.
_ALSO = (
    "target/reached",
    "target/steps",
    "target/s",
    "hessian/trace",
    "hessian/lambda_max_split",
    "hessian/lambda_min",
    "ggn/lambda_max",
    "hessian/frobenius",
    "noise/b_simple",
    "sharpness/adaptive",
    "sharpness/average",
)
MAX_METRICS = 16  # columns of numbers; more are not read, and all of them stand in settings.csv


def settings_sheet(table: pd.DataFrame) -> Sheet:
    """Lay out one row per setting: mean with its 95 % interval over seeds, and how many runs were lost.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        The table, in the order of the settings.
    """
    everything, failed = cells(table), failures(table)
    lost = {
        "diverged": {key: cell.num_diverged for key, cell in everything.items()},
        "failed": dict(failed),
    }
    lost = {name: numbers for name, numbers in lost.items() if any(numbers.values())}
    metrics = shown_metrics(table)
    header, settings = setting_columns(table)
    body = []
    for key in sorted({*everything, *failed}, key=Condition.order):
        cell = everything.get(key, Cell(key, ()))
        body.append((
            *settings[key],
            number(float(len(cell.runs)), str(len(cell.runs))),
            *(number(float(of.get(key, 0)), str(of.get(key, 0))) for of in lost.values()),
            *(_entry(cell, metric) for metric in metrics),
            Entry(", ".join(sorted(str(run["run"]) for run in cell.runs)) or "-"),
        ))
    columns = (*header, "seeds", *lost, *map(headed, metrics), "runs")
    ok = columns.index("seeds")
    marked = frozenset(
        i for i, row in enumerate(body) if any((entry.key or 0) > 0 for entry in row[ok + 1 : ok + 1 + len(lost)])
    )
    return Sheet("All settings", columns, tuple(body), (), marked)


def setting_columns(table: pd.DataFrame) -> tuple[tuple[str, ...], dict[Condition, tuple[Entry, ...]]]:
    """Lay out what names the settings: all axes, and what varies beside them.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        Names of the columns, and the cells of each setting that finished or failed.
    """
    known = [row for row in rows(table) if row["status"] in {"finished", "failed"}]
    beside = varied(table)
    first: dict[Condition, Row] = {}
    for row in known:
        first.setdefault(condition(row, beside), row)
    extra = extra_columns(table)
    options = {key.removeprefix(ARGUMENT): name for key, name in extra.items() if key.startswith(ARGUMENT)}
    by_method = ("method", "SAM rho") if any(key.sam.method for key in first) else ()
    names = (*short_names(other_keys(table)).values(), "rate", "batch size", "learning rate", *by_method)
    return ("optimizer", *names, *options.values()), {
        key: (
            Entry(key.optimizer or "-"),
            *(_setting(value) for _, value in key.others),
            Entry(key.rate),
            number(key.batch, None if key.batch is None else plain(key.batch)),
            number(row["lr"], None if row["lr"] is None else plain(row["lr"])),
            *((Entry(key.sam.method or "none"), _rho(key)) if by_method else ()),
            *(_setting(dict(key.sam.options).get(name, "-")) for name in options),
        )
        for key, row in first.items()
    }


def shown_metrics(table: pd.DataFrame) -> list[str]:
    """Choose the metrics that the table of settings shows.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        Keys: the ones that every study has, then those that tell its settings apart; at most `MAX_METRICS`.
    """
    everything = cells(table).values()
    goal = objective(table)
    wanted = dict.fromkeys([*_SHOWN, goal] if goal else _SHOWN)
    shown = [m for m in wanted if any(cell.estimate(m) or _lost_value(cell, m).text for cell in everything)]
    for metric in _ALSO:
        means = {estimate.mean for cell in everything if (estimate := cell.estimate(metric)) is not None}
        if len(means) > 1 and len(shown) < MAX_METRICS:
            shown.append(metric)
    return shown


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


def headed(metric: str) -> str:
    """Write the head of a metric's column.

    Args:
        metric: Key.

    Returns:
        Words and unit; the key itself when it is not one of lbtrain's.
    """
    return f"{METRICS[metric][0]} ({METRICS[metric][1]})" if metric in METRICS else metric


def _entry(cell: Cell, metric: str) -> Entry:
    estimate = cell.estimate(metric)
    if estimate is not None:
        return estimated(estimate)
    lost = _lost_value(cell, metric)
    return lost if lost.text else Entry("-")


def _lost_value(cell: Cell, metric: str) -> Entry:
    # The losses and times of a setting that diverged; its curvature would be that of no minimum.
    if cell.num_diverged < len(cell.runs) or not cell.runs or metric.startswith(("hessian/", "ggn/", "sharpness/")):
        return Entry("")
    value = cell.runs[0].get(metric)
    return Entry(_shown(value, missing=""), float(value) if is_number(value) else None)


def _rho(key: Condition) -> Entry:
    return Entry(f"{key.sam.rho:g}", key.sam.rho) if key.sam.method else Entry("-")


def _setting(value: str) -> Entry:
    return Entry(value, as_number(value) if as_number(value) or value in {"0", "0.0"} else None)


def _shown(value: object, missing: str = "nan") -> str:
    return digits(float(value)) if isinstance(value, int | float) else missing
