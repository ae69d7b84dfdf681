"""The runs of a sweep that share every setting but the seed."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import pandas as pd

from lbtrain.study.estimates import Estimate, mean_over_seeds, plain
from lbtrain.study.folders import natural
from lbtrain.study.load import ARGUMENT, CONFIG
from lbtrain.study.methods import Variant, as_number, is_number
from lbtrain.study.once import once
from lbtrain.study.settings import Row, method_options, other_keys, rows, short_names

MAX_NAMED = 6  # settings beside the axes; a name with more of them is not read


class Condition(NamedTuple):
    """Every setting of a run but its seed."""

    optimizer: str
    others: tuple[tuple[str, str], ...]
    rate: str
    batch: float | None
    sam: Variant

    def order(self) -> tuple[Any, ...]:
        """Give the key by which conditions are sorted: the fixed rate first, then small batches, then plain training.

        Returns:
            A tuple that compares with every other.
        """
        others = tuple((key, as_number(value), value) for key, value in self.others)
        return self.optimizer, others, self.rate != "fixed", self.rate, self.batch or 0.0, self.sam.order()


class Varied(NamedTuple):
    """What varies in a sweep beside its axes.

    Args:
        others: Config keys, as `other_keys` gives them.
        options: Method to its arguments, as `method_options` gives them.
    """

    others: list[str]
    options: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Cell:
    """The finished runs of one condition, the newest for each seed, and all that have none.

    Args:
        condition: Their settings.
        runs: Their rows, sorted by seed, then by name.
    """

    condition: Condition
    runs: tuple[Row, ...]

    @property
    def num_diverged(self) -> int:
        """Number of runs that finished without a minimum."""
        return sum(run["outcome"] == "diverged" for run in self.runs)

    @property
    def draws(self) -> dict[object, Row]:
        """Seed to run; runs without a seed are independent draws, numbered, so that any two settings can be paired."""
        unseeded = count(1)
        return {f"draw {next(unseeded)}" if run["seed"] is None else run["seed"]: run for run in self.runs}

    def values(self, metric: str) -> dict[object, float]:
        """Look up a metric of the runs that did not diverge.

        Args:
            metric: Key, such as "test/acc".

        Returns:
            Seed to value, as in `draws`; seeds without a finite value are left out.
        """
        found: dict[object, Any] = {seed: run.get(metric) for seed, run in self.draws.items() if run["outcome"] == "ok"}
        return {seed: float(value) for seed, value in found.items() if is_number(value)}

    def estimate(self, metric: str) -> Estimate | None:
        """Average a metric over the seeds that did not diverge.

        Args:
            metric: Key, such as "test/acc".

        Returns:
            The mean with its error bar, or None when no run has a value.
        """
        values = list(self.values(metric).values())
        return mean_over_seeds(values) if values else None


@once
def varied(table: pd.DataFrame) -> Varied:
    """Find what varies beside the axes.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        The keys by which `condition` names a run.
    """
    return Varied(other_keys(table), method_options(table))


def condition(row: Row, beside: Varied) -> Condition:
    """Read the condition of one run.

    Args:
        row: The run.
        beside: What varies in its table.

    Returns:
        The settings that name it.
    """
    names = short_names(beside.others)
    named = tuple((names[key], _text(key, row.get(CONFIG + key))) for key in beside.others)
    method = row["method"] or ""
    options = tuple((name, _text(name, row.get(ARGUMENT + name))) for name in beside.options.get(method, ()))
    variant = Variant(method, row["rho"] or 0.0, options)
    return Condition(row["optimizer"] or "", named, row["rate"] or "", row["batch"], variant)


def draw(row: Row) -> tuple[bool, Any]:
    """Tell what sets a run apart from the others of its setting.

    Args:
        row: The run.

    Returns:
        Whether it was seeded, with its seed; without one its name, for it is a draw of its own.
    """
    return (False, row["run"]) if row["seed"] is None else (True, row["seed"])


@once
def cells(table: pd.DataFrame) -> dict[Condition, Cell]:
    """Group the finished runs by everything but the seed; of two with the same seed the newer one counts.

    Runs whose seed is null have drawn their own: each counts.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        Condition to cell, in the order of `Condition.order`.
    """
    beside = varied(table)
    grouped: dict[Condition, dict[tuple[bool, Any], Row]] = {}
    for row in sorted(rows(table), key=lambda row: (str(row["started"]), str(row["run"]))):
        if row["status"] == "finished":
            grouped.setdefault(condition(row, beside), {})[draw(row)] = row
    ordered = sorted(grouped, key=Condition.order)
    return {key: Cell(key, tuple(run for _, run in sorted(grouped[key].items(), key=_by_seed))) for key in ordered}


@once
def failures(table: pd.DataFrame) -> Counter[Condition]:
    """Count the failed runs of each setting, those of a seed that a later run has finished left out.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        Condition to number; settings without a failed run are left out.
    """
    beside = varied(table)
    done = {(key, draw(run)) for key, cell in cells(table).items() for run in cell.runs}
    failed = [(condition(row, beside), draw(row)) for row in rows(table) if row["status"] == "failed"]
    return Counter(key for key, seed in failed if (key, seed) not in done)


def label(settings: Condition, of: Iterable[Condition]) -> str:
    """Name a condition by the settings that vary in its sweep.

    Args:
        settings: The condition to name.
        of: All conditions of the sweep.

    Returns:
        Such as "Adam, sqrt rate, batch 1024, SAM rho 0.05"; where one more key has a word of its own for each
        condition, that word with its key, such as "sick dead_relu".
    """
    everything = [settings, *of]
    named = {c.others for c in everything}
    words = not any(as_number(value) for others in named for _, value in others)
    if words and len(settings.others) == 1 < len(named) == len({*everything}):
        return " ".join(settings.others[0])
    parts = [settings.optimizer] if len({c.optimizer for c in everything}) > 1 else []
    parts += [f"{name} {value}" for name, value in settings.others[:MAX_NAMED]]
    if len(settings.others) > MAX_NAMED:
        parts.append(f"{len(settings.others) - MAX_NAMED} more settings")
    if len({c.rate for c in everything}) > 1:
        parts.append(f"{settings.rate} rate")
    if settings.batch is not None and len({c.batch for c in everything}) > 1:
        parts.append(f"batch {plain(settings.batch)}")
    if len({c.sam for c in everything}) > 1:
        parts.append(settings.sam.words)
    return ", ".join(parts) or settings.optimizer or "the only setting"


def _by_seed(item: tuple[tuple[bool, Any], Row]) -> tuple[Any, ...]:
    seeded, seed = item[0]
    number = seeded and is_number(seed)
    return not number, not seeded, float(seed) if number else 0.0, natural(str(seed))


def _text(key: str, value: object) -> str:
    if value is None:
        return "not set"
    if key.endswith("_target_"):
        return str(value).rpartition(".")[2]
    return f"{value:g}" if isinstance(value, float) else str(value)
