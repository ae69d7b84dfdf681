"""The runs of a sweep that share every setting but the seed."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from lbtrain.study.estimates import Estimate, mean_over_seeds, plain
from lbtrain.study.load import CONFIG
from lbtrain.study.settings import Row, other_keys, rows, short_names

MAX_NAMED = 6  # settings beside the axes; a name with more of them is not read


class Condition(NamedTuple):
    """Every setting of a run but its seed."""

    optimizer: str
    others: tuple[tuple[str, str], ...]
    rate: str
    batch: float | None
    rho: float

    def order(self) -> tuple[Any, ...]:
        """Give the key by which conditions are sorted: the fixed rate first, then small batches, then without SAM.

        Returns:
            A tuple that compares with every other.
        """
        others = tuple((key, _natural_number(value), value) for key, value in self.others)
        return self.optimizer, others, self.rate != "fixed", self.rate, self.batch or 0.0, self.rho


@dataclass(frozen=True)
class Cell:
    """The finished runs of one condition, the newest for each seed.

    Args:
        condition: Their settings.
        runs: Their rows, sorted by seed.
    """

    condition: Condition
    runs: tuple[Row, ...]

    @property
    def num_diverged(self) -> int:
        """Number of runs that finished without a minimum."""
        return sum(run["outcome"] == "diverged" for run in self.runs)

    def values(self, metric: str) -> dict[object, float]:
        """Look up a metric of the runs that did not diverge.

        Args:
            metric: Key, such as "test/acc".

        Returns:
            Seed to value; seeds without a finite value are left out.
        """
        found: dict[object, Any] = {run["seed"]: run.get(metric) for run in self.runs if run["outcome"] == "ok"}
        return {seed: float(value) for seed, value in found.items() if _is_number(value)}

    def estimate(self, metric: str) -> Estimate | None:
        """Average a metric over the seeds that did not diverge.

        Args:
            metric: Key, such as "test/acc".

        Returns:
            The mean with its error bar, or None when no run has a value.
        """
        values = list(self.values(metric).values())
        return mean_over_seeds(values) if values else None


def condition(row: Row, others: Sequence[str]) -> Condition:
    """Read the condition of one run.

    Args:
        row: The run.
        others: Keys that `other_keys` found in its table.

    Returns:
        The settings that name it.
    """
    names = short_names(others)
    named = tuple((names[key], _text(key, row.get(CONFIG + key))) for key in others)
    return Condition(row["optimizer"] or "", named, row["rate"] or "", row["batch"], row["rho"] or 0.0)


def cells(table: pd.DataFrame) -> dict[Condition, Cell]:
    """Group the finished runs by everything but the seed; of two with the same seed the newer one counts.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        Condition to cell, in the order of `Condition.order`.
    """
    others = other_keys(table)
    grouped: dict[Condition, dict[object, Row]] = {}
    for row in sorted(rows(table), key=lambda row: (str(row["started"]), str(row["run"]))):
        if row["status"] == "finished":
            grouped.setdefault(condition(row, others), {})[row["seed"]] = row
    ordered = sorted(grouped, key=Condition.order)
    return {key: Cell(key, tuple(run for _, run in sorted(grouped[key].items(), key=_by_seed))) for key in ordered}


def label(settings: Condition, of: Iterable[Condition]) -> str:
    """Name a condition by the settings that vary in its sweep.

    Args:
        settings: The condition to name.
        of: All conditions of the sweep.

    Returns:
        Such as "Adam, sqrt rate, batch 1024, SAM rho 0.05".
    """
    everything = [settings, *of]
    parts = [settings.optimizer] if len({c.optimizer for c in everything}) > 1 else []
    parts += [f"{name} {value}" for name, value in settings.others[:MAX_NAMED]]
    if len(settings.others) > MAX_NAMED:
        parts.append(f"{len(settings.others) - MAX_NAMED} more settings")
    if len({c.rate for c in everything}) > 1:
        parts.append(f"{settings.rate} rate")
    if settings.batch is not None and len({c.batch for c in everything}) > 1:
        parts.append(f"batch {plain(settings.batch)}")
    if len({c.rho for c in everything}) > 1:
        parts.append(f"SAM rho {settings.rho:g}" if settings.rho else "without SAM")
    return ", ".join(parts) or settings.optimizer or "the only setting"


def _by_seed(item: tuple[Any, Row]) -> tuple[bool, float, str]:
    seed = item[0]
    return not _is_number(seed), float(seed) if _is_number(seed) else 0.0, str(seed)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _natural_number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return 0.0


def _text(key: str, value: object) -> str:
    if value is None:
        return "not set"
    if key.endswith("_target_"):
        return str(value).rpartition(".")[2]
    return f"{value:g}" if isinstance(value, float) else str(value)
