"""What helps against units that are dead or saturated, from the start or since some step."""

from __future__ import annotations

from lbtrain.functional.diagnosis import Remedy

# How much smaller a rate to try. A choice: units that a step has driven off do not come back in the same run, so the
# next one should be clearly on the safe side; a rate three times too small still trains well.
_SMALLER = 3.0


def dead_remedies(since: int, rate: float | None) -> tuple[Remedy, ...]:
    """Return what helps against dead units.

    Args:
        since: Optimizer steps done when they died; 0: they were dead from the start.
        rate: Learning rate in use, if known.
    """
    leaky = Remedy("use an activation with a slope below 0, such as leaky_relu", {"activation": "leaky_relu"})
    if since:
        return (*_gentler(since, rate), leaky)
    start = Remedy(
        "start with biases of 0 and weights of standard deviation sqrt(2 / inputs) (He et al. 2015)",
        {"bias": 0.0, "init_scale": 1.0},
    )
    return start, leaky


def saturated_remedies(since: int, rate: float | None) -> tuple[Remedy, ...]:
    """Return what helps against saturated units.

    Args:
        since: Optimizer steps done when they saturated; 0: they were from the start.
        rate: Learning rate in use, if known.
    """
    relu = Remedy("use an activation without an upper end, such as relu", {"activation": "relu"})
    if since:
        return (*_gentler(since, rate), relu)
    start = Remedy(
        "start with smaller weights, of standard deviation sqrt(1 / inputs) (Glorot and Bengio 2010)",
        {"init_scale": 1.0},
    )
    return start, relu


def _gentler(since: int, rate: float | None) -> tuple[Remedy, Remedy]:
    """Return a smaller rate, and a warmup that is not over when the units were lost."""
    smaller = Remedy(f"lower the learning rate by a factor of {_SMALLER:g}")
    if rate is not None and rate > 0:
        value = float(f"{rate / _SMALLER:.2g}")
        smaller = Remedy(f"lower the learning rate from {rate:.3g} to {value:g}", {"lr": value})
    steps = 2 * since
    return smaller, Remedy(f"warm the learning rate up over {steps} steps", {"warmup_steps": steps})
