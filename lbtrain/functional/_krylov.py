"""An orthonormal basis grown by products with a symmetric matrix, and the matrix as seen from inside it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Rows added at a time: few copies, and little memory for the short runs that are usual.
_CHUNK = 32
# A remainder below this many roundings of the largest product is no direction any more.
_BREAKDOWN = 100.0


@dataclass
class End:
    """Where a sweep stopped: its last row, the length of what leads out of the basis there, and that direction."""

    row: int
    beta: float
    direction: Tensor


@dataclass(frozen=True)
class Ritz:
    """Eigenpairs of the projected matrix, ascending, with residual bounds; float64 on the CPU."""

    values: Tensor
    bounds: Tensor
    coefficients: Tensor


class KrylovBasis:
    """Orthonormal rows ``Q`` of shape ``(m, n)`` and the projection ``A = Q H Q'``, ``(m, m)`` in float64.

    Rows come in sweeps. Inside a sweep they are Lanczos vectors of ``H`` restricted to the complement of the earlier
    sweeps. Each new row is made orthogonal to all others by two passes of classical Gram-Schmidt, each of two
    matrix-vector products ("twice is enough", Giraud, Langou, Rozloznik 2005), with one wait for the device.
    A unit vector ``y`` with ``A y = theta y`` gives ``x = Q'y`` with ``||H x - theta x|| <= sum_e beta_e |y[row_e]|``
    over the ends ``e`` of the sweeps (Parlett 1998, The Symmetric Eigenvalue Problem, 13.2, for one sweep).

    Args:
        dim: Number of columns ``n``.
        limit: Largest number of rows.
        dtype: Type of the rows.
        device: Place of the rows.
    """

    def __init__(self, dim: int, limit: int, dtype: torch.dtype, device: torch.device | str) -> None:
        self.dim, self.limit = dim, min(limit, dim)
        self.rows, self.sweep_start, self.num_sweeps = 0, 0, 0
        self.ends: list[End] = []
        self.scale = 0.0  # largest ||H q|| seen
        self.beta = 0.0
        self.broken = False
        self._buffer = torch.empty((0, dim), dtype=dtype, device=device)
        self._projected = torch.zeros((0, 0), dtype=torch.float64)
        self._next = torch.empty(0)

    @property
    def full(self) -> bool:
        """Whether no further row fits."""
        return self.rows >= self.limit

    def begin(self, start: Tensor) -> None:
        """Start a sweep from a vector ``(n,)``, made orthogonal to all rows."""
        if self.num_sweeps and not self.broken:
            self.ends.append(End(self.rows - 1, self.beta, self._next))
        self.num_sweeps += 1
        self.sweep_start = self.rows
        vector = start.to(self._buffer)
        # Near the full dimension almost all of a random vector is projected away: repeat until its direction is clean.
        for _ in range(3):
            vector = self._project_out(vector / torch.linalg.vector_norm(vector))[0]
        self._next = vector / torch.linalg.vector_norm(vector)
        self.broken = False

    def step(self, matvec: Callable[[Tensor], Tensor]) -> bool:
        """Add one row by one product.

        Args:
            matvec: Maps shape ``(n,)`` to ``H v``, same shape.

        Returns:
            Whether the product was finite; the basis is of no use otherwise.

        Raises:
            ValueError: If the product has another shape.
        """
        self._grow()
        q = self._buffer[self.rows]
        q.copy_(self._next)
        product = matvec(q)
        if product.shape != q.shape:
            raise ValueError(f"matvec must return shape {tuple(q.shape)}, as its argument, got {tuple(product.shape)}")
        product = product.to(q)
        self.rows += 1
        rest, column = self._project_out(product)
        sizes = torch.stack([torch.linalg.vector_norm(product), torch.linalg.vector_norm(rest)])
        numbers = torch.cat([column, sizes]).double().cpu()
        if not bool(torch.isfinite(numbers).all()):
            return False
        self._projected[: self.rows, self.rows - 1] = numbers[:-2]
        self.scale = max(self.scale, float(numbers[-2]))
        self.beta = float(numbers[-1])
        self.broken = self.beta <= _BREAKDOWN * torch.finfo(q.dtype).eps * self.scale
        self._next = q if self.broken else rest.div_(self.beta)
        return True

    def ritz(self) -> Ritz:
        """Return the eigenpairs of the projected matrix over all rows."""
        values, coefficients = torch.linalg.eigh(self._projected[: self.rows, : self.rows], UPLO="U")
        bounds = torch.zeros_like(values)
        for end in self.ends:
            bounds += end.beta * coefficients[end.row].abs()
        if not self.broken:
            bounds += self.beta * coefficients[-1].abs()
        return Ritz(values, bounds, coefficients)

    def sweep_top(self) -> tuple[float, float]:
        """Return the largest Ritz value of the current sweep alone, and its residual bound in that sweep's matrix."""
        inside = slice(self.sweep_start, self.rows)
        values, coefficients = torch.linalg.eigh(self._projected[inside, inside], UPLO="U")
        return float(values[-1]), 0.0 if self.broken else self.beta * abs(float(coefficients[-1, -1]))

    def vectors(self, coefficients: Tensor) -> Tensor:
        """Return ``Q' y`` for each column ``y``, shape ``(n, k)``."""
        return self._buffer[: self.rows].T @ coefficients.to(self._buffer)

    def take_end(self, coefficients: Tensor) -> Tensor:
        """Return the direction ``(n,)`` of the end that disturbs the given Ritz vectors ``(m, k)`` most; remove it."""
        if not self.broken:
            self.ends.append(End(self.rows - 1, self.beta, self._next))
            self.broken = True
        worst = max(self.ends, key=lambda end: end.beta * float(coefficients[end.row].abs().max()))
        self.ends.remove(worst)
        return worst.direction

    def _project_out(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vector without its part in the rows, and that part's coefficients ``(m,)``."""
        Q = self._buffer[: self.rows]
        first = Q @ vector
        rest = torch.addmv(vector, Q.T, first, alpha=-1)
        second = Q @ rest
        return torch.addmv(rest, Q.T, second, alpha=-1), first + second

    def _grow(self) -> None:
        """Make room for one more row."""
        capacity = self._buffer.shape[0]
        if self.rows < capacity:
            return
        capacity = min(capacity + _CHUNK, self.limit)
        buffer, projected = (
            self._buffer.new_empty((capacity, self.dim)),
            self._projected.new_zeros((capacity, capacity)),
        )
        buffer[: self.rows], projected[: self.rows, : self.rows] = self._buffer, self._projected
        self._buffer, self._projected = buffer, projected


def chance_of_oversight(dim: int, num_rows: int, low: float, top: float, threshold: float) -> float:
    """Bound the chance that a random start overlooks an eigenvalue above a threshold.

    If the largest Ritz value after ``j`` rows is ``top``, an eigenvalue of at least ``threshold`` needs a start whose
    part ``c`` in its direction obeys ``c^2 <= (top - low) / ((threshold - top) T^2)``, with the Chebyshev polynomial
    ``T = T_{j-1}`` taken at ``threshold`` after ``[low, top]`` is mapped to ``[-1, 1]`` (its Rayleigh quotient would
    exceed ``top`` otherwise). A uniform direction in ``n`` dimensions has ``P(|c| <= r) <= r sqrt(2 n / pi)``.

    Args:
        dim: Dimension ``n`` of the space of the start.
        num_rows: Lanczos steps ``j`` from it.
        low: Lower bound of the spectrum.
        top: Largest Ritz value.
        threshold: Above ``top``.

    Returns:
        Probability, at most 1.

    References:
        The Chebyshev argument of Kuczynski and Wozniakowski (1992), SIAM J. Matrix Anal. Appl. 13(4), turned around.
    """
    if threshold <= top or num_rows < 1:
        return 1.0
    if top <= low:
        return 0.0
    growth = (num_rows - 1) * math.acosh((2 * threshold - top - low) / (top - low))
    log_chance = 0.5 * math.log(2 * dim / math.pi * (top - low) / (threshold - top))
    return math.exp(min(0.0, log_chance - growth + math.log(2.0)))  # cosh(x) >= exp(x) / 2
