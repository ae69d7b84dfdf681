"""Vectors cut over pretended processes against the same vectors whole."""

import math

import pytest
import torch

from lbtrain.functional.ascent import asam_ascent, friendly_direction, momentum_ascent, sam_ascent
from lbtrain.functional.descent import gsam_gradient, looksam_direction, looksam_gradient, wsam_gradient
from lbtrain.functional.space import WHOLE, ShardedSpace, Space
from lbtrain.functional.vectors import flatten
from tests.problems import generator

SHAPES = [(6, 2), (5,), (2, 3)]
ALL = slice(None)
# Per process, what it holds: which tensor, which of its rows, and how many processes hold the same.
LAYOUTS = {
    "each_a_part": [
        [(0, slice(0, 2), 1), (1, slice(0, 1), 1)],
        [(0, slice(2, 3), 1), (1, slice(1, 4), 1), (2, ALL, 1)],
        [(0, slice(3, 6), 1), (1, slice(4, 5), 1)],
    ],
    "one_tensor_held_by_all": [
        [(0, slice(0, 1), 1), (1, ALL, 3), (2, slice(0, 1), 1)],
        [(0, slice(1, 5), 1), (1, ALL, 3), (2, slice(1, 2), 1)],
        [(0, slice(5, 6), 1), (1, ALL, 3)],
    ],
    "all_held_by_all": [[(0, ALL, 3), (1, ALL, 3), (2, ALL, 3)]] * 3,
    "one_holds_nothing": [
        [(0, slice(0, 4), 1), (1, ALL, 2)],
        [],
        [(0, slice(4, 6), 1), (1, ALL, 2), (2, ALL, 1)],
    ],
    "one_holds_parts_without_entries": [
        [(0, slice(0, 3), 1), (1, slice(0, 5), 1), (2, ALL, 1)],
        [(0, slice(3, 6), 1), (1, slice(5, 5), 1)],
        [(0, slice(6, 6), 1), (1, slice(5, 5), 1)],
    ],
}
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)

RADII = [0.1, 0.4, 0.2]
ADAPTED = [True, False, True]
# Each takes two vectors, a radius per tensor, whether each tensor is adapted, and the space.
STEPS = {
    "sam": lambda g, w, radii, on, space: sam_ascent(g, 0.3, space=space),
    "sam_radii": lambda g, w, radii, on, space: sam_ascent(g, radii, space=space),
    "sam_box": lambda g, w, radii, on, space: sam_ascent(g, 0.3, p=math.inf, space=space),
    "sam_box_radii": lambda g, w, radii, on, space: sam_ascent(g, radii, p=math.inf, space=space),
    "asam": lambda g, w, radii, on, space: asam_ascent(w, g, 0.3, adapted=on, space=space),
    "asam_radii": lambda g, w, radii, on, space: asam_ascent(w, g, radii, adapted=on, space=space),
    "asam_box": lambda g, w, radii, on, space: asam_ascent(w, g, 0.3, adapted=on, p=math.inf, space=space),
    "momentum": lambda g, w, radii, on, space: momentum_ascent(g, 0.3, space=space),
    "momentum_radii": lambda g, w, radii, on, space: momentum_ascent(g, radii, space=space),
    "friendly": lambda g, w, radii, on, space: sam_ascent(friendly_direction(g, w), 0.3, space=space),
    "gsam": lambda g, w, radii, on, space: gsam_gradient(g, w, 0.4, space=space),
    "looksam_direction": lambda g, w, radii, on, space: looksam_direction(g, w, space=space),
    "looksam_gradient": lambda g, w, radii, on, space: looksam_gradient(g, w, 0.7, space=space),
    "wsam": lambda g, w, radii, on, space: wsam_gradient(g, w, 0.9),
}


def tensors(seed, dtype=torch.float64):
    return [
        torch.randn(s, generator=generator(10 * seed + i), dtype=torch.float64).to(dtype) for i, s in enumerate(SHAPES)
    ]


def part(held, whole):
    return [whole[i][rows] for i, rows, _ in held]


def per_tensor(held, values):
    return [values[i] for i, _, _ in held]


def doubled(parts):
    return [t.double() for t in parts]


def taken(step, g, w):
    """Return the step as a process takes it, from the parts that it holds."""
    return lambda held, space: step(
        part(held, g), part(held, w), per_tensor(held, RADII), per_tensor(held, ADAPTED), space
    )


