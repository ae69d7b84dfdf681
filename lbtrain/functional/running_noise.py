"""The gradient noise scale with its error bar: running means of many estimates, and the ratio of the means."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lbtrain.functional.noise import NoiseEstimate, adascale_gain


@dataclass(frozen=True)
class NoiseScale:
    """The noise scale with its standard error, and what follows for the batch in use.

    Attributes:
        b_simple: ``tr(Sigma) / |G|^2``, samples: the batch beyond which larger ones stop paying. Infinite if the
            estimate of ``|G|^2`` is not positive, NaN without estimates or if that of ``tr(Sigma)`` is negative.
        stderr: Standard error of ``b_simple`` to first order, samples; NaN with fewer than 2 estimates.
        gradient_sq: Mean estimate of ``|G|^2``, squared loss per squared parameter.
        gradient_sq_stderr: Its standard error, same unit.
        trace_sigma: Mean estimate of ``tr(Sigma)``, squared loss per squared parameter, times samples.
        trace_sigma_stderr: Its standard error, same unit.
        gain: AdaScale's gain from the base batch to the global one, without unit; see ``adascale_gain``.
        global_batch: Samples per optimizer step.
        base_batch: Samples of the batch that the gain starts from.
        num_estimates: Estimates that went into the means.
        num_gradients: Gradients of parts of a batch that were taken for the estimates alone, on each device.
    """

    b_simple: float
    stderr: float
    gradient_sq: float
    gradient_sq_stderr: float
    trace_sigma: float
    trace_sigma_stderr: float
    gain: float
    global_batch: int
    base_batch: int
    num_estimates: int
    num_gradients: int

    @property
    def resolved(self) -> bool:
        """Whether ``|G|^2`` is at least two of its standard errors above zero, so that the ratio has a meaning."""
        return self.gradient_sq > 2 * self.gradient_sq_stderr and self.trace_sigma >= 0


class RunningNoise:
    """Running means of both estimates, and the ratio of the means with its standard error.

    Weights fall by the factor ``1 - forget`` from each estimate to the one before. The error comes from the weighted
    scatter of the estimates, which are taken as independent; a drift within the memory widens it.

    Args:
        forget: Share of its weight that an estimate loses when the next one comes, in [0, 1); 0 weighs all alike. The
            memory is about 1/forget estimates.

    Raises:
        ValueError: If forget is out of range.
    """

    def __init__(self, forget: float = 0.01) -> None:
        if not (isinstance(forget, int | float) and not isinstance(forget, bool) and 0 <= forget < 1):
            raise ValueError(
                f"forget must be at least 0 and below 1, got {forget!r}; 0.01 remembers about 100 estimates"
            )
        self._keep = 1.0 - forget
        self.count = 0
        # Sums of the weights and of their squares; weighted means; weighted scatter about the means.
        self._weight = self._weight_sq = 0.0
        self._g = self._t = 0.0
        self._gg = self._tt = self._gt = 0.0

    def add(self, estimate: NoiseEstimate) -> None:
        """Take one more estimate.

        Args:
            estimate: Of the present weights.

        Raises:
            ValueError: If it is not finite, which no later one could mend.
        """
        dg, dt = estimate.gradient_sq - self._g, estimate.trace_sigma - self._t
        if not (math.isfinite(dg) and math.isfinite(dt)):
            raise ValueError(f"estimate must be finite, got {estimate}; leave out gradients that overflow")
        old = self._keep * self._weight
        self._weight, self._weight_sq = old + 1.0, self._keep**2 * self._weight_sq + 1.0
        # West's update: the scatter about the old means, and what the new estimate adds to it.
        self._gg = self._keep * self._gg + old / self._weight * dg * dg
        self._tt = self._keep * self._tt + old / self._weight * dt * dt
        self._gt = self._keep * self._gt + old / self._weight * dg * dt
        self._g, self._t = self._g + dg / self._weight, self._t + dt / self._weight
        self.count += 1

    @property
    def effective_number(self) -> float:
        """Equal weights would need that many estimates for the same error; ``2/forget - 1`` in the end."""
        return self._weight**2 / self._weight_sq if self.count else 0.0

    def _covariance(self) -> tuple[float, float, float]:
        """Return the variances of both means and their covariance; NaN with fewer than 2 estimates."""
        spare = self._weight - self._weight_sq / self._weight if self.count > 1 else 0.0
        if spare <= 0:
            return math.nan, math.nan, math.nan
        factor = self._weight_sq / self._weight**2 / spare
        return self._gg * factor, self._tt * factor, self._gt * factor

    def result(self, global_batch: int, base_batch: int, num_gradients: int = 0) -> NoiseScale:
        """Return the noise scale by all estimates so far.

        The variance of r = t/g to first order is ``(var t + r^2 var g - 2 r cov(g, t)) / g^2``.

        Args:
            global_batch: Samples per optimizer step.
            base_batch: Samples of the batch that the gain starts from.
            num_gradients: Extra gradients spent.

        Returns:
            The frozen result; all NaN without an estimate.
        """
        g, t = (self._g, self._t) if self.count else (math.nan, math.nan)
        vg, vt, cov = self._covariance()
        ratio, error = math.nan, math.nan
        if g > 0 and t >= 0:
            ratio = t / g
            error = math.sqrt(max(vt + ratio**2 * vg - 2 * ratio * cov, 0.0)) / g
        elif t > 0:
            ratio = math.inf
        gain = adascale_gain(g, t, global_batch, base_batch)
        errors = math.sqrt(vg), math.sqrt(vt)
        batches = (gain, global_batch, base_batch)
        return NoiseScale(ratio, error, g, errors[0], t, errors[1], *batches, self.count, num_gradients)

    def state_dict(self) -> dict[str, float]:
        """Return all that the running means know, in plain Python.

        Returns:
            Numbers by name.
        """
        return {name: value for name, value in vars(self).items() if name != "_keep"}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take over what `state_dict` returned.

        Args:
            state: Numbers by name.
        """
        vars(self).update({name: state[name] for name in self.state_dict()})
