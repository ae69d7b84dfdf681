"""What is read off a table is read once: a report asks the same of it from many places."""

import weakref
from collections.abc import Callable
from functools import wraps
from typing import TypeVar

import pandas as pd

T = TypeVar("T")


def once(read: Callable[[pd.DataFrame], T]) -> Callable[[pd.DataFrame], T]:
    """Keep what a function of a table returns, as long as the table lives and has the same rows and columns.

    Who changes a value in a table that was read already works on a copy of it.

    Args:
        read: A function of one table, whose result nobody changes.

    Returns:
        The function, which gives the same object when asked again.
    """
    known: dict[int, tuple[weakref.ref[pd.DataFrame], tuple[int, ...], T]] = {}

    @wraps(read)
    def remembered(table: pd.DataFrame) -> T:
        place = id(table)
        if place in known:
            seen, shape, result = known[place]
            if seen() is table and shape == table.shape:
                return result
        result = read(table)
        # Another table may get the place of one that is gone, so the entry leaves with it.
        known[place] = weakref.ref(table, lambda _: known.pop(place, None)), table.shape, result
        return result

    return remembered
