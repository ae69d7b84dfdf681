"""Which settings follow from the axes of a study, and which are settings of their own.

A random search draws each radius once, so that every other setting is a function of the radius. What a command line
gave in several values therefore counts, unless it is an axis or its copy, or follows from fewer axes.
"""

import re
from collections.abc import Sequence
from typing import Any

from lbtrain.study.methods import is_number

_AXES = ("optimizer", "rate", "batch", "method", "rho", "seed")
_NUMBERS = ("batch", "rho", "seed")
_WORDS = ("optimizer", "rate", "method")
_NAME = re.compile(r"(?:^|\s)[+~]*([A-Za-z_][\w.]*)=")
_SAME = 9  # digits to which a multiple of an axis is constant


def given(recorded: Sequence[dict[str, Any]]) -> set[str]:
    """List the keys that command lines gave.

    Args:
        recorded: Rows of the table of runs.

    Returns:
        Config keys, such as "optimizer.lr"; names of groups, such as "optimizer", among them.
    """
    return {key for row in recorded for key in _NAME.findall(row["overrides"] or "")}


def settled(recorded: Sequence[dict[str, Any]], values: Sequence[Any], was_given: bool) -> bool:
    """Tell whether a setting follows from the axes.

    Args:
        recorded: Rows of the table of runs.
        values: The setting in each of them.
        was_given: Whether a command line gave it.

    Returns:
        Whether runs that share the axes share the value. Of a setting that was given, this must hold of optimizer,
        rule of the rate and method alone, or together with the batch size where several runs share all of them;
        otherwise it must be a multiple of batch size, radius or seed.
    """
    if not _follows(recorded, values, _AXES):
        return False
    if not was_given or len(set(map(repr, values))) < 2 or _follows(recorded, values, _WORDS):
        return True
    coarse = (*_WORDS, "batch")
    repeat = len({_place(row, coarse) for row in recorded}) < len(recorded)
    return (repeat and _follows(recorded, values, coarse)) or any(_is_copy(recorded, values, name) for name in _NUMBERS)


def _place(row: dict[str, Any], axes: Sequence[str]) -> tuple[Any, ...]:
    return tuple(row[name] for name in axes)


def _follows(recorded: Sequence[dict[str, Any]], values: Sequence[Any], axes: Sequence[str]) -> bool:
    found: dict[tuple[Any, ...], set[str]] = {}
    for row, value in zip(recorded, values, strict=True):
        found.setdefault(_place(row, axes), set()).add(repr(value))
    return all(len(different) == 1 for different in found.values())


def _is_copy(recorded: Sequence[dict[str, Any]], values: Sequence[Any], axis: str) -> bool:
    # The batch of one device is a fraction of the global one; without a method a radius stands idle.
    pairs = [(row[axis], value) for row, value in zip(recorded, values, strict=True) if row[axis] and value is not None]
    known = [(a, v) for a, v in pairs if is_number(a) and is_number(v)]
    return len(known) == len(pairs) > 0 and len({f"{v / a:.{_SAME}g}" for a, v in known}) == 1
