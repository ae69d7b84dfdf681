"""Training curves of a few settings, and which of them coincide."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pandas as pd

from lbtrain.study.axes import bounds
from lbtrain.study.conditions import Cell, Condition, cells
from lbtrain.study.estimates import Estimate, digits, mean_over_seeds, plain
from lbtrain.study.histories import by_epoch, history
from lbtrain.study.ranges import BANDS_CUT, Range, value_range
from lbtrain.study.rates import rate_settings

MAX_SETTINGS = 12  # more curves than this in a figure are not told apart
METRICS = ("val/loss", "val/acc")  # means whatever the reduction of the training loss
COINCIDE = 0.01  # largest difference, relative to the values, of curves that are told as one: under a line's width


@dataclass(frozen=True)
class Curve:
    """One setting's metric by epoch.

    Args:
        label: Words for the setting, without the batch size.
        seeds: Seed to epoch to value; values that are not finite are kept.
    """

    label: str
    seeds: dict[object, dict[int, float]]

    @property
    def points(self) -> dict[int, Estimate]:
        """Mean over the seeds at each epoch that all of them have reached with a finite value."""
        shared = set.intersection(*(set(values) for values in self.seeds.values()))
        found = {epoch: [values[epoch] for values in self.seeds.values()] for epoch in sorted(shared)}
        return {epoch: mean_over_seeds(values) for epoch, values in found.items() if all(map(math.isfinite, values))}


@dataclass(frozen=True)
class CurvePanel:
    """The curves of one batch size.

    Args:
        batch: Global batch size, samples; None where the runs name none.
        metric: A key of `METRICS`.
        curves: One for each setting.
    """

    batch: float | None
    metric: str
    curves: tuple[Curve, ...]


@dataclass(frozen=True)
class Likeness:
    """How far two curves lie apart.

    Args:
        batch: Of both, samples.
        labels: Their settings.
        difference: Largest |a - b| / max(|a|, |b|) over epochs and shared seeds; 0 for the same numbers, infinite where
            one of them is not finite.
        spreads: The same difference over the largest standard deviation of the seeds; None with one seed.
    """

    batch: float | None
    labels: tuple[str, str]
    difference: float
    spreads: float | None


def curve_panels(table: pd.DataFrame) -> list[CurvePanel]:
    """Collect the curves where few enough settings ran.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        One panel for each batch size; none with more than 12 settings, fewer than two, or without histories of two
        epochs.
    """
    everything = cells(table)
    if "folder" not in table or not 2 <= len(everything) <= MAX_SETTINGS:
        return []
    names = _names(table, list(everything))
    logs = {key: _logs(cell) for key, cell in everything.items()}
    for metric in METRICS:
        curves = {key: _curve(names[key], logs[key], metric) for key in everything}
        drawn = {key: curve for key, curve in curves.items() if curve and len(curve.points) > 1}
        if len(drawn) > 1:
            batches = sorted({key.batch for key in drawn}, key=lambda batch: batch or 0.0)
            return [CurvePanel(b, metric, tuple(c for k, c in drawn.items() if k.batch == b)) for b in batches]
    return []


def likenesses(panels: Sequence[CurvePanel]) -> list[Likeness]:
    """Compare the curves of each panel pair by pair.

    Args:
        panels: As `curve_panels` gives them.

    Returns:
        One for each pair that shares a seed and an epoch.
    """
    found = []
    for panel in panels:
        for one, other in combinations(panel.curves, 2):
            apart = _apart(one, other)
            if apart is not None:
                spread = max(_spread(one), _spread(other))
                found.append(Likeness(panel.batch, (one.label, other.label), apart, apart / spread if spread else None))
    return found


def alike(pairs: Sequence[Likeness]) -> list[list[str]]:
    """Put curves that coincide together.

    Args:
        pairs: Of one batch size, as `likenesses` gives them.

    Returns:
        Groups of labels, in order; a curve that coincides with none is a group of its own.
    """
    groups: list[list[str]] = []
    close = {frozenset(pair.labels) for pair in pairs if pair.difference <= COINCIDE}
    for label in dict.fromkeys(label for pair in pairs for label in pair.labels):
        home = next((group for group in groups if all(frozenset((label, one)) in close for one in group)), None)
        if home is None:
            groups.append([label])
        else:
            home.append(label)
    return groups


def curves_range(panels: Sequence[CurvePanel]) -> Range:
    """Choose the vertical axis, which all panels share.

    Args:
        panels: At least one; all of one metric.

    Returns:
        Its ends: the means first, then the bands as far as they leave the means legible.
    """
    return value_range(_estimates(panels), room=1.3, bounds=bounds(panels[0].metric))


def curves_alt(title: str, panels: Sequence[CurvePanel]) -> str:
    """Put the figure into words.

    Args:
        title: Headline of the figure.
        panels: At least one.

    Returns:
        First and last value of each curve.
    """
    parts = []
    for panel in panels:
        where = "" if panel.batch is None else f"Batch {plain(panel.batch)}, "
        for curve in panel.curves:
            epochs = list(curve.points)
            first, last = (digits(curve.points[epoch].mean) for epoch in (epochs[0], epochs[-1]))
            text = f"{where}{curve.label}: {first} after epoch {epochs[0]}, {last} after {epochs[-1]}"
            parts.append(text[:1].upper() + text[1:])
    cut = f" {BANDS_CUT}." if curves_range(panels).cuts(_estimates(panels)) else ""
    return f"{title}. {'. '.join(parts)}.{cut}"


def _estimates(panels: Sequence[CurvePanel]) -> list[Estimate]:
    return [value for panel in panels for curve in panel.curves for value in curve.points.values()]


def _names(table: pd.DataFrame, everything: list[Condition]) -> dict[Condition, str]:
    # Without the tuned rate where the rest tells the settings apart: it then follows from it.
    mine = rate_settings(table)
    short = {key: key._replace(others=tuple(pair for pair in key.others if pair[0] not in mine)) for key in everything}
    if len(set(short.values())) < len(everything):
        short = {key: key for key in everything}
    return {key: _name(short[key], list(short.values())) for key in everything}


def _name(key: Condition, everything: list[Condition]) -> str:
    parts = [key.optimizer] if len({c.optimizer for c in everything}) > 1 else []
    parts += [" ".join(pair) for pair in key.others]
    parts += [f"{key.rate} rate"] if len({c.rate for c in everything}) > 1 else []
    parts += [key.sam.legend] if len({c.sam for c in everything}) > 1 else []
    return ", ".join(parts) or key.optimizer or "this setting"


def _logs(cell: Cell) -> dict[object, pd.DataFrame]:
    found: dict[object, Any] = {seed: history(run["folder"]) for seed, run in cell.draws.items()}
    return {seed: log for seed, log in found.items() if log is not None}


def _curve(label: str, logs: dict[object, pd.DataFrame], metric: str) -> Curve | None:
    seeds = {seed: values for seed, log in logs.items() if (values := by_epoch(log, metric))}
    return Curve(label, seeds) if seeds else None


def _apart(one: Curve, other: Curve) -> float | None:
    pairs = [
        (values[epoch], other.seeds[seed][epoch])
        for seed, values in one.seeds.items()
        if seed in other.seeds
        for epoch in values
        if epoch in other.seeds[seed]
    ]
    return max(_relative(a, b) for a, b in pairs) if pairs else None


def _relative(a: float, b: float) -> float:
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    gap = abs(a - b) / max(abs(a), abs(b))
    return gap if math.isfinite(gap) else math.inf


def _spread(curve: Curve) -> float:
    # Largest standard deviation over the seeds, relative to the mean.
    return max((e.std / abs(e.mean) for e in curve.points.values() if e.std is not None and e.mean), default=0.0)
