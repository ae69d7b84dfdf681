"""Findings that another one explains, and remedies that a run has or that another finding overrules."""

from collections.abc import Mapping
from dataclasses import replace

from lbtrain.functional.diagnosis import Finding, Remedy

Found = Mapping[str, tuple[Finding, ...]]

_UNITS = frozenset({"dead units", "saturated units"})
# What a run cannot but show where it became unstable, or where a layer passes nothing on from the start: it does not
# move. A larger rate, which helps against these, would be the wrong advice.
_STILL = frozenset({"slow progress", "ill-conditioning", "plateau", "saddle"})
_FIRST = Remedy("see to the instability first: these units were lost on its way")


def without_consequences(found: Found) -> dict[str, tuple[Finding, ...]]:
    """Leave out what an instability, or units lost from the start, explain, and remedies that speak against theirs.

    Args:
        found: Findings by check.

    Returns:
        The same checks with what remains.
    """
    every = [finding for findings in found.values() for finding in findings]
    is_unstable = any(finding.problem == "instability" for finding in every)
    explains = is_unstable or any(finding.problem in _UNITS and not finding.since for finding in every)
    kept = {
        check: tuple(f for f in findings if not (explains and f.problem in _STILL)) for check, findings in found.items()
    }
    return {check: tuple(_overruled(f) if is_unstable else f for f in findings) for check, findings in kept.items()}


def to_do(finding: Finding, momentum: float, averages: bool) -> Finding:
    """Return a finding without the remedies that the run has already.

    Args:
        finding: Any.
        momentum: Of the optimizer; of Adam its first beta.
        averages: Whether a callback averages the weights.

    Returns:
        The finding.
    """

    def is_done(remedy: Remedy) -> bool:
        offered = remedy.changes.get("momentum")
        return (isinstance(offered, float) and momentum >= offered) or (averages and "averaging" in remedy.changes)

    return replace(finding, remedies=tuple(r for r in finding.remedies if not is_done(r)))


def _overruled(finding: Finding) -> Finding:
    """Return units that were lost on the way of an instability without a rate and a warmup of their own."""
    if finding.problem not in _UNITS or not finding.since:
        return finding
    kept = (r for r in finding.remedies if not {"lr", "warmup_steps"} & {*r.changes})
    return replace(finding, remedies=(_FIRST, *kept))
