"""Pairs of settings that differ in one thing, and what changes between them."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from lbtrain.study.conditions import Cell, Condition, condition, label, varied
from lbtrain.study.estimates import Change, ratio
from lbtrain.study.families import Family
from lbtrain.study.load import CONFIG
from lbtrain.study.methods import Variant
from lbtrain.study.settings import Row, below, method_nodes, rows, short_names, varying

# Config keys that belong to an axis and may therefore differ between the two sides of a pair on it; to that of SAM's
# family ("rho") belongs all below the callback of the method.
_OWNED = {
    "batch": ("batch_size", "trainer.accumulate_grad_batches", "trainer.devices", "trainer.num_nodes"),
    "rate": ("callbacks.lr_scaling.", "scaling", "laws.", "warmup."),  # the last three choose the rule in an experiment
    "rho": (),
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


def sam_pairs(
    family: Family, rate: str, variant: Variant, cost: bool = False
) -> Iterator[tuple[float | None, Cell, Cell]]:
    """Pair each run of a method with the one without, all else equal.

    A run with radius 0 trains as one without, and stands in for it; but not where time counts, for it takes longer.

    Args:
        family: Runs to look among.
        rate: As in `Family.rates`.
        variant: A method with a radius above 0.
        cost: Whether the pairs are to be compared in time.

    Yields:
        Batch size, cell without the method, cell with.
    """
    for key, cell in family.cells.items():
        if key.rate == rate and key.sam == variant and variant.rho > 0:
            stand_ins = [other for other in family.cells if _is_plain(other, key, cost)]
            if stand_ins:
                yield key.batch, family.cells[min(stand_ins, key=lambda other: _unlike(other, key))], cell


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
    nodes = [node for row in pairs[0] for node in method_nodes(row)] if axis == "rho" else []
    mine = {key for key in keys if _belongs(key, axis) or below(key, nodes)}
    owned = {(repr(old[key]), repr(new[key])) for key in mine}
    different = [
        f"{names[key]} {old[key]} to {new[key]}"
        for key in keys
        # A value that moves exactly as the axis does is an interpolated copy of it.
        if old[key] != new[key] and key not in mine and (repr(old[key]), repr(new[key])) not in owned
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
    beside = varied(table)
    everything = [condition(other, beside) for other in rows(table)]
    seeds = {str(other["seed"]) for other in rows(table) if other["seed"] is not None}
    text = label(condition(row, beside), everything)
    return text + (f", seed {row['seed']}" if seed and len(seeds) > 1 else "")


def _is_plain(key: Condition, like: Condition, cost: bool) -> bool:
    return key._replace(sam=like.sam) == like and not (key.sam.method if cost else key.sam.rho)


def _unlike(key: Condition, like: Condition) -> tuple[Any, ...]:
    # No callback before one of the same method with radius 0, and that before one of another.
    return key.sam.method != "", key.sam.method != like.sam.method, key.sam.options != like.sam.options, key.order()


def _belongs(key: str, axis: str) -> bool:
    return any(key.startswith(owned) if owned.endswith(".") else key.endswith(owned) for owned in _OWNED[axis])
