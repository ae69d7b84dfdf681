"""Curvature without Lightning: an operator from a loss, parameters and batches, and what to do with it.

`HessianOperator(loss, params, batches)` multiplies; `lanczos`, `trace`, `density` and `stability` take its products,
`loss_along` and `loss_on_plane` its values, and the functions of `sharpness` both. docs/curvature.md has an example of
each.
"""

from lbtrain.functional import sharpness
from lbtrain.functional.critical_point import critical_point
from lbtrain.functional.density import density
from lbtrain.functional.lanczos import lanczos
from lbtrain.functional.landscape import loss_along, loss_on_plane
from lbtrain.functional.operator import HessianOperator
from lbtrain.functional.stability import stability
from lbtrain.functional.trace import trace

__all__ = [
    "HessianOperator",
    "critical_point",
    "density",
    "lanczos",
    "loss_along",
    "loss_on_plane",
    "sharpness",
    "stability",
    "trace",
]
