"""Momentum-SAM as a callback: an ascent that needs no second pass."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from lbtrain._lightning import LightningModule, MisconfigurationException, Trainer
from lbtrain.callbacks._ascent_log import AscentLog
from lbtrain.callbacks._climber import Climber, Climbers, optimized
from lbtrain.callbacks._moment import Radius
from lbtrain.callbacks._shards import elsewhere, part
from lbtrain.callbacks._trainer import is_optimizer_step
from lbtrain.functional.ascent import momentum_ascent
from lbtrain.functional.space import WHOLE

# Where torch's optimizers keep the average of past gradients.
_MOMENTA = ("momentum_buffer", "exp_avg")


class MomentumSAM(Climber):
    """Take the gradient at `w - rho * v / |v|`, with v the optimizer's momentum: no second pass, no extra reduction.

    Each batch is trained on away from w, and w is back, bit for bit, after its backward: for clipping, the optimizer,
    validation and checkpoints. So the training loss and metrics that a run logs are those at the shifted point. Hooks
    `on_train_batch_start` of callbacks after this one, and of the module, see the shifted weights: put it last among
    those that look at weights there.

    Args:
        rho: Length of the shift, in units of parameter norm; 0 trains as without the callback.
        start: First moment to shift at: an epoch (integer) or a share of training (float).
        stop: Moment to stop at, as `start`; None goes on to the end.
        rho_schedule: `constant`; `linear` or `cosine` from `rho` to `rho_end` over training; `lr` follows the learning
            rate, from `rho` at its highest to `rho_end` at zero.
        rho_end: Length at the end of the schedule; None is 0.
        exclude: Parameters that stay where they are: `biases`, `norms`, names, submodules or patterns with `*`.
        only: If not empty, the parameters that move, named as in `exclude`.

    Raises:
        ValueError: If an argument is out of its range.

    References:
        Becker et al. (2024), arXiv 2401.12033, algorithm 1.
    """

    def __init__(
        self,
        rho: float = 0.3,
        start: float = 0,
        stop: float | None = None,
        rho_schedule: str = "constant",
        rho_end: float | None = None,
        exclude: Sequence[str] = (),
        only: Sequence[str] = (),
    ) -> None:
        super().__init__(Radius(rho, rho_schedule, rho_end), start=start, stop=stop, exclude=exclude, only=only)
        self.rho = rho
        self._log = AscentLog()
        self._away = ExitStack()
        self._climbs: bool | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the optimizer: it must keep a momentum."""
        super().on_train_start(trainer, pl_module)
        _refuse_without_momentum(trainer)
        self._climbs = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Move along the momentum."""
        if self._climbs is None:
            self._climbs = self._span.contains_now(trainer)
            if self._climbs:
                self._note_radii(trainer)
                self._log.open(trainer)
        if self._climbs:
            self._move(trainer)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights back."""
        self._away.close()
        if is_optimizer_step(trainer):
            self._log.send(trainer, pl_module)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Put the weights back where `training_step` returned None."""
        self._away.close()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Put the weights back where `training_step` returned None, and end the step."""
        self._away.close()
        if is_optimizer_step(trainer):
            self._climbs = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights back after an epoch that was cut short."""
        self._away.close()
        self._climbs = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the weights back before a checkpoint is saved."""
        self._away.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the weights back, and let go of the copies."""
        self._away.close()
        super().teardown(trainer, pl_module, stage)

    @torch.no_grad()
    def _move(self, trainer: Trainer) -> None:
        climbers = self._climbers(trainer, _momenta(trainer))
        if not climbers.where and climbers.space is WHOLE:
            return  # before the first step there is no momentum
        if self._log.due:
            self._log.climbed(climbers.space.norm(climbers.gradients), self._radii[0], None)
        steps = self._steps(climbers)
        self._away.enter_context(elsewhere(trainer, climbers.weights, steps, self._backup(climbers)))
        steps.clear()  # the pass needs their memory

    @staticmethod
    def _steps(climbers: Climbers) -> list[Tensor]:
        return momentum_ascent(climbers.gradients, climbers.rho, space=climbers.space)


def _momenta(trainer: Trainer) -> list[Tensor | None]:
    state = trainer.optimizers[0].state
    found = []
    for p in optimized(trainer):
        kept = [state[p][key] for key in _MOMENTA if p in state and state[p].get(key) is not None]
        found.append(part(kept[0]) if kept else None)
    return found


def _refuse_without_momentum(trainer: Trainer) -> None:
    optimizer = trainer.optimizers[0]
    group = optimizer.param_groups[0]
    if group.get("momentum") or "betas" in group:
        return
    raise MisconfigurationException(
        f"MomentumSAM shifts the weights along the optimizer's momentum, and {type(optimizer).__name__} keeps none: "
        "use SGD with momentum=0.9, Adam or AdamW, or SAM instead"
    )
