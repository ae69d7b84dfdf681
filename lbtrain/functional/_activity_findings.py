"""When the share of dead or saturated units in a layer is a problem of the run, and since when."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from lbtrain.functional._activity_remedies import dead_remedies, saturated_remedies
from lbtrain.functional.diagnosis import Finding


class UnitNumbers(Protocol):
    """What is judged of a layer at one step."""

    @property
    def kind(self) -> str:
        """The activation."""

    @property
    def units(self) -> int:
        """Units of the layer."""

    @property
    def dead(self) -> int:
        """Units that are silent on all samples."""

    @property
    def saturated(self) -> int:
        """Units at an end of their range on nearly all samples."""


History = Mapping[str, Sequence[tuple[int, UnitNumbers]]]


def activity_findings(
    history: History,
    samples: int,
    *,
    dead_share: float = 0.8,
    saturated_share: float = 0.5,
    rate: float | None = None,
) -> tuple[Finding, ...]:
    """Judge the layers by the share of their units that is dead or saturated at the last step seen.

    Args:
        history: By layer, in the order of the network: optimizer steps done, and the numbers there, in order of time.
        samples: On which they were taken.
        dead_share: Of a layer's units, without unit. A choice: deep in a network with torch's default start the samples
            differ little, and each relu unit is on or off for all of them, so that a half is dead by chance and
            without harm; of 32 units 26 are dead by chance once in 3,700 layers.
        saturated_share: Of a layer's units, without unit. A choice: no usual start comes near it, and a layer of which
            half learns 20 times slower has lost a factor of 2 in width.
        rate: The learning rate in use, for the remedy of what began while training.

    Returns:
        At most one finding of "saturated units" and one of "dead units", each by the worst layer.

    Raises:
        ValueError: If a share is not above 0 and at most 1.
    """  # noqa: DOC502 - check_shares raises it
    check_shares(dead_share=dead_share, saturated_share=saturated_share)

    def dead(numbers: UnitNumbers) -> float:
        return numbers.dead / max(numbers.units, 1)

    def saturated(numbers: UnitNumbers) -> float:
        return numbers.saturated / max(numbers.units, 1)

    found = (
        _worst("saturated", history, samples, saturated, saturated_share, rate),
        _worst("dead", history, samples, dead, dead_share, rate),
    )
    return tuple(finding for finding in found if finding is not None)


def _worst(
    word: str,
    history: History,
    samples: int,
    share_of: Callable[[UnitNumbers], float],
    threshold: float,
    rate: float | None,
) -> Finding | None:
    """Return the finding by the layer with the largest share, the first of equal ones."""
    shares = {layer: share_of(seen[-1][1]) for layer, seen in history.items() if seen}
    bad = [layer for layer, share in shares.items() if share >= threshold]
    if not bad:
        return None
    layer = max(bad, key=lambda name: shares[name])
    last, since = history[layer][-1][1], _since((s, share_of(n) >= threshold) for s, n in history[layer])
    count, then = (round(share_of(n) * last.units) for n in (last, dict(history[layer])[since]))
    others = f"; {len(bad) - 1} other {'layer' if len(bad) == 2 else 'layers'} likewise" if len(bad) > 1 else ""
    when = f"since step {since}" if since else "from the start"
    when = f", {then} of them {when}" if then < count else f" {when}"
    verb = "is" if last.units == 1 else "are"
    where = f"{samples} samples" if word == "dead" else f"nearly all of {samples} samples"
    words = f"layer {layer}: {count} of {last.units} {last.kind} units {verb} {word} on {where}{when}{others}"
    numbers = {"units": last.units, "dead": last.dead, "saturated": last.saturated}
    numbers |= {"samples": samples, "layers": len(bad)}
    remedies = dead_remedies(since, rate) if word == "dead" else saturated_remedies(since, rate)
    return Finding(
        f"{word} units", words, numbers, shares[layer] / threshold, since, remedies, figure="diagnosis_units"
    )


def _since(held: Iterable[tuple[int, bool]]) -> int:
    """Return the first step of the stretch, reaching to the end, in which it held."""
    since: int | None = None
    for step, holds in held:
        since = (step if since is None else since) if holds else None
    return since or 0


def check_shares(**shares: float) -> None:
    """Check thresholds.

    Args:
        shares: By name.

    Raises:
        ValueError: If one is not above 0 and at most 1.
    """
    for name, share in shares.items():
        if not 0 < share <= 1:
            raise ValueError(
                f"{name} must be a share above 0 and at most 1, got {share!r}; leave it out for its default"
            )
