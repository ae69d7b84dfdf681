"""What HessianSpectrum finds: frozen, with its metric keys and its sentence."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from lbtrain.functional.critical_point import CriticalPoint
from lbtrain.functional.curvature_along import CurvatureAlong
from lbtrain.functional.landscape import LossLine, LossPlane
from lbtrain.functional.results import Spectrum, Stability
from lbtrain.functional.spectral_results import SpectralDensity


@dataclass(frozen=True)
class HessianResult:
    """Curvature of the mean training loss at the weights; the parts that were not asked for, or not reached, are None.

    Eigenvalues, residuals and traces are in loss per squared parameter.
    """

    spectrum: Spectrum
    """Both ends with their residuals; trace and Frobenius norm with standard errors where they were asked for."""
    stability: Stability | None
    """1 at the edge of stability, without unit; its law, or why it is not known."""
    loss: float
    """Mean loss per sample at the weights, in eval mode."""
    gradient_norm: float
    """Of that loss, loss per unit of parameter norm."""
    weight_norm: float
    """Of the trainable parameters."""
    seconds: float
    """Duration of the measurement."""
    matrix: str = "hessian"
    """`hessian` or `ggn`, which also begins the metric keys."""
    critical_point: CriticalPoint | None = None
    """Minimum, saddle, plateau or not critical, with the reason in words; None for the Gauss-Newton matrix."""
    saddle_layers: tuple[tuple[str, float], ...] = ()
    """For a saddle: layers by their share of the eigenvector of lambda_min, the largest first."""
    over_batches: CurvatureAlong | None = None
    """v'H_b v of the batches along the top eigenvector: their mean, and its standard error as a sample of data."""
    split: float | None = None
    """lambda_max free of the bias of choosing the direction on the same data: top eigenvector of one half of the
    batches, curvature along it on the other half, mean of both ways; NaN with fewer than 2 batches."""
    density: SpectralDensity | None = None
    """Spectral density: of probes of its own, or of the one that the eigenvalue search gives free."""
    layers: Mapping[str, Spectrum] = field(default_factory=dict)
    """Spectrum of each layer's own block, by layer."""
    line: LossLine | None = None
    """Loss along the top eigenvector."""
    slope: float = math.nan
    """Derivative of the loss along the top eigenvector."""
    plane: LossPlane | None = None
    """Loss on the plane of the top two eigenvectors."""
    engine: str = "autograd"
    """How products are made: `autograd` or `differences`."""
    reason: str = ""
    """Why so, where there is something to say."""
    unconverged: str = ""
    """Why the eigenvalues have not converged: the budget, or the rounding of products; empty where they have."""
    engine_error: float = 0.0
    """Bound on the relative error of the products; 0 for autograd."""
    num_matvecs: float = 0.0
    """Products over the data; one over half of the data counts half."""
    interrupted: bool = False
    """Whether the user stopped the measurement, so that parts are missing."""

    @property
    def condition(self) -> float:
        """lambda_max / lambda_k, without unit."""
        values = self.spectrum.eigenvalues
        return values[0] / values[-1] if values[-1] else math.inf

    @property
    def negative_ratio(self) -> float:
        """How negative the spectrum is, max(0, -lambda_min) / lambda_max, without unit."""
        top, low = self.spectrum.lambda_max, self.spectrum.lambda_min
        return max(0.0, -low) / top if top > 0 or low != low or top != top else (0.0 if low >= 0 else math.inf)

    def metrics(self) -> dict[str, float | str]:
        """Return the numbers, and the verdict, under their metric keys.

        Returns:
            Values by key, in the units of the key table in the README.
        """
        found = {**self._ends(), **self._about_spectrum(), **self._about_data(), **self._by_layer()}
        found |= {"num_matvecs": self.num_matvecs, "interrupted": float(self.interrupted)}
        return {f"{self.matrix}/{key}": value for key, value in found.items()}

    def sentence(self) -> str:
        """Return the verdict with its numbers.

        Returns:
            One line.
        """
        top = f"lambda_max {self.spectrum.lambda_max:.4g} +- {self.spectrum.lambda_max_residual:.1g}"
        constant = "the loss does not depend on the parameters: gradient and eigenvalues are exactly 0"
        parts = [constant if self._is_constant else self.critical_point.words if self.critical_point else top]
        if self.saddle_layers:
            name, share = self.saddle_layers[0]
            parts.append(f"{100 * share:.0f} % of the direction of lambda_min lies in {name}")
        if self.stability is not None and math.isfinite(self.stability.value):
            parts.append(f"at {self.stability.value:.2g} of the edge of stability")
        elif self.stability is not None and math.isfinite(self.spectrum.lambda_max):
            parts.append(f"{self.matrix}/stability is not known: {self.stability.law}")
        if self.over_batches is not None and self.over_batches.num_batches == 1:
            parts.append("one batch gives no standard error over the data: measure with a smaller batch_size")
        parts += [words for words in (self.unconverged, self.reason) if words]
        return f"{self.matrix}: " + "; ".join(parts) + ("; interrupted" if self.interrupted else "")

    @property
    def _is_constant(self) -> bool:
        found = self.spectrum
        size = max(abs(found.lambda_max), abs(found.lambda_min), found.lambda_max_residual, found.lambda_min_residual)
        return self.gradient_norm == 0 and size == 0

    def _ends(self) -> dict[str, float]:
        found = self.spectrum
        return {
            **{f"lambda_{i}": value for i, value in enumerate(found.eigenvalues, start=1)},
            "lambda_max": found.lambda_max,
            "lambda_max_residual": found.lambda_max_residual,
            "lambda_min": found.lambda_min,
            "lambda_min_residual": found.lambda_min_residual,
            "condition": self.condition,
            "converged": float(found.converged),
        }

    def _about_spectrum(self) -> dict[str, float]:
        trace, density, found = self.spectrum.trace, self.density, {"negative_ratio": self.negative_ratio}
        if trace is not None:
            found |= {"trace": trace.value, "trace_stderr": trace.stderr, "frobenius": trace.frobenius}
        elif density is not None and density.num_probes > 1:
            found |= {"trace": density.trace, "trace_stderr": density.trace_stderr}
            found["frobenius"] = math.sqrt(max(density.frobenius_squared, 0.0))
        if self.stability is not None:
            found["stability"] = self.stability.value
        return found

    def _about_data(self) -> dict[str, float | str]:
        found: dict[str, float | str] = {"loss": self.loss, "gradient_norm": self.gradient_norm}
        if self.over_batches is not None:
            found["lambda_max_batches"] = self.over_batches.value
            found["lambda_max_batches_stderr"] = self.over_batches.stderr
        if self.split is not None:
            found["lambda_max_split"] = self.split
        if self.critical_point is not None:
            found["verdict"] = self.critical_point.kind
        return found

    def _by_layer(self) -> dict[str, float]:
        found = {}
        for name, spectrum in self.layers.items():
            found[f"layer/{name}/lambda_max"] = spectrum.lambda_max
            found[f"layer/{name}/lambda_max_residual"] = spectrum.lambda_max_residual
            found[f"layer/{name}/lambda_min"] = spectrum.lambda_min
            found[f"layer/{name}/lambda_min_residual"] = spectrum.lambda_min_residual
            if spectrum.trace is not None:
                found[f"layer/{name}/trace"] = spectrum.trace.value
                found[f"layer/{name}/trace_stderr"] = spectrum.trace.stderr
        return found


