"""The largest Hessian eigenvalue during training, from the last eigenvector on, in a handful of products."""

import math
from typing import Any

import torch
from torch import Tensor

from lbtrain.functional.lanczos import lanczos
from lbtrain.functional.operator import HessianOperator
from lbtrain.functional.stability import stability

# Relative error that is good enough to tell a rate that is twice too high from one that is not: a choice.
_TOL = 0.05
# Products at the most. From a random start Lanczos finds an outlier to a few percent in some 8 products, and from the
# eigenvector of nearby weights in 3, of which the last measures the residual (docs/hessian.md, cost).
_COLD, _WARM = 8, 3


class TopEigenvalue:
    """Follow the largest eigenvalue and the stability of the optimizer.

    Args:
        seed: Of the first start vector; the same on all ranks.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._trainable: list[tuple[str, torch.Size]] = []
        self.vector: Tensor | None = None
        """Unit top eigenvector at the last measurement, shape `(n,)`."""
        self._edge: Tensor | None = None

    def measure(
        self, loss: HessianOperator, optimizer: torch.optim.Optimizer | None, trainable: list[tuple[str, torch.Size]]
    ) -> tuple[float | None, float | None]:
        """Return the largest eigenvalue and the stability; every rank takes part.

        Args:
            loss: At the current weights.
            optimizer: Whose stability is asked for, or None.
            trainable: Names and shapes of the parameters of the loss, which may change during training.

        Returns:
            lambda_max in loss per squared parameter, and 1 at the edge of stability; None for what is not known.
        """
        if trainable != self._trainable:
            self.vector = self._edge = None
            self._trainable = trainable
        generator = torch.Generator().manual_seed(self._seed)
        common: dict[str, Any] = {"tol": _TOL, "generator": generator}
        found = lanczos(
            loss.hvp, loss.dim, **common, **self._start(self.vector), dtype=loss.dtype, device=loss.device,
            keep_vectors=True, smallest=False, repeated=False,
        )  # fmt: skip
        if not math.isfinite(found.lambda_max) or found.vectors is None:
            self.vector = self._edge = None
            return None, None
        self.vector = found.vectors[:, 0].contiguous()
        if optimizer is None:
            return found.lambda_max, None
        edge = stability(optimizer, loss.params, loss.hvp, found, **common, **self._start(self._edge))
        is_known = math.isfinite(edge.value)
        self._edge = edge.vector if is_known else None
        return found.lambda_max, edge.value if is_known else None

    @staticmethod
    def _start(vector: Tensor | None) -> dict[str, Any]:
        """Return where to start, and how many products that is worth."""
        return {"max_matvecs": _COLD} if vector is None else {"max_matvecs": _WARM, "start": vector}
