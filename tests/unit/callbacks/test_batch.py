"""Samples of batches of any structure."""

import warnings
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from lbtrain.callbacks._batch import batch_size, describe, select

Pair = namedtuple("Pair", "x y")
X, Y = torch.arange(8.0).reshape(4, 2), torch.arange(4)
# Four sequences of different lengths, and four images of different heights.
RAGGED = [torch.full((n,), float(i)) for i, n in enumerate([5, 2, 4, 2])]
IMAGES = [torch.full((3, n, 6), float(i)) for i, n in enumerate([5, 2, 4, 2])]
EQUAL_IMAGES = [torch.full((3, 5, 6), float(i)) for i in range(4)]
BOXES = [{"boxes": torch.full((n, 4), float(i)), "labels": torch.zeros(n)} for i, n in enumerate([1, 3, 2, 5])]


@dataclass
class Sample:
    x: torch.Tensor
    y: torch.Tensor


class Graph:
    """Stands for a library's own class, which cannot be split."""


def nested(tensors, layout=torch.strided):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The PyTorch API of nested tensors is in prototype stage")
        return torch.nested.nested_tensor(tensors, layout=layout)


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
        ([X, X + 1, X + 2, X + 3], lambda b: b[0]),  # four fields, not four samples
        ({"x": X, "names": ["one", "two"], "table": np.zeros(7)}, lambda b: b["x"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_selects_samples_and_keeps_the_structure(batch, inputs):
    assert batch_size(batch) == 4
    part = select(batch, [2, 0, 2], 4)
    assert type(part) is type(batch)
    assert torch.equal(inputs(part), X[[2, 0, 2]])


@pytest.mark.parametrize(
    ("batch", "numbers"),
    [
        (RAGGED, lambda b: [x[0] for x in b]),
        ({"x": RAGGED, "y": list(Y)}, lambda b: [x[0] for x in b["x"]]),
        ({"x": RAGGED, "y": list(Y)}, lambda b: b["y"]),
        ({"x": RAGGED, "names": ["a"] * 3}, lambda b: [x[0] for x in b["x"]]),
        ({"x": RAGGED, "y": RAGGED[::-1]}, lambda b: [3 - y[0] for y in b["y"]]),
        ((tuple(RAGGED), Y), lambda b: [x[0] for x in b[0]]),
        (Pair(RAGGED, Y), lambda b: b.y),
        (Sample(RAGGED, RAGGED), lambda b: [y[0] for y in b.y]),
        ((IMAGES, BOXES), lambda b: [t["boxes"][0, 0] for t in b[1]]),
        ((IMAGES, BOXES), lambda b: [x[0, 0, 0] for x in b[0]]),
        ((EQUAL_IMAGES, BOXES), lambda b: [x[0, 0, 0] for x in b[0]]),
        (BOXES, lambda b: [t["boxes"][0, 0] for t in b]),
        ([(x, t) for x, t in zip(RAGGED, Y, strict=True)], lambda b: [y for _, y in b]),
        ([["a", 0], ["b", 1], ["c", 2], ["d", 3]], lambda b: [y for _, y in b]),
        (["0", "1", "2", "3"], lambda b: map(int, b)),
        ({"text": ["a", "b", "c", "d"], "label": [0, 1, 2, 3]}, lambda b: b["label"]),
        ({"text": ["a", "b", "c", "d"], "label": np.arange(4)}, lambda b: b["label"]),
        (np.arange(4), lambda b: b),
        ({"x": [np.full(n, i) for i, n in enumerate([5, 2, 4, 2])]}, lambda b: [x[0] for x in b["x"]]),
        ((nested(RAGGED), Y), lambda b: [x[0] for x in b[0].unbind()]),
        (nested(RAGGED), lambda b: [x[0] for x in b.unbind()]),
        (nested(RAGGED, torch.jagged), lambda b: [x[0] for x in b.unbind()]),
        (pack_sequence(RAGGED, enforce_sorted=False), lambda b: pad_packed_sequence(b)[0][0]),
        ([pack_sequence(RAGGED, enforce_sorted=False), Y], lambda b: pad_packed_sequence(b[0])[0][0]),
    ],
)
def test_selects_whole_samples_of_ragged_batches(batch, numbers):
    assert batch_size(batch) == 4
    part = select(batch, [2, 0, 2], 4)
    assert type(part) is type(batch)
    assert [int(i) for i in numbers(part)] == [2, 0, 2]


def test_a_ragged_batch_keeps_each_sample_as_it_is():
    part = select({"x": RAGGED, "y": list(Y)}, [2, 0], 4)
    assert [x is y for x, y in zip(part["x"], [RAGGED[2], RAGGED[0]], strict=True)] == [True, True]
    packed = select(pack_sequence(RAGGED, enforce_sorted=False), [2, 3], 4)
    padded, lengths = pad_packed_sequence(packed, batch_first=True)
    assert lengths.tolist() == [4, 2]
    assert torch.equal(padded, torch.tensor([[2.0, 2, 2, 2], [3, 3, 0, 0]]))


def test_samples_that_happen_to_be_as_long_as_the_batch_stay_whole():
    batch = {"x": [torch.zeros(2), torch.ones(2)], "y": [torch.zeros(5), torch.ones(3)]}
    assert batch_size(batch) == 2
    part = select(batch, [1], 2)
    assert [len(x) for x in part["x"]] == [2]
    assert torch.equal(part["x"][0], torch.ones(2))


def test_lists_of_names_are_selected_too():
    part = select({"x": X, "names": ["a", "b", "c", "d"], "title": "all"}, [3, 1], 4)
    assert part["names"] == ["d", "b"]
    assert part["title"] == "all"


@pytest.mark.parametrize(
    "batch",
    [
        [X, torch.zeros(3)],
        (X, torch.zeros(3, 2)),  # a tuple in front is never a list of samples
        torch.tensor(1.0),
        "text",
        [],
        {},
        None,
        Graph(),
        {"graph": Graph(), "x": X, "edges": torch.zeros(2, 9)},
        {"graph": {"x": torch.zeros(9, 2), "edges": torch.zeros(2, 5)}, "y": torch.zeros(9)},
        {"text": ["a", "b"], "label": [1, 2, 3]},
        ((RAGGED, RAGGED[:3])),
    ],
    ids=describe,
)
def test_samples_that_cannot_be_counted(batch):
    assert batch_size(batch) is None


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        (X, "Tensor(4, 2)"),
        ([X, Y], "list: Tensor(4, 2), Tensor(4)"),
        ({"ids": X, "graph": Graph()}, "dict: ids Tensor(4, 2), graph Graph"),
        (Pair(X, None), "Pair: x Tensor(4, 2), y NoneType"),
        (Sample(X, [Y, 1.0]), "Sample: x Tensor(4, 2), y list(Tensor(4), float)"),
        (RAGGED * 3, "list of 12: Tensor(5), Tensor(2), Tensor(4), Tensor(2), ..."),
        ((IMAGES[:1], BOXES[:1]), "tuple: list(Tensor(3, 5, 6)), list(dict(boxes Tensor(1, 4), labels Tensor(1)))"),
        ([[[[[X]]]]], "list: list(list(list of 1))"),
        (pack_sequence(RAGGED, enforce_sorted=False), "PackedSequence"),
        (np.zeros((3, 1)), "ndarray(3, 1)"),
        (nested(RAGGED), "nested Tensor of 4"),
        ("text", "str"),
        ([], "list of 0"),
        ({str(i): i for i in range(9)}, "dict: " + ", ".join(f"{i} int" for i in range(8)) + ", ..."),
    ],
)
def test_describes_a_batch_in_one_line(batch, text):
    assert describe(batch) == text


def test_batches_of_two_loaders_are_no_two_samples():
    a, b = [torch.zeros(32, 3), torch.zeros(32, 2)], [torch.zeros(16, 3), torch.zeros(16, 2)]
    assert batch_size({"a": a, "b": b}) is None
    assert batch_size([a, b]) is None
    assert batch_size({"a": a, "b": a}) == 32
    assert batch_size({"a": a[0], "b": b[0]}) is None


def test_images_of_one_shape_and_targets_with_as_many_boxes_are_samples():
    images = [torch.zeros(3, 8, 8) for _ in range(4)]
    targets = [{"boxes": torch.zeros(2, 4), "labels": torch.zeros(2)} for _ in range(4)]
    assert batch_size((images, targets)) == 4
