"""Where values come from while a network runs: from which layer, and through which activations since then."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from lbtrain.functional.layers import layer_name

# What mixes the units of one layer into those of the next. A matrix that is only added, as a position is, makes none.
_CONVOLUTIONS = {f"conv{t}{n}d": n for t in ("", "_transpose") for n in (1, 2, 3)}  # and their spatial dimensions
_PRODUCTS = {"linear", "bilinear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "addmm", "addmv"}
_PRODUCTS |= {"addbmm", "baddbmm", "einsum", "tensordot", "embedding", "embedding_bag"} | _CONVOLUTIONS.keys()
_PRODUCTS |= {"multi_head_attention_forward", "lstm", "gru", "rnn_tanh", "rnn_relu"}
_SCALINGS = {"mul", "__mul__", "__rmul__"}  # a product where what is multiplied with is a matrix

Key = tuple[str, str, int]
"""Layer, activation and number of units."""


class Layer(NamedTuple):
    """What made a value out of the units before."""

    order: int
    name: str
    dim: int
    """Of its units, from behind."""
    size: int
    """Its units."""


class Source(NamedTuple):
    """Of one tensor."""

    layer: Layer | None
    waiting: frozenset[Key]
    """Activations that it went through and that no later layer has read so far."""


@dataclass
class Sources:
    """Follow values from layer to layer by the torch functions that are called.

    Args:
        module: Whose parameters are the layers' weights.
    """

    module: nn.Module
    hidden: set[Key] = field(default_factory=set)
    """Activations that a later layer has read: not the network's outputs, which may end where they like."""
    _last: Layer | None = None
    _seen: list[Key] = field(default_factory=list)
    _count: int = 0

    def __post_init__(self) -> None:
        self._weights, self._values = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()
        for parameter, weight in _weight_names(self.module):
            self._weights[parameter] = weight

    def of(self, tensor: Tensor) -> Source:
        """Return where a value comes from; the layer that ran last where it cannot be followed.

        Args:
            tensor: Argument or result of a torch function.
        """
        found = self._values.get(tensor)
        return Source(self._last, frozenset()) if found is None else found

    def wait(self, tensor: Tensor, key: Key) -> None:
        """Note that a value has gone through an activation.

        Args:
            tensor: What the activation returned.
            key: Of the activation.
        """
        source = self.of(tensor)
        self._values[tensor] = source._replace(waiting=source.waiting | {key})
        if key not in self._seen:
            self._seen.append(key)

    def follow(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """Take over a call of a torch function.

        Args:
            name: Of the function.
            args: Of the call.
            kwargs: Of the call.
            result: Of the call.
        """
        made = [t for t in _tensors((result,)) if t.is_floating_point() and t not in self._weights]
        if not made:
            return
        given = list(_tensors((*args, *kwargs.values())))
        weights = [self._weights[t] for t in given if t in self._weights]
        values = [t for t in given if t not in self._weights]
        if weights and not values:  # transposed, normalized, cast: a weight still
            for tensor in made:
                self._weights[tensor] = weights[0]
        elif mixing := [w for w in weights if name in _PRODUCTS or (name in _SCALINGS and w.matrix)]:
            self._enter(name, mixing, values, made)
        else:
            self._pass_on(values, made)

    def _enter(self, name: str, weights: Sequence["_Weight"], values: Sequence[Tensor], made: Sequence[Tensor]) -> None:
        """Note that a layer has read values and made others."""
        known = [self._values[t] for t in values if t in self._values]
        # Values that came past torch's functions may have come from any activation.
        self.hidden.update(*(source.waiting for source in known) if known else [self._seen])
        dim = -1 - _CONVOLUTIONS.get(name, 0)
        dim = dim if made[0].ndim >= -dim else -1
        layer = weights[0].layer if len({w.parameter for w in weights}) > 1 else weights[0].name
        self._count += 1
        self._last = Layer(self._count, layer, dim, made[0].shape[dim] if made[0].ndim else 1)
        for tensor in made:
            self._values[tensor] = Source(self._last, frozenset())

    def _pass_on(self, values: Sequence[Tensor], made: Sequence[Tensor]) -> None:
        known = [self._values[t] for t in values if t in self._values]
        if not known:
            return
        layers = [source.layer for source in known if source.layer is not None]
        latest = max(layers, default=None)
        waiting = frozenset().union(*(source.waiting for source in known))
        for tensor in made:
            self._values[tensor] = Source(latest, waiting)


class _Weight(NamedTuple):
    """A parameter, or what was made of parameters alone."""

    parameter: str
    layer: str
    name: str
    """The layer, or the parameter where it is not the layer's only one that mixes units."""
    matrix: bool
    """Whether at least two of its dimensions are larger than 1."""


def _weight_names(module: nn.Module) -> Iterator[tuple[Tensor, _Weight]]:
    """Yield the parameters of two dimensions or more with the layers that a reader of the module knows."""
    named = [(name, p, sum(size > 1 for size in p.shape) > 1) for name, p in module.named_parameters() if p.ndim > 1]
    owned = Counter(layer_name(name) for name, _, matrix in named if matrix)
    for name, parameter, matrix in named:
        layer, alone = layer_name(name), owned[layer_name(name)] < 2
        own = name.rpartition(".")[2] if layer == "root" else layer if alone else name
        yield parameter, _Weight(name, own if layer == "root" else layer, own, matrix)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among arguments or results, and in their lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from (item for item in value if isinstance(item, Tensor))
