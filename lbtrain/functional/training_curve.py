"""The curves of a run, and what can be read off them in the face of mini-batch noise."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Protocol

from lbtrain.functional._robust import blocks


class Seen(Protocol):
    """What was seen at a sampled step; `Curve.of` reads these names."""

    @property
    def step(self) -> int: ...  # noqa: D102 (named as in `Curve`)

    @property
    def loss(self) -> float: ...  # noqa: D102

    @property
    def gradient_norm(self) -> float: ...  # noqa: D102

    @property
    def lambda_max(self) -> float | None: ...  # noqa: D102

    @property
    def stability(self) -> float | None: ...  # noqa: D102

    @property
    def noise(self) -> float | None: ...  # noqa: D102

    @property
    def projections(self) -> Sequence[float]: ...  # noqa: D102

    @property
    def product(self) -> float | None: ...  # noqa: D102


@dataclass(frozen=True)
class Curve:
    """The curves of a run; an empty sequence is one that was not recorded.

    Attributes:
        losses: Mean loss of the batch of each optimizer step, ``n`` entries.
        rates: Learning rate of each step, ``n`` entries.
        steps: Optimizer steps done at each sample, ``k`` entries, increasing.
        levels: Mean loss on a fixed subset of the training data at the samples, ``k`` entries.
        gradient_norms: Norms of the gradients of those losses, ``k`` entries, loss per unit of parameter norm.
        curvatures: Largest Hessian eigenvalue at the samples, ``k`` entries, loss per squared parameter.
        stabilities: 1 at the edge of stability of the optimizer, rate * lambda_max / 2 for plain gradient descent;
            ``k`` entries without unit.
        noises: Share of the batch gradient's squared norm that is noise, ``k`` entries, 0 to 1.
        projections: Products of the batch gradients of successive steps with the unit top eigenvector, ``k`` entries.
        products: Of a batch's gradient with the subset's, ``k`` entries, squared loss per squared parameter. Their
            noises are independent, so the mean is the squared norm of the true gradient.
    """

    losses: Sequence[float] = ()
    rates: Sequence[float] = ()
    steps: Sequence[int] = ()
    levels: Sequence[float] = ()
    gradient_norms: Sequence[float] = ()
    curvatures: Sequence[float | None] = ()
    stabilities: Sequence[float | None] = ()
    noises: Sequence[float | None] = ()
    projections: Sequence[Sequence[float]] = ()
    products: Sequence[float | None] = ()

    def __post_init__(self) -> None:
        if self.rates and len(self.rates) != len(self.losses):
            raise ValueError(
                f"rates must hold one rate per loss, got {len(self.rates)} for {len(self.losses)} losses; pass the "
                "rate of each optimizer step, or none"
            )
        if len(self.levels) != len(self.steps):
            raise ValueError(
                f"levels must hold one loss per sample, got {len(self.levels)} for {len(self.steps)} steps"
            )
        for name in ("gradient_norms", "curvatures", "stabilities", "noises", "projections", "products"):
            given = len(getattr(self, name))
            if given not in {0, len(self.steps)}:
                raise ValueError(
                    f"{name} must hold one entry per sample, got {given} for {len(self.steps)} steps; give None where "
                    "it was not measured, or leave it empty"
                )

    @classmethod
    def of(cls, losses: Sequence[float], rates: Sequence[float], points: Sequence[Seen]) -> "Curve":
        """Return the curves of a run from the samples one by one.

        Args:
            losses: Mean loss of the batch of each optimizer step.
            rates: Learning rate of each step.
            points: What was seen at each sample.

        Returns:
            The curves.
        """
        return cls(
            tuple(losses),
            tuple(rates),
            tuple(p.step for p in points),
            tuple(p.loss for p in points),
            tuple(p.gradient_norm for p in points),
            tuple(p.lambda_max for p in points),
            tuple(p.stability for p in points),
            tuple(p.noise for p in points),
            tuple(tuple(p.projections) for p in points),
            tuple(p.product for p in points),
        )

    @property
    def finite(self) -> bool:
        """Whether every loss is a finite number, and there is one."""
        return bool(self.losses or self.levels) and all(map(math.isfinite, (*self.losses, *self.levels)))

    @property
    def length(self) -> int:
        """Optimizer steps of the run."""
        return max(len(self.losses), self.steps[-1] if self.steps else 0)

    @property
    def peak(self) -> float | None:
        """The highest rate, that which a schedule is given; None where no rate above 0 is known."""
        return max(self.rates) if self.rates and max(self.rates) > 0 else None

    @property
    def track(self) -> tuple[list[int], list[float]]:
        """Steps and losses, as free of batch noise as is known: the samples, or means of 20 blocks of batches."""
        if len(self.levels) > 3:
            return list(self.steps), list(self.levels)
        parts = blocks(self.losses, 20)
        return [start + len(part) // 2 for start, part in parts], [fmean(part) for _, part in parts]

    @property
    def start(self) -> float:
        """Loss before training: that of the first sample if no step was done then, else the first batches' median."""
        if self.steps and self.steps[0] == 0:
            return self.levels[0]
        return median(self.losses[:5]) if self.losses else self.levels[0] if self.levels else math.nan

    @property
    def end(self) -> float:
        """Loss at the end: the median of the last three entries of the track."""
        levels = self.track[1]
        return median(levels[-3:]) if levels else math.nan

    def rate_at(self, step: int) -> float | None:
        """Return the rate of a step, counted from 0.

        Args:
            step: Optimizer steps done before it; beyond the end, the last rate.

        Returns:
            The rate; None where rates are not known.
        """
        return self.rates[min(step, len(self.rates) - 1)] if self.rates else None

    @property
    def slope(self) -> float:
        """Norm of the gradient over the second half of the run, without the noise of batches and subset if known.

        The square root of the mean product, 0 for one below 0; of fewer than 4 known ones, the last norm.
        """
        known = [p for p in self.products[len(self.products) // 2 :] if p is not None]
        return math.sqrt(max(fmean(known), 0.0)) if len(known) >= 4 else self.gradient_norms[-1]

    def known_stabilities(self, first: int = 0) -> list[tuple[int, float]]:
        """Return the samples at which the stability was measured and finite.

        Args:
            first: Smallest step of a sample.

        Returns:
            Steps and stabilities.
        """
        pairs = zip(self.steps, self.stabilities, strict=True) if self.stabilities else ()
        return [(step, s) for step, s in pairs if s is not None and math.isfinite(s) and step >= first]

    def is_plain(self, step: int, stability: float) -> bool:
        """Return whether the stability is rate * lambda_max / 2, as of plain gradient descent; False if not known.

        Args:
            step: Of a sample.
            stability: Measured there.
        """
        rate, curvature = self.rate_at(step), self.curvatures[self.steps.index(step)] if self.curvatures else None
        return rate is not None and curvature is not None and abs(rate * curvature / 2 - stability) <= 0.01 * stability


def still_falling(levels: Sequence[float], *, fall: float = 0.2, errors: float = 2.5) -> bool:
    """Tell whether a loss still falls in the second half of a run.

    By the means of its quarters: the last one lower than the third by the share ``fall`` and by ``errors`` standard
    errors ``sqrt(s_3^2 / k_3 + s_4^2 / k_4)``; or by the share and one error, if the third was so against the second.
    In both cases lower than the second, too: what comes down from a hump has not come further.

    Args:
        levels: Losses in equal distances over the run; finite.
        fall: Share of the mean of the quarter before, without unit. A choice: at this pace the loss halves in one more
            run.
        errors: Standard errors. 2.5: at five entries a quarter, Student's t with 8 degrees of freedom exceeds it in 2 %
            of curves without trend, and 1 twice in a row in about as many.

    Returns:
        True if it does, and where there are fewer than 4 entries in the second half to judge by.
    """
    quarters = [part for _, part in blocks(levels, 4)]
    if len(levels) < 8:
        return True
    falls = [_fall(before, after, fall) for before, after in itertools.pairwise(quarters)]
    is_further = _fall(quarters[1], quarters[3], fall) > 0
    return is_further and (falls[2] >= errors or (falls[2] >= 1 and falls[1] >= 1))


def _fall(before: Sequence[float], after: Sequence[float], fall: float) -> float:
    """Return the fall of a mean in standard errors, 0 where it is less than its share."""
    error = math.sqrt(stdev(before) ** 2 / len(before) + stdev(after) ** 2 / len(after))
    drop = fmean(before) - fmean(after)
    if drop < fall * abs(fmean(before)) or drop <= 0:
        return 0.0
    return drop / error if error > 0 else math.inf


def share_left(curve: Curve) -> float:
    """Return what is left of the loss that the run started with, ``end / start``.

    Args:
        curve: Of the run; finite.

    Returns:
        The share, without unit; 0 for a start that is not positive, of which no share can be taken.
    """
    return curve.end / curve.start if curve.start > 0 else 0.0
