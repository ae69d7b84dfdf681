"""Whether a config value is of the plain type that its target's annotation asks for."""

import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

_PLAIN = (int, float, bool, type(None))


def wrong_type(target: Callable[..., Any], name: str, value: Any) -> str | None:
    """Say what a value should be, where an argument is annotated as numbers, truth values and None only.

    Args:
        target: Class or function.
        name: Of its argument.
        value: From a config: None, a truth value, a number or a text.

    Returns:
        Such as "must be int or null, got 'three'"; None if the value fits, or if the annotation says other or nothing.
    """
    allowed = _allowed(target, name)
    if allowed is None or _fits(value, allowed):
        return None
    names = ["null" if kind is type(None) else kind.__name__ for kind in _PLAIN if kind in allowed]
    return f"must be {' or '.join(names)}, got {'null' if value is None else repr(value)}"


def _fits(value: Any, allowed: frozenset[type]) -> bool:
    # A whole number will do for a float, and True for 1, as in Python.
    kinds = {bool: {bool, int, float}, int: {int, float}}.get(type(value), {type(value)})
    return bool(kinds & allowed)


def _allowed(target: Callable[..., Any], name: str) -> frozenset[type] | None:
    """Return the plain types that an argument takes; None if it takes others too, or this cannot be told."""
    function = inspect.unwrap(target.__init__ if inspect.isclass(target) else target)
    try:
        hint, default = typing.get_type_hints(function)[name], inspect.signature(function).parameters[name].default
    except (KeyError, NameError, TypeError, ValueError):
        return None
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    # A tensor is never in a config, so a rate that may be a float or a tensor must be a float.
    plain = {kind for kind in kinds if getattr(kind, "__name__", "") != "Tensor"}
    if not plain or not plain <= set(_PLAIN):
        return None
    return frozenset(plain | ({type(None)} if default is None else set()))
