"""Data whose curvature is known in closed form, and data with a fault: a shift, wrong labels, or no number at all."""

import math

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lbtrain._lightning import LightningDataModule
from lbtrain.app.data import Batch, DigitsData, DigitsSplit, EpochSampler


def largest_curvature(inputs: Tensor) -> float:
    """Return the largest Hessian eigenvalue of least squares without a bias.

    L(W) = mean |W x - y|^2 / 2 has the Hessian I (x) mean x x' for every y, so each eigenvalue of the matrix mean x x'
    stands in it once per output.

    Args:
        inputs: Shape (N, ...); what follows N is one vector.

    Returns:
        The eigenvalue, in squared units of the inputs.
    """
    rows = inputs.flatten(1).double()
    return float(torch.linalg.eigvalsh(rows.T @ rows / len(rows))[-1])


class LeastSquaresData(LightningDataModule):
    """Serve linear targets y = W x + noise, with a Hessian that is chosen.

    x = R s with independent signs s = +-1 and R = Q sqrt(Lambda) for a random rotation Q; Lambda falls geometrically
    from 1 to 1 / condition. The inputs are then scaled so that the largest eigenvalue of mean x x', and with it that of
    the Hessian of `SquaredError`, is `lambda_max` exactly. Signs have no spread in their squares, so that batches agree
    on the curvature as far as they can.

    Args:
        batch_size: Samples per batch on each device.
        seed: Of the samples and of their order, 0 or more.
        samples: Number of samples.
        features: Values per sample.
        outputs: Targets per sample.
        lambda_max: Largest eigenvalue of the Hessian.
        condition: Ratio of the largest to the smallest eigenvalue, nearly (the signs are a finite sample).
        noise: Standard deviation of what the targets have beside the linear part; that of the linear part is about 1.
        nan_targets: Number of samples whose targets are not a number.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        batch_size: int = 16,
        seed: int = 0,
        samples: int = 512,
        features: int = 8,
        outputs: int = 10,
        lambda_max: float = 1.0,
        condition: float = 10.0,
        noise: float = 0.0,
        nan_targets: int = 0,
    ) -> None:
        super().__init__()
        counts = {"batch_size": batch_size, "samples": samples, "features": features, "outputs": outputs}
        for name, value in counts.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if not (math.isfinite(lambda_max) and lambda_max > 0 and condition >= 1 and noise >= 0):
            given = f"lambda_max={lambda_max}, condition={condition}, noise={noise}"
            raise ValueError(f"lambda_max must be above 0, condition at least 1 and noise at least 0, got {given}")
        if not 0 <= nan_targets <= samples:
            raise ValueError(f"nan_targets must lie between 0 and samples={samples}, got {nan_targets!r}")
        self.batch_size, self.seed = batch_size, seed
        generator = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
        spectrum = condition ** -torch.linspace(0, 1, features, dtype=torch.float64)
        rotation = torch.linalg.qr(draw(features, features))[0]
        inputs = draw(samples, features).sign() * spectrum.sqrt() @ rotation.T
        inputs *= math.sqrt(lambda_max / largest_curvature(inputs))
        exact = inputs @ (draw(features, outputs) / inputs.square().sum(1).mean().sqrt())
        targets = exact + noise * draw(samples, outputs)
        targets[torch.randperm(samples, generator=generator)[:nan_targets]] = math.nan
        self.dataset = TensorDataset(inputs.float(), targets.float())

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the training batches, in an order that depends on the seed and the epoch alone.

        Returns:
            Loader of (inputs, targets).
        """
        epoch = self.trainer.current_epoch if self.trainer is not None else 0
        return DataLoader(
            self.dataset,
            batch_size=self.batch_size,
            sampler=EpochSampler(len(self.dataset), self.seed, epoch),
            generator=torch.Generator().manual_seed(self.seed),
        )


