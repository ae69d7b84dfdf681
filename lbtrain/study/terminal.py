"""The comparison in the terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lbtrain.study.conditions import cells
from lbtrain.study.lines import Lines, by_run, by_setting
from lbtrain.study.report import Report, topics

WIDTH = 100
MAX_ROWS = 100  # the rest stands in the CSV files
MAX_SAID = 4  # sentences of one table: what it compares, and those on the first metrics
MAX_LOST = 20  # runs without a result
MAX_LEFT_OUT = 8  # entries of what was left out; the page has all of them


def print_report(report: Report, console: Console | None = None) -> None:
    """Print the comparison table, the findings, the runs without a result, and where the page is.

    Args:
        report: What `write_report` returned.
        console: Where to print; standard output when None.
    """
    console = console or Console()
    if not console.is_terminal or console.width > WIDTH:
        console = Console(file=console.file, width=WIDTH, force_terminal=console.is_terminal)
    console.print(Text(report.page.overview))
    seeds = any(len(cell.runs) > 1 for cell in cells(report.table).values())
    lines = by_setting(report.table) if seeds else by_run(report.table)
    console.print(comparison(console, lines))
    if len(lines.body) > MAX_ROWS:
        console.print(Text(f"{len(lines.body) - MAX_ROWS} more in {report.settings_csv if seeds else report.csv}"))
    for topic, texts in topics(report.page):
        _items(console, topic, texts)
    for sheet in report.page.sheets:
        _items(console, sheet.title, _cut(sheet.about, MAX_SAID))
    _items(
        console,
        "Runs without a result",
        _cut([f"{run} ({settings}): {reason}" for run, settings, reason in report.page.lost], MAX_LOST),
    )
    _items(console, "Left out", _cut([entry.words for entry in report.page.left_out], MAX_LEFT_OUT))
    console.print(Text(f"\nReport: {report.html}"), soft_wrap=True)


def comparison(console: Console, lines: Lines) -> Table:
    """Lay out the rows with as many columns as the width has room for.

    Args:
        console: Where they are to be printed.
        lines: What they say.

    Returns:
        A table that fits; the columns that are asked for least are left out first.
    """
    columns = list(range(len(lines.columns)))
    droppable = [i for i, column in enumerate(lines.columns) if column.rank]
    while True:
        table = _table(lines, columns)
        unbounded = console.options.update(width=1000)
        if not droppable or console.measure(table, options=unbounded).maximum <= console.width:
            return table
        least = max(droppable, key=lambda i: lines.columns[i].rank)
        droppable.remove(least)
        columns.remove(least)


def _table(lines: Lines, columns: list[int]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for i in columns:
        column = lines.columns[i]
        table.add_column(column.title, justify="left" if column.text else "right", no_wrap=True, max_width=column.most)
    for row, lost in lines.body[:MAX_ROWS]:
        table.add_row(*(Text(row[i]) for i in columns), style="yellow" if lost else None)
    return table


def _cut(texts: Sequence[str], most: int) -> list[str]:
    more = [f"{len(texts) - most} more in the report"] if len(texts) > most else []
    return [*texts[:most], *more]


def _items(console: Console, heading: str, texts: Sequence[str]) -> None:
    grid = Table.grid(padding=(0, 1))
    for text in texts:
        grid.add_row(Text(" -"), Text(text))
    if grid.row_count:
        console.print(Text(heading, style="bold"))
        console.print(grid)
