"""The rows of the comparison for a terminal: one per run, or one per setting where there are seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lbtrain.study.baseline import axes_of
from lbtrain.study.conditions import Cell, Condition, cells, failures
from lbtrain.study.csv_files import results
from lbtrain.study.estimates import digits, plain
from lbtrain.study.families import objective
from lbtrain.study.settings import extra_columns, rows

# Column of the table -> its metric; short, so that a row fits the width. The last is the first to be left out.
_METRICS = {
    "test\nacc": "test/acc",
    "lambda\nmax": "hessian/lambda_max",
    "train\nloss": "train/loss",
    "test\nloss": "test/loss",
    "val\nacc": "val/acc",
    "ms per\nstep": "time/step_ms",
    "keskar\n%": "sharpness/keskar",
    "stability": "hessian/stability",
}
_MOST_METRICS = 7
_MOST_OTHERS = 3
_WORDS = {"optimizer", "method", "sweep", "run"}


@dataclass(frozen=True)
class Column:
    """One column of the terminal's table.

    Args:
        title: Its head.
        rank: The higher, the sooner it is left out where there is no room; never with 0.
        text: Whether it is read from the left.
        most: Number of letters after which a cell is cut off; None for none.
    """

    title: str
    rank: int = 0
    text: bool = False
    most: int | None = None


@dataclass(frozen=True)
class Lines:
    """The rows.

    Args:
        columns: The columns.
        body: Texts of each row, and whether it has lost a run.
    """

    columns: tuple[Column, ...]
    body: tuple[tuple[tuple[str, ...], bool], ...]


def by_run(table: pd.DataFrame) -> Lines:
    """Lay out one row per run: the settings that vary, and the key metrics.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        The rows, sorted by settings.
    """
    shown = results(table)
    names = list(extra_columns(table).values())[:_MOST_OTHERS]
    axes = [a for a in ("optimizer", "rate", "batch", *_method_axes(shown), "seed") if _varies(shown, a)]
    methods = [method for method in shown["method"].dropna().unique() if method]
    metrics = _chosen([key for key in shown.columns if shown[key].notna().any()], table)
    heads = [f"{methods[0]}\nrho" if a == "rho" and len(methods) == 1 else a for a in ["run", *axes]]
    columns = (*map(_axis, heads), *map(_other, names), *_measures([title for title, _ in metrics]), Column("outcome"))
    body = []
    for row in rows(shown):
        texts = [row["run"], *(_setting(row[name]) for name in [*axes, *names])]
        texts += [*(_measured(row[key]) for _, key in metrics), row["outcome"]]
        body.append((tuple(texts), row["outcome"] != "ok"))
    return Lines(columns, tuple(body))


def _chosen(known: Sequence[str], table: pd.DataFrame) -> list[tuple[str, str]]:
    """Return head and key of the metrics to show: the objective first, whatever it is."""
    goal = objective(table)
    own = {goal.replace("/", "\n", 1): goal} if goal and goal not in _METRICS.values() else {}
    return [(title, key) for title, key in {**own, **_METRICS}.items() if key in known][:_MOST_METRICS]


def by_setting(table: pd.DataFrame) -> Lines:
    """Lay out one row per setting: means over seeds, each with half the width of its 95 % interval.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        The rows, in the order of the settings.
    """
    everything, failed = cells(table), failures(table)
    found = [everything.get(key, Cell(key, ())) for key in sorted({*everything, *failed}, key=Condition.order)]
    named = [axes_of(cell.condition) for cell in found]
    axes = [name for name in dict.fromkeys(n for axis in named for n in axis) if len({a.get(name) for a in named}) > 1]
    methods = {key.sam.method for key in everything if key.sam.method}
    if len(methods) == 1 and len({(a["method"], a["rho"]) for a in named}) == len({a["rho"] for a in named}):
        axes = [name for name in axes if name != "method"]
    own = {"optimizer", "rate", "batch", "method", "rho"}
    others = [name for name in axes if name not in own]
    axes = [name for name in axes if name in own] + others[:_MOST_OTHERS]
    metrics = _chosen([key for key in table.columns if any(cell.estimate(key) for cell in found)], table)
    heads = [f"{min(methods)}\nrho" if name == "rho" and len(methods) == 1 else name for name in axes]
    columns = (
        *(_other(head) if name in others else _axis(head) for name, head in zip(axes, heads, strict=True)),
        Column("seeds"),
        *_measures([f"{title}\n95 %" for title, _ in metrics]),
        Column("lost", text=True),
    )
    body = []
    for cell, axis in zip(found, named, strict=True):
        lost = _lost(cell, failed[cell.condition])
        texts = [*(_setting(axis.get(name)) for name in axes), str(len(cell.runs))]
        body.append(((*texts, *(_estimated(cell, key) for _, key in metrics), lost), bool(lost)))
    return Lines(columns, tuple(body))


def _axis(name: str) -> Column:
    return Column(name, text=name in _WORDS, most=15)


def _other(name: str) -> Column:
    # The first metric goes after the settings that are no axis.
    return Column(name, rank=1, most=15)


def _measures(titles: list[str]) -> list[Column]:
    return [Column(title, rank=2 + i) for i, title in enumerate(titles)]


def _method_axes(shown: pd.DataFrame) -> tuple[str, ...]:
    # Where there is one method, its radius, 0 without, tells who trains with it.
    named = {(row["method"] or "", row["rho"] or 0.0) for row in rows(shown)}
    clear = len({method for method, _ in named if method}) <= 1 and len({rho for _, rho in named}) == len(named)
    return ("rho",) if clear else ("method", "rho")


def _varies(shown: pd.DataFrame, axis: str) -> bool:
    return bool(shown[axis].astype(str).nunique() > 1)


def _lost(cell: Cell, failed: int) -> str:
    parts = [f"{cell.num_diverged} diverged"] if cell.num_diverged else []
    return ", ".join([*parts, *([f"{failed} failed"] if failed else [])])


def _estimated(cell: Cell, metric: str) -> str:
    estimate = cell.estimate(metric)
    if estimate is None:
        return "-"
    if estimate.high is None:
        return digits(estimate.mean)
    half = estimate.high - estimate.mean
    return f"{digits(estimate.mean)} \N{PLUS-MINUS SIGN}{digits(half, significant=2)}"


def _setting(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return plain(value)
    text = str(value or "-").replace("momentum", "mom.")
    return text.rpartition(".")[2] if text.count(".") > 1 and " " not in text else text  # of a class, its last name


def _measured(value: object) -> str:
    return digits(float(value)) if isinstance(value, int | float) else str(value or "-")
