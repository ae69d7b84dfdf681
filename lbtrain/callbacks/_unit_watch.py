"""Watch the units of a network while its loss is evaluated: which never speak, and which always shout."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lbtrain.callbacks._evidence import Units
from lbtrain.callbacks._unit_kinds import kind_of
from lbtrain.callbacks._unit_sources import Key, Layer, Sources
from lbtrain.functional._activations import Ends, needs_inputs
from lbtrain.functional._histogram import histogram
from lbtrain.functional.activity import UnitActivity, unit_activity
from lbtrain.functional.ranks import AllReduce, Gather

# Calls of half an evaluation whose results are no values that a layer could read.
_VALUELESS = frozenset({
    "_set_grad_enabled",
    "__bool__",
    "__len__",
    "numel",
    "size",
    "dim",
    "isnan",
    "any",
    "__eq__",
    "ne",
})


class UnitWatch:
    """Watch every activation of a module, called as a module or as a function, for what its units do.

    Values are followed through torch's functions, so that an activation is known by the layer whose units it takes,
    whatever stands between (normalization, pooling, dropout), and that the network's outputs are left out: what no
    later layer reads may end at 0 or 1. Nothing is changed and no graph is held. Compiled modules are not looked into:
    where there is one, there are no units.

    Args:
        module: The module; nothing is attached to it.
        derivative_share: As `unit_activity` has it.
        sample_share: As `UnitActivity.dead_and_saturated` has it.
    """

    def __init__(self, module: nn.Module, *, derivative_share: float = 0.05, sample_share: float = 0.95) -> None:
        self.sources, self._seen = Sources(module), dict[Key, UnitActivity]()
        self._derivative_share, self._sample_share = derivative_share, sample_share
        self._is_blind = any(_is_compiled(part) for part in module.modules())
        self._batches: set[int] = set()

    @contextmanager
    def during(self, batch: int = 0) -> Iterator[None]:
        """Watch an evaluation; all of them count together, but one of a batch that was seen already.

        Args:
            batch: Its number.

        Yields:
            Nothing.
        """
        if self._is_blind or batch in self._batches:
            yield
            return
        self._batches.add(batch)
        with _Functions(self):
            yield

    def units(self, *, all_reduce: AllReduce | None = None, gather: Gather | None = None) -> dict[str, Units]:
        """Return the units of each hidden layer, in the order in which the layers ran.

        Args:
            all_reduce: Sums a tensor over ranks, which all ask then: dead are the units that are dead on the samples of
                all. Histograms stay those of this rank.
            gather: Returns the texts of all ranks; needed with `all_reduce`.

        Returns:
            Units by layer; a layer with a second activation has it as `layer (activation)`.
        """
        seen = {key: activity for key, activity in self._seen.items() if key in self.sources.hidden}
        if all_reduce is not None and gather is not None:
            seen = _over_ranks(seen, all_reduce, gather)
        found: dict[str, Units] = {}
        for (layer, kind, units), activity in seen.items():
            dead, saturated = activity.dead_and_saturated(sample_share=self._sample_share)
            edges, counts = activity.histogram.edges, activity.histogram.counts
            name = next(n for n in (layer, f"{layer} ({kind})", f"{layer} ({units} {kind})") if n not in found)
            found[name] = Units(kind, units, dead, saturated, edges, counts)
        return found

    def see(self, kind: str, ends: Ends | None, layer: Layer, inputs: Tensor, outputs: Tensor) -> None:
        """Count one call of an activation.

        Args:
            kind: Of the activation.
            ends: Of its range, where they are not the usual ones.
            layer: Whose units they are.
            inputs: Of the activation.
            outputs: Of the activation.
        """
        fits = outputs.ndim >= -layer.dim and outputs.shape[layer.dim] == layer.size
        dim = layer.dim if fits else -1
        key = (layer.name, kind, outputs.shape[dim])
        with torch.no_grad():
            self._seen[key] = unit_activity(
                outputs,
                kind,
                inputs=inputs,
                unit_dim=dim,
                derivative_share=self._derivative_share,
                ends=ends,
                before=self._seen.get(key),
            )
        self.sources.wait(outputs, key)


class _Functions(TorchFunctionMode):
    """See each call of a torch function from outside; the functions that it calls itself are not seen."""

    def __init__(self, watch: UnitWatch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if torch.compiler.is_compiling():  # a function that is no module: its graph must not hold what follows
            return func(*args, **kwargs)
        if name in _VALUELESS:
            return func(*args, **kwargs)
        activation = kind_of(name, args, kwargs)
        inputs = _first(args, kwargs)
        if activation is not None and inputs is not None and needs_inputs(activation[0]):
            inputs = inputs.detach().clone()  # it may be written in place
        result = func(*args, **kwargs)
        sources = self._watch.sources
        sources.follow(name, args, kwargs, result)
        if activation is not None and inputs is not None and _countable(result):
            layer = sources.of(result).layer
            if layer is not None:  # of the data themselves there is nothing to say
                self._watch.see(*activation, layer, inputs, result)
        return result


def _first(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    value = args[0] if args else kwargs.get("input")
    return value if isinstance(value, Tensor) else None


def _countable(value: Any) -> bool:
    """Return whether a result has values that can be counted: samples and units, no subclass, not under vmap."""
    return (
        type(value) is Tensor
        and value.ndim >= 2
        and value.is_floating_point()
        and value.layout is torch.strided
        and value.device.type != "meta"
        and not torch._C._functorch.is_functorch_wrapped_tensor(value)
    )


def _is_compiled(module: nn.Module) -> bool:
    """Return whether calls of a module, or its training step, run in a graph of torch.compile."""
    if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
        return True
    calls = (getattr(module, name, None) for name in ("forward", "training_step"))
    return any(hasattr(call, "_torchdynamo_orig_callable") for call in calls)


def _over_ranks(seen: Mapping[Key, UnitActivity], all_reduce: AllReduce, gather: Gather) -> dict[Key, UnitActivity]:
    """Return the counts of all ranks together; a rank may have seen no sample at all."""
    keys = {tuple(key): None for text in gather(json.dumps(list(seen))) for key in json.loads(text)}
    if not keys:
        return {}
    parts = []
    for key in keys:
        own = seen.get(key)
        idle = torch.zeros(2 * key[2]) if own is None else own.idle.flatten().cpu()
        parts.append(torch.cat([idle.double(), torch.tensor([0.0 if own is None else own.positions]).double()]))
    total, found = all_reduce(torch.cat(parts)).split([len(part) for part in parts]), {}
    for key, part in zip(keys, total, strict=True):
        idle, positions = part[:-1].reshape(2, -1).long(), int(part[-1])
        own = seen.get(key)
        found[key] = UnitActivity(key[1], positions, idle, histogram(torch.zeros(0)) if own is None else own.histogram)
    return found
