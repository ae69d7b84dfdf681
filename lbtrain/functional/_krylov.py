"""An orthonormal basis grown by products with a symmetric matrix, and the matrix as seen from inside it."""

from collections.abc import Callable

import torch
from torch import Tensor

from lbtrain.functional._ritz import End, Ritz
from lbtrain.functional.space import WHOLE, Space

# Rows added at a time: few copies, and little memory for the short runs that are usual.
_CHUNK = 32
# Columns compressed at a time: the copy that this needs is small beside the basis.
_COLUMNS = 2**16
# A remainder below this many roundings of the largest product is no direction any more.
_BREAKDOWN = 100.0


class KrylovBasis:
    """Orthonormal rows ``Q`` of shape ``(m, n)`` and the projection ``A = Q H Q'``, ``(m, m)`` in float64.

    Rows come in sweeps. Inside a sweep they are Lanczos vectors of ``H`` restricted to the complement of the earlier
    rows. Each new row is made orthogonal to all others by two passes of classical Gram-Schmidt, each of two
    matrix-vector products ("twice is enough", Giraud, Langou, Rozloznik 2005), with one wait for the device.
    A unit vector ``y`` with ``A y = theta y`` gives ``x = Q'y`` with ``||H x - theta x|| <= sum_e |c_e . y|`` over the
    ends ``e`` of the sweeps (Parlett 1998, The Symmetric Eigenvalue Problem, 13.2, for one sweep, ``c = beta e_m``).

    Args:
        dim: Number of columns ``n`` in this process.
        limit: Largest number of rows.
        dtype: Type of the rows.
        device: Place of the rows.
        space: How inner products are taken; all processes of a sharded space take part.
        reserve: Whether to allocate all rows at once, so that growing never holds two copies.

    Attributes:
        total_dim: Number of columns over all processes.
        alphas: Diagonal of the tridiagonal matrix of the current sweep.
        betas: What lies beside it; both are emptied by a compression, which ends the tridiagonal form.
    """

    def __init__(
        self,
        dim: int,
        limit: int,
        dtype: torch.dtype,
        device: torch.device | str,
        space: Space = WHOLE,
        reserve: bool = False,
    ) -> None:
        self.space, self.dim = space, dim
        self.total_dim = space.dimension(dim)
        self.limit = min(limit, self.total_dim)
        self.rows, self.sweep_start, self.num_sweeps = 0, 0, 0
        self.ends: list[End] = []
        self.live: End | None = None  # the end of the current sweep
        self.broken = False  # whether the current sweep leads no further
        self.scale = 0.0  # largest ||H q|| seen
        self.alphas: list[float] = []
        self.betas: list[float] = []
        self._buffer = torch.empty((self.limit if reserve else 0, dim), dtype=dtype, device=device)
        self._projected = torch.zeros((len(self._buffer),) * 2, dtype=torch.float64)
        self._next = torch.empty(0)

    @property
    def full(self) -> bool:
        """Whether no further row fits."""
        return self.rows >= self.limit

    def begin(self, start: Tensor) -> None:
        """Start a sweep from a vector ``(n,)``, made orthogonal to all rows."""
        if self.live is not None:
            self.ends.append(self.live)
        self.num_sweeps += 1
        self.sweep_start, self.alphas, self.betas = self.rows, [], []
        vector = start.to(self._buffer)
        # Near the full dimension almost all of a random vector is projected away: repeat until its direction is clean.
        for _ in range(3):
            vector = self.project_out(vector / self.space.norm_of(vector).to(vector))[0]
        self._next = vector / self.space.norm_of(vector).to(vector)
        self.live, self.broken = None, False

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
        rest, column = self.project_out(product)
        sizes = self.space.norms(product, rest)
        numbers = torch.cat([column.to(sizes), sizes]).cpu().double()
        if not bool(torch.isfinite(numbers).all()):
            return False
        self._projected[: self.rows, self.rows - 1] = numbers[:-2]
        self.scale, beta = max(self.scale, float(numbers[-2])), float(numbers[-1])
        self.broken = beta <= _BREAKDOWN * torch.finfo(q.dtype).eps * self.scale
        if len(self.alphas) == self.rows - 1 - self.sweep_start:  # no compression since the sweep began
            self.alphas.append(float(numbers[-3]))
            self.betas.append(0.0 if self.broken else beta)
        self._next = q if self.broken else rest.div_(beta)
        self.live = None if self.broken else End.at_last(self.rows, beta, self._next)
        return True

    def projected(self) -> Tensor:
        """Return ``Q H Q'``, symmetric, shape ``(m, m)``."""
        upper = self._projected[: self.rows, : self.rows].triu()
        return upper + upper.triu(1).T

    def ritz(self) -> Ritz:
        """Return the eigenpairs of the projected matrix over all rows."""
        values, coefficients = torch.linalg.eigh(self.projected())
        bounds = torch.zeros_like(values)
        for end in self._all_ends() if self.rows < self.total_dim else []:  # nothing leads out of the whole space
            bounds += end.along(coefficients).abs()
        return Ritz(values, bounds, coefficients)

    def sweep_ritz(self) -> Ritz:
        """Return the eigenpairs of the current sweep's matrix alone, with residual bounds in that matrix."""
        values, coefficients = torch.linalg.eigh(self.projected()[self.sweep_start :, self.sweep_start :])
        bounds = (
            torch.zeros_like(values) if self.live is None else self.live.coupling[self.sweep_start :] @ coefficients
        )
        return Ritz(values, bounds.abs(), coefficients)

    def inside(self, vector: Tensor) -> Tensor:
        """Return the coefficients ``Q v`` of a vector ``(n,)``, shape ``(m,)``."""
        return self.space.products(self._buffer[: self.rows], vector)

    def vectors(self, coefficients: Tensor) -> Tensor:
        """Return ``Q' y`` for each column ``y``, shape ``(n, k)``."""
        return self._buffer[: self.rows].T @ coefficients.to(self._buffer)

    def take_end(self, coefficients: Tensor) -> Tensor:
        """Return the direction ``(n,)`` of the end that disturbs the given Ritz vectors ``(m, k)`` most; remove it."""
        if self.live is not None:
            self.ends.append(self.live)
            self.live, self.broken = None, True
        worst = max(self.ends, key=lambda end: float(end.along(coefficients).abs().max()))
        self.ends = [end for end in self.ends if end is not worst]
        return worst.direction

    def compress(self, coefficients: Tensor, sweep_start: int = 0) -> None:
        """Replace the rows by ``Y'Q``: all that is known about ``H`` stays true of the smaller basis.

        With Ritz vectors as ``Y`` this is the thick restart of Wu and Simon (2000), SIAM J. Matrix Anal. Appl. 22(2):
        the kept pairs keep their residuals, and the next row is coupled to each of them.

        Args:
            coefficients: Orthonormal columns ``Y``, shape ``(m, p)``, ``p < m``.
            sweep_start: Where the current sweep begins in the new rows.
        """
        self._clean_ends()
        projected, kept, m = self.projected(), coefficients.shape[1], self.rows
        change = coefficients.T.to(self._buffer)
        for i in range(0, self.dim, _COLUMNS):
            columns = self._buffer[:, i : i + _COLUMNS]
            columns[:kept] = change @ columns[:m]
        self._projected[:kept, :kept] = coefficients.T @ projected @ coefficients
        for end in self._all_ends():
            end.coupling = end.along(coefficients)
        self.rows, self.sweep_start = kept, sweep_start
        # The rows of this sweep are no Krylov vectors of its start any more: no count of steps can fit from here on.
        self.alphas, self.betas = [], []

    def project_out(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vector ``(n,)`` without its part in the rows, and that part's coefficients ``(m,)``."""
        Q = self._buffer[: self.rows]
        first = self.space.products(Q, vector)
        rest = torch.addmv(vector, Q.T, first.to(vector), alpha=-1)
        second = self.space.products(Q, rest)
        return torch.addmv(rest, Q.T, second.to(vector), alpha=-1), first + second

    def _clean_ends(self) -> None:
        """Take from the ends' directions what lies in later rows: those know it, and will be gone."""
        for end in self.ends:
            rest = self.project_out(end.direction)[0]
            length = float(self.space.norm_of(rest))
            end.coupling, end.direction = end.coupling * length, rest / (length or 1.0)

    def _all_ends(self) -> list[End]:
        """Return the ends of all sweeps, the current one's included."""
        return self.ends if self.live is None else [*self.ends, self.live]

    def _grow(self) -> None:
        """Make room for one more row."""
        capacity = self._buffer.shape[0]
        if self.rows < capacity:
            return
        capacity = min(capacity + _CHUNK, self.limit)
        buffer = self._buffer.new_empty((capacity, self.dim))
        projected = self._projected.new_zeros((capacity, capacity))
        buffer[: self.rows], projected[: self.rows, : self.rows] = self._buffer, self._projected
        self._buffer, self._projected = buffer, projected
