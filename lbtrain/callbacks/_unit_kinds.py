"""Which functions of torch are activations, and between which ends they run."""

from collections.abc import Mapping, Sequence
from typing import Any

from lbtrain.functional._activations import ENDS, KINDS, Ends

# Activations without a flat side: there is nothing to count but their histogram.
_OTHERS = {"leaky_relu", "prelu", "rrelu", "softsign"}
_NAMES = {name: name for name in KINDS | _OTHERS} | {"special_expit": "sigmoid"}
_CLAMPS = {"clamp", "clip", "clamp_min"}


def kind_of(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str, Ends | None] | None:
    """Return which activation a call of a torch function is.

    Args:
        name: Of the function; a trailing underscore for writing in place makes no difference.
        args: Of the call.
        kwargs: Of the call.

    Returns:
        Its kind, and its ends where they are not the usual ones; None for another function.
    """
    name = name.rstrip("_")
    if name in _CLAMPS:
        low, high = _given(args, kwargs, 1, "min", None), _given(args, kwargs, 2, "max", None)
        zero = isinstance(low, int | float) and low == 0
        return ("relu", None) if zero and high is None else None
    kind = _NAMES.get(name)
    if kind == "hardtanh":
        ends = (_given(args, kwargs, 1, "min_val", -1.0), _given(args, kwargs, 2, "max_val", 1.0))
        return ("relu6", None) if ends == ENDS["relu6"] else (kind, ends)
    if kind in {"elu", "celu"}:
        return kind, (-_given(args, kwargs, 1, "alpha", 1.0), None)
    if kind == "softplus" and (beta := _given(args, kwargs, 1, "beta", 1)) != 1:
        return f"softplus with beta {beta:g}", None  # its flat side lies elsewhere, so only the histogram is taken
    return None if kind is None else (kind, None)


def _given(args: Sequence[Any], kwargs: Mapping[str, Any], place: int, name: str, default: Any) -> Any:
    """Return an argument by its place or name."""
    return args[place] if len(args) > place else kwargs.get(name, default)
