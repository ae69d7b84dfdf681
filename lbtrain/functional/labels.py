"""How samples are spread over classes."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median_low

from torch import Tensor

from lbtrain.functional.diagnosis import Finding, Remedy

# Samples of the most frequent class for each of the median class. A choice: Buda, Maki and Mazurowski (2018), A
# systematic study of the class imbalance problem, find the accuracy fall steadily with this ratio; at 10 a network that
# always names the first of two classes is right 91 % of the time.
_RATIO = 10.0
# Of the most frequent class. A choice: with fewer, and several classes, ratios of 10 come by chance.
_MIN_SAMPLES = 20
# What torch's cross entropy leaves out unless told otherwise.
_IGNORED = -100


@dataclass(frozen=True)
class LabelBalance:
    """Samples by class.

    Attributes:
        counts: Samples of each class that occurs, the most frequent first.
        ratio: Of the most frequent class to the median one, the lower of two, without unit; 1 for a single class.
    """

    counts: Mapping[int, int]
    ratio: float

    @property
    def num_samples(self) -> int:
        """Samples with a class."""
        return sum(self.counts.values())


def label_balance(labels: Tensor) -> LabelBalance:
    """Count the samples of each class.

    Args:
        labels: Whole numbers or booleans, any shape; -100, which the cross entropy of torch ignores, is left out.

    Returns:
        The counts.

    Raises:
        ValueError: If the labels are no whole numbers, as in regression.
    """
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels must be whole numbers, got {labels.dtype}; targets of a regression have no classes")
    kept = labels.detach().flatten().long()
    values, counts = kept[kept != _IGNORED].unique(return_counts=True)  # type: ignore[no-untyped-call]
    pairs = sorted(zip(values.tolist(), counts.tolist(), strict=True), key=lambda pair: -pair[1])
    sizes = [count for _, count in pairs]
    return LabelBalance(dict(pairs), sizes[0] / median_low(sizes) if sizes else 1.0)


def balance_finding(balance: LabelBalance, *, ratio: float = _RATIO, min_samples: int = _MIN_SAMPLES) -> Finding | None:
    """Say which class outnumbers the others.

    Args:
        balance: Of `label_balance`.
        ratio: Of the most frequent to the median class from which they are out of balance, without unit.
        min_samples: Of the most frequent class; fewer say nothing.

    Returns:
        ``label imbalance`` with the shares; None where the classes are in balance.
    """
    if not balance.counts or balance.ratio < ratio:
        return None
    (first, most), (rarest, least) = next(iter(balance.counts.items())), list(balance.counts.items())[-1]
    if most < min_samples:
        return None
    total = balance.num_samples
    words = (
        f"labels: class {first} has {most / total:.0%} of {total} samples, {balance.ratio:.3g} times as many as the "
        f"median class; the rarest, class {rarest}, has {least / total:.1%}"
    )
    remedy = Remedy("weight the classes in the loss by 1 / share, or draw samples with a WeightedRandomSampler")
    numbers = {"ratio": balance.ratio, "share": most / total, "classes": float(len(balance.counts))}
    return Finding("label imbalance", words, numbers, balance.ratio / ratio, since=0, remedies=(remedy,))
