"""Batches of any structure: how many samples they hold, and some of these samples."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor


def batch_size(batch: Any) -> int | None:
    """Return the number of samples of a batch.

    Args:
        batch: Tensors whose first dimension counts samples, in lists, tuples, mappings or dataclasses.

    Returns:
        The common first dimension of all tensors with at least one; None if they differ or there are none.
    """
    sizes = {t.shape[0] for t in _tensors(batch) if t.ndim > 0}
    return sizes.pop() if len(sizes) == 1 else None


def select(batch: Any, indices: Sequence[int], size: int) -> Any:
    """Return the samples with these numbers, in the same structure.

    Args:
        batch: As in `batch_size`; lists of `size` items that are no tensors (texts, names) are picked from as well.
        indices: Sample numbers in [0, size); repeats allowed.
        size: Number of samples in the batch.

    Returns:
        A batch of len(indices) samples; tensors without a sample dimension and other values are passed on.
    """
    if isinstance(batch, Tensor):
        has_samples = batch.ndim > 0 and batch.shape[0] == size
        return batch[torch.as_tensor(list(indices), device=batch.device)] if has_samples else batch
    if isinstance(batch, Mapping):
        return _like(batch, {key: select(value, indices, size) for key, value in batch.items()})
    if isinstance(batch, list | tuple) and not any(True for _ in _tensors(batch)) and len(batch) == size:
        return type(batch)(batch[i] for i in indices)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(select(value, indices, size) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(select(value, indices, size) for value in batch)
    if is_dataclass(batch) and not isinstance(batch, type):
        return replace(
            batch, **{f.name: select(getattr(batch, f.name), indices, size) for f in fields(batch) if f.init}
        )
    return batch


def _like(original: Mapping[Any, Any], content: dict[Any, Any]) -> Any:
    """Return the content as the mapping's own class where that takes a dict (`BatchEncoding`, `OrderedDict`)."""
    try:
        return type(original)(content)  # type: ignore[call-arg]
    except TypeError:
        return content


def _tensors(batch: Any) -> Any:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _tensors(value)
    elif isinstance(batch, list | tuple):
        for value in batch:
            yield from _tensors(value)
    elif is_dataclass(batch) and not isinstance(batch, type):
        for f in fields(batch):
            yield from _tensors(getattr(batch, f.name))
