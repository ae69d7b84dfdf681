"""A table of a report: texts to read, numbers to sort by, and what it says in sentences."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from lbtrain.study.estimates import Estimate, digits


class Entry(NamedTuple):
    """One cell of a table.

    Args:
        text: What is read.
        key: The number by which the column is sorted; None for a word or a missing value.
        bar: The 95 % interval, shown smaller; empty without.
        strong: Whether the interval excludes zero.
    """

    text: str
    key: float | None = None
    bar: str = ""
    strong: bool = False

    @property
    def whole(self) -> str:
        """The text with its interval, for forms of the report that have one size of letters."""
        return (f"{self.text} ({self.bar})" if self.bar else self.text) + (" *" if self.strong else "")


@dataclass(frozen=True)
class Sheet:
    """A table with its heading.

    Args:
        title: Heading.
        header: Names of the columns, with units.
        body: Rows.
        about: Sentences that stand before it.
        marked: Rows to set off: those without a result.
        folded: Whether the page shows the rows only when asked to.
        cards: Whether a narrow page shows each row as a card, its cells below each other: of sentences.
    """

    title: str
    header: tuple[str, ...]
    body: tuple[tuple[Entry, ...], ...]
    about: tuple[str, ...] = ()
    marked: frozenset[int] = frozenset()
    folded: bool = False
    cards: bool = False

    @property
    def texts(self) -> tuple[tuple[str, ...], ...]:
        """The rows as text."""
        return tuple(tuple(entry.whole for entry in row) for row in self.body)

    def is_words(self, column: int) -> bool:
        """Tell whether a column holds words, which are read from the left.

        Args:
            column: Its place, from 0.

        Returns:
            Whether no cell of it is a number.
        """
        return all(row[column].key is None for row in self.body)


def number(value: float | None, text: str | None = None) -> Entry:
    """Make a cell of a number.

    Args:
        value: The number, None where there is none.
        text: How it is written, when not with three digits.

    Returns:
        The cell; "-" where there is none.
    """
    if value is None:
        return Entry("-")
    return Entry(digits(value) if text is None else text, value if math.isfinite(value) else None)


def estimated(estimate: Estimate | None, signed: bool = False) -> Entry:
    """Make a cell of a mean with its interval.

    Args:
        estimate: The mean, None where there is none.
        signed: Whether a positive mean carries its sign.

    Returns:
        The cell; "-" where there is none.
    """
    if estimate is None:
        return Entry("-")
    low, high = estimate.low, estimate.high
    if low is None or high is None or low == high:
        return Entry(digits(estimate.mean, signed), estimate.mean)
    return Entry(digits(estimate.mean, signed), estimate.mean, f"{digits(low, signed)} to {digits(high, signed)}")
