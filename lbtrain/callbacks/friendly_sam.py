"""Friendly SAM as a callback."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from lbtrain._lightning import LightningModule, Trainer
from lbtrain.callbacks._climber import optimized, options_of
from lbtrain.callbacks._kept import KeptVector, is_finite
from lbtrain.callbacks._moment import check_number
from lbtrain.callbacks._trainer import loss_scale
from lbtrain.callbacks.sam import SAM
from lbtrain.functional.ascent import friendly_direction
from lbtrain.functional.space import Space


@options_of(SAM)
class FriendlySAM(SAM):
    """Climb along what is the batch's own in its gradient, `d = g - sigma * m`, with m the moving average of g.

    `e = rho * d / |d|`, and `m <- decay * m + (1 - decay) * g` with the unmodified gradient of all ranks. The first
    step climbs along g. The average goes into checkpoints. In scopes `rank` and `micro_batch` it costs a second
    reduction of the gradients per step.

    Args:
        rho: Radius of the neighbourhood, in units of parameter norm.
        sigma: Share of the average that is taken off, no unit; 0 is SAM.
        decay: Share of the average that stays, per step that climbs, in [0, 1).
        **options: The other arguments of `SAM`.

    Raises:
        ValueError: If an argument is out of its range.

    References:
        Li et al. (2024), arXiv 2403.12350, algorithm 1.
    """

    combines: ClassVar[str] = "step"

    def __init__(self, rho: float = 0.05, sigma: float = 1.0, decay: float = 0.9, **options: Any) -> None:
        super().__init__(rho, **options)
        check_number("sigma", sigma, "1 is the authors' value, 0 is SAM")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay!r}; 0.9 is the authors' value")
        self.sigma, self.decay = sigma, decay
        self._average = KeptVector("the average gradient of FriendlySAM")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up the average of a checkpoint."""
        super().on_train_start(trainer, pl_module)
        self._trainer = trainer
        self._average.start(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return the average, for a checkpoint.

        Returns:
            Tensors by parameter name.
        """
        return self._average.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the average from a checkpoint.

        Args:
            state_dict: What `state_dict` returned.
        """
        self._average.load_state_dict(state_dict)

    def _direction(self, trainer: Trainer, gradients: list[Tensor | None]) -> list[Tensor | None]:
        where = [i for i, g in enumerate(gradients) if g is not None]
        present = [g for g in gradients if g is not None]
        averages = self._average.get(self._named(trainer, where), present)
        averages = [torch.zeros_like(g) if m is None else m for m, g in zip(averages, present, strict=True)]
        # The average is of whole gradients without a loss scale; that of one batch of a window is divided by their
        # number.
        batches = trainer.accumulate_grad_batches if self.scope == "micro_batch" else 1
        sigma = self.sigma * loss_scale(trainer) / batches
        own = friendly_direction(present, averages, sigma) if present else []
        direction: list[Tensor | None] = [None] * len(gradients)
        for i, d in zip(where, own, strict=True):
            direction[i] = d
        return direction

    def _combined(self, first: list[Tensor], second: list[Tensor], where: list[int], space: Space) -> list[Tensor]:
        scale = loss_scale(self._trainer)
        if first and (scale == 1.0 or is_finite(first)):  # an overflow, whose step is skipped, must not stay for ever
            gradients = torch._foreach_div(first, scale) if scale != 1.0 else first
            names = self._named(self._trainer, where)
            before = self._average.get(names, gradients)
            started = [(m, g) for m, g in zip(before, gradients, strict=True) if m is not None]
            if started:
                torch._foreach_lerp_([m for m, _ in started], [g for _, g in started], 1.0 - self.decay)
            new = [(n, g) for n, m, g in zip(names, before, gradients, strict=True) if m is None]
            self._average.put([n for n, _ in new], [g.clone() for _, g in new])
        return second

    def _named(self, trainer: Trainer, where: list[int]) -> list[str]:
        params = optimized(trainer)
        return [self._name(params[i], i) for i in where]
