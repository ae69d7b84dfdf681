"""Paired differences: each setting against its baseline, seed by seed."""

from dataclasses import dataclass

import pandas as pd

from lbtrain.study.axes import words
from lbtrain.study.baseline import Baselines, baselines
from lbtrain.study.conditions import Cell, Condition, cells, label
from lbtrain.study.estimates import Estimate, difference, digits
from lbtrain.study.families import objective
from lbtrain.study.phrases import count
from lbtrain.study.sheets import Entry, Sheet, estimated, number

TITLE = "Differences from the baseline"
LEVEL = 0.05  # an interval of 95 % excludes the true value in this share of all cases
MAX_TOLD = 2  # settings of one metric in its sentence
_COMPARED = ("test/acc", "test/loss", "gap/loss", "gap/acc", "time/step_ms")
_SHARPNESS = ("hessian/lambda_max", "ggn/lambda_max", "sharpness/keskar", "sharpness/sam", "sharpness/average")


@dataclass(frozen=True)
class Paired:
    """A metric of one setting minus that of its baseline, over the seeds that both have.

    Args:
        setting: The setting.
        baseline: What it is compared with.
        metric: Key.
        difference: Mean difference with its 95 % interval, unit of the metric.
    """

    setting: Condition
    baseline: Condition
    metric: str
    difference: Estimate

    @property
    def judged(self) -> bool:
        """Whether the pairs differ, so that there is an interval to judge by."""
        return self.difference.low is not None and bool(self.difference.std)

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero."""
        low, high = self.difference.low, self.difference.high
        return self.judged and low is not None and high is not None and (low > 0 or high < 0)


def paired(table: pd.DataFrame, chosen: Baselines, metrics: list[str]) -> list[Paired]:
    """Compare each setting with its baseline.

    Args:
        table: As `load_sweep` gives it.
        chosen: The baseline of each setting.
        metrics: Keys.

    Returns:
        One for each setting and metric for which both sides share a seed, in the order of the settings.
    """
    everything = cells(table)
    found = []
    for key, base in chosen.of.items():
        for metric in metrics:
            moved = difference(everything[base].values(metric), everything[key].values(metric))
            if moved is not None:
                found.append(Paired(key, base, metric, moved))
    return found


def compared_metrics(table: pd.DataFrame) -> list[str]:
    """Choose the metrics that are compared: what is ranked by, one sharpness, losses and gaps, the time of a step.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        Keys that any run has.
    """
    goal = objective(table)
    sharp = next((m for m in _SHARPNESS if _measured(table, m)), None)
    asked = dict.fromkeys(metric for metric in (goal, sharp, *_COMPARED) if metric)
    return [metric for metric in asked if _measured(table, metric)]


def paired_sheet(table: pd.DataFrame, asked: str | None = None) -> Sheet | None:
    """Lay out the paired differences, one row per setting.

    Args:
        table: As `load_sweep` gives it.
        asked: The baseline in words; None for the default one.

    Returns:
        The table with what it says; None when there is nothing to compare.

    Raises:
        BaselineError: If no setting is the one that was asked for.
    """  # noqa: DOC502 - raised by baselines
    everything = cells(table)
    chosen = baselines(list(everything), asked)
    metrics = compared_metrics(table)
    found = paired(table, chosen, metrics)
    if not found:
        return None
    by_setting: dict[Condition, dict[str, Paired]] = {}
    for pair in found:
        by_setting.setdefault(pair.setting, {})[pair.metric] = pair
    metrics = [metric for metric in metrics if any(metric in pairs for pairs in by_setting.values())]
    several = len({pair.baseline for pair in found}) > 1
    body = tuple(
        (
            Entry(label(key, everything)),
            *((Entry(label(chosen.of[key], everything)),) if several else ()),
            *(_entry(pairs.get(metric)) for metric in metrics),
            _pairs(pairs),
        )
        for key, pairs in by_setting.items()
    )
    header = ("setting", *(("against",) if several else ()), *(f"{words(metric)}, difference" for metric in metrics))
    about = (chosen.words, _by_chance(found), *_told(found, everything))
    return Sheet(TITLE, (*header, "pairs"), body, tuple(text for text in about if text))


def _told(found: list[Paired], everything: dict[Condition, Cell]) -> list[str]:
    # Per metric, how many differ and which do most: with the interval farthest from zero, in its own half widths.
    texts = []
    for metric in dict.fromkeys(pair.metric for pair in found):
        clear = [pair for pair in found if pair.metric == metric and pair.clear]
        judged = sum(pair.judged for pair in found if pair.metric == metric)
        if not clear:
            continue
        most = sorted(clear, key=lambda pair: (-abs(pair.difference.mean), pair.setting.order()))[:MAX_TOLD]
        parts = [f"{label(pair.setting, everything)}: {estimated(pair.difference, signed=True).whole}" for pair in most]
        verb = "differs" if len(clear) == 1 else "differ"
        most_words = "" if len(clear) == 1 else ", most of all" if len(clear) > MAX_TOLD else ""
        texts.append(
            f"{words(metric).capitalize() if metric != 'hessian/lambda_max' else words(metric)}: {len(clear)} of "
            f"{count(judged, 'setting')} {verb} from the baseline{most_words}: {'; '.join(parts)}."
        )
    return texts


def _by_chance(found: list[Paired]) -> str:
    judged = [pair for pair in found if pair.judged]
    alike = sum(pair.difference.n > 1 and not pair.judged for pair in found)
    tail = (
        f" {count(alike, 'difference')} without any spread over the seeds {'is' if alike == 1 else 'are'} not judged."
    )
    if not judged:
        needs = "One pair of seeds each: no difference has an interval. Sweep seed=0,1,2 to get one."
        return needs if not alike else f"No difference has an interval.{tail}"
    clear = sum(pair.clear for pair in judged)
    text = (
        f"{clear} of {count(len(judged), 'interval')} {'excludes' if clear == 1 else 'exclude'} zero (marked *); if "
        f"nothing differed, about {digits(LEVEL * len(judged), significant=2)} would by chance alone."
    )
    return text + (tail if alike else "")


def _entry(pair: Paired | None) -> Entry:
    if pair is None:
        return Entry("-")
    return estimated(pair.difference, signed=True)._replace(strong=pair.clear)


def _pairs(pairs: dict[str, Paired]) -> Entry:
    numbers = [pair.difference.n for pair in pairs.values()]
    text = str(min(numbers)) if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"
    return number(float(min(numbers)), text)


def _measured(table: pd.DataFrame, metric: str) -> bool:
    return metric in table and bool(table[metric].notna().any())
