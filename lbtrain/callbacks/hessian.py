"""Curvature of the training loss: eigenvalues, trace, density and a verdict, when training ends and during it."""

import math
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from lbtrain._lightning import LightningModule, MisconfigurationException, Trainer, rank_zero_info
from lbtrain.callbacks._hessian_arguments import Questions, check_hessian_arguments
from lbtrain.callbacks._hessian_figures import draw
from lbtrain.callbacks._hessian_result import HessianResult, TrackedCurvature
from lbtrain.callbacks._hessian_run import HessianRun
from lbtrain.callbacks._hessian_trial import try_gauss_newton
from lbtrain.callbacks._measure import check_measure_arguments, mean_training_loss
from lbtrain.callbacks._measurement import Measurement
from lbtrain.callbacks._sharded_measure import count_parameters, refuse_engine


class HessianSpectrum(Measurement):
    """Measure the Hessian of the training loss when training ends, and its largest eigenvalues during training.

    On the training data in eval mode, in order, without augmentation where the data module offers
    `measure_dataloader()`. Lanczos with full reorthogonalization runs until the residual `|H x - lambda x|` of every
    reported eigenvalue is below `tol` times the largest; equal eigenvalues are found as often as they occur. From the
    same products come the trace, the Frobenius norm and the spectral density; then how far the optimizer is from the
    edge of stability, whether the weights are a minimum, a saddle, a plateau or not critical, and how well the data
    determine lambda_max. `.result` holds all of it; the numbers are also in `trainer.callback_metrics`, in the loggers
    and in the summary, under `hessian/...`, and one line says the verdict.

    During training (`every_n_steps`, `every_n_epochs`) only the largest eigenvalues, the stability, the loss and the
    gradient norm are measured, from the last eigenvectors on, which takes a handful of products; `.tracks` has them. An
    optimizer that scales each weight (Adam, RMSprop) costs another search each time, for its stability.

    All trainable parameters are measured; the optimizer is the Trainer's only one, as automatic optimization demands.

    Args:
        top_k: Number of largest eigenvalues.
        tol: Bound on the residuals, relative to the largest eigenvalue's size.
        num_samples: Measure on this many training samples, drawn by seed; None for all.
        batch_size: Samples per evaluation and device; None as in training. Larger is faster while it fits into memory.
        every_n_steps: Track after each n-th optimizer step; None: not by steps.
        every_n_epochs: Track after each n-th epoch; None: not by epochs.
        matrix: `hessian`, or `ggn` for the generalized Gauss-Newton matrix; its keys then begin with `ggn/`.
        engine: How products are made: `autograd` (double backward), `differences` (of gradients), or `auto` to take
            the first where it works, and say why where it does not.
        trace_probes: Random vectors for the trace and the Frobenius norm, one product each; 0 leaves both out.
        density_probes: Random vectors for a density of its own, `density_steps` products each; 0 for the one-probe
            density that the eigenvalue search gives free.
        density_steps: Lanczos steps of each of them.
        by_layer: Whether to measure the block of each layer too (a module's own parameters, weight and bias together).
        split_check: Whether to estimate lambda_max with the direction of one half of the batches on the other half.
        keep_vectors: Whether `.result` keeps the eigenvectors.
        figures: Which to draw: `density`, `tracks`, `line` (the loss along the top eigenvector), `plane` (along the top
            two, 122 values of the loss), `layers`. A Trainer with neither a logger nor a default_root_dir gets none.
        max_matvecs: Products to spend on the eigenvalues at the most; when they do not suffice, the result says not
            converged.
        graph_memory_mb: Memory for gradient graphs that are kept between products, in MiB; the others are built again
            for each product.
        basis_memory_mb: Memory for the Krylov basis, in MiB, beyond which it is compressed; None: one vector per
            product.
        seed: Of the start vector and of the draw of samples.

    Raises:
        ValueError: If an argument is out of range.
    """

    serves_shards = True
    identity = (*Measurement.identity, "matrix", "engine", "top_k", "tol", "max_matvecs", "by_layer", "density_probes")

    def __init__(
        self,
        top_k: int = 5,
        tol: float = 1e-3,
        num_samples: int | None = None,
        batch_size: int | None = None,
        *,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        matrix: str = "hessian",
        engine: str = "auto",
        trace_probes: int = 10,
        density_probes: int = 0,
        density_steps: int = 80,
        by_layer: bool = False,
        split_check: bool = True,
        keep_vectors: bool = False,
        figures: Collection[str] = ("density", "tracks", "line", "layers"),
        max_matvecs: int = 300,
        graph_memory_mb: float = 1024,
        basis_memory_mb: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(every_n_steps, every_n_epochs)
        check_measure_arguments(num_samples, batch_size, seed)
        self.top_k, self.tol, self.max_matvecs, self.seed = top_k, tol, max_matvecs, seed
        self.num_samples, self.batch_size = num_samples, batch_size
        self.matrix, self.engine = matrix, engine
        self.trace_probes, self.density_probes, self.density_steps = trace_probes, density_probes, density_steps
        self.by_layer, self.split_check, self.keep_vectors = by_layer, split_check, keep_vectors
        self.graph_memory_mb, self.basis_memory_mb = graph_memory_mb, basis_memory_mb
        self.figures = (figures,) if isinstance(figures, str) else tuple(figures)
        check_hessian_arguments(self)
        self.result: HessianResult | None = None
        # Where the next tracked measurement starts.
        self._vectors: Tensor | None = None
        self._edge_vector: Tensor | None = None
        self._tried = False
        self._vectors_of: list[tuple[str, torch.Size]] = []  # trainable parameters, which may change during training

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what has no training loss or no whole parameters; forget the last fit."""
        super().setup(trainer, pl_module, stage)
        refuse_engine(trainer, type(self).__name__, self.matrix, self.engine)
        self._vectors = self._edge_vector = None
        self._tried = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what could not be measured.

        Raises:
            MisconfigurationException: If the model has fewer trainable parameters than eigenvalues are asked for.
        """
        super().on_train_start(trainer, pl_module)
        count = count_parameters(trainer, pl_module)
        if count < self.top_k:
            raise MisconfigurationException(
                f"top_k={self.top_k} eigenvalues of a Hessian with {count} rows, one per trainable parameter: ask "
                f"for at most {count}"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Refuse, before the first step of a fit, a loss that is no function of the weights or has no such matrix."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self.matrix == "ggn" and not self._tried:
            self._tried = True
            try_gauss_newton(trainer, pl_module, batch, self.engine)

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> HessianResult:
        """Return all that is asked for, at the current weights; every rank takes part.

        Args:
            trainer: The Trainer, outside its evaluation loops.
            pl_module: Its module.

        Returns:
            The eigenvalues with their residuals, and what else was asked for; a line has said the verdict.
        """
        start = time.perf_counter()
        with self._run_on(trainer, pl_module) as run:
            found = run.whole()
        result = HessianResult(**found, seconds=time.perf_counter() - start)
        rank_zero_info(result.sentence())
        return result

    def track(self, trainer: Trainer, pl_module: LightningModule) -> TrackedCurvature:
        """Return the largest eigenvalues at the current weights, from the last eigenvectors on; every rank takes part.

        Args:
            trainer: The Trainer, outside its evaluation loops.
            pl_module: Its module.

        Returns:
            The eigenvalues with their residuals, and the stability of the optimizer in use.
        """
        start = time.perf_counter()
        trainable = [(name, p.shape) for name, p in pl_module.named_parameters() if p.requires_grad]
        if trainable != self._vectors_of:  # vectors of other parameters are no start
            self._vectors, self._edge_vector, self._vectors_of = None, None, trainable
        with self._run_on(trainer, pl_module) as run:
            found = run.tops(self._vectors, self._edge_vector)
        self._vectors = run.spectrum.vectors if math.isfinite(run.spectrum.lambda_max) else None
        self._edge_vector = run.edge_vector
        return TrackedCurvature(**found, seconds=time.perf_counter() - start)

    def draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the figures that were asked for."""
        if self.result is not None:
            draw(trainer, self.figures, self.result, self.tracks)

    @contextmanager
    def _run_on(self, trainer: Trainer, module: LightningModule) -> Iterator[HessianRun]:
        options: dict[str, Any] = {name: getattr(self, name) for name in ("num_samples", "batch_size", "seed")}
        options |= {"matrix": self.matrix, "engine": self.engine, "graph_memory_mb": self.graph_memory_mb}
        with mean_training_loss(trainer, module, **options) as loss:
            named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
            optimizer = trainer.optimizers[0] if trainer.optimizers else None
            asked = Questions(**{f.name: getattr(self, f.name) for f in fields(Questions)})
            yield HessianRun(loss, named, optimizer, asked, self.watch, str(trainer.precision))
