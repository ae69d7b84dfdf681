"""A vector beside the weights that outlives a step, and travels in checkpoints."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lbtrain._lightning import Trainer, rank_zero_warn
from lbtrain.callbacks._shards import gather, is_sharded


class KeptVector:
    """One tensor per parameter, by name: equal on all ranks, or each rank's own parts where parameters are sharded.

    Args:
        what: What it is, for messages.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._values: dict[str, Tensor] = {}
        self._loaded: list[dict[str, Tensor]] = []
        self._sharded = False

    def __bool__(self) -> bool:
        return bool(self._values)

    def start(self, trainer: Trainer) -> None:
        """Take up what a checkpoint brought, or begin with nothing.

        Args:
            trainer: The Trainer, when training starts.
        """
        self._sharded = is_sharded(trainer)
        loaded, self._loaded = self._loaded, []
        rank, needed = (trainer.global_rank, trainer.world_size) if self._sharded else (0, 1)
        if loaded and len(loaded) != needed:
            rank_zero_warn(
                f"the checkpoint holds {self._what} in {len(loaded)} part(s) and this run needs {needed}: it starts "
                "without, and gathers it again"
            )
            loaded = []
        self._values = dict(loaded[rank]) if loaded else {}

    def get(self, names: Sequence[str], like: Sequence[Tensor]) -> list[Tensor | None]:
        """Return the tensors of these parameters.

        Args:
            names: Of the parameters.
            like: Tensors on whose devices they are wanted.

        Returns:
            The kept tensors themselves, None for parameters that have none.
        """
        for name, t in zip(names, like, strict=True):
            if name in self._values:
                self._values[name] = self._values[name].to(t.device)
        return [self._values.get(name) for name in names]

    def put(self, names: Sequence[str], values: Sequence[Tensor]) -> None:
        """Keep these tensors.

        Args:
            names: Of the parameters.
            values: One tensor each, not to be changed by others.
        """
        self._values.update(zip(names, values, strict=True))

    def clear(self) -> None:
        """Keep nothing."""
        self._values = {}

    def state_dict(self) -> dict[str, Any]:
        """Return what goes into a checkpoint; where parameters are sharded, all ranks must call.

        Returns:
            The parts of all ranks, on the CPU.
        """
        mine = {name: value.detach().cpu().clone() for name, value in self._values.items()}
        return {"parts": gather(mine) if self._sharded else [mine] if mine else []}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what `state_dict` returned; it is used when training starts.

        Args:
            state: From a checkpoint.
        """
        self._loaded = list(state["parts"])


def is_finite(tensors: Sequence[Tensor]) -> bool:
    """Return whether all entries are finite, which waits for the device.

    Args:
        tensors: Any shapes.

    Returns:
        Whether no entry is infinite or NaN.
    """
    return all(bool(torch.isfinite(t).all()) for t in tensors)
