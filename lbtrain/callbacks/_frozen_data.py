"""One draw of data that are random: which generators a data set carries, and samples that a seed fixes."""

import random
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

_DEPTH = 6  # levels of attributes searched: data set, subset, transform, list of transforms, one of them, its generator
_ENTRIES = 100  # longer containers hold samples, not transforms
_SEEDS = 2**32  # numpy takes no larger seed
_OPAQUE = (str, bytes, int, float, complex, type, Tensor, np.ndarray, type(None))
# Most of what is met: told apart by its very type, which takes a tenth of the time that asking for base classes does.
_PLAIN = frozenset({str, bytes, int, float, complex, bool, type(None), torch.Size, torch.dtype, torch.device})
_CONTAINERS = frozenset({dict, OrderedDict, list, tuple, set})


class Generators:
    """The random-number generators that objects carry, in their attributes and theirs.

    Args:
        owners: Data sets, loaders, data modules, or attributes of a module.
    """

    def __init__(self, *owners: Any) -> None:
        self._found: list[Any] = []
        seen: set[int] = set()
        for owner in owners:
            self._search(owner, _DEPTH, seen)

    def states(self) -> list[Any]:
        """Return the state of each, for `restore`."""
        return [_state(g) for g in self._found]

    def restore(self, states: list[Any]) -> None:
        """Put the states back.

        Args:
            states: What `states` returned.
        """
        for generator, state in zip(self._found, states, strict=True):
            _set_state(generator, state)

    def seed(self, seed: int) -> None:
        """Seed these generators, and the global streams of torch, numpy and Python, which the caller puts back.

        Args:
            seed: Any whole number.
        """
        seed_streams(seed)
        self.seed_own(seed)

    def seed_own(self, seed: int) -> None:
        """Seed these generators alone.

        Args:
            seed: Any whole number.
        """
        for generator in self._found:
            _set_state(generator, _seeded_state(generator, seed % _SEEDS))

    def _search(self, value: Any, depth: int, seen: set[int]) -> None:
        kind = type(value)
        if kind in _PLAIN or (kind in _CONTAINERS and not value) or id(value) in seen or isinstance(value, _OPAQUE):
            return
        seen.add(id(value))
        if isinstance(value, torch.Generator | np.random.Generator | np.random.RandomState | random.Random):
            self._found.append(value)
        elif depth > 0:
            for part in _attributes(value):
                self._search(part, depth - 1, seen)


class Frozen(Dataset[Any]):
    """A data set whose samples, and what is drawn from the global streams just after one, a seed and the index fix.

    Args:
        dataset: With samples by index.
        generators: What it carries.
        seed: Of all draws.
    """

    def __init__(self, dataset: Any, generators: Generators, seed: int) -> None:
        self._dataset, self._generators, self._seed = dataset, generators, seed

    def __getitem__(self, index: int) -> Any:
        self._generators.seed(self._seed * 1_000_003 + index)  # a prime: other seeds meet other numbers
        return self._dataset[index]


def seed_streams(seed: int, device: torch.device | None = None) -> None:
    """Seed the global streams of torch, numpy and Python; the caller puts them back.

    Args:
        seed: Any whole number.
        device: A GPU whose stream is seeded too.
    """
    torch.default_generator.manual_seed(seed % _SEEDS)
    np.random.seed(seed % _SEEDS)  # noqa: NPY002 - the global stream is the subject
    random.seed(seed % _SEEDS)
    if device is not None and device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed % _SEEDS)


@contextmanager
def seeded(owner: Any, seed: int) -> Iterator[None]:
    """Draw from seeded streams inside, global ones and those that the owner carries; put the owner's back behind.

    Args:
        owner: As for `Generators`.
        seed: Any whole number.

    Yields:
        Nothing.
    """
    generators = Generators(owner)
    states = generators.states()
    try:
        generators.seed(seed)
        yield
    finally:
        generators.restore(states)


def same_values(first: Any, second: Any) -> bool:
    """Return whether two batches hold the same values; parts that cannot be compared count as the same.

    Args:
        first: Tensors and other values in lists, tuples, mappings or dataclasses.
        second: Another one.

    Returns:
        The verdict; NaN is the same as NaN.
    """
    if type(first) is not type(second):
        return False
    if isinstance(first, Tensor):
        if first.is_nested:
            return same_values(first.unbind(), second.unbind())
        nan = first.is_floating_point() or first.is_complex()
        return first.shape == second.shape and bool(torch.isclose(first, second, 0, 0, equal_nan=nan).all())
    if isinstance(first, np.ndarray):
        return np.array_equal(first, second, equal_nan=first.dtype.kind in "fc")
    if isinstance(first, Mapping):
        return first.keys() == second.keys() and all(same_values(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same_values, first, second))
    if is_dataclass(first):
        return all(same_values(getattr(first, f.name), getattr(second, f.name)) for f in fields(first))
    return bool(first == second) if isinstance(first, str | bytes | int | float) else True


def _attributes(value: Any) -> list[Any]:
    """Return what a container or an object holds, if that is little enough to be searched."""
    inner = list(vars(value).values()) if hasattr(value, "__dict__") else []
    if isinstance(value, Mapping | list | tuple | set) and len(value) <= _ENTRIES:
        inner += list(value.values()) if isinstance(value, Mapping) else list(value)
    return inner


def _state(generator: Any) -> Any:
    if isinstance(generator, random.Random):
        return generator.getstate()
    return generator.bit_generator.state if isinstance(generator, np.random.Generator) else generator.get_state()


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)


def _seeded_state(generator: Any, seed: int) -> Any:
    """Return the state that a new generator of the same kind has with this seed."""
    if isinstance(generator, random.Random):
        return random.Random(seed).getstate()
    if isinstance(generator, torch.Generator):
        return torch.Generator(generator.device).manual_seed(seed).get_state()
    if isinstance(generator, np.random.Generator):
        return type(generator.bit_generator)(seed).state
    return np.random.RandomState(seed).get_state()
