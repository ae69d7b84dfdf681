"""Runs at several learning rates: the settings that differ in nothing but batch size, rate and seed."""

from dataclasses import dataclass

import pandas as pd

from lbtrain.study.conditions import Cell, Condition, cells
from lbtrain.study.families import ranked
from lbtrain.study.load import CONFIG
from lbtrain.study.methods import is_number
from lbtrain.study.settings import Row, other_keys, rows, short_names

_MANY = 6  # more panels than this are not looked at; as many as there are families
_NAMES = ("lr", "learning_rate", "base_lr")
_SAME = 6  # significant digits: 0.1 and 0.025 * 4 are one rate


@dataclass(frozen=True)
class RateGroup:
    """Cells that share all but batch size and learning rate.

    Args:
        name: Words for what they share, such as "SGD momentum 0.9, SAM 0.05".
        cells: Batch size in samples and learning rate as used (scaled) to cell; small batches and rates first.
    """

    name: str
    cells: dict[tuple[float, float], Cell]

    @property
    def batches(self) -> list[float]:
        """Global batch sizes, samples, smallest first."""
        return sorted({batch for batch, _ in self.cells})

    def at(self, batch: float) -> dict[float, Cell]:
        """Take the cells of one batch size.

        Args:
            batch: As in `batches`.

        Returns:
            Rate to cell, lowest rate first.
        """
        return {rate: cell for (size, rate), cell in self.cells.items() if size == batch}


def rate_groups(table: pd.DataFrame) -> list[RateGroup]:
    """Split the finished runs by everything but batch size, learning rate and seed.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        At most 6 groups, in order of their settings; of more, those of the best by the objective.
    """
    everything = cells(table)
    mine = rate_settings(table)
    grouped: dict[Condition, dict[tuple[float, float], Cell]] = {}
    for key, cell in everything.items():
        rate = cell.runs[0]["lr"]
        if key.batch is not None and rate is not None:
            others = tuple(pair for pair in key.others if pair[0] not in mine)
            shared = key._replace(others=others, batch=None)
            grouped.setdefault(shared, {})[key.batch, float(f"{rate:.{_SAME}g}")] = cell
    groups = {key: RateGroup(_name(key, list(grouped)), dict(sorted(grouped[key].items()))) for key in grouped}
    if len(groups) > _MANY:
        places = {id(cell): place for place, cell in enumerate(ranked(table))}
        leading = {k: min(places.get(id(c), len(places)) for c in g.cells.values()) for k, g in groups.items()}
        groups = {key: groups[key] for key in sorted(leading, key=lambda k: leading[k])[:_MANY]}
    return [groups[key] for key in sorted(groups, key=Condition.order)]


def rate_settings(table: pd.DataFrame) -> set[str]:
    """Find the settings beside the axes that only say at which rate a run trained.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        Their names as in `Condition.others`: those called `lr` or the like, and numbers that are one-to-one with the
        base rate for each optimizer.
    """
    recorded = [row for row in rows(table) if row["status"] in {"finished", "failed"}]
    names = short_names(other_keys(table))
    return {
        name for key, name in names.items() if key.rpartition(".")[2] in _NAMES or _follows_rate(recorded, CONFIG + key)
    }


def _follows_rate(recorded: list[Row], column: str) -> bool:
    pairs: dict[str, set[tuple[str, str]]] = {}
    for row in recorded:
        base = row.get("lr/base") or row["lr"]
        value = row.get(column)
        if not is_number(value):
            return False  # a word names more than a rate
        pairs.setdefault(row["optimizer"] or "", set()).add((repr(base), repr(value)))
    one_to_one = all(len(found) == len({a for a, _ in found}) == len({b for _, b in found}) for found in pairs.values())
    return one_to_one and any(len(found) > 1 for found in pairs.values())


def _name(key: Condition, everything: list[Condition]) -> str:
    parts = [key.optimizer or "this model", *(" ".join(pair) for pair in key.others)]
    if len({other.rate for other in everything}) > 1:
        parts.append(f"{key.rate} rate")
    if len({other.sam for other in everything}) > 1:
        parts.append(key.sam.legend)
    return ", ".join(parts)
