"""Batches of any structure: how many samples they hold, some of these samples, and what they look like."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence


def batch_size(batch: Any) -> int | None:
    """Return the number of samples of a batch.

    Args:
        batch: Tensors, dense or nested, whose first dimension counts samples, and ragged batches, where a list has one
            item per sample, in lists, tuples, mappings or dataclasses.

    Returns:
        The common first dimension of all tensors with at least one. Where they differ or there are none, the one number
        that every part can be read as: as the first dimension that its tensors share, or as a list of that many items
        of one kind. None if there is no such number. A tuple in front is (inputs, targets), never a list of samples.
    """
    sizes = {_first(t) for t in _tensors(batch) if t.ndim > 0}
    if len(sizes) == 1:
        return sizes.pop()
    for leaves in (False, True):  # names and numbers beside tensors may be as many as they like
        inner, own = _readings(batch, leaves)
        found = inner or (set() if type(batch) is tuple else own)
        if found:
            sure = not inner or not sizes or _anchored(batch, found, leaves)
            return found.pop() if len(found) == 1 and sure else None
    return None


def select(batch: Any, indices: Sequence[int], size: int) -> Any:
    """Return the samples with these numbers, in the same structure.

    Args:
        batch: As in `batch_size`; lists of `size` items that are no tensors (texts, names) are picked from as well.
        indices: Sample numbers in [0, size); repeats allowed.
        size: Number of samples in the batch.

    Returns:
        A batch of len(indices) samples; tensors without a sample dimension and other values are passed on.
    """
    # Where a list can be read both ways, the batch as a whole decides: with one first dimension throughout, lists are
    # structure, else they are samples.
    ragged = {_first(t) for t in _tensors(batch) if t.ndim > 0} != {size}
    return _select(batch, list(indices), size, ragged)


def describe(batch: Any, depth: int = 3) -> str:
    """Return in one line what a batch looks like.

    Args:
        batch: Anything.
        depth: Levels of structure to show.

    Returns:
        For example `dict: ids Tensor(8, 128), graph Data`.
    """
    name = type(batch).__name__
    if isinstance(batch, Tensor) and batch.is_nested:
        return f"nested {name} of {_first(batch)}"
    if isinstance(batch, Tensor | np.ndarray):
        return f"{name}({', '.join(map(str, batch.shape))})"
    parts = None if isinstance(batch, PackedSequence) else _parts(batch)
    if parts is None:
        return name
    count = len(parts)
    if depth == 0 or count == 0:
        return f"{name} of {count}"
    named = not isinstance(batch, list | tuple) or hasattr(batch, "_fields")
    shown = [
        (f"{key} " if named else "") + describe(value, depth - 1) for key, value in islice(parts.items(), 4 + 4 * named)
    ]
    if not named and count > len(shown):
        name += f" of {count}"
    inside = ", ".join(shown) + (", ..." if count > len(shown) else "")
    return f"{name}: {inside}" if depth == 3 else f"{name}({inside})"


def _select(batch: Any, chosen: list[int], size: int, ragged: bool) -> Any:
    if isinstance(batch, Tensor):
        return _rows(batch, chosen) if batch.ndim > 0 and _first(batch) == size else batch
    if isinstance(batch, np.ndarray):
        return batch[chosen] if batch.ndim > 0 and len(batch) == size else batch
    if isinstance(batch, PackedSequence):
        padded, lengths = pad_packed_sequence(batch, batch_first=True)
        return pack_padded_sequence(padded[chosen], lengths[chosen], batch_first=True, enforce_sorted=False)
    if isinstance(batch, list | tuple) and not hasattr(batch, "_fields") and len(batch) == size:
        inner, own = _readings(batch, leaves=False)
        if (own or _leaf(batch)) and (ragged or size not in (inner or ())):
            return type(batch)(batch[i] for i in chosen)
    return _rebuilt(batch, lambda part: _select(part, chosen, size, ragged))


def _first(tensor: Tensor) -> int:
    return int(tensor.size(0))  # the shape of a nested tensor cannot be asked for


def _rows(tensor: Tensor, chosen: list[int]) -> Tensor:
    if tensor.is_nested:
        samples = tensor.unbind()
        return torch.nested.as_nested_tensor([samples[i] for i in chosen], layout=tensor.layout)
    return tensor[torch.as_tensor(chosen, device=tensor.device)]


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _tensors(value)
    elif isinstance(batch, list | tuple) and not isinstance(batch, PackedSequence):
        for value in batch:
            yield from _tensors(value)
    elif is_dataclass(batch) and not isinstance(batch, type):
        for f in fields(batch):
            yield from _tensors(getattr(batch, f.name))


def _parts(batch: Any) -> Mapping[Any, Any] | None:
    """Return what a container holds, by name or number; None for anything else."""
    if isinstance(batch, Mapping):
        return batch
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return dict(zip(batch._fields, batch, strict=True))
    if isinstance(batch, list | tuple):
        return dict(enumerate(batch))
    if is_dataclass(batch) and not isinstance(batch, type):
        return {f.name: getattr(batch, f.name) for f in fields(batch)}
    return None


def _rebuilt(batch: Any, change: Callable[[Any], Any]) -> Any:
    """Return the container with every part changed."""
    if isinstance(batch, Mapping):
        content = {key: change(value) for key, value in batch.items()}
        try:  # `BatchEncoding` and `OrderedDict` take a dict; others come back as a plain one
            return type(batch)(content)  # type: ignore[call-arg]
        except TypeError:
            return content
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*map(change, batch))
    if isinstance(batch, list | tuple):
        return type(batch)(map(change, batch))
    if is_dataclass(batch) and not isinstance(batch, type):
        return replace(batch, **{f.name: change(getattr(batch, f.name)) for f in fields(batch) if f.init})
    return batch


def _readings(batch: Any, leaves: bool) -> tuple[set[int] | None, set[int]]:
    """Return the sample counts that a value can be read as.

    Args:
        batch: The value.
        leaves: Whether arrays, and lists without tensors, have a say.

    Returns:
        The counts that all its parts allow, None if no part has a say; and its length, if it can be a list of samples.
    """
    if isinstance(batch, PackedSequence):
        return {int(batch.batch_sizes[0])}, set()
    if isinstance(batch, Tensor | np.ndarray):
        votes = batch.ndim > 0 and (leaves or isinstance(batch, Tensor))
        return ({len(batch) if isinstance(batch, np.ndarray) else _first(batch)} if votes else None), set()
    parts = _parts(batch)
    if not parts:
        return None, set()
    listed = isinstance(batch, list | tuple) and not hasattr(batch, "_fields")
    # Lists of lists are batches of several loaders, each as the default collate function makes them.
    loaders = all(isinstance(part, list) and not _leaf(part) for part in parts.values())
    alike = listed and not loaders and (leaves or not _leaf(batch)) and _of_one_kind(parts.values())
    own = {len(parts)} if alike else set()
    readings = [_readings(part, leaves) for part in parts.values()]
    voting = [(inner or set()) | single for inner, single in readings if inner is not None or single]
    return (set.intersection(*voting) if voting else None), own


def _anchored(batch: Any, found: set[int], leaves: bool) -> bool:
    """Tell whether some part can be read in no other way.

    Batches of two loaders, {a: [x, y], b: [x, y]} with 32 and 16 samples, are no two samples, though both lists have
    two items.

    Returns:
        Whether there is such a part.
    """
    for part in (_parts(batch) or {}).values():
        inner, single = _readings(part, leaves)
        of_dicts = isinstance(part, list | tuple) and single == found and all(isinstance(x, Mapping) for x in part)
        if of_dicts or (inner or set()) | single == found:
            return True
    return False


def _leaf(batch: Any) -> bool:  # texts, numbers, objects
    return next(iter(_tensors(batch)), None) is None and not isinstance(batch, PackedSequence)


def _of_one_kind(items: Iterable[Any]) -> bool:  # can be samples of one batch
    return len({(type(x), x.ndim, x.dtype) if isinstance(x, Tensor | np.ndarray) else type(x) for x in items}) == 1
