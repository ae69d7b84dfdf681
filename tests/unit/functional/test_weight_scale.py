import math

import pytest
import torch

from lbtrain.functional.hvp import MeanLoss
from lbtrain.functional.weight_scale import checked_scale, weight_scale
from tests.problems import leaf


def test_the_scale_of_andriushchenko_is_the_absolute_weight_everywhere():
    params = [leaf([[1.0, -2.0], [0.0, 3.0]]), leaf([-4.0])]
    assert weight_scale(params).tolist() == [1.0, 2.0, 0.0, 3.0, 4.0]


def test_the_scale_of_kwon_leaves_biases_at_one():
    params = [leaf([[1.0, -2.0]]), leaf([-4.0])]
    assert weight_scale(params, eta=0.01, adapted=[True, False]).tolist() == [1.01, 2.01, 1.0]


def test_half_precision_weights_get_a_float32_scale():
    assert weight_scale([leaf([1.0], torch.bfloat16)], eta=1e-4).tolist() == pytest.approx([1.0001], rel=1e-7)


def test_a_scale_carries_no_gradient_and_is_not_a_view():
    w = leaf([2.0])
    scale = weight_scale([w], adapted=[True])
    scale.zero_()
    assert w.item() == 2.0
    assert not scale.requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"), [({"eta": -1.0}, "eta must"), ({"eta": math.nan}, "eta"), ({"adapted": [True]}, "got 1")]
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        weight_scale([leaf([1.0]), leaf([2.0])], **arguments)


@pytest.mark.parametrize("scale", [torch.ones(3), torch.ones(2, 1), torch.tensor([1.0, -1.0])])
def test_a_scale_that_does_not_fit_is_refused(scale):
    w = leaf([1.0, 2.0])
    with pytest.raises(ValueError, match="weight_scale"):
        checked_scale(scale, MeanLoss([w], [lambda: w.sum()], [1.0]))
