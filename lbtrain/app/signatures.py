"""What a `_target_` of the config is, and which arguments it takes."""

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from hydra.errors import CompactHydraException

# Keys that Hydra itself reads in a node with a `_target_`.
HYDRA_KEYS = frozenset({"_target_", "_args_", "_convert_", "_partial_", "_recursive_"})


class ConfigError(CompactHydraException):
    """The config cannot run; the message says where, why, and what to write. Hydra prints it without a traceback."""


@dataclass(frozen=True)
class Newer:
    """An argument that releases below `since` do not take; they behave as if it had its `default`."""

    default: Any
    since: str


# The YAMLs show every argument of the pinned versions; the oldest allowed ones (Lightning 2.4, torch 2.4) lack these.
# First release of each: for Lightning the signatures in its wheels 2.4.0 to 2.6.0, for torch pytorch/pytorch#146157.
NEWER = {
    ("Trainer", "enable_autolog_hparams"): Newer(True, "Lightning 2.6.0"),
    ("Trainer", "model_registry"): Newer(None, "Lightning 2.5.1"),
    ("ModelCheckpoint", "save_on_exception"): Newer(False, "Lightning 2.5.3"),
    ("Adam", "decoupled_weight_decay"): Newer(False, "torch 2.7"),
}
# Packages that the YAMLs name and only an extra installs.
EXTRAS = {"pytorch_optimizer": "optim", "datasets": "hub"}
_NEWER_PACKAGES = frozenset({"torch", "lightning", "pytorch_lightning"})


@dataclass(frozen=True)
class Arguments:
    """Arguments that a target takes by name.

    Attributes:
        names: All of them, in the order of the signature.
        required: Those without a default.
        takes_any: Whether further names are accepted (`**kwargs`).
    """

    names: tuple[str, ...]
    required: tuple[str, ...]
    takes_any: bool


def nearest(name: str, options: Iterable[str]) -> str | None:
    """Find the option that a mistyped name was meant to be.

    Args:
        name: What was written.
        options: The valid names.

    Returns:
        The most similar option, upper and lower case aside, or None when none is similar.
    """
    by_lower: dict[str, list[str]] = {}
    for option in sorted(options):
        by_lower.setdefault(option.lower(), []).append(option)
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    # Of names that differ in case alone, such as the class SGD and its module sgd, the one written more alike.
    alike = (
        [(difflib.SequenceMatcher(None, name, option).ratio(), option) for option in by_lower[close[0]]]
        if close
        else []
    )
    return max(alike)[1] if alike else None


def suggestion(name: str, options: Iterable[str]) -> str:
    """Say which valid name was meant, or list the valid names.

    Args:
        name: What was written.
        options: The valid names.

    Returns:
        The end of a message, starting with "; ".
    """
    options = list(options)
    meant = nearest(name, options)
    if meant is not None:
        return f"; did you mean {meant!r}?"
    return f"; valid: {', '.join(options)}" if options else "; it takes none"


def locate(target: str) -> Any:
    """Import the object that a dotted path names.

    Args:
        target: Path such as `torch.optim.SGD`.

    Returns:
        The object.

    Raises:
        LookupError: If no such object exists, with the nearest name, or if a module on the way fails to import.
    """
    first, *rest = target.split(".")
    found = _module(first, target)
    if found is None:
        way_out = f": pip install 'lbtrain[{EXTRAS[first]}]'" if first in EXTRAS else ""
        raise LookupError(f"no module {first!r} is installed, needed for {target!r}{way_out}")
    path = first
    for part in rest:
        step = getattr(found, part, None) if part else None
        if step is None and part and isinstance(found, ModuleType):
            step = _module(f"{path}.{part}", target)
        if step is None:
            raise LookupError(f"{path} has no {part!r}{_alternative(part, found)}")
        found, path = step, f"{path}.{part}"
    return found


def _module(name: str, target: str) -> ModuleType | None:
    # None when it does not exist, an error when it exists and fails.
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            return None
        raise LookupError(f"{name}, needed for {target!r}, does not import: {error}") from error
    except Exception as error:
        raise LookupError(f"{name}, needed for {target!r}, does not import: {error!r}") from error


def _alternative(part: str, parent: Any) -> str:
    modules = (module.name for module in pkgutil.iter_modules(getattr(parent, "__path__", ())))
    meant = nearest(part, {name for name in (*dir(parent), *modules) if not name.startswith("_")})
    return f"; did you mean {meant!r}?" if meant else ""


def arguments(target: Callable[..., Any]) -> Arguments | None:
    """Read the arguments that a target takes by name.

    Args:
        target: Class or function.

    Returns:
        The arguments, or None when the target does not tell (some built-ins).
    """
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return None
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    required = tuple(p.name for p in named if p.default is p.empty)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return Arguments(tuple(p.name for p in named), required, takes_any)


def newer(target: Callable[..., Any], name: str) -> Newer | None:
    """Tell whether an argument that a target lacks belongs to a later release of it.

    Args:
        target: Class of torch or Lightning that does not take the argument.
        name: The argument.

    Returns:
        Its default and first release, or None when no release is known to take it.
    """
    package = getattr(target, "__module__", "").split(".")[0]
    return NEWER.get((getattr(target, "__name__", ""), name)) if package in _NEWER_PACKAGES else None
