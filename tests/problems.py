"""Problems whose curvature is known in closed form; float64 unless said otherwise."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lbtrain.functional.hvp import MeanLoss


def generator(seed: int = 0) -> torch.Generator:
    """Return a seeded source of random numbers."""
    return torch.Generator().manual_seed(seed)


def rotation(n: int, seed: int = 0) -> Tensor:
    """Return a random orthogonal matrix ``(n, n)``."""
    return torch.linalg.qr(torch.randn(n, n, generator=generator(seed), dtype=torch.float64))[0]


def matrix_with(spectrum: Sequence[float], seed: int = 0) -> Tensor:
    """Return a symmetric matrix with these eigenvalues, rotated so that a diagonal cannot hide a fault."""
    Q = rotation(len(spectrum), seed)
    A = Q @ torch.diag(torch.tensor(spectrum, dtype=torch.float64)) @ Q.T
    return (A + A.T) / 2


def descending(values: Tensor) -> list[float]:
    """Return eigenvalues as floats, the largest first."""
    return sorted(values.tolist(), reverse=True)


def leaf(values: Sequence[float] | Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return a parameter."""
    return torch.as_tensor(values, dtype=dtype).clone().requires_grad_()


def quadratic(A: Tensor, w: Tensor, b: Tensor | None = None, height: float = 0.0) -> MeanLoss:
    """Return ``height + b'w + w'Aw / 2`` in one batch."""
    linear = torch.zeros_like(w) if b is None else b
    return MeanLoss([w], [lambda: height + linear @ w + 0.5 * w @ (A @ w)], [1.0])


def split_quadratic(A: Tensor, w: Tensor, shares: Sequence[float]) -> MeanLoss:
    """Return the same quadratic as batches of unequal shares, whose own matrices differ and only average to ``A``."""
    n = A.shape[0]
    parts = [matrix_with(torch.linspace(-1, 1, n).tolist(), seed=50 + i) for i in range(len(shares) - 1)]
    last = (A - sum(s * P for s, P in zip(shares, parts, strict=False))) / shares[-1]
    losses = [lambda M=M: 0.5 * w @ (M @ w) for M in [*parts, last]]
    return MeanLoss([w], losses, shares)


class LinearRegression:
    """``mean (x.W - y)^2`` over entries, ``c`` outputs: ``H = 2 / (N c) I_c (x) X'X``, each eigenvalue ``c`` times.

    ``X = sqrt(N) U S V'`` has the chosen singular values, so that ``X'X / N`` has the spectrum ``squares``.
    """

    def __init__(self, squares: Sequence[float], outputs: int = 2, samples: int = 23) -> None:
        d = len(squares)
        U = rotation(samples, 1)[:, :d]
        self.X = samples**0.5 * U @ torch.diag(torch.tensor(squares, dtype=torch.float64).sqrt()) @ rotation(d, 2)
        self.Y = torch.randn(samples, outputs, generator=generator(3), dtype=torch.float64)
        self.W = leaf(torch.randn(d, outputs, generator=generator(4), dtype=torch.float64))
        self.spectrum = sorted([2 * s / outputs for s in squares for _ in range(outputs)], reverse=True)

    def loss(self, batch_size: int) -> MeanLoss:
        """Return the loss in batches of ``batch_size``, the last one short."""
        batches = list(zip(self.X.split(batch_size), self.Y.split(batch_size), strict=True))
        losses = [lambda x=x, y=y: nn.functional.mse_loss(x @ self.W, y) for x, y in batches]
        return MeanLoss([self.W], losses, [len(x) / len(self.X) for x, _ in batches])


class SoftmaxRegression:
    """Cross-entropy of ``x.W`` at ``W = 0``: ``H = (I - 11'/C) / C (x) X'X / N``, so ``mu_j / C`` ``C - 1`` times."""

    def __init__(self, inputs: int = 4, classes: int = 5, samples: int = 40) -> None:
        self.X = torch.randn(samples, inputs, generator=generator(5), dtype=torch.float64)
        self.y = torch.randint(0, classes, (samples,), generator=generator(6))
        self.W = leaf(torch.zeros(inputs, classes, dtype=torch.float64))
        mu = torch.linalg.eigvalsh(self.X.T @ self.X / samples)
        self.spectrum = sorted([m / classes for m in mu.tolist()] * (classes - 1) + [0.0] * inputs, reverse=True)

    def loss(self) -> MeanLoss:
        """Return the loss in one batch."""
        return MeanLoss([self.W], [lambda: nn.functional.cross_entropy(self.X @ self.W, self.y)], [1.0])


class SmallNetwork:
    """A tanh network with cross-entropy on random data: no closed form, but a dense Hessian of 59 rows."""

    def __init__(self, dtype: torch.dtype = torch.float64, samples: int = 30) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 2)).to(dtype)
        self.X = torch.randn(samples, 4, generator=generator(8), dtype=torch.float64).to(dtype)
        self.y = torch.randint(0, 2, (samples,), generator=generator(9))
        self.params = list(self.net.parameters())

    def loss(self, batch_size: int, **options: object) -> MeanLoss:
        """Return the loss in batches of ``batch_size``, the last one short."""
        batches = list(zip(self.X.split(batch_size), self.y.split(batch_size), strict=True))
        losses = [lambda x=x, y=y: nn.functional.cross_entropy(self.net(x), y) for x, y in batches]
        return MeanLoss(self.params, losses, [len(x) / len(self.X) for x, _ in batches], **options)

    def dense_hessian(self) -> Tensor:
        """Return the Hessian ``(n, n)`` by forward-over-reverse differentiation, a route of its own."""
        names, sizes = [n for n, _ in self.net.named_parameters()], [p.numel() for p in self.params]
        shapes = [p.shape for p in self.params]

        def mean_loss(flat: Tensor) -> Tensor:
            pieces = [x.view(s) for x, s in zip(flat.split(sizes), shapes, strict=True)]
            outputs = torch.func.functional_call(self.net, dict(zip(names, pieces, strict=True)), (self.X,))
            return nn.functional.cross_entropy(outputs, self.y)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch.func uses torch.jit.script within
            return torch.func.hessian(mean_loss)(torch.cat([p.detach().reshape(-1) for p in self.params]))
