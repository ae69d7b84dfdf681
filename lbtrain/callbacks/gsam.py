"""Surrogate-gap guided SAM as a callback."""

from typing import Any, ClassVar

from torch import Tensor

from lbtrain.callbacks._climber import options_of
from lbtrain.callbacks._moment import check_number
from lbtrain.callbacks.sam import SAM
from lbtrain.functional.descent import gsam_gradient
from lbtrain.functional.space import Space


@options_of(SAM)
class GSAM(SAM):
    """Train with SAM's gradient minus alpha times the part of the plain gradient orthogonal to it.

    `g_s - alpha * (g - (<g, g_s> / |g_s|^2) g_s)`: the loss at w + e falls as with SAM, and the gap between it and the
    loss at w, a measure of sharpness, falls faster. In scope `rank` each device makes its own, as the authors do, and
    the results are averaged: one reduction per step. `rho_schedule=lr` is the authors' radius.

    Args:
        rho: Radius of the neighbourhood, in units of parameter norm.
        alpha: Weight of the orthogonal part, no unit; 0 is SAM.
        **options: The other arguments of `SAM`.

    Raises:
        ValueError: If an argument is out of its range.

    References:
        Zhuang et al. (2022), arXiv 2203.08065, algorithm 1.
    """

    combines: ClassVar[str] = "ascent"

    def __init__(self, rho: float = 0.05, alpha: float = 0.4, **options: Any) -> None:
        super().__init__(rho, **options)
        check_number("alpha", alpha, "0.4 is the value of the authors' CIFAR-10 example, 0 is SAM")
        self.alpha = alpha

    def _combined(self, first: list[Tensor], second: list[Tensor], where: list[int], space: Space) -> list[Tensor]:
        return gsam_gradient(first, second, self.alpha, in_place=True, space=space)
