"""The family of SAM: which of its methods a run trains with, read off the flat config."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard

# What an argument is where a config, or a record of before there was one, leaves it out: by class of the callback. A
# test holds all of it to the callbacks' signatures.
_MOMENT: dict[str, Any] = {"start": 0, "stop": None, "rho_schedule": "constant", "rho_end": None}
_PASS: dict[str, Any] = {"eta": 0.01, "scope": "rank", "every_n_steps": 1, "scale_rho": False, "clone_batches": False}
_SAM = {"rho": 0.05, "adaptive": False, "p": 2.0, **_PASS, **_MOMENT}
DEFAULTS: dict[str, dict[str, Any]] = {
    "SAM": _SAM,
    "GSAM": _SAM | {"alpha": 0.4},
    "LookSAM": _SAM | {"rho": 0.1, "alpha": 0.7, "every_n_steps": 10},
    "FriendlySAM": _SAM | {"sigma": 1.0, "decay": 0.9},
    "WSAM": _SAM | {"gamma": 0.9, "decoupled": True},
    "MomentumSAM": _MOMENT | {"rho": 0.3},
}
_ORDER = ("", "SAM", "ASAM", "SAM p=inf", "ASAM p=inf", *list(DEFAULTS)[1:])
_TOLD = ("_target_", "rho", "adaptive", "p")  # arguments that stand in a method's name, or beside it


class Variant(NamedTuple):
    """What a run adds to plain training.

    Args:
        method: Such as "SAM", "ASAM" or "SAM p=inf"; empty for none.
        rho: Radius, in the unit of the method.
        options: The other arguments of the method that vary in the sweep, as text.
    """

    method: str = ""
    rho: float = 0.0
    options: tuple[tuple[str, str], ...] = ()

    @property
    def words(self) -> str:
        """The variant in a list of settings: "without SAM", "SAM rho 0.05" or "GSAM rho 0.05, alpha 0.2"."""
        return f"{self.method} rho {self.rho:g}{self._more}" if self.method else "without SAM"

    @property
    def subject(self) -> str:
        """The variant in a sentence, such as "SAM (rho 0.05)"."""
        return f"{self.method} (rho {self.rho:g}{self._more})"

    @property
    def legend(self) -> str:
        """The variant in as few words as a legend has room for, such as "no SAM" or "SAM 0.05"."""
        return f"{self.method} {self.rho:g}{self._more}" if self.method else "no SAM"

    def order(self) -> tuple[Any, ...]:
        """Give the key by which variants are sorted: what trains plainly first, then by method, radius and options.

        Returns:
            A tuple that compares with every other.
        """
        place = _ORDER.index(self.method) if self.method in _ORDER else len(_ORDER)
        options = tuple((name, as_number(value), value) for name, value in self.options)
        return self.rho > 0, place, self.method, self.rho, options

    @property
    def _more(self) -> str:
        return "".join(f", {name} {value}" for name, value in self.options)


def members(config: Mapping[str, Any]) -> dict[str, str]:
    """Find the callbacks of SAM's family: lbtrain's, and others with a radius whose class is called ...SAM.

    Args:
        config: Flat config of a run.

    Returns:
        Key of the callback's node, such as "callbacks.gsam", to its class; sorted by key.
    """
    found = {}
    for key, target in config.items():
        node, _, last = key.rpartition(".")
        if last == "_target_" and target and node.split(".")[-2:-1] == ["callbacks"]:
            name = _class(str(target))
            if name in DEFAULTS or (name.endswith("SAM") and is_number(config.get(f"{node}.rho"))):
                found[node] = name
    # Records that do not name the class are of the time when there was one.
    if is_number(config.get("callbacks.sam.rho")):
        found.setdefault("callbacks.sam", _class(str(config.get("callbacks.sam._target_") or "lbtrain.SAM")))
    return dict(sorted(found.items()))


def method_label(config: Mapping[str, Any]) -> str:
    """Name the method of a run.

    Args:
        config: Flat config of the run.

    Returns:
        Empty without one, else the class, where SAM counts as "ASAM" if adaptive, with "p=inf" for the ball of that
        norm. Two of them, which no training takes, are joined by "and".
    """
    return " and ".join(_label(config, node, name) for node, name in members(config).items())


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Read the arguments of a run's method, but for those that its name and its radius tell.

    Args:
        config: Flat config of the run.

    Returns:
        Argument to value, whatever the key that the callback stands under, and whether or not the config leaves it
        out; a list is one text.
    """
    found: dict[str, Any] = {}
    for node, kind in members(config).items():
        given: dict[str, Any] = {}
        for key, value in config.items():
            name, _, inner = key.removeprefix(f"{node}.").partition(".")
            if key.startswith(f"{node}."):
                given[name] = f"{given[name]}+{value}" if inner and name in given else value
        found |= DEFAULTS.get(kind, {}) | given
    return {name: value for name, value in found.items() if name not in _TOLD}


def is_number(value: object) -> TypeGuard[float]:
    """Tell a finite number from anything else, True and False included.

    Args:
        value: Any value.

    Returns:
        Whether it is one.
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def as_number(value: str) -> float:
    """Read a number, to sort texts by.

    Args:
        value: Any text.

    Returns:
        Its number, 0 for a word.
    """
    try:
        return float(value)
    except ValueError:
        return 0.0


def _class(target: str) -> str:
    package, _, name = target.rpartition(".")
    # Somebody else's class of the same name is another method.
    return f"{package.partition('.')[0]}.{name}" if name in DEFAULTS and not target.startswith("lbtrain.") else name


def _label(config: Mapping[str, Any], node: str, name: str) -> str:
    if config.get(f"{node}.adaptive") is True:
        name = "ASAM" if name == "SAM" else f"adaptive {name}"
    return f"{name} p=inf" if str(config.get(f"{node}.p")) == "inf" else name
