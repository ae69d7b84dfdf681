"""The finished runs by optimizer and by the settings that are no axis of the study; which of them is best."""

from dataclasses import dataclass

import pandas as pd

from lbtrain.study.axes import higher_is_better
from lbtrain.study.conditions import Cell, Condition, cells
from lbtrain.study.methods import Variant
from lbtrain.study.settings import rows

MAX_FAMILIES = 6  # more panels than this are not looked at, and more sentences are not read
MAX_VARIANTS = 9  # more lines than this in one panel are not told apart; plain training and eight methods are not more


@dataclass(frozen=True)
class Family:
    """Cells that share the optimizer and the settings that are no axis of the study.

    Args:
        optimizer: Label of the optimizer.
        name: Words for it, such as "Adam" or "Adam, lr 0.01".
        cells: Condition to cell, in order.
    """

    optimizer: str
    name: str
    cells: dict[Condition, Cell]

    @property
    def rates(self) -> list[str]:
        """How the rate follows the batch in these runs; "fixed" first."""
        return sorted({c.rate for c in self.cells}, key=lambda rate: (rate != "fixed", rate))

    @property
    def variants(self) -> list[Variant]:
        """Methods of SAM's family in these runs; plain training first."""
        return sorted({c.sam for c in self.cells}, key=Variant.order)

    def line(self, rate: str, variant: Variant) -> list[tuple[float, Cell]]:
        """Take the cells along the batch axis.

        Args:
            rate: As in `rates`.
            variant: As in `variants`.

        Returns:
            Batch size and cell, smallest batch first.
        """
        line = [(c.batch, cell) for c, cell in self.cells.items() if c.rate == rate and c.sam == variant]
        return sorted(((batch, cell) for batch, cell in line if batch is not None), key=lambda pair: pair[0])


def families(table: pd.DataFrame) -> list[Family]:
    """Split the finished runs by optimizer and by the settings that are no axis.

    With more than `MAX_FAMILIES`, only the best of each optimizer by the objective is kept; with more than
    `MAX_VARIANTS`, of each method only its best.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        The families, in order of their names.
    """
    everything = cells(table)
    shown = _shown_variants(table)
    grouped: dict[tuple[str, tuple[tuple[str, str], ...]], dict[Condition, Cell]] = {}
    for key, cell in everything.items():
        if key.sam in shown:
            grouped.setdefault((key.optimizer, key.others), {})[key] = cell
    kept = list(grouped)
    if len(grouped) > MAX_FAMILIES:
        leaders: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {}
        for cell in ranked(table):
            family = (cell.condition.optimizer, cell.condition.others)
            if family in grouped:
                leaders.setdefault(cell.condition.optimizer, family)
        kept = sorted(leaders.values())[:MAX_FAMILIES]
    return [
        Family(optimizer, ", ".join([optimizer or "this model", *(" ".join(pair) for pair in others)]), grouped[key])
        for key in kept
        for optimizer, others in [key]
    ]


def _shown_variants(table: pd.DataFrame) -> set[Variant]:
    variants = {key.sam for key in cells(table)}
    if len(variants) <= MAX_VARIANTS:
        return variants
    best: dict[str, Variant] = {}
    for cell in [*ranked(table), *cells(table).values()]:  # the second for methods without a value to rank by
        variant = cell.condition.sam
        if variant.rho:
            best.setdefault(variant.method, variant)
    plain = [variant for variant in sorted(variants, key=Variant.order) if not variant.rho][:1]
    return {*plain, *list(best.values())[: MAX_VARIANTS - 1]}


def objective(table: pd.DataFrame) -> str | None:
    """Find the metric by which runs are ranked: the one that their config names, else one that they have.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        Metric key, or None when there is nothing to rank by.
    """
    named = sorted({str(row["objective"]) for row in rows(table) if row["objective"]})
    for metric in [*named, "test/acc", "val/acc", "test/loss", "val/loss"]:
        if metric in table.columns and metric not in {"objective", "run"}:
            return metric
    return None


def ranked(table: pd.DataFrame) -> list[Cell]:
    """Sort the settings from the best to the worst by the objective.

    Left out are settings with a diverged run, and those with less than half as many seeds as others have.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        Cells with a value; ties go to the lower test loss, then to the order of the settings.
    """
    metric = objective(table)
    if metric is None:
        return []
    sign = -1.0 if higher_is_better(metric) else 1.0
    scored = []
    for cell in cells(table).values():
        estimate, loss = cell.estimate(metric), cell.estimate("test/loss")
        if estimate is not None and not cell.num_diverged:
            scored.append((estimate.n, (sign * estimate.mean, loss.mean if loss else 0.0), cell))
    most = max((n for n, _, _ in scored), default=0)
    # A lucky single seed must not beat the mean of many.
    fair = [(score, cell.condition.order(), cell) for n, score, cell in scored if 2 * n >= most]
    return [cell for _, _, cell in sorted(fair, key=lambda item: item[:2])]
