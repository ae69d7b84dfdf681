"""A perceptron whose start and whose activation can be wrong in the ways that a diagnosis must recognize."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


class _WrongTanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        outputs = inputs.tanh()
        ctx.save_for_backward(outputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (outputs,) = ctx.saved_tensors
        return gradient * (1 - outputs)  # the square is missing: d tanh(x) / dx = 1 - tanh(x)^2


class WrongTanh(nn.Module):
    """The hyperbolic tangent as a function of its own, with a slip in its backward pass: 1 - y in place of 1 - y^2."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the right values, whose gradient will be wrong.

        Args:
            inputs: Any shape.

        Returns:
            The tangents, of the same shape.
        """
        return _WrongTanh.apply(inputs)


class DetachedNorm(nn.Module):
    """Scale each sample to unit mean square by a norm that is detached, as though the norm did not depend on weights.

    y = tanh(x) / r with r = sqrt(mean tanh(x)^2); autograd then misses the part of the gradient that goes through r.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the scaled values.

        Args:
            inputs: Shape (N, units).

        Returns:
            Shape (N, units).
        """
        outputs = inputs.tanh()
        return outputs / outputs.square().mean(1, keepdim=True).sqrt().clamp_min(1e-6).detach()


class Threshold(nn.Module):
    """The sign of the input: 1 or -1, with derivative 0 wherever it has one."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the signs.

        Args:
            inputs: Any shape.

        Returns:
            The signs, of the same shape.
        """
        return inputs.sign()


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "linear": nn.Identity,
    "threshold": Threshold,
    "wrong_tanh": WrongTanh,
    "detached_norm": DetachedNorm,
}


class Perceptron(nn.Module):
    """Dense layers whose start is an argument; with the defaults a sound network.

    A weight matrix is W = equal_scale * U + init_scale * V, with normal entries of variance 2 / fan_in (He et al.,
    2015). Those of V are independent; U makes the units of a hidden layer copies of one another, with equal rows in
    their own matrix and equal columns in the next.

    Args:
        in_features: Values per sample.
        hidden: Units of each hidden layer, from the input on.
        num_classes: Outputs.
        activation: One of `ACTIVATIONS`, after each hidden layer.
        init_scale: Scale of what is different from unit to unit, 1 for He's.
        equal_scale: Scale of what all units of a layer have in common.
        bias: First value of the biases of the hidden layers.
        batch_norm: Whether batch normalization stands before each activation.
        fixed_output: Whether the last layer stays as it was drawn, as in a committee machine.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        in_features: int = 64,
        hidden: Sequence[int] = (64,),
        num_classes: int = 10,
        activation: str = "relu",
        init_scale: float = 1.0,
        equal_scale: float = 0.0,
        bias: float = 0.0,
        batch_norm: bool = False,
        fixed_output: bool = False,
    ) -> None:
        super().__init__()
        sizes = [in_features, *hidden, num_classes]
        if not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes):
            raise ValueError(f"in_features, hidden and num_classes must be whole numbers of at least 1, got {sizes}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        layers: list[nn.Module] = [nn.Flatten()]
        for width, units in pairwise(sizes[:-1]):
            # Copies of one another read the same inputs, and each of them tells the same to all that comes after.
            same = torch.randn(1, 1 if len(layers) > 1 else width)
            norm = [nn.BatchNorm1d(units)] if batch_norm else []
            layers += [_dense(width, units, init_scale, equal_scale * same, bias), *norm, ACTIVATIONS[activation]()]
        last = _dense(sizes[-2], num_classes, init_scale, equal_scale * torch.randn(num_classes, 1), 0.0)
        self.layers = nn.Sequential(*layers, last.requires_grad_(not fixed_output))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs, such as the scores of classes.

        Args:
            inputs: Shape (N, ...), with in_features values per sample.

        Returns:
            Shape (N, num_classes).
        """
        return self.layers(inputs)


class LinearMap(nn.Module):
    """A linear map without a bias: under `SquaredError` a quadratic in its weights.

    Args:
        in_features: Values per sample.
        outputs: Values that come out.
        init_scale: Standard deviation of the first weights.
    """

    def __init__(self, in_features: int = 64, outputs: int = 10, init_scale: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(init_scale * torch.randn(outputs, in_features))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs.

        Args:
            inputs: Shape (N, ...), with in_features values per sample.

        Returns:
            Shape (N, outputs).
        """
        return inputs.flatten(1) @ self.weight.T


class ResidualNet(nn.Module):
    """A small residual network with batch normalization, for images of one channel: a sound one, as most use it.

    A convolution, then blocks x -> relu(x + N(conv(relu(N(conv(x)))))), with N for batch normalization, the mean over
    positions and a dense layer.

    Args:
        num_classes: Outputs.
        width: Filters of each convolution.
        blocks: Residual blocks.
    """

    def __init__(self, num_classes: int = 10, width: int = 16, blocks: int = 1) -> None:
        super().__init__()
        convolved = lambda channels: [
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        ]
        self.stem = nn.Sequential(*convolved(1), nn.ReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(*convolved(width), nn.ReLU(), *convolved(width)) for _ in range(blocks)
        )
        self.dense = nn.Linear(width, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the scores of the classes.

        Args:
            inputs: Shape (N, 1, height, width).

        Returns:
            Shape (N, num_classes).
        """
        features = self.stem(inputs)
        for block in self.blocks:
            features = torch.relu(features + block(features))
        return self.dense(features.mean((2, 3)))


def _dense(width: int, units: int, init_scale: float, same: Tensor, bias: float) -> nn.Linear:
    """Return a dense layer at its start."""
    layer, spread = nn.Linear(width, units), math.sqrt(2 / width)
    with torch.no_grad():
        layer.weight.copy_(spread * (same + init_scale * torch.randn(units, width)))
        layer.bias.fill_(bias)
    return layer
