"""Gradients of SAM's variants against numbers by hand, their geometry, and the same formulas in double precision."""

import math

import pytest
import torch

from lbtrain.functional.descent import (
    gsam_gradient,
    looksam_direction,
    looksam_gradient,
    sharpness_weight,
    wsam_gradient,
)
from lbtrain.functional.vectors import flatten
from tests.problems import generator

SHAPES = [(3, 2), (4,), (), (0,), (2, 1, 2)]
VARIANTS = {
    "gsam": lambda g, s: gsam_gradient(g, s, 0.4),
    "looksam_direction": looksam_direction,
    "looksam_gradient": lambda g, s: looksam_gradient(g, s, 0.7),
    "wsam": lambda g, s: wsam_gradient(g, s, 0.9),
}
variants = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


def tensors(seed, dtype=torch.float64, scale=1.0):
    return [
        (scale * torch.randn(s, generator=generator(10 * seed + i), dtype=torch.float64)).to(dtype)
        for i, s in enumerate(SHAPES)
    ]


def zeros():
    return [torch.zeros(s, dtype=torch.float64) for s in SHAPES]


def times(factor, parts):
    return [factor * t for t in parts]


def doubled(parts):
    return [t.double() for t in parts]


def equal(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def addresses(parts):
    return {t.data_ptr() for t in parts if t.numel()}  # a tensor without entries has no memory


def close(left, right, rtol=1e-12):
    torch.testing.assert_close(left, right, rtol=rtol, atol=1e-14)


@variants
@pytest.mark.parametrize("factor", [65536.0, 1e-5])
def test_a_scaled_loss_gives_the_scaled_result(variant, factor):
    g, s = tensors(1), tensors(2)
    found = variant(times(factor, g), times(factor, s))
    torch.testing.assert_close(found, times(factor, variant(g, s)), rtol=1e-12, atol=1e-14 * factor)


@variants
def test_inputs_are_left_as_they_were_and_results_are_new(variant):
    g, s = tensors(1), tensors(2)
    found = variant(g, s)
    assert equal(g, tensors(1))
    assert equal(s, tensors(2))
    assert [t.shape for t in found] == [t.shape for t in g]
    assert not addresses(found) & addresses(g + s)


@variants
def test_the_result_does_not_see_how_the_vector_is_cut(variant):
    g, s = tensors(1), tensors(2)
    (whole,) = variant([flatten(g)], [flatten(s)])
    close(flatten(variant(g, s)), whole)


@variants
def test_no_tensors_give_no_tensors(variant):
    assert variant([], []) == []


@variants
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e3, 1e-4])
def test_results_are_right_to_the_rounding_of_their_type(variant, dtype, scale):
    # In float16 the squares of these numbers overflow at 1e3 and vanish at 1e-4.
    g, s = tensors(1, dtype, scale), tensors(2, dtype, scale)
    found = variant(g, s)
    assert {t.dtype for t in found} == {dtype}
    # Each term is rounded on its own, so errors are in units of the largest, up to 9 g_s; float16 has steps of 2^-24.
    size = 9 * max(float(t.abs().max()) for t in doubled(g + s) if t.numel())
    atol = size * torch.finfo(dtype).eps + (2**-23 if dtype == torch.float16 else 0)
    torch.testing.assert_close(doubled(found), variant(doubled(g), doubled(s)), rtol=0, atol=atol)


