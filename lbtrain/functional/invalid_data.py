"""Values that are not finite in the data: in which tensor of the batches, and of how many samples."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from lbtrain.functional.diagnosis import Finding, Remedy

# Minus infinity in a tensor of this name says what to leave out of an attention.
_MASK = "mask"


@dataclass
class _Count:
    nan: int = 0
    inf: int = 0
    samples: int = 0
    total: int = 0


class InvalidValues:
    """Count samples with values that are not finite, over any number of batches."""

    def __init__(self) -> None:
        self._counts: dict[str, _Count] = {}

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Count those of one batch.

        Args:
            tensors: By path, as `named_tensors` gives them; the first dimension counts samples.
        """
        for name, tensor in tensors.items():
            if not tensor.is_floating_point() or tensor.numel() == 0:
                continue
            nan, inf = tensor.isnan(), tensor.isposinf() if _MASK in name.lower() else tensor.isinf()
            count = self._counts.setdefault(name, _Count())
            bad = (nan | inf).reshape(len(tensor) if tensor.ndim else 1, -1).any(dim=1)
            found = torch.stack([nan.sum(), inf.sum(), bad.sum()]).tolist()  # waits for the device once
            count.nan, count.inf, count.samples = count.nan + found[0], count.inf + found[1], count.samples + found[2]
            count.total += len(bad)

    def finding(self) -> Finding | None:
        """Say where they are.

        Returns:
            ``invalid data`` with the tensor most of whose samples are affected first; None where all is finite.
        """
        bad = {name: c for name, c in self._counts.items() if c.samples}
        if not bad:
            return None
        ordered = sorted(bad.items(), key=lambda item: -item[1].samples / item[1].total)
        words = "; ".join(
            f"{_place(name)}: {c.samples} of {c.total} samples have values that are not finite ({c.nan} NaN, {c.inf} "
            "infinite)"
            for name, c in ordered[:3]
        )
        worst = ordered[0][1]
        numbers = {
            "samples": float(worst.samples),
            "share": worst.samples / worst.total,
            "nan": float(sum(c.nan for c in bad.values())),
            "inf": float(sum(c.inf for c in bad.values())),
        }
        remedy = Remedy("leave these samples out of the data, or fill their missing values in")
        # One is too many: a single NaN makes all weights NaN.
        return Finding("invalid data", words, numbers, float(worst.samples), since=0, remedies=(remedy,))


def named_tensors(batch: Any, path: str = "") -> dict[str, Tensor]:
    """Return all tensors of a batch by their paths in it, such as ``[1]`` or ``['targets']``.

    Args:
        batch: Tensors in lists, tuples, mappings or dataclasses, at any depth.
        path: Of the batch itself.

    Returns:
        The tensors; a batch that is a tensor has the path given.
    """
    if isinstance(batch, Tensor):
        return {path: batch}
    return {name: t for key, part in _parts(batch) for name, t in named_tensors(part, path + key).items()}


def invalid_values(tensors: Mapping[str, Tensor], *, loss: float | None = None) -> Finding | None:
    """Find values that are not finite in one batch.

    Args:
        tensors: By path, as `named_tensors` gives them; the first dimension counts samples. Whole numbers are finite,
            and minus infinity in a tensor with ``mask`` in its path is meant.
        loss: Mean loss of these samples, if it is known: where it is finite, the model expects the missing values.

    Returns:
        ``invalid data`` with path and counts; None where all is finite, or meant.
    """
    if loss is not None and math.isfinite(loss):
        return None
    found = InvalidValues()
    found.add(tensors)
    return found.finding()


def _place(path: str) -> str:
    return path if path and path[0] not in "[." else f"batch{path}"


def _parts(batch: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a container holds, with the path to it."""
    if isinstance(batch, Mapping):
        yield from ((f"[{key!r}]", value) for key, value in batch.items())
    elif isinstance(batch, tuple) and hasattr(batch, "_fields"):
        yield from ((f".{name}", value) for name, value in zip(batch._fields, batch, strict=True))
    elif isinstance(batch, list | tuple):
        yield from ((f"[{i}]", value) for i, value in enumerate(batch))
    elif is_dataclass(batch) and not isinstance(batch, type):
        yield from ((f".{f.name}", getattr(batch, f.name)) for f in fields(batch))
