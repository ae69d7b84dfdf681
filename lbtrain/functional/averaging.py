"""Whether the mean of recent iterates is better than the iterates."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True)
class AveragingGain:
    """What averaging recent iterates would gain now.

    Attributes:
        gain: Mean recent loss less the loss at the mean of the iterates, in the unit of the loss; below 0 where
            averaging harms.
        error: Standard error of the mean recent loss, same unit; NaN for a single one.
        share: ``gain`` over the mean recent loss, without unit; 0 where that is not positive.
        recent: Mean recent loss.
        lowest: Lowest recent loss.
        count: Number of recent losses.
        at_mean: Loss at the mean of the iterates.
        words: The verdict, one sentence with the numbers.
    """

    gain: float
    error: float
    share: float
    recent: float
    lowest: float
    count: int
    at_mean: float
    words: str

    @property
    def helps(self) -> bool:
        """Whether the gain exceeds twice its error, or the mean beats every one of 5 or more: 1 in 32 by chance."""
        return self.gain > 2 * self.error or (self.count >= 5 and self.at_mean < self.lowest)


def averaging_gain(loss_of_mean: float, recent_losses: Sequence[float]) -> AveragingGain:
    """Compare the loss at the mean of recent iterates with their own losses.

    With ``w_i = c + d_i`` around a minimum c of curvature H, ``E L(w_i) = L(c) + tr(H Cov d) / 2``, and the mean of k
    independent iterates keeps 1/k of the second term: the gain is the part of the loss that noise or oscillation adds,
    less 1/k of it. On a path that still goes down the mean lies behind the last iterate and the gain is about 0.

    Args:
        loss_of_mean: Loss at the mean of the iterates, on the same samples as the others.
        recent_losses: Losses at iterates of the time that the mean covers, at least one.

    Returns:
        Gain, error and share; NaN where a loss is not finite.

    Raises:
        ValueError: If there is no recent loss.

    References:
        Polyak and Juditsky (1992), SIAM J. Control Optim. 30(4), section 2. Izmailov et al. (2018), arXiv 1803.05407.
    """
    if not recent_losses:
        raise ValueError("recent_losses must hold at least one loss, got none; pass those of the averaged iterates")
    if not all(map(math.isfinite, (loss_of_mean, *recent_losses))):
        nan = math.nan
        return AveragingGain(
            nan, nan, nan, nan, nan, 0, loss_of_mean, "a loss is not finite, so averaging cannot be judged"
        )
    recent = fmean(recent_losses)
    error = stdev(recent_losses) / math.sqrt(len(recent_losses)) if len(recent_losses) > 1 else math.nan
    gain = recent - loss_of_mean
    share = gain / recent if recent > 0 else 0.0
    lowest, count = min(recent_losses), len(recent_losses)
    sure = gain > 2 * error or (count >= 5 and loss_of_mean < lowest)
    effect = "would help" if sure else "would harm" if -gain > 2 * error else "would make no difference"
    words = (
        f"averaging {effect}: the loss is {loss_of_mean:.3g} at the mean of the recent iterates and {recent:.3g} "
        f"+- {error:.1g} at the iterates"
    )
    return AveragingGain(gain, error, share, recent, lowest, count, loss_of_mean, words)