@variants
@pytest.mark.parametrize("first", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_tensors_of_mixed_types_keep_their_own(variant, first):
    types = [first, torch.float32, torch.bfloat16, torch.float64, torch.float16]
    g, s = ([t.to(d) for t, d in zip(tensors(i), types, strict=True)] for i in (1, 2))
    found = variant(g, s)
    assert [t.dtype for t in found] == types
    for t, exact in zip(found, variant(doubled(g), doubled(s)), strict=True):
        # The inner product that all share may be in float32.
        atol = 20 * max(torch.finfo(t.dtype).eps, torch.finfo(torch.float32).eps)
        torch.testing.assert_close(t.double(), exact, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_zero_gradients_never_become_nan(dtype):
    zero, one = [torch.zeros(2, dtype=dtype)], [torch.tensor([1.0, -2.0], dtype=dtype)]
    for variant in VARIANTS.values():
        assert equal(variant(zero, zero), zero)
    assert equal(gsam_gradient(zero, one, 0.5), one)
    assert equal(gsam_gradient(one, zero, 0.5), times(-0.5, one))  # all of g is orthogonal to nothing
    assert equal(looksam_direction(zero, one), one)
    assert equal(looksam_direction(one, zero), zero)
    assert equal(looksam_gradient(zero, one, 0.5), zero)
    assert equal(looksam_gradient(one, zero, 0.5), one)


@pytest.mark.parametrize("variant", [VARIANTS["gsam"], VARIANTS["looksam_direction"]], ids=["gsam", "looksam"])
def test_gradients_of_other_shapes_are_refused(variant):
    with pytest.raises(ValueError, match="equal shapes"):
        variant([torch.ones(2)], [torch.ones(3)])


def test_gsam_by_hand():
    # <g, g_s> / |g_s|^2 = 50 / 25, so the part of g beside g_s = (3, 4) is (10, 5) - 2 (3, 4) = (4, -3).
    found = gsam_gradient([torch.tensor([10.0]), torch.tensor(5.0)], [torch.tensor([3.0]), torch.tensor(4.0)], 0.5)
    torch.testing.assert_close(found, [torch.tensor([1.0]), torch.tensor(5.5)])


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0, -0.3])
def test_gsam_takes_off_what_is_orthogonal_to_the_ascended_gradient(alpha):
    g, s = tensors(1), tensors(2)
    flat_g, flat_s, found = flatten(g), flatten(s), flatten(gsam_gradient(g, s, alpha))
    beside = (flat_s - found) / alpha
    assert float(beside.norm()) > 1
    assert float(beside @ flat_s) == pytest.approx(0, abs=1e-12)
    # Together with a multiple of g_s it is g.
    along = flat_g - beside
    cosine = float(along @ flat_s / along.norm() / flat_s.norm())
    assert abs(cosine) == pytest.approx(1, abs=1e-12)


def test_gsam_with_alpha_zero_is_sam():
    assert equal(gsam_gradient(tensors(1), tensors(2), 0.0), tensors(2))


@pytest.mark.parametrize("ratio", [1.0, 3.0, 1e-3, -2.0])
def test_gsam_of_parallel_gradients_is_sam(ratio):
    close(gsam_gradient(times(ratio, tensors(2)), tensors(2), 0.4), tensors(2))


def test_the_direction_by_hand():
    # <g_s, g> / |g|^2 = 50 / 25, as above with the roles exchanged.
    found = looksam_direction([torch.tensor([3.0]), torch.tensor(4.0)], [torch.tensor([10.0]), torch.tensor(5.0)])
    torch.testing.assert_close(found, [torch.tensor([4.0]), torch.tensor(-3.0)])


def test_the_direction_is_orthogonal_to_the_gradient_over_all_tensors_together():
    g, s = tensors(1), tensors(2)
    found = looksam_direction(g, s)
    products = [float((a * b).sum()) for a, b in zip(g, found, strict=True)]
    assert sum(products) == pytest.approx(0, abs=1e-12)
    assert max(abs(p) for p in products) > 0.1  # which a projection of each tensor by itself would not leave


