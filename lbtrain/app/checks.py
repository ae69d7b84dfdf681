"""Everything that can be found wrong with a config by reading it, before anything is built."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from lbtrain.app.names import given_overrides
from lbtrain.app.own import unused_groups
from lbtrain.app.signatures import HYDRA_KEYS, Arguments, arguments, locate, nearest, newer, suggestion
from lbtrain.app.values import wrong_type

# Top level of lbtrain's own config. In a config without all of `_LAYOUT`, another app decides on its keys.
KEYS = frozenset({
    "seed",
    "objective",
    "ckpt_path",
    "tags",
    "data",
    "model",
    "optimizer",
    "scheduler",
    "callbacks",
    "logger",
    "trainer",
})
_LAYOUT = frozenset({"data", "model", "trainer", "callbacks", "objective"})
# What another app's code may give to its optimizer and scheduler nodes.
_GIVEN_BY_CODE = frozenset({"params", "optimizer"})


class Problem(NamedTuple):
    """One thing that is wrong: the dotted config key (empty: the whole config), and what to do about it."""

    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.key}: {self.text}"


def problems(cfg: DictConfig) -> list[Problem]:
    """Find what is wrong with a config.

    Args:
        cfg: The composed config.

    Returns:
        The problems, in the order of the config; empty when there are none.
    """
    own = set(cfg) >= _LAYOUT
    raw = OmegaConf.to_container(cfg, resolve=False)
    found = list(_unknown_keys(raw)) if own else []
    for group in ("callbacks", "logger"):
        found += _group_problems(group, raw.get(group))
    found += _walk(cfg, raw, "", expect_all=True, own=own)
    found += _without_effect(cfg) if own else []
    return found


def _unknown_keys(raw: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield top-level keys that are neither lbtrain's nor referred to by any value."""
    text = str(raw)
    for key in raw:
        if key in KEYS or key == "hydra" or re.search(rf"\$\{{{re.escape(str(key))}\b", text):
            continue
        own_key = f"a key of your own is welcome once some value refers to it as ${{{key}}}"
        yield Problem(str(key), f"unknown key{suggestion(str(key), KEYS)} ({own_key})")


def _without_effect(cfg: DictConfig) -> Iterator[Problem]:
    """Yield the groups that were set on the command line although nothing takes them."""
    for group in unused_groups(cfg):
        given = [o for o in given_overrides() if re.match(rf"\+*{group}[.=]", o)]
        if given:
            fix = f"give it to the model, as model.{group}=${{{group}}}, or leave it out"
            yield Problem(group, f"{given[0]} has no effect, since nothing in the config takes ${{{group}}}; {fix}")


def _group_problems(group: str, node: Any) -> Iterator[Problem]:
    """Yield what keeps `callbacks` or `logger` from being a mapping of nodes with a `_target_`."""
    # Other apps also write one node, or a list of nodes.
    if node is None or (isinstance(node, Mapping) and "_target_" in node):
        return
    if isinstance(node, list) and node and all(isinstance(entry, Mapping) for entry in node):
        return
    if not isinstance(node, Mapping):
        kind = "list" if isinstance(node, list) else "value"
        yield Problem(
            group, f"got the {kind} {node!r} where named nodes belong; group not found: is hydra.searchpath set?"
        )
        return
    complete = [name for name, entry in node.items() if isinstance(entry, Mapping) and "_target_" in entry]
    for name, entry in node.items():
        if entry is None or name in complete or (isinstance(entry, str) and entry.startswith("${")):
            continue
        fix = f"add it to the group, as {group}=[...,{name}], or drop these values with ~{group}.{name}"
        meant = nearest(str(name), complete)
        yield Problem(f"{group}.{name}", f"no _target_ here; {fix}" + (f"; did you mean {meant!r}?" if meant else ""))


