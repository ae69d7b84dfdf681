"""What the doctor found, by setting and by run, as tables."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from lbtrain.study.conditions import Condition, cells, failures, label
from lbtrain.study.diagnoses import LOCAL_OPTIMA, Diagnosed, diagnoses, in_order
from lbtrain.study.local_optima import local_optima
from lbtrain.study.once import once
from lbtrain.study.sheets import Entry, Sheet, number

TITLE = "Diagnosis"
RUNS_TITLE = "First problem of each run"
MAX_OPEN = 12  # rows of the table of runs that are shown unasked


@dataclass(frozen=True)
class Counted:
    """The problems of one setting.

    Args:
        condition: The setting.
        label: Its name.
        runs: Number of its runs that were diagnosed.
        healthy: Number of them without a problem.
        problems: Problem to number of runs that have it, of how many.
    """

    condition: Condition
    label: str
    runs: int
    healthy: int
    problems: dict[str, tuple[int, int]]


@once
def by_setting(table: pd.DataFrame) -> list[Counted]:
    """Count the problems of each setting.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        In the order of the settings, those without a diagnosed run left out. Local optima, which no run shows by
        itself, are counted where the seeds show them.
    """
    everything = [*cells(table), *failures(table)]
    grouped: dict[Condition, list[Diagnosed]] = {}
    for run in diagnoses(table).runs:
        grouped.setdefault(run.condition, []).append(run)
    optima = {found.condition: (found.behind, len(found.losses)) for found in local_optima(table)}
    result = []
    for key, runs in grouped.items():
        has = Counter(name for run in runs for name in {problem.name for problem in run.problems})
        problems = {name: (number, len(runs)) for name, number in has.items()}
        problems |= {LOCAL_OPTIMA: optima[key]} if key in optima else {}
        healthy = sum(not run.problems for run in runs)
        result.append(Counted(key, label(key, everything), len(runs), healthy, problems))
    return result


def diagnosis_sheets(table: pd.DataFrame) -> list[Sheet]:
    """Lay out the problems by setting, and the first problem of each run.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        Two tables; none where no run was diagnosed, or no run has a problem.
    """
    settings = by_setting(table)
    names = in_order({name for setting in settings for name in setting.problems})
    if not names:
        return []
    body = tuple(
        (
            Entry(setting.label),
            number(float(setting.runs), str(setting.runs)),
            number(float(setting.healthy), str(setting.healthy)),
            *(_of(setting.problems.get(name)) for name in names),
        )
        for setting in sorted(settings, key=lambda setting: not setting.problems)
    )
    counts = Sheet(TITLE, ("setting", "runs diagnosed", "without a problem", *names), body)
    sick = [run for run in diagnoses(table).runs if run.problems]
    return [counts, *([_runs_sheet(sick, {s.condition: s.label for s in settings})] if sick else [])]


def diagnosis_notes(table: pd.DataFrame) -> list[str]:
    """Explain the table of problems.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        A sentence, where there is such a table.
    """
    if not diagnosis_sheets(table):
        return []
    return [
        "In the table of problems, a cell says how many of the setting's diagnosed runs have the problem, or how many "
        "of its seeds stay behind in local optima; a run may have several. The first problem of a run is the most "
        "important one: causes come before what they lead to."
    ]


def _of(share: tuple[int, int] | None) -> Entry:
    return Entry("-") if share is None else Entry(f"{share[0]} of {share[1]}", share[0] / share[1])


def _runs_sheet(sick: Sequence[Diagnosed], labels: dict[Condition, str]) -> Sheet:
    seeds = len({str(run.run["seed"]) for run in sick}) > 1
    rows = []
    for run in sick:
        first, *others = run.problems
        since = number(None) if first.since is None else number(float(first.since), str(first.since))
        more = [name for name in dict.fromkeys(problem.name for problem in others) if name != first.name]
        remedy = ": ".join(part for part in (first.overrides, first.remedy) if part)
        rows.append((
            Entry(str(run.run["run"])),
            Entry(labels[run.condition]),
            *((Entry(str(run.run["seed"])),) if seeds else ()),
            Entry(first.name),
            Entry(first.evidence),
            since,
            Entry(remedy or "-"),
            Entry(", ".join(more) or "-"),
        ))
    header = ("run", "setting", *(("seed",) if seeds else ()), "problem", "evidence", "since (step)", "remedy", "also")
    return Sheet(RUNS_TITLE, header, tuple(rows), folded=len(rows) > MAX_OPEN, cards=True)
