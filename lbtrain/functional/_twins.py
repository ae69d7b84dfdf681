"""Rows of a matrix that are equal up to sign."""

import torch
from torch import Tensor

# Row numbers, and for each the sign that makes it the first.
Twins = tuple[tuple[int, ...], tuple[int, ...]]


def twins(rows: Tensor, tol: float, *, signed: bool = True) -> list[Twins]:
    """Return the groups of two or more rows with ``|r_i - s r_j| <= tol max(|r_i|, |r_j|)``.

    Rows are first sorted by the size of their product with one random vector, which equal rows share, so that only
    neighbours are compared.

    Args:
        rows: Shape ``(n, m)``, float64 on the CPU.
        tol: Relative distance.
        signed: Whether a row may be the other's negative.

    Returns:
        The groups, in the order of their first rows.
    """
    if len(rows) < 2:
        return []
    probe = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(0), dtype=rows.dtype)
    key = rows @ probe
    key = key.abs() if signed else key
    # No row is farther than this from an equal one; the second term is the rounding of the products.
    reach = (tol + 1e-14) * torch.linalg.vector_norm(rows, dim=1) * torch.linalg.vector_norm(probe)
    ordered, order = key.sort()
    far = ordered.diff() > torch.maximum(reach[order][1:], reach[order][:-1])
    runs = torch.tensor_split(order, (far.nonzero().flatten() + 1).tolist())
    found = [group for run in runs if len(run) > 1 for group in _groups(rows, run.sort().values, tol, signed)]
    return sorted(found)


def _matches(rows: Tensor, first: Tensor, tol: float) -> Tensor:
    """Return which rows equal one, as booleans of shape ``(n,)``."""
    size = torch.maximum(torch.linalg.vector_norm(rows, dim=1), torch.linalg.vector_norm(first))
    same: Tensor = torch.linalg.vector_norm(rows - first, dim=1) <= tol * size
    return same


def _groups(rows: Tensor, run: Tensor, tol: float, signed: bool) -> list[Twins]:
    """Return the groups among the rows with these numbers."""
    found = []
    while len(run) > 1:
        taken, first = rows[run], rows[run[0]]
        same = _matches(taken, first, tol)
        opposite = _matches(-taken, first, tol) if signed else torch.zeros_like(same)
        member = same | opposite
        if int(member.sum()) > 1:
            signs = torch.where(same, 1, -1)[member]
            found.append((tuple(run[member].tolist()), tuple(signs.tolist())))
        run = run[~member] if bool(member[0]) else run[1:]  # a row that is not finite does not equal itself
    return found
