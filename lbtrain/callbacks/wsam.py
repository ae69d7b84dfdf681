"""Weighted sharpness-aware minimization as a callback."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from lbtrain._lightning import LightningModule, Trainer
from lbtrain.callbacks._climber import optimized, options_of
from lbtrain.callbacks._shards import part
from lbtrain.callbacks._trainer import loss_scale
from lbtrain.callbacks.sam import SAM
from lbtrain.functional.descent import sharpness_weight, wsam_gradient
from lbtrain.functional.space import Space


@options_of(SAM)
class WSAM(SAM):
    """Train on the loss plus a times its sharpness, `L + a (L_SAM - L)`, `a = gamma / (1 - gamma)`.

    Coupled, the optimizer gets `(1 - a) g + a g_s`. Decoupled, it steps with g, so its moments are those of the plain
    gradient, and then `w <- w - lr * a * (g_s - g)`; a clipping acts on g alone, and in scopes `rank` and `micro_batch`
    the gradients are reduced twice per step.

    Args:
        rho: Radius of the neighbourhood, in units of parameter norm.
        gamma: Weight of the sharpness, in [0, 1); 0.5 coupled is SAM, 0 is plain training.
        decoupled: Apply the sharpness beside the optimizer instead of through it.
        **options: The other arguments of `SAM`.

    Raises:
        ValueError: If an argument is out of its range.

    References:
        Yue et al. (2023), arXiv 2305.15817, algorithms 2 and 3.
    """

    combines: ClassVar[str] = "step"

    def __init__(self, rho: float = 0.05, gamma: float = 0.9, decoupled: bool = True, **options: Any) -> None:
        super().__init__(rho, **options)
        self._weight = sharpness_weight(gamma)
        self.gamma, self.decoupled = gamma, decoupled
        self.combines = "step" if decoupled else "ascent"  # type: ignore[misc]
        self._sharpness: list[tuple[int, Tensor]] = []
        self._rates: list[Any] = []
        self._hooks: list[Any] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the hooks of an earlier training."""
        super().on_train_start(trainer, pl_module)
        self._trainer = trainer
        self._unhook()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Reach into the optimizer's step, as late as a warmup, which lowers the rates inside the step, allows."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self.decoupled and not self._hooks:
            optimizer = trainer.optimizers[0]
            self._hooks = [
                optimizer.register_step_pre_hook(lambda *_: self._note_used_rates()),
                optimizer.register_step_post_hook(lambda *_: self._descend()),
            ]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the optimizer."""
        super().teardown(trainer, pl_module, stage)
        self._unhook()

    def _combined(self, first: list[Tensor], second: list[Tensor], where: list[int], space: Space) -> list[Tensor]:
        if not self.decoupled:
            return wsam_gradient(first, second, self.gamma, in_place=True)
        if first:
            change = second
            torch._foreach_sub_(change, first)
            # What is not finite at w + e must reach a gradient scaler, and whoever else guards gradients, as NaN.
            torch._foreach_add_(first, change, alpha=0.0)
            scale = loss_scale(self._trainer)
            if scale != 1.0:
                torch._foreach_div_(change, scale)
            self._sharpness = list(zip(where, change, strict=True))
        return first

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._sharpness = [], []

    def _forget(self) -> None:
        super()._forget()
        self._sharpness = []

    def _note_used_rates(self) -> None:
        self._rates = [group["lr"] for group in self._trainer.optimizers[0].param_groups]

    @torch.no_grad()
    def _descend(self) -> None:
        """Take the step along the sharpness, if the optimizer took its own."""
        params = optimized(self._trainer)
        groups = self._trainer.optimizers[0].param_groups
        rates = [rate for group, rate in zip(groups, self._rates, strict=True) for _ in group["params"]]
        for i, change in self._sharpness:
            part(params[i]).detach().sub_(change * (rates[i] * self._weight))
        self._sharpness = []
