"""The numbers of a report as CSV: one row per run, and one row per setting."""

import pandas as pd

from lbtrain.study.conditions import Cell, Condition, cells, condition, failures, varied
from lbtrain.study.load import ARGUMENT, BY_SWEEP, CONFIG
from lbtrain.study.settings import Row, extra_columns, rows
from lbtrain.study.tables import setting_columns

_FIRST = ("run", "status", "outcome", "error", "optimizer", "rate", "batch", "lr", "method", "rho", "seed")
_LAST = ("overrides", "started", "duration_s", "git_commit")


def results(table: pd.DataFrame) -> pd.DataFrame:
    """Lay out the rows for `results.csv`: settings, then metrics at full precision; sorted by settings.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        One row per run.
    """
    beside = varied(table)

    def order(row: Row) -> tuple[object, ...]:
        known = row["status"] in {"finished", "failed"}
        return (not known, *condition(row, beside).order(), str(row["seed"]), str(row["run"]))

    runs = rows(table)
    by_settings = sorted(range(len(table)), key=lambda i: order(runs[i]))
    names = extra_columns(table) | ({BY_SWEEP: "sweep"} if BY_SWEEP in table else {})
    several = [] if BY_SWEEP in table or table["sweep"].nunique(dropna=False) < 2 else ["sweep"]
    columns = [*_FIRST, *several, *names, *metrics_of(table), *_LAST]
    return table.iloc[by_settings][columns].rename(columns=names)


def settings_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Lay out every number of every setting, for `settings.csv`.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        One row per setting: its settings, runs that finished, diverged and failed, then for each metric the mean over
        the seeds that did not diverge, both ends of its 95 % interval, and the number of seeds.
    """
    everything, failed = cells(table), failures(table)
    header, settings = setting_columns(table)
    metrics = [key for key in metrics_of(table) if any(cell.estimate(key) for cell in everything.values())]
    found = []
    for key in sorted({*everything, *failed}, key=Condition.order):
        cell = everything.get(key, Cell(key, ()))
        line: dict[str, object] = {
            name: entry.text if entry.key is None else entry.key
            for name, entry in zip(header, settings[key], strict=True)
        }
        line |= {"finished": len(cell.runs), "diverged": cell.num_diverged, "failed": failed[key]}
        for metric in metrics:
            estimate = cell.estimate(metric)
            ends = (estimate.mean, estimate.low, estimate.high, estimate.n) if estimate else (None, None, None, 0)
            line |= zip((metric, f"{metric}_low", f"{metric}_high", f"{metric}_n"), ends, strict=True)
        found.append(line)
    return pd.DataFrame(found)


def metrics_of(table: pd.DataFrame) -> list[str]:
    """List the metrics of a table.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        Keys, sorted.
    """
    return sorted(key for key in table.columns if "/" in key and not key.startswith((CONFIG, ARGUMENT)))
