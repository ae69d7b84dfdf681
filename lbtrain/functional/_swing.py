"""What it costs that the weights move about instead of settling."""

from dataclasses import dataclass
from statistics import fmean

from lbtrain.functional._robust import blocks, quantile
from lbtrain.functional.averaging import AveragingGain
from lbtrain.functional.training_curve import Curve, still_falling


@dataclass(frozen=True)
class Lost:
    """The part of the recent loss that is due to moving about, and how that is seen."""

    loss: float
    part: float
    words: str


def lost_by_swing(curve: Curve, averaging: AveragingGain | None, share: float, material: float) -> Lost | None:
    """Return what moving about in the second half costs, None while the loss still falls or if it costs little."""
    levels = curve.track[1]
    # Half way down, networks gain by averaging too, and nothing is wrong with them. A loss that ends far above its
    # start did not lose a part of the way: the run was unstable.
    if still_falling(levels) or curve.end > 2 * abs(curve.start):
        return None
    # A schedule that has brought the rate down settles what swung before; then only the end counts.
    peak, last = curve.peak, curve.rate_at(curve.length)
    settling = peak is not None and last is not None and last < 0.2 * peak
    found = [_by_averaging(averaging, levels[-1] if settling else None)]
    if not settling:
        found.append(_by_range(levels))
    needed = material * abs(curve.start)
    large = [lost for lost in found if lost is not None and lost.part >= share and lost.loss >= needed]
    large = [lost for lost in large if _seen_by_batches(curve, lost)]
    return max(large, key=lambda lost: lost.part, default=None)


def _seen_by_batches(curve: Curve, lost: Lost) -> bool:
    """Return whether the batch losses bear the loss out: they too have stopped falling, and are as high.

    Where they have not, it is the evaluation that swings and not the training: running statistics of batch
    normalization lag behind the weights.
    """
    if len(curve.levels) <= 3 or not curve.losses:
        return True
    if still_falling([fmean(part) for _, part in blocks(curve.losses, 20)]):
        return len(curve.losses) < 8  # too few to tell
    late, seen = curve.losses[len(curve.losses) // 2 :], curve.levels[len(curve.levels) // 2 :]
    return fmean(late) >= fmean(seen) - 2 / 3 * lost.loss


def _by_averaging(averaging: AveragingGain | None, end: float | None) -> Lost | None:
    """Return what the mean of recent iterates gains, against the end too where it is given; None if it is not sure."""
    if averaging is None or not averaging.helps:
        return None
    # A schedule that brings the loss down at its end does what averaging would.
    if end is not None and end < 0.7 * averaging.recent:
        return None
    loss = averaging.gain if end is None else min(averaging.gain, end - averaging.at_mean)
    words = f"at the mean of recent iterates the loss is {averaging.at_mean:.3g} where they have {averaging.recent:.3g}"
    return Lost(loss, loss / averaging.recent if averaging.recent > 0 else 0.0, words)


def _by_range(levels: list[float]) -> Lost | None:
    """Return the mean of the second half, less its largest value, above the tenth of it that is lowest."""
    half = sorted(levels[len(levels) // 2 :])[:-1]
    mean, low = fmean(half), quantile(half, 0.1)
    words = f"over the second half of the run it is {mean:.3g} in the mean and {low:.3g} in its lowest tenth"
    return Lost(mean - low, (mean - low) / mean if mean > 0 else 0.0, words)
