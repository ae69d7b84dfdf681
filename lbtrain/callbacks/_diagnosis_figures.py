"""The figures of a diagnosis: the training curve, the units and the flow of gradients, as far as they were seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lbtrain.callbacks._diagnosis_draw_curve import curve_figure
from lbtrain.callbacks._diagnosis_draw_flow import flow_figure
from lbtrain.callbacks._diagnosis_draw_units import units_figure
from lbtrain.callbacks._evidence import Evidence
from lbtrain.functional.diagnosis import Finding

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DRAW = {"diagnosis_curve": curve_figure, "diagnosis_units": units_figure, "diagnosis_flow": flow_figure}


def draw_diagnosis(evidence: Evidence, findings: Sequence[Finding]) -> dict[str, Figure]:
    """Draw what a run showed of itself.

    Args:
        evidence: The record of the run.
        findings: What was found in it; the figures mark where each began.

    Returns:
        Figures by stem, `diagnosis_curve`, `diagnosis_units` and `diagnosis_flow`; only those with something to see.
    """
    drawn = {stem: draw(evidence, findings) for stem, draw in _DRAW.items()}
    return {stem: figure for stem, figure in drawn.items() if figure is not None}
