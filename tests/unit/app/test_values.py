"""Values of the wrong plain type are found before anything is built."""

import pytest
import torch

from lbtrain._lightning import Trainer
from lbtrain.app.data import DigitsData
from lbtrain.app.values import wrong_type
from lbtrain.callbacks.sam import SAM


def function(rate: float, count: int | None = None, words: str = "", anything=3, odd: "Missing" = 1):  # noqa: F821
    """Take some arguments."""


def plain(rate: float, flag: bool = False, count: int = None, words: str = ""):  # noqa: RUF013 - as older code writes it
    """Take some arguments."""


@pytest.mark.parametrize(
    ("target", "name", "value", "message"),
    [
        (Trainer, "max_epochs", "three", "must be int or null, got 'three'"),
        (Trainer, "max_epochs", 2.5, "must be int or null, got 2.5"),
        (torch.optim.SGD, "lr", "big", "must be float, got 'big'"),
        (torch.optim.SGD, "momentum", None, "must be float, got null"),
        (DigitsData, "batch_size", "abc", "must be int, got 'abc'"),
        (SAM, "rho", "0.1x", "must be float, got '0.1x'"),
        (plain, "flag", "yes please", "must be bool, got 'yes please'"),
    ],
)
def test_a_wrong_type_is_told(target, name, value, message):
    assert wrong_type(target, name, value) == message


@pytest.mark.parametrize(
    ("target", "name", "value"),
    [
        (Trainer, "max_epochs", None),
        (Trainer, "limit_train_batches", 0.5),
        (Trainer, "limit_train_batches", 3),
        (Trainer, "devices", "auto"),
        (torch.optim.SGD, "lr", 1),
        (torch.optim.SGD, "lr", 0.1),
        (plain, "count", None),
        (plain, "words", 3),
        (plain, "absent", "x"),
        (function, "rate", "x"),  # another annotation of it names what is not there
    ],
)
def test_what_fits_or_cannot_be_told_passes(target, name, value):
    assert wrong_type(target, name, value) is None
