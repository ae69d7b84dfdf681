"""Pairs of settings that differ in one thing, and what changes between them."""

from collections.abc import Iterator

import pandas as pd

from lbtrain.study.conditions import Cell, condition, label
from lbtrain.study.estimates import Change, ratio
from lbtrain.study.families import Family
from lbtrain.study.load import CONFIG
from lbtrain.study.settings import Row, other_keys, rows, short_names, varying

# Config keys that belong to an axis and may therefore differ between the two sides of a pair on it.
_OWNED = {
    "batch": ("batch_size", "trainer.accumulate_grad_batches", "trainer.devices", "trainer.num_nodes"),
    "rate": ("callbacks.lr_scaling.", "scaling", "laws.", "warmup."),  # the last three choose the rule in an experiment
    "rho": ("callbacks.sam.",),
}


def change(before: Cell, after: Cell, metric: str) -> Change | None:
    """Compare a metric between two cells, seed by seed.

    Args:
        before: Cell on the one side.
        after: Cell on the other.
        metric: Key of a positive quantity.

    Returns:
        The change, or None when the two share no seed with a positive value.
    """
    return ratio(before.values(metric), after.values(metric))


def sam_pairs(family: Family, rate: str, rho: float) -> Iterator[tuple[float | None, Cell, Cell]]:
    """Pair each run with SAM with the one without, all else equal.

    Args:
        family: Runs to look among.
        rate: As in `Family.rates`.
        rho: Radius of SAM, above 0.

    Yields:
        Batch size, cell without SAM, cell with.
    """
    for key, cell in family.cells.items():
        plain = family.cells.get(key._replace(rho=0.0))
        if key.rate == rate and key.rho == rho and plain is not None and rho > 0:
            yield key.batch, plain, cell


def also_differs(table: pd.DataFrame, before: Cell, after: Cell, axis: str) -> str:
    """Say what else differs between two cells that are compared along one axis.

    Args:
        table: The table of both.
        before: Cell on the one side.
        after: Cell on the other.
        axis: "batch", "rate" or "rho".

    Returns:
        Such as "lr 0.01 to 0.04"; empty when the pair is clean.
    """
    keys = [key for key in varying(table) if key != "seed"]
    pairs = [(a, b) for a in before.runs for b in after.runs if a["seed"] == b["seed"]]
    if not pairs:
        return ""
    old, new = ({key: row.get(CONFIG + key) for key in keys} for row in pairs[0])
    names = short_names(keys)
    owned = {(repr(old[key]), repr(new[key])) for key in keys if _belongs(key, axis)}
    different = [
        f"{names[key]} {old[key]} to {new[key]}"
        for key in keys
        # A value that moves exactly as the axis does is an interpolated copy of it.
        if old[key] != new[key] and not _belongs(key, axis) and (repr(old[key]), repr(new[key])) not in owned
    ]
    return ", ".join(different)


def run_label(table: pd.DataFrame, row: Row, seed: bool = True) -> str:
    """Name one run by the settings that vary.

    Args:
        table: Its table.
        row: The run.
        seed: Whether to name the seed, where there are several.

    Returns:
        Such as "Adam, batch 64, seed 1".
    """
    others = other_keys(table)
    everything = [condition(other, others) for other in rows(table)]
    seeds = {str(other["seed"]) for other in rows(table) if other["seed"] is not None}
    text = label(condition(row, others), everything)
    return text + (f", seed {row['seed']}" if seed and len(seeds) > 1 else "")


def _belongs(key: str, axis: str) -> bool:
    return any(key.startswith(owned) if owned.endswith(".") else key.endswith(owned) for owned in _OWNED[axis])
