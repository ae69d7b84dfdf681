"""The training loss as a function of a batch: what SAM, the reduction check, sharpness and the Hessian all ask for."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from lbtrain._lightning import LightningModule, MisconfigurationException, Trainer
from lbtrain.callbacks._traceless import set_random_streams
from lbtrain.functional._outputs import tensors_in


class TrainingLoss:
    """Evaluate `training_step` on a batch, as the Trainer does.

    The step goes through `strategy.training_step`, so precision, DDP and FSDP apply. Call it inside `traceless`, which
    keeps the evaluation silent and puts back what it disturbs.

    Args:
        trainer: The Trainer of the run.
        pl_module: Its LightningModule, with automatic optimization.
        local: Pass by the wrapper of DDP: no buffer broadcast and no gradient reduction, so ranks may evaluate
            different numbers of batches, and a gradient of the gradient can be taken.

    Raises:
        MisconfigurationException: If the module has manual optimization, or a `training_step` that takes the data
            iterator.
    """

    def __init__(self, trainer: Trainer, pl_module: LightningModule, *, local: bool = False) -> None:
        refuse_manual_optimization(pl_module, "evaluating the training loss")
        names = list(inspect.signature(pl_module.training_step).parameters)
        if "dataloader_iter" in names:
            raise MisconfigurationException(
                "training_step takes `dataloader_iter`, so it cannot be evaluated on a given batch: take `batch` "
                "instead"
            )
        self._trainer, self._module = trainer, pl_module
        self._takes_index = len(names) > 1  # the Trainer passes batch_idx by the same rule
        self._local = local and isinstance(trainer.strategy.model, DistributedDataParallel)

    def __call__(self, batch: Any, batch_idx: int = 0, streams: dict[str, Any] | None = None) -> Tensor:
        """Return the training loss of a batch.

        Args:
            batch: On the device, as `training_step` gets it.
            batch_idx: The index that `training_step` is told.
            streams: Random-number state to start from (`random_streams`), for the same dropout masks as another pass.

        Returns:
            The loss, a 0-dim Tensor with its graph, not divided by the accumulation.

        Raises:
            MisconfigurationException: If `training_step` gives no loss for this batch.
        """  # noqa: DOC502 - _loss_of raises it
        return self._loss_of(self._output(batch, batch_idx, streams), batch_idx)

    def with_outputs(
        self, batch: Any, batch_idx: int = 0, streams: dict[str, Any] | None = None
    ) -> Tensor | tuple[Tensor, Any]:
        """Return the training loss of a batch, and the network's outputs if `training_step` returns them beside it.

        Args:
            batch: On the device, as `training_step` gets it.
            batch_idx: The index that `training_step` is told.
            streams: Random-number state to start from, as for the loss alone.

        Returns:
            The loss, or `(loss, outputs)` where `training_step` returns a dict with tensors under 'outputs' that depend
            on a parameter.
        """
        output = self._output(batch, batch_idx, streams)
        loss, outputs = self._loss_of(output, batch_idx), output.get("outputs") if isinstance(output, Mapping) else None
        return (loss, outputs) if tensors_in(outputs) else loss

    def _output(self, batch: Any, batch_idx: int, streams: dict[str, Any] | None) -> Any:
        if streams is not None:
            set_random_streams(streams, self._module.device)
        return self._step(batch, batch_idx) if self._takes_index else self._step(batch)

    @staticmethod
    def _loss_of(output: Any, batch_idx: int) -> Tensor:
        """Return the loss in what `training_step` returned.

        Raises:
            MisconfigurationException: If there is none.
        """
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if not isinstance(loss, Tensor):
            raise MisconfigurationException(
                f"training_step must return the loss, or a dict with it under 'loss', got {type(output).__name__} "
                f"for batch {batch_idx}: without a loss for every batch the training loss is not a function of the "
                "weights"
            )
        return loss

    def _step(self, *args: Any) -> Any:
        strategy = self._trainer.strategy
        if not self._local:
            return strategy.training_step(*args)
        with strategy.precision_plugin.train_step_context():
            return self._module.training_step(*args)


def refuse_manual_optimization(pl_module: LightningModule, what: str) -> None:
    """Refuse a module that steps its optimizers itself.

    Args:
        pl_module: The module.
        what: What needs automatic optimization, for the message.

    Raises:
        MisconfigurationException: If `automatic_optimization` is False.
    """
    if not pl_module.automatic_optimization:
        raise MisconfigurationException(
            f"{what} re-evaluates training_step and needs automatic optimization, but "
            f"{type(pl_module).__name__}.automatic_optimization is False: set it to True or drop the callback"
        )
