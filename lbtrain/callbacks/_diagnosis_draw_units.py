"""Activation histograms by layer, and the shares of dead and saturated units over the steps of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lbtrain.callbacks._diagnosis_panels import draw_lines, mark_findings, short, shown_layers, steps_below
from lbtrain.callbacks._drawing import DPI, WIDTH, house_style
from lbtrain.callbacks._evidence import Evidence, Units
from lbtrain.functional.diagnosis import Finding

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW = 0.75  # inches: height of a histogram
_HALVES = 3.6  # inches: height of the two panels of shares together, at least


def units_figure(evidence: Evidence, findings: Sequence[Finding]) -> Figure | None:
    """Draw each layer's outputs as a histogram at the last step seen, and how many units were dead or saturated when.

    Args:
        evidence: The record of the run.
        findings: Those that this figure shows are marked where they began.

    Returns:
        The figure, of at most 8 layers; None where no unit was seen.
    """
    seen = [point for point in evidence.points if point.units]
    if not seen:
        return None
    shown = next((point for point in reversed(seen) if any(sum(u.counts) for u in point.units.values())), seen[-1])
    last = shown.units
    with house_style():
        from matplotlib.figure import Figure

        colours = shown_layers(list(last), _notable(last))
        height = max(_HALVES, _ROW * len(colours) + 0.6)
        words = f"Units at step {shown.step}: {'; '.join(_counted(name, last[name]) for name in last)}."
        figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained", label=words)
        left, right = figure.subfigures(1, 2, width_ratios=(1, 1.1))
        _draw_histograms(left, last, colours, shown.step)
        top, low = right.subplots(2, 1, sharex=True)
        for axes, title, word in ((top, "Dead units", "dead"), (low, "Saturated units", "saturated")):
            axes.set_title(title)
            shares = {
                layer: [
                    (p.step, getattr(p.units[layer], word) / max(p.units[layer].units, 1))
                    for p in seen
                    if layer in p.units
                ]
                for layer in colours
            }
            draw_lines(axes, shares, colours, unit="share", wide=False)
            axes.set_ylim(-0.03, 1.03)
            mark_findings(axes, [], [f for f in findings if f.problem == f"{word} units"])
        steps_below([top, low])
    return figure


def _draw_histograms(figure: Any, units: Mapping[str, Units], colours: Mapping[str, Any], step: int) -> None:
    """Draw one histogram below the other, from the input on."""
    rows = figure.subplots(len(colours), 1, squeeze=False)[:, 0]
    for axes, (layer, colour) in zip(rows, colours.items(), strict=True):
        _draw_histogram(axes, units[layer], colour)
        axes.set_title(f"{short(layer)} ({units[layer].kind})", fontsize=8.5, fontweight="normal", pad=2)
    figure.suptitle(f"Outputs at step {step}", fontsize=10.5, fontweight="bold", ha="left", x=0.06)


def _draw_histogram(axes: Axes, units: Units, colour: Any) -> None:
    total = sum(units.counts)
    if total:
        axes.stairs([count / total for count in units.counts], units.edges, fill=True, color=colour)
    axes.set_yscale("log")  # the zeros of relu would hide all else
    axes.set_ylim(1e-4, 1)
    axes.set_yticks([1e-4, 1e-2, 1], ["0.01 %", "1 %", "100 %"])
    axes.minorticks_off()
    axes.tick_params(labelsize=7)


def _notable(units: Mapping[str, Units]) -> list[str]:
    """Return the layers with dead or saturated units, the worst first."""
    shares = {layer: max(u.dead, u.saturated) / max(u.units, 1) for layer, u in units.items()}
    return sorted((layer for layer in shares if shares[layer] > 0), key=lambda layer: -shares[layer])


def _counted(name: str, units: Units) -> str:
    return f"{name}, {units.units} {units.kind}, {units.dead} dead and {units.saturated} saturated"