@dataclass(frozen=True)
class TrackedCurvature:
    """The largest eigenvalues during training, with what they are compared with."""

    spectrum: Spectrum
    """The largest eigenvalues with their residuals; `lambda_min` is not searched for."""
    stability: Stability | None
    """1 at the edge of stability, without unit."""
    loss: float
    """Mean loss per sample at the weights, in eval mode."""
    gradient_norm: float
    """Of that loss, loss per unit of parameter norm."""
    seconds: float
    """Duration of the measurement."""
    matrix: str = "hessian"
    """`hessian` or `ggn`, which also begins the metric keys."""
    interrupted: bool = False
    """Whether the user stopped the measurement."""

    def metrics(self) -> dict[str, float]:
        """Return the numbers under the same keys as at the end of training.

        Returns:
            Values by key, in the units of the key table in the README.
        """
        found = {f"lambda_{i}": value for i, value in enumerate(self.spectrum.eigenvalues, start=1)}
        found |= {
            "lambda_max": self.spectrum.lambda_max,
            "lambda_max_residual": self.spectrum.lambda_max_residual,
            "converged": float(self.spectrum.converged),
            "num_matvecs": float(self.spectrum.num_matvecs),
            "loss": self.loss,
            "gradient_norm": self.gradient_norm,
        }
        if self.stability is not None:
            found["stability"] = self.stability.value
            found["num_matvecs"] += self.stability.num_matvecs
        return {f"{self.matrix}/{key}": value for key, value in found.items()}
