import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lbtrain.functional.normalized_logits import NormalizedLogits, normalized
from tests.problems import generator

Z = torch.randn(5, 4, generator=generator(), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 3, 0])


def by_hand(z):
    """Return the loss as the released code of Andriushchenko et al. does it: centre, then divide by the length."""
    c = z - z.mean(1, keepdim=True)
    return -torch.log_softmax(c / c.norm(dim=1, keepdim=True), 1)[range(len(z)), Y].mean()


def test_the_logits_of_each_sample_are_centred_and_of_length_one():
    with NormalizedLogits():
        assert cross_entropy(Z, Y).item() == pytest.approx(by_hand(Z).item(), rel=1e-12)
        assert nn.CrossEntropyLoss()(input=Z, target=Y).item() == pytest.approx(by_hand(Z).item(), rel=1e-12)
    assert cross_entropy(Z, Y).item() != pytest.approx(by_hand(Z).item(), rel=1e-3)


@pytest.mark.parametrize("shape", [(4,), (5, 4), (5, 4, 2), (5, 4, 2, 3)])
def test_classes_are_the_axis_that_cross_entropy_takes(shape):
    z = torch.randn(*shape, generator=generator(), dtype=torch.float64)
    axis = 0 if len(shape) == 1 else 1
    found = normalized(z)
    assert torch.allclose(found.sum(axis), torch.zeros(()).double(), atol=1e-12)
    assert torch.allclose(found.norm(dim=axis), torch.ones(()).double())


def test_the_length_of_each_samples_logits_does_not_matter():
    factors = torch.tensor([[1.0], [3.0], [1e-3], [1e4], [7.0]], dtype=torch.float64)
    with NormalizedLogits():
        assert cross_entropy(factors * Z + factors, Y).item() == pytest.approx(cross_entropy(Z, Y).item(), rel=1e-9)


def test_gradients_and_second_derivatives_pass():
    z = Z.clone().requires_grad_()
    with NormalizedLogits():
        loss = cross_entropy(z, Y)
        (g,) = torch.autograd.grad(loss, z, create_graph=True)
        (h,) = torch.autograd.grad((g * Z).sum(), z)
    (exact,) = torch.autograd.grad(by_hand(z), z)
    assert torch.allclose(g, exact)
    assert torch.allclose((g * Z).sum(1), torch.zeros(5).double(), atol=1e-12)  # no change along the logits
    assert torch.allclose(h, -g, atol=1e-10)  # since g(tz) = g(z) / t


def test_equal_logits_and_half_precision_are_finite():
    assert normalized(torch.ones(2, 3)).abs().max() == 0
    found = normalized(torch.tensor([[1e4, 0.0]], dtype=torch.float16))
    assert found.dtype == torch.float32
    assert found.tolist()[0] == pytest.approx([0.5**0.5, -(0.5**0.5)])


def test_calls_are_counted_and_others_left_alone():
    with NormalizedLogits() as mode:
        cross_entropy(Z, Y)
        nn.functional.nll_loss(Z, Y)
        assert mode.num_calls == 1
