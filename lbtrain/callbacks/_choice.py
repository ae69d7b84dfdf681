"""Which parameters take part in the ascent: all, all but some, or some only."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatch

from torch import Tensor, nn

from lbtrain._lightning import MisconfigurationException

KINDS = ("biases", "norms")
# Parts that wrappers put into parameter names.
_WRAPPERS = ("_fsdp_wrapped_module.", "_orig_mod.", "_checkpoint_wrapped_module.")


class Choice:
    """Choose parameters by kind or by name.

    Args:
        exclude: Entries each `biases`, `norms` (all parameters of normalization layers), a name, the name of a
            submodule, or a pattern with `*`.
        only: As `exclude`; if not empty, the others are left out.

    Raises:
        ValueError: If either is a single text.
    """

    def __init__(self, exclude: Sequence[str] = (), only: Sequence[str] = ()) -> None:
        for name, value in (("exclude", exclude), ("only", only)):
            if isinstance(value, str) or not all(isinstance(entry, str) for entry in value):
                raise ValueError(f"{name} must be a list of texts, got {value!r}; for example [{KINDS[0]}, {KINDS[1]}]")
        self._exclude, self._only = tuple(exclude), tuple(only)

    def __bool__(self) -> bool:
        return bool(self._exclude or self._only)

    def left_out(self, module: nn.Module) -> frozenset[int]:
        """Return the ids of the parameters that stay where they are.

        Args:
            module: The module whose parameters are meant.

        Returns:
            Their ids; a tied parameter is left out if any of its names is.

        Raises:
            MisconfigurationException: If an entry matches no parameter, or no parameter is left.
        """
        if not self:
            return frozenset()
        named = [(plain_name(n), p) for n, p in module.named_parameters(remove_duplicate=False)]
        norms = {id(p) for m in module.modules() if _is_norm(m) for p in m._parameters.values() if p is not None}
        excluded = self._matched("exclude", self._exclude, named, norms)
        chosen = self._matched("only", self._only, named, norms) if self._only else {id(p) for _, p in named}
        out = {id(p) for _, p in named if id(p) in excluded or id(p) not in chosen}
        if all(id(p) in out for _, p in named):
            raise MisconfigurationException(
                f"exclude={list(self._exclude)} and only={list(self._only)} leave no parameter to climb with"
            )
        return frozenset(out)

    @staticmethod
    def _matched(
        argument: str, entries: Iterable[str], named: Sequence[tuple[str, Tensor]], norms: set[int]
    ) -> set[int]:
        found = set()
        for entry in entries:
            hits = {id(p) for name, p in named if _matches(entry, name, id(p) in norms)}
            if not hits:
                names = ", ".join(name for name, _ in named[:8]) + (", ..." if len(named) > 8 else "")
                raise MisconfigurationException(
                    f"{argument} has {entry!r}, which is no parameter of {names}: give {', '.join(KINDS)}, a name, "
                    "a submodule's name, or a pattern with *"
                )
            found |= hits
        return found


def plain_name(name: str) -> str:
    """Return a parameter's name without what wrappers add to it.

    Args:
        name: As in `named_parameters`.

    Returns:
        The name that the parameter has without FSDP, compilation or activation checkpointing.
    """
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _is_norm(module: nn.Module) -> bool:
    # By name: RMSNorm is younger than the oldest torch allowed, and many projects bring a class of their own.
    return "norm" in type(module).__name__.lower()


def _matches(entry: str, name: str, in_norm: bool) -> bool:
    if entry == "norms":
        return in_norm
    if entry == "biases":
        return name.rpartition(".")[2].endswith("bias")
    return fnmatch(name, entry) or name.startswith(f"{entry}.")
