"""Figures of curvature: results in, matplotlib figures out; each one's label says in words what is seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from lbtrain.callbacks._drawing import (
    BLUE,
    CURVATURE,
    GREY,
    MATRIX,
    ORANGE,
    empty_figure,
    house_style,
    log_if_wide,
    new_axes,
)
from lbtrain.callbacks._landscape_figures import line_figure as line_figure
from lbtrain.callbacks._landscape_figures import plane_figure as plane_figure
from lbtrain.functional.spectral_results import SpectralDensity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = list[tuple[float, float]]

_MOST_LAYERS = 20  # bars; more are not legible in one picture
_LONGEST = 26  # letters of a layer's name, of which the end tells most; longer ones leave no room for the bars
_TOP, _STABILITY = "hessian/lambda_max", "hessian/stability"


class Ends(Protocol):
    """What a layer's bar shows; a Spectrum has it."""

    @property
    def lambda_max(self) -> float:
        """The largest eigenvalue, loss per squared parameter."""

    @property
    def lambda_max_residual(self) -> float:
        """Bound on its error, same unit."""


def density_figure(
    density: SpectralDensity,
    *,
    lambda_max: float | None = None,
    lambda_min: float | None = None,
    matrix: str = "hessian",
) -> Figure:
    """Draw the spectral density on a logarithmic scale against the eigenvalue, with both ends marked.

    Args:
        density: As estimated; its band is one standard error over probes, where there are at least two.
        lambda_max: The largest eigenvalue, if known better than by the quadrature; loss per squared parameter.
        lambda_min: The smallest one, same unit.
        matrix: "hessian" or "ggn", for the title.

    Returns:
        The figure. A dotted line shows how high a single eigenvalue stands: there is nothing to see below it.
    """
    top = density.lambda_max if lambda_max is None else lambda_max
    low = density.lambda_min if lambda_min is None else lambda_min
    with house_style():
        if not len(density.grid):
            return empty_figure("no spectral density: a product was not finite")
        name = f"{MATRIX.get(matrix, '')}eigenvalues"
        words = f"Density of the {density.dim} {name}, on a logarithmic scale, from {low:.3g} to {top:.3g}"
        words += f"; trace {density.trace:.3g}."
        figure, axes = new_axes(words, f"Density of the {name}")
        alone = 1 / (density.dim * density.sigma * math.sqrt(2 * math.pi))
        _draw_density(axes, density, alone)
        axes.axhline(alone, color=GREY, linewidth=1, linestyle=":", label="height of one eigenvalue")
        for end, name in ((low, r"\min"), (top, r"\max")):
            axes.axvline(end, color=ORANGE, linewidth=1, linestyle="--")
            place = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points"}
            side, shift = ("left", 3) if end == low else ("right", -3)
            text = rf"$\lambda_{{{name}}}$ = {end:.3g}"
            axes.annotate(text, (end, 1), (shift, -3), ha=side, va="top", color=ORANGE, fontsize=9, **place)
        axes.set_xlabel(CURVATURE)
        axes.set_ylabel("share of eigenvalues per unit")
        figure.legend(loc="outside lower right")
    return figure


def tracks_figure(tracks: Sequence[Mapping[str, Any]], *, law: str = "", matrix: str = "hessian") -> Figure:
    """Draw the largest eigenvalues against the optimizer step, with the optimizer's edge of stability.

    The edge is where `hessian/stability` would be 1, `lambda_max / stability`: `2 / lr` for plain SGD. For an optimizer
    that rescales each weight it stands in the same ratio to `lambda_max` as the true one on the optimizer's own scale.

    Args:
        tracks: One per measurement: `step`, and the metrics `hessian/lambda_1`, ..., `hessian/stability` as far as
            measured, loss per squared parameter.
        law: The optimizer's law in words, as a Stability has it; it names the edge.
        matrix: "hessian" or "ggn", for the title.

    Returns:
        The figure; on a logarithmic scale where more than a decade is spanned.
    """
    lines = {rank: _points(tracks, f"hessian/lambda_{rank}") for rank in _ranks(tracks)}
    lines = {rank: points for rank, points in lines.items() if points}
    edge = _edge(tracks)
    with house_style():
        if not lines:
            return empty_figure("no eigenvalue was measured during training")
        title = f"Largest {MATRIX.get(matrix, '')}eigenvalues during training"
        figure, axes = new_axes(_tracks_words(lines, edge, law), title)
        for i, (rank, points) in enumerate(lines.items()):
            shown = i < 2 or i == len(lines) - 1  # the legend names the first two and the last
            label = rf"$\lambda_{{{rank}}}$" if shown else None
            axes.plot(*zip(*points, strict=True), "o-", color=BLUE, alpha=1 if i == 0 else 0.6 / i**0.5, label=label)
        bars = [(t["step"], t[_TOP], t[f"{_TOP}_residual"]) for t in tracks if _finite(t, _TOP, f"{_TOP}_residual")]
        if bars:
            steps, values, errors = zip(*bars, strict=True)
            axes.errorbar(steps, values, errors, fmt="none", ecolor=BLUE, capsize=2, elinewidth=1)
        if edge:
            mark = "_" if len(edge) == 1 else ""  # one point makes no line
            axes.plot(*zip(*edge, strict=True), "--", marker=mark, markersize=12, color=ORANGE, label=_edge_name(law))
        log_if_wide(axes, [y for points in (*lines.values(), edge) for _, y in points])
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(CURVATURE)
        # Below, where it covers none of the lines, the edge among them.
        figure.legend(loc="outside lower center", ncols=len(axes.get_legend_handles_labels()[0]))
    return figure


