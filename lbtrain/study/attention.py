"""What a reader should look at before trusting the comparison: lost, failed and loosely measured runs."""

import math
from collections import Counter

import pandas as pd

from lbtrain.study.axes import CHANCE_FRACTION
from lbtrain.study.compare import run_label
from lbtrain.study.conditions import cells, label
from lbtrain.study.estimates import digits
from lbtrain.study.phrases import NEARLY_ONE, count, joined
from lbtrain.study.settings import rows

_MOST_NAMED = 6  # settings in a sentence; a longer one is not read


def stability(table: pd.DataFrame) -> str:
    """Say which setting ended nearest to the edge of stability.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        One sentence, or an empty text when stability was not measured.
    """
    everything = cells(table)
    found = [(e.mean, c) for c, cell in everything.items() if (e := cell.estimate("hessian/stability")) is not None]
    if not found:
        return ""
    value, nearest = max(found, key=lambda pair: pair[0])
    beyond = sum(mean > 1 for mean, _ in found)
    if len(found) == 1:
        where = "beyond" if beyond else "within"
        return f"The one setting ends {where} the edge of stability: {digits(value)}, where 1 is the edge."
    return (
        f"{beyond or 'None'} of {count(len(found), 'setting')} {'ends' if beyond <= 1 else 'end'} beyond the edge of "
        f"stability (1); the highest value is {digits(value)}, with {label(nearest, everything)}."
    )


def diverged(table: pd.DataFrame) -> str:
    """List the diverged runs and the rule that found them.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        Sentences, or an empty text when none has.
    """
    lost = [row for row in rows(table) if row["outcome"] == "diverged"]
    if not lost:
        return ""
    classes = max((row["classes"] for row in lost if row["classes"]), default=None)
    rule = "a training or test loss that is not finite"
    if classes:
        chance = math.log(classes)
        rule += (
            f", or a training loss of at least {digits(CHANCE_FRACTION * chance)} "
            f"({CHANCE_FRACTION:.0%} of ln {classes:g} = {digits(chance)}, the loss of guessing)"
        )
    runs = Counter(run_label(table, row, seed=False) for row in lost)
    each = [name + (f" ({number} runs)" if number > 1 else "") for name, number in sorted(runs.items())]
    more = f"; and {count(len(each) - _MOST_NAMED, 'more setting')}, all of them listed" * (len(each) > _MOST_NAMED)
    names = "; ".join(each[:_MOST_NAMED]) + more
    share = f"{len(lost)} of {count(len(table), 'run')}"
    return f"{share} diverged, and no comparison uses {'it' if len(lost) == 1 else 'them'}: {names}. The rule: {rule}."


def not_finished(table: pd.DataFrame) -> str:
    """Count the runs without a result.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        One sentence, or an empty text when all finished.
    """
    statuses = [row["status"] for row in rows(table)]
    parts = [f"{statuses.count(s)} {s}" for s in ("failed", "unfinished", "unreadable") if s in statuses]
    return f"Of {count(len(table), 'run')}, {joined(parts)}; the reasons are listed." if parts else ""


def uncertain(table: pd.DataFrame) -> str:
    """Count the runs whose largest eigenvalue is only loosely known.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        One sentence, or an empty text when all are within 5 %.
    """
    loose = 0
    for row in rows(table):
        value, residual = row.get("hessian/lambda_max"), row.get("hessian/lambda_max_residual")
        loose += bool(row["outcome"] == "ok" and value and residual and residual > (NEARLY_ONE - 1) * abs(value))
    if not loose:
        return ""
    return f"In {count(loose, 'run')}, lambda_max is known no better than to 5 %: raise callbacks.hessian.max_matvecs."


def outcome_counts(table: pd.DataFrame) -> str:
    """Count the runs by outcome.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        Such as "30 finished (1 of them diverged), 1 failed and 1 unfinished".
    """
    statuses = [row["status"] for row in rows(table)]
    lost = sum(row["outcome"] == "diverged" for row in rows(table))
    parts = [f"{statuses.count(s)} {s}" for s in ("finished", "failed", "unfinished", "unreadable") if s in statuses]
    if lost:
        parts[0] += f" ({lost} of them diverged)"
    return joined(parts)