def _walk(node: DictConfig | ListConfig, raw: Any, path: str, *, expect_all: bool, own: bool) -> Iterator[Problem]:
    """Yield the problems of a node and of all below it."""
    mapping = isinstance(node, DictConfig)
    if mapping and "_target_" in node:
        yield from _target_problems(node, raw, path, expect_all=expect_all, own=own)
        # The target builds the nodes below on its own terms.
        expect_all = expect_all and raw.get("_recursive_", True) is not False
    for key in list(node) if mapping else range(len(node)):
        below = f"{path}.{key}" if path else str(key)
        if below == "hydra":
            continue
        if OmegaConf.is_missing(node, key):
            yield Problem(below, f"value missing (???); give it as {below}=VALUE")
        elif OmegaConf.is_interpolation(node, key):
            # A node that it points to is checked where it stands.
            yield from _interpolation_problems(node, key, raw[key], below)
        elif isinstance(value := node[key], (DictConfig, ListConfig)):
            yield from _walk(value, raw[key], below, expect_all=expect_all, own=own)


def _interpolation_problems(node: DictConfig | ListConfig, key: Any, raw: str, path: str) -> Iterator[Problem]:
    try:
        node[key]
    except InterpolationToMissingValueError:
        return  # the missing value is listed at its own key
    except OmegaConfBaseException as error:
        # ${hydra:...} has values inside a running job only: either is said outside, before and after Hydra is loaded.
        outside = any(text in str(error) for text in ("interpolation type hydra", "HydraConfig was not set"))
        if HydraConfig.initialized() or not outside:
            yield Problem(path, f"cannot resolve {raw}: {str(error).splitlines()[0]}")


def _target_problems(node: DictConfig, raw: Any, path: str, *, expect_all: bool, own: bool) -> Iterator[Problem]:
    """Yield what is wrong with the `_target_` of a node and with the arguments beside it."""
    if OmegaConf.is_missing(node, "_target_"):
        return
    try:
        name = node["_target_"]
    except OmegaConfBaseException:
        return
    try:
        target = locate(name) if isinstance(name, str) else name
    except LookupError as error:
        yield Problem(f"{path}._target_", str(error.args[0]))
        return
    if not callable(target):
        yield Problem(f"{path}._target_", f"must name a class or a function, got {name!r}")
        return
    takes = arguments(target)
    if takes is None:
        return
    yield from _unknown_arguments(node, target, takes, path)
    yield from _wrong_values(node, target, takes, path)
    if expect_all and "_args_" not in node and raw.get("_partial_", False) is False:
        given_later = frozenset() if own else _GIVEN_BY_CODE
        for missing in takes.required:
            if missing not in node and missing not in given_later:
                later = "or write _partial_: true when code gives it later"
                yield Problem(path, f"{_short(target)} needs {missing!r}; give {path}.{missing}, {later}")


def _unknown_arguments(node: DictConfig, target: Callable[..., Any], takes: Arguments, path: str) -> Iterator[Problem]:
    if takes.takes_any:
        return
    for key in node:
        if key in HYDRA_KEYS or key in takes.names:
            continue
        later = newer(target, str(key))
        if later is None:
            hint = suggestion(str(key), takes.names)
            yield Problem(f"{path}.{key}", f"{_short(target)} has no argument {str(key)!r}{hint}")
        elif node[key] != later.default:
            fix = f"upgrade, or set it to its default, {later.default!r}"
            yield Problem(f"{path}.{key}", f"{_short(target)} takes {str(key)!r} from {later.since} on; {fix}")


def _wrong_values(node: DictConfig, target: Callable[..., Any], takes: Arguments, path: str) -> Iterator[Problem]:
    for key in takes.names:
        if key not in node or OmegaConf.is_missing(node, key):
            continue
        try:
            value = node[key]
        except OmegaConfBaseException:
            continue  # listed as an interpolation
        if value is None or isinstance(value, bool | int | float | str):
            wrong = wrong_type(target, key, value)
            if wrong is not None:
                yield Problem(f"{path}.{key}", wrong)


def _short(target: Callable[..., Any]) -> str:
    return getattr(target, "__name__", repr(target))