class DigitsTargets(DigitsData):
    """Serve the digits with one-hot targets for squared errors, scaled so that the curvature is known.

    The images are multiplied by the number that makes the largest eigenvalue of mean x x' over the training images
    equal to `lambda_max`: that of the Hessian of a linear model without a bias under `SquaredError`.

    Args:
        batch_size: Images per batch on each device.
        seed: Seed of the split and of the training order, 0 or more.
        test_fraction: Share of all images that is kept for testing.
        val_fraction: Share of the remaining images that is kept for validation.
        lambda_max: Largest eigenvalue of the Hessian.
    """

    def __init__(
        self,
        batch_size: int = 64,
        seed: int = 0,
        test_fraction: float = 0.2,
        val_fraction: float = 0.1,
        lambda_max: float = 1.0,
    ) -> None:
        super().__init__(batch_size, seed, test_fraction, val_fraction)
        if not (math.isfinite(lambda_max) and lambda_max > 0):
            raise ValueError(f"lambda_max must be above 0, got {lambda_max!r}")
        self.lambda_max = lambda_max

    @property
    def split(self) -> DigitsSplit:
        """The three parts, made when first asked for."""
        if self._split is None:
            plain = super().split
            factor = math.sqrt(self.lambda_max / largest_curvature(plain.train.tensors[0]))
            parts = [_with_targets(part, factor) for part in (plain.train, plain.val, plain.test)]
            self._split = DigitsSplit(*parts, plain.mean, plain.std / factor)
        return self._split


def _with_targets(part: TensorDataset, factor: float) -> TensorDataset:
    """Return scaled images with one-hot targets."""
    images, labels = part.tensors
    return TensorDataset(factor * images, torch.nn.functional.one_hot(labels, 10).float())


class ShiftedDigits(DigitsData):
    """Serve the digits far from zero: pixels of spread 1 around `offset`, unless they are normalized.

    Args:
        batch_size: Images per batch on each device.
        seed: Seed of the split and of the training order, 0 or more.
        test_fraction: Share of all images that is kept for testing.
        val_fraction: Share of the remaining images that is kept for validation.
        offset: Mean of the training pixels, in their standard deviations.
        normalize: Whether the mean is taken off again.
    """

    def __init__(
        self,
        batch_size: int = 64,
        seed: int = 0,
        test_fraction: float = 0.2,
        val_fraction: float = 0.1,
        offset: float = 1000.0,
        normalize: bool = False,
    ) -> None:
        super().__init__(batch_size, seed, test_fraction, val_fraction)
        self.offset, self.normalize = offset, normalize

    @property
    def split(self) -> DigitsSplit:
        """The three parts, made when first asked for."""
        if self._split is None:
            plain = super().split
            shift = 0.0 if self.normalize else self.offset
            parts = [
                TensorDataset(part.tensors[0] + shift, part.tensors[1]) for part in (plain.train, plain.val, plain.test)
            ]
            self._split = DigitsSplit(*parts, plain.mean - shift * plain.std, plain.std)
        return self._split


class NoisyDigits(DigitsData):
    """Serve the digits with training labels of which a share is drawn at random, from all classes alike.

    With q = noise / 10 for each wrong class, no network that cannot know the draws has a mean loss below the entropy
    H = -(1 - 9 q) ln(1 - 9 q) - 9 q ln q: 1.44 nats at noise 0.4, of the 2.3 of a guess.

    Args:
        batch_size: Images per batch on each device.
        seed: Seed of the split, of the draws and of the training order, 0 or more.
        test_fraction: Share of all images that is kept for testing.
        val_fraction: Share of the remaining images that is kept for validation.
        noise: Probability that a training label is drawn anew.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        batch_size: int = 64,
        seed: int = 0,
        test_fraction: float = 0.2,
        val_fraction: float = 0.1,
        noise: float = 0.4,
    ) -> None:
        super().__init__(batch_size, seed, test_fraction, val_fraction)
        if not 0 <= noise <= 1:
            raise ValueError(f"noise must lie between 0 and 1, got {noise!r}")
        self.noise = noise

    @property
    def split(self) -> DigitsSplit:
        """The three parts, made when first asked for."""
        if self._split is None:
            plain = super().split
            images, labels = plain.train.tensors
            generator = torch.Generator().manual_seed(self.seed)
            drawn = torch.randint(0, 10, labels.shape, generator=generator)
            kept = torch.rand(labels.shape, generator=generator) >= self.noise
            train = TensorDataset(images, torch.where(kept, labels, drawn))
            self._split = DigitsSplit(train, plain.val, plain.test, plain.mean, plain.std)
        return self._split
