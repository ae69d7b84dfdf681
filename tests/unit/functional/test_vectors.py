import pytest
import torch

from lbtrain.functional.vectors import dot, flatten, multiplied, norm, unflatten
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


def test_multiplied_changes_the_tensors_in_place_and_returns_them():
    parts = tensors()
    expected, memory = [0.25 * t for t in parts], [t.data_ptr() for t in parts]
    found = multiplied(parts, torch.tensor(0.25))
    assert all(a is b for a, b in zip(found, parts, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert [t.data_ptr() for t in parts] == memory


@pytest.mark.parametrize("factor", [torch.float32, torch.float64], ids=str)
def test_multiplied_keeps_the_types_of_the_tensors(factor):
    types = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
    found = multiplied([torch.full((2,), 3.0, dtype=d) for d in types], torch.tensor(0.5, dtype=factor))
    assert [t.dtype for t in found] == types
    assert [t.tolist() for t in found] == [[1.5, 1.5]] * 4


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("entry", "factor", "product"), [(2**-14, 2.0**20, 64.0), (2.0**15, 2.0**-30, 2**-15), (0, 1e12, 0)]
)
def test_half_precision_takes_a_factor_that_is_no_half_precision_number(device, entry, factor, product):
    parts = [torch.full((2,), entry, dtype=torch.float16, device=device)]
    assert multiplied(parts, torch.tensor(factor, device=device))[0].tolist() == [product, product]


def test_multiplied_follows_the_tensors_to_their_devices():
    # The meta device stands for a second one; what lies there has no values.
    here, there = torch.tensor([1.0, 2.0]), torch.ones(3, device="meta")
    found = multiplied([here, there], torch.tensor(3.0))
    assert found[0] is here
    assert found[1] is there
    assert here.tolist() == [3.0, 6.0]


def test_multiplied_of_nothing_is_nothing():
    assert multiplied([], torch.tensor(2.0)) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_inner_product_of_half_precision_is_summed_in_single_precision(dtype):
    large = torch.full((100,), 1e3, dtype=dtype)
    assert dot([large], [large]).item() == pytest.approx(1e8, rel=1e-6)
    small = torch.full((100,), 2.0**-14, dtype=dtype)
    assert dot([small], [small]).item() == pytest.approx(100 * 2.0**-28, rel=1e-6)


def test_the_type_of_the_first_tensor_does_not_coarsen_the_inner_product():
    left = [torch.ones(1, dtype=torch.bfloat16), torch.full((1,), 1000.5)]
    assert dot(left, [torch.ones(1, dtype=torch.bfloat16), torch.ones(1)]).item() == 1001.5
