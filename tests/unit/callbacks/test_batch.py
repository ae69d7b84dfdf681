"""Samples of batches of any structure."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch

from lbtrain.callbacks._batch import batch_size, select

Pair = namedtuple("Pair", "x y")
X, Y = torch.arange(8.0).reshape(4, 2), torch.arange(4)


@dataclass
class Sample:
    x: torch.Tensor
    y: torch.Tensor


@pytest.mark.parametrize(
    ("batch", "inputs"),
    [
        (X, lambda b: b),
        ([X, Y], lambda b: b[0]),
        ((X, Y), lambda b: b[0]),
        (Pair(X, Y), lambda b: b.x),
        ({"x": X, "y": Y, "scale": 2.0}, lambda b: b["x"]),
        (OrderedDict(x=X, mask=[Y]), lambda b: b["x"]),
        (Sample(X, Y), lambda b: b.x),
        ([X, torch.tensor(3.0)], lambda b: b[0]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_selects_samples_and_keeps_the_structure(batch, inputs):
    assert batch_size(batch) == 4
    part = select(batch, [2, 0, 2], 4)
    assert type(part) is type(batch)
    assert torch.equal(inputs(part), X[[2, 0, 2]])


def test_lists_of_names_are_selected_too():
    part = select({"x": X, "names": ["a", "b", "c", "d"], "title": "all"}, [3, 1], 4)
    assert part["names"] == ["d", "b"]
    assert part["title"] == "all"


@pytest.mark.parametrize("batch", [[X, torch.zeros(3)], torch.tensor(1.0), "text", []])
def test_samples_that_cannot_be_counted(batch):
    assert batch_size(batch) is None
