"""The figures of a report: PNG for the page, SVG for a paper, the same bytes from the same numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd

from lbtrain.study.axes import bounds, capital, words
from lbtrain.study.batch_plots import plots
from lbtrain.study.between import between, between_alt
from lbtrain.study.conditions import cells, label
from lbtrain.study.cost import cost_plots
from lbtrain.study.curves import curve_panels, curves_alt
from lbtrain.study.diagnosis_sheets import TITLE, by_setting
from lbtrain.study.draw_between import draw_between
from lbtrain.study.draw_curves import draw_curves
from lbtrain.study.draw_diagnoses import diagnoses_alt, draw_diagnoses
from lbtrain.study.draw_grid import draw_grids
from lbtrain.study.draw_lines import draw_plot, draw_ranking
from lbtrain.study.draw_spectra import draw_spectra
from lbtrain.study.draw_targets import draw_targets
from lbtrain.study.drawing import Sketch, images
from lbtrain.study.estimates import digits
from lbtrain.study.families import objective, ranked
from lbtrain.study.grid import grid_alt, grids
from lbtrain.study.ranges import CUT, value_range
from lbtrain.study.series import Plot
from lbtrain.study.spectra import MATRICES, matrix_words, spectra, spectra_alt
from lbtrain.study.targets import TARGETS, target_alt, target_words, to_target

_FAR = 100.0  # times the best value of a ranking: on a linear axis the others would be one point
MAX_RANKED = 20  # rows of the ranking; more are not legible at this width


@dataclass(frozen=True)
class Picture:
    """A drawn figure.

    Args:
        name: Stem of its file.
        title: What is seen.
        alt: The same in words, with the numbers.
        png: The image for the page.
        svg: The image for a paper.
        section: Heading of the page below which it stands.
    """

    name: str
    title: str
    alt: str
    png: bytes
    svg: bytes
    section: str


def pictures(table: pd.DataFrame, folders: Sequence[Path] = ()) -> list[Picture]:
    """Draw every figure that the runs have data for.

    Args:
        table: As `load_sweep` gives it.
        folders: Folders of the sweeps, for what stands beside their runs.

    Returns:
        Figures in the page's order; where none applies, a ranking of the settings.
    """
    return [
        Picture(sketch.name, sketch.title, sketch.alt, *images(sketch), sketch.section)
        for sketch in sketches(table, folders)
    ]


def sketches(table: pd.DataFrame, folders: Sequence[Path] = ()) -> list[Sketch]:
    """Collect the figures that the runs have data for, not yet drawn.

    Args:
        table: As `load_sweep` gives it.
        folders: Folders of the sweeps, for what stands beside their runs.

    Returns:
        Figures in the page's order; where none applies, a ranking of the settings.
    """
    found = [
        *map(_of_plot, plots(table)),
        *_heat_maps(table),
        *_to_targets(table),
        *_curves(table),
        *_spectra(table),
        *_between(folders),
        *map(_of_plot, cost_plots(table)),
    ]
    return [*(found or _ranking(table)), *_diagnoses(table)]


def _of_plot(plot: Plot) -> Sketch:
    return Sketch(plot.name, plot.title, plot.alt, plot.section, partial(draw_plot, plot))


def _heat_maps(table: pd.DataFrame) -> list[Sketch]:
    found = grids(table)
    if not found:
        return []
    title = f"{capital(words(found[0].metric))} at each learning rate and batch size"
    draw = partial(draw_grids, title, found)
    return [Sketch("lr_batch", title, grid_alt(title, found), "Learning rate and batch size", draw)]


def _to_targets(table: pd.DataFrame) -> list[Sketch]:
    made = []
    for metric, (name, title, _) in TARGETS.items():
        found = to_target(table, metric)
        if found:
            headline = f"{title} {target_words(table)}".strip()
            draw = partial(draw_targets, headline, found)
            made.append(Sketch(name, headline, target_alt(headline, found), "Steps to a target", draw))
    return made


def _curves(table: pd.DataFrame) -> list[Sketch]:
    panels = curve_panels(table)
    if not panels:
        return []
    title = f"{capital(words(panels[0].metric))} after each epoch"
    return [Sketch("curves", title, curves_alt(title, panels), "Curves", partial(draw_curves, title, panels))]


def _spectra(table: pd.DataFrame) -> list[Sketch]:
    made = []
    for matrix in MATRICES:
        panels = spectra(table, matrix)
        if panels:
            title = f"Spectral density of the {matrix_words(matrix)}"
            draw = partial(draw_spectra, title, panels)
            made.append(Sketch(f"spectra_{matrix}", title, spectra_alt(title, panels), "Spectra", draw))
    return made


def _between(folders: Sequence[Path]) -> list[Sketch]:
    found, _ = between(folders)
    if not found:
        return []
    title = "Loss and accuracy between two solutions"
    return [
        Sketch(
            "between", title, between_alt(title, found), "Between two solutions", partial(draw_between, title, found)
        )
    ]


def _diagnoses(table: pd.DataFrame) -> list[Sketch]:
    settings = by_setting(table)
    if len(settings) < 2 or not any(setting.problems for setting in settings):
        return []
    title = "Runs with each problem, by setting"
    draw = partial(draw_diagnoses, title, settings)
    return [Sketch("diagnoses", title, diagnoses_alt(title, settings), TITLE, draw)]


def _ranking(table: pd.DataFrame) -> list[Sketch]:
    metric = objective(table)
    if metric is None:
        return []
    everything = cells(table)
    order = [(label(c.condition, everything), e) for c in ranked(table) if (e := c.estimate(metric))][:MAX_RANKED]
    if len(order) < 2:
        return []
    names, values = [name for name, _ in order], [value for _, value in order]
    title = f"The {len(order)} best settings by {words(metric)}"
    ends = value_range(values, bounds=bounds(metric))
    # Points in a column are compared by their distances; only where one would push all others to the edge, by factors.
    means = [value.mean for value in values]
    ends = replace(ends, log=ends.log and max(means) > _FAR * min(means))
    alt = f"{title}. " + "; ".join(f"{name}: {digits(value.mean)}" for name, value in order) + "."
    alt += f" {CUT}." if ends.cuts(values) else ""
    draw = partial(draw_ranking, title, names, values, words(metric), ends)
    return [Sketch("ranking", title, alt, "Ranking", draw)]
