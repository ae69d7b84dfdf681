"""The arguments of HessianSpectrum: what they may be, and which of them a measurement needs."""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from lbtrain.callbacks._hessian_figures import NAMES

_CHOICES = {
    "matrix": ("hessian", "ggn"),
    "engine": ("auto", "autograd", "differences"),
    "figures": NAMES,
}
# The smallest value of each count; max_matvecs has a rule of its own.
_LEAST = {"top_k": 1, "trace_probes": 0, "density_probes": 0, "density_steps": 2}


@dataclass(frozen=True)
class Questions:
    """What to measure; the arguments of HessianSpectrum of the same names."""

    top_k: int
    tol: float
    max_matvecs: int
    trace_probes: int
    density_probes: int
    density_steps: int
    by_layer: bool
    split_check: bool
    keep_vectors: bool
    matrix: str
    figures: tuple[str, ...]
    basis_memory_mb: float | None
    seed: int


def check_hessian_arguments(asked: Any) -> None:
    """Check the arguments of a HessianSpectrum.

    Args:
        asked: The callback, with its arguments as attributes.

    Raises:
        ValueError: If one is out of range.
    """
    for name, least in _LEAST.items():
        value, what = getattr(asked, name), "eigenvalues" if name == "top_k" else name.split("_")[1]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be a whole number of {what}, at least {least}, got {value!r}")
    if not 0 < asked.tol < 1:
        raise ValueError(f"tol must be above 0 and below 1, got {asked.tol!r}; 1e-3 is the default")
    if not isinstance(asked.max_matvecs, int) or asked.max_matvecs <= asked.top_k:
        raise ValueError(f"max_matvecs must be a whole number above top_k = {asked.top_k}, got {asked.max_matvecs!r}")
    if not asked.graph_memory_mb >= 0:
        raise ValueError(f"graph_memory_mb must be at least 0, got {asked.graph_memory_mb!r}")
    if asked.basis_memory_mb is not None and not asked.basis_memory_mb > 0:
        raise ValueError(f"basis_memory_mb must be above 0, or None for no bound, got {asked.basis_memory_mb!r}")
    _check_choices(asked)


def _check_choices(asked: Any) -> None:
    """Check the arguments that are one of a few.

    Raises:
        ValueError: If one is none of them.
    """
    for name in ("by_layer", "split_check", "keep_vectors"):
        if not isinstance(getattr(asked, name), bool):
            raise ValueError(f"{name} must be True or False, got {getattr(asked, name)!r}")
    for name, valid in _CHOICES.items():
        given = getattr(asked, name)
        for value in (given,) if isinstance(given, str) else given:
            if value not in valid:
                near = get_close_matches(str(value), valid, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"{name} must be of {', '.join(map(repr, valid))}, got {value!r}{hint}")