def together(layout, compute):
    """Return `compute(held, space)` of every process, with sums over all of them.

    They run one after another, so each runs twice: first its own share of every sum is noted, then the sums are given.
    """
    noted = [[] for _ in layout]

    def note(share, shares):
        assert share.shape == ()
        assert share.dtype == torch.float64  # all processes must bring the same type, also one that holds nothing
        shares.append(share.clone())
        return share

    for held, shares in zip(layout, noted, strict=True):
        compute(held, ShardedSpace([c for *_, c in held], lambda t, shares=shares: note(t, shares)))
    # A process that missed a sum would hang the rest: all must have noted as many shares.
    sums = [sum(shares) for shares in zip(*noted, strict=True)]
    results = []
    for held in layout:
        given = iter(sums)
        results.append(compute(held, ShardedSpace([c for *_, c in held], lambda _, given=given: next(given).clone())))
    return results


def test_a_whole_space_measures_all_tensors_as_one_vector():
    a, b = tensors(1), tensors(2)
    assert type(WHOLE) is Space
    assert float(WHOLE.norm(a)) == pytest.approx(float(flatten(a).norm()), rel=1e-14)
    assert float(WHOLE.dot(a, b)) == pytest.approx(float(flatten(a) @ flatten(b)), rel=1e-13)


def test_a_sharded_norm_by_hand():
    # Two processes share [4]: 3^2 + 4^2 / 2 here and 12^2 + 4^2 / 2 there.
    sent = []
    space = ShardedSpace([1, 2], lambda t: sent.append(float(t)) or t + 12**2 + 8)
    assert float(space.norm([torch.tensor([3.0]), torch.tensor([4.0])])) == 13
    assert float(space.dot([torch.tensor([3.0]), torch.tensor([4.0])], [torch.ones(1), torch.ones(1)])) == 5 + 12**2 + 8
    assert sent == [17, 5]


@layouts
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_norm_and_inner_product_are_those_of_the_whole_on_every_process(layout, dtype):
    a, b = tensors(1, dtype), tensors(2, dtype)
    exact_a, exact_b = flatten(a).double(), flatten(b).double()
    rel = 1e-13 if dtype == torch.float64 else 1e-6
    found = together(layout, lambda held, space: float(space.norm(part(held, a))))
    assert found == pytest.approx([float(exact_a.norm())] * 3, rel=rel)
    assert len(set(found)) == 1
    found = together(layout, lambda held, space: float(space.dot(part(held, a), part(held, b))))
    assert found == pytest.approx([float(exact_a @ exact_b)] * 3, rel=rel)
    assert len(set(found)) == 1


@layouts
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_every_process_gets_its_part_of_the_whole_result(layout, step):
    g, w = tensors(1), tensors(2)
    whole = step(g, w, RADII, ADAPTED, WHOLE)
    assert all(t.abs().max() > 0.01 for t in whole)
    for held, found in zip(layout, together(layout, taken(step, g, w)), strict=True):
        torch.testing.assert_close(found, part(held, whole), rtol=1e-11, atol=1e-13)


@layouts
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_results_have_the_type_of_the_parts(layout, step, dtype):
    g, w = tensors(1, dtype), tensors(2, dtype)
    exact = step(doubled(g), doubled(w), RADII, ADAPTED, WHOLE)
    atol = 4 * torch.finfo(dtype).eps * max(float(t.abs().max()) for t in exact)
    for held, found in zip(layout, together(layout, taken(step, g, w)), strict=True):
        assert all(t.dtype == dtype for t in found)
        torch.testing.assert_close(doubled(found), part(held, exact), rtol=0, atol=atol)


def test_a_group_that_holds_zeros_takes_no_step():
    zero, layout = [torch.zeros(s) for s in SHAPES], LAYOUTS["one_holds_nothing"]
    steps = together(layout, lambda held, space: sam_ascent(part(held, zero), 0.3, space=space))
    for held, found in zip(layout, steps, strict=True):
        torch.testing.assert_close(found, part(held, zero), rtol=0, atol=0)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("p", [2, math.inf])
def test_a_process_that_holds_nothing_gets_nothing_and_still_takes_part(in_place, p):
    calls = []
    space = ShardedSpace([], lambda t: calls.append(float(t)) or t + 4)
    for rho in (0.1, []):
        assert sam_ascent([], rho, p=p, in_place=in_place, space=space) == []
        for scratch in (None, []):
            assert asam_ascent([], [], rho, adapted=[], p=p, in_place=in_place, scratch=scratch, space=space) == []
    assert calls == [0.0] * 6


def test_as_many_copies_as_tensors_are_asked_for():
    space = ShardedSpace([1], lambda t: t)
    with pytest.raises(ValueError, match=r"longer|shorter"):
        space.norm(tensors(1))
    with pytest.raises(ValueError, match=r"longer|shorter"):
        space.dot(tensors(1)[:1], tensors(1))


def test_sums_are_made_on_the_device_asked_for():
    devices = []
    ShardedSpace([], lambda t: devices.append(t.device.type) or t, "meta").dot([], [])
    ShardedSpace([], lambda t: devices.append(t.device.type) or t).dot([], [])
    assert devices == ["meta", "cpu"]
