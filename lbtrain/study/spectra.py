"""Spectral densities of the Hessian against the batch size, from the `spectrum.json` of each run."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lbtrain.study.conditions import Cell
from lbtrain.study.estimates import Estimate, digits, mean_over_seeds, plain
from lbtrain.study.families import Family, families
from lbtrain.study.methods import Variant

SPECTRUM_NAME = "spectrum.json"
MAX_PANELS = 8
MAX_LINES = 6  # batch sizes in a panel
_POINTS = 400  # of the common axis: finer than a figure of 800 pixels shows
MATRICES = {"hessian": "Hessian", "ggn": "Gauss-Newton matrix"}


@dataclass(frozen=True)
class Density:
    """The spectral density of one setting, averaged over its seeds.

    Args:
        batch: Global batch size, samples.
        grid: Eigenvalues, loss per squared parameter.
        density: Share of the eigenvalues per unit, the mean over the seeds.
        lambda_max: Largest eigenvalue, over the seeds; None when it was not measured.
        num_seeds: Number of seeds.
    """

    batch: float
    grid: tuple[float, ...]
    density: tuple[float, ...]
    lambda_max: Estimate | None
    num_seeds: int


@dataclass(frozen=True)
class SpectraPanel:
    """The densities of one optimizer, rate and method.

    Args:
        title: Words for it.
        densities: From the smallest batch to the largest.
    """

    title: str
    densities: tuple[Density, ...]


def spectra(table: pd.DataFrame, matrix: str) -> list[SpectraPanel]:
    """Collect the spectral densities.

    Args:
        table: As `load_sweep` gives it.
        matrix: `hessian` or `ggn`.

    Returns:
        At most 8 panels of at most 6 batch sizes each, spread over those that there are.
    """
    if "folder" not in table:
        return []
    groups = families(table)
    return [panel for family in groups for panel in _panels(family, matrix)][:MAX_PANELS]


def spectra_alt(title: str, panels: list[SpectraPanel]) -> str:
    """Put the figure into words.

    Args:
        title: Headline of the figure.
        panels: At least one.

    Returns:
        The largest eigenvalue at each batch size.
    """
    parts = []
    for panel in panels:
        known = [(d.batch, d.lambda_max) for d in panel.densities]
        ends = ", ".join(f"{digits(e.mean)} at {plain(b)}" if e else f"at {plain(b)}" for b, e in known)
        parts.append(f"{panel.title}: largest eigenvalue {ends}")
    return f"{title}. {'. '.join(parts)}."


def matrix_words(matrix: str) -> str:
    """Name a matrix.

    Args:
        matrix: `hessian` or `ggn`.

    Returns:
        Such as "Hessian".
    """
    return MATRICES[matrix]


def _panels(family: Family, matrix: str) -> Iterator[SpectraPanel]:
    for rate in family.rates:
        for variant in family.variants:
            found = [d for batch, cell in family.line(rate, variant) if (d := _density(batch, cell, matrix))]
            if found:
                yield SpectraPanel(_title(family, rate, variant), tuple(_spread(found)))


def _title(family: Family, rate: str, variant: Variant) -> str:
    parts = [family.name]
    parts += [f"{rate} rate"] if len(family.rates) > 1 else []
    parts += [variant.legend] if len(family.variants) > 1 else []
    return ", ".join(parts)


def _spread(found: list[Density]) -> list[Density]:
    # Both ends, and what lies evenly between.
    if len(found) <= MAX_LINES:
        return found
    return [found[round(i * (len(found) - 1) / (MAX_LINES - 1))] for i in range(MAX_LINES)]


def _density(batch: float, cell: Cell, matrix: str) -> Density | None:
    seeds = [parts for run in cell.runs if run["outcome"] == "ok" and (parts := _read(Path(run["folder"]), matrix))]
    if not seeds:
        return None
    grids = [[_number(x) for x in parts["grid"]] for parts in seeds]
    common = np.linspace(min(g[0] for g in grids), max(g[-1] for g in grids), _POINTS)
    lines = [
        np.interp(common, grid, [_number(y) for y in parts["density"]], left=0.0, right=0.0)
        for grid, parts in zip(grids, seeds, strict=True)
    ]
    mean = np.mean(lines, axis=0)
    tops = [_number(parts["eigenvalues"][0]) for parts in seeds if parts.get("eigenvalues")]
    known = [top for top in tops if math.isfinite(top)]
    lambda_max = mean_over_seeds(known) if known else None
    return Density(batch, tuple(map(float, common)), tuple(map(float, mean)), lambda_max, len(seeds))


def _read(folder: Path, matrix: str) -> dict[str, Any]:
    # Nothing where a run left no spectrum, or one that cannot be read: the density is one more view of the run.
    try:
        parts = json.loads((folder / SPECTRUM_NAME).read_text(encoding="utf-8"))[matrix]
        grid, density = parts["grid"], parts["density"]
        whole = len(grid) == len(density) > 1 and all(math.isfinite(_number(x)) for x in [*grid, *density])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return parts if whole else {}


def _number(value: Any) -> float:
    return float(value)  # of the words of records.py (nan, inf, -inf), too
