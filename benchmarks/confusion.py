"""How well the diagnosis does: the gallery of sick and healthy runs, over several seeds, as a table in markdown.

    python benchmarks/confusion.py
    python benchmarks/confusion.py --seeds 0 --runs dead_relu healthy_sgd --no-cures

The first table has a row for each run of the gallery: the problem that it was built to have, for how many seeds that
was found first, and what was found instead. For the runs that a change of the config cures, the last columns have how
many of them the first remedy cured (training loss at the end at least halved), and the smallest factor by which the
loss fell; 0 if a run diverged. The second table is the confusion matrix, with the runs of a problem and their seeds
summed: rows are what they were built to have, columns, with the same numbers, what was found first. Below them: what
each finding out of place said.
"""

import argparse
import contextlib
import io
import logging
import math
import multiprocessing
import os
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Row:
    """One run of one seed: what was found first and what it said, and by which factor the remedy lowered the loss."""

    name: str
    seed: int
    first: str
    said: str
    factor: float | None = None
    overrides: tuple[str, ...] = ()


def prepare() -> None:
    """Make a process of the pool train quietly on one thread."""
    sys.path.insert(0, str(ROOT))
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # of Lightning, on devices and on the end of each run
    os.environ.setdefault("WANDB_MODE", "offline")
    import torch

    torch.set_num_threads(1)


def measure(job: tuple[str, int, bool]) -> Row:
    """Train one run, and once more with the first remedy where a config cures it."""
    from tests.sick_runs import GALLERY, run

    name, seed, cures = job
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        sick = run(name, Path(folder) / "sick", seed=seed)
        evidence = "; ".join(f"{f['problem']}: {f['evidence']}" for f in sick.diagnosis["findings"])
        if not (cures and GALLERY[name].curable):
            return Row(name, seed, sick.first, evidence)
        if not sick.cure:
            return Row(name, seed, sick.first, evidence, 0.0)
        cured = run(name, Path(folder) / "cured", *sick.cure, seed=seed)
    return Row(name, seed, sick.first, evidence, ratio(sick.loss, cured.loss), tuple(sick.cure))


def ratio(sick: float, cured: float) -> float:
    """Return by which factor the loss fell; 0 if the cured run diverged."""
    if math.isinf(cured):
        return 0.0
    return sick / cured if cured > 0 else math.inf


def table(rows: Sequence[Row], expected: dict[str, str]) -> str:
    """Return what was found of each run, in markdown.

    Args:
        rows: One for each run and seed.
        expected: The problem of each run by its name.
    """
    lines = ["| run | built to have | right | found instead | cured | least factor |", "|---|---|---|---|---|---|"]
    for name in dict.fromkeys(row.name for row in rows):
        mine = [row for row in rows if row.name == name]
        other = Counter(row.first for row in mine if row.first != expected[name])
        instead = ", ".join(f"{word} {n}x" for word, n in other.items())
        factors = [row.factor for row in mine if row.factor is not None]
        cured = f"{sum(f >= 2 for f in factors)} of {len(factors)}" if factors else ""
        right = f"{len(mine) - other.total()} of {len(mine)}"
        lines.append(f"| `{name}` | {expected[name]} | {right} | {instead} | {cured} | {least(factors)} |")
    return "\n".join(lines)


def least(factors: Sequence[float]) -> str:
    """Return the smallest factor in words that a table has room for."""
    if not factors:
        return ""
    return "over 1000" if min(factors) > 1000 else f"{min(factors):.2g}"


def matrix(rows: Sequence[Row], expected: dict[str, str], order: Sequence[str]) -> str:
    """Return the confusion matrix in markdown: what runs were built to have against what was found first.

    Args:
        rows: One for each run and seed.
        expected: The problem of each run by its name.
        order: Of the words.
    """
    counts = Counter((expected[row.name], row.first) for row in rows)
    words = sorted({word for pair in counts for word in pair}, key=list(order).index)
    lines = ["| built to have, found first | " + " | ".join(str(i) for i, _ in enumerate(words, 1)) + " |"]
    lines.append("|---" * (len(words) + 1) + "|")
    for i, built in enumerate(words, 1):
        cells = [
            f"**{n}**" if found == built and n else str(n or "") for found in words for n in [counts[built, found]]
        ]
        lines.append(f"| {i} {built} | {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(rows: Sequence[Row], expected: dict[str, str]) -> str:
    """Return one sentence: how many diagnoses were right, and how many remedies cured."""
    right = sum(row.first == expected[row.name] for row in rows)
    factors = [row.factor for row in rows if row.factor is not None]
    cures = f"; the first remedy cured {sum(f >= 2 for f in factors)} of {len(factors)}" if factors else ""
    return f"{right} of {len(rows)} runs were told right{cures}."


def mistakes(rows: Sequence[Row], expected: dict[str, str]) -> list[str]:
    """Return a line on each run that was told wrong or not cured."""
    lines = [f"- {r.name}, seed {r.seed}: {r.first}. {r.said}" for r in rows if r.first != expected[r.name]]
    uncured = [r for r in rows if r.factor is not None and r.factor < 2]
    return lines + [f"- {r.name}, seed {r.seed}: not cured by {list(r.overrides)} ({r.factor:.3g}x)" for r in uncured]


def parsed(runs: Sequence[str]) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--runs", nargs="+", choices=runs, default=list(runs), metavar="RUN", help="default: all")
    parser.add_argument("--cures", action=argparse.BooleanOptionalAction, default=True, help="try the remedies, too")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, each on one thread")
    return parser.parse_args()


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from lbtrain.functional.diagnosis import PROBLEMS
    from tests.sick_runs import GALLERY, HEALTHY

    options = parsed(list(GALLERY))
    expected = {name: told.problem for name, told in GALLERY.items()}
    jobs = [(name, seed, options.cures) for name in options.runs for seed in options.seeds]
    with multiprocessing.get_context("spawn").Pool(options.processes, prepare) as pool:
        rows = pool.map(measure, jobs, chunksize=1)
    wrong = mistakes(rows, expected)
    tables = [table(rows, expected), matrix(rows, expected, [*PROBLEMS, HEALTHY])]
    print("\n\n".join([*tables, summary(rows, expected), *(["\n".join(wrong)] if wrong else [])]))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
