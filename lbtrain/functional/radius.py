"""How the radius of the ascent changes over training."""

import math

KINDS = ("constant", "linear", "cosine", "lr")


def radius(kind: str, rho: float, rho_end: float, *, progress: float, rate: float) -> float:
    """Return the radius of the ascent at a moment of training.

    constant: `rho`. linear: `rho + (rho_end - rho) t`. cosine: `rho_end + (rho - rho_end) (1 + cos(pi t)) / 2`.
    lr: `rho_end + (rho - rho_end) r`, which follows the learning rate.

    Args:
        kind: One of `constant`, `linear`, `cosine`, `lr`.
        rho: Radius at the start (`lr`: at the highest rate), in units of parameter norm.
        rho_end: Radius at the end (`lr`: at rate zero), same unit.
        progress: t, the share of training that is done, 0 to 1.
        rate: r, the learning rate as a share of its highest value.

    Returns:
        The radius, in units of parameter norm.

    Raises:
        ValueError: If the kind is none of the four.

    References:
        Zhuang et al. (2022), arXiv 2203.08065, section 4.1, for `lr`.
    """
    if kind not in KINDS:
        raise ValueError(f"the schedule of rho must be one of {', '.join(KINDS)}, got {kind!r}")
    if kind == "constant":
        return rho
    share = {"linear": 1.0 - progress, "cosine": (1.0 + math.cos(math.pi * progress)) / 2, "lr": rate}
    return rho_end + (rho - rho_end) * share[kind]
