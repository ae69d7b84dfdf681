"""The chance that a random start overlooks an eigenvalue."""

import math
from collections.abc import Sequence


def chance_of_oversight(dim: int, alphas: Sequence[float], betas: Sequence[float], threshold: float) -> float:
    """Bound the chance that Lanczos from a random start overlooks an eigenvalue at or above a threshold.

    The measure that the start sees has orthonormal polynomials with
    ``beta_i p_i(t) = (t - alpha_i) p_{i-1}(t) - beta_{i-1} p_{i-2}(t)``. No measure with these moments has more mass
    at ``t`` than ``1 / sum_i p_i(t)^2`` (Christoffel's function), and beyond the largest Ritz value all ``p_i`` grow
    with ``t``. So an eigenvalue at the threshold or above it needs a start whose part ``c`` in its direction obeys
    ``c^2 <= 1 / sum_{i=0}^j p_i(threshold)^2``, while a uniform direction in ``n`` dimensions has
    ``P(|c| <= r) <= r sqrt(2 n / pi)``. Stopping as soon as this falls below a level keeps that level: whatever the
    step, the event is that ``c^2`` is below one fixed number.

    Args:
        dim: Dimension ``n`` of the space of the start.
        alphas: Diagonal of the tridiagonal matrix of the sweep, ``j`` entries.
        betas: What lies beside it, ``j`` entries, the last one leading out of the sweep.
        threshold: In the unit of both.

    Returns:
        Probability; 1 where a Ritz value lies at the threshold or above it, 0 where the start's space is invariant.

    References:
        Akhiezer (1965), The Classical Moment Problem, section 2.5. The use of it for random starts is after Kuczynski
        and Wozniakowski (1992), SIAM J. Matrix Anal. Appl. 13(4), who take Chebyshev polynomials.
    """
    older, last, log_scale, total, beta_before = 0.0, 1.0, 0.0, 1.0, 0.0
    if not alphas:
        return 1.0
    for alpha, beta in zip(alphas, betas, strict=True):
        raised = (threshold - alpha) * last - beta_before * older
        if raised <= 0:  # Sturm: a zero of p_i, which is a Ritz value, lies at the threshold or above it
            return 1.0
        if beta <= 0:
            return 0.0
        older, last, beta_before = last, raised / beta, beta
        total += last**2
        if last > 1e100:  # squares would overflow; only the ratio of the terms matters
            older, total, log_scale = older / last, total / last / last, log_scale + math.log(last)
            last = 1.0
    log_chance = 0.5 * math.log(2 * dim / math.pi / total) - log_scale
    return math.exp(min(0.0, log_chance))
