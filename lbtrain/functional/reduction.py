"""Tell from values of the loss what a module makes of the samples of a batch: a mean, a sum, or neither."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

KINDS = ("mean", "sum", "mean over other units", "batch-coupled", "unknown")
# What follows from two noisy losses, such as the weight of a half, is off by a few times their own error.
_DERIVED = 2.0
# Largest error of a half's weight at which a mean over samples counts as told from one over other units: halves whose
# units differ by a fifth would then show.
_CLEAR = 0.05
# Two draws measure the noise of a random loss so roughly that ten times their distance is needed for a law that holds
# to be called broken in less than 1 of 100 cases.
_DRAWS = 10.0
# A mean and a sum over two halves differ by a factor of two: beyond this relative error they cannot be told apart.
_BLIND = 0.2


@dataclass(frozen=True)
class Reduction:
    """What a training loss does with the samples of a batch."""

    kind: str
    """One of `KINDS`; "mean over other units" weighs samples by what they hold (tokens, pixels, valid labels), and in
    "batch-coupled" the loss of a sample depends on the others."""
    deviation: float
    """Distance of the losses from the named law ("batch-coupled": from the nearest), relative to the largest of them,
    without unit; nan when unknown."""
    reason: str
    """The numbers it was judged by, as a sentence."""
    losses: tuple[float, ...] = ()
    """Of the batch S, its halves A and B, the batch twice over SS, and where these do not settle it AAB and ABB, or for
    a random loss S and SS with other random numbers."""
    first_share: float = math.nan
    """Share of the batch's units that the first half holds; nan where there are no units."""
    num_samples: int = 0
    """Samples of the batch."""
    batch_norms: int = 0
    """Layers that normalize over the batch of each device in training, though not where the loss was judged."""
    sync_batch_norms: int = 0
    """Layers that do so over the batches of all devices."""
    steady: bool = False
    """Whether the loss is known to draw no random numbers and to repeat itself; False where nobody has looked."""

    @property
    def num_losses(self) -> int:
        """Evaluations of the loss that it took."""
        return len(self.losses)

    @property
    def units_ratio(self) -> float:
        """How many times the units per sample of one half the other half's samples hold, at least 1; nan without."""
        half = self.num_samples // 2
        if not 0 < self.first_share < 1:
            return math.nan
        ratio = self.first_share / half / ((1 - self.first_share) / (self.num_samples - half))
        return max(ratio, 1 / ratio)


