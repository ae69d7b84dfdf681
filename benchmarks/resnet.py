"""Residual networks as used on CIFAR: a 3 x 3 stem, no max pooling, so that the first stage sees all of 32 x 32.

He et al. (2016), arXiv 1512.03385, figure 5 left (basic block) and table 1 (18 layers), with batch normalization and
projection shortcuts; 11,173,962 parameters for 10 classes.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = _convolution(width_in, width, 3, stride)
        self.second = _convolution(width, width, 3)
        same = stride == 1 and width_in == width
        self.shortcut = nn.Identity() if same else _convolution(width_in, width, 1, stride)

    def forward(self, images: Tensor) -> Tensor:
        """Return features of shape (N, width, H / stride, W / stride)."""
        return functional.relu(self.second(functional.relu(self.first(images))) + self.shortcut(images))


class ResNet18(nn.Sequential):
    """Classify images with four stages of two blocks each; the last three stages halve the image.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the images.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__(*_stages((64, 128, 256, 512), 2, num_classes, in_channels))


class SmallResNet(nn.Sequential):
    """Classify images with one block per stage; each stage but the first halves the image.

    Args:
        widths: Channels of each stage.
        num_classes: Number of classes.
        in_channels: Channels of the images.
    """

    def __init__(self, widths: Sequence[int] = (16, 32, 64), num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__(*_stages(widths, 1, num_classes, in_channels))


def _stages(widths: Sequence[int], blocks: int, num_classes: int, in_channels: int) -> list[nn.Module]:
    layers = [_convolution(in_channels, widths[0], 3), nn.ReLU()]
    width_in = widths[0]
    for i, width in enumerate(widths):
        layers.append(Block(width_in, width, 2 if i else 1))
        layers += [Block(width, width, 1) for _ in range(blocks - 1)]
        width_in = width
    return [*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width_in, num_classes)]


def _convolution(width_in: int, width: int, kernel: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(width_in, width, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width))
