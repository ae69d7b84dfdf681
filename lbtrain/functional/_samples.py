"""How many samples a batch holds."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def samples_in(batch: Any) -> int | None:
    """Return the first dimension of the first tensor in a batch.

    Args:
        batch: A tensor, or a mapping, sequence or dataclass that holds one at any depth.

    Returns:
        Number of samples, or None where there is no tensor with a dimension.
    """
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.ndim else None
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        batch = [getattr(batch, f.name) for f in dataclasses.fields(batch)]
    parts = list(batch.values()) if isinstance(batch, Mapping) else batch
    if not isinstance(parts, Sequence) or isinstance(parts, (str, bytes)):
        return None
    return next((size for size in map(samples_in, parts) if size is not None), None)
