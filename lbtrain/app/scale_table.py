"""The dry report of `lbtrain scale`: values before and after, the laws behind them, and how to use them in a run."""

import copy
import math
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from hydra.errors import InstantiationException
from omegaconf import OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lbtrain.app.checks import problems
from lbtrain.app.instantiate import instantiate
from lbtrain.app.scale_notes import notes, overrides
from lbtrain.app.signatures import ConfigError
from lbtrain.functional.optimizers import decay_per_epoch, terminal_step
from lbtrain.functional.rescale import UNSCALED, rescale_others, rescale_rates
from lbtrain.functional.scaling import Factors, Law, exponent, factors


@dataclass(frozen=True)
class Scaled:
    """An optimizer at its base batch and at another one.

    Attributes:
        optimizer: With one parameter group of a dummy parameter, at the base batch.
        before: Its parameter group.
        after: The same, scaled.
        factors: What was multiplied by what.
        k: New global batch over the base batch.
        steps_before: Optimizer steps per epoch at the base batch, None without the size of the training set.
        steps: The same at the new batch.
    """

    optimizer: torch.optim.Optimizer
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    factors: Factors
    k: float
    steps_before: int | None
    steps: int | None


def show(settings: Mapping[str, Any]) -> None:
    """Print the report.

    Args:
        settings: As `lbtrain.app.scale.read` gives them.
    """
    result = scaled(settings)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for title in (f"at {settings['base_batch']}", f"at {settings['batch']}"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("law", overflow="fold")
    for row in _rows(settings, result):
        table.add_row(*map(escape, row))
    console = Console(file=sys.stdout, highlight=False)
    console.print(table)
    console.print()
    for note in notes(settings, result):
        folded = textwrap.wrap(note, max(console.width - 2, 20), break_on_hyphens=False, break_long_words=False)
        console.print("- " + "\n  ".join(folded), markup=False, soft_wrap=True)
    console.print("\nin a run, with the values at the base batch:")
    console.print(f"  python train.py {' '.join(overrides(settings, result))}", markup=False, soft_wrap=True)


def scaled(settings: Mapping[str, Any]) -> Scaled:
    """Scale the hyperparameters of a real optimizer, by the functions that LearningRateScaling calls.

    Args:
        settings: As `lbtrain.app.scale.read` gives them.

    Returns:
        The optimizer before and after.

    Raises:
        ConfigError: If adam_moments is asked of an optimizer without moments.
    """
    optimizer = _optimizer(settings)
    before = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    samples = settings["batch"] / settings["base_batch"]
    law = Law(
        samples=samples,
        batches=settings["devices"] * settings["accumulate"] / settings["base_batches"],
        summed=settings["reduction"] == "sum",
        rule=settings["rule"],
        adam_moments=settings["adam_moments"],
        scale_decay=settings["decay"] == "scale",
    )
    if settings["rule"] != "auto":
        exponent(settings["rule"])
    found = factors(optimizer, before, law)
    if settings["adam_moments"] and not {"betas", "alpha"} & set(before):
        name = type(optimizer).__name__
        raise ConfigError(f"adam_moments=true scales betas and eps, which {name} does not have: leave it out")
    twin = copy.deepcopy(optimizer)
    rescale_rates(twin, [], [found.lr])
    rescale_others(twin.param_groups[0], UNSCALED, found)
    steps = [_steps(settings["samples"], settings[batch]) for batch in ("base_batch", "batch")]
    return Scaled(optimizer, before, twin.param_groups[0], found, samples, *steps)


def _optimizer(settings: Mapping[str, Any]) -> torch.optim.Optimizer:
    node = OmegaConf.create({"optimizer": settings["node"]})
    found = problems(node)
    if found:
        raise ConfigError("; ".join(f"{p.key.removeprefix('optimizer.')}: {p.text}" for p in found))
    try:
        # A matrix, which some optimizers treat in a way of its own.
        optimizer = instantiate(node.optimizer)([torch.nn.Parameter(torch.zeros(2, 2))])
    except (InstantiationException, TypeError, ValueError, RuntimeError, AssertionError) as error:
        name, why = settings["name"], str(error) or repr(error)
        where = f"they stand in conf/optimizer/{name}.yaml" if settings["default"] else "look at its documentation"
        raise ConfigError(f"optimizer={name} refuses its arguments: {why}; {where}") from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(f"optimizer must be a torch optimizer, got {settings['name']}: write optimizer=adamw")
    return optimizer


def _rows(settings: Mapping[str, Any], result: Scaled) -> list[tuple[str, str, str, str]]:
    before, after, found = result.before, result.after, result.factors
    rows = [("global batch", str(settings["base_batch"]), str(settings["batch"]), f"k = {result.k:g}")]
    if settings["reduction"] == "sum":
        new = settings["devices"] * settings["accumulate"]
        rows.append(("batches per step", str(settings["base_batches"]), str(new), "devices x accumulate"))
    power = exponent(found.rule)
    law = f"x {found.lr:.6g}" + (f" = {found.k:g}^{power:g}" if power not in {0.0, 1.0} else "")
    rows.append(("learning rate", _text(before["lr"]), _text(after["lr"]), f"{law} ({found.rule})"))
    if before.get("momentum"):
        rows.append(("terminal step", *(_text(terminal_step(g)) for g in (before, after)), "lr / (1 - momentum)"))
    kept = found.moments == 1.0
    for key, formula in (("betas", "1 - k (1 - beta)"), ("alpha", "1 - k (1 - alpha)"), ("eps", "eps / sqrt(k)")):
        if before.get(key) is not None and ("betas" in before or "alpha" in before):
            rows.append((key, _text(before[key]), _text(after[key]), "kept" if kept else formula))
    if before.get("weight_decay"):
        law = "kept" if found.decay == 1.0 else f"x {found.decay:.6g}"
        rows.append(("weight decay", _text(before["weight_decay"]), _text(after["weight_decay"]), law))
    return rows + _per_epoch(settings, result)


def _per_epoch(settings: Mapping[str, Any], result: Scaled) -> list[tuple[str, str, str, str]]:
    if result.steps is None or result.steps_before is None:
        return []
    rows = [("steps per epoch", str(result.steps_before), str(result.steps), f"{settings['samples']} samples")]
    if settings["epochs"] is not None:
        totals = (str(steps * settings["epochs"]) for steps in (result.steps_before, result.steps))
        rows.append(("steps", *totals, f"{settings['epochs']} epochs"))
    sides = ((result.before, result.steps_before), (result.after, result.steps))
    shares = [decay_per_epoch(result.optimizer, group, steps) for group, steps in sides]
    if all(shares):
        rows.append(("decay per epoch", *(f"{share:.4g}" for share in shares), "share of a weight"))
    return rows


def _steps(samples: int | None, batch: int) -> int | None:
    """Return the optimizer steps of an epoch: the last batch and the last window may be short."""
    return None if samples is None else math.ceil(samples / batch)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_text(entry) for entry in value)
    return f"{float(value):.6g}"
