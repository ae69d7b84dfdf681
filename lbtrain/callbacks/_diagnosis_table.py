"""A diagnosis on the screen: one line for a healthy run, a table for another."""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lbtrain._lightning import rank_zero_only
from lbtrain.callbacks._diagnosis_result import Diagnosis, Names
from lbtrain.functional.diagnosis import Finding

# Of a problem's remedies; a choice: the file has all of them, and the best stand first.
MOST_REMEDIES = 2


@rank_zero_only
def show(diagnosis: Diagnosis, names: Names, console: Console | None = None) -> None:
    """Print a diagnosis, on rank zero.

    Args:
        diagnosis: What was found.
        names: Of the run's config.
        console: Where to print; standard output when None.
    """
    console = console or Console(file=sys.stdout)
    console.print(Text(diagnosis.sentence()), soft_wrap=True)
    if diagnosis.findings:
        console.print(table(diagnosis, names))
        for line in [*_copied(numbered(diagnosis, names)), *_left_out(diagnosis)]:
            console.print(Text(line), soft_wrap=True)  # never broken: half of an override is a valid one, too


def numbered(diagnosis: Diagnosis, names: Names) -> list[str]:
    """Return the overrides of the remedies that the table shows, each once, in its order.

    Args:
        diagnosis: With its problems.
        names: Of the run's config.

    Returns:
        What belongs to one remedy in one text.
    """
    remedies = [remedy for finding in diagnosis.findings for remedy in finding.remedies[:MOST_REMEDIES]]
    return list(dict.fromkeys(text for remedy in remedies if (text := " ".join(names.overrides(remedy)))))


def table(diagnosis: Diagnosis, names: Names) -> Table:
    """Lay the problems out, most important first.

    Args:
        diagnosis: With its problems.
        names: Of the run's config.

    Returns:
        Columns problem, evidence, since and remedy, over the whole width.
    """
    made = Table(header_style="bold", show_lines=True, expand=True)
    # Long words are folded where a line ends, so that nothing is cut off at 80 columns.
    made.add_column("problem", style="bold", min_width=13, max_width=22)
    made.add_column("evidence", ratio=3, overflow="fold")
    made.add_column("since", no_wrap=True)
    made.add_column("remedy", ratio=2, overflow="fold", min_width=26)
    known = numbered(diagnosis, names)
    for finding in diagnosis.findings:
        made.add_row(Text(finding.problem), Text(finding.evidence), _since(finding), _remedies(finding, names, known))
    return made


def _since(finding: Finding) -> str:
    if finding.since is None:
        return "-"
    return f"step {finding.since}" if finding.since else "start"


def _remedies(finding: Finding, names: Names, known: Sequence[str]) -> Text:
    """Return the best remedies, each with the number of its overrides below the table."""
    made = Text()
    for i, remedy in enumerate(finding.remedies[:MOST_REMEDIES]):
        again = "" if not i else "\n" if remedy.words.startswith("or ") else "\nor: "
        made.append(again).append(names.words(remedy))
        text = " ".join(names.overrides(remedy))
        if text:
            made.append(f" [{known.index(text) + 1}]", style="bold")
    return made


def _copied(overrides: Sequence[str]) -> list[str]:
    """Return the overrides, one line for each remedy, to be copied."""
    lines = [f"  [{i}] {text}" for i, text in enumerate(overrides, 1)]
    return ["remedies as overrides:", *lines] if lines else []


def _left_out(diagnosis: Diagnosis) -> list[str]:
    return [f"left out: {checks}: {reason}" for checks, reason in diagnosis.reasons()]
