"""Which figures a measurement of the Hessian leaves, and when."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lbtrain._lightning import Trainer
from lbtrain.callbacks._hessian_result import HessianResult
from lbtrain.callbacks._pictures import publish_figure

NAMES = ("density", "tracks", "line", "plane", "layers")
Figures = dict[str, Callable[[], Any]]


def draw(trainer: Trainer, chosen: Collection[str], result: HessianResult, tracks: Sequence[Mapping[str, Any]]) -> None:
    """Publish the figures that are chosen and have something to show, as `<matrix>_<name>`.

    Args:
        trainer: The Trainer; one with neither loggers nor a directory of its own leaves nothing behind.
        chosen: Names.
        result: Of the measurement.
        tracks: Of this run, the final one included.
    """
    if not trainer.loggers and Path(trainer.default_root_dir) == Path.cwd():
        return
    for name, figure in _drawable(result, tracks).items():
        if name in chosen:
            publish_figure(trainer, f"{result.matrix}_{name}", figure)


def _drawable(result: HessianResult, tracks: Sequence[Mapping[str, Any]]) -> Figures:
    """Return how each figure that has something to show is drawn."""
    from lbtrain.callbacks import _curvature_figures as figures

    top, found = result.spectrum.lambda_max, Figures()
    if not math.isfinite(top):
        return found
    matrix, vector = result.matrix, "Gauss-Newton eigenvector" if result.matrix == "ggn" else "eigenvector"
    density, line, plane, layers = result.density, result.line, result.plane, result.layers
    if density is not None:
        ends = {"lambda_max": top, "lambda_min": result.spectrum.lambda_min, "matrix": matrix}
        found["density"] = lambda: figures.density_figure(density, **ends)
    if len(tracks) > 1:
        law = result.stability.law if result.stability is not None else ""
        found["tracks"] = lambda: figures.tracks_figure(_as_hessian(tracks, matrix), law=law, matrix=matrix)
    if line is not None:
        found["line"] = lambda: figures.line_figure(line, curvature=top, slope=result.slope, along=f"the top {vector}")
    if plane is not None:
        found["plane"] = lambda: figures.plane_figure(plane, along=(f"top {vector}", f"second {vector}"))
    if layers:
        found["layers"] = lambda: figures.layers_figure(layers, whole=result.spectrum, matrix=matrix)
    return found


def _as_hessian(tracks: Sequence[Mapping[str, Any]], matrix: str) -> list[dict[str, Any]]:
    # The figure reads the keys of the Hessian.
    return [{key.replace(f"{matrix}/", "hessian/", 1): value for key, value in point.items()} for point in tracks]
