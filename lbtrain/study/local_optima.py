"""Whether the seeds of a setting end in different optima: the spread of their losses against the runs' own noise."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import pandas as pd

from lbtrain.study.conditions import Cell, Condition, cells, label
from lbtrain.study.diagnoses import diagnoses
from lbtrain.study.endings import Ending, ending
from lbtrain.study.estimates import digits
from lbtrain.study.methods import is_number
from lbtrain.study.once import once
from lbtrain.study.phrases import count
from lbtrain.study.settings import Row
from lbtrain.study.spread import holm, pooled_noise, restarts, spread_chance

MIN_SEEDS = 3  # of two that differ, nothing tells which is the usual one
LEVEL = 0.01  # chance that any of the settings is named although its seeds differ by noise alone
# A choice: optima that differ by less than a tenth of the initial loss are as good as each other for most purposes, and
# healthy seeds differ by that much of their own low losses.
MATERIAL = 0.1
# A choice: a seed whose last quarter still gained a tenth of what separates it from the best is slow and not stuck. By
# that, an exponential fall towards the best counts as slow from when it has come down by a third: 10 (e^0.1 - 1) > 1.
UNSETTLED = 10.0
NOISES = 3.0 * math.sqrt(2)  # three standard deviations of the difference of two values with the same noise
_LOSS = "train/loss"


@dataclass(frozen=True)
class LocalOptima:
    """A setting whose seeds end at different levels.

    Args:
        condition: The setting.
        losses: Final training losses, the lowest first.
        noise: Standard deviation of the runs' own fluctuation about their trends, unit of the loss.
        behind: Number of seeds that stay behind the best one.
        p: Chance of such a spread by noise alone, adjusted for the number of settings (Holm).
        restarts: Starts of which one reaches the best level with a probability of 95 %.
    """

    condition: Condition
    losses: tuple[float, ...]
    noise: float
    behind: int
    p: float
    restarts: int


@once
def local_optima(table: pd.DataFrame) -> list[LocalOptima]:
    """Find the settings whose seeds end in different optima.

    A seed stays behind the best one where its loss is higher by more than a tenth of the initial loss, by more than ten
    times what its last quarter gained, and by more than the noise of both. A setting with such a seed is
    named where an F test of its final losses rejects that they differ by noise alone, at 1 % over all settings (Holm
    1979). Seeds that diverged are left out, and so are those with a problem of their own in their diagnosis, which
    explains them.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        In the order of the settings; of those with three seeds or more whose losses were logged.
    """
    problems = {str(d.run["run"]): {p.name for p in d.problems} for d in diagnoses(table).runs}
    asked = {key: own for key, cell in cells(table).items() if len(own := _comparable(cell, problems)) >= MIN_SEEDS}
    known = {key: found for key, own in asked.items() if len(found := _endings(own)) >= MIN_SEEDS}
    chances = {key: spread_chance(found) for key, found in known.items()}
    adjusted = dict(zip(chances, holm(list(chances.values()), len(asked)), strict=True))
    result = []
    for key, found in known.items():
        late = behind(found)
        if late and adjusted[key] <= LEVEL:
            losses = tuple(sorted(one.loss for one in found))
            number = restarts(1 - len(late) / len(found))
            result.append(LocalOptima(key, losses, pooled_noise(found)[0], len(late), adjusted[key], number))
    return result


def behind(endings: Sequence[Ending]) -> list[Ending]:
    """List the seeds that stay behind the best one.

    Args:
        endings: At least one.

    Returns:
        Those whose final loss and level are higher by more than a tenth of the initial loss and of what training
        gained, by more than ten times what their last quarter gained, and by more than the noise of both.
    """
    best = min(endings, key=lambda one: (one.loss, one.level))
    first = median(one.first for one in endings)
    least = max(MATERIAL * max(abs(first), first - best.loss), NOISES * pooled_noise(endings)[0])
    # Both the last value, which may be a spike, and the level of the last quarter, which may be that of a longer fall.
    return [
        one for one in endings if min(one.loss - best.loss, one.level - best.level) > max(least, UNSETTLED * one.drop)
    ]


def optima_sentences(table: pd.DataFrame) -> list[str]:
    """Say which settings have seeds in different optima, and how many restarts help.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        A sentence for each setting.
    """
    return [
        f"With {label(found.condition, cells(table))}, {len(found.losses)} seeds end at a train loss of "
        f"{digits(found.losses[0])} to {digits(found.losses[-1])}, and the runs' own fluctuation is "
        f"{digits(found.noise)} (chance of such a spread by noise alone: {_chance(found.p)}): local optima. "
        f"{count(len(found.losses) - found.behind, 'seed')} of {len(found.losses)} "
        f"{'reaches' if len(found.losses) - found.behind == 1 else 'reach'} the best level; of {found.restarts} random "
        f"restarts, at least one does with a probability of 95 % (seed=range({found.restarts}))."
        for found in local_optima(table)
    ]


def _chance(p: float) -> str:
    return f"below {1e-6:g}" if p < 1e-6 else digits(p, significant=2)


def _comparable(cell: Cell, problems: dict[str, set[str]]) -> list[Row]:
    """Return the seeds that reached a minimum, without those that have a problem which the best of them has not."""
    finished = [run for run in cell.runs if run["outcome"] == "ok"]
    losses = {str(run["run"]): run.get(_LOSS) for run in finished}
    ordered = sorted((loss, name) for name, loss in losses.items() if is_number(loss))
    usual = problems.get(ordered[0][1], set()) if ordered else set()
    return [run for run in finished if problems.get(str(run["run"]), set()) <= usual]


def _endings(runs: Sequence[Row]) -> list[Ending]:
    """Return how the runs end; none where their losses alone show that no seed stays behind, to read no logs for it."""
    losses = [run.get(_LOSS) for run in runs]
    guessing = [math.log(run["classes"]) for run in runs if run["classes"]]
    known = [loss for loss in losses if is_number(loss)]
    if guessing and len(known) == len(runs) and max(known) - min(known) <= MATERIAL * max(guessing):
        return []
    return [found for run in runs if (found := ending(run)) is not None]
