"""What the examinations of a diagnosis look at: a Trainer, its module, a batch, and a fixed part of the data."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lbtrain._lightning import LightningModule, Trainer
from lbtrain.callbacks._first_layer import FirstLayer, first_layer
from lbtrain.callbacks._measure import mean_training_loss
from lbtrain.callbacks._measured_data import measured_batches
from lbtrain.callbacks._traceless import traceless
from lbtrain.functional.invalid_data import named_tensors
from lbtrain.functional.operator import HessianOperator
from lbtrain.functional.vectors import unflatten

# Numbers of inputs that are looked at, over all samples; a choice: 64 MiB in float32, and 80 images of 3 x 256 x 256.
MOST_INPUTS = 2**24
# For graphs that are kept from one product to the next: a choice, those of 256 samples of a small network.
_GRAPH_MEMORY_MB = 256.0


@dataclass
class Scene:
    """Where the examinations take place.

    Args:
        trainer: The Trainer, while it trains.
        pl_module: Its module.
        num_samples: Of the fixed subset.
        seed: Of its draw, and of random directions.
        batch: The first training batch, on the device.
        batch_idx: Its number.
        batch_size: Samples per evaluation and device; None as in training.
    """

    trainer: Trainer
    pl_module: LightningModule
    num_samples: int
    seed: int
    batch: Any = None
    batch_idx: int = 0
    batch_size: int | None = None
    evaluations: float = 0
    """Values, gradients and products of losses so far."""
    loss: float | None = None
    """On the fixed subset, once it was taken."""
    slopes: dict[str, Tensor] = field(default_factory=dict)
    """Gradient of the loss on the fixed subset by parameter, once it was taken."""
    first: FirstLayer = field(default_factory=FirstLayer)
    """What its first layer was given meanwhile."""
    _batches: list[Any] | None = None

    @property
    def weights(self) -> dict[str, Tensor]:
        """The trainable parameters by name."""
        return {name: p for name, p in self.pl_module.named_parameters() if p.requires_grad}

    @property
    def generator(self) -> torch.Generator:
        """A new one, seeded alike on all ranks."""
        return torch.Generator().manual_seed(self.seed)

    @contextmanager
    def subset(self) -> Iterator[HessianOperator]:
        """Open the loss on the fixed subset; all ranks take part.

        Yields:
            The loss.
        """
        options: dict[str, Any] = {"num_samples": self.num_samples, "batch_size": self.batch_size, "seed": self.seed}
        with mean_training_loss(self.trainer, self.pl_module, **options, graph_memory_mb=_GRAPH_MEMORY_MB) as loss:
            try:
                yield loss
            finally:
                self.evaluations += loss.num_gradients

    def take_slopes(self) -> None:
        """Take the loss and the gradient on the fixed subset; all ranks take part."""
        with self.subset() as loss, first_layer(self.pl_module) as self.first:
            self.loss, gradient = loss.value_and_gradient()
            parts = unflatten(gradient, loss.params)
        self.slopes = dict(zip(self.weights, parts, strict=True))

    def subset_batches(self) -> list[Any]:
        """Return this rank's batches of the fixed subset as the network gets them, on the device."""
        if self._batches is None:
            read = measured_batches(self.trainer, self.pl_module, self.num_samples, None, self.seed)
            with traceless(self.trainer, self.pl_module):  # the transfer may augment
                self._batches = [self.to_device(batch) for batch in read]
        return self._batches

    def to_device(self, batch: Any) -> Any:
        """Return a batch as training has it: converted, and through the module's hooks of the transfer."""
        batch = self.trainer.precision_plugin.convert_input(batch)
        batch = self.pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
        return self.trainer.strategy.batch_to_device(batch, dataloader_idx=0)

    def inputs(self) -> Tensor | None:
        """Return the inputs of the fixed subset: the first floating tensor of each batch; None where there is none."""
        found = [
            next((t for t in named_tensors(b).values() if t.is_floating_point()), None) for b in self.subset_batches()
        ]
        return _joined([t for t in found if t is not None and t.ndim > 1])

    def labels(self) -> Tensor | None:
        """Return the labels of the fixed subset: the first tensor of one integer per sample; None without one."""
        found = [next((t for t in named_tensors(b).values() if _is_label(t)), None) for b in self.subset_batches()]
        return _joined([t for t in found if t is not None])


def _is_label(tensor: Tensor) -> bool:
    whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    return whole and (tensor.ndim == 1 or (tensor.ndim == 2 and tensor.shape[1] == 1))


def _joined(parts: Sequence[Tensor]) -> Tensor | None:
    """Return the samples of all parts in one tensor, as many as there is room for; None where they do not fit."""
    if not parts or len({t.shape[1:] for t in parts}) > 1:
        return None
    row = max(parts[0][:1].numel(), 1)
    together = torch.cat([t.detach() for t in parts])
    return together[: max(MOST_INPUTS // row, 1)]
