"""Values that are not finite in the data: in which tensor of the batches, and of how many samples."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from lbtrain.functional.diagnosis import Finding, Remedy

# Minus infinity in a tensor of this name says what to leave out of an attention.
_MASK = "mask"
# Samples that are named, to be looked at; a choice.
_NAMED = 5


@dataclass
class _Count:
    nan: int = 0
    inf: int = 0
    samples: int = 0
    total: int = 0
    places: list[int] = field(default_factory=list)


class InvalidValues:
    """Count samples with values that are not finite, over any number of batches.

    Args:
        of: What the batches are of, such as "the first batch", for the words; empty to leave it out.
        first: Index of the first sample in what they are of.
        step: From the index of a sample to that of the next one; 0 where indices are not known.
    """

    def __init__(self, of: str = "", first: int = 0, step: int = 1) -> None:
        self._of, self._first, self._step = f" of {of}" if of else "", first, step
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
            if found[2] and len(count.places) <= _NAMED:
                count.places += [count.total + row for row in bad.nonzero().flatten().tolist()]
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
        words = "; ".join(f"{_place(name)}: {self._words(count)}" for name, count in ordered[:3])
        worst = ordered[0][1]
        numbers = {
            "samples": float(worst.samples),
            "share": worst.samples / worst.total,
            "nan": float(sum(c.nan for c in bad.values())),
            "inf": float(sum(c.inf for c in bad.values())),
        }
        remedy = Remedy("leave these samples out of the data, or replace the values that are not finite")
        # One is too many: a single NaN makes all weights NaN.
        return Finding("invalid data", words, numbers, float(worst.samples), since=0, remedies=(remedy,))

    def _words(self, count: _Count) -> str:
        verb = "has" if count.samples == 1 else "have"
        kinds = " and ".join(f"{n} {kind}" for n, kind in ((count.nan, "NaN"), (count.inf, "infinite")) if n)
        text = f"{count.samples} of {count.total} samples{self._of} {verb} values that are not finite ({kinds})"
        if not self._step:
            return text
        shown = ", ".join(str(self._first + self._step * place) for place in count.places[:_NAMED])
        return f"{text}: number{'s' * (count.samples > 1)} {shown}{', ...' * (count.samples > _NAMED)}, from 0"


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
