"""What the checks of a run have come to: findings, which checks were made, and why the others were not."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import torch

from lbtrain._lightning import MisconfigurationException, Trainer, rank_zero_warn
from lbtrain.functional.diagnosis import Finding, Remedy

Verdict: TypeAlias = Iterable[Finding] | Finding | None


class LeftOut(Exception):  # noqa: N818 - no error: a check that does not apply says why
    """A check has nothing to judge by; the message says why."""


@dataclass
class Ledger:
    """Findings by check, in the order of the checks; a check that was left out has a reason instead."""

    found: dict[str, tuple[Finding, ...]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """Errors of the checks among those left out that failed in a way that nobody foresaw."""

    @property
    def findings(self) -> list[Finding]:
        """All findings, check by check."""
        return [finding for findings in self.found.values() for finding in findings]

    def judge(self, check: str, work: Callable[[], Verdict]) -> None:
        """Make a check; one that fails is left out with its error, since a diagnosis should not end a run.

        Args:
            check: Its name.
            work: What makes it.
        """
        try:
            verdict = work()
            self.found[check] = _listed(verdict)
        except (LeftOut, MisconfigurationException) as reason:
            self.left_out[check] = str(reason)
        except Exception as error:
            # Files and loggers get its kind alone: the message is the user's, and may hold what is no one else's.
            self.left_out[check] = f"it failed with {type(error).__name__}"
            self.failed[check] = f"{type(error).__name__}: {error}"

    def leave_out(self, checks: Iterable[str], reason: str) -> None:
        """Leave checks out for one reason.

        Args:
            checks: Their names; those made already stay.
            reason: Why.
        """
        self.left_out |= {check: reason for check in checks if check not in self.found}

    def tell(self) -> None:
        """Warn, on rank zero, of the checks that failed."""
        for check, error in self.failed.items():
            rank_zero_warn(
                f"OptimizationDiagnostics: the check {check!r} failed and is left out ({error}); the training is not "
                f"affected. To do without it: checks={{{check!r}: False}}"
            )

    def take(self, other: "Ledger") -> None:
        """Add what another one has.

        Args:
            other: Of further checks.
        """
        self.found |= other.found
        self.left_out |= other.left_out
        self.failed |= other.failed

    def state_dict(self) -> dict[str, Any]:
        """Return all of it in plain Python, but for errors that were told already."""
        found = {check: [_plain(finding) for finding in findings] for check, findings in self.found.items()}
        return {"found": found, "left_out": dict(self.left_out), "failed": {}}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Ledger":
        """Return what `state_dict` had.

        Args:
            state: From a checkpoint.

        Returns:
            The ledger.
        """
        found = {check: tuple(_finding(kept) for kept in findings) for check, findings in state["found"].items()}
        return cls(found, dict(state["left_out"]), dict(state["failed"]))


def over_ranks(trainer: Trainer, ledger: Ledger) -> Ledger:
    """Return one ledger of those of all ranks: for each check the first one with a finding, else the first one made.

    Args:
        trainer: The Trainer; all ranks must call.
        ledger: Of this rank, with the same checks on all.

    Returns:
        The same on every rank.
    """
    if trainer.world_size == 1:
        return ledger
    ledgers: list[Ledger] = [ledger] * trainer.world_size
    torch.distributed.all_gather_object(ledgers, ledger)
    return _merged(ledgers)


def _merged(ledgers: Sequence[Ledger]) -> Ledger:
    made = Ledger()
    for check in [*ledgers[0].found, *ledgers[0].left_out]:
        of_ranks = [ledger.found[check] for ledger in ledgers if check in ledger.found]
        if of_ranks:
            made.found[check] = next((findings for findings in of_ranks if findings), ())
        else:
            made.left_out[check] = ledgers[0].left_out[check]
            made.failed |= {check: ledgers[0].failed[check]} if check in ledgers[0].failed else {}
    return made


def _listed(verdict: Verdict) -> tuple[Finding, ...]:
    if verdict is None:
        return ()
    return (verdict,) if isinstance(verdict, Finding) else tuple(verdict)


def _plain(finding: Finding) -> dict[str, Any]:
    kept = asdict(finding)
    return {**kept, "remedies": list(kept["remedies"])}


def _finding(kept: Mapping[str, Any]) -> Finding:
    return Finding(**{**kept, "remedies": tuple(Remedy(**remedy) for remedy in kept["remedies"])})
