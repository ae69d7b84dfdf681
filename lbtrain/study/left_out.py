"""What a comparison leaves out, and why: nothing that stood in a given folder is passed over in silence."""

from dataclasses import dataclass

import pandas as pd

from lbtrain.study.conditions import condition, draw, varied
from lbtrain.study.folders import natural
from lbtrain.study.settings import rows

REPEATED = "a newer run has the same settings and seed"
REPEATED_ELSEWHERE = "a newer run of another sweep has the same settings and seed; --by-sweep compares the sweeps"
MAX_NAMED = 6  # names in one entry; the number says how many there are


@dataclass(frozen=True)
class LeftOut:
    """Folders or runs that the comparison does not use, for one reason.

    Args:
        names: Their names, as the tables have them.
        reason: Why, in words that follow "left out:".
    """

    names: tuple[str, ...]
    reason: str

    @property
    def words(self) -> str:
        """The entry as one line, such as "figs, old and 3 more: no summary.json and no .hydra/: no run"."""
        more = len(self.names) - MAX_NAMED
        shown = ", ".join(self.names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
        return f"{shown}: {self.reason}"


def grouped(found: list[tuple[str, str]]) -> tuple[LeftOut, ...]:
    """Put those of one reason together.

    Args:
        found: Name and reason of each.

    Returns:
        One entry per reason, in the order in which the reasons came.
    """
    reasons: dict[str, list[str]] = {}
    for name, reason in found:
        reasons.setdefault(reason, []).append(name)
    return tuple(LeftOut(tuple(names), reason) for reason, names in reasons.items())


def repeated(table: pd.DataFrame) -> tuple[LeftOut, ...]:
    """List the finished runs that a newer one with the same settings and seed replaces; without a seed none does.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        One entry for those within a sweep, and one for those of different sweeps.
    """
    beside = varied(table)
    newest: dict[object, str] = {}
    found: list[tuple[str, str]] = []
    for row in sorted(rows(table), key=lambda row: (str(row["started"]), str(row["run"])), reverse=True):
        key = (condition(row, beside), draw(row))
        if row["status"] == "finished" and key in newest:
            other = newest[key] != row["sweep"]
            found.append((str(row["run"]), REPEATED_ELSEWHERE if other else REPEATED))
        elif row["status"] == "finished":
            newest[key] = row["sweep"]
    return grouped(sorted(found, key=lambda item: (item[1], natural(item[0]))))
