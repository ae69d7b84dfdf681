"""Units that are alike and stay alike: equal incoming weights with equal gradients, and networks of zeros."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lbtrain.functional._twins import Twins, twins
from lbtrain.functional.diagnosis import Finding, Remedy

# Relative distance of weights that count as equal: 10 roundings of float32. Random weights come as near by chance only
# where a unit has a single input.
_WEIGHTS = 1e-6
# Relative distance of gradients that count as equal. A choice: sums over 256 samples in float32 differ by 1e-6 with
# their order, and gradients that differ by 1e-4 part their units in the course of a training.
_GRADIENTS = 1e-4
# Share of a layer's units that must be alike. A choice: fewer are no loss to the layer, and weights of 8 bits with
# one input each are alike by chance.
_MIN_SHARE = 0.01


@dataclass(frozen=True)
class TwinUnits:
    """Units of one layer with equal incoming weights, up to sign.

    Attributes:
        name: Of the weight, whose rows are the units.
        units: Their rows.
        signs: 1 or -1 for each: times this, the weights are those of the first.
    """

    name: str
    units: tuple[int, ...]
    signs: tuple[int, ...]


@dataclass(frozen=True)
class Symmetries:
    """What is alike in a network's weights.

    Attributes:
        units: Rows of each weight with two dimensions or more, by name.
        groups: Units with equal incoming weights, up to sign; all units of a layer of zeros.
        lasting: Those of them whose gradients are equal, too, so that every step leaves them alike; None where no
            gradients were given.
        zeros: Weights that are zero throughout; harmless as long as their gradients differ.
        stuck: All weights, if all gradients of weights are zero and some weight is zero throughout; else none.
        constant: How many units of a weight have one and the same number for all inputs, other than zero.
        permuted: Units with equal weights in another order, where they were looked for: weaker evidence.
    """

    units: Mapping[str, int]
    groups: tuple[TwinUnits, ...] = ()
    lasting: tuple[TwinUnits, ...] | None = None
    zeros: tuple[str, ...] = ()
    stuck: tuple[str, ...] = ()
    constant: Mapping[str, int] = field(default_factory=dict)
    permuted: tuple[TwinUnits, ...] = ()


def symmetries(
    weights: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor] | None = None,
    *,
    tol: float = _WEIGHTS,
    gradient_tol: float = _GRADIENTS,
    permuted: bool = False,
) -> Symmetries:
    """Find units with ``|w_i - s w_j| <= tol max(|w_i|, |w_j|)``, ``s = 1`` or ``-1``, and those that stay so.

    A unit is a row of a weight, flattened, with its entry of the bias; a filter is a row. Units stay alike if their
    gradients are alike with the same sign. So softmax regression at zero weights is fine, since classes have different
    gradients, and so is a last layer of zeros behind random units. Of the last layer only all units together count:
    classes without a sample have equal gradients.

    Args:
        weights: Parameters by name, in the network's order; those with fewer than two dimensions count as biases.
        gradients: Of the loss on enough samples, by the same names; a weight without one is not judged.
        tol: Relative distance of weights that count as equal.
        gradient_tol: Relative distance of gradients that count as equal.
        permuted: Look for rows with equal numbers in another order, too.

    Returns:
        What is alike.

    Raises:
        ValueError: If a tolerance is negative, or a gradient has another shape than its weight.
    """  # noqa: DOC502 - _check_arguments raises it
    _check_arguments(weights, gradients, tol, gradient_tol)
    matrices = {name: w for name, w in weights.items() if w.ndim >= 2}
    found, lasting, scrambled = list[TwinUnits](), list[TwinUnits](), list[TwinUnits]()
    last = next(reversed(matrices), None)
    for name, w in matrices.items():
        rows = _rows(name, weights)
        groups = twins(rows, tol)
        found += [TwinUnits(name, *group) for group in groups]
        if gradients is not None and name in gradients:
            staying = _staying(groups, rows, _rows(name, gradients), gradient_tol)
            lasting += [TwinUnits(name, *g) for g in staying if name != last or len(g[0]) == len(rows)]
        if permuted:
            flat = w.detach().flatten(1).double().cpu()
            scrambled += [TwinUnits(name, *group) for group in twins(flat.sort(dim=1).values, tol, signed=False)]
    constant = {name: _constant(w, tol) for name, w in matrices.items()}
    zeros = tuple(name for name, w in matrices.items() if not w.detach().any())
    known = [g for name, g in (gradients or {}).items() if name in matrices]
    idle = bool(zeros and known) and not any(bool(g.any()) for g in known)
    return Symmetries(
        {name: len(w) for name, w in matrices.items()},
        tuple(found),
        None if gradients is None else tuple(lasting),
        zeros,
        tuple(matrices) if idle else (),
        {name: count for name, count in constant.items() if count},
        tuple(scrambled),
    )


def symmetry_finding(found: Symmetries, *, min_share: float = _MIN_SHARE) -> Finding | None:
    """Say which units stay alike for ever, or that nothing moves.

    Args:
        found: Of `symmetries`, with gradients: without them no unit is known to stay alike.
        min_share: Share of a layer's units that must be alike, without unit.

    Returns:
        ``symmetries`` with the layer in which most units are alike; None where the units will part.
    """
    alike = {name: [g for g in found.lasting or () if g.name == name] for name in found.units}
    shares = {name: sum(len(g.units) for g in groups) / found.units[name] for name, groups in alike.items() if groups}
    shares = {name: share for name, share in shares.items() if share >= min_share}
    if not shares and not found.stuck:
        return None
    remedy = Remedy("random initial weights, different for every unit", {"init_scale": 1.0})
    if not shares:
        words = f"layer {found.zeros[0]}: all weights are zero, and so are the gradients of all weights"
        numbers = {"layers": float(len(found.zeros))}
        return Finding("symmetries", words, numbers, 1.0, since=0, remedies=(remedy,))
    name, share = max(shares.items(), key=lambda item: item[1])
    words = _words(name, alike[name], found)
    if len(shares) > 1:
        others = [other for other in shares if other != name]
        words += f"; units are alike in {len(others)} more: {', '.join(others[:3])}" + ", ..." * (len(others) > 3)
    numbers = {
        "units": float(found.units[name]),
        "alike": float(sum(len(g.units) for g in alike[name])),
        "groups": float(len(alike[name])),
        "layers": float(len(shares)),
    }
    return Finding("symmetries", words, numbers, share / min_share, since=0, remedies=(remedy,))


def _words(name: str, groups: list[TwinUnits], found: Symmetries) -> str:
    """Return which units of one layer are alike."""
    count, total = sum(len(g.units) for g in groups), found.units[name]
    if name in found.zeros:
        return f"layer {name}: the weights of all {total} units are zero, and their gradients are equal"
    first = groups[0]
    pair = f"units {first.units[0]} and {first.units[1]}"
    sign = " up to sign" if -1 in first.signs else ""
    return (
        f"layer {name}: {count} of {total} units have equal incoming weights and equal gradients in {len(groups)} "
        f"group{'s' * (len(groups) > 1)} ({pair}{sign}), so training cannot tell them apart"
    )


def _staying(groups: list[Twins], rows: Tensor, gradients: Tensor, tol: float) -> list[Twins]:
    """Return the parts of the groups whose gradients are alike with the signs of their weights."""
    found = []
    moving = bool(gradients.any())
    for units, signs in groups:
        aligned = gradients[list(units)] * torch.tensor(signs, dtype=gradients.dtype)[:, None]
        for part, _ in twins(aligned, tol, signed=False):
            # Where others move, units of zeros that do not are pruned or idle: dead, not alike.
            if moving and not rows[units[0]].any() and not aligned[part[0]].any():
                continue
            found.append((tuple(units[i] for i in part), tuple(signs[i] * signs[part[0]] for i in part)))
    return found


def _rows(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the units of a weight as rows, with their biases, as float64 on the CPU."""
    flat = tensors[name].detach().flatten(1)
    path, _, own = name.rpartition(".")
    bias = tensors.get(f"{path}.{own.replace('weight', 'bias')}".lstrip("."))
    if "weight" in own and bias is not None and bias.shape == flat.shape[:1]:
        flat = torch.cat([flat, bias.detach()[:, None].to(flat)], dim=1)
    return flat.double().cpu()


def _constant(weight: Tensor, tol: float) -> int:
    flat = weight.detach().flatten(1)
    if flat.shape[1] < 2:
        return 0
    low, high = flat.amin(dim=1), flat.amax(dim=1)
    size = torch.maximum(low.abs(), high.abs())
    return int(((size > 0) & (high - low <= tol * size)).sum())


def _check_arguments(
    weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor] | None, tol: float, gradient_tol: float
) -> None:
    for name, value in (("tol", tol), ("gradient_tol", gradient_tol)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, got {value}; leave it out for the default")
    for name, g in (gradients or {}).items():
        if name in weights and g.shape != weights[name].shape:
            shapes = f"{tuple(g.shape)} and {tuple(weights[name].shape)}"
            raise ValueError(f"gradient and weight must have one shape, got {shapes} for {name}; pass the same names")
