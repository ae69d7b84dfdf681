"""Words that the findings share."""

import pandas as pd

from lbtrain.study.compare import also_differs
from lbtrain.study.conditions import Cell
from lbtrain.study.estimates import Change, digits, interval, plain

NEARLY_ONE = 1.05  # a ratio closer to 1 than this is told as "stays": three digits of it would be noise


def moves(ratio: float) -> tuple[str, bool]:
    """Say how far a quantity moves.

    Args:
        ratio: After over before, positive.

    Returns:
        Such as "grows 18.3x", and whether the text speaks of the inverse ratio.
    """
    if 1 / NEARLY_ONE <= ratio <= NEARLY_ONE:
        return f"stays within 5 % ({digits(ratio)}x)", False
    return (f"shrinks {digits(1 / ratio)}x", True) if ratio < 1 else (f"grows {digits(ratio)}x", False)


def factors(moved: list[tuple[float | None, Change]]) -> str:
    """Write one ratio for each batch size, with error bars where there are seeds.

    Args:
        moved: Batch size and change; at least one.

    Returns:
        Such as "0.449 at batch 16 and 0.850 at batch 64".
    """
    parts = []
    for batch, change in moved:
        bar = interval(change.ratio, brief=True)
        parts.append(digits(change.ratio.mean) + (f" ({bar})" if bar else "") + batch_words(batch))
    seeds = max(change.ratio.n for _, change in moved)
    return joined(parts) + (f" (95 % intervals in brackets, {seeds} seeds)" if seeds > 1 else "")


def batch_words(batch: float | None) -> str:
    """Name a batch size after something that holds there.

    Args:
        batch: Global batch size, None when the runs name none.

    Returns:
        Such as " at batch 16".
    """
    return "" if batch is None else f" at batch {plain(batch)}"


def level(cell: Cell, metric: str) -> str:
    """Write the mean of a metric.

    Args:
        cell: Runs of one setting.
        metric: Key.

    Returns:
        The number, or "unknown".
    """
    estimate = cell.estimate(metric)
    return digits(estimate.mean) if estimate else "unknown"


def also(table: pd.DataFrame, before: Cell, after: Cell, axis: str) -> str:
    """Warn in brackets when a pair differs in more than its axis.

    Args:
        table: The table of both.
        before: Cell on the one side.
        after: Cell on the other.
        axis: "batch", "rate" or "rho".

    Returns:
        The warning, or an empty text.
    """
    text = also_differs(table, before, after, axis)
    return f" (not the only difference: {text})" if text else ""


def after_mark(text: str, mark: str = ", ") -> str:
    """Put a mark before a text that may be empty.

    Args:
        text: The text.
        mark: What stands before it.

    Returns:
        Both, or an empty text.
    """
    return mark + text if text else ""


def count(number: int, word: str) -> str:
    """Write a number of things.

    Args:
        number: How many.
        word: The thing, in the singular.

    Returns:
        Such as "1 run" or "32 runs".
    """
    return f"{number} {word}" + ("" if number == 1 else "s")


def joined(parts: list[str]) -> str:
    """Join parts as a sentence does.

    Args:
        parts: At least one.

    Returns:
        "a, b and c".
    """
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
