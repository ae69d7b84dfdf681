"""The report of a sweep: one page for people, the same as text, the rows as CSV, the figures as PNG."""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2
import pandas as pd

from lbtrain.records import replace_file
from lbtrain.study.conditions import condition, varied
from lbtrain.study.figures import Picture, pictures
from lbtrain.study.load import ARGUMENT, CONFIG, load_sweep
from lbtrain.study.pages import Page, page
from lbtrain.study.settings import Row, extra_columns, rows

FIGURE_NAMES = (
    "lambda_max",
    "loss_fixed",
    "loss_scaled",
    "sharpness_keskar",
    "sharpness_sam",
    "time_ratio",
    "ranking",
)
_CSV_FIRST = ("run", "status", "outcome", "error", "optimizer", "rate", "batch", "lr", "method", "rho", "seed")
_CSV_LAST = ("overrides", "started", "duration_s", "git_commit")


@dataclass(frozen=True)
class Report:
    """What `write_report` has written.

    Args:
        html: The page.
        markdown: The same in text.
        csv: One row per run.
        figures: The images.
        table: The rows that all of it was made from.
        page: The text of it.
    """

    html: Path
    markdown: Path
    csv: Path
    figures: tuple[Path, ...]
    table: pd.DataFrame
    page: Page


def write_report(sweep_dir: str | Path | Sequence[str | Path], out: str | Path | None = None) -> Report:
    """Build the report of a sweep from the summaries on disk; at any time, as often as wanted.

    Args:
        sweep_dir: Folder of a sweep or of one run, or several of them.
        out: Where to write; the (first) folder itself when None.

    Returns:
        Paths and content of the report.

    Raises:
        NoRunsError: If a folder is not there or holds no run.
    """  # noqa: DOC502 - raised by load_sweep
    folders = [sweep_dir] if isinstance(sweep_dir, str | Path) else list(sweep_dir)
    table = load_sweep(folders)
    folder = Path(folders[0] if out is None else out)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    title = f"Comparison of {' and '.join(map(_folder_name, folders))}"
    content, drawn = page(table, title), pictures(table)
    report = Report(
        folder / "report.html",
        folder / "report.md",
        folder / "results.csv",
        tuple(folder / "figures" / f"{picture.name}.png" for picture in drawn),
        table,
        content,
    )
    for path, picture in zip(report.figures, drawn, strict=True):
        replace_file(path, picture.png)
    replace_file(report.csv, results(table).to_csv(index=False, lineterminator="\n").encode())
    replace_file(report.markdown, markdown(content, drawn).encode())
    replace_file(report.html, html(content, drawn).encode())
    # A figure of an earlier report that these runs have no data for would contradict the page.
    for name in set(FIGURE_NAMES) - {picture.name for picture in drawn}:
        (folder / "figures" / f"{name}.png").unlink(missing_ok=True)
    return report


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
    metrics = sorted(key for key in table.columns if not key.startswith((CONFIG, ARGUMENT)) and "/" in key)
    names = extra_columns(table)
    columns = [*_CSV_FIRST, *names, *metrics, *_CSV_LAST]
    return table.iloc[by_settings][columns].rename(columns=names)


def html(content: Page, drawn: Sequence[Picture]) -> str:
    """Write the page: one file that loads nothing.

    Args:
        content: What it says.
        drawn: Its figures.

    Returns:
        HTML.
    """
    source = resources.files("lbtrain.study").joinpath("report.html.j2").read_text(encoding="utf-8")
    # Overrides and errors are text from outside, never markup.
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    images = [{"alt": picture.alt, "data": base64.b64encode(picture.png).decode()} for picture in drawn]
    return environment.from_string(source).render(page=content, topics=topics(content), images=images)


def markdown(content: Page, drawn: Sequence[Picture]) -> str:
    """Write the report as text.

    Args:
        content: What it says.
        drawn: Its figures, linked below `figures/`.

    Returns:
        Markdown.
    """
    parts = [f"# {_plain(content.title)}", _plain(content.overview)]
    if content.findings:
        parts.append("## Findings")
    for topic, texts in topics(content):
        parts += [f"### {topic}", "\n".join(f"- {_plain(text)}" for text in texts)]
    if drawn:
        parts.append("## Figures")
        parts += [f"![{_plain(picture.alt)}](figures/{picture.name}.png)" for picture in drawn]
    if content.lost:
        parts += [
            "## Runs that diverged, failed or did not finish",
            _pipes(("run", "settings", "reason"), content.lost),
        ]
    if content.body:
        parts += ["## All settings", _pipes(content.header, content.body)]
    parts += ["## How to read this", "\n".join(f"- {_plain(note)}" for note in content.notes)]
    if content.made_with:
        parts.append(f"Made with {_plain(content.made_with)}.")
    return "\n\n".join(parts) + "\n"


def topics(content: Page) -> list[tuple[str, list[str]]]:
    """Group the findings under their headings.

    Args:
        content: The page.

    Returns:
        Topic and sentences, in order.
    """
    grouped: dict[str, list[str]] = {}
    for finding in content.findings:
        grouped.setdefault(finding.topic, []).append(finding.text)
    return list(grouped.items())


def _pipes(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines)


def _plain(text: str) -> str:
    # One line, and no character that Markdown would take for a cell, a tag, a link or emphasis.
    text = " ".join(text.split())
    return "".join(f"\\{c}" if c in "|<>[]*`" else c for c in text)


def _folder_name(path: str | Path) -> str:
    """Return the name of a folder, with the day before it where the name is a time of day, as Hydra makes them."""
    full = Path(path).resolve()
    return "/".join(full.parts[-2:]) if re.fullmatch(r"\d\d-\d\d-\d\d(-\d+)?", full.name) else full.name