def test_the_direction_has_the_length_of_the_ascended_gradient_times_the_sine():
    g, s = tensors(1), tensors(2)
    cosine = torch.nn.functional.cosine_similarity(flatten(g), flatten(s), dim=0)
    length = float(flatten(looksam_direction(g, s)).norm())
    assert length == pytest.approx(float(flatten(s).norm()) * math.sqrt(1 - float(cosine) ** 2), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equal_gradients_leave_no_direction_and_plain_training(dtype):
    # As with rho = 0: not a rounding error may stay, since the next steps would stretch it to alpha |g|.
    g = tensors(1, dtype)
    direction = looksam_direction(g, tensors(1, dtype))
    assert equal(direction, times(0.0, g))
    assert equal(looksam_gradient(g, direction, 0.7), g)


def test_the_reused_gradient_by_hand():
    # |g| / |g_v| = 10 / 5
    found = looksam_gradient([torch.tensor([6.0]), torch.tensor(8.0)], [torch.tensor([4.0]), torch.tensor(-3.0)], 0.5)
    torch.testing.assert_close(found, [torch.tensor([10.0]), torch.tensor(5.0)])


@pytest.mark.parametrize("alpha", [0.2, 0.7, 3.0])
@pytest.mark.parametrize("scale", [1.0, 1e4, 1e-6])
def test_the_reused_part_has_length_alpha_in_units_of_the_gradient(alpha, scale):
    g, v = tensors(1), tensors(2)
    reused = flatten(looksam_gradient(g, times(scale, v), alpha)) - flatten(g)
    assert float(reused.norm()) == pytest.approx(alpha * float(flatten(g).norm()), rel=1e-12)
    close(reused / reused.norm(), flatten(v) / flatten(v).norm())


def test_alpha_zero_reuses_nothing():
    assert equal(looksam_gradient(tensors(1), tensors(2), 0.0), tensors(1))


def test_the_direction_given_back_at_its_own_length_makes_the_ascended_gradient_again():
    g, s = tensors(1), tensors(2)
    v = looksam_direction(g, s)
    found = looksam_gradient(g, v, float(flatten(v).norm() / flatten(g).norm()))
    along = float(flatten(g) @ flatten(s) / flatten(g).square().sum())
    close(found, [b + (1 - along) * a for a, b in zip(g, s, strict=True)])


def test_wsam_with_gamma_zero_is_plain_training_and_with_half_is_sam():
    assert equal(wsam_gradient(tensors(1), tensors(2), 0.0), tensors(1))
    assert equal(wsam_gradient(tensors(1), tensors(2), 0.5), tensors(2))


def test_wsam_goes_beyond_sam_by_the_weight():
    # gamma = 0.9 has a = 9: 9 g_s - 8 g
    found = wsam_gradient(
        [torch.tensor([1.0, 2.0]), torch.tensor(0.5)], [torch.tensor([2.0, 0.0]), torch.tensor(1.0)], 0.9
    )
    torch.testing.assert_close(found, [torch.tensor([10.0, -16.0]), torch.tensor(5.0)])


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.5, 0.9])
def test_wsam_is_linear_in_both_gradients(gamma):
    g, s, h, t = (tensors(i) for i in range(1, 5))
    mixed = [[2 * a - 3 * b for a, b in zip(x, y, strict=True)] for x, y in ((g, h), (s, t))]
    left, right = wsam_gradient(g, s, gamma), wsam_gradient(h, t, gamma)
    close(wsam_gradient(*mixed, gamma), [2 * a - 3 * b for a, b in zip(left, right, strict=True)])


def test_the_weight_of_the_sharpness():
    assert [sharpness_weight(gamma) for gamma in (0, 0.5, 0.75)] == [0, 1, 3]
    assert sharpness_weight(0.9) == pytest.approx(9, rel=1e-14)


@pytest.mark.parametrize("gamma", [-0.1, 1, 1.5, math.inf, math.nan])
def test_a_gamma_without_a_weight_is_refused(gamma):
    message = rf"gamma must be in \[0, 1\), got {gamma}; 0.5 is SAM, larger values weigh sharpness more"
    with pytest.raises(ValueError, match=message):
        sharpness_weight(gamma)
    with pytest.raises(ValueError, match=message):
        wsam_gradient(tensors(1), tensors(2), gamma)


def test_what_rounding_leaves_of_parallel_gradients_is_no_direction():
    for seed in range(20):
        g = torch.randn(1000, generator=torch.Generator().manual_seed(seed))
        (direction,) = looksam_direction([g], [1.1 * g])
        assert torch.equal(direction, torch.zeros(1000))
        assert torch.equal(looksam_gradient([g], [direction], 0.7)[0], g)


@pytest.mark.parametrize(
    "combine", [lambda *a, **o: gsam_gradient(*a, 0.4, **o), lambda *a, **o: wsam_gradient(*a, 0.9, **o)]
)
def test_in_place_results_take_the_memory_of_the_second_gradient(combine, generator):
    g, s = ([torch.randn(5, generator=generator), torch.randn(2, 3, generator=generator)] for _ in range(2))
    kept, expected = [t.clone() for t in g], combine(g, [t.clone() for t in s])
    places = [t.data_ptr() for t in s]
    found = combine(g, s, in_place=True)
    assert [t.data_ptr() for t in found] == places
    assert all(torch.equal(a, b) for a, b in zip((*found, *g), (*expected, *kept), strict=True))
