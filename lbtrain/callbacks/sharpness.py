"""Sharpness of the training loss, by any definition, when training ends and during it."""

import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from lbtrain._lightning import LightningModule, MisconfigurationException, Trainer
from lbtrain.callbacks._measure import check_measure_arguments, mean_training_loss
from lbtrain.callbacks._measurement import Measurement
from lbtrain.callbacks._sharpness_choice import read
from lbtrain.callbacks._sharpness_kinds import weight_of
from lbtrain.callbacks._sharpness_result import Measured, SharpnessResult, measured
from lbtrain.functional.hvp import MeanLoss
from lbtrain.functional.interruption import Interrupted
from lbtrain.functional.normalized_logits import NormalizedLogits
from lbtrain.functional.progress import Progress


class Sharpness(Measurement):
    """Measure how far the training loss rises near the weights, by the definitions that are asked for.

    On the training data in eval mode, in order, without augmentation where the data module offers
    `measure_dataloader()`. Each maximum is the largest rise met on an ascent: a lower bound, never negative. `.result`
    holds the numbers by name; they are also in `trainer.callback_metrics`, in the loggers and in the summary, under
    `sharpness/NAME` and `sharpness/NAME_stderr`.

    Args:
        measures: Which ones: `keskar`, `keskar_subspace`, `sam`, `sam_one_step`, `sam_inf`, `average`, `adaptive`,
            `adaptive_inf`, `adaptive_kwon`, `adaptive_average`, `scaled_hessian`, `relative_flatness`; `m_` before one
            that is a maximum gives the mean over batches of each one's own. A list of names, where one with arguments
            is a mapping, `["keskar", {"sam": {"rho": 0.1}}]`; or a mapping of all. `{"wide": {"kind": "sam", "rho":
            0.5}}` measures one a second time under another name.
        normalize_logits: Measure cross-entropy with the logits of each sample centred and of length 1.
        num_samples: Measure on this many training samples, drawn by seed; None for all.
        batch_size: Samples per evaluation and device; None as in training. Larger is faster while it fits into memory.
            For the `m_` measures it is m.
        every_n_steps: Measure also after each n-th optimizer step; None: not by steps.
        every_n_epochs: Measure also after each n-th epoch; None: not by epochs.
        graph_memory_mb: Memory for gradient graphs that `scaled_hessian` and `relative_flatness` keep between their
            Hessian products, in MiB; the other measures keep none.
        seed: Of the random starts and draws, each measure with its own, and of the draw of samples.

    Raises:
        ValueError: If an argument is out of range, or a measure or its argument is unknown.

    References:
        Keskar et al. (2017), arXiv 1609.04836; Foret et al. (2021), arXiv 2010.01412; Kwon et al. (2021), arXiv
        2102.11600; Andriushchenko et al. (2023), arXiv 2302.07011; Petzka et al. (2021), arXiv 2001.00939.
    """

    identity = (*Measurement.identity, "measures", "normalize_logits")

    def __init__(
        self,
        measures: str | Iterable[Any] | Mapping[str, Any] = ("keskar", "sam", "average", "adaptive"),
        *,
        normalize_logits: bool = False,
        num_samples: int | None = None,
        batch_size: int | None = None,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        graph_memory_mb: float = 1024,
        seed: int = 0,
    ) -> None:
        super().__init__(every_n_steps, every_n_epochs)
        check_measure_arguments(num_samples, batch_size, seed)
        if not isinstance(normalize_logits, bool):
            raise ValueError(f"normalize_logits must be True or False, got {normalize_logits!r}")
        if not graph_memory_mb >= 0:
            raise ValueError(f"graph_memory_mb must be at least 0, got {graph_memory_mb!r}")
        self._wanted = read(measures)
        self.measures = {w.name: dict(w.arguments) for w in self._wanted}
        self.normalize_logits = normalize_logits
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.graph_memory_mb = graph_memory_mb
        self.seed = seed
        self.result: SharpnessResult | None = None

    @property
    def own_keys(self) -> dict[str, str]:
        """The key of each measure, and how to give it another."""
        move = "give one of them a name of its own, measures={{'{}_2': {{'kind': '{}'}}}}, or measure it once"
        return {f"sharpness/{w.name}": move.format(w.name, w.definition) for w in self._wanted}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what could not be measured."""
        super().on_train_start(trainer, pl_module)
        self._check_module(pl_module)
        if self.normalize_logits:
            self._check_logits(trainer, pl_module)

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> SharpnessResult:
        """Return the sharpness at the current weights; every rank takes part.

        Args:
            trainer: The Trainer, outside its evaluation loops.
            pl_module: Its module.

        Returns:
            All measures with their errors; after an interruption those that were done.

        Raises:
            Interrupted: If the user stopped it before the first was done.
        """
        start = time.perf_counter()
        done: list[Measured] = []
        interrupted = False
        with self._loss(trainer, pl_module) as loss:
            base = loss.value()
            try:
                for i in range(len(self._wanted)):
                    done.append(self._take(i, loss, pl_module))
            except Interrupted:
                if not done:
                    raise
                interrupted = True
        return SharpnessResult(base, tuple(done), interrupted, time.perf_counter() - start)

    def _take(self, i: int, loss: MeanLoss, module: LightningModule) -> Measured:
        start, wanted = time.perf_counter(), self._wanted[i]
        if self.watch is not None:
            nan, count = float("nan"), len(self._wanted)
            self.watch(Progress(f"{wanted.name} ({i + 1} of {count})", i, count, nan, nan, "measures"))
        # A seed of its own, so that a measure says the same whichever others are taken.
        generator = torch.Generator().manual_seed((self.seed << 32) ^ zlib.crc32(wanted.name.encode()))
        found = wanted.take(loss, module, generator)
        return measured(wanted.name, found, time.perf_counter() - start)

    @contextmanager
    def _loss(self, trainer: Trainer, module: LightningModule) -> Iterator[MeanLoss]:
        with self._data(trainer, module) as loss, NormalizedLogits() if self.normalize_logits else nullcontext():
            yield loss

    def _data(self, trainer: Trainer, module: LightningModule) -> AbstractContextManager[MeanLoss]:
        options = {"num_samples": self.num_samples, "batch_size": self.batch_size, "seed": self.seed}
        return mean_training_loss(trainer, module, graph_memory_mb=self.graph_memory_mb, **options)

    def _check_module(self, module: LightningModule) -> None:
        count = sum(p.numel() for p in module.parameters() if p.requires_grad)
        for wanted in self._wanted:
            if wanted.kind == "relative_flatness":
                weight_of(module, wanted.arguments.get("layer"))
            dim = wanted.arguments.get("dim", 100) if wanted.kind == "keskar_subspace" else 1
            if dim > count:
                raise MisconfigurationException(
                    f"{wanted.name} in a subspace of dim={dim} of the {count} trainable parameters: set its dim to at "
                    f"most {count}, or take keskar, which measures in the full space"
                )

    def _check_logits(self, trainer: Trainer, module: LightningModule) -> None:
        with self._data(trainer, module) as loss, NormalizedLogits() as mode, torch.no_grad():
            for evaluate in loss.losses[:1]:
                evaluate()
            # Summed, so that a rank without data does not refuse alone.
            calls = loss.total(torch.tensor(float(mode.num_calls), device=loss.device))
        if not calls:
            raise MisconfigurationException(
                "normalize_logits=True, but training_step calls no torch.nn.functional.cross_entropy, whose logits "
                "could be normalized (nn.CrossEntropyLoss calls it): use it, or set normalize_logits to False"
            )
