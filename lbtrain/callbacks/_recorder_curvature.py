"""The largest Hessian eigenvalue during training, from the last eigenvector and the gradient, in some 3 products."""

import math
from typing import Any

import torch
from torch import Tensor

from lbtrain.functional.lanczos import lanczos
from lbtrain.functional.operator import HessianOperator
from lbtrain.functional.stability import stability

# Residual in units of the eigenvalue. A choice: over 40 measurements in 11 runs of the gallery the eigenvalues were
# then 1.2 % too low on average, at worst 13 %, in 3.0 products each. At 0.15 it takes 2.7; at 0.175 one missed half.
_TOL = 0.1
# Products at the most: choices. None is spent on confirming the residual.
_COLD, _WARM = 7, 5


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
        self,
        loss: HessianOperator,
        gradient: Tensor,
        optimizer: torch.optim.Optimizer | None,
        trainable: list[tuple[str, torch.Size]],
    ) -> tuple[float | None, float | None]:
        """Return the largest eigenvalue and the stability; every rank takes part.

        Args:
            loss: At the current weights.
            gradient: Of it, shape `(n,)`.
            optimizer: Whose stability is asked for, or None.
            trainable: Names and shapes of the parameters of the loss, which may change during training.

        Returns:
            lambda_max in loss per squared parameter, and 1 at the edge of stability; None for what is not known.
        """
        if trainable != self._trainable:
            self.vector = self._edge = None
            self._trainable = trainable
        generator = torch.Generator().manual_seed(self._seed)
        common: dict[str, Any] = {"tol": _TOL, "generator": generator, "confirm": False}
        found = lanczos(
            loss.hvp, loss.dim, **common, **self._start(self.vector, gradient), dtype=loss.dtype, device=loss.device,
            keep_vectors=True, smallest=False, repeated=False,
        )  # fmt: skip
        if not math.isfinite(found.lambda_max) or found.vectors is None:
            self.vector = self._edge = None
            return None, None
        self.vector = found.vectors[:, 0].contiguous()
        if optimizer is None:
            return found.lambda_max, None
        edge = stability(optimizer, loss.params, loss.hvp, found, **common, **self._start(self._edge, gradient))
        is_known = math.isfinite(edge.value)
        self._edge = edge.vector if is_known else None
        return found.lambda_max, edge.value if is_known else None

    def _start(self, vector: Tensor | None, gradient: Tensor) -> dict[str, Any]:
        """Return where to start, and how many products that may take.

        An old eigenvector alone may be of no use: where a run had moved far, two products from it found a tenth of the
        eigenvalue. The gradient leans to the top eigenvectors, and a random vector has a part in each.
        """
        random = torch.randn(len(gradient), generator=torch.Generator().manual_seed(self._seed)).to(gradient)
        columns = [random, *([gradient] if bool(gradient.any()) else []), *([] if vector is None else [vector])]
        return {"max_matvecs": _COLD if vector is None else _WARM, "start": torch.stack(columns, 1)}
