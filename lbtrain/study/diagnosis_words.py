"""What the doctor found, in sentences: how many runs are healthy, and the problems that most others have first."""

from collections import Counter
from collections.abc import Sequence

import pandas as pd

from lbtrain.study.conditions import Condition
from lbtrain.study.diagnoses import Diagnosed, diagnoses, in_order
from lbtrain.study.phrases import after_mark, batch_words, count, joined

_MAX_TOLD = 3  # problems that have a sentence of their own; the table has all
_MAX_NAMED = 5  # problems, files and common settings in one sentence; more are not read


def diagnosis_sentences(table: pd.DataFrame) -> list[str]:
    """Say how many runs are healthy, what is wrong with most of the others, and which files are no diagnosis.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        Sentences; none where no run has a `diagnosis.json`.
    """
    found = diagnoses(table)
    texts = []
    if found.runs:
        texts.append(_overall(found.runs))
        texts += [_top(table, name) for name in list(_firsts(found.runs))[:_MAX_TOLD]]
    shown = [f"{run} ({reason})" for run, reason in found.broken[:_MAX_NAMED]]
    more = [f"{len(found.broken) - _MAX_NAMED} more"] if len(found.broken) > _MAX_NAMED else []
    if shown:
        texts.append(f"The diagnosis.json of {count(len(found.broken), 'run')} is left out: {'; '.join(shown + more)}.")
    return texts


def _firsts(runs: Sequence[Diagnosed]) -> dict[str, int]:
    """Return how many runs have each problem first, the most frequent before the others, causes before consequences."""
    firsts = Counter(run.problems[0].name for run in runs if run.problems)
    places = {name: place for place, name in enumerate(in_order(set(firsts)))}
    return {name: firsts[name] for name in sorted(firsts, key=lambda name: (-firsts[name], places[name]))}


def _overall(runs: Sequence[Diagnosed]) -> str:
    healthy, firsts = sum(not run.problems for run in runs), _firsts(runs)
    if not firsts:
        return f"No problem was found in {count(len(runs), 'diagnosed run')}."
    parts = [f"{name} ({count(number, 'run')})" for name, number in firsts.items()]
    more = [f"{len(parts) - _MAX_NAMED} others"] if len(parts) > _MAX_NAMED else []
    named = joined([*parts[:_MAX_NAMED], *more])
    if not healthy:
        return f"Each of {count(len(runs), 'diagnosed run')} has a problem; the first problem of each: {named}."
    has, others = "has" if healthy == 1 else "have", len(runs) - healthy
    rest = "one" if others == 1 else str(others)
    good = f"{healthy} of {count(len(runs), 'diagnosed run')} {has} no problem"
    return f"{good}; first problem of the other {rest}: {named}."


def _top(table: pd.DataFrame, name: str) -> str:
    """Return how many runs have a problem, what they share, and the remedy that most of them are given."""
    runs = diagnoses(table).runs
    mine = [run for run in runs if run.problem(name)]
    where = _shared([run.condition for run in mine], [run.condition for run in runs])
    helps = Counter(text for run in mine if (problem := run.problem(name)) and (text := problem.helps))
    text = f"{len(mine)} of {count(len(runs), 'run')} {'has' if len(mine) == 1 else 'have'} {name}{after_mark(where)}"
    if not helps:
        return f"{text}."
    best, number = helps.most_common(1)[0]
    return f"{text}; first remedy: {best}" + (f" (in {number} of them)." if number < len(mine) else ".")


def _shared(mine: Sequence[Condition], everyone: Sequence[Condition]) -> str:
    """Return in words what the settings with a problem have in common and the others have not."""
    own, rest = ([_axes(key) for key in keys] for keys in (mine, everyone))
    texts = [
        own[0][axis]
        for axis in own[0]
        if len({named[axis] for named in own}) == 1 < len({named[axis] for named in rest}) and own[0][axis]
    ]
    return " ".join([*(["all"] if len(mine) > 1 else []), *texts[:_MAX_NAMED]]) if texts else ""


def _axes(key: Condition) -> dict[str, str]:
    return {
        "optimizer": f"with {key.optimizer}",
        "rate": f"at the {key.rate} rate",
        "batch": batch_words(key.batch).strip(),
        "sam": f"with {key.sam.words}" if key.sam.method else key.sam.words,
        **{f"other {name}": f"with {name} {value}" for name, value in key.others},
    }
