import pytest
import torch

from lbtrain.functional.vectors import dot, flatten, norm, unflatten
from tests.problems import generator


def tensors(dtype=torch.float64):
    return [
        torch.randn(s, generator=generator(i), dtype=dtype) for i, s in enumerate([(3, 2), (4,), (), (0,), (2, 1, 2)])
    ]


def test_unflatten_inverts_flatten():
    parts = tensors()
    vector = flatten(parts)
    assert vector.shape == (15,)
    assert all(torch.equal(a, b) for a, b in zip(unflatten(vector, parts), parts, strict=True))


def test_unflatten_gives_views():
    vector = torch.zeros(15)
    unflatten(vector, tensors())[1].fill_(1.0)
    assert vector.tolist() == [0.0] * 6 + [1.0] * 4 + [0.0] * 5


def test_flatten_reads_transposed_tensors_in_their_own_order():
    matrix = torch.arange(6.0).reshape(2, 3)
    assert flatten([matrix.T]).tolist() == [0, 3, 1, 4, 2, 5]


def test_unflatten_names_both_sizes():
    with pytest.raises(ValueError, match=r"shape \(15,\).*got \(14,\)"):
        unflatten(torch.zeros(14), tensors())


def test_norm_and_dot_do_not_see_how_the_vector_is_cut():
    left, right = tensors(), [t + 1 for t in tensors()]
    assert norm(left).item() == pytest.approx(flatten(left).norm().item(), rel=1e-14)
    assert dot(left, right).item() == pytest.approx((flatten(left) @ flatten(right)).item(), rel=1e-13)
    assert norm(left).shape == dot(left, right).shape == ()


def test_norm_of_half_precision_does_not_overflow():
    assert norm([torch.full((100,), 1e3, dtype=torch.float16)]).item() == pytest.approx(1e4)


def test_nothing_has_norm_zero():
    assert norm([]) == dot([], []) == 0
    assert flatten([]).shape == (0,)


def test_dot_refuses_other_shapes():
    with pytest.raises(ValueError, match="equal shapes"):
        dot([torch.zeros(2)], [torch.zeros(3)])
