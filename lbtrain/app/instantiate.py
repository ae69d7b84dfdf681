"""From a checked config to objects: `validate` first, then `instantiate` for each node."""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lbtrain.app.checks import Problem, problems
from lbtrain.app.own import unused_groups
from lbtrain.app.signatures import HYDRA_KEYS, ConfigError, arguments, locate, nearest, newer

# Optimizers that take any parameters, so that one of them can be built to see what it refuses.
_OPTIMIZERS = ("torch.optim.", "pytorch_optimizer.")
# Checkpoints that Lightning finds by itself.
_LIGHTNINGS_WORDS = ("last", "best", "hpc", "registry")
__all__ = ["ConfigError", "instantiate", "instantiate_each", "nearest", "validate"]


def validate(cfg: DictConfig) -> None:
    """Check a whole config before anything starts.

    Found are unknown keys, missing values, interpolations that do not resolve, targets that do not import, arguments
    that a target does not take or lacks, and arguments that a callback refuses (each is built once and dropped).

    Args:
        cfg: The composed config, of lbtrain or of any app that keeps its callbacks under `callbacks`.

    Raises:
        ConfigError: If anything is wrong; the message lists all of it, by config key, with the nearest valid name.
    """
    found = problems(cfg)
    found += _refused("callbacks", OmegaConf.select(cfg, "callbacks"), found)
    found += [*_refused_by_optimizer(cfg, found), *_no_checkpoint(cfg)]
    if found:
        count = "1 problem" if len(found) == 1 else f"{len(found)} problems"
        raise ConfigError("\n  ".join([f"{count} in the config; nothing was started:", *map(str, found)]))


def instantiate(node: Any, **kwargs: Any) -> Any:
    """Build the object that a node of the config describes.

    The one door to Hydra's `instantiate`: lists and mappings arrive as plain Python ones, and arguments that only a
    later release of torch or Lightning takes are left out while they have their default. An exception that the target
    raises keeps its type and message, and names the config key.

    Args:
        node: Mapping with a `_target_`; None gives None.
        **kwargs: Further arguments, passed as they are; they win over those of the node.

    Returns:
        The object, or a partial of the target where the node says `_partial_: true`.

    Raises:
        ConfigError: If the node is not a mapping with a `_target_`, or Hydra refuses to build it.
    """
    if node is None:
        return None
    base = _key_of(node)
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if not isinstance(plain, Mapping) or "_target_" not in plain:
        raise ConfigError(f"{base or 'node'}: cannot build {plain!r}; a mapping with a _target_ is needed")
    plain = {"_convert_": "all", **_installed_arguments(plain)}
    deferred = bool(plain.get("_partial_", False))
    try:
        if not kwargs:
            return hydra.utils.instantiate(plain)
        # As a partial, since Hydra would copy objects among the arguments into its config.
        partial = hydra.utils.instantiate({**plain, "_partial_": True})
        return functools.partial(partial, **kwargs) if deferred else partial(**kwargs)
    except InstantiationException as error:
        raised, key = _raised_by_target(error), _join(base, _key_in(error))
        if raised is None:
            raise ConfigError(f"{key or 'node'}: {error}") from error
        _name_key(raised, key)
        raise raised from raised.__cause__
    except Exception as error:
        _name_key(error, base)
        raise


def instantiate_each(group: DictConfig | ListConfig | None) -> list[Any]:
    """Build every node of a group such as `callbacks`.

    Args:
        group: Mapping from names to nodes, a list of nodes, or one node; entries that are None are left out.

    Returns:
        The objects, in the order of the config.
    """
    return [made for node in _nodes(group).values() if (made := instantiate(node)) is not None]


def _nodes(group: Any) -> dict[str, Any]:
    if group is None:
        return {}
    if isinstance(group, ListConfig):
        return {str(i): group[i] for i in range(len(group))}
    return {"": group} if "_target_" in group else {str(name): group[name] for name in group}


