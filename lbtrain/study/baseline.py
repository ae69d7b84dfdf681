"""The setting that others are compared with: named on the command line, or the plainest of each family."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lbtrain.study.conditions import Condition, label
from lbtrain.study.estimates import plain
from lbtrain.study.methods import as_number

_NAMED = re.compile(r"([A-Za-z_][\w.]*)=")  # a value reaches to the next name: optimizer=SGD momentum 0.9 batch=16


class BaselineError(ValueError):
    """No setting is the baseline that was asked for; the message is one line and names what there is."""


@dataclass(frozen=True)
class Baselines:
    """The baseline of each setting.

    Args:
        of: Setting to its baseline; those that are a baseline themselves are left out.
        words: How it was chosen, as a sentence.
    """

    of: Mapping[Condition, Condition]
    words: str


def baselines(everything: Sequence[Condition], asked: str | None = None) -> Baselines:
    """Choose the baseline of each setting.

    Asked for by words, it is a setting that these fit; where several do, for each setting the one that differs from it
    in the fewest other axes. Otherwise it is, among the settings of the same optimizer and other options, the one
    without a method of SAM's family, at the fixed rate, with the smallest batch; where that compares nothing, such a
    one of the whole sweep.

    Args:
        everything: All settings.
        asked: Such as "optimizer=SGD momentum 0.9 batch=16", or parts of a setting's name: "Adam, batch 16".

    Returns:
        The baseline of each setting.

    Raises:
        BaselineError: If no setting fits.
    """  # noqa: DOC502 - raised by _fitting
    if asked is not None:
        fitting = _fitting(everything, asked)
        chosen = {key: min(fitting, key=lambda other: (_apart(key, other), other.order())) for key in everything}
        return Baselines(_others(chosen), f"The baseline is {_words(chosen, everything)}, as asked for.")
    chosen = {key: min((o for o in everything if _kin(o, key)), key=_plainness) for key in everything}
    if not _others(chosen):
        chosen = dict.fromkeys(everything, min(everything, key=_plainness)) if everything else {}
    how = "the plainest setting" if len(set(chosen.values())) == 1 else "the plainest setting of each family"
    return Baselines(
        _others(chosen),
        f"The baseline is {how} (no SAM, fixed rate, smallest batch, where there are such): "
        f"{_words(chosen, everything)}.{_another(everything, set(chosen.values()))}",
    )


def axes_of(key: Condition) -> dict[str, str]:
    """Write down a setting by its axes, as the command line names them.

    Args:
        key: The setting.

    Returns:
        Such as {"optimizer": "Adam", "rate": "fixed", "batch": "16", "method": "none", "rho": "0"}, and what varies
        beside the axes.
    """
    batch = "none" if key.batch is None else plain(key.batch)
    named = {"optimizer": key.optimizer, **dict(key.others), "rate": key.rate, "batch": batch}
    return {**named, "method": key.sam.method or "none", "rho": f"{key.sam.rho:g}", **dict(key.sam.options)}


def _fitting(everything: Sequence[Condition], asked: str) -> list[Condition]:
    if not _NAMED.search(asked):
        wanted = {part.strip().lower() for part in asked.split(",")} - {""}
        fitting = [key for key in everything if wanted <= set(label(key, everything).lower().split(", "))]
        if not wanted or not fitting:
            names = "; ".join(label(key, everything) for key in list(everything)[:4])
            raise BaselineError(f"--baseline: no setting is {asked!r}; name parts of one as the report does: {names}")
        return fitting
    _, *parts = _NAMED.split(asked)
    named = dict(zip(parts[::2], (value.strip(" ,") for value in parts[1::2]), strict=True))
    fitting = list(everything)
    for name, value in named.items():
        found = {axes_of(key)[name] for key in everything if name in axes_of(key)}
        if not found:
            known = dict.fromkeys(axis for key in everything for axis in axes_of(key))
            raise BaselineError(f"--baseline: no axis is named {name!r}; there are {', '.join(known)}")
        fitting = [key for key in fitting if _same(axes_of(key).get(name, ""), value)]
        if not fitting:
            some = ", ".join(sorted(found, key=lambda text: (as_number(text), text))[:12])
            raise BaselineError(
                f"--baseline: no setting has {name}={value} beside what is named before; {name} is {some}"
            )
    return fitting


def _another(everything: Sequence[Condition], taken: set[Condition]) -> str:
    # By an axis that tells another setting from every baseline; the batch first, as the one most studied.
    others = sorted(set(everything) - taken, key=Condition.order)
    pairs = [pair for key in others for pair in axes_of(key).items()]
    for name, value in sorted(pairs, key=lambda pair: pair[0] != "batch"):
        if all(axes_of(base).get(name) != value for base in taken):
            return f" Another one: --baseline '{name}={value}'."
    return ""


def _words(chosen: Mapping[Condition, Condition], everything: Sequence[Condition]) -> str:
    names = [label(key, everything) for key in dict.fromkeys(chosen.values())]
    return "; ".join(names) if len(names) <= 3 else f"one of {len(names)}, which each row names"


def _others(chosen: Mapping[Condition, Condition]) -> dict[Condition, Condition]:
    return {key: base for key, base in chosen.items() if key != base}


def _kin(key: Condition, other: Condition) -> bool:
    return (key.optimizer, key.others) == (other.optimizer, other.others)


def _plainness(key: Condition) -> tuple[Any, ...]:
    return key.sam.rho > 0, key.sam.method != "", key.rate != "fixed", key.batch or float("inf"), key.order()


def _apart(key: Condition, other: Condition) -> int:
    mine, its = axes_of(key), axes_of(other)
    return sum(mine.get(name) != its.get(name) for name in {*mine, *its})


def _same(one: str, two: str) -> bool:
    try:
        return float(one) == float(two)
    except ValueError:
        return one.lower() == two.lower()
