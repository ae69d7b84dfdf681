"""Gradient, weights and relative updates by layer, over the steps of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lbtrain.callbacks._diagnosis_panels import draw_lines, finite, mark_findings, panels, shown_layers, steps_below
from lbtrain.callbacks._drawing import GREY, WIDTH, house_style
from lbtrain.callbacks._evidence import Evidence
from lbtrain.functional.diagnosis import Finding

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What is usual for a network that trains: Karpathy (2016), CS231n notes, "ratio of weights:updates".
_USUAL = 1e-3
_HANDLE, _LETTER = 0.65, 0.085  # inches of a legend's entry: its line and the space around it, and a letter


def flow_figure(evidence: Evidence, findings: Sequence[Finding]) -> Figure | None:
    """Draw the root mean square gradient and weight of each layer, and its last update over its weights.

    Args:
        evidence: The record of the run.
        findings: Those that this figure shows are marked where they began.

    Returns:
        The figure, of at most 8 layers; None where nothing was seen.
    """
    layers = list(dict.fromkeys(layer for point in evidence.points for layer in point.flow))
    seen = {layer: [(p.step, p.flow[layer]) for p in evidence.points if layer in p.flow] for layer in layers}
    gradients = {layer: finite((s, f.gradient) for s, f in kept) for layer, kept in seen.items()}
    weights = {layer: finite((s, f.weight) for s, f in kept) for layer, kept in seen.items()}
    moved = {layer: finite((s, f.update) for s, f in kept if f.update is not None) for layer, kept in seen.items()}
    if not any(gradients.values()):
        return None
    known = any(moved.values())
    titles = ["Gradient by layer", "Weights", *["Last update over weights"] * known]
    ends = [f"{layer} {line[-1][1]:.2g}" for layer, line in gradients.items() if line]
    words = f"Root mean square gradient at the last step seen, by layer: {'; '.join(ends)}."
    with house_style():
        colours = shown_layers(layers)
        if len(colours) < len(layers):
            titles[0] += f" ({len(colours)} of {len(layers)})"
        figure, axes = panels(words, titles, first=1.9)
        draw_lines(axes[0], gradients, colours, unit="rms of gradient")
        draw_lines(axes[1], weights, colours, unit="rms of weights")
        if known:
            axes[2].axhline(_USUAL, color=GREY, linewidth=1, linestyle="--")
            draw_lines(axes[2], moved, colours, unit="|update| / |w|")
        mark_findings(axes[0], axes[1:], [f for f in findings if f.figure == "diagnosis_flow"])
        steps_below(axes)
        handles, names = axes[0].get_legend_handles_labels()
        fitting = int(0.93 * WIDTH / (_HANDLE + _LETTER * max(len(name) for name in names)))
        figure.legend(handles, names, loc="outside lower center", ncols=min(fitting, len(names)))
    return figure
