"""Sharpness-aware minimization as a callback."""

from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor

from lbtrain._lightning import Callback, LightningModule, MisconfigurationException, Trainer
from lbtrain.callbacks._objective import TrainingLoss, refuse_manual_optimization
from lbtrain.callbacks._traceless import random_streams, traceless
from lbtrain.callbacks._trainer import is_optimizer_step
from lbtrain.functional.ascent import asam_ascent, sam_ascent, shifted

# These shard or own the gradients, so a rank sees neither the whole gradient nor the moment at which it is complete.
_REFUSED = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy", "XLAStrategy", "XLAFSDPStrategy")


class SAM(Callback):
    """Train with the gradient taken at the worst point nearby, `w <- w - lr * grad L_B(w + e)`, `e = rho * g / |g|`.

    After the last backward of an accumulation window the callback climbs along the window's gradient, evaluates the
    same batches again there, goes back to the very same weights and leaves the new gradient in place. Clipping,
    gradient scaling and the optimizer see only that one. The second pass has the dropout masks of the first, and leaves
    no trace in logs, metrics and buffers. On several devices each climbs along the gradient of its own samples (m-SAM
    with m the samples per device and step), and the gradients are reduced once per step. Put the callback before others
    that act in `on_after_backward`: they then see the final gradient.

    Args:
        rho: Radius of the neighbourhood, in units of parameter norm; 0 trains as without the callback. With `adaptive`,
            in units of relative change.
        adaptive: Rescale the neighbourhood with the weights (ASAM); about 0.5 to 2 is then usual for `rho`.

    Raises:
        ValueError: If rho is negative or not finite.

    References:
        Foret et al. (2021), arXiv 2010.01412, algorithm 1; Kwon et al. (2021), arXiv 2102.11600, for `adaptive`.
    """

    def __init__(self, rho: float = 0.05, adaptive: bool = False) -> None:
        if not 0 <= rho < float("inf"):
            raise ValueError(
                f"rho must be at least 0 and finite, got {rho!r}; 0.05 is the usual start, 0 trains without SAM"
            )
        self.rho = rho
        self.adaptive = adaptive
        self._window: list[tuple[Any, int, dict[str, Any]]] = []
        self._local = ExitStack()
        self._copies: dict[int, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what the second pass cannot serve."""
        if stage == "fit":
            refuse_manual_optimization(pl_module, "SAM")
            _refuse_strategy(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the optimizer and take hold of the training loss."""
        _refuse_optimizer(trainer)
        self._reset()
        self._copies = {}
        self._loss = TrainingLoss(trainer, pl_module)
        self._adapted = {id(p): "weight" in name for name, p in pl_module.named_parameters()}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the batch and its random numbers; keep its gradient on this rank."""
        self._window.append((batch, batch_idx, random_streams(pl_module.device)))
        self._graded = False
        self._local.enter_context(_unreduced(trainer))

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the window's gradient by the one at the worst point nearby."""
        self._graded = True
        if self._window and is_optimizer_step(trainer):
            self._local.close()
            window, self._window = self._window, []
            self._replay(trainer, pl_module, window)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Forget a batch whose `training_step` returned None, and with the step the whole window."""
        if not self._graded and self._window:
            self._window.pop()
        if is_optimizer_step(trainer):
            self._reset()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what an epoch that was cut short left behind."""
        self._reset()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let gradients flow between ranks again."""
        self._reset()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the batches and the copies."""
        self._reset()
        self._copies = {}

    def _reset(self) -> None:
        self._local.close()
        self._window = []

    def _replay(
        self, trainer: Trainer, pl_module: LightningModule, window: list[tuple[Any, int, dict[str, Any]]]
    ) -> None:
        optimized = [p for group in trainer.optimizers[0].param_groups for p in group["params"]]
        climbers = [p for p in optimized if p.grad is not None]
        if not climbers:
            return
        steps = self._ascent(climbers)
        known = {id(p) for p in optimized}
        others = [(p, p.grad) for p in pl_module.parameters() if id(p) not in known and p.grad is not None]
        for p in (*optimized, *(p for p, _ in others)):
            p.grad = None
        try:
            backup = self._backup(climbers)
            with traceless(trainer, pl_module, keep_gradients=True), shifted(climbers, steps, backup=backup):
                steps.clear()  # so that the second pass's gradients take over their memory
                self._second_pass(trainer, pl_module, window)
        finally:
            # Nobody steps or clears the gradients of parameters outside the optimizer: leave them as plain training
            # does.
            for p, gradient in others:
                p.grad = gradient

    def _ascent(self, climbers: list[Tensor]) -> list[Tensor]:
        gradients = [p.grad for p in climbers if p.grad is not None]
        with torch.no_grad():
            if self.adaptive:
                return asam_ascent(
                    climbers, gradients, self.rho, adapted=[self._adapted.get(id(p), False) for p in climbers]
                )
            return sam_ascent(gradients, self.rho, in_place=True)

    def _backup(self, climbers: list[Tensor]) -> list[Tensor]:
        """Return memory for copies of the weights, the same from step to step."""
        for p in climbers:
            if id(p) not in self._copies:
                self._copies[id(p)] = torch.empty_like(p, requires_grad=False)
        return [self._copies[id(p)] for p in climbers]

    def _second_pass(
        self, trainer: Trainer, pl_module: LightningModule, window: list[tuple[Any, int, dict[str, Any]]]
    ) -> None:
        precision = trainer.strategy.precision_plugin
        scaler = getattr(precision, "scaler", None)
        for i, (batch, batch_idx, streams) in enumerate(window):
            # As in the Trainer's own loop, all but the last backward stay on the rank.
            with torch.enable_grad(), nullcontext() if i == len(window) - 1 else _unreduced(trainer):
                loss = self._loss(batch, batch_idx, streams) / trainer.accumulate_grad_batches
                # The precision's own backward: the hooks around a backward have run for this step already.
                precision.backward(loss if scaler is None else scaler.scale(loss), pl_module, trainer.optimizers[0])


def _unreduced(trainer: Trainer) -> Any:
    """Return a context in which gradients are not reduced between ranks."""
    block = getattr(trainer.strategy, "block_backward_sync", None)
    return block() if block is not None and trainer.world_size > 1 else nullcontext()


def _refuse_strategy(trainer: Trainer) -> None:
    name = type(trainer.strategy).__name__
    if name in _REFUSED:
        raise MisconfigurationException(
            f"SAM needs the whole gradient on every rank, which {name} does not give: use strategy='ddp' or a "
            "single device"
        )
    if getattr(trainer.strategy, "_ddp_kwargs", {}).get("static_graph"):
        raise MisconfigurationException(
            "SAM keeps the first gradient of a step on its rank, which DDP's static_graph=True forbids: set "
            "static_graph=False"
        )


def _refuse_optimizer(trainer: Trainer) -> None:
    if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in trainer.optimizers):
        raise MisconfigurationException(
            "SAM replaces the gradient of one closure call, but LBFGS calls its closure many times per step: use a "
            "first-order optimizer such as SGD or Adam, or drop SAM"
        )
