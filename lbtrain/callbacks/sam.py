"""Sharpness-aware minimization as a callback."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import Tensor

from lbtrain._lightning import LightningModule, Trainer
from lbtrain.callbacks._ascent_log import AscentLog
from lbtrain.callbacks._climber import Climber, Climbers
from lbtrain.callbacks._gradients import unreduced
from lbtrain.callbacks._moment import Radius, check_count, check_number
from lbtrain.callbacks._second_pass import Recorded, SecondPass
from lbtrain.callbacks._shards import is_sharded
from lbtrain.callbacks._strategies import SCOPES
from lbtrain.callbacks._traceless import random_streams
from lbtrain.callbacks._trainer import is_optimizer_step
from lbtrain.functional.ascent import ETA, asam_ascent, sam_ascent
from lbtrain.functional.space import WHOLE, Space


class SAM(Climber):
    """Train with the gradient taken at the worst point nearby, `w <- w - lr * grad L_B(w + e)`, `e = rho * g / |g|`.

    After the last backward of an accumulation window the callback climbs along the window's gradient, evaluates the
    same batches again there, goes back to the very same weights and leaves the new gradient in place. Clipping,
    gradient scaling and the optimizer see only that one. The second pass has the dropout masks of the first, and leaves
    no trace in logs, metrics and buffers. Put the callback before others that act in `on_after_backward`: they then see
    the final gradient. Logs `sam/grad_norm`, `sam/ascent_loss_gain` = L(w + e) - L(w), `sam/rho` and `sam/m`, the
    samples per ascent, at the Trainer's log interval.

    Args:
        rho: Radius of the neighbourhood, in units of parameter norm; 0 trains as without the callback, at twice the
            cost. With `adaptive`, in units of relative change. A parameter group with a key `sam_rho` has its own; 0
            there leaves the group out.
        adaptive: Rescale the neighbourhood with the weights (ASAM); about 0.5 to 2 is then usual for `rho`.
        eta: With `adaptive`, what is added to |w|, in units of the weights.
        p: Norm of the ball, 2 or inf.
        scope: Whose gradient is climbed along. `rank`: each device its own, and gradients are reduced once per step.
            `global`: that of all devices, with a second reduction; the same result on any number of devices.
            `micro_batch`: that of each batch of an accumulation window; no batches are kept.
        every_n_steps: Climb on every n-th optimizer step, and train plainly on the others.
        scale_rho: Multiply rho by `every_n_steps`.
        start: First moment to climb at: an epoch (integer) or a share of training (float).
        stop: Moment to stop climbing at, as `start`; None climbs to the end.
        rho_schedule: `constant`; `linear` or `cosine` from `rho` to `rho_end` over training; `lr` follows the learning
            rate, from `rho` at its highest to `rho_end` at zero.
        rho_end: Radius at the end of the schedule; None is 0.
        exclude: Parameters that stay where they are: `biases`, `norms`, names, submodules or patterns with `*`.
        only: If not empty, the parameters that climb, named as in `exclude`.
        clone_batches: Keep copies of the batches, for a `training_step` that changes its batch in place; without them
            the second pass sees a batch as the first one left it.

    Raises:
        ValueError: If an argument is out of its range.

    References:
        Foret et al. (2021), arXiv 2010.01412, algorithm 1; Kwon et al. (2021), arXiv 2102.11600, for `adaptive`;
        Andriushchenko and Flammarion (2022), arXiv 2206.06232, for `scope`.
    """

    # How the gradients g at w and g_s at w + e become the optimizer's: not at all (g_s is it), in each ascent, or once
    # per step from both gradients averaged over the ranks.
    combines: ClassVar[str] = "never"

    def __init__(
        self,
        rho: float = 0.05,
        adaptive: bool = False,
        eta: float = ETA,
        p: float = 2.0,
        scope: str = "rank",
        every_n_steps: int = 1,
        scale_rho: bool = False,
        start: float = 0,
        stop: float | None = None,
        rho_schedule: str = "constant",
        rho_end: float | None = None,
        exclude: Sequence[str] = (),
        only: Sequence[str] = (),
        clone_batches: bool = False,
    ) -> None:
        _check(eta, p, scope, every_n_steps)
        radius = Radius(rho, rho_schedule, rho_end, factor=every_n_steps if scale_rho else 1)
        super().__init__(radius, start=start, stop=stop, exclude=exclude, only=only)
        self.rho, self.adaptive, self.eta, self.p = rho, adaptive, eta, p
        self.scope, self.every_n_steps, self.clone_batches = scope, every_n_steps, clone_batches
        self.log_of_ascent = AscentLog()
        self._local = ExitStack()
        self._second: SecondPass | None = None
        self._forget()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the optimizer and take hold of the training loss."""
        super().on_train_start(trainer, pl_module)
        self._second = SecondPass(self, trainer, pl_module)
        self._forget()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the batch and its random numbers; keep its gradient on this rank."""
        if self._climbs is None:
            self._climbs = self._climbs_now(trainer)
            if self._climbs:
                self._note_radii(trainer)
                self.log_of_ascent.open(trainer, self.every_n_steps)
        self._graded = False
        if self._climbs:
            kept = deepcopy(batch) if self.clone_batches else batch
            self._window.append((kept, batch_idx, random_streams(pl_module.device)))
            if self.scope != "global":
                self._local.enter_context(unreduced(trainer))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Note the loss; with an ascent per batch, put the gradient of the batches before aside."""
        if self._climbs:
            self.log_of_ascent.before(loss)
            if self.scope == "micro_batch":
                self._second.put_aside()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the gradient by the one at the worst point nearby."""
        self._graded, last = True, is_optimizer_step(trainer)
        if self._climbs and (last or self.scope == "micro_batch"):
            if last:
                self._local.close()
            window, self._window = self._window, []
            self._second.replace_gradient(window, last=last)
        elif last:
            self._step_without_ascent(trainer)
        if last:
            self._tell(trainer, pl_module)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Act on the gradient of the batches before, where the last one's `training_step` returned None."""
        if self._graded:
            return
        self._local.close()
        window, self._window = self._window[:-1], []
        if window:
            self._second.replace_gradient(window, last=True)
        elif self._climbs:
            self._second.conclude()
        else:
            self._step_without_ascent(trainer)
        self._tell(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Forget a batch whose `training_step` returned None, and with the step the whole window."""
        if not self._graded and self._window:
            self._window.pop()
        if is_optimizer_step(trainer):
            self._forget()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what an epoch that was cut short left behind."""
        self._forget()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let gradients flow between ranks again."""
        self._forget()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the batches and the copies."""
        super().teardown(trainer, pl_module, stage)
        self._forget()
        self._second = None

    def _forget(self) -> None:
        self._local.close()
        self._climbs: bool | None = None
        self._graded = True
        self._window: list[Recorded] = []
        if self._second is not None:
            self._second.forget()

    def _tell(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.log_of_ascent.send(trainer, pl_module, whole=self.scope == "global" or is_sharded(trainer))

    def _climbs_now(self, trainer: Trainer) -> bool:
        return trainer.global_step % self.every_n_steps == 0 and self._span.contains_now(trainer)

    def _steps(self, climbers: Climbers, *, in_place: bool) -> list[Tensor]:
        """Return the ascent step of each climber."""
        if not climbers.where and climbers.space is WHOLE:
            return []
        common = {"p": self.p, "in_place": in_place, "space": climbers.space}
        if not self.adaptive:
            return sam_ascent(climbers.gradients, climbers.rho, **common)
        scratch = self._backup(climbers)
        weights, adapted = climbers.weights, climbers.adapted
        return asam_ascent(
            weights, climbers.gradients, climbers.rho, adapted=adapted, eta=self.eta, scratch=scratch, **common
        )

    def _direction(self, trainer: Trainer, gradients: list[Tensor | None]) -> list[Tensor | None]:
        """Return what to climb along, given the gradient at w; new tensors, or the gradients themselves."""
        return gradients

    def _combined(self, first: list[Tensor], second: list[Tensor], where: list[int], space: Space) -> list[Tensor]:
        """Return the optimizer's gradient, given those at w and at w + e of the parameters at these positions."""
        return second

    def _step_without_ascent(self, trainer: Trainer) -> None:
        """Act on the gradient of a step that does not climb."""


def _check(eta: float, p: float, scope: str, every_n_steps: int) -> None:
    check_number("eta", eta, "0.01 is the usual value")
    if p not in (2, math.inf):
        raise ValueError(f"p must be 2 or inf, got {p!r}: the ascent has a closed form for these two norms")
    if scope not in SCOPES:
        raise ValueError(f"scope must be one of {', '.join(SCOPES)}, got {scope!r}")
    check_count("every_n_steps", every_n_steps)
