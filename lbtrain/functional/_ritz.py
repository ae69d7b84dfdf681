"""Eigenpairs of a projected matrix, and what leads out of the basis that it is projected on."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class End:
    """What leads out of the basis where a sweep stopped: a direction, and how strongly each row is coupled to it."""

    coupling: Tensor  # float64 on the CPU; rows added later are not coupled
    direction: Tensor

    def along(self, coefficients: Tensor) -> Tensor:
        """Return the part of ``H Q' y`` along the direction for each column ``y``, shape ``(k,)``."""
        return self.coupling @ coefficients[: len(self.coupling)]

    @classmethod
    def at_last(cls, rows: int, beta: float, direction: Tensor) -> "End":
        """Return the end of a Lanczos sweep: only the last of the rows is coupled."""
        coupling = torch.zeros(rows, dtype=torch.float64)
        coupling[-1] = beta
        return cls(coupling, direction)


@dataclass(frozen=True)
class Ritz:
    """Eigenpairs of the projected matrix, ascending, with residual bounds; float64 on the CPU."""

    values: Tensor
    bounds: Tensor
    coefficients: Tensor
