"""The last accumulation window of an epoch, where it holds fewer batches than the Trainer divides their losses by."""

import torch

from lbtrain._lightning import MisconfigurationException, Trainer
from lbtrain.callbacks._shards import part


class PartialWindow:
    """Count the batches of the current window, and make the gradient of a partial one the mean over its batches.

    A window that a resumed run finishes is partial, too: the gradient of the batches before the checkpoint is lost.
    """

    def __init__(self) -> None:
        self.batches = 0

    def rescale(self, trainer: Trainer, optimizer: torch.optim.Optimizer) -> None:
        """Multiply the gradients by N / j, for a window of j batches, which the Trainer has divided by N.

        Args:
            trainer: The Trainer, in `on_before_optimizer_step`.
            optimizer: Whose gradients to rescale, in place; those of other parameters are left alone.
        """
        divided_by = trainer.accumulate_grad_batches
        if not 0 < self.batches < divided_by:
            return
        parameters = (p for group in optimizer.param_groups for p in group["params"])
        gradients = [part(p.grad) for p in parameters if p.grad is not None]
        dense = [g for g in gradients if not g.is_sparse]
        with torch.no_grad():
            if dense:
                torch._foreach_mul_(dense, divided_by / self.batches)
            for gradient in gradients:
                if gradient.is_sparse:
                    gradient.mul_(divided_by / self.batches)


def refuse_own_accumulation(trainer: Trainer) -> None:
    """Refuse strategies that accumulate by themselves.

    Args:
        trainer: The Trainer.

    Raises:
        MisconfigurationException: Under DeepSpeed.
    """
    if trainer.strategy.handles_gradient_accumulation:
        raise MisconfigurationException(
            f"fix_partial_window=True rescales the gradient of the last step of an epoch, but "
            f"{type(trainer.strategy).__name__} accumulates by itself, across epochs, and has no such step: set "
            "fix_partial_window=False"
        )
