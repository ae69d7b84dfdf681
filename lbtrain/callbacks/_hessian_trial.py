"""Whether a loss has a Gauss-Newton matrix, tried before the first step."""

from contextlib import suppress
from typing import Any

from lbtrain._lightning import LightningModule, MisconfigurationException, Trainer
from lbtrain.callbacks._agreement import together
from lbtrain.callbacks._objective import TrainingLoss
from lbtrain.callbacks._traceless import traceless
from lbtrain.functional._batch_losses import BatchLosses
from lbtrain.functional._double_backward import NoSecondDerivativeError, second_derivative
from lbtrain.functional.gauss_newton import GaussNewtonMatrix


def try_gauss_newton(trainer: Trainer, pl_module: LightningModule, batch: Any, engine: str) -> None:
    """Build the graph of a batch in eval mode, without a trace, so that a refusal does not come after all training.

    Args:
        trainer: The Trainer of the run.
        pl_module: Its module.
        batch: Of this rank, on the device; every rank takes part.
        engine: `auto`, `autograd` or `differences`; a missing second derivative is refused for `autograd` only.

    Raises:
        MisconfigurationException: If the outputs are not known or do not carry the whole loss.
    """  # noqa: DOC502 - _build raises it
    together(trainer, lambda: _build(trainer, pl_module, batch, engine))


def _build(trainer: Trainer, pl_module: LightningModule, batch: Any, engine: str) -> None:
    params = [p for p in pl_module.parameters() if p.requires_grad]
    allowed = () if engine == "autograd" else (NoSecondDerivativeError,)
    with traceless(trainer, pl_module, training=False):
        loss = TrainingLoss(trainer, pl_module, local=True)
        matrix = GaussNewtonMatrix(BatchLosses(params, [lambda: loss.with_outputs(batch)]))
        try:
            with suppress(*allowed), second_derivative():
                matrix.build(0)
        except (ValueError, NoSecondDerivativeError) as error:
            raise MisconfigurationException(f"HessianSpectrum(matrix='ggn') cannot measure: {error}") from error
