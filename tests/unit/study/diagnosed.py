"""Diagnoses as `OptimizationDiagnostics` leaves them, and logs of the loss on a fixed subset."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def finding(problem: str, evidence: str = "", since: int | None = None, words: str = "", *overrides: str) -> dict:
    """One entry of `findings`; without words for a remedy, it has none."""
    remedies = [{"words": words, "changes": {}, "overrides": list(overrides)}] if words else []
    shown = {"problem": problem, "evidence": evidence or f"{problem} are seen", "numbers": {"share": "nan"}}
    return {**shown, "since": since, "severity": 2.0, "remedies": remedies, "figure": None}


def write_diagnosis(run: Path, *findings: dict, **fields: Any) -> None:
    """The `diagnosis.json` of a run."""
    data = {"format": 1, "status": "finished", "error": None, "findings": list(findings), "checked": ["gradients"]}
    data |= {"left_out": {}, "steps": 100, "samples": 20, "seconds": 0.5} | fields
    (run / "diagnosis.json").write_text(json.dumps(data))


def write_losses(run: Path, values: Sequence[float], metric: str = "subset/loss") -> None:
    """The log of a run: a loss at every 10th step."""
    lines = [f"epoch,step,{metric}", *(f"{step // 4},{10 * step},{value!r}" for step, value in enumerate(values))]
    (run / "metrics.csv").write_text("\n".join(lines) + "\n")
