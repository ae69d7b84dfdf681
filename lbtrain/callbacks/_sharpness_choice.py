"""Read the argument `measures` of `Sharpness`: names, or names with arguments; a mistyped name gets the nearest one."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any

from torch import Generator, nn

from lbtrain.callbacks._sharpness_kinds import KINDS, Kind
from lbtrain.callbacks._sharpness_result import Found
from lbtrain.functional.hvp import MeanLoss
from lbtrain.functional.sharpness import m_sharpness

_PREFIX = "m_"  # of the mean over batches of each batch's own sharpness
_SUFFIXES = ("_stderr", "_batch_stderr", "_corner", "_residual")  # of metrics that measures have beside their value
_POSITIVE = ("eps", "rho", "tol")
_WHOLE = ("num_steps", "num_starts", "num_pairs", "num_probes", "dim")


@dataclass(frozen=True)
class Wanted:
    """One measure that was asked for."""

    name: str
    kind: str
    """Its definition, a key of `KINDS`."""
    of_batches: bool
    """Whether each batch is measured alone."""
    arguments: Mapping[str, Any]
    """Those that were given."""

    @property
    def definition(self) -> str:
        """What `kind` was given, or would be to say the same."""
        return f"{_PREFIX}{self.kind}" if self.of_batches else self.kind

    def take(self, loss: MeanLoss, module: nn.Module, generator: Generator) -> Found:
        """Measure.

        Args:
            loss: Mean loss over the training data.
            module: Whose parameters it is of.
            generator: Source of random numbers, seeded alike on all ranks.

        Returns:
            What the function of the measure returns.
        """
        kind = KINDS[self.kind]
        function = partial(kind.function, **kind.preset, **self.arguments)
        function = partial(function, module=module) if kind.takes_module else function
        if self.of_batches:
            return m_sharpness(loss, loss.params, function, generator=generator)
        found: Found = function(loss, loss.params, generator=generator)
        return found


def read(measures: str | Iterable[Any] | Mapping[str, Any]) -> tuple[Wanted, ...]:
    """Read which measures are asked for, with which arguments.

    Args:
        measures: Names, or one-entry mappings from a name to arguments, in a list; or one name; or one mapping from
            names to arguments. A name of your own is possible where the arguments name the definition: `kind`.

    Returns:
        One entry per measure, in order.

    Raises:
        ValueError: If there is none, a name is unknown or double, or an argument is unknown or out of range.
    """
    found = tuple(_wanted(name, arguments) for name, arguments in _entries(measures))
    names = [wanted.name for wanted in found]
    double = sorted({name for name in names if names.count(name) > 1})
    if not found:
        raise ValueError(f"measures is empty: name at least one of {', '.join(KINDS)}")
    if double:
        raise ValueError(
            f"measures has {double[0]!r} twice: give one of them a name of its own, with kind: {double[0]}"
        )
    return found


def _entries(measures: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    measures = [measures] if isinstance(measures, str) else measures
    if not isinstance(measures, Iterable):
        raise ValueError(f"measures must be a list of names or a mapping, got {measures!r}; for example ['sam']")
    for entry in measures.items() if isinstance(measures, Mapping) else measures:
        if isinstance(entry, Mapping) and len(entry) == 1:
            entry = next(iter(entry.items()))
        name, arguments = entry if isinstance(entry, tuple) else (entry, None)
        arguments = {} if arguments is None else arguments
        if not isinstance(name, str) or not isinstance(arguments, Mapping):
            raise ValueError(
                f"an entry of measures must be a name, or a name with a mapping of arguments, got {entry!r}; "
                "for example {'sam': {'rho': 0.1}}"
            )
        yield name, arguments


def _wanted(name: str, arguments: Mapping[str, Any]) -> Wanted:
    given = dict(arguments)
    definition = given.pop("kind", name)
    bare = str(definition).removeprefix(_PREFIX)
    of_batches = bare != definition
    valid = [*KINDS, *(f"{_PREFIX}{key}" for key, kind in KINDS.items() if kind.is_maximum)]
    if definition not in valid:
        raise ValueError(f"measures: there is no measure {definition!r}{_nearest(str(definition), valid)}")
    if not re.fullmatch(r"[\w.-]+", name) or name.endswith(_SUFFIXES):
        raise ValueError(
            f"measures: {name!r} cannot name a measure: take letters, digits, '_', '.' and '-', and none of the ends "
            f"{', '.join(_SUFFIXES)}"
        )
    _check(name, KINDS[bare], given)
    return Wanted(name, bare, of_batches, given)


def _check(name: str, kind: Kind, given: Mapping[str, Any]) -> None:
    """Check the arguments of a measure, before time is spent on training.

    Raises:
        ValueError: If one is unknown or out of range.
    """
    known = kind.arguments
    for key, value in given.items():
        if key not in known:
            raise ValueError(f"measures: {name} takes no argument {key!r}{_nearest(key, known)}")
        rule = _broken_rule(key, value)
        if rule and not (value is None and known[key] is None) and not (value is None and key == "num_probes"):
            raise ValueError(f"measures: {key} of {name} must be {rule}, got {value!r}")


def _broken_rule(key: str, value: Any) -> str | None:
    """Return what the value should be, if it is not."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    whole = number and isinstance(value, int)
    rules = {
        **dict.fromkeys(_POSITIVE, (number and 0 < value < math.inf, "positive and finite")),
        **dict.fromkeys(_WHOLE, (whole and value >= 1, "a whole number, at least 1")),
        "max_matvecs": (whole and value >= 2, "a whole number of products, at least 2"),
        "p": (number and value in {2, math.inf}, "2 or infinity (.inf in YAML)"),
        "eta": (number and 0 <= value < math.inf, "at least 0 and finite"),
        "layer": (isinstance(value, str), "the name of a layer, or None for the last linear one"),
    }
    fine, rule = rules[key]
    return None if fine else rule


def _nearest(name: str, options: Iterable[str]) -> str:
    options = list(options)
    close = get_close_matches(name.lower(), options, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; valid: {', '.join(options)}"
