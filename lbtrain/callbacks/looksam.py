"""LookSAM as a callback."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from lbtrain._lightning import LightningModule, Trainer
from lbtrain.callbacks._climber import optimized, options_of
from lbtrain.callbacks._gradients import give, take
from lbtrain.callbacks._kept import KeptVector, is_finite
from lbtrain.callbacks._moment import check_number
from lbtrain.callbacks._shards import space_of
from lbtrain.callbacks._trainer import loss_scale
from lbtrain.callbacks.sam import SAM
from lbtrain.functional.descent import looksam_direction, looksam_gradient
from lbtrain.functional.space import Space


@options_of(SAM)
class LookSAM(SAM):
    """Climb on every n-th step only, and reuse on the others the part of SAM's gradient that is orthogonal to g.

    A step that climbs keeps `g_v = g_s - (<g_s, g> / |g|^2) g`, over all parameters together and all ranks; the others
    train with `g + alpha * (|g| / |g_v|) g_v`, at the cost of a plain step. g_v goes into checkpoints. In scopes `rank`
    and `micro_batch` a step that climbs costs a second reduction of the gradients.

    Args:
        rho: Radius of the neighbourhood, in units of parameter norm.
        alpha: Length of the reused part, in units of |g|.
        every_n_steps: Climb on every n-th optimizer step.
        **options: The other arguments of `SAM`.

    Raises:
        ValueError: If an argument is out of its range.

    References:
        Liu et al. (2022), arXiv 2203.02714, algorithm 1.
    """

    combines: ClassVar[str] = "step"

    def __init__(self, rho: float = 0.1, alpha: float = 0.7, every_n_steps: int = 10, **options: Any) -> None:
        super().__init__(rho, every_n_steps=every_n_steps, **options)
        check_number("alpha", alpha, "0.7 is the usual value, 0 trains plainly between the ascents")
        self.alpha = alpha
        self._kept = KeptVector("the direction of LookSAM")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up the direction of a checkpoint."""
        super().on_train_start(trainer, pl_module)
        self._trainer = trainer
        self._kept.start(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return the direction, for a checkpoint.

        Returns:
            Tensors by parameter name.
        """
        return self._kept.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the direction from a checkpoint.

        Args:
            state_dict: What `state_dict` returned.
        """
        self._kept.load_state_dict(state_dict)

    def _combined(self, first: list[Tensor], second: list[Tensor], where: list[int], space: Space) -> list[Tensor]:
        direction = looksam_direction(first, second, space=space)
        if loss_scale(self._trainer) == 1.0 or is_finite(direction):  # keep no overflow, whose step is skipped
            self._kept.clear()
            params = optimized(self._trainer)
            self._kept.put([self._name(params[i], i) for i in where], direction)
        return second

    def _step_without_ascent(self, trainer: Trainer) -> None:
        if not self._kept or not self._span.contains_now(trainer):
            return
        with torch.no_grad():
            params = optimized(trainer)
            gradients = take(params)
            where = [i for i, g in enumerate(gradients) if g is not None]
            present = [g for g in gradients if g is not None]
            kept = self._kept.get([self._name(params[i], i) for i in where], present)
            direction = [torch.zeros_like(g) if v is None else v for v, g in zip(kept, present, strict=True)]
            space = space_of(trainer, [params[i] for i in where])
            for i, value in zip(where, looksam_gradient(present, direction, self.alpha, space=space), strict=True):
                gradients[i] = value
            give(params, gradients)
