"""What is wrong with a run: findings, what helps against each, and the order in which a reader should see them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

Change: TypeAlias = bool | int | float | str

# The problems that can be found, causes before what they lead to: a wrong gradient makes every later number wrong, a
# diverged run has dead units, and a run that does not move is slow.
PROBLEMS = (
    "invalid data",
    "incorrect gradients",
    "summed loss",
    "ill-conditioned inputs",
    "symmetries",
    "saturated units",
    "dead units",
    "instability",
    "oscillations",
    "fluctuations",
    "decay too early",
    "decay too late",
    "plateau",
    "saddle",
    "vanishing gradients",
    "exploding gradients",
    "slow progress",
    "ill-conditioning",
    "label imbalance",
    "local optima",
)
# What a run that has become unstable leaves behind; found after it, these are its traces and not the cause.
_CONSEQUENCES = frozenset({
    "saturated units",
    "dead units",
    "plateau",
    "saddle",
    "vanishing gradients",
    "exploding gradients",
})


@dataclass(frozen=True)
class Remedy:
    """What helps.

    Attributes:
        words: The move, in words with its numbers.
        changes: Values by knob, for whoever knows the run's config keys. Knobs: `lr` (the rate that the optimizer
            should have), `momentum`, `batch_size`, `reduction`, `normalize`, `init_scale`, `bias`, `activation`,
            `gradient_clip_val` (a norm), `warmup_steps`, `decay_epoch`, `averaging`.
    """

    words: str
    changes: Mapping[str, Change] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """One problem of a run.

    Attributes:
        problem: One of `PROBLEMS`.
        evidence: What shows it, in words with numbers.
        numbers: The numbers alone, by name.
        severity: The evidence over its threshold, 1 or more; without unit.
        since: Optimizer steps done when it began; 0: from the start, None: not known.
        remedies: What helps, the best first.
        figure: Stem of the figure that shows it, such as `diagnosis_units`; None without one.
    """

    problem: str
    evidence: str
    numbers: Mapping[str, float]
    severity: float
    since: int | None = None
    remedies: tuple[Remedy, ...] = ()
    figure: str | None = None

    def __post_init__(self) -> None:
        if self.problem not in PROBLEMS:
            raise ValueError(f"problem must be one of {', '.join(PROBLEMS)}, got {self.problem!r}")
        if math.isnan(self.severity) or self.severity < 1:
            raise ValueError(f"severity must be at least 1, since less is no finding, got {self.severity!r}")


def ranked(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Sort findings, the most important first: causes before consequences, then by severity.

    The order is that of `PROBLEMS`, with one exception: in a run that became unstable, units that died and gradients
    that vanished on the way are its traces and stand behind the instability, be they seen some steps before the loss
    shows it. What was so from the start is not.

    Args:
        findings: In any order.

    Returns:
        All of them.
    """
    found = list(findings)
    is_unstable = any(f.problem == "instability" for f in found)

    def place(finding: Finding) -> tuple[float, float]:
        rank = float(PROBLEMS.index(finding.problem))
        if is_unstable and finding.problem in _CONSEQUENCES and finding.since:
            rank = max(rank, PROBLEMS.index("instability") + 0.5)
        return rank, -finding.severity

    return tuple(sorted(found, key=place))
