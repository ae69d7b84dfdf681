"""The comparison in the terminal."""

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lbtrain.study.estimates import digits, plain
from lbtrain.study.report import Report, results, topics
from lbtrain.study.settings import extra_columns, rows

WIDTH = 100
MAX_ROWS = 100  # the rest stands in results.csv
# Column of the table -> its metric; short, so that a row fits the width. The last is the first to be left out.
_METRICS = {
    "test\nacc": "test/acc",
    "lambda\nmax": "hessian/lambda_max",
    "train\nloss": "train/loss",
    "test\nloss": "test/loss",
    "ms per\nstep": "time/step_ms",
    "keskar\n%": "sharpness/keskar",
    "stability": "hessian/stability",
}


def print_report(report: Report, console: Console | None = None) -> None:
    """Print the comparison table, the findings, the runs without a result, and where the page is.

    Args:
        report: What `write_report` returned.
        console: Where to print; standard output when None.
    """
    console = console or Console()
    if not console.is_terminal or console.width > WIDTH:
        console = Console(file=console.file, width=WIDTH, force_terminal=console.is_terminal)
    shown = results(report.table)
    console.print(Text(report.page.overview))
    console.print(comparison(shown.head(MAX_ROWS), list(extra_columns(report.table).values())))
    if len(shown) > MAX_ROWS:
        console.print(Text(f"{len(shown) - MAX_ROWS} more in {report.csv}"))
    for topic, texts in topics(report.page):
        console.print(Text(topic, style="bold"))
        for text in texts:
            _item(console, text)
    if report.page.lost:
        console.print(Text("Runs without a result", style="bold"))
        for run, settings, reason in report.page.lost:
            _item(console, f"{run} ({settings}): {reason}")
    console.print(Text(f"\nReport: {report.html}"), soft_wrap=True)


def comparison(shown: pd.DataFrame, others: list[str]) -> Table:
    """Lay out one row per run: the settings that vary, and the key metrics.

    Args:
        shown: As `results` gives it.
        others: Columns that vary beside the axes of the study.

    Returns:
        A table for at most 100 columns.
    """
    names = others[:3]
    axes = [a for a in ("optimizer", "rate", "batch", *_method_axes(shown), "seed") if _varies(shown, a)]
    methods = [method for method in shown["method"].dropna().unique() if method]
    metrics = {name: key for name, key in _METRICS.items() if key in shown.columns and shown[key].notna().any()}
    # What is left out is the least asked for, when the settings need the room.
    while metrics and 2 * len(names) + len(axes) + ("method" in axes) + len(metrics) > 10:
        metrics.popitem()
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 0))
    for name in ["run", *axes, *names]:
        title = f"{methods[0]}\nrho" if name == "rho" and len(methods) == 1 else name
        text = name in {"optimizer", "method"}
        table.add_column(title, justify="left" if text else "right", no_wrap=True, max_width=15)
    for name in [*metrics, "outcome"]:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows(shown):
        cells = [row["run"], *(_setting(row[name]) for name in [*axes, *names])]
        cells += [*(_measured(row[key]) for key in metrics.values()), row["outcome"]]
        table.add_row(*map(Text, cells), style=None if row["outcome"] == "ok" else "yellow")
    return table


def _method_axes(shown: pd.DataFrame) -> tuple[str, ...]:
    # Where there is one method, its radius, 0 without, tells who trains with it.
    named = {(row["method"] or "", row["rho"] or 0.0) for row in rows(shown)}
    clear = len({method for method, _ in named if method}) <= 1 and len({rho for _, rho in named}) == len(named)
    return ("rho",) if clear else ("method", "rho")


def _varies(shown: pd.DataFrame, axis: str) -> bool:
    return bool(shown[axis].astype(str).nunique() > 1)


def _item(console: Console, text: str) -> None:
    grid = Table.grid(padding=(0, 1))
    grid.add_row(Text(" -"), Text(text))
    console.print(grid)


def _setting(value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return plain(value)
    text = str(value or "-").replace("momentum", "mom.")
    return text.rpartition(".")[2] if text.count(".") > 1 and " " not in text else text  # of a class, its last name


def _measured(value: object) -> str:
    return digits(float(value)) if isinstance(value, int | float) else str(value or "-")
