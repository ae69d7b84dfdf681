"""Handwritten digits that ship with scikit-learn: real data, offline, in a second."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, TensorDataset

from lbtrain._lightning import LightningDataModule

Batch = tuple[Tensor, Tensor]


def _check_int(name: str, value: int, least: int) -> int:
    # bool is an int to Python, and `batch_size: true` is a slip.
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    return value


def _check_fraction(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and 0 < value < 1):
        raise ValueError(f"{name} must lie strictly between 0 and 1, for example 0.2, got {value!r}")
    return float(value)


class EpochSampler(Sampler[int]):
    """Shuffle by a permutation that depends on the seed and the epoch alone.

    No draw comes from a stream with a history, so epoch 7 of a resumed run visits the samples in the order of epoch 7
    of the uninterrupted run. Lightning calls `set_epoch` when an epoch starts.

    Args:
        size: Number of samples.
        seed: Seed of the order, 0 or more.
        epoch: Epoch to start at, counted from 0.

    Raises:
        ValueError: If an argument is not an integer, or is negative.
    """

    def __init__(self, size: int, seed: int, epoch: int = 0) -> None:
        self.size = _check_int("size", size, 0)
        self.seed = _check_int("seed", seed, 0)
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next pass follows.

        Args:
            epoch: Epoch, counted from 0.
        """
        self.epoch = _check_int("epoch", epoch, 0)

    def __iter__(self) -> Iterator[int]:
        # SeedSequence mixes the pair: with the sum, seed 0 at epoch 1 would repeat seed 1 at epoch 0.
        state = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(state))
        return iter(torch.randperm(self.size, generator=generator).tolist())

    def __len__(self) -> int:
        return self.size


@dataclass(frozen=True)
class DigitsSplit:
    """The three parts of the digits, standardized.

    Attributes:
        train: Images of shape (N, 1, 8, 8), float32, in training standard deviations; labels of shape (N,), int64.
        val: The same for validation.
        test: The same for testing.
        mean: Mean of the training pixels, in grey levels (0 to 16).
        std: Standard deviation of the training pixels, in grey levels.
    """

    train: TensorDataset
    val: TensorDataset
    test: TensorDataset
    mean: float
    std: float


def split_digits(seed: int, test_fraction: float = 0.2, val_fraction: float = 0.1) -> DigitsSplit:
    """Split the 1,797 digits by class, and standardize them with the statistics of the training part.

    x = (pixel - mean) / std, with one mean and one std over all training pixels. Not one pair per pixel: some pixels of
    the border are 0 in all training images and others nearly so, and a division by their tiny spread would make the
    quietest pixels the loudest inputs; neighbours also keep their common scale, which a convolution relies on.

    Args:
        seed: Seed of both splits, 0 or more.
        test_fraction: Share of all images that is kept for testing.
        val_fraction: Share of the remaining images that is kept for validation.

    Returns:
        The three parts and the statistics.

    Raises:
        ValueError: If a fraction leaves a part without every class.
    """
    digits = load_digits()
    labels = digits.target
    rows = np.arange(len(labels))
    try:
        rest, test = train_test_split(rows, test_size=test_fraction, stratify=labels, random_state=seed)
        train, val = train_test_split(rest, test_size=val_fraction, stratify=labels[rest], random_state=seed)
    except ValueError as error:
        given = f"test_fraction={test_fraction} and val_fraction={val_fraction}"
        raise ValueError(f"{given} leave a part without all 10 classes; take fractions nearer 0.2: {error}") from error
    pixels = digits.images[train]
    mean, std = float(pixels.mean()), float(pixels.std())

    def part(rows: np.ndarray) -> TensorDataset:
        images = torch.from_numpy((digits.images[rows] - mean) / std).to(torch.float32).unsqueeze(1)
        return TensorDataset(images, torch.from_numpy(labels[rows]).to(torch.int64))

    return DigitsSplit(part(train), part(val), part(test), mean, std)


class DigitsData(LightningDataModule):
    """Serve scikit-learn's digits: 1,797 images of 8 x 8 pixels in 10 classes.

    Args:
        batch_size: Images per batch on each device.
        seed: Seed of the split and of the training order, 0 or more.
        test_fraction: Share of all images that is kept for testing.
        val_fraction: Share of the remaining images that is kept for validation.
        num_workers: Processes that load batches; 0 loads in the training process, which is fastest for data in memory.
        drop_last: Whether training drops a last batch that is not full.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        batch_size: int = 64,
        seed: int = 0,
        test_fraction: float = 0.2,
        val_fraction: float = 0.1,
        num_workers: int = 0,
        drop_last: bool = False,
    ) -> None:
        super().__init__()
        self.batch_size = _check_int("batch_size", batch_size, 1)
        self.seed = _check_int("seed", seed, 0)
        if seed >= 2**32:
            raise ValueError(f"seed must be below 2**32, the range of scikit-learn's splits, got {seed}")
        self.test_fraction = _check_fraction("test_fraction", test_fraction)
        self.val_fraction = _check_fraction("val_fraction", val_fraction)
        self.num_workers = _check_int("num_workers", num_workers, 0)
        self.drop_last = bool(drop_last)
        self._split: DigitsSplit | None = None

    @property
    def split(self) -> DigitsSplit:
        """The three parts, made when first asked for."""
        if self._split is None:
            self._split = split_digits(self.seed, self.test_fraction, self.val_fraction)
        return self._split

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the training batches, in an order that depends on the seed and the epoch alone.

        Returns:
            Loader of (images, labels), shuffled by `EpochSampler`.
        """
        # The first pass of a resumed run opens the loader before Lightning has set its epoch.
        epoch = self.trainer.current_epoch if self.trainer is not None else 0
        sampler = EpochSampler(len(self.split.train), self.seed, epoch)
        return self._loader(self.split.train, sampler=sampler, drop_last=self.drop_last)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the validation batches.

        Returns:
            Loader of (images, labels), in a fixed order.
        """
        return self._loader(self.split.val)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the test batches.

        Returns:
            Loader of (images, labels), in a fixed order.
        """
        return self._loader(self.split.test)

    def _loader(
        self, dataset: TensorDataset, sampler: Sampler[int] | None = None, drop_last: bool = False
    ) -> DataLoader[Batch]:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            # A loader draws a seed for its workers at every pass; from its own stream, the global one stays untouched.
            generator=torch.Generator().manual_seed(self.seed),
        )
