"""A ReLU network without biases, whose layers can be rescaled without a change of its function."""

import torch
from torch import Tensor, nn

from lbtrain.functional.hvp import MeanLoss
from tests.problems import generator, leaf


class ReluNetwork:
    """``softplus(-y V relu(W x))`` on random data; ``W -> D W``, ``V -> V D^-1`` with ``D`` positive and diagonal."""

    def __init__(self, factor: float | Tensor = 1.0, *, height: float = 1.0) -> None:
        D = torch.as_tensor(factor, dtype=torch.float64).expand(4)
        draw = lambda seed, *shape: torch.randn(*shape, generator=generator(seed), dtype=torch.float64)
        self.W, self.V = leaf(D[:, None] * draw(1, 4, 3)), leaf(draw(2, 2, 4) / D)
        self.x, self.y = draw(3, 20, 3), draw(4, 20, 2).sign()
        self.params, self.height = [self.W, self.V], height

    def loss(self, batch_size: int = 20) -> MeanLoss:
        """Return the loss, times ``height``, in batches of ``batch_size``."""
        batches = list(zip(self.x.split(batch_size), self.y.split(batch_size), strict=True))
        losses = [
            lambda x=x, y=y: self.height * nn.functional.softplus(-y * ((x @ self.W.T).relu() @ self.V.T)).mean()
            for x, y in batches
        ]
        return MeanLoss(self.params, losses, [len(x) / 20 for x, _ in batches])
