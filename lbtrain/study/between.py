"""The loss on the line between two solutions (Keskar et al. 2017, figures 3 and 4), from `SWEEP_DIR/between/*.json`."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lbtrain.study.estimates import Change, Estimate, digits, mean_over_seeds, plain, ratio
from lbtrain.study.methods import is_number
from lbtrain.study.ranges import BANDS_CUT, Range, value_range

FOLDER = "between"
CURVES = ("train_loss", "test_loss", "train_acc", "test_acc")


@dataclass(frozen=True)
class Path1D:
    """One pair of solutions.

    Args:
        network: Words for the network.
        seed: Of both runs.
        ends: Words for the solution at 0 and for that at 1, such as "batch 16" and "batch 1024".
        alpha: Places on the line; 0 and 1 are the solutions.
        curves: A key of `CURVES` to a value for each place; NaN and infinity where the loss is.
    """

    network: str
    seed: object
    ends: tuple[str, str]
    alpha: tuple[float, ...]
    curves: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class Between:
    """The pairs of one network, over their seeds.

    Args:
        network: Words for the network.
        ends: Words for the solutions at 0 and at 1.
        alpha: Places on the line.
        curves: A key of `CURVES` to an estimate for each place; None where a seed's value is not finite.
        curvature: Second difference of the training loss along the line at 1 over that at 0, paired by seed; None where
            one of them is not positive or the places do not surround both ends.
        num_seeds: Number of pairs.
    """

    network: str
    ends: tuple[str, str]
    alpha: tuple[float, ...]
    curves: dict[str, tuple[Estimate | None, ...]]
    curvature: Change | None
    num_seeds: int

    def at(self, key: str, place: float) -> Estimate | None:
        """Look up a curve.

        Args:
            key: One of `CURVES`.
            place: On the line; the nearest of those measured is taken.

        Returns:
            The estimate, or None where a seed's value is not finite.
        """
        return self.curves[key][int(np.argmin(np.abs(np.asarray(self.alpha) - place)))]

    def range(self, kind: str) -> Range | None:
        """Choose the vertical axis of a panel.

        Args:
            kind: `loss` or `acc`.

        Returns:
            Its ends; None where nothing is finite.
        """
        values = self._values(kind)
        if not values:
            return None
        if kind == "loss":
            return value_range(values, room=1.5)
        return replace(value_range(values, room=1.02, bounds=(0.0, 1.0)), log=False)

    @property
    def is_cut(self) -> bool:
        """Whether a band leaves its panel."""
        return any(ends.cuts(self._values(kind)) for kind in ("loss", "acc") if (ends := self.range(kind)))

    def _values(self, kind: str) -> list[Estimate]:
        return [e for key, curve in self.curves.items() if key.endswith(kind) for e in curve if e]


def between(folders: Sequence[Path]) -> tuple[list[Between], list[str]]:
    """Collect what was measured between solutions.

    Args:
        folders: Folders of the sweeps.

    Returns:
        One for each network and pair of ends, in order; and a sentence for each file that cannot be read.
    """
    files = sorted({path.resolve() for folder in folders for path in (Path(folder) / FOLDER).glob("*.json")})
    read, broken = [], []
    for path in files:
        try:
            read.append(_read(path))
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else f"{error}"
            broken.append(f"{FOLDER}/{path.name} is left out: {reason}. Delete it and measure again.")
    grouped: dict[tuple[str, tuple[str, str]], dict[str, Path1D]] = {}
    for line in read:
        grouped.setdefault((line.network, line.ends), {})[repr(line.seed)] = line
    return [_joined(list(grouped[key].values())) for key in sorted(grouped)], broken


def between_alt(title: str, found: Sequence[Between]) -> str:
    """Put the figure into words.

    Args:
        title: Headline of the figure.
        found: At least one.

    Returns:
        Loss and accuracy at both ends and the highest loss between, for each network.
    """
    parts = []
    for line in found:
        told = [f"{key.replace('_', ' ')} {_at(line, key, 0)} and {_at(line, key, 1)}" for key in CURVES]
        inner = [(e.mean, a) for a, e in zip(line.alpha, line.curves["train_loss"], strict=True) if e and 0 <= a <= 1]
        peak, place = max(inner) if inner else (math.nan, math.nan)
        text = f"{line.network}, from {line.ends[0]} (0) to {line.ends[1]} (1): {', '.join(told)}; highest train loss"
        parts.append(f"{text} between them {digits(peak)} at {place:.2f}")
    cut = f" {BANDS_CUT}." if any(line.is_cut for line in found) else ""
    return f"{title}. {'. '.join(parts)}.{cut}"


def _at(line: Between, key: str, end: float) -> str:
    value = line.at(key, end)
    return digits(value.mean) if value else "not finite"


def _read(path: Path) -> Path1D:
    data = json.loads(path.read_text(encoding="utf-8"))
    alpha = tuple(float(value) for value in data["alpha"])
    curves = {key: tuple(float(value) for value in data[key]) for key in CURVES}
    if len(alpha) < 2 or list(alpha) != sorted(set(alpha)):
        raise ValueError("alpha must hold at least 2 growing numbers")
    for key, values in curves.items():
        if len(values) != len(alpha):
            raise ValueError(f"{key} has {len(values)} values for {len(alpha)} places of alpha")
    return Path1D(str(data["network"]), data["seed"], (_end(data["from"]), _end(data["to"])), alpha, curves)


def _end(node: Mapping[str, Any]) -> str:
    batch = node.get("batch")
    return f"batch {plain(batch)}" if is_number(batch) else str(node["label"])


def _joined(lines: list[Path1D]) -> Between:
    first = lines[0]
    # Seeds that were measured at other places are read off between their own.
    low, high = max(line.alpha[0] for line in lines), min(line.alpha[-1] for line in lines)
    alpha = tuple(a for a in first.alpha if low <= a <= high)
    curves = {
        key: tuple(
            map(_estimate, zip(*(np.interp(alpha, line.alpha, line.curves[key]) for line in lines), strict=True))
        )
        for key in CURVES
    }
    bends: list[dict[object, float]] = [{repr(line.seed): _bend(line, end) for line in lines} for end in (0.0, 1.0)]
    return Between(first.network, first.ends, alpha, curves, ratio(bends[0], bends[1]), len(lines))


def _estimate(values: Sequence[float]) -> Estimate | None:
    return mean_over_seeds([float(v) for v in values]) if all(map(math.isfinite, values)) else None


def _bend(line: Path1D, end: float) -> float:
    # Second difference of the training loss by the nearest places, at least as far apart on one side as on the other;
    # 0, which no ratio is made of, where there are none.
    alpha, loss = np.asarray(line.alpha), np.asarray(line.curves["train_loss"])
    place = int(np.argmin(np.abs(alpha - end)))
    if not 0 < place < len(alpha) - 1 or abs(alpha[place] - end) > 1e-6:
        return 0.0
    left, right = alpha[place] - alpha[place - 1], alpha[place + 1] - alpha[place]
    slope = (loss[place + 1] - loss[place]) / right - (loss[place] - loss[place - 1]) / left
    bend = float(2 * slope / (left + right))
    return bend if math.isfinite(bend) else 0.0
