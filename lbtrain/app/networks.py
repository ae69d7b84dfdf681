"""Networks for small images: the study's convolutional one, a perceptron, and softmax regression."""

from collections.abc import Sequence

from torch import Tensor, nn


def _positive(**sizes: int) -> None:
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")


def _dropout(rate: float) -> nn.Module:
    if not 0 <= rate < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, got {rate!r}")
    # Without dropout there is no layer either, so that no random number is drawn.
    return nn.Dropout(rate) if rate else nn.Identity()


class ConvNet(nn.Module):
    """Classify with 3 x 3 convolutions, each followed by ReLU and 2 x 2 max pooling, then dropout and one dense layer.

    Args:
        in_channels: Channels of the images.
        image_size: Height and width of the images, in pixels.
        num_classes: Number of classes.
        channels: Filters of each convolution, from the input on.
        dropout: Probability that a feature is dropped before the dense layer.

    Raises:
        ValueError: If a size is below 1, or the poolings leave no pixel.
    """

    def __init__(
        self,
        in_channels: int = 1,
        image_size: int = 8,
        num_classes: int = 10,
        channels: Sequence[int] = (32, 64),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        _positive(in_channels=in_channels, image_size=image_size, num_classes=num_classes)
        side = image_size >> len(channels)
        if side < 1:
            raise ValueError(f"{len(channels)} poolings halve image_size={image_size} to nothing; use fewer channels")
        layers: list[nn.Module] = []
        width = in_channels
        for filters in channels:
            _positive(channels=filters)
            layers += [nn.Conv2d(width, filters, kernel_size=3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
            width = filters
        dense = nn.Linear(width * side * side, num_classes)
        self.layers = nn.Sequential(*layers, nn.Flatten(), _dropout(dropout), dense)

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores of the classes.

        Args:
            images: Shape (N, in_channels, image_size, image_size).

        Returns:
            Logits of shape (N, num_classes).
        """
        return self.layers(images)


class MLP(nn.Module):
    """Classify with dense layers and ReLU; images are flattened.

    Args:
        in_features: Values per sample.
        hidden: Units of each hidden layer, from the input on.
        num_classes: Number of classes.
        dropout: Probability that a hidden unit is dropped.

    Raises:
        ValueError: If a size is below 1.
    """

    def __init__(
        self, in_features: int = 64, hidden: Sequence[int] = (128,), num_classes: int = 10, dropout: float = 0.0
    ) -> None:
        super().__init__()
        _positive(in_features=in_features, num_classes=num_classes)
        layers: list[nn.Module] = [nn.Flatten()]
        width = in_features
        for units in hidden:
            _positive(hidden=units)
            layers += [nn.Linear(width, units), nn.ReLU(), _dropout(dropout)]
            width = units
        self.layers = nn.Sequential(*layers, nn.Linear(width, num_classes))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the scores of the classes.

        Args:
            inputs: Shape (N, ...), with in_features values per sample.

        Returns:
            Logits of shape (N, num_classes).
        """
        return self.layers(inputs)


class Linear(nn.Module):
    """Softmax regression, z = W x + b: a convex loss, whose Hessian at W = 0, b = 0 is known in closed form.

    At zero weights every class has probability 1/C, and the Hessian of the mean loss is
    kron((I - 11'/C) / C, mean(x x')) with x extended by 1, so its eigenvalues are those of mean(x x') over C,
    each C - 1 times, and zeros.

    Args:
        in_features: Values per sample.
        num_classes: Number of classes C.
        zero_init: Whether the weights start at zero rather than at random.

    Raises:
        ValueError: If a size is below 1.
    """

    def __init__(self, in_features: int = 64, num_classes: int = 10, zero_init: bool = True) -> None:
        super().__init__()
        _positive(in_features=in_features, num_classes=num_classes)
        self.dense = nn.Linear(in_features, num_classes)
        if zero_init:
            nn.init.zeros_(self.dense.weight)
            nn.init.zeros_(self.dense.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the scores of the classes.

        Args:
            inputs: Shape (N, ...), with in_features values per sample.

        Returns:
            Logits of shape (N, num_classes).
        """
        return self.dense(inputs.flatten(1))
