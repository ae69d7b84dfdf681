"""What an ascent reports at the Trainer's log interval, and nothing on other steps."""

import torch
from torch import Tensor

from lbtrain._lightning import LightningModule, Trainer
from lbtrain.callbacks._trainer import data_parallel, loss_scale, steps_to_log


class AscentLog:
    """Collect an optimizer step's numbers: `sam/grad_norm`, `sam/ascent_loss_gain`, `sam/rho`, `sam/m`."""

    def __init__(self) -> None:
        self.due = False
        self._before: list[Tensor] = []
        self._after: list[Tensor] = []
        self._numbers: dict[str, Tensor] = {}

    def open(self, trainer: Trainer, every_n_steps: int = 1) -> None:
        """Start a step that climbs; keep its numbers if no other one comes before the Trainer logs.

        Args:
            trainer: The Trainer, in the first batch of the step.
            every_n_steps: Steps from one ascent to the next.
        """
        self.due = steps_to_log(trainer) < every_n_steps
        if self.due:
            self._before, self._after, self._numbers = [], [], {}

    def before(self, loss: Tensor) -> None:
        """Take a batch's loss at w, as `backward` gets it.

        Args:
            loss: Divided by the accumulation, scaled where a gradient scaler is in use.
        """
        if self.due:
            self._before.append(loss.detach().clone())

    def after(self, loss: Tensor) -> None:
        """Take the same batch's loss at w + e.

        Args:
            loss: Divided and scaled as the one at w.
        """
        if self.due:
            self._after.append(loss.detach().clone())

    def climbed(self, norm: Tensor, rho: float, samples: int | None) -> None:
        """Take the facts of an ascent; those of a step's last ascent count.

        Args:
            norm: Norm of the gradient that was climbed along, scaled as the losses.
            rho: Radius.
            samples: Samples in it on this rank; None if they cannot be counted.
        """
        self._numbers = {"grad_norm": norm.detach().float(), "rho": torch.tensor(float(rho), device=norm.device)}
        if samples is not None:
            self._numbers["m"] = torch.tensor(float(samples), device=norm.device)

    def send(self, trainer: Trainer, pl_module: LightningModule, *, whole: bool = False) -> None:
        """Log the last ascent's numbers, averaged over ranks, if the Trainer logs this step.

        Args:
            trainer: The Trainer, in `on_after_backward` of the step's last batch.
            pl_module: Its module.
            whole: Whether the ascent followed the gradient of all ranks, and m counts all their samples.
        """
        if not self._numbers or steps_to_log(trainer) > 0:
            return
        scale = loss_scale(trainer)
        windows = trainer.accumulate_grad_batches
        numbers = {**self._numbers, "grad_norm": self._numbers["grad_norm"] / scale}
        if self._after and len(self._after) == len(self._before):
            gain = torch.stack(self._after).float().mean() - torch.stack(self._before).float().mean()
            numbers["ascent_loss_gain"] = gain * windows / scale
        values = torch.stack([value.to(pl_module.device) for value in numbers.values()])
        if trainer.world_size > 1:
            values = trainer.strategy.reduce(values, reduce_op="mean")
        found = dict(zip(numbers, values.unbind(), strict=True))
        if whole and "m" in found:
            found["m"] = found["m"] * data_parallel(trainer)
        self._numbers = {}
        pl_module.log_dict({f"sam/{key}": value for key, value in found.items()}, on_step=True, on_epoch=False)
