"""The networks and data on which the benchmarks of curvature run: scikit-learn's digits, in two shapes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from resnet import SmallResNet
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from lbtrain.app.networks import ConvNet
from lbtrain.functional.operator import HessianOperator

Batch = tuple[Tensor, Tensor]
TRAIN_SAMPLES = 1437  # of 1,797: the share of 80 % that the paper's network is trained on


@dataclass
class Problem:
    """A trained network in eval mode and the batches of its training data; the last one is shorter."""

    name: str
    build: Callable[[], nn.Module]
    network: nn.Module
    batches: list[Batch]

    def double(self) -> "Problem":
        """Return a copy in float64."""
        copy = self.build().double().eval()
        copy.load_state_dict(self.network.state_dict())
        return Problem(self.name, self.build, copy, [(x.double(), y) for x, y in self.batches])

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean loss of a batch."""
        return cross_entropy(self.network(batch[0]), batch[1])

    def operator(self, engine: str = "auto", graph_memory_bytes: int = 2**32) -> HessianOperator:
        """Return the Hessian of the mean loss over all samples, as a callback would build it."""
        params = list(self.network.parameters())
        return HessianOperator(self.loss, params, self.batches, engine=engine, graph_memory_bytes=graph_memory_bytes)


def digits(size: int, channels: int, count: int) -> Batch:
    """Return that many of the digits, enlarged to ``size x size`` and repeated over the channels."""
    data = load_digits()
    keep = np.random.default_rng(0).permutation(len(data.target))[:count]
    images = torch.tensor(data.images[keep], dtype=torch.float32).unsqueeze(1)
    x = interpolate((images - images.mean()) / images.std(), size=(size, size), mode="bilinear", align_corners=False)
    return x.repeat(1, channels, 1, 1), torch.tensor(data.target[keep])


def trained(
    name: str, build: Callable[[], nn.Module], data: Batch, *, epochs: int, lr: float, batch_size: int
) -> Problem:
    """Return the network after SGD with momentum, and its data in batches of ``batch_size``."""
    torch.manual_seed(0)
    network = build()
    x, y = data
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
    return Problem(name, build, network.eval(), list(zip(x.split(batch_size), y.split(batch_size), strict=True)))


def convnet(samples: int = TRAIN_SAMPLES, width: int = 32, epochs: int = 10) -> Problem:
    """Return the paper's network, two convolutions and one dense layer, on digits of 28 x 28."""
    build = partial(ConvNet, 1, 28, 10, [width, 2 * width], 0.5)
    return trained("convnet", build, digits(28, 1, samples), epochs=epochs, lr=0.01, batch_size=128)


def resnet(samples: int = 200) -> Problem:
    """Return a residual network of 7 layers with batch normalization, on digits in CIFAR's shape."""
    build = partial(SmallResNet, (16, 32, 64))
    return trained("resnet", build, digits(32, 3, samples), epochs=6, lr=0.02, batch_size=128)


PROBLEMS: dict[str, Callable[[], Problem]] = {"convnet": convnet, "resnet": resnet}
