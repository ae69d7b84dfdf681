"""What the doctor found in each run of a sweep: `diagnosis.json` in its folder."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lbtrain.study.conditions import Condition, condition, draw, varied
from lbtrain.study.folders import natural
from lbtrain.study.methods import is_number
from lbtrain.study.once import once
from lbtrain.study.settings import Row, rows

DIAGNOSIS_NAME = "diagnosis.json"
_FORMAT = 1
LOCAL_OPTIMA = "local optima"
# Causes before what they lead to, as functional/diagnosis.py has them; but this room imports no torch.
PROBLEMS = (
    "invalid data",
    "incorrect gradients",
    "summed loss",
    "ill-conditioned inputs",
    "symmetries",
    "saturated units",
    "dead units",
    "instability",
    "oscillations",
    "fluctuations",
    "decay too early",
    "decay too late",
    "plateau",
    "saddle",
    "vanishing gradients",
    "exploding gradients",
    "slow progress",
    "ill-conditioning",
    "label imbalance",
    LOCAL_OPTIMA,
)


@dataclass(frozen=True)
class Problem:
    """One finding of a run.

    Args:
        name: Such as "dead units".
        evidence: What shows it, in words with numbers.
        since: Optimizer steps done when it began; None where that is not known.
        remedy: The first remedy in words; empty without one.
        overrides: The same as overrides of the run's config, such as "optimizer.lr=0.02"; empty where none says it.
    """

    name: str
    evidence: str
    since: int | None
    remedy: str
    overrides: str

    @property
    def helps(self) -> str:
        """The remedy as short as it can be said."""
        return self.overrides or self.remedy


@dataclass(frozen=True)
class Diagnosed:
    """A run with its diagnosis.

    Args:
        run: Its row.
        condition: Its settings.
        problems: The most important first; none for a healthy run.
    """

    run: Row
    condition: Condition
    problems: tuple[Problem, ...]

    def problem(self, name: str) -> Problem | None:
        """Look up a problem.

        Args:
            name: Such as "dead units".

        Returns:
            The first finding of that name, or None.
        """
        return next((problem for problem in self.problems if problem.name == name), None)


@dataclass(frozen=True)
class Diagnoses:
    """All that the doctor left in a sweep.

    Args:
        runs: Runs of which something was examined, sorted by settings and seed.
        broken: Run and reason of each file that is no diagnosis.
    """

    runs: tuple[Diagnosed, ...]
    broken: tuple[tuple[str, str], ...]


@once
def diagnoses(table: pd.DataFrame) -> Diagnoses:
    """Read the diagnosis of every run that finished or failed; of two with the same settings and seed the newer counts.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        What was found; runs without a file, or of which nothing was examined before they ended, are left out.
    """
    if "folder" not in table:
        return Diagnoses((), ())
    runs, broken = [], []
    for key, row in _counted(table):
        try:
            found = read_diagnosis(row["folder"])
        except (OSError, ValueError) as error:
            broken.append((str(row["run"]), str(error)))
            continue
        if found is not None:
            runs.append(Diagnosed(row, key, found))
    return Diagnoses(tuple(runs), tuple(broken))


def read_diagnosis(folder: str | Path) -> tuple[Problem, ...] | None:
    """Read what the doctor found in one run.

    Args:
        folder: Folder of the run.

    Returns:
        Its problems, the most important first; None where there is no file, or where nothing was examined.

    Raises:
        ValueError: If the file is there and holds no diagnosis that this version reads.
    """
    try:
        data = (Path(folder) / DIAGNOSIS_NAME).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fields = json.loads(data.decode())
    except ValueError as error:
        raise ValueError(f"it is not JSON ({error})") from error
    if not isinstance(fields, dict) or fields.get("format") != _FORMAT:
        got = fields.get("format") if isinstance(fields, dict) else f"a {type(fields).__name__}"
        raise ValueError(f"it must be a JSON object of format {_FORMAT}, got {got!r}")
    try:
        problems = tuple(_problem(entry) for entry in fields["findings"])
        return problems if problems or len(fields["checked"]) else None
    except KeyError as error:
        raise ValueError(f"it lacks {error}") from error
    except (TypeError, AttributeError) as error:
        raise ValueError(f"it does not hold what a diagnosis holds ({error})") from error


def in_order(names: set[str]) -> list[str]:
    """Sort problems.

    Args:
        names: Of problems, also such as this version does not know.

    Returns:
        Causes before what they lead to, then those that are not known.
    """
    known = [name for name in PROBLEMS if name in names]
    return [*known, *sorted(names - set(known))]


def _problem(entry: Mapping[str, Any]) -> Problem:
    since = entry.get("since")
    if since is not None and not is_number(since):
        raise TypeError(f"since must be a number of steps, got {since!r}")
    remedy = next(iter(entry["remedies"]), {"words": ""})
    overrides = " ".join(_text(word) for word in remedy.get("overrides") or ())
    began = None if since is None else int(since)
    return Problem(_text(entry["problem"]), _text(entry["evidence"]), began, _text(remedy["words"]), overrides)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"words are expected, got {value!r}")
    return value


def _counted(table: pd.DataFrame) -> list[tuple[Condition, Row]]:
    """Return settings and row of the runs that count: of one seed the newest that finished, else that failed."""
    beside = varied(table)
    newest: dict[tuple[Condition, tuple[bool, Any]], Row] = {}
    known = [row for row in rows(table) if row["status"] in {"finished", "failed"}]
    for row in sorted(known, key=lambda row: (row["status"] == "finished", str(row["started"]), str(row["run"]))):
        newest[condition(row, beside), draw(row)] = row
    found = [(key, row) for (key, _), row in newest.items()]
    return sorted(found, key=lambda pair: (pair[0].order(), *(natural(str(pair[1][name])) for name in ("seed", "run"))))
