"""Where larger batches stop paying: the critical batch size.

The curve steps = s_min (1 + b / B) (McCandlish et al. 2018, arXiv 1812.06162, eq. 2.11) is fitted to the logarithm of
the steps by least squares. Its b is the critical batch size, at which a run takes twice the fewest steps and twice the
fewest samples. The local slope of the curve on logarithmic axes is -b / (b + B): at least 0.9 of perfect scaling below
b / 9, at most 0.1 of it above 9 b; between lie diminishing returns. The interval of b is that of ln b by Student's t
with n - 2 degrees of freedom, to first order; with fewer than four batch sizes there is none.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares
from scipy.special import stdtrit

from lbtrain.study.estimates import Estimate, digits

_NINE = 9.0  # the slope is -0.9 at b / 9 and -0.1 at 9 b
_FAR = 30.0  # beyond this factor outside the batch sizes b is not determined: the curve is straight, or flat


@dataclass(frozen=True)
class Critical:
    """The fit of steps = s_min (1 + b / B).

    Args:
        least: Steps (or seconds) that no batch size gets below, as fitted.
        batch: b with its interval, samples; `n` is the number of batch sizes.
    """

    least: float
    batch: Estimate

    @property
    def borders(self) -> tuple[float, float]:
        """Batch sizes at which perfect scaling ends and at which there is no more gain, samples."""
        return self.batch.mean / _NINE, self.batch.mean * _NINE


def fit_critical(needs: Mapping[float, float]) -> Critical | None:
    """Fit steps = s_min (1 + b / B) to the logarithm of the steps.

    Args:
        needs: Batch size to steps, both positive.

    Returns:
        The fit, or None with fewer than 3 batch sizes, or where b lies more than a factor of 30 outside them.
    """
    if len(needs) < 3:
        return None
    batch, steps = np.asarray(list(needs)), np.log(list(needs.values()))

    def off(parameters: np.ndarray) -> np.ndarray:
        return np.asarray(parameters[0] + np.log1p(np.exp(parameters[1]) / batch) - steps)

    start = [float(steps.min()) - math.log(2), float(np.log(batch).mean())]
    found = least_squares(off, start)
    log_least, log_b = map(float, found.x)
    if not batch.min() / _FAR < math.exp(min(log_b, 700.0)) < batch.max() * _FAR:
        return None
    freedom = len(needs) - 2
    if freedom < 2:  # Student's t with 1 degree of freedom is 12.7: such an interval says nothing
        return Critical(math.exp(log_least), Estimate(math.exp(log_b), len(needs)))
    spread = 2 * found.cost / freedom * np.linalg.inv(found.jac.T @ found.jac)
    half = float(stdtrit(freedom, 0.975)) * math.sqrt(spread[1, 1])
    bounds = math.exp(log_b - half), math.exp(min(log_b + half, 700.0))
    return Critical(math.exp(log_least), Estimate(math.exp(log_b), len(needs), None, *bounds))


def critical_words(fit: Critical) -> str:
    """Write the critical batch size.

    Args:
        fit: The curve.

    Returns:
        Such as "182 (95 % interval 120 to 276)".
    """
    b = fit.batch
    bar = "" if b.low is None or b.high is None else f" (95 % interval {digits(b.low)} to {digits(b.high)})"
    return digits(b.mean) + bar
