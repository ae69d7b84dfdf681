"""Hessian eigenvalues at the end of training."""

import math
import time
from dataclasses import dataclass

import torch

from lbtrain._lightning import LightningModule, MisconfigurationException, Trainer, rank_zero_info
from lbtrain.callbacks._end_measurement import EndMeasurement
from lbtrain.callbacks._measure import check_measure_arguments, mean_training_loss
from lbtrain.functional.hvp import MeanLoss
from lbtrain.functional.lanczos import lanczos_spectrum
from lbtrain.functional.results import Spectrum, Stability
from lbtrain.functional.stability import stability


@dataclass(frozen=True)
class HessianResult:
    """Both ends of the spectrum, and how close the optimizer's rate is to the edge of stability."""

    spectrum: Spectrum
    """Eigenvalues with their residuals, in loss per squared parameter."""
    stability: Stability
    """1 at the edge of stability, without unit."""
    seconds: float
    """Duration of the measurement."""

    def metrics(self) -> dict[str, float]:
        """Return the numbers under their metric keys.

        Returns:
            Values by key, in the units of the key table in the README.
        """
        found = self.spectrum
        keys = {f"hessian/lambda_{i}": value for i, value in enumerate(found.eigenvalues, start=1)}
        last = found.eigenvalues[-1]
        return {
            **keys,
            "hessian/lambda_max": found.lambda_max,
            "hessian/lambda_max_residual": found.residuals[0],
            "hessian/lambda_min": found.lambda_min,
            "hessian/condition": found.lambda_max / last if last else float("inf"),
            "hessian/converged": float(found.converged),
            "hessian/num_matvecs": float(found.num_matvecs + self.stability.num_matvecs),
            "hessian/stability": self.stability.value,
        }


class HessianSpectrum(EndMeasurement):
    """Measure the largest eigenvalues of the training loss's Hessian, and the smallest, when training ends.

    On the training data in eval mode, in order, without augmentation where the data module offers
    `measure_dataloader()`. Lanczos with full reorthogonalization runs until the residual `|H x - lambda x|` of every
    reported eigenvalue is below `tol` times the largest; equal eigenvalues are found as often as they occur. `.result`
    holds the numbers; they are also in `trainer.callback_metrics`, in the loggers and in the summary, under
    `hessian/...`.

    Args:
        top_k: Number of largest eigenvalues.
        tol: Bound on the residuals, relative to the largest eigenvalue's size.
        num_samples: Measure on this many training samples, drawn by seed; None for all.
        batch_size: Samples per evaluation and device; None as in training. Larger is faster while it fits into memory.
        max_matvecs: Hessian-vector products to spend at the most; when they do not suffice, the result says not
            converged.
        graph_memory_mb: Memory for gradient graphs that are kept between products, in MiB; the others are built again
            for each product.
        seed: Of the start vector and of the draw of samples.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        top_k: int = 5,
        tol: float = 1e-3,
        num_samples: int | None = None,
        batch_size: int | None = None,
        max_matvecs: int = 300,
        graph_memory_mb: float = 1024,
        seed: int = 0,
    ) -> None:
        check_measure_arguments(num_samples, batch_size, seed)
        if not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1:
            raise ValueError(f"top_k must be a whole number of eigenvalues, at least 1, got {top_k!r}")
        if not 0 < tol < 1:
            raise ValueError(f"tol must be above 0 and below 1, got {tol!r}; 1e-3 is the default")
        if not isinstance(max_matvecs, int) or max_matvecs <= top_k:
            raise ValueError(f"max_matvecs must be a whole number above top_k = {top_k}, got {max_matvecs!r}")
        if not graph_memory_mb >= 0:
            raise ValueError(f"graph_memory_mb must be at least 0, got {graph_memory_mb!r}")
        self.top_k = top_k
        self.tol = tol
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.max_matvecs = max_matvecs
        self.graph_memory_mb = graph_memory_mb
        self.seed = seed
        self.result: HessianResult | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what could not be measured when training ends.

        Raises:
            MisconfigurationException: If the model has fewer trainable parameters than eigenvalues are asked for.
        """
        super().on_train_start(trainer, pl_module)
        count = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        if count < self.top_k:
            raise MisconfigurationException(
                f"top_k={self.top_k} eigenvalues of a Hessian with {count} rows, one per trainable parameter: ask "
                f"for at most {count}"
            )

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> HessianResult:
        """Return the spectrum at the current weights; every rank takes part.

        Args:
            trainer: The Trainer, outside its evaluation loops.
            pl_module: Its module.

        Returns:
            The eigenvalues with their residuals, and the stability of the optimizer in use.
        """
        start = time.perf_counter()
        options = {"num_samples": self.num_samples, "batch_size": self.batch_size, "seed": self.seed}
        with mean_training_loss(trainer, pl_module, graph_memory_mb=self.graph_memory_mb, **options) as loss:
            spectrum, edge = self._solve(trainer, loss)
        if math.isnan(edge.value) and math.isfinite(spectrum.lambda_max):
            rank_zero_info(f"hessian/stability is not known: {edge.law}")
        return HessianResult(spectrum, edge, time.perf_counter() - start)

    def _solve(self, trainer: Trainer, loss: MeanLoss) -> tuple[Spectrum, Stability]:
        # One seed on all ranks: every rank multiplies the same vectors.
        generator = torch.Generator().manual_seed(self.seed)
        limits = {"tol": self.tol, "max_matvecs": self.max_matvecs, "generator": generator}
        spectrum = lanczos_spectrum(
            loss.hvp, loss.dim, top_k=self.top_k, dtype=loss.dtype, device=loss.device, **limits
        )
        return spectrum, stability(trainer.optimizers[0], loss.params, loss.hvp, spectrum, **limits)
