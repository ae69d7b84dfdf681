"""What the runs say, in sentences with their numbers; a question that they cannot answer is left out."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from lbtrain.study.attention import diverged, not_finished, stability, uncertain
from lbtrain.study.axes import words
from lbtrain.study.compare import change, sam_pairs
from lbtrain.study.conditions import Cell, cells, label
from lbtrain.study.estimates import difference, digits, interval, mean_over_seeds
from lbtrain.study.families import Family, families, objective, ranked
from lbtrain.study.phrases import after_mark, also, factor, joined, level, moves

SHARPNESS = ("hessian/lambda_max", "sharpness/keskar", "sharpness/sam")


@dataclass(frozen=True)
class Finding:
    """One sentence and the question that it answers.

    Args:
        topic: The question, as a heading.
        text: The sentence.
    """

    topic: str
    text: str


def findings(table: pd.DataFrame) -> list[str]:
    """State what the runs show.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        Sentences; the same whatever the order of the rows.
    """
    return [finding.text for finding in by_topic(table)]


def by_topic(table: pd.DataFrame) -> list[Finding]:
    """State what the runs show, each sentence under its question.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        Findings, those of one topic side by side.
    """
    groups = families(table)
    topics = {
        "Best setting": [_best(table)],
        "Larger batches at the fixed rate": [text for family in groups for text in _fixed_rate(table, family)],
        "What scaling the rate does": [text for family in groups for text in _scaled_rates(table, family)],
        "What SAM does": [text for family in groups for text in _sam(table, family)],
        "What SAM costs": [_sam_cost(groups)],
        "Edge of stability": [stability(table)],
        "Runs to look at": [diverged(table), not_finished(table), uncertain(table)],
    }
    return [Finding(topic, text) for topic, texts in topics.items() for text in texts if text]


def _best(table: pd.DataFrame) -> str:
    order, metric = ranked(table), objective(table)
    best = order[0].estimate(metric) if order and metric else None
    if metric is None or best is None:
        return ""
    ties = sum(1 for cell in order[1:] if (e := cell.estimate(metric)) is not None and e.mean == best.mean)
    spread = f" (standard deviation {digits(best.std)} over {best.n} seeds)" if best.std is not None else ""
    text = f"The best {words(metric)} is {digits(best.mean)}{spread}, with {label(order[0].condition, cells(table))}"
    return text + (f"; {ties} more {'settings reach' if ties > 1 else 'setting reaches'} it." if ties else ".")


def _fixed_rate(table: pd.DataFrame, family: Family) -> Iterator[str]:
    # From the smallest to the largest batch, when the rate stays.
    line = family.line("fixed", family.rhos[0])
    for metric in SHARPNESS:
        ends = _ends(line, metric)
        if ends:
            yield _along(table, family, "fixed", metric, ends) + "."
    for metric in ("train/loss", "test/acc"):
        ends = _ends(line, metric)
        if ends:
            yield (
                f"With {family.name} at the fixed rate, {words(metric)} goes from {level(ends[0][1], metric)} at batch "
                f"{digits(ends[0][0])} to {level(ends[1][1], metric)} at batch {digits(ends[1][0])}."
            )


def _scaled_rates(table: pd.DataFrame, family: Family) -> Iterator[str]:
    # The same with the scaled rate, and the two rates side by side at the largest batch that both survived.
    metric = _measure(table)
    for rate in family.rates:
        line = family.line(rate, family.rhos[0])
        ends = _ends(line, metric) if metric and rate != "fixed" else None
        if metric is None or ends is None:
            continue
        lost = [batch for batch, cell in line if cell.num_diverged]
        tail = f" Diverged at batch {' and '.join(map(digits, lost))}." if lost else ""
        yield _along(table, family, rate, metric, ends) + "." + tail
        fixed = dict(family.line("fixed", family.rhos[0])).get(ends[1][0])
        if fixed is not None:
            yield from _side_by_side(table, family, rate, ends[1][0], fixed, ends[1][1], metric)


def _side_by_side(
    table: pd.DataFrame, family: Family, rate: str, batch: float, fixed: Cell, scaled: Cell, metric: str
) -> Iterator[str]:
    moved = change(fixed, scaled, metric)
    if moved is None:
        return
    text = (
        f"At batch {digits(batch)} with {family.name}, the {rate} rate takes {words(metric)} from "
        f"{digits(moved.before)} at the fixed rate to {digits(moved.after)}: {factor(moved)}"
    )
    accuracy = difference(fixed.values("test/acc"), scaled.values("test/acc"))
    if accuracy is not None:
        text += f", and test accuracy from {level(fixed, 'test/acc')} to {level(scaled, 'test/acc')}"
        text += f" ({digits(accuracy.mean, signed=True)}{after_mark(interval(accuracy))})"
    yield text + also(table, fixed, scaled, "rate") + "."


def _sam(table: pd.DataFrame, family: Family) -> Iterator[str]:
    # What SAM multiplies the sharpness by at each batch, and adds to the accuracy.
    metric = _measure(table)
    for rate in family.rates:
        for rho in family.rhos:
            pairs = list(sam_pairs(family, rate, rho))
            moved = [(b, c) for b, plain, sam in pairs if metric and (c := change(plain, sam, metric)) is not None]
            where = f"With {family.name} at the {rate} rate, SAM (rho {rho:g})"
            if metric and moved:
                parts = [f"{factor(c, unit='')}{'' if b is None else f' at batch {digits(b)}'}" for b, c in moved]
                more = next((text for _, a, b in pairs if (text := also(table, a, b, "rho"))), "")
                yield f"{where} multiplies {words(metric)} by {joined(parts)}{more}."
            gains = [
                e for _, a, b in pairs if (e := difference(a.values("test/acc"), b.values("test/acc"))) is not None
            ]
            if gains:
                low, high = min(e.mean for e in gains), max(e.mean for e in gains)
                mean = mean_over_seeds([e.mean for e in gains]).mean
                span = f", from {digits(low, True)} to {digits(high, True)} over {len(gains)} batch sizes"
                yield f"{where} changes test accuracy by {digits(mean, True)}{span if len(gains) > 1 else ''}."


def _sam_cost(groups: list[Family]) -> str:
    for metric in ("time/step_ms", "time/fit_s"):
        logs = [
            math.log(moved.ratio.mean)
            for family in groups
            for rate in family.rates
            for rho in family.rhos
            for _, plain, sam in sam_pairs(family, rate, rho)
            if (moved := change(plain, sam, metric)) is not None
        ]
        if logs:
            span = f", from {digits(math.exp(min(logs)))}x to {digits(math.exp(max(logs)))}x over {len(logs)} pairs"
            mean = digits(math.exp(mean_over_seeds(logs).mean))
            return f"SAM costs {mean}x the {words(metric)}{span if len(logs) > 1 else ''}."
    return ""


def _measure(table: pd.DataFrame) -> str | None:
    # The curvature itself before the measures that follow from it.
    return next((metric for metric in SHARPNESS if metric in table and table[metric].notna().any()), None)


def _ends(line: list[tuple[float, Cell]], metric: str) -> tuple[tuple[float, Cell], tuple[float, Cell]] | None:
    measured = [(batch, cell) for batch, cell in line if cell.estimate(metric) is not None]
    return (measured[0], measured[-1]) if len(measured) > 1 else None


def _along(
    table: pd.DataFrame, family: Family, rate: str, metric: str, ends: tuple[tuple[float, Cell], tuple[float, Cell]]
) -> str:
    (small, first), (large, last) = ends
    moved = change(first, last, metric)
    start = f"At the {rate} rate, {words(metric)}"
    where = f"from batch {digits(small)} to {digits(large)} with {family.name}"
    if moved is None:
        return f"{start} goes from {level(first, metric)} to {level(last, metric)} {where}"
    verb, shrinks = moves(moved.ratio.mean)
    levels = (
        f"({digits(moved.before)} to {digits(moved.after)}{after_mark(interval(moved.ratio, inverse=shrinks), '; ')})"
    )
    return f"{start} {verb} {where} {levels}{also(table, first, last, 'batch')}"
