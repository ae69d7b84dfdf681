"""What all callbacks that climb have in common: who climbs, how far, when, and what is said about it."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from lbtrain._lightning import Callback, LightningModule, MisconfigurationException, Trainer, rank_zero_warn
from lbtrain.callbacks._choice import Choice, plain_name
from lbtrain.callbacks._moment import Radius, Span, check_length, check_number, rate_share
from lbtrain.callbacks._objective import refuse_manual_optimization
from lbtrain.callbacks._shards import part, space_of
from lbtrain.callbacks._strategies import refuse_strategy
from lbtrain.callbacks.lr_scaling import LearningRateScaling
from lbtrain.functional.space import Space

T = TypeVar("T", bound=type)


def options_of(parent: type) -> Callable[[T], T]:
    """Show the arguments of the parent, too, in the signature of a class that passes them on as `**options`.

    Args:
        parent: The class that takes the options.

    Returns:
        A decorator; signatures, completion and the check of configs then see every argument.
    """

    def show(cls: T) -> T:
        own = [p for p in inspect.signature(cls.__init__).parameters.values() if p.kind is not p.VAR_KEYWORD][1:]
        names = {p.name for p in own}
        theirs = [p for p in inspect.signature(parent).parameters.values() if p.name not in names]
        parameters = [p.replace(kind=p.KEYWORD_ONLY) if p in theirs else p for p in (*own, *theirs)]
        cls.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return cls

    return show


@dataclass
class Climbers:
    """The parameters that move in one ascent: the parts of them that this process holds."""

    where: list[int]
    """Their positions among the optimizer's parameters."""
    weights: list[Tensor]
    gradients: list[Tensor]
    rho: float | list[float]
    """Radius of all, or of each."""
    adapted: list[bool]
    """Whether ASAM rescales it."""
    space: Space


class Climber(Callback):
    """Base of SAM and its relatives; at most one of them takes part in a training."""

    scope: str = "global"

    def __init__(
        self,
        radius: Radius,
        *,
        start: float = 0,
        stop: float | None = None,
        exclude: Sequence[str] = (),
        only: Sequence[str] = (),
    ) -> None:
        self._radius = radius
        self._span = Span(start, stop)
        self._choice = Choice(exclude, only)
        self._copies: dict[int, Tensor] = {}
        self._left_out: frozenset[int] = frozenset()
        self._adapted: frozenset[int] = frozenset()
        self._names: dict[int, str] = {}
        self._highest: dict[int, float] = {}
        self._radii: list[float] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what the callback cannot serve."""
        if stage == "fit":
            name = type(self).__name__
            refuse_manual_optimization(pl_module, name)
            refuse_strategy(trainer, name, self.scope)
            refuse_two(trainer.callbacks)
            if self._radius.needs_length or self._span.needs_length:
                check_length(trainer, f"the schedule of {name}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the optimizer and at the names of the parameters."""
        _refuse_optimizer(trainer, type(self).__name__)
        self._copies = {}
        self._names = {id(p): plain_name(n) for n, p in pl_module.named_parameters()}
        self._left_out = self._choice.left_out(pl_module)
        # As in the authors' code: T = |w| + eta for what is called a weight, the identity for biases.
        self._adapted = frozenset(i for i, name in self._names.items() if "weight" in name)
        groups = trainer.optimizers[0].param_groups
        self._highest = {}
        for i, group in enumerate(groups):
            check_number(f"sam_rho of parameter group {i}", group.get("sam_rho", 0), "0 leaves the group where it is")
        self._warn_of_rounding(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the copies."""
        self._copies = {}

    def _note_radii(self, trainer: Trainer) -> None:
        """Note the radius of each parameter group, once for all batches of a step."""
        follows = self._radius.schedule == "lr"
        scalings = [c for c in trainer.callbacks if isinstance(c, LearningRateScaling) and follows]
        self._radii = []
        for i, group in enumerate(trainer.optimizers[0].param_groups):
            rate = 1.0
            if follows:
                self._highest[i] = max(self._highest.get(i, 0.0), float(group["lr"]))
                rate = rate_share(group, self._highest[i]) * math.prod(c.warmup_share(trainer, i) for c in scalings)
            self._radii.append(self._radius.now(trainer, group, rate))

    def _climbers(self, trainer: Trainer, vectors: Sequence[Tensor | None]) -> Climbers:
        """Return who climbs along these vectors, one per optimized parameter or None.

        Args:
            trainer: The Trainer.
            vectors: Parts held here.

        Returns:
            The parameters that have a vector, are not left out and whose group does not have radius 0 as its own.
        """
        where, params, radii = [], [], []
        position = 0
        for i, group in enumerate(trainer.optimizers[0].param_groups):
            still = group.get("sam_rho") == 0 or not group["params"]
            for p in group["params"]:
                if not still and vectors[position] is not None and id(p) not in self._left_out:
                    where.append(position)
                    params.append(p)
                    radii.append(self._radii[i])
                position += 1
        return Climbers(
            where,
            [part(p) for p in params],
            [vectors[i] for i in where],  # type: ignore[misc]
            radii if len(set(radii)) > 1 else radii[0] if radii else 0.0,
            [id(p) in self._adapted for p in params],
            space_of(trainer, params),
        )

    def _name(self, param: Tensor, position: int) -> str:
        """Return the name of an optimized parameter, also of one that is none of the module's."""
        return self._names.get(id(param), f"parameter {position} of the optimizer")

    def _backup(self, climbers: Climbers) -> list[Tensor]:
        """Return memory for copies of the weights, the same from step to step."""
        for i, w in zip(climbers.where, climbers.weights, strict=True):
            known = self._copies.get(i)
            if known is None or (known.shape, known.dtype, known.device) != (w.shape, w.dtype, w.device):
                self._copies[i] = torch.empty_like(w, requires_grad=False)
        return [self._copies[i] for i in climbers.where]

    def _warn_of_rounding(self, trainer: Trainer) -> None:
        kinds = {p.dtype for group in trainer.optimizers[0].param_groups for p in group["params"]}
        half = kinds & {torch.bfloat16, torch.float16}
        if half and self._radius.rho > 0:
            rank_zero_warn(
                f"the weights are {', '.join(sorted(str(k).removeprefix('torch.') for k in half))}: steps of an ascent "
                "below about 1/500 of a weight are rounded away, so a small rho does nothing; precision=bf16-mixed "
                "keeps the weights in float32"
            )


def optimized(trainer: Trainer) -> list[Tensor]:
    """Return the optimizer's parameters.

    Args:
        trainer: The Trainer.

    Returns:
        The parameters of all groups, in order.
    """
    return [p for group in trainer.optimizers[0].param_groups for p in group["params"]]


def refuse_two(callbacks: Sequence[Any]) -> None:
    """Refuse more than one callback that climbs.

    Args:
        callbacks: Of one training.

    Raises:
        MisconfigurationException: If two or more of them climb.
    """
    names = [type(c).__name__ for c in callbacks if isinstance(c, Climber)]
    if len(names) > 1:
        raise MisconfigurationException(
            f"{' and '.join(names)} each replace the gradient that the optimizer gets: keep one of them"
        )


def _refuse_optimizer(trainer: Trainer, name: str) -> None:
    if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in trainer.optimizers):
        raise MisconfigurationException(
            f"{name} replaces the gradient of one closure call, but LBFGS calls its closure many times per step: use "
            f"a first-order optimizer such as SGD or Adam, or drop {name}"
        )
