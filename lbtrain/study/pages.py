"""The parts of a report as text: what ran, the table of settings, the runs without a result."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lbtrain.study.attention import outcome_counts
from lbtrain.study.conditions import cells, condition, varied
from lbtrain.study.correlation import correlation_sheet
from lbtrain.study.diagnosis_sheets import diagnosis_notes, diagnosis_sheets
from lbtrain.study.estimates import plain
from lbtrain.study.families import MAX_FAMILIES, MAX_VARIANTS, families
from lbtrain.study.findings import LAST_TOPIC, Finding, by_topic
from lbtrain.study.left_out import LeftOut, grouped, repeated
from lbtrain.study.methods import Variant
from lbtrain.study.more_findings import more_findings
from lbtrain.study.paired import paired_sheet
from lbtrain.study.phrases import count, joined
from lbtrain.study.settings import rows, short_names
from lbtrain.study.sheets import Sheet
from lbtrain.study.tables import lost_runs, settings_sheet

MAX_VARYING = 10  # settings that the first sentence names


@dataclass(frozen=True)
class Page:
    """What both forms of the report say.

    Args:
        title: One line.
        overview: What was run.
        findings: What was found, by topic.
        sheets: Tables of what follows from the settings: problems, differences from a baseline, rank correlations.
        settings: One row per setting.
        lost: Run, settings and reason of every run without a result.
        left_out: Folders that hold no run, and runs that a newer one replaces.
        notes: How to read the numbers.
        made_with: Versions and commits of the runs.
    """

    title: str
    overview: str
    findings: tuple[Finding, ...]
    sheets: tuple[Sheet, ...]
    settings: Sheet
    lost: tuple[tuple[str, str, str], ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    made_with: str


def page(
    table: pd.DataFrame,
    title: str,
    others: Sequence[tuple[str, str]] = (),
    baseline: str | None = None,
    folders: Sequence[Path] = (),
) -> Page:
    """Write down what a table of runs shows.

    Args:
        table: As `load_sweep` gives it.
        title: One line.
        others: Name and reason of each folder that holds no run.
        baseline: The setting that others are compared with, in words; None for the plainest.
        folders: Folders of the sweeps, for what stands beside their runs.

    Returns:
        The parts of the report; but for the run names, the same whatever the order of the rows.

    Raises:
        BaselineError: If no setting is the baseline that was asked for.
    """  # noqa: DOC502 - raised by paired_sheet
    sheets = (*diagnosis_sheets(table), paired_sheet(table, baseline), correlation_sheet(table))
    found = [*by_topic(table), *more_findings(table, folders)]
    return Page(
        title,
        overview(table),
        tuple(sorted(found, key=lambda finding: finding.topic == LAST_TOPIC)),
        tuple(sheet for sheet in sheets if sheet is not None),
        settings_sheet(table),
        lost_runs(table),
        (*grouped(list(others)), *repeated(table)),
        notes(table),
        _made_with(table),
    )


def _made_with(table: pd.DataFrame) -> str:
    commits = sorted({str(row["git_commit"]) for row in rows(table) if row["git_commit"]})
    made = sorted({str(row["versions"]) for row in rows(table) if row["versions"]})
    return "; ".join([*made, *(f"commit {commit}" for commit in commits)])


def overview(table: pd.DataFrame) -> str:
    """Say what was run and what varies.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        One or two sentences.
    """
    beside = varied(table)
    conditions = [condition(row, beside) for row in rows(table) if row["status"] in {"finished", "failed"}]
    axes = {
        "optimizer": sorted({c.optimizer for c in conditions}),
        "learning rate": sorted({c.rate for c in conditions}, key=lambda rate: (rate != "fixed", rate)),
        "batch size": [plain(batch) for batch in sorted({c.batch for c in conditions if c.batch is not None})],
        **_methods({c.sam for c in conditions}),
    }
    for i, name in enumerate(short_names(beside.others).values()):
        axes[name] = sorted({c.others[i][1] for c in conditions}, key=_numbers_first)
    seeds = {str(row["seed"]) for row in rows(table) if row["seed"] is not None}
    vary = [f"{name} ({_few(values)})" for name, values in axes.items() if len(values) > 1]
    vary += [f"seed ({_few(sorted(seeds, key=_numbers_first))})"] if len(seeds) > 1 else []
    if len(vary) > MAX_VARYING:
        vary = [*vary[:MAX_VARYING], count(len(vary) - MAX_VARYING, "more setting")]
    text = f"{count(len(table), 'run')}: {outcome_counts(table)}."
    return text + (f" What varies: {'; '.join(vary)}." if vary else "")


def notes(table: pd.DataFrame) -> tuple[str, ...]:
    """Explain how the numbers were made.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        Sentences.
    """
    seeds = max((len(cell.runs) for cell in cells(table).values()), default=0)
    groups = {(c.optimizer, c.others) for c in cells(table)}
    variants = {c.sam for c in cells(table)}
    found = [
        "One seed per setting: differences carry no error bar. Sweep seed=0,1,2 to get one."
        if seeds <= 1
        else "Means over seeds, with the 95 % interval of the mean (Student's t) in brackets and as error bars. Equal "
        "values of all seeds have no interval. Differences and ratios are paired by seed; ratios are geometric means.",
        "lambda_max is the largest eigenvalue of the Hessian of the mean training loss. Stability is 1 at the edge: "
        "lr * lambda_max / 2 for plain SGD, and its analogue for other optimizers.",
        "Keskar's sharpness is 100 * (highest loss in a small box - loss) / (1 + loss); SAM sharpness is the highest "
        "rise of the loss within a ball of radius rho.",
        "Batch size is global: per device x devices x accumulation. Loss is per sample. The fixed rate stays as "
        "tuned, a scaled one follows the batch.",
    ]
    if any(len(cell.runs) in {2, 3} for cell in cells(table).values()):
        found.append(
            "An interval over 2 or 3 seeds may reach beyond what is possible, such as an accuracy above 1: Student's t "
            "multiplies the standard error by 12.7 or 4.3 there, and knows of no bounds. More seeds narrow it."
        )
    if len({variant.method for variant in variants if variant.rho}) > 1:
        found.append(
            "Rho has the unit of its method: parameter norm for most, relative change of the weights for ASAM, change "
            "of a single weight for p=inf. Equal values of two methods are not equal steps."
        )
    if any(variant.method and not variant.rho for variant in variants):
        found.append(
            "A method with rho 0 trains as without it, at its cost: it stands in for runs without where there are none."
        )
    if len(variants) > MAX_VARIANTS:
        kept = sorted({variant for family in families(table) for variant in family.variants}, key=Variant.order)
        found.append(
            f"Of {len(variants)} methods with their settings, the sentences and figures treat the best of each method: "
            f"{'; '.join(variant.words for variant in kept)}."
        )
    if len(groups) > MAX_FAMILIES:
        shown = joined([family.name for family in families(table)]) if families(table) else "none"
        found.append(
            f"Of {len(groups)} combinations, the sentences and figures treat the best of each optimizer: {shown}."
        )
    return (*found, *diagnosis_notes(table))


def _methods(variants: set[Variant]) -> dict[str, list[str]]:
    # With one method its radius is the axis, under its name; the arguments that vary are axes of their own.
    ordered = sorted(variants, key=Variant.order)
    methods = list(dict.fromkeys(variant.method for variant in ordered if variant.method))
    if len(methods) > 1:
        axes = {"method": [variant._replace(options=()).words for variant in ordered]}
    else:
        axes = {"".join(methods): [f"rho {v.rho:g}" if v.method else "without" for v in ordered]}
    for variant in ordered:
        for name, value in variant.options:
            axes.setdefault(f"{variant.method} {name}", []).append(value)
    return {name: list(dict.fromkeys(values)) for name, values in axes.items()}


def _few(values: list[str]) -> str:
    return ", ".join(values) if len(values) <= MAX_VARIANTS else f"{len(values)} values, {values[0]} to {values[-1]}"


def _numbers_first(value: str) -> tuple[bool, float, str]:
    try:
        return False, float(value), value
    except ValueError:
        return True, 0.0, value
