"""What the runs say, in sentences with their numbers; a question that they cannot answer is left out."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from lbtrain.study.attention import diverged, not_finished, stability, uncertain
from lbtrain.study.axes import words
from lbtrain.study.compare import change, sam_pairs
from lbtrain.study.conditions import Cell, cells, label
from lbtrain.study.estimates import difference, digits, interval, mean_over_seeds, plain
from lbtrain.study.families import Family, families, objective, ranked
from lbtrain.study.methods import Variant
from lbtrain.study.phrases import after_mark, also, batch_words, count, factors, joined, level, moves

LAST_TOPIC = "Runs to look at"
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
    climbing = sorted({v for family in groups for v in family.variants if v.rho}, key=Variant.order)
    methods = list(dict.fromkeys(variant.method for variant in climbing))
    one = len(methods) == 1
    who = methods[0] if one else "SAM and its relatives"
    topics = {
        "Best setting": [_best(table)],
        "Larger batches at the fixed rate": [text for family in groups for text in _fixed_rate(table, family)],
        "What scaling the rate does": [text for family in groups for text in _scaled_rates(table, family)],
        f"What {who} {'does' if one else 'do'}": [text for family in groups for text in _sam(table, family)],
        f"What {who} {'costs' if one else 'cost'}": [_sam_cost(groups, method) for method in methods],
        "Edge of stability": [stability(table)],
        LAST_TOPIC: [diverged(table), not_finished(table), uncertain(table)],
    }
    return [Finding(topic, text) for topic, texts in topics.items() for text in texts if text]


def _best(table: pd.DataFrame) -> str:
    order, metric = ranked(table), objective(table)
    best = order[0].estimate(metric) if order and metric else None
    if metric is None or best is None:
        return ""
    ties = sum(1 for cell in order[1:] if (e := cell.estimate(metric)) is not None and e.mean == best.mean)
    spread = f" ({interval(best)})" if best.std else f" (in all {best.n} seeds)" if best.n > 1 else ""
    text = f"The best {words(metric)} is {digits(best.mean)}{spread}, with {label(order[0].condition, cells(table))}"
    return text + (f"; {ties} more {'settings reach' if ties > 1 else 'setting reaches'} it." if ties else ".")


def _fixed_rate(table: pd.DataFrame, family: Family) -> Iterator[str]:
    # From the smallest to the largest batch, when the rate stays.
    line = family.line("fixed", family.variants[0])
    for metric in SHARPNESS:
        ends = _ends(line, metric)
        if ends:
            yield _along(table, family, "fixed", metric, ends) + "."
    both = [(metric, ends) for metric in ("train/loss", "test/acc") if (ends := _ends(line, metric))]
    if both:
        parts = [
            f"{words(metric)} goes from {level(a, metric)} to {level(b, metric)}" for metric, ((_, a), (_, b)) in both
        ]
        small, large = both[0][1][0][0], both[0][1][1][0]
        yield f"From batch {plain(small)} to {plain(large)} with {_base(family)}, {joined(parts)}."


def _scaled_rates(table: pd.DataFrame, family: Family) -> Iterator[str]:
    # The same with the scaled rate, and the two rates side by side at the largest batch that both survived.
    metric = _measure(table)
    for rate in family.rates:
        line = family.line(rate, family.variants[0])
        ends = _ends(line, metric) if metric and rate != "fixed" else None
        if metric is None or ends is None:
            continue
        lost = [
            f"batch {plain(batch)} ({cell.num_diverged} of {count(len(cell.runs), 'run')})"
            for batch, cell in line
            if cell.num_diverged
        ]
        tail = f" Diverged at {joined(lost)}." if lost else ""
        yield _along(table, family, rate, metric, ends) + "." + tail
        fixed = dict(family.line("fixed", family.variants[0])).get(ends[1][0])
        if fixed is not None:
            yield from _side_by_side(table, family, rate, ends[1][0], fixed, ends[1][1], metric)


def _side_by_side(
    table: pd.DataFrame, family: Family, rate: str, batch: float, fixed: Cell, scaled: Cell, metric: str
) -> Iterator[str]:
    moved = change(fixed, scaled, metric)
    if moved is None:
        return
    text = (
        f"At batch {plain(batch)} with {_base(family)}, the {rate} rate takes {words(metric)} from "
        f"{digits(moved.before)} at the fixed rate to {digits(moved.after)}: "
        f"{digits(moved.ratio.mean)}x{after_mark(interval(moved.ratio))}"
    )
    accuracy = difference(fixed.values("test/acc"), scaled.values("test/acc"))
    if accuracy is not None:
        text += f", and test accuracy from {level(fixed, 'test/acc')} to {level(scaled, 'test/acc')}"
        text += f" ({digits(accuracy.mean, signed=True)}{after_mark(interval(accuracy))})"
    yield text + also(table, fixed, scaled, "rate") + "."


def _sam(table: pd.DataFrame, family: Family) -> Iterator[str]:
    # What each method multiplies the sharpness by at each batch, and adds to the accuracy.
    metric = _measure(table)
    for rate in family.rates:
        for variant in family.variants:
            pairs = list(sam_pairs(family, rate, variant))
            moved = [(b, c) for b, plain, sam in pairs if metric and (c := change(plain, sam, metric)) is not None]
            if not metric or not moved:
                continue
            more = next((text for _, a, b in pairs if (text := also(table, a, b, "rho"))), "")
            yield (
                f"With {family.name} at the {rate} rate, {variant.subject} multiplies {words(metric)} by "
                f"{factors(moved)}{_accuracy_gain(pairs)}{more}."
            )


def _accuracy_gain(pairs: list[tuple[float | None, Cell, Cell]]) -> str:
    gains = [(b, e.mean) for b, x, y in pairs if (e := difference(x.values("test/acc"), y.values("test/acc")))]
    parts = [f"{digits(gain, signed=True)}{batch_words(batch)}" for batch, gain in gains]
    return f", and changes test accuracy by {joined(parts)}" if parts else ""


def _sam_cost(groups: list[Family], method: str) -> str:
    for metric in ("time/step_ms", "time/fit_s"):
        logs = [
            math.log(moved.ratio.mean)
            for family in groups
            for rate in family.rates
            for variant in family.variants
            if variant.method == method
            for _, plain, sam in sam_pairs(family, rate, variant, cost=True)
            if (moved := change(plain, sam, metric)) is not None
        ]
        if logs:
            low, high = (digits(math.exp(extreme(logs))) for extreme in (min, max))
            span = f", from {low}x to {high}x" if low != high else ""
            mean = digits(math.exp(mean_over_seeds(logs).mean))
            return f"{method} costs {mean}x the {words(metric)}{span} (over {count(len(logs), 'pair')} of settings)."
    return ""


def _base(family: Family) -> str:
    # Runs that train plainly where there are any.
    base = family.variants[0]
    return family.name + (f" and {base.subject}" if base.rho else "")


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
    where = f"from batch {plain(small)} to {plain(large)} with {_base(family)}"
    if moved is None:
        return f"{start} goes from {level(first, metric)} to {level(last, metric)} {where}"
    verb, shrinks = moves(moved.ratio.mean)
    levels = (
        f"({digits(moved.before)} to {digits(moved.after)}{after_mark(interval(moved.ratio, inverse=shrinks), '; ')})"
    )
    return f"{start} {verb} {where} {levels}{also(table, first, last, 'batch')}"
