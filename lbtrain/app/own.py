"""What a config takes from the user's own code, and what of the config that code leaves alone."""

import importlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from omegaconf import DictConfig, OmegaConf

# Targets in these packages are not the user's own code.
_KNOWN = ("lbtrain.", "torch.", "torchmetrics.")
_GROUPS = ("optimizer", "scheduler")


def own_modules(cfg: DictConfig) -> list[str]:
    """Return the Python modules of the user's own data and model.

    Args:
        cfg: The composed config.

    Returns:
        Dotted names, each once, in the order of the config.
    """
    raw = OmegaConf.to_container(cfg, resolve=False)
    targets = [target for group in ("data", "model") for target in _targets(raw.get(group))]
    return list(dict.fromkeys(t.rpartition(".")[0] for t in targets if "." in t and not t.startswith(_KNOWN)))


def import_own_modules(cfg: DictConfig) -> None:
    """Import the user's own modules before lbtrain opens its door to Lightning, which then follows their choice.

    Args:
        cfg: The composed config.
    """
    for name in own_modules(cfg):
        with suppress(Exception):  # the check of the config imports it again, and tells what is wrong
            importlib.import_module(name)


def unused_groups(cfg: DictConfig) -> list[str]:
    """Return which of the groups `optimizer` and `scheduler` nothing in the config refers to.

    A module that makes its own optimizer leaves the group without effect.

    Args:
        cfg: The composed config.

    Returns:
        Their names.
    """
    raw = OmegaConf.to_container(cfg, resolve=False)
    return [g for g in _GROUPS if f"${{{g}" not in str({key: value for key, value in raw.items() if key != g})]


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        for value in node.values():
            yield from _targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from _targets(value)
