"""When gradients that vanish or explode on their way through the layers are a problem of the run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Protocol

from lbtrain.functional.diagnosis import Finding, Remedy

# Layers below which nothing can be said of a trend from one to the next.
_FEWEST = 3
# Norm to clip at where none is known to be usual; else the median, as Pascanu et al. (2013), section 3.2, take half to
# ten times the mean. A choice: that of most recipes.
_CLIP = 1.0


class FlowNumbers(Protocol):
    """What is judged of a layer at one step."""

    @property
    def gradient(self) -> float:
        """Root mean square of the gradient."""

    @property
    def update(self) -> float | None:
        """Norm of the update over the norm of the weights."""


History = Sequence[tuple[int, Mapping[str, FlowNumbers]]]


def flow_findings(
    history: History,
    losses: Sequence[float],
    norms: Sequence[float],
    *,
    ratio: float = 1e-4,
    update_ratio: float = 1e-3,
    explosion: float = 1e4,
    jump: float = 1e3,
    trend: float = 2 / 3,
    loss_share: float = 0.5,
) -> tuple[Finding, ...]:
    """Judge how the gradient changes through the layers, and over the run, while the loss is still high.

    Vanishing: the first layer's root mean square gradient is below ``ratio`` times the last one's, it falls towards the
    front in at least ``trend`` of the steps from layer to layer, and the first layer's relative update, where it is
    known, is below ``update_ratio`` times the last one's (Adam would make up for it). Exploding: the first one's is
    above ``explosion`` times the last one's with the same trend; or the norm of the whole gradient exceeds ``jump``
    times the median of the earlier ones while the loss is above its start, or is not finite where the loss is.

    Layers whose gradient is exactly 0 are left out: units that are dead or parameters that are not in use. A run whose
    loss has fallen below ``loss_share`` of its start trains, whatever its gradients look like.

    Args:
        history: Optimizer steps done, and numbers by layer in the order of the network, in order of time.
        losses: The mean loss at the same steps.
        norms: The norm of its gradient there, loss per unit of parameter.
        ratio: Without unit. Where the last layers get a healthy update, 1e-3 of their weights, the first ones get 1e-7
            of theirs, which is float32's spacing (1.2e-7): most of it is rounded away.
        update_ratio: Without unit. A choice: a thousand steps of the first layer are then one of the last.
        explosion: Without unit. A choice: sums over positions and different sizes of layers make up to some hundreds.
        jump: Without unit. A choice: gradients of a run that goes well differ by some tens at most on their way up.
        trend: Share of the steps from layer to layer. A choice: a single layer that stands out, a scale or an
            embedding, makes no trend.
        loss_share: Without unit. A choice: half of the first loss.

    Returns:
        At most one finding of "vanishing gradients" and one of "exploding gradients".

    Raises:
        ValueError: If a threshold is not positive, or the sequences differ in length.
    """
    thresholds = {"ratio": ratio, "update_ratio": update_ratio, "explosion": explosion, "jump": jump}
    for name, value in (thresholds | {"trend": trend, "loss_share": loss_share}).items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value!r}; leave it out for its default")
    if not len(history) == len(losses) == len(norms):
        given = f"{len(history)}, {len(losses)} and {len(norms)}"
        raise ValueError(f"history, losses and norms must be of the same steps, got {given} of them")
    points = list(zip(history, losses, norms, strict=True))
    while points and not (math.isfinite(points[-1][1])):
        points.pop()  # what a diverged run says of its layers is not a cause
    if not points:
        return ()
    first = points[0][1]

    def high(loss: float) -> bool:
        return loss > loss_share * first

    def lost(numbers: Mapping[str, FlowNumbers], loss: float) -> float:
        front = _front(numbers, trend, falling=True) if high(loss) else None
        return ratio / front[0] if front and front[1] < update_ratio else 0.0

    def grown(numbers: Mapping[str, FlowNumbers], loss: float) -> float:
        front = _front(numbers, trend, falling=False) if high(loss) else None
        return front[0] / explosion if front else 0.0

    seen = [(step, numbers, loss) for (step, numbers), loss, _ in points]
    found = (
        _finding("vanishing gradients", seen, lost),
        _finding("exploding gradients", seen, grown)
        or _jump([s for (s, _), _, _ in points], [x for _, x, _ in points], [g for _, _, g in points], jump),
    )
    return tuple(finding for finding in found if finding is not None)


def _front(numbers: Mapping[str, FlowNumbers], trend: float, *, falling: bool) -> tuple[float, float] | None:
    """Return the first layer's gradient and update over the last one's; None without a trend towards the front."""
    used = [n for n in numbers.values() if n.gradient > 0 and math.isfinite(n.gradient)]
    if len(used) < _FEWEST:
        return None
    rises = sum(a.gradient < b.gradient for a, b in pairwise(used))
    share = rises / (len(used) - 1)
    if (share if falling else 1 - share) < trend:
        return None
    first, last = used[0], used[-1]
    known = first.update is not None and last.update is not None and last.update > 0
    update = (first.update or 0.0) / (last.update or 1.0) if known else 0.0
    return first.gradient / last.gradient, update


def _finding(
    problem: str,
    seen: Sequence[tuple[int, Mapping[str, FlowNumbers], float]],
    severity: Callable[[Mapping[str, FlowNumbers], float], float],
) -> Finding | None:
    """Return the finding of a ratio that holds at the last step seen."""
    held = [(step, numbers, value) for step, numbers, loss in seen for value in [severity(numbers, loss)]]
    step, numbers, value = held[-1]
    if value < 1:
        return None
    since = next(_backwards(held))
    used = {name: n.gradient for name, n in numbers.items() if n.gradient > 0 and math.isfinite(n.gradient)}
    (first, front), *_, (last, end) = used.items()
    factor = f"{end / front:.2g} times smaller" if front < end else f"{front / end:.2g} times larger"
    when = f"since step {since}" if since else "from the start"
    words = f"the gradient of {first}, {front:.2g} by root mean square, is {factor} than {last}'s, {end:.2g}, {when}"
    numbers_found = {"first": front, "last": end, "ratio": front / end, "step": step}
    remedies = _VANISHING if problem.startswith("vanishing") else _exploding(_CLIP)
    return Finding(problem, words, numbers_found, value, since, remedies, figure="diagnosis_flow")


def _backwards(held: Sequence[tuple[int, object, float]]) -> Iterator[int]:
    """Yield the first step of the stretch, reaching to the end, in which a severity is 1 or more."""
    since = held[-1][0]
    for step, _, value in reversed(held):
        if value < 1:
            break
        since = step
    yield since


def _jump(steps: Sequence[int], losses: Sequence[float], norms: Sequence[float], jump: float) -> Finding | None:
    """Return the finding of a gradient far beyond the earlier ones."""
    for i, (step, loss, size) in enumerate(zip(steps, losses, norms, strict=True)):
        usual = median(norms[:i]) if i else math.nan
        if not math.isfinite(loss) or (math.isfinite(size) and not (loss > losses[0] and size >= jump * usual > 0)):
            continue
        words = f"the norm of the gradient is {size:.3g} at step {step}, where the loss is {loss:.3g}"
        words += f"; the median before was {usual:.3g}" if i else ""
        severity = size / (jump * usual) if math.isfinite(size) and i else math.inf
        numbers = {"norm": size, "median": usual, "loss": loss}
        remedies = _exploding(usual if usual > 0 else _CLIP)
        return Finding("exploding gradients", words, numbers, severity, step, remedies, figure="diagnosis_flow")
    return None


_NORMALIZE = "normalize between the layers (BatchNorm, LayerNorm) or add what skips them (residual connections)"
_VANISHING = (
    Remedy(
        "start with weights that keep the size of the gradient: of variance 2 / inputs with relu (He et al. 2015)",
        {"activation": "relu", "init_scale": 1.0},
    ),
    Remedy(_NORMALIZE),
)


def _exploding(clip: float) -> tuple[Remedy, ...]:
    """Return what helps, with a norm to clip at."""
    clip = float(f"{clip:.2g}")
    smaller = "start with smaller weights, that keep the size of the gradient: of variance 2 / inputs with relu"
    return (
        Remedy(f"clip the gradient at a norm of {clip:g} (Pascanu et al. 2013)", {"gradient_clip_val": clip}),
        Remedy(f"{smaller} (He et al. 2015)", {"init_scale": 1.0}),
        Remedy(_NORMALIZE),
    )