def find_reduction(
    loss: Callable[[Sequence[int]], float],
    num_samples: int,
    *,
    rtol: float = 1e-5,
    redrawn: Callable[[Sequence[int]], float | None] = lambda _: None,
) -> Reduction:
    """Tell a mean over the batch from a sum, and both from what is neither.

    With the batch S, its halves A and B, and SS, AAB, ABB the batch with all or half of its samples twice:
    a mean has L(S) = (|A| L(A) + |B| L(B)) / |S| and L(SS) = L(S);
    a sum has L(S) = L(A) + L(B) - P and L(SS) = 2 L(S) - P, where P is a part that does not grow with the batch, such
    as a penalty on the weights;
    a mean over other units has L(S) = w L(A) + (1 - w) L(B), which gives the share w of the units in A, and then
    L(SS) = L(S), L(AAB) = (2 w L(A) + (1 - w) L(B)) / (1 + w) and likewise L(ABB), with 0 < w < 1;
    whatever else happens, the samples see each other. Four losses suffice for a mean and a plain sum, else it is six.

    Args:
        loss: Maps sample numbers in [0, num_samples), repeats allowed, to the training loss of those samples. Must give
            the same value when asked twice: no dropout.
        num_samples: Size of the batch; below 2 nothing can be told.
        rtol: Largest deviation from a law that still counts as obeying it, relative to the largest of the losses,
            without unit: a few times the rounding of a loss, and no more. A mean over tokens of a fresh network has
            halves that differ by a thousandth, so rtol = 1e-3 would take it for a mean over samples.
        redrawn: The same loss with other random numbers, None if it draws none. Of a random loss only large differences
            are judged: those of a mean, of a sum, and of samples that see each other.

    Returns:
        The verdict, with the losses that it rests on.

    Raises:
        ValueError: If rtol is not in (0, 0.2): a mean and a sum over two halves differ by a factor of two, so a
            larger tolerance could not tell them apart.
    """
    if not 0 < rtol < _BLIND:
        raise ValueError(
            f"rtol must be above 0 and below 0.2, got {rtol!r}: take a few times the rounding of a loss, 1e-5 in 32 bit"
        )
    if num_samples < 2:
        return Reduction("unknown", math.nan, f"a batch of {num_samples} has no halves", num_samples=num_samples)
    everyone = list(range(num_samples))
    first, second = everyone[: num_samples // 2], everyone[num_samples // 2 :]
    losses = _Losses(tuple(loss(part) for part in (everyone, first, second, everyone * 2)), num_samples, rtol)
    verdict = losses.plain()
    if verdict is not None:
        return verdict
    again = redrawn(everyone)
    if again is not None:
        return losses.random(again, redrawn(everyone * 2) or 0.0)
    return replace(losses, values=(*losses.values, loss(first + everyone), loss(everyone + second))).weighed()


@dataclass(frozen=True)
class _Losses:
    """The losses, in the order of `Reduction.losses`, and what can be told from them."""

    values: tuple[float, ...]
    num_samples: int
    rtol: float
    noise: float = 0.0

    @property
    def error(self) -> float:
        """What two equal losses may differ by."""
        return self.rtol * self.scale + self.noise

    @property
    def scale(self) -> float:
        return max(map(abs, self.values))

    @property
    def numbers(self) -> str:
        """The losses, in words."""
        whole, first, second, doubled, *more = (f"{value:.6g}" for value in self.values)
        said = f"L({self.num_samples} samples) = {whole}, its halves {first} and {second}, twice over {doubled}"
        extra = "one half twice" if self.noise == 0 else "other random numbers"
        return said + (f", with {extra} {more[0]} and {more[1]}" if more else "")

    def plain(self) -> Reduction | None:
        """Return the verdict that four losses allow: a mean, a sum, or nothing to tell; None if they do not settle."""
        if not all(map(math.isfinite, self.values)):
            return self._unknown("not all of them are finite")
        whole, first, second, doubled, *_ = self.values
        share = self.num_samples // 2 / self.num_samples
        mean = max(abs(share * first + (1 - share) * second - whole), abs(doubled - whole))
        total = max(abs(first + second - whole), abs(doubled - 2 * whole))
        if max(mean, total) <= self.error:
            return self._unknown("a loss of zero obeys the law of a mean and that of a sum")
        if mean <= self.error:
            unclear = self.error > _CLEAR * abs(first - second)
            note = "the halves differ too little to tell samples from other units, such as tokens"
            return self._verdict("mean", mean, note if unclear else "", share)
        if total <= self.error:
            return self._verdict("sum", total)
        return None

    def random(self, whole: float, doubled: float) -> Reduction:
        """Return the verdict on a random loss, given S and SS with other random numbers."""
        apart = max(abs(whole - self.values[0]), abs(doubled - self.values[3]))
        drawn = replace(self, values=(*self.values, whole, doubled), noise=_DRAWS * apart)
        verdict = drawn.plain() if drawn.error < _BLIND * drawn.scale else None
        if verdict is not None:
            return replace(verdict, reason=f"{verdict.reason}; told to within {drawn.error:.2g}, as it is random")
        first_draw, first, second, doubled = self.values
        growth, penalized = abs(doubled - first_draw), abs(3 * first_draw - first - second - doubled)
        if min(growth, penalized / _DERIVED) > drawn.error:
            return drawn._coupled(min(growth, penalized))
        return drawn._unknown(f"random numbers change it by {apart:.2g}, too much to tell")

    def weighed(self) -> Reduction:
        """Return the verdict of six losses that are neither a mean nor a plain sum."""
        if not all(map(math.isfinite, self.values)):
            return self._unknown("not all of them are finite")
        whole, first, second, doubled, *_ = self.values
        constant = first + second - whole
        penalized = self._distance(2 * whole - constant, first + whole - constant, second + whole - constant)
        # Without growth in SS this law would be met by any mean of equal halves, too.
        if penalized <= _DERIVED * self.error and abs(doubled - whole) > _DERIVED * self.error:
            return self._verdict("sum", penalized, f"a sum, plus {constant:.6g} that does not grow with the batch")
        w = (whole - second) / (first - second) if first != second else math.nan
        if not 0 < w < 1:
            nearest = min(penalized, max(abs(doubled - whole), abs(first - whole), abs(second - whole)))
            return self._coupled(nearest)
        once = (2 * w * first + (1 - w) * second) / (1 + w), (w * first + 2 * (1 - w) * second) / (2 - w)
        weighed = self._distance(whole, *once)
        if weighed > _DERIVED * self.error:
            return self._coupled(min(penalized, weighed))
        share = self.num_samples // 2 / self.num_samples
        law = f"a mean in which the first half weighs {w:.3g}, though it holds {share:.3g} of the samples"
        return self._verdict("mean over other units", weighed, law, w)

    def _distance(self, *expected: float) -> float:
        """Return how far SS, AAB and ABB are from what a law expects."""
        return max(abs(value - other) for value, other in zip(self.values[3:], expected, strict=True))

    def _coupled(self, nearest: float) -> Reduction:
        law = (
            "no weights of the halves give this, so samples see each other, or the loss is a curved function of a mean"
        )
        return self._verdict("batch-coupled", nearest, law)

    def _unknown(self, why: str) -> Reduction:
        return Reduction("unknown", math.nan, f"{self.numbers}: {why}", self.values, num_samples=self.num_samples)

    def _verdict(self, kind: str, distance: float, law: str = "", share: float = math.nan) -> Reduction:
        reason = f"{self.numbers}: {law}" if law else self.numbers
        return Reduction(kind, distance / self.scale, reason, self.values, share, self.num_samples)
