"""The checks of a diagnosis: which there are, which are asked for, and with which thresholds."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from lbtrain.functional.activity import activity_findings
from lbtrain.functional.conditioning import (
    balance_finding,
    conditioning_finding,
    feature_finding,
    feature_scales,
    invalid_values,
    label_balance,
)
from lbtrain.functional.decay import decay_findings
from lbtrain.functional.fluctuation import fluctuation_finding
from lbtrain.functional.gradient_check import gradient_check, gradient_finding
from lbtrain.functional.gradient_flow import flow_findings
from lbtrain.functional.instability import instability_finding
from lbtrain.functional.oscillation import oscillation_finding
from lbtrain.functional.slow_progress import slow_finding
from lbtrain.functional.stuck import plateau_finding, saddle_finding
from lbtrain.functional.summed_loss import reduction_finding
from lbtrain.functional.symmetry import symmetries, symmetry_finding

Limits = Mapping[str, float]

# What judges in each check, whose keyword arguments are its thresholds. The first six look at the first batch.
CHECKS: dict[str, tuple[Callable[..., Any], ...]] = {
    "data": (invalid_values,),
    "gradients": (gradient_check, gradient_finding),
    "reduction": (reduction_finding,),
    "inputs": (feature_scales, feature_finding),
    "labels": (label_balance, balance_finding),
    "symmetries": (symmetries, symmetry_finding),
    "units": (activity_findings,),
    "flow": (flow_findings,),
    "instability": (instability_finding,),
    "oscillations": (oscillation_finding,),
    "fluctuations": (fluctuation_finding,),
    "decay": (decay_findings,),
    "progress": (slow_finding,),
    "plateau": (plateau_finding,),
    "saddle": (saddle_finding,),
    "conditioning": (conditioning_finding,),
}
# Keyword arguments that are facts of a run and no thresholds, though they have a number for where they are not known.
_FACTS = frozenset({"momentum", "residual"})
# Thresholds that are chosen by the precision where they are None.
_CHOSEN = frozenset({"tolerance", "step"})
# Thresholds that are shares of a whole, at most 1, and those that may be negative; all others are just above 0.
_SHARES = frozenset({"dead_share", "saturated_share", "min_share", "trend", "share", "noise", "late"})
_SIGNED = frozenset({"correlation"})


def asked_for(checks: Mapping[str, bool] | None) -> tuple[str, ...]:
    """Return the checks to make, in order.

    Args:
        checks: By name, whether to make it; those that are not named are made. None for all.

    Returns:
        Their names.

    Raises:
        ValueError: If it is no mapping, a name is no check, or a value not True or False.
    """
    if checks is not None and not isinstance(checks, Mapping):
        raise ValueError(f"checks must say by name whether to make a check, such as {_form(checks)}, got {checks!r}")
    for name, is_on in (checks or {}).items():
        _known("checks", name, tuple(CHECKS))
        if not isinstance(is_on, bool):
            raise ValueError(f"checks[{name!r}] must be True or False, got {is_on!r}: False leaves the check out")
    return tuple(name for name in CHECKS if (checks or {}).get(name, True))


def limits_of(thresholds: Mapping[str, Mapping[str, float]] | None) -> dict[str, dict[str, float]]:
    """Return the thresholds of every check.

    Args:
        thresholds: By check, values by argument of the functions that judge; None to leave all as they are.

    Returns:
        The same for every check; empty for those that are not named.

    Raises:
        ValueError: If it is no mapping, a name is no check, no threshold of its check, or a value out of range.
    """
    if thresholds is not None and not isinstance(thresholds, Mapping):
        form = "{'units': {'dead_share': 0.3}}"
        raise ValueError(f"thresholds must have values by argument for each check, such as {form}, got {thresholds!r}")
    for check, values in (thresholds or {}).items():
        _known("thresholds", check, tuple(CHECKS))
        if not isinstance(values, Mapping):
            raise ValueError(f"thresholds[{check!r}] must be a mapping from an argument to its value, got {values!r}")
        defaults = thresholds_of(check)
        for name, value in values.items():
            _known(f"thresholds[{check!r}]", name, tuple(defaults))
            _in_range(check, name, value, defaults[name])
    return {check: dict((thresholds or {}).get(check, {})) for check in CHECKS}


def thresholds_of(check: str) -> dict[str, float | None]:
    """Return the thresholds that a check has, with their defaults.

    Args:
        check: Its name.

    Returns:
        The keyword arguments of its functions that are numbers; None for one that is chosen by the precision.
    """
    found: dict[str, float | None] = {}
    for function in CHECKS[check]:
        for name, parameter in inspect.signature(function).parameters.items():
            default = parameter.default
            is_number = isinstance(default, int | float) and not isinstance(default, bool) and name not in _FACTS
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY and (is_number or name in _CHOSEN):
                found.setdefault(name, default)
    return found


def given(function: Callable[..., Any], limits: Limits) -> dict[str, float]:
    """Return those of a check's thresholds that one of its functions takes.

    Args:
        function: One of the functions of the check.
        limits: By argument.

    Returns:
        Arguments for it.
    """
    return {name: value for name, value in limits.items() if name in inspect.signature(function).parameters}


def _in_range(check: str, name: str, value: object, default: float | None) -> None:
    """Refuse a threshold that is no number, or one that nothing or everything would pass.

    Raises:
        ValueError: Then.
    """
    where = f"thresholds[{check!r}][{name!r}]"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{where} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{where} must be finite, got {value!r}; to leave the check out: checks={{{check!r}: False}}")
    if isinstance(default, int) and not isinstance(value, int):
        raise ValueError(f"{where} must be a whole number, as its default {default}, got {value!r}")
    low, high = (-1.0, 1.0) if name in _SIGNED else (0.0, 1.0 if name in _SHARES else math.inf)
    if not low < value <= high:
        bounds = f"above {low:g}" if high == math.inf else f"above {low:g} and at most {high:g}"
        raise ValueError(f"{where} must be {bounds}, got {value!r}; its default is {default}")


def _form(checks: object) -> str:
    """Return what someone may have meant who gave a list of names."""
    names = checks if isinstance(checks, Sequence) and not isinstance(checks, str) else [checks]
    named = [name for name in names if name in CHECKS] or ["gradients"]
    return f"{{{', '.join(f'{name!r}: False' for name in named)}}} to leave out"


def _known(where: str, name: str, names: tuple[str, ...]) -> None:
    if name not in names:
        near = get_close_matches(str(name), names, n=1, cutoff=0.0)
        mean = f": did you mean {near[0]!r}?" if near else ":"
        raise ValueError(f"{where} has {name!r}, which it does not know{mean} It knows {', '.join(names) or 'nothing'}")