def _refused(group: str, nodes: Any, known: list[Problem]) -> list[Problem]:
    # Builds what is not known to be wrong, and lists what the constructors refuse.
    if any(problem.key == group for problem in known) or not OmegaConf.is_config(nodes):
        return []
    refused, built = [], []
    for name, node in _nodes(nodes).items():
        key = _join(group, name)
        if any(f"{problem.key}.".startswith(f"{key}.") for problem in known):
            continue
        try:
            built.append(instantiate(node))
        except OmegaConfBaseException:
            continue  # listed already, or a ${hydra:...} outside of a job
        except ConfigError as error:
            refused.append(Problem(key, str(error).removeprefix(f"{key}: ")))
        except Exception as error:
            refused.append(Problem(key, (str(error) or repr(error)).removesuffix(f" (config key {key})")))
    return refused + _clashes(group, built)


def _refused_by_optimizer(cfg: DictConfig, known: list[Problem]) -> list[Problem]:
    # Built once with a dummy parameter: what it refuses would else show only when training starts.
    node = OmegaConf.select(cfg, "optimizer")
    unused = not isinstance(node, DictConfig) or not node.get("_partial_") or "optimizer" in unused_groups(cfg)
    if unused or not str(node.get("_target_")).startswith(_OPTIMIZERS):
        return []
    if any(f"{problem.key}.".startswith("optimizer.") for problem in known):
        return []
    import torch

    try:
        instantiate(node)([torch.nn.Parameter(torch.zeros(1))])
    except ValueError as error:
        return [Problem("optimizer", str(error))]
    return []


def _no_checkpoint(cfg: DictConfig) -> list[Problem]:
    path = str(cfg.get("ckpt_path"))
    is_path = "objective" in cfg and cfg.get("ckpt_path") is not None and "://" not in path
    if not is_path or path.startswith(_LIGHTNINGS_WORDS) or Path(path).exists():
        return []
    way_out = "give the path of one, such as RUN/checkpoints/last.ckpt, or leave ckpt_path out"
    return [Problem("ckpt_path", f"there is no checkpoint {path!r}; {way_out}")]


def _clashes(group: str, built: list[Any]) -> list[Problem]:
    if len(built) < 2:
        return []
    # Only now: a config without callbacks is read without torch.
    from lbtrain._lightning import MisconfigurationException
    from lbtrain.callbacks._climber import refuse_two

    try:
        refuse_two(built)
    except MisconfigurationException as error:
        return [Problem(group, str(error))]
    return []


def _installed_arguments(plain: Any) -> Any:
    # A copy of a plain node, and of all below it, without the arguments that the installed release does not know yet.
    if isinstance(plain, list):
        return [_installed_arguments(entry) for entry in plain]
    if not isinstance(plain, Mapping):
        return plain
    kept = {key: _installed_arguments(value) for key, value in plain.items()}
    try:
        target = locate(kept["_target_"]) if isinstance(kept.get("_target_"), str) else None
    except LookupError:
        return kept  # Hydra says so better, with the key
    takes = arguments(target) if callable(target) else None
    for key in [] if takes is None or takes.takes_any else set(kept) - HYDRA_KEYS - set(takes.names):
        later = newer(target, key)
        if later is not None and kept[key] == later.default:
            del kept[key]
    return kept


def _raised_by_target(error: InstantiationException) -> BaseException | None:
    # None when it was Hydra that refused.
    return error.__cause__ if str(error).startswith("Error in call to target") else None


def _name_key(error: BaseException, key: str) -> None:
    """Add the config key to the message of an exception."""
    if not key:
        return
    place = f"(config key {key})"
    if len(error.args) == 1 and isinstance(error.args[0], str):
        error.args = (f"{error.args[0]} {place}",)
    if place not in str(error) and hasattr(error, "add_note"):
        error.add_note(place)


def _key_of(node: Any) -> str:
    # OmegaConf has no public name for the full key of a node; Hydra's own instantiate asks the same way.
    return str(node._get_full_key(None) or "") if OmegaConf.is_config(node) else ""


def _key_in(error: InstantiationException) -> str:
    match = re.search(r"full_key: (\S+)", str(error))
    return match.group(1) if match else ""


def _join(*keys: str) -> str:
    return ".".join(key for key in keys if key)
