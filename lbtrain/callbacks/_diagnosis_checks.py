"""The checks of a diagnosis: which there are, which are asked for, and with which thresholds."""

import inspect
from collections.abc import Callable, Mapping
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


def asked_for(checks: Mapping[str, bool] | None) -> tuple[str, ...]:
    """Return the checks to make, in order.

    Args:
        checks: By name, whether to make it; those that are not named are made. None for all.

    Returns:
        Their names.

    Raises:
        ValueError: If a name is no check, or a value not True or False.
    """
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
        ValueError: If a name is no check, no threshold of its check, or a value no number.
    """
    for check, values in (thresholds or {}).items():
        _known("thresholds", check, tuple(CHECKS))
        if not isinstance(values, Mapping):
            raise ValueError(f"thresholds[{check!r}] must be a mapping from an argument to its value, got {values!r}")
        for name, value in values.items():
            _known(f"thresholds[{check!r}]", name, tuple(thresholds_of(check)))
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"thresholds[{check!r}][{name!r}] must be a number, got {value!r}")
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


def _known(where: str, name: str, names: tuple[str, ...]) -> None:
    if name not in names:
        near = get_close_matches(str(name), names, n=1, cutoff=0.0)
        mean = f": did you mean {near[0]!r}?" if near else ":"
        raise ValueError(f"{where} has {name!r}, which it does not know{mean} It knows {', '.join(names) or 'nothing'}")
