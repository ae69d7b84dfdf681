"""What the figures beyond the batch axis and the runs' diagnoses say, in sentences with their numbers."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import pandas as pd

from lbtrain.study.axes import words
from lbtrain.study.between import Between, between
from lbtrain.study.critical import critical_words
from lbtrain.study.curves import COINCIDE, Likeness, alike, curve_panels, likenesses
from lbtrain.study.diagnosis_sheets import TITLE
from lbtrain.study.diagnosis_words import diagnosis_sentences
from lbtrain.study.estimates import digits, interval, plain
from lbtrain.study.exponents import LAWS, Exponent
from lbtrain.study.findings import Finding
from lbtrain.study.grid import Grid, grids
from lbtrain.study.local_optima import optima_sentences
from lbtrain.study.phrases import after_mark, batch_words, count, joined
from lbtrain.study.targets import ToTarget, noise_words, target_words, to_target

_RATE = "How the best rate follows the batch"
_TARGET = "Steps to the target"
_CURVES = "Which curves coincide"
_LINE = "Between two solutions"
_OPTIMA = "Local optima"
_MAX_PAIRS = 6  # comparisons of curves in one sentence; more are not read


def more_findings(table: pd.DataFrame, folders: Sequence[Path] = ()) -> list[Finding]:
    """State what the sweep says about rates, targets, curves, the line between solutions, and what is wrong with runs.

    Args:
        table: As `load_sweep` gives it.
        folders: Folders of the sweeps, for what stands beside their runs.

    Returns:
        Findings, those of one topic side by side; none for what did not run.
    """
    lines, broken = between(folders)
    topics = {
        _RATE: [exponent_sentence(grid) for grid in grids(table)],
        _TARGET: [target_sentence(line, target_words(table)) for line in to_target(table, "target/steps")],
        _CURVES: list(curve_sentences(likenesses(curve_panels(table)))),
        _LINE: [*(line_sentence(line) for line in lines), *broken],
        TITLE: diagnosis_sentences(table),
        _OPTIMA: optima_sentences(table),
    }
    return [Finding(topic, text) for topic, texts in topics.items() for text in texts]


def exponent_sentence(grid: Grid) -> str:
    """Say how the best rate of one optimizer grows.

    Args:
        grid: Its runs.

    Returns:
        The exponent with its interval and the rules in it; or why there is none.
    """
    found = grid.exponent
    if found is None:
        return (
            f"With {grid.name}, fewer than two batch sizes have their best rate (by {words(grid.metric)}) inside the "
            "swept rates: no exponent. Sweep lower and higher rates."
        )
    text = f"With {grid.name}, the best rate (by {words(grid.metric)}) grows as batch^{found.p.mean:.2f}"
    if found.p.low is None or found.p.high is None:
        text += "; two or three batch sizes of one seed give no interval"
    else:
        text += f" (95 % interval {found.p.low:.2f} to {found.p.high:.2f}, {count(len(found.used), 'batch size')}"
        text += f", {count(found.p.n, 'seed')}): {_laws(found)}"
    return text + _edges(found) + "."


def target_sentence(line: ToTarget, target: str) -> str:
    """Say what larger batches save on the way to the target.

    Args:
        line: One optimizer and method.
        target: Words for the target, empty for several.

    Returns:
        Steps at both ends, the regimes by the fitted curve, and the noise scale.
    """
    first, last = line.points[0], line.points[-1]
    goal = f"the target of {target}" if target else "the target"
    text = (
        f"With {line.name}, {goal} takes {digits(first.value.mean)} steps at batch {plain(first.batch)} (rate "
        f"{first.rate:.3g}) and {digits(last.value.mean)} at batch {plain(last.batch)} (rate {last.rate:.3g})"
    )
    if line.fit:
        left, right = line.fit.borders
        text += (
            f". The critical batch size is {critical_words(line.fit)}: nearly perfect scaling below "
            f"{digits(left, significant=2)}, diminishing returns to {digits(right, significant=2)}, no gain beyond"
        )
    if line.noise:
        text += f"; the gradient noise scale is {noise_words(line.noise)}"
    edges = [plain(point.batch) for point in line.points if point.at_edge]
    if edges:
        text += f". At batch {joined(edges)} the best rate is at the edge of those swept: a better one may lie beyond"
    if line.missed:
        text += f". No rate reaches it with every seed at batch {joined(list(map(plain, line.missed)))}"
    return text + "."


def curve_sentences(pairs: Sequence[Likeness]) -> Iterator[str]:
    """Say which curves coincide and which do not; nothing where none coincide, as in any sweep over a rate.

    Args:
        pairs: As `likenesses` gives them.

    Yields:
        A sentence for each batch size.
    """
    if not any(pair.difference <= COINCIDE for pair in pairs):
        return
    for batch in dict.fromkeys(pair.batch for pair in pairs):
        own = [pair for pair in pairs if pair.batch == batch]
        groups, parts = alike(own), []
        for group in groups:
            inner = [pair for pair in own if set(pair.labels) <= set(group)]
            if inner:
                parts.append(f"{_quoted(group)} coincide ({_size(max(inner, key=_difference))})")
        for one, other in combinations(groups, 2):
            across = [pair for pair in own if set(pair.labels) & set(one) and set(pair.labels) & set(other)]
            if across:
                nearest = min(across, key=_difference)
                parts.append(f"{_quoted(one[:1])} differs from {_quoted(other[:1])} ({_size(nearest)})")
        more = [f"{len(parts) - _MAX_PAIRS} more comparisons are left out"] if len(parts) > _MAX_PAIRS else []
        yield f"Validation curves{batch_words(batch)}: {'; '.join([*parts[:_MAX_PAIRS], *more])}."


def line_sentence(line: Between) -> str:
    """Say how sharp the two ends of a line are.

    Args:
        line: The pairs of one network.

    Returns:
        Loss at both ends, and the ratio of the curvatures along the line.
    """
    ends = [value.mean for end in (0.0, 1.0) if (value := line.at("train_loss", end)) is not None]
    start = f"With {line.network}, on the line from {line.ends[0]} to {line.ends[1]}"
    if len(ends) < 2:
        return f"{start}, the train loss is not finite at both ends with every seed."
    text = f"{start} (train loss {digits(ends[0])} and {digits(ends[1])})"
    if line.curvature is None:
        return f"{text}, one of the ends is no minimum along the line: its second difference is not positive."
    moved = line.curvature
    bar = after_mark(interval(moved.ratio))
    return (
        f"{text}, the train loss bends {digits(moved.ratio.mean)} times as much at {line.ends[1]} as at "
        f"{line.ends[0]} ({digits(moved.before)} to {digits(moved.after)} per squared length of the line{bar})."
    )


def _laws(found: Exponent) -> str:
    inside = [f"{name} ({LAWS[name]:g})" for name, lies in found.laws.items() if lies]
    outside = [f"{name} ({LAWS[name]:g})" for name, lies in found.laws.items() if not lies]
    parts = [f"agrees with {joined(inside)}"] if inside else []
    return ", ".join([*parts, *([f"not with {joined(outside).replace(' and ', ' or ')}"] if outside else [])])


def _edges(found: Exponent) -> str:
    parts = [f"batch {plain(best.batch)} (the {best.edge})" for best in found.left_out]
    return f". Left out, for the best rate is at the edge of those swept: {joined(parts)}" if parts else ""


def _difference(pair: Likeness) -> float:
    return pair.difference


def _quoted(labels: Sequence[str]) -> str:
    return joined([f'"{label}"' for label in labels])


def _size(pair: Likeness) -> str:
    if pair.difference == 0:
        return "the same numbers"
    text = f"up to {digits(pair.difference)} of the value apart"
    spread = "" if pair.spreads is None else f", {digits(pair.spreads, significant=2)} times the spread over seeds"
    return text + spread