def layers_figure(layers: Mapping[str, Ends], *, whole: Ends | None = None, matrix: str = "hessian") -> Figure:
    """Draw the largest eigenvalue of each layer's block of the Hessian, with the bound on its error.

    Args:
        layers: By name, in the order of the network.
        whole: Of the whole Hessian, which no block exceeds (Cauchy's interlacing).
        matrix: "hessian" or "ggn", for the title.

    Returns:
        The figure; of more than 20 layers those with the largest values.
    """
    shown = {name: layer for name, layer in layers.items() if math.isfinite(layer.lambda_max)}
    largest = sorted(shown, key=lambda name: -shown[name].lambda_max)[:_MOST_LAYERS]
    kept = [name for name in shown if name in largest]
    listed = "; ".join(f"{name} {shown[name].lambda_max:.3g}" for name in kept)
    title = f"{'Gauss-Newton sharpness' if matrix == 'ggn' else 'Sharpness'} by layer"
    title += f" (the {_MOST_LAYERS} largest of {len(shown)})" if len(shown) > len(kept) else ""
    with house_style():
        if not kept:
            return empty_figure("no layer has a finite eigenvalue")
        figure, axes = new_axes(f"Largest eigenvalue by layer: {listed}.", title, height=1.3 + 0.27 * len(kept))
        places = range(len(kept), 0, -1)
        errors = [shown[name].lambda_max_residual for name in kept]
        style = {"ecolor": "black", "capsize": 3}
        axes.barh(places, [shown[name].lambda_max for name in kept], 0.65, xerr=errors, color=BLUE, error_kw=style)
        axes.set_yticks(places, [name if len(name) <= _LONGEST else f"...{name[3 - _LONGEST :]}" for name in kept])
        axes.set_ylim(0.4, len(kept) + 0.6)
        if whole is not None and math.isfinite(whole.lambda_max):
            label = f"whole network, {whole.lambda_max:.3g}"
            axes.axvline(whole.lambda_max, color=ORANGE, linestyle="--", label=label)
            figure.legend(loc="outside lower right")
        axes.grid(False, axis="y")
        axes.set_xlabel("largest " + CURVATURE)
    return figure


def _draw_density(axes: Axes, density: SpectralDensity, alone: float) -> None:
    """Draw the curve with its band, down to a tenth of the height of a single eigenvalue."""
    x, y, error = density.grid.numpy(), density.density.numpy(), density.density_stderr.numpy()
    floor = alone / 10
    axes.set_yscale("log")
    axes.set_ylim(floor, 5 * float(y.max()))  # room for the marks of both ends
    axes.fill_between(x, floor, y.clip(floor), color=BLUE, alpha=0.12, linewidth=0)
    if density.num_probes > 1:
        low, high = (y - error).clip(floor), (y + error).clip(floor)
        axes.fill_between(x, low, high, color=BLUE, alpha=0.35, linewidth=0)
    axes.plot(x, y.clip(floor), color=BLUE, linewidth=1.2)


def _ranks(tracks: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the k of every `hessian/lambda_k`."""
    tails = {key.removeprefix("hessian/lambda_") for track in tracks for key in track}
    return sorted(int(tail) for tail in tails if tail.isdigit())


def _finite(track: Mapping[str, Any], *keys: str) -> bool:
    return all(math.isfinite(track.get(key, math.nan)) for key in keys)


def _points(tracks: Sequence[Mapping[str, Any]], key: str) -> Points:
    return [(track["step"], track[key]) for track in tracks if _finite(track, key)]


def _edge(tracks: Sequence[Mapping[str, Any]]) -> Points:
    """Return the eigenvalue at the edge of stability, for each step."""
    known = [track for track in tracks if _finite(track, _TOP, _STABILITY) and track[_STABILITY] > 0 < track[_TOP]]
    return [(track["step"], track[_TOP] / track[_STABILITY]) for track in known]


def _edge_name(law: str) -> str:
    """Return the name of the edge by the optimizer's law."""
    if law.startswith("SGD, ") and law.endswith("= 2"):
        return "edge of stability, 2/lr"
    name = law.partition(", ")[0]
    if name == "SGD":
        name = "SGD with momentum"
    return f"edge of stability, {name}" if ", " in law else "edge of stability"


def _tracks_words(lines: dict[int, Points], edge: Points, law: str) -> str:
    first = next(iter(lines.values()))
    words = f"Largest eigenvalue: {first[0][1]:.3g} at step {first[0][0]}, {first[-1][1]:.3g} at step {first[-1][0]}"
    words += f", at most {max(y for _, y in first):.3g}"
    return f"{words}; {_edge_name(law)}: {edge[-1][1]:.3g} at the end." if edge else f"{words}."
