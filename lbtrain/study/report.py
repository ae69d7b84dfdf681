"""The report of a sweep: one page for people, the same as text, the numbers as CSV, the figures as PNG and SVG."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lbtrain.records import replace_file
from lbtrain.study.csv_files import results, settings_rows
from lbtrain.study.figures import Picture, pictures
from lbtrain.study.forms import html, markdown
from lbtrain.study.forms import topics as topics  # also of a report that stands elsewhere
from lbtrain.study.load import read_sweeps
from lbtrain.study.pages import Page, page

_FIGURE = re.compile(r"\(figures/([\w.-]+)\.png\)")  # as `markdown` links them


@dataclass(frozen=True)
class Report:
    """What `write_report` has written.

    Args:
        html: The page.
        markdown: The same in text.
        csv: One row per run.
        settings_csv: One row per setting.
        figures: The images, PNG and SVG.
        table: The rows that all of it was made from.
        page: The text of it.
    """

    html: Path
    markdown: Path
    csv: Path
    settings_csv: Path
    figures: tuple[Path, ...]
    table: pd.DataFrame
    page: Page


def write_report(
    sweep_dir: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    baseline: str | None = None,
    by_sweep: bool = False,
) -> Report:
    """Build the report of a sweep from the summaries on disk; at any time, as often as wanted.

    Args:
        sweep_dir: Folder of a sweep or of one run, or several of them.
        out: Where to write; the (first) folder itself when None.
        baseline: The setting that others are compared with, such as "batch=16"; None for the plainest of each family.
        by_sweep: Whether the sweep that a run is of is one of its settings.

    Returns:
        Paths and content of the report.

    Raises:
        NoRunsError: If a folder is not there, or none holds a run.
        BaselineError: If no setting is the baseline that was asked for; nothing is written then.
    """  # noqa: DOC502 - raised by read_sweeps and by page
    folders = [Path(sweep_dir)] if isinstance(sweep_dir, str | Path) else [Path(path) for path in sweep_dir]
    reading = read_sweeps(folders, by_sweep)
    table = reading.table
    title = f"Comparison of {' and '.join(dict.fromkeys(map(_folder_name, folders)))}"
    content, drawn = page(table, title, reading.others, baseline, folders), pictures(table, folders)
    folder = Path(folders[0] if out is None else out)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    report = Report(
        folder / "report.html",
        folder / "report.md",
        folder / "results.csv",
        folder / "settings.csv",
        tuple(folder / "figures" / f"{picture.name}.{kind}" for picture in drawn for kind in ("png", "svg")),
        table,
        content,
    )
    _write(report, drawn)
    return report


def _write(report: Report, drawn: Sequence[Picture]) -> None:
    old = set(_FIGURE.findall(report.markdown.read_text(errors="replace"))) if report.markdown.is_file() else set()
    images = [image for picture in drawn for image in (picture.png, picture.svg)]
    for path, image in zip(report.figures, images, strict=True):
        replace_file(path, image)
    for path, rows in ((report.csv, results(report.table)), (report.settings_csv, settings_rows(report.table))):
        replace_file(path, rows.to_csv(index=False, lineterminator="\n").encode())
    replace_file(report.markdown, markdown(report.page, drawn).encode())
    replace_file(report.html, html(report.page, drawn).encode())
    # A figure of an earlier report that these runs have no data for would contradict the page.
    for name in old - {picture.name for picture in drawn}:
        for kind in ("png", "svg"):
            (report.html.parent / "figures" / f"{name}.{kind}").unlink(missing_ok=True)


def _folder_name(path: Path) -> str:
    """Return the name of a folder, with the day before it where the name is a time of day, as Hydra makes them."""
    full = path.resolve()
    return "/".join(full.parts[-2:]) if re.fullmatch(r"\d\d-\d\d-\d\d(-\d+)?", full.name) else full.name
