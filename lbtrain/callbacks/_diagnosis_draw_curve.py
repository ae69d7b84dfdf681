"""The training curve of a run, with its rate and stability below, and marks where problems began."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lbtrain.callbacks._diagnosis_panels import Line, finite, mark_findings, panels, steps_below
from lbtrain.callbacks._drawing import BLUE, GREY, ORANGE, house_style, log_if_wide
from lbtrain.callbacks._evidence import Evidence
from lbtrain.functional.diagnosis import Finding

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Points along a curve: more than a figure of 900 pixels can show apart.
_MOST_POINTS = 600
_STABILITY = r"Stability, $\mathrm{lr}\,\lambda_{\max}/2$ for plain SGD: 1 at the edge"


def curve_figure(evidence: Evidence, findings: Sequence[Finding]) -> Figure | None:
    """Draw the loss of the batches and of the fixed subset; below, stability against its edge, and the rate.

    Args:
        evidence: The record of the run.
        findings: Marked where they began.

    Returns:
        The figure; None without a finite loss.
    """
    batches = finite(enumerate(evidence.losses))
    subset = finite((p.step, p.loss) for p in evidence.points)
    if not batches and not subset:
        return None
    stability = finite((p.step, p.stability) for p in evidence.points if p.stability is not None)
    rates = finite(enumerate(evidence.rates)) or finite((p.step, p.rate) for p in evidence.points)
    titles = ["Training loss", *[_STABILITY] * bool(stability), *["Learning rate"] * bool(rates)]
    with house_style():
        figure, (top, *below) = panels(_words(evidence, subset or batches, stability), titles)
        _draw_losses(top, evidence, batches, subset)
        if stability:
            _draw_stability(below[0], stability)
        if rates:
            below[-1].plot(*zip(*_thinned(rates), strict=True), color=GREY, marker=_mark(rates))
            below[-1].set_ylim(bottom=0)
            below[-1].set_ylabel("rate")
        mark_findings(top, below, findings)
        steps_below([top, *below])
    return figure


def _draw_losses(axes: Axes, evidence: Evidence, batches: Line, subset: Line) -> None:
    if batches:
        low, middle, high = _band(batches)
        if len(batches) > _MOST_POINTS:
            xs = [x for x, _ in middle]
            axes.fill_between(xs, [y for _, y in low], [y for _, y in high], color=BLUE, alpha=0.2, linewidth=0)
        axes.plot(
            *zip(*middle, strict=True), color=BLUE, alpha=0.6, linewidth=0.9, marker=_mark(batches), label="batches"
        )
    if subset:
        axes.plot(*zip(*subset, strict=True), "o-", color=ORANGE, label="fixed subset")
    lost = [step for step, loss in enumerate(evidence.losses) if not math.isfinite(loss)]
    lost += [p.step for p in evidence.points if not math.isfinite(p.loss)]
    if lost:
        axes.axvline(min(lost), color="black", linewidth=1.2, label=f"not finite from step {min(lost)}")
    log_if_wide(axes, [y for line in (batches, subset) for _, y in line])
    axes.set_ylabel("loss")
    axes.legend(loc="upper right", frameon=True, framealpha=0.85, edgecolor="none")


def _mark(line: Line) -> str:
    return "o" if len(line) == 1 else ""  # one point makes no line


def _draw_stability(axes: Axes, stability: Line) -> None:
    axes.plot(*zip(*stability, strict=True), "o-", color=BLUE)
    axes.axhline(1, color=ORANGE, linestyle="--")
    log_if_wide(axes, [1.0, *(y for _, y in stability)])
    axes.set_ylabel("stability")


def _band(line: Line) -> tuple[Line, Line, Line]:
    """Return the smallest, mean and largest value of stretches of a line."""
    width = math.ceil(len(line) / _MOST_POINTS)
    stretches = [line[i : i + width] for i in range(0, len(line), width)]
    middles = [part[len(part) // 2][0] for part in stretches]
    values = [[y for _, y in part] for part in stretches]
    return (
        [(x, min(ys)) for x, ys in zip(middles, values, strict=True)],
        [(x, sum(y / len(ys) for y in ys)) for x, ys in zip(middles, values, strict=True)],
        [(x, max(ys)) for x, ys in zip(middles, values, strict=True)],
    )


def _thinned(line: Line) -> Line:
    """Return at most about 600 points of a line, the last among them."""
    width = math.ceil(len(line) / _MOST_POINTS)
    return [*line[:-1:width], line[-1]]


def _words(evidence: Evidence, line: Line, stability: Line) -> str:
    (start, first), (end, last) = line[0], line[-1]
    words = f"Training loss {first:.3g} at step {start} and {last:.3g} at step {end}"
    if stability:
        step, most = max(stability, key=lambda point: point[1])
        words += f"; stability at most {most:.2g}, at step {step}, where 1 is the edge"
    lost = sum(not math.isfinite(loss) for loss in evidence.losses)
    return f"{words}; {lost} losses are not finite." if lost else f"{words}."
